//! The router's process: one lock, one listener, one control socket, and an end that lets requests finish.

use super::announced;
use super::certificates::{CertificateFiles, Certificates};
use super::clients::{self, ClientStream, Clients};
use super::control::{self, Control};
use super::dial;
use super::health;
use super::keep;
use super::live::Routes;
use super::log::Log;
use super::proxy::{KEEP_ALIVE_SECONDS, Proxy};
use super::request::canonical;
use super::table;
use super::trust::Trusted;
use super::wire::Wire;
use crate::clock::Clock;
use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Idle connections to processes that are kept, of all apps.
const POOLED: usize = 4096;

/// What a router runs with.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// Where clients connect; port 0 takes a free one. The real address stands in `state_dir/router.addr`.
    pub listen: SocketAddr,
    /// `table.json`, `router.sock`, `router.addr`, `router.log` and `router.lock` live here; made if it is missing.
    pub state_dir: PathBuf,
    /// Where clients connect with TLS, and with which certificate.
    pub secure: Option<(SocketAddr, CertificateFiles)>,
    /// Sends whoever comes without TLS to the address with it.
    pub redirect: bool,
    /// How often the certificate's files are looked at: 10 s.
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
    /// Clients' connections at the same time, in all and from one address; who comes after is told 503.
    pub connections: usize,
    pub connections_per_address: usize,
}

impl RouterOptions {
    /// Heroku's numbers.
    pub fn new(listen: SocketAddr, state_dir: PathBuf, domain: String) -> RouterOptions {
        RouterOptions {
            listen,
            secure: None,
            redirect: true,
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
            pooled_timeout: Duration::from_millis(1500),
            hold_timeout: Duration::from_secs(75),
            restart_timeout: Duration::from_secs(5),
            held: 4_096,
            held_per_app: 512,
            drain_timeout: Duration::from_secs(30),
            connections: 16_384,
            connections_per_address: 8_192,
        }
    }
}

/// Runs a router until it is told to stop by its control socket, SIGTERM or SIGINT. It makes a runtime of its own and
/// must not be called from inside another.
pub fn run(options: RouterOptions) -> anyhow::Result<()> {
    run_until(options, signalled())
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

pub(super) fn run_until(options: RouterOptions, ended: impl Future<Output = ()>) -> anyhow::Result<()> {
    let folder = options.state_dir.clone();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("could not make {}", folder.display()))?;
    let _lock = lock(&folder)?;
    raise_file_limit();
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("router")
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let result = runtime.block_on(serve(options, threads, ended));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(options: RouterOptions, threads: usize, ended: impl Future<Output = ()>) -> anyhow::Result<()> {
    let clock = Clock::System;
    let folder = options.state_dir.clone();
    let drain_timeout = options.drain_timeout;
    let log = Log::start(&folder, clock.clone()).context("could not open the log")?;
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("could not listen on {}", options.listen))?;
    let address = listener.local_addr().context("could not tell the listener's address")?;
    let secure = match &options.secure {
        None => None,
        Some((listen, files)) => {
            let certificates = Arc::new(Certificates::load(files)?);
            let listener = TcpListener::bind(listen).await.with_context(|| format!("could not listen on {listen}"))?;
            let address = listener.local_addr().context("could not tell the listener's address")?;
            tokio::spawn(certificates.clone().follow(options.certificate_interval));
            Some((listener, address, certificates))
        }
    };
    let secure_address = secure.as_ref().map(|(_, address, _)| *address);
    let routes = Arc::new(Routes::new(options));
    if let Some(table) = table::load(&folder) {
        tracing::info!(generation = table.generation, version = table.version, "restored the table");
        routes.restore(table);
    }

    let limits = (routes.options.connections, routes.options.connections_per_address);
    let clients = Arc::new(Clients::new(routes.started, limits.0, limits.1));
    let (stop, mut stopped) = watch::channel(false);
    let control_socket = listen_for_control(&folder)?;
    if let Some(address) = secure_address {
        write_address(&folder, "router.tls.addr", address)?;
    }
    write_address(&folder, "router.addr", address)?;
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
    tokio::spawn(cut_silent(routes.clone()));
    tokio::spawn(cut_slow(clients.clone(), routes.options.head_timeout));

    let configuration = ServerConf {
        threads,
        max_retries: 16,
        // For each thread. Idle connections go after `pooled_timeout` anyway; this only must not be less than what a
        // thousand busy apps keep open.
        upstream_keepalive_pool_size: POOLED,
        ..ServerConf::default()
    };
    let proxy = Proxy {
        routes: routes.clone(),
        log,
        clock,
        port: address.port(),
        secure_port: secure_address.map(|address| address.port()),
    };
    let mut proxy = http_proxy(&Arc::new(configuration), proxy);
    let mut server_options = HttpServerOptions::default();
    server_options.h2_idle_timeout = Some(Duration::from_secs(KEEP_ALIVE_SECONDS));
    proxy.server_options = Some(server_options);
    let proxy = Arc::new(proxy);
    let door = Door { proxy: proxy.clone(), clients, routes: routes.clone(), stopped: stopped.clone() };
    let mut accepting = vec![tokio::spawn(accept(listener, None, door.clone()))];
    if let Some((listener, _, certificates)) = secure {
        accepting.push(tokio::spawn(accept(listener, Some(certificates), door)));
    }
    // Whoever started us may have closed its end of the pipe; that is no reason to die.
    if !cfg!(test) {
        let _ = writeln!(std::io::stdout(), "router listens on http://{address}/");
    }
    tracing::info!(%address, "router listens");

    tokio::select! {
        () = ended => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    // The listener is closed first, so that whoever comes now is refused at once and not in the middle.
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    stop.send_replace(true);
    proxy.http_cleanup().await;
    drain(&routes, drain_timeout).await;
    let _ = tokio::task::spawn_blocking(move || keep::save(&routes)).await;
    tracing::info!("router stopped");
    Ok(())
}

/// What a new connection needs.
#[derive(Clone)]
struct Door {
    proxy: Arc<HttpProxy<Proxy>>,
    clients: Arc<Clients>,
    routes: Arc<Routes>,
    stopped: watch::Receiver<bool>,
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
                let (proxy, stopped) = (door.proxy.clone(), door.stopped.clone());
                let stream = ClientStream::new(place, Wire::Plain(stream), None);
                tokio::spawn(async move { proxy.process_new(Box::new(stream), &stopped).await });
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
                Some(place) => self.serve(ClientStream::new(place, Wire::Plain(stream), client)).await,
                None => clients::turn_away(&stream),
            }
            return;
        };
        let handshake = certificates.acceptor().accept(stream);
        tokio::pin!(handshake);
        // After the connection, so that on any way out it is dropped before it.
        let Some(place) = self.clients.admit(descriptor, source, true) else { return };
        match handshake.as_mut().await {
            Ok(stream) => self.serve(ClientStream::new(place, Wire::Secure(Box::new(stream)), client)).await,
            Err(error) => tracing::debug!(%address, %error, "no TLS came about"),
        }
    }

    async fn serve(&self, stream: ClientStream) {
        self.proxy.process_new(Box::new(stream), &self.stopped).await;
    }
}

/// Cuts requests whose answer does not begin in time. The proxy library's own timeout restarts with every byte of
/// either side and cannot tell the first byte from later ones.
async fn cut_silent(routes: Arc<Routes>) {
    let limit = routes.options.first_byte_timeout;
    let mut tick = tokio::time::interval((limit / 8).clamp(Duration::from_millis(10), Duration::from_millis(500)));
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    loop {
        tick.tick().await;
        if let Some(before) = routes.now().checked_sub(limit) {
            for (_, target) in routes.targets() {
                target.connections.cut_silent(before + 1);
            }
        }
    }
}

/// Cuts clients whose request's head does not arrive in time.
async fn cut_slow(clients: Arc<Clients>, limit: Duration) {
    let mut tick = tokio::time::interval((limit / 8).clamp(Duration::from_millis(10), Duration::from_millis(500)));
    loop {
        tick.tick().await;
        clients.cut_slow(limit);
    }
}

async fn drain(routes: &Routes, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    while routes.targets().iter().any(|(_, target)| target.in_flight() > 0) {
        if tokio::time::Instant::now() >= deadline {
            tracing::warn!("stopped with requests in flight");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One router per folder: a second one would answer from the same table on another port.
fn lock(folder: &Path) -> anyhow::Result<Flock<File>> {
    let path = folder.join("router.lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("could not open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another router runs on {}", folder.display()))
}

fn listen_for_control(folder: &Path) -> anyhow::Result<tokio::net::UnixListener> {
    let path = folder.join("router.sock");
    let listener = dial::listen_unix(&path).with_context(|| format!("could not listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("could not protect {}", path.display()))?;
    Ok(listener)
}

fn write_address(folder: &Path, name: &str, address: SocketAddr) -> anyhow::Result<()> {
    let path = folder.join(name);
    let fresh = folder.join(format!("{name}.new"));
    std::fs::write(&fresh, format!("{address}\n"))
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
