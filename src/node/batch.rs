//! One batch: its command is run, watched and ended, and its results are read.

use super::{descendants, results};
use crate::ci::cases::{CaseWay, Selection, TOLD};
use crate::ci::judge::BatchEnd;
use crate::ci::presets::Unit;
use crate::ci::split::Item;
use crate::ci::wire::{Done, Orders};
use crate::domain::{FILES, JUNIT, Mask};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// A folder of its own for scripts and results.
pub struct Place {
    pub folder: PathBuf,
    /// The root of the code.
    pub code: PathBuf,
    /// What no report may show.
    pub mask: Option<Mask>,
}

impl Place {
    pub fn make(mask: Option<Mask>) -> io::Result<Place> {
        let folder = std::env::temp_dir().join(format!("landfall-node-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Place { folder, code: std::env::current_dir()?, mask })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs a batch. `beat` is called every so often and says whether to go on; `None` where it said no.
pub fn run(
    place: &Place,
    orders: &Orders,
    items: &[(u32, Item)],
    start_up_ms: u64,
    every: Duration,
    beat: &mut dyn FnMut() -> bool,
) -> io::Result<Option<Done>> {
    let fresh = place.folder.join("batch");
    let _ = std::fs::remove_dir_all(&fresh);
    std::fs::create_dir_all(&fresh)?;
    let junit = fresh.join("junit.xml");
    results::clear(place, orders);
    let selection = match (items, orders.cases) {
        ([(_, item)], Some(way)) if item.is_part() => way.selection(item),
        _ => Selection::default(),
    };
    // As a file: one argument of a program has at most 128 KiB, a batch may name thousands of files.
    let script = fresh.join("command.sh");
    let before = prelude(orders, &selection, &fresh);
    std::fs::write(&script, before + &script_of(orders, items, &selection.words, &junit))?;
    let told = fresh.join("cases");
    if let (Some((name, text)), Some(cases)) = (selection.loaded, &selection.told) {
        std::fs::write(fresh.join(name), text)?;
        std::fs::write(&told, cases)?;
    }
    let environment = environment(orders, &selection, &told, &junit);
    super::phase(&heading(items));
    let began = Instant::now();
    let Some(end) = watch(&script, orders, environment, every, beat)? else { return Ok(None) };
    let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = results::read(place, orders, &junit);
    let said = results::said(&told.with_extension("said"));
    Ok(Some(results::judge(orders, items, end, (wall_ms, start_up_ms), report.as_ref(), said, place.mask.as_ref())))
}

/// The files of a batch in a few words, for the line above its output.
fn heading(items: &[(u32, Item)]) -> String {
    let names: Vec<String> = items.iter().take(3).map(|(_, item)| item.path.escape_debug().to_string()).collect();
    let more = items.len() - names.len();
    let part = if items.iter().any(|(_, item)| item.is_part()) { " (a part)" } else { "" };
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { format!("{}{part}", names.join(", ")) }
}

/// What the command gets besides what the node has.
fn environment(orders: &Orders, selection: &Selection, told: &Path, junit: &Path) -> Vec<(String, String)> {
    let junit = junit.to_string_lossy();
    let of_runner = orders.environment.iter().map(|(name, value)| (name.clone(), value.replace(JUNIT, &junit)));
    let told = selection.told.is_some().then(|| (TOLD.to_owned(), told.to_string_lossy().into_owned()));
    of_runner.chain(told).collect()
}

/// Has the runner load what selects the cases of a part, beside what the project itself says to it.
fn prelude(orders: &Orders, selection: &Selection, folder: &Path) -> String {
    let Some((name, _)) = selection.loaded else { return String::new() };
    let folder = quoted(Unit::Folder, &folder.to_string_lossy());
    if orders.cases == Some(CaseWay::Pytest) {
        return format!(
            "export PYTEST_ADDOPTS=\"${{PYTEST_ADDOPTS:+$PYTEST_ADDOPTS }}-p landfall_cases\"\n\
             export PYTHONPATH={folder}\"${{PYTHONPATH:+:$PYTHONPATH}}\"\n"
        );
    }
    format!("export SPEC_OPTS=\"${{SPEC_OPTS:+$SPEC_OPTS }}-r \"{folder}/{name}\n")
}

fn script_of(orders: &Orders, items: &[(u32, Item)], words: &[String], junit: &Path) -> String {
    let mut files = String::new();
    let named = items.iter().map(|(_, item)| quoted(orders.unit, &item.path));
    for word in named.chain(words.iter().map(|word| quoted(Unit::Folder, word))) {
        if !files.is_empty() {
            files.push(' ');
        }
        files.push_str(&word);
    }
    let command = orders.command.replace(JUNIT, &junit.to_string_lossy());
    command.replacen(FILES, &files, 1)
}

/// What runs a script's file.
pub(super) fn shell() -> Command {
    Command::new(if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" })
}

/// As one word of a shell, that no program takes for an option.
fn quoted(unit: Unit, name: &str) -> String {
    let before = if unit == Unit::File && name.starts_with('-') { "./" } else { "" };
    let plain = |one: char| one.is_ascii_alphanumeric() || "_-./=:,@+".contains(one);
    if name.chars().all(plain) && !name.is_empty() {
        return format!("{before}{name}");
    }
    format!("'{before}{}'", name.replace('\'', "'\\''"))
}

fn watch(
    script: &Path,
    orders: &Orders,
    environment: Vec<(String, String)>,
    every: Duration,
    beat: &mut dyn FnMut() -> bool,
) -> io::Result<Option<BatchEnd>> {
    let child = shell().arg(script).envs(environment).stdin(Stdio::null()).spawn()?;
    let main = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let began = Instant::now();
    let limit = orders.timeout_ms.map(Duration::from_millis);
    let mut next_beat = began + every;
    let mut ending: Option<Instant> = None;
    let (end, wanted) = loop {
        if let Some(end) = take(main) {
            break (if ending.is_some() { BatchEnd::TimedOut } else { end }, true);
        }
        let now = Instant::now();
        if ending.is_some_and(|since| now >= since + GRACE) {
            break (BatchEnd::TimedOut, true);
        }
        if ending.is_none() && limit.is_some_and(|limit| now >= began + limit) {
            ending = Some(now);
            descendants::signal(Signal::SIGTERM);
        }
        if now >= next_beat {
            next_beat = now + every;
            if !beat() {
                break (BatchEnd::Killed, false);
            }
        }
        std::thread::sleep(LOOK);
    };
    // Whatever it left behind would eat the next batch's time, and might write its results.
    descendants::end();
    Ok(wanted.then_some(end))
}

/// How the command ended, if it did. Orphans that ended are collected on the way.
fn take(main: i32) -> Option<BatchEnd> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == main => {
                // A shell tells so that a signal ended the program; 137 is the kernel's own when memory is short.
                return Some(if status > 128 { BatchEnd::Killed } else { BatchEnd::Exited { status } });
            }
            Ok(WaitStatus::Signaled(pid, _, _)) if pid.as_raw() == main => return Some(BatchEnd::Killed),
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some(BatchEnd::Killed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str) -> (u32, Item) {
        (
            0,
            Item {
                path: path.into(),
                cases: Vec::new(),
                except: Vec::new(),
                predicted_ms: 1,
                seen: false,
                expected_cases: 0,
            },
        )
    }

    fn orders(command: &str) -> Orders {
        Orders {
            command: command.into(),
            environment: vec![("OUT".into(), "{junit}".into())],
            junit: None,
            unit: Unit::File,
            empty_status: None,
            timeout_ms: None,
            quarantine: Vec::new(),
            cases: None,
            fixed: false,
        }
    }

    #[test]
    fn no_name_of_a_file_is_read_as_anything_else_by_the_shell() {
        let items = ["a b.py", "$(reboot).py", "it's.py", "-rf", "ok/test_a.py", "`x`;y"].map(item);
        let script = script_of(&orders("run {files} --out={junit}"), &items, &[], Path::new("/tmp/j.xml"));
        assert_eq!(script, r"run 'a b.py' '$(reboot).py' 'it'\''s.py' ./-rf ok/test_a.py '`x`;y' --out=/tmp/j.xml");
        let words = ["-t".to_owned(), "^(?:a $(b)|{junit})$".to_owned()];
        let script = script_of(&orders("{files}"), &[item("a.js")], &words, Path::new("/j"));
        assert_eq!(script, "a.js -t '^(?:a $(b)|{junit})$'");
    }
}
