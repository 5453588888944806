//! Which tests failed and then passed with nothing changed, counted over the runs that are kept.

use crate::domain::{RunNumber, TestRun};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flaky {
    /// A file that was run again, or a test whose runner repeated it by itself.
    pub name: String,
    /// In how many runs it was flaky.
    pub times: u64,
    /// Runs in which it failed while held in quarantine.
    pub quarantined: u64,
    pub last: RunNumber,
}

/// The most often flaky first. `runs` in any order; those that were repeated by hand don't count.
pub fn flaky(runs: &[TestRun]) -> Vec<Flaky> {
    let mut counted: BTreeMap<&str, Flaky> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.repeats.is_none()) {
        let Some(split) = &run.split else { continue };
        let names = split.flaky_files.iter().chain(&split.flaky_tests).map(|name| (name, 1, 0));
        for (name, flaky, quarantined) in names.chain(split.quarantined.iter().map(|name| (name, 0, 1))) {
            let fresh = || Flaky { name: name.clone(), times: 0, quarantined: 0, last: run.number };
            let line = counted.entry(name).or_insert_with(fresh);
            line.times += flaky;
            line.quarantined += quarantined;
            line.last = line.last.max(run.number);
        }
    }
    let mut lines: Vec<Flaky> = counted.into_values().collect();
    lines.sort_by(|one, other| {
        let key = |line: &Flaky| std::cmp::Reverse((line.times + line.quarantined, line.last));
        key(one).cmp(&key(other)).then_with(|| one.name.cmp(&other.name))
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::{Repeated, RepositoryId, SplitSummary};

    fn run(number: u64, flaky: &[&str], quarantined: &[&str]) -> TestRun {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let split = SplitSummary { flaky_files: own(flaky), quarantined: own(quarantined), ..SplitSummary::default() };
        TestRun {
            number: RunNumber(number),
            repository: RepositoryId(1),
            ordinal: number,
            pull: None,
            part: Default::default(),
            branch: "main".into(),
            commit: "a".repeat(40).parse().unwrap(),
            tree: None,
            created_at: Timestamp(0),
            started_at: None,
            nodes: 1,
            results: BTreeMap::new(),
            cancelled: None,
            verdict: None,
            finished_at: None,
            split: Some(split),
            only_failed_of: None,
            repeats: None,
            untrusted: false,
            setup: crate::domain::Setup::Open,
        }
    }

    #[test]
    fn flaky_tests_are_counted_over_runs_and_the_worst_stands_first() {
        let by_hand =
            TestRun { repeats: Some(Repeated { run: RunNumber(1), node: 0, nodes: 1 }), ..run(9, &["a"], &[]) };
        let runs = [run(1, &["a", "b"], &[]), run(2, &["b"], &["held"]), run(3, &[], &[]), by_hand];
        let seen: Vec<(String, u64, u64, u64)> =
            flaky(&runs).into_iter().map(|line| (line.name, line.times, line.quarantined, line.last.0)).collect();
        let line = |name: &str, times, held, last| (name.to_owned(), times, held, last);
        assert_eq!(seen, [line("b", 2, 0, 2), line("held", 0, 1, 2), line("a", 1, 0, 1)]);
    }
}
