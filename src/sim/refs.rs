//! What follows from moved refs. However a branch moved (a push over HTTP, the API, a control, or a push straight
//! into the folder), [`settle`] compares the refs with those last seen and lets everything follow: push, create and
//! delete events, check suites, new heads of pull requests, and pull requests closed as merged.

use anyhow::Result;
use serde_json::{Value, json};

use super::events::Who;
use super::git::{Commit, Git, Touched, ZERO};
use super::state::{CheckSuite, State};
use super::view::{self, Times};

/// Push events name at most this many commits.
const PUSH_COMMITS: usize = 2048;

/// Brings everything that hangs on a repository's refs up to date; does nothing when none moved.
pub fn settle(state: &mut State, repository: u64, who: Who) -> Result<()> {
    let git = state.git_of(repository)?;
    let refs = git.branches_and_tags();
    let old = &state.repository(repository)?.known_refs;
    if *old == refs {
        return Ok(());
    }
    let mut moves: Vec<(String, Option<String>, Option<String>)> = Vec::new();
    for (name, sha) in &refs {
        if old.get(name) != Some(sha) {
            moves.push((name.clone(), old.get(name).cloned(), Some(sha.clone())));
        }
    }
    for (name, sha) in old {
        if !refs.contains_key(name) {
            moves.push((name.clone(), Some(sha.clone()), None));
        }
    }
    let now = state.now();
    let record = state.repository_mut(repository)?;
    record.known_refs = refs;
    record.pushed_at = now;
    record.updated_at = now;
    if !record.known_refs.contains_key(&format!("refs/heads/{}", record.default_branch)) {
        adopt_default_branch(state, repository, &git)?;
    }
    // Over three tags at once, or over five thousand branches, send no event (GitHub Docs, "Webhook events and
    // payloads", push).
    let tags = moves.iter().filter(|(name, ..)| name.starts_with("refs/tags/")).count();
    if tags > 3 {
        moves.retain(|(name, ..)| !name.starts_with("refs/tags/"));
    }
    if moves.len() > 5000 {
        return Ok(());
    }
    for (name, before, after) in moves {
        moved(state, repository, &git, &name, before.as_deref(), after.as_deref(), who)?;
    }
    Ok(())
}

/// The first branch pushed to an empty repository becomes the default branch.
fn adopt_default_branch(state: &mut State, repository: u64, git: &Git) -> Result<()> {
    let record = state.repository(repository)?;
    let branches: Vec<&str> = record.known_refs.keys().filter_map(|name| name.strip_prefix("refs/heads/")).collect();
    let chosen = ["main", "master"]
        .into_iter()
        .find(|name| branches.contains(name))
        .or_else(|| branches.first().copied())
        .map(str::to_owned);
    if let Some(chosen) = chosen {
        git.set_head(&chosen)?;
        state.repository_mut(repository)?.default_branch = chosen;
    }
    Ok(())
}

fn moved(
    state: &mut State,
    repository: u64,
    git: &Git,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
    who: Who,
) -> Result<()> {
    let (kind, short) = match name.strip_prefix("refs/heads/") {
        Some(short) => ("branch", short),
        None => ("tag", name.trim_start_matches("refs/tags/")),
    };
    let event = match (before, after) {
        (None, Some(_)) => Some("create"),
        (Some(_), None) => Some("delete"),
        _ => None,
    };
    if let Some(event) = event {
        let record = state.repository(repository)?;
        let mut fields = json!({"ref": short, "ref_type": kind, "pusher_type": "user"});
        if event == "create" {
            fields["master_branch"] = json!(record.default_branch);
            fields["description"] = json!(record.description);
        }
        state.emit(event, None, repository, who.account, fields);
    }
    let payload = push_payload(state, repository, git, name, before, after, who)?;
    state.emit("push", None, repository, who.account, payload);
    if kind == "tag" {
        return Ok(());
    }
    pulls_follow(state, repository, short, after, who)?;
    if let Some(after) = after {
        request_suite(state, repository, Some(short), after, before, who.account)?;
        merged_by_push(state, repository, git, short, after, who)?;
    }
    Ok(())
}

fn push_payload(
    state: &mut State,
    repository: u64,
    git: &Git,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
    who: Who,
) -> Result<Value> {
    let is_branch = name.starts_with("refs/heads/");
    let known = state.repository(repository)?.known_refs.clone();
    let mut shas = Vec::new();
    let mut base_ref = Value::Null;
    if let Some(after) = after
        && is_branch
    {
        let excluded: Vec<&str> = match before {
            Some(before) if git.has(before) => vec![before],
            _ => known
                .iter()
                .filter(|(other, _)| *other != name && other.starts_with("refs/heads/"))
                .map(|(_, sha)| sha.as_str())
                .collect(),
        };
        shas = git.list(&[after], &excluded, None, PUSH_COMMITS)?;
        shas.reverse();
        if before.is_none()
            && let Some((other, _)) = known.iter().find(|(other, sha)| *other != name && *sha == after)
        {
            base_ref = json!(other);
        }
    }
    let head = after.and_then(|after| git.peel(after));
    let commits = state.commit_list(git, &shas)?;
    let mut touched = git.touched(&shas)?;
    let head_commit = match &head {
        None => Value::Null,
        Some(head) => {
            let commit = state.commit(git, head)?;
            if !touched.contains_key(head) {
                touched.extend(git.touched(std::slice::from_ref(head))?);
            }
            push_commit(state, repository, &commit, touched.get(head))?
        }
    };
    let mut listed = Vec::with_capacity(commits.len());
    for commit in &commits {
        listed.push(push_commit(state, repository, commit, touched.get(&commit.sha))?);
    }
    let forced = match (before, after) {
        (Some(before), Some(after)) => !git.is_ancestor(before, after),
        _ => false,
    };
    let record = state.repository(repository)?;
    let page = format!("{}/{}", state.base, state.full_name(record));
    let short = |sha: &str| sha.chars().take(12).collect::<String>();
    let compare = match (before, after) {
        (Some(before), Some(after)) => format!("{page}/compare/{}...{}", short(before), short(after)),
        (None, Some(after)) => format!("{page}/commit/{}", short(after)),
        (Some(before), None) => format!("{page}/compare/{}...{}", short(before), short(ZERO)),
        (None, None) => page.clone(),
    };
    let pusher = state.login(who.account);
    Ok(json!({
        "ref": name,
        "before": before.unwrap_or(ZERO),
        "after": after.unwrap_or(ZERO),
        "repository": view::repository_with(state, record, Times::Numbers),
        "pusher": {"name": pusher, "email": noreply(pusher)},
        "created": before.is_none(),
        "deleted": after.is_none(),
        "forced": forced,
        "base_ref": base_ref,
        "compare": compare,
        "commits": listed,
        "head_commit": head_commit,
    }))
}

/// The address under which an account commits.
pub fn noreply(login: &str) -> String {
    format!("{}@users.noreply.github.localhost", login.replace(['[', ']'], ""))
}

fn push_commit(state: &State, repository: u64, commit: &Commit, touched: Option<&Touched>) -> Result<Value> {
    let record = state.repository(repository)?;
    let person = |signature: &super::git::Signature| {
        let mut value = json!({"name": signature.name, "email": signature.email, "date": view::time(signature.date)});
        if let Some(account) = view::commits::author(state, signature) {
            value["username"] = json!(state.login(account));
        }
        value
    };
    let touched = touched.cloned().unwrap_or_default();
    Ok(json!({
        "id": commit.sha,
        "tree_id": commit.tree,
        "distinct": true,
        "message": commit.message,
        "timestamp": view::time(commit.committer.date),
        "url": format!("{}/{}/commit/{}", state.base, state.full_name(record), commit.sha),
        "author": person(&commit.author),
        "committer": person(&commit.committer),
        "added": touched.added,
        "removed": touched.removed,
        "modified": touched.modified,
    }))
}

/// Every push makes a check suite for the app, asked for or not.
pub fn request_suite(
    state: &mut State,
    repository: u64,
    branch: Option<&str>,
    sha: &str,
    before: Option<&str>,
    sender: u64,
) -> Result<()> {
    let record = state.repository(repository)?;
    if !record.auto_check_suites || !record.installed {
        return Ok(());
    }
    let suite = ensure_suite(state, repository, branch, sha, before)?;
    emit_suite(state, "requested", repository, suite, sender)
}

/// The app's suite of a commit, made when there is none.
pub fn ensure_suite(
    state: &mut State,
    repository: u64,
    branch: Option<&str>,
    sha: &str,
    before: Option<&str>,
) -> Result<u64> {
    let known = state.repository(repository)?.suites.values().find(|suite| suite.head_sha == sha);
    if let Some(suite) = known {
        return Ok(suite.id);
    }
    let id = state.fresh_id();
    let now = state.now();
    let suite = CheckSuite {
        id,
        head_sha: sha.to_owned(),
        head_branch: branch.map(str::to_owned),
        before: before.map(str::to_owned),
        after: Some(sha.to_owned()),
        created_at: now,
        updated_at: now,
    };
    state.repository_mut(repository)?.suites.insert(id, suite);
    Ok(id)
}

pub fn emit_suite(state: &mut State, action: &str, repository: u64, suite: u64, sender: u64) -> Result<()> {
    let git = state.git_of(repository)?;
    let record = state.repository(repository)?;
    let Some(sha) = record.suites.get(&suite).map(|suite| suite.head_sha.clone()) else { return Ok(()) };
    let head = state.commit(&git, &sha)?;
    let record = state.repository(repository)?;
    let Some(suite) = record.suites.get(&suite) else { return Ok(()) };
    let mut value = view::checks::suite(state, record, suite, &head);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("repository");
    }
    // The schema of this event knows no merge_group among the app's events.
    if let Some(events) = value["app"]["events"].as_array_mut() {
        events.retain(|event| event != "merge_group");
    }
    state.emit("check_suite", Some(action), repository, sender, json!({"check_suite": value}));
    Ok(())
}

/// Open pull requests from this branch get its new head, in this and in other repositories.
fn pulls_follow(state: &mut State, repository: u64, branch: &str, after: Option<&str>, who: Who) -> Result<()> {
    let affected: Vec<(u64, u64, String)> = state
        .repositories
        .values()
        .flat_map(|base| base.issues.values().map(move |issue| (base.id, issue)))
        .filter(|(_, issue)| issue.open)
        .filter_map(|(base, issue)| issue.pull.as_ref().map(|pull| (base, issue.number, pull)))
        .filter(|(_, _, pull)| pull.head_repository == Some(repository) && pull.head_ref == branch)
        .map(|(base, number, pull)| (base, number, pull.head_sha.clone()))
        .collect();
    for (base, number, before) in affected {
        match after {
            None => super::pulls::close(state, base, number, who, None)?,
            Some(after) if after != before => {
                let now = state.now();
                let base_tip = super::pulls::base_tip(state, base, number)?;
                if let Some(issue) = state.repository_mut(base)?.issues.get_mut(&number) {
                    issue.updated_at = now;
                    if let Some(pull) = issue.pull.as_mut() {
                        pull.head_sha = after.to_owned();
                        pull.base_sha = base_tip;
                    }
                }
                super::pulls::write_refs(state, base, number)?;
                let fields = json!({"before": before, "after": after});
                state.emit_pull("synchronize", base, number, who.account, fields)?;
                if base != repository {
                    request_suite(state, base, None, after, None, who.account)?;
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Open pull requests into this branch whose head it now contains are merged.
fn merged_by_push(state: &mut State, repository: u64, git: &Git, branch: &str, after: &str, who: Who) -> Result<()> {
    let open: Vec<(u64, String)> = state
        .repository(repository)?
        .issues
        .values()
        .filter(|issue| issue.open)
        .filter_map(|issue| issue.pull.as_ref().map(|pull| (issue.number, pull)))
        .filter(|(_, pull)| pull.base_ref == branch)
        .map(|(number, pull)| (number, pull.head_sha.clone()))
        .collect();
    for (number, head) in open {
        if git.is_ancestor(&head, after) {
            super::pulls::close(state, repository, number, who, Some(after))?;
        } else {
            super::pulls::write_refs(state, repository, number)?;
        }
    }
    Ok(())
}
