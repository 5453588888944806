//! One commit's tests on N nodes, ending in a verdict.

use super::{Ended, Failure, ProcessId, PullNumber, RepositoryId, RunNumber, Sha};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRun {
    pub number: RunNumber,
    pub repository: RepositoryId,
    /// Numbered per repository, as people count.
    pub ordinal: u64,
    pub pull: Option<PullNumber>,
    pub branch: String,
    pub commit: Sha,
    pub tree: Option<Sha>,
    pub created_at: Timestamp,
    /// When the nodes were planned, and how many.
    pub started_at: Option<Timestamp>,
    pub nodes: u16,
    pub results: BTreeMap<u16, NodeResult>,
    /// A newer commit of its branch, a closed pull request or a person ended it.
    pub cancelled: Option<Cancelled>,
    pub verdict: Option<Verdict>,
    pub finished_at: Option<Timestamp>,
    /// It tests a stranger's code: it gets nothing secret.
    #[serde(default)]
    pub untrusted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cancelled {
    Newer {
        commit: Sha,
    },
    Closed,
    /// The app may not look at the repository any more.
    GrantEnded,
    By {
        login: String,
    },
}

/// What one node did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeResult {
    pub process: ProcessId,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub ended: Ended,
    /// Counted from what it printed in the Test Anything Protocol, where it did.
    pub counts: Option<Counts>,
    pub failures: Vec<TestFailure>,
    /// The last lines that it printed.
    pub tail: Vec<String>,
    /// Whether `scripts.test-setup` failed: then no test ran.
    pub setup_failed: bool,
}

impl NodeResult {
    /// Green needs both: a zero exit, and no failed test in what was reported.
    pub fn passed(&self) -> bool {
        self.ended.is_success() && self.failures.is_empty() && self.counts.is_none_or(|counts| counts.failed == 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TestFailure {
    pub name: String,
    pub message: String,
    /// Where in the repository, as far as the runner says.
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    /// The same tree passed before, in that run.
    Reused {
        run: RunNumber,
    },
    Failed,
    Errored {
        failure: Failure,
    },
    Cancelled,
    /// The repository declares no tests.
    NoTests,
}

impl Verdict {
    pub fn is_green(&self) -> bool {
        matches!(self, Verdict::Passed | Verdict::Reused { .. } | Verdict::NoTests)
    }
}

/// Derived, never stored; the words are Heroku CI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Pending,
    Building,
    Running,
    Succeeded,
    Failed,
    Errored,
    Cancelled,
}

impl TestRun {
    pub fn state(&self) -> RunState {
        match &self.verdict {
            Some(Verdict::Passed | Verdict::Reused { .. } | Verdict::NoTests) => RunState::Succeeded,
            Some(Verdict::Failed) => RunState::Failed,
            Some(Verdict::Errored { .. }) => RunState::Errored,
            Some(Verdict::Cancelled) => RunState::Cancelled,
            None if self.started_at.is_some() => RunState::Running,
            None if self.tree.is_some() => RunState::Building,
            None => RunState::Pending,
        }
    }

    pub fn counts(&self) -> Counts {
        self.results.values().filter_map(|result| result.counts).fold(Counts::default(), |sum, counts| Counts {
            passed: sum.passed + counts.passed,
            failed: sum.failed + counts.failed,
            skipped: sum.skipped + counts.skipped,
        })
    }

    pub fn process_id(&self, node: u16, attempt: u32) -> ProcessId {
        format!("run-{}.test.{node}.a{attempt}", self.number).parse().expect("numbers make a process id")
    }
}
