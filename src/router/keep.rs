//! Keeps the numbers on disk, so that a new router goes on with those of the one before it.
//!
//! They are written when the router ends and every minute in which there were requests; what a crash loses is the time
//! since then.

use super::live::Routes;
use super::metrics::{AppMetrics, Kept};
use crate::domain::AppName;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(60);
const FILE: &str = "numbers.json";

pub(super) async fn keep(routes: Arc<Routes>) {
    let mut newest = None;
    loop {
        tokio::time::sleep(EVERY).await;
        // Every request moves it.
        let last = routes.live().apps.values().filter_map(|app| app.metrics.last_request()).max();
        if routes.is_leaving() || last == newest {
            continue;
        }
        newest = last;
        let routes = routes.clone();
        let _ = tokio::task::spawn_blocking(move || save(&routes)).await;
    }
}

/// Writes the numbers of every app that has a route. That it can't is told, and stops nothing.
pub(super) fn save(routes: &Routes) {
    let live = routes.live();
    write(routes, &live.apps.iter().map(|(name, app)| (name.clone(), app.metrics.kept())).collect());
}

/// Leaves the numbers to the router that takes our place, and begins anew. They are given back for the case that it
/// does not come to that.
pub(super) fn leave(routes: &Routes) -> BTreeMap<AppName, Kept> {
    let live = routes.live();
    let kept = live.apps.iter().map(|(name, app)| (name.clone(), app.metrics.take())).collect();
    write(routes, &kept);
    kept
}

fn write(routes: &Routes, kept: &BTreeMap<AppName, Kept>) {
    let folder = &routes.options.state_dir;
    let written = serde_json::to_vec(kept).map_err(std::io::Error::from).and_then(|bytes| {
        let fresh = folder.join("numbers.new.json");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, folder.join(FILE))
    });
    if let Err(error) = written {
        tracing::error!(%error, "could not keep the numbers of requests");
    }
}

/// What was kept, by app. Numbers that can't be read are no reason not to serve.
pub(super) fn load(folder: &Path) -> BTreeMap<AppName, Arc<AppMetrics>> {
    let bytes = match std::fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::error!(%error, "could not read the kept numbers of requests");
            }
            return BTreeMap::new();
        }
    };
    match serde_json::from_slice::<BTreeMap<AppName, Kept>>(&bytes) {
        Ok(kept) => kept.into_iter().map(|(app, kept)| (app, Arc::new(AppMetrics::of(kept)))).collect(),
        Err(error) => {
            tracing::error!(%error, "the kept numbers of requests are malformed");
            BTreeMap::new()
        }
    }
}
