//! A platform without a machine, for tests: it follows a script, and it panics when its caller breaks the contract.
//!
//! Nothing happens by itself: each `list` moves each process one step on (starting, running, exited), so a test that
//! drains the reconciler sees every state, in the same order each time.

use super::Watch;
use super::contract::{
    Capacity, Code, Exit, LogCursor, LogLine, LogPage, LogStream, PlatformError, ProcessStatus, Spec, State,
};
use crate::clock::Clock;
use crate::domain::{ProcessId, RuntimeCode, SlugDigest};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// What a process does once it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on until it is stopped or crashed.
    Runs { healthy: bool },
    /// It says these lines, writes these files (below the folder of a `Code::Folder`) and ends.
    Exits { code: i32, lines: Vec<String>, writes: Vec<(PathBuf, Vec<u8>)> },
    /// It is accepted and never runs, as with a machine that has no room.
    NeverRuns,
    /// It ends without having run.
    CouldNotStart(String),
    /// It runs until the platform ends it, for this reason.
    Cut(Exit),
}

type Script = Box<dyn Fn(&Spec) -> Outcome + Send>;

#[derive(Clone)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
    changes: broadcast::Sender<ProcessId>,
}

struct Inner {
    clock: Clock,
    script: Script,
    published: BTreeSet<SlugDigest>,
    processes: BTreeMap<ProcessId, Process>,
    /// Every id that was ever started, with its specification: starting it again after its removal is a mistake.
    history: Vec<Spec>,
}

struct Process {
    spec: Spec,
    outcome: Outcome,
    state: State,
    status_at_start: crate::clock::Timestamp,
    lines: Vec<LogLine>,
    codes: BTreeMap<RuntimeCode, u64>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Memory")
    }
}

impl Memory {
    /// Every process runs and is healthy until `script` says otherwise.
    pub fn new(clock: Clock) -> Memory {
        let inner = Inner {
            clock,
            script: Box::new(|_| Outcome::Runs { healthy: true }),
            published: BTreeSet::new(),
            processes: BTreeMap::new(),
            history: Vec::new(),
        };
        Memory { inner: Arc::new(Mutex::new(inner)), changes: broadcast::channel(1024).0 }
    }

    /// Decides what each process does that is started from now on.
    pub fn script(&self, script: impl Fn(&Spec) -> Outcome + Send + 'static) {
        self.lock().script = Box::new(script);
    }

    /// Ends a running process as a crash would.
    pub fn crash(&self, id: &ProcessId) {
        let mut inner = self.lock();
        let at = inner.clock.now();
        let process = inner.processes.get_mut(id).unwrap_or_else(|| panic!("{id} can't crash: it is not known"));
        assert!(!process.state.is_over(), "{id} can't crash: it is over");
        process.state = State::Exited { code: Some(1), signal: None, why: Exit::Finished, at };
        drop(inner);
        self.changed(id);
    }

    /// Adds a line to a process's log.
    pub fn say(&self, id: &ProcessId, text: &str) {
        let mut inner = self.lock();
        let at = inner.clock.now();
        if let Some(process) = inner.processes.get_mut(id) {
            process.lines.push(LogLine { at, stream: LogStream::Out, text: text.to_owned() });
        }
    }

    /// As a supervisor that saw something go wrong with its process.
    pub fn trouble(&self, id: &ProcessId, code: RuntimeCode) {
        let mut inner = self.lock();
        if let Some(process) = inner.processes.get_mut(id) {
            *process.codes.entry(code).or_default() += 1;
        }
    }

    /// Ids of what runs, in order.
    pub fn running(&self) -> Vec<ProcessId> {
        let inner = self.lock();
        let running = inner.processes.iter().filter(|(_, process)| matches!(process.state, State::Running { .. }));
        running.map(|(id, _)| id.clone()).collect()
    }

    /// Whether a running process would answer; `None` when it doesn't run.
    pub fn healthy(&self, id: &ProcessId) -> Option<bool> {
        let inner = self.lock();
        let process = inner.processes.get(id)?;
        match (&process.state, &process.outcome) {
            (State::Running { .. }, Outcome::Runs { healthy }) => Some(*healthy),
            (State::Running { .. }, _) => Some(false),
            _ => None,
        }
    }

    /// Everything that was ever started, in order.
    pub fn history(&self) -> Vec<Spec> {
        self.lock().history.clone()
    }

    pub fn spec(&self, id: &ProcessId) -> Option<Spec> {
        self.lock().processes.get(id).map(|process| process.spec.clone())
    }

    pub(super) fn publish(&self, digest: &SlugDigest, archive: &Path) -> Result<(), PlatformError> {
        std::fs::metadata(archive).map_err(PlatformError::io(format!("opening {}", archive.display())))?;
        self.lock().published.insert(digest.clone());
        Ok(())
    }

    /// Makes a slug known without an archive.
    pub fn pretend_published(&self, digest: &SlugDigest) {
        self.lock().published.insert(digest.clone());
    }

    pub(super) fn unpublish(&self, digest: &SlugDigest) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let user = inner
            .processes
            .values()
            .find(|process| !process.state.is_over() && process.spec.code.slugs().contains(&digest))
            .map(|process| process.spec.id.clone());
        assert!(user.is_none(), "slug {digest} was unpublished while {user:?} runs it");
        inner.published.remove(digest);
        Ok(())
    }

    pub(super) fn published(&self) -> Vec<SlugDigest> {
        self.lock().published.iter().cloned().collect()
    }

    pub(super) fn start(&self, spec: &Spec) -> Result<(), PlatformError> {
        spec.validate()?;
        let mut inner = self.lock();
        if let Some(process) = inner.processes.get(&spec.id) {
            assert!(process.spec == *spec, "{} was started twice with different specifications", spec.id);
            return Ok(());
        }
        if let Some(digest) = spec.code.slugs().into_iter().find(|digest| !inner.published.contains(*digest)) {
            return Err(PlatformError::NotPublished(digest.clone()));
        }
        assert!(
            !inner.history.iter().any(|earlier| earlier.id == spec.id),
            "{} was started again after its removal: an attempt has an id of its own",
            spec.id
        );
        let outcome = (inner.script)(spec);
        let status_at_start = inner.clock.now();
        let process = Process {
            spec: spec.clone(),
            outcome,
            state: State::Starting,
            status_at_start,
            lines: Vec::new(),
            codes: BTreeMap::new(),
        };
        inner.processes.insert(spec.id.clone(), process);
        inner.history.push(spec.clone());
        drop(inner);
        self.changed(&spec.id);
        Ok(())
    }

    pub(super) fn stop(&self, id: &ProcessId) -> Result<(), PlatformError> {
        if let Some(process) = self.lock().processes.get_mut(id)
            && !process.state.is_over()
        {
            process.state = State::Stopping;
        }
        self.changed(id);
        Ok(())
    }

    pub(super) fn remove(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        if inner.processes.get(id).is_some_and(|process| !process.state.is_over()) {
            return Err(PlatformError::StillRunning(id.clone()));
        }
        inner.processes.remove(id);
        Ok(())
    }

    pub(super) fn list(&self) -> Vec<ProcessStatus> {
        let mut inner = self.lock();
        let at = inner.clock.now();
        let mut changed = Vec::new();
        let statuses = inner
            .processes
            .iter_mut()
            .map(|(id, process)| {
                let status = ProcessStatus {
                    id: id.clone(),
                    name: process.spec.name.clone(),
                    labels: process.spec.labels.clone(),
                    state: process.state.clone(),
                    started_at: process.status_at_start,
                    memory_bytes: None,
                    cpu_millis_used: None,
                    codes: process.codes.clone(),
                };
                if process.step(at) {
                    changed.push(id.clone());
                }
                status
            })
            .collect();
        drop(inner);
        for id in &changed {
            self.changed(id);
        }
        statuses
    }

    pub(super) fn watch(&self) -> Watch {
        Watch { receiver: self.changes.subscribe() }
    }

    pub(super) fn logs(&self, id: &ProcessId, after: LogCursor, max: usize) -> Result<LogPage, PlatformError> {
        let inner = self.lock();
        let process = inner.processes.get(id).ok_or_else(|| PlatformError::Unknown(id.clone()))?;
        let from = usize::try_from(after.line).unwrap_or(usize::MAX).min(process.lines.len());
        let to = from.saturating_add(max).min(process.lines.len());
        let next = LogCursor { offset: to as u64, line: to as u64 };
        let ended = process.state.is_over() && to == process.lines.len();
        Ok(LogPage { lines: process.lines[from..to].to_vec(), next, ended, dropped: 0 })
    }

    pub(super) fn dial_socket(&self, id: &ProcessId) -> PathBuf {
        PathBuf::from(format!("/nonexistent/{id}.dial"))
    }

    pub(super) fn capacity(&self) -> Capacity {
        let inner = self.lock();
        Capacity {
            processors: 2,
            memory_total: 8 << 30,
            memory_available: 8 << 30,
            disk_total: 100 << 30,
            disk_available: 100 << 30,
            processes: inner.processes.values().filter(|process| !process.state.is_over()).count() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, id: &ProcessId) {
        // Nobody may be listening.
        let _ = self.changes.send(id.clone());
    }
}

impl Process {
    /// One step on; says whether anything changed.
    fn step(&mut self, at: crate::clock::Timestamp) -> bool {
        let exited = |code, signal, why| State::Exited { code, signal, why, at };
        let next = match (&self.state, &self.outcome) {
            (State::Exited { .. }, _) | (State::Starting, Outcome::NeverRuns) => return false,
            (State::Starting, Outcome::CouldNotStart(reason)) => {
                exited(None, None, Exit::CouldNotStart(reason.clone()))
            }
            (State::Starting, Outcome::Runs { .. } | Outcome::Exits { .. } | Outcome::Cut(_)) => {
                State::Running { since: at }
            }
            (State::Running { .. }, Outcome::Cut(why)) => exited(None, Some(9), why.clone()),
            (State::Running { .. }, Outcome::Exits { code, lines, writes }) => {
                for text in lines {
                    self.lines.push(LogLine { at, stream: LogStream::Out, text: text.clone() });
                }
                if let Code::Folder { path } = &self.spec.code {
                    write_below(path, writes);
                }
                exited(Some(*code), None, Exit::Finished)
            }
            (State::Running { .. }, _) => return false,
            (State::Stopping, _) => exited(Some(143), None, Exit::Killed),
        };
        self.state = next;
        true
    }
}

fn write_below(folder: &Path, writes: &[(PathBuf, Vec<u8>)]) {
    for (path, content) in writes {
        assert!(
            path.components().all(|part| matches!(part, Component::Normal(_))),
            "a script writes to {} outside of /app",
            path.display()
        );
        let file = folder.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        }
        std::fs::write(&file, content).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
