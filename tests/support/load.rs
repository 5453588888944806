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
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: usize = 8;
const NEW_CONNECTIONS: usize = 2;

pub struct Load {
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    visitors: JoinSet<()>,
}

/// What the visitors saw.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub answered: usize,
    pub posted: usize,
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
        let (over, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let mut visitors = JoinSet::new();
        for number in 0..KEEP_ALIVE + NEW_CONNECTIONS {
            let keeps = number < KEEP_ALIVE;
            visitors.spawn(visit(router, host.clone(), number, keeps, over.clone(), tally.clone()));
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

async fn visit(
    router: SocketAddr,
    host: String,
    visitor: usize,
    keeps: bool,
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
) {
    let mut connection: Option<BufReader<TcpStream>> = None;
    let mut number = 0_usize;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let post = number.is_multiple_of(3);
        let sent = if post { format!("{visitor}/{number} ").repeat(number % 4000).into_bytes() } else { Vec::new() };
        let request = async {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => BufReader::new(TcpStream::connect(router).await?),
            };
            let answer = ask(&mut stream, &host, post.then_some(&sent), keeps).await?;
            io::Result::Ok((stream, answer))
        };
        let outcome = tokio::time::timeout(PATIENCE, request).await;
        let fail = |why: String| {
            tally.lock().expect("no holder panics").failed.push(format!("visitor {visitor}, request {number}: {why}"))
        };
        match outcome {
            Err(_) => fail("no answer in time".to_owned()),
            Ok(Err(error)) => fail(error.to_string()),
            Ok(Ok((_, answer))) if answer.status != 200 => {
                fail(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body)));
            }
            Ok(Ok((_, answer))) if post && answer.body != sent => fail("another body came back".to_owned()),
            Ok(Ok((_, answer))) if !post && !answer.body.ends_with(b"</html>\n") => fail("half a page".to_owned()),
            Ok(Ok((stream, answer))) => {
                let mut tally = tally.lock().expect("no holder panics");
                tally.answered += 1;
                tally.posted += usize::from(post);
                tally.boots.insert(answer.boot);
                if keeps && !answer.closes {
                    connection = Some(stream);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
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
