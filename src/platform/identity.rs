//! Which process is meant, so that a number that the kernel gave to another one since is never signalled.
//!
//! A process is its boot, its number and the moment it was started. A zombie counts as gone.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub boot: String,
    pub pid: i32,
    /// Clock ticks after boot, field 22 of proc(5) `stat`.
    pub start: u64,
}

impl Identity {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Identity> {
        let (_, start) = state_and_start(pid)?;
        Some(Identity { boot: boot_id(), pid, start })
    }

    pub fn is_alive(&self) -> bool {
        self.boot == boot_id()
            && state_and_start(self.pid)
                .is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

/// Changes at each boot of the machine; empty where the kernel doesn't tell.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The parent of a process, field 4 of proc(5) `stat`.
pub fn parent(pid: i32) -> Option<i32> {
    fields(pid)?.1.first()?.parse().ok()
}

/// Direct children of all threads of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let Ok(text) = std::fs::read_to_string(thread.path().join("children")) else {
            // Not told by this kernel (CONFIG_PROC_CHILDREN), or the thread is gone.
            continue;
        };
        children.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    children
}

fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let (state, rest) = fields(pid)?;
    Some((state, rest.get(18)?.parse().ok()?))
}

/// The state, then the fields from the fourth on. The second field is the program's own name, which may hold anything.
fn fields(pid: i32) -> Option<(char, Vec<String>)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut rest = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((state, rest.map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_or_another_start_is_another_process() {
        let own = Identity::of(std::process::id() as i32).expect("this process is there");
        assert!(own.is_alive());
        assert!(!Identity { boot: "another".to_owned(), ..own.clone() }.is_alive());
        assert!(!Identity { start: own.start + 1, ..own }.is_alive());
        assert_eq!(Identity::of(i32::MAX), None);
    }
}
