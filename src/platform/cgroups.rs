//! Control groups: memory, processor and process limits that hold for a whole tree, in either version of the
//! kernel's interface, and none where neither may be written.
//!
//! Each data folder has a group of its own (`landfall/<hash>`), and each process one below it, so that what is left
//! over can be found. What is missing here is watched by the supervisor instead; `check` says which is in force.

use super::contract::Limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
    /// Version 1 only, where the time used is counted apart.
    Cpuacct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    One,
    Two,
    None,
}

/// The groups of one data folder, or (one level below) of one process: a folder for each controller in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    pub version: Version,
    pub folders: BTreeMap<Controller, PathBuf>,
}

const LIMITING: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

impl Groups {
    /// Finds what may be written on this machine and makes the data folder's own group. `name` is that group's name.
    pub fn open(name: &str) -> Groups {
        let mounts = mounts();
        let one: BTreeMap<Controller, PathBuf> =
            [Controller::Memory, Controller::Cpu, Controller::Pids, Controller::Cpuacct]
                .into_iter()
                .filter_map(|controller| {
                    let mount = mounts.iter().find(|mount| mount.version == Version::One && mount.has(controller))?;
                    let folder = mount.path.join("landfall").join(name);
                    fs::create_dir_all(&folder).ok()?;
                    Some((controller, folder))
                })
                .collect();
        if LIMITING.iter().any(|controller| one.contains_key(controller)) {
            return Groups { version: Version::One, folders: one };
        }
        let own = own_group();
        for mount in mounts.iter().filter(|mount| mount.version == Version::Two) {
            let delegated = own.as_ref().map(|own| mount.path.join(own.trim_start_matches('/')));
            for parent in [Some(mount.path.clone()), delegated].into_iter().flatten() {
                if let Some(folder) = open_two(&parent, name) {
                    let folders = enabled(&folder.join("cgroup.controllers"))
                        .into_iter()
                        .map(|controller| (controller, folder.clone()))
                        .collect();
                    return Groups { version: Version::Two, folders };
                }
            }
        }
        Groups::none()
    }

    pub fn none() -> Groups {
        Groups { version: Version::None, folders: BTreeMap::new() }
    }

    pub fn has(&self, controller: Controller) -> bool {
        self.folders.contains_key(&controller)
    }

    /// The group of one process, not yet made.
    pub fn child(&self, id: &str) -> Groups {
        let folders =
            self.folders.iter().map(|(controller, folder)| (*controller, folder.join(id))).collect::<BTreeMap<_, _>>();
        Groups { version: self.version, folders }
    }

    /// Names of the groups directly below this one.
    pub fn children(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in self.folders.values() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// Makes the groups and sets their limits.
    pub fn create(&self, limits: &Limits) -> io::Result<()> {
        for (controller, folder) in &self.folders {
            fs::create_dir_all(folder)?;
            if self.version == Version::Two {
                // The group above may have been removed as empty since, and been made anew just now.
                for above in folder.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
                    drop(enable(above));
                }
            }
            let quota = limits.cpu_millis.saturating_mul(100);
            // bubblewrap's own two processes are not the app's.
            let processes = limits.processes.saturating_add(2);
            match (self.version, controller) {
                (Version::One, Controller::Memory) => {
                    write(folder, "memory.limit_in_bytes", &limits.memory_bytes.to_string())?;
                    // Absent where swap is not accounted.
                    drop(write(folder, "memory.memsw.limit_in_bytes", &limits.memory_bytes.to_string()));
                }
                (Version::One, Controller::Cpu) if quota > 0 => {
                    write(folder, "cpu.cfs_quota_us", &quota.max(1000).to_string())?;
                }
                (Version::Two, Controller::Memory) => {
                    write(folder, "memory.max", &limits.memory_bytes.to_string())?;
                    drop(write(folder, "memory.swap.max", "0"));
                }
                (Version::Two, Controller::Cpu) if quota > 0 => {
                    write(folder, "cpu.max", &format!("{} 100000", quota.max(1000)))?;
                }
                (_, Controller::Pids) => write(folder, "pids.max", &processes.to_string())?,
                (_, Controller::Cpu | Controller::Cpuacct) | (Version::None, _) => {}
            }
        }
        Ok(())
    }

    /// Moves the calling process in.
    pub fn join(&self) -> io::Result<()> {
        for folder in self.distinct() {
            write(folder, "cgroup.procs", "0")?;
        }
        Ok(())
    }

    pub fn members(&self) -> Vec<i32> {
        let mut members = Vec::new();
        for folder in self.distinct() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        members.sort_unstable();
        members.dedup();
        members
    }

    pub fn memory_bytes(&self) -> Option<u64> {
        let name = if self.version == Version::One { "memory.usage_in_bytes" } else { "memory.current" };
        number(&self.folders.get(&Controller::Memory)?.join(name))
    }

    /// Memory without what the kernel may take back: the cache of files.
    pub fn unreclaimable_bytes(&self) -> Option<u64> {
        let file = self.folders.get(&Controller::Memory)?.join("memory.stat");
        let (anonymous, shared) =
            if self.version == Version::One { ("total_rss", "total_shmem") } else { ("anon", "shmem") };
        Some(keyed(&file, anonymous)? + keyed(&file, shared).unwrap_or(0))
    }

    /// Processor time used, in milliseconds.
    pub fn cpu_millis_used(&self) -> Option<u64> {
        match self.version {
            Version::One => Some(number(&self.folders.get(&Controller::Cpuacct)?.join("cpuacct.usage"))? / 1_000_000),
            Version::Two => Some(keyed(&self.folders.get(&Controller::Cpu)?.join("cpu.stat"), "usage_usec")? / 1000),
            Version::None => None,
        }
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn out_of_memory_kills(&self) -> u64 {
        let name = if self.version == Version::One { "memory.oom_control" } else { "memory.events" };
        self.folders.get(&Controller::Memory).and_then(|folder| keyed(&folder.join(name), "oom_kill")).unwrap_or(0)
    }

    /// SIGKILL to every member; false when the kernel can't do that in one step.
    pub fn kill(&self) -> bool {
        self.version == Version::Two && self.distinct().all(|folder| write(folder, "cgroup.kill", "1").is_ok())
    }

    /// Removes the groups. The kernel refuses for some time after the last member went, so this is tried again.
    pub fn remove(&self, patience: Duration) -> io::Result<()> {
        let mut tries = patience.as_millis() / 5;
        for folder in self.distinct() {
            loop {
                match fs::remove_dir(folder) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if tries == 0 => return Err(error),
                    Err(_) => {
                        tries -= 1;
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        }
        Ok(())
    }

    fn distinct(&self) -> impl Iterator<Item = &PathBuf> {
        let mut seen: Vec<&PathBuf> = self.folders.values().collect();
        seen.dedup();
        seen.into_iter()
    }
}

struct Mount {
    path: PathBuf,
    version: Version,
    options: String,
}

impl Mount {
    fn has(&self, controller: Controller) -> bool {
        let name = match controller {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
            Controller::Cpuacct => "cpuacct",
        };
        self.options.split(',').any(|option| option == name)
    }
}

fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_mounts(&text)
}

fn parse_mounts(text: &str) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for line in text.lines() {
        // proc(5): optional fields end with a lone hyphen.
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(path) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let version = match right.next() {
            Some("cgroup") => Version::One,
            Some("cgroup2") => Version::Two,
            _ => continue,
        };
        let options = right.nth(1).unwrap_or_default().to_owned();
        mounts.push(Mount { path: PathBuf::from(path), version, options });
    }
    mounts
}

/// This process's own group in version 2.
fn own_group() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Makes `parent/landfall/name` with the limiting controllers switched on all the way, or nothing.
fn open_two(parent: &Path, name: &str) -> Option<PathBuf> {
    let offered = enabled(&parent.join("cgroup.controllers"));
    if !LIMITING.iter().any(|controller| offered.contains(controller)) {
        return None;
    }
    let folder = parent.join("landfall").join(name);
    fs::create_dir_all(&folder).ok()?;
    if enable(parent).is_err() {
        // A group with members of its own can't limit groups below it: its members move to a leaf beside ours.
        let leaf = parent.join("landfall-serve");
        fs::create_dir_all(&leaf).ok()?;
        for pid in fs::read_to_string(parent.join("cgroup.procs")).unwrap_or_default().lines() {
            drop(write(&leaf, "cgroup.procs", pid));
        }
        enable(parent).ok()?;
    }
    enable(&parent.join("landfall")).ok()?;
    enable(&folder).ok()?;
    // Proof that a process may be put there at all.
    let probe = folder.join("landfall-probe");
    fs::create_dir_all(&probe).ok()?;
    let works = probe.join("memory.max").exists() || probe.join("pids.max").exists();
    drop(fs::remove_dir(&probe));
    works.then_some(folder)
}

fn enabled(file: &Path) -> Vec<Controller> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|name| match name {
            "memory" => Some(Controller::Memory),
            "cpu" => Some(Controller::Cpu),
            "pids" => Some(Controller::Pids),
            _ => None,
        })
        .collect()
}

fn enable(folder: &Path) -> io::Result<()> {
    let offered = enabled(&folder.join("cgroup.controllers"));
    let on = enabled(&folder.join("cgroup.subtree_control"));
    for (controller, word) in [(Controller::Memory, "+memory"), (Controller::Cpu, "+cpu"), (Controller::Pids, "+pids")]
    {
        if offered.contains(&controller) && !on.contains(&controller) {
            write(folder, "cgroup.subtree_control", word)?;
        }
    }
    Ok(())
}

fn write(folder: &Path, name: &str, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(folder.join(name)).and_then(|mut file| {
        use std::io::Write;
        file.write_all(value.as_bytes())
    })
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_told_apart() {
        let text = "\
30 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 24 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 24 0:30 / /proc rw - proc proc rw";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 3);
        assert!(mounts[0].has(Controller::Cpu) && mounts[0].has(Controller::Cpuacct));
        assert!(mounts[1].has(Controller::Memory) && !mounts[1].has(Controller::Cpu));
        assert_eq!(mounts[2].version, Version::Two);
    }

    /// A folder of plain files in place of the kernel's: it shows what is written where.
    #[test]
    fn version_two_is_switched_on_all_the_way_down_and_limited() {
        let mount = tempfile::tempdir().expect("a folder");
        let folders = ["", "landfall", "landfall/data", "landfall/data/landfall-probe", "landfall/data/web.1"];
        for folder in folders.map(|folder| mount.path().join(folder)) {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("cgroup.controllers"), "cpuset cpu io memory pids").expect("a file");
            for file in
                ["cgroup.subtree_control", "memory.max", "memory.swap.max", "cpu.max", "pids.max", "cgroup.procs"]
            {
                fs::write(folder.join(file), "").expect("a file");
            }
        }
        let folder = open_two(mount.path(), "data").expect("it is fit");
        assert_eq!(folder, mount.path().join("landfall/data"));
        for part in ["", "landfall", "landfall/data"] {
            let on = fs::read_to_string(mount.path().join(part).join("cgroup.subtree_control")).expect("a file");
            assert!(on.contains("+pids"), "{part}: {on}");
        }
        let folders = LIMITING.map(|controller| (controller, folder.clone())).into();
        let group = Groups { version: Version::Two, folders }.child("web.1");
        group
            .create(&Limits { cpu_millis: 1500, memory_bytes: 1 << 20, processes: 10, ..Limits::default() })
            .expect("set");
        let set = |name: &str| fs::read_to_string(folder.join("web.1").join(name)).expect("a file");
        assert_eq!((set("memory.max").as_str(), set("memory.swap.max").as_str()), ("1048576", "0"));
        assert_eq!((set("cpu.max").as_str(), set("pids.max").as_str()), ("150000 100000", "12"));
        fs::write(folder.join("web.1/memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 0\n").expect("a file");
        fs::write(folder.join("web.1/cpu.stat"), "usage_usec 5000\nuser_usec 1\n").expect("a file");
        assert_eq!((group.out_of_memory_kills(), group.cpu_millis_used()), (2, Some(5)));

        let bare = tempfile::tempdir().expect("a folder");
        assert_eq!(open_two(bare.path(), "data"), None, "a hierarchy without controllers is of no use");
    }
}
