//! A second, independent GitHub for tests and the demonstration: REST, git over HTTP, webhooks, and small pages for
//! a person. It imports nothing else of Landfall, so both sides of the wire cannot share a mistake. Its own changes
//! of state send the webhooks, its clock is its own, and it refuses loudly (501) what it does not know.
//!
//! Records live in memory and are kept as `DIR/github.json`; git objects live in the bare repositories
//! `DIR/OWNER/NAME.git`, of which every one found is served, with the app installed on it. A push made straight
//! into such a folder is noticed too.
//!
//! Controls, JSON without a token, from the loopback interface only:
//! - `POST /_/faults` `{match: {method?, path_regex?}, fault, count?, retry_after?, delay_ms?}` with `fault` one of
//!   `500` (after the effect: `500-after`), `502`, `503`, `403-secondary`, `403-primary`, `429`, `401`, `404`,
//!   `empty` (a list with nothing in it), `delay`, `drop-before` and `drop-after` (cut without an answer, before or after
//!   the effect); `count` 0 stands for ever. `GET` lists what is left, `DELETE` clears.
//! - `POST /_/webhooks` `{mode}`: `normal`, `lost` (recorded as failed, never sent; with `recorded: false` without a
//!   trace), `doubled`, `reversed`, `held`; `POST /_/webhooks/release` lets held ones go; `GET` tells mode and queue.
//! - `GET /_/requests` (`?since=ID`): every call with method, path, status, time, actor; `DELETE` clears.
//!   `GET /_/unknown`: paths that were refused. `GET /_/idle`: whether nothing is queued or in flight.
//! - `POST /_/push` `{repo, branch, files: {path: text | null | {base64, executable}}, message?, user?, force?,
//!   base?}`; `POST /_/delete-branch` `{repo, branch, user?}`; `POST /_/fork` `{repo, user, name?}`.
//! - `POST /_/pull` `{repo, title, head, base?, body?, draft?, user?, head_repo?}`, `POST /_/comment`
//!   `{repo, number, body, user?}`, `POST /_/review` `{repo, number, user?, event}`, `POST /_/draft`
//!   `{repo, number, draft}`, `POST /_/rerequest` `{repo, check_run, user?}`: as a person would.
//! - `POST /_/collaborator` `{repo, user, permission | null}`, `POST /_/member` `{org, user, role | null}`,
//!   `POST /_/team` `{org, team, members}`, `POST /_/user` `{name, token?}`, `POST /_/signed-in` `{user}` (who the
//!   browser of the OAuth flow is).
//! - `POST /_/suspend`, `/_/unsuspend`, `/_/uninstall`, `/_/install` `{owner}`; `POST /_/select` `{repo, selected}`
//!   (whether the installation covers it); `POST /_/permissions` `{permissions: {name: level | null}}`;
//!   `POST /_/rename` `{repo, name}`; `POST /_/transfer` `{repo, owner}`; `POST /_/delete` `{repo}`;
//!   `POST /_/visibility` `{repo, private}`; `POST /_/rules` `{repo, branch, contexts}` (a ruleset's required checks);
//!   `POST /_/environment-branches` `{repo, environment, branches}` (patterns of its custom branch policy).
//! - `POST /_/merge-group` `{repo, number}` makes `gh-readonly-queue/…` and sends `merge_group.checks_requested`;
//!   `GET /_/oauth` tells the app's client id and secret; `POST /_/clock` `{advance_seconds}`; `POST /_/rate` `{limit, enforce, writes_per_minute | null}`;
//!   `POST /_/mergeable` `{unknown: COUNT}` (so many answers say that it is not computed yet); `POST /_/emit`
//!   `{event, payload}` sends any payload as it is.
//!
//! The pages post to `/_/ui/…`. `DIR/prepared.json` may list commits that a page offers as buttons.

mod access;
mod api;
mod calendar;
mod controls;
mod events;
mod git;
mod git_http;
mod git_text;
mod hooks;
mod markdown;
mod oauth;
mod page_model;
mod pages;
mod prepared;
mod pulls;
mod refs;
mod server;
mod state;
mod view;
mod wire;
mod world;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

/// How to start a stand-in.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where repositories and records are kept.
    pub data: PathBuf,
    /// What links begin with; `http://` and the listening address without it.
    pub public_url: Option<String>,
    pub webhook_url: String,
    pub webhook_secret: String,
    pub app_id: u64,
    /// SPKI (`BEGIN PUBLIC KEY`) or PKCS#1 (`BEGIN RSA PUBLIC KEY`).
    pub app_public_key_pem: String,
    /// Name and token of each person; the first one owns what it makes.
    pub users: Vec<(String, String)>,
}

/// A running stand-in. Dropping it ends it.
pub struct Sim {
    url: String,
    world: Arc<world::World>,
    server: Option<server::Running>,
}

impl Sim {
    /// Starts serving; returns once the address answers.
    ///
    /// # Errors
    /// When the key cannot be read, the folder not be used, or the address not be bound.
    pub async fn start(options: Options) -> Result<Self> {
        let (world, running) = tokio::task::spawn_blocking(move || server::start(options)).await??;
        Ok(Self { url: format!("http://{}", running.address), world, server: Some(running) })
    }

    /// The address it answers at, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops serving and writes what is not yet on disk.
    pub async fn stop(mut self) {
        if let Some(running) = self.server.take() {
            let world = Arc::clone(&self.world);
            let _ = tokio::task::spawn_blocking(move || running.stop(&world)).await;
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if let Some(running) = self.server.take() {
            running.stop(&self.world);
        }
    }
}
