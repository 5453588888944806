//! What is counted of an app's processes: memory, processor time, crashes and Heroku's R codes; by the minute for 2 h,
//! by ten minutes for 24 h, by the hour for 7 d, as the router keeps its own numbers.
//!
//! Whoever looks at a process tells it here, as often as it likes: what was told before is not counted again. The
//! numbers lie in a file of their own, written once a minute; what a kill loses is the time since then.

use crate::clock::Timestamp;
use crate::domain::{AppName, ProcessId, RuntimeCode, is_scalable};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds of a slot, and for how many seconds slots are kept.
const RESOLUTIONS: [(i64, i64); 3] = [(60, 2 * 3600), (600, 24 * 3600), (3600, 7 * 24 * 3600)];
/// Processes of one app that a slot tells apart. Of a formation, which the configuration bounds, it tells all; one-off
/// processes, each of which has a name of its own, have a place while there is one.
const PROCESSES: usize = 64;
/// How long what was told of a process is remembered after it was seen last.
const REMEMBERED: i64 = 3_600_000;

#[derive(Debug)]
pub struct Meters {
    path: PathBuf,
    inner: Mutex<Kept>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    apps: BTreeMap<AppName, AppMeter>,
    seen: BTreeMap<ProcessId, Seen>,
}

/// What was told of a process so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Seen {
    at: Timestamp,
    cpu_millis: u64,
    codes: BTreeMap<RuntimeCode, u64>,
    crashed: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct AppMeter {
    series: [VecDeque<Meter>; 3],
    totals: Totals,
}

/// What was counted since the data folder was made, as Prometheus wants its counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub codes: BTreeMap<RuntimeCode, u64>,
    pub crashes: u64,
}

/// What was counted from `at` on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meter {
    pub at: Timestamp,
    /// The most memory that each process had, in bytes, by its name (`web.1`).
    pub memory: BTreeMap<String, u64>,
    /// Processor time that each process used, in milliseconds.
    pub cpu_millis: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub codes: BTreeMap<RuntimeCode, u64>,
    pub crashes: u64,
}

/// A process at one moment.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    pub app: &'a AppName,
    pub process: &'a ProcessId,
    pub name: &'a str,
    pub memory_bytes: Option<u64>,
    /// Since its start.
    pub cpu_millis: Option<u64>,
    /// Since its start.
    pub codes: &'a BTreeMap<RuntimeCode, u64>,
    /// It ended although nobody wanted it to.
    pub crashed: bool,
}

impl Meters {
    /// Reads what was kept. Numbers that can't be read are no reason not to start.
    pub fn open(path: PathBuf) -> Meters {
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "the kept numbers of processes are malformed");
                Kept::default()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "could not read the kept numbers of processes");
                }
                Kept::default()
            }
        };
        Meters { path, inner: Mutex::new(kept) }
    }

    /// Notes a process as it is seen now.
    pub fn look(&self, look: &Look<'_>, now: Timestamp) {
        let mut kept = self.lock();
        let seen = kept.seen.entry(look.process.clone()).or_default();
        let cpu = look.cpu_millis.map_or(0, |used| used.saturating_sub(seen.cpu_millis));
        let codes: BTreeMap<RuntimeCode, u64> = look
            .codes
            .iter()
            .map(|(code, count)| (*code, count.saturating_sub(seen.codes.get(code).copied().unwrap_or(0))))
            .filter(|(_, fresh)| *fresh > 0)
            .collect();
        let crashes = u64::from(look.crashed && !seen.crashed);
        seen.at = now;
        seen.cpu_millis = look.cpu_millis.unwrap_or(0).max(seen.cpu_millis);
        for (code, count) in &codes {
            *seen.codes.entry(*code).or_default() += count;
        }
        seen.crashed |= look.crashed;
        if look.memory_bytes.is_none() && cpu == 0 && codes.is_empty() && crashes == 0 {
            return;
        }
        let meter = kept.apps.entry(look.app.clone()).or_default();
        meter.totals.crashes += crashes;
        for (code, count) in &codes {
            *meter.totals.codes.entry(*code).or_default() += count;
        }
        meter.record(now, |slot| {
            let kind = look.name.split('.').next().unwrap_or_default();
            let has_place = |slot: &BTreeMap<String, u64>| {
                is_scalable(kind) || slot.len() < PROCESSES || slot.contains_key(look.name)
            };
            if let Some(bytes) = look.memory_bytes
                && has_place(&slot.memory)
            {
                let most = slot.memory.entry(look.name.to_owned()).or_default();
                *most = bytes.max(*most);
            }
            if cpu > 0 && has_place(&slot.cpu_millis) {
                *slot.cpu_millis.entry(look.name.to_owned()).or_default() += cpu;
            }
            for (code, count) in &codes {
                *slot.codes.entry(*code).or_default() += count;
            }
            slot.crashes += crashes;
        });
    }

    /// Counts a code that no look at a process tells.
    pub fn note(&self, app: &AppName, code: RuntimeCode, now: Timestamp) {
        let mut kept = self.lock();
        let meter = kept.apps.entry(app.clone()).or_default();
        *meter.totals.codes.entry(code).or_default() += 1;
        meter.record(now, |slot| *slot.codes.entry(code).or_default() += 1);
    }

    /// The slots of an app, oldest first: by the minute (0), by ten minutes (1), by the hour (2).
    pub fn slots(&self, app: &AppName, resolution: usize, now: Timestamp) -> Vec<Meter> {
        let kept = self.lock();
        let Some((_, kept_for)) = RESOLUTIONS.get(resolution) else { return Vec::new() };
        let since = now.0 - kept_for * 1000;
        let series = kept.apps.get(app).and_then(|meter| meter.series.get(resolution));
        series.into_iter().flatten().filter(|slot| slot.at.0 > since).cloned().collect()
    }

    pub fn totals(&self) -> BTreeMap<AppName, Totals> {
        self.lock().apps.iter().map(|(app, meter)| (app.clone(), meter.totals.clone())).collect()
    }

    /// Lets go of apps that are gone, of slots that are too old, and of processes that were not seen for long; writes
    /// the rest.
    pub fn keep(&self, alive: impl Fn(&AppName) -> bool, now: Timestamp) -> std::io::Result<()> {
        let bytes = {
            let mut kept = self.lock();
            kept.apps.retain(|app, _| alive(app));
            kept.apps.values_mut().for_each(|meter| meter.prune(now));
            kept.seen.retain(|_, seen| now.0 - seen.at.0 < REMEMBERED);
            serde_json::to_vec(&*kept)?
        };
        let fresh = self.path.with_extension("new");
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AppMeter {
    fn record(&mut self, now: Timestamp, change: impl Fn(&mut Meter)) {
        for (slots, (seconds, _)) in self.series.iter_mut().zip(RESOLUTIONS) {
            let step = seconds * 1000;
            let at = Timestamp(now.0.div_euclid(step) * step);
            // A clock that was set back counts into the newest slot until it has caught up.
            if slots.back().is_none_or(|newest| newest.at < at) {
                slots.push_back(Meter { at, ..Meter::default() });
            }
            slots.back_mut().into_iter().for_each(&change);
        }
        self.prune(now);
    }

    fn prune(&mut self, now: Timestamp) {
        for (slots, (_, kept)) in self.series.iter_mut().zip(RESOLUTIONS) {
            let since = now.0 - kept * 1000;
            while slots.front().is_some_and(|oldest| oldest.at.0 <= since) {
                slots.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look<'a>(
        app: &'a AppName,
        process: &'a ProcessId,
        memory: u64,
        cpu: u64,
        codes: &'a BTreeMap<RuntimeCode, u64>,
    ) -> Look<'a> {
        let (memory_bytes, cpu_millis) = (Some(memory), Some(cpu));
        Look { app, process, name: "web.1", memory_bytes, cpu_millis, codes, crashed: false }
    }

    #[test]
    fn a_process_is_counted_once_however_often_it_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let meters = Meters::open(folder.path().join("meters.json"));
        let (app, process) = ("hello".parse().unwrap(), "hello.v1.web.1.a1".parse().unwrap());
        let mut codes = BTreeMap::new();
        for second in 0..120_u64 {
            codes.insert(RuntimeCode::R14, second / 20);
            let now = Timestamp(i64::try_from(second).unwrap() * 1000);
            meters.look(&look(&app, &process, 1000 + second, second * 500, &codes), now);
        }
        let ended = Look { crashed: true, ..look(&app, &process, 0, 0, &codes) };
        meters.look(&ended, Timestamp(119_000));
        meters.look(&ended, Timestamp(119_500));
        let now = Timestamp(119_900);
        let slots = meters.slots(&app, 0, now);
        assert_eq!(slots.len(), 2);
        assert_eq!((slots[0].memory["web.1"], slots[1].memory["web.1"]), (1059, 1119));
        assert_eq!((slots[0].cpu_millis["web.1"], slots[1].cpu_millis["web.1"]), (29_500, 30_000));
        let total = Totals { codes: BTreeMap::from([(RuntimeCode::R14, 5)]), crashes: 1 };
        assert_eq!(meters.totals()[&app], total);
        for resolution in 0..3 {
            let all: u64 = meters.slots(&app, resolution, now).iter().map(|slot| slot.codes[&RuntimeCode::R14]).sum();
            assert_eq!(all, 5, "{resolution}");
        }

        // They outlive the program, and the same process is not counted again by the next one.
        meters.keep(|_| true, now).unwrap();
        let again = Meters::open(meters.path().to_owned());
        again.look(&ended, now);
        assert_eq!(again.slots(&app, 0, now), slots);
        assert_eq!(again.totals()[&app], total);
    }

    #[test]
    fn slots_are_kept_as_long_as_they_should_and_go_with_their_app() {
        let folder = tempfile::tempdir().unwrap();
        let meters = Meters::open(folder.path().join("meters.json"));
        let app: AppName = "hello".parse().unwrap();
        for minute in 0..8 * 24 * 60 {
            meters.note(&app, RuntimeCode::R12, Timestamp(minute * 60_000));
        }
        let now = Timestamp(8 * 24 * 3_600_000 - 1);
        let counts = [0, 1, 2].map(|resolution| meters.slots(&app, resolution, now).len());
        assert_eq!(counts, [120, 144, 168]);
        meters.keep(|_| true, now).unwrap();
        assert!(std::fs::metadata(meters.path()).unwrap().len() < 100_000);
        let later = now + std::time::Duration::from_secs(8 * 24 * 3600);
        meters.keep(|_| true, later).unwrap();
        assert_eq!(Meters::open(meters.path().to_owned()).slots(&app, 2, later), []);
        meters.keep(|_| false, later).unwrap();
        assert!(meters.totals().is_empty());
        std::fs::write(meters.path(), "{\"apps\": 3}").unwrap();
        assert!(Meters::open(meters.path().to_owned()).totals().is_empty(), "damage is no reason not to start");
    }
}
