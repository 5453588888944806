//! One frame: a checksummed, numbered envelope around a batch of changes written as JSON.
//!
//! ```text
//! F7 'L' 'F' 01 | length u32 | sequence u64 | generation u64 | CRC32C of payload u32 | CRC32C of the 28 bytes before u32 | payload
//! ```
//! The header has a checksum of its own, so that a frame cut short by a crash (its header is whole, the file ends early)
//! is never mistaken for one whose length was damaged. The first byte never occurs in JSON, so that a search for later
//! frames finds none inside a payload, and the payload holds no zero byte, so that a sector that never arrived shows.

use super::keys;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

const MAGIC: [u8; 4] = [0xF7, b'L', b'F', 1];
pub(super) const HEADER_LENGTH: usize = 32;
/// The unit in which a disk loses writes.
const SECTOR: usize = 512;

/// New values (or removals) by full key, the last one of a group winning.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// A change in the order of a frame: the full key, and the new value or `None` for a removal.
pub(super) type Change = (Vec<u8>, Option<Bytes>);

/// Which frame it was: enough to see whether two histories are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub(super) sequence: u64,
    pub(super) generation: u64,
    pub(super) crc: u32,
}

/// A frame as it stands in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) mark: Mark,
    pub(super) payload: &'a [u8],
    /// Where the next one starts.
    pub(super) end: usize,
}

/// Why there is no frame at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoFrame {
    /// Nothing follows.
    End,
    /// What a crash leaves of the last, never acknowledged write: the file ends too early or sectors never arrived.
    Torn,
    /// Bytes that were whole once.
    Damaged(String),
}

/// Builds the bytes of a frame.
pub(super) fn encode(sequence: u64, generation: u64, payload: &[u8]) -> (Vec<u8>, Mark) {
    let crc = crc32c::crc32c(payload);
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
    bytes.extend_from_slice(payload);
    (bytes, Mark { sequence, generation, crc })
}

/// Reads the frame that starts at `offset` of a whole file.
pub(super) fn read(file: &[u8], offset: usize) -> Result<Frame<'_>, NoFrame> {
    let rest = &file[offset..];
    if rest.is_empty() {
        return Err(NoFrame::End);
    }
    let torn_or = |reason: &str, region: usize| {
        if has_lost_sector(file, offset, offset + region) { NoFrame::Torn } else { NoFrame::Damaged(reason.to_owned()) }
    };
    let Some(header) = rest.get(..HEADER_LENGTH) else {
        // A header cut short still begins like one, or is all zeros where only the file's length arrived.
        let begins_like_one = rest.iter().zip(MAGIC).all(|(found, wanted)| *found == wanted);
        return Err(if begins_like_one { NoFrame::Torn } else { torn_or("no frame starts here", rest.len()) });
    };
    if header[..4] != MAGIC || number32(&header[28..]) != crc32c::crc32c(&header[..28]) {
        return Err(torn_or("the frame's header fails its checksum", rest.len()));
    }
    let length = number32(&header[4..]) as usize;
    let mark =
        Mark { sequence: number64(&header[8..]), generation: number64(&header[16..]), crc: number32(&header[24..]) };
    let Some(payload) = rest.get(HEADER_LENGTH..HEADER_LENGTH + length) else {
        return Err(NoFrame::Torn);
    };
    if crc32c::crc32c(payload) != mark.crc {
        return Err(torn_or("the frame's content fails its checksum", HEADER_LENGTH + length));
    }
    Ok(Frame { mark, payload, end: offset + HEADER_LENGTH + length })
}

/// Whether a whole frame starts anywhere after `offset`: then what stands at `offset` was once durable.
pub(super) fn any_after(file: &[u8], offset: usize) -> Option<usize> {
    let mut from = offset + 1;
    while let Some(found) = file.get(from..).and_then(|rest| rest.iter().position(|byte| *byte == MAGIC[0])) {
        if read(file, from + found).is_ok() {
            return Some(from + found);
        }
        from += found + 1;
    }
    None
}

/// Whether some sector between `start` and `end` holds only zeros, which no whole frame does.
fn has_lost_sector(file: &[u8], start: usize, end: usize) -> bool {
    let mut from = start;
    while from < end {
        let to = ((from / SECTOR + 1) * SECTOR).min(end);
        if file[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

fn number32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn number64(bytes: &[u8]) -> u64 {
    u64::from(number32(bytes)) << 32 | u64::from(number32(&bytes[4..]))
}

/// A change as frames and exports spell it.
#[derive(Deserialize)]
pub(super) struct WrittenChange<'a> {
    #[serde(borrow)]
    put: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delete: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
}

/// `null` is a value too: a record of `()`.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&'a RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct WrittenChanges<'a> {
    v: u32,
    #[serde(borrow)]
    changes: Vec<WrittenChange<'a>>,
}

impl WrittenChange<'_> {
    pub(super) fn read(self) -> Result<Change, String> {
        let (table, value) = match (self.put, self.delete, self.value) {
            (Some(table), None, Some(value)) => (table, Some(Bytes::copy_from_slice(value.get().as_bytes()))),
            (None, Some(table), None) => (table, None),
            _ => return Err("a change is neither a put with a value nor a delete".to_owned()),
        };
        let key = keys::unescape(&self.key).ok_or_else(|| format!("{:?} is not an escaped key", self.key))?;
        Ok((keys::full_key(&table, &key), value))
    }
}

/// One change as a JSON object without a line break.
pub(super) fn write_change(out: &mut Vec<u8>, full_key: &[u8], value: Option<&Bytes>) {
    let (table, key) = keys::split(full_key);
    out.extend_from_slice(if value.is_some() { b"{\"put\":\"" } else { b"{\"delete\":\"" });
    out.extend_from_slice(table.as_bytes());
    out.extend_from_slice(b"\",\"key\":\"");
    keys::escape_into(out, key);
    match value {
        Some(value) => {
            out.extend_from_slice(b"\",\"value\":");
            out.extend_from_slice(value);
            out.push(b'}');
        }
        None => out.extend_from_slice(b"\"}"),
    }
}

/// The payload of a frame.
pub(super) fn encode_changes<'a>(changes: impl Iterator<Item = (&'a Vec<u8>, Option<&'a Bytes>)>) -> Vec<u8> {
    let mut out = b"{\"v\":1,\"changes\":[".to_vec();
    for (position, (key, value)) in changes.enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_change(&mut out, key, value);
    }
    out.extend_from_slice(b"]}");
    out
}

/// Reads the payload of a frame; the text says what is wrong with it.
pub(super) fn decode_changes(payload: &[u8]) -> Result<Vec<Change>, String> {
    let written: WrittenChanges = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if written.v != 1 {
        return Err(format!("its changes have version {}, which this landfall does not know", written.v));
    }
    written.changes.into_iter().map(WrittenChange::read).collect()
}
