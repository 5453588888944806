//! The HTTP side: one listener, one worker of its own threads, and the order in which a request is looked at:
//! controls, faults, git, pages, API. Calls of the API run on blocking threads, since they hold the state's lock
//! while git works.

use std::any::Any;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::dev::{Extensions, ServerHandle};
use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use anyhow::{Context as _, Result};
use serde_json::Value;

use super::access::{self, Actor, Call};
use super::wire::{Answer, Content, Problem, Request, etag, guid, parse_query, percent_decode};
use super::world::{Fault, FaultKind, Logged, World, lock};
use super::{Options, api, controls, git_http, hooks, oauth, pages};

/// The largest body of an API call; pushes stream and have no limit.
const BODY_LIMIT: usize = 30 * 1024 * 1024;

const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

pub struct Running {
    pub address: SocketAddr,
    handle: ServerHandle,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Running {
    pub fn stop(self, world: &World) {
        world.ask_to_stop();
        // The command is sent by the call itself; the future only waits.
        drop(self.handle.stop(false));
        for thread in self.threads {
            let _ = thread.join();
        }
        world.save();
    }
}

/// The descriptor of the connection, to cut it without an answer.
struct Connection(RawFd);

pub fn start(options: Options) -> Result<(Arc<World>, Running)> {
    // reqwest asks rustls for a provider even where it will only ever speak plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = listener.local_addr()?;
    let base = options.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    let world = Arc::new(World::open(&options, base.trim_end_matches('/').to_owned())?);
    let data = web::Data::from(Arc::clone(&world));
    let (ready, started) = std::sync::mpsc::channel();
    let shared = Arc::clone(&world);
    let server = std::thread::Builder::new().name("sim".into()).spawn(move || {
        actix_web::rt::System::new().block_on(async move {
            let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(dispatch)))
                .workers(1)
                // A machine that is busy with a hundred tests may be slow to send a request's first bytes.
                .client_request_timeout(Duration::from_secs(60))
                .disable_signals()
                .shutdown_timeout(1)
                .keep_alive(Duration::from_secs(75))
                .on_connect(|connection: &dyn Any, extensions: &mut Extensions| {
                    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>() {
                        extensions.insert(Connection(stream.as_raw_fd()));
                    }
                })
                .listen(listener);
            match server {
                Ok(server) => {
                    let server = server.run();
                    let _ = ready.send(Ok(server.handle()));
                    let sender = actix_web::rt::spawn(hooks::run(shared));
                    let _ = server.await;
                    sender.abort();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    })?;
    let handle = started.recv().context("the server did not start")??;
    let keeper = {
        let world = Arc::clone(&world);
        std::thread::Builder::new().name("sim-keeper".into()).spawn(move || {
            let mut pause = Duration::from_millis(250);
            while !world.wait_for_stop(pause) {
                let started = Instant::now();
                world.look_around();
                world.save();
                // A large state takes longer to write and is written less often.
                pause = (started.elapsed() * 10).max(Duration::from_millis(250));
            }
        })?
    };
    tracing::info!("a simulated GitHub answers at http://{address}");
    Ok((world, Running { address, handle, threads: vec![server, keeper] }))
}

/// Counts a call as in flight for as long as it lives.
struct Busy(web::Data<World>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn dispatch(request: HttpRequest, payload: web::Payload, world: web::Data<World>) -> HttpResponse {
    let started = Instant::now();
    let path = request.path().to_owned();
    let segments: Vec<String> =
        path.split('/').filter(|part| !part.is_empty()).map(|part| percent_decode(part, false)).collect();
    if segments.first().is_some_and(|first| first == "_") {
        return controls_and_assets(&request, payload, &world, segments).await;
    }
    if path == "/favicon.ico" {
        return HttpResponse::NoContent().finish();
    }
    world.busy.fetch_add(1, Ordering::AcqRel);
    let _busy = Busy(world.clone());
    let fault = strike(&world, request.method().as_str(), &path);
    if let Some(fault) = &fault {
        if fault.delay_ms > 0 || fault.kind == FaultKind::Delay {
            tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
        }
        if let Some(response) = instead(&request, &world, fault, started, &path) {
            return response;
        }
    }
    if let Some(service) = git_http::service(&segments, request.query_string()) {
        let response = git_http::serve(&request, payload, &world, service).await;
        let is_cut = fault.as_ref().is_some_and(|fault| fault.kind == FaultKind::DropAfter);
        if is_cut {
            cut(&request);
        }
        let status = if is_cut { 0 } else { response.status().as_u16() };
        note(&world, &request, status, started, "git", fault.as_ref());
        return response;
    }
    let read = match read_request(&request, payload, &world, segments).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let shared = world.clone();
    let method = read.method.clone();
    let answered = web::block(move || answer(&shared, read)).await;
    let (answer, actor) = answered.unwrap_or_else(|_| (Problem::new(500, "Server Error").answer(), "unknown".into()));
    let mut response = into_response(answer, method == "HEAD");
    match fault.as_ref().map(|fault| fault.kind) {
        Some(FaultKind::DropAfter) => {
            cut(&request);
            note(&world, &request, 0, started, &actor, fault.as_ref());
            return response;
        }
        Some(FaultKind::Status500After) => response = html(500, "Server Error"),
        _ => {}
    }
    if actor != "browser" || method != "GET" {
        note(&world, &request, response.status().as_u16(), started, &actor, fault.as_ref());
    }
    response
}

/// The first fault that fits, with its count taken down.
fn strike(world: &World, method: &str, path: &str) -> Option<Fault> {
    let mut bench = lock(&world.bench);
    let fault = bench.faults.iter_mut().find(|fault| {
        fault.left != Some(0)
            && fault.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && fault.path.as_ref().is_none_or(|pattern| pattern.is_match(path))
    })?;
    fault.left = fault.left.map(|left| left - 1);
    fault.struck += 1;
    Some(fault.clone())
}

const SECONDARY: &str = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";

/// The answer that a fault gives instead of the real one.
fn instead(request: &HttpRequest, world: &World, fault: &Fault, started: Instant, path: &str) -> Option<HttpResponse> {
    let limited = |status: u16, message: &str, primary: bool| {
        let mut answer = Problem::new(status, message).answer();
        if let Some(seconds) = fault.retry_after {
            answer.headers.push(("retry-after".into(), seconds.to_string()));
        }
        if primary {
            let reset = world.read(|state| state.now()) + i64::try_from(fault.retry_after.unwrap_or(60)).unwrap_or(60);
            answer.headers.retain(|(name, _)| name != "retry-after");
            for (name, value) in [
                ("x-ratelimit-limit", "5000".to_owned()),
                ("x-ratelimit-remaining", "0".to_owned()),
                ("x-ratelimit-used", "5000".to_owned()),
                ("x-ratelimit-reset", reset.to_string()),
                ("x-ratelimit-resource", "core".to_owned()),
            ] {
                answer.headers.push((name.into(), value));
            }
        }
        into_response(answer, false)
    };
    let retried = |mut response: HttpResponse| {
        if let Some(seconds) = fault.retry_after {
            response.headers_mut().insert(actix_web::http::header::RETRY_AFTER, seconds.into());
        }
        response
    };
    let response = match fault.kind {
        FaultKind::Status500 => retried(html(500, "Server Error")),
        FaultKind::Status502 => retried(html(502, "Unicorn! This page is taking too long to load.")),
        FaultKind::Status503 => retried(html(503, "No server is currently available to service your request.")),
        FaultKind::Unauthorized => into_response(Problem::bad_credentials().answer(), false),
        FaultKind::Missing => into_response(Problem::not_found().answer(), false),
        FaultKind::EmptyList => into_response(Answer::json(200, Value::Array(Vec::new())), false),
        FaultKind::Secondary => limited(403, SECONDARY, false),
        FaultKind::TooMany => limited(429, SECONDARY, false),
        FaultKind::Primary => limited(403, "API rate limit exceeded for installation ID 50001.", true),
        FaultKind::DropBefore => {
            cut(request);
            note(world, request, 0, started, "unknown", Some(fault));
            return Some(HttpResponse::Ok().finish());
        }
        FaultKind::Delay | FaultKind::DropAfter | FaultKind::Status500After => return None,
    };
    tracing::debug!("the simulated GitHub answers {path} with the fault {:?}", fault.kind);
    note(world, request, response.status().as_u16(), started, "unknown", Some(fault));
    Some(response)
}

/// Cuts the connection at once: the client sees it end without an answer.
fn cut(request: &HttpRequest) {
    if let Some(Connection(descriptor)) = request.conn_data::<Connection>() {
        let _ = nix::sys::socket::shutdown(*descriptor, nix::sys::socket::Shutdown::Both);
    }
}

fn note(world: &World, request: &HttpRequest, status: u16, started: Instant, actor: &str, fault: Option<&Fault>) {
    let at = world.read(|state| state.now());
    let path = match request.query_string() {
        "" => request.path().to_owned(),
        query => format!("{}?{query}", request.path()),
    };
    let mut bench = lock(&world.bench);
    let id = bench.next_log;
    bench.next_log += 1;
    bench.log.push_back(Logged {
        id,
        method: request.method().to_string(),
        path,
        status,
        milliseconds: started.elapsed().as_millis(),
        actor: actor.to_owned(),
        at,
        fault: fault.map(|fault| format!("{:?}", fault.kind)),
    });
    if bench.log.len() > 20_000 {
        bench.log.pop_front();
    }
}

pub async fn read_request(
    request: &HttpRequest,
    payload: web::Payload,
    world: &World,
    segments: Vec<String>,
) -> Result<Request, HttpResponse> {
    let body = match payload.to_bytes_limited(BODY_LIMIT).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(html(400, "the body ended early")),
        Err(_) => return Err(html(413, "the body is too large")),
    };
    Ok(Request {
        method: request.method().to_string(),
        path: request.path().to_owned(),
        segments,
        query_text: request.query_string().to_owned(),
        query: parse_query(request.query_string()),
        headers: request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body,
        base: world.base.clone(),
        canonical_path: None,
    })
}

/// Answers a page or a call of the API; also tells who made it.
fn answer(world: &World, mut request: Request) -> (Answer, String) {
    if let Some(answer) = oauth::answer(world, &request) {
        return (answer, "browser".into());
    }
    if let Some(answer) = pages::answer(world, &request) {
        return (answer, "browser".into());
    }
    let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
    let authorization = request.header("authorization").unwrap_or_default().to_owned();
    let work = |state: &mut super::state::State| {
        if let Some(path) = numbered(state, &request) {
            request.segments = path;
        }
        let (actor, mut refusal) = match access::authenticate(state, &request) {
            Ok(actor) => (actor, None),
            Err(problem) => (Actor::Anonymous, Some(problem)),
        };
        if let Some(version) = request.header("x-github-api-version").filter(|version| !VERSIONS.contains(version)) {
            refusal = Some(Problem::new(400, format!("Version {version} is not a supported version.")));
        }
        let label = if refusal.is_some() { "refused".to_owned() } else { actor.label(state) };
        let limits = count(world, state.now(), &actor, &label, &request);
        request.headers.retain(|(name, _)| !name.starts_with("x-sim-"));
        for (name, value) in ["limit", "used", "reset"].iter().zip([limits.limit, limits.used, limits.reset]) {
            request.headers.push((format!("x-sim-{name}"), value.to_string()));
        }
        let mut answer = if let Some(problem) = refusal {
            problem.answer()
        } else if let Some(problem) = limits.refusal(&label) {
            problem.answer()
        } else {
            let mut call = Call { state, request: &mut request, actor };
            match api::route(&mut call) {
                Some(outcome) => outcome.unwrap_or_else(Problem::answer),
                None => unknown(world, call.request),
            }
        };
        answer.headers.extend(limits.headers());
        (answer, label)
    };
    let (mut answer, actor) = if is_read { world.with_reader(work) } else { world.with(work) };
    finish(&mut answer, &request, is_read, &authorization);
    if answer.status == 304 {
        // What the caller has already costs nothing.
        if let Some((_, used)) = lock(&world.bench).used.get_mut(&actor) {
            *used = used.saturating_sub(1);
        }
    }
    (answer, actor)
}

/// `/repositories/ID/…` is the same as `/repos/OWNER/NAME/…`.
fn numbered(state: &super::state::State, request: &Request) -> Option<Vec<String>> {
    let [first, id, rest @ ..] = request.segments.as_slice() else { return None };
    if first != "repositories" {
        return None;
    }
    // A number that no repository has leads to a name that none has, so the answer is 404.
    let (owner, name) = match state.repositories.get(&id.parse().ok()?) {
        Some(record) => (state.login(record.owner).to_owned(), record.name.clone()),
        None => (String::new(), String::new()),
    };
    let mut path = vec!["repos".to_owned(), owner, name];
    path.extend(rest.iter().cloned());
    Some(path)
}

fn unknown(world: &World, request: &Request) -> Answer {
    let line = format!("{} {}", request.method, request.path);
    tracing::error!("the simulated GitHub does not know {line}");
    *lock(&world.bench).unknown.entry(line.clone()).or_default() += 1;
    Answer::json(501, serde_json::json!({"message": format!("the simulated GitHub does not know {line}")}))
}

struct Limits {
    limit: i64,
    used: i64,
    reset: i64,
    exceeded: bool,
    too_many_writes: bool,
}

impl Limits {
    fn refusal(&self, label: &str) -> Option<Problem> {
        if self.exceeded {
            Some(Problem::new(403, format!("API rate limit exceeded for {label}.")))
        } else if self.too_many_writes {
            Some(Problem::new(403, SECONDARY).with_header("retry-after", "60"))
        } else {
            None
        }
    }

    fn headers(&self) -> Vec<(String, String)> {
        [
            ("x-ratelimit-limit", self.limit.to_string()),
            ("x-ratelimit-remaining", (self.limit - self.used).max(0).to_string()),
            ("x-ratelimit-used", self.used.to_string()),
            ("x-ratelimit-reset", self.reset.to_string()),
            ("x-ratelimit-resource", "core".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

fn count(world: &World, now: i64, actor: &Actor, label: &str, request: &Request) -> Limits {
    let mut bench = lock(&world.bench);
    let limit = if *actor == Actor::Anonymous { 60 } else { bench.rate_limit };
    let entry = bench.used.entry(label.to_owned()).or_insert((now, 0));
    if now >= entry.0 + 3600 {
        *entry = (now, 0);
    }
    entry.1 += u64::from(request.path != "/rate_limit");
    let (start, used) = *entry;
    let writes = matches!(request.method.as_str(), "POST" | "PATCH" | "PUT") && !request.path.starts_with("/app/");
    let mut too_many_writes = false;
    if let Some(most) = bench.writes_per_minute.filter(|_| writes) {
        let entry = bench.written.entry(label.to_owned()).or_insert((now, 0));
        if now >= entry.0 + 60 {
            *entry = (now, 0);
        }
        entry.1 += 1;
        too_many_writes = entry.1 > most;
    }
    let exceeded = bench.enforce_rate && used > limit;
    Limits {
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
        used: i64::try_from(used).unwrap_or(i64::MAX),
        reset: start + 3600,
        exceeded,
        too_many_writes,
    }
}

/// The headers of every answer, and 304 where the caller has it already.
fn finish(answer: &mut Answer, request: &Request, is_read: bool, authorization: &str) {
    let mut add = |name: &str, value: String| answer.headers.push((name.to_owned(), value));
    add("x-github-request-id", guid().replace('-', ":").to_uppercase());
    add("x-github-media-type", "github.v3; format=json".into());
    let version = request.header("x-github-api-version").unwrap_or("2022-11-28").to_owned();
    add("x-github-api-version-selected", version);
    add("server", "github.com".into());
    add("vary", "Accept, Authorization, Cookie, X-GitHub-OTP, Accept-Encoding, Accept, X-Requested-With".into());
    add("access-control-allow-origin", "*".into());
    if is_read && answer.status == 200 {
        let bytes = match &answer.content {
            Content::Json(value) => value.to_string().into_bytes(),
            Content::Bytes { bytes, .. } => bytes.to_vec(),
            Content::Empty => Vec::new(),
        };
        let tag = etag(&bytes, authorization);
        let known = request.header("if-none-match").is_some_and(|wanted| {
            wanted.split(',').any(|wanted| wanted.trim().trim_start_matches("W/") == tag.trim_start_matches("W/"))
        });
        answer.headers.push(("etag".into(), tag));
        answer.headers.push(("cache-control".into(), "private, max-age=60, s-maxage=60".into()));
        if known {
            answer.status = 304;
            answer.content = Content::Empty;
        }
    }
}

fn html(status: u16, text: &str) -> HttpResponse {
    HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .content_type("text/html; charset=utf-8")
        .body(format!("<!DOCTYPE html>\n<html><head><title>{text}</title></head><body><p>{text}</p></body></html>\n"))
}

pub fn into_response(answer: Answer, head: bool) -> HttpResponse {
    let mut builder =
        HttpResponse::build(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for (name, value) in &answer.headers {
        builder.append_header((name.as_str(), value.as_str()));
    }
    match answer.content {
        _ if head => builder.finish(),
        Content::Empty => builder.finish(),
        Content::Json(value) => builder.content_type("application/json; charset=utf-8").body(value.to_string()),
        Content::Bytes { media_type, bytes } => builder.content_type(media_type).body(bytes),
    }
}

async fn controls_and_assets(
    request: &HttpRequest,
    payload: web::Payload,
    world: &web::Data<World>,
    segments: Vec<String>,
) -> HttpResponse {
    let read = match read_request(request, payload, world, segments).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let is_local = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let shared = world.clone();
    let method = read.method.clone();
    let answered = web::block(move || {
        // A page of another site must not press our buttons.
        let foreign = read.header("origin").is_some_and(|origin| {
            let host = read.header("host").unwrap_or_default();
            origin.split_once("://").is_none_or(|(_, origin)| origin != host)
        });
        if foreign && read.method != "GET" {
            return Problem::new(403, "a request from another site").answer();
        }
        pages::asset(&shared, &read).or_else(|| pages::press(&shared, &read)).unwrap_or_else(|| match is_local {
            true => controls::answer(&shared, &read),
            false => Problem::new(403, "controls are for this machine only").answer(),
        })
    })
    .await;
    match answered {
        Ok(answer) => into_response(answer, method == "HEAD"),
        Err(_) => html(500, "Server Error"),
    }
}
