//! `landfall node --script`: runs a test command as it is, beside a server on the sandbox's own loopback that speaks the
//! wire of Knapsack Pro's open clients, so that a suite that uses one of them is dealt by Landfall without a change.
//!
//! Each question goes on to the control plane through the node's socket and waits until it is answered, so the control
//! plane may be gone for a while. One question is worked on at a time. An answer that its client did not wait for is kept
//! for the next time that it asks: the first version of the wire would else take a batch for done that nobody ran.

use super::link::Link;
use super::plain;
use crate::ci::knapsack::{self, Ask, Call, MOST_BYTES, NoCall, Version};
use crate::ci::wire::{Answer, Request};
use crate::domain::Mask;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of a request's head.
const MOST_HEAD: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client is kept waiting while others hold all that is left, before it is told that nothing is.
const WAITS: u32 = 8;

struct Queue {
    link: Link,
    /// The answer to the last question about the queue, until its client got it.
    kept: Option<(Version, Batch)>,
}

type Batch = Option<(Option<u32>, Vec<(String, u64)>)>;

/// Ends as the script does.
pub fn run(socket: &Path, script: &str, token: &str, masked: &[String]) -> ExitCode {
    match serve_and_run(socket, script, token, super::mask_of(masked).as_ref()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("landfall: {error}");
            ExitCode::from(super::BROKEN)
        }
    }
}

fn serve_and_run(socket: &Path, script: &str, token: &str, mask: Option<&Mask>) -> io::Result<ExitCode> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let queue = Arc::new(Mutex::new(Queue { link: Link::new(socket), kept: None }));
    let own = token.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (queue, own) = (queue.clone(), own.clone());
            std::thread::spawn(move || {
                let _ = converse(stream, &queue, &own);
            });
        }
    });
    let environment: Vec<(String, String)> =
        knapsack::environment(&endpoint, token).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let code = plain::run_between(&mut Link::new(socket), script, &environment, mask)?;
    Ok(ExitCode::from(code))
}

/// One connection, request by request.
fn converse(stream: TcpStream, queue: &Mutex<Queue>, token: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(head) = head(&mut reader)? else { return Ok(()) };
        if head.length > MOST_BYTES {
            return respond(&stream, 413, &serde_json::json!({ "errors": ["too large"] }));
        }
        let mut body = vec![0; head.length];
        reader.read_exact(&mut body)?;
        match knapsack::read(&head.method, &head.path, &body, token) {
            Ok(Call::Queue { version, ask }) => {
                // A panic elsewhere leaves nothing half done here.
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = queue.ask(version, ask);
                if gone(&stream) {
                    return Ok(());
                }
                respond(&stream, 200, &answer)?;
                queue.kept = None;
            }
            Ok(Call::Times(files)) => {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.link.insist(&Request::Times { files });
                respond(&stream, 201, &serde_json::json!({}))?;
            }
            Ok(Call::LastDistribution) => respond(&stream, 200, &knapsack::last_distribution())?,
            Err(NoCall::NotFound) => respond(&stream, 404, &serde_json::json!({ "errors": ["not found"] }))?,
            Err(NoCall::Forbidden) => respond(&stream, 403, &serde_json::json!({ "errors": ["another token"] }))?,
            Err(NoCall::Malformed(why)) => respond(&stream, 422, &serde_json::json!({ "errors": [why] }))?,
        }
        if head.closes {
            return Ok(());
        }
    }
}

impl Queue {
    fn ask(&mut self, version: Version, ask: Ask) -> serde_json::Value {
        let unheard = self.kept.take().filter(|(of, _)| version == Version::One && *of == version);
        let batch = match unheard {
            Some((_, batch)) => batch,
            None => self.forward(ask),
        };
        let answer = match &batch {
            None => knapsack::no_queue(),
            Some((number, files)) => knapsack::batch(version, *number, files),
        };
        self.kept = Some((version, batch));
        answer
    }

    fn forward(&mut self, ask: Ask) -> Batch {
        let mut ask = ask;
        for _ in 0..WAITS {
            match self.link.insist(&Request::Queue { ask: ask.clone() }) {
                Answer::Files { lease, files } => return Some((Some(lease.0), files)),
                Answer::NoQueue => return None,
                Answer::Wait { milliseconds } => {
                    // What it held has been told by now.
                    ask = Ask::Connect;
                    std::thread::sleep(Duration::from_millis(milliseconds.clamp(10, 1_000)));
                }
                _ => break,
            }
        }
        Some((None, Vec::new()))
    }
}

struct Head {
    method: String,
    path: String,
    length: usize,
    closes: bool,
}

fn head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut reader = reader.take(MOST_HEAD);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Err(malformed()) };
    let mut head = Head { method: method.to_owned(), path: path.to_owned(), length: 0, closes: false };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(malformed());
        }
        let line = line.trim();
        if line.is_empty() {
            return Ok(Some(head));
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => head.length = value.parse().map_err(|_| malformed())?,
            ("connection", value) => head.closes = value.eq_ignore_ascii_case("close"),
            ("transfer-encoding", _) => return Err(malformed()),
            _ => {}
        }
    }
}

/// Whether the client has hung up meanwhile.
fn gone(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let gone = matches!(stream.peek(&mut [0]), Ok(0));
    let _ = stream.set_nonblocking(false);
    gone
}

fn respond(mut stream: &TcpStream, status: u16, body: &serde_json::Value) -> io::Result<()> {
    let word = match status {
        200 => "OK",
        201 => "Created",
        403 => "Forbidden",
        404 => "Not Found",
        413 => "Content Too Large",
        _ => "Unprocessable Content",
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status} {word}\r\nContent-Type: application/json; charset=utf-8\r\nX-Request-Id: landfall\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes())
}
