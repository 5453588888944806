//! A coarse clock for limits of seconds: it is set each time that limits are looked at, so that noting a moment, which every
//! request does a few times, costs no call for the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Milliseconds since the router's start plus one, as of the last look; 0 is no moment.
#[derive(Debug, Clone)]
pub(super) struct Ticks {
    started: Instant,
    now: Arc<AtomicU64>,
}

impl Ticks {
    pub fn new(started: Instant) -> Ticks {
        let ticks = Ticks { started, now: Arc::default() };
        ticks.advance();
        ticks
    }

    pub fn advance(&self) {
        self.now.store(milliseconds(self.started.elapsed()) + 1, Ordering::Release);
    }

    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Whether a moment is longer ago than a limit. It may be noted as up to one look earlier than it was.
    pub fn is_past(&self, moment: u64, limit: Duration) -> bool {
        moment != 0 && self.now().saturating_sub(moment) >= milliseconds(limit)
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}
