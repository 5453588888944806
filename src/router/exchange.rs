//! One request and its answer, from the head's arrival until it was counted and logged.

use super::clients::{self, Client, UnderWay};
use super::errors::{Code, Refusal};
use super::link::Link;
use super::live::{InFlight, LiveApp, LiveTarget};
use super::log::Entry;
use super::metrics::{AppInFlight, Sample};
use super::proxy::Proxy;
use super::request::{self, Asked};
use super::trust::{self, Origin};
use crate::clock::Timestamp;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a client that went away is logged as, after nginx.
pub(super) const CLIENT_GONE: u16 = 499;

/// What one request gathers on its way. It is counted and logged when it is dropped, whatever that comes of: a client that
/// goes away ends the work on its request by dropping it.
pub(super) struct Exchange {
    pub proxy: Arc<Proxy>,
    pub client: Arc<Client>,
    pub started: Instant,
    pub arrived: Timestamp,
    pub request_id: HeaderValue,
    pub origin: Origin,
    /// The client's address as it is written.
    pub written_address: HeaderValue,
    pub method: Method,
    uri: Uri,
    pub host: String,
    pub asked: Asked,
    pub app: Option<Arc<LiveApp>>,
    pub counted: Option<AppInFlight>,
    /// The process that the request is at, and the same for the log after it left.
    pub inside: Option<InFlight>,
    pub process: Option<Arc<LiveTarget>>,
    pub tried: Vec<u64>,
    /// Since when it waits for a process, or first did.
    pub held_since: Option<Instant>,
    /// Connections that broke before an answer began.
    pub broken: u32,
    /// Whose they were, but for those that had to end.
    pub broke_at: Vec<Arc<LiveTarget>>,
    pub connect: Option<Duration>,
    pub refusal: Option<Refusal>,
    /// What the client was told, once it was.
    pub status: Option<u16>,
    /// The answer is a stream of events, which ends when one of both has had enough.
    pub events: bool,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Nobody who was let in: no use of the app.
    pub outsider: bool,
    /// What the answer gives to the browser that was let in by the password.
    pub let_in: Option<String>,
    /// It brings the password that closes the app to others; the app must not see it.
    pub by_password: bool,
    whole: bool,
    _under_way: UnderWay,
}

impl Exchange {
    pub fn begin(proxy: &Arc<Proxy>, client: Arc<Client>, head: &Parts) -> Box<Exchange> {
        let port = proxy.secure_port.filter(|_| client.secure).unwrap_or(proxy.port);
        let own = Origin { client: client.address, secure: client.secure, port };
        let origin = trust::origin(&head.headers, own, &proxy.routes.options.trusted);
        let same = origin.client == client.address;
        let mut asked = Asked::by(&head.headers);
        Box::new(Exchange {
            started: Instant::now(),
            arrived: proxy.clock.now(),
            request_id: asked.request_id.take().unwrap_or_else(request::new_request_id_value),
            origin,
            written_address: if same { client.written_address.clone() } else { clients::written(origin.client) },
            method: head.method.clone(),
            uri: head.uri.clone(),
            host: String::new(),
            asked,
            app: None,
            counted: None,
            inside: None,
            process: None,
            tried: Vec::new(),
            held_since: None,
            broken: 0,
            broke_at: Vec::new(),
            connect: None,
            refusal: None,
            status: None,
            events: false,
            bytes: 0,
            outsider: false,
            let_in: None,
            by_password: false,
            whole: false,
            _under_way: client.begin(),
            proxy: proxy.clone(),
            client,
        })
    }

    /// What logs and pages call it.
    pub fn name(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// A process's connection broke before it answered.
    pub fn breaks_at(&mut self, target: &Arc<LiveTarget>) {
        self.broken += 1;
        if target.is_open() && !self.broke_at.iter().any(|known| known.number == target.number) {
            self.broke_at.push(target.clone());
        }
    }

    /// A process answers. Whatever broke before is made up for: the visitor never knows, whoever judges those processes does.
    pub fn answered(&mut self) {
        self.refusal = None;
        for target in self.broke_at.drain(..) {
            if let Some(app) = &self.app {
                app.metrics.broke(&target.label, self.proxy.clock.now());
            }
        }
    }

    /// Keeps the connection to the process for the next request.
    pub fn give_back(&self, link: Link) {
        if let Some(inside) = &self.inside {
            inside.0.keep_link(link, &self.proxy.routes.ticks);
        }
    }

    /// Whether an answer that began with this status is an error all the same: the app broke it off, or fell silent.
    /// Not so of another protocol, which was agreed on, nor where its process had to end: the release does not do that.
    fn is_broken_off(&self, status: u16, refusal: Refusal) -> bool {
        let by_app = matches!(refusal.code, Some(Code::H15 | Code::H18));
        by_app && status != 101 && self.process.as_ref().is_some_and(|process| process.is_open())
    }

    /// Everything that there was to do for it was done.
    pub fn complete(mut self: Box<Exchange>) {
        self.whole = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let gone = Refusal::coded(CLIENT_GONE, Code::H27);
        // What went wrong at a process before it left may have been made up for.
        let refusal = if self.whole { self.refusal } else { Some(gone) };
        let code = refusal.and_then(|refusal| refusal.code);
        let status = match (self.status, refusal) {
            (Some(status), Some(refusal)) if self.is_broken_off(status, refusal) => refusal.status,
            (Some(status), _) => status,
            (None, refusal) => refusal.map_or(CLIENT_GONE, |refusal| refusal.status),
        };
        let took = self.started.elapsed();
        let now = self.arrived + took;
        let process = self.process.as_deref();
        if let Some(app) = self.app.as_ref().filter(|_| !self.outsider) {
            let process = process.map(|process| process.label.as_str());
            let took = (status != 101 && !self.events).then_some(took);
            app.metrics.record(&Sample { status, code, bytes: self.bytes, took, process, now });
        }
        let entry = Entry {
            method: self.method.as_str(),
            path: request::path_of(&self.uri),
            host: &self.host,
            request_id: self.name(),
            client: self.written_address.to_str().unwrap_or_default(),
            secure: self.origin.secure,
            process: process.map(|process| process.name.as_str()),
            connect: self.connect,
            service: took.saturating_sub(self.connect.unwrap_or_default()),
            status,
            bytes: self.bytes,
            code,
        };
        self.proxy.log.request(self.app.as_ref().map(|app| &app.name), now, &entry);
    }
}
