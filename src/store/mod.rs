//! The store: what Landfall must not forget. The only module that knows sled.
//!
//! The truth is a journal of checksummed frames; sled is an index over it that is rebuilt whenever it is missing, behind
//! or damaged. One writer thread runs all transactions, makes them durable in groups and only then answers, so nobody is
//! told of anything that a power cut could take back. Records are JSON values under a table and a key; their types are
//! none of this module's business (give them a version field and serde defaults). Large contents are blobs. Reads are
//! synchronous and see the last durable group.
//!
//! ```text
//! lock · format · generation · journal/<first sequence>.journal · snapshots/<sequence>.snapshot · blobs/<number>.seg · index/ (sled) · boot
//! ```

mod blobs;
mod decoded;
mod disk;
mod error;
mod frame;
mod index;
mod journal;
mod keys;
mod migrate;
mod open;
pub mod queue;
mod records;
mod repair;
mod shared;
mod snapshot;
mod transaction;
mod transfer;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod tests;

pub use blobs::{BLOB_LIMIT, BlobRef};
pub use error::StoreError;
pub use keys::{Table, key_number, number_key};
pub use migrate::FORMAT;
pub use records::{DeliveryRecord, Reported, SEALED, StoredRoute};
pub use repair::{Repaired, repair};
pub use transaction::{RECORD_LIMIT, TRANSACTION_LIMIT, Transaction};
pub use transfer::{Imported, import};

use crate::clock::Timestamp;
use crate::domain::{App, RunOutline};
use bytes::Bytes;
use decoded::Decoded;
use disk::Disk;
use index::KeyRange;
use serde::de::DeserializeOwned;
use shared::Shared;
use std::any::Any;
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use tokio::sync::{Semaphore, oneshot, watch};
use writer::{Message, Verdict, Work};

/// How many transactions may wait for the writer; who comes after waits before handing its work over.
const WAITING_TRANSACTIONS: usize = 4096;

/// An open store. Clones are the same store; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    generation: u64,
    opening: Opening,
    messages: Sender<Message>,
    permits: Semaphore,
    writer: Option<JoinHandle<()>>,
    apps: Decoded<App>,
    runs: Decoded<RunOutline>,
}

/// The order in which a scan yields keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Ascending,
    Descending,
}

/// Whether the store takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// The last group was refused, usually by a full disk; the next one may succeed.
    Refusing {
        reason: String,
    },
    /// A sync failed: no write counts until the store is opened again, so `serve` should end and be started anew.
    Poisoned {
        reason: String,
    },
}

/// What an opening had to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opening {
    /// An unfinished write, never acknowledged, was cut off the journal: somebody was killed or the power went.
    pub cut_torn_write: bool,
    /// How many groups only the index knew. Not zero after the journal alone was restored from a backup, or after its end
    /// was lost: what those groups held is gone, so outside state must be read again.
    pub groups_lost: u64,
}

/// Counts for metrics, since this opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    pub transactions: u64,
    /// Durable groups: `transactions / groups` says how well the syncs are shared.
    pub groups: u64,
    /// fsync and fdatasync calls on files.
    pub syncs: u64,
    pub index_rebuilds: u64,
    pub snapshots: u64,
    /// Whether the index had to be moved to memory.
    pub index_in_memory: bool,
}

/// What pruning removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    pub segments: u32,
    pub bytes: u64,
}

impl Store {
    /// Opens the store in `directory`, making it if there is none. Blocks: up to a second with 10,000 records, and up to
    /// five where the index of 100,000 must be rebuilt.
    ///
    /// Fails with [`StoreError::Locked`] if another process has it open, [`StoreError::NewerFormat`] if a later version
    /// wrote it, and [`StoreError::Damaged`] if what was acknowledged does not read back; see [`repair`].
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        open::open(directory, &Disk::default())
    }

    /// A store whose journal takes no write once, after so many more, when that is asked for.
    #[cfg(test)]
    pub(crate) fn open_on_a_disk_that_fills(directory: &Path) -> (Store, impl Fn(u32)) {
        let disk = Disk::default();
        let store = open::open(directory, &disk).expect("a store");
        let full = nix::errno::Errno::ENOSPC as i32;
        let fill = move |after| {
            let operation = disk::Operation::Write;
            let fault = disk::Fault { operation, file_contains: "journal", after, error_number: full, partial: 7 };
            disk.faults.lock().expect("nobody panicked").push(fault);
        };
        (store, fill)
    }

    /// The fencing number of this opening: durably one more than that of the opening before.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// What this opening had to mend.
    pub fn opening(&self) -> Opening {
        self.inner.opening
    }

    /// Runs `work` on the writer's thread, after all transactions before it and before all after it, over the newest
    /// state. Answers once what it wrote is on the disk and readable by everyone. If `work` fails, nothing of it is
    /// written; if it panics, likewise, and the answer is [`StoreError::Panicked`].
    ///
    /// After [`StoreError::Unavailable`] nothing can be relied on: it was not acknowledged, yet a record may turn up after
    /// a restart. `work` must not block, and may run even if the caller stops waiting.
    pub async fn transact<R, E>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<R, E> + Send + 'static,
    ) -> Result<R, E>
    where
        R: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let _permit = self.inner.permits.acquire().await.map_err(|_| E::from(StoreError::Closed))?;
        let (answer, answered) = oneshot::channel();
        self.inner.messages.send(Message::Work(boxed(work, answer))).map_err(|_| E::from(StoreError::Closed))?;
        answered.await.unwrap_or_else(|_| Err(E::from(StoreError::Closed)))
    }

    /// [`Store::transact`] for callers outside of an async runtime.
    pub fn transact_blocking<R, E>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<R, E> + Send + 'static,
    ) -> Result<R, E>
    where
        R: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.inner.messages.send(Message::Work(boxed(work, answer))).map_err(|_| E::from(StoreError::Closed))?;
        answered.blocking_recv().unwrap_or_else(|_| Err(E::from(StoreError::Closed)))
    }

    /// Reads one record.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        let full = keys::full_key(table.0, key);
        let stored = self.inner.shared.read(|index| index.get(&full))?;
        stored.map(|value| decode(table, key, &value)).transpose()
    }

    /// All records whose keys start with `prefix`, in key order, as of one moment. The keys come without the table.
    pub fn scan<T: DeserializeOwned>(&self, table: Table, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        self.scan_page(table, prefix, None, usize::MAX, Order::Ascending)
    }

    /// At most `limit` records whose keys start with `prefix` and come after `after` in the given order.
    /// Pass the last key of a page to get the next one.
    pub fn scan_page<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let range = page_range(table, prefix, after, order);
        let found = self.inner.shared.read(|index| index.range(&range, limit, order == Order::Descending))?;
        decode_entries(table, found)
    }

    /// At most `limit` records with `from <= key < to`.
    pub fn scan_range<T: DeserializeOwned>(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        order: Order,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let range = KeyRange {
            from: Bound::Included(keys::full_key(table.0, from)),
            to: Bound::Excluded(keys::full_key(table.0, to)),
        };
        let found = self.inner.shared.read(|index| index.range(&range, limit, order == Order::Descending))?;
        decode_entries(table, found)
    }

    /// How many records a table has. The number is kept, so asking is cheap.
    pub fn count(&self, table: Table) -> Result<u64, StoreError> {
        self.inner.shared.read(|index| index.count(table.0))
    }

    /// Reads a blob and checks it against its checksum. One that was pruned is [`StoreError::BlobPruned`].
    pub fn blob(&self, reference: &BlobRef) -> Result<Vec<u8>, StoreError> {
        if let Some(bytes) = blobs::read(&self.inner.shared.directory, reference)? {
            return Ok(bytes);
        }
        let segment = reference.segment;
        let record = self.get::<blobs::SegmentRecord>(blobs::SEGMENTS, &blobs::segment_key(segment))?;
        Err(match record {
            Some(record) if record.pruned => StoreError::BlobPruned { segment },
            _ => StoreError::BlobDamaged {
                segment,
                offset: reference.offset,
                reason: "the segment's file is missing".to_owned(),
            },
        })
    }

    /// Removes the blob segments that were last written before `before`, except those in `wanted` and the current one.
    /// Segments are up to 64 MiB (more by one group), and their age is that of the file.
    pub async fn prune_blobs_before(&self, before: Timestamp, wanted: BTreeSet<u32>) -> Result<Pruned, StoreError> {
        let shared = &self.inner.shared;
        let current = shared.blob_segment.load(Ordering::SeqCst);
        let mut old = Vec::new();
        for (key, record) in self.scan::<blobs::SegmentRecord>(blobs::SEGMENTS, b"")? {
            let Some(segment) = key.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else { continue };
            let path = blobs::segment_path(&shared.directory, segment);
            if record.pruned || wanted.contains(&segment) || u64::from(segment) >= current {
                continue;
            }
            if let Ok(metadata) = path.metadata()
                && metadata.mtime().saturating_mul(1000) < before.0
            {
                old.push((segment, record, path));
            }
        }
        if old.is_empty() {
            return Ok(Pruned::default());
        }
        let pruned =
            Pruned { segments: old.len() as u32, bytes: old.iter().map(|(_, record, _)| record.length).sum::<u64>() };
        let marks: Vec<_> = old.iter().map(|(segment, record, _)| (*segment, *record)).collect();
        self.transact::<(), StoreError>(move |transaction| {
            for (segment, record) in marks {
                let record = blobs::SegmentRecord { pruned: true, ..record };
                transaction.put(blobs::SEGMENTS, &blobs::segment_key(segment), &record)?;
            }
            Ok(())
        })
        .await?;
        // A file that stays behind now is removed by the next opening.
        for (_, _, path) in &old {
            std::fs::remove_file(path).map_err(|error| StoreError::io("remove", path, error))?;
        }
        Ok(pruned)
    }

    /// Folds the journal into a snapshot and removes what that makes superfluous. It also happens by itself as the
    /// journal grows; transactions go on meanwhile.
    pub async fn compact(&self) -> Result<(), StoreError> {
        let (done, waiting) = oneshot::channel();
        self.inner.messages.send(Message::Compact(done)).map_err(|_| StoreError::Closed)?;
        waiting.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes everything as JSON lines, as of one moment, while the store is in use. [`import`] reads it.
    pub fn export(&self, out: &mut dyn Write) -> Result<(), StoreError> {
        transfer::export(&self.inner.shared, out)
    }

    /// Tells when something new can be read: the sequence of the newest group.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.readable.subscribe()
    }

    /// Whether the store takes writes.
    pub fn health(&self) -> Health {
        self.inner.shared.health()
    }

    /// Counts for metrics.
    pub fn figures(&self) -> Figures {
        let shared = &self.inner.shared;
        let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
        Figures {
            transactions: shared.figures.transactions.load(Ordering::Relaxed),
            groups: shared.figures.groups.load(Ordering::Relaxed),
            syncs: shared.disk.syncs(),
            index_rebuilds: shared.figures.rebuilds.load(Ordering::Relaxed),
            snapshots: shared.figures.snapshots.load(Ordering::Relaxed),
            index_in_memory: matches!(*index, index::Index::Memory(_)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
        // A transaction may hold the last clone; its own thread cannot wait for itself.
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != thread::current().id()
        {
            let _ = writer.join();
        }
    }
}

/// The keys of one page as a range.
fn page_range(table: Table, prefix: &[u8], after: Option<&[u8]>, order: Order) -> KeyRange {
    let mut range = KeyRange::prefix(keys::full_key(table.0, prefix));
    if let Some(after) = after {
        let after = Bound::Excluded(keys::full_key(table.0, after));
        match order {
            Order::Ascending => range.from = after,
            Order::Descending => range.to = after,
        }
    }
    range
}

fn decode<T: DeserializeOwned>(table: Table, key: &[u8], value: &Bytes) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Decode {
        table: table.0,
        key: keys::escape(key),
        type_name: std::any::type_name::<T>(),
        source: Arc::new(source),
    })
}

fn decode_entries<T: DeserializeOwned>(
    table: Table,
    entries: impl IntoIterator<Item = (Vec<u8>, Bytes)>,
) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
    entries
        .into_iter()
        .map(|(full, value)| {
            let key = full.get(table.0.len() + 1..).unwrap_or_default().to_vec();
            let value = decode(table, &key, &value)?;
            Ok((key, value))
        })
        .collect()
}

/// Work as the writer runs it: the answer is kept back until the group's fate is known.
fn boxed<R, E>(
    work: impl FnOnce(&mut Transaction<'_>) -> Result<R, E> + Send + 'static,
    answer: oneshot::Sender<Result<R, E>>,
) -> Work
where
    R: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    Box::new(move |transaction: Result<&mut Transaction<'_>, StoreError>| {
        let result = transaction.map_err(E::from).and_then(|transaction| {
            match catch_unwind(AssertUnwindSafe(|| work(transaction))) {
                Ok(Ok(value)) => transaction.failure().map_or(Ok(value), |failure| Err(E::from(failure))),
                Ok(Err(error)) => Err(error),
                Err(panic) => Err(E::from(StoreError::Panicked { message: panic_message(&*panic) })),
            }
        });
        Verdict {
            keep: result.is_ok(),
            answer: Box::new(move |durable| {
                let _ = answer.send(durable.map_err(E::from).and(result));
            }),
        }
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
