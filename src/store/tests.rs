//! What the store promises while nothing breaks, and when the disk is full or a sync fails.

use super::disk::{Disk, Fault, Operation};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use tempfile::TempDir;

pub(super) const APPS: Table = Table("apps");
pub(super) const RUNS: Table = Table("runs");

pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn open(folder: &TempDir) -> Store {
    Store::open(folder.path()).unwrap()
}

pub(super) fn put(store: &Store, table: Table, key: &[u8], value: &str) -> Result<(), StoreError> {
    let (key, value) = (key.to_vec(), value.to_owned());
    store.transact_blocking(move |transaction| transaction.put(table, &key, &value))
}

/// Everything in the index, as text.
pub(super) fn dump(store: &Store) -> BTreeMap<String, String> {
    let everything = KeyRange { from: Bound::Included(b"a".to_vec()), to: Bound::Unbounded };
    let entries = store.inner.shared.read(|index| index.range(&everything, usize::MAX, false)).unwrap();
    entries
        .into_iter()
        .map(|(key, value)| {
            let (table, key) = keys::split(&key);
            (format!("{table}/{}", keys::escape(key)), String::from_utf8(value.to_vec()).unwrap())
        })
        .collect()
}

/// The same, folded from the files.
pub(super) fn dump_files(store: &Store) -> BTreeMap<String, String> {
    let shared = &store.inner.shared;
    let state = snapshot::fold(&shared.directory, shared.durable.load(Ordering::SeqCst), &shared.stopping).unwrap();
    let text = |(key, value): (Vec<u8>, Bytes)| {
        let (table, key) = keys::split(&key);
        (format!("{table}/{}", keys::escape(key)), String::from_utf8(value.to_vec()).unwrap())
    };
    state.records.into_iter().map(text).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn what_was_written_is_read_now_and_after_opening_again() {
    let folder = folder();
    let store = open(&folder);
    assert_eq!(store.generation(), 1);
    put(&store, APPS, b"hello-pr-1", "one").unwrap();
    put(&store, APPS, b"hello-pr-2", "two").unwrap();
    put(&store, RUNS, b"\0\xff", "raw key").unwrap();
    assert_eq!(store.get::<String>(APPS, b"hello-pr-1").unwrap().as_deref(), Some("one"));
    assert_eq!(store.get::<String>(APPS, b"hello-pr-3").unwrap(), None);
    assert_eq!(store.count(APPS).unwrap(), 2);
    drop(store);
    let store = open(&folder);
    assert_eq!(store.generation(), 2);
    let apps = store.scan::<String>(APPS, b"hello").unwrap();
    assert_eq!(apps, [(b"hello-pr-1".to_vec(), "one".to_owned()), (b"hello-pr-2".to_vec(), "two".to_owned())]);
    assert_eq!(store.get::<String>(RUNS, b"\0\xff").unwrap().as_deref(), Some("raw key"));
    assert_eq!((store.count(APPS).unwrap(), store.count(RUNS).unwrap()), (2, 1));
    store.transact_blocking(|transaction| transaction.delete(APPS, b"hello-pr-1")).unwrap();
    assert_eq!(store.count(APPS).unwrap(), 1);
    assert_eq!(store.figures().index_rebuilds, 0, "a clean opening catches up");
}

#[test]
fn a_failed_or_panicking_transaction_leaves_nothing() {
    let folder = folder();
    let store = open(&folder);
    let failed = store.transact_blocking::<(), StoreError>(|transaction| {
        transaction.put(APPS, b"a", "lost")?;
        transaction.put_blob(Bytes::from_static(b"lost too"))?;
        transaction.next_number("releases")?;
        Err(StoreError::Closed)
    });
    assert!(matches!(failed, Err(StoreError::Closed)));
    let panicked = store.transact_blocking::<(), StoreError>(|transaction| {
        transaction.put(APPS, b"a", "lost")?;
        panic!("the work broke");
    });
    assert!(matches!(panicked, Err(StoreError::Panicked { message }) if message == "the work broke"));
    assert_eq!(store.get::<String>(APPS, b"a").unwrap(), None);
    assert_eq!(store.count(APPS).unwrap(), 0);
    // The counter and the blob space were not used up either.
    let (number, blob) = store
        .transact_blocking::<_, StoreError>(|transaction| {
            Ok((transaction.next_number("releases")?, transaction.put_blob(Bytes::from_static(b"kept"))?))
        })
        .unwrap();
    assert_eq!((number, blob.offset), (1, 0));
    assert_eq!(store.blob(&blob).unwrap(), b"kept");
}

#[test]
fn an_ignored_refusal_still_fails_the_transaction() {
    let folder = folder();
    let store = open(&folder);
    let outcome = store.transact_blocking::<(), StoreError>(|transaction| {
        transaction.put(APPS, b"a", "kept only with b")?;
        let _ = transaction.put(APPS, b"b", &"x".repeat(RECORD_LIMIT));
        Ok(())
    });
    assert!(matches!(outcome, Err(StoreError::TooLarge { .. })));
    assert_eq!(store.get::<String>(APPS, b"a").unwrap(), None);
}

#[test]
fn a_transaction_sees_its_own_writes_and_those_of_its_group() {
    let folder = folder();
    let store = open(&folder);
    for key in ["a", "b", "c", "d", "e"] {
        put(&store, APPS, key.as_bytes(), "stored").unwrap();
    }
    let names = |found: Vec<(Vec<u8>, String)>| {
        found.into_iter().map(|(key, value)| format!("{}={value}", String::from_utf8(key).unwrap())).collect::<Vec<_>>()
    };
    // The first transaction holds the writer until the second one waits, so that they share a group.
    let barrier = Arc::new(Barrier::new(2));
    let waits = barrier.clone();
    let first = {
        let store = store.clone();
        thread::spawn(move || {
            store.transact_blocking::<_, StoreError>(move |transaction| {
                transaction.delete(APPS, b"a")?;
                transaction.put(APPS, b"bb", "group")?;
                waits.wait();
                waits.wait();
                Ok(())
            })
        })
    };
    barrier.wait();
    let (answer, answered) = oneshot::channel();
    let work = boxed::<_, StoreError>(
        move |transaction| {
            transaction.delete(APPS, b"d")?;
            transaction.put(APPS, b"dd", "own")?;
            transaction.put(APPS, b"c", "own")?;
            Ok((
                names(transaction.scan(APPS, b"")?),
                names(transaction.scan_page(APPS, b"", None, 2, Order::Ascending)?),
                names(transaction.scan_page(APPS, b"", Some(b"bb"), 2, Order::Ascending)?),
                names(transaction.scan_page(APPS, b"", None, 2, Order::Descending)?),
                names(transaction.scan_page(APPS, b"", Some(b"dd"), 2, Order::Descending)?),
                transaction.get::<String>(APPS, b"bb")?,
            ))
        },
        answer,
    );
    store.inner.messages.send(Message::Work(work)).unwrap();
    barrier.wait();
    first.join().unwrap().unwrap();
    let (all, head, next, tail, before, group) = answered.blocking_recv().unwrap().unwrap();
    assert_eq!(all, ["b=stored", "bb=group", "c=own", "dd=own", "e=stored"]);
    assert_eq!(head, ["b=stored", "bb=group"]);
    assert_eq!(next, ["c=own", "dd=own"]);
    assert_eq!(tail, ["e=stored", "dd=own"]);
    assert_eq!(before, ["c=own", "bb=group"]);
    assert_eq!(group.as_deref(), Some("group"));
    assert_eq!(names(store.scan(APPS, b"").unwrap()), all);
    assert_eq!(store.count(APPS).unwrap(), 5);
    assert_eq!(names(store.scan_range(APPS, b"b", b"c", 9, Order::Ascending).unwrap()), ["b=stored", "bb=group"]);
    assert_eq!(names(store.scan_range(APPS, b"c", b"b", 9, Order::Ascending).unwrap()), Vec::<String>::new());
}

#[test]
fn concurrent_transactions_serialise_and_share_their_syncs() {
    let folder = folder();
    let store = open(&folder);
    let syncs_before = store.figures().syncs;
    let gate = Arc::new(Barrier::new(2));
    let (tasks, each) = (64, 8);
    runtime().block_on(async {
        // The first transaction keeps the writer busy until all others wait behind it.
        let held = gate.clone();
        let holder = store.clone();
        let holder = tokio::spawn(async move {
            let hold = move |_: &mut Transaction<'_>| {
                held.wait();
                Ok::<(), StoreError>(())
            };
            holder.transact(hold).await
        });
        let started = Arc::new(AtomicU64::new(0));
        let mut running = Vec::new();
        for task in 0..tasks {
            let (store, started) = (store.clone(), started.clone());
            running.push(tokio::spawn(async move {
                for step in 0..each {
                    let key = format!("{task}-{step}");
                    let work = store.transact::<u64, StoreError>(move |transaction| {
                        let before = transaction.get::<u64>(APPS, b"sum")?.unwrap_or(0);
                        transaction.put(APPS, b"sum", &(before + 1))?;
                        let blob = transaction.put_blob(Bytes::from(key.repeat(100)))?;
                        transaction.put(RUNS, key.as_bytes(), &blob)?;
                        transaction.next_number("runs")
                    });
                    started.fetch_add(1, Ordering::SeqCst);
                    work.await.unwrap();
                }
            }));
        }
        while started.load(Ordering::SeqCst) < tasks {
            tokio::task::yield_now().await;
        }
        let waited = gate.clone();
        tokio::task::spawn_blocking(move || waited.wait()).await.unwrap();
        holder.await.unwrap().unwrap();
        for task in running {
            task.await.unwrap();
        }
    });
    let total = tasks * each;
    assert_eq!(store.get::<u64>(APPS, b"sum").unwrap(), Some(total));
    assert_eq!(store.count(RUNS).unwrap(), total);
    assert_eq!(store.transact_blocking(|transaction| transaction.next_number("runs")).unwrap(), total + 1);
    let figures = store.figures();
    let syncs = figures.syncs - syncs_before;
    assert!(syncs <= 2 * figures.groups + 2, "{syncs} syncs for {} groups", figures.groups);
    assert!(figures.groups < total / 4, "{} groups for {total} transactions", figures.groups);
}

#[test]
fn the_same_value_again_costs_nothing() {
    let folder = folder();
    let store = open(&folder);
    put(&store, APPS, b"a", "same").unwrap();
    let before = store.figures();
    put(&store, APPS, b"a", "same").unwrap();
    store.transact_blocking(|transaction| transaction.delete(APPS, b"missing")).unwrap();
    assert_eq!(store.figures().groups, before.groups);
    assert_eq!(store.figures().syncs, before.syncs);
}

#[test]
fn values_of_every_size_come_back_and_leave_no_pieces() {
    let folder = folder();
    let mut store = open(&folder);
    let sizes = [0, 1, 3069, 3070, 3071, 3072, 6144, 6145, 100_000, RECORD_LIMIT - 2, 5];
    for size in sizes {
        put(&store, APPS, b"app", &"x".repeat(size)).unwrap();
        // A neighbour whose key continues the first one's must not be mistaken for its pieces.
        put(&store, APPS, b"app\0\0", &"y".repeat(size)).unwrap();
        assert_eq!(store.get::<String>(APPS, b"app").unwrap().unwrap().len(), size);
        drop(store);
        store = open(&folder);
        assert_eq!(store.get::<String>(APPS, b"app").unwrap().unwrap(), "x".repeat(size));
        assert_eq!(store.scan::<String>(APPS, b"app").unwrap()[1].1, "y".repeat(size));
        assert_eq!(store.count(APPS).unwrap(), 2);
    }
    let pieces = KeyRange { from: Bound::Unbounded, to: Bound::Excluded(b"\x02".to_vec()) };
    let index = store.inner.shared.index.read().unwrap();
    let index::Index::Sled(sled) = &*index else { panic!("the index is not sled") };
    let own = sled.raw_keys(&pieces);
    assert!(own.iter().all(|key| key[0] == 0), "pieces are left: {own:?}");
}

#[test]
fn a_record_that_does_not_fit_its_type_says_which() {
    let folder = folder();
    let store = open(&folder);
    put(&store, APPS, b"hello", "text").unwrap();
    let error = store.get::<u64>(APPS, b"hello").unwrap_err();
    assert_eq!(error.to_string(), "record hello of table apps does not read as u64");
    assert!(store.scan::<u64>(APPS, b"").is_err());
}

#[test]
fn a_second_opening_is_refused_by_name() {
    let folder = folder();
    let store = open(&folder);
    let Err(error) = Store::open(folder.path()) else { panic!("opened twice") };
    let wanted = format!("is in use by another landfall serve (process {})", std::process::id());
    assert!(error.to_string().contains(&wanted), "{error}");
    put(&store, APPS, b"a", "the first one goes on").unwrap();
    drop(store);
    assert_eq!(open(&folder).generation(), 2, "the refused opening took no generation");
}

#[test]
fn a_lock_is_given_back_although_a_program_is_being_started() {
    let folder = folder();
    let lock = super::open::lock(folder.path()).unwrap();
    // What a fork has until it executes a program.
    let copy = lock.copy();
    drop(lock);
    drop(super::open::lock(folder.path()).unwrap());
    drop(copy);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = folder();
    drop(open(&folder));
    fs::write(folder.path().join("format"), "landfall store 2\n").unwrap();
    let Err(error) = Store::open(folder.path()) else { panic!("opened") };
    assert!(matches!(error, StoreError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    for broken in ["", "landfall store", "landfall store x\n", "\0\0\0"] {
        fs::write(folder.path().join("format"), broken).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged { .. })), "{broken:?}");
    }
    fs::remove_file(folder.path().join("format")).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Io { .. })));
}

#[test]
fn compaction_keeps_every_record_and_bounds_the_files() {
    let folder = folder();
    let mut store = open(&folder);
    for round in 0..5 {
        for number in 0..20 {
            put(&store, APPS, format!("{number}").as_bytes(), &format!("{round}-{number}")).unwrap();
        }
        runtime().block_on(store.compact()).unwrap();
        put(&store, APPS, b"after", &format!("{round}")).unwrap();
        if round % 2 == 0 {
            drop(store);
            store = open(&folder);
        }
        assert_eq!(store.get::<String>(APPS, b"7").unwrap(), Some(format!("{round}-7")));
        assert_eq!(store.count(APPS).unwrap(), 21);
        assert_eq!(dump(&store), dump_files(&store));
    }
    let snapshots = snapshot::newest_first(folder.path()).unwrap();
    assert_eq!(snapshots.len(), 2);
    let segments = journal::segments(folder.path()).unwrap();
    assert_eq!(segments[0].start, snapshots[1].0 + 1, "the journal reaches back to the older snapshot, no further");
}

#[test]
fn the_journal_folds_itself_as_it_grows() {
    let folder = folder();
    let store = open(&folder);
    let value = "x".repeat(900_000);
    for number in 0..30 {
        put(&store, APPS, b"same key", &format!("{number}{value}")).unwrap();
    }
    // The fold runs beside; asking for one more waits for it.
    runtime().block_on(store.compact()).unwrap();
    assert!(store.figures().snapshots >= 1);
    drop(store);
    let store = open(&folder);
    assert!(store.get::<String>(APPS, b"same key").unwrap().unwrap().starts_with("29x"));
}

#[test]
fn old_blobs_are_pruned_whole_and_say_so() {
    let folder = folder();
    let store = open(&folder);
    let blob = |store: &Store, megabytes: usize, byte: u8| {
        let content = Bytes::from(vec![byte; megabytes << 20]);
        store.transact_blocking(move |transaction| transaction.put_blob(content)).unwrap()
    };
    let old = blob(&store, 40, 1);
    let wanted = blob(&store, 40, 2);
    let kept = blob(&store, 70, 3);
    let current = blob(&store, 1, 4);
    assert_eq!((old.segment, wanted.segment, kept.segment, current.segment), (1, 1, 2, 3));
    let far_future = Timestamp(i64::MAX);
    let prune = |before, wanted: &[u32]| {
        runtime().block_on(store.prune_blobs_before(before, wanted.iter().copied().collect())).unwrap()
    };
    assert_eq!(prune(Timestamp(0), &[]), Pruned::default());
    assert_eq!(prune(far_future, &[2]), Pruned { segments: 1, bytes: 80 << 20 });
    assert!(matches!(store.blob(&old), Err(StoreError::BlobPruned { segment: 1 })));
    assert_eq!(store.blob(&kept).unwrap()[0], 3);
    assert_eq!(prune(far_future, &[]), Pruned { segments: 1, bytes: 70 << 20 });
    assert_eq!(store.blob(&current).unwrap()[0], 4, "the current segment stays");
    drop(store);
    let store = open(&folder);
    assert!(matches!(store.blob(&kept), Err(StoreError::BlobPruned { segment: 2 })));
    let next = blob(&store, 1, 5);
    assert_eq!((next.segment, next.offset), (3, 1 << 20));
    fs::remove_file(blobs::segment_path(folder.path(), 3)).unwrap();
    let error = store.blob(&next).unwrap_err();
    assert!(error.to_string().contains("the segment's file is missing"), "{error}");
}

#[test]
fn an_export_gives_the_same_store_elsewhere() {
    let (here, there) = (folder(), folder());
    let store = open(&here);
    let blob = store
        .transact_blocking::<_, StoreError>(|transaction| {
            transaction.next_number("runs")?;
            let content: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
            let blob = transaction.put_blob(Bytes::from(content))?;
            transaction.put(APPS, b"with \"quotes\" and \xff", &blob)?;
            transaction.put(APPS, b"raw", &serde_json::value::RawValue::from_string("[1,\n2]".to_owned()).unwrap())?;
            Ok(blob)
        })
        .unwrap();
    let mut exported = Vec::new();
    store.export(&mut exported).unwrap();
    let lines = String::from_utf8(exported.clone()).unwrap();
    assert!(lines.lines().any(|line| line == r#"{"put":"counters","key":"runs","value":1}"#), "{lines}");

    let target = there.path().join("new");
    let imported = import(&target, &mut &exported[..]).unwrap();
    assert_eq!(imported.blob_bytes, 3_000_000);
    let copy = Store::open(&target).unwrap();
    assert_eq!(dump(&copy), dump(&store));
    assert_eq!(copy.blob(&blob).unwrap(), store.blob(&blob).unwrap());
    assert!(copy.generation() > store.generation(), "what the old one started can be fenced off");
    let next = copy.transact_blocking(|transaction| transaction.put_blob(Bytes::from_static(b"more"))).unwrap();
    assert_eq!(next.offset, 3_000_000);
    drop(copy);
    assert!(matches!(import(&target, &mut &exported[..]), Err(StoreError::Import { .. })), "never over a store");

    // Whatever is missing or changed is found.
    for cut in [lines.lines().count() - 1, 3, 1, 0] {
        let short: String = lines.lines().take(cut).map(|line| format!("{line}\n")).collect();
        assert!(import(&there.path().join(format!("cut{cut}")), &mut short.as_bytes()).is_err(), "{cut} lines");
    }
    let changed = lines.replace(r#""key":"runs","value":1"#, r#""key":"runs","value":2"#);
    assert!(import(&there.path().join("changed"), &mut changed.as_bytes()).is_err());
}

fn open_with(folder: &TempDir, disk: &Disk) -> Store {
    super::open::open(folder.path(), disk).unwrap()
}

fn fail_next(disk: &Disk, operation: Operation, file_contains: &'static str, after: u32, error: nix::errno::Errno) {
    let fault = Fault { operation, file_contains, after, error_number: error as i32, partial: 7 };
    disk.faults.lock().unwrap().push(fault);
}

/// Adds one record with a blob.
fn add(store: &Store, number: u32) -> Result<BlobRef, StoreError> {
    store.transact_blocking(move |transaction| {
        let blob = transaction.put_blob(Bytes::from(format!("content {number}")))?;
        transaction.put(RUNS, &number.to_be_bytes(), &blob)?;
        Ok(blob)
    })
}

fn check_added(store: &Store, numbers: &[u32]) {
    let found = store.scan::<BlobRef>(RUNS, b"").unwrap();
    let keys: Vec<_> = found.iter().map(|(key, _)| u32::from_be_bytes(key[..].try_into().unwrap())).collect();
    assert_eq!(keys, numbers);
    for (number, (_, blob)) in numbers.iter().zip(&found) {
        assert_eq!(store.blob(blob).unwrap(), format!("content {number}").as_bytes());
    }
}

#[test]
fn a_full_disk_refuses_the_group_and_the_next_one_goes_through() {
    for file in ["journal", "seg"] {
        let folder = folder();
        let disk = Disk::default();
        let store = open_with(&folder, &disk);
        add(&store, 1).unwrap();
        fail_next(&disk, Operation::Write, file, 0, nix::errno::Errno::ENOSPC);
        let error = add(&store, 2).unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("No space left"), "{error}");
        assert!(matches!(store.health(), Health::Refusing { .. }));
        check_added(&store, &[1]);
        add(&store, 3).unwrap();
        assert_eq!(store.health(), Health::Ready);
        check_added(&store, &[1, 3]);
        drop(store);
        check_added(&open(&folder), &[1, 3]);
    }
}

#[test]
fn a_failed_sync_ends_all_writing_until_the_next_opening() {
    for file in ["journal", "seg"] {
        let folder = folder();
        let disk = Disk::default();
        let store = open_with(&folder, &disk);
        add(&store, 1).unwrap();
        fail_next(&disk, Operation::Sync, file, 0, nix::errno::Errno::EIO);
        assert!(add(&store, 2).unwrap_err().is_unavailable());
        // The next sync would succeed, and must not be believed.
        assert!(add(&store, 3).unwrap_err().is_unavailable());
        assert!(matches!(store.health(), Health::Poisoned { .. }));
        check_added(&store, &[1]);
        drop(store);
        let store = open(&folder);
        check_added(&store, &[1]);
        add(&store, 4).unwrap();
        check_added(&store, &[1, 4]);
    }
}

#[test]
fn a_write_that_cannot_be_taken_back_ends_all_writing() {
    for (file, then) in [("journal", Operation::Truncate), ("journal", Operation::Sync), ("seg", Operation::Truncate)] {
        let folder = folder();
        let disk = Disk::default();
        let store = open_with(&folder, &disk);
        add(&store, 1).unwrap();
        fail_next(&disk, Operation::Write, file, 0, nix::errno::Errno::EIO);
        fail_next(&disk, then, file, 0, nix::errno::Errno::EIO);
        assert!(add(&store, 2).unwrap_err().is_unavailable());
        assert!(matches!(store.health(), Health::Poisoned { .. }));
        drop(store);
        let store = open(&folder);
        check_added(&store, &[1]);
        add(&store, 4).unwrap();
        check_added(&store, &[1, 4]);
    }
}

#[test]
fn a_full_disk_at_any_step_of_compaction_harms_nothing() {
    let steps = [
        (Operation::Create, "journal"),
        (Operation::Create, "snapshot"),
        (Operation::Write, "snapshot"),
        (Operation::Sync, "snapshot"),
        (Operation::Rename, "snapshot"),
    ];
    for (operation, file) in steps {
        let folder = folder();
        let disk = Disk::default();
        let store = open_with(&folder, &disk);
        add(&store, 1).unwrap();
        fail_next(&disk, operation, file, 0, nix::errno::Errno::ENOSPC);
        assert!(runtime().block_on(store.compact()).is_err(), "{operation:?} {file}");
        add(&store, 2).unwrap();
        runtime().block_on(store.compact()).unwrap();
        add(&store, 3).unwrap();
        drop(store);
        check_added(&open(&folder), &[1, 2, 3]);
    }
}

#[test]
fn a_store_of_two_clones_closes_with_the_last_even_inside_a_transaction() {
    let folder = folder();
    let store = open(&folder);
    let inside = store.clone();
    let (answer, answered) = oneshot::channel();
    let work = boxed::<u64, StoreError>(
        move |transaction| {
            drop(inside);
            transaction.next_number("n")
        },
        answer,
    );
    store.inner.messages.send(Message::Work(work)).unwrap();
    drop(store);
    assert_eq!(answered.blocking_recv().unwrap().unwrap(), 1);
}

#[test]
fn who_waits_for_changes_hears_of_each_group() {
    let folder = folder();
    let store = open(&folder);
    let mut changes = store.changes();
    let before = *changes.borrow_and_update();
    put(&store, APPS, b"a", "1").unwrap();
    assert!(changes.has_changed().unwrap());
    assert!(*changes.borrow_and_update() > before);
}
