//! How a connection to an app is made: its supervisor dials inside the app's own network namespace and hands the
//! connected socket over, so that an app needs no address that the host could reach.
//!
//! On the wire: one byte `D` to `dial.sock`; back comes `K` with one file descriptor (`SCM_RIGHTS`), or `R`.
//! Every connection is kept in its target's register from the moment it exists until just before its descriptor is
//! closed: that is how idle ones of a target that left are closed, and silent ones are cut.

use super::trailers;
use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, Shutdown, recvmsg, shutdown};
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::upstreams::peer::{Tracer, Tracing};
use pingora_core::{Error, ErrorType};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixListener, UnixStream};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("refused")]
    Refused,
    #[error("timed out after {0:?}")]
    TimedOut(Duration),
    #[error("no supervisor at the socket")]
    NoSupervisor(#[source] io::Error),
    #[error("the supervisor broke the protocol")]
    Protocol,
    #[error("the connection is broken")]
    Broken(#[source] io::Error),
}

/// One connection to an app, as its target's register knows it.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// When a request was sent whose answer has not begun, in milliseconds since the router's start plus one; else 0.
    pub awaiting_since: AtomicU64,
    /// Cut because the answer did not begin in time.
    pub timed_out: AtomicBool,
}

/// The open connections of one target.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<HashMap<RawFd, Arc<Connection>>>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, descriptor: RawFd) -> Option<Arc<Connection>> {
        self.lock().get(&descriptor).cloned()
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends every connection. Only to be called when no request uses any of them.
    pub fn close(&self) {
        for descriptor in self.lock().keys() {
            // The descriptor is still ours: its owner takes this lock to leave the register before it closes.
            let _ = shutdown(*descriptor, Shutdown::Both);
        }
    }

    /// Cuts those that have waited for an answer since before `limit` (milliseconds plus one, as above).
    pub fn cut_silent(&self, limit: u64) {
        for (descriptor, connection) in self.lock().iter() {
            let since = connection.awaiting_since.load(Ordering::Acquire);
            if since != 0 && since < limit && !connection.timed_out.swap(true, Ordering::AcqRel) {
                let _ = shutdown(*descriptor, Shutdown::Both);
            }
        }
    }
}

/// Takes its connection out of the register just before the descriptor is closed.
#[derive(Debug, Clone)]
struct Registered {
    connections: Arc<Connections>,
    descriptor: RawFd,
}

impl Tracing for Registered {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.connections.lock().remove(&self.descriptor);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// Makes the connections of one target for the proxy library.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    pub socket: PathBuf,
    pub timeout: Duration,
    pub connections: Arc<Connections>,
    /// Set for the one connection of a request that asks for another protocol or takes trailers; the connection is put
    /// here, since its descriptor is not to be had of the library.
    pub own: Option<Arc<OnceLock<Arc<Connection>>>>,
    /// Set with it for a request whose client takes trailers; they are put here.
    pub trailers: Option<trailers::Trailers>,
}

#[async_trait]
impl L4Connect for Dialler {
    async fn connect(&self, _address: &PeerAddress) -> pingora_core::Result<Stream> {
        let stream = dial(&self.socket, self.timeout).await.map_err(|error| {
            let kind = match &error {
                DialError::Refused | DialError::NoSupervisor(_) => ErrorType::ConnectRefused,
                DialError::TimedOut(_) => ErrorType::ConnectTimedout,
                DialError::Protocol | DialError::Broken(_) => ErrorType::ConnectError,
            };
            Error::because(kind, "dialling the process", error)
        })?;
        let descriptor = stream.as_raw_fd();
        let connection = Arc::<Connection>::default();
        self.connections.lock().insert(descriptor, connection.clone());
        let mut stream = match (&self.own, &self.trailers) {
            (None, _) => Stream::from(stream),
            (Some(place), trailers) => {
                let _ = place.set(connection);
                Stream::from(VirtualSocketStream::new(match trailers {
                    None => Box::new(Patient { stream, flushes: 0, reader: None }) as Box<_>,
                    Some(found) => Box::new(Attentive { stream, reader: trailers::Reader::new(found.clone()) }),
                }))
            }
        };
        let registered = Registered { connections: self.connections.clone(), descriptor };
        stream.tracer = Some(Tracer(Box::new(registered)));
        Ok(stream)
    }
}

/// A connection on which nothing is read before the request is wholly sent: its head, and the end of its empty body.
///
/// The proxy library hands the two on one after the other while it reads already. If the app agrees to change the
/// protocol before the library has dealt with the second, it takes that for the end of what follows the change, and
/// the connection ends as soon as it has begun.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    /// The head is flushed once, the body's end once more.
    flushes: u8,
    reader: Option<Waker>,
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.flushes < 2 {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.flushes = self.flushes.saturating_add(1);
        if self.flushes >= 2
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        set_option(&self.stream, option)
    }
}

/// A connection whose answer is looked through for trailers.
#[derive(Debug)]
struct Attentive {
    stream: TcpStream,
    reader: trailers::Reader,
}

impl AsyncRead for Attentive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.reader.read(&buffer.filled()[before..]);
        result
    }
}

impl AsyncWrite for Attentive {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl VirtualSocket for Attentive {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        set_option(&self.stream, option)
    }
}

fn set_option(stream: &TcpStream, option: VirtualSockOpt) -> io::Result<()> {
    match option {
        VirtualSockOpt::NoDelay => stream.set_nodelay(true),
        // The library sets none on its own, and neither do we.
        _ => Ok(()),
    }
}

/// A connection to the app's port, made by its supervisor.
pub(super) async fn dial(socket: &Path, limit: Duration) -> Result<TcpStream, DialError> {
    match tokio::time::timeout(limit, ask(socket)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::TimedOut(limit)),
    }
}

async fn ask(socket: &Path) -> Result<TcpStream, DialError> {
    let supervisor = connect_unix(socket).await.map_err(DialError::NoSupervisor)?;
    loop {
        supervisor.writable().await.map_err(DialError::Broken)?;
        match supervisor.try_write(b"D") {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(DialError::Broken(error)),
        }
    }
    let answer = supervisor.async_io(Interest::READABLE, || receive_byte(supervisor.as_raw_fd())).await;
    let (byte, descriptors) = answer.map_err(DialError::Broken)?;
    match (byte, <[OwnedFd; 1]>::try_from(descriptors)) {
        (Some(b'K'), Ok([descriptor])) => {
            let stream = std::net::TcpStream::from(descriptor);
            // Also tells a TCP socket from anything else that might have been handed over.
            stream.peer_addr().map_err(DialError::Broken)?;
            stream.set_nonblocking(true).map_err(DialError::Broken)?;
            TcpStream::from_std(stream).map_err(DialError::Broken)
        }
        (Some(b'R') | None, _) => Err(DialError::Refused),
        _ => Err(DialError::Protocol),
    }
}

/// One message: its byte, if it has one, and the descriptors with it.
fn receive_byte(socket: RawFd) -> io::Result<(Option<u8>, Vec<OwnedFd>)> {
    let mut byte = [0_u8];
    let (length, descriptors) = receive(socket, &mut byte, &mut nix::cmsg_space!([RawFd; 4]))?;
    Ok(((length > 0).then_some(byte[0]), descriptors))
}

/// One message: how many bytes of it went into `bytes`, and the descriptors with it, already close-on-exec, as many as
/// there is `space` for.
pub(super) fn receive(socket: RawFd, bytes: &mut [u8], space: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    loop {
        let mut buffers = [IoSliceMut::new(bytes)];
        match recvmsg::<()>(socket, &mut buffers, Some(space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut descriptors = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // The kernel made these descriptors for this message alone, so they have no other owner.
                        descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                    }
                }
                return Ok((message.bytes, descriptors));
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects to a Unix socket at a path of any length: what is too long for `sun_path` goes through the folder's
/// descriptor.
pub(super) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (path, _folder) = short_path(path)?;
    UnixStream::connect(path).await
}

/// Whether the other end runs as our own user, or as root.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    let user = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user || peer.uid() == 0)
}

/// Listens on a Unix socket at a path of any length; a file that a dead process left there is replaced.
pub(super) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (short, _folder) = short_path(path)?;
    UnixListener::bind(short)
}

/// `sun_path` holds 108 bytes with the final NUL (unix(7)).
fn short_path(path: &Path) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    if path.as_os_str().len() < 108 {
        return Ok((path.to_owned(), None));
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no path of a socket");
    let folder = std::fs::File::open(path.parent().ok_or_else(invalid)?)?;
    let name = path.file_name().ok_or_else(invalid)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((short, Some(folder)))
}
