//! GitHub's wire: deliveries coming in, calls going out. The only module that knows either.
//!
//! Coming in: `signature` says whether a delivery is GitHub's, `payload` what it means (`event`). Going out: a
//! `GitHub` makes one request per call and never repeats one whose effect is unknown; it says so instead
//! (`GitHubError::Unavailable { outcome_unknown: true }`), and the caller looks before it makes the thing again. It
//! never calls before a time that GitHub has named, never waits long inside a call, and writes one thing at a time per
//! installation. Tokens are `Secret`s and appear in no error, log or `Debug` output.

pub mod auth;
mod cache;
pub mod client;
pub mod error;
pub mod event;
pub mod key;
pub mod limits;
pub mod payload;
pub mod protection;
mod reading;
pub mod reads;
pub mod signature;
mod transport;
mod wire;
pub mod writes;

#[cfg(test)]
mod tests;

pub use auth::Credentials;
pub use client::{GitHub, Settings, Timeouts, install_crypto_provider};
pub use error::{Advice, GitHubError};
pub use event::{Account, Comment, Event, Pull, Repo, RepoHandle};
pub use key::RsaKey;
pub use payload::{Envelope, parse};
pub use signature::WebhookSecrets;
pub use wire::PayloadError;
