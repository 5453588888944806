//! Where an app's requests go.

use super::{ProcessId, ReleaseNumber};
use serde::{Deserialize, Serialize};

/// Which processes of an app may get requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedRoute {
    pub release: Option<ReleaseNumber>,
    pub targets: Vec<WantedTarget>,
    pub notice: Option<Notice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedTarget {
    pub process: ProcessId,
    pub name: String,
    pub release: ReleaseNumber,
    pub state: TargetState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    Warming,
    Active,
    Draining,
}

/// What a visitor is told while nothing serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    Building,
    Held,
    Failed,
    Crashed,
    NoWeb,
}
