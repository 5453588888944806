//! Is it alive, and how much is there to do: for probes and for Prometheus (text exposition format 0.0.4).

use super::Shared;
use super::problem::Problem;
use crate::domain::*;
use crate::platform::State;
use crate::router;
use crate::store::{Health, queue};
use actix_web::HttpResponse;
use actix_web::web::Data;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Deliveries, newest first, of which the states are counted.
const COUNTED_DELIVERIES: usize = 1_000;

/// 200 once deliveries can be taken; 503 with the reason while the store refuses them.
pub async fn healthz(shared: Data<Shared>) -> HttpResponse {
    match shared.world.store.health() {
        Health::Ready => HttpResponse::Ok().content_type("text/plain").body("ok\n"),
        Health::Refusing { .. } | Health::Poisoned { .. } => {
            HttpResponse::ServiceUnavailable().content_type("text/plain").body("the store takes no writes\n")
        }
    }
}

pub async fn metrics(shared: Data<Shared>) -> HttpResponse {
    match gather(&shared).await {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(problem) => shared.refuse("/metrics", &problem),
    }
}

/// Writes one family; every label value is one of our own words or an app's name.
fn family(out: &mut String, name: &str, kind: &str, help: &str, rows: &[(String, f64)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in rows {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

fn labelled(counts: BTreeMap<Vec<(&'static str, String)>, u64>) -> Vec<(String, f64)> {
    let text = |labels: Vec<(&str, String)>| {
        let pairs: Vec<String> = labels.into_iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        format!("{{{}}}", pairs.join(","))
    };
    counts.into_iter().map(|(labels, count)| (text(labels), count as f64)).collect()
}

async fn gather(shared: &Shared) -> Result<String, Problem> {
    let world = &shared.world;
    let mut out = String::new();
    let plain = |value: u64| vec![(String::new(), value as f64)];
    let version = vec![(format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0)];
    family(&mut out, "landfall_info", "gauge", "Which version runs.", &version);

    let mut counts = BTreeMap::new();
    for delivery in world.store.deliveries(None, COUNTED_DELIVERIES)? {
        *counts.entry(vec![("state", delivery_word(&delivery.state).to_owned())]).or_insert(0) += 1;
    }
    family(&mut out, "landfall_deliveries", "gauge", "The newest 1000 deliveries by state.", &labelled(counts));

    let depth = queue::depth(&world.store)?;
    let rows = [("waiting", depth.waiting), ("leased", depth.leased), ("parked", depth.parked)]
        .map(|(state, count)| (format!("{{state=\"{state}\"}}"), count as f64));
    family(&mut out, "landfall_queue_entries", "gauge", "Entries of the work queue by state.", &rows);

    let mut counts = BTreeMap::new();
    for app in world.store.apps()? {
        let phase = app.newest().map_or("none", |deploy| phase_word(app.phase(deploy)));
        let labels = vec![("phase", phase.to_owned()), ("stage", app.stage.word().to_owned())];
        *counts.entry(labels).or_insert(0) += 1;
    }
    family(
        &mut out,
        "landfall_apps",
        "gauge",
        "Apps by stage and by the phase of the newest deploy.",
        &labelled(counts),
    );

    let mut counts = BTreeMap::new();
    for status in world.platform.list().await? {
        let state = match status.state {
            State::Starting => "starting",
            State::Running { .. } => "running",
            State::Stopping => "stopping",
            State::Exited { .. } => "exited",
        };
        *counts.entry(vec![("state", state.to_owned())]).or_insert(0) += 1;
    }
    family(&mut out, "landfall_processes", "gauge", "Processes by state.", &labelled(counts));

    let mut counts = BTreeMap::new();
    for run in world.store.runs()? {
        *counts.entry(vec![("state", run_word(run.state()).to_owned())]).or_insert(0) += 1;
    }
    family(&mut out, "landfall_test_runs", "gauge", "Test runs by state.", &labelled(counts));

    if let Ok(status) = world.router.status().await {
        requests(&mut out, &status);
        family(&mut out, "landfall_router_up", "gauge", "Whether the router answers.", &plain(1));
    } else {
        family(&mut out, "landfall_router_up", "gauge", "Whether the router answers.", &plain(0));
    }

    let figures = world.store.figures();
    let help = "Transactions since the store was opened.";
    family(&mut out, "landfall_store_transactions_total", "counter", help, &plain(figures.transactions));
    let help = "fsync and fdatasync calls since the store was opened.";
    family(&mut out, "landfall_store_syncs_total", "counter", help, &plain(figures.syncs));
    Ok(out)
}

/// Upper bounds of the buckets of response times, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// What the router counted, by app.
fn requests(out: &mut String, status: &router::Status) {
    let rows = |value: fn(&router::AppStatus) -> u64| -> Vec<(String, f64)> {
        status.apps.iter().map(|(app, seen)| (format!("{{app=\"{app}\"}}"), value(seen) as f64)).collect()
    };
    let help = "Requests since the router started.";
    family(out, "landfall_router_requests_total", "counter", help, &rows(|seen| seen.requests));
    let help = "Answers with a status of 500 or more since the router started.";
    family(out, "landfall_router_errors_total", "counter", help, &rows(|seen| seen.s5xx));
    let help = "Bytes of answers' bodies since the router started.";
    family(out, "landfall_router_sent_bytes_total", "counter", help, &rows(|seen| seen.bytes));
    family(out, "landfall_router_requests_active", "gauge", "Requests under way.", &rows(|seen| seen.in_flight));
    let help = "Requests that wait for a process.";
    family(out, "landfall_router_requests_held", "gauge", help, &rows(|seen| seen.held));

    let (mut classes, mut codes) = (Vec::new(), Vec::new());
    for (app, seen) in &status.apps {
        let counts = [seen.s1xx, seen.s2xx, seen.s3xx, seen.s4xx, seen.s5xx];
        for (index, count) in counts.into_iter().enumerate() {
            classes.push((format!("{{app=\"{app}\",class=\"{}xx\"}}", index + 1), count as f64));
        }
        for (code, count) in &seen.h_codes {
            codes.push((format!("{{app=\"{app}\",code=\"{code}\"}}"), *count as f64));
        }
    }
    let help = "Answers by the class of their status since the router started.";
    family(out, "landfall_router_responses_total", "counter", help, &classes);
    let help = "Errors by Heroku's codes since the router started.";
    family(out, "landfall_router_codes_total", "counter", help, &codes);

    let name = "landfall_router_response_seconds";
    let _ = writeln!(out, "# HELP {name} How long requests took.\n# TYPE {name} histogram");
    for (app, seen) in status.apps.iter().filter(|(_, seen)| seen.requests > 0) {
        for limit in SECONDS {
            let count = seen.latency.at_most(Duration::from_secs_f64(limit));
            let _ = writeln!(out, "{name}_bucket{{app=\"{app}\",le=\"{limit}\"}} {count}");
        }
        let (count, sum) = (seen.latency.count(), seen.latency.sum().as_secs_f64());
        let _ = writeln!(out, "{name}_bucket{{app=\"{app}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{app=\"{app}\"}} {sum}\n{name}_count{{app=\"{app}\"}} {count}");
    }

    let states: Vec<(String, f64)> = status
        .targets
        .values()
        .fold(BTreeMap::new(), |mut counts: BTreeMap<(String, bool), u64>, target| {
            *counts.entry((target.app.to_string(), target.healthy)).or_default() += 1;
            counts
        })
        .into_iter()
        .map(|((app, healthy), count)| (format!("{{app=\"{app}\",healthy=\"{healthy}\"}}"), count as f64))
        .collect();
    family(out, "landfall_router_targets", "gauge", "Web processes that the router knows.", &states);
    let lines = [(String::new(), status.log_lines_dropped as f64)];
    let help = "Log lines that could not be kept since the router started.";
    family(out, "landfall_router_log_lines_dropped_total", "counter", help, &lines);
    let connections = [(String::new(), status.connections as f64)];
    family(out, "landfall_router_connections", "gauge", "Clients' open connections.", &connections);
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

    #[test]
    fn what_the_router_counted_is_in_prometheus_form() {
        let mut seen = router::AppStatus { requests: 3, s2xx: 2, s5xx: 1, bytes: 30, held: 1, ..Default::default() };
        seen.h_codes.insert(router::Code::H12, 1);
        for millis in [3, 40, 31_000] {
            seen.latency.record(Duration::from_millis(millis));
        }
        let apps = BTreeMap::from([("hello".parse().unwrap(), seen), ("quiet".parse().unwrap(), Default::default())]);
        let mut out = String::new();
        requests(&mut out, &router::Status { apps, ..Default::default() });
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
        ] {
            assert!(out.lines().any(|have| have == line), "{line} is not in\n{out}");
        }
        assert!(!out.contains("response_seconds_bucket{app=\"quiet\""));
        let mut types: Vec<&str> = out.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count, "a family stands twice");
    }
}
