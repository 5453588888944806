//! Reading the folders of processes: what each one's state is, what became of those whose supervisor is gone, and what
//! no record stands for.

use super::{Inner, gone};
use crate::clock::{Clock, Timestamp};
use crate::domain::ProcessId;
use crate::platform::contract::{Exit, Leftover, PlatformError, ProcessStatus, State};
use crate::platform::files::{self, About, Record, Usage};
use crate::platform::identity::boot_id;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A start that no supervisor has taken up for this long was cut short.
const CLAIM: Duration = Duration::from_secs(30);

pub fn about(folder: &Path) -> io::Result<About> {
    files::read(&folder.join(files::ABOUT))
}

/// Ids of all folders that are named like a process.
fn ids(inner: &Inner) -> io::Result<BTreeSet<ProcessId>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(inner.processes())? {
        if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            ids.insert(id);
        }
    }
    Ok(ids)
}

pub fn list(inner: &Inner) -> Result<Vec<ProcessStatus>, PlatformError> {
    let ids = ids(inner).map_err(PlatformError::io("listing processes"))?;
    let mut list = Vec::new();
    for id in ids {
        let folder = inner.folder(&id);
        // A folder without a record is a leftover of a damaged disk, not a process.
        let Ok(about) = about(&folder) else { continue };
        let state = state(inner, &folder, &about);
        let usage: Option<Usage> = files::read(&folder.join(files::USAGE)).ok();
        let running = !state.is_over();
        let memory = about.groups.memory_bytes().or(usage.as_ref().map(|usage| usage.memory_bytes));
        let cpu = about.groups.cpu_millis_used().or(usage.as_ref().map(|usage| usage.cpu_millis_used));
        list.push(ProcessStatus {
            id,
            name: about.name,
            labels: about.labels,
            state,
            started_at: about.started_at,
            memory_bytes: memory.filter(|_| running),
            cpu_millis_used: cpu.filter(|_| running),
            codes: files::read(&folder.join(files::CODES)).unwrap_or_default(),
        });
    }
    Ok(list)
}

/// Whose supervisor lives.
pub fn supervisors(inner: &Inner) -> Result<Vec<ProcessId>, PlatformError> {
    let ids = ids(inner).map_err(PlatformError::io("listing processes"))?;
    let lives = |id: &ProcessId| {
        let record = files::read::<Record>(&inner.folder(id).join(files::STATE));
        record.is_ok_and(|record| record.supervisor.is_alive())
    };
    Ok(ids.into_iter().filter(lives).collect())
}

/// The state as its supervisor wrote it, unless that is gone: then its end is settled here, once and for all.
pub fn state(inner: &Inner, folder: &Path, about: &About) -> State {
    let file = folder.join(files::STATE);
    match files::read::<Record>(&file) {
        Ok(record) if record.state.is_over() || record.supervisor.is_alive() => record.state,
        Ok(_) => {
            // It may have written its end between the two looks.
            let record = files::read::<Record>(&file).ok();
            match record {
                Some(record) if record.state.is_over() => record.state,
                record => bury(inner, folder, about, record),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => unclaimed(inner, folder, about),
        // Torn by a loss of power: whoever wrote it is gone with the boot.
        Err(_) => bury(inner, folder, about, None),
    }
}

fn unclaimed(inner: &Inner, folder: &Path, about: &About) -> State {
    let modified = fs::metadata(folder.join(files::ABOUT)).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|modified| modified.elapsed().ok()).unwrap_or(Duration::ZERO);
    if age < CLAIM {
        return State::Starting;
    }
    match fs::rename(folder.join(files::SPEC), folder.join(files::CLAIMED)) {
        // The right to start is ours now, and is not used.
        Ok(()) => {
            let _ = fs::remove_file(folder.join(files::CLAIMED));
            let why = if folder.join(files::STOP).exists() {
                Exit::Killed
            } else {
                Exit::CouldNotStart("its start was cut short".to_owned())
            };
            settle(folder, None, files::exited(None, None, why, Clock::System.now()))
        }
        // Claimed long ago by a supervisor that died before its first word, or just now.
        Err(_) if folder.join(files::STATE).exists() => State::Starting,
        Err(_) => bury(inner, folder, about, None),
    }
}

/// Ends what is left of a process whose supervisor is gone, and writes how it ended.
fn bury(inner: &Inner, folder: &Path, about: &About, record: Option<Record>) -> State {
    if let Some(sandbox) = record.as_ref().and_then(|record| record.sandbox.as_ref())
        && sandbox.is_alive()
    {
        // It dies with its supervisor by itself; this is for a supervisor that died while the tie was being made.
        let _ = kill(Pid::from_raw(sandbox.pid), Signal::SIGKILL);
    }
    for _ in 0..1000 {
        if !about.groups.kill() {
            for member in about.groups.members() {
                let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
            }
        }
        if about.groups.members().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = about.groups.remove(Duration::from_secs(1));
    for kind in ["control", "dial"] {
        let _ = fs::remove_file(inner.socket(&about.id, kind));
    }
    let _ = fs::remove_file(folder.join(files::CLAIMED));
    settle(folder, record, files::exited(None, None, Exit::SupervisorLost, Clock::System.now()))
}

fn settle(folder: &Path, record: Option<Record>, state: State) -> State {
    let supervisor = record.map_or_else(
        || crate::platform::identity::Identity { boot: boot_id(), pid: 0, start: 0 },
        |record| record.supervisor,
    );
    let record = Record { supervisor, sandbox: None, state: state.clone() };
    // If it can't be written it is settled again at the next look.
    let _ = files::replace_durably(&folder.join(files::STATE), &record);
    state
}

/// What was seen of a process's state file at the last look.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    inode: u64,
    modified: (i64, i64),
    over: bool,
}

/// One look of the watching thread. With `deaths` it also asks whether supervisors live.
pub fn look(inner: &Inner, known: &mut BTreeMap<ProcessId, Seen>, deaths: bool) {
    let Ok(ids) = ids(inner) else { return };
    known.retain(|id, _| ids.contains(id));
    for id in ids {
        if known.get(&id).is_some_and(|seen| seen.over) {
            continue;
        }
        let folder = inner.folder(&id);
        if deaths && let Ok(about) = about(&folder) {
            // Settles the end of one whose supervisor died, which changes its file.
            state(inner, &folder, &about);
        }
        let file = folder.join(files::STATE);
        let Ok(metadata) = fs::metadata(&file) else { continue };
        let (inode, modified) = (metadata.ino(), (metadata.mtime(), metadata.mtime_nsec()));
        if known.get(&id).is_none_or(|seen| seen.inode != inode || seen.modified != modified) {
            let over = files::read::<Record>(&file).is_ok_and(|record| record.state.is_over());
            known.insert(id.clone(), Seen { inode, modified, over });
            let _ = inner.changes.send(id);
        }
    }
}

/// Control groups, folders, sockets and processes without a record, unfinished slugs, and mounts below the data folder.
pub fn leftovers(inner: &Inner, sweep: bool) -> Result<Vec<Leftover>, PlatformError> {
    let reading = || PlatformError::io("looking for leftovers");
    let mut found = Vec::new();
    let mut tell = |kind: &str, what: String| found.push(Leftover { kind: kind.to_owned(), what });
    let ids = ids(inner).map_err(reading())?;

    for name in inner.groups.children() {
        let known = name.parse::<ProcessId>().ok().filter(|id| ids.contains(id));
        let over = known.and_then(|id| {
            let folder = inner.folder(&id);
            about(&folder).ok().map(|about| state(inner, &folder, &about).is_over())
        });
        // A probe of the groups themselves lives for an instant.
        if over == Some(false) || name == "landfall-probe" {
            continue;
        }
        let group = inner.groups.child(&name);
        for member in group.members() {
            tell("process", format!("{member} in the control group {name}"));
        }
        tell("control group", name);
        if sweep {
            for _ in 0..200 {
                group.kill();
                for member in group.members() {
                    let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
                }
                if group.remove(Duration::from_millis(20)).is_ok() {
                    break;
                }
            }
        }
    }

    let mut sockets = BTreeSet::new();
    for id in &ids {
        let folder = inner.folder(id);
        match about(&folder) {
            Ok(about) if !state(inner, &folder, &about).is_over() => {
                sockets.insert(inner.socket(id, "control"));
                sockets.insert(inner.socket(id, "dial"));
            }
            Ok(_) => {}
            Err(_) => {
                tell("folder", folder.display().to_string());
                if sweep {
                    let _ = fs::remove_dir_all(&folder);
                }
            }
        }
    }
    for entry in fs::read_dir(inner.processes()).map_err(reading())? {
        let path = entry.map_err(reading())?.path();
        // Drafts of a start or a removal: younger ones may be under way.
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<ProcessId>().is_err())
            && is_old(&path)
        {
            tell("folder", path.display().to_string());
            if sweep {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
    for entry in fs::read_dir(inner.data_dir.join("run")).map_err(reading())? {
        let path = entry.map_err(reading())?.path();
        if !sockets.contains(&path) && is_old(&path) {
            tell("socket", path.display().to_string());
            if sweep {
                let _ = gone(fs::remove_file(&path));
            }
        }
    }
    for path in super::slugs::unfinished(inner).map_err(reading())? {
        if is_old(&path) {
            tell("slug", path.display().to_string());
            if sweep {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
    let below = inner.data_dir.display().to_string() + "/";
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        if let Some(place) = line.split(' ').nth(4).filter(|place| place.starts_with(&below)) {
            tell("mount", place.to_owned());
        }
    }
    Ok(found)
}

fn is_old(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).map(|metadata| Timestamp(metadata.ctime() * 1000));
    changed.is_ok_and(|changed| Clock::System.now().since(changed) > Duration::from_secs(10))
}
