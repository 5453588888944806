//! Config vars: who sets them, what holds of them when a release is made, and the rotation of the key that seals them.
//!
//! A change and the deploys that it leads to are written in one transaction, so a kill leaves both or neither. Values
//! are opened in memory only, for a process' environment or for the person who asks; nothing here logs one.

use super::apply::{Fresh, apply, enqueue, note_order};
use super::{Trouble, World};
use crate::domain::*;
use crate::store::{SEALED, StoreError, Transaction};
use crate::vault;
use crate::workflow::{AfterConfig, Chosen, Level, Levels, Settled, after_config, settle};
use std::collections::{BTreeMap, BTreeSet};
use tracing::info;

/// Records that one transaction of a rotation looks at.
const ROTATED_AT_A_TIME: usize = 200;

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Changed {
    /// Names whose values are other ones now.
    pub names: Vec<String>,
    /// Apps that get a new release.
    pub deployed: Vec<AppName>,
}

type Read<'a> = &'a dyn Fn(&ConfigScope) -> Result<Option<ConfigVars>, StoreError>;

fn level(read: Read<'_>, scope: ConfigScope) -> Result<Level, StoreError> {
    let vars = read(&scope)?.unwrap_or_default();
    Ok((scope, vars))
}

/// Everything that may say something about the vars of an app, or of test runs where there is no app.
fn levels(
    read: Read<'_>,
    repository: &Repository,
    stage: ConfigStage,
    part: Part,
    app: Option<&AppName>,
) -> Result<Levels, StoreError> {
    let giver = |stage: ConfigStage, app: Stage| -> Result<Vec<Level>, StoreError> {
        Ok(vec![
            level(read, ConfigScope::Stage(repository.id, stage))?,
            level(read, ConfigScope::App(repository.app_name(AppKey::new(app, part))))?,
        ])
    };
    Ok(Levels {
        stage: level(read, ConfigScope::Stage(repository.id, stage))?,
        own: match app {
            Some(app) => Some(level(read, ConfigScope::App(app.clone()))?),
            None => None,
        },
        staging: giver(ConfigStage::Staging, Stage::Staging)?,
        production: giver(ConfigStage::Production, Stage::Production)?,
    })
}

pub fn config_stage(stage: Stage) -> ConfigStage {
    match stage {
        Stage::Review(_) => ConfigStage::Review,
        Stage::Staging => ConfigStage::Staging,
        Stage::Production => ConfigStage::Production,
    }
}

/// The vars that people set which hold for an app now, sealed.
pub fn chosen(world: &World, app: &App) -> Result<BTreeMap<String, Chosen>, Trouble> {
    let Some(repository) = world.store.repository(app.repository)? else { return Ok(BTreeMap::new()) };
    Ok(chosen_of(&|scope| world.store.config(scope), &repository, app)?)
}

fn chosen_of(read: Read<'_>, repository: &Repository, app: &App) -> Result<BTreeMap<String, Chosen>, StoreError> {
    let mut levels = levels(read, repository, config_stage(app.stage), app.part, Some(&app.name))?;
    if app.untrusted {
        // A stranger's code gets nothing of what was set for the repository's own.
        levels.stage.1.vars.clear();
    }
    Ok(levels.chosen())
}

/// What a release of that slug would have for config now.
pub(super) fn settled(world: &World, app: &App, slug: &Slug) -> Result<Settled, Trouble> {
    let of_addons = super::addons::config_vars(world, &AddonOwner::of(app))?;
    Ok(settle(slug, app, of_addons, chosen(world, app)?))
}

/// What a generated value is sealed for.
fn generated_place(app: &App, name: &str) -> String {
    format!("generated/{}/{name}", app.id)
}

fn open_chosen(world: &World, name: &str, chosen: &Chosen) -> Result<String, Trouble> {
    Ok(world.vault.open_in(&chosen.scope.place(name), &chosen.sealed)?)
}

/// Values of config vars by name, and those that were made for it, sealed.
type Opened = (BTreeMap<String, String>, BTreeMap<String, Sealed>);

/// Opens what was settled; gives the config, and what was made for it and is to be kept.
pub(super) fn open(world: &World, app: &App, settled: Settled) -> Result<Opened, Trouble> {
    let mut config = settled.plain;
    for (name, sealed) in &settled.generated {
        config.insert(name.clone(), world.vault.open_in(&generated_place(app, name), sealed)?);
    }
    let mut generated = BTreeMap::new();
    for name in settled.generate {
        // as on Heroku, `generator: secret` gives 64 hex characters, once for an app.
        let value = world.vault.random_hex(32)?;
        generated.insert(name.clone(), world.vault.seal_in(&generated_place(app, &name), &value)?);
        config.insert(name, value);
    }
    for (name, chosen) in &settled.chosen {
        config.insert(name.clone(), open_chosen(world, name, chosen)?);
    }
    Ok((config, generated))
}

/// The test stage's vars; none for a run of a stranger's code.
pub(super) fn of_tests(world: &World, run: &TestRun) -> Result<BTreeMap<String, String>, Trouble> {
    if run.untrusted {
        return Ok(BTreeMap::new());
    }
    let Some(repository) = world.store.repository(run.repository)? else { return Ok(BTreeMap::new()) };
    let read = |scope: &ConfigScope| world.store.config(scope);
    let chosen = levels(&read, &repository, ConfigStage::Test, Part::OWN, None)?.chosen();
    chosen.iter().map(|(name, chosen)| Ok((name.clone(), open_chosen(world, name, chosen)?))).collect()
}

/// The value of one var, for somebody who asked to see it.
pub fn reveal(world: &World, name: &str, chosen: &Chosen) -> Result<Secret, Trouble> {
    Ok(Secret::new(open_chosen(world, name, chosen)?))
}

/// Sets, takes and unsets names of one scope, all at once; each app whose vars are other ones then gets one new
/// release, or its config with the release that is about to be made.
pub async fn change(
    world: &World,
    repository: &Repository,
    scope: &ConfigScope,
    edit: &ConfigEdit,
    by: &str,
) -> Result<Result<Changed, ConfigError>, Trouble> {
    if let Err(error) = edit.check(scope) {
        return Ok(Err(error));
    }
    let _alone = world.locks.lock(&format!("repository {}", repository.id)).await;
    let now = world.now();
    let before = world.store.config(scope)?.unwrap_or_default();
    let mut after = before.clone();
    for (name, value) in &edit.set {
        let known = before.vars.get(name).map(|var| &var.value);
        // The same value again is no change.
        if let Some(ConfigValue::Sealed { sealed, .. }) = known
            && world.vault.open_in(&scope.place(name), sealed).is_ok_and(|known| known == value.expose())
        {
            continue;
        }
        let sealed = world.vault.seal_in(&scope.place(name), value.expose())?;
        let value = ConfigValue::Sealed { sealed, bytes: value.len() };
        after.vars.insert(name.clone(), ConfigVar { value, set_at: now, by: by.to_owned() });
    }
    for (name, stage) in &edit.take {
        let value = ConfigValue::From { stage: *stage };
        if before.vars.get(name).is_none_or(|var| var.value != value) {
            after.vars.insert(name.clone(), ConfigVar { value, set_at: now, by: by.to_owned() });
        }
    }
    for name in &edit.unset {
        after.vars.remove(name);
    }
    if after.bytes() > CONFIG_LIMIT {
        return Ok(Err(ConfigError::TooLarge { bytes: after.bytes() }));
    }
    let names: Vec<String> =
        edit.names().filter(|name| before.vars.get(*name) != after.vars.get(*name)).cloned().collect();
    if names.is_empty() {
        return Ok(Ok(Changed { names, deployed: Vec::new() }));
    }
    let (repository, scope, by) = (repository.clone(), scope.clone(), by.to_owned());
    let summary = format!("{by} changed {} of {scope}", names.join(", "));
    let deployed = world
        .commit(move |tx| {
            // A rotation of the key may have sealed the others anew since they were read.
            let mut vars = tx.config(&scope)?.unwrap_or_default();
            let old = running(tx, &repository)?;
            for name in &names {
                match after.vars.get(name) {
                    Some(var) => vars.vars.insert(name.clone(), var.clone()),
                    None => vars.vars.remove(name),
                };
            }
            tx.put_config(&scope, &vars)?;
            let of = match &scope {
                ConfigScope::Stage(_, stage) => stage.to_string(),
                ConfigScope::App(app) => app.to_string(),
            };
            let what = OrderKind::Config { scope: of, names: names.clone() };
            note_order(tx, repository.id, what, &by, now)?;
            let new = running(tx, &repository)?;
            let mut deployed = Vec::new();
            for ((app, old), (_, new)) in old.into_iter().zip(new) {
                let changed: Vec<String> = old
                    .keys()
                    .chain(new.keys())
                    .filter(|name| old.get(*name) != new.get(*name))
                    .cloned()
                    .collect::<BTreeSet<String>>()
                    .into_iter()
                    .collect();
                if changed.is_empty() {
                    continue;
                }
                let mut releases = BTreeMap::new();
                for number in app.live.into_iter().chain(app.newest().and_then(concerned)) {
                    releases.extend(tx.release(&app.name, number)?.map(|release| (number, release)));
                }
                match after_config(&app, changed, &by, |number| releases.get(&number).cloned()) {
                    AfterConfig::Deploy(change) => {
                        apply(tx, &repository, &[*change], Fresh { app_ids: Vec::new() }, now)?;
                        deployed.push(app.name);
                    }
                    AfterConfig::Look => enqueue(tx, &Subject::App(app.name), now)?,
                }
            }
            Ok::<_, StoreError>((names, deployed))
        })
        .await
        .map(|(names, deployed)| Changed { names, deployed })?;
    info!("{summary}");
    world.wake.notify_waiters();
    Ok(Ok(deployed))
}

/// The release whose slug a deploy that is not over has, or goes back to.
fn concerned(deploy: &Deploy) -> Option<ReleaseNumber> {
    match (&deploy.cause, deploy.release) {
        (_, Some(number)) => Some(number),
        (Cause::Rollback { to, .. }, None) => Some(*to),
        _ => None,
    }
}

type Running = Vec<(App, BTreeMap<String, Chosen>)>;

/// The repository's apps that should run, each with the vars that hold for it now.
fn running(tx: &Transaction<'_>, repository: &Repository) -> Result<Running, StoreError> {
    let read = |scope: &ConfigScope| tx.config(scope);
    let apps = tx.apps_of(repository.id)?.into_iter().filter(|app| app.wanted == Wanted::Running);
    apps.map(|app| {
        let chosen = chosen_of(&read, repository, &app)?;
        Ok((app, chosen))
    })
    .collect()
}

/// What a rotation came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rotated {
    /// The number of the new key.
    pub key: u32,
    pub resealed: usize,
    /// Keys that nothing needs any more and that are gone.
    pub retired: Vec<u32>,
}

/// Makes a new key and seals everything with it. Cut off anywhere, all keys that anything needs are still there, and
/// the next rotation finishes what this one did not.
pub async fn rotate(world: &World, by: &str) -> Result<Rotated, Trouble> {
    let _alone = world.locks.lock("rotate").await;
    let key = world.vault.rotate()?;
    info!(key, "{by} rotated the vault's key");
    let mut resealed = 0;
    for table in SEALED {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (vault, from) = (world.vault.clone(), after.clone());
            let (last, count) = world
                .commit(move |tx| {
                    let mut count = 0;
                    let last = tx.rewrite_texts(table, from.as_deref(), ROTATED_AT_A_TIME, &mut |text| {
                        // Neither sealed by a numbered key, nor long enough to be sealed by the first one.
                        if vault::key_of(text).is_none() && text.len() < 38 {
                            return None;
                        }
                        // What does not open stays as it is: it is nothing that a key of ours could mend.
                        let fresh = vault.reseal(&Sealed(text.to_owned())).ok().flatten()?;
                        count += 1;
                        Some(fresh.0)
                    })?;
                    Ok::<_, StoreError>((last, count))
                })
                .await?;
            resealed += count;
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
    }
    let needed = world
        .commit(|tx| {
            let mut needed = BTreeSet::new();
            for table in SEALED {
                let mut after: Option<Vec<u8>> = None;
                while let Some(last) = tx.rewrite_texts(table, after.as_deref(), ROTATED_AT_A_TIME, &mut |text| {
                    needed.extend(vault::key_of(text));
                    None
                })? {
                    after = Some(last);
                }
            }
            Ok::<_, StoreError>(needed)
        })
        .await?;
    let retired = world.vault.retire(&needed)?;
    Ok(Rotated { key, resealed, retired })
}

/// One var of an app, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Var {
    pub name: String,
    pub from: From,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    Set(Chosen),
    Generated(Sealed),
    Manifest(String),
    Addon(String),
    Buildpack(String),
}

/// What a release of the app's newest slug would have for config now, by name.
pub fn of_app(world: &World, app: &App) -> Result<Vec<Var>, Trouble> {
    let number = app.newest().and_then(|deploy| deploy.release).or(app.live);
    let release = number.map(|number| world.store.release(&app.name, number)).transpose()?.flatten();
    let slug = release.map(|release| world.store.slug(&release.slug)).transpose()?.flatten();
    let mut vars: BTreeMap<String, From> = BTreeMap::new();
    let chosen = match &slug {
        Some(slug) => {
            let settled = settled(world, app, slug)?;
            let of_addons = super::addons::config_vars(world, &AddonOwner::of(app))?;
            for (name, value) in settled.plain {
                let from = if of_addons.get(&name) == Some(&value) {
                    From::Addon
                } else if slug.config_vars.get(&name) == Some(&value) {
                    From::Buildpack
                } else {
                    From::Manifest
                };
                vars.insert(name, from(value));
            }
            vars.extend(settled.generated.into_iter().map(|(name, sealed)| (name, From::Generated(sealed))));
            settled.chosen
        }
        None => chosen(world, app)?,
    };
    vars.extend(chosen.into_iter().map(|(name, chosen)| (name, From::Set(chosen))));
    Ok(vars.into_iter().map(|(name, from)| Var { name, from }).collect())
}

pub fn value_of(world: &World, app: &App, var: &Var) -> Result<Secret, Trouble> {
    Ok(Secret::new(match &var.from {
        From::Set(chosen) => open_chosen(world, &var.name, chosen)?,
        From::Generated(sealed) => world.vault.open_in(&generated_place(app, &var.name), sealed)?,
        From::Manifest(value) | From::Addon(value) | From::Buildpack(value) => value.clone(),
    }))
}
