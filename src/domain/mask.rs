//! Values that no log and no report may show, taken out of what a process prints.
//!
//! Bytes come in pieces of any length, so what may be the beginning of a value is held back until more is there. The
//! rule: however the bytes are cut into pieces, the same comes out. This is against accidents; whoever means to show a
//! value can write it backwards.

use aho_corasick::AhoCorasick;

/// Stands where a value stood.
const HIDDEN: &str = "[hidden]";
/// Shorter values are words that any output holds: hiding `true` would hide more than it keeps.
const LEAST_BYTES: usize = 6;

#[derive(Clone)]
pub struct Mask {
    values: Vec<Vec<u8>>,
    search: AhoCorasick,
}

impl Mask {
    /// `None` where there is nothing to hide. Of a value of several lines each line counts, of an address with a password
    /// the password as well.
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Option<Mask> {
        let mut values: Vec<Vec<u8>> = secrets
            .into_iter()
            .flat_map(|secret| secret.lines().chain(password_of(secret)))
            .map(str::trim)
            .filter(|line| line.len() >= LEAST_BYTES)
            .map(|line| line.as_bytes().to_vec())
            .collect();
        values.sort();
        values.dedup();
        if values.is_empty() {
            return None;
        }
        let search = AhoCorasick::new(&values).ok()?;
        Some(Mask { values, search })
    }

    /// A whole text without its secrets.
    pub fn text(&self, text: &str) -> String {
        let mut stream = MaskedStream::new(self.clone());
        let mut bytes = stream.feed(text.as_bytes());
        bytes.extend(stream.finish());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where something begins that may become a value when more comes.
    fn open_end(&self, bytes: &[u8]) -> usize {
        // No value holds the end of a line.
        let line = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let open = self.values.iter().filter_map(|value| {
            let first = bytes.len().saturating_sub(value.len() - 1).max(line);
            (first..bytes.len()).find(|at| value.starts_with(&bytes[*at..]))
        });
        open.min().unwrap_or(bytes.len())
    }

    /// Ranges that hold values, those that overlap as one. What is covered before the first byte was told already.
    fn ranges(&self, bytes: &[u8], covered: usize) -> Vec<(usize, usize, bool)> {
        let found = self.search.find_overlapping_iter(bytes).map(|found| (found.start(), found.end(), false));
        let mut all: Vec<_> = found.collect();
        if covered > 0 {
            all.push((0, covered, true));
        }
        all.sort_by_key(|(from, _, told)| (*from, !*told));
        let mut merged: Vec<(usize, usize, bool)> = Vec::new();
        for (from, to, told) in all {
            match merged.last_mut() {
                Some((_, end, _)) if from < *end => *end = to.max(*end),
                _ => merged.push((from, to, told)),
            }
        }
        merged
    }
}

/// `secret` of `scheme://user:secret@host`.
fn password_of(address: &str) -> Option<&str> {
    let (_, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

/// What comes piece by piece, with its secrets taken out.
pub struct MaskedStream {
    mask: Mask,
    pending: Vec<u8>,
    /// So many of the pending bytes belong to a value that was told as hidden.
    covered: usize,
}

impl MaskedStream {
    pub fn new(mask: Mask) -> MaskedStream {
        MaskedStream { mask, pending: Vec::new(), covered: 0 }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        self.take(self.mask.open_end(&self.pending))
    }

    /// The rest, once nothing follows.
    pub fn finish(&mut self) -> Vec<u8> {
        self.take(self.pending.len())
    }

    fn take(&mut self, end: usize) -> Vec<u8> {
        if end == 0 {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(end);
        let (mut at, mut covered) = (0, 0);
        for (from, to, told) in self.mask.ranges(&self.pending, self.covered) {
            if from >= end {
                break;
            }
            out.extend_from_slice(&self.pending[at..from]);
            if !told {
                out.extend_from_slice(HIDDEN.as_bytes());
            }
            at = to.min(end);
            covered = to.saturating_sub(end);
        }
        out.extend_from_slice(&self.pending[at..end]);
        self.pending.drain(..end);
        self.covered = covered;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: [&str; 6] = [
        "hunter22",
        "hunter22-and-more",
        "22-and-less",
        "aaaaaaa",
        "postgres://app:p%40ssw0rd@db.internal/app",
        "-----BEGIN KEY-----\nMIIBVwIBADAN\r\nshort\n-----END KEY-----",
    ];

    fn whole(text: &str) -> String {
        Mask::of(SECRETS).unwrap().text(text)
    }

    #[test]
    fn values_their_lines_and_their_passwords_are_hidden() {
        for (text, wanted) in [
            ("a hunter22 b", "a [hidden] b"),
            ("hunter22-and-more", "[hidden]"),
            ("hunter22-and-mor", "[hidden]-and-mor"),
            ("hunter22-and-less", "[hidden]"),
            ("hunter22hunter22", "[hidden][hidden]"),
            ("aaaaaa", "aaaaaa"),
            ("aaaaaaaaaaaaaaaaaaaaa!", "[hidden]!"),
            ("url=postgres://app:p%40ssw0rd@db.internal/app.", "url=[hidden]."),
            ("password p%40ssw0rd", "password [hidden]"),
            ("MIIBVwIBADAN\nshort", "[hidden]\nshort"),
            ("hunter2\n2", "hunter2\n2"),
            ("", ""),
        ] {
            assert_eq!(whole(text), wanted, "{text}");
        }
        assert!(Mask::of(["", "true", "3000", " a \n b "]).is_none());
    }

    #[test]
    fn however_the_output_is_cut_the_same_is_hidden() {
        let text = "x hunter22-and-more hunter22-and-less aaaaaaaaaaaaaaaa hunter22-andhunter22 é aaaaaa\nMIIBVwIBADAN\n\
                    hunter2\n2 postgres://app:p%40ssw0rd@db.internal/app hunter22hunter22-and-lesshunter2";
        let wanted = whole(text);
        assert!(!SECRETS.iter().any(|secret| wanted.contains(secret)), "{wanted}");
        let bytes = text.as_bytes();
        let cut = |ends: &[usize]| {
            let mut stream = MaskedStream::new(Mask::of(SECRETS).unwrap());
            let (mut out, mut at) = (Vec::new(), 0);
            for end in ends.iter().chain([&bytes.len()]) {
                out.extend(stream.feed(&bytes[at..*end]));
                at = *end;
            }
            out.extend(stream.finish());
            String::from_utf8(out).unwrap()
        };
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                assert_eq!(cut(&[first, second]), wanted, "{first} {second}");
            }
        }
        assert_eq!(cut(&(0..bytes.len()).collect::<Vec<_>>()), wanted, "byte by byte");
    }

    #[test]
    fn what_is_held_back_stays_small_and_goes_on_as_soon_as_it_is_no_value() {
        let mut stream = MaskedStream::new(Mask::of(SECRETS).unwrap());
        for _ in 0..1_000 {
            stream.feed(&[b'a'; 100]);
            assert!(stream.pending.len() < 64, "{}", stream.pending.len());
        }
        assert_eq!(stream.feed(b"\nplain hunt"), b"\nplain ");
        assert_eq!(stream.feed(b"ing\n"), b"hunting\n");
    }
}
