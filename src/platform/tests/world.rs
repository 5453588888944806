//! A platform on a temporary data folder, in words that tests are written in.

use crate::clock::Clock;
use crate::domain::{ProcessId, SlugDigest};
use crate::platform::contract::*;
use crate::platform::dyno;
use crate::platform::files;
use crate::platform::{Local, LocalSettings, Platform};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Long enough for a busy machine; no test waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The test program is its own `landfall dyno`: the harness's `main` never runs then. Like all of `.init_array` this is
/// called before `main`, with its arguments, while there is one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static BE_THE_SUPERVISOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = be_the_supervisor;

extern "C" fn be_the_supervisor(count: c_int, values: *const *const c_char, _environment: *const *const c_char) {
    let value = |index: c_int| {
        // SAFETY: the C library passes `count` strings.
        (index < count)
            .then(|| unsafe { CStr::from_ptr(*values.offset(index as isize)) }.to_string_lossy().into_owned())
    };
    let third = value(3).unwrap_or_default();
    match (value(1).as_deref(), value(2).as_deref()) {
        (Some("dyno"), Some("--spec")) => dyno::main(Path::new(&third)),
        (Some("test-starter"), Some(data_dir)) => starter(Path::new(data_dir), Path::new(&third)),
        (Some("test-scenario"), Some(data_dir)) => scenario(Path::new(data_dir)),
        _ => {}
    }
}

/// Starts a process as `serve` does, and waits to be killed.
fn starter(data_dir: &Path, spec: &Path) -> ! {
    let spec: Spec = serde_json::from_slice(&std::fs::read(spec).expect("a file")).expect("a specification");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        open(data_dir).start(&spec).await.expect("it starts");
        println!("started");
    });
    loop {
        std::thread::park();
    }
}

/// What another user than root can do; fails with a message.
fn scenario(data_dir: &Path) -> ! {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let done = std::panic::catch_unwind(|| runtime.block_on(super::lives::as_a_normal_user(data_dir)));
    std::process::exit(if done.is_ok() { 0 } else { 1 })
}

pub fn open(data_dir: &Path) -> Platform {
    let executable = std::env::current_exe().expect("this program");
    Platform::Local(Local::open(LocalSettings::new(data_dir, executable, Clock::System)).expect("a platform"))
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub platform: Platform,
}

impl World {
    pub fn new() -> World {
        World::on(|_| {})
    }

    /// With other settings than the default ones.
    pub fn on(change: impl FnOnce(&mut LocalSettings)) -> World {
        assert!(
            Path::new("/usr/bin/bwrap").exists(),
            "these tests need bubblewrap: apt-get install bubblewrap (script/test does it)"
        );
        let folder = tempfile::tempdir().expect("a folder");
        let executable = std::env::current_exe().expect("this program");
        let mut settings = LocalSettings::new(folder.path().join("data"), executable, Clock::System);
        change(&mut settings);
        let platform = Platform::Local(Local::open(settings).expect("a platform"));
        World { folder, platform }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs a command to its end.
    pub async fn run(&self, spec: &Spec) -> (State, Vec<LogLine>) {
        self.platform.start(spec).await.expect("it starts");
        let state = self.exit(&spec.id).await;
        (state, self.lines(&spec.id).await)
    }

    /// Runs a command that must end well, and returns what it said on its standard output.
    pub async fn output(&self, spec: &Spec) -> Vec<String> {
        let (state, lines) = self.run(spec).await;
        assert!(matches!(state, State::Exited { code: Some(0), why: Exit::Finished, .. }), "{state:?} {lines:?}");
        lines.into_iter().filter(|line| line.stream == LogStream::Out).map(|line| line.text).collect()
    }

    pub async fn state(&self, id: &ProcessId) -> Option<State> {
        let list = self.platform.list().await.expect("a list");
        list.into_iter().find(|status| status.id == *id).map(|status| status.state)
    }

    pub async fn until(&self, id: &ProcessId, what: &str, reached: impl Fn(&State) -> bool) -> State {
        let began = Instant::now();
        loop {
            let state = self.state(id).await;
            if let Some(state) = state.as_ref().filter(|state| reached(state)) {
                return state.clone();
            }
            if began.elapsed() > PATIENCE || state.as_ref().is_some_and(State::is_over) {
                let lines = self.platform.logs(id, LogCursor::default(), 100).await;
                panic!("{id} is not {what} but {state:?}: {lines:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn running(&self, id: &ProcessId) {
        self.until(id, "running", |state| matches!(state, State::Running { .. })).await;
    }

    pub async fn exit(&self, id: &ProcessId) -> State {
        self.until(id, "over", State::is_over).await
    }

    pub async fn lines(&self, id: &ProcessId) -> Vec<LogLine> {
        let (mut lines, mut cursor) = (Vec::new(), LogCursor::default());
        loop {
            let page = self.platform.logs(id, cursor, 1000).await.expect("a page");
            let stuck = page.lines.is_empty() && !page.ended;
            cursor = page.next;
            lines.extend(page.lines);
            if page.ended || stuck {
                return lines;
            }
        }
    }

    /// Waits until a running process has said something.
    pub async fn says(&self, id: &ProcessId, text: &str) {
        let began = Instant::now();
        while !self.lines(id).await.iter().any(|line| line.text.contains(text)) {
            let state = self.state(id).await;
            let over = state.as_ref().is_none_or(State::is_over);
            assert!(began.elapsed() < PATIENCE && !over, "{text:?} was not said: {state:?} {:?}", self.lines(id).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Connects to the app as the router does.
    pub fn dial(&self, id: &ProcessId) -> Option<std::net::TcpStream> {
        use std::io::Write;
        let mut stream = UnixStream::connect(self.platform.dial_socket(id)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.write_all(b"D").ok()?;
        let socket = dyno::dial::receive_socket(stream.as_fd()).ok()??;
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(false).expect("a blocking socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Some(stream)
    }

    /// GET / through the dial socket.
    pub fn get(&self, id: &ProcessId) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = self.dial(id)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub async fn answers(&self, id: &ProcessId) -> String {
        let began = Instant::now();
        loop {
            if let Some(answer) = self.get(id) {
                return answer;
            }
            let state = self.state(id).await;
            let over = state.as_ref().is_none_or(State::is_over);
            assert!(began.elapsed() < PATIENCE && !over, "no answer: {state:?} {:?}", self.lines(id).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Publishes a slug of these files and returns its digest.
    pub async fn publish(&self, files: &[(&str, &str)]) -> SlugDigest {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            tar.append_data(&mut header, path, content.as_bytes()).expect("an entry");
        }
        let (archive, digest) = self.archive(&tar.into_inner().expect("an archive"));
        self.platform.publish(&digest, &archive).await.expect("it is published");
        digest
    }

    /// Compresses a tar and returns the file and its digest.
    pub fn archive(&self, tar: &[u8]) -> (PathBuf, SlugDigest) {
        let bytes = zstd::encode_all(tar, 1).expect("an archive");
        let digest: SlugDigest = hex::encode(Sha256::digest(&bytes)).parse().expect("a digest");
        let path = self.folder.path().join(format!("{digest}.tar.zst"));
        std::fs::write(&path, bytes).expect("a file");
        (path, digest)
    }

    /// Stops and removes everything, then looks whether anything is left.
    pub async fn end(self) {
        for status in self.platform.list().await.expect("a list") {
            self.platform.stop(&status.id).await.expect("it is asked to stop");
        }
        for status in self.platform.list().await.expect("a list") {
            self.exit(&status.id).await;
            self.platform.remove(&status.id).await.expect("it is removed");
        }
        let leftovers = self.platform.leftovers().await.expect("a look");
        assert_eq!(leftovers, [], "nothing is left");
        for folder in ["processes", "run"] {
            let entries: Vec<_> = std::fs::read_dir(self.data_dir().join(folder)).expect("a folder").collect();
            assert!(entries.is_empty(), "{folder} is not empty: {entries:?}");
        }
        let data_dir = self.data_dir().display().to_string();
        assert_eq!(processes_that_name(&data_dir), [] as [String; 0], "no supervisor is left");
        let name = files::short_hash(data_dir.as_bytes(), 12);
        drop(self.platform);
        let began = Instant::now();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            while hierarchy.path().join("landfall").join(&name).exists() {
                assert!(began.elapsed() < PATIENCE, "no control group is left");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Command lines on the machine that hold a text.
pub fn processes_that_name(text: &str) -> Vec<String> {
    let began = Instant::now();
    loop {
        let found: Vec<String> = std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                (pid != std::process::id() && line.contains(text)).then(|| format!("{pid} {line}"))
            })
            .collect();
        // A supervisor ends a moment after it told the exit.
        if found.is_empty() || began.elapsed() > Duration::from_secs(5) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn id(text: &str) -> ProcessId {
    text.parse().expect("a process id")
}

pub fn spec(name: &str, command: &str) -> Spec {
    Spec {
        id: id(name),
        labels: BTreeMap::from([("app".to_owned(), "shop-pr-1".to_owned())]),
        name: "web.1".to_owned(),
        code: Code::None,
        command: command.to_owned(),
        environment: BTreeMap::new(),
        limits: Limits::default(),
        network: Network::Isolated,
        port: None,
        time_limit: None,
        grace: Duration::from_secs(30),
        binds: Vec::new(),
        services: Vec::new(),
        walls: crate::platform::Walls::Sandbox,
        masked: Vec::new(),
    }
}

pub const SERVER: &str = "exec /usr/bin/python3 -u -m http.server --bind 127.0.0.1 $PORT";

/// An HTTP server on a port of its own network.
pub fn server(name: &str) -> Spec {
    let mut spec = spec(name, SERVER);
    spec.port = Some(3000);
    spec.environment.insert("PORT".to_owned(), "3000".to_owned());
    spec
}
