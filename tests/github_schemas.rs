//! Whether the judge bites: GitHub's own recordings pass where they should, and deliberate mistakes do not.

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::{Value, json};

use crate::support::schemas::{CheckingProxy, GitHubSchemas, webhook_examples};

const REPO: &str = "/repos/octocat/hello";

fn request(method: &str, path: &str, body: Value) -> Vec<String> {
    let body = (!body.is_null()).then_some(body);
    GitHubSchemas::load().check_request(method, path, body.as_ref()).err().unwrap_or_default()
}

fn response(method: &str, path: &str, status: u16, body: Value) -> Vec<String> {
    let body = (!body.is_null()).then_some(body);
    GitHubSchemas::load().check_response(method, path, status, body.as_ref()).err().unwrap_or_default()
}

fn git_ref() -> Value {
    json!({
        "ref": "refs/heads/main",
        "node_id": "REF_1",
        "url": "https://api.github.com/repos/octocat/hello/git/refs/heads/main",
        "object": {
            "type": "commit",
            "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e",
            "url": "https://api.github.com/repos/octocat/hello/git/commits/6dcb09b5b57875f334f61aebed695e2e4193db5e",
        },
    })
}

/// The recordings are older than the schemas, so those that fail do so for fields that GitHub added since. The number
/// is exact: were the judge to become laxer or stricter by accident, it would change.
#[test]
fn recorded_payloads_pass_but_for_later_fields() {
    let mut passed = 0;
    let mut complaints = Vec::new();
    for (event, payload) in webhook_examples() {
        match GitHubSchemas::load().check_webhook(event, payload) {
            Ok(()) => passed += 1,
            Err(sentences) => complaints.extend(sentences),
        }
    }
    assert_eq!((passed, webhook_examples().len()), (215, 329));

    // Beside missing fields there are only four known oddities of old recordings.
    complaints.retain(|sentence| {
        !(sentence.contains("is a required property")
            || sentence.contains("installation/created_at") && sentence.ends_with("is not of type \"string\"")
            || sentence.contains("installation/updated_at") && sentence.ends_with("is not of type \"string\"")
            || sentence.contains("/app/") && sentence.ends_with("is not a \"date-time\"")
            || sentence.contains("price_model"))
    });
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn recorded_payloads_of_the_events_in_use_are_there() {
    for event in [
        "pull_request",
        "push",
        "issue_comment",
        "check_run",
        "check_suite",
        "installation",
        "installation_repositories",
        "merge_group",
        "deployment",
        "deployment_status",
        "status",
        "create",
        "delete",
        "ping",
        "repository",
    ] {
        assert!(webhook_examples().iter().any(|(name, _)| name == event), "no recording of {event}");
    }
}

#[test]
fn damaged_payloads_fail() {
    let schemas = GitHubSchemas::load();
    let mut damaged = 0;
    for (event, payload) in webhook_examples() {
        if schemas.check_webhook(event, payload).is_err() || !payload["sender"].is_object() {
            continue;
        }
        let mut wrong_type = payload.clone();
        wrong_type["sender"]["id"] = json!("583231");
        let sentences = schemas.check_webhook(event, &wrong_type).expect_err("an id is a number");
        assert!(
            sentences.iter().all(|sentence| sentence.ends_with(r#"/sender/id: "583231" is not of type "integer""#)),
            "{sentences:?}"
        );

        let mut missing = payload.clone();
        missing["sender"].as_object_mut().expect("seen above").remove("login");
        let sentences = schemas.check_webhook(event, &missing).expect_err("an account has a login");
        assert!(
            sentences.iter().all(|sentence| sentence.ends_with(r#"/sender: "login" is a required property"#)),
            "{sentences:?}"
        );
        damaged += 1;
    }
    assert!(damaged > 150, "only {damaged} payloads could be damaged");
}

#[test]
fn unknown_events_and_actions_are_named() {
    let schemas = GitHubSchemas::load();
    let sentences = schemas.check_webhook("pull_reqest", &json!({})).expect_err("no such event");
    assert_eq!(sentences, ["webhook pull_reqest: GitHub has no such event"]);
    let sentences = schemas.check_webhook("merge_group", &json!({"action": "removed"})).expect_err("no such action");
    assert_eq!(sentences, ["webhook merge_group.removed: GitHub has no such action, only checks_requested, destroyed"]);
}

#[test]
fn every_operation_is_found_under_its_own_template() {
    let schemas = GitHubSchemas::load();
    assert_eq!(schemas.operations().len(), 107);
    for operation in schemas.operations() {
        let (method, template) = operation.split_once(' ').expect("method and path");
        let path: Vec<_> = template.split('/').map(|part| if part.starts_with('{') { "7" } else { part }).collect();
        assert_eq!(schemas.operation_of(method, &path.join("/")), Some(operation.clone()));
    }
}

#[test]
fn paths_with_slashes_and_by_id_are_understood() {
    let schemas = GitHubSchemas::load();
    let of = |method, path: &str| schemas.operation_of(method, path);
    let operation = |name: &str| Some(name.to_owned());
    assert_eq!(
        of("GET", "/repos/o/r/contents/app/models/user.rb"),
        operation("GET /repos/{owner}/{repo}/contents/{path}")
    );
    assert_eq!(of("GET", "/repos/o/r/contents/"), operation("GET /repos/{owner}/{repo}/contents/{path}"));
    assert_eq!(of("GET", "/repos/o/r/git/ref/heads/a/b"), operation("GET /repos/{owner}/{repo}/git/ref/{ref}"));
    assert_eq!(
        of("GET", "/repos/o/r/commits/heads/a/b/check-runs"),
        operation("GET /repos/{owner}/{repo}/commits/{ref}/check-runs")
    );
    assert_eq!(of("GET", "/repositories/1296269/pulls/7"), operation("GET /repos/{owner}/{repo}/pulls/{pull_number}"));
    assert_eq!(of("GET", "/repositories/1296269"), operation("GET /repos/{owner}/{repo}"));
    assert_eq!(of("GET", "/repositories/octocat/pulls"), None);
    assert_eq!(
        of("PATCH", "/repos/o/r/check-suites/preferences"),
        operation("PATCH /repos/{owner}/{repo}/check-suites/preferences")
    );
    assert_eq!(of("GET", "/repos/o/r/"), None);
    assert_eq!(of("GET", "/repos//r"), None);
}

#[test]
fn good_requests_pass() {
    for (method, path, body) in [
        ("GET", "/app".to_owned(), json!(null)),
        ("GET", format!("{REPO}/pulls?state=open&per_page=100&page=2"), json!(null)),
        ("GET", format!("{REPO}/environments/review%2Fpr-7"), json!(null)),
        ("GET", format!("{REPO}/commits?sha=main&since=2024-05-01T10%3A00%3A00Z"), json!(null)),
        ("DELETE", format!("{REPO}/issues/comments/5"), json!({})),
        ("POST", format!("{REPO}/issues/7/comments"), json!({"body": "Deployed."})),
        ("POST", format!("{REPO}/issues/7/labels"), json!({"labels": ["preview"]})),
        ("POST", format!("{REPO}/deployments"), json!({"ref": "main", "payload": {"any": 1}, "description": null})),
        ("POST", "/app/installations/5/access_tokens".to_owned(), json!({"permissions": {"contents": "read"}})),
        ("POST", "/app/installations/5/access_tokens".to_owned(), json!(null)),
    ] {
        assert_eq!(request(method, &path, body), Vec::<String>::new(), "{method} {path}");
    }
}

#[test]
fn wrong_requests_are_named() {
    let comments = format!("{REPO}/issues/7/comments");
    for (method, path, body, complaint) in [
        ("GET", format!("{REPO}/stars"), json!(null), "this is not among the operations that Landfall uses"),
        ("PUT", comments.clone(), json!({}), "of this path only GET and POST is in use"),
        ("POST", comments.clone(), json!(null), "the body is missing"),
        ("POST", comments.clone(), json!({}), r#"the body: "body" is a required property"#),
        ("POST", comments.clone(), json!({"body": 7}), r#"/body: 7 is not of type "string""#),
        ("POST", comments.clone(), json!({"body": "Hi", "text": "Hi"}), "GitHub knows no property `/text`"),
        ("POST", format!("{REPO}/check-runs"), json!({"name": "a", "head_sha": "b", "status": "done"}), "/status:"),
        (
            "POST",
            format!("{REPO}/check-runs"),
            json!({"name": "a", "head_sha": "b", "output": {"title": "t", "summary": "s", "body": "x"}}),
            "GitHub knows no property `/output/body`",
        ),
        (
            "POST",
            format!("{REPO}/check-runs"),
            json!({"name": "a", "head_sha": "b", "output": {"title": "t", "summary": "s".repeat(65_536)}}),
            "/output/summary:",
        ),
        (
            "POST",
            "/app/installations/5/access_tokens".to_owned(),
            json!({"permissions": {"content": "read"}}),
            "GitHub knows no property `/permissions/content`",
        ),
        ("GET", "/app/installations/mine".to_owned(), json!(null), "the path parameter `installation_id` must not be"),
        (
            "GET",
            format!("{REPO}/pulls?state=merged"),
            json!(null),
            "the query parameter `state` must not be \"merged\"",
        ),
        ("GET", format!("{REPO}/pulls?size=9"), json!(null), "GitHub knows no query parameter `size` here"),
        ("GET", format!("{REPO}/pulls?page=x"), json!(null), "the query parameter `page` must not be \"x\""),
        ("GET", format!("{REPO}/pulls?per_page=200"), json!(null), "GitHub gives 1 to 100 entries a page, not 200"),
        ("GET", format!("{REPO}/pulls?page=1&page=2"), json!(null), "the query parameter `page` is given twice"),
        ("GET", format!("{REPO}/pulls"), json!({"state": "open"}), "GitHub takes no body here"),
    ] {
        let sentences = request(method, &path, body);
        assert_eq!(sentences.len(), 1, "{method} {path}: {sentences:?}");
        assert!(sentences[0].contains(complaint), "{sentences:?} lacks {complaint:?}");
    }
}

#[test]
fn answers_are_judged() {
    let path = format!("{REPO}/git/ref/heads/main");
    assert_eq!(response("GET", &path, 200, git_ref()), Vec::<String>::new());
    let not_found =
        json!({"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"});
    assert_eq!(response("GET", &path, 404, not_found), Vec::<String>::new());
    assert_eq!(response("GET", &path, 304, json!(null)), Vec::<String>::new());
    assert_eq!(response("DELETE", "/installation/token", 204, json!(null)), Vec::<String>::new());

    let mut missing = git_ref();
    missing["object"].as_object_mut().expect("an object").remove("url");
    let mut relative = git_ref();
    relative["url"] = json!("/repos/octocat/hello/git/refs/heads/main");
    for (status, body, complaint) in [
        (200, missing, r#"/object: "url" is a required property"#),
        (200, relative, r#"/url: "/repos/octocat/hello/git/refs/heads/main" is not a "uri""#),
        (200, json!([git_ref()]), r#"is not of type "object""#),
        (200, json!(null), "the body is missing"),
        (201, git_ref(), "GitHub does not describe this status here, only 200, 404, 409"),
        (404, json!({"error": "no"}), "an error or redirect needs a `message`"),
        (304, json!({"message": "Not Modified"}), "this status has no body"),
    ] {
        let sentences = response("GET", &path, status, body);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        assert!(sentences[0].contains(complaint), "{sentences:?} lacks {complaint:?}");
    }
    assert_eq!(response("DELETE", "/installation/token", 204, json!({})).len(), 1);
    assert_eq!(response("GET", "/nowhere", 200, json!({})).len(), 1);
}

/// Null fits where GitHub's description says `nullable`, by itself or beside a reference or a union, and nowhere else.
#[test]
fn null_fits_only_where_it_may() {
    let payload = webhook_examples()
        .iter()
        .find(|(event, payload)| {
            event == "check_run" && GitHubSchemas::load().check_webhook("check_run", payload).is_ok()
        })
        .map(|(_, payload)| payload["check_run"].clone())
        .expect("one recorded check run fits today's schema");
    let path = format!("{REPO}/check-runs/4");
    let judge = |name: &str, value: Value| {
        let mut run = payload.clone();
        run["check_suite"] = json!({"id": 5});
        run["output"]["annotations_count"] = json!(0);
        run[name] = value;
        response("GET", &path, 200, run)
    };
    assert_eq!(judge("conclusion", json!(null)), Vec::<String>::new());
    assert_eq!(judge("conclusion", json!("success")), Vec::<String>::new());
    assert_eq!(judge("app", json!(null)), Vec::<String>::new());
    assert_eq!(judge("check_suite", json!(null)), Vec::<String>::new());
    assert_eq!(judge("conclusion", json!("excellent")).len(), 1);
    assert_eq!(judge("status", json!(null)).len(), 2, "neither the type nor the enum takes null");
    let sentences = judge("app", json!({"id": 1}));
    assert!(
        sentences.iter().any(|sentence| sentence.contains(r#"/app: "slug" is a required"#)
            || sentence.contains(r#"/app: "name" is a required"#)),
        "{sentences:?}"
    );
}

/// A stand-in of three answers: one right, one wrong, one page.
async fn upstream(request: HttpRequest) -> HttpResponse {
    match request.path() {
        "/repos/octocat/hello/git/ref/heads/main" => HttpResponse::Ok().json(git_ref()),
        "/repos/octocat/hello/pulls" => {
            let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
            let port = ***request.app_data::<web::Data<u16>>().expect("the port is known");
            assert_ne!(host, format!("127.0.0.1:{port}"), "the client's own Host is passed on");
            HttpResponse::Ok()
                .insert_header(("link", format!("<http://127.0.0.1:{port}/repositories/1/pulls?page=2>; rel=\"next\"")))
                .json(json!([{"id": 1}]))
        }
        "/repos/octocat/hello/installation" => {
            let port = ***request.app_data::<web::Data<u16>>().expect("the port is known");
            HttpResponse::MovedPermanently()
                .insert_header(("location", format!("http://127.0.0.1:{port}/repositories/1/installation")))
                .json(json!({"message": "Moved Permanently"}))
        }
        _ => HttpResponse::Ok().content_type("text/html").body("<p>page</p>"),
    }
}

#[actix_web::test]
async fn the_proxy_keeps_complaints() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let server = HttpServer::new(move || App::new().app_data(web::Data::new(port)).default_service(web::to(upstream)))
        .workers(1)
        .disable_signals()
        .listen(listener)
        .expect("listening")
        .run();
    let handle = server.handle();
    actix_web::rt::spawn(server);

    let proxy = CheckingProxy::start(&format!("http://127.0.0.1:{port}")).await;
    let redirect = reqwest::redirect::Policy::none();
    let client =
        reqwest::Client::builder().no_proxy().redirect(redirect).user_agent("landfall").build().expect("a client");
    let get = async |path: &str| client.get(format!("{}{path}", proxy.url())).send().await.expect("an answer");

    let answer = get("/repos/octocat/hello/git/ref/heads/main").await;
    assert_eq!(answer.json::<Value>().await.expect("JSON"), git_ref());
    assert_eq!(get("/octocat/hello.git/info/refs?service=git-upload-pack").await.status(), 200);
    assert_eq!(get("/_/clock").await.text().await.expect("text"), "<p>page</p>");
    assert_eq!(get("/apps/landfall/installations/new").await.status(), 200);
    let answer = get("/repos/octocat/hello/installation").await;
    assert_eq!(answer.status(), 301);
    assert_eq!(answer.headers()["location"], format!("{}/repositories/1/installation", proxy.url()));
    assert_eq!(proxy.complaints(), Vec::<String>::new());

    let answer = get("/repos/octocat/hello/pulls?colour=red").await;
    let link = answer.headers()["link"].to_str().expect("text").to_owned();
    assert_eq!(link, format!("<{}/repositories/1/pulls?page=2>; rel=\"next\"", proxy.url()));
    client.post(format!("{}/repos/octocat/hello/merges", proxy.url())).body("{").send().await.expect("an answer");
    let complaints = proxy.complaints();
    assert_eq!(complaints[0], "GET /repos/octocat/hello/pulls: GitHub knows no query parameter `colour` here");
    assert!(
        complaints
            .contains(&"GET /repos/octocat/hello/pulls answered 200: /0: \"url\" is a required property".to_owned())
    );
    assert!(complaints.last().is_some_and(|last| last.contains("/merges: no JSON in the body")), "{complaints:?}");
    assert_eq!(
        proxy.judged(),
        [
            "GET /repos/{owner}/{repo}/git/ref/{ref}",
            "GET /repos/{owner}/{repo}/installation",
            "GET /repos/{owner}/{repo}/pulls",
            "POST /repos/{owner}/{repo}/merges",
        ]
    );
    drop(proxy);
    handle.stop(false).await;
}
