//! Follows a client's bytes through heads and bodies by the strict grammar, in front of the HTTP library's parser.
//!
//! The library takes an empty chunk size for zero and a bare line feed for a line's end; a proxy in front of this one
//! may not, and then the two see different requests. Bytes pass only up to the first that the strict grammar forbids.
//! The verdict on each head waits here until the library has parsed that same head; a head on which there is none
//! ended somewhere else than it should have, and is refused as well.

use super::errors::Refusal;
use super::request::{self, Body, HIDDEN, Head};
use std::collections::VecDeque;

/// Bytes of a head.
pub(super) const MAX_HEAD: usize = 128 * 1024;
/// Bytes of a chunk's line and of all trailers of a body.
const MAX_CHUNK_LINE: usize = 1024;
const MAX_TRAILERS: usize = 8 * 1024;

/// Where in a client's bytes we are.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// The part of a head that came in earlier pieces.
    head: Vec<u8>,
    verdicts: VecDeque<Result<(), Refusal>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    /// A chunk's size so far, its digits, and the line's bytes.
    Size {
        size: u64,
        digits: usize,
        line: usize,
    },
    /// After the size: an extension, up to the CR.
    Extension {
        size: u64,
        line: usize,
    },
    SizeEnd {
        size: u64,
    },
    Data(u64),
    DataEnd {
        seen_cr: bool,
    },
    /// In the lines after the last chunk: bytes of all of them, and of this one.
    Trailer {
        total: usize,
        line: usize,
    },
    TrailerEnd {
        total: usize,
        line: usize,
    },
    /// After a request to change the protocol: whatever comes is not ours to read.
    Opaque,
    Broken(Fault),
}

/// Why no more bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A head on which there is a verdict.
    Refused,
    Malformed,
    TooLarge,
}

impl Default for Framing {
    fn default() -> Self {
        Framing { state: State::Head, head: Vec::new(), verdicts: VecDeque::new() }
    }
}

impl Framing {
    /// Of a connection whose bytes are not HTTP/1: whatever comes passes.
    pub fn opaque() -> Framing {
        Framing { state: State::Opaque, ..Framing::default() }
    }

    /// Takes the next bytes and says how many of them may pass on. Fewer than all means that the rest breaks the rules
    /// and that nothing will pass any more.
    ///
    /// A header that is not to be seen gets another name, if its head's end came together with it.
    pub fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            let rest = &mut bytes[passed..];
            match self.state {
                State::Head => passed += self.take_head(rest),
                State::Length(left) | State::Data(left) => {
                    let (step, left) = through(left, rest.len());
                    passed += step;
                    self.state = match (self.state, left) {
                        (State::Length(_), 0) => State::Head,
                        (State::Length(_), left) => State::Length(left),
                        (_, 0) => State::DataEnd { seen_cr: false },
                        (_, left) => State::Data(left),
                    };
                }
                State::Opaque => return bytes.len(),
                State::Broken(_) => return passed,
                state => {
                    self.state = after(state, rest[0]);
                    if matches!(self.state, State::Broken(_)) {
                        return passed;
                    }
                    passed += 1;
                }
            }
        }
        passed
    }

    /// Why nothing passes any more, if so.
    pub fn fault(&self) -> Option<Fault> {
        match self.state {
            State::Broken(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.state == State::Head && !self.head.is_empty()
    }

    /// Whether everything that came so far were whole requests.
    pub fn is_between_requests(&self) -> bool {
        self.state == State::Head && self.head.is_empty()
    }

    /// The verdict on the oldest head that was not asked for yet.
    pub fn verdict(&mut self) -> Result<(), Refusal> {
        self.verdicts.pop_front().unwrap_or(Err(Refusal::bare(400)))
    }

    fn take_head(&mut self, bytes: &mut [u8]) -> usize {
        // The end may lie across the border between what was kept and what came.
        let known = self.head.len();
        if known > 0 {
            self.head.extend_from_slice(bytes);
        }
        let whole = if known > 0 { self.head.as_slice() } else { &*bytes };
        let Some(end) = head_end(whole, known.saturating_sub(3)) else {
            if whole.len() > MAX_HEAD {
                self.state = State::Broken(Fault::TooLarge);
                self.head = Vec::new();
                return 0;
            }
            if known == 0 {
                self.head = bytes.to_vec();
            }
            return bytes.len();
        };
        let checked = request::check_head(&whole[..end]);
        if let Ok(Head { hides: Some(place), .. }) = checked
            && let Some(place) = place.checked_sub(known)
        {
            bytes[place..place + HIDDEN.len()].copy_from_slice(HIDDEN);
        }
        self.state = match checked.map(|head| head.body) {
            Ok(Body::Empty) => State::Head,
            Ok(Body::Length(length)) => State::Length(length),
            Ok(Body::Chunked) => SIZE,
            Ok(Body::Opaque) => State::Opaque,
            Err(_) => State::Broken(Fault::Refused),
        };
        self.verdicts.push_back(checked.map(|_| ()));
        self.head = Vec::new();
        end - known
    }
}

const SIZE: State = State::Size { size: 0, digits: 0, line: 0 };

/// Where a head ends: after the first empty line that is not before the request line.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    let mut end = from.max(start) + 4;
    // Of four bytes the last one tells where the next four that could be it end.
    while let Some(four) = bytes.get(end - 4..end) {
        end += match four {
            b"\r\n\r\n" => return Some(end),
            [.., b'\n'] => 2,
            [.., b'\r'] => 1,
            _ => 4,
        };
    }
    None
}

/// The state after one byte of a chunked body that is not data.
fn after(state: State, byte: u8) -> State {
    let broken = State::Broken(Fault::Malformed);
    match (state, byte) {
        (State::Size { size, digits, line }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            let digit = u64::from(char::from(byte).to_digit(16).unwrap_or(0));
            // Sixteen digits hold every length; more of them are an attempt to overflow somebody's number.
            if digits == 16 || size >> 59 != 0 {
                return broken;
            }
            State::Size { size: size << 4 | digit, digits: digits + 1, line: line + 1 }
        }
        (State::Size { size, digits: 1.., .. }, b'\r') => State::SizeEnd { size },
        (State::Size { size, digits: 1.., line }, b';') => State::Extension { size, line },
        (State::Extension { size, .. }, b'\r') => State::SizeEnd { size },
        (State::Extension { size, line }, b'\t' | b' '..=b'~' | 0x80..) if line < MAX_CHUNK_LINE => {
            State::Extension { size, line: line + 1 }
        }
        (State::SizeEnd { size: 0 }, b'\n') => State::Trailer { total: 0, line: 0 },
        (State::SizeEnd { size }, b'\n') => State::Data(size),
        (State::DataEnd { seen_cr: false }, b'\r') => State::DataEnd { seen_cr: true },
        (State::DataEnd { seen_cr: true }, b'\n') => SIZE,
        (State::Trailer { total, line }, b'\r') => State::TrailerEnd { total, line },
        (State::Trailer { line: 0, .. }, b' ' | b'\t' | b':') => broken,
        (State::Trailer { total, line }, b'\t' | b' '..=b'~' | 0x80..) if total < MAX_TRAILERS => {
            State::Trailer { total: total + 1, line: line + 1 }
        }
        (State::TrailerEnd { line: 0, .. }, b'\n') => State::Head,
        (State::TrailerEnd { total, .. }, b'\n') => State::Trailer { total, line: 0 },
        _ => broken,
    }
}

/// How many of so many bytes belong to data of which `left` bytes are to come, and how many are to come after them.
fn through(left: u64, available: usize) -> (usize, u64) {
    let step = usize::try_from(left).unwrap_or(usize::MAX).min(available);
    (step, left - step as u64)
}

/// Where in one chunked body we are.
#[derive(Debug, Clone)]
pub(super) struct Chunks(State);

impl Default for Chunks {
    fn default() -> Self {
        Chunks(SIZE)
    }
}

impl Chunks {
    /// Takes at least one of the next bytes, of which there must be some, and says how many; nothing if they break the
    /// rules.
    pub fn step(&mut self, bytes: &[u8]) -> Option<usize> {
        if let State::Data(left) = self.0 {
            let (step, left) = through(left, bytes.len());
            self.0 = if left == 0 { State::DataEnd { seen_cr: false } } else { State::Data(left) };
            return Some(step);
        }
        self.0 = after(self.0, bytes[0]);
        (!matches!(self.0, State::Broken(_))).then_some(1)
    }

    /// After the line of the last chunk, and before the empty line that ends the body.
    pub fn is_in_trailers(&self) -> bool {
        matches!(self.0, State::Trailer { .. } | State::TrailerEnd { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// What passes, the verdicts' statuses and the fault, with the bytes given in pieces of this length.
    fn play(bytes: &str, piece: usize) -> (usize, Vec<u16>, Option<Fault>) {
        let mut framing = Framing::default();
        let mut passed = 0;
        for part in bytes.as_bytes().chunks(piece) {
            passed += framing.take(&mut part.to_vec());
            if framing.fault().is_some() {
                break;
            }
        }
        let verdicts = std::mem::take(&mut framing.verdicts);
        let statuses = verdicts.into_iter().map(|verdict| verdict.map_or_else(|refusal| refusal.status, |()| 200));
        (passed, statuses.collect(), framing.fault())
    }

    #[test]
    fn requests_follow_each_other_however_they_are_cut() {
        for (bytes, requests) in [
            (format!("{GET}{GET}{GET}"), 3),
            (format!("\r\n\r\n{GET}\r\n{GET}"), 2),
            (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n{GET}"), 2),
            (format!("{CHUNKED}5\r\nhello\r\n0\r\n\r\n{GET}"), 2),
            (format!("{CHUNKED}a;x=\"y z\"\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n{GET}"), 2),
            (format!("{CHUNKED}00F\r\n{}\r\n000;last\r\nA: b\r\nC: d\r\n\r\n{GET}", "x".repeat(15)), 2),
        ] {
            for piece in 1..bytes.len() {
                let (passed, verdicts, fault) = play(&bytes, piece);
                assert_eq!((passed, verdicts, fault), (bytes.len(), vec![200; requests], None), "{bytes:?} by {piece}");
            }
        }
    }

    #[test]
    fn an_offer_of_another_http_is_hidden_where_it_stands() {
        let offer = "GET / HTTP/1.1\r\nHost: a\r\nupgrade: h2c\r\nA: b\r\n\r\n";
        let hidden = offer.replace("upgrade", "x-no-h2");
        let socket = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
        for (came, passes) in [
            (offer.to_owned(), hidden.clone()),
            (format!("\r\n\r\n{offer}{GET}\r\n{offer}"), format!("\r\n\r\n{hidden}{GET}\r\n{hidden}")),
            (socket.to_owned(), socket.to_owned()),
        ] {
            let mut bytes = came.into_bytes();
            assert_eq!(Framing::default().take(&mut bytes), bytes.len());
            assert_eq!(String::from_utf8_lossy(&bytes), passes);
        }
        // In two pieces: it can be hidden only where all of it is still here.
        for cut in 1..offer.len() {
            let (mut framing, mut bytes) = (Framing::default(), offer.to_owned().into_bytes());
            let (early, late) = bytes.split_at_mut(cut);
            assert_eq!(framing.take(early) + framing.take(late), offer.len());
            let is_here = cut <= offer.find("upgrade").unwrap();
            assert_eq!(String::from_utf8_lossy(&bytes), if is_here { hidden.as_str() } else { offer }, "cut at {cut}");
            assert!(framing.is_between_requests() && framing.verdict().is_ok());
        }
    }

    #[test]
    fn nothing_passes_after_a_broken_chunk() {
        for (good, bad) in [
            ("", "\r\n"),
            ("", ";x\r\n"),
            ("", " 5\r\n"),
            ("", "g\r\n"),
            ("", "+5\r\n"),
            ("0", "x5\r\n"),
            ("5", " \r\n"),
            ("5", "\n"),
            ("5\r", "\r"),
            ("5;a", "\n"),
            ("5;a", "\0"),
            ("5\r\nhello", "!"),
            ("5\r\nhello", "\n"),
            ("5\r\nhello\r", "x"),
            ("5\r\nhello\r\n", "\r\n"),
            ("0\r\n", "\n"),
            ("0\r\n", " folded: a\r\n"),
            ("0\r\nA: b", "\n"),
            ("0\r\nA: b\r", "\r"),
            ("0000000000000000", "5\r\n"),
            ("0800000000000000", "0\r\n"),
        ] {
            let bytes = format!("{CHUNKED}{good}{bad}{GET}");
            for piece in 1..bytes.len() {
                let (passed, verdicts, fault) = play(&bytes, piece);
                assert_eq!(passed, CHUNKED.len() + good.len(), "{good:?} {bad:?} by {piece}");
                assert_eq!((verdicts.len(), fault), (1, Some(Fault::Malformed)), "{good:?} {bad:?} by {piece}");
            }
        }
    }

    #[test]
    fn a_refused_head_passes_so_that_it_can_be_answered_but_nothing_after_it() {
        let bad = "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n";
        let bytes = format!("{GET}{bad}{GET}");
        for piece in 1..bytes.len() {
            let expected = (GET.len() + bad.len(), vec![200, 400], Some(Fault::Refused));
            assert_eq!(play(&bytes, piece), expected, "by {piece}");
        }
        assert_eq!(Framing::default().verdict(), Err(Refusal::bare(400)), "a head that never ended");
    }

    #[test]
    fn heads_chunk_lines_and_trailers_are_bounded() {
        let endless = format!("GET / HTTP/1.1\r\n{}", "X: a\r\n".repeat(30_000));
        let (passed, verdicts, fault) = play(&endless, 1000);
        assert!(passed <= MAX_HEAD && verdicts.is_empty() && fault == Some(Fault::TooLarge), "{passed}");
        let extension = format!("{CHUNKED}5;{}", "x".repeat(5000));
        assert_eq!(play(&extension, 100).2, Some(Fault::Malformed));
        let trailers = format!("{CHUNKED}0\r\n{}", "X: a\r\n".repeat(3000));
        assert_eq!(play(&trailers, 100).2, Some(Fault::Malformed));
    }

    #[test]
    fn what_follows_an_upgrade_is_not_read() {
        let bytes = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\0\x01\x02 anything\r\n\r\n";
        assert_eq!(play(bytes, 7), (bytes.len(), vec![200], None));
    }
}
