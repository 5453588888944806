//! Why a page or an answer of the API is not what was asked for. The sentence for each stands in `templates/cli.txt`;
//! a page wraps it, the API sends it as `{"error": …, "status": …}`.

use crate::domain::Refusal;
use crate::reconcile::Trouble;
use crate::store::StoreError;
use actix_web::http::StatusCode;
use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Problem {
    /// `what`: `app`, `pipeline`, `run`, `node`, `build`, `delivery`, `page`.
    NotFound {
        what: &'static str,
        name: String,
    },
    /// Something in the request is not what it must be.
    Malformed {
        what: &'static str,
        detail: String,
    },
    /// Decided against, as a comment's command would be.
    Refused {
        reason: Refusal,
    },
    /// Not what the app's state or the operator's limits allow; the detail is a sentence.
    NotDone {
        detail: String,
    },
    /// A run that is over cannot be ended, a delivery that was applied cannot be replayed.
    Over {
        what: &'static str,
        name: String,
    },
    MethodNotAllowed,
    /// `most`: how many KiB of a body are read.
    TooLarge {
        most: usize,
    },
    /// Who came back from GitHub may not see what they wanted to see, or did not begin to log in here.
    LoginRefused,
    Suspicious {
        suspicion: &'static str,
    },
    /// The store, the platform or the router does not answer.
    Unavailable {
        detail: String,
    },
    Internal {
        detail: String,
    },
}

impl Problem {
    pub fn not_found(what: &'static str, name: impl ToString) -> Problem {
        Problem::NotFound { what, name: name.to_string().chars().take(100).collect() }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Problem::NotFound { .. } => StatusCode::NOT_FOUND,
            Problem::Malformed { .. } => StatusCode::BAD_REQUEST,
            Problem::Refused { .. } | Problem::NotDone { .. } | Problem::Over { .. } => StatusCode::CONFLICT,
            Problem::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Problem::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Problem::Suspicious { .. } | Problem::LoginRefused => StatusCode::FORBIDDEN,
            Problem::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Problem::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        tracing::error!("a page could not be read from the store: {error}");
        Problem::Unavailable { detail: error.to_string() }
    }
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Problem {
        match trouble {
            Trouble::Retry { why, .. } => Problem::Unavailable { detail: why },
            Trouble::NoAccess => Problem::Unavailable { detail: trouble.to_string() },
            Trouble::Bug(detail) => {
                tracing::error!("a request could not be answered: {detail}");
                Problem::Internal { detail }
            }
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Problem {
        Problem::Unavailable { detail: error.to_string() }
    }
}

impl From<crate::platform::PlatformError> for Problem {
    fn from(error: crate::platform::PlatformError) -> Problem {
        Problem::from(Trouble::from(error))
    }
}
