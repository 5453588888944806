//! `app.yml` asks for exactly what Landfall reads and calls: no event is missing or spare, and a story played with
//! these permissions alone is refused nothing and leaves none unused.

use crate::support::town::{OWNER, Town};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// GitHub sends these to every app; a manifest cannot ask for them.
const UNASKED: [&str; 3] = ["installation", "installation_repositories", "ping"];

fn file(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of one section of `app.yml`, without comments and their indentation.
fn section(name: &str) -> Vec<String> {
    let manifest = file("app.yml");
    let after = manifest.split_once(&format!("\n{name}:\n")).unwrap_or_else(|| panic!("no {name} in app.yml")).1;
    after
        .lines()
        .take_while(|line| line.starts_with(' '))
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.starts_with('#'))
        .collect()
}

fn permissions() -> BTreeMap<String, String> {
    let lines = section("default_permissions");
    let pairs = lines.iter().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}")));
    pairs.map(|(name, level)| (name.to_owned(), level.to_owned())).collect()
}

#[test]
fn the_manifest_asks_for_the_events_that_are_read() {
    let asked: BTreeSet<String> =
        section("default_events").iter().map(|line| line.trim_start_matches("- ").to_owned()).collect();

    let source = file("src/reconcile/deliver.rs");
    let meaning = source.split_once("\nfn meaning(").expect("what events mean").1;
    let meaning = meaning.split_once("\n}\n").expect("it ends").0;
    let mut read = BTreeSet::new();
    for words in meaning.split("github::Event::").skip(1) {
        let name: String = words.chars().take_while(char::is_ascii_alphanumeric).collect();
        let mut event = String::new();
        for character in name.chars() {
            if character.is_ascii_uppercase() && !event.is_empty() {
                event.push('_');
            }
            event.push(character.to_ascii_lowercase());
        }
        read.insert(event);
    }
    assert!(UNASKED.iter().all(|event| read.remove(*event)), "GitHub's own events are read: {read:?}");
    assert_eq!(asked, read, "left what app.yml asks for, right what src/reconcile/deliver.rs reads");
}

/// What GitHub asks of an installation for a call (its page "Permissions required for GitHub Apps"). git's fetches,
/// which need to read contents too, are not in the list of calls.
fn needed(method: &str, path: &str) -> (&'static str, &'static str) {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let level = if method == "GET" { "read" } else { "write" };
    match parts.as_slice() {
        ["installation", "repositories"] | ["repositories", _] | ["repos", _, _] => ("metadata", "read"),
        ["repos", _, _, "collaborators", _, "permission"] | ["repos", _, _, "rules", "branches", ..] => {
            ("metadata", "read")
        }
        ["repos", _, _, "environments", ..] => ("actions", "read"),
        ["repos", _, _, "pulls", ..] => ("pull_requests", level),
        ["repos", _, _, "issues", ..] => ("issues", level),
        ["repos", _, _, "check-runs", ..] | ["repos", _, _, "commits", _, "check-runs"] => ("checks", level),
        ["repos", _, _, "statuses", _] | ["repos", _, _, "commits", _, "statuses"] => ("statuses", level),
        ["repos", _, _, "deployments", ..] => ("deployments", level),
        ["repos", _, _, "git" | "contents" | "compare" | "commits" | "branches", ..] => ("contents", level),
        _ => panic!("{method} {path} is called, and this test does not know what permission it needs"),
    }
}

#[actix_web::test]
async fn the_manifests_permissions_are_enough_and_none_is_spare() {
    let town = Town::start().await;
    let granted = permissions();
    let before = town.control("POST", "/_/permissions", Some(json!({ "permissions": granted }))).await;
    let others = before["permissions"].as_object().expect("permissions").keys();
    let withdrawn: BTreeMap<&String, Value> =
        others.filter(|name| !granted.contains_key(*name)).map(|name| (name, Value::Null)).collect();
    let left = town.control("POST", "/_/permissions", Some(json!({ "permissions": withdrawn }))).await;
    assert_eq!(left["permissions"], json!(granted));
    town.control("DELETE", "/_/requests", None).await;

    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.merge(&pull).await;
    town.settle().await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));

    let mut used: BTreeMap<String, String> = BTreeMap::new();
    let requests = town.control("GET", "/_/requests", None).await;
    for request in requests["requests"].as_array().expect("a list") {
        let text = |name: &str| request[name].as_str().unwrap_or_default().to_owned();
        let (method, path, actor) = (text("method"), text("path"), text("actor"));
        if !actor.starts_with("installation") {
            continue;
        }
        assert_ne!(request["status"], 403, "{method} {path} by {actor} was refused");
        let (name, level) = needed(&method, &path);
        let highest = used.entry(name.to_owned()).or_insert_with(|| level.to_owned());
        if level == "write" {
            "write".clone_into(highest);
        }
    }
    // Every app has it, whether it asks a person's rights or not.
    used.entry("metadata".to_owned()).or_insert_with(|| "read".to_owned());
    // No call needs it, but GitHub tells of a merge queue's groups only with it.
    if section("default_events").contains(&"- merge_group".to_owned()) {
        used.entry("merge_queues".to_owned()).or_insert_with(|| "read".to_owned());
    }
    assert_eq!(granted, used, "left what app.yml asks for, right what the calls need");
    town.leave().await;
}
