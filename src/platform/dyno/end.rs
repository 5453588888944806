//! The end of a process: who is left, what is still in its pipes, and how it is told.

use super::dial::Factory;
use super::{STARTED, Supervisor, now, read_all, say};
use crate::platform::contract::{Exit, State};
use crate::platform::files;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs;
use std::time::Duration;

impl Supervisor {
    /// Nobody is left, then the log is complete, then the exit is told.
    pub(super) fn finish(&mut self) {
        let killed = self.stopping.as_ref().is_some_and(|stopping| stopping.killed);
        self.dialler.factory = Factory::None;
        if let Some(forwarder) = self.forwarder.take() {
            // Not waited for yet, so its number is still its own.
            let _ = nix::sys::signal::kill(forwarder, Signal::SIGKILL);
        }
        self.disk.cancel();
        // The monitor's end was told after all others in its pid namespace were gone. What is waited for here are the
        // supervisor's own small children, and for the control groups to know it too.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(_) if self.launch.groups.members().is_empty() => break,
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.take_status();
        self.take_setup_after_end();
        self.take_rest_of_output();
        self.note_memory_kills();
        self.log.flush();

        let state = self.exit_state(killed);
        let _ = fs::remove_file(&self.launch.control_socket);
        let _ = fs::remove_file(&self.launch.dial_socket);
        if let Err(error) = self.launch.groups.remove(Duration::from_secs(5)) {
            say(&format!("removing the control groups: {error}"));
        }
        self.record.state = state;
        // A full disk passes; an exit that nobody learns of does not.
        while let Err(error) = files::replace_durably(&self.launch.folder.join(files::STATE), &self.record) {
            if !self.launch.folder.exists() {
                break;
            }
            say(&format!("writing the exit: {error}"));
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn take_setup_after_end(&mut self) {
        if let (false, Some(child)) = (self.started, &mut self.child) {
            read_all(&mut child.setup, &mut self.setup_text, 64 << 10);
            self.started = self.setup_text.contains(&STARTED);
        }
    }

    fn take_rest_of_output(&mut self) {
        let Some(child) = &mut self.child else { return };
        let at = now();
        for (pipe, splitter) in [(&mut child.output, &mut self.output), (&mut child.errors, &mut self.errors)] {
            let mut bytes = Vec::new();
            // A pipe holds at most 1 MiB (pipe(7)) unless root made it larger.
            read_all(pipe, &mut bytes, 4 << 20);
            splitter.feed(at, &bytes, &mut self.log);
            splitter.finish(at, &mut self.log);
        }
    }

    fn exit_state(&mut self, killed: bool) -> State {
        let (mut code, mut signal) = (self.exit_code, None);
        if let Some(WaitStatus::Signaled(_, by, _)) = self.monitor_status {
            (code, signal) = (None, Some(by as i32));
        }
        if killed {
            (code, signal) = (None, Some(Signal::SIGKILL as i32));
        }
        let why = if let Some(reason) = self.reason.take() {
            reason
        } else if self.memory_kills > 0 && code != Some(0) {
            Exit::OutOfMemory
        } else if self.stop_asked {
            Exit::Killed
        } else if !self.started {
            let text = String::from_utf8_lossy(&self.setup_text);
            let text = text.trim().trim_start_matches("bwrap: ");
            Exit::CouldNotStart(if text.is_empty() { "the sandbox ended before it stood" } else { text }.to_owned())
        } else if signal.is_some() {
            Exit::Killed
        } else {
            Exit::Finished
        };
        if matches!(why, Exit::CouldNotStart(_)) {
            (code, signal) = (None, None);
        }
        files::exited(code, signal, why, now())
    }
}
