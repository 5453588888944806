//! What the pages show, gathered from the state: plain values, formatted for a person. The templates escape them;
//! only Markdown made by [`markdown`] goes in as HTML.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::prepared::{self, Prepared};
use super::state::{AccountKind, CheckRun, Deployment, Reaction, Repository, State};
use super::view::{self, checks};
use super::{calendar, markdown};

const EMOJI: [(&str, &str); 8] = [
    ("+1", "👍"),
    ("-1", "👎"),
    ("laugh", "😄"),
    ("hooray", "🎉"),
    ("confused", "😕"),
    ("heart", "❤️"),
    ("rocket", "🚀"),
    ("eyes", "👀"),
];

/// `just now`, `5 minutes ago`, `3 hours ago`, then the date.
pub fn ago(now: i64, then: i64) -> String {
    let many = |count: i64, unit: &str| format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" });
    match now - then {
        ..60 => "just now".to_owned(),
        seconds @ 60..3600 => many(seconds / 60, "minute"),
        seconds @ 3600..86_400 => many(seconds / 3600, "hour"),
        _ => calendar::text(then).chars().take(10).collect(),
    }
}

fn person(state: &State, id: u64) -> Value {
    let kind = state.account(id).map_or(AccountKind::User, |account| account.kind);
    json!({
        "login": state.login(id).trim_end_matches("[bot]"),
        "bot": kind == AccountKind::Bot,
        "avatar": format!("/_/avatar/{id}"),
    })
}

fn short(sha: &str) -> String {
    sha.chars().take(7).collect()
}

/// One word for how a commit stands: `none`, `pending`, `success` or `failure`.
fn commit_state(repository: &Repository, sha: &str) -> &'static str {
    let statuses = checks::latest_statuses(repository, sha);
    let runs = runs_of(repository, sha);
    if statuses.is_empty() && runs.is_empty() {
        return "none";
    }
    let mut states: Vec<&str> = runs.iter().map(|run| run_state(run)).collect();
    if !statuses.is_empty() {
        states.push(checks::combined_state(&statuses));
    }
    ["failure", "pending"].into_iter().find(|word| states.contains(word)).unwrap_or("success")
}

fn run_state(run: &CheckRun) -> &'static str {
    match (run.status.as_str(), run.conclusion.as_deref()) {
        ("completed", Some("success" | "neutral" | "skipped")) => "success",
        ("completed", _) => "failure",
        _ => "pending",
    }
}

/// The newest run of each name.
fn runs_of<'a>(repository: &'a Repository, sha: &str) -> Vec<&'a CheckRun> {
    let mut runs: Vec<&CheckRun> = Vec::new();
    for run in repository.runs.values().rev().filter(|run| run.head_sha == sha) {
        if !runs.iter().any(|known| known.name == run.name) {
            runs.push(run);
        }
    }
    runs.reverse();
    runs
}

fn buttons(list: &[Prepared]) -> Vec<Value> {
    list.iter()
        .map(|prepared| {
            let title = prepared.opens_pull.as_ref().map_or(&prepared.title, |opens| &opens.title);
            json!({"id": prepared.id, "title": title, "description": prepared.description})
        })
        .collect()
}

fn head(state: &State, repository: &Repository) -> Value {
    json!({
        "full_name": state.full_name(repository),
        "owner": state.login(repository.owner),
        "name": repository.name,
        "private": repository.private,
        "description": repository.description,
        "default_branch": repository.default_branch,
        "fork_of": repository.fork_of.and_then(|parent| state.repositories.get(&parent)).map(|parent| state.full_name(parent)),
    })
}

pub fn repositories(state: &State) -> Value {
    let now = state.now();
    let list: Vec<Value> = state
        .repositories
        .values()
        .map(|repository| {
            let mut value = head(state, repository);
            value["open_pulls"] =
                json!(repository.issues.values().filter(|issue| issue.open && issue.pull.is_some()).count());
            value["pushed"] = json!(ago(now, repository.pushed_at));
            value
        })
        .collect();
    json!({"repositories": list, "first": person(state, state.first_user)})
}

/// open, draft, merged or closed.
fn pull_state(issue: &super::state::Issue) -> &'static str {
    match (&issue.pull, issue.open) {
        (Some(pull), _) if pull.merged_at.is_some() => "merged",
        (Some(pull), true) if pull.draft => "draft",
        (_, true) => "open",
        (_, false) => "closed",
    }
}

pub fn repository(state: &mut State, id: u64, prepared: &[Prepared]) -> Result<Value> {
    let record = state.repository(id)?;
    let git = state.git(record);
    let tip = record.known_refs.get(&format!("refs/heads/{}", record.default_branch)).cloned();
    let shas = match &tip {
        Some(tip) => git.list(&[tip], &[], None, 15)?,
        None => Vec::new(),
    };
    let commits = state.commit_list(&git, &shas)?;
    let now = state.now();
    let record = state.repository(id)?;
    let commits: Vec<Value> = commits
        .iter()
        .map(|commit| {
            json!({
                "sha": commit.sha,
                "short": short(&commit.sha),
                "title": commit.message.lines().next().unwrap_or(""),
                "author": commit.author.name,
                "when": ago(now, commit.committer.date),
                "state": commit_state(record, &commit.sha),
            })
        })
        .collect();
    let pulls: Vec<Value> = record
        .issues
        .values()
        .rev()
        .filter_map(|issue| issue.pull.as_ref().map(|pull| (issue, pull)))
        .map(|(issue, pull)| {
            json!({
                "number": issue.number,
                "title": issue.title,
                "state": pull_state(issue),
                "open": issue.open,
                "author": person(state, issue.user),
                "when": ago(now, issue.created_at),
                "checks": commit_state(record, &pull.head_sha),
            })
        })
        .collect();
    let branches: Vec<Value> = record
        .known_refs
        .iter()
        .filter_map(|(name, sha)| {
            Some(json!({"name": name.strip_prefix("refs/heads/")?, "short": short(sha), "sha": sha}))
        })
        .collect();
    let full_name = state.full_name(record);
    Ok(json!({
        "repo": head(state, record),
        "commits": commits,
        "pulls": pulls,
        "branches": branches,
        "deployments": deployments(state, record, |_| true),
        "prepared": buttons(&prepared::offered(prepared, state, &full_name, None)),
        "pushes": buttons(&prepared::offered(prepared, state, &full_name, Some(&record.default_branch))),
    }))
}

/// The newest deployment of each environment, of those that fit.
fn deployments(state: &State, repository: &Repository, fits: impl Fn(&Deployment) -> bool) -> Vec<Value> {
    let now = state.now();
    let mut shown: Vec<&Deployment> = Vec::new();
    for deployment in repository.deployments.values().rev().filter(|deployment| fits(deployment)) {
        if !shown.iter().any(|known| known.environment.eq_ignore_ascii_case(&deployment.environment)) {
            shown.push(deployment);
        }
    }
    shown
        .iter()
        .map(|deployment| {
            let last = deployment.statuses.last();
            let state_word = match (deployment.state(), deployment.transient) {
                ("inactive", true) => "destroyed",
                (word, _) => word,
            };
            json!({
                "environment": deployment.environment,
                "state": state_word.replace('_', " "),
                "class": match state_word {
                    "success" => "success",
                    "error" | "failure" => "failure",
                    "inactive" | "destroyed" => "none",
                    _ => "pending",
                },
                "live": state_word == "success",
                "url": last.map_or("", |status| status.environment_url.as_str()),
                "log_url": last.map_or("", |status| status.log_url.as_str()),
                "description": last.map_or("", |status| status.description.as_str()),
                "short": short(&deployment.sha),
                "when": ago(now, deployment.updated_at),
            })
        })
        .collect()
}

fn reactions(list: &[Reaction]) -> Vec<Value> {
    EMOJI
        .iter()
        .filter_map(|(name, emoji)| {
            let count = list.iter().filter(|reaction| reaction.content == *name).count();
            (count > 0).then(|| json!({"emoji": emoji, "count": count}))
        })
        .collect()
}

pub fn pull(state: &mut State, id: u64, number: u64, prepared: &[Prepared]) -> Result<Value> {
    let record = state.repository(id)?;
    let issue = record.issues.get(&number).context("no such pull request")?.clone();
    let git = state.git(record);
    let now = state.now();
    let mergeable = if issue.pull.is_some() { view::pulls::mergeable(state, id, number)? } else { false };
    let mut commits = Vec::new();
    if let Some(pull) = &issue.pull {
        let mut shas = git.list(&[&pull.head_sha], &[&pull.base_sha], None, 250)?;
        shas.reverse();
        commits = state.commit_list(&git, &shas)?;
    }
    let record = state.repository(id)?;
    let full_name = state.full_name(record);
    let mut timeline: Vec<(i64, u8, Value)> = Vec::new();
    for commit in &commits {
        let value = json!({
            "kind": "commit",
            "sha": commit.sha,
            "short": short(&commit.sha),
            "title": commit.message.lines().next().unwrap_or(""),
            "author": commit.author.name,
            "state": commit_state(record, &commit.sha),
        });
        timeline.push((commit.committer.date, 0, value));
    }
    for comment in record.comments.values().filter(|comment| comment.issue == number) {
        let value = json!({
            "kind": "comment",
            "id": comment.id,
            "author": person(state, comment.user),
            "when": ago(now, comment.created_at),
            "edited": comment.updated_at > comment.created_at,
            "html": markdown::render(&comment.body),
            "reactions": reactions(&comment.reactions),
        });
        timeline.push((comment.created_at, 2, value));
    }
    let of_pull = |deployment: &Deployment| {
        commits.iter().any(|commit| commit.sha == deployment.sha)
            || deployment.environment.rsplit('/').next() == Some(&format!("pr-{number}"))
    };
    for deployment in record.deployments.values().filter(|deployment| of_pull(deployment)) {
        let Some(first) = deployment.statuses.iter().find(|status| status.state == "success") else { continue };
        let value = json!({
            "kind": "deployment",
            "author": person(state, deployment.creator),
            "environment": deployment.environment,
            "short": short(&deployment.sha),
            "when": ago(now, first.created_at),
            "url": first.environment_url,
            "live": deployment.state() == "success",
        });
        timeline.push((first.created_at, 1, value));
    }
    timeline.sort_by_key(|(time, order, _)| (*time, *order));
    let timeline: Vec<Value> = timeline.into_iter().map(|(_, _, value)| value).collect();
    let mut page = json!({
        "repo": head(state, record),
        "number": number,
        "title": issue.title,
        "state": pull_state(&issue),
        "open": issue.open,
        "is_pull": issue.pull.is_some(),
        "author": person(state, issue.user),
        "when": ago(now, issue.created_at),
        "html": markdown::render(issue.body.as_deref().unwrap_or("")),
        "reactions": reactions(&issue.reactions),
        "labels": issue.labels,
        "timeline": timeline,
        "first": person(state, state.first_user),
        "mergeable": mergeable,
        "deployments": deployments(state, record, of_pull),
    });
    if let Some(pull) = &issue.pull {
        let fork = pull.head_repository != Some(id);
        let head_label =
            if fork { format!("{}:{}", state.login(pull.head_owner), pull.head_ref) } else { pull.head_ref.clone() };
        let on_branch = prepared::offered(prepared, state, &full_name, Some(&pull.head_ref));
        let rows = checks_box(record, &pull.head_sha);
        page["head"] = json!(head_label);
        page["base"] = json!(pull.base_ref);
        page["head_sha"] = json!(short(&pull.head_sha));
        page["merged_by"] = pull.merged_by.map_or(Value::Null, |by| person(state, by));
        page["merge_commit"] = json!(pull.merge_commit.as_deref().map(short));
        page["prepared"] = json!(buttons(if issue.open { &on_branch } else { &[] }));
        page["checks_state"] = json!(commit_state(record, &pull.head_sha));
        page["checks_sentence"] = json!(match commit_state(record, &pull.head_sha) {
            "failure" => "Some checks were not successful",
            "pending" => "Some checks haven’t completed yet",
            "success" => "All checks have passed",
            _ => "No checks yet",
        });
        page["checks"] = json!(rows);
    }
    Ok(page)
}

/// Check runs and statuses of a commit, as rows.
fn checks_box(repository: &Repository, sha: &str) -> Vec<Value> {
    let mut rows: Vec<Value> = runs_of(repository, sha)
        .into_iter()
        .map(|run| {
            json!({
                "name": run.name,
                "state": run_state(run),
                "text": run.output.title.clone().unwrap_or_else(|| run.conclusion.clone().unwrap_or_else(|| run.status.replace('_', " "))),
                "summary": run.output.summary.as_deref().map(markdown::render),
                "run": run.id,
                "url": Value::Null,
            })
        })
        .collect();
    for status in checks::latest_statuses(repository, sha) {
        rows.push(json!({
            "name": status.context,
            "state": match status.state.as_str() { "success" => "success", "pending" => "pending", _ => "failure" },
            "text": status.description.as_deref().unwrap_or(&status.state),
            "summary": null,
            "run": null,
            "url": status.target_url,
        }));
    }
    rows.sort_by_key(|row| row["name"].as_str().map(str::to_owned));
    rows
}

pub fn run(state: &State, id: u64, run: u64) -> Result<Value> {
    let record = state.repository(id)?;
    let run = record.runs.get(&run).context("no such check run")?;
    let annotations: Vec<Value> = run
        .annotations
        .iter()
        .map(|annotation| {
            json!({
                "path": annotation["path"],
                "line": annotation["start_line"],
                "level": annotation["annotation_level"],
                "title": annotation["title"],
                "message": annotation["message"],
            })
        })
        .collect();
    let pull = record
        .issues
        .values()
        .find(|issue| issue.pull.as_ref().is_some_and(|pull| pull.head_sha == run.head_sha))
        .map(|issue| issue.number);
    Ok(json!({
        "repo": head(state, record),
        "run": run.id,
        "name": run.name,
        "state": run_state(run),
        "status": run.conclusion.clone().unwrap_or_else(|| run.status.replace('_', " ")),
        "short": short(&run.head_sha),
        "sha": run.head_sha,
        "title": run.output.title,
        "summary": run.output.summary.as_deref().map(markdown::render),
        "text": run.output.text.as_deref().map(markdown::render),
        "details_url": run.details_url,
        "annotations": annotations,
        "pull": pull,
        "app": state.app.name,
    }))
}

pub fn commit(state: &mut State, id: u64, sha: &str) -> Result<Value> {
    let record = state.repository(id)?;
    let git = state.git(record);
    let commit = state.commit(&git, sha)?;
    let from = commit.parents.first().map_or(super::git::EMPTY_TREE, String::as_str);
    let changes = git.difference(from, &commit.sha, true)?;
    let files: Vec<Value> = changes
        .iter()
        .map(|change| {
            let lines: Vec<Value> = change
                .patch
                .as_deref()
                .unwrap_or("")
                .lines()
                .take(2000)
                .map(|line| {
                    let class = match line.as_bytes().first() {
                        Some(b'+') => "added",
                        Some(b'-') => "removed",
                        Some(b'@') => "place",
                        _ => "same",
                    };
                    json!({"class": class, "text": line})
                })
                .collect();
            json!({"path": change.path, "status": change.status, "lines": lines, "additions": change.additions, "deletions": change.deletions})
        })
        .collect();
    let now = state.now();
    let record = state.repository(id)?;
    Ok(json!({
        "repo": head(state, record),
        "sha": commit.sha,
        "short": short(&commit.sha),
        "message": commit.message,
        "author": commit.author.name,
        "when": ago(now, commit.committer.date),
        "state": commit_state(record, &commit.sha),
        "checks": checks_box(record, &commit.sha),
        "files": files,
    }))
}
