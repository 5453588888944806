//! Repositories, branches and pull requests that change under a pipeline.

use crate::support::town::{OWNER, Pull, Town};
use serde_json::json;

#[actix_web::test]
async fn a_renamed_repository_keeps_its_apps_and_their_names() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.control("POST", "/_/rename", Some(json!({ "repo": repository, "name": "hallo", "user": OWNER }))).await;
    town.settle().await;
    let renamed = format!("{OWNER}/hallo");
    town.push(&renamed, "change", "three").await;
    town.push(&renamed, "main", "four").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!(town.served("hello-staging").as_deref(), Some("four"));
    let known = town.world().store.repositories().unwrap();
    assert_eq!((known.len(), known[0].full_name()), (1, renamed));
    town.leave().await;
}

#[actix_web::test]
async fn a_repository_that_is_made_private_goes_on() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.control("PATCH", &format!("/repos/{repository}"), Some(json!({ "private": true }))).await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert!(town.world().store.repositories().unwrap()[0].private);
    town.leave().await;
}

#[actix_web::test]
async fn a_deleted_branch_takes_the_review_app_with_its_pull_request() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let gone = json!({ "repo": repository, "branch": "change", "user": OWNER });
    town.control("POST", "/_/delete-branch", Some(gone)).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert!(town.comment(&pull).await.contains("Closed"));
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.leave().await;
}

#[actix_web::test]
async fn a_force_push_and_a_tag_lead_to_what_the_branch_says() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let first = town.head(&repository, "main").await;
    town.settle().await;
    town.push(&repository, "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    let tag = json!({ "ref": "refs/tags/v1", "sha": first });
    town.control("POST", &format!("/repos/{repository}/git/refs"), Some(tag)).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"), "a tag deploys nothing");
    let back = json!({ "sha": first, "force": true });
    town.control("PATCH", &format!("/repos/{repository}/git/refs/heads/main"), Some(back)).await;
    town.settle().await;
    assert_eq!(
        town.served("hello-staging").as_deref(),
        Some("one"),
        "the branch is the truth, also where it went back"
    );
    town.leave().await;
}

#[actix_web::test]
async fn stacked_pull_requests_have_an_app_each_and_a_new_base_changes_nothing_that_serves() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "lower", "two").await;
    let lower = town.open_pull(&repository, "lower", "Say two").await;
    let wish = json!({ "ref": "refs/heads/upper", "sha": town.head(&repository, "lower").await });
    town.control("POST", &format!("/repos/{repository}/git/refs"), Some(wish)).await;
    town.push(&repository, "upper", "three").await;
    let open = json!({ "title": "Say three", "head": "upper", "base": "lower", "body": "" });
    town.control("POST", &format!("/repos/{repository}/pulls"), Some(open)).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!(town.served("hello-pr-2").as_deref(), Some("three"));
    let started = town.memory.history().len();
    town.control("PATCH", &format!("/repos/{repository}/pulls/2"), Some(json!({ "base": "main" }))).await;
    town.settle().await;
    assert_eq!(town.memory.history().len(), started, "nothing is built or started for another base");
    town.merge(&lower).await;
    town.settle().await;
    assert_eq!((town.served("hello-pr-1"), town.served("hello-pr-2").as_deref()), (None, Some("three")));
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_transferred_repository_keeps_its_apps_and_follows_its_new_owner() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.control("POST", "/_/transfer", Some(json!({ "repo": repository, "owner": "acme" }))).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.push("acme/hello", "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    let known = town.world().store.repositories().unwrap();
    assert_eq!(known.iter().map(|known| known.full_name()).collect::<Vec<_>>(), ["acme/hello"]);
    assert_eq!(town.deployments("acme/hello", "staging").await[0].1, "success");
    town.leave().await;
}

#[actix_web::test]
async fn while_the_installation_is_suspended_everything_serves_and_afterwards_it_catches_up() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.control("POST", "/_/suspend", Some(json!({ "owner": OWNER }))).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    // Nothing of this is told to a suspended app.
    town.push(&repository, "main", "three").await;
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.control("POST", "/_/unsuspend", Some(json!({ "owner": OWNER }))).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    assert_eq!(town.served("hello-pr-1"), None);
    town.leave().await;
}

#[actix_web::test]
async fn bots_get_a_review_app_by_rule() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nbots = false\n").await;
    town.push(&repository, "bump", "two").await;
    let open = json!({ "repo": repository, "title": "Bump it", "head": "bump", "user": "renovate[bot]" });
    let number = town.control("POST", "/_/pull", Some(open)).await["number"].as_u64().expect("a number");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    let pull = Pull { repository: repository.clone(), number };
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Pull requests of bots get none here"), "{comment}");
    let head = town.head(&repository, "bump").await;
    assert_eq!(town.checks(&repository, &head).await[0].0, "success", "it is tested all the same");
    town.say(&pull, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_push_to_staging_can_ask_to_be_left_alone() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let push = json!({
        "repo": repository, "branch": "main", "user": OWNER, "files": { "page.txt": "two" },
        "message": "Words only [skip landfall]",
    });
    town.control("POST", "/_/push", Some(push)).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    let head = town.head(&repository, "main").await;
    assert_eq!(town.checks(&repository, &head).await[0].0, "skipped");
    // What comes after it takes it along.
    town.push_files(&repository, "main", json!({ "more.txt": "x" })).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

/// What people see at the end of a day.
#[derive(Debug, PartialEq)]
struct Evening {
    served: Vec<(String, Option<String>)>,
    deployments: Vec<(String, Option<String>)>,
    commands: Vec<String>,
    locks: Vec<String>,
    pulls: Vec<(u64, bool, bool, bool)>,
    comments: Vec<Vec<bool>>,
}

/// A day of work; with `lost`, none of whose webhooks arrive until the evening.
async fn day(lost: bool) -> Evening {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    if lost {
        town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost" }))).await;
    }
    let mut pulls = Vec::new();
    for branch in ["change", "unwanted", "given-up", "merged"] {
        town.push(&repository, branch, branch).await;
        pulls.push(town.open_pull(&repository, branch, branch).await);
        town.settle().await;
    }
    town.push(&repository, "change", "changed again").await;
    town.settle().await;
    town.say(&pulls[1], "/destroy", OWNER).await;
    town.settle().await;
    town.close(&pulls[2]).await;
    town.settle().await;
    town.merge(&pulls[3]).await;
    town.settle().await;
    let gone = json!({ "repo": repository, "branch": "merged", "user": OWNER });
    town.control("POST", "/_/delete-branch", Some(gone)).await;
    town.settle().await;
    town.say(&pulls[0], "/lock production the sale is on\n/promot", OWNER).await;
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    if lost {
        assert_eq!(town.served("hello-pr-1"), None, "nothing was heard of all this");
    }
    landfall::reconcile::resync(town.world()).await.expect("GitHub is asked");
    town.settle().await;
    let store = &town.world().store;
    let id = store.repositories().unwrap()[0].id;
    let mut known = store.pulls(id).unwrap();
    known.sort_by_key(|pull| pull.number);
    let mut commands = Vec::new();
    for pull in &known {
        for record in store.commands(id, pull.number).unwrap() {
            commands.push(format!("{} {:?} {:?} {:?}", pull.number, record.by, record.command, record.answer));
        }
    }
    let mut evening = Evening {
        served: Vec::new(),
        deployments: Vec::new(),
        commands,
        locks: store.pipeline(id).unwrap().locks.into_iter().map(|lock| lock.reason).collect(),
        pulls: known.iter().map(|pull| (pull.number.0, pull.open, pull.merged, pull.parked.is_some())).collect(),
        comments: Vec::new(),
    };
    for app in ["hello-staging", "hello-pr-1", "hello-pr-2", "hello-pr-3", "hello-pr-4"] {
        evening.served.push((app.to_owned(), town.served(app)));
    }
    let staging = town.deployments(&repository, "staging").await;
    evening.deployments.push(("staging".to_owned(), staging.first().map(|(_, state)| state.clone())));
    let made = town.deployments(&repository, "review/pr-1").await;
    evening.deployments.push(("review".to_owned(), made.first().map(|(_, state)| state.clone())));
    for pull in &pulls[..2] {
        let comment = town.comment(pull).await;
        evening.comments.push(["✅", "destroyed it", "the sale is on"].map(|words| comment.contains(words)).to_vec());
    }
    town.leave().await;
    evening
}

#[actix_web::test]
async fn a_day_of_lost_webhooks_ends_as_a_day_of_none() {
    let heard = day(false).await;
    assert_eq!(heard.served[1].1.as_deref(), Some("changed again"), "{heard:#?}");
    assert_eq!(heard.commands.len(), 3, "{heard:#?}");
    assert_eq!(day(true).await, heard);
}

impl Town {
    /// From now on GitHub answers these calls with a fault; `count` 0 stands for ever.
    async fn fault(&self, method: &str, path: &str, fault: &str, count: u64) {
        let wish = json!({ "match": { "method": method, "path_regex": path }, "fault": fault, "count": count });
        self.control("POST", "/_/faults", Some(wish)).await;
    }

    /// Asks GitHub for what its webhooks did not bring.
    async fn compare(&self) {
        landfall::reconcile::resync(self.world()).await.expect("GitHub is asked");
        self.settle().await;
    }
}

#[actix_web::test]
async fn a_list_that_leaves_an_open_pull_request_out_does_not_close_it() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let before = town.app_record("hello-pr-1").deploys;
    town.fault("GET", "/pulls$", "empty", 1).await;
    town.compare().await;
    let faults = town.control("GET", "/_/faults", None).await;
    assert_eq!(faults["faults"][0]["struck"], 1, "{faults}");
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!(town.app_record("hello-pr-1").deploys, before, "it was taken away and made anew");
    assert!(!town.comment(&pull).await.contains("Closed"));
    town.leave().await;
}

#[actix_web::test]
async fn a_pull_request_that_github_does_not_find_keeps_no_other_one_waiting() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    for branch in ["hidden", "closed"] {
        town.push(&repository, branch, branch).await;
        town.open_pull(&repository, branch, branch).await;
    }
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost", "recorded": false }))).await;
    for number in [1, 2] {
        town.close(&Pull { repository: repository.clone(), number }).await;
    }
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    town.fault("GET", "/pulls/1$", "404", 0).await;
    town.compare().await;
    // Answers are not always in order: that one is not found takes nothing away.
    assert_eq!((town.served("hello-pr-1").as_deref(), town.served("hello-pr-2")), (Some("hidden"), None));
    town.control("DELETE", "/_/faults", None).await;
    town.compare().await;
    assert_eq!(town.served("hello-pr-1"), None);
    town.leave().await;
}

#[actix_web::test]
async fn a_delivery_that_github_does_not_send_again_keeps_no_later_one_back() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.compare().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost" }))).await;
    for stage in ["staging", "production"] {
        town.say(&pull, &format!("/lock {stage} the sale is on"), OWNER).await;
    }
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    town.fault("POST", "/attempts$", "404", 1).await;
    let id = town.world().store.repositories().unwrap()[0].id;
    let locked = || town.world().store.pipeline(id).unwrap().locks.into_iter().map(|lock| lock.stage);
    town.compare().await;
    assert_eq!(locked().collect::<Vec<_>>(), [landfall::domain::StageKind::Production]);
    town.compare().await;
    assert_eq!(locked().count(), 2);
    town.leave().await;
}

#[actix_web::test]
async fn upkeep_that_fails_keeps_nothing_from_being_looked_at() {
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let (builds, aside) = (town.world().folder("builds"), town.world().folder("builds-aside"));
    std::fs::rename(&builds, &aside).unwrap();
    assert!(landfall::reconcile::slow_tick(town.world()).await.is_err());
    let queued = landfall::store::queue::entries(&town.world().store, "app:").unwrap();
    assert!(!queued.is_empty());
    std::fs::rename(&aside, &builds).unwrap();
    town.settle().await;
    town.leave().await;
}
