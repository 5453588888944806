//! Warm up, switch, drain: no request fails, none goes where it must not.

use super::world::*;
use crate::router::TargetState::{self, *};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// Clients that send without pause and write down every failure.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(router: &RunningRouter) -> Load {
        Load::of(router, &[get, post, slow_post, chunked_post])
    }

    /// Eight clients that do these things, half of them on one connection each.
    pub fn of(router: &RunningRouter, kinds: &[fn(&mut Client, bool) -> Option<Answer>]) -> Load {
        let address = router.address;
        let mut load =
            Load { stop: Arc::default(), done: Arc::default(), failures: Arc::default(), threads: Vec::new() };
        for (index, kind) in kinds.iter().copied().cycle().take(8).enumerate() {
            let keep_alive = index < 4;
            let (stop, done, failures) = (load.stop.clone(), load.done.clone(), load.failures.clone());
            load.threads.push(std::thread::spawn(move || {
                let connect = || loop {
                    match Client::try_connect(address) {
                        Ok(client) => break client,
                        Err(error) => failures.lock().unwrap().push(format!("kind {index}: {error}")),
                    }
                    sleep(Duration::from_millis(5));
                };
                let mut client = connect();
                while !stop.load(Ordering::Relaxed) {
                    let mut closed = !keep_alive;
                    match kind(&mut client, keep_alive) {
                        Some(answer) if answer.status == 200 => {
                            done.fetch_add(1, Ordering::Relaxed);
                            closed |= answer.header("connection").is_some_and(|word| word == "close");
                        }
                        other => {
                            failures.lock().unwrap().push(format!("kind {index}: {other:?}"));
                            closed = true;
                        }
                    }
                    if closed {
                        client = connect();
                    }
                }
            }));
        }
        load
    }

    /// Waits until `more` further requests have been answered.
    pub fn progress(&self, more: usize) {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        eventually("the load to go on", || (self.done.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    pub fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        (self.done.load(Ordering::Relaxed), Arc::into_inner(self.failures).unwrap().into_inner().unwrap())
    }
}

fn head(method: &str, keep_alive: bool, more: &str) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("{method} / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: {connection}\r\n{more}\r\n")
}

pub fn get(client: &mut Client, keep_alive: bool) -> Option<Answer> {
    client.stream.write_all(head("GET", keep_alive, "").as_bytes()).ok()?;
    client.answer()
}

fn post(client: &mut Client, keep_alive: bool) -> Option<Answer> {
    let body = "b".repeat(10_000);
    let head = head("POST", keep_alive, "Content-Length: 10000\r\n");
    client.stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    client.answer()
}

fn slow_post(client: &mut Client, keep_alive: bool) -> Option<Answer> {
    client.stream.write_all(head("POST", keep_alive, "Content-Length: 40\r\n").as_bytes()).ok()?;
    for _ in 0..4 {
        sleep(Duration::from_millis(10));
        client.stream.write_all(b"0123456789").ok()?;
    }
    client.answer()
}

fn chunked_post(client: &mut Client, keep_alive: bool) -> Option<Answer> {
    client.stream.write_all(head("POST", keep_alive, "Transfer-Encoding: chunked\r\n").as_bytes()).ok()?;
    for _ in 0..3 {
        client.stream.write_all(b"5\r\nhello\r\n").ok()?;
    }
    client.stream.write_all(b"0\r\n\r\n").ok()?;
    client.answer()
}

/// Starts a release, waits until it is healthy, switches to it, drains the old one and kills it: what the control
/// plane does for a deploy. `drained` off leaves out the wait, as the detector's proof.
pub fn deploy(folder: &Path, router: &RunningRouter, old: App, number: u64, drained: bool) -> App {
    let new = App::start(folder, &format!("release-{number}"));
    let version = number * 10;
    router.set(table(version, vec![old.target(Active), new.target(Warming)]));
    let process = new.target(Warming).process;
    eventually("the new release to be healthy", || router.status().targets[&process].healthy.then_some(()));
    assert_eq!(new.count(), 0, "a warming process got a request");
    router.set(table(version + 1, vec![old.target(Draining), new.target(Active)]));
    if drained {
        let process = old.target(Draining).process;
        eventually("the old release to drain", || (router.status().targets[&process].in_flight == 0).then_some(()));
    }
    let before = old.count();
    old.kill();
    if drained {
        // However the threads run, nothing comes after the drain.
        assert_eq!(old.count(), before);
    }
    router.set(table(version + 2, vec![new.target(Active)]));
    new
}

#[test]
fn no_request_fails_over_many_switches() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = App::start(folder.path(), "release-0");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![live.target(Active)]));
    let load = Load::start(&router);
    load.progress(50);
    for number in 1..=25 {
        live = deploy(folder.path(), &router, live, number, true);
        load.progress(20);
    }
    let (done, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {done} failed: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(done > 500, "{done}");
}

#[test]
fn the_detector_sees_a_switch_without_drain() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = App::start(folder.path(), "release-0");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![live.target(Active)]));
    let load = Load::start(&router);
    load.progress(50);
    for number in 1..=25 {
        live = deploy(folder.path(), &router, live, number, false);
        load.progress(20);
    }
    let (_, failures) = load.finish();
    assert!(!failures.is_empty(), "a process killed under its requests went unseen");
}

#[test]
fn a_warming_process_gets_health_checks_only() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (App::start(folder.path(), "old"), App::start(folder.path(), "new"));
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![new.target(Warming)]));
    let answer = router.get("hello.localhost", "/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("H14"), "{}", answer.body);
    router.set(table(2, vec![old.target(Active), new.target(Warming)]));
    let process = new.target(Warming).process;
    eventually("health checks", || (router.status().targets[&process].checks >= 3).then_some(()));
    for _ in 0..50 {
        assert_eq!(router.get("hello.localhost", "/").body, "old");
    }
    assert_eq!(new.count(), 0);
    assert_eq!(router.status().targets[&process].last_check.as_deref(), Some("status 200"));
}

#[test]
fn an_unhealthy_process_is_reported_with_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let failing = App::start(folder.path(), "failing");
    failing.health.store(500, Ordering::SeqCst);
    let refusing = App::start(folder.path(), "refusing");
    refusing.refusing.store(true, Ordering::SeqCst);
    let mut missing = refusing.target(Warming);
    missing.process = "missing.a1".parse().unwrap();
    missing.socket = folder.path().join("missing.sock");
    let silent = App::start(folder.path(), "silent");
    let mut asked = silent.target(Warming);
    asked.health_path = "/hang".into();
    let hanging = App::behaving(folder.path(), "hanging", |_, _| {
        sleep(Duration::from_secs(3));
        Next::Close
    });
    let mut slow = hanging.target(Warming);
    slow.health_path = "/slow".into();
    let closing = App::behaving(folder.path(), "closing", |_, _| Next::Close);
    let mut mute = closing.target(Warming);
    mute.health_path = "/mute".into();
    let router = RunningRouter::with(folder.path(), |options| options.connect_timeout = Duration::from_millis(500));
    router.set(table(
        1,
        vec![failing.target(Warming), refusing.target(Warming), missing.clone(), slow.clone(), mute.clone()],
    ));
    for (process, wanted) in [
        (failing.target(Warming).process, "status 500"),
        (refusing.target(Warming).process, "refused"),
        (missing.process, "not reachable: No such file or directory (os error 2)"),
        (slow.process, "timed out after 0.5 s"),
        (mute.process, "closed the connection without an answer"),
    ] {
        let seen = eventually(wanted, || router.status().targets[&process].last_check.clone());
        assert_eq!(seen, wanted);
        assert!(!router.status().targets[&process].healthy);
    }
    // It is asked again until it is well.
    failing.health.store(302, Ordering::SeqCst);
    let process = failing.target(Warming).process;
    eventually("the process to get well", || router.status().targets[&process].healthy.then_some(()));
}

#[test]
fn an_active_process_that_stops_listening_is_reported_and_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let mut router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let process = app.target(Active).process;
    eventually("a first check", || router.status().targets[&process].healthy.then_some(()));
    app.refusing.store(true, Ordering::SeqCst);
    eventually("pooled connections to end", || (router.get("hello.localhost", "/").status == 503).then_some(()));
    let seen = router.status().targets[&process].clone();
    assert_eq!((seen.healthy, seen.last_check.as_deref()), (false, Some("refused")));
    app.refusing.store(false, Ordering::SeqCst);
    eventually("it to be well again", || router.status().targets[&process].healthy.then_some(()));
    // After a restart as well.
    router.stop();
    let router = RunningRouter::start(folder.path());
    eventually("a check after the restart", || router.status().targets[&process].healthy.then_some(()));
}

/// An app that holds its answers back until it is let go.
fn holding(folder: &Path, name: &str) -> (App, Arc<AtomicBool>) {
    let free = Arc::new(AtomicBool::new(false));
    let let_go = free.clone();
    let app = App::behaving(folder, name, move |_, stream| {
        while !let_go.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(5));
        }
        respond(stream, 200, b"held");
        Next::KeepAlive
    });
    (app, free)
}

#[test]
fn requests_in_flight_are_counted_until_they_end() {
    let folder = tempfile::tempdir().unwrap();
    let (old, free) = holding(folder.path(), "old");
    let new = App::start(folder.path(), "new");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![old.target(Active)]));
    let mut held: Vec<Client> = (0..3).map(|_| router.client()).collect();
    for client in &mut held {
        client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    }
    let process = old.target(Active).process;
    eventually("three requests in flight", || (router.status().targets[&process].in_flight == 3).then_some(()));
    router.set(table(2, vec![old.target(Draining), new.target(Active)]));
    assert_eq!(router.get("hello.localhost", "/").body, "new");
    let status = router.status().targets[&process].clone();
    assert_eq!((status.state, status.in_flight), (TargetState::Draining, 3));
    // Also when the table does not name it any more.
    router.set(table(3, vec![new.target(Active)]));
    assert_eq!(router.status().targets[&process].in_flight, 3);
    free.store(true, Ordering::SeqCst);
    for client in &mut held {
        assert_eq!(client.answer().unwrap().body, "held");
    }
    eventually("the target to be forgotten", || (!router.status().targets.contains_key(&process)).then_some(()));
    assert_eq!(old.count(), 3);
}

#[test]
fn idle_connections_to_a_process_that_left_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (App::start(folder.path(), "old"), App::start(folder.path(), "new"));
    let router = RunningRouter::with(folder.path(), |options| options.pooled_timeout = Duration::from_secs(600));
    router.set(table(1, vec![old.target(Active)]));
    assert_eq!(router.get("hello.localhost", "/").body, "old");
    let process = old.target(Active).process;
    assert_eq!(router.status().targets[&process].connections, 1);
    router.set(table(2, vec![old.target(Draining), new.target(Active)]));
    eventually("the pooled connection to close", || (router.status().targets[&process].connections == 0).then_some(()));
}

#[test]
fn a_websocket_goes_through_and_counts_while_it_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let old = App::behaving(folder.path(), "old", |seen, stream| {
        assert_eq!(seen.header("upgrade"), Some("websocket"));
        echo(stream)
    });
    let new = App::start(folder.path(), "new");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![old.target(Active)]));
    let mut client = router.client();
    let answer = client.request(
        "GET /socket HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    assert_eq!(answer.status, 101);
    let mut echo = |text: &[u8]| {
        client.stream.write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        client.reader.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    };
    echo(b"first");
    let process = old.target(Active).process;
    router.set(table(2, vec![old.target(Draining), new.target(Active)]));
    echo(b"after the switch");
    assert_eq!(router.status().targets[&process].in_flight, 1);
    drop(client);
    eventually("the socket's end", || (router.status().targets[&process].in_flight == 0).then_some(()));
    let status = router.status();
    let app = &status.apps[&"hello".parse().unwrap()];
    assert_eq!((app.s1xx, app.h_codes.len()), (1, 0), "{app:?}");
}

/// The app's consent may be there before the router has dealt with the end of the request.
#[test]
fn a_websocket_that_is_agreed_to_at_once_stays_open() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, stream| echo(stream));
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let address = router.address;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for round in 0..60 {
                    let mut client = Client::connect(address);
                    let answer = client.request(
                        "GET /socket HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
                    );
                    assert_eq!(answer.status, 101);
                    for text in [b"first", b"again"] {
                        client.send(text);
                        let mut back = [0; 5];
                        client.reader.read_exact(&mut back).unwrap_or_else(|error| panic!("round {round}: {error}"));
                        assert_eq!(&back, text);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn events_stream_as_they_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let next = Arc::new(AtomicUsize::new(0));
    let wanted = next.clone();
    let app = App::behaving(folder.path(), "one", move |_, stream| {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for number in 1..=3 {
            while wanted.load(Ordering::SeqCst) < number {
                sleep(Duration::from_millis(2));
            }
            let event = format!("data: {number}\n\n");
            let _ = stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    client.send("GET /events HTTP/1.1\r\nHost: hello.localhost\r\nAccept: text/event-stream\r\n\r\n");
    let mut seen = Vec::new();
    for number in 1..=3 {
        // The next event is sent only after this one has arrived: a buffer in between would stop it all.
        next.store(number, Ordering::SeqCst);
        let event = format!("data: {number}\n\n");
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(&event) {
            client.reader.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }
}

#[test]
fn how_long_a_stream_of_events_lasts_is_no_time_that_an_answer_took() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |seen, stream| {
        let kind = seen.header("x-kind").unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 0\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for (kind, requests, timed) in [
        ("text/event-stream", 1, 0),
        ("Text/Event-Stream ; charset=utf-8", 2, 0),
        ("text/event-streams", 3, 1),
        ("text/html; of=text/event-stream", 4, 2),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Kind: {kind}\r\n\r\n");
        assert_eq!(router.client().request(&head).status, 200);
        let counted = eventually("the request to be counted", || {
            numbers(&router).app.into_iter().next().filter(|slot| slot.requests == requests)
        });
        assert_eq!(counted.latency.count(), timed, "{kind}");
    }
}

#[test]
fn load_is_spread_by_pending_requests() {
    let folder = tempfile::tempdir().unwrap();
    let (busy, free) = holding(folder.path(), "busy");
    let quick = App::start(folder.path(), "quick");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![busy.target(Active)]));
    let mut held = router.client();
    held.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request to arrive", || (busy.count() == 1).then_some(()));
    router.set(table(2, vec![busy.target(Active), quick.target(Active)]));
    // A request counts until the router is done with it, which is a moment after its client has the answer.
    let settled = |pending: u64| {
        let sum = || router.status().targets.values().map(|target| target.in_flight).sum::<u64>();
        eventually("requests to end", || (sum() == pending).then_some(()));
    };
    for _ in 0..20 {
        assert_eq!(router.get("hello.localhost", "/").body, "quick");
        settled(1);
    }
    free.store(true, Ordering::SeqCst);
    assert_eq!(held.answer().unwrap().body, "held");
    settled(0);
    for _ in 0..20 {
        router.get("hello.localhost", "/");
        settled(0);
    }
    assert_eq!((busy.count(), quick.count()), (11, 30), "equals take turns");
}
