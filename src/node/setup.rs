//! `landfall node --setup`: runs `scripts.test-setup` once for all nodes that would do the same, and says whether what it
//! did lies in the code's folder alone, so that nodes can start from that.

use super::{batch, descendants};
use crate::ci::wire::{SETUP_LEFT_FILES, SETUP_LEFT_PROCESSES, SETUP_LOG, SETUP_NOT_A_SLUG, STATUS_SETUP_FAILED};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How much of its output stands in the logs of nodes.
const MOST_OUTPUT: usize = 1 << 20;
/// How long a process that was told to end may take.
const LINGER: Duration = Duration::from_secs(1);
/// What ends with the sandbox.
const PASSING: [&str; 2] = ["/tmp", "/dev/shm"];

/// Runs the script in the current folder. The error is the status to end with.
pub fn run(script: &str) -> Result<(), u8> {
    prepare(script).unwrap_or_else(|error| {
        eprintln!("landfall: {error}");
        Err(super::BROKEN)
    })
}

fn prepare(script: &str) -> io::Result<Result<(), u8>> {
    descendants::adopt_orphans()?;
    // As files come out of an archive; what keeps others out then was meant to.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let before = passing();
    let place = batch::Place::make(None)?;
    let file = place.folder.join("setup.sh");
    std::fs::write(&file, script)?;
    let (mut reader, writer) = io::pipe()?;
    let mut command = batch::shell();
    command.arg(&file).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // Or its ends of the pipe would stay open here.
    drop(command);
    let output = std::thread::spawn(move || pass_on(&mut reader));
    let status = child.wait()?;
    drop(place);
    if !status.success() {
        return Ok(Err(STATUS_SETUP_FAILED));
    }
    let deadline = Instant::now() + LINGER;
    while descendants::are_alive() {
        if Instant::now() >= deadline {
            return Ok(Err(SETUP_LEFT_PROCESSES));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    descendants::reap();
    let output = output.join().unwrap_or_default();
    if passing() != before {
        return Ok(Err(SETUP_LEFT_FILES));
    }
    // An archive has no `.git`, and no modes that keep others out.
    if Path::new(".git").exists() || holds_private(Path::new("."))? {
        return Ok(Err(SETUP_NOT_A_SLUG));
    }
    let log = Path::new(SETUP_LOG);
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(log, output)?;
    Ok(Ok(()))
}

fn holds_private(folder: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_symlink() {
            continue;
        }
        if metadata.mode() & 0o044 == 0 || (metadata.is_dir() && holds_private(&entry.path())?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn passing() -> BTreeSet<(usize, OsString)> {
    let names = |(place, folder): (usize, &str)| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(move |entry| (place, entry.file_name())).collect::<Vec<_>>()
    };
    PASSING.into_iter().enumerate().flat_map(names).collect()
}

/// Shows what comes, and keeps the beginning of it.
fn pass_on(reader: &mut impl Read) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return kept,
            Ok(length) => {
                let _ = io::stdout().write_all(&piece[..length]);
                let _ = io::stdout().flush();
                let room = MOST_OUTPUT.saturating_sub(kept.len()).min(length);
                kept.extend_from_slice(&piece[..room]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return kept,
        }
    }
}
