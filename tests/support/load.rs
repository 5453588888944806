//! Visitors who never stop asking, and who notice everything: each request is written and read on a plain connection,
//! without a client that would quietly try again.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Between two requests of one visitor.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two pieces of what comes slowly.
const SLOWLY: Duration = Duration::from_millis(25);
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: usize = 8;
const NEW_CONNECTIONS: usize = 2;
/// Visitors of each of the slow kinds.
const SLOW: usize = 2;

pub struct Load {
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    visitors: JoinSet<()>,
}

/// What a visitor does, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `GET /`; every third request is a POST whose body must come back.
    Pages { keeps: bool, posts: bool },
    /// A POST whose body comes in pieces.
    SlowBody,
    /// So many server-sent events, forty a second.
    Events { count: usize },
    /// Ten lines over another protocol, each echoed.
    Socket,
}

/// What the visitors saw.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub answered: usize,
    pub posted: usize,
    /// Bodies that came in pieces, streams of events and sockets that went well from beginning to end.
    pub slow_bodies: usize,
    pub streams: usize,
    pub sockets: usize,
    pub failed: Vec<String>,
    /// Processes that answered.
    pub boots: BTreeSet<String>,
}

struct Answer {
    status: u16,
    boot: String,
    body: Vec<u8>,
    closes: bool,
}

impl Load {
    /// Begins to visit a host through a router: eight visitors who keep their connections, two who make a new one for
    /// each request; every third request is a POST whose body must come back.
    pub fn start(router: SocketAddr, host: String) -> Load {
        Load::of(router, &host, &pages(true))
    }

    /// As `start`, and with bodies that come slowly, streams of events, and WebSockets.
    pub fn of_every_kind(router: SocketAddr, host: String) -> Load {
        let slow = [Kind::SlowBody, Kind::Events { count: 20 }, Kind::Socket];
        let slow = slow.into_iter().flat_map(|kind| [kind; SLOW]);
        Load::of(router, &host, &pages(true).into_iter().chain(slow).collect::<Vec<Kind>>())
    }

    /// As `start`, and with streams of events that take ten seconds each.
    pub fn with_long_streams(router: SocketAddr, host: String) -> Load {
        let long = [Kind::Events { count: 400 }; SLOW];
        Load::of(router, &host, &pages(true).into_iter().chain(long).collect::<Vec<Kind>>())
    }

    /// As `start`, with requests only that may be repeated.
    pub fn repeatable(router: SocketAddr, host: String) -> Load {
        Load::of(router, &host, &pages(false))
    }

    fn of(router: SocketAddr, host: &str, kinds: &[Kind]) -> Load {
        let (over, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let mut visitors = JoinSet::new();
        for (number, kind) in kinds.iter().enumerate() {
            visitors.spawn(visit(router, host.to_owned(), number, *kind, over.clone(), tally.clone()));
        }
        Load { over, tally, visitors }
    }

    pub fn so_far(&self) -> Tally {
        self.tally.lock().expect("no holder panics").clone()
    }

    /// Lets every visitor finish the request that it has begun.
    pub async fn end(mut self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.visitors.join_next().await {
            ended.expect("no visitor panics");
        }
        self.so_far()
    }
}

fn pages(posts: bool) -> Vec<Kind> {
    (0..KEEP_ALIVE + NEW_CONNECTIONS).map(|number| Kind::Pages { keeps: number < KEEP_ALIVE, posts }).collect()
}

async fn visit(
    router: SocketAddr,
    host: String,
    visitor: usize,
    kind: Kind,
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
) {
    let mut connection: Option<BufReader<TcpStream>> = None;
    let mut number = 0_usize;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let request = async {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => BufReader::new(TcpStream::connect(router).await?),
            };
            let closes = match kind {
                Kind::Pages { keeps, posts } => {
                    let post = posts && number.is_multiple_of(3);
                    let sent = format!("{visitor}/{number} ").repeat(number % 4000).into_bytes();
                    let answer = ask(&mut stream, &host, post.then_some(&sent), keeps).await?;
                    expect(&answer, post.then_some(&sent))?;
                    let mut tally = tally.lock().expect("no holder panics");
                    tally.answered += 1;
                    tally.posted += usize::from(post);
                    tally.boots.insert(answer.boot);
                    answer.closes
                }
                Kind::SlowBody => {
                    let answer = post_slowly(&mut stream, &host).await?;
                    tally.lock().expect("no holder panics").slow_bodies += 1;
                    answer.closes
                }
                Kind::Events { count } => {
                    listen(&mut stream, &host, count).await?;
                    tally.lock().expect("no holder panics").streams += 1;
                    true
                }
                Kind::Socket => {
                    talk(&mut stream, &host).await?;
                    tally.lock().expect("no holder panics").sockets += 1;
                    true
                }
            };
            io::Result::Ok((!closes).then_some(stream))
        };
        match tokio::time::timeout(PATIENCE, request).await {
            Ok(Ok(kept)) => connection = kept,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer in time".to_owned(),
                };
                let line = format!("visitor {visitor}, {kind:?}, request {number}: {why}");
                tally.lock().expect("no holder panics").failed.push(line);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a page or an echo has to be.
fn expect(answer: &Answer, sent: Option<&Vec<u8>>) -> io::Result<()> {
    if answer.status != 200 {
        let page = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(io::Error::other(format!("{}: {page}", answer.status)));
    }
    match sent {
        Some(sent) if answer.body != *sent => Err(io::Error::other("another body came back")),
        None if !answer.body.ends_with(b"</html>\n") => Err(io::Error::other("half a page")),
        _ => Ok(()),
    }
}

async fn post_slowly(stream: &mut BufReader<TcpStream>, host: &str) -> io::Result<Answer> {
    let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 80\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes()).await?;
    let piece = [b'x'; 20];
    for _ in 0..4 {
        tokio::time::sleep(SLOWLY).await;
        stream.get_mut().write_all(&piece).await?;
    }
    let answer = read_answer(stream, true).await?;
    expect(&answer, Some(&vec![b'x'; 80]))?;
    Ok(answer)
}

async fn listen(stream: &mut BufReader<TcpStream>, host: &str, count: usize) -> io::Result<()> {
    let head = format!("GET /events?count={count}&pause=0.025 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes()).await?;
    let mut all = String::new();
    while !all.ends_with("0\r\n\r\n") {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream broke off after {all:?}")));
        }
        all.push_str(&String::from_utf8_lossy(&piece[..read]));
        if !all.starts_with(&"HTTP/1.1 200"[..all.len().min(12)]) {
            return Err(io::Error::other(all));
        }
    }
    for number in 0..count {
        if !all.contains(&format!("data: {number}\n\n")) {
            return Err(io::Error::other(format!("event {number} is missing: {all:?}")));
        }
    }
    Ok(())
}

async fn talk(stream: &mut BufReader<TcpStream>, host: &str) -> io::Result<()> {
    let head = format!(
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.get_mut().write_all(head.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if !line.starts_with("HTTP/1.1 101") {
        return Err(io::Error::other(format!("no socket: {line:?}")));
    }
    while line.trim_end() != "" {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    for number in 0..10 {
        let said = format!("line {number}\n");
        stream.get_mut().write_all(said.as_bytes()).await?;
        line.clear();
        stream.read_line(&mut line).await?;
        if line != said {
            return Err(io::Error::other(format!("said {said:?}, heard {line:?}")));
        }
        tokio::time::sleep(SLOWLY).await;
    }
    Ok(())
}

async fn ask(stream: &mut BufReader<TcpStream>, host: &str, post: Option<&Vec<u8>>, keep: bool) -> io::Result<Answer> {
    let method = if post.is_some() { "POST" } else { "GET" };
    let mut request = format!("{method} / HTTP/1.1\r\nHost: {host}\r\n");
    if let Some(body) = post {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if !keep {
        request.push_str("Connection: close\r\n");
    }
    request.push_str("\r\n");
    let mut bytes = request.into_bytes();
    bytes.extend(post.into_iter().flatten());
    stream.get_mut().write_all(&bytes).await?;
    read_answer(stream, keep).await
}

async fn read_answer(stream: &mut BufReader<TcpStream>, keep: bool) -> io::Result<Answer> {
    let mut line = String::new();
    let mut next = async |stream: &mut BufReader<TcpStream>| {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without an answer"));
        }
        Ok(line.trim_end().to_owned())
    };
    let first = next(stream).await?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not an answer: {first:?}")))?;
    let (mut length, mut boot, mut closes) = (None, String::new(), !keep);
    loop {
        let header = next(stream).await?;
        let Some((name, value)) = header.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "connection" => closes |= value.to_ascii_lowercase().contains("close"),
            "x-boot" => boot = value.trim().to_owned(),
            _ => {}
        }
    }
    let length: usize = length.ok_or_else(|| io::Error::other(format!("{status} without a Content-Length")))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Answer { status, boot, body, closes })
}
