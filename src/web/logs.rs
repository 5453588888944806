//! Logs as pages and the API read them: what still runs is asked from the platform, what is gone is read from the file
//! that was kept, and an app's processes and its requests are merged by time.
//!
//! A reader holds a cursor, opaque to it, and comes back with it: no line is told twice, and one that was written
//! between two visits is told although its process is gone by then.

use crate::clock::Timestamp;
use crate::domain::{AppName, ProcessId};
use crate::platform::{LogCursor, LogLine, LogStream, PlatformError};
use crate::reconcile::{Trouble, World, label, log_file, read_kept};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

/// Lines that one answer holds at most.
pub const MOST: usize = 2_000;
/// Files of processes that are gone which the first look at an app's log reads.
const KEPT_FILES: usize = 8;
/// Bytes of one such file, from its end; and of one that is read line by line, which is more than a log that is kept may have.
const KEPT_BYTES: u64 = 8 << 20;
const WHOLE_BYTES: u64 = 32 << 20;
/// For how long a cursor remembers how far it read the file of a process that is gone.
const REMEMBERED: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    pub at: String,
    #[serde(skip)]
    pub moment: Timestamp,
    /// `web.1`, `release.1`, `router`.
    pub process: String,
    pub stream: LogStream,
    pub text: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Page {
    pub lines: Vec<Line>,
    /// Give it back as `after`.
    pub next: String,
    /// Nothing will follow: every process of it is over.
    pub ended: bool,
    /// Lines that are not kept any more.
    pub dropped: u64,
}

/// How far a reader has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// When it was given, in milliseconds since 1970.
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "p", default)]
    places: BTreeMap<ProcessId, LogCursor>,
    /// The router's own cursor, and since when that router runs.
    #[serde(rename = "r", default)]
    requests: u64,
    #[serde(rename = "s", default)]
    router_since: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("not a cursor of this log")]
pub struct NotACursor;

impl Cursor {
    pub fn read(text: &str) -> Result<Cursor, NotACursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotACursor)?;
        serde_json::from_slice(&bytes).map_err(|_| NotACursor)
    }

    pub fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// RFC 3339 with milliseconds: lines of one second keep their order.
pub fn moment(at: Timestamp) -> String {
    let whole = at.rfc3339();
    format!("{}.{:03}Z", whole.trim_end_matches('Z'), at.0.rem_euclid(1000))
}

fn line(process: &str, line: LogLine) -> Line {
    Line { at: moment(line.at), moment: line.at, process: process.to_owned(), stream: line.stream, text: line.text }
}

/// All processes of an app and its requests; the last `most` lines when nothing was read before.
pub async fn of_app(world: &World, app: &AppName, after: Option<Cursor>, most: usize) -> Result<Page, Trouble> {
    let most = most.clamp(1, MOST);
    // All that is kept of an app's processes is no log that anybody reads from its first line on.
    let after = after.filter(|cursor| *cursor != Cursor::default());
    let first = after.is_none();
    let before = after.unwrap_or_default();
    let now = world.now();
    let mut next = Cursor { at: now.0, ..Cursor::default() };
    let mut lines = Vec::new();
    let mut dropped = 0;
    let prefix = format!("{app}.v");
    let mut running = Vec::new();
    for status in world.platform.list().await? {
        if status.labels.get(label::APP).map(String::as_str) == Some(app.as_str()) {
            running.push(status.id);
        }
    }
    for id in &running {
        let place = before.places.get(id).copied().unwrap_or_default();
        let read = from_platform(world, id, place, most, first).await?;
        let Some(read) = read else { continue };
        dropped += read.dropped;
        lines.extend(read.lines.into_iter().map(|text| line(name_of(id), text)));
        next.places.insert(id.clone(), read.next);
    }
    for (id, written) in kept_files(world, &prefix).await? {
        if running.contains(&id) {
            continue;
        }
        let place = before.places.get(&id).copied();
        let fresh = written.0 >= before.at;
        if place.is_none() && !first && !fresh {
            continue;
        }
        let read = from_file(world, &id, place.unwrap_or_default(), usize::MAX).await?;
        let skipped = read.lines.len().saturating_sub(most);
        lines.extend(read.lines.into_iter().skip(if first { skipped } else { 0 }).map(|text| line(name_of(&id), text)));
        if now.since(written) < REMEMBERED {
            next.places.insert(id, read.next);
        }
    }
    requests(world, app, &before, &mut next, &mut lines).await;
    lines.sort_by_key(|line| line.moment);
    if lines.len() > most && first {
        lines.drain(..lines.len() - most);
    }
    Ok(Page { lines, next: next.write(), ended: false, dropped })
}

/// One process, whether it runs, is over, or is gone.
pub async fn of_process(world: &World, id: &ProcessId, after: Option<Cursor>, most: usize) -> Result<Page, Trouble> {
    let most = most.clamp(1, MOST);
    let first = after.is_none();
    let place = after.unwrap_or_default().places.get(id).copied().unwrap_or_default();
    let (read, known) = match from_platform(world, id, place, most, first).await? {
        Some(read) => (read, true),
        None => {
            let mut read = from_file(world, id, place, if first { usize::MAX } else { most }).await?;
            let skipped = read.lines.len().saturating_sub(most);
            if first && skipped > 0 {
                read.dropped += skipped as u64;
                read.lines.drain(..skipped);
            }
            let known = tokio::fs::try_exists(log_file(world, id)).await?;
            (read, known)
        }
    };
    let next = Cursor { at: world.now().0, places: [(id.clone(), read.next)].into(), ..Cursor::default() };
    let lines = read.lines.into_iter().map(|text| line(name_of(id), text)).collect();
    // What is not known yet may be about to start.
    Ok(Page { lines, next: next.write(), ended: known && read.ended, dropped: read.dropped })
}

/// `web.1` of `hello-pr-1.v3.web.1.a1`; `test.0` of `run-17.test.0.a1`; `build` of `build.3f2a.a1`.
pub fn name_of(id: &ProcessId) -> &str {
    let text = id.as_str();
    let without_attempt = text.rsplit_once(".a").map_or(text, |(rest, _)| rest);
    match without_attempt.split_once('.') {
        Some(("build", _)) => "build",
        Some(("setup", _)) => "test-setup",
        Some((_, rest)) if rest.starts_with('v') => rest.split_once('.').map_or(rest, |(_, name)| name),
        Some((_, rest)) => rest,
        None => without_attempt,
    }
}

struct Read {
    lines: Vec<LogLine>,
    next: LogCursor,
    ended: bool,
    dropped: u64,
}

/// `None` when the platform does not know the process (any more). The `first` look reads on to the end.
async fn from_platform(
    world: &World,
    id: &ProcessId,
    mut place: LogCursor,
    most: usize,
    first: bool,
) -> Result<Option<Read>, Trouble> {
    let mut read = Read { lines: Vec::new(), next: place, ended: false, dropped: 0 };
    loop {
        let page = match world.platform.logs(id, place, if first { 5_000 } else { most }).await {
            Ok(page) => page,
            Err(PlatformError::Unknown(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let empty = page.lines.is_empty();
        read.dropped += page.dropped;
        read.lines.extend(page.lines);
        let surplus = read.lines.len().saturating_sub(most);
        if first && surplus > 0 {
            read.dropped += surplus as u64;
            read.lines.drain(..surplus);
        }
        place = page.next;
        (read.next, read.ended) = (place, page.ended);
        if empty || !first || page.ended {
            return Ok(Some(read));
        }
    }
}

/// At most so many lines of the kept file from one on; a file that is not there (yet) has no lines.
async fn from_file(world: &World, id: &ProcessId, place: LogCursor, most: usize) -> Result<Read, Trouble> {
    let bytes = match read_end(world, id, if most == usize::MAX { KEPT_BYTES } else { WHOLE_BYTES }).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Read { lines: Vec::new(), next: place, ended: false, dropped: 0 });
        }
        Err(error) => return Err(error.into()),
    };
    let mut lines: Vec<(u64, LogLine)> = read_kept(&bytes).filter(|(number, _)| *number >= place.line).collect();
    let ended = lines.len() <= most;
    lines.truncate(most);
    let next = LogCursor { offset: place.offset, line: lines.last().map_or(place.line, |(number, _)| number + 1) };
    let lines: Vec<LogLine> = lines.into_iter().map(|(_, line)| line).collect();
    let dropped = (next.line - place.line).saturating_sub(lines.len() as u64);
    Ok(Read { lines, next, ended, dropped })
}

async fn read_end(world: &World, id: &ProcessId, most: u64) -> std::io::Result<Vec<u8>> {
    use tokio::io::{AsyncReadExt, AsyncSeekExt};
    let mut file = tokio::fs::File::open(log_file(world, id)).await?;
    let length = file.metadata().await?.len();
    if length > most {
        file.seek(std::io::SeekFrom::Start(length - most)).await?;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Kept files of an app's processes with the time of their writing, the newest ones, newest first.
async fn kept_files(world: &World, prefix: &str) -> Result<Vec<(ProcessId, Timestamp)>, Trouble> {
    let mut found = Vec::new();
    let mut folder = match tokio::fs::read_dir(world.folder("logs")).await {
        Ok(folder) => folder,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    while let Some(entry) = folder.next_entry().await? {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".jsonl")) else { continue };
        let Some(id) = name.strip_prefix(prefix).and_then(|_| name.parse::<ProcessId>().ok()) else { continue };
        let Ok(metadata) = entry.metadata().await else { continue };
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        found.push((id, Timestamp::default() + since));
    }
    found.sort_by_key(|found| std::cmp::Reverse(found.1));
    found.truncate(KEPT_FILES);
    Ok(found)
}

/// The router's lines of the app. A router that does not answer is no reason to show no log.
async fn requests(world: &World, app: &AppName, before: &Cursor, next: &mut Cursor, lines: &mut Vec<Line>) {
    let Ok(status) = world.router.status().await else {
        (next.requests, next.router_since) = (before.requests, before.router_since);
        return;
    };
    let after = if status.started_at.0 == before.router_since { before.requests } else { 0 };
    (next.requests, next.router_since) = (after, status.started_at.0);
    let Ok(seen) = world.router.logs(app, after).await else { return };
    for entry in seen {
        next.requests = next.requests.max(entry.cursor);
        let (at, rest) = entry.line.split_once(' ').unwrap_or(("", &entry.line));
        let moment_of = Timestamp::parse_rfc3339(at).unwrap_or_default();
        let text = rest.split_once("]: ").map_or(rest, |(_, text)| text);
        lines.push(Line {
            at: moment(moment_of),
            moment: moment_of,
            process: "router".to_owned(),
            stream: LogStream::System,
            text: text.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_called_what_people_call_them() {
        for (id, name) in [
            ("hello-pr-1.v3.web.1.a1", "web.1"),
            ("hello.v12.my-worker.2.a13", "my-worker.2"),
            ("run-17.test.0.a1", "test.0"),
            ("build.3f2a99.a1", "build"),
        ] {
            assert_eq!(name_of(&id.parse().unwrap()), name);
        }
    }

    #[test]
    fn a_cursor_is_its_own_text_and_hostile_ones_are_refused() {
        let cursor = Cursor {
            at: 7,
            places: [("hello.v1.web.1.a1".parse().unwrap(), LogCursor { offset: 10, line: 2 })].into(),
            requests: 3,
            router_since: 4,
        };
        assert_eq!(Cursor::read(&cursor.write()).unwrap(), cursor);
        let hostile = URL_SAFE_NO_PAD.encode(br#"{"t":1,"p":{"../../etc/passwd":{"offset":0,"line":0}}}"#);
        for text in ["", "x", "%%%", hostile.as_str()] {
            assert!(Cursor::read(text).is_err(), "{text}");
        }
    }
}
