//! What people see, told as they tell it.

use crate::support::schemas::CheckingProxy;
use crate::support::town::{FAILING, FAILING_MIGRATION, OWNER, Settled, Town, UNBUILDABLE, UNHEALTHY};
use serde_json::json;

#[actix_web::test]
async fn a_pull_request_lives_from_its_opening_to_production() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    assert_eq!(town.settle().await, Settled::Quiet);
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));

    let commit = town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let comment = town.comment(&pull).await;
    assert!(comment.contains("http://hello-pr-1.localhost/"), "{comment}");
    assert_eq!(town.checks(&repository, &commit).await[0].0, "success");
    assert_eq!(town.deployments(&repository, "review/pr-1").await, [(commit.clone(), "success".to_owned())]);

    let broken = town.push(&repository, "change", FAILING).await;
    town.settle().await;
    let (conclusion, title, summary) = town.checks(&repository, &broken).await.remove(0);
    assert_eq!((conclusion.as_str(), title.as_str()), ("failure", "3 passed, 1 failed on 2 nodes"));
    assert!(summary.contains("greets by name") && summary.contains("it said nothing"), "{summary}");
    assert_eq!(town.deployments(&repository, "review/pr-1").await[1], (commit, "inactive".to_owned()));

    town.push(&repository, "change", "three").await;
    town.settle().await;
    let merge = town.merge(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    assert_eq!(town.served("hello-pr-1"), None);
    assert_eq!(town.served("hello-production"), None);

    let command = town.say(&pull, "Looks fine.\n\n/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("three"));
    assert_eq!(town.reactions(&repository, command).await, ["eyes", "rocket"]);
    assert_eq!(town.deployments(&repository, "production").await, [(merge, "success".to_owned())]);
    let builds = town.world().store.builds().unwrap();
    assert_eq!(builds.len(), 4, "one build for each tree, none for the merge or the promotion");
    town.leave().await;
}

#[actix_web::test]
async fn what_fails_before_the_switch_leaves_the_live_release_serving_and_says_why() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    for (page, expected) in [
        (UNBUILDABLE, "The build ended with status 1."),
        (FAILING_MIGRATION, "The release phase ended with status 1, so nothing of what serves was touched."),
        (UNHEALTHY, "web.1 did not answer its health check on $PORT within 2 s (R10)."),
    ] {
        let commit = town.push(&repository, "change", page).await;
        town.settle().await;
        assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"), "after {page}");
        let comment = town.comment(&pull).await;
        assert!(comment.contains(expected), "{comment}");
        assert_eq!(town.deployments(&repository, "review/pr-1").await[0], (commit, "failure".to_owned()));
    }
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(town.memory.running().iter().filter(|id| id.as_str().contains("-pr-")).count(), 0);
    town.leave().await;
}

#[actix_web::test]
async fn red_master_is_not_deployed() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let commit = town.push(&repository, "main", FAILING).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.deployments(&repository, "staging").await[0], (commit, "failure".to_owned()));
    town.leave().await;
}

#[actix_web::test]
async fn a_stranger_can_neither_run_code_nor_promote() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let user = |name: &str| serde_json::json!({ "name": name });
    town.control("POST", "/_/user", Some(user("mallory"))).await;
    let fork = serde_json::json!({ "repo": repository, "user": "mallory" });
    town.control("POST", "/_/fork", Some(fork)).await;
    let push = serde_json::json!({
        "repo": "mallory/hello", "branch": "evil", "user": "mallory", "message": "x", "files": { "page.txt": "evil" },
    });
    town.control("POST", "/_/push", Some(push)).await;
    let open = serde_json::json!({
        "repo": repository, "title": "Trust me", "head": "evil", "head_repo": "mallory/hello", "user": "mallory",
    });
    let number = town.control("POST", "/_/pull", Some(open)).await["number"].as_u64().unwrap();
    town.settle().await;
    let pull = crate::support::town::Pull { repository: repository.clone(), number };
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Held"), "{comment}");
    assert_eq!(town.served("hello-pr-1"), None);
    assert_eq!(town.world().store.builds().unwrap().len(), 1, "only main was built");

    let command = town.say(&pull, "/promote", "mallory").await;
    town.settle().await;
    assert_eq!(town.reactions(&repository, command).await, ["-1", "eyes"]);
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("This needs write access"), "{comment}");
    town.leave().await;
}

#[actix_web::test]
async fn a_reopened_pull_request_gets_its_app_back() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert!(town.world().store.app(&"hello-pr-1".parse().unwrap()).unwrap().is_none());
    assert!(town.deployments(&repository, "review/pr-1").await.iter().all(|(_, state)| state == "inactive"));
    town.reopen(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.comment(&pull).await;
    town.leave().await;
}

#[actix_web::test]
async fn every_request_of_the_story_is_one_that_github_describes() {
    let town = Town::start_behind(
        |url| async move {
            let proxy = CheckingProxy::start(&url).await;
            let address = proxy.url().to_owned();
            PROXY.set(proxy).ok().expect("one proxy");
            address
        },
        None,
    )
    .await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.push(&repository, "change", FAILING).await;
    town.settle().await;
    town.push(&repository, "change", "three").await;
    town.settle().await;
    town.merge(&pull).await;
    town.settle().await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    landfall::reconcile::resync(town.world()).await.expect("GitHub can be asked");
    assert_eq!(town.served("hello-production").as_deref(), Some("three"));
    let proxy = PROXY.get().expect("the proxy was started");
    assert_eq!(proxy.complaints(), Vec::<String>::new());
    let judged = proxy.judged();
    for operation in ["comments", "check-runs", "statuses", "deployments", "reactions", "permission", "deliveries"] {
        assert!(judged.iter().any(|call| call.contains(operation)), "no {operation} among {judged:?}");
    }
    town.leave().await;
}

static PROXY: std::sync::OnceLock<CheckingProxy> = std::sync::OnceLock::new();

#[actix_web::test]
async fn an_app_that_is_taken_off_leaves_staging_alone_and_comes_back_where_it_was() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));

    town.control("POST", "/_/uninstall", Some(json!({ "owner": OWNER }))).await;
    assert_eq!(town.settle().await, Settled::Quiet);
    assert_eq!(town.served("hello-pr-1"), None);
    assert!(town.world().store.app(&"hello-pr-1".parse().unwrap()).unwrap().is_none(), "nothing waits for GitHub");
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));

    // While nobody listens, the pull request goes on.
    town.push(&repository, "change", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);

    town.control("POST", "/_/install", Some(json!({ "owner": OWNER }))).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!(town.comments(&pull).await.len(), 1);
    town.leave().await;
}

#[actix_web::test]
async fn a_repository_that_is_added_to_the_installation_is_looked_at_and_one_that_vanishes_is_let_go() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let select = |selected: bool| json!({ "repo": repository, "selected": selected });
    town.control("POST", "/_/select", Some(select(false))).await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.comments(&pull).await, Vec::<String>::new());
    town.control("POST", "/_/select", Some(select(true))).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!(town.comments(&pull).await.len(), 1);

    // Deleted, and nobody hears of it: an answer that may be out of order ends nothing.
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost" }))).await;
    town.control("POST", "/_/delete", Some(json!({ "repo": repository }))).await;
    landfall::reconcile::resync(town.world()).await.expect("GitHub can be asked");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let known = town.world().store.repositories().unwrap().remove(0);
    assert!(known.missing_since.is_some() && known.granted, "{known:?}");
    // As if that had been an hour ago.
    let since = landfall::clock::Timestamp(known.missing_since.unwrap().0 - 3_600_000);
    town.world()
        .commit(move |tx| tx.put_repository(&landfall::domain::Repository { missing_since: Some(since), ..known }))
        .await
        .unwrap();
    landfall::reconcile::resync(town.world()).await.expect("GitHub can be asked");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.leave().await;
}

#[actix_web::test]
async fn a_conversation_that_is_locked_keeps_nothing_else_waiting() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    let lock = format!("/repos/{repository}/issues/{}/lock", pull.number);
    town.control("PUT", &lock, None).await;
    assert_eq!(town.settle().await, Settled::Quiet);
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let waiting = landfall::store::queue::entries(&town.world().store, "").unwrap();
    assert!(waiting.iter().all(|entry| entry.parked.is_none() && entry.attempts == 0), "{waiting:?}");
    // With the next thing to say, it is tried again.
    town.control("DELETE", &lock, None).await;
    town.push(&repository, "change", "three").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("three") || town.served("hello-pr-1").as_deref() == Some("three"));
    assert_eq!(town.comments(&pull).await.len(), 1);
    town.leave().await;
}

#[actix_web::test]
async fn what_is_old_is_let_go_and_what_is_not_dealt_with_stays() {
    use landfall::clock::Timestamp;
    use landfall::domain::DeliveryState;

    let mut town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "open").await;
    town.open_pull(&repository, "change", "Stay open").await;
    town.settle().await;
    for page in ["two", "three"] {
        town.push(&repository, "main", page).await;
        town.settle().await;
    }
    let store = &town.world().store;
    let all = store.deliveries(None, 100).unwrap();
    assert!(all.len() >= 3 && store.runs().unwrap().len() == 4, "{all:?}");
    assert_eq!(landfall::reconcile::expire(town.world()).await.unwrap(), landfall::reconcile::Expired::default());

    // As if all of them had come long ago, and one of them had never been understood.
    let parked = all[0].id.clone();
    for delivery in all {
        let parked = parked.clone();
        let mut record = store.delivery(&delivery.id).unwrap().unwrap();
        town.world()
            .commit(move |tx| {
                tx.delete_delivery(&record.delivery.id)?;
                record.delivery.received_at = Timestamp(1_000);
                if record.delivery.id == parked {
                    record.delivery.state = DeliveryState::Parked { error: "a bug".to_owned(), at: Timestamp(1_000) };
                }
                tx.put_delivery(&record)
            })
            .await
            .unwrap();
    }
    town.kill().await;
    let limit = |config: &mut landfall::config::Config| {
        config.keep.runs = 1;
        config.keep.logs_mb = 1;
    };
    town.boot_with(None, limit).await;
    for (name, age) in [("older", 20), ("newer", 10)] {
        let log = std::fs::File::create(town.world().folder("logs").join(name)).unwrap();
        log.set_len(600 << 10).unwrap();
        log.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    let gone = landfall::reconcile::expire(town.world()).await.unwrap();
    let is_kept = |name: &str| town.world().folder("logs").join(name).exists();
    assert_eq!((is_kept("older"), is_kept("newer")), (false, true), "together they are too large");
    let store = &town.world().store;
    let left: Vec<String> = store.deliveries(None, 100).unwrap().into_iter().map(|delivery| delivery.id).collect();
    assert_eq!(left, [parked]);
    // What tells of an open pull request stays: without it, it would be tested again.
    let runs = store.runs().unwrap();
    assert_eq!((gone.runs, runs.iter().map(|run| run.number.0).collect::<Vec<_>>()), (2, vec![2, 4]));
    assert_eq!(store.runs_of(runs[0].repository).unwrap(), runs);
    landfall::reconcile::resync(town.world()).await.unwrap();
    town.settle().await;
    assert_eq!(town.world().store.runs().unwrap(), runs);
    let store = &town.world().store;
    // The payload that may be needed is still there, and so is the app.
    let record = store.delivery(&left[0]).unwrap().unwrap();
    assert!(!store.blob(&record.payload).unwrap().is_empty());
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    town.leave().await;
}

#[actix_web::test]
async fn a_merge_queue_gets_its_check() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let wish = json!({ "repo": repository, "number": pull.number, "user": OWNER });
    let queued = town.control("POST", "/_/merge-group", Some(wish)).await;
    let head = queued["head_sha"].as_str().expect("a commit").to_owned();
    town.settle().await;
    let checks = town.checks(&repository, &head).await;
    assert_eq!(checks.len(), 1, "{checks:?}");
    // The group's tree is the pull request's own: what passed there passed here.
    assert_eq!(checks[0].0, "success", "{checks:?}");
    assert_eq!(checks[0].1, "Passed: the same code passed in run 2");
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"), "a merge group was deployed");
    assert_eq!(town.world().store.runs().unwrap().len(), 3);
    // Its pull requests are merged by the branch going on to the group's own commit.
    let merged = json!({ "sha": head });
    town.control("PATCH", &format!("/repos/{repository}/git/refs/heads/main"), Some(merged)).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn nodes_that_end_well_and_prove_nothing_are_not_green() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let files = json!({
        "Procfile": "web: serve\nrelease: migrate\n",
        "page.txt": "two",
        "tests/a.check": "", "tests/b.check": "",
        ".github/landfall.toml": "[tests]\nfiles = 'tests/*.check'\ncommand = 'check {files} > {junit}'\nnodes = 2\n",
        "app.json": r#"{"environments":{"test":{"scripts":{"test":"check"}}}}"#,
    });
    let commit = town.push_files(&repository, "change", files).await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let (conclusion, _, summary) = town.checks(&repository, &commit).await.remove(0);
    assert_eq!(conclusion, "failure");
    assert!(summary.contains("0 of 2 files passed") && summary.contains("left no results"), "{summary}");
    town.leave().await;
}

#[actix_web::test]
async fn a_person_ends_the_tests_of_a_pull_request() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    // All of them ended long ago.
    let command = town.say(&pull, "/cancel", OWNER).await;
    town.settle().await;
    assert_eq!(town.reactions(&repository, command).await, ["-1", "eyes"]);
    assert!(town.comment(&pull).await.contains("`/cancel`"));
    town.leave().await;
}

#[actix_web::test]
async fn staging_goes_on_while_github_takes_no_reports() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    for number in 0..16 {
        let branch = format!("change-{number}");
        town.push(&repository, &branch, "two").await;
        town.open_pull(&repository, &branch, "Say two").await;
    }
    town.settle().await;
    let slow = json!({
        "match": { "method": "POST", "path_regex": "/(statuses|deployments|check-runs|comments)" },
        "fault": "delay", "delay_ms": 60_000, "count": 10_000,
    });
    town.control("POST", "/_/faults", Some(slow)).await;
    for number in 0..16 {
        town.push(&repository, &format!("change-{number}"), "three").await;
    }
    town.push(&repository, "main", "four").await;
    let world = town.world().clone();
    let workers = tokio::spawn(landfall::reconcile::run(world, landfall::server::WORKERS));
    town.until("staging serves the new page", || town.served("hello-staging").as_deref() == Some("four")).await;
    workers.abort();
    town.leave().await;
}

/// What GitHub was told of each deployment to an environment, the newest deployment first, each from its first word on.
async fn told(town: &Town, repository: &str, environment: &str) -> Vec<Vec<String>> {
    let environment = environment.replace('/', "%2F");
    let path = format!("/repos/{repository}/deployments?environment={environment}&per_page=100");
    let mut told = Vec::new();
    for deployment in town.control("GET", &path, None).await.as_array().expect("a list") {
        let path = format!("/repos/{repository}/deployments/{}/statuses?per_page=100", deployment["id"]);
        let statuses = town.control("GET", &path, None).await;
        let mut words = Vec::new();
        for status in statuses.as_array().expect("a list").iter().rev() {
            let log = status["log_url"].as_str().unwrap_or_default();
            assert!(log.starts_with("http://landfall.test/"), "no link to a log in {status}");
            words.push(status["state"].as_str().expect("a state").to_owned());
        }
        told.push(words);
    }
    told
}

#[actix_web::test]
async fn a_deployment_is_followed_to_its_end_whatever_replaces_it_or_takes_it_away() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let first = told(&town, &repository, "review/pr-1").await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].last().map(String::as_str), Some("success"), "{first:?}");
    assert!(first[0].iter().all(|state| ["queued", "in_progress", "success"].contains(&state.as_str())), "{first:?}");
    assert!(first[0].len() > 1, "it was under way before it served: {first:?}");

    town.push(&repository, "change", "three").await;
    town.settle().await;
    town.push(&repository, "change", UNHEALTHY).await;
    town.settle().await;
    let ends = |told: &[Vec<String>]| told.iter().map(|words| words.last().cloned().unwrap_or_default()).collect();
    let all: Vec<String> = ends(&told(&town, &repository, "review/pr-1").await);
    assert_eq!(all, ["failure", "success", "inactive"], "what failed replaces nothing");

    town.say(&pull, "/destroy", OWNER).await;
    town.settle().await;
    let all: Vec<String> = ends(&told(&town, &repository, "review/pr-1").await);
    assert!(!all.contains(&"success".to_owned()), "{all:?}");
    assert_eq!(town.served("hello-pr-1"), None);
    let staging: Vec<String> = ends(&told(&town, &repository, "staging").await);
    assert_eq!(staging, ["success"], "staging is another matter");
    town.leave().await;
}

#[actix_web::test]
async fn a_pull_request_that_is_closed_while_it_is_deployed_leaves_nothing() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let title = format!("</td>--> | @everyone `{}` <!-- landfall -->", "x".repeat(150));
    let pull = town.open_pull(&repository, "change", &title).await;
    town.close(&pull).await;
    town.say(&pull, "/deploy\n/approve\n/scale web=999999999999\n/rollback v999999999 to ../../etc", OWNER).await;
    town.say(&pull, &format!("/deploy {}\n{}", "a".repeat(5_000), "/help\n".repeat(5_000)), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert_eq!(town.memory.running().iter().filter(|id| id.as_str().contains("-pr-")).count(), 0);
    let all: Vec<Vec<String>> = told(&town, &repository, "review/pr-1").await;
    assert!(all.iter().all(|words| words.last().is_some_and(|last| last == "inactive")), "{all:?}");
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.leave().await;
}

#[actix_web::test]
async fn what_was_given_again_before_its_loss_was_heard_of_is_not_lost() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let made = town.app_record("hello-pr-1").id;
    let select = |selected: bool| json!({ "repo": repository, "selected": selected });
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost" }))).await;
    town.control("POST", "/_/select", Some(select(false))).await;
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    town.control("POST", "/_/select", Some(select(true))).await;
    town.settle().await;
    landfall::reconcile::resync(town.world()).await.expect("GitHub can be asked");
    // Whoever could send webhooks once may say anything.
    let known = town.control("GET", &format!("/repos/{repository}"), None).await;
    let payload = json!({ "action": "deleted", "repository": known, "sender": known["owner"] });
    town.control("POST", "/_/emit", Some(json!({ "event": "repository", "payload": payload }))).await;
    town.settle().await;
    let heard = town.world().store.deliveries(None, 100).unwrap();
    for event in ["installation_repositories", "repository"] {
        let ignored = |delivery: &&landfall::domain::Delivery| {
            delivery.event == event && matches!(delivery.state, landfall::domain::DeliveryState::Ignored { .. })
        };
        assert!(heard.iter().any(|delivery| ignored(&delivery)), "{event}: {heard:#?}");
    }
    assert_eq!(town.app_record("hello-pr-1").id, made, "it was taken away");
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert!(town.world().store.repositories().unwrap()[0].granted);
    town.leave().await;
}
