//! The watch over a release: what it is compared with is noted when it begins, and what was found is written down with
//! the way back in one transaction.

use super::act::{change_app, change_deploy, queue_watchers};
use super::apply::{put_app, trim};
use super::{Trouble, World};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::router::{AppNumbers, Histogram, Resolution};
use crate::workflow::WatchView;
use std::ops::RangeBounds;
use std::time::Duration;
use tracing::{info, warn};

/// The watch that begins when a deploy's release gets all requests, if one does: not where it is switched off, not
/// where nothing served before, and not over what was gone back to.
pub(super) async fn after_switch(world: &World, app: &App, number: u64) -> Result<Option<Watch>, Trouble> {
    let Some(deploy) = app.deploy(number).filter(|deploy| !matches!(deploy.cause, Cause::Rollback { .. })) else {
        return Ok(None);
    };
    let (Some(release), Some(before)) = (deploy.release, app.live) else { return Ok(None) };
    if release == before {
        return Ok(None);
    }
    let Some(time) = guard_time(world, app, release)? else { return Ok(None) };
    Ok(Some(watch(world, app, (release, before), time, None).await?))
}

fn guard_time(world: &World, app: &App, release: ReleaseNumber) -> Result<Option<Duration>, Trouble> {
    let Some(release) = world.store.release(&app.name, release)? else { return Ok(None) };
    let web = world.store.slug(&release.slug)?.map(|slug| slug.settings().web).unwrap_or_default();
    Ok(web.guard.time(app.stage))
}

async fn watch(
    world: &World,
    app: &App,
    (release, before): (ReleaseNumber, ReleaseNumber),
    time: Duration,
    percent: Option<u8>,
) -> Result<Watch, Trouble> {
    let numbers = world.router.numbers(&app.name, Resolution::Minute).await?;
    let since = world.now();
    let baseline = sum(&numbers, before, ..);
    let first_minute = sum(&numbers, before, Resolution::Minute.start_of(since)..);
    Ok(Watch { release, before, since, until: since + time, percent, baseline, first_minute })
}

/// Begins to give a deploy's release its share.
pub(super) async fn begin(world: &World, app: &App, number: u64) -> Result<(), Trouble> {
    let Some(deploy) = app.deploy(number) else { return Ok(()) };
    let Cause::Promotion { canary: Some((percent, seconds)), .. } = deploy.cause else { return Ok(()) };
    let (Some(release), Some(before)) = (deploy.release, app.live) else { return Ok(()) };
    let watch = watch(world, app, (release, before), Duration::from_secs(seconds), Some(percent)).await?;
    info!(app = %app.name, %release, percent, "{release} of {} gets {percent} % of the requests", app.name);
    change_deploy(world, app, number, move |app, _| app.canary = Some(watch)).await?;
    Ok(())
}

/// Ends the live release's deploy as failed, and wants the release before it.
pub(super) async fn go_back(world: &World, app: &App, number: u64, failure: &Failure) -> Result<(), Trouble> {
    let Failure::Worse { release, before, .. } = failure else {
        return Err(Trouble::bug("going back from a release that is no worse"));
    };
    let Some(earlier) = world.store.release(&app.name, *before)? else {
        warn!(app = %app.name, %before, "{release} of {} is worse, but {before} is not kept any more", app.name);
        change_app(world, app, |app, _| app.watch = None).await?;
        return Ok(());
    };
    let (name, release, before, failure, now) = (app.name.clone(), *release, *before, failure.clone(), world.now());
    warn!(app = %name, %release, %before, "{release} of {name} is worse than {before}: going back");
    world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&name)? else { return Ok(()) };
            if app.newest().is_none_or(|newest| newest.outcome.is_none()) {
                return Ok(());
            }
            let mut found = app.deploys.iter_mut().filter(|deploy| deploy.number == number);
            let Some(deploy) = found.find(|deploy| matches!(deploy.outcome, Some(Outcome::Live { .. }))) else {
                return Ok(());
            };
            deploy.outcome = Some(Outcome::Failed { failure, at: now });
            app.watch = None;
            let cause = Cause::Rollback { to: before, guard: Some(release) };
            app.want(Deploy::new(earlier.commit, earlier.branch, cause, None, now));
            trim(&mut app);
            put_app(tx, &app, now)?;
            queue_watchers(tx, &app, now)
        })
        .await?;
    Ok(())
}

/// What the router counted of an app's release under watch; `None` while none is.
pub(super) async fn measured(world: &World, app: &App) -> Result<Option<WatchView>, Trouble> {
    let Some(watch) = app.watched() else { return Ok(None) };
    let numbers = world.router.numbers(&app.name, Resolution::Minute).await?;
    // However late somebody looks, what was done after the watch does not count. A canary is watched until it is ready.
    let end = if watch.percent.is_none() { watch.until } else { Timestamp(i64::MAX) };
    let new = sum(&numbers, watch.release, ..end);
    let begun = Resolution::Minute.start_of(watch.since);
    let mut beside = sum(&numbers, watch.before, begun..end);
    // A long watch outlives that minute's slot.
    if world.now().since(begun) < Duration::from_secs(Resolution::Minute.kept().unsigned_abs()) {
        beside = beside.since(&watch.first_minute);
    }
    Ok(Some(WatchView { new, beside }))
}

/// What was counted of a release in slots that began within a time.
fn sum(numbers: &AppNumbers, release: ReleaseNumber, time: impl RangeBounds<Timestamp>) -> Measured {
    let prefix = format!("{release}/");
    let (mut measured, mut latency) = (Measured::default(), Histogram::default());
    let of_release = numbers.processes.iter().filter(|(name, _)| name.starts_with(&prefix));
    for slot in of_release.flat_map(|(_, slots)| slots).filter(|slot| time.contains(&slot.at)) {
        measured.requests += slot.requests + slot.broken;
        measured.errors += slot.classes[4] + slot.broken;
        latency.merge(&slot.latency);
    }
    measured.latency = latency.buckets().collect();
    measured
}
