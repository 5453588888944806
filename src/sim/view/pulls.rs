//! Pull requests, issues, comments, labels, reactions and reviews.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{app, node_id, optional_time, time, user};
use crate::sim::state::{Comment, DiffTotals, Issue, Label, Pull, Reaction, Repository, Review, Role, State};
use crate::sim::wire::percent_encode;

pub const REACTIONS: [&str; 8] = ["+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes"];

pub fn label(state: &State, repository: &Repository, label: &Label) -> Value {
    let api = format!("{}/repos/{}", state.base, state.full_name(repository));
    json!({
        "id": label.id,
        "node_id": node_id("LA", label.id),
        "url": format!("{api}/labels/{}", percent_encode(&label.name, "")),
        "name": label.name,
        "color": label.color,
        "default": label.default,
        "description": label.description.as_deref().unwrap_or(""),
    })
}

fn labels(state: &State, repository: &Repository, issue: &Issue) -> Vec<Value> {
    issue
        .labels
        .iter()
        .filter_map(|name| repository.labels.get(&name.to_lowercase()))
        .map(|record| label(state, repository, record))
        .collect()
}

pub fn reaction(state: &State, reaction: &Reaction) -> Value {
    json!({
        "id": reaction.id,
        "node_id": node_id("REA", reaction.id),
        "user": user(state, reaction.user),
        "content": reaction.content,
        "created_at": time(reaction.created_at),
    })
}

fn rollup(reactions: &[Reaction], url: String) -> Value {
    let mut value = json!({"url": url, "total_count": reactions.len()});
    for name in REACTIONS {
        value[name] = json!(reactions.iter().filter(|reaction| reaction.content == name).count());
    }
    value
}

/// OWNER, MEMBER, COLLABORATOR, CONTRIBUTOR or NONE.
pub fn association(state: &State, repository: &Repository, person: u64) -> &'static str {
    if repository.owner == person {
        return "OWNER";
    }
    let member = state.account(repository.owner).is_some_and(|owner| owner.members.contains_key(&person));
    let merged = || {
        repository
            .issues
            .values()
            .any(|issue| issue.user == person && issue.pull.as_ref().is_some_and(|pull| pull.merged_at.is_some()))
    };
    if member {
        "MEMBER"
    } else if repository.collaborators.get(&person).is_some_and(|role| *role > Role::None) {
        "COLLABORATOR"
    } else if merged() {
        "CONTRIBUTOR"
    } else {
        "NONE"
    }
}

/// `issue`, also for pull requests.
pub fn issue(state: &State, repository: &Repository, issue: &Issue) -> Value {
    let full_name = state.full_name(repository);
    let api = format!("{}/repos/{full_name}", state.base);
    let url = format!("{api}/issues/{}", issue.number);
    let kind = if issue.pull.is_some() { "pull" } else { "issues" };
    let page = format!("{}/{full_name}/{kind}/{}", state.base, issue.number);
    let comments = repository.comments.values().filter(|comment| comment.issue == issue.number).count();
    let mut value = json!({
        "url": url,
        "repository_url": api,
        "labels_url": format!("{url}/labels{{/name}}"),
        "comments_url": format!("{url}/comments"),
        "events_url": format!("{url}/events"),
        "timeline_url": format!("{url}/timeline"),
        "html_url": page,
        "id": issue.id,
        "node_id": node_id("I", issue.id),
        "number": issue.number,
        "title": issue.title,
        "user": user(state, issue.user),
        "labels": labels(state, repository, issue),
        "state": if issue.open { "open" } else { "closed" },
        "state_reason": if issue.open || issue.pull.is_some() { Value::Null } else { json!("completed") },
        "locked": issue.locked,
        "assignee": null,
        "assignees": [],
        "milestone": null,
        "comments": comments,
        "created_at": time(issue.created_at),
        "updated_at": time(issue.updated_at),
        "closed_at": optional_time(issue.closed_at),
        "author_association": association(state, repository, issue.user),
        "active_lock_reason": null,
        "body": issue.body,
        "closed_by": issue.closed_by.map_or(Value::Null, |by| user(state, by)),
        "reactions": rollup(&issue.reactions, format!("{url}/reactions")),
        "performed_via_github_app": if issue.via_app { app(state) } else { Value::Null },
    });
    if let Some(pull) = &issue.pull {
        value["draft"] = json!(pull.draft);
        value["pull_request"] = json!({
            "url": format!("{api}/pulls/{}", issue.number),
            "html_url": page,
            "diff_url": format!("{page}.diff"),
            "patch_url": format!("{page}.patch"),
            "merged_at": optional_time(pull.merged_at),
        });
    }
    value
}

pub fn comment(state: &State, repository: &Repository, comment: &Comment) -> Value {
    let full_name = state.full_name(repository);
    let api = format!("{}/repos/{full_name}", state.base);
    let url = format!("{api}/issues/comments/{}", comment.id);
    let kind =
        if repository.issues.get(&comment.issue).is_some_and(|issue| issue.pull.is_some()) { "pull" } else { "issues" };
    json!({
        "url": url,
        "html_url": format!("{}/{full_name}/{kind}/{}#issuecomment-{}", state.base, comment.issue, comment.id),
        "issue_url": format!("{api}/issues/{}", comment.issue),
        "id": comment.id,
        "node_id": node_id("IC", comment.id),
        "user": user(state, comment.user),
        "created_at": time(comment.created_at),
        "updated_at": time(comment.updated_at),
        "author_association": association(state, repository, comment.user),
        "body": comment.body,
        "reactions": rollup(&comment.reactions, format!("{url}/reactions")),
        "performed_via_github_app": if comment.via_app { app(state) } else { Value::Null },
    })
}

pub fn review(state: &State, repository: &Repository, number: u64, review: &Review) -> Value {
    let full_name = state.full_name(repository);
    let page = format!("{}/{full_name}/pull/{number}#pullrequestreview-{}", state.base, review.id);
    let pull = format!("{}/repos/{full_name}/pulls/{number}", state.base);
    json!({
        "id": review.id,
        "node_id": node_id("PRR", review.id),
        "user": user(state, review.user),
        "body": review.body,
        "state": review.state,
        "html_url": page,
        "pull_request_url": pull,
        "author_association": association(state, repository, review.user),
        "_links": {"html": {"href": page}, "pull_request": {"href": pull}},
        "submitted_at": time(review.submitted_at),
        "commit_id": review.commit,
    })
}

fn parts(repository: &Repository, number: u64) -> Result<(&Issue, &Pull)> {
    let issue = repository.issues.get(&number).context("no such pull request")?;
    Ok((issue, issue.pull.as_ref().context("not a pull request")?))
}

/// `pull-request-simple`: without what has to be computed.
pub fn pull_simple(state: &State, repository: &Repository, number: u64) -> Result<Value> {
    let (issue, pull) = parts(repository, number)?;
    let full_name = state.full_name(repository);
    let api = format!("{}/repos/{full_name}", state.base);
    let url = format!("{api}/pulls/{number}");
    let issue_url = format!("{api}/issues/{number}");
    let page = format!("{}/{full_name}/pull/{number}", state.base);
    let statuses = format!("{api}/statuses/{}", pull.head_sha);
    let head_repository =
        pull.head_repository.and_then(|id| state.repositories.get(&id)).map(|record| super::repository(state, record));
    let owner = state.login(repository.owner).to_owned();
    let mut value = json!({
        "url": url,
        "id": pull.id,
        "node_id": node_id("PR", pull.id),
        "html_url": page,
        "diff_url": format!("{page}.diff"),
        "patch_url": format!("{page}.patch"),
        "issue_url": issue_url,
        "number": number,
        "state": if issue.open { "open" } else { "closed" },
        "locked": issue.locked,
        "title": issue.title,
        "user": user(state, issue.user),
        "body": issue.body,
        "created_at": time(issue.created_at),
        "updated_at": time(issue.updated_at),
        "closed_at": optional_time(issue.closed_at),
        "merged_at": optional_time(pull.merged_at),
        "merge_commit_sha": pull.merge_commit,
        "assignee": null,
        "assignees": [],
        "requested_reviewers": [],
        "requested_teams": [],
        "labels": labels(state, repository, issue),
        "milestone": null,
        "draft": pull.draft,
        "commits_url": format!("{url}/commits"),
        "review_comments_url": format!("{url}/comments"),
        "review_comment_url": format!("{api}/pulls/comments{{/number}}"),
        "comments_url": format!("{issue_url}/comments"),
        "statuses_url": statuses,
        "author_association": association(state, repository, issue.user),
        "auto_merge": null,
        "active_lock_reason": null,
    });
    let sides = json!({
        "head": {
            "label": format!("{}:{}", state.login(pull.head_owner), pull.head_ref),
            "ref": pull.head_ref,
            "sha": pull.head_sha,
            "user": user(state, pull.head_owner),
            "repo": head_repository,
        },
        "base": {
            "label": format!("{owner}:{}", pull.base_ref),
            "ref": pull.base_ref,
            "sha": pull.base_sha,
            "user": user(state, repository.owner),
            "repo": super::repository(state, repository),
        },
        "_links": {
            "self": {"href": url},
            "html": {"href": page},
            "issue": {"href": issue_url},
            "comments": {"href": format!("{issue_url}/comments")},
            "review_comments": {"href": format!("{url}/comments")},
            "review_comment": {"href": format!("{api}/pulls/comments{{/number}}")},
            "commits": {"href": format!("{url}/commits")},
            "statuses": {"href": statuses},
        },
    });
    crate::sim::events::merge(&mut value, sides);
    Ok(value)
}

/// Whether the mergeability is told: GitHub has not computed it yet when it sends the webhook of a new head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mergeability {
    Computed,
    Unknown,
}

/// `pull-request`, with its diff's totals and its mergeability.
pub fn pull(state: &mut State, repository_id: u64, number: u64, told: Mergeability) -> Result<Value> {
    let totals = totals(state, repository_id, number)?;
    let mergeable = mergeable(state, repository_id, number)?;
    let repository = state.repository(repository_id)?;
    let (issue, pull) = parts(repository, number)?;
    let mut value = pull_simple(state, repository, number)?;
    let comments = repository.comments.values().filter(|comment| comment.issue == number).count();
    value["merged"] = json!(pull.merged_at.is_some());
    value["mergeable"] = Value::Null;
    value["rebaseable"] = Value::Null;
    value["mergeable_state"] = json!("unknown");
    if issue.open && told == Mergeability::Computed {
        value["mergeable"] = json!(mergeable);
        value["rebaseable"] = json!(mergeable);
        value["mergeable_state"] = json!(match (mergeable, pull.draft) {
            (false, _) => "dirty",
            (true, true) => "draft",
            (true, false) => "clean",
        });
    }
    value["merged_by"] = pull.merged_by.map_or(Value::Null, |by| user(state, by));
    value["comments"] = json!(comments);
    value["review_comments"] = json!(0);
    value["maintainer_can_modify"] = json!(pull.maintainer_can_modify);
    value["commits"] = json!(totals.commits);
    value["additions"] = json!(totals.additions);
    value["deletions"] = json!(totals.deletions);
    value["changed_files"] = json!(totals.changed_files);
    Ok(value)
}

/// Commits and lines between base and head, kept in memory under the pair.
pub fn totals(state: &mut State, repository_id: u64, number: u64) -> Result<DiffTotals> {
    let repository = state.repository(repository_id)?;
    let (_, pull) = parts(repository, number)?;
    let key = (pull.base_sha.clone(), pull.head_sha.clone());
    if let Some(totals) = state.totals.get(&key) {
        return Ok(totals.clone());
    }
    let git = state.git(repository);
    let base = git.merge_base(&key.0, &key.1);
    let from = base.as_deref().unwrap_or(crate::sim::git::EMPTY_TREE);
    let changes = git.difference(from, &key.1, false)?;
    let commits = git.list(&[&key.1], &[&key.0], None, 10_000)?.len();
    let totals = DiffTotals {
        commits: u64::try_from(commits)?,
        additions: changes.iter().map(|change| change.additions).sum(),
        deletions: changes.iter().map(|change| change.deletions).sum(),
        changed_files: u64::try_from(changes.len())?,
    };
    state.totals.insert(key, totals.clone());
    Ok(totals)
}

/// Whether the head merges into the tip of its base branch without conflict.
pub fn mergeable(state: &mut State, repository_id: u64, number: u64) -> Result<bool> {
    Ok(merge_result(state, repository_id, number)?.is_some())
}

/// The tree of that merge; computed once per pair of tips.
pub fn merge_result(state: &mut State, repository_id: u64, number: u64) -> Result<Option<String>> {
    let repository = state.repository(repository_id)?;
    let (issue, pull) = parts(repository, number)?;
    if !issue.open {
        return Ok(None);
    }
    let tip = repository
        .known_refs
        .get(&format!("refs/heads/{}", pull.base_ref))
        .cloned()
        .unwrap_or_else(|| pull.base_sha.clone());
    let key = (tip, pull.head_sha.clone());
    if let Some(tree) = state.merges.get(&key) {
        return Ok(tree.clone());
    }
    let git = state.git(repository);
    let tree = git.merge_tree(&key.0, &key.1, None)?;
    state.merges.insert(key, tree.clone());
    Ok(tree)
}
