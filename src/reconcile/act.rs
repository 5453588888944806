//! Does what a plan says, one action after the other. Every action may be repeated after a crash: it looks at what is
//! there before it does anything, and names the release that it serves.

use super::apply::{enqueue, put_app};
use super::{Trouble, World, access, addons, build, domains, kept, monitor, observe, setup, split, start, watch};
use crate::ci::split::Event;
use crate::domain::*;
use crate::drains::Departed;
use crate::outside;
use crate::platform::{PlatformError, State};
use crate::router;
use crate::store::{StoreError, StoredRoute, Transaction, queue};
use crate::workflow::{Action, SETUP_FAILED, environment_of};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use tracing::{info, warn};

/// Lines of output that a report shows.
const TAIL: usize = 20;
/// As many shipments back a rollback is told to the pull requests that it takes out of production.
const RECENT_SHIPMENTS: usize = 5;

pub(super) async fn app(world: &World, app: &App, actions: &[Action]) -> Result<(), Trouble> {
    for action in actions {
        match action {
            Action::EnsureBuild { commit } => {
                let branch = app.newest().map_or("", |deploy| deploy.branch.as_str());
                let cache_of = build::cache_of(world, app.repository, app.pull(), branch)?;
                let asked_at = newest_asked_at(app);
                let policy = world.store.pipeline(app.repository)?.policy;
                let root = policy.root_of(policy.folder_of(app.key())).to_owned();
                let environment = environment_of(app.stage);
                let wish = build::Wish { repository: app.repository, commit, asked_at, cache_of, root, environment };
                match build::ensure(world, &wish).await? {
                    Ok(tree) => {
                        change_deploy(world, app, newest_number(app), move |_, deploy| deploy.tree = Some(tree))
                            .await?;
                    }
                    Err(failure) => fail(world, app, newest_number(app), failure).await?,
                }
            }
            Action::CollectBuild { key } => build::collect(world, key).await?,
            Action::EnsureAddons { deploy } => {
                let all = observe::app(world, &app.name).await?;
                let wanted = all.map(|(_, view)| view.addons.wanted).unwrap_or_default();
                if let Some(failure) = addons::ensure(world, &AddonOwner::of(app), &wanted).await? {
                    fail(world, app, *deploy, failure).await?;
                }
            }
            Action::DropAddons => addons::take_all_away(world, &AddonOwner::of(app)).await?,
            Action::MakeRelease { deploy } => start::make_release(world, app, *deploy).await?,
            Action::StartProcess { release, kind, ordinal, attempt, crashes } => {
                start::process(world, app, *release, kind, *ordinal, *attempt, *crashes).await?;
            }
            Action::Stop { process } => stop(world, process).await?,
            Action::Discard { process } => discard(world, process).await?,
            Action::SetRoute { route } => set_route(world, app, route.as_ref()).await?,
            Action::FailDeploy { deploy, failure, tail_of } => {
                let failure = with_tail(world, failure.clone(), tail_of.as_ref()).await?;
                fail(world, app, *deploy, failure).await?;
            }
            Action::MarkReleased { deploy } => {
                change_deploy(world, app, *deploy, |_, deploy| deploy.released = true).await?;
            }
            Action::GoLive { deploy } => go_live(world, app, *deploy).await?,
            Action::Watch { deploy } => watch::begin(world, app, *deploy).await?,
            Action::EndWatch => change_app(world, app, |app, _| app.watch = None).await?,
            Action::GoBack { deploy, failure } => watch::go_back(world, app, *deploy, failure).await?,
            Action::AwaitConfig { deploy, names } => {
                info!(app = %app.name, deploy, "{} waits for config vars: {}", app.name, names.join(", "));
                let names = names.clone();
                change_deploy(world, app, *deploy, move |_, deploy| deploy.missing = names).await?;
            }
            Action::AwaitChecks { deploy, contexts } => {
                let (contexts, now) = (contexts.clone(), world.now());
                change_deploy(world, app, *deploy, move |_, deploy| {
                    deploy.waits_for = contexts;
                    deploy.checked_at = Some(now);
                })
                .await?;
            }
            Action::MarkPostdeploy => change_app(world, app, |app, _| app.postdeploy_done = true).await?,
            Action::EndFarewell { process, ended } => end_farewell(world, app, process, ended.clone()).await?,
            Action::EndOneOff { number, ended } => {
                let (number, ended) = (*number, ended.clone());
                info!(app = %app.name, "run.{number} of {} ended", app.name);
                change_app(world, app, move |app, _| end_one_off(app, number, ended)).await?;
            }
            Action::Sleep => rest(world, app, true).await?,
            Action::Wake => rest(world, app, false).await?,
            // What remains to be said on GitHub comes first; see `forget`.
            Action::Forget => {}
            Action::EnsureNodeAddons { .. }
            | Action::DropNodeAddons { .. }
            | Action::StartNode { .. }
            | Action::CollectNode { .. }
            | Action::PlaceSetup { .. }
            | Action::StartSetup
            | Action::CollectSetup
            | Action::LeaveSetup
            | Action::PlanNodes { .. }
            | Action::ExpireLeases { .. }
            | Action::NodeLost { .. }
            | Action::Abandon
            | Action::Conclude { .. } => {
                return Err(Trouble::bug("a test run's action for an app"));
            }
        }
    }
    Ok(())
}

pub(super) async fn run(world: &World, run: &TestRun, actions: &[Action]) -> Result<(), Trouble> {
    for action in actions {
        match action {
            Action::EnsureBuild { commit } => {
                let own = !run.untrusted && run.repeats.is_none();
                let cache_of = if own { build::cache_of(world, run.repository, run.pull, &run.branch)? } else { None };
                let root = world.store.pipeline(run.repository)?.policy.root_of(run.part).to_owned();
                let (repository, asked_at) = (run.repository, run.created_at);
                let environment = Environment::Test;
                let wish = build::Wish { repository, commit, asked_at, cache_of, root, environment };
                match build::ensure(world, &wish).await? {
                    Ok(tree) => change_run(world, run.number, move |run, _| run.tree = Some(tree)).await?,
                    Err(failure) => conclude(world, run.number, Verdict::Errored { failure }).await?,
                }
            }
            Action::CollectBuild { key } => build::collect(world, key).await?,
            Action::PlaceSetup { nodes } => setup::place(world, run, *nodes).await?,
            Action::StartSetup => setup::begin(world, run).await?,
            Action::CollectSetup => setup::collect(world, run).await?,
            Action::LeaveSetup => setup::leave(world, run).await?,
            Action::PlanNodes { nodes } => {
                if let Some(slug) = start::slug_of(world, run)? {
                    split::plan(world, run, *nodes, &slug).await?;
                }
            }
            Action::ExpireLeases { leases } => {
                let events = leases.iter().map(|lease| Event::Expire { lease: *lease }).collect();
                split::tell(world, run.number, events).await?;
            }
            Action::NodeLost { node, attempt } => {
                let lost = Event::Lost { node: *node, attempt: *attempt };
                split::tell(world, run.number, vec![lost]).await?;
            }
            Action::Abandon => split::tell(world, run.number, vec![Event::Abandon]).await?,
            Action::EnsureNodeAddons { node } => {
                let owner = AddonOwner::Node { run: run.number, node: *node };
                let wanted = start::node_addons(world, run)?;
                if let Some(failure) = addons::ensure(world, &owner, &wanted).await? {
                    conclude(world, run.number, Verdict::Errored { failure }).await?;
                }
            }
            Action::DropNodeAddons { node } => {
                addons::take_all_away(world, &AddonOwner::Node { run: run.number, node: *node }).await?;
            }
            Action::StartNode { node, attempt } => start::node(world, run, *node, *attempt).await?,
            Action::CollectNode { node, process } => collect_node(world, run, *node, process).await?,
            Action::Stop { process } => stop(world, process).await?,
            Action::Discard { process } => discard(world, process).await?,
            Action::Conclude { verdict } if run.split.is_some() => {
                split::conclude(world, run, verdict.clone()).await?;
            }
            Action::Conclude { verdict } => split::conclude_queue(world, run, verdict.clone()).await?,
            Action::EnsureAddons { .. }
            | Action::DropAddons
            | Action::MakeRelease { .. }
            | Action::StartProcess { .. }
            | Action::SetRoute { .. }
            | Action::FailDeploy { .. }
            | Action::MarkReleased { .. }
            | Action::GoLive { .. }
            | Action::Watch { .. }
            | Action::EndWatch
            | Action::GoBack { .. }
            | Action::AwaitConfig { .. }
            | Action::AwaitChecks { .. }
            | Action::MarkPostdeploy
            | Action::EndFarewell { .. }
            | Action::EndOneOff { .. }
            | Action::Sleep
            | Action::Wake
            | Action::Forget => return Err(Trouble::bug("an app's action for a test run")),
        }
    }
    Ok(())
}

fn newest_number(app: &App) -> u64 {
    app.newest().map_or(0, |deploy| deploy.number)
}

fn newest_asked_at(app: &App) -> crate::clock::Timestamp {
    app.newest().map_or(app.created_at, |deploy| deploy.asked_at)
}

/// Changes a deploy, unless it is over in the meantime: an action never acts for what is no longer wanted.
pub(super) async fn change_deploy(
    world: &World,
    app: &App,
    number: u64,
    change: impl FnOnce(&mut App, &mut Deploy) + Send + 'static,
) -> Result<(), StoreError> {
    let (name, now) = (app.name.clone(), world.now());
    world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&name)? else { return Ok(()) };
            let Some(place) = app.deploys.iter().position(|deploy| deploy.number == number && deploy.outcome.is_none())
            else {
                return Ok(());
            };
            let mut deploy = app.deploys[place].clone();
            change(&mut app, &mut deploy);
            app.deploys[place] = deploy;
            put_app(tx, &app, now)?;
            queue_watchers(tx, &app, now)
        })
        .await
}

/// Changes an app as long as it is there.
pub(super) async fn change_app(
    world: &World,
    app: &App,
    change: impl FnOnce(&mut App, crate::clock::Timestamp) + Send + 'static,
) -> Result<(), StoreError> {
    let (name, id, now) = (app.name.clone(), app.id.clone(), world.now());
    world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&name)?.filter(|app| app.id == id) else { return Ok(()) };
            change(&mut app, now);
            put_app(tx, &app, now)
        })
        .await
}

fn end_one_off(app: &mut App, number: u16, ended: Ended) {
    let open = |one_off: &&mut OneOff| one_off.number == number && one_off.ended.is_none();
    if let Some(one_off) = app.one_offs.iter_mut().find(open) {
        one_off.ended = Some(ended);
    }
    let mut over = app.one_offs.iter().filter(|one_off| one_off.ended.is_some()).count();
    app.one_offs.retain(|one_off| {
        let drop = one_off.ended.is_some() && over > KEPT_ONE_OFFS;
        over -= usize::from(drop);
        !drop
    });
}

/// The app's record goes soon: how it ended is kept with the pull request.
async fn end_farewell(world: &World, app: &App, process: &ProcessId, ended: Ended) -> Result<(), Trouble> {
    let tail = observe::tail(world, process, TAIL).await?;
    if !ended.is_success() {
        warn!(app = %app.name, "pr-predestroy of {} failed: {ended:?}", app.name);
    }
    let (name, id, now) = (app.name.clone(), app.id.clone(), world.now());
    world
        .commit(move |tx| {
            let gone = |app: &App| app.id == id && app.wanted == Wanted::Gone && !app.farewell.done;
            let Some(mut app) = tx.app(&name)?.filter(gone) else { return Ok(()) };
            app.farewell.done = true;
            if let Some(number) = app.pull() {
                tx.put_farewell(app.repository, number, Some(&FarewellReport { ended, tail, at: now }))?;
            }
            put_app(tx, &app, now)
        })
        .await?;
    Ok(())
}

/// The pull requests whose comments show a command on this app.
pub(super) fn queue_watchers(
    tx: &mut Transaction<'_>,
    app: &App,
    now: crate::clock::Timestamp,
) -> Result<(), StoreError> {
    if app.pull().is_some() {
        return Ok(());
    }
    for pull in tx.pulls_with_commands(app.repository)? {
        enqueue(tx, &Subject::Pull(app.repository, pull), now)?;
    }
    // What is in production, and what is not any more, stands in the comments of what went there.
    for shipment in tx.shipments(&app.name)?.iter().rev().take(RECENT_SHIPMENTS) {
        for pull in &shipment.pulls {
            enqueue(tx, &Subject::Pull(app.repository, pull.number), now)?;
        }
    }
    Ok(())
}

async fn fail(world: &World, app: &App, deploy: u64, failure: Failure) -> Result<(), StoreError> {
    let at = world.now();
    warn!(app = %app.name, deploy, "a deploy of {} failed: {failure:?}", app.name);
    monitor::note_failure(world, &app.name, &failure);
    change_deploy(world, app, deploy, move |_, deploy| deploy.outcome = Some(Outcome::Failed { failure, at })).await
}

async fn go_live(world: &World, app: &App, deploy: u64) -> Result<(), Trouble> {
    let at = world.now();
    let watch = watch::after_switch(world, app, deploy).await?;
    info!(app = %app.name, deploy, "switched {} to its new release", app.name);
    change_deploy(world, app, deploy, move |app, deploy| {
        app.live = deploy.release;
        // Only the first release that serves has one.
        app.postdeploy_done = true;
        app.asleep_since = None;
        app.watch = watch;
        deploy.outcome = Some(Outcome::Live { at });
    })
    .await?;
    Ok(())
}

/// Puts an app to sleep or wakes it: what runs of it follows from that. A newer release than the one that was looked
/// at is left alone.
async fn rest(world: &World, app: &App, asleep: bool) -> Result<(), StoreError> {
    let (name, live, now) = (app.name.clone(), app.live, world.now());
    if asleep {
        info!(app = %name, "nobody uses {name}: it goes to sleep");
    } else {
        info!(app = %name, "waking {name}");
    }
    world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&name)? else { return Ok(()) };
            if app.live != live || app.asleep_since.is_some() == asleep {
                return Ok(());
            }
            if asleep {
                app.asleep_since = Some(now);
            } else {
                app.asleep_since = None;
                app.woken_at = Some(now);
            }
            put_app(tx, &app, now)
        })
        .await
}

async fn with_tail(world: &World, failure: Failure, process: Option<&ProcessId>) -> Result<Failure, Trouble> {
    let lines = match process {
        Some(process) => observe::tail(world, process, TAIL).await?,
        None => Vec::new(),
    };
    Ok(match failure {
        Failure::ReleasePhase { ended, .. } => Failure::ReleasePhase { ended, tail: lines },
        Failure::Postdeploy { ended, .. } => Failure::Postdeploy { ended, tail: lines },
        Failure::Crashed { process, ended, .. } => Failure::Crashed { process, ended, tail: lines },
        Failure::NotHealthy { process, seconds, seen, .. } => {
            Failure::NotHealthy { process, seconds, seen, tail: lines }
        }
        other => other,
    })
}

pub(super) async fn change_run(
    world: &World,
    number: RunNumber,
    change: impl FnOnce(&mut TestRun, crate::clock::Timestamp) + Send + 'static,
) -> Result<(), StoreError> {
    let now = world.now();
    world
        .commit(move |tx| {
            let Some(mut run) = tx.run(number)? else { return Ok(()) };
            if run.verdict.is_some() {
                return Ok(());
            }
            change(&mut run, now);
            tx.put_run(&run)?;
            enqueue(tx, &Subject::Run(number), now)?;
            if let Some(pull) = run.pull {
                enqueue(tx, &Subject::Pull(run.repository, pull), now)?;
            }
            if run.verdict.is_some() {
                // Somebody may wait for the verdict.
                for app in tx.apps_of(run.repository)? {
                    if app.newest().is_some_and(|deploy| deploy.gate == Some(number)) {
                        enqueue(tx, &Subject::App(app.name), now)?;
                    }
                }
            }
            Ok(())
        })
        .await
}

pub(super) async fn conclude(world: &World, number: RunNumber, verdict: Verdict) -> Result<(), StoreError> {
    info!(run = %number, "test run {number} ended: {}", verdict_word(&verdict));
    change_run(world, number, move |run, now| {
        run.verdict = Some(verdict);
        run.finished_at = Some(now);
    })
    .await
}

fn verdict_word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Reused { .. } => "passed before",
        Verdict::Failed => "failed",
        Verdict::Errored { .. } => "errored",
        Verdict::Cancelled => "cancelled",
        Verdict::NoTests => "no tests",
        Verdict::Untouched => "nothing to test",
    }
}

async fn collect_node(world: &World, run: &TestRun, node: u16, process: &ProcessId) -> Result<(), Trouble> {
    let all = observe::list(world).await?;
    let Some(status) = all.into_iter().find(|status| status.id == *process) else { return Ok(()) };
    let State::Exited { code, signal, why, at } = &status.state else { return Ok(()) };
    let lines: Vec<String> = observe::all_lines(world, process)
        .await?
        .into_iter()
        .map(|line| crate::text::plain(&line.text, 2_000))
        .collect();
    let ended = observe::ended(*code, *signal, why);
    let report = crate::ci::tap::read(lines.iter().map(String::as_str));
    let setup_failed = ended == Ended::Exited { code: SETUP_FAILED };
    let attempt = split::who_is(process).map_or(1, |who| who.attempt);
    let results = split::plain_report(world, run, node, attempt)?;
    let (unproven, read) = match results {
        None => (false, None),
        Some(read) => (read.as_ref().is_none_or(|read| !read.green), read),
    };
    let printed = report.map(|report| (report.counts, report.failures));
    let (counts, failures) = read.map(|read| (read.counts, read.failures)).or(printed).unzip();
    let failures = within(failures.unwrap_or_default());
    let result = NodeResult {
        process: process.clone(),
        started_at: status.started_at,
        finished_at: *at,
        setup_failed,
        counts,
        failures,
        unproven,
        tail: if ended.is_success() && !unproven { Vec::new() } else { last_lines(&lines) },
        ended,
    };
    change_run(world, run.number, move |run, _| {
        run.results.entry(node).or_insert(result);
    })
    .await?;
    Ok(())
}

/// A run's record holds the results of up to 64 nodes, and a record has at most 1 MiB.
const FAILURE_BYTES: usize = 10_000;
const TAIL_BYTES: usize = 4_000;

/// The first failures, as many as there is room for.
pub(super) fn within(failures: Vec<TestFailure>) -> Vec<TestFailure> {
    let mut bytes = 0;
    failures
        .into_iter()
        .take_while(|failure| {
            bytes += failure.name.len() + failure.message.len();
            bytes <= FAILURE_BYTES
        })
        .collect()
}

/// The last lines, as many as there is room for.
pub(super) fn last_lines(lines: &[String]) -> Vec<String> {
    let mut bytes = 0;
    let mut kept: Vec<String> = lines
        .iter()
        .rev()
        .take(TAIL)
        .take_while(|line| {
            bytes += line.len();
            bytes <= TAIL_BYTES
        })
        .cloned()
        .collect();
    kept.reverse();
    kept
}

pub(super) async fn stop(world: &World, process: &ProcessId) -> Result<(), Trouble> {
    outside::point("platform stop").await;
    world.platform.stop(process).await?;
    outside::point("platform stopped").await;
    Ok(())
}

/// Keeps an ended process' log as a file, then forgets the process.
pub(super) async fn discard(world: &World, process: &ProcessId) -> Result<(), Trouble> {
    let all = observe::list(world).await?;
    let status = all.iter().find(|status| status.id == *process);
    kept::keep_log(world, process, status).await?;
    if let Some(status) = status {
        monitor::meter(world, status, world.now())?;
        if let Some(app) = observe::app_of(status) {
            world.drains.end(Departed { process: process.clone(), app, name: status.name.clone() });
        }
    }
    outside::point("platform remove").await;
    match world.platform.remove(process).await {
        // Something looked dead and is not: the next look sees it.
        Ok(()) | Err(PlatformError::StillRunning(_) | PlatformError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    outside::point("platform removed").await;
    if let Some(who) = split::who_is(process) {
        split::close(world, who).await?;
    }
    Ok(())
}

/// Writes the route down, then hands the whole table to the router.
async fn set_route(world: &World, app: &App, route: Option<&WantedRoute>) -> Result<(), Trouble> {
    let _alone = world.locks.lock("router table").await;
    let (name, route) = (app.name.clone(), route.cloned());
    let stored = world.store.route(&name)?;
    if stored.as_ref().map(|stored| &stored.route) != route.as_ref() {
        world
            .commit(move |tx| {
                let version = tx.next_number("route table")?;
                let stored = route.map(|route| StoredRoute { version, route });
                tx.put_route(&name, stored.as_ref())
            })
            .await?;
    }
    send_table(world).await
}

/// Gives the router its table again: what the operator's configuration says of it may have changed.
pub async fn send_routes(world: &World) -> Result<(), Trouble> {
    let _alone = world.locks.lock("router table").await;
    // A router that did not take the last table may still hold what is gone.
    if world.store.routes()?.is_empty() && !world.table_is_stale.load(Ordering::Acquire) {
        return Ok(());
    }
    send_table(world).await
}

/// As `send_routes`, but where the router does not take it now, that is tried again with each slow tick.
pub async fn refresh_routes(world: &World) {
    if let Err(trouble) = send_routes(world).await {
        world.table_is_stale.store(true, Ordering::Release);
        warn!("the router has its table of before: {trouble}");
    }
}

/// Makes the router's table what the store says, if it isn't.
pub(super) async fn send_table(world: &World) -> Result<(), Trouble> {
    world.table_is_stale.store(true, Ordering::Release);
    access::ensure_secret(world).await?;
    let version = world.commit(|tx| tx.next_number("route table")).await?;
    let mut apps = BTreeMap::new();
    for (name, stored) in world.store.routes()? {
        let Some(app) = world.store.app(&name)? else { continue };
        apps.insert(name.clone(), route_of(world, &app, &stored.route)?);
    }
    let table = router::Table { generation: world.store.generation(), version, apps };
    if table.apps.is_empty() {
        // An empty table is refused unless it is said that it is meant.
        outside::point("router clear").await;
        world.router.clear(table.generation, table.version).await?;
    } else {
        outside::point("router set").await;
        world.router.set(table).await?;
    }
    outside::point("router set done").await;
    world.table_is_stale.store(false, Ordering::Release);
    Ok(())
}

fn route_of(world: &World, app: &App, route: &WantedRoute) -> Result<router::Route, Trouble> {
    Ok(router::Route {
        access: access::for_router(world, app)?,
        hosts: [format!("{}.{}", app.name, world.config.router.domain)]
            .into_iter()
            .chain(domains::of_app(world, app)?)
            .collect(),
        release: route.release.map(|release| release.to_string()).unwrap_or_default(),
        noindex: app.stage != Stage::Production,
        hold: route.hold,
        asleep: route.asleep,
        canary: route.canary.map(|(release, percent)| router::Canary { release: release.to_string(), percent }),
        notice: route.notice.and_then(|notice| match notice {
            Notice::Building => Some(router::Notice::Building),
            Notice::Held => Some(router::Notice::Held),
            Notice::Failed => Some(router::Notice::Failed),
            Notice::Crashed => Some(router::Notice::Crashed),
            Notice::Asleep => Some(router::Notice::Asleep),
            Notice::Maintenance => Some(router::Notice::Maintenance),
            // The router's own word for it is H14.
            Notice::NoWeb => None,
        }),
        targets: route
            .targets
            .iter()
            .map(|target| router::Target {
                process: target.process.clone(),
                name: target.name.clone(),
                release: target.release.to_string(),
                socket: world.platform.dial_socket(&target.process),
                state: match target.state {
                    TargetState::Warming => router::TargetState::Warming,
                    TargetState::Active => router::TargetState::Active,
                    TargetState::Draining => router::TargetState::Draining,
                },
                health_path: match &target.checks.health {
                    HealthCheck::Path(path) => path.clone(),
                    HealthCheck::Tcp => "/".to_owned(),
                },
                health_tcp: target.checks.health == HealthCheck::Tcp,
                health_seconds: target.checks.every_seconds,
                warmup: target.checks.warmup.clone(),
            })
            .collect(),
    })
}

/// The last thing that is done for an app, once GitHub knows that it is gone: its folders, then its record.
pub(super) async fn forget(world: &World, app: &App) -> Result<(), Trouble> {
    remove_logs_of(world, &app.name).await?;
    let (name, id, now) = (app.name.clone(), app.id.clone(), world.now());
    let pull = app.pull().map(|number| (app.repository, number));
    info!(app = %name, "nothing of {name} is left");
    world
        .commit(move |tx| {
            // A pull request that was reopened meanwhile has made the app wanted again.
            if tx.app(&name)?.is_some_and(|app| app.wanted == Wanted::Gone && app.id == id) {
                tx.delete_app(&name)?;
            }
            match pull {
                Some((repository, number)) => queue::enqueue(tx, &Subject::Pull(repository, number).to_string(), now),
                None => Ok(()),
            }
        })
        .await?;
    Ok(())
}

async fn remove_logs_of(world: &World, app: &AppName) -> Result<(), Trouble> {
    let prefix = format!("{app}.v");
    let mut folder = tokio::fs::read_dir(world.folder("logs")).await?;
    while let Some(entry) = folder.next_entry().await? {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove_file(&entry.path()).await?;
        }
    }
    Ok(())
}

/// Removing twice is removing once.
pub(super) async fn remove_file(path: &Path) -> Result<(), Trouble> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
