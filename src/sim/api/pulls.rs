//! Pull requests.

use serde_json::{Value, json};

use super::{At, bool_field, number, required, text_field};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::git::{Signature, is_sha};
use crate::sim::pulls::{self as life, Opening};
use crate::sim::state::{Issue, Review, Role};
use crate::sim::view::pulls::Mergeability;
use crate::sim::wire::{Answer, Outcome, Problem, page};
use crate::sim::{refs, view};

const READ: Need = read(&["pull_requests"]);
const WRITE: Need = write(&["pull_requests"]);

fn find<'a>(call: &'a Call<'_>, id: u64, number: u64) -> Result<&'a Issue, Problem> {
    call.state.repository(id)?.issues.get(&number).filter(|issue| issue.pull.is_some()).ok_or_else(Problem::not_found)
}

pub fn list(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let query = |name: &str| call.request.query(name);
    let wanted = query("state").unwrap_or("open");
    if !["open", "closed", "all"].contains(&wanted) {
        return Err(Problem::invalid("PullRequest", "state", "invalid"));
    }
    let mut found: Vec<&Issue> = record
        .issues
        .values()
        .filter(|issue| wanted == "all" || issue.open == (wanted == "open"))
        .filter(|issue| {
            issue.pull.as_ref().is_some_and(|pull| {
                let label = format!("{}:{}", state.login(pull.head_owner), pull.head_ref);
                query("base").is_none_or(|base| pull.base_ref == base)
                    && query("head").is_none_or(|head| !head.contains(':') || label.eq_ignore_ascii_case(head))
            })
        })
        .collect();
    let ascending = match (query("direction"), query("sort")) {
        (Some(direction), _) => direction == "asc",
        (None, _) => false,
    };
    match query("sort") {
        Some("updated") => found.sort_by_key(|issue| (issue.updated_at, issue.number)),
        _ => found.sort_by_key(|issue| issue.number),
    }
    if !ascending {
        found.reverse();
    }
    page(call.request, found, None, |issue| {
        view::pulls::pull_simple(state, record, issue.number).unwrap_or(Value::Null)
    })
}

pub fn get(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let pull = number(pull)?;
    let head = find(call, id, pull)?.pull.as_ref().map(|pull| (pull.base_sha.clone(), pull.head_sha.clone()));
    if let Some((base, head)) = head.filter(|_| call.request.wants("diff")) {
        let git = call.state.git_of(id)?;
        let from = git.merge_base(&base, &head).unwrap_or(base);
        let text = git.run(&["diff-tree", "-r", "-M", "-p", "--no-color", &from, &head])?;
        return Ok(Answer::bytes(200, "application/vnd.github.diff; charset=utf-8", text));
    }
    let told = if call.state.unknown_merges > 0 { Mergeability::Unknown } else { Mergeability::Computed };
    call.state.unknown_merges = call.state.unknown_merges.saturating_sub(1);
    Answer::ok(view::pulls::pull(call.state, id, pull, told)?)
}

pub fn create(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE.for_role(Role::Read))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let title = required(&body, "PullRequest", "title")?;
    let head = required(&body, "PullRequest", "head")?;
    let base_ref = required(&body, "PullRequest", "base")?;
    let (head_repository, head_ref) = match head.split_once(':') {
        None => (id, head.clone()),
        Some((owner, branch)) => {
            let invalid = || Problem::invalid("PullRequest", "head", "invalid");
            let account = call.state.find_account(owner).ok_or_else(invalid)?;
            let found = call
                .state
                .repositories
                .values()
                .find(|record| record.owner == account && (record.id == id || record.fork_of == Some(id)));
            (found.ok_or_else(invalid)?.id, branch.to_owned())
        }
    };
    let opening = Opening {
        title,
        body: text_field(&body, "body")?,
        head_repository,
        head_ref,
        base_ref,
        draft: bool_field(&body, "draft")?.unwrap_or(false),
        maintainer_can_modify: bool_field(&body, "maintainer_can_modify")?.unwrap_or(true),
    };
    let number = life::open(call.state, id, opening, who)?;
    Answer::created(view::pulls::pull(call.state, id, number, Mergeability::Unknown)?)
}

pub fn change(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE.for_role(Role::Read))?;
    let who = call.who()?;
    let pull = number(pull)?;
    let issue = find(call, id, pull)?;
    let is_author = issue.user == who.account;
    let record = call.state.repository(id)?;
    if !who.via_app && !is_author && call.state.role(record, who.account) < Role::Write {
        return Err(Problem::new(403, "Must have push access to Repository."));
    }
    let body = call.request.json()?;
    let (title, text) = (text_field(&body, "title")?, text_field(&body, "body")?);
    let base = text_field(&body, "base")?;
    let wanted = text_field(&body, "state")?;
    if wanted.as_deref().is_some_and(|state| state != "open" && state != "closed") {
        return Err(Problem::invalid("PullRequest", "state", "invalid"));
    }
    let mut changes = json!({});
    if let Some(base) = &base {
        let tip = record
            .known_refs
            .get(&format!("refs/heads/{base}"))
            .cloned()
            .ok_or_else(|| Problem::invalid("PullRequest", "base", "invalid"))?;
        if let Some(record) = call.state.repository_mut(id)?.issues.get_mut(&pull).and_then(|issue| issue.pull.as_mut())
            && record.base_ref != *base
        {
            changes["base"] = json!({"ref": {"from": record.base_ref}, "sha": {"from": record.base_sha}});
            record.base_ref = base.clone();
            record.base_sha = tip;
        }
    }
    edit_text(call.state, id, pull, title, text, &mut changes)?;
    if changes.get("base").is_some() {
        life::write_refs(call.state, id, pull)?;
    }
    if changes.as_object().is_some_and(|changes| !changes.is_empty()) {
        call.state.emit_pull("edited", id, pull, who.account, json!({"changes": changes}))?;
    }
    match wanted.as_deref() {
        Some("closed") => life::close(call.state, id, pull, who, None)?,
        Some("open") => life::reopen(call.state, id, pull, who)?,
        _ => {}
    }
    Answer::ok(view::pulls::pull(call.state, id, pull, Mergeability::Computed)?)
}

/// Changes title and body of an issue or pull request, noting what was there before.
pub fn edit_text(
    state: &mut crate::sim::state::State,
    id: u64,
    number: u64,
    title: Option<String>,
    body: Option<String>,
    changes: &mut Value,
) -> Result<(), Problem> {
    let now = state.now();
    let issue = state.repository_mut(id)?.issues.get_mut(&number).ok_or_else(Problem::not_found)?;
    if let Some(title) = title.filter(|title| *title != issue.title) {
        if title.trim().is_empty() {
            return Err(Problem::invalid("PullRequest", "title", "missing_field"));
        }
        changes["title"] = json!({"from": issue.title});
        issue.title = title;
        issue.updated_at = now;
    }
    if let Some(body) = body.filter(|body| Some(body) != issue.body.as_ref()) {
        changes["body"] = json!({"from": issue.body.clone().unwrap_or_default()});
        issue.body = Some(body);
        issue.updated_at = now;
    }
    Ok(())
}

pub fn files(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, number(pull)?)?;
    let Some(pull) = issue.pull.clone() else { return Err(Problem::not_found()) };
    let git = call.state.git_of(id)?;
    let from = git.merge_base(&pull.base_sha, &pull.head_sha).unwrap_or_else(|| pull.base_sha.clone());
    let mut changes = git.difference(&from, &pull.head_sha, true)?;
    changes.truncate(3000);
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, changes, None, |change| view::commits::file(state, record, &pull.head_sha, &change))
}

pub fn commits(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, number(pull)?)?;
    let Some(pull) = issue.pull.clone() else { return Err(Problem::not_found()) };
    let git = call.state.git_of(id)?;
    let mut shas = git.list(&[&pull.head_sha], &[&pull.base_sha], None, 250)?;
    shas.reverse();
    let commits = call.state.commit_list(&git, &shas)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, commits, None, |commit| view::commits::commit(state, record, &commit))
}

pub fn of_commit(call: &mut Call<'_>, (owner, name): At<'_>, sha: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let git = call.state.git_of(id)?;
    if !is_sha(sha) || !git.has(sha) {
        return Err(Problem::new(422, format!("No commit found for SHA: {sha}")));
    }
    let state = &*call.state;
    let record = state.repository(id)?;
    let found: Vec<u64> = record
        .issues
        .values()
        .filter_map(|issue| issue.pull.as_ref().map(|pull| (issue.number, pull)))
        .filter(|(_, pull)| {
            pull.merge_commit.as_deref() == Some(sha)
                || pull.head_sha == sha
                || (git.is_ancestor(sha, &pull.head_sha) && !git.is_ancestor(sha, &pull.base_sha))
        })
        .map(|(number, _)| number)
        .collect();
    page(call.request, found, None, |number| view::pulls::pull_simple(state, record, number).unwrap_or(Value::Null))
}

pub fn is_merged(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let issue = find(call, id, number(pull)?)?;
    if issue.pull.as_ref().is_some_and(|pull| pull.merged_at.is_some()) {
        Answer::empty(204)
    } else {
        Err(Problem::not_found())
    }
}

pub fn merge(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, write(&["contents"]))?;
    let who = call.who()?;
    let pull = number(pull)?;
    let body = call.request.json()?;
    let head = find(call, id, pull)?.pull.as_ref().map(|pull| pull.head_sha.clone()).unwrap_or_default();
    if let Some(sha) = text_field(&body, "sha")? {
        if !is_sha(&sha) {
            return Err(Problem::new(422, "sha is not a full commit SHA"));
        }
        if sha != head {
            return Err(Problem::new(409, "Head branch was modified. Review and try the merge again."));
        }
    }
    let method = text_field(&body, "merge_method")?.unwrap_or_else(|| "merge".to_owned());
    if !["merge", "squash", "rebase"].contains(&method.as_str()) {
        return Err(Problem::invalid("PullRequest", "merge_method", "invalid"));
    }
    if let Some(tree) = view::pulls::merge_result(call.state, id, pull)? {
        let tip = life::base_tip(call.state, id, pull)?;
        call.guard_workflows(&call.state.git_of(id)?, &tip, &tree)?;
    }
    let (title, message) = (text_field(&body, "commit_title")?, text_field(&body, "commit_message")?);
    let sha = life::merge(call.state, id, pull, &method, title.as_deref(), message.as_deref(), who)?;
    Answer::ok(json!({"sha": sha, "merged": true, "message": "Pull Request successfully merged"}))
}

/// Merges the base branch into the head branch.
pub fn update_branch(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE.for_role(Role::Read))?;
    let who = call.who()?;
    let pull_number = number(pull)?;
    let issue = find(call, id, pull_number)?;
    let Some(pull) = issue.pull.clone() else { return Err(Problem::not_found()) };
    let body = call.request.json()?;
    if text_field(&body, "expected_head_sha")?.is_some_and(|expected| expected != pull.head_sha) {
        return Err(Problem::new(422, "expected head sha didn't match current head ref."));
    }
    let head_repository = pull.head_repository.ok_or_else(|| Problem::new(422, "The head repository is gone."))?;
    let tip = life::base_tip(call.state, id, pull_number)?;
    let git = call.state.git_of(id)?;
    if git.is_ancestor(&tip, &pull.head_sha) {
        return Err(Problem::new(422, "There are no new commits on the base branch."));
    }
    let tree = git
        .merge_tree(&pull.head_sha, &tip, None)?
        .ok_or_else(|| Problem::new(422, "merge conflict between base and head"))?;
    let login = call.state.login(who.account).to_owned();
    let author = Signature { email: refs::noreply(&login), name: login, date: call.state.now() };
    let message = format!("Merge branch '{}' into {}", pull.base_ref, pull.head_ref);
    let commit = git.commit_tree(&tree, &[&pull.head_sha, &tip], &message, &author, &author)?;
    let branch = format!("refs/heads/{}", pull.head_ref);
    if head_repository == id {
        git.update_ref(&branch, &commit, Some(&pull.head_sha))?;
    } else {
        git.update_ref(&format!("refs/landfall-sim/update-{commit}"), &commit, None)?;
        call.state.git_of(head_repository)?.fetch(&git.directory, &commit, &branch)?;
    }
    refs::settle(call.state, head_repository, who)?;
    let url = format!("{}/repos/{owner}/{name}/pulls/{pull_number}", call.state.base);
    Ok(Answer::json(202, json!({"message": "Updating pull request branch.", "url": url})))
}

pub fn reviews(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let pull = number(pull)?;
    let reviews = find(call, id, pull)?.pull.as_ref().map(|record| record.reviews.clone()).unwrap_or_default();
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, reviews, None, |review| view::pulls::review(state, record, pull, &review))
}

pub fn create_review(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE.for_role(Role::Read))?;
    let who = call.who()?;
    let pull = number(pull)?;
    find(call, id, pull)?;
    let body = call.request.json()?;
    let word = match text_field(&body, "event")?.as_deref() {
        Some("APPROVE") => "APPROVED",
        Some("REQUEST_CHANGES") => "CHANGES_REQUESTED",
        Some("COMMENT") => "COMMENTED",
        None => "PENDING",
        Some(_) => return Err(Problem::invalid("PullRequestReview", "event", "invalid")),
    };
    let text = text_field(&body, "body")?.unwrap_or_default();
    let (review_id, now) = (call.state.fresh_id(), call.state.now());
    let record = call.state.repository_mut(id)?;
    let Some(found) = record.issues.get_mut(&pull).and_then(|issue| issue.pull.as_mut()) else {
        return Err(Problem::not_found());
    };
    let review = Review {
        id: review_id,
        user: who.account,
        state: word.to_owned(),
        body: text,
        commit: found.head_sha.clone(),
        submitted_at: now,
    };
    found.reviews.push(review.clone());
    emit_review(call.state, id, pull, &review, who)?;
    Answer::ok(view::pulls::review(call.state, call.state.repository(id)?, pull, &review))
}

pub fn emit_review(
    state: &mut crate::sim::state::State,
    id: u64,
    pull: u64,
    review: &Review,
    who: crate::sim::events::Who,
) -> Result<(), Problem> {
    let record = state.repository(id)?;
    let mut value = view::pulls::review(state, record, pull, review);
    // Webhooks write the state in lower case, answers in upper case.
    value["state"] = json!(review.state.to_lowercase());
    let simple = view::pulls::pull_simple(state, record, pull)?;
    let fields = json!({"review": value, "pull_request": simple});
    state.emit("pull_request_review", Some("submitted"), id, who.account, fields);
    Ok(())
}

/// GitHub has this only in GraphQL; here it is a call, so that tests and pages can do it.
pub fn set_draft(call: &mut Call<'_>, (owner, name): At<'_>, pull: &str, draft: bool) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let pull = number(pull)?;
    find(call, id, pull)?;
    change_draft(call.state, id, pull, draft, who)?;
    Answer::ok(view::pulls::pull(call.state, id, pull, Mergeability::Computed)?)
}

pub fn change_draft(
    state: &mut crate::sim::state::State,
    id: u64,
    pull: u64,
    draft: bool,
    who: crate::sim::events::Who,
) -> Result<(), Problem> {
    let record = state.repository_mut(id)?;
    let Some(found) = record.issues.get_mut(&pull).and_then(|issue| issue.pull.as_mut()) else {
        return Err(Problem::not_found());
    };
    if found.draft != draft {
        found.draft = draft;
        let action = if draft { "converted_to_draft" } else { "ready_for_review" };
        state.emit_pull(action, id, pull, who.account, json!({}))?;
    }
    Ok(())
}
