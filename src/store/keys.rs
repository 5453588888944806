//! Keys: `table`, a zero byte, then the key's own bytes, so that a table is a range and keys sort inside it.
//!
//! Numbers in keys are fixed-width and big-endian, so that they sort as numbers. In frames and exports a key is
//! printable text: what is not is written as `%` and two hex digits.

/// A kind of record. The name is part of the format: `[a-z][a-z0-9_]*`, and never changes. The store's own are `counters`,
/// `blob_segments`, `queue`, `queue_waiting` and `queue_leased`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub &'static str);

impl Table {
    pub(super) fn is_well_named(self) -> bool {
        self.0.starts_with(|first: char| first.is_ascii_lowercase())
            && self.0.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    }
}

/// A number as a key, or as a part of one, that sorts as a number.
pub fn number_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Reads the number that a key starts with.
pub fn key_number(key: &[u8]) -> Option<u64> {
    key.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

pub(super) fn full_key(table: &str, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(table.len() + 1 + key.len());
    full.extend_from_slice(table.as_bytes());
    full.push(0);
    full.extend_from_slice(key);
    full
}

/// The table's name and the key inside it.
pub(super) fn split(full: &[u8]) -> (&str, &[u8]) {
    let end = full.iter().position(|byte| *byte == 0).unwrap_or(full.len());
    (std::str::from_utf8(&full[..end]).unwrap_or(""), full.get(end + 1..).unwrap_or(&[]))
}

/// The first key after all that start with `prefix`; `None` when there is none.
pub(super) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < 0xFF {
            next.push(last + 1);
            return Some(next);
        }
    }
    None
}

pub(super) fn escape_into(out: &mut Vec<u8>, key: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in key {
        match byte {
            b'%' | b'"' | b'\\' | 0..=0x1F | 0x7F..=0xFF => {
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            printable => out.push(*printable),
        }
    }
}

/// A key as people and frames write it.
pub(super) fn escape(key: &[u8]) -> String {
    let mut out = Vec::with_capacity(key.len());
    escape_into(&mut out, key);
    String::from_utf8(out).unwrap_or_default()
}

pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            key.push(digit(*tail.first()?)? << 4 | digit(*tail.get(1)?)?);
            rest = &tail[2..];
        } else {
            key.push(*first);
            rest = tail;
        }
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_survives_its_text() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)), Some(all));
        assert_eq!(escape(b"delivery:4f%\x00\xff"), "delivery:4f%25%00%FF");
        for broken in ["%", "%0", "%zz", "a%4"] {
            assert_eq!(unescape(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(split(&full_key("queue", b"a\0b")), ("queue", &b"a\0b"[..]));
    }
}
