//! Runs whose files are dealt to their nodes: the board of each run, kept in memory and journaled.
//!
//! The rule: what a node is told was on disk before. A board is its plan and the events that changed it; after a restart
//! it is played again from these, and nodes that went on meanwhile find the same leases.

mod answer;
mod artifacts;
mod ending;
mod plain;
mod planning;
mod queue;
mod sockets;
#[cfg(test)]
mod tests;

pub use answer::{Who, answer};
pub(super) use artifacts::folder as artifact_folder;
pub use artifacts::{file as artifact_file, kept as artifacts};
pub(super) use ending::conclude;
pub(super) use plain::report as plain_report;
pub(super) use planning::plan;
pub(super) use queue::{conclude as conclude_queue, is_asked as queue_is_asked, script as queue_script};
pub use sockets::listen;
pub(super) use sockets::{
    INSIDE_PROGRAM, binds, close, command, leftover_folders, open, plain_script, program, who_is,
};

use super::{Trouble, World};
use crate::ci::split::{Board, Event, Item, LeaseState, Recorded, Rules};
use crate::ci::wire::Orders;
use crate::clock::Timestamp;
use crate::domain::*;
use crate::store::{StoreError, Transaction};
use crate::workflow::{BatchRecord, CaseRecord, SplitPlan, SplitView};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Items in one record of the store, which has at most 1 MiB.
const ITEMS_AT_A_TIME: usize = 1_000;
const ITEM_BYTES_AT_A_TIME: usize = 256 << 10;

/// The part of a run's record that names every red file.
const RED: &str = "red";

/// The boards of runs that go on, by need.
#[derive(Default)]
pub struct Boards(Mutex<HashMap<RunNumber, Arc<tokio::sync::Mutex<Option<Live>>>>>);

/// A board with what of its record is on disk.
pub(super) struct Live {
    pub plan: SplitPlan,
    pub board: Board,
    saved: usize,
}

impl Boards {
    fn place(&self, run: RunNumber) -> Arc<tokio::sync::Mutex<Option<Live>>> {
        let mut boards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        boards.entry(run).or_default().clone()
    }

    /// Lets go of what is no longer asked for; it can be read again.
    pub(super) fn forget(&self, run: RunNumber) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }
}

pub(super) fn put_plan(
    tx: &mut Transaction<'_>,
    run: RunNumber,
    plan: &SplitPlan,
    items: &[Item],
) -> Result<(), StoreError> {
    for (number, some) in chunks(items).enumerate() {
        tx.put_run_part(run, &format!("items/{number:08}"), &some)?;
    }
    tx.put_run_part(run, "plan", plan)
}

/// Of a part of a file the names of its cases may be long.
fn chunks(items: &[Item]) -> impl Iterator<Item = &[Item]> {
    let bytes = |item: &Item| {
        let names = item.cases.iter().chain(&item.except).map(|name| name.len() + 4);
        item.path.len() + 120 + names.sum::<usize>()
    };
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fits = |item: &&Item| {
            size += bytes(item);
            size <= ITEM_BYTES_AT_A_TIME
        };
        let count = rest.iter().take(ITEMS_AT_A_TIME).take_while(fits).count().max(1);
        let (some, after) = rest.split_at(count.min(rest.len()));
        rest = after;
        (!some.is_empty()).then_some(some)
    })
}

fn load(world: &World, run: RunNumber) -> Result<Option<Live>, StoreError> {
    let Some(plan) = world.store.run_part::<SplitPlan>(run, "plan")? else { return Ok(None) };
    let items: Vec<Item> = world.store.run_parts::<Vec<Item>>(run, "items/")?.into_iter().flatten().collect();
    let record: Vec<Recorded> = world.store.run_parts::<Vec<Recorded>>(run, "event/")?.into_iter().flatten().collect();
    let mut board = Board::replay(plan.rules.clone(), items, plan.nodes, plan.opened_at, &record);
    // Nobody could be heard while nobody listened: every holder gets its time again.
    let now = world.now();
    let open: Vec<_> =
        board.leases().filter(|(_, lease)| lease.state == LeaseState::Open).map(|(lease, _)| lease).collect();
    for lease in open {
        board.heartbeat(now, lease);
    }
    let saved = board.record().len();
    Ok(Some(Live { plan, board, saved }))
}

/// Looks at the board of a run; `None` where it has none.
pub(super) async fn look<R>(
    world: &World,
    run: RunNumber,
    look: impl FnOnce(&mut Live) -> R,
) -> Result<Option<R>, Trouble> {
    let place = world.boards.place(run);
    let mut live = place.lock().await;
    if live.is_none() {
        *live = load(world, run)?;
    }
    Ok(live.as_mut().map(look))
}

/// Tells the board something. What changed is on disk when this returns, together with what `also` writes.
pub(super) async fn change<R: Send>(
    world: &World,
    run: RunNumber,
    tell: impl FnOnce(&mut Live) -> (R, Option<BatchRecord>),
) -> Result<Option<R>, Trouble> {
    let place = world.boards.place(run);
    let mut guard = place.lock().await;
    if guard.is_none() {
        *guard = load(world, run)?;
    }
    let Some(live) = guard.as_mut() else { return Ok(None) };
    let was_over = live.board.is_over();
    let (result, batch) = tell(live);
    let (from, new) = (live.saved, live.board.record()[live.saved..].to_vec());
    let (over, now) = (live.board.is_over() && !was_over, world.now());
    if new.is_empty() && batch.is_none() {
        return Ok(Some(result));
    }
    let written = world
        .commit(move |tx| {
            if !new.is_empty() {
                tx.put_run_part(run, &format!("event/{from:08}"), &new)?;
            }
            if let Some(mut batch) = batch {
                let cases = std::mem::take(&mut batch.done.cases);
                tx.put_run_part(run, &format!("batch/{:08}", batch.lease.0), &batch)?;
                if !cases.is_empty() {
                    let record = CaseRecord { lease: batch.lease, cases };
                    tx.put_run_part(run, &format!("cases/{:08}", batch.lease.0), &record)?;
                }
            }
            if over {
                super::enqueue(tx, &Subject::Run(run), now)?;
            }
            Ok::<(), StoreError>(())
        })
        .await;
    match written {
        Ok(()) => {
            live.saved = live.board.record().len();
            if over {
                world.wake.notify_waiters();
            }
            Ok(Some(result))
        }
        Err(error) => {
            // What is in memory is ahead of what is true: it is read again.
            *guard = None;
            Err(error.into())
        }
    }
}

pub(super) async fn view(world: &World, run: RunNumber) -> Result<Option<SplitView>, Trouble> {
    let now = world.now();
    let cut = |live: &mut Live| live.board.is_over() && live.board.items().iter().any(Item::is_part);
    let told = if look(world, run, cut).await? == Some(true) { batches(world, run)? } else { Vec::new() };
    look(world, run, |live| SplitView::of(&live.board, &told, now)).await
}

pub(super) async fn tell(world: &World, run: RunNumber, events: Vec<Event>) -> Result<(), Trouble> {
    let now = world.now();
    change(world, run, |live| {
        for event in events {
            live.board.apply(now, event);
        }
        ((), None)
    })
    .await?;
    Ok(())
}

/// What the nodes of a run told, in the order in which batches were dealt.
pub fn batches(world: &World, run: RunNumber) -> Result<Vec<BatchRecord>, StoreError> {
    world.store.run_parts(run, "batch/")
}

pub(super) fn cases(world: &World, run: RunNumber) -> Result<Vec<CaseRecord>, StoreError> {
    world.store.run_parts(run, "cases/")
}

/// What one node of a run was dealt, as a plan of its own that deals it again in the same order.
pub(super) async fn part_of(
    world: &World,
    run: RunNumber,
    node: u16,
) -> Result<Option<(SplitPlan, Vec<Item>)>, Trouble> {
    let now = world.now();
    let part = look(world, run, |live| {
        let own = live.board.leases().filter(|(_, lease)| lease.node == node);
        let batches: Vec<Vec<Item>> = own
            .map(|(_, lease)| {
                lease.items.iter().filter_map(|item| live.board.items().get(*item as usize).cloned()).collect()
            })
            .collect();
        let fixed = batches.iter().map(|batch| u32::try_from(batch.len()).unwrap_or(u32::MAX)).collect();
        let rules = Rules { fixed, retries: 0, race: 1, ..live.plan.rules.clone() };
        let orders = Orders { fixed: true, ..live.plan.orders.clone() };
        let plan = SplitPlan { orders, rules, nodes: 1, opened_at: now };
        (plan, batches.into_iter().flatten().collect::<Vec<Item>>())
    })
    .await?;
    if world.store.run(run)?.is_none_or(|run| run.verdict.is_some()) {
        world.boards.forget(run);
    }
    Ok(part.filter(|(_, items)| !items.is_empty()))
}

/// A batch as the picture of a run shows it.
pub struct Told {
    pub node: u16,
    pub ended_at: Timestamp,
    pub files: Vec<ToldFile>,
}

pub struct ToldFile {
    pub path: String,
    pub passed: bool,
    pub wall_ms: u64,
}

/// What the nodes of a run told, with when.
pub fn told(world: &World, run: RunNumber) -> Result<Vec<Told>, StoreError> {
    let items: Vec<Item> = world.store.run_parts::<Vec<Item>>(run, "items/")?.into_iter().flatten().collect();
    let path = |number: u32| items.get(number as usize).map(|item| item.path.clone()).unwrap_or_default();
    let told = batches(world, run)?.into_iter().map(|batch| Told {
        node: batch.node,
        ended_at: batch.at,
        files: batch
            .done
            .items
            .iter()
            .map(|done| ToldFile {
                path: path(done.item),
                passed: done.outcome.is_green(),
                wall_ms: done.wall_ms.min(batch.done.wall_ms),
            })
            .collect(),
    });
    Ok(told.collect())
}
