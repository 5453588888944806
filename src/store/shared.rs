//! What the writer and all readers share: the index behind a lock, and how to make a new one from the files.

use super::decoded::Recent;
use super::disk::Disk;
use super::index::{self, Index, IndexFault, MemoryIndex};
use super::{Health, StoreError, snapshot};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;

pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) disk: Disk,
    pub(super) index: RwLock<Index>,
    /// The sequence of the newest durable frame; set before the index gets it.
    pub(super) durable: AtomicU64,
    /// Taken with the index held, and never without it.
    pub(super) recent: Mutex<Recent>,
    /// Held while snapshots and segments are read or removed, so that nobody folds files that are going away.
    pub(super) files: Mutex<()>,
    pub(super) health: Mutex<Health>,
    /// Tells who waits for changes which sequence is readable.
    pub(super) readable: watch::Sender<u64>,
    /// Set when the store closes, so that long work ends early.
    pub(super) stopping: AtomicBool,
    pub(super) blob_segment: AtomicU64,
    pub(super) figures: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) groups: AtomicU64,
    pub(super) transactions: AtomicU64,
    pub(super) rebuilds: AtomicU64,
    pub(super) snapshots: AtomicU64,
}

impl Shared {
    /// Reads from the index; a damaged one is rebuilt first, by whoever meets the damage.
    pub(super) fn read<T>(&self, read: impl Fn(&Index) -> Result<T, IndexFault>) -> Result<T, StoreError> {
        let fault = match read(&self.index.read().unwrap_or_else(PoisonError::into_inner)) {
            Ok(value) => return Ok(value),
            Err(fault) => fault,
        };
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        // Another reader may have rebuilt it meanwhile.
        if let Ok(value) = read(&index) {
            return Ok(value);
        }
        self.rebuild(&mut index, &fault);
        read(&index).map_err(|IndexFault(reason)| StoreError::Index { reason })
    }

    /// Replaces the index by one made from the files, in memory if sled cannot be had. The caller holds it for writing,
    /// so the writer's next group is applied after this, on top.
    pub(super) fn rebuild(&self, index: &mut Index, cause: &IndexFault) {
        tracing::warn!(cause = %cause.0, "the index is rebuilt from the journal");
        self.figures.rebuilds.fetch_add(1, Ordering::Relaxed);
        // The old one must have let go of its files first.
        *index = Index::Broken("it is being rebuilt".to_owned());
        let folded = {
            let _files = self.lock_files();
            snapshot::fold(&self.directory, self.durable.load(Ordering::SeqCst), &self.stopping)
        };
        *index = match folded {
            Ok(state) => match index::build(&self.directory, &state) {
                Ok(built) => Index::Sled(built),
                Err(IndexFault(reason)) => {
                    tracing::warn!(%reason, "the index cannot be written, records are served from memory");
                    Index::Memory(MemoryIndex::build(state))
                }
            },
            Err(error) => {
                tracing::error!(%error, "the index is damaged and cannot be rebuilt");
                Index::Broken(format!("{} and the files do not give it back: {error}", cause.0))
            }
        };
    }

    pub(super) fn lock_files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }
}
