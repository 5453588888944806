//! From a forked child of the supervisor to the sandbox: its groups and limits, a private mount namespace in which
//! `/app` is put together, the loss of all rights, and bubblewrap.
//!
//! Whatever is bound is opened before the staging place covers anything and before rights are dropped, so the data
//! folder may lie where the sandbox's user can't go. An error here is written where bubblewrap's own would be.

use super::system;
use super::tree;
use crate::platform::cgroups::Controller;
use crate::platform::contract::{Code, Walls};
use crate::platform::files::Launch;
use crate::platform::sandbox::{self, Staged};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, execve, getegid, geteuid, setgroups, setresgid, setresuid};
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The ends of the pipes that the sandbox gets.
pub struct Pipes<'a> {
    /// Its other end is the supervisor's alone: it hangs up when the supervisor is gone.
    pub life: BorrowedFd<'a>,
    pub output: BorrowedFd<'a>,
    pub errors: BorrowedFd<'a>,
    /// bubblewrap's standard error until the walls stand.
    pub setup: BorrowedFd<'a>,
    pub status: BorrowedFd<'a>,
    /// Closed or written to once its services are there.
    pub gate: BorrowedFd<'a>,
}

/// Descriptors of bubblewrap; the app gets 0 to 2 only (3 is closed by the first line that runs inside).
const ERRORS: i32 = 3;
const ARGUMENTS: i32 = 4;
const STATUS: i32 = sandbox::STATUS_OUT;
const SECCOMP: i32 = 6;

/// Files larger than this in /tmp make no sense for an app; the kernel's memory limit holds besides.
const TEMPORARY_BYTES: u64 = 256 << 20;

type Failure = String;

/// Becomes bubblewrap. Returns only to say what failed. `user` is whom the supervisor runs as.
pub fn become_sandbox(launch: &Launch, user: (Uid, Gid), pipes: &Pipes<'_>) -> Failure {
    match prepare_and_exec(launch, user, pipes) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn prepare_and_exec(
    launch: &Launch,
    (own_uid, own_gid): (Uid, Gid),
    pipes: &Pipes<'_>,
) -> Result<std::convert::Infallible, Failure> {
    let spec = &launch.spec;
    die_with_supervisor(pipes)?;
    let root = own_uid.is_root();
    if !root {
        map_identity(own_uid, own_gid)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(saying("resetting signals"))?;
    reset_pipe_signal()?;
    launch.groups.join().map_err(saying("joining the control groups"))?;
    // When the machine runs short, an app dies before Landfall does.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    if !launch.groups.has(Controller::Cpu) {
        lower_priority();
    }

    make_mounts_private()?;
    // bubblewrap looks its child up by a number of the pid namespace that it is born into.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(saying("mounting /proc"))?;
    if spec.walls == Walls::None {
        return exec_without_walls(launch, pipes);
    }
    let staged = stage(launch, root)?;

    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(saying("limiting core dumps"))?;
    limit(Resource::RLIMIT_NOFILE, spec.limits.open_files)?;
    if matches!(spec.code, Code::Folder { .. }) {
        limit(Resource::RLIMIT_FSIZE, spec.limits.disk_bytes)?;
    }
    if root {
        let (uid, gid) = (Uid::from_raw(launch.sandbox.uid), Gid::from_raw(launch.sandbox.gid));
        setgroups(&[]).map_err(saying("dropping groups"))?;
        setresgid(gid, gid, gid).map_err(saying("dropping the group"))?;
        setresuid(uid, uid, uid).map_err(saying("dropping root"))?;
        // The kernel forgets it with the change of the user.
        die_with_supervisor(pipes)?;
    }
    if !launch.groups.has(Controller::Pids) {
        // Processes are counted for each user in each user namespace, so one of its own makes the count the app's.
        if root {
            let (uid, gid) = (geteuid(), getegid());
            // Its files in /proc are root's since it stopped being root.
            nix::sys::prctl::set_dumpable(true).map_err(saying("opening /proc/self"))?;
            unshare(CloneFlags::CLONE_NEWUSER).map_err(saying("making a user namespace"))?;
            map_identity(uid, gid)?;
        }
        limit(Resource::RLIMIT_NPROC, spec.limits.processes.saturating_add(4))?;
    }

    let null =
        open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(saying("opening /dev/null"))?;
    let seccomp = sandbox::seccomp().ok_or_else(|| format!("no system call filter for {}", std::env::consts::ARCH))?;
    let seccomp = memory_file(&seccomp)?;
    let mut arguments = Vec::new();
    for word in sandbox::options(spec, &staged, STATUS, SECCOMP) {
        arguments.extend_from_slice(word.as_bytes());
        arguments.push(0);
    }
    let arguments = memory_file(&arguments)?;

    let from: Vec<OwnedFd> = [
        null.as_fd(),
        pipes.output,
        pipes.setup,
        pipes.errors,
        arguments.as_fd(),
        pipes.status,
        seccomp.as_fd(),
        pipes.gate,
    ]
    .into_iter()
    .map(system::above)
    .collect::<Result<_, _>>()
    .map_err(saying("copying descriptors"))?;
    for (number, fd) in [0, 1, 2, ERRORS, ARGUMENTS, STATUS, SECCOMP, sandbox::GATE].into_iter().zip(&from) {
        system::put(fd.as_fd(), number).map_err(saying("placing descriptors"))?;
    }
    // Nobody waits at the gate who has no services, so nobody shall hold it either.
    system::close_from(if sandbox::waits_for_services(spec) { sandbox::GATE + 1 } else { sandbox::GATE });

    let program = c_string(launch.sandbox.bubblewrap.as_os_str())?;
    let mut words = vec!["bwrap".to_owned(), "--args".to_owned(), ARGUMENTS.to_string(), "--".to_owned()];
    match &spec.walls {
        Walls::Image(_) => words.extend(sandbox::command_in_image(spec, &machine_s_shell()?, &machine_s_loader()?)),
        Walls::Sandbox | Walls::None => words.extend(sandbox::command(spec, staged.has_bash)),
    }
    let words = words.iter().map(|word| c_string(OsStr::new(word))).collect::<Result<Vec<_>, _>>()?;
    let nothing: [CString; 0] = [];
    match execve(&program, &words, &nothing) {
        Ok(never) => Ok(never),
        Err(error) => Err(format!("starting {}: {error}", launch.sandbox.bubblewrap.display())),
    }
}

/// Becomes a shell that sees all of the machine: for the operator's own container engine. Its descendants end with it all
/// the same, since they are in a pid namespace of their own.
fn exec_without_walls(launch: &Launch, pipes: &Pipes<'_>) -> Result<std::convert::Infallible, Failure> {
    let spec = &launch.spec;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(saying("limiting core dumps"))?;
    limit(Resource::RLIMIT_NOFILE, spec.limits.open_files)?;
    let null =
        open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(saying("opening /dev/null"))?;
    let from: Vec<OwnedFd> = [null.as_fd(), pipes.output, pipes.setup, pipes.errors, null.as_fd(), pipes.status]
        .into_iter()
        .map(system::above)
        .collect::<Result<_, _>>()
        .map_err(saying("copying descriptors"))?;
    for (number, fd) in [0, 1, 2, ERRORS, ARGUMENTS, STATUS].into_iter().zip(&from) {
        system::put(fd.as_fd(), number).map_err(saying("placing descriptors"))?;
    }
    system::close_from(STATUS + 1);
    let words = sandbox::command_without_walls(spec);
    let words = words.iter().map(|word| c_string(OsStr::new(word))).collect::<Result<Vec<_>, _>>()?;
    let environment = spec
        .environment
        .iter()
        .map(|(name, value)| c_string(OsStr::new(&format!("{name}={value}"))))
        .collect::<Result<Vec<_>, _>>()?;
    match execve(c"/bin/bash", &words, &environment) {
        Ok(never) => Ok(never),
        Err(error) => Err(format!("starting /bin/bash: {error}")),
    }
}

fn machine_s_shell() -> Result<PathBuf, Failure> {
    below_usr(&["/bin/dash", "/bin/sh"]).ok_or_else(|| "the machine has no shell below /usr".to_owned())
}

/// The loader of the machine's C library, by the two names that its programs call it.
fn machine_s_loader() -> Result<PathBuf, Failure> {
    below_usr(&["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"])
        .ok_or_else(|| "the machine has no loader of the GNU C library below /usr".to_owned())
}

fn below_usr(names: &[&str]) -> Option<PathBuf> {
    let found = names.iter().filter_map(|name| fs::canonicalize(name).ok());
    found.into_iter().find(|path| path.starts_with("/usr"))
}

/// The namespaces that the first process of a sandbox is born into. Its pid namespace is below the supervisor's and
/// above bubblewrap's own, so that nothing can be left between the two however early the supervisor dies.
pub fn namespaces() -> CloneFlags {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    if geteuid().is_root() { namespaces } else { namespaces | CloneFlags::CLONE_NEWUSER }
}

/// Dies at once when the supervisor does, even if it did before this was said.
fn die_with_supervisor(pipes: &Pipes<'_>) -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(saying("tying the life to the supervisor"))?;
    let mut life = [PollFd::new(pipes.life, PollFlags::POLLIN)];
    match poll(&mut life, PollTimeout::ZERO) {
        Ok(0) => Ok(()),
        _ => Err("the supervisor is gone".to_owned()),
    }
}

fn reset_pipe_signal() -> Result<(), Failure> {
    // SAFETY: the default action is no handler of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(saying("resetting signals"))?;
    Ok(())
}

fn lower_priority() {
    // SAFETY: setpriority takes three numbers.
    let _ = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 5) };
}

fn make_mounts_private() -> Result<(), Failure> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(saying("making mounts private"))
}

fn map_identity(uid: Uid, gid: Gid) -> Result<(), Failure> {
    fs::write("/proc/self/setgroups", "deny").map_err(saying("denying setgroups"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).map_err(saying("mapping the user"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).map_err(saying("mapping the group"))
}

/// Puts everything that the sandbox binds below one folder that its user can reach.
fn stage(launch: &Launch, root: bool) -> Result<Staged, Failure> {
    let spec = &launch.spec;
    let owner = root.then_some((Uid::from_raw(launch.sandbox.uid), Gid::from_raw(launch.sandbox.gid)));

    let code = match &spec.code {
        Code::None => None,
        Code::Slug(_) | Code::Layered { .. } => {
            Some(open_source(launch.slug.as_deref().ok_or("the slug's folder is not named")?)?)
        }
        Code::Folder { path } => Some(open_source(path)?),
    };
    let below = launch.below.as_deref().map(open_source).transpose()?;
    let binds = spec.binds.iter().map(|bind| open_source(&bind.host)).collect::<Result<Vec<_>, _>>()?;
    let toolchains = launch
        .sandbox
        .toolchains
        .iter()
        .map(|path| Ok((open_source(path)?, path.clone())))
        .collect::<Result<Vec<_>, Failure>>()?;
    if let (Some((uid, gid)), Code::Folder { .. }, Some(folder)) = (owner, &spec.code, &code) {
        tree::give(folder.as_fd(), uid, gid).map_err(saying("giving the folder to the sandbox's user"))?;
    }
    for (bind, source) in spec.binds.iter().zip(&binds) {
        if let (Some((uid, gid)), true) = (owner, bind.writable) {
            tree::give(source.as_fd(), uid, gid).map_err(saying("giving a bound folder to the sandbox's user"))?;
        }
    }

    let place = ["/mnt", "/tmp", "/run", "/opt"]
        .into_iter()
        .map(Path::new)
        .find(|place| fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_dir()))
        .ok_or("no folder to stage the sandbox in")?;
    let inodes = (spec.limits.disk_bytes / 4096).clamp(16_384, 1_000_000);
    mount_tmpfs(place, spec.limits.disk_bytes, inodes, 0o755)?;

    let app = place.join("app");
    let lower = place.join("lower");
    make_folder(&app, owner)?;
    match (&spec.code, &code) {
        (Code::Slug(_) | Code::Layered { .. }, Some(slug)) => {
            make_folder(&lower, None)?;
            bind(slug, &lower)?;
            let mut lowers = vec![lower];
            if let Some(below) = &below {
                let lowest = place.join("below");
                make_folder(&lowest, None)?;
                bind(below, &lowest)?;
                lowers.push(lowest);
            }
            overlay_or_copy(place, &lowers, &app, root, owner)?;
        }
        (Code::Folder { .. }, Some(folder)) => bind(folder, &app)?,
        (_, _) => {}
    }

    let temporary = place.join("tmp");
    make_folder(&temporary, None)?;
    mount_tmpfs(&temporary, spec.limits.disk_bytes.min(TEMPORARY_BYTES), 65_536, 0o1777)?;

    let etc = place.join("etc");
    make_folder(&etc, None)?;
    for (name, content) in sandbox::etc_files(spec) {
        let file = etc.join(name);
        fs::write(&file, content).map_err(saying("writing /etc"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).map_err(saying("writing /etc"))?;
    }
    let staged_binds = stage_sources(place, "bind", &binds)?;
    let (sources, insides): (Vec<_>, Vec<_>) = toolchains.into_iter().unzip();
    let staged_toolchains = stage_sources(place, "toolchain", &sources)?.into_iter().zip(insides).collect();

    let roots = sandbox::ROOTS
        .into_iter()
        .filter_map(|path| {
            let metadata = fs::symlink_metadata(path).ok()?;
            let target = metadata.is_symlink().then(|| fs::read_link(path).ok()).flatten();
            Some((path, target.map(|target| target.strip_prefix("/").map(Path::to_owned).unwrap_or(target))))
        })
        .collect();
    let settings = sandbox::VERSIONED_ETC.into_iter().flat_map(matching).collect();
    let has_bash = fs::metadata("/bin/bash").is_ok() || fs::metadata("/usr/bin/bash").is_ok();
    Ok(Staged { app, temporary, etc, binds: staged_binds, toolchains: staged_toolchains, has_bash, roots, settings })
}

/// The folders that a pattern of [`sandbox::VERSIONED_ETC`] names, in the order of their names.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part.split_once('*') {
            None => found.into_iter().map(|folder| folder.join(part)).collect(),
            Some((start, _)) => found.iter().flat_map(|folder| starting(folder, start)).collect(),
        };
    }
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

fn starting(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_bytes().starts_with(start.as_bytes()))
        .map(|entry| entry.path())
        .collect()
}

/// Published slugs, the uppermost first, below a private layer. Where the kernel doesn't allow that, a copy of them in
/// that layer.
fn overlay_or_copy(
    place: &Path,
    lowers: &[PathBuf],
    app: &Path,
    root: bool,
    owner: Option<(Uid, Gid)>,
) -> Result<(), Failure> {
    let (upper, work) = (place.join("upper"), place.join("work"));
    make_folder(&upper, owner)?;
    make_folder(&work, owner)?;
    let lower = lowers.iter().map(|lower| lower.display().to_string()).collect::<Vec<_>>().join(":");
    let mut options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    if !root {
        options.push_str(",userxattr");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if mount(Some("overlay"), app, Some("overlay"), flags, Some(options.as_str())).is_ok() {
        return Ok(());
    }
    for lower in lowers {
        tree::copy(lower, app, owner).map_err(saying("copying the slug"))?;
    }
    Ok(())
}

fn stage_sources(place: &Path, name: &str, sources: &[OwnedFd]) -> Result<Vec<PathBuf>, Failure> {
    let mut staged = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let target = place.join(format!("{name}{index}"));
        let is_folder = fs::metadata(proc_path(source)).map_err(saying("looking at a bound path"))?.is_dir();
        if is_folder {
            make_folder(&target, None)?;
        } else {
            fs::write(&target, "").map_err(saying("staging a bound file"))?;
        }
        bind(source, &target)?;
        staged.push(target);
    }
    Ok(staged)
}

fn open_source(path: &Path) -> Result<OwnedFd, Failure> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| format!("opening {}: {error}", path.display()))
}

fn bind(source: &OwnedFd, target: &Path) -> Result<(), Failure> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&proc_path(source)), target, None::<&str>, flags, None::<&str>)
        .map_err(|error| format!("binding {}: {error}", target.display()))
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn mount_tmpfs(target: &Path, bytes: u64, inodes: u64, mode: u32) -> Result<(), Failure> {
    let options = format!("size={bytes},nr_inodes={inodes},mode={mode:o}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| format!("mounting a tmpfs on {}: {error}", target.display()))
}

fn make_folder(path: &Path, owner: Option<(Uid, Gid)>) -> Result<(), Failure> {
    fs::create_dir(path).map_err(saying("staging a folder"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(saying("staging a folder"))?;
    if let Some((uid, gid)) = owner {
        nix::unistd::chown(path, Some(uid), Some(gid)).map_err(saying("staging a folder"))?;
    }
    Ok(())
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, value: u64) -> Result<(), Failure> {
    let (_, hard) = nix::sys::resource::getrlimit(resource).map_err(saying("reading a limit"))?;
    let value = value.min(hard);
    setrlimit(resource, value, value).map_err(saying("setting a limit"))
}

fn memory_file(content: &[u8]) -> Result<OwnedFd, Failure> {
    let fd = nix::sys::memfd::memfd_create("landfall", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(saying("making a memory file"))?;
    let mut file = fs::File::from(fd);
    file.write_all(content).and_then(|()| file.rewind()).map_err(saying("writing a memory file"))?;
    Ok(file.into())
}

fn c_string(text: &OsStr) -> Result<CString, Failure> {
    CString::new(text.as_bytes()).map_err(saying("passing an argument"))
}

fn saying<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> Failure {
    move |error| format!("{doing}: {error}")
}
