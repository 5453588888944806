//! Processes on this machine, each under its own supervisor.
//!
//! Nothing is kept in memory that matters: the truth is each process's folder and whether its supervisor lives, so a new
//! `Local` on the same data folder adopts what runs. What a dead supervisor left is put away here.

mod check;
mod records;
mod slugs;

use super::Watch;
use super::cgroups::Groups;
use super::contract::{Capacity, Code, Finding, Leftover, LogCursor, LogPage, PlatformError, ProcessStatus, Spec};
use super::files::{self, About, Launch, Sandbox};
use super::logs;
use crate::clock::Clock;
use crate::domain::{ProcessId, SlugDigest};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::broadcast;

/// A Unix socket's path has at most 107 bytes (unix(7)), of which `/run/<16 digits>.control` are ours.
pub const MAX_DATA_DIR_BYTES: usize = 107 - "/run/0123456789abcdef.control".len();

/// Whom processes run as when Landfall runs as root: a number that no distribution gives to a person or a service.
pub const DEFAULT_UID: u32 = 61_184;

#[derive(Debug, Clone)]
pub struct LocalSettings {
    pub data_dir: PathBuf,
    /// The `landfall` program, started as `landfall dyno --spec FILE`.
    pub executable: PathBuf,
    /// Folders outside of /usr with compilers and interpreters, seen read-only at the same path inside; their `bin` is
    /// in the default PATH.
    pub toolchains: Vec<PathBuf>,
    /// Whom processes run as when Landfall runs as root.
    pub uid: u32,
    pub gid: u32,
    /// Whether limits are set through control groups where they may be written. Off, the supervisor watches instead.
    pub control_groups: bool,
    pub clock: Clock,
}

impl LocalSettings {
    pub fn new(data_dir: impl Into<PathBuf>, executable: impl Into<PathBuf>, clock: Clock) -> LocalSettings {
        LocalSettings {
            data_dir: data_dir.into(),
            executable: executable.into(),
            toolchains: Vec::new(),
            uid: DEFAULT_UID,
            gid: DEFAULT_UID,
            control_groups: true,
            clock,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    executable: PathBuf,
    sandbox: Sandbox,
    groups: Groups,
    clock: Clock,
    changes: broadcast::Sender<ProcessId>,
}

impl Local {
    /// Opens (or makes) the data folder and adopts what runs. Does not test the sandbox: `check` does.
    pub fn open(settings: LocalSettings) -> Result<Local, PlatformError> {
        let LocalSettings { data_dir, executable, toolchains, uid, gid, control_groups, clock } = settings;
        make_private(&data_dir)?;
        let data_dir =
            fs::canonicalize(&data_dir).map_err(PlatformError::io(format!("opening {}", data_dir.display())))?;
        if data_dir.as_os_str().len() > MAX_DATA_DIR_BYTES {
            return Err(PlatformError::Invalid(format!(
                "the path of the data folder {} is longer than {MAX_DATA_DIR_BYTES} bytes, so no socket fits below it",
                data_dir.display()
            )));
        }
        for name in ["processes", "run", "slugs"] {
            make_private(&data_dir.join(name))?;
        }
        slugs::of_this_boot(&data_dir).map_err(PlatformError::io("looking after the published slugs"))?;
        let mut found = Vec::new();
        for toolchain in toolchains {
            found.push(
                fs::canonicalize(&toolchain)
                    .map_err(PlatformError::io(format!("opening the toolchain {}", toolchain.display())))?,
            );
        }
        let bubblewrap = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from("/usr/bin/bwrap"));
        let groups = if control_groups {
            Groups::open(&files::short_hash(data_dir.as_os_str().as_encoded_bytes(), 12))
        } else {
            Groups::none()
        };
        let inner = Arc::new(Inner {
            data_dir,
            executable,
            sandbox: Sandbox { bubblewrap, uid, gid, toolchains: found },
            groups,
            clock,
            changes: broadcast::channel(4096).0,
        });
        watch_in_background(&inner)?;
        Ok(Local { inner })
    }

    pub async fn publish(&self, digest: &SlugDigest, archive: &Path) -> Result<(), PlatformError> {
        let (digest, archive) = (digest.clone(), archive.to_owned());
        self.blocking(move |inner| slugs::publish(inner, &digest, &archive)).await
    }

    pub async fn unpublish(&self, digest: &SlugDigest) -> Result<(), PlatformError> {
        let digest = digest.clone();
        self.blocking(move |inner| slugs::unpublish(inner, &digest)).await
    }

    pub async fn published(&self) -> Result<Vec<SlugDigest>, PlatformError> {
        self.blocking(slugs::published).await
    }

    pub async fn start(&self, spec: &Spec) -> Result<(), PlatformError> {
        let spec = spec.clone();
        self.blocking(move |inner| inner.start(spec)).await
    }

    pub async fn stop(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let id = id.clone();
        self.blocking(move |inner| inner.stop(&id)).await
    }

    pub async fn remove(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let id = id.clone();
        self.blocking(move |inner| inner.remove(&id)).await
    }

    pub async fn list(&self) -> Result<Vec<ProcessStatus>, PlatformError> {
        self.blocking(records::list).await
    }

    pub fn watch(&self) -> Watch {
        Watch { receiver: self.inner.changes.subscribe() }
    }

    pub async fn logs(&self, id: &ProcessId, after: LogCursor, max_lines: usize) -> Result<LogPage, PlatformError> {
        let id = id.clone();
        self.blocking(move |inner| {
            let folder = inner.folder(&id);
            let about = match records::about(&folder) {
                Ok(about) => about,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PlatformError::Unknown(id)),
                Err(source) => return Err(PlatformError::Io { doing: format!("reading the record of {id}"), source }),
            };
            // The state first: what is over when the log is read has a complete log.
            let over = records::state(inner, &folder, &about).is_over();
            logs::read(&folder, after, max_lines, over).map_err(PlatformError::io(format!("reading the log of {id}")))
        })
        .await
    }

    pub fn dial_socket(&self, id: &ProcessId) -> PathBuf {
        self.inner.socket(id, "dial")
    }

    pub async fn capacity(&self) -> Result<Capacity, PlatformError> {
        self.blocking(check::capacity).await
    }

    /// What the machine has or lacks, found by running a process.
    pub async fn check(&self) -> Vec<Finding> {
        check::check(self).await
    }

    pub async fn supervisors(&self) -> Result<Vec<ProcessId>, PlatformError> {
        self.blocking(records::supervisors).await
    }

    /// What no record stands for; with `sweep` it is removed as well.
    pub async fn leftovers(&self, sweep: bool) -> Result<Vec<Leftover>, PlatformError> {
        self.blocking(move |inner| records::leftovers(inner, sweep)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => {
                Err(PlatformError::Io { doing: "working in the background".to_owned(), source: error.into() })
            }
        }
    }
}

impl Drop for Inner {
    /// The data folder's own control group goes with the last that used it: one with processes in it can't be removed.
    fn drop(&mut self) {
        let _ = self.groups.remove(Duration::ZERO);
    }
}

impl Inner {
    fn processes(&self) -> PathBuf {
        self.data_dir.join("processes")
    }

    fn folder(&self, id: &ProcessId) -> PathBuf {
        self.processes().join(id.as_str())
    }

    fn socket(&self, id: &ProcessId, kind: &str) -> PathBuf {
        let name = files::short_hash(id.as_str().as_bytes(), 16);
        self.data_dir.join("run").join(format!("{name}.{kind}"))
    }

    fn slug(&self, digest: &SlugDigest) -> PathBuf {
        self.data_dir.join("slugs").join(digest.as_str())
    }

    fn start(&self, spec: Spec) -> Result<(), PlatformError> {
        spec.validate()?;
        let id = spec.id.clone();
        let folder = self.folder(&id);
        let writing = |source| PlatformError::Io { doing: format!("recording the start of {id}"), source };
        let text = serde_json::to_vec(&spec).map_err(|error| writing(io::Error::other(error)))?;
        let digest = hex::encode(Sha256::digest(&text));
        match records::about(&folder) {
            Ok(about) if about.digest != digest => return Err(PlatformError::Differs(id)),
            // Accepted before. If that start was cut short, its right to start is still there to be claimed.
            Ok(_) if folder.join(files::SPEC).exists() => return self.launch(&id),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => {}
            Err(error) => return Err(PlatformError::Damaged(format!("{}: {error}", folder.display()))),
        }
        if let Code::Folder { path } = &spec.code {
            fs::read_dir(path).map_err(PlatformError::io(format!("opening {}", path.display())))?;
        }
        let slugs = spec.code.slugs();
        if let Some(digest) = slugs.iter().find(|digest| !self.slug(digest).is_dir()) {
            return Err(PlatformError::NotPublished((*digest).clone()));
        }
        let mut slugs = slugs.into_iter().map(|digest| self.slug(digest));
        let (slug, below) = (slugs.next(), slugs.next());
        let groups = self.groups.child(id.as_str());
        let about = About {
            id: id.clone(),
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            started_at: self.clock.now(),
            digest,
            groups: groups.clone(),
        };
        let launch = Launch {
            spec,
            folder: folder.clone(),
            control_socket: self.socket(&id, "control"),
            dial_socket: self.socket(&id, "dial"),
            slug,
            below,
            groups,
            sandbox: self.sandbox.clone(),
        };
        // The folder appears whole, or not at all.
        let draft = self.processes().join(format!(".draft-{id}-{}-{}", std::process::id(), slugs::serial()));
        let _ = fs::remove_dir_all(&draft);
        let made = make_folder(&draft)
            .and_then(|()| files::create(&draft.join(files::ABOUT), &about))
            .and_then(|()| files::create(&draft.join(files::SPEC), &launch))
            .and_then(|()| fs::rename(&draft, &folder))
            .and_then(|()| fs::File::open(self.processes())?.sync_all());
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&draft);
            // Another start of the same id was faster.
            return if folder.exists() { Ok(()) } else { Err(writing(error)) };
        }
        let launched = self.launch(&id);
        let _ = self.changes.send(id);
        launched
    }

    /// Starts a supervisor, which claims the specification or finds it claimed. Returns once it has detached itself.
    fn launch(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let folder = self.folder(id);
        let starting = |source| PlatformError::Io { doing: format!("starting the supervisor of {id}"), source };
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.join(files::SUPERVISOR_LOG))
            .map_err(starting)?;
        let status = Command::new(&self.executable)
            .arg("dyno")
            .arg("--spec")
            .arg(folder.join(files::SPEC))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(starting)?)
            .stderr(log)
            .status()
            .map_err(starting)?;
        if status.success() { Ok(()) } else { Err(starting(io::Error::other(format!("it ended with {status}")))) }
    }

    fn stop(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let folder = self.folder(id);
        let about = match records::about(&folder) {
            Ok(about) => about,
            Err(_) => return Ok(()),
        };
        if records::state(self, &folder, &about).is_over() {
            return Ok(());
        }
        // A supervisor looks for the file once its socket is there: one of the two reaches it.
        fs::write(folder.join(files::STOP), "").map_err(PlatformError::io(format!("asking {id} to stop")))?;
        match self.command(id, "term") {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(PlatformError::Io { doing: format!("asking {id} to stop"), source }),
        }
    }

    /// One question to a supervisor, answered within 5 s.
    fn command(&self, id: &ProcessId, command: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.socket(id, "control"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer.trim().to_owned()) }
    }

    fn remove(&self, id: &ProcessId) -> Result<(), PlatformError> {
        let folder = self.folder(id);
        let about = match records::about(&folder) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => return Ok(()),
            Err(_) => return self.put_away(id, &self.groups.child(id.as_str())),
        };
        if !records::state(self, &folder, &about).is_over() {
            return Err(PlatformError::StillRunning(id.clone()));
        }
        self.put_away(id, &about.groups)
    }

    fn put_away(&self, id: &ProcessId, groups: &Groups) -> Result<(), PlatformError> {
        let removing = |source| PlatformError::Io { doing: format!("removing {id}"), source };
        for kind in ["control", "dial"] {
            gone(fs::remove_file(self.socket(id, kind))).map_err(removing)?;
        }
        groups.remove(Duration::from_secs(2)).map_err(removing)?;
        // Out of sight in one step: a folder half removed would be a record half true.
        let draft = self.processes().join(format!(".removed-{id}-{}-{}", std::process::id(), slugs::serial()));
        let _ = fs::remove_dir_all(&draft);
        gone(fs::rename(self.folder(id), &draft)).map_err(removing)?;
        gone(fs::remove_dir_all(&draft)).map_err(removing)
    }
}

/// Tells of every state file that changed and of every supervisor that died, for as long as the platform is there.
fn watch_in_background(inner: &Arc<Inner>) -> Result<(), PlatformError> {
    let weak: Weak<Inner> = Arc::downgrade(inner);
    std::thread::Builder::new()
        .name("platform-watch".to_owned())
        .spawn(move || {
            let mut known = BTreeMap::new();
            let mut round = 0_u32;
            while let Some(inner) = weak.upgrade() {
                records::look(&inner, &mut known, round.is_multiple_of(5));
                drop(inner);
                round = round.wrapping_add(1);
                std::thread::sleep(Duration::from_millis(100));
            }
        })
        .map_err(PlatformError::io("starting to watch processes"))?;
    Ok(())
}

fn make_private(path: &Path) -> Result<(), PlatformError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PlatformError::io(format!("making {}", path.display())))
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
