//! A queue that the suite's own client pulls from: Knapsack Pro's wire, dealt by the same board as everything else.
//!
//! Nodes run `scripts.test` as it is. The first client's files become the plan; what a client asks for next says that it
//! has done what it held. The run passes where all nodes end with 0 and the board shows that each file of the queue was
//! done, once.

use super::answer::Who;
use super::{Live, change, look, planning, put_plan};
use crate::ci::knapsack::{Ask, MOST_FILES};
use crate::ci::presets::Unit;
use crate::ci::split::{self, Event, LeaseId, LeaseState, Measured, Outcome, Rules};
use crate::ci::wire::{Answer, Orders};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::reconcile::{Trouble, World};
use crate::workflow::{MeasuredRun, SplitPlan, holds, test_script};
use std::collections::{BTreeMap, BTreeSet};
use tracing::info;

/// Variables with this beginning in the test environment say that a client of Knapsack Pro is used.
const VARIABLES: &str = "KNAPSACK_PRO_";
const ENDPOINT: &str = "KNAPSACK_PRO_ENDPOINT";

/// Whether a run's script pulls files by a client of Knapsack Pro that is told no other endpoint.
pub(in crate::reconcile) fn is_asked(slug: &Slug, variables: &BTreeMap<String, String>) -> bool {
    let script = test_script(slug).map(|script| script.test).unwrap_or_default();
    let speaks = script.contains("knapsack") || variables.keys().any(|name| name.starts_with(VARIABLES));
    speaks && !variables.contains_key(ENDPOINT)
}

/// What a node runs instead of the script itself.
pub(in crate::reconcile) fn script(script: &str, token: &str, masked: &[String]) -> String {
    format!("{} --token {token} --script {}", super::command(masked), quoted(script))
}

pub(super) async fn answer(world: &World, run: &TestRun, who: Who, ask: Ask) -> Result<Answer, Trouble> {
    if run.split.is_some() {
        // Its files are dealt to nodes of ours, which ask otherwise.
        return Ok(Answer::NoQueue);
    }
    let now = world.now();
    if let Ask::Begin { paths } = &ask {
        begin(world, run, paths).await?;
    }
    let answered = change(world, run.number, |live| {
        if let Ask::Next { batch, failed } = &ask {
            done(live, who, *batch, failed, now);
        }
        (pull(live, who, now), None)
    })
    .await?;
    Ok(answered.unwrap_or(Answer::NoQueue))
}

/// Makes the queue, unless another node did.
async fn begin(world: &World, run: &TestRun, paths: &[String]) -> Result<(), Trouble> {
    let _alone = world.locks.lock(&format!("queue {}", run.number)).await;
    if look(world, run.number, |_| ()).await?.is_some() {
        return Ok(());
    }
    let files: BTreeSet<String> = paths.iter().take(MOST_FILES).cloned().collect();
    if files.is_empty() {
        return Ok(());
    }
    let (items, start_up_ms) = planning::items(world, run, &files, run.nodes, false)?;
    let orders = Orders {
        command: String::new(),
        environment: Vec::new(),
        junit: None,
        unit: Unit::File,
        empty_status: None,
        timeout_ms: None,
        quarantine: Vec::new(),
        cases: None,
        fixed: false,
    };
    let rules = Rules {
        start_up_ms: start_up_ms.unwrap_or(Rules::default().start_up_ms),
        streamed: false,
        // A client has no heartbeat: only the death of its process ends what it holds.
        heartbeat_ms: u64::MAX,
        ..Rules::default()
    };
    let plan = SplitPlan { orders, rules, nodes: run.nodes.max(1), opened_at: world.now() };
    info!(run = %run.number, "test run {} has a queue of {} files", run.number, items.len());
    let number = run.number;
    world.commit(move |tx| put_plan(tx, number, &plan, &items)).await?;
    Ok(())
}

/// What a client held is done. Asked again with the number of a batch that is over, it changes nothing.
fn done(live: &mut Live, who: Who, batch: Option<u32>, failed: &[String], now: Timestamp) {
    let open = live.board.leases().find(|(id, lease)| {
        let own = lease.node == who.node && lease.attempt == who.attempt && lease.state == LeaseState::Open;
        own && batch.is_none_or(|batch| LeaseId(batch) == *id)
    });
    let Some((id, lease)) = open.map(|(id, lease)| (id, lease.clone())) else { return };
    let wall_ms = u64::try_from(now.since(lease.dealt_at).as_millis()).unwrap_or(u64::MAX);
    let predicted: u64 = lease.items.iter().map(|item| predicted(live, *item)).sum();
    for item in lease.items {
        let path = live.board.items().get(item as usize).map(|item| item.path.clone()).unwrap_or_default();
        let outcome = if failed.contains(&path) { Outcome::Failed } else { Outcome::Passed };
        // How long each took is told at the end only: until then it is a share of its batch.
        let share = u128::from(wall_ms) * u128::from(self::predicted(live, item)) / u128::from(predicted.max(1));
        let wall_ms = u64::try_from(share).unwrap_or(u64::MAX);
        live.board.apply(now, Event::Report { lease: id, item, outcome, wall_ms });
    }
    live.board.apply(now, Event::Finish { lease: id, wall_ms });
}

fn predicted(live: &Live, item: u32) -> u64 {
    live.board.items().get(item as usize).map_or(0, |item| item.predicted_ms)
}

fn pull(live: &mut Live, who: Who, now: Timestamp) -> Answer {
    match live.board.apply(now, Event::Pull { node: who.node, attempt: who.attempt }) {
        split::Answer::Batch { lease } => {
            if holds(&live.board, lease, who.node, who.attempt).is_none() {
                return Answer::Later;
            }
            let held = live.board.lease(lease).map(|lease| lease.items.clone()).unwrap_or_default();
            let file = |item: &u32| {
                let item = live.board.items().get(*item as usize)?;
                Some((item.path.clone(), item.predicted_ms))
            };
            Answer::Files { lease, files: held.iter().filter_map(file).collect() }
        }
        split::Answer::Wait { .. } => Answer::Wait { milliseconds: 1_000 },
        split::Answer::Over => Answer::Over { red: false },
        split::Answer::Refused { why } => Answer::Refused { why },
        split::Answer::Welcome | split::Answer::Accepted => Answer::Later,
    }
}

/// What a client measured, once it has done its last.
pub(super) async fn times(world: &World, who: Who, files: Vec<(String, f64)>) -> Result<(), Trouble> {
    let Who { run, node, attempt } = who;
    world.commit(move |tx| tx.put_run_part(run, &format!("times/{node:05}.{attempt:05}"), &files)).await?;
    Ok(())
}

/// What the clients of a run measured is kept for later ones, and the run ends.
pub(in crate::reconcile) async fn conclude(world: &World, run: &TestRun, verdict: Verdict) -> Result<(), Trouble> {
    let told: Vec<Vec<(String, f64)>> = world.store.run_parts(run.number, "times/")?;
    let passed = verdict == Verdict::Passed;
    let mut files: BTreeMap<String, Measured> = BTreeMap::new();
    for (path, seconds) in told.into_iter().flatten() {
        let wall_ms = (seconds.min(86_400.0) * 1_000.0).round() as u64;
        files.entry(path.clone()).or_insert(Measured { path, wall_ms, passed, cases: 0, case_times: Vec::new() });
    }
    let (repository, number, pull) = (run.repository, run.number, run.pull);
    let start_up_ms = look(world, number, |live| live.board.start_up_ms()).await?.unwrap_or(1_000);
    if passed && !files.is_empty() && run.repeats.is_none() {
        let measured = MeasuredRun { pull, start_up_ms, files: files.into_values().collect() };
        world.commit(move |tx| tx.put_measured(repository, number, &measured, super::ending::KEPT)).await?;
    }
    crate::reconcile::act::conclude(world, number, verdict).await?;
    world.boards.forget(number);
    Ok(())
}
