//! What is: processes from the platform, targets from the router, records from the store. Nothing here changes
//! anything.

use super::{Trouble, World};
use crate::domain::*;
use crate::platform::{self, Exit, ProcessStatus, State};
use crate::router;
use crate::workflow::{
    AddonsView, AppView, Claim, ProcessState, ProcessView, RunView, Snapshot, TargetView, Use, environment_of, share,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The labels by which a process is known again.
pub mod label {
    /// An app's process: its name.
    pub const APP: &str = "app";
    pub const RELEASE: &str = "release";
    pub const TYPE: &str = "type";
    pub const ORDINAL: &str = "ordinal";
    pub const ATTEMPT: &str = "attempt";
    /// How many times in a row it had crashed before this start.
    pub const CRASHES: &str = "crashes";
    /// The dyno size of a process of the formation.
    pub const SIZE: &str = "size";
    /// A test node's run.
    pub const RUN: &str = "run";
    /// A build's key.
    pub const BUILD: &str = "build";
    /// A preparation's key.
    pub const SETUP: &str = "setup";
    /// A server that Landfall runs for add-ons: `postgres`, or the id of the one add-on that it is.
    pub const ADDON: &str = "addon";
}

/// The app that a process runs for, if it is one of an app.
pub(super) fn app_of(status: &ProcessStatus) -> Option<AppName> {
    status.labels.get(label::APP).and_then(|app| app.parse().ok())
}

/// What every decision about a repository is made from. What concerns one event alone is for the caller to add.
pub(super) fn known_of(world: &World, repository: &Repository) -> Result<Snapshot, Trouble> {
    let runs = world.store.runs_of(repository.id)?;
    Ok(Snapshot { runs, ..without_history(world, repository)? })
}

/// What serves, and what was tested of it: all that a promotion is decided by. Of a long history little has to be read.
pub(super) fn serving_of(world: &World, repository: &Repository) -> Result<Snapshot, Trouble> {
    let mut snapshot = without_history(world, repository)?;
    for app in &snapshot.apps {
        let live = app.live.map(|number| world.store.release(&app.name, number)).transpose()?;
        snapshot.releases.extend(live.flatten());
    }
    let serves = |commit: &Sha| snapshot.releases.iter().any(|release| release.commit == *commit);
    for run in world.store.runs_where(|run| run.repository == repository.id && serves(&run.commit))? {
        snapshot.runs.extend(world.store.run(run.number)?);
    }
    Ok(snapshot)
}

/// Slugs of releases that cannot serve again, since their archives are not kept any more.
pub(super) fn gone(world: &World, releases: &[Release]) -> BTreeSet<SlugDigest> {
    let gone = releases.iter().filter(|release| !is_kept(world, release));
    gone.map(|release| release.slug.clone()).collect()
}

/// Whether the archive is there that a release would be served from again.
pub fn is_kept(world: &World, release: &Release) -> bool {
    super::build::archive(world, &release.slug).exists()
}

fn without_history(world: &World, repository: &Repository) -> Result<Snapshot, Trouble> {
    Ok(Snapshot {
        now: world.now(),
        repository: repository.clone(),
        pull: None,
        apps: world.store.apps_of(repository.id)?,
        releases: Vec::new(),
        gone: BTreeSet::new(),
        runs: Vec::new(),
        answered: Vec::new(),
        right: None,
        first_rights: BTreeMap::new(),
        pipeline: world.store.pipeline(repository.id)?,
        scale_limits: None,
        others: None,
        promotable: BTreeMap::new(),
        untouched: BTreeSet::new(),
    })
}

pub(super) async fn app(world: &World, name: &AppName) -> Result<Option<(App, AppView)>, Trouble> {
    let Some(app) = world.store.app(name)? else { return Ok(None) };
    let all = list(world).await?;
    let status = world.router.status_of(name).await?;
    let newest = app.newest();
    let (build, build_process_over) = match newest.and_then(|deploy| deploy.tree.as_ref()) {
        Some(tree) => build(world, app.repository, tree, &all)?,
        None => (None, false),
    };
    let gate = match newest.and_then(|deploy| deploy.gate) {
        Some(run) => world.store.run(run)?.and_then(|run| run.verdict),
        None => None,
    };
    let (others, others_asked) = Box::pin(super::checks::of_newest(world, &app, gate.as_ref())).await?;
    let slug_of = |release: &Option<Release>| match release {
        Some(release) => world.store.slug(&release.slug),
        None => Ok(None),
    };
    let scripts = |slug: Option<Slug>| {
        slug.filter(|_| app.pull().is_some())
            .map(|slug| slug.manifest().for_environment(Environment::Review).scripts)
            .unwrap_or_default()
    };
    let next = match newest.filter(|deploy| deploy.outcome.is_none()).and_then(|deploy| deploy.release) {
        Some(number) => world.store.release(name, number)?.map(|release| as_scaled(&app, release)),
        None => None,
    };
    let live = match app.live {
        Some(number) => world.store.release(name, number)?.map(|release| as_scaled(&app, release)),
        None => None,
    };
    let addons = AddonsView {
        wanted: wanted_addons(world, &app, build.as_ref())?,
        have: world.store.addons_of(&AddonOwner::of(&app))?,
    };
    let missing = missing(world, &app, build.as_ref())?;
    let postdeploy = scripts(slug_of(&next)?).postdeploy.is_some();
    let predestroy = app.wanted == Wanted::Gone && scripts(slug_of(&live)?).pr_predestroy.is_some();
    let stored = world.store.route(name)?;
    // A route counts only once the router has said that it took that table or a later one.
    let confirmed =
        stored.filter(|stored| status.generation == world.store.generation() && status.version >= stored.version);
    let mut web = BTreeMap::new();
    for release in next.iter().chain(&live) {
        let slug = world.store.slug(&release.slug)?;
        web.insert(release.number, slug.map(|slug| slug.settings().web).unwrap_or_default());
    }
    let web_of_live = live.as_ref().and_then(|live| web.get(&live.number));
    let sleep_after = web_of_live.and_then(|web| web.sleep_after(app.stage, world.config.sleep_after()));
    let view = AppView {
        now: world.now(),
        gate,
        others,
        others_asked,
        build,
        build_process_over,
        addons,
        missing,
        next,
        live,
        postdeploy,
        predestroy,
        web,
        sleep_after,
        used: status.apps.get(name).map(|seen| Use {
            last: seen.last_request.unwrap_or(status.started_at),
            busy: seen.in_flight > 0 || seen.held > 0,
            knocked: seen.knocked,
        }),
        processes: all
            .iter()
            .filter(|status| status.labels.get(label::APP).map(String::as_str) == Some(name.as_str()))
            .map(process_view)
            .collect(),
        route: confirmed.map(|stored| stored.route),
        targets: targets(&status),
        measured: super::watch::measured(world, &app).await?,
        boot_timeout: world.config.boot_timeout(),
        drain_limit: Duration::from_secs(world.config.apps.drain_seconds),
    };
    Ok(Some((app, view)))
}

/// What the code of the newest deploy asks for, once it is known.
pub(super) fn wanted_addons(world: &World, app: &App, build: Option<&Build>) -> Result<Vec<AddonRequest>, Trouble> {
    let slug = match (app.newest().map(|deploy| &deploy.cause), build.map(|build| &build.state)) {
        (Some(Cause::Promotion { slug, .. } | Cause::Config { slug, .. } | Cause::Retry { slug, .. }), _)
        | (Some(Cause::Push), Some(BuildState::Succeeded { slug, .. })) => slug,
        // An earlier release has the config of then, with what its add-ons gave.
        (Some(Cause::Rollback { .. } | Cause::Push) | None, _) => return Ok(Vec::new()),
    };
    let slug = world.store.slug(slug)?;
    Ok(slug.map(|slug| slug.manifest().for_environment(environment_of(app.stage)).addons).unwrap_or_default())
}

/// The release with as many processes as are wanted now: scaling makes no release.
fn as_scaled(app: &App, mut release: Release) -> Release {
    release.formation = app.formation_of(&release);
    release
}

/// What the newest deploy's release lacks, as far as its slug is known already.
fn missing(world: &World, app: &App, build: Option<&Build>) -> Result<Vec<String>, Trouble> {
    let Some(deploy) = app.newest().filter(|deploy| deploy.outcome.is_none() && deploy.release.is_none()) else {
        return Ok(Vec::new());
    };
    let digest = match (&deploy.cause, build.map(|build| &build.state)) {
        (Cause::Promotion { slug, .. } | Cause::Config { slug, .. } | Cause::Retry { slug, .. }, _)
        | (Cause::Push, Some(BuildState::Succeeded { slug, .. })) => slug,
        // A rollback has the config of then.
        (Cause::Rollback { .. } | Cause::Push, _) => return Ok(Vec::new()),
    };
    let Some(slug) = world.store.slug(digest)? else { return Ok(Vec::new()) };
    Ok(super::config::settled(world, app, &slug)?.missing)
}

pub(super) async fn run(world: &World, number: RunNumber) -> Result<Option<(TestRun, RunView)>, Trouble> {
    let Some(run) = world.store.run(number)? else { return Ok(None) };
    let all = list(world).await?;
    let (build, build_process_over) = match &run.tree {
        Some(tree) => build(world, run.repository, tree, &all)?,
        None => (None, false),
    };
    let slug = match build.as_ref().map(|build| &build.state) {
        Some(BuildState::Succeeded { slug, .. }) => world.store.slug(slug)?,
        _ => None,
    };
    let same_tree_passed = match &run.tree {
        Some(tree) => world
            .store
            // The same run asked for again by a person shall really run again.
            .runs_where(|other| {
                other.repository == run.repository
                    && other.tree.as_ref() == Some(tree)
                    && other.commit != run.commit
                    && other.verdict == Some(VerdictOutline::Passed)
                    && other.only_failed_of.is_none()
                    && other.repeats.is_none()
                    // A stranger's run had none of the test stage's config.
                    && (run.untrusted || !other.untrusted)
            })?
            .first()
            .map(|other| other.number),
        None => None,
    };
    let preparation = match &run.setup {
        Setup::Making { key } => world.store.preparation(key)?.map(|known| {
            let process = all.iter().find(|status| status.id == known.process());
            (known, process.map(|status| status.state.is_over()))
        }),
        _ => None,
    };
    let own = number.to_string();
    let board = match run.started_at.is_some() && run.verdict.is_none() {
        true => super::split::view(world, number).await?,
        false => None,
    };
    let (split, queue) = if run.split.is_some() { (board, None) } else { (None, board) };
    let view = RunView {
        now: world.now(),
        build,
        build_process_over,
        slug,
        preparation,
        same_tree_passed,
        processes: all.iter().filter(|status| status.labels.get(label::RUN) == Some(&own)).map(process_view).collect(),
        addons: world.store.addons_of_run(number)?,
        free_slots: free_slots(world, number, &all)?,
        split,
        queue,
    };
    Ok(Some((run, view)))
}

/// How many nodes the run may start now, beside all others that want to.
fn free_slots(world: &World, run: RunNumber, all: &[ProcessStatus]) -> Result<usize, Trouble> {
    let busy = |status: &&ProcessStatus| {
        let labels = &status.labels;
        (labels.contains_key(label::RUN) || labels.contains_key(label::SETUP)) && !status.state.is_over()
    };
    let running = |run: RunNumber| {
        let own = run.to_string();
        all.iter().filter(busy).filter(|status| status.labels.get(label::RUN) == Some(&own)).count()
    };
    let free = world.config.tests.slots.saturating_sub(all.iter().filter(busy).count());
    if free == 0 {
        return Ok(0);
    }
    let going_on = world.store.runs_going_on()?;
    let mut claims = Vec::new();
    // What is prepared needs one slot, however many wait for it.
    let mut prepared: BTreeSet<&str> =
        all.iter().filter(busy).filter_map(|status| status.labels.get(label::SETUP)).map(String::as_str).collect();
    for run in going_on.iter().filter(|run| run.cancelled.is_none()) {
        let running = running(run.number);
        let wanted = match &run.setup {
            _ if run.started_at.is_some() => {
                usize::from(run.nodes).saturating_sub(run.results.len()).saturating_sub(running)
            }
            Setup::Making { key } => usize::from(prepared.insert(&key.0)),
            _ => continue,
        };
        let first = run.pull.is_none() && run.repeats.is_none();
        claims.push(Claim { run: run.number, repository: run.repository, first, running, wanted });
    }
    Ok(share(free, &claims, run))
}

/// The build of a tree, and whether its process is over. A build whose process never came to be is none.
fn build(
    world: &World,
    repository: RepositoryId,
    tree: &Sha,
    all: &[ProcessStatus],
) -> Result<(Option<Build>, bool), Trouble> {
    let Some(key) = world.store.build_of_tree(repository, tree)? else { return Ok((None, false)) };
    let Some(build) = world.store.build(&key)? else { return Ok((None, false)) };
    let process = all.iter().find(|status| status.id == build.process);
    match (&build.state, process) {
        (BuildState::Running, None) => Ok((None, false)),
        // Its bytes are gone: build them again.
        (BuildState::Succeeded { slug, .. }, _) if !super::build::archive(world, slug).exists() => Ok((None, false)),
        (_, process) => Ok((Some(build), process.is_some_and(|status| status.state.is_over()))),
    }
}

pub(super) async fn list(world: &World) -> Result<Vec<ProcessStatus>, Trouble> {
    Ok(world.platform.list().await?)
}

pub(super) async fn router_status(world: &World) -> Result<router::Status, Trouble> {
    Ok(world.router.status().await?)
}

pub fn process_view(status: &ProcessStatus) -> ProcessView {
    let text = |name: &str| status.labels.get(name).cloned().unwrap_or_default();
    ProcessView {
        id: status.id.clone(),
        release: text(label::RELEASE).parse().ok(),
        kind: text(label::TYPE),
        ordinal: text(label::ORDINAL).parse().unwrap_or(0),
        attempt: text(label::ATTEMPT).parse().unwrap_or(1),
        // What was started before there was this label counted its attempts.
        crashes: text(label::CRASHES)
            .parse()
            .unwrap_or_else(|_| text(label::ATTEMPT).parse::<u32>().unwrap_or(1).saturating_sub(1)),
        size: status.labels.get(label::SIZE).cloned(),
        state: match &status.state {
            State::Starting => ProcessState::Starting,
            State::Running { since } => ProcessState::Running { since: *since },
            State::Stopping => ProcessState::Stopping { started_at: status.started_at },
            State::Exited { code, signal, why, at } => {
                ProcessState::Exited { ended: ended(*code, *signal, why), started_at: status.started_at, at: *at }
            }
        },
    }
}

pub fn ended(code: Option<i32>, signal: Option<i32>, why: &Exit) -> Ended {
    match why {
        Exit::OutOfMemory => Ended::OutOfMemory,
        Exit::TimeLimit => Ended::TimeLimit,
        Exit::OutputLimit => Ended::OutputLimit,
        Exit::DiskLimit => Ended::DiskLimit,
        Exit::SupervisorLost => Ended::Lost,
        Exit::CouldNotStart(detail) => Ended::CouldNotStart { detail: detail.clone() },
        Exit::Finished | Exit::Killed => match (code, signal) {
            (Some(code), _) if code > 128 && *why == Exit::Killed => Ended::Signalled { signal: code - 128 },
            (Some(code), _) => Ended::Exited { code },
            (None, Some(signal)) => Ended::Signalled { signal },
            (None, None) => Ended::Signalled { signal: 9 },
        },
    }
}

fn targets(status: &router::Status) -> BTreeMap<ProcessId, TargetView> {
    status
        .targets
        .iter()
        .map(|(process, target)| {
            let view = TargetView {
                state: match target.state {
                    router::TargetState::Warming => TargetState::Warming,
                    router::TargetState::Active => TargetState::Active,
                    router::TargetState::Draining => TargetState::Draining,
                },
                healthy: target.healthy,
                seen: target.last_check.clone().unwrap_or_default(),
                in_flight: target.in_flight,
            };
            (process.clone(), view)
        })
        .collect()
}

/// The last lines that a process printed, without its colours, and without what people who read reports must not see of its
/// release's config.
pub(super) async fn tail(world: &World, process: &ProcessId, lines: usize) -> Result<Vec<String>, Trouble> {
    let all = all_lines(world, process).await?;
    let printed: Vec<String> = all.into_iter().map(|line| line.text).filter(|text| !text.trim().is_empty()).collect();
    let start = printed.len().saturating_sub(lines);
    let status = list(world).await?.into_iter().find(|status| status.id == *process);
    let secrets = status.map(|status| secrets_of(world, &status)).transpose()?.flatten();
    let plain: Vec<String> = printed[start..].iter().map(|text| shown(text, secrets.as_ref())).collect();
    Ok(super::act::last_lines(&plain))
}

/// A line as reports show it. Secrets go first: of one that is cut off in the middle the beginning would stay.
pub(super) fn shown(text: &str, secrets: Option<&Mask>) -> String {
    let open = secrets.map_or(Cow::Borrowed(text), |secrets| Cow::Owned(secrets.text(text)));
    crate::text::plain(&open, 500)
}

/// What no report shows of what a process of a release prints: the values of its config vars, but for those that stand in
/// the release's own code.
pub(super) fn secrets_of(world: &World, status: &ProcessStatus) -> Result<Option<Mask>, Trouble> {
    let text = |name: &str| status.labels.get(name).map(String::as_str).unwrap_or_default();
    let (Ok(app), Ok(number)) = (text(label::APP).parse(), text(label::RELEASE).parse()) else { return Ok(None) };
    let Some(release) = world.store.release(&app, number)? else { return Ok(None) };
    let mut in_code = BTreeSet::new();
    if let (Some(app), Some(slug)) = (world.store.app(&app)?, world.store.slug(&release.slug)?) {
        let declared = slug.manifest().for_environment(environment_of(app.stage)).env.into_iter();
        in_code.extend(declared.filter_map(|(name, declared)| Some((name, declared.value?))));
        in_code.extend(slug.config_vars);
    }
    let config = super::start::config_of(world, &release)?.into_iter();
    let secret: Vec<String> = config.filter(|var| !in_code.contains(var)).map(|(_, value)| value).collect();
    Ok(Mask::of(secret.iter().map(String::as_str)))
}

/// Everything that is kept of a process' log, at most the first 20,000 and the last 80,000 lines.
pub(super) async fn all_lines(world: &World, process: &ProcessId) -> Result<Vec<platform::LogLine>, Trouble> {
    Ok(numbered_lines(world, process).await?.into_iter().map(|(_, line)| line).collect())
}

const FIRST_LINES: usize = 20_000;
const LAST_LINES: usize = 80_000;

/// As `all_lines`, each with its number among all that the process has printed, from 0.
pub(super) async fn numbered_lines(
    world: &World,
    process: &ProcessId,
) -> Result<Vec<(u64, platform::LogLine)>, Trouble> {
    let mut lines = Vec::new();
    let mut cursor = platform::LogCursor::default();
    loop {
        let page = match world.platform.logs(process, cursor, 5_000).await {
            Ok(page) => page,
            Err(platform::PlatformError::Unknown(_)) => break,
            Err(error) => return Err(error.into()),
        };
        let empty = page.lines.is_empty();
        let first = page.next.line.saturating_sub(page.lines.len() as u64);
        lines.extend((first..).zip(page.lines));
        if lines.len() > FIRST_LINES + LAST_LINES {
            lines.drain(FIRST_LINES..lines.len() - LAST_LINES);
        }
        cursor = page.next;
        if empty {
            break;
        }
    }
    Ok(lines)
}
