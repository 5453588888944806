//! A TCP connection whose small pieces go out together with those of other connections.
//!
//! Whoever is sent something is woken up, and that takes longer than to send it. Under load a thread of the router has
//! pieces for many at once: it gathers them while it has work, and sends them all just before it would wait. Whoever is
//! woken then finds more to do. Where there is nothing else to do, nothing waits.
//!
//! A piece that was taken counts as written. What goes wrong when it is sent is told with the next write or flush, for
//! which the connection's task is woken.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one connection that are gathered; what is more is sent at once, since to copy it takes as long.
const GATHERED: usize = 4 * 1024;
/// Connections whose pieces wait, and work since the first of them, after which they are sent although there is more work.
/// A read counts as one, and so does each such amount of bytes that is read, or written at once.
const CONNECTIONS: usize = 64;
const WORK: usize = 64;
const BYTES: usize = 4 * 1024;

thread_local! {
    /// What this thread has gathered, if it gathers.
    static GATHERING: RefCell<Option<Gathering>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Gathering {
    waiting: Vec<Arc<Mutex<Unsent>>>,
    /// What was done since the first of them came.
    work: usize,
    /// Buffers for the next ones.
    spare: Vec<Vec<u8>>,
}

/// Lets this thread gather, until `end_gathering`. Each time before it waits, `send_gathered` has to be called.
pub(super) fn begin_gathering() {
    GATHERING.with_borrow_mut(|gathering| *gathering = Some(Gathering::default()));
}

pub(super) fn end_gathering() {
    send_gathered();
    GATHERING.with_borrow_mut(|gathering| *gathering = None);
}

/// Sends what this thread has gathered.
pub(super) fn send_gathered() {
    let taken = |gathering: &mut Gathering| {
        gathering.work = 0;
        std::mem::take(&mut gathering.waiting)
    };
    let Some(mut waiting) = GATHERING.with_borrow_mut(|gathering| gathering.as_mut().map(taken)) else { return };
    for unsent in waiting.drain(..) {
        lock(&unsent).send();
    }
    GATHERING.with_borrow_mut(|gathering| {
        if let Some(gathering) = gathering {
            gathering.waiting = waiting;
        }
    });
}

/// Notes that this thread has done something else, and sends what has waited for long enough.
fn worked(work: usize) {
    let overdue = GATHERING.with_borrow_mut(|gathering| {
        let Some(gathering) = gathering.as_mut().filter(|gathering| !gathering.waiting.is_empty()) else {
            return false;
        };
        gathering.work += work;
        gathering.work >= WORK
    });
    if overdue {
        send_gathered();
    }
}

/// What of a connection is still to be sent.
#[derive(Debug)]
struct Unsent {
    /// Until the connection is closed.
    descriptor: Option<RawFd>,
    bytes: Vec<u8>,
    /// A thread has it among those that wait.
    waits: bool,
    /// The system took not all of it: what is left goes the way of any write.
    stuck: bool,
    failed: Option<io::Error>,
    /// The task that leads the connection.
    task: Option<Waker>,
}

impl Unsent {
    /// Takes pieces in, if this thread gathers, and nothing is in their way.
    fn take(&mut self, own: &Arc<Mutex<Unsent>>, pieces: &[IoSlice<'_>], context: &Context<'_>) -> Taken {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.stuck || self.bytes.len() + length > GATHERED {
            return Taken::No;
        }
        self.lead(context);
        GATHERING.with_borrow_mut(|gathering| {
            let Some(gathering) = gathering else { return Taken::No };
            if self.bytes.capacity() == 0 {
                self.bytes = gathering.spare.pop().unwrap_or_default();
            }
            for piece in pieces {
                self.bytes.extend_from_slice(piece);
            }
            if !self.waits {
                self.waits = true;
                gathering.waiting.push(own.clone());
            }
            if gathering.waiting.len() >= CONNECTIONS { Taken::Last(length) } else { Taken::More(length) }
        })
    }

    /// Notes who leads the connection.
    fn lead(&mut self, context: &Context<'_>) {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
            self.task = Some(context.waker().clone());
        }
    }

    /// Sends what the system takes.
    fn send(&mut self) {
        self.waits = false;
        let Some(descriptor) = self.descriptor else { return };
        // What is stuck waits for the task, which waits for the system.
        if self.bytes.is_empty() || self.stuck {
            return;
        }
        let sent = loop {
            match send(descriptor, &self.bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                sent => break sent,
            }
        };
        match sent {
            Ok(length) if length == self.bytes.len() => return self.clear(),
            Ok(length) => {
                self.bytes.drain(..length);
                self.stuck = true;
            }
            Err(Errno::EAGAIN) => self.stuck = true,
            Err(error) => {
                self.failed = Some(error.into());
                self.clear();
            }
        }
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Nothing is left. The buffer is for others: most connections idle most of the time.
    fn clear(&mut self) {
        self.stuck = false;
        self.bytes.clear();
        let bytes = std::mem::take(&mut self.bytes);
        GATHERING.with_borrow_mut(|gathering| {
            if let Some(gathering) = gathering.as_mut().filter(|gathering| gathering.spare.len() < CONNECTIONS) {
                gathering.spare.push(bytes);
            }
        });
    }
}

enum Taken {
    No,
    /// So many bytes.
    More(usize),
    /// The same, and no more are to be gathered before these are sent.
    Last(usize),
}

fn lock(unsent: &Mutex<Unsent>) -> MutexGuard<'_, Unsent> {
    unsent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    unsent: Arc<Mutex<Unsent>>,
    stream: TcpStream,
}

impl Socket {
    pub fn new(stream: TcpStream) -> Socket {
        let descriptor = Some(stream.as_raw_fd());
        let unsent = Unsent { descriptor, bytes: Vec::new(), waits: false, stuck: false, failed: None, task: None };
        Socket { unsent: Arc::new(Mutex::new(unsent)), stream }
    }

    /// Sends a last word after everything else, as far as the system takes it.
    pub fn send_last(&self, word: &[u8]) {
        let mut unsent = lock(&self.unsent);
        unsent.send();
        if unsent.bytes.is_empty() {
            let _ = self.stream.try_write(word);
        }
    }

    fn write(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut unsent = lock(&self.unsent);
        if let Some(error) = unsent.failed.take() {
            return Poll::Ready(Err(error));
        }
        match unsent.take(&self.unsent, pieces, context) {
            Taken::More(length) => return Poll::Ready(Ok(length)),
            Taken::Last(length) => {
                drop(unsent);
                send_gathered();
                return Poll::Ready(Ok(length));
            }
            Taken::No => {}
        }
        ready!(send_all(&mut unsent, &mut self.stream, context))?;
        let written = match pieces {
            [only] => Pin::new(&mut self.stream).poll_write(context, only),
            pieces => Pin::new(&mut self.stream).poll_write_vectored(context, pieces),
        };
        drop(unsent);
        if let Poll::Ready(Ok(length)) = &written {
            worked(length / BYTES);
        }
        written
    }
}

/// Sends what there is, waiting for the system if need be.
fn send_all(unsent: &mut Unsent, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    if let Some(error) = unsent.failed.take() {
        return Poll::Ready(Err(error));
    }
    while !unsent.bytes.is_empty() {
        match ready!(Pin::new(&mut *stream).poll_write(context, &unsent.bytes)) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(length) if length == unsent.bytes.len() => unsent.clear(),
            Ok(length) => drop(unsent.bytes.drain(..length)),
            Err(error) => {
                unsent.clear();
                return Poll::Ready(Err(error));
            }
        }
    }
    Poll::Ready(Ok(()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut unsent = lock(&self.unsent);
        unsent.send();
        unsent.descriptor = None;
        unsent.task = None;
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        worked(1 + (buffer.filled().len() - before) / BYTES);
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was gathered is sent soon, whatever happens; only what the system did not take is waited for.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut unsent = lock(&this.unsent);
        if unsent.stuck || unsent.failed.is_some() {
            return send_all(&mut unsent, &mut this.stream, context);
        }
        if !unsent.bytes.is_empty() {
            unsent.lead(context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(send_all(&mut lock(&this.unsent), &mut this.stream, context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
