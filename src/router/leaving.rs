//! The time in which a router that was replaced still serves: it takes no new connections and answers on those that it
//! has, telling each client to make a new one.
//!
//! The rule: to the control plane there is one router. The new one passes every table on before it says that the
//! table holds, and counts what is in flight at the old one as its own, so a process is stopped only once neither has
//! a request on it. Numbers, knocks and log lines of the old one are sent to the new one as they come.

use super::client::{self, RouterError};
use super::clients::Clients;
use super::control::{Answer, Request, Status};
use super::live::Routes;
use super::log::Log;
use super::metrics::{AppMetrics, Kept};
use super::tail::TailLine;
use crate::domain::AppName;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PREFIX: &str = "router.old.";
/// Between two looks whether all are gone.
const LOOK: Duration = Duration::from_millis(50);
/// Between two reports to the new router.
const REPORT: Duration = Duration::from_millis(500);
/// How long an answer of one that leaves may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Makes room at the control socket: from here on it is found under the name that comes back.
pub(super) fn make_room(folder: &Path) -> io::Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let aside = folder.join(format!("{PREFIX}{}.{number}.sock", std::process::id()));
    std::fs::rename(folder.join("router.sock"), &aside)?;
    Ok(aside)
}

/// Serves out those who are connected, for at most `limit`.
pub(super) async fn serve_out(routes: &Routes, clients: &Clients, limit: Duration) {
    let deadline = Instant::now() + limit;
    while clients.count() > 0 || routes.targets().iter().any(|(_, target)| target.in_flight() > 0) {
        if Instant::now() >= deadline {
            tracing::warn!(connections = clients.count(), "ended with clients connected, long after the hand-over");
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Log lines that are sent at once.
const LINES: usize = 5_000;

/// What a router that leaves tells the one that took its place.
pub(super) struct Reports {
    log: Log,
    /// The last line of its log that it has told.
    told: u64,
}

impl Reports {
    /// From here on.
    pub fn new(log: Log) -> Reports {
        let told = log.tail(u64::MAX, 0).1;
        Reports { log, told }
    }

    /// Reports every so often until something has come about, and is never broken off within a report.
    pub async fn until(&mut self, routes: &Routes, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        while tokio::time::timeout(REPORT, &mut end).await.is_err() {
            self.report(routes).await;
        }
        self.report(routes).await;
    }

    /// Sends what was counted and written since the last time.
    async fn report(&mut self, routes: &Routes) {
        loop {
            let (lines, next) = self.log.tail(self.told, LINES);
            let more = lines.len() == LINES;
            let heard = report(routes, lines).await;
            if heard {
                self.told = next;
            }
            if !heard || !more {
                return;
            }
        }
    }
}

/// Says whether it was heard, or there was nothing to hear.
async fn report(routes: &Routes, lines: Vec<TailLine>) -> bool {
    let live = routes.live().clone();
    let numbers: BTreeMap<AppName, Kept> = live
        .apps
        .iter()
        .map(|(name, app)| (name.clone(), app.metrics.take()))
        .filter(|(_, kept)| !kept.is_empty())
        .collect();
    let knocks: Vec<AppName> = live.apps.keys().filter(|app| routes.knocks.is_asked_for(app)).cloned().collect();
    if numbers.is_empty() && knocks.is_empty() && lines.is_empty() {
        return true;
    }
    let request = Request::Absorb { numbers, knocks, lines };
    let socket = routes.options.state_dir.join("router.sock");
    let heard = matches!(client::ask_within(&socket, &request, PATIENCE).await, Ok(Answer::Done));
    if !heard && let Request::Absorb { numbers, .. } = request {
        routes.with_numbers(&numbers, AppMetrics::give_back);
    }
    heard
}

/// Asks those that leave; what no longer answers is forgotten.
pub(super) async fn ask_all(folder: &Path, request: &Request) -> Vec<Answer> {
    let mut answers = Vec::new();
    for socket in sockets(folder) {
        match client::ask_within(&socket, request, PATIENCE).await {
            Ok(answer) => answers.push(answer),
            Err(RouterError::Unreachable(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(&socket);
            }
            Err(error) => tracing::warn!(socket = %socket.display(), %error, "a router that leaves does not answer"),
        }
    }
    answers
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)));
    ours.map(|entry| entry.path()).collect()
}

/// Adds what another router still has under way.
pub(super) fn merge(status: &mut Status, other: Status) {
    status.connections += other.connections;
    for (process, theirs) in other.targets {
        match status.targets.get_mut(&process) {
            Some(ours) => {
                ours.in_flight += theirs.in_flight;
                ours.requests += theirs.requests;
                ours.connections += theirs.connections;
            }
            None => {
                status.targets.insert(process, theirs);
            }
        }
    }
    for (name, theirs) in other.apps {
        if let Some(ours) = status.apps.get_mut(&name) {
            ours.in_flight += theirs.in_flight;
            ours.held += theirs.held;
            ours.knocked |= theirs.knocked;
            ours.last_request = ours.last_request.max(theirs.last_request);
        }
    }
}
