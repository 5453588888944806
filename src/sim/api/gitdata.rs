//! Git objects and refs as the API has them.

use base64::Engine as _;
use serde_json::{Value, json};

use super::repositories::resolve;
use super::{At, bool_field, required, text_field};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::git::{self, Git, Signature};
use crate::sim::wire::{Answer, Outcome, Problem, base64_lines, page};
use crate::sim::{calendar, refs, view};

const READ: Need = read(&["contents"]);
const WRITE: Need = write(&["contents"]);

fn empty_check(call: &Call<'_>, id: u64) -> Result<(), Problem> {
    if call.state.repository(id)?.known_refs.is_empty() {
        return Err(Problem::new(409, "Git Repository is empty."));
    }
    Ok(())
}

fn view_reference(call: &Call<'_>, id: u64, git: &Git, name: &str, sha: &str) -> Result<Value, Problem> {
    let kind = git.kind(sha).unwrap_or_else(|| "commit".to_owned());
    Ok(view::commits::reference(call.state, call.state.repository(id)?, name, sha, &kind))
}

pub fn reference(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    empty_check(call, id)?;
    let git = call.state.git_of(id)?;
    let full = format!("refs/{}", reference.trim_start_matches("refs/"));
    let refs = git.refs();
    let sha = refs.get(&full).ok_or_else(Problem::not_found)?;
    Answer::ok(view_reference(call, id, &git, &full, sha)?)
}

pub fn matching(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    empty_check(call, id)?;
    let git = call.state.git_of(id)?;
    let full = format!("refs/{}", reference.trim_start_matches("refs/"));
    let found: Vec<(String, String)> = git.refs().into_iter().filter(|(name, _)| name.starts_with(&full)).collect();
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, found, None, |(name, sha)| {
        let kind = git.kind(&sha).unwrap_or_else(|| "commit".to_owned());
        view::commits::reference(state, record, &name, &sha, &kind)
    })
}

pub fn create(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let reference = required(&body, "", "ref")?;
    let sha = required(&body, "", "sha")?;
    let git = call.state.git_of(id)?;
    let short = reference.strip_prefix("refs/heads/").or_else(|| reference.strip_prefix("refs/tags/"));
    if !short.is_some_and(git::is_branch_name) {
        return Err(Problem::new(422, "Reference name is invalid or must start with 'refs/heads/' or 'refs/tags/'"));
    }
    if git.refs().contains_key(&reference) {
        return Err(Problem::new(422, "Reference already exists"));
    }
    if !git::is_sha(&sha) || !git.has(&sha) {
        return Err(Problem::new(422, "Object does not exist"));
    }
    git.update_ref(&reference, &sha, Some(git::ZERO))?;
    refs::settle(call.state, id, who)?;
    Answer::created(view_reference(call, id, &git, &reference, &sha)?)
}

pub fn update(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let sha = required(&body, "", "sha")?;
    let force = bool_field(&body, "force")?.unwrap_or(false);
    let git = call.state.git_of(id)?;
    let full = format!("refs/{reference}");
    let old = git.refs().get(&full).cloned().ok_or_else(|| Problem::new(422, "Reference does not exist"))?;
    if full.starts_with("refs/pull/") {
        return Err(Problem::new(422, "Reference cannot be updated"));
    }
    if !git::is_sha(&sha) || !git.has(&sha) {
        return Err(Problem::new(422, "Object does not exist"));
    }
    if !force && !git.is_ancestor(&old, &sha) {
        return Err(Problem::new(422, "Update is not a fast forward"));
    }
    git.update_ref(&full, &sha, Some(&old))?;
    refs::settle(call.state, id, who)?;
    Answer::ok(view_reference(call, id, &git, &full, &sha)?)
}

pub fn delete(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let git = call.state.git_of(id)?;
    let full = format!("refs/{reference}");
    if !git.refs().contains_key(&full) || full.starts_with("refs/pull/") {
        return Err(Problem::new(422, "Reference does not exist"));
    }
    git.delete_ref(&full)?;
    refs::settle(call.state, id, who)?;
    Answer::empty(204)
}

pub fn commit(call: &mut Call<'_>, (owner, name): At<'_>, sha: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    empty_check(call, id)?;
    let git = call.state.git_of(id)?;
    if !git::is_sha(sha) || git.kind(sha).as_deref() != Some("commit") {
        return Err(Problem::not_found());
    }
    let commit = call.state.commit(&git, sha)?;
    Answer::ok(view::commits::git_commit(call.state, call.state.repository(id)?, &commit))
}

fn signature(value: &Value, default: &Signature) -> Signature {
    Signature {
        name: value["name"].as_str().unwrap_or(&default.name).to_owned(),
        email: value["email"].as_str().unwrap_or(&default.email).to_owned(),
        date: value["date"].as_str().and_then(calendar::parse).unwrap_or(default.date),
    }
}

pub fn create_commit(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let git = call.state.git_of(id)?;
    let message = required(&body, "", "message")?;
    let tree = required(&body, "", "tree")?;
    let parents = super::texts(&body["parents"]);
    if !git::is_sha(&tree) || git.kind(&tree).as_deref() != Some("tree") {
        return Err(Problem::new(422, "Tree SHA does not exist"));
    }
    if parents.iter().any(|parent| !git::is_sha(parent) || git.kind(parent).as_deref() != Some("commit")) {
        return Err(Problem::new(422, "Parent SHA does not exist or is not a commit object"));
    }
    let login = call.state.login(who.account).to_owned();
    let default = Signature { email: refs::noreply(&login), name: login, date: call.state.now() };
    let author = signature(&body["author"], &default);
    let committer = signature(&body["committer"], &author);
    let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
    let sha = git.commit_tree(&tree, &parents, &message, &author, &committer)?;
    let commit = call.state.commit(&git, &sha)?;
    Answer::created(view::commits::git_commit(call.state, call.state.repository(id)?, &commit))
}

pub fn tree(call: &mut Call<'_>, (owner, name): At<'_>, sha: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    empty_check(call, id)?;
    let git = call.state.git_of(id)?;
    let tree = if git::is_sha(sha) && git.kind(sha).as_deref() == Some("tree") {
        sha.to_owned()
    } else {
        let commit = resolve(call.state, id, sha).ok_or_else(Problem::not_found)?;
        call.state.commit(&git, &commit)?.tree
    };
    let recursive = call.request.query("recursive").is_some();
    Answer::ok(tree_value(call, id, &git, &tree, recursive)?)
}

fn tree_value(call: &Call<'_>, id: u64, git: &Git, tree: &str, recursive: bool) -> Result<Value, Problem> {
    let api = format!("{}/repos/{}", call.state.base, call.state.full_name(call.state.repository(id)?));
    let entries = git.tree(tree, recursive)?;
    let truncated = entries.len() > 100_000;
    let listed: Vec<Value> = entries
        .iter()
        .take(100_000)
        .map(|entry| {
            let mut value = json!({"path": entry.path, "mode": entry.mode, "type": entry.kind, "sha": entry.sha});
            if entry.kind != "commit" {
                value["url"] = json!(format!("{api}/git/{}s/{}", entry.kind, entry.sha));
            }
            if let Some(size) = entry.size {
                value["size"] = json!(size);
            }
            value
        })
        .collect();
    Ok(json!({"sha": tree, "url": format!("{api}/git/trees/{tree}"), "tree": listed, "truncated": truncated}))
}

/// A tree from entries on top of `base_tree`; `sha: null` removes.
pub fn create_tree(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let git = call.state.git_of(id)?;
    let entries = body["tree"].as_array().cloned().ok_or_else(|| Problem::type_error("\"tree\" wasn't supplied."))?;
    let mut files = Vec::new();
    for entry in &entries {
        let path = required(entry, "Tree", "path")?;
        let content = match (&entry["content"], &entry["sha"]) {
            (Value::String(text), _) => Some(text.clone().into_bytes()),
            (_, Value::String(sha)) if git::is_sha(sha) && git.kind(sha).as_deref() == Some("blob") => {
                Some(git.blob(sha)?)
            }
            (Value::Null, Value::Null) => None,
            _ => return Err(Problem::new(422, "tree.sha is not a blob of this repository")),
        };
        files.push(git::FileWrite { path, content, executable: Some(entry["mode"] == "100755") });
    }
    let base = match text_field(&body, "base_tree")? {
        None => None,
        Some(sha) => {
            let tree = git
                .kind(&sha)
                .filter(|kind| kind == "tree" || kind == "commit")
                .ok_or_else(|| Problem::new(404, "base_tree is not a tree"))?;
            let login = call.state.login(who.account).to_owned();
            let signature = Signature { email: refs::noreply(&login), name: login, date: 0 };
            Some(match tree.as_str() {
                "tree" => git.commit_tree(&sha, &[], "base", &signature, &signature)?,
                _ => sha,
            })
        }
    };
    let signature = Signature { name: "tree".into(), email: String::new(), date: 0 };
    let commit = git.commit_files(base.as_deref(), &files, "tree", &signature, &signature)?;
    let tree = call.state.commit(&git, &commit)?.tree;
    Answer::created(tree_value(call, id, &git, &tree, false)?)
}

pub fn blob(call: &mut Call<'_>, (owner, name): At<'_>, sha: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    empty_check(call, id)?;
    let git = call.state.git_of(id)?;
    if !git::is_sha(sha) || git.kind(sha).as_deref() != Some("blob") {
        return Err(Problem::not_found());
    }
    let content = git.blob(sha)?;
    if call.request.wants("raw") {
        return Ok(Answer::bytes(200, "application/vnd.github.raw; charset=utf-8", content));
    }
    let api = format!("{}/repos/{}", call.state.base, call.state.full_name(call.state.repository(id)?));
    Answer::ok(json!({
        "sha": sha,
        "node_id": format!("B_{sha}"),
        "size": content.len(),
        "url": format!("{api}/git/blobs/{sha}"),
        "content": base64_lines(&content),
        "encoding": "base64",
    }))
}

pub fn create_blob(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let body = call.request.json()?;
    let text = text_field(&body, "content")?.unwrap_or_default();
    let content = match text_field(&body, "encoding")?.as_deref() {
        Some("base64") => base64::engine::general_purpose::STANDARD
            .decode(text.replace('\n', ""))
            .map_err(|_| Problem::new(422, "content is not valid Base64"))?,
        _ => text.into_bytes(),
    };
    let git = call.state.git_of(id)?;
    let sha = git.write_blob(&content)?;
    let api = format!("{}/repos/{}", call.state.base, call.state.full_name(call.state.repository(id)?));
    Answer::created(json!({"url": format!("{api}/git/blobs/{sha}"), "sha": sha}))
}
