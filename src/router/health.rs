//! Asks processes whether they are well, over a connection dialled as a request's would be: `GET` of a path, or only
//! the connection where that is all that the app promises. Before a process counts as healthy for the first time, it
//! is asked for the paths that warm it up.
//!
//! Warming ones are asked all the time; active ones until they answer, after a start of the router, after a
//! connection that failed, and every so often where the app asks for that. A thousand healthy apps cost nothing.
//! Any status below 500 is healthy. What was seen is kept in words, so that the report of a failed deploy can say it.
//! A check goes to the process's own supervisor and nowhere else: no redirect is followed.

use super::dial;
use super::live::{LiveTarget, Routes};
use super::table::{Target, TargetState};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Checks of a process that serves which must fail in a row before others are preferred.
const FAILURES: u32 = 2;
/// How much of an answer is read after its status is known, and for how long: an app whose connection is closed while
/// it writes logs an error about it.
const READ_BYTES: usize = 256 * 1024;
const READ_TIME: Duration = Duration::from_secs(1);
/// What a request that warms a process up may take, as long as any request's first byte.
const WARMUP_TIME: Duration = Duration::from_secs(30);

/// Keeps one checker running per target that has to be asked, for as long as the router runs.
pub(super) async fn check_all(routes: Arc<Routes>) {
    let mut checked = HashSet::new();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel::<u64>();
    loop {
        {
            let live = routes.live();
            for (state, target) in live.targets.values() {
                if is_to_be_asked(*state, target) && checked.insert(target.number) {
                    let (routes, target, done) = (routes.clone(), target.clone(), done.clone());
                    tokio::spawn(async move {
                        check_while_needed(&routes, &target).await;
                        let _ = done.send(target.number);
                    });
                }
            }
        }
        tokio::select! {
            () = routes.changed.notified() => {}
            number = finished.recv() => { number.map(|number| checked.remove(&number)); }
        }
    }
}

async fn check_while_needed(routes: &Routes, target: &Arc<LiveTarget>) {
    let mut pause = FIRST_PAUSE;
    let mut failures = 0;
    loop {
        let Some(asked) = asked_as(routes, target) else { return };
        let seen = match check(target, &asked, routes.options.connect_timeout).await {
            Ok(seen) if asked.state == TargetState::Warming => warm_up(target, &asked, seen).await,
            seen => seen,
        };
        let healthy = seen.is_ok();
        failures = if healthy { 0 } else { failures + 1 };
        {
            let mut health = target.health();
            health.checks += 1;
            // One answer of 500 says little of a process that serves; that it can't be reached is seen by requests.
            health.healthy = healthy || (health.healthy && asked.state == TargetState::Active && failures < FAILURES);
            target.set_down(!health.healthy && asked.state == TargetState::Active);
            health.last_check = Some(match seen {
                Ok(seen) | Err(seen) => seen,
            });
        }
        if healthy {
            routes.turned.notify_waiters();
        }
        let wait = match asked.interval {
            Some(interval) if healthy && asked.state == TargetState::Active => interval,
            _ => pause,
        };
        pause = (pause * 3 / 2).min(LAST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A request could not get through: the next regular look may be far away.
            () = target.failure.notified() => pause = FIRST_PAUSE,
        }
    }
}

fn is_to_be_asked(state: TargetState, target: &LiveTarget) -> bool {
    match state {
        TargetState::Warming => true,
        TargetState::Active => target.checked_every() || !target.health().healthy,
        TargetState::Draining => false,
    }
}

/// How a target is to be asked.
struct Asked {
    state: TargetState,
    host: String,
    /// `None` where a connection is enough.
    path: Option<String>,
    warmup: Vec<String>,
    interval: Option<Duration>,
}

/// `None` once the target is not to be asked any more.
fn asked_as(routes: &Routes, target: &Arc<LiveTarget>) -> Option<Asked> {
    let live = routes.live();
    let (state, same) = live.targets.get(&target.process)?;
    if !is_to_be_asked(*state, target) || !Arc::ptr_eq(same, target) {
        return None;
    }
    let route = live.table.apps.get(&target.app)?;
    let entry: &Target = route.targets.iter().find(|entry| entry.process == target.process)?;
    Some(Asked {
        state: *state,
        host: live.apps.get(&target.app)?.host.clone(),
        path: (!entry.health_tcp).then(|| entry.health_path.clone()),
        warmup: entry.warmup.clone(),
        interval: entry.health_seconds.map(Duration::from_secs),
    })
}

/// What one check saw: `Ok` is healthy.
async fn check(target: &LiveTarget, asked: &Asked, limit: Duration) -> Result<String, String> {
    let late = |_| Err(format!("timed out after {} s", limit.as_secs_f32()));
    let Some(path) = &asked.path else {
        let connected = tokio::time::timeout(limit, connect(target, limit)).await;
        return connected.map_or_else(late, |connected| connected.map(|_| "connected".to_owned()));
    };
    let (status, answer) = match tokio::time::timeout(limit, ask(target, path, &asked.host, limit)).await {
        Ok(answered) => answered?,
        Err(elapsed) => return late(elapsed),
    };
    answer.read_out().await;
    if status < 500 { Ok(format!("status {status}")) } else { Err(format!("status {status}")) }
}

/// Asks for the paths that fill an app's caches, once in a process's life. What they answer is told, but it does not
/// hold back a release that is healthy.
async fn warm_up(target: &LiveTarget, asked: &Asked, seen: String) -> Result<String, String> {
    if asked.warmup.is_empty() || target.health().warm {
        return Ok(seen);
    }
    let mut seen = seen;
    for path in &asked.warmup {
        match tokio::time::timeout(WARMUP_TIME, ask(target, path, &asked.host, WARMUP_TIME)).await {
            Ok(Ok((status, answer))) => {
                answer.read_out().await;
                if status >= 500 {
                    seen.push_str(&format!(", warm-up {path}: status {status}"));
                }
            }
            Ok(Err(error)) => return Err(format!("warm-up {path}: {error}")),
            Err(_) => seen.push_str(&format!(", warm-up {path}: nothing in {} s", WARMUP_TIME.as_secs())),
        }
    }
    target.health().warm = true;
    Ok(seen)
}

async fn connect(target: &LiveTarget, limit: Duration) -> Result<TcpStream, String> {
    dial::dial(&target.socket, limit).await.map_err(|error| match error {
        dial::DialError::NoSupervisor(cause) | dial::DialError::Broken(cause) => format!("not reachable: {cause}"),
        other => other.to_string(),
    })
}

/// An answer of which at least the status line has come.
struct Answer {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// One request, up to its answer's status.
async fn ask(target: &LiveTarget, path: &str, host: &str, limit: Duration) -> Result<(u16, Answer), String> {
    let mut stream = connect(target, limit).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Landfall-Health-Check\r\nAccept: */*\r\n\
         X-Forwarded-Proto: http\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("could not ask: {error}"))?;
    let mut bytes = Vec::new();
    while !bytes.contains(&b'\n') && bytes.len() < 1024 {
        match stream.read_buf(&mut bytes).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(format!("broke off: {error}")),
        }
    }
    match status_of(&bytes) {
        Some(status) => Ok((status, Answer { stream, bytes })),
        None if bytes.is_empty() => Err("closed the connection without an answer".to_owned()),
        None => Err("answered with what is no HTTP".to_owned()),
    }
}

impl Answer {
    /// Reads what belongs to the answer, within bounds, so that the app is not cut off while it writes.
    async fn read_out(mut self) {
        let read = async {
            while !is_whole(&self.bytes) && self.bytes.len() < READ_BYTES {
                match self.stream.read_buf(&mut self.bytes).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(READ_TIME, read).await;
    }
}

/// Whether an answer is known to have ended, for apps that keep the connection although they were asked to close it.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let value = |name: &str| {
        text.split("\r\n")
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let body = bytes.len() - head - 4;
    match (value("content-length").and_then(|length| length.parse::<usize>().ok()), value("transfer-encoding")) {
        (Some(length), _) => body >= length,
        (None, Some(_)) => bytes.ends_with(b"0\r\n\r\n"),
        (None, None) => matches!(status_of(bytes), Some(204 | 304)),
    }
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let status = rest.get(..3).filter(|_| matches!(rest.as_bytes().get(3), None | Some(b' ')))?;
    status.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_line_counts() {
        for (answer, status) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/1.1 204 ", Some(204)),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/2 200\r\n", None),
            ("200 OK\r\n", None),
            ("HTTP/1.1 abc\r\n", None),
            ("", None),
        ] {
            assert_eq!(status_of(answer.as_bytes()), status, "{answer:?}");
        }
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        for (answer, whole) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\n\r\nup to the end of the connection", false),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", false),
        ] {
            assert_eq!(is_whole(answer.as_bytes()), whole, "{answer:?}");
        }
    }
}
