//! Who holds what, and what is settled: a state machine that is told events and answers them.
//!
//! The rules: an item is settled once, by the first valid result; a result under a lease that is over is refused; only the
//! holder of a lease gives its items back or has them run again; a lease ends by its holder, by silence, or by its node's
//! death. Items of a batch that broke are dealt again in ever smaller batches until the one that breaks it stands alone.
//! All events that changed something are recorded: [`Board::replay`] makes the same board of them.

use super::bound::Lane;
use super::deal::{Choice, NodeView, Racer, Rules, WaitingItem, choose};
use super::plan::Item;
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u32);

/// How one item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    /// It ran to its end and holds no test.
    Empty,
    Failed,
    /// Its batch ended, and no result speaks of it.
    Missing,
    /// Its process ended with an error that no test explains, or its node died under it again and again.
    Crashed,
    TimedOut,
}

impl Outcome {
    pub fn is_green(self) -> bool {
        matches!(self, Outcome::Passed | Outcome::Empty)
    }

    /// Whether it may be another item's doing, as far as one batch tells.
    fn is_of_the_batch(self) -> bool {
        matches!(self, Outcome::Missing | Outcome::Crashed | Outcome::TimedOut)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A node's process is ready for work. A higher `attempt` replaces a lower one of the same node.
    Join { node: u16, attempt: u32 },
    /// It asks for work. Asked again before its batch is over, it gets the same lease again.
    Pull { node: u16, attempt: u32 },
    /// A file's result under a lease; `item` counts from 0 in the plan.
    Report { lease: LeaseId, item: u32, outcome: Outcome, wall_ms: u64 },
    /// The batch's command ended after `wall_ms`; what was not reported before is missing.
    Finish { lease: LeaseId, wall_ms: u64 },
    /// The holder will not go on with it. Of what it leaves undone each item counts as lost once more, or else a node that
    /// takes and gives back for ever would never come to an end.
    GiveBack { lease: LeaseId },
    /// No heartbeat came for too long.
    Expire { lease: LeaseId },
    /// The node's process is known to be gone.
    Lost { node: u16, attempt: u32 },
    /// No node will come any more: what is open can't be run.
    Abandon,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    Welcome,
    Batch {
        lease: LeaseId,
    },
    /// Ask again at that time, or when something happened.
    Wait {
        until: Timestamp,
    },
    /// All is settled.
    Over,
    Accepted,
    Refused {
        why: Refusal,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The lease ended before; somebody else has its items.
    LeaseOver,
    NoSuchLease,
    NotInThisLease,
    /// Another result came first.
    AlreadySettled,
    /// A newer process of this node has come.
    Replaced,
    /// Its last heartbeat is not long enough ago.
    StillAlive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    Open,
    Finished,
    GivenBack,
    Expired,
    NodeLost,
}

/// A batch in the hands of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub node: u16,
    pub attempt: u32,
    /// In the order in which they are run.
    pub items: Vec<u32>,
    pub dealt_at: Timestamp,
    pub heartbeat_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub state: LeaseState,
    /// What was said of its items under it, with their wall time, accepted as final or not.
    pub said: BTreeMap<u32, (Outcome, u64)>,
    /// Those of them that count.
    pub counted: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    pub outcome: Outcome,
    pub lease: Option<LeaseId>,
    pub wall_ms: u64,
    pub at: Timestamp,
    /// It failed before it passed.
    pub flaky: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Progress {
    holders: BTreeSet<LeaseId>,
    settled: Option<Settled>,
    /// Failures of its own that were followed by another try.
    failures: u32,
    /// Times that its node died with it.
    losses: u32,
    /// Times that its batch broke, or its node died, while it was alone in it.
    broke_alone: u32,
    /// Size of the next batch that may hold it, after one that broke.
    largest_batch: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    attempt: u32,
    present: bool,
    /// A lease of it ended by silence, and it did not ask for work since: it is not counted on.
    silent: bool,
    /// It asked, and there was nothing for it: it is not counted on until it asks again. Whoever has not asked yet, or has
    /// just finished a batch, is about to.
    #[serde(default)]
    waits: bool,
    /// Predicted and measured time of what it did, for its speed.
    predicted_ms: u64,
    measured_ms: u64,
    /// Of the predictions, in square milliseconds.
    squares: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub at: Timestamp,
    pub event: Event,
}

/// The whole of one run's dealing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Board {
    rules: Rules,
    /// How many nodes were planned.
    planned_nodes: u16,
    items: Vec<Item>,
    progress: Vec<Progress>,
    nodes: BTreeMap<u16, Node>,
    leases: Vec<Lease>,
    start_up_ms: u64,
    start_ups: u32,
    /// Batches that broke since the last item was settled.
    broken_in_a_row: u32,
    opened_at: Timestamp,
    record: Vec<Recorded>,
}

/// How often an item that breaks its batch alone is tried, before that counts.
const TRIES_ALONE: u32 = 2;
/// Of a suite whose every batch breaks nothing more is to be learned after so many, and one for each node.
/// A search among many thousands of items breaks no more batches in a row.
const HOPELESS: u32 = 16;
/// The first start-up is as good as this many measured ones.
const START_UP_WEIGHT: u32 = 1;
/// How long a node without work is told to wait, in milliseconds.
const WAIT_MS: i64 = 1_000;

impl Board {
    pub fn new(rules: Rules, items: Vec<Item>, nodes: u16, now: Timestamp) -> Board {
        let progress = vec![Progress::default(); items.len()];
        Board {
            start_up_ms: rules.start_up_ms * u64::from(START_UP_WEIGHT),
            start_ups: START_UP_WEIGHT,
            rules,
            planned_nodes: nodes.max(1),
            items,
            progress,
            nodes: BTreeMap::new(),
            leases: Vec::new(),
            broken_in_a_row: 0,
            opened_at: now,
            record: Vec::new(),
        }
    }

    /// The same board from what was planned and recorded, but for heartbeats.
    pub fn replay(rules: Rules, items: Vec<Item>, nodes: u16, opened_at: Timestamp, record: &[Recorded]) -> Board {
        let mut board = Board::new(rules, items, nodes, opened_at);
        for recorded in record {
            // The record holds only what was accepted; that it expired is one of these.
            board.apply_recorded(recorded);
        }
        board
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().enumerate().map(|(number, lease)| (LeaseId(number as u32), lease))
    }

    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(id.0 as usize)
    }

    pub fn settled(&self, item: u32) -> Option<&Settled> {
        self.progress.get(item as usize)?.settled.as_ref()
    }

    pub fn record(&self) -> &[Recorded] {
        &self.record
    }

    pub fn is_over(&self) -> bool {
        self.progress.iter().all(|progress| progress.settled.is_some())
    }

    /// Nodes whose process has come and is not known to be gone, with its attempt.
    pub fn present(&self) -> impl Iterator<Item = (u16, u32)> {
        self.nodes.iter().filter(|(_, node)| node.present).map(|(number, node)| (*number, node.attempt))
    }

    /// When the last item was settled.
    pub fn last_settled(&self) -> Option<Timestamp> {
        self.progress.iter().filter_map(|progress| Some(progress.settled?.at)).max()
    }

    pub fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// What a batch costs before its first file, as learned so far, in milliseconds.
    pub fn start_up_ms(&self) -> u64 {
        self.start_up_ms / u64::from(self.start_ups.max(1))
    }

    /// Open leases that have been silent for too long; each is to be told as [`Event::Expire`].
    pub fn silent(&self, now: Timestamp) -> Vec<LeaseId> {
        self.leases().filter(|(_, lease)| self.is_silent(lease, now)).map(|(id, _)| id).collect()
    }

    /// A heartbeat: `None` where the lease is over and its command is to be ended; else what of it is still wanted.
    /// Not recorded, since it decides nothing by itself.
    pub fn heartbeat(&mut self, now: Timestamp, lease: LeaseId) -> Option<Vec<u32>> {
        let wanted = self.unfinished(lease);
        let held = self.leases.get_mut(lease.0 as usize).filter(|lease| lease.state == LeaseState::Open)?;
        held.heartbeat_at = held.heartbeat_at.max(now);
        (!wanted.is_empty() || held.items.iter().any(|item| held.counted.contains(item))).then_some(wanted)
    }

    /// Tells the board what happened. Each event may be told again: it then changes nothing.
    pub fn apply(&mut self, now: Timestamp, event: Event) -> Answer {
        if let Event::Expire { lease } = &event
            && self.lease(*lease).is_some_and(|held| held.state == LeaseState::Open && !self.is_silent(held, now))
        {
            return Answer::Refused { why: Refusal::StillAlive };
        }
        self.apply_recorded(&Recorded { at: now, event })
    }

    fn apply_recorded(&mut self, recorded: &Recorded) -> Answer {
        let (answer, changed) = self.act(recorded.at, &recorded.event);
        if changed {
            self.record.push(recorded.clone());
        }
        answer
    }

    fn act(&mut self, now: Timestamp, event: &Event) -> (Answer, bool) {
        match event {
            Event::Join { node, attempt } => self.join(now, *node, *attempt),
            Event::Pull { node, attempt } => self.pull(now, *node, *attempt),
            Event::Report { lease, item, outcome, wall_ms } => self.report(now, *lease, *item, *outcome, *wall_ms),
            Event::Finish { lease, wall_ms } => self.finish(now, *lease, *wall_ms),
            Event::GiveBack { lease } => self.end_lease(now, *lease, LeaseState::GivenBack, true),
            Event::Expire { lease } => self.end_lease(now, *lease, LeaseState::Expired, true),
            Event::Lost { node, attempt } => self.lost(now, *node, *attempt),
            Event::Abandon => self.abandon(now),
        }
    }

    fn join(&mut self, now: Timestamp, node: u16, attempt: u32) -> (Answer, bool) {
        match self.nodes.get(&node).map(|known| (known.attempt, known.present)) {
            Some((newer, _)) if newer > attempt => return (Answer::Refused { why: Refusal::Replaced }, false),
            Some((same, true)) if same == attempt => return (Answer::Welcome, false),
            Some((same, false)) if same == attempt => return (Answer::Refused { why: Refusal::Replaced }, false),
            Some((older, _)) => {
                self.lost(now, node, older);
            }
            None => {}
        }
        // A new process on another machine may have another speed.
        let new =
            Node { attempt, present: true, silent: false, waits: false, predicted_ms: 0, measured_ms: 0, squares: 0 };
        self.nodes.insert(node, new);
        (Answer::Welcome, true)
    }

    fn pull(&mut self, now: Timestamp, node: u16, attempt: u32) -> (Answer, bool) {
        let joined = match self.nodes.get(&node) {
            Some(known) if known.attempt == attempt && known.present => false,
            _ => match self.join(now, node, attempt) {
                (Answer::Welcome, _) => true,
                refused => return refused,
            },
        };
        let woke = self.nodes.get_mut(&node).is_some_and(|known| std::mem::take(&mut known.silent));
        let mut changed = joined || woke;
        let held = self.leases().find(|(_, lease)| lease.state == LeaseState::Open && lease.node == node);
        if let Some((lease, held)) = held.map(|(id, held)| (id, held.clone())) {
            if !held.counted.is_empty() || !held.said.is_empty() || !self.unfinished(lease).is_empty() {
                return (Answer::Batch { lease }, changed);
            }
            // Others were first with all of it.
            self.end_lease(now, lease, LeaseState::GivenBack, false);
            changed = true;
        }
        if self.is_over() {
            return (Answer::Over, changed);
        }
        let nothing_waits = self.progress.iter().all(|one| one.settled.is_some() || !one.holders.is_empty());
        let choice = if nothing_waits && self.rules.race < 2 { Choice::Wait } else { self.deal(now, node) };
        let waits = choice == Choice::Wait;
        let turned = self.nodes.get_mut(&node).is_some_and(|known| std::mem::replace(&mut known.waits, waits) != waits);
        let items = match choice {
            Choice::Take(items) => items,
            Choice::Race(item) => vec![item],
            Choice::Wait => return (Answer::Wait { until: Timestamp(now.0 + WAIT_MS) }, changed || turned),
        };
        let lease = LeaseId(self.leases.len() as u32);
        for item in &items {
            self.progress[*item].holders.insert(lease);
        }
        self.leases.push(Lease {
            node,
            attempt,
            items: items.into_iter().map(|item| item as u32).collect(),
            dealt_at: now,
            heartbeat_at: now,
            ended_at: None,
            state: LeaseState::Open,
            said: BTreeMap::new(),
            counted: BTreeSet::new(),
        });
        (Answer::Batch { lease }, true)
    }

    fn report(&mut self, now: Timestamp, id: LeaseId, item: u32, outcome: Outcome, wall_ms: u64) -> (Answer, bool) {
        let refuse = |why| (Answer::Refused { why }, false);
        let Some(lease) = self.leases.get_mut(id.0 as usize) else { return refuse(Refusal::NoSuchLease) };
        if lease.said.get(&item) == Some(&(outcome, wall_ms)) {
            return (Answer::Accepted, false);
        }
        if lease.state != LeaseState::Open {
            return refuse(Refusal::LeaseOver);
        }
        if !lease.items.contains(&item) {
            return refuse(Refusal::NotInThisLease);
        }
        if lease.said.contains_key(&item) || self.progress[item as usize].settled.is_some() {
            return refuse(Refusal::AlreadySettled);
        }
        lease.said.insert(item, (outcome, wall_ms));
        lease.heartbeat_at = lease.heartbeat_at.max(now);
        let size = lease.items.len();
        self.judge(now, id, item, outcome, wall_ms, size);
        (Answer::Accepted, true)
    }

    /// Settles an item, or puts it back for another try.
    fn judge(&mut self, now: Timestamp, id: LeaseId, item: u32, outcome: Outcome, wall_ms: u64, size: usize) {
        let retries = self.rules.retries;
        let progress = &mut self.progress[item as usize];
        progress.holders.remove(&id);
        let again = if !self.rules.fixed.is_empty() {
            false
        } else if outcome.is_of_the_batch() {
            progress.broken(size) && !(outcome == Outcome::TimedOut && size <= 1)
        } else if outcome.is_green() {
            false
        } else {
            progress.failures += 1;
            progress.failures <= retries
        };
        if again || progress.settled.is_some() {
            return;
        }
        let flaky = outcome.is_green() && progress.failures > 0;
        progress.settled = Some(Settled { outcome, lease: Some(id), wall_ms, at: now, flaky });
        if !outcome.is_of_the_batch() {
            self.broken_in_a_row = 0;
        }
        if let Some(lease) = self.leases.get_mut(id.0 as usize) {
            lease.counted.insert(item);
        }
    }

    fn finish(&mut self, now: Timestamp, id: LeaseId, wall_ms: u64) -> (Answer, bool) {
        match self.lease(id).map(|lease| lease.state) {
            None => return (Answer::Refused { why: Refusal::NoSuchLease }, false),
            Some(LeaseState::Finished) => return (Answer::Accepted, false),
            Some(LeaseState::Open) => {}
            Some(_) => return (Answer::Refused { why: Refusal::LeaseOver }, false),
        }
        let silent = self.unfinished(id);
        let size = self.lease(id).map_or(0, |lease| lease.items.len());
        for item in &silent {
            self.judge(now, id, *item, Outcome::Missing, 0, size);
        }
        self.learn(id, wall_ms);
        let Some(lease) = self.leases.get_mut(id.0 as usize) else { return (Answer::Accepted, false) };
        for item in silent {
            lease.said.insert(item, (Outcome::Missing, 0));
        }
        lease.state = LeaseState::Finished;
        lease.ended_at = Some(now);
        let broke = lease.said.values().all(|(outcome, _)| outcome.is_of_the_batch()) && !lease.said.is_empty();
        if broke {
            self.broken_in_a_row += 1;
            if self.broken_in_a_row >= HOPELESS + u32::from(self.planned_nodes) {
                self.abandon(now);
            }
        }
        (Answer::Accepted, true)
    }

    /// Speeds and start-up from a batch that ran to its end.
    fn learn(&mut self, id: LeaseId, wall_ms: u64) {
        let Some(lease) = self.leases.get(id.0 as usize) else { return };
        let ran = |outcome: &Outcome| !outcome.is_of_the_batch();
        let files: u64 = lease.said.values().map(|(_, wall)| *wall).fold(0, u64::saturating_add);
        if lease.said.values().all(|(outcome, _)| ran(outcome)) && lease.said.len() == lease.items.len() {
            self.start_up_ms = self.start_up_ms.saturating_add(wall_ms.saturating_sub(files));
            self.start_ups += 1;
        }
        let Some(node) = self.nodes.get_mut(&lease.node).filter(|node| node.attempt == lease.attempt) else { return };
        for (item, (outcome, wall)) in &lease.said {
            let planned = &self.items[*item as usize];
            if outcome.is_green() && planned.seen {
                node.predicted_ms = node.predicted_ms.saturating_add(planned.predicted_ms);
                node.measured_ms = node.measured_ms.saturating_add(*wall);
                let square = planned.predicted_ms.saturating_mul(planned.predicted_ms);
                node.squares = node.squares.saturating_add(square);
            }
        }
    }

    /// `by_holder`: what is unfinished counts as lost, as far as that speaks against an item.
    fn end_lease(&mut self, now: Timestamp, id: LeaseId, state: LeaseState, by_holder: bool) -> (Answer, bool) {
        match self.lease(id).map(|lease| lease.state) {
            None => return (Answer::Refused { why: Refusal::NoSuchLease }, false),
            Some(LeaseState::Open) => {}
            Some(same) if same == state => return (Answer::Accepted, false),
            Some(_) => return (Answer::Refused { why: Refusal::LeaseOver }, false),
        }
        let unfinished = self.unfinished(id);
        for item in &unfinished {
            let progress = &mut self.progress[*item as usize];
            progress.holders.remove(&id);
            // A node that dies once says not much against what it held.
            if by_holder && !progress.lost(unfinished.len()) {
                progress.settled =
                    Some(Settled { outcome: Outcome::Crashed, lease: Some(id), wall_ms: 0, at: now, flaky: false });
                if let Some(lease) = self.leases.get_mut(id.0 as usize) {
                    lease.counted.insert(*item);
                }
            }
        }
        if let Some(lease) = self.leases.get_mut(id.0 as usize) {
            lease.state = state;
            lease.ended_at = Some(now);
        }
        (Answer::Accepted, true)
    }

    fn lost(&mut self, now: Timestamp, node: u16, attempt: u32) -> (Answer, bool) {
        let Some(known) = self.nodes.get_mut(&node).filter(|known| known.attempt == attempt) else {
            return (Answer::Refused { why: Refusal::Replaced }, false);
        };
        let was_present = std::mem::replace(&mut known.present, false);
        let open = self.leases().filter(|(_, lease)| lease.state == LeaseState::Open && lease.node == node);
        let open: Vec<LeaseId> = open.map(|(id, _)| id).collect();
        for id in &open {
            self.end_lease(now, *id, LeaseState::NodeLost, true);
        }
        (Answer::Accepted, was_present || !open.is_empty())
    }

    fn abandon(&mut self, now: Timestamp) -> (Answer, bool) {
        let open: Vec<LeaseId> =
            self.leases().filter(|(_, lease)| lease.state == LeaseState::Open).map(|(id, _)| id).collect();
        for id in open {
            self.end_lease(now, id, LeaseState::GivenBack, false);
        }
        let mut changed = false;
        for progress in self.progress.iter_mut().filter(|progress| progress.settled.is_none()) {
            let outcome = if progress.largest_batch.is_some() { Outcome::Crashed } else { Outcome::Missing };
            progress.settled = Some(Settled { outcome, lease: None, wall_ms: 0, at: now, flaky: false });
            changed = true;
        }
        (Answer::Accepted, changed)
    }

    /// Of a lease, in its order, what nothing was said of under it and nobody else has settled.
    fn unfinished(&self, id: LeaseId) -> Vec<u32> {
        let Some(lease) = self.lease(id) else { return Vec::new() };
        let open = |item: &&u32| !lease.said.contains_key(*item) && self.progress[**item as usize].settled.is_none();
        lease.items.iter().filter(open).copied().collect()
    }

    fn is_silent(&self, lease: &Lease, now: Timestamp) -> bool {
        let silence = now.since(lease.heartbeat_at).as_millis();
        lease.state == LeaseState::Open && silence >= u128::from(self.rules.heartbeat_ms)
    }

    /// The next batch of those that are fixed.
    fn next_fixed(&self) -> Choice {
        let mut from = 0;
        for size in &self.rules.fixed {
            let to = (from + *size as usize).min(self.items.len());
            let open = |item: &usize| {
                self.progress.get(*item).is_some_and(|one| one.settled.is_none() && one.holders.is_empty())
            };
            let items: Vec<usize> = (from..to).filter(open).collect();
            if !items.is_empty() {
                return Choice::Take(items);
            }
            from = to;
        }
        Choice::Wait
    }

    fn deal(&self, now: Timestamp, node: u16) -> Choice {
        if !self.rules.fixed.is_empty() {
            return self.next_fixed();
        }
        let seconds = |at: Timestamp| at.since(self.opened_at).as_millis() as f64 / 1_000.0;
        let start_up = self.start_up_ms() as f64 / 1_000.0;
        let clock = seconds(now);
        let usual = self.usual_speed();
        let (mut views, mut free, mut me) = (Vec::new(), BTreeMap::new(), 0);
        for number in 0..self.planned_nodes.max(node + 1) {
            let known = self.nodes.get(&number);
            if known.is_some_and(|known| !known.present || known.silent) && number != node {
                continue;
            }
            let (speed, doubt) = self.speed_of(known, usual);
            let held = self.leases().find(|(_, lease)| lease.state == LeaseState::Open && lease.node == number);
            if known.is_some_and(|known| known.waits) && held.is_none() && number != node {
                continue;
            }
            let free_at = match (known, held) {
                (None, _) => clock + (self.rules.expected_ms as f64 / 1_000.0).max(clock),
                (Some(_), None) => clock,
                (Some(_), Some((id, lease))) => self.expected_end(id, lease, clock, seconds, start_up, speed),
            };
            if number == node {
                me = views.len();
            }
            free.insert(number, free_at);
            views.push(NodeView { lane: Lane { free_at, speed }, doubt, comes: held.is_some() });
        }
        choose(&self.rules, clock, start_up, &views, me, &self.waiting(), &self.racers(node, &free))
    }

    /// When a batch in progress will be over; one that should have ended gets a little more again and again.
    fn expected_end(
        &self,
        id: LeaseId,
        lease: &Lease,
        clock: f64,
        seconds: impl Fn(Timestamp) -> f64,
        start_up: f64,
        speed: f64,
    ) -> f64 {
        let predicted = |items: &[u32]| {
            items.iter().map(|item| self.items[*item as usize].predicted_ms).sum::<u64>() as f64 / 1_000.0
        };
        let whole = start_up + predicted(&lease.items) / speed;
        let mut end = seconds(lease.dealt_at) + whole;
        if !lease.said.is_empty() {
            // Files were reported on the way: what is left counts from now, less half of the one in progress.
            let left = self.unfinished(id);
            let current = left.first().map_or(0.0, |item| predicted(&[*item]));
            end = clock + (predicted(&left) - current / 2.0).max(0.0) / speed;
        }
        if end > clock { end } else { clock + whole * 0.05 }
    }

    /// Measured over all nodes, in predicted seconds a second.
    fn usual_speed(&self) -> f64 {
        let predicted: f64 = self.nodes.values().map(|node| node.predicted_ms as f64).sum();
        let measured: f64 = self.nodes.values().map(|node| node.measured_ms as f64).sum();
        if predicted <= 0.0 || measured <= 0.0 { 1.0 } else { (predicted / measured).powf(0.8).clamp(0.05, 20.0) }
    }

    /// A node's speed and its standard deviation: what was measured, drawn to the usual one the less was measured.
    fn speed_of(&self, node: Option<&Node>, usual: f64) -> (f64, f64) {
        let prior = self.rules.speed_spread.powi(2);
        let Some(node) = node.filter(|node| node.predicted_ms > 0 && node.measured_ms > 0) else {
            return (usual, prior.sqrt());
        };
        let predicted = node.predicted_ms as f64;
        let variance = self.rules.noise.powi(2) * node.squares as f64 / (predicted * predicted);
        if prior + variance <= 0.0 {
            return (usual, 0.0);
        }
        let weight = prior / (prior + variance);
        let measured = predicted / node.measured_ms as f64;
        let speed = usual * (measured / usual).powf(weight);
        (speed.clamp(0.05, 20.0), (prior * variance / (prior + variance)).sqrt())
    }

    /// What nobody holds, in the order of dealing: what broke a batch, then the longest; a file that nobody has seen is
    /// dealt as early as the longest tenth, since it may be one of them.
    fn waiting(&self) -> Vec<WaitingItem> {
        let mut seen: Vec<u64> = self.items.iter().filter(|item| item.seen).map(|item| item.predicted_ms).collect();
        seen.sort_unstable();
        let early = seen.get(seen.len() * 9 / 10).copied().unwrap_or_default();
        let mut open: Vec<usize> = (0..self.items.len())
            .filter(|item| self.progress[*item].settled.is_none() && self.progress[*item].holders.is_empty())
            .collect();
        let rank = |at: usize| {
            if self.items[at].seen { self.items[at].predicted_ms } else { early.max(self.items[at].predicted_ms) }
        };
        open.sort_by_key(|at| {
            let broken = self.progress[*at].largest_batch.unwrap_or(u32::MAX);
            (broken == u32::MAX, std::cmp::Reverse(rank(*at)), *at)
        });
        let waiting = |at: usize| WaitingItem {
            item: at,
            seconds: self.items[at].predicted_ms as f64 / 1_000.0,
            largest_batch: self.progress[at].largest_batch.map_or(usize::MAX, |most| most as usize),
            alone: self.items[at].is_part(),
        };
        open.into_iter().map(waiting).collect()
    }

    /// Batches of one file that `node` could race.
    fn racers(&self, node: u16, free_at: &BTreeMap<u16, f64>) -> Vec<Racer> {
        if self.rules.race < 2 {
            return Vec::new();
        }
        let single = |lease: &&Lease| lease.state == LeaseState::Open && lease.items.len() == 1 && lease.node != node;
        let mut racers: BTreeMap<usize, Racer> = BTreeMap::new();
        for lease in self.leases.iter().filter(single) {
            let item = lease.items[0] as usize;
            let progress = &self.progress[item];
            let ends_at = free_at.get(&lease.node).copied().unwrap_or(f64::INFINITY);
            if progress.settled.is_some() || progress.largest_batch.is_some() {
                continue;
            }
            // Full ones stay in the list with the time that they will take anyhow: others must not be raced for less.
            let racer = Racer { item, seconds: self.items[item].predicted_ms as f64 / 1_000.0, ends_at };
            let entry = racers.entry(item).or_insert(racer);
            entry.ends_at = entry.ends_at.min(ends_at);
        }
        let most = usize::from(self.rules.race);
        let last = racers.values().max_by(|one, other| one.ends_at.total_cmp(&other.ends_at)).copied();
        last.filter(|racer| self.progress[racer.item].holders.len() < most).into_iter().collect()
    }
}

impl Progress {
    /// Its batch of `size` broke. Whether it is tried again: in half the size, and alone once more.
    fn broken(&mut self, size: usize) -> bool {
        self.broke_alone += u32::from(size <= 1);
        self.largest_batch = Some(u32::try_from(size / 2).unwrap_or(u32::MAX).max(1));
        self.broke_alone < TRIES_ALONE
    }

    /// Its node died with `size` items in hand. Whether it is tried again: one death is taken for bad luck.
    fn lost(&mut self, size: usize) -> bool {
        self.losses += 1;
        self.losses < 2 || self.broken(size)
    }
}
