//! How a new router takes the place of the one that runs, without a connection that is refused: it gets the listening
//! sockets themselves, and with them the lock of the folder.
//!
//! On the wire, over `handover.sock`: the old router sends one line of JSON with the descriptors (`SCM_RIGHTS`): the
//! lock, then the sockets. The new one makes everything ready that can fail and says `G`. The old one takes no more
//! connections, saves its numbers, makes room at the control socket and says `D`. The new one serves and says `S`.
//! Who connects in between waits in the sockets' own queue. If `S` never comes, the old one goes on as if nothing had
//! been.

use super::{dial, keeper};
use anyhow::Context as _;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, UnixListener, UnixStream};

pub(super) const SOCKET: &str = "handover.sock";
/// How long a new router waits for one that neither ends nor hands over.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two words of the one to the other.
const WORD: Duration = Duration::from_secs(30);
const MAX_HEADER: usize = 64 * 1024;
const MAX_DESCRIPTORS: usize = 16;

/// What a listening socket is for, and where it was told to listen: the new router takes over what it would open itself.
pub(super) fn socket_name(role: &str, listen: SocketAddr) -> String {
    format!("{role} {listen}")
}

/// Sockets with what they are for.
pub(super) type Sockets = Vec<(String, std::net::TcpListener)>;

/// What is said with descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    process: u32,
    sockets: Vec<String>,
}

impl Header {
    pub fn name(self, descriptors: impl Iterator<Item = OwnedFd>) -> Sockets {
        self.sockets.into_iter().zip(descriptors.map(std::net::TcpListener::from)).collect()
    }
}

/// The place of the one router of a folder.
pub(super) struct Claim {
    pub lock: File,
    handed: Sockets,
    predecessor: Option<(u32, UnixStream)>,
}

/// Takes the folder's lock, from the router that holds it if there is one. `wanted`: the sockets that will be listened on.
pub(super) async fn claim(folder: &Path, wanted: &[String]) -> anyhow::Result<Claim> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = folder.join("router.lock");
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.with_context(|| format!("could not open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {
                let handed = keeper::take(folder, wanted).await;
                let handed = handed.context("the control plane holds the router's sockets and does not answer")?;
                return Ok(Claim { lock, handed, predecessor: None });
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("could not lock {}", path.display()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        match tokio::time::timeout(WORD, ask_for_place(&folder.join(SOCKET))).await {
            Ok(Ok(claim)) => return Ok(claim),
            Ok(Err(error)) if Instant::now() >= deadline => {
                return Err(error).with_context(|| {
                    format!("another router runs on {} and does not hand over its place", folder.display())
                });
            }
            Err(_) => anyhow::bail!("another router runs on {} and does not hand over its place", folder.display()),
            // It is about to begin or to end.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// What the other end says first, and the descriptors with it.
pub(super) async fn hear(stream: &UnixStream) -> io::Result<(Header, impl Iterator<Item = OwnedFd> + use<>)> {
    let (bytes, descriptors) = stream.async_io(Interest::READABLE, || receive(stream.as_raw_fd())).await?;
    let header = serde_json::from_slice(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((header, descriptors.into_iter()))
}

/// Says it: the lock, if it goes with them, and the sockets.
pub(super) async fn send(
    stream: &UnixStream,
    lock: Option<&File>,
    sockets: &[(&str, &std::net::TcpListener)],
) -> io::Result<()> {
    let names = sockets.iter().map(|(name, _)| (*name).to_owned()).collect();
    let header = serde_json::to_vec(&Header { process: std::process::id(), sockets: names })?;
    let sockets = sockets.iter().map(|(_, socket)| socket.as_raw_fd());
    let descriptors: Vec<RawFd> = lock.map(AsRawFd::as_raw_fd).into_iter().chain(sockets).collect();
    let send = || {
        let control = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[] } else { control.as_slice() };
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&header)], control, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(io::Error::from)
    };
    stream.async_io(Interest::WRITABLE, send).await.map(drop)
}

async fn ask_for_place(socket: &Path) -> io::Result<Claim> {
    let stream = dial::connect_unix(socket).await?;
    let (header, mut descriptors) = hear(&stream).await?;
    let lock = File::from(descriptors.next().ok_or(io::ErrorKind::InvalidData)?);
    let predecessor = Some((header.process, stream));
    Ok(Claim { lock, handed: header.name(descriptors), predecessor })
}

impl Claim {
    /// The process that is replaced.
    pub fn predecessor(&self) -> Option<u32> {
        self.predecessor.as_ref().map(|(process, _)| *process)
    }

    /// The socket that listens there: the one that was handed over, or a new one.
    pub async fn listener(&mut self, role: &str, listen: SocketAddr) -> io::Result<TcpListener> {
        let name = socket_name(role, listen);
        match self.handed.iter().position(|(handed, _)| *handed == name) {
            Some(index) => {
                let (_, listener) = self.handed.swap_remove(index);
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            }
            None => TcpListener::bind(listen).await,
        }
    }

    /// Everything that can fail is ready: the one before takes no more connections from here on.
    pub async fn go(&mut self) -> anyhow::Result<()> {
        let Some((process, stream)) = &mut self.predecessor else { return Ok(()) };
        let process = *process;
        let done = async {
            stream.write_all(b"G").await?;
            stream.read_u8().await
        };
        match tokio::time::timeout(WORD, done).await {
            Ok(Ok(b'D')) => Ok(()),
            Ok(Ok(_)) => anyhow::bail!("router {process} broke off the hand-over"),
            Ok(Err(error)) => Err(error).with_context(|| format!("router {process} broke off the hand-over")),
            Err(_) => anyhow::bail!("router {process} does not let go of its place"),
        }
    }

    /// We serve.
    ///
    /// # Errors
    /// The one before has waited for this word for too long, and serves on itself.
    pub async fn serving(&mut self) -> anyhow::Result<()> {
        // What was not taken is closed with this.
        self.handed.clear();
        if let Some((process, mut stream)) = self.predecessor.take() {
            let said = stream.write_all(b"S").await;
            said.with_context(|| format!("router {process} has taken its place back"))?;
        }
        Ok(())
    }
}

/// Somebody who is to take our place and has said that it is ready to.
pub(super) struct Successor(UnixStream);

/// Offers our place to whoever asks, until somebody is ready to take it.
pub(super) async fn offer(
    listener: &UnixListener,
    lock: &File,
    sockets: &[(&str, &std::net::TcpListener)],
) -> Successor {
    loop {
        let stream = dial::accept_ours(listener, "the router's place").await;
        match tokio::time::timeout(WORD, hand_out(stream, lock, sockets)).await {
            Ok(Ok(successor)) => return successor,
            Ok(Err(error)) => tracing::warn!(%error, "a successor did not become ready"),
            Err(_) => tracing::warn!("a successor did not become ready in time"),
        }
    }
}

async fn hand_out(
    mut stream: UnixStream,
    lock: &File,
    sockets: &[(&str, &std::net::TcpListener)],
) -> io::Result<Successor> {
    send(&stream, Some(lock), sockets).await?;
    match stream.read_u8().await? {
        b'G' => Ok(Successor(stream)),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

impl Successor {
    /// Says that we take no more connections; whether it serves now.
    pub async fn take(mut self) -> bool {
        let taken = async {
            self.0.write_all(b"D").await?;
            self.0.read_u8().await
        };
        matches!(tokio::time::timeout(WORD, taken).await, Ok(Ok(b'S')))
    }
}

pub(super) fn receive(socket: RawFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0_u8; MAX_HEADER];
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, descriptors) = dial::receive(socket, &mut bytes, &mut space)?;
    bytes.truncate(length);
    Ok((bytes, descriptors))
}
