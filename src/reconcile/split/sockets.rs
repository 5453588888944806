//! A socket for each process of a node, in a folder of its own that its sandbox sees: through it nobody can speak for
//! another node. The folder is the wish; who listens follows it, at the start of the control plane too.

use super::answer::{Who, answer};
use crate::ci::wire::{self, Answer, MOST_ANSWER, MOST_REQUEST};
use crate::domain::*;
use crate::platform::Bind;
use crate::reconcile::{Trouble, World, build};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

/// Where nodes find what is theirs, inside the sandbox.
const INSIDE_FOLDER: &str = "/landfall/node";
/// Where a process finds Landfall itself.
pub(in crate::reconcile) const INSIDE_PROGRAM: &str = "/landfall/landfall";
/// How often it is looked which folders there are.
const LOOK: Duration = Duration::from_millis(100);
/// Connections of one node at a time; a node needs one.
const MOST_CONNECTIONS: usize = 4;
/// How long a node may be silent on a connection, and how long one frame may take.
const SILENCE: Duration = Duration::from_secs(600);
const FRAME: Duration = Duration::from_secs(20);
/// The least time from one answer to the next on a connection: a node has little to say, and whoever asks for ever
/// shall not keep the control plane busy.
const PACE: Duration = Duration::from_millis(10);

fn folder(world: &World, who: Who) -> PathBuf {
    // Short, since the path of a socket has at most 107 bytes (unix(7)).
    world.folder("ci").join(format!("{}.{}.{}", who.run, who.node, who.attempt))
}

/// Makes the folder of a node's process before it is started.
pub(in crate::reconcile) async fn open(world: &World, who: Who) -> Result<(), Trouble> {
    let folder = folder(world, who);
    tokio::fs::create_dir_all(&folder).await?;
    tokio::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).await?;
    Ok(())
}

pub(in crate::reconcile) async fn close(world: &World, who: Who) -> Result<(), Trouble> {
    build::remove_folder(&folder(world, who)).await
}

pub(in crate::reconcile) fn binds(world: &World, who: Who) -> Result<Vec<Bind>, Trouble> {
    let host = std::path::absolute(folder(world, who)).map_err(Trouble::bug)?;
    Ok(vec![Bind { host, inside: INSIDE_FOLDER.into(), writable: false }, program(world)])
}

pub(in crate::reconcile) fn program(world: &World) -> Bind {
    Bind { host: world.executable.clone(), inside: INSIDE_PROGRAM.into(), writable: false }
}

/// What a node's process runs instead of the tests themselves.
pub(in crate::reconcile) fn command(masked: &[String]) -> String {
    let plain = |name: &&String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let names: Vec<&str> = masked.iter().filter(plain).map(String::as_str).collect();
    let mask = if names.is_empty() { String::new() } else { format!(" --mask {}", names.join(",")) };
    format!("exec {INSIDE_PROGRAM} node --socket {INSIDE_FOLDER}/s{mask}")
}

/// What it runs instead of a script that leaves results or artifacts.
pub(in crate::reconcile) fn plain_script(script: &str, masked: &[String]) -> String {
    format!("{} --script {}", command(masked), quoted(script))
}

/// Which node a process is: the other way round than `TestRun::process_id`.
pub(in crate::reconcile) fn who_is(process: &ProcessId) -> Option<Who> {
    let (run, rest) = process.as_str().strip_prefix("run-")?.split_once(".test.")?;
    let (node, attempt) = rest.split_once(".a")?;
    who_of(&format!("{run}.{node}.{attempt}"))
}

fn who_of(name: &str) -> Option<Who> {
    let mut parts = name.split('.');
    let who = Who {
        run: RunNumber(parts.next()?.parse().ok()?),
        node: parts.next()?.parse().ok()?,
        attempt: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(who)
}

/// The processes of nodes that have a folder.
fn folders(world: &World) -> std::io::Result<Vec<Who>> {
    let entries = match std::fs::read_dir(world.folder("ci")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries.flatten().filter_map(|entry| who_of(&entry.file_name().to_string_lossy())).collect())
}

/// Folders of runs that are over.
pub(in crate::reconcile) fn leftover_folders(world: &World) -> Result<Vec<Who>, Trouble> {
    let mut found = Vec::new();
    for who in folders(world)? {
        if world.store.run(who.run)?.is_none_or(|run| run.verdict.is_some()) {
            found.push(who);
        }
    }
    Ok(found)
}

/// Listens wherever there is a folder, for ever.
pub async fn listen(world: Arc<World>) {
    let mut open: BTreeMap<Who, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = folders(&world).unwrap_or_default();
        open.retain(|who, task| {
            let keep = wanted.contains(who) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for who in wanted {
            if open.contains_key(&who) {
                continue;
            }
            match bind(&folder(&world, who).join("s")) {
                Ok(listener) => {
                    open.insert(who, tasks.spawn(accept(world.clone(), who, listener)));
                }
                Err(error) => warn!(run = %who.run, node = who.node, "cannot listen to a node: {error}"),
            }
        }
        while tasks.try_join_next().is_some() {}
        tokio::time::sleep(LOOK).await;
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The sandbox's user is another one; only its sandbox sees the folder.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn accept(world: Arc<World>, who: Who, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(run = %who.run, node = who.node, "cannot accept a node: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let world = world.clone();
        connections.spawn(async move {
            let _place = place;
            serve(&world, who, stream).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, until it says something that makes no sense.
async fn serve(world: &World, who: Who, mut stream: UnixStream) {
    loop {
        let mut head = [0; 4];
        let heard = tokio::time::timeout(SILENCE, stream.read_exact(&mut head)).await;
        if !matches!(heard, Ok(Ok(_))) {
            return;
        }
        let Some(length) = wire::length(head, MOST_REQUEST) else { return };
        let mut body = vec![0; length];
        let heard = tokio::time::timeout(FRAME, stream.read_exact(&mut body)).await;
        if !matches!(heard, Ok(Ok(_))) {
            return;
        }
        let Some(request) = wire::read(&body) else { return };
        let answer = match answer(world, who, request).await {
            Ok(answer) => answer,
            Err(trouble) => {
                warn!(run = %who.run, node = who.node, "a node has to ask again: {trouble}");
                Answer::Later
            }
        };
        let Some(frame) = wire::frame(&answer, MOST_ANSWER) else { return };
        if !matches!(tokio::time::timeout(FRAME, stream.write_all(&frame)).await, Ok(Ok(()))) {
            return;
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_names_one_process_of_one_node() {
        assert_eq!(who_of("12.3.1"), Some(Who { run: RunNumber(12), node: 3, attempt: 1 }));
        assert_eq!(who_is(&"run-12.test.3.a1".parse().unwrap()), who_of("12.3.1"));
        assert_eq!(who_is(&"build.0123.a1".parse().unwrap()), None);
        for name in ["", "12", "12.3", "12.3.1.4", "x.3.1", "12.99999.1", "../1.1.1"] {
            assert_eq!(who_of(name), None, "{name}");
        }
    }
}
