//! Reading what GitHub recorded, and what it did not.

use super::super::event::{
    Account, CheckRunAction, CheckSuiteAction, CommentAction, Event, InstallationAction, MergeGroupAction, PullAction,
    Reference, RepositoryAction,
};
use super::super::payload::{Envelope, parse};
use super::super::wire::PayloadError;
use super::*;
use crate::domain::PullNumber;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The 329 payloads that GitHub recorded, each with its event's name.
fn examples() -> &'static [(String, Value)] {
    static EXAMPLES: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    EXAMPLES.get_or_init(|| {
        let packed = include_bytes!("../../../tests/fixtures/github/webhook-examples.json.zst");
        serde_json::from_slice(&zstd::decode_all(&packed[..]).unwrap()).unwrap()
    })
}

fn read(event: &str, payload: &Value) -> Result<Event, PayloadError> {
    parse(event, payload.to_string().as_bytes(), Some("application/json"))
}

/// As webhooks send it when they are set to forms.
fn as_form(payload: &Value) -> String {
    let encoded: String = payload
        .to_string()
        .bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02x}"),
        })
        .collect();
    format!("payload={encoded}")
}

fn repository() -> Value {
    json!({
        "id": 1000, "name": "hello", "full_name": "octocat/hello", "owner": { "id": 5, "login": "octocat" },
        "private": false, "default_branch": "main", "html_url": "https://github.com/octocat/hello",
    })
}

fn account(id: u64, login: &str) -> Value {
    json!({ "id": id, "login": login, "type": "User" })
}

fn pull() -> Value {
    json!({
        "number": 3, "title": "Add login", "state": "open", "user": account(9, "mona"), "body": null,
        "head": { "sha": SHA, "ref": "$(touch${IFS}X)", "repo": { "id": 1001, "owner": account(9, "mona") } },
        "base": { "sha": "b".repeat(40), "ref": "main", "repo": repository() },
        "labels": [], "draft": false, "html_url": "https://github.com/octocat/hello/pull/3",
    })
}

#[test]
fn all_recorded_payloads_are_read_as_json_and_as_forms() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (event, payload) in examples() {
        let read = read(event, payload).unwrap_or_else(|error| panic!("{event}: {error}\n{payload}"));
        let form = as_form(payload);
        for content_type in [Some("application/x-www-form-urlencoded; charset=utf-8"), None] {
            assert_eq!(parse(event, form.as_bytes(), content_type).unwrap(), read);
        }
        let text = payload.to_string();
        let envelope = Envelope::read(event, "guid", text.as_bytes(), Some("application/json")).unwrap();
        assert_eq!(envelope.action.as_deref(), payload["action"].as_str());
        assert_eq!(envelope.installation.map(|id| id.0), payload["installation"]["id"].as_u64());
        assert_eq!(envelope.repository.map(|repository| repository.id.0), payload["repository"]["id"].as_u64());
        assert_eq!(envelope.sender.map(|sender| sender.id), payload["sender"]["id"].as_u64());
        if !matches!(read, Event::Unread { .. }) {
            *kinds.entry(event.clone()).or_default() += 1;
        }
    }
    let expected = [
        ("check_run", 9),
        ("check_suite", 9),
        ("create", 5),
        ("delete", 4),
        ("deployment", 4),
        ("deployment_status", 4),
        ("installation", 7),
        ("installation_repositories", 3),
        ("issue_comment", 9),
        ("label", 6),
        ("member", 4),
        ("merge_group", 2),
        ("ping", 4),
        ("pull_request", 29),
        ("push", 7),
        ("repository", 13),
        ("status", 4),
    ];
    assert_eq!(examples().len(), 329);
    assert_eq!(kinds, expected.into_iter().map(|(event, count)| (event.to_owned(), count)).collect());
}

/// Taking any one field away from any recorded payload, or putting something else in its place, ends in an event or in
/// an error that names a field, never in a panic.
#[test]
fn no_missing_or_odd_field_is_worse_than_an_error() {
    /// Addresses are most of a payload and are not looked at.
    fn without_addresses(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !name.ends_with("_url"));
                fields.values_mut().for_each(without_addresses);
            }
            Value::Array(items) => items.iter_mut().for_each(without_addresses),
            _ => {}
        }
    }
    fn places(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    let place = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                    found.push(place.clone());
                    places(inner, &place, found);
                }
            }
            Value::Array(items) => {
                for (index, inner) in items.iter().enumerate().take(2) {
                    places(inner, &format!("{path}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let read_events = ["pull_request", "push", "issue_comment", "check_run", "installation", "repository", "ping"];
    let mut errors = 0;
    for event in read_events {
        // One example each is enough: the places are the same in all.
        let (_, example) = examples().iter().find(|(name, _)| name == event).unwrap();
        let mut example = example.clone();
        without_addresses(&mut example);
        let mut found = Vec::new();
        places(&example, "", &mut found);
        for place in &found {
            for odd in [Value::Null, json!(-1), json!("odd"), json!([]), json!({}), json!(1e300), json!(true)] {
                let mut payload = example.clone();
                *payload.pointer_mut(place).unwrap() = odd;
                match read(event, &payload) {
                    Ok(_) => {}
                    Err(PayloadError::Missing { field } | PayloadError::Invalid { field, .. }) => {
                        assert!(!field.is_empty());
                        errors += 1;
                    }
                    Err(other) => panic!("{event} {place}: {other}"),
                }
            }
        }
    }
    assert!(errors > 100, "{errors}");
}

#[test]
fn a_pull_request_is_read_whole() {
    let payload = json!({
        "action": "synchronize", "number": 3, "pull_request": pull(), "repository": repository(),
        "sender": account(9, "mona"), "installation": { "id": 7 },
    });
    let Event::PullRequest { action, repo, installation, pull, sender } = read("pull_request", &payload).unwrap()
    else {
        panic!("it is a pull request");
    };
    assert_eq!(action, PullAction::Synchronize);
    assert_eq!((repo.owner.as_str(), repo.name.as_str(), repo.default_branch.as_str()), ("octocat", "hello", "main"));
    assert_eq!(installation, Some(INSTALLATION));
    assert_eq!(repo.handle(installation), super::repo());
    assert_eq!((pull.number, pull.head.sha.as_str()), (PullNumber(3), SHA));
    assert_eq!(pull.head.branch, "$(touch${IFS}X)");
    assert_eq!(pull.head.owner.as_deref(), Some("mona"));
    assert!(pull.is_from_fork());
    assert_eq!(sender, Account { id: 9, login: "mona".to_owned(), is_bot: false });
}

#[test]
fn what_is_gone_is_tolerated() {
    let mut gone = pull();
    gone["head"]["repo"] = Value::Null;
    gone["user"] = Value::Null;
    gone["title"] = Value::Null;
    let payload = json!({ "action": "closed", "pull_request": gone, "repository": repository(), "sender": null });
    let Event::PullRequest { pull, sender, installation, .. } = read("pull_request", &payload).unwrap() else {
        panic!("it is a pull request");
    };
    assert_eq!((pull.head.repository, pull.head.owner.clone(), installation), (None, None, None));
    assert!(pull.is_from_fork(), "what is gone is trusted as little as a fork");
    assert_eq!((pull.author, sender), (Account::ghost(), Account::ghost()));

    let same = json!({ "action": "closed", "repository": repository(), "pull_request": {
        "number": 3, "state": "closed", "merged": true, "merge_commit_sha": "c".repeat(40),
        "head": { "sha": SHA, "ref": "x", "repo": repository() }, "base": { "sha": SHA, "ref": "main", "repo": repository() } } });
    let Event::PullRequest { pull, .. } = read("pull_request", &same).unwrap() else { panic!("it is a pull request") };
    assert!(pull.merged && !pull.open && !pull.is_from_fork());
    assert_eq!(pull.merge_commit_sha.unwrap().as_str(), "c".repeat(40));
}

#[test]
fn pull_request_actions() {
    for (action, extra, expected) in [
        ("opened", json!({}), PullAction::Opened),
        ("reopened", json!({}), PullAction::Reopened),
        ("ready_for_review", json!({}), PullAction::ReadyForReview),
        ("converted_to_draft", json!({}), PullAction::ConvertedToDraft),
        ("labeled", json!({ "label": { "name": "preview" } }), PullAction::Labeled("preview".to_owned())),
        ("unlabeled", json!({ "label": { "name": "preview" } }), PullAction::Unlabeled("preview".to_owned())),
        ("edited", json!({ "changes": { "title": { "from": "x" } } }), PullAction::Edited { base_before: None }),
        (
            "edited",
            json!({ "changes": { "base": { "ref": { "from": "develop" }, "sha": { "from": SHA } } } }),
            PullAction::Edited { base_before: Some("develop".to_owned()) },
        ),
        ("enqueued", json!({}), PullAction::Other("enqueued".to_owned())),
    ] {
        let mut payload = json!({ "action": action, "pull_request": pull(), "repository": repository() });
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let Event::PullRequest { action, .. } = read("pull_request", &payload).unwrap() else { panic!("{payload}") };
        assert_eq!(action, expected);
    }
}

#[test]
fn pushes_to_branches_and_tags() {
    let mut repository = repository();
    // As only `push` does it.
    repository["owner"] = json!({ "name": "octocat", "id": 5, "email": null });
    repository["created_at"] = json!(1_557_933_565);
    let zero = "0".repeat(40);
    let push = |reference: &str, before: &str, after: &str, head: Value| {
        let payload = json!({
            "ref": reference, "before": before, "after": after, "created": before == zero, "deleted": after == zero,
            "forced": false, "head_commit": head, "pusher": { "name": "mona", "email": null },
            "repository": repository, "sender": account(9, "mona"),
        });
        match read("push", &payload).unwrap() {
            Event::Push(push) => *push,
            other => panic!("{other:?}"),
        }
    };
    let commit = json!({ "id": SHA, "tree_id": "d".repeat(40), "message": "Merge", "timestamp": "2026-11-23T00:19:37+01:00",
                         "author": { "name": "Mona", "username": "mona" } });
    let merged = push("refs/heads/main", &"b".repeat(40), SHA, commit);
    assert_eq!(merged.reference, Reference::Branch("main".to_owned()));
    assert_eq!((merged.repo.owner.as_str(), merged.pusher.as_str()), ("octocat", "mona"));
    let head = merged.head_commit.unwrap();
    assert_eq!((head.tree.unwrap().as_str(), head.at), ("d".repeat(40).as_str(), Some(START)));
    let gone = push("refs/heads/feature/x", SHA, &zero, Value::Null);
    assert!(gone.deleted && gone.after.is_zero() && gone.head_commit.is_none());
    let confusing = push("refs/tags/main", &zero, SHA, Value::Null);
    assert_eq!(confusing.reference, Reference::Tag("main".to_owned()));
    assert_eq!(push("refs/notes/x", &zero, SHA, Value::Null).reference, Reference::Other("refs/notes/x".to_owned()));
}

#[test]
fn comments_on_pull_requests_and_issues() {
    let comment = |issue: Value, by: Value| {
        let payload = json!({
            "action": "created", "issue": issue, "repository": repository(), "sender": account(9, "mona"),
            "comment": { "id": 12_345_678_901_u64, "body": "/promote", "user": by, "created_at": START.rfc3339(),
                         "performed_via_github_app": { "id": 1 } },
        });
        read("issue_comment", &payload).unwrap()
    };
    let bot = json!({ "id": 2, "login": "landfall[bot]", "type": "Bot" });
    let Event::IssueComment { action, issue, is_pull, issue_open, comment: read, .. } =
        comment(json!({ "number": 3, "state": "open", "pull_request": { "url": "x" } }), bot)
    else {
        panic!("it is a comment");
    };
    assert_eq!((action, issue, is_pull, issue_open), (CommentAction::Created, PullNumber(3), true, true));
    assert_eq!((read.id, read.body.as_str(), read.via_app), (12_345_678_901, "/promote", Some(1)));
    assert!(read.author.is_bot);
    assert_eq!(read.created_at, Some(START));
    let Event::IssueComment { is_pull, issue_open, comment: read, .. } =
        comment(json!({ "number": 4, "state": "closed" }), Value::Null)
    else {
        panic!("it is a comment");
    };
    assert!(!is_pull && !issue_open);
    assert_eq!(read.author, Account::ghost());
}

#[test]
fn what_the_recorded_ones_say() {
    let mut installation_actions = Vec::new();
    for (event, payload) in examples() {
        match read(event, payload).unwrap() {
            Event::Installation { action, account, .. } => {
                assert_eq!(account, payload["installation"]["account"]["login"].as_str().unwrap());
                installation_actions.push(action);
            }
            Event::CheckRun { action: CheckRunAction::RequestedAction { identifier }, .. } => {
                assert_eq!(identifier, payload["requested_action"]["identifier"].as_str().unwrap());
            }
            Event::CheckSuite { action, .. } => assert!(!matches!(action, CheckSuiteAction::Other(_))),
            Event::MergeGroup { action, head_ref, .. } => {
                assert_eq!(action, MergeGroupAction::ChecksRequested);
                assert!(head_ref.starts_with("refs/heads/gh-readonly-queue/"));
            }
            Event::Repository { action: RepositoryAction::Renamed { from }, .. } => {
                assert_eq!(from.as_deref(), Some("Hello-World"));
            }
            Event::Repository { action: RepositoryAction::Transferred { from }, .. } => {
                assert_eq!(from.as_deref(), Some("octocat"));
            }
            Event::Repository { action: RepositoryAction::Edited { default_branch_before: Some(before) }, .. } => {
                assert_eq!(before, "main");
            }
            Event::Reference { created, .. } => assert_eq!(created, event == "create"),
            _ => {}
        }
    }
    use InstallationAction::{Created, Deleted, NewPermissions, Suspended, Unsuspended};
    assert_eq!(installation_actions, [Deleted, Created, Created, Deleted, NewPermissions, Suspended, Unsuspended]);
}

#[test]
fn unknown_events_and_actions_are_no_errors() {
    let unread = |event: &str, action: Option<&str>| Event::Unread {
        event: event.to_owned(),
        action: action.map(str::to_owned),
    };
    assert_eq!(read("sponsorship", &json!({ "action": "created" })).unwrap(), unread("sponsorship", Some("created")));
    assert_eq!(read("tomorrow's", &json!({})).unwrap(), unread("tomorrow's", None));
    let suite =
        json!({ "action": "invented", "check_suite": { "id": 1, "head_sha": SHA }, "repository": repository() });
    let Event::CheckSuite { action, .. } = read("check_suite", &suite).unwrap() else { panic!("{suite}") };
    assert_eq!(action, CheckSuiteAction::Other("invented".to_owned()));
}

#[test]
fn what_is_missing_is_named() {
    let missing = |event: &str, payload: Value| match read(event, &payload).unwrap_err() {
        PayloadError::Missing { field } | PayloadError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(missing("pull_request", json!({ "action": "opened" })), "repository");
    let mut short = pull();
    short["head"]["sha"] = json!("main");
    let payload = json!({ "action": "opened", "pull_request": short, "repository": repository() });
    assert_eq!(missing("pull_request", payload), "pull_request.head.sha");
    let payload = json!({ "action": "added", "installation": { "id": 1 }, "repositories_added": [{ "id": 1 }] });
    assert_eq!(missing("installation_repositories", payload), "repositories_added[0].full_name");
    assert_eq!(
        PayloadError::Missing { field: "pull_request.head.sha".to_owned() }.to_string(),
        "`pull_request.head.sha` is missing"
    );
}

#[test]
fn what_is_no_json_object_is_refused_without_quoting_it() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{}1{}", "{\"canary\":".repeat(200), "}".repeat(200));
    for body in ["", "canary", "{\"canary\":", "\"canary\"", "[1]", "7", "null", &deep, &deep_object, "{}canary"] {
        let error = parse("push", body.as_bytes(), Some("application/json")).unwrap_err();
        assert!(matches!(error, PayloadError::NotJson { .. }), "{error:?}");
        assert!(!error.to_string().contains("canary"), "{error}");
        let shown = match Envelope::read("push", "guid", body.as_bytes(), None) {
            Ok(envelope) => format!("{envelope:?}"),
            Err(error) => error.to_string(),
        };
        assert!(!shown.contains("canary"), "{shown}");
    }
    let form = Some("application/x-www-form-urlencoded");
    for body in ["", "payloads={}", "payload=%7", "payload=%zz", "x=1&y=2"] {
        assert_eq!(parse("push", body.as_bytes(), form).unwrap_err(), PayloadError::NotForm, "{body:?}");
    }
    assert!(parse("ping", b"x=1&payload=%7B%7D&y=2", form).is_ok());
    assert!(parse("ping", &[0xff, 0xfe], None).is_err());
}
