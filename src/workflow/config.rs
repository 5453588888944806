//! What holds of an app's config vars when a release is made, and what a change of them leads to.

use super::{Change, ScaleOrder, parse_scale};
use crate::domain::*;
use std::collections::BTreeMap;

/// The vars of one scope, with the scope, for which its values are sealed.
pub type Level = (ConfigScope, ConfigVars);

/// All that may say something about one app's vars, or about a test run's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// The pipeline's stage.
    pub stage: Level,
    /// The app's own; a test run has none.
    pub own: Option<Level>,
    /// What names may be taken from; of several levels the later one wins.
    pub staging: Vec<Level>,
    pub production: Vec<Level>,
}

/// A var that somebody set, still sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// For what it is sealed.
    pub scope: ConfigScope,
    pub sealed: Sealed,
}

impl Levels {
    /// The var of each name that wins. A name that is to come from where there is none has no value.
    pub fn chosen(&self) -> BTreeMap<String, Chosen> {
        let mut chosen = BTreeMap::new();
        for (scope, vars) in std::iter::once(&self.stage).chain(&self.own) {
            for (name, var) in &vars.vars {
                let found = match &var.value {
                    ConfigValue::Sealed { sealed, .. } => Some(Chosen { scope: scope.clone(), sealed: sealed.clone() }),
                    ConfigValue::From { stage: ConfigStage::Staging } => given(&self.staging, name),
                    ConfigValue::From { stage: ConfigStage::Production } => given(&self.production, name),
                    ConfigValue::From { stage: ConfigStage::Review | ConfigStage::Test } => None,
                };
                match found {
                    Some(found) => chosen.insert(name.clone(), found),
                    None => chosen.remove(name),
                };
            }
        }
        chosen
    }
}

fn given(levels: &[Level], name: &str) -> Option<Chosen> {
    levels.iter().rev().find_map(|(scope, vars)| match &vars.vars.get(name)?.value {
        ConfigValue::Sealed { sealed, .. } => Some(Chosen { scope: scope.clone(), sealed: sealed.clone() }),
        ConfigValue::From { .. } => None,
    })
}

/// What a release's config is made of, later parts winning: `plain`, `generated` and `generate`, `chosen`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settled {
    /// The buildpack's defaults, under the values that `app.json` gives.
    pub plain: BTreeMap<String, String>,
    /// Made for this app before.
    pub generated: BTreeMap<String, Sealed>,
    /// To be made now, once for this app.
    pub generate: Vec<String>,
    pub chosen: BTreeMap<String, Chosen>,
    /// Required, and without a value.
    pub missing: Vec<String>,
}

/// Which face of `app.json` an app sees.
pub fn environment_of(stage: Stage) -> Environment {
    match stage {
        Stage::Review(_) => Environment::Review,
        Stage::Staging | Stage::Production => Environment::Plain,
    }
}

/// The buildpack's defaults hold least, then what add-ons give, what `app.json` says, and most what people chose.
pub fn settle(
    slug: &Slug,
    app: &App,
    of_addons: BTreeMap<String, String>,
    chosen: BTreeMap<String, Chosen>,
) -> Settled {
    let environment = slug.manifest().for_environment(environment_of(app.stage));
    let mut settled = Settled { plain: slug.config_vars.clone(), ..Settled::default() };
    settled.plain.extend(of_addons);
    for (name, declared) in &environment.env {
        if chosen.contains_key(name) {
            continue;
        }
        if let Some(sealed) = app.generated.get(name) {
            settled.generated.insert(name.clone(), sealed.clone());
        } else if declared.generator.is_some() {
            settled.generate.push(name.clone());
        } else if let Some(value) = &declared.value {
            settled.plain.insert(name.clone(), value.clone());
        } else if declared.required && !settled.plain.contains_key(name) {
            settled.missing.push(name.clone());
        }
    }
    settled.chosen = chosen;
    settled
}

/// How many of what run at the first release: as the pipeline's rules ask, else as `app.json` says; as on Heroku one web
/// process, and nothing else unless it is told to. At most `most` of all types together, of sizes that are known.
pub fn first_formation(
    slug: &Slug,
    stage: Stage,
    asked: &[String],
    most: u16,
    sizes: &[String],
) -> BTreeMap<String, Scale> {
    let declared = slug.manifest().for_environment(environment_of(stage)).formation;
    let asked: BTreeMap<String, ScaleOrder> = asked.iter().filter_map(|word| parse_scale(word).ok()).collect();
    let mut formation = BTreeMap::new();
    let mut left = most;
    let kinds = slug.process_types.iter().filter(|(kind, command)| is_scalable(kind) && !command.is_empty());
    // Web processes first: where there is not room for all, requests are answered.
    let mut kinds: Vec<&String> = kinds.map(|(kind, _)| kind).collect();
    kinds.sort_by_key(|kind| *kind != "web");
    for kind in kinds {
        let (entry, order) = (declared.get(kind), asked.get(kind));
        let of_rules = order.and_then(|order| order.quantity).map(u32::from);
        let wanted = of_rules.unwrap_or_else(|| entry.map_or(u32::from(kind == "web"), |entry| entry.quantity));
        let quantity = u16::try_from(wanted).unwrap_or(u16::MAX).min(left);
        left -= quantity;
        let of_rules = order.and_then(|order| order.size.clone()).filter(|size| sizes.contains(size));
        let size = of_rules.or_else(|| entry.and_then(|entry| entry.size.clone()));
        let size = size.unwrap_or_else(|| DEFAULT_SIZE.to_owned());
        formation.insert(kind.clone(), Scale { quantity, size });
    }
    formation
}

/// What has to be done about an app whose vars changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterConfig {
    /// The same slug, as a new release.
    Deploy(Box<Change>),
    /// Nothing runs with the old vars and none is about to; what is under way takes the new ones.
    Look,
}

pub fn after_config(
    app: &App,
    names: Vec<String>,
    by: &str,
    release: impl Fn(ReleaseNumber) -> Option<Release>,
) -> AfterConfig {
    let Some(newest) = app.newest() else { return AfterConfig::Look };
    let number = match (&newest.outcome, newest.release, &newest.cause) {
        // It has taken the old vars already, or is going to.
        (None, Some(number), _) => Some(number),
        (None, None, Cause::Rollback { to, .. }) => Some(*to),
        (None, None, _) => None,
        // A first deploy may have failed for want of the right vars.
        (Some(_), number, _) => app.live.or(number),
    };
    match number.and_then(release) {
        Some(release) => AfterConfig::Deploy(Box::new(Change::Deploy {
            key: app.key(),
            commit: release.commit,
            branch: release.branch,
            cause: Cause::Config { slug: release.slug, names },
            by: Some(by.to_owned()),
            after_tests: false,
        })),
        None => AfterConfig::Look,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn vars(scope: ConfigScope, vars: &[(&str, ConfigValue)]) -> Level {
        let var = |value: &ConfigValue| ConfigVar { value: value.clone(), set_at: Timestamp(0), by: "x".to_owned() };
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), var(value))).collect();
        (scope, ConfigVars { vars })
    }

    fn sealed(text: &str) -> ConfigValue {
        ConfigValue::Sealed { sealed: Sealed(text.to_owned()), bytes: text.len() }
    }

    #[test]
    fn the_apps_own_vars_win_and_others_come_by_name_only() {
        let stage = |stage| ConfigScope::Stage(RepositoryId(1), stage);
        let app = |name: &str| ConfigScope::App(name.parse().unwrap());
        let from = |stage| ConfigValue::From { stage };
        let levels = Levels {
            stage: vars(
                stage(ConfigStage::Review),
                &[
                    ("BOTH", sealed("review")),
                    ("TAKEN", from(ConfigStage::Staging)),
                    ("OWN_OF_STAGING", from(ConfigStage::Staging)),
                    ("NAMED", from(ConfigStage::Production)),
                    ("NOWHERE", from(ConfigStage::Production)),
                ],
            ),
            own: Some(vars(app("hello-pr-1"), &[("BOTH", sealed("own"))])),
            staging: vec![
                vars(
                    stage(ConfigStage::Staging),
                    &[("TAKEN", sealed("s1")), ("OWN_OF_STAGING", sealed("s2")), ("SECRET", sealed("s3"))],
                ),
                vars(app("hello-staging"), &[("OWN_OF_STAGING", sealed("s4"))]),
            ],
            production: vec![vars(
                stage(ConfigStage::Production),
                &[("NAMED", sealed("p1")), ("SECRET", sealed("p2")), ("BOTH", sealed("p3"))],
            )],
        };
        let chosen = levels.chosen();
        let shown: Vec<String> =
            chosen.iter().map(|(name, chosen)| format!("{name}={} for {}", chosen.sealed.0, chosen.scope)).collect();
        assert_eq!(
            shown,
            [
                "BOTH=own for app:hello-pr-1",
                "NAMED=p1 for stage:1:production",
                "OWN_OF_STAGING=s4 for app:hello-staging",
                "TAKEN=s1 for stage:1:staging",
            ]
        );
    }
}
