//! An app: what it should run (its newest deploy), and what it runs (its live release).

use super::{
    AppName, Failure, ProcessId, PullNumber, ReleaseNumber, RepositoryId, RunNumber, Sha, SlugDigest, Stage, Watch,
};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub name: AppName,
    /// A random identity of 32 hex digits, which the app sees as `HEROKU_APP_ID`.
    pub id: String,
    pub repository: RepositoryId,
    pub stage: Stage,
    pub wanted: Wanted,
    /// Oldest first; the last one is what is wanted. Older ones are dropped after `KEPT_DEPLOYS`.
    pub deploys: Vec<Deploy>,
    /// The release that has the traffic.
    pub live: Option<ReleaseNumber>,
    /// The number of the newest release; the next one gets the number after it.
    pub last_release: u32,
    /// Values that `generator: secret` made for this app, sealed.
    pub generated: BTreeMap<String, Sealed>,
    /// Whether `scripts.postdeploy` has run.
    pub postdeploy_done: bool,
    /// Nobody has used it for a while, so nothing of it runs until somebody does.
    #[serde(default)]
    pub asleep_since: Option<Timestamp>,
    #[serde(default)]
    pub woken_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// It runs a stranger's code: it gets nothing secret and writes to nothing that others read.
    #[serde(default)]
    pub untrusted: bool,
    /// Processes that started before this are to be started anew.
    #[serde(default)]
    pub restart_at: Option<Timestamp>,
    /// It is not stale before this.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
    /// The newest watch over a release; over when its time is, or when something else serves.
    #[serde(default)]
    pub watch: Option<Watch>,
}

/// How many deploys an app remembers.
pub const KEPT_DEPLOYS: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Run the newest deploy.
    Running,
    /// Nothing of it runs until somebody with the right says so: a fork's pull request.
    Held,
    /// Take it away, with everything that it has.
    Gone,
}

/// A text that only the vault can read: nonce and ciphertext, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

/// The wish to have a commit serve in an app, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// Counts from 1 in each app.
    pub number: u64,
    pub commit: Sha,
    pub branch: String,
    pub cause: Cause,
    /// Who asked, as a GitHub login; `None` when a push did.
    pub by: Option<String>,
    pub asked_at: Timestamp,
    /// The tests that must be green first.
    pub gate: Option<RunNumber>,
    /// The tree of the commit, once it was fetched.
    pub tree: Option<Sha>,
    pub release: Option<ReleaseNumber>,
    /// Whether the release phase is over (or there is none).
    pub released: bool,
    pub outcome: Option<Outcome>,
}

/// Where a deploy's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// Built from the commit (or found built, where the tree is the same).
    Push,
    /// Another app's slug as it is, with this app's own config.
    Promotion {
        from: AppName,
        release: ReleaseNumber,
        slug: SlugDigest,
        /// Percent of the requests at first, and for how many seconds.
        #[serde(default)]
        canary: Option<(u8, u64)>,
    },
    /// An earlier release's slug and config.
    Rollback {
        to: ReleaseNumber,
        /// The release that was found worse than the one before it; `None` where a person wanted it.
        #[serde(default)]
        guard: Option<ReleaseNumber>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// It answers requests since `at` (or did, when a later one is live).
    Live {
        at: Timestamp,
    },
    Failed {
        failure: Failure,
        at: Timestamp,
    },
    /// A newer deploy was wanted before this one was live.
    Superseded {
        at: Timestamp,
    },
}

/// How far a deploy is: derived, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Waiting,
    Building,
    Releasing,
    Booting,
    Live,
    /// It was live once.
    Replaced,
    Failed,
    Superseded,
}

impl App {
    pub fn newest(&self) -> Option<&Deploy> {
        self.deploys.last()
    }

    pub fn deploy(&self, number: u64) -> Option<&Deploy> {
        self.deploys.iter().find(|deploy| deploy.number == number)
    }

    /// The deploy whose release has the traffic.
    pub fn live_deploy(&self) -> Option<&Deploy> {
        let live = self.live?;
        self.deploys.iter().rev().find(|deploy| deploy.release == Some(live))
    }

    pub fn phase(&self, deploy: &Deploy) -> Phase {
        match &deploy.outcome {
            Some(Outcome::Live { .. }) if deploy.release == self.live && self.wanted == Wanted::Running => Phase::Live,
            Some(Outcome::Live { .. }) => Phase::Replaced,
            Some(Outcome::Failed { .. }) => Phase::Failed,
            Some(Outcome::Superseded { .. }) => Phase::Superseded,
            None if deploy.release.is_some() && deploy.released => Phase::Booting,
            None if deploy.release.is_some() => Phase::Releasing,
            None if deploy.tree.is_some() => Phase::Building,
            None => Phase::Waiting,
        }
    }

    pub fn pull(&self) -> Option<PullNumber> {
        match self.stage {
            Stage::Review(number) => Some(number),
            Stage::Staging | Stage::Production => None,
        }
    }
}

/// `vN`: slug + config vars + formation. Never changed once written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub app: AppName,
    pub number: ReleaseNumber,
    pub deploy: u64,
    pub slug: SlugDigest,
    pub commit: Sha,
    pub branch: String,
    pub cause: Cause,
    pub by: Option<String>,
    pub created_at: Timestamp,
    /// Config vars, as one sealed JSON object.
    pub config: Sealed,
    pub process_types: BTreeMap<String, String>,
    pub formation: BTreeMap<String, Scale>,
}

impl Release {
    /// The command of the release phase.
    pub fn release_command(&self) -> Option<&str> {
        self.process_types.get("release").map(String::as_str)
    }

    /// The processes that should run, in order: `web.1`, `web.2`, `worker.1`.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u16)> {
        self.formation
            .iter()
            .flat_map(|(kind, scale)| (1..=scale.quantity).map(move |ordinal| (kind.as_str(), ordinal)))
    }

    /// The identity of the `attempt`-th try at one process of this release.
    pub fn process_id(&self, kind: &str, ordinal: u16, attempt: u32) -> ProcessId {
        format!("{}.{}.{}.{ordinal}.a{attempt}", self.app, self.number, shorten(kind))
            .parse()
            .expect("an app, a release and a process type make a process id")
    }
}

/// Process types may be longer than a process id has room for: 20 characters of it, then a checksum.
fn shorten(kind: &str) -> String {
    if kind.len() <= 20 { kind.to_owned() } else { format!("{}-{:08x}", &kind[..11], crc32c::crc32c(kind.as_bytes())) }
}

/// How many of a process type, and how large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    pub quantity: u16,
    pub size: String,
}
