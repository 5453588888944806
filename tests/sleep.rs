//! Review apps that nobody uses sleep, and wake with the first request.

use crate::support::machine::{Machine, greeting, probe};
use crate::support::town::Town;
use landfall::clock::Timestamp;
use landfall::domain::{AppName, Outcome, Subject};
use landfall::reconcile;
use landfall::router::{AppStatus, Route};
use std::time::Duration;

fn name(app: &str) -> AppName {
    app.parse().expect("an app's name")
}

fn route(town: &Town, app: &str) -> Route {
    town.router.lock().expect("no holder panics").tables.last().expect("a table").apps[&name(app)].clone()
}

fn running(town: &Town, app: &str) -> usize {
    town.memory.running().iter().filter(|id| id.as_str().starts_with(app)).count()
}

/// The app went live an hour ago, and nobody has used it since.
pub(crate) async fn leave_alone(town: &Town, app: &str) {
    let name = name(app);
    let seen = AppStatus { last_request: Some(Timestamp(1)), ..AppStatus::default() };
    town.router.lock().expect("no holder panics").apps.insert(name.clone(), seen);
    let world = town.world();
    let long_ago = world.now() - Duration::from_secs(3600);
    world
        .store
        .transact(move |tx| {
            let mut app = tx.app(&name)?.expect("the app");
            for deploy in &mut app.deploys {
                deploy.outcome = Some(Outcome::Live { at: long_ago });
            }
            tx.put_app(&app)
        })
        .await
        .expect("the store answers");
    reconcile::slow_tick(world).await.expect("the slow tick works");
    town.settle().await;
}

#[actix_web::test]
async fn a_review_app_sleeps_when_nobody_uses_it_and_wakes_with_the_first_request() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let comment = town.comment(&pull).await;

    leave_alone(&town, "hello-staging").await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"), "staging never sleeps unless told");

    leave_alone(&town, "hello-pr-1").await;
    assert!(route(&town, "hello-pr-1").asleep);
    assert_eq!((running(&town, "hello-pr-1"), town.served("hello-pr-1")), (0, None));
    assert_eq!(town.comment(&pull).await, comment, "that it sleeps is nobody's trouble");

    // What the router says when somebody knocks, and what its knock makes the control plane do.
    let knocked = AppStatus { knocked: true, held: 1, last_request: Some(town.world().now()), ..AppStatus::default() };
    town.router.lock().expect("no holder panics").apps.insert(name("hello-pr-1"), knocked);
    town.world().enqueue_subject(&Subject::App(name("hello-pr-1"))).await.expect("the store answers");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert!(!route(&town, "hello-pr-1").asleep);

    // A sleeping app goes like any other.
    leave_alone_again(&town).await;
    town.close(&pull).await;
    town.settle().await;
    assert!(!town.router.lock().unwrap().tables.last().unwrap().apps.contains_key(&name("hello-pr-1")));
    town.leave().await;
}

/// As if the wake was an hour ago as well.
async fn leave_alone_again(town: &Town) {
    let world = town.world();
    let long_ago = world.now() - Duration::from_secs(3600);
    let app = name("hello-pr-1");
    world
        .store
        .transact(move |tx| {
            let mut app = tx.app(&app)?.expect("the app");
            app.woken_at = Some(long_ago);
            tx.put_app(&app)
        })
        .await
        .expect("the store answers");
    leave_alone(town, "hello-pr-1").await;
    assert!(route(town, "hello-pr-1").asleep);
}

#[actix_web::test]
async fn a_push_to_a_sleeping_review_app_wakes_it_with_the_new_release() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    leave_alone(&town, "hello-pr-1").await;
    assert!(route(&town, "hello-pr-1").asleep);
    town.push(&repository, "change", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!(running(&town, "hello-pr-1"), 1);
    town.leave().await;
}

#[actix_web::test]
async fn what_the_code_says_of_its_web_processes_reaches_the_router() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let settings = "[web]\nhealth = \"/healthz\"\nhealth_interval = \"10s\"\nwarmup = [\"/\", \"/slow\"]\nsleep_after = \"never\"\n";
    let files = serde_json::json!({
        "Procfile": "web: serve\nrelease: migrate\n", "page.txt": "two", ".github/landfall.toml": settings,
    });
    town.push_files(&repository, "change", files).await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let target = route(&town, "hello-pr-1").targets[0].clone();
    assert_eq!((target.health_path.as_str(), target.health_tcp), ("/healthz", false));
    assert_eq!((target.health_seconds, target.warmup), (Some(10), vec!["/".to_owned(), "/slow".to_owned()]));
    let plain = route(&town, "hello-staging").targets[0].clone();
    assert_eq!((plain.health_path.as_str(), plain.health_seconds, plain.warmup.len()), ("/", None, 0));
    leave_alone(&town, "hello-pr-1").await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"), "it shall never sleep");
    town.leave().await;
}

/// With the program itself: a minute passes, the processes end, and one request is enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_to_an_app_that_sleeps_is_held_until_it_is_answered() {
    let machine = Machine::with("[apps]\nsleep_minutes = 1").await;
    let repository = machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    machine.push(&repository, "change", &greeting("Welcome"), "Greet more warmly").await;
    machine.open_pull(&repository, "change", "Greet more warmly").await;
    let before = machine.serves("hello-pr-1", "Welcome, world!").await;
    let sleeps = async {
        loop {
            let answer = machine.api("/api/v1/apps/hello-pr-1/processes").await.expect("the API answers");
            let all = answer["processes"].as_array().expect("a list");
            if all.iter().all(|process| process["state"] == "exited") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), sleeps).await.expect("nobody uses it");
    let first = machine.visit("hello-pr-1", "/").await.expect("the router answers");
    assert!(first.status == 200 && first.body.contains("Welcome, world!"), "{first:?}");
    assert_ne!(first.boot, before.boot, "it never slept");
    machine.leave().await;
}
