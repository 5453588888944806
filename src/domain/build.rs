//! A build: one tree becomes one slug, once.

use super::{AppName, Failure, Manifest, ProcessId, RepositoryId, RunNumber, Sha, SlugDigest};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a build is made from: the same key always gives the same slug. Sixteen hex digits of a SHA-256 over
/// repository, tree, the built-in buildpacks' own content, the other buildpacks' commits, the machine's interpreters and
/// the build's environment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildKey(pub String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub key: BuildKey,
    pub repository: RepositoryId,
    pub commit: Sha,
    pub tree: Sha,
    /// Counts from 1; a build that failed through no fault of the code is tried again.
    pub attempt: u32,
    pub process: ProcessId,
    pub started_at: Timestamp,
    pub state: BuildState,
    /// The branch whose cache it may write. `None` for a fork's code, which writes none that others read.
    #[serde(default)]
    pub cache_of: Option<String>,
    /// The folder of the repository that is built; empty for all of it.
    #[serde(default)]
    pub root: String,
    /// The buildpacks asked for, each pinned; empty where the built-in ones detect.
    #[serde(default)]
    pub buildpacks: Vec<String>,
    #[serde(default)]
    pub phase: BuildPhase,
}

/// Which process a build is at: one for buildpacks; for a `Dockerfile` two more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildPhase {
    /// The buildpacks, or finding out that a `Dockerfile` is to be built.
    #[default]
    Pack,
    /// The operator's container engine.
    Image,
    /// Its root becomes a slug.
    Unpack,
}

impl Build {
    /// Its process at a phase.
    pub fn process_at(&self, phase: BuildPhase) -> String {
        let name = match phase {
            BuildPhase::Pack => "build",
            BuildPhase::Image => "image",
            BuildPhase::Unpack => "unpack",
        };
        format!("{name}.{}.a{}", self.key.0, self.attempt)
    }

    /// The process whose output says how it was built.
    pub fn log_process(&self) -> ProcessId {
        let phase = if self.phase == BuildPhase::Pack { BuildPhase::Pack } else { BuildPhase::Image };
        self.process_at(phase).parse().unwrap_or_else(|_| self.process.clone())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BuildState {
    Running,
    Succeeded {
        slug: SlugDigest,
        at: Timestamp,
    },
    Failed {
        failure: Failure,
        at: Timestamp,
    },
    /// Nobody waited for it any more, so it was ended: that says nothing about the code.
    Overtaken {
        at: Timestamp,
    },
}

impl BuildState {
    /// Whether its process and its folder may still be there.
    pub fn has_place(&self) -> bool {
        matches!(self, BuildState::Running | BuildState::Overtaken { .. })
    }
}

/// What is known of a slug besides its bytes. Never changed once written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    pub digest: SlugDigest,
    pub repository: RepositoryId,
    pub tree: Sha,
    pub commit: Sha,
    pub created_at: Timestamp,
    pub bytes: u64,
    pub files: u64,
    pub buildpacks: Vec<String>,
    /// From `Procfile`, else the buildpack's defaults.
    pub process_types: BTreeMap<String, String>,
    /// Defaults that the buildpack gives to the app's environment.
    pub config_vars: BTreeMap<String, String>,
    /// The buildpack's own way to run tests.
    pub test_command: Option<String>,
    /// `app.json` as it was in the tree, already found to be valid.
    pub manifest: Option<String>,
    /// `.github/landfall.toml` as it was in the tree, already found to be valid.
    #[serde(default)]
    pub settings: Option<String>,
    /// What `Procfile` and `app.json` hold that was not understood, as sentences.
    pub warnings: Vec<String>,
    /// How it is run, where it is a container image's root.
    #[serde(default)]
    pub image: Option<super::Image>,
    /// What only tests need and the pruning took out of the slug: a slug of its own, seen below this one on test nodes.
    #[serde(default)]
    pub test_layer: Option<SlugDigest>,
}

impl Slug {
    /// All that is on disk of it.
    pub fn digests(&self) -> impl Iterator<Item = &SlugDigest> {
        std::iter::once(&self.digest).chain(&self.test_layer)
    }
}

impl Slug {
    pub fn manifest(&self) -> Manifest {
        let text = self.manifest.as_deref().unwrap_or("{}");
        Manifest::parse(text.as_bytes()).map(|(manifest, _)| manifest).unwrap_or_default()
    }

    pub fn settings(&self) -> super::RepositorySettings {
        let text = self.settings.as_deref().unwrap_or("");
        super::RepositorySettings::parse(text.as_bytes()).unwrap_or_default()
    }
}

/// What can be reconciled: a subject is looked at anew whenever something about it may have changed, and is told
/// nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    App(AppName),
    Run(RunNumber),
    /// What people see of a pull request besides its app and its tests: the comment and the answers to commands.
    Pull(RepositoryId, super::PullNumber),
    /// What GitHub says of a repository now, against what is known.
    Repository(RepositoryId),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::App(app) => write!(formatter, "app:{app}"),
            Subject::Run(number) => write!(formatter, "run:{number}"),
            Subject::Pull(repository, number) => write!(formatter, "pull:{repository}:{number}"),
            Subject::Repository(repository) => write!(formatter, "repository:{repository}"),
        }
    }
}

impl std::str::FromStr for Subject {
    type Err = super::InvalidId;

    fn from_str(text: &str) -> Result<Subject, Self::Err> {
        let invalid = || super::InvalidId { value: text.to_owned(), expected: "a subject" };
        match text.split_once(':').ok_or_else(invalid)? {
            ("app", name) => Ok(Subject::App(name.parse()?)),
            ("run", number) => Ok(Subject::Run(RunNumber(number.parse().map_err(|_| invalid())?))),
            ("repository", id) => Ok(Subject::Repository(RepositoryId(id.parse().map_err(|_| invalid())?))),
            ("pull", rest) => {
                let (repository, number) = rest.split_once(':').ok_or_else(invalid)?;
                Ok(Subject::Pull(
                    RepositoryId(repository.parse().map_err(|_| invalid())?),
                    super::PullNumber(number.parse().map_err(|_| invalid())?),
                ))
            }
            _ => Err(invalid()),
        }
    }
}
