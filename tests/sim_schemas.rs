//! The stand-in for GitHub is right when GitHub's own schemas say so: here every operation that the stand-in serves is
//! driven over HTTP, each answer and each webhook is judged, and the list of operations must be complete.
//!
//! The story is one long one, as the stand-in's state is: a repository, a pull request, comments, checks, deployments,
//! and in the end everything is closed, renamed and removed. Complaints are collected and shown together.

mod driver;

use serde_json::{Value, json};

use driver::{Driver, Who, encoded, id, text};

const NONE: Value = Value::Null;

/// The repository of the story.
const REPO: &str = "/repos/octo/hello";

/// A person reads and writes files; the app reads them.
async fn repository(github: &mut Driver) {
    github.prepare(Who::Owner, "POST", "/user/repos", json!({"name": "hello"})).await;
    let installation = login(github).await;
    let tokens = format!("/app/installations/{installation}/access_tokens");
    let narrow = json!({"permissions": {"contents": "read"}, "repositories": ["hello"]});
    github.call(Who::App, "POST", &tokens, narrow, 201).await;

    let put = format!("{REPO}/contents/README.md");
    let readme = json!({"message": "Say hello", "content": encoded("# Hello\n")});
    let made = github.call(Who::Owner, "PUT", &put, readme, 201).await;
    let blob = text(&made, "/content/sha").to_owned();
    let readme = json!({"message": "Say more", "content": encoded("# Hello you\n"), "sha": blob, "branch": "main"});
    let changed = github.call(Who::Owner, "PUT", &put, readme, 200).await;
    let head = text(&changed, "/commit/sha").to_owned();
    let nested = json!({"message": "Add a page\n\nWith a body.", "content": encoded("<p>Hi</p>\n")});
    github.call(Who::Owner, "PUT", &format!("{REPO}/contents/app/pages/index.html"), nested, 201).await;
    github.expect_webhook("push", None).await;

    let branch = json!({"ref": "refs/heads/feature/login", "sha": head});
    github.call(Who::Owner, "POST", &format!("{REPO}/git/refs"), branch, 201).await;
    let file = json!({"message": "Add login", "content": encoded("login\n"), "branch": "feature/login"});
    github.call(Who::Owner, "PUT", &format!("{REPO}/contents/login.txt"), file, 201).await;
    let tag = json!({"ref": "refs/tags/v1", "sha": head});
    github.call(Who::Owner, "POST", &format!("{REPO}/git/refs"), tag, 201).await;
    github.expect_webhook("create", None).await;
    // Whoever owns the repository sets up the protection.
    let rules = json!({
        "required_status_checks": {"strict": true, "contexts": ["landfall/tests"]},
        "enforce_admins": false,
        "required_pull_request_reviews": null,
        "restrictions": null,
    });
    let path = format!("{REPO}/branches/release/protection");
    let branch = json!({"ref": "refs/heads/release", "sha": head});
    github.call(Who::Owner, "POST", &format!("{REPO}/git/refs"), branch, 201).await;
    github.prepare(Who::Owner, "PUT", &path, rules).await;
    github.call(Who::Owner, "GET", &path, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/branches/release"), NONE, 200).await;

    let ruleset = json!({"repo": "octo/hello", "branch": "main", "contexts": ["lint"]});
    github.prepare(Who::Nobody, "POST", "/_/rules", ruleset).await;
    for path in [
        "",
        "/branches",
        "/branches/main",
        "/branches/feature/login",
        "/branches/feature%2Flogin",
        "/rules/branches/main",
        "/commits",
        "/commits?sha=feature%2Flogin&per_page=1",
        "/commits?path=README.md",
        "/commits/main",
        "/commits/heads/feature/login",
        "/compare/main...feature%2Flogin",
        "/contents/",
        "/contents/app",
        "/contents/README.md",
        "/contents/login.txt?ref=feature/login",
        "/collaborators",
        "/tags",
    ] {
        github.call(Who::Installation, "GET", &format!("{REPO}{path}"), NONE, 200).await;
    }
    let repository = github.call(Who::Installation, "GET", REPO, NONE, 200).await;
    let by_id = format!("/repositories/{}", id(&repository));
    github.call(Who::Installation, "GET", &by_id, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{by_id}/branches"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/tarball/main"), NONE, 302).await;
    github.call(Who::Owner, "GET", REPO, NONE, 200).await;
    github.call(Who::Stranger, "GET", REPO, NONE, 200).await;
    github.call(Who::Nobody, "GET", REPO, NONE, 200).await;
}

/// Fetches an installation token for the steps that follow.
async fn login(github: &mut Driver) -> u64 {
    let installations = github.call(Who::App, "GET", "/app/installations", NONE, 200).await;
    let installation = installations
        .as_array()
        .into_iter()
        .flatten()
        .find(|installation| text(installation, "/account/login") == "octo")
        .map(id)
        .unwrap_or_default();
    let tokens = format!("/app/installations/{installation}/access_tokens");
    let token = github.call(Who::App, "POST", &tokens, NONE, 201).await;
    github.tokens.insert("installation", text(&token, "/token").to_owned());
    installation
}

/// Registers the app from a manifest, as a person does once; what comes back are the client's credentials.
async fn manifest(github: &mut Driver) {
    let config = github.call(Who::App, "GET", "/app/hook/config", NONE, 200).await;
    let manifest = json!({
        "name": "Landfall",
        "url": "http://localhost:8080",
        "hook_attributes": {"url": config["url"]},
        "redirect_url": "http://localhost:8080/setup",
        "callback_urls": ["http://localhost/back"],
    });
    let form = json!({"manifest": manifest.to_string(), "state": "s2"});
    let reply = github.send(Who::Nobody, "POST", "/settings/apps/new", Some(&form)).await;
    let back = reply.headers.get("location").cloned().unwrap_or_default();
    let code = back.split(['?', '&']).find_map(|pair| pair.strip_prefix("code=")).unwrap_or("none").to_owned();
    let made = github.call(Who::Nobody, "POST", &format!("/app-manifests/{code}/conversions"), NONE, 201).await;
    for name in ["client_id", "client_secret"] {
        github.tokens.insert(name, made[name].as_str().unwrap_or_default().to_owned());
    }
}

/// What the app asks about itself.
async fn app(github: &mut Driver) {
    let app = github.call(Who::App, "GET", "/app", NONE, 200).await;
    let installation = login(github).await;
    github.call(Who::App, "GET", &format!("/app/installations/{installation}"), NONE, 200).await;
    github.call(Who::App, "GET", &format!("{REPO}/installation"), NONE, 200).await;
    github.call(Who::App, "GET", "/users/octo/installation", NONE, 200).await;
    github.call(Who::App, "GET", &format!("/apps/{}", text(&app, "/slug")), NONE, 200).await;
    let config = github.call(Who::App, "GET", "/app/hook/config", NONE, 200).await;
    let same = json!({"url": config["url"], "content_type": "json"});
    github.call(Who::App, "PATCH", "/app/hook/config", same, 200).await;

    let deliveries = github.call(Who::App, "GET", "/app/hook/deliveries?per_page=2", NONE, 200).await;
    let delivery = deliveries.pointer("/0").map(id).unwrap_or_default();
    github.call(Who::App, "GET", &format!("/app/hook/deliveries/{delivery}"), NONE, 200).await;
    github.call(Who::App, "POST", &format!("/app/hook/deliveries/{delivery}/attempts"), NONE, 202).await;

    github.call(Who::Installation, "GET", "/installation/repositories?per_page=1", NONE, 200).await;
    for path in ["/rate_limit", "/meta", "/zen"] {
        github.call(Who::Installation, "GET", path, NONE, 200).await;
    }
    github.call(Who::Nobody, "GET", "/rate_limit", NONE, 200).await;
}

async fn git_data(github: &mut Driver) {
    let reference = github.call(Who::Installation, "GET", &format!("{REPO}/git/ref/heads/main"), NONE, 200).await;
    let head = text(&reference, "/object/sha").to_owned();
    github.call(Who::Installation, "GET", &format!("{REPO}/git/ref/tags/v1"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/git/matching-refs/heads/feature"), NONE, 200).await;
    let commit = github.call(Who::Installation, "GET", &format!("{REPO}/git/commits/{head}"), NONE, 200).await;
    let tree = format!("{REPO}/git/trees/{}", text(&commit, "/tree/sha"));
    github.call(Who::Installation, "GET", &tree, NONE, 200).await;
    let entries = github.call(Who::Installation, "GET", &format!("{tree}?recursive=1"), NONE, 200).await;
    let blob = entries["tree"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| text(entry, "/type") == "blob")
        .map(|entry| text(entry, "/sha").to_owned())
        .unwrap_or_default();
    github.call(Who::Installation, "GET", &format!("{REPO}/git/blobs/{blob}"), NONE, 200).await;

    let branch = json!({"ref": "refs/heads/short-lived", "sha": head});
    github.call(Who::Owner, "POST", &format!("{REPO}/git/refs"), branch, 201).await;
    let before = text(&commit, "/parents/0/sha").to_owned();
    let moved = json!({"sha": before, "force": true});
    let path = format!("{REPO}/git/refs/heads/short-lived");
    github.call(Who::Owner, "PATCH", &path, moved, 200).await;
    github.call(Who::Owner, "DELETE", &path, NONE, 204).await;
    github.expect_webhook("delete", None).await;
}

/// A pull request from its opening to its last review, not yet merged.
async fn pull_request(github: &mut Driver) -> u64 {
    let opened = json!({"title": "Add login", "head": "feature/login", "base": "main", "body": "As discussed."});
    let pull = github.call(Who::Owner, "POST", &format!("{REPO}/pulls"), opened, 201).await;
    let number = pull["number"].as_u64().unwrap_or_default();
    let path = format!("{REPO}/pulls/{number}");
    github.expect_webhook("pull_request", Some("opened")).await;

    let file = json!({"message": "Style login", "content": encoded("css\n"), "branch": "feature/login"});
    github.call(Who::Owner, "PUT", &format!("{REPO}/contents/login.css"), file, 201).await;
    github.expect_webhook("pull_request", Some("synchronize")).await;
    github.call(Who::Installation, "PATCH", &path, json!({"title": "Add the login"}), 200).await;
    github.expect_webhook("pull_request", Some("edited")).await;
    github.call(Who::Owner, "PATCH", &path, json!({"state": "closed"}), 200).await;
    github.expect_webhook("pull_request", Some("closed")).await;
    github.call(Who::Owner, "PATCH", &path, json!({"state": "open"}), 200).await;
    github.expect_webhook("pull_request", Some("reopened")).await;

    // The base has moved on since, so the head can be updated.
    github.call(Who::Owner, "PUT", &format!("{path}/update-branch"), NONE, 202).await;
    let pull = github.call(Who::Installation, "GET", &path, NONE, 200).await;
    let approved = json!({"event": "APPROVE", "body": "Fine."});
    github.prepare(Who::Stranger, "POST", &format!("{path}/reviews"), approved).await;
    github.expect_webhook("pull_request_review", Some("submitted")).await;
    for (draft, action) in [(true, "converted_to_draft"), (false, "ready_for_review")] {
        let body = json!({"repo": "octo/hello", "number": number, "draft": draft});
        github.prepare(Who::Nobody, "POST", "/_/draft", body).await;
        github.expect_webhook("pull_request", Some(action)).await;
    }
    for path in ["/files", "/commits", "/reviews"] {
        github.call(Who::Installation, "GET", &format!("{REPO}/pulls/{number}{path}"), NONE, 200).await;
    }
    github.call(Who::Installation, "GET", &format!("{REPO}/pulls?state=all&per_page=1"), NONE, 200).await;
    let by_commit = format!("{REPO}/commits/{}/pulls", text(&pull, "/head/sha"));
    github.call(Who::Installation, "GET", &by_commit, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{path}/merge"), NONE, 404).await;
    number
}

async fn comments(github: &mut Driver, number: u64) {
    let issue = format!("{REPO}/issues/{number}");
    github.call(Who::Installation, "GET", &issue, NONE, 200).await;
    let body = json!({"body": "<!-- landfall --> Review app: soon."});
    let comment = github.call(Who::Installation, "POST", &format!("{issue}/comments"), body, 201).await;
    let persons = json!({"body": "/deploy"});
    let command = github.call(Who::Owner, "POST", &format!("{issue}/comments"), persons, 201).await;
    let path = format!("{REPO}/issues/comments/{}", id(&comment));
    github.call(Who::Installation, "PATCH", &path, json!({"body": "<!-- landfall --> Ready."}), 200).await;
    github.call(Who::Installation, "GET", &path, NONE, 200).await;
    let path_of_page = format!("{issue}/comments?per_page=1");
    let page = github.reply(Who::Installation, "GET", &path_of_page, NONE, 200).await;
    let link = page.headers.get("link").map(String::as_str).unwrap_or_default();
    if !link.contains("/repositories/") || !link.contains("per_page=1&page=2>; rel=\"next\"") {
        github.complain(format!("GET {path_of_page} has the Link {link:?}"));
    }

    let reactions = format!("{REPO}/issues/comments/{}/reactions", id(&command));
    let eyes = json!({"content": "eyes"});
    let reaction = github.call(Who::Installation, "POST", &reactions, eyes.clone(), 201).await;
    github.call(Who::Installation, "POST", &reactions, eyes.clone(), 200).await;
    github.call(Who::Installation, "GET", &reactions, NONE, 200).await;
    github.call(Who::Installation, "DELETE", &format!("{reactions}/{}", id(&reaction)), NONE, 204).await;
    github.call(Who::Installation, "POST", &format!("{issue}/reactions"), eyes, 201).await;

    github
        .call(Who::Installation, "POST", &format!("{issue}/labels"), json!({"labels": ["preview", "p 1"]}), 200)
        .await;
    github.call(Who::Installation, "GET", &format!("{issue}/labels"), NONE, 200).await;
    github.call(Who::Installation, "GET", &issue, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/pulls/{number}"), NONE, 200).await;
    github.call(Who::Installation, "DELETE", &format!("{issue}/labels/p%201"), NONE, 200).await;
    github.call(Who::Owner, "DELETE", &path, NONE, 204).await;
    for action in ["created", "edited", "deleted"] {
        github.expect_webhook("issue_comment", Some(action)).await;
    }
    for action in ["labeled", "unlabeled"] {
        github.expect_webhook("pull_request", Some(action)).await;
    }
}

async fn statuses_and_checks(github: &mut Driver, number: u64) {
    let pull = github.call(Who::Installation, "GET", &format!("{REPO}/pulls/{number}"), NONE, 200).await;
    let head = text(&pull, "/head/sha").to_owned();
    let status = json!({
        "state": "pending",
        "context": "landfall/review-app",
        "description": "Building",
        "target_url": "http://localhost:8080/apps/hello-pr-1",
    });
    github.call(Who::Installation, "POST", &format!("{REPO}/statuses/{head}"), status, 201).await;
    github.call(Who::Installation, "POST", &format!("{REPO}/statuses/{head}"), json!({"state": "success"}), 201).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/commits/{head}/statuses"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/commits/{head}/status"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/commits/main/status"), NONE, 200).await;
    github.expect_webhook("status", None).await;

    let queued = json!({"name": "landfall/tests", "head_sha": head, "external_id": "run-1"});
    let run = github.call(Who::Installation, "POST", &format!("{REPO}/check-runs"), queued, 201).await;
    let path = format!("{REPO}/check-runs/{}", id(&run));
    let started = json!({"status": "in_progress", "started_at": "2026-01-02T03:04:05Z"});
    github.call(Who::Installation, "PATCH", &path, started, 200).await;
    let finished = json!({
        "status": "completed",
        "conclusion": "failure",
        "completed_at": "2026-01-02T03:05:05Z",
        "details_url": "http://localhost:8080/ci/1",
        "output": {
            "title": "1 of 12 failed",
            "summary": "See below.",
            "text": "Details",
            "annotations": [
                {
                    "path": "login.txt",
                    "start_line": 1,
                    "end_line": 1,
                    "annotation_level": "failure",
                    "message": "Expected a login.",
                    "title": "login works",
                },
                {"path": "login.txt", "start_line": 1, "end_line": 2, "annotation_level": "notice", "message": "Long."},
            ],
        },
        "actions": [{"label": "Rerun", "description": "Run all again", "identifier": "rerun"}],
    });
    github.call(Who::Installation, "PATCH", &path, finished, 200).await;
    let done = json!({"name": "lint", "head_sha": head, "status": "completed", "conclusion": "neutral"});
    github.call(Who::Installation, "POST", &format!("{REPO}/check-runs"), done, 201).await;
    let run = github.call(Who::Installation, "GET", &path, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{path}/annotations"), NONE, 200).await;
    github.call(Who::Installation, "POST", &format!("{path}/rerequest"), NONE, 201).await;
    for list in ["check-runs", "check-suites"] {
        github.call(Who::Installation, "GET", &format!("{REPO}/commits/{head}/{list}?per_page=1"), NONE, 200).await;
        github.call(Who::Installation, "GET", &format!("{REPO}/commits/feature/login/{list}"), NONE, 200).await;
    }
    let suite = run.pointer("/check_suite/id").and_then(Value::as_u64).unwrap_or_default();
    let path = format!("{REPO}/check-suites/{suite}");
    github.call(Who::Installation, "GET", &path, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{path}/check-runs"), NONE, 200).await;
    github.call(Who::Installation, "POST", &format!("{path}/rerequest"), NONE, 201).await;
    github.call(Who::Installation, "POST", &format!("{REPO}/check-suites"), json!({"head_sha": head}), 200).await;
    let app = run.pointer("/app/id").cloned().unwrap_or_default();
    let quiet = json!({"auto_trigger_checks": [{"app_id": app, "setting": true}]});
    github.call(Who::Owner, "PATCH", &format!("{REPO}/check-suites/preferences"), quiet, 200).await;
    for (event, action) in [
        ("check_suite", "requested"),
        ("check_run", "created"),
        ("check_run", "completed"),
        ("check_suite", "completed"),
        ("check_run", "rerequested"),
        ("check_suite", "rerequested"),
    ] {
        github.expect_webhook(event, Some(action)).await;
    }
}

async fn deployments(github: &mut Driver, number: u64) {
    let environment = format!("review/pr-{number}");
    let deployment = json!({
        "ref": "feature/login",
        "environment": environment,
        "auto_merge": false,
        "required_contexts": [],
        "transient_environment": true,
        "production_environment": false,
        "payload": {"release": 1},
        "description": "Release 1",
    });
    let made = github.call(Who::Installation, "POST", &format!("{REPO}/deployments"), deployment, 201).await;
    let path = format!("{REPO}/deployments/{}", id(&made));
    for state in ["queued", "in_progress", "success"] {
        let status = json!({
            "state": state,
            "description": "On its way",
            "environment_url": "http://hello-pr-1.localhost:8000/",
            "log_url": "http://localhost:8080/apps/hello-pr-1",
            "auto_inactive": true,
        });
        let status = github.call(Who::Installation, "POST", &format!("{path}/statuses"), status, 201).await;
        github.call(Who::Installation, "GET", &format!("{path}/statuses/{}", id(&status)), NONE, 200).await;
    }
    let plain = json!({"ref": "main", "environment": "staging", "auto_merge": false, "required_contexts": []});
    let staging = github.call(Who::Owner, "POST", &format!("{REPO}/deployments"), plain.clone(), 201).await;
    let statuses = format!("{REPO}/deployments/{}/statuses", id(&staging));
    github.call(Who::Owner, "POST", &statuses, json!({"state": "success"}), 201).await;
    // Without `required_contexts` the failed check run counts.
    let strict = json!({"ref": "feature/login", "auto_merge": false});
    github.call(Who::Installation, "POST", &format!("{REPO}/deployments"), strict, 409).await;
    // With `auto_merge`, main would be merged into a branch that lacks it, and that alone is answered.
    github.call(Who::Installation, "GET", &path, NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{path}/statuses"), NONE, 200).await;
    let list = format!("{REPO}/deployments?environment=review%2Fpr-{number}&per_page=1");
    github.call(Who::Installation, "GET", &list, NONE, 200).await;
    github.call(Who::Installation, "POST", &format!("{path}/statuses"), json!({"state": "inactive"}), 201).await;
    github.call(Who::Installation, "DELETE", &path, NONE, 204).await;
    github.expect_webhook("deployment", Some("created")).await;
    github.expect_webhook("deployment_status", Some("created")).await;

    github.call(Who::Installation, "GET", &format!("{REPO}/environments"), NONE, 200).await;
    github.call(Who::Owner, "PUT", &format!("{REPO}/environments/production"), json!({"wait_timer": 0}), 200).await;
    let me = github.call(Who::Owner, "GET", "/user", NONE, 200).await;
    let guarded = json!({
        "wait_timer": 30,
        "prevent_self_review": true,
        "reviewers": [{"type": "User", "id": id(&me)}],
        "deployment_branch_policy": {"protected_branches": false, "custom_branch_policies": true},
    });
    github.prepare(Who::Owner, "PUT", &format!("{REPO}/environments/live"), guarded).await;
    let named = json!({"repo": "octo/hello", "environment": "live", "branches": ["main", "release/*"]});
    github.prepare(Who::Nobody, "POST", "/_/environment-branches", named).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/environments/live"), NONE, 200).await;
    let policies = format!("{REPO}/environments/live/deployment-branch-policies");
    github.call(Who::Installation, "GET", &policies, NONE, 200).await;
    github.call(Who::Owner, "PUT", &format!("{REPO}/environments/qa"), NONE, 200).await;
    let path = format!("{REPO}/environments/review%2Fpr-{number}");
    github.call(Who::Installation, "GET", &path, NONE, 200).await;
    github.call(Who::Owner, "DELETE", &path, NONE, 204).await;
}

/// Who may do what, and the tokens that people get by the OAuth flow.
async fn people(github: &mut Driver) {
    let path = format!("{REPO}/collaborators/stranger");
    github.call(Who::Installation, "GET", &path, NONE, 404).await;
    github.call(Who::Installation, "GET", &format!("{path}/permission"), NONE, 200).await;
    github.prepare(Who::Owner, "PUT", &path, json!({"permission": "maintain"})).await;
    github.call(Who::Installation, "GET", &path, NONE, 204).await;
    github.call(Who::Installation, "GET", &format!("{path}/permission"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/collaborators"), NONE, 200).await;
    github.expect_webhook("member", Some("added")).await;

    for action in ["edited", "removed"] {
        let permission = if action == "edited" { json!("write") } else { json!(null) };
        let body = json!({"repo": "octo/hello", "user": "stranger", "permission": permission});
        github.prepare(Who::Nobody, "POST", "/_/collaborator", body).await;
        github.expect_webhook("member", Some(action)).await;
    }

    oauth(github).await;
    github.call(Who::Oauth, "GET", "/user", NONE, 200).await;
    let installations = github.call(Who::Oauth, "GET", "/user/installations", NONE, 200).await;
    let installation = installations["installations"].pointer("/0").map(id).unwrap_or_default();
    let path = format!("/user/installations/{installation}/repositories");
    github.call(Who::Oauth, "GET", &path, NONE, 200).await;
    github.call(Who::Oauth, "GET", "/user/orgs", NONE, 200).await;
    let member = json!({"org": "acme", "user": "octo", "role": "admin"});
    github.prepare(Who::Nobody, "POST", "/_/member", member).await;
    let team = json!({"org": "acme", "team": "deployers", "members": ["octo"]});
    github.prepare(Who::Nobody, "POST", "/_/team", team).await;
    github.prepare(Who::Owner, "POST", "/orgs/acme/repos", json!({"name": "site", "private": true})).await;
    github.expect_webhook("installation", Some("created")).await;
    github.call(Who::Oauth, "GET", "/user/orgs", NONE, 200).await;
    github.call(Who::App, "GET", "/orgs/acme/installation", NONE, 200).await;
    github.call(Who::Owner, "GET", "/user/memberships/orgs/acme", NONE, 200).await;
    github.call(Who::Owner, "GET", "/orgs/acme/teams/deployers/memberships/octo", NONE, 200).await;

    let client = github.tokens.get("client_id").cloned().unwrap_or_default();
    let token = json!({"access_token": github.tokens.get("oauth")});
    github.call(Who::Client, "POST", &format!("/applications/{client}/token"), token.clone(), 200).await;
    github.call(Who::Client, "DELETE", &format!("/applications/{client}/token"), token.clone(), 204).await;
    github.call(Who::Oauth, "GET", "/user", NONE, 401).await;
    oauth(github).await;
    let token = json!({"access_token": github.tokens.get("oauth")});
    github.call(Who::Client, "DELETE", &format!("/applications/{client}/grant"), token, 204).await;
    github.expect_webhook("github_app_authorization", Some("revoked")).await;
}

/// Walks a browser through the OAuth flow and keeps the token.
async fn oauth(github: &mut Driver) {
    let app = github.call(Who::App, "GET", "/app", NONE, 200).await;
    let client = text(&app, "/client_id").to_owned();
    let path = format!("/login/oauth/authorize?client_id={client}&redirect_uri=http%3A%2F%2Flocalhost%2Fback&state=s1");
    let reply = github.send(Who::Nobody, "GET", &path, None).await;
    let back = reply.headers.get("location").cloned().unwrap_or_default();
    let code = back.split(['?', '&']).find_map(|pair| pair.strip_prefix("code=")).unwrap_or_default().to_owned();
    if !back.starts_with("http://localhost/back?") || !back.contains("state=s1") || code.is_empty() {
        github.complain(format!("GET {path} leads back to {back}"));
    }
    let secret = github.tokens.get("client_secret").cloned().unwrap_or_default();
    let exchange = json!({"client_id": client, "client_secret": secret, "code": code});
    let token = github.prepare(Who::Nobody, "POST", "/login/oauth/access_token", exchange.clone()).await;
    github.tokens.insert("oauth", text(&token, "/access_token").to_owned());
    // A code is good for one use; the error comes with 200.
    let again = github.prepare(Who::Nobody, "POST", "/login/oauth/access_token", exchange).await;
    if again["error"] != "bad_verification_code" {
        github.complain(format!("a used code is answered with {again}"));
    }
}

async fn merging(github: &mut Driver, number: u64) {
    let path = format!("{REPO}/pulls/{number}");
    let pull = github.call(Who::Installation, "GET", &path, NONE, 200).await;
    let raced = json!({"sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e"});
    github.call(Who::Owner, "PUT", &format!("{path}/merge"), raced, 409).await;
    let merge = json!({"sha": text(&pull, "/head/sha"), "merge_method": "squash", "commit_title": "Add login (#1)"});
    github.call(Who::Owner, "PUT", &format!("{path}/merge"), merge, 200).await;
    github.call(Who::Installation, "GET", &format!("{path}/merge"), NONE, 204).await;
    github.call(Who::Installation, "GET", &path, NONE, 200).await;
    github.call(Who::Owner, "PUT", &format!("{path}/merge"), NONE, 405).await;
    let main = json!({"base": "feature/login", "head": "main", "commit_message": "Catch up"});
    github.call(Who::Owner, "POST", &format!("{REPO}/merges"), main.clone(), 201).await;
    github.call(Who::Owner, "POST", &format!("{REPO}/merges"), main, 204).await;
}

/// Errors have a shape too.
async fn refusals(github: &mut Driver) {
    let zeros = "0".repeat(40);
    for (who, method, path, body, status) in [
        (Who::Nobody, "GET", "/app".to_owned(), NONE, 401),
        (Who::Installation, "GET", "/app".to_owned(), NONE, 401),
        (Who::Installation, "GET", "/user".to_owned(), NONE, 403),
        (Who::Installation, "GET", "/repos/octo/nothing".to_owned(), NONE, 404),
        (Who::Installation, "GET", format!("{REPO}/pulls/999"), NONE, 404),
        (Who::Installation, "GET", format!("{REPO}/contents/nothing"), NONE, 404),
        (Who::Installation, "GET", format!("{REPO}/commits/{zeros}"), NONE, 422),
        (Who::Installation, "GET", format!("{REPO}/git/ref/heads/nothing"), NONE, 404),
        (Who::Installation, "GET", format!("{REPO}/deployments/1"), NONE, 404),
        (Who::Installation, "POST", format!("{REPO}/merges"), json!({"base": "main", "head": "feature/login"}), 403),
        (Who::Owner, "POST", format!("{REPO}/pulls"), json!({"title": "x", "head": "main", "base": "main"}), 422),
        (Who::Owner, "POST", format!("{REPO}/git/refs"), json!({"ref": "refs/tags/v1", "sha": zeros}), 422),
        (Who::Installation, "POST", format!("{REPO}/statuses/{zeros}"), json!({"state": "success"}), 422),
        (Who::App, "GET", "/app/installations/999".to_owned(), NONE, 404),
        (Who::App, "GET", "/repos/octo/nothing/installation".to_owned(), NONE, 404),
    ] {
        github.call(who, method, &path, body, status).await;
    }
    let reply = github.reply(Who::Installation, "GET", REPO, NONE, 200).await;
    if !reply.headers.contains_key("etag") {
        github.complain(format!("GET {REPO}: the header etag is missing"));
    }
}

/// The merge queue, a fork, suspension, renames, and the end of it all.
async fn ending(github: &mut Driver) {
    github.prepare(Who::Stranger, "POST", &format!("{REPO}/forks"), json!({})).await;
    let file = json!({"message": "Go on", "content": encoded("on\n")});
    github.call(Who::Owner, "PUT", &format!("{REPO}/contents/on.txt"), file, 201).await;
    let upstream = json!({"branch": "main"});
    github.call(Who::Stranger, "POST", "/repos/stranger/hello/merge-upstream", upstream, 200).await;
    github.call(Who::Stranger, "GET", "/repos/stranger/hello", NONE, 200).await;
    let file = json!({"message": "Help", "content": encoded("help\n"), "branch": "help"});
    let branch = json!({"ref": "refs/heads/help", "sha": head_of(github, "/repos/stranger/hello").await});
    github.call(Who::Stranger, "POST", "/repos/stranger/hello/git/refs", branch, 201).await;
    github.call(Who::Stranger, "PUT", "/repos/stranger/hello/contents/help.txt", file, 201).await;
    let opened = json!({"title": "Help", "head": "stranger:help", "base": "main", "draft": true});
    let pull = github.call(Who::Stranger, "POST", &format!("{REPO}/pulls"), opened, 201).await;
    let number = pull["number"].as_u64().unwrap_or_default();
    let run = json!({"name": "landfall/tests", "head_sha": text(&pull, "/head/sha"), "status": "in_progress"});
    github.call(Who::Installation, "POST", &format!("{REPO}/check-runs"), run, 201).await;
    let queued = json!({"repo": "octo/hello", "number": number});
    github.prepare(Who::Nobody, "POST", "/_/merge-group", queued).await;
    github.expect_webhook("merge_group", Some("checks_requested")).await;
    // The fork goes, the pull request stays, without a head repository.
    github.prepare(Who::Nobody, "POST", "/_/delete", json!({"repo": "stranger/hello"})).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/pulls/{number}"), NONE, 200).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/pulls?state=all"), NONE, 200).await;
    github.call(Who::Stranger, "PATCH", &format!("{REPO}/pulls/{number}"), json!({"state": "closed"}), 200).await;

    let plain = github.prepare(Who::Owner, "POST", &format!("{REPO}/issues"), json!({"title": "A question"})).await;
    let issue = format!("{REPO}/issues/{}", plain["number"]);
    github.call(Who::Installation, "GET", &issue, NONE, 200).await;
    github.call(Who::Owner, "POST", &format!("{issue}/comments"), json!({"body": "Why?"}), 201).await;
    github.call(Who::Owner, "POST", &format!("{issue}/labels"), json!({"labels": ["question"]}), 200).await;
    for private in [true, false] {
        let body = json!({"repo": "octo/hello", "private": private});
        github.prepare(Who::Nobody, "POST", "/_/visibility", body).await;
    }
    let more = json!({"permissions": {"administration": "write"}});
    github.prepare(Who::Nobody, "POST", "/_/permissions", more).await;

    let installation = login(github).await;
    let suspended = format!("/app/installations/{installation}/suspended");
    github.call(Who::App, "PUT", &suspended, NONE, 204).await;
    github.call(Who::App, "GET", &format!("/app/installations/{installation}"), NONE, 200).await;
    let tokens = format!("/app/installations/{installation}/access_tokens");
    github.call(Who::App, "POST", &tokens, NONE, 403).await;
    github.call(Who::Installation, "GET", REPO, NONE, 403).await;
    github.call(Who::App, "DELETE", &suspended, NONE, 204).await;

    let rename = json!({"repo": "octo/hello", "name": "goodbye"});
    github.prepare(Who::Nobody, "POST", "/_/rename", rename).await;
    github.call(Who::Installation, "GET", REPO, NONE, 301).await;
    github.call(Who::Installation, "GET", &format!("{REPO}/commits/main"), NONE, 301).await;
    let comment = json!({"body": "Where am I?"});
    github.call(Who::Installation, "POST", &format!("{REPO}/issues/{number}/comments"), comment, 307).await;
    github.call(Who::App, "GET", &format!("{REPO}/installation"), NONE, 301).await;
    let transfer = json!({"repo": "octo/goodbye", "owner": "acme"});
    github.prepare(Who::Nobody, "POST", "/_/transfer", transfer).await;
    github.prepare(Who::Nobody, "POST", "/_/transfer", json!({"repo": "acme/goodbye", "owner": "octo"})).await;

    login(github).await;
    github.call(Who::Installation, "DELETE", "/installation/token", NONE, 204).await;
    github.call(Who::Installation, "GET", "/installation/repositories", NONE, 401).await;
    github.call(Who::App, "DELETE", &format!("/app/installations/{installation}"), NONE, 204).await;
    github.call(Who::App, "DELETE", &format!("/app/installations/{installation}"), NONE, 404).await;
    for (event, action) in [
        ("installation", "suspend"),
        ("installation", "unsuspend"),
        ("installation", "new_permissions_accepted"),
        ("installation", "deleted"),
        ("installation_repositories", "removed"),
        ("installation_repositories", "added"),
        ("repository", "created"),
        ("repository", "privatized"),
        ("repository", "publicized"),
        ("repository", "renamed"),
        ("repository", "transferred"),
        ("issues", "opened"),
        ("issues", "labeled"),
    ] {
        github.expect_webhook(event, Some(action)).await;
    }
    github.expect_webhook("ping", None).await;
}

/// The commit on a repository's main branch.
async fn head_of(github: &mut Driver, repository: &str) -> String {
    let reference = github.call(Who::Stranger, "GET", &format!("{repository}/git/ref/heads/main"), NONE, 200).await;
    text(&reference, "/object/sha").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_and_webhook_fits_githubs_schemas() {
    let mut github = Driver::start().await;
    repository(&mut github).await;
    manifest(&mut github).await;
    app(&mut github).await;
    git_data(&mut github).await;
    let number = pull_request(&mut github).await;
    comments(&mut github, number).await;
    statuses_and_checks(&mut github, number).await;
    deployments(&mut github, number).await;
    people(&mut github).await;
    merging(&mut github, number).await;
    refusals(&mut github).await;
    ending(&mut github).await;
    github.verdict();
}
