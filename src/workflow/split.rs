//! How the tests of a run are spread: whether its files are dealt to nodes at all, which ones, and what came of it.

use crate::ci::presets::{self, Preset, Tree, Unit};
use crate::ci::split::{Board, Lane, LeaseId, LeaseState, Measured, Outcome, Proof, Rules, lower_bound};
use crate::ci::wire::{Done, Orders};
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
    let Some(patterns) = settings.files.clone().or_else(|| preset.as_ref().map(|preset| preset.files.clone())) else {
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
                empty_status: same.and_then(|preset| preset.empty_status),
                timeout_ms: timeout_ms(settings),
                quarantine: settings.quarantine.clone(),
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
    pub fn of(board: &Board, now: Timestamp) -> SplitView {
        SplitView {
            over: board.is_over(),
            last_settled: board.last_settled(),
            silent: board.silent(now),
            present: board.present().collect(),
            proof: board.proof(),
        }
    }
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

/// Files of each kind that a summary names.
const NAMED: usize = 100;
const SLOWEST: usize = 10;

/// What a board came to. `red_on_base`: files that were red in the newest run of the default branch.
pub fn summary(board: &Board, batches: &[BatchRecord], red_on_base: &BTreeSet<String>) -> SplitSummary {
    let proof = board.proof();
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
    for (number, item) in (0u32..).zip(board.items()) {
        let Some(settled) = board.settled(number) else { continue };
        *times.entry(&item.path).or_default() += settled.wall_ms;
        let why = match settled.outcome {
            Outcome::Passed | Outcome::Empty => None,
            Outcome::Failed => Some(RedBecause::Failed),
            Outcome::Missing => Some(RedBecause::Missing),
            Outcome::Crashed => Some(RedBecause::Crashed),
            Outcome::TimedOut => Some(RedBecause::TimedOut),
        };
        if let Some(why) = why.filter(|_| summary.red_files.len() < NAMED) {
            let on_base = red_on_base.contains(&item.path);
            summary.red_files.push(RedFile { path: item.path.clone(), why, on_base });
        }
        if settled.flaky && summary.flaky_files.len() < NAMED {
            summary.flaky_files.push(item.path.clone());
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
    let lengths: Vec<f64> = times.values().map(|wall| *wall as f64).collect();
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
pub fn measured(run: &TestRun, board: &Board, batches: &[BatchRecord]) -> MeasuredRun {
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
            });
            known.wall_ms = known.wall_ms.saturating_add(done.wall_ms);
            known.cases = known.cases.saturating_add(done.cases);
            known.passed &= done.outcome.is_green();
        }
    }
    MeasuredRun { pull: run.pull, start_up_ms: board.start_up_ms(), files: files.into_values().collect() }
}

/// Whether the lease is this process' own, and still open.
pub fn holds(board: &Board, lease: LeaseId, node: u16, attempt: u32) -> Option<LeaseState> {
    board.lease(lease).filter(|lease| lease.node == node && lease.attempt == attempt).map(|lease| lease.state)
}
