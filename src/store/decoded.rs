//! Tables that are read whole again and again, decoded once. What changed since is looked up by its key, so that a
//! reader pays for the changes and not for the table.

use super::keys::{self, Table};
use super::shared::Shared;
use super::{StoreError, decode};
use crate::store::index::KeyRange;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Keys of the newest changes. Who is further behind reads the whole table.
const REMEMBERED: usize = 4_096;

/// Which records of some tables changed lately. Written and read with the index held, so that it never tells of another
/// moment than the index.
pub(super) struct Recent {
    tables: &'static [&'static str],
    /// The sequence of the newest group.
    last: u64,
    /// All changes after this one are remembered.
    from: u64,
    changed: VecDeque<(u64, Vec<u8>)>,
}

impl Recent {
    pub(super) fn new(tables: &'static [&'static str], sequence: u64) -> Recent {
        Recent { tables, last: sequence, from: sequence, changed: VecDeque::new() }
    }

    pub(super) fn note<'a>(&mut self, sequence: u64, changed: impl Iterator<Item = &'a Vec<u8>>) {
        self.last = sequence;
        for key in changed.filter(|key| self.tables.contains(&keys::split(key).0)) {
            self.changed.push_back((sequence, key.clone()));
        }
        while self.changed.len() > REMEMBERED {
            if let Some((sequence, _)) = self.changed.pop_front() {
                self.from = sequence;
            }
        }
    }

    /// Full keys of a table that changed after `version`; `None` where that is not known any more.
    fn since(&self, table: Table, version: u64) -> Option<BTreeSet<Vec<u8>>> {
        let newer = self.changed.iter().rev().take_while(|(sequence, _)| *sequence > version);
        let of_table = newer.filter(|(_, key)| keys::split(key).0 == table.0);
        (version >= self.from).then(|| of_table.map(|(_, key)| key.clone()).collect())
    }
}

/// All records of a table by their keys.
pub(super) type Records<T> = Arc<BTreeMap<Vec<u8>, Arc<T>>>;

/// A table as its records are now.
pub(super) struct Decoded<T> {
    table: Table,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    /// The sequence that it stands at; `None` before the first read.
    version: Option<u64>,
    records: Records<T>,
}

enum News {
    Whole(Vec<(Vec<u8>, Bytes)>),
    Some(Vec<(Vec<u8>, Option<Bytes>)>),
}

impl<T: DeserializeOwned> Decoded<T> {
    pub(super) fn new(table: Table) -> Decoded<T> {
        Decoded { table, known: Mutex::new(Known { version: None, records: Records::default() }) }
    }

    pub(super) fn read(&self, shared: &Shared) -> Result<Records<T>, StoreError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (version, news) = shared.read(|index| {
            let recent = shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let news = match known.version.and_then(|version| recent.since(self.table, version)) {
                Some(changed) => {
                    let read = changed.into_iter().map(|key| index.get(&key).map(|value| (key, value)));
                    News::Some(read.collect::<Result<_, _>>()?)
                }
                None => {
                    let range = KeyRange::prefix(keys::full_key(self.table.0, b""));
                    News::Whole(index.range(&range, usize::MAX, false)?)
                }
            };
            Ok((recent.last, news))
        })?;
        let read = |full: &[u8], value: &Bytes| {
            let key = keys::split(full).1;
            decode(self.table, key, value).map(|record| (key.to_vec(), Arc::new(record)))
        };
        // Nothing is known at all until it is known whole.
        known.version = None;
        match news {
            News::Whole(entries) => {
                let all = entries.iter().map(|(key, value)| read(key, value)).collect::<Result<_, _>>()?;
                known.records = Arc::new(all);
            }
            News::Some(changed) if changed.is_empty() => {}
            News::Some(changed) => {
                let records = Arc::make_mut(&mut known.records);
                for (full, value) in changed {
                    match value {
                        Some(value) => {
                            let (key, record) = read(&full, &value)?;
                            records.insert(key, record);
                        }
                        None => {
                            records.remove(keys::split(&full).1);
                        }
                    }
                }
            }
        }
        known.version = Some(version);
        Ok(known.records.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::APPS;
    use super::super::tests::{folder, open};
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A record that counts how often one was decoded.
    #[derive(Debug)]
    struct Counted(String);

    static DECODED: AtomicU64 = AtomicU64::new(0);

    impl<'de> serde::Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Counted, D::Error> {
            DECODED.fetch_add(1, Ordering::SeqCst);
            String::deserialize(deserializer).map(Counted)
        }
    }

    #[test]
    fn a_decoded_table_is_what_a_scan_reads_and_costs_what_changed() {
        let folder = folder();
        let store = open(&folder);
        let decoded: Decoded<Counted> = Decoded::new(APPS);
        let read = |decoded: &Decoded<Counted>| {
            let before = DECODED.load(Ordering::SeqCst);
            let records = decoded.read(&store.inner.shared).unwrap();
            let found: Vec<(Vec<u8>, String)> =
                records.iter().map(|(key, record)| (key.clone(), record.0.clone())).collect();
            assert_eq!(found, store.scan::<String>(APPS, b"").unwrap());
            DECODED.load(Ordering::SeqCst) - before
        };
        let change = |changes: Vec<(String, Option<String>)>| {
            let changed = store.transact_blocking(move |tx| {
                for (key, value) in &changes {
                    match value {
                        Some(value) => tx.put(APPS, key.as_bytes(), value)?,
                        None => tx.delete(APPS, key.as_bytes())?,
                    }
                    // Another table, whose changes are no news of this one.
                    tx.put(Table("pull"), key.as_bytes(), &1)?;
                }
                Ok::<(), StoreError>(())
            });
            changed.unwrap();
        };
        assert_eq!(read(&decoded), 0);
        change((0..50).map(|number| (format!("app-{number:03}"), Some("one".to_owned()))).collect());
        assert_eq!(read(&decoded), 50);
        assert_eq!(read(&decoded), 0, "nothing changed");
        change(vec![("app-007".into(), Some("two".into())), ("app-008".into(), None), ("app-100".into(), None)]);
        change(vec![("app-007".into(), Some("three".into())), ("app-101".into(), Some("new".into()))]);
        assert_eq!(read(&decoded), 2);
        // Who is too far behind reads the whole table.
        for _ in 0..3 {
            change((0..2_000).map(|number| (format!("app-{number:03}"), Some("many".to_owned()))).collect());
        }
        assert!(read(&decoded) >= 2_000);
        assert_eq!(read(&decoded), 0);
        // A record that can't be read is told each time, and nothing is taken for known meanwhile.
        let spoil = store.transact_blocking(|tx| tx.put(APPS, b"app-003", &7));
        spoil.unwrap();
        for _ in 0..2 {
            assert!(matches!(decoded.read(&store.inner.shared), Err(StoreError::Decode { .. })));
        }
        change(vec![("app-003".into(), None)]);
        assert!(read(&decoded) == 1_999);
    }
}
