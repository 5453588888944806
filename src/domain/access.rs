//! Whether an app is open to everybody, and if not, to whom.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// Whoever knows the address.
    #[default]
    Public,
    /// Who knows the password.
    Password,
    /// Who may read the repository on GitHub.
    Github,
}

/// What somebody set for one app, or for all review apps of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessSetting {
    /// Instead of what the repository's policy and the operator say.
    pub mode: Option<AccessMode>,
    /// Counts changes of the password.
    pub epoch: u32,
}
