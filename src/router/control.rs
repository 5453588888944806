//! The control socket: one JSON line asks, one JSON line answers.
//!
//! Its folder and file are for the router's own user alone; whoever may write to it may route.

use super::clients::Clients;
use super::dial;
use super::errors::Code;
use super::histogram::Histogram;
use super::leaving;
use super::live::Routes;
use super::log::{Log, LogLine};
use super::metrics::{AppMetrics, AppNumbers, Kept, Resolution, Slot};
use super::table::{Table, TableError, TargetState};
use super::tail::{TailLine, TailPage};
use crate::clock::{Clock, Timestamp};
use crate::domain::{AppName, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Bytes of one line: a table of ten thousand apps fits.
pub(super) const MAX_LINE: u64 = 32 * 1024 * 1024;
/// How long an answer to `knocks` may be waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Lines that one answer to `tail` holds.
const TAIL_LINES: usize = 5_000;
/// Lines that one answer to `logs` holds.
const LOG_LINES: usize = 1500;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    Ping,
    Set {
        table: Table,
    },
    /// Routes nothing any more, and means it.
    Clear {
        generation: u64,
        version: u64,
    },
    /// Of one app, or of all. A router of an earlier version always tells of all.
    Status {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<AppName>,
    },
    Logs {
        app: AppName,
        #[serde(default)]
        after: u64,
    },
    /// The apps that somebody asked for while they slept, after this knock; waits for one, up to `wait_ms`.
    Knocks {
        #[serde(default)]
        after: u64,
        #[serde(default)]
        wait_ms: u64,
    },
    Numbers {
        app: AppName,
        resolution: Resolution,
    },
    /// To a router that leaves: the table that its successor was given.
    Follow {
        table: Table,
    },
    /// From a router that leaves: what it counted, and who knocked.
    Absorb {
        numbers: BTreeMap<AppName, Kept>,
        #[serde(default)]
        knocks: Vec<AppName>,
        /// Its log's newest lines.
        #[serde(default)]
        lines: Vec<TailLine>,
    },
    /// What was counted of each process since the router started.
    Totals,
    /// Log lines of all apps after a cursor of the router that was started then.
    Tail {
        since: Timestamp,
        after: u64,
        limit: usize,
    },
    Stop,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    Refused {
        reason: String,
    },
    Pong {
        process: u32,
        listen: String,
        #[serde(default)]
        build: String,
    },
    Status(Status),
    Logs {
        lines: Vec<LogLine>,
    },
    Knocks {
        last: u64,
        apps: Vec<AppName>,
    },
    Numbers(AppNumbers),
    Tail(TailPage),
    Totals {
        apps: BTreeMap<AppName, BTreeMap<String, Slot>>,
    },
}

/// The router's own account of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub generation: u64,
    pub version: u64,
    pub started_at: Timestamp,
    /// The address that clients reach.
    pub listen: String,
    pub apps: BTreeMap<AppName, AppStatus>,
    pub targets: BTreeMap<ProcessId, TargetStatus>,
    /// Clients' open connections.
    pub connections: u64,
    /// Log lines that could not be kept.
    pub log_lines_dropped: u64,
}

/// An app's counts since the router started; the percentiles are of this minute and the one before it, `None` without
/// requests in them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    pub requests: u64,
    pub s1xx: u64,
    pub s2xx: u64,
    pub s3xx: u64,
    pub s4xx: u64,
    pub s5xx: u64,
    pub h_codes: BTreeMap<Code, u64>,
    pub in_flight: u64,
    /// Bytes of answers' bodies.
    pub bytes: u64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    #[serde(default)]
    pub max_ms: Option<f64>,
    /// How long all answers since the start took.
    #[serde(default)]
    pub latency: Histogram,
    /// Requests that wait for a process.
    #[serde(default)]
    pub held: u64,
    /// When somebody last used it, also before this router started.
    #[serde(default)]
    pub last_request: Option<Timestamp>,
    /// It sleeps, and somebody asked for it.
    #[serde(default)]
    pub knocked: bool,
}

/// A process as the router sees it. One that draws no more requests and has none in flight is drained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    pub app: AppName,
    pub state: TargetState,
    /// The last health check, or for an active target the last attempt to connect, went well.
    pub healthy: bool,
    pub checks: u64,
    /// What the last health check saw: `status 500`, `refused`, `timed out after 5 s`.
    pub last_check: Option<String>,
    pub in_flight: u64,
    pub requests: u64,
    /// Open connections to it, pooled ones included.
    pub connections: u64,
}

/// What the control socket answers from.
pub(super) struct Control {
    pub routes: Arc<Routes>,
    pub log: Log,
    pub clients: Arc<Clients>,
    pub clock: Clock,
    pub started_at: Timestamp,
    pub listen: String,
    pub stop: watch::Sender<bool>,
}

/// Answers until the router stops.
pub(super) async fn serve(listener: UnixListener, control: Arc<Control>) {
    loop {
        let stream = dial::accept_ours(&listener, "the router's control").await;
        let control = control.clone();
        tokio::spawn(async move {
            if let Err(error) = answer_all(stream, control).await {
                tracing::debug!(%error, "a control connection broke");
            }
        });
    }
}

async fn answer_all(mut stream: UnixStream, control: Arc<Control>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => match answer(request, &control).await {
                Some(answer) => answer,
                // Whoever asks again finds the router that took our place.
                None => return Ok(()),
            },
            Err(error) => Answer::Refused { reason: format!("malformed: {error}") },
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        writer.write_all(&bytes).await?;
    }
}

/// `None` where another router has to be asked.
async fn answer(request: Request, control: &Arc<Control>) -> Option<Answer> {
    let folder = &control.routes.options.state_dir;
    Some(match request {
        Request::Ping => Answer::Pong {
            process: std::process::id(),
            listen: control.listen.clone(),
            build: control.routes.options.build.clone(),
        },
        Request::Set { table } => return set(control.clone(), table, false).await,
        Request::Clear { generation, version } => {
            return set(control.clone(), Table { generation, version, apps: BTreeMap::new() }, true).await;
        }
        Request::Follow { table } => {
            control.routes.restore(table);
            Answer::Done
        }
        Request::Absorb { numbers, knocks, lines } => {
            control.log.absorb(lines);
            control.routes.with_numbers(&numbers, AppMetrics::absorb);
            let live = control.routes.live().clone();
            for app in knocks.iter().filter(|app| live.apps.get(*app).is_some_and(|app| app.asleep)) {
                control.routes.knocks.knock(app, control.clock.now());
            }
            Answer::Done
        }
        Request::Status { of } => {
            let mut status = status(control, of.as_ref());
            if !control.routes.is_leaving() {
                for answer in leaving::ask_all(folder, &Request::Status { of }).await {
                    if let Answer::Status(other) = answer {
                        leaving::merge(&mut status, other);
                    }
                }
            }
            Answer::Status(status)
        }
        Request::Logs { app, after } => Answer::Logs { lines: control.log.after(&app, after, LOG_LINES) },
        Request::Knocks { after, wait_ms } => {
            let limit = Duration::from_millis(wait_ms).min(LONGEST_WAIT);
            match tokio::time::timeout(limit, control.routes.knocks.after(after)).await {
                Ok((last, apps)) => Answer::Knocks { last, apps },
                Err(_) => Answer::Knocks { last: after, apps: Vec::new() },
            }
        }
        Request::Numbers { app, resolution } => {
            let metrics = control.routes.live().apps.get(&app).map(|app| app.metrics.clone());
            let now = control.clock.now();
            Answer::Numbers(metrics.map(|metrics| metrics.numbers(resolution, now)).unwrap_or_default())
        }
        Request::Tail { since, after, limit } => {
            let after = if since == control.started_at { after } else { 0 };
            let (lines, next) = control.log.tail(after, limit.min(TAIL_LINES));
            Answer::Tail(TailPage { started_at: control.started_at, lines, next })
        }
        Request::Totals => {
            let live = control.routes.live();
            let apps = live.apps.iter().map(|(name, app)| (name.clone(), app.metrics.process_totals()));
            Answer::Totals { apps: apps.filter(|(_, processes)| !processes.is_empty()).collect() }
        }
        Request::Stop => {
            if !control.routes.is_leaving() {
                leaving::ask_all(folder, &Request::Stop).await;
            }
            control.stop.send_replace(true);
            Answer::Done
        }
    })
}

/// Saving a table waits for the disk, which no thread that serves requests may do.
///
/// The table holds only once those that leave have it too.
async fn set(control: Arc<Control>, table: Table, clear: bool) -> Option<Answer> {
    let folder = control.routes.options.state_dir.clone();
    let follow = Request::Follow { table: table.clone() };
    let work = move || {
        let before = control.routes.live().apps.keys().cloned().collect::<Vec<_>>();
        control.routes.set(table, clear)?;
        let live = control.routes.live();
        before.iter().filter(|app| !live.apps.contains_key(*app)).for_each(|app| control.log.forget(app));
        Ok::<(), TableError>(())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {
            leaving::ask_all(&folder, &follow).await;
            Some(Answer::Done)
        }
        Ok(Err(TableError::Leaving)) => None,
        Ok(Err(error)) => {
            tracing::warn!(%error, "refused a table");
            Some(Answer::Refused { reason: error.to_string() })
        }
        Err(error) => Some(Answer::Refused { reason: format!("the table was not taken: {error}") }),
    }
}

fn status(control: &Control, of: Option<&AppName>) -> Status {
    let now = control.clock.now();
    let live = control.routes.live();
    let wanted = |name: &AppName| of.is_none_or(|of| of == name);
    let apps = live.apps.iter().filter(|(name, _)| wanted(name)).map(|(name, app)| {
        let total = app.metrics.total();
        let latency = app.metrics.latency(now);
        let [s1xx, s2xx, s3xx, s4xx, s5xx] = total.classes;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        let status = AppStatus {
            requests: total.requests,
            s1xx,
            s2xx,
            s3xx,
            s4xx,
            s5xx,
            in_flight: app.metrics.in_flight(),
            bytes: total.bytes,
            p50_ms: latency.percentile(500).map(milliseconds),
            p95_ms: latency.percentile(950).map(milliseconds),
            p99_ms: latency.percentile(990).map(milliseconds),
            max_ms: latency.longest().map(milliseconds),
            h_codes: total.codes,
            latency: total.latency,
            held: app.metrics.held.load(Ordering::Relaxed) as u64,
            last_request: app.metrics.last_request(),
            knocked: app.asleep && control.routes.knocks.is_asked_for(name),
        };
        (name.clone(), status)
    });
    let targets = control.routes.targets().into_iter().filter(|(_, target)| wanted(&target.app));
    let targets = targets.map(|(state, target)| {
        let health = target.health().clone();
        let status = TargetStatus {
            app: target.app.clone(),
            state,
            healthy: health.healthy,
            checks: health.checks,
            last_check: health.last_check,
            in_flight: target.in_flight(),
            requests: target.requests.load(Ordering::Relaxed),
            connections: target.connections.count() as u64,
        };
        (target.process.clone(), status)
    });
    Status {
        generation: live.table.generation,
        version: live.table.version,
        started_at: control.started_at,
        listen: control.listen.clone(),
        apps: apps.collect(),
        targets: targets.collect(),
        connections: control.clients.count() as u64,
        log_lines_dropped: control.log.dropped(),
    }
}
