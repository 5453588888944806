//! The loop that makes what is wanted true.
//!
//! `step()` claims the next entry of the queue, under a lease, and works on it: a delivery is read and turned into
//! wishes, a subject is observed, planned, acted on and reported. `run()` is a thin shell around it. Everything here
//! may be cut off at any moment and is found again: what was not finished is still in the queue, every effect is
//! either repeatable or written down before it is begun.

pub mod access;
mod act;
mod addon_copy;
mod addon_servers;
mod addons;
pub mod alerts;
mod answer;
mod apply;
mod build;
mod checks;
pub mod command;
pub mod config;
mod deliver;
pub mod domains;
pub mod drains;
mod expire;
mod figures;
mod image;
mod inputs;
mod kept;
pub mod login;
mod monitor;
mod observe;
pub mod processes;
mod prune;
mod policy;
mod publish;
mod publish_pull;
mod setup;
mod shipment;
pub mod split;
mod start;
mod sweep;
mod touched;
mod trouble;
mod watch;

pub use act::{refresh_routes, send_routes};
pub use addons::{AddonLine, addon_lines};
pub use apply::{apply, enqueue};
pub use expire::{Expired, expire};
pub use figures::{export_once, gather};
pub use kept::{log_file, read as read_kept};
pub use monitor::{Monitor, keep as keep_numbers};
pub use observe::{ended, is_kept, label};
pub use prune::{KEPT_RELEASES, tidy};
pub use shipment::{Contents, contents};
pub use sweep::{Leftover, leftovers, resync, slow_tick};
pub use trouble::Trouble;

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::*;
use crate::github::GitHub;
use crate::outside::{self, Outside};
use crate::platform::Platform;
use crate::router::Router;
use crate::slug::Source;
use crate::store::{Health, Store, StoreError, Transaction, queue};
use crate::text::Texts;
use crate::vault::Vault;
use crate::workflow::Action;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tracing::{error, warn};

/// How long a claim holds if its holder says nothing more. A claim of an earlier start of the server is void at once.
const LEASE: Duration = Duration::from_secs(3600);
/// Once in so many slow ticks, which is an hour, what is old is let go.
const PRUNE_EVERY: u64 = 120;
/// How long one question for knocks stays open.
const KNOCK_WAIT: Duration = Duration::from_secs(10);
/// A delivery that failed this often waits for a person.
const DELIVERY_ATTEMPTS: u32 = 20;
/// What finds no line to GitHub free asks again after so long.
const LINE_WAIT: Duration = Duration::from_millis(250);
/// For how long GitHub may be told of a subject whatever comes meanwhile, and of one that is looked at again and again.
const TELLING: Duration = Duration::from_secs(3);
const TELLING_MEANWHILE: Duration = Duration::from_secs(1);
/// After how long nothing comes of a call any more that was broken off: GitHub ends what takes longer than 10 s.
const AT_WORK: Duration = Duration::from_secs(15);
/// After how long a store that took no write is asked again.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// All that the loop works with.
pub struct World {
    pub config: Config,
    pub clock: Clock,
    pub store: Store,
    /// `None` where neither an app nor a token is configured: then nothing is read from or told to GitHub.
    pub github: GitHub,
    pub platform: Platform,
    pub router: Router,
    pub source: Source,
    pub vault: Vault,
    pub texts: Texts,
    /// Asks providers of add-ons.
    pub http: reqwest::Client,
    /// The materialised buildpacks, and a digest of their content.
    pub buildpacks: PathBuf,
    /// The port of the router that visitors use.
    pub router_port: u16,
    /// Woken when there may be work.
    pub wake: Arc<Notify>,
    /// Set in the crash test only.
    pub outside: Option<Arc<Outside>>,
    /// This program, which runs inside test processes as well.
    pub executable: PathBuf,
    pub boards: split::Boards,
    /// What is counted of processes.
    pub meters: Arc<crate::meters::Meters>,
    pub started_at: Timestamp,
    /// Sends log lines away.
    pub drains: crate::drains::Drains,
    /// One build of a repository is prepared at a time, one table is sent at a time.
    pub locks: Locks,
    /// The router may have another table than the store says: it did not take the newest.
    pub table_is_stale: AtomicBool,
    pub lines: Lines,
}

/// How many entries of the queue may be waiting for GitHub at once, each way. Together they are fewer than the workers, so
/// that boots, switches and drains go on while GitHub is slow; and what comes in does not wait behind what goes out.
pub struct Lines {
    /// Deliveries and comparisons, which read.
    incoming: Semaphore,
    /// Reports, which write.
    outgoing: Semaphore,
    /// Subjects whose report was broken off, and until when GitHub may still be at it.
    broken_off: Mutex<HashMap<Subject, Timestamp>>,
}

impl Lines {
    pub fn new(incoming: usize, outgoing: usize) -> Lines {
        let (incoming, outgoing) = (Semaphore::new(incoming), Semaphore::new(outgoing));
        Lines { incoming, outgoing, broken_off: Mutex::default() }
    }

    /// A line to report a subject over, if one is free and GitHub is not at work on its last report.
    fn to_report(&self, subject: &Subject, now: Timestamp) -> Option<SemaphorePermit<'_>> {
        let mut broken_off = self.broken_off.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        broken_off.retain(|_, until| *until > now);
        if broken_off.contains_key(subject) { None } else { self.outgoing.try_acquire().ok() }
    }

    fn break_off(&self, subject: &Subject, now: Timestamp) {
        let mut broken_off = self.broken_off.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        broken_off.insert(subject.clone(), now + AT_WORK);
    }
}

/// Named locks.
#[derive(Default)]
pub struct Locks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Locks {
    pub async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// As `lock`, if it comes soon. One at most waits for it: who has a line to GitHub shall not hold it for others to wait.
    async fn lock_soon(&self, name: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        /// The list of names, who has it, and who asks here.
        const WAITED_FOR: usize = 3;
        let lock = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(name).cloned();
        if lock.is_some_and(|lock| Arc::strong_count(&lock) > WAITED_FOR) {
            return None;
        }
        tokio::time::timeout(LINE_WAIT, self.lock(name)).await.ok()
    }

    async fn of_repository(&self, id: RepositoryId) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.lock_soon(&format!("repository {id}")).await
    }
}

impl World {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A transaction, durable when this returns. What it says counts as told to the outside from then on.
    pub async fn commit<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        outside::point("journal").await;
        self.store.transact(work).await
    }

    /// The folder of something that belongs to Landfall: `builds`, `cache`, `logs`, `archives`.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.config.data_dir.join(name)
    }

    pub fn app_url(&self, app: &AppName) -> String {
        self.config.app_url(app.as_str(), self.router_port)
    }

    /// Looks at a subject again, soon.
    pub async fn enqueue_subject(&self, subject: &Subject) -> Result<(), StoreError> {
        let (key, now) = (subject.to_string(), self.now());
        self.store.transact(move |tx| queue::enqueue(tx, &key, now)).await?;
        self.wake.notify_waiters();
        Ok(())
    }
}

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Worked {
        key: String,
    },
    /// Nothing is due; the next entry is, at that time.
    Idle {
        next: Option<Timestamp>,
    },
}

/// What follows for the queue entry.
enum Next {
    Done,
    Again {
        after: Duration,
    },
    /// The rest of it is put off, and the attempts so far count on.
    PutOff {
        after: Duration,
    },
}

/// Claims one entry and works on it.
pub async fn step(world: &World) -> Result<Step, StoreError> {
    outside::watched(world.outside.clone(), step_inside(world)).await
}

async fn step_inside(world: &World) -> Result<Step, StoreError> {
    let now = world.now();
    // A look without a transaction first, so that an idle server writes nothing.
    match queue::next_due(&world.store)? {
        Some(due) if due <= now => {}
        next => return Ok(Step::Idle { next }),
    }
    let generation = world.store.generation();
    let claimed = world.store.transact(move |tx| queue::claim(tx, now, LEASE, generation)).await?;
    let Some(entry) = claimed else {
        return Ok(Step::Idle { next: queue::next_due(&world.store)?.filter(|due| *due > now) });
    };
    let key = entry.key.clone();
    let Some(token) = entry.lease.as_ref().map(|lease| lease.token) else {
        return Ok(Step::Worked { key });
    };
    let result = match key.split_once(':') {
        Some(("delivery", id)) => match world.lines.incoming.try_acquire() {
            Ok(_line) => Box::pin(deliver::process(world, id, entry.attempts)).await,
            Err(_) => Ok(Next::PutOff { after: LINE_WAIT }),
        },
        Some(("alert", app)) => alerts::post(world, app, entry.attempts).await,
        _ => match key.parse::<Subject>() {
            Ok(subject) => Box::pin(reconcile(world, &subject)).await,
            Err(error) => Err(Trouble::bug(error)),
        },
    };
    // Nobody else gets the entry while its lease lasts, so what came of it is written down as soon as the disk takes it.
    while let Err(error) = settle(world, key.clone(), token, entry.attempts, &result).await {
        if !error.is_unavailable() || matches!(world.store.health(), Health::Poisoned { .. }) {
            return Err(error);
        }
        error!(%key, "what came of it can not be written down yet: {error}");
        tokio::time::sleep(STORE_WAIT).await;
    }
    Ok(Step::Worked { key })
}

async fn settle(
    world: &World,
    key: String,
    token: u64,
    attempts: u32,
    result: &Result<Next, Trouble>,
) -> Result<(), StoreError> {
    let now = world.now();
    match result {
        Ok(Next::Done) => {
            world
                .store
                .transact(move |tx| {
                    queue::complete(tx, &key, token, now)?;
                    Ok::<(), StoreError>(())
                })
                .await?;
        }
        Ok(Next::Again { after }) => {
            let after = *after;
            world
                .store
                .transact(move |tx| {
                    queue::complete(tx, &key, token, now)?;
                    queue::enqueue(tx, &key, now + after)
                })
                .await?;
        }
        Ok(Next::PutOff { after }) => {
            let after = *after;
            world
                .store
                .transact(move |tx| {
                    queue::put_off(tx, &key, token, now + after)?;
                    Ok::<(), StoreError>(())
                })
                .await?;
        }
        Err(Trouble::Retry { after, why }) if !is_last(&key, attempts) => {
            let wait = after.unwrap_or_else(|| backoff(&key, attempts));
            warn!(%key, attempts, wait_ms = wait.as_millis(), "will try again: {why}");
            if let Some(id) = key.strip_prefix("delivery:") {
                deliver::note_retry(world, id, why.clone(), attempts + 1).await?;
            }
            world
                .store
                .transact(move |tx| {
                    queue::retry(tx, &key, token, now + wait)?;
                    Ok::<(), StoreError>(())
                })
                .await?;
        }
        // Nothing can be read from or told to GitHub there, and nobody is to be bothered with it. What is wanted stays
        // wanted: the slow tick looks again.
        Err(Trouble::NoAccess) => {
            warn!(%key, "the app is not installed there");
            world.store.transact(move |tx| queue::complete(tx, &key, token, now)).await?;
        }
        Err(trouble) => {
            let reason = trouble.to_string();
            error!(%key, attempts, "parked: {reason}");
            if let Some(id) = key.strip_prefix("delivery:") {
                deliver::note_parked(world, id, reason.clone(), attempts + 1).await?;
            }
            world
                .store
                .transact(move |tx| {
                    queue::park(tx, &key, token, &reason)?;
                    Ok::<(), StoreError>(())
                })
                .await?;
        }
    }
    Ok(())
}

/// Deliveries give up after a while; subjects never do, since they are what is true.
fn is_last(key: &str, attempts: u32) -> bool {
    key.starts_with("delivery:") && attempts + 1 >= DELIVERY_ATTEMPTS
}

/// 0.5 s, 1 s, 2 s … 5 min, each shortened by up to a half, so that what failed together does not return together.
fn backoff(key: &str, attempts: u32) -> Duration {
    let full = Duration::from_millis(500 << attempts.min(10)).min(Duration::from_secs(300));
    let jitter = crc32c::crc32c(format!("{key} {attempts}").as_bytes()) % 1000;
    full - full * jitter / 2000
}

/// Observe, plan, act, report.
async fn reconcile(world: &World, subject: &Subject) -> Result<Next, Trouble> {
    let (plan, forget) = match subject {
        Subject::App(name) => {
            let Some((app, view)) = observe::app(world, name).await? else { return Ok(Next::Done) };
            let plan = crate::workflow::plan_app(&app, &view);
            act::app(world, &app, &plan.actions).await?;
            let forget = plan.actions.contains(&Action::Forget);
            (plan, forget.then_some(app))
        }
        Subject::Run(number) => {
            let Some((run, view)) = observe::run(world, *number).await? else { return Ok(Next::Done) };
            let plan = crate::workflow::plan_run(&run, &view);
            act::run(world, &run, &plan.actions).await?;
            (plan, None)
        }
        Subject::Pull(..) => (crate::workflow::Plan::default(), None),
        Subject::Repository(id) => {
            let Ok(_line) = world.lines.incoming.try_acquire() else {
                return Ok(Next::PutOff { after: LINE_WAIT });
            };
            return Box::pin(sweep::repository(world, *id)).await;
        }
    };
    let Some(line) = world.lines.to_report(subject, world.now()) else {
        let after = match plan.again_in {
            Some(after) => after.min(LINE_WAIT),
            None if plan.actions.is_empty() || forget.is_some() => LINE_WAIT,
            None => Duration::ZERO,
        };
        return Ok(Next::PutOff { after });
    };
    let Some(published) = tell(world, subject, plan.again_in).await else {
        return Ok(Next::Again { after: plan.again_in.unwrap_or_default() });
    };
    drop(line);
    if let (Err(Trouble::Retry { .. }), Some(again)) = (&published, plan.again_in) {
        // What GitHub could not be told yet is told at a later look; boots and drains do not wait for it.
        warn!(%subject, "GitHub could not be told yet");
        return Ok(Next::Again { after: again.max(Duration::from_millis(500)) });
    }
    published?;
    if let Some(app) = forget {
        act::forget(world, &app).await?;
        return Ok(Next::Done);
    }
    // What was done may have made the next thing possible; a converged subject has done nothing.
    match plan.again_in {
        Some(after) => Ok(Next::Again { after }),
        None if plan.actions.is_empty() => Ok(Next::Done),
        None => Ok(Next::Again { after: Duration::ZERO }),
    }
}

/// Tells GitHub of a subject. If that takes long, it is broken off as soon as there is news of the subject, or it is to be
/// looked at again: boots, switches and drains do not wait for GitHub. As after a kill, what was under way is looked for
/// before it is told once more.
async fn tell(world: &World, subject: &Subject, again_in: Option<Duration>) -> Option<Result<(), Trouble>> {
    let mut telling = std::pin::pin!(publish::subject(world, subject));
    let at_least = if again_in.is_some() { TELLING_MEANWHILE } else { TELLING };
    if let Ok(told) = tokio::time::timeout(at_least, &mut telling).await {
        return Some(told);
    }
    tokio::select! {
        told = &mut telling => return Some(told),
        () = news_of(world, subject) => {}
        () = tokio::time::sleep(again_in.unwrap_or_default()), if again_in.is_some() => {}
    }
    warn!(%subject, "GitHub takes its time, and is told later");
    world.lines.break_off(subject, world.now());
    None
}

/// Comes back once somebody wants a look at the subject that is being worked on.
async fn news_of(world: &World, subject: &Subject) {
    loop {
        let woken = world.wake.notified();
        if queue::entry(&world.store, &subject.to_string()).is_ok_and(|entry| entry.is_some_and(|entry| entry.dirty)) {
            return;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), woken).await;
    }
}

/// Works for ever on `workers` entries at a time.
pub async fn run(world: Arc<World>, workers: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(world.clone()));
    }
    tasks.spawn(follow_platform(world.clone()));
    tasks.spawn(split::listen(world.clone()));
    tasks.spawn(follow_knocks(world.clone()));
    tasks.spawn(monitor::run(world.clone()));
    tasks.spawn(drains::run(world.clone()));
    tasks.spawn(figures::export(world.clone()));
    tasks.spawn(tick(world));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            error!("a worker ended: {error}");
        }
    }
}

async fn work(world: Arc<World>) {
    loop {
        let woken = world.wake.notified();
        match step(&world).await {
            Ok(Step::Worked { .. }) => {}
            Ok(Step::Idle { next }) => {
                let now = world.now();
                let wait = next.map_or(Duration::from_secs(1), |next| next.since(now));
                let wait = wait.clamp(Duration::from_millis(5), Duration::from_secs(1));
                let _ = tokio::time::timeout(wait, woken).await;
            }
            Err(error) => {
                error!("the store does not answer: {error}");
                tokio::time::sleep(STORE_WAIT).await;
            }
        }
    }
}

/// Turns what happens to processes into subjects to look at.
async fn follow_platform(world: Arc<World>) {
    let mut changes = world.platform.watch();
    // A server of our own that ended soon after its start is not started again at once.
    let mut look_after: Option<Duration> = None;
    loop {
        let again = async {
            match look_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let change = tokio::select! {
            change = changes.next() => change,
            () = again => {
                look_after = None;
                if let Err(error) = addons::look_after(&world).await {
                    warn!("add-ons could not be looked after: {error}");
                }
                continue;
            }
        };
        // A gap says nothing about what runs: it is looked at like a change of everything.
        let Some(change) = change else { return };
        match sweep::process_changed(&world, change).await {
            Ok(again) => look_after = again.or(look_after),
            Err(error) => warn!("a process changed, and its subject could not be queued: {error}"),
        }
    }
}

/// Turns knocks at the doors of sleeping apps into subjects to look at.
async fn follow_knocks(world: Arc<World>) {
    let mut after = 0;
    loop {
        match world.router.knocks(after, KNOCK_WAIT).await {
            Ok((last, apps)) => {
                for app in apps {
                    if let Err(error) = world.enqueue_subject(&Subject::App(app)).await {
                        warn!("somebody knocked, and the app could not be queued: {error}");
                    }
                }
                after = last;
            }
            // Whoever starts the router sees to that.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// The slow tick over all subjects: events are for speed, this is for truth.
async fn tick(world: Arc<World>) {
    for count in 0_u64.. {
        if let Err(error) = sweep::tick_of(&world, count).await {
            warn!("the slow tick failed: {error}");
        }
        if count % PRUNE_EVERY == 0
            && let Err(error) = expire(&world).await
        {
            warn!("what is old could not be let go: {error}");
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Secret;
    use crate::platform::Memory;
    use crate::server::{Parts, open_world};
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn what_came_of_an_entry_is_written_down_once_the_disk_takes_it_again() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        config.github.token = Some(Secret::new("token"));
        let clock = Clock::manual(Timestamp(1_700_000_000_000));
        let platform = Platform::Memory(Memory::new(clock.clone()));
        let parts = Parts { clock, platform, router: Router::memory().0, router_port: 8000, outside: None };
        let mut world = open_world(config, parts).unwrap();
        let (store, fill) = Store::open_on_a_disk_that_fills(other.path());
        world.store = store;
        world.enqueue_subject(&Subject::Run(RunNumber(7))).await.unwrap();
        // The claim is still written.
        fill(1);
        assert_eq!(step(&world).await.unwrap(), Step::Worked { key: "run:7".to_owned() });
        assert_eq!(queue::depth(&world.store).unwrap(), queue::Depth::default());
        assert_eq!(world.store.health(), Health::Ready);
    }

    #[tokio::test]
    async fn a_report_that_was_broken_off_is_left_alone_for_as_long_as_github_may_be_at_it() {
        let lines = Lines::new(1, 2);
        let (first, other) = (Subject::Run(RunNumber(1)), Subject::Run(RunNumber(2)));
        let now = Timestamp(1_700_000_000_000);
        drop(lines.to_report(&first, now).unwrap());
        lines.break_off(&first, now);
        assert!(lines.to_report(&first, now + Duration::from_secs(14)).is_none());
        assert!(lines.to_report(&other, now).is_some());
        assert!(lines.to_report(&first, now + AT_WORK).is_some());
    }

    #[tokio::test]
    async fn one_waits_for_a_busy_repository_and_not_for_long() {
        let locks = Locks::default();
        let busy = locks.of_repository(RepositoryId(1)).await.unwrap();
        let mut waits = std::pin::pin!(locks.of_repository(RepositoryId(1)));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(locks.of_repository(RepositoryId(1)).await.is_none());
        assert!(locks.of_repository(RepositoryId(2)).await.is_some());
        drop(busy);
        assert!(waits.await.is_some());
        let _busy = locks.of_repository(RepositoryId(1)).await.unwrap();
        assert!(locks.of_repository(RepositoryId(1)).await.is_none(), "it comes back without");
    }
}
