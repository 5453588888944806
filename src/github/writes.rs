//! What Landfall makes on GitHub.
//!
//! Each carries an id of ours, by which it is found again after an unknown outcome: a comment its marker, a check run
//! its `external_id`, a deployment its payload. A status has its context, which GitHub itself takes for its identity.
//! Texts are cut to what GitHub takes, because it refuses the whole request otherwise.

use super::client::GitHub;
use super::error::GitHubError;
use super::event::RepoHandle;
use super::limits::Lane;
use super::reads::repo_path;
use super::transport::{Answer, Call};
use crate::clock::Timestamp;
use crate::domain::{PullNumber, Sha};
use http::Method;
use serde_json::{Map, Value, json};

/// GitHub's model takes 65,535 bytes of a check run's summary and of its text, whatever the schema says of characters.
const MOST_OUTPUT_BYTES: usize = 65_535;
/// Characters of a comment; bytes are counted here, which is never more.
const MOST_COMMENT_BYTES: usize = 65_536;
/// Characters of a status' description.
const MOST_DESCRIPTION: usize = 140;
/// A request takes no more; further requests append.
const MOST_ANNOTATIONS: usize = 50;

/// GitHub's number of a comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct CommentId(pub u64);

/// A check run as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRun {
    pub name: String,
    pub head_sha: Sha,
    pub external_id: String,
    /// Left out unless it is http(s).
    pub details_url: Option<String>,
    pub status: CheckStatus,
    pub started_at: Option<Timestamp>,
    pub title: String,
    pub summary: String,
    pub text: Option<String>,
    /// GitHub appends these to those that it has: give only new ones.
    pub annotations: Vec<Annotation>,
    /// Buttons, at most three.
    pub actions: Vec<CheckAction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStatus {
    Queued,
    InProgress,
    Completed { conclusion: Conclusion, at: Timestamp },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    Success,
    Failure,
    Neutral,
    Cancelled,
    Skipped,
    TimedOut,
    ActionRequired,
}

/// A remark on lines of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub path: String,
    pub start_line: u64,
    pub end_line: u64,
    pub level: AnnotationLevel,
    pub title: Option<String>,
    pub message: String,
    pub raw_details: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationLevel {
    Notice,
    Warning,
    Failure,
}

/// A button on a check run: pressing it sends `check_run.requested_action` with the identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckAction {
    /// At most 20 characters.
    pub label: String,
    /// At most 40 characters.
    pub description: String,
    /// At most 20 characters.
    pub identifier: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusState {
    Pending,
    Success,
    Failure,
    Error,
}

/// A deployment to be recorded; what it deploys is our business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeployment {
    pub sha: Sha,
    pub environment: String,
    pub production: bool,
    /// It will be gone some day: GitHub shows it as destroyed then.
    pub transient: bool,
    /// Holds `landfall_id`.
    pub payload: Value,
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentState {
    Queued,
    Pending,
    InProgress,
    Success,
    Failure,
    Error,
    Inactive,
}

/// What a status of a deployment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeploymentStatus {
    pub state: DeploymentState,
    /// Left out unless it is http(s).
    pub environment_url: Option<String>,
    /// Left out unless it is http(s).
    pub log_url: Option<String>,
    pub description: String,
    /// GitHub makes earlier successful, non-transient, non-production deployments of the environment inactive.
    pub auto_inactive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    ThumbsUp,
    ThumbsDown,
    Laugh,
    Confused,
    Heart,
    Hooray,
    Rocket,
    Eyes,
}

impl GitHub {
    /// Comments on a pull request or an issue.
    pub async fn create_comment(
        &self,
        repo: &RepoHandle,
        number: PullNumber,
        body: &str,
    ) -> Result<CommentId, GitHubError> {
        const NAME: &str = "create_comment";
        let path = repo_path(repo, &format!("/issues/{number}/comments"));
        let body = json!({ "body": cut_bytes(body, MOST_COMMENT_BYTES) });
        let answer = self.write_to(repo, NAME, Method::POST, path, body).await?;
        GitHub::made(NAME, &answer, |comment| Ok(CommentId(comment.number("id")?)))
    }

    /// # Errors
    /// `NotFound` when a person deleted the comment.
    pub async fn update_comment(&self, repo: &RepoHandle, id: CommentId, body: &str) -> Result<(), GitHubError> {
        let path = repo_path(repo, &format!("/issues/comments/{}", id.0));
        let body = json!({ "body": cut_bytes(body, MOST_COMMENT_BYTES) });
        self.write_to(repo, "update_comment", Method::PATCH, path, body).await?;
        Ok(())
    }

    /// Makes a check run and returns its number. More than 50 annotations take further requests; when one of those
    /// fails the check run is there without them.
    pub async fn create_check_run(&self, repo: &RepoHandle, check: &CheckRun) -> Result<u64, GitHubError> {
        const NAME: &str = "create_check_run";
        let path = repo_path(repo, "/check-runs");
        let answer = self.write_to(repo, NAME, Method::POST, path, check_body(check, 0, true)).await?;
        let id = GitHub::made(NAME, &answer, |run| run.number("id"))?;
        if let Err(error) = self.append_annotations(repo, id, check).await {
            // The number must get home, or the check run would be made again.
            tracing::warn!(check_run = id, "some annotations are missing on check run {id}: {error}");
        }
        Ok(id)
    }

    /// Sets all of a check run anew. Annotations are appended to those that GitHub has.
    pub async fn update_check_run(&self, repo: &RepoHandle, id: u64, check: &CheckRun) -> Result<(), GitHubError> {
        let path = repo_path(repo, &format!("/check-runs/{id}"));
        self.write_to(repo, "update_check_run", Method::PATCH, path, check_body(check, 0, false)).await?;
        self.append_annotations(repo, id, check).await
    }

    async fn append_annotations(&self, repo: &RepoHandle, id: u64, check: &CheckRun) -> Result<(), GitHubError> {
        for from in (MOST_ANNOTATIONS..check.annotations.len()).step_by(MOST_ANNOTATIONS) {
            let path = repo_path(repo, &format!("/check-runs/{id}"));
            self.write_to(repo, "append_annotations", Method::PATCH, path, check_body(check, from, false)).await?;
        }
        Ok(())
    }

    /// Sets a commit's status under a context; the same context again replaces it.
    pub async fn set_status(
        &self,
        repo: &RepoHandle,
        sha: &Sha,
        context: &str,
        state: StatusState,
        target_url: Option<&str>,
        description: &str,
    ) -> Result<(), GitHubError> {
        let mut body = json!({
            "state": match state {
                StatusState::Pending => "pending",
                StatusState::Success => "success",
                StatusState::Failure => "failure",
                StatusState::Error => "error",
            },
            "context": context,
            "description": cut_characters(description, MOST_DESCRIPTION),
        });
        set_url(&mut body, "target_url", target_url);
        let path = repo_path(repo, &format!("/statuses/{sha}"));
        self.write_to(repo, "set_status", Method::POST, path, body).await?;
        Ok(())
    }

    /// Records a deployment of exactly this commit and returns its number: nothing is merged, no other check is waited
    /// for.
    ///
    /// # Errors
    /// `Refused { status: 202, … }` if GitHub merged instead of making one.
    pub async fn create_deployment(&self, repo: &RepoHandle, deployment: &NewDeployment) -> Result<u64, GitHubError> {
        const NAME: &str = "create_deployment";
        let body = json!({
            "ref": deployment.sha.as_str(),
            "task": "deploy",
            "auto_merge": false,
            "required_contexts": [],
            "payload": deployment.payload,
            "environment": deployment.environment,
            "description": cut_characters(&deployment.description, MOST_DESCRIPTION),
            "transient_environment": deployment.transient,
            "production_environment": deployment.production,
        });
        let answer = self.write_to(repo, NAME, Method::POST, repo_path(repo, "/deployments"), body).await?;
        if answer.status == 202 {
            return Err(GitHubError::Refused { status: 202, message: answer.message(), errors: Vec::new() });
        }
        GitHub::made(NAME, &answer, |deployment| deployment.number("id"))
    }

    pub async fn set_deployment_status(
        &self,
        repo: &RepoHandle,
        deployment: u64,
        status: &NewDeploymentStatus,
    ) -> Result<u64, GitHubError> {
        const NAME: &str = "set_deployment_status";
        let mut body = json!({
            "state": match status.state {
                DeploymentState::Queued => "queued",
                DeploymentState::Pending => "pending",
                DeploymentState::InProgress => "in_progress",
                DeploymentState::Success => "success",
                DeploymentState::Failure => "failure",
                DeploymentState::Error => "error",
                DeploymentState::Inactive => "inactive",
            },
            "description": cut_characters(&status.description, MOST_DESCRIPTION),
            "auto_inactive": status.auto_inactive,
        });
        set_url(&mut body, "environment_url", status.environment_url.as_deref());
        set_url(&mut body, "log_url", status.log_url.as_deref());
        let path = repo_path(repo, &format!("/deployments/{deployment}/statuses"));
        let answer = self.write_to(repo, NAME, Method::POST, path, body).await?;
        GitHub::made(NAME, &answer, |status| status.number("id"))
    }

    /// Reacts to a comment. The same reaction again changes nothing, so this may be repeated.
    pub async fn react(&self, repo: &RepoHandle, comment: u64, reaction: Reaction) -> Result<(), GitHubError> {
        let content = match reaction {
            Reaction::ThumbsUp => "+1",
            Reaction::ThumbsDown => "-1",
            Reaction::Laugh => "laugh",
            Reaction::Confused => "confused",
            Reaction::Heart => "heart",
            Reaction::Hooray => "hooray",
            Reaction::Rocket => "rocket",
            Reaction::Eyes => "eyes",
        };
        let path = repo_path(repo, &format!("/issues/comments/{comment}/reactions"));
        self.write_to(repo, "react", Method::POST, path, json!({ "content": content })).await?;
        Ok(())
    }

    /// Asks GitHub to send a delivery of the app's webhook again, by its number.
    pub async fn redeliver(&self, delivery: u64) -> Result<(), GitHubError> {
        let path = format!("/app/hook/deliveries/{delivery}/attempts");
        let call = Call { body: None, ..Call::write("redeliver", Method::POST, path, Value::Null) };
        self.write(Lane::App, None, call).await?;
        Ok(())
    }

    async fn write_to(
        &self,
        repo: &RepoHandle,
        name: &'static str,
        method: Method,
        path: String,
        body: Value,
    ) -> Result<Answer, GitHubError> {
        self.write(self.lane_of(repo)?, Some(repo.id), Call::write(name, method, path, body)).await
    }
}

/// The request for a check run with the annotations that start at `from`.
fn check_body(check: &CheckRun, from: usize, create: bool) -> Value {
    let mut output = json!({
        "title": cut_characters(&check.title, 255),
        "summary": cut_bytes(&check.summary, MOST_OUTPUT_BYTES),
    });
    if let Some(text) = &check.text {
        output["text"] = json!(cut_bytes(text, MOST_OUTPUT_BYTES));
    }
    let annotations: Vec<Value> =
        check.annotations.iter().skip(from).take(MOST_ANNOTATIONS).map(annotation_body).collect();
    if !annotations.is_empty() {
        output["annotations"] = Value::Array(annotations);
    }
    let mut body = json!({ "name": check.name, "external_id": check.external_id, "output": output });
    if create {
        body["head_sha"] = json!(check.head_sha.as_str());
    }
    if let Some(started_at) = check.started_at {
        body["started_at"] = json!(started_at.rfc3339());
    }
    match check.status {
        CheckStatus::Queued => body["status"] = json!("queued"),
        CheckStatus::InProgress => body["status"] = json!("in_progress"),
        CheckStatus::Completed { conclusion, at } => {
            body["status"] = json!("completed");
            body["completed_at"] = json!(at.rfc3339());
            body["conclusion"] = json!(match conclusion {
                Conclusion::Success => "success",
                Conclusion::Failure => "failure",
                Conclusion::Neutral => "neutral",
                Conclusion::Cancelled => "cancelled",
                Conclusion::Skipped => "skipped",
                Conclusion::TimedOut => "timed_out",
                Conclusion::ActionRequired => "action_required",
            });
        }
    }
    let actions: Vec<Value> = check
        .actions
        .iter()
        .take(3)
        .map(|action| {
            json!({
                "label": cut_characters(&action.label, 20),
                "description": cut_characters(&action.description, 40),
                "identifier": cut_characters(&action.identifier, 20),
            })
        })
        .collect();
    if !actions.is_empty() {
        body["actions"] = Value::Array(actions);
    }
    set_url(&mut body, "details_url", check.details_url.as_deref());
    body
}

fn annotation_body(annotation: &Annotation) -> Value {
    /// 64 KB by GitHub's description.
    const MOST_BYTES: usize = 64_000;
    let mut body = json!({
        "path": annotation.path,
        "start_line": annotation.start_line,
        "end_line": annotation.end_line.max(annotation.start_line),
        "annotation_level": match annotation.level {
            AnnotationLevel::Notice => "notice",
            AnnotationLevel::Warning => "warning",
            AnnotationLevel::Failure => "failure",
        },
        "message": cut_bytes(&annotation.message, MOST_BYTES),
    });
    if let Some(title) = &annotation.title {
        body["title"] = json!(cut_characters(title, 255));
    }
    if let Some(details) = &annotation.raw_details {
        body["raw_details"] = json!(cut_bytes(details, MOST_BYTES));
    }
    body
}

/// GitHub takes http(s) addresses only and refuses the whole request for any other.
fn set_url(body: &mut Value, name: &str, url: Option<&str>) {
    let url = url.filter(|url| url.starts_with("http://") || url.starts_with("https://"));
    if let (Some(url), Some(fields)) = (url, body.as_object_mut()) {
        let fields: &mut Map<String, Value> = fields;
        fields.insert(name.to_owned(), json!(url));
    }
}

/// Cuts at a character's boundary, with an ellipsis where something is missing.
fn cut_bytes(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

fn cut_characters(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}
