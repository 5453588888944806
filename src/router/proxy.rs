//! One request from a client to a process and back, told as the proxy library's phases.
//!
//! In reading order: what a client may send (`request_filter`), which process gets it (`upstream_peer`), what is
//! written into it (`upstream_request_filter`), what happens when it goes wrong (`fail_to_connect`,
//! `error_while_proxy`, `fail_to_proxy`), and what is counted (`logging`).

use super::access::{self, Verdict};
use super::certificates::Certificates;
use super::clients::ClientStream;
use super::dial::Connection;
use super::errors::{self, Code, Refusal};
use super::live::{Choice, InFlight, LiveApp, LiveTarget, Routes};
use super::log::{Entry, Log};
use super::metrics::{AppInFlight, Sample};
use super::pages::Pages;
use super::request;
use super::siblings;
use super::table::{Notice, normalise_host};
use super::trailers::{self, Trailers};
use super::trust::{self, Origin};
use crate::clock::{Clock, Timestamp};
use crate::domain::AppName;
use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a client's connection may idle between two requests.
pub(super) const KEEP_ALIVE_SECONDS: u64 = 75;
/// For how long others are preferred to a process that could not be reached.
const AVOIDED: Duration = Duration::from_secs(1);
/// How often a request that waits looks whether its client is still there.
const HELD_LOOK: Duration = Duration::from_millis(500);
/// Swaps that one request may look again after.
const LOOKS: usize = 8;

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

/// What one request gathers on its way.
pub(super) struct Context {
    started: Instant,
    arrived: Timestamp,
    request_id: String,
    origin: Option<Origin>,
    host: String,
    app: Option<Arc<LiveApp>>,
    counted: Option<AppInFlight>,
    /// The process that the request is at, and the same for the log after it left.
    inside: Option<InFlight>,
    process: Option<Arc<LiveTarget>>,
    tried: Vec<u64>,
    /// Since when it waits for a process, or first did.
    held_since: Option<Instant>,
    /// Connections that broke before an answer began.
    broken: u32,
    connection: Option<Arc<Connection>>,
    /// Where the connection is found that was made for a change of protocol, or for trailers.
    own: Option<Arc<OnceLock<Arc<Connection>>>>,
    /// Where what comes after the answer's body is found, if the client takes it.
    trailers: Option<Trailers>,
    chosen_at: Option<Instant>,
    connect: Option<Duration>,
    refusal: Option<Refusal>,
    /// The process has begun its answer.
    answered: bool,
    accounted: bool,
    /// Nobody who was let in: no use of the app.
    outsider: bool,
    /// What the answer gives to the browser that was let in by the password.
    let_in: Option<String>,
}

/// Whether the request may be sent a second time where nobody knows what became of the first.
fn is_repeatable(session: &mut Session) -> bool {
    session.req_header().method.is_idempotent() && session.is_body_empty()
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            started: Instant::now(),
            arrived: self.clock.now(),
            request_id: String::new(),
            origin: None,
            host: String::new(),
            app: None,
            counted: None,
            inside: None,
            process: None,
            tried: Vec::new(),
            held_since: None,
            broken: 0,
            connection: None,
            own: None,
            trailers: None,
            chosen_at: None,
            connect: None,
            refusal: None,
            answered: false,
            accounted: false,
            outsider: false,
            let_in: None,
        }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let options = &self.routes.options;
        let kept = session.req_header().headers.get("x-request-id").and_then(|value| value.to_str().ok());
        context.request_id = request::kept_request_id(kept).unwrap_or_else(request::new_request_id);
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        // HTTP/2 is agreed on through TLS only.
        let secure = session.is_http2() || client_of(session).is_some_and(ClientStream::is_secure);
        let port = self.secure_port.filter(|_| secure).unwrap_or(self.port);
        context.origin = client.map(|peer| {
            let own = Origin { client: peer, secure, port };
            trust::origin(session.req_header(), own, &options.trusted)
        });

        session.set_read_timeout(Some(options.idle_timeout));
        session.set_write_timeout(Some(options.idle_timeout));
        session.set_total_drain_timeout(Some(options.connect_timeout));
        if session.get_keepalive() == Some(0) {
            session.set_keepalive(Some(KEEP_ALIVE_SECONDS));
        }
        if self.routes.is_leaving() {
            // The next request goes to the router that took our place.
            session.set_keepalive(None);
        }
        session.as_downstream_mut().set_pipelining_enabled(true);

        let verdict = if session.is_http2() {
            request::check_streamed_head(session.req_header())
        } else {
            client_of(session).map_or(Err(Refusal::bare(400)), ClientStream::verdict)
        };
        if session.is_upgrade_req() {
            // Whether it is taken up or not, what follows was not followed.
            session.set_keepalive(None);
        }
        if let Err(refusal) = verdict {
            // What follows on the connection can't be trusted to be a request.
            session.set_keepalive(None);
            return self.refuse(session, context, refusal).await;
        }
        let head = session.req_header();
        let host = head.headers.get("host").and_then(|value| value.to_str().ok());
        let host = host.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
        let Some(host) = host.map(|host| (host, normalise_host(host))) else {
            session.set_keepalive(None);
            return self.refuse(session, context, Refusal::bare(400)).await;
        };
        context.host = host.1.clone().unwrap_or_else(|| host.0.to_owned());
        if !secure && let Some(answer) = self.challenge(session.req_header()).await {
            return self.write_challenge(session, context, answer).await;
        }
        let app = host.1.and_then(|host| self.routes.app_of(&host));
        let Some(app) = app else {
            return self.refuse(session, context, Refusal::bare(404)).await;
        };
        let origin_secure = context.origin.is_some_and(|origin| origin.secure);
        let covered = |host: &str| self.certificates.as_ref().is_some_and(|certificates| certificates.covers(host));
        if let Some(port) = self.secure_port.filter(|_| options.redirect && !origin_secure && covered(&context.host)) {
            context.app = Some(app);
            return self.redirect(session, context, port).await;
        }
        if let Some(access) = &app.access {
            match access::judge(access, &app.name, session.req_header(), origin_secure, context.arrived) {
                Verdict::Open { cookie } => context.let_in = cookie,
                closed => {
                    (context.outsider, context.app) = (true, Some(app.clone()));
                    return self.turn_away(session, context, &app.name, closed).await;
                }
            }
        }
        if app.notice == Some(Notice::Maintenance) {
            context.app = Some(app);
            return self.refuse(session, context, Refusal::without_target(Some(Notice::Maintenance))).await;
        }
        context.counted = Some(AppInFlight::new(&app.metrics, context.arrived));
        context.app = Some(app);
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        context.inside = None;
        context.connection = None;
        context.connect = None;
        let mut looks = 0;
        while looks < LOOKS {
            // Listened for before the look, so that nothing that happens after it is missed.
            let turned = self.routes.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            // Looked up afresh each time: a swap may have come since the request arrived or failed elsewhere.
            let Some(app) = self.routes.app_of(&context.host) else {
                return self.refused(context, Refusal::bare(404));
            };
            context.app = Some(app.clone());
            match app.choose(&context.tried, self.routes.now()) {
                Choice::Target(inside) => {
                    let peer = if session.is_upgrade_req() {
                        let (peer, place) = inside.0.upgrade_peer(self.routes.unique());
                        context.own = Some(place);
                        peer
                    } else if !session.is_http2() && trailers::wanted(&session.req_header().headers) {
                        let (peer, own, found) = inside.0.trailed_peer(self.routes.unique());
                        (context.own, context.trailers) = (Some(own), Some(found));
                        peer
                    } else if !is_repeatable(session) {
                        inside.0.fresh_peer(self.routes.unique())
                    } else {
                        inside.0.peer()
                    };
                    context.process = Some(inside.0.clone());
                    context.inside = Some(inside);
                    context.chosen_at = Some(Instant::now());
                    return Ok(peer);
                }
                // The gate was shut after the new table had become the one to look in, so the next look differs.
                Choice::LookAgain => {
                    looks += 1;
                    tokio::task::yield_now().await;
                }
                Choice::Nothing => {
                    if let Err(refusal) = self.hold(session, context, &app, turned).await {
                        return self.refused(context, refusal);
                    }
                }
            }
        }
        self.refused(context, Refusal::coded(503, Code::H99))
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        descriptor: RawFd,
        _digest: Option<&Digest>,
        context: &mut Context,
    ) -> Result<()> {
        let took = context.chosen_at.map_or(Duration::ZERO, |chosen| chosen.elapsed());
        context.connect = Some(if reused { Duration::ZERO } else { took });
        let connection = match &context.own {
            Some(place) => place.get().cloned(),
            None => context.inside.as_ref().and_then(|inside| inside.0.connections.get(descriptor)),
        };
        // A pooled connection has to be the chosen target's own; nothing is sent over one that is not.
        let Some(connection) = connection else {
            return Err(Error::explain(ErrorType::InternalError, "a connection of another process").into_in());
        };
        if session.is_body_empty() {
            connection.awaiting_since.store(self.routes.now() + 1, Ordering::Release);
        }
        context.connection = Some(connection);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        if let Some(target) = request::origin_form(upstream.raw_path()) {
            // The authority is in `Host` already: the two were compared when the request was read.
            upstream.set_raw_path(&target)?;
        }
        access::conceal(upstream, context.let_in.is_some())?;
        if context.trailers.is_some() {
            // The library drops both, since they are of one connection; ours to the app takes trailers too.
            upstream.insert_header("TE", "trailers")?;
            upstream.append_header("Connection", "TE")?;
        }
        let foreign: Vec<_> =
            upstream.headers.keys().filter(|name| request::is_forwarding(name.as_str())).cloned().collect();
        for name in foreign {
            upstream.remove_header(&name);
        }
        if let Some(origin) = context.origin {
            upstream.insert_header("X-Forwarded-For", origin.client.to_string())?;
        }
        let (secure, port) = context.origin.map_or((false, self.port), |origin| (origin.secure, origin.port));
        upstream.insert_header("X-Forwarded-Proto", if secure { "https" } else { "http" })?;
        upstream.insert_header("X-Forwarded-Port", port.to_string())?;
        upstream.insert_header("X-Request-Start", context.arrived.0.to_string())?;
        upstream.insert_header("X-Request-Id", context.request_id.as_str())?;
        // The library sends HTTP/1.1 whatever came; `Via` names what came.
        let version = match session.req_header().version {
            http::Version::HTTP_2 => "2 landfall",
            http::Version::HTTP_10 | http::Version::HTTP_09 => "1.0 landfall",
            _ => "1.1 landfall",
        };
        let via = match upstream.headers.get("via").and_then(|via| via.to_str().ok()) {
            Some(before) => format!("{before}, {version}"),
            None => version.to_owned(),
        };
        upstream.insert_header("Via", via)?;
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> Result<()> {
        // Only once the request is whole does the app owe an answer.
        if end
            && !context.answered
            && let Some(connection) = &context.connection
        {
            connection.awaiting_since.store(self.routes.now() + 1, Ordering::Release);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        if upstream.status.is_informational() && upstream.status.as_u16() != 101 {
            return Ok(());
        }
        if let Some(connection) = &context.connection {
            connection.awaiting_since.store(0, Ordering::Release);
        }
        context.answered = true;
        // Whatever went wrong before at another process was made up for.
        context.refusal = None;
        if upstream.status.as_u16() == 101 && !session.is_upgrade_req() {
            // Else whatever the app says next would be passed on as if the client had asked for another protocol.
            return Err(
                Error::explain(ErrorType::InvalidHTTPHeader, "a change of protocol that nobody asked for").into_up()
            );
        }
        let codings = upstream.headers.get_all("transfer-encoding");
        let chunked = codings.iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.iter().count() > 1 {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a transfer coding other than chunked").into_up());
        }
        siblings::keep_cookies_apart(upstream, &context.host, &self.routes.options.domain)?;
        if let Some(cookie) = &context.let_in {
            upstream.append_header("Set-Cookie", cookie.as_str())?;
        }
        if context.app.as_ref().is_some_and(|app| app.noindex) {
            upstream.insert_header("X-Robots-Tag", "noindex")?;
        }
        if let Some(trailers) = &context.trailers
            && session.req_header().method != http::Method::HEAD
            && let Some(client) = client_of(session)
        {
            client.trail(trailers.clone());
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let code = if *error.etype() == ErrorType::ConnectTimedout { Code::H19 } else { Code::H21 };
        context.refusal = Some(Refusal::coded(503, code));
        if let Some(inside) = context.inside.take() {
            inside.0.avoid(self.routes.now(), AVOIDED);
            context.tried.push(inside.0.number);
            let cause = error.root_cause().to_string();
            if inside.0.failed(&cause) {
                self.routes.changed.notify_one();
            }
        }
        // Nothing of the request was sent, so whatever it is, it may go to another process.
        error.set_retry(true);
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Context,
        reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("process: {}", peer.group_key));
        let safe = is_repeatable(session);
        let untouched = session.response_written().is_none_or(|written| written.status.is_informational());
        let cut = context.connection.as_ref().is_some_and(|connection| connection.timed_out.load(Ordering::Acquire));
        let broken = *error.esource() == ErrorSource::Upstream
            && matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError);
        if safe && untouched && broken && !cut && !context.answered {
            // A pooled connection that the process closed says nothing of the process; a fresh one that broke does.
            if !reused && let Some(inside) = context.inside.take() {
                inside.0.avoid(self.routes.now(), AVOIDED);
                context.broken += 1;
                // Once more, if there is no other: did it end, or does it only not answer?
                if context.broken > 1 {
                    context.tried.push(inside.0.number);
                }
                context.refusal = Some(Refusal::coded(503, Code::H13));
            }
            error.set_retry(true);
        } else {
            error.set_retry(false);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        let refusal = refusal_of(session, error, context);
        context.refusal = Some(refusal);
        session.set_keepalive(None);
        let written = session.response_written().is_some_and(|written| !written.status.is_informational());
        if written || refusal.status == CLIENT_GONE {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        if let Err(error) = self.write_page(session, context, refusal).await {
            tracing::debug!(%error, "the client did not take its error page");
        }
        // Waiting for the client to read its page is no part of the request.
        self.account(session, context);
        // A stream of HTTP/2 has ended with its page; to shut it down would take the page back.
        if !session.is_http2() {
            session.as_downstream_mut().shutdown().await;
        }
        FailToProxy { error_code: refusal.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _context: &Context,
        _error: &Error,
        _log: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, context: &mut Context) {
        self.account(session, context);
    }
}

fn client_of(session: &Session) -> Option<&ClientStream> {
    session.as_downstream().stream().and_then(|stream| ClientStream::of(stream.as_ref()))
}

/// What a client that went away is logged as, after nginx.
const CLIENT_GONE: u16 = 499;

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

impl Proxy {
    /// Lets a request wait until the next look is worth it, or says why it is not to wait: nothing comes up, the time
    /// is over, too many wait already, or the client has gone.
    async fn hold(
        &self,
        session: &Session,
        context: &mut Context,
        app: &LiveApp,
        turned: impl Future<Output = ()>,
    ) -> Result<(), Refusal> {
        let options = &self.routes.options;
        let unreachable = app.has_active();
        let (limit, refusal) = if unreachable {
            let refusal = context.refusal.unwrap_or(Refusal::coded(503, Code::H21));
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
        let since = *context.held_since.get_or_insert_with(Instant::now);
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
        tokio::select! {
            () = turned => {}
            () = tokio::time::sleep(left.min(HELD_LOOK)) => {}
        }
        if client_of(session).is_some_and(ClientStream::is_gone) {
            return Err(Refusal::coded(CLIENT_GONE, Code::H27));
        }
        app.forgive(&mut context.tried);
        Ok(())
    }

    /// Counts and logs a request, once.
    fn account(&self, session: &Session, context: &mut Context) {
        if std::mem::replace(&mut context.accounted, true) {
            return;
        }
        let written = session.response_written().map(|written| written.status.as_u16());
        let refusal = context.refusal;
        // A line shows what the client got; an answer that was cut off is told by its code.
        let status = match (written.filter(|status| *status >= 200 || *status == 101), refusal) {
            (Some(status), _) => status,
            (None, Some(refusal)) => refusal.status,
            (None, None) => CLIENT_GONE,
        };
        let code = refusal.and_then(|refusal| refusal.code);
        let bytes = session.body_bytes_sent() as u64;
        let took = context.started.elapsed();
        if let Some(app) = context.app.as_ref().filter(|_| !context.outsider) {
            let process = context.process.as_ref().map(|process| (process.release.as_str(), process.name.as_str()));
            app.metrics.record(&Sample { status, code, bytes, took, process, now: self.clock.now() });
        }
        let header = session.req_header();
        let entry = Entry {
            method: header.method.as_str(),
            path: header.raw_path(),
            host: &context.host,
            request_id: &context.request_id,
            client: context.origin.map(|origin| origin.client),
            secure: context.origin.is_some_and(|origin| origin.secure),
            process: context.process.as_ref().map(|process| process.name.as_str()),
            connect: context.connect,
            service: took.saturating_sub(context.connect.unwrap_or_default()),
            status,
            bytes,
            code,
        };
        self.log.request(context.app.as_ref().map(|app| &app.name), &entry);
        // The process is done with this request; what is left concerns the client alone.
        context.inside = None;
        context.counted = None;
    }

    /// Answers a request by itself; the phase's `true` says that nothing is left to do.
    async fn refuse(&self, session: &mut Session, context: &mut Context, refusal: Refusal) -> Result<bool> {
        context.refusal = Some(refusal);
        self.write_page(session, context, refusal).await?;
        Ok(true)
    }

    /// Sends a client to the same address with TLS, whatever it asked.
    async fn redirect(&self, session: &mut Session, context: &Context, port: u16) -> Result<bool> {
        let path = request::origin_form(session.req_header().raw_path())
            .unwrap_or_else(|| session.req_header().raw_path().to_vec());
        let path = String::from_utf8_lossy(&path).into_owned();
        let path = if path.starts_with('/') { path } else { "/".to_owned() };
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        let mut header = ResponseHeader::build(308, Some(4))?;
        header.insert_header("Location", format!("https://{}{port}{path}", context.host))?;
        header.insert_header("Content-Length", "0")?;
        header.insert_header("X-Request-Id", context.request_id.as_str())?;
        // What a body of the request is, nobody reads.
        session.set_keepalive(None);
        session.write_response_header(Box::new(header), true).await?;
        Ok(true)
    }

    /// The answer to a certificate authority that looks whether a domain leads here (RFC 8555, 8.3), if it is one that
    /// the control plane waits for.
    async fn challenge(&self, header: &RequestHeader) -> Option<Vec<u8>> {
        let token = header.raw_path().strip_prefix(b"/.well-known/acme-challenge/")?;
        let token = std::str::from_utf8(token).ok().filter(|token| {
            (1..=256).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })?;
        if header.method != http::Method::GET {
            return None;
        }
        tokio::fs::read(self.routes.options.state_dir.join("challenges").join(token)).await.ok()
    }

    async fn write_challenge(&self, session: &mut Session, context: &Context, answer: Vec<u8>) -> Result<bool> {
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header("Content-Type", "application/octet-stream")?;
        header.insert_header("Content-Length", answer.len().to_string())?;
        header.insert_header("X-Request-Id", context.request_id.as_str())?;
        session.write_response_header(Box::new(header), false).await?;
        session.write_response_body(Some(Bytes::from(answer)), true).await?;
        Ok(true)
    }

    /// Answers who was not let in: with the page that says so, or by sending them to where they can log in.
    async fn turn_away(
        &self,
        session: &mut Session,
        context: &mut Context,
        app: &AppName,
        verdict: Verdict,
    ) -> Result<bool> {
        // What a body of the request is, nobody reads.
        session.set_keepalive(None);
        let (status, name, value, cookie) = match verdict {
            Verdict::Elsewhere { to, cookie } => (303, "Location", to, Some(cookie)),
            Verdict::Closed(refusal) if refusal.status == 401 => {
                (401, "WWW-Authenticate", format!("Basic realm=\"{app}\", charset=\"UTF-8\""), None)
            }
            Verdict::Closed(refusal) => return self.refuse(session, context, refusal).await,
            Verdict::Open { .. } => return Ok(false),
        };
        let accept = session.req_header().headers.get("accept").and_then(|accept| accept.to_str().ok());
        let page = errors::render(Refusal::bare(status), &context.request_id, accept, &self.pages);
        let mut header = ResponseHeader::build(status, Some(8))?;
        header.insert_header(name, value)?;
        if let Some(cookie) = cookie {
            header.insert_header("Set-Cookie", cookie)?;
        }
        header.insert_header("Content-Type", page.content_type)?;
        header.insert_header("Cache-Control", "no-store")?;
        header.insert_header("X-Robots-Tag", "noindex")?;
        header.insert_header("X-Request-Id", context.request_id.as_str())?;
        let body = if status == 401 { page.body } else { String::new() };
        header.insert_header("Content-Length", body.len().to_string())?;
        let bare = session.req_header().method.as_str() == "HEAD" || body.is_empty();
        session.write_response_header(Box::new(header), bare).await?;
        if !bare {
            session.write_response_body(Some(Bytes::from(body)), true).await?;
        }
        Ok(true)
    }

    fn refused<T>(&self, context: &mut Context, refusal: Refusal) -> Result<T> {
        context.refusal = Some(refusal);
        Err(Error::explain(REFUSED, "answered by the router").into_in())
    }

    async fn write_page(&self, session: &mut Session, context: &Context, refusal: Refusal) -> Result<()> {
        let accept = session.req_header().headers.get("accept").and_then(|accept| accept.to_str().ok());
        let page = errors::render(refusal, &context.request_id, accept, &self.pages);
        let mut header = ResponseHeader::build(refusal.status, Some(8))?;
        header.insert_header("Content-Type", page.content_type)?;
        header.insert_header("Content-Length", page.body.len().to_string())?;
        header.insert_header("Cache-Control", "no-store")?;
        header.insert_header("X-Robots-Tag", "noindex")?;
        header.insert_header("X-Request-Id", context.request_id.as_str())?;
        header.insert_header("Server", "landfall")?;
        if refusal.notice == Some(Notice::Gone) {
            // What a closed pull request's app left in browsers must not outlive it.
            header.insert_header("Clear-Site-Data", "\"cache\", \"cookies\", \"storage\"")?;
        }
        let head = session.req_header().method.as_str() == "HEAD";
        session.write_response_header(Box::new(header), head).await?;
        if !head {
            session.write_response_body(Some(Bytes::from(page.body)), true).await?;
        }
        Ok(())
    }
}

const REFUSED: ErrorType = ErrorType::Custom("Refused");

/// Which of the router's answers an error calls for.
fn refusal_of(session: &mut Session, error: &Error, context: &Context) -> Refusal {
    let begun = session.response_written().is_some_and(|written| !written.status.is_informational());
    if *error.etype() == REFUSED {
        return context.refusal.unwrap_or(Refusal::coded(500, Code::H99));
    }
    if context.connection.as_ref().is_some_and(|connection| connection.timed_out.load(Ordering::Acquire)) {
        return Refusal::coded(503, Code::H12);
    }
    if client_of(session).is_some_and(ClientStream::is_malformed) {
        return Refusal::bare(400);
    }
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, kind) => match kind {
            ErrorType::ConnectTimedout => Refusal::coded(503, Code::H19),
            ErrorType::ConnectRefused | ErrorType::ConnectError | ErrorType::SocketError => {
                Refusal::coded(503, Code::H21)
            }
            // The app can't be blamed for silence while the client owes it the rest of the request.
            ErrorType::ReadTimedout if !begun && !session.is_body_done() => Refusal::coded(408, Code::H28),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Refusal::coded(503, Code::H15),
            ErrorType::InvalidHTTPHeader if !begun => Refusal::coded(503, Code::H17),
            _ if begun => Refusal::coded(503, Code::H18),
            _ => Refusal::coded(503, Code::H13),
        },
        (ErrorSource::Downstream, kind) => match kind {
            ErrorType::ReadTimedout => Refusal::coded(408, Code::H28),
            ErrorType::WriteTimedout | ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => {
                Refusal::coded(CLIENT_GONE, Code::H27)
            }
            _ => Refusal::bare(400),
        },
        (ErrorSource::Internal | ErrorSource::Unset, _) => Refusal::coded(500, Code::H99),
    }
}
