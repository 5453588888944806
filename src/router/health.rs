//! Asks processes whether they are well: `GET health_path` over a connection dialled as a request's would be.
//!
//! Warming ones are asked all the time; active ones only until they answer, after a start of the router and after a
//! connection that failed. A thousand healthy apps cost nothing.
//! Any status below 500 is healthy. What was seen is kept in words, so that the report of a failed deploy can say it.
//! A check goes to the process's own supervisor and nowhere else: no redirect is followed.

use super::dial;
use super::live::{LiveTarget, Routes};
use super::table::TargetState;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of an answer that are looked at: only its first line matters.
const LOOKED_AT: usize = 1024;

/// Keeps one checker running per target that has to be asked, for as long as the router runs.
pub(super) async fn check_all(routes: Arc<Routes>) {
    let mut checked = HashSet::new();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel::<u64>();
    loop {
        for (state, target) in routes.live().targets.values() {
            if is_to_be_asked(*state, target) && checked.insert(target.number) {
                let (routes, target, done) = (routes.clone(), target.clone(), done.clone());
                tokio::spawn(async move {
                    check_while_needed(&routes, &target).await;
                    let _ = done.send(target.number);
                });
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
    loop {
        let Some((path, host)) = asked_as(routes, target) else { return };
        let limit = routes.options.connect_timeout;
        let seen = match tokio::time::timeout(limit, check(target, &path, &host, limit)).await {
            Ok(seen) => seen,
            Err(_) => Err(format!("timed out after {} s", limit.as_secs_f32())),
        };
        {
            let mut health = target.health();
            health.healthy = seen.is_ok();
            health.checks += 1;
            health.last_check = Some(match seen {
                Ok(seen) | Err(seen) => seen,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LAST_PAUSE);
    }
}

fn is_to_be_asked(state: TargetState, target: &LiveTarget) -> bool {
    match state {
        TargetState::Warming => true,
        TargetState::Active => !target.health().healthy,
        TargetState::Draining => false,
    }
}

/// The path and host to ask with, or `None` once the target is not to be asked any more.
fn asked_as(routes: &Routes, target: &Arc<LiveTarget>) -> Option<(String, String)> {
    let live = routes.live();
    let (state, same) = live.targets.get(&target.process)?;
    if !is_to_be_asked(*state, target) || !Arc::ptr_eq(same, target) {
        return None;
    }
    let route = live.table.apps.get(&target.app)?;
    let entry = route.targets.iter().find(|entry| entry.process == target.process)?;
    Some((entry.health_path.clone(), live.apps.get(&target.app)?.host.clone()))
}

/// What one check saw: `Ok` is healthy.
async fn check(target: &LiveTarget, path: &str, host: &str, limit: Duration) -> Result<String, String> {
    let mut stream = dial::dial(&target.socket, limit).await.map_err(|error| match error {
        dial::DialError::NoSupervisor(cause) | dial::DialError::Broken(cause) => format!("not reachable: {cause}"),
        other => other.to_string(),
    })?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Landfall-Health-Check\r\nAccept: */*\r\n\
         X-Forwarded-Proto: http\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("could not ask: {error}"))?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < LOOKED_AT {
        match stream.read_buf(&mut answer).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(format!("broke off: {error}")),
        }
    }
    match status_of(&answer) {
        Some(status) if status < 500 => Ok(format!("status {status}")),
        Some(status) => Err(format!("status {status}")),
        None if answer.is_empty() => Err("closed the connection without an answer".to_owned()),
        None => Err("answered with what is no HTTP".to_owned()),
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
}
