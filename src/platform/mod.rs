//! Where processes run. One contract, kept by each variant of `Platform`:
//!
//! - `publish` makes a slug runnable; again is no harm. It is unpacked once and shared by all of its processes.
//! - `start` creates if absent: the same id is never started twice, not even after its exit. Accepted is not running.
//! - `stop` begins SIGTERM, grace, SIGKILL and returns at once; fine if gone. `remove` forgets what has exited.
//! - `list` is everything of ours, the truth at start and for sweeping. `watch` only says when to look again, and a
//!   gap says so and is never read as "nothing runs". `logs` are complete once `ended` is told.
//! - Whatever runs gets the environment of its `Spec` and nothing else, sees nothing of the machine but programs, and
//!   leaves nothing behind.
//!
//! Readiness, switch, drain and rollback are above it, once for all platforms.

mod cgroups;
mod contract;
mod detach;
pub mod dyno;
mod files;
mod identity;
mod local;
mod logs;
mod memory;
mod sandbox;

pub use contract::*;
pub use detach::spawn_detached;
pub use local::{Local, LocalSettings, MAX_DATA_DIR_BYTES};
pub use memory::{Memory, Outcome};
pub use sandbox::DEFAULT_PATH;

use crate::domain::{ProcessId, SlugDigest};
use std::path::{Path, PathBuf};
use tokio::sync::broadcast;

/// The closed set of places to run processes in.
#[derive(Debug, Clone)]
pub enum Platform {
    Local(Local),
    Memory(Memory),
}

impl Platform {
    /// Unpacks an archive (`tar.zst`, whose SHA-256 the digest is) so that processes can run it. Fine if it was before.
    pub async fn publish(&self, digest: &SlugDigest, archive: &Path) -> Result<(), PlatformError> {
        match self {
            Platform::Local(local) => local.publish(digest, archive).await,
            Platform::Memory(memory) => memory.publish(digest, archive),
        }
    }

    /// Forgets a slug. The caller has seen to it that nothing runs it. Fine if gone.
    pub async fn unpublish(&self, digest: &SlugDigest) -> Result<(), PlatformError> {
        match self {
            Platform::Local(local) => local.unpublish(digest).await,
            Platform::Memory(memory) => memory.unpublish(digest),
        }
    }

    pub async fn published(&self) -> Result<Vec<SlugDigest>, PlatformError> {
        match self {
            Platform::Local(local) => local.published().await,
            Platform::Memory(memory) => Ok(memory.published()),
        }
    }

    /// Creates the process if there is none of this id. `Differs` when there is one of another specification.
    pub async fn start(&self, spec: &Spec) -> Result<(), PlatformError> {
        match self {
            Platform::Local(local) => local.start(spec).await,
            Platform::Memory(memory) => memory.start(spec),
        }
    }

    /// Begins SIGTERM, grace, SIGKILL. Fine if it is over, unknown or stopping.
    pub async fn stop(&self, id: &ProcessId) -> Result<(), PlatformError> {
        match self {
            Platform::Local(local) => local.stop(id).await,
            Platform::Memory(memory) => memory.stop(id),
        }
    }

    /// Forgets an exited process with its log and all that was its own. `StillRunning` when it is not over; fine if gone.
    pub async fn remove(&self, id: &ProcessId) -> Result<(), PlatformError> {
        match self {
            Platform::Local(local) => local.remove(id).await,
            Platform::Memory(memory) => memory.remove(id),
        }
    }

    /// Every process that was started and not removed, in the order of their ids.
    pub async fn list(&self) -> Result<Vec<ProcessStatus>, PlatformError> {
        match self {
            Platform::Local(local) => local.list().await,
            Platform::Memory(memory) => Ok(memory.list()),
        }
    }

    /// Changes from now on. List after this call, not before it.
    pub fn watch(&self) -> Watch {
        match self {
            Platform::Local(local) => local.watch(),
            Platform::Memory(memory) => memory.watch(),
        }
    }

    /// At most `max_lines` lines after a cursor. `Unknown` when there is no such process.
    pub async fn logs(&self, id: &ProcessId, after: LogCursor, max_lines: usize) -> Result<LogPage, PlatformError> {
        match self {
            Platform::Local(local) => local.logs(id, after, max_lines).await,
            Platform::Memory(memory) => memory.logs(id, after, max_lines),
        }
    }

    /// Where the router asks for connections to the app: it writes `D`, and gets `K` with a connected socket
    /// (SCM_RIGHTS, non-blocking) or `R`. There is nobody behind it before the process runs and after it has exited.
    pub fn dial_socket(&self, id: &ProcessId) -> PathBuf {
        match self {
            Platform::Local(local) => local.dial_socket(id),
            Platform::Memory(memory) => memory.dial_socket(id),
        }
    }

    pub async fn capacity(&self) -> Result<Capacity, PlatformError> {
        match self {
            Platform::Local(local) => local.capacity().await,
            Platform::Memory(memory) => Ok(memory.capacity()),
        }
    }

    /// What the machine lacks for the sandbox, found by running one. Takes up to some seconds.
    pub async fn check(&self) -> Vec<Finding> {
        match self {
            Platform::Local(local) => local.check().await,
            Platform::Memory(_) => Vec::new(),
        }
    }

    /// The supervisors that still live: one writes its process' end down a moment before its own.
    pub async fn supervisors(&self) -> Result<Vec<ProcessId>, PlatformError> {
        match self {
            Platform::Local(local) => local.supervisors().await,
            Platform::Memory(_) => Ok(Vec::new()),
        }
    }

    /// What no record stands for any more. Nothing in a sound system.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, PlatformError> {
        match self {
            Platform::Local(local) => local.leftovers(false).await,
            Platform::Memory(_) => Ok(Vec::new()),
        }
    }

    /// Removes what `leftovers` tells, and returns it.
    pub async fn sweep(&self) -> Result<Vec<Leftover>, PlatformError> {
        match self {
            Platform::Local(local) => local.leftovers(true).await,
            Platform::Memory(_) => Ok(Vec::new()),
        }
    }
}

/// Wakes whoever looks after processes.
#[derive(Debug)]
pub struct Watch {
    receiver: broadcast::Receiver<ProcessId>,
}

impl Watch {
    /// The next change; `None` when the platform is gone. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<Change> {
        match self.receiver.recv().await {
            Ok(id) => Some(Change::Changed(id)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Gap),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests;
