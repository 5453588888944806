//! An app's numbers over time: what the router counted of its requests, what was counted of its processes, and what
//! happened to it, in slots; and the same as charts, whose geometry is worked out here and drawn by a template.

use crate::clock::Timestamp;
use crate::domain::*;
use crate::meters::Meter;
use crate::reconcile::World;
use crate::router::{AppNumbers, Resolution, Slot};
use crate::web::problem::Problem;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The drawing of a chart, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 140.0;
/// Processes that one chart tells apart by colour.
const LINES: usize = 6;

#[derive(Debug, Clone, Serialize)]
pub struct Metrics {
    pub app: AppName,
    pub resolution: Resolution,
    pub step_seconds: i64,
    pub from: String,
    pub until: String,
    pub slots: Vec<MetricSlot>,
    /// By release and name (`v3/web.1`), what the router counted of each process.
    pub processes: BTreeMap<String, Vec<MetricSlot>>,
    pub events: Vec<Happening>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MetricSlot {
    pub at: String,
    #[serde(skip)]
    pub moment: Timestamp,
    pub requests: u64,
    pub s1xx: u64,
    pub s2xx: u64,
    pub s3xx: u64,
    pub s4xx: u64,
    pub s5xx: u64,
    pub bytes: u64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
    /// H and R codes together.
    pub codes: BTreeMap<String, u64>,
    pub memory_bytes: BTreeMap<String, u64>,
    pub cpu_millis: BTreeMap<String, u64>,
    pub crashes: u64,
}

/// A release, as a mark on the charts.
#[derive(Debug, Clone, Serialize)]
pub struct Happening {
    pub at: String,
    #[serde(skip)]
    pub moment: Timestamp,
    /// `deploy`, `promotion`, `rollback`, `config`.
    pub what: &'static str,
    pub release: ReleaseNumber,
}

/// The last two hours by the minute, day by ten minutes, or week by the hour.
pub fn resolution(word: Option<&str>) -> Result<Resolution, Problem> {
    match word {
        None | Some("" | "minute" | "2h") => Ok(Resolution::Minute),
        Some("ten_minutes" | "24h") => Ok(Resolution::TenMinutes),
        Some("hour" | "7d") => Ok(Resolution::Hour),
        Some(other) => Err(Problem::Malformed {
            what: "resolution",
            detail: format!("{:?} is none of minute, ten_minutes and hour", other.chars().take(50).collect::<String>()),
        }),
    }
}

pub async fn metrics(world: &World, app: &App, resolution: Resolution) -> Result<Metrics, Problem> {
    let now = world.now();
    // The router's part is missing while it does not answer; the processes' part is not.
    let numbers = world.router.numbers(&app.name, resolution).await.unwrap_or_default();
    let index = Resolution::ALL.iter().position(|known| *known == resolution).unwrap_or(0);
    let meters = world.meters.slots(&app.name, index, now);
    let step = resolution.seconds() * 1000;
    let until = Timestamp(now.0.div_euclid(step) * step + step);
    let from = Timestamp(until.0 - resolution.kept() * 1000);
    let events = world.store.releases(&app.name)?.into_iter().filter(|release| release.created_at >= from);
    let events = events.map(|release| Happening {
        at: release.created_at.rfc3339(),
        moment: release.created_at,
        what: match release.cause {
            Cause::Push | Cause::Retry { .. } => "deploy",
            Cause::Promotion { .. } => "promotion",
            Cause::Rollback { .. } => "rollback",
            Cause::Config { .. } => "config",
        },
        release: release.number,
    });
    let AppNumbers { app: slots, processes } = numbers;
    let processes = processes.into_iter().map(|(name, slots)| (name, slots.iter().map(slot_of).collect()));
    Ok(Metrics {
        app: app.name.clone(),
        resolution,
        step_seconds: resolution.seconds(),
        from: from.rfc3339(),
        until: until.rfc3339(),
        slots: merged(&slots, meters),
        processes: processes.collect(),
        events: events.collect(),
    })
}

fn slot_of(slot: &Slot) -> MetricSlot {
    let [s1xx, s2xx, s3xx, s4xx, s5xx] = slot.classes;
    let percentile = |permille| slot.latency.percentile(permille).map(|time| time.as_secs_f64() * 1000.0);
    MetricSlot {
        at: slot.at.rfc3339(),
        moment: slot.at,
        requests: slot.requests,
        s1xx,
        s2xx,
        s3xx,
        s4xx,
        s5xx,
        bytes: slot.bytes,
        p50_ms: percentile(500),
        p95_ms: percentile(950),
        p99_ms: percentile(990),
        max_ms: slot.latency.longest().map(|time| time.as_secs_f64() * 1000.0),
        codes: slot.codes.iter().map(|(code, count)| (code.to_string(), *count)).collect(),
        ..MetricSlot::default()
    }
}

/// What both sides counted in the same slot stands together.
fn merged(requests: &[Slot], meters: Vec<Meter>) -> Vec<MetricSlot> {
    let mut slots: BTreeMap<Timestamp, MetricSlot> = requests.iter().map(|slot| (slot.at, slot_of(slot))).collect();
    for meter in meters {
        let fresh = || MetricSlot { at: meter.at.rfc3339(), moment: meter.at, ..MetricSlot::default() };
        let slot = slots.entry(meter.at).or_insert_with(fresh);
        slot.codes.extend(meter.codes.iter().map(|(code, count)| (code.to_string(), *count)));
        (slot.memory_bytes, slot.cpu_millis, slot.crashes) = (meter.memory, meter.cpu_millis, meter.crashes);
    }
    slots.into_values().collect()
}

#[derive(Debug, Clone, Serialize)]
pub struct MetricsPage {
    pub name: AppName,
    pub range: &'static str,
    pub owner: String,
    pub repository_name: String,
    pub charts: Vec<Chart>,
    pub codes: Vec<CodeLine>,
    pub events: Vec<Happening>,
    pub total: MetricSlot,
    pub crashes: u64,
    pub alerts: Vec<super::AlertLine>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CodeLine {
    pub code: String,
    pub count: u64,
    pub last: String,
}

/// Lines or bars over one span of time; all numbers are in the drawing's units but the labels.
#[derive(Debug, Clone, Serialize)]
pub struct Chart {
    pub key: &'static str,
    /// Of what the highest mark is: `12`, `340 ms`, `512 MB`.
    pub top: String,
    pub kind: &'static str,
    pub lines: Vec<ChartLine>,
    pub bars: Vec<Bar>,
    /// Where releases were made.
    pub marks: Vec<f64>,
    /// There is nothing to draw.
    pub empty: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct ChartLine {
    pub name: String,
    /// 0 to 5: its colour.
    pub colour: usize,
    /// Pieces without a gap, each as `x,y x,y …`.
    pub pieces: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
    pub bad: bool,
}

pub async fn metrics_page(world: &World, app: &App, resolution: Resolution) -> Result<MetricsPage, Problem> {
    let metrics = metrics(world, app, resolution).await?;
    let repository = world.store.repository(app.repository)?;
    let span = Span::of(&metrics, resolution);
    let slots = &metrics.slots;
    let mut total = MetricSlot::default();
    let mut codes: BTreeMap<String, CodeLine> = BTreeMap::new();
    for slot in slots {
        total.requests += slot.requests;
        total.bytes += slot.bytes;
        total.s4xx += slot.s4xx;
        total.s5xx += slot.s5xx;
        for (code, count) in &slot.codes {
            let fresh = || CodeLine { code: code.clone(), count: 0, last: String::new() };
            let line = codes.entry(code.clone()).or_insert_with(fresh);
            line.count += count;
            line.last.clone_from(&slot.at);
        }
    }
    let step_minutes = resolution.seconds() as f64 / 60.0;
    let throughput = span.bars(slots, step_minutes);
    let times = [
        ("p50", slots.iter().map(|slot| (slot.moment, slot.p50_ms)).collect::<Vec<_>>()),
        ("p95", slots.iter().map(|slot| (slot.moment, slot.p95_ms)).collect()),
        ("p99", slots.iter().map(|slot| (slot.moment, slot.p99_ms)).collect()),
    ];
    let times = span.lines("response", times.map(|(name, points)| (name.to_owned(), points)).into(), |top| {
        format!("{} ms", rounded(top))
    });
    let memory =
        span.lines("memory", by_process(slots, |slot| &slot.memory_bytes, 1.0), |top| crate::text::size(top as u64));
    // Thousandths of a second in a slot, as cores.
    let load =
        span.lines("load", by_process(slots, |slot| &slot.cpu_millis, span.step as f64), |top| format!("{top:.2} CPU"));
    let marks: Vec<f64> = metrics.events.iter().map(|event| span.x(event.moment)).collect();
    let mut charts = vec![throughput, times, memory, load];
    charts.iter_mut().for_each(|chart| chart.marks.clone_from(&marks));
    Ok(MetricsPage {
        name: app.name.clone(),
        range: match resolution {
            Resolution::Minute => "2h",
            Resolution::TenMinutes => "24h",
            Resolution::Hour => "7d",
        },
        owner: repository.as_ref().map(|repository| repository.owner.clone()).unwrap_or_default(),
        repository_name: repository.map(|repository| repository.name).unwrap_or_default(),
        charts,
        codes: codes.into_values().collect(),
        crashes: slots.iter().map(|slot| slot.crashes).sum(),
        events: metrics.events.into_iter().rev().collect(),
        total,
        alerts: super::alerts_of(world, &app.name)?,
    })
}

type Points = Vec<(Timestamp, Option<f64>)>;

fn by_process(
    slots: &[MetricSlot],
    values: fn(&MetricSlot) -> &BTreeMap<String, u64>,
    divisor: f64,
) -> Vec<(String, Points)> {
    let names: BTreeSet<&String> = slots.iter().flat_map(|slot| values(slot).keys()).collect();
    let line = |name: &String| {
        let points =
            slots.iter().map(|slot| (slot.moment, values(slot).get(name).map(|value| *value as f64 / divisor)));
        (name.clone(), points.collect())
    };
    names.into_iter().map(line).collect()
}

fn rounded(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// The time that a chart covers, in milliseconds.
struct Span {
    from: i64,
    length: i64,
    step: i64,
}

impl Span {
    fn of(metrics: &Metrics, resolution: Resolution) -> Span {
        let length = resolution.kept() * 1000;
        let until = Timestamp::parse_rfc3339(&metrics.until).unwrap_or_default();
        Span { from: until.0 - length, length, step: resolution.seconds() * 1000 }
    }

    fn x(&self, at: Timestamp) -> f64 {
        let part = (at.0 - self.from).clamp(0, self.length) as f64 / self.length as f64;
        (part * WIDTH * 10.0).round() / 10.0
    }

    fn lines(&self, key: &'static str, lines: Vec<(String, Points)>, label: impl Fn(f64) -> String) -> Chart {
        let top = lines.iter().flat_map(|(_, points)| points).filter_map(|(_, value)| *value).fold(0.0, f64::max);
        let empty = lines.iter().all(|(_, points)| points.iter().all(|(_, value)| value.is_none()));
        let lines = lines.into_iter().take(LINES).enumerate().map(|(colour, (name, points))| {
            let mut pieces: Vec<Vec<String>> = Vec::new();
            let mut last = None;
            for (at, value) in points {
                let Some(value) = value else { continue };
                let y = (HEIGHT - value / top.max(f64::MIN_POSITIVE) * HEIGHT).clamp(0.0, HEIGHT);
                let (left, right) = (self.x(at), self.x(Timestamp(at.0 + self.step)));
                // A slot in which nothing was seen is a gap, not a line to its neighbour.
                if last != Some(at.0 - self.step) {
                    pieces.push(Vec::new());
                }
                pieces.last_mut().into_iter().for_each(|piece| piece.push(format!("{left},{y:.1} {right},{y:.1}")));
                last = Some(at.0);
            }
            ChartLine { name, colour, pieces: pieces.into_iter().map(|piece| piece.join(" ")).collect() }
        });
        Chart {
            key,
            kind: "lines",
            top: label(top),
            lines: lines.collect(),
            bars: Vec::new(),
            marks: Vec::new(),
            empty,
        }
    }

    /// Requests a minute: the failed ones at the bottom.
    fn bars(&self, slots: &[MetricSlot], step_minutes: f64) -> Chart {
        let top = slots.iter().map(|slot| slot.requests).max().unwrap_or(0);
        let mut bars = Vec::new();
        for slot in slots.iter().filter(|slot| slot.requests > 0) {
            let x = self.x(slot.moment);
            let width = ((self.x(Timestamp(slot.moment.0 + self.step)) - x) * 0.9 * 10.0).round() / 10.0;
            let height = |count: u64| (count as f64 / top.max(1) as f64 * HEIGHT * 10.0).round() / 10.0;
            let (all, bad) = (height(slot.requests), height(slot.s5xx));
            bars.push(Bar { x, y: HEIGHT - all, width, height: all - bad, bad: false });
            if slot.s5xx > 0 {
                bars.push(Bar { x, y: HEIGHT - bad, width, height: bad, bad: true });
            }
        }
        let empty = bars.is_empty();
        let top = format!("{}/min", rounded(top as f64 / step_minutes));
        Chart { key: "throughput", kind: "bars", top, lines: Vec::new(), bars, marks: Vec::new(), empty }
    }
}
