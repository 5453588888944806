//! The way of every call: gate, authorization, kill point, request, kill point, meaning of the answer.
//!
//! A call is sent once. It is sent a second time in three cases only, in each of which GitHub has said that the first
//! did nothing: 401 with a token that may have ended, a redirect to the same host after a rename, and a JSON Web Token
//! that GitHub's clock finds early or late.

use super::auth::{self, Credentials, Grant, Token, Tokens};
use super::cache::{Cache, Kept};
use super::error::GitHubError;
use super::event::RepoHandle;
use super::limits::{Budget, Lane, Limits, http_date};
use super::transport::{Answer, Call, Lost, Transport, bearer};
use super::wire::{Fields, PayloadError};
use crate::clock::{Clock, Timestamp};
use crate::domain::{InstallationId, RepositoryId, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How GitHub is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The API's root: `https://api.github.com`, or with a path on GitHub Enterprise (`https://host/api/v3`).
    pub api_url: String,
    /// Where people see it, and where git clones from: `https://github.com`.
    pub web_url: String,
    pub credentials: Credentials,
    /// GitHub wants the app's name here and refuses requests without one.
    pub user_agent: String,
    /// The least time between the starts of two writes of one installation. GitHub asks for a second; its limit is 80
    /// writes a minute that make content.
    pub write_interval: Duration,
    pub timeouts: Timeouts,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the connection stands.
    pub connect: Duration,
    /// From the first byte out to the last byte in, connecting included.
    pub call: Duration,
}

impl Default for Timeouts {
    /// GitHub ends a request of its API after 10 seconds.
    fn default() -> Timeouts {
        Timeouts { connect: Duration::from_secs(5), call: Duration::from_secs(20) }
    }
}

/// GitHub, as far as Landfall uses it. Clones share tokens, limits and cache.
#[derive(Debug, Clone)]
pub struct GitHub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clock: Clock,
    transport: Transport,
    tokens: Tokens,
    limits: Limits,
    cache: Cache,
    writers: Mutex<HashMap<Lane, Arc<tokio::sync::Mutex<Writer>>>>,
}

/// The place of one lane's writes; whoever holds its lock is the one who writes.
#[derive(Debug, Default)]
struct Writer {
    last: Option<Instant>,
}

/// Makes ring the process's one provider of cryptography. To be called first in `main` and in tests; again is harmless.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl GitHub {
    /// Must be called inside a tokio runtime. Nothing is sent yet.
    ///
    /// # Errors
    /// `Unexpected` with a sentence when the address can't be used or HTTPS can't be checked on this machine.
    pub fn new(settings: Settings, clock: Clock) -> Result<GitHub, GitHubError> {
        let Timeouts { connect, call } = settings.timeouts;
        let transport = Transport::new(&settings.api_url, &settings.user_agent, connect, call)?;
        Ok(GitHub(Arc::new(Inner {
            settings,
            clock,
            transport,
            tokens: Tokens::default(),
            limits: Limits::default(),
            cache: Cache::default(),
            writers: Mutex::default(),
        })))
    }

    /// Where people see GitHub, without a slash at its end.
    pub fn web_url(&self) -> &str {
        self.0.settings.web_url.trim_end_matches('/')
    }

    /// The address that git fetches a repository from.
    pub fn clone_url(&self, repo: &RepoHandle) -> String {
        format!("{}/{}/{}.git", self.web_url(), segment(&repo.owner), segment(&repo.name))
    }

    /// The value of an `Authorization` header for git, good for ten minutes at least: as an app a token that may only
    /// read this one repository's contents, otherwise the plain token.
    ///
    /// # Errors
    /// Those of minting: `Suspended`, `NotInstalled`, `Unauthorized`, `Limited`, `Unavailable`.
    pub async fn git_authorization(
        &self,
        installation: Option<InstallationId>,
        repo: RepositoryId,
    ) -> Result<Secret, GitHubError> {
        let grant = match auth::lane(self.credentials(), installation)? {
            Lane::Installation(installation) => Grant::Contents(installation, repo),
            lane => Grant::from(lane),
        };
        let token = self.token(grant).await?;
        let pair = format!("x-access-token:{}", token.expose());
        Ok(Secret::new(format!("Basic {}", STANDARD.encode(pair))))
    }

    /// To be called when an `installation` event says that something changed: tokens and refusals are asked anew.
    pub fn installation_changed(&self, installation: InstallationId) {
        self.0.tokens.forget(installation);
    }

    /// What is left of the hour's calls, as of the last answer; `None` before the first.
    pub fn budget(&self, installation: Option<InstallationId>) -> Option<Budget> {
        self.0.limits.budget(auth::lane(self.credentials(), installation).ok()?)
    }

    /// The time before which GitHub wants no call for this installation, if that lies ahead.
    pub fn limited_until(&self, installation: Option<InstallationId>) -> Option<Timestamp> {
        self.0.limits.check(auth::lane(self.credentials(), installation).ok()?, self.0.clock.now()).err()
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.0.settings.credentials
    }

    pub(super) fn lane_of(&self, repo: &RepoHandle) -> Result<Lane, GitHubError> {
        auth::lane(self.credentials(), repo.installation)
    }

    /// Reads. A 304 is answered from the cache. Statuses of 400 and more are errors.
    pub(super) async fn read(&self, lane: Lane, repo: Option<RepositoryId>, call: Call) -> Result<Found, GitHubError> {
        let address = if call.raw { format!("raw {}", call.path) } else { call.path.clone() };
        let kept = self.0.cache.find(lane, &address);
        let answer = self.send(lane, repo, &call, kept.as_ref().map(|kept| kept.etag.as_str())).await?;
        match (answer.status, kept) {
            (304, Some(kept)) => Ok(Found { body: kept.body, next: kept.next, content_type: kept.content_type }),
            (200, _) => {
                let content_type = answer.header("content-type").unwrap_or_default().to_owned();
                let found = Found { next: answer.next(), body: answer.body.clone(), content_type };
                if let Some(etag) = answer.header("etag") {
                    let Found { body, next, content_type } = found.clone();
                    self.0.cache.keep(lane, &address, Kept { etag: etag.to_owned(), body, next, content_type });
                }
                Ok(found)
            }
            (status, _) => Err(not_understood(call.name, &format!("status {status}"))),
        }
    }

    /// Reads a JSON answer by `read`.
    pub(super) async fn read_json<T>(
        &self,
        lane: Lane,
        repo: Option<RepositoryId>,
        call: Call,
        read: impl Fn(&Fields<'_>) -> Result<T, PayloadError>,
    ) -> Result<T, GitHubError> {
        let name = call.name;
        let found = self.read(lane, repo, call).await?;
        let value = found.json(name)?;
        read(&Fields::new(&value)).map_err(|error| not_understood(name, &error.to_string()))
    }

    /// Reads all pages of a list. `under` is the field that holds the array where GitHub wraps it.
    pub(super) async fn read_list<T>(
        &self,
        lane: Lane,
        repo: Option<RepositoryId>,
        name: &'static str,
        path: &str,
        under: Option<&str>,
        read: impl Fn(&Fields<'_>) -> Result<T, PayloadError>,
    ) -> Result<Vec<T>, GitHubError> {
        /// A hundred items each: more than any list has that we read.
        const MOST_PAGES: u32 = 100;
        let join = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        for page in 1..=MOST_PAGES {
            // GitHub's own links are not followed: they name repositories by number, which needs no following.
            let call = Call::get(name, format!("{path}{join}per_page=100&page={page}"));
            let found = self.read(lane, repo, call).await?;
            let value = found.json(name)?;
            let list = match under {
                Some(field) => value.get(field),
                None => Some(&value),
            };
            let list = list.filter(|list| list.is_array()).ok_or_else(|| not_understood(name, "it is no list"))?;
            for item in Fields::new(list).elements() {
                items.push(read(&item).map_err(|error| not_understood(name, &error.to_string()))?);
            }
            if found.next.is_none() {
                return Ok(items);
            }
        }
        Err(not_understood(name, "the list has more than a hundred pages"))
    }

    /// Writes: one at a time in its lane, in the order of asking, no closer than the set interval.
    pub(super) async fn write(
        &self,
        lane: Lane,
        repo: Option<RepositoryId>,
        call: Call,
    ) -> Result<Answer, GitHubError> {
        self.check(lane)?;
        let writer = {
            let mut writers = self.0.writers.lock().unwrap_or_else(PoisonError::into_inner);
            writers.entry(lane).or_default().clone()
        };
        let mut writer = writer.lock().await;
        if let Some(last) = writer.last {
            tokio::time::sleep_until(last + self.0.settings.write_interval).await;
        }
        writer.last = Some(Instant::now());
        self.send(lane, repo, &call, None).await
    }

    /// What a write made, read from its answer. An answer that can't be read leaves the outcome unknown.
    pub(super) fn made<T>(
        call_name: &'static str,
        answer: &Answer,
        read: impl Fn(&Fields<'_>) -> Result<T, PayloadError>,
    ) -> Result<T, GitHubError> {
        let unknown = |what: String| GitHubError::Unavailable {
            what: format!("the answer to {call_name} can't be read: {what}"),
            outcome_unknown: true,
        };
        let value = answer.json().ok_or_else(|| unknown("it is no JSON".to_owned()))?;
        read(&Fields::new(&value)).map_err(|error| unknown(error.to_string()))
    }

    /// One call, with the second sendings that the head of this file names.
    async fn send(
        &self,
        lane: Lane,
        repo: Option<RepositoryId>,
        call: &Call,
        etag: Option<&str>,
    ) -> Result<Answer, GitHubError> {
        let mut call = call.clone();
        let (mut renewed, mut followed) = (false, false);
        loop {
            self.check(lane)?;
            let token = self.token(lane.into()).await?;
            // Minting may have taken its time.
            self.check(lane)?;
            let answer = self.exchange(lane, &call, &bearer(&token)?, etag).await?;
            if let Some(until) = self.0.limits.observe(lane, &answer, self.0.clock.now())
                && matches!(answer.status, 403 | 429)
            {
                tracing::warn!(call = call.name, ?lane, "GitHub takes no calls before {until}");
                return Err(GitHubError::Limited { until });
            }
            match answer.status {
                200..=299 | 304 => return Ok(answer),
                401 if !renewed && self.renew(lane, &token, &answer).await => renewed = true,
                301 | 302 | 307 | 308 => {
                    let location = answer.header("location").unwrap_or_default().to_owned();
                    let path = self.0.transport.path_of(&location).filter(|_| !followed);
                    let Some(path) = path else {
                        return Err(GitHubError::Moved { url: location });
                    };
                    if let Some(repo) = repo {
                        tracing::debug!(repository = %repo, "GitHub leads on to {path}: the repository has another name now");
                    }
                    followed = true;
                    call.path = path;
                }
                401 => {
                    let error = refusal(&call, &answer);
                    let now = self.0.clock.now();
                    self.0.tokens.slot(lane.into(), now).lock().await.refuse(&error, now);
                    return Err(error);
                }
                _ => return Err(refusal(&call, &answer)),
            }
        }
    }

    fn check(&self, lane: Lane) -> Result<(), GitHubError> {
        self.0.limits.check(lane, self.0.clock.now()).map_err(|until| GitHubError::Limited { until })
    }

    /// One request between its two kill points.
    async fn exchange(
        &self,
        lane: Lane,
        call: &Call,
        authorization: &http::HeaderValue,
        etag: Option<&str>,
    ) -> Result<Answer, GitHubError> {
        let began = Instant::now();
        crate::outside::point(call.name).await;
        let outcome = self.0.transport.send(call, authorization, etag).await;
        crate::outside::point(call.name).await;
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(answer) => {
                tracing::debug!(call = call.name, ?lane, status = answer.status, milliseconds, "GitHub answered");
                Ok(answer)
            }
            Err(Lost::NotSent(what)) => {
                tracing::debug!(call = call.name, ?lane, milliseconds, "GitHub could not be reached: {what}");
                Err(GitHubError::Unavailable { what: format!("{}: {what}", call.name), outcome_unknown: false })
            }
            Err(Lost::Unknown(what)) => {
                tracing::debug!(call = call.name, ?lane, milliseconds, "GitHub's answer was lost: {what}");
                Err(GitHubError::Unavailable {
                    what: format!("{}: {what}", call.name),
                    outcome_unknown: call.is_write(),
                })
            }
            Err(Lost::TooLong) if call.is_write() => Err(GitHubError::Unavailable {
                what: format!("{}: the answer is too long", call.name),
                outcome_unknown: true,
            }),
            Err(Lost::TooLong) => Err(GitHubError::TooLarge { what: call.name.to_owned(), limit: call.limit }),
        }
    }

    /// Answers a 401: drops what was refused. Returns whether another try has something new to offer.
    async fn renew(&self, lane: Lane, token: &Secret, answer: &Answer) -> bool {
        let now = self.0.clock.now();
        let slot = self.0.tokens.slot(lane.into(), now);
        slot.lock().await.drop_refused(token);
        match lane {
            Lane::Installation(_) => true,
            Lane::App => {
                let there = answer.date().and_then(http_date);
                there.is_some_and(|there| self.0.tokens.learn_skew(now, there))
            }
            Lane::Token => false,
        }
    }

    /// A grant's token: kept, or minted by the first who comes.
    async fn token(&self, grant: Grant) -> Result<Secret, GitHubError> {
        let slot = self.0.tokens.slot(grant, self.0.clock.now());
        let mut slot = slot.lock().await;
        if let Some(kept) = slot.kept(self.0.clock.now()) {
            return kept;
        }
        let minted = match grant {
            Grant::App | Grant::Plain => {
                let now = self.0.clock.now();
                Ok(auth::own_token(self.credentials(), now, self.0.tokens.github_time(now)))
            }
            Grant::Installation(installation) => self.mint(installation, json!({})).await,
            Grant::Contents(installation, repo) => {
                let wanted = json!({ "repository_ids": [repo.0], "permissions": { "contents": "read" } });
                self.mint(installation, wanted).await
            }
        };
        match minted {
            Ok(token) => {
                let secret = token.secret.clone();
                slot.keep(token);
                Ok(secret)
            }
            Err(error) => {
                slot.refuse(&error, self.0.clock.now());
                Err(error)
            }
        }
    }

    /// Boxed because minting is a call, and a call may need a token.
    fn mint(
        &self,
        installation: InstallationId,
        wanted: Value,
    ) -> Pin<Box<dyn Future<Output = Result<Token, GitHubError>> + Send + '_>> {
        Box::pin(self.mint_now(installation, wanted))
    }

    async fn mint_now(&self, installation: InstallationId, wanted: Value) -> Result<Token, GitHubError> {
        const NAME: &str = "create_access_token";
        let path = format!("/app/installations/{installation}/access_tokens");
        let call = Call::write(NAME, Method::POST, path, wanted);
        let answer = self.send(Lane::App, None, &call, None).await.map_err(|error| match error {
            // 422: a repository was named that the installation doesn't have.
            GitHubError::NotFound { .. } | GitHubError::Refused { status: 422, .. } => GitHubError::NotInstalled,
            // A token that nobody received does nothing: minting may simply be repeated.
            GitHubError::Unavailable { what, .. } => GitHubError::Unavailable { what, outcome_unknown: false },
            other => other,
        })?;
        let unreadable =
            || GitHubError::Unavailable { what: format!("the answer to {NAME} can't be read"), outcome_unknown: false };
        let value = answer.json().ok_or_else(unreadable)?;
        let fields = Fields::new(&value);
        let secret = Secret::new(fields.text("token").map_err(|_| unreadable())?);
        let ends = fields.maybe_time("expires_at").ok_or_else(unreadable)?;
        // How long it lives doesn't depend on our clock if GitHub says what time it is there.
        let expires_at = match answer.date().and_then(http_date) {
            Some(there) => self.0.clock.now() + ends.since(there),
            None => ends,
        };
        Ok(Token::minted(secret, expires_at))
    }
}

/// The answer to a read.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) body: Bytes,
    pub(super) next: Option<String>,
    pub(super) content_type: String,
}

impl Found {
    /// The `cursor` of the next page's address, encoded as it stands there.
    pub(super) fn next_cursor(&self) -> Option<String> {
        let (_, query) = self.next.as_ref()?.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix("cursor=")).map(str::to_owned)
    }

    /// A 200 that is no JSON is a broken answer, not a fact.
    pub(super) fn json(&self, name: &'static str) -> Result<Value, GitHubError> {
        serde_json::from_slice(&self.body).map_err(|_| GitHubError::Unavailable {
            what: format!("{name}: the answer is no JSON"),
            outcome_unknown: false,
        })
    }
}

pub(super) fn not_understood(name: &'static str, what: &str) -> GitHubError {
    GitHubError::Unexpected { what: format!("{name}: {what}") }
}

/// One path segment, percent-encoded but for what RFC 3986 calls unreserved.
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    // A dot segment would be taken for a step in the path, and no name of GitHub's is one.
    if matches!(encoded.as_str(), "." | "..") { encoded.replace('.', "%2E") } else { encoded }
}

/// A path whose slashes stay.
pub(super) fn segments(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty()).map(segment).collect::<Vec<_>>().join("/")
}

/// The meaning of a status of 400 and more that is no limit.
fn refusal(call: &Call, answer: &Answer) -> GitHubError {
    let message = answer.message();
    match answer.status {
        401 => GitHubError::Unauthorized { message },
        403 if message.to_lowercase().contains("suspended") => GitHubError::Suspended,
        403 => GitHubError::Forbidden {
            message,
            needs: answer.header("x-accepted-github-permissions").map(|needs| needs.chars().take(200).collect()),
        },
        404 if message.starts_with("No commit found") => GitHubError::NotFound { what: "the commit" },
        404 => GitHubError::NotFound { what: call.name },
        status @ 500..=599 => GitHubError::Unavailable {
            what: format!("{}: status {status} {}", call.name, message.chars().take(100).collect::<String>()),
            outcome_unknown: call.is_write(),
        },
        408 => {
            GitHubError::Unavailable { what: format!("{}: status 408", call.name), outcome_unknown: call.is_write() }
        }
        status => GitHubError::Refused { status, message, errors: field_errors(answer) },
    }
}

/// The sentences of a 422: GitHub sends objects, and plain texts in places.
fn field_errors(answer: &Answer) -> Vec<String> {
    let value = answer.json().unwrap_or_default();
    let errors = match value.get("errors") {
        Some(Value::Array(errors)) => errors.clone(),
        Some(Value::String(error)) => vec![Value::String(error.clone())],
        _ => Vec::new(),
    };
    let sentence = |error: &Value| match error {
        Value::String(text) => text.clone(),
        error => ["resource", "field", "code", "message"]
            .iter()
            .filter_map(|name| error.get(*name).and_then(Value::as_str))
            .collect::<Vec<_>>()
            .join(" "),
    };
    errors.iter().take(10).map(|error| sentence(error).chars().take(300).collect()).collect()
}
