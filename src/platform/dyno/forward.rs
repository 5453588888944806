//! Services on the loopback of an isolated process: each connection to one of its ports is passed on, byte for byte, to
//! one place of the machine, and nothing else is reachable that way.
//!
//! Two small children of the supervisor. One enters the network namespace, binds the ports there, hands the listening
//! sockets over and ends. The other stays in the machine's network and carries the bytes; it opens the process' gate once
//! it listens, and dies with the supervisor.

use super::dial::receive_socket;
use super::system;
use crate::domain::{Endpoint, Service};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections of one process at a time; a database gives an app fewer.
const MOST_CONNECTIONS: usize = 512;
const CONNECT: Duration = Duration::from_secs(5);
const STACK: usize = 128 << 10;

/// Starts the carrier for the sandbox whose first process is given. Whoever waits at the other end of `gate` goes on when
/// the ports are bound, or when that failed.
pub fn start(sandbox: i32, services: &[Service], gate: OwnedFd) -> io::Result<Pid> {
    let network = fs::File::open(format!("/proc/{sandbox}/ns/net"))?;
    let root = nix::unistd::geteuid().is_root();
    // Entering a network needs rights in the user namespace that owns it, which root outside has.
    let user = if root { None } else { Some(system::owning_user_namespace(network.as_fd())?) };
    system::fork(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        // Nothing of the supervisor's stays: holding the log's pipes open would keep them from ending.
        let mut kept = vec![gate.as_fd(), network.as_fd()];
        kept.extend(user.iter().map(AsFd::as_fd));
        let Ok(copies) = kept.into_iter().map(system::above).collect::<Result<Vec<_>, _>>() else { return 1 };
        for (number, copy) in (3..).zip(&copies) {
            if system::put(copy.as_fd(), number).is_err() {
                return 1;
            }
        }
        let with_user = copies.len() == 3;
        std::mem::forget(copies);
        system::close_from(if with_user { 6 } else { 5 });
        let gate = system::received(3);
        let network = system::received(4);
        let user = with_user.then(|| system::received(5));
        i32::from(carry(services, gate, network, user).is_err())
    })
}

fn carry(services: &[Service], gate: OwnedFd, network: OwnedFd, user: Option<OwnedFd>) -> io::Result<()> {
    let listeners = bind_inside(services, network, user)?;
    let count = Arc::new(AtomicUsize::new(0));
    let mut threads = Vec::new();
    for (listener, service) in listeners.into_iter().zip(services) {
        let (to, count) = (service.to.clone(), count.clone());
        threads.push(thread(move || accept(&listener, &to, &count))?);
    }
    nix::unistd::write(&gate, b"\n")?;
    drop(gate);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// One listening socket for each service, made in the other network by a child that ends at once.
fn bind_inside(services: &[Service], network: OwnedFd, user: Option<OwnedFd>) -> io::Result<Vec<TcpListener>> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut ours = Some(ours);
    let child = system::fork(|| {
        // Else this child would wait for its own end of the stream.
        drop(ours.take());
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        let entered = user
            .iter()
            .try_for_each(|user| setns(user, CloneFlags::CLONE_NEWUSER))
            .and_then(|()| setns(&network, CloneFlags::CLONE_NEWNET));
        if entered.is_err() {
            return 1;
        }
        for service in services {
            let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, service.port)) else { return 1 };
            let (letter, fds) = ([b'K'], [listener.as_raw_fd()]);
            let (slices, rights) = ([IoSlice::new(&letter)], [ControlMessage::ScmRights(&fds)]);
            if sendmsg::<()>(theirs.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None).is_err() {
                return 1;
            }
        }
        0
    })?;
    drop(theirs);
    let mut listeners = Vec::new();
    if let Some(channel) = &ours {
        for _ in services {
            let socket =
                receive_socket(channel.as_fd())?.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
            listeners.push(TcpListener::from(socket));
        }
    }
    let _ = nix::sys::wait::waitpid(child, None);
    Ok(listeners)
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().stack_size(STACK).spawn(work)
}

fn accept(listener: &TcpListener, to: &Endpoint, count: &Arc<AtomicUsize>) {
    loop {
        let Ok((inside, _)) = listener.accept() else {
            // Out of descriptors: what is open now will end.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if count.fetch_add(1, Ordering::SeqCst) >= MOST_CONNECTIONS {
            count.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (to, own_count) = (to.clone(), count.clone());
        let begun = thread(move || {
            // A place that does not answer is told as a closed connection.
            let _ = pass_on(inside, &to);
            own_count.fetch_sub(1, Ordering::SeqCst);
        });
        if begun.is_err() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Carries bytes both ways until both sides are done.
fn pass_on(inside: TcpStream, to: &Endpoint) -> io::Result<()> {
    inside.set_nodelay(true)?;
    match to {
        Endpoint::Unix(path) => {
            let outside = UnixStream::connect(path)?;
            let (from, into) = (outside.try_clone()?, inside.try_clone()?);
            let back = thread(move || one_way(from, into, |into| into.shutdown(Shutdown::Write)))?;
            one_way(inside, outside, |outside| outside.shutdown(Shutdown::Write));
            let _ = back.join();
        }
        Endpoint::Tcp { host, port } => {
            let address = (host.as_str(), *port).to_socket_addrs()?.next();
            let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let outside = TcpStream::connect_timeout(&address, CONNECT)?;
            outside.set_nodelay(true)?;
            let (from, into) = (outside.try_clone()?, inside.try_clone()?);
            let back = thread(move || one_way(from, into, |into| into.shutdown(Shutdown::Write)))?;
            one_way(inside, outside, |outside| outside.shutdown(Shutdown::Write));
            let _ = back.join();
        }
    }
    Ok(())
}

fn one_way<From: io::Read, Into: io::Write>(
    mut from: From,
    mut into: Into,
    finish: impl FnOnce(&Into) -> io::Result<()>,
) {
    let _ = io::copy(&mut from, &mut into);
    let _ = finish(&into);
}
