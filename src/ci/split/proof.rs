//! The proof that a run did what was planned: each item exactly once, counted two ways.

use super::super::cases::Part;
use super::board::{Board, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proof {
    pub planned: u64,
    pub passed: u64,
    pub empty: u64,
    /// Of those passed, how many failed before.
    pub flaky: u64,
    pub red: u64,
    /// Why it is no proof; none in a complete run.
    pub gaps: Vec<Gap>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Gap {
    NothingPlanned,
    Unsettled {
        item: u32,
    },
    /// The leases count it another number of times than once.
    Counted {
        item: u32,
        times: u64,
    },
    /// The board and its leases tell different stories.
    Differs {
        item: u32,
    },
    /// The parts of a file don't make up the whole of it.
    Parts {
        path: String,
    },
}

impl Proof {
    /// Every planned item ran, once, nothing of it is red, and at least one of them holds a test: where none does, the
    /// runner was told something else than its author thinks.
    pub fn is_green(&self) -> bool {
        self.gaps.is_empty() && self.red == 0 && self.passed > 0 && self.planned == self.passed + self.empty
    }
}

/// Files whose parts don't make up the whole: each says how many cases the file holds and how many it kept itself.
/// `said` holds what counts. Of a file with a red part nothing has to be shown.
pub fn uneven(board: &Board, said: &BTreeMap<u32, Part>) -> Vec<Gap> {
    let mut files: BTreeMap<&str, (bool, Vec<Option<Part>>)> = BTreeMap::new();
    for (number, item) in (0u32..).zip(board.items()).filter(|(_, item)| item.is_part()) {
        let (red, parts) = files.entry(&item.path).or_default();
        *red |= board.settled(number).is_none_or(|settled| !settled.outcome.is_green());
        parts.push(said.get(&number).copied());
    }
    let whole = |parts: &[Option<Part>]| {
        let Some(Some(first)) = parts.first() else { return false };
        let same = parts.iter().all(|part| part.is_some_and(|part| part.collected == first.collected));
        let kept: u64 = parts.iter().flatten().map(|part| u64::from(part.kept)).sum();
        same && kept == u64::from(first.collected)
    };
    let gap = |(path, _): (&str, _)| Gap::Parts { path: path.to_owned() };
    files.into_iter().filter(|(_, (red, parts))| !*red && !whole(parts)).map(gap).collect()
}

impl Board {
    /// Counts from the settled items and, apart from that, from what each lease holds as counted.
    pub fn proof(&self) -> Proof {
        let mut proof = Proof { planned: self.items().len() as u64, ..Proof::default() };
        if self.items().is_empty() {
            proof.gaps.push(Gap::NothingPlanned);
        }
        let mut times = vec![0u64; self.items().len()];
        for (id, lease) in self.leases() {
            for item in &lease.counted {
                match times.get_mut(*item as usize) {
                    Some(count) => *count += 1,
                    None => proof.gaps.push(Gap::Differs { item: *item }),
                }
                if self.settled(*item).is_none_or(|settled| settled.lease != Some(id)) {
                    proof.gaps.push(Gap::Differs { item: *item });
                }
            }
        }
        for (item, times) in (0u32..).zip(times) {
            let Some(settled) = self.settled(item) else {
                proof.gaps.push(Gap::Unsettled { item });
                continue;
            };
            match settled.outcome {
                Outcome::Passed => proof.passed += 1,
                Outcome::Empty => proof.empty += 1,
                Outcome::Failed | Outcome::Missing | Outcome::Crashed | Outcome::TimedOut => proof.red += 1,
            }
            proof.flaky += u64::from(settled.flaky);
            if times != u64::from(settled.lease.is_some()) || (settled.outcome.is_green() && settled.lease.is_none()) {
                proof.gaps.push(Gap::Counted { item, times });
            }
        }
        proof
    }
}
