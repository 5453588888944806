//! Commit statuses.

use serde_json::json;

use super::repositories::resolve;
use super::{At, is_web_address, required, text_field};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::git::is_sha;
use crate::sim::state::Status;
use crate::sim::view;
use crate::sim::wire::{Answer, Outcome, Problem, page};

const READ: Need = read(&["statuses"]);

pub fn create(call: &mut Call<'_>, (owner, name): At<'_>, sha: &str) -> Outcome {
    let id = call.repository(owner, name, write(&["statuses"]))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let git = call.state.git_of(id)?;
    let state = required(&body, "Status", "state")?;
    if !["error", "failure", "pending", "success"].contains(&state.as_str()) {
        return Err(Problem::custom("Status", "state", "state is not included in the list"));
    }
    let description = text_field(&body, "description")?;
    if description.as_ref().is_some_and(|text| text.chars().count() > 140) {
        return Err(Problem::custom("Status", "description", "description is too long (maximum is 140 characters)"));
    }
    let target_url = text_field(&body, "target_url")?;
    if target_url.as_ref().is_some_and(|url| !url.is_empty() && !is_web_address(url)) {
        return Err(Problem::custom("Status", "target_url", "target_url must use http(s) scheme"));
    }
    let context = text_field(&body, "context")?.filter(|text| !text.is_empty()).unwrap_or_else(|| "default".into());
    if !is_sha(sha) || git.kind(sha).as_deref() != Some("commit") {
        return Err(Problem::new(422, format!("No commit found for SHA: {sha}")));
    }
    let record = call.state.repository(id)?;
    let many = record
        .statuses
        .iter()
        .filter(|status| status.sha == sha && status.context.eq_ignore_ascii_case(&context))
        .count();
    if many >= 1000 {
        return Err(Problem::custom(
            "Status",
            "base",
            "This SHA and context has reached the maximum number of statuses.",
        ));
    }
    let now = call.state.now();
    let status = Status {
        id: call.state.fresh_id(),
        sha: sha.to_owned(),
        state,
        description,
        target_url: target_url.filter(|url| !url.is_empty()),
        context,
        creator: who.account,
        created_at: now,
        updated_at: now,
    };
    call.state.repository_mut(id)?.statuses.push(status.clone());
    let commit = call.state.commit(&git, sha)?;
    let record = call.state.repository(id)?;
    let full_name = call.state.full_name(record);
    let branches: Vec<_> = record
        .known_refs
        .iter()
        .filter(|(_, tip)| *tip == sha)
        .filter_map(|(name, tip)| Some((name.strip_prefix("refs/heads/")?, tip)))
        .map(|(name, tip)| {
            json!({
                "name": name,
                "commit": {"sha": tip, "url": format!("{}/repos/{full_name}/commits/{tip}", call.state.base)},
                "protected": record.protection.contains_key(name),
            })
        })
        .collect();
    let fields = json!({
        "id": status.id,
        "sha": sha,
        "name": full_name,
        "avatar_url": format!("{}/_/avatar/{}", call.state.base, who.account),
        "target_url": status.target_url,
        "context": status.context,
        "description": status.description,
        "state": status.state,
        "commit": view::commits::commit(call.state, record, &commit),
        "branches": branches,
        "created_at": view::time(now),
        "updated_at": view::time(now),
    });
    let value = view::checks::status(call.state, record, &status);
    call.state.emit("status", None, id, who.account, fields);
    Answer::created(value)
}

pub fn list(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let sha = resolve(call.state, id, reference).ok_or_else(Problem::not_found)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let found: Vec<&Status> = record.statuses.iter().rev().filter(|status| status.sha == sha).collect();
    page(call.request, found, None, |status| view::checks::status(state, record, status))
}

pub fn combined(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let sha = resolve(call.state, id, reference).ok_or_else(Problem::not_found)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let latest = view::checks::latest_statuses(record, &sha);
    let word = view::checks::combined_state(&latest);
    let total = latest.len();
    let listed = page(call.request, latest, None, |status| view::checks::simple_status(state, record, status))?;
    let crate::sim::wire::Content::Json(statuses) = listed.content else { return Err(Problem::not_found()) };
    let api = format!("{}/repos/{}", state.base, state.full_name(record));
    let mut answer = Answer::json(
        200,
        json!({
            "state": word,
            "statuses": statuses,
            "sha": sha,
            "total_count": total,
            "repository": view::repository(state, record),
            "commit_url": format!("{api}/commits/{sha}"),
            "url": format!("{api}/commits/{sha}/status"),
        }),
    );
    answer.headers = listed.headers;
    Ok(answer)
}
