//! Log pages and cursors.

use super::house::House;
use crate::platform::{LogLine, LogStream};
use crate::reconcile::log_file;
use crate::web::logs::{Cursor, of_app, of_process};

fn texts(page: &crate::web::logs::Page) -> Vec<&str> {
    page.lines.iter().map(|line| line.text.as_str()).collect()
}

async fn keep(house: &House, id: &crate::domain::ProcessId, lines: &[&str]) {
    let mut text = String::new();
    for line in lines {
        let line = LogLine { at: house.world().now(), stream: LogStream::Out, text: (*line).to_owned() };
        text.push_str(&serde_json::to_string(&line).unwrap());
        text.push('\n');
    }
    tokio::fs::write(log_file(house.world(), id), text).await.unwrap();
}

fn labels(app: &str) -> [(&str, &str); 5] {
    [("app", app), ("release", "v1"), ("type", "web"), ("ordinal", "1"), ("attempt", "1")]
}

#[tokio::test]
async fn every_line_is_told_once_although_its_process_goes() {
    let house = House::empty();
    let app = "hello".parse().unwrap();
    let first = house.start("hello.v1.web.1.a1", &labels("hello"));
    let other = house.start("hello-two.v1.web.1.a1", &labels("hello-two"));
    house.platform.say(&first, "one");
    house.platform.say(&first, "two");
    house.platform.say(&other, "not of this app");
    let page = of_app(house.world(), &app, None, 100).await.unwrap();
    assert_eq!(texts(&page), ["one", "two"]);
    assert_eq!(page.lines[0].process, "web.1");

    house.platform.say(&first, "three");
    let page = of_app(house.world(), &app, Some(Cursor::read(&page.next).unwrap()), 100).await.unwrap();
    assert_eq!(texts(&page), ["three"]);

    // Between two visits it prints, crashes, and is discarded; another process came and went.
    house.platform.say(&first, "four");
    house.world().platform.list().await.unwrap();
    house.world().platform.list().await.unwrap();
    house.platform.crash(&first);
    keep(&house, &first, &["one", "two", "three", "four"]).await;
    house.world().platform.remove(&first).await.unwrap();
    keep(&house, &"hello.v2.release.1.a1".parse().unwrap(), &["migrated"]).await;
    let page = of_app(house.world(), &app, Some(Cursor::read(&page.next).unwrap()), 100).await.unwrap();
    let mut seen = texts(&page);
    seen.sort_unstable();
    assert_eq!(seen, ["four", "migrated"]);
    for _ in 0..2 {
        let page = of_app(house.world(), &app, Some(Cursor::read(&page.next).unwrap()), 100).await.unwrap();
        assert_eq!(texts(&page), [""; 0], "told twice");
    }
    let page = of_app(house.world(), &app, None, 2).await.unwrap();
    assert_eq!(page.lines.len(), 2, "the first look is bounded");
    let nobody = of_app(house.world(), &"nobody".parse().unwrap(), None, 100).await.unwrap();
    assert!(nobody.lines.is_empty());
}

#[tokio::test]
async fn one_process_is_followed_to_its_end() {
    let house = House::empty();
    let id = "run-7.test.0.a1".parse().unwrap();
    let before = of_process(house.world(), &id, None, 10).await.unwrap();
    assert!(before.lines.is_empty() && !before.ended, "it may be about to start");
    let id = house.start("run-7.test.0.a1", &[("run", "7")]);
    house.platform.say(&id, "ok 1");
    let page = of_process(house.world(), &id, Some(Cursor::read(&before.next).unwrap()), 10).await.unwrap();
    assert_eq!((texts(&page), page.ended), (vec!["ok 1"], false));
    house.platform.say(&id, "ok 2");
    house.world().platform.list().await.unwrap();
    house.world().platform.list().await.unwrap();
    house.platform.crash(&id);
    keep(&house, &id, &["ok 1", "ok 2"]).await;
    house.world().platform.remove(&id).await.unwrap();
    let page = of_process(house.world(), &id, Some(Cursor::read(&page.next).unwrap()), 10).await.unwrap();
    assert_eq!((texts(&page), page.ended), (vec!["ok 2"], true));
    let page = of_process(house.world(), &id, None, 1).await.unwrap();
    assert_eq!((texts(&page), page.dropped, page.ended), (vec!["ok 2"], 1, true));
}

#[tokio::test]
async fn a_log_is_read_from_its_first_line_page_by_page_and_tells_of_what_is_not_kept() {
    let house = House::empty();
    let id = house.start("run-7.test.0.a1", &[("run", "7")]);
    for text in ["one", "two", "three"] {
        house.platform.say(&id, text);
    }
    let page = of_process(house.world(), &id, Some(Cursor::default()), 2).await.unwrap();
    assert_eq!((texts(&page), page.ended), (vec!["one", "two"], false));
    let page = of_process(house.world(), &id, Some(Cursor::read(&page.next).unwrap()), 2).await.unwrap();
    assert_eq!(texts(&page), ["three"]);

    // Of one that is gone the middle is not kept.
    let gone = "run-8.test.0.a1".parse().unwrap();
    let line = |number: u64| format!("{{\"at\":1,\"stream\":\"out\",\"text\":\"{number}\",\"number\":{number}}}\n");
    let kept: String = [0, 1, 9, 10].map(line).concat();
    tokio::fs::write(log_file(house.world(), &gone), kept).await.unwrap();
    let page = of_process(house.world(), &gone, Some(Cursor::default()), 3).await.unwrap();
    assert_eq!((texts(&page), page.dropped, page.ended), (vec!["0", "1", "9"], 7, false));
    let page = of_process(house.world(), &gone, Some(Cursor::read(&page.next).unwrap()), 3).await.unwrap();
    assert_eq!((texts(&page), page.dropped, page.ended), (vec!["10"], 0, true));
}
