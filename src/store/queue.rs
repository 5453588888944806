//! The work queue: which keys want attention, when, and who has them in hand.
//!
//! A key stands in the queue at most once. Claiming gives a lease, not the entry: a lease that runs out, or that an older
//! opening of the store gave, makes the entry claimable again, so nothing is lost with the process that held it. What is
//! enqueued while it is leased is marked dirty and comes again at once. Who finishes late is refused by its token.
//!
//! Two tables index the entries so that a claim reads the heads of ranges: by due time for who waits, by generation and
//! end of the lease for who is in hand. Parked entries stand in neither. A lease is measured by the clock that the caller
//! passes in; the generation, not the clock, keeps an older process out.

use super::{Order, Store, StoreError, Table, Transaction, key_number, number_key};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const ENTRIES: Table = Table("queue");
/// Due time, then key.
const WAITING: Table = Table("queue_waiting");
/// Generation, then end of the lease, then key.
const LEASED: Table = Table("queue_leased");

/// A key in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// What to look at: `delivery:GUID`, `app:hello-pr-1`, `run:17`.
    pub key: String,
    /// Not before this.
    pub due: Timestamp,
    /// How many attempts failed in a row.
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Enqueued again while leased.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
    /// Why nobody may claim it, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<String>,
    /// The due time it was first enqueued with.
    pub enqueued_at: Timestamp,
}

/// Who has an entry in hand, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub until: Timestamp,
    pub generation: u64,
    /// Different for each claim, for ever.
    pub token: u64,
}

/// How many entries there are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    pub waiting: u64,
    pub leased: u64,
    pub parked: u64,
}

/// Puts a key into the queue, or brings the entry that is there forward to `due`. A leased entry is marked dirty, a
/// parked one is released.
pub fn enqueue(transaction: &mut Transaction<'_>, key: &str, due: Timestamp) -> Result<(), StoreError> {
    let Some(mut entry) = find(transaction, key)? else {
        return insert(transaction, key, due);
    };
    if entry.lease.is_some() {
        entry.dirty = true;
        return transaction.put(ENTRIES, key.as_bytes(), &entry);
    }
    if entry.parked.take().is_some() {
        entry.attempts = 0;
        return wait_until(transaction, entry, due);
    }
    let earlier = entry.due.min(due);
    wait_until(transaction, entry, earlier)
}

/// [`enqueue`] for the slow tick over everything: a parked entry stays parked, one that backs off keeps its time.
pub fn enqueue_unless_parked(transaction: &mut Transaction<'_>, key: &str, due: Timestamp) -> Result<(), StoreError> {
    match find(transaction, key)? {
        Some(entry) if entry.parked.is_some() => Ok(()),
        _ => enqueue_unless_backing_off(transaction, key, due),
    }
}

/// [`enqueue`], but for an entry that backs off: it knows why, and keeps its time.
pub fn enqueue_unless_backing_off(
    transaction: &mut Transaction<'_>,
    key: &str,
    due: Timestamp,
) -> Result<(), StoreError> {
    match find(transaction, key)? {
        Some(entry) if entry.parked.is_none() && entry.attempts > 0 => Ok(()),
        _ => enqueue(transaction, key, due),
    }
}

/// Leases the entry that is due first, if any is due at `now`: one that waits, or one whose lease ran out or was given
/// by an opening of the store before `generation`.
pub fn claim(
    transaction: &mut Transaction<'_>,
    now: Timestamp,
    lease_for: Duration,
    generation: u64,
) -> Result<Option<QueueEntry>, StoreError> {
    let mut first: Option<QueueEntry> = None;
    for key in [waiting_head(transaction, now)?, lapsed_head(transaction, now, generation)?].into_iter().flatten() {
        if let Some(entry) = find(transaction, &key)?
            && first.as_ref().is_none_or(|first| entry.due < first.due)
        {
            first = Some(entry);
        }
    }
    let Some(mut entry) = first else { return Ok(None) };
    remove_from_indexes(transaction, &entry)?;
    let token = transaction.next_number("queue_token")?;
    let lease = Lease { until: now + lease_for, generation, token };
    entry.lease = Some(lease);
    // What was asked for before this claim is what this claim is about to do.
    entry.dirty = false;
    transaction.put(LEASED, &leased_key(&lease, &entry.key), &())?;
    transaction.put(ENTRIES, entry.key.as_bytes(), &entry)?;
    Ok(Some(entry))
}

/// Lengthens the holder's lease. `false` if `token` is not the holder's.
pub fn renew(transaction: &mut Transaction<'_>, key: &str, token: u64, until: Timestamp) -> Result<bool, StoreError> {
    let Some(mut entry) = held(transaction, key, token)? else { return Ok(false) };
    remove_from_indexes(transaction, &entry)?;
    if let Some(lease) = &mut entry.lease {
        lease.until = until;
        let index = leased_key(lease, key);
        transaction.put(LEASED, &index, &())?;
    }
    transaction.put(ENTRIES, key.as_bytes(), &entry)?;
    Ok(true)
}

/// The work is done: the entry goes, or comes again at once if it was enqueued meanwhile. `false`, and no change, if
/// `token` is not the holder's.
pub fn complete(transaction: &mut Transaction<'_>, key: &str, token: u64, now: Timestamp) -> Result<bool, StoreError> {
    let Some(mut entry) = held(transaction, key, token)? else { return Ok(false) };
    if entry.dirty {
        entry.attempts = 0;
        wait_until(transaction, entry, now)?;
    } else {
        remove_from_indexes(transaction, &entry)?;
        transaction.delete(ENTRIES, key.as_bytes())?;
    }
    Ok(true)
}

/// The work failed: the entry comes again at `due`, with one more attempt counted. `false`, and no change, if `token` is
/// not the holder's.
pub fn retry(transaction: &mut Transaction<'_>, key: &str, token: u64, due: Timestamp) -> Result<bool, StoreError> {
    let Some(mut entry) = held(transaction, key, token)? else { return Ok(false) };
    entry.attempts = entry.attempts.saturating_add(1);
    // Somebody asked for a look in the meantime, who knows nothing of the failure.
    let due = if entry.dirty { entry.due.min(due) } else { due };
    wait_until(transaction, entry, due)?;
    Ok(true)
}

/// The rest of the work waits until `due`. Attempts that failed before
/// count on. `false`, and no change, if `token` is not the holder's.
pub fn put_off(transaction: &mut Transaction<'_>, key: &str, token: u64, due: Timestamp) -> Result<bool, StoreError> {
    let Some(entry) = held(transaction, key, token)? else { return Ok(false) };
    wait_until(transaction, entry, due)?;
    Ok(true)
}

/// The work cannot succeed as things are: the entry stays, and nobody claims it until it is enqueued or unparked. If it
/// was enqueued while leased, it comes again at once instead. `false`, and no change, if `token` is not the holder's.
pub fn park(transaction: &mut Transaction<'_>, key: &str, token: u64, reason: &str) -> Result<bool, StoreError> {
    let Some(mut entry) = held(transaction, key, token)? else { return Ok(false) };
    entry.attempts = entry.attempts.saturating_add(1);
    if entry.dirty {
        let due = entry.due;
        wait_until(transaction, entry, due)?;
        return Ok(true);
    }
    remove_from_indexes(transaction, &entry)?;
    entry.lease = None;
    entry.parked = Some(reason.to_owned());
    transaction.put(ENTRIES, key.as_bytes(), &entry)?;
    Ok(true)
}

/// Releases a parked entry with its attempts forgotten. `false` if there is none.
pub fn unpark(transaction: &mut Transaction<'_>, key: &str, due: Timestamp) -> Result<bool, StoreError> {
    match find(transaction, key)? {
        Some(entry) if entry.parked.is_some() => enqueue(transaction, key, due).map(|()| true),
        _ => Ok(false),
    }
}

/// Takes a key out of the queue whatever its state, for a subject that is gone. A holder's token is void from here on.
pub fn remove(transaction: &mut Transaction<'_>, key: &str) -> Result<bool, StoreError> {
    let Some(entry) = find(transaction, key)? else { return Ok(false) };
    remove_from_indexes(transaction, &entry)?;
    transaction.delete(ENTRIES, key.as_bytes())?;
    Ok(true)
}

/// One entry.
pub fn entry(store: &Store, key: &str) -> Result<Option<QueueEntry>, StoreError> {
    store.get(ENTRIES, key.as_bytes())
}

/// All entries whose keys start with `prefix`, in key order.
pub fn entries(store: &Store, prefix: &str) -> Result<Vec<QueueEntry>, StoreError> {
    Ok(store.scan(ENTRIES, prefix.as_bytes())?.into_iter().map(|(_, entry)| entry).collect())
}

/// How much there is to do, from kept numbers.
pub fn depth(store: &Store) -> Result<Depth, StoreError> {
    let (all, waiting, leased) = (store.count(ENTRIES)?, store.count(WAITING)?, store.count(LEASED)?);
    // The three numbers are read one after the other, so a group may come between them.
    Ok(Depth { waiting, leased, parked: all.saturating_sub(waiting).saturating_sub(leased) })
}

/// When [`claim`] will next find something: the earliest due time or end of a lease. Leases of older openings count as due
/// since ever.
pub fn next_due(store: &Store) -> Result<Option<Timestamp>, StoreError> {
    let waiting = store.scan_page::<()>(WAITING, b"", None, 1, Order::Ascending)?;
    let waiting = waiting.first().and_then(|(key, ())| key_number(key)).map(from_sortable);
    let lapsing = store.scan_page::<()>(LEASED, b"", None, 1, Order::Ascending)?;
    let lapsing = lapsing.first().and_then(|(key, ())| {
        let older = key_number(key)? < store.generation();
        let until = from_sortable(key_number(key.get(8..)?)?);
        Some(if older { Timestamp(0) } else { until })
    });
    Ok([waiting, lapsing].into_iter().flatten().min())
}

fn find(transaction: &Transaction<'_>, key: &str) -> Result<Option<QueueEntry>, StoreError> {
    transaction.get(ENTRIES, key.as_bytes())
}

fn held(transaction: &Transaction<'_>, key: &str, token: u64) -> Result<Option<QueueEntry>, StoreError> {
    let entry = find(transaction, key)?;
    Ok(entry.filter(|entry| entry.lease.is_some_and(|lease| lease.token == token)))
}

fn insert(transaction: &mut Transaction<'_>, key: &str, due: Timestamp) -> Result<(), StoreError> {
    let entry =
        QueueEntry { key: key.to_owned(), due, attempts: 0, lease: None, dirty: false, parked: None, enqueued_at: due };
    transaction.put(WAITING, &waiting_key(due, key), &())?;
    transaction.put(ENTRIES, key.as_bytes(), &entry)
}

/// Makes an entry wait, out of anybody's hands.
fn wait_until(transaction: &mut Transaction<'_>, mut entry: QueueEntry, due: Timestamp) -> Result<(), StoreError> {
    remove_from_indexes(transaction, &entry)?;
    entry.due = due;
    entry.lease = None;
    entry.dirty = false;
    transaction.put(WAITING, &waiting_key(due, &entry.key), &())?;
    transaction.put(ENTRIES, entry.key.as_bytes(), &entry)
}

/// Removing what is not there does no harm, so a parked entry needs no case of its own.
fn remove_from_indexes(transaction: &mut Transaction<'_>, entry: &QueueEntry) -> Result<(), StoreError> {
    match &entry.lease {
        Some(lease) => transaction.delete(LEASED, &leased_key(lease, &entry.key)),
        None => transaction.delete(WAITING, &waiting_key(entry.due, &entry.key)),
    }
}

fn waiting_head(transaction: &Transaction<'_>, now: Timestamp) -> Result<Option<String>, StoreError> {
    let head = transaction.scan_page::<()>(WAITING, b"", None, 1, Order::Ascending)?;
    let Some((index, ())) = head.first() else { return Ok(None) };
    Ok(key_number(index).filter(|due| from_sortable(*due) <= now).map(|_| text(&index[8..])))
}

/// The first lease of an older generation, else the first of this one that has run out.
fn lapsed_head(transaction: &Transaction<'_>, now: Timestamp, generation: u64) -> Result<Option<String>, StoreError> {
    let head = transaction.scan_page::<()>(LEASED, b"", None, 1, Order::Ascending)?;
    let Some((index, ())) = head.first() else { return Ok(None) };
    let (Some(given_by), Some(until)) = (key_number(index), index.get(8..).and_then(key_number)) else {
        return Ok(None);
    };
    let lapsed = given_by < generation || from_sortable(until) <= now;
    Ok(lapsed.then(|| text(&index[16..])))
}

fn waiting_key(due: Timestamp, key: &str) -> Vec<u8> {
    [&number_key(sortable(due))[..], key.as_bytes()].concat()
}

fn leased_key(lease: &Lease, key: &str) -> Vec<u8> {
    [&number_key(lease.generation)[..], &number_key(sortable(lease.until)), key.as_bytes()].concat()
}

/// Times before 1970 count as 1970; nothing is due that early but by a broken clock.
fn sortable(time: Timestamp) -> u64 {
    u64::try_from(time.0).unwrap_or(0)
}

fn from_sortable(number: u64) -> Timestamp {
    Timestamp(i64::try_from(number).unwrap_or(i64::MAX))
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
