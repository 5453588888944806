//! The laws of the board: whatever dies when, each item counts once, and the record plays again.

use super::*;
use crate::clock::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Numbers that look random and are the same each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn item(path: &str, predicted_ms: u64) -> Item {
    Item { path: path.into(), cases: Vec::new(), except: Vec::new(), predicted_ms, seen: true, expected_cases: 0 }
}

fn items(count: usize) -> Vec<Item> {
    (0..count).map(|at| item(&format!("test_{at}.py"), 1_000 + 137 * (at as u64 % 29))).collect()
}

fn at(ms: i64) -> Timestamp {
    Timestamp(1_000_000 + ms)
}

fn board(rules: Rules, count: usize, nodes: u16) -> Board {
    Board::new(rules, items(count), nodes, at(0))
}

fn pull(board: &mut Board, ms: i64, node: u16) -> LeaseId {
    match board.apply(at(ms), Event::Pull { node, attempt: 1 }) {
        Answer::Batch { lease } => lease,
        other => panic!("node {node} got {other:?}"),
    }
}

fn held(board: &Board, lease: LeaseId) -> Vec<u32> {
    board.lease(lease).unwrap().items.clone()
}

fn pass(board: &mut Board, ms: i64, lease: LeaseId) {
    let mut wall = 500;
    for item in held(board, lease) {
        let wall_ms = board.items()[item as usize].predicted_ms;
        wall += wall_ms;
        board.apply(at(ms), Event::Report { lease, item, outcome: Outcome::Passed, wall_ms });
    }
    assert_eq!(board.apply(at(ms), Event::Finish { lease, wall_ms: wall }), Answer::Accepted);
}

#[test]
fn a_node_that_is_about_to_ask_is_counted_on_and_one_that_waits_is_not() {
    let mut board = board(Rules::default(), 40, 2);
    let total: u64 = board.items().iter().map(|item| item.predicted_ms).sum();
    let share = |board: &Board, lease: LeaseId| {
        let held = held(board, lease);
        held.iter().map(|item| board.items()[*item as usize].predicted_ms).sum::<u64>() as f64 / total as f64
    };
    for node in 0..2 {
        assert_eq!(board.apply(at(0), Event::Join { node, attempt: 1 }), Answer::Welcome);
    }
    let first = pull(&mut board, 10, 0);
    assert!(share(&board, first) <= 0.5, "{}", share(&board, first));
    // Likewise between a batch and the next.
    let second = pull(&mut board, 20, 1);
    pass(&mut board, 30_000, first);
    pass(&mut board, 30_001, second);
    let (before, third) = (share(&board, first) + share(&board, second), pull(&mut board, 30_002, 1));
    assert!(share(&board, third) <= (1.0 - before) * 0.6, "{}", share(&board, third));
    while !board.is_over() {
        for node in 0..2 {
            if let Answer::Batch { lease } = board.apply(at(60_000), Event::Pull { node, attempt: 1 }) {
                pass(&mut board, 60_000, lease);
            }
        }
    }
    assert!(board.proof().is_green());
}

#[test]
fn a_board_without_trouble_ends_green_and_proves_it() {
    let mut board = board(Rules::default(), 40, 2);
    let mut now = 0;
    while !board.is_over() {
        for node in 0..2 {
            if let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node, attempt: 1 }) {
                now += 1_000;
                pass(&mut board, now, lease);
            }
        }
        assert!(now < 1_000_000, "it makes no progress");
    }
    assert_eq!(board.apply(at(now), Event::Pull { node: 0, attempt: 1 }), Answer::Over);
    let proof = board.proof();
    assert!(proof.is_green(), "{proof:?}");
    assert_eq!(proof.passed, 40);
    assert_eq!(board.start_up_ms(), 500 + (1_000 - 500) / (board.leases().count() as u64 + 1));
}

#[test]
fn a_pull_that_is_asked_again_gets_the_same_lease() {
    let mut board = board(Rules::default(), 40, 2);
    let first = pull(&mut board, 0, 0);
    assert_eq!(pull(&mut board, 10, 0), first);
    assert_eq!(board.leases().count(), 1);
}

#[test]
fn a_silent_lease_goes_to_another_and_its_late_result_is_refused() {
    let mut board = board(Rules::default(), 4, 2);
    let slow = pull(&mut board, 0, 0);
    let item = held(&board, slow)[0];
    assert_eq!(board.apply(at(9_999), Event::Expire { lease: slow }), Answer::Refused { why: Refusal::StillAlive });
    assert_eq!(board.heartbeat(at(5_000), slow), Some(held(&board, slow)));
    assert_eq!(board.silent(at(14_999)), []);
    assert_eq!(board.silent(at(15_000)), [slow]);
    assert_eq!(board.apply(at(15_000), Event::Expire { lease: slow }), Answer::Accepted);
    assert_eq!(board.heartbeat(at(15_001), slow), None, "it learns that its work is in vain");
    let report = Event::Report { lease: slow, item, outcome: Outcome::Passed, wall_ms: 1 };
    assert_eq!(board.apply(at(15_002), report), Answer::Refused { why: Refusal::LeaseOver });
    assert_eq!(board.settled(item), None);
    let mut now = 16_000;
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 1, attempt: 1 }) {
        now += 1_000;
        pass(&mut board, now, lease);
    }
    assert!(board.proof().is_green());
    // Frozen and awake again, the first node may go on with something new, under a new lease.
    assert_eq!(board.apply(at(now), Event::Pull { node: 0, attempt: 1 }), Answer::Over);
}

#[test]
fn only_the_holder_gives_back_and_only_once() {
    let mut board = board(Rules::default(), 4, 2);
    let lease = pull(&mut board, 0, 0);
    assert_eq!(board.apply(at(1), Event::GiveBack { lease }), Answer::Accepted);
    let again = pull(&mut board, 2, 1);
    assert_ne!(again, lease);
    let before = board.clone();
    assert_eq!(board.apply(at(3), Event::GiveBack { lease }), Answer::Accepted);
    assert_eq!(board, before, "what was given back twice is not taken from the new holder");
    assert_eq!(board.apply(at(3), Event::Finish { lease, wall_ms: 1 }), Answer::Refused { why: Refusal::LeaseOver });
    let foreign = (0..4).find(|item| !held(&board, again).contains(item));
    if let Some(item) = foreign {
        let report = Event::Report { lease: again, item, outcome: Outcome::Passed, wall_ms: 1 };
        assert_eq!(board.apply(at(4), report), Answer::Refused { why: Refusal::NotInThisLease });
    }
}

#[test]
fn a_node_that_takes_and_gives_back_for_ever_comes_to_an_end() {
    let mut board = board(Rules::default(), 200, 1);
    let mut rounds = 0;
    while let Answer::Batch { lease } = board.apply(at(rounds), Event::Pull { node: 0, attempt: 1 }) {
        board.apply(at(rounds), Event::GiveBack { lease });
        rounds += 1;
        assert!(rounds < 200 * 12, "it goes on and on");
    }
    assert!(board.is_over() && board.proof().red == 200, "{:?}", board.proof());
}

#[test]
fn a_batch_has_no_more_items_than_can_be_told_of() {
    let mut board = board(Rules::default(), 9_000, 1);
    let lease = pull(&mut board, 0, 0);
    assert_eq!(held(&board, lease).len(), crate::ci::wire::MOST_ITEMS);
}

#[test]
fn finished_files_of_a_node_that_dies_count_and_the_others_are_dealt_again() {
    let mut board = board(Rules::default(), 30, 3);
    let lease = pull(&mut board, 0, 0);
    let all = held(&board, lease);
    assert!(all.len() > 2, "{all:?}");
    let done = Event::Report { lease, item: all[0], outcome: Outcome::Passed, wall_ms: 900 };
    board.apply(at(900), done);
    assert_eq!(board.apply(at(1_000), Event::Lost { node: 0, attempt: 1 }), Answer::Accepted);
    assert!(board.settled(all[0]).is_some_and(|settled| settled.outcome == Outcome::Passed));
    let refused = Answer::Refused { why: Refusal::Replaced };
    assert_eq!(board.apply(at(1_001), Event::Pull { node: 0, attempt: 1 }), refused, "dead stays dead");
    let mut now = 1_001;
    while !board.is_over() {
        let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt: 2 }) else {
            panic!("its next process gets work")
        };
        assert!(!held(&board, lease).contains(&all[0]));
        now += 5_000;
        pass(&mut board, now, lease);
    }
    assert!(board.proof().is_green());
}

#[test]
fn a_failed_item_is_run_again_as_often_as_allowed_and_a_pass_after_it_is_flaky() {
    let mut board = Board::new(Rules { retries: 1, ..Rules::default() }, items(2), 1, at(0));
    let mut now = 0;
    let mut tries = BTreeMap::new();
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt: 1 }) {
        for item in held(&board, lease) {
            let tries = tries.entry(item).or_insert(0);
            *tries += 1;
            let outcome = if item == 0 && *tries == 2 { Outcome::Passed } else { Outcome::Failed };
            board.apply(at(now), Event::Report { lease, item, outcome, wall_ms: 100 });
        }
        now += 1_000;
        board.apply(at(now), Event::Finish { lease, wall_ms: 200 });
    }
    assert_eq!(tries, BTreeMap::from([(0, 2), (1, 2)]));
    let proof = board.proof();
    assert_eq!((proof.passed, proof.flaky, proof.red), (1, 1, 1));
    assert!(!proof.is_green() && proof.gaps.is_empty());
}

#[test]
fn the_item_that_breaks_its_batch_is_found_and_the_others_pass() {
    let killer = 13;
    let mut board = board(Rules::default(), 64, 1);
    let (mut now, mut batches) = (0, 0);
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt: 1 }) {
        now += 1_000;
        batches += 1;
        if held(&board, lease).contains(&killer) {
            board.apply(at(now), Event::Finish { lease, wall_ms: 700 });
        } else {
            pass(&mut board, now, lease);
        }
    }
    let proof = board.proof();
    assert_eq!((proof.passed, proof.red), (63, 1), "{proof:?}");
    assert_eq!(board.settled(killer).unwrap().outcome, Outcome::Missing);
    assert!(batches < 40, "{batches}");
}

#[test]
fn a_suite_whose_command_always_breaks_ends_soon_and_red() {
    let mut board = board(Rules::default(), 500, 2);
    let (mut now, mut batches) = (0, 0);
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt: 1 }) {
        now += 1_000;
        batches += 1;
        board.apply(at(now), Event::Finish { lease, wall_ms: 10 });
    }
    assert!(board.is_over());
    assert!(batches <= 20, "{batches}");
    let proof = board.proof();
    assert!(!proof.is_green());
    assert_eq!(proof.red, 500);
}

#[test]
fn an_item_that_kills_every_node_is_red_in_the_end() {
    let mut board = board(Rules::default(), 8, 1);
    let mut attempt = 1;
    let mut now = 0;
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt }) {
        now += 1_000;
        if held(&board, lease).contains(&3) {
            board.apply(at(now), Event::Lost { node: 0, attempt });
            attempt += 1;
        } else {
            pass(&mut board, now, lease);
        }
        assert!(attempt < 12, "it is never given up");
    }
    assert_eq!(board.settled(3).unwrap().outcome, Outcome::Crashed);
    assert_eq!(board.proof().passed, 7);
}

#[test]
fn nothing_planned_and_nothing_settled_are_no_proof() {
    assert_eq!(Board::new(Rules::default(), Vec::new(), 2, at(0)).proof().gaps, [Gap::NothingPlanned]);
    let mut board = board(Rules::default(), 2, 1);
    assert_eq!(board.proof().gaps, [Gap::Unsettled { item: 0 }, Gap::Unsettled { item: 1 }]);
    board.apply(at(1), Event::Abandon);
    assert!(board.is_over());
    assert!(!board.proof().is_green());
}

#[test]
fn files_of_which_none_holds_a_test_are_no_proof() {
    let ends = |outcomes: [Outcome; 2]| {
        let mut board = board(Rules::default(), 2, 1);
        while let Answer::Batch { lease } = board.apply(at(0), Event::Pull { node: 0, attempt: 1 }) {
            for item in held(&board, lease) {
                let outcome = outcomes[item as usize];
                board.apply(at(1), Event::Report { lease, item, outcome, wall_ms: 1 });
            }
            board.apply(at(1), Event::Finish { lease, wall_ms: 2 });
        }
        board.proof()
    };
    assert!(ends([Outcome::Passed, Outcome::Empty]).is_green());
    let none = ends([Outcome::Empty, Outcome::Empty]);
    assert_eq!((none.empty, none.red, &none.gaps, none.is_green()), (2, 0, &Vec::new(), false));
}

#[test]
fn files_that_nobody_has_seen_are_dealt_early() {
    let mut planned = items(50);
    planned.push(Item { seen: false, ..item("test_new.py", 1_500) });
    let mut board = Board::new(Rules::default(), planned, 4, at(0));
    let lease = pull(&mut board, 0, 0);
    assert!(held(&board, lease).contains(&50));
}

#[test]
fn a_file_that_decides_the_end_may_race_and_counts_once() {
    let mut planned = vec![item("long.py", 600_000)];
    planned.extend(items(20));
    let mut board = Board::new(Rules { race: 2, ..Rules::default() }, planned, 4, at(0));
    let first = pull(&mut board, 0, 0);
    assert_eq!(held(&board, first), [0]);
    let second = pull(&mut board, 100, 1);
    assert_eq!(held(&board, second), [0], "a node that is not needed for the rest runs it too");
    let third = pull(&mut board, 200, 2);
    assert!(!held(&board, third).contains(&0), "but not a third");
    pass(&mut board, 500_000, second);
    let late = Event::Report { lease: first, item: 0, outcome: Outcome::Failed, wall_ms: 600_000 };
    assert_eq!(board.apply(at(600_000), late), Answer::Refused { why: Refusal::AlreadySettled });
    assert_eq!(board.heartbeat(at(600_000), first), None);
    pass(&mut board, 600_001, third);
    let mut now = 600_002;
    while let Answer::Batch { lease } = board.apply(at(now), Event::Pull { node: 0, attempt: 1 }) {
        now += 1_000;
        pass(&mut board, now, lease);
    }
    assert!(board.proof().is_green(), "{:?}", board.proof());
}

/// What really ran: every result that was ever told, accepted or not.
struct Chaos {
    board: Board,
    numbers: Numbers,
    now: i64,
    /// Each node's process and the lease that it believes to hold.
    attempts: Vec<u32>,
    believed: Vec<Option<LeaseId>>,
    accepted: BTreeMap<u32, u64>,
    failing: BTreeSet<u32>,
}

impl Chaos {
    fn step(&mut self) {
        self.now += self.numbers.below(4_000) as i64;
        let node = self.numbers.below(self.attempts.len() as u64) as u16;
        let place = usize::from(node);
        match self.numbers.below(100) {
            0..=34 => {
                if let Answer::Batch { lease } = self.tell(Event::Pull { node, attempt: self.attempts[place] }) {
                    self.believed[place] = Some(lease);
                }
            }
            35..=74 => self.report_one(place),
            75..=84 => {
                if let Some(lease) = self.believed[place].take() {
                    self.tell(Event::Finish { lease, wall_ms: 5_000 });
                }
            }
            85..=88 => {
                self.tell(Event::Lost { node, attempt: self.attempts[place] });
                // The process may not know that it is taken for dead, and talk on.
                self.attempts[place] += 1;
            }
            89..=91 => {
                if let Some(lease) = self.believed[place] {
                    self.tell(Event::GiveBack { lease });
                }
            }
            92..=95 => {
                for lease in self.board.silent(at(self.now)) {
                    self.tell(Event::Expire { lease });
                }
            }
            _ => {
                if let Some(lease) = self.believed[place] {
                    self.board.heartbeat(at(self.now), lease);
                }
            }
        }
    }

    fn report_one(&mut self, place: usize) {
        let Some(lease) = self.believed[place] else { return };
        let items = self.board.lease(lease).unwrap().items.clone();
        let item = items[self.numbers.below(items.len() as u64) as usize];
        let outcome = if self.failing.contains(&item) { Outcome::Failed } else { Outcome::Passed };
        let before = self.board.settled(item).copied();
        let wall_ms = self.numbers.below(3_000);
        self.tell(Event::Report { lease, item, outcome, wall_ms });
        let after = self.board.settled(item).copied();
        if before.is_some() {
            assert_eq!(before, after, "what is settled never changes");
        } else if after.is_some() {
            *self.accepted.entry(item).or_default() += 1;
        }
    }

    fn tell(&mut self, event: Event) -> Answer {
        let answer = self.board.apply(at(self.now), event.clone());
        if self.numbers.chance(10) && !matches!(event, Event::Pull { .. }) {
            // A sender that did not hear the answer says it again.
            let before = self.board.clone();
            self.board.apply(at(self.now), event);
            assert_eq!(self.board, before, "an event told again changes nothing");
        }
        answer
    }
}

#[test]
fn every_item_counts_exactly_once_whatever_dies_when() {
    let mut green = 0;
    for seed in 1..=300u64 {
        let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let count = 1 + numbers.below(60) as usize;
        let nodes = 1 + numbers.below(6) as usize;
        let rules = Rules {
            retries: numbers.below(3) as u32,
            race: 1 + numbers.below(3) as u16,
            streamed: numbers.chance(50),
            ..Rules::default()
        };
        let failing: BTreeSet<u32> = if numbers.chance(50) {
            BTreeSet::new()
        } else {
            (0..count as u32).filter(|_| numbers.chance(5)).collect()
        };
        let mut chaos = Chaos {
            board: board(rules.clone(), count, nodes as u16),
            numbers,
            now: 0,
            attempts: vec![1; nodes],
            believed: vec![None; nodes],
            accepted: BTreeMap::new(),
            failing,
        };
        for _ in 0..300 {
            chaos.step();
        }
        // Then the weather clears: one node works through what is left.
        let mut rounds = 0;
        while !chaos.board.is_over() {
            rounds += 1;
            assert!(rounds < 5_000, "seed {seed} never ends");
            chaos.now += 11_000;
            for lease in chaos.board.silent(at(chaos.now)) {
                chaos.tell(Event::Expire { lease });
            }
            let attempt = chaos.attempts[0];
            if let Answer::Batch { lease } = chaos.tell(Event::Pull { node: 0, attempt }) {
                chaos.believed[0] = Some(lease);
                for item in chaos.board.lease(lease).unwrap().items.clone() {
                    let outcome = if chaos.failing.contains(&item) { Outcome::Failed } else { Outcome::Passed };
                    chaos.tell(Event::Report { lease, item, outcome, wall_ms: 1_000 });
                }
                chaos.tell(Event::Finish { lease, wall_ms: 2_000 });
            }
        }
        let board = &chaos.board;
        let proof = board.proof();
        assert_eq!(proof.gaps, [], "seed {seed}");
        assert_eq!(proof.passed + proof.empty + proof.red, count as u64, "seed {seed}");
        assert!(chaos.accepted.values().all(|times| *times == 1), "seed {seed}");
        for item in &chaos.failing {
            assert!(!board.settled(*item).unwrap().outcome.is_green(), "seed {seed}: item {item} never passed");
        }
        if proof.is_green() {
            green += 1;
            let mut times = vec![0; count];
            board.leases().flat_map(|(_, lease)| &lease.counted).for_each(|item| times[*item as usize] += 1);
            assert!(times.iter().all(|times| *times == 1), "seed {seed}");
        }
        replays(board, rules, count, nodes as u16, seed);
    }
    assert!(green > 30, "only {green} of the runs were green: they prove little");
}

/// The record, through its stored form, makes the same leases and the same results.
fn replays(board: &Board, rules: Rules, count: usize, nodes: u16, seed: u64) {
    let stored = serde_json::to_string(board.record()).unwrap();
    let record: Vec<Recorded> = serde_json::from_str(&stored).unwrap();
    let again = Board::replay(rules, items(count), nodes, at(0), &record);
    for ((_, one), (_, other)) in board.leases().zip(again.leases()) {
        assert_eq!((one.node, &one.items, one.state), (other.node, &other.items, other.state), "seed {seed}");
        assert_eq!(one.counted, other.counted, "seed {seed}");
    }
    assert_eq!(board.leases().count(), again.leases().count(), "seed {seed}");
    assert_eq!(board.proof(), again.proof(), "seed {seed}");
    let whole: Board = serde_json::from_str(&serde_json::to_string(board).unwrap()).unwrap();
    assert_eq!(&whole, board, "seed {seed}");
}
