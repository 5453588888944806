//! What went wrong with somebody's code, as data. The sentence for each stands in `templates/failures.txt`;
//! who must act is part of the type: all of these are for the person who wrote the commit, but `Internal`.

use super::{AddonProblem, Finding, Refusal, ReleaseNumber, RunNumber};
use serde::{Deserialize, Serialize};

/// Why a deploy or a test run could not go on. `tail` holds the last lines of output, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Failure {
    /// The commit can't be had from the repository, or its tree is refused.
    Source { detail: String },
    /// `app.json` or `Procfile` breaks its rules; the detail names the line.
    Configuration { file: String, detail: String },
    /// No buildpack takes this repository.
    NotBuildable { looked_for: Vec<String> },
    /// The build ended with another status than 0.
    Build { ended: Ended, tail: Vec<String> },
    /// The built code is larger than a slug may be.
    SlugTooLarge { detail: String },
    /// It is more files, or deeper ones, than a slug may hold.
    TooManyFiles { detail: String },
    /// It unpacks to so many times its size that it looks like a bomb.
    SlugExpands { detail: String },
    /// A link in the built code leads out of it.
    LeadsOutside { detail: String },
    /// The build left a file that may not be read.
    Unreadable { detail: String },
    /// The build left something that is no plain file where its results belong.
    BadResult { detail: String },
    /// A buildpack that the repository asks for can't be had.
    Buildpack { detail: String },
    /// A config var that `app.json` requires has no value.
    MissingConfig { names: Vec<String> },
    /// An add-on that `app.json` asks for could not be had.
    Addon { plan: String, problem: AddonProblem },
    /// The release phase ended with another status than 0; the live release is untouched.
    ReleasePhase { ended: Ended, tail: Vec<String> },
    /// `scripts.postdeploy` ended with another status than 0.
    Postdeploy { ended: Ended, tail: Vec<String> },
    /// The slug declares no process that this app could run.
    NothingToRun,
    /// All apps together have as many processes as the operator allows, so a new one gets none.
    NoRoom { most: u32 },
    /// A process ended before it answered.
    Crashed { process: String, ended: Ended, tail: Vec<String> },
    /// A web process ran, but never answered its health check in time.
    NotHealthy { process: String, seconds: u64, seen: String, tail: Vec<String> },
    /// Who asked for it may not do so any more.
    RightLost { login: String },
    /// The stage was locked or frozen after it was asked for, and before it had a release.
    Barred { by: Refusal },
    /// `[tests] files` names nothing that is there.
    NoTestFiles { patterns: Vec<String> },
    /// `[tests]` says which files are tests, and neither it nor a runner that is known says how they are run.
    NoTestCommand,
    /// The command of `[tests]` leaves no results that could be read, so nothing would be proven.
    NoTestResults,
    /// The router measured that it is worse than the release before it, which serves (again). `canary`: it had only a
    /// share of the requests.
    Worse { release: ReleaseNumber, before: ReleaseNumber, canary: bool, finding: Finding },
    /// The commit's own tests are not green.
    Tests { run: RunNumber },
    /// Checks of others, which the stage waits for, are not green.
    Checks { contexts: Vec<String> },
    /// Landfall itself failed: the operator must look.
    Internal { detail: String },
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ended {
    Exited {
        code: i32,
    },
    Signalled {
        signal: i32,
    },
    OutOfMemory,
    TimeLimit,
    OutputLimit,
    DiskLimit,
    /// The machine or the supervisor went away under it.
    Lost,
    CouldNotStart {
        detail: String,
    },
}

impl Ended {
    pub fn is_success(&self) -> bool {
        matches!(self, Ended::Exited { code: 0 })
    }
}
