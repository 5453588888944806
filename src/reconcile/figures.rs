//! All numbers that leave for other systems, gathered once for Prometheus and OpenTelemetry alike; and the export to
//! the operator's collector.

use super::observe::label;
use super::{Trouble, World};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::figures::{Family, Kind, Point, Value, request};
use crate::outside;
use crate::platform::{ProcessStatus, State};
use crate::router::{AppStatus, Histogram, Slot, Status};
use crate::store::queue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Deliveries, newest first, of which the states are counted.
const COUNTED_DELIVERIES: usize = 1_000;
/// Upper bounds of the buckets of response times, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

type Labels = Vec<(&'static str, String)>;

fn counted(name: &'static str, help: &'static str, counts: BTreeMap<Labels, u64>) -> Family {
    let mut family = Family::new(name, Kind::Gauge, help, Timestamp(0));
    counts.into_iter().for_each(|(labels, count)| family.add(labels, count as f64));
    family
}

fn tally(states: impl Iterator<Item = Labels>) -> BTreeMap<Labels, u64> {
    states.fold(BTreeMap::new(), |mut counts, labels| {
        *counts.entry(labels).or_default() += 1;
        counts
    })
}

/// Everything that can be counted, now.
pub async fn gather(world: &World) -> Result<Vec<Family>, Trouble> {
    let mut all = Vec::new();
    let mut version = Family::new("landfall_info", Kind::Gauge, "Which version runs.", Timestamp(0));
    version.add(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0);
    all.push(version);

    let deliveries = world.store.deliveries(None, COUNTED_DELIVERIES)?;
    let states = tally(deliveries.iter().map(|delivery| vec![("state", delivery_word(&delivery.state).to_owned())]));
    all.push(counted("landfall_deliveries", "The newest 1000 deliveries by state.", states));
    let depth = queue::depth(&world.store)?;
    let states = [("waiting", depth.waiting), ("leased", depth.leased), ("parked", depth.parked)];
    let states = states.map(|(state, count)| (vec![("state", state.to_owned())], count)).into();
    all.push(counted("landfall_queue_entries", "Entries of the work queue by state.", states));
    let apps = world.store.apps()?;
    let phases = tally(apps.iter().map(|app| {
        let phase = app.newest().map_or("none", |deploy| phase_word(app.phase(deploy)));
        vec![("phase", phase.to_owned()), ("stage", app.stage.word().to_owned())]
    }));
    all.push(counted("landfall_apps", "Apps by stage and by the phase of the newest deploy.", phases));
    let list = world.platform.list().await?;
    processes(world, &list, &mut all)?;
    let states = tally(world.store.runs()?.iter().map(|run| vec![("state", run_word(run.state()).to_owned())]));
    all.push(counted("landfall_test_runs", "Test runs by state.", states));
    alerts(world, &mut all)?;
    drains(world, &mut all);

    let (status, totals) = (world.router.status().await, world.router.totals().await);
    let up = f64::from(u8::from(status.is_ok()));
    if let Ok(status) = status {
        requests(&status, &totals.unwrap_or_default(), &mut all);
    }
    let help = "Whether the router answers.";
    all.push(Family::single("landfall_router_up", Kind::Gauge, help, Timestamp(0), up));

    let (figures, since) = (world.store.figures(), world.started_at);
    let help = "Transactions since the store was opened.";
    let transactions = figures.transactions as f64;
    all.push(Family::single("landfall_store_transactions_total", Kind::Counter, help, since, transactions));
    let help = "fsync and fdatasync calls since the store was opened.";
    all.push(Family::single("landfall_store_syncs_total", Kind::Counter, help, since, figures.syncs as f64));
    Ok(all)
}

/// Memory and processor time by process, and what went wrong by app.
fn processes(world: &World, list: &[ProcessStatus], all: &mut Vec<Family>) -> Result<(), Trouble> {
    let states = tally(list.iter().map(|status| {
        let state = match status.state {
            State::Starting => "starting",
            State::Running { .. } => "running",
            State::Stopping => "stopping",
            State::Exited { .. } => "exited",
        };
        vec![("state", state.to_owned())]
    }));
    all.push(counted("landfall_processes", "Processes by state.", states));
    // Two attempts at one process may overlap for a moment: they count as one.
    let (mut memory, mut cpu) = (BTreeMap::<Labels, u64>::new(), BTreeMap::<Labels, (u64, Timestamp)>::new());
    for status in list.iter().filter(|status| !status.state.is_over()) {
        let text = |name: &str| status.labels.get(name).cloned();
        let (Some(app), Some(release)) = (text(label::APP), text(label::RELEASE)) else { continue };
        let labels = vec![("app", app), ("process", status.name.clone()), ("release", release)];
        if let Some(bytes) = status.memory_bytes {
            *memory.entry(labels.clone()).or_default() += bytes;
        }
        // A process that starts anew counts anew.
        if let (Some(millis), State::Running { since }) = (status.cpu_millis_used, &status.state) {
            let used = cpu.entry(labels).or_insert((0, *since));
            *used = (used.0 + millis, used.1.min(*since));
        }
    }
    all.push(counted("landfall_process_memory_bytes", "Memory of each process.", memory));
    let help = "Processor time of each process since its start.";
    let mut family = Family::new("landfall_process_cpu_seconds_total", Kind::Counter, help, world.started_at);
    cpu.into_iter().for_each(|(labels, (millis, since))| family.add_since(labels, millis as f64 / 1000.0, since));
    all.push(family);

    let help = "Errors of processes by Heroku's R codes since the app was made.";
    let mut codes = Family::new("landfall_process_codes_total", Kind::Counter, help, world.started_at);
    let help = "Processes that ended although nobody wanted it, since the app was made.";
    let mut crashes = Family::new("landfall_process_crashes_total", Kind::Counter, help, world.started_at);
    for (app, totals) in world.meters.totals() {
        let Some(made) = world.store.app(&app)?.map(|app| app.created_at) else { continue };
        for (code, count) in totals.codes {
            codes.add_since(vec![("app", app.to_string()), ("code", code.to_string())], count as f64, made);
        }
        crashes.add_since(vec![("app", app.to_string())], totals.crashes as f64, made);
    }
    all.extend([codes, crashes]);
    Ok(())
}

fn alerts(world: &World, all: &mut Vec<Family>) -> Result<(), Trouble> {
    let mut firing = Family::new("landfall_alert_firing", Kind::Gauge, "Alerts that fire.", Timestamp(0));
    let (mut waiting, mut lost) = (0, 0);
    for alerts in world.store.all_alerts()? {
        for (kind, _, _) in alerts.firing() {
            firing.add(vec![("app", alerts.app.to_string()), ("alert", kind.to_string())], 1.0);
        }
        waiting += alerts.posts.len();
        lost += alerts.lost;
    }
    all.push(firing);
    let help = "Posts to the webhook for alerts that nobody has taken yet.";
    all.push(Family::single("landfall_alert_posts_waiting", Kind::Gauge, help, Timestamp(0), waiting as f64));
    let help = "Posts to the webhook for alerts that were given up, of the apps that there are.";
    all.push(Family::single("landfall_alert_posts_lost", Kind::Gauge, help, Timestamp(0), lost as f64));
    Ok(())
}

fn drains(world: &World, all: &mut Vec<Family>) {
    let since = world.started_at;
    let help = "Log lines that a drain has taken since the control plane started.";
    let mut sent = Family::new("landfall_drain_lines_sent_total", Kind::Counter, help, since);
    let help = "Log lines that gave way since the control plane started, because a drain was too slow or refused them.";
    let mut dropped = Family::new("landfall_drain_lines_dropped_total", Kind::Counter, help, since);
    let mut waiting =
        Family::new("landfall_drain_lines_waiting", Kind::Gauge, "Log lines that wait for a drain.", since);
    for (id, figures) in world.drains.figures() {
        sent.add(vec![("drain", id.clone())], figures.sent as f64);
        dropped.add(vec![("drain", id.clone())], figures.dropped as f64);
        waiting.add(vec![("drain", id)], figures.waiting as f64);
    }
    all.extend([sent, dropped, waiting]);
}

/// What the router counted, by app and by process.
fn requests(status: &Status, totals: &BTreeMap<AppName, BTreeMap<String, Slot>>, all: &mut Vec<Family>) {
    let since = status.started_at;
    let by_app = |name, kind, help, value: fn(&AppStatus) -> f64| {
        let mut family = Family::new(name, kind, help, since);
        status.apps.iter().for_each(|(app, seen)| family.add(vec![("app", app.to_string())], value(seen)));
        family
    };
    let help = "Requests since the router started.";
    all.push(by_app("landfall_router_requests_total", Kind::Counter, help, |seen| seen.requests as f64));
    let help = "Answers with a status of 500 or more since the router started.";
    all.push(by_app("landfall_router_errors_total", Kind::Counter, help, |seen| seen.s5xx as f64));
    let help = "Bytes of answers' bodies since the router started.";
    all.push(by_app("landfall_router_sent_bytes_total", Kind::Counter, help, |seen| seen.bytes as f64));
    let help = "Requests under way.";
    all.push(by_app("landfall_router_requests_active", Kind::Gauge, help, |seen| seen.in_flight as f64));
    let help = "Requests that wait for a process.";
    all.push(by_app("landfall_router_requests_held", Kind::Gauge, help, |seen| seen.held as f64));

    let help = "Answers by the class of their status since the router started.";
    let mut classes = Family::new("landfall_router_responses_total", Kind::Counter, help, since);
    let help = "Errors by Heroku's codes since the router started.";
    let mut codes = Family::new("landfall_router_codes_total", Kind::Counter, help, since);
    let help = "How long requests took.";
    let mut times = Family::new("landfall_router_response_seconds", Kind::Histogram, help, since);
    let help = "What so large a part of the requests of this minute and the one before it did not exceed.";
    let mut recent = Family::new("landfall_router_response_recent_seconds", Kind::Gauge, help, since);
    for (app, seen) in &status.apps {
        let app = || ("app", app.to_string());
        for (index, count) in [seen.s1xx, seen.s2xx, seen.s3xx, seen.s4xx, seen.s5xx].into_iter().enumerate() {
            classes.add(vec![app(), ("class", format!("{}xx", index + 1))], count as f64);
        }
        for (code, count) in &seen.h_codes {
            codes.add(vec![app(), ("code", code.to_string())], *count as f64);
        }
        if seen.requests > 0 {
            times.points.push(Point { labels: vec![app()], value: buckets(&seen.latency), since: None });
        }
        let quantiles = [("0.5", seen.p50_ms), ("0.95", seen.p95_ms), ("0.99", seen.p99_ms), ("1", seen.max_ms)];
        for (quantile, millis) in quantiles {
            if let Some(millis) = millis {
                recent.add(vec![app(), ("quantile", quantile.to_owned())], millis / 1000.0);
            }
        }
    }
    all.extend([classes, codes, times, recent]);
    by_process(totals, since, all);

    let mut known = BTreeMap::<Labels, u64>::new();
    for target in status.targets.values() {
        let labels = vec![("app", target.app.to_string()), ("healthy", target.healthy.to_string())];
        *known.entry(labels).or_default() += 1;
    }
    all.push(counted("landfall_router_targets", "Web processes that the router knows.", known));
    let help = "Log lines that could not be kept since the router started.";
    let dropped = status.log_lines_dropped as f64;
    all.push(Family::single("landfall_router_log_lines_dropped_total", Kind::Counter, help, since, dropped));
    let help = "Clients' open connections.";
    let connections = status.connections as f64;
    all.push(Family::single("landfall_router_connections", Kind::Gauge, help, since, connections));
}

fn by_process(totals: &BTreeMap<AppName, BTreeMap<String, Slot>>, since: Timestamp, all: &mut Vec<Family>) {
    let help = "Answers of each process by the class of their status since the router started.";
    let mut classes = Family::new("landfall_router_process_responses_total", Kind::Counter, help, since);
    let help = "Bytes of each process's answers since the router started.";
    let mut bytes = Family::new("landfall_router_process_sent_bytes_total", Kind::Counter, help, since);
    let help = "Errors of each process by Heroku's codes since the router started.";
    let mut codes = Family::new("landfall_router_process_codes_total", Kind::Counter, help, since);
    let help = "Connections to each process that broke before an answer and were made up for since the router started.";
    let mut broken = Family::new("landfall_router_process_broken_total", Kind::Counter, help, since);
    let help = "How long requests to each process took.";
    let mut times = Family::new("landfall_router_process_response_seconds", Kind::Histogram, help, since);
    for (app, processes) in totals {
        for (name, slot) in processes {
            let (release, process) = name.split_once('/').unwrap_or(("", name));
            let labels: Labels =
                vec![("app", app.to_string()), ("process", process.to_owned()), ("release", release.to_owned())];
            let with = |name, value: String| labels.iter().cloned().chain([(name, value)]).collect::<Labels>();
            for (index, count) in slot.classes.iter().enumerate() {
                classes.add(with("class", format!("{}xx", index + 1)), *count as f64);
            }
            for (code, count) in &slot.codes {
                codes.add(with("code", code.to_string()), *count as f64);
            }
            bytes.add(labels.clone(), slot.bytes as f64);
            broken.add(labels.clone(), slot.broken as f64);
            times.points.push(Point { labels, value: buckets(&slot.latency), since: None });
        }
    }
    all.extend([classes, bytes, codes, broken, times]);
}

fn buckets(latency: &Histogram) -> Value {
    let mut below = 0;
    let mut counts = Vec::with_capacity(SECONDS.len() + 1);
    for limit in SECONDS {
        let at_most = latency.at_most(Duration::from_secs_f64(limit));
        counts.push(at_most - below);
        below = at_most;
    }
    counts.push(latency.count() - below);
    Value::Buckets { bounds: SECONDS.to_vec(), counts, sum: latency.sum().as_secs_f64() }
}

/// Sends all numbers to the operator's collector, every so often. What is not taken is not sent again: the next export
/// holds the same sums.
pub(super) async fn export(world: Arc<World>) {
    let settings = &world.config.otlp;
    let Some(endpoint) = &settings.endpoint else { return };
    let every = Duration::from_secs(settings.interval_seconds);
    let mut failing = false;
    loop {
        tokio::time::sleep(every).await;
        match outside::watched(world.outside.clone(), export_once(&world, endpoint)).await {
            Ok(()) => failing = false,
            // Told once, not with every export.
            Err(trouble) if !failing => {
                failing = true;
                warn!("the collector did not take the numbers: {trouble}");
            }
            Err(_) => {}
        }
    }
}

/// One export, as `export` makes it.
pub async fn export_once(world: &World, endpoint: &str) -> Result<(), Trouble> {
    let families = gather(world).await?;
    let body = request(&families, env!("CARGO_PKG_VERSION"), &world.config.server.public_url, world.now());
    outside::point("collector").await;
    let mut sent = world.http.post(endpoint).timeout(PATIENCE).json(&body);
    for (name, value) in &world.config.otlp.headers {
        sent = sent.header(name, value.expose());
    }
    let answer = sent.send().await.map_err(|error| Trouble::retry(error.without_url()))?;
    if answer.status().is_success() { Ok(()) } else { Err(Trouble::retry(format!("it answered {}", answer.status()))) }
}

fn delivery_word(state: &DeliveryState) -> &'static str {
    match state {
        DeliveryState::Queued => "queued",
        DeliveryState::Applied { .. } => "applied",
        DeliveryState::Ignored { .. } => "ignored",
        DeliveryState::Retrying { .. } => "retrying",
        DeliveryState::Parked { .. } => "parked",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Building => "building",
        Phase::WaitingForConfig => "waiting_for_config",
        Phase::Releasing => "releasing",
        Phase::Booting => "booting",
        Phase::Canary => "canary",
        Phase::Live => "live",
        Phase::Replaced => "replaced",
        Phase::Failed => "failed",
        Phase::Superseded => "superseded",
    }
}

fn run_word(state: RunState) -> &'static str {
    match state {
        RunState::Pending => "pending",
        RunState::Building => "building",
        RunState::Running => "running",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Errored => "errored",
        RunState::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Code;

    #[test]
    fn what_the_router_counted_is_in_prometheus_form() {
        let mut seen = AppStatus { requests: 3, s2xx: 2, s5xx: 1, bytes: 30, held: 1, ..Default::default() };
        (seen.h_codes, seen.p95_ms) = (BTreeMap::from([(Code::H12, 1)]), Some(40.0));
        for millis in [3, 40, 31_000] {
            seen.latency.record(Duration::from_millis(millis));
        }
        let slot = Slot { requests: 3, classes: [0, 2, 0, 0, 1], latency: seen.latency.clone(), ..Slot::default() };
        let totals = BTreeMap::from([("hello".parse().unwrap(), BTreeMap::from([("v1/web.1".to_owned(), slot)]))]);
        let apps = BTreeMap::from([("hello".parse().unwrap(), seen), ("quiet".parse().unwrap(), Default::default())]);
        let mut all = Vec::new();
        requests(&Status { apps, ..Default::default() }, &totals, &mut all);
        let out = crate::figures::text(&all);
        for line in [
            "landfall_router_requests_total{app=\"hello\"} 3",
            "landfall_router_responses_total{app=\"hello\",class=\"2xx\"} 2",
            "landfall_router_codes_total{app=\"hello\",code=\"H12\"} 1",
            "landfall_router_requests_held{app=\"hello\"} 1",
            "landfall_router_response_seconds_bucket{app=\"hello\",le=\"0.005\"} 1",
            "landfall_router_response_seconds_bucket{app=\"hello\",le=\"0.05\"} 2",
            "landfall_router_response_seconds_bucket{app=\"hello\",le=\"30\"} 2",
            "landfall_router_response_seconds_bucket{app=\"hello\",le=\"+Inf\"} 3",
            "landfall_router_response_seconds_sum{app=\"hello\"} 31.043",
            "landfall_router_response_recent_seconds{app=\"hello\",quantile=\"0.95\"} 0.04",
            "landfall_router_process_responses_total{app=\"hello\",process=\"web.1\",release=\"v1\",class=\"5xx\"} 1",
            "landfall_router_process_response_seconds_count{app=\"hello\",process=\"web.1\",release=\"v1\"} 3",
        ] {
            assert!(out.lines().any(|have| have == line), "{line} is not in\n{out}");
        }
        assert!(!out.contains("response_seconds_bucket{app=\"quiet\""));
    }
}
