//! `scripts.test-setup`, done once for all nodes that would do the same.

use super::{ProcessId, RepositoryId, RunNumber, SlugDigest};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// What a preparation is made from: for whom (`t`, or `u` for a stranger's code), and 32 hex digits of a SHA-256 over the
/// code's bytes, the script and the variables that it sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PreparationKey(pub String);

/// The script on one slug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    pub key: PreparationKey,
    pub repository: RepositoryId,
    /// The run that asked first. No run asks twice.
    pub run: RunNumber,
    pub state: PreparationState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PreparationState {
    Running,
    /// The slug that it made.
    Kept {
        slug: SlugDigest,
        at: Timestamp,
    },
    NotKept {
        why: NotKept,
        at: Timestamp,
    },
}

/// Why each node runs the script by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotKept {
    /// `keep_setup = false`.
    Off,
    /// Each node has add-ons of its own, and the script may fill them.
    Addons,
    /// The operator gives tests the machine's network, and what the script reads there is not known.
    Network,
    /// A variable of `generator: secret` is another one on each node.
    Secrets,
    /// It runs in a container image.
    Image,
    /// There is one node, and nothing kept for it.
    OneNode,
    /// It failed, or its time or memory was over.
    Failed,
    /// It left processes, which end with its sandbox.
    LeftProcesses,
    /// It left files in `/tmp`, which end with its sandbox.
    LeftFiles,
    /// What it made can't be a slug.
    NotASlug,
}

impl Preparation {
    pub fn goes_on(&self) -> bool {
        self.state == PreparationState::Running
    }

    pub fn process(&self) -> ProcessId {
        format!("setup.{}.a{}", self.key.0, self.run).parse().expect("hex digits and a number make a process id")
    }
}

/// Where a run's `scripts.test-setup` is done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Setup {
    /// Not said yet, or there is none.
    #[default]
    Open,
    /// On each node, before its tests.
    OnNodes { why: NotKept },
    /// Once for all of them; they wait for it.
    Making { key: PreparationKey },
    /// It was done once, and nodes start from what it made.
    Kept { slug: SlugDigest },
}

impl Setup {
    pub fn is_open(&self) -> bool {
        *self == Setup::Open
    }
}
