//! Streams of HTTP/2: each is a task of its own, which ends when its client has taken nothing of the answer for too long.
//!
//! A client of HTTP/2 decides for each stream how much it takes, so one may stand still while its connection does not. The HTTP
//! library then keeps the piece that it has and asks for no more, for ever.

use super::ticks::Ticks;
use hyper::rt::Executor;
use std::cell::Cell;
use std::time::Duration;

tokio::task_local! {
    /// When the last piece of the answer was handed over, if none was asked for since.
    static HANDED_OVER: Cell<u64>;
}

/// Notes that a piece of an answer was handed over, or that the next one is asked for. Says nothing outside of streams.
pub(super) fn handed_over(at: Option<u64>) {
    let _ = HANDED_OVER.try_with(|moment| moment.set(at.unwrap_or(0)));
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    pub ticks: Ticks,
    pub limit: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let (ticks, limit) = (self.ticks.clone(), self.limit);
        tokio::spawn(HANDED_OVER.scope(Cell::new(0), async move {
            tokio::pin!(stream);
            let mut look = tokio::time::interval(limit / 8);
            loop {
                tokio::select! {
                    _ = &mut stream => return,
                    _ = look.tick() => {}
                }
                // To let go of the stream resets it.
                if HANDED_OVER.with(|moment| ticks.is_past(moment.get(), limit)) {
                    return;
                }
            }
        }));
    }
}
