//! The scripted platform keeps the same contract, and is loud when it is broken.

use super::world::{id, spec};
use crate::clock::{Clock, Timestamp};
use crate::platform::contract::*;
use crate::platform::{Memory, Outcome, Platform};

fn scripted() -> (Memory, Platform) {
    let memory = Memory::new(Clock::manual(Timestamp(1000)));
    memory.script(|spec| match spec.labels.get("type").map(String::as_str) {
        Some("release") => Outcome::Exits { code: 3, lines: vec!["migrating".to_owned()], writes: Vec::new() },
        Some("build") => {
            Outcome::Exits { code: 0, lines: Vec::new(), writes: vec![("out/file".into(), b"built".to_vec())] }
        }
        _ => Outcome::Runs { healthy: true },
    });
    (memory.clone(), Platform::Memory(memory))
}

async fn state(platform: &Platform) -> State {
    platform.list().await.expect("a list").remove(0).state
}

#[tokio::test]
async fn each_look_is_one_step() {
    let (memory, platform) = scripted();
    let mut release = spec("app.release.1.a1", "migrate");
    release.labels.insert("type".to_owned(), "release".to_owned());
    let mut watch = platform.watch();
    platform.start(&release).await.expect("it starts");
    platform.start(&release).await.expect("again is fine");
    assert_eq!(watch.next().await, Some(Change::Changed(release.id.clone())));
    assert_eq!(state(&platform).await, State::Starting);
    assert_eq!(state(&platform).await, State::Running { since: Timestamp(1000) });
    let over = state(&platform).await;
    assert!(matches!(over, State::Exited { code: Some(3), why: Exit::Finished, .. }), "{over:?}");
    let page = platform.logs(&release.id, LogCursor::default(), 10).await.expect("a page");
    assert_eq!((page.lines[0].text.as_str(), page.ended), ("migrating", true));
    platform.remove(&release.id).await.expect("it is removed");
    assert_eq!(memory.history().len(), 1);
}

#[tokio::test]
async fn it_runs_until_it_is_stopped_or_crashes() {
    let (memory, platform) = scripted();
    let web = spec("app.web.1.a1", "serve");
    platform.start(&web).await.expect("it starts");
    assert_eq!(memory.healthy(&web.id), None);
    state(&platform).await;
    assert_eq!((memory.healthy(&web.id), memory.running()), (Some(true), vec![web.id.clone()]));
    assert!(matches!(platform.remove(&web.id).await, Err(PlatformError::StillRunning(_))));
    platform.stop(&web.id).await.expect("it stops");
    assert_eq!(state(&platform).await, State::Stopping);
    assert!(state(&platform).await.is_over());
    platform.stop(&web.id).await.expect("fine if over");
    platform.remove(&web.id).await.expect("it is removed");
    platform.stop(&id("unknown")).await.expect("fine if unknown");

    let second = spec("app.web.1.a2", "serve");
    platform.start(&second).await.expect("it starts");
    memory.crash(&second.id);
    assert!(state(&platform).await.is_over());
}

#[tokio::test]
async fn a_build_writes_into_its_folder() {
    let (_, platform) = scripted();
    let folder = tempfile::tempdir().expect("a folder");
    let mut build = spec("app.build.1.a1", "make");
    build.labels.insert("type".to_owned(), "build".to_owned());
    build.code = Code::Folder { path: folder.path().to_owned() };
    platform.start(&build).await.expect("it starts");
    while !state(&platform).await.is_over() {}
    assert_eq!(std::fs::read_to_string(folder.path().join("out/file")).expect("a file"), "built");
}

#[tokio::test]
#[should_panic(expected = "started twice with different specifications")]
async fn another_specification_of_the_same_id_is_a_mistake() {
    let (_, platform) = scripted();
    platform.start(&spec("app.web.1.a1", "serve")).await.expect("it starts");
    let _ = platform.start(&spec("app.web.1.a1", "serve differently")).await;
}

#[tokio::test]
#[should_panic(expected = "an attempt has an id of its own")]
async fn an_id_is_not_used_again() {
    let (memory, platform) = scripted();
    let web = spec("app.web.1.a1", "serve");
    platform.start(&web).await.expect("it starts");
    memory.crash(&web.id);
    platform.remove(&web.id).await.expect("it is removed");
    let _ = platform.start(&web).await;
}

#[tokio::test]
async fn an_unpublished_slug_does_not_run() {
    let (memory, platform) = scripted();
    let mut web = spec("app.web.1.a1", "serve");
    let digest: crate::domain::SlugDigest = "a".repeat(64).parse().expect("a digest");
    web.code = Code::Slug(digest.clone());
    assert!(matches!(platform.start(&web).await, Err(PlatformError::NotPublished(_))));
    memory.pretend_published(&digest);
    platform.start(&web).await.expect("it starts");
}
