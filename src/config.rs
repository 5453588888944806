//! Configuration: one TOML file, each key overridable by an environment variable. The only module that reads the
//! environment. Every key has a default that works on one machine, but for what only the operator can know.

use crate::domain::{AccessMode, AlertSettings, AlertWords, AppName, Repository, Secret, is_domain};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    #[error("{name}: {message}")]
    Override { name: String, message: String },
    #[error("{key}: {message}")]
    Invalid { key: &'static str, message: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything that Landfall keeps lies in this folder.
    pub data_dir: PathBuf,
    pub server: Server,
    pub router: Router,
    pub github: GitHub,
    pub build: Build,
    pub tests: Tests,
    pub apps: Apps,
    pub sandbox: Sandbox,
    pub addons: Addons,
    pub keep: Keep,
    /// Custom domains and the app that each leads to: `"www.example.com" = "hello-production"`.
    pub domains: BTreeMap<String, AppName>,
    /// Custom domains that a repository's own file may give to its apps: `"acme/shop" = ["*.shop.example.com"]`, or
    /// `"acme/*"` for all of an owner.
    pub allowed_domains: BTreeMap<String, Vec<String>>,
    pub acme: Acme,
    pub alerts: Alerts,
    pub otlp: Otlp,
    pub drains: Drains,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    pub listen: SocketAddr,
    /// How people and GitHub reach the dashboard; links in comments and checks begin with it.
    pub public_url: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    pub listen: SocketAddr,
    /// An app is served at `http://<app>.<domain>:<port>/`.
    pub domain: String,
    /// How people reach the router, where that is not its own port: `https://apps.example.com` gives
    /// `https://<app>.apps.example.com`.
    pub public_url: Option<String>,
    /// Addresses and networks of proxies in front, whose `X-Forwarded-For`, `-Proto` and `-Port` are believed.
    pub trusted_proxies: Vec<String>,
    /// Their connections begin with the PROXY protocol, 1 or 2.
    pub proxy_protocol: bool,
    /// Where visitors connect with TLS; needs `tls_certificate` and `tls_key`.
    pub tls_listen: Option<SocketAddr>,
    /// The certificate chain and its key, PEM files; read again when they change.
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Whoever comes without TLS is sent to the address with it, where there is one.
    pub tls_redirect: bool,
    /// Error pages in place of Landfall's own: a folder of templates such as `H80.html`, `404.html` and `error.html`.
    pub error_pages: Option<PathBuf>,
}

/// Certificates for custom domains.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Acme {
    /// The authority's directory.
    pub directory: String,
    /// Whether its terms are agreed to. Without that nothing is asked of it.
    pub agree_to_terms: bool,
    /// An address for what it has to say, such as `ops@example.com`.
    pub contact: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GitHub {
    pub api_url: String,
    pub web_url: String,
    pub app_id: Option<u64>,
    pub private_key_path: Option<PathBuf>,
    /// Instead of an app, for small set-ups: a personal access token.
    pub token: Option<Secret>,
    pub webhook_secret: Option<Secret>,
    /// Of the app, for people who log in.
    pub client_id: Option<String>,
    pub client_secret: Option<Secret>,
    /// The secret before the present one, accepted as well while the two are being exchanged.
    pub webhook_secret_previous: Option<Secret>,
    /// The least time between two writes that make content, in milliseconds. GitHub asks for a second.
    pub write_interval_ms: u64,
    /// For how long GitHub's lists may not yet show what was just made, in seconds.
    pub staleness_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// `host`: builds reach the package registries. `isolated`: they reach nothing.
    pub network: Network,
    pub memory_mb: u64,
    pub disk_mb: u64,
    pub minutes: u64,
    /// The largest slug, packed. Heroku's limit is 500 MB.
    pub slug_mb: u64,
    /// All build caches together; the ones that were not used for the longest time go first.
    pub cache_mb: u64,
    /// A build cache that nobody used for so many days goes.
    pub cache_days: u64,
    /// Hosts (with their port, where it is not the usual one) that buildpacks may be fetched from, besides the GitHub
    /// of this installation. The control plane asks them itself, so they must be public ones.
    pub buildpack_hosts: Vec<String>,
    /// The container engine that builds images from a `Dockerfile`: "docker", "podman" or "buildah". It runs as Landfall
    /// does and outside the sandbox. Without one such repositories are refused.
    pub engine: Option<EngineKind>,
    /// Options before the engine's own command, such as `["--storage-driver", "vfs"]`.
    pub engine_options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    Docker,
    Podman,
    Buildah,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tests {
    /// Nodes of all runs that may run at a time on this machine.
    pub slots: usize,
    pub memory_mb: u64,
    pub minutes: u64,
    pub network: Network,
    /// What one node's artifacts may take.
    pub artifacts_mb: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apps {
    pub memory_mb: u64,
    pub disk_mb: u64,
    /// A process that uses more than its memory is told so in its log (R14); one that reaches so many percent of it is
    /// ended and started anew (R15). 100 ends it at once.
    pub memory_hard_percent: u32,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub processes: u64,
    pub network: Network,
    /// as on Heroku, a web process binds `$PORT` within 60 s.
    pub boot_seconds: u64,
    /// How long requests in flight on an old process are waited for.
    pub drain_seconds: u64,
    /// as on Heroku, SIGKILL comes 30 s after SIGTERM.
    pub grace_seconds: u64,
    /// Dyno sizes besides Heroku's, or instead of them: `[apps.sizes.standard-2x]`.
    pub sizes: BTreeMap<String, Size>,
    /// Processes that one app may have at a time, all types together.
    pub max_processes_per_app: u16,
    /// Processes that all apps may be scaled to, together.
    pub max_processes: u32,
    /// One-off processes that one app may have at a time.
    pub max_one_offs: usize,
    /// Who may see review apps where neither their repository nor anybody else says so.
    pub review_access: AccessMode,
    /// Review apps that nobody used for so long are put to sleep, unless their `[web] sleep_after` says otherwise; 0
    /// lets them run.
    pub sleep_minutes: u64,
}

/// What a process of one dyno size may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    pub memory_mb: u64,
    /// Thousandths of a core.
    pub cpu_millis: u64,
}

/// Heroku's sizes above the smallest ones, with the memory that its table of dyno types gives them. The smallest ones
/// (`eco`, `basic`, `standard-1x`) have what `apps.memory_mb` and `apps.cpu_millis` say.
const SIZES: [(&str, Size); 6] = [
    ("standard-2x", Size { memory_mb: 1024, cpu_millis: 2000 }),
    ("performance-m", Size { memory_mb: 2560, cpu_millis: 2000 }),
    ("performance-l", Size { memory_mb: 14 << 10, cpu_millis: 8000 }),
    ("performance-l-ram", Size { memory_mb: 30 << 10, cpu_millis: 4000 }),
    ("performance-xl", Size { memory_mb: 62 << 10, cpu_millis: 8000 }),
    ("performance-2xl", Size { memory_mb: 126 << 10, cpu_millis: 16_000 }),
];
const SMALLEST: [&str; 3] = ["eco", "basic", "standard-1x"];

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// Folders outside `/usr` that hold toolchains, readable inside every sandbox.
    pub toolchains: Vec<PathBuf>,
}

/// Where add-ons come from: `[addons.postgres]`, `[addons.redis]`, `[addons.partner.<service>]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Addons {
    pub postgres: PostgresAddons,
    pub redis: RedisAddons,
    /// Providers that speak Heroku's Add-on Partner API, by the name that stands before the colon of a plan.
    pub partner: std::collections::BTreeMap<String, PartnerAddons>,
}

/// Who runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddonMode {
    /// Landfall, for itself.
    Own,
    /// The operator, at `url`.
    Server,
    /// Nobody.
    Off,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresAddons {
    /// `server` where `url` is given, else `own`.
    pub mode: Option<AddonMode>,
    /// A superuser, or a role that may make roles and databases: `postgres://user:password@host:port/database`.
    pub url: Option<Secret>,
    /// A database on that server that review apps begin with a copy of.
    pub template: Option<String>,
    /// A database on another server that review apps begin with a copy of, by dump and restore: an address of somebody
    /// who may read all of it.
    pub template_url: Option<Secret>,
    /// Memory of the server of our own, in MiB.
    pub memory_mb: u64,
    /// Its disk, in MiB.
    pub disk_mb: u64,
    /// Connections to it from all apps together.
    pub connections: u32,
    /// Where it listens on the machine's loopback, if apps are on the machine's network.
    pub port: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisAddons {
    /// `server` where `url` is given, else `own`: a Redis for each app.
    pub mode: Option<AddonMode>,
    /// A user who may keep users: `redis://user:password@host:port`, or `rediss://` for TLS.
    pub url: Option<Secret>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartnerAddons {
    /// Where `/heroku/resources` is.
    pub base_url: String,
    pub username: String,
    pub password: Secret,
    #[serde(default = "partner_region")]
    pub region: String,
}

fn partner_region() -> String {
    "amazon-web-services::us-east-1".to_owned()
}

/// Who is called when an app's numbers are bad, and what bad means where a repository does not say so itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// Gets a POST when an alert fires and when it ends, in the form that Slack and those like it take.
    pub webhook: Option<Secret>,
    /// Instead of it, for the apps of one repository: `"owner/name" = "https://…"`.
    pub webhooks: BTreeMap<String, Secret>,
    pub review: AlertWords,
    pub staging: AlertWords,
    pub production: AlertWords,
}

/// Where log lines are sent, besides the drains that are added while Landfall runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drains {
    /// A PEM file with the authorities that receivers' certificates are signed by, besides the machine's own.
    pub ca: Option<PathBuf>,
    /// Addresses that get everybody's lines: `syslog+tls://logs.example.com:6514`.
    pub all: Vec<Secret>,
    /// Addresses by app.
    pub apps: BTreeMap<String, Vec<Secret>>,
}

/// Where numbers are sent in OpenTelemetry's form.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// The whole address of a collector's receiver for HTTP and JSON: `http://localhost:4318/v1/metrics`.
    pub endpoint: Option<String>,
    pub interval_seconds: u64,
    /// Sent along, such as a key of the collector's.
    pub headers: BTreeMap<String, Secret>,
}

impl Default for Otlp {
    fn default() -> Otlp {
        Otlp { endpoint: None, interval_seconds: 60, headers: BTreeMap::new() }
    }
}

impl Alerts {
    pub fn settings(&self) -> AlertSettings {
        AlertSettings { review: self.review, staging: self.staging, production: self.production }
    }

    /// Where posts about a repository's apps go.
    pub fn webhook_of(&self, repository: &str) -> Option<&Secret> {
        self.webhooks.get(repository).or(self.webhook.as_ref())
    }
}

/// For how long what is over stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Days that deliveries with their payloads and logs of ended processes are kept. At least 4: GitHub may send a
    /// delivery again for three days.
    pub days: u64,
    /// What the logs of ended processes may take: the oldest go first.
    pub logs_mb: u64,
    /// Test runs kept of each repository.
    pub runs: usize,
    /// Days that artifacts of a test run are kept, and what those of all runs may take: the oldest run's go first.
    pub artifact_days: u64,
    pub artifacts_mb: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    Isolated,
    Host,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("landfall-data"),
            server: Server::default(),
            router: Router::default(),
            github: GitHub::default(),
            build: Build::default(),
            tests: Tests::default(),
            apps: Apps::default(),
            sandbox: Sandbox::default(),
            addons: Addons::default(),
            keep: Keep::default(),
            domains: BTreeMap::new(),
            allowed_domains: BTreeMap::new(),
            acme: Acme::default(),
            alerts: Alerts::default(),
            otlp: Otlp::default(),
            drains: Drains::default(),
        }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), public_url: "http://localhost:8080".to_owned() }
    }
}

impl Default for Router {
    fn default() -> Router {
        Router {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            domain: "localhost".to_owned(),
            public_url: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            tls_listen: None,
            tls_certificate: None,
            tls_key: None,
            tls_redirect: true,
            error_pages: None,
        }
    }
}

impl Default for Acme {
    fn default() -> Acme {
        Acme {
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            agree_to_terms: false,
            contact: None,
        }
    }
}

impl Default for GitHub {
    fn default() -> GitHub {
        GitHub {
            api_url: "https://api.github.com".to_owned(),
            web_url: "https://github.com".to_owned(),
            app_id: None,
            private_key_path: None,
            token: None,
            webhook_secret: None,
            client_id: None,
            client_secret: None,
            webhook_secret_previous: None,
            write_interval_ms: 1000,
            staleness_seconds: 60,
        }
    }
}

impl Default for Build {
    fn default() -> Build {
        let hosts = ["github.com", "codeload.github.com", "gitlab.com", "bitbucket.org", "codeberg.org"];
        Build {
            network: Network::Host,
            memory_mb: 2048,
            disk_mb: 4096,
            minutes: 30,
            slug_mb: 500,
            cache_mb: 10_240,
            cache_days: 14,
            buildpack_hosts: hosts
                .into_iter()
                .chain(["buildpack-registry.s3.amazonaws.com"])
                .map(str::to_owned)
                .collect(),
            engine: None,
            engine_options: Vec::new(),
        }
    }
}

impl Default for Tests {
    fn default() -> Tests {
        Tests { slots: 4, memory_mb: 1024, minutes: 60, network: Network::Isolated, artifacts_mb: 256 }
    }
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { days: 30, logs_mb: 10_240, runs: 500, artifact_days: 14, artifacts_mb: 10_240 }
    }
}

impl Default for Apps {
    fn default() -> Apps {
        Apps {
            memory_mb: 512,
            memory_hard_percent: 150,
            disk_mb: 256,
            cpu_millis: 1000,
            processes: 256,
            network: Network::Isolated,
            boot_seconds: 60,
            drain_seconds: 30,
            grace_seconds: 30,
            sizes: BTreeMap::new(),
            max_processes_per_app: 50,
            max_processes: 500,
            max_one_offs: 10,
            review_access: AccessMode::Public,
            sleep_minutes: 30,
        }
    }
}

impl Default for PostgresAddons {
    fn default() -> PostgresAddons {
        PostgresAddons {
            mode: None,
            url: None,
            template: None,
            template_url: None,
            memory_mb: 1024,
            disk_mb: 16_384,
            connections: 300,
            port: 15_432,
        }
    }
}

#[expect(clippy::derivable_impls, reason = "each section states its defaults in the same form")]
impl Default for RedisAddons {
    fn default() -> RedisAddons {
        RedisAddons { mode: None, url: None }
    }
}

impl PostgresAddons {
    pub fn mode(&self) -> AddonMode {
        self.mode.unwrap_or(if self.url.is_some() { AddonMode::Server } else { AddonMode::Own })
    }
}

impl RedisAddons {
    pub fn mode(&self) -> AddonMode {
        self.mode.unwrap_or(if self.url.is_some() { AddonMode::Server } else { AddonMode::Own })
    }
}

#[expect(clippy::derivable_impls, reason = "each section states its defaults in the same form")]
impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox { toolchains: Vec::new() }
    }
}

impl Apps {
    /// What a size allows; one that nobody knows is as the smallest ones.
    pub fn size(&self, name: &str) -> Size {
        let known = || SIZES.iter().find(|(known, _)| *known == name).map(|(_, size)| *size);
        let smallest = Size { memory_mb: self.memory_mb, cpu_millis: self.cpu_millis };
        self.sizes.get(name).copied().or_else(known).unwrap_or(smallest)
    }

    /// The names that somebody may scale to, sorted.
    pub fn size_names(&self) -> Vec<String> {
        let known = SMALLEST.into_iter().chain(SIZES.into_iter().map(|(name, _)| name)).map(str::to_owned);
        let names: std::collections::BTreeSet<String> = known.chain(self.sizes.keys().cloned()).collect();
        names.into_iter().collect()
    }
}

impl Config {
    /// Reads `path` (its absence is an error only when `required`), then `LANDFALL_SECTION__KEY` variables.
    pub fn load(path: &Path, required: bool) -> Result<Config, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        };
        Config::from_parts(path, &text, std::env::vars())
    }

    fn from_parts(
        path: &Path,
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let malformed =
            |error: toml::de::Error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() };
        let mut table: toml::Table = text.parse().map_err(malformed)?;
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix("LANDFALL_") else { continue };
            if rest == "LOG" {
                continue;
            }
            set(&mut table, &rest.to_lowercase(), &value)
                .map_err(|message| ConfigError::Override { name: name.clone(), message })?;
        }
        let config: Config = table.try_into().map_err(malformed)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, message: &str| Err(ConfigError::Invalid { key, message: message.to_owned() });
        for (key, url) in [
            ("server.public_url", &self.server.public_url),
            ("github.api_url", &self.github.api_url),
            ("github.web_url", &self.github.web_url),
        ] {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return invalid(key, "must begin with http:// or https://");
            }
        }
        let addons = &self.addons;
        if addons.postgres.mode() == AddonMode::Server && addons.postgres.url.is_none() {
            return invalid("addons.postgres.url", "is needed for the mode \"server\"");
        }
        if addons.postgres.template.is_some() && addons.postgres.template_url.is_some() {
            return invalid("addons.postgres.template_url", "and template are two places for one thing: keep one");
        }
        if addons.redis.mode() == AddonMode::Server && addons.redis.url.is_none() {
            return invalid("addons.redis.url", "is needed for the mode \"server\"");
        }
        if addons
            .partner
            .values()
            .any(|partner| !partner.base_url.starts_with("http://") && !partner.base_url.starts_with("https://"))
        {
            return invalid("addons.partner.<service>.base_url", "must begin with http:// or https://");
        }
        let webhooks = self.alerts.webhook.iter().chain(self.alerts.webhooks.values());
        if webhooks.into_iter().any(|url| !url.expose().starts_with("http://") && !url.expose().starts_with("https://"))
        {
            return invalid("alerts.webhook", "must begin with http:// or https://");
        }
        for (app, addresses) in self.drains.apps.iter().chain([(&"all".to_owned(), &self.drains.all)]) {
            let known = |address: &Secret| {
                let text = address.expose();
                ["syslog://", "syslog+tls://", "https://", "http://"].iter().any(|scheme| text.starts_with(scheme))
            };
            if app.parse::<AppName>().is_err() || !addresses.iter().all(known) {
                return invalid(
                    "drains",
                    "are addresses such as syslog+tls://HOST:PORT or https://…, by the name of an app",
                );
            }
        }
        if self.otlp.endpoint.as_ref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return invalid("otlp.endpoint", "must begin with http:// or https://");
        }
        if !(1..=3600).contains(&self.otlp.interval_seconds) {
            return invalid("otlp.interval_seconds", "must be 1 to 3600");
        }
        if !(100..=1000).contains(&self.apps.memory_hard_percent) {
            return invalid("apps.memory_hard_percent", "must be 100 to 1000");
        }
        let odd = |name: &&String| name.is_empty() || name.to_ascii_lowercase() != **name;
        if self.apps.sizes.keys().any(|name| odd(&name)) {
            return invalid("apps.sizes", "names of sizes are in lower case");
        }
        if self.apps.sizes.values().any(|size| size.memory_mb == 0) {
            return invalid("apps.sizes", "a size has at least 1 MB of memory");
        }
        if self.router.domain.is_empty() || self.router.domain.contains(['/', ':', ' ']) {
            return invalid("router.domain", "must be a host name such as apps.example.com, without scheme or port");
        }
        let odd = |host: &str| !is_domain(host) || is_within(host, &self.router.domain);
        if let Some(host) = self.domains.keys().find(|host| odd(host)) {
            let message = format!("{host:?} is no custom domain: a host name in lower case, outside router.domain");
            return Err(ConfigError::Invalid { key: "domains", message });
        }
        for (repository, patterns) in &self.allowed_domains {
            let named = repository.split_once('/').is_some_and(|(owner, name)| {
                !owner.is_empty() && !owner.contains('*') && !name.is_empty() && !name.contains('/')
            });
            if !named {
                let message = format!("{repository:?} is not \"OWNER/NAME\" or \"OWNER/*\"");
                return Err(ConfigError::Invalid { key: "allowed_domains", message });
            }
            if let Some(pattern) = patterns.iter().find(|pattern| odd(pattern.strip_prefix("*.").unwrap_or(pattern))) {
                let message = format!(
                    "{pattern:?} is no pattern: a host name in lower case, or \"*.\" and one, outside router.domain"
                );
                return Err(ConfigError::Invalid { key: "allowed_domains", message });
            }
        }
        let loopback = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
        if !self.acme.directory.starts_with("https://")
            && !loopback.iter().any(|start| self.acme.directory.starts_with(start))
        {
            return invalid("acme.directory", "must begin with https://");
        }
        if self.acme.contact.as_ref().is_some_and(|contact| !contact.contains('@') || contact.contains(':')) {
            return invalid("acme.contact", "must be an address such as ops@example.com");
        }
        if self.certifies() && self.router.tls_listen.is_none() {
            return invalid("router.tls_listen", "is needed for the certificates of custom domains");
        }
        if self.tests.slots == 0 {
            return invalid("tests.slots", "must be 1 or more, or every test run would wait for ever");
        }
        if self.keep.days < 4 {
            return invalid("keep.days", "must be 4 or more, since GitHub may send a delivery again for three days");
        }
        if self.keep.runs == 0 {
            return invalid("keep.runs", "must be 1 or more");
        }
        if self.keep.artifact_days == 0 {
            return invalid("keep.artifact_days", "must be 1 or more");
        }
        Ok(())
    }

    /// The address that an app is served at, as people type it: with the router's port where that is not 80.
    pub fn app_url(&self, host_label: &str, router_port: u16) -> String {
        match &self.router.public_url {
            Some(url) => match url.split_once("://") {
                Some((scheme, rest)) => format!("{scheme}://{host_label}.{}/", rest.trim_end_matches('/')),
                None => format!("http://{host_label}.{url}/"),
            },
            None if router_port == 80 => format!("http://{host_label}.{}/", self.router.domain),
            None => format!("http://{host_label}.{}:{router_port}/", self.router.domain),
        }
    }

    /// Whether there may be custom domains that certificates are asked for.
    pub fn certifies(&self) -> bool {
        self.acme.agree_to_terms && !(self.domains.is_empty() && self.allowed_domains.is_empty())
    }

    /// Whether the repository's own file may give this domain to one of its apps. Names on GitHub are the same in
    /// upper and lower case.
    pub fn allows_domain(&self, repository: &Repository, domain: &str) -> bool {
        let of_it = self.allowed_domains.iter().filter(|(named, _)| {
            named.split_once('/').is_some_and(|(owner, name)| {
                owner.eq_ignore_ascii_case(&repository.owner)
                    && (name == "*" || name.eq_ignore_ascii_case(&repository.name))
            })
        });
        let matches = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(above) => domain != above && is_within(domain, above),
            None => domain == pattern,
        };
        of_it.flat_map(|(_, patterns)| patterns).any(matches)
    }

    /// Whether a host is the dashboard's, the router's, or that of an app by its name.
    pub fn is_own_host(&self, host: &str) -> bool {
        let of_router = self.router.public_url.as_deref().map(host_of);
        host == host_of(&self.server.public_url)
            || is_within(host, &self.router.domain)
            || of_router.is_some_and(|own| is_within(host, &own))
    }

    /// A page of the dashboard.
    pub fn page(&self, path: &str) -> String {
        format!("{}{path}", self.server.public_url.trim_end_matches('/'))
    }

    /// After how long without a request a review app is put to sleep.
    pub fn sleep_after(&self) -> Option<Duration> {
        (self.apps.sleep_minutes > 0).then(|| Duration::from_secs(self.apps.sleep_minutes.saturating_mul(60)))
    }

    pub fn boot_timeout(&self) -> Duration {
        Duration::from_secs(self.apps.boot_seconds)
    }
}

/// Writes `section__key` into the table; a value that reads as TOML keeps its type, anything else is a string.
fn set(table: &mut toml::Table, path: &str, value: &str) -> Result<(), String> {
    let parsed = match value.parse::<toml::Value>() {
        Ok(parsed @ (toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Array(_))) => parsed,
        _ => toml::Value::String(value.to_owned()),
    };
    let text_keys = [
        "webhook_secret",
        "webhook_secret_previous",
        "token",
        "client_id",
        "client_secret",
        "domain",
        "username",
        "password",
    ];
    match path.split_once("__") {
        None if path == "data_dir" => {
            table.insert(path.to_owned(), toml::Value::String(value.to_owned()));
            Ok(())
        }
        None => Err("is not a key: write LANDFALL_SECTION__KEY, for example LANDFALL_SERVER__LISTEN".to_owned()),
        Some((section, key)) => {
            let entry = table.entry(section.to_owned()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let section = entry.as_table_mut().ok_or("its section is not a table in the file")?;
            // A section in a section, such as LANDFALL_ADDONS__POSTGRES__URL.
            if key.contains("__") {
                return set(section, key, value);
            }
            let parsed = if text_keys.contains(&key) { toml::Value::String(value.to_owned()) } else { parsed };
            section.insert(key.to_owned(), parsed);
            Ok(())
        }
    }
}

/// The variable that sets which log lines are written, for example `LANDFALL_LOG=landfall=debug`.
pub fn log_filter() -> Option<String> {
    std::env::var("LANDFALL_LOG").ok()
}

/// Where programs are looked for.
pub fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Whether a host is this one or below it.
fn is_within(host: &str, above: &str) -> bool {
    host.strip_suffix(above).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The host of an address, without scheme, port and path.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.split(':').next().unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_parts(Path::new("landfall.toml"), text, variables)
    }

    #[test]
    fn a_variable_overrides_the_file_and_the_file_the_default() {
        let config = load(
            "data_dir = \"/srv/landfall\"\n[router]\ndomain = \"apps.example.com\"\n",
            &[("LANDFALL_ROUTER__LISTEN", "0.0.0.0:80"), ("LANDFALL_GITHUB__WEBHOOK_SECRET", "12345"), ("HOME", "/x")],
        )
        .unwrap();
        assert_eq!(config.data_dir, Path::new("/srv/landfall"));
        assert_eq!(config.router.listen.port(), 80);
        assert_eq!(config.app_url("hello-pr-1", 80), "http://hello-pr-1.apps.example.com/");
        assert_eq!(config.github.webhook_secret.as_ref().map(Secret::expose), Some("12345"));
        assert_eq!(config.apps.boot_seconds, 60);
        assert!(!format!("{config:?}").contains("12345"));
    }

    #[test]
    fn sizes_are_herokus_unless_the_file_says_otherwise() {
        let text = "[apps]\nmemory_mb = 300\n[apps.sizes.standard-2x]\nmemory_mb = 700\ncpu_millis = 1500\n";
        let apps = load(text, &[]).unwrap().apps;
        assert_eq!(apps.size("standard-1x"), Size { memory_mb: 300, cpu_millis: 1000 });
        assert_eq!(apps.size("standard-2x"), Size { memory_mb: 700, cpu_millis: 1500 });
        assert_eq!(apps.size("performance-m").memory_mb, 2560);
        assert!(apps.size_names().contains(&"eco".to_owned()));
        let error = load("[apps.sizes.Standard-2X]\nmemory_mb = 1\ncpu_millis = 1\n", &[]).unwrap_err();
        assert!(error.to_string().contains("lower case"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, variables, expected) in [
            ("[servr]\n", vec![], "servr"),
            ("[server]\nlisten = \"nowhere\"\n", vec![], "listen"),
            ("", vec![("LANDFALL_LISTEN", "x")], "LANDFALL_SECTION__KEY"),
            ("[domains]\n\"hello.localhost\" = \"hello\"\n", vec![], "outside router.domain"),
            ("[allowed_domains]\n\"acme\" = [\"a.example.com\"]\n", vec![], "OWNER/NAME"),
            ("[allowed_domains]\n\"*/shop\" = [\"a.example.com\"]\n", vec![], "OWNER/NAME"),
            ("[allowed_domains]\n\"acme/shop\" = [\"*\"]\n", vec![], "no pattern"),
            ("[allowed_domains]\n\"acme/shop\" = [\"*.a.localhost\"]\n", vec![], "outside router.domain"),
            ("[domains]\n\"WWW.example.com\" = \"hello\"\n", vec![], "lower case"),
            ("[domains]\n\"www.example.com\" = \"../x\"\n", vec![], "domains"),
            ("[acme]\ndirectory = \"http://ca.example/\"\n", vec![], "https://"),
            ("[acme]\nagree_to_terms = true\n[domains]\n\"www.example.com\" = \"hello\"\n", vec![], "tls_listen"),
            ("[router]\ndomain = \"http://x\"\n", vec![], "router.domain"),
            ("[tests]\nslots = 0\n", vec![], "tests.slots: must be 1 or more"),
        ] {
            let error = load(text, &variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_allowed_domain_is_the_named_repositorys_and_nobody_elses() {
        let text = "[server]\npublic_url = \"https://landfall.acme.example\"\n[router]\ndomain = \"apps.example.com\"\n\
                    [allowed_domains]\n\"acme/shop\" = [\"shop.example.com\", \"*.shop.example.com\"]\n\
                    \"acme/*\" = [\"*.acme.example\"]\n";
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        let named = |owner: &str, name: &str| Repository {
            id: crate::domain::RepositoryId(1),
            owner: owner.to_owned(),
            name: name.to_owned(),
            default_branch: "main".to_owned(),
            private: false,
            html_url: String::new(),
            installation: None,
            label: name.to_owned(),
            granted: true,
            missing_since: None,
        };
        let (shop, till, stranger) = (named("ACME", "Shop"), named("acme", "till"), named("acme.evil", "shop"));
        for (domain, of) in [
            ("shop.example.com", [true, false, false]),
            ("eu.shop.example.com", [true, false, false]),
            ("notshop.example.com", [false, false, false]),
            ("x.acme.example", [true, true, false]),
            ("acme.example", [false, false, false]),
            ("xacme.example", [false, false, false]),
        ] {
            let allowed = [&shop, &till, &stranger].map(|repository| config.allows_domain(repository, domain));
            assert_eq!(allowed, of, "{domain}");
        }
        for (host, own) in [
            ("landfall.acme.example", true),
            ("apps.example.com", true),
            ("hello.apps.example.com", true),
            ("myapps.example.com", false),
        ] {
            assert_eq!(config.is_own_host(host), own, "{host}");
        }
    }
}
