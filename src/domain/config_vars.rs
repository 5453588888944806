//! Config vars: what an app is told besides its code, at two levels, the pipeline's stage and the app itself.
//!
//! A release takes what holds at the moment it is made, and keeps that. Later levels win: the buildpack's defaults,
//! `app.json`, the stage, the app's own. A review app may be given a var of staging, or of production, by its name and
//! in no other way.

use super::{AppName, RepositoryId, Sealed, is_reserved_variable, is_variable_name};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A stage that has vars of its own; tests are one, although no app stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigStage {
    Review,
    Staging,
    Production,
    Test,
}

impl ConfigStage {
    pub const ALL: [ConfigStage; 4] =
        [ConfigStage::Review, ConfigStage::Staging, ConfigStage::Production, ConfigStage::Test];

    pub fn word(self) -> &'static str {
        match self {
            ConfigStage::Review => "review",
            ConfigStage::Staging => "staging",
            ConfigStage::Production => "production",
            ConfigStage::Test => "test",
        }
    }
}

impl fmt::Display for ConfigStage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

impl FromStr for ConfigStage {
    type Err = super::InvalidId;

    fn from_str(text: &str) -> Result<ConfigStage, super::InvalidId> {
        ConfigStage::ALL.into_iter().find(|stage| stage.word() == text).ok_or_else(|| super::InvalidId {
            value: text.chars().take(100).collect(),
            expected: "a stage (review, staging, production or test)",
        })
    }
}

/// Whose vars.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigScope {
    Stage(RepositoryId, ConfigStage),
    App(AppName),
}

impl ConfigScope {
    /// What a value of that name is sealed for.
    pub fn place(&self, name: &str) -> String {
        format!("config/{self}/{name}")
    }
}

impl fmt::Display for ConfigScope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigScope::Stage(repository, stage) => write!(formatter, "stage:{repository}:{stage}"),
            ConfigScope::App(app) => write!(formatter, "app:{app}"),
        }
    }
}

/// All vars of one scope.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigVars {
    pub vars: BTreeMap<String, ConfigVar>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigVar {
    pub value: ConfigValue,
    pub set_at: Timestamp,
    pub by: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ConfigValue {
    /// Its length in bytes is kept beside it, so that limits are known without opening it.
    Sealed { sealed: Sealed, bytes: usize },
    /// The value that the pipeline's other stage has under the same name.
    From { stage: ConfigStage },
}

/// What somebody wants of the vars of one scope, all at once.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConfigEdit {
    pub set: BTreeMap<String, super::Secret>,
    /// Names whose values come from another stage.
    pub take: BTreeMap<String, ConfigStage>,
    pub unset: Vec<String>,
}

impl ConfigEdit {
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.set.keys().chain(self.take.keys()).chain(&self.unset)
    }
}

/// As on Heroku, names and values of an app together have at most 16 KB.
pub const CONFIG_LIMIT: usize = 16 << 10;

/// Why vars are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name:?} is not a name of a config var (A-Z, a-z, 0-9 and _, no digit first)")]
    InvalidName { name: String },
    #[error("{name} is set by the platform and cannot be changed")]
    Reserved { name: String },
    #[error("the value of {name} holds a zero byte")]
    InvalidValue { name: String },
    #[error("{name} is named twice")]
    Twice { name: String },
    #[error("names and values would have {bytes} bytes together, and {CONFIG_LIMIT} are allowed")]
    TooLarge { bytes: usize },
    #[error("{name} cannot come from {stage}: a review or test var may come from staging or production, by its name")]
    NotFromThere { name: String, stage: ConfigStage },
    #[error("nothing to change was named")]
    Nothing,
}

impl ConfigEdit {
    /// Whether it may be done to that scope at all; sizes are looked at when it is done.
    pub fn check(&self, scope: &ConfigScope) -> Result<(), ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for name in self.names() {
            if !is_variable_name(name) {
                return Err(ConfigError::InvalidName { name: name.chars().take(100).collect() });
            }
            if !seen.insert(name) {
                return Err(ConfigError::Twice { name: name.clone() });
            }
        }
        if seen.is_empty() {
            return Err(ConfigError::Nothing);
        }
        // A name that was set before it was reserved may still be taken away.
        for name in self.set.keys().chain(self.take.keys()) {
            if is_reserved_variable(name) {
                return Err(ConfigError::Reserved { name: name.clone() });
            }
        }
        if let Some((name, _)) = self.set.iter().find(|(_, value)| value.expose().contains('\0')) {
            return Err(ConfigError::InvalidValue { name: name.clone() });
        }
        for (name, stage) in &self.take {
            let giver = matches!(stage, ConfigStage::Staging | ConfigStage::Production);
            let taker = matches!(scope, ConfigScope::Stage(_, ConfigStage::Review | ConfigStage::Test));
            if !giver || !taker {
                return Err(ConfigError::NotFromThere { name: name.clone(), stage: *stage });
            }
        }
        Ok(())
    }
}

impl ConfigVars {
    /// Bytes of names and values; what comes from elsewhere counts there.
    pub fn bytes(&self) -> usize {
        let value = |var: &ConfigVar| match &var.value {
            ConfigValue::Sealed { bytes, .. } => *bytes,
            ConfigValue::From { .. } => 0,
        };
        self.vars.iter().map(|(name, var)| name.len() + value(var)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    #[test]
    fn only_vars_that_an_app_may_have_are_taken() {
        let app = ConfigScope::App("hello-staging".parse().unwrap());
        let review = ConfigScope::Stage(RepositoryId(1), ConfigStage::Review);
        let set = |name: &str, value: &str| ConfigEdit {
            set: [(name.to_owned(), Secret::new(value))].into(),
            ..ConfigEdit::default()
        };
        let take = |stage| ConfigEdit { take: [("TOKEN".to_owned(), stage)].into(), ..ConfigEdit::default() };
        let unset = |names: &[&str]| ConfigEdit {
            unset: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ConfigEdit::default()
        };
        for edit in [set("TOKEN", ""), set("_a1", "x\ny"), unset(&["PORT", "TOKEN"])] {
            assert_eq!(edit.check(&app), Ok(()));
        }
        for stage in [ConfigStage::Staging, ConfigStage::Production] {
            assert_eq!(take(stage).check(&review), Ok(()));
            assert!(matches!(take(stage).check(&app), Err(ConfigError::NotFromThere { .. })));
        }
        assert!(matches!(take(ConfigStage::Review).check(&review), Err(ConfigError::NotFromThere { .. })));
        for name in ["1A", "A-B", "", "Ä", "A=B", "A B", &"A".repeat(129)] {
            assert!(matches!(set(name, "x").check(&app), Err(ConfigError::InvalidName { .. })), "{name}");
        }
        for name in ["PORT", "PATH", "LD_PRELOAD", "HEROKU_APP_NAME", "LANDFALL_URL", "DYNO", "HOME"] {
            assert!(matches!(set(name, "x").check(&app), Err(ConfigError::Reserved { .. })), "{name}");
        }
        assert!(matches!(set("A", "x\0y").check(&app), Err(ConfigError::InvalidValue { .. })));
        assert_eq!(ConfigEdit::default().check(&app), Err(ConfigError::Nothing));
        assert!(matches!(unset(&["A", "A"]).check(&app), Err(ConfigError::Twice { .. })));
    }
}
