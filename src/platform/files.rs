//! The folder of one process, which its supervisor writes and `Local` reads: the only thing that they share besides
//! the control socket.
//!
//! `about.json` is written once by `start`. `spec.json` is the right to start: a supervisor claims it by renaming it,
//! so a process is started at most once, and its environment is gone from the disk once it runs. `state.json` is
//! replaced as a whole. Names of sockets are hashes, because a Unix socket's path has at most 107 bytes.

use super::cgroups::Groups;
use super::contract::{Exit, Spec, State};
use super::identity::Identity;
use crate::clock::Timestamp;
use crate::domain::ProcessId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub const ABOUT: &str = "about.json";
pub const SPEC: &str = "spec.json";
pub const CLAIMED: &str = "spec.claimed";
pub const STATE: &str = "state.json";
/// Its presence asks a supervisor that has no control socket yet to stop.
pub const STOP: &str = "stop";
pub const USAGE: &str = "usage.json";
/// How often each of Heroku's R codes was seen.
pub const CODES: &str = "codes.json";
pub const SUPERVISOR_LOG: &str = "supervisor.log";

/// What is told of a process for as long as its folder is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct About {
    pub id: ProcessId,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub started_at: Timestamp,
    /// SHA-256 of the specification, to tell a repeated start from a different one.
    pub digest: String,
    pub groups: Groups,
}

/// What a supervisor is given.
#[derive(Serialize, Deserialize)]
pub struct Launch {
    pub spec: Spec,
    pub folder: PathBuf,
    pub control_socket: PathBuf,
    pub dial_socket: PathBuf,
    /// The unpacked slug, for `Code::Slug` and `Code::Layered`.
    pub slug: Option<PathBuf>,
    /// The unpacked slug below it, for `Code::Layered`.
    #[serde(default)]
    pub below: Option<PathBuf>,
    pub groups: Groups,
    pub sandbox: Sandbox,
}

/// What is the same for all processes of a data folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sandbox {
    pub bubblewrap: PathBuf,
    /// Whom a process runs as when Landfall runs as root.
    pub uid: u32,
    pub gid: u32,
    /// Read-only folders outside of /usr that hold compilers and interpreters, seen at the same path inside.
    pub toolchains: Vec<PathBuf>,
}

/// What the supervisor knows of its process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub supervisor: Identity,
    /// The first process inside the sandbox; when it dies, all of it dies.
    pub sandbox: Option<Identity>,
    pub state: State,
}

/// What the supervisor counted where no control group counts it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Usage {
    pub memory_bytes: u64,
    pub cpu_millis_used: u64,
}

pub fn exited(code: Option<i32>, signal: Option<i32>, why: Exit, at: Timestamp) -> State {
    State::Exited { code, signal, why, at }
}

pub fn read<T: serde::de::DeserializeOwned>(file: &Path) -> io::Result<T> {
    let bytes = fs::read(file)?;
    serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Replaces a file as a whole: readers see the old one or the new one. It reaches the disk in its own time.
pub fn replace<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    replace_with(file, |temporary| write(temporary, value).map(drop))
}

/// As `replace`, and waits until it is on disk.
pub fn replace_durably<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    replace_with(file, |temporary| create(temporary, value))
}

/// Writes a file that only its owner may read, and waits until it is on disk.
pub fn create<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    write(file, value)?.sync_data()
}

fn write<T: Serialize>(file: &Path, value: &T) -> io::Result<fs::File> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    open.write_all(&bytes)?;
    Ok(open)
}

fn replace_with(file: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // Two threads may settle the same process at once.
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = file.with_extension(format!("{}-{serial}.tmp", std::process::id()));
    let done = write(&temporary).and_then(|()| fs::rename(&temporary, file));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// The first `length` hex digits of a text's SHA-256.
pub fn short_hash(text: &[u8], length: usize) -> String {
    let mut digits = hex::encode(Sha256::digest(text));
    digits.truncate(length);
    digits
}
