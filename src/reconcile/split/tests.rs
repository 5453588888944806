//! Nodes that lie, repeat themselves and outlive the control plane.

use super::{Who, answer, batches, put_plan, view};
use crate::ci::judge::BatchEnd;
use crate::ci::presets::Unit;
use crate::ci::split::{Item, LeaseId, Outcome, Refusal, Rules};
use crate::ci::wire::{Answer, Done, Failed, ItemDone, Orders, Request};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::*;
use crate::platform::{Memory, Platform};
use crate::reconcile::World;
use crate::router::Router;
use crate::server::{Parts, open_world};
use crate::workflow::SplitPlan;
use std::collections::BTreeMap;
use std::time::Duration;

const RUN: RunNumber = RunNumber(1);

struct House {
    world: World,
    _folder: tempfile::TempDir,
}

/// A run of two nodes with so many files of one second each.
async fn house(files: u32) -> House {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    config.github.token = Some(Secret::new("token"));
    let clock = Clock::manual(Timestamp(1_700_000_000_000));
    let parts = Parts {
        platform: Platform::Memory(Memory::new(clock.clone())),
        clock,
        router: Router::memory().0,
        router_port: 8000,
        outside: None,
    };
    let world = open_world(config, parts).expect("a world");
    let now = world.now();
    let orders = Orders {
        command: "run {files} {junit}".into(),
        environment: Vec::new(),
        junit: None,
        unit: Unit::File,
        empty_status: None,
        timeout_ms: None,
        quarantine: Vec::new(),
        cases: None,
        fixed: false,
    };
    let items: Vec<Item> = (0..files)
        .map(|at| Item {
            path: format!("test_{at}"),
            cases: Vec::new(),
            except: Vec::new(),
            predicted_ms: 1_000,
            seen: true,
            expected_cases: 0,
        })
        .collect();
    let plan = SplitPlan { orders, rules: Rules::default(), nodes: 2, opened_at: now };
    let run = TestRun {
        number: RUN,
        repository: RepositoryId(1),
        ordinal: 1,
        pull: None,
        part: Part::OWN,
        branch: "main".into(),
        commit: "a".repeat(40).parse().expect("a commit"),
        tree: None,
        created_at: now,
        started_at: Some(now),
        nodes: 2,
        results: BTreeMap::new(),
        cancelled: None,
        verdict: None,
        finished_at: None,
        split: Some(SplitSummary::default()),
        only_failed_of: None,
        repeats: None,
        untrusted: false,
        setup: Setup::Open,
    };
    world
        .store
        .transact(move |tx| {
            put_plan(tx, RUN, &plan, &items)?;
            tx.put_run(&run)
        })
        .await
        .expect("the store takes it");
    House { world, _folder: folder }
}

impl House {
    async fn say(&self, node: u16, request: Request) -> Answer {
        answer(&self.world, Who { run: RUN, node, attempt: 1 }, request).await.expect("an answer")
    }

    async fn batch(&self, node: u16) -> (LeaseId, Vec<u32>) {
        match self.say(node, Request::Pull).await {
            Answer::Batch { lease, items, .. } => (lease, items.into_iter().map(|(number, _)| number).collect()),
            other => panic!("no batch but {other:?}"),
        }
    }
}

fn done(end: BatchEnd, items: &[u32]) -> Done {
    let items = items
        .iter()
        .map(|item| ItemDone { item: *item, outcome: Outcome::Passed, wall_ms: 900, cases: 2, part: None })
        .collect();
    Done {
        end,
        wall_ms: 2_000,
        items,
        counts: Counts::default(),
        failures: Vec::<Failed>::new(),
        quarantined: Vec::new(),
        flaky: Vec::new(),
        cases: Vec::new(),
    }
}

const WELL: BatchEnd = BatchEnd::Exited { status: 0 };

#[tokio::test]
async fn a_node_speaks_for_its_own_leases_only() {
    let house = house(10).await;
    assert!(matches!(house.say(0, Request::Join).await, Answer::Welcome { .. }));
    let (lease, items) = house.batch(0).await;
    let (other, others) = house.batch(1).await;
    assert!(lease != other && items.iter().all(|item| !others.contains(item)));
    let lie = Request::Done { lease, done: done(WELL, &items) };
    assert_eq!(house.say(1, lie).await, Answer::Refused { why: Refusal::NoSuchLease });
    assert_eq!(house.say(1, Request::Beat { lease }).await, Answer::Stop);
    house.say(1, Request::GiveBack { lease }).await;
    assert_eq!(house.say(0, Request::Beat { lease }).await, Answer::Go, "its lease was taken away");
    // What it doesn't hold it can't pass, under its own lease neither.
    let both: Vec<u32> = items.iter().chain(&others).copied().collect();
    assert_eq!(house.say(0, Request::Done { lease, done: done(WELL, &both) }).await, Answer::Taken);
    assert_eq!(house.say(1, Request::Beat { lease: other }).await, Answer::Go);
    let seen = view(&house.world, RUN).await.expect("a view").expect("a board");
    assert_eq!(seen.proof.passed, items.len() as u64);
    let killed = Request::Done { lease: other, done: done(BatchEnd::Killed, &others) };
    assert_eq!(house.say(1, killed).await, Answer::Taken);
    let seen = view(&house.world, RUN).await.expect("a view").expect("a board");
    assert_eq!(seen.proof.passed, items.len() as u64, "a killed command passed something");
}

#[tokio::test]
async fn what_a_node_was_answered_is_there_after_the_control_plane_s_death() {
    let house = house(6).await;
    let mut told = 0;
    for round in 0.. {
        // As a new process of the control plane: nothing in memory.
        house.world.boards.forget(RUN);
        let (lease, items) = match house.say(round % 2, Request::Pull).await {
            Answer::Batch { lease, items, .. } => (lease, items.iter().map(|(number, _)| *number).collect::<Vec<_>>()),
            Answer::Wait { .. } => continue,
            Answer::Over { red } => {
                assert!(!red);
                break;
            }
            other => panic!("{other:?}"),
        };
        house.world.boards.forget(RUN);
        assert_eq!(house.batch(round % 2).await, (lease, items.clone()), "another batch than was answered");
        house.world.clock.advance(Duration::from_secs(30));
        house.world.boards.forget(RUN);
        let silent = view(&house.world, RUN).await.expect("a view").expect("a board").silent;
        assert_eq!(silent, [], "nobody could be heard while nobody listened");
        let request = Request::Done { lease, done: done(WELL, &items) };
        assert_eq!(house.say(round % 2, request.clone()).await, Answer::Taken);
        house.world.boards.forget(RUN);
        assert_eq!(house.say(round % 2, request).await, Answer::Taken, "said again, it changes nothing");
        told += items.len();
    }
    assert_eq!(told, 6);
    let seen = view(&house.world, RUN).await.expect("a view").expect("a board");
    assert!(seen.over && seen.proof.is_green(), "{:?}", seen.proof);
    let items: usize = batches(&house.world, RUN).expect("batches").iter().map(|batch| batch.done.items.len()).sum();
    assert_eq!(items, 6);
}

#[tokio::test]
async fn a_hostile_node_gains_no_time_no_number_and_no_endless_run() {
    let house = house(10).await;
    let (lease, items) = house.batch(0).await;
    house.world.clock.advance(Duration::from_secs(2));
    let mut lie = done(WELL, &items);
    lie.items.extend(items.iter().map(|item| ItemDone {
        item: *item,
        outcome: Outcome::Failed,
        wall_ms: u64::MAX,
        cases: u32::MAX,
        part: None,
    }));
    lie.items.push(ItemDone {
        item: u32::MAX,
        outcome: Outcome::Passed,
        wall_ms: u64::MAX,
        cases: u32::MAX,
        part: None,
    });
    (lie.wall_ms, lie.items[0].wall_ms) = (u64::MAX, u64::MAX);
    lie.counts = Counts { passed: u64::MAX, failed: u64::MAX, skipped: u64::MAX };
    assert_eq!(house.say(0, Request::Done { lease, done: lie }).await, Answer::Taken);
    let told = batches(&house.world, RUN).expect("batches");
    assert_eq!(told[0].done.items.len(), items.len(), "of each item one word is kept");
    assert!(told[0].done.wall_ms <= 3_000 && told[0].done.items[0].wall_ms <= 3_000, "{:?}", told[0].done);
    assert!(told[0].done.counts.passed < 1 << 32);
    for round in 0.. {
        assert!(round < 100, "it takes and gives back for ever");
        house.world.clock.advance(Duration::from_secs(1));
        match house.say(1, Request::Pull).await {
            Answer::Batch { lease, .. } => house.say(1, Request::GiveBack { lease }).await,
            Answer::Wait { .. } => Answer::Go,
            Answer::Over { .. } => break,
            other => panic!("{other:?}"),
        };
    }
    let seen = view(&house.world, RUN).await.expect("a view").expect("a board");
    assert!(seen.over && !seen.proof.is_green(), "{:?}", seen.proof);
}

#[tokio::test]
async fn a_run_that_is_over_has_nothing_for_anybody() {
    let house = house(2).await;
    house.batch(0).await;
    house
        .world
        .store
        .transact(|tx| {
            let mut run = tx.run(RUN)?.expect("the run");
            run.cancelled = Some(Cancelled::Closed);
            tx.put_run(&run)
        })
        .await
        .expect("the store takes it");
    for request in [Request::Join, Request::Pull, Request::Beat { lease: LeaseId(0) }] {
        assert_eq!(house.say(0, request).await, Answer::Over { red: true });
    }
}

#[tokio::test]
async fn all_that_was_red_is_run_again_however_much_it_was() {
    let house = house(150).await;
    for node in 0..2 {
        house.batch(node).await;
    }
    house.world.clock.advance(Duration::from_secs(1));
    super::tell(&house.world, RUN, vec![crate::ci::split::Event::Abandon]).await.expect("it is told");
    let run = house.world.store.run(RUN).expect("a store").expect("the run");
    super::conclude(&house.world, &run, Verdict::Failed).await.expect("it ends");
    let run = house.world.store.run(RUN).expect("a store").expect("the run");
    let summary = run.split.clone().expect("a summary");
    assert_eq!((summary.red, summary.red_files.len()), (150, 100));
    let again = TestRun { number: RunNumber(2), only_failed_of: Some(RUN), ..run };
    let files = (0..200).map(|at| format!("test_{at}")).collect();
    let wanted = super::planning::wanted_files(&house.world, &again, files).expect("files");
    assert_eq!(wanted.len(), 150);
    assert!(wanted.contains("test_149") && !wanted.contains("test_150"));
}
