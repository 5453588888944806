//! How long a file will take: the median of its recent wall times.
//!
//! Runs of the default branch and of this pull request are asked, newest first; a file's failed runs are left out, since
//! a test that fails at once or waits for its time limit says nothing of the next one that passes.

use super::plan::CaseTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many of a file's newest runs are asked.
const RUNS: usize = 5;

/// What one run measured of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub path: String,
    /// By the wall clock, as if its node had the usual speed, in milliseconds.
    pub wall_ms: u64,
    pub passed: bool,
    /// The test cases that it held; 0 where that is not known.
    #[serde(default)]
    pub cases: u32,
    /// Its cases by the names under which the runner can be told of them; of the longest files only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub case_times: Vec<CaseTime>,
}

/// What is expected of the files of one run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Predictions {
    pub files: BTreeMap<String, Prediction>,
    /// For a file that nobody has seen, in milliseconds.
    pub unseen_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    pub wall_ms: u64,
    /// How many cases its newest passed run had; 0 where that is not known.
    pub cases: u32,
}

/// What a file of a suite without any history is taken to need.
const NOTHING_KNOWN_MS: u64 = 1_000;

/// `runs` from the newest to the oldest; each holds what it measured.
pub fn predict(runs: &[Vec<Measured>]) -> Predictions {
    let mut walls: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut cases: BTreeMap<&str, u32> = BTreeMap::new();
    for measured in runs.iter().flatten().filter(|measured| measured.passed) {
        let walls = walls.entry(&measured.path).or_default();
        if walls.len() < RUNS {
            walls.push(measured.wall_ms);
        }
        if measured.cases > 0 {
            cases.entry(&measured.path).or_insert(measured.cases);
        }
    }
    let files: BTreeMap<String, Prediction> = walls
        .into_iter()
        .map(|(path, mut walls)| {
            let prediction =
                Prediction { wall_ms: median(&mut walls), cases: cases.get(path).copied().unwrap_or_default() };
            (path.to_owned(), prediction)
        })
        .collect();
    // A new file is as long as files are on average: the sum of many of them is then right.
    let sum: u64 = files.values().map(|prediction| prediction.wall_ms).fold(0, u64::saturating_add);
    let unseen_ms = sum.checked_div(files.len() as u64).map_or(NOTHING_KNOWN_MS, |mean| mean.max(1));
    Predictions { files, unseen_ms }
}

/// Of an even number the mean of the middle two; 0 of none.
fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    match (values.len() / 2, values.len() % 2) {
        (0, 0) => 0,
        (half, 0) => values[half - 1].midpoint(values[half]),
        (half, _) => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(path: &str, wall_ms: u64, passed: bool) -> Measured {
        Measured { path: path.into(), wall_ms, passed, cases: 3, case_times: Vec::new() }
    }

    #[test]
    fn predictions_are_medians_of_recent_passed_runs() {
        let runs: Vec<Vec<Measured>> =
            [(10, true), (30, true), (9_000, false), (20, true), (50, true), (40, true), (7_777, true)]
                .into_iter()
                .map(|(wall, passed)| vec![measured("a", wall, passed), measured("only_failed", wall, false)])
                .collect();
        let predictions = predict(&runs);
        assert_eq!(predictions.files["a"], Prediction { wall_ms: 30, cases: 3 });
        assert!(!predictions.files.contains_key("only_failed"));
        assert_eq!(predict(&[vec![measured("a", 10, true)], vec![measured("a", 20, true)]]).files["a"].wall_ms, 15);
    }

    #[test]
    fn a_file_that_nobody_saw_is_taken_for_an_average_one() {
        assert_eq!(predict(&[]).unseen_ms, NOTHING_KNOWN_MS);
        assert_eq!(predict(&[vec![measured("a", 10, true), measured("b", 50, true)]]).unseen_ms, 30);
    }
}
