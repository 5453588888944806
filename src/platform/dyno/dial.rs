//! Dialling the app: the router asks on the dial socket, and gets a connected socket that was made inside the app's
//! own network namespace. Nothing else leads there.
//!
//! A socket belongs to the namespace it was made in, whoever connects it. So a small child enters the namespace once
//! and hands out fresh sockets (the factory); connecting, with its deadlines, is the supervisor's loop.
//! Protocol: the client writes `D`; the answer is `K` with the socket (SCM_RIGHTS), or `R` when the app refuses.

use super::system;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, connect, getsockopt, recvmsg, sendmsg, socket, socketpair, sockopt,
};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Heroku's router gives a connection to an app 5 s.
const CONNECT: Duration = Duration::from_secs(5);
const MAX_CLIENTS: usize = 1024;
const MAX_PENDING_OF_A_CLIENT: usize = 256;

/// Where sockets come from.
pub enum Factory {
    /// The supervisor's own network is the app's.
    Own,
    Child {
        pid: Pid,
        channel: OwnedFd,
    },
    /// The namespace is not there yet, or could not be entered.
    None,
}

impl Factory {
    /// Forks a child that lives in the network namespace of the given process.
    pub fn enter(sandbox: i32) -> io::Result<Factory> {
        let network = fs::File::open(format!("/proc/{sandbox}/ns/net"))?;
        let root = nix::unistd::geteuid().is_root();
        // Entering a network needs rights in the user namespace that owns it, which root outside has.
        let user = if root { None } else { Some(system::owning_user_namespace(network.as_fd())?) };
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let pid = system::fork(|| {
            let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
            let entered = user
                .iter()
                .try_for_each(|user| setns(user, CloneFlags::CLONE_NEWUSER))
                .and_then(|()| setns(&network, CloneFlags::CLONE_NEWNET));
            // Only the channel stays: holding the log's pipes or the sockets open would keep them from ending.
            let placed = system::above(theirs.as_fd()).and_then(|copy| system::put(copy.as_fd(), 3));
            if entered.is_err() || placed.is_err() {
                return 1;
            }
            system::close_from(4);
            serve_sockets()
        })?;
        drop(theirs);
        Ok(Factory::Child { pid, channel: ours })
    }

    fn make(&self, family: AddressFamily) -> io::Result<OwnedFd> {
        match self {
            Factory::Own => Ok(fresh_socket(family)?),
            Factory::None => Err(io::Error::from(io::ErrorKind::NotConnected)),
            Factory::Child { channel, .. } => {
                let request = [if family == AddressFamily::Inet { b'4' } else { b'6' }];
                nix::sys::socket::send(channel.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
                receive_socket(channel.as_fd())?.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
            }
        }
    }
}

fn fresh_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// The factory's life: one byte in, one socket out, until the supervisor closes the channel.
fn serve_sockets() -> i32 {
    let channel = system::received(3);
    let mut request = [0_u8; 1];
    loop {
        match nix::unistd::read(&channel, &mut request) {
            Ok(1) => {}
            Err(Errno::EINTR) => continue,
            _ => return 0,
        }
        let family = if request[0] == b'4' { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let sent = match fresh_socket(family) {
            Ok(fresh) => send_with_socket(channel.as_fd(), b'K', fresh.as_fd()),
            Err(_) => nix::unistd::write(&channel, b"R").map(drop),
        };
        if sent.is_err() {
            return 1;
        }
    }
}

fn send_with_socket(channel: BorrowedFd<'_>, letter: u8, socket: BorrowedFd<'_>) -> nix::Result<()> {
    let letter = [letter];
    let fds = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&letter)], &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// One answer: a socket with `K`, nothing with `R`.
pub fn receive_socket(channel: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut letter = [0_u8; 1];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut letter)];
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let mut socket = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                socket = Some(system::received(fd));
            }
        }
    }
    Ok(socket)
}

struct Client {
    number: u64,
    stream: UnixStream,
    pending: usize,
}

struct Pending {
    client: u64,
    socket: OwnedFd,
    second_try: bool,
    deadline: Instant,
}

/// All clients of the dial socket and their connections under way. Nothing here blocks.
pub struct Dialler {
    port: u16,
    pub factory: Factory,
    clients: Vec<Client>,
    pending: Vec<Pending>,
    next_number: u64,
}

impl Dialler {
    pub fn new(port: u16, factory: Factory) -> Dialler {
        Dialler { port, factory, clients: Vec::new(), pending: Vec::new(), next_number: 0 }
    }

    pub fn clients(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().map(|client| client.stream.as_fd())
    }

    pub fn connecting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pending.iter().map(|pending| pending.socket.as_fd())
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.deadline).min()
    }

    pub fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            let welcome = super::is_ours(&stream) && self.clients.len() < MAX_CLIENTS;
            if welcome && stream.set_nonblocking(true).is_ok() {
                self.next_number += 1;
                self.clients.push(Client { number: self.next_number, stream, pending: 0 });
            }
        }
    }

    /// Reads what clients ask for, and goes on with every connection under way.
    pub fn step(&mut self) {
        self.read_requests();
        let now = Instant::now();
        for pending in std::mem::take(&mut self.pending) {
            self.go_on(pending, now);
        }
    }

    fn read_requests(&mut self) {
        let mut wanted = Vec::new();
        let mut bytes = [0_u8; 64];
        self.clients.retain_mut(|client| {
            loop {
                match client.stream.read(&mut bytes) {
                    Ok(0) => return false,
                    Ok(length) => {
                        let asked = bytes[..length].iter().filter(|&&byte| byte == b'D').count();
                        client.pending += asked;
                        if asked != length || client.pending > MAX_PENDING_OF_A_CLIENT {
                            return false;
                        }
                        wanted.extend(std::iter::repeat_n(client.number, asked));
                        if length < bytes.len() {
                            return true;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
        });
        for client in wanted {
            self.dial(client, false, Instant::now() + CONNECT);
        }
    }

    /// 127.0.0.1 first, then [::1].
    fn dial(&mut self, client: u64, second_try: bool, deadline: Instant) {
        let started = if second_try {
            let address = SocketAddrV6::new(Ipv6Addr::LOCALHOST, self.port, 0, 0);
            self.begin(AddressFamily::Inet6, &SockaddrIn6::from(address))
        } else {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
            self.begin(AddressFamily::Inet, &SockaddrIn::from(address))
        };
        match started {
            Ok((socket, true)) => self.answer(client, Some(socket)),
            Ok((socket, false)) => self.pending.push(Pending { client, socket, second_try, deadline }),
            Err(_) if !second_try => self.dial(client, true, deadline),
            Err(_) => self.answer(client, None),
        }
    }

    fn begin(&self, family: AddressFamily, address: &dyn SockaddrLike) -> io::Result<(OwnedFd, bool)> {
        let socket = self.factory.make(family)?;
        match connect(socket.as_raw_fd(), address) {
            Ok(()) => Ok((socket, true)),
            Err(Errno::EINPROGRESS) => Ok((socket, false)),
            Err(error) => Err(error.into()),
        }
    }

    fn go_on(&mut self, pending: Pending, now: Instant) {
        let mut poll = [nix::poll::PollFd::new(pending.socket.as_fd(), nix::poll::PollFlags::POLLOUT)];
        let ready = nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).unwrap_or(0) > 0;
        if !ready && now < pending.deadline {
            self.pending.push(pending);
            return;
        }
        let connected = ready && getsockopt(&pending.socket, sockopt::SocketError) == Ok(0);
        match (connected, pending.second_try) {
            (true, _) => self.answer(pending.client, Some(pending.socket)),
            (false, false) if now < pending.deadline => self.dial(pending.client, true, pending.deadline),
            (false, _) => self.answer(pending.client, None),
        }
    }

    /// A client that does not take its answers is let go: it never holds up another one.
    fn answer(&mut self, number: u64, socket: Option<OwnedFd>) {
        let Some(index) = self.clients.iter().position(|client| client.number == number) else { return };
        let client = &mut self.clients[index];
        client.pending -= 1;
        let sent = match socket {
            Some(socket) => send_with_socket(client.stream.as_fd(), b'K', socket.as_fd()).is_ok(),
            None => client.stream.write(b"R").is_ok_and(|length| length == 1),
        };
        if !sent {
            self.clients.swap_remove(index);
        }
    }
}
