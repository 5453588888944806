//! What a process may use, and what becomes of one that wants more.

use super::world::*;
use crate::domain::RuntimeCode;
use crate::platform::contract::*;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_memory_hog_is_killed_and_it_is_said_why() {
    let world = World::new();
    let mut hog = spec("hog.web.1.a1", "/usr/bin/python3 -c 'x = bytearray(500 << 20); import time; time.sleep(60)'");
    hog.limits.memory_bytes = 64 << 20;
    let began = Instant::now();
    let (state, lines) = world.run(&hog).await;
    assert!(matches!(state, State::Exited { why: Exit::OutOfMemory, .. }), "{state:?}");
    assert!(lines.iter().any(|line| line.stream == LogStream::System && line.text.contains("memory")), "{lines:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
    world.end().await;
}

#[tokio::test]
async fn a_fork_bomb_is_held_and_ends_with_its_process() {
    let world = World::new();
    let mut bomb = spec("bomb.web.1.a1", "bomb() { bomb | bomb & }; echo ready; bomb; sleep 1000");
    bomb.limits.processes = 50;
    bomb.grace = Duration::from_secs(1);
    world.platform.start(&bomb).await.expect("it starts");
    world.says(&bomb.id, "ready").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        let count = std::fs::read_dir("/proc").expect("/proc").count();
        assert!(count < 5000, "{count}");
        assert!(!world.state(&bomb.id).await.expect("it is listed").is_over());
    }
    world.platform.stop(&bomb.id).await.expect("it stops");
    let state = world.exit(&bomb.id).await;
    assert!(matches!(state, State::Exited { why: Exit::Killed, .. }), "{state:?}");
    world.end().await;
}

#[tokio::test]
async fn a_disk_filler_meets_its_own_end_of_the_disk() {
    let world = World::new();
    let digest = world.publish(&[("index.html", "hello")]).await;
    let fill = "for place in /app /tmp /dev/shm; do head -c 500M /dev/zero > $place/fill 2>/dev/null && echo full; stat -c %s $place/fill; rm $place/fill; done";
    let mut filler = spec("filler.web.1.a1", fill);
    filler.code = Code::Slug(digest);
    filler.limits.disk_bytes = 10 << 20;
    let sizes = world.output(&filler).await;
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    for size in &sizes[..2] {
        assert!(size.parse::<u64>().expect("a size") <= 10 << 20, "{sizes:?}");
    }
    assert!(sizes[2].parse::<u64>().expect("a size") <= 64 << 20, "{sizes:?}");
    world.end().await;
}

#[tokio::test]
async fn a_build_that_fills_its_folder_is_killed() {
    let world = World::new();
    let folder = world.folder.path().join("code");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("before"), vec![1; 30 << 20]).expect("a file");
    let mut filler = spec(
        "filler.build.1.a1",
        "for i in $(seq 40); do head -c 1M /dev/urandom > $i; done; echo written; sleep 1000",
    );
    filler.code = Code::Folder { path: folder };
    filler.limits.disk_bytes = 20 << 20;
    let (state, lines) = world.run(&filler).await;
    assert!(matches!(state, State::Exited { signal: Some(9), why: Exit::DiskLimit, .. }), "{state:?} {lines:?}");
    // One file alone meets the limit at once.
    let folder = world.folder.path().join("other");
    std::fs::create_dir(&folder).expect("a folder");
    let mut single = spec("filler.build.2.a1", "head -c 50M /dev/zero > one; stat -c %s one");
    single.code = Code::Folder { path: folder };
    single.limits.disk_bytes = 20 << 20;
    assert_eq!(world.output(&single).await, [(20 << 20).to_string()]);
    world.end().await;
}

#[tokio::test]
async fn a_flood_of_output_is_kept_at_both_ends_and_costs_little() {
    let world = World::new();
    let mut flood = spec("flood.web.1.a1", "echo first; seq 300000; echo last");
    flood.limits.output_bytes = 200_000;
    world.platform.start(&flood).await.expect("it starts");
    let state = world.exit(&flood.id).await;
    assert!(matches!(state, State::Exited { code: Some(0), .. }), "{state:?}");
    let (mut cursor, mut lines, mut dropped) = (LogCursor::default(), Vec::new(), 0);
    loop {
        let page = world.platform.logs(&flood.id, cursor, 500).await.expect("a page");
        cursor = page.next;
        dropped += page.dropped;
        lines.extend(page.lines);
        if page.ended {
            break;
        }
    }
    assert_eq!(lines.first().map(|line| line.text.as_str()), Some("first"));
    assert_eq!(lines.last().map(|line| line.text.as_str()), Some("last"));
    assert_eq!(lines.len() as u64 + dropped, 300_002);
    let folder = world.data_dir().join("processes").join(flood.id.as_str());
    let size: u64 = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").metadata().expect("a file").len())
        .sum();
    assert!(size < 250_000, "{size}");
    world.end().await;
}

#[tokio::test]
async fn a_build_that_only_talks_is_ended() {
    let world = World::new();
    let mut talker = spec("talker.build.1.a1", "yes");
    talker.limits.output_bytes = 16_384;
    talker.time_limit = Some(Duration::from_secs(600));
    let (state, _) = world.run(&talker).await;
    assert!(matches!(state, State::Exited { why: Exit::OutputLimit, .. }), "{state:?}");
    world.end().await;
}

#[tokio::test]
async fn a_process_ends_at_its_time_limit() {
    let world = World::new();
    let mut slow = spec("slow.release.1.a1", "echo ready; sleep 1000");
    slow.time_limit = Some(Duration::from_millis(500));
    let began = Instant::now();
    let (state, lines) = world.run(&slow).await;
    assert!(matches!(state, State::Exited { why: Exit::TimeLimit, .. }), "{state:?}");
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < Duration::from_secs(20));
    assert!(lines.iter().any(|line| line.stream == LogStream::System), "{lines:?}");
    world.end().await;
}

#[tokio::test]
async fn open_files_are_limited() {
    let world = World::new();
    let mut process = spec("files.run.1.a1", "ulimit -n; ulimit -c");
    process.limits.open_files = 123;
    assert_eq!(world.output(&process).await, ["123", "0"]);
    world.end().await;
}

#[tokio::test]
async fn limits_hold_without_control_groups() {
    let world = World::on(|settings| settings.control_groups = false);
    let mut hog = spec("plain.hog.1.a1", "/usr/bin/python3 -c 'x = bytearray(500 << 20); import time; time.sleep(60)'");
    hog.limits.memory_bytes = 64 << 20;
    let (state, _) = world.run(&hog).await;
    assert!(matches!(state, State::Exited { why: Exit::OutOfMemory, .. }), "{state:?}");

    let mut bomb = spec("plain.bomb.1.a1", "bomb() { bomb | bomb & }; echo ready; bomb; sleep 1000");
    bomb.limits.processes = 50;
    bomb.grace = Duration::from_secs(1);
    // The count is the app's own: another one of the same user has its full number.
    let mut other = spec("plain.web.1.a1", "for i in $(seq 40); do sleep 1000 & done; echo ready; wait");
    other.limits.processes = 50;
    for process in [&bomb, &other] {
        world.platform.start(process).await.expect("it starts");
        world.says(&process.id, "ready").await;
    }
    assert!(!world.lines(&other.id).await.iter().any(|line| line.stream == LogStream::Err));
    world.says(&bomb.id, "Resource temporarily unavailable").await;
    let began = Instant::now();
    loop {
        let list = world.platform.list().await.expect("a list");
        if list.iter().all(|status| status.state.is_over() || status.memory_bytes > Some(0)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{list:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end().await;
}

#[tokio::test]
async fn what_a_process_uses_is_listed() {
    let world = World::new();
    let process = spec(
        "usage.web.1.a1",
        "/usr/bin/python3 -c 'x = bytearray(50 << 20); sum(range(10 ** 7)); print(\"ready\", flush=True); import time; time.sleep(1000)'",
    );
    world.platform.start(&process).await.expect("it starts");
    world.says(&process.id, "ready").await;
    let status = world.platform.list().await.expect("a list").remove(0);
    assert!(status.memory_bytes > Some(50 << 20), "{status:?}");
    assert!(status.cpu_millis_used > Some(50), "{status:?}");
    let capacity = world.platform.capacity().await.expect("a capacity");
    assert_eq!(capacity.processes, 1);
    assert!(capacity.memory_total > 0 && capacity.disk_available > 0 && capacity.processors > 0, "{capacity:?}");
    world.end().await;
}

#[tokio::test]
async fn a_process_over_its_memory_is_told_so_and_one_over_the_limit_is_ended() {
    let world = World::new();
    let grow = "x = bytearray(96 << 20); print('over', flush=True); time.sleep(3); y = bytearray(500 << 20)";
    let mut hog = spec("hog.web.1.a1", &format!("/usr/bin/python3 -c \"import time; {grow}; time.sleep(60)\""));
    hog.limits.memory_quota = 48 << 20;
    hog.limits.memory_bytes = 192 << 20;
    let (state, lines) = world.run(&hog).await;
    assert!(matches!(state, State::Exited { why: Exit::OutOfMemory, .. }), "{state:?}");
    let said: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let place =
        |text: &str| said.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {said:?}"));
    assert!(place("Process running mem=") < place("Error R14 (Memory quota exceeded)"), "{said:?}");
    assert!(place("Error R14") < place("Error R15 (Memory quota vastly exceeded)"), "{said:?}");
    let list = world.platform.list().await.expect("a list");
    let codes = &list.iter().find(|status| status.id == hog.id).expect("it is listed").codes;
    assert_eq!((codes.get(&RuntimeCode::R14), codes.get(&RuntimeCode::R15)), (Some(&1), Some(&1)), "{codes:?}");
    world.end().await;
}

#[tokio::test]
async fn a_process_that_does_not_end_in_time_is_told_so() {
    let world = World::new();
    let mut deaf = spec("deaf.web.1.a1", "trap '' TERM; echo ready; while true; do sleep 0.1; done");
    deaf.grace = Duration::from_millis(500);
    world.platform.start(&deaf).await.expect("it starts");
    world.says(&deaf.id, "ready").await;
    world.platform.stop(&deaf.id).await.expect("it stops");
    let state = world.exit(&deaf.id).await;
    assert!(matches!(state, State::Exited { signal: Some(9), .. }), "{state:?}");
    let list = world.platform.list().await.expect("a list");
    let codes = &list.iter().find(|status| status.id == deaf.id).expect("it is listed").codes;
    assert_eq!(codes.get(&RuntimeCode::R12), Some(&1), "{codes:?}");
    world.end().await;
}
