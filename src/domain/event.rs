//! What a delivery means, in the field's words. GitHub's wire ends where this begins.

use super::{InstallationId, Pull, PullNumber, RepositoryId, Sha};
use crate::clock::Timestamp;

/// A repository as an event names it; the label of its apps is the store's to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryFacts {
    pub id: RepositoryId,
    pub owner: String,
    pub name: String,
    pub default_branch: Option<String>,
    pub private: bool,
    pub html_url: String,
    pub installation: Option<InstallationId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Opened, pushed to, reopened, retitled: whatever changed, this is how it is now.
    PullChanged {
        pull: Pull,
    },
    /// Closed, merged or not.
    PullClosed {
        pull: Pull,
    },
    BranchPushed {
        branch: String,
        commit: Sha,
    },
    Comment {
        pull: PullNumber,
        comment: u64,
        author: String,
        body: String,
        written_at: Timestamp,
    },
    /// The Re-run button of a check.
    RerunAsked {
        commit: Sha,
        run: Option<super::RunNumber>,
        by: Option<String>,
        /// Only what failed in that run.
        only_failed: bool,
    },
    /// Somebody else's check or status of a commit changed.
    ChecksChanged {
        commit: Sha,
    },
    /// A merge queue wants to know whether this commit is green.
    GroupQueued {
        branch: String,
        commit: Sha,
    },
    /// The merge queue no longer asks.
    GroupGone {
        branch: String,
    },
    /// Renamed, transferred, made private: only the facts changed.
    RepositoryChanged,
    /// It was deleted, or the app may no longer act here.
    RepositoryGone,
}
