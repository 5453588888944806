//! One webhook POST, from the moment it was on disk.

use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// `X-GitHub-Delivery`: 1..100 of `[A-Za-z0-9-]`, the same again on a redelivery.
    pub id: String,
    pub event: String,
    pub action: Option<String>,
    /// `OWNER/NAME`, where the payload names one.
    pub repository: Option<String>,
    pub sender: Option<String>,
    pub received_at: Timestamp,
    pub bytes: u64,
    pub content_type: Option<String>,
    pub state: DeliveryState,
    pub attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeliveryState {
    Queued,
    /// What was decided, as short lines in the words of `Change`.
    Applied {
        decisions: Vec<String>,
        at: Timestamp,
    },
    /// Stored, but nothing reads this event or action, or it is not about anything of ours.
    Ignored {
        why: IgnoredBecause,
        at: Timestamp,
    },
    /// It will be tried again by itself.
    Retrying {
        error: String,
        at: Timestamp,
    },
    /// It stays until somebody runs `landfall replay`.
    Parked {
        error: String,
        at: Timestamp,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoredBecause {
    UnreadEvent,
    UnreadAction,
    OwnDoing,
    /// The app may not (any more) look at the repository.
    NoAccess,
    NothingToDo,
}
