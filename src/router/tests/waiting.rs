//! Requests that wait: for a process that boots, for an app that is woken, for one that is replaced after a crash.

use super::switching::{Load, get};
use super::world::*;
use crate::router::TargetState::*;
use crate::router::{Code, Notice, Table};
use std::sync::atomic::Ordering;
use std::time::Duration;

const GET: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";

fn waiting(version: u64, change: impl FnOnce(&mut crate::router::Route)) -> Table {
    let mut table = table_with(version, Vec::new(), Some(Notice::Crashed));
    table.apps.values_mut().next().map(change);
    table
}

#[test]
fn a_request_waits_for_the_process_that_comes_up() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(waiting(1, |route| route.hold = true));
    let (mut reader, mut writer) = (router.client(), router.client());
    reader.send(GET);
    writer.send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc");
    eventually("both to wait", || (held(&router) == 2).then_some(()));
    let mut warming = table(2, vec![app.target(Warming)]);
    warming.apps.values_mut().for_each(|route| route.hold = true);
    router.set(warming);
    let process = app.target(Warming).process;
    eventually("it to be healthy", || router.status().targets[&process].healthy.then_some(()));
    assert_eq!((app.count(), held(&router)), (0, 2), "a warming process got a request");
    router.set(table(3, vec![app.target(Active)]));
    for client in [&mut reader, &mut writer] {
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, "one"));
    }
    assert!(app.seen.lock().unwrap().iter().any(|seen| seen.body == b"abc"));
    eventually("nobody to wait", || (held(&router) == 0).then_some(()));
}

#[test]
fn the_wait_is_bounded_in_time_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::with(folder.path(), |options| {
        options.hold_timeout = Duration::from_millis(1500);
        options.held_per_app = 2;
    });
    router.set(waiting(1, |route| route.hold = true));
    let mut clients = [router.client(), router.client()];
    clients.iter_mut().for_each(|client| client.send(GET));
    eventually("both to wait", || (held(&router) == 2).then_some(()));
    let third = router.get("hello.localhost", "/");
    assert!(third.status == 503 && third.body.contains("H11"), "{third:?}");
    for client in &mut clients {
        let answer = client.answer().expect("an answer");
        assert!(answer.status == 503 && answer.body.contains("H20"), "{answer:?}");
    }
    // What does not come up any more is told at once.
    clients[0] = router.client();
    clients[0].send(GET);
    eventually("it to wait", || (held(&router) == 1).then_some(()));
    router.set(waiting(2, |_| {}));
    let answer = clients[0].answer().expect("an answer");
    assert!(answer.body.contains("H10"), "{answer:?}");
}

#[test]
fn a_knock_is_heard_until_the_app_is_awake() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    let name = "hello".parse().unwrap();
    router.set(waiting(1, |route| {
        route.asleep = true;
        route.notice = Some(Notice::Asleep);
    }));
    let knocks = |after, wait| router.call(router.control.knocks(after, Duration::from_millis(wait))).unwrap();
    assert_eq!(knocks(0, 20), (0, Vec::new()));
    let mut client = router.client();
    client.send(GET);
    let (last, apps) = knocks(0, 20_000);
    assert_eq!(apps, [name]);
    assert!(router.status().apps[&name_of("hello")].knocked);
    assert_eq!(knocks(last, 20), (last, Vec::new()), "one knock is told once");
    assert_eq!(knocks(0, 20).1.len(), 1, "who did not hear it may ask again");
    router.set(table(2, vec![app.target(Active)]));
    assert_eq!(client.answer().expect("an answer").body, "one");
    assert!(!router.status().apps[&name_of("hello")].knocked);
    assert_eq!(knocks(0, 20).1.len(), 0);
}

fn name_of(name: &str) -> crate::domain::AppName {
    name.parse().unwrap()
}

#[test]
fn who_goes_away_no_longer_waits() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::start(folder.path());
    router.set(waiting(1, |route| route.hold = true));
    let mut client = router.client();
    client.send(GET);
    eventually("it to wait", || (held(&router) == 1).then_some(()));
    drop(client);
    eventually("nobody to wait", || (held(&router) == 0).then_some(()));
    let app = name_of("hello");
    eventually("the code", || (router.status().apps[&app].h_codes.get(&Code::H27) == Some(&1)).then_some(()));
}

/// Crashes the only process a few times, each time replaced as the control plane does it: what was live leaves the
/// table as soon as its end is seen, the next one is warming, then active.
fn crash(router: &RunningRouter, folder: &std::path::Path, hold: bool) -> Vec<String> {
    let mut live = App::start(folder, "life-0");
    router.set(table(1, vec![live.target(Active)]));
    let load = Load::of(router, &[get]);
    load.progress(50);
    for number in 1..=10 {
        live.kill();
        let next = App::start(folder, &format!("life-{number}"));
        let mut warming = table(number * 10, vec![next.target(Warming)]);
        warming.apps.values_mut().for_each(|route| route.hold = hold);
        router.set(warming);
        let process = next.target(Warming).process;
        eventually("the next one to be healthy", || router.status().targets[&process].healthy.then_some(()));
        router.set(table(number * 10 + 1, vec![next.target(Active)]));
        live = next;
        load.progress(20);
    }
    load.finish().1
}

#[test]
fn no_request_fails_while_the_only_process_is_replaced_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::start(folder.path());
    let failures = crash(&router, folder.path(), true);
    assert!(failures.is_empty(), "{} failed: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
}

#[test]
fn the_detector_sees_a_crash_whose_requests_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::with(folder.path(), |options| options.restart_timeout = Duration::ZERO);
    assert!(!crash(&router, folder.path(), false).is_empty(), "a crash of the only process went unseen");
}

#[test]
fn a_process_that_refuses_is_asked_again_for_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    app.refusing.store(true, Ordering::SeqCst);
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc");
    eventually("it to wait", || (held(&router) == 1).then_some(()));
    app.refusing.store(false, Ordering::SeqCst);
    assert_eq!(client.answer().expect("an answer").body, "one");
    assert_eq!(app.count(), 1);
}
