//! What GitHub tells us, once it is read: the events that concern a pipeline and the things they are about.
//!
//! Plain data that knows nothing of JSON. Everything here is a hint: whoever acts with rights on one of these asks
//! GitHub again first.

use crate::clock::Timestamp;
use crate::domain::{InstallationId, PullNumber, RepositoryId, Sha};

/// A person, an organisation or a bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: u64,
    pub login: String,
    pub is_bot: bool,
}

impl Account {
    /// Whom GitHub shows in place of a deleted account.
    pub fn ghost() -> Account {
        Account { id: 10_137, login: "ghost".to_owned(), is_bot: false }
    }
}

/// A repository as an event or a read names it. The number stays, the names may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    pub id: RepositoryId,
    pub owner: String,
    pub name: String,
    pub default_branch: String,
    pub private: bool,
    pub archived: bool,
    pub html_url: String,
}

impl Repo {
    /// What the client's calls take.
    pub fn handle(&self, installation: Option<InstallationId>) -> RepoHandle {
        RepoHandle { installation, id: self.id, owner: self.owner.clone(), name: self.name.clone() }
    }
}

/// A repository and the grant by which it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoHandle {
    /// `None` with a plain token.
    pub installation: Option<InstallationId>,
    pub id: RepositoryId,
    pub owner: String,
    pub name: String,
}

/// A repository as lists of an installation name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoRef {
    pub id: RepositoryId,
    /// `owner/name`.
    pub full_name: String,
    pub private: bool,
}

/// A pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    pub number: PullNumber,
    pub title: String,
    pub author: Account,
    pub head: Head,
    pub base: Base,
    pub open: bool,
    pub merged: bool,
    pub draft: bool,
    pub labels: Vec<String>,
    pub html_url: String,
    /// While open this is a test merge, after merging the commit on the base branch; absent in newer API versions, so
    /// nothing may depend on it.
    pub merge_commit_sha: Option<Sha>,
    /// `None` while GitHub has not worked it out yet, and in lists.
    pub mergeable: Option<bool>,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
    pub merged_at: Option<Timestamp>,
}

impl Pull {
    /// Whether the commits come from another repository than the one they ask to get into, or from one that is gone.
    pub fn is_from_fork(&self) -> bool {
        self.head.repository.is_none() || self.head.repository != self.base.repository
    }
}

/// The commits that a pull request offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub sha: Sha,
    /// May hold any character that git allows, `$(…)` and quotes among them.
    pub branch: String,
    /// `None` when the fork is gone.
    pub repository: Option<RepositoryId>,
    /// The login of the repository's owner, `None` when the fork is gone.
    pub owner: Option<String>,
}

/// Where a pull request wants to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub sha: Sha,
    pub branch: String,
    pub repository: Option<RepositoryId>,
}

/// A comment on an issue or a pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    pub id: u64,
    pub body: String,
    pub author: Account,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
    /// The app that wrote it, by its number, when an app did.
    pub via_app: Option<u64>,
}

/// One webhook delivery's meaning. Whatever we don't act on is `Unread`; nothing that GitHub sends is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Ping {
        zen: Option<String>,
        hook_id: Option<u64>,
    },
    Installation {
        action: InstallationAction,
        installation: InstallationId,
        /// The login of the account that installed the app.
        account: String,
        repositories: Vec<RepoRef>,
    },
    InstallationRepositories {
        installation: InstallationId,
        added: Vec<RepoRef>,
        removed: Vec<RepoRef>,
    },
    PullRequest {
        action: PullAction,
        repo: Repo,
        installation: Option<InstallationId>,
        pull: Box<Pull>,
        sender: Account,
    },
    Push(Box<Push>),
    IssueComment {
        action: CommentAction,
        repo: Repo,
        installation: Option<InstallationId>,
        issue: PullNumber,
        is_pull: bool,
        issue_open: bool,
        comment: Comment,
        sender: Account,
    },
    CheckRun {
        action: CheckRunAction,
        repo: Repo,
        installation: Option<InstallationId>,
        id: u64,
        name: String,
        head_sha: Sha,
        external_id: Option<String>,
        /// The app that made it.
        app_id: Option<u64>,
        conclusion: Option<String>,
        /// Empty for pull requests from forks: find those by the head's SHA.
        pulls: Vec<PullNumber>,
        sender: Account,
    },
    CheckSuite {
        action: CheckSuiteAction,
        repo: Repo,
        installation: Option<InstallationId>,
        id: u64,
        head_sha: Sha,
        /// `None` for pull requests from forks.
        head_branch: Option<String>,
        app_id: Option<u64>,
        conclusion: Option<String>,
        sender: Account,
    },
    MergeGroup {
        action: MergeGroupAction,
        repo: Repo,
        installation: Option<InstallationId>,
        head_sha: Sha,
        /// In full, `refs/heads/gh-readonly-queue/…`.
        head_ref: String,
        base_sha: Option<Sha>,
        base_ref: String,
    },
    /// A commit status, by us or by others.
    Status {
        repo: Repo,
        installation: Option<InstallationId>,
        sha: Sha,
        context: String,
        state: String,
    },
    Deployment {
        repo: Repo,
        installation: Option<InstallationId>,
        id: u64,
        sha: Sha,
        environment: String,
        creator: Account,
    },
    DeploymentStatus {
        repo: Repo,
        installation: Option<InstallationId>,
        deployment: u64,
        environment: String,
        state: String,
        creator: Account,
    },
    Repository {
        action: RepositoryAction,
        repo: Repo,
        installation: Option<InstallationId>,
    },
    /// A branch or a tag was made (`created`) or removed.
    Reference {
        created: bool,
        reference: Reference,
        repo: Repo,
        installation: Option<InstallationId>,
        sender: Account,
    },
    /// Somebody's rights on the repository changed: ask again before the next thing that needs them.
    Member {
        repo: Repo,
        installation: Option<InstallationId>,
        member: Account,
    },
    Label {
        action: String,
        repo: Repo,
        installation: Option<InstallationId>,
        name: String,
    },
    /// Signed and stored, and nothing to us.
    Unread {
        event: String,
        action: Option<String>,
    },
}

/// New commits on a branch, a new or moved tag, or either gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    pub repo: Repo,
    pub installation: Option<InstallationId>,
    pub reference: Reference,
    /// All zeros when created.
    pub before: Sha,
    /// All zeros when deleted.
    pub after: Sha,
    pub created: bool,
    pub deleted: bool,
    pub forced: bool,
    pub head_commit: Option<PushedCommit>,
    /// The name that git gives, which is a login on github.com; rights are asked for `sender`.
    pub pusher: String,
    pub sender: Option<Account>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedCommit {
    pub sha: Sha,
    pub tree: Option<Sha>,
    pub message: String,
    pub author: String,
    pub at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Branch(String),
    Tag(String),
    /// Anything else, in full.
    Other(String),
}

impl Reference {
    /// Reads a full name; a tag called `master` is no branch.
    pub fn from_full(name: &str) -> Reference {
        if let Some(branch) = name.strip_prefix("refs/heads/") {
            Reference::Branch(branch.to_owned())
        } else if let Some(tag) = name.strip_prefix("refs/tags/") {
            Reference::Tag(tag.to_owned())
        } else {
            Reference::Other(name.to_owned())
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallationAction {
    Created,
    Deleted,
    Suspended,
    Unsuspended,
    NewPermissions,
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullAction {
    Opened,
    Synchronize,
    Closed,
    Reopened,
    /// Title, body, or base; `base_before` is the former base branch if that is what changed.
    Edited {
        base_before: Option<String>,
    },
    Labeled(String),
    Unlabeled(String),
    ReadyForReview,
    ConvertedToDraft,
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommentAction {
    Created,
    Edited,
    Deleted,
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckRunAction {
    Created,
    Completed,
    Rerequested,
    RequestedAction { identifier: String },
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckSuiteAction {
    Requested,
    Rerequested,
    Completed,
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeGroupAction {
    ChecksRequested,
    /// `merged`, `invalidated` or `dequeued`.
    Destroyed {
        reason: Option<String>,
    },
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryAction {
    Created,
    Renamed {
        from: Option<String>,
    },
    /// Only the new owner's installation hears of it.
    Transferred {
        from: Option<String>,
    },
    Privatized,
    Publicized,
    Archived,
    Unarchived,
    Deleted,
    /// `default_branch_before` is there when the default branch is what changed.
    Edited {
        default_branch_before: Option<String>,
    },
    Other(String),
}
