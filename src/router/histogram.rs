//! How long answers took, as counts that add up: of two minutes, two processes or two releases.
//!
//! Buckets are log-linear with eight steps an octave, so a percentile is at most 12.5 % too high. They are kept
//! sparsely: a minute of one app has a few dozen of them at most.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The last bucket takes whatever is longer than about two and a half minutes; requests that long are streams.
const BUCKETS: u16 = 208;

/// Counts by bucket, in order; and what percentiles cannot tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    counts: Vec<(u16, u64)>,
    /// All durations together, and the longest, in microseconds.
    sum: u64,
    longest: u64,
}

impl Histogram {
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.add(bucket_of(micros), 1);
        self.sum = self.sum.saturating_add(micros);
        self.longest = self.longest.max(micros);
    }

    /// Adds another one's counts to these.
    pub fn merge(&mut self, other: &Histogram) {
        for (bucket, count) in &other.counts {
            self.add(*bucket, *count);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.longest = self.longest.max(other.longest);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum)
    }

    /// The longest of all, exactly; `None` where nothing was recorded.
    pub fn longest(&self) -> Option<Duration> {
        (!self.counts.is_empty()).then(|| Duration::from_micros(self.longest))
    }

    /// The duration that `permille` of a thousand did not exceed: 500, 950, 990.
    pub fn percentile(&self, permille: u64) -> Option<Duration> {
        let rank = (self.count().saturating_mul(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        // No percentile lies above the longest one.
        bucket.map(|(bucket, _)| Duration::from_micros(upper_bound(*bucket).min(self.longest)))
    }

    /// How many took at most this long, up to a bucket's width.
    pub fn at_most(&self, limit: Duration) -> u64 {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let within = self.counts.iter().filter(|(bucket, _)| upper_bound(*bucket) <= micros);
        within.map(|(_, count)| count).sum()
    }

    /// How many took at most so many microseconds, and more than those before; in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().map(|(bucket, count)| (upper_bound(*bucket), *count))
    }

    fn add(&mut self, bucket: u16, count: u64) {
        match self.counts.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) => self.counts[place].1 = self.counts[place].1.saturating_add(count),
            Err(place) => self.counts.insert(place, (bucket, count)),
        }
    }
}

fn bucket_of(micros: u64) -> u16 {
    if micros < 8 {
        return micros as u16;
    }
    let exponent = 63 - micros.leading_zeros() as u16;
    let step = (micros >> (exponent - 3)) as u16 & 7;
    ((exponent - 2) * 8 + step).min(BUCKETS - 1)
}

/// The longest duration of a bucket, in microseconds.
fn upper_bound(bucket: u16) -> u64 {
    if bucket < 8 {
        return u64::from(bucket);
    }
    let (exponent, step) = (u32::from(bucket / 8 + 2), u64::from(bucket % 8));
    ((8 + step + 1) << (exponent - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_no_wider_than_an_eighth() {
        let mut last = 0;
        for micros in (0..200_000).chain((200_000..120_000_000).step_by(9973)) {
            let bucket = bucket_of(micros);
            assert!(bucket >= last && bucket < BUCKETS, "{micros}");
            last = bucket;
            let bound = upper_bound(bucket);
            assert!(bound >= micros && bound as f64 <= micros as f64 * 1.125 + 1.0, "{micros} in {bucket} to {bound}");
        }
    }

    #[test]
    fn histograms_add_up() {
        let (mut all, mut fast, mut slow) = (Histogram::default(), Histogram::default(), Histogram::default());
        for millis in 1..=900 {
            fast.record(Duration::from_millis(millis));
            all.record(Duration::from_millis(millis));
        }
        for _ in 0..100 {
            slow.record(Duration::from_secs(20));
            all.record(Duration::from_secs(20));
        }
        assert_eq!((fast.percentile(990).unwrap() / 100_000).as_micros(), 9, "{:?}", fast.percentile(990));
        fast.merge(&slow);
        assert_eq!(fast, all);
        assert_eq!((all.count(), all.longest()), (1000, Some(Duration::from_secs(20))));
        let [p50, p95] = [500, 950].map(|permille| all.percentile(permille).unwrap());
        assert!((500..=563).contains(&p50.as_millis()) && p95 == Duration::from_secs(20), "{p50:?} {p95:?}");
        assert_eq!(all.at_most(Duration::from_secs(1)), 900);
        assert_eq!(all.at_most(Duration::from_secs(60)), 1000);
        assert_eq!(Histogram::default().percentile(500), None);
        assert_eq!(Histogram::default().longest(), None);
    }
}
