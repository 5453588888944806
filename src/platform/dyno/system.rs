//! The few kernel calls that have no safe form in `nix`: the only unsafe code of the platform.
//!
//! The supervisor has one thread, so a forked child may do anything that its parent could.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Runs `child` in a new process and never returns from it there.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: this process has a single thread (see `dyno::main`), so no lock can be held by another one.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
            exit_now(code)
        }
    }
}

/// As `fork`, with the child in namespaces of its own. In a new pid namespace it is the first process: when it dies, the
/// kernel kills everything in there before its end is told to the parent.
pub fn fork_into(namespaces: nix::sched::CloneFlags, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let flags = libc::c_long::from(namespaces.bits() | libc::SIGCHLD);
    // SAFETY: without a stack clone(2) is fork(2); see `fork` for the single thread.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) })?;
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        exit_now(code)
    }
    Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?))
}

/// Ends the process without running anything of the parent's that a fork copied.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: callers hold no owned descriptor from `first` on that is used afterwards: they exec, exit or just began.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    if done != 0 {
        for fd in first..65_536 {
            // SAFETY: as above; closing a number that is not open fails without harm.
            unsafe { libc::close(fd) };
        }
    }
}

/// A copy of a descriptor at or above 32, closed on exec.
pub fn above(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let raw = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(32))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Makes `number` a copy of a descriptor, open across exec.
pub fn put(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: both are numbers; the copy is meant for the program that this process becomes.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
    Ok(())
}

/// A stable handle on a process, which never means another one. pidfd_open(2), Linux 5.3.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers, returns a new descriptor or -1.
    let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}

/// pidfd_send_signal(2), Linux 5.1.
pub fn signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: a null siginfo means "as kill(2) does".
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(sent)?;
    Ok(())
}

/// The user namespace that owns another namespace. ioctl_ns(2), NS_GET_USERNS.
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: u64 = 0xb701;
    // SAFETY: the request takes no argument and returns a new descriptor or -1.
    let raw = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) })?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes over a descriptor that came in a message.
pub fn received(raw: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed it for this process with the message that was just read, and the message is read once.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
