//! Answers kept with their ETag, so that asking again costs nothing of the budget while nothing changed.
//!
//! An ETag depends on the token that was used, so the hourly change of an installation's token makes each answer be
//! sent once more; that costs a call and is never wrong.

use super::limits::Lane;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const MOST_ENTRIES: usize = 4_096;
const MOST_BYTES: usize = 32 << 20;
/// A single answer above this is not worth its room.
const LARGEST_BODY: usize = 1 << 20;

/// What a 304 stands for.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) etag: String,
    pub(super) body: Bytes,
    /// The next page that the answer's Link header named.
    pub(super) next: Option<String>,
    pub(super) content_type: String,
}

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    by_address: HashMap<(Lane, String), (Kept, u64)>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    pub(super) fn find(&self, lane: Lane, address: &str) -> Option<Kept> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let uses = entries.uses;
        let (kept, used) = entries.by_address.get_mut(&(lane, address.to_owned()))?;
        *used = uses;
        Some(kept.clone())
    }

    pub(super) fn keep(&self, lane: Lane, address: &str, kept: Kept) {
        if kept.body.len() > LARGEST_BODY {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let uses = entries.uses;
        entries.bytes += kept.body.len();
        if let Some((former, _)) = entries.by_address.insert((lane, address.to_owned()), (kept, uses)) {
            entries.bytes -= former.body.len();
        }
        if entries.by_address.len() > MOST_ENTRIES || entries.bytes > MOST_BYTES {
            entries.drop_older_half();
        }
    }
}

impl Entries {
    /// Half at once, so that a full cache isn't sorted for every answer.
    fn drop_older_half(&mut self) {
        let mut uses: Vec<u64> = self.by_address.values().map(|(_, used)| *used).collect();
        uses.sort_unstable();
        let middle = uses[uses.len() / 2];
        self.by_address.retain(|_, (_, used)| *used >= middle);
        self.bytes = self.by_address.values().map(|(kept, _)| kept.body.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::default();
        let kept = |size: usize| Kept {
            etag: "\"a\"".to_owned(),
            body: Bytes::from(vec![b'x'; size]),
            next: None,
            content_type: String::new(),
        };
        cache.keep(Lane::App, "/used", kept(10));
        for number in 0..20_000 {
            cache.keep(Lane::Token, &format!("/{number}"), kept(4_096));
            assert!(cache.find(Lane::App, "/used").is_some());
        }
        cache.keep(Lane::App, "/large", kept(LARGEST_BODY + 1));
        assert!(cache.find(Lane::App, "/large").is_none());
        let entries = cache.0.lock().unwrap();
        assert!(entries.by_address.len() <= MOST_ENTRIES, "{}", entries.by_address.len());
        assert!(entries.bytes <= MOST_BYTES, "{}", entries.bytes);
        assert_eq!(entries.bytes, entries.by_address.values().map(|(kept, _)| kept.body.len()).sum::<usize>());
    }
}
