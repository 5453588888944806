//! The control plane's hand on the router: the same calls on a real one behind its socket and on one in memory.

use super::control::{Answer, MAX_LINE, Request};
use super::log::LogLine;
use super::metrics::{AppNumbers, Resolution, Slot};
use super::table::{Table, TargetState};
use super::tail::{TailLine, TailPage};
use super::{AppStatus, Status, TargetStatus, dial};
use crate::clock::Timestamp;
use crate::domain::{AppName, ProcessId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// How long the router may take to answer. It answers from memory and one fsync.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a call on the router came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// No router listens at the socket, or it died in the middle: its table is as it was.
    #[error("the router cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// The router keeps the table that it has.
    #[error("the router refused: {0}")]
    Refused(String),
    #[error("the router gave an answer that is none")]
    Malformed,
}

/// The router as the control plane sees it. Every call may be repeated.
#[derive(Debug, Clone)]
pub enum Router {
    Remote { socket: PathBuf },
    Memory(Arc<Mutex<MemoryRouter>>),
}

/// Which router runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub process: u32,
    /// The address that clients reach.
    pub listen: String,
    /// Tells one program from another; empty where it was not said.
    pub build: String,
}

/// A router for tests: it records tables and calls a target healthy when the test says so.
#[derive(Debug, Default)]
pub struct MemoryRouter {
    /// Every table that was taken, in order.
    pub tables: Vec<Table>,
    /// What the test says of a process: healthy or not, and what a check saw. Others are not checked yet.
    pub health: BTreeMap<ProcessId, (bool, String)>,
    /// Calls every process healthy of which `health` says nothing.
    pub all_healthy: bool,
    /// Requests in flight, by process.
    pub in_flight: BTreeMap<ProcessId, u64>,
    /// What the test says of an app: when it was used last, whether somebody knocks.
    pub apps: BTreeMap<AppName, AppStatus>,
    pub numbers: BTreeMap<AppName, AppNumbers>,
    /// Its log.
    pub lines: Vec<TailLine>,
    pub stopped: bool,
    /// Takes no table, whatever it says.
    pub refuses: bool,
    /// Does not answer what it is asked about itself.
    pub silent: bool,
}

impl Router {
    /// The router that keeps its state in this folder.
    pub fn remote(state_dir: &Path) -> Router {
        Router::Remote { socket: state_dir.join("router.sock") }
    }

    pub fn memory() -> (Router, Arc<Mutex<MemoryRouter>>) {
        let memory = Arc::new(Mutex::default());
        (Router::Memory(memory.clone()), memory)
    }

    /// Makes a table hold. It is on disk and in use when this returns; a lower generation than the highest seen, an
    /// empty table over one with apps, and a malformed one are refused.
    pub async fn set(&self, table: Table) -> Result<(), RouterError> {
        match self {
            Router::Remote { socket } => done(ask(socket, &Request::Set { table }).await?),
            Router::Memory(memory) => {
                let mut memory = lock(memory);
                if memory.refuses {
                    return Err(RouterError::Refused("it takes none".to_owned()));
                }
                let current = memory.tables.last().cloned().unwrap_or_default();
                table.check_after(&current).map_err(|error| RouterError::Refused(error.to_string()))?;
                if table.apps.is_empty() && !current.apps.is_empty() {
                    return Err(RouterError::Refused("the table is empty; say clear to mean it".to_owned()));
                }
                memory.tables.push(table);
                Ok(())
            }
        }
    }

    /// Routes nothing any more: the deliberate form of an empty table.
    pub async fn clear(&self, generation: u64, version: u64) -> Result<(), RouterError> {
        match self {
            Router::Remote { socket } => done(ask(socket, &Request::Clear { generation, version }).await?),
            Router::Memory(memory) => {
                lock(memory).tables.push(Table { generation, version, apps: BTreeMap::new() });
                Ok(())
            }
        }
    }

    pub async fn status(&self) -> Result<Status, RouterError> {
        self.status_about(None).await
    }

    /// As `status`, with nothing of other apps.
    pub async fn status_of(&self, app: &AppName) -> Result<Status, RouterError> {
        let mut status = self.status_about(Some(app)).await?;
        status.apps.retain(|name, _| name == app);
        status.targets.retain(|_, target| target.app == *app);
        Ok(status)
    }

    async fn status_about(&self, of: Option<&AppName>) -> Result<Status, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Status { of: of.cloned() }).await? {
                Answer::Status(status) => Ok(status),
                other => Err(unexpected(other)),
            },
            Router::Memory(memory) => {
                let memory = lock(memory);
                let silence = || RouterError::Unreachable(std::io::ErrorKind::TimedOut.into());
                (!memory.silent).then(|| memory.status()).ok_or_else(silence)
            }
        }
    }

    /// An app's log lines after a cursor (0 for all that are kept), oldest first.
    pub async fn logs(&self, app: &AppName, after: u64) -> Result<Vec<LogLine>, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Logs { app: app.clone(), after }).await? {
                Answer::Logs { lines } => Ok(lines),
                other => Err(unexpected(other)),
            },
            Router::Memory(_) => Ok(Vec::new()),
        }
    }

    /// The apps that somebody asked for while they slept, after the knock `after`; waits up to `wait` for one. Gives the
    /// number to go on after as well.
    pub async fn knocks(&self, after: u64, wait: Duration) -> Result<(u64, Vec<AppName>), RouterError> {
        match self {
            Router::Remote { socket } => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                match ask_within(socket, &Request::Knocks { after, wait_ms }, PATIENCE + wait).await? {
                    Answer::Knocks { last, apps } => Ok((last, apps)),
                    other => Err(unexpected(other)),
                }
            }
            Router::Memory(_) => {
                tokio::time::sleep(wait).await;
                Ok((after, Vec::new()))
            }
        }
    }

    /// What was counted of an app and its processes, in slots of one resolution. Nothing for an app without a route.
    pub async fn numbers(&self, app: &AppName, resolution: Resolution) -> Result<AppNumbers, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Numbers { app: app.clone(), resolution }).await? {
                Answer::Numbers(numbers) => Ok(numbers),
                other => Err(unexpected(other)),
            },
            Router::Memory(memory) => Ok(lock(memory).numbers.get(app).cloned().unwrap_or_default()),
        }
    }

    /// Log lines of all apps after a cursor of the router that was started at `since`; from the first one that is kept if
    /// that is another router.
    pub async fn tail(&self, since: Timestamp, after: u64, limit: usize) -> Result<TailPage, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Tail { since, after, limit }).await? {
                Answer::Tail(page) => Ok(page),
                other => Err(unexpected(other)),
            },
            Router::Memory(memory) => {
                let memory = lock(memory);
                let first = usize::try_from(after).unwrap_or(usize::MAX);
                let lines: Vec<TailLine> = memory.lines.iter().skip(first).take(limit).cloned().collect();
                Ok(TailPage { started_at: since, next: after + lines.len() as u64, lines })
            }
        }
    }

    /// What was counted of each process since the router started, by app, release and name.
    pub async fn totals(&self) -> Result<BTreeMap<AppName, BTreeMap<String, Slot>>, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Totals).await? {
                Answer::Totals { apps } => Ok(apps),
                other => Err(unexpected(other)),
            },
            Router::Memory(_) => Ok(BTreeMap::new()),
        }
    }

    /// Whether a router answers, and the address that its clients reach.
    pub async fn ping(&self) -> Result<String, RouterError> {
        self.about().await.map(|about| about.listen)
    }

    /// Which router answers.
    pub async fn about(&self) -> Result<About, RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Ping).await? {
                Answer::Pong { process, listen, build } => Ok(About { process, listen, build }),
                other => Err(unexpected(other)),
            },
            Router::Memory(_) => {
                Ok(About { process: std::process::id(), listen: "127.0.0.1:0".to_owned(), build: String::new() })
            }
        }
    }

    /// Whether no router's process is left within `patience`: it holds its lock to its very end.
    pub async fn is_gone_within(&self, patience: Duration) -> bool {
        let Router::Remote { socket } = self else { return true };
        let path = socket.with_file_name("router.lock");
        let gone = async {
            while std::fs::File::open(&path).is_ok_and(|lock| lock.try_lock().is_err()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    /// Lets requests in flight finish and ends the router. A router that is gone already is fine.
    pub async fn stop(&self) -> Result<(), RouterError> {
        match self {
            Router::Remote { socket } => match ask(socket, &Request::Stop).await {
                Ok(answer) => done(answer),
                Err(RouterError::Unreachable(_)) => Ok(()),
                Err(error) => Err(error),
            },
            Router::Memory(memory) => {
                lock(memory).stopped = true;
                Ok(())
            }
        }
    }
}

impl MemoryRouter {
    fn status(&self) -> Status {
        let Some(table) = self.tables.last() else { return Status::default() };
        let targets = table.apps.iter().flat_map(|(app, route)| route.targets.iter().map(move |target| (app, target)));
        let targets = targets.map(|(app, target)| {
            let said = self.health.get(&target.process).cloned();
            let said = said.or_else(|| self.all_healthy.then(|| (true, "status 200".to_owned())));
            let status = TargetStatus {
                app: app.clone(),
                state: target.state,
                healthy: said.as_ref().is_some_and(|(healthy, _)| *healthy),
                checks: u64::from(said.is_some() && target.state == TargetState::Warming),
                last_check: said.map(|(_, seen)| seen),
                in_flight: self.in_flight.get(&target.process).copied().unwrap_or_default(),
                requests: 0,
                connections: 0,
            };
            (target.process.clone(), status)
        });
        Status {
            generation: table.generation,
            version: table.version,
            apps: table.apps.keys().map(|app| (app.clone(), self.apps.get(app).cloned().unwrap_or_default())).collect(),
            targets: targets.collect(),
            ..Status::default()
        }
    }
}

fn lock(memory: &Mutex<MemoryRouter>) -> MutexGuard<'_, MemoryRouter> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn done(answer: Answer) -> Result<(), RouterError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> RouterError {
    match answer {
        Answer::Refused { reason } => RouterError::Refused(reason),
        _ => RouterError::Malformed,
    }
}

async fn ask(socket: &Path, request: &Request) -> Result<Answer, RouterError> {
    ask_within(socket, request, PATIENCE).await
}

pub(super) async fn ask_within(socket: &Path, request: &Request, limit: Duration) -> Result<Answer, RouterError> {
    let late = |_| RouterError::Unreachable(std::io::ErrorKind::TimedOut.into());
    let line = tokio::time::timeout(limit, exchange(socket, request)).await.map_err(late)?;
    let line = line.map_err(RouterError::Unreachable)?;
    serde_json::from_slice(&line).map_err(|_| RouterError::Malformed)
}

async fn exchange(socket: &Path, request: &Request) -> std::io::Result<Vec<u8>> {
    let mut stream = dial::connect_unix(socket).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(2 * MAX_LINE).read_until(b'\n', &mut answer).await?;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}
