//! Opening: lock, check, read the truth, bring the index up to it, count the opening.
//!
//! Nothing is changed before everything was read and found whole. Every step may be cut short by a kill and is done
//! again by the next opening.

use super::blobs::{self, BlobWriter, SegmentRecord};
use super::decoded::{Decoded, Recent};
use super::disk::{self, Disk, WriteFault};
use super::frame::{self, Changes, Mark};
use super::index::{self, Index, IndexFault, KeyRange, SledIndex};
use super::journal::{self, Reading};
use super::records::{APPS, DECODED, RUNS};
use super::shared::{Counters, Shared};
use super::writer::{self, Writer};
use super::{Health, Inner, Opening, Store, StoreError, WAITING_TRANSACTIONS, keys, migrate, snapshot};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

pub(super) fn open(directory: &Path, disk: &Disk) -> Result<Store, StoreError> {
    disk::create_folder(directory).map_err(|error| StoreError::io("create", directory, error))?;
    let lock = lock(directory)?;
    prepare(directory, disk)?;

    let reading = journal::read(directory)?;
    let opened = open_index(directory);
    let groups_lost = check_witness(directory, &reading, opened.as_ref().ok().and_then(|(_, mark)| *mark))?;
    let opening = Opening { cut_torn_write: reading.torn.is_some(), groups_lost };
    let mut journal = journal::open(disk, directory, &reading)?;

    let shared = Arc::new(Shared {
        directory: directory.to_owned(),
        disk: disk.clone(),
        index: RwLock::new(Index::Broken("it is being opened".to_owned())),
        durable: AtomicU64::new(reading.last.sequence),
        files: Mutex::new(()),
        recent: Mutex::new(Recent::new(&DECODED, reading.last.sequence)),
        health: Mutex::new(Health::Ready),
        readable: watch::Sender::new(reading.last.sequence),
        stopping: AtomicBool::new(false),
        blob_segment: AtomicU64::new(0),
        figures: Counters::default(),
    });
    let known = opened.as_ref().ok().and_then(|(_, mark)| *mark).map_or(0, |mark| mark.generation);
    let generation = next_generation(directory, disk, known.max(reading.last.generation))?;
    let blobs = {
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        match opened.and_then(|opened| catch_up(opened, &reading)) {
            Ok(caught_up) => *index = Index::Sled(caught_up),
            Err(fault) => shared.rebuild(&mut index, &fault),
        }
        let mark = match journal.append(generation, &frame::encode_changes(std::iter::empty())) {
            Ok(mark) => mark,
            Err(WriteFault::Clean(reason) | WriteFault::Poisoned(reason)) => {
                return Err(StoreError::unavailable(reason));
            }
        };
        shared.durable.store(mark.sequence, Ordering::SeqCst);
        if let Err(fault) = index.apply(&Changes::new(), mark) {
            shared.rebuild(&mut index, &fault);
        }
        shared.readable.send_replace(mark.sequence);
        open_blobs(disk, directory, &index)?
    };
    shared.blob_segment.store(u64::from(blobs.segment()), Ordering::SeqCst);

    let (sender, messages) = mpsc::channel();
    let snapshot_size =
        snapshot::newest_first(directory)?.first().and_then(|(_, path)| path.metadata().ok()).map_or(0, |it| it.len());
    let writer = Writer {
        shared: shared.clone(),
        generation,
        journal,
        blobs,
        messages,
        own: sender.clone(),
        compaction: None,
        compaction_waiters: Vec::new(),
        fold_at: writer::fold_threshold(snapshot_size),
        lock,
    };
    let handle = thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run_and_report())
        .map_err(|error| StoreError::io("start the writer of", directory, error))?;
    let permits = Semaphore::new(WAITING_TRANSACTIONS);
    Ok(Store {
        inner: Arc::new(Inner {
            shared,
            generation,
            opening,
            messages: sender,
            permits,
            writer: Some(handle),
            apps: Decoded::new(APPS),
            runs: Decoded::new(RUNS),
        }),
    })
}

/// The folder's lock. It is given back by name when it goes: a program that is being started at that moment has a copy of
/// the file until it is executed, and merely closing ours would leave the lock with that copy.
pub(super) struct FolderLock(File);

#[cfg(test)]
impl FolderLock {
    pub(super) fn copy(&self) -> File {
        self.0.try_clone().unwrap()
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// How often a lock is asked for again, with a pause of 10 ms each. A process that was killed while it started a program leaves its lock with the copy of
/// that program-to-be, for some milliseconds; who really runs holds it longer than that.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// Takes the folder for this process. The kernel gives the lock back however the process ends.
pub(super) fn lock(directory: &Path) -> Result<FolderLock, StoreError> {
    let path = directory.join("lock");
    let failed = |error| StoreError::io("lock", &path, error);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let mut asked = 0;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if asked < PATIENCE => {
                asked += 1;
                thread::sleep(PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim().parse::<u32>() {
                    Ok(process) => format!("another landfall serve (process {process})"),
                    Err(_) => "another landfall serve".to_owned(),
                };
                return Err(StoreError::Locked { directory: directory.display().to_string(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    // Only for the message above; the lock itself needs no content, so a full disk does not matter here.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(FolderLock(file))
}

/// Makes the folders, checks the format and sweeps what a killed process left.
fn prepare(directory: &Path, disk: &Disk) -> Result<(), StoreError> {
    let folders = [journal::folder(directory), snapshot::folder(directory), blobs::folder(directory)];
    // A kill between the folders and the format file leaves empty folders, which are still a new store.
    let is_new = folders.iter().all(|folder| fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none()));
    for folder in &folders {
        disk::create_folder(folder).map_err(|error| StoreError::io("create", folder, error))?;
        disk::remove_temporaries(folder).map_err(|error| StoreError::io("sweep", folder, error))?;
    }
    disk::remove_temporaries(directory).map_err(|error| StoreError::io("sweep", directory, error))?;
    migrate::check(disk, directory, is_new)
}

/// The number of this opening, written down beside the journal: a journal that was cut or came from a backup must not make
/// a number that was given before be given again.
fn next_generation(directory: &Path, disk: &Disk, known: u64) -> Result<u64, StoreError> {
    let path = directory.join("generation");
    let written = fs::read_to_string(&path).ok().and_then(|text| text.trim_end().parse::<u64>().ok());
    let generation = known.max(written.unwrap_or(0)) + 1;
    disk.replace_file(&path, |out| writeln!(out, "{generation}"))
        .map_err(|error| StoreError::unavailable(format!("writing {} failed: {error}", path.display())))?;
    Ok(generation)
}

/// Opens the index, unless the machine was started anew since: sled does not sync, so what a power cut left of it is
/// not worth trusting.
fn open_index(directory: &Path) -> Result<(SledIndex, Option<Mark>), IndexFault> {
    let path = directory.join("boot");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if fs::read_to_string(&path).unwrap_or_default() != boot {
        index::wipe(directory)?;
        fs::write(&path, boot).map_err(|error| IndexFault(format!("cannot write {}: {error}", path.display())))?;
    }
    index::open(directory)
}

/// The index is given only what was durable before. If it knows frames that the journal does not give back, the end of
/// the journal was lost after it had been acknowledged, or the journal comes from a backup. Returns how many.
fn check_witness(directory: &Path, reading: &Reading, mark: Option<Mark>) -> Result<u64, StoreError> {
    let Some(mark) = mark else { return Ok(0) };
    if let Some(torn) = &reading.torn
        && mark.sequence >= torn.sequence
    {
        let reason = format!("frame {} was durable before and does not read back", torn.sequence);
        return Err(StoreError::damaged(&torn.path, torn.offset, reason));
    }
    if reading.tail.is_none() && mark.sequence > 0 {
        return Err(StoreError::damaged(&journal::folder(directory), 0, "all journal files are missing"));
    }
    let lost = mark.sequence.saturating_sub(reading.last.sequence);
    if lost > 0 {
        tracing::warn!(
            lost,
            index = mark.sequence,
            journal = reading.last.sequence,
            "the index is ahead of the journal, as after restoring a backup; what only the index knows is dropped"
        );
    }
    Ok(lost)
}

/// Applies the frames that the index has not seen, if it stands somewhere in this very history.
fn catch_up(opened: (SledIndex, Option<Mark>), reading: &Reading) -> Result<SledIndex, IndexFault> {
    let (index, mark) = opened;
    let mark = mark.ok_or_else(|| IndexFault("it is new".to_owned()))?;
    let missing = if mark == reading.base {
        &reading.frames[..]
    } else {
        match reading.frames.iter().position(|(frame, _)| *frame == mark) {
            Some(position) => &reading.frames[position + 1..],
            None => return Err(IndexFault(format!("it stands at frame {} of another history", mark.sequence))),
        }
    };
    let mut index = Index::Sled(index);
    for (mark, payload) in missing {
        let changes = frame::decode_changes(payload).map_err(IndexFault)?;
        index.apply(&changes.into_iter().collect(), *mark)?;
    }
    match index {
        Index::Sled(index) => Ok(index),
        Index::Memory(_) | Index::Broken(_) => Err(IndexFault("it was replaced".to_owned())),
    }
}

/// Goes on with the newest blob segment and removes files whose pruning was cut short.
fn open_blobs(disk: &Disk, directory: &Path, index: &Index) -> Result<BlobWriter, StoreError> {
    let range = KeyRange::prefix(keys::full_key(blobs::SEGMENTS.0, b""));
    let entries = index.range(&range, usize::MAX, false).map_err(|IndexFault(reason)| StoreError::Index { reason })?;
    let mut newest = None;
    for (key, record) in super::decode_entries::<SegmentRecord>(blobs::SEGMENTS, entries)? {
        let Some(segment) = key.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else { continue };
        if record.pruned {
            let _ = fs::remove_file(blobs::segment_path(directory, segment));
        }
        newest = Some((segment, record));
    }
    BlobWriter::open(disk, directory, newest)
}
