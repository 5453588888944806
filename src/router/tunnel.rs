//! A connection whose client and app have agreed on another protocol, such as WebSocket.

use super::errors::{Code, Refusal};
use super::exchange::Exchange;
use super::link::Link;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Passes bytes both ways once the client and a process have agreed on another protocol, until both are done.
pub(super) async fn lead_through(mut exchange: Box<Exchange>, client: OnUpgrade, app: OnUpgrade, link: Link) {
    let connection = &link.connection;
    let before = connection.received();
    let (Ok(client), Ok(app)) = tokio::join!(client, app) else { return };
    connection.set_waiting(true);
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_app, mut to_app) = tokio::io::split(TokioIo::new(app));
    let ended = {
        let up = async {
            let copied = pass(&mut from_client, &mut to_app).await;
            let _ = to_app.shutdown().await;
            copied
        };
        let down = pass(&mut from_app, &mut to_client);
        tokio::pin!(up, down);
        // A client may end its half first. When the app has ended, nobody reads what the client still says.
        tokio::select! {
            down = &mut down => down,
            up = &mut up => match up {
                Ok(()) => down.await,
                Err(error) => Err(error),
            },
        }
    };
    exchange.bytes = connection.received() - before;
    if connection.cut().is_some() {
        exchange.refusal = Some(Refusal::coded(503, Code::H15));
    } else if let Err(error) = ended {
        tracing::debug!(%error, "a connection with another protocol broke off");
    }
    // What is left concerns the client alone.
    exchange.complete();
    drop((link, from_app, to_app));
    let _ = to_client.shutdown().await;
}

/// Passes bytes on until there are no more.
pub(super) async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let read = poll_fn(|context| {
            let mut free = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *from).poll_read(context, &mut free) {
                Poll::Ready(read) => Poll::Ready(read.map(|()| free.filled().len())),
                Poll::Pending => {
                    // Each time, also if it went well before: what was written may meet a full system only later.
                    ready!(Pin::new(&mut *to).poll_flush(context))?;
                    Poll::Pending
                }
            }
        });
        match read.await? {
            0 => return to.flush().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}
