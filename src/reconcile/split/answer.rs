//! One request of a node, answered. Who asks is told by the socket that it came through, never by the request.

use super::artifacts::{self, Piece};
use super::plain::{self, PlainReport};
use super::{Live, change, look, queue};
use crate::ci::split::{self, Event, LeaseState, Refusal};
use crate::ci::wire::{Answer, Done, Request};
use crate::domain::*;
use crate::reconcile::{Trouble, World};
use crate::workflow::{BatchRecord, holds, is_red};
use tracing::info;

/// One process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub run: RunNumber,
    pub node: u16,
    pub attempt: u32,
}

pub async fn answer(world: &World, who: Who, request: Request) -> Result<Answer, Trouble> {
    let Who { run: number, node, attempt } = who;
    let over = Answer::Over { red: true };
    let Some(run) = world.store.run(number)? else { return Ok(over) };
    if run.verdict.is_some() || run.cancelled.is_some() {
        return Ok(over);
    }
    let now = world.now();
    let answered = match request {
        Request::Queue { ask } => Some(queue::answer(world, &run, who, ask).await?),
        Request::Times { files } => {
            queue::times(world, who, files).await?;
            Some(Answer::Taken)
        }
        Request::Wanted => Some(artifacts::wanted(world, &run)?),
        Request::Report { green, counts, failures } => {
            Some(plain::put(world, &run, who, PlainReport { attempt, green, counts, failures }).await?)
        }
        Request::Keep { path, offset, bytes, last } => {
            Some(artifacts::keep(world, &run, who, Piece { path, offset, bytes, last }).await?)
        }
        Request::Join => {
            change(world, number, |live| {
                let answer = match live.board.apply(now, Event::Join { node, attempt }) {
                    split::Answer::Refused { why } => Answer::Refused { why },
                    _ => Answer::Welcome { orders: live.plan.orders.clone() },
                };
                (answer, None)
            })
            .await?
        }
        Request::Pull => change(world, number, |live| (pull(live, who, now), None)).await?,
        Request::Beat { lease } => {
            look(world, number, |live| match holds(&live.board, lease, node, attempt) {
                Some(_) if live.board.heartbeat(now, lease).is_some() => Answer::Go,
                _ => Answer::Stop,
            })
            .await?
        }
        Request::GiveBack { lease } => {
            change(world, number, |live| {
                if holds(&live.board, lease, node, attempt).is_some() {
                    live.board.apply(now, Event::GiveBack { lease });
                }
                (Answer::Taken, None)
            })
            .await?
        }
        Request::Done { lease, done } => {
            let done = done.bounded();
            change(world, number, |live| match holds(&live.board, lease, node, attempt) {
                None => (Answer::Refused { why: Refusal::NoSuchLease }, None),
                Some(LeaseState::Finished) => (Answer::Taken, None),
                Some(LeaseState::Open) => {
                    let held = live.board.lease(lease);
                    let items = held.map(|held| held.items.clone()).unwrap_or_default();
                    let age = held.map(|held| now.since(held.dealt_at).as_millis()).unwrap_or_default();
                    // A clock may have been set meanwhile; a second is nobody's gain.
                    let done = done.of_lease(&items, u64::try_from(age).unwrap_or(u64::MAX).saturating_add(1_000));
                    finish(live, lease, &done, now);
                    (Answer::Taken, Some(BatchRecord { lease, node, attempt, at: now, done }))
                }
                Some(_) => (Answer::Refused { why: Refusal::LeaseOver }, None),
            })
            .await?
        }
    };
    Ok(answered.unwrap_or(over))
}

fn pull(live: &mut Live, who: Who, now: crate::clock::Timestamp) -> Answer {
    let Who { run, node, attempt } = who;
    match live.board.apply(now, Event::Pull { node, attempt }) {
        split::Answer::Batch { lease } => {
            let held = live.board.lease(lease).map(|lease| lease.items.as_slice()).unwrap_or_default();
            let items = live.board.items();
            let items: Vec<_> =
                held.iter().filter_map(|number| Some((*number, items.get(*number as usize)?.clone()))).collect();
            info!(%run, node, "node {node} of test run {run} got a batch of {}", items.len());
            Answer::Batch { lease, items, start_up_ms: live.board.start_up_ms() }
        }
        split::Answer::Wait { until } => {
            Answer::Wait { milliseconds: u64::try_from(until.since(now).as_millis()).unwrap_or(1_000).min(1_000) }
        }
        split::Answer::Over => Answer::Over { red: is_red(&live.board, node, attempt) },
        split::Answer::Refused { why } => Answer::Refused { why },
        split::Answer::Welcome | split::Answer::Accepted => Answer::Later,
    }
}

fn finish(live: &mut Live, lease: split::LeaseId, done: &Done, now: crate::clock::Timestamp) {
    for item in &done.items {
        // What isn't of this lease is refused by the board.
        let report =
            Event::Report { lease, item: item.item, outcome: item.outcome, wall_ms: item.wall_ms.min(done.wall_ms) };
        live.board.apply(now, report);
    }
    live.board.apply(now, Event::Finish { lease, wall_ms: done.wall_ms });
}
