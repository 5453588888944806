//! How a test run gets to its verdict: built code → nodes → results → verdict.
//!
//! Green needs every planned node to have ended with 0 and reported no failed test; a node that was lost under its
//! tests is started again, and one that is missing is never counted as green.

use super::addons::{AddonStep, drop_of_nodes, look_again, next_of_addons};
use super::deploy::{BuildStep, next_of_build};
use super::split::{SplitView, split_verdict};
use super::{Action, Plan, ProcessState, ProcessView};
use crate::clock::Timestamp;
use crate::domain::*;
use std::time::Duration;

/// The exit status by which a node says that `scripts.test-setup` failed, so that no test ran.
pub const SETUP_FAILED: i32 = crate::ci::wire::STATUS_SETUP_FAILED as i32;
/// How often a node whose machine went away is started anew.
const ATTEMPTS: u32 = 3;

#[derive(Debug, Clone)]
pub struct RunView {
    pub now: Timestamp,
    pub build: Option<Build>,
    pub build_process_over: bool,
    pub slug: Option<Slug>,
    /// The preparation that the run waits for, and whether its process is over; `None` where there is no such process.
    pub preparation: Option<(Preparation, Option<bool>)>,
    /// A run of the same tree that passed.
    pub same_tree_passed: Option<RunNumber>,
    pub processes: Vec<ProcessView>,
    /// Of all its nodes.
    pub addons: Vec<Addon>,
    /// Nodes that this run may start now.
    pub free_slots: usize,
    /// The board, where files are dealt.
    pub split: Option<SplitView>,
    /// The board of a queue from which the suite's own client pulls.
    pub queue: Option<SplitView>,
}

/// What a node runs, and how many nodes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestScript {
    pub setup: Option<String>,
    pub test: String,
    pub nodes: u16,
}

/// `environments.test` of `app.json`, else the buildpack's own way to test; `None` where there is neither.
pub fn test_script(slug: &Slug) -> Option<TestScript> {
    let manifest = slug.manifest();
    let environment = manifest.for_environment(Environment::Test);
    let test = environment.scripts.test.clone().or_else(|| slug.test_command.clone())?;
    let nodes = u16::try_from(environment.test_nodes()).unwrap_or(1);
    Some(TestScript { setup: environment.scripts.test_setup.clone(), test, nodes: nodes.clamp(1, 64) })
}

pub fn plan_run(run: &TestRun, view: &RunView) -> Plan {
    let mut plan = Plan::default();
    if run.verdict.is_some() {
        clear_away(view, &mut plan);
        if drop_of_nodes(&view.addons, &view.processes, |_| true, &mut plan) {
            look_again(&mut plan);
        }
        return plan;
    }
    if run.cancelled.is_some() {
        clear_away(view, &mut plan);
        if matches!(run.setup, Setup::Making { .. }) {
            plan.act(Action::LeaveSetup);
        }
        if view.processes.iter().all(ProcessView::is_over) {
            plan.act(Action::Conclude { verdict: Verdict::Cancelled });
        }
        return plan;
    }
    let Some(slug) = &view.slug else {
        match next_of_build(view.build.as_ref(), view.build_process_over, run.created_at) {
            BuildStep::Ensure => plan.act(Action::EnsureBuild { commit: run.commit.clone() }),
            BuildStep::Collect(key) => plan.act(Action::CollectBuild { key }),
            BuildStep::Wait | BuildStep::Done => {}
            BuildStep::Failed(failure) => plan.act(Action::Conclude { verdict: Verdict::Errored { failure } }),
        }
        return plan;
    };
    if run.started_at.is_none() {
        let reuse = run.only_failed_of.is_none() && slug.settings().tests.reuse;
        if let Some(earlier) = view.same_tree_passed.filter(|_| reuse) {
            if matches!(run.setup, Setup::Making { .. }) {
                plan.act(Action::LeaveSetup);
            }
            plan.act(Action::Conclude { verdict: Verdict::Reused { run: earlier } });
            return plan;
        }
        match test_script(slug) {
            None => plan.act(Action::Conclude { verdict: Verdict::NoTests }),
            Some(script) if script.setup.is_some() && !place_setup(run, view, &script, &mut plan) => {}
            Some(script) => plan.act(Action::PlanNodes { nodes: script.nodes }),
        }
        return plan;
    }
    match &view.split {
        Some(split) => drive_dealing(run, view, split, &mut plan),
        None => drive_nodes(run, view, &mut plan),
    }
    plan
}

/// Sees to where `scripts.test-setup` is done. `true` once nodes can be planned.
fn place_setup(run: &TestRun, view: &RunView, script: &TestScript, plan: &mut Plan) -> bool {
    match (&run.setup, &view.preparation) {
        (Setup::OnNodes { .. } | Setup::Kept { .. }, _) => return true,
        (Setup::Making { .. }, Some((made, process))) if made.goes_on() => match process {
            Some(true) => plan.act(Action::CollectSetup),
            Some(false) => {}
            None if view.free_slots > 0 => plan.act(Action::StartSetup),
            None => plan.look_again_in(Duration::from_millis(250)),
        },
        // It is over, or nobody makes it any more.
        (Setup::Open | Setup::Making { .. }, _) => plan.act(Action::PlaceSetup { nodes: script.nodes }),
    }
    false
}

/// How often a dealing run is looked at, for silent nodes.
const WATCH: Duration = Duration::from_millis(1_000);
/// How long a node may take to notice that nothing is left.
const LEAVE: Duration = Duration::from_secs(15);
/// And how long where it hands over artifacts first.
const LEAVE_WITH_ARTIFACTS: Duration = Duration::from_secs(120);

/// Nodes come as slots free up, take what is there, and go when all is settled; one that dies comes again while there is
/// work, and what it held goes to others at once.
fn drive_dealing(run: &TestRun, view: &RunView, split: &SplitView, plan: &mut Plan) {
    if run.results.values().any(|result| result.setup_failed) {
        plan.act(Action::Conclude { verdict: split_verdict(run, split) });
        return;
    }
    if !split.silent.is_empty() {
        plan.act(Action::ExpireLeases { leases: split.silent.clone() });
    }
    drop_of_nodes(&view.addons, &view.processes, |node| run.results.contains_key(&node), plan);
    let keeps = view.slug.as_ref().is_some_and(|slug| slug.settings().tests.artifacts.is_some());
    let leave = if keeps { LEAVE_WITH_ARTIFACTS } else { LEAVE };
    let mut free = view.free_slots;
    let (mut going, mut coming) = (0, 0);
    for node in 0..run.nodes {
        let newest =
            view.processes.iter().filter(|process| process.ordinal == node).max_by_key(|process| process.attempt);
        if run.results.contains_key(&node) {
            if let Some(process) = newest {
                plan.act(Action::Discard { process: process.id.clone() });
            }
            continue;
        }
        let Some(process) = newest else {
            coming += 1;
            if !split.over && free > 0 {
                free -= 1;
                if !start_node(run, view, node, 1, plan) {
                    return;
                }
            }
            continue;
        };
        let ProcessState::Exited { ended, .. } = &process.state else {
            going += 1;
            let late = split.last_settled.is_some_and(|at| view.now.since(at) >= leave);
            if split.over && late && !process.is_stopping() {
                plan.act(Action::Stop { process: process.id.clone() });
            }
            continue;
        };
        if split.present.get(&node) == Some(&process.attempt) {
            plan.act(Action::NodeLost { node, attempt: process.attempt });
        }
        let by_itself = matches!(ended, Ended::Exited { .. } | Ended::CouldNotStart { .. });
        if split.over || by_itself || process.attempt >= ATTEMPTS {
            plan.act(Action::CollectNode { node, process: process.id.clone() });
        } else {
            coming += 1;
            if free > 0 {
                free -= 1;
                if !start_node(run, view, node, process.attempt + 1, plan) {
                    return;
                }
            }
        }
    }
    let moving = plan.actions.iter().any(|action| {
        matches!(
            action,
            Action::StartNode { .. }
                | Action::CollectNode { .. }
                | Action::NodeLost { .. }
                | Action::EnsureNodeAddons { .. }
        )
    });
    match (split.over, going, coming) {
        (true, 0, _) if !moving => plan.act(Action::Conclude { verdict: split_verdict(run, split) }),
        (false, 0, 0) if !moving => plan.act(Action::Abandon),
        (false, _, 1..) => plan.look_again_in(Duration::from_millis(250)),
        _ => plan.look_again_in(WATCH),
    }
}

fn drive_nodes(run: &TestRun, view: &RunView, plan: &mut Plan) {
    let mut free = view.free_slots;
    // A node's database goes with the node.
    drop_of_nodes(&view.addons, &view.processes, |node| run.results.contains_key(&node), plan);
    for node in 0..run.nodes {
        let newest =
            view.processes.iter().filter(|process| process.ordinal == node).max_by_key(|process| process.attempt);
        if run.results.contains_key(&node) {
            if let Some(process) = newest {
                plan.act(Action::Discard { process: process.id.clone() });
            }
            continue;
        }
        let attempt = match newest {
            None => 1,
            Some(process) => match &process.state {
                ProcessState::Exited { ended: Ended::Lost, .. } if process.attempt < ATTEMPTS => process.attempt + 1,
                ProcessState::Exited { .. } => {
                    plan.act(Action::CollectNode { node, process: process.id.clone() });
                    continue;
                }
                _ => continue,
            },
        };
        if free == 0 {
            plan.look_again_in(Duration::from_millis(250));
            continue;
        }
        free -= 1;
        if !start_node(run, view, node, attempt, plan) {
            return;
        }
    }
    if run.results.len() == usize::from(run.nodes) {
        let verdict = match (verdict(run), &view.queue) {
            // The nodes ended well, and something of the queue was never done.
            (Verdict::Passed, Some(queue)) if !queue.over || !queue.proof.is_green() => Verdict::Failed,
            (verdict, _) => verdict,
        };
        plan.act(Action::Conclude { verdict });
    }
}

/// Starts a node once it has its add-ons. `false` where it can't have them, which ends the run.
fn start_node(run: &TestRun, view: &RunView, node: u16, attempt: u32, plan: &mut Plan) -> bool {
    let wanted =
        view.slug.as_ref().map(|slug| slug.manifest().for_environment(Environment::Test).addons).unwrap_or_default();
    let own = view.addons.iter().filter(|addon| matches!(addon.owner, AddonOwner::Node { node: of, .. } if of == node));
    match next_of_addons(&wanted, own, run.created_at) {
        AddonStep::Ready => plan.act(Action::StartNode { node, attempt }),
        AddonStep::Ensure => {
            plan.act(Action::EnsureNodeAddons { node });
            look_again(plan);
        }
        AddonStep::Failed(failure) => {
            plan.act(Action::Conclude { verdict: Verdict::Errored { failure } });
            return false;
        }
    }
    true
}

/// What the results say, once every node has one.
pub fn verdict(run: &TestRun) -> Verdict {
    if let Some(broken) = run.results.values().find(|result| result.setup_failed) {
        let failure = Failure::Build { ended: broken.ended.clone(), tail: broken.tail.clone() };
        return Verdict::Errored { failure };
    }
    let complete = (0..run.nodes).all(|node| run.results.contains_key(&node));
    if complete && run.nodes > 0 && run.results.values().all(NodeResult::passed) {
        Verdict::Passed
    } else {
        Verdict::Failed
    }
}

fn clear_away(view: &RunView, plan: &mut Plan) {
    for process in &view.processes {
        match process.state {
            ProcessState::Exited { .. } => plan.act(Action::Discard { process: process.id.clone() }),
            ProcessState::Stopping { .. } => plan.look_again_in(Duration::from_millis(100)),
            ProcessState::Starting | ProcessState::Running { .. } => {
                plan.act(Action::Stop { process: process.id.clone() });
                plan.look_again_in(Duration::from_millis(100));
            }
        }
    }
}
