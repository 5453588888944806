//! What a node and the control plane say to each other: frames of JSON with their length before them (four bytes,
//! big-endian).
//!
//! The code under test shares the node's sandbox and may speak here as well as the node does, so nothing that comes from
//! there is believed further than its own lease goes: sizes are bounded here, who speaks is told by the socket.

use super::cases::{CaseWay, Part};
use super::judge::BatchEnd;
use super::knapsack;
use super::presets::Unit;
use super::split::{Item, LeaseId, Outcome, Refusal};
use crate::domain::{Counts, FilePatterns, TestFailure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How a process ends that runs `scripts.test-setup`: the script failed,
pub const STATUS_SETUP_FAILED: u8 = 96;
/// it left processes,
pub const SETUP_LEFT_PROCESSES: u8 = 93;
/// it left files where they end with the sandbox,
pub const SETUP_LEFT_FILES: u8 = 94;
/// or what it made can't be a slug.
pub const SETUP_NOT_A_SLUG: u8 = 95;
/// What the script printed, below the code's root.
pub const SETUP_LOG: &str = ".landfall/test-setup.log";
/// Bytes of one request: the results of a batch.
pub const MOST_REQUEST: usize = 2 << 20;
/// Bytes of one answer: the files of a batch.
pub const MOST_ANSWER: usize = 4 << 20;
/// Failures that are told of one batch.
pub const MOST_FAILURES: usize = 30;
/// Names of flaky or quarantined tests that are told of one batch.
pub const MOST_NAMES: usize = 50;
/// Characters of a name.
const NAME: usize = 300;
/// Characters of a message.
const MESSAGE: usize = 1_500;
/// Items of one batch, so that all that is told of it fits into one request and one record of the store.
pub const MOST_ITEMS: usize = 4_000;
/// Tests of one batch that are counted.
const MOST_TESTS: u64 = 10_000_000;
/// Cases of one batch that are told one by one, and the bytes of all their names.
pub const MOST_CASES: usize = 3_000;
pub const MOST_CASE_BYTES: usize = 128 << 10;
/// Bytes of a kept file in one request, before base64.
pub const KEPT_PIECE: usize = 1 << 20;
/// Files that are kept of one node.
pub const MOST_KEPT_FILES: usize = 1_000;
/// The longest that one batch is said to have taken, in milliseconds: a day.
const MOST_WALL_MS: u64 = 24 * 3_600 * 1_000;

/// How often a node says that it lives, in milliseconds: several times before a lease expires.
pub const BEAT_MS: u64 = 2_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Request {
    /// The first word of a node's process.
    Join,
    Pull,
    Beat {
        lease: LeaseId,
    },
    Done {
        lease: LeaseId,
        done: Done,
    },
    /// Its command was ended on the control plane's word.
    GiveBack {
        lease: LeaseId,
    },
    /// A client that pulls by itself asks for its queue.
    Queue {
        ask: knapsack::Ask,
    },
    /// Seconds that each of its files took.
    Times {
        files: Vec<(String, f64)>,
    },
    /// What is to be read when the tests have ended?
    Wanted,
    /// What a script that ran as it is left as its results.
    Report {
        /// They are whole, hold a test and none that failed.
        green: bool,
        counts: Counts,
        failures: Vec<TestFailure>,
    },
    /// A piece of a file that is to be kept, in base64. Told twice it is the same.
    Keep {
        path: String,
        offset: u64,
        bytes: String,
        last: bool,
    },
}

/// Why a file is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotKept {
    NotAsked,
    BadName,
    TooMany,
    TooLarge,
    OutOfOrder,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Answer {
    Welcome {
        orders: Orders,
    },
    Batch {
        lease: LeaseId,
        items: Vec<(u32, Item)>,
        /// What a start-up is taken to cost.
        start_up_ms: u64,
    },
    /// Ask again after that time.
    Wait {
        milliseconds: u64,
    },
    /// Nothing is left to do. `red`: what this node did holds something that counts as failed.
    Over {
        red: bool,
    },
    /// The lease holds: go on.
    Go,
    /// The lease is over: end its command, give it back, pull anew.
    Stop,
    Taken,
    Refused {
        why: Refusal,
    },
    /// Files of a queue, with what is predicted of each in milliseconds.
    Files {
        lease: LeaseId,
        files: Vec<(String, u64)>,
    },
    /// Nobody has made a queue yet.
    NoQueue,
    Wanted {
        artifacts: Option<FilePatterns>,
        /// Where a script that runs as it is leaves its results.
        junit: Option<String>,
    },
    NotKept {
        why: NotKept,
    },
    /// The control plane can't do it now: say it again.
    Later,
}

/// How batches are run, the same for all of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// With `{files}` and maybe `{junit}` in it.
    pub command: String,
    /// Values may hold `{junit}`.
    pub environment: Vec<(String, String)>,
    /// Where results are if not at `{junit}`: a pattern below the root of the code.
    pub junit: Option<String>,
    pub unit: Unit,
    pub empty_status: Option<i32>,
    pub timeout_ms: Option<u64>,
    pub quarantine: Vec<String>,
    /// How cases of a file can be told, where a file may be cut.
    #[serde(default)]
    pub cases: Option<CaseWay>,
    /// The batches are those of another run's node: nothing of them is dealt again.
    #[serde(default)]
    pub fixed: bool,
}

/// What became of a batch, as its node saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub end: BatchEnd,
    pub wall_ms: u64,
    pub items: Vec<ItemDone>,
    pub counts: Counts,
    pub failures: Vec<Failed>,
    /// Tests that failed without counting.
    pub quarantined: Vec<String>,
    /// Tests that the runner itself ran again until they passed.
    pub flaky: Vec<String>,
    /// Cases of the longest files that passed, with their time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<CaseDone>,
}

/// One test case of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseDone {
    pub item: u32,
    pub key: String,
    pub wall_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemDone {
    pub item: u32,
    pub outcome: Outcome,
    pub wall_ms: u64,
    pub cases: u32,
    /// Of a part of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The item that it belongs to, where that can be told.
    pub item: Option<u32>,
    #[serde(flatten)]
    pub failure: TestFailure,
}

impl Done {
    /// The same without what is not of this lease, or is said twice, and without more time than the lease had.
    pub fn of_lease(mut self, held: &[u32], age_ms: u64) -> Done {
        let mut open: BTreeSet<u32> = held.iter().copied().collect();
        self.cases.retain(|case| open.contains(&case.item));
        self.items.retain(|done| open.remove(&done.item));
        self.wall_ms = self.wall_ms.min(age_ms);
        self.items.iter_mut().for_each(|done| done.wall_ms = done.wall_ms.min(age_ms));
        self
    }

    /// The same within its bounds, and without what contradicts itself: where the command did not end by itself, nothing
    /// passed.
    pub fn bounded(mut self) -> Done {
        self.failures.truncate(MOST_FAILURES);
        self.failures.iter_mut().for_each(|failed| bound(&mut failed.failure));
        for names in [&mut self.quarantined, &mut self.flaky] {
            names.truncate(MOST_NAMES);
            names.iter_mut().for_each(|name| cut(name, NAME));
        }
        self.wall_ms = self.wall_ms.min(MOST_WALL_MS);
        self.items.truncate(MOST_ITEMS);
        for item in &mut self.items {
            item.wall_ms = item.wall_ms.min(self.wall_ms);
            item.cases = item.cases.min(u32::try_from(MOST_TESTS).unwrap_or(u32::MAX));
        }
        let mut room = MOST_CASE_BYTES;
        self.cases.truncate(MOST_CASES);
        self.cases.retain_mut(|case| {
            case.wall_ms = case.wall_ms.min(self.wall_ms);
            let left = room.checked_sub(case.key.len()).filter(|_| !case.key.chars().any(char::is_control));
            room = left.unwrap_or(room);
            left.is_some()
        });
        self.counts = bounded_counts(self.counts);
        let instead = match self.end {
            BatchEnd::Exited { .. } => None,
            BatchEnd::Killed => Some(Outcome::Crashed),
            BatchEnd::TimedOut => Some(Outcome::TimedOut),
        };
        if let Some(instead) = instead {
            self.items.iter_mut().filter(|done| done.outcome.is_green()).for_each(|done| done.outcome = instead);
        }
        self
    }
}

fn cut(text: &mut String, most: usize) {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
    }
}

/// A failure within its bounds.
pub fn bound(failure: &mut TestFailure) {
    cut(&mut failure.name, NAME);
    cut(&mut failure.message, MESSAGE);
    if let Some(file) = &mut failure.file {
        cut(file, NAME);
    }
}

pub fn bounded_counts(counts: Counts) -> Counts {
    let Counts { passed, failed, skipped } = counts;
    Counts { passed: passed.min(MOST_TESTS), failed: failed.min(MOST_TESTS), skipped: skipped.min(MOST_TESTS) }
}

/// A message as a frame; `None` where it is larger than `most`.
pub fn frame(message: &impl Serialize, most: usize) -> Option<Vec<u8>> {
    let body = serde_json::to_vec(message).ok().filter(|body| body.len() <= most)?;
    let mut frame = u32::try_from(body.len()).ok()?.to_be_bytes().to_vec();
    frame.extend(body);
    Some(frame)
}

/// The length of the body that follows; `None` where it is larger than `most`.
pub fn length(head: [u8; 4], most: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(head)).ok().filter(|length| *length <= most)
}

pub fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_a_long_one_is_neither() {
        let request = Request::Beat { lease: LeaseId(7) };
        let bytes = frame(&request, MOST_REQUEST).unwrap();
        let length = length(bytes[..4].try_into().unwrap(), MOST_REQUEST).unwrap();
        assert_eq!(length, bytes.len() - 4);
        assert_eq!(read::<Request>(&bytes[4..]), Some(request));
        assert_eq!(read::<Request>(b"{\"say\":\"rm -rf\"}"), None);
        assert_eq!(super::length([1, 0, 0, 1], MOST_REQUEST), None);
        let long = Answer::Batch { lease: LeaseId(0), items: Vec::new(), start_up_ms: 0 };
        assert_eq!(frame(&long, 10), None);
    }

    #[test]
    fn what_a_node_tells_is_cut_to_its_bounds_and_a_killed_batch_passes_nothing() {
        let failure = TestFailure { name: "ü".repeat(9_000), message: "x".repeat(9_000), file: None, line: None };
        let done = Done {
            end: BatchEnd::Killed,
            wall_ms: u64::MAX,
            items: vec![
                ItemDone { item: 0, outcome: Outcome::Passed, wall_ms: u64::MAX, cases: u32::MAX, part: None };
                9_000
            ],
            counts: Counts { passed: u64::MAX, failed: u64::MAX, skipped: u64::MAX },
            failures: vec![Failed { item: None, failure }; 99],
            quarantined: vec!["n".repeat(999); 99],
            flaky: Vec::new(),
            cases: vec![CaseDone { item: 0, key: "k".repeat(999), wall_ms: u64::MAX }; 9_000],
        }
        .bounded();
        assert_eq!((done.failures.len(), done.quarantined.len()), (MOST_FAILURES, MOST_NAMES));
        assert_eq!(done.failures[0].failure.name.chars().count(), NAME);
        assert_eq!(done.items[0].outcome, Outcome::Crashed);
        assert_eq!((done.items.len(), done.wall_ms, done.items[0].wall_ms), (MOST_ITEMS, MOST_WALL_MS, MOST_WALL_MS));
        assert_eq!((done.counts.passed, done.items[0].cases), (MOST_TESTS, 10_000_000));
        assert_eq!((done.cases.len(), done.cases[0].wall_ms), (MOST_CASE_BYTES / 999, MOST_WALL_MS));
        let own = done.of_lease(&[0, 1], 500);
        assert_eq!((own.items.len(), own.wall_ms, own.items[0].wall_ms), (1, 500, 500));
    }

    #[test]
    fn the_most_that_a_node_may_tell_fits_into_one_request() {
        let failure = TestFailure {
            name: "\u{1}".repeat(NAME),
            message: "\u{1}".repeat(MESSAGE),
            file: None,
            line: Some(u32::MAX),
        };
        let item = ItemDone {
            item: u32::MAX,
            outcome: Outcome::TimedOut,
            wall_ms: MOST_WALL_MS,
            cases: 10_000_000,
            part: None,
        };
        let done = Done {
            end: BatchEnd::Exited { status: -1 },
            wall_ms: MOST_WALL_MS,
            items: vec![item; MOST_ITEMS],
            counts: Counts { passed: MOST_TESTS, failed: MOST_TESTS, skipped: MOST_TESTS },
            failures: vec![Failed { item: Some(1), failure }; MOST_FAILURES],
            quarantined: vec!["\u{1}".repeat(NAME); MOST_NAMES],
            flaky: vec!["\u{1}".repeat(NAME); MOST_NAMES],
            cases: vec![CaseDone { item: u32::MAX, key: "\\".repeat(43), wall_ms: MOST_WALL_MS }; MOST_CASES],
        };
        let done = Request::Done { lease: LeaseId(u32::MAX), done: done.bounded() };
        assert!(frame(&done, MOST_REQUEST).is_some());
    }
}
