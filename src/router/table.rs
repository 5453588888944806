//! The table: which host leads to which processes. The control plane writes it whole, the router swaps it whole.
//!
//! A table is checked before it is taken, saved before it is used, and the last good one outlives both a malformed
//! push and a damaged file.

use super::access::Access;
use super::request::letters_digits_and;
use crate::domain::{AppName, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Everything that the router knows of the apps.
///
/// `generation` is the control plane's fencing number: a lower one than the highest seen is refused. `version` orders
/// the tables of one generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub generation: u64,
    pub version: u64,
    pub apps: BTreeMap<AppName, Route>,
}

/// One app's way in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Exact hosts, lower case, without port or trailing dot; `normalise_host` makes them so.
    pub hosts: Vec<String>,
    /// The live release, `v3`.
    pub release: String,
    pub targets: Vec<Target>,
    /// What the error page says while no target is active.
    pub notice: Option<Notice>,
    /// Adds `X-Robots-Tag: noindex` to every answer.
    #[serde(default)]
    pub noindex: bool,
    /// A process is about to come up: while none is active, requests wait for it instead of being refused.
    #[serde(default)]
    pub hold: bool,
    /// Nothing of the app runs. Requests wait as with `hold`, and the first one is told to whoever listens for knocks.
    #[serde(default)]
    pub asleep: bool,
    /// Who may come in; everybody unless it is said.
    #[serde(default)]
    pub access: Option<Access>,
    /// A release that gets a share of the requests only.
    #[serde(default)]
    pub canary: Option<Canary>,
}

/// Of a hundred requests, `percent` go to the active targets of `release`, the others to those of other releases.
/// Where one side has no target that can be reached, the other takes all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub release: String,
    pub percent: u8,
}

/// One process that can take requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub process: ProcessId,
    /// `web.1`, as log lines name it.
    pub name: String,
    pub release: String,
    /// The supervisor's `dial.sock`, an absolute path.
    pub socket: PathBuf,
    pub state: TargetState,
    /// Asked for by the health check: a path that starts with `/`.
    pub health_path: String,
    /// The health check only connects.
    #[serde(default)]
    pub health_tcp: bool,
    /// How often it is asked while it serves; `None` asks only after a connection that failed.
    #[serde(default)]
    pub health_seconds: Option<u64>,
    /// Asked for, one after the other, before it counts as healthy for the first time.
    #[serde(default)]
    pub warmup: Vec<String>,
}

/// Only active targets get new requests; warming ones are health-checked, draining ones finish what they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    Warming,
    Active,
    Draining,
}

/// Why an app has no active target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    Building,
    Held,
    Crashed,
    Failed,
    Asleep,
    Maintenance,
    Gone,
}

impl Notice {
    pub const ALL: [Notice; 7] = [
        Notice::Building,
        Notice::Held,
        Notice::Crashed,
        Notice::Failed,
        Notice::Asleep,
        Notice::Maintenance,
        Notice::Gone,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Notice::Building => "building",
            Notice::Held => "held",
            Notice::Crashed => "crashed",
            Notice::Failed => "failed",
            Notice::Asleep => "asleep",
            Notice::Maintenance => "maintenance",
            Notice::Gone => "gone",
        }
    }
}

/// Why a table was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("generation {offered} is lower than {highest}, the highest seen")]
    OldGeneration { offered: u64, highest: u64 },
    #[error("version {offered} is lower than {current} of the same generation")]
    OldVersion { offered: u64, current: u64 },
    #[error("the table is empty but {current} apps are routed; say clear to mean it")]
    Empty { current: usize },
    #[error("app {app}: {reason}")]
    Invalid { app: AppName, reason: String },
    #[error("another router has taken our place")]
    Leaving,
    #[error("could not save the table")]
    Save(#[source] std::io::Error),
}

impl Table {
    /// Refuses what would route wrongly: a host of two apps, a process listed twice, a path that breaks a request line.
    pub fn check(&self) -> Result<(), TableError> {
        let mut hosts = BTreeSet::new();
        let mut processes = BTreeSet::new();
        for (app, route) in &self.apps {
            let invalid = |reason: String| TableError::Invalid { app: app.clone(), reason };
            for host in &route.hosts {
                if normalise_host(host).as_deref() != Some(host.as_str()) {
                    return Err(invalid(format!("{host:?} is not a normalised host")));
                }
                if !hosts.insert(host) {
                    return Err(invalid(format!("the host {host} is already routed")));
                }
            }
            if let Some(canary) = &route.canary
                && (canary.percent > 100 || !valid_name(&canary.release))
            {
                return Err(invalid(format!("{canary:?} is no share of a release")));
            }
            for target in &route.targets {
                if !processes.insert(&target.process) {
                    return Err(invalid(format!("the process {} is listed twice", target.process)));
                }
                if !target.socket.is_absolute() {
                    return Err(invalid(format!("the socket {} is not absolute", target.socket.display())));
                }
                let mut asked_for = target.warmup.iter().chain([&target.health_path]);
                if let Some(path) = asked_for.find(|path| !valid_path(path)) {
                    return Err(invalid(format!("{path:?} is no path to ask for")));
                }
                if target.health_seconds == Some(0) {
                    return Err(invalid("a health check without pause".to_owned()));
                }
                if !valid_name(&target.name) || !valid_name(&target.release) {
                    return Err(invalid(format!("{:?} {:?} is no process name", target.name, target.release)));
                }
            }
        }
        Ok(())
    }

    /// Whether this table may follow `current`.
    pub fn check_after(&self, current: &Table) -> Result<(), TableError> {
        if self.generation < current.generation {
            return Err(TableError::OldGeneration { offered: self.generation, highest: current.generation });
        }
        if self.generation == current.generation && self.version < current.version {
            return Err(TableError::OldVersion { offered: self.version, current: current.version });
        }
        self.check()
    }
}

/// Reads a table: `None` when there is none yet. A damaged file is set aside as `table.damaged.json` and the one
/// before it is taken.
pub fn load(folder: &Path) -> Option<Table> {
    for name in ["table.json", "table.previous.json"] {
        let path = folder.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "could not read the table");
                continue;
            }
        };
        match serde_json::from_slice::<Table>(&bytes) {
            Ok(table) => match table.check() {
                Ok(()) => return Some(table),
                Err(error) => tracing::error!(path = %path.display(), %error, "refused the saved table"),
            },
            Err(error) => tracing::error!(path = %path.display(), %error, "the saved table is malformed"),
        }
        if let Err(error) = std::fs::rename(&path, folder.join("table.damaged.json")) {
            tracing::error!(path = %path.display(), %error, "could not set the damaged table aside");
        }
    }
    None
}

/// Saves a table so that a crash at any moment leaves this one or the one before: write, fsync, rename, fsync.
pub fn save(folder: &Path, table: &Table) -> std::io::Result<()> {
    let path = folder.join("table.json");
    let previous = folder.join("table.previous.json");
    let fresh = folder.join("table.new.json");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(table)?)?;
    file.sync_all()?;
    if path.exists() {
        match std::fs::remove_file(&previous) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::hard_link(&path, &previous)?;
    }
    std::fs::rename(&fresh, &path)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The one spelling of a host that the table is looked up by: lower case, without port and without trailing dot.
/// `None` for what can be no name of an app: an address in brackets, user information, bytes outside of host names.
pub fn normalise_host(raw: &str) -> Option<String> {
    let (name, port) = raw.split_at(raw.find(':').unwrap_or(raw.len()));
    if port.len() > 6 || !port.bytes().skip(1).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if !(1..=253).contains(&name.len()) || name.starts_with('.') || name.ends_with('.') {
        return None;
    }
    let valid = name.bytes().all(|byte| HOST_BYTES[usize::from(byte)]);
    valid.then(|| name.to_ascii_lowercase())
}

/// Whether a host may have a byte.
const HOST_BYTES: [bool; 256] = letters_digits_and(b"-._");

fn valid_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 2000 && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn valid_name(name: &str) -> bool {
    (1..=200).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(generation: u64, version: u64) -> Table {
        let target = Target {
            process: "hello.v1.web.1.a1".parse().unwrap(),
            name: "web.1".into(),
            release: "v1".into(),
            socket: "/run/hello/dial.sock".into(),
            state: TargetState::Active,
            health_path: "/".into(),
            health_tcp: false,
            health_seconds: None,
            warmup: Vec::new(),
        };
        let route = Route {
            hosts: vec!["hello.localhost".into()],
            release: "v1".into(),
            targets: vec![target],
            notice: None,
            noindex: true,
            hold: false,
            asleep: false,
            access: None,
            canary: None,
        };
        Table { generation, version, apps: BTreeMap::from([("hello".parse().unwrap(), route)]) }
    }

    #[test]
    fn hosts_have_one_spelling() {
        for raw in ["hello.localhost", "HELLO.localhost:8000", "hello.localhost.", "Hello.LocalHost.:80"] {
            assert_eq!(normalise_host(raw).as_deref(), Some("hello.localhost"), "{raw}");
        }
        for raw in [
            "", ".", "..", "a..", ".a", "[::1]", "[::1]:80", "a:b", "a:80:80", "a b", "u@a", "a/b", "ä", "a:123456",
            "a\0", "a,b", "a%2eb",
        ] {
            assert_eq!(normalise_host(raw), None, "{raw:?}");
        }
    }

    #[test]
    fn a_table_is_checked_before_it_is_taken() {
        let current = table(3, 7);
        assert!(table(3, 7).check_after(&current).is_ok());
        assert!(table(4, 1).check_after(&current).is_ok());
        assert!(matches!(table(2, 9).check_after(&current), Err(TableError::OldGeneration { .. })));
        assert!(matches!(table(3, 6).check_after(&current), Err(TableError::OldVersion { .. })));

        let breakages: [fn(&mut Route); 10] = [
            |route| route.targets[0].warmup = vec!["/".into(), "/ x".into()],
            |route| route.targets[0].health_seconds = Some(0),
            |route| route.canary = Some(Canary { release: "v2".into(), percent: 101 }),
            |route| route.hosts = vec!["Hello.localhost".into()],
            |route| route.hosts = vec!["a".into(), "a".into()],
            |route| route.targets[0].health_path = "/ HTTP/1.1\r\nx:".into(),
            |route| route.targets[0].health_path = "http://elsewhere/".into(),
            |route| route.targets[0].socket = "dial.sock".into(),
            |route| route.targets[0].name = "web 1\n".into(),
            |route| route.targets.push(route.targets[0].clone()),
        ];
        for (index, breakage) in breakages.iter().enumerate() {
            let mut broken = table(3, 8);
            broken.apps.values_mut().for_each(breakage);
            assert!(matches!(broken.check_after(&current), Err(TableError::Invalid { .. })), "case {index}");
        }
    }

    #[test]
    fn a_saved_table_outlives_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), None);
        save(folder.path(), &table(1, 1)).unwrap();
        save(folder.path(), &table(1, 2)).unwrap();
        assert_eq!(load(folder.path()), Some(table(1, 2)));
        for damage in ["", "{}", "{\"generation\":1,\"version\":3}", "null", "[1,2"] {
            save(folder.path(), &table(1, 1)).unwrap();
            save(folder.path(), &table(1, 2)).unwrap();
            std::fs::write(folder.path().join("table.json"), damage).unwrap();
            assert_eq!(load(folder.path()), Some(table(1, 1)), "{damage:?}");
        }
    }
}
