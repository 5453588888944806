//! What can go wrong in the store, in words that say what is now true and what a person can do.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// An error of the store. Cloneable, because one failed group is told to everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has the folder open.
    #[error("{directory} is in use by {holder}; stop that one first, or talk to it over HTTP")]
    Locked { directory: String, holder: String },
    /// The folder was written by a later version; nothing was touched.
    #[error(
        "{directory} has store format {found}, and this landfall knows formats up to {known}; use a newer landfall"
    )]
    NewerFormat { directory: String, found: u32, known: u32 },
    /// A file of the truth (journal, snapshot, format) does not read back as it was written; nothing was touched.
    #[error(
        "{file} is damaged at byte {offset}: {reason}; restore the folder from a backup or an export, \
         or repair it, which sets aside everything from that byte on"
    )]
    Damaged { file: String, offset: u64, reason: String },
    /// The disk did not take the write. Nothing of the transaction can be relied on; the same call may work later.
    #[error("the store cannot take writes: {reason}")]
    Unavailable { reason: Arc<str> },
    /// The work given to a transaction panicked; nothing of it was written.
    #[error("a transaction panicked: {message}")]
    Panicked { message: String },
    /// The writer has ended, so the store must be opened again.
    #[error("the store is closed")]
    Closed,
    /// The stored JSON does not fit the type that was asked for.
    #[error("record {key} of table {table} does not read as {type_name}")]
    Decode {
        table: &'static str,
        key: String,
        type_name: &'static str,
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The value cannot be written as JSON.
    #[error("record {key} of table {table} cannot be written as JSON")]
    Encode {
        table: &'static str,
        key: String,
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// A record, a blob or a transaction is over its cap.
    #[error("{what} of {size} bytes is over the store's limit of {limit}")]
    TooLarge { what: &'static str, size: u64, limit: u64 },
    /// The blob was removed by pruning.
    #[error("the content is gone: blob segment {segment} was pruned")]
    BlobPruned { segment: u32 },
    /// The blob should be there and is not, or not as it was written.
    #[error("the content at byte {offset} of blob segment {segment} is damaged: {reason}")]
    BlobDamaged { segment: u32, offset: u64, reason: String },
    /// The index could neither be read nor rebuilt.
    #[error("the index cannot be read: {reason}")]
    Index { reason: String },
    /// An export that does not read as one, or a folder that is not empty.
    #[error("cannot import: {reason}")]
    Import { reason: String },
    /// Everything else that the operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io { action, path: path.display().to_string(), source: Arc::new(source) }
    }

    pub(super) fn damaged(file: &Path, offset: u64, reason: impl Into<String>) -> StoreError {
        StoreError::Damaged { file: file.display().to_string(), offset, reason: reason.into() }
    }

    pub(super) fn unavailable(reason: impl Into<String>) -> StoreError {
        StoreError::Unavailable { reason: Arc::from(reason.into()) }
    }

    /// Whether the same call may succeed later without anybody's help but the disk's.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. } | StoreError::Closed)
    }
}
