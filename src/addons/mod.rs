//! Databases and caches for apps, and whatever else a partner provides: what each kind of provider is told, and how
//! it answers.
//!
//! The rule that each keeps: `provision` and `deprovision` may be cut off anywhere and repeated for ever. Names follow from
//! the add-on's id, the password was drawn and written down before, and nothing is made that `list` would not show.

mod address;
mod copy;
mod own;
mod partner;
mod postgres;
mod redis;
mod resp;
mod tls;

pub use address::Address;
pub use copy::{TARGET_PORT, TEMPLATE_PORT, copy_program, find_postgres_client, login, words};
pub use own::{Program, find_postgres, find_redis, postgres_program, redis_program, version_of_databases};
pub use partner::Partner;
pub use postgres::{Database, PostgresServer};
pub use redis::{RedisSeen, RedisServer, memory_of, own_is_ready, policy_of};

use crate::domain::{AddonNote, AddonProblem};
use std::collections::BTreeMap;
use std::time::Duration;

/// What every name at a provider that others use too begins with. `tag` is this data folder's own, so that two Landfalls
/// on one server never take each other's things away.
pub fn prefix(tag: &str) -> String {
    format!("lf_{tag}_")
}

/// How a provider answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provided {
    Ready {
        config: BTreeMap<String, String>,
        /// The provider's own name for it.
        handle: Option<String>,
        note: Option<AddonNote>,
    },
    /// Under way: ask again after this.
    Pending { after: Duration, handle: Option<String> },
}

/// Why a provider did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddonError {
    /// It may work later: the server does not answer, or is busy.
    #[error("{0}")]
    Unreachable(String),
    /// It will not work by being repeated.
    #[error("{0:?}")]
    Refused(AddonProblem),
}

impl AddonError {
    fn refused(detail: impl std::fmt::Display) -> AddonError {
        AddonError::Refused(AddonProblem::Refused { detail: detail.to_string() })
    }
}

/// The major version of `15`, `15.4` or `v15`.
pub fn major_version(text: &str) -> Option<u32> {
    text.trim().trim_start_matches('v').split('.').next()?.parse().ok()
}
