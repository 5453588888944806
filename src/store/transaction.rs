//! A transaction: reads of the newest state and writes that count together or not at all.
//!
//! Transactions run one after the other on the writer's thread. Each sees what those before it wrote, whether or not
//! that is durable yet; none of their callers is answered before the whole group is.

use super::blobs::{self, BLOB_LIMIT, BlobRef, BlobWriter};
use super::frame::Changes;
use super::keys::{self, Table};
use super::shared::Shared;
use super::{Order, StoreError};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest record, in bytes of JSON. What is longer belongs into a blob.
pub const RECORD_LIMIT: usize = 1 << 20;
/// The most that one transaction may write, in bytes of keys and values.
pub const TRANSACTION_LIMIT: usize = 64 << 20;

/// Durable counters, keyed by name.
const COUNTERS: Table = Table("counters");

/// The work given to [`super::Store::transact`] reads and writes through this.
pub struct Transaction<'a> {
    shared: &'a Shared,
    generation: u64,
    /// What earlier transactions of the group wrote.
    group: &'a Changes,
    own: Changes,
    own_bytes: usize,
    blobs: &'a mut BlobWriter,
    blobs_before: usize,
    failed: Option<StoreError>,
}

impl<'a> Transaction<'a> {
    pub(super) fn begin(
        shared: &'a Shared,
        generation: u64,
        group: &'a Changes,
        blobs: &'a mut BlobWriter,
    ) -> Transaction<'a> {
        let blobs_before = blobs.pending();
        Transaction { shared, generation, group, own: Changes::new(), own_bytes: 0, blobs, blobs_before, failed: None }
    }

    /// What it wrote, or nothing if `keep` is false.
    pub(super) fn end(self, keep: bool) -> Changes {
        if keep {
            return self.own;
        }
        self.blobs.forget_after(self.blobs_before);
        Changes::new()
    }

    /// The fencing number of this opening of the store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Reads one record.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        let stored = self.newest(&keys::full_key(table.0, key))?;
        stored.map(|value| super::decode(table, key, &value)).transpose()
    }

    /// All records whose keys start with `prefix`, in key order.
    pub fn scan<T: DeserializeOwned>(&self, table: Table, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        self.scan_page(table, prefix, None, usize::MAX, Order::Ascending)
    }

    /// At most `limit` records whose keys start with `prefix` and come after `after` in the given order.
    pub fn scan_page<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let range = super::page_range(table, prefix, after, order);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let written = |changes: &Changes| {
            let entries = changes.range((range.from.clone(), range.to.clone()));
            entries.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
        };
        let (group, own) = (written(self.group), written(&self.own));
        // Every change could hide one stored entry, so that many more are read.
        let wanted = limit.saturating_add(group.len()).saturating_add(own.len());
        let stored = self.shared.read(|index| index.range(&range, wanted, order == Order::Descending))?;
        let mut merged: BTreeMap<Vec<u8>, Bytes> = stored.into_iter().collect();
        for (key, value) in group.into_iter().chain(own) {
            match value {
                Some(value) => merged.insert(key, value),
                None => merged.remove(&key),
            };
        }
        match order {
            Order::Ascending => super::decode_entries(table, merged.into_iter().take(limit)),
            Order::Descending => super::decode_entries(table, merged.into_iter().rev().take(limit)),
        }
    }

    /// Writes one record; the same value again changes nothing and costs no write. JSON above [`RECORD_LIMIT`] is refused.
    pub fn put<T: Serialize + ?Sized>(&mut self, table: Table, key: &[u8], value: &T) -> Result<(), StoreError> {
        let mut json = serde_json::to_vec(value).map_err(|source| StoreError::Encode {
            table: table.0,
            key: keys::escape(key),
            source: Arc::new(source),
        })?;
        debug_assert!(table.is_well_named(), "{table:?} is not a table's name");
        if json.len() > RECORD_LIMIT {
            return self.refuse("a record", json.len(), RECORD_LIMIT);
        }
        // Raw JSON may hold line breaks between its tokens, and an export has one record a line.
        json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        let key = keys::full_key(table.0, key);
        if self.newest(&key)?.is_some_and(|stored| stored == json) {
            return Ok(());
        }
        self.write(key, Some(Bytes::from(json)))
    }

    /// Removes one record, if it is there.
    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        let key = keys::full_key(table.0, key);
        if self.newest(&key)?.is_none() {
            return Ok(());
        }
        self.write(key, None)
    }

    /// Stores a content beside the records; keep the reference in a record of the same transaction.
    pub fn put_blob(&mut self, bytes: Bytes) -> Result<BlobRef, StoreError> {
        if bytes.len() > BLOB_LIMIT {
            return self.refuse("a blob", bytes.len(), BLOB_LIMIT);
        }
        let reference = self.blobs.add(&bytes);
        let record = self.blobs.record();
        self.put(blobs::SEGMENTS, &blobs::segment_key(reference.segment), &record)?;
        Ok(reference)
    }

    /// The next number of a counter: 1, 2, 3 and so on, each given once for ever.
    pub fn next_number(&mut self, counter: &str) -> Result<u64, StoreError> {
        let next = self.get::<u64>(COUNTERS, counter.as_bytes())?.unwrap_or(0) + 1;
        self.put(COUNTERS, counter.as_bytes(), &next)?;
        Ok(next)
    }

    /// What makes the transaction fail even if its work forgot an error: a refused write must not be lost silently.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.failed.clone()
    }

    fn newest(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.own.get(key).or_else(|| self.group.get(key)) {
            Some(written) => Ok(written.clone()),
            None => self.shared.read(|index| index.get(key)),
        }
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Bytes>) -> Result<(), StoreError> {
        self.own_bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        if self.own_bytes > TRANSACTION_LIMIT {
            return self.refuse("a transaction", self.own_bytes, TRANSACTION_LIMIT);
        }
        self.own.insert(key, value);
        Ok(())
    }

    fn refuse<T>(&mut self, what: &'static str, size: usize, limit: usize) -> Result<T, StoreError> {
        let error = StoreError::TooLarge { what, size: size as u64, limit: limit as u64 };
        self.failed = Some(error.clone());
        Err(error)
    }
}
