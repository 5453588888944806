//! A server on a free port that reads HTTP/1.1 itself, so that it can also break it.

use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    headers: HashMap<String, Vec<String>>,
    pub body: Value,
    pub at: Instant,
    /// How many other requests were being answered when it came.
    pub beside: usize,
    /// How many requests of the same method and path came before it.
    pub before: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.first()?.as_str())
    }

    pub fn header_count(&self, name: &str) -> usize {
        self.headers.get(name).map_or(0, Vec::len)
    }
}

/// What the server does with a request that it has read whole.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then silence for as long as the client stays.
    RawThenSilence(Vec<u8>),
    /// The end of the connection without a byte.
    Close,
    /// A TCP reset.
    Reset,
    /// An answer whose bytes come one by one with this pause between them.
    Drip(Duration),
    /// The answer after a pause.
    Late(Duration, Box<Reply>),
}

impl Reply {
    pub fn json(status: u16, body: Value) -> Reply {
        let headers = vec![("Content-Type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Reply::Answer { status, headers, body: body.to_string().into_bytes() }
    }

    pub fn text(status: u16, content_type: &str, body: &str) -> Reply {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Reply::Answer { status, headers, body: body.as_bytes().to_vec() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Reply {
        if let Reply::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

pub struct Mock {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Mock {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Mock {
        super::super::install_crypto_provider();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (shared, script) = (Arc::clone(&seen), Arc::new(script));
        let active = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, script, active) = (Arc::clone(&shared), Arc::clone(&script), Arc::clone(&active));
                tokio::spawn(async move { serve(stream, &seen, script.as_ref(), &active).await });
            }
        });
        Mock { url, seen, task }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection until either side ends it.
async fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, script: &Script, active: &AtomicUsize) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let mut request = read_request(&mut stream, &mut buffer).await?;
        request.beside = active.fetch_add(1, Ordering::SeqCst);
        {
            let mut seen = seen.lock().unwrap();
            request.before =
                seen.iter().filter(|other| other.method == request.method && other.path == request.path).count();
            seen.push(request.clone());
        }
        let mut reply = script(&request);
        if let Reply::Late(pause, later) = reply {
            tokio::time::sleep(pause).await;
            reply = *later;
        }
        let written = write_reply(&mut stream, reply).await;
        active.fetch_sub(1, Ordering::SeqCst);
        written?;
    }
}

/// Returns `None` where the connection is not to be used again.
async fn write_reply(stream: &mut TcpStream, reply: Reply) -> Option<()> {
    match reply {
        Reply::Answer { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
            for (name, value) in &headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            // These have no body by definition.
            let body = if matches!(status, 204 | 304) { Vec::new() } else { body };
            head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
            stream.write_all(&[head.as_bytes(), &body].concat()).await.ok()
        }
        Reply::Raw(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            None
        }
        Reply::RawThenSilence(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            // The client's end of the connection ends the wait.
            let _ = stream.read(&mut [0; 1]).await;
            None
        }
        Reply::Close => None,
        Reply::Reset => {
            // Makes the close that follows a reset instead of an orderly end.
            stream.set_zero_linger().unwrap();
            None
        }
        Reply::Drip(pause) => {
            for byte in b"HTTP/1.1 201 Created\r\nContent-Length: 100000\r\n\r\n".iter().chain([b' '].iter().cycle()) {
                stream.write_all(&[*byte]).await.ok()?;
                tokio::time::sleep(pause).await;
            }
            None
        }
        Reply::Late(..) => panic!("a late reply inside a late reply"),
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let mut head_end = None;
    while head_end.is_none() {
        read_more(stream, buffer).await?;
        head_end = buffer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    }
    let head_end = head_end?;
    let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut request_line = lines.next()?.split(' ');
    let (method, path) = (request_line.next()?.to_owned(), request_line.next()?.to_owned());
    let mut headers: HashMap<String, Vec<String>> = HashMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        headers.entry(name.to_lowercase()).or_default().push(value.to_owned());
    }
    let length: usize =
        headers.get("content-length").map_or(0, |values| values[0].parse().expect("hyper sends a number"));
    while buffer.len() < head_end + length {
        read_more(stream, buffer).await?;
    }
    let body = serde_json::from_slice(&buffer[head_end..head_end + length]).unwrap_or(Value::Null);
    buffer.drain(..head_end + length);
    Some(Seen { method, path, headers, body, at: Instant::now(), beside: 0, before: 0 })
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = [0; 16 * 1024];
    match stream.read(&mut chunk).await {
        Ok(0) | Err(_) => None,
        Ok(count) => {
            buffer.extend_from_slice(&chunk[..count]);
            Some(())
        }
    }
}
