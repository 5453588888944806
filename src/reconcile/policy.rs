//! The policy of a repository, read from its default branch only, and what time alone changes because of it.
//!
//! A file that cannot be read leaves the last good policy in force; why is shown on the pipeline's page and as a
//! status of the commit that brought it.

use super::apply::{apply, note_order};
use super::deliver::{fresh_for, handle_of};
use super::{Trouble, World, domains, observe, processes};
use crate::domain::*;
use crate::github::reads::Level;
use crate::github::writes::StatusState;
use crate::github::{GitHubError, RepoHandle};
use crate::workflow::{
    Change, Right, barred, catch_up_staging, no_right, parse_scale, scaled, stale, waiting_for_room,
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use tracing::{info, warn};

/// The commit status by which a file is refused.
const STATUS_CONTEXT: &str = "landfall/settings";
/// Two repositories shall not both find the same custom domain free.
const DOMAINS: &str = "custom domains";

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
    let again = known.read_at.as_ref() == Some(&head);
    // What was refused may be possible now, by the operator's configuration or because a name was freed; and the other
    // way round.
    if again && known.error.is_none() && domains::settled(world, repository, &known.policy)? {
        return Ok(());
    }
    let read = match world.github.file(&handle, SETTINGS_FILE, &head).await {
        Ok(None) => Ok(String::new()),
        // What is wrong with the file alone is said with its line.
        Ok(Some(bytes)) => RepositorySettings::parse(&bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned()),
        Err(GitHubError::TooLarge { .. }) => Err(SettingsError::TooLarge),
        Err(error) => return Err(github(&error)),
    };
    let _of_domains = world.locks.lock(DOMAINS).await;
    let read = match read {
        Ok(file) => possible(world, repository, &known.dashboard.text, &file)?.map(|policy| (policy, file)),
        Err(error) => Err(error),
    };
    let mut state = PipelineState { read_at: Some(head.clone()), error: None, ..known.clone() };
    match read {
        Ok((policy, file)) => (state.policy, state.file) = (policy, file),
        Err(error) => {
            state.error = Some(error.to_string());
            if again && state.error == known.error {
                return Ok(());
            }
            warn!(repository = %repository.full_name(), commit = head.short(), "the policy is refused: {error}");
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
    put(world, repository, &known.policy, state, None).await
}

/// Writes the rules of a pipeline, and what follows from them at once. `by`: who changed the dashboard's.
async fn put(
    world: &World,
    repository: &Repository,
    before: &PipelineSettings,
    state: PipelineState,
    by: Option<String>,
) -> Result<(), Trouble> {
    let (id, closes_otherwise) = (repository.id, state.policy.review.access != before.review.access);
    let leads_otherwise = domains::named(before) != domains::named(&state.policy)
        || state.error.is_none() && !domains::settled(world, repository, before)?;
    let held: Vec<String> = domains::allowed(world, repository, &state.policy);
    let changes = rescaled(world, repository, before, &state.policy)?;
    let names = names_of(repository, &state.policy);
    let (fresh, now, repository) = (fresh_for(world, &changes)?, world.now(), repository.clone());
    if closes_otherwise || leads_otherwise {
        // Set first: nobody may be left to send the table once this is written.
        world.table_is_stale.store(true, Ordering::Release);
    }
    world
        .commit(move |tx| {
            for name in &names {
                tx.reserve_label(name, id)?;
            }
            tx.hold_domains(id, &held)?;
            apply(tx, &repository, &changes, fresh, now)?;
            // Locks may have been set meanwhile.
            let current = tx.stored_pipeline(id)?.unwrap_or_else(|| PipelineState::new(id));
            let PipelineState { policy, read_at, error, file, dashboard, .. } = state;
            tx.put_pipeline(&PipelineState { policy, read_at, error, file, dashboard, ..current })?;
            match &by {
                Some(by) => note_order(tx, id, OrderKind::Rules, by, now),
                None => Ok(()),
            }
        })
        .await?;
    if closes_otherwise {
        super::access::apply(world).await?;
    }
    if leads_otherwise {
        super::send_routes(world).await?;
        world.wake.notify_waiters();
    }
    Ok(())
}

/// Sets the rules that the dashboard says. The inner error says what is wrong with them; then the earlier ones hold.
pub(super) async fn set_on_dashboard(
    world: &World,
    repository: &Repository,
    text: &str,
    by: &str,
) -> Result<Result<(), String>, Trouble> {
    let known = world.store.pipeline(repository.id)?;
    let _of_domains = world.locks.lock(DOMAINS).await;
    let policy = match possible(world, repository, text, &known.file)? {
        Ok(policy) => policy,
        Err(error) => return Ok(Err(error.to_string())),
    };
    info!(repository = %repository.full_name(), "{by} changed the rules on the dashboard");
    let dashboard = DashboardRules { text: text.to_owned(), by: Some(by.to_owned()), at: Some(world.now()) };
    let state = PipelineState { policy, dashboard, ..known.clone() };
    put(world, repository, &known.policy, state, Some(by.to_owned())).await?;
    world.enqueue_subject(&Subject::Repository(repository.id)).await?;
    Ok(Ok(()))
}

/// The rules of both sources, if they can hold here.
fn possible(
    world: &World,
    repository: &Repository,
    dashboard: &str,
    file: &str,
) -> Result<Result<PipelineSettings, SettingsError>, Trouble> {
    let policy = match merged(dashboard, file) {
        Ok((policy, _)) => policy,
        Err(error) => return Ok(Err(error)),
    };
    Ok(impossible(world, repository, &policy)?.map_or(Ok(policy), |why| Err(SettingsError::Malformed(why))))
}

/// What the names of a repository's apps begin with, or are, beside its own label.
fn names_of(repository: &Repository, policy: &PipelineSettings) -> Vec<String> {
    let parts = policy.staging_keys().into_iter().chain(policy.production_keys()).map(|key| key.part);
    let of_parts = parts.filter(|part| !part.is_own()).map(|part| format!("{}{}", repository.label, part.infix()));
    of_parts.chain(policy.given_names().map(ToString::to_string)).collect()
}

/// What is wrong with a policy that only the whole of Landfall can say.
fn impossible(world: &World, repository: &Repository, policy: &PipelineSettings) -> Result<Option<String>, Trouble> {
    let keys = policy.staging_keys().into_iter().chain(policy.production_keys());
    let words = keys.flat_map(|key| policy.formation_of(key)).chain(&policy.review.formation);
    for word in words {
        if let Err(error) = parse_scale(word) {
            return Ok(Some(format!("formation: {error}")));
        }
    }
    for name in names_of(repository, policy) {
        if world.store.label_owner(&name)?.is_some_and(|owner| owner != repository.id) {
            return Ok(Some(format!("the name {name} is another repository's")));
        }
    }
    Ok(domains::refused(world, repository, policy)?)
}

/// Apps whose formation the file changed are scaled to what it says now, as far as the operator allows it.
fn rescaled(
    world: &World,
    repository: &Repository,
    before: &PipelineSettings,
    after: &PipelineSettings,
) -> Result<Vec<Change>, Trouble> {
    let mut changes = Vec::new();
    for app in world.store.apps_of(repository.id)?.into_iter().filter(|app| app.wanted == Wanted::Running) {
        let wanted = after.formation_of(app.key());
        if wanted.is_empty() || wanted == before.formation_of(app.key()) || app.formation.is_none() {
            continue;
        }
        let orders: Result<_, _> = wanted.iter().map(|word| parse_scale(word)).collect();
        let number = app.live.or_else(|| app.newest().and_then(|deploy| deploy.release));
        let release = number.map(|number| world.store.release(&app.name, number)).transpose()?.flatten();
        let limits = processes::limits(world, &app.name)?;
        match orders.and_then(|orders| scaled(&app, release.as_ref(), &orders, &limits)) {
            Ok(formation) => changes.push(Change::Scale { key: app.key(), formation }),
            Err(refusal) => warn!(app = %app.name, "the formation of .github/landfall.toml is not taken: {refusal}"),
        }
    }
    Ok(changes)
}

/// Whether pushes to the branch concern the pipeline: it holds the policy, or staging follows it.
pub(super) fn is_followed(world: &World, id: RepositoryId, branch: &str) -> Result<bool, Trouble> {
    let is_default = world.store.repository(id)?.is_some_and(|repository| repository.default_branch == branch);
    let policy = world.store.pipeline(id)?.policy;
    Ok(is_default || policy.staging_keys().into_iter().any(|key| policy.branch_of(key) == Some(branch)))
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
        // One that is busy has its turn the next time.
        let Some(_alone) = world.locks.of_repository(repository.id).await else { continue };
        look_at(world, &repository).await?;
    }
    Ok(())
}

/// `look` at one repository, whose lock the caller has.
pub(super) async fn look_at(world: &World, repository: &Repository) -> Result<(), Trouble> {
    let snapshot = observe::known_of(world, repository)?;
    let pulls = world.store.pulls(repository.id)?;
    let mut changes = stale(&snapshot.apps, &pulls, &snapshot.pipeline, snapshot.now);
    // What goes now makes room at the next look.
    changes.extend(waiting_for_room(&pulls, &snapshot));
    changes.extend(catch_up_staging(&snapshot));
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

/// Why a deploy that was let in may not have its release after all: its stage was locked or frozen while it waited. What ends
/// trouble, a hotfix or an earlier release, goes out all the same, and so do config vars: they are nothing new to serve.
pub(super) fn barred_since(world: &World, app: &App, deploy: &Deploy) -> Result<Option<Refusal>, Trouble> {
    let is_new = match deploy.cause {
        Cause::Push | Cause::Retry { .. } => true,
        Cause::Promotion { hotfix, .. } => !hotfix,
        Cause::Config { .. } | Cause::Rollback { .. } => false,
    };
    if !is_new || app.pull().is_some() {
        return Ok(None);
    }
    Ok(barred(app.key().kind(), &world.store.pipeline(app.repository)?, world.now()))
}

/// Who asked by a comment for this deploy, or said so too, and may not do so any more, as GitHub says now.
pub(super) async fn lost_right(world: &World, app: &App, deploy: u64) -> Result<Option<String>, Trouble> {
    let Some(by) = app.deploy(deploy).and_then(|deploy| deploy.by.as_ref()) else { return Ok(None) };
    // An app that was made anew counts its deploys from 1 again, so an earlier one's command is another person's.
    let asked = |record: &CommandRecord| {
        matches!(&record.answer, Answer::Deploying { app: name, deploy: number } if *name == app.name && *number == deploy)
            && record.by.eq_ignore_ascii_case(by)
    };
    let mut people = BTreeSet::new();
    for record in world.store.commands_of(app.repository)?.into_iter().filter(asked) {
        people.extend(record.notes.iter().filter_map(|note| match note {
            Note::Approved { by } => Some(by.clone()),
            _ => None,
        }));
        people.insert(record.by);
    }
    if people.is_empty() {
        return Ok(None);
    }
    let Some(repository) = world.store.repository(app.repository)? else { return Ok(None) };
    let policy = world.store.pipeline(repository.id)?.policy;
    let handle = handle_of(&repository);
    for login in people {
        let right = right(world, &handle, &login, &policy).await?;
        if no_right(app.key(), right.as_ref(), &policy).is_some() {
            return Ok(Some(login));
        }
    }
    Ok(None)
}
