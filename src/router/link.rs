//! HTTP/1.1 connections to one process: how one is made, and those that wait for their next request.

use super::body::ClientBody;
use super::dial::{AppStream, Connection, Connections, DialError};
use super::ticks::Ticks;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections of one process that may wait for their next request. Each waits a second or two at most anyway.
const IDLE: usize = 1_024;

/// One connection, ready for a request or busy with one.
pub(super) struct Link {
    pub sender: SendRequest<ClientBody>,
    pub connection: Arc<Connection>,
}

impl Link {
    /// Makes a connection through the process's supervisor.
    pub async fn open(
        socket: &Path,
        limit: Duration,
        connections: &Arc<Connections>,
        ticks: Ticks,
    ) -> Result<Link, DialError> {
        let stream = super::dial::dial(socket, limit).await?;
        let (stream, connection) = AppStream::register(stream, connections, ticks);
        // Names as people write them, for apps that compare them as they are.
        let (sender, driver) = Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| DialError::Broken(io::Error::other(error)))?;
        // It ends with the connection; what went wrong is told to the request on it.
        tokio::spawn(async move {
            let _ = driver.with_upgrades().await;
        });
        Ok(Link { sender, connection })
    }
}

/// The connections of one process that wait for their next request, each with when it began to wait.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<(u64, Link)>>);

impl Idle {
    /// The one that was used last, if it is still good.
    pub async fn take(&self) -> Option<Link> {
        loop {
            let (_, mut link) = self.lock().pop()?;
            // Its last answer was read to the end, so this takes no longer than to see that.
            if link.sender.ready().await.is_ok() {
                return Some(link);
            }
        }
    }

    pub fn put(&self, link: Link, now: u64) {
        let mut idle = self.lock();
        if idle.len() < IDLE && !link.sender.is_closed() {
            idle.push((now, link));
        }
    }

    /// Closes those that have waited for so long.
    pub fn expire(&self, ticks: &Ticks, limit: Duration) {
        self.lock().retain(|(since, _)| !ticks.is_past(*since, limit));
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Link)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
