//! A slash-command in a pull request's comment.

use super::{AppName, PullNumber, ReleaseNumber, RepositoryId, Sha, StageKind};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// What a line of a comment asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Command {
    /// Deploy the pull request's head to its review app, also where nothing does so by itself.
    Deploy {
        /// Of which folder, where the repository has several; those that the pull request concerns unless named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// Take the review app away until somebody asks for it.
    Destroy {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// Run the tests of the head commit again; `failed`: only if any failed.
    Retest {
        #[serde(default)]
        failed: bool,
    },
    /// End the pull request's test runs that are going on.
    Cancel,
    /// Copy staging's slug to production.
    Promote {
        /// Only if this is what staging serves.
        #[serde(default)]
        release: Option<ReleaseNumber>,
        /// The app's name, if not the only one.
        #[serde(default)]
        to: Option<String>,
        /// Why a lock or a freeze does not hold this back.
        #[serde(default)]
        hotfix: Option<String>,
        /// Percent of the requests at first, and for how many seconds.
        #[serde(default)]
        canary: Option<(u8, u64)>,
    },
    /// Go back to an earlier release; the one before the live one unless named.
    Rollback {
        to: Option<ReleaseNumber>,
        stage: RollbackStage,
        /// The app's name, where one was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// Let exactly this commit of a fork run.
    Approve {
        commit: Sha,
    },
    Lock {
        stage: StageKind,
        reason: String,
    },
    Unlock {
        stage: StageKind,
    },
    /// No promotion before that time; `None` ends it.
    Freeze {
        until: Option<Until>,
        reason: String,
    },
    Restart {
        stage: StageKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// Keep the review app at least so many seconds longer.
    Extend {
        seconds: u64,
    },
    /// Show the last lines of the review app.
    Logs {
        lines: u16,
    },
    Status,
    Help,
    /// How many of which process type, as written: `web=3`, `web=3:standard-2x` or `web=standard-2x`.
    Scale {
        #[serde(default = "review")]
        stage: StageKind,
        #[serde(default)]
        what: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// Wake the review app if it sleeps.
    Wake,
    /// Run the release phase of the newest deploy again; of the review app where it is one that failed, else of
    /// production, unless named.
    RetryRelease {
        #[serde(default)]
        stage: Option<StageKind>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<String>,
    },
    /// A known word whose arguments make no sense.
    Malformed {
        word: String,
    },
    Unknown {
        word: String,
        nearest: Option<String>,
    },
}

fn review() -> StageKind {
    StageKind::Review
}

/// A moment as a person names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    At(Timestamp),
    /// Seconds from the comment on.
    In(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackStage {
    Staging,
    Production,
}

/// A command that was given, and what came of it: part of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRecord {
    pub repository: RepositoryId,
    pub pull: PullNumber,
    pub comment: u64,
    /// Several commands may stand in one comment; this one's place, from 0.
    pub place: u16,
    pub command: Command,
    pub by: String,
    pub given_at: Timestamp,
    pub answer: Answer,
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// What somebody gave on a page or in a terminal, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorOrder {
    pub number: u64,
    pub repository: RepositoryId,
    pub what: OrderKind,
    pub by: String,
    pub given_at: Timestamp,
    pub answer: Answer,
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// The orders that change what serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum OrderKind {
    Promote,
    Rollback {
        app: AppName,
        to: Option<ReleaseNumber>,
    },
    RetryRelease {
        app: AppName,
    },
    /// With its add-ons and what they hold.
    Destroy {
        app: AppName,
    },
    /// What a comment may ask for, for a pull request if it is about one.
    Command {
        command: Command,
        pull: Option<PullNumber>,
    },
    /// The rules on the dashboard.
    Rules,
    /// Names only: values are nobody else's business.
    Config {
        scope: String,
        names: Vec<String>,
    },
    /// `web=2:basic worker=1:basic`: the whole formation from then on.
    Scale {
        app: AppName,
        formation: String,
    },
    /// All processes, or those of one name or type.
    Restart {
        app: AppName,
        only: Option<String>,
    },
    /// Visitors are told that the app is under maintenance, or are let in again.
    Maintenance {
        app: AppName,
        on: bool,
    },
    /// A command that ran once, as process `run.<number>`. What it was may be private and stands with the app.
    Run {
        app: AppName,
        number: u16,
    },
}

/// Something that whoever reads of a command must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A lock or a freeze was passed over.
    Hotfix { reason: String, over: Option<Refusal> },
    /// These releases ran a release phase whose work a rollback leaves as it is.
    NotUndone { releases: Vec<ReleaseNumber> },
    /// Two people wanted it.
    Approved { by: String },
    /// The environment's protection on GitHub has a wait timer.
    Delayed { until: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// Under way as that deploy of that app; how it ends is read from there.
    Deploying {
        app: AppName,
        deploy: u64,
    },
    Testing {
        run: super::RunNumber,
    },
    Refused {
        reason: Refusal,
    },
    /// It waits for a second person.
    Waiting {
        app: AppName,
        release: ReleaseNumber,
    },
    /// It is so now.
    Done,
    /// What was asked for stands in a comment of its own.
    Told,
    Helped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// Their permission on the repository does not allow it.
    NoRight {
        role: String,
        /// What the stage asks for; missing in old records, where it was write access.
        #[serde(default)]
        needed: Option<super::Access>,
        #[serde(default)]
        teams: Vec<String>,
    },
    NothingOnStaging,
    /// Staging is not at rest: what would go out is about to change.
    StagingBusy,
    AlreadyThere {
        app: AppName,
        release: ReleaseNumber,
    },
    NoSuchRelease,
    NothingToTest,
    /// The newest deploy did not fail, or failed before it had a release.
    NothingToRetry,
    UnknownCommand,
    /// No green verdict of the commit's own tests.
    NotTested {
        commit: Sha,
    },
    /// Checks of others, which production waits for, are not green: these are red, or open where none is.
    ChecksNotGreen {
        contexts: Vec<String>,
        red: bool,
    },
    /// The environment's protection on GitHub names who must say so, and this is nobody of them.
    NotAReviewer {
        environment: String,
    },
    /// The environment's protection on GitHub does not let this branch in.
    BranchNotDeployable {
        environment: String,
        branch: String,
    },
    /// Another release than the one that was named serves on staging.
    NotOnStaging {
        release: ReleaseNumber,
        live: ReleaseNumber,
    },
    Locked {
        stage: StageKind,
        by: String,
        reason: String,
    },
    Frozen {
        stage: StageKind,
        until: String,
        /// Who said so; `None` for a window of the policy.
        by: Option<String>,
        reason: String,
    },
    /// The same person again, where a second one is needed.
    SecondPerson,
    /// Who asked first may not (any more).
    FirstLostRight {
        login: String,
    },
    Closed,
    /// A fork's commit needs `/approve` with its full name.
    NeedsApproval {
        commit: Sha,
    },
    /// The pull request is at another commit than the one that was approved.
    NotTheHead {
        head: Sha,
    },
    /// As many review apps live as may.
    Full {
        limit: u16,
    },
    NoApp,
    NothingToCancel,
    NothingFailed,
    NotLocked {
        stage: StageKind,
    },
    NothingExpires,
    /// The live release has no such process type.
    NoSuchProcess {
        process: String,
        known: Vec<String>,
    },
    /// The operator has no such dyno size.
    NoSuchSize {
        size: String,
        known: Vec<String>,
    },
    /// The operator allows only so many processes; `everywhere`: of all apps together.
    TooManyProcesses {
        wanted: u32,
        most: u32,
        everywhere: bool,
    },
    /// It does not sleep.
    Awake,
    /// An app of that name takes no such deploy.
    NoSuchTarget {
        to: String,
    },
    /// There are several: it must be said which.
    WhichApp {
        apps: Vec<AppName>,
    },
    /// The words after the command make no sense.
    Malformed,
    /// This server can't do that.
    NotOffered,
}
