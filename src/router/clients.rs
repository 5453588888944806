//! The connections of clients: how many there may be, and how long each may take over the head of a request.
//!
//! The proxy library times single reads, so a client that sends a byte now and then could hold a connection for
//! ever. Here the head has one deadline and one size, from its first byte to its last.

use super::errors::Refusal;
use super::framing::{Fault, Framing};
use super::trailers::{self, Answer, Trailers};
use super::wire::Wire;
use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, shutdown};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Small answers leave as one packet; larger writes pass by the buffer.
const WRITE_BUFFER: usize = 1460;
/// What is still read of a client that was answered before it had sent everything, in all and while it pauses.
/// Closing on unread bytes would reset the connection, and with it the answer.
const LINGER: Duration = Duration::from_secs(15);
const LINGER_PAUSE: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n";
const SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What every client of HTTP/2 has to say first (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// How far a client is with the head of a request.
#[derive(Debug, Default)]
struct Progress {
    /// When the head's first byte came, in milliseconds since the start plus one; 0 outside of heads. While TLS is
    /// agreed on, and over HTTP/2 until the client has said that it speaks it, since when.
    head_since: AtomicU64,
    /// Nothing can be said but through TLS.
    secure: bool,
}

/// Everyone who is connected.
#[derive(Debug)]
pub(super) struct Clients {
    started: Instant,
    limit: usize,
    limit_per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    clients: HashMap<RawFd, Arc<Progress>>,
    addresses: HashMap<IpAddr, usize>,
}

impl Clients {
    pub fn new(started: Instant, limit: usize, limit_per_address: usize) -> Clients {
        Clients { started, limit, limit_per_address, open: Mutex::default() }
    }

    /// Takes a connection in; `None` when there are too many.
    pub fn admit(self: &Arc<Clients>, descriptor: RawFd, address: IpAddr, secure: bool) -> Option<Place> {
        let since = if secure { milliseconds(self.started.elapsed()) + 1 } else { 0 };
        let progress = Arc::new(Progress { head_since: AtomicU64::new(since), secure });
        {
            let mut open = self.lock();
            let total = open.clients.len();
            let count = open.addresses.entry(address).or_default();
            if total >= self.limit || *count >= self.limit_per_address {
                if *count == 0 {
                    open.addresses.remove(&address);
                }
                return None;
            }
            *count += 1;
            open.clients.insert(descriptor, progress.clone());
        }
        Some(Place { clients: self.clone(), progress, descriptor, address })
    }

    pub fn count(&self) -> usize {
        self.lock().clients.len()
    }

    /// Ends the connections whose request's head has taken longer than `limit`.
    pub fn cut_slow(&self, limit: Duration) {
        let Some(before) = self.started.elapsed().checked_sub(limit) else { return };
        let before = milliseconds(before) + 1;
        for (descriptor, progress) in &self.lock().clients {
            let since = progress.head_since.load(Ordering::Acquire);
            if since != 0 && since < before {
                // Its owner takes the lock before it closes, so the descriptor is still this client's.
                if !progress.secure {
                    let _ = send(*descriptor, SLOW, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
                }
                let _ = shutdown(*descriptor, nix::sys::socket::Shutdown::Both);
            }
        }
    }

    fn leave(&self, descriptor: RawFd, address: IpAddr) {
        let mut open = self.lock();
        open.clients.remove(&descriptor);
        if let Some(count) = open.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.addresses.remove(&address);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A place among those who are connected, left when it is dropped. That must happen before the descriptor is closed,
/// as `cut_slow` relies on.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<Clients>,
    progress: Arc<Progress>,
    descriptor: RawFd,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.leave(self.descriptor, self.address);
    }
}

/// Tells a connection that there is no room for it.
pub(super) fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(BUSY);
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct ClientStream {
    /// The first field, so that it is dropped before the connection.
    place: Place,
    stream: BufWriter<Wire>,
    digest: Arc<SocketDigest>,
    framing: Mutex<Framing>,
    trailing: Mutex<Option<Trailing>>,
    /// Bytes of HTTP/2's preface that are still to come: the proxy library would wait for them for ever.
    preface: usize,
    closing: Closing,
}

/// An answer that trailers may have to be put into.
#[derive(Debug)]
struct Trailing {
    answer: Answer,
    trailers: Trailers,
    /// Their lines that are still to be written.
    lines: Vec<u8>,
}

/// How far the end of a connection is. It is reached once for a connection, never between two of its requests.
#[derive(Debug)]
enum Closing {
    No,
    /// We have said that nothing more comes, and read on for a while what the client still sends.
    Lingering {
        until: tokio::time::Instant,
        pause: Pin<Box<Sleep>>,
        left: usize,
    },
    Over,
}

impl ClientStream {
    /// A client that was let in. `client` is its address where a load balancer told it.
    pub fn new(place: Place, wire: Wire, client: Option<SocketAddr>) -> ClientStream {
        let digest = SocketDigest::from_raw_fd(place.descriptor);
        if let Some(client) = client {
            let _ = digest.peer_addr.set(Some(PeerAddress::Inet(client)));
        }
        let (framing, preface) =
            if wire.is_http2() { (Framing::opaque(), PREFACE_BYTES) } else { (Framing::default(), 0) };
        if preface == 0 {
            place.progress.head_since.store(0, Ordering::Release);
        }
        ClientStream {
            place,
            stream: BufWriter::with_capacity(WRITE_BUFFER, wire),
            digest: Arc::new(digest),
            framing: Mutex::new(framing),
            trailing: Mutex::new(None),
            preface,
            closing: Closing::No,
        }
    }

    pub fn is_secure(&self) -> bool {
        self.stream.get_ref().is_secure()
    }

    pub fn is_http2(&self) -> bool {
        self.stream.get_ref().is_http2()
    }

    /// Puts what will have come after the body into the answer that is about to be written in HTTP/1, if that has a place
    /// for it.
    pub fn trail(&self, trailers: Trailers) {
        let trailing = Trailing { answer: Answer::default(), trailers, lines: Vec::new() };
        *self.trailing.lock().unwrap_or_else(PoisonError::into_inner) = Some(trailing);
    }

    fn tcp(&self) -> &TcpStream {
        self.stream.get_ref().tcp()
    }

    /// A client's stream as the proxy library hands it out.
    pub fn of(stream: &dyn IO) -> Option<&ClientStream> {
        stream.as_any().downcast_ref::<ClientStream>()
    }

    /// The verdict on the head that was just parsed. To be asked once per request.
    pub fn verdict(&self) -> Result<(), Refusal> {
        self.framing().verdict()
    }

    /// Whether the client broke the rules of HTTP.
    pub fn is_malformed(&self) -> bool {
        self.framing().fault().is_some()
    }

    /// Whether the client has gone while nothing was asked of it: its end of the connection is closed and everything
    /// that it sent was read.
    pub fn is_gone(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.tcp().as_raw_fd(), &mut [0], flags) {
            Ok(count) => count == 0,
            Err(error) => error != Errno::EAGAIN && error != Errno::EINTR,
        }
    }

    /// Whether closing now could meet bytes of the client: then the connection is reset, and with it our answer.
    fn owes_bytes(&self) -> bool {
        let waiting = recv(self.tcp().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        !self.framing().is_between_requests() || waiting.is_ok_and(|count| count > 0)
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        let framing = this.framing.get_mut().unwrap_or_else(PoisonError::into_inner);
        if framing.fault().is_some() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the request is malformed")));
        }
        let result = Pin::new(&mut this.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            let passed = framing.take(bytes);
            buffer.set_filled(before + passed);
            this.preface = this.preface.saturating_sub(passed);
            if this.preface > 0 {
                return result;
            }
            let since = &this.place.progress.head_since;
            let began = since.load(Ordering::Acquire);
            if !framing.in_head() {
                since.store(0, Ordering::Release);
            } else if began == 0 {
                since.store(milliseconds(this.place.clients.started.elapsed()) + 1, Ordering::Release);
            }
            if framing.fault() == Some(Fault::TooLarge) && !this.place.progress.secure {
                let _ = this.stream.get_ref().tcp().try_write(LARGE);
            }
            if framing.fault().is_some() && passed == 0 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the request is malformed")));
            }
        }
        result
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let place = this.trailing.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(trailing) = place else { return Pin::new(&mut this.stream).poll_write(context, bytes) };
        if trailing.answer.is_in_trailers() {
            if trailing.lines.is_empty() {
                trailing.lines = trailers::lines(&trailing.trailers.take());
            }
            while !trailing.lines.is_empty() {
                let written = std::task::ready!(Pin::new(&mut this.stream).poll_write(context, &trailing.lines))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                trailing.lines.drain(..written);
            }
            *place = None;
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        }
        // At first only looked at: what is not written comes again.
        let end = trailing.answer.clone().take(bytes);
        let written = std::task::ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..end]))?;
        trailing.answer.take(&bytes[..written]);
        if trailing.answer.is_other() {
            *place = None;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Says that nothing more comes, then reads on for a while what the client still sends. The proxy library ends a
    /// connection through here.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.closing, Closing::No) {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.owes_bytes() {
                this.closing = Closing::Over;
                return Poll::Ready(Ok(()));
            }
            let now = tokio::time::Instant::now();
            let pause = Box::pin(tokio::time::sleep_until(now + LINGER_PAUSE));
            this.closing = Closing::Lingering { until: now + LINGER, pause, left: LINGER_BYTES };
        }
        while let Closing::Lingering { until, pause, left } = &mut this.closing {
            let mut piece = [0; 16 * 1024];
            let mut buffer = ReadBuf::new(&mut piece);
            // Past the grammar: what comes now is not read, only taken off the wire.
            match Pin::new(this.stream.get_mut()).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let now = tokio::time::Instant::now();
                    *left = left.saturating_sub(buffer.filled().len());
                    pause.as_mut().reset((now + LINGER_PAUSE).min(*until));
                    if *left == 0 || now >= *until {
                        this.closing = Closing::Over;
                    }
                }
                Poll::Ready(_) => this.closing = Closing::Over,
                Poll::Pending => {
                    std::task::ready!(pause.as_mut().poll(context));
                    this.closing = Closing::Over;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.trailing.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            let first = buffers.iter().find(|buffer| !buffer.is_empty());
            return self.poll_write(context, first.map_or(&[], |buffer| buffer));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> RawFd {
        self.tcp().as_raw_fd()
    }
}

impl Ssl for ClientStream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.get_ref().is_http2().then_some(ALPN::H2)
    }
}

impl Peek for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}
