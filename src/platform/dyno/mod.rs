//! The supervisor of one process (`landfall dyno --spec FILE`), as containerd-shim is to a container.
//!
//! It outlives the `serve` that started it, owns the log and the exit status, and takes the sandbox with it when it
//! dies itself. It has one thread, because a sandbox's life is tied to the thread that started it (bubblewrap's issue
//! 692), and because it forks. It blocks in `poll` alone: no client of its sockets can hold it up.

pub mod dial;
mod end;
mod forward;
mod launch;
mod quota;
mod system;
mod tree;
mod watch;

use super::contract::{Exit, LogStream, Network, State};
use super::files::{self, Launch, Record};
use super::identity::{self, Identity};
use super::logs::{LineSplitter, LogWriter};
use crate::clock::{Clock, Timestamp};
use crate::domain::{Mask, RuntimeCode};
use dial::{Dialler, Factory};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often limits that nobody reports are looked at.
const WATCHED: Duration = Duration::from_millis(250);
/// How often what is used is written down where no control group tells it.
const USAGE_TOLD: Duration = Duration::from_secs(2);
/// How often the kernel's count of processes killed for memory is read, and how often anything is looked at at all.
const IDLE: Duration = Duration::from_secs(1);
/// Once lines are being forgotten, they are taken at this rate and the app waits: a flood costs little that way.
const FLOOD_BYTES: u64 = 512 << 10;
const FLOOD_PERIOD: Duration = Duration::from_millis(100);
/// `Exit::OutputLimit` at this many times of what is kept.
const OUTPUT_FACTOR: u64 = 256;
/// Says that the sandbox stands (see `sandbox::command`).
const STARTED: u8 = 6;

/// Detaches itself and supervises. The process that called is over at once, with 0 when the supervisor was begun.
pub fn main(spec_file: &Path) -> ! {
    let forked = system::fork(|| {
        system::close_from(3);
        let begun = nix::unistd::setsid().map_err(io::Error::from).and_then(|_| supervise(spec_file));
        match begun {
            Ok(()) => 0,
            Err(error) => {
                say(&format!("{}: {error}", spec_file.display()));
                1
            }
        }
    });
    system::exit_now(i32::from(forked.is_err()))
}

/// Into `supervisor.log`, which is this process's standard error.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{} {text}", now().rfc3339());
}

fn now() -> Timestamp {
    Clock::System.now()
}

/// Whether the other end of a socket is the user that runs Landfall.
fn is_ours(stream: &UnixStream) -> bool {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

fn supervise(spec_file: &Path) -> io::Result<()> {
    let spec_file = &std::path::absolute(spec_file)?;
    let folder = spec_file.parent().ok_or_else(|| io::Error::other("the specification has no folder"))?.to_owned();
    let claimed = folder.join(files::CLAIMED);
    match fs::rename(spec_file, &claimed) {
        Ok(()) => {}
        // Another supervisor has it: the process is started once.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _ = nix::sys::prctl::set_name(c"landfall-dyno");
    nix::sys::prctl::set_child_subreaper(true)?;
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // One descriptor for each client of the dial socket.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard);
    }
    let _ = fs::write("/proc/self/oom_score_adj", "-500");

    let own = Identity::of(getpid().as_raw()).ok_or_else(|| io::Error::other("/proc is not readable"))?;
    let record = Record { supervisor: own, sandbox: None, state: State::Starting };
    files::replace(&folder.join(files::STATE), &record)?;
    let launch = match files::read::<Launch>(&claimed) {
        Ok(launch) => launch,
        Err(error) => {
            let why = Exit::CouldNotStart(format!("reading its specification: {error}"));
            let record = Record { state: files::exited(None, None, why, now()), ..record };
            return files::replace(&folder.join(files::STATE), &record);
        }
    };
    fs::remove_file(&claimed)?;
    Supervisor::new(launch, record)?.run();
    Ok(())
}

struct Child {
    monitor: Pid,
    /// The end of a pipe, until its last writer is gone.
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    setup: Option<OwnedFd>,
    status: Option<OwnedFd>,
    _life: Option<OwnedFd>,
    /// Held until the services are there.
    gate: Option<OwnedFd>,
}

struct Control {
    stream: UnixStream,
    line: Vec<u8>,
    deadline: Instant,
}

struct Stopping {
    sweep: watch::TermSweep,
    kill_at: Instant,
    killed: bool,
}

struct Supervisor {
    launch: Launch,
    record: Record,
    log: LogWriter,
    output: LineSplitter,
    errors: LineSplitter,
    signals: SignalFd,
    control: UnixListener,
    controls: Vec<Control>,
    dial: Option<UnixListener>,
    dialler: Dialler,
    /// Passes connections to services on.
    forwarder: Option<Pid>,
    child: Option<Child>,
    setup_text: Vec<u8>,
    status_text: Vec<u8>,
    exit_code: Option<i32>,
    monitor_status: Option<WaitStatus>,
    started: bool,
    entered: bool,
    stop_asked: bool,
    reason: Option<Exit>,
    stopping: Option<Stopping>,
    began: Instant,
    taken: u64,
    flood: (Instant, u64),
    memory_kills: u64,
    quota: quota::Quota,
    next_watch: Instant,
    next_usage: Instant,
    disk: watch::Disk,
}

impl Supervisor {
    fn new(launch: Launch, record: Record) -> io::Result<Supervisor> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
            mask.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let control = listen(&launch.control_socket)?;
        let dial = launch.spec.port.map(|_| listen(&launch.dial_socket)).transpose()?;
        let factory = if launch.spec.network == Network::Host { Factory::Own } else { Factory::None };
        let log = LogWriter::new(&launch.folder, launch.spec.limits.output_bytes);
        let dialler = Dialler::new(launch.spec.port.unwrap_or(0), factory);
        let disk = watch::Disk::of(&launch.spec);
        let masked = launch.spec.masked.iter().filter_map(|name| launch.spec.environment.get(name));
        let mask = Mask::of(masked.map(String::as_str));
        let began = Instant::now();
        Ok(Supervisor {
            launch,
            record,
            log,
            output: LineSplitter::new(LogStream::Out, mask.clone()),
            errors: LineSplitter::new(LogStream::Err, mask),
            signals,
            control,
            controls: Vec::new(),
            dial,
            dialler,
            forwarder: None,
            child: None,
            setup_text: Vec::new(),
            status_text: Vec::new(),
            exit_code: None,
            monitor_status: None,
            started: false,
            entered: false,
            stop_asked: false,
            reason: None,
            stopping: None,
            began,
            taken: 0,
            flood: (began, 0),
            memory_kills: 0,
            quota: quota::Quota::default(),
            next_watch: began,
            next_usage: began,
            disk,
        })
    }

    fn run(mut self) {
        // `stop` may have come before the control socket was there; it left a file then.
        if self.launch.folder.join(files::STOP).exists() {
            self.stop_asked = true;
        } else if let Err(error) = self.begin() {
            self.reason = Some(Exit::CouldNotStart(error));
        }
        while self.child.is_some() && self.monitor_status.is_none() {
            self.wait();
        }
        self.finish();
    }

    fn begin(&mut self) -> Result<(), String> {
        self.launch.groups.create(&self.launch.spec.limits).map_err(|error| format!("limiting it: {error}"))?;
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("making a pipe: {error}"));
        let (output, output_end) = pipe()?;
        let (errors, errors_end) = pipe()?;
        let (setup, setup_end) = pipe()?;
        let (status, status_end) = pipe()?;
        let (life, life_end) = pipe()?;
        let (gate, gate_end) = pipe()?;
        let (mut life_end, mut gate_end) = (Some(life_end), Some(gate_end));
        for end in [&output, &errors, &setup, &status] {
            nonblocking(end).map_err(|error| format!("preparing a pipe: {error}"))?;
        }
        let user = (nix::unistd::geteuid(), nix::unistd::getegid());
        let monitor = system::fork_into(launch::namespaces(), || {
            // The child's copy: while the supervisor holds the only one, its death is a hang-up.
            drop(life_end.take());
            drop(gate_end.take());
            let pipes = launch::Pipes {
                life: life.as_fd(),
                output: output_end.as_fd(),
                errors: errors_end.as_fd(),
                setup: setup_end.as_fd(),
                status: status_end.as_fd(),
                gate: gate.as_fd(),
            };
            let failure = launch::become_sandbox(&self.launch, user, &pipes);
            let _ = nix::unistd::write(&setup_end, failure.as_bytes());
            1
        })
        .map_err(|error| format!("making namespaces: {error}"))?;
        self.child = Some(Child {
            monitor,
            output: Some(output),
            errors: Some(errors),
            setup: Some(setup),
            status: Some(status),
            _life: life_end,
            gate: gate_end,
        });
        Ok(())
    }

    /// Sleeps until something happens, then deals with all of it.
    fn wait(&mut self) {
        let timeout = self.next_deadline().saturating_duration_since(Instant::now());
        // A millisecond more, so that the deadline has passed when this returns.
        let timeout = u16::try_from(timeout.as_millis() + 1).unwrap_or(u16::MAX);
        {
            let mut polled = vec![readable(self.signals.as_fd()), readable(self.control.as_fd())];
            polled.extend(self.dial.iter().map(|dial| readable(dial.as_fd())));
            polled.extend(self.controls.iter().map(|control| readable(control.stream.as_fd())));
            polled.extend(self.disk.pipe().map(readable));
            if let Some(child) = &self.child {
                polled.extend([&child.setup, &child.status].into_iter().flatten().map(|fd| readable(fd.as_fd())));
                if !self.is_flooded() {
                    polled.extend([&child.output, &child.errors].into_iter().flatten().map(|fd| readable(fd.as_fd())));
                }
            }
            polled.extend(self.dialler.clients().map(readable));
            polled.extend(self.dialler.connecting().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
            let _ = poll(&mut polled, PollTimeout::from(timeout));
        }
        self.take_signals();
        self.take_status();
        self.take_setup();
        self.enter_network();
        self.take_output();
        if let Some(dial) = &self.dial {
            self.dialler.accept(dial);
        }
        self.dialler.step();
        self.take_commands();
        self.keep_limits();
        self.keep_stopping();
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        if self.is_flooded() {
            next = next.min(self.flood.0 + FLOOD_PERIOD);
        }
        if let Some(stopping) = &self.stopping {
            next = next.min(now + Duration::from_millis(100)).min(stopping.kill_at.max(now));
        }
        if self.watches_memory() {
            next = next.min(self.next_watch);
        }
        let limit = self.launch.spec.time_limit.filter(|_| self.stopping.is_none()).map(|limit| self.began + limit);
        [limit, self.dialler.deadline(), self.disk.deadline()].into_iter().flatten().fold(next, Instant::min)
    }

    /// The signal file is emptied, then every child that ended is asked for: signals merge, so they are no count.
    fn take_signals(&mut self) {
        let mut terminate = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            terminate |= number == Signal::SIGTERM as i32 || number == Signal::SIGINT as i32;
        }
        if terminate {
            self.stop_asked = true;
            self.begin_stopping(None);
        }
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            if self.child.as_ref().is_some_and(|child| child.monitor == pid)
                && matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..))
            {
                self.monitor_status = Some(status);
            }
            if matches!(&self.dialler.factory, Factory::Child { pid: factory, .. } if *factory == pid) {
                self.dialler.factory = Factory::None;
                if self.monitor_status.is_none() {
                    self.system_line("the network namespace can't be entered: the app can't be reached");
                }
            }
            if self.forwarder == Some(pid) {
                self.forwarder = None;
                if self.monitor_status.is_none() {
                    self.system_line("the services on its loopback have ended");
                }
            }
        }
    }

    /// What bubblewrap reports: the first process's number, later its exit code.
    fn take_status(&mut self) {
        let Some(child) = &mut self.child else { return };
        let monitor = child.monitor.as_raw();
        read_all(&mut child.status, &mut self.status_text, 64 << 10);
        while let Some(end) = self.status_text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.status_text.drain(..=end).collect();
            let Ok(report) = serde_json::from_slice::<serde_json::Value>(&line) else { continue };
            let number = |key: &str| report.get(key)?.as_i64().and_then(|number| i32::try_from(number).ok());
            if let Some(code) = number("exit-code") {
                self.exit_code = Some(code);
            }
            // The number that it tells counts in another pid namespace; here it is the monitor's only child.
            if number("child-pid").is_some() {
                self.record.sandbox = identity::children(monitor).first().and_then(|&pid| Identity::of(pid));
            }
        }
    }

    /// Before the first byte of the app: what goes wrong with the walls. The mark itself: it runs.
    fn take_setup(&mut self) {
        let Some(child) = &mut self.child else { return };
        if self.started {
            return;
        }
        read_all(&mut child.setup, &mut self.setup_text, 64 << 10);
        if !self.setup_text.contains(&STARTED) {
            return;
        }
        self.started = true;
        // The app can reach this pipe through its first process; nothing from there counts any more.
        child.setup = None;
        if self.stopping.is_none() {
            self.record.state = State::Running { since: now() };
        }
        self.write_record();
    }

    /// Once the walls stand and the first process is known, in either order.
    fn enter_network(&mut self) {
        if self.entered || !self.started || self.launch.spec.network == Network::Host {
            return;
        }
        let Some(sandbox) = self.record.sandbox.as_ref().map(|sandbox| sandbox.pid) else { return };
        self.entered = true;
        if self.dial.is_some() {
            match Factory::enter(sandbox) {
                Ok(factory) => self.dialler.factory = factory,
                Err(error) => self.system_line(&format!("the app can't be reached: {error}")),
            }
        }
        let gate = self.child.as_mut().and_then(|child| child.gate.take());
        if let (Some(gate), false) = (gate, self.launch.spec.services.is_empty()) {
            match forward::start(sandbox, &self.launch.spec.services, gate) {
                Ok(pid) => self.forwarder = Some(pid),
                Err(error) => self.system_line(&format!("its services can't be reached: {error}")),
            }
        }
    }

    fn is_flooded(&self) -> bool {
        self.log.overflowing() && self.flood.1 >= FLOOD_BYTES && self.flood.0.elapsed() < FLOOD_PERIOD
    }

    fn take_output(&mut self) {
        if self.flood.0.elapsed() >= FLOOD_PERIOD {
            self.flood = (Instant::now(), 0);
        }
        if self.is_flooded() {
            return;
        }
        let Some(child) = &mut self.child else { return };
        let at = now();
        let before = self.log.end().offset;
        let mut taken = 0;
        for (pipe, splitter) in [(&mut child.output, &mut self.output), (&mut child.errors, &mut self.errors)] {
            let mut bytes = Vec::new();
            read_all(pipe, &mut bytes, 64 << 10);
            splitter.feed(at, &bytes, &mut self.log);
            taken += bytes.len();
        }
        if taken > 0 {
            self.log.flush();
        }
        self.flood.1 += self.log.end().offset - before;
        self.taken += taken as u64;
        let most = self.launch.spec.limits.output_bytes.saturating_mul(OUTPUT_FACTOR);
        if self.launch.spec.time_limit.is_some() && self.taken > most && self.reason.is_none() {
            self.system_line("stopped: it wrote far more than is kept");
            self.reason = Some(Exit::OutputLimit);
            self.kill_everything();
        }
    }

    fn take_commands(&mut self) {
        while let Ok((stream, _)) = self.control.accept() {
            if is_ours(&stream) && self.controls.len() < 64 && stream.set_nonblocking(true).is_ok() {
                let deadline = Instant::now() + Duration::from_secs(5);
                self.controls.push(Control { stream, line: Vec::new(), deadline });
            }
        }
        let mut controls = std::mem::take(&mut self.controls);
        controls.retain_mut(|control| {
            let mut bytes = [0_u8; 64];
            match control.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(length) => control.line.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            if let Some(end) = control.line.iter().position(|&byte| byte == b'\n') {
                let answer = self.obey(&control.line[..end]);
                let _ = control.stream.write(answer.as_bytes());
                return false;
            }
            control.line.len() < 64 && Instant::now() < control.deadline
        });
        self.controls = controls;
    }

    fn obey(&mut self, command: &[u8]) -> String {
        match command {
            b"ping" => "pong\n".to_owned(),
            b"term" => {
                self.stop_asked = true;
                self.begin_stopping(None);
                "ok\n".to_owned()
            }
            b"kill" => {
                self.stop_asked = true;
                self.kill_everything();
                "ok\n".to_owned()
            }
            b"stats" => {
                let groups = &self.launch.groups;
                let (memory, cpu) = (groups.memory_bytes(), groups.cpu_millis_used());
                serde_json::json!({ "memory_bytes": memory, "cpu_millis_used": cpu, "output_bytes": self.taken })
                    .to_string()
                    + "\n"
            }
            _ => "unknown command\n".to_owned(),
        }
    }

    fn watches_memory(&self) -> bool {
        !self.launch.groups.has(super::cgroups::Controller::Memory)
    }

    fn keep_limits(&mut self) {
        if self.monitor_status.is_some() {
            return;
        }
        let limit = self.launch.spec.time_limit;
        if let Some(limit) = limit.filter(|limit| self.stopping.is_none() && self.began.elapsed() >= *limit) {
            self.system_line(&format!("stopped: it ran for {} s, its limit", limit.as_secs_f64()));
            self.begin_stopping(Some(Exit::TimeLimit));
        }
        let grown = if self.started { self.disk.step() } else { 0 };
        if grown > self.launch.spec.limits.disk_bytes && self.reason.is_none() {
            self.system_line(&format!("killed: it wrote {grown} bytes, more than its limit"));
            self.reason = Some(Exit::DiskLimit);
            self.kill_everything();
        }
        let now = Instant::now();
        if now < self.next_watch {
            return;
        }
        // No process outlives its record.
        if !self.launch.folder.join(files::STATE).exists() {
            self.kill_everything();
        }
        if self.watches_memory() {
            self.next_watch = now + WATCHED;
            let Some(sandbox) = &self.record.sandbox else { return };
            let usage = watch::usage(&watch::members(&self.launch.groups, sandbox.pid));
            self.keep_quota(usage.memory_bytes);
            if usage.memory_bytes > self.launch.spec.limits.memory_bytes && self.reason.is_none() {
                self.note_code(RuntimeCode::R15);
                self.system_line(&format!("killed: it used {} bytes of memory", usage.memory_bytes));
                self.reason = Some(Exit::OutOfMemory);
                self.kill_everything();
            }
            if now >= self.next_usage {
                self.next_usage = now + USAGE_TOLD;
                let _ = files::replace(&self.launch.folder.join(files::USAGE), &usage);
            }
        } else {
            self.next_watch = now + IDLE;
            if let Some(bytes) = self.launch.groups.unreclaimable_bytes() {
                self.keep_quota(bytes);
            }
            self.note_memory_kills();
        }
    }

    fn note_memory_kills(&mut self) {
        let kills = self.launch.groups.out_of_memory_kills();
        if kills > self.memory_kills {
            self.memory_kills = kills;
            self.note_code(RuntimeCode::R15);
            let limit = self.launch.spec.limits.memory_bytes >> 20;
            self.system_line(&format!("out of memory: a process was killed at the limit of {limit} MiB"));
        }
    }

    fn begin_stopping(&mut self, reason: Option<Exit>) {
        if self.stopping.is_some() || self.monitor_status.is_some() {
            return;
        }
        self.reason = self.reason.take().or(reason);
        let kill_at = Instant::now() + self.launch.spec.grace;
        self.stopping = Some(Stopping { sweep: watch::TermSweep::default(), kill_at, killed: false });
        self.record.state = State::Stopping;
        self.write_record();
        if !self.started {
            self.kill_everything();
        }
    }

    fn keep_stopping(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if self.monitor_status.is_some() {
            return;
        }
        if stopping.killed || Instant::now() >= stopping.kill_at {
            if !stopping.killed {
                self.note_code(RuntimeCode::R12);
                let grace = self.launch.spec.grace.as_secs_f64();
                self.system_line(&format!("killed: it had not ended {grace} s after SIGTERM"));
            }
            self.kill_everything();
        } else if let (Some(child), Some(sandbox)) = (&self.child, &self.record.sandbox) {
            let members = watch::members(&self.launch.groups, sandbox.pid);
            stopping.sweep.step(&members, child.monitor.as_raw(), sandbox.pid);
        }
    }

    /// The monitor is the first process of a pid namespace, which takes all others with it.
    fn kill_everything(&mut self) {
        if self.stopping.is_none() {
            let kill_at = Instant::now();
            self.stopping = Some(Stopping { sweep: watch::TermSweep::default(), kill_at, killed: true });
            self.record.state = State::Stopping;
            self.write_record();
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.killed = true;
        }
        // Not waited for yet, so its number is still its own.
        if let (Some(child), None) = (&self.child, &self.monitor_status) {
            let _ = kill(child.monitor, Signal::SIGKILL);
        }
    }

    fn system_line(&mut self, text: &str) {
        self.log.line(now(), LogStream::System, text.as_bytes());
        self.log.flush();
    }

    fn write_record(&self) {
        if let Err(error) = files::replace(&self.launch.folder.join(files::STATE), &self.record) {
            say(&format!("writing the state: {error}"));
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// Takes what is there, `most` bytes at most; at the end of the stream the descriptor is given up.
fn read_all(pipe: &mut Option<OwnedFd>, into: &mut Vec<u8>, most: usize) {
    let mut buffer = [0_u8; 64 << 10];
    let mut taken = 0;
    while let (Some(fd), true) = (&*pipe, taken < most) {
        match nix::unistd::read(fd, &mut buffer) {
            Ok(0) => *pipe = None,
            Ok(length) => {
                into.extend_from_slice(&buffer[..length]);
                taken += length;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => return,
            Err(_) => *pipe = None,
        }
    }
}
