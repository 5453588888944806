//! Which process gets a request: who is failing, who is asked how, who gets a share only.

use super::world::*;
use crate::router::TargetState::*;
use crate::router::{Canary, Resolution, Slot};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

#[test]
fn a_failing_process_is_taken_out_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (App::start(folder.path(), "good"), App::start(folder.path(), "bad"));
    let router = RunningRouter::start(folder.path());
    bad.refusing.store(true, Ordering::SeqCst);
    router.set(table(1, vec![good.target(Active), bad.target(Active)]));
    for _ in 0..30 {
        assert_eq!(router.get("hello.localhost", "/").body, "good");
    }
    // Out for good, until a check goes well: a pause of a second alone would have let some of these in.
    let process = bad.target(Active).process;
    let requests = |router: &RunningRouter| router.status().targets[&process].requests;
    let before = requests(&router);
    assert!(before <= 1, "{before} requests were tried at a process that refuses");
    sleep(Duration::from_millis(1200));
    for _ in 0..10 {
        assert_eq!(router.get("hello.localhost", "/").body, "good");
    }
    assert_eq!(requests(&router), before);
    bad.refusing.store(false, Ordering::SeqCst);
    eventually("it to get requests again", || (router.get("hello.localhost", "/").body == "bad").then_some(()));
}

#[test]
fn a_process_that_serves_is_asked_as_often_as_its_app_wishes() {
    let folder = tempfile::tempdir().unwrap();
    let (good, sick) = (App::start(folder.path(), "good"), App::start(folder.path(), "sick"));
    let router = RunningRouter::start(folder.path());
    let mut asked = sick.target(Active);
    asked.health_seconds = Some(1);
    let process = asked.process.clone();
    router.set(table(1, vec![good.target(Active), asked]));
    eventually("it to be well", || router.status().targets[&process].healthy.then_some(()));
    let checks = router.status().targets[&process].checks;
    sick.health.store(500, Ordering::SeqCst);
    eventually("it to be found sick", || (!router.status().targets[&process].healthy).then_some(()));
    assert!(router.status().targets[&process].checks >= checks + 2, "one bad answer is not enough");
    for _ in 0..10 {
        assert_eq!(router.get("hello.localhost", "/").body, "good");
    }
    sick.health.store(200, Ordering::SeqCst);
    eventually("it to get requests again", || (router.get("hello.localhost", "/").body == "sick").then_some(()));
}

#[test]
fn where_all_are_sick_requests_still_go_through() {
    let folder = tempfile::tempdir().unwrap();
    let sick = App::start(folder.path(), "sick");
    let router = RunningRouter::start(folder.path());
    sick.health.store(500, Ordering::SeqCst);
    let mut asked = sick.target(Active);
    asked.health_seconds = Some(1);
    let process = asked.process.clone();
    router.set(table(1, vec![asked]));
    eventually("two checks", || (router.status().targets[&process].checks >= 2).then_some(()));
    assert_eq!(router.get("hello.localhost", "/").body, "sick");
}

#[test]
fn a_canary_gets_its_share_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (App::start(folder.path(), "old"), App::start(folder.path(), "new"));
    let router = RunningRouter::start(folder.path());
    let shared = |version: u64, percent: u8| {
        let mut canary = new.target(Active);
        canary.release = "v2".to_owned();
        let mut table = table(version, vec![old.target(Active), canary]);
        table.apps.values_mut().for_each(|route| route.canary = Some(Canary { release: "v2".to_owned(), percent }));
        table
    };
    for (version, percent) in [(1, 10), (2, 25), (3, 0), (4, 100)] {
        router.set(shared(version, percent));
        let before = new.count();
        for _ in 0..100 {
            router.get("hello.localhost", "/");
        }
        assert_eq!(new.count() - before, usize::from(percent), "{percent} %");
    }
    let before = new.count();
    for version in 5..25 {
        router.set(shared(version, 10));
        router.get("hello.localhost", "/");
    }
    assert_eq!(new.count() - before, 2, "10 % of 20, with a new table before each");
    new.kill();
    for _ in 0..10 {
        assert_eq!(router.get("hello.localhost", "/").body, "old", "a share of nothing would fail");
    }
}

#[test]
fn a_tcp_check_only_connects() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    app.health.store(500, Ordering::SeqCst);
    let router = RunningRouter::start(folder.path());
    let mut target = app.target(Warming);
    target.health_tcp = true;
    let process = target.process.clone();
    router.set(table(1, vec![target]));
    eventually("it to be well", || router.status().targets[&process].healthy.then_some(()));
    assert_eq!(router.status().targets[&process].last_check.as_deref(), Some("connected"));
    assert_eq!(app.count(), 0);
}

#[test]
fn a_process_is_warmed_up_once_before_it_counts_as_healthy() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |seen, stream| {
        respond(stream, if seen.line.contains("/broken") { 500 } else { 200 }, b"warm");
        Next::Close
    });
    let router = RunningRouter::start(folder.path());
    let mut target = app.target(Warming);
    target.warmup = vec!["/first".to_owned(), "/broken".to_owned()];
    let process = target.process.clone();
    router.set(table(1, vec![target]));
    let seen =
        eventually("it to be well", || Some(router.status().targets[&process].clone()).filter(|target| target.healthy));
    assert_eq!(app.count(), 2, "healthy before it was warm");
    assert_eq!(seen.last_check.as_deref(), Some("status 200, warm-up /broken: status 500"));
    eventually("more checks", || (router.status().targets[&process].checks >= 3).then_some(()));
    let lines: Vec<String> = app.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect();
    assert_eq!(lines, ["GET /first HTTP/1.1", "GET /broken HTTP/1.1"]);
}

#[test]
fn a_health_check_does_not_cut_the_app_off() {
    let folder = tempfile::tempdir().unwrap();
    let errors: Arc<Mutex<Vec<String>>> = Arc::default();
    let whole = Arc::new(AtomicUsize::new(0));
    let (seen_errors, seen_whole) = (errors.clone(), whole.clone());
    let app = App::behaving(folder.path(), "one", move |_, stream| {
        let mut write = || -> std::io::Result<()> {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
            for _ in 0..10 {
                sleep(Duration::from_millis(10));
                stream.write_all(&[b'x'; 10_000])?;
            }
            Ok(())
        };
        match write() {
            Ok(()) => drop(seen_whole.fetch_add(1, Ordering::SeqCst)),
            Err(error) => seen_errors.lock().unwrap().push(error.to_string()),
        }
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    let mut target = app.target(Warming);
    target.health_path = "/deep".to_owned();
    router.set(table(1, vec![target]));
    eventually("checks", || (whole.load(Ordering::SeqCst) >= 3).then_some(()));
    assert_eq!(*errors.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn numbers_are_kept_by_process_and_outlive_the_router() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let mut router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for _ in 0..5 {
        assert_eq!(router.get("hello.localhost", "/").status, 200);
    }
    let name = "hello".parse().unwrap();
    let sum = |slots: &[Slot]| {
        let mut sum = Slot::default();
        slots.iter().for_each(|slot| sum.merge(slot));
        (sum.requests, sum.classes, sum.bytes, sum.latency.count())
    };
    let wanted = (5, [0, 5, 0, 0, 0], 15, 5);
    for resolution in Resolution::ALL {
        let numbers = eventually("the numbers", || {
            let numbers = router.call(router.control.numbers(&name, resolution)).unwrap();
            (sum(&numbers.app).0 == 5).then_some(numbers)
        });
        assert_eq!((sum(&numbers.app), sum(&numbers.processes["v1/web.1"])), (wanted, wanted));
    }
    let last = router.status().apps[&name].last_request;
    assert!(last.is_some());
    router.stop();
    let router = RunningRouter::start(folder.path());
    let numbers = router.call(router.control.numbers(&name, Resolution::Hour)).unwrap();
    assert_eq!(sum(&numbers.app), wanted);
    let status = router.status().apps[&name].clone();
    assert_eq!((status.requests, status.last_request), (0, last), "counters begin anew");
}
