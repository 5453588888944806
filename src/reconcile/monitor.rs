//! Every ten seconds: one look at all processes and at the router, from which numbers are kept and alerts decided.

use super::observe::{app_of, label};
use super::{Trouble, World, alerts};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::meters::Look;
use crate::outside;
use crate::platform::{Exit, ProcessStatus, State};
use crate::router;
use crate::workflow::is_changed_since;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

const EVERY: Duration = Duration::from_secs(10);
/// Once in so many looks, which is a minute, the numbers are written.
const WRITTEN: u64 = 6;

/// What one look saw.
pub(super) struct Seen {
    pub at: Timestamp,
    /// `None` once it has not answered for so long that nobody can be thought to be served.
    pub router: Option<router::Status>,
    pub processes: Vec<ProcessStatus>,
}

impl Seen {
    /// Whether a process of the formation ended although nobody wanted it to.
    pub fn is_crash(&self, app: &App, status: &ProcessStatus) -> bool {
        is_crash(app, status, self.at)
    }
}

fn is_crash(app: &App, status: &ProcessStatus, now: Timestamp) -> bool {
    let State::Exited { why, .. } = &status.state else { return false };
    let kind = status.labels.get(label::TYPE).map(String::as_str).unwrap_or_default();
    let stopped = matches!(why, Exit::Killed | Exit::SupervisorLost);
    let changed = is_changed_since(app, status.started_at, now);
    is_scalable(kind) && !stopped && !changed && app.wanted == Wanted::Running
}

/// After so many looks at which the router did not answer, which is half a minute, no app has a process that serves.
const SILENT: u32 = 3;

/// Whoever looks again and again.
#[derive(Debug, Default)]
pub struct Monitor {
    /// So many times in a row the router has not answered.
    silent: u32,
}

impl Monitor {
    /// One look. A router that did not answer just now is no news of any app.
    pub async fn look(&mut self, world: &World) -> Result<(), Trouble> {
        let processes = world.platform.list().await?;
        let at = world.now();
        for status in &processes {
            meter(world, status, at)?;
        }
        let router = match world.router.status().await {
            Ok(status) => {
                self.silent = 0;
                Some(status)
            }
            Err(error) => {
                self.silent += 1;
                if self.silent < SILENT {
                    return Err(error.into());
                }
                None
            }
        };
        alerts::look(world, &Seen { at, router, processes }).await
    }
}

/// Counts what is seen of an app's process.
pub(super) fn meter(world: &World, status: &ProcessStatus, now: Timestamp) -> Result<(), Trouble> {
    let Some(name) = app_of(status) else { return Ok(()) };
    let Some(app) = world.store.app(&name)? else { return Ok(()) };
    let look = Look {
        app: &name,
        process: &status.id,
        name: &status.name,
        memory_bytes: status.memory_bytes,
        cpu_millis: status.cpu_millis_used,
        codes: &status.codes,
        crashed: is_crash(&app, status, now),
    };
    world.meters.look(&look, now);
    Ok(())
}

/// A deploy failed: whether its process did not listen in time, or at another port, is one of Heroku's codes.
pub(super) fn note_failure(world: &World, app: &AppName, failure: &Failure) {
    if let Failure::NotHealthy { seen, process, seconds, .. } = failure
        && (seen.is_empty() || seen == "refused")
    {
        world.meters.note(app, RuntimeCode::R10, world.now());
        let text =
            format!("{} -> Web process failed to bind to $PORT within {seconds} seconds", RuntimeCode::R10.line());
        super::drains::say(world, app, process, &text, world.now());
    }
}

pub(super) async fn run(world: Arc<World>) {
    let mut monitor = Monitor::default();
    for count in 1_u64.. {
        tokio::time::sleep(EVERY).await;
        let looked = outside::watched(world.outside.clone(), monitor.look(&world)).await;
        if let Err(trouble) = looked {
            warn!("the apps could not be looked at: {trouble}");
        }
        if count % WRITTEN == 0
            && let Err(trouble) = keep(&world).await
        {
            warn!("the numbers of processes could not be kept: {trouble}");
        }
    }
}

/// Writes the numbers of the apps that there are.
pub async fn keep(world: &World) -> Result<(), Trouble> {
    let apps: BTreeSet<AppName> = world.store.apps()?.into_iter().map(|app| app.name).collect();
    let (meters, now) = (world.meters.clone(), world.now());
    tokio::task::spawn_blocking(move || meters.keep(|app| apps.contains(app), now)).await??;
    Ok(())
}
