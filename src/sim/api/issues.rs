//! Issues (every pull request is one), comments, reactions and labels.

use serde_json::{Value, json};

use super::{At, app::METADATA, number, required, text_field, texts};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::events::Who;
use crate::sim::pulls as life;
use crate::sim::state::{Issue, Label, Reaction, Role};
use crate::sim::view::{self, pulls::REACTIONS};
use crate::sim::wire::{Answer, Outcome, Problem, page};

const READ: Need = read(&["issues", "pull_requests"]);
/// Everybody who can see a repository can comment in it.
const COMMENT: Need = write(&["issues", "pull_requests"]).for_role(Role::Read);
const TRIAGE: Need = write(&["issues", "pull_requests"]).for_role(Role::Triage);

fn find(call: &Call<'_>, id: u64, text: &str) -> Result<Issue, Problem> {
    let number = number(text)?;
    let record = call.state.repository(id)?;
    let issue = record.issues.get(&number).ok_or_else(Problem::not_found)?;
    if !record.has_issues && issue.pull.is_none() {
        return Err(Problem::new(410, "Issues are disabled for this repo"));
    }
    Ok(issue.clone())
}

pub fn list(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let wanted = call.request.query("state").unwrap_or("open");
    let labels: Vec<String> = call
        .request
        .query("labels")
        .map(|labels| labels.split(',').map(str::to_lowercase).collect())
        .unwrap_or_default();
    let found: Vec<&Issue> = record
        .issues
        .values()
        .rev()
        .filter(|issue| wanted == "all" || issue.open == (wanted == "open"))
        .filter(|issue| labels.iter().all(|label| issue.labels.iter().any(|own| own.to_lowercase() == *label)))
        .collect();
    page(call.request, found, None, |issue| view::pulls::issue(state, record, issue))
}

pub fn create(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    if !call.state.repository(id)?.has_issues {
        return Err(Problem::new(410, "Issues are disabled for this repo"));
    }
    let body = call.request.json()?;
    let title = required(&body, "Issue", "title")?;
    let number = life::new_issue(call.state, id, title, text_field(&body, "body")?, who, None)?;
    life::emit_issue(call.state, "opened", id, number, who);
    life::add_labels(call.state, id, number, &texts(&body["labels"]), who)?;
    let record = call.state.repository(id)?;
    let issue = record.issues.get(&number).ok_or_else(Problem::not_found)?;
    Answer::created(view::pulls::issue(call.state, record, issue))
}

pub fn get(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, issue)?;
    Answer::ok(view::pulls::issue(call.state, call.state.repository(id)?, &issue))
}

pub fn change(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, TRIAGE)?;
    let who = call.who()?;
    let found = find(call, id, issue)?;
    let body = call.request.json()?;
    let mut changes = json!({});
    let (title, text) = (text_field(&body, "title")?, text_field(&body, "body")?);
    super::pulls::edit_text(call.state, id, found.number, title, text, &mut changes)?;
    if body["labels"].is_array() {
        replace_labels(call, id, &found, &texts(&body["labels"]), who)?;
    }
    if changes.as_object().is_some_and(|changes| !changes.is_empty()) {
        if found.pull.is_some() {
            call.state.emit_pull("edited", id, found.number, who.account, json!({"changes": changes}))?;
        } else {
            life::emit_issue(call.state, "edited", id, found.number, who);
        }
    }
    match text_field(&body, "state")?.as_deref() {
        Some("closed") => life::close(call.state, id, found.number, who, None)?,
        Some("open") => life::reopen(call.state, id, found.number, who)?,
        _ => {}
    }
    get(call, (owner, name), issue)
}

pub fn comments(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, issue)?;
    let since = call.request.query("since").and_then(crate::sim::calendar::parse);
    let state = &*call.state;
    let record = state.repository(id)?;
    let found: Vec<_> = record
        .comments
        .values()
        .filter(|comment| comment.issue == issue.number && since.is_none_or(|since| comment.updated_at >= since))
        .collect();
    page(call.request, found, None, |comment| view::pulls::comment(state, record, comment))
}

pub fn all_comments(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let since = call.request.query("since").and_then(crate::sim::calendar::parse);
    let state = &*call.state;
    let record = state.repository(id)?;
    let found: Vec<_> =
        record.comments.values().filter(|comment| since.is_none_or(|since| comment.updated_at >= since)).collect();
    page(call.request, found, None, |comment| view::pulls::comment(state, record, comment))
}

pub fn create_comment(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    let issue = find(call, id, issue)?;
    let body = call.request.json()?;
    let text = text_field(&body, "body")?.ok_or_else(|| Problem::type_error("\"body\" wasn't supplied."))?;
    let comment = life::comment(call.state, id, issue.number, text, who)?;
    let record = call.state.repository(id)?;
    let comment = record.comments.get(&comment).ok_or_else(Problem::not_found)?;
    Answer::created(view::pulls::comment(call.state, record, comment))
}

pub fn comment(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let record = call.state.repository(id)?;
    let comment = record.comments.get(&number(comment)?).ok_or_else(Problem::not_found)?;
    Answer::ok(view::pulls::comment(call.state, record, comment))
}

/// Only its author and those who can write may change a comment.
fn may_edit(call: &Call<'_>, id: u64, comment: u64, who: Who) -> Result<(), Problem> {
    let record = call.state.repository(id)?;
    let found = record.comments.get(&comment).ok_or_else(Problem::not_found)?;
    if found.user == who.account || who.via_app || call.state.role(record, who.account) >= Role::Write {
        Ok(())
    } else {
        Err(Problem::new(403, "Must have admin rights to Repository."))
    }
}

pub fn change_comment(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    let comment = number(comment)?;
    may_edit(call, id, comment, who)?;
    let body = call.request.json()?;
    let text = text_field(&body, "body")?.ok_or_else(|| Problem::type_error("\"body\" wasn't supplied."))?;
    life::check_body("IssueComment", &text)?;
    let now = call.state.now();
    let found = call.state.repository_mut(id)?.comments.get_mut(&comment).ok_or_else(Problem::not_found)?;
    let before = std::mem::replace(&mut found.body, text);
    if before != found.body {
        found.updated_at = now;
        let changes = json!({"changes": {"body": {"from": before}}});
        life::emit_comment(call.state, "edited", id, comment, who, changes);
    }
    let record = call.state.repository(id)?;
    let found = record.comments.get(&comment).ok_or_else(Problem::not_found)?;
    Answer::ok(view::pulls::comment(call.state, record, found))
}

pub fn delete_comment(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    let comment = number(comment)?;
    may_edit(call, id, comment, who)?;
    life::emit_comment(call.state, "deleted", id, comment, who, json!({}));
    call.state.repository_mut(id)?.comments.remove(&comment);
    Answer::empty(204)
}

/// Adds a reaction to a list; the same person's same reaction is answered 200 and not doubled.
fn react(
    state: &mut crate::sim::state::State,
    body: &Value,
    who: Who,
    list: impl Fn(&mut crate::sim::state::State) -> Option<&mut Vec<Reaction>>,
) -> Outcome {
    let content = required(body, "Reaction", "content")?;
    if !REACTIONS.contains(&content.as_str()) {
        return Err(Problem::invalid("Reaction", "content", "invalid"));
    }
    let reaction = Reaction { id: state.fresh_id(), user: who.account, content, created_at: state.now() };
    let reactions = list(state).ok_or_else(Problem::not_found)?;
    let known =
        reactions.iter().find(|known| known.user == reaction.user && known.content == reaction.content).cloned();
    match known {
        Some(known) => Answer::ok(view::pulls::reaction(state, &known)),
        None => {
            reactions.push(reaction.clone());
            Ok(Answer::json(201, view::pulls::reaction(state, &reaction)))
        }
    }
}

pub fn comment_reactions(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let state = &*call.state;
    let found = state.repository(id)?.comments.get(&number(comment)?).ok_or_else(Problem::not_found)?;
    page(call.request, found.reactions.iter().collect(), None, |reaction| view::pulls::reaction(state, reaction))
}

pub fn react_to_comment(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    let comment = number(comment)?;
    let body = call.request.json()?;
    react(call.state, &body, who, |state| {
        Some(&mut state.repositories.get_mut(&id)?.comments.get_mut(&comment)?.reactions)
    })
}

pub fn delete_comment_reaction(call: &mut Call<'_>, (owner, name): At<'_>, comment: &str, reaction: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let reaction = number(reaction)?;
    let found = call.state.repository_mut(id)?.comments.get_mut(&number(comment)?).ok_or_else(Problem::not_found)?;
    let before = found.reactions.len();
    found.reactions.retain(|known| known.id != reaction);
    if found.reactions.len() == before { Err(Problem::not_found()) } else { Answer::empty(204) }
}

pub fn issue_reactions(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, issue)?;
    let state = &*call.state;
    page(call.request, issue.reactions, None, |reaction| view::pulls::reaction(state, &reaction))
}

pub fn react_to_issue(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, COMMENT)?;
    let who = call.who()?;
    let issue = find(call, id, issue)?.number;
    let body = call.request.json()?;
    react(call.state, &body, who, |state| Some(&mut state.repositories.get_mut(&id)?.issues.get_mut(&issue)?.reactions))
}

fn label_list(call: &Call<'_>, id: u64, issue: u64) -> Outcome {
    let state = &*call.state;
    let record = state.repository(id)?;
    let issue = record.issues.get(&issue).ok_or_else(Problem::not_found)?;
    let labels: Vec<&Label> = issue.labels.iter().filter_map(|name| record.labels.get(&name.to_lowercase())).collect();
    page(call.request, labels, None, |label| view::pulls::label(state, record, label))
}

pub fn labels(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, issue)?;
    label_list(call, id, issue.number)
}

/// The labels of a body: `{"labels": [...]}`, by name or as objects, or a bare list.
fn named_labels(call: &Call<'_>) -> Result<Vec<String>, Problem> {
    let value: Value =
        serde_json::from_slice(&call.request.body).map_err(|_| Problem::new(400, "Problems parsing JSON"))?;
    let list = value.as_array().or_else(|| value["labels"].as_array()).cloned().unwrap_or_default();
    let names: Vec<String> =
        list.iter().filter_map(|item| item.as_str().or_else(|| item["name"].as_str()).map(str::to_owned)).collect();
    if names.iter().any(|name| name.is_empty() || name.chars().count() > 50) {
        return Err(Problem::invalid("Label", "name", "invalid"));
    }
    Ok(names)
}

pub fn add_labels(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, TRIAGE)?;
    let who = call.who()?;
    let issue = find(call, id, issue)?.number;
    let names = named_labels(call)?;
    life::add_labels(call.state, id, issue, &names, who)?;
    label_list(call, id, issue)
}

pub fn set_labels(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str) -> Outcome {
    let id = call.repository(owner, name, TRIAGE)?;
    let who = call.who()?;
    let found = find(call, id, issue)?;
    let names = named_labels(call)?;
    replace_labels(call, id, &found, &names, who)?;
    label_list(call, id, found.number)
}

fn replace_labels(call: &mut Call<'_>, id: u64, issue: &Issue, names: &[String], who: Who) -> Result<(), Problem> {
    for old in &issue.labels {
        if !names.iter().any(|name| name.eq_ignore_ascii_case(old)) {
            drop_label(call, id, issue.number, old, who)?;
        }
    }
    life::add_labels(call.state, id, issue.number, names, who)
}

fn drop_label(call: &mut Call<'_>, id: u64, number: u64, label: &str, who: Who) -> Result<(), Problem> {
    let issue = call.state.repository_mut(id)?.issues.get_mut(&number).ok_or_else(Problem::not_found)?;
    let before = issue.labels.len();
    issue.labels.retain(|known| !known.eq_ignore_ascii_case(label));
    if issue.labels.len() == before {
        return Err(Problem::new(404, "Label does not exist"));
    }
    Ok(life::emit_labeled(call.state, "unlabeled", id, number, label, who)?)
}

pub fn remove_label(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str, label: &str) -> Outcome {
    let id = call.repository(owner, name, TRIAGE)?;
    let who = call.who()?;
    let issue = find(call, id, issue)?.number;
    drop_label(call, id, issue, label, who)?;
    label_list(call, id, issue)
}

pub fn lock(call: &mut Call<'_>, (owner, name): At<'_>, issue: &str, locked: bool) -> Outcome {
    let id = call.repository(owner, name, TRIAGE.for_role(Role::Write))?;
    let issue = find(call, id, issue)?.number;
    if let Some(issue) = call.state.repository_mut(id)?.issues.get_mut(&issue) {
        issue.locked = locked;
    }
    Answer::empty(204)
}

pub fn repository_labels(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, record.labels.values().collect(), None, |label| view::pulls::label(state, record, label))
}

pub fn create_label(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, TRIAGE.for_role(Role::Write))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let label = required(&body, "Label", "name")?;
    if call.state.repository(id)?.labels.contains_key(&label.to_lowercase()) {
        return Err(Problem::invalid("Label", "name", "already_exists"));
    }
    life::ensure_label(call.state, id, &label, who)?;
    let (color, description) = (text_field(&body, "color")?, text_field(&body, "description")?);
    if let Some(found) = call.state.repository_mut(id)?.labels.get_mut(&label.to_lowercase()) {
        found.color = color.map_or_else(|| "ededed".to_owned(), |color| color.trim_start_matches('#').to_owned());
        found.description = description;
    }
    let record = call.state.repository(id)?;
    let found = record.labels.get(&label.to_lowercase()).ok_or_else(Problem::not_found)?;
    Answer::created(view::pulls::label(call.state, record, found))
}
