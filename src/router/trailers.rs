//! Fields that come after an answer's body (RFC 9110, 6.5), for clients that say that they take them.
//!
//! The proxy library reads them over and drops them. So for a request with `TE: trailers` they are read off the bytes
//! that the app sends, on a connection of the request's own, and put in between the bytes that go to the client. Both
//! sides are followed by the grammar of chunked bodies; where one of them is anything else, nothing is put in. Over
//! HTTP/2 the library has no place where they could be put in after the last byte and before the end.

use super::framing::{Chunks, MAX_HEAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::{Arc, Mutex, PoisonError};

/// Names that may not come late, since whoever reads them must know before the body how to read it, where it leads, who
/// may see it or how long it is kept (RFC 9110, 6.5.1), and those of one connection (RFC 9110, 7.6.1).
const EARLY: &[&str] = &[
    "age",
    "authorization",
    "cache-control",
    "clear-site-data",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-security-policy",
    "content-type",
    "cookie",
    "date",
    "expires",
    "host",
    "keep-alive",
    "location",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-frame-options",
    "x-request-id",
    "x-robots-tag",
];

/// Whether a client takes trailers: `TE: trailers`, alone or among others.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let lists = headers.get_all("te").into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// What came after the body of one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Trailers(Arc<Mutex<HeaderMap>>);

impl Trailers {
    /// The fields, of which there may be none; each is given once.
    pub fn take(&self) -> HeaderMap {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps of some lines those that are fields which may come late.
    fn keep(&self, lines: &[u8]) {
        let mut fields = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let Ok(name) = HeaderName::from_bytes(&line[..colon]) else { continue };
            let Ok(value) = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()) else { continue };
            let word = name.as_str();
            let late = EARLY.binary_search(&word).is_err()
                && !["access-control-", "x-forwarded-", "sec-"].iter().any(|prefix| word.starts_with(prefix));
            if late {
                fields.append(name, value);
            }
        }
    }
}

/// Fields as the lines between the last chunk and the empty line that ends the body.
pub(super) fn lines(fields: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in fields {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

/// Where in the bytes of one answer we are.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Head(Vec<u8>),
    Body(Chunks),
    /// Not chunked, over, or not what it should be.
    Other,
}

impl Default for Answer {
    fn default() -> Self {
        Answer::Head(Vec::new())
    }
}

impl Answer {
    /// Takes the next bytes up to where the trailers begin, right after the line of the last chunk, and says how many
    /// that were. There `is_in_trailers` holds, and nothing is taken any more.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            match self {
                Answer::Head(_) => taken += self.take_head(rest),
                Answer::Body(chunks) if chunks.is_in_trailers() => return taken,
                Answer::Body(chunks) => match chunks.step(rest) {
                    Some(step) => taken += step,
                    None => *self = Answer::Other,
                },
                Answer::Other => return bytes.len(),
            }
        }
        taken
    }

    pub fn is_in_trailers(&self) -> bool {
        matches!(self, Answer::Body(chunks) if chunks.is_in_trailers())
    }

    /// Whether nothing can come of it any more.
    pub fn is_other(&self) -> bool {
        matches!(self, Answer::Other)
    }

    fn take_head(&mut self, bytes: &[u8]) -> usize {
        let Answer::Head(head) = self else { return 0 };
        let known = head.len();
        head.extend_from_slice(bytes);
        let from = known.saturating_sub(3);
        let Some(end) = head[from..].windows(4).position(|window| window == b"\r\n\r\n").map(|at| from + at + 4) else {
            if head.len() > MAX_HEAD {
                *self = Answer::Other;
            }
            return bytes.len();
        };
        let next = after_head(&head[..end]);
        *self = next;
        end - known
    }
}

/// What follows the head of an answer.
fn after_head(head: &[u8]) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut answer = httparse::Response::new(&mut fields);
    if answer.parse(head).is_err() {
        return Answer::Other;
    }
    match answer.code {
        Some(101) | None => Answer::Other,
        Some(100..200) => Answer::default(),
        // They have no body, whatever they say.
        Some(204 | 304) => Answer::Other,
        Some(_) => {
            let mut codings =
                answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("transfer-encoding"));
            match (codings.next(), codings.next()) {
                (Some(coding), None) if coding.value.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                    Answer::Body(Chunks::default())
                }
                _ => Answer::Other,
            }
        }
    }
}

/// Reads the trailers of one answer off the bytes that its app sends.
#[derive(Debug)]
pub(super) struct Reader {
    answer: Answer,
    lines: Vec<u8>,
    found: Trailers,
}

impl Reader {
    pub fn new(found: Trailers) -> Reader {
        Reader { answer: Answer::default(), lines: Vec::new(), found }
    }

    pub fn read(&mut self, bytes: &[u8]) {
        let taken = self.answer.take(bytes);
        let Answer::Body(chunks) = &mut self.answer else { return };
        for byte in &bytes[taken..] {
            if chunks.step(std::slice::from_ref(byte)).is_none() {
                self.answer = Answer::Other;
                return;
            }
            self.lines.push(*byte);
            if chunks.is_over() {
                self.found.keep(&self.lines);
                self.answer = Answer::Other;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str, piece: usize) -> Vec<String> {
        let found = Trailers::default();
        let mut reader = Reader::new(found.clone());
        bytes.as_bytes().chunks(piece).for_each(|part| reader.read(part));
        let lines = String::from_utf8(lines(&found.take())).unwrap();
        lines.lines().map(str::to_owned).collect()
    }

    #[test]
    fn fields_after_the_last_chunk_are_read_however_they_are_cut() {
        let chunked =
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = "a;x=y\r\n0\r\n\r\nX: no\r\n0\r\nX-Sum: 1\r\nServer-Timing: db;dur=5\r\n\r\n";
        let whole = format!("{chunked}{body}HTTP/1.1 200 OK\r\nX-Next: 1\r\n\r\n");
        for piece in 1..whole.len() {
            assert_eq!(read(&whole, piece), ["x-sum: 1", "server-timing: db;dur=5"], "by {piece}");
        }
        for (name, value) in [
            ("Content-Length", "5"),
            ("Set-Cookie", "a=b"),
            ("Transfer-Encoding", "chunked"),
            ("Location", "/"),
            ("Access-Control-Allow-Origin", "*"),
            ("X-Forwarded-For", "::1"),
            ("bad name", "1"),
        ] {
            let trailed = format!("{chunked}0\r\n{name}: {value}\r\nX-Sum: 1\r\n\r\n");
            assert_eq!(read(&trailed, 1000), ["x-sum: 1"], "{name}");
        }
    }

    #[test]
    fn nothing_is_read_off_what_is_not_a_chunked_answer() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(read(&format!("{head}0\r\nX-Sum: 1\r\n\r\n"), 7), Vec::<String>::new(), "{head}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in ["0\r\nX-Sum: 1\r\n", "x\r\n0\r\nX-Sum: 1\r\n\r\n", "0\r\nX-Sum: 1\n\r\n", "0\nX-Sum: 1\r\n\r\n"] {
            assert_eq!(read(&format!("{chunked}{body}"), 7), Vec::<String>::new(), "{body:?}");
        }
        let endless = format!("{chunked}0\r\n{}\r\n", "X-Sum: 1\r\n".repeat(2000));
        assert_eq!(read(&endless, 100), Vec::<String>::new(), "more than eight KiB of them");
    }

    #[test]
    fn the_place_for_trailers_is_found_in_the_chunks_alone() {
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\n";
        for piece in 1..answer.len() {
            let mut follower = Answer::default();
            let taken: usize = answer.as_bytes().chunks(piece).map(|part| follower.take(part)).sum();
            assert!(taken == answer.len() && follower.is_in_trailers(), "by {piece}");
            assert_eq!(follower.take(b"\r\n"), 0);
        }
    }

    #[test]
    fn names_that_come_early_are_in_order() {
        assert!(EARLY.is_sorted(), "they are looked up by halves");
        let headers = |value: &str| [(HeaderName::from_static("te"), value.parse().unwrap())].into_iter().collect();
        assert!(wanted(&headers("trailers")) && wanted(&headers("gzip;q=1, Trailers")) && !wanted(&headers("gzip")));
    }
}
