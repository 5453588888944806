//! Starts one of our own programs so that it outlives us.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Starts `program` in a session of its own, with its output appended to `log` and nothing to read. It is reaped when
/// it ends, if we still live by then.
pub fn spawn_detached(program: &Path, arguments: &[&OsStr], log: &Path) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = command.spawn()?;
    std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
        let _ = child.wait();
    })?;
    Ok(())
}
