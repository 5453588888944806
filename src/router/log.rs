//! The router's log: a line per request in Heroku's form, to a bounded file and to a short memory per app.
//!
//! Requests never wait for it: lines gather in a bounded buffer until the one writer takes all of it, and what does not fit is
//! counted.

use super::errors::Code;
use super::tail::{Tail, TailLine};
use super::ticks::milliseconds;
use crate::clock::Timestamp;
use crate::domain::AppName;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of lines that may wait for the writer, and those that its buffer keeps room for; and of an ordinary line.
const WAITING: usize = 4 * 1024 * 1024;
const ROOM: usize = 256 * 1024;
const LINE_BYTES: usize = 256;
/// For how long lines gather that come one after the other. To wake the writer for each line would cost every request a switch
/// of threads; if many gathered, requests would wait for it where there is one core.
const GATHERED: Duration = Duration::from_millis(5);
/// Size at which the file is turned over, and how many turned-over ones are kept.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
const KEPT_FILES: usize = 2;
const _: () = assert!(2 * WAITING as u64 <= FILE_BYTES, "whatever is written at once has room in a new file");
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
    pub path: &'a str,
    pub host: &'a str,
    pub request_id: &'a str,
    pub client: &'a str,
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
    /// Appends it in Heroku's form; whatever a client wrote is escaped so that it can neither end its quotes nor the line.
    /// Every request comes by here, so no formatter is asked.
    fn write(&self, line: &mut String) {
        match self.code {
            Some(code) => {
                let _ = write!(line, "at=error code={code} desc=\"{}\" ", code.description());
            }
            None => line.push_str("at=info "),
        }
        line.push_str("method=");
        escape(self.method, line);
        line.push_str(" path=\"");
        escape(self.path, line);
        line.push_str("\" host=");
        escape(self.host, line);
        for text in
            [" request_id=", self.request_id, " fwd=\"", self.client, "\" dyno=", self.process.unwrap_or_default()]
        {
            line.push_str(text);
        }
        line.push_str(" connect=");
        if let Some(connect) = self.connect {
            number(milliseconds(connect), line);
            line.push_str("ms");
        }
        line.push_str(" service=");
        number(milliseconds(self.service), line);
        line.push_str("ms status=");
        number(u64::from(self.status), line);
        line.push_str(" bytes=");
        number(self.bytes, line);
        line.push_str(if self.secure { " protocol=https" } else { " protocol=http" });
    }
}

fn number(mut number: u64, line: &mut String) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    while first == digits.len() || number > 0 {
        first -= 1;
        digits[first] += (number % 10) as u8;
        number /= 10;
    }
    line.push_str(std::str::from_utf8(&digits[first..]).unwrap_or_default());
}

fn escape(text: &str, line: &mut String) {
    let shown = &text.as_bytes()[..text.len().min(SHOWN)];
    let is_plain = |byte: &u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\');
    match text.get(..shown.len()) {
        Some(plain) if shown.iter().all(is_plain) => line.push_str(plain),
        _ => {
            for byte in shown {
                match byte {
                    b'"' | b'\\' => {
                        line.push('\\');
                        line.push(char::from(*byte));
                    }
                    byte if is_plain(byte) => line.push(char::from(*byte)),
                    _ => {
                        let _ = write!(line, "\\x{byte:02x}");
                    }
                }
            }
        }
    }
    if text.len() > SHOWN {
        line.push_str("...");
    }
}

/// Where lines go; cheap to clone.
#[derive(Clone)]
pub(super) struct Log(Arc<Open>);

/// What all of a log's ends share. The writer ends after this.
struct Open {
    queue: Arc<Queue>,
    memory: Arc<Memory>,
    /// The least of the cursors that it gives.
    first: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.came.notify_one();
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

/// What the writer has not taken yet.
#[derive(Default)]
struct Waiting {
    batch: Batch,
    ended: bool,
}

/// What the writer takes at once.
#[derive(Default)]
struct Batch {
    /// Lines with their ends.
    text: String,
    steps: Vec<Step>,
    /// Lines of each app for which there was no room after these.
    lost: HashMap<AppName, u64>,
}

enum Step {
    /// The text up to there is one line of the app, or of none.
    Line(Option<Arc<AppName>>, usize),
    Forget(AppName),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut waiting: MutexGuard<'_, Waiting>, step: Step) {
        waiting.batch.steps.push(step);
        if waiting.batch.steps.len() == 1 {
            drop(waiting);
            self.came.notify_one();
        }
    }

    /// Whether there was room for a line.
    fn line(&self, app: Option<&Arc<AppName>>, line: &str) -> bool {
        let mut waiting = self.lock();
        let text = &mut waiting.batch.text;
        if text.len() + line.len() >= WAITING {
            if let Some(app) = app {
                *waiting.batch.lost.entry(AppName::clone(app)).or_default() += 1;
            }
            return false;
        }
        text.push_str(line);
        text.push('\n');
        let end = text.len();
        self.push(waiting, Step::Line(app.cloned(), end));
        true
    }

    /// Waits for something to come and gives an empty batch for it; `false` after the end.
    fn take(&self, batch: &mut Batch) -> bool {
        let waiting = self.came.wait_while(self.lock(), |waiting| waiting.batch.steps.is_empty() && !waiting.ended);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(batch, &mut waiting.batch);
        !batch.steps.is_empty()
    }
}

thread_local! {
    /// The line that is being written: none has to ask for memory of its own.
    static LINE: RefCell<Line> = const { RefCell::new(Line { text: String::new(), second: i64::MIN, time: String::new() }) };
}

struct Line {
    text: String,
    /// The last line's second since the epoch, and its time as it was written: most lines come within the same one.
    second: i64,
    time: String,
}

impl Line {
    fn begin(&mut self, now: Timestamp) {
        let (second, millisecond) = (now.0.div_euclid(1000), now.0.rem_euclid(1000));
        if self.second != second {
            self.second = second;
            self.time = now.rfc3339();
        }
        self.text.clear();
        self.text.push_str(self.time.trim_end_matches('Z'));
        self.text.push('.');
        for tens in [100, 10, 1] {
            self.text.push(char::from(b'0' + (millisecond / tens % 10) as u8));
        }
        self.text.push_str("Z landfall[router]: ");
    }
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

/// One app's last lines. Cursors go up over restarts of the router, since they begin with the time.
#[derive(Default)]
struct Ring {
    lines: VecDeque<(u64, Arc<str>)>,
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
    pub fn start(folder: &Path, now: Timestamp) -> io::Result<Log> {
        let file = Turning::open(folder.join("router.log"), FILE_BYTES)?;
        let (queue, memory) = (Arc::<Queue>::default(), Arc::<Memory>::default());
        // A thousand lines a millisecond are more than there can be.
        let first = u64::try_from(now.0).unwrap_or(0).saturating_mul(1000);
        let log = Log(Arc::new(Open { queue: queue.clone(), memory: memory.clone(), first }));
        std::thread::Builder::new()
            .name("router-log".into())
            .spawn(move || write_lines(file, &queue, &memory, first))?;
        Ok(log)
    }

    pub fn request(&self, app: Option<&Arc<AppName>>, now: Timestamp, entry: &Entry<'_>) {
        if app.is_none() {
            let mut strangers = self.0.memory.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            match strangers.admit(now.0 / 1000) {
                None => return,
                Some(0) => {}
                Some(count) => self.line(None, now, |line| {
                    let _ = write!(line, "at=info desc=\"Unknown hosts\" left_out={count}");
                }),
            }
        }
        self.line(app, now, |line| entry.write(line));
    }

    fn line(&self, app: Option<&Arc<AppName>>, now: Timestamp, write: impl FnOnce(&mut String)) {
        LINE.with_borrow_mut(|line| {
            line.begin(now);
            write(&mut line.text);
            if !self.0.queue.line(app, &line.text) {
                self.0.memory.dropped.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Takes in lines that another router has written, for whoever reads on here.
    pub fn absorb(&self, lines: Vec<TailLine>) {
        if lines.is_empty() {
            return;
        }
        let (mut rings, mut tail) = (self.0.memory.lock(), self.0.memory.tail());
        for line in lines {
            rings.entry(line.app.clone()).or_default().keep(&mut tail, Arc::new(line.app), &line.line, self.0.first);
        }
    }

    /// Drops the memory of an app that is gone.
    pub fn forget(&self, app: &AppName) {
        self.0.queue.push(self.0.queue.lock(), Step::Forget(app.clone()));
    }

    /// The lines of all apps after a cursor, oldest first.
    pub fn tail(&self, after: u64, limit: usize) -> (Vec<TailLine>, u64) {
        self.0.memory.tail().after(after, limit)
    }

    /// The lines after a cursor (0 for all that are kept), oldest first, at most `limit`.
    pub fn after(&self, app: &AppName, cursor: u64, limit: usize) -> Vec<LogLine> {
        let rings = self.0.memory.lock();
        let lines = rings.get(app).into_iter().flat_map(|ring| &ring.lines);
        let lines = lines.filter(|(number, _)| *number > cursor).take(limit);
        lines.map(|(number, line)| LogLine { cursor: *number, line: line.to_string() }).collect()
    }

    /// Lines that did not fit into the queue since the start.
    pub fn dropped(&self) -> u64 {
        self.0.memory.dropped.load(Ordering::Relaxed)
    }
}

impl Memory {
    fn keep(&self, batch: &mut Batch, first: u64) {
        let (mut rings, mut tail) = (self.lock(), self.tail());
        let mut start = 0;
        for step in batch.steps.drain(..) {
            match step {
                Step::Line(app, end) => {
                    let line = batch.text[start..end].trim_end_matches('\n');
                    start = end;
                    let Some(app) = app else { continue };
                    if !rings.contains_key(app.as_ref()) {
                        rings.insert(AppName::clone(&app), Ring::default());
                    }
                    if let Some(ring) = rings.get_mut(app.as_ref()) {
                        ring.keep(&mut tail, app, line, first);
                    }
                }
                Step::Forget(app) => {
                    rings.remove(&app);
                }
            }
        }
        // Whoever reads the next line sees by its number that some are missing.
        for (app, count) in batch.lost.drain() {
            if let Some(ring) = rings.get_mut(&app) {
                ring.count += count;
            }
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AppName, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn keep(&mut self, tail: &mut Tail, app: Arc<AppName>, line: &str, first: u64) {
        let line = Arc::<str>::from(line);
        self.count += 1;
        tail.push(app, self.count, line.clone());
        self.push(line, first);
    }

    fn push(&mut self, line: Arc<str>, first: u64) {
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

fn write_lines(mut file: Turning, queue: &Queue, memory: &Memory, first: u64) {
    // One wake-up and one write for whatever has gathered. A line that comes alone is written at once.
    let mut woken = Instant::now();
    let mut batch = Batch::default();
    while queue.take(&mut batch) {
        file.write(&batch.text);
        memory.keep(&mut batch, first);
        batch.text.clear();
        batch.text.shrink_to(ROOM);
        batch.steps.shrink_to(ROOM / LINE_BYTES);
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
    file: File,
    /// The last write may have ended within a line.
    torn: bool,
    failing: bool,
}

impl Turning {
    fn open(path: PathBuf, limit: u64) -> io::Result<Turning> {
        let (file, torn) = begin(&path)?;
        Ok(Turning { path, limit, file, torn, failing: false })
    }

    /// Writes whole lines. A file ends with the last one that it has room for.
    fn write(&mut self, lines: &str) {
        let room = usize::try_from(self.limit.saturating_sub(self.written())).unwrap_or(usize::MAX);
        let fits = match lines.as_bytes().get(..room) {
            Some(within) => within.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1),
            None => lines.len(),
        };
        let (now, later) = lines.split_at(fits);
        let mut result = self.append(now);
        if !later.is_empty() {
            let turned = self.turn();
            // Where no room could be made, it grows.
            result = result.and(turned).and(self.append(later));
        }
        self.tell(result);
    }

    /// Bytes in the file that is at our path. A router that took our place writes to the same one, and turns it over; or
    /// somebody took it away.
    fn written(&mut self) -> u64 {
        let place = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.metadata().ok();
        let there = std::fs::metadata(&self.path).ok();
        if there.as_ref().map(place) != ours.as_ref().map(place)
            && let Ok(begun) = begin(&self.path)
        {
            (self.file, self.torn) = begun;
        }
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn append(&mut self, lines: &str) -> io::Result<()> {
        // Half a line must not become the beginning of another.
        let end = if self.torn { "\n" } else { "" };
        let result = self.file.write_all(end.as_bytes()).and_then(|()| self.file.write_all(lines.as_bytes()));
        self.torn = result.is_err();
        result
    }

    fn turn(&mut self) -> io::Result<()> {
        let older = |number: usize| self.path.with_extension(format!("log.{number}"));
        for number in (1..KEPT_FILES).rev() {
            match std::fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match std::fs::rename(&self.path, older(1)) {
            // It was moved before, and no new one could be opened; or somebody took it away.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = append(&self.path)?;
        self.torn = false;
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

/// A file to write to, and whether what is in it ends within a line: who wrote before us may have met a full disk, or its end.
fn begin(path: &Path) -> io::Result<(File, bool)> {
    let file = append(path)?;
    let metadata = file.metadata()?;
    let torn = metadata.is_file() && metadata.len() > 0 && last_byte(path)? != b'\n';
    Ok((file, torn))
}

fn last_byte(path: &Path) -> io::Result<u8> {
    let mut last = [0];
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last[0])
}

fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry<'_> {
        Entry {
            method: "GET",
            path,
            host: "hello.localhost",
            request_id: "8601b555-6a83-4c12-8269-97c8e32cdb22",
            client: "204.204.204.204",
            secure: false,
            process: Some("web.1"),
            connect: Some(Duration::from_millis(1)),
            service: Duration::from_millis(18),
            status: 200,
            bytes: 13,
            code: None,
        }
    }

    fn line(entry: &Entry<'_>) -> String {
        let mut line = String::new();
        entry.write(&mut line);
        line
    }

    #[test]
    fn lines_are_in_herokus_form() {
        assert_eq!(
            line(&entry("/")),
            "at=info method=GET path=\"/\" host=hello.localhost request_id=8601b555-6a83-4c12-8269-97c8e32cdb22 \
             fwd=\"204.204.204.204\" dyno=web.1 connect=1ms service=18ms status=200 bytes=13 protocol=http"
        );
        let failed = Entry { code: Some(Code::H12), status: 503, connect: None, process: None, ..entry("/slow") };
        assert_eq!(
            line(&failed),
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
        let hostile = line(&entry("/\"\\\n\r\x1b[31mÿ at=error"));
        assert!(hostile.contains(r#"path="/\"\\\x0a\x0d\x1b[31m\xc3\xbf\x20at=error""#), "{hostile}");
        assert!(line(&entry(&"a".repeat(5000))).len() < 2 * SHOWN);
        assert!(line(&entry(&format!("/{}", "é".repeat(5000)))).len() < 5 * SHOWN, "cut within a letter");
    }

    #[test]
    fn what_waits_for_the_writer_is_bounded_and_taken_whole() {
        let (queue, app) = (Queue::default(), Arc::new("one".parse::<AppName>().unwrap()));
        let line = "x".repeat(1023);
        let lines = (0..).take_while(|_| queue.line(Some(&app), &line)).count();
        assert_eq!(lines, WAITING / 1024);
        queue.lock().ended = true;
        let (mut batch, memory) = (Batch::default(), Memory::default());
        assert!(queue.take(&mut batch));
        assert_eq!((batch.text.len(), batch.steps.len()), (lines * 1024, lines));
        memory.keep(&mut batch, 1);
        batch.text.clear();
        let (tail, _) = memory.tail().after(0, 10_000);
        assert!(tail.len() == lines && tail.iter().all(|kept| kept.line == line && kept.app == *app));
        assert!(queue.line(None, "later") && queue.take(&mut batch) && batch.text == "later\n");
        batch = Batch::default();
        assert!(!queue.take(&mut batch), "the end");
    }

    #[test]
    fn what_a_full_disk_cut_off_begins_no_other_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.log");
        let mut file = Turning::open(path.clone(), 1000).unwrap();
        file.write("one\nhal");
        let aside = folder.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        file.write("f\ntwo\n");
        assert!(file.failing);
        std::fs::rename(&aside, &path).unwrap();
        file.write("three\n");
        file.write("four\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nhal\nthree\nfour\n");
        assert!(!file.failing);
        file.write("hal");
        let mut next = Turning::open(path.clone(), 30).unwrap();
        next.write("five\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nhal\nthree\nfour\nhal\nfive\n");
        // Taken away meanwhile: the next line begins a new one.
        std::fs::remove_file(&path).unwrap();
        next.write("six\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "six\n");
    }

    #[test]
    fn two_routers_that_write_to_one_file_turn_it_over_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.log");
        let mut both = [0, 1].map(|_| Turning::open(path.clone(), 1000).unwrap());
        for number in 0..60 {
            both[number % 2].write(&format!("line {number:02} {}\n", "x".repeat(30)));
        }
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let all = [text("router.log.2"), text("router.log.1"), text("router.log")];
        assert!(all.iter().all(|text| text.len() <= 1000), "{all:#?}");
        let all = all.concat();
        let numbers: Vec<&str> = all.lines().map(|line| &line[5..7]).collect();
        let newest: Vec<String> = (60 - numbers.len()..60).map(|number| format!("{number:02}")).collect();
        assert!(numbers.len() > 45 && numbers == newest, "{numbers:?}");
    }

    #[test]
    fn the_file_and_the_memory_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.log");
        let mut file = Turning::open(path.clone(), 1000).unwrap();
        for number in 0..200 {
            file.write(&format!("line {number} {}\n", "x".repeat(80)));
        }
        file.write(&(200..220).map(|number| format!("line {number}\n")).collect::<String>());
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 3, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
        assert!(std::fs::read_to_string(&path).unwrap().contains("line 219\n"));

        let mut ring = Ring::default();
        for number in 0..2000 {
            ring.push(format!("line {number}").into(), 0);
        }
        assert_eq!((ring.lines.len(), ring.lines[0].0), (RING_LINES, 501));
        for _ in 0..2000 {
            ring.push("x".repeat(2000).into(), 0);
        }
        assert!(ring.bytes <= RING_BYTES && ring.lines.len() == RING_BYTES / 2000);
    }
}
