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
use crate::domain::AppName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One receiver, as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub id: String,
    pub target: Target,
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

/// The receivers that there are now.
pub struct Drains {
    senders: Senders,
    running: Mutex<BTreeMap<String, Running>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drains {
    pub fn new(senders: Senders) -> Drains {
        Drains { senders, running: Mutex::default() }
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
        self.lock().values().any(|running| running.takes(app))
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Hands a line to whoever wants it.
    pub fn push(&self, line: Line) {
        let line = Arc::new(line);
        for running in self.lock().values().filter(|running| running.takes(&line.app) && running.since <= line.at) {
            running.buffer.push(line.clone());
        }
    }

    /// Lines of an app were lost before they came here.
    pub fn lost(&self, app: &AppName, lines: u64, at: Timestamp) {
        for running in self.lock().values().filter(|running| running.takes(app)) {
            running.buffer.lost(lines, at);
        }
    }

    /// Whether nothing waits for anybody.
    pub fn idle(&self) -> bool {
        self.lock().values().all(|running| running.buffer.figures().waiting == 0)
    }

    pub fn figures(&self) -> BTreeMap<String, Figures> {
        self.lock().iter().map(|(id, running)| (id.clone(), running.buffer.figures())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn takes(&self, app: &AppName) -> bool {
        self.wanted.app.as_ref().is_none_or(|wanted| wanted == app)
    }
}
