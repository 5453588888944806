//! How fast the store acknowledges, and how fast it opens. `cargo bench --bench store [FOLDER]`.
//!
//! The figures depend on the disk's fdatasync more than on anything else; that is printed first.

use bytes::Bytes;
use landfall::store::{BlobRef, Store, StoreError, Table};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DELIVERIES: Table = Table("deliveries");
const BLOB_BYTES: usize = 24 << 10;

fn main() {
    let parent = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent).expect("a folder for the stores");
    bare_syncs(folder.path());
    for writers in [1, 16, 64, 512] {
        acknowledge(&folder.path().join(format!("writers-{writers}")), writers);
    }
    for records in [10_000, 100_000] {
        reopen(&folder.path().join(format!("records-{records}")), records);
    }
}

fn bare_syncs(folder: &Path) {
    let mut file = OpenOptions::new().append(true).create(true).open(folder.join("bare")).expect("a file");
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&[b'x'; 300]).and_then(|()| file.sync_data()).expect("a sync");
        times.push(start.elapsed());
    }
    println!("bare append of 300 B and fdatasync: {}", spread(&mut times));
}

fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!("p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(0.5), at(0.99), at(1.0))
}

fn acknowledge(folder: &Path, writers: u64) {
    let store = Store::open(folder).expect("a store");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let content = Bytes::from(vec![b'p'; BLOB_BYTES]);
    let until = Instant::now() + Duration::from_secs(4);
    let started = Instant::now();
    let numbers = Arc::new(AtomicU64::new(0));
    let mut times = runtime.block_on(async {
        let mut tasks = Vec::new();
        for _ in 0..writers {
            let (store, content, numbers) = (store.clone(), content.clone(), numbers.clone());
            tasks.push(tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let content = content.clone();
                    let key = numbers.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                    let start = Instant::now();
                    store
                        .transact::<BlobRef, StoreError>(move |transaction| {
                            let blob = transaction.put_blob(content)?;
                            transaction.put(DELIVERIES, &key, &blob)?;
                            Ok(blob)
                        })
                        .await
                        .expect("a transaction");
                    times.push(start.elapsed());
                }
                times
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("a task"));
        }
        all
    });
    let seconds = started.elapsed().as_secs_f64();
    let figures = store.figures();
    println!(
        "{writers:4} writers with 24 KiB blobs: {:6.0}/s, {}; {:.1} transactions a group, {:.2} syncs a transaction",
        times.len() as f64 / seconds,
        spread(&mut times),
        times.len() as f64 / figures.groups as f64,
        figures.syncs as f64 / times.len() as f64,
    );
}

fn reopen(folder: &Path, records: u64) {
    let store = Store::open(folder).expect("a store");
    let value = "v".repeat(300);
    for start in (0..records).step_by(500) {
        let value = value.clone();
        store
            .transact_blocking::<(), StoreError>(move |transaction| {
                for number in start..start + 500 {
                    transaction.put(DELIVERIES, &number.to_be_bytes(), &value)?;
                }
                Ok(())
            })
            .expect("a load");
    }
    let close = Instant::now();
    drop(store);
    let closed = close.elapsed();
    let open = |what: &str| {
        let start = Instant::now();
        let store = Store::open(folder).expect("a store");
        let opened = start.elapsed();
        assert_eq!(store.count(DELIVERIES).expect("a count"), records);
        let scan = Instant::now();
        assert_eq!(store.scan::<String>(DELIVERIES, b"").expect("a scan").len() as u64, records);
        println!("{records:7} records of 300 B: open {what} {opened:.2?}, read all {:.2?}", scan.elapsed());
    };
    println!("{records:7} records of 300 B: close {closed:.2?}");
    open("as it was");
    std::fs::remove_dir_all(folder.join("index")).expect("an index");
    open("without index");
    let store = Store::open(folder).expect("a store");
    let compact = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.compact()).expect("a snapshot");
    println!("{records:7} records of 300 B: snapshot {:.2?}", compact.elapsed());
    drop(store);
    open("after a snapshot");
    std::fs::remove_dir_all(folder.join("index")).expect("an index");
    open("from a snapshot, without index");
    // The journal grew by what was never folded; both are on the disk.
    let bytes = File::open(folder).and_then(|_| size(folder)).expect("a size");
    println!("{records:7} records of 300 B: {:.1} MB on the disk", bytes as f64 / 1e6);
}

fn size(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
