//! The corpus: requests on which parsers disagree. Each one is refused, or reaches the app as exactly one request
//! that means what the router understood.
//!
//! Every case ends with a canary request. The app may see the canary only if the router answered it as a request of
//! its own; an app that sees more requests than the router counted was smuggled to.

use super::world::*;
use crate::router::TargetState::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Refused with this status, and nothing reaches the app.
const REFUSED: [(&str, u16); 105] = [
    // Two lengths.
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5,6\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\ncontent-length: 5\r\nCONTENT-LENGTH: 5\r\n\r\nhello", 400),
    // A length that is none.
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: +5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: -5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5 \t\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5;\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1 0\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: five\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length:\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: \"5\"\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5.0\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1e1\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 18446744073709551621\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 9223372036854775808\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: \u{666}\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length : 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length\t: 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\n Content-Length: 5\r\n\r\nhello", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length:\u{b}5\r\n\r\nhello", 400),
    // A coding that is not exactly chunked.
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked;\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked;x=y\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunk\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \u{c}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \u{85}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \u{a0}chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nX: y\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "GET / HTTP/1.0\r\nHost: hello.localhost\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    // Lines that end otherwise than in CR LF.
    ("GET / HTTP/1.1\nHost: hello.localhost\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\n\r\n", 400),
    ("GET / HTTP/1.1\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\r\r\nY: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\n", 400),
    ("\nGET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\r\n b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n Host: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n\tX: y\r\nHost: hello.localhost\r\n\r\n", 400),
    // Names and values that are none.
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\0b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX\0: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: \u{1}\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: \u{7f}\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX : a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX Y: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nno colon\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n(X): a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\u{e4}: a\r\n\r\n", 400),
    // Request lines.
    ("GET  / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1 \r\nHost: hello.localhost\r\n\r\n", 400),
    (" GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.2\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/2.0\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / http/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1x\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET /\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET x HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET * HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("G(T / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET ftp://hello.localhost/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET /#x HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("CONNECT hello.localhost:80 HTTP/1.1\r\nHost: hello.localhost:80\r\n\r\n", 405),
    // Hosts.
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nhost: other.localhost\r\n\r\n", 400),
    ("GET http://other.localhost/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET http://u@hello.localhost/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: u@hello.localhost\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: hello.localhost, other.localhost\r\n\r\n", 404),
    // An upgrade with a body before it (CVE-2026-2833 is about what follows an upgrade that was not answered).
    (
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello",
        400,
    ),
];

/// Bodies that are no chunks: the head is passed on before they come, but never a second request.
const BROKEN_CHUNKS: [&str; 17] = [
    "5\nhello\n0\n\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhelloX\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "5 5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "5\0\r\nhello\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFF1\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5\rX\nhello\r\n0\r\n\r\n",
    ";\r\nhello\r\n0\r\n\r\n",
];

const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: hello.localhost\r\nX-Canary: yes\r\nConnection: close\r\n\r\n";

/// In the order of their ends: the router is told to stop through a socket in the folder.
struct Stage {
    router: RunningRouter,
    app: App,
    _folder: tempfile::TempDir,
}

fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::with(folder.path(), |options| {
        options.head_timeout = Duration::from_millis(500);
        options.first_byte_timeout = Duration::from_millis(700);
        options.idle_timeout = Duration::from_millis(1000);
    });
    router.set(table(1, vec![app.target(Active)]));
    Stage { router, app, _folder: folder }
}

/// Everything that comes back for these bytes until the connection ends.
fn exchange(router: &RunningRouter, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(router.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // A reset ends it as well: the router closed with bytes unread.
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..count]);
    }
    let _ = stream.shutdown(Shutdown::Both);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_parsers_disagree_on_is_refused() {
    let stage = stage();
    let mut wrong = Vec::new();
    for (request, status) in REFUSED {
        let canary = if status == 404 { "" } else { CANARY };
        let request = if status == 404 {
            request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        } else {
            request.to_owned()
        };
        let answer = exchange(&stage.router, format!("{request}{canary}").as_bytes());
        // Who speaks HTTP/1.0 may be answered in it.
        let old = request.contains("HTTP/1.0") && answer.starts_with(&format!("HTTP/1.0 {status} "));
        if !(old || answer.starts_with(&format!("HTTP/1.1 {status} "))) || answer.matches("HTTP/1.").count() != 1 {
            wrong.push(format!("{request:?} got {:?}", answer.lines().next()));
        }
        if stage.app.count() != 0 {
            wrong.push(format!(
                "{request:?} reached the app: {:?}",
                stage.app.seen.lock().unwrap().drain(..).collect::<Vec<_>>()
            ));
            stage.app.requests.store(0, std::sync::atomic::Ordering::SeqCst);
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), REFUSED.len(), wrong.join("\n"));
}

#[test]
fn broken_chunks_end_the_connection_on_both_sides() {
    let stage = stage();
    let mut wrong = Vec::new();
    for body in BROKEN_CHUNKS {
        stage.app.seen.lock().unwrap().clear();
        let head = "POST /broken HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = exchange(&stage.router, format!("{head}{body}{CANARY}").as_bytes());
        let seen = stage.app.seen.lock().unwrap().clone();
        if !seen.is_empty() || answer.contains("HTTP/1.1 200") {
            wrong.push(format!("{body:?} got {:?}, the app saw {seen:?}", answer.lines().next()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), BROKEN_CHUNKS.len(), wrong.join("\n"));
}

#[test]
fn every_request_that_the_app_sees_was_one_for_the_router() {
    let stage = stage();
    let name = "hello".parse().unwrap();
    // Legal, but each a place where a lenient parser sees another number of requests.
    for (request, requests) in [
        (
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: CHUNKED\r\n\r\n5;ext=\"a\"\r\nhello\r\n0\r\n\r\n",
            2,
        ),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n005\r\nhello\r\n00\r\n\r\n", 2),
        (
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n",
            2,
        ),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nhello", 2),
        ("DELETE / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nhello", 2),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 00005\r\n\r\nhello", 2),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello", 2),
        (
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            2,
        ),
        (
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
            2,
        ),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", 2),
        (
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
            2,
        ),
        // As clients in Java send each POST.
        (
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 5\r\n\r\nhello",
            2,
        ),
        // An upgrade that the app does not take up: what follows is dropped, neither passed
        // through as if it had been (CVE-2026-2833) nor read as a request.
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: anything\r\n\r\n", 1),
        ("OPTIONS * HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 2),
    ] {
        stage.app.seen.lock().unwrap().clear();
        let before = stage.router.status().apps[&name].requests;
        let answer = exchange(&stage.router, format!("{request}{CANARY}").as_bytes());
        let counted = eventually("the router's count", || {
            let app = stage.router.status().apps[&name].clone();
            (app.in_flight == 0).then_some(app.requests - before)
        });
        let seen = stage.app.seen.lock().unwrap().clone();
        assert_eq!(seen.len() as u64, counted, "{request:?}: the app saw {seen:#?}, the client got {answer}");
        assert_eq!(counted, requests, "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 200").count() as u64, counted, "{request:?}: {answer}");
        // Only the canary itself carries its mark.
        let marked: Vec<_> = seen.iter().filter(|seen| seen.header("x-canary").is_some()).collect();
        assert_eq!(marked.len() as u64, requests - 1, "{request:?}: {seen:#?}");
        assert!(marked.iter().all(|seen| seen.line == "GET /canary HTTP/1.1"), "{request:?}: {seen:#?}");
        assert!(seen[0].body == b"hello" || seen[0].body.is_empty(), "{request:?}: {seen:#?}");
    }
}

#[test]
fn too_much_of_anything_is_refused() {
    let stage = stage();
    for (request, status) in [
        (format!("GET /{} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", "a".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: {}\r\n\r\n", "a".repeat(9000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\n{}\r\n", "X: a\r\n".repeat(100)), 431),
    ] {
        let answer = exchange(&stage.router, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:?}", answer.lines().next());
    }
    // More than the parser holds: refused without an answer of ours.
    let endless = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\n{}", "X: a\r\n".repeat(300_000));
    let answer = exchange(&stage.router, endless.as_bytes());
    assert!(!answer.contains("HTTP/1.1 200"));
    assert_eq!(stage.app.count(), 0);
}

/// Spellings of a host that name no app. The app `hello.localhost` is there, and `two.localhost`.
const NO_HOSTS: [&str; 66] = [
    "",
    ".",
    "..",
    "-",
    "_",
    "*",
    "*.localhost",
    "localhost",
    ".localhost",
    "hello",
    "hello.",
    ".hello.localhost",
    "hello..localhost",
    "hello.localhost..",
    "hello.localhost.evil",
    "hello.localhost.evil.example",
    "evilhello.localhost",
    "x.hello.localhost",
    "hello_localhost",
    "hello-localhost",
    "xn--hello.localhost",
    "hello.localhost/",
    "hello.localhost/x",
    "hello.localhost?x",
    "hello.localhost#x",
    "hello.localhost\\",
    "\\hello.localhost",
    "hello.localhost@evil",
    "u@hello.localhost",
    "u:p@hello.localhost",
    "@hello.localhost",
    "hello.localhost:80@evil",
    "hello.localhost:80:80",
    "hello.localhost:80a",
    "hello.localhost:-1",
    "hello.localhost:+80",
    "hello.localhost:0x50",
    "hello.localhost:123456",
    "hello.localhost: 80",
    "hello.localhost :80",
    "hello .localhost",
    "hello.localhost two.localhost",
    "hello.localhost,two.localhost",
    "hello.localhost, two.localhost",
    "hello.localhost;two.localhost",
    "hello%2elocalhost",
    "hello.localhost%00",
    "hello.localhost%20",
    "%68ello.localhost",
    "[hello.localhost]",
    "[::1]",
    "[::1]:80",
    "::1",
    "127.0.0.1",
    "127.0.0.1:80",
    "2130706433",
    "0x7f000001",
    "h\u{e9}llo.localhost",
    "hello\u{3002}localhost",
    "\u{ff48}ello.localhost",
    "hello.localho\u{17f}t",
    "hello\u{ad}.localhost",
    "\"hello.localhost\"",
    "<hello.localhost>",
    "http://hello.localhost",
    "//hello.localhost",
];

#[test]
fn a_host_that_names_no_app_reaches_none() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (App::start(folder.path(), "one"), App::start(folder.path(), "two"));
    let router = RunningRouter::start(folder.path());
    let mut both = table(1, vec![one.target(Active)]);
    let mut other = both.apps.values().next().unwrap().clone();
    (other.hosts, other.targets) = (vec!["two.localhost".into()], vec![two.target(Active)]);
    both.apps.insert("two".parse().unwrap(), other);
    router.set(both);
    let ask = |target: &str, host: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(&router, request.as_bytes())
    };
    let long = format!("{}hello.localhost", "a.".repeat(150));
    let mut wrong = Vec::new();
    for host in NO_HOSTS.into_iter().chain([long.as_str()]) {
        let answer = ask("/", host);
        if !(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 404 ")) {
            wrong.push(format!("{host:?} got {:?}", answer.lines().next()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((one.count(), two.count()), (0, 0));
    let spellings = [
        "hello.localhost",
        "HELLO.LocalHost",
        "hello.localhost.",
        "hello.localhost:80",
        "hello.localhost:65535",
        "Hello.localhost.:8000",
        "  hello.localhost  ",
    ];
    for host in spellings {
        let answer = ask("/", host);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("one"), "{host:?} got {answer}");
    }
    assert_eq!((one.count(), two.count()), (spellings.len(), 0));
}

/// What an app may send in place of an answer, whether it closes the connection then, and nothing of which may be taken
/// for the answer to somebody else. "evil" stands where nobody may read it.
const BAD_ANSWERS: [(&str, bool); 42] = [
    ("", true),
    ("\r\n", true),
    ("\r\n\r\n", true),
    ("evil", true),
    ("evil\r\n\r\n", true),
    ("HTTP", true),
    ("HTTP/1.1", true),
    ("HTTP/1.1 200", true),
    ("HTTP/1.1 200 OK\r\n", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4", true),
    ("HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 2000 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 abc OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 -20 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/9.9 200 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTX/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("ICY 200 OK\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nX\0: a\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4x\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0x4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nevil!", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4, 5\r\n\r\nevil!", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n4\r\nevil\r\n0\r\n\r\n", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nevil\r\n0\r\n\r\n", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\nevil\r\n0\r\n\r\n", true),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nevil", true),
    ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nevil", true),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false),
    ("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false),
    ("HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        false,
    ),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nevil", false),
];

#[test]
fn nothing_that_an_app_answers_reaches_another_visitor() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |seen, stream| {
        let case = seen.line.split(' ').nth(1).and_then(|path| path.strip_prefix("/bad/")?.parse::<usize>().ok());
        let Some((bytes, closes)) = case.map(|case| BAD_ANSWERS[case]) else {
            respond(stream, 200, b"good");
            return Next::KeepAlive;
        };
        let _ = stream.write_all(bytes.as_bytes());
        if closes { Next::Close } else { Next::KeepAlive }
    });
    let router = RunningRouter::with(folder.path(), |options| {
        options.first_byte_timeout = Duration::from_millis(700);
        options.idle_timeout = Duration::from_millis(1000);
    });
    router.set(table(1, vec![app.target(Active)]));
    let ask = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n");
        exchange(&router, request.as_bytes())
    };
    let mut wrong = Vec::new();
    for (case, (bytes, _)) in BAD_ANSWERS.iter().enumerate() {
        let bad = ask(&format!("/bad/{case}"));
        if bad.contains("evil") {
            wrong.push(format!("{bytes:?} was passed on as {bad:?}"));
        }
        for _ in 0..2 {
            let good = ask("/good");
            if !(good.starts_with("HTTP/1.1 200 ") && good.ends_with("good")) {
                wrong.push(format!("after {bytes:?} another visitor got {good:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), BAD_ANSWERS.len(), wrong.join("\n"));
}
