//! One commit's tests on N nodes, ending in a verdict.

use super::{Ended, Failure, Part, ProcessId, PullNumber, RepositoryId, RunNumber, Setup, Sha};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Begins a line of output that begins a phase, as buildpacks write it.
pub const PHASE: &str = "-----> ";

/// A file that is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub node: u16,
    /// What it is called on disk and in addresses: nothing of its path.
    pub id: String,
    /// Below the root of the code.
    pub path: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRun {
    pub number: RunNumber,
    pub repository: RepositoryId,
    /// Numbered per repository, as people count.
    pub ordinal: u64,
    pub pull: Option<PullNumber>,
    /// The folder whose tests it runs.
    #[serde(default)]
    pub part: Part,
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
    /// Of a run whose files are dealt to its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitSummary>,
    /// Only the files that failed in that run are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_failed_of: Option<RunNumber>,
    /// It does again what a node of another run did, for a person to look at; nobody else is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeated>,
    /// It tests a stranger's code: it gets nothing secret.
    #[serde(default)]
    pub untrusted: bool,
    /// Where `scripts.test-setup` is done.
    #[serde(default, skip_serializing_if = "Setup::is_open")]
    pub setup: Setup,
}

/// Of a run's record only what tells which run it is and how it stands: a record may be large.
#[derive(Debug, Clone, Deserialize)]
pub struct RunOutline {
    pub number: RunNumber,
    pub repository: RepositoryId,
    pub pull: Option<PullNumber>,
    #[serde(default)]
    pub part: Part,
    pub commit: Sha,
    pub tree: Option<Sha>,
    pub verdict: Option<VerdictOutline>,
    #[serde(default)]
    pub only_failed_of: Option<RunNumber>,
    #[serde(default)]
    pub repeats: Option<Repeated>,
    #[serde(default)]
    pub untrusted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VerdictOutline {
    Passed,
    #[serde(other)]
    Other,
}

/// A node of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    pub run: RunNumber,
    pub node: u16,
    /// How many nodes that run had.
    pub nodes: u16,
}

/// What came of the files that were dealt. The numbers are files, or what the runner takes for one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SplitSummary {
    pub planned: u64,
    pub passed: u64,
    /// They ran and hold no test.
    pub empty: u64,
    /// They failed, and passed when they were run again; counted among the passed.
    pub flaky: u64,
    pub red: u64,
    /// The first of them.
    pub red_files: Vec<RedFile>,
    pub flaky_files: Vec<String>,
    /// Tests that their runner itself repeated until they passed.
    pub flaky_tests: Vec<String>,
    /// Tests that failed and are held in quarantine.
    pub quarantined: Vec<String>,
    pub slowest: Vec<FileTime>,
    /// From the start of the run's nodes to the last result.
    pub makespan_ms: u64,
    /// What no dealing could have ended before, with what is known now.
    pub bound_ms: u64,
    /// What one node would have needed.
    pub one_node_ms: u64,
    /// Batches that were dealt.
    pub batches: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedFile {
    pub path: String,
    pub why: RedBecause,
    /// It was red in the newest run of the default branch too.
    #[serde(default)]
    pub on_base: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedBecause {
    Failed,
    /// Its command ended and left no result of it.
    Missing,
    Crashed,
    TimedOut,
    /// It was cut, and its parts did not make up the whole.
    Incomplete,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTime {
    pub path: String,
    pub wall_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cancelled {
    Newer {
        commit: Sha,
    },
    Closed,
    /// The merge queue no longer asks.
    Dequeued,
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
    /// Counted from its results, else from what it printed in the Test Anything Protocol, where it did.
    pub counts: Option<Counts>,
    pub failures: Vec<TestFailure>,
    /// The last lines that it printed.
    pub tail: Vec<String>,
    /// Whether `scripts.test-setup` failed: then no test ran.
    pub setup_failed: bool,
    /// It was said where its results are, and there are none that speak for a pass.
    #[serde(default)]
    pub unproven: bool,
}

impl NodeResult {
    /// Green needs all: a zero exit, no failed test in what was reported, and a report where one was promised.
    pub fn passed(&self) -> bool {
        self.ended.is_success()
            && !self.unproven
            && self.failures.is_empty()
            && self.counts.is_none_or(|counts| counts.failed == 0)
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
    /// Nothing that changed concerns the folder, so nothing was run.
    Untouched,
}

impl Verdict {
    pub fn is_green(&self) -> bool {
        matches!(self, Verdict::Passed | Verdict::Reused { .. } | Verdict::NoTests | Verdict::Untouched)
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
    /// A run that is yet to begin. Its number among its repository's is whoever writes it down to give.
    pub fn new(
        number: RunNumber,
        repository: RepositoryId,
        pull: Option<PullNumber>,
        part: Part,
        branch: String,
        commit: Sha,
        at: Timestamp,
    ) -> TestRun {
        TestRun {
            number,
            repository,
            ordinal: 0,
            pull,
            part,
            branch,
            commit,
            tree: None,
            created_at: at,
            started_at: None,
            nodes: 0,
            results: BTreeMap::new(),
            cancelled: None,
            verdict: None,
            finished_at: None,
            split: None,
            only_failed_of: None,
            repeats: None,
            untrusted: false,
            setup: Setup::Open,
        }
    }

    /// Whether it goes on, and ends when the tests of a pull request, or else of a branch, are to. What a person asked to see
    /// again is a person's to end.
    pub fn is_ended_with(&self, pull: Option<PullNumber>, branch: &str) -> bool {
        let same = match pull {
            Some(_) => self.pull == pull,
            None => self.pull.is_none() && self.branch == branch,
        };
        same && self.verdict.is_none() && self.cancelled.is_none() && self.repeats.is_none()
    }

    pub fn state(&self) -> RunState {
        match &self.verdict {
            Some(Verdict::Passed | Verdict::Reused { .. } | Verdict::NoTests | Verdict::Untouched) => {
                RunState::Succeeded
            }
            Some(Verdict::Failed) => RunState::Failed,
            Some(Verdict::Errored { .. }) => RunState::Errored,
            Some(Verdict::Cancelled) => RunState::Cancelled,
            None if self.started_at.is_some() => RunState::Running,
            None if self.tree.is_some() => RunState::Building,
            None => RunState::Pending,
        }
    }

    /// Whether its commit is not to be tested again by itself: what somebody ended by hand stays ended.
    pub fn stands(&self) -> bool {
        matches!(self.cancelled, None | Some(Cancelled::By { .. }))
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
