//! Everything the stand-in knows besides git objects, in one serializable struct. Records point at each other by
//! numeric id, never by name, so that renames and transfers move nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::git::{Commit, Git};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountKind {
    User,
    Organization,
    Bot,
}

impl AccountKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Organization => "Organization",
            Self::Bot => "Bot",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    pub id: u64,
    pub login: String,
    pub kind: AccountKind,
    pub created_at: i64,
    /// Of an organization: member id to `admin` or `member`.
    pub members: BTreeMap<u64, String>,
    /// Of an organization: team slug to its members' ids.
    pub teams: BTreeMap<String, Vec<u64>>,
}

/// What a person may do in a repository, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    None,
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pull" | "read" => Self::Read,
            "triage" => Self::Triage,
            "push" | "write" => Self::Write,
            "maintain" => Self::Maintain,
            "admin" => Self::Admin,
            "none" => Self::None,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Triage => "triage",
            Self::Write => "write",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }

    /// The old four-step word: maintain counts as write, triage as read.
    pub fn folded(self) -> &'static str {
        match self {
            Self::Maintain => "write",
            Self::Triage => "read",
            other => other.name(),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Installation {
    pub id: u64,
    pub account: u64,
    pub created_at: i64,
    pub updated_at: i64,
    pub suspended_at: Option<i64>,
    pub suspended_by: Option<u64>,
    pub permissions: BTreeMap<String, String>,
}

/// An installation token, kept under the SHA-256 of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstallationToken {
    pub installation: u64,
    pub expires_at: i64,
    pub permissions: BTreeMap<String, String>,
    /// `None` stands for all repositories of the installation.
    pub repositories: Option<Vec<u64>>,
}

/// A user's token made by the OAuth flow, kept under the SHA-256 of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserToken {
    pub id: u64,
    pub user: u64,
    pub created_at: i64,
    pub expires_at: i64,
    /// SHA-256 of the refresh token, and when that ends.
    pub refresh: String,
    pub refresh_expires_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OauthCode {
    pub user: u64,
    pub expires_at: i64,
    pub redirect_uri: Option<String>,
    pub challenge: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct App {
    pub id: u64,
    pub slug: String,
    pub name: String,
    pub bot: u64,
    pub owner: u64,
    pub created_at: i64,
    pub permissions: BTreeMap<String, String>,
    pub events: Vec<String>,
    pub hook_url: String,
    pub hook_secret: String,
    pub client_id: String,
    pub client_secret: String,
    pub setup_url: Option<String>,
    pub callback_url: Option<String>,
    /// Public keys of converted manifests, beside the one given at the start.
    #[serde(default)]
    pub more_keys: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reaction {
    pub id: u64,
    pub user: u64,
    pub content: String,
    pub created_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comment {
    pub id: u64,
    pub issue: u64,
    pub user: u64,
    pub via_app: bool,
    pub body: String,
    pub created_at: i64,
    pub updated_at: i64,
    pub reactions: Vec<Reaction>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Review {
    pub id: u64,
    pub user: u64,
    pub state: String,
    pub body: String,
    pub commit: String,
    pub submitted_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pull {
    pub id: u64,
    /// `None` once the fork is gone.
    pub head_repository: Option<u64>,
    pub head_owner: u64,
    pub head_ref: String,
    pub head_sha: String,
    pub base_ref: String,
    pub base_sha: String,
    pub draft: bool,
    pub merged_at: Option<i64>,
    pub merged_by: Option<u64>,
    pub merge_commit: Option<String>,
    pub maintainer_can_modify: bool,
    pub reviews: Vec<Review>,
}

/// An issue, or with `pull` a pull request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Issue {
    pub id: u64,
    pub number: u64,
    pub title: String,
    pub body: Option<String>,
    pub user: u64,
    pub via_app: bool,
    pub open: bool,
    pub locked: bool,
    pub labels: Vec<String>,
    pub created_at: i64,
    pub updated_at: i64,
    pub closed_at: Option<i64>,
    pub closed_by: Option<u64>,
    pub reactions: Vec<Reaction>,
    pub pull: Option<Pull>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Label {
    pub id: u64,
    pub name: String,
    pub color: String,
    pub description: Option<String>,
    pub default: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub id: u64,
    pub sha: String,
    pub state: String,
    pub description: Option<String>,
    pub target_url: Option<String>,
    pub context: String,
    pub creator: u64,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckSuite {
    pub id: u64,
    pub head_sha: String,
    pub head_branch: Option<String>,
    pub before: Option<String>,
    pub after: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckOutput {
    pub title: Option<String>,
    pub summary: Option<String>,
    pub text: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckRun {
    pub id: u64,
    pub suite: u64,
    pub name: String,
    pub head_sha: String,
    pub external_id: String,
    pub details_url: Option<String>,
    pub status: String,
    pub conclusion: Option<String>,
    pub started_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub created_at: i64,
    pub output: CheckOutput,
    pub annotations: Vec<Value>,
    pub actions: Vec<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeploymentStatus {
    pub id: u64,
    pub state: String,
    pub description: String,
    pub environment: String,
    pub environment_url: String,
    pub log_url: String,
    pub creator: u64,
    pub via_app: bool,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deployment {
    pub id: u64,
    pub sha: String,
    pub reference: String,
    pub task: String,
    pub payload: Value,
    pub environment: String,
    pub original_environment: String,
    pub description: Option<String>,
    pub creator: u64,
    pub via_app: bool,
    pub transient: bool,
    pub production: bool,
    pub created_at: i64,
    pub updated_at: i64,
    pub statuses: Vec<DeploymentStatus>,
}

impl Deployment {
    /// The state of the newest status; none counts as pending.
    pub fn state(&self) -> &str {
        self.statuses.last().map_or("pending", |status| status.state.as_str())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    pub id: u64,
    pub name: String,
    pub wait_timer: u64,
    /// People who must approve, and whether who asked may be one of them.
    #[serde(default)]
    pub reviewers: Vec<u64>,
    #[serde(default)]
    pub prevent_self_review: bool,
    /// As it was put: null, or which of the two kinds.
    #[serde(default)]
    pub branch_policy: Value,
    /// Patterns of a custom branch policy.
    #[serde(default)]
    pub branches: Vec<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Repository {
    pub id: u64,
    pub owner: u64,
    pub name: String,
    pub private: bool,
    pub description: Option<String>,
    pub default_branch: String,
    pub created_at: i64,
    pub updated_at: i64,
    pub pushed_at: i64,
    pub fork_of: Option<u64>,
    /// False for forks of outsiders: the app never hears of what happens there.
    pub installed: bool,
    pub has_issues: bool,
    pub collaborators: BTreeMap<u64, Role>,
    pub known_refs: BTreeMap<String, String>,
    pub next_number: u64,
    pub issues: BTreeMap<u64, Issue>,
    pub comments: BTreeMap<u64, Comment>,
    /// Under the lower-case name.
    pub labels: BTreeMap<String, Label>,
    pub statuses: Vec<Status>,
    pub suites: BTreeMap<u64, CheckSuite>,
    pub runs: BTreeMap<u64, CheckRun>,
    pub deployments: BTreeMap<u64, Deployment>,
    /// Under the lower-case name.
    pub environments: BTreeMap<String, Environment>,
    /// Whether a push makes a check suite for the app.
    pub auto_check_suites: bool,
    /// Branch name to its protection as it was put.
    pub protection: BTreeMap<String, Value>,
    /// Branch name to the contexts that a ruleset requires there.
    #[serde(default)]
    pub rules: BTreeMap<String, Vec<String>>,
}

/// One webhook POST, made or attempted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delivery {
    pub id: u64,
    pub guid: String,
    pub delivered_at: i64,
    pub redelivery: bool,
    /// Seconds.
    pub duration: f64,
    pub status: String,
    pub status_code: u16,
    pub event: String,
    pub action: Option<String>,
    pub installation: Option<u64>,
    pub repository: Option<u64>,
    pub payload: String,
    pub request_headers: BTreeMap<String, String>,
    pub response_headers: BTreeMap<String, String>,
    pub response: String,
}

/// A webhook on its way out.
#[derive(Clone, Debug)]
pub struct Hook {
    pub guid: String,
    pub event: String,
    pub action: Option<String>,
    pub installation: Option<u64>,
    pub repository: Option<u64>,
    pub payload: String,
    pub redelivery: bool,
}

#[derive(Clone, Debug, Default)]
pub struct DiffTotals {
    pub commits: u64,
    pub additions: u64,
    pub deletions: u64,
    pub changed_files: u64,
}

#[derive(Serialize, Deserialize)]
pub struct State {
    /// Added to the system's clock, in seconds.
    pub clock_offset: i64,
    pub next_account: u64,
    pub next_repository: u64,
    pub next_id: u64,
    pub next_delivery: u64,
    pub hook_id: u64,
    pub app: App,
    /// The person who owns what the pages do and what is found on disk.
    pub first_user: u64,
    pub accounts: BTreeMap<u64, Account>,
    pub repositories: BTreeMap<u64, Repository>,
    /// `owner/name` in lower case, of before a rename or transfer, to the repository's id.
    pub moved: BTreeMap<String, u64>,
    pub installations: BTreeMap<u64, Installation>,
    pub tokens: BTreeMap<String, InstallationToken>,
    pub user_tokens: BTreeMap<String, UserToken>,
    pub oauth_codes: BTreeMap<String, OauthCode>,
    /// Manifests waiting for their conversion, under the code.
    pub manifests: BTreeMap<String, Value>,
    /// Prepared commits that were pushed.
    #[serde(default)]
    pub pressed: BTreeSet<String>,

    /// Kept in a file of their own, one line each.
    #[serde(skip)]
    pub deliveries: VecDeque<Delivery>,
    /// The app's public keys as ring wants them.
    #[serde(skip)]
    pub keys: Vec<Vec<u8>>,
    /// How many more answers about a pull request say that its mergeability is not computed yet.
    #[serde(skip)]
    pub unknown_merges: u64,
    #[serde(skip)]
    pub base: String,
    #[serde(skip)]
    pub data: PathBuf,
    /// Tokens given on the command line: SHA-256 of the token to the account.
    #[serde(skip)]
    pub fixed_tokens: HashMap<String, u64>,
    #[serde(skip)]
    pub outbox: Vec<Hook>,
    /// Repositories into which a push over HTTP is running; their refs are left to that push.
    #[serde(skip)]
    pub pushing: HashMap<u64, usize>,
    #[serde(skip)]
    pub commits: HashMap<String, Commit>,
    #[serde(skip)]
    pub totals: HashMap<(String, String), DiffTotals>,
    /// Base and head to the tree of their merge, `None` where they conflict.
    #[serde(skip)]
    pub merges: HashMap<(String, String), Option<String>>,
}

/// How many deliveries are kept, however young they are.
pub const KEPT_DELIVERIES: usize = 3000;

/// The permissions that the app holds unless told otherwise: what a CI bot needs.
pub fn default_permissions() -> BTreeMap<String, String> {
    [
        ("actions", "read"),
        ("checks", "write"),
        ("contents", "read"),
        ("deployments", "write"),
        ("issues", "write"),
        ("members", "read"),
        ("merge_queues", "read"),
        ("metadata", "read"),
        ("pull_requests", "write"),
        ("statuses", "write"),
    ]
    .into_iter()
    .map(|(name, level)| (name.to_owned(), level.to_owned()))
    .collect()
}

impl State {
    pub fn now(&self) -> i64 {
        system_seconds() + self.clock_offset
    }

    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn account(&self, id: u64) -> Option<&Account> {
        self.accounts.get(&id)
    }

    pub fn login(&self, id: u64) -> &str {
        self.accounts.get(&id).map_or("ghost", |account| account.login.as_str())
    }

    pub fn find_account(&self, login: &str) -> Option<u64> {
        self.accounts.values().find(|account| account.login.eq_ignore_ascii_case(login)).map(|account| account.id)
    }

    /// The account of that name, made when it is new.
    pub fn ensure_account(&mut self, login: &str, kind: AccountKind) -> u64 {
        if let Some(id) = self.find_account(login) {
            return id;
        }
        self.next_account += 1;
        let id = self.next_account;
        let mut members = BTreeMap::new();
        if kind == AccountKind::Organization {
            members.insert(self.first_user, "admin".to_owned());
        }
        let created_at = self.now();
        self.accounts
            .insert(id, Account { id, login: login.to_owned(), kind, created_at, members, teams: BTreeMap::new() });
        id
    }

    pub fn full_name(&self, repository: &Repository) -> String {
        format!("{}/{}", self.login(repository.owner), repository.name)
    }

    pub fn find_repository(&self, owner: &str, name: &str) -> Option<u64> {
        self.repositories
            .values()
            .find(|repository| {
                repository.name.eq_ignore_ascii_case(name) && self.login(repository.owner).eq_ignore_ascii_case(owner)
            })
            .map(|repository| repository.id)
    }

    pub fn repository(&self, id: u64) -> Result<&Repository> {
        self.repositories.get(&id).ok_or_else(|| anyhow::anyhow!("repository {id} is gone"))
    }

    pub fn repository_mut(&mut self, id: u64) -> Result<&mut Repository> {
        self.repositories.get_mut(&id).ok_or_else(|| anyhow::anyhow!("repository {id} is gone"))
    }

    pub fn git(&self, repository: &Repository) -> Git {
        Git::at(self.data.join(self.login(repository.owner)).join(format!("{}.git", repository.name)))
    }

    pub fn git_of(&self, id: u64) -> Result<Git> {
        Ok(self.git(self.repository(id)?))
    }

    /// What a person may do there, all sources taken together.
    pub fn role(&self, repository: &Repository, user: u64) -> Role {
        let mut role = repository.collaborators.get(&user).copied().unwrap_or(Role::None);
        if repository.owner == user {
            role = Role::Admin;
        }
        if let Some(owner) = self.accounts.get(&repository.owner) {
            role = role.max(match owner.members.get(&user).map(String::as_str) {
                Some("admin") => Role::Admin,
                Some(_) => Role::Read,
                None => Role::None,
            });
        }
        if !repository.private {
            role = role.max(Role::Read);
        }
        role
    }

    pub fn installation_of(&self, account: u64) -> Option<&Installation> {
        self.installations.values().find(|installation| installation.account == account)
    }

    /// The repositories that an installation covers.
    pub fn installed_repositories(&self, installation: &Installation) -> Vec<u64> {
        self.repositories
            .values()
            .filter(|repository| repository.installed && repository.owner == installation.account)
            .map(|repository| repository.id)
            .collect()
    }

    /// A commit of a repository, from memory when it was read before.
    pub fn commit(&mut self, git: &Git, sha: &str) -> Result<Commit> {
        Ok(self.commit_list(git, &[sha.to_owned()])?.remove(0))
    }

    pub fn commit_list(&mut self, git: &Git, shas: &[String]) -> Result<Vec<Commit>> {
        let missing: Vec<String> = shas.iter().filter(|sha| !self.commits.contains_key(*sha)).cloned().collect();
        for commit in git.commits(&missing)? {
            self.commits.insert(commit.sha.clone(), commit);
        }
        Ok(shas.iter().filter_map(|sha| self.commits.get(sha).cloned()).collect())
    }

    /// Drops what has expired, so that the state does not grow for ever.
    pub fn prune(&mut self) {
        let now = self.now();
        self.tokens.retain(|_, token| token.expires_at > now - 86_400);
        self.oauth_codes.retain(|_, code| code.expires_at > now);
        while self.deliveries.len() > KEPT_DELIVERIES {
            self.deliveries.pop_front();
        }
    }
}

pub fn system_seconds() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
}
