//! Why a step could not be finished, and who must act: the machine (again, later) or us (a bug, parked). What the
//! author of a commit must mend is no trouble but a result: see `domain::Failure`.

use crate::clock::Timestamp;
use crate::github::{Advice, GitHubError};
use crate::platform::PlatformError;
use crate::router::RouterError;
use crate::store::StoreError;
use crate::vault::VaultError;
use std::fmt::Display;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{why}")]
    Retry { after: Option<Duration>, why: String },
    /// The app may not look at the repository: it is not installed there.
    #[error("the app is not installed there")]
    NoAccess,
    #[error("{0}")]
    Bug(String),
}

impl Trouble {
    pub fn retry(why: impl Display) -> Trouble {
        Trouble::Retry { after: None, why: why.to_string() }
    }

    pub fn retry_in(after: Duration, why: impl Display) -> Trouble {
        Trouble::Retry { after: Some(after), why: why.to_string() }
    }

    pub fn bug(why: impl Display) -> Trouble {
        Trouble::Bug(why.to_string())
    }

    /// What to do about an error of GitHub.
    pub fn github(error: &GitHubError, now: Timestamp) -> Trouble {
        if matches!(error, GitHubError::NotInstalled) {
            return Trouble::NoAccess;
        }
        match error.advice() {
            Advice::Retry { not_before: Some(until) } => {
                Trouble::Retry { after: Some(until.since(now) + Duration::from_millis(50)), why: error.to_string() }
            }
            Advice::Retry { not_before: None } => Trouble::retry(error),
            // The operator or an administrator on GitHub must act; asking once a minute notices when they did.
            Advice::PauseInstallation | Advice::User => Trouble::retry_in(Duration::from_secs(60), error),
            Advice::Bug => Trouble::bug(error),
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        if matches!(error, StoreError::TooLarge { .. }) {
            return Trouble::bug(error);
        }
        Trouble::retry(error)
    }
}

impl From<PlatformError> for Trouble {
    fn from(error: PlatformError) -> Trouble {
        Trouble::retry(error)
    }
}

impl From<RouterError> for Trouble {
    fn from(error: RouterError) -> Trouble {
        Trouble::retry_in(Duration::from_millis(300), error)
    }
}

impl From<VaultError> for Trouble {
    fn from(error: VaultError) -> Trouble {
        Trouble::bug(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        Trouble::retry(error)
    }
}

impl From<tokio::task::JoinError> for Trouble {
    fn from(error: tokio::task::JoinError) -> Trouble {
        Trouble::bug(error)
    }
}
