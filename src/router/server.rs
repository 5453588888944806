//! The router's process: one lock, one listener, one control socket, and an end that lets requests finish.

use super::announced;
use super::certificates::{CertificateFiles, Certificates};
use super::clients::{self, Client, ClientStream, Clients, Ending, FAREWELL};
use super::control::{self, Control};
use super::dial;
use super::handover::{self, Claim, Successor};
use super::health;
use super::keep;
use super::keeper::Lending;
use super::leaving;
use super::live::Routes;
use super::log::Log;
use super::metrics::AppMetrics;
use super::pages::Pages;
use super::proxy::Proxy;
use super::request::canonical;
use super::socket::{self, Socket};
use super::streams::Streams;
use super::table;
use super::trust::Trusted;
use super::wire::Wire;
use crate::clock::Clock;
use anyhow::Context as _;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes of one stream of HTTP/2, an upload, that may be under way. They are held here while the app, or a request that
/// waits for one, does not take them.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Bytes of one stream's answer that wait here for a client that takes them slowly or not at all, and the streams that one
/// connection may have open. A client says itself how much it takes, so all of it may wait.
const STREAM_UNSENT: usize = 32 * 1024;
const STREAMS: u32 = 100;
/// How long a router that a signal is to end serves on for the next one to come: as long as the control plane gives it.
const SUCCESSION: Duration = Duration::from_secs(10);
/// Bytes of a head over HTTP/2, as over HTTP/1.
const MAX_HEAD: u32 = 128 * 1024;

/// What a router runs with.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// Where clients connect; port 0 takes a free one. The real address stands in `state_dir/router.addr`.
    pub listen: SocketAddr,
    /// `table.json`, `router.sock`, `router.addr`, `router.log` and `router.lock` live here; made if it is missing.
    pub state_dir: PathBuf,
    /// Where clients connect with TLS, and with which certificate; custom domains have theirs in
    /// `state_dir/certificates`.
    pub secure: Option<(SocketAddr, Option<CertificateFiles>)>,
    /// Sends whoever comes without TLS to the address with it.
    pub redirect: bool,
    /// Pages in place of ours: a folder of templates.
    pub error_pages: Option<PathBuf>,
    /// How often the files of certificates and error pages are looked at: 10 s.
    pub certificate_interval: Duration,
    /// Connections from trusted proxies begin with the PROXY protocol.
    pub announced: bool,
    /// Apps are served under this domain.
    pub domain: String,
    /// Proxies in front whose forwarding headers are believed.
    pub trusted: Trusted,
    /// Threads that serve; `None` takes one per core.
    pub threads: Option<usize>,
    /// To reach a process, and for one health check: 5 s (as on Heroku).
    pub connect_timeout: Duration,
    /// From the first to the last byte of a request's head: 5 s.
    pub head_timeout: Duration,
    /// To the first byte of an answer: 30 s (as on Heroku).
    pub first_byte_timeout: Duration,
    /// Silence on a request that is under way: 55 s (as on Heroku).
    pub idle_timeout: Duration,
    /// How long a client's connection may idle between two requests, and before the first: 75 s.
    pub keep_alive: Duration,
    /// How long a connection to a process is kept for the next request. Shorter than the shortest keep-alive of
    /// common app servers (gunicorn: 2 s), so that the process is never the one to close it under a request.
    pub pooled_timeout: Duration,
    /// How long a request waits for a process that comes up: 75 s (as on Heroku).
    pub hold_timeout: Duration,
    /// How long it waits after no process could be reached, for one that crashed to be noticed: 5 s.
    pub restart_timeout: Duration,
    /// Requests that may wait, in all and of one app; who comes after is told 503 (H11).
    pub held: usize,
    pub held_per_app: usize,
    /// For requests in flight when the router is stopped.
    pub drain_timeout: Duration,
    /// For those who are connected when another router has taken its place: 10 min.
    pub handover_timeout: Duration,
    /// Tells this program from others.
    pub build: String,
    /// Clients' connections at the same time, in all and from one address (of IPv6: one network of 64 bits); a trusted
    /// proxy may have as many as there are. Who comes after takes the place of one that idles; where none does, it is told 503.
    pub connections: usize,
    pub connections_per_network: usize,
}

impl RouterOptions {
    /// Heroku's numbers.
    pub fn new(listen: SocketAddr, state_dir: PathBuf, domain: String) -> RouterOptions {
        RouterOptions {
            listen,
            secure: None,
            redirect: true,
            error_pages: None,
            certificate_interval: Duration::from_secs(10),
            announced: false,
            state_dir,
            domain,
            trusted: Trusted::default(),
            threads: None,
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(55),
            keep_alive: Duration::from_secs(75),
            pooled_timeout: Duration::from_millis(1500),
            hold_timeout: Duration::from_secs(75),
            restart_timeout: Duration::from_secs(5),
            held: 4_096,
            held_per_app: 512,
            drain_timeout: Duration::from_secs(30),
            handover_timeout: Duration::from_secs(600),
            build: String::new(),
            connections: 16_384,
            connections_per_network: 2_048,
        }
    }
}

/// Runs a router until it is told to stop by its control socket, SIGTERM or SIGINT. It makes a runtime of its own and
/// must not be called from inside another. Says whether it was the control socket, so that no other shall follow.
pub fn run(options: RouterOptions) -> anyhow::Result<bool> {
    let left = run_until(options, signalled())?;
    // Whoever waits for our end waits for this lock, so it goes with the process and not before.
    std::mem::forget(left.lock);
    Ok(left.down)
}

/// What is to be known of a router that ended.
pub(super) struct Left {
    /// The folder's lock, where no other router has it.
    lock: Option<File>,
    /// Its control socket told it to end, and not a signal or another router that has its place.
    pub down: bool,
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "could not listen for signals");
            std::future::pending::<()>().await;
        }
    }
}

pub(super) fn run_until(options: RouterOptions, ended: impl Future<Output = ()>) -> anyhow::Result<Left> {
    let folder = options.state_dir.clone();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("could not make {}", folder.display()))?;
    raise_file_limit();
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    // Who is alone has nobody to share work with.
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(threads)
        .thread_name("router")
        .enable_all()
        .on_thread_start(socket::begin_gathering)
        .on_thread_stop(socket::end_gathering)
        .on_thread_park(socket::send_gathered)
        .build()
        .context("could not start the runtime")?;
    // A runtime with one thread runs on this one.
    if threads == 1 {
        socket::begin_gathering();
    }
    let result = runtime.block_on(serve(options, ended));
    runtime.shutdown_timeout(Duration::from_secs(1));
    socket::end_gathering();
    result
}

/// A socket that clients connect to.
struct Entrance {
    name: String,
    socket: std::net::TcpListener,
    address: SocketAddr,
    certificates: Option<Arc<Certificates>>,
}

impl Entrance {
    async fn open(
        claim: &mut Claim,
        role: &str,
        listen: SocketAddr,
        certificates: Option<Arc<Certificates>>,
    ) -> anyhow::Result<Entrance> {
        let listener = claim.listener(role, listen).await.with_context(|| format!("could not listen on {listen}"))?;
        let address = listener.local_addr().context("could not tell the listener's address")?;
        let socket = listener.into_std().context("could not keep the listener")?;
        Ok(Entrance { name: handover::socket_name(role, listen), socket, address, certificates })
    }
}

async fn serve(options: RouterOptions, ended: impl Future<Output = ()>) -> anyhow::Result<Left> {
    let clock = Clock::System;
    let folder = options.state_dir.clone();
    let (drain_timeout, handover_timeout) = (options.drain_timeout, options.handover_timeout);
    let certificates = match &options.secure {
        None => None,
        Some((listen, files)) => {
            let certificates = Certificates::load(files.as_ref(), &folder.join("certificates"), &options.domain)?;
            Some((*listen, Arc::new(certificates)))
        }
    };
    let pages = Arc::new(Pages::load(options.error_pages.as_deref())?);
    tokio::spawn(pages.clone().follow(options.certificate_interval));
    let mut doors = vec![("plain", options.listen, None)];
    doors.extend(certificates.map(|(listen, certificates)| ("tls", listen, Some(certificates))));
    let wanted: Vec<_> = doors.iter().map(|(role, listen, _)| handover::socket_name(role, *listen)).collect();
    let mut claim = handover::claim(&folder, &wanted).await?;
    let log = Log::start(&folder, clock.now()).context("could not open the log")?;
    let mut entrances = Vec::new();
    for (role, listen, certificates) in doors {
        if let Some(certificates) = &certificates {
            tokio::spawn(certificates.clone().follow(options.certificate_interval));
        }
        entrances.push(Entrance::open(&mut claim, role, listen, certificates).await?);
    }
    let address = entrances[0].address;
    let secure_address = entrances.get(1).map(|entrance| entrance.address);
    claim.go().await?;
    // Whatever the one before us was told and counted is on disk from here on.
    let routes = Arc::new(Routes::new(options));
    if let Some(table) = table::load(&folder) {
        tracing::info!(generation = table.generation, version = table.version, "restored the table");
        routes.restore(table);
    }

    let RouterOptions { connections, connections_per_network, trusted, .. } = &routes.options;
    let clients = Clients::new(routes.ticks.clone(), *connections, *connections_per_network, trusted.clone());
    let clients = Arc::new(clients);
    let (stop, mut stopped) = watch::channel(false);
    let control_socket = listen_for_control(&folder, "router.sock")?;
    let mut successors = listen_for_control(&folder, handover::SOCKET)?;
    if let Some(address) = secure_address {
        write_address(&folder, "router.tls.addr", address)?;
    }
    write_address(&folder, "router.addr", address)?;
    write_line(&folder, "router.pid", &std::process::id().to_string())?;
    let control = Control {
        routes: routes.clone(),
        log: log.clone(),
        clients: clients.clone(),
        clock: clock.clone(),
        started_at: clock.now(),
        listen: address.to_string(),
        stop: stop.clone(),
    };
    tokio::spawn(control::serve(control_socket, Arc::new(control)));
    tokio::spawn(health::check_all(routes.clone()));
    tokio::spawn(keep::keep(routes.clone()));
    tokio::spawn(look_around(routes.clone(), clients.clone()));

    let proxy = Proxy {
        routes: routes.clone(),
        log,
        pages,
        clock,
        port: address.port(),
        secure_port: secure_address.map(|address| address.port()),
        certificates: entrances.get(1).and_then(|entrance| entrance.certificates.clone()),
    };
    let proxy = Arc::new(proxy);
    let door = Door { proxy: proxy.clone(), clients: clients.clone(), routes: routes.clone() };
    // Whoever started us may have closed its end of the pipe; that is no reason to die.
    if !cfg!(test) {
        let _ = writeln!(std::io::stdout(), "router listens on http://{address}/");
    }
    let before = claim.predecessor();
    tracing::info!(%address, before, "router listens");
    let lock = std::mem::replace(&mut claim.lock, File::open("/dev/null").context("could not open /dev/null")?);

    tokio::pin!(ended);
    let mut claim = Some(claim);
    // By a signal.
    let mut to_end = false;
    let replaced = loop {
        let mut accepting = Vec::new();
        for entrance in &entrances {
            let listener = entrance.socket.try_clone().and_then(TcpListener::from_std).context("could not listen")?;
            accepting.push(tokio::spawn(accept(listener, entrance.certificates.clone(), door.clone())));
        }
        if let Some(mut claim) = claim.take() {
            claim.serving().await?;
        }
        let sockets: Vec<_> = entrances.iter().map(|entrance| (entrance.name.as_str(), &entrance.socket)).collect();
        let lending = Lending::start(&folder, sockets.iter().copied());
        if let Err(error) = &lending {
            tracing::warn!(%error, "nobody can hold the router's sockets for it");
        }
        let mut successor = tokio::select! {
            () = &mut ended => {
                to_end = true;
                None
            }
            _ = stopped.wait_for(|stop| *stop) => None,
            successor = handover::offer(&successors, &lock, &sockets) => Some(successor),
        };
        // Whoever keeps the sockets starts the next one while we still serve, so that nobody has to wait for it.
        if to_end && lending.as_ref().is_ok_and(Lending::leave) {
            successor = tokio::select! {
                successor = handover::offer(&successors, &lock, &sockets) => Some(successor),
                _ = stopped.wait_for(|stop| *stop) => None,
                () = tokio::time::sleep(SUCCESSION) => None,
            };
        }
        // Nobody is taken in from here on, and nobody is half taken in.
        for task in accepting {
            task.abort();
            let _ = task.await;
        }
        match successor {
            None => {
                if let Ok(lending) = lending {
                    lending.dismiss().await;
                }
                break None;
            }
            Some(successor) => {
                if let Some(aside) = hand_over(&routes, successor).await {
                    break Some(aside);
                }
                if to_end {
                    tracing::warn!("the router that was to take our place failed");
                    break None;
                }
                tracing::warn!("the router that was to take our place failed; serving on");
                // It may have put its own there.
                successors = listen_for_control(&folder, handover::SOCKET)?;
            }
        }
    };
    // Without us the sockets and the lock are the other one's, or nobody's: whoever comes then is refused at once, and
    // not in the middle.
    drop(entrances);
    drop(successors);
    let mut lock = Some(lock);
    let mut reports = leaving::Reports::new(proxy.log.clone());
    if replaced.is_some() {
        tracing::info!("handed over; those who are connected are served to their end");
        lock = None;
        clients.end(Ending::Streamed);
        let limit = if to_end { drain_timeout } else { handover_timeout };
        let served = async {
            tokio::select! {
                () = &mut ended, if !to_end => {}
                _ = stopped.wait_for(|stop| *stop) => {}
                () = leaving::serve_out(&routes, &clients, limit) => {}
            }
        };
        reports.until(&routes, served).await;
    } else {
        let _ = std::fs::remove_file(folder.join(handover::SOCKET));
    }
    clients.end(Ending::All);
    let down = stop.send_replace(true);
    let drained = drain(&routes, &clients, drain_timeout);
    if let Some(aside) = replaced {
        reports.until(&routes, drained).await;
        let _ = std::fs::remove_file(aside);
    } else {
        drained.await;
        let _ = tokio::task::spawn_blocking(move || keep::save(&routes)).await;
    }
    tracing::info!("router stopped");
    Ok(Left { lock, down })
}

/// Lets another router take our place and says where our control socket is from then on; without success everything
/// is as before.
async fn hand_over(routes: &Arc<Routes>, successor: Successor) -> Option<PathBuf> {
    let folder = routes.options.state_dir.clone();
    let begun = {
        let routes = routes.clone();
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || {
            routes.set_leaving(true);
            let numbers = keep::leave(&routes);
            (leaving::make_room(&folder), numbers)
        })
    };
    let Ok((aside, numbers)) = begun.await else {
        routes.set_leaving(false);
        return None;
    };
    match &aside {
        Ok(aside) if successor.take().await => return Some(aside.clone()),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "could not make room for a successor"),
    }
    routes.with_numbers(&numbers, AppMetrics::give_back);
    if let Ok(aside) = aside {
        let _ = std::fs::rename(aside, folder.join("router.sock"));
    }
    routes.set_leaving(false);
    None
}

/// What a new connection needs.
#[derive(Clone)]
struct Door {
    proxy: Arc<Proxy>,
    clients: Arc<Clients>,
    routes: Arc<Routes>,
}

async fn accept(listener: TcpListener, certificates: Option<Arc<Certificates>>, door: Door) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let _ = stream.set_nodelay(true);
                let options = &door.routes.options;
                let announced = options.announced && options.trusted.contains(canonical(address.ip()));
                if announced || certificates.is_some() {
                    let (door, certificates) = (door.clone(), certificates.clone());
                    tokio::spawn(async move { door.welcome(stream, address, announced, certificates).await });
                    continue;
                }
                let Some(place) = door.clients.admit(stream.as_raw_fd(), address.ip(), false) else {
                    clients::turn_away(&stream);
                    continue;
                };
                let door = door.clone();
                let stream = ClientStream::new(place, Wire::Plain(Socket::new(stream)), None);
                tokio::spawn(async move { door.serve(stream).await });
            }
            Err(error) => {
                // Out of descriptors, mostly: those that are open have to end before another can come.
                tracing::error!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Door {
    /// Lets in a connection that begins with something else than HTTP.
    async fn welcome(
        &self,
        mut stream: TcpStream,
        address: SocketAddr,
        announced: bool,
        certificates: Option<Arc<Certificates>>,
    ) {
        let mut client = None;
        if announced {
            match announced::read(&mut stream, self.routes.options.head_timeout).await {
                Ok(named) => client = named,
                Err(error) => {
                    tracing::debug!(%address, %error, "a proxy did not say whose connection it passes on");
                    return;
                }
            }
        }
        let (descriptor, source) = (stream.as_raw_fd(), client.unwrap_or(address).ip());
        let Some(certificates) = certificates else {
            match self.clients.admit(descriptor, source, false) {
                Some(place) => self.serve(ClientStream::new(place, Wire::Plain(Socket::new(stream)), client)).await,
                None => clients::turn_away(&stream),
            }
            return;
        };
        let handshake = certificates.acceptor().accept(Socket::new(stream)).into_fallible();
        tokio::pin!(handshake);
        // After the connection, so that on any way out it is dropped before it.
        let Some(place) = self.clients.admit(descriptor, source, true) else { return };
        match handshake.as_mut().await {
            Ok(stream) => self.serve(ClientStream::new(place, Wire::Secure(Box::new(stream)), client)).await,
            Err((error, stream)) => {
                tracing::debug!(%address, %error, "no TLS came about");
                drop(place);
                drop(stream);
            }
        }
    }

    /// Serves one connection to its end.
    async fn serve(&self, stream: ClientStream) {
        let client = stream.client();
        let (proxy, known) = (self.proxy.clone(), client.clone());
        let service = service_fn(move |request| proxy.clone().answer(known.clone(), request));
        let stream = TokioIo::new(stream);
        if !client.http2 {
            let connection = http1::Builder::new()
                .auto_date_header(false)
                .title_case_headers(true)
                .serve_connection(stream, service)
                .with_upgrades();
            tokio::pin!(connection);
            if !until_farewell(&client, connection.as_mut()).await {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
            return;
        }
        let options = &self.routes.options;
        let streams = Streams { ticks: self.routes.ticks.clone(), limit: options.idle_timeout };
        let connection = http2::Builder::new(streams)
            .auto_date_header(false)
            .max_header_list_size(MAX_HEAD)
            // Several times that of a stream, so that one that stands still holds up no other.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(8 * STREAM_WINDOW)
            .max_send_buf_size(STREAM_UNSENT)
            .max_concurrent_streams(STREAMS)
            .serve_connection(stream, service);
        tokio::pin!(connection);
        if !until_farewell(&client, connection.as_mut()).await {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Leads a connection, until its end or until it is to end; says whether it has ended.
async fn until_farewell(client: &Client, mut connection: Pin<&mut impl Future>) -> bool {
    let farewell = client.farewell();
    tokio::pin!(farewell);
    let mut asked = false;
    std::future::poll_fn(|context| {
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        // Each step of each request comes by here, so what was asked once is only asked again when it has an answer.
        if asked && !client.is_bidden_farewell() {
            return Poll::Pending;
        }
        asked = true;
        farewell.as_mut().poll(context).map(|()| false)
    })
    .await
}

/// Looks now and then at everything that has a limit: cuts clients whose request's head does not arrive in time, who do not
/// take their answer or ask nothing, and requests whose answer does not begin in time or on which nothing happens any more;
/// ends connections that have waited long enough for their next request.
async fn look_around(routes: Arc<Routes>, clients: Arc<Clients>) {
    let options = &routes.options;
    let limits = [options.head_timeout, options.first_byte_timeout, options.idle_timeout, options.keep_alive];
    let shortest = limits.into_iter().min().unwrap_or_default();
    let mut tick = tokio::time::interval((shortest / 8).clamp(Duration::from_millis(10), Duration::from_millis(500)));
    loop {
        tick.tick().await;
        routes.ticks.advance();
        clients.cut_slow(options.head_timeout, options.idle_timeout, options.keep_alive);
        for (_, target) in routes.targets() {
            target.connections.cut_silent(options.first_byte_timeout, options.idle_timeout);
            target.expire_links(&routes.ticks, options.pooled_timeout);
        }
    }
}

/// Waits until nobody is to get anything any more: an app may be done with a request whose client has not got all of the
/// answer yet. Those who have everything are told that it is over, and not waited for if they say nothing.
async fn drain(routes: &Routes, clients: &Clients, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    let farewell = deadline.min(tokio::time::Instant::now() + FAREWELL);
    let in_flight = || routes.targets().iter().any(|(_, target)| target.in_flight() > 0);
    while in_flight() || clients.busy() > 0 || (clients.count() > 0 && tokio::time::Instant::now() < farewell) {
        if tokio::time::Instant::now() >= deadline {
            tracing::warn!("stopped with requests in flight");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn listen_for_control(folder: &Path, name: &str) -> anyhow::Result<tokio::net::UnixListener> {
    let path = folder.join(name);
    dial::listen_unix(&path).with_context(|| format!("could not listen on {}", path.display()))
}

fn write_address(folder: &Path, name: &str, address: SocketAddr) -> anyhow::Result<()> {
    write_line(folder, name, &address.to_string())
}

fn write_line(folder: &Path, name: &str, line: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let fresh = folder.join(format!("{name}.new"));
    std::fs::write(&fresh, format!("{line}\n"))
        .and_then(|()| std::fs::rename(&fresh, &path))
        .with_context(|| format!("could not write {}", path.display()))
}

/// Two descriptors per request in flight: the soft limit of 1,024 would end at 500.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}
