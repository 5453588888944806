//! Receivers of what leaves: webhooks, collectors, drains. Real ones, on the loopback.

use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Post {
    pub head: String,
    pub body: String,
}

impl Post {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }
}

/// Answers requests with the statuses that a test queued, then with 200.
pub struct WebReceiver {
    pub address: SocketAddr,
    pub statuses: Arc<Mutex<VecDeque<u16>>>,
    posts: Arc<Mutex<Vec<Post>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for WebReceiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WebReceiver {
    pub async fn start() -> WebReceiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (statuses, posts) = (Arc::<Mutex<VecDeque<u16>>>::default(), Arc::<Mutex<Vec<Post>>>::default());
        let (queued, seen) = (statuses.clone(), posts.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A sender that was killed in the middle has sent nothing.
                let _ = serve(stream, &queued, &seen).await;
            }
        });
        WebReceiver { address, statuses, posts, task }
    }

    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().expect("no holder panics").clone()
    }

    /// Waits for so many posts in all.
    pub async fn posted(&self, count: usize) -> Vec<Post> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let posts = self.posts();
            if posts.len() >= count {
                return posts;
            }
            assert!(Instant::now() < deadline, "only {} of {count} posts came: {posts:#?}", posts.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    statuses: &Mutex<VecDeque<u16>>,
    posts: &Mutex<Vec<Post>>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = |bytes: &[u8]| bytes.windows(4).position(|window| window == b"\r\n\r\n");
    while end(&bytes).is_none() {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let begin = end(&bytes).unwrap_or(0) + 4;
    let head = String::from_utf8_lossy(&bytes[..begin]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    while bytes.len() < begin + length.unwrap_or(0) {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let body = String::from_utf8_lossy(&bytes[begin..]).into_owned();
    posts.lock().expect("no holder panics").push(Post { head, body });
    let status = statuses.lock().expect("no holder panics").pop_front().unwrap_or(200);
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await
}

/// Takes syslog messages with octet counting.
pub struct SyslogReceiver {
    pub address: SocketAddr,
    messages: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for SyslogReceiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SyslogReceiver {
    pub async fn start() -> SyslogReceiver {
        SyslogReceiver::at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn at(address: SocketAddr) -> SyslogReceiver {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let seen = messages.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move { while receive(&mut stream, &seen).await.is_some() {} });
            }
        });
        SyslogReceiver { address, messages, task }
    }

    pub fn messages(&self) -> Vec<String> {
        self.messages.lock().expect("no holder panics").clone()
    }

    /// Waits until a message holds this text.
    pub async fn receives(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.messages().iter().find(|message| message.contains(text)) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "{text:?} did not come: {:#?}", self.messages());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn receive(stream: &mut TcpStream, seen: &Mutex<Vec<String>>) -> Option<()> {
    let mut length = String::new();
    loop {
        match stream.read_u8().await.ok()? {
            b' ' => break,
            digit => length.push(char::from(digit)),
        }
    }
    let mut message = vec![0; length.parse().expect("a length before each message")];
    stream.read_exact(&mut message).await.ok()?;
    seen.lock().expect("no holder panics").push(String::from_utf8(message).expect("UTF-8"));
    Some(())
}
