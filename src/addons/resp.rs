//! As much of Redis' protocol (RESP2) as keeping users and looking after a server takes.

use super::AddonError;
use super::tls::Tls;
use crate::domain::Endpoint;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpStream, UnixStream};

const PATIENCE: Duration = Duration::from_secs(5);
/// Longer answers and deeper ones are none that we ask for.
const MOST_BYTES: usize = 64 << 20;
const MOST_DEPTH: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Text(String),
    /// The server's own word for what is wrong.
    Error(String),
    Number(i64),
    Nothing,
    List(Vec<Answer>),
}

impl Answer {
    pub fn text(&self) -> &str {
        match self {
            Answer::Text(text) | Answer::Error(text) => text,
            _ => "",
        }
    }

    pub fn list(&self) -> &[Answer] {
        match self {
            Answer::List(list) => list,
            _ => &[],
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Connection {
    stream: BufStream<Box<dyn Stream>>,
}

impl Connection {
    pub async fn open(endpoint: &Endpoint) -> Result<Connection, AddonError> {
        Connection::open_with(endpoint, None).await
    }

    /// As `open`; with TLS to a server that is reached by TCP and has this name, where that is given.
    pub async fn open_with(endpoint: &Endpoint, tls: Option<(&Tls, &str)>) -> Result<Connection, AddonError> {
        let connect = async {
            let stream: Box<dyn Stream> = match (endpoint, tls) {
                (Endpoint::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
                (Endpoint::Tcp { host, port }, None) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
                (Endpoint::Tcp { host, port }, Some((tls, name))) => {
                    Box::new(tls.over(name, TcpStream::connect((host.as_str(), *port)).await?).await?)
                }
            };
            Ok::<_, std::io::Error>(stream)
        };
        let stream = tokio::time::timeout(PATIENCE, connect).await.map_err(|_| late())?.map_err(lost)?;
        Ok(Connection { stream: BufStream::new(stream) })
    }

    /// Sends a command and reads its answer; an error of the server's is an answer too.
    pub async fn ask(&mut self, words: &[&str]) -> Result<Answer, AddonError> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        let exchange = async {
            self.stream.write_all(&request).await?;
            self.stream.flush().await?;
            read(&mut self.stream, 0).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| late())?.map_err(lost)
    }

    /// As `ask`, where an error is a refusal.
    pub async fn order(&mut self, words: &[&str]) -> Result<Answer, AddonError> {
        match self.ask(words).await? {
            // It is still reading its data from the disk.
            Answer::Error(said) if said.starts_with("LOADING") => Err(AddonError::Unreachable(said)),
            Answer::Error(said) => Err(AddonError::refused(said)),
            answer => Ok(answer),
        }
    }
}

async fn read<S: AsyncBufRead + Unpin + Send>(stream: &mut S, depth: u32) -> std::io::Result<Answer> {
    let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut line = Vec::new();
    let mut limited = AsyncReadExt::take(&mut *stream, 64 << 10);
    limited.read_until(b'\n', &mut line).await?;
    let line = line.strip_suffix(b"\r\n").ok_or_else(broken)?;
    let line = String::from_utf8_lossy(line);
    let kind = line.chars().next().ok_or_else(broken)?;
    let rest = line.get(1..).ok_or_else(broken)?.to_owned();
    let number = || rest.parse::<i64>().map_err(|_| broken());
    match kind {
        '+' => Ok(Answer::Text(rest)),
        '-' => Ok(Answer::Error(rest)),
        ':' => Ok(Answer::Number(number()?)),
        '$' => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Answer::Nothing) };
            if length > MOST_BYTES {
                return Err(broken());
            }
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(length);
            Ok(Answer::Text(String::from_utf8_lossy(&bytes).into_owned()))
        }
        '*' => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Answer::Nothing) };
            if depth >= MOST_DEPTH {
                return Err(broken());
            }
            let mut list = Vec::new();
            for _ in 0..length {
                list.push(Box::pin(read(stream, depth + 1)).await?);
            }
            Ok(Answer::List(list))
        }
        _ => Err(broken()),
    }
}

fn late() -> AddonError {
    AddonError::Unreachable(format!("Redis did not answer within {} s", PATIENCE.as_secs()))
}

fn lost(error: std::io::Error) -> AddonError {
    AddonError::Unreachable(format!("Redis: {error}"))
}
