//! The servers that Landfall runs for itself, as what is to be run: each inside the same walls as an app, without a
//! network, its data in one folder that is bound to `/data`, its socket in there.

use super::major_version;
use std::path::{Path, PathBuf};

/// Who makes databases and roles on the server of our own.
pub const SUPERUSER: &str = "landfall";

/// A server as it is to be started. The password is given in the environment and is gone from there before the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub command: String,
    pub memory_bytes: u64,
    pub processes: u64,
}

/// PostgreSQL from this folder of programs. It makes its data folder when there is none; one that was begun and not
/// finished is made anew. `port` is where it listens on the loopback besides, if its network is the machine's.
pub fn postgres_program(programs: &Path, port: Option<u16>, memory_bytes: u64, connections: u32) -> Program {
    let programs = programs.display();
    let listen = match port {
        Some(port) => format!("-c listen_addresses=127.0.0.1 -c port={port}"),
        None => "-c listen_addresses= -c port=5432".to_owned(),
    };
    let buffers = (memory_bytes >> 22).clamp(16, 1024);
    let command = format!(
        "set -e; umask 077\n\
         if [ ! -d /data/db ]; then\n\
         rm -rf /data/new; printf '%s' \"$PASSWORD\" > /tmp/password\n\
         {programs}/initdb --pgdata=/data/new --username={SUPERUSER} --pwfile=/tmp/password --auth=scram-sha-256 \
         --encoding=UTF8 --locale=C.UTF-8 --no-instructions\n\
         rm /tmp/password; mv /data/new /data/db\n\
         fi\n\
         unset PASSWORD; rm -f /data/db/postmaster.pid\n\
         exec {programs}/postgres -D /data/db {listen} -c unix_socket_directories=/data \
         -c unix_socket_permissions=0700 -c dynamic_shared_memory_type=mmap -c max_connections={connections} \
         -c shared_buffers={buffers}MB -c superuser_reserved_connections=5 -c log_statement=none \
         -c password_encryption=scram-sha-256"
    );
    Program { command, memory_bytes, processes: u64::from(connections) + 64 }
}

/// A Redis for one app.
pub fn redis_program(program: &Path, port: Option<u16>, memory_mb: u64, policy: &str) -> Program {
    let listen = match port {
        Some(port) => format!("bind 127.0.0.1\nport {port}"),
        None => "port 0".to_owned(),
    };
    // What an app may not do: change the server's settings, load code, or make it talk to others.
    let refused = "-module -debug -shutdown -replicaof -slaveof -failover -migrate -acl -cluster -config +config|get \
                   +acl|whoami +acl|cat +acl|getuser +cluster|info";
    let command = format!(
        "set -e; umask 077\n\
         HASH=$(printf '%s' \"$PASSWORD\" | sha256sum | cut -d' ' -f1)\n\
         cat > /tmp/redis.conf <<END\n\
         {listen}\n\
         unixsocket /data/s\n\
         unixsocketperm 700\n\
         dir /data\n\
         daemonize no\n\
         protected-mode yes\n\
         save 60 1\n\
         maxmemory {memory_mb}mb\n\
         maxmemory-policy {policy}\n\
         maxclients 250\n\
         user default on #$HASH ~* &* +@all {refused}\n\
         END\n\
         unset PASSWORD HASH\n\
         exec {program} /tmp/redis.conf",
        program = program.display(),
    );
    // Saving forks a copy, of which the changed pages count.
    Program { command, memory_bytes: (memory_mb << 21) + (64 << 20), processes: 64 }
}

/// The PostgreSQL of this major version, else the newest that is installed: where Debian and Ubuntu put it, else where the
/// search path finds it.
pub fn find_postgres(version: Option<u32>, search_path: &[PathBuf]) -> Option<PathBuf> {
    find_postgres_below(Path::new("/usr/lib/postgresql"), version, search_path)
}

fn find_postgres_below(root: &Path, version: Option<u32>, search_path: &[PathBuf]) -> Option<PathBuf> {
    let installed = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let found: u32 = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs.join("initdb").is_file().then_some((found, programs))
        })
        .filter(|(found, _)| version.is_none_or(|wanted| *found == wanted))
        .max();
    installed.map(|(_, programs)| programs).or_else(|| {
        // Elsewhere than below /usr a sandbox does not see it.
        let mut folders =
            search_path.iter().filter(|folder| folder.starts_with("/usr") && folder.join("initdb").is_file());
        let is_other =
            |folder: &Path| version.is_some_and(|wanted| version_in(folder).is_some_and(|found| found != wanted));
        folders.find(|folder| !is_other(folder)).cloned()
    })
}

/// The major version of the PostgreSQL in a folder of programs, as it stands in one of them for who asks for it. `None` where
/// that is no such program; then the server says itself that it does not read what another one made.
fn version_in(programs: &Path) -> Option<u32> {
    const SAYS: &[u8] = b"initdb (PostgreSQL) ";
    let bytes = std::fs::read(programs.join("initdb")).ok()?;
    let at = bytes.windows(SAYS.len()).position(|some| some == SAYS)? + SAYS.len();
    let number = bytes.get(at..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The major version that made the databases in a folder: no other one reads them. `None` before there are any.
pub fn version_of_databases(folder: &Path) -> Option<u32> {
    major_version(&std::fs::read_to_string(folder.join("db/PG_VERSION")).ok()?)
}

pub fn find_redis(search_path: &[PathBuf]) -> Option<PathBuf> {
    let folders = search_path.iter().cloned().chain([PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")]);
    folders
        .filter(|folder| folder.starts_with("/usr"))
        .flat_map(|folder| [folder.join("redis-server"), folder.join("valkey-server")])
        .find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_served_by_the_version_that_made_them_however_new_another_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        for version in ["9.6", "15", "17"] {
            let programs = folder.path().join(version).join("bin");
            std::fs::create_dir_all(&programs).expect("a folder");
            std::fs::write(programs.join("initdb"), "").expect("a program");
        }
        let found = |version| find_postgres_below(folder.path(), version, &[]);
        let programs = |version: &str| Some(folder.path().join(version).join("bin"));
        assert_eq!(version_of_databases(folder.path()), None);
        assert_eq!(found(None), programs("17"));
        std::fs::create_dir(folder.path().join("db")).expect("a folder");
        std::fs::write(folder.path().join("db/PG_VERSION"), "15\n").expect("write the version");
        assert_eq!(version_of_databases(folder.path()), Some(15));
        assert_eq!(found(version_of_databases(folder.path())), programs("15"));
        assert_eq!(found(Some(16)), None, "another one would not read them");
        std::fs::write(folder.path().join("initdb"), "\0initdb (PostgreSQL) 16.3\n").expect("a program");
        assert_eq!((version_in(folder.path()), version_in(&folder.path().join("15/bin"))), (Some(16), None));
    }
}
