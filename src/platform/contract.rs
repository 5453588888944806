//! The platform's words: what is asked for (`Spec`), what is seen (`ProcessStatus`, `LogPage`) and what went wrong.
//!
//! The rules that every platform keeps stand beside the calls in `mod.rs`. Nothing here does input or output.

use crate::clock::Timestamp;
use crate::domain::{ProcessId, RuntimeCode, Service, SlugDigest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One process as it is wanted. It is complete: nothing is inherited from Landfall or from the machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub id: ProcessId,
    /// Opaque here and listed back: app, release, type. The label `app` also names the host inside the sandbox.
    pub labels: BTreeMap<String, String>,
    /// What people call it: `web.1`.
    pub name: String,
    pub code: Code,
    /// Run as `bash -c COMMAND` (else `sh -c`) inside the sandbox, in `/app`, after `/app/.profile.d/*.sh`.
    pub command: String,
    /// The whole environment; `PATH`, `HOME` and `LANG` get defaults unless they are given.
    pub environment: BTreeMap<String, String>,
    pub limits: Limits,
    pub network: Network,
    /// Where the app listens inside the sandbox; the supervisor dials it.
    pub port: Option<u16>,
    /// From its start; then it gets SIGTERM, its grace, SIGKILL, and exits as `TimeLimit`.
    pub time_limit: Option<Duration>,
    /// From SIGTERM to SIGKILL. Heroku gives 30 s.
    pub grace: Duration,
    pub binds: Vec<Bind>,
    /// What an isolated process finds on its own loopback. They are there before its first line runs.
    #[serde(default)]
    pub services: Vec<Service>,
    #[serde(default)]
    pub walls: Walls,
    /// Names of variables whose values its log does not show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<String>,
}

/// What a process sees of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Walls {
    /// Its programs, read-only, and `/app`.
    #[default]
    Sandbox,
    /// The root of a container image, which lies in the slug, instead of the machine's programs: as private and as
    /// bounded as `/app` is otherwise.
    Image(Root),
    /// All of it, as Landfall does: for the operator's container engine, which makes walls of its own. Limits, log and end
    /// are as for any other process, but there is no limit of what it writes.
    None,
}

/// How a process stands in the root of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Below the slug.
    pub folder: PathBuf,
    pub directory: String,
    pub user: u32,
    pub group: u32,
}

impl fmt::Debug for Spec {
    /// Values of the environment are secrets and are not printed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec {
            id,
            labels,
            name,
            code,
            command,
            environment,
            limits,
            network,
            port,
            time_limit,
            grace,
            binds,
            services,
            walls,
            masked,
        } = self;
        formatter
            .debug_struct("Spec")
            .field("id", id)
            .field("labels", labels)
            .field("name", name)
            .field("code", code)
            .field("command", command)
            .field("environment", &environment.keys().collect::<Vec<_>>())
            .field("limits", limits)
            .field("network", network)
            .field("port", port)
            .field("time_limit", time_limit)
            .field("grace", grace)
            .field("binds", binds)
            .field("services", services)
            .field("walls", walls)
            .field("masked", masked)
            .finish()
    }
}

/// What lies at `/app`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// An empty writable folder that vanishes with the process.
    None,
    /// A published slug: a private writable view of it, bounded by `Limits::disk_bytes`, that vanishes with the process.
    Slug(SlugDigest),
    /// As `Slug`, with another published slug below it, of which those files are seen that the slug itself does not have.
    Layered { slug: SlugDigest, below: SlugDigest },
    /// This very folder, writable: a build. As root its files are given to the sandbox's user.
    Folder { path: PathBuf },
}

impl Code {
    /// The published slugs that it is made of, the uppermost first.
    pub fn slugs(&self) -> Vec<&SlugDigest> {
        match self {
            Code::None | Code::Folder { .. } => Vec::new(),
            Code::Slug(slug) => vec![slug],
            Code::Layered { slug, below } => vec![slug, below],
        }
    }
}

/// What one process may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all its processes together, files that it writes to `/app` (of a slug) and `/tmp` included. Who reaches
    /// it is ended.
    pub memory_bytes: u64,
    /// What it should do with. Who uses more is told so in its log (R14); 0 tells nothing.
    #[serde(default)]
    pub memory_quota: u64,
    /// Thousandths of one processor; 0 sets no limit.
    pub cpu_millis: u64,
    /// Processes and threads.
    pub processes: u64,
    /// What it may add to `/app`.
    pub disk_bytes: u64,
    pub open_files: u64,
    /// How much of its output is kept: half for the first lines, half for the last ones.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: 512 << 20,
            memory_quota: 0,
            cpu_millis: 0,
            processes: 256,
            disk_bytes: 1 << 30,
            open_files: 10_000,
            output_bytes: 8 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Its own network with a loopback only: it reaches nothing and is reached through the dial socket.
    Isolated,
    /// The machine's network, for builds that fetch packages and for apps that were granted it.
    Host,
}

/// A folder or file of the machine that is seen inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub host: PathBuf,
    pub inside: PathBuf,
    /// As root a writable folder's files are given to the sandbox's user.
    pub writable: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub id: ProcessId,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: State,
    /// When `start` accepted it.
    pub started_at: Timestamp,
    pub memory_bytes: Option<u64>,
    /// Processor time used since its start, in thousandths of a second.
    pub cpu_millis_used: Option<u64>,
    /// How often each of these was seen of it.
    #[serde(default)]
    pub codes: BTreeMap<RuntimeCode, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Accepted; its command does not run yet.
    Starting,
    Running {
        since: Timestamp,
    },
    /// SIGTERM was sent, by `stop` or at a limit.
    Stopping,
    /// Over: no process of it is left and its log is complete.
    Exited {
        /// The command's status as a shell gives it: 128 + n when signal n ended it. `None` when the sandbox was killed.
        code: Option<i32>,
        /// The signal that ended the sandbox as a whole.
        signal: Option<i32>,
        why: Exit,
        at: Timestamp,
    },
}

impl State {
    pub fn is_over(&self) -> bool {
        matches!(self, State::Exited { .. })
    }
}

/// Why a process is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It ended by itself, well or not: the code says which.
    Finished,
    /// `stop` ended it, by SIGTERM or after its grace by SIGKILL, or someone killed it from outside.
    Killed,
    OutOfMemory,
    TimeLimit,
    /// A process with a time limit wrote more than 256 times what is kept of its output.
    OutputLimit,
    DiskLimit,
    /// Its supervisor or the machine went down; how it ended is not known.
    SupervisorLost,
    CouldNotStart(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Finished => formatter.write_str("finished"),
            Exit::Killed => formatter.write_str("killed"),
            Exit::OutOfMemory => formatter.write_str("out of memory"),
            Exit::TimeLimit => formatter.write_str("time limit"),
            Exit::OutputLimit => formatter.write_str("output limit"),
            Exit::DiskLimit => formatter.write_str("disk limit"),
            Exit::SupervisorLost => formatter.write_str("supervisor lost"),
            Exit::CouldNotStart(reason) => write!(formatter, "could not start: {reason}"),
        }
    }
}

/// A place in a process's log, always at the start of a line. The default is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogCursor {
    pub offset: u64,
    pub line: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Out,
    Err,
    /// Said by the supervisor about the process.
    System,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: Timestamp,
    pub stream: LogStream,
    /// At most `MAX_LINE_BYTES`; longer lines go on in the next one. Not UTF-8 is replaced, colours are kept.
    pub text: String,
}

/// Heroku splits log lines at 10,000 bytes.
pub const MAX_LINE_BYTES: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    pub lines: Vec<LogLine>,
    pub next: LogCursor,
    /// The process is over and `next` is the end: nothing will follow.
    pub ended: bool,
    /// Lines lost between the asked cursor and the first line of this page, because the middle is not kept.
    pub dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Changed(ProcessId),
    /// Changes were missed: list again. Never to be read as "nothing runs".
    Gap,
}

/// What the machine has, in bytes and processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub processors: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    pub disk_total: u64,
    pub disk_available: u64,
    /// Processes of ours that are not over.
    pub processes: u64,
}

/// One answer of `check`: what the machine has or lacks for the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub ok: bool,
    /// Without it foreign code must not run: `serve` refuses to start.
    pub wall: bool,
    pub detail: String,
    /// The command that mends it; empty when there is nothing to mend.
    pub remedy: String,
}

/// Something that should have gone with its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// `control group`, `folder`, `socket`, `process`, `slug`, `mount`.
    pub kind: String,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("slug {0} is not published")]
    NotPublished(SlugDigest),
    #[error("the slug's archive is refused: {0}")]
    BadArchive(String),
    #[error("process {0} was started with another specification before")]
    Differs(ProcessId),
    #[error("process {0} still runs")]
    StillRunning(ProcessId),
    #[error("process {0} is not known")]
    Unknown(ProcessId),
    #[error("not a valid process: {0}")]
    Invalid(String),
    #[error("{doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the platform's record is damaged: {0}")]
    Damaged(String),
}

impl PlatformError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> PlatformError {
        let doing = doing.into();
        move |source| PlatformError::Io { doing, source }
    }
}

impl Spec {
    /// Refuses what no sandbox can be given: names that are no environment variables, relative paths, zero bytes.
    pub(super) fn validate(&self) -> Result<(), PlatformError> {
        let invalid = |text: String| Err(PlatformError::Invalid(text));
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!("{name:?} is not an environment variable"));
            }
        }
        if self.command.contains('\0') {
            return invalid("the command holds a zero byte".to_owned());
        }
        // The kernel takes at most 128 KiB for one argument or variable, and a quarter of the stack for all of them.
        let environment: usize = self.environment.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if self.command.len() > 120 << 10 || environment > 1 << 20 {
            return invalid("the command or the environment is too large".to_owned());
        }
        if let Some(name) = self.environment.iter().find(|(_, value)| value.len() > 120 << 10).map(|(name, _)| name) {
            return invalid(format!("the environment variable {name} is too large"));
        }
        let mut paths: Vec<&PathBuf> = self.binds.iter().flat_map(|bind| [&bind.host, &bind.inside]).collect();
        if let Code::Folder { path } = &self.code {
            paths.push(path);
        }
        let directory = match &self.walls {
            Walls::Image(root) => {
                let plain = root.folder.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if !plain || root.user == 0 || root.group == 0 || !matches!(self.code, Code::Slug(_)) {
                    return invalid("the root of an image is a folder of a slug, and nobody is root in it".to_owned());
                }
                Some(PathBuf::from(&root.directory))
            }
            Walls::Sandbox | Walls::None => None,
        };
        paths.extend(&directory);
        for path in paths {
            if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
                return invalid(format!("{} is not an absolute path", path.display()));
            }
            if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
                return invalid(format!("{} climbs out of its folder", path.display()));
            }
        }
        if self.limits.memory_bytes == 0 || self.limits.processes == 0 || self.limits.disk_bytes == 0 {
            return invalid("a limit of zero".to_owned());
        }
        Ok(())
    }
}
