//! The index: what all reads are served from. It is never the truth, so every doubt about it ends in a rebuild.
//!
//! sled 0.34 is used within its known limits (DEPENDENCIES, section 2): no `flush_async`, no `len()`, no transactions,
//! one tree, one batch per group that carries the mark of the journal frame it brings the index to. Values above
//! `PIECE` are cut into pieces, because a page of large values becomes files that sled never syncs. Everything read
//! stops at the first error; panics count as errors. When sled cannot be had at all (a full disk), the same records are
//! served from memory.

use super::frame::{Changes, Mark};
use super::keys;
use super::snapshot::State;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// The longest value kept in one piece. sled splits a page at 16 values, and a page over 128 KiB becomes a file.
const PIECE: usize = 3 << 10;
/// How many changes go into one batch while loading; a group is always one batch.
const LOAD_BATCH: usize = 256;

// Record keys start with a table's name, hence with a letter; these two sort before all of them.
const OWN: u8 = 0;
const PIECES: u8 = 1;
const WHOLE: u8 = 0;
const IN_PIECES: u8 = 1;

/// Why the index cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexFault(pub(super) String);

/// A range of full keys.
#[derive(Debug, Clone)]
pub(super) struct KeyRange {
    pub(super) from: Bound<Vec<u8>>,
    pub(super) to: Bound<Vec<u8>>,
}

impl KeyRange {
    pub(super) fn prefix(full_prefix: Vec<u8>) -> KeyRange {
        let to = keys::after_prefix(&full_prefix).map_or(Bound::Unbounded, Bound::Excluded);
        KeyRange { from: Bound::Included(full_prefix), to }
    }

    /// A range that no key can be in makes the standard library panic, so it is asked for first.
    pub(super) fn is_empty(&self) -> bool {
        match (&self.from, &self.to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
            _ => false,
        }
    }
}

pub(super) enum Index {
    Sled(SledIndex),
    Memory(MemoryIndex),
    /// Neither could be made; the text says why.
    Broken(String),
}

pub(super) struct SledIndex {
    database: sled::Db,
    counts: HashMap<String, u64>,
}

#[derive(Default)]
pub(super) struct MemoryIndex {
    records: BTreeMap<Vec<u8>, Bytes>,
    counts: HashMap<String, u64>,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("index")
}

/// Removes the index; the next opening rebuilds it.
pub(super) fn wipe(directory: &Path) -> Result<(), IndexFault> {
    let folder = folder(directory);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IndexFault(format!("cannot remove {}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

/// Opens what is there and says which frame it stands at; `None` for an index without a mark.
pub(super) fn open(directory: &Path) -> Result<(SledIndex, Option<Mark>), IndexFault> {
    let folder = folder(directory);
    remove_half_snapshots(&folder);
    let database = open_database(&folder)?;
    guarded(|| {
        let mark = match database.get([OWN, b'm'])? {
            Some(bytes) if bytes.len() == 20 => Some(Mark {
                sequence: number(&bytes[..8]),
                generation: number(&bytes[8..16]),
                crc: u32::try_from(number(&bytes[16..])).unwrap_or(0),
            }),
            _ => None,
        };
        let mut counts = HashMap::new();
        for entry in database.scan_prefix([OWN, b'c']) {
            let (key, value) = entry?;
            counts.insert(String::from_utf8_lossy(&key[2..]).into_owned(), number(&value));
        }
        Ok((SledIndex { database: database.clone(), counts }, mark))
    })
}

/// Makes a new sled index from all records.
pub(super) fn build(directory: &Path, state: &State) -> Result<SledIndex, IndexFault> {
    wipe(directory)?;
    let database = open_database(&folder(directory))?;
    let mut index = SledIndex { database, counts: HashMap::new() };
    guarded(|| {
        let mut batch = sled::Batch::default();
        let mut size = 0;
        for (key, value) in &state.records {
            insert(&mut batch, key, value);
            *index.counts.entry(keys::split(key).0.to_owned()).or_default() += 1;
            size += 1;
            if size == LOAD_BATCH {
                index.database.apply_batch(std::mem::take(&mut batch))?;
                size = 0;
            }
        }
        // The mark comes last: an index whose loading was cut short has none and is built again.
        index.write_counts(&mut batch, index.counts.keys());
        write_mark(&mut batch, state.mark);
        index.database.apply_batch(batch)
    })?;
    Ok(index)
}

impl MemoryIndex {
    pub(super) fn build(state: State) -> MemoryIndex {
        let mut counts = HashMap::new();
        for key in state.records.keys() {
            *counts.entry(keys::split(key).0.to_owned()).or_default() += 1;
        }
        MemoryIndex { records: state.records, counts }
    }
}

impl Index {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexFault> {
        match self {
            Index::Sled(index) => guarded(|| match index.database.get(key)? {
                Some(stored) => index.assemble(key, &stored).map(Some),
                None => Ok(None),
            }),
            Index::Memory(index) => Ok(index.records.get(key).cloned()),
            Index::Broken(reason) => Err(IndexFault(reason.clone())),
        }
    }

    /// The first `limit` entries of the range, from its end when `reverse`.
    pub(super) fn range(
        &self,
        range: &KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, IndexFault> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Index::Sled(index) => guarded(|| {
                let mut iterator = index.database.range((range.from.clone(), range.to.clone()));
                let mut found = Vec::new();
                while found.len() < limit {
                    // After an error the iterator would yield it for ever: `?` is what ends the loop.
                    let Some(entry) = (if reverse { iterator.next_back() } else { iterator.next() }) else { break };
                    let (key, stored) = entry?;
                    let value = index.assemble(&key, &stored)?;
                    found.push((key.to_vec(), value));
                }
                Ok(found)
            }),
            Index::Memory(index) => {
                let entries = index.records.range((range.from.clone(), range.to.clone()));
                let copy = |(key, value): (&Vec<u8>, &Bytes)| (key.clone(), value.clone());
                Ok(if reverse {
                    entries.rev().take(limit).map(copy).collect()
                } else {
                    entries.take(limit).map(copy).collect()
                })
            }
            Index::Broken(reason) => Err(IndexFault(reason.clone())),
        }
    }

    pub(super) fn count(&self, table: &str) -> Result<u64, IndexFault> {
        match self {
            Index::Sled(SledIndex { counts, .. }) | Index::Memory(MemoryIndex { counts, .. }) => {
                Ok(counts.get(table).copied().unwrap_or(0))
            }
            Index::Broken(reason) => Err(IndexFault(reason.clone())),
        }
    }

    /// Brings the index to `mark`. Applying the same changes twice does no harm.
    pub(super) fn apply(&mut self, changes: &Changes, mark: Mark) -> Result<(), IndexFault> {
        match self {
            Index::Sled(index) => guarded(|| index.apply(changes, mark)),
            Index::Memory(index) => {
                for (key, value) in changes {
                    let before = match value {
                        Some(value) => index.records.insert(key.clone(), value.clone()),
                        None => index.records.remove(key),
                    };
                    adjust(&mut index.counts, key, before.is_some(), value.is_some());
                }
                Ok(())
            }
            Index::Broken(reason) => Err(IndexFault(reason.clone())),
        }
    }

    /// A handle that can flush without holding the index.
    pub(super) fn flusher(&self) -> Option<sled::Db> {
        match self {
            Index::Sled(index) => Some(index.database.clone()),
            Index::Memory(_) | Index::Broken(_) => None,
        }
    }
}

impl SledIndex {
    fn apply(&mut self, changes: &Changes, mark: Mark) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        let mut counts = self.counts.clone();
        let mut touched = Vec::new();
        for (key, value) in changes {
            let before = self.database.get(key)?;
            let old_pieces = before.as_ref().map_or(0, |stored| piece_count(stored));
            let new_pieces = match value {
                Some(value) => insert(&mut batch, key, value),
                None => {
                    batch.remove(key.as_slice());
                    0
                }
            };
            for number in new_pieces..old_pieces {
                batch.remove(piece_key(key, number));
            }
            if before.is_some() != value.is_some() {
                adjust(&mut counts, key, before.is_some(), value.is_some());
                touched.push(keys::split(key).0.to_owned());
            }
        }
        let before = std::mem::replace(&mut self.counts, counts);
        self.write_counts(&mut batch, touched.iter());
        write_mark(&mut batch, mark);
        let applied = self.database.apply_batch(batch);
        if applied.is_err() {
            self.counts = before;
        }
        applied
    }

    /// What really stands in the tree.
    #[cfg(test)]
    pub(super) fn raw_keys(&self, range: &KeyRange) -> Vec<Vec<u8>> {
        let entries = self.database.range((range.from.clone(), range.to.clone()));
        entries.map(|entry| entry.unwrap().0.to_vec()).collect()
    }

    fn write_counts<'a>(&self, batch: &mut sled::Batch, tables: impl Iterator<Item = &'a String>) {
        for table in tables {
            let key = [&[OWN, b'c'], table.as_bytes()].concat();
            batch.insert(key, &self.counts.get(table).copied().unwrap_or(0).to_be_bytes());
        }
    }

    fn assemble(&self, key: &[u8], stored: &[u8]) -> sled::Result<Bytes> {
        match stored.first() {
            Some(&WHOLE) => Ok(Bytes::copy_from_slice(&stored[1..])),
            Some(&IN_PIECES) if stored.len() > 3 => {
                let mut value = stored[3..].to_vec();
                for number in 0..piece_count(stored) {
                    match self.database.get(piece_key(key, number))? {
                        Some(piece) => value.extend_from_slice(&piece),
                        None => return Err(damaged("a piece of a large value is missing")),
                    }
                }
                Ok(Bytes::from(value))
            }
            _ => Err(damaged("a value has no known shape")),
        }
    }
}

fn damaged(reason: &str) -> sled::Error {
    sled::Error::ReportableBug(reason.to_owned())
}

/// How many pieces besides the first one.
fn piece_count(stored: &[u8]) -> u16 {
    match stored {
        [IN_PIECES, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

fn piece_key(key: &[u8], number: u16) -> Vec<u8> {
    [&[PIECES], key, &number.to_be_bytes()].concat()
}

/// Writes a value, in pieces if it is long, and says how many there are besides the first.
fn insert(batch: &mut sled::Batch, key: &[u8], value: &[u8]) -> u16 {
    if value.len() <= PIECE {
        batch.insert(key, [&[WHOLE], value].concat());
        return 0;
    }
    let (first, rest) = value.split_at(PIECE);
    let mut pieces = 0_u16;
    for piece in rest.chunks(PIECE) {
        batch.insert(piece_key(key, pieces), piece);
        pieces += 1;
    }
    batch.insert(key, [&[IN_PIECES], &pieces.to_be_bytes()[..], first].concat());
    pieces
}

fn write_mark(batch: &mut sled::Batch, mark: Mark) {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&mark.sequence.to_be_bytes());
    bytes[8..16].copy_from_slice(&mark.generation.to_be_bytes());
    bytes[16..].copy_from_slice(&mark.crc.to_be_bytes());
    batch.insert(&[OWN, b'm'], &bytes);
}

fn adjust(counts: &mut HashMap<String, u64>, key: &[u8], before: bool, after: bool) {
    let count = counts.entry(keys::split(key).0.to_owned()).or_default();
    match (before, after) {
        (false, true) => *count += 1,
        (true, false) => *count = count.saturating_sub(1),
        _ => {}
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// sled takes these half-written files for snapshots and then refuses to open.
fn remove_half_snapshots(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.")
            && (name.ends_with(".generating") || entry.metadata().is_ok_and(|metadata| metadata.len() == 0))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn open_database(folder: &Path) -> Result<sled::Db, IndexFault> {
    let config = sled::Config::new().path(folder).cache_capacity(64 << 20).flush_every_ms(None);
    // The store's own lock keeps others out; an instance that was just dropped may hold sled's for a moment.
    let mut attempts = 0;
    loop {
        match guarded(|| config.open()) {
            Err(IndexFault(reason)) if reason.contains("could not acquire lock") && attempts < 100 => {
                attempts += 1;
                thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

/// Runs a call of sled; its panics on damaged pages are errors too.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexFault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IndexFault(error.to_string())),
        Err(_) => Err(IndexFault("sled panicked".to_owned())),
    }
}
