//! What is counted of an app: requests by class and code, those in flight, and how long the answers took.
//!
//! Histograms are log-linear with eight steps an octave (at most 12.5 % off) and add up by adding their counts.
//! Percentiles are of the last minute, in slots of ten seconds.

use super::errors::Code;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BUCKETS: usize = 208;
const SLOTS: usize = 7;
const SLOT: Duration = Duration::from_secs(10);

/// The numbers of one app since the router started.
#[derive(Default)]
pub(super) struct AppMetrics {
    requests: AtomicU64,
    /// By the status's first digit: index 0 is 1xx (an upgrade that was answered 101).
    classes: [AtomicU64; 5],
    in_flight: AtomicU64,
    bytes: AtomicU64,
    codes: Mutex<BTreeMap<Code, u64>>,
    latency: Mutex<Option<Box<Latency>>>,
}

/// A copy of the numbers at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct AppNumbers {
    pub requests: u64,
    pub classes: [u64; 5],
    pub in_flight: u64,
    pub bytes: u64,
    pub codes: BTreeMap<Code, u64>,
    pub percentiles: Option<[Duration; 3]>,
}

/// Counts one request as in flight until it is dropped.
pub(super) struct AppInFlight(std::sync::Arc<AppMetrics>);

impl AppInFlight {
    pub fn new(metrics: &std::sync::Arc<AppMetrics>) -> AppInFlight {
        metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        AppInFlight(metrics.clone())
    }
}

impl Drop for AppInFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AppMetrics {
    pub fn record(&self, status: u16, code: Option<Code>, bytes: u64, took: Duration, now: Instant, start: Instant) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(class) = self.classes.get(usize::from(status / 100).wrapping_sub(1)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(code) = code {
            *lock(&self.codes).entry(code).or_default() += 1;
        }
        lock(&self.latency).get_or_insert_default().record(took, now.duration_since(start));
    }

    pub fn numbers(&self, now: Instant, start: Instant) -> AppNumbers {
        let latency = lock(&self.latency);
        AppNumbers {
            requests: self.requests.load(Ordering::Relaxed),
            classes: std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed)),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            codes: lock(&self.codes).clone(),
            percentiles: latency.as_ref().and_then(|latency| latency.percentiles(now.duration_since(start))),
        }
    }
}

/// The last minute's histogram, a ring of slots.
struct Latency {
    slots: [(u64, [u32; BUCKETS]); SLOTS],
}

impl Default for Latency {
    fn default() -> Self {
        Latency { slots: [(0, [0; BUCKETS]); SLOTS] }
    }
}

impl Latency {
    fn record(&mut self, took: Duration, at: Duration) {
        let epoch = at.as_secs() / SLOT.as_secs() + 1;
        let slot = &mut self.slots[(epoch % SLOTS as u64) as usize];
        if slot.0 != epoch {
            *slot = (epoch, [0; BUCKETS]);
        }
        let bucket = &mut slot.1[bucket_of(took)];
        *bucket = bucket.saturating_add(1);
    }

    fn percentiles(&self, at: Duration) -> Option<[Duration; 3]> {
        let epoch = at.as_secs() / SLOT.as_secs() + 1;
        let mut sum = [0_u64; BUCKETS];
        for (_, counts) in self.slots.iter().filter(|slot| slot.0 + SLOTS as u64 > epoch) {
            for (total, count) in sum.iter_mut().zip(counts) {
                *total += u64::from(*count);
            }
        }
        let all: u64 = sum.iter().sum();
        (all > 0).then(|| [500, 950, 990].map(|permille| percentile(&sum, all, permille)))
    }
}

fn percentile(counts: &[u64; BUCKETS], all: u64, permille: u64) -> Duration {
    let rank = (all * permille).div_ceil(1000).max(1);
    let mut seen = 0;
    for (bucket, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return Duration::from_micros(upper_bound(bucket));
        }
    }
    Duration::from_micros(upper_bound(BUCKETS - 1))
}

fn bucket_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < 8 {
        return micros as usize;
    }
    let exponent = 63 - micros.leading_zeros() as usize;
    let step = (micros >> (exponent - 3)) as usize & 7;
    ((exponent - 2) * 8 + step).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (exponent, step) = (bucket / 8 + 2, (bucket % 8) as u64);
    ((8 + step + 1) << (exponent - 3)) - 1
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_no_wider_than_an_eighth() {
        let mut last = 0;
        for micros in (0..200_000).chain((200_000..120_000_000).step_by(9973)) {
            let bucket = bucket_of(Duration::from_micros(micros));
            assert!(bucket >= last && bucket < BUCKETS, "{micros}");
            last = bucket;
            let bound = upper_bound(bucket);
            assert!(bound >= micros && bound as f64 <= micros as f64 * 1.125 + 1.0, "{micros} in {bucket} to {bound}");
        }
    }

    #[test]
    fn percentiles_are_of_the_last_minute() {
        let start = Instant::now();
        let metrics = AppMetrics::default();
        let at = |second: u64| start + Duration::from_secs(second);
        for _ in 0..90 {
            metrics.record(200, None, 5, Duration::from_millis(10), at(1), start);
        }
        for _ in 0..10 {
            metrics.record(503, Some(Code::H12), 5, Duration::from_secs(30), at(2), start);
        }
        let numbers = metrics.numbers(at(3), start);
        assert_eq!((numbers.requests, numbers.bytes, numbers.classes), (100, 500, [0, 90, 0, 0, 10]));
        assert_eq!(numbers.codes, BTreeMap::from([(Code::H12, 10)]));
        let [p50, p95, p99] = numbers.percentiles.unwrap();
        assert!((10..=12).contains(&p50.as_millis()), "{p50:?}");
        assert!((30..=34).contains(&p95.as_secs()) && p95 == p99, "{p95:?} {p99:?}");
        assert_eq!(metrics.numbers(at(75), start).percentiles, None);
        assert_eq!(metrics.numbers(at(75), start).requests, 100);
    }
}
