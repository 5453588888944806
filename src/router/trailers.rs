//! Fields that come after a body (RFC 9110, 6.5): those of a request, and those of an answer whose client takes them.
//!
//! Over HTTP/2 they are the HTTP library's. Over HTTP/1.1 it writes only those that the head announced in `Trailer`, and few
//! apps announce any. So they are put in between the bytes that go to the client, which are followed by the grammar of
//! chunked bodies; where the answer is anything else, nothing is put in.

use super::framing::{Chunks, MAX_HEAD};
use http::HeaderMap;
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

/// What came after the body of one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Trailers(Arc<Mutex<HeaderMap>>);

impl Trailers {
    /// The fields, of which there may be none; each is given once.
    pub fn take(&self) -> HeaderMap {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn put(&self, fields: HeaderMap) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fields;
    }
}

/// Of some fields those that may come late.
pub(super) fn late(fields: HeaderMap) -> HeaderMap {
    let may_be_late = |word: &str| {
        EARLY.binary_search(&word).is_err()
            && !["access-control-", "x-forwarded-", "sec-"].iter().any(|prefix| word.starts_with(prefix))
    };
    let mut late = HeaderMap::with_capacity(fields.len());
    for (name, value) in &fields {
        if may_be_late(name.as_str()) {
            late.append(name, value.clone());
        }
    }
    late
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where in an answer the place for its trailers is, if it has one.
    fn place(bytes: &str, piece: usize) -> Option<usize> {
        let mut follower = Answer::default();
        let mut taken = 0;
        for part in bytes.as_bytes().chunks(piece) {
            let step = follower.take(part);
            taken += step;
            if step < part.len() {
                break;
            }
        }
        follower.is_in_trailers().then_some(taken)
    }

    #[test]
    fn fields_that_say_how_a_message_is_to_be_read_may_not_come_late() {
        let mut fields = HeaderMap::new();
        for name in [
            "content-length",
            "set-cookie",
            "transfer-encoding",
            "location",
            "access-control-allow-origin",
            "x-forwarded-for",
            "x-sum",
            "server-timing",
        ] {
            fields.append(http::HeaderName::from_static(name), http::HeaderValue::from_static("1"));
        }
        fields.append("x-sum", http::HeaderValue::from_static("2"));
        assert_eq!(lines(&late(fields)), b"x-sum: 1\r\nx-sum: 2\r\nserver-timing: 1\r\n");
    }

    #[test]
    fn nothing_is_put_into_what_is_not_a_chunked_answer() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(place(&format!("{head}0\r\n\r\n"), 7), None, "{head}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in ["x\r\n0\r\n\r\n", "0\n\r\n"] {
            assert_eq!(place(&format!("{chunked}{body}"), 7), None, "{body:?}");
        }
    }

    #[test]
    fn the_place_for_trailers_is_found_in_the_chunks_alone() {
        let hinted = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = format!("{hinted}7\r\n\r\n0\r\n\r\n\r\n0\r\n");
        for piece in 1..answer.len() {
            assert_eq!(place(&format!("{answer}\r\n"), piece), Some(answer.len()), "by {piece}");
        }
    }

    #[test]
    fn names_that_come_early_are_in_order() {
        assert!(EARLY.is_sorted(), "they are looked up by halves");
    }
}
