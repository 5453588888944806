//! The audit log: every command of a comment and every order of a page or a terminal, with what came of it.

use super::When;
use crate::clock::Timestamp;
use crate::domain::*;
use crate::reconcile::{self, World};
use crate::web::problem::Problem;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Entries that a page shows.
pub const AUDITED: usize = 100;

#[derive(Debug, Clone, Serialize)]
pub struct AuditLine {
    pub repository: String,
    pub by: String,
    pub given: When,
    /// The comment that gave it; `None` for an order of a page or a terminal.
    pub comment: Option<CommentPlace>,
    /// `Command` or `OrderKind`.
    pub what: serde_json::Value,
    pub answer: Answer,
    pub notes: Vec<Note>,
    /// Of the deploy that it led to, while that is remembered.
    pub phase: Option<Phase>,
    /// Whether a lock or a freeze was passed over.
    pub loud: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommentPlace {
    pub pull: PullNumber,
    pub comment: u64,
    pub place: u16,
}

/// The newest first; of one repository, if it is named.
pub fn audit(world: &World, only: Option<RepositoryId>, most: usize) -> Result<Vec<AuditLine>, Problem> {
    let now = world.now();
    let mut lines: Vec<(Timestamp, AuditLine)> = Vec::new();
    let shown = |error: serde_json::Error| Problem::Internal { detail: error.to_string() };
    let mut orders: BTreeMap<RepositoryId, Vec<OperatorOrder>> = BTreeMap::new();
    for order in world.store.orders()? {
        orders.entry(order.repository).or_default().push(order);
    }
    for repository in world.store.repositories()? {
        if only.is_some_and(|only| only != repository.id) {
            continue;
        }
        for record in world.store.commands_of(repository.id)? {
            let comment = CommentPlace { pull: record.pull, comment: record.comment, place: record.place };
            let line = AuditLine {
                repository: repository.full_name(),
                by: record.by,
                given: When::new(record.given_at, now),
                comment: Some(comment),
                what: serde_json::to_value(&record.command).map_err(shown)?,
                phase: None,
                answer: record.answer,
                loud: is_loud(&record.notes),
                notes: record.notes,
            };
            lines.push((record.given_at, line));
        }
        for order in orders.remove(&repository.id).unwrap_or_default() {
            let line = AuditLine {
                repository: repository.full_name(),
                by: order.by,
                given: When::new(order.given_at, now),
                comment: None,
                what: serde_json::to_value(&order.what).map_err(shown)?,
                phase: None,
                answer: order.answer,
                loud: is_loud(&order.notes),
                notes: order.notes,
            };
            lines.push((order.given_at, line));
        }
    }
    lines.sort_by_key(|(at, _)| Reverse(*at));
    // Each costs a look at an app.
    let shown = lines.into_iter().take(most);
    shown.map(|(_, line)| Ok(AuditLine { phase: phase(world, &line.answer)?, ..line })).collect()
}

fn is_loud(notes: &[Note]) -> bool {
    notes.iter().any(|note| matches!(note, Note::Hotfix { .. }))
}

fn phase(world: &World, answer: &Answer) -> Result<Option<Phase>, Problem> {
    let Answer::Deploying { app, deploy } = answer else { return Ok(None) };
    let app = world.store.app(app)?;
    Ok(app.and_then(|app| app.deploy(*deploy).map(|deploy| app.phase(deploy))))
}

/// What an app of staging serves and one of production does not.
#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    pub repository: String,
    /// The app of production.
    pub app: AppName,
    pub from: Option<Sha>,
    pub to: Option<Sha>,
    #[serde(flatten)]
    pub contents: Option<reconcile::Contents>,
    pub refusal: Option<Refusal>,
}

/// Asks GitHub what a promotion to each app of production would bring, or to the one that is named.
pub async fn waiting(world: &World, repository: &Repository, only: Option<&str>) -> Result<Vec<Waiting>, Problem> {
    let (apps, policy) = (world.store.apps_of(repository.id)?, world.store.pipeline(repository.id)?.policy);
    let mut all = Vec::new();
    let keys = policy.production_keys();
    let refused = reconcile::command::promotions_refused(world, repository, &keys)?;
    for (key, refusal) in keys.into_iter().zip(refused) {
        let there = |key: AppKey| apps.iter().find(|app| app.key() == key);
        let app = there(key).map_or_else(|| policy.name_of(repository, key), |app| app.name.clone());
        if only.is_some_and(|only| only != app.as_str() && only != key.part.as_str()) {
            continue;
        }
        let live = |key| there(key).and_then(|app| app.live_deploy().map(|deploy| deploy.commit.clone()));
        let (from, to) = (live(key), live(policy.source_of(key)));
        let contents = match &to {
            Some(to) => Some(reconcile::contents(world, repository, from.as_ref(), to).await?),
            None => None,
        };
        all.push(Waiting { repository: repository.full_name(), app, from, to, contents, refusal });
    }
    Ok(all)
}
