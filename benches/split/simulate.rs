//! One simulated run.

use landfall::ci::split::{
    Answer, Board, CaseTime, Event, Item, Lane, LeaseId, Measured, Outcome, Rules, lower_bound, plan, predict,
};
use landfall::clock::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

pub struct Scenario {
    pub name: &'static str,
    pub start_up: f64,
    /// Nodes come evenly spread over so many seconds.
    pub ready: f64,
    /// Their speeds are spread evenly over 1 ± this.
    pub speeds: f64,
    /// Standard deviation of the logarithm of a file's time.
    pub noise: f64,
    /// Whether one node, any of them, ends after half of the bound and none takes its place; so many seconds later it is
    /// noticed.
    pub dies: Option<f64>,
    /// Whether predictions are the true times, on equal nodes that are all there.
    pub perfect: bool,
    /// The mean that is to be reached, for some numbers of nodes.
    pub goals: &'static [(u16, f64)],
}

impl Scenario {
    pub fn all() -> Vec<Scenario> {
        let usual = Scenario {
            name: "1 s start-up, ready 0 to 30 s apart, speeds ±10 %, noise 15 %",
            start_up: 1.0,
            ready: 30.0,
            speeds: 0.10,
            noise: 0.15,
            dies: None,
            perfect: false,
            goals: &[(4, 1.015), (8, 1.05), (16, 1.13)],
        };
        vec![
            Scenario { ..usual },
            Scenario {
                name: "8 s start-up, ready 0 to 60 s apart, speeds ±15 %, noise 15 %",
                start_up: 8.0,
                ready: 60.0,
                speeds: 0.15,
                goals: &[(4, 1.04), (8, 1.09), (16, 1.18)],
                ..usual
            },
            // A process that ends is seen at once by whoever started it.
            Scenario {
                name: "one node dying half-way, seen after 1 s, else as the first",
                dies: Some(1.0),
                goals: &[(4, 1.19), (8, 1.15), (16, 1.18)],
                ..usual
            },
            // One that hangs, or whose machine is gone, is missed after `heartbeat_ms`.
            Scenario {
                name: "one node falling silent half-way, missed after 10 s, else as the first",
                dies: Some(10.0),
                goals: &[],
                ..usual
            },
            Scenario {
                name: "perfect knowledge: true times, equal nodes, all there",
                ready: 0.0,
                speeds: 0.0,
                noise: 0.0,
                perfect: true,
                goals: &[(4, 1.0), (8, 1.0), (16, 1.0), (64, 1.0)],
                ..usual
            },
        ]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Hash,
    RoundRobin,
    LongestFirst,
    QueueOfOne,
    Ours,
    OursCut,
    OursWhole,
    OursRacing,
}

impl Way {
    pub const ALL: [Way; 8] = [
        Way::Hash,
        Way::RoundRobin,
        Way::LongestFirst,
        Way::QueueOfOne,
        Way::Ours,
        Way::OursCut,
        Way::OursRacing,
        Way::OursWhole,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Way::Hash => "hash of the path",
            Way::RoundRobin => "round robin",
            Way::LongestFirst => "static longest first",
            Way::QueueOfOne => "queue of one",
            Way::Ours => "ours",
            Way::OursCut => "ours, long files cut by case",
            Way::OursWhole => "ours, results by whole batch",
            Way::OursRacing => "ours, the longest may race (3)",
        }
    }

    /// A static share is lost with its node.
    pub fn survives(self) -> bool {
        !matches!(self, Way::Hash | Way::RoundRobin | Way::LongestFirst)
    }
}

/// FNV-1a.
fn hash_of(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Test cases that every file is taken to have, since histories of files know none.
const CASES: usize = 20;

/// The lengths of a file's cases as parts of the whole: log-normal with the standard deviation 1, the same at every run.
fn cases_of(path: &str) -> Vec<f64> {
    let mut numbers = Numbers::new(hash_of(path));
    let lengths: Vec<f64> = (0..CASES).map(|_| numbers.normal().exp()).collect();
    let total: f64 = lengths.iter().sum();
    lengths.into_iter().map(|length| length / total).collect()
}

/// What one item is of its file, as a part of the whole.
fn part_of(item: &Item) -> f64 {
    if !item.is_part() {
        return 1.0;
    }
    let parts = cases_of(&item.path);
    let sum = |ids: &[String]| -> f64 { ids.iter().map(|id| parts[id.parse::<usize>().expect("a number")]).sum() };
    if item.except.is_empty() { sum(&item.cases) } else { 1.0 - sum(&item.except) }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// With mean 0 and standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// What is true of one run, whoever deals.
struct Truth {
    /// In the order of the plan.
    seconds: Vec<f64>,
    lanes: Vec<Lane>,
    bound: f64,
    /// Which node dies, and when.
    death: Option<(usize, f64)>,
}

/// The makespan over the lower bound. The bound does not know of a death; the second number is the least that whoever
/// knew of it beforehand would need, over the same bound.
pub fn simulate(
    scenario: &Scenario,
    way: Way,
    before: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
    nodes: u16,
    rules: &Rules,
    seed: u64,
) -> (f64, f64) {
    let mut numbers = Numbers::new(seed);
    let noise = scenario.noise;
    let measured = |(path, seconds): (&String, &f64)| Measured {
        path: path.clone(),
        wall_ms: (seconds * 1_000.0).round() as u64,
        passed: true,
        cases: 0,
        case_times: Vec::new(),
    };
    let actual: BTreeMap<String, f64> = now
        .iter()
        .map(|(path, seconds)| (path.clone(), seconds * (noise * numbers.normal() - noise * noise / 2.0).exp()))
        .collect();
    let history: Vec<Measured> =
        if scenario.perfect { actual.iter().map(measured).collect() } else { before.iter().map(measured).collect() };
    let predictions = predict(&[history]);
    let mut cases = BTreeMap::new();
    if way == Way::OursCut {
        for (path, known) in &predictions.files {
            let times = cases_of(path)
                .into_iter()
                .enumerate()
                .map(|(id, part)| CaseTime { id: format!("{id:02}"), wall_ms: (part * known.wall_ms as f64) as u64 });
            cases.insert(path.clone(), times.collect());
        }
    }
    let start_up_ms = (scenario.start_up * 1_000.0) as u64;
    let items = plan(&now.keys().cloned().collect(), &predictions, nodes, &cases, start_up_ms);
    let lanes: Vec<Lane> = (0..nodes)
        .map(|_| Lane {
            free_at: scenario.ready * numbers.unit(),
            speed: 1.0 + scenario.speeds * (2.0 * numbers.unit() - 1.0),
        })
        .collect();
    // Whoever cuts is measured against the bound of what was cut, which is the lower one.
    let seconds: Vec<f64> = items.iter().map(|item| actual[&item.path] * part_of(item)).collect();
    let bound = lower_bound(&seconds, &lanes, scenario.start_up);
    let death = scenario.dies.map(|_| (numbers.next() as usize % lanes.len(), bound / 2.0));
    let truth = Truth { seconds, lanes, bound, death };
    let end = match way {
        Way::Hash | Way::RoundRobin | Way::LongestFirst => fixed(way, &items, &truth, scenario),
        Way::QueueOfOne => queue_of_one(&items, &truth, scenario),
        Way::Ours | Way::OursCut | Way::OursWhole | Way::OursRacing => {
            let mut rules = Rules {
                start_up_ms: (scenario.start_up * 1_000.0) as u64,
                streamed: way != Way::OursWhole,
                race: if way == Way::OursRacing { 3 } else { 1 },
                ..rules.clone()
            };
            if scenario.perfect {
                (rules.noise, rules.speed_spread, rules.expected_ms) = (0.0, 0.0, 0);
            }
            Ours::new(rules, items, &truth, scenario).run()
        }
    };
    (end / truth.bound, least(&truth, scenario.start_up) / truth.bound)
}

/// When all work could have been done if the node that dies did as much as it could and the others the rest.
fn least(truth: &Truth, start_up: f64) -> f64 {
    let Some((dead, when)) = truth.death else { return truth.bound };
    let lane = truth.lanes[dead];
    let others: Vec<Lane> =
        truth.lanes.iter().enumerate().filter(|(node, _)| *node != dead).map(|(_, lane)| *lane).collect();
    let done = ((when - lane.free_at - start_up) * lane.speed).max(0.0);
    // Less work in each file, so that the longest is no more of an obstacle than it is anyway.
    let total: f64 = truth.seconds.iter().sum();
    let left: Vec<f64> = truth.seconds.iter().map(|seconds| seconds * (1.0 - done / total).max(0.0)).collect();
    lower_bound(&left, &others, start_up).max(truth.bound)
}

/// Shares that are fixed before the run; each node starts up once.
fn fixed(way: Way, items: &[Item], truth: &Truth, scenario: &Scenario) -> f64 {
    let nodes = truth.lanes.len();
    let mut order: Vec<usize> = (0..items.len()).collect();
    if way == Way::LongestFirst {
        order.sort_by_key(|item| Reverse(items[*item].predicted_ms));
    }
    let (mut loads, mut predicted) = (vec![0.0; nodes], vec![0u64; nodes]);
    for (place, item) in order.into_iter().enumerate() {
        let node = match way {
            Way::Hash => (hash_of(&items[item].path) >> 16) as usize % nodes,
            Way::RoundRobin => place % nodes,
            _ => (0..nodes).min_by_key(|node| predicted[*node]).unwrap_or(0),
        };
        predicted[node] += items[item].predicted_ms;
        loads[node] += truth.seconds[item];
    }
    let end = |(lane, load): (&Lane, &f64)| lane.free_at + scenario.start_up + load / lane.speed;
    truth.lanes.iter().zip(&loads).filter(|(_, load)| **load > 0.0).map(end).fold(0.0, f64::max)
}

/// Each node takes the longest file that is left and starts up for it.
fn queue_of_one(items: &[Item], truth: &Truth, scenario: &Scenario) -> f64 {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|item| items[*item].predicted_ms);
    let mut free: Vec<f64> = truth.lanes.iter().map(|lane| lane.free_at).collect();
    let (mut last, mut back): (f64, Option<(f64, usize)>) = (0.0, None);
    let mut buried = false;
    while !order.is_empty() || back.is_some() {
        let alive = |node: &usize| !(buried && truth.death.is_some_and(|(dead, _)| dead == *node));
        let node =
            (0..free.len()).filter(alive).min_by(|one, other| free[*one].total_cmp(&free[*other])).expect("one lives");
        // What died with its node is dealt first, once that is noticed.
        let item = match back.filter(|(noticed, _)| *noticed <= free[node] || order.is_empty()) {
            Some((noticed, item)) => {
                free[node] = free[node].max(noticed);
                back = None;
                item
            }
            None => order.pop().expect("something is left"),
        };
        let end = free[node] + scenario.start_up + truth.seconds[item] / truth.lanes[node].speed;
        match truth.death {
            Some((dead, when)) if dead == node && !buried && end > when => {
                buried = true;
                back = Some((when.max(free[node]) + scenario.dies.unwrap_or(0.0), item));
            }
            _ => {
                free[node] = end;
                last = last.max(end);
            }
        }
    }
    last
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Reported {
        node: usize,
        lease: LeaseId,
        item: u32,
        wall_ms: u64,
    },
    Finished {
        node: usize,
        lease: LeaseId,
        wall_ms: u64,
    },
    /// Looks for work, or whether the lease is still wanted.
    Looks {
        node: usize,
    },
    Beats {
        node: usize,
        lease: LeaseId,
    },
    Dies {
        node: usize,
    },
    Noticed {
        node: usize,
    },
}

/// The product's board, driven by simulated nodes.
struct Ours<'a> {
    board: Board,
    truth: &'a Truth,
    scenario: &'a Scenario,
    queue: BinaryHeap<Reverse<(i64, u64, Moment)>>,
    sequence: u64,
    dead: Option<usize>,
    idle: Vec<bool>,
    end: i64,
}

impl<'a> Ours<'a> {
    fn new(rules: Rules, items: Vec<Item>, truth: &'a Truth, scenario: &'a Scenario) -> Ours<'a> {
        let nodes = truth.lanes.len();
        let board = Board::new(rules, items, nodes as u16, Timestamp(0));
        let mut ours = Ours {
            board,
            truth,
            scenario,
            queue: BinaryHeap::new(),
            sequence: 0,
            dead: None,
            idle: vec![false; nodes],
            end: 0,
        };
        for (node, lane) in truth.lanes.iter().enumerate() {
            ours.later((lane.free_at * 1_000.0) as i64, Moment::Looks { node });
        }
        if let Some((node, when)) = truth.death {
            ours.later((when * 1_000.0) as i64, Moment::Dies { node });
        }
        ours
    }

    fn later(&mut self, at: i64, moment: Moment) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, moment)));
    }

    fn run(mut self) -> f64 {
        while let Some(Reverse((now, _, moment))) = self.queue.pop() {
            if self.board.is_over() {
                break;
            }
            self.step(now, moment);
        }
        let proof = self.board.proof();
        assert!(proof.is_green(), "a simulated run is complete: {proof:?}");
        self.end as f64 / 1_000.0
    }

    fn step(&mut self, now: i64, moment: Moment) {
        let at = Timestamp(now);
        let (Moment::Reported { node, .. }
        | Moment::Finished { node, .. }
        | Moment::Looks { node }
        | Moment::Beats { node, .. }
        | Moment::Dies { node }
        | Moment::Noticed { node }) = moment;
        if self.dead == Some(node) && !matches!(moment, Moment::Noticed { .. }) {
            return;
        }
        match moment {
            Moment::Looks { .. } => self.look(now, node),
            Moment::Reported { lease, item, wall_ms, .. } => {
                if self.board.apply(at, Event::Report { lease, item, outcome: Outcome::Passed, wall_ms })
                    == Answer::Accepted
                {
                    self.end = self.end.max(now);
                    self.wake_rivals(now, lease, item);
                }
            }
            Moment::Finished { lease, wall_ms, .. } => {
                if self.board.apply(at, Event::Finish { lease, wall_ms }) == Answer::Accepted {
                    self.end = self.end.max(now);
                    self.later(now, Moment::Looks { node });
                }
            }
            Moment::Beats { lease, .. } => {
                if self.board.heartbeat(at, lease).is_none() {
                    self.board.apply(at, Event::GiveBack { lease });
                    self.later(now, Moment::Looks { node });
                }
            }
            Moment::Dies { .. } => {
                self.dead = Some(node);
                let seconds = self.scenario.dies.unwrap_or(0.0);
                self.later(now + (seconds * 1_000.0) as i64, Moment::Noticed { node });
            }
            Moment::Noticed { .. } => {
                self.board.apply(at, Event::Lost { node: node as u16, attempt: 1 });
                for node in 0..self.idle.len() {
                    if std::mem::take(&mut self.idle[node]) {
                        self.later(now, Moment::Looks { node });
                    }
                }
            }
        }
    }

    fn look(&mut self, now: i64, node: usize) {
        self.idle[node] = false;
        match self.board.apply(Timestamp(now), Event::Pull { node: node as u16, attempt: 1 }) {
            Answer::Batch { lease } => {
                let held = self.board.lease(lease).expect("it was dealt").items.clone();
                let lane = self.truth.lanes[node];
                let mut clock = self.scenario.start_up;
                let mut ends = Vec::new();
                for item in held {
                    let wall = self.truth.seconds[item as usize] / lane.speed;
                    clock += wall;
                    ends.push((item, clock, (wall * 1_000.0).round() as u64));
                }
                let finish = now + (clock * 1_000.0).ceil() as i64;
                for (item, end, wall_ms) in ends {
                    let end = if self.board.rules().streamed { now + (end * 1_000.0) as i64 } else { finish };
                    self.later(end, Moment::Reported { node, lease, item, wall_ms });
                }
                self.later(finish, Moment::Finished { node, lease, wall_ms: (finish - now) as u64 });
            }
            Answer::Wait { until } => {
                self.idle[node] = true;
                // A second is as good as an eighth of it here, and many times faster to simulate.
                self.later(until.0, Moment::Looks { node });
            }
            _ => {}
        }
    }

    /// Whoever ran the same file learns with its next heartbeat, a second later, that it is in vain.
    fn wake_rivals(&mut self, now: i64, winner: LeaseId, item: u32) {
        let rivals: Vec<(LeaseId, usize)> = self
            .board
            .leases()
            .filter(|(id, lease)| *id != winner && lease.ended_at.is_none() && lease.items.contains(&item))
            .map(|(id, lease)| (id, usize::from(lease.node)))
            .collect();
        for (lease, node) in rivals {
            self.later(now + 1_000, Moment::Beats { node, lease });
        }
    }
}
