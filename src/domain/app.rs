//! An app: what it should run (its newest deploy), and what it runs (its live release).

use super::{
    AppKey, AppName, Ended, Failure, Part, ProcessId, PullNumber, ReleaseNumber, RepositoryId, RunNumber, Sha,
    SlugDigest, Stage, Watch,
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
    /// Which of the repository's apps in that stage.
    #[serde(default)]
    pub part: Part,
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
    /// Only those of this type or name; `None` for all.
    #[serde(default)]
    pub restart_only: Option<String>,
    /// Visitors are told so, and reach nothing of it.
    #[serde(default)]
    pub maintenance: bool,
    /// It is not stale before this.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
    /// The watch over the release that serves; over when its time is, or when something else serves.
    #[serde(default)]
    pub watch: Option<Watch>,
    /// The newest watch over a release that had a share of the requests.
    #[serde(default)]
    pub canary: Option<Watch>,
    /// How many of each process type, and how large: from `app.json` at the first release, from then on as people
    /// scale it. `None` before the first release.
    #[serde(default)]
    pub formation: Option<BTreeMap<String, Scale>>,
    /// When the formation was changed last: what is left over then drains.
    #[serde(default)]
    pub scaled_at: Option<Timestamp>,
    /// One-off processes that people asked for, oldest first; the newest `KEPT_ONE_OFFS` of those that are over.
    #[serde(default)]
    pub one_offs: Vec<OneOff>,
    /// The number of the newest one-off process.
    #[serde(default)]
    pub last_one_off: u16,
    /// `pr-predestroy`, from the moment on that the app is to go.
    #[serde(default)]
    pub farewell: Farewell,
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
    /// Required config vars without a value, which it waits for.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Checks of others that it waits for.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// When GitHub was asked for them last; `None` once something was heard of them.
    #[serde(default)]
    pub checked_at: Option<Timestamp>,
    /// It begins no earlier: a wait timer of the environment's protection on GitHub.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
}

impl Deploy {
    /// A wish of which nothing has happened yet. Its number is its app's to give.
    pub fn new(commit: Sha, branch: String, cause: Cause, by: Option<String>, at: Timestamp) -> Deploy {
        Deploy {
            number: 0,
            commit,
            branch,
            cause,
            by,
            asked_at: at,
            gate: None,
            tree: None,
            release: None,
            released: false,
            outcome: None,
            missing: Vec::new(),
            waits_for: Vec::new(),
            checked_at: None,
            not_before: None,
        }
    }
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
        /// No lock or freeze holds it back.
        #[serde(default)]
        hotfix: bool,
    },
    /// An earlier release's slug and config.
    Rollback {
        to: ReleaseNumber,
        /// The release that was found worse than the one before it; `None` where a person wanted it.
        #[serde(default)]
        guard: Option<ReleaseNumber>,
    },
    /// The same slug with other config: these names changed.
    Config { slug: SlugDigest, names: Vec<String> },
    /// The slug of a deploy that failed, once more.
    Retry { deploy: u64, slug: SlugDigest },
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
    /// For config vars that `app.json` requires and nobody has set.
    WaitingForConfig,
    Releasing,
    Booting,
    /// It has a share of the requests and is compared with what has the others.
    Canary,
    Live,
    /// It was live once.
    Replaced,
    Failed,
    Superseded,
}

impl App {
    /// An app that nothing was asked of yet. Its id is whoever writes it down to give.
    pub fn new(name: AppName, repository: RepositoryId, key: AppKey, at: Timestamp) -> App {
        App {
            name,
            id: String::new(),
            repository,
            stage: key.stage,
            part: key.part,
            wanted: Wanted::Running,
            deploys: Vec::new(),
            live: None,
            last_release: 0,
            generated: BTreeMap::new(),
            postdeploy_done: false,
            asleep_since: None,
            woken_at: None,
            created_at: at,
            untrusted: false,
            restart_at: None,
            restart_only: None,
            maintenance: false,
            kept_until: None,
            watch: None,
            canary: None,
            formation: None,
            scaled_at: None,
            one_offs: Vec::new(),
            last_one_off: 0,
            farewell: Farewell::default(),
        }
    }

    /// Wants this from now on, instead of what was wanted before. The answer is the deploy's number.
    pub fn want(&mut self, deploy: Deploy) -> u64 {
        self.wanted = Wanted::Running;
        for older in self.deploys.iter_mut().filter(|older| older.outcome.is_none()) {
            older.outcome = Some(Outcome::Superseded { at: deploy.asked_at });
        }
        let number = self.deploys.last().map_or(1, |newest| newest.number + 1);
        self.deploys.push(Deploy { number, ..deploy });
        number
    }

    pub fn key(&self) -> AppKey {
        AppKey::new(self.stage, self.part)
    }

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
            None if self.canary_of(deploy).is_some() => Phase::Canary,
            None if deploy.release.is_some() && deploy.released => Phase::Booting,
            None if deploy.release.is_some() => Phase::Releasing,
            None if !deploy.missing.is_empty() => Phase::WaitingForConfig,
            None if deploy.tree.is_some() => Phase::Building,
            None => Phase::Waiting,
        }
    }

    /// The watch over a deploy's release while it has a share of the requests only.
    pub fn canary_of(&self, deploy: &Deploy) -> Option<&Watch> {
        let watch = self.canary.as_ref()?;
        (deploy.outcome.is_none() && deploy.release == Some(watch.release)).then_some(watch)
    }

    /// The watch that counts now: over what is being deployed, or, if nothing is, over what serves.
    pub fn watched(&self) -> Option<&Watch> {
        match self.newest().filter(|deploy| deploy.outcome.is_none()) {
            Some(pending) => self.canary_of(pending),
            None => self.watch.as_ref().filter(|watch| Some(watch.release) == self.live),
        }
    }

    /// What of a release should run, now: how many is the app's to say, which process types there are the release's.
    pub fn formation_of(&self, release: &Release) -> BTreeMap<String, Scale> {
        let Some(formation) = &self.formation else { return release.formation.clone() };
        let kinds = release.process_types.iter().filter(|(kind, command)| is_scalable(kind) && !command.is_empty());
        kinds
            .filter_map(|(kind, _)| match formation.get(kind) {
                Some(scale) => Some((kind.clone(), scale.clone())),
                // Heroku starts one web process, and nothing else unless it is told to.
                None if kind == "web" => Some((kind.clone(), Scale { quantity: 1, size: DEFAULT_SIZE.to_owned() })),
                None => None,
            })
            .filter(|(_, scale)| scale.quantity > 0)
            .collect()
    }

    /// The one-off processes that are not over.
    pub fn open_one_offs(&self) -> impl Iterator<Item = &OneOff> {
        self.one_offs.iter().filter(|one_off| one_off.ended.is_none())
    }

    pub fn pull(&self) -> Option<PullNumber> {
        self.key().pull()
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

/// How many one-off processes that are over an app remembers.
pub const KEPT_ONE_OFFS: usize = 20;

/// The dyno size where nobody names one.
pub const DEFAULT_SIZE: &str = "basic";

/// Processes that run once and end: their names are no process types that could be scaled.
pub const ONE_OFF_TYPES: [&str; 4] = ["release", "postdeploy", "predestroy", "run"];

pub fn is_scalable(kind: &str) -> bool {
    !ONE_OFF_TYPES.contains(&kind)
}

/// A command that somebody runs once, with the slug and the config of the live release: `run.1`, `run.2` …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneOff {
    pub number: u16,
    pub release: ReleaseNumber,
    pub command: String,
    pub size: String,
    /// From its start, in seconds.
    pub time_limit: u64,
    pub by: String,
    pub asked_at: Timestamp,
    /// Somebody wants it to end now.
    pub stop: bool,
    pub ended: Option<Ended>,
}

/// `pr-predestroy`: at most once each time the app is to go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Farewell {
    /// How often the app was to go.
    pub attempt: u32,
    /// It has ended, or there is nothing to run.
    pub done: bool,
}

/// How it ended, kept for the pull request when the app itself is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarewellReport {
    pub ended: Ended,
    /// The last lines of its output, oldest first.
    pub tail: Vec<String>,
    pub at: Timestamp,
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
