//! The client against a server that the test scripts, byte by byte where a fault needs it.

mod auth;
mod calls;
mod faults;
mod limits;
mod mock;
mod payloads;

use super::auth::Credentials;
use super::client::{GitHub, Settings, Timeouts};
use super::event::RepoHandle;
use super::key::RsaKey;
use crate::clock::{Clock, Timestamp};
use crate::domain::{InstallationId, RepositoryId, Secret, Sha};
use mock::{Mock, Reply, Seen};
use std::time::Duration;

const PKCS1: &str = include_str!("app-key.pkcs1.pem");
const PKCS8: &str = include_str!("app-key.pkcs8.pem");
const SHA: &str = "6dcb09b5b57875f334f61aebed695e2e4193db5e";
/// 2026-11-22T23:19:37Z.
const START: Timestamp = Timestamp(1_795_389_577_000);
const INSTALLATION: InstallationId = InstallationId(7);
/// The form of installation tokens since April 2026: about 520 characters with dots, underscores and hyphens.
fn long_token(number: usize) -> String {
    format!("ghs_1_eyJhbGciOiJSUzI1NiJ9.{}-_{number}.{}", "a-_".repeat(100), "Zz9".repeat(60))
}

fn sha() -> Sha {
    SHA.parse().unwrap()
}

fn repo() -> RepoHandle {
    RepoHandle {
        installation: Some(INSTALLATION),
        id: RepositoryId(1000),
        owner: "octocat".to_owned(),
        name: "hello".to_owned(),
    }
}

fn app() -> Credentials {
    Credentials::App { app_id: 1, private_key: RsaKey::from_pem(PKCS1).unwrap() }
}

fn settings(api_url: &str, credentials: Credentials) -> Settings {
    Settings {
        api_url: api_url.to_owned(),
        web_url: "https://github.example/".to_owned(),
        credentials,
        user_agent: "landfall/test".to_owned(),
        write_interval: Duration::ZERO,
        timeouts: Timeouts { connect: Duration::from_secs(5), call: Duration::from_secs(20) },
    }
}

fn app_client(mock: &Mock) -> (GitHub, Clock) {
    let clock = Clock::manual(START);
    (GitHub::new(settings(mock.url(), app()), clock.clone()).unwrap(), clock)
}

fn token_client(mock: &Mock) -> (GitHub, Clock) {
    let clock = Clock::manual(START);
    let credentials = Credentials::Token(Secret::new("ghp_plain"));
    (GitHub::new(settings(mock.url(), credentials), clock.clone()).unwrap(), clock)
}

fn is_mint(seen: &Seen) -> bool {
    seen.path.ends_with("/access_tokens")
}

/// Answers the minting of tokens, the n-th with the n-th long token, an hour from the start of the test's clock.
fn minted(number: usize, expires_at: Timestamp) -> Reply {
    Reply::json(201, serde_json::json!({ "token": long_token(number), "expires_at": expires_at.rfc3339() }))
}

/// A server where minting works and everything else is up to the test.
async fn mock(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Mock {
    Mock::start(move |seen| if is_mint(seen) { minted(1, START + Duration::from_secs(3600)) } else { answer(seen) })
        .await
}

/// The calls that a mock saw, without the minting of tokens.
fn calls(mock: &Mock) -> Vec<Seen> {
    mock.seen().into_iter().filter(|seen| !is_mint(seen)).collect()
}
