//! A new release under watch: what was measured of the one before it, and what was found.

use super::{Ended, ReleaseNumber};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// The watch over a release that gets requests: all of them after a switch, a share of them as a canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// What is watched.
    pub release: ReleaseNumber,
    /// What it is compared with, and what serves again if it is worse.
    pub before: ReleaseNumber,
    pub since: Timestamp,
    pub until: Timestamp,
    /// Of a hundred requests so many, while it is a canary.
    pub percent: Option<u8>,
    /// What was measured of `before` until the watch began. It never changes, so that one error level holds for the
    /// whole watch.
    pub baseline: Measured,
    /// What of it fell into the minute in which the watch began: that minute counts for what `before` does meanwhile, less
    /// this.
    #[serde(default)]
    pub first_minute: Measured,
}

/// What the router counted of one release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub requests: u64,
    /// Answers with a status of 500 or more, the router's own among them, and requests that were tried again elsewhere since
    /// the connection broke.
    pub errors: u64,
    /// How long answers took: a longest time in microseconds, and how many took at most that and more than the one
    /// before. In order.
    pub latency: Vec<(u64, u64)>,
}

impl Measured {
    /// What was measured since `earlier` was. Where less is known by now, there is nothing.
    #[must_use]
    pub fn since(&self, earlier: &Measured) -> Measured {
        let of = |longest| earlier.latency.iter().find(|(other, _)| *other == longest).map_or(0, |(_, count)| *count);
        let latency = self.latency.iter().map(|(longest, count)| (*longest, count.saturating_sub(of(*longest))));
        Measured {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: latency.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// In what a release is worse than the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Finding {
    Errors {
        errors: u64,
        requests: u64,
        before_errors: u64,
        before_requests: u64,
    },
    /// So many answers took longer than `limit_ms`, which at most one in twenty should.
    Slow {
        p95_ms: u64,
        before_p95_ms: u64,
        limit_ms: u64,
        over: u64,
        requests: u64,
    },
    Crashes {
        process: String,
        crashes: u32,
        ended: Ended,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_since_is_the_difference_and_never_less_than_nothing() {
        let earlier = Measured { requests: 10, errors: 1, latency: vec![(5, 6), (9, 4)] };
        let later = Measured { requests: 15, errors: 3, latency: vec![(5, 6), (7, 1), (9, 8)] };
        let between = Measured { requests: 5, errors: 2, latency: vec![(7, 1), (9, 4)] };
        assert_eq!(later.since(&earlier), between);
        // A router that was killed has lost what it counted in its last minute.
        assert_eq!(earlier.since(&later), Measured { latency: Vec::new(), ..Measured::default() });
    }
}
