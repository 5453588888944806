//! `.github/landfall.toml`: what a repository says about itself to Landfall, one section for each concern.
//!
//! Two readers, two moments. What decides about people and stages (`[pipeline]`) is read from the default branch only,
//! so a pull request can't change the rules that it is judged by. What belongs to the code (`[build]`, `[web]`,
//! `[tests]`, `[alerts]`) is read from the very tree that is built, and stays with its slug.
//!
//! A key that nobody knows is an error with its line: it is a slip of the pen far more often than a newer version's.

mod alerts;
mod apps;
mod build;
mod pipeline;
mod sources;
mod tests;
mod web;

pub use alerts::{AlertSettings, AlertWords, Limit, alert_rules};
pub use apps::{FolderSettings, StageApp, is_domain};
pub use build::BuildSettings;
pub use pipeline::*;
pub use sources::{RuleLine, RuleSource, merged};
pub use tests::{FILES, FilePatterns, JUNIT, TestSettings, matches_name};
pub use web::{HealthCheck, SleepAfter, WebSettings};

use serde::Deserialize;

/// Where the file lies in a repository.
pub const SETTINGS_FILE: &str = ".github/landfall.toml";
/// The largest file that is read, in bytes.
pub const SETTINGS_LIMIT: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepositorySettings {
    pub pipeline: PipelineSettings,
    pub build: BuildSettings,
    pub web: WebSettings,
    pub tests: TestSettings,
    pub alerts: AlertSettings,
}

/// Why the file is refused: the parser's message, which names line and column and shows the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("larger than {} KiB", SETTINGS_LIMIT / 1024)]
    TooLarge,
    #[error("not UTF-8")]
    NotText,
    #[error("{0}")]
    Malformed(String),
}

impl RepositorySettings {
    pub fn parse(bytes: &[u8]) -> Result<RepositorySettings, SettingsError> {
        if bytes.len() > SETTINGS_LIMIT {
            return Err(SettingsError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| SettingsError::NotText)?;
        let settings: RepositorySettings =
            toml::from_str(text).map_err(|error| SettingsError::Malformed(error.to_string().trim_end().to_owned()))?;
        settings.pipeline.check().map_err(SettingsError::Malformed)?;
        Ok(settings)
    }
}

#[cfg(test)]
mod settings_tests {
    use super::*;

    #[test]
    fn an_empty_file_is_all_defaults_and_a_slip_is_named_with_its_line() {
        assert_eq!(RepositorySettings::parse(b""), Ok(RepositorySettings::default()));
        let error = RepositorySettings::parse(b"[web]\n\n[tsets]\nnodes = 4\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("tsets"), "{error}");
        assert_eq!(RepositorySettings::parse(&[0xff]), Err(SettingsError::NotText));
        assert_eq!(RepositorySettings::parse(&vec![b' '; SETTINGS_LIMIT + 1]), Err(SettingsError::TooLarge));
    }
}
