//! What people see of a pull request: the one comment, and the reactions on commands.

use super::deliver::handle_of;
use super::publish::{Thing, accepted, fingerprint, is_told, make_once, refused, reportable};
use super::{Trouble, World, answer, shipment};
use crate::domain::*;
use crate::github::writes::{CommentId, Reaction as Sent};
use crate::github::{GitHubError, RepoHandle};
use crate::store::Reported;
use crate::workflow::{self, CommentView, PullView, Reaction};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use tracing::warn;

/// By which a comment of ours is known again, besides its author.
pub const MARKER: &str = "<!-- landfall -->";

pub(super) async fn pull(world: &World, id: RepositoryId, number: PullNumber) -> Result<(), Trouble> {
    let Some(repository) = reportable(world, id)? else { return Ok(()) };
    let Some(view) = view(world, &repository, number)? else { return Ok(()) };
    let handle = handle_of(&repository);
    let mut first_trouble = None;
    // A comment that can't be written is no reason to leave a command without its answer.
    for reaction in workflow::reactions(&view) {
        if let Err(trouble) = react(world, &handle, &reaction).await {
            first_trouble.get_or_insert(trouble);
        }
    }
    if let Some(wanted) = workflow::comment_view(&view)
        && let Err(trouble) = comment(world, &handle, number, &wanted).await
    {
        first_trouble.get_or_insert(trouble);
    }
    if let Err(trouble) = answer::threads(world, &repository, &handle, &view).await {
        first_trouble.get_or_insert(trouble);
    }
    first_trouble.map_or(Ok(()), Err)
}

fn view(world: &World, repository: &Repository, number: PullNumber) -> Result<Option<PullView>, Trouble> {
    let Some(pull) = world.store.pull(repository.id, number)? else { return Ok(None) };
    let mut other_apps = 0;
    let mut apps = world.store.apps_where(|app| {
        let own = app.repository == repository.id;
        other_apps += usize::from(own && workflow::is_other_review_app(app, number));
        own && app.pull().is_none_or(|pull| pull == number)
    })?;
    apps.sort_by_key(App::key);
    let of = |kind: StageKind| apps.iter().filter(|app| app.stage.kind() == kind).cloned().collect::<Vec<App>>();
    let commands = world.store.commands(repository.id, number)?;
    let mut command_runs = Vec::new();
    for record in &commands {
        if let Answer::Testing { run } = record.answer {
            command_runs.extend(world.store.run(run)?);
        }
    }
    let mut runs: BTreeMap<Part, TestRun> = BTreeMap::new();
    let of_head =
        |run: &RunOutline| run.repository == repository.id && run.pull == Some(number) && run.commit == pull.head;
    for outline in world.store.runs_where(of_head)? {
        // Oldest first, so the newest of each folder is what stays.
        if let Some(run) = world.store.run(outline.number)? {
            runs.insert(run.part, run);
        }
    }
    let review = of(StageKind::Review);
    let mut addons = Vec::new();
    for app in review.iter().filter(|app| app.wanted == Wanted::Running) {
        addons.extend(world.store.addons_of(&AddonOwner::of(app))?.iter().filter_map(Addon::remark));
    }
    Ok(Some(PullView {
        review,
        addons,
        staging: of(StageKind::Staging),
        production: of(StageKind::Production),
        state: world.store.pipeline(repository.id)?,
        now: world.now(),
        other_apps,
        shipments: shipment::of_pull(world, repository, number)?,
        pull,
        runs: runs.into_values().collect(),
        commands,
        command_runs,
        repository: repository.full_name(),
        farewell: world.store.farewell(repository.id, number)?,
    }))
}

/// The addresses that the comment links to.
#[derive(Serialize)]
struct Links {
    apps: BTreeMap<AppName, String>,
    dashboard: String,
}

fn render(world: &World, wanted: &CommentView) -> String {
    let lines = wanted.apps.iter().chain(&wanted.stages);
    let apps = lines.map(|line| (line.name.clone(), world.app_url(&line.name))).collect();
    let links = Links { apps, dashboard: world.config.page("") };
    let text = world.texts.render("comment.md", json!({ "view": wanted, "links": links }));
    format!("{MARKER}\n{}", text.trim())
}

async fn comment(world: &World, repo: &RepoHandle, number: PullNumber, wanted: &CommentView) -> Result<(), Trouble> {
    let body = render(world, wanted);
    let key = format!("comment/{}/{number}", repo.id);
    let print = fingerprint(&[&body]);
    let known = world.store.reported(&key)?;
    if is_told(world, known.as_ref(), &print) {
        return Ok(());
    }
    let known_id = known.as_ref().and_then(|known| known.github_id);
    let wish = Thing::Comment { pull: number, marker: MARKER, body: &body };
    let Some(id) = make_once(world, repo, &key, &wish, &print).await? else { return Ok(()) };
    // What was just made says all this already; what was known or found may say something older.
    if known_id.is_some() || known.is_some() {
        match world.github.update_comment(repo, CommentId(id), &body).await {
            Ok(()) => {}
            Err(GitHubError::NotFound { .. }) if known_id.is_some() => {
                // A person deleted it: the next look writes a new one.
                world.commit(move |tx| tx.put_reported(&key, &Reported::default())).await?;
                return Err(Trouble::retry("the comment was deleted on GitHub"));
            }
            Err(error) => return refused(world, &key, Some(id), print, &error).await,
        }
    }
    accepted(world, &key, id, print).await
}

/// Says at once that a comment was read. What can't be said now is said with the answer.
pub(super) async fn acknowledge(world: &World, repo: &RepoHandle, comment: u64) {
    if let Err(trouble) = react(world, repo, &Reaction { comment, content: "eyes" }).await {
        warn!(comment, "the comment could not be acknowledged yet: {trouble}");
    }
}

async fn react(world: &World, repo: &RepoHandle, reaction: &Reaction) -> Result<(), Trouble> {
    let key = format!("reaction/{}/{}/{}", repo.id, reaction.comment, reaction.content);
    if world.store.reported(&key)?.is_some() {
        return Ok(());
    }
    let content = match reaction.content {
        "rocket" => Sent::Rocket,
        "-1" => Sent::ThumbsDown,
        "+1" => Sent::ThumbsUp,
        "confused" => Sent::Confused,
        _ => Sent::Eyes,
    };
    // The same reaction again changes nothing, so this may be repeated.
    match world.github.react(repo, reaction.comment, content).await {
        Ok(()) | Err(GitHubError::NotFound { .. }) => {}
        Err(error) => return refused(world, &key, None, String::new(), &error).await,
    }
    accepted(world, &key, 0, String::new()).await
}
