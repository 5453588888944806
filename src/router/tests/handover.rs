//! One router takes the place of another: nobody is refused, nothing is lost, and to the control plane there is one.

use super::switching::{Load, deploy};
use super::world::*;
use crate::clock::Timestamp;
use crate::router::TargetState::*;
use crate::router::handover;
use crate::router::keeper::{Keeper, RouterEnd, take};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GET: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";

fn failures(of: Load) -> (usize, Vec<String>) {
    let (done, failures) = of.finish();
    let first = failures.iter().take(5).cloned().collect();
    (done, first)
}

#[test]
fn no_request_fails_when_routers_take_each_others_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = App::start(folder.path(), "release-0");
    let mut router = RunningRouter::start(folder.path());
    router.set(table(1, vec![live.target(Active)]));
    let address = router.address;
    let load = Load::start(&router);
    load.progress(50);
    for number in 1..=6 {
        let next = RunningRouter::start(folder.path());
        assert_eq!(next.address, address, "the socket was handed over");
        let before = std::mem::replace(&mut router, next);
        // A deploy while the one before has connections still.
        live = deploy(folder.path(), &router, live, number, true);
        load.progress(50);
        before.outlived();
    }
    let (done, failed) = failures(load);
    assert_eq!(failed, Vec::<String>::new(), "of {done}");
    assert!(done > 300, "{done}");
    let left = std::fs::read_dir(folder.path().join("router")).unwrap().flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().contains("old")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_detector_sees_a_router_that_ends_before_the_next_begins() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let mut router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let address = router.address;
    let load = Load::start(&router);
    load.progress(50);
    router.stop();
    let _router = RunningRouter::with(folder.path(), |options| options.listen = address);
    load.progress(50);
    assert!(!failures(load).1.is_empty(), "a port that nobody listened on went unseen");
}

#[test]
fn who_is_connected_is_served_from_the_new_table_and_told_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (App::start(folder.path(), "old"), App::start(folder.path(), "new"));
    let first = RunningRouter::start(folder.path());
    first.set(table(1, vec![old.target(Active)]));
    let mut client = first.client();
    assert_eq!(client.request(GET).body, "old");
    let second = RunningRouter::start(folder.path());
    assert!(first.is_running(), "it has a client");
    second.set(table(2, vec![new.target(Active)]));
    let answer = client.request(GET);
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("new", Some("close")));
    assert!(client.answer().is_none());
    first.outlived();
    // What the one before counted after the hand-over is counted as well.
    let count = || numbers(&second).app.iter().map(|slot| slot.requests).sum::<u64>();
    eventually("both requests to be counted", || (count() == 2).then_some(()));
    // And whoever reads the new one's lines has those of the one before.
    let lines = || {
        let page = second.call(second.control.tail(Timestamp(0), 0, 10)).unwrap();
        page.lines.len()
    };
    eventually("the line that the one before wrote after the hand-over", || (lines() == 1).then_some(()));
}

#[test]
fn a_router_that_was_taken_down_says_so_and_one_that_a_signal_or_another_one_ends_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let first = RunningRouter::start(folder.path());
    let mut second = RunningRouter::start(folder.path());
    assert!(!first.outlived(), "another one has its place");
    second.signal();
    assert!(!second.outlived(), "a signal ended it");
    let third = RunningRouter::start(folder.path());
    third.set(table(1, vec![app.target(Active)]));
    let mut client = third.client();
    assert_eq!(client.request(GET).body, "one");
    let fourth = RunningRouter::start(folder.path());
    assert!(third.is_running(), "it has a client");
    fourth.call(fourth.control.stop()).unwrap();
    assert!(third.outlived() && fourth.outlived());
}

#[test]
fn what_is_in_flight_at_the_old_one_is_told_by_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "slow", |seen, stream| {
        if seen.line.contains("/slow") {
            std::thread::sleep(Duration::from_millis(700));
        }
        respond(stream, 200, b"finished");
        Next::KeepAlive
    });
    let other = App::start(folder.path(), "other");
    let first = RunningRouter::start(folder.path());
    first.set(table(1, vec![app.target(Active)]));
    let mut client = first.client();
    client.send("GET /slow HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request", || (app.count() == 1).then_some(()));
    let second = RunningRouter::start(folder.path());
    second.set(table(2, vec![app.target(Draining), other.target(Active)]));
    let process = app.target(Active).process;
    assert_eq!(second.status().targets[&process].in_flight, 1, "an old process must not be stopped yet");
    assert_eq!(client.answer().unwrap().body, "finished");
    eventually("its end", || (second.status().targets[&process].in_flight == 0).then_some(()));
    drop(client);
    first.outlived();
}

#[test]
fn a_websocket_outlives_the_router_that_took_it_in() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "echo", |_, stream| echo(stream));
    let first = RunningRouter::start(folder.path());
    first.set(table(1, vec![app.target(Active)]));
    let mut client = first.client();
    let answer = client
        .request("GET /socket HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(answer.status, 101);
    let second = RunningRouter::start(folder.path());
    for word in [b"one".as_slice(), b"after the hand-over"] {
        client.send(word);
        let mut back = vec![0; word.len()];
        client.reader.read_exact(&mut back).unwrap();
        assert_eq!(back, word);
    }
    assert!(first.is_running());
    assert_eq!(second.status().targets[&app.target(Active).process].in_flight, 1);
    drop(client);
    first.outlived();
}

#[test]
fn connections_that_never_end_are_cut_at_last() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunningRouter::with(folder.path(), |options| {
        options.handover_timeout = Duration::from_millis(200);
        options.drain_timeout = Duration::from_millis(100);
    });
    let mut idle = first.client();
    eventually("the connection", || (first.status().connections == 1).then_some(()));
    let _second = RunningRouter::start(folder.path());
    first.outlived();
    assert!(idle.answer().is_none());
}

#[test]
fn to_stop_ends_the_one_that_leaves_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunningRouter::start(folder.path());
    let mut idle = first.client();
    eventually("the connection", || (first.status().connections == 1).then_some(()));
    let mut second = RunningRouter::start(folder.path());
    second.stop();
    first.outlived();
    assert!(idle.answer().is_none());
}

/// Takes the offer as a new router would, up to the given word, and dies.
fn die_after(folder: &Path, words: &[u8]) {
    let mut stream = UnixStream::connect(folder.join("router/handover.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, descriptors) = crate::router::handover::receive(stream.as_raw_fd()).unwrap();
    assert_eq!(descriptors.len(), 2);
    for word in words {
        stream.write_all(&[*word]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"D");
    }
}

#[test]
fn a_successor_that_dies_on_the_way_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let load = Load::start(&router);
    load.progress(20);
    for words in [b"".as_slice(), b"G"] {
        die_after(folder.path(), words);
        load.progress(20);
    }
    let (done, failed) = failures(load);
    assert_eq!(failed, Vec::<String>::new(), "of {done}");
    // It still takes tables, and still hands over to one that lives.
    router.set(table(2, vec![app.target(Active)]));
    let requests = || router.status().apps[&"hello".parse().unwrap()].requests;
    eventually("nothing counted to be lost", || (requests() >= done as u64).then_some(()));
    let next = RunningRouter::start(folder.path());
    assert_eq!(next.get("hello.localhost", "/").body, "one");
    router.outlived();
}

#[test]
fn a_new_address_is_opened_and_the_old_one_closed() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunningRouter::start(folder.path());
    let before = first.address;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let second = RunningRouter::with(folder.path(), |options| options.listen = free);
    assert_eq!(second.address, free);
    assert_eq!(second.get("nobody.localhost", "/").status, 404);
    first.outlived();
    assert!(std::net::TcpStream::connect(before).is_err());
}

#[test]
fn a_keeper_holds_the_sockets_of_the_router_that_runs_and_of_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("router");
    let mut router = RunningRouter::start(folder.path());
    let address = router.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut keeper = runtime.block_on(async { Keeper::start(&state) }).unwrap();
    assert_eq!(std::fs::metadata(state.join("keeper.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    // It is found at its address before it lends.
    eventually("the router to lend its sockets", || runtime.block_on(keeper.hold()).ok());

    // Another takes its place, and lends the same.
    let next = RunningRouter::start(folder.path());
    std::mem::replace(&mut router, next).outlived();
    assert_eq!(runtime.block_on(keeper.router_ended()), RouterEnd::Gone);
    runtime.block_on(keeper.hold()).unwrap();
    let wanted = ["plain 127.0.0.1:0".to_owned()];
    for _ in 0..2 {
        // One that takes them may not live to serve.
        let taken = runtime.block_on(take(&state, &wanted)).unwrap();
        let names: Vec<&str> = taken.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, taken[0].1.local_addr().unwrap()), (vec![wanted[0].as_str()], address));
    }
    // One that listens elsewhere shall not find them in its way.
    let other = ["plain 127.0.0.2:0".to_owned()];
    assert!(runtime.block_on(take(&state, &other)).unwrap().is_empty());
    assert!(runtime.block_on(take(&state, &wanted)).unwrap().is_empty());
    let lock = std::fs::File::open(state.join("router.lock")).unwrap();
    assert!(lock.try_lock().is_err(), "the router has it");

    // One that was told to end shall leave nobody waiting for the next one.
    let third = RunningRouter::start(folder.path());
    std::mem::replace(&mut router, third).outlived();
    assert_eq!(runtime.block_on(keeper.router_ended()), RouterEnd::Gone);
    runtime.block_on(keeper.hold()).unwrap();
    router.stop();
    assert_eq!(runtime.block_on(keeper.router_ended()), RouterEnd::Told);
    assert!(Client::try_connect(address).is_err(), "it was told to end, and somebody listens");
    assert!(lock.try_lock().is_ok(), "who keeps sockets keeps no lock");
    assert!(runtime.block_on(keeper.hold()).is_err(), "there is none");
}

#[test]
fn one_that_a_signal_ends_serves_until_the_next_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let state = folder.path().join("router");
    let mut first = RunningRouter::start(folder.path());
    first.set(table(1, vec![app.target(Active)]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut keeper = runtime.block_on(async { Keeper::start(&state) }).unwrap();
    runtime.block_on(keeper.hold()).unwrap();
    let load = Load::start(&first);
    load.progress(20);
    first.signal();
    assert_eq!(runtime.block_on(keeper.router_ended()), RouterEnd::Leaving);
    load.progress(20);
    let mut second = RunningRouter::start(folder.path());
    first.outlived();
    load.progress(20);
    let (done, failed) = failures(load);
    assert_eq!(failed, Vec::<String>::new(), "of {done}");
    // Where nobody keeps its sockets, nobody is to wait.
    drop((keeper, runtime));
    second.signal();
    second.outlived();
    let mut third = RunningRouter::start(folder.path());
    let address = third.address;
    third.signal();
    third.outlived();
    assert!(Client::try_connect(address).is_err());
}

#[test]
fn a_successor_that_comes_too_late_does_not_serve_beside_the_one_that_took_its_place_back() {
    let folder = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(folder.path().join("router.lock")).unwrap();
    lock.lock().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let offers = tokio::net::UnixListener::bind(folder.path().join(handover::SOCKET)).unwrap();
        let before = async {
            let (mut stream, _) = offers.accept().await.unwrap();
            handover::send(&stream, Some(&lock), &[]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'G');
            stream.write_all(b"D").await.unwrap();
        };
        let next = async {
            let mut claim = handover::claim(folder.path(), &[]).await.unwrap();
            claim.go().await.unwrap();
            claim
        };
        // It has waited for longer than it waits for anybody, and is no more at the other end.
        let ((), mut claim) = tokio::join!(before, next);
        let error = claim.serving().await.unwrap_err();
        assert!(error.to_string().contains("has taken its place back"), "{error:#}");
    });
}
