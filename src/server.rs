//! The composition root: takes a configuration and puts the parts together, for `serve` and `router`, for the demo
//! and for tests.

use crate::acme;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::Secret;
use crate::drains::{Drains, Senders};
use crate::github::{Credentials, GitHub, RsaKey, Settings, Timeouts, WebhookSecrets, install_crypto_provider};
use crate::meters::Meters;
use crate::outside::Outside;
use crate::platform::{self, Local, LocalSettings, Platform};
use crate::reconcile::{self, Locks, World};
use crate::router::{About, CertificateFiles, Keeper, Router, RouterEnd, RouterOptions, Trusted};
use crate::slug::{self, Source};
use crate::store::{Health, Store};
use crate::text::Texts;
use crate::vault::Vault;
use crate::web::{self, Intake};
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tracing::{info, warn};

/// How often GitHub is asked for what its webhooks did not bring. What has not changed costs no call of the limit.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether the router answers; that it died is mostly seen before.
const LOOK_AFTER_ROUTER: Duration = Duration::from_millis(500);
/// Entries of the queue that are worked on at a time.
pub const WORKERS: usize = 12;
/// How many of them may be reading what deliveries are about, and how many telling GitHub something.
const INCOMING: usize = 4;
const OUTGOING: usize = 6;

/// What a test puts in the place of the machine's own.
pub struct Parts {
    pub clock: Clock,
    pub platform: Platform,
    pub router: Router,
    pub router_port: u16,
    pub outside: Option<Arc<Outside>>,
}

/// The world of one data folder. Takes the store's lock: a second one on the same folder is refused.
pub fn open_world(config: Config, parts: Parts) -> anyhow::Result<World> {
    install_crypto_provider();
    let folder = &config.data_dir;
    make_data_folder(folder)?;
    for inner in ["builds", "cache", "ci", "logs", "archives", "addons", "artifacts"] {
        std::fs::create_dir_all(folder.join(inner))
            .with_context(|| format!("cannot make the data folder {}", folder.join(inner).display()))?;
    }
    let store = Store::open(&folder.join("store"))?;
    // The store's lock is ours, so nothing packs.
    slug::sweep_unfinished(&folder.join("archives"));
    let vault = Vault::open(&folder.join("secret.key"))?;
    let github = GitHub::new(
        Settings {
            api_url: config.github.api_url.clone(),
            web_url: config.github.web_url.clone(),
            credentials: credentials(&config)?,
            user_agent: concat!("landfall/", env!("CARGO_PKG_VERSION")).to_owned(),
            write_interval: Duration::from_millis(config.github.write_interval_ms),
            timeouts: Timeouts::default(),
        },
        parts.clock.clone(),
    )?;
    let mut source = Source::new(std::path::absolute(folder.join("mirrors"))?, find_program("git")?);
    if config.github.web_url.starts_with("file://") {
        source = source.allowing_local_remotes();
    }
    let buildpacks = slug::buildpacks_folder(&std::path::absolute(folder)?.join("buildpacks"))
        .context("cannot write the buildpacks into the data folder")?;
    let started_at = parts.clock.now();
    let senders = Senders::new(config.drains.ca.as_deref(), parts.clock.clone()).context("drains.ca")?;
    let drains = Drains::new(senders);
    Ok(World {
        clock: parts.clock,
        store,
        github,
        platform: parts.platform,
        router: parts.router,
        source,
        vault,
        texts: Texts::load(),
        http: reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("cannot set up a client for providers of add-ons")?,
        buildpacks,
        router_port: parts.router_port,
        wake: Arc::new(Notify::new()),
        outside: parts.outside,
        executable: own_executable()?,
        boards: reconcile::split::Boards::default(),
        started_at,
        drains,
        meters: Arc::new(Meters::open(folder.join("meters.json"))),
        locks: Locks::default(),
        table_is_stale: AtomicBool::new(false),
        lines: reconcile::Lines::new(INCOMING, OUTGOING),
        config,
    })
}

fn credentials(config: &Config) -> anyhow::Result<Credentials> {
    let github = &config.github;
    match (github.app_id, &github.private_key_path, &github.token) {
        (Some(app_id), Some(path), _) => {
            let pem = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the app's private key {}", path.display()))?;
            let private_key = RsaKey::from_pem(&pem).with_context(|| format!("{}", path.display()))?;
            Ok(Credentials::App { app_id, private_key })
        }
        (None, None, Some(token)) => Ok(Credentials::Token(token.clone())),
        (Some(_), None, _) => bail!(
            "github.app_id is set but github.private_key_path is not: download a private key from the app's page on GitHub and name the file"
        ),
        _ => bail!(
            "nothing says who Landfall is on GitHub: set github.app_id and github.private_key_path (an app), or github.token (a small set-up)"
        ),
    }
}

fn webhook_secrets(config: &Config) -> anyhow::Result<WebhookSecrets> {
    let github = &config.github;
    let secrets: Vec<Secret> =
        [&github.webhook_secret, &github.webhook_secret_previous].into_iter().flatten().cloned().collect();
    if secrets.is_empty() {
        bail!(
            "github.webhook_secret is not set: without it anybody could give orders; make one with `openssl rand -hex 32`"
        );
    }
    Ok(WebhookSecrets::new(secrets)?)
}

fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    crate::config::search_path()
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("the program {name} is not installed: apt-get install {name}"))
}

/// How this binary is started again, for the router and for supervisors.
fn own_executable() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find out which program this is")
}

/// A control plane that listens. Dropping it is as good as killing it.
pub struct Running {
    pub world: Arc<World>,
    pub address: SocketAddr,
    server: actix_web::dev::ServerHandle,
    tasks: tokio::task::JoinSet<()>,
    /// Says when somebody asked for everything to end.
    pub down: mpsc::Receiver<()>,
}

impl Running {
    /// Ends the control plane; apps and router go on.
    pub async fn stop(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.server.stop(false).await;
    }
}

/// Listens and starts to work.
/// `router` says how the router is started again should it die; `None` where somebody else sees to that.
pub async fn start(world: World, router: Option<RouterStart>) -> anyhow::Result<Running> {
    let listen = world.config.server.listen;
    check_listen(&world.config)?;
    let secrets = webhook_secrets(&world.config)?;
    let intake = Intake::new(world.store.clone(), secrets, world.clock.clone(), world.wake.clone());
    let world = Arc::new(world);
    let (ask_down, down) = mpsc::channel(1);
    let (server, address) = web::listen(listen, world.clone(), intake, ask_down)
        .with_context(|| format!("cannot listen on {listen} (server.listen)"))?;
    let mut tasks = tokio::task::JoinSet::new();
    let handle = server.handle();
    tasks.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!("the web server ended: {error}");
        }
    });
    tasks.spawn(reconcile::run(world.clone(), WORKERS));
    tasks.spawn(compare_with_github(world.clone()));
    if world.config.certifies() {
        let settings = acme::Settings {
            directory: world.config.acme.directory.clone(),
            contact: world.config.acme.contact.as_ref().map(|address| format!("mailto:{address}")),
            domains: reconcile::domains::certified(&world)?,
            folder: std::path::absolute(&world.config.data_dir)?.join("router"),
        };
        let of = world.clone();
        let named = move || reconcile::domains::certified(&of).ok();
        tasks.spawn(acme::keep(settings, world.clock.clone(), named, world.wake.clone()));
    }
    if let Some(router) = router {
        tasks.spawn(keep_router(world.clone(), router));
    }
    info!(%address, "the control plane listens on http://{address}");
    Ok(Running { world, address, server: handle, tasks, down })
}

fn check_listen(config: &Config) -> anyhow::Result<()> {
    let listen = config.server.listen;
    if !listen.ip().is_loopback() {
        bail!(
            "server.listen is {listen}: without a login the dashboard may listen on a loopback address only; put 127.0.0.1 there and let a reverse proxy pass on /webhooks/github"
        );
    }
    std::net::TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen} (server.listen)"))?;
    Ok(())
}

/// Asks GitHub at the start, and seldom after it, what its webhooks may not have brought.
async fn compare_with_github(world: Arc<World>) {
    loop {
        if let Err(trouble) = reconcile::resync(&world).await {
            warn!("could not compare with GitHub: {trouble}");
        }
        tokio::time::sleep(COMPARE_EVERY).await;
    }
}

/// How the router is started.
#[derive(Debug, Clone)]
pub struct RouterStart {
    executable: PathBuf,
    config_file: PathBuf,
    folder: PathBuf,
}

impl RouterStart {
    pub fn new(config: &Config, config_file: &Path) -> anyhow::Result<RouterStart> {
        Ok(RouterStart {
            executable: own_executable()?,
            config_file: std::path::absolute(config_file)?,
            folder: std::path::absolute(&config.data_dir)?,
        })
    }
}

/// The router outlives us, and we outlive the router: should it die, the next one is started at once, and meanwhile its
/// sockets are held, so that nobody who connects is refused.
async fn keep_router(world: Arc<World>, start: RouterStart) {
    let mut keeper = match Keeper::start(&start.folder.join("router")) {
        Ok(keeper) => Some(keeper),
        Err(error) => {
            warn!("cannot hold the router's sockets for it: {error}");
            None
        }
    };
    let mut died = false;
    loop {
        match world.router.about().await {
            Ok(_) => {
                if died {
                    // Another has its place, and shall be ready to lend what it has.
                    tokio::time::sleep(LOOK_AFTER_ROUTER).await;
                }
                hold(&mut keeper).await;
            }
            Err(_) => {
                warn!("the router does not answer; starting it");
                match ensure_router(&world.router, &start).await {
                    Ok(_) => {
                        // What is held is of the one that died, which may not have been noticed yet.
                        let _ = tokio::time::timeout(Duration::ZERO, router_ended(&mut keeper)).await;
                        hold(&mut keeper).await;
                        let _ = reconcile::slow_tick(&world).await;
                    }
                    Err(error) => {
                        warn!("the router could not be started: {error:#}");
                        if let Some(keeper) = &mut keeper {
                            keeper.let_go();
                        }
                    }
                }
            }
        }
        let end = tokio::time::timeout(LOOK_AFTER_ROUTER, router_ended(&mut keeper)).await;
        died = end == Ok(RouterEnd::Gone);
        if end == Ok(RouterEnd::Leaving)
            && let Ok(before) = world.router.about().await
        {
            info!("the router is told to end; another takes its place");
            if let Err(error) = start_router(&world.router, &start, Some(&before)).await {
                warn!("no router could take the place of the one that ends: {error:#}");
                if let Some(keeper) = &mut keeper {
                    keeper.let_go();
                }
            }
        }
    }
}

async fn router_ended(keeper: &mut Option<Keeper>) -> RouterEnd {
    match keeper {
        Some(keeper) => keeper.router_ended().await,
        None => std::future::pending().await,
    }
}

/// Holds the sockets of the router that runs, if it lends them.
async fn hold(keeper: &mut Option<Keeper>) {
    let Some(keeper) = keeper else { return };
    if let Err(error) = keeper.hold().await {
        tracing::debug!("the router does not lend its sockets: {error}");
    }
}

/// The machine's own parts: its clock, the sandbox, and a router that is started if none runs.
pub async fn real_parts(config: &Config, config_file: &Path) -> anyhow::Result<Parts> {
    // Before anything is started: a server that cannot listen shall leave nothing behind.
    check_listen(config)?;
    let executable = own_executable()?;
    make_data_folder(&config.data_dir)?;
    let folder = std::path::absolute(&config.data_dir)?;
    let mut settings = LocalSettings::new(folder.join("platform"), executable.clone(), Clock::System);
    settings.toolchains.clone_from(&config.sandbox.toolchains);
    let platform = Platform::Local(Local::open(settings)?);
    let missing: Vec<platform::Finding> =
        platform.check().await.into_iter().filter(|finding| finding.wall && !finding.ok).collect();
    if !missing.is_empty() {
        let mut message =
            "this machine lacks what the sandbox needs, so nothing of anybody's code may run on it:".to_owned();
        for finding in missing {
            message.push_str(&format!("\n  {}: {}\n    {}", finding.name, finding.detail, finding.remedy));
        }
        bail!(message);
    }
    let router = Router::remote(&folder.join("router"));
    let address = ensure_router(&router, &RouterStart::new(config, config_file)?).await?;
    Ok(Parts { clock: Clock::System, platform, router, router_port: address.port(), outside: None })
}

/// Code, logs and secrets of every app lie in it: nobody else on the machine may look inside. A folder that was there
/// before keeps the mode that the operator gave it.
fn make_data_folder(folder: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot make the data folder {}", folder.display());
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(cannot)
}

/// The address of the router that runs, or of one that is started now and goes on when we end. One of another program
/// hands its place over to one of ours.
async fn ensure_router(router: &Router, start: &RouterStart) -> anyhow::Result<SocketAddr> {
    let running = router.about().await.ok();
    match &running {
        Some(about) if about.build == own_build() => about.listen.parse().context("the router's address"),
        Some(about) => {
            info!(process = about.process, "the router is of another program; ours takes its place");
            match start_router(router, start, Some(about)).await {
                Ok(address) => Ok(address),
                // It serves; that it is not the newest is no reason not to work.
                Err(error) => {
                    warn!("the router goes on with the program that it has: {error:#}");
                    about.listen.parse().context("the router's address")
                }
            }
        }
        None => start_router(router, start, None).await,
    }
}

/// Starts a router beside us and waits until it answers in the place of the one that runs.
async fn start_router(router: &Router, start: &RouterStart, before: Option<&About>) -> anyhow::Result<SocketAddr> {
    let RouterStart { executable, config_file, folder } = start;
    let log = folder.join("router").join("start.log");
    std::fs::create_dir_all(folder.join("router"))?;
    platform::spawn_detached(executable, &["--config".as_ref(), config_file.as_os_str(), "router".as_ref()], &log)
        .context("cannot start the router")?;
    let deadline = Timestamp(Clock::System.now().0 + 10_000);
    loop {
        let answer = router.about().await;
        match answer {
            Ok(about) if before.is_none_or(|before| before.process != about.process) => {
                return about.listen.parse().context("the router's address");
            }
            _ if Clock::System.now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            answer => {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it wrote nothing").to_owned();
                let said = format!("the router did not start: {last} ({})", log.display());
                return Err(answer.err().map_or_else(|| anyhow::anyhow!("the old one still serves"), Into::into))
                    .context(said);
            }
        }
    }
}

/// What tells this program from another version of it, or from another build of the same one. Looked at once: the file
/// may be replaced while we run.
fn own_build() -> &'static str {
    static BUILD: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let metadata = std::fs::metadata("/proc/self/exe");
        let file = metadata.map(|file| format!("{}.{}.{:09}", file.size(), file.mtime(), file.mtime_nsec()));
        format!("{} {}", env!("CARGO_PKG_VERSION"), file.unwrap_or_default())
    });
    &BUILD
}

/// `landfall router --replace`: a new router takes the place of the one that runs, or begins where none does. Comes
/// back once it serves.
pub fn replace_router(config: &Config, config_file: &Path) -> anyhow::Result<(SocketAddr, bool)> {
    runtime()?.block_on(async {
        let router = Router::remote(&std::path::absolute(&config.data_dir)?.join("router"));
        let before = router.about().await.ok();
        let start = RouterStart::new(config, config_file)?;
        Ok((start_router(&router, &start, before.as_ref()).await?, before.is_some()))
    })
}

/// `landfall serve`. Says whether it ended because everything is taken down, so that nobody shall start it again.
pub fn serve(config: Config, config_file: &Path) -> anyhow::Result<bool> {
    install_crypto_provider();
    start_logging();
    runtime()?.block_on(async move {
        let router = RouterStart::new(&config, config_file)?;
        let parts = real_parts(&config, config_file).await?;
        let mut running = start(open_world(config, parts)?, Some(router)).await?;
        reconcile::refresh_routes(&running.world).await;
        let down = tokio::select! {
            () = terminated() => false,
            asked = running.down.recv() => {
                anyhow::ensure!(asked.is_some(), "the web server has ended");
                true
            }
            reason = broken(&running.world.store) => {
                bail!("the store takes no writes any more, and does again once it is opened anew: {reason}")
            }
        };
        if down {
            info!("everything of this data folder was stopped");
        } else {
            info!("told to end; apps and router go on");
        }
        // Nothing depends on a clean end: what was under way is found again.
        tokio::time::timeout(Duration::from_secs(5), running.stop()).await.ok();
        Ok(down)
    })
}

/// Comes back once a sync has failed: whoever sees to it that we run starts us again, and with us the store.
async fn broken(store: &Store) -> String {
    loop {
        if let Health::Poisoned { reason } = store.health() {
            return reason;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// `landfall router`. Says whether it was taken down, as `serve` does.
pub fn router(config: &Config) -> anyhow::Result<bool> {
    install_crypto_provider();
    start_logging();
    let folder = std::path::absolute(&config.data_dir)?.join("router");
    let mut options = RouterOptions::new(config.router.listen, folder, config.router.domain.clone());
    options.trusted = Trusted::parse(&config.router.trusted_proxies)
        .map_err(|message| anyhow::anyhow!("router.trusted_proxies: {message}"))?;
    options.build = own_build().to_owned();
    options.announced = config.router.proxy_protocol;
    options.redirect = config.router.tls_redirect;
    options.error_pages.clone_from(&config.router.error_pages);
    options.secure = match (config.router.tls_listen, &config.router.tls_certificate, &config.router.tls_key) {
        (Some(listen), Some(chain), Some(key)) => {
            Some((listen, Some(CertificateFiles { chain: chain.clone(), key: key.clone() })))
        }
        (Some(listen), None, None) if config.certifies() => Some((listen, None)),
        (None, None, None) => None,
        _ => anyhow::bail!("router: tls_listen, tls_certificate and tls_key belong together"),
    };
    crate::router::run(options)
}

pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// SIGTERM or Ctrl-C.
pub async fn terminated() {
    let mut term = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(term) => term,
        Err(error) => {
            warn!("cannot listen for SIGTERM: {error}");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Log lines go to standard error; `LANDFALL_LOG` says which.
pub fn start_logging() {
    start_logging_from("landfall=info,warn");
}

/// As `start_logging`, with what is written where `LANDFALL_LOG` says nothing.
pub fn start_logging_from(default: &str) {
    let filter = crate::config::log_filter().unwrap_or_else(|| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).try_init();
}
