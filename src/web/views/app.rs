//! An app: as a card of its pipeline, and with all its releases and processes.

use super::{When, safe_url};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::platform::State;
use crate::reconcile::{KEPT_RELEASES, World, domains, ended, is_kept, label};
use crate::store::StoreError;
use crate::web::problem::Problem;
use serde::Serialize;
use std::collections::BTreeMap;

/// How an app is, in one word. The words for people stand in `templates/macros.html`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AppState {
    Waiting,
    /// For the verdict of its commit's tests.
    WaitingForTests,
    Building,
    WaitingForConfig,
    ReleasePhase,
    Starting,
    /// A new release has a share of the requests, the one before it the others.
    Canary,
    Live,
    Failed,
    /// Nothing of it runs until somebody asks for it.
    Asleep,
    /// Its processes run, and visitors are told to come again.
    Maintenance,
    /// It was live, and none of its web processes answers.
    Crashed,
    Held,
    Removing,
    Stopped,
}

#[derive(Debug, Clone, Serialize)]
pub struct AppCard {
    pub name: AppName,
    pub stage: &'static str,
    pub state: AppState,
    pub url: String,
    /// Custom domains that lead to it.
    pub domains: Vec<String>,
    /// Something of it answers requests.
    pub serves: bool,
    /// Visitors are told that it is under maintenance, whatever else is so.
    pub maintenance: bool,
    pub live: Option<Live>,
    pub newest: Option<DeployLine>,
    pub pull: Option<PullLine>,
    pub repository: String,
}

/// What serves now.
#[derive(Debug, Clone, Serialize)]
pub struct Live {
    pub release: ReleaseNumber,
    pub commit: Option<Sha>,
    pub branch: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PullLine {
    pub number: PullNumber,
    pub title: String,
    pub author: String,
    pub branch: String,
    pub head: Sha,
    pub fork: bool,
    pub url: Option<String>,
}

impl PullLine {
    pub fn new(pull: &Pull) -> PullLine {
        PullLine {
            number: pull.number,
            title: pull.title.clone(),
            author: pull.author.clone(),
            branch: pull.branch.clone(),
            head: pull.head.clone(),
            fork: pull.is_fork(),
            url: safe_url(&pull.html_url),
        }
    }
}

/// The share of the requests that a canary has.
#[derive(Debug, Clone, Serialize)]
pub struct CanaryShare {
    pub percent: u8,
    pub until: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct DeployLine {
    /// What it has while it is a canary.
    pub canary: Option<CanaryShare>,
    pub number: u64,
    pub phase: Phase,
    pub commit: Sha,
    pub branch: String,
    pub cause: Cause,
    pub by: Option<String>,
    pub asked: When,
    pub release: Option<ReleaseNumber>,
    /// The run whose verdict it waits for, or waited for.
    pub gate: Option<RunNumber>,
    pub failure: Option<Failure>,
    /// The key of its build, once there is one.
    pub build: Option<BuildKey>,
    /// Required config vars without a value, which it waits for.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReleaseLine {
    pub number: ReleaseNumber,
    pub commit: Sha,
    pub branch: String,
    pub cause: Cause,
    pub by: Option<String>,
    pub made: When,
    pub live: bool,
    /// How its deploy went, while that is remembered.
    pub phase: Option<Phase>,
    pub can_roll_back: bool,
    pub commit_url: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessLine {
    pub id: ProcessId,
    pub name: String,
    pub release: Option<ReleaseNumber>,
    pub attempt: u32,
    pub state: ProcessWord,
    pub since: When,
    pub memory_bytes: Option<u64>,
    /// Processor time, in thousandths of a second.
    pub cpu_millis: Option<u64>,
    pub ended: Option<Ended>,
    pub target: Option<TargetLine>,
    pub command: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessWord {
    Starting,
    Running,
    Stopping,
    Exited,
}

/// The process as the router sees it.
#[derive(Debug, Clone, Serialize)]
pub struct TargetLine {
    pub state: TargetState,
    pub healthy: bool,
    pub seen: Option<String>,
    pub in_flight: u64,
    pub requests: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Traffic {
    pub requests: u64,
    pub errors: u64,
    pub in_flight: u64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct AppDetail {
    #[serde(flatten)]
    pub card: AppCard,
    pub owner: String,
    pub repository_name: String,
    pub created: When,
    pub deploys: Vec<DeployLine>,
    pub releases: Vec<ReleaseLine>,
    pub processes: Vec<ProcessLine>,
    pub formation: Vec<super::FormationLine>,
    /// Names and levels, never values.
    pub config: Vec<super::ConfigLine>,
    /// Its newest deploy failed after the build, so its release can be tried again.
    pub can_retry: bool,
    /// What is to be known of its add-ons.
    pub addons: Vec<AddonRemark>,
    /// `None` while the router does not answer.
    pub traffic: Option<Traffic>,
    pub alerts: Vec<super::AlertLine>,
}

pub fn card(world: &World, app: &App, repository: Option<&Repository>) -> Result<AppCard, StoreError> {
    let now = world.now();
    let route = world.store.route(&app.name)?.map(|stored| stored.route);
    let crashed = route.as_ref().is_some_and(|route| route.notice == Some(Notice::Crashed));
    let serves = route.is_some_and(|route| route.targets.iter().any(|target| target.state == TargetState::Active));
    let newest = match app.newest() {
        Some(deploy) => Some(deploy_line(world, app, deploy, now)?),
        None => None,
    };
    let pull = match app.pull() {
        Some(number) => world.store.pull(app.repository, number)?,
        None => None,
    };
    let live = app.live.map(|release| {
        let deploy = app.live_deploy();
        Live {
            release,
            commit: deploy.map(|deploy| deploy.commit.clone()),
            branch: deploy.map(|deploy| deploy.branch.clone()),
        }
    });
    Ok(AppCard {
        name: app.name.clone(),
        stage: app.stage.word(),
        state: state(world, app, crashed)?,
        url: world.app_url(&app.name),
        domains: domains::of_app(world, app)?,
        serves: serves && !app.maintenance,
        maintenance: app.maintenance,
        live,
        newest,
        pull: pull.as_ref().map(PullLine::new),
        repository: repository.map(Repository::full_name).unwrap_or_default(),
    })
}

fn state(world: &World, app: &App, crashed: bool) -> Result<AppState, StoreError> {
    let deploy = match (app.wanted, app.newest()) {
        (Wanted::Gone, _) => return Ok(AppState::Removing),
        (Wanted::Held, _) => return Ok(AppState::Held),
        (Wanted::Running, None) => return Ok(AppState::Waiting),
        (Wanted::Running, Some(deploy)) => deploy,
    };
    Ok(match app.phase(deploy) {
        Phase::Waiting => match deploy.gate {
            Some(run) if world.store.run(run)?.is_some_and(|run| run.verdict.is_none()) => AppState::WaitingForTests,
            _ => AppState::Waiting,
        },
        Phase::Building => AppState::Building,
        Phase::WaitingForConfig => AppState::WaitingForConfig,
        Phase::Releasing => AppState::ReleasePhase,
        Phase::Booting => AppState::Starting,
        Phase::Canary => AppState::Canary,
        Phase::Live | Phase::Replaced if app.maintenance => AppState::Maintenance,
        Phase::Live | Phase::Replaced if app.asleep_since.is_some() => AppState::Asleep,
        Phase::Live | Phase::Replaced if crashed => AppState::Crashed,
        Phase::Live | Phase::Replaced => AppState::Live,
        Phase::Failed => AppState::Failed,
        Phase::Superseded => AppState::Stopped,
    })
}

fn deploy_line(world: &World, app: &App, deploy: &Deploy, now: Timestamp) -> Result<DeployLine, StoreError> {
    let build = match &deploy.tree {
        Some(tree) => world.store.build_of_tree(app.repository, tree)?,
        None => None,
    };
    Ok(DeployLine {
        number: deploy.number,
        phase: app.phase(deploy),
        commit: deploy.commit.clone(),
        branch: deploy.branch.clone(),
        cause: deploy.cause.clone(),
        by: deploy.by.clone(),
        asked: When::new(deploy.asked_at, now),
        release: deploy.release,
        gate: deploy.gate,
        failure: match &deploy.outcome {
            Some(Outcome::Failed { failure, .. }) => Some(failure.clone()),
            _ => None,
        },
        build,
        canary: app
            .canary_of(deploy)
            .and_then(|watch| Some(CanaryShare { percent: watch.percent?, until: watch.until.rfc3339() })),
        missing: match app.phase(deploy) {
            Phase::WaitingForConfig => deploy.missing.clone(),
            _ => Vec::new(),
        },
    })
}

/// The address of a commit on GitHub.
pub fn commit_url(repository: Option<&Repository>, commit: &Sha) -> Option<String> {
    safe_url(&repository?.html_url).map(|url| format!("{}/commit/{commit}", url.trim_end_matches('/')))
}

pub fn find_app(world: &World, name: &str) -> Result<App, Problem> {
    let not_found = || Problem::not_found("app", name);
    let parsed: AppName = name.parse().map_err(|_| not_found())?;
    world.store.app(&parsed)?.ok_or_else(not_found)
}

/// The newest first, `most` of them; and the live one, however old it is.
pub fn releases(world: &World, app: &App, most: usize) -> Result<Vec<ReleaseLine>, StoreError> {
    let (now, repository) = (world.now(), world.store.repository(app.repository)?);
    let mut releases = world.store.newest_releases(&app.name, most)?;
    if let Some(live) = app.live.filter(|live| releases.iter().all(|release| release.number != *live)) {
        releases.extend(world.store.release(&app.name, live)?);
    }
    Ok(releases
        .into_iter()
        .map(|release| {
            let live = app.live == Some(release.number);
            let phase = app.deploy(release.deploy).map(|deploy| app.phase(deploy));
            let served = !matches!(phase, Some(Phase::Failed | Phase::Releasing | Phase::Booting | Phase::Canary));
            ReleaseLine {
                number: release.number,
                made: When::new(release.created_at, now),
                live,
                phase,
                can_roll_back: app.live.is_some()
                    && !live
                    && served
                    && app.wanted == Wanted::Running
                    && is_kept(world, &release),
                commit_url: commit_url(repository.as_ref(), &release.commit),
                commit: release.commit,
                branch: release.branch,
                cause: release.cause,
                by: release.by,
            }
        })
        .collect())
}

/// The app's processes by name, the newest attempt first.
pub async fn processes(world: &World, app: &App) -> Result<Vec<ProcessLine>, Problem> {
    let now = world.now();
    let targets = world.router.status().await.map(|status| status.targets).unwrap_or_default();
    let mut commands: BTreeMap<ReleaseNumber, BTreeMap<String, String>> = BTreeMap::new();
    let mut found = Vec::new();
    let live = app.live.map(|number| world.store.release(&app.name, number)).transpose()?.flatten();
    let formation = live.map(|release| app.formation_of(&release)).unwrap_or_default();
    for status in world.platform.list().await? {
        let text = |name: &str| status.labels.get(name).map(String::as_str).unwrap_or_default();
        if text(label::APP) != app.name.as_str() {
            continue;
        }
        let release: Option<ReleaseNumber> = text(label::RELEASE).parse().ok();
        if let Some(number) = release
            && !commands.contains_key(&number)
        {
            let types = world.store.release(&app.name, number)?.map(|release| release.process_types);
            commands.insert(number, types.unwrap_or_default());
        }
        // What was scaled away is remembered only for the number that its next start gets.
        let ordinal: u16 = text(label::ORDINAL).parse().unwrap_or(1);
        let scaled_away = release == app.live
            && is_scalable(text(label::TYPE))
            && formation.get(text(label::TYPE)).is_none_or(|scale| ordinal > scale.quantity);
        if scaled_away && status.state.is_over() {
            continue;
        }
        let (state, since) = match &status.state {
            State::Starting => (ProcessWord::Starting, status.started_at),
            State::Running { since } => (ProcessWord::Running, *since),
            State::Stopping => (ProcessWord::Stopping, status.started_at),
            State::Exited { at, .. } => (ProcessWord::Exited, *at),
        };
        found.push(ProcessLine {
            release,
            attempt: text(label::ATTEMPT).parse().unwrap_or(1),
            state,
            since: When::new(since, now),
            memory_bytes: status.memory_bytes,
            cpu_millis: status.cpu_millis_used,
            ended: match &status.state {
                State::Exited { code, signal, why, .. } => Some(ended(*code, *signal, why)),
                _ => None,
            },
            target: targets.get(&status.id).map(|target| TargetLine {
                state: match target.state {
                    crate::router::TargetState::Warming => TargetState::Warming,
                    crate::router::TargetState::Active => TargetState::Active,
                    crate::router::TargetState::Draining => TargetState::Draining,
                },
                healthy: target.healthy,
                seen: target.last_check.clone(),
                in_flight: target.in_flight,
                requests: target.requests,
            }),
            command: release.and_then(|number| commands.get(&number)?.get(text(label::TYPE)).cloned()),
            name: status.name,
            id: status.id,
        });
    }
    found.sort_by(|left, right| {
        (&left.name, std::cmp::Reverse(left.release), std::cmp::Reverse(left.attempt)).cmp(&(
            &right.name,
            std::cmp::Reverse(right.release),
            std::cmp::Reverse(right.attempt),
        ))
    });
    Ok(found)
}

pub async fn app_detail(world: &World, app: &App) -> Result<AppDetail, Problem> {
    let now = world.now();
    let repository = world.store.repository(app.repository)?;
    let mut deploys = Vec::new();
    for deploy in app.deploys.iter().rev() {
        deploys.push(deploy_line(world, app, deploy, now)?);
    }
    Ok(AppDetail {
        card: card(world, app, repository.as_ref())?,
        owner: repository.as_ref().map(|repository| repository.owner.clone()).unwrap_or_default(),
        repository_name: repository.as_ref().map(|repository| repository.name.clone()).unwrap_or_default(),
        created: When::new(app.created_at, now),
        deploys,
        releases: releases(world, app, KEPT_RELEASES)?,
        processes: processes(world, app).await?,
        formation: super::formation(world, app)?,
        config: super::config_of_app(world, app, false)?,
        can_retry: app.wanted == Wanted::Running
            && app.newest().is_some_and(|deploy| {
                deploy.release.is_some() && matches!(deploy.outcome, Some(Outcome::Failed { .. }))
            }),
        addons: world.store.addons_of(&AddonOwner::of(app))?.iter().filter_map(Addon::remark).collect(),
        traffic: traffic(world, app).await,
        alerts: super::alerts_of(world, &app.name)?,
    })
}

async fn traffic(world: &World, app: &App) -> Option<Traffic> {
    let status = world.router.status().await.ok()?;
    let seen = status.apps.get(&app.name)?;
    Some(Traffic {
        requests: seen.requests,
        errors: seen.s5xx,
        in_flight: seen.in_flight,
        p50_ms: seen.p50_ms,
        p95_ms: seen.p95_ms,
        p99_ms: seen.p99_ms,
    })
}
