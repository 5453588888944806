//! The line to the control plane, which may be gone for a while at any moment.

use crate::ci::wire::{self, Answer, MOST_ANSWER, MOST_REQUEST, Request};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

pub struct Link {
    socket: PathBuf,
    stream: Option<UnixStream>,
}

impl Link {
    pub fn new(socket: &Path) -> Link {
        Link { socket: socket.to_owned(), stream: None }
    }

    /// Says it until it is answered, however long that takes: the limit is the process' own.
    pub fn insist(&mut self, request: &Request) -> Answer {
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(answer) = self.once(request).filter(|answer| *answer != Answer::Later) {
                return answer;
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Says it once; `None` where nobody answered.
    pub fn once(&mut self, request: &Request) -> Option<Answer> {
        let answer = self.exchange(request);
        if answer.is_err() {
            self.stream = None;
        }
        answer.ok()
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidData);
        let frame = wire::frame(request, MOST_REQUEST).ok_or_else(too_long)?;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = UnixStream::connect(&self.socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                none.insert(stream)
            }
        };
        stream.write_all(&frame)?;
        let mut head = [0; 4];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; wire::length(head, MOST_ANSWER).ok_or_else(too_long)?];
        stream.read_exact(&mut body)?;
        wire::read(&body).ok_or_else(too_long)
    }
}
