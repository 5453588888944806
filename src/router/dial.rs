//! How a connection to an app is made: its supervisor dials inside the app's own network namespace and hands the
//! connected socket over, so that an app needs no address that the host could reach.
//!
//! On the wire: one byte `D` to `dial.sock`; back comes `K` with one file descriptor (`SCM_RIGHTS`), or `R`.
//! Every connection is kept in its target's register from the moment it exists until just before its descriptor is
//! closed: that is how idle ones of a target that left are closed, and silent ones are cut.

use super::socket::Socket;
use super::ticks::Ticks;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, Shutdown, recvmsg, shutdown};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
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

/// Why a connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cut {
    /// No byte of an answer in time.
    FirstByte = 1,
    /// Nothing came or went for too long.
    Silence = 2,
}

/// In place of a moment: the answer has begun.
const ANSWERED: u64 = u64::MAX;

/// One connection to an app, as its target's register knows it. Moments are those of the router's ticks; 0 is none.
#[derive(Debug)]
pub(super) struct Connection {
    ticks: Ticks,
    /// When a request was sent whole whose answer has not begun.
    awaiting_since: AtomicU64,
    /// When the last byte came or went.
    active_at: AtomicU64,
    /// Whether the app owes us something, or we it; silence is no fault of its while its client does not take what it
    /// sent, or while there is no request.
    waiting: AtomicBool,
    /// A `Cut`, or 0.
    cut: AtomicU8,
    /// Bytes that came of the app.
    received: AtomicU64,
}

impl Connection {
    fn new(ticks: Ticks) -> Connection {
        Connection {
            ticks,
            awaiting_since: AtomicU64::new(0),
            active_at: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            cut: AtomicU8::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// A request begins. `whole`: all of it is in its head.
    pub fn begin(&self, whole: bool) {
        let now = self.ticks.now();
        self.active_at.store(now, Ordering::Release);
        self.awaiting_since.store(if whole { now } else { 0 }, Ordering::Release);
        self.waiting.store(true, Ordering::Release);
    }

    /// The request is whole: from here on the app owes an answer, unless it has begun one.
    pub fn sent(&self) {
        let _ = self.awaiting_since.compare_exchange(0, self.ticks.now(), Ordering::AcqRel, Ordering::Acquire);
    }

    pub fn answered(&self) {
        self.awaiting_since.store(ANSWERED, Ordering::Release);
    }

    /// The time of silence begins when it begins to be the app's.
    pub fn set_waiting(&self, waiting: bool) {
        if waiting && !self.waiting.load(Ordering::Acquire) {
            self.touch();
        }
        self.waiting.store(waiting, Ordering::Release);
    }

    pub fn cut(&self) -> Option<Cut> {
        let cut = self.cut.load(Ordering::Acquire);
        [Cut::FirstByte, Cut::Silence].into_iter().find(|kind| *kind as u8 == cut)
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    fn touch(&self) {
        self.active_at.store(self.ticks.now(), Ordering::Release);
    }

    /// Why it is to be cut, if so.
    fn overdue(&self, first_byte: Duration, silence: Duration) -> Option<Cut> {
        let awaiting = self.awaiting_since.load(Ordering::Acquire);
        if awaiting != ANSWERED && self.ticks.is_past(awaiting, first_byte) {
            return Some(Cut::FirstByte);
        }
        let silent =
            self.waiting.load(Ordering::Acquire) && self.ticks.is_past(self.active_at.load(Ordering::Acquire), silence);
        silent.then_some(Cut::Silence)
    }
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

    /// Cuts those that have waited for an answer for `first_byte`, and those on which nothing has happened for `silence`.
    pub fn cut_silent(&self, first_byte: Duration, silence: Duration) {
        for (descriptor, connection) in self.lock().iter() {
            let Some(cut) = connection.overdue(first_byte, silence) else { continue };
            if connection.cut.compare_exchange(0, cut as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                let _ = shutdown(*descriptor, Shutdown::Both);
            }
        }
    }
}

/// Takes its connection out of the register when it is dropped, which is just before the descriptor is closed.
#[derive(Debug)]
struct Registered {
    connections: Arc<Connections>,
    descriptor: RawFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.descriptor);
    }
}

/// A connection to an app, in its target's register for as long as it is open.
#[derive(Debug)]
pub(super) struct AppStream {
    /// The first field, so that it is dropped before the descriptor is closed.
    _registered: Registered,
    stream: Socket,
    connection: Arc<Connection>,
    /// The app takes no more. What it has said by then, and that it ended, is still to be read: it may have answered before
    /// it had the whole request.
    deaf: bool,
}

impl AppStream {
    pub fn register(stream: TcpStream, connections: &Arc<Connections>, ticks: Ticks) -> (AppStream, Arc<Connection>) {
        let descriptor = stream.as_raw_fd();
        let connection = Arc::new(Connection::new(ticks));
        connections.lock().insert(descriptor, connection.clone());
        let _registered = Registered { connections: connections.clone(), descriptor };
        (
            AppStream { _registered, stream: Socket::new(stream), connection: connection.clone(), deaf: false },
            connection,
        )
    }

    /// Does what may find that the app takes no more, and then says `unheard`, as if it had been done.
    fn tell<T>(
        &mut self,
        unheard: T,
        told: impl FnOnce(Pin<&mut Socket>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.deaf {
            return Poll::Ready(Ok(unheard));
        }
        match told(Pin::new(&mut self.stream)) {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.deaf = true;
                Poll::Ready(Ok(unheard))
            }
            told => told,
        }
    }

    fn write(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut Socket>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = self.tell(length, write);
        if written.is_ready() && !self.deaf {
            self.connection.touch();
        }
        written
    }
}

impl AsyncRead for AppStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_ready() {
            self.connection.touch();
            self.connection.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::AcqRel);
        }
        result
    }
}

impl AsyncWrite for AppStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(bytes.len(), |stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        self.write(length, |stream| stream.poll_write_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tell((), |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tell((), |stream| stream.poll_shutdown(context))
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
            // A small piece of an upload or a message must not wait until the app has acknowledged the one before.
            stream.set_nodelay(true).map_err(DialError::Broken)?;
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
fn is_ours(stream: &UnixStream) -> bool {
    let user = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user || peer.uid() == 0)
}

/// Listens on a Unix socket at a path of any length, for our own user; a file that a dead process left there is replaced.
pub(super) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (short, _folder) = short_path(path)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The next connection of a process of our own user. `to`: what it is for.
pub(super) async fn accept_ours(listener: &UnixListener, to: &str) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) => return stream,
            Ok(_) => tracing::warn!("refused another user's connection to {to}"),
            Err(error) => {
                tracing::error!(%error, "could not accept a connection to {to}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
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
