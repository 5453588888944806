//! What a client may not say over HTTP/2, since it would mean something else once it is written as HTTP/1.1. The frames
//! are written by hand: a client library would refuse to send them.

use super::secure::{configuration, secured, speak_http2, speak_http2_as};
use super::world::*;
use crate::router::Code;
use crate::router::TargetState::Active;
use rustls::pki_types::ServerName;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;
type Fields = Vec<(&'static [u8], Vec<u8>)>;

/// One connection on which one stream is opened.
struct Raw {
    stream: Stream,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    /// The first byte of the answer's head: `:status: 200` of the static table is 0x88.
    Answer(u8),
    /// The stream or the connection was ended.
    Refused,
}

impl Raw {
    fn connect(address: SocketAddr) -> Raw {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from("hello.localhost").unwrap();
        let connection = rustls::ClientConnection::new(configuration(&[b"h2"]), name).unwrap();
        let mut raw = Raw { stream: rustls::StreamOwned::new(connection, tcp) };
        raw.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.frame(4, 0, 0, b"");
        raw
    }

    /// A frame of a type, with its flags (RFC 9113, 4.1). That the other end has gone is seen when we read.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        let _ = self.stream.write_all(&frame);
        let _ = self.stream.flush();
    }

    /// The head and the pieces of the body of one request.
    fn ask(mut self, fields: &Fields, body: &[&[u8]]) -> Came {
        let block = block_of(fields);
        let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let last = if index + 1 == pieces.len() { 4 } else { 0 };
            let ends = if body.is_empty() && index == 0 { 1 } else { 0 };
            self.frame(if index == 0 { 1 } else { 9 }, last | ends, 1, piece);
        }
        for (index, piece) in body.iter().enumerate() {
            self.frame(0, u8::from(index + 1 == body.len()), 1, piece);
        }
        self.outcome()
    }

    fn outcome(&mut self) -> Came {
        loop {
            let mut head = [0; 9];
            if self.stream.read_exact(&mut head).is_err() {
                return Came::Refused;
            }
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            if self.stream.read_exact(&mut payload).is_err() {
                return Came::Refused;
            }
            match head[3] {
                1 => return Came::Answer(payload.iter().copied().find(|byte| byte >> 5 != 1).unwrap_or(0)),
                3 | 7 => return Came::Refused,
                _ => {}
            }
        }
    }
}

fn block_of(fields: &Fields) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literal without indexing, new name, no Huffman (RFC 7541, 6.2.2).
        block.push(0);
        for text in [name.to_vec(), value.clone()] {
            integer(text.len(), &mut block);
            block.extend(text);
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn integer(value: usize, block: &mut Vec<u8>) {
    if value < 127 {
        block.push(u8::try_from(value).unwrap());
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

fn fields(method: &'static str, more: &[(&'static str, &str)]) -> Fields {
    let start = [(":method", method), (":scheme", "https"), (":authority", "hello.localhost"), (":path", "/case")];
    let all = start.iter().chain(more);
    all.map(|(name, value)| (name.as_bytes(), value.as_bytes().to_vec())).collect()
}

/// The usual head with one field said otherwise.
fn instead(name: &'static str, value: &str) -> Fields {
    let mut all = fields("GET", &[]);
    for (have, old) in &mut all {
        if *have == name.as_bytes() {
            *old = value.as_bytes().to_vec();
        }
    }
    all
}

fn without(name: &str) -> Fields {
    fields("GET", &[]).into_iter().filter(|(have, _)| *have != name.as_bytes()).collect()
}

fn lines(app: &App) -> Vec<String> {
    app.seen.lock().unwrap().drain(..).map(|seen| format!("{} {}", seen.line, seen.body.len())).collect()
}

#[test]
fn what_http2_must_not_say_reaches_no_app() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let smuggled = "/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\nGET /smuggled";
    let mut cases: Vec<(String, Fields)> = Vec::new();
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("connection", "close"),
        ("connection", "x-hop"),
        ("keep-alive", "5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("x-value", "a\r\nx-injected: b"),
        ("x-value", "a\nb"),
        ("x-value", "a\rb"),
        ("x-value", "a\0b"),
        ("X-Upper", "a"),
        ("x-upPer", "a"),
        ("x name", "a"),
        ("x:name", "a"),
        ("x-name\r\nx-injected", "a"),
        ("", "a"),
        (":path", "/another"),
        (":method", "POST"),
        (":authority", "other.localhost"),
        (":unknown", "a"),
        (":status", "200"),
        ("host", "other.localhost"),
        ("content-length", "10"),
        ("content-length", "abc"),
        ("content-length", "-1"),
        ("content-length", "+0"),
        ("content-length", "0, 0"),
        ("content-length", "0x0"),
        ("content-length", "99999999999999999999"),
    ] {
        cases.push((format!("{name:?}: {value:?}"), fields("GET", &[(name, value)])));
    }
    for (name, value) in [
        (":path", "/a b"),
        (":path", "/a\tb"),
        (":path", smuggled),
        (":path", "/a\0b"),
        (":path", ""),
        (":path", "rootless"),
        (":path", "*"),
        (":method", "GET /smuggled HTTP/1.1\r\nx:"),
        (":method", "GE T"),
        (":method", ""),
        (":method", "CONNECT"),
        (":scheme", "https\r\nx: y"),
        (":authority", "user@hello.localhost"),
        (":authority", "hello.localhost\r\nx: y"),
        (":authority", "hello.localhost, other.localhost"),
        (":authority", ""),
    ] {
        cases.push((format!("{name} = {value:?}"), instead(name, value)));
    }
    for name in [":method", ":scheme", ":path", ":authority"] {
        cases.push((format!("no {name}"), without(name)));
    }
    let mut late = fields("GET", &[("x-first", "a")]);
    late.rotate_left(1);
    cases.push((":method after a header".to_owned(), late));
    let twice = fields("GET", &[("host", "hello.localhost"), ("host", "hello.localhost")]);
    cases.push(("two hosts".to_owned(), twice));
    let lengths = fields("GET", &[("content-length", "0"), ("content-length", "1")]);
    cases.push(("two lengths".to_owned(), lengths));
    let long = "x".repeat(9_000);
    cases.push(("a long header".to_owned(), fields("GET", &[("x-long", &long)])));
    cases.push(("a long path".to_owned(), instead(":path", &format!("/{long}"))));
    let many: Vec<(&str, &str)> = (0..120).map(|_| ("x-many", "a")).collect();
    cases.push(("many headers".to_owned(), fields("GET", &many)));

    assert_eq!(Raw::connect(address).ask(&fields("GET", &[("x-good", "a b\tc")]), &[]), Came::Answer(0x88));
    assert_eq!(lines(&app), ["GET /case HTTP/1.1 0"], "what is as it should be");
    for (what, fields) in cases {
        let came = Raw::connect(address).ask(&fields, &[]);
        assert_ne!(came, Came::Answer(0x88), "{what}");
        let seen = lines(&app);
        assert!(seen.is_empty(), "{what}: the app saw {seen:?}");
    }
    assert_eq!(router.get("nobody.localhost", "/").status, 404);
}

#[test]
fn a_body_that_is_not_as_long_as_was_said_is_no_request_and_leaves_nothing_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let sized = |length: &str| fields("POST", &[("content-length", length)]);
    assert_eq!(Raw::connect(address).ask(&sized("5"), &[b"he", b"llo"]), Came::Answer(0x88));
    assert_eq!(lines(&app), ["POST /case HTTP/1.1 5"]);
    assert_eq!(Raw::connect(address).ask(&fields("POST", &[]), &[b"he", b"llo"]), Came::Answer(0x88));
    assert_eq!(lines(&app), ["POST /case HTTP/1.1 5"], "without a length it is chunked to the app");
    let next = b"GET /smuggled HTTP/1.1\r\nHost: hello.localhost\r\n\r\n".as_slice();
    let mut lengths = Vec::new();
    for (length, body) in [
        ("5", vec![b"he".as_slice()]),
        ("5", vec![b"hello", next]),
        ("5", vec![b"hello world"]),
        ("0", vec![next]),
        ("1", vec![b"", next]),
        ("50", vec![b"hello"]),
    ] {
        let came = Raw::connect(address).ask(&sized(length), &body);
        let mut seen = lines(&app);
        let answered = came == Came::Answer(0x88);
        assert!(!answered || !seen.is_empty(), "{length} {body:?}: {came:?}");
        assert_eq!(router_get(&router, address), Came::Answer(0x88));
        seen.extend(lines(&app));
        // What was sent up to the length may be a whole request, and may come late; what is more is none.
        let (gets, posts): (Vec<String>, Vec<String>) = seen.into_iter().partition(|line| line.starts_with("GET"));
        assert_eq!(gets, ["GET /case HTTP/1.1 0"], "after {length} {body:?}");
        lengths.push(length);
        for post in posts {
            let known = lengths.iter().position(|length| post == format!("POST /case HTTP/1.1 {length}"));
            lengths.remove(known.unwrap_or_else(|| panic!("{post} came of nothing, after {length} {body:?}")));
        }
    }
}

fn router_get(_: &RunningRouter, address: SocketAddr) -> Came {
    Raw::connect(address).ask(&fields("GET", &[]), &[])
}

#[test]
fn trailers_end_a_body_and_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, stream| {
        let answer =
            "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\none\r\n0\r\nX-Sum: 1\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes());
        Next::KeepAlive
    });
    let (router, address) = secured(folder.path(), |options| options.redirect = false);
    router.set(table(1, vec![app.target(Active)]));
    // Two requests on one connection: the trailers of the first are no part of the second, on either side.
    let mut client = router.client();
    for _ in 0..2 {
        client.send(
            "POST /trailed HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nsum\r\n0\r\nX-Check: 2\r\nContent-Length: 50\r\n\r\n",
        );
        let mut text = String::new();
        while !text.contains("0\r\n") {
            let mut piece = [0; 1024];
            let count = client.reader.read(&mut piece).unwrap();
            assert!(count > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("3\r\none\r\n0\r\n"), "{text}");
    }
    let seen = app.seen.lock().unwrap().clone();
    assert_eq!(seen.iter().map(|seen| seen.body.as_slice()).collect::<Vec<_>>(), [b"sum", b"sum"]);
    assert!(seen.iter().all(|seen| seen.header("content-length").is_none()), "a trailer became a header: {seen:?}");
    // The same answer over HTTP/2.
    assert_eq!(Raw::connect(address).ask(&fields("GET", &[("te", "trailers")]), &[]), Came::Answer(0x88));
}

/// An app whose answers end with trailers if it was told that they are taken.
fn trailing(folder: &std::path::Path) -> App {
    App::behaving(folder, "one", |seen, stream| {
        // The data says twice what ends a body.
        let body = "Transfer-Encoding: chunked\r\n\r\n7\r\n\r\n0\r\n\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n";
        let late =
            if seen.header("te") == Some("trailers") { "X-Sum: 1\r\nSet-Cookie: a=b\r\nX-End: 2\r\n" } else { "" };
        let early = if seen.line.contains("/hinted") { "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" } else { "" };
        // However it is cut, and with a pause in between.
        for piece in format!("{early}HTTP/1.1 200 OK\r\n{body}{late}\r\n").as_bytes().chunks(11) {
            let _ = stream.write_all(piece);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Next::KeepAlive
    })
}

/// Reads one answer: its head, its body, and the lines after that.
fn read_chunked(reader: &mut impl BufRead) -> (String, Vec<u8>, Vec<String>) {
    fn next(reader: &mut impl BufRead) -> String {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the connection ended");
        line.trim_end().to_owned()
    }
    let mut head = String::new();
    loop {
        let line = next(reader);
        // The end of a head; one that is only a hint is followed by another.
        if line.is_empty() && !head.ends_with("</a>\n") {
            break;
        }
        head += &line;
        head.push('\n');
    }
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(&next(reader), 16).unwrap();
        if size == 0 {
            break;
        }
        let mut data = vec![0; size + 2];
        reader.read_exact(&mut data).unwrap();
        body.extend_from_slice(&data[..size]);
    }
    let mut late = Vec::new();
    loop {
        match next(reader) {
            line if line.is_empty() => return (head, body, late),
            line => late.push(line),
        }
    }
}

#[test]
fn trailers_reach_who_takes_them_over_http1() {
    let folder = tempfile::tempdir().unwrap();
    let app = trailing(folder.path());
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    for (path, more, expected) in [
        ("/plain", "", vec![]),
        ("/trailed", "Connection: TE\r\nTE: trailers\r\n", vec!["x-sum: 1", "x-end: 2"]),
        ("/hinted", "TE: gzip, trailers\r\n", vec!["x-sum: 1", "x-end: 2"]),
        ("/plain", "", vec![]),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\n{more}\r\n"));
        let (head, body, late) = read_chunked(&mut client.reader);
        assert!(head.contains("HTTP/1.1 200 OK"), "{path}: {head}");
        assert_eq!(body, b"\r\n0\r\n\r\n0\r\n\r\n", "{path}: {head}");
        assert_eq!(late, expected, "{path}: {head}");
    }
    // What has no body has no trailers either, and the connection is good for the next.
    client.send("HEAD /head HTTP/1.1\r\nHost: hello.localhost\r\nTE: trailers\r\nConnection: close\r\n\r\n");
    let mut text = String::new();
    client.reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK") && !text.contains("x-sum"), "{text:?}");
}

#[test]
fn trailers_reach_clients_of_http2() {
    let folder = tempfile::tempdir().unwrap();
    let app = trailing(folder.path());
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let (text, late) = router.call(async {
        let client = speak_http2(address).await;
        let request = http::Request::builder().uri("https://hello.localhost/trailed").header("te", "trailers");
        let mut client = client.ready().await.unwrap();
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        let mut stream = answer.await.unwrap().into_body();
        let mut text = Vec::new();
        while let Some(piece) = stream.data().await {
            text.extend_from_slice(&piece.unwrap());
        }
        (text, stream.trailers().await.unwrap().expect("trailers"))
    });
    assert_eq!(text, b"\r\n0\r\n\r\n0\r\n\r\n");
    let late: std::collections::BTreeMap<&str, &[u8]> =
        late.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(late, [("x-end", b"2".as_slice()), ("x-sum", b"1")].into());
}

/// An app on a socket of the test's: `answer` gets each connection once the first bytes of a request other than the health
/// check have come, and those bytes.
fn raw_app(
    folder: &std::path::Path,
    answer: impl Fn(TcpStream, Vec<u8>) + Send + Sync + 'static,
) -> (App, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (answer, shown) = (std::sync::Arc::new(answer), seen.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (answer, seen) = (answer.clone(), seen.clone());
            std::thread::spawn(move || {
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).unwrap_or(0);
                bytes.truncate(count);
                if bytes.starts_with(b"GET /health") {
                    respond(&mut stream, 200, b"");
                } else if count > 0 {
                    seen.lock().unwrap().extend_from_slice(&bytes);
                    let mut copy = stream.try_clone().unwrap();
                    let rest = seen.clone();
                    std::thread::spawn(move || {
                        let mut piece = [0; 4096];
                        while let Ok(count @ 1..) = copy.read(&mut piece) {
                            rest.lock().unwrap().extend_from_slice(&piece[..count]);
                        }
                    });
                    answer(stream, bytes);
                }
            });
        }
    });
    (App::passing(folder, "raw", address), shown)
}

#[test]
fn trailers_of_a_request_reach_the_app_if_they_were_announced() {
    let folder = tempfile::tempdir().unwrap();
    let (app, seen) = raw_app(folder.path(), |mut stream, _| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        respond(&mut stream, 200, b"taken");
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let answer = router.client().request(
        "POST /up HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n\
         3\r\nsum\r\n0\r\nX-Check: 2\r\nX-Other: 3\r\nContent-Length: 50\r\n\r\n",
    );
    assert_eq!(answer.body, "taken");
    let seen = String::from_utf8_lossy(&seen.lock().unwrap()).to_ascii_lowercase();
    let body = seen.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    assert_eq!(body.as_deref(), Some("3\r\nsum\r\n0\r\nx-check: 2\r\n\r\n"), "{seen}");
}

#[test]
fn who_asks_first_is_told_what_the_app_says() {
    let folder = tempfile::tempdir().unwrap();
    // One path refuses by the head alone, one says that it wants the body after a while, one never says anything first.
    let (app, seen) = raw_app(folder.path(), |mut stream, head| {
        if head.starts_with(b"PUT /refused") {
            let _ = stream.write_all(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
        if head.starts_with(b"PUT /wanted") {
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        respond(&mut stream, 200, b"taken");
        std::thread::sleep(std::time::Duration::from_millis(200));
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let ask = |path: &str| {
        let mut client = router.client();
        client.send(format!(
            "PUT {path} HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        ));
        let first = client.answer().expect("an answer");
        (client, first.status)
    };
    assert_eq!(ask("/refused").1, 413, "nothing was asked for");
    for path in ["/wanted", "/silent"] {
        let (mut client, first) = ask(path);
        assert_eq!(first, 100, "{path}");
        assert!(!seen.lock().unwrap().ends_with(b"body"), "{path}");
        client.send("body");
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, "taken"), "{path}");
        assert!(seen.lock().unwrap().ends_with(b"body"), "{path}");
        seen.lock().unwrap().clear();
    }
}

/// A router that waits for half a second only, and an app that answers with so many bytes.
fn impatient(folder: &std::path::Path, length: usize) -> (App, RunningRouter, SocketAddr) {
    let app = App::behaving(folder, "one", move |_, stream| {
        respond(stream, 200, &vec![b'x'; length]);
        Next::Close
    });
    let (router, address) = secured(folder, |options| options.idle_timeout = std::time::Duration::from_millis(500));
    router.set(table(1, vec![app.target(Active)]));
    (app, router, address)
}

#[test]
fn a_stream_whose_client_takes_nothing_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (app, router, address) = impatient(folder.path(), 4 << 20);
    let client = router.call(async {
        let client = speak_http2_as(address, h2::client::Builder::new().initial_window_size(0)).await;
        let request = http::Request::builder().uri("https://hello.localhost/").body(()).unwrap();
        let mut client = client.ready().await.unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        client
    });
    let process = app.target(Active).process;
    eventually("its end", || (router.status().targets[&process].in_flight == 0).then_some(()));
    expect_codes(&router, &[(Code::H27, 1)]);
    drop(client);
}

#[test]
fn streams_of_a_client_that_reads_nothing_hold_little_however_much_it_says_to_take() {
    const STREAMS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let (app, router, address) = impatient(folder.path(), 1 << 20);
    let mut client = Raw::connect(address);
    // SETTINGS_INITIAL_WINDOW_SIZE and the connection's WINDOW_UPDATE, both as large as may be.
    let largest = (1_u32 << 31) - 1;
    client.frame(4, 0, 0, &[&[0, 4], largest.to_be_bytes().as_slice()].concat());
    client.frame(8, 0, 0, &(largest - 65_535).to_be_bytes());
    let block = block_of(&fields("GET", &[]));
    for number in 0..STREAMS as u32 {
        client.frame(1, 5, 2 * number + 1, &block);
    }
    eventually("all requests", || (app.count() == STREAMS).then_some(()));
    let process = app.target(Active).process;
    eventually("their end", || (router.status().targets[&process].in_flight == 0).then_some(()));
    let taken = router.status().apps[&"hello".parse().unwrap()].bytes;
    // Of what the app wrote, some 4 MB lie in the sockets' own buffers.
    assert!(taken < 16 << 20, "{} KiB of each stream", (taken >> 10) / STREAMS as u64);
}

#[test]
fn a_stream_that_is_slow_but_steady_gets_all_of_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (_app, router, address) = impatient(folder.path(), 2 << 20);
    let got = router.call(async {
        let client = speak_http2(address).await;
        let request = http::Request::builder().uri("https://hello.localhost/").body(()).unwrap();
        let mut client = client.ready().await.unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let mut stream = answer.await.unwrap().into_body();
        let (mut got, mut taken) = (0, 0);
        while let Some(piece) = stream.data().await {
            got += piece.unwrap().len();
            // 400 KB within the router's patience, and less than one piece of the app's may have.
            while taken + 20_000 <= got {
                taken += 20_000;
                stream.flow_control().release_capacity(20_000).unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            }
        }
        got
    });
    assert_eq!(got, 2 << 20);
    assert_eq!(codes(&router), []);
}

#[test]
fn an_upload_over_http2_whose_end_comes_by_itself_is_owed_an_answer_like_any() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, _| {
        std::thread::sleep(std::time::Duration::from_secs(3));
        Next::Close
    });
    let (router, address) =
        secured(folder.path(), |options| options.first_byte_timeout = std::time::Duration::from_millis(300));
    router.set(table(1, vec![app.target(Active)]));
    let came = Raw::connect(address).ask(&fields("POST", &[("content-length", "4")]), &[b"book", b""]);
    assert!(matches!(came, Came::Answer(_)), "{came:?}");
    expect_codes(&router, &[(Code::H12, 1)]);
}

#[test]
fn small_pieces_go_to_an_app_without_waiting_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(crate::router::dial::dial(&app.socket, std::time::Duration::from_secs(5))).unwrap();
    assert!(stream.nodelay().unwrap());
}

#[test]
fn an_answer_to_an_upload_that_the_app_does_not_take_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            respond(&mut stream, if head.starts_with(b"GET /health") { 200 } else { 413 }, &[b'x'; 20_000]);
            // Closed with the upload unread, so the connection is reset.
        }
    });
    let app = App::passing(folder.path(), "full", address);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for round in 0..10 {
        let mut client = router.client();
        let mut writer = client.stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let more = if round % 2 == 0 { "" } else { OFFERS_H2C };
            let head = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5000000\r\n{more}\r\n");
            let _ = writer.write_all(head.as_bytes());
            (0..50).for_each(|_| drop(writer.write_all(&[b'x'; 100_000])));
        });
        let answer = client.answer().expect("an answer that is whole");
        assert_eq!((answer.status, answer.body.len()), (413, 20_000));
        writing.join().unwrap();
    }
}

/// As clients in Java say with the first request of a connection.
const OFFERS_H2C: &str =
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";

#[test]
fn the_last_answer_of_a_connection_arrives_whole_whatever_was_offered_on_it() {
    const LONG: usize = 8_000_000;
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, stream| {
        respond(stream, 200, &vec![b'x'; LONG]);
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for more in ["", OFFERS_H2C] {
        let mut client = router.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n{more}\r\n"));
        // More than fits on the way waits here for the client.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(client.answer().expect("all of it").body.len(), LONG, "{more:?}");
    }
}
