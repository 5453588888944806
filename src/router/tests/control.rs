//! The control socket, the saved table, and what is counted and logged.

use super::world::*;
use crate::router::TargetState::*;
use crate::router::{Router, RouterError, Table};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

#[test]
fn the_table_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let mut router = RunningRouter::start(folder.path());
    router.set(table(7, vec![app.target(Active)]));
    assert_eq!(router.get("hello.localhost", "/").body, "one");
    router.stop();
    let router = RunningRouter::start(folder.path());
    assert_eq!(router.get("hello.localhost", "/").body, "one");
    let status = router.status();
    assert_eq!((status.generation, status.version), (1, 7));
    // The fence holds over the restart.
    let mut old = table(8, Vec::new());
    old.generation = 0;
    assert!(matches!(router.call(router.control.set(old)), Err(RouterError::Refused(_))));
}

#[test]
fn a_refused_table_leaves_the_one_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    let mut good = table(5, vec![app.target(Active)]);
    good.generation = 5;
    router.set(good.clone());
    let saved = std::fs::read(folder.path().join("router/table.json")).unwrap();

    let change = |change: &dyn Fn(&mut Table)| {
        let mut table = good.clone();
        table.version = 6;
        change(&mut table);
        table
    };
    for (reason, table) in [
        ("generation 4 is lower", change(&|table| table.generation = 4)),
        ("version 4 is lower", change(&|table| table.version = 4)),
        ("the table is empty", change(&|table| table.apps.clear())),
        (
            "not a normalised host",
            change(&|table| table.apps.values_mut().for_each(|route| route.hosts = vec!["A:1".into()])),
        ),
    ] {
        match router.call(router.control.set(table)) {
            Err(RouterError::Refused(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{reason}: {other:?}"),
        }
    }
    let mut raw = UnixStream::connect(folder.path().join("router/router.sock")).unwrap();
    let mut answers = BufReader::new(raw.try_clone().unwrap());
    for line in [
        "",
        "{}",
        "null",
        "[]",
        "{\"op\":\"set\"}",
        "{\"op\":\"set\",\"table\":{}}",
        "{\"op\":\"set\",\"table\":{\"generation\":9,\"version\":1}}",
        "{\"op\":\"set\",\"table\":{\"generation\":9,\"version\":1,\"apps\":{\"../x\":{}}}}",
        "{\"op\":\"dance\"}",
        "\u{0}",
    ] {
        raw.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"refused\""), "{line:?}: {answer}");
    }
    assert_eq!(router.get("hello.localhost", "/").body, "one");
    assert_eq!(std::fs::read(folder.path().join("router/table.json")).unwrap(), saved);

    router.call(router.control.clear(5, 7)).unwrap();
    assert_eq!(router.get("hello.localhost", "/").status, 404);
}

#[test]
fn one_router_per_folder_and_a_protected_socket() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::start(folder.path());
    for name in ["router.sock", "handover.sock", "lend.sock"] {
        let socket = folder.path().join("router").join(name);
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let lock = std::fs::File::open(folder.path().join("router/router.lock")).unwrap();
    assert!(lock.try_lock().is_err(), "a second one could begin");
    assert_eq!(router.call(router.control.ping()).unwrap(), router.address.to_string());
}

#[test]
fn a_folder_too_deep_for_a_socket_path_works_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let router = RunningRouter::start(&deep);
    router.call(router.control.ping()).unwrap();
}

#[test]
fn stopping_lets_requests_finish() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "slow", |_, stream| {
        std::thread::sleep(std::time::Duration::from_millis(400));
        respond(stream, 200, b"finished");
        Next::KeepAlive
    });
    let mut router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut idle = router.client();
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    eventually("the request", || (app.count() == 1).then_some(()));
    let address = router.address;
    router.stop();
    assert_eq!(client.answer().unwrap().body, "finished");
    assert!(idle.answer().is_none());
    assert!(std::net::TcpStream::connect(address).is_err());
    // A router that is gone is stopped.
    router.call(router.control.stop()).unwrap();
    assert!(matches!(router.call(router.control.status()), Err(RouterError::Unreachable(_))));
}

#[test]
fn requests_are_counted_and_logged_by_app() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |seen, stream| {
        let status = seen.line.split(['/', ' ']).nth(2).and_then(|text| text.parse().ok()).unwrap_or(200);
        respond(stream, status, b"thirteen byte");
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for path in ["/200", "/200", "/302", "/404", "/500", "/a%0Ab\"c"] {
        router.get("hello.localhost", path);
    }
    router.get("elsewhere.localhost", "/");
    let name = "hello".parse().unwrap();
    let numbers =
        eventually("the counts", || Some(router.status().apps[&name].clone()).filter(|app| app.requests == 6));
    assert_eq!((numbers.s2xx, numbers.s3xx, numbers.s4xx, numbers.s5xx), (3, 1, 1, 1));
    assert_eq!((numbers.in_flight, numbers.bytes, numbers.h_codes.len()), (0, 78, 0));
    assert!(numbers.p50_ms.unwrap() > 0.0 && numbers.p50_ms <= numbers.p95_ms && numbers.p95_ms <= numbers.p99_ms);

    let lines = eventually("the lines", || {
        Some(router.call(router.control.logs(&name, 0)).unwrap()).filter(|lines| lines.len() == 6)
    });
    let first = &lines[0].line;
    assert!(
        first.contains(" landfall[router]: at=info method=GET path=\"/200\" host=hello.localhost request_id="),
        "{first}"
    );
    assert!(
        first.contains("fwd=\"127.0.0.1\" dyno=web.1 connect=") && first.ends_with("status=200 bytes=13 protocol=http"),
        "{first}"
    );
    assert!(lines[5].line.contains(r#"path="/a%0Ab\"c" host"#), "{}", lines[5].line);
    let rest = router.call(router.control.logs(&name, lines[3].cursor)).unwrap();
    assert_eq!(rest, lines[4..]);
    let file = eventually("the file", || {
        let file = std::fs::read_to_string(folder.path().join("router/router.log")).ok()?;
        (file.lines().count() == 7).then_some(file)
    });
    assert!(file.contains("host=elsewhere.localhost"), "{file}");
}

#[test]
fn the_router_in_memory_keeps_the_same_fences() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    runtime.block_on(async {
        let (router, memory) = Router::memory();
        assert_eq!(router.status().await.unwrap().targets.len(), 0);
        router.set(table(2, vec![app.target(Warming)])).await.unwrap();
        assert!(matches!(router.set(table(1, Vec::new())).await, Err(RouterError::Refused(_))));
        assert!(matches!(router.set(Table { generation: 2, ..Table::default() }).await, Err(RouterError::Refused(_))));
        let process = app.target(Warming).process;
        assert_eq!(router.status().await.unwrap().targets[&process].last_check, None);
        memory.lock().unwrap().health.insert(process.clone(), (false, "status 500".into()));
        assert_eq!(router.status().await.unwrap().targets[&process].last_check.as_deref(), Some("status 500"));
        memory.lock().unwrap().health.insert(process.clone(), (true, "status 200".into()));
        assert!(router.status().await.unwrap().targets[&process].healthy);
        router.clear(2, 1).await.unwrap();
        router.stop().await.unwrap();
        let memory = memory.lock().unwrap();
        assert!(memory.stopped && memory.tables.len() == 2);
    });
}
