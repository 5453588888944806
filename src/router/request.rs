//! What a request must look like to be passed on, and what is written into it on the way.
//!
//! The HTTP library parses leniently in places (bare line feeds, a `Content-Length` beside `Transfer-Encoding`,
//! several equal lengths, codings before `chunked`). Two parsers that disagree are how requests are smuggled, so the
//! head's own bytes are held against the strict grammar here, and whatever differs is refused.

use super::errors::Refusal;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use std::cell::RefCell;
use std::net::IpAddr;

/// Bytes of a request line (as on Heroku).
const MAX_LINE: usize = 8 * 1024;
/// Bytes of one header line (as on Heroku).
const MAX_HEADER: usize = 8 * 1024;
/// Headers of one request.
const MAX_HEADERS: usize = 96;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

/// The name of a header that is not to be seen, in place of `Upgrade`.
pub(super) const HIDDEN: &[u8; 7] = b"x-no-h2";

/// What a head says that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub body: Body,
    /// Where the name of an `Upgrade` begins that is not to be seen: it offers another HTTP, which nobody has to take up. The
    /// library ends a connection on which another protocol was named without writing what it still has to write.
    pub hides: Option<usize>,
}

/// Holds a request's head, as it came over the wire, against HTTP/1.1's grammar and the router's limits.
pub(super) fn check_head(raw: &[u8]) -> Result<Head, Refusal> {
    let mut head = raw;
    // RFC 9112, 2.2: at least one empty line before the request line is to be ignored.
    while let Some(rest) = head.strip_prefix(b"\r\n") {
        head = rest;
    }
    let head = head.strip_suffix(b"\r\n\r\n").ok_or(MALFORMED)?;
    let mut lines = Lines(Some(head));
    let version = check_request_line(lines.next().ok_or(MALFORMED)??)?;

    let (mut hosts, mut lengths, mut codings, mut upgrades, mut count, mut hides) = (0, 0, 0, 0, 0, None);
    let mut length = 0;
    for line in lines {
        let line = line?;
        count += 1;
        if line.len() > MAX_HEADER || count > MAX_HEADERS {
            return Err(Refusal::bare(431));
        }
        let colon = line.iter().position(|byte| !is_token(*byte)).ok_or(MALFORMED)?;
        if colon == 0 || line[colon] != b':' {
            return Err(MALFORMED);
        }
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
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
            if names_http(value)? {
                hides = Some(line.as_ptr().addr() - raw.as_ptr().addr());
            }
        }
    }
    let changes = upgrades > 0 && hides.is_none();
    let ambiguous = hosts != 1
        || lengths + codings > 1
        || (codings > 0 && version == b"HTTP/1.0")
        || upgrades > 1
        // A body before an upgrade leaves open where the new protocol begins.
        || (changes && (length > 0 || codings > 0));
    if ambiguous {
        return Err(MALFORMED);
    }
    let body = match (length, codings) {
        _ if changes => Body::Opaque,
        (0, 0) => Body::Empty,
        (length, 0) => Body::Length(length),
        _ => Body::Chunked,
    };
    Ok(Head { body, hides })
}

/// Holds a head that came in frames of HTTP/2 against what it must not be once it is written as HTTP/1.1. The library
/// has refused what HTTP/2 itself forbids.
pub(super) fn check_streamed_head(head: &Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::bare(405));
    }
    let path = path_of(&head.uri).as_bytes();
    if path.len() > MAX_LINE {
        return Err(Refusal::bare(414));
    }
    let rooted = path.starts_with(b"/") || (path == b"*" && head.method == Method::OPTIONS);
    if !rooted || path.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
        return Err(MALFORMED);
    }
    if head.headers.len() > MAX_HEADERS || head.headers.values().any(|value| value.len() > MAX_HEADER) {
        return Err(Refusal::bare(431));
    }
    if head.headers.keys().any(|name| name != header::TE && is_hop_by_hop(name)) {
        return Err(MALFORMED);
    }
    let lengths: Vec<_> = head.headers.get_all(header::CONTENT_LENGTH).iter().collect();
    let number =
        |value: &&HeaderValue| (1..=18).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.len() > 1 || !lengths.iter().all(number) {
        return Err(MALFORMED);
    }
    Ok(())
}

/// The host that a request is for, as it was written. `Host` and an authority in front of the path are two words for one
/// thing: where they differ, somebody would believe the other one. Who writes a user's name into it means to mislead.
pub(super) fn host_of(head: &Parts) -> Result<&str, Refusal> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (host, other) = (hosts.next(), hosts.next());
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let host = match (host.map(HeaderValue::to_str), authority) {
        (Some(Ok(host)), Some(authority)) if !host.eq_ignore_ascii_case(authority) => return Err(MALFORMED),
        (Some(Ok(host)), _) => host,
        (None, Some(authority)) => authority,
        (Some(Err(_)) | None, _) => return Err(MALFORMED),
    };
    if other.is_some() || host.as_bytes().contains(&b'@') { Err(MALFORMED) } else { Ok(host) }
}

/// A target's path and query without scheme and authority, as they were written.
pub(super) fn path_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

/// A target as an app gets it.
pub(super) fn origin_form(uri: Uri) -> Result<Uri, http::Error> {
    if uri.authority().is_none() {
        return Ok(uri);
    }
    match uri.into_parts().path_and_query {
        Some(path) => Uri::builder().path_and_query(path).build(),
        None => Ok(Uri::from_static("/")),
    }
}

/// What concerns one connection alone (RFC 9110, 7.6.1), and what people have taken for it.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    ) || name.as_str().as_bytes() == HIDDEN
}

/// Whether the protocols that a connection might change to have another HTTP among them. In that, requests would come to the
/// app that nobody has looked at. What others might read differently is refused.
pub(super) fn names_http(protocols: &[u8]) -> Result<bool, Refusal> {
    let mut found = false;
    for protocol in protocols.split(|byte| *byte == b',') {
        let mut parts = protocol.trim_ascii().split(|byte| *byte == b'/');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next());
        let is_word = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| is_token(*byte));
        if !is_word(name) || !version.is_none_or(is_word) || parts.next().is_some() {
            return Err(MALFORMED);
        }
        found |= ["h2c", "h2", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http.as_bytes()));
    }
    Ok(found)
}

/// The words of one line of a header that is a list.
fn listed(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim)
}

/// Takes out what concerns one connection alone, and what `Connection` says does. What says where a message ends or whom it
/// is for is not for it to say. `upgrade`: the next connection is to change to the same protocol. `foreign`: what else does
/// not go further.
pub(super) fn end_hop(headers: &mut HeaderMap, upgrade: bool, foreign: impl Fn(&HeaderName) -> bool) {
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    let ends = |name: &HeaderName| is_hop_by_hop(name) || foreign(name);
    let mut gone: Vec<HeaderName> = headers.keys().filter(|name| ends(name)).cloned().collect();
    if gone.contains(&header::CONNECTION) {
        // Most say one of three words, which name no other header.
        let plain = |list: &&HeaderValue| {
            ["close", "keep-alive", "upgrade"].iter().any(|word| list.as_bytes().eq_ignore_ascii_case(word.as_bytes()))
        };
        let lists = headers.get_all(header::CONNECTION).into_iter().filter(|list| !plain(list));
        let named = lists.flat_map(listed).filter_map(|word| HeaderName::from_bytes(word.as_bytes()).ok());
        gone.extend(named.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH));
    }
    for name in gone {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// What a request's headers say that most requests do not, seen in one pass over them.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    accept: Option<HeaderValue>,
    /// Its name for itself, if it is one to keep.
    pub request_id: Option<HeaderValue>,
    /// Another protocol, whether the connection is to change to it or not.
    pub another_protocol: bool,
    /// The client waits for a word before it sends its body.
    pub permission: bool,
    /// The client takes trailers.
    pub trailers: bool,
}

impl Asked {
    /// What kind of answer the client prefers, in its words.
    pub fn accept(&self) -> Option<&str> {
        self.accept.as_ref().and_then(|accept| accept.to_str().ok())
    }

    pub fn by(headers: &HeaderMap) -> Asked {
        let mut asked = Asked::default();
        for (name, value) in headers {
            if name == header::ACCEPT {
                asked.accept.get_or_insert_with(|| value.clone());
            } else if name == header::UPGRADE {
                asked.another_protocol = names_http(value.as_bytes()) == Ok(false);
            } else if name == header::EXPECT {
                asked.permission |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            } else if name == header::TE {
                asked.trailers |= listed(value).any(|word| word.eq_ignore_ascii_case("trailers"));
            } else if name == X_REQUEST_ID {
                asked.request_id.get_or_insert_with(|| value.clone());
            }
        }
        asked.request_id = asked.request_id.filter(|value| is_request_id(value.as_bytes()));
        asked
    }
}

/// Whether a request that asks for another protocol asks by both of the words that it takes.
pub(super) fn is_upgrade(head: &Parts) -> bool {
    head.version == Version::HTTP_11
        && head
            .headers
            .get_all(header::CONNECTION)
            .into_iter()
            .flat_map(listed)
            .any(|word| word.eq_ignore_ascii_case("upgrade"))
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

/// Lines that end in CR LF; a CR or LF by itself, or any other control character but the tab, is an error.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.take()?;
        let end = rest.iter().position(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f);
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

/// Which bytes are ASCII letters, digits, or `others`, by their number: every byte of a head is asked about.
pub(super) const fn letters_digits_and(others: &[u8]) -> [bool; 256] {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut place = 0;
    while place < others.len() {
        allowed[others[place] as usize] = true;
        place += 1;
    }
    allowed
}

/// Whether names may have it (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKENS: [bool; 256] = letters_digits_and(b"!#$%&'*+-.^_`|~");
    TOKENS[usize::from(byte)]
}

/// 20..200 of `[A-Za-z0-9+/=-]` (as on Heroku).
fn is_request_id(value: &[u8]) -> bool {
    (20..=200).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-'))
}

/// Random bytes that are fetched at once; an id takes sixteen of them.
const RANDOM_BYTES: usize = 4096;

thread_local! {
    /// Random bytes that no id has used, at the end of the buffer: to ask the system for each id takes longer than all
    /// the rest of it.
    static RANDOM: RefCell<([u8; RANDOM_BYTES], usize)> = const { RefCell::new(([0; RANDOM_BYTES], 0)) };
}

/// A new id as a header has it.
pub(super) fn new_request_id_value() -> HeaderValue {
    // Digits, letters and dashes are a value.
    HeaderValue::from_bytes(&random_id()).unwrap_or(HeaderValue::from_static(""))
}

/// A new id: 128 random bits in the form of a UUID of version 4.
pub(super) fn new_request_id() -> String {
    String::from_utf8_lossy(&random_id()).into_owned()
}

fn random_id() -> [u8; 36] {
    use ring::rand::SecureRandom;
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
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
    let mut id = [b'-'; 36];
    for (index, byte) in bytes.iter().enumerate() {
        // After eight digits and then, three times, after four there is a dash.
        let place = 2 * index + (index / 2).saturating_sub(1).min(4);
        id[place] = DIGITS[usize::from(byte >> 4)];
        id[place + 1] = DIGITS[usize::from(byte & 0x0f)];
    }
    id
}

/// Whether a header says where a request came from. The router says so itself; a client's word is dropped, also in
/// the spelling with underscores, which CGI and WSGI read as the same name.
pub(super) fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let starts = |prefix: &[u8]| {
        name.len() >= prefix.len()
            && name.iter().zip(prefix).all(|(byte, wanted)| byte == wanted || (*wanted == b'-' && *byte == b'_'))
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
    use std::collections::BTreeSet;

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
        for (target, origin) in
            [("http://a/x?y", "/x?y"), ("HTTP://a", "/"), ("https://a?x", "/?x"), ("/x", "/x"), ("*", "*")]
        {
            let uri: Uri = target.parse().unwrap();
            assert_eq!(origin_form(uri).unwrap().to_string(), origin, "{target}");
        }
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("connection", "Host, content-length"),
            ("x-hop", "1"),
            ("host", "a"),
            ("content-length", "5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-end", "1"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        end_hop(&mut headers, false, is_forwarding);
        let left: BTreeSet<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, BTreeSet::from(["host", "content-length", "x-end"]));
    }

    #[test]
    fn request_ids_are_kept_or_made() {
        assert!(is_request_id(b"abcDEF019+/=-abcdefgh"));
        for bad in ["", "short", "abcdefghijklmnopqrst\"", "abcdefghijklmnopqrst uv", &"a".repeat(201)] {
            assert!(!is_request_id(bad.as_bytes()), "{bad}");
        }
        let (one, other) = (new_request_id(), new_request_id());
        assert!(one != other && is_request_id(one.as_bytes()), "{one}");
        let dashes: Vec<usize> = one.match_indices('-').map(|(at, _)| at).collect();
        assert_eq!((one.len(), dashes, &one[14..15]), (36, vec![8, 13, 18, 23], "4"));
    }

    #[test]
    fn what_a_request_asks_for_is_seen_in_one_pass() {
        let asked = |fields: &[(&'static str, &str)]| {
            let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            let mut headers = HeaderMap::new();
            fields.for_each(|(name, value): (_, HeaderValue)| _ = headers.append(name, value));
            Asked::by(&headers)
        };
        let te = |value| asked(&[("te", value)]).trailers;
        assert!(
            te("trailers")
                && te("gzip;q=1, Trailers")
                && !te("gzip")
                && asked(&[("te", "x"), ("te", "trailers")]).trailers
        );
        assert!(asked(&[("expect", "100-Continue")]).permission && !asked(&[("expect", "200-ok")]).permission);
        assert!(!asked(&[("upgrade", "h2c")]).another_protocol && asked(&[("upgrade", "websocket")]).another_protocol);
        assert!(!asked(&[("connection", "upgrade")]).another_protocol);
        assert_eq!(asked(&[("accept", "text/html"), ("accept", "*/*")]).accept(), Some("text/html"));
        // The first name counts, and if it is none to keep, there is none.
        let (good, other) = ("abcdefghijklmnopqrst", "tsrqponmlkjihgfedcba");
        let id = |one, two| asked(&[("x-request-id", one), ("x-request-id", two)]).request_id;
        assert_eq!(
            (id(good, other), id("short", good)),
            (Some(HeaderValue::from_static("abcdefghijklmnopqrst")), None)
        );
    }

    #[test]
    fn forwarding_headers_are_known_in_every_spelling() {
        for name in
            ["X-Forwarded-For", "x_forwarded_for", "X-Forwarded_Host", "Forwarded", "X-Request-Start", "x_request_id"]
        {
            assert!(is_forwarding(&name.parse().unwrap()), "{name}");
        }
        for name in ["X-Forwarded", "Forwarded-By", "Accept", "X-Request-Starter", "XForwarded-For"] {
            assert!(!is_forwarding(&name.parse().unwrap()), "{name}");
        }
    }
}
