//! A reverse proxy that stands between a client and the stand-in for GitHub and has every call and answer judged.
//!
//! It changes nothing that passes, except that links and redirects to the upstream lead back through it. Only calls of
//! the REST API are judged: git, pages for people and the stand-in's own controls are none of the description's business.

use std::sync::{Arc, Mutex};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::Value;

use super::GitHubSchemas;

/// First parts of the REST API's paths; anything else is a page or git.
const API: [&str; 15] = [
    "app",
    "app-manifests",
    "applications",
    "apps",
    "enterprises",
    "installation",
    "meta",
    "orgs",
    "organizations",
    "rate_limit",
    "repos",
    "repositories",
    "user",
    "users",
    "zen",
];

/// Headers that belong to one connection and must not be passed on.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// A proxy on a free port of 127.0.0.1, stopped when dropped.
pub struct CheckingProxy {
    url: String,
    record: Arc<Record>,
    server: ServerHandle,
}

struct Record {
    upstream: String,
    url: String,
    client: reqwest::Client,
    complaints: Mutex<Vec<String>>,
    judged: Mutex<Vec<String>>,
}

impl CheckingProxy {
    /// Starts a proxy to `upstream` (`http://127.0.0.1:port`, no slash at the end).
    pub async fn start(upstream: &str) -> CheckingProxy {
        // Whoever was first in this process has installed the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .expect("a client without certificates can be built");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
        let record = Arc::new(Record {
            upstream: upstream.trim_end_matches('/').to_owned(),
            url: url.clone(),
            client,
            complaints: Mutex::default(),
            judged: Mutex::default(),
        });
        let shared = web::Data::from(Arc::clone(&record));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(256 << 20))
                .default_service(web::to(pass))
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .expect("a bound listener can be served")
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        CheckingProxy { url, record, server: handle }
    }

    /// The address to give to the client instead of the upstream's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was wrong so far, each sentence once, in order of appearance.
    pub fn complaints(&self) -> Vec<String> {
        self.record.complaints.lock().expect("no holder panics").clone()
    }

    /// The operations that were judged so far (`METHOD /path/{template}`), in order, so that a test can see that it
    /// did go through here.
    pub fn judged(&self) -> Vec<String> {
        self.record.judged.lock().expect("no holder panics").clone()
    }
}

impl Drop for CheckingProxy {
    fn drop(&mut self) {
        // The command is sent by the call itself; nobody needs to see the end.
        drop(self.server.stop(false));
    }
}

async fn pass(request: HttpRequest, body: web::Bytes, record: web::Data<Record>) -> HttpResponse {
    let path_and_query = request.uri().path_and_query().map_or("/", |both| both.as_str());
    let method = request.method().as_str();
    let judged = is_api(request.path());
    if judged {
        record.judge_request(&request, path_and_query, &body);
    }

    let method_upstream = reqwest::Method::from_bytes(method.as_bytes()).expect("actix parsed this method");
    let mut forwarded = record.client.request(method_upstream, format!("{}{path_and_query}", record.upstream));
    for (name, value) in request.headers() {
        if !HOP_BY_HOP.contains(&name.as_str()) {
            forwarded = forwarded.header(name.as_str(), value.as_bytes());
        }
    }
    // An empty body would gain a Content-Length that the client did not send.
    if !body.is_empty() {
        forwarded = forwarded.body(body);
    }
    let answer = async {
        let answer = forwarded.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
    };
    let (status, headers, bytes) = match answer.await {
        Ok(answer) => answer,
        Err(error) => return HttpResponse::BadGateway().content_type("text/html").body(error.to_string()),
    };
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if judged && request.method() != "HEAD" {
        record.judge_response(method, path_and_query, status, kind, &bytes);
    }

    let mut response = HttpResponse::build(StatusCode::from_u16(status).expect("an HTTP status"));
    for (name, value) in &headers {
        if HOP_BY_HOP.contains(&name.as_str()) {
            continue;
        }
        let value = match (name.as_str(), value.to_str()) {
            ("link" | "location", Ok(text)) => HeaderValue::from_str(&text.replace(&record.upstream, &record.url)),
            _ => HeaderValue::from_bytes(value.as_bytes()),
        };
        let name = HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            response.append_header((name, value));
        }
    }
    response.body(bytes)
}

impl Record {
    fn judge_request(&self, request: &HttpRequest, path_and_query: &str, body: &[u8]) {
        let method = request.method().as_str();
        let schemas = GitHubSchemas::load();
        if let Some(operation) = schemas.operation_of(method, request.path()) {
            self.judged.lock().expect("no holder panics").push(operation);
        }
        if !request.headers().contains_key("user-agent") {
            self.complain([format!("{method} {}: GitHub refuses calls without a User-Agent", request.path())]);
        }
        match (body.is_empty(), serde_json::from_slice::<Value>(body)) {
            (true, _) => self.keep(schemas.check_request(method, path_and_query, None)),
            (false, Ok(value)) => self.keep(schemas.check_request(method, path_and_query, Some(&value))),
            (false, Err(error)) => {
                self.complain([format!("{method} {}: no JSON in the body: {error}", request.path())])
            }
        }
    }

    fn judge_response(&self, method: &str, path_and_query: &str, status: u16, kind: &str, body: &[u8]) {
        let schemas = GitHubSchemas::load();
        if schemas.operation_of(method, path_and_query.split('?').next().unwrap_or_default()).is_none() {
            // Said already of the request.
            return;
        }
        if body.is_empty() {
            return self.keep(schemas.check_response(method, path_and_query, status, None));
        }
        if !kind.contains("json") {
            return;
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => self.keep(schemas.check_response(method, path_and_query, status, Some(&value))),
            Err(error) => self.complain([format!("{method} {path_and_query} answered {status}: broken JSON: {error}")]),
        }
    }

    fn keep(&self, verdict: Result<(), Vec<String>>) {
        if let Err(sentences) = verdict {
            self.complain(sentences);
        }
    }

    fn complain(&self, sentences: impl IntoIterator<Item = String>) {
        let mut complaints = self.complaints.lock().expect("no holder panics");
        for sentence in sentences {
            if !complaints.contains(&sentence) {
                complaints.push(sentence);
            }
        }
    }
}

/// Whether a path is one of the REST API: no page, no git, no control of the stand-in.
fn is_api(path: &str) -> bool {
    let mut parts = path.trim_start_matches('/').split('/');
    let first = parts.next().unwrap_or_default();
    // `/apps/{slug}` is the API's, `/apps/{slug}/installations/new` is a page.
    let page = first == "apps" && parts.clone().count() > 1;
    let git = path.contains(".git/") || path.ends_with("/info/refs") || path.contains("/git-upload-pack");
    API.contains(&first) && !page && !git
}
