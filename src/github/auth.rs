//! Whom we are to GitHub: an app that mints a token per installation, or a plain token.
//!
//! An installation's token lives an hour. It is minted by the first who needs it while the others wait, kept in memory
//! only, renewed ten minutes before its end, and dropped when GitHub refuses it. A refused minting (suspended, removed,
//! wrong key) is remembered for a minute, so that a paused installation costs one call a minute and not more.

use super::error::{Advice, GitHubError};
use super::key::RsaKey;
use super::limits::Lane;
use crate::clock::Timestamp;
use crate::domain::{InstallationId, RepositoryId, Secret};
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Before its end a token isn't handed out any more; a clone that starts with it must be able to finish asking.
const RENEWED_BEFORE: Duration = Duration::from_secs(10 * 60);
/// How long a JSON Web Token is used, of the nine minutes that it is valid.
const OWN_TOKEN_USED: Duration = Duration::from_secs(5 * 60);
/// How long a refusal stands before GitHub is asked again.
const REFUSAL_STANDS: Duration = Duration::from_secs(60);
/// Above this many kept tokens those that ended are dropped.
const MANY_TOKENS: usize = 1_000;

/// What Landfall has been given to call GitHub with.
#[derive(Debug, Clone)]
pub enum Credentials {
    App {
        app_id: u64,
        private_key: RsaKey,
    },
    /// A personal access token, for small set-ups.
    Token(Secret),
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Grant {
    /// Being the app.
    App,
    /// Everything the plain token can do.
    Plain,
    /// Everything an installation grants.
    Installation(InstallationId),
    /// Reading one repository's contents.
    Contents(InstallationId, RepositoryId),
}

impl From<Lane> for Grant {
    fn from(lane: Lane) -> Grant {
        match lane {
            Lane::App => Grant::App,
            Lane::Installation(installation) => Grant::Installation(installation),
            Lane::Token => Grant::Plain,
        }
    }
}

/// A token and the time until which it is handed out.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) secret: Secret,
    fresh_until: Timestamp,
}

impl Token {
    /// One that GitHub minted and ends at a time.
    pub(super) fn minted(secret: Secret, expires_at: Timestamp) -> Token {
        Token { secret, fresh_until: expires_at - RENEWED_BEFORE }
    }
}

/// One grant's token. Its lock is held while the token is minted, which is what makes the others wait.
#[derive(Debug, Default)]
pub(super) struct Slot {
    token: Option<Token>,
    refused: Option<(GitHubError, Timestamp)>,
}

#[derive(Debug, Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<Grant, Arc<tokio::sync::Mutex<Slot>>>>,
    /// GitHub's clock minus ours in milliseconds, learnt when a JSON Web Token is refused.
    skew: AtomicI64,
}

impl Tokens {
    pub(super) fn slot(&self, grant: Grant, now: Timestamp) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() > MANY_TOKENS && !slots.contains_key(&grant) {
            // A slot whose lock is held is in use, whatever is in it.
            slots.retain(|_, slot| slot.try_lock().map_or(true, |slot| slot.kept(now).is_some()));
        }
        slots.entry(grant).or_default().clone()
    }

    /// Forgets every token and refusal of an installation, as when it was unsuspended or given other permissions.
    pub(super) fn forget(&self, installation: InstallationId) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|grant, _| match grant {
            Grant::App | Grant::Plain => true,
            Grant::Installation(of) | Grant::Contents(of, _) => *of != installation,
        });
    }

    /// "Now" as GitHub's clock shows it.
    pub(super) fn github_time(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_add(self.skew.load(Ordering::Relaxed)))
    }

    /// Takes GitHub's clock for the signing from here on. Returns whether that changes anything worth a second try.
    pub(super) fn learn_skew(&self, now: Timestamp, there: Timestamp) -> bool {
        let skew = there.0 - now.0;
        let former = self.skew.swap(skew, Ordering::Relaxed);
        (skew - former).abs() > 20_000
    }
}

impl Slot {
    /// The kept token, the standing refusal, or `None` if a new token is needed.
    pub(super) fn kept(&self, now: Timestamp) -> Option<Result<Secret, GitHubError>> {
        if let Some((error, since)) = &self.refused {
            // A clock that went back must not make the refusal stand longer.
            if now >= *since && now < *since + REFUSAL_STANDS {
                return Some(Err(error.clone()));
            }
        }
        let token = self.token.as_ref().filter(|token| now < token.fresh_until)?;
        Some(Ok(token.secret.clone()))
    }

    pub(super) fn keep(&mut self, token: Token) {
        self.token = Some(token);
        self.refused = None;
    }

    /// Remembers what only a person can change; anything else is worth the next try.
    pub(super) fn refuse(&mut self, error: &GitHubError, now: Timestamp) {
        if error.advice() == Advice::PauseInstallation
            || matches!(error, GitHubError::Forbidden { .. } | GitHubError::Refused { .. })
        {
            self.token = None;
            self.refused = Some((error.clone(), now));
        }
    }

    /// Drops the token if it still is the one that GitHub refused; somebody else may have renewed it already.
    pub(super) fn drop_refused(&mut self, refused: &Secret) {
        if self.token.as_ref().is_some_and(|token| token.secret == *refused) {
            self.token = None;
        }
    }
}

/// The plain token, or a newly signed one of the app.
pub(super) fn own_token(credentials: &Credentials, now: Timestamp, there: Timestamp) -> Token {
    match credentials {
        Credentials::Token(token) => Token { secret: token.clone(), fresh_until: Timestamp(i64::MAX) },
        Credentials::App { app_id, private_key } => {
            Token { secret: private_key.token(*app_id, there), fresh_until: now + OWN_TOKEN_USED }
        }
    }
}

/// The lane of a call for a repository.
///
/// # Errors
/// `NotInstalled` when we are an app and the repository's installation isn't known.
pub(super) fn lane(credentials: &Credentials, installation: Option<InstallationId>) -> Result<Lane, GitHubError> {
    match (credentials, installation) {
        (Credentials::Token(_), _) => Ok(Lane::Token),
        (Credentials::App { .. }, Some(installation)) => Ok(Lane::Installation(installation)),
        (Credentials::App { .. }, None) => Err(GitHubError::NotInstalled),
    }
}
