//! The slow side of the loop: what events and leases could miss. Every subject is looked at again, processes and
//! folders that nobody's record names are taken away, and GitHub is asked for what its webhooks did not bring.

use super::apply::{Fresh, apply};
use super::deliver::{fresh_for, handle_of, pull_of, read_repository, with_message};
use super::observe::{self, label};
use super::{LINE_WAIT, Next, Trouble, World, act, addon_servers, addons, build, policy, prune, setup, split, touched};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::github::{GitHubError, RepoHandle};
use crate::platform::{self, ProcessStatus};
use crate::store::queue;
use crate::workflow::{Change, Snapshot, decide};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{info, warn};

/// A process started, ended or vanished: whose subject is it? The answer says when add-ons are to be looked at again.
pub(super) async fn process_changed(world: &World, change: platform::Change) -> Result<Option<Duration>, Trouble> {
    match change {
        platform::Change::Gap => slow_tick(world).await.map(|()| None),
        platform::Change::Changed(id) => {
            let all = world.platform.list().await?;
            let Some(status) = all.iter().find(|status| status.id == id) else { return Ok(None) };
            if let Some(key) = status.labels.get(label::BUILD) {
                let Some(build) = world.store.build(&BuildKey(key.clone()))? else { return Ok(None) };
                let now = world.now();
                world.store.transact(move |tx| build::wake_waiting(tx, &build, now)).await?;
                world.wake.notify_waiters();
                return Ok(None);
            }
            if let Some(key) = status.labels.get(label::SETUP) {
                setup::wake(world, key).await?;
                return Ok(None);
            }
            if status.labels.contains_key(label::ADDON) {
                return addons::process_changed(world, status).await;
            }
            if let Some(subject) = subject_of(status) {
                world.enqueue_subject(&subject).await?;
            }
            Ok(None)
        }
    }
}

fn subject_of(status: &ProcessStatus) -> Option<Subject> {
    if let Some(app) = status.labels.get(label::APP) {
        return app.parse().ok().map(Subject::App);
    }
    status.labels.get(label::RUN).and_then(|run| run.parse().ok()).map(|run| Subject::Run(RunNumber(run)))
}

/// Looks at everything: a converged subject costs a look and nothing else.
pub async fn slow_tick(world: &World) -> Result<(), Trouble> {
    look_around(world, None).await
}

/// Of so many slow ticks one looks at what is at rest: nothing of it runs, and what is wanted of it was reached. Whatever
/// happens to it is an event.
const RESTS: u64 = 20;

/// As `slow_tick`, the `count`-th: what is at rest has its turn, so that a thousand sleeping apps cost next to nothing.
pub(super) async fn tick_of(world: &World, count: u64) -> Result<(), Trouble> {
    // The first one is that of a start: anything may have happened before.
    look_around(world, (count > 0).then_some(count)).await
}

fn is_at_rest(app: &App) -> bool {
    let settled = app.newest().is_none_or(|deploy| deploy.outcome.is_some());
    let rests = app.wanted == Wanted::Running && app.asleep_since.is_some();
    settled && rests && app.open_one_offs().next().is_none()
}

async fn look_around(world: &World, count: Option<u64>) -> Result<(), Trouble> {
    let has_turn = |subject: &Subject| {
        count.is_none_or(|count| u64::from(crc32c::crc32c(subject.to_string().as_bytes())) % RESTS == count % RESTS)
    };
    // What waits for the router tries by itself; a change of rules or of access does not, nor does what is at rest.
    let routed = world.store.routes()?.last().cloned();
    if let Some((app, _)) = routed
        && let Ok(status) = world.router.status_of(&app).await
        && status.generation != world.store.generation()
    {
        world.table_is_stale.store(true, Ordering::Release);
    }
    if world.table_is_stale.load(Ordering::Acquire) {
        act::refresh_routes(world).await;
    }
    let (mut subjects, mut resting) = (Vec::new(), BTreeSet::new());
    for app in world.store.apps()? {
        let pull = app.pull().map(|pull| Subject::Pull(app.repository, pull));
        let rests = is_at_rest(&app);
        let subject = Subject::App(app.name);
        if rests {
            resting.extend(pull);
        } else {
            subjects.extend(pull);
        }
        if !rests || has_turn(&subject) {
            subjects.push(subject);
        }
    }
    for run in world.store.runs_where(|_| true)? {
        let reported = world.store.reported(&format!("check/{}", run.number))?;
        if run.verdict.is_none() || reported.is_none_or(|reported| reported.intent.is_some()) {
            subjects.extend(run.pull.map(|pull| Subject::Pull(run.repository, pull)));
            subjects.push(Subject::Run(run.number));
        }
    }
    for repository in world.store.repositories()? {
        for pull in world.store.pulls(repository.id)?.into_iter().filter(|pull| pull.open) {
            let subject = Subject::Pull(repository.id, pull.number);
            if !resting.contains(&subject) || has_turn(&subject) {
                subjects.push(subject);
            }
        }
    }
    let now = world.now();
    world
        .store
        .transact(move |tx| {
            for subject in &subjects {
                queue::enqueue_unless_parked(tx, &subject.to_string(), now)?;
            }
            Ok::<(), crate::store::StoreError>(())
        })
        .await?;
    world.wake.notify_waiters();
    keep_up(world).await
}

/// What is no subject's own. Of what can't be done the first trouble is told, and the rest is done all the same.
async fn keep_up(world: &World) -> Result<(), Trouble> {
    let done = [
        addons::look_after(world).await.map(|_| ()),
        policy::look(world).await,
        setup::end_unwanted(world).await,
        build::end_unwanted(world).await,
        sweep_processes(world).await,
        sweep_build_folders(world).await,
        close_leftover_nodes(world).await,
        prune::tidy_when_due(world).await,
    ];
    for trouble in done.iter().filter_map(|done| done.as_ref().err()).skip(1) {
        warn!("upkeep was left for the next time: {trouble}");
    }
    done.into_iter().collect()
}

async fn close_leftover_nodes(world: &World) -> Result<(), Trouble> {
    for who in split::leftover_folders(world)? {
        split::close(world, who).await?;
    }
    Ok(())
}

/// Processes whose record is gone: nobody will ever ask for them again.
async fn sweep_processes(world: &World) -> Result<(), Trouble> {
    for status in observe::list(world).await? {
        if has_owner(world, &status)? {
            continue;
        }
        warn!(process = %status.id, "{} belongs to nothing any more", status.id);
        if status.state.is_over() {
            act::discard(world, &status.id).await?;
        } else {
            act::stop(world, &status.id).await?;
        }
    }
    Ok(())
}

/// Folders of builds that are not going on.
async fn stale_build_folders(world: &World) -> Result<Vec<String>, Trouble> {
    let mut stale = Vec::new();
    for name in build::folders(world).await? {
        let key = name.split('.').nth(1).unwrap_or_default().to_owned();
        if name.starts_with("setup.") {
            if !setup::goes_on(world, &key, &name)? {
                stale.push(name);
            }
            continue;
        }
        let build = world.store.build(&BuildKey(key))?;
        let going_on = build.is_some_and(|build| build.process_at(BuildPhase::Pack) == name && build.state.has_place());
        if !going_on {
            stale.push(name);
        }
    }
    Ok(stale)
}

/// Builds that ended just before a crash leave their folder behind. A build that ends right now may be collected at
/// the same time; removing twice is removing once.
async fn sweep_build_folders(world: &World) -> Result<(), Trouble> {
    for name in stale_build_folders(world).await? {
        // One that can't be removed is no reason to leave the rest.
        if let Err(trouble) = build::remove_folder(&world.folder("builds").join(&name)).await {
            warn!("the folder {name} of a build could not be removed: {trouble}");
        }
    }
    Ok(())
}

fn has_owner(world: &World, status: &ProcessStatus) -> Result<bool, Trouble> {
    if let Some(key) = status.labels.get(label::BUILD) {
        let build = world.store.build(&BuildKey(key.clone()))?;
        return Ok(build.is_some_and(|build| build.process == status.id && build.state.has_place()));
    }
    if let Some(key) = status.labels.get(label::SETUP) {
        return setup::goes_on(world, key, status.id.as_str());
    }
    if let Some(name) = status.labels.get(label::ADDON) {
        return addon_servers::needs_server(world, name);
    }
    match subject_of(status) {
        Some(Subject::App(app)) => Ok(world.store.app(&app)?.is_some()),
        Some(Subject::Run(run)) => Ok(world.store.run(run)?.is_some()),
        _ => Ok(false),
    }
}

/// How many of the app's newest webhook deliveries are looked at for ones that did not arrive; four times as many
/// while the oldest of them did not.
const DELIVERIES_LOOKED_AT: usize = 200;
/// Of a server that was away for days.
const MOST_DELIVERIES_LOOKED_AT: usize = 12_800;
/// Deliveries that are asked for before GitHub is compared with again: each takes a second, as all writes do.
const ASKED_AT_ONCE: usize = 100;

/// When a delivery that did not arrive so many times is asked for again: at once, then a minute after the last time, then two,
/// four and so on up to an hour. What is never taken, for its size or its signature, would be asked for without end otherwise.
fn asked_again_after(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(60 << (more - 2).min(6)).min(Duration::from_secs(3600)),
    }
}

/// Asks GitHub to send again what did not arrive. It never does so by itself, and forgets deliveries after three days.
async fn ask_for_missed_deliveries(world: &World) -> Result<(), Trouble> {
    let github = |error: GitHubError| Trouble::github(&error, world.now());
    let mut most = DELIVERIES_LOOKED_AT;
    let newest = loop {
        let newest = world.github.hook_deliveries(most).await.map_err(github)?;
        let reaches_further = newest.len() == most && newest.last().is_some_and(|oldest| oldest.failed());
        if !reaches_further || most >= MOST_DELIVERIES_LOOKED_AT {
            break newest;
        }
        most *= 4;
    };
    let arrived: BTreeSet<&str> =
        newest.iter().filter(|delivery| !delivery.failed()).map(|delivery| delivery.guid.as_str()).collect();
    // The newest attempt of each stands first; the oldest delivery is asked for first.
    let mut failures: BTreeMap<&str, (u32, Option<Timestamp>)> = BTreeMap::new();
    for delivery in &newest {
        let (count, last) = failures.entry(&delivery.guid).or_default();
        *count += 1;
        *last = (*last).max(delivery.delivered_at);
    }
    let mut asked = 0;
    for delivery in newest.iter().rev() {
        let guid = delivery.guid.as_str();
        let Some((count, last)) = failures.remove(guid) else { continue };
        let is_early = last.is_some_and(|last| world.now() < last + asked_again_after(count));
        if is_early || arrived.contains(guid) || world.store.delivery(guid)?.is_some() {
            continue;
        }
        asked += 1;
        if asked > ASKED_AT_ONCE {
            break;
        }
        info!(delivery = guid, "asking GitHub to send delivery {guid} ({}) again", delivery.event);
        match world.github.redeliver(delivery.id).await {
            Ok(()) => {}
            // What it does not send again keeps nothing back that came after it.
            Err(error) if error.is_of_one_thing() => {
                warn!(delivery = guid, "GitHub does not send {guid} again: {error}")
            }
            Err(error) => return Err(github(error)),
        }
    }
    Ok(())
}

/// Asks GitHub for what its webhooks did not bring: every repository soon, and deliveries that failed now.
pub async fn resync(world: &World) -> Result<(), Trouble> {
    let repositories = world.store.repositories()?;
    let now = world.now();
    world
        .store
        .transact(move |tx| {
            for repository in repositories.iter().filter(|repository| repository.granted) {
                queue::enqueue_unless_backing_off(tx, &Subject::Repository(repository.id).to_string(), now)?;
            }
            Ok::<(), crate::store::StoreError>(())
        })
        .await?;
    world.wake.notify_waiters();
    if let Err(trouble) = ask_for_missed_deliveries(world).await {
        warn!("could not look for deliveries that did not arrive: {trouble}");
    }
    Ok(())
}

/// For how long GitHub may hide a repository before it counts as gone: its answers are not always in order.
const MISSING: Duration = Duration::from_secs(600);

/// Compares what GitHub says of a repository with what is known: what is open, and where the default branch stands;
/// decides on it as on an event.
pub(super) async fn repository(world: &World, id: RepositoryId) -> Result<Next, Trouble> {
    let Some(_alone) = world.locks.of_repository(id).await else { return Ok(Next::PutOff { after: LINE_WAIT }) };
    let Some(known) = world.store.repository(id)?.filter(|known| known.granted) else { return Ok(Next::Done) };
    match read_repository(world, known.installation, id).await {
        Ok(repository) => {
            compare(world, &repository).await?;
            // Where this takes long, the slow tick finds the repository busy again and again.
            policy::look_at(world, &repository).await?;
        }
        Err(Trouble::NoAccess) => missing(world, known).await?,
        Err(trouble) => return Err(trouble),
    }
    Ok(Next::Done)
}

async fn compare(world: &World, repository: &Repository) -> Result<(), Trouble> {
    let handle = handle_of(repository);
    let github = |error: &GitHubError| Trouble::github(error, world.now());
    let open = world.github.open_pulls(&handle).await.map_err(|error| github(&error))?;
    let mut events = Vec::new();
    for pull in &open {
        let pull = with_message(world, &handle, pull_of(repository.id, pull)).await?;
        events.push(Event::PullChanged { pull });
    }
    let open_numbers: BTreeSet<PullNumber> = open.iter().map(|pull| pull.number).collect();
    for known in world.store.pulls(repository.id)? {
        if known.open && !open_numbers.contains(&known.number) {
            events.extend(unlisted(world, &handle, &known).await?);
        }
    }
    // A staging app that never was, or was taken away, is made by the next push, not by looking.
    let apps = world.store.apps_of(repository.id)?;
    let staging: Vec<&App> =
        apps.iter().filter(|app| app.stage == Stage::Staging && app.wanted != Wanted::Gone).collect();
    if !staging.is_empty() {
        // The policy comes with the default branch, staging's commits perhaps with others.
        let policy = world.store.pipeline(repository.id)?.policy;
        let followed = staging.iter().filter_map(|app| policy.branch_of(app.key()).map(str::to_owned));
        let branches: BTreeSet<String> = followed.chain([repository.default_branch.clone()]).collect();
        for branch in branches {
            let head = world.github.branch_head(&handle, &branch).await;
            if let Some(commit) = head.map_err(|error| github(&error))? {
                events.push(Event::BranchPushed { branch, commit });
            }
        }
    }
    // A repository has a thousand open pull requests of which one has changed, or none: what decisions are made from is read
    // again only after one that changed it.
    let mut unchanged = None;
    for event in events {
        policy::read(world, repository, &event).await?;
        let (pull, untouched) = match &event {
            Event::PullChanged { pull } | Event::PullClosed { pull } => {
                (world.store.pull(repository.id, pull.number)?, BTreeSet::new())
            }
            Event::BranchPushed { branch, commit } => {
                unchanged = None;
                (None, touched::by_push(world, repository, branch, commit).await?)
            }
            _ => (None, BTreeSet::new()),
        };
        let snapshot = match unchanged.take() {
            Some(snapshot) => Snapshot { pull, untouched, ..snapshot },
            None => Snapshot { pull, untouched, ..observe::known_of(world, repository)? },
        };
        let changes = decide(&event, &snapshot);
        if changes.is_empty() {
            // Rules that were never read may be with the next event.
            unchanged = Some(snapshot).filter(|snapshot| snapshot.pipeline.read_at.is_some());
            continue;
        }
        for change in &changes {
            info!(repository = %repository.full_name(), "GitHub differs from what is known: {}", change.summary());
        }
        let (fresh, now, repository) = (fresh_for(world, &changes)?, world.now(), repository.clone());
        world.commit(move |tx| apply(tx, &repository, &changes, fresh, now)).await?;
    }
    world.wake.notify_waiters();
    Ok(())
}

/// What became of a pull request that GitHub does not list as open. The list alone closes nothing: it may be older than
/// the pull request, and what closes while its pages are read moves another one off them.
async fn unlisted(world: &World, handle: &RepoHandle, known: &Pull) -> Result<Option<Event>, Trouble> {
    let pull = match world.github.pull(handle, known.number).await {
        Ok(fresh) => with_message(world, handle, pull_of(handle.id, &fresh)).await?,
        // The others are not to wait for this one. That it is not found takes nothing away: answers are not always in order.
        Err(error) if error.is_of_one_thing() => {
            warn!("could not look at pull request {} of {}/{}: {error}", known.number, handle.owner, handle.name);
            return Ok(None);
        }
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    Ok(Some(if pull.open { Event::PullChanged { pull } } else { Event::PullClosed { pull } }))
}

/// GitHub does not show the repository. Nobody may have heard that the grant ended; then it ends a while later.
async fn missing(world: &World, known: Repository) -> Result<(), Trouble> {
    let now = world.now();
    let ended = known.missing_since.is_some_and(|since| now.since(since) >= MISSING);
    if !ended && known.missing_since.is_some() {
        return Ok(());
    }
    warn!(repository = %known.full_name(), "GitHub does not show the repository to the app");
    world
        .commit(move |tx| {
            if ended {
                return apply(tx, &known, &[Change::EndGrant], Fresh { app_ids: Vec::new() }, now);
            }
            tx.put_repository(&Repository { missing_since: Some(now), ..known })
        })
        .await?;
    if ended {
        act::refresh_routes(world).await;
    }
    Ok(())
}

/// Something that is there although nothing needs it, or that is needed and not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    pub kind: &'static str,
    pub name: String,
}

/// For `landfall doctor`: proves that nothing outlives its record.
pub async fn leftovers(world: &World) -> Result<Vec<Leftover>, Trouble> {
    let mut found = Vec::new();
    for status in observe::list(world).await? {
        // A server of our own that ends with its last database takes its time to write down what it has.
        let ends = status.labels.contains_key(label::ADDON)
            && matches!(status.state, platform::State::Stopping | platform::State::Exited { .. });
        if !ends && !has_owner(world, &status)? {
            found.push(Leftover { kind: "process", name: status.id.to_string() });
        }
    }
    let status = observe::router_status(world).await?;
    for app in status.apps.keys() {
        if world.store.route(app)?.is_none() {
            found.push(Leftover { kind: "route", name: app.to_string() });
        }
    }
    for name in stale_build_folders(world).await? {
        found.push(Leftover { kind: "build folder", name });
    }
    for who in split::leftover_folders(world)? {
        let name = format!("{}.{}.{}", who.run, who.node, who.attempt);
        found.push(Leftover { kind: "node folder", name });
    }
    for name in addons::strays(world).await? {
        found.push(Leftover { kind: "add-on", name });
    }
    for leftover in world.platform.leftovers().await? {
        found.push(Leftover { kind: "platform", name: format!("{} {}", leftover.kind, leftover.what) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_arrives_is_asked_for_ever_more_seldom() {
        let minutes: Vec<u64> = (0..12).map(|failures| asked_again_after(failures).as_secs() / 60).collect();
        assert_eq!(minutes, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }
}
