//! Where an app's requests go.

use super::{HealthCheck, ProcessId, ReleaseNumber, WebSettings};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// Which processes of an app may get requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedRoute {
    pub release: Option<ReleaseNumber>,
    pub targets: Vec<WantedTarget>,
    pub notice: Option<Notice>,
    /// A process is about to come up: requests wait for it.
    #[serde(default)]
    pub hold: bool,
    /// Requests wait, and the first one wakes the app.
    #[serde(default)]
    pub asleep: bool,
    /// A release that gets so many of a hundred requests.
    #[serde(default)]
    pub canary: Option<(ReleaseNumber, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedTarget {
    pub process: ProcessId,
    pub name: String,
    pub release: ReleaseNumber,
    pub state: TargetState,
    /// Since when it is to get nothing new, while it drains.
    #[serde(default)]
    pub drains_since: Option<Timestamp>,
    #[serde(default)]
    pub checks: Checks,
}

/// How a process is found well and made ready, as the code that it runs says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checks {
    pub health: HealthCheck,
    /// How often a process that serves is asked; `None` asks only one that could not be reached.
    pub every_seconds: Option<u64>,
    /// Paths that are asked for before it counts as healthy.
    pub warmup: Vec<String>,
}

impl Checks {
    pub fn of(web: &WebSettings) -> Checks {
        Checks {
            health: web.health.clone(),
            every_seconds: web.health_interval.map(|interval| interval.as_secs().max(1)),
            warmup: web.warmup.clone(),
        }
    }
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
    Asleep,
    /// Whatever runs.
    Maintenance,
}
