//! One `git` child: arguments as a list, an environment made from nothing, its own process group, a time limit and an
//! output limit. It only ever works on bare mirrors of ours, so that no hook, filter, attribute, submodule or file
//! monitor of a repository can run: what would run them is a work tree, and there is none.
//!
//! A credential travels in the child's environment as `http.<origin>.extraHeader`: never in arguments, addresses or
//! configuration files, where others can read it.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How a git child ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitError {
    #[error("git could not be started")]
    NotStarted(#[source] std::io::Error),
    #[error("git ended with {status}: {stderr}")]
    Failed { status: ExitStatus, stderr: String },
    #[error("git ran longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("git wrote more than {0} bytes")]
    TooMuch(usize),
    #[error("git listed more than {0} entries")]
    TooMany(u64),
    #[error("git's output could not be read")]
    Pipe(#[source] std::io::Error),
}

/// What git prints on its error stream is cut to this many bytes.
const STDERR_CAP: usize = 16 << 10;

/// Settings that hold for every call, whatever a configuration file says.
const HARDENING: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.sshCommand=false",
    "core.askPass=false",
    "core.gitProxy=false",
    "core.alternateRefsCommand=false",
    "core.bigFileThreshold=32m",
    "credential.helper=",
    "protocol.allow=never",
    "safe.bareRepository=explicit",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.fsckObjects=true",
    "transfer.fsckObjects=true",
    "transfer.bundleURI=false",
    // Flaws of old tools that real repositories carry in trees and commits, and that can do no harm here.
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingEmail=ignore",
    "fetch.fsck.nullSha1=ignore",
    // Every fetch is one pack, which becomes visible whole or not at all.
    "fetch.unpackLimit=1",
    "fetch.writeCommitGraph=false",
    "gc.auto=0",
    "maintenance.auto=false",
    // A renamed repository answers with a redirect; the caller looks its new name up, and the token goes nowhere else.
    "http.followRedirects=false",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "pack.threads=2",
];

/// A command for `mirror` with nothing inherited. `home` is a folder of ours without any configuration in it.
pub(super) fn command(git: &Path, home: &Path, mirror: Option<&Path>) -> Command {
    let mut command = Command::new(git);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", home)
        .env("LC_ALL", "C")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "/bin/false")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for setting in HARDENING {
        command.arg("-c").arg(setting);
    }
    command.arg("--no-pager").arg("--literal-pathspecs");
    if let Some(mirror) = mirror {
        let mut flag = std::ffi::OsString::from("--git-dir=");
        flag.push(mirror);
        command.arg(flag);
    }
    command
}

/// Gives settings to a command through its environment, where other users of the machine can't read them.
pub(super) fn configure(command: &mut Command, settings: &[(String, String)]) {
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (index, (key, value)) in settings.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{index}"), key).env(format!("GIT_CONFIG_VALUE_{index}"), value);
    }
}

/// How much a command may print: bytes, and entries that end in NUL.
#[derive(Clone, Copy)]
struct Cap {
    bytes: usize,
    entries: u64,
}

/// Runs a command to its end and returns what it printed, at most `cap` bytes within `limit`.
pub(super) async fn run(command: Command, limit: Duration, cap: usize) -> Result<Vec<u8>, GitError> {
    run_listing(command, limit, cap, u64::MAX).await
}

/// As [`run`], for a command that prints entries which end in NUL: it is stopped at the first one over `entries`.
pub(super) async fn run_listing(
    mut command: Command,
    limit: Duration,
    cap: usize,
    entries: u64,
) -> Result<Vec<u8>, GitError> {
    let child = command.spawn().map_err(GitError::NotStarted)?;
    finish(child, None, limit, Cap { bytes: cap, entries }).await
}

/// As [`run`], with `input` on the command's standard input.
pub(super) async fn run_with_input(
    mut command: Command,
    input: &[u8],
    limit: Duration,
    cap: usize,
) -> Result<Vec<u8>, GitError> {
    command.stdin(Stdio::piped());
    let child = command.spawn().map_err(GitError::NotStarted)?;
    finish(child, Some(input), limit, Cap { bytes: cap, entries: u64::MAX }).await
}

async fn finish(mut child: Child, input: Option<&[u8]>, limit: Duration, cap: Cap) -> Result<Vec<u8>, GitError> {
    let group = Group::of(&child);
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let talk = async {
        let write = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A child that ends early closes the pipe; its status says why.
                let _ = stdin.write_all(input).await;
            }
        };
        let write = async {
            write.await;
            Ok(())
        };
        let errors = async { Ok(read_tail(stderr).await) };
        // The first output too much ends the talk at once; leaving kills the child.
        let ((), output, errors) = tokio::try_join!(write, read_capped(stdout, cap), errors)?;
        let status = child.wait().await.map_err(GitError::Pipe)?;
        Ok((output, errors, status))
    };
    let (output, stderr, status) = tokio::time::timeout(limit, talk).await.map_err(|_| GitError::TimedOut(limit))??;
    group.ended();
    if status.success() { Ok(output) } else { Err(GitError::Failed { status, stderr }) }
}

async fn read_capped(stream: Option<impl AsyncRead + Unpin>, cap: Cap) -> Result<Vec<u8>, GitError> {
    let mut output = Vec::new();
    let Some(mut stream) = stream else { return Ok(output) };
    let mut chunk = vec![0; 1 << 16];
    let mut entries = 0;
    loop {
        let count = stream.read(&mut chunk).await.map_err(GitError::Pipe)?;
        if count == 0 {
            return Ok(output);
        }
        output.extend_from_slice(&chunk[..count]);
        entries += chunk[..count].iter().filter(|byte| **byte == 0).count() as u64;
        if entries > cap.entries {
            return Err(GitError::TooMany(cap.entries));
        }
        if output.len() > cap.bytes {
            return Err(GitError::TooMuch(cap.bytes));
        }
    }
}

/// The end of what a stream says, without control characters: it goes into messages.
pub(super) async fn read_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut tail = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        tail.extend_from_slice(&chunk[..count]);
        if tail.len() > 2 * STDERR_CAP {
            tail.drain(..tail.len() - STDERR_CAP);
        }
    }
    let text = String::from_utf8_lossy(&tail);
    text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// The process group of a running child. It is killed when this is dropped, so that an abandoned call leaves no
/// process behind; once the child was waited for, its number may belong to somebody else and is left alone.
pub(super) struct Group(Option<Pid>);

impl Group {
    pub(super) fn of(child: &Child) -> Group {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    pub(super) fn kill(&self) {
        if let Some(pid) = self.0 {
            // The group may be gone already, which is what was wanted.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }

    pub(super) fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads one answer of `cat-file --batch`: `<name> <type> <size>\n<bytes>\n`, or `<asked> missing\n`.
pub(super) fn parse_batch_answer(answer: &[u8]) -> Option<(String, String, &[u8])> {
    let end = answer.iter().position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = header.split(' ');
    let (name, kind, size) = (words.next()?, words.next()?, words.next()?.parse::<usize>().ok()?);
    let body = answer.get(end + 1..)?.get(..size)?;
    Some((name.to_owned(), kind.to_owned(), body))
}

/// Adds arguments that git must never take for options.
pub(super) fn operands<S: AsRef<OsStr>>(command: &mut Command, operands: impl IntoIterator<Item = S>) {
    command.arg("--end-of-options").args(operands);
}
