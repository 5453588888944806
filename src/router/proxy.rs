//! One request from a client to a process and back.
//!
//! In reading order: what a client may send and who answers it (`answer`, `admit`), which process gets it and over which
//! connection (`forward`, `target`, `hold`), what is written into it and into its answer (`write_head`, `pass_on`), and
//! what is said when it goes wrong (`refusal_of`, `page`).

use super::access::{self, Verdict};
use super::body::{AnswerBody, AppBody, ClientBody, Sending};
use super::certificates::Certificates;
use super::clients::Client;
use super::dial::{Connection, Cut, DialError};
use super::errors::{self, Code, Refusal};
use super::exchange::{CLIENT_GONE, Exchange};
use super::link::Link;
use super::live::{Choice, InFlight, LiveApp, Routes};
use super::log::Log;
use super::metrics::AppInFlight;
use super::pages::Pages;
use super::request::{self, X_REQUEST_ID};
use super::siblings;
use super::table::{Notice, normalise_host};
use super::trailers::Trailers;
use super::tunnel::lead_through;
use crate::clock::Clock;
use crate::domain::AppName;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For how long others are preferred to a process that could not be reached.
const AVOIDED: Duration = Duration::from_secs(1);
/// Swaps that one request may look again after.
const LOOKS: usize = 8;
/// Connections that one request may be tried over.
const ATTEMPTS: usize = 16;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
const X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");

pub(super) struct Proxy {
    pub routes: Arc<Routes>,
    pub log: Log,
    pub pages: Arc<Pages>,
    pub clock: Clock,
    /// The port that clients reach the router at.
    pub port: u16,
    /// The same with TLS, where there is one.
    pub secure_port: Option<u16>,
    pub certificates: Option<Arc<Certificates>>,
}

/// The client has gone, so there is nobody to answer.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub(super) struct Gone;

/// Why a request goes to no process.
enum Stop {
    /// With a page that says so.
    Refused(Refusal),
    /// With an answer of the router's own.
    Answered(Response<Bytes>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

/// An answer that a process began.
struct Answered {
    response: Response<Incoming>,
    link: Link,
    /// The connection may serve another request.
    reusable: bool,
    /// What the request's client and its process have of the connection each, if the process agreed to change the protocol.
    tunnel: Option<(OnUpgrade, OnUpgrade)>,
    /// The client still waits to be told to send its body.
    unsent: bool,
}

impl Proxy {
    /// Answers one request.
    pub async fn answer(
        self: Arc<Proxy>,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Gone> {
        let (head, body) = request.into_parts();
        let version = head.version;
        let mut exchange = Exchange::begin(&self, client, &head);
        // Where another protocol is asked for, what follows was not followed, whether that is taken up or not.
        let mut close = self.routes.is_leaving() || exchange.asked.another_protocol;
        let mut response = match self.admit(&mut exchange, &head).await {
            Err(Stop::Answered(answer)) => self.own(exchange, answer),
            Err(Stop::Refused(refusal)) => {
                // What follows on the connection can't be trusted to be a request, or is a body that nobody reads.
                close |= matches!(refusal.status, 400 | 401 | 403 | 405 | 414 | 431);
                self.page(exchange, refusal)
            }
            Ok(()) => match self.forward(&mut exchange, head, body).await {
                Ok(answered) => {
                    close = (close || answered.unsent) && answered.tunnel.is_none();
                    self.pass_on(exchange, answered)
                }
                Err(refusal) if refusal.status == CLIENT_GONE => {
                    exchange.refusal = Some(refusal);
                    exchange.complete();
                    return Err(Gone);
                }
                Err(refusal) => {
                    close = true;
                    self.page(exchange, refusal)
                }
            },
        };
        if close && version != Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// Whether a request may go to a process of its app.
    async fn admit(&self, exchange: &mut Exchange, head: &Parts) -> Result<(), Stop> {
        let options = &self.routes.options;
        if exchange.client.http2 {
            request::check_streamed_head(head)?;
        } else {
            exchange.client.verdict()?;
        }
        let host = request::host_of(head)?;
        let name = normalise_host(host);
        let known = name.is_some();
        exchange.host = name.unwrap_or_else(|| host.to_owned());
        if !exchange.client.secure
            && let Some(answer) = self.challenge(head).await
        {
            return Err(Stop::Answered(written(200, &[(header::CONTENT_TYPE, "application/octet-stream")], answer)));
        }
        let app = if known { self.routes.app_of(&exchange.host) } else { None };
        let app = app.ok_or(Refusal::bare(404))?;
        exchange.app = Some(app.clone());
        let secure = exchange.origin.secure;
        let covered = |host: &str| self.certificates.as_ref().is_some_and(|certificates| certificates.covers(host));
        if let Some(port) = self.secure_port.filter(|_| options.redirect && !secure && covered(&exchange.host)) {
            // The same address with TLS, whatever was asked. What a body of the request is, nobody reads.
            let port = if port == 443 { String::new() } else { format!(":{port}") };
            let path = request::origin_form(head.uri.clone()).map(|uri| uri.to_string()).unwrap_or_default();
            let path = if path.starts_with('/') { path.as_str() } else { "/" };
            let to = format!("https://{}{port}{path}", exchange.host);
            let answer = written(308, &[(header::LOCATION, &to), (header::CONNECTION, "close")], Vec::new());
            return Err(Stop::Answered(answer));
        }
        if let Some(access) = &app.access {
            match access::judge(access, &app.name, head, secure, exchange.arrived) {
                Verdict::Open { cookie, by_password } => {
                    (exchange.let_in, exchange.by_password) = (cookie, by_password);
                }
                closed => {
                    exchange.outsider = true;
                    return Err(self.turn_away(exchange, &app.name, closed));
                }
            }
        }
        if app.notice == Some(Notice::Maintenance) {
            return Err(Refusal::without_target(Some(Notice::Maintenance)).into());
        }
        exchange.counted = Some(AppInFlight::new(&app.metrics, exchange.arrived));
        Ok(())
    }

    /// Takes a request to a process, and to another one where that may be done, until one answers.
    async fn forward(&self, exchange: &mut Exchange, mut head: Parts, body: Incoming) -> Result<Answered, Refusal> {
        let upgrade = exchange.asked.another_protocol && request::is_upgrade(&head);
        let client_side = head.extensions.remove::<OnUpgrade>().filter(|_| upgrade);
        let expects = exchange.asked.permission;
        let (mut body, sending) = ClientBody::new(body, &exchange.client, expects);
        let whole = body.is_end_stream();
        // Whether the request may be sent a second time where nobody knows what became of the first.
        let repeatable = head.method.is_idempotent() && whole;
        // Whether its connection may have served, and may serve, others.
        let shared = repeatable && !upgrade;
        let copy = repeatable.then(|| head.clone());
        self.write_head(exchange, &mut head, upgrade, whole)?;
        let mut head = Some(head);
        for _ in 0..ATTEMPTS {
            exchange.inside = None;
            exchange.connect = None;
            let inside = self.target(exchange).await?;
            let process = inside.0.clone();
            exchange.process = Some(process.clone());
            exchange.inside = Some(inside);
            // A connection that has served before may be closed by the process at the very moment that the request is
            // sent over it, and then nobody could tell whether it was read.
            let idle = if shared { process.idle_link().await } else { None };
            let reused = idle.is_some();
            let mut link = if let Some(link) = idle {
                exchange.connect = Some(Duration::ZERO);
                link
            } else {
                let dialled = Instant::now();
                match process.fresh_link(self.routes.options.connect_timeout, &self.routes.ticks).await {
                    Ok(link) => {
                        exchange.connect = Some(dialled.elapsed());
                        link
                    }
                    Err(error) => {
                        self.unreachable(exchange, &error);
                        continue;
                    }
                }
            };
            let parts = match head.take() {
                Some(parts) => parts,
                None => {
                    let mut again = copy.clone().ok_or(Refusal::coded(503, Code::H99))?;
                    self.write_head(exchange, &mut again, upgrade, whole)?;
                    again
                }
            };
            body.over(&link.connection);
            let mut request = Request::from_parts(parts, body);
            if expects {
                let sending = sending.clone();
                hyper::ext::on_informational(&mut request, move |hint| {
                    if hint.status() == StatusCode::CONTINUE {
                        sending.permit();
                    }
                });
            }
            body = ClientBody::Empty;
            link.connection.begin(whole);
            match link.sender.try_send_request(request).await {
                Ok(mut response) => {
                    link.connection.answered();
                    check_answer(&response, upgrade)?;
                    exchange.answered();
                    let tunnel = match client_side {
                        Some(client_side) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                            Some((client_side, hyper::upgrade::on(&mut response)))
                        }
                        _ => None,
                    };
                    // Who was told no may keep its body to itself, and what comes next would be taken for it.
                    let unsent = expects && !sending.is_whole();
                    return Ok(Answered { response, link, reusable: shared, tunnel, unsent });
                }
                Err(mut error) => {
                    if let Some(unsent) = error.take_message() {
                        // The connection was closed before anything of it was written, so whatever it is, it may be sent again.
                        let (parts, unsent) = unsent.into_parts();
                        (head, body) = (Some(parts), unsent);
                    } else {
                        let error = error.into_error();
                        let broken = !error.is_parse() && !sending.is_broken() && link.connection.cut().is_none();
                        if !repeatable || !broken {
                            return Err(refusal_of(&exchange.client, &sending, &link.connection, &error));
                        }
                    }
                    // A kept connection that the process closed says nothing of the process; a fresh one that broke does.
                    exchange.refusal = Some(Refusal::coded(503, Code::H13));
                    if !reused && let Some(inside) = exchange.inside.take() {
                        inside.0.avoid(self.routes.now(), AVOIDED);
                        exchange.breaks_at(&inside.0);
                        // Once more, if there is no other: did it end, or does it only not answer?
                        if exchange.broken > 1 {
                            exchange.tried.push(inside.0.number);
                        }
                    }
                }
            }
        }
        Err(exchange.refusal.unwrap_or(Refusal::coded(503, Code::H99)))
    }

    /// A place at a process of the app that a request is for, waiting for one where that is worth it.
    async fn target(&self, exchange: &mut Exchange) -> Result<InFlight, Refusal> {
        // Mostly the app that it was let in to has a process free; if a newer table holds by now, a gate tells.
        if let Some(app) = exchange.app.as_ref().filter(|_| exchange.process.is_none())
            && let Choice::Target(inside) = app.choose(&exchange.tried, || self.routes.now())
        {
            return Ok(inside);
        }
        let mut looks = 0;
        while looks < LOOKS {
            // Listened for before the look, so that nothing that happens after it is missed.
            let turned = self.routes.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            // Looked up afresh each time: a swap may have come since the request arrived or failed elsewhere.
            let app = self.routes.app_of(&exchange.host).ok_or(Refusal::bare(404))?;
            exchange.app = Some(app.clone());
            match app.choose(&exchange.tried, || self.routes.now()) {
                Choice::Target(inside) => return Ok(inside),
                // The gate was shut after the new table had become the one to look in, so the next look differs.
                Choice::LookAgain => {
                    looks += 1;
                    tokio::task::yield_now().await;
                }
                Choice::Nothing => self.hold(exchange, &app, turned).await?,
            }
        }
        Err(Refusal::coded(503, Code::H99))
    }

    /// Lets a request wait until the next look is worth it, or says why it is not to wait: nothing comes up, the time
    /// is over, or too many wait already. If its client goes away, this is dropped.
    async fn hold(
        &self,
        exchange: &mut Exchange,
        app: &LiveApp,
        turned: impl Future<Output = ()>,
    ) -> Result<(), Refusal> {
        let options = &self.routes.options;
        let unreachable = app.has_active();
        let (limit, refusal) = if unreachable {
            let refusal = exchange.refusal.unwrap_or(Refusal::coded(503, Code::H21));
            // A process that crashed is replaced within moments, as soon as that is seen. One that takes connections
            // and hangs up, or that takes none for seconds, is no such case.
            if refusal.code != Some(Code::H21) {
                return Err(refusal);
            }
            (options.restart_timeout, refusal)
        } else if app.hold || app.asleep {
            (options.hold_timeout, Refusal::coded(503, Code::H20))
        } else {
            return Err(Refusal::without_target(app.notice));
        };
        let since = *exchange.held_since.get_or_insert_with(Instant::now);
        let Some(left) = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
            return Err(refusal);
        };
        let held = Held { all: &self.routes.held, of_app: &app.metrics.held };
        let (all, of_app) = (held.all.fetch_add(1, Ordering::AcqRel), held.of_app.fetch_add(1, Ordering::AcqRel));
        if all >= options.held || of_app >= options.held_per_app {
            return Err(Refusal::coded(503, Code::H11));
        }
        if app.asleep {
            self.routes.knocks.knock(&app.name, self.clock.now());
        }
        let _ = tokio::time::timeout(left.min(HELD_LOOK), turned).await;
        app.forgive(&mut exchange.tried);
        Ok(())
    }

    /// Notes that a process could not be reached. Nothing of the request was sent, so whatever it is, it may go to another.
    fn unreachable(&self, exchange: &mut Exchange, error: &DialError) {
        let code = if matches!(error, DialError::TimedOut(_)) { Code::H19 } else { Code::H21 };
        exchange.refusal = Some(Refusal::coded(503, code));
        if let Some(inside) = exchange.inside.take() {
            inside.0.avoid(self.routes.now(), AVOIDED);
            exchange.tried.push(inside.0.number);
            if inside.0.failed(&error.to_string()) {
                self.routes.changed.notify_one();
            }
        }
    }

    /// Makes a client's head the one that the app gets. `whole`: no body follows it.
    fn write_head(&self, exchange: &Exchange, head: &mut Parts, upgrade: bool, whole: bool) -> Result<(), Refusal> {
        let version = match head.version {
            Version::HTTP_2 => "2 landfall",
            Version::HTTP_10 | Version::HTTP_09 => "1.0 landfall",
            _ => "1.1 landfall",
        };
        let headers = &mut head.headers;
        if head.version == Version::HTTP_2 {
            if let Some(authority) = head.uri.authority() {
                headers.insert(header::HOST, value(authority.as_str())?);
            }
            join_cookies(headers);
        }
        // A client's word on where it comes from is dropped; the router's own follows.
        request::end_hop(headers, upgrade, request::is_forwarding);
        if exchange.asked.trailers && !upgrade {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if !whole && !headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        access::conceal(headers, exchange.by_password);
        let origin = &exchange.origin;
        headers.reserve(6);
        headers.insert(X_FORWARDED_FOR, exchange.written_address.clone());
        let scheme = if origin.secure { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(origin.port));
        headers.insert(X_REQUEST_START, HeaderValue::from(exchange.arrived.0));
        headers.insert(X_REQUEST_ID, exchange.request_id.clone());
        // What is sent is HTTP/1.1 whatever came; `Via` names what came.
        let via = match headers.get(header::VIA).and_then(|via| via.to_str().ok()) {
            Some(before) => value(format!("{before}, {version}"))?,
            None => HeaderValue::from_static(version),
        };
        headers.insert(header::VIA, via);
        head.uri = request::origin_form(std::mem::take(&mut head.uri)).map_err(|_| Refusal::bare(400))?;
        head.version = Version::HTTP_11;
        Ok(())
    }

    /// Gives the client what a process has begun to answer.
    fn pass_on(&self, mut exchange: Box<Exchange>, answered: Answered) -> Response<AnswerBody> {
        let Answered { response, link, reusable, tunnel, .. } = answered;
        let (mut head, incoming) = response.into_parts();
        let headers = &mut head.headers;
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        request::end_hop(headers, tunnel.is_some(), |_| false);
        if chunked {
            // Its chunks are what ends it.
            headers.remove(header::CONTENT_LENGTH);
        }
        siblings::keep_cookies_apart(headers, &exchange.host, &self.routes.options.domain);
        if let Some(cookie) = exchange.let_in.as_deref().and_then(|cookie| value(cookie).ok()) {
            headers.append(header::SET_COOKIE, cookie);
        }
        if exchange.app.as_ref().is_some_and(|app| app.noindex) {
            headers.insert(X_ROBOTS_TAG, HeaderValue::from_static("noindex"));
        }
        head.version = Version::HTTP_11;
        exchange.status = Some(head.status.as_u16());
        exchange.events = is_stream_of_events(headers);
        if let Some((client, app)) = tunnel {
            tokio::spawn(lead_through(exchange, client, app, link));
            return Response::from_parts(head, AnswerBody::Page(None));
        }
        let mut place = None;
        if exchange.asked.trailers && !exchange.client.http2 && exchange.method != Method::HEAD {
            let trailers = place.insert(Trailers::default());
            exchange.client.trail(trailers.clone());
        }
        let (rest, link, exchange) = (Bytes::new(), Some(link), Some(exchange));
        let mut body = AppBody { incoming, rest, link, reusable, trailers: place, exchange };
        body.end_if_whole();
        Response::from_parts(head, AnswerBody::App(Box::new(body)))
    }

    /// The answer to a certificate authority that looks whether a domain leads here (RFC 8555, 8.3), if it is one that
    /// the control plane waits for.
    async fn challenge(&self, head: &Parts) -> Option<Vec<u8>> {
        let token = request::path_of(&head.uri).strip_prefix("/.well-known/acme-challenge/")?;
        let known = (1..=256).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !known || head.method != Method::GET {
            return None;
        }
        tokio::fs::read(self.routes.options.state_dir.join("challenges").join(token)).await.ok()
    }

    /// Answers who was not let in: with the page that says so, or by sending them to where they can log in. What a body of
    /// the request is, nobody reads.
    fn turn_away(&self, exchange: &Exchange, app: &AppName, verdict: Verdict) -> Stop {
        let (status, name, text, cookie) = match verdict {
            Verdict::Elsewhere { to, cookie } => (303, header::LOCATION, to, Some(cookie)),
            Verdict::Closed(refusal) if refusal.status == 401 => {
                (401, header::WWW_AUTHENTICATE, format!("Basic realm=\"{app}\", charset=\"UTF-8\""), None)
            }
            Verdict::Closed(refusal) => return Stop::Refused(refusal),
            Verdict::Open { .. } => return Stop::Refused(Refusal::coded(500, Code::H99)),
        };
        let page = errors::render(Refusal::bare(status), exchange.name(), exchange.asked.accept(), &self.pages);
        let mut fields = vec![
            (name, text.as_str()),
            (header::CONTENT_TYPE, page.content_type),
            (header::CACHE_CONTROL, "no-store"),
            (X_ROBOTS_TAG, "noindex"),
            (header::CONNECTION, "close"),
        ];
        if let Some(cookie) = &cookie {
            fields.push((header::SET_COOKIE, cookie));
        }
        let body = if status == 401 { page.body.into_bytes() } else { Vec::new() };
        Stop::Answered(written(status, &fields, body))
    }

    /// An answer of the router's own that is no page of an error.
    fn own(&self, mut exchange: Box<Exchange>, answer: Response<Bytes>) -> Response<AnswerBody> {
        let (mut head, body) = answer.into_parts();
        head.headers.insert(X_REQUEST_ID, exchange.request_id.clone());
        if exchange.client.http2 {
            head.headers.remove(header::CONNECTION);
        }
        exchange.status = Some(head.status.as_u16());
        let body = Some(body).filter(|body| !body.is_empty() && exchange.method != Method::HEAD);
        exchange.bytes = body.as_ref().map_or(0, |body| body.len() as u64);
        exchange.complete();
        Response::from_parts(head, AnswerBody::Page(body))
    }

    /// The page that says why a request was refused. That the client reads it is no part of the request.
    fn page(&self, mut exchange: Box<Exchange>, refusal: Refusal) -> Response<AnswerBody> {
        exchange.refusal = Some(refusal);
        let page = errors::render(refusal, exchange.name(), exchange.asked.accept(), &self.pages);
        let mut fields = vec![
            (header::CONTENT_TYPE, page.content_type),
            (header::CACHE_CONTROL, "no-store"),
            (X_ROBOTS_TAG, "noindex"),
            (header::SERVER, "landfall"),
        ];
        if refusal.notice == Some(Notice::Gone) {
            // What a closed pull request's app left in browsers must not outlive it.
            fields.push((CLEAR_SITE_DATA, "\"cache\", \"cookies\", \"storage\""));
        }
        let answer = written(refusal.status, &fields, page.body.into_bytes());
        self.own(exchange, answer)
    }
}

const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
/// How often a request that waits looks for a process, if nothing tells it to.
const HELD_LOOK: Duration = Duration::from_millis(500);

/// A request that waits for a process, counted until it is dropped.
struct Held<'a> {
    all: &'a AtomicUsize,
    of_app: &'a AtomicUsize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::AcqRel);
        self.of_app.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A value of a header that the router writes. What can be none came from outside, and is refused.
fn value(text: impl TryInto<HeaderValue>) -> Result<HeaderValue, Refusal> {
    text.try_into().map_err(|_| Refusal::bare(400))
}

/// An answer of the router's own.
fn written(status: u16, fields: &[(HeaderName, &str)], body: Vec<u8>) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let length = answer.body().len();
    let headers = answer.headers_mut();
    for (name, text) in fields {
        if let Ok(value) = value(*text) {
            headers.append(name, value);
        }
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// Server-sent events, as the HTML standard names them.
fn is_stream_of_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Cookies may come in several fields over HTTP/2, and in one only after that (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&all.join(b"; ".as_slice()))
    {
        headers.insert(header::COOKIE, one);
    }
}

/// Refuses what would be read otherwise by somebody else: a change of protocol that nobody asked for or to another HTTP, after
/// which whatever the app says would be passed on, and codings other than chunked.
fn check_answer(response: &Response<Incoming>, upgrade: bool) -> Result<(), Refusal> {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // One of each at most, and a good one. The library takes `5, 5` for 5 and passes it on as it was written.
    let (mut codings, mut lengths, mut good) = (0, 0, true);
    for (name, value) in response.headers() {
        if name == header::TRANSFER_ENCODING {
            codings += 1;
            good &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else if name == header::CONTENT_LENGTH {
            lengths += 1;
            good &= value.as_bytes().iter().all(u8::is_ascii_digit);
        } else if switched && name == header::UPGRADE {
            good &= request::names_http(value.as_bytes()) == Ok(false);
        }
    }
    if (switched && !upgrade) || !good || codings > 1 || lengths > 1 {
        return Err(Refusal::coded(503, Code::H17));
    }
    Ok(())
}

/// Which of the router's answers it calls for that a process did not answer.
fn refusal_of(client: &Client, sending: &Sending, connection: &Connection, error: &hyper::Error) -> Refusal {
    match connection.cut() {
        Some(Cut::FirstByte) => return Refusal::coded(503, Code::H12),
        // The app can't be blamed for silence while the client owes it the rest of the request.
        Some(Cut::Silence) if !sending.is_whole() => return Refusal::coded(408, Code::H28),
        Some(Cut::Silence) => return Refusal::coded(503, Code::H15),
        None => {}
    }
    if client.is_malformed() {
        Refusal::bare(400)
    } else if sending.is_broken() {
        Refusal::coded(CLIENT_GONE, Code::H27)
    } else if error.is_parse() {
        Refusal::coded(503, Code::H17)
    } else {
        Refusal::coded(503, Code::H13)
    }
}
