//! Where log lines are sent, as the operator wants it.

use super::{AppName, Sealed};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// as on Heroku, one app has up to 5; and so many lead everybody's lines away.
pub const MOST_DRAINS: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// `d.` and 32 hex digits; the receiver is told it.
    pub id: String,
    /// It may hold a key.
    pub address: Sealed,
    /// One app's lines, or everybody's.
    pub app: Option<AppName>,
    pub by: String,
    pub added_at: Timestamp,
}
