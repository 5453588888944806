//! What flows through a request: the client's bytes to the app, and the app's, or a page of ours, to the client.

use super::clients::{Client, UnderWay};
use super::dial::{Connection, Cut};
use super::errors::{Code, Refusal};
use super::exchange::Exchange;
use super::link::Link;
use super::streams;
use super::ticks::Ticks;
use super::trailers::{self, Trailers};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// For how long the app may leave a client waiting that asked whether it should send its body. Apps that do not know the
/// question never answer it.
const PERMISSION: Duration = Duration::from_secs(1);

/// The body of a request on its way to the app.
pub(super) enum ClientBody {
    Empty,
    Upload(Box<Upload>),
}

pub(super) struct Upload {
    incoming: Incoming,
    http2: bool,
    /// It may go on after the answer.
    _under_way: UnderWay,
    steps: Arc<Steps>,
    connection: Option<Arc<Connection>>,
    permission: Option<Pin<Box<Sleep>>>,
}

/// Why a request's body does not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Library(#[from] hyper::Error),
    /// Over HTTP/2 a client may say that it takes no more, and mean that it sends no more.
    #[error("the client ended its stream in the middle")]
    Short,
}

/// How far a request's body is, for whoever has to say what went wrong. Of no body there is nothing to say.
#[derive(Debug, Clone, Default)]
pub(super) struct Sending(Option<Arc<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    /// All of it has come.
    whole: AtomicBool,
    /// The client broke off, or broke the rules.
    broken: AtomicBool,
    /// The app has asked for it, where the client wants it to be asked for.
    permitted: AtomicBool,
}

impl Sending {
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|steps| steps.whole.load(Ordering::Acquire))
    }

    pub fn is_broken(&self) -> bool {
        self.0.as_ref().is_some_and(|steps| steps.broken.load(Ordering::Acquire))
    }

    pub fn permit(&self) {
        if let Some(steps) = &self.0 {
            steps.permitted.store(true, Ordering::Release);
        }
    }
}

impl ClientBody {
    /// `asks`: the client waits for a word before it sends it.
    pub fn new(incoming: Incoming, client: &Arc<Client>, asks: bool) -> (ClientBody, Sending) {
        if incoming.is_end_stream() {
            return (ClientBody::Empty, Sending::default());
        }
        let steps = Arc::<Steps>::default();
        let sending = Sending(Some(steps.clone()));
        let permission = asks.then(|| Box::pin(tokio::time::sleep(PERMISSION)));
        let (http2, _under_way) = (client.http2, client.begin());
        let upload = Upload { incoming, http2, _under_way, steps, connection: None, permission };
        (ClientBody::Upload(Box::new(upload)), sending)
    }

    /// The connection that it is sent over.
    pub fn over(&mut self, connection: &Arc<Connection>) {
        if let ClientBody::Upload(upload) = self {
            upload.connection = Some(connection.clone());
        }
    }
}

impl Upload {
    fn end(&self) {
        self.steps.whole.store(true, Ordering::Release);
        if let Some(connection) = &self.connection {
            connection.sent();
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let ClientBody::Upload(upload) = &mut *self else { return Poll::Ready(None) };
        if let Some(permission) = &mut upload.permission {
            if !upload.steps.permitted.load(Ordering::Acquire) {
                std::task::ready!(permission.as_mut().poll(context));
            }
            upload.permission = None;
        }
        let frame = std::task::ready!(Pin::new(&mut upload.incoming).poll_frame(context));
        let ended = upload.incoming.is_end_stream();
        let frame = match frame {
            Some(Ok(frame)) => Some(Ok(only_late(frame))),
            Some(Err(error)) => Some(Err(Broken::from(error))),
            None if upload.http2 && !ended => Some(Err(Broken::Short)),
            None => None,
        };
        // Where the length is known, nobody asks for what comes after the last byte.
        let whole = ended || frame.is_none() || upload.incoming.size_hint().exact() == Some(0);
        if matches!(frame, Some(Err(_))) {
            upload.steps.broken.store(true, Ordering::Release);
        } else if whole {
            upload.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Upload(upload) => upload.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Upload(upload) => upload.incoming.size_hint(),
        }
    }
}

/// Trailers without those that may not come late; data as it is.
fn only_late(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(fields) => Frame::trailers(trailers::late(fields)),
        Err(frame) => frame,
    }
}

/// The body of an answer on its way to the client.
pub(super) enum AnswerBody {
    Page(Option<Bytes>),
    App(Box<AppBody>),
}

/// Bytes that a stream of HTTP/2 hands over at once: of a larger piece nobody could tell whether its client takes any.
const SLICE: usize = 16 * 1024;

pub(super) struct AppBody {
    pub incoming: Incoming,
    /// Of the last piece what was not handed over yet.
    pub rest: Bytes,
    /// The connection that it comes over; given back when all has come, if it is good for another request.
    pub link: Option<Link>,
    pub reusable: bool,
    /// Where trailers are put for a client of HTTP/1.
    pub trailers: Option<Trailers>,
    /// Taken when it is over.
    pub exchange: Option<Box<Exchange>>,
}

impl AppBody {
    /// Everything has come: the app is done with this request, and what is left concerns the client alone.
    fn end(&mut self) {
        let (link, exchange) = (self.link.take(), self.exchange.take());
        match (link, &exchange) {
            (Some(link), Some(exchange)) if self.reusable => exchange.give_back(link),
            // It ends by itself, unless the app answered before it had the whole request and takes no more of it.
            (Some(link), _) => link.connection.set_waiting(true),
            (None, _) => {}
        }
        if let Some(exchange) = exchange {
            exchange.complete();
        }
    }

    fn set_waiting(&self, waiting: bool) {
        if let Some(link) = &self.link {
            link.connection.set_waiting(waiting);
        }
    }

    /// The app broke off in the middle.
    fn fail(&mut self) {
        let silent = self.link.as_ref().is_some_and(|link| link.connection.cut() == Some(Cut::Silence));
        let code = if silent { Code::H15 } else { Code::H18 };
        if let Some(mut exchange) = self.exchange.take() {
            exchange.refusal = Some(Refusal::coded(503, code));
            exchange.complete();
        }
        self.link = None;
    }

    /// Whether nothing more comes. It is known ahead where the app said how much it is.
    fn is_whole(&self) -> bool {
        self.rest.is_empty() && self.incoming.is_end_stream()
    }

    /// Ends what is whole without being asked for more: nobody asks for what comes after the last byte.
    pub fn end_if_whole(&mut self) {
        if self.is_whole() {
            self.end();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = match &mut *self {
            AnswerBody::Page(page) => return Poll::Ready(page.take().map(|page| Ok(Frame::data(page)))),
            AnswerBody::App(body) => body,
        };
        let frame = if body.rest.is_empty() {
            Pin::new(&mut body.incoming).poll_frame(context)
        } else {
            Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut body.rest)))))
        };
        body.set_waiting(frame.is_pending());
        let ticks = body.exchange.as_ref().map(|exchange| &exchange.proxy.routes.ticks);
        streams::handed_over(ticks.filter(|_| frame.is_ready()).map(Ticks::now));
        let Poll::Ready(frame) = frame else { return Poll::Pending };
        match frame {
            Some(Ok(frame)) => {
                let fields = match frame.into_data() {
                    Ok(mut data) => {
                        if let Some(exchange) = &mut body.exchange {
                            if exchange.client.http2 && data.len() > SLICE {
                                body.rest = data.split_off(SLICE);
                            }
                            exchange.bytes += data.len() as u64;
                        }
                        body.end_if_whole();
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => frame.into_trailers().unwrap_or_default(),
                };
                let fields = trailers::late(fields);
                let place = body.trailers.take();
                body.end();
                match place {
                    // Written by the connection itself, between the last chunk and its end.
                    Some(place) => {
                        place.put(fields);
                        Poll::Ready(None)
                    }
                    None => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                }
            }
            Some(Err(error)) => {
                body.fail();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                body.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Page(page) => page.is_none(),
            AnswerBody::App(body) => body.is_whole(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Page(page) => SizeHint::with_exact(page.as_ref().map_or(0, |page| page.len() as u64)),
            AnswerBody::App(body) => match body.incoming.size_hint().exact() {
                Some(length) => SizeHint::with_exact(length + body.rest.len() as u64),
                None => SizeHint::default(),
            },
        }
    }
}
