//! Real kills and a really full disk: what was acknowledged is there, and nothing is half there.

use super::disk::{Disk, Fault, Operation};
use super::tests::{APPS, RUNS, dump, dump_files, folder};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set for the child process: the folder of its store.
const FOLDER_VARIABLE: &str = "LANDFALL_STORE_CRASH_TEST";
const THREADS: u32 = 4;
const ROUNDS: usize = 40;

/// One step of one thread: a record in each of two tables, and a blob, which count together or not at all.
fn step(store: &Store, thread: u32, number: u32) -> Result<(), StoreError> {
    store.transact_blocking(move |transaction| {
        let blob = transaction.put_blob(content(thread, number))?;
        let key = key(thread, number);
        transaction.put(APPS, &key, &blob)?;
        transaction.put(RUNS, &key, &number)?;
        transaction.next_number("steps")?;
        Ok(())
    })
}

fn key(thread: u32, number: u32) -> Vec<u8> {
    [thread.to_be_bytes(), number.to_be_bytes()].concat()
}

fn content(thread: u32, number: u32) -> Bytes {
    Bytes::from(format!("{thread}/{number} ").repeat(usize::try_from(number % 50).unwrap() * 40 + 1))
}

/// How many steps each thread has, after checking that they have no gap and no half.
fn check(store: &Store, acknowledged: &BTreeMap<u32, u32>, blobs_from: &BTreeMap<u32, u32>) -> BTreeMap<u32, u32> {
    let mut steps = BTreeMap::new();
    for thread in 0..THREADS {
        let apps = store.scan::<BlobRef>(APPS, &thread.to_be_bytes()).unwrap();
        let runs = store.scan::<u32>(RUNS, &thread.to_be_bytes()).unwrap();
        assert_eq!(apps.len(), runs.len(), "half a transaction is there");
        for (expected, ((app_key, blob), (run_key, number))) in (0_u32..).zip(apps.iter().zip(&runs)) {
            assert_eq!((app_key, *number), (run_key, expected), "thread {thread} has a gap");
            if expected >= blobs_from.get(&thread).copied().unwrap_or(0) || expected % 97 == 0 {
                assert_eq!(store.blob(blob).unwrap(), content(thread, expected));
            }
        }
        let count = u32::try_from(runs.len()).unwrap();
        let promised = acknowledged.get(&thread).copied().unwrap_or(0);
        assert!(count >= promised, "thread {thread}: {promised} were acknowledged, {count} are there");
        steps.insert(thread, count);
    }
    let total: u32 = steps.values().sum();
    assert_eq!(store.get::<u32>(Table("counters"), b"steps").unwrap().unwrap_or(0), total);
    assert_eq!(store.count(APPS).unwrap(), u64::from(total));
    steps
}

/// The child's side of the test below; it does nothing when run as a test of its own.
#[test]
fn writes_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE) else { return };
    say("opening");
    let store = Store::open(Path::new(&folder)).unwrap();
    say(&format!("open {}", store.generation()));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let store = store.clone();
            thread::spawn(move || {
                let from = store.scan::<u32>(RUNS, &thread.to_be_bytes()).unwrap().len();
                for number in u32::try_from(from).unwrap().. {
                    step(&store, thread, number).unwrap();
                    say(&format!("ack {thread} {number}"));
                    if thread == 0 && number % 40 == 39 {
                        let (done, _) = oneshot::channel();
                        store.inner.messages.send(Message::Compact(done)).unwrap();
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// One line to the parent in one write, so that a kill cannot leave half a line of one thread in another's.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The harness has begun a line of its own; an empty one ends it.
    out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn start_child(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::crash_tests::writes_until_killed", "--nocapture", "--test-threads=1"])
        .env(FOLDER_VARIABLE, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = folder();
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    let mut checked: BTreeMap<u32, u32> = BTreeMap::new();
    let mut generation = 0;
    let mut random = 0x00C0_FFEE_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..ROUNDS {
        // Every fourth kill falls somewhere into the opening, several of those in a row into the recovery of the one
        // before; the others fall behind some number of acknowledgements.
        let during_opening = round % 4 == 3;
        for _ in 0..if during_opening { 3 } else { 1 } {
            let mut child = start_child(folder.path());
            let wanted = next(120);
            let pause = Duration::from_micros(next(30_000));
            let mut seen = 0;
            for line in BufReader::new(child.stdout.take().unwrap()).lines() {
                let line = line.unwrap();
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["opening"] if during_opening => {
                        thread::sleep(pause);
                        child.kill().unwrap();
                    }
                    ["open", number] => {
                        let opened: u64 = number.parse().unwrap();
                        assert!(opened > generation, "generation {opened} was given before");
                        generation = opened;
                    }
                    ["ack", thread, number] => {
                        acknowledged.insert(thread.parse().unwrap(), number.parse::<u32>().unwrap() + 1);
                        seen += 1;
                        // Lines that are still in the pipe are read on: they were acknowledged, too.
                        if seen == wanted.max(1) {
                            child.kill().unwrap();
                        }
                    }
                    _ => {}
                }
            }
            let status = child.wait().unwrap();
            assert!(!status.success() && status.code().is_none(), "it was killed and did not fail: {status}");
        }
        let store = Store::open(folder.path()).unwrap();
        assert!(store.generation() > generation);
        generation = store.generation();
        checked = check(&store, &acknowledged, &checked);
        assert_eq!(dump(&store), dump_files(&store), "the index is not what the journal says");
        drop(store);
    }
    let total: u32 = acknowledged.values().sum();
    assert!(total > 500, "only {total} acknowledgements were put to the test");
}

#[test]
fn a_fault_at_any_operation_loses_nothing_acknowledged() {
    let kinds = [Operation::Write, Operation::Sync, Operation::Create, Operation::Rename, Operation::Truncate];
    let mut hit = 0;
    for operation in kinds {
        for after in 0.. {
            let folder = folder();
            let disk = Disk::default();
            let fault = Fault {
                operation,
                file_contains: "",
                after,
                error_number: nix::errno::Errno::ENOSPC as i32,
                partial: 9,
            };
            disk.faults.lock().unwrap().push(fault);
            let mut acknowledged = Vec::new();
            if let Ok(store) = open::open(folder.path(), &disk) {
                for number in 0..6_u32 {
                    if step(&store, 0, number).is_ok() {
                        acknowledged.push(number);
                    }
                    if number == 2 || number == 4 {
                        let (done, waiting) = oneshot::channel();
                        store.inner.messages.send(Message::Compact(done)).unwrap();
                        let _ = waiting.blocking_recv().unwrap();
                    }
                }
            }
            let store = Store::open(folder.path()).unwrap();
            let there: Vec<u32> = store.scan::<u32>(RUNS, b"").unwrap().into_iter().map(|(_, number)| number).collect();
            assert_eq!(there, acknowledged, "{operation:?} number {after}");
            for (_, blob) in store.scan::<BlobRef>(APPS, b"").unwrap() {
                store.blob(&blob).unwrap();
            }
            assert_eq!(dump(&store), dump_files(&store));
            if !disk.faults.lock().unwrap().is_empty() {
                break;
            }
            hit += 1;
        }
    }
    assert!(hit > 40, "only {hit} faults were met");
}

/// A tmpfs that only this thread and those it starts can see; it goes with them.
fn on_small_disk(megabytes: u32, test: impl FnOnce(&Path) + Send + 'static) -> bool {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let run = move || {
        let nothing = None::<&str>;
        let folder = folder();
        if unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).is_err()
            || mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).is_err()
        {
            return false;
        }
        let size = format!("size={megabytes}m");
        if mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).is_err() {
            return false;
        }
        test(folder.path());
        let _ = nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH);
        true
    };
    thread::spawn(run).join().unwrap()
}

#[test]
fn a_full_disk_is_survived_and_left_behind() {
    for megabytes in [6, 7, 9, 12, 17] {
        let ran = on_small_disk(megabytes, move |disk| {
            let ballast = disk.join("ballast");
            fs::write(&ballast, vec![0_u8; 3 << 20]).unwrap();
            let folder = disk.join("store");
            let store = Store::open(&folder).unwrap();
            let mut number = 0;
            let error = loop {
                match step(&store, 0, number) {
                    Ok(()) => number += 1,
                    Err(error) => break error,
                }
            };
            assert!(error.is_unavailable(), "{error}");
            let acknowledged = BTreeMap::from([(0, number)]);
            check(&store, &acknowledged, &BTreeMap::new());
            // It stays full: whatever needs a new page is refused, and everything can be read.
            fs::write(disk.join("rest"), vec![0_u8; 16 << 20]).unwrap_err();
            for _ in 0..5 {
                assert!(step(&store, 1, 49).unwrap_err().is_unavailable());
            }
            assert_eq!(store.scan::<u32>(RUNS, &0_u32.to_be_bytes()).unwrap().len() as u32, number);
            // Space returns: the next write goes through without anybody's help.
            fs::remove_file(&ballast).unwrap();
            fs::remove_file(disk.join("rest")).unwrap();
            step(&store, 2, 0).unwrap();
            assert_eq!(store.health(), Health::Ready);
            drop(store);
            let store = Store::open(&folder).unwrap();
            assert!(store.scan::<u32>(RUNS, &0_u32.to_be_bytes()).unwrap().len() as u32 == number);
            assert_eq!(store.scan::<u32>(RUNS, &2_u32.to_be_bytes()).unwrap().len(), 1);
            assert_eq!(dump(&store), dump_files(&store));
        });
        if !ran {
            eprintln!("SKIPPED: mounting a small tmpfs needs root; the full disk was only simulated");
            return;
        }
    }
}
