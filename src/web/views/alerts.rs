//! What fires, and what has fired lately.

use super::When;
use crate::domain::*;
use crate::reconcile::World;
use crate::web::problem::Problem;
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct AlertLine {
    pub app: AppName,
    pub kind: AlertKind,
    /// `firing`, or `resolved` when it has fired before.
    pub state: &'static str,
    pub since: When,
    /// What was read when it began to fire; of one that is over, nothing.
    pub reading: Option<Reading>,
    /// In words.
    pub what: String,
}

/// Those that fire first.
pub fn alerts(world: &World) -> Result<Vec<AlertLine>, Problem> {
    let mut lines = Vec::new();
    for alerts in world.store.all_alerts()? {
        lines.extend(lines_of(world, &alerts));
    }
    lines.sort_by_key(|line| (line.state, line.since.seconds_ago));
    Ok(lines)
}

pub fn alerts_of(world: &World, app: &AppName) -> Result<Vec<AlertLine>, Problem> {
    Ok(world.store.alerts(app)?.map(|alerts| lines_of(world, &alerts)).unwrap_or_default())
}

pub fn firing(world: &World) -> Result<Vec<AlertLine>, Problem> {
    Ok(alerts(world)?.into_iter().filter(|line| line.state == "firing").collect())
}

fn lines_of(world: &World, alerts: &Alerts) -> Vec<AlertLine> {
    let now = world.now();
    let lines = alerts.kinds.iter().filter_map(|(kind, alert)| {
        let (state, since, reading) = match (&alert.firing, alert.resolved_at) {
            (Some((since, reading)), _) => ("firing", *since, Some(reading.clone())),
            (None, Some(at)) => ("resolved", at, None),
            (None, None) => return None,
        };
        let what = reading.as_ref().map(|reading| {
            let alert = crate::reconcile::alerts::view(&alerts.app, *kind, Some(since), Some(reading));
            world.texts.line("alert.txt", serde_json::json!({ "form": "what", "alert": alert }))
        });
        let app = alerts.app.clone();
        Some(AlertLine {
            app,
            kind: *kind,
            state,
            since: When::new(since, now),
            reading,
            what: what.unwrap_or_default(),
        })
    });
    lines.collect()
}
