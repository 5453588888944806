//! Blobs: contents too large for a record, such as webhook payloads, in append-only segment files.
//!
//! The writer appends a group's blobs and syncs them before it writes the journal frame that refers to them, so a
//! reference that can be read always has its bytes. Each segment's durable length is a record of its own; what lies
//! beyond it was never acknowledged and is cut off at the next opening. Segments are removed whole (`prune`).
//! Contents are stored as they are: compressing 24 KB of JSON would cost the single writer more than the disk saves.

use super::disk::{AppendFile, Disk, WriteFault};
use super::{StoreError, Table};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Segments are closed above this length, so that pruning by age frees space in good time.
const SEGMENT_LENGTH: u64 = 64 << 20;
/// The longest blob: GitHub's cap on a webhook payload (25 MB), with room for a form encoding of it.
pub const BLOB_LIMIT: usize = 100 << 20;

/// One record for each segment, keyed by its number.
pub(super) const SEGMENTS: Table = Table("blob_segments");

/// Where a blob stands; kept in the record that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    pub segment: u32,
    /// Bytes from the start of the segment.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    pub crc32c: u32,
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentRecord {
    /// How many bytes of it are durable.
    pub(super) length: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) pruned: bool,
}

pub(super) fn segment_key(segment: u32) -> [u8; 4] {
    segment.to_be_bytes()
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("blobs")
}

pub(super) fn segment_path(directory: &Path, segment: u32) -> PathBuf {
    folder(directory).join(format!("{segment:08}.seg"))
}

/// Reads a blob and checks it. A file that is gone is `None`; who calls knows whether it was pruned.
pub(super) fn read(directory: &Path, reference: &BlobRef) -> Result<Option<Vec<u8>>, StoreError> {
    let BlobRef { segment, offset, length, crc32c } = *reference;
    let path = segment_path(directory, segment);
    let damaged = |reason: &str| StoreError::BlobDamaged { segment, offset, reason: reason.to_owned() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", &path, error)),
    };
    // The length comes from a record, yet is not trusted with memory beyond what the file can hold.
    let available = file.metadata().map_err(|error| StoreError::io("read", &path, error))?.len();
    if offset.checked_add(u64::from(length)).is_none_or(|end| end > available) {
        return Err(damaged("the segment is shorter than that"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset).map_err(|error| StoreError::io("read", &path, error))?;
    if crc32c::crc32c(&bytes) != crc32c {
        return Err(damaged("it fails its checksum"));
    }
    Ok(Some(bytes))
}

/// The open end of the blobs, and what the current group adds to it.
#[derive(Debug)]
pub(super) struct BlobWriter {
    disk: Disk,
    directory: PathBuf,
    segment: u32,
    /// Opened with the first blob, so that a store without blobs has no segment file.
    file: Option<AppendFile>,
    /// Durable bytes in the segment.
    length: u64,
    pending: Vec<u8>,
}

impl BlobWriter {
    /// Goes on after the newest segment; `recorded` is its number and record.
    pub(super) fn open(
        disk: &Disk,
        directory: &Path,
        recorded: Option<(u32, SegmentRecord)>,
    ) -> Result<BlobWriter, StoreError> {
        let mut writer = BlobWriter {
            disk: disk.clone(),
            directory: directory.to_owned(),
            segment: recorded.map_or(1, |(segment, _)| segment),
            file: None,
            length: 0,
            pending: Vec::new(),
        };
        let Some((segment, record)) = recorded else { return Ok(writer) };
        let path = segment_path(directory, segment);
        match fs::metadata(&path) {
            Ok(metadata) if !record.pruned && metadata.len() >= record.length => {
                let file = AppendFile::open(disk, &path, record.length);
                writer.file = Some(file.map_err(|error| StoreError::io("open", &path, error))?);
                writer.length = record.length;
            }
            // Never append where bytes are missing: an old reference could then find new bytes.
            _ => writer.segment += 1,
        }
        Ok(writer)
    }

    pub(super) fn segment(&self) -> u32 {
        self.segment
    }

    /// Bytes that the current group has added.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The record that the group's frame has to carry.
    pub(super) fn record(&self) -> SegmentRecord {
        SegmentRecord { length: self.length + self.pending.len() as u64, pruned: false }
    }

    /// Adds a blob to the group.
    pub(super) fn add(&mut self, bytes: &Bytes) -> BlobRef {
        let offset = self.length + self.pending.len() as u64;
        self.pending.extend_from_slice(bytes);
        BlobRef {
            segment: self.segment,
            offset,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            crc32c: crc32c::crc32c(bytes),
        }
    }

    /// Forgets what was added after the group had `pending` bytes.
    pub(super) fn forget_after(&mut self, pending: usize) {
        self.pending.truncate(pending);
    }

    /// Makes the group's blobs durable.
    pub(super) fn write(&mut self) -> Result<(), WriteFault> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let path = segment_path(&self.directory, self.segment);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let created = AppendFile::create(&self.disk, &path)
                    .map_err(|error| WriteFault::Clean(format!("creating {} failed: {error}", path.display())))?;
                self.file.insert(created)
            }
        };
        file.append_durably(&self.pending)
    }

    /// The group's frame is durable: its blobs count.
    pub(super) fn keep(&mut self) {
        self.length += self.pending.len() as u64;
        self.pending.clear();
        if self.pending.capacity() > 8 << 20 {
            self.pending = Vec::new();
        }
        if self.length >= SEGMENT_LENGTH {
            self.segment += 1;
            self.file = None;
            self.length = 0;
        }
    }

    /// The group failed: its blobs are taken back.
    pub(super) fn take_back(&mut self) -> Result<(), WriteFault> {
        self.pending.clear();
        match &mut self.file {
            Some(file) if file.length() != self.length => file
                .cut_back(self.length)
                .map_err(|error| WriteFault::Poisoned(format!("cutting blobs back failed: {error}"))),
            _ => Ok(()),
        }
    }
}
