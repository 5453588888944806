//! The stage: apps that are told how to behave, supervisors that pass their connections, a router, and raw clients.

use crate::router::server::run_until;
use crate::router::{
    AppNumbers, Code, Notice, Resolution, Route, Router, RouterOptions, Status, Table, Target, TargetState,
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything is waited for before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `probe` gives something.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request as the app saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Counts the connections of the app, so that a test can tell a reused one.
    pub connection: u64,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} came twice: {:?}", self.headers);
        value
    }
}

/// What an app does with a request once it has been read whole (or only its head, when `read_body` is off).
pub type Behaviour = Arc<dyn Fn(&Seen, &mut TcpStream) -> Next + Send + Sync>;

pub enum Next {
    /// Go on with the next request of this connection.
    KeepAlive,
    Close,
}

/// Agrees to a WebSocket at once and sends back whatever comes, to its end.
pub fn echo(stream: &mut TcpStream) -> Next {
    let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let mut bytes = [0; 100];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        let _ = stream.write_all(&bytes[..count]);
    }
    Next::Close
}

/// One process: an HTTP server on a port that only its supervisor knows, and that supervisor.
pub struct App {
    pub name: String,
    pub socket: PathBuf,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub requests: Arc<AtomicUsize>,
    /// The supervisor answers `R` while set.
    pub refusing: Arc<AtomicBool>,
    pub dials: Arc<AtomicUsize>,
    /// Health checks are answered with this status.
    pub health: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    address: SocketAddr,
}

impl App {
    /// An app that answers every request with its name.
    pub fn start(folder: &Path, name: &str) -> App {
        let answer = name.to_owned();
        App::behaving(folder, name, move |_, stream| {
            respond(stream, 200, answer.as_bytes());
            Next::KeepAlive
        })
    }

    pub fn behaving(
        folder: &Path,
        name: &str,
        behaviour: impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync + 'static,
    ) -> App {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let home = folder.join(name);
        std::fs::create_dir_all(&home).unwrap();
        let socket = home.join("dial.sock");
        let app = App {
            name: name.to_owned(),
            socket: socket.clone(),
            seen: Arc::default(),
            requests: Arc::default(),
            refusing: Arc::default(),
            dials: Arc::default(),
            health: Arc::new(AtomicUsize::new(200)),
            stopping: Arc::default(),
            open: Arc::default(),
            address,
        };
        let behaviour: Behaviour = Arc::new(behaviour);
        let (seen, requests, open, health) =
            (app.seen.clone(), app.requests.clone(), app.open.clone(), app.health.clone());
        let stopping = app.stopping.clone();
        std::thread::spawn(move || {
            let connections = AtomicU64::new(0);
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let (behaviour, seen, requests, health) =
                    (behaviour.clone(), seen.clone(), requests.clone(), health.clone());
                std::thread::spawn(move || serve(stream, number, &behaviour, &seen, &requests, &health));
            }
        });
        let supervisor = UnixListener::bind(&socket).unwrap();
        let (refusing, stopping, dials) = (app.refusing.clone(), app.stopping.clone(), app.dials.clone());
        std::thread::spawn(move || {
            for stream in supervisor.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (refusing, dials) = (refusing.clone(), dials.clone());
                std::thread::spawn(move || supervise(stream, address, &refusing, &dials));
            }
        });
        app
    }

    /// A process whose supervisor dials an address that the test serves by itself.
    pub fn passing(folder: &Path, name: &str, address: SocketAddr) -> App {
        let mut app = App::start(folder, name);
        let home = folder.join(format!("{name}-passing"));
        std::fs::create_dir_all(&home).unwrap();
        app.socket = home.join("dial.sock");
        let supervisor = UnixListener::bind(&app.socket).unwrap();
        let (refusing, dials) = (app.refusing.clone(), app.dials.clone());
        std::thread::spawn(move || {
            for stream in supervisor.incoming().flatten() {
                supervise(stream, address, &refusing, &dials);
            }
        });
        app
    }

    pub fn target(&self, state: TargetState) -> Target {
        Target {
            process: format!("{}.a1", self.name).parse().unwrap(),
            name: "web.1".to_owned(),
            release: "v1".to_owned(),
            socket: self.socket.clone(),
            state,
            health_path: "/health".to_owned(),
            health_tcp: false,
            health_seconds: None,
            warmup: Vec::new(),
        }
    }

    /// Dies at once: the port closes, connections are reset.
    pub fn kill(&self) {
        self.refusing.store(true, Ordering::SeqCst);
        self.stopping.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
        let _ = UnixStream::connect(&self.socket);
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("the app saw no request")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

fn supervise(mut stream: UnixStream, address: SocketAddr, refusing: &AtomicBool, dials: &AtomicUsize) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte == *b"D" {
        dials.fetch_add(1, Ordering::SeqCst);
        let connection = if refusing.load(Ordering::SeqCst) { None } else { TcpStream::connect(address).ok() };
        let Some(connection) = connection else {
            let _ = stream.write_all(b"R");
            return;
        };
        let descriptors = [connection.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        if sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"K")], &control, MsgFlags::empty(), None).is_err() {
            return;
        }
    }
}

fn serve(
    stream: TcpStream,
    connection: u64,
    behaviour: &Behaviour,
    seen: &Mutex<Vec<Seen>>,
    requests: &AtomicUsize,
    health: &AtomicUsize,
) {
    let _ = stream.set_nodelay(true);
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, &mut writer, connection) {
        if request.line.starts_with("GET /health ") {
            let status = health.load(Ordering::SeqCst);
            respond(&mut writer, u16::try_from(status).unwrap(), b"health");
            return;
        }
        seen.lock().unwrap().push(request.clone());
        requests.fetch_add(1, Ordering::SeqCst);
        match behaviour(&request, &mut writer) {
            Next::KeepAlive => {}
            Next::Close => break,
        }
    }
    let _ = writer.shutdown(Shutdown::Both);
}

/// Reads a request as a careful server does; `None` at the end of the connection or at what is no request.
fn read_request(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream, connection: u64) -> Option<Seen> {
    let (line, headers) = read_head(reader)?;
    let mut request = Seen { line, headers, body: Vec::new(), connection };
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    request.body = read_body(reader, &request.headers, false)?;
    Some(request)
}

fn read_head(reader: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end_matches(['\r', '\n']).to_owned();
        match (line.is_empty(), lines.is_empty()) {
            (true, true) => continue,
            (true, false) => break,
            (false, _) => lines.push(line),
        }
    }
    let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    Some((lines.swap_remove(0), headers))
}

fn read_body(reader: &mut impl BufRead, headers: &[(String, String)], to_end: bool) -> Option<Vec<u8>> {
    let find =
        |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
    let mut body = Vec::new();
    if find("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim_end().split(';').next()?, 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    if let Some(length) = find("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if to_end {
        reader.read_to_end(&mut body).ok()?;
    }
    Some(body)
}

pub fn respond(stream: &mut TcpStream, status: u16, body: &[u8]) {
    let mut answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    let _ = stream.write_all(&answer);
}

/// A router on a thread, stopped when dropped.
pub struct RunningRouter {
    pub address: SocketAddr,
    pub control: Router,
    runtime: tokio::runtime::Runtime,
    thread: Option<JoinHandle<anyhow::Result<bool>>>,
    signal: Option<tokio::sync::oneshot::Sender<()>>,
}

impl RunningRouter {
    pub fn start(folder: &Path) -> RunningRouter {
        RunningRouter::with(folder, |_| {})
    }

    pub fn with(folder: &Path, change: impl FnOnce(&mut RouterOptions)) -> RunningRouter {
        let state_dir = folder.join("router");
        let mut options = RouterOptions::new("127.0.0.1:0".parse().unwrap(), state_dir.clone(), "localhost".into());
        options.drain_timeout = Duration::from_secs(5);
        // Whoever runs the program itself has a thread for each core.
        options.threads = Some(1);
        change(&mut options);
        let _ = std::fs::remove_file(state_dir.join("router.addr"));
        let (signal, signalled) = tokio::sync::oneshot::channel::<()>();
        let ended = async {
            if signalled.await.is_err() {
                std::future::pending().await
            }
        };
        let thread = std::thread::spawn(move || run_until(options, ended).map(|left| left.down));
        let address = eventually("the router's address", || {
            assert!(!thread.is_finished(), "the router did not start");
            let text = std::fs::read_to_string(state_dir.join("router.addr")).ok()?;
            text.trim().parse().ok()
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let control = Router::remote(&state_dir);
        RunningRouter { address, control, runtime, thread: Some(thread), signal: Some(signal) }
    }

    pub fn set(&self, table: Table) {
        self.runtime.block_on(self.control.set(table)).unwrap();
    }

    pub fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    pub fn status(&self) -> Status {
        self.runtime.block_on(self.control.status()).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    pub fn get(&self, host: &str, path: &str) -> Answer {
        self.client().request(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    }

    /// Waits for a router that ends, and says whether it was taken down.
    pub fn outlived(mut self) -> bool {
        let thread = self.thread.take().expect("it runs");
        eventually("the end of the router", || thread.is_finished().then_some(()));
        thread.join().expect("the router panicked").expect("the router failed")
    }

    /// Tells it to end as SIGTERM does.
    pub fn signal(&mut self) {
        self.signal.take().expect("once").send(()).expect("it runs");
    }

    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.runtime.block_on(self.control.stop());
            let result = thread.join().expect("the router panicked");
            if !std::thread::panicking() {
                result.expect("the router failed");
            }
        }
    }
}

impl Drop for RunningRouter {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An answer as a client saw it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A connection that speaks raw bytes.
pub struct Client {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap()
    }

    pub fn try_connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Ok(Client { stream, reader })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    #[track_caller]
    pub fn request(&mut self, head: &str) -> Answer {
        self.send(head);
        self.answer().expect("no answer")
    }

    /// The next answer; `None` when the connection ends before it is whole.
    pub fn answer(&mut self) -> Option<Answer> {
        let (line, headers) = read_head(&mut self.reader)?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let body = if status == 101 || status == 100 || status == 304 {
            Vec::new()
        } else {
            read_body(&mut self.reader, &headers, true)?
        };
        Some(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// A table with one app `hello` on `hello.localhost`.
pub fn table(version: u64, targets: Vec<Target>) -> Table {
    table_with(version, targets, None)
}

pub fn table_with(version: u64, targets: Vec<Target>, notice: Option<Notice>) -> Table {
    let route = Route {
        hosts: vec!["hello.localhost".to_owned()],
        release: "v1".to_owned(),
        targets,
        notice,
        noindex: false,
        hold: false,
        asleep: false,
        access: None,
        canary: None,
    };
    Table { generation: 1, version, apps: BTreeMap::from([("hello".parse().unwrap(), route)]) }
}

/// How often the app's visitors got each code.
pub fn codes(router: &RunningRouter) -> Vec<(Code, u64)> {
    router.status().apps[&"hello".parse().unwrap()].h_codes.iter().map(|(code, count)| (*code, *count)).collect()
}

/// The codes are counted a moment after the client has its answer.
#[track_caller]
pub fn expect_codes(router: &RunningRouter, wanted: &[(Code, u64)]) {
    eventually(&format!("{wanted:?}"), || (codes(router) == wanted).then_some(()));
}

/// What was counted of the app, by the hour.
pub fn numbers(router: &RunningRouter) -> AppNumbers {
    router.call(router.control.numbers(&"hello".parse().unwrap(), Resolution::Hour)).unwrap()
}

/// How many wait for a process of the app.
pub fn held(router: &RunningRouter) -> u64 {
    router.status().apps[&"hello".parse().unwrap()].held
}
