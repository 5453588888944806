//! No text of others becomes markup on any page.

use super::house::{HOSTILE, House, app, live, release, repository, run, sha};
use crate::domain::*;
use crate::store::{Table, Transaction, number_key};
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::test::TestRequest;
use serde_json::{Value, json};

/// What the server answered.
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// The server without GitHub's door, which has tests of its own.
macro_rules! service {
    ($house:expr) => {{
        let service = actix_web::test::init_service(
            actix_web::App::new()
                .app_data($house.shared.clone())
                .route("/healthz", actix_web::web::get().to(crate::web::metrics::healthz))
                .service(crate::web::guarded()),
        )
        .await;
        async move |request: actix_web::test::TestRequest| {
            let response = actix_web::test::call_service(&service, request.to_request()).await;
            crate::web::tests::pages::Answered {
                status: response.status(),
                headers: response.headers().clone(),
                body: actix_web::test::read_body(response).await.to_vec(),
            }
        }
    }};
}
pub(super) use service;

pub async fn get(service: &impl AsyncFn(TestRequest) -> Answered, path: &str) -> (StatusCode, String) {
    let answered = service(TestRequest::get().uri(path).insert_header(("host", "localhost:8080"))).await;
    (answered.status, String::from_utf8(answered.body).expect("UTF-8"))
}

/// Every page that a hostile world has.
fn all_pages(house: &House) -> Vec<String> {
    let store = &house.world().store;
    let mut paths: Vec<String> = [
        "/",
        "/pipelines/acme/hello",
        "/pipelines/acme/hello/flaky",
        "/audit",
        "/alerts",
        "/deliveries",
        "/deliveries?only=decided",
    ]
    .into_iter()
    .chain(["/deliveries?only=open", "/deliveries?after=delivery-3"])
    .map(str::to_owned)
    .collect();
    paths.extend(store.apps().unwrap().into_iter().map(|app| format!("/apps/{}", app.name)));
    paths.extend(store.apps().unwrap().into_iter().map(|app| format!("/apps/{}/metrics?range=24h", app.name)));
    for run in store.runs().unwrap() {
        paths.push(format!("/runs/{}", run.number));
        paths.extend((0..run.nodes).map(|node| format!("/runs/{}/nodes/{node}", run.number)));
    }
    paths.extend(store.builds().unwrap().into_iter().map(|build| format!("/builds/{}", build.key.0)));
    let deliveries = store.deliveries(None, 100).unwrap();
    paths.extend(deliveries.into_iter().map(|delivery| format!("/deliveries/{}", delivery.id)));
    paths
}

/// A start tag with its attributes, as a browser would read it.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

/// Reads the tags of a page of ours: names in lower case, values in double quotes. Anything else is a fault.
fn tags(page: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        if rest.starts_with("!doctype html>") || rest.starts_with('/') {
            continue;
        }
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric()).expect("a tag ends");
        let mut tag = Tag { name: rest[..end].to_owned(), attributes: Vec::new() };
        assert!(!tag.name.is_empty(), "a lone < before {:?}", &rest[..rest.len().min(60)]);
        rest = &rest[end..];
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix("/>").or_else(|| rest.strip_prefix('>')) {
                rest = after;
                break;
            }
            let end = rest.find(['=', '>', ' ', '\n']).expect("an attribute ends");
            let name = rest[..end].to_owned();
            rest = &rest[end..];
            let mut value = String::new();
            if let Some(quoted) = rest.strip_prefix("=\"") {
                let end = quoted.find('"').expect("a value ends");
                value = decoded(&quoted[..end]);
                rest = &quoted[end + 1..];
                assert!(
                    rest.starts_with([' ', '>', '/', '\n']),
                    "{} {name}={value:?} is followed by {:?}",
                    tag.name,
                    &rest[..rest.len().min(40)]
                );
            } else {
                assert!(!rest.starts_with('='), "{name} has no quotes");
            }
            tag.attributes.push((name, value));
        }
        tags.push(tag);
    }
    tags
}

pub(super) fn decoded(value: &str) -> String {
    let pairs = [("&#x2f;", "/"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&amp;", "&")];
    pairs.iter().fold(value.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

const TAGS: &[&str] = &[
    "a",
    "article",
    "b",
    "body",
    "br",
    "button",
    "code",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "head",
    "header",
    "html",
    "input",
    "label",
    "li",
    "line",
    "link",
    "main",
    "meta",
    "nav",
    "ol",
    "p",
    "path",
    "polyline",
    "pre",
    "rect",
    "script",
    "section",
    "span",
    "strong",
    "summary",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "textarea",
    "th",
    "thead",
    "time",
    "title",
    "tr",
    "ul",
];

fn check(path: &str, page: &str) {
    for tag in tags(page) {
        assert!(TAGS.contains(&tag.name.as_str()), "{path}: <{}>", tag.name);
        for (name, value) in &tag.attributes {
            let known = name.bytes().all(|byte| {
                byte.is_ascii_lowercase()
                    || byte == b'-'
                    || byte == b'B'
                    || byte == b'A'
                    || byte == b'R'
                    || byte.is_ascii_digit()
            });
            assert!(known && !name.starts_with("on") && name != "style", "{path}: <{} {name}={value:?}>", tag.name);
            if matches!(name.as_str(), "href" | "src" | "action") {
                let fine = ["/", "#main", "http://", "https://", "data:image/svg+xml,"];
                assert!(fine.iter().any(|start| value.starts_with(start)), "{path}: {name}={value:?}");
                assert!(!value.starts_with("//"), "{path}: {name}={value:?}");
            }
        }
        if tag.name == "script" {
            assert_eq!(tag.attributes.first().map(|(_, value)| value.as_str()), Some("/assets/live.js"), "{path}");
        }
        if tag.name == "time" {
            assert!(tag.attributes.iter().any(|(name, _)| name == "datetime"), "{path}");
        }
    }
    for hidden in ['\u{202e}', '\u{1b}', '\0', '\u{9b}', '\u{7}'] {
        assert!(!page.contains(hidden), "{path} holds {hidden:?}: {}", around(page, hidden));
    }
    assert!(!page.contains("49{%"), "{path}: a template was evaluated");
    // Escaped once, not twice: `&lt;` in the text shows as `&amp;lt;`, and nothing shows as `&amp;amp;lt;`.
    assert!(!page.contains("&amp;amp;"), "{path} is escaped twice: {}", around(page, '&'));
    let title = page.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    assert!(title.ends_with("· Landfall") && title.len() > "· Landfall".len() + 1, "{path}: {title:?}");
    assert_eq!(page.matches("<h1").count(), 1, "{path}");
    assert!(page.contains("<html lang=\"en\">") && page.contains("<main id=\"main\""), "{path}");
}

fn around(page: &str, character: char) -> String {
    let at = page.find(character).unwrap_or(0);
    page[..at].chars().rev().take(80).collect::<Vec<_>>().into_iter().rev().collect()
}

#[actix_web::test]
async fn no_text_of_others_becomes_markup_on_any_page() {
    let house = House::hostile().await;
    let service = service!(house);
    let before = house.world().store.figures().transactions;
    let paths = all_pages(&house);
    assert!(paths.len() > 100, "{}", paths.len());
    let mut shown = 0;
    for path in &paths {
        let (status, page) = get(&service, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {page}");
        check(path, &page);
        shown += usize::from(page.contains("&lt;script&gt;alert(1)"));
    }
    assert!(shown > paths.len() / 2, "only {shown} of {} pages show hostile text", paths.len());
    assert_eq!(house.world().store.figures().transactions, before, "looking changed something");
}

#[actix_web::test]
async fn pages_of_an_empty_house_say_what_to_do_first() {
    let house = House::empty();
    let service = service!(house);
    let (status, page) = get(&service, "/").await;
    assert_eq!(status, StatusCode::OK);
    check("/", &page);
    assert!(page.contains("landfall demo") && page.contains("&#x2f;webhooks&#x2f;github"));
    check("/deliveries", &get(&service, "/deliveries").await.1);
}

#[actix_web::test]
async fn pages_of_a_pipeline_read_of_a_long_history_what_they_show() {
    let house = House::empty();
    let service = service!(house);
    let work = |tx: &mut Transaction<'_>| {
        tx.put_repository(&repository())?;
        tx.put_app(&app("hello-staging", Stage::Staging, vec![live(2, 2)], Some(2)))?;
        for number in 1..=2 {
            tx.put_release(&release("hello-staging", number, Cause::Push))?;
        }
        for number in (1..=12).map(RunNumber) {
            tx.put_run(&TestRun { number, ..run(Some(Verdict::Passed)) })?;
        }
        // Whoever reads the old ones fails.
        let outline = json!({ "number": 1, "repository": 1, "commit": sha('e'), "tree": null, "verdict": null });
        tx.put(Table("run"), &number_key(1), &outline)?;
        tx.put(Table("release"), b"hello-staging/0000000001", &json!({}))
    };
    house.world().store.transact(work).await.unwrap();
    assert!(house.world().store.runs_of(RepositoryId(1)).is_err());
    for path in ["/", "/pipelines/acme/hello"] {
        let (status, page) = get(&service, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {page}");
        assert!(page.contains("Run 12<") && !page.contains("Run 2<"), "{path}: {page}");
    }
    let (_, body) = get(&service, "/api/v1/pipelines/acme/hello").await;
    let pipeline: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&pipeline["promotion"]["possible"], &pipeline["promotion"]["from"]["release"]),
        (&json!(true), &json!(2))
    );
}

#[actix_web::test]
async fn what_is_not_there_is_told_as_a_page_or_as_json() {
    let house = House::hostile().await;
    let service = service!(house);
    for path in [
        "/nowhere",
        "/apps/nobody",
        "/apps/..%2f..%2fetc",
        "/apps/%3Cscript%3E",
        "/runs/99999",
        "/runs/x",
        "/runs/1/nodes/0",
        "/runs/3/nodes/99",
        "/builds/ffff",
        "/builds/..%2fx",
        "/deliveries/none",
        "/pipelines/acme/none",
        "/assets/..%2f..%2fCargo.toml",
    ] {
        let (status, page) = get(&service, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        check(path, &page);
        let (status, body) = get(&service, &format!("/api/v1{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "/api/v1{path}");
        let body: Value = serde_json::from_str(&body).expect(path);
        assert_eq!(body["status"], 404);
        let sentence = body["error"].as_str().expect(path);
        assert!(sentence.starts_with("There is no ") && sentence.ends_with('.'), "{sentence}");
    }
    for path in ["/deliveries?only=x", "/api/v1/deliveries?limit=many", "/api/v1/apps/hello-staging/logs?after=%25"] {
        assert_eq!(get(&service, path).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    // Strangers get these while they log in: what pages have around them says something of this house.
    let around = format!("Landfall {}", env!("CARGO_PKG_VERSION"));
    assert!(get(&service, "/").await.1.contains(&around));
    for path in ["/login/app?app=nobody", "/login/app", "/login/callback", "/login/elsewhere"] {
        let page = get(&service, path).await.1;
        assert!(page.contains("<footer>") && !page.contains(&around), "{path}: {page}");
    }
    assert_eq!(get(&service, "/api/v1/apps/hello-staging/logs?after=start").await.0, StatusCode::OK);
}

#[actix_web::test]
async fn every_answer_carries_the_policy() {
    let house = House::empty();
    let service = service!(house);
    for path in ["/", "/nowhere", "/assets/live.js", "/assets/style.css", "/api/v1/apps", "/api/v1/x", "/metrics"] {
        let response = service(TestRequest::get().uri(path).insert_header(("host", "localhost"))).await;
        let header = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "same-origin", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert!(header("access-control-allow-origin").is_empty(), "{path}");
    }
    let rebound = TestRequest::get().uri("/").insert_header(("host", "evil.example"));
    assert_eq!(service(rebound).await.status, StatusCode::FORBIDDEN);
    assert_eq!(get(&service, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
}

#[actix_web::test]
async fn metrics_are_well_formed() {
    let house = House::hostile().await;
    let service = service!(house);
    let (status, text) = get(&service, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(crate::figures::faults(&text), [""; 0], "{text}");
    assert!(text.lines().filter(|line| !line.starts_with('#')).all(|line| line.starts_with("landfall_")), "{text}");
    assert!(text.contains("landfall_deliveries{state=\"parked\"} 1"), "{text}");
    assert!(text.contains("landfall_processes{state="), "{text}");
}

/// Every answer of the API is what its description says.
#[actix_web::test]
async fn answers_fit_their_description() {
    let house = House::hostile().await;
    let service = service!(house);
    let (_, text) = get(&service, "/api/openapi.json").await;
    let description: Value = serde_json::from_str(&text).expect("JSON");
    let paths = description["paths"].as_object().expect("paths");
    // The order of a pipeline is described with its scope's whole path.
    let orders = include_str!("../pipeline_api.rs").replace("(\"/", "(\"/api/v1/pipelines/{owner}/{name}/orders/");
    let source = concat!(include_str!("../api.rs"), include_str!("../app_api.rs"), include_str!("../monitor_api.rs"));
    let source = format!("{source}{orders}");
    let routes = source.matches("web::get().to").count() + source.matches("web::post().to").count();
    let operations: usize = paths.values().map(|path| path.as_object().map_or(0, serde_json::Map::len)).sum();
    assert_eq!(routes - 1, operations, "routes and described operations differ");
    let mut checked = 0;
    for (path, operations) in paths {
        let Some(operation) = operations.get("get") else {
            assert!(source.contains(&format!(".route(\"{path}\", web::post()")), "{path} has no route");
            continue;
        };
        assert!(source.contains(&format!(".route(\"{path}\", web::get()")), "{path} has no route");
        let Some(schema) = operation.pointer("/responses/200/content/application~1json/schema") else { continue };
        let mut schema = schema.clone();
        schema["components"] = description["components"].clone();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        for filled in fill(path, &house) {
            let (status, body) = get(&service, &filled).await;
            assert_eq!(status, StatusCode::OK, "{filled}: {body}");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            let faults: Vec<String> =
                validator.iter_errors(&body).map(|fault| format!("{} {fault}", fault.instance_path())).collect();
            assert!(faults.is_empty(), "{filled}: {faults:#?}");
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}

fn fill(path: &str, house: &House) -> Vec<String> {
    let store = &house.world().store;
    let node = path.contains("{node}");
    let mut filled = Vec::new();
    if path.contains("/one-offs/{number}") {
        for app in store.apps().unwrap() {
            let numbers = app.one_offs.iter().map(|one_off| one_off.number.to_string());
            filled.extend(numbers.map(|number| path.replace("{name}", app.name.as_str()).replace("{number}", &number)));
        }
        assert!(!filled.is_empty());
    } else if path.contains("/apps/{name}") {
        filled.extend(store.apps().unwrap().into_iter().map(|app| path.replace("{name}", app.name.as_str())));
    } else if path.contains("/pipelines/{owner}") {
        filled.push(path.replace("{owner}", "acme").replace("{name}", "hello").replace("{stage}", "review"));
    } else if path.contains("/runs/{number}") {
        let runs = store.runs().unwrap().into_iter().filter(|run| !node || run.nodes > 0);
        filled.extend(runs.map(|run| path.replace("{number}", &run.number.to_string()).replace("{node}", "0")));
    } else if path.contains("/builds/{key}") {
        filled.extend(store.builds().unwrap().into_iter().map(|build| path.replace("{key}", &build.key.0)));
    } else if path.contains("{id}") {
        filled.push(path.replace("{id}", "delivery-0"));
    } else {
        filled.push(path.to_owned());
    }
    assert!(filled.iter().all(|path| !path.contains('{')), "{filled:?}");
    filled
}

#[test]
fn the_hostile_text_is_hostile() {
    assert!(HOSTILE.contains("<script>") && HOSTILE.contains('\u{202e}') && HOSTILE.contains('"'));
}
