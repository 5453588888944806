//! How apps are closed to the public, and with which password.
//!
//! Passwords and keys follow from one sealed secret of the installation, from an identity and from how often they were
//! changed; so there is nothing to make before the first visitor, and a copy of the store gives none of them away.

use super::{Trouble, World, act};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::router;
use crate::store::StoreError;
use crate::vault::derived;
use std::sync::atomic::Ordering;

/// What an app's visitors need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub mode: AccessMode,
    /// `None` where none lets in.
    pub password: Option<Secret>,
}

fn scope_of_app(app: &AppName) -> String {
    format!("app/{app}")
}

fn scope_of_pipeline(repository: RepositoryId) -> String {
    format!("pipeline/{repository}")
}

/// The installation's secret, made when it is needed first.
pub(super) async fn ensure_secret(world: &World) -> Result<(), Trouble> {
    if world.store.access_secret()?.is_none() {
        let sealed = world.vault.seal_in("access", &world.vault.random_hex(32)?)?;
        world
            .commit(move |tx| match tx.access_secret()? {
                Some(_) => Ok(()),
                None => tx.put_access_secret(&sealed),
            })
            .await?;
    }
    Ok(())
}

fn secret(world: &World) -> Result<Option<String>, Trouble> {
    world.store.access_secret()?.map(|sealed| Ok(world.vault.open_in("access", &sealed)?)).transpose()
}

/// Whether people can log in at GitHub here.
fn can_log_in(world: &World) -> bool {
    world.config.github.client_id.is_some() && world.config.github.client_secret.is_some()
}

/// How an app is closed: by what was set for it, else for its pipeline, else by the repository's policy, else by the
/// operator. Staging and production are closed only where somebody said so of them.
pub fn of(world: &World, app: &App) -> Result<Option<Closed>, Trouble> {
    let own = world.store.access_setting(&scope_of_app(&app.name))?.unwrap_or_default();
    let of_pipeline = world.store.access_setting(&scope_of_pipeline(app.repository))?.unwrap_or_default();
    let mode = match (own.mode, app.stage) {
        (Some(mode), _) => mode,
        (None, Stage::Review(_)) => {
            let policy = world.store.pipeline(app.repository)?.policy.review.access;
            of_pipeline.mode.or(policy).unwrap_or(world.config.apps.review_access)
        }
        (None, Stage::Staging | Stage::Production) => AccessMode::Public,
    };
    // Where nobody can log in, the password is what is left: closed stays closed.
    let by_password = mode == AccessMode::Password || (mode == AccessMode::Github && !can_log_in(world));
    if mode == AccessMode::Public {
        return Ok(None);
    }
    let Some(secret) = secret(world)? else { return Ok(Some(Closed { mode, password: None })) };
    // An app with a setting of its own has a password of its own.
    let whose = match own == AccessSetting::default() {
        true => format!("password pipeline {} {}", app.repository, of_pipeline.epoch),
        false => format!("password app {} {}", app.id, own.epoch),
    };
    let password = by_password.then(|| Secret::new(&derived(&secret, &whose)[..24]));
    Ok(Some(Closed { mode, password }))
}

/// The key that signs an app's cookies and tickets: another one after each change of a password.
pub fn key(world: &World, app: &App) -> Result<Option<String>, Trouble> {
    let own = world.store.access_setting(&scope_of_app(&app.name))?.unwrap_or_default().epoch;
    let of_pipeline = world.store.access_setting(&scope_of_pipeline(app.repository))?.unwrap_or_default().epoch;
    let label = format!("key {} {own} {of_pipeline}", app.id);
    Ok(secret(world)?.map(|secret| derived(&secret, &label)))
}

/// What the router is told.
pub(super) fn for_router(world: &World, app: &App) -> Result<Option<router::Access>, Trouble> {
    let Some(closed) = of(world, app)? else { return Ok(None) };
    // Without a secret nobody is let in: an empty key signs nothing that anybody holds.
    let Some(key) = key(world, app)? else { return Err(Trouble::bug("no secret to close apps with")) };
    let password = closed.password.as_ref().map(|password| router::seal_password(&key, password.expose()));
    let sign_in = (closed.mode == AccessMode::Github && can_log_in(world)).then(|| world.config.page("/login/app"));
    Ok(Some(router::Access { key, password, sign_in }))
}

/// For whom access is set.
pub enum Whose<'a> {
    App(&'a App),
    Pipeline(&'a Repository),
}

/// Sets how an app, or a pipeline's review apps, are closed (`None`: as the policy says), and changes the password where
/// that is asked for. The router knows when this returns.
pub async fn set(
    world: &World,
    whose: Whose<'_>,
    mode: Option<Option<AccessMode>>,
    rotate: bool,
    by: &str,
) -> Result<AccessSetting, Trouble> {
    let scope = match &whose {
        Whose::App(app) => scope_of_app(&app.name),
        Whose::Pipeline(repository) => scope_of_pipeline(repository.id),
    };
    tracing::info!(%scope, ?mode, rotate, "{by} set who may see {scope}");
    // Set first: nobody may be left to send the table once this is written.
    world.table_is_stale.store(true, Ordering::Release);
    let setting = world
        .commit(move |tx| {
            let mut setting = tx.access_setting(&scope)?.unwrap_or_default();
            setting.mode = mode.unwrap_or(setting.mode);
            setting.epoch += u32::from(rotate);
            tx.put_access_setting(&scope, &setting)?;
            Ok::<AccessSetting, StoreError>(setting)
        })
        .await?;
    apply(world).await?;
    Ok(setting)
}

/// Tells the router what holds now.
pub(super) async fn apply(world: &World) -> Result<(), Trouble> {
    let _alone = world.locks.lock("router table").await;
    act::send_table(world).await
}

/// A ticket into an app for somebody who may read its repository, as an address of the app.
pub fn entrance(world: &World, app: &App, to: &str, bind: &str, now: Timestamp) -> Result<Option<String>, Trouble> {
    let Some(key) = key(world, app)?.filter(|_| router::is_own_path(to)) else { return Ok(None) };
    let ticket = router::ticket(&key, &app.name, to, bind, now);
    let address = world.app_url(&app.name);
    let to: String = to
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    Ok(Some(format!("{}/.landfall/enter?ticket={ticket}&to={to}", address.trim_end_matches('/'))))
}
