//! What people ask of an app's processes: how many, how large, anew, and a command once. Nothing is started or stopped
//! here: what is wanted is written, and the loop makes it true.

use super::apply::{note_order, put_app};
use super::observe::{self, label};
use super::{Trouble, World};
use crate::domain::*;
use crate::platform::State;
use crate::store::StoreError;
use crate::workflow::{ScaleLimits, ScaleOrder, ScaleRefusal, scaled};
use std::collections::BTreeMap;
use tracing::info;

/// as on Heroku, a one-off process may run for a day.
pub const ONE_OFF_LIMIT: u64 = 24 * 3600;
/// The longest command of a one-off process, in bytes.
const LONGEST_COMMAND: usize = 8 << 10;

/// Scaling goes one at a time, since what all apps may have together is counted.
pub(super) async fn alone(world: &World) -> tokio::sync::OwnedMutexGuard<()> {
    world.locks.lock("scale").await
}

/// What an app may be scaled to beside what the others have.
pub(super) fn limits(world: &World, name: &AppName) -> Result<ScaleLimits, StoreError> {
    let mut elsewhere = 0;
    for other in world.store.apps()?.into_iter().filter(|app| app.wanted == Wanted::Running && app.name != *name) {
        let number = other.live.or_else(|| other.newest().and_then(|deploy| deploy.release));
        let release = number.map(|number| world.store.release(&other.name, number)).transpose()?.flatten();
        let formation = release.map(|release| other.formation_of(&release)).unwrap_or_default();
        elsewhere += formation.values().map(|scale| u32::from(scale.quantity)).sum::<u32>();
    }
    let settings = &world.config.apps;
    Ok(ScaleLimits {
        sizes: settings.size_names(),
        most: settings.max_processes_per_app,
        most_in_all: settings.max_processes,
        elsewhere,
    })
}

/// Scales the app; its live release runs so many from now on. Gives the whole formation.
pub async fn scale(
    world: &World,
    name: &AppName,
    orders: BTreeMap<String, ScaleOrder>,
    by: &str,
) -> Result<Result<BTreeMap<String, Scale>, ScaleRefusal>, Trouble> {
    let _alone = alone(world).await;
    let limits = limits(world, name)?;
    let (key, now, who) = (name.clone(), world.now(), by.to_owned());
    let formation = world
        .commit(move |tx| {
            let app = tx.app(&key)?.filter(|app| app.wanted == Wanted::Running);
            let Some(mut app) = app else { return Ok(Err(ScaleRefusal::NoRelease { app: key })) };
            let number = app.live.or_else(|| app.newest().and_then(|deploy| deploy.release));
            let release = number.map(|number| tx.release(&app.name, number)).transpose()?.flatten();
            let formation = match scaled(&app, release.as_ref(), &orders, &limits) {
                Ok(formation) => formation,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if app.formation.as_ref() != Some(&formation) {
                app.formation = Some(formation.clone());
                app.scaled_at = Some(now);
                put_app(tx, &app, now)?;
                let what = OrderKind::Scale { app: app.name.clone(), formation: in_words(&formation) };
                note_order(tx, app.repository, what, &who, now)?;
            }
            Ok::<_, StoreError>(Ok(formation))
        })
        .await?;
    if let Ok(formation) = &formation {
        info!(app = %name, "{by} scaled {name} to {}", in_words(formation));
    }
    world.wake.notify_waiters();
    Ok(formation)
}

/// `web=2:basic worker=1:standard-1x`.
fn in_words(formation: &BTreeMap<String, Scale>) -> String {
    let words: Vec<String> =
        formation.iter().map(|(kind, scale)| format!("{kind}={}:{}", scale.quantity, scale.size)).collect();
    words.join(" ")
}

/// Starts the app's processes anew, or those of one name (`web.1`) or type (`web`). A web process goes when the one in
/// its place answers. Gives their names.
pub async fn restart(world: &World, app: &AppName, only: Option<&str>, by: &str) -> Result<Vec<String>, Trouble> {
    let mut meant = Vec::new();
    for status in observe::list(world).await? {
        let own = status.labels.get(label::APP).map(String::as_str) == Some(app.as_str());
        let kind = status.labels.get(label::TYPE).map(String::as_str).unwrap_or_default();
        let named = only.is_none_or(|only| only == kind || only == status.name);
        // Whether an interrupted release phase may run again is nothing that a restart may decide.
        if own && named && is_scalable(kind) && matches!(status.state, State::Starting | State::Running { .. }) {
            meant.push(status.name);
        }
    }
    meant.dedup();
    let (key, part, who, now) = (app.clone(), only.map(str::to_owned), by.to_owned(), world.now());
    world
        .commit(move |tx| match tx.app(&key)? {
            Some(mut known) => {
                known.restart_at = Some(now);
                known.restart_only.clone_from(&part);
                put_app(tx, &known, now)?;
                note_order(tx, known.repository, OrderKind::Restart { app: key, only: part }, &who, now)
            }
            None => Ok(()),
        })
        .await?;
    info!(%app, "restarted {app}");
    world.enqueue_subject(&Subject::App(app.clone())).await?;
    Ok(meant)
}

/// Tells visitors that the app is under maintenance, or lets them in again; its processes go on.
pub async fn set_maintenance(world: &World, app: &AppName, on: bool, by: &str) -> Result<(), Trouble> {
    let (key, who, now) = (app.clone(), by.to_owned(), world.now());
    world
        .commit(move |tx| match tx.app(&key)? {
            Some(mut known) if known.maintenance != on => {
                known.maintenance = on;
                put_app(tx, &known, now)?;
                note_order(tx, known.repository, OrderKind::Maintenance { app: key, on }, &who, now)
            }
            _ => Ok(()),
        })
        .await?;
    info!(%app, on, "{by} turned the maintenance mode of {app} {}", if on { "on" } else { "off" });
    world.enqueue_subject(&Subject::App(app.clone())).await?;
    world.wake.notify_waiters();
    Ok(())
}

/// A command that somebody wants to run once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OneOffOrder {
    pub command: String,
    pub size: Option<String>,
    /// In seconds; a day unless given, and at most.
    pub time_limit: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OneOffRefusal {
    #[error("there is no command")]
    NoCommand,
    #[error("the command is longer than {LONGEST_COMMAND} bytes or holds a zero byte")]
    BadCommand,
    #[error("nothing of {app} is live, so there is nothing that the command could run with")]
    NotLive { app: AppName },
    #[error("there is no size {size}; there are {}", known.join(", "))]
    UnknownSize { size: String, known: Vec<String> },
    #[error("{app} has {most} one-off processes already, and more are not allowed (apps.max_one_offs)")]
    TooMany { app: AppName, most: usize },
}

/// Runs a command once, with the slug and the config of the live release.
pub async fn run_once(
    world: &World,
    name: &AppName,
    order: OneOffOrder,
    by: &str,
) -> Result<Result<OneOff, OneOffRefusal>, Trouble> {
    let settings = &world.config.apps;
    let size = order.size.map_or_else(|| DEFAULT_SIZE.to_owned(), |size| size.to_ascii_lowercase());
    if order.command.trim().is_empty() {
        return Ok(Err(OneOffRefusal::NoCommand));
    }
    if order.command.len() > LONGEST_COMMAND || order.command.contains('\0') {
        return Ok(Err(OneOffRefusal::BadCommand));
    }
    let known = settings.size_names();
    if !known.contains(&size) {
        return Ok(Err(OneOffRefusal::UnknownSize { size, known }));
    }
    let (key, now, most, by) = (name.clone(), world.now(), settings.max_one_offs, by.to_owned());
    let made = world
        .commit(move |tx| {
            let app = tx.app(&key)?.filter(|app| app.wanted == Wanted::Running);
            let Some((mut app, release)) = app.and_then(|app| app.live.map(|release| (app, release))) else {
                return Ok(Err(OneOffRefusal::NotLive { app: key }));
            };
            if app.open_one_offs().count() >= most {
                return Ok(Err(OneOffRefusal::TooMany { app: key, most }));
            }
            app.last_one_off = app.last_one_off.checked_add(1).unwrap_or(1);
            let one_off = OneOff {
                number: app.last_one_off,
                release,
                command: order.command,
                size,
                time_limit: order.time_limit.unwrap_or(ONE_OFF_LIMIT).clamp(1, ONE_OFF_LIMIT),
                by,
                asked_at: now,
                stop: false,
                ended: None,
            };
            app.one_offs.push(one_off.clone());
            put_app(tx, &app, now)?;
            let what = OrderKind::Run { app: app.name.clone(), number: one_off.number };
            note_order(tx, app.repository, what, &one_off.by, now)?;
            Ok::<_, StoreError>(Ok(one_off))
        })
        .await?;
    if let Ok(one_off) = &made {
        // What the command says may be private.
        info!(app = %name, "{} asked for run.{} of {name}", one_off.by, one_off.number);
    }
    world.wake.notify_waiters();
    Ok(made)
}

/// Ends a one-off process. `false` when it is over.
pub async fn stop_once(world: &World, name: &AppName, number: u16) -> Result<bool, Trouble> {
    let (key, now) = (name.clone(), world.now());
    let stopped = world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&key)? else { return Ok(false) };
            let open = |one_off: &&mut OneOff| one_off.number == number && one_off.ended.is_none();
            let Some(one_off) = app.one_offs.iter_mut().find(open) else { return Ok(false) };
            one_off.stop = true;
            put_app(tx, &app, now)?;
            Ok::<_, StoreError>(true)
        })
        .await?;
    world.wake.notify_waiters();
    Ok(stopped)
}
