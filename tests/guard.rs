//! New releases that are worse than the one before them, told as people see it.

use crate::support::town::{OWNER, Pull, Town, UNBUILDABLE};
use landfall::clock::Timestamp;
use landfall::domain::{App, AppName, Cause, Failure, Finding, Outcome, Phase, ReleaseNumber};
use landfall::reconcile;
use landfall::router::{AppNumbers, Canary, Slot};

fn name(app: &str) -> AppName {
    app.parse().expect("an app's name")
}

/// The router has counted so many requests of a release, and so many that failed.
fn count(town: &Town, app: &str, release: &str, requests: u64, errors: u64) {
    let slot =
        Slot { at: Timestamp(60_000), requests, classes: [0, requests - errors, 0, 0, errors], ..Slot::default() };
    let mut router = town.router.lock().expect("no holder panics");
    let numbers: &mut AppNumbers = router.numbers.entry(name(app)).or_default();
    numbers.processes.insert(format!("{release}/web.1"), vec![slot]);
}

async fn change(town: &Town, app: &str, change: impl FnOnce(&mut App) + Send + 'static) {
    let name = name(app);
    let change = move |tx: &mut landfall::store::Transaction<'_>| {
        let mut app = tx.app(&name)?.expect("the app");
        change(&mut app);
        tx.put_app(&app)
    };
    town.world().store.transact(change).await.expect("the store answers");
}

async fn look(town: &Town) {
    reconcile::slow_tick(town.world()).await.expect("the slow tick works");
    town.settle().await;
}

fn canary(town: &Town, app: &str) -> Option<Canary> {
    town.router.lock().expect("no holder panics").tables.last().expect("a table").apps[&name(app)].canary.clone()
}

#[actix_web::test]
async fn a_release_that_fails_more_often_is_gone_back_from_and_github_is_told() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let good = town.head(&repository, "main").await;
    count(&town, "hello-staging", "v1", 1_000, 2);
    let bad = town.push(&repository, "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));

    // As good as before: nothing happens.
    count(&town, "hello-staging", "v2", 400, 1);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));

    count(&town, "hello-staging", "v2", 500, 60);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    let deployments = town.deployments(&repository, "staging").await;
    assert_eq!(deployments[0], (good, "success".to_owned()));
    assert_eq!(deployments[1], (bad, "failure".to_owned()));
    let app = town.world().store.app(&name("hello-staging")).unwrap().unwrap();
    let [.., failed, back] = app.deploys.as_slice() else { panic!("{:?}", app.deploys) };
    assert_eq!(back.cause, Cause::Rollback { to: ReleaseNumber(1), guard: Some(ReleaseNumber(2)) });
    let Some(Outcome::Failed { failure: Failure::Worse { finding, canary: false, .. }, .. }) = &failed.outcome else {
        panic!("{failed:?}")
    };
    let expected = Finding::Errors { errors: 60, requests: 500, before_errors: 2, before_requests: 1_000 };
    assert_eq!(*finding, expected);

    // What was gone back to is not watched: whatever is counted of it, it stays.
    count(&town, "hello-staging", "v3", 500, 400);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.world().store.app(&name("hello-staging")).unwrap().unwrap().last_release, 3);

    // The next push is served as ever.
    town.push(&repository, "main", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    town.leave().await;
}

#[actix_web::test]
async fn a_release_is_gone_back_from_though_a_newer_push_could_not_be_built() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    count(&town, "hello-staging", "v1", 1_000, 2);
    town.push(&repository, "main", "two").await;
    town.settle().await;
    town.push(&repository, "main", UNBUILDABLE).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    count(&town, "hello-staging", "v2", 500, 60);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    let app = town.world().store.app(&name("hello-staging")).unwrap().unwrap();
    let [.., worse, unbuilt, back] = app.deploys.as_slice() else { panic!("{:?}", app.deploys) };
    assert!(matches!(&worse.outcome, Some(Outcome::Failed { failure: Failure::Worse { .. }, .. })), "{worse:?}");
    assert_eq!((worse.number, unbuilt.number, back.number), (2, 3, 4));
    assert_eq!(back.cause, Cause::Rollback { to: ReleaseNumber(1), guard: Some(ReleaseNumber(2)) });
    town.leave().await;
}

#[actix_web::test]
async fn what_came_while_a_release_was_watched_is_judged_however_late_and_nothing_else() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    count(&town, "hello-staging", "v1", 1_000, 2);
    town.push(&repository, "main", "two").await;
    town.settle().await;
    // What is counted here stands at 60 s.
    let until = |until: i64| {
        change(&town, "hello-staging", move |app| app.watch.as_mut().expect("a watch").until = Timestamp(until))
    };
    until(60_000).await;
    count(&town, "hello-staging", "v2", 500, 60);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    assert_eq!(town.world().store.app(&name("hello-staging")).unwrap().unwrap().watch, None);

    count(&town, "hello-staging", "v2", 1_000, 2);
    town.push(&repository, "main", "three").await;
    town.settle().await;
    until(60_001).await;
    count(&town, "hello-staging", "v3", 500, 60);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_repository_may_switch_the_guard_off() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let settings = serde_json::json!({ ".github/landfall.toml": "[web]\nguard = \"off\"\n" });
    town.push_files(&repository, "main", settings).await;
    town.settle().await;
    count(&town, "hello-staging", "v1", 1_000, 0);
    count(&town, "hello-staging", "v2", 1_000, 0);
    town.push(&repository, "main", "two").await;
    town.settle().await;
    count(&town, "hello-staging", "v3", 500, 400);
    look(&town).await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

/// Production serves `one`; staging has `two`, which a pull request brought.
async fn two_on_staging(town: &Town) -> Pull {
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "first", "one").await;
    let pull = town.open_pull(&repository, "first", "Say one").await;
    town.settle().await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("one"));
    count(town, "hello-production", "v1", 1_000, 0);
    town.push(&repository, "second", "two").await;
    let pull = town.open_pull(&repository, "second", "Say two").await;
    town.settle().await;
    town.merge(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    pull
}

#[actix_web::test]
async fn a_canary_gets_its_share_first_and_then_all() {
    let town = Town::start().await;
    let pull = two_on_staging(&town).await;
    town.say(&pull, "/promote --canary 10% --for 10m", OWNER).await;
    town.settle().await;
    let share = Some(Canary { release: "v2".to_owned(), percent: 10 });
    assert_eq!(canary(&town, "hello-production"), share);
    count(&town, "hello-production", "v2", 100, 0);
    look(&town).await;
    assert_eq!(canary(&town, "hello-production"), share, "its time is not over");
    let app = town.world().store.app(&name("hello-production")).unwrap().unwrap();
    assert_eq!(app.live, Some(ReleaseNumber(1)));
    assert_eq!(app.phase(app.newest().unwrap()), Phase::Canary);
    let page = town.client.get(format!("{}/apps/hello-production", town.dashboard())).send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains(">Canary<") && page.contains("has 10 % of the requests until"), "{page}");

    let over = town.world().now();
    change(&town, "hello-production", move |app| app.canary.as_mut().expect("a watch").until = over).await;
    look(&town).await;
    assert_eq!(canary(&town, "hello-production"), None);
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    let app = town.world().store.app(&name("hello-production")).unwrap().unwrap();
    let watch = app.watch.expect("what has all requests now is watched on");
    assert_eq!((watch.release, watch.percent), (ReleaseNumber(2), None));
    town.leave().await;
}

#[actix_web::test]
async fn a_canary_that_fails_more_often_is_taken_back_and_the_thread_says_what_was_measured() {
    let town = Town::start().await;
    let pull = two_on_staging(&town).await;
    town.say(&pull, "/promote --canary 25%", OWNER).await;
    town.settle().await;
    assert!(canary(&town, "hello-production").is_some_and(|canary| canary.percent == 25));
    count(&town, "hello-production", "v2", 40, 12);
    look(&town).await;
    assert_eq!(canary(&town, "hello-production"), None);
    assert_eq!(town.served("hello-production").as_deref(), Some("one"));
    let running: Vec<_> =
        town.memory.running().into_iter().filter(|id| id.as_str().contains("-production.v2.")).collect();
    assert_eq!(running, [], "nothing of the canary runs on");
    let comment = town.comment(&pull).await;
    let measured = "v2 was clearly worse than v1: 12 of its 40 requests failed (5xx), against 0 of 1000.";
    assert!(comment.contains(measured), "{comment}");
    assert_eq!(town.deployments(&pull.repository, "production").await[0].1, "failure");
    town.leave().await;
}
