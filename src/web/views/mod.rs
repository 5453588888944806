//! What pages and the API show of the records: small structs, read from the world in one go and told as they are.
//! Pages fill templates with them, the API sends them as JSON.

mod alerts;
mod app;
mod audit;
mod config;
mod delivery;
mod doctor;
mod flaky;
mod metrics;
mod pipeline;
mod run;

pub use alerts::*;
pub use app::*;
pub use audit::*;
pub use config::*;
pub use delivery::*;
pub use doctor::*;
pub use flaky::*;
pub use metrics::*;
pub use pipeline::*;
pub use run::*;

use crate::clock::Timestamp;
use serde::Serialize;
use std::time::Duration;

/// A moment, and how long ago it was when the page was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct When {
    pub at: String,
    pub seconds_ago: u64,
}

impl When {
    pub fn new(at: Timestamp, now: Timestamp) -> When {
        When { at: at.rfc3339(), seconds_ago: now.since(at).as_secs() }
    }
}

/// An address that somebody else gave us, if a link to it can do nothing but lead there.
pub fn safe_url(url: &str) -> Option<String> {
    let lower = url.to_ascii_lowercase();
    let web = lower.starts_with("https://") || lower.starts_with("http://");
    (web && !url.chars().any(|character| character.is_control() || character.is_whitespace())).then(|| url.to_owned())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_become_links() {
        assert!(safe_url("https://github.com/acme/hello").is_some());
        for url in ["javascript:alert(1)", "data:text/html,x", "//evil", "", "https://a b", "java\nscript:x"] {
            assert_eq!(safe_url(url), None, "{url}");
        }
    }
}
