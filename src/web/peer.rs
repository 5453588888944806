//! Who is at the other end of a loopback connection? Builds may share the machine's network so that they reach package
//! registries, and with it they reach this server too. There is no login yet, so a request whose sender runs in a
//! sandbox of ours (in another user namespace than we do) is turned away.

use std::net::SocketAddr;
use std::path::Path;

/// Whether the process that holds the other end of this connection runs in another user namespace than ours. A peer
/// that cannot be found holds no socket that we may see, which inside a sandbox of another user is the rule: it counts
/// as sandboxed where its user is not ours.
pub fn is_sandboxed(peer: SocketAddr) -> bool {
    let Some((user, inode)) = socket_of(peer) else { return false };
    let own_user = nix::unistd::geteuid().as_raw();
    match namespace_of_holder(inode) {
        Some(namespace) => Some(namespace) != user_namespace(Path::new("/proc/self")),
        None => user != own_user && user != 0 && own_user == 0 && !has_login_shell_range(user),
    }
}

/// Ordinary people's user ids, as Debian's login.defs draws the line.
fn has_login_shell_range(user: u32) -> bool {
    (1000..60_000).contains(&user)
}

/// The owner and the inode of the socket whose local address this is.
fn socket_of(address: SocketAddr) -> Option<(u32, u64)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    tables.into_iter().filter_map(|table| std::fs::read_to_string(table).ok()).find_map(|table| find(&table, address))
}

fn find(table: &str, address: SocketAddr) -> Option<(u32, u64)> {
    let port = format!(":{:04X}", address.port());
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?;
        // Established, and ours to look at: the other side of the pair has this port as its remote one.
        let established = *fields.get(3)? == "01";
        (local.ends_with(&port) && established)
            .then(|| Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?)))?
    })
}

fn namespace_of_holder(inode: u64) -> Option<std::path::PathBuf> {
    let wanted = std::path::PathBuf::from(format!("socket:[{inode}]"));
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if std::fs::read_link(descriptor.path()).is_ok_and(|target| target == wanted) {
                return user_namespace(&process.path());
            }
        }
    }
    None
}

fn user_namespace(process: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_link(process.join("ns/user")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_connections_are_nobodys_sandbox() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = client.local_addr().unwrap();
        assert!(socket_of(peer).is_some());
        assert!(!is_sandboxed(peer));
    }

    #[test]
    fn a_connection_from_another_user_namespace_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line <&3");
        let Ok(mut child) = std::process::Command::new("unshare").args(["-Ur", "bash", "-c", &script]).spawn() else {
            panic!("unshare is part of util-linux");
        };
        let (connection, peer) = listener.accept().unwrap();
        assert!(is_sandboxed(peer));
        drop(connection);
        child.wait().unwrap();
    }
}
