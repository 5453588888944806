//! Config vars and formations as pages and the API show them. Values only where somebody asked to see them.

use crate::domain::*;
use crate::reconcile::{World, config};
use crate::web::problem::Problem;
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct ConfigLine {
    pub name: String,
    /// Who says so: `app`, `stage`, `generated` (by `app.json`), `app.json` or `buildpack`; of a name that is taken the
    /// stage that it comes from.
    pub level: &'static str,
    /// The stage that the value is taken from.
    pub taken: bool,
    /// The value, where it was asked for; `null` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FormationLine {
    #[serde(rename = "type")]
    pub kind: String,
    pub quantity: u16,
    pub size: String,
    pub memory_mb: u64,
    pub cpu_millis: u64,
    pub command: String,
}

/// All vars that the app's next release has, by name.
pub fn config_of_app(world: &World, app: &App, reveal: bool) -> Result<Vec<ConfigLine>, Problem> {
    let lines = config::of_app(world, app)?.into_iter().map(|var| {
        let own = ConfigScope::App(app.name.clone());
        let (level, taken) = match &var.from {
            config::From::Set(chosen) if chosen.scope == own => ("app", false),
            config::From::Set(chosen) => match &chosen.scope {
                ConfigScope::Stage(_, stage) if *stage == config::config_stage(app.stage) => ("stage", false),
                ConfigScope::Stage(_, stage) => (stage.word(), true),
                ConfigScope::App(name) if name.as_str().ends_with("-staging") => ("staging", true),
                ConfigScope::App(_) => ("production", true),
            },
            config::From::Generated(_) => ("generated", false),
            config::From::Manifest(_) => ("app.json", false),
            config::From::Addon(_) => ("add-on", false),
            config::From::Buildpack(_) => ("buildpack", false),
        };
        let value = if reveal { Some(config::value_of(world, app, &var)?.expose().to_owned()) } else { None };
        Ok(ConfigLine { name: var.name, level, taken, value })
    });
    lines.collect()
}

pub fn config_of_stage(
    world: &World,
    repository: &Repository,
    stage: ConfigStage,
    reveal: bool,
) -> Result<Vec<ConfigLine>, Problem> {
    let scope = ConfigScope::Stage(repository.id, stage);
    let vars = world.store.config(&scope)?.unwrap_or_default();
    let lines = vars.vars.into_iter().map(|(name, var)| match var.value {
        ConfigValue::From { stage } => Ok(ConfigLine { name, level: stage.word(), taken: true, value: None }),
        ConfigValue::Sealed { sealed, .. } => {
            let chosen = crate::workflow::Chosen { scope: scope.clone(), sealed };
            let value = if reveal { Some(config::reveal(world, &name, &chosen)?.expose().to_owned()) } else { None };
            Ok(ConfigLine { name, level: "stage", taken: false, value })
        }
    });
    lines.collect()
}

/// What the live release runs, or would: every process type, those with none too.
pub fn formation(world: &World, app: &App) -> Result<Vec<FormationLine>, Problem> {
    let number = app.live.or_else(|| app.newest().and_then(|deploy| deploy.release));
    let release = number.map(|number| world.store.release(&app.name, number)).transpose()?.flatten();
    let Some(release) = release else { return Ok(Vec::new()) };
    let running = app.formation_of(&release);
    let kinds = release.process_types.iter().filter(|(kind, command)| is_scalable(kind) && !command.is_empty());
    Ok(kinds
        .map(|(kind, command)| {
            let scale = running.get(kind).or_else(|| app.formation.as_ref()?.get(kind));
            let size = scale.map_or_else(|| DEFAULT_SIZE.to_owned(), |scale| scale.size.clone());
            let limits = world.config.apps.size(&size);
            FormationLine {
                kind: kind.clone(),
                quantity: running.get(kind).map_or(0, |scale| scale.quantity),
                memory_mb: limits.memory_mb,
                cpu_millis: limits.cpu_millis,
                size,
                command: command.clone(),
            }
        })
        .collect())
}
