//! How much a node gets now.
//!
//! Too much at once, and a node that turns out slow ends last; too little, and start-up is paid again and again. So a
//! pull gets a share of what the node could do until the finish that water-filling predicts: more where little is in
//! doubt (speeds learned, many files), all of it where another batch would cost more than the doubt is worth.
//! Which files these are says a plan made anew at each pull: longest first, each to the node that would end it first.

use super::super::wire::MOST_ITEMS;
use super::bound::{Lane, water_level};
use serde::{Deserialize, Serialize};

/// What the dealing goes by. The defaults come from simulation over recorded histories of real suites
/// (`benches/split.rs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Start-up of a batch before any was measured, in milliseconds.
    pub start_up_ms: u64,
    /// How much of the time to the predicted finish a pull gets at least.
    pub least_share: f64,
    /// By how many standard deviations of its doubt a share stays below the whole.
    pub caution: f64,
    /// Another batch has to be worth this part of its start-up.
    pub last_batch: f64,
    /// Standard deviation of a file's time around its prediction, as a part of it.
    pub noise: f64,
    /// Standard deviation of nodes' speeds.
    pub speed_spread: f64,
    /// A node that has not come yet is expected this many milliseconds from now, or as late again as it is already.
    pub expected_ms: u64,
    /// Whether files are reported as they end. Where only whole batches are, batches are kept shorter, since all of a
    /// batch is lost with its node.
    pub streamed: bool,
    /// On how many nodes at once a file may run that alone decides when the run ends; the first result counts.
    pub race: u16,
    /// A lease without a heartbeat for this long is over.
    pub heartbeat_ms: u64,
    /// How often a failed item is run again.
    pub retries: u32,
    /// Sizes of batches that are dealt as they are, in the order of the items, each once: a part of a run, done again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<u32>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            start_up_ms: 1_000,
            least_share: 0.65,
            caution: 2.0,
            last_batch: 0.5,
            noise: 0.15,
            speed_spread: 0.06,
            expected_ms: 8_000,
            streamed: true,
            race: 1,
            heartbeat_ms: 10_000,
            retries: 0,
            fixed: Vec::new(),
        }
    }
}

/// A node at the moment of a pull.
#[derive(Debug, Clone, Copy)]
pub struct NodeView {
    pub lane: Lane,
    /// Standard deviation of what is known of its speed, as a part of it.
    pub doubt: f64,
    /// Whether it works on a batch, so that it will ask for another one or be found dead.
    pub comes: bool,
}

/// Something that waits, in the order of dealing.
#[derive(Debug, Clone, Copy)]
pub struct WaitingItem {
    pub item: usize,
    pub seconds: f64,
    /// How many items a batch that holds it may have: it was in one that broke.
    pub largest_batch: usize,
    /// It never shares a batch.
    pub alone: bool,
}

/// A single file that runs elsewhere and could be run here too.
#[derive(Debug, Clone, Copy)]
pub struct Racer {
    pub item: usize,
    pub seconds: f64,
    /// When its holder is expected to end it.
    pub ends_at: f64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    Take(Vec<usize>),
    Race(usize),
    /// Others will end what is left before this node could.
    Wait,
}

/// Batches that are reported only as a whole last at most this many seconds at a start-up of one second, and with its
/// square root otherwise (Young's formula for the time between checkpoints, for a loss every two hours).
const WHOLE_BATCH: f64 = 120.0;

/// What node `me` of `nodes` gets at `now`, in seconds. `waiting` is longest first.
pub fn choose(
    rules: &Rules,
    now: f64,
    start_up: f64,
    nodes: &[NodeView],
    me: usize,
    waiting: &[WaitingItem],
    racers: &[Racer],
) -> Choice {
    if let Some(item) = race(now, start_up, nodes, me, waiting, racers) {
        return Choice::Race(item);
    }
    let lanes: Vec<Lane> = nodes.iter().map(|node| node.lane).collect();
    let (mut mine, first_goes_to) = plan_for(now, start_up, &lanes, me, waiting);
    if mine.is_empty() {
        // Only one that surely comes back is worth waiting for.
        if waiting.is_empty() || nodes[first_goes_to].comes {
            return Choice::Wait;
        }
        mine = waiting[..1].to_vec();
    }
    let first = mine[0];
    // What broke a batch comes first, by itself: in ever smaller batches the one that breaks them is found.
    let suspected = first.largest_batch < usize::MAX;
    let most = if first.alone { 1 } else { first.largest_batch.clamp(1, MOST_ITEMS) };
    let work: f64 = waiting.iter().map(|next| next.seconds).sum();
    let left = (water_level(work, &lanes, start_up) - now - start_up).max(0.0);
    let speed = lanes[me].speed;
    let mut budget = share(rules, start_up, nodes, me, waiting, left) * left * speed;
    if !rules.streamed {
        budget = budget.min(WHOLE_BATCH * start_up.max(0.1).sqrt() * speed);
    }
    let (mut taken, mut used) = (Vec::new(), 0.0);
    for next in mine.iter().filter(|next| (next.largest_batch < usize::MAX) == suspected) {
        if next.alone && !taken.is_empty() {
            continue;
        }
        if taken.len() == most {
            break;
        }
        if taken.is_empty() || used + next.seconds <= budget * 1.000_001 {
            used += next.seconds;
            taken.push(next.item);
        }
    }
    Choice::Take(taken)
}

/// The part of the time left that is dealt now.
fn share(rules: &Rules, start_up: f64, nodes: &[NodeView], me: usize, waiting: &[WaitingItem], left: f64) -> f64 {
    let work: f64 = waiting.iter().map(|next| next.seconds).sum();
    let squares: f64 = waiting.iter().map(|next| next.seconds * next.seconds).sum();
    let own = left * nodes[me].lane.speed;
    if own <= 0.0 || work <= 0.0 {
        return 1.0;
    }
    // Noise of a sum of files: each adds its square, and mine are a part of all.
    let noise = rules.noise * (squares * (own / work).min(1.0)).sqrt() / own;
    let doubt = nodes[me].doubt.hypot(noise.min(rules.noise));
    // The latest of n nodes lies about so many standard deviations behind their mean.
    let latest = (2.0 * (nodes.len().max(2) as f64).ln()).sqrt();
    if doubt * left * latest * rules.last_batch < start_up {
        return 1.0;
    }
    (1.0 - rules.caution * doubt).clamp(rules.least_share, 1.0)
}

/// What a plan over all nodes gives to `me`: longest first, each to where it ends first. With it, who gets the first.
fn plan_for(now: f64, start_up: f64, lanes: &[Lane], me: usize, waiting: &[WaitingItem]) -> (Vec<WaitingItem>, usize) {
    let mut ends: Vec<f64> = lanes.iter().map(|lane| lane.free_at.max(now) + start_up).collect();
    let (mut mine, mut first_goes_to) = (Vec::new(), me);
    for (place, next) in waiting.iter().enumerate() {
        // Of equals the one that asks, since it is here.
        let mut best = me;
        let mut soonest = ends[me] + next.seconds / lanes[me].speed;
        for (at, lane) in lanes.iter().enumerate() {
            let end = ends[at] + next.seconds / lane.speed;
            if end < soonest - 1e-9 {
                (best, soonest) = (at, end);
            }
        }
        ends[best] = soonest;
        if place == 0 {
            first_goes_to = best;
        }
        if best == me {
            mine.push(*next);
        }
    }
    (mine, first_goes_to)
}

/// A file that ends after everything else would, if this node may end it before its holder does and isn't needed.
fn race(
    now: f64,
    start_up: f64,
    nodes: &[NodeView],
    me: usize,
    waiting: &[WaitingItem],
    racers: &[Racer],
) -> Option<usize> {
    let last = racers.iter().max_by(|one, other| one.ends_at.total_cmp(&other.ends_at))?;
    let own_end = now + start_up + last.seconds / nodes[me].lane.speed;
    // Two standard deviations of the difference of two speeds.
    let chance = 2.0 * nodes[me].doubt * std::f64::consts::SQRT_2 * last.seconds;
    let others: Vec<Lane> = nodes.iter().enumerate().filter(|(at, _)| *at != me).map(|(_, node)| node.lane).collect();
    let work: f64 = waiting.iter().map(|next| next.seconds).sum();
    let level = water_level(work, &others, start_up);
    // The others must be done well before, or else racing one file delays all.
    let spare = level - now <= 0.9 * (last.ends_at - now);
    (spare && own_end <= last.ends_at + chance).then_some(last.item)
}
