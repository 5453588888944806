//! Alerts, drains and exports, from what is seen of an app to whoever is told of it.

use crate::support::receiver::{SyslogReceiver, WebReceiver};
use crate::support::town::{Settled, Town};
use landfall::domain::{App, AppName, RuntimeCode, Scale, Secret, Wanted};
use landfall::outside::Outside;
use landfall::reconcile::{self, drains::Feeds};
use landfall::router::{AppNumbers, AppStatus, Code, Slot, TailLine};
use landfall::store::queue;
use serde_json::{Value, json};
use std::time::Duration;

fn app(name: &str) -> AppName {
    name.parse().expect("an app's name")
}

/// A town with staging up, whose alerts are told to the receiver.
async fn town(receiver: &WebReceiver, outside: Option<std::sync::Arc<Outside>>) -> Town {
    let url = format!("http://{}/hook/secret", receiver.address);
    let town = Town::start_with(outside, move |config| config.alerts.webhook = Some(Secret::new(url.clone()))).await;
    town.make_repository("hello", "one").await;
    town
}

/// The router counts so many answers of an app in this minute.
fn count(town: &Town, name: &str, requests: u64, errors: u64) {
    let now = town.world().now();
    let mut slot = Slot { at: now, requests, classes: [0, requests - errors, 0, 0, errors], ..Slot::default() };
    (0..requests).for_each(|_| slot.latency.record(Duration::from_millis(20)));
    let mut router = town.router.lock().expect("no holder panics");
    router.numbers.insert(app(name), AppNumbers { app: vec![slot], ..AppNumbers::default() });
    router.apps.insert(app(name), AppStatus { requests, last_request: Some(now), ..AppStatus::default() });
}

/// As many of its answers said that the app is under maintenance.
fn maintain(town: &Town, name: &str, told: u64) {
    let mut router = town.router.lock().expect("no holder panics");
    let numbers = router.numbers.get_mut(&app(name)).expect("something was counted");
    numbers.app[0].codes.insert(Code::H80, told);
}

/// Looks, as the monitor does every ten seconds, with so much time gone by.
async fn look_later(town: &Town, seconds: u64) {
    older(town, seconds).await;
    reconcile::Monitor::default().look(town.world()).await.expect("a look");
}

async fn older(town: &Town, seconds: u64) {
    let name = app("hello-staging");
    let world = town.world();
    // The clock is the machine's: what was seen before is made older instead.
    let by = Duration::from_secs(seconds);
    world
        .commit(move |tx| {
            if let Some(mut alerts) = tx.alerts(&name)? {
                for alert in alerts.kinds.values_mut() {
                    alert.over_since = alert.over_since.map(|since| since - by);
                    alert.calm_since = alert.calm_since.map(|since| since - by);
                }
                tx.put_alerts(&alerts)?;
            }
            Ok::<(), landfall::store::StoreError>(())
        })
        .await
        .expect("the store");
}

async fn alerts_of(town: &Town) -> Value {
    let url = format!("{}/api/v1/alerts", town.dashboard());
    let answer = town.client.get(url).send().await.expect("the API answers");
    answer.json::<Value>().await.expect("JSON")["alerts"].clone()
}

#[tokio::test]
async fn an_alert_is_told_once_when_it_fires_and_once_when_it_is_over() {
    let receiver = WebReceiver::start().await;
    let town = town(&receiver, None).await;
    town.settle().await;
    count(&town, "hello-staging", 200, 30);
    look_later(&town, 0).await;
    assert_eq!(alerts_of(&town).await, json!([]), "not before it was too high for a while");
    // The receiver fails at first; the post comes again.
    receiver.statuses.lock().unwrap().extend([500, 503]);
    look_later(&town, 61).await;
    town.settle().await;
    let posts = receiver.posted(3).await;
    assert_eq!(posts.len(), 3, "{posts:#?}");
    let keys: Vec<_> = posts.iter().map(|post| post.header("idempotency-key").map(str::to_owned)).collect();
    assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let told = posts[2].json();
    assert_eq!(told["text"], "[FIRING] hello-staging: 15.0 % of 200 answers in 5 minutes were errors (limit 10.0 %)");
    assert!(told["blocks"][0]["text"]["text"].as_str().unwrap().contains("/apps/hello-staging|hello-staging>*"));
    assert_eq!((&told["blocks"][0]["type"], &told["blocks"][1]["type"]), (&json!("section"), &json!("context")));
    let shown = alerts_of(&town).await;
    assert_eq!((&shown[0]["kind"], &shown[0]["state"]), (&json!("error_rate"), &json!("firing")));
    let page = town.client.get(town.dashboard()).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("15.0 % of 200 answers"), "{page}");

    // It goes on firing, and is not told again; then it is well for long enough.
    look_later(&town, 600).await;
    count(&town, "hello-staging", 200, 0);
    look_later(&town, 0).await;
    look_later(&town, 121).await;
    town.settle().await;
    let posts = receiver.posted(4).await;
    assert_eq!(posts[3].json()["text"], "[RESOLVED] hello-staging: errors are back to 0.0 %");
    assert_eq!(posts.len(), 4);
    assert_eq!(alerts_of(&town).await[0]["state"], "resolved");
    town.leave().await;
}

#[tokio::test]
async fn visitors_of_an_app_under_maintenance_are_no_errors_and_hide_none() {
    let receiver = WebReceiver::start().await;
    let town = town(&receiver, None).await;
    town.settle().await;
    count(&town, "hello-staging", 200, 190);
    maintain(&town, "hello-staging", 190);
    look_later(&town, 0).await;
    look_later(&town, 61).await;
    assert_eq!(alerts_of(&town).await, json!([]));
    maintain(&town, "hello-staging", 180);
    look_later(&town, 0).await;
    look_later(&town, 61).await;
    town.settle().await;
    let told = receiver.posted(1).await[0].json();
    assert_eq!(told["text"], "[FIRING] hello-staging: 50.0 % of 20 answers in 5 minutes were errors (limit 10.0 %)");
    town.leave().await;
}

type Change = fn(&mut App);

#[tokio::test]
async fn of_an_app_that_is_not_to_run_any_more_nobody_is_told_that_it_is_well_again() {
    let (errors, web) = ("its errors are no longer watched", "whether a web process answers is no longer watched");
    let scaled_down: Change = |app| {
        let none = Scale { quantity: 0, size: "basic".to_owned() };
        app.formation = Some([("web".to_owned(), none)].into());
    };
    let changes: [(Change, &[&str]); 3] = [
        (|app| app.wanted = Wanted::Held, &[errors, web]),
        (|app| app.asleep_since = Some(app.created_at), &[errors, web]),
        (scaled_down, &[web]),
    ];
    for (change, told) in changes {
        let receiver = WebReceiver::start().await;
        let town = town(&receiver, None).await;
        town.settle().await;
        count(&town, "hello-staging", 200, 190);
        let process = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
        town.router.lock().unwrap().health.insert(process, (false, "refused".to_owned()));
        look_later(&town, 0).await;
        look_later(&town, 61).await;
        town.settle().await;
        assert_eq!(receiver.posted(2).await.len(), 2, "both fire");
        let name = app("hello-staging");
        let changed = town.world().commit(move |tx| {
            let mut app = tx.app(&name)?.expect("it is there");
            change(&mut app);
            tx.put_app(&app)
        });
        changed.await.expect("the store");
        look_later(&town, 0).await;
        town.settle().await;
        let posts = receiver.posted(2 + told.len()).await;
        let texts: Vec<String> =
            posts[2..].iter().map(|post| post.json()["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(texts, told.iter().map(|text| format!("[RESOLVED] hello-staging: {text}")).collect::<Vec<_>>());
        town.leave().await;
    }
}

#[tokio::test]
async fn a_router_that_stays_silent_serves_nobody_and_that_is_told() {
    let receiver = WebReceiver::start().await;
    let town = town(&receiver, None).await;
    town.settle().await;
    town.router.lock().expect("no holder panics").silent = true;
    let mut monitor = reconcile::Monitor::default();
    let kinds = async || {
        let alerts = alerts_of(&town).await;
        let kinds = alerts.as_array().expect("a list").iter().map(|alert| alert["kind"].clone());
        kinds.collect::<Vec<Value>>()
    };
    for _ in 0..2 {
        monitor.look(town.world()).await.expect_err("it does not answer");
        assert_eq!(kinds().await, Vec::<Value>::new(), "it may only be busy");
    }
    monitor.look(town.world()).await.expect("by now that is news");
    older(&town, 61).await;
    monitor.look(town.world()).await.expect("a look");
    assert_eq!(kinds().await, [json!("no_healthy_process")]);
    town.router.lock().expect("no holder panics").silent = false;
    town.settle().await;
    assert!(receiver.posted(1).await[0].json()["text"].as_str().unwrap().starts_with("[FIRING] hello-staging: "));
    monitor.look(town.world()).await.expect("it answers");
    older(&town, 121).await;
    monitor.look(town.world()).await.expect("a look");
    assert_eq!(alerts_of(&town).await[0]["state"], "resolved");
    town.leave().await;
}

#[tokio::test]
async fn a_kill_around_an_alerts_post_loses_nothing_and_doubles_at_most_one() {
    for (crossing, most) in [("journal", 2), ("alert webhook", 1), ("alert webhook done", 2)] {
        let receiver = WebReceiver::start().await;
        let mut town = town(&receiver, None).await;
        town.settle().await;
        count(&town, "hello-staging", 200, 30);
        look_later(&town, 0).await;
        look_later(&town, 61).await;
        // The decision is on disk. From here on, stop at the first such crossing.
        town.kill().await;
        let outside = Outside::stopping_at(0);
        town.boot(Some(outside.clone())).await;
        let world = town.world().clone();
        let work = landfall::outside::watched(Some(outside.clone()), async {
            while queue::next_due(&world.store).unwrap().is_some_and(|due| due <= world.now()) {
                if outside.names().last() == Some(&crossing) {
                    return;
                }
                outside.stop_before(crossing);
                reconcile::step(&world).await.expect("the store answers");
            }
        });
        tokio::select! {
            () = work => {}
            () = outside.stop() => {}
        }
        assert!(outside.has_stopped(), "{crossing} was not crossed: {:?}", outside.names());
        drop(world);
        town.kill().await;
        town.boot(None).await;
        assert_eq!(town.settle().await, Settled::Quiet);
        let posts = receiver.posted(1).await;
        assert!((1..=most).contains(&posts.len()), "{crossing}: {posts:#?}");
        assert!(posts.iter().all(|post| post.header("idempotency-key") == posts[0].header("idempotency-key")));
        town.leave().await;
    }
}

#[tokio::test]
async fn an_app_without_a_healthy_process_and_one_that_crashes_call_somebody() {
    let receiver = WebReceiver::start().await;
    let town = town(&receiver, None).await;
    town.settle().await;
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    town.router.lock().unwrap().health.insert(web, (false, "refused".to_owned()));
    look_later(&town, 0).await;
    look_later(&town, 61).await;
    let kinds: Vec<Value> =
        alerts_of(&town).await.as_array().unwrap().iter().map(|line| line["kind"].clone()).collect();
    assert_eq!(kinds, ["no_healthy_process"]);
    town.settle().await;
    for _ in 0..3 {
        let running = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging."));
        town.memory.crash(&running.expect("it runs"));
        town.settle().await;
    }
    look_later(&town, 0).await;
    town.settle().await;
    let posts = receiver.posted(2).await;
    let texts: Vec<String> = posts.iter().map(|post| post.json()["text"].as_str().unwrap().to_owned()).collect();
    assert!(texts[0].contains("no web process has answered for 60 s"), "{texts:?}");
    assert!(texts[1].contains("web.1 crashed 3 times in a row"), "{texts:?}");
    let metrics = town.client.get(format!("{}/metrics", town.dashboard())).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("landfall_process_crashes_total{app=\"hello-staging\"} 3"), "{metrics}");
    town.leave().await;
}

#[tokio::test]
async fn lines_of_processes_requests_and_releases_are_drained() {
    let receiver = SyslogReceiver::start().await;
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    town.memory.say(&web, "before there was a drain");
    // A line of the same second as the drain may be its own.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let world = town.world();
    let api = town.dashboard();
    let order = |path: &str, body: Value| town.client.post(format!("{api}{path}")).json(&body).send();
    let address = format!("syslog://{}", receiver.address);
    let wish = json!({ "url": address, "app": "hello-staging" });
    let added = order("/api/v1/drains/add", wish).await.unwrap().json::<Value>().await.unwrap();
    let id = added["id"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned();
    let mut feed = Feeds::default();
    feed.step(world).await.expect("a step");

    town.memory.say(&web, "hello from the app\nwith a second line");
    let line = "2126-11-22T23:19:37Z landfall[router]: at=info method=GET path=\"/\" host=x dyno=web.1 status=200";
    town.router.lock().unwrap().lines = [(1, "hello-staging"), (1, "hello-production"), (4, "hello-staging")]
        .map(|(number, name)| TailLine { app: app(name), number, line: line.to_owned() })
        .into();
    town.push("olivia/hello", "main", "two").await;
    town.settle().await;
    feed.step(world).await.expect("a step");
    let said = receiver.receives("hello from the app").await;
    assert!(
        said.starts_with("<190>1 20") && said.contains("Z hello-staging app web.1 - - hello from the app with"),
        "{said}"
    );
    let request = receiver.receives("method=GET").await;
    assert!(
        request
            .ends_with(" hello-staging landfall router - - at=info method=GET path=\"/\" host=x dyno=web.1 status=200")
    );
    let release = receiver.receives("Release v2 created by a push").await;
    assert!(release.contains(" hello-staging landfall api - - "), "{release}");
    receiver.receives("State changed from starting to up").await;
    let lost = receiver.receives("Error L10").await;
    assert!(lost.contains("Error L10 (output buffer overflow): 2 messages dropped since 2126-"), "{lost}");
    let all = receiver.messages();
    assert!(!all.iter().any(|message| message.contains("before there was a drain")), "{all:#?}");
    assert_eq!(all.iter().filter(|message| message.contains("method=GET")).count(), 2, "one app's only: {all:#?}");

    let listed = town.client.get(format!("{api}/api/v1/drains")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!((&listed["drains"][0]["id"], &listed["drains"][0]["figures"]["dropped"]), (&json!(id), &json!(2)));
    for number in 0..5 {
        let wish = json!({ "url": format!("syslog://127.0.0.1:{}", 2000 + number), "app": "hello-staging" });
        let taken = order("/api/v1/drains/add", wish).await.unwrap().status().is_success();
        assert_eq!(taken, number < 4, "one app has five drains at most");
    }
    let refused = order("/api/v1/drains/add", json!({ "url": "file:///etc/passwd" })).await.unwrap();
    assert_eq!(refused.status().as_u16(), 409);
    assert!(order(&format!("/api/v1/drains/{id}/remove"), json!({})).await.unwrap().status().is_success());
    feed.step(world).await.expect("a step");
    town.memory.say(&web, "after it");
    feed.step(world).await.expect("a step");
    assert!(!world.drains.figures().contains_key(&id));
    town.leave().await;
}

#[tokio::test]
async fn a_drain_that_takes_nothing_holds_up_nobody() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let (world, mut feed) = (town.world(), Feeds::default());
    let address = format!("syslog://{}", silent.local_addr().unwrap());
    reconcile::drains::add(world, &address, None, "olivia").await.unwrap().unwrap();
    feed.step(world).await.expect("a step");
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    let healthy = SyslogReceiver::start().await;
    reconcile::drains::add(world, &format!("syslog://{}", healthy.address), None, "olivia").await.unwrap().unwrap();
    let text = "x".repeat(2_000);
    let began = std::time::Instant::now();
    (0..8_000).for_each(|_| town.memory.say(&web, &text));
    town.memory.say(&web, "the last line");
    while !healthy.messages().last().is_some_and(|message| message.ends_with("the last line")) {
        feed.step(world).await.expect("a step");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", world.drains.figures());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // 16 MB came. What waits is bounded; the rest stays where it is kept anyway.
    let figures: Vec<_> = world.drains.figures().into_values().collect();
    assert!(figures.iter().all(|figures| figures.waiting <= 5_000 && figures.dropped == 0), "{figures:?}");
    assert!(figures.iter().any(|figures| figures.sent > 8_000), "{figures:?}");
    town.leave().await;
}

#[tokio::test]
async fn after_a_restart_no_drain_gets_again_what_it_has_and_none_loses_what_waited() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let late = nobody.local_addr().unwrap();
    drop(nobody);
    let healthy = SyslogReceiver::start().await;
    let mut town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (path, mut feeds) = (folder.path().join("feeds.json"), Feeds::default());
    for address in [healthy.address, late] {
        let address = format!("syslog://{address}");
        reconcile::drains::add(town.world(), &address, None, "olivia").await.unwrap().unwrap();
    }
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    (0..50).for_each(|number| town.memory.say(&web, &format!("line {number} of before")));
    feeds.step(town.world()).await.expect("a step");
    healthy.receives("line 49 of before").await;
    // What was sent is known a moment after it came.
    while !town.world().drains.figures().values().any(|figures| figures.sent >= 50) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    feeds.step(town.world()).await.expect("a step");
    feeds.write(&path).await.expect("it is written");
    town.kill().await;
    town.boot(None).await;
    let back = SyslogReceiver::at(late).await;
    let mut feeds = Feeds::open(path).await;
    town.memory.say(&web, "a line of after");
    feeds.step(town.world()).await.expect("a step");
    for receiver in [&healthy, &back] {
        receiver.receives("a line of after").await;
        let before = receiver.messages().iter().filter(|message| message.contains(" of before")).count();
        assert_eq!(before, 50, "{:#?}", receiver.messages());
    }
    town.leave().await;
}

#[tokio::test]
async fn how_a_process_ended_is_drained_and_stands_in_the_log_even_if_it_lived_for_a_moment() {
    let receiver = SyslogReceiver::start().await;
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let (world, mut feeds) = (town.world(), Feeds::default());
    reconcile::drains::add(world, &format!("syslog://{}", receiver.address), None, "olivia").await.unwrap().unwrap();
    feeds.step(world).await.expect("a step");
    let first = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    town.memory.say(&first, "first life");
    town.memory.crash(&first);
    town.settle().await;
    let second = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    assert_ne!(first, second, "it was started anew");
    town.memory.say(&second, "second life");
    town.memory.crash(&second);
    town.settle().await;
    // Nobody has looked in between: the second one was never seen while it lived.
    feeds.step(world).await.expect("a step");
    receiver.receives("second life").await;
    let ends = || receiver.messages().iter().filter(|message| message.contains("Process exited with status 1")).count();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while ends() < 2 && std::time::Instant::now() < deadline {
        feeds.step(world).await.expect("a step");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = receiver.messages();
    let order: Vec<&str> = ["first life", "Process exited", "second life", "Process exited"].into();
    let seen: Vec<&String> = told
        .iter()
        .filter(|message| message.contains("hello-staging") && order.iter().any(|text| message.contains(text)))
        .collect();
    assert!(seen.len() == 4 && seen.iter().zip(&order).all(|(message, text)| message.contains(text)), "{told:#?}");
    let log = town.client.get(format!("{}/api/v1/apps/hello-staging/logs", town.dashboard())).send().await.unwrap();
    let log = log.text().await.unwrap();
    assert_eq!(log.matches("Process exited with status 1").count(), 2, "{log}");
    town.leave().await;
}

#[tokio::test]
async fn numbers_go_to_the_collector_in_opentelemetrys_form() {
    let receiver = WebReceiver::start().await;
    let town = Town::start_with(None, |config| {
        config.otlp.headers = [("x-key".to_owned(), Secret::new("open"))].into();
    })
    .await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    count(&town, "hello-staging", 3, 1);
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    town.memory.trouble(&web, RuntimeCode::R14);
    reconcile::Monitor::default().look(town.world()).await.expect("a look");
    let endpoint = format!("http://{}/v1/metrics", receiver.address);
    reconcile::export_once(town.world(), &endpoint).await.expect("it is taken");
    let post = receiver.posted(1).await.remove(0);
    assert!(post.head.starts_with("post /v1/metrics ") && post.header("content-type") == Some("application/json"));
    assert_eq!(post.header("x-key"), Some("open"));
    let body = post.json();
    let metrics = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().expect("metrics").clone();
    let find = |name: &str| metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let requests = &find("landfall_router_requests")["sum"];
    assert_eq!((&requests["isMonotonic"], &requests["aggregationTemporality"]), (&json!(true), &json!(2)));
    let of_staging = |points: &Value| {
        let points = points.as_array().expect("points").clone();
        let staging = json!({ "key": "app", "value": { "stringValue": "hello-staging" } });
        points.into_iter().find(|point| point["attributes"].as_array().unwrap().contains(&staging)).expect("a point")
    };
    assert_eq!(of_staging(&requests["dataPoints"])["asDouble"], 3.0);
    assert_eq!(of_staging(&find("landfall_process_codes")["sum"]["dataPoints"])["asDouble"], 1.0);
    receiver.statuses.lock().unwrap().push_back(503);
    assert!(reconcile::export_once(town.world(), &endpoint).await.is_err());
    town.leave().await;
}

#[tokio::test]
async fn numbers_of_processes_are_on_the_page_and_outlive_a_restart() {
    let mut town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let web = town.memory.running().into_iter().find(|id| id.as_str().starts_with("hello-staging.")).unwrap();
    town.memory.trouble(&web, RuntimeCode::R14);
    town.memory.trouble(&web, RuntimeCode::R14);
    count(&town, "hello-staging", 40, 2);
    reconcile::Monitor::default().look(town.world()).await.expect("a look");
    reconcile::keep_numbers(town.world()).await.expect("they are written");
    town.kill().await;
    town.boot(None).await;
    for resolution in ["minute", "ten_minutes", "hour"] {
        let url = format!("{}/api/v1/apps/hello-staging/metrics?resolution={resolution}", town.dashboard());
        let metrics = town.client.get(url).send().await.unwrap().json::<Value>().await.unwrap();
        let slots = metrics["slots"].as_array().expect("slots");
        let codes: u64 = slots.iter().filter_map(|slot| slot["codes"]["R14"].as_u64()).sum();
        assert_eq!(codes, 2, "{resolution}: {metrics}");
        assert_eq!(metrics["events"][0]["what"], "deploy", "{metrics}");
        assert_eq!(slots.iter().filter_map(|slot| slot["s5xx"].as_u64()).sum::<u64>(), 2);
        let times: Vec<f64> = slots.iter().filter_map(|slot| slot["p95_ms"].as_f64()).collect();
        assert!(times.len() == 1 && (20.0..=22.5).contains(&times[0]), "{times:?}");
    }
    let page = town.client.get(format!("{}/apps/hello-staging/metrics", town.dashboard())).send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("<svg viewBox") && page.contains("<polyline") && page.contains("R14"), "{page}");
    town.leave().await;
}
