//! This is the state: what should people see of it on GitHub? Data only; the sentences stand in `templates/`.

use crate::domain::*;
use serde::Serialize;

/// A deployment on GitHub: one for each deploy that was begun, in its stage's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentReport {
    pub key: String,
    pub deploy: u64,
    pub commit: Sha,
    pub environment: String,
    pub production: bool,
    pub transient: bool,
    pub state: DeploymentState,
    pub failure: Option<Failure>,
    /// Whether one is made if GitHub has none yet.
    pub make: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    Queued,
    InProgress,
    Success,
    Failure,
    Inactive,
}

/// The commit status `landfall/review-app`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReport {
    pub commit: Sha,
    pub state: StatusState,
    pub phase: Phase,
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    Pending,
    Success,
    Failure,
}

/// The identity of a deploy's deployment, unique for ever because the app's is.
pub fn deployment_key(app: &App, deploy: u64) -> String {
    format!("{}-{deploy}", app.id)
}

/// Deployments, the newest first, so that a success is told before what it replaced becomes inactive.
pub fn app_reports(app: &App) -> (Vec<DeploymentReport>, Option<StatusReport>) {
    let gone = app.wanted != Wanted::Running;
    let deployments = app.deploys.iter().rev().map(|deploy| {
        let phase = app.phase(deploy);
        let state = match phase {
            _ if gone => DeploymentState::Inactive,
            Phase::Waiting => DeploymentState::Queued,
            Phase::Building | Phase::Releasing | Phase::Booting => DeploymentState::InProgress,
            Phase::Live => DeploymentState::Success,
            Phase::Failed => DeploymentState::Failure,
            Phase::Replaced | Phase::Superseded => DeploymentState::Inactive,
        };
        // GitHub shows a rollback as a deployment too; a deploy that ended before it began is not worth one.
        let make = !gone && !matches!(phase, Phase::Superseded | Phase::Replaced);
        DeploymentReport {
            key: deployment_key(app, deploy.number),
            deploy: deploy.number,
            commit: deploy.commit.clone(),
            environment: app.stage.environment(),
            production: app.stage == Stage::Production,
            transient: matches!(app.stage, Stage::Review(_)),
            state,
            failure: match &deploy.outcome {
                Some(Outcome::Failed { failure, .. }) => Some(failure.clone()),
                _ => None,
            },
            make,
        }
    });
    let status = match (app.stage, app.newest()) {
        (Stage::Review(_), Some(deploy)) if app.wanted == Wanted::Running => {
            let phase = app.phase(deploy);
            let (state, failure) = match &deploy.outcome {
                Some(Outcome::Live { .. }) => (StatusState::Success, None),
                Some(Outcome::Failed { failure, .. }) => (StatusState::Failure, Some(failure.clone())),
                Some(Outcome::Superseded { .. }) | None => (StatusState::Pending, None),
            };
            Some(StatusReport { commit: deploy.commit.clone(), state, phase, failure })
        }
        _ => None,
    };
    (deployments.collect(), status)
}

/// The check run `landfall/tests` of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    pub number: RunNumber,
    pub ordinal: u64,
    pub commit: Sha,
    pub state: RunState,
    pub verdict: Option<Verdict>,
    pub cancelled: Option<Cancelled>,
    pub nodes: u16,
    pub counts: Counts,
    pub results: Vec<(u16, NodeResult)>,
    pub seconds: Option<u64>,
    /// Of a run whose files are dealt.
    pub split: Option<SplitSummary>,
    pub only_failed_of: Option<RunNumber>,
}

pub fn run_report(run: &TestRun) -> CheckReport {
    CheckReport {
        number: run.number,
        ordinal: run.ordinal,
        commit: run.commit.clone(),
        state: run.state(),
        verdict: run.verdict.clone(),
        cancelled: run.cancelled.clone(),
        nodes: run.nodes,
        counts: run.counts(),
        results: run.results.iter().map(|(node, result)| (*node, result.clone())).collect(),
        split: run.split.clone(),
        only_failed_of: run.only_failed_of,
        seconds: match (run.started_at, run.finished_at) {
            (Some(started), Some(finished)) => Some(finished.since(started).as_secs()),
            _ => None,
        },
    }
}

/// All that the sticky comment of a pull request shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommentView {
    pub open: bool,
    pub merged: bool,
    pub held: bool,
    pub commit: Sha,
    pub app: Option<AppLine>,
    pub run: Option<RunLine>,
    pub staging: Option<AppLine>,
    pub production: Option<AppLine>,
    pub commands: Vec<CommandLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppLine {
    pub name: AppName,
    /// Of the newest deploy.
    pub phase: Phase,
    pub commit: Sha,
    pub release: Option<ReleaseNumber>,
    pub failure: Option<Failure>,
    /// What serves now, which may be older than what is under way.
    pub live_commit: Option<Sha>,
    pub live_release: Option<ReleaseNumber>,
    pub by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunLine {
    pub number: RunNumber,
    pub state: RunState,
    pub verdict: Option<Verdict>,
    pub commit: Sha,
    pub nodes: u16,
    pub counts: Counts,
    pub failures: Vec<TestFailure>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandLine {
    pub command: Command,
    pub by: String,
    pub answer: Answer,
    /// Of the deploy or run that it led to.
    pub phase: Option<Phase>,
    pub run_state: Option<RunState>,
    pub release: Option<ReleaseNumber>,
    pub failure: Option<Failure>,
}

/// What is known about a pull request when its comment is written.
#[derive(Debug, Clone)]
pub struct PullView {
    pub pull: Pull,
    pub review: Option<App>,
    pub staging: Option<App>,
    pub production: Option<App>,
    /// The newest run of the head commit.
    pub run: Option<TestRun>,
    pub commands: Vec<CommandRecord>,
    /// The runs that the commands led to.
    pub command_runs: Vec<TestRun>,
}

/// How many commands a comment shows: the newest ones.
const MOST_COMMANDS: usize = 10;

/// `None` where nothing of ours concerns the pull request, so that no comment is written.
pub fn comment_view(view: &PullView) -> Option<CommentView> {
    if view.review.is_none() && view.run.is_none() && view.commands.is_empty() {
        return None;
    }
    let skipped = view.commands.len().saturating_sub(MOST_COMMANDS);
    let commands: Vec<CommandLine> =
        view.commands.iter().skip(skipped).map(|record| command_line(record, view)).collect();
    let gave_orders = view.commands.iter().any(|record| matches!(record.answer, Answer::Deploying { .. }));
    let shows_pipeline = gave_orders || view.pull.merged;
    Some(CommentView {
        open: view.pull.open,
        merged: view.pull.merged,
        held: view.review.as_ref().is_some_and(|app| app.wanted == Wanted::Held),
        commit: view.pull.head.clone(),
        app: view.review.as_ref().filter(|app| app.wanted == Wanted::Running).and_then(app_line),
        run: view.run.as_ref().map(run_line),
        staging: view.staging.as_ref().filter(|_| shows_pipeline).and_then(app_line),
        production: view.production.as_ref().filter(|_| shows_pipeline).and_then(app_line),
        commands,
    })
}

fn app_line(app: &App) -> Option<AppLine> {
    let deploy = app.newest()?;
    let live = app.live_deploy();
    Some(AppLine {
        name: app.name.clone(),
        phase: app.phase(deploy),
        commit: deploy.commit.clone(),
        release: deploy.release,
        failure: failure_of(deploy),
        live_commit: live.map(|deploy| deploy.commit.clone()),
        live_release: app.live,
        by: deploy.by.clone(),
    })
}

fn failure_of(deploy: &Deploy) -> Option<Failure> {
    match &deploy.outcome {
        Some(Outcome::Failed { failure, .. }) => Some(failure.clone()),
        _ => None,
    }
}

fn run_line(run: &TestRun) -> RunLine {
    RunLine {
        number: run.number,
        state: run.state(),
        verdict: run.verdict.clone(),
        commit: run.commit.clone(),
        nodes: run.nodes,
        counts: run.counts(),
        failures: run.results.values().flat_map(|result| result.failures.iter().cloned()).take(5).collect(),
    }
}

fn command_line(record: &CommandRecord, view: &PullView) -> CommandLine {
    let apps = [&view.review, &view.staging, &view.production];
    let deploy = match &record.answer {
        Answer::Deploying { app, deploy } => apps
            .into_iter()
            .flatten()
            .find(|candidate| candidate.name == *app)
            .and_then(|app| app.deploy(*deploy).map(|deploy| (app, deploy))),
        _ => None,
    };
    let run = match &record.answer {
        Answer::Testing { run } => view.command_runs.iter().find(|candidate| candidate.number == *run),
        _ => None,
    };
    CommandLine {
        command: record.command.clone(),
        by: record.by.clone(),
        answer: record.answer.clone(),
        phase: deploy.map(|(app, deploy)| app.phase(deploy)),
        run_state: run.map(TestRun::state),
        release: deploy.and_then(|(_, deploy)| deploy.release),
        failure: deploy.and_then(|(_, deploy)| failure_of(deploy)),
    }
}

/// A reaction on the comment that gave a command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reaction {
    pub comment: u64,
    /// One of GitHub's: `eyes`, `rocket`, `-1`, `confused`, `+1`.
    pub content: &'static str,
}

/// Every command is acknowledged with eyes at once; how it ended comes beside them.
pub fn reactions(view: &PullView) -> Vec<Reaction> {
    let mut wanted = Vec::new();
    for record in &view.commands {
        let line = command_line(record, view);
        wanted.push(Reaction { comment: record.comment, content: "eyes" });
        let ending = match (&record.answer, line.phase, line.run_state) {
            (Answer::Refused { reason: Refusal::UnknownCommand }, ..) => Some("confused"),
            (Answer::Refused { .. }, ..) => Some("-1"),
            (Answer::Helped | Answer::Ending, ..) => Some("+1"),
            (Answer::Deploying { .. }, Some(Phase::Live | Phase::Replaced), _) => Some("rocket"),
            (Answer::Deploying { .. }, Some(Phase::Failed), _) => Some("-1"),
            (Answer::Testing { .. }, _, Some(RunState::Succeeded)) => Some("+1"),
            (Answer::Testing { .. }, _, Some(RunState::Failed | RunState::Errored)) => Some("-1"),
            _ => None,
        };
        wanted.extend(ending.map(|content| Reaction { comment: record.comment, content }));
    }
    wanted.sort();
    wanted.dedup();
    wanted
}
