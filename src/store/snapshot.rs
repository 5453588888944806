//! Snapshots: all records at one sequence, so that a start reads little and the journal does not grow for ever.
//!
//! A snapshot is folded from the one before and the journal's files, never from the index, so that damage in the index
//! cannot become truth. It is written beside, synced and renamed. Two are kept, with the journal since the older one:
//! when the newest does not read back, the one before and the journal give the same records.

use super::disk::Disk;
use super::frame::{self, Change, Mark};
use super::{StoreError, journal};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// About how many bytes of records stand in one frame of a snapshot.
const FRAME_BYTES: usize = 256 << 10;

/// All records at one sequence.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) records: BTreeMap<Vec<u8>, Bytes>,
    pub(super) mark: Mark,
}

impl State {
    fn apply(&mut self, changes: Vec<Change>) {
        for (key, value) in changes {
            match value {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    snapshot: HeadMark,
}

#[derive(Serialize, Deserialize)]
struct HeadMark {
    sequence: u64,
    generation: u64,
    crc: u32,
    records: u64,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("snapshots")
}

pub(super) fn newest_first(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let folder = folder(directory);
    let mut found =
        journal::numbered_files(&folder, "snapshot").map_err(|error| StoreError::io("list", &folder, error))?;
    found.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
    Ok(found)
}

/// Where a snapshot stands, from its first frame alone.
pub(super) fn head(path: &Path, sequence: u64) -> Result<Mark, StoreError> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut start))
        .map_err(|error| StoreError::io("read", path, error))?;
    Ok(parse_head(path, &start, sequence)?.0)
}

fn parse_head(path: &Path, file: &[u8], sequence: u64) -> Result<(Mark, u64, usize), StoreError> {
    let frame = frame::read(file, 0).map_err(|_| StoreError::damaged(path, 0, "the snapshot has no readable head"))?;
    let head: Head = serde_json::from_slice(frame.payload)
        .map_err(|error| StoreError::damaged(path, 0, format!("the snapshot's head does not read: {error}")))?;
    if head.v != 1 || head.snapshot.sequence != sequence {
        return Err(StoreError::damaged(path, 0, "the snapshot's head names another snapshot"));
    }
    let HeadMark { sequence, generation, crc, records } = head.snapshot;
    Ok((Mark { sequence, generation, crc }, records, frame.end))
}

fn load(path: &Path, sequence: u64) -> Result<State, StoreError> {
    let file = fs::read(path).map_err(|error| StoreError::io("read", path, error))?;
    let (mark, records, mut offset) = parse_head(path, &file, sequence)?;
    let mut state = State { records: BTreeMap::new(), mark };
    while offset < file.len() {
        let damaged = |reason: String| StoreError::damaged(path, offset as u64, reason);
        let frame = frame::read(&file, offset).map_err(|reason| damaged(format!("{reason:?}")))?;
        state.apply(frame::decode_changes(frame.payload).map_err(damaged)?);
        offset = frame.end;
    }
    if state.records.len() as u64 != records {
        return Err(StoreError::damaged(path, offset as u64, "the snapshot ends before its last record"));
    }
    Ok(state)
}

/// All records as of frame `up_to`, from the files alone. `stop` gives up early when the store closes.
pub(super) fn fold(directory: &Path, up_to: u64, stop: &AtomicBool) -> Result<State, StoreError> {
    let mut first_failure = None;
    let mut state = None;
    for (sequence, path) in newest_first(directory)?.into_iter().filter(|(sequence, _)| *sequence <= up_to) {
        match load(&path, sequence) {
            Ok(loaded) => {
                state = Some(loaded);
                break;
            }
            Err(error) => {
                tracing::warn!(snapshot = %path.display(), %error, "a snapshot cannot be read, trying the one before");
                first_failure.get_or_insert(error);
            }
        }
    }
    let mut state = state.unwrap_or_default();
    for segment in journal::segments(directory)? {
        if state.mark.sequence >= up_to {
            break;
        }
        let file = fs::read(&segment.path).map_err(|error| StoreError::io("read", &segment.path, error))?;
        let mut offset = 0;
        while state.mark.sequence < up_to {
            let Ok(frame) = frame::read(&file, offset) else { break };
            if frame.mark.sequence == state.mark.sequence + 1 {
                let changes = frame::decode_changes(frame.payload)
                    .map_err(|reason| StoreError::damaged(&segment.path, offset as u64, reason))?;
                state.apply(changes);
                state.mark = frame.mark;
            }
            offset = frame.end;
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Closed);
            }
        }
    }
    if state.mark.sequence != up_to {
        let place = journal::folder(directory);
        let reason = format!("frame {} cannot be read back", state.mark.sequence + 1);
        return Err(first_failure.unwrap_or_else(|| StoreError::damaged(&place, 0, reason)));
    }
    Ok(state)
}

/// Writes a snapshot beside its place; it counts once it is renamed. Returns its size in bytes.
pub(super) fn write(
    disk: &Disk,
    directory: &Path,
    state: &State,
    before_it_counts: impl FnOnce(),
) -> Result<u64, StoreError> {
    let path = folder(directory).join(format!("{:020}.snapshot", state.mark.sequence));
    let mut size = 0;
    let Mark { sequence, generation, crc } = state.mark;
    let head = Head { v: 1, snapshot: HeadMark { sequence, generation, crc, records: state.records.len() as u64 } };
    let written = disk.replace_file(&path, |out| {
        let mut put = |payload: &[u8]| {
            let (bytes, _) = frame::encode(sequence, generation, payload);
            size += bytes.len() as u64;
            out.write_all(&bytes)
        };
        put(&serde_json::to_vec(&head)?)?;
        let mut records = state.records.iter().peekable();
        while records.peek().is_some() {
            let mut bytes = 0;
            let batch = std::iter::from_fn(|| {
                let (key, value) = records.next_if(|_| bytes < FRAME_BYTES)?;
                bytes += key.len() + value.len();
                Some((key, Some(value)))
            });
            put(&frame::encode_changes(batch))?;
        }
        before_it_counts();
        Ok(())
    });
    written.map_err(|error| StoreError::io("write", &path, error))?;
    Ok(size)
}

/// Keeps the two newest snapshots, and the journal since the older of them.
pub(super) fn remove_superseded(directory: &Path) -> Result<(), StoreError> {
    let found = newest_first(directory)?;
    for (_, path) in found.iter().skip(2) {
        fs::remove_file(path).map_err(|error| StoreError::io("remove", path, error))?;
    }
    match found.get(1) {
        Some((older, _)) => journal::remove_up_to(directory, *older),
        None => Ok(()),
    }
}
