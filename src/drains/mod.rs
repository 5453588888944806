//! Log lines that leave for other systems: what a line is in syslog's and in Heroku's form, what of them waits for each
//! receiver, and how they are sent.
//!
//! A receiver that is slow or gone holds up nobody: its lines wait in a bounded buffer, the oldest ones give way, and how
//! many did is told to it as Heroku does (L10) before the next line. Where lines come from is not known here.

mod buffer;
mod line;
mod sender;
mod target;

pub use buffer::{Buffer, Figures};
pub use line::{Line, Origin};
pub use sender::{Senders, TlsError, tls};
pub use target::{Target, masked};

use crate::clock::Timestamp;
use crate::domain::{AppName, ProcessId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One receiver, as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub id: String,
    pub target: Target,
    /// Its address without what may be a key.
    pub shown: String,
    /// One app's lines, or everybody's.
    pub app: Option<AppName>,
}

struct Running {
    wanted: Wanted,
    buffer: Arc<Buffer>,
    /// Lines of before then were never its business.
    since: Timestamp,
    task: tokio::task::JoinHandle<()>,
}

/// A process of an app that has ended and whose output lies in a file from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    pub process: ProcessId,
    pub app: AppName,
    pub name: String,
}

/// Where one receiver's lines are handed in.
#[derive(Clone)]
pub struct Intake {
    pub id: String,
    app: Option<AppName>,
    since: Timestamp,
    pub buffer: Arc<Buffer>,
}

impl Intake {
    /// Whether it wants an app's lines.
    pub fn takes(&self, app: &AppName) -> bool {
        self.app.as_ref().is_none_or(|wanted| wanted == app)
    }

    /// Hands in a line, if it is the receiver's business.
    pub fn push(&self, line: Line) {
        if self.since <= line.at {
            self.buffer.push(Arc::new(line));
        }
    }
}

/// The receivers that there are now.
pub struct Drains {
    senders: Senders,
    running: Mutex<BTreeMap<String, Running>>,
    /// The last processes that ended, and how many there have been.
    ended: Mutex<(u64, VecDeque<Departed>)>,
}

/// Departed processes that are remembered until everybody has come by.
const ENDED: usize = 1_000;

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drains {
    pub fn new(senders: Senders) -> Drains {
        Drains { senders, running: Mutex::default(), ended: Mutex::default() }
    }

    /// Starts and ends senders until there are those that are wanted, each with the moment from which on it gets lines.
    /// What waited for one that is not wanted any more is let go.
    pub fn set(&self, wanted: Vec<(Wanted, Timestamp)>) {
        let mut running = self.lock();
        running.retain(|id, known| wanted.iter().any(|(wanted, _)| wanted.id == *id && *wanted == known.wanted));
        for (wanted, since) in wanted {
            if running.contains_key(&wanted.id) {
                continue;
            }
            let buffer = Arc::new(Buffer::default());
            let task = tokio::spawn(self.senders.clone().run(wanted.target.clone(), wanted.id.clone(), buffer.clone()));
            running.insert(wanted.id.clone(), Running { wanted, buffer, since, task });
        }
    }

    /// Whether anybody wants an app's lines.
    pub fn wants(&self, app: &AppName) -> bool {
        self.intakes().iter().any(|intake| intake.takes(app))
    }

    pub fn intakes(&self) -> Vec<Intake> {
        let running = self.lock();
        let intakes = running.iter().map(|(id, running)| Intake {
            id: id.clone(),
            app: running.wanted.app.clone(),
            since: running.since,
            buffer: running.buffer.clone(),
        });
        intakes.collect()
    }

    /// Hands a line that nobody keeps to whoever wants it.
    pub fn push(&self, line: &Line) {
        self.intakes().iter().filter(|intake| intake.takes(&line.app)).for_each(|intake| intake.push(line.clone()));
    }

    /// A process has ended. It may have lived so shortly that nobody has seen it.
    pub fn end(&self, ended: Departed) {
        if !self.wants(&ended.app) {
            return;
        }
        let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        all.0 += 1;
        all.1.push_back(ended);
        if all.1.len() > ENDED {
            all.1.pop_front();
        }
    }

    /// The processes that ended after the first so many, and how many there have been.
    pub fn ended_after(&self, seen: u64) -> (Vec<Departed>, u64) {
        let all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(all.0.saturating_sub(seen)).unwrap_or(usize::MAX);
        (all.1.iter().skip(all.1.len().saturating_sub(new)).cloned().collect(), all.0)
    }

    pub fn figures(&self) -> BTreeMap<String, Figures> {
        self.lock().iter().map(|(id, running)| (id.clone(), running.buffer.figures())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
