//! Is it alive, and how much is there to do: for probes and for Prometheus (text exposition format 0.0.4).

use super::Shared;
use super::problem::Problem;
use crate::domain::*;
use crate::platform::State;
use crate::store::{Health, queue};
use actix_web::HttpResponse;
use actix_web::web::Data;
use std::collections::BTreeMap;
use std::fmt::Write as _;

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
        let requests: Vec<(String, f64)> =
            status.apps.iter().map(|(app, seen)| (format!("{{app=\"{app}\"}}"), seen.requests as f64)).collect();
        let errors: Vec<(String, f64)> =
            status.apps.iter().map(|(app, seen)| (format!("{{app=\"{app}\"}}"), seen.s5xx as f64)).collect();
        let help = "Requests since the router started.";
        family(&mut out, "landfall_router_requests_total", "counter", help, &requests);
        let help = "Answers with a status of 500 or more since the router started.";
        family(&mut out, "landfall_router_errors_total", "counter", help, &errors);
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
