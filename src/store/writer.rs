//! The writer: one thread that runs all transactions and makes them durable in groups.
//!
//! While a group is being synced the next one gathers, so one or two syncs carry everyone who waits, without a timer.
//! The order is fixed: blobs, then the journal's frame, then the index, then the answers. A full disk fails the group
//! and nothing else; a failed sync ends all writing until the store is opened again.

use super::blobs::BlobWriter;
use super::disk::WriteFault;
use super::frame::{self, Changes};
use super::index::{Index, IndexFault};
use super::journal::{self, Journal};
use super::open::FolderLock;
use super::shared::Shared;
use super::transaction::Transaction;
use super::{Health, StoreError, snapshot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// A group takes no further transaction above these.
const GROUP_TRANSACTIONS: usize = 1024;
const GROUP_BYTES: usize = 32 << 20;
/// The journal is folded into a snapshot once this much of it, and twice the last snapshot, has gathered.
const FOLD_BYTES: u64 = 8 << 20;

pub(super) enum Message {
    Work(Work),
    Compact(Waiter),
    Compacted(Result<u64, StoreError>),
    Stop,
}

/// Work to run in a transaction, or the reason why it will not run.
pub(super) type Work = Box<dyn FnOnce(Result<&mut Transaction<'_>, StoreError>) -> Verdict + Send>;
type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// What work came to: whether its writes count, and how to answer once the group's fate is known.
pub(super) struct Verdict {
    pub(super) keep: bool,
    pub(super) answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) generation: u64,
    pub(super) journal: Journal,
    pub(super) blobs: BlobWriter,
    pub(super) messages: Receiver<Message>,
    /// For the thread that folds, to say that it is done.
    pub(super) own: Sender<Message>,
    pub(super) compaction: Option<JoinHandle<()>>,
    pub(super) compaction_waiters: Vec<Waiter>,
    /// The journal's length at which to fold next.
    pub(super) fold_at: u64,
    /// Held until the index is closed.
    pub(super) lock: FolderLock,
}

struct Group {
    changes: Changes,
    answers: Vec<Answer>,
    bytes: usize,
}

pub(super) fn fold_threshold(snapshot_size: u64) -> u64 {
    FOLD_BYTES.max(2 * snapshot_size)
}

impl Writer {
    /// Runs until the store is dropped. A panic here is a bug of the store; who waits is told that it is closed.
    pub(super) fn run_and_report(self) {
        let shared = self.shared.clone();
        if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            tracing::error!("the store's writer panicked, no write counts until the store is opened again");
            shared.set_health(Health::Poisoned { reason: "the writer panicked".to_owned() });
        }
    }

    fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            let mut group = Group { changes: Changes::new(), answers: Vec::new(), bytes: 0 };
            let mut next = Some(message);
            let mut stop = false;
            while let Some(message) = next {
                match message {
                    Message::Work(work) => self.run_work(&mut group, work),
                    Message::Compact(waiter) => {
                        self.compaction_waiters.push(waiter);
                        self.start_compaction();
                    }
                    Message::Compacted(outcome) => self.finish_compaction(outcome),
                    Message::Stop => stop = true,
                }
                let full = group.answers.len() >= GROUP_TRANSACTIONS
                    || group.bytes + self.blobs.pending() >= GROUP_BYTES
                    || stop;
                next = if full { None } else { self.messages.try_recv().ok() };
            }
            self.commit(group);
            if self.journal.unfolded_bytes() >= self.fold_at {
                self.start_compaction();
            }
            if stop {
                break;
            }
        }
        self.close();
    }

    fn run_work(&mut self, group: &mut Group, work: Work) {
        if let Health::Poisoned { reason } = self.shared.health() {
            let verdict = work(Err(StoreError::unavailable(reason.clone())));
            (verdict.answer)(Err(StoreError::unavailable(reason)));
            return;
        }
        let mut transaction = Transaction::begin(&self.shared, self.generation, &group.changes, &mut self.blobs);
        let verdict = work(Ok(&mut transaction));
        let changes = transaction.end(verdict.keep);
        group.bytes +=
            changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, bytes::Bytes::len)).sum::<usize>();
        group.changes.extend(changes);
        group.answers.push(verdict.answer);
    }

    fn commit(&mut self, group: Group) {
        let Group { changes, answers, .. } = group;
        let outcome = if changes.is_empty() { Ok(()) } else { self.make_durable(&changes) };
        self.shared.figures.transactions.fetch_add(answers.len() as u64, Ordering::Relaxed);
        for answer in answers {
            answer(outcome.clone());
        }
    }

    fn make_durable(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let payload = frame::encode_changes(changes.iter().map(|(key, value)| (key, value.as_ref())));
        let written = self.blobs.write().and_then(|()| self.journal.append(self.generation, &payload));
        let mark = match written {
            Ok(mark) => mark,
            Err(fault) => return Err(self.give_up(fault)),
        };
        self.blobs.keep();
        self.shared.blob_segment.store(u64::from(self.blobs.segment()), Ordering::SeqCst);
        self.shared.figures.groups.fetch_add(1, Ordering::Relaxed);
        // From here on the group counts, whatever happens to the index.
        self.shared.durable.store(mark.sequence, Ordering::SeqCst);
        {
            let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            if let Err(fault) = index.apply(changes, mark) {
                self.shared.rebuild(&mut index, &fault);
            }
            let mut recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.note(mark.sequence, changes.keys());
        }
        self.shared.set_health(Health::Ready);
        self.shared.readable.send_replace(mark.sequence);
        Ok(())
    }

    /// Takes the group back and says what that means for the next one.
    fn give_up(&mut self, fault: WriteFault) -> StoreError {
        let fault = match (fault, self.blobs.take_back()) {
            (WriteFault::Clean(reason), Ok(())) => WriteFault::Clean(reason),
            (WriteFault::Clean(reason), Err(WriteFault::Clean(second) | WriteFault::Poisoned(second))) => {
                WriteFault::Poisoned(format!("{reason}, then {second}"))
            }
            (poisoned, _) => poisoned,
        };
        match fault {
            WriteFault::Clean(reason) => {
                tracing::error!(%reason, "nothing of the group was kept, the next one may succeed");
                self.shared.set_health(Health::Refusing { reason: reason.clone() });
                StoreError::unavailable(reason)
            }
            WriteFault::Poisoned(reason) => {
                tracing::error!(%reason, "no write counts until the store is opened again");
                self.shared.set_health(Health::Poisoned { reason: reason.clone() });
                StoreError::unavailable(reason)
            }
        }
    }

    fn start_compaction(&mut self) {
        if self.compaction.is_some() {
            return;
        }
        if self.shared.durable.load(Ordering::SeqCst) != self.journal.mark().sequence {
            return;
        }
        if let Err(error) = self.journal.rotate() {
            let folder = journal::folder(&self.shared.directory);
            self.finish_compaction(Err(StoreError::io("start a journal file in", &folder, error)));
            return;
        }
        let (shared, own, up_to) = (self.shared.clone(), self.own.clone(), self.journal.mark().sequence);
        let spawned = std::thread::Builder::new().name("store-compaction".to_owned()).spawn(move || {
            let _ = own.send(Message::Compacted(compact(&shared, up_to)));
        });
        match spawned {
            Ok(handle) => self.compaction = Some(handle),
            Err(error) => {
                self.finish_compaction(Err(StoreError::io(
                    "start a thread for",
                    &self.shared.directory.clone(),
                    error,
                )));
            }
        }
    }

    fn finish_compaction(&mut self, outcome: Result<u64, StoreError>) {
        if let Some(handle) = self.compaction.take() {
            let _ = handle.join();
        }
        match &outcome {
            Ok(size) => {
                self.fold_at = fold_threshold(*size);
                self.shared.figures.snapshots.fetch_add(1, Ordering::Relaxed);
                let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
                if let Index::Memory(_) = *index {
                    self.shared.rebuild(&mut index, &IndexFault("it was in memory".to_owned()));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the journal could not be folded into a snapshot, it stays as it is");
                self.fold_at = self.journal.unfolded_bytes() + FOLD_BYTES;
            }
        }
        for waiter in self.compaction_waiters.drain(..) {
            let _ = waiter.send(outcome.as_ref().map(|_| ()).map_err(StoreError::clone));
        }
    }

    fn close(mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(handle) = self.compaction.take() {
            let _ = handle.join();
        }
        *self.shared.index.write().unwrap_or_else(PoisonError::into_inner) =
            Index::Broken("the store is closed".to_owned());
        drop(self.lock);
    }
}

/// Folds everything up to `up_to` into a snapshot. Returns the snapshot's size in bytes.
fn compact(shared: &Shared, up_to: u64) -> Result<u64, StoreError> {
    // Taken first: who rebuilds the index holds it while waiting for the files.
    let flusher = shared.index.read().unwrap_or_else(PoisonError::into_inner).flusher();
    let _files = shared.lock_files();
    let state = snapshot::fold(&shared.directory, up_to, &shared.stopping)?;
    let size = snapshot::write(&shared.disk, &shared.directory, &state, || {
        // An index flushed up to here needs nothing from before the snapshot at the next start.
        if let Some(database) = flusher
            && let Err(error) = database.flush()
        {
            tracing::warn!(%error, "the index could not be flushed");
        }
    })?;
    snapshot::remove_superseded(&shared.directory)?;
    Ok(size)
}
