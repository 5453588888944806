//! Holds the router's listening sockets for it: whoever connects while no router runs waits in the sockets' own queue for
//! the next one, instead of being refused.
//!
//! The control plane borrows the sockets over `handover.sock` from the router that runs (`K` in place of a successor's
//! `G`). The connection stays open, so that the router's death is seen at once; a router that ends because it was told to
//! says `E` first. The next router that takes the folder's lock asks at `keeper.sock`, and gets all of them: from then on
//! they are its own, and no longer ours.

use super::dial;
use super::handover::{self, Header};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub(super) const SOCKET: &str = "keeper.sock";
/// For each word with a router.
const WORD: Duration = Duration::from_secs(5);

/// Sockets with what they are for.
type Sockets = Vec<(String, TcpListener)>;

/// Whoever sees to it that a router runs, and holds its sockets meanwhile.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    held: Arc<Mutex<Sockets>>,
    /// To the router that the sockets are of.
    router: Option<UnixStream>,
    giving: tokio::task::JoinHandle<()>,
}

/// How a router ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterEnd {
    /// It died, or another has its place.
    Gone,
    /// It was told to.
    Told,
}

impl Keeper {
    /// Begins to give away what it will hold. `folder`: that of the router's state.
    ///
    /// # Errors
    /// Those of listening on a Unix socket in the folder.
    pub fn start(folder: &Path) -> io::Result<Keeper> {
        let path = folder.join(SOCKET);
        let listener = dial::listen_unix(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let held = Arc::<Mutex<Sockets>>::default();
        let giving = tokio::spawn(give(listener, held.clone()));
        Ok(Keeper { folder: folder.to_owned(), held, router: None, giving })
    }

    /// Borrows the sockets of the router that runs, unless they are held.
    ///
    /// # Errors
    /// No router listens, or it does not lend them: then none are held.
    pub async fn hold(&mut self) -> io::Result<()> {
        if self.router.is_none() {
            let (sockets, router) = within(borrow(&self.folder.join(handover::SOCKET))).await?;
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
            self.router = Some(router);
        }
        Ok(())
    }

    /// Comes about when the router that lent its sockets ends; never, while there is none. What is held of one that was told to
    /// end is closed.
    pub async fn router_ended(&mut self) -> RouterEnd {
        let Some(router) = &mut self.router else { return std::future::pending().await };
        let told = matches!(router.read_u8().await, Ok(b'E'));
        self.router = None;
        if told {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        if told { RouterEnd::Told } else { RouterEnd::Gone }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.giving.abort();
    }
}

async fn within<T>(word: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(WORD, word).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn borrow(socket: &Path) -> io::Result<(Sockets, UnixStream)> {
    let (header, mut descriptors, mut stream) = handover::ask(socket).await?;
    // The lock is not for us to hold: who dies with it leaves the place to the next one.
    drop(descriptors.next());
    let sockets = header.sockets.into_iter().zip(descriptors.map(TcpListener::from)).collect();
    stream.write_all(b"K").await?;
    Ok((sockets, stream))
}

/// Gives what is held to whoever asks for it, once.
async fn give(listener: UnixListener, held: Arc<Mutex<Sockets>>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) if dial::is_ours(&stream) => stream,
            Ok(_) => continue,
            Err(error) => {
                tracing::error!(%error, "could not accept a router that asks for its sockets");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let sockets = std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner));
        let names = sockets.iter().map(|(name, _)| name.as_str());
        let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
        let sent = handover::send(&stream, Header::new(names), &descriptors);
        if let Err(error) = within(sent).await {
            tracing::warn!(%error, "could not give a router its sockets");
        }
    }
}

/// What is held of the router before this one, if anybody holds anything.
pub(super) async fn take(folder: &Path) -> Sockets {
    let asked = async {
        let (header, descriptors, _) = handover::ask(&folder.join(SOCKET)).await?;
        Ok(header.sockets.into_iter().zip(descriptors.map(TcpListener::from)).collect())
    };
    within(asked).await.unwrap_or_default()
}
