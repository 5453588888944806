//! Who is at the other end of a loopback connection? Builds may share the machine's network so that they reach package
//! registries, and with it they reach this server too. There is no login yet, so a request whose sender runs in a
//! sandbox of ours (in another user namespace than we do) is turned away.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Whether the process that holds the other end of this connection to `own` may run in one of our sandboxes. Only what
/// is shown to be outside is trusted: a connection that is in no table, whose end nobody holds (it is on its way from
/// one process to another), or that anybody holds who lives in another user namespace than we do, is not.
pub fn is_sandboxed(peer: SocketAddr, own: SocketAddr) -> bool {
    let Some((user, inode)) = socket_of(peer, own) else { return true };
    let holders = namespaces_of_holders(inode);
    if holders.is_empty() {
        // Without root, other people's processes can't be looked into; our sandboxes have our own user then.
        let own_user = nix::unistd::geteuid().as_raw();
        return own_user == 0 || user == own_user;
    }
    let ours = user_namespace(Path::new("/proc/self"));
    holders.into_iter().any(|namespace| ours.as_ref() != Some(&namespace))
}

/// The owner and the inode of the socket whose ends are exactly these.
fn socket_of(local: SocketAddr, remote: SocketAddr) -> Option<(u32, u64)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let found = tables.into_iter().filter_map(|table| std::fs::read_to_string(table).ok());
    found.into_iter().find_map(|table| find(&table, local, remote))
}

/// In whatever state: one half may be closed while the other still reads.
fn find(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<(u32, u64)> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let same = |field: usize, address: SocketAddr| {
            fields
                .get(field)
                .and_then(|text| end(text))
                .is_some_and(|seen| seen == (address.ip().to_canonical(), address.port()))
        };
        (same(1, local) && same(2, remote))
            .then(|| Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?)))?
    })
}

/// `0100007F:1F90`: the kernel writes an address as 32-bit words in the machine's own order.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (place, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(place * 8)?);
            }
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    Some((ip.to_canonical(), port))
}

fn namespaces_of_holders(inode: u64) -> Vec<PathBuf> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let mut found = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |path: &Path| std::fs::read_link(path).is_ok_and(|target| target == wanted);
        if descriptors.flatten().any(|descriptor| holds(&descriptor.path())) {
            found.extend(user_namespace(&process.path()));
        }
    }
    found
}

fn user_namespace(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/user")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_connections_are_nobodys_sandbox() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(own).unwrap();
        let peer = client.local_addr().unwrap();
        assert!(socket_of(peer, own).is_some());
        assert!(!is_sandboxed(peer, own));
        // One that is in no table is trusted with nothing.
        drop(client);
        assert!(is_sandboxed("127.0.0.3:1".parse().unwrap(), own));
    }

    #[test]
    fn a_connection_from_another_user_namespace_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let port = own.port();
        let plain = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line <&3");
        // Half closed, it can still read an answer; and it may have the very port that the server listens on.
        let half_closed = format!(
            "exec /usr/bin/python3 -c 'import socket; s = socket.create_connection((\"127.0.0.1\", {port})); \
             s.shutdown(socket.SHUT_WR); s.recv(1)'"
        );
        let same_port = format!(
            "exec /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.2\", {port})); \
             s.connect((\"127.0.0.1\", {port})); s.recv(1)'"
        );
        for script in [plain, half_closed, same_port] {
            let Ok(mut child) = std::process::Command::new("unshare").args(["-Ur", "bash", "-c", &script]).spawn()
            else {
                panic!("unshare is part of util-linux");
            };
            let (mut connection, peer) = listener.accept().unwrap();
            if script.contains("shutdown") {
                // The end of what it sends has come: its socket is half closed by now.
                assert_eq!(std::io::Read::read(&mut connection, &mut [0; 1]).unwrap(), 0);
            }
            assert!(is_sandboxed(peer, own), "{script}");
            drop(connection);
            child.wait().unwrap();
        }
    }
}
