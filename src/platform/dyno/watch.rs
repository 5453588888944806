//! What the supervisor looks at by itself: who is inside, how much they use where no control group counts it, how
//! fast a build folder grows, and who has been told to end.

use super::{system, tree};
use crate::platform::cgroups::{Controller, Groups};
use crate::platform::contract::{Code, Spec};
use crate::platform::files::Usage;
use crate::platform::identity::{self, Identity};
use nix::sys::signal::Signal;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// All processes of the sandbox, bubblewrap's own first process included.
pub fn members(groups: &Groups, sandbox: i32) -> Vec<i32> {
    if groups.has(Controller::Pids) || groups.has(Controller::Memory) {
        return groups.members();
    }
    // Orphans inside become the first process's children, so its descendants are all there is.
    let mut members = vec![sandbox];
    let mut next = 0;
    while let Some(&pid) = members.get(next) {
        next += 1;
        members.extend(identity::children(pid));
    }
    members
}

pub fn usage(members: &[i32]) -> Usage {
    let mut usage = Usage { memory_bytes: 0, cpu_millis_used: 0 };
    for pid in members {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // Shared pages of files count once for the machine, not for each process.
        for key in ["RssAnon:", "RssShmem:"] {
            let kilobytes = field(&status, key).and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
            usage.memory_bytes += kilobytes.unwrap_or(0) * 1024;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        // proc(5) fields 14 and 15, in hundredths of a second.
        let ticks: u64 =
            after.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        usage.cpu_millis_used += ticks * 10;
    }
    usage
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// SIGTERM to everything inside, once each. The shell that was started for the command is left to wait for what it
/// started, because the sandbox ends with it: it is told when it is alone, when it asked to be (a trap), or when it
/// starts something new.
#[derive(Default)]
pub struct TermSweep {
    told: Vec<Identity>,
    swept: bool,
}

impl TermSweep {
    /// `monitor` and `first` are bubblewrap's own processes outside and inside.
    pub fn step(&mut self, members: &[i32], monitor: i32, first: i32) {
        let mut shell = None;
        let mut others = 0;
        let mut restarted = false;
        for &pid in members.iter().filter(|&&pid| pid != monitor && pid != first) {
            let Some(identity) = Identity::of(pid).filter(Identity::is_alive) else { continue };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let inside = field(&status, "NSpid:").and_then(|value| value.split_ascii_whitespace().last());
            if inside == Some("2") && is_shell(pid) && !catches_term(&status) {
                shell = Some(identity);
                continue;
            }
            others += 1;
            if !self.told.contains(&identity) {
                restarted |= self.swept && identity::parent(pid).is_some_and(is_inside_second);
                self.tell(identity);
            }
        }
        if let Some(shell) = shell
            && (others == 0 || restarted)
            && !self.told.contains(&shell)
        {
            self.tell(shell);
        }
        self.swept = true;
    }

    fn tell(&mut self, identity: Identity) {
        if let Ok(handle) = system::pidfd(identity.pid)
            && identity.is_alive()
        {
            let _ = system::signal(handle.as_fd(), Signal::SIGTERM);
        }
        self.told.push(identity);
    }
}

fn is_inside_second(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "NSpid:").and_then(|value| value.split_ascii_whitespace().last()) == Some("2")
}

fn is_shell(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // By its loader it is started in the root of an image.
    matches!(name, "bash" | "dash" | "sh" | "ash" | "busybox") || name.starts_with("ld-linux")
}

fn catches_term(status: &str) -> bool {
    let caught = field(status, "SigCgt:").and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(0);
    caught & (1 << (Signal::SIGTERM as u32 - 1)) != 0
}

/// How much the folders of the machine that a process may write to have grown. A forked child counts, so that a tree of a
/// million files holds nothing up.
pub struct Disk {
    roots: Vec<PathBuf>,
    baseline: Option<u64>,
    grown: u64,
    counting: Option<Count>,
    next: Instant,
}

struct Count {
    pid: nix::unistd::Pid,
    pipe: OwnedFd,
    began: Instant,
}

impl Disk {
    pub fn of(spec: &Spec) -> Disk {
        let mut roots: Vec<PathBuf> =
            spec.binds.iter().filter(|bind| bind.writable).map(|bind| bind.host.clone()).collect();
        if let Code::Folder { path } = &spec.code {
            roots.push(path.clone());
        }
        Disk { roots, baseline: None, grown: 0, counting: None, next: Instant::now() }
    }

    /// Ends a count under way. Its child has not been waited for, so the number is still its own.
    pub fn cancel(&mut self) {
        if let Some(count) = self.counting.take()
            && nix::sys::wait::waitpid(count.pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                == Ok(nix::sys::wait::WaitStatus::StillAlive)
        {
            let _ = nix::sys::signal::kill(count.pid, Signal::SIGKILL);
        }
    }

    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.counting.as_ref().map(|count| count.pipe.as_fd())
    }

    pub fn deadline(&self) -> Option<Instant> {
        (!self.roots.is_empty() && self.counting.is_none()).then_some(self.next)
    }

    /// Bytes added since the first count, as far as is known.
    pub fn step(&mut self) -> u64 {
        if let Some(Count { pipe, began, .. }) = &self.counting {
            let mut bytes = [0_u8; 8];
            match nix::unistd::read(pipe, &mut bytes) {
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                result => {
                    if result == Ok(8) {
                        let total = u64::from_ne_bytes(bytes);
                        let baseline = *self.baseline.get_or_insert(total);
                        self.grown = total.saturating_sub(baseline);
                    }
                    // A long walk is not begun again at once.
                    self.next = Instant::now() + Duration::from_secs(2).max(began.elapsed() * 5);
                    self.counting = None;
                }
            }
        } else if !self.roots.is_empty() && Instant::now() >= self.next {
            self.next = Instant::now() + Duration::from_secs(2);
            self.counting = self.count().ok();
        }
        self.grown
    }

    fn count(&self) -> std::io::Result<Count> {
        let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        let pid = system::fork(|| {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let Ok(copy) = system::above(theirs.as_fd()) else { return 1 };
            if system::put(copy.as_fd(), 3).is_err() {
                return 1;
            }
            drop(copy);
            system::close_from(4);
            let channel = system::received(3);
            let total: u64 = self.roots.iter().map(|root| tree::bytes(root)).sum();
            i32::from(nix::unistd::write(&channel, &total.to_ne_bytes()).is_err())
        })?;
        Ok(Count { pid, pipe: ours, began: Instant::now() })
    }
}
