//! A slash-command in a pull request's comment.

use super::{AppName, PullNumber, ReleaseNumber, RepositoryId};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// What a line of a comment asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Command {
    /// Copy staging's slug to production.
    Promote,
    /// Run the tests of the head commit again.
    Retest {
        /// Only the files that failed.
        #[serde(default)]
        failed: bool,
    },
    /// End the tests that run.
    Cancel,
    /// Go back to an earlier release; the one before the live one unless named.
    Rollback {
        to: Option<ReleaseNumber>,
        stage: RollbackStage,
    },
    Help,
    Unknown {
        word: String,
        nearest: Option<String>,
    },
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
    /// Its test runs are being ended.
    Ending,
    Helped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// Their permission on the repository does not allow it.
    NoRight {
        role: String,
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
    UnknownCommand,
}
