//! What goes wrong between the router and a process, and what the client is told of it.

use super::world::*;
use crate::router::TargetState::*;
use crate::router::{Code, Notice};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

fn broken(
    behaviour: impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync + 'static,
) -> (tempfile::TempDir, App, RunningRouter) {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", behaviour);
    let router = RunningRouter::with(folder.path(), |options| {
        options.first_byte_timeout = Duration::from_millis(300);
        options.idle_timeout = Duration::from_millis(900);
        options.connect_timeout = Duration::from_millis(500);
        options.restart_timeout = Duration::from_millis(200);
    });
    router.set(table(1, vec![app.target(Active)]));
    (folder, app, router)
}

#[test]
fn without_an_active_process_the_notice_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::start(folder.path());
    for (version, (notice, status, code, sentence)) in [
        (None, 503, "H14", "This app is not running"),
        (Some(Notice::Building), 503, "H14", "This app is being built"),
        (Some(Notice::Held), 503, "H14", "waits for approval"),
        (Some(Notice::Crashed), 503, "H10", "This app has crashed"),
        (Some(Notice::Failed), 503, "H10", "could not be deployed"),
        (Some(Notice::Asleep), 503, "H14", "This app is asleep"),
        (Some(Notice::Maintenance), 503, "H80", "under maintenance"),
        (Some(Notice::Gone), 410, "", "This app is gone"),
    ]
    .into_iter()
    .enumerate()
    {
        router.set(table_with(version as u64, Vec::new(), notice));
        let answer = router.get("hello.localhost", "/");
        assert_eq!(answer.status, status, "{notice:?}");
        assert!(answer.body.contains(sentence) && answer.body.contains(code), "{notice:?}: {}", answer.body);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("clear-site-data").is_some(), notice == Some(Notice::Gone));
    }
    expect_codes(&router, &[(Code::H10, 2), (Code::H14, 4), (Code::H80, 1)]);
}

#[test]
fn a_refused_dial_is_h21_and_a_silent_supervisor_h19() {
    let (folder, app, router) = broken(|_, _| Next::Close);
    app.refusing.store(true, Ordering::SeqCst);
    assert!(router.get("hello.localhost", "/").body.contains("H21"));
    let silent = folder.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let mut target = app.target(Active);
    target.process = "silent.a1".parse().unwrap();
    target.socket = silent;
    router.set(table(2, vec![target]));
    assert!(router.get("hello.localhost", "/").body.contains("H19"));
    expect_codes(&router, &[(Code::H19, 1), (Code::H21, 1)]);
    assert_eq!(app.count(), 0);
}

#[test]
fn an_answer_that_does_not_begin_is_h12() {
    let (_folder, app, router) = broken(|_, _| {
        sleep(Duration::from_secs(5));
        Next::Close
    });
    let answer = router.get("hello.localhost", "/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("H12") && answer.body.contains("took too long"), "{}", answer.body);
    expect_codes(&router, &[(Code::H12, 1)]);
    assert_eq!(app.count(), 1);
}

#[test]
fn an_upload_may_take_longer_than_the_first_byte() {
    let (_folder, app, router) = broken(|_, stream| {
        respond(stream, 200, b"taken");
        Next::KeepAlive
    });
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 8\r\n\r\n");
    for _ in 0..8 {
        sleep(Duration::from_millis(150));
        client.send("x");
    }
    assert_eq!(client.answer().unwrap().body, "taken");
    assert_eq!(app.last().body, b"xxxxxxxx");
}

#[test]
fn a_connection_closed_without_answer_is_h13() {
    let (_folder, app, router) = broken(|_, _| Next::Close);
    assert!(router.get("hello.localhost", "/").body.contains("H13"));
    let mut client = router.client();
    let post = client.request("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 2\r\n\r\nab");
    assert!(post.body.contains("H13"), "{}", post.body);
    let posts = app.seen.lock().unwrap().iter().filter(|seen| seen.line.starts_with("POST")).count();
    assert_eq!(posts, 1, "a POST was sent twice");
}

#[test]
fn silence_in_the_middle_is_h15_and_an_end_in_the_middle_h18() {
    let (_folder, _app, router) = broken(|seen, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345");
        if seen.line.contains("/silent") {
            sleep(Duration::from_secs(3));
        }
        Next::Close
    });
    for path in ["/ended", "/silent"] {
        let mut client = router.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"));
        assert!(client.answer().is_none(), "an answer that was cut off looked whole");
    }
    expect_codes(&router, &[(Code::H15, 1), (Code::H18, 1)]);
    // Whatever their heads said: whoever counts errors counts them, and the log says so.
    let name = "hello".parse().unwrap();
    assert_eq!(numbers(&router).app[0].classes, [0, 0, 0, 0, 2]);
    let lines = || router.call(router.control.logs(&name, 0)).unwrap();
    let lines = eventually("the lines", || Some(lines()).filter(|lines| lines.len() == 2));
    assert!(lines.iter().all(|line| line.line.contains(" status=503 ")), "{lines:?}");
}

#[test]
fn an_answer_whose_process_had_to_end_is_no_error_of_its_release() {
    let (folder, app, router) = broken(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345");
        sleep(Duration::from_millis(600));
        Next::Close
    });
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request", || (app.count() == 1).then_some(()));
    let next = App::start(folder.path(), "next");
    router.set(table(2, vec![app.target(Draining), next.target(Active)]));
    assert!(client.answer().is_none());
    expect_codes(&router, &[(Code::H18, 1)]);
    assert_eq!(numbers(&router).app[0].classes, [0, 1, 0, 0, 0]);
}

#[test]
fn no_connection_changes_to_another_http() {
    let (_folder, app, router) = broken(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n");
        Next::Close
    });
    let offer = |protocol: &str| {
        router.client().request(&format!(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
        ))
    };
    for protocol in ["h 2c", "h2c;q=1", "websocket,", "", "a/b/c"] {
        assert_eq!(offer(protocol).status, 400, "{protocol:?}");
    }
    assert_eq!(app.count(), 0);
    assert_eq!(offer("websocket").status, 503, "the app changed to what it was not asked for");
    for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0"] {
        let answer = offer(protocol);
        assert_eq!(answer.status, 503, "{protocol}: the app changed although nobody asked it to");
        let seen = app.last();
        assert!(seen.header("upgrade").is_none() && seen.header("http2-settings").is_none(), "{seen:?}");
    }
}

#[test]
fn a_chunked_answer_that_breaks_off_is_not_passed_as_whole() {
    let (_folder, _app, router) = broken(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        Next::Close
    });
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    let mut bytes = Vec::new();
    client.reader.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("hello") && !text.contains("0\r\n\r\n"), "{text}");
    expect_codes(&router, &[(Code::H18, 1)]);
}

#[test]
fn answers_that_are_no_http_are_h17_and_end_the_connection() {
    let answers: [&[u8]; 9] = [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x3\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\0Y: a\r\n\r\n",
    ];
    let turn = Arc::new(AtomicUsize::new(0));
    let current = turn.clone();
    let (_folder, app, router) = broken(move |_, stream| {
        let _ = stream.write_all(answers[current.load(Ordering::SeqCst)]);
        Next::KeepAlive
    });
    for (index, bytes) in answers.iter().enumerate() {
        turn.store(index, Ordering::SeqCst);
        let answer = router.get("hello.localhost", "/");
        assert!(answer.body.contains("H17"), "{:?} became {answer:?}", String::from_utf8_lossy(bytes));
    }
    let connections: std::collections::BTreeSet<u64> =
        app.seen.lock().unwrap().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), answers.len(), "a connection was used again after a broken answer");
}

#[test]
fn nothing_is_taken_after_an_answers_end() {
    // An app that sends more than it said must not have the rest read as the answer to somebody else's request.
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ];
    for bytes in answers {
        let first = Arc::new(Mutex::new(true));
        let (_folder, _app, router) = broken(move |_, stream| {
            if std::mem::take(&mut *first.lock().unwrap()) {
                let _ = stream.write_all(bytes);
            } else {
                respond(stream, 200, b"good");
            }
            Next::KeepAlive
        });
        router.get("hello.localhost", "/first");
        for _ in 0..3 {
            assert_eq!(router.get("hello.localhost", "/second").body, "good", "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn a_refusing_process_is_passed_over_for_every_method() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (App::start(folder.path(), "one"), App::start(folder.path(), "two"));
    one.refusing.store(true, Ordering::SeqCst);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![one.target(Active), two.target(Active)]));
    for _ in 0..10 {
        assert_eq!(router.get("hello.localhost", "/").body, "two");
        let mut client = router.client();
        let post = client.request("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!(post.body, "two");
    }
    assert_eq!((one.count(), two.count(), codes(&router)), (0, 20, Vec::new()));
    // It is avoided for a while after each failure, not dialled for every request.
    assert!(one.dials.load(Ordering::SeqCst) <= 5, "{:?}", one.dials);
}

#[test]
fn a_process_that_dies_under_a_get_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let dying = App::behaving(folder.path(), "dying", |_, _| Next::Close);
    let well = App::start(folder.path(), "well");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![dying.target(Active), well.target(Active)]));
    for _ in 0..10 {
        assert_eq!(router.get("hello.localhost", "/").body, "well");
    }
    assert!(dying.count() >= 1);
    // No visitor knows; whoever judges the release does.
    let numbers = numbers(&router);
    assert_eq!((numbers.app[0].requests, numbers.app[0].classes[4]), (10, 0));
    let broken: u64 = numbers.processes.values().map(|slots| slots[0].broken).sum();
    assert_eq!((broken, numbers.app[0].broken), (dying.count() as u64, dying.count() as u64));
}

#[test]
fn a_pooled_connection_that_was_closed_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    // Closes the connection under the second request on it, as a server does whose keep-alive ran out.
    let first = Mutex::new(None);
    let app = App::behaving(folder.path(), "one", move |seen, stream| {
        if seen.line.contains("/first") {
            *first.lock().unwrap() = Some(seen.connection);
            respond(stream, 200, b"first");
            return Next::KeepAlive;
        }
        if *first.lock().unwrap() == Some(seen.connection) {
            return Next::Close;
        }
        respond(stream, 200, b"second");
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    assert_eq!(client.request("GET /first HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").body, "first");
    let asked =
        "GET /second HTTP/1.1\r\nHost: hello.localhost\r\nVia: 1.1 proxy\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    assert_eq!(client.request(asked).body, "second");
    expect_codes(&router, &[]);
    // What was sent again is what was sent.
    let seen = app.seen.lock().unwrap();
    assert!(seen[1].connection != seen[2].connection && seen[1].headers == seen[2].headers, "{seen:?}");
    assert_eq!(seen[2].header("via"), Some("1.1 proxy, 1.1 landfall"));
}

#[test]
fn a_client_that_goes_away_is_h27() {
    let (_folder, app, router) = broken(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345");
        sleep(Duration::from_millis(200));
        Next::Close
    });
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request", || (app.count() == 1).then_some(()));
    drop(client);
    expect_codes(&router, &[(Code::H27, 1)]);
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_cut() {
    let (_folder, app, router) = broken(|_, stream| {
        // Its head comes at once, however long the rest takes on a busy machine.
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        let piece = vec![b'x'; 1 << 20];
        (0..64).for_each(|_| _ = stream.write_all(&piece));
        Next::Close
    });
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request", || (app.count() == 1).then_some(()));
    expect_codes(&router, &[(Code::H27, 1)]);
    eventually("the end of its connection", || (router.status().connections == 0).then_some(()));
}

#[test]
fn a_request_that_stops_is_h28() {
    let (_folder, app, router) = broken(|_, stream| {
        respond(stream, 200, b"");
        Next::KeepAlive
    });
    // The answer is not due before the request is whole, so the client's silence counts first.
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 10\r\n\r\n12");
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 408, "{answer:?}");
    expect_codes(&router, &[(Code::H28, 1)]);
    assert_eq!(app.count(), 0);
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let (_folder, app, router) = broken(|_, stream| {
        respond(stream, 200, b"taken");
        Next::KeepAlive
    });
    let mut client = router.client();
    client.send("PUT / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 100);
    client.send("body");
    assert_eq!(client.answer().unwrap().body, "taken");
    assert_eq!(app.last().body, b"body");
}

#[test]
fn a_large_upload_is_streamed_and_never_held() {
    let folder = tempfile::tempdir().unwrap();
    // The app's head comes before the body is read: the first piece has to arrive before the last one is sent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                let total = 64 << 20;
                while count.load(Ordering::SeqCst) < total {
                    match stream.read(&mut bytes) {
                        // The health check is no part of the upload.
                        Ok(read @ 1..) if !bytes.starts_with(b"GET /health") => count.fetch_add(read, Ordering::SeqCst),
                        _ => return,
                    };
                }
                respond(&mut stream, 200, b"taken");
                let _ = stream.read(&mut bytes);
            });
        }
    });
    let app = App::passing(folder.path(), "upload", address);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    let size = 64 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {size}\r\n\r\n"));
    let piece = vec![b'x'; 1 << 20];
    for sent in 1..=64_usize {
        client.send(&piece);
        // At most a few socket buffers are under way between the two.
        eventually("the piece to pass", || (received.load(Ordering::SeqCst) + (16 << 20) >= sent << 20).then_some(()));
    }
    assert_eq!(client.answer().unwrap().body, "taken");
}

#[test]
fn an_app_under_maintenance_is_reached_by_nobody_whatever_runs() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table_with(1, vec![app.target(Active)], Some(Notice::Maintenance)));
    let page = router.get("hello.localhost", "/");
    assert!(page.status == 503 && page.body.contains("under maintenance") && page.body.contains("H80"), "{page:?}");
    let head = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    let answer = router.client().request(head);
    let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, &value["error"]["code"]), (503, &serde_json::json!("H80")));
    expect_codes(&router, &[(Code::H80, 2)]);
    // Nobody wakes what is under maintenance.
    let mut asleep = table_with(2, Vec::new(), Some(Notice::Maintenance));
    asleep.apps.values_mut().for_each(|route| route.asleep = true);
    router.set(asleep);
    assert_eq!(router.get("hello.localhost", "/").status, 503);
    assert!(!router.status().apps[&"hello".parse().unwrap()].knocked);
    router.set(table_with(3, vec![app.target(Active)], None));
    assert_eq!(router.get("hello.localhost", "/").body, "one");
    assert_eq!(app.count(), 1);
}

#[test]
fn the_operator_s_pages_are_shown_in_place_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("pages");
    std::fs::create_dir(&pages).unwrap();
    std::fs::write(pages.join("404.html"), "<h1>ACME knows no {{ status }}</h1> {{ request_id }}").unwrap();
    let router = RunningRouter::with(folder.path(), |options| {
        options.error_pages = Some(pages.clone());
        options.certificate_interval = std::time::Duration::from_millis(20);
    });
    let page = router.get("nobody.localhost", "/");
    let id = page.header("x-request-id").unwrap();
    assert_eq!((page.status, page.body.as_str()), (404, format!("<h1>ACME knows no 404</h1> {id}").as_str()));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    std::fs::write(pages.join("404.html"), "another page").unwrap();
    eventually("the new page", || (router.get("nobody.localhost", "/").body == "another page").then_some(()));
}

#[test]
fn a_request_that_may_not_be_repeated_gets_a_connection_of_its_own() {
    // An app that hangs up as soon as the second request of a connection comes: just when an idle one runs out.
    let used = Mutex::new(std::collections::BTreeSet::new());
    let (_folder, app, router) = broken(move |seen, stream| {
        if !used.lock().unwrap().insert(seen.connection) {
            return Next::Close;
        }
        respond(stream, 200, seen.line.as_bytes());
        Next::KeepAlive
    });
    for _ in 0..20 {
        let answer = router.get("hello.localhost", "/");
        assert_eq!(answer.status, 200, "what may be repeated is: {}", answer.body);
        let head = "POST /order HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 4\r\n\r\nbook";
        let answer = router.client().request(head);
        assert_eq!((answer.status, answer.body.as_str()), (200, "POST /order HTTP/1.1"));
    }
    let posts = app.seen.lock().unwrap().iter().filter(|seen| seen.line.starts_with("POST")).count();
    assert_eq!(posts, 20);
}

#[test]
fn who_leaves_while_a_process_cannot_be_reached_is_no_error_of_the_app() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    app.refusing.store(true, Ordering::SeqCst);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("it to wait", || (held(&router) == 1).then_some(()));
    drop(client);
    expect_codes(&router, &[(Code::H27, 1)]);
}

#[test]
fn a_process_that_hangs_up_at_once_is_not_dialled_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let app = App::passing(folder.path(), "curt", address);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for method in ["GET", "POST"] {
        accepted.store(0, Ordering::SeqCst);
        let head = format!("{method} / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 0\r\n\r\n");
        let answer = router.client().request(&head);
        assert!(answer.status == 503 && answer.body.contains("H13"), "{method}: {answer:?}");
        assert!(accepted.load(Ordering::SeqCst) <= 4, "{method}: {accepted:?}");
    }
}

#[test]
fn nothing_follows_a_request_for_another_protocol_even_if_the_router_answers_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table_with(1, vec![app.target(Active)], Some(Notice::Maintenance)));
    let mut client = router.client();
    let head = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = client.request(head);
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert!(client.answer().is_none());
}

#[test]
fn a_websocket_ends_with_its_app_although_its_client_stays() {
    let (_folder, app, router) = broken(|_, stream| {
        let _ = stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nbye");
        Next::Close
    });
    let mut client = router.client();
    let head = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(client.request(head).status, 101);
    let mut said = Vec::new();
    client.reader.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"bye");
    let process = app.target(Active).process;
    eventually("its end", || (router.status().targets[&process].in_flight == 0).then_some(()));
    assert_eq!(codes(&router), []);
}
