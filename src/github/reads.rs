//! What Landfall asks GitHub. Reads may be repeated at will and cost nothing while nothing changed.

use super::auth::Credentials;
use super::client::{GitHub, not_understood, segment, segments};
use super::error::GitHubError;
use super::event::{Account, Comment, Pull, Repo, RepoHandle};
use super::limits::Lane;
use super::reading;
use super::transport::Call;
use super::wire::{Fields, PayloadError};
use crate::clock::Timestamp;
use crate::domain::{InstallationId, PullNumber, RepositoryId, Sha};
use serde_json::Value;

/// The most bytes of one file that are read through the API; what is larger is for git.
pub const LARGEST_FILE: usize = 1 << 20;

/// Whom our own comments, checks and deployments are by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `None` with a plain token.
    pub app_id: Option<u64>,
    pub slug: Option<String>,
    /// `<slug>[bot]` for an app, the person's login with a plain token.
    pub login: String,
}

impl Identity {
    /// Whether a comment is ours: by the app's number, never by what is written in it.
    pub fn wrote(&self, comment: &Comment) -> bool {
        match self.app_id {
            Some(app_id) => {
                comment.via_app == Some(app_id)
                    || (comment.author.is_bot && comment.author.login.eq_ignore_ascii_case(&self.login))
            }
            None => comment.author.login.eq_ignore_ascii_case(&self.login),
        }
    }
}

/// One account's grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub id: InstallationId,
    pub account: String,
    pub suspended: bool,
}

/// What a person may do in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    pub level: Level,
    /// GitHub's exact name of the role, which an organisation may have made up.
    pub role_name: String,
    /// Whom GitHub means by the login now; a login may have changed hands.
    pub account: Option<Account>,
}

/// Rights, each with all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    None,
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub sha: Sha,
    pub tree: Sha,
    pub parents: Vec<Sha>,
    pub message: String,
    /// The name that git has for its author.
    pub author: String,
    pub committed_at: Option<Timestamp>,
}

/// How `head` stands to `base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    pub relation: Relation,
    pub ahead_by: u64,
    pub behind_by: u64,
    pub merge_base: Option<Sha>,
    /// Those that `head` has and `base` hasn't, oldest first, at most 250.
    pub commits: Vec<ComparedCommit>,
    /// The names of the files that differ, before and after, of at most 300; `files_complete` says whether these are all.
    pub files: Vec<String>,
    pub files_complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Identical,
    Ahead,
    Behind,
    Diverged,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedCommit {
    pub sha: Sha,
    pub message: String,
    pub author: Option<Account>,
}

/// A check run as GitHub has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenCheckRun {
    pub id: u64,
    pub name: String,
    pub external_id: Option<String>,
    pub status: String,
    pub conclusion: Option<String>,
    pub app_id: Option<u64>,
}

/// A commit status as GitHub has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenStatus {
    pub context: String,
    pub state: String,
    pub description: Option<String>,
    pub target_url: Option<String>,
    pub creator: Option<Account>,
}

/// A deployment as GitHub has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDeployment {
    pub id: u64,
    pub sha: Sha,
    pub environment: String,
    /// An object, or a text that may hold one.
    pub payload: Value,
    pub creator: Account,
    pub created_at: Option<Timestamp>,
}

impl SeenDeployment {
    /// The id that we gave it.
    pub fn landfall_id(&self) -> Option<String> {
        let id = |payload: &Value| Some(payload.get("landfall_id")?.as_str()?.to_owned());
        match &self.payload {
            Value::String(text) => id(&serde_json::from_str(text).ok()?),
            payload => id(payload),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDeploymentStatus {
    pub id: u64,
    pub state: String,
    pub description: Option<String>,
    pub environment_url: Option<String>,
    pub log_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenReaction {
    pub id: u64,
    /// `+1`, `eyes`, `rocket` …
    pub content: String,
    pub user: Account,
}

/// A webhook delivery as GitHub remembers it, for three days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookDelivery {
    /// GitHub's number of this attempt.
    pub id: u64,
    /// `X-GitHub-Delivery`, the same for each attempt.
    pub guid: String,
    pub delivered_at: Option<Timestamp>,
    pub event: String,
    pub status_code: u64,
}

impl HookDelivery {
    pub fn failed(&self) -> bool {
        !(200..300).contains(&self.status_code)
    }
}

impl GitHub {
    /// Who we are.
    pub async fn app(&self) -> Result<Identity, GitHubError> {
        match self.credentials() {
            Credentials::App { .. } => {
                self.read_json(Lane::App, None, Call::get("get_app", "/app".to_owned()), |app| {
                    let slug = app.text("slug")?;
                    Ok(Identity { app_id: Some(app.number("id")?), login: format!("{slug}[bot]"), slug: Some(slug) })
                })
                .await
            }
            Credentials::Token(_) => {
                self.read_json(Lane::Token, None, Call::get("get_user", "/user".to_owned()), |user| {
                    Ok(Identity { app_id: None, slug: None, login: user.text("login")? })
                })
                .await
            }
        }
    }

    /// All installations of the app, suspended ones too; none with a plain token.
    pub async fn installations(&self) -> Result<Vec<Installation>, GitHubError> {
        if let Credentials::Token(_) = self.credentials() {
            return Ok(Vec::new());
        }
        self.read_list(Lane::App, None, "list_installations", "/app/installations", None, |installation| {
            Ok(Installation {
                id: InstallationId(installation.number("id")?),
                account: installation
                    .maybe("account")
                    .and_then(|account| account.maybe_text("login").or_else(|| account.maybe_text("slug")))
                    .unwrap_or_default(),
                suspended: installation.maybe("suspended_at").is_some(),
            })
        })
        .await
    }

    /// The installation that a repository is in.
    ///
    /// # Errors
    /// `NotInstalled` when there is none, and with a plain token.
    pub async fn repository_installation(&self, owner: &str, name: &str) -> Result<InstallationId, GitHubError> {
        if let Credentials::Token(_) = self.credentials() {
            return Err(GitHubError::NotInstalled);
        }
        let path = format!("/repos/{}/{}/installation", segment(owner), segment(name));
        let call = Call::get("get_repository_installation", path);
        let installation =
            self.read_json(Lane::App, None, call, |fields| Ok(InstallationId(fields.number("id")?))).await;
        installation.map_err(|error| match error {
            GitHubError::NotFound { .. } => GitHubError::NotInstalled,
            other => other,
        })
    }

    /// The repositories of an installation, or all that a plain token reaches (`None`).
    pub async fn installation_repositories(
        &self,
        installation: Option<InstallationId>,
    ) -> Result<Vec<Repo>, GitHubError> {
        let lane = super::auth::lane(self.credentials(), installation)?;
        let (name, path, under) = match lane {
            Lane::Installation(_) => {
                ("list_installation_repositories", "/installation/repositories", Some("repositories"))
            }
            Lane::App | Lane::Token => ("list_user_repositories", "/user/repos", None),
        };
        self.read_list(lane, None, name, path, under, reading::repo).await
    }

    /// The repository as it is now.
    ///
    /// # Errors
    /// `Moved` when the name belongs to another repository by now.
    pub async fn repository(&self, repo: &RepoHandle) -> Result<Repo, GitHubError> {
        let call = Call::get("get_repository", repo_path(repo, ""));
        let found = self.read_json(self.lane_of(repo)?, Some(repo.id), call, reading::repo).await?;
        if found.id != repo.id {
            return Err(GitHubError::Moved { url: format!("/repositories/{}", repo.id) });
        }
        Ok(found)
    }

    /// The repository by its number, which renames and transfers leave alone.
    pub async fn repository_by_id(
        &self,
        installation: Option<InstallationId>,
        id: RepositoryId,
    ) -> Result<Repo, GitHubError> {
        let lane = super::auth::lane(self.credentials(), installation)?;
        self.read_json(lane, None, Call::get("get_repository_by_id", format!("/repositories/{id}")), reading::repo)
            .await
    }

    /// A file's bytes at a commit; `None` when the commit has no such file, or a folder in its place.
    ///
    /// # Errors
    /// `NotFound` when the commit isn't there (yet), `TooLarge` above one MiB.
    pub async fn file(&self, repo: &RepoHandle, path: &str, sha: &Sha) -> Result<Option<Vec<u8>>, GitHubError> {
        let address = repo_path(repo, &format!("/contents/{}?ref={sha}", segments(path)));
        let call = Call { raw: true, limit: LARGEST_FILE, ..Call::get("get_contents", address) };
        match self.read(self.lane_of(repo)?, Some(repo.id), call).await {
            // A folder is a list, which has no raw form.
            Ok(found) if is_plain_json(&found.content_type) && is_folder(&found.body) => Ok(None),
            Ok(found) => Ok(Some(found.body.to_vec())),
            Err(GitHubError::NotFound { what: "get_contents" }) => Ok(None),
            Err(GitHubError::TooLarge { limit, .. }) => Err(GitHubError::TooLarge { what: path.to_owned(), limit }),
            Err(error) => Err(error),
        }
    }

    pub async fn pull(&self, repo: &RepoHandle, number: PullNumber) -> Result<Pull, GitHubError> {
        let call = Call::get("get_pull", repo_path(repo, &format!("/pulls/{number}")));
        self.read_json(self.lane_of(repo)?, Some(repo.id), call, reading::pull).await
    }

    pub async fn open_pulls(&self, repo: &RepoHandle) -> Result<Vec<Pull>, GitHubError> {
        self.repo_list(repo, "list_pulls", "/pulls?state=open", None, reading::pull).await
    }

    /// How many files a pull request changes, at most 3,000 as GitHub lists them, and their names before and after.
    pub async fn pull_files(&self, repo: &RepoHandle, number: PullNumber) -> Result<(usize, Vec<String>), GitHubError> {
        let path = format!("/pulls/{number}/files");
        let files = self.repo_list(repo, "list_pull_files", &path, None, |file| Ok(names_of(file))).await?;
        Ok((files.len(), files.into_iter().flatten().collect()))
    }

    /// The pull requests, open or not, that have a commit.
    pub async fn pulls_of_commit(&self, repo: &RepoHandle, sha: &Sha) -> Result<Vec<Pull>, GitHubError> {
        self.repo_list(repo, "list_pulls_of_commit", &format!("/commits/{sha}/pulls"), None, reading::pull).await
    }

    /// The commit at a branch's head; `None` when there is no such branch.
    pub async fn branch_head(&self, repo: &RepoHandle, branch: &str) -> Result<Option<Sha>, GitHubError> {
        let call = Call::get("get_ref", repo_path(repo, &format!("/git/ref/heads/{}", segments(branch))));
        let head =
            self.read_json(self.lane_of(repo)?, Some(repo.id), call, |fields| fields.field("object")?.sha("sha"));
        match head.await {
            Ok(sha) => Ok(Some(sha)),
            Err(GitHubError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a person may do. An error is no permission: who asks must deny then.
    pub async fn permission(&self, repo: &RepoHandle, login: &str) -> Result<Permission, GitHubError> {
        if login.is_empty() {
            return Ok(Permission { level: Level::None, role_name: String::new(), account: None });
        }
        let path = repo_path(repo, &format!("/collaborators/{}/permission", segment(login)));
        let call = Call::get("get_permission", path);
        let permission = self.read_json(self.lane_of(repo)?, Some(repo.id), call, |fields| {
            let folded = fields.text("permission")?;
            let role_name = fields.maybe_text("role_name").unwrap_or_else(|| folded.clone());
            Ok(Permission {
                level: level(&folded, &role_name),
                role_name,
                account: fields.maybe("user").and_then(|user| reading::read_account(&user)),
            })
        });
        match permission.await {
            Err(GitHubError::NotFound { .. }) => {
                Ok(Permission { level: Level::None, role_name: "none".to_owned(), account: None })
            }
            outcome => outcome,
        }
    }

    /// Whether a person is in a team of an organisation now; a pending invitation is not enough.
    ///
    /// # Errors
    /// `Forbidden` when the app has no `members: read`.
    pub async fn is_team_member(
        &self,
        repo: &RepoHandle,
        organisation: &str,
        team: &str,
        login: &str,
    ) -> Result<bool, GitHubError> {
        let path = format!("/orgs/{}/teams/{}/memberships/{}", segment(organisation), segment(team), segment(login));
        let call = Call::get("get_team_membership", path);
        match self.read_json(self.lane_of(repo)?, None, call, |membership| membership.text("state")).await {
            Ok(state) => Ok(state == "active"),
            Err(GitHubError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub async fn commit(&self, repo: &RepoHandle, sha: &Sha) -> Result<Commit, GitHubError> {
        let call = Call::get("get_commit", repo_path(repo, &format!("/git/commits/{sha}")));
        self.read_json(self.lane_of(repo)?, Some(repo.id), call, |fields| {
            let parents: Result<Vec<Sha>, PayloadError> =
                fields.items("parents").iter().map(|parent| parent.sha("sha")).collect();
            Ok(Commit {
                sha: fields.sha("sha")?,
                tree: fields.field("tree")?.sha("sha")?,
                parents: parents?,
                message: fields.maybe_text("message").unwrap_or_default(),
                author: fields.maybe("author").and_then(|author| author.maybe_text("name")).unwrap_or_default(),
                committed_at: fields.maybe("committer").and_then(|committer| committer.maybe_time("date")),
            })
        })
        .await
    }

    pub async fn compare(&self, repo: &RepoHandle, base: &Sha, head: &Sha) -> Result<Comparison, GitHubError> {
        let path = repo_path(repo, &format!("/compare/{base}...{head}"));
        self.read_json(self.lane_of(repo)?, Some(repo.id), Call::get("compare", path), comparison).await
    }

    /// All comments of an issue or a pull request, oldest first.
    pub async fn list_comments(&self, repo: &RepoHandle, number: PullNumber) -> Result<Vec<Comment>, GitHubError> {
        self.repo_list(repo, "list_comments", &format!("/issues/{number}/comments"), None, reading::comment).await
    }

    /// All check runs of a name at a commit, those replaced since too.
    pub async fn list_check_runs(
        &self,
        repo: &RepoHandle,
        sha: &Sha,
        name: &str,
    ) -> Result<Vec<SeenCheckRun>, GitHubError> {
        let path = format!("/commits/{sha}/check-runs?check_name={}&filter=all", segment(name));
        self.repo_list(repo, "list_check_runs", &path, Some("check_runs"), seen_check_run).await
    }

    /// All statuses of a commit, newest first; the first of a context is the one that counts.
    pub async fn list_statuses(&self, repo: &RepoHandle, sha: &Sha) -> Result<Vec<SeenStatus>, GitHubError> {
        self.repo_list(repo, "list_statuses", &format!("/commits/{sha}/statuses"), None, |status| {
            Ok(SeenStatus {
                context: status.maybe_text("context").unwrap_or_else(|| "default".to_owned()),
                state: status.text("state")?,
                description: status.maybe_text("description"),
                target_url: status.maybe_text("target_url"),
                creator: status.maybe("creator").and_then(|creator| reading::read_account(&creator)),
            })
        })
        .await
    }

    /// The deployments of a commit to an environment, newest first.
    pub async fn list_deployments(
        &self,
        repo: &RepoHandle,
        environment: &str,
        sha: &Sha,
    ) -> Result<Vec<SeenDeployment>, GitHubError> {
        let path = format!("/deployments?environment={}&sha={sha}", segment(environment));
        self.deployments(repo, &path).await
    }

    /// All deployments to an environment, newest first.
    pub async fn list_environment_deployments(
        &self,
        repo: &RepoHandle,
        environment: &str,
    ) -> Result<Vec<SeenDeployment>, GitHubError> {
        self.deployments(repo, &format!("/deployments?environment={}", segment(environment))).await
    }

    /// All statuses of a deployment, newest first.
    pub async fn list_deployment_statuses(
        &self,
        repo: &RepoHandle,
        deployment: u64,
    ) -> Result<Vec<SeenDeploymentStatus>, GitHubError> {
        let path = format!("/deployments/{deployment}/statuses");
        self.repo_list(repo, "list_deployment_statuses", &path, None, |status| {
            Ok(SeenDeploymentStatus {
                id: status.number("id")?,
                state: status.text("state")?,
                description: status.maybe_text("description"),
                environment_url: status.maybe_text("environment_url"),
                log_url: status.maybe_text("log_url"),
            })
        })
        .await
    }

    pub async fn list_reactions(&self, repo: &RepoHandle, comment: u64) -> Result<Vec<SeenReaction>, GitHubError> {
        let path = format!("/issues/comments/{comment}/reactions");
        self.repo_list(repo, "list_reactions", &path, None, |reaction| {
            Ok(SeenReaction {
                id: reaction.number("id")?,
                content: reaction.text("content")?,
                user: reading::account(reaction, "user"),
            })
        })
        .await
    }

    /// The newest deliveries of the app's webhook, at most `most`, newest first; none with a plain token.
    pub async fn hook_deliveries(&self, most: usize) -> Result<Vec<HookDelivery>, GitHubError> {
        const NAME: &str = "list_hook_deliveries";
        let mut deliveries = Vec::new();
        if let Credentials::Token(_) = self.credentials() {
            return Ok(deliveries);
        }
        // This list has a cursor instead of page numbers.
        let mut cursor = String::new();
        while deliveries.len() < most {
            let call = Call::get(NAME, format!("/app/hook/deliveries?per_page=100{cursor}"));
            let found = self.read(Lane::App, None, call).await?;
            let value = found.json(NAME)?;
            let page = Fields::new(&value).elements();
            for delivery in &page {
                let delivery = read_delivery(delivery);
                deliveries.push(delivery.map_err(|error| not_understood(NAME, &error.to_string()))?);
            }
            match found.next_cursor() {
                Some(next) if !page.is_empty() => cursor = format!("&cursor={next}"),
                _ => break,
            }
        }
        deliveries.truncate(most);
        Ok(deliveries)
    }

    async fn deployments(&self, repo: &RepoHandle, path: &str) -> Result<Vec<SeenDeployment>, GitHubError> {
        self.repo_list(repo, "list_deployments", path, None, |deployment| {
            Ok(SeenDeployment {
                id: deployment.number("id")?,
                sha: deployment.sha("sha")?,
                environment: deployment.text("environment")?,
                payload: deployment.maybe("payload").map(|payload| payload.value().clone()).unwrap_or_default(),
                creator: reading::account(deployment, "creator"),
                created_at: deployment.maybe_time("created_at"),
            })
        })
        .await
    }

    pub(super) async fn repo_list<T>(
        &self,
        repo: &RepoHandle,
        name: &'static str,
        path: &str,
        under: Option<&str>,
        read: impl Fn(&Fields<'_>) -> Result<T, PayloadError>,
    ) -> Result<Vec<T>, GitHubError> {
        self.read_list(self.lane_of(repo)?, Some(repo.id), name, &repo_path(repo, path), under, read).await
    }
}

pub(super) fn seen_check_run(run: &Fields<'_>) -> Result<SeenCheckRun, PayloadError> {
    Ok(SeenCheckRun {
        id: run.number("id")?,
        name: run.text("name")?,
        external_id: run.maybe_text("external_id").filter(|id| !id.is_empty()),
        status: run.maybe_text("status").unwrap_or_default(),
        conclusion: run.maybe_text("conclusion"),
        app_id: run.maybe("app").and_then(|app| app.maybe_number("id")),
    })
}

/// `/repos/OWNER/NAME` and what follows, which is encoded already.
pub(super) fn repo_path(repo: &RepoHandle, rest: &str) -> String {
    format!("/repos/{}/{}{rest}", segment(&repo.owner), segment(&repo.name))
}

/// `permission` folds maintain into write and triage into read; `role_name` is exact, unless it is an organisation's
/// own role, of which only `permission` says what it is worth.
fn level(folded: &str, role_name: &str) -> Level {
    let known = |name: &str| match name {
        "admin" => Some(Level::Admin),
        "maintain" => Some(Level::Maintain),
        "write" => Some(Level::Write),
        "triage" => Some(Level::Triage),
        "read" => Some(Level::Read),
        "none" => Some(Level::None),
        _ => None,
    };
    known(role_name).or_else(|| known(folded)).unwrap_or(Level::None)
}

fn comparison(fields: &Fields<'_>) -> Result<Comparison, PayloadError> {
    /// GitHub's list of files ends there.
    const MOST_FILES: usize = 300;
    let mut commits = Vec::new();
    for commit in fields.items("commits") {
        commits.push(ComparedCommit {
            sha: commit.sha("sha")?,
            message: commit.maybe("commit").and_then(|commit| commit.maybe_text("message")).unwrap_or_default(),
            author: commit.maybe("author").and_then(|author| reading::read_account(&author)),
        });
    }
    let files: Vec<Vec<String>> = fields.items("files").iter().map(names_of).collect();
    Ok(Comparison {
        relation: match fields.text("status")?.as_str() {
            "identical" => Relation::Identical,
            "ahead" => Relation::Ahead,
            "behind" => Relation::Behind,
            "diverged" => Relation::Diverged,
            _ => return Err(fields.field("status")?.invalid("identical, ahead, behind or diverged")),
        },
        ahead_by: fields.number("ahead_by")?,
        behind_by: fields.number("behind_by")?,
        merge_base: fields.maybe("merge_base_commit").and_then(|commit| commit.maybe_sha("sha")),
        commits,
        files_complete: files.len() < MOST_FILES,
        files: files.into_iter().flatten().collect(),
    })
}

/// A file that was renamed had another name before.
fn names_of(file: &Fields<'_>) -> Vec<String> {
    [file.maybe_text("filename"), file.maybe_text("previous_filename")].into_iter().flatten().collect()
}

fn read_delivery(delivery: &Fields<'_>) -> Result<HookDelivery, PayloadError> {
    Ok(HookDelivery {
        id: delivery.number("id")?,
        guid: delivery.text("guid")?,
        delivered_at: delivery.maybe_time("delivered_at"),
        event: delivery.maybe_text("event").unwrap_or_default(),
        status_code: delivery.maybe_number("status_code").unwrap_or(0),
    })
}

fn is_plain_json(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// A folder's answer lists its entries, each with the fields that GitHub's description requires of one.
fn is_folder(body: &[u8]) -> bool {
    match serde_json::from_slice(body) {
        Ok(Value::Array(entries)) => entries
            .iter()
            .all(|entry| ["type", "name", "path", "sha", "git_url"].iter().all(|field| entry.get(*field).is_some())),
        _ => false,
    }
}
