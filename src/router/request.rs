//! What a request must look like to be passed on, and what is written into it on the way.
//!
//! The proxy library parses leniently in places (bare line feeds, a `Content-Length` beside `Transfer-Encoding`,
//! several equal lengths, codings before `chunked`). Two parsers that disagree are how requests are smuggled, so the
//! head's own bytes are held against the strict grammar here, and whatever differs is refused.

use super::errors::Refusal;
use std::cell::RefCell;
use std::net::IpAddr;

/// Bytes of a request line (as on Heroku).
const MAX_LINE: usize = 8 * 1024;
/// Bytes of one header line (as on Heroku).
const MAX_HEADER: usize = 8 * 1024;
/// Headers of one request.
const MAX_HEADERS: usize = 96;

const MALFORMED: Refusal = Refusal::bare(400);

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Empty,
    Length(u64),
    Chunked,
    /// Perhaps another protocol, if the app takes the change up.
    Opaque,
}

/// Holds a request's head, as it came over the wire, against HTTP/1.1's grammar and the router's limits.
pub(super) fn check_head(raw: &[u8]) -> Result<Body, Refusal> {
    let mut head = raw;
    // RFC 9112, 2.2: at least one empty line before the request line is to be ignored.
    while let Some(rest) = head.strip_prefix(b"\r\n") {
        head = rest;
    }
    let head = head.strip_suffix(b"\r\n\r\n").ok_or(MALFORMED)?;
    let mut lines = Lines(Some(head));
    let version = check_request_line(lines.next().ok_or(MALFORMED)??)?;

    let (mut hosts, mut lengths, mut codings, mut upgrades, mut count) = (0, 0, 0, 0, 0);
    let mut length = 0;
    for line in lines {
        let line = line?;
        count += 1;
        if line.len() > MAX_HEADER || count > MAX_HEADERS {
            return Err(Refusal::bare(431));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(MALFORMED)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(MALFORMED);
        }
        if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(MALFORMED);
        }
        let named = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if named("host") {
            hosts += 1;
        } else if named("content-length") {
            lengths += 1;
            if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                return Err(MALFORMED);
            }
            length = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        } else if named("transfer-encoding") {
            codings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(MALFORMED);
            }
        } else if named("upgrade") {
            upgrades += 1;
        }
    }
    let ambiguous = hosts != 1
        || lengths + codings > 1
        || (codings > 0 && version == b"HTTP/1.0")
        || upgrades > 1
        // A body before an upgrade leaves open where the new protocol begins.
        || (upgrades > 0 && (length > 0 || codings > 0));
    match (length, codings) {
        _ if ambiguous => Err(MALFORMED),
        _ if upgrades > 0 => Ok(Body::Opaque),
        (0, 0) => Ok(Body::Empty),
        (length, 0) => Ok(Body::Length(length)),
        _ => Ok(Body::Chunked),
    }
}

/// Holds a head that came in frames of HTTP/2 against what it must not be once it is written as HTTP/1.1. The library
/// has refused what HTTP/2 itself forbids.
pub(super) fn check_streamed_head(head: &pingora_http::RequestHeader) -> Result<(), Refusal> {
    if head.method == http::Method::CONNECT {
        return Err(Refusal::bare(405));
    }
    let path = head.raw_path();
    if path.len() > MAX_LINE {
        return Err(Refusal::bare(414));
    }
    // The library may keep the scheme and the authority in front of the path.
    let form = origin_form(path);
    let path = form.as_deref().unwrap_or(path);
    let rooted = path.starts_with(b"/") || (path == b"*" && head.method == http::Method::OPTIONS);
    if !rooted || path.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
        return Err(MALFORMED);
    }
    if head.headers.len() > MAX_HEADERS || head.headers.values().any(|value| value.len() > MAX_HEADER) {
        return Err(Refusal::bare(431));
    }
    let hop = ["transfer-encoding", "upgrade", "connection", "keep-alive", "proxy-connection"];
    if hop.iter().any(|name| head.headers.contains_key(*name)) {
        return Err(MALFORMED);
    }
    // The authority and `Host` are two words for one thing: where they differ, somebody would believe the other one.
    let hosts: Vec<_> = head.headers.get_all("host").iter().collect();
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let same = |host: &&http::HeaderValue| authority.is_none_or(|other| host.as_bytes().eq_ignore_ascii_case(other));
    if hosts.len() > 1 || !hosts.iter().all(same) || (hosts.is_empty() && authority.is_none()) {
        return Err(MALFORMED);
    }
    let lengths: Vec<_> = head.headers.get_all("content-length").iter().collect();
    let number =
        |value: &&http::HeaderValue| (1..=18).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.len() > 1 || !lengths.iter().all(number) {
        return Err(MALFORMED);
    }
    Ok(())
}

fn check_request_line(line: &[u8]) -> Result<&[u8], Refusal> {
    if line.len() > MAX_LINE {
        return Err(Refusal::bare(414));
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(MALFORMED);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(MALFORMED);
    }
    if method == b"CONNECT" {
        return Err(Refusal::bare(405));
    }
    let absolute =
        |scheme: &str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()));
    let known_form = target.starts_with(b"/")
        || absolute("http://")
        || absolute("https://")
        || (target == b"*" && method == b"OPTIONS");
    // Bytes above ASCII are tolerated: browsers and old clients send them unescaped.
    if !known_form || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
        return Err(MALFORMED);
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        return Err(MALFORMED);
    }
    Ok(version)
}

/// Lines that end in CR LF; a CR or LF by itself, or a NUL, is an error.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.take()?;
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0));
        let Some(end) = end else { return Some(Ok(rest)) };
        if !rest[end..].starts_with(b"\r\n") {
            return Some(Err(MALFORMED));
        }
        self.0 = Some(&rest[end + 2..]);
        Some(Ok(&rest[..end]))
    }
}

/// Optional white space around a value (RFC 9110, 5.6.3). It is no part of the value.
fn trim(value: &[u8]) -> &[u8] {
    // A tab beside a value is legal, but parsers differ on it, so only spaces are taken off.
    let start = value.iter().position(|byte| *byte != b' ').unwrap_or(value.len());
    let end = value.iter().rposition(|byte| *byte != b' ').map_or(start, |last| last + 1);
    &value[start..end]
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A target in absolute form without its scheme and authority; `None` for every other form.
pub(super) fn origin_form(target: &[u8]) -> Option<Vec<u8>> {
    let after = [b"http://".as_slice(), b"https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    })?;
    let authority = after.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(after.len());
    let path = &after[authority..];
    Some(if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() })
}

/// The client's id for the request if it is one to keep: 20..200 of `[A-Za-z0-9+/=-]` (as on Heroku).
pub(super) fn kept_request_id(value: Option<&str>) -> Option<String> {
    let value = value?;
    let valid = (20..=200).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-'));
    valid.then(|| value.to_owned())
}

/// Random bytes that are fetched at once; an id takes sixteen of them.
const RANDOM_BYTES: usize = 4096;

thread_local! {
    /// Random bytes that no id has used, at the end of the buffer: to ask the system for each id takes longer than all
    /// the rest of it.
    static RANDOM: RefCell<([u8; RANDOM_BYTES], usize)> = const { RefCell::new(([0; RANDOM_BYTES], 0)) };
}

/// A new id: 128 random bits in the form of a UUID of version 4.
pub(super) fn new_request_id() -> String {
    use ring::rand::SecureRandom;
    let mut bytes = RANDOM.with_borrow_mut(|(random, left)| {
        if *left == 0 {
            if ring::rand::SystemRandom::new().fill(random).is_err() {
                tracing::error!("the system gave no random bytes for request ids");
            }
            *left = random.len();
        }
        *left -= 16;
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&random[*left..*left + 16]);
        bytes
    });
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let digits = hex::encode(bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Whether a header says where a request came from. The router says so itself; a client's word is dropped, also in
/// the spelling with underscores, which CGI and WSGI read as the same name.
pub(super) fn is_forwarding(name: &str) -> bool {
    let name = name.as_bytes();
    let starts = |prefix: &[u8]| {
        name.len() >= prefix.len()
            && name
                .iter()
                .zip(prefix)
                .all(|(byte, wanted)| byte.to_ascii_lowercase() == *wanted || (*wanted == b'-' && *byte == b'_'))
    };
    starts(b"x-forwarded-")
        || (name.len() == 9 && starts(b"forwarded"))
        || (name.len() == 15 && starts(b"x-request-start"))
        || (name.len() == 12 && starts(b"x-request-id"))
}

/// The client's address as headers and log lines write it: an IPv4 client of a dual-stack listener is IPv4.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(raw: &str) -> u16 {
        check_head(raw.as_bytes()).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn ordinary_heads_pass() {
        for raw in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /a?b=c%20d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY:   spaced\tout  \r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert_eq!(status(raw), 200, "{raw:?}");
        }
    }

    #[test]
    fn limits_have_a_last_value_that_passes() {
        let path = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length));
        let line = "GET / HTTP/1.1".len();
        assert_eq!((status(&path(MAX_LINE - line)), status(&path(MAX_LINE - line + 1))), (200, 414));
        let header = |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(length));
        assert_eq!((status(&header(MAX_HEADER - 3)), status(&header(MAX_HEADER - 2))), (200, 431));
        let headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(count - 1));
        assert_eq!((status(&headers(MAX_HEADERS)), status(&headers(MAX_HEADERS + 1))), (200, 431));
    }

    #[test]
    fn absolute_targets_lose_their_authority() {
        for (target, origin) in [
            ("http://a/x?y", Some("/x?y")),
            ("HTTP://a", Some("/")),
            ("https://a?x", Some("/?x")),
            ("/x", None),
            ("*", None),
        ] {
            assert_eq!(origin_form(target.as_bytes()).as_deref(), origin.map(str::as_bytes), "{target}");
        }
    }

    #[test]
    fn request_ids_are_kept_or_made() {
        let good = "abcDEF019+/=-abcdefgh";
        assert_eq!(kept_request_id(Some(good)).as_deref(), Some(good));
        for bad in ["", "short", "abcdefghijklmnopqrst\"", "abcdefghijklmnopqrst uv", &"a".repeat(201)] {
            assert_eq!(kept_request_id(Some(bad)), None, "{bad}");
        }
        let (one, other) = (new_request_id(), new_request_id());
        assert!(one != other && kept_request_id(Some(&one)) == Some(one.clone()), "{one}");
    }

    #[test]
    fn forwarding_headers_are_known_in_every_spelling() {
        for name in
            ["X-Forwarded-For", "x_forwarded_for", "X-Forwarded_Host", "Forwarded", "X-Request-Start", "x_request_id"]
        {
            assert!(is_forwarding(name), "{name}");
        }
        for name in ["X-Forwarded", "Forwarded-By", "Accept", "X-Request-Starter", "XForwarded-For"] {
            assert!(!is_forwarding(name), "{name}");
        }
    }
}
