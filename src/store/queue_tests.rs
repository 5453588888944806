//! What the queue promises: one entry a key, one holder at a time, nothing lost with its holder.

use super::queue::*;
use super::tests::{folder, open};
use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn at(second: i64) -> Timestamp {
    Timestamp(1_000_000_000_000 + second * 1000)
}

fn run<R: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&mut Transaction<'_>) -> Result<R, StoreError> + Send + 'static,
) -> R {
    store.transact_blocking(work).unwrap()
}

fn add(store: &Store, key: &str, due: Timestamp) {
    let key = key.to_owned();
    run(store, move |transaction| enqueue(transaction, &key, due));
}

fn take(store: &Store, now: Timestamp) -> Option<QueueEntry> {
    run(store, move |transaction| {
        let generation = transaction.generation();
        claim(transaction, now, MINUTE, generation)
    })
}

fn token(entry: &QueueEntry) -> u64 {
    entry.lease.unwrap().token
}

fn depth_of(store: &Store) -> (u64, u64, u64) {
    let Depth { waiting, leased, parked } = depth(store).unwrap();
    (waiting, leased, parked)
}

#[test]
fn entries_come_by_due_time_and_never_early() {
    let folder = folder();
    let store = open(&folder);
    assert_eq!(take(&store, at(0)), None);
    assert_eq!(next_due(&store).unwrap(), None);
    for (key, second) in [("app:late", 300), ("app:first", 10), ("run:17", 20), ("app:zero-byte\0", 20)] {
        add(&store, key, at(second));
    }
    assert_eq!(next_due(&store).unwrap(), Some(at(10)));
    assert_eq!(take(&store, at(9)), None);
    let order: Vec<String> = std::iter::from_fn(|| take(&store, at(20)).map(|entry| entry.key)).collect();
    assert_eq!(order, ["app:first", "app:zero-byte\0", "run:17"]);
    assert_eq!(depth_of(&store), (1, 3, 0));
    assert_eq!(next_due(&store).unwrap(), Some(at(80)), "the first lease to run out");
    assert_eq!(entries(&store, "app:").unwrap().len(), 3);
}

#[test]
fn a_key_stands_once_and_keeps_the_earlier_time() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "app:a", at(100));
    add(&store, "app:a", at(50));
    add(&store, "app:a", at(200));
    let entry = queue::entry(&store, "app:a").unwrap().unwrap();
    assert_eq!((entry.due, entry.enqueued_at), (at(50), at(100)));
    assert_eq!(depth_of(&store), (1, 0, 0));
    assert_eq!(take(&store, at(49)), None);
    assert!(take(&store, at(50)).is_some());
    assert_eq!(take(&store, at(50)), None);
}

#[test]
fn a_finished_entry_goes_and_a_dirty_one_comes_again() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "app:a", at(0));
    let held = take(&store, at(1)).unwrap();
    add(&store, "app:a", at(2));
    assert_eq!(take(&store, at(3)), None, "still in hand");
    assert!(queue::entry(&store, "app:a").unwrap().unwrap().dirty);
    let first = token(&held);
    assert!(run(&store, move |transaction| complete(transaction, "app:a", first, at(4))));
    let again = take(&store, at(4)).unwrap();
    assert!(!again.dirty);
    let second = token(&again);
    assert_ne!(first, second);
    assert!(!run(&store, move |transaction| complete(transaction, "app:a", first, at(5))), "an old token is refused");
    assert!(!run(&store, move |transaction| retry(transaction, "app:a", first, at(5))));
    assert!(!run(&store, move |transaction| park(transaction, "app:a", first, "{}")));
    assert!(!run(&store, move |transaction| renew(transaction, "app:a", first, at(500))));
    assert!(run(&store, move |transaction| complete(transaction, "app:a", second, at(5))));
    assert_eq!(queue::entry(&store, "app:a").unwrap(), None);
    assert_eq!(depth_of(&store), (0, 0, 0));
    assert!(!run(&store, move |transaction| complete(transaction, "app:a", second, at(6))));
}

#[test]
fn a_lease_that_ran_out_is_given_anew_and_its_holder_refused() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "app:a", at(0));
    let late = token(&take(&store, at(0)).unwrap());
    assert_eq!(take(&store, at(59)), None);
    let taken_over = token(&take(&store, at(60)).unwrap());
    assert!(!run(&store, move |transaction| complete(transaction, "app:a", late, at(61))));
    assert!(run(&store, move |transaction| renew(transaction, "app:a", taken_over, at(500))));
    assert_eq!(take(&store, at(400)), None, "renewed");
    assert_eq!(next_due(&store).unwrap(), Some(at(500)));
    assert!(run(&store, move |transaction| complete(transaction, "app:a", taken_over, at(401))));
    assert_eq!(depth_of(&store), (0, 0, 0));
}

#[test]
fn leases_of_an_older_opening_are_free_at_once() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "app:a", at(5));
    add(&store, "app:b", at(6));
    let old = token(&take(&store, at(10)).unwrap());
    drop(store);
    let store = open(&folder);
    assert_eq!(next_due(&store).unwrap(), Some(Timestamp(0)));
    let first = take(&store, at(10)).unwrap();
    assert_eq!(first.key, "app:a", "long before its lease would have run out");
    assert_eq!(first.lease.unwrap().generation, 2);
    assert!(!run(&store, move |transaction| complete(transaction, "app:a", old, at(11))));
    assert_eq!(take(&store, at(10)).unwrap().key, "app:b");
    assert_eq!(take(&store, at(10)), None);
}

#[test]
fn failures_are_counted_until_success() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "app:a", at(0));
    for attempt in 0..3 {
        let entry = take(&store, at(attempt * 10)).unwrap();
        assert_eq!(i64::from(entry.attempts), attempt);
        let token = token(&entry);
        assert!(run(&store, move |transaction| retry(transaction, "app:a", token, at(attempt * 10 + 10))));
        assert_eq!(take(&store, at(attempt * 10 + 9)), None);
    }
    let token = token(&take(&store, at(30)).unwrap());
    add(&store, "app:a", at(31));
    assert!(run(&store, move |transaction| complete(transaction, "app:a", token, at(32))));
    assert_eq!(take(&store, at(32)).unwrap().attempts, 0);
}

#[test]
fn a_parked_entry_waits_for_somebody() {
    let folder = folder();
    let store = open(&folder);
    let park_it = |store: &Store, now| {
        let token = token(&take(store, now).unwrap());
        assert!(run(store, move |transaction| park(transaction, "delivery:1", token, r#"{"error":"bug"}"#)));
    };
    add(&store, "delivery:1", at(0));
    park_it(&store, at(0));
    assert_eq!(depth_of(&store), (0, 0, 1));
    assert_eq!((take(&store, at(100_000)), next_due(&store).unwrap()), (None, None));
    run(&store, |transaction| enqueue_unless_parked(transaction, "delivery:1", at(1)));
    assert_eq!(depth_of(&store), (0, 0, 1));
    assert!(run(&store, |transaction| unpark(transaction, "delivery:1", at(2))));
    assert!(!run(&store, |transaction| unpark(transaction, "delivery:1", at(2))));
    park_it(&store, at(2));
    run(&store, |transaction| enqueue_unless_backing_off(transaction, "delivery:1", at(3)));
    let entry = queue::entry(&store, "delivery:1").unwrap().unwrap();
    assert_eq!((entry.parked, entry.attempts, entry.due), (None, 0, at(3)));
    // News that come while it is being parked are not lost.
    let token = token(&take(&store, at(3)).unwrap());
    add(&store, "delivery:1", at(3));
    assert!(run(&store, move |transaction| park(transaction, "delivery:1", token, "{}")));
    assert!(take(&store, at(3)).is_some());
    assert!(run(&store, |transaction| queue::remove(transaction, "delivery:1")));
    assert_eq!(depth_of(&store), (0, 0, 0));
}

#[test]
fn an_entry_that_backs_off_keeps_its_time() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "repository:1", at(0));
    let token = token(&take(&store, at(0)).unwrap());
    assert!(run(&store, move |transaction| retry(transaction, "repository:1", token, at(50))));
    run(&store, |transaction| enqueue_unless_backing_off(transaction, "repository:1", at(1)));
    run(&store, |transaction| enqueue_unless_parked(transaction, "repository:1", at(1)));
    assert_eq!(next_due(&store).unwrap(), Some(at(50)));
}

/// Random steps against a model that is a plain map.
#[test]
fn any_order_of_calls_keeps_entries_and_indexes_in_step() {
    let folder = folder();
    let mut store = open(&folder);
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut held: BTreeMap<String, u64> = BTreeMap::new();
    let mut now = 0;
    for step in 0..1500 {
        now += i64::try_from(next(20)).unwrap();
        let key = format!("app:{}", next(6));
        let token = held.get(&key).copied().unwrap_or(next(50));
        let valid = queue::entry(&store, &key).unwrap().is_some_and(|it| it.lease.is_some_and(|it| it.token == token));
        let due = at(now + i64::try_from(next(30)).unwrap());
        let named = key.clone();
        match next(8) {
            0..=2 => add(&store, &key, due),
            3 | 4 => {
                if let Some(entry) = take(&store, at(now)) {
                    assert!(entry.due <= at(now) && entry.parked.is_none());
                    held.insert(entry.key.clone(), entry.lease.unwrap().token);
                }
            }
            5 => assert_eq!(run(&store, move |it| complete(it, &named, token, at(now))), valid),
            6 => assert_eq!(run(&store, move |it| retry(it, &named, token, due)), valid),
            _ => assert_eq!(run(&store, move |it| park(it, &named, token, "why")), valid),
        }
        if step % 300 == 299 {
            drop(store);
            store = open(&folder);
        }
        let all = entries(&store, "").unwrap();
        let leased = all.iter().filter(|entry| entry.lease.is_some()).count() as u64;
        let parked = all.iter().filter(|entry| entry.parked.is_some()).count() as u64;
        assert_eq!(depth_of(&store), (all.len() as u64 - leased - parked, leased, parked), "after step {step}");
    }
    // Nothing that is not parked is ever stuck.
    let end = at(now + 100_000);
    while let Some(entry) = take(&store, end) {
        let token = token(&entry);
        assert!(run(&store, move |it| complete(it, &entry.key, token, end)));
    }
    let (waiting, leased, _) = depth_of(&store);
    assert_eq!((waiting, leased), (0, 0));
}

#[test]
fn work_that_is_put_off_keeps_its_count_of_failures() {
    let folder = folder();
    let store = open(&folder);
    add(&store, "delivery:1", at(0));
    let failed = token(&take(&store, at(0)).unwrap());
    assert!(run(&store, move |transaction| retry(transaction, "delivery:1", failed, at(10))));
    let busy = token(&take(&store, at(10)).unwrap());
    assert!(run(&store, move |transaction| put_off(transaction, "delivery:1", busy, at(11))));
    assert!(!run(&store, move |transaction| put_off(transaction, "delivery:1", busy, at(12))), "the lease is gone");
    assert_eq!(take(&store, at(10)), None);
    assert_eq!(take(&store, at(11)).map(|entry| entry.attempts), Some(1));
}
