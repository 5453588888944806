//! What a call to GitHub can come to, and who must act then.

use crate::clock::Timestamp;

/// Why a call did not do what it was asked. No variant holds a token or a body that we sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitHubError {
    /// GitHub named a time before which it wants no call, or its budget is used up. Nothing was sent.
    #[error("GitHub takes no calls before {until}")]
    Limited { until: Timestamp },
    /// GitHub answered 5xx or nonsense, or not at all.
    #[error("GitHub can't be reached: {what}")]
    Unavailable {
        what: String,
        /// The request was a write that may have taken effect: look before making it again.
        outcome_unknown: bool,
    },
    /// 401 with fresh credentials.
    #[error("GitHub refuses the credentials: {message}")]
    Unauthorized { message: String },
    /// A person suspended the installation. Calls for it are answered with this for a minute without asking again.
    #[error("this installation of the app is suspended on GitHub")]
    Suspended,
    /// The app isn't installed there (any more).
    #[error("the app is not installed there")]
    NotInstalled,
    /// 404: gone, never there, not there yet, or not ours to see.
    #[error("GitHub does not find {what}")]
    NotFound { what: &'static str },
    /// 403 that is no limit.
    #[error("GitHub forbids it: {message}{}", needs.as_ref().map(|needs| format!(" (it needs {needs})")).unwrap_or_default())]
    Forbidden {
        message: String,
        /// The permissions that would do, as GitHub names them: `issues=write; pull_requests=write`.
        needs: Option<String>,
    },
    /// The repository has another name now, and following was not possible.
    #[error("the repository moved to {url}")]
    Moved { url: String },
    /// The file is longer than what we take.
    #[error("{what} has more than {limit} bytes")]
    TooLarge { what: String, limit: usize },
    /// GitHub understood and won't: 409, 410, 422 and the like. `errors` are its own sentences about single fields.
    #[error("GitHub refuses ({status}): {message}{}", errors.iter().map(|error| format!("; {error}")).collect::<String>())]
    Refused { status: u16, message: String, errors: Vec<String> },
    /// An answer that fits nothing we know.
    #[error("GitHub's answer is not understood: {what}")]
    Unexpected { what: String },
}

/// Who must act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Nobody: try again, not before the given time, or with the caller's own back-off when there is none.
    Retry { not_before: Option<Timestamp> },
    /// A person: the error's text says what is wrong.
    User,
    /// Us.
    Bug,
    /// A person, at the installation; nothing of that installation is worth a try until then.
    PauseInstallation,
}

impl GitHubError {
    pub fn advice(&self) -> Advice {
        match self {
            GitHubError::Limited { until } => Advice::Retry { not_before: Some(*until) },
            // GitHub gives no order between a webhook and its data: what is not found may only be late.
            GitHubError::Unavailable { .. } | GitHubError::NotFound { .. } | GitHubError::Moved { .. } => {
                Advice::Retry { not_before: None }
            }
            GitHubError::Unauthorized { .. } | GitHubError::Suspended | GitHubError::NotInstalled => {
                Advice::PauseInstallation
            }
            GitHubError::Forbidden { .. } | GitHubError::TooLarge { .. } => Advice::User,
            // 405 not mergeable, 409 conflict, 410 issues are off, 423 locked, 451 taken down.
            GitHubError::Refused { status: 405 | 409 | 410 | 423 | 451, .. } => Advice::User,
            GitHubError::Refused { .. } | GitHubError::Unexpected { .. } => Advice::Bug,
        }
    }

    /// Whether it says something of what was asked for only, so that the next thing is worth its call.
    pub fn is_of_one_thing(&self) -> bool {
        match self {
            GitHubError::NotFound { .. }
            | GitHubError::Moved { .. }
            | GitHubError::TooLarge { .. }
            | GitHubError::Refused { .. }
            | GitHubError::Unexpected { .. } => true,
            GitHubError::Limited { .. }
            | GitHubError::Unavailable { .. }
            | GitHubError::Unauthorized { .. }
            | GitHubError::Suspended
            | GitHubError::NotInstalled
            | GitHubError::Forbidden { .. } => false,
        }
    }

    /// Whether a write may have taken effect all the same.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, GitHubError::Unavailable { outcome_unknown: true, .. })
    }
}
