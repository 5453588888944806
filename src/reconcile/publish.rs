//! GitHub is a view: what it shows is rendered from the state, compared with what it last accepted, and sent where it
//! differs. A thing is marked as reported only once GitHub has accepted it.
//!
//! Things that are made (a comment, a check run, a deployment) are made once: the wish is in the journal before the
//! first byte is sent, and where the outcome is not known the thing is looked for. It is made again only when a list
//! from after the staleness bound does not show it.

use super::deliver::{CHECK_NAME, RERUN_FAILED, external_id, handle_of};
use super::publish_pull;
use super::{Trouble, World, shipment};
use crate::domain::*;
use crate::github::writes::{
    Annotation, AnnotationLevel, CheckAction, CheckRun, CheckStatus, Conclusion, DeploymentState as Sent,
    NewDeployment, NewDeploymentStatus, StatusState as SentStatus,
};
use crate::github::{Advice, Comment, GitHubError, RepoHandle};
use crate::store::{Reported, StoreError};
use crate::workflow::{self, CheckReport, DeploymentReport, DeploymentState, StatusReport, StatusState};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tracing::warn;

/// The commit status that says whether the review app serves.
const STATUS_CONTEXT: &str = "landfall/review-app";

pub(super) async fn subject(world: &World, subject: &Subject) -> Result<(), Trouble> {
    match subject {
        Subject::App(name) => match world.store.app(name)? {
            Some(app) => self::app(world, &app).await,
            None => Ok(()),
        },
        Subject::Run(number) => match world.store.run(*number)? {
            Some(run) => self::run(world, &run).await,
            None => Ok(()),
        },
        Subject::Pull(repository, number) => publish_pull::pull(world, *repository, *number).await,
        Subject::Repository(_) => Ok(()),
    }
}

/// The repository, where anything can be told of it.
pub(super) fn reportable(world: &World, id: RepositoryId) -> Result<Option<Repository>, StoreError> {
    Ok(world.store.repository(id)?.filter(|repository| repository.granted))
}

async fn app(world: &World, app: &App) -> Result<(), Trouble> {
    let Some(repository) = reportable(world, app.repository)? else { return Ok(()) };
    let handle = handle_of(&repository);
    let (deployments, statuses) = workflow::app_reports(app);
    let mut first_trouble = None;
    for status in statuses {
        if !is_elsewhere(world, app, &status.commit)?
            && let Err(trouble) = commit_status(world, &handle, app, &status).await
        {
            first_trouble.get_or_insert(trouble);
        }
    }
    if app.stage == Stage::Production
        && let Err(trouble) = shipment::note(world, &repository, app).await
    {
        first_trouble.get_or_insert(trouble);
    }
    for report in deployments {
        if let Err(trouble) = deployment(world, &handle, app, &report).await {
            first_trouble.get_or_insert(trouble);
        }
    }
    first_trouble.map_or(Ok(()), Err)
}

/// A commit has one status, also where it is the head of two pull requests: that of the lower number.
fn is_elsewhere(world: &World, app: &App, commit: &Sha) -> Result<bool, StoreError> {
    let others = world.store.apps_where(|other| {
        other.repository == app.repository
            && other.name != app.name
            && other.part == app.part
            && (other.stage < app.stage || app.wanted != Wanted::Running)
            && other.pull().is_some()
            && other.wanted == Wanted::Running
            && other.newest().is_some_and(|deploy| deploy.commit == *commit)
    })?;
    Ok(!others.is_empty())
}

async fn deployment(world: &World, repo: &RepoHandle, app: &App, report: &DeploymentReport) -> Result<(), Trouble> {
    let key = format!("deployment/{}", report.key);
    let known = world.store.reported(&key)?;
    if known.is_none() && !report.make {
        return Ok(());
    }
    let url = world.app_url(&app.name);
    // The app's own page goes with the app.
    let log = match (app.wanted, world.store.repository(app.repository)?) {
        (Wanted::Gone, Some(repository)) => world.config.page(&format!("/pipelines/{}", repository.full_name())),
        _ => world.config.page(&format!("/apps/{}", app.name)),
    };
    let text = world
        .texts
        .line("deployment.txt", json!({ "state": report.state, "failure": report.failure, "stage": app.stage.word() }));
    let print = fingerprint(&[&format!("{:?}", report.state), &url, &text]);
    if is_told(world, known.as_ref(), &print) {
        return Ok(());
    }
    let wish = NewDeployment {
        sha: report.commit.clone(),
        environment: report.environment.clone(),
        production: report.production,
        transient: report.transient,
        payload: json!({ "landfall_id": report.key }),
        description: text.clone(),
    };
    let Some(id) = make_once(world, repo, &key, &Thing::Deployment(&wish), &print).await? else { return Ok(()) };
    let status = NewDeploymentStatus {
        state: match report.state {
            DeploymentState::Queued => Sent::Queued,
            DeploymentState::InProgress => Sent::InProgress,
            DeploymentState::Success => Sent::Success,
            DeploymentState::Failure => Sent::Failure,
            DeploymentState::Inactive => Sent::Inactive,
        },
        environment_url: (report.state == DeploymentState::Success).then_some(url),
        log_url: Some(log),
        description: text,
        // Ours to say: it happens for each deployment by name, with what replaced it.
        auto_inactive: false,
    };
    match world.github.set_deployment_status(repo, id, &status).await {
        Ok(_) => {}
        // The deployment was deleted on GitHub: there is nothing left to say about it.
        Err(GitHubError::NotFound { .. }) => {}
        Err(error) => return refused(world, &key, Some(id), print, &error).await,
    }
    accepted(world, &key, id, print).await
}

async fn commit_status(world: &World, repo: &RepoHandle, app: &App, report: &StatusReport) -> Result<(), Trouble> {
    let text = world.texts.line(
        "status.txt",
        json!({ "phase": report.phase, "failure": report.failure, "missing": report.missing, "state": report.state }),
    );
    let target = match report.state {
        StatusState::Success => world.app_url(&app.name),
        StatusState::Pending | StatusState::Failure | StatusState::Error => {
            world.config.page(&format!("/apps/{}", app.name))
        }
    };
    let state = match report.state {
        StatusState::Pending => SentStatus::Pending,
        StatusState::Success => SentStatus::Success,
        StatusState::Failure => SentStatus::Failure,
        StatusState::Error => SentStatus::Error,
    };
    // Old commits are spoken of only where something is left to be put right.
    let context = format!("{STATUS_CONTEXT}{}", app.part.remark());
    let key = format!("status/{}/{}/{context}", repo.id, report.commit);
    if !report.make && (report.state != StatusState::Error || world.store.reported(&key)?.is_none()) {
        return Ok(());
    }
    set_status(world, repo, &report.commit, &context, state, &target, &text).await
}

async fn set_status(
    world: &World,
    repo: &RepoHandle,
    commit: &Sha,
    context: &str,
    state: SentStatus,
    target: &str,
    text: &str,
) -> Result<(), Trouble> {
    let key = format!("status/{}/{commit}/{context}", repo.id);
    let print = fingerprint(&[&format!("{state:?}"), target, text]);
    if is_told(world, world.store.reported(&key)?.as_ref(), &print) {
        return Ok(());
    }
    // The same again replaces itself, so this may be repeated.
    match world.github.set_status(repo, commit, context, state, Some(target), text).await {
        Ok(()) => accepted(world, &key, 0, print).await,
        Err(error) => refused(world, &key, None, print, &error).await,
    }
}

async fn run(world: &World, run: &TestRun) -> Result<(), Trouble> {
    if run.repeats.is_some() {
        return Ok(());
    }
    let Some(repository) = reportable(world, run.repository)? else { return Ok(()) };
    let handle = handle_of(&repository);
    let report = workflow::run_report(run);
    let page = world.config.page(&format!("/runs/{}", run.number));
    let title = world.texts.line("check.md", json!({ "part": "title", "run": report }));
    let longest = run.results.values().map(|result| result.finished_at.since(result.started_at).as_millis()).max();
    let longest = longest.and_then(|longest| u64::try_from(longest).ok());
    let summary = world
        .texts
        .render("check.md", json!({ "part": "summary", "run": report, "page": page, "longest_node": longest }));
    let conclusion = conclusion(&report);
    let name = format!("{CHECK_NAME}{}", run.part.remark());
    if world.config.github.app_id.is_none() {
        // Only apps may write check runs; a plain token says the same with a commit status.
        let state = match conclusion {
            None => SentStatus::Pending,
            Some(Conclusion::Success | Conclusion::Neutral | Conclusion::Skipped) => SentStatus::Success,
            Some(Conclusion::Failure) => SentStatus::Failure,
            Some(_) => SentStatus::Error,
        };
        return set_status(world, &handle, &run.commit, &name, state, &page, &title).await;
    }
    let key = format!("check/{}", run.number);
    let print = fingerprint(&[&format!("{:?}{conclusion:?}", report.state), &title, &summary]);
    let known = world.store.reported(&key)?;
    if is_told(world, known.as_ref(), &print) {
        return Ok(());
    }
    let wish = CheckRun {
        name,
        head_sha: run.commit.clone(),
        external_id: external_id(run.number),
        details_url: Some(page),
        status: match conclusion {
            Some(conclusion) => {
                CheckStatus::Completed { conclusion, at: run.finished_at.unwrap_or_else(|| world.now()) }
            }
            None if run.started_at.is_some() => CheckStatus::InProgress,
            None => CheckStatus::Queued,
        },
        started_at: Some(run.created_at),
        title,
        summary,
        text: None,
        annotations: Vec::new(),
        actions: actions(world, run),
    };
    let made_now = known.as_ref().and_then(|known| known.github_id).is_none();
    let Some(id) = make_once(world, &handle, &key, &Thing::Check(&wish), &print).await? else { return Ok(()) };
    // GitHub appends annotations to those that it has, so they are sent at most once.
    let annotations = if conclusion.is_some() { annotations(run) } else { Vec::new() };
    let marker = format!("check/{}/annotations", run.number);
    let first = !annotations.is_empty() && world.store.reported(&marker)?.is_none();
    if first {
        put(world, &marker, Reported { intent: Some(world.now()), ..Reported::default() }).await?;
    }
    let wish = CheckRun { annotations: if first { annotations } else { Vec::new() }, ..wish };
    // What was found rather than made may say something older.
    if (!made_now || known.is_some() || first)
        && let Err(error) = world.github.update_check_run(&handle, id, &wish).await
    {
        return refused(world, &key, Some(id), print, &error).await;
    }
    accepted(world, &key, id, print).await
}

/// Annotations of one check run: GitHub takes 50 with each call, and more than a few hundred nobody reads.
const MOST_ANNOTATIONS: usize = 200;

/// The failures whose place in the repository is known, each at its line.
fn annotations(run: &TestRun) -> Vec<Annotation> {
    let on_base = |path: &str| {
        let files = run.split.iter().flat_map(|split| &split.red_files);
        files.into_iter().any(|file| file.on_base && file.path == path)
    };
    let failures = run.results.values().flat_map(|result| &result.failures);
    let placed = failures.filter_map(|failure| {
        let (path, line) = (failure.file.as_deref()?, failure.line.unwrap_or(1).max(1));
        let path = path.strip_prefix("./").unwrap_or(path);
        let inside = !path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.is_empty();
        let message = crate::text::plain(&failure.message, 4_000);
        inside.then(|| Annotation {
            path: crate::text::plain(path, 500),
            start_line: u64::from(line),
            end_line: u64::from(line),
            level: if on_base(path) { AnnotationLevel::Warning } else { AnnotationLevel::Failure },
            title: Some(crate::text::plain(&failure.name, 200)),
            message: if message.trim().is_empty() { crate::text::plain(&failure.name, 200) } else { message },
            raw_details: None,
        })
    });
    placed.take(MOST_ANNOTATIONS).collect()
}

/// The button that runs again only what failed, where that can be told.
fn actions(world: &World, run: &TestRun) -> Vec<CheckAction> {
    let some_failed = run.split.as_ref().is_some_and(|split| split.red > 0) && run.verdict == Some(Verdict::Failed);
    let say = |part: &str| world.texts.line("check.md", json!({ "part": part, "run": workflow::run_report(run) }));
    let button = || CheckAction {
        label: say("button"),
        description: say("button_description"),
        identifier: RERUN_FAILED.to_owned(),
    };
    some_failed.then(button).into_iter().collect()
}

fn conclusion(report: &CheckReport) -> Option<Conclusion> {
    Some(match report.verdict.as_ref()? {
        Verdict::Passed | Verdict::Reused { .. } => Conclusion::Success,
        Verdict::NoTests => Conclusion::Neutral,
        // Who requires the check is not kept waiting by it.
        Verdict::Untouched => Conclusion::Skipped,
        Verdict::Failed | Verdict::Errored { .. } => Conclusion::Failure,
        Verdict::Cancelled => Conclusion::Cancelled,
    })
}

/// A digest of what a report says.
pub(super) fn fingerprint(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(&digest.finalize()[..16])
}

pub(super) async fn accepted(world: &World, key: &str, id: u64, fingerprint: String) -> Result<(), Trouble> {
    put(world, key, Reported { github_id: Some(id), fingerprint, ..Reported::default() }).await?;
    Ok(())
}

/// When content that GitHub refused is offered again, since whoever can mend the reason may have done so.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Whether GitHub has this content, or has lately refused it.
pub(super) fn is_told(world: &World, known: Option<&Reported>, fingerprint: &str) -> bool {
    let lately = |at| world.now().since(at) < REFUSED_FOR;
    known.is_some_and(|known| known.fingerprint == fingerprint && known.refused.is_none_or(lately))
}

/// A write that GitHub did not take. What it will never take is noted and left alone until there is something else
/// to say: neither the subject nor anybody's app may wait for it.
pub(super) async fn refused(
    world: &World,
    key: &str,
    github_id: Option<u64>,
    fingerprint: String,
    error: &GitHubError,
) -> Result<(), Trouble> {
    if !matches!(error.advice(), Advice::User | Advice::Bug) {
        return Err(Trouble::github(error, world.now()));
    }
    warn!(%key, "GitHub does not take {key}: {error}");
    put(world, key, Reported { github_id, fingerprint, intent: None, refused: Some(world.now()) }).await?;
    Ok(())
}

async fn put(world: &World, key: &str, reported: Reported) -> Result<(), StoreError> {
    let key = key.to_owned();
    world.commit(move |tx| tx.put_reported(&key, &reported)).await
}

/// Something of ours that exists once on GitHub.
pub(super) enum Thing<'a> {
    Comment { pull: PullNumber, marker: &'a str, body: &'a str },
    Check(&'a CheckRun),
    Deployment(&'a NewDeployment),
}

impl Thing<'_> {
    /// Looks for it among what GitHub lists: by our own id in it, and for comments by their author too.
    async fn find(&self, world: &World, repo: &RepoHandle) -> Result<Option<u64>, GitHubError> {
        match self {
            Thing::Comment { pull, marker, .. } => {
                let identity = world.github.app().await?;
                let all = world.github.list_comments(repo, *pull).await?;
                let ours = |seen: &&Comment| identity.wrote(seen) && seen.body.trim_start().starts_with(marker);
                Ok(all.iter().find(ours).map(|seen| seen.id))
            }
            Thing::Check(wish) => {
                let all = world.github.list_check_runs(repo, &wish.head_sha, &wish.name).await?;
                Ok(all.iter().find(|seen| seen.external_id.as_deref() == Some(&wish.external_id)).map(|seen| seen.id))
            }
            Thing::Deployment(wish) => {
                let all = world.github.list_deployments(repo, &wish.environment, &wish.sha).await?;
                let id = wish.payload.get("landfall_id").and_then(serde_json::Value::as_str);
                Ok(all.iter().find(|seen| seen.landfall_id().as_deref() == id).map(|seen| seen.id))
            }
        }
    }

    async fn create(&self, world: &World, repo: &RepoHandle) -> Result<u64, GitHubError> {
        match self {
            Thing::Comment { pull, body, .. } => world.github.create_comment(repo, *pull, body).await.map(|id| id.0),
            Thing::Check(wish) => world.github.create_check_run(repo, wish).await,
            Thing::Deployment(wish) => world.github.create_deployment(repo, wish).await,
        }
    }
}

/// GitHub's number of a thing that is to exist once: known, found, or made now; `None` where GitHub refuses to have it.
pub(super) async fn make_once(
    world: &World,
    repo: &RepoHandle,
    key: &str,
    thing: &Thing<'_>,
    fingerprint: &str,
) -> Result<Option<u64>, Trouble> {
    let mut reported = world.store.reported(key)?.unwrap_or_default();
    if let Some(id) = reported.github_id {
        return Ok(Some(id));
    }
    if let Some(begun) = reported.intent {
        let looked_at = world.now();
        if let Some(id) = thing.find(world, repo).await.map_err(|error| Trouble::github(&error, world.now()))? {
            reported.github_id = Some(id);
            reported.intent = None;
            put(world, key, reported).await?;
            return Ok(Some(id));
        }
        let settled = begun + Duration::from_secs(world.config.github.staleness_seconds);
        if looked_at < settled {
            let wait = settled.since(looked_at) + Duration::from_millis(10);
            return Err(Trouble::retry_in(wait, "GitHub's lists may not yet show what was made"));
        }
    }
    reported.intent = Some(world.now());
    put(world, key, reported.clone()).await?;
    match thing.create(world, repo).await {
        Ok(id) => {
            reported.github_id = Some(id);
            reported.intent = None;
            put(world, key, reported).await?;
            Ok(Some(id))
        }
        Err(error) if error.outcome_unknown() => Err(Trouble::github(&error, world.now())),
        Err(error) => {
            // GitHub said no before anything was made.
            reported.intent = None;
            put(world, key, reported).await?;
            refused(world, key, None, fingerprint.to_owned(), &error).await.map(|()| None)
        }
    }
}
