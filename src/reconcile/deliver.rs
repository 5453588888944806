//! A delivery becomes wishes: bytes → event → facts read again from GitHub → changes → one transaction.
//!
//! A webhook is a hint that something is different now. What it says is checked against GitHub before anything is
//! decided, so deliveries may be late, doubled, out of order or lies of a former administrator of the hook.

use super::apply::{Fresh, apply, enqueue};
use super::{LINE_WAIT, Next, Trouble, World, act, checks, observe, policy, processes, publish_pull, touched};
use crate::domain::*;
use crate::github::event::{
    CheckRunAction, CheckSuiteAction, CommentAction, InstallationAction, MergeGroupAction, PullAction, Reference,
    RepoRef, RepositoryAction,
};
use crate::github::{self, GitHubError, RepoHandle};
use crate::store::{DeliveryRecord, StoreError, Transaction};
use crate::workflow::{Change, Promotable, Snapshot, decide, mentioned_commands, needs_right, run_again, targets};
use std::collections::BTreeSet;
use std::time::Duration;
use tracing::info;

/// The name of our check run; other people's checks of another name are not ours to run again.
pub const CHECK_NAME: &str = "landfall/tests";

/// The check run of a folder is called `landfall/tests (api)`.
fn is_own_check(name: &str) -> bool {
    name.strip_prefix(CHECK_NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
}

/// What an event of GitHub's is to us.
#[expect(clippy::large_enum_variant, reason = "one of them lives at a time")]
enum Meaning {
    Ignored(IgnoredBecause),
    /// About one repository.
    About {
        repository: RepositoryFacts,
        event: Event,
        before: Option<Sha>,
        updated_at: Option<crate::clock::Timestamp>,
    },
    /// What the installation may do changed.
    Installed {
        installation: InstallationId,
        added: Vec<RepoRef>,
        ended: Ended,
    },
}

/// For which repositories a grant ended.
enum Ended {
    Nowhere,
    Everywhere,
    For(Vec<RepositoryId>),
}

pub(super) async fn process(world: &World, id: &str, attempts: u32) -> Result<Next, Trouble> {
    let Some(record) = world.store.delivery(id)? else { return Ok(Next::Done) };
    if matches!(record.delivery.state, DeliveryState::Applied { .. } | DeliveryState::Ignored { .. }) {
        return Ok(Next::Done);
    }
    let body = world.store.blob(&record.payload).map_err(Trouble::bug)?;
    let event =
        github::parse(&record.delivery.event, &body, record.delivery.content_type.as_deref()).map_err(Trouble::bug)?;
    match meaning(event, world.config.github.app_id) {
        Meaning::Ignored(why) => ignore(world, record, why).await?,
        Meaning::Installed { installation, added, ended } => {
            installed(world, record, installation, added, ended, attempts).await?;
        }
        Meaning::About { repository, event, before, updated_at } => {
            let Some(_alone) = world.locks.of_repository(repository.id).await else {
                return Ok(Next::PutOff { after: LINE_WAIT });
            };
            let id = record.delivery.id.clone();
            // On the heap: what asks GitHub is large, and lies many calls deep.
            match Box::pin(about(world, record, repository, event, before, updated_at, attempts)).await {
                // Whoever installs the app again is asked for what is open then.
                Err(Trouble::NoAccess) => {
                    change_state_to_ignored(world, id, IgnoredBecause::NoAccess).await?;
                }
                other => other?,
            }
        }
    }
    world.wake.notify_waiters();
    Ok(Next::Done)
}

#[expect(clippy::too_many_lines, reason = "one arm for each event of GitHub's that means something to us")]
fn meaning(event: github::Event, own_app: Option<u64>) -> Meaning {
    let facts = |repo: github::Repo, installation| RepositoryFacts {
        id: repo.id,
        owner: repo.owner,
        name: repo.name,
        default_branch: Some(repo.default_branch).filter(|branch| !branch.is_empty()),
        private: repo.private,
        html_url: repo.html_url,
        installation,
    };
    let about = |repository, event| Meaning::About { repository, event, before: None, updated_at: None };
    match event {
        github::Event::PullRequest { action, repo, installation, pull, .. } => {
            let closed = action == PullAction::Closed;
            let updated_at = pull.updated_at;
            let pull = pull_of(repo.id, &pull);
            let repository = facts(repo, installation);
            let event = if closed { Event::PullClosed { pull } } else { Event::PullChanged { pull } };
            Meaning::About { repository, event, before: None, updated_at }
        }
        github::Event::Push(push) => match push.reference {
            Reference::Branch(branch) if !push.deleted && !push.after.is_zero() => Meaning::About {
                repository: facts(push.repo, push.installation),
                event: Event::BranchPushed { branch, commit: push.after },
                before: Some(push.before),
                updated_at: None,
            },
            _ => Meaning::Ignored(IgnoredBecause::NothingToDo),
        },
        github::Event::IssueComment {
            action: CommentAction::Created,
            repo,
            installation,
            issue,
            is_pull,
            comment,
            sender,
            ..
        } => {
            let ours = comment.via_app.is_some() && comment.via_app == own_app;
            if ours || comment.author.is_bot || sender.is_bot || sender.id != comment.author.id {
                return Meaning::Ignored(IgnoredBecause::OwnDoing);
            }
            if !is_pull || mentioned_commands(&comment.body).is_empty() {
                return Meaning::Ignored(IgnoredBecause::NothingToDo);
            }
            about(
                facts(repo, installation),
                Event::Comment {
                    pull: issue,
                    comment: comment.id,
                    author: comment.author.login,
                    body: comment.body,
                    written_at: comment.created_at.unwrap_or_default(),
                },
            )
        }
        github::Event::CheckRun {
            action: action @ (CheckRunAction::Rerequested | CheckRunAction::RequestedAction { .. }),
            repo,
            installation,
            name,
            head_sha,
            external_id,
            app_id,
            sender,
            ..
        } => {
            if !is_own_check(&name) || (own_app.is_some() && app_id != own_app) {
                return Meaning::Ignored(IgnoredBecause::NothingToDo);
            }
            let run = external_id.as_deref().and_then(run_of_external_id);
            let only_failed = match action {
                CheckRunAction::RequestedAction { identifier } if identifier == RERUN_FAILED => true,
                CheckRunAction::RequestedAction { .. } => return Meaning::Ignored(IgnoredBecause::NothingToDo),
                _ => false,
            };
            about(
                facts(repo, installation),
                Event::RerunAsked { commit: head_sha, run, by: Some(sender.login), only_failed },
            )
        }
        // Somebody else's; what we say ourselves comes back as an event too.
        github::Event::CheckRun {
            action: CheckRunAction::Completed,
            repo,
            installation,
            head_sha,
            app_id,
            name,
            ..
        } => {
            if name.starts_with(OWN_CONTEXTS) && (own_app.is_none() || app_id == own_app) {
                return Meaning::Ignored(IgnoredBecause::OwnDoing);
            }
            about(facts(repo, installation), Event::ChecksChanged { commit: head_sha })
        }
        github::Event::CheckSuite {
            action: CheckSuiteAction::Completed, repo, installation, head_sha, app_id, ..
        } => {
            if own_app.is_some() && app_id == own_app {
                return Meaning::Ignored(IgnoredBecause::OwnDoing);
            }
            about(facts(repo, installation), Event::ChecksChanged { commit: head_sha })
        }
        github::Event::Status { repo, installation, sha, context, .. } => {
            if context.starts_with(OWN_CONTEXTS) {
                return Meaning::Ignored(IgnoredBecause::OwnDoing);
            }
            about(facts(repo, installation), Event::ChecksChanged { commit: sha })
        }
        github::Event::CheckSuite {
            action: CheckSuiteAction::Rerequested,
            repo,
            installation,
            head_sha,
            sender,
            ..
        } => about(
            facts(repo, installation),
            Event::RerunAsked { commit: head_sha, run: None, by: Some(sender.login), only_failed: false },
        ),
        github::Event::MergeGroup { action, repo, installation, head_sha, head_ref, .. } => {
            let branch = head_ref.strip_prefix("refs/heads/").unwrap_or(&head_ref).to_owned();
            match action {
                MergeGroupAction::ChecksRequested => {
                    about(facts(repo, installation), Event::GroupQueued { branch, commit: head_sha })
                }
                MergeGroupAction::Destroyed { .. } => about(facts(repo, installation), Event::GroupGone { branch }),
                MergeGroupAction::Other(_) => Meaning::Ignored(IgnoredBecause::UnreadAction),
            }
        }
        github::Event::Repository { action: RepositoryAction::Deleted, repo, installation } => {
            about(facts(repo, installation), Event::RepositoryGone)
        }
        github::Event::Repository { repo, installation, .. } => {
            about(facts(repo, installation), Event::RepositoryChanged)
        }
        github::Event::Installation { action, installation, repositories, .. } => match action {
            InstallationAction::Deleted => {
                Meaning::Installed { installation, added: Vec::new(), ended: Ended::Everywhere }
            }
            // A suspended app is told nothing and can tell nothing; what runs goes on, and what was missed is found
            // when the suspension ends.
            InstallationAction::Created
            | InstallationAction::Suspended
            | InstallationAction::Unsuspended
            | InstallationAction::NewPermissions => {
                Meaning::Installed { installation, added: repositories, ended: Ended::Nowhere }
            }
            InstallationAction::Other(_) => Meaning::Ignored(IgnoredBecause::UnreadAction),
        },
        github::Event::InstallationRepositories { installation, added, removed } => Meaning::Installed {
            installation,
            added,
            ended: Ended::For(removed.into_iter().map(|repo| repo.id).collect()),
        },
        github::Event::Ping { .. } => Meaning::Ignored(IgnoredBecause::NothingToDo),
        github::Event::IssueComment { .. } | github::Event::CheckRun { .. } | github::Event::CheckSuite { .. } => {
            Meaning::Ignored(IgnoredBecause::UnreadAction)
        }
        _ => Meaning::Ignored(IgnoredBecause::UnreadEvent),
    }
}

/// By which contexts of ours begin.
const OWN_CONTEXTS: &str = "landfall/";

/// By which the button that runs again what failed is known.
pub(super) const RERUN_FAILED: &str = "rerun_failed";

/// `external_id` of our check runs.
pub fn external_id(run: RunNumber) -> String {
    format!("landfall-run-{run}")
}

fn run_of_external_id(text: &str) -> Option<RunNumber> {
    text.strip_prefix("landfall-run-")?.parse().ok().map(RunNumber)
}

pub(super) fn pull_of(repository: RepositoryId, pull: &github::Pull) -> Pull {
    Pull {
        repository,
        number: pull.number,
        title: pull.title.clone(),
        author: pull.author.login.clone(),
        head: pull.head.sha.clone(),
        branch: pull.head.branch.clone(),
        head_repository: pull.head.repository,
        base_branch: pull.base.branch.clone(),
        open: pull.open,
        merged: pull.merged,
        html_url: pull.html_url.clone(),
        draft: pull.draft,
        labels: pull.labels.clone(),
        by_bot: pull.author.is_bot,
        skip: false,
        parked: None,
        untouched: Vec::new(),
        pages: Vec::new(),
    }
}

/// What the message of its head asks for as well, and which apps none of its files concerns; GitHub is asked once for
/// each head. A stranger's message is not looked at.
pub(super) async fn with_message(world: &World, handle: &RepoHandle, pull: Pull) -> Result<Pull, Trouble> {
    let known = world.store.pull(pull.repository, pull.number)?;
    if let Some(known) = known.filter(|known| known.head == pull.head && known.base_branch == pull.base_branch) {
        return Ok(Pull { skip: known.skip, untouched: known.untouched, pages: known.pages, ..pull });
    }
    if !pull.open {
        return Ok(pull);
    }
    let policy = world.store.pipeline(pull.repository)?.policy;
    let (untouched, pages) = touched::by_pull(world, handle, pull.number, &policy).await?;
    let pull = Pull { untouched, pages, ..pull };
    if pull.is_fork() {
        return Ok(pull);
    }
    match world.github.commit(handle, &pull.head).await {
        Ok(commit) => Ok(Pull { skip: asks_to_skip(&commit.message), ..pull }),
        Err(GitHubError::NotFound { .. }) => Ok(pull),
        Err(error) => Err(Trouble::github(&error, world.now())),
    }
}

async fn about(
    world: &World,
    record: DeliveryRecord,
    facts: RepositoryFacts,
    event: Event,
    before: Option<Sha>,
    updated_at: Option<crate::clock::Timestamp>,
    attempts: u32,
) -> Result<(), Trouble> {
    if event == Event::RepositoryGone {
        let Some(repository) = world.store.repository(facts.id)? else {
            return Ok(ignore(world, record, IgnoredBecause::NothingToDo).await?);
        };
        let changes = match read_repository(world, repository.installation, repository.id).await {
            Ok(_) if attempts < LATE_ANSWERS => return Err(answer_is_late()),
            Ok(_) => Vec::new(),
            Err(Trouble::NoAccess) => vec![Change::EndGrant],
            Err(trouble) => return Err(trouble),
        };
        finish(world, record, repository, changes).await?;
        act::refresh_routes(world).await;
        return Ok(());
    }
    let repository = known_repository(world, facts).await?;
    let handle = handle_of(&repository);
    let mut scaling = None;
    if let Event::Comment { comment, body, .. } = &event {
        // Whoever wrote it sees that it was read before anything is asked of GitHub for it.
        publish_pull::acknowledge(world, &handle, *comment).await;
        if mentioned_commands(body).iter().any(|command| matches!(command, Command::Scale { .. })) {
            scaling = Some(processes::alone(world).await);
        }
    }
    Box::pin(policy::read(world, &repository, &event)).await?;
    let event = read_again(world, &handle, event, before, updated_at, attempts).await?;
    let Some(event) = event else {
        return Ok(ignore(world, record, IgnoredBecause::NothingToDo).await?);
    };
    let snapshot = Box::pin(snapshot(world, repository.clone(), &event, &handle)).await?;
    let changes = decide(&event, &snapshot);
    let frees = changes.iter().any(|change| matches!(change, Change::Remove { key } if key.pull().is_some()));
    finish(world, record, repository.clone(), changes).await?;
    drop(scaling);
    if frees {
        // Found by the slow tick as well, only later.
        policy::look_at(world, &repository).await?;
    }
    Ok(())
}

/// So many times GitHub is asked again whose answer may be older than the event that it sent.
const LATE_ANSWERS: u32 = 5;

fn answer_is_late() -> Trouble {
    Trouble::retry_in(Duration::from_secs(2), "GitHub's answer is older than its event")
}

/// The truth behind the event; `None` when there is nothing left of it.
async fn read_again(
    world: &World,
    handle: &RepoHandle,
    event: Event,
    before: Option<Sha>,
    updated_at: Option<crate::clock::Timestamp>,
    attempts: u32,
) -> Result<Option<Event>, Trouble> {
    let now = world.now();
    match event {
        Event::PullChanged { pull } | Event::PullClosed { pull } => {
            let fresh = match world.github.pull(handle, pull.number).await {
                Ok(fresh) => fresh,
                Err(error) => return Err(Trouble::github(&error, now)),
            };
            // GitHub's answer may be older than the event that it sent: then the event is the better source, once
            // some time was given to the answer.
            let stale = matches!((fresh.updated_at, updated_at), (Some(read), Some(told)) if read < told);
            if stale && attempts < LATE_ANSWERS {
                return Err(answer_is_late());
            }
            let truth = if stale { pull } else { pull_of(handle.id, &fresh) };
            let truth = with_message(world, handle, truth).await?;
            Ok(Some(if truth.open { Event::PullChanged { pull: truth } } else { Event::PullClosed { pull: truth } }))
        }
        Event::BranchPushed { branch, commit } => {
            if !policy::is_followed(world, handle.id, &branch)? {
                return Ok(None);
            }
            match world.github.branch_head(handle, &branch).await {
                Ok(None) => Ok(None),
                Ok(Some(head)) if Some(&head) == before.as_ref() && head != commit && attempts < LATE_ANSWERS => {
                    Err(Trouble::retry_in(Duration::from_secs(2), "GitHub does not show the pushed commit yet"))
                }
                Ok(Some(head)) => Ok(Some(Event::BranchPushed { branch, commit: head })),
                Err(error) => Err(Trouble::github(&error, now)),
            }
        }
        // Most checks end while nobody waits for them: then nothing is asked of GitHub.
        Event::ChecksChanged { commit } if waiting_for(world, handle.id, &commit)?.is_none() => Ok(None),
        other => Ok(Some(other)),
    }
}

/// The branch of what staging wants to deploy, if that is this commit and it waits, or waited, for checks of others.
fn waiting_for(world: &World, id: RepositoryId, commit: &Sha) -> Result<Option<String>, Trouble> {
    let waits = |deploy: &Deploy| match &deploy.outcome {
        None => deploy.release.is_none(),
        Some(Outcome::Failed { failure, .. }) => matches!(failure, Failure::Checks { .. }),
        Some(_) => false,
    };
    if world.store.pipeline(id)?.policy.staging.wait_for == WaitFor::Own {
        return Ok(None);
    }
    let apps = world.store.apps_of(id)?;
    let newest = apps.iter().filter(|app| app.stage == Stage::Staging).filter_map(App::newest);
    let mut waiting = newest.filter(|deploy| deploy.commit == *commit && waits(deploy));
    Ok(waiting.next().map(|deploy| deploy.branch.clone()))
}

async fn snapshot(
    world: &World,
    repository: Repository,
    event: &Event,
    handle: &RepoHandle,
) -> Result<Snapshot, Trouble> {
    let number = match event {
        Event::PullChanged { pull } | Event::PullClosed { pull } => Some(pull.number),
        Event::Comment { pull, .. } => Some(*pull),
        _ => None,
    };
    let mut pull = match number {
        Some(number) => world.store.pull(repository.id, number)?,
        None => None,
    };
    if let Event::Comment { pull: number, .. } = event {
        // A comment says nothing about its pull request's state; the truth is GitHub's, as for every event.
        let fresh = world.github.pull(handle, *number).await;
        let fresh = pull_of(repository.id, &fresh.map_err(|error| Trouble::github(&error, world.now()))?);
        let fresh = with_message(world, handle, fresh).await?;
        let parked = pull.filter(|known| known.open).and_then(|known| known.parked);
        pull = Some(Pull { parked: parked.filter(|_| fresh.open), ..fresh });
    }
    let mut snapshot = Snapshot { pull, ..observe::known_of(world, &repository)? };
    for app in snapshot.apps.iter().filter(|app| app.pull().is_none() || app.pull() == number) {
        snapshot.releases.extend(world.store.releases(&app.name)?);
    }
    if let Some(number) = number {
        let answered = world.store.commands(repository.id, number)?;
        snapshot.answered = answered.iter().map(|record| (record.comment, record.place)).collect();
    }
    match event {
        Event::ChecksChanged { commit } => {
            if let Some(branch) = waiting_for(world, repository.id, commit)? {
                let wanted = snapshot.policy().staging.wait_for;
                snapshot.others = Some(checks::of_commit(world, &repository, &branch, commit, wanted).await?);
            }
        }
        Event::RerunAsked { commit, run, .. } => {
            if let Some(number) = run_again(commit, *run, &snapshot.runs).and_then(|run| run.pull) {
                snapshot.pull = world.store.pull(repository.id, number)?;
            }
        }
        Event::BranchPushed { branch, commit } => {
            snapshot.untouched = touched::by_push(world, &repository, branch, commit).await?;
        }
        Event::Comment { author, body, pull, .. } => {
            Box::pin(asked_for_commands(world, handle, author, body, *pull, &mut snapshot)).await?;
        }
        _ => {}
    }
    Ok(snapshot)
}

/// What GitHub and the other apps have to say about the commands of a comment.
async fn asked_for_commands(
    world: &World,
    handle: &RepoHandle,
    author: &str,
    body: &str,
    pull: PullNumber,
    snapshot: &mut Snapshot,
) -> Result<(), Trouble> {
    let commands = mentioned_commands(body);
    let policy = snapshot.policy().clone();
    if needs_right(&commands) {
        snapshot.right = policy::right(world, handle, author, &policy).await?;
    }
    for command in &commands {
        // What it does not mean is refused when it is decided on.
        let keys = targets(command, pull, snapshot).unwrap_or_default();
        let Some(key) = keys.first().copied() else { continue };
        match command {
            Command::Scale { .. } => {
                snapshot.scale_limits = Some(processes::limits(world, &snapshot.name_of(key))?);
            }
            Command::Promote { .. } => {
                let first = snapshot.pipeline.promotions.iter().find(|pending| pending.to == key.part);
                let first = first.map(|first| first.by.clone());
                if let Some(first) = &first
                    && let Some(right) = policy::right(world, handle, first, &policy).await?
                {
                    snapshot.first_rights.insert(first.clone(), right);
                }
                if let Some(known) = promotable(world, snapshot, key, author, first.as_deref()).await? {
                    snapshot.promotable.insert(key.part, known);
                }
            }
            Command::Rollback { .. } => snapshot.gone = observe::gone(world, &snapshot.releases),
            _ => {}
        }
    }
    Ok(())
}

/// What GitHub has to say about a promotion to an app of production; `None` where there is nothing to promote.
pub(super) async fn promotable(
    world: &World,
    snapshot: &Snapshot,
    production: AppKey,
    author: &str,
    first: Option<&str>,
) -> Result<Option<Promotable>, Trouble> {
    let staging = snapshot.app(snapshot.policy().source_of(production));
    let Some(live) = staging.and_then(App::live_deploy) else { return Ok(None) };
    let (repository, wanted) = (&snapshot.repository, snapshot.policy().production.wait_for);
    let others = checks::of_commit(world, repository, &live.branch, &live.commit, wanted).await?;
    let environment = production.environment();
    let protection = checks::protection(world, repository, &environment, &live.branch, author, first).await?;
    Ok(Some(Promotable { others, protection }))
}

/// The repository's record, made or brought up to date. What a delivery says of it is believed only where it is known
/// already: anything else is read from GitHub, since deliveries come late and out of order. Names change; the label
/// of its apps doesn't.
pub(super) async fn known_repository(world: &World, facts: RepositoryFacts) -> Result<Repository, Trouble> {
    let known = world.store.repository(facts.id)?;
    if let Some(known) = &known
        && known.granted
        && facts.default_branch.as_ref().is_none_or(|branch| *branch == known.default_branch)
        && (&facts.owner, &facts.name, facts.private) == (&known.owner, &known.name, known.private)
        && facts.installation.is_none_or(|installation| known.installation == Some(installation))
    {
        return Ok(known.clone());
    }
    let installation = facts.installation.or(known.and_then(|known| known.installation));
    read_repository(world, installation, facts.id).await
}

/// Asks GitHub for a repository's facts, and writes them down.
pub(super) async fn read_repository(
    world: &World,
    installation: Option<InstallationId>,
    id: RepositoryId,
) -> Result<Repository, Trouble> {
    let fresh = match world.github.repository_by_id(installation, id).await {
        Ok(fresh) => fresh,
        // What is not granted and what does not exist look the same from here.
        Err(GitHubError::NotFound { .. }) => return Err(Trouble::NoAccess),
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    let template = Repository {
        id,
        owner: fresh.owner,
        name: fresh.name,
        default_branch: fresh.default_branch,
        private: fresh.private,
        html_url: fresh.html_url,
        installation,
        label: String::new(),
        granted: true,
        missing_since: None,
    };
    if let Some(known) = world.store.repository(id)? {
        let same = Repository { label: known.label.clone(), ..template.clone() };
        if same == known {
            return Ok(known);
        }
    }
    Ok(world.commit(move |tx| put_repository(tx, template)).await?)
}

/// Writes a repository; one that is new gets its label.
fn put_repository(tx: &mut Transaction<'_>, mut repository: Repository) -> Result<Repository, StoreError> {
    let id = repository.id;
    repository.label = match tx.repository(id)? {
        Some(known) => known.label,
        None => choose_label(&repository.owner, &repository.name, |label| {
            tx.label_owner(label).ok().flatten().is_some_and(|owner| owner != id)
        }),
    };
    tx.put_repository(&repository)?;
    Ok(repository)
}

pub fn handle_of(repository: &Repository) -> RepoHandle {
    RepoHandle {
        installation: repository.installation,
        id: repository.id,
        owner: repository.owner.clone(),
        name: repository.name.clone(),
    }
}

async fn finish(
    world: &World,
    record: DeliveryRecord,
    repository: Repository,
    changes: Vec<Change>,
) -> Result<(), Trouble> {
    let fresh = fresh_for(world, &changes)?;
    let now = world.now();
    let decisions: Vec<String> = changes.iter().map(Change::summary).collect();
    for decision in &decisions {
        info!(delivery = %record.delivery.id, repository = %repository.full_name(), "decided: {decision}");
    }
    world
        .commit(move |tx| {
            let Some(mut record) = not_yet_applied(tx, &record.delivery.id)? else { return Ok(()) };
            apply(tx, &repository, &changes, fresh, now)?;
            record.delivery.state = if decisions.is_empty() {
                DeliveryState::Ignored { why: IgnoredBecause::NothingToDo, at: now }
            } else {
                DeliveryState::Applied { decisions, at: now }
            };
            tx.put_delivery(&record)
        })
        .await?;
    Ok(())
}

pub(super) fn fresh_for(world: &World, changes: &[Change]) -> Result<Fresh, Trouble> {
    let makes_app = |change: &&Change| matches!(change, Change::Deploy { .. } | Change::Hold { .. });
    let app_ids = changes.iter().filter(makes_app).map(|_| world.vault.random_hex(16)).collect::<Result<_, _>>()?;
    Ok(Fresh { app_ids })
}

/// The delivery as it is now, unless it was applied in the meantime: then nothing of it may happen again.
fn not_yet_applied(tx: &Transaction<'_>, id: &str) -> Result<Option<DeliveryRecord>, StoreError> {
    Ok(tx.delivery(id)?.filter(|record| {
        !matches!(record.delivery.state, DeliveryState::Applied { .. } | DeliveryState::Ignored { .. })
    }))
}

async fn ignore(world: &World, record: DeliveryRecord, why: IgnoredBecause) -> Result<(), StoreError> {
    change_state_to_ignored(world, record.delivery.id, why).await
}

async fn change_state_to_ignored(world: &World, id: String, why: IgnoredBecause) -> Result<(), StoreError> {
    let now = world.now();
    change_state(world, id, move |delivery| delivery.state = DeliveryState::Ignored { why, at: now }).await
}

pub(super) async fn note_retry(world: &World, id: &str, error: String, attempts: u32) -> Result<(), StoreError> {
    let now = world.now();
    change_state(world, id.to_owned(), move |delivery| {
        delivery.attempts = attempts;
        delivery.state = DeliveryState::Retrying { error, at: now };
    })
    .await
}

pub(super) async fn note_parked(world: &World, id: &str, error: String, attempts: u32) -> Result<(), StoreError> {
    let now = world.now();
    change_state(world, id.to_owned(), move |delivery| {
        delivery.attempts = attempts;
        delivery.state = DeliveryState::Parked { error, at: now };
    })
    .await
}

async fn change_state(
    world: &World,
    id: String,
    change: impl FnOnce(&mut Delivery) + Send + 'static,
) -> Result<(), StoreError> {
    world
        .commit(move |tx| {
            if let Some(mut record) = not_yet_applied(tx, &id)? {
                change(&mut record.delivery);
                tx.put_delivery(&record)?;
            }
            Ok(())
        })
        .await
}

/// Of the repositories that an installation is said to have lost, those that it does not have now: it may have got them
/// again before this was heard. Whoever may see a public repository need not have it, so the installation is asked for.
async fn lost(
    world: &World,
    installation: InstallationId,
    ended: &Ended,
    attempts: u32,
) -> Result<BTreeSet<RepositoryId>, Trouble> {
    let mut lost = BTreeSet::new();
    for repository in world.store.repositories()? {
        let said = match ended {
            Ended::Nowhere => false,
            Ended::Everywhere => true,
            Ended::For(lost) => lost.contains(&repository.id),
        };
        if !said || repository.installation != Some(installation) {
            continue;
        }
        match world.github.repository_installation(&repository.owner, &repository.name).await {
            Ok(found) if found == installation && attempts < LATE_ANSWERS => return Err(answer_is_late()),
            Ok(found) if found == installation => {}
            Ok(_) | Err(GitHubError::NotInstalled) => {
                lost.insert(repository.id);
            }
            Err(error) => return Err(Trouble::github(&error, world.now())),
        }
    }
    Ok(lost)
}

/// The installation got or lost repositories. Those that it got are known from now on, and looked at soon.
async fn installed(
    world: &World,
    record: DeliveryRecord,
    installation: InstallationId,
    added: Vec<RepoRef>,
    ended: Ended,
    attempts: u32,
) -> Result<(), Trouble> {
    world.github.installation_changed(installation);
    let lost = lost(world, installation, &ended, attempts).await?;
    let left = !lost.is_empty();
    let now = world.now();
    world
        .commit(move |tx| {
            let Some(mut record) = not_yet_applied(tx, &record.delivery.id)? else { return Ok(()) };
            let mut decisions = Vec::new();
            for repository in tx.repositories()? {
                if repository.installation != Some(installation) {
                    continue;
                }
                if lost.contains(&repository.id) {
                    let change = Change::EndGrant;
                    decisions.push(change.summary());
                    apply(tx, &repository, &[change], Fresh { app_ids: Vec::new() }, now)?;
                } else {
                    enqueue(tx, &Subject::Repository(repository.id), now)?;
                }
            }
            for new in &added {
                let Some((owner, name)) = new.full_name.split_once('/') else { continue };
                if tx.repository(new.id)?.is_none_or(|known| !known.granted) {
                    let repository = Repository {
                        id: new.id,
                        owner: owner.to_owned(),
                        name: name.to_owned(),
                        // Read with the rest before anything is decided by it.
                        default_branch: String::new(),
                        private: new.private,
                        html_url: String::new(),
                        installation: Some(installation),
                        label: String::new(),
                        granted: true,
                        missing_since: None,
                    };
                    put_repository(tx, repository)?;
                }
                decisions.push(format!("look at repository {}", new.id));
                enqueue(tx, &Subject::Repository(new.id), now)?;
            }
            record.delivery.state = if decisions.is_empty() {
                DeliveryState::Ignored { why: IgnoredBecause::NothingToDo, at: now }
            } else {
                DeliveryState::Applied { decisions, at: now }
            };
            tx.put_delivery(&record)
        })
        .await?;
    if left {
        // Their domains are free.
        act::refresh_routes(world).await;
    }
    Ok(())
}
