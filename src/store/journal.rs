//! The journal: the truth. Segments of frames, appended by one writer, one frame per group of transactions.
//!
//! A group is one frame, so a torn group exposes nothing, and only the last frame of the last segment can be one that
//! was never acknowledged. That makes reading strict: a torn last frame is cut away, anything else that does not read
//! back is damage and refuses to open. A segment is named by the sequence of its first frame; a new one begins with
//! each snapshot (`snapshot`), which makes older ones superfluous.

use super::disk::{self, AppendFile, Disk, WriteFault};
use super::frame::{self, Mark, NoFrame};
use super::{StoreError, snapshot};
use bytes::Bytes;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A segment file and the sequence of its first frame.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) path: PathBuf,
}

/// The open end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    disk: Disk,
    folder: PathBuf,
    file: AppendFile,
    segment_start: u64,
    mark: Mark,
    /// Bytes appended since the newest snapshot: what a start has to read.
    unfolded_bytes: u64,
}

/// Where a torn frame stood.
#[derive(Debug, Clone)]
pub(super) struct TornFrame {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
}

/// What the store's files say.
pub(super) struct Reading {
    /// The newest snapshot that can be read, or the beginning of time.
    pub(super) base: Mark,
    /// Every frame after `base`, with its payload.
    pub(super) frames: Vec<(Mark, Bytes)>,
    /// The last of them, or `base`.
    pub(super) last: Mark,
    /// The last segment with the length of its good part.
    pub(super) tail: Option<(Segment, u64)>,
    /// A frame that was never acknowledged, unless the index proves otherwise.
    pub(super) torn: Option<TornFrame>,
    pub(super) bytes: u64,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("journal")
}

/// Lists the segments, oldest first.
pub(super) fn segments(directory: &Path) -> Result<Vec<Segment>, StoreError> {
    let folder = folder(directory);
    let mut found: Vec<Segment> = numbered_files(&folder, "journal")
        .map_err(|error| StoreError::io("list", &folder, error))?
        .into_iter()
        .map(|(start, path)| Segment { start, path })
        .collect();
    found.sort_by_key(|segment| segment.start);
    Ok(found)
}

/// Files named `<twenty digits>.<extension>`.
pub(super) fn numbered_files(folder: &Path, extension: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|found| found == extension)
        {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// Reads everything since the newest usable snapshot without changing a byte.
pub(super) fn read(directory: &Path) -> Result<Reading, StoreError> {
    let segments = segments(directory)?;
    let mut first_failure = None;
    for (sequence, path) in snapshot::newest_first(directory)? {
        match snapshot::head(&path, sequence) {
            Ok(base) => return read_after(directory, base, &segments),
            Err(error) => {
                tracing::warn!(snapshot = %path.display(), %error, "a snapshot cannot be read, trying the one before");
                first_failure.get_or_insert(error);
            }
        }
    }
    // Without a snapshot the journal must reach back to the first frame.
    match (first_failure, segments.first()) {
        (Some(failure), first) if first.is_none_or(|segment| segment.start != 1) => Err(failure),
        _ => read_after(directory, Mark::default(), &segments),
    }
}

fn read_after(directory: &Path, base: Mark, segments: &[Segment]) -> Result<Reading, StoreError> {
    let wanted: Vec<&Segment> = segments.iter().filter(|segment| segment.start > base.sequence).collect();
    let mut reading = Reading { base, frames: Vec::new(), last: base, tail: None, torn: None, bytes: 0 };
    if wanted.is_empty() && (base.sequence > 0 || !segments.is_empty()) {
        let missing = folder(directory).join(segment_name(base.sequence + 1));
        return Err(StoreError::damaged(&missing, 0, "the journal's newest file is missing"));
    }
    for (position, segment) in wanted.iter().enumerate() {
        if segment.start != reading.last.sequence + 1 {
            let missing = folder(directory).join(segment_name(reading.last.sequence + 1));
            return Err(StoreError::damaged(&missing, 0, "the journal has a gap: this file is missing"));
        }
        let file = fs::read(&segment.path).map_err(|error| StoreError::io("read", &segment.path, error))?;
        let file = Bytes::from(file);
        let is_last = position + 1 == wanted.len();
        let good = read_segment(segment, &file, is_last, &mut reading)?;
        reading.bytes += good;
        reading.tail = Some(((*segment).clone(), good));
    }
    Ok(reading)
}

/// Collects the frames of one segment and says how many bytes of it are good.
fn read_segment(segment: &Segment, file: &Bytes, is_last: bool, reading: &mut Reading) -> Result<u64, StoreError> {
    let mut offset = 0;
    loop {
        let damaged = |reason: String| StoreError::damaged(&segment.path, offset as u64, reason);
        match frame::read(file, offset) {
            Ok(found) => {
                let expected = reading.last.sequence + 1;
                if found.mark.sequence != expected {
                    return Err(damaged(format!("frame {} stands where {expected} belongs", found.mark.sequence)));
                }
                if found.mark.generation < reading.last.generation {
                    return Err(damaged("an older generation wrote after a newer one".to_owned()));
                }
                reading.frames.push((found.mark, file.slice_ref(found.payload)));
                reading.last = found.mark;
                offset = found.end;
            }
            Err(NoFrame::End) => return Ok(offset as u64),
            Err(NoFrame::Torn) if is_last && frame::any_after(file, offset).is_none() => {
                let sequence = reading.last.sequence + 1;
                reading.torn = Some(TornFrame { sequence, path: segment.path.clone(), offset: offset as u64 });
                return Ok(offset as u64);
            }
            Err(NoFrame::Torn) => return Err(damaged("a frame is incomplete and others follow it".to_owned())),
            Err(NoFrame::Damaged(reason)) => return Err(damaged(reason)),
        }
    }
}

/// Opens the journal for writing, cutting a torn frame away.
pub(super) fn open(disk: &Disk, directory: &Path, reading: &Reading) -> Result<Journal, StoreError> {
    let folder = folder(directory);
    let (file, segment_start) = match &reading.tail {
        Some((segment, good)) => (AppendFile::open(disk, &segment.path, *good), segment.start),
        None => (AppendFile::create(disk, &folder.join(segment_name(1))), 1),
    };
    let file = file.map_err(|error| StoreError::io("open the journal in", &folder, error))?;
    if let Some(torn) = &reading.torn {
        tracing::warn!(file = %torn.path.display(), offset = torn.offset, "cut an unfinished write off the journal");
    }
    Ok(Journal { disk: disk.clone(), folder, file, segment_start, mark: reading.last, unfolded_bytes: reading.bytes })
}

fn segment_name(start: u64) -> String {
    format!("{start:020}.journal")
}

impl Journal {
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    pub(super) fn unfolded_bytes(&self) -> u64 {
        self.unfolded_bytes
    }

    /// Appends a frame and waits until the disk has it.
    pub(super) fn append(&mut self, generation: u64, payload: &[u8]) -> Result<Mark, WriteFault> {
        let (bytes, mark) = frame::encode(self.mark.sequence + 1, generation, payload);
        self.file.append_durably(&bytes)?;
        self.mark = mark;
        self.unfolded_bytes += bytes.len() as u64;
        Ok(mark)
    }

    /// Starts a new segment, so that everything up to the current frame can be folded into a snapshot.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        let start = self.mark.sequence + 1;
        if start != self.segment_start {
            self.file = AppendFile::create(&self.disk, &self.folder.join(segment_name(start)))?;
            self.segment_start = start;
        }
        self.unfolded_bytes = 0;
        Ok(())
    }
}

/// Removes the segments whose every frame is at or before `sequence`; the newest one always stays.
pub(super) fn remove_up_to(directory: &Path, sequence: u64) -> Result<(), StoreError> {
    let segments = segments(directory)?;
    for pair in segments.windows(2) {
        if pair[1].start <= sequence + 1 {
            fs::remove_file(&pair[0].path).map_err(|error| StoreError::io("remove", &pair[0].path, error))?;
        }
    }
    let folder = folder(directory);
    disk::sync_folder(&folder).map_err(|error| StoreError::io("sync", &folder, error))
}

/// Makes the first segment of a store that begins with a snapshot.
pub(super) fn create_after(disk: &Disk, directory: &Path, mark: Mark) -> Result<(), StoreError> {
    let path = folder(directory).join(segment_name(mark.sequence + 1));
    AppendFile::create(disk, &path).map(|_| ()).map_err(|error| StoreError::io("create", &path, error))
}
