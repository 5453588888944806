//! Landfall as people run it: the program itself, started as `landfall sim`, `landfall serve` and the router that it
//! starts, on free ports, in a folder that goes with the test. Nothing of it may be left when a test ends.

use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
pub const OWNER: &str = "olivia";
const TOKEN: &str = "token-of-olivia";
pub const SECRET: &str = "a webhook secret of the tests, 32+";
/// The secret of GitHub's own example of a signature ("Validating webhook deliveries").
pub const SECOND_SECRET: &str = "It's a Secret to Everybody";
/// Stands in the control plane's environment; nobody else may ever see it.
pub const OPERATORS_SECRET: &str = "only-the-operator-knows-this";

/// How long anything may take. Much longer than it should, since machines are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(40);

pub struct Machine {
    folder: tempfile::TempDir,
    pub server: SocketAddr,
    pub router: SocketAddr,
    pub github: SocketAddr,
    pub client: reqwest::Client,
    /// The program that the control plane is started from.
    pub program: PathBuf,
    sim: Option<Child>,
    serve: Option<Child>,
    /// How the control plane is started, where a test wants it otherwise.
    wrapper: Vec<String>,
    ended: bool,
}

/// What an app answered.
#[derive(Debug, Clone)]
pub struct Seen {
    pub status: u16,
    pub body: String,
    /// The process that answered, by the name that it gave itself.
    pub boot: String,
}

impl Machine {
    pub async fn start() -> Machine {
        Machine::with("").await
    }

    /// As `start`, with more lines of configuration.
    pub async fn with(settings: &str) -> Machine {
        Machine::wrapped(settings, &[]).await
    }

    /// As `with`; the control plane is started by this program, which gets its command line.
    pub async fn wrapped(settings: &str, wrapper: &[&str]) -> Machine {
        landfall::github::install_crypto_provider();
        let folder = tempfile::Builder::new().prefix("landfall-test-").tempdir().expect("a temporary folder");
        let [server, router, github] = free_addresses();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(40))
            .build()
            .expect("a client");
        let mut machine = Machine {
            folder,
            server,
            router,
            github,
            client,
            program: PathBuf::from(LANDFALL),
            sim: None,
            serve: None,
            wrapper: wrapper.iter().map(|&word| word.to_owned()).collect(),
            ended: false,
        };
        std::fs::write(machine.path("key.pem"), include_str!("../../demo/app-key.pem")).expect("write the key");
        std::fs::write(machine.path("key.pub.pem"), include_str!("../../demo/app-key.pub.pem")).expect("write the key");
        std::fs::write(machine.config(), machine.configuration(settings)).expect("write the configuration");
        machine.start_sim();
        machine.serve().await;
        machine
    }

    fn configuration(&self, settings: &str) -> String {
        let text = |value: &str| Value::from(value).to_string();
        let path = |name: &str| text(&self.path(name).to_string_lossy());
        let github = text(&format!("http://{}", self.github));
        format!(
            "data_dir = {data}\n[server]\nlisten = \"{server}\"\npublic_url = \"http://localhost:{port}\"\n\
             [router]\nlisten = \"{router}\"\n\
             [github]\napi_url = {github}\nweb_url = {github}\napp_id = 1\nprivate_key_path = {key}\n\
             webhook_secret = {secret}\nwebhook_secret_previous = {second}\nwrite_interval_ms = 0\nstaleness_seconds = 1\n\
             {apps}{settings}\n",
            data = path("data"),
            server = self.server,
            port = self.server.port(),
            router = self.router,
            key = path("key.pem"),
            secret = text(SECRET),
            second = text(SECOND_SECRET),
            apps = if settings.contains("[apps]") { "" } else { "[apps]\ngrace_seconds = 5\ndrain_seconds = 10\n" },
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("landfall.toml")
    }

    fn start_sim(&mut self) {
        let mut command = landfall_command();
        command
            .args(["sim", "--listen", &self.github.to_string(), "--app-id", "1", "--webhook-secret", SECRET])
            .args(["--webhook-url", &format!("http://{}/webhooks/github", self.server)])
            .args(["--user", &format!("{OWNER}:{TOKEN}")])
            .arg("--data")
            .arg(self.path("github"))
            .arg("--app-public-key")
            .arg(self.path("key.pub.pem"));
        self.sim = Some(start(command, &self.path("sim.log")));
    }

    /// Starts the control plane and waits until it can accept work.
    pub async fn serve(&mut self) {
        assert!(self.serve.is_none(), "it runs already");
        let mut command = match self.wrapper.split_first() {
            None => clean_command(&self.program),
            Some((program, arguments)) => {
                let mut command = clean_command(Path::new(program));
                command.args(arguments).arg(&self.program);
                command
            }
        };
        command.arg("--config").arg(self.config()).arg("serve").env("OPERATORS_SECRET", OPERATORS_SECRET);
        self.serve = Some(start(command, &self.path("serve.log")));
        let healthy = async || {
            let answer = self.client.get(format!("http://{}/healthz", self.server)).send().await?;
            anyhow::ensure!(answer.status() == 200, "it answers {}", answer.status());
            Ok(())
        };
        if let Err(error) = eventually(healthy).await {
            panic!("the control plane does not start: {error:#}\n{}", self.log());
        }
    }

    /// The last that the control plane wrote.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("serve.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// SIGKILL: it finishes nothing and says nothing.
    pub fn kill_serve(&mut self) {
        let mut serve = self.serve.take().expect("the control plane runs");
        serve.kill().expect("kill the control plane");
        serve.wait().expect("the control plane is gone");
    }

    /// Waits until the control plane ended by itself.
    pub async fn serve_ended(&mut self) -> Option<i32> {
        let serve = self.serve.as_mut().expect("the control plane runs");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match serve.try_wait().expect("the control plane can be waited for") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the control plane does not end"),
            }
            tokio::time::sleep(LOOK).await;
        };
        self.serve = None;
        status.code()
    }

    /// A command of the command line.
    pub async fn landfall(&self, arguments: &[&str]) -> Output {
        let mut command = landfall_command();
        command.arg("--config").arg(self.config()).args(arguments).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output().expect("landfall runs")).await.expect("no panic")
    }

    /// What a command prints; it must succeed.
    pub async fn says(&self, arguments: &[&str]) -> String {
        let output = self.landfall(arguments).await;
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "landfall {arguments:?} failed:\n{out}{error}");
        out.into_owned()
    }

    /// A call on the simulated GitHub, as the owner.
    pub async fn github(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        match self.ask_github(method.clone(), path, body).await {
            Ok(value) => value,
            Err(error) => panic!("{method} {path}: {error:#}"),
        }
    }

    async fn ask_github(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.github))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("user-agent", "a test");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "{status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A repository with these files on main.
    pub async fn make_repository(&self, name: &str, files: &BTreeMap<String, String>) -> String {
        let made = async || self.ask_github(Method::POST, "/user/repos", Some(json!({ "name": name }))).await;
        eventually(made).await.expect("the simulated GitHub makes a repository");
        let repository = format!("{OWNER}/{name}");
        self.push(&repository, "main", files, "Begin").await;
        repository
    }

    pub async fn push(
        &self,
        repository: &str,
        branch: &str,
        files: &BTreeMap<String, String>,
        message: &str,
    ) -> String {
        let push = json!({ "repo": repository, "branch": branch, "files": files, "message": message, "user": OWNER });
        let pushed = self.github(Method::POST, "/_/push", Some(push)).await;
        pushed["sha"].as_str().unwrap_or_else(|| panic!("no commit in {pushed}")).to_owned()
    }

    pub async fn open_pull(&self, repository: &str, branch: &str, title: &str) -> u64 {
        let wish = json!({ "title": title, "head": branch, "base": "main", "body": "" });
        let made = self.github(Method::POST, &format!("/repos/{repository}/pulls"), Some(wish)).await;
        made["number"].as_u64().expect("a number")
    }

    /// Our comments on a pull request.
    pub async fn comments(&self, repository: &str, pull: u64) -> Vec<String> {
        let path = format!("/repos/{repository}/issues/{pull}/comments?per_page=100");
        let all = self.github(Method::GET, &path, None).await;
        let bodies = all.as_array().expect("a list").iter().filter_map(|comment| comment["body"].as_str());
        bodies.filter(|body| body.contains("<!-- landfall -->")).map(str::to_owned).collect()
    }

    /// Waits until the one comment of ours says this.
    pub async fn comment_says(&self, repository: &str, pull: u64, text: &str) -> String {
        let look = async || {
            let mut ours = self.comments(repository, pull).await;
            anyhow::ensure!(ours.len() == 1, "{} comments of ours: {ours:#?}", ours.len());
            anyhow::ensure!(ours[0].contains(text), "it says:\n{}", ours[0]);
            Ok(ours.remove(0))
        };
        self.expect(&format!("the comment to say {text:?}"), look).await
    }

    /// Waits until GitHub has tried to send all its webhooks.
    pub async fn github_is_idle(&self) {
        let look = async || {
            let idle = self.ask_github(Method::GET, "/_/idle", None).await?;
            anyhow::ensure!(idle["idle"] == true, "{idle}");
            Ok(())
        };
        self.expect("GitHub to have sent its webhooks", look).await;
    }

    /// The API of the control plane.
    pub async fn api(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.client.get(format!("http://{}{path}", self.server)).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "{path} answers {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// A visitor's request through the router.
    pub async fn visit(&self, app: &str, path: &str) -> anyhow::Result<Seen> {
        let answer =
            self.client.get(format!("http://{}{path}", self.router)).header("host", self.host(app)).send().await?;
        let status = answer.status().as_u16();
        let boot = answer.headers().get("x-boot").and_then(|boot| boot.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Seen { status, boot, body: answer.text().await? })
    }

    /// Whether the control plane has a socket open that listens there.
    pub fn serve_listens_at(&self, address: SocketAddr) -> bool {
        let serve = self.serve.as_ref().expect("it runs").id();
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the system's connections");
        let port = format!(":{:04X}", address.port());
        // Local address, the other end's, the state (0A listens), five more, the inode (proc(5)).
        let inode = sockets.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
            listens.then(|| format!("socket:[{}]", fields[9]))
        });
        let open = std::fs::read_dir(format!("/proc/{serve}/fd")).expect("its descriptors").flatten();
        let mut open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        inode.is_some_and(|inode| open.any(|link| link.as_os_str() == inode.as_str()))
    }

    pub fn host(&self, app: &str) -> String {
        format!("{app}.localhost:{}", self.router.port())
    }

    /// Waits until an app answers with this text.
    pub async fn serves(&self, app: &str, text: &str) -> Seen {
        let look = async || {
            let seen = self.visit(app, "/").await?;
            anyhow::ensure!(
                seen.status == 200 && seen.body.contains(text),
                "it answers {}: {}",
                seen.status,
                seen.body
            );
            Ok(seen)
        };
        self.expect(&format!("{app} to say {text:?}"), look).await
    }

    /// Looks until it is so; else fails with what the last look saw and the end of the control plane's log.
    pub async fn expect<T>(&self, what: &str, look: impl AsyncFn() -> anyhow::Result<T>) -> T {
        match eventually(look).await {
            Ok(value) => value,
            Err(error) => {
                panic!("waited {} s for {what}; {error:#}", PATIENCE.as_secs())
            }
        }
    }

    /// Processes of this machine's folder whose command line holds a word, by command line: one of several processes
    /// counts once.
    pub fn processes(&self, word: &str) -> BTreeMap<String, Vec<i32>> {
        let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (pid, line) in processes_of(self.folder.path()) {
            if line.contains(word) {
                found.entry(line).or_default().push(pid);
            }
        }
        found
    }

    /// A test run, once it has its verdict.
    pub async fn verdict(&self, run: u64) -> Value {
        let look = async || {
            let answer = self.api(&format!("/api/v1/runs/{run}")).await?;
            anyhow::ensure!(!answer["verdict"].is_null(), "{answer:#}");
            Ok(answer)
        };
        self.expect(&format!("the verdict of run {run}"), look).await
    }

    /// The doctor finds all well, soon, and this folder of the data is empty.
    pub async fn is_well(&self, empty: &str) {
        let look = async || {
            let output = self.landfall(&["doctor"]).await;
            anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            Ok(())
        };
        self.expect("the doctor to find all well", look).await;
        let left = std::fs::read_dir(self.path("data").join(empty)).expect("a folder").count();
        assert_eq!(left, 0, "something is left in {empty}");
    }

    /// Every test ends with this: all is stopped as a person would stop it, and nothing is left.
    pub async fn leave(mut self) {
        let said = self.says(&["down"]).await;
        if self.serve.is_some() {
            assert_eq!(self.serve_ended().await, Some(3), "as its unit knows it; {said}");
        }
        self.end_sim();
        let left = processes_of(self.folder.path());
        let mounts = mounts_of(self.folder.path());
        self.ended = true;
        self.kill_rest();
        assert!(left.is_empty(), "still running after `landfall down` (it said: {said}): {left:#?}");
        assert!(mounts.is_empty(), "still mounted after `landfall down`: {mounts:#?}");
    }

    fn end_sim(&mut self) {
        if let Some(mut sim) = self.sim.take() {
            let _ = sim.kill();
            let _ = sim.wait();
        }
    }

    /// What a failed test left.
    fn kill_rest(&mut self) {
        for child in [self.serve.take(), self.sim.take()].into_iter().flatten() {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
        }
        kill_processes_of(self.folder.path());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the control plane's log:\n{}", self.log());
        }
        if let Some(mut serve) = self.serve.take() {
            let _ = serve.kill();
            let _ = serve.wait();
        }
        let _ = landfall_command().arg("--config").arg(self.config()).arg("down").output();
        self.kill_rest();
    }
}

/// Kills what still runs of a folder, until nothing does.
pub fn kill_processes_of(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(folder);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left.keys() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// All processes of the machine that belong to a folder: by their command line, or because they see a piece of it in a
/// mount namespace of their own.
pub fn processes_of(folder: &Path) -> BTreeMap<i32, String> {
    let needle = folder.to_string_lossy();
    let own_namespace = std::fs::read_link("/proc/self/ns/mnt").ok();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let namespace = std::fs::read_link(entry.path().join("ns/mnt")).ok();
        let sees = namespace.is_some()
            && namespace != own_namespace
            && std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default().contains(&*needle);
        if line.contains(&*needle) || sees {
            found.insert(pid, line.trim().to_owned());
        }
    }
    found
}

/// Mounts in our own namespace that lie in a folder.
fn mounts_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_string_lossy();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter(|line| line.contains(&*needle)).map(str::to_owned).collect()
}

/// A process whose environment is as empty as a service's.
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    for name in ["PATH", "HOME", "LANDFALL_LOG", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

pub fn landfall_command() -> Command {
    clean_command(Path::new(LANDFALL))
}

/// Starts a child whose output goes to a file.
fn start(mut command: Command, log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command.spawn().expect("the program starts")
}

/// Starts a child and gives each line of its standard output to `line` until that says `true`.
pub fn start_until(mut command: Command, log: &Path, mut line: impl FnMut(&str) -> bool) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output is ours")).lines();
    for text in lines.by_ref() {
        if line(&text.expect("its output is text")) {
            // What it says later is read and dropped, so that it never waits for a reader.
            std::thread::spawn(move || lines.for_each(drop));
            break;
        }
    }
    child
}

pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    std::array::from_fn(|_| free_address())
}

/// An address that nobody else takes while its server is killed and started again: below the ports that the system
/// gives to outgoing connections, and another one for each caller.
pub fn free_address() -> SocketAddr {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let place = std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + place).expect("a port");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free");
}

/// Looks again and again until it is so; the error of the last look is the reason.
pub async fn eventually<T>(look: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The sample app of the demonstration.
pub fn hello() -> BTreeMap<String, String> {
    [
        ("Procfile", include_str!("../../demo/hello/Procfile")),
        ("app.json", include_str!("../../demo/hello/app.json")),
        ("page.py", include_str!("../../demo/hello/page.py")),
        ("release.py", include_str!("../../demo/hello/release.py")),
        ("server.py", include_str!("../../demo/hello/server.py")),
        ("tests/run.py", include_str!("../../demo/hello/tests/run.py")),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .collect()
}

/// The sample app with a server that does what tests ask of it.
pub fn probe() -> BTreeMap<String, String> {
    let mut files = hello();
    files.insert("server.py".to_owned(), include_str!("probe/server.py").to_owned());
    files.insert("probe.py".to_owned(), include_str!("probe/probe.py").to_owned());
    files
}

/// The page with another greeting.
pub fn greeting(word: &str) -> BTreeMap<String, String> {
    let page = include_str!("../../demo/hello/page.py");
    let changed = page.replace("GREETING = \"Hello\"", &format!("GREETING = \"{word}\""));
    assert_ne!(page, changed, "the sample's page has changed");
    BTreeMap::from([("page.py".to_owned(), changed)])
}
