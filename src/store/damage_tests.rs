//! What happens to a store whose files are not as they were left: cut, flipped, zeroed, missing, old.

use super::blobs::BlobRef;
use super::frame::{self, NoFrame};
use super::tests::{APPS, RUNS, dump, dump_files, folder, open, put};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn copy(folder: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(folder.path(), copy.path());
    copy
}

fn only_segment(folder: &TempDir) -> PathBuf {
    let segments = journal::segments(folder.path()).unwrap();
    assert_eq!(segments.len(), 1);
    segments[0].path.clone()
}

fn compact(store: &Store) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.compact()).unwrap();
}

/// Frames of several sizes, and where each one ends.
fn frames(sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut file = Vec::new();
    let mut ends = vec![0];
    for (number, size) in sizes.iter().enumerate() {
        let value = Bytes::from(format!("\"{}\"", "x".repeat(*size)));
        let key = keys::full_key("apps", &number.to_be_bytes());
        let payload = frame::encode_changes(std::iter::once((&key, Some(&value))));
        file.extend(frame::encode(number as u64 + 1, 1, &payload).0);
        ends.push(file.len());
    }
    (file, ends)
}

/// Reads a file as recovery does: how many frames are good, and what stands after them.
fn walk(file: &[u8]) -> (usize, NoFrame) {
    let (mut offset, mut good) = (0, 0);
    loop {
        match frame::read(file, offset) {
            Ok(found) => {
                offset = found.end;
                good += 1;
            }
            Err(NoFrame::Torn) if frame::any_after(file, offset).is_some() => {
                return (good, NoFrame::Damaged("others follow".to_owned()));
            }
            Err(end) => return (good, end),
        }
    }
}

#[test]
fn a_tail_cut_at_any_byte_is_torn_and_never_damage() {
    let (file, ends) = frames(&[3, 700, 40, 1500, 9]);
    for length in 0..=file.len() {
        let whole = ends.iter().filter(|end| **end <= length).count() - 1;
        let wanted = if ends.contains(&length) { NoFrame::End } else { NoFrame::Torn };
        assert_eq!(walk(&file[..length]), (whole, wanted), "{length} bytes");
    }
}

#[test]
fn a_last_write_with_lost_sectors_is_torn() {
    // What a power cut leaves of the last frame: any of its sectors may not have arrived.
    let mut random = Random(7);
    for _ in 0..10_000 {
        let sizes: Vec<usize> = (0..1 + random.below(4)).map(|_| random.below(5000)).collect();
        let (mut file, ends) = frames(&sizes);
        let start = ends[ends.len() - 2];
        let sectors = (file.len() - 1) / 512 - start / 512 + 1;
        let mut lost = 0;
        for sector in 0..sectors {
            if random.below(2) == 0 {
                let from = (start / 512 + sector) * 512;
                let to = (from + 512).min(file.len());
                file[from.max(start)..to].fill(0);
                lost += 1;
            }
        }
        let wanted = if lost == 0 { (sizes.len(), NoFrame::End) } else { (sizes.len() - 1, NoFrame::Torn) };
        assert_eq!(walk(&file), wanted, "{sizes:?}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_damage_and_never_torn() {
    let (file, ends) = frames(&[3, 700, 40]);
    for position in 0..file.len() {
        for bit in [0, 3, 7] {
            let mut flipped = file.clone();
            flipped[position] ^= 1 << bit;
            let (good, end) = walk(&flipped);
            let before = ends.iter().filter(|end| **end <= position).count() - 1;
            assert_eq!(good, before);
            assert!(matches!(end, NoFrame::Damaged(_)), "byte {position} bit {bit}: {end:?}");
        }
    }
}

#[test]
fn a_torn_tail_is_cut_and_the_store_goes_on() {
    let folder = folder();
    let store = open(&folder);
    put(&store, APPS, b"a", "1").unwrap();
    put(&store, APPS, b"b", "2").unwrap();
    let before = dump(&store);
    drop(store);
    let good = fs::metadata(only_segment(&folder)).unwrap().len();
    let (frame, _) = frame::encode(4, 1, b"{\"v\":1,\"changes\":[{\"put\":\"apps\",\"key\":\"c\",\"value\":3}]}");
    for length in 1..frame.len() {
        let copy = copy(&folder);
        let segment = only_segment(&copy);
        let mut bytes = fs::read(&segment).unwrap();
        bytes.extend_from_slice(&frame[..length]);
        fs::write(&segment, &bytes).unwrap();
        let store = open(&copy);
        assert_eq!(dump(&store), before, "{length} bytes of the torn frame");
        put(&store, APPS, b"d", "4").unwrap();
        drop(store);
        let store = open(&copy);
        assert_eq!(store.get::<String>(APPS, b"d").unwrap().as_deref(), Some("4"));
        assert_eq!(dump(&store), dump_files(&store));
        assert!(fs::metadata(&segment).unwrap().len() > good);
    }
}

#[test]
fn damage_in_the_middle_refuses_says_where_and_changes_nothing() {
    let folder = folder();
    let store = open(&folder);
    for number in 0..5 {
        put(&store, APPS, format!("{number}").as_bytes(), "value").unwrap();
    }
    drop(store);
    let segment = only_segment(&folder);
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    fs::write(&segment, &bytes).unwrap();
    for _ in 0..2 {
        let Err(error) = Store::open(folder.path()) else { panic!("opened") };
        let StoreError::Damaged { file, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(*file, segment.display().to_string());
        assert!(*offset as usize <= middle && *offset > 0);
        assert!(error.to_string().contains("restore the folder from a backup"), "{error}");
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes);

    // On a person's word it is cut there, and what was cut is kept.
    let repaired = repair(folder.path()).unwrap();
    assert_eq!(repaired.cut, [segment]);
    assert_eq!(fs::read(&repaired.set_aside[0]).unwrap(), bytes);
    let store = open(&folder);
    let left = store.count(APPS).unwrap();
    assert!((1..5).contains(&left), "{left} records are left");
    assert_eq!(dump(&store), dump_files(&store));
    drop(store);
    assert_eq!(repair(folder.path()).unwrap().cut, Vec::<PathBuf>::new(), "nothing more to cut");
}

#[test]
fn the_index_bears_witness_to_a_lost_end() {
    let folder = folder();
    let store = open(&folder);
    put(&store, APPS, b"a", "1").unwrap();
    put(&store, APPS, b"b", "acknowledged").unwrap();
    drop(store);
    let segment = only_segment(&folder);
    let bytes = fs::read(&segment).unwrap();
    // It looks like a torn write, but the index was given this frame, and it is given only what is durable.
    fs::write(&segment, &bytes[..bytes.len() - 3]).unwrap();
    let Err(error) = Store::open(folder.path()) else { panic!("opened") };
    assert!(error.to_string().contains("was durable before"), "{error}");
    let mended = copy(&folder);
    assert_eq!(repair(mended.path()).unwrap().cut.len(), 1);
    let store = open(&mended);
    assert_eq!(store.count(APPS).unwrap(), 1);
    assert_eq!(store.generation(), 2, "counted on although the journal was cut");
    drop(store);
    fs::remove_file(&segment).unwrap();
    let Err(error) = Store::open(folder.path()) else { panic!("opened") };
    assert!(error.to_string().contains("all journal files are missing"), "{error}");
}

#[test]
fn no_generation_is_given_twice_whatever_happens_to_the_files() {
    let folder = folder();
    drop(open(&folder));
    let backup = copy(&folder);
    for wanted in 2..5 {
        assert_eq!(open(&folder).generation(), wanted);
    }
    // The journal alone comes back from a backup.
    fs::remove_dir_all(folder.path().join("journal")).unwrap();
    copy_tree(&backup.path().join("journal"), &folder.path().join("journal"));
    let store = open(&folder);
    assert_eq!((store.generation(), store.opening().groups_lost), (5, 3));
    drop(store);
    // Either of the two places is enough.
    fs::write(folder.path().join("generation"), "").unwrap();
    assert_eq!(open(&folder).generation(), 6);
}

#[test]
fn a_missing_journal_file_is_found() {
    let folder = folder();
    let store = open(&folder);
    for round in 0..3 {
        put(&store, APPS, b"a", &format!("{round}")).unwrap();
        if round < 2 {
            compact(&store);
            put(&store, APPS, b"b", &format!("{round}")).unwrap();
        }
    }
    let before = dump(&store);
    drop(store);
    let segments = journal::segments(folder.path()).unwrap();
    assert_eq!(segments.len(), 2);
    let gone = copy(&folder);
    fs::remove_file(gone.path().join("journal").join(segments[1].path.file_name().unwrap())).unwrap();
    assert!(matches!(Store::open(gone.path()), Err(StoreError::Damaged { .. })));
    assert_eq!(repair(gone.path()).unwrap().cut.len(), 1);
    assert_eq!(open(&gone).get::<String>(APPS, b"a").unwrap().as_deref(), Some("1"));
    // The older segment is needed only when the newest snapshot cannot be read.
    let spare = copy(&folder);
    fs::remove_file(spare.path().join("journal").join(segments[0].path.file_name().unwrap())).unwrap();
    assert_eq!(dump(&open(&spare)), before);
}

#[test]
fn either_snapshot_may_be_damaged() {
    let folder = folder();
    let store = open(&folder);
    for round in 0..3 {
        for number in 0..50 {
            put(&store, APPS, format!("{number}").as_bytes(), &format!("{round}")).unwrap();
        }
        if round < 2 {
            compact(&store);
        }
    }
    let before = dump(&store);
    drop(store);
    let names: Vec<String> = snapshot::newest_first(folder.path())
        .unwrap()
        .iter()
        .map(|(_, path)| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut random = Random(11);
    for round in 0..60 {
        let copy = copy(&folder);
        let path = copy.path().join("snapshots").join(&names[round % 2]);
        let mut bytes = fs::read(&path).unwrap();
        match random.below(3) {
            0 => bytes.truncate(random.below(bytes.len())),
            1 => {
                let position = random.below(bytes.len());
                bytes[position] ^= 1 << random.below(8);
            }
            _ => bytes.clear(),
        }
        fs::write(&path, &bytes).unwrap();
        fs::remove_dir_all(copy.path().join("index")).unwrap();
        let store = open(&copy);
        assert_eq!(dump(&store), before, "round {round}");
        put(&store, APPS, b"more", "more").unwrap();
        compact(&store);
        assert_eq!(dump(&store), dump_files(&store));
    }
    let copy = copy(&folder);
    for name in names {
        fs::write(copy.path().join("snapshots").join(name), "").unwrap();
    }
    assert!(matches!(Store::open(copy.path()), Err(StoreError::Damaged { .. })), "no snapshot at all");
}

/// A store with enough in it that sled has segments on the disk, and the same store at an earlier time.
fn filled() -> (TempDir, TempDir, BTreeMap<String, String>) {
    let folder = folder();
    let store = open(&folder);
    let fill = |round: usize| {
        store
            .transact_blocking::<(), StoreError>(move |transaction| {
                for number in 0..400_u32 {
                    let value = format!("{round}-{number}-").repeat(1 + number as usize % 700);
                    transaction.put(APPS, &number.to_be_bytes(), &value)?;
                }
                Ok(())
            })
            .unwrap();
    };
    fill(0);
    drop(store);
    let earlier = copy(&folder);
    let store = open(&folder);
    fill_again(&store);
    let all = dump(&store);
    drop(store);
    (folder, earlier, all)
}

fn fill_again(store: &Store) {
    for number in 0..40_u32 {
        put(store, APPS, &number.to_be_bytes(), "again").unwrap();
        put(store, RUNS, &number.to_be_bytes(), "new").unwrap();
    }
    store.transact_blocking(|transaction| transaction.delete(APPS, &50_u32.to_be_bytes())).unwrap();
}

#[test]
fn an_index_that_is_missing_behind_or_ahead_is_brought_in_step() {
    let (folder, earlier, all) = filled();
    // Missing.
    let missing = copy(&folder);
    fs::remove_dir_all(missing.path().join("index")).unwrap();
    let store = open(&missing);
    let mut wanted = all.clone();
    assert_eq!(dump(&store), wanted);
    assert_eq!(store.count(APPS).unwrap(), 399);
    assert_eq!(store.figures().index_rebuilds, 1);
    drop(store);
    // Behind: the index of an earlier time is given what it has not seen.
    let behind = copy(&folder);
    fs::remove_dir_all(behind.path().join("index")).unwrap();
    copy_tree(&earlier.path().join("index"), &behind.path().join("index"));
    let store = open(&behind);
    assert_eq!(dump(&store), wanted);
    assert_eq!((store.count(APPS).unwrap(), store.count(RUNS).unwrap()), (399, 40));
    assert_eq!(store.figures().index_rebuilds, 0);
    drop(store);
    // Ahead: the journal comes from a backup, and what it does not know goes.
    let ahead = copy(&earlier);
    fs::remove_dir_all(ahead.path().join("index")).unwrap();
    copy_tree(&folder.path().join("index"), &ahead.path().join("index"));
    let store = open(&ahead);
    wanted = dump_files(&store);
    assert_eq!(dump(&store), wanted);
    assert_eq!((store.count(APPS).unwrap(), store.count(RUNS).unwrap()), (400, 0));
    assert_eq!(store.figures().index_rebuilds, 1);
    drop(store);
    // Of another history, although no longer than this one.
    let other = copy(&earlier);
    let store = open(&other);
    for number in 0..100_u32 {
        put(&store, RUNS, &number.to_be_bytes(), "another history").unwrap();
    }
    drop(store);
    fs::remove_dir_all(other.path().join("index")).unwrap();
    copy_tree(&folder.path().join("index"), &other.path().join("index"));
    let store = open(&other);
    assert_eq!(dump(&store), dump_files(&store));
    assert_eq!(store.figures().index_rebuilds, 1);
}

#[test]
fn an_index_from_before_a_restart_of_the_machine_is_not_trusted() {
    let folder = folder();
    let store = open(&folder);
    put(&store, APPS, b"a", "1").unwrap();
    drop(store);
    fs::write(folder.path().join("boot"), "another boot\n").unwrap();
    let store = open(&folder);
    assert_eq!(store.figures().index_rebuilds, 1);
    assert_eq!(store.get::<String>(APPS, b"a").unwrap().as_deref(), Some("1"));
}

#[test]
fn sleds_left_over_snapshots_do_not_keep_the_store_closed() {
    let (folder, _, all) = filled();
    let index = folder.path().join("index");
    fs::write(index.join("snap.00000000000000FF.generating"), "half").unwrap();
    fs::write(index.join("snap.00000000000000FE"), "").unwrap();
    assert_eq!(dump(&open(&folder)), all);
}

/// Damages sled's own files in many ways; every record must be there every time, and no opening may hang.
#[test]
fn any_damage_to_the_index_is_mended() {
    let (folder, _, all) = filled();
    let mut random = Random(0x5EED);
    let (mut rebuilt, rounds) = (0, 60);
    for round in 0..rounds {
        let copy = copy(&folder);
        let mut files = Vec::new();
        let mut folders = vec![copy.path().join("index")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        let path = &files[random.below(files.len())];
        let mut bytes = fs::read(path).unwrap();
        match random.below(5) {
            _ if bytes.is_empty() => bytes.extend_from_slice(b"something"),
            0 => {
                let position = random.below(bytes.len());
                bytes[position] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len())),
            2 => {
                let from = random.below(bytes.len());
                let to = (from + 4096).min(bytes.len());
                bytes[from..to].fill(0);
            }
            3 => bytes.clear(),
            _ => {
                for byte in &mut bytes {
                    *byte = (random.below(256)) as u8;
                }
            }
        }
        fs::write(path, &bytes).unwrap();
        let store = open(&copy);
        assert_eq!(dump(&store), all, "round {round}: {}", path.display());
        put(&store, APPS, b"more", "more").unwrap();
        assert_eq!(store.get::<String>(APPS, b"more").unwrap().as_deref(), Some("more"));
        assert_eq!(store.count(RUNS).unwrap(), 40);
        rebuilt += store.figures().index_rebuilds;
    }
    assert!(rebuilt > 0, "none of {rounds} damages was noticed");
}

#[test]
fn an_index_that_breaks_while_in_use_is_replaced_under_its_readers() {
    let (folder, _, all) = filled();
    let store = open(&folder);
    *store.inner.shared.index.write().unwrap() = index::Index::Broken("for the test".to_owned());
    assert_eq!(store.count(APPS).unwrap(), 399);
    assert_eq!(store.figures().index_rebuilds, 1);
    // A transaction meets it, too.
    *store.inner.shared.index.write().unwrap() = index::Index::Broken("for the test".to_owned());
    let found = store.transact_blocking::<_, StoreError>(|transaction| {
        transaction.put(APPS, b"z", "written")?;
        transaction.get::<String>(RUNS, &1_u32.to_be_bytes())
    });
    assert_eq!(found.unwrap().as_deref(), Some("new"));
    // So does a group that only writes: the apply finds it.
    let gone = index::Index::Broken("for the test".to_owned());
    let shared = store.inner.shared.clone();
    store
        .transact_blocking::<_, StoreError>(move |transaction| {
            transaction.put(APPS, b"zz", "written")?;
            *shared.index.write().unwrap() = gone;
            Ok(())
        })
        .unwrap();
    assert_eq!(store.get::<String>(APPS, b"zz").unwrap().as_deref(), Some("written"));
    assert_eq!(store.figures().index_rebuilds, 3);
    let mut now = dump(&store);
    now.retain(|key, _| !key.starts_with("apps/z"));
    assert_eq!(now, all);
}

#[test]
fn an_index_that_cannot_be_written_is_served_from_memory() {
    let (folder, _, all) = filled();
    let store = open(&folder);
    // A file where the index's folder belongs: sled cannot be had.
    *store.inner.shared.index.write().unwrap() = index::Index::Broken("for the test".to_owned());
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    fs::write(folder.path().join("index"), "in the way").unwrap();
    assert_eq!(dump(&store), all);
    assert!(store.figures().index_in_memory);
    put(&store, APPS, b"more", "more").unwrap();
    assert_eq!(store.count(APPS).unwrap(), 400);
    assert_eq!(store.scan_page::<String>(APPS, b"m", None, 5, Order::Descending).unwrap().len(), 1);
    fs::remove_file(folder.path().join("index")).unwrap();
    // The next snapshot tries sled again.
    compact(&store);
    assert!(!store.figures().index_in_memory);
    assert_eq!(store.get::<String>(APPS, b"more").unwrap().as_deref(), Some("more"));
}

#[test]
fn blobs_that_are_not_as_they_were_are_never_handed_out() {
    let folder = folder();
    let store = open(&folder);
    let content = Bytes::from(vec![b'p'; 24_000]);
    let blobs: Vec<BlobRef> = (0..3)
        .map(|_| {
            let content = content.clone();
            store.transact_blocking(move |transaction| transaction.put_blob(content)).unwrap()
        })
        .collect();
    drop(store);
    let path = blobs::segment_path(folder.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[30_000] ^= 1;
    bytes.truncate(60_000);
    fs::write(&path, &bytes).unwrap();
    let store = open(&folder);
    assert_eq!(store.blob(&blobs[0]).unwrap(), content);
    for blob in &blobs[1..] {
        assert!(matches!(store.blob(blob), Err(StoreError::BlobDamaged { segment: 1, .. })));
    }
    let wild = BlobRef { segment: 1, offset: u64::MAX, length: u32::MAX, crc32c: 0 };
    assert!(matches!(store.blob(&wild), Err(StoreError::BlobDamaged { .. })));
    // New blobs never go where bytes are missing.
    let next = store.transact_blocking(move |transaction| transaction.put_blob(content)).unwrap();
    assert_eq!((next.segment, next.offset), (2, 0));
}

#[test]
fn an_unacknowledged_blob_is_cut_off() {
    let folder = folder();
    let store = open(&folder);
    let put_blob = |store: &Store, text: &'static str| {
        store.transact_blocking(move |it| it.put_blob(Bytes::from_static(text.as_bytes()))).unwrap()
    };
    let first = put_blob(&store, "first");
    drop(store);
    // A kill between the blobs and the journal leaves bytes that no record knows.
    let path = blobs::segment_path(folder.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"never acknowledged");
    fs::write(&path, bytes).unwrap();
    let store = open(&folder);
    let second = put_blob(&store, "second");
    assert_eq!(second.offset, 5);
    assert_eq!((store.blob(&first).unwrap(), store.blob(&second).unwrap()), (b"first".to_vec(), b"second".to_vec()));
}

/// Random damage to every file of the truth: an opening gives every record, refuses in words, or (for a journal cut
/// exactly between two frames, as a backup may be) says that groups are lost.
#[test]
fn no_damage_to_the_truth_is_silent() {
    let folder = folder();
    let store = open(&folder);
    for round in 0..3 {
        for number in 0..10 {
            put(&store, APPS, format!("{number}").as_bytes(), &format!("{round}").repeat(50)).unwrap();
        }
        compact(&store);
    }
    put(&store, APPS, b"last", "last").unwrap();
    let all = dump(&store);
    drop(store);
    let mut files = Vec::new();
    for name in ["journal", "snapshots"] {
        files.extend(fs::read_dir(folder.path().join(name)).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.push(folder.path().join("format"));
    files.sort();
    let mut random = Random(0xDA7A);
    let (mut refused, mut whole) = (0, 0);
    for round in 0..150 {
        let copy = copy(&folder);
        let path = copy.path().join(files[random.below(files.len())].strip_prefix(folder.path()).unwrap());
        let mut bytes = fs::read(&path).unwrap();
        match random.below(4) {
            _ if bytes.is_empty() => continue,
            0 => {
                let position = random.below(bytes.len());
                bytes[position] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len())),
            2 => {
                let from = random.below(bytes.len());
                let to = (from + 512).min(bytes.len());
                bytes[from..to].fill(0);
            }
            _ => bytes.clear(),
        }
        fs::write(&path, &bytes).unwrap();
        match Store::open(copy.path()) {
            Ok(store) => {
                let found = dump(&store);
                let ahead = store.opening().groups_lost > 0;
                assert_eq!(found != all, ahead, "round {round}: {} lost records silently", path.display());
                whole += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(refused > 20 && whole > 20, "{refused} refused, {whole} whole");
}

#[tokio::test]
async fn a_queue_is_read_back_from_the_journal_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("it opens");
    let due = crate::clock::Timestamp(1_000);
    store
        .transact(move |transaction| super::queue::enqueue(transaction, "app:hello-pr-1", due))
        .await
        .expect("it is written");
    drop(store);
    std::fs::remove_dir_all(folder.path().join("index")).expect("the index goes");
    let store = Store::open(folder.path()).expect("it opens from the journal alone");
    assert_eq!(super::queue::next_due(&store).expect("it reads"), Some(due));
    let mut exported = Vec::new();
    store.export(&mut exported).expect("it exports");
    assert!(String::from_utf8_lossy(&exported).contains("app:hello-pr-1"));
}
