//! Answers that stand in the thread: comments of their own, made once for each command, beside the sticky one.

use super::observe::{self, label};
use super::publish::{Thing, accepted, fingerprint, is_told, make_once};
use super::{Trouble, World};
use crate::domain::*;
use crate::github::RepoHandle;
use crate::platform::State;
use crate::workflow::PullView;
use serde_json::{Value, json};

pub(super) async fn threads(
    world: &World,
    repository: &Repository,
    handle: &RepoHandle,
    view: &PullView,
) -> Result<(), Trouble> {
    for record in &view.commands {
        let key = format!("answer/{}/{}/{}", repository.id, record.comment, record.place);
        // The sticky comment's mark must not stand in it. Said is said: only whether it was is looked at, not how.
        let marker = format!("<!-- landfall-answer {}.{} -->", record.comment, record.place);
        if is_told(world, world.store.reported(&key)?.as_ref(), &fingerprint(&[&marker])) {
            continue;
        }
        let Some(content) = content(world, repository, record, view).await? else { continue };
        let text = world.texts.render("answer.md", content);
        let print = fingerprint(&[&marker]);
        let body = format!("{marker}\n{}", text.trim());
        let thing = Thing::Comment { pull: record.pull, marker: &marker, body: &body };
        if let Some(id) = make_once(world, handle, &key, &thing, &print).await? {
            accepted(world, &key, id, print).await?;
        }
    }
    Ok(())
}

/// `None` where nothing (or nothing yet) is to be said.
async fn content(
    world: &World,
    repository: &Repository,
    record: &CommandRecord,
    view: &PullView,
) -> Result<Option<Value>, Trouble> {
    Ok(match (&record.command, &record.answer) {
        (Command::Help, Answer::Helped) => Some(json!({ "part": "help" })),
        (Command::Status, Answer::Told) => {
            let apps = view.review.iter().chain(&view.staging).chain(&view.production);
            let lines: Vec<_> = apps.filter_map(crate::workflow::app_line).collect();
            Some(json!({ "part": "status", "apps": lines }))
        }
        (Command::Logs { lines }, Answer::Told) => {
            let apps: Vec<AppName> = view.review.iter().map(|app| app.name.clone()).collect();
            let lines = last_lines(world, &apps, usize::from(*lines)).await?;
            let names: Vec<&str> = apps.iter().map(AppName::as_str).collect();
            Some(json!({ "part": "logs", "app": names.join(", "), "lines": lines }))
        }
        (Command::Promote { .. } | Command::RetryRelease { .. }, Answer::Deploying { app, deploy }) => {
            let production = view.production.iter().find(|production| production.name == *app);
            let release =
                production.and_then(|production| production.deploy(*deploy)).and_then(|deploy| deploy.release);
            let Some(shipment) = release.map(|release| world.store.shipment(app, release)).transpose()?.flatten()
            else {
                return Ok(None);
            };
            let pulls: Vec<Value> = shipment
                .pulls
                .iter()
                .map(|pull| {
                    json!({
                        "number": pull.number,
                        "title": pull.title,
                        "author": pull.author,
                        "seconds": pull.merged_at.map(|merged| shipment.at.since(merged).as_secs()),
                    })
                })
                .collect();
            let from = shipment.from.as_ref().map(ToString::to_string).unwrap_or_default();
            let compare = format!("{}/compare/{from}...{}", repository.html_url.trim_end_matches('/'), shipment.to);
            Some(json!({ "part": "shipped", "shipment": shipment, "pulls": pulls, "compare": compare }))
        }
        _ => None,
    })
}

/// The newest lines of what the live processes of these apps print.
async fn last_lines(world: &World, apps: &[AppName], most: usize) -> Result<Vec<String>, Trouble> {
    let mut lines = Vec::new();
    for status in observe::list(world).await? {
        let name = status.labels.get(label::APP);
        let Some(app) = apps.iter().find(|app| name.map(String::as_str) == Some(app.as_str())) else { continue };
        let whose = if apps.len() > 1 { format!("{app} ") } else { String::new() };
        if !matches!(status.state, State::Starting | State::Running { .. }) {
            continue;
        }
        let secrets = observe::secrets_of(world, &status)?;
        for line in observe::all_lines(world, &status.id).await? {
            let text = observe::shown(&line.text, secrets.as_ref());
            lines.push((line.at, format!("{whose}{}: {text}", status.name)));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    let skipped = lines.len().saturating_sub(most);
    Ok(lines.into_iter().skip(skipped).map(|(_, text)| text).collect())
}
