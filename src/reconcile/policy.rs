//! The policy of a repository, read from its default branch only, and what time alone changes because of it.
//!
//! A file that cannot be read leaves the last good policy in force; why is shown on the pipeline's page and as a
//! status of the commit that brought it.

use super::apply::apply;
use super::deliver::{fresh_for, handle_of};
use super::{Trouble, World};
use crate::domain::*;
use crate::github::reads::Level;
use crate::github::writes::StatusState;
use crate::github::{GitHubError, RepoHandle};
use crate::workflow::{Change, Right, Snapshot, catch_up_staging, no_right, stale, waiting_for_room};
use std::collections::BTreeSet;
use tracing::{info, warn};

/// The commit status by which a file is refused.
const STATUS_CONTEXT: &str = "landfall/settings";

/// Reads the policy again if the event may have changed it, or if it was never read.
pub(super) async fn read(world: &World, repository: &Repository, event: &Event) -> Result<(), Trouble> {
    let known = world.store.pipeline(repository.id)?;
    let pushed = match event {
        Event::BranchPushed { branch, .. } => *branch == repository.default_branch,
        Event::PullChanged { .. } | Event::Comment { .. } => known.read_at.is_none(),
        _ => false,
    };
    if !pushed {
        return Ok(());
    }
    let handle = handle_of(repository);
    let github = |error: &GitHubError| Trouble::github(error, world.now());
    // Pushes arrive in any order; the head is the truth.
    let head = world.github.branch_head(&handle, &repository.default_branch).await;
    let Some(head) = head.map_err(|error| github(&error))? else { return Ok(()) };
    if known.read_at.as_ref() == Some(&head) {
        return Ok(());
    }
    let read = match world.github.file(&handle, SETTINGS_FILE, &head).await {
        Ok(None) => Ok(PipelineSettings::default()),
        Ok(Some(bytes)) => RepositorySettings::parse(&bytes).map(|settings| settings.pipeline),
        Err(GitHubError::TooLarge { .. }) => Err(SettingsError::TooLarge),
        Err(error) => return Err(github(&error)),
    };
    let mut state = PipelineState { read_at: Some(head.clone()), error: None, ..known.clone() };
    match read {
        Ok(policy) => state.policy = policy,
        Err(error) => {
            warn!(repository = %repository.full_name(), commit = head.short(), "the policy is refused: {error}");
            state.error = Some(error.to_string());
            let text = world.texts.line("status.txt", serde_json::json!({ "settings": "refused" }));
            let page = world.config.page(&format!("/pipelines/{}", repository.full_name()));
            let said =
                world.github.set_status(&handle, &head, STATUS_CONTEXT, StatusState::Failure, Some(&page), &text);
            // The page says it too, so what GitHub does not take holds nothing up.
            if let Err(error) = said.await {
                warn!(repository = %repository.full_name(), "the refusal could not be told: {error}");
            }
        }
    }
    if state.policy != known.policy {
        info!(repository = %repository.full_name(), commit = head.short(), "the pipeline's policy changed");
    }
    let (id, closes_otherwise) = (repository.id, state.policy.review.access != known.policy.review.access);
    world
        .commit(move |tx| {
            // Locks may have been set meanwhile.
            let current = tx.stored_pipeline(id)?.unwrap_or_else(|| PipelineState::new(id));
            let PipelineState { policy, read_at, error, .. } = state;
            tx.put_pipeline(&PipelineState { policy, read_at, error, ..current })
        })
        .await?;
    if closes_otherwise {
        super::access::apply(world).await?;
    }
    Ok(())
}

/// Whether pushes to the branch concern the pipeline: it holds the policy, or staging follows it.
pub(super) fn is_followed(world: &World, id: RepositoryId, branch: &str) -> Result<bool, Trouble> {
    let is_default = world.store.repository(id)?.is_some_and(|repository| repository.default_branch == branch);
    Ok(is_default || world.store.pipeline(id)?.policy.staging.branch.as_deref() == Some(branch))
}

/// What a person may do now, as GitHub says. An error is no answer, and no answer is no right.
pub(super) async fn right(
    world: &World,
    repo: &RepoHandle,
    login: &str,
    policy: &PipelineSettings,
) -> Result<Option<Right>, Trouble> {
    let permission = match world.github.permission(repo, login).await {
        Ok(permission) => permission,
        Err(GitHubError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    let mut teams = Vec::new();
    for team in policy.teams() {
        let Some((organisation, slug)) = team.split_once('/') else { continue };
        match world.github.is_team_member(repo, organisation, slug, login).await {
            Ok(true) => teams.push(team.to_owned()),
            // The app may lack the permission to see members: then nobody is one.
            Ok(false) | Err(GitHubError::Forbidden { .. }) => {}
            Err(error) => return Err(Trouble::github(&error, world.now())),
        }
    }
    teams.dedup();
    let access = match permission.level {
        Level::None => Access::None,
        Level::Read => Access::Read,
        Level::Triage => Access::Triage,
        Level::Write => Access::Write,
        Level::Maintain => Access::Maintain,
        Level::Admin => Access::Admin,
    };
    Ok(Some(Right { role: permission.role_name, access, teams }))
}

/// What became due by time alone, and what was left for later: stale review apps, those that there was no room for, and
/// what a freeze of staging held back.
pub(super) async fn look(world: &World) -> Result<(), Trouble> {
    for repository in world.store.repositories()?.into_iter().filter(|repository| repository.granted) {
        let _alone = world.locks.lock(&format!("repository {}", repository.id)).await;
        look_at(world, &repository).await?;
    }
    Ok(())
}

/// `look` at one repository, whose lock the caller has.
pub(super) async fn look_at(world: &World, repository: &Repository) -> Result<(), Trouble> {
    let snapshot = Snapshot {
        now: world.now(),
        repository: repository.clone(),
        pull: None,
        apps: world.store.apps_of(repository.id)?,
        releases: Vec::new(),
        runs: world.store.runs_of(repository.id)?,
        answered: Vec::new(),
        right: None,
        first_right: None,
        pipeline: world.store.pipeline(repository.id)?,
        scale_limits: None,
    };
    let pulls = world.store.pulls(repository.id)?;
    let mut changes = stale(&snapshot.apps, &pulls, &snapshot.pipeline, snapshot.now);
    // What goes now makes room at the next look.
    changes.extend(waiting_for_room(&pulls, &snapshot));
    // Without an app on staging there is nothing that was held back.
    if snapshot.running(Stage::Staging).is_some() {
        changes.extend(catch_up_staging(&snapshot));
    }
    if changes.is_empty() {
        return Ok(());
    }
    for change in &changes {
        info!(repository = %repository.full_name(), "it became time: {}", Change::summary(change));
    }
    let (fresh, now, repository) = (fresh_for(world, &changes)?, world.now(), repository.clone());
    world.commit(move |tx| apply(tx, &repository, &changes, fresh, now)).await?;
    world.wake.notify_waiters();
    Ok(())
}

/// Who asked by a comment for this deploy and may not do so any more, as GitHub says now.
pub(super) async fn lost_right(world: &World, app: &App, deploy: u64) -> Result<Option<String>, Trouble> {
    let asked = |record: &CommandRecord| matches!(&record.answer, Answer::Deploying { app: name, deploy: number } if *name == app.name && *number == deploy);
    let records = world.store.commands_of(app.repository)?.into_iter().filter(asked);
    let people: BTreeSet<String> = records.map(|record| record.by).collect();
    if people.is_empty() {
        return Ok(None);
    }
    let Some(repository) = world.store.repository(app.repository)? else { return Ok(None) };
    let policy = world.store.pipeline(repository.id)?.policy;
    let handle = handle_of(&repository);
    for login in people {
        let right = right(world, &handle, &login, &policy).await?;
        if no_right(app.stage.kind(), right.as_ref(), &policy).is_some() {
            return Ok(Some(login));
        }
    }
    Ok(None)
}
