//! git's smart HTTP protocol, by git's own CGI program. The stand-in decides who may do what; git streams.

use std::process::Stdio;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout, Command};

use super::access::{self, Actor, permit, read, write};
use super::events::Who;
use super::wire::{Request, parse_query};
use super::world::World;
use super::{git, refs};

/// What a path asks of git.
#[derive(Clone, Debug)]
pub struct Service {
    owner: String,
    name: String,
    /// `info/refs`, `git-upload-pack` or `git-receive-pack`.
    path: String,
    writes: bool,
}

/// The git service that a path names, if it is one.
pub fn service(segments: &[String], query: &str) -> Option<Service> {
    let (owner, name, path) = match segments {
        [owner, name, info, refs] if info == "info" && refs == "refs" => (owner, name, "info/refs".to_owned()),
        [owner, name, last] if last == "git-upload-pack" || last == "git-receive-pack" => (owner, name, last.clone()),
        _ => return None,
    };
    let asked = parse_query(query).into_iter().find(|(key, _)| key == "service").map(|(_, value)| value);
    let writes = path == "git-receive-pack" || asked.as_deref() == Some("git-receive-pack");
    Some(Service { owner: owner.clone(), name: name.strip_suffix(".git").unwrap_or(name).to_owned(), path, writes })
}

fn refuse(status: u16, text: &str) -> HttpResponse {
    let mut builder = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN));
    if status == 401 {
        builder.append_header(("www-authenticate", "Basic realm=\"GitHub\""));
    }
    builder.content_type("text/plain; charset=utf-8").body(text.to_owned())
}

/// Who pushes or fetches, and where.
struct Allowed {
    repository: u64,
    /// `/OWNER/NAME.git` as it is on disk.
    root: String,
    who: Who,
}

enum Decision {
    Allowed(Allowed),
    Moved(String),
    Refused(u16, String),
}

fn decide(world: &World, service: &Service, authorization: Option<String>) -> Decision {
    let request = Request {
        method: "GET".into(),
        path: String::new(),
        segments: Vec::new(),
        query_text: String::new(),
        query: Vec::new(),
        headers: authorization.map(|value| ("authorization".to_owned(), value)).into_iter().collect(),
        body: Bytes::new(),
        base: world.base.clone(),
        canonical_path: None,
    };
    world.with(|state| {
        let found = state.find_repository(&service.owner, &service.name).and_then(|id| state.repository(id).ok());
        let public = found.is_some_and(|record| !record.private);
        let actor = match access::authenticate(state, &request) {
            // As on GitHub, anybody may fetch what is public.
            Ok(Actor::Anonymous) if public && !service.writes => Actor::Anonymous,
            Ok(Actor::Anonymous | Actor::App | Actor::Client) => {
                return Decision::Refused(401, "Authentication required.".into());
            }
            Ok(actor) => actor,
            Err(problem) if problem.status == 403 => return Decision::Refused(403, problem.message),
            Err(_) => return Decision::Refused(401, "Invalid username or token.".into()),
        };
        let Some(id) = state.find_repository(&service.owner, &service.name) else {
            let key = format!("{}/{}", service.owner.to_lowercase(), service.name.to_lowercase());
            return match state.moved.get(&key).and_then(|id| state.repositories.get(id)) {
                Some(record) => Decision::Moved(state.full_name(record)),
                None => Decision::Refused(404, "Repository not found.".into()),
            };
        };
        let Ok(record) = state.repository(id) else { return Decision::Refused(404, "Repository not found.".into()) };
        let need = if service.writes { write(&["contents"]) } else { read(&["contents"]) };
        if let Err(problem) = permit(state, record, &actor, need) {
            return match problem.status {
                404 => Decision::Refused(404, "Repository not found.".into()),
                _ => Decision::Refused(403, "Write access to repository not granted.".into()),
            };
        }
        let who = match actor {
            Actor::User { id, .. } => Who { account: id, via_app: false },
            _ => state.bot(),
        };
        let root = format!("/{}/{}.git", state.login(record.owner), record.name);
        if service.path == "git-receive-pack" {
            *state.pushing.entry(id).or_default() += 1;
        }
        Decision::Allowed(Allowed { repository: id, root, who })
    })
}

pub async fn serve(
    request: &HttpRequest,
    payload: web::Payload,
    world: &web::Data<World>,
    service: Service,
) -> HttpResponse {
    let authorization =
        request.headers().get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let shared = world.clone();
    let asked = service.clone();
    let allowed = match web::block(move || decide(&shared, &asked, authorization)).await {
        Ok(Decision::Allowed(allowed)) => allowed,
        Ok(Decision::Moved(full_name)) => {
            let mut location = format!("{}/{full_name}.git/{}", world.base, service.path);
            if !request.query_string().is_empty() {
                location.push('?');
                location.push_str(request.query_string());
            }
            return HttpResponse::MovedPermanently().append_header(("location", location)).finish();
        }
        Ok(Decision::Refused(status, text)) => return refuse(status, &text),
        Err(_) => return refuse(500, "Server Error"),
    };
    let pushes = service.path == "git-receive-pack";
    let child = match spawn(request, world, &service, &allowed) {
        Ok(child) => child,
        Err(error) => {
            tracing::error!("the simulated GitHub cannot start git: {error:#}");
            if pushes {
                settle(world, &allowed).await;
            }
            return refuse(500, "Server Error");
        }
    };
    if !pushes {
        return relay(child, payload, false).await;
    }
    // A push goes on to its end in a task of its own, also when the caller is gone.
    let world = world.clone();
    let pushed = actix_web::rt::spawn(async move {
        let response = relay(child, payload, true).await;
        settle(&world, &allowed).await;
        response
    });
    pushed.await.unwrap_or_else(|_| refuse(500, "Server Error"))
}

/// Lets everything follow from a push, before git is told that it is over.
async fn settle(world: &web::Data<World>, allowed: &Allowed) {
    let shared = world.clone();
    let (repository, who) = (allowed.repository, allowed.who);
    let _ = web::block(move || {
        shared.with(|state| {
            if let Some(count) = state.pushing.get_mut(&repository) {
                *count -= 1;
                if *count == 0 {
                    state.pushing.remove(&repository);
                }
            }
            if let Err(error) = refs::settle(state, repository, who) {
                tracing::error!("the simulated GitHub cannot follow a push: {error:#}");
            }
        });
    })
    .await;
}

fn spawn(request: &HttpRequest, world: &World, service: &Service, allowed: &Allowed) -> anyhow::Result<Child> {
    let header =
        |name: &str| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut command = Command::new("git");
    command
        .args(git::HARDENING)
        .arg("http-backend")
        .env_clear()
        .envs(git::ENVIRONMENT)
        .env("GIT_PROJECT_ROOT", &world.data)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("{}/{}", allowed.root, service.path))
        .env("REQUEST_METHOD", request.method().as_str())
        .env("QUERY_STRING", request.query_string())
        .env("REMOTE_USER", "landfall")
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    for (header_name, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ] {
        if let Some(value) = header(header_name) {
            command.env(variable, value);
        }
    }
    Ok(command.spawn()?)
}

/// Feeds the body to git and streams its answer back; the answer to a push is short and is read whole.
async fn relay(mut child: Child, mut payload: web::Payload, pushes: bool) -> HttpResponse {
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return refuse(500, "Server Error");
    };
    let feeder = actix_web::rt::spawn(async move {
        while let Some(Ok(chunk)) = payload.next().await {
            if stdin.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = stdin.shutdown().await;
    });
    let mut buffer = BytesMut::new();
    let body_start = loop {
        if let Some(at) = header_end(&buffer) {
            break at;
        }
        match stdout.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return refuse(500, "git gave no answer"),
            Ok(_) if buffer.len() > 64 * 1024 => return refuse(500, "git gave no answer"),
            Ok(_) => {}
        }
    };
    let head = String::from_utf8_lossy(&buffer[..body_start]).into_owned();
    let first = buffer.split_off(body_start).freeze();
    let mut status = 200;
    let mut headers = Vec::new();
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("status") {
                status = value.trim().split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(500);
            } else {
                headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
    }
    let mut builder = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::OK));
    for (name, value) in &headers {
        builder.append_header((name.as_str(), value.as_str()));
    }
    if pushes {
        let mut rest = Vec::from(&first[..]);
        let _ = stdout.read_to_end(&mut rest).await;
        let _ = child.wait().await;
        feeder.abort();
        return builder.body(rest);
    }
    builder.streaming(futures_util::stream::unfold(Some((child, stdout, first)), next_chunk))
}

type Streaming = Option<(Child, ChildStdout, Bytes)>;

async fn next_chunk(state: Streaming) -> Option<(Result<Bytes, std::io::Error>, Streaming)> {
    let (mut child, mut stdout, first) = state?;
    if !first.is_empty() {
        return Some((Ok(first), Some((child, stdout, Bytes::new()))));
    }
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    match stdout.read_buf(&mut buffer).await {
        Ok(0) => {
            let _ = child.wait().await;
            None
        }
        Ok(_) => Some((Ok(buffer.freeze()), Some((child, stdout, Bytes::new())))),
        Err(error) => Some((Err(error), None)),
    }
}

fn header_end(buffer: &[u8]) -> Option<usize> {
    let find = |pattern: &[u8]| {
        buffer.windows(pattern.len()).position(|window| window == pattern).map(|at| at + pattern.len())
    };
    find(b"\r\n\r\n").or_else(|| find(b"\n\n"))
}
