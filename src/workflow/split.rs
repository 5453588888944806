//! How the tests of a run are spread: whether its files are dealt to nodes at all, which ones, and what came of it.

use crate::ci::cases::{self, CaseWay, Part};
use crate::ci::presets::{self, Preset, Tree, Unit};
use crate::ci::split::{
    Board, CaseTime, Gap, Lane, LeaseId, LeaseState, Measured, Outcome, Proof, Rules, lower_bound, uneven,
};
use crate::ci::wire::{CaseDone, Done, Orders};
use crate::clock::Timestamp;
use crate::domain::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How a run's tests are run.
#[derive(Debug, Clone, PartialEq)]
pub enum Way {
    /// Each node runs `scripts.test` and splits by `CI_NODE_INDEX` itself.
    Plain,
    Split {
        orders: Box<Orders>,
        files: BTreeSet<String>,
    },
    Refused(Failure),
}

/// What is said in `[tests]` comes first; a preset only takes the place of a script that calls nothing but its runner.
pub fn way(script: Option<&str>, settings: &TestSettings, tree: Tree<'_>) -> Way {
    let asked = settings.files.is_some() || settings.command.is_some();
    if !settings.split {
        return Way::Plain;
    }
    let known = presets::detect(tree);
    let covered = script.and_then(|script| presets::covers(tree, &known, script));
    let usable = |preset: &Preset| preset.needs.is_none();
    let preset = match covered.filter(usable) {
        Some(preset) => Some(preset),
        None if asked => known.into_iter().find(usable),
        None => return Way::Plain,
    };
    let Some(patterns) = settings.files.clone().or_else(|| preset.as_ref()?.files.clone()) else {
        return Way::Plain;
    };
    let orders = match (&settings.command, preset) {
        (None, None) => return Way::Refused(Failure::NoTestCommand),
        (None, Some(preset)) => of_preset(settings, &preset),
        (Some(command), preset) => {
            if settings.junit.is_none() && !command.contains(JUNIT) {
                return Way::Refused(Failure::NoTestResults);
            }
            // With a command of one's own, only what that runner says about itself still holds.
            let same = preset.filter(|preset| command.contains(program(preset)));
            Orders {
                command: command.clone(),
                environment: Vec::new(),
                junit: settings.junit.clone(),
                unit: same.as_ref().map_or(Unit::File, |preset| preset.unit),
                empty_status: same.as_ref().and_then(|preset| preset.empty_status),
                timeout_ms: timeout_ms(settings),
                quarantine: settings.quarantine.clone(),
                // A pattern among the arguments needs to know where they end; a plugin doesn't.
                cases: same
                    .and_then(|preset| preset.cases)
                    .filter(|way| settings.cases && matches!(way, CaseWay::Pytest | CaseWay::Rspec)),
                fixed: false,
            }
        }
    };
    let files = presets::items(tree.paths, &patterns, orders.unit);
    if files.is_empty() {
        return if asked { Way::Refused(Failure::NoTestFiles { patterns: patterns.of }) } else { Way::Plain };
    }
    Way::Split { orders: Box::new(orders), files }
}

fn of_preset(settings: &TestSettings, preset: &Preset) -> Orders {
    Orders {
        command: preset.command.clone(),
        environment: preset.environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        junit: settings.junit.clone().or_else(|| preset.junit.clone()),
        unit: preset.unit,
        empty_status: preset.empty_status,
        timeout_ms: timeout_ms(settings),
        quarantine: settings.quarantine.clone(),
        cases: preset.cases.filter(|_| settings.cases),
        fixed: false,
    }
}

fn program(preset: &Preset) -> &'static str {
    match preset.runner {
        presets::Runner::Pytest => "pytest",
        presets::Runner::Rspec => "rspec",
        presets::Runner::Jest => "jest",
        presets::Runner::Vitest => "vitest",
        presets::Runner::Mocha => "mocha",
        presets::Runner::GoTest => "gotestsum",
        presets::Runner::Nextest => "nextest",
        presets::Runner::Phpunit => "phpunit",
    }
}

fn timeout_ms(settings: &TestSettings) -> Option<u64> {
    settings.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

/// What is dealt by which rules. `nodes` is not more than there are items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitPlan {
    pub orders: Orders,
    pub rules: Rules,
    pub nodes: u16,
    pub opened_at: Timestamp,
}

/// What one run measured, for predictions of later ones.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MeasuredRun {
    pub pull: Option<PullNumber>,
    pub start_up_ms: u64,
    pub files: Vec<Measured>,
}

/// One batch as its node told it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchRecord {
    pub lease: LeaseId,
    pub node: u16,
    pub attempt: u32,
    /// When it was told.
    pub at: Timestamp,
    pub done: Done,
}

/// Cases of the longest files of one batch, told with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    pub lease: LeaseId,
    pub cases: Vec<CaseDone>,
}

/// What a run's board shows at one look.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitView {
    pub over: bool,
    pub last_settled: Option<Timestamp>,
    /// Leases whose node has not been heard for too long.
    pub silent: Vec<LeaseId>,
    /// Nodes with their attempt that the board counts on.
    pub present: BTreeMap<u16, u32>,
    pub proof: Proof,
}

impl SplitView {
    /// `batches` is looked at once all is settled, and only where files were cut.
    pub fn of(board: &Board, batches: &[BatchRecord], now: Timestamp) -> SplitView {
        SplitView {
            over: board.is_over(),
            last_settled: board.last_settled(),
            silent: board.silent(now),
            present: board.present().collect(),
            proof: whole_proof(board, batches),
        }
    }
}

/// The board's proof, and that the parts of each cut file make up the whole of it.
fn whole_proof(board: &Board, batches: &[BatchRecord]) -> Proof {
    let mut proof = board.proof();
    if board.is_over() {
        let told = batches.iter().flat_map(|batch| batch.done.items.iter().map(move |done| (batch.lease, done)));
        let counts = |lease: LeaseId, item: u32| board.lease(lease).is_some_and(|held| held.counted.contains(&item));
        let said: BTreeMap<u32, Part> = told
            .filter(|(lease, done)| counts(*lease, done.item))
            .filter_map(|(_, done)| Some((done.item, done.part?)))
            .collect();
        proof.gaps.extend(uneven(board, &said));
    }
    proof
}

/// Exit statuses, results and proof together. A node that died is no failure of its own where the proof shows that all
/// it held was run elsewhere; one that ended by itself with an error is.
pub fn split_verdict(run: &TestRun, view: &SplitView) -> Verdict {
    if let Some(broken) = run.results.values().find(|result| result.setup_failed) {
        let failure = Failure::Build { ended: broken.ended.clone(), tail: broken.tail.clone() };
        return Verdict::Errored { failure };
    }
    let unexplained = |result: &NodeResult| matches!(result.ended, Ended::Exited { code } if code != 0);
    let one_ended_well = run.results.values().any(|result| result.ended.is_success());
    if view.over && view.proof.is_green() && one_ended_well && !run.results.values().any(unexplained) {
        Verdict::Passed
    } else {
        Verdict::Failed
    }
}

/// Whether something that counts against the run is this node's.
pub fn is_red(board: &Board, node: u16, attempt: u32) -> bool {
    let own = board.leases().filter(|(_, lease)| lease.node == node && lease.attempt == attempt);
    own.flat_map(|(_, lease)| &lease.counted)
        .any(|item| board.settled(*item).is_some_and(|settled| !settled.outcome.is_green()))
}

/// Files and tests of each kind that a summary names.
const NAMED: usize = 100;
const SLOWEST: usize = 10;

/// What a board came to. `red_on_base`: files that were red in the newest run of the default branch.
pub fn summary(board: &Board, batches: &[BatchRecord], red_on_base: &BTreeSet<String>) -> SplitSummary {
    let proof = whole_proof(board, batches);
    let mut summary = SplitSummary {
        planned: proof.planned,
        passed: proof.passed,
        empty: proof.empty,
        flaky: proof.flaky,
        red: proof.red,
        batches: board.leases().count() as u64,
        ..SplitSummary::default()
    };
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    let mut lengths: Vec<f64> = Vec::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut red = |summary: &mut SplitSummary, path: &str, why: RedBecause| {
        // The parts of a file are one file.
        if summary.red_files.len() < NAMED && named.insert(path.to_owned()) {
            summary.red_files.push(RedFile { path: path.to_owned(), why, on_base: red_on_base.contains(path) });
        }
    };
    for (number, item) in (0u32..).zip(board.items()) {
        let Some(settled) = board.settled(number) else { continue };
        *times.entry(&item.path).or_default() += settled.wall_ms;
        lengths.push(settled.wall_ms as f64);
        let why = match settled.outcome {
            Outcome::Passed | Outcome::Empty => None,
            Outcome::Failed => Some(RedBecause::Failed),
            Outcome::Missing => Some(RedBecause::Missing),
            Outcome::Crashed => Some(RedBecause::Crashed),
            Outcome::TimedOut => Some(RedBecause::TimedOut),
        };
        if let Some(why) = why {
            red(&mut summary, &item.path, why);
        }
        if settled.flaky && summary.flaky_files.len() < NAMED {
            summary.flaky_files.push(item.path.clone());
        }
    }
    for gap in &proof.gaps {
        if let Gap::Parts { path } = gap {
            summary.red += 1;
            red(&mut summary, path, RedBecause::Incomplete);
        }
    }
    for batch in batches {
        summary.flaky_tests.extend(batch.done.flaky.iter().cloned());
        summary.quarantined.extend(batch.done.quarantined.iter().cloned());
    }
    for names in [&mut summary.flaky_tests, &mut summary.quarantined] {
        names.sort();
        names.dedup();
        names.truncate(NAMED);
    }
    let mut slowest: Vec<FileTime> =
        times.iter().map(|(path, wall_ms)| FileTime { path: (*path).to_owned(), wall_ms: *wall_ms }).collect();
    slowest.sort_by(|one, other| other.wall_ms.cmp(&one.wall_ms).then_with(|| one.path.cmp(&other.path)));
    slowest.truncate(SLOWEST);
    summary.slowest = slowest;
    // Times count from when the first node came: building and waiting for a slot is nobody's dealing.
    let mut came: BTreeMap<u16, Timestamp> = BTreeMap::new();
    for (_, lease) in board.leases() {
        came.entry(lease.node).or_insert(lease.dealt_at);
    }
    let first = came.values().min().copied().unwrap_or(board.opened_at());
    let last = board.last_settled().unwrap_or(first);
    let start_up = board.start_up_ms() as f64;
    let lanes: Vec<Lane> =
        came.values().map(|at| Lane { free_at: at.since(first).as_millis() as f64, speed: 1.0 }).collect();
    summary.makespan_ms = u64::try_from(last.since(first).as_millis()).unwrap_or(u64::MAX);
    if !lanes.is_empty() {
        summary.bound_ms = lower_bound(&lengths, &lanes, start_up).round() as u64;
    }
    summary.one_node_ms = (lengths.iter().sum::<f64>() + start_up).round() as u64;
    summary
}

/// Every file that was red, to be run again.
pub fn red_paths(board: &Board, batches: &[BatchRecord]) -> BTreeSet<String> {
    let red = |number: u32| board.settled(number).is_none_or(|settled| !settled.outcome.is_green());
    let items = (0u32..).zip(board.items()).filter(|(number, _)| red(*number)).map(|(_, item)| item.path.clone());
    let uneven = whole_proof(board, batches).gaps.into_iter().filter_map(|gap| match gap {
        Gap::Parts { path } => Some(path),
        _ => None,
    });
    items.chain(uneven).collect()
}

/// Counts and failures of one node: of what counted in the end only.
pub fn node_results(board: &Board, batches: &[BatchRecord], node: u16) -> (Option<Counts>, Vec<TestFailure>) {
    let (mut counts, mut failures, mut any) = (Counts::default(), Vec::new(), false);
    for batch in batches.iter().filter(|batch| batch.node == node) {
        let Some(lease) = board.lease(batch.lease) else { continue };
        any = true;
        let held = batch.done.quarantined.len() as u64;
        if lease.counted.len() == lease.items.len() {
            counts.passed += batch.done.counts.passed;
            counts.failed += batch.done.counts.failed.saturating_sub(held);
            counts.skipped += batch.done.counts.skipped + held.min(batch.done.counts.failed);
        }
        for done in batch.done.items.iter().filter(|done| lease.counted.contains(&done.item)) {
            let of_it = batch.done.failures.iter().filter(|failed| failed.item == Some(done.item)).count() as u64;
            if lease.counted.len() != lease.items.len() {
                counts.passed += u64::from(done.cases).saturating_sub(of_it);
                counts.failed += of_it;
            }
        }
        let counts_here =
            |item: Option<u32>| item.is_none_or(|item| lease.counted.contains(&item)) && !lease.counted.is_empty();
        failures.extend(
            batch.done.failures.iter().filter(|failed| counts_here(failed.item)).map(|failed| failed.failure.clone()),
        );
    }
    (any.then_some(counts), failures)
}

/// What the run measured: files that ran whole, by the last that was said of each.
pub fn measured(run: &TestRun, board: &Board, batches: &[BatchRecord], cases: &[CaseRecord]) -> MeasuredRun {
    let mut files: BTreeMap<&str, Measured> = BTreeMap::new();
    for batch in batches {
        for done in &batch.done.items {
            let Some(item) = board.items().get(done.item as usize) else { continue };
            let counted = board.lease(batch.lease).is_some_and(|lease| lease.counted.contains(&done.item));
            if !counted || matches!(done.outcome, Outcome::Missing | Outcome::Crashed | Outcome::TimedOut) {
                continue;
            }
            let known = files.entry(&item.path).or_insert_with(|| Measured {
                path: item.path.clone(),
                wall_ms: 0,
                passed: true,
                cases: 0,
                case_times: Vec::new(),
            });
            known.wall_ms = known.wall_ms.saturating_add(done.wall_ms);
            known.cases = known.cases.saturating_add(done.cases);
            known.passed &= done.outcome.is_green();
        }
    }
    let total: u64 = files.values().map(|measured| measured.wall_ms).fold(0, u64::saturating_add);
    let mut room = MOST_CASE_BYTES;
    let mut times = case_times(board, cases);
    let mut longest: Vec<&mut Measured> =
        files.values_mut().filter(|measured| measured.wall_ms.saturating_mul(2 * MOST_NODES) >= total).collect();
    longest.sort_by(|one, other| other.wall_ms.cmp(&one.wall_ms).then_with(|| one.path.cmp(&other.path)));
    for measured in longest {
        let mut own = times.remove(measured.path.as_str()).unwrap_or_default();
        own.sort_by(|one, other| other.wall_ms.cmp(&one.wall_ms).then_with(|| one.id.cmp(&other.id)));
        own.truncate(cases::MOST_CASES);
        // What has no room is dealt as part of the rest of its file.
        let mut left = cases::MOST_NAME_BYTES.min(room);
        own.retain(|case| match left.checked_sub(case.id.len() + 1) {
            Some(less) => {
                left = less;
                true
            }
            None => false,
        });
        room = room.saturating_sub(own.iter().map(|case| case.id.len() + 1).sum());
        measured.case_times = own;
    }
    MeasuredRun { pull: run.pull, start_up_ms: board.start_up_ms(), files: files.into_values().collect() }
}

/// Nodes that a later run may have.
const MOST_NODES: u64 = 64;
/// Bytes of the names of cases that are kept of one run.
const MOST_CASE_BYTES: usize = 128 << 10;

/// By file, of what counted.
fn case_times<'a>(board: &'a Board, told: &[CaseRecord]) -> BTreeMap<&'a str, Vec<CaseTime>> {
    let mut times: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for record in told {
        let Some(lease) = board.lease(record.lease) else { continue };
        for case in record.cases.iter().filter(|case| lease.counted.contains(&case.item)) {
            let Some(item) = board.items().get(case.item as usize) else { continue };
            let wall = times.entry(&item.path).or_default().entry(case.key.clone()).or_default();
            *wall = wall.saturating_add(case.wall_ms);
        }
    }
    let list = |cases: BTreeMap<String, u64>| cases.into_iter().map(|(id, wall_ms)| CaseTime { id, wall_ms }).collect();
    times.into_iter().map(|(path, cases)| (path, list(cases))).collect()
}

/// Whether the lease is this process' own, and still open.
pub fn holds(board: &Board, lease: LeaseId, node: u16, attempt: u32) -> Option<LeaseState> {
    board.lease(lease).filter(|lease| lease.node == node && lease.attempt == attempt).map(|lease| lease.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_only_the_runner_s_own_settings_name_are_dealt_where_somebody_names_them_for_us() {
        let contents = BTreeMap::from(
            [("package.json", r#"{"devDependencies":{"mocha":"11"}}"#), (".mocharc.yml", "recursive: true\n")]
                .map(|(path, text)| (path.to_owned(), text.to_owned())),
        );
        let own = ["test/setup.js", "test/unit/a.js"].map(str::to_owned);
        let paths: BTreeSet<String> = contents.keys().cloned().chain(own).collect();
        let tree = Tree { paths: &paths, contents: &contents };
        assert_eq!(way(Some("mocha"), &TestSettings::default(), tree), Way::Plain);
        let named = RepositorySettings::parse(b"[tests]\nfiles = 'test/unit/*.js'\n").unwrap().tests;
        let Way::Split { orders, files } = way(Some("mocha"), &named, tree) else { panic!("it is not dealt") };
        assert!(orders.command.starts_with("npx mocha "));
        assert_eq!(files, ["test/unit/a.js".to_owned()].into());
    }
}
