//! Commits, files, trees and comparisons.

use anyhow::Result;
use serde_json::{Value, json};

use super::{node_id, time, user};
use crate::sim::git::{Commit, FileChange, Git, Signature};
use crate::sim::state::{Repository, State};
use crate::sim::wire::percent_encode;

/// The account that a commit's signature belongs to, by name or by its noreply address.
pub fn author(state: &State, signature: &Signature) -> Option<u64> {
    let local = signature.email.split('@').next().unwrap_or("");
    state.find_account(&signature.name).or_else(|| state.find_account(local))
}

pub fn verification() -> Value {
    json!({"verified": false, "reason": "unsigned", "signature": null, "payload": null, "verified_at": null})
}

fn person(signature: &Signature) -> Value {
    json!({"name": signature.name, "email": signature.email, "date": time(signature.date)})
}

/// `commit`, without stats and files.
pub fn commit(state: &State, repository: &Repository, commit: &Commit) -> Value {
    let full_name = state.full_name(repository);
    let api = format!("{}/repos/{full_name}", state.base);
    let page = format!("{}/{full_name}", state.base);
    let account = |signature: &Signature| author(state, signature).map_or(Value::Null, |id| user(state, id));
    json!({
        "sha": commit.sha,
        "node_id": format!("C_{}", commit.sha),
        "commit": {
            "author": person(&commit.author),
            "committer": person(&commit.committer),
            "message": commit.message,
            "tree": {"sha": commit.tree, "url": format!("{api}/git/trees/{}", commit.tree)},
            "url": format!("{api}/git/commits/{}", commit.sha),
            "comment_count": 0,
            "verification": verification(),
        },
        "url": format!("{api}/commits/{}", commit.sha),
        "html_url": format!("{page}/commit/{}", commit.sha),
        "comments_url": format!("{api}/commits/{}/comments", commit.sha),
        "author": account(&commit.author),
        "committer": account(&commit.committer),
        "parents": parents(&api, &page, commit, "commits"),
    })
}

fn parents(api: &str, page: &str, commit: &Commit, kind: &str) -> Vec<Value> {
    commit
        .parents
        .iter()
        .map(|parent| {
            json!({
                "sha": parent,
                "url": format!("{api}/{kind}/{parent}"),
                "html_url": format!("{page}/commit/{parent}"),
            })
        })
        .collect()
}

/// `git-commit`.
pub fn git_commit(state: &State, repository: &Repository, commit: &Commit) -> Value {
    let full_name = state.full_name(repository);
    let api = format!("{}/repos/{full_name}", state.base);
    let page = format!("{}/{full_name}", state.base);
    json!({
        "sha": commit.sha,
        "node_id": format!("C_{}", commit.sha),
        "url": format!("{api}/git/commits/{}", commit.sha),
        "html_url": format!("{page}/commit/{}", commit.sha),
        "author": person(&commit.author),
        "committer": person(&commit.committer),
        "tree": {"sha": commit.tree, "url": format!("{api}/git/trees/{}", commit.tree)},
        "message": commit.message,
        "parents": parents(&api, &page, commit, "git/commits"),
        "verification": verification(),
    })
}

/// `simple-commit`, as check suites and merge groups carry it.
pub fn simple_commit(commit: &Commit) -> Value {
    json!({
        "id": commit.sha,
        "tree_id": commit.tree,
        "message": commit.message,
        "timestamp": time(commit.committer.date),
        "author": {"name": commit.author.name, "email": commit.author.email},
        "committer": {"name": commit.committer.name, "email": commit.committer.email},
    })
}

/// `diff-entry`.
pub fn file(state: &State, repository: &Repository, sha: &str, change: &FileChange) -> Value {
    let full_name = state.full_name(repository);
    let path = percent_encode(&change.path, "/");
    let mut value = json!({
        "sha": change.sha,
        "filename": change.path,
        "status": change.status,
        "additions": change.additions,
        "deletions": change.deletions,
        "changes": change.additions + change.deletions,
        "blob_url": format!("{}/{full_name}/blob/{sha}/{path}", state.base),
        "raw_url": format!("{}/{full_name}/raw/{sha}/{path}", state.base),
        "contents_url": format!("{}/repos/{full_name}/contents/{path}?ref={sha}", state.base),
    });
    if let Some(patch) = &change.patch {
        value["patch"] = json!(patch);
    }
    if let Some(previous) = &change.previous {
        value["previous_filename"] = json!(previous);
    }
    value
}

/// `commit` with stats and files against its first parent.
pub fn full_commit(state: &State, repository: &Repository, git: &Git, record: &Commit) -> Result<Value> {
    let from = record.parents.first().map_or(crate::sim::git::EMPTY_TREE, String::as_str);
    let changes = git.difference(from, &record.sha, true)?;
    let mut value = commit(state, repository, record);
    let additions: u64 = changes.iter().map(|change| change.additions).sum();
    let deletions: u64 = changes.iter().map(|change| change.deletions).sum();
    value["stats"] = json!({"total": additions + deletions, "additions": additions, "deletions": deletions});
    value["files"] = changes.iter().take(300).map(|change| file(state, repository, &record.sha, change)).collect();
    Ok(value)
}

/// `git-ref`.
pub fn reference(state: &State, repository: &Repository, name: &str, sha: &str, kind: &str) -> Value {
    let api = format!("{}/repos/{}", state.base, state.full_name(repository));
    let short = name.trim_start_matches("refs/");
    json!({
        "ref": name,
        "node_id": node_id("REF", repository.id) + &hex::encode(name),
        "url": format!("{api}/git/refs/{}", percent_encode(short, "/")),
        "object": {"sha": sha, "type": kind, "url": format!("{api}/git/{kind}s/{sha}")},
    })
}
