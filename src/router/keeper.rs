//! Holds the router's listening sockets for it: whoever connects while no router runs waits in the sockets' own queue for
//! the next one, instead of being refused.
//!
//! The control plane borrows the sockets over `lend.sock` from the router that runs. The connection stays open, so that the
//! router's death is seen at once; a router that ends because it was told to says `E` first, and one that a signal is to end
//! says `L` and serves on until the next one takes its place. The next router that takes the folder's lock says at
//! `keeper.sock` which sockets it wants. The others are closed, so that they are in nobody's way; those it gets are held on,
//! for the case that it does not live to serve.

use super::dial;
use super::handover::{self, Sockets};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Where the router lends, and where it asks for what is held.
pub(super) const LENDING: &str = "lend.sock";
pub(super) const KEEPING: &str = "keeper.sock";
/// For what the one says to the other.
const WORD: Duration = Duration::from_secs(5);
const MAX_LINE: u64 = 16 * 1024;
/// Those that a router lends to: one control plane, and such as have died or are about to.
const KEEPERS: usize = 8;

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn within<T>(word: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(WORD, word).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn send(stream: &UnixStream, sockets: &Sockets) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(|(name, socket)| (name.as_str(), socket)).collect();
    within(handover::send(stream, None, &sockets)).await
}

async fn receive(stream: &UnixStream) -> io::Result<Sockets> {
    let (header, descriptors) = handover::hear(stream).await?;
    Ok(header.name(descriptors))
}

/// Whoever sees to it that a router runs, and holds its sockets meanwhile.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    held: Arc<Mutex<Sockets>>,
    /// To the router that the sockets are of.
    router: Option<UnixStream>,
    giving: JoinHandle<()>,
}

/// How a router ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterEnd {
    /// It died, or another has its place.
    Gone,
    /// It was told to.
    Told,
    /// A signal told it to, and it waits for the next one to take its place.
    Leaving,
}

impl Keeper {
    /// Begins to give what it will hold. `folder`: that of the router's state.
    ///
    /// # Errors
    /// Those of listening on a Unix socket in the folder.
    pub fn start(folder: &Path) -> io::Result<Keeper> {
        let listener = dial::listen_unix(&folder.join(KEEPING))?;
        let held = Arc::<Mutex<Sockets>>::default();
        let giving = tokio::spawn(give(listener, held.clone()));
        Ok(Keeper { folder: folder.to_owned(), held, router: None, giving })
    }

    /// Borrows the sockets of the router that runs, unless those of it are held.
    ///
    /// # Errors
    /// No router lends any; what is held of the one before is held on.
    pub async fn hold(&mut self) -> io::Result<()> {
        if self.router.is_none() {
            let asked = async {
                let stream = dial::connect_unix(&self.folder.join(LENDING)).await?;
                Ok((receive(&stream).await?, stream))
            };
            let (sockets, router) = within(asked).await?;
            *lock(&self.held) = sockets;
            self.router = Some(router);
        }
        Ok(())
    }

    /// Comes about when the router that lent its sockets ends; never, while there is none. What is held of one that was told to
    /// end is closed.
    pub async fn router_ended(&mut self) -> RouterEnd {
        let Some(router) = &mut self.router else { return std::future::pending().await };
        let end = match router.read_u8().await {
            Ok(b'E') => RouterEnd::Told,
            Ok(b'L') => RouterEnd::Leaving,
            _ => RouterEnd::Gone,
        };
        self.router = None;
        if end == RouterEnd::Told {
            self.let_go();
        }
        end
    }

    /// No router comes: whoever waits for one is refused from here on.
    pub fn let_go(&mut self) {
        lock(&self.held).clear();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.giving.abort();
    }
}

/// Gives what is held to each router that begins.
async fn give(listener: UnixListener, held: Arc<Mutex<Sockets>>) {
    loop {
        let stream = dial::accept_ours(&listener, "what is held of the router").await;
        let given = async {
            let mut line = Vec::new();
            let mut asked = BufReader::new(stream).take(MAX_LINE);
            asked.read_until(b'\n', &mut line).await?;
            let wanted: Vec<String> = serde_json::from_slice(&line)?;
            let copies = {
                let mut held = lock(&held);
                held.retain(|(name, _)| wanted.contains(name));
                let copy = |(name, socket): &(String, TcpListener)| Ok((name.clone(), socket.try_clone()?));
                held.iter().map(copy).collect::<io::Result<Sockets>>()?
            };
            send(asked.get_ref().get_ref(), &copies).await
        };
        if let Err(error) = within(given).await {
            tracing::warn!(%error, "could not give a router the sockets of the one before");
        }
    }
}

/// What is held of the router before this one, if anybody holds anything. What is not `wanted` is closed when this returns.
///
/// # Errors
/// Somebody is there and does not answer. What it holds is in our way.
pub(super) async fn take(folder: &Path, wanted: &[String]) -> io::Result<Sockets> {
    let Ok(mut stream) = dial::connect_unix(&folder.join(KEEPING)).await else { return Ok(Vec::new()) };
    let mut line = serde_json::to_vec(wanted)?;
    line.push(b'\n');
    within(async {
        stream.write_all(&line).await?;
        receive(&stream).await
    })
    .await
}

/// The router's end: lends its sockets to whoever keeps them, until it is dropped.
#[derive(Debug)]
pub(super) struct Lending {
    keepers: Arc<Mutex<Vec<UnixStream>>>,
    task: JoinHandle<()>,
}

impl Lending {
    /// # Errors
    /// Those of listening on a Unix socket in the folder, and of copying a descriptor.
    pub fn start<'a>(folder: &Path, sockets: impl Iterator<Item = (&'a str, &'a TcpListener)>) -> io::Result<Lending> {
        let copy = |(name, socket): (&str, &TcpListener)| Ok((name.to_owned(), socket.try_clone()?));
        let sockets = sockets.map(copy).collect::<io::Result<Sockets>>()?;
        let listener = dial::listen_unix(&folder.join(LENDING))?;
        let keepers = Arc::<Mutex<Vec<UnixStream>>>::default();
        let task = tokio::spawn(lend(listener, sockets, keepers.clone()));
        Ok(Lending { keepers, task })
    }

    /// We are to end, and serve on until the next router is there. Says whether anybody heard it who might start one.
    pub fn leave(&self) -> bool {
        lock(&self.keepers).iter().filter(|keeper| keeper.try_write(b"L").is_ok()).count() > 0
    }

    /// We end because we were told to: nobody is to wait for the next router.
    pub async fn dismiss(mut self) {
        for keeper in lock(&self.keepers).iter() {
            let _ = keeper.try_write(b"E");
        }
        // Its copies are closed with it.
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.keepers).clear();
    }
}

async fn lend(listener: UnixListener, sockets: Sockets, keepers: Arc<Mutex<Vec<UnixStream>>>) {
    loop {
        let keeper = dial::accept_ours(&listener, "what the router lends").await;
        if let Err(error) = send(&keeper, &sockets).await {
            tracing::warn!(%error, "could not lend the router's sockets");
            continue;
        }
        let mut keepers = lock(&keepers);
        // They say nothing, so whatever can be read is their end.
        keepers.retain(
            |keeper| matches!(keeper.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        );
        if keepers.len() < KEEPERS {
            keepers.push(keeper);
        }
    }
}
