//! What is counted of an app and of each of its processes: requests by class and code, bytes, and how long the answers
//! took; in all since the router started, and by the minute for 2 h, by ten minutes for 24 h, by the hour for 7 d
//! (as on Heroku).
//!
//! Only slots in which something happened are kept, so an app that nobody visits costs nothing. The slots outlive a
//! restart of the router; the sums begin anew, as Prometheus expects of counters.

use super::errors::Code;
use super::histogram::Histogram;
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Processes of which numbers are kept for each app, if it has no more; the ones that were silent for longest make room.
const PROCESSES: usize = 128;

/// Over how long one slot counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    Minute,
    TenMinutes,
    Hour,
}

impl Resolution {
    pub const ALL: [Resolution; 3] = [Resolution::Minute, Resolution::TenMinutes, Resolution::Hour];

    pub fn seconds(self) -> i64 {
        match self {
            Resolution::Minute => 60,
            Resolution::TenMinutes => 600,
            Resolution::Hour => 3600,
        }
    }

    /// Where the slot begins that counts a moment.
    pub fn start_of(self, moment: Timestamp) -> Timestamp {
        let step = self.seconds() * 1000;
        Timestamp(moment.0.div_euclid(step) * step)
    }

    /// How far back slots are kept, in seconds.
    pub fn kept(self) -> i64 {
        match self {
            Resolution::Minute => 2 * 3600,
            Resolution::TenMinutes => 24 * 3600,
            Resolution::Hour => 7 * 24 * 3600,
        }
    }
}

/// What was counted from `at` on, for as long as the resolution says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub at: Timestamp,
    pub requests: u64,
    /// By the status's first digit: index 0 is 1xx (an upgrade that was answered 101).
    pub classes: [u64; 5],
    /// Bytes of answers' bodies.
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub codes: BTreeMap<Code, u64>,
    /// Connections to a process that broke before it answered, where another try was answered: none of `requests`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub broken: u64,
    pub latency: Histogram,
}

impl Slot {
    /// Adds what another slot counted.
    pub fn merge(&mut self, other: &Slot) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.broken += other.broken;
        for (mine, theirs) in self.classes.iter_mut().zip(other.classes) {
            *mine += theirs;
        }
        for (code, count) in &other.codes {
            *self.codes.entry(*code).or_default() += count;
        }
        self.latency.merge(&other.latency);
    }

    fn record(&mut self, sample: &Sample<'_>) {
        self.requests += 1;
        self.bytes += sample.bytes;
        if let Some(class) = self.classes.get_mut(usize::from(sample.status / 100).wrapping_sub(1)) {
            *class += 1;
        }
        if let Some(code) = sample.code {
            *self.codes.entry(code).or_default() += 1;
        }
        if let Some(took) = sample.took {
            self.latency.record(took);
        }
    }
}

/// The slots of an app and of its processes, oldest first; processes by release and name, `v3/web.1`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNumbers {
    pub app: Vec<Slot>,
    pub processes: BTreeMap<String, Vec<Slot>>,
}

/// One request, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<'a> {
    pub status: u16,
    pub code: Option<Code>,
    pub bytes: u64,
    /// None where it lasted for as long as both wanted it to, which is no time that an answer took.
    pub took: Option<Duration>,
    /// Release and name of the process that it was at, `v3/web.1`.
    pub process: Option<&'a str>,
    pub now: Timestamp,
}

/// The numbers of one app.
#[derive(Debug, Default)]
pub(super) struct AppMetrics {
    /// Requests that wait for a process.
    pub held: AtomicUsize,
    in_flight: AtomicU64,
    /// When the newest request came, in milliseconds since the epoch; 0 before the first.
    last_request: AtomicI64,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// What one minute has counted and the others below do not have yet, by process; requests at none are under the empty name.
    fresh: BTreeMap<String, Slot>,
    /// Where that minute begins.
    fresh_at: Timestamp,
    total: Slot,
    /// Made with the first request.
    series: Option<Box<Series>>,
    processes: BTreeMap<String, Series>,
    /// Of each of them, since the router started.
    process_totals: BTreeMap<String, Slot>,
    /// For so many of them, if that is more than `PROCESSES`.
    places: usize,
}

/// Slots in each resolution, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Series {
    minutes: VecDeque<Slot>,
    tens: VecDeque<Slot>,
    hours: VecDeque<Slot>,
}

/// What of an app's numbers outlives the router.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    last_request: i64,
    series: Option<Box<Series>>,
    processes: BTreeMap<String, Series>,
    /// What Prometheus was told, for the case that it all comes back.
    #[serde(skip)]
    process_totals: BTreeMap<String, Slot>,
}

impl Kept {
    pub fn is_empty(&self) -> bool {
        self.series.is_none() && self.processes.is_empty()
    }
}

/// Counts one request as in flight until it is dropped.
pub(super) struct AppInFlight(Arc<AppMetrics>);

impl AppInFlight {
    pub fn new(metrics: &Arc<AppMetrics>, now: Timestamp) -> AppInFlight {
        metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        metrics.last_request.fetch_max(now.0, Ordering::Relaxed);
        AppInFlight(metrics.clone())
    }
}

impl Drop for AppInFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AppMetrics {
    /// Sees to it that there is a place for each of so many processes, and for as many of the release before.
    pub fn expect_processes(&self, processes: usize) {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).places = 2 * processes;
    }

    pub fn record(&self, sample: &Sample<'_>) {
        // The end of a stream that took hours is use as well.
        self.last_request.fetch_max(sample.now.0, Ordering::Relaxed);
        self.count(sample.process.unwrap_or_default(), sample.now, |slot| slot.record(sample));
    }

    /// A process's connection broke before it answered, and the request was answered at another try.
    pub fn broke(&self, process: &str, now: Timestamp) {
        self.count(process, now, |slot| slot.broken += 1);
    }

    fn count(&self, process: &str, now: Timestamp, count: impl FnOnce(&mut Slot)) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = Resolution::Minute.start_of(now);
        if counted.fresh_at != minute {
            counted.settle();
            counted.fresh_at = minute;
        }
        if let Some(slot) = counted.fresh.get_mut(process) {
            count(slot);
        } else {
            let mut slot = Slot { at: minute, ..Slot::default() };
            count(&mut slot);
            counted.fresh.insert(process.to_owned(), slot);
        }
    }

    /// What was counted since the router started.
    pub fn total(&self) -> Slot {
        self.lock().total.clone()
    }

    /// The same of each process, by release and name.
    pub fn process_totals(&self) -> BTreeMap<String, Slot> {
        self.lock().process_totals.clone()
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn last_request(&self) -> Option<Timestamp> {
        Some(self.last_request.load(Ordering::Relaxed)).filter(|at| *at > 0).map(Timestamp)
    }

    /// How long answers took in this minute and the one before it.
    pub fn latency(&self, now: Timestamp) -> Histogram {
        let since = Resolution::Minute.start_of(now).0 - 60_000;
        let mut sum = Histogram::default();
        let counted = self.lock();
        let slots = counted.series.iter().flat_map(|series| series.minutes.iter().rev().take(2));
        slots.filter(|slot| slot.at.0 >= since).for_each(|slot| sum.merge(&slot.latency));
        sum
    }

    pub fn numbers(&self, resolution: Resolution, now: Timestamp) -> AppNumbers {
        let counted = self.lock();
        let since = now.0 - resolution.kept() * 1000;
        let slots = |series: &Series| {
            let slots = series.slots(resolution).iter().filter(|slot| slot.at.0 > since);
            slots.cloned().collect::<Vec<Slot>>()
        };
        let processes = counted.processes.iter().map(|(name, series)| (name.clone(), slots(series)));
        AppNumbers {
            app: counted.series.as_ref().map(|series| slots(series)).unwrap_or_default(),
            processes: processes.filter(|(_, slots)| !slots.is_empty()).collect(),
        }
    }

    pub fn kept(&self) -> Kept {
        let counted = self.lock();
        Kept {
            last_request: self.last_request.load(Ordering::Relaxed),
            series: counted.series.clone(),
            processes: counted.processes.clone(),
            process_totals: BTreeMap::new(),
        }
    }

    /// As `kept`, and counts anew: what comes back was not told to anybody before.
    pub fn take(&self) -> Kept {
        let mut counted = self.lock();
        Kept {
            last_request: self.last_request.load(Ordering::Relaxed),
            series: counted.series.take(),
            processes: std::mem::take(&mut counted.processes),
            process_totals: std::mem::take(&mut counted.process_totals),
        }
    }

    /// Takes back what `take` gave and nobody wanted.
    pub fn give_back(&self, kept: &Kept) {
        let mut counted = self.lock();
        counted.absorb(kept);
        for (name, total) in &kept.process_totals {
            counted.process_totals.entry(name.clone()).or_default().merge(total);
        }
    }

    /// Adds what another router counted.
    pub fn absorb(&self, kept: &Kept) {
        self.last_request.fetch_max(kept.last_request, Ordering::Relaxed);
        let mut counted = self.lock();
        counted.absorb(kept);
        kept.series.iter().flat_map(|series| &series.minutes).for_each(|slot| counted.total.merge(slot));
        for (name, series) in &kept.processes {
            let total = counted.process_totals.entry(name.clone()).or_default();
            series.minutes.iter().for_each(|slot| total.merge(slot));
        }
    }

    pub fn of(kept: Kept) -> AppMetrics {
        AppMetrics {
            last_request: AtomicI64::new(kept.last_request),
            counted: Mutex::new(Counted { series: kept.series, processes: kept.processes, ..Counted::default() }),
            ..AppMetrics::default()
        }
    }

    /// Everything that was counted, each number where it belongs.
    fn lock(&self) -> MutexGuard<'_, Counted> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.settle();
        counted
    }
}

impl Counted {
    fn absorb(&mut self, kept: &Kept) {
        if let Some(series) = &kept.series {
            self.series.get_or_insert_default().absorb(series);
        }
        for (name, series) in &kept.processes {
            self.processes.entry(name.clone()).or_default().absorb(series);
        }
    }

    /// Adds what is fresh to all that it is part of: a request is counted once when it comes, not eight times.
    fn settle(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        for slot in fresh.values() {
            self.total.merge(slot);
            self.series.get_or_insert_default().add(slot);
        }
        // Those that are known first: who makes room must not be one that has just been heard of.
        let processes = fresh.into_iter().filter(|(process, _)| !process.is_empty());
        let (known, new): (Vec<_>, Vec<_>) = processes.partition(|(process, _)| self.processes.contains_key(process));
        for (process, slot) in known.into_iter().chain(new) {
            if !self.processes.contains_key(&process) && self.processes.len() >= PROCESSES.max(self.places) {
                let newest = |series: &Series| series.minutes.back().map_or(0, |slot| slot.at.0);
                let quietest =
                    self.processes.iter().min_by_key(|(_, series)| newest(series)).map(|(key, _)| key.clone());
                if let Some(quietest) = quietest {
                    self.processes.remove(&quietest);
                    self.process_totals.remove(&quietest);
                }
            }
            self.process_totals.entry(process.clone()).or_default().merge(&slot);
            self.processes.entry(process).or_default().add(&slot);
        }
        for series in self.processes.values_mut().chain(self.series.as_deref_mut()) {
            series.let_go_before(self.fresh_at);
        }
        self.processes.retain(|_, series| !series.hours.is_empty());
        self.process_totals.retain(|process, _| self.processes.contains_key(process));
    }
}

impl Series {
    fn slots_mut(&mut self, resolution: Resolution) -> &mut VecDeque<Slot> {
        match resolution {
            Resolution::Minute => &mut self.minutes,
            Resolution::TenMinutes => &mut self.tens,
            Resolution::Hour => &mut self.hours,
        }
    }

    fn slots(&self, resolution: Resolution) -> &VecDeque<Slot> {
        match resolution {
            Resolution::Minute => &self.minutes,
            Resolution::TenMinutes => &self.tens,
            Resolution::Hour => &self.hours,
        }
    }

    fn absorb(&mut self, other: &Series) {
        for (mine, theirs) in
            [(&mut self.minutes, &other.minutes), (&mut self.tens, &other.tens), (&mut self.hours, &other.hours)]
        {
            for slot in theirs {
                let place = mine.partition_point(|have| have.at < slot.at);
                match mine.get_mut(place) {
                    Some(have) if have.at == slot.at => have.merge(slot),
                    _ => mine.insert(place, slot.clone()),
                }
            }
        }
    }

    /// Forgets what is too old at a moment.
    fn let_go_before(&mut self, now: Timestamp) {
        for resolution in Resolution::ALL {
            let since = resolution.start_of(now).0 - resolution.kept() * 1000;
            let slots = self.slots_mut(resolution);
            while slots.front().is_some_and(|oldest| oldest.at.0 <= since) {
                slots.pop_front();
            }
        }
    }

    /// Adds what was counted within a minute, the newest so far.
    fn add(&mut self, counted: &Slot) {
        for resolution in Resolution::ALL {
            let at = resolution.start_of(counted.at);
            let slots = self.slots_mut(resolution);
            // A clock that was set back counts into the newest slot until it has caught up.
            if slots.back().is_none_or(|newest| newest.at < at) {
                slots.push_back(Slot { at, ..Slot::default() });
            }
            if let Some(slot) = slots.back_mut() {
                slot.merge(counted);
            }
        }
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(status: u16, took: u64, second: i64) -> Sample<'static> {
        Sample {
            status,
            code: (status == 503).then_some(Code::H12),
            bytes: 5,
            took: Some(Duration::from_millis(took)),
            process: Some("v1/web.1"),
            now: Timestamp(second * 1000),
        }
    }

    #[test]
    fn what_is_counted_adds_up_in_every_resolution() {
        let metrics = AppMetrics::default();
        let start = 1_000 * 3600;
        // Three hours of a request a second, each tenth of them failing.
        for second in 0..3 * 3600 {
            metrics.record(&sample(if second % 10 == 0 { 503 } else { 200 }, 10, start + second));
        }
        let now = Timestamp((start + 3 * 3600 - 1) * 1000);
        for (resolution, slots, each) in
            [(Resolution::Minute, 120, 60), (Resolution::TenMinutes, 18, 600), (Resolution::Hour, 3, 3600)]
        {
            let numbers = metrics.numbers(resolution, now);
            assert_eq!(numbers.app.len(), slots, "{resolution:?}");
            assert!(numbers.app.iter().all(|slot| slot.requests == each && slot.latency.count() == each));
            assert_eq!(numbers.processes["v1/web.1"], numbers.app);
            let mut sum = Slot { at: numbers.app[0].at, ..Slot::default() };
            numbers.app.iter().for_each(|slot| sum.merge(slot));
            let all = slots as u64 * each;
            assert_eq!((sum.requests, sum.bytes, sum.classes), (all, 5 * all, [0, all - all / 10, 0, 0, all / 10]));
            assert_eq!(sum.codes, BTreeMap::from([(Code::H12, all / 10)]));
        }
        let total = metrics.total();
        assert_eq!((total.requests, total.latency.count()), (10_800, 10_800));
        assert_eq!(metrics.last_request(), Some(now));
    }

    #[test]
    fn what_is_asked_for_in_the_middle_of_a_minute_is_not_counted_twice() {
        let metrics = AppMetrics::default();
        let alone = Sample { process: None, ..sample(503, 1, 10_000) };
        for round in 1..=3 {
            metrics.record(&sample(200, 1, 10_000));
            metrics.record(&alone);
            assert_eq!((metrics.total().requests, metrics.process_totals()["v1/web.1"].requests), (2 * round, round));
            let numbers = metrics.numbers(Resolution::Hour, Timestamp(10_000_000));
            assert_eq!((numbers.app[0].requests, numbers.processes["v1/web.1"][0].requests), (2 * round, round));
        }
        assert_eq!(metrics.numbers(Resolution::Minute, Timestamp(10_000_000)).processes.len(), 1);
    }

    #[test]
    fn what_nobody_took_is_counted_once() {
        let metrics = AppMetrics::default();
        let counts = || {
            let numbers = metrics.numbers(Resolution::Hour, Timestamp(10_000_000));
            let process = metrics.process_totals()["v1/web.1"].requests;
            [metrics.total().requests, process, numbers.app[0].requests, numbers.processes["v1/web.1"][0].requests]
        };
        metrics.record(&sample(200, 1, 9_000));
        let kept = metrics.take();
        metrics.record(&sample(200, 1, 9_001));
        metrics.give_back(&kept);
        assert_eq!(counts(), [2; 4]);
        // What another has counted comes on top of it, in all of them.
        let other = AppMetrics::default();
        other.record(&sample(200, 1, 9_002));
        metrics.absorb(&other.take());
        assert_eq!(counts(), [3; 4]);
    }

    #[test]
    fn what_broke_is_no_request_of_its_own() {
        let metrics = AppMetrics::default();
        metrics.broke("v1/web.1", Timestamp(9_000_000));
        metrics.record(&Sample { process: Some("v0/web.1"), ..sample(200, 1, 9_000) });
        let numbers = metrics.numbers(Resolution::Hour, Timestamp(10_000_000));
        let of = |slots: &[Slot]| (slots[0].requests, slots[0].broken);
        assert_eq!(of(&numbers.app), (1, 1));
        assert_eq!((of(&numbers.processes["v1/web.1"]), of(&numbers.processes["v0/web.1"])), ((0, 1), (1, 0)));
    }

    #[test]
    fn old_slots_go_and_a_clock_set_back_loses_nothing() {
        let metrics = AppMetrics::default();
        metrics.record(&sample(200, 1, 10_000));
        metrics.record(&sample(200, 1, 9_000));
        assert_eq!(metrics.numbers(Resolution::Minute, Timestamp(10_000_000)).app[0].requests, 2);
        let later = 10_000 + 8 * 24 * 3600;
        assert_eq!(metrics.numbers(Resolution::Hour, Timestamp(later * 1000)), AppNumbers::default());
        metrics.record(&sample(200, 1, later));
        for resolution in Resolution::ALL {
            assert_eq!(metrics.numbers(resolution, Timestamp(later * 1000)).app.len(), 1);
        }
    }

    #[test]
    fn of_a_process_that_is_gone_nothing_is_left_in_the_end() {
        let metrics = AppMetrics::default();
        let slots = |hour: i64| {
            metrics.record(&Sample { process: Some("v2/web.1"), ..sample(200, 1, hour * 3600) });
            let kept = metrics.kept();
            let gone = kept.processes.get("v1/web.1");
            gone.map(|series| [series.minutes.len(), series.tens.len(), series.hours.len()])
        };
        metrics.record(&sample(200, 1, 1000 * 3600));
        assert_eq!(slots(1001), Some([1, 1, 1]));
        assert_eq!(slots(1003), Some([0, 1, 1]));
        assert_eq!(slots(1025), Some([0, 0, 1]));
        assert_eq!(slots(1000 + 7 * 24), None);
        assert_eq!(metrics.process_totals().keys().collect::<Vec<_>>(), ["v2/web.1"]);
        assert_eq!(metrics.total().requests, 5, "what was counted in all stays");
    }

    #[test]
    fn percentiles_are_of_the_newest_two_minutes() {
        let metrics = AppMetrics::default();
        for _ in 0..90 {
            metrics.record(&sample(200, 10, 6_001));
        }
        for _ in 0..10 {
            metrics.record(&sample(503, 30_000, 6_061));
        }
        let latency = metrics.latency(Timestamp(6_062_000));
        let [p50, p95, p99] = [500, 950, 990].map(|permille| latency.percentile(permille).unwrap());
        assert!((10..=12).contains(&p50.as_millis()), "{p50:?}");
        assert!(p95.as_secs() == 30 && p95 == p99, "{p95:?} {p99:?}");
        assert_eq!(metrics.latency(Timestamp(6_200_000)).count(), 0);
    }

    #[test]
    fn a_quiet_process_makes_room_and_numbers_outlive_the_router() {
        let metrics = AppMetrics::default();
        let names: Vec<String> = (0..PROCESSES + 3).map(|number| format!("v1/web.{number}")).collect();
        for (second, name) in names.iter().enumerate() {
            let process = Some(name.as_str());
            metrics.record(&Sample { process, ..sample(200, 1, 30 * second as i64) });
        }
        let now = Timestamp(30_000 * names.len() as i64);
        let numbers = metrics.numbers(Resolution::Minute, now);
        assert_eq!(numbers.processes.len(), PROCESSES);
        assert!(!numbers.processes.contains_key("v1/web.2") && numbers.processes.contains_key("v1/web.3"));
        // One more, that comes first by its name, takes the place of one that is silent, although all others are busy too.
        for name in names[4..].iter().map(String::as_str).chain(["v0/web.1"]) {
            metrics.record(&Sample { process: Some(name), ..sample(200, 1, 30 * names.len() as i64) });
        }
        let totals = metrics.process_totals();
        assert!(!totals.contains_key("v1/web.3") && names[4..].iter().all(|name| totals[name].requests == 2));
        let numbers = metrics.numbers(Resolution::Minute, now);
        let saved = serde_json::to_vec(&metrics.kept()).unwrap();
        let restored = AppMetrics::of(serde_json::from_slice(&saved).unwrap());
        assert_eq!(restored.numbers(Resolution::Minute, now), numbers);
        assert_eq!((restored.last_request(), restored.total().requests), (metrics.last_request(), 0));
    }
}
