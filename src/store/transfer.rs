//! Export and import: the whole store as JSON lines, in the words of the journal's frames.
//!
//! An export is folded from the files like a snapshot, so it is of one moment although the store is in use. Blob
//! segments go along in pieces at their old places, so that references stay valid. The last line says how much there
//! must have been: an export cut short is refused. An import makes a new folder and never touches an existing store.

use super::blobs::{self, SegmentRecord};
use super::disk::{self, Disk};
use super::frame::{self, Mark, WrittenChange};
use super::shared::Shared;
use super::snapshot::{self, State};
use super::{StoreError, journal, keys, migrate, open};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a blob segment in one line.
const PIECE: usize = 1 << 20;

/// What an import brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    pub records: u64,
    pub blob_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Head {
    landfall_export: u32,
    sequence: u64,
    generation: u64,
}

#[derive(Serialize, Deserialize)]
struct BlobPiece {
    blob_segment: u32,
    offset: u64,
    crc32c: u32,
    base64: String,
}

#[derive(Serialize, Deserialize)]
struct End {
    end: EndCounts,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct EndCounts {
    records: u64,
    blob_bytes: u64,
    crc32c: u32,
}

pub(super) fn export(shared: &Shared, out: &mut dyn Write) -> Result<(), StoreError> {
    let _files = shared.lock_files();
    let state = snapshot::fold(&shared.directory, shared.durable.load(Ordering::SeqCst), &shared.stopping)?;
    let failed = |source| StoreError::Io { action: "write", path: "the export".to_owned(), source: Arc::new(source) };
    let mut lines = Lines { out, crc: 0 };
    let head = Head { landfall_export: 1, sequence: state.mark.sequence, generation: state.mark.generation };
    lines.json(&head).map_err(failed)?;
    for (key, value) in &state.records {
        let mut line = Vec::with_capacity(key.len() + value.len() + 32);
        frame::write_change(&mut line, key, Some(value));
        lines.line(line).map_err(failed)?;
    }
    let mut blob_bytes = 0;
    for (segment, record) in segment_records(&state)? {
        if !record.pruned {
            blob_bytes += export_segment(&shared.directory, segment, record.length, &mut lines)?;
        }
    }
    let end = EndCounts { records: state.records.len() as u64, blob_bytes, crc32c: lines.crc };
    lines.json(&End { end }).and_then(|()| lines.out.flush()).map_err(failed)
}

fn segment_records(state: &State) -> Result<Vec<(u32, SegmentRecord)>, StoreError> {
    let prefix = keys::full_key(blobs::SEGMENTS.0, b"");
    let entries = state.records.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let entries = entries.map(|(key, value)| (key.clone(), value.clone()));
    let decoded = super::decode_entries::<SegmentRecord>(blobs::SEGMENTS, entries)?;
    let number = |key: &[u8]| key.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
    Ok(decoded.into_iter().filter_map(|(key, record)| Some((number(&key)?, record))).collect())
}

fn export_segment(directory: &Path, segment: u32, length: u64, lines: &mut Lines) -> Result<u64, StoreError> {
    let path = blobs::segment_path(directory, segment);
    let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
    let mut offset = 0;
    while offset < length {
        let mut piece = vec![0; PIECE.min(usize::try_from(length - offset).unwrap_or(PIECE))];
        file.read_exact_at(&mut piece, offset).map_err(|error| StoreError::io("read", &path, error))?;
        let line = BlobPiece {
            blob_segment: segment,
            offset,
            crc32c: crc32c::crc32c(&piece),
            base64: STANDARD.encode(&piece),
        };
        lines.json(&line).map_err(|error| StoreError::io("export", &path, error))?;
        offset += piece.len() as u64;
    }
    Ok(length)
}

struct Lines<'a> {
    out: &'a mut dyn Write,
    /// Over all lines so far, so that a changed record is found as well as a missing one.
    crc: u32,
}

impl Lines<'_> {
    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.line(serde_json::to_vec(value)?)
    }

    fn line(&mut self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        self.crc = crc32c::crc32c_append(self.crc, &line);
        self.out.write_all(&line)
    }
}

/// Makes a store in `directory`, which must be empty or missing, from what [`super::Store::export`] wrote.
pub fn import(directory: &Path, input: &mut dyn BufRead) -> Result<Imported, StoreError> {
    let refused = |reason: String| StoreError::Import { reason };
    disk::create_folder(directory).map_err(|error| StoreError::io("create", directory, error))?;
    let _lock = open::lock(directory)?;
    let others = fs::read_dir(directory).map_err(|error| StoreError::io("list", directory, error))?;
    if others.flatten().any(|entry| entry.file_name() != "lock") {
        return Err(refused(format!("{} is not empty", directory.display())));
    }
    let disk = Disk::default();
    for folder in [journal::folder(directory), snapshot::folder(directory), blobs::folder(directory)] {
        disk::create_folder(&folder).map_err(|error| StoreError::io("create", &folder, error))?;
    }

    let mut line = String::new();
    let mut number = 0_u64;
    let mut crc = 0;
    let mut state = State::default();
    let mut segments = BTreeMap::new();
    let mut counts = EndCounts { records: 0, blob_bytes: 0, crc32c: 0 };
    let mut ended = false;
    loop {
        line.clear();
        number += 1;
        let read = input.read_line(&mut line).map_err(|error| refused(format!("line {number}: {error}")))?;
        if read == 0 {
            break;
        }
        let wrong = |what: &dyn std::fmt::Display| refused(format!("line {number}: {what}"));
        if ended {
            return Err(wrong(&"something follows the last line"));
        }
        if number == 1 {
            let head: Head = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
            if head.landfall_export != 1 {
                return Err(wrong(&format!("export format {} is not known here", head.landfall_export)));
            }
            state.mark = Mark { sequence: head.sequence.max(1), generation: head.generation, crc: 0 };
        } else if line.starts_with("{\"end\":") {
            let end: End = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
            counts.crc32c = crc;
            if end.end != counts {
                return Err(wrong(&"the lines before are not what was exported"));
            }
            ended = true;
        } else if line.starts_with("{\"blob_segment\":") {
            let piece: BlobPiece = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
            counts.blob_bytes += import_piece(directory, &mut segments, &piece).map_err(|reason| wrong(&reason))?;
        } else {
            let change: WrittenChange = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
            let (key, value) = change.read().map_err(|reason| wrong(&reason))?;
            let value = value.ok_or_else(|| wrong(&"an export holds no removals"))?;
            state.records.insert(key, value);
            counts.records += 1;
        }
        crc = crc32c::crc32c_append(crc, line.as_bytes());
    }
    if !ended {
        return Err(refused("the export is cut short: its last line is missing".to_owned()));
    }
    let folder = blobs::folder(directory);
    for file in segments.values() {
        File::sync_all(file).map_err(|error| StoreError::io("sync", &folder, error))?;
    }
    disk::sync_folder(&folder).map_err(|error| StoreError::io("sync", &folder, error))?;
    journal::create_after(&disk, directory, state.mark)?;
    snapshot::write(&disk, directory, &state, || ())?;
    migrate::write(&disk, directory)?;
    Ok(Imported { records: counts.records, blob_bytes: counts.blob_bytes })
}

fn import_piece(directory: &Path, segments: &mut BTreeMap<u32, File>, piece: &BlobPiece) -> Result<u64, String> {
    let bytes = STANDARD.decode(&piece.base64).map_err(|error| error.to_string())?;
    if crc32c::crc32c(&bytes) != piece.crc32c {
        return Err("a piece of a blob fails its checksum".to_owned());
    }
    let file = match segments.entry(piece.blob_segment) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => {
            let path = blobs::segment_path(directory, piece.blob_segment);
            let file = OpenOptions::new().write(true).create_new(true).open(&path);
            entry.insert(file.map_err(|error| format!("cannot create {}: {error}", path.display()))?)
        }
    };
    file.write_all_at(&bytes, piece.offset).map_err(|error| error.to_string())?;
    Ok(bytes.len() as u64)
}
