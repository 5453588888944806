//! What others say about a commit, and what GitHub protects an environment with, told as people see it.

use crate::support::town::{OWNER, Pull, Town};
use landfall::domain::{OneOff, Wanted};
use serde_json::{Value, json};

impl Town {
    /// A status of somebody else's.
    async fn judge(&self, repository: &str, commit: &str, context: &str, state: &str) {
        let path = format!("/repos/{repository}/statuses/{commit}");
        self.control("POST", &path, Some(json!({ "context": context, "state": state }))).await;
    }

    async fn require(&self, repository: &str, branch: &str, contexts: &[&str]) {
        let rules = json!({
            "required_status_checks": { "strict": false, "contexts": contexts },
            "enforce_admins": false, "required_pull_request_reviews": null, "restrictions": null,
        });
        self.control("PUT", &format!("/repos/{repository}/branches/{branch}/protection"), Some(rules)).await;
    }

    /// The newest deploy of an app: what it waits for, and whether it failed.
    fn newest(&self, app: &str) -> (Vec<String>, Value) {
        let app = self.world().store.app(&app.parse().unwrap()).unwrap().expect("the app is there");
        let deploy = app.newest().expect("a deploy").clone();
        (deploy.waits_for, serde_json::to_value(deploy.outcome).unwrap())
    }
}

#[actix_web::test]
async fn staging_waits_for_the_required_checks_of_others_and_goes_on_by_itself() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.staging]\nwait_for = \"required\"\n").await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"), "nothing is required yet");
    town.require(&repository, "main", &["lint", "landfall/tests"]).await;
    // A ruleset counts as the branch's own protection does.
    let ruleset = json!({ "repo": repository, "branch": "main", "contexts": ["docs"] });
    town.control("POST", "/_/rules", Some(ruleset)).await;

    let commit = town.push(&repository, "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.newest("hello-staging").0, ["docs", "lint"]);
    assert_eq!(town.deployments(&repository, "staging").await[0], (commit.clone(), "queued".to_owned()));
    town.judge(&repository, &commit, "docs", "success").await;
    town.judge(&repository, &commit, "spelling", "failure").await;
    town.settle().await;
    assert_eq!(town.newest("hello-staging").0, ["lint"]);
    town.judge(&repository, &commit, "lint", "failure").await;
    town.settle().await;
    assert_eq!(town.newest("hello-staging").1["failure"], json!({ "kind": "checks", "contexts": ["lint"] }));
    assert_eq!(town.deployments(&repository, "staging").await[0], (commit.clone(), "failure".to_owned()));
    // Green at the second try, it goes out, although nobody pushes again.
    town.judge(&repository, &commit, "lint", "success").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn every_check_of_a_commit_can_be_waited_for() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.staging]\nwait_for = \"all\"\n").await;
    let commit = town.push(&repository, "main", "two").await;
    town.judge(&repository, &commit, "spelling", "pending").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.judge(&repository, &commit, "spelling", "success").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_promotion_respects_the_contexts_that_the_branch_requires() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let pull = town.merged(&repository, "change", "two").await;
    town.require(&repository, "main", &["lint"]).await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("These checks are not green yet: `lint`."), "{comment}");
    let head = town.head(&repository, "main").await;
    town.judge(&repository, &head, "lint", "success").await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn an_environments_reviewers_and_branches_hold_a_promotion() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let pull = town.merged(&repository, "change", "two").await;
    let rita = town.control("POST", "/_/user", Some(json!({ "name": "rita" }))).await["id"].as_u64().expect("an id");
    for name in ["rita", "walter"] {
        town.make_user(name).await;
        town.let_in(&repository, name, "push").await;
    }
    let production = format!("/repos/{repository}/environments/production");
    let branches = json!({ "protected_branches": false, "custom_branch_policies": true });
    let guarded = json!({ "reviewers": [{ "type": "User", "id": rita }], "deployment_branch_policy": branches });
    town.control("PUT", &production, Some(guarded)).await;
    let named = |branches: &[&str]| json!({ "repo": repository, "environment": "production", "branches": branches });
    town.control("POST", "/_/environment-branches", Some(named(&["release/*"]))).await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("`production` takes nothing from the branch `main`"), "{comment}");
    town.control("POST", "/_/environment-branches", Some(named(&["release/*", "ma*"]))).await;

    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("waits for a second person"));
    town.say(&pull, "/promote", "walter").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("names who must say so too, and it is nobody of you"), "{comment}");
    assert_eq!(town.served("hello-production"), None);
    // Another promotion than the one that was asked for is a wish of its own.
    town.say(&pull, "/promote --hotfix now", "rita").await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"), "a reviewer may say so alone");
    town.leave().await;
}

#[actix_web::test]
async fn a_second_person_approves_what_was_asked_for_and_nothing_else() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.production]\napprovals = 1\n").await;
    town.make_user("mia").await;
    town.let_in(&repository, "mia", "push").await;
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/lock", OWNER).await;
    town.say(&pull, "/promote --hotfix the till is down", OWNER).await;
    town.settle().await;
    town.say(&pull, "/promote --hotfix I like it", "mia").await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None, "she approved something else");
    town.say(&pull, "/promote --hotfix I like it", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_wait_timer_of_the_environment_delays_a_promotion() {
    let (town, pull) = promoted_with_a_wait().await;
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("the environment has a wait timer on GitHub"), "{comment}");
    half_an_hour_passes(&town).await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_lock_stops_a_promotion_that_waits_and_no_hotfix() {
    let (town, pull) = promoted_with_a_wait().await;
    town.say(&pull, "/lock the till is being counted", OWNER).await;
    town.settle().await;
    half_an_hour_passes(&town).await;
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Production is locked by olivia: the till is being counted. That was"), "{comment}");
    town.say(&pull, "/promote --hotfix customers can not pay", OWNER).await;
    town.settle().await;
    half_an_hour_passes(&town).await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

/// A town in which somebody asked for a promotion, which waits for half an hour.
async fn promoted_with_a_wait() -> (Town, Pull) {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let pull = town.merged(&repository, "change", "two").await;
    let production = format!("/repos/{repository}/environments/production");
    town.control("PUT", &production, Some(json!({ "wait_timer": 30 }))).await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    (town, pull)
}

/// The wait of what was promoted last is over.
async fn half_an_hour_passes(town: &Town) {
    let world = town.world();
    let mut app = town.app_record("hello-production");
    let deploy = app.deploys.last_mut().expect("a deploy");
    let begins = deploy.not_before.expect("a time");
    assert!(begins > world.now() + std::time::Duration::from_secs(29 * 60));
    deploy.not_before = Some(world.now());
    world.store.transact(move |tx| tx.put_app(&app)).await.unwrap();
    town.settle().await;
}

#[actix_web::test]
async fn nothing_of_a_fork_that_is_held_again_begins_anew_with_the_next_approval() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let (pull, head) = town.open_fork(&repository, "mallory").await;
    town.settle().await;
    town.say(&pull, &format!("/approve {head}"), OWNER).await;
    town.settle().await;
    let name = "hello-pr-1".parse().unwrap();
    let world = town.world();
    let mut app = world.store.app(&name).unwrap().expect("the app");
    let release = app.live.expect("it serves");
    let next = town.push_to_fork("mallory", "evil").await;
    town.settle().await;
    let held = world.store.app(&name).unwrap().expect("the app");
    assert_eq!((held.wanted, held.live), (Wanted::Held, None));
    // A command that was going on when the push came.
    app = held;
    app.one_offs.push(OneOff {
        number: 1,
        release,
        command: "echo 0".to_owned(),
        size: "basic".to_owned(),
        time_limit: 60,
        by: OWNER.to_owned(),
        asked_at: world.now(),
        stop: false,
        ended: None,
    });
    world.store.transact(move |tx| tx.put_app(&app)).await.unwrap();
    town.settle().await;
    let held = world.store.app(&name).unwrap().expect("the app");
    assert!(held.one_offs[0].ended.is_some(), "it is over");
    let before = town.memory.history().len();
    town.say(&pull, &format!("/approve {next}"), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("evil"));
    let old = format!("hello-pr-1.{release}.");
    let started = town.memory.history();
    let again: Vec<String> = started[before..].iter().map(|entry| format!("{entry:?}")).collect();
    assert!(!again.iter().any(|entry| entry.contains(&old)), "{again:#?}");
    town.leave().await;
}
