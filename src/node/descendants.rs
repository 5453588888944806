//! Nothing of a batch outlives it: whatever its command started, in whatever group or session, stays below this
//! process and is found by its parents.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

/// How long a fork bomb is fought before the sandbox itself has to end it.
const FIGHT: Duration = Duration::from_secs(20);

/// The first process of a sandbox, as the kernel knows it.
const SANDBOX: &str = "bwrap";

/// Processes whose parent ends become children of this one, so that none gets away.
pub fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Everything in the sandbox but its first process and this one stands still until this is dropped: one call of the
/// system, whatever there is. To look for a thousand busy processes one by one takes long, since they leave hardly any
/// processor to whoever looks.
struct Frozen;

impl Frozen {
    /// Nothing where this process is in no sandbox of its own: others would be meant too.
    fn all() -> Option<Frozen> {
        let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
        (first.trim_end() == SANDBOX && kill(Pid::from_raw(-1), Signal::SIGSTOP).is_ok()).then_some(Frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(-1), Signal::SIGCONT);
    }
}

pub fn signal(signal: Signal) {
    let _frozen = Frozen::all();
    tell(signal);
}

fn tell(signal: Signal) {
    for pid in all() {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends all of them for certain. They are frozen first: what is frozen starts nothing new.
pub fn end() {
    let _frozen = Frozen::all();
    let deadline = Instant::now() + FIGHT;
    loop {
        let mut frozen = BTreeSet::new();
        while Instant::now() < deadline {
            let new: Vec<i32> = all().into_iter().filter(|pid| !frozen.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                frozen.insert(pid);
            }
        }
        tell(Signal::SIGKILL);
        reap();
        if all().is_empty() || Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Collects what has ended, so that none of it counts as alive.
pub fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

pub fn are_alive() -> bool {
    !all().is_empty()
}

/// Every living process below this one.
fn all() -> Vec<i32> {
    let mut parents: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        // The name of the program stands in parentheses and may hold anything; state and parent come after it.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut words = rest.split_whitespace();
        let (state, parent) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && !matches!(state, "Z" | "X")
        {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let (mut found, mut next) = (Vec::new(), vec![own]);
    while let Some(parent) = next.pop() {
        let children = parents.remove(&parent).unwrap_or_default();
        next.extend(&children);
        found.extend(children);
    }
    found
}
