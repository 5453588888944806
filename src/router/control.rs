//! The control socket: one JSON line asks, one JSON line answers.
//!
//! Its folder and file are for the router's own user alone; whoever may write to it may route.

use super::clients::Clients;
use super::errors::Code;
use super::live::Routes;
use super::log::{Log, LogLine};
use super::table::{Table, TargetState};
use crate::clock::Timestamp;
use crate::domain::{AppName, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Bytes of one line: a table of ten thousand apps fits.
pub(super) const MAX_LINE: u64 = 32 * 1024 * 1024;
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
    Status,
    Logs {
        app: AppName,
        #[serde(default)]
        after: u64,
    },
    Stop,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    Refused { reason: String },
    Pong { process: u32, listen: String },
    Status(Status),
    Logs { lines: Vec<LogLine> },
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

/// An app's counts since the router started; the percentiles are of the last minute, `None` without requests in it.
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
    pub started_at: Timestamp,
    pub listen: String,
    pub stop: watch::Sender<bool>,
}

/// Answers until the router stops.
pub(super) async fn serve(listener: UnixListener, control: Arc<Control>) {
    let user = nix::unistd::geteuid().as_raw();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == user || peer.uid() == 0 => {
                    let control = control.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer_all(stream, &control).await {
                            tracing::debug!(%error, "a control connection broke");
                        }
                    });
                }
                _ => tracing::warn!("refused a control connection of another user"),
            },
            Err(error) => {
                tracing::error!(%error, "could not accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(mut stream: UnixStream, control: &Control) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, control),
            Err(error) => Answer::Refused { reason: format!("malformed: {error}") },
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        writer.write_all(&bytes).await?;
    }
}

fn answer(request: Request, control: &Control) -> Answer {
    match request {
        Request::Ping => Answer::Pong { process: std::process::id(), listen: control.listen.clone() },
        Request::Set { table } => set(control, table, false),
        Request::Clear { generation, version } => {
            set(control, Table { generation, version, apps: BTreeMap::new() }, true)
        }
        Request::Status => Answer::Status(status(control)),
        Request::Logs { app, after } => Answer::Logs { lines: control.log.after(&app, after, LOG_LINES) },
        Request::Stop => {
            control.stop.send_replace(true);
            Answer::Done
        }
    }
}

fn set(control: &Control, table: Table, clear: bool) -> Answer {
    let before = control.routes.live().apps.keys().cloned().collect::<Vec<_>>();
    match control.routes.set(table, clear) {
        Ok(()) => {
            let live = control.routes.live();
            before.iter().filter(|app| !live.apps.contains_key(*app)).for_each(|app| control.log.forget(app));
            Answer::Done
        }
        Err(error) => {
            tracing::warn!(%error, "refused a table");
            Answer::Refused { reason: error.to_string() }
        }
    }
}

fn status(control: &Control) -> Status {
    let (now, start) = (Instant::now(), control.routes.started);
    let live = control.routes.live();
    let apps = live.apps.iter().map(|(name, app)| {
        let numbers = app.metrics.numbers(now, start);
        let [s1xx, s2xx, s3xx, s4xx, s5xx] = numbers.classes;
        let milliseconds = |index: usize| numbers.percentiles.map(|all| all[index].as_secs_f64() * 1000.0);
        let status = AppStatus {
            requests: numbers.requests,
            s1xx,
            s2xx,
            s3xx,
            s4xx,
            s5xx,
            in_flight: numbers.in_flight,
            bytes: numbers.bytes,
            p50_ms: milliseconds(0),
            p95_ms: milliseconds(1),
            p99_ms: milliseconds(2),
            h_codes: numbers.codes,
        };
        (name.clone(), status)
    });
    let targets = control.routes.targets().into_iter().map(|(state, target)| {
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
