//! A whole installation in one test: the simulated GitHub over real HTTP and real git, the control plane as it is, and
//! a platform and a router in memory. Tests speak as people do; `settle` works until nothing is left to do.

use super::machine::free_address;
use landfall::clock::Clock;
use landfall::config::Config;
use landfall::domain::{AppName, SlugDigest};
use landfall::outside::Outside;
use landfall::platform::{Code, Exit, Memory, Outcome, Platform, Spec};
use landfall::reconcile::{self, Step, World};
use landfall::router::{MemoryRouter, Router};
use landfall::server::{self, Parts};
use landfall::sim::{self, Sim};
use landfall::store::queue;
use landfall::web::{self, Intake};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const OWNER: &str = "olivia";
const TOKEN: &str = "token-of-olivia";
const SECRET: &str = "a webhook secret of the tests, 32+";
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to stand in `page.txt` for the node's test to fail, and for the web process never to answer.
pub const FAILING: &str = "broken test";
pub const UNHEALTHY: &str = "never answers";
pub const UNBUILDABLE: &str = "does not build";
/// And for the build to go on until it is stopped.
pub const ENDLESS: &str = "builds for ever";
pub const FAILING_MIGRATION: &str = "bad migration";

pub const ENDLESS_MIGRATION: &str = "endless migration";
/// What a build does that the platform has to end.
pub const CUTS: &[(&str, Exit)] =
    &[("hangs", Exit::TimeLimit), ("fills the disk", Exit::DiskLimit), ("only talks", Exit::OutputLimit)];

pub struct Town {
    pub sim: Sim,
    pub client: reqwest::Client,
    pub memory: Memory,
    pub router: Arc<Mutex<MemoryRouter>>,
    folder: tempfile::TempDir,
    intake: SocketAddr,
    api_url: String,
    settings: Settings,
    server: Option<Server>,
}

/// What a test wants otherwise in the configuration.
type Settings = Box<dyn Fn(&mut Config)>;

struct Server {
    world: Arc<World>,
    handle: actix_web::dev::ServerHandle,
    task: tokio::task::JoinHandle<()>,
}

/// A pull request, as a person knows it.
#[derive(Debug, Clone)]
pub struct Pull {
    pub repository: String,
    pub number: u64,
}

/// What stopped the work, if anything did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Quiet,
    /// The control plane was stopped at the armed crossing.
    Stopped,
}

impl Town {
    pub async fn start() -> Town {
        Town::start_behind(|url| async move { url }, None).await
    }

    /// As `start`, with a kill armed.
    pub async fn start_armed(outside: Arc<Outside>) -> Town {
        Town::start_behind(|url| async move { url }, Some(outside)).await
    }

    /// As `start`, with another configuration and perhaps a kill armed.
    pub async fn start_with(outside: Option<Arc<Outside>>, settings: impl Fn(&mut Config) + 'static) -> Town {
        Town::start_all(|url| async move { url }, outside, Box::new(settings)).await
    }

    /// As `start`, with something between us and GitHub: `between` gets GitHub's address and gives the one to use.
    pub async fn start_behind<F: Future<Output = String>>(
        between: impl FnOnce(String) -> F,
        outside: Option<Arc<Outside>>,
    ) -> Town {
        Town::start_all(between, outside, Box::new(|_| {})).await
    }

    async fn start_all<F: Future<Output = String>>(
        between: impl FnOnce(String) -> F,
        outside: Option<Arc<Outside>>,
        settings: Settings,
    ) -> Town {
        landfall::github::install_crypto_provider();
        if landfall::config::log_filter().is_some() {
            landfall::server::start_logging();
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let intake = free_address();
        let sim = Sim::start(sim::Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data: folder.path().join("github"),
            public_url: None,
            webhook_url: format!("http://{intake}/webhooks/github"),
            webhook_secret: SECRET.to_owned(),
            app_id: 1,
            app_public_key_pem: include_str!("../../demo/app-key.pub.pem").to_owned(),
            users: vec![(OWNER.to_owned(), TOKEN.to_owned())],
        })
        .await
        .expect("the simulated GitHub starts");
        let api_url = between(sim.url().to_owned()).await;
        std::fs::write(folder.path().join("key.pem"), include_str!("../../demo/app-key.pem")).expect("write the key");
        let memory = Memory::new(Clock::System);
        memory.script(script);
        let (_, router) = Router::memory();
        router.lock().expect("no holder panics").all_healthy = false;
        let mut town = Town {
            sim,
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
            memory,
            router,
            folder,
            intake,
            api_url,
            settings,
            server: None,
        };
        town.boot(outside).await;
        town
    }

    /// Starts the control plane on the same folder, as after a restart.
    pub async fn boot(&mut self, outside: Option<Arc<Outside>>) {
        self.boot_with(outside, |_| {}).await;
    }

    /// As `boot`, with a change to the configuration.
    pub async fn boot_with(&mut self, outside: Option<Arc<Outside>>, change: impl FnOnce(&mut Config)) {
        let mut config = Config { data_dir: self.folder.path().join("data"), ..Config::default() };
        config.server.listen = self.intake;
        config.server.public_url = "http://landfall.test".to_owned();
        config.github.api_url.clone_from(&self.api_url);
        config.github.web_url = self.sim.url().to_owned();
        config.github.app_id = Some(1);
        config.github.private_key_path = Some(self.folder.path().join("key.pem"));
        config.github.write_interval_ms = 0;
        config.github.staleness_seconds = 1;
        config.apps.boot_seconds = 2;
        (self.settings)(&mut config);
        change(&mut config);
        let world = Arc::new(self.open(&config, outside).await);
        let secrets =
            landfall::github::WebhookSecrets::new(vec![landfall::domain::Secret::new(SECRET)]).expect("secrets");
        let intake = Intake::new(world.store.clone(), secrets, Clock::System, world.wake.clone());
        let (down, _) = tokio::sync::mpsc::channel(1);
        let (server, _) = web::listen(self.intake, world.clone(), intake, down).expect("the intake listens");
        let handle = server.handle();
        let task = tokio::spawn(async move {
            let _ = server.await;
        });
        self.server = Some(Server { world, handle, task });
    }

    /// The threads of a control plane that was just killed may hold the store for a moment more.
    async fn open(&self, config: &Config, outside: Option<Arc<Outside>>) -> World {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let parts = Parts {
                clock: Clock::System,
                platform: Platform::Memory(self.memory.clone()),
                router: Router::Memory(self.router.clone()),
                router_port: 80,
                outside: outside.clone(),
            };
            match server::open_world(config.clone(), parts) {
                Ok(world) => return world,
                Err(error) => assert!(Instant::now() < deadline, "the world does not open: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the control plane as a kill does: nothing is finished, nothing is said.
    pub async fn kill(&mut self) {
        let Some(Server { world, handle, task }) = self.server.take() else { return };
        handle.stop(false).await;
        let _ = task.await;
        drop(world);
    }

    /// Where pages and API are.
    pub fn dashboard(&self) -> String {
        format!("http://{}", self.intake)
    }

    pub fn world(&self) -> &Arc<World> {
        &self.server.as_ref().expect("the control plane runs").world
    }

    /// Works, and lets GitHub deliver, until both are quiet.
    pub async fn settle(&self) -> Settled {
        let world = self.world();
        let quiet = async {
            let deadline = Instant::now() + PATIENCE;
            // Quiet is when a look at everything changed nothing that anybody outside can see.
            let (mut calm, mut before) = (0, String::new());
            while calm < 2 {
                assert!(Instant::now() < deadline, "it does not come to rest: {:?}", queue::entries(&world.store, ""));
                self.work(world).await;
                let waiting = self.answer_health_checks();
                let idle = self.control("GET", "/_/idle", None).await["idle"] == true;
                let now = self.seen_outside().await;
                calm = if idle && !waiting && now == before { calm + 1 } else { 0 };
                before = now;
                if calm == 1 {
                    reconcile::slow_tick(world).await.expect("the slow tick works");
                }
            }
        };
        let Some(outside) = world.outside.clone() else {
            quiet.await;
            return Settled::Quiet;
        };
        tokio::select! {
            biased;
            () = outside.stop() => Settled::Stopped,
            () = quiet => Settled::Quiet,
        }
    }

    /// Waits for something that others work on, and answers health checks meanwhile.
    pub async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE / 2;
        while !is_so() {
            assert!(Instant::now() < deadline, "it does not happen: {what}");
            self.answer_health_checks();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Works until nothing is due within a few seconds.
    async fn work(&self, world: &World) {
        loop {
            self.answer_health_checks();
            match reconcile::step(world).await.expect("the store answers") {
                Step::Worked { .. } => {}
                Step::Idle { next } => match next.map(|next| next.since(world.now())) {
                    Some(wait) if wait < Duration::from_secs(5) => tokio::time::sleep(wait).await,
                    _ => return,
                },
            }
        }
    }

    /// What has reached GitHub, the platform and the router so far.
    async fn seen_outside(&self) -> String {
        let calls = self.control("GET", "/_/requests", None).await;
        let calls = calls.as_array().or_else(|| calls["requests"].as_array()).map_or(0, |calls| {
            calls.iter().filter(|call| !call["path"].as_str().unwrap_or_default().starts_with("/_/")).count()
        });
        let tables = self.router.lock().expect("no holder panics").tables.len();
        let started = self.memory.history().len();
        // Each look moves what is under way one step on.
        let platform = Platform::Memory(self.memory.clone());
        let processes = platform.list().await.expect("the platform in memory answers");
        let states: Vec<String> = processes
            .iter()
            .map(|status| format!("{} {:?}", status.id, std::mem::discriminant(&status.state)))
            .collect();
        format!("{calls} calls, {tables} tables, {started} started, {states:?}")
    }

    /// The router in memory finds every process healthy that the script says answers. Whether that changed anything.
    fn answer_health_checks(&self) -> bool {
        let mut router = self.router.lock().expect("no holder panics");
        let mut changed = false;
        for process in self.memory.running() {
            let healthy = self.memory.healthy(&process).unwrap_or(false);
            let answer = (healthy, if healthy { "status 200" } else { "refused" }.to_owned());
            changed |= router.health.insert(process, answer.clone()) != Some(answer);
        }
        changed
    }

    /// A call on the simulated GitHub's controls or API, as the owner.
    pub async fn control(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let mut request = self
            .client
            .request(method.parse().expect("a method"), format!("{}{path}", self.sim.url()))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("user-agent", "a test");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("the simulated GitHub answers");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_success(), "{method} {path} answered {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// A repository with a first commit whose page says `page`.
    pub async fn make_repository(&self, name: &str, page: &str) -> String {
        self.control("POST", "/user/repos", Some(json!({ "name": name }))).await;
        let repository = format!("{OWNER}/{name}");
        self.push(&repository, "main", page).await;
        repository
    }

    pub async fn head(&self, repository: &str, branch: &str) -> String {
        let reference = self.control("GET", &format!("/repos/{repository}/git/ref/heads/{branch}"), None).await;
        reference["object"]["sha"].as_str().expect("a commit").to_owned()
    }

    /// Commits a page to a branch.
    pub async fn push(&self, repository: &str, branch: &str, page: &str) -> String {
        let files = json!({
            "Procfile": "web: serve\nrelease: migrate\n",
            "app.json": r#"{"scripts":{"postdeploy":"seed 0","pr-predestroy":"leave 0"},"environments":{"test":{"formation":{"test":{"quantity":2}},"scripts":{"test-setup":"prepare","test":"check"}}}}"#,
            "page.txt": page,
        });
        self.push_files(repository, branch, files).await
    }

    pub async fn push_files(&self, repository: &str, branch: &str, files: Value) -> String {
        let push = json!({
            "repo": repository, "branch": branch, "files": files, "message": "Change the page", "user": OWNER,
        });
        let pushed = self.control("POST", "/_/push", Some(push)).await;
        let commit = pushed["sha"].as_str().or_else(|| pushed["after"].as_str());
        commit.unwrap_or_else(|| panic!("no commit in {pushed}")).to_owned()
    }

    pub async fn open_pull(&self, repository: &str, branch: &str, title: &str) -> Pull {
        let wish = json!({ "title": title, "head": branch, "base": "main", "body": "" });
        let made = self.control("POST", &format!("/repos/{repository}/pulls"), Some(wish)).await;
        Pull { repository: repository.to_owned(), number: made["number"].as_u64().expect("a number") }
    }

    pub async fn merge(&self, pull: &Pull) -> String {
        let path = format!("/repos/{}/pulls/{}/merge", pull.repository, pull.number);
        self.control("PUT", &path, Some(json!({}))).await["sha"].as_str().expect("a merge commit").to_owned()
    }

    pub async fn close(&self, pull: &Pull) {
        let path = format!("/repos/{}/pulls/{}", pull.repository, pull.number);
        self.control("PATCH", &path, Some(json!({ "state": "closed" }))).await;
    }

    pub async fn reopen(&self, pull: &Pull) {
        let path = format!("/repos/{}/pulls/{}", pull.repository, pull.number);
        self.control("PATCH", &path, Some(json!({ "state": "open" }))).await;
    }

    /// A comment by a person; gives its number.
    pub async fn say(&self, pull: &Pull, body: &str, user: &str) -> u64 {
        let wish = json!({ "repo": pull.repository, "number": pull.number, "body": body, "user": user });
        self.control("POST", "/_/comment", Some(wish)).await["id"].as_u64().expect("the comment's number")
    }

    /// Our comments on a pull request.
    pub async fn comments(&self, pull: &Pull) -> Vec<String> {
        let path = format!("/repos/{}/issues/{}/comments?per_page=100", pull.repository, pull.number);
        let all = self.control("GET", &path, None).await;
        let bodies = all.as_array().expect("a list").iter().filter_map(|comment| comment["body"].as_str());
        bodies.filter(|body| body.contains("<!-- landfall -->")).map(str::to_owned).collect()
    }

    /// The one comment of ours.
    pub async fn comment(&self, pull: &Pull) -> String {
        let mut ours = self.comments(pull).await;
        assert_eq!(ours.len(), 1, "one comment is wanted: {ours:#?}");
        ours.remove(0)
    }

    /// Our check runs of a commit: conclusion, title, summary.
    pub async fn checks(&self, repository: &str, commit: &str) -> Vec<(String, String, String)> {
        let path = format!("/repos/{repository}/commits/{commit}/check-runs?filter=all");
        let answer = self.control("GET", &path, None).await;
        let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
        let runs = answer["check_runs"].as_array().expect("a list");
        runs.iter()
            .map(|run| (text(&run["conclusion"]), text(&run["output"]["title"]), text(&run["output"]["summary"])))
            .collect()
    }

    /// Deployments of an environment, newest first: commit and newest state.
    pub async fn deployments(&self, repository: &str, environment: &str) -> Vec<(String, String)> {
        let environment = environment.replace('/', "%2F");
        let path = format!("/repos/{repository}/deployments?environment={environment}&per_page=100");
        let mut found = Vec::new();
        for deployment in self.control("GET", &path, None).await.as_array().expect("a list") {
            let path = format!("/repos/{repository}/deployments/{}/statuses", deployment["id"]);
            let statuses = self.control("GET", &path, None).await;
            let state = statuses[0]["state"].as_str().unwrap_or("none").to_owned();
            found.push((deployment["sha"].as_str().expect("a commit").to_owned(), state));
        }
        found
    }

    pub async fn reactions(&self, repository: &str, comment: u64) -> Vec<String> {
        let path = format!("/repos/{repository}/issues/comments/{comment}/reactions");
        let all = self.control("GET", &path, None).await;
        let contents = all.as_array().expect("a list").iter().filter_map(|reaction| reaction["content"].as_str());
        let mut contents: Vec<String> = contents.map(str::to_owned).collect();
        contents.sort();
        contents
    }

    /// What an app's visitors are led to: the page of the release that has the traffic.
    pub fn served(&self, app: &str) -> Option<String> {
        let name: AppName = app.parse().expect("an app's name");
        let router = self.router.lock().expect("no holder panics");
        let route = router.tables.last()?.apps.get(&name)?.clone();
        drop(router);
        let active: Vec<_> =
            route.targets.iter().filter(|target| target.state == landfall::router::TargetState::Active).collect();
        let spec = self.memory.spec(&active.first()?.process)?;
        let Code::Slug(digest) = &spec.code else { return None };
        Some(self.page_of(digest))
    }

    fn page_of(&self, digest: &SlugDigest) -> String {
        let slug = self.world().store.slug(digest).expect("the store answers").expect("the slug has a record");
        let archive = self.folder.path().join("data/archives").join(format!("{}.tar.zst", slug.digest));
        let file = std::fs::File::open(archive).expect("the archive is there");
        let mut tar = tar::Archive::new(zstd::Decoder::new(file).expect("zstd"));
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            if entry.path().expect("a path").ends_with("page.txt") {
                let mut page = String::new();
                std::io::Read::read_to_string(&mut entry, &mut page).expect("text");
                return page;
            }
        }
        panic!("the slug has no page")
    }

    /// From now on tests pass, whatever stands in the page.
    pub fn let_tests_pass(&self) {
        self.memory.script(|spec| {
            let mut spec = spec.clone();
            spec.environment.retain(|name, value| name != "FAILING" || value != "tests");
            script(&spec)
        });
    }

    /// Every test ends with this: nothing waits, nothing runs that has no record, no build is left.
    pub async fn leave(mut self) {
        let world = self.world();
        let entries = queue::entries(&world.store, "").expect("the queue");
        assert!(entries.iter().all(|entry| entry.parked.is_none()), "something is parked: {entries:#?}");
        let left = reconcile::leftovers(world).await.expect("leftovers can be listed");
        assert_eq!(left, [], "something outlived its record");
        let unknown = self.control("GET", "/_/unknown", None).await;
        assert!(
            unknown.as_array().is_none_or(Vec::is_empty),
            "calls that the simulated GitHub does not know: {unknown}"
        );
        self.kill().await;
        self.sim.stop().await;
    }
}

/// What each process does, from what stands in the page.
fn script(spec: &Spec) -> Outcome {
    let exits = |code: i32, lines: &[&str]| Outcome::Exits {
        code,
        lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        writes: Vec::new(),
    };
    match &spec.code {
        Code::Folder { path } => {
            let page = std::fs::read_to_string(path.join("page.txt")).unwrap_or_default();
            if page.contains(UNBUILDABLE) {
                return exits(1, &["-----> Building", "       syntax error"]);
            }
            for (word, why) in CUTS {
                if page.contains(word) {
                    return Outcome::Cut(why.clone());
                }
            }
            let at = |name: &str| spec.binds.iter().find(|bind| bind.inside.ends_with(name)).expect("a bound folder");
            std::fs::write(at("cache").host.join("page.txt"), &page).expect("write into the cache");
            if page.contains(ENDLESS) {
                return Outcome::Runs { healthy: false };
            }
            let out = at("out");
            let procfile = std::fs::read_to_string(path.join("Procfile")).unwrap_or_default();
            for (name, text) in build_results(&page, procfile) {
                std::fs::write(out.host.join(name), text).expect("write a result");
            }
            exits(0, &["-----> Building", "       done"])
        }
        Code::Slug(_) | Code::Layered { .. } | Code::None => match spec.name.split('.').next() {
            Some("test-setup") => {
                let kept = spec.binds.iter().find(|bind| bind.inside.ends_with("kept")).expect("a bound folder");
                let made = tempfile::tempdir().expect("a folder");
                std::fs::write(made.path().join("page.txt"), "prepared").expect("write a file");
                landfall::slug::pack(made.path(), &kept.host).expect("it can be packed");
                exits(0, &["prepared"])
            }
            Some("test") => {
                let node = &spec.environment["CI_NODE_INDEX"];
                if node == "1" && spec.environment.get("FAILING").is_some_and(|failing| failing == "tests") {
                    return exits(1, &["1..2", "ok 1 - adds", "not ok 2 - greets by name", "# it said nothing"]);
                }
                exits(0, &["1..2", "ok 1 - adds", "ok 2 - greets"])
            }
            Some("release") if spec.environment.get("FAILING").is_some_and(|failing| failing == "migration") => {
                exits(1, &["no such column"])
            }
            Some("release") if spec.environment.get("MIGRATION").is_some_and(|migration| migration == "bad") => {
                exits(1, &["no such table"])
            }
            Some("release") if spec.environment.get("MIGRATION").is_some_and(|migration| migration == "tells") => {
                exits(1, &[&format!("refused: {} {}", spec.environment["TOKEN"], spec.environment["COLOUR"])])
            }
            Some("release") if spec.environment.get("FAILING").is_some_and(|failing| failing == "end") => {
                Outcome::Cut(Exit::TimeLimit)
            }
            Some("release") => exits(0, &["migrated"]),
            // A script says its status with its last word.
            Some("postdeploy" | "predestroy" | "run") => {
                let status = spec.command.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
                exits(status, &["one", "two"])
            }
            _ => Outcome::Runs { healthy: spec.environment.get("FAILING").is_none_or(|failing| failing != "web") },
        },
    }
}

/// What a real build would have left: the process types, and what this page wants to fail as a config var.
fn build_results(page: &str, procfile: String) -> BTreeMap<&'static str, String> {
    let failing = if page.contains(FAILING) {
        "tests"
    } else if page.contains(UNHEALTHY) {
        "web"
    } else if page.contains(FAILING_MIGRATION) {
        "migration"
    } else if page.contains(ENDLESS_MIGRATION) {
        "end"
    } else {
        "nothing"
    };
    BTreeMap::from([
        ("Procfile", procfile),
        ("release.0.yml", format!("config_vars:\n  FAILING: {failing}\n")),
        ("buildpacks", "test\n".to_owned()),
    ])
}
