//! The router's log: a line per request in Heroku's form, to a bounded file and to a short memory per app.
//!
//! Requests never wait for it: lines go through a bounded queue to one writer, and what does not fit is counted.

use super::errors::Code;
use super::tail::{Tail, TailLine};
use crate::clock::Clock;
use crate::domain::AppName;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that wait for the writer.
const QUEUE: usize = 8192;
/// For how long lines gather that come one after the other. To wake the writer for each line would cost every request a switch
/// of threads; at a hundred thousand requests a second half the queue gathers meanwhile.
const GATHERED: Duration = Duration::from_millis(40);
/// Size at which the file is turned over, and how many turned-over ones are kept.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
const KEPT_FILES: usize = 2;
/// Lines kept in memory per app (as on Heroku) and their bytes.
const RING_LINES: usize = 1500;
const RING_BYTES: usize = 512 * 1024;
/// Lines of requests for hosts that nobody serves: at once, and in a second from then on. Scanners of whole networks
/// ask for such hosts, and the file has better uses.
const STRANGERS_AT_ONCE: u64 = 60;
const STRANGERS_IN_A_SECOND: u64 = 2;
/// Bytes of a path or host that a line shows.
const SHOWN: usize = 1024;

/// What a line tells of a request.
pub(super) struct Entry<'a> {
    pub method: &'a str,
    pub path: &'a [u8],
    pub host: &'a str,
    pub request_id: &'a str,
    pub client: Option<std::net::IpAddr>,
    /// The client spoke TLS, to us or to a proxy in front.
    pub secure: bool,
    pub process: Option<&'a str>,
    pub connect: Option<Duration>,
    pub service: Duration,
    pub status: u16,
    pub bytes: u64,
    pub code: Option<Code>,
}

impl Entry<'_> {
    /// Heroku's form; whatever a client wrote is escaped so that it can neither end its quotes nor the line.
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(256);
        match self.code {
            Some(code) => {
                let _ = write!(line, "at=error code={code} desc=\"{}\" ", code.description());
            }
            None => line.push_str("at=info "),
        }
        line.push_str("method=");
        escape(self.method.as_bytes(), &mut line);
        line.push_str(" path=\"");
        escape(self.path, &mut line);
        line.push_str("\" host=");
        escape(self.host.as_bytes(), &mut line);
        let _ = write!(line, " request_id={} fwd=\"", self.request_id);
        if let Some(client) = self.client {
            let _ = write!(line, "{client}");
        }
        let _ = write!(line, "\" dyno={} connect=", self.process.unwrap_or_default());
        if let Some(connect) = self.connect {
            let _ = write!(line, "{}ms", connect.as_millis());
        }
        let service = self.service.as_millis();
        let protocol = if self.secure { "https" } else { "http" };
        let _ = write!(line, " service={service}ms status={} bytes={} protocol={protocol}", self.status, self.bytes);
        line
    }
}

fn escape(bytes: &[u8], line: &mut String) {
    for byte in bytes.iter().take(SHOWN) {
        match byte {
            b'"' | b'\\' => {
                line.push('\\');
                line.push(char::from(*byte));
            }
            b'!'..=b'~' => line.push(char::from(*byte)),
            _ => {
                let _ = write!(line, "\\x{byte:02x}");
            }
        }
    }
    if bytes.len() > SHOWN {
        line.push_str("...");
    }
}

/// Where lines go; cheap to clone.
#[derive(Clone)]
pub(super) struct Log {
    queue: SyncSender<Message>,
    memory: Arc<Memory>,
    clock: Clock,
}

#[derive(Default)]
struct Memory {
    rings: Mutex<HashMap<AppName, Ring>>,
    dropped: AtomicU64,
    strangers: Mutex<Strangers>,
    tail: Mutex<Tail>,
}

/// How many lines without an app may still be written, and how many were left out since the last one.
#[derive(Debug, Default)]
struct Strangers {
    spent: u64,
    /// Up to when lines were given back, in seconds since the epoch.
    at: i64,
    left_out: u64,
}

impl Strangers {
    /// Whether a line may be written at `second`, and how many before it were not.
    fn admit(&mut self, second: i64) -> Option<u64> {
        let passed = u64::try_from(second.saturating_sub(self.at)).unwrap_or(0);
        self.spent = self.spent.saturating_sub(passed.saturating_mul(STRANGERS_IN_A_SECOND));
        self.at = self.at.max(second);
        if self.spent >= STRANGERS_AT_ONCE {
            self.left_out += 1;
            return None;
        }
        self.spent += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

enum Message {
    Line { app: Option<AppName>, line: String },
    Forget(AppName),
}

/// One app's last lines. Cursors go up over restarts of the router, since they begin with the time.
#[derive(Default)]
struct Ring {
    lines: VecDeque<(u64, String)>,
    bytes: usize,
    next: u64,
    /// Lines since the router started.
    count: u64,
}

/// A line and the cursor to go on after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub cursor: u64,
    pub line: String,
}

impl Log {
    /// Starts the writer, which ends when the last `Log` is dropped.
    pub fn start(folder: &Path, clock: Clock) -> io::Result<Log> {
        let file = Turning::open(folder.join("router.log"), FILE_BYTES)?;
        let (queue, lines) = sync_channel(QUEUE);
        let memory = Arc::new(Memory::default());
        let writer_memory = memory.clone();
        // A thousand lines a millisecond are more than there can be.
        let first = u64::try_from(clock.now().0).unwrap_or(0).saturating_mul(1000);
        std::thread::Builder::new()
            .name("router-log".into())
            .spawn(move || write_lines(file, &lines, &writer_memory, first))?;
        Ok(Log { queue, memory, clock })
    }

    pub fn request(&self, app: Option<&AppName>, entry: &Entry<'_>) {
        let now = self.clock.now();
        if app.is_none() {
            let mut strangers = self.memory.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            match strangers.admit(now.0 / 1000) {
                None => return,
                Some(0) => {}
                Some(count) => {
                    let line = format!("{now} landfall[router]: at=info desc=\"Unknown hosts\" left_out={count}");
                    self.send(Message::Line { app: None, line });
                }
            }
        }
        let line = format!("{now} landfall[router]: {}", entry.line());
        self.send(Message::Line { app: app.cloned(), line });
    }

    /// Drops the memory of an app that is gone.
    pub fn forget(&self, app: &AppName) {
        self.send(Message::Forget(app.clone()));
    }

    /// The lines of all apps after a cursor, oldest first.
    pub fn tail(&self, after: u64, limit: usize) -> (Vec<TailLine>, u64) {
        self.memory.tail().after(after, limit)
    }

    /// The lines after a cursor (0 for all that are kept), oldest first, at most `limit`.
    pub fn after(&self, app: &AppName, cursor: u64, limit: usize) -> Vec<LogLine> {
        let rings = self.memory.lock();
        let lines = rings.get(app).into_iter().flat_map(|ring| &ring.lines);
        let lines = lines.filter(|(number, _)| *number > cursor).take(limit);
        lines.map(|(number, line)| LogLine { cursor: *number, line: line.clone() }).collect()
    }

    /// Lines that did not fit into the queue since the start.
    pub fn dropped(&self) -> u64 {
        self.memory.dropped.load(Ordering::Relaxed)
    }

    fn send(&self, message: Message) {
        match self.queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.memory.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Memory {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AppName, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, line: String, first: u64) {
        self.next = (self.next + 1).max(first);
        self.bytes += line.len();
        self.lines.push_back((self.next, line));
        while self.lines.len() > RING_LINES || self.bytes > RING_BYTES {
            match self.lines.pop_front() {
                Some((_, line)) => self.bytes -= line.len(),
                None => break,
            }
        }
    }
}

fn write_lines(mut file: Turning, lines: &Receiver<Message>, memory: &Memory, first: u64) {
    // One wake-up for whatever has gathered, one flush for all of it. A line that comes alone is written at once.
    let mut woken = Instant::now();
    while let Ok(message) = lines.recv() {
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Line { app, line } => {
                    file.line(&line);
                    if let Some(app) = app {
                        let mut rings = memory.lock();
                        let ring = rings.entry(app.clone()).or_default();
                        ring.count += 1;
                        memory.tail().push(app, ring.count, &line);
                        ring.push(line, first);
                    }
                }
                Message::Forget(app) => {
                    memory.lock().remove(&app);
                }
            }
            next = lines.try_recv().ok();
        }
        file.flush();
        if woken.elapsed() < GATHERED {
            std::thread::sleep(GATHERED);
        }
        woken = Instant::now();
    }
}

/// A file that is turned over at a size: `router.log`, `router.log.1`, `router.log.2`.
struct Turning {
    path: PathBuf,
    limit: u64,
    written: u64,
    file: BufWriter<File>,
    failing: bool,
}

impl Turning {
    fn open(path: PathBuf, limit: u64) -> io::Result<Turning> {
        let file = append(&path)?;
        let written = file.metadata()?.len();
        Ok(Turning { path, limit, written, file: BufWriter::new(file), failing: false })
    }

    fn line(&mut self, line: &str) {
        if self.written + line.len() as u64 > self.limit {
            let turned = self.turn();
            self.tell(turned);
        }
        let result = self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n"));
        self.written += line.len() as u64 + 1;
        self.tell(result);
    }

    fn flush(&mut self) {
        let result = self.file.flush();
        self.tell(result);
    }

    fn turn(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let older = |number: usize| self.path.with_extension(format!("log.{number}"));
        for number in (1..KEPT_FILES).rev() {
            match std::fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, older(1))?;
        self.file = BufWriter::new(append(&self.path)?);
        self.written = 0;
        Ok(())
    }

    /// A full disk must not stop the router; it is told once, not with every line.
    fn tell(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(path = %self.path.display(), %error, "could not write the router's log");
            }
            Err(_) => {}
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8]) -> Entry<'_> {
        Entry {
            method: "GET",
            path,
            host: "hello.localhost",
            request_id: "8601b555-6a83-4c12-8269-97c8e32cdb22",
            client: Some("204.204.204.204".parse().unwrap()),
            secure: false,
            process: Some("web.1"),
            connect: Some(Duration::from_millis(1)),
            service: Duration::from_millis(18),
            status: 200,
            bytes: 13,
            code: None,
        }
    }

    #[test]
    fn lines_are_in_herokus_form() {
        assert_eq!(
            entry(b"/").line(),
            "at=info method=GET path=\"/\" host=hello.localhost request_id=8601b555-6a83-4c12-8269-97c8e32cdb22 \
             fwd=\"204.204.204.204\" dyno=web.1 connect=1ms service=18ms status=200 bytes=13 protocol=http"
        );
        let failed = Entry { code: Some(Code::H12), status: 503, connect: None, process: None, ..entry(b"/slow") };
        assert_eq!(
            failed.line(),
            "at=error code=H12 desc=\"Request timeout\" method=GET path=\"/slow\" host=hello.localhost \
             request_id=8601b555-6a83-4c12-8269-97c8e32cdb22 fwd=\"204.204.204.204\" dyno= connect= service=18ms \
             status=503 bytes=13 protocol=http"
        );
    }

    #[test]
    fn unknown_hosts_do_not_fill_the_log() {
        let mut strangers = Strangers::default();
        let written = (0..1000).filter(|_| strangers.admit(100).is_some()).count();
        assert_eq!(written as u64, STRANGERS_AT_ONCE);
        assert_eq!(strangers.admit(101), Some(1000 - STRANGERS_AT_ONCE));
        assert_eq!((strangers.admit(101), strangers.admit(101)), (Some(0), None));
        assert_eq!(strangers.admit(50), None, "a clock that goes back gives nothing");
        assert_eq!(strangers.admit(200), Some(2));
    }

    #[test]
    fn hostile_paths_stay_inside_their_quotes() {
        let line = entry(b"/\"\\\n\r\x1b[31m\xff at=error").line();
        assert!(line.contains(r#"path="/\"\\\x0a\x0d\x1b[31m\xff\x20at=error""#), "{line}");
        assert!(entry(&[b'a'; 5000]).line().len() < 2 * SHOWN);
    }

    #[test]
    fn the_file_and_the_memory_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.log");
        let mut file = Turning::open(path.clone(), 1000).unwrap();
        for number in 0..200 {
            file.line(&format!("line {number} {}", "x".repeat(80)));
        }
        file.flush();
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 3, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
        assert!(std::fs::read_to_string(&path).unwrap().contains("line 199"));

        let mut ring = Ring::default();
        for number in 0..2000 {
            ring.push(format!("line {number}"), 0);
        }
        assert_eq!((ring.lines.len(), ring.lines[0].0), (RING_LINES, 501));
        for _ in 0..2000 {
            ring.push("x".repeat(2000), 0);
        }
        assert!(ring.bytes <= RING_BYTES && ring.lines.len() == RING_BYTES / 2000);
    }
}
