//! This is the state: what should people see of it on GitHub? Data only; the sentences stand in `templates/`.

use super::policy::{self, NoApp};
use crate::clock::Timestamp;
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
    /// Whether it is said if nothing was said before.
    pub make: bool,
    /// Required config vars without a value.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    Pending,
    Success,
    Failure,
    /// It will never serve, and not because of what it is.
    Error,
}

/// The identity of a deploy's deployment, unique for ever because the app's is.
pub fn deployment_key(app: &App, deploy: u64) -> String {
    format!("{}-{deploy}", app.id)
}

/// Deployments, the newest first, so that a success is told before what it replaced becomes inactive.
pub fn app_reports(app: &App) -> (Vec<DeploymentReport>, Vec<StatusReport>) {
    let gone = app.wanted != Wanted::Running;
    let deployments = app.deploys.iter().rev().map(|deploy| {
        let phase = app.phase(deploy);
        let state = match phase {
            _ if gone => DeploymentState::Inactive,
            Phase::Waiting | Phase::WaitingForConfig => DeploymentState::Queued,
            Phase::Building | Phase::Releasing | Phase::Booting | Phase::Canary => DeploymentState::InProgress,
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
            environment: app.key().environment(),
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
    let statuses = match app.stage {
        Stage::Review(_) => statuses(app),
        Stage::Staging | Stage::Production => Vec::new(),
    };
    (deployments.collect(), statuses)
}

/// What each commit's status says: the newest deploy of it counts. Of a commit that was overtaken, or whose app is
/// taken away before it served, no status is left pending.
fn statuses(app: &App) -> Vec<StatusReport> {
    let mut reports: Vec<StatusReport> = Vec::new();
    let running = app.wanted == Wanted::Running;
    for (place, deploy) in app.deploys.iter().rev().enumerate() {
        if reports.iter().any(|report| report.commit == deploy.commit) {
            continue;
        }
        let newest = place == 0 && running;
        let (state, failure) = match &deploy.outcome {
            Some(Outcome::Live { .. }) => (StatusState::Success, None),
            Some(Outcome::Failed { failure, .. }) => (StatusState::Failure, Some(failure.clone())),
            None if newest => (StatusState::Pending, None),
            Some(Outcome::Superseded { .. }) | None => (StatusState::Error, None),
        };
        reports.push(StatusReport {
            commit: deploy.commit.clone(),
            state,
            phase: app.phase(deploy),
            failure,
            make: newest,
            missing: if newest { missing_of(app, deploy) } else { Vec::new() },
        });
    }
    reports
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
    /// The review apps, one for each folder that has one.
    pub apps: Vec<AppLine>,
    pub runs: Vec<RunLine>,
    /// Staging, then production.
    pub stages: Vec<AppLine>,
    pub commands: Vec<CommandLine>,
    /// Paths of pages that changed.
    pub pages: Vec<String>,
    /// What became of the newest deploys of the review apps, the newest first.
    pub timeline: Vec<Moment>,
    /// Folders that nothing in the pull request concerns, where the repository has several.
    pub untouched: Vec<Part>,
    /// Why there is no review app.
    pub no_app: Option<NoApp>,
    pub locks: Vec<Lock>,
    /// Why nothing goes to production now, other than a lock.
    pub frozen: Option<Refusal>,
    /// RFC 3339; until when the review app is kept.
    pub expires: Option<String>,
    /// Whether the review app runs a stranger's code.
    pub untrusted: bool,
    /// Commands that make sense now, without their slash.
    pub offers: Vec<String>,
    pub shipped: Vec<ShippedLine>,
    /// `OWNER/NAME`, for the commands that are named.
    pub repository: String,
    /// How `pr-predestroy` ended, if it failed.
    pub farewell: Option<FarewellReport>,
    /// Of the review app's add-ons.
    pub addons: Vec<AddonRemark>,
}

/// One deploy, as it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    pub app: AppName,
    pub commit: Sha,
    pub release: Option<ReleaseNumber>,
    pub phase: Phase,
    /// RFC 3339
    pub asked: String,
    /// From then until it served or failed.
    pub seconds: Option<u64>,
    pub by: Option<String>,
    /// Why it was wanted: `push`, `rollback`, `config` …
    pub cause: Cause,
}

/// That the pull request went to production.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShippedLine {
    pub app: AppName,
    pub release: ReleaseNumber,
    /// RFC 3339
    pub since: String,
    /// It was rolled back since.
    pub taken_back: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppLine {
    pub name: AppName,
    /// Of the newest deploy.
    pub phase: Phase,
    pub commit: Sha,
    pub release: Option<ReleaseNumber>,
    pub failure: Option<Failure>,
    /// Required config vars without a value, which it waits for.
    pub missing: Vec<String>,
    /// Checks of others that it waits for.
    pub waits_for: Vec<String>,
    /// `review`, `staging` or `production`.
    pub stage: &'static str,
    /// Which app of that stage, where there are several.
    pub part: Part,
    /// What serves now, which may be older than what is under way.
    pub live_commit: Option<Sha>,
    pub live_release: Option<ReleaseNumber>,
    pub by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunLine {
    pub number: RunNumber,
    /// The folder whose tests they are.
    pub part: Part,
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
    pub notes: Vec<Note>,
}

/// What is known about a pull request when its comment is written.
#[derive(Debug, Clone)]
pub struct PullView {
    pub pull: Pull,
    pub review: Vec<App>,
    pub staging: Vec<App>,
    pub production: Vec<App>,
    /// The newest run of each folder's tests of the head commit.
    pub runs: Vec<TestRun>,
    pub commands: Vec<CommandRecord>,
    /// The runs that the commands led to.
    pub command_runs: Vec<TestRun>,
    pub state: PipelineState,
    pub now: Timestamp,
    /// Review apps of other pull requests that run.
    pub other_apps: usize,
    /// The newest one of each app of production that holds the pull request, with the release of that app whose code
    /// serves, whichever way it came back.
    pub shipments: Vec<(Shipment, Option<ReleaseNumber>)>,
    pub repository: String,
    /// How the `pr-predestroy` of its app that is gone ended.
    pub farewell: Option<FarewellReport>,
    pub addons: Vec<AddonRemark>,
}

/// How many commands a comment shows: the newest ones.
const MOST_COMMANDS: usize = 10;

/// `None` where nothing of ours concerns the pull request, so that no comment is written.
pub fn comment_view(view: &PullView) -> Option<CommentView> {
    if view.review.is_empty() && view.runs.is_empty() && view.commands.is_empty() {
        return None;
    }
    let skipped = view.commands.len().saturating_sub(MOST_COMMANDS);
    let commands: Vec<CommandLine> =
        view.commands.iter().skip(skipped).map(|record| command_line(record, view)).collect();
    let gave_orders =
        view.commands.iter().any(|record| matches!(record.answer, Answer::Deploying { .. } | Answer::Waiting { .. }));
    let shows_pipeline = gave_orders || view.pull.merged;
    let running = || view.review.iter().filter(|app| app.wanted == Wanted::Running);
    let folders = view.state.policy.folders();
    let without_app = |folder: &Part| !view.review.iter().any(|app| app.part == *folder);
    // Of a folder that nothing concerns it is said in a line of its own.
    let missing =
        folders.iter().filter(|folder| without_app(folder) && (folders.len() == 1 || view.pull.touches(**folder)));
    let refused = |folder: &Part| policy::review_app_refused(&view.pull, *folder, &view.state, view.other_apps);
    let (open, fork) = (view.pull.open, view.pull.is_fork());
    Some(CommentView {
        open,
        merged: view.pull.merged,
        held: view.review.iter().any(|app| app.wanted == Wanted::Held) && running().next().is_none(),
        commit: view.pull.head.clone(),
        apps: running().filter_map(app_line).collect(),
        runs: view.runs.iter().map(run_line).collect(),
        stages: view
            .staging
            .iter()
            .chain(&view.production)
            .filter(|app| shows_pipeline && app.wanted != Wanted::Gone)
            .filter_map(app_line)
            .collect(),
        commands,
        pages: view.pull.pages.clone(),
        timeline: timeline(running()),
        untouched: if folders.len() > 1 { view.pull.untouched.clone() } else { Vec::new() },
        no_app: missing.filter(|_| open && !fork && running().next().is_none()).find_map(refused).or_else(|| {
            let nowhere = folders.len() > 1 && view.review.is_empty() && view.pull.untouched.len() == folders.len();
            (nowhere && open && !fork).then(|| folders.first().and_then(refused)).flatten()
        }),
        locks: view.state.locks.clone(),
        frozen: policy::barred(StageKind::Production, &view.state, view.now)
            .filter(|refusal| matches!(refusal, Refusal::Frozen { .. })),
        expires: running().filter_map(|app| policy::expiry(app, &view.state.policy)).min().map(Timestamp::rfc3339),
        untrusted: running().any(|app| app.untrusted),
        offers: offers(view),
        shipped: view
            .shipments
            .iter()
            .map(|(shipment, serving)| ShippedLine {
                app: shipment.app.clone(),
                release: shipment.release,
                since: shipment.at.rfc3339(),
                taken_back: serving.is_none_or(|serving| serving < shipment.release),
            })
            .collect(),
        repository: view.repository.clone(),
        farewell: view.farewell.clone().filter(|report| !view.pull.open && !report.ended.is_success()),
        addons: if view.pull.open { view.addons.clone() } else { Vec::new() },
    })
}

/// How many deploys the timeline shows.
const MOST_MOMENTS: usize = 8;

fn timeline<'a>(apps: impl Iterator<Item = &'a App>) -> Vec<Moment> {
    let mut moments: Vec<(Timestamp, Moment)> = Vec::new();
    for app in apps {
        moments.extend(app.deploys.iter().map(|deploy| {
            let ended = match &deploy.outcome {
                Some(Outcome::Live { at } | Outcome::Failed { at, .. }) => Some(*at),
                Some(Outcome::Superseded { .. }) | None => None,
            };
            let moment = Moment {
                app: app.name.clone(),
                commit: deploy.commit.clone(),
                release: deploy.release,
                phase: app.phase(deploy),
                asked: deploy.asked_at.rfc3339(),
                seconds: ended.map(|ended| ended.since(deploy.asked_at).as_secs()),
                by: deploy.by.clone(),
                cause: deploy.cause.clone(),
            };
            (deploy.asked_at, moment)
        }));
    }
    moments.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    moments.into_iter().take(MOST_MOMENTS).map(|(_, moment)| moment).collect()
}

/// The commands that would not be refused now because of the state.
fn offers(view: &PullView) -> Vec<String> {
    let mut offers: Vec<String> = Vec::new();
    let running: Vec<&App> = view.review.iter().filter(|app| app.wanted == Wanted::Running).collect();
    let held = view.review.iter().any(|app| app.wanted == Wanted::Held);
    let failed =
        |app: &&App| matches!(app.newest().and_then(|deploy| deploy.outcome.as_ref()), Some(Outcome::Failed { .. }));
    if view.pull.open {
        match running.as_slice() {
            [] if held => offers.push(format!("approve {}", view.pull.head)),
            [] => offers.push("deploy".to_owned()),
            some => {
                if some.iter().any(failed) {
                    offers.push("deploy".to_owned());
                }
                if some.iter().any(|app| failed(app) && app.newest().is_some_and(|deploy| deploy.release.is_some())) {
                    offers.push("retry-release".to_owned());
                }
                offers.extend(["logs", "restart", "destroy"].map(str::to_owned));
                if some.iter().any(|app| policy::expiry(app, &view.state.policy).is_some()) {
                    offers.push("extend 3d".to_owned());
                }
            }
        }
        let going_on = |run: &TestRun| run.verdict.is_none() && run.cancelled.is_none();
        let red = |run: &TestRun| run.verdict.as_ref().is_some_and(|verdict| !verdict.is_green());
        if view.runs.iter().any(going_on) {
            offers.push("cancel".to_owned());
        } else if view.runs.iter().any(red) {
            offers.extend(["retest failed", "retest"].map(str::to_owned));
        } else if !view.runs.is_empty() {
            offers.push("retest".to_owned());
        }
    }
    if view.pull.merged {
        offers.extend(stage_offers(view));
    }
    for lock in &view.state.locks {
        offers.push(match lock.stage {
            StageKind::Review => "unlock review".to_owned(),
            StageKind::Staging => "unlock staging".to_owned(),
            StageKind::Production => "unlock".to_owned(),
        });
    }
    offers.extend(["status", "help"].map(str::to_owned));
    offers
}

/// What may be promoted or rolled back, each app of production by its name where there are several.
fn stage_offers(view: &PullView) -> Vec<String> {
    let policy = &view.state.policy;
    let (mut promote, mut roll_back) = (Vec::new(), Vec::new());
    let live = |app: Option<&App>| app.and_then(|app| app.live_deploy().map(|deploy| deploy.commit.clone()));
    let keys = policy.production_keys();
    for key in &keys {
        let production = view.production.iter().find(|app| app.key() == *key);
        let source = view.staging.iter().find(|app| app.key() == policy.source_of(*key));
        let staged = live(source);
        let to = match (keys.len(), production) {
            (1, _) => String::new(),
            (_, Some(app)) => format!(" to {}", app.name),
            (_, None) => format!(" to {}", key.part),
        };
        if staged.is_some() && staged != live(production) {
            promote.push(format!("promote{to}"));
        }
        if production.is_some_and(|app| app.last_release > 1) {
            roll_back.push(format!("rollback{to}"));
        }
    }
    promote.into_iter().chain(roll_back).collect()
}

pub fn app_line(app: &App) -> Option<AppLine> {
    let deploy = app.newest()?;
    let live = app.live_deploy();
    Some(AppLine {
        name: app.name.clone(),
        phase: app.phase(deploy),
        commit: deploy.commit.clone(),
        release: deploy.release,
        failure: failure_of(deploy),
        missing: missing_of(app, deploy),
        waits_for: if app.phase(deploy) == Phase::Waiting { deploy.waits_for.clone() } else { Vec::new() },
        stage: app.stage.word(),
        part: app.part,
        live_commit: live.map(|deploy| deploy.commit.clone()),
        live_release: app.live,
        by: deploy.by.clone(),
    })
}

fn missing_of(app: &App, deploy: &Deploy) -> Vec<String> {
    match app.phase(deploy) {
        Phase::WaitingForConfig => deploy.missing.clone(),
        _ => Vec::new(),
    }
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
        part: run.part,
        state: run.state(),
        verdict: run.verdict.clone(),
        commit: run.commit.clone(),
        nodes: run.nodes,
        counts: run.counts(),
        failures: run.results.values().flat_map(|result| result.failures.iter().cloned()).take(5).collect(),
    }
}

fn command_line(record: &CommandRecord, view: &PullView) -> CommandLine {
    let apps = || view.review.iter().chain(&view.staging).chain(&view.production);
    let deploy = match &record.answer {
        Answer::Deploying { app, deploy } => apps()
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
        notes: record.notes.clone(),
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
            (Answer::Refused { reason: Refusal::UnknownCommand | Refusal::Malformed }, ..) => Some("confused"),
            (Answer::Refused { .. }, ..) => Some("-1"),
            (Answer::Helped | Answer::Done | Answer::Told, ..) => Some("+1"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(number: u64, commit: char, outcome: Option<Outcome>) -> Deploy {
        let commit = commit.to_string().repeat(40).parse().unwrap();
        Deploy { number, outcome, ..Deploy::new(commit, "change".to_owned(), Cause::Push, None, Timestamp(0)) }
    }

    #[test]
    fn no_status_stays_pending_on_a_commit_that_was_overtaken_or_taken_away() {
        let key = AppKey::from(Stage::Review(PullNumber(1)));
        let mut app = App::new("hello-pr-1".parse().unwrap(), RepositoryId(1), key, Timestamp(0));
        app.deploys = vec![deploy(1, 'a', Some(Outcome::Superseded { at: Timestamp(1) })), deploy(2, 'b', None)];
        let said = |app: &App| -> Vec<(String, StatusState, bool)> {
            let (_, statuses) = app_reports(app);
            statuses.iter().map(|status| (status.commit.as_str()[..1].to_owned(), status.state, status.make)).collect()
        };
        let b = |state, make| ("b".to_owned(), state, make);
        let a = ("a".to_owned(), StatusState::Error, false);
        assert_eq!(said(&app), [b(StatusState::Pending, true), a.clone()]);
        app.wanted = Wanted::Gone;
        assert_eq!(said(&app), [b(StatusState::Error, false), a]);
    }
}
