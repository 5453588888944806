//! The table in use: apps by host, targets with their gates, and the one swap that makes a new table hold.
//!
//! The rule: a request enters a target through its gate, and a gate that is shut lets nobody in. So once a draining
//! target shows no request in flight, none can come any more, however old the table is that a request looked it up
//! in. A request that finds a gate shut looks again in the new table.

use super::RouterOptions;
use super::access::Access;
use super::dial::{Connections, DialError};
use super::keep;
use super::knocks::Knocks;
use super::link::{Idle, Link};
use super::metrics::{AppMetrics, Kept};
use super::table::{self, Canary, Notice, Route, Table, TableError, Target, TargetState};
use super::ticks::{Ticks, milliseconds};
use crate::domain::{AppName, ProcessId};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const OPEN: u64 = 1 << 63;
const COUNT: u64 = OPEN - 1;

/// What the health check saw of a target.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    pub healthy: bool,
    pub checks: u64,
    pub last_check: Option<String>,
    /// The requests that warm it up were made.
    pub warm: bool,
}

/// One process, for as long as a table names it or a request is on it.
pub(super) struct LiveTarget {
    pub app: AppName,
    pub process: ProcessId,
    pub name: String,
    pub release: String,
    /// What its numbers are found by: release and name.
    pub label: String,
    pub socket: PathBuf,
    /// Unique in this router's life.
    pub number: u64,
    pub requests: AtomicU64,
    pub connections: Arc<Connections>,
    pub health: Mutex<Health>,
    /// Told when a request could not get through.
    pub failure: tokio::sync::Notify,
    /// Asked every so often while it serves.
    checked_every: bool,
    /// Others are preferred until a health check goes well.
    down: AtomicBool,
    idle: Idle,
    /// The highest bit is set while the gate is open; the others count the requests inside.
    gate: AtomicU64,
    /// Until when others are preferred, in milliseconds since the start, after a connection failed.
    avoided_until: AtomicU64,
}

/// A request inside a target; dropping it lets the request out.
pub(super) struct InFlight(pub Arc<LiveTarget>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.0.gate.fetch_sub(1, Ordering::AcqRel);
        if before == 1 {
            self.0.close();
        }
    }
}

impl LiveTarget {
    fn new(app: &AppName, target: &Target, number: u64) -> LiveTarget {
        LiveTarget {
            app: app.clone(),
            process: target.process.clone(),
            name: target.name.clone(),
            release: target.release.clone(),
            label: format!("{}/{}", target.release, target.name),
            socket: target.socket.clone(),
            number,
            requests: AtomicU64::new(0),
            connections: Arc::default(),
            health: Mutex::default(),
            failure: tokio::sync::Notify::new(),
            checked_every: target.health_seconds.is_some(),
            idle: Idle::default(),
            down: AtomicBool::new(false),
            gate: AtomicU64::new(0),
            avoided_until: AtomicU64::new(0),
        }
    }

    /// A connection that has served a request already and is good for another.
    pub async fn idle_link(&self) -> Option<Link> {
        self.idle.take().await
    }

    /// A connection of one's own.
    pub async fn fresh_link(&self, limit: Duration, ticks: &Ticks) -> Result<Link, DialError> {
        Link::open(&self.socket, limit, &self.connections, ticks.clone()).await
    }

    /// Keeps a connection for the next request, if there may be one.
    pub fn keep_link(&self, link: Link, ticks: &Ticks) {
        if self.is_open() {
            self.idle.put(link, ticks.now());
        }
    }

    /// Closes connections that have waited for a request for so long.
    pub fn expire_links(&self, ticks: &Ticks, limit: Duration) {
        self.idle.expire(ticks, limit);
    }

    /// Ends every connection. Only to be called when no request is inside and none can come.
    fn close(&self) {
        self.idle.clear();
        self.connections.close();
    }

    /// Whether requests may still enter.
    pub fn is_open(&self) -> bool {
        self.gate.load(Ordering::Acquire) & OPEN != 0
    }

    pub fn in_flight(&self) -> u64 {
        self.gate.load(Ordering::Acquire) & COUNT
    }

    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prefers others for `during`, from `now` (milliseconds since the start).
    pub fn avoid(&self, now: u64, during: Duration) {
        let until = now + milliseconds(during);
        self.avoided_until.store(until, Ordering::Release);
    }

    /// Writes down that a connection failed; says whether the target was thought healthy until now.
    pub fn failed(&self, seen: &str) -> bool {
        self.set_down(true);
        self.failure.notify_one();
        let mut health = self.health();
        health.last_check = Some(seen.to_owned());
        std::mem::replace(&mut health.healthy, false)
    }

    pub fn checked_every(&self) -> bool {
        self.checked_every
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Whether others are preferred to it. `now`: milliseconds since the start.
    fn is_failing(&self, now: impl Fn() -> u64) -> bool {
        let avoided_until = self.avoided_until.load(Ordering::Acquire);
        self.is_down() || (avoided_until > 0 && avoided_until > now())
    }

    fn enter(self: &Arc<LiveTarget>) -> Option<InFlight> {
        let step = |gate: u64| (gate & OPEN != 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).ok()?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Some(InFlight(self.clone()))
    }

    fn open(&self) {
        self.gate.fetch_or(OPEN, Ordering::AcqRel);
    }

    fn shut(&self) {
        let before = self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        if before & COUNT == 0 {
            self.close();
        }
    }
}

/// An app of the table in use.
pub(super) struct LiveApp {
    pub name: Arc<AppName>,
    pub notice: Option<Notice>,
    pub noindex: bool,
    pub hold: bool,
    pub asleep: bool,
    pub access: Option<Access>,
    canary: Option<Canary>,
    /// What the health check says it is asked as.
    pub host: String,
    pub metrics: Arc<AppMetrics>,
    active: Vec<Arc<LiveTarget>>,
    /// Counts on over all tables: a share holds however often they change.
    turn: Arc<AtomicUsize>,
}

/// What looking for a target came to.
pub(super) enum Choice {
    Target(InFlight),
    /// A gate was shut meanwhile: a newer table is about to hold or holds already.
    LookAgain,
    /// No active target, or all of them were tried.
    Nothing,
}

impl LiveApp {
    /// The active target with the fewest requests pending, in turn among equals. Those that just failed come last,
    /// those `tried` by this request never.
    pub fn choose(&self, tried: &[u64], now: impl Fn() -> u64) -> Choice {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.active.len();
        // Spread evenly: at 25 % every fourth request.
        let canary = self.canary.as_ref().map(|canary| {
            let percent = usize::from(canary.percent);
            (canary.release.as_str(), turn.wrapping_mul(percent) % 100 < percent)
        });
        let candidates = (0..count)
            .map(|offset| &self.active[(turn.wrapping_add(offset)) % count])
            .filter(|target| !tried.contains(&target.number));
        let best = candidates.min_by_key(|target| {
            let aside = canary.is_some_and(|(release, wanted)| (target.release == release) != wanted);
            (target.is_failing(&now), aside, target.in_flight())
        });
        match best {
            None => Choice::Nothing,
            Some(target) => match target.enter() {
                Some(inside) => Choice::Target(inside),
                None => Choice::LookAgain,
            },
        }
    }

    /// Forgets of what a request has tried whatever is well again or gone.
    pub fn forgive(&self, tried: &mut Vec<u64>) {
        tried.retain(|number| self.active.iter().any(|target| target.number == *number && target.is_down()));
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }
}

/// The table in use, ready to be looked up in.
#[derive(Default)]
pub(super) struct Live {
    pub table: Table,
    pub hosts: HashMap<String, Arc<LiveApp>>,
    pub apps: BTreeMap<AppName, Arc<LiveApp>>,
    pub targets: BTreeMap<ProcessId, (TargetState, Arc<LiveTarget>)>,
}

/// The state that all of the router shares.
pub(super) struct Routes {
    pub options: RouterOptions,
    pub started: Instant,
    pub ticks: Ticks,
    live: ArcSwap<Live>,
    /// Taken by whoever changes the table, so that tables follow each other whole.
    change: Mutex<Leaving>,
    /// Another router takes the connections and the tables.
    leaving: AtomicBool,
    numbers: AtomicU64,
    /// Told after every swap.
    pub changed: tokio::sync::Notify,
    /// Told to everyone who waits for a process: after every swap, and when a process is found well.
    pub turned: tokio::sync::Notify,
    pub knocks: Knocks,
    /// Requests that wait for a process, of all apps.
    pub held: AtomicUsize,
    /// Numbers of apps from before this process started, until a table names them.
    kept: Mutex<BTreeMap<AppName, Arc<AppMetrics>>>,
}

/// Targets that no table names any more but that still have requests inside.
#[derive(Default)]
struct Leaving(Vec<Arc<LiveTarget>>);

impl Routes {
    pub fn new(options: RouterOptions) -> Routes {
        let kept = Mutex::new(keep::load(&options.state_dir));
        let started = Instant::now();
        Routes {
            options,
            started,
            ticks: Ticks::new(started),
            live: ArcSwap::default(),
            change: Mutex::default(),
            leaving: AtomicBool::new(false),
            numbers: AtomicU64::new(1),
            changed: tokio::sync::Notify::new(),
            turned: tokio::sync::Notify::new(),
            knocks: Knocks::default(),
            held: AtomicUsize::new(0),
            kept,
        }
    }

    /// Milliseconds since the router started.
    pub fn now(&self) -> u64 {
        milliseconds(self.started.elapsed())
    }

    pub fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    pub fn app_of(&self, host: &str) -> Option<Arc<LiveApp>> {
        self.live.load().hosts.get(host).cloned()
    }

    /// Every target that can have requests, also those that no table names any more.
    pub fn targets(&self) -> Vec<(TargetState, Arc<LiveTarget>)> {
        let mut leaving = self.change();
        leaving.0.retain(|target| target.in_flight() > 0);
        let gone = leaving.0.iter().map(|target| (TargetState::Draining, target.clone()));
        self.live().targets.values().cloned().chain(gone).collect()
    }

    /// Takes a table: checks it, saves it, swaps it. On an error the one in use stays.
    pub fn set(&self, table: Table, clear: bool) -> Result<(), TableError> {
        let mut leaving = self.change();
        if self.is_leaving() {
            return Err(TableError::Leaving);
        }
        let current = self.live.load_full();
        table.check_after(&current.table)?;
        if table.apps.is_empty() && !current.table.apps.is_empty() && !clear {
            return Err(TableError::Empty { current: current.table.apps.len() });
        }
        if table != current.table {
            table::save(&self.options.state_dir, &table).map_err(TableError::Save)?;
            self.swap(table, &current, &mut leaving);
        }
        Ok(())
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Takes no more tables, or does again. A table that is being taken is saved when this returns.
    pub fn set_leaving(&self, leaving: bool) {
        let _change = self.change();
        self.leaving.store(leaving, Ordering::Release);
    }

    /// Takes the table that was saved before this process started.
    pub fn restore(&self, table: Table) {
        let mut leaving = self.change();
        let current = self.live.load_full();
        self.swap(table, &current, &mut leaving);
    }

    fn swap(&self, table: Table, current: &Live, leaving: &mut Leaving) {
        let mut next = Live { table, ..Live::default() };
        for (name, route) in &next.table.apps {
            let mut active = Vec::new();
            for target in &route.targets {
                let live = self.target(name, target, current, leaving);
                if target.state == TargetState::Active {
                    active.push(live.clone());
                }
                next.targets.insert(target.process.clone(), (target.state, live));
            }
            let before = current.apps.get(name);
            let metrics = before.map(|app| app.metrics.clone());
            let metrics = metrics.or_else(|| self.kept().remove(name)).unwrap_or_default();
            metrics.expect_processes(route.targets.len());
            let turn = before.map(|app| app.turn.clone()).unwrap_or_default();
            let app = Arc::new(live_app(name, route, active, metrics, turn));
            next.hosts.extend(route.hosts.iter().map(|host| (host.clone(), app.clone())));
            next.apps.insert(name.clone(), app);
        }
        // Gates open before the swap and shut after it: at every moment some table leads to an open gate.
        let next = Arc::new(next);
        for (_, target) in next.targets.values().filter(|(state, _)| *state == TargetState::Active) {
            target.open();
        }
        self.live.store(next.clone());
        for (process, (_, target)) in &current.targets {
            match next.targets.get(process) {
                Some((_, same)) if Arc::ptr_eq(same, target) => {}
                _ => {
                    target.shut();
                    leaving.0.push(target.clone());
                }
            }
        }
        for (_, target) in next.targets.values().filter(|(state, _)| *state != TargetState::Active) {
            target.shut();
        }
        leaving.0.retain(|target| target.in_flight() > 0);
        self.knocks.forget(|app| !self.live.load().apps.get(app).is_some_and(|app| app.asleep));
        self.changed.notify_one();
        self.turned.notify_waiters();
    }

    /// The target as it runs already, or a new one.
    fn target(&self, app: &AppName, target: &Target, current: &Live, leaving: &Leaving) -> Arc<LiveTarget> {
        let known = current.targets.get(&target.process).map(|(_, live)| live);
        let known = known.or_else(|| leaving.0.iter().find(|live| live.process == target.process));
        match known {
            Some(live)
                if live.socket == target.socket && live.name == target.name && live.release == target.release =>
            {
                live.clone()
            }
            _ => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                Arc::new(LiveTarget::new(app, target, number))
            }
        }
    }

    /// Does something with what was counted of each app that has a route still.
    pub fn with_numbers(&self, numbers: &BTreeMap<AppName, Kept>, add: impl Fn(&AppMetrics, &Kept)) {
        let live = self.live();
        for (name, kept) in numbers {
            if let Some(app) = live.apps.get(name) {
                add(&app.metrics, kept);
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<AppName, Arc<AppMetrics>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, Leaving> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live_app(
    name: &AppName,
    route: &Route,
    active: Vec<Arc<LiveTarget>>,
    metrics: Arc<AppMetrics>,
    turn: Arc<AtomicUsize>,
) -> LiveApp {
    LiveApp {
        name: Arc::new(name.clone()),
        notice: route.notice,
        noindex: route.noindex,
        hold: route.hold,
        asleep: route.asleep,
        access: route.access.clone(),
        canary: route.canary.clone(),
        host: route.hosts.first().cloned().unwrap_or_else(|| name.to_string()),
        metrics,
        active,
        turn,
    }
}
