//! The connections of clients: how many there may be, and how long each may take over the head of a request, over an
//! answer that it does not take, and between two requests.
//!
//! The head has one deadline and one size, from its first byte to its last: else a client that sends a byte now and then
//! could hold a connection for ever. No request starts a timer of its own; all connections are looked at now and then.

use super::errors::Refusal;
use super::framing::{Fault, Framing};
use super::request::canonical;
use super::ticks::Ticks;
use super::trailers::{self, Answer, Trailers};
use super::trust::Trusted;
use super::wire::Wire;
use http::HeaderValue;
use nix::sys::socket::{MsgFlags, recv, send, shutdown};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Sleep;

/// For how long an idle connection may say farewell before it is cut.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);
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

/// How far a client is. Moments are those of the router's ticks; 0 is none.
#[derive(Debug, Default)]
struct Progress {
    /// When the head's first byte came; 0 outside of heads. While TLS is agreed on, and over HTTP/2 until the client has
    /// said that it speaks it, since when.
    head_since: AtomicU64,
    /// Since when it has taken nothing of what there is to write.
    stalled_since: AtomicU64,
    /// Since when nothing is asked of us.
    idle_since: AtomicU64,
    /// When it took something last. Over HTTP/2 it may take little of what its streams still have.
    took_at: AtomicU64,
    /// Requests that are under way.
    under_way: AtomicUsize,
    /// Since when it is to end, to make room for others.
    gives_way_since: AtomicU64,
    /// Nothing can be said but through TLS.
    secure: bool,
    /// It speaks HTTP/2.
    http2: AtomicBool,
    farewell: Farewell,
}

/// That a connection is to end with what is under way on it: it has idled for too long, or we end.
#[derive(Debug, Default)]
struct Farewell {
    bidden: AtomicBool,
    told: Notify,
}

impl Farewell {
    fn bid(&self) {
        self.bidden.store(true, Ordering::Release);
        self.told.notify_one();
    }
}

impl Progress {
    /// Whatever waits for the client begins to wait now.
    fn wait_from(&self, now: u64) {
        self.idle_since.store(now, Ordering::Release);
        if self.head_since.load(Ordering::Acquire) != 0 {
            self.head_since.store(now, Ordering::Release);
        }
    }
}

/// Everyone who is connected.
#[derive(Debug)]
pub(super) struct Clients {
    ticks: Ticks,
    limit: usize,
    limit_per_network: usize,
    /// Whose connections are those of many.
    trusted: Trusted,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    clients: HashMap<RawFd, Guest>,
    networks: HashMap<IpAddr, Count>,
    giving_way: usize,
    /// For whom nothing idled at the last look, and when that was: many come within one tick.
    none_idles: (Option<IpAddr>, u64),
    /// Who is bidden farewell, whenever it came.
    ending: Ending,
}

#[derive(Debug)]
struct Guest {
    network: IpAddr,
    progress: Arc<Progress>,
}

/// Connections of one network, and how many of them make room for others.
#[derive(Debug, Default)]
struct Count {
    open: usize,
    giving_way: usize,
}

/// Which connections are to end with what is under way on them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    #[default]
    None,
    /// Those of HTTP/2, to which that costs no request.
    Streamed,
    All,
}

impl Ending {
    fn concerns(self, progress: &Progress) -> bool {
        match self {
            Ending::None => false,
            Ending::Streamed => progress.http2.load(Ordering::Acquire),
            Ending::All => true,
        }
    }
}

/// Connections that give way at once, so that not everyone who comes looks at all of them.
const AT_ONCE: usize = 64;
/// A connection that idles for less than this does not give way, nor one whose request began to come after that.
const NEWCOMER: Duration = Duration::from_secs(1);

impl Open {
    /// How many there are, in all or of one network, that do not give way.
    fn count(&self, of: Option<IpAddr>) -> usize {
        match of {
            None => self.clients.len() - self.giving_way,
            Some(network) => self.networks.get(&network).map_or(0, |count| count.open - count.giving_way),
        }
    }

    /// Counts one again that was to give way and has a request under way now.
    fn stays(&mut self, descriptor: RawFd) {
        let Some(Guest { network, progress }) = self.clients.get(&descriptor) else { return };
        progress.gives_way_since.store(0, Ordering::Release);
        self.giving_way -= 1;
        if let Some(count) = self.networks.get_mut(network) {
            count.giving_way -= 1;
        }
    }

    /// Lets connections end on which nothing is under way: of those who have the most, and of these the longest idle first.
    /// Only those of a network, if one is named. Says whether there were any.
    fn end_idle(&mut self, of: Option<IpAddr>, ticks: &Ticks) -> bool {
        if self.none_idles == (of, ticks.now()) {
            return false;
        }
        let idles = |guest: &&Guest| {
            let Progress { under_way, stalled_since, gives_way_since, idle_since, head_since, .. } = &*guest.progress;
            of.is_none_or(|network| network == guest.network)
                && under_way.load(Ordering::Acquire) == 0
                && stalled_since.load(Ordering::Acquire) == 0
                && gives_way_since.load(Ordering::Acquire) == 0
                && ticks.is_past(idle_since.load(Ordering::Acquire), NEWCOMER)
                && (head_since.load(Ordering::Acquire) == 0
                    || ticks.is_past(head_since.load(Ordering::Acquire), NEWCOMER))
        };
        let order = |guest: &Guest| {
            let fellows = self.networks.get(&guest.network).map_or(0, |count| count.open);
            (Reverse(fellows), guest.progress.idle_since.load(Ordering::Acquire))
        };
        let idle = self.clients.iter().filter(|(_, guest)| idles(guest));
        let mut idle: Vec<_> = idle.map(|(descriptor, guest)| (order(guest), *descriptor)).collect();
        if idle.len() > AT_ONCE {
            idle.select_nth_unstable(AT_ONCE);
            idle.truncate(AT_ONCE);
        }
        for (_, descriptor) in &idle {
            let Some(guest) = self.clients.get(descriptor) else { continue };
            guest.progress.gives_way_since.store(ticks.now(), Ordering::Release);
            self.giving_way += 1;
            if let Some(count) = self.networks.get_mut(&guest.network) {
                count.giving_way += 1;
            }
            if guest.progress.head_since.load(Ordering::Acquire) == 0 {
                guest.progress.farewell.bid();
            } else {
                // Whoever takes so long over a head, or over TLS, would be cut soon. Its owner takes the lock before it closes, so the
                // descriptor is still this client's.
                let _ = shutdown(*descriptor, nix::sys::socket::Shutdown::Both);
            }
        }
        if idle.is_empty() {
            self.none_idles = (of, ticks.now());
        }
        !idle.is_empty()
    }
}

/// Whose connections are counted together: of IPv6, whoever has an address has as many as fit into 64 bits.
fn network_of(address: IpAddr) -> IpAddr {
    match canonical(address) {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

impl Clients {
    pub fn new(ticks: Ticks, limit: usize, limit_per_network: usize, trusted: Trusted) -> Clients {
        Clients { ticks, limit, limit_per_network, trusted, open: Mutex::default() }
    }

    /// Takes a connection in. When there are too many, those on which nothing is asked give way to it, and where all are
    /// busy, `None` comes of it.
    pub fn admit(self: &Arc<Clients>, descriptor: RawFd, address: IpAddr, secure: bool) -> Option<Place> {
        let since = if secure { self.now() } else { 0 };
        let idle_since = AtomicU64::new(self.now());
        let head_since = AtomicU64::new(since);
        let progress = Arc::new(Progress { head_since, secure, idle_since, ..Progress::default() });
        let (address, network) = (canonical(address), network_of(address));
        {
            let mut open = self.lock();
            let limits = [(Some(network), self.limit_per_network), (None, self.limit)];
            for (of, limit) in limits {
                let free = of.is_some() && self.trusted.contains(address);
                if !free && open.count(of) >= limit && !open.end_idle(of, &self.ticks) {
                    return None;
                }
            }
            open.networks.entry(network).or_default().open += 1;
            open.clients.insert(descriptor, Guest { network, progress: progress.clone() });
        }
        Some(Place { clients: self.clone(), progress, descriptor, address })
    }

    pub fn count(&self) -> usize {
        self.lock().clients.len()
    }

    /// Ends the connections whose request's head has taken longer than `head`, those that have taken nothing of their answer
    /// for `stall`, and those that have asked nothing for `keep_alive`.
    pub fn cut_slow(&self, head: Duration, stall: Duration, keep_alive: Duration) {
        let is_over = |since: &AtomicU64, limit: Duration| self.ticks.is_past(since.load(Ordering::Acquire), limit);
        let mut open = self.lock();
        let mut stay = Vec::new();
        for (descriptor, Guest { progress, .. }) in &open.clients {
            // Its owner takes the lock before it closes, so the descriptor is still this client's.
            let stalled = is_over(&progress.stalled_since, stall);
            let rests = progress.under_way.load(Ordering::Acquire) == 0;
            // An answer that the app has given whole may still be on its way to the client, who then waits for us.
            let idles = rests && progress.stalled_since.load(Ordering::Acquire) == 0;
            let slow = idles && is_over(&progress.head_since, head);
            if slow && !progress.secure {
                let _ = send(*descriptor, SLOW, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
            if idles && is_over(&progress.idle_since, keep_alive) {
                progress.farewell.bid();
            }
            let unheard = is_over(&progress.idle_since, keep_alive + FAREWELL) && is_over(&progress.took_at, stall);
            let gives_way = is_over(&progress.gives_way_since, FAREWELL);
            if gives_way && !idles {
                stay.push(*descriptor);
            }
            // The end of an answer of HTTP/2 may still be on its way, though not for ever.
            let gives_way =
                gives_way && (is_over(&progress.took_at, FAREWELL) || is_over(&progress.gives_way_since, stall));
            let dead = idles && (unheard || gives_way);
            if slow || stalled || dead {
                let _ = shutdown(*descriptor, nix::sys::socket::Shutdown::Both);
            }
        }
        for descriptor in stay {
            open.stays(descriptor);
        }
    }

    /// Lets connections end, those that are there and those that come.
    pub fn end(&self, ending: Ending) {
        let mut open = self.lock();
        open.ending = ending.max(open.ending);
        let all = open.clients.values().map(|guest| &guest.progress);
        all.filter(|progress| open.ending.concerns(progress)).for_each(|progress| progress.farewell.bid());
    }

    /// How many have asked for something that they have not got yet.
    pub fn busy(&self) -> usize {
        let is_busy = |progress: &&Arc<Progress>| {
            progress.under_way.load(Ordering::Acquire) > 0 || progress.stalled_since.load(Ordering::Acquire) != 0
        };
        self.lock().clients.values().map(|guest| &guest.progress).filter(is_busy).count()
    }

    fn now(&self) -> u64 {
        self.ticks.now()
    }

    fn leave(&self, descriptor: RawFd) {
        let mut open = self.lock();
        let Some(Guest { network, progress }) = open.clients.remove(&descriptor) else { return };
        let gave_way = usize::from(progress.gives_way_since.load(Ordering::Acquire) != 0);
        open.giving_way -= gave_way;
        if let Some(count) = open.networks.get_mut(&network) {
            count.open -= 1;
            count.giving_way -= gave_way;
            if count.open == 0 {
                open.networks.remove(&network);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        self.clients.leave(self.descriptor);
    }
}

/// Tells a connection that there is no room for it.
pub(super) fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(BUSY);
}

/// A client's connection as its requests know it.
#[derive(Debug)]
pub(super) struct Client {
    pub address: IpAddr,
    /// The same as headers and log lines write it.
    pub written_address: HeaderValue,
    pub secure: bool,
    pub http2: bool,
    clients: Arc<Clients>,
    progress: Arc<Progress>,
    framing: Mutex<Framing>,
    trailing: Mutex<Option<Trailing>>,
}

impl Client {
    /// The verdict on the head that was just parsed. To be asked once per request of HTTP/1.
    pub fn verdict(&self) -> Result<(), Refusal> {
        self.framing().verdict()
    }

    /// Whether the client broke the rules of HTTP.
    pub fn is_malformed(&self) -> bool {
        self.framing().fault().is_some()
    }

    /// A request begins.
    pub fn begin(self: &Arc<Client>) -> UnderWay {
        self.progress.under_way.fetch_add(1, Ordering::AcqRel);
        UnderWay(self.clone())
    }

    /// Puts what will have come after the body into the answer that is about to be written in HTTP/1, if that has a place
    /// for it.
    pub fn trail(&self, trailers: Trailers) {
        let trailing = Trailing { answer: Answer::default(), trailers, lines: Vec::new() };
        *self.trailing.lock().unwrap_or_else(PoisonError::into_inner) = Some(trailing);
    }

    /// Comes about when the connection is to end with what is under way on it.
    pub async fn farewell(&self) {
        self.progress.farewell.told.notified().await;
    }

    /// Whether `farewell` has come about, for whoever comes by often.
    pub fn is_bidden_farewell(&self) -> bool {
        self.progress.farewell.bidden.load(Ordering::Acquire)
    }

    fn framing(&self) -> MutexGuard<'_, Framing> {
        self.framing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address as headers and log lines write it.
pub(super) fn written(address: IpAddr) -> HeaderValue {
    // Digits, letters, dots and colons are a value.
    HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static(""))
}

/// A request that is under way, until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Client>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.progress.wait_from(self.0.clients.now());
        self.0.progress.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct ClientStream {
    /// The first field, so that it is dropped before the connection.
    place: Place,
    wire: Wire,
    client: Arc<Client>,
    /// Bytes of HTTP/2's preface that are still to come: the HTTP library would wait for them for ever.
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
        let http2 = wire.is_http2();
        let (framing, preface) = if http2 { (Framing::opaque(), PREFACE_BYTES) } else { (Framing::default(), 0) };
        if preface == 0 {
            place.progress.head_since.store(0, Ordering::Release);
        }
        place.progress.took_at.store(place.clients.now(), Ordering::Release);
        place.progress.http2.store(http2, Ordering::Release);
        // Whoever is told from here on is told that it speaks HTTP/2.
        if place.clients.lock().ending.concerns(&place.progress) {
            place.progress.farewell.bid();
        }
        let address = canonical(client.map_or(place.address, |client| client.ip()));
        let client = Client {
            address,
            written_address: written(address),
            secure: wire.is_secure(),
            http2,
            clients: place.clients.clone(),
            progress: place.progress.clone(),
            framing: Mutex::new(framing),
            trailing: Mutex::new(None),
        };
        ClientStream { place, wire, client: Arc::new(client), preface, closing: Closing::No }
    }

    pub fn client(&self) -> Arc<Client> {
        self.client.clone()
    }

    /// Whether closing now could meet bytes of the client: then the connection is reset, and with it our answer.
    fn owes_bytes(&self) -> bool {
        let descriptor = self.wire.socket().as_raw_fd();
        let waiting = recv(descriptor, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        !self.client.framing().is_between_requests() || waiting.is_ok_and(|count| count > 0)
    }

    fn write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut place = self.client.trailing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(trailing) = &mut *place else { return Pin::new(&mut self.wire).poll_write(context, bytes) };
        if trailing.answer.is_in_trailers() {
            if trailing.lines.is_empty() {
                trailing.lines = trailers::lines(&trailing.trailers.take());
            }
            while !trailing.lines.is_empty() {
                let written = std::task::ready!(Pin::new(&mut self.wire).poll_write(context, &trailing.lines))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                trailing.lines.drain(..written);
            }
            *place = None;
            return Pin::new(&mut self.wire).poll_write(context, bytes);
        }
        // At first only looked at: what is not written comes again.
        let end = trailing.answer.clone().take(bytes);
        let written = std::task::ready!(Pin::new(&mut self.wire).poll_write(context, &bytes[..end]))?;
        trailing.answer.take(&bytes[..written]);
        if trailing.answer.is_other() {
            *place = None;
        }
        Poll::Ready(Ok(written))
    }

    /// Notes whether the client took what there was to write.
    fn took<T>(&self, result: Poll<T>) -> Poll<T> {
        let progress = &self.place.progress;
        let stalled = &progress.stalled_since;
        if result.is_ready() {
            let now = self.place.clients.now();
            progress.took_at.store(now, Ordering::Release);
            if stalled.load(Ordering::Relaxed) != 0 {
                progress.wait_from(now);
                stalled.store(0, Ordering::Release);
            }
        } else if stalled.load(Ordering::Relaxed) == 0 {
            stalled.store(self.place.clients.now(), Ordering::Release);
        }
        result
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
        match this.client.framing().fault() {
            None => {}
            // The connection ends with the answer that says so.
            Some(Fault::Refused) => return Poll::Pending,
            Some(_) => return Poll::Ready(Err(malformed())),
        }
        std::task::ready!(Pin::new(&mut this.wire).poll_read(context, buffer))?;
        let bytes = &mut buffer.filled_mut()[before..];
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut framing = this.client.framing();
        let passed = framing.take(bytes);
        buffer.set_filled(before + passed);
        this.preface = this.preface.saturating_sub(passed);
        if this.preface > 0 {
            return Poll::Ready(Ok(()));
        }
        let since = &this.place.progress.head_since;
        let began = since.load(Ordering::Acquire);
        if !framing.in_head() {
            if began != 0 {
                since.store(0, Ordering::Release);
            }
        } else if began == 0 {
            since.store(this.place.clients.now(), Ordering::Release);
        }
        if framing.fault() == Some(Fault::TooLarge) && !this.place.progress.secure {
            this.wire.socket().send_last(LARGE);
        }
        match framing.fault() {
            Some(_) if passed == 0 => Poll::Ready(Err(malformed())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the request is malformed")
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.write(context, bytes);
        self.took(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.wire).poll_flush(context);
        self.took(result)
    }

    /// Says that nothing more comes, then reads on for a while what the client still sends.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.closing, Closing::No) {
            let said = Pin::new(&mut this.wire).poll_shutdown(context);
            std::task::ready!(this.took(said))?;
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
            match Pin::new(&mut this.wire).poll_read(context, &mut buffer) {
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
        let trails = self.client.trailing.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if trails {
            let first = buffers.iter().find(|buffer| !buffer.is_empty());
            return self.poll_write(context, first.map_or(&[], |buffer| buffer));
        }
        let result = Pin::new(&mut self.wire).poll_write_vectored(context, buffers);
        self.took(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_address_and_of_ipv6_by_network() {
        let of = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(of("203.0.113.7"), "203.0.113.7");
        assert_eq!(of("::ffff:203.0.113.7"), "203.0.113.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
