//! What holds for a repository's stages at this moment: the policy of its default branch, and what people said in
//! between: locks, a freeze, a promotion that waits for a second person.

use super::{AppName, Part, PipelineSettings, PullNumber, ReleaseNumber, RepositoryId, Sha};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineState {
    pub repository: RepositoryId,
    /// The last one that could be read.
    pub policy: PipelineSettings,
    /// The commit whose file was looked at last.
    #[serde(default)]
    pub read_at: Option<Sha>,
    /// Why that commit's file is refused: then an earlier one's policy holds.
    #[serde(default)]
    pub error: Option<String>,
    /// The text of the file that was read last and could be.
    #[serde(default)]
    pub file: String,
    /// What somebody set on the dashboard, of which the file's word is the stronger one.
    #[serde(default)]
    pub dashboard: DashboardRules,
    #[serde(default)]
    pub locks: Vec<Lock>,
    #[serde(default)]
    pub freeze: Option<Freeze>,
    /// Promotions that wait for a second person, one for each app of production at most.
    #[serde(default)]
    pub promotions: Vec<PendingPromotion>,
}

impl PipelineState {
    pub fn new(repository: RepositoryId) -> PipelineState {
        PipelineState {
            repository,
            policy: PipelineSettings::default(),
            read_at: None,
            error: None,
            file: String::new(),
            dashboard: DashboardRules::default(),
            locks: Vec::new(),
            freeze: None,
            promotions: Vec::new(),
        }
    }

    pub fn lock(&self, stage: StageKind) -> Option<&Lock> {
        self.locks.iter().find(|lock| lock.stage == stage)
    }
}

/// Rules in the form of the file, by nobody where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DashboardRules {
    pub text: String,
    pub by: Option<String>,
    pub at: Option<Timestamp>,
}

/// A stage as people name it, without the pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    Review,
    Staging,
    Production,
}

/// Nothing is deployed to the stage until somebody unlocks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub stage: StageKind,
    pub reason: String,
    pub by: String,
    pub at: Timestamp,
}

/// Nothing is promoted until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    pub until: Timestamp,
    pub reason: String,
    pub by: String,
}

/// A promotion that was asked for and needs a second person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingPromotion {
    pub from: AppName,
    /// Which app of production it is for.
    #[serde(default)]
    pub to: Part,
    pub release: ReleaseNumber,
    pub by: String,
    pub pull: PullNumber,
    pub comment: u64,
    pub place: u16,
    pub at: Timestamp,
    /// What else was asked for: who says so too must say the same.
    #[serde(default)]
    pub canary: Option<(u8, u64)>,
    #[serde(default)]
    pub hotfix: Option<String>,
}

/// What went to production with one deploy, as GitHub told it: the commits after those of the deploy before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    pub app: AppName,
    pub release: ReleaseNumber,
    /// What served before; `None` for the first.
    pub from: Option<Sha>,
    pub to: Sha,
    pub at: Timestamp,
    pub commits: u64,
    pub pulls: Vec<ShippedPull>,
    /// Logins, each once.
    pub authors: Vec<String>,
    /// Whether GitHub listed less than there is.
    pub cut: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShippedPull {
    pub number: PullNumber,
    pub title: String,
    pub author: String,
    pub merged_at: Option<Timestamp>,
}
