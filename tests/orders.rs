//! Orders that come late, are refused, or are given at the desk, and what is told of each.

use crate::pipelines::hosts;
use crate::support::town::{OWNER, Town};
use landfall::domain::{Cause, ReleaseNumber};
use serde_json::{Value, json};

impl Town {
    async fn api(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.dashboard())).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }
}

#[actix_web::test]
async fn an_older_push_never_overtakes_a_newer_one_however_late_it_comes() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    // The newest webhook is sent first, and with it comes what happened before.
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "reversed" }))).await;
    let older = town.push(&repository, "main", "three").await;
    let newer = town.push(&repository, "main", "four").await;
    let stale = town.push(&repository, "change", "five").await;
    let fresh = town.push(&repository, "change", "six").await;
    town.settle().await;
    for (app, page, last, before) in [("hello-staging", "four", &newer, &older), ("hello-pr-1", "six", &fresh, &stale)]
    {
        assert_eq!(town.served(app).as_deref(), Some(page), "{app}");
        let record = town.app_record(app);
        assert_eq!(record.live_deploy().map(|deploy| deploy.commit.to_string()).as_ref(), Some(last), "{app}");
        // A release of the older commit may have been, but none after one of the newer.
        let commits: Vec<String> = record.deploys.iter().map(|deploy| deploy.commit.to_string()).collect();
        let (first, late) = (commits.iter().position(|one| one == last), commits.iter().rposition(|one| one == before));
        assert!(late.is_none() || late < first, "{app}: {commits:?}");
    }
    // One that comes a day later, as GitHub sends it when somebody asks for it again, changes nothing.
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    let deploys = |app: &str| town.app_record(app).deploys.len();
    let before = (deploys("hello-staging"), deploys("hello-pr-1"));
    let payload = json!({
        "ref": "refs/heads/main", "before": "0".repeat(40), "after": older, "created": false, "deleted": false,
        "forced": false, "repository": town.control("GET", &format!("/repos/{repository}"), None).await,
        "pusher": { "name": OWNER }, "commits": [], "head_commit": null,
        "installation": { "id": town.world().store.repositories().unwrap()[0].installation },
        "sender": { "login": OWNER, "id": 1, "type": "User" },
    });
    town.control("POST", "/_/emit", Some(json!({ "event": "push", "payload": payload }))).await;
    town.settle().await;
    assert_eq!((deploys("hello-staging"), deploys("hello-pr-1")), before);
    assert_eq!(town.served("hello-staging").as_deref(), Some("four"));
    town.leave().await;
}

#[actix_web::test]
async fn staging_is_rolled_back_by_a_comment_and_production_at_the_desk() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.promoted(&repository, "first", "two").await;
    let second = town.promoted(&repository, "second", "three").await;
    assert_eq!(town.served("hello-production").as_deref(), Some("three"));

    town.say(&second, "/rollback staging", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    assert_eq!(town.served("hello-production").as_deref(), Some("three"), "that is another stage");
    town.say(&second, "/rollback v1 to hello-staging", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));

    // The dashboard's button is a form that goes to the API.
    let page = town.client.get(format!("{}/apps/hello-production", town.dashboard())).send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("action=\"/api/v1/apps/hello-production/rollback\""), "{page}");
    let press = town.client.post(format!("{}/api/v1/apps/hello-production/rollback", town.dashboard()));
    let pressed = press
        .header("origin", town.dashboard())
        .header("content-type", "application/x-www-form-urlencoded")
        .body("to=v1")
        .send()
        .await
        .unwrap();
    assert!(pressed.status().is_success() || pressed.status().is_redirection(), "{}", pressed.status());
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    let production = town.app_record("hello-production");
    let live = production.live_deploy().expect("a deploy");
    assert!(matches!(live.cause, Cause::Rollback { .. }), "{live:?}");
    assert_eq!(production.live, Some(ReleaseNumber(3)), "a release of its own");

    let release = town.world().store.release(&"hello-staging".parse().unwrap(), ReleaseNumber(2)).unwrap();
    let archive = town.world().folder("archives").join(format!("{}.tar.zst", release.unwrap().slug));
    std::fs::remove_file(archive).expect("it was kept");
    town.say(&second, "/rollback v2 to hello-staging", OWNER).await;
    town.settle().await;
    assert!(town.comment(&second).await.contains("There is no such release to go back to."));
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    town.leave().await;
}

#[actix_web::test]
async fn logs_status_and_help_are_answered_with_what_was_asked() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    for (said, expected) in [
        ("/status", vec!["| hello-pr-1 | v1 ", "| hello-staging | v1 ", "| | serves | under way |"]),
        ("/logs 5", vec!["The last lines of hello-pr-1:", "```"]),
        ("/help", vec!["| `/promote`, `/promote v3`", "| `/rollback`", "| `/lock staging REASON`", "| `/retest`"]),
    ] {
        let before = town.answers(&pull).await.len();
        town.say(&pull, said, OWNER).await;
        town.settle().await;
        let answers = town.answers(&pull).await;
        assert_eq!(answers.len(), before + 1, "{said}: {answers:#?}");
        for words in expected {
            assert!(answers[before].contains(words), "{said}: {words}: {}", answers[before]);
        }
    }
    town.say(&pull, "/promot", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("/promote"), "the nearest is named: {comment}");
    town.leave().await;
}

#[actix_web::test]
async fn what_was_refused_stands_in_the_audit_log_with_its_reason() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.make_user("wanda").await;
    town.let_in(&repository, "wanda", "pull").await;
    let pull = town.merged(&repository, "change", "two").await;
    let stranger = town.say(&pull, "/promote", "wanda").await;
    town.settle().await;
    town.say(&pull, "/lock stock-taking", OWNER).await;
    town.settle().await;
    let locked = town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    let loud = town.say(&pull, "/promote --hotfix the till is down", OWNER).await;
    town.settle().await;
    let audit = town.api("/api/v1/audit").await;
    let entries = audit["entries"].as_array().expect("a list").clone();
    let of = |comment: u64| {
        let found = entries.iter().find(|entry| entry["comment"]["comment"] == comment);
        found.unwrap_or_else(|| panic!("comment {comment} is not in {audit:#}")).clone()
    };
    let (stranger, locked, loud) = (of(stranger), of(locked), of(loud));
    assert_eq!((&stranger["by"], &stranger["comment"]["pull"]), (&"wanda".into(), &1.into()));
    assert_eq!(stranger["answer"]["reason"]["kind"], "no_right", "{stranger:#}");
    assert_eq!((&locked["by"], &locked["answer"]["reason"]["kind"]), (&OWNER.into(), &"locked".into()), "{locked:#}");
    assert_eq!((&loud["loud"], &loud["phase"]), (&true.into(), &"live".into()), "{loud:#}");
    let page = town.client.get(format!("{}/audit", town.dashboard())).send().await.unwrap().text().await.unwrap();
    for words in ["wanda", "stock-taking", "the till is down"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    town.leave().await;
}

#[actix_web::test]
async fn what_waits_for_production_is_listed_until_it_is_there() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let first = town.merged(&repository, "first", "two").await;
    let path = format!("/api/v1/pipelines/{repository}/diff");
    let waits = town.api(&path).await;
    assert_eq!((&waits["app"], &waits["from"]), (&"hello-production".into(), &Value::Null), "{waits:#}");
    town.say(&first, "/promote", OWNER).await;
    town.settle().await;
    let waits = town.api(&path).await;
    assert_eq!(waits["from"], waits["to"], "{waits:#}");
    assert_eq!(waits["commits"], 0, "{waits:#}");

    let second = town.merged(&repository, "second", "three").await;
    town.merged(&repository, "third", "four").await;
    let waits = town.api(&path).await;
    let numbers: Vec<u64> =
        waits["pulls"].as_array().expect("a list").iter().filter_map(|pull| pull["number"].as_u64()).collect();
    assert_eq!(numbers.len(), 2, "{waits:#}");
    assert!(numbers.contains(&second.number) && !numbers.contains(&first.number), "{waits:#}");
    assert_eq!(waits["refusal"], Value::Null, "{waits:#}");
    town.say(&second, "/lock stock-taking", OWNER).await;
    town.settle().await;
    assert_eq!(town.api(&path).await["refusal"]["kind"], "locked");
    town.say(&second, "/unlock\n/promote", OWNER).await;
    town.settle().await;
    let waits = town.api(&path).await;
    assert_eq!(waits["from"], waits["to"], "{waits:#}");
    assert_eq!(town.served("hello-production").as_deref(), Some("four"));
    town.leave().await;
}

#[actix_web::test]
async fn a_share_that_the_second_person_did_not_name_is_not_started() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.promoted(&repository, "first", "two").await;
    town.rule(&repository, "[pipeline.production]\napprovals = 1\n").await;
    for name in ["mia", "max"] {
        town.make_user(name).await;
        town.let_in(&repository, name, "push").await;
    }
    let second = town.merged(&repository, "second", "three").await;
    town.say(&second, "/promote --canary 10% --for 5m", OWNER).await;
    town.settle().await;
    town.say(&second, "/promote --canary 50% --for 5m", "mia").await;
    town.settle().await;
    assert_eq!(town.app_record("hello-production").last_release, 1, "nobody approved what another asked for");
    town.say(&second, "/promote --canary 50% --for 5m", "max").await;
    town.settle().await;
    let canary = town.router.lock().unwrap().tables.last().unwrap().apps[&"hello-production".parse().unwrap()]
        .canary
        .clone()
        .expect("a share");
    assert_eq!((canary.release.as_str(), canary.percent), ("v2", 50));
    town.leave().await;
}

#[actix_web::test]
async fn a_domain_is_free_once_its_repository_is_left() {
    let allow = |config: &mut landfall::config::Config| {
        config.allowed_domains.insert(format!("{OWNER}/*"), vec!["*.example.com".to_owned()]);
    };
    let town = Town::start_with(None, allow).await;
    let rules = "[pipeline.staging]\ndomains = [\"next.example.com\"]\n";
    let first = town.make_repository("hello", "one").await;
    town.settle().await;
    town.rule(&first, rules).await;
    let second = town.make_repository("other", "two").await;
    town.settle().await;
    town.rule(&second, rules).await;
    assert!(hosts(&town, "hello-staging").contains(&"next.example.com".to_owned()));
    assert!(!hosts(&town, "other-staging").contains(&"next.example.com".to_owned()));
    // The app is uninstalled there.
    town.control("POST", "/_/select", Some(json!({ "repo": first, "selected": false }))).await;
    town.settle().await;
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost"], "what serves goes on, at its own host");
    town.rule(&second, &format!("{rules}# Once more.\n")).await;
    assert!(
        hosts(&town, "other-staging").contains(&"next.example.com".to_owned()),
        "{:?}",
        hosts(&town, "other-staging")
    );
    town.leave().await;
}
