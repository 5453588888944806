//! Starting, stopping, adopting, reaching: a process's life.

use super::world::*;
use crate::platform::contract::*;
use crate::platform::files::{self, Record};
use crate::platform::identity::Identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn record(world: &World, id: &str) -> Record {
    files::read(&world.data_dir().join("processes").join(id).join(files::STATE)).expect("a record")
}

#[tokio::test]
async fn a_command_runs_to_its_end_and_its_output_is_kept_in_order() {
    let world = World::new();
    let (state, lines) = world.run(&spec("a.run.1.a1", "echo one; echo two; echo three >&2; exit 7")).await;
    assert!(matches!(state, State::Exited { code: Some(7), signal: None, why: Exit::Finished, .. }), "{state:?}");
    let out: Vec<&str> =
        lines.iter().filter(|line| line.stream == LogStream::Out).map(|line| line.text.as_str()).collect();
    let err: Vec<&str> =
        lines.iter().filter(|line| line.stream == LogStream::Err).map(|line| line.text.as_str()).collect();
    assert_eq!((out, err), (vec!["one", "two"], vec!["three"]));
    world.end().await;
}

#[tokio::test]
async fn a_server_in_the_sandbox_is_reached_through_its_dial_socket_only() {
    let world = World::new();
    let digest = world.publish(&[("index.html", "hello from the slug")]).await;
    let mut web = server("hello.web.1.a1");
    web.code = Code::Slug(digest);
    world.platform.start(&web).await.expect("it starts");
    assert!(world.answers(&web.id).await.contains("hello from the slug"));
    let from_the_host = std::net::TcpStream::connect_timeout(
        &std::net::SocketAddr::from(([127, 0, 0, 1], 3000)),
        Duration::from_millis(500),
    );
    assert!(from_the_host.is_err(), "the app's port is not on the machine");
    world.platform.stop(&web.id).await.expect("it stops");
    let state = world.exit(&web.id).await;
    assert!(matches!(state, State::Exited { why: Exit::Killed, .. }), "{state:?}");
    assert!(world.get(&web.id).is_none());
    world.end().await;
}

#[tokio::test]
async fn two_apps_listen_on_the_same_port() {
    let world = World::new();
    let (one, two) = (world.publish(&[("index.html", "one")]).await, world.publish(&[("index.html", "two")]).await);
    let (mut first, mut second) = (server("one.web.1.a1"), server("two.web.1.a1"));
    (first.code, second.code) = (Code::Slug(one), Code::Slug(two));
    second.command = SERVER.replace("127.0.0.1", "::1");
    world.platform.start(&first).await.expect("it starts");
    world.platform.start(&second).await.expect("it starts");
    assert!(world.answers(&first.id).await.ends_with("one"));
    assert!(world.answers(&second.id).await.ends_with("two"));
    world.end().await;
}

#[tokio::test]
async fn a_stuck_client_of_the_dial_socket_holds_nobody_up() {
    use std::io::Write;
    let world = World::new();
    let web = server("stuck.web.1.a1");
    world.platform.start(&web).await.expect("it starts");
    world.answers(&web.id).await;
    // They ask and never take an answer, or say nothing at all, or something else.
    let mut stuck = Vec::new();
    for words in ["D", "", "DD", "\0\0garbage", "D", "", "D"] {
        let mut stream =
            std::os::unix::net::UnixStream::connect(world.platform.dial_socket(&web.id)).expect("a client");
        stream.write_all(words.as_bytes()).expect("it asks");
        stuck.push(stream);
    }
    let began = Instant::now();
    for _ in 0..20 {
        assert!(world.get(&web.id).is_some());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(stuck);
    world.end().await;
}

#[tokio::test]
async fn the_same_id_is_started_once_even_after_its_end() {
    let world = World::new();
    let folder = world.folder.path().join("code");
    std::fs::create_dir(&folder).expect("a folder");
    let mut once = spec("once.release.1.a1", "echo ran >> /app/count");
    once.code = Code::Folder { path: folder.clone() };
    let started: Vec<_> = (0..8)
        .map(|_| {
            let (platform, once) = (world.platform.clone(), once.clone());
            tokio::spawn(async move { platform.start(&once).await })
        })
        .collect();
    for start in started {
        start.await.expect("no panic").expect("it is accepted");
    }
    world.exit(&once.id).await;
    world.platform.start(&once).await.expect("it is accepted");
    let mut other = once.clone();
    other.command = "true".to_owned();
    assert!(matches!(world.platform.start(&other).await, Err(PlatformError::Differs(_))));
    assert_eq!(std::fs::read_to_string(folder.join("count")).expect("a file"), "ran\n");
    world.end().await;
}

#[tokio::test]
async fn stop_is_sigterm_to_all_then_sigkill_after_the_grace() {
    let world = World::new();
    // A shell that waits for a program which takes its time: both are asked, the program may finish.
    let gentle = spec(
        "gentle.web.1.a1",
        r#"cd /tmp; /usr/bin/python3 -uc '
import signal, time, sys
def end(*_):
    time.sleep(0.3); print("drained"); sys.exit(0)
signal.signal(signal.SIGTERM, end); print("ready")
while True: time.sleep(1)'; echo after"#,
    );
    world.platform.start(&gentle).await.expect("it starts");
    world.says(&gentle.id, "ready").await;
    assert!(matches!(world.platform.remove(&gentle.id).await, Err(PlatformError::StillRunning(_))));
    world.platform.stop(&gentle.id).await.expect("it stops");
    world.platform.stop(&gentle.id).await.expect("again is fine");
    let state = world.exit(&gentle.id).await;
    assert!(matches!(state, State::Exited { signal: None, why: Exit::Killed, .. }), "{state:?}");
    assert!(world.lines(&gentle.id).await.iter().any(|line| line.text == "drained"));

    let mut stubborn = spec("stubborn.web.1.a1", "trap '' TERM; echo ready; while true; do sleep 1; done");
    stubborn.grace = Duration::from_millis(700);
    world.platform.start(&stubborn).await.expect("it starts");
    world.says(&stubborn.id, "ready").await;
    let began = Instant::now();
    world.platform.stop(&stubborn.id).await.expect("it stops");
    let state = world.exit(&stubborn.id).await;
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert!(matches!(state, State::Exited { code: None, signal: Some(9), why: Exit::Killed, .. }), "{state:?}");
    world.end().await;
}

#[tokio::test]
async fn a_shell_that_starts_its_program_again_is_stopped_before_its_grace_ends() {
    let world = World::new();
    let respawning = spec("respawn.worker.1.a1", "echo ready; while true; do sleep 1000; done");
    world.platform.start(&respawning).await.expect("it starts");
    world.says(&respawning.id, "ready").await;
    world.platform.stop(&respawning.id).await.expect("it stops");
    let began = Instant::now();
    world.exit(&respawning.id).await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    world.end().await;
}

#[tokio::test]
async fn grandchildren_that_detached_themselves_die_too() {
    let world = World::new();
    let marker = format!("9{}", std::process::id());
    let command = format!("setsid -f sleep {marker}; (sleep {marker} &); sleep 0.1; echo ready");
    let (state, _) = world.run(&spec("daemon.run.1.a1", &command)).await;
    assert!(matches!(state, State::Exited { code: Some(0), .. }), "{state:?}");
    assert_eq!(processes_that_name(&format!("sleep {marker}")), [] as [String; 0]);
    world.end().await;
}

#[tokio::test]
async fn a_process_outlives_its_starter_and_is_adopted() {
    let world = World::new();
    let mut web = server("adopted.web.1.a1");
    web.command = format!("echo before; {SERVER}");
    let file = world.folder.path().join("spec.json");
    std::fs::write(&file, serde_json::to_vec(&web).expect("a text")).expect("a file");
    let mut starter = Command::new(std::env::current_exe().expect("this program"))
        .arg("test-starter")
        .arg(world.data_dir())
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a starter");
    let mut line = String::new();
    BufReader::new(starter.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "started\n");
    world.running(&web.id).await;
    let before = record(&world, web.id.as_str());
    starter.kill().expect("kill -9");
    starter.wait().expect("its end");

    let successor = World { platform: open(&world.data_dir()), folder: world.folder };
    successor.running(&web.id).await;
    successor.answers(&web.id).await;
    let after = record(&successor, web.id.as_str());
    assert_eq!((before.supervisor, before.sandbox), (after.supervisor, after.sandbox));
    successor.says(&web.id, "before").await;
    successor.end().await;
}

#[tokio::test]
async fn changes_are_told() {
    let world = World::new();
    let mut watch = world.platform.watch();
    let process = spec("told.run.1.a1", "true");
    world.platform.start(&process).await.expect("it starts");
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            match watch.next().await {
                Some(Change::Changed(id)) => assert_eq!(id, process.id),
                other => panic!("{other:?}"),
            }
            if world.state(&process.id).await.is_some_and(|state| state.is_over()) {
                return;
            }
        }
    });
    waited.await.expect("its end is told");
    world.end().await;
}

#[tokio::test]
async fn with_its_supervisor_all_of_a_process_dies() {
    let world = World::new();
    let marker = format!("8{}", std::process::id());
    let process = spec("lost.web.1.a1", &format!("setsid -f sleep {marker}; echo ready; sleep {marker}"));
    let mut watch = world.platform.watch();
    world.platform.start(&process).await.expect("it starts");
    world.says(&process.id, "ready").await;
    let supervisor = record(&world, process.id.as_str()).supervisor;
    kill(Pid::from_raw(supervisor.pid), Signal::SIGKILL).expect("kill -9");
    let told = tokio::time::timeout(PATIENCE, async {
        while !matches!(
            files::read::<Record>(&world.data_dir().join("processes/lost.web.1.a1").join(files::STATE)),
            Ok(Record { state: State::Exited { .. }, .. })
        ) {
            watch.next().await;
        }
    });
    told.await.expect("the watch finds it");
    let state = world.exit(&process.id).await;
    assert!(matches!(state, State::Exited { why: Exit::SupervisorLost, .. }), "{state:?}");
    assert_eq!(processes_that_name(&format!("sleep {marker}")), [] as [String; 0]);
    world.end().await;
}

#[tokio::test]
async fn after_a_reboot_everything_is_lost_and_no_foreign_process_is_signalled() {
    let world = World::new();
    // A decoy has the number of the old supervisor and of the old sandbox.
    let mut decoy = Command::new("sleep").arg("1000").spawn().expect("a decoy");
    let process = spec("reboot.web.1.a1", "sleep 1000");
    world.platform.start(&process).await.expect("it starts");
    world.running(&process.id).await;
    world.platform.stop(&process.id).await.expect("it stops");
    world.exit(&process.id).await;
    let decoy_pid = i32::try_from(decoy.id()).expect("a pid");
    for (boot, start) in [("an earlier boot".to_owned(), 1), (crate::platform::identity::boot_id(), 1)] {
        let identity = Identity { boot, pid: decoy_pid, start };
        let old = Record {
            supervisor: identity.clone(),
            sandbox: Some(identity),
            state: State::Running { since: crate::clock::Timestamp(1) },
        };
        let file = world.data_dir().join("processes").join(process.id.as_str()).join(files::STATE);
        files::replace(&file, &old).expect("an old record");
        let state = world.exit(&process.id).await;
        assert!(matches!(state, State::Exited { why: Exit::SupervisorLost, .. }), "{state:?}");
        world.platform.stop(&process.id).await.expect("fine if over");
        assert_eq!(decoy.try_wait().expect("its state"), None, "the decoy lives");
    }
    decoy.kill().expect("its end");
    decoy.wait().expect("its end");
    world.end().await;
}

#[tokio::test]
async fn what_can_not_start_says_why() {
    let world = World::new();
    let mut bound = spec("bound.run.1.a1", "true");
    bound.binds.push(Bind { host: "/nonexistent/folder".into(), inside: "/cache".into(), writable: false });
    let (state, _) = world.run(&bound).await;
    match state {
        State::Exited { code: None, why: Exit::CouldNotStart(reason), .. } => {
            assert!(reason.contains("/nonexistent/folder"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let mut unpublished = spec("unpublished.web.1.a1", "true");
    unpublished.code = Code::Slug("0".repeat(64).parse().expect("a digest"));
    assert!(matches!(world.platform.start(&unpublished).await, Err(PlatformError::NotPublished(_))));
    let (state, lines) = world.run(&spec("missing.run.1.a1", "no-such-program")).await;
    assert!(matches!(state, State::Exited { code: Some(127), .. }), "{state:?}");
    assert!(lines.iter().any(|line| line.text.contains("no-such-program: command not found")), "{lines:?}");
    world.end().await;
}

#[tokio::test]
async fn stop_right_after_start_leaves_nothing_running() {
    let world = World::new();
    for number in 0..10 {
        let process = spec(&format!("quick.web.{number}.a1"), "sleep 1000");
        world.platform.start(&process).await.expect("it starts");
        world.platform.stop(&process.id).await.expect("it stops");
        let state = world.exit(&process.id).await;
        assert!(matches!(state, State::Exited { why: Exit::Killed, .. }), "{state:?}");
    }
    world.platform.stop(&id("never.web.1.a1")).await.expect("fine if unknown");
    world.platform.remove(&id("never.web.1.a1")).await.expect("fine if unknown");
    world.end().await;
}

#[tokio::test]
async fn thirty_at_once_start_and_end() {
    let world = World::new();
    let digest = world.publish(&[("index.html", "hello")]).await;
    let mut ids = Vec::new();
    for number in 0..30 {
        let mut process = server(&format!("many.web.{number}.a1"));
        process.code = Code::Slug(digest.clone());
        // Half of them end by themselves at the same time.
        if number % 2 == 0 {
            process.command = "cat index.html".to_owned();
        }
        let platform = world.platform.clone();
        ids.push((number, process.id.clone(), tokio::spawn(async move { platform.start(&process).await })));
    }
    for (number, id, start) in ids {
        start.await.expect("no panic").expect("it starts");
        if number % 2 == 0 {
            let state = world.exit(&id).await;
            assert!(matches!(state, State::Exited { code: Some(0), .. }), "{state:?}");
        } else {
            assert!(world.answers(&id).await.ends_with("hello"));
        }
    }
    world.end().await;
}

#[tokio::test]
async fn the_check_finds_this_machine_fit() {
    let world = World::new();
    let findings = world.platform.check().await;
    let missing: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(findings.iter().any(|finding| finding.name == "sandbox"), "{findings:?}");
    world.end().await;
}

#[test]
fn a_normal_user_can_run_it_too() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: not root, so all other tests are this test");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::chown(folder.path(), Some(1000), Some(1000)).expect("a folder of the user's");
    let program = folder.path().join("landfall-test");
    // By another process: a child that another thread starts meanwhile would inherit our descriptor for writing, and what is
    // open for writing cannot be run.
    let copied = Command::new("cp").arg(std::env::current_exe().expect("this program")).arg(&program).status();
    assert!(copied.expect("cp runs").success());
    let output = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(&program)
        .arg("test-scenario")
        .arg(folder.path().join("data"))
        .env_clear()
        .output()
        .expect("setpriv of util-linux");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// In a program of its own, as user 1000.
pub async fn as_a_normal_user(data_dir: &Path) {
    let world = World { folder: tempfile::tempdir().expect("a folder"), platform: open(data_dir) };
    let findings = world.platform.check().await;
    assert!(findings.iter().all(|finding| finding.ok), "{findings:#?}");

    let digest = world.publish(&[("index.html", "hello")]).await;
    let mut web = server("user.web.1.a1");
    web.code = Code::Slug(digest.clone());
    web.command = format!("echo more > more.html; grep -o ' /app overlay' /proc/mounts; id -u; {SERVER}");
    world.platform.start(&web).await.expect("it starts");
    assert!(world.answers(&web.id).await.ends_with("hello"));
    let lines = world.lines(&web.id).await;
    assert_eq!(lines[0].text, " /app overlay");
    assert_eq!(lines[1].text, "10001");
    world.platform.stop(&web.id).await.expect("it stops");
    world.exit(&web.id).await;

    let folder = data_dir.join("build");
    std::fs::create_dir(&folder).expect("a folder");
    let mut build = spec("user.build.1.a1", "echo built > /app/built");
    build.code = Code::Folder { path: folder.clone() };
    world.output(&build).await;
    assert_eq!(std::fs::read_to_string(folder.join("built")).expect("a file"), "built\n");

    let mut hog = spec("user.hog.1.a1", "/usr/bin/python3 -c 'x = bytearray(400 << 20); import time; time.sleep(60)'");
    hog.limits.memory_bytes = 100 << 20;
    let (state, _) = world.run(&hog).await;
    assert!(matches!(state, State::Exited { why: Exit::OutOfMemory, .. }), "{state:?}");

    let mut bomb = spec("user.bomb.1.a1", "for i in $(seq 200); do sleep 1000 & done; echo made $(jobs -p | wc -l)");
    bomb.limits.processes = 40;
    bomb.time_limit = Some(Duration::from_secs(3));
    bomb.grace = Duration::from_millis(100);
    let (_, lines) = world.run(&bomb).await;
    assert!(lines.iter().any(|line| line.text.contains("Resource temporarily unavailable")), "{lines:?}");

    for status in world.platform.list().await.expect("a list") {
        world.platform.stop(&status.id).await.expect("it stops");
        world.exit(&status.id).await;
        world.platform.remove(&status.id).await.expect("it is removed");
    }
    assert_eq!(world.platform.leftovers().await.expect("a look"), []);
}

#[tokio::test]
async fn a_supervisor_killed_at_any_moment_leaves_nothing() {
    let world = World::new();
    let marker = format!("7{}", std::process::id());
    for number in 0..40 {
        let process = spec(&format!("moment.web.{number}.a1"), &format!("setsid -f sleep {marker}; sleep {marker}"));
        world.platform.start(&process).await.expect("it starts");
        let file = world.data_dir().join("processes").join(process.id.as_str()).join(files::STATE);
        let began = Instant::now();
        let supervisor = loop {
            match files::read::<Record>(&file) {
                Ok(record) => break record.supervisor,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
        };
        // From before the sandbox begins until after it stands.
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_millis(number) {
            std::hint::spin_loop();
        }
        kill(Pid::from_raw(supervisor.pid), Signal::SIGKILL).expect("kill -9");
        let state = world.exit(&process.id).await;
        assert!(matches!(state, State::Exited { why: Exit::SupervisorLost, .. }), "{number}: {state:?}");
        let left = processes_that_name(&format!("sleep {marker}"));
        assert_eq!(left, [] as [String; 0], "{number}");
    }
    world.end().await;
}

#[tokio::test]
async fn leftovers_are_found_and_swept() {
    let world = World::new();
    let process = spec("swept.web.1.a1", "echo ready; sleep 1000");
    world.platform.start(&process).await.expect("it starts");
    world.says(&process.id, "ready").await;
    assert_eq!(world.platform.leftovers().await.expect("a look"), [], "what runs is no leftover");
    // The record is lost while the process runs.
    let folder = world.data_dir().join("processes").join(process.id.as_str());
    std::fs::rename(&folder, world.folder.path().join("lost")).expect("it is lost");
    let found = world.platform.leftovers().await.expect("a look");
    if nix::unistd::geteuid().is_root() {
        assert!(found.iter().any(|leftover| leftover.kind == "process"), "{found:?}");
        assert!(found.iter().any(|leftover| leftover.kind == "control group"), "{found:?}");
        assert!(!world.platform.sweep().await.expect("a sweep").is_empty());
    }
    let supervisor =
        files::read::<Record>(&world.folder.path().join("lost").join(files::STATE)).expect("a record").supervisor;
    let began = Instant::now();
    while supervisor.is_alive() {
        // It can't tell its end to a folder that is gone, and gives up.
        assert!(began.elapsed() < PATIENCE, "the supervisor ends too");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.end().await;
}

/// Figures for the notes, not a test of anything: `cargo test … -- --ignored --nocapture how_long`.
#[tokio::test]
#[ignore = "prints figures"]
async fn how_long_starts_take() {
    let world = World::new();
    let digest = world.publish(&[("index.html", "hello")]).await;
    let (mut running, mut over) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let mut process = spec(&format!("figure.run.{number}.a1"), "true");
        process.code = Code::Slug(digest.clone());
        let began = Instant::now();
        world.platform.start(&process).await.expect("it starts");
        running.push(began.elapsed());
        let file = world.data_dir().join("processes").join(process.id.as_str()).join(files::STATE);
        while !files::read::<Record>(&file).is_ok_and(|record| record.state.is_over()) {
            std::thread::sleep(Duration::from_micros(200));
        }
        over.push(began.elapsed());
        world.platform.remove(&process.id).await.expect("it is removed");
    }
    let web = server("figure.web.1.a1");
    world.platform.start(&web).await.expect("it starts");
    world.answers(&web.id).await;
    let mut dials: Vec<Duration> = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        world.dial(&web.id).expect("a connection");
        dials.push(began.elapsed());
    }
    for (name, times) in [("accepted", &mut running), ("over", &mut over), ("dialled", &mut dials)] {
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    let supervisor = record(&world, web.id.as_str()).supervisor.pid;
    let memory = std::fs::read_to_string(format!("/proc/{supervisor}/smaps_rollup")).expect("its memory");
    println!(
        "{:?}",
        memory.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Rss:")).collect::<Vec<_>>()
    );
    world.end().await;
}
