//! The bytes of a delivery → an `Event`.
//!
//! Reading is lenient: events and actions that we don't know are `Unread`, fields that nothing needs are not looked
//! at, deleted accounts and forks are tolerated. Only a payload that lacks what its own event needs is an error, and
//! that error names the field.

use super::event::{
    Account, CheckRunAction, CheckSuiteAction, CommentAction, Event, InstallationAction, MergeGroupAction, PullAction,
    Push, PushedCommit, Reference, Repo, RepositoryAction,
};
use super::reading;
use super::wire::{Fields, PayloadError};
use crate::domain::{InstallationId, PullNumber};
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// What every delivery has, read without the rest: enough to store it, to find duplicates and to say whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// `X-GitHub-Event`.
    pub event: String,
    pub action: Option<String>,
    /// `X-GitHub-Delivery`: the same again on a redelivery.
    pub delivery: String,
    pub installation: Option<InstallationId>,
    pub repository: Option<Repo>,
    pub sender: Option<Account>,
}

impl Envelope {
    /// Reads the outermost fields; parts that can't be read are `None`.
    ///
    /// # Errors
    /// The body is neither a JSON object nor a form that holds one.
    pub fn read(
        event: &str,
        delivery: &str,
        body: &[u8],
        content_type: Option<&str>,
    ) -> Result<Envelope, PayloadError> {
        #[derive(Deserialize)]
        struct Outermost {
            action: Option<Value>,
            installation: Option<Value>,
            repository: Option<Value>,
            sender: Option<Value>,
        }
        let json = json_of(body, content_type)?;
        let outermost: Outermost = serde_json::from_slice(&json).map_err(not_json)?;
        let installation = outermost.installation.as_ref().and_then(|value| Fields::new(value).maybe_number("id"));
        Ok(Envelope {
            event: event.to_owned(),
            action: outermost.action.as_ref().and_then(Value::as_str).map(str::to_owned),
            delivery: delivery.to_owned(),
            installation: installation.map(InstallationId),
            repository: outermost.repository.as_ref().and_then(|value| reading::repo(&Fields::new(value)).ok()),
            sender: outermost.sender.as_ref().and_then(|value| reading::read_account(&Fields::new(value))),
        })
    }
}

/// Reads a delivery.
///
/// # Errors
/// The body is no JSON object (or form with one), is nested deeper than 128, or lacks a field that its event needs.
pub fn parse(event: &str, body: &[u8], content_type: Option<&str>) -> Result<Event, PayloadError> {
    let json = json_of(body, content_type)?;
    let value: Value = serde_json::from_slice(&json).map_err(not_json)?;
    if !value.is_object() {
        return Err(PayloadError::NotJson { detail: "it is not an object".to_owned() });
    }
    let payload = Fields::new(&value);
    let action = payload.maybe_text("action");
    match event {
        "ping" => Ok(Event::Ping { zen: payload.maybe_text("zen"), hook_id: payload.maybe_number("hook_id") }),
        "installation" => installation(&payload),
        "installation_repositories" => Ok(Event::InstallationRepositories {
            installation: InstallationId(payload.field("installation")?.number("id")?),
            added: reading::repo_refs(&payload, "repositories_added")?,
            removed: reading::repo_refs(&payload, "repositories_removed")?,
        }),
        "pull_request" => pull_request(&payload),
        "push" => push(&payload),
        "issue_comment" => issue_comment(&payload),
        "check_run" => check_run(&payload),
        "check_suite" => check_suite(&payload),
        "merge_group" => merge_group(&payload),
        "status" => Ok(Event::Status {
            repo: repository(&payload)?,
            installation: installation_of(&payload),
            sha: payload.sha("sha")?,
            context: payload.maybe_text("context").unwrap_or_else(|| "default".to_owned()),
            state: payload.text("state")?,
        }),
        "deployment" => deployment(&payload),
        "deployment_status" => deployment_status(&payload),
        "repository" => repository_event(&payload),
        "create" | "delete" => reference(&payload, event == "create"),
        "member" => Ok(Event::Member {
            repo: repository(&payload)?,
            installation: installation_of(&payload),
            member: reading::account(&payload, "member"),
        }),
        "label" => Ok(Event::Label {
            action: payload.text("action")?,
            repo: repository(&payload)?,
            installation: installation_of(&payload),
            name: payload.field("label")?.text("name")?,
        }),
        _ => Ok(Event::Unread { event: event.to_owned(), action }),
    }
}

fn installation(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let installation = payload.field("installation")?;
    Ok(Event::Installation {
        action: match payload.text("action")?.as_str() {
            "created" => InstallationAction::Created,
            "deleted" => InstallationAction::Deleted,
            "suspend" => InstallationAction::Suspended,
            "unsuspend" => InstallationAction::Unsuspended,
            "new_permissions_accepted" => InstallationAction::NewPermissions,
            other => InstallationAction::Other(other.to_owned()),
        },
        installation: InstallationId(installation.number("id")?),
        account: installation
            .maybe("account")
            // An enterprise has a slug instead of a login.
            .and_then(|account| account.maybe_text("login").or_else(|| account.maybe_text("slug")))
            .unwrap_or_else(|| Account::ghost().login),
        repositories: reading::repo_refs(payload, "repositories")?,
    })
}

fn pull_request(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let label = || payload.maybe("label").and_then(|label| label.maybe_text("name")).unwrap_or_default();
    Ok(Event::PullRequest {
        action: match payload.text("action")?.as_str() {
            "opened" => PullAction::Opened,
            "synchronize" => PullAction::Synchronize,
            "closed" => PullAction::Closed,
            "reopened" => PullAction::Reopened,
            "edited" => PullAction::Edited { base_before: from(payload, &["base", "ref"]) },
            "labeled" => PullAction::Labeled(label()),
            "unlabeled" => PullAction::Unlabeled(label()),
            "ready_for_review" => PullAction::ReadyForReview,
            "converted_to_draft" => PullAction::ConvertedToDraft,
            other => PullAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        pull: Box::new(reading::pull(&payload.field("pull_request")?)?),
        sender: reading::account(payload, "sender"),
    })
}

fn push(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let head_commit = match payload.maybe("head_commit") {
        None => None,
        Some(commit) => Some(PushedCommit {
            sha: commit.sha("id")?,
            tree: commit.maybe_sha("tree_id"),
            message: commit.maybe_text("message").unwrap_or_default(),
            author: commit
                .maybe("author")
                .and_then(|author| author.maybe_text("username").or_else(|| author.maybe_text("name")))
                .unwrap_or_default(),
            at: commit.maybe_time("timestamp"),
        }),
    };
    Ok(Event::Push(Box::new(Push {
        repo: repository(payload)?,
        installation: installation_of(payload),
        reference: Reference::from_full(&payload.text("ref")?),
        before: payload.sha("before")?,
        after: payload.sha("after")?,
        created: payload.flag("created"),
        deleted: payload.flag("deleted"),
        forced: payload.flag("forced"),
        head_commit,
        pusher: payload.maybe("pusher").and_then(|pusher| pusher.maybe_text("name")).unwrap_or_default(),
        sender: payload.maybe("sender").and_then(|sender| reading::read_account(&sender)),
    })))
}

fn issue_comment(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let issue = payload.field("issue")?;
    Ok(Event::IssueComment {
        action: match payload.text("action")?.as_str() {
            "created" => CommentAction::Created,
            "edited" => CommentAction::Edited,
            "deleted" => CommentAction::Deleted,
            other => CommentAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        issue: PullNumber(issue.number("number")?),
        is_pull: issue.maybe("pull_request").is_some(),
        issue_open: issue.maybe_text("state").as_deref() == Some("open"),
        comment: reading::comment(&payload.field("comment")?)?,
        sender: reading::account(payload, "sender"),
    })
}

fn check_run(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let run = payload.field("check_run")?;
    Ok(Event::CheckRun {
        action: match payload.text("action")?.as_str() {
            "created" => CheckRunAction::Created,
            "completed" => CheckRunAction::Completed,
            "rerequested" => CheckRunAction::Rerequested,
            "requested_action" => {
                CheckRunAction::RequestedAction { identifier: payload.field("requested_action")?.text("identifier")? }
            }
            other => CheckRunAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        id: run.number("id")?,
        name: run.text("name")?,
        head_sha: run.sha("head_sha")?,
        external_id: run.maybe_text("external_id").filter(|id| !id.is_empty()),
        app_id: run.maybe("app").and_then(|app| app.maybe_number("id")),
        conclusion: run.maybe_text("conclusion"),
        pulls: run
            .items("pull_requests")
            .iter()
            .filter_map(|pull| pull.maybe_number("number"))
            .map(PullNumber)
            .collect(),
        sender: reading::account(payload, "sender"),
    })
}

fn check_suite(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let suite = payload.field("check_suite")?;
    Ok(Event::CheckSuite {
        action: match payload.text("action")?.as_str() {
            "requested" => CheckSuiteAction::Requested,
            "rerequested" => CheckSuiteAction::Rerequested,
            "completed" => CheckSuiteAction::Completed,
            other => CheckSuiteAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        id: suite.number("id")?,
        head_sha: suite.sha("head_sha")?,
        head_branch: suite.maybe_text("head_branch"),
        app_id: suite.maybe("app").and_then(|app| app.maybe_number("id")),
        conclusion: suite.maybe_text("conclusion"),
        sender: reading::account(payload, "sender"),
    })
}

fn merge_group(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let group = payload.field("merge_group")?;
    Ok(Event::MergeGroup {
        action: match payload.text("action")?.as_str() {
            "checks_requested" => MergeGroupAction::ChecksRequested,
            "destroyed" => MergeGroupAction::Destroyed { reason: payload.maybe_text("reason") },
            other => MergeGroupAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        head_sha: group.sha("head_sha")?,
        head_ref: group.text("head_ref")?,
        base_sha: group.maybe_sha("base_sha"),
        base_ref: group.text("base_ref")?,
    })
}

fn deployment(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let deployment = payload.field("deployment")?;
    Ok(Event::Deployment {
        repo: repository(payload)?,
        installation: installation_of(payload),
        id: deployment.number("id")?,
        sha: deployment.sha("sha")?,
        environment: deployment.text("environment")?,
        creator: reading::account(&deployment, "creator"),
    })
}

fn deployment_status(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    let (deployment, status) = (payload.field("deployment")?, payload.field("deployment_status")?);
    Ok(Event::DeploymentStatus {
        repo: repository(payload)?,
        installation: installation_of(payload),
        deployment: deployment.number("id")?,
        environment: deployment.text("environment")?,
        state: status.text("state")?,
        creator: reading::account(&status, "creator"),
    })
}

fn repository_event(payload: &Fields<'_>) -> Result<Event, PayloadError> {
    Ok(Event::Repository {
        action: match payload.text("action")?.as_str() {
            "created" => RepositoryAction::Created,
            "renamed" => RepositoryAction::Renamed { from: from(payload, &["repository", "name"]) },
            "transferred" => RepositoryAction::Transferred { from: former_owner(payload) },
            "privatized" => RepositoryAction::Privatized,
            "publicized" => RepositoryAction::Publicized,
            "archived" => RepositoryAction::Archived,
            "unarchived" => RepositoryAction::Unarchived,
            "deleted" => RepositoryAction::Deleted,
            "edited" => RepositoryAction::Edited { default_branch_before: from(payload, &["default_branch"]) },
            other => RepositoryAction::Other(other.to_owned()),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
    })
}

fn reference(payload: &Fields<'_>, created: bool) -> Result<Event, PayloadError> {
    let name = payload.text("ref")?;
    Ok(Event::Reference {
        created,
        reference: match payload.text("ref_type")?.as_str() {
            "branch" => Reference::Branch(name),
            "tag" => Reference::Tag(name),
            _ => Reference::Other(name),
        },
        repo: repository(payload)?,
        installation: installation_of(payload),
        sender: reading::account(payload, "sender"),
    })
}

fn repository(payload: &Fields<'_>) -> Result<Repo, PayloadError> {
    reading::repo(&payload.field("repository")?)
}

fn installation_of(payload: &Fields<'_>) -> Option<InstallationId> {
    payload.maybe("installation")?.maybe_number("id").map(InstallationId)
}

/// `changes.<path>.from`.
fn from(payload: &Fields<'_>, path: &[&str]) -> Option<String> {
    let mut change = payload.maybe("changes")?;
    for step in path {
        change = change.maybe(step)?;
    }
    change.maybe_text("from")
}

fn former_owner(payload: &Fields<'_>) -> Option<String> {
    let from = payload.maybe("changes")?.maybe("owner")?.maybe("from")?;
    let owner = from.maybe("user").or_else(|| from.maybe("organization"))?;
    owner.maybe_text("login")
}

/// The JSON text of a body, which a webhook may be set to send as a form.
fn json_of<'a>(body: &'a [u8], content_type: Option<&str>) -> Result<Cow<'a, [u8]>, PayloadError> {
    let is_form = match content_type {
        Some(content_type) => {
            let media_type = content_type.split(';').next().unwrap_or_default().trim();
            media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded")
        }
        None => body.starts_with(b"payload="),
    };
    if !is_form {
        return Ok(Cow::Borrowed(body));
    }
    let field = body.split(|byte| *byte == b'&').find_map(|pair| pair.strip_prefix(b"payload="));
    field.and_then(form_decoded).map(Cow::Owned).ok_or(PayloadError::NotForm)
}

fn form_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(*digit).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => *other,
        });
    }
    Some(decoded)
}

fn not_json(error: serde_json::Error) -> PayloadError {
    // The error's own text may quote the body.
    let detail = match error.classify() {
        serde_json::error::Category::Eof => "it ends early",
        serde_json::error::Category::Data => "it is not an object",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is broken or nested too deeply",
    };
    PayloadError::NotJson { detail: format!("{detail} (line {}, column {})", error.line(), error.column()) }
}
