//! Commits, comparisons, files and archives.

use base64::Engine as _;
use serde_json::{Value, json};

use super::repositories::resolve;
use super::{At, required, text_field};
use crate::sim::access::{Actor, Call, read, write};
use crate::sim::calendar;
use crate::sim::git::{FileWrite, TreeEntry};
use crate::sim::wire::{Answer, Outcome, Problem, Window, base64_lines, page, percent_encode};
use crate::sim::{pulls, view};

const READ: crate::sim::access::Need = read(&["contents"]);

fn no_commit(text: &str) -> Problem {
    Problem::new(422, format!("No commit found for SHA: {text}"))
}

pub fn commits(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let git = call.state.git_of(id)?;
    if call.state.repository(id)?.known_refs.is_empty() {
        return Err(Problem::new(409, "Git Repository is empty."));
    }
    let from = call.request.query("sha").unwrap_or("HEAD").to_owned();
    let tip = resolve(call.state, id, &from).ok_or_else(Problem::not_found)?;
    let path = call.request.query("path").map(str::to_owned);
    let window = Window::of(call.request);
    let shas = git.list(&[&tip], &[], path.as_deref(), 20_000)?;
    let time = |name: &str| call.request.query(name).and_then(calendar::parse);
    let (since, until) = (time("since"), time("until"));
    let author = call.request.query("author").map(str::to_lowercase);
    let shown: Vec<String> = if since.is_some() || until.is_some() || author.is_some() {
        call.state
            .commit_list(&git, &shas)?
            .into_iter()
            .filter(|commit| since.is_none_or(|since| commit.committer.date >= since))
            .filter(|commit| until.is_none_or(|until| commit.committer.date <= until))
            .filter(|commit| {
                author.as_ref().is_none_or(|author| {
                    commit.author.name.to_lowercase() == *author || commit.author.email.to_lowercase() == *author
                })
            })
            .map(|commit| commit.sha)
            .collect()
    } else {
        shas
    };
    let in_window: Vec<String> =
        shown.iter().skip((window.page - 1) * window.per_page).take(window.per_page).cloned().collect();
    call.state.commit_list(&git, &in_window)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, shown, None, |sha| {
        state.commits.get(&sha).map_or(Value::Null, |commit| view::commits::commit(state, record, commit))
    })
}

pub fn commit(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let git = call.state.git_of(id)?;
    let sha = resolve(call.state, id, reference).ok_or_else(|| no_commit(reference))?;
    if call.request.wants("sha") {
        return Ok(Answer::bytes(200, "application/vnd.github.sha; charset=utf-8", sha));
    }
    let commit = call.state.commit(&git, &sha)?;
    if call.request.wants("diff") || call.request.wants("patch") {
        let from = commit.parents.first().map_or(crate::sim::git::EMPTY_TREE, String::as_str);
        let text = git.run(&["diff-tree", "-r", "-M", "-p", "--no-color", "--no-commit-id", from, &sha])?;
        return Ok(Answer::bytes(200, "application/vnd.github.diff; charset=utf-8", text));
    }
    let record = call.state.repository(id)?;
    Answer::ok(view::commits::full_commit(call.state, record, &git, &commit)?)
}

/// `BASE...HEAD`, with `OWNER:` in front of a side that is in another repository of the network.
pub fn compare(call: &mut Call<'_>, (owner, name): At<'_>, basehead: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let git = call.state.git_of(id)?;
    let (base, head) = basehead.split_once("...").ok_or_else(Problem::not_found)?;
    let side = |text: &str| -> Option<String> {
        match text.split_once(':') {
            None => resolve(call.state, id, text),
            Some((owner, reference)) => {
                let account = call.state.find_account(owner)?;
                let other = call
                    .state
                    .repositories
                    .values()
                    .find(|record| record.owner == account && (record.id == id || record.fork_of == Some(id)))?
                    .id;
                let sha = resolve(call.state, other, reference)?;
                if !git.has(&sha) {
                    let source = call.state.git_of(other).ok()?;
                    git.fetch(&source.directory, &sha, &format!("refs/landfall-sim/compare-{sha}")).ok()?;
                }
                Some(sha)
            }
        }
    };
    let base_sha = side(base).ok_or_else(Problem::not_found)?;
    let head_sha = side(head).ok_or_else(Problem::not_found)?;
    let merge_base = git
        .merge_base(&base_sha, &head_sha)
        .ok_or_else(|| Problem::new(404, format!("No common ancestor between {base} and {head}.")))?;
    let (behind, ahead) = git.left_right(&base_sha, &head_sha)?;
    let mut shas = git.list(&[&head_sha], &[&base_sha], None, 250)?;
    shas.reverse();
    let changes = git.difference(&merge_base, &head_sha, true)?;
    if call.request.wants("diff") {
        let text = git.run(&["diff-tree", "-r", "-M", "-p", "--no-color", &merge_base, &head_sha])?;
        return Ok(Answer::bytes(200, "application/vnd.github.diff; charset=utf-8", text));
    }
    let commits = call.state.commit_list(&git, &shas)?;
    let base_commit = call.state.commit(&git, &base_sha)?;
    let merge_base_commit = call.state.commit(&git, &merge_base)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let full_name = state.full_name(record);
    let page_url = format!("{}/{full_name}/compare/{basehead}", state.base);
    let status = match (ahead, behind) {
        (0, 0) => "identical",
        (_, 0) => "ahead",
        (0, _) => "behind",
        _ => "diverged",
    };
    Answer::ok(json!({
        "url": format!("{}/repos/{full_name}/compare/{}", state.base, percent_encode(basehead, ".:/")),
        "html_url": page_url,
        "permalink_url": format!("{}/{full_name}/compare/{base_sha}...{head_sha}", state.base),
        "diff_url": format!("{page_url}.diff"),
        "patch_url": format!("{page_url}.patch"),
        "base_commit": view::commits::commit(state, record, &base_commit),
        "merge_base_commit": view::commits::commit(state, record, &merge_base_commit),
        "status": status,
        "ahead_by": ahead,
        "behind_by": behind,
        "total_commits": ahead,
        "commits": commits.iter().map(|commit| view::commits::commit(state, record, commit)).collect::<Vec<_>>(),
        "files": changes.iter().take(300).map(|change| view::commits::file(state, record, &head_sha, change)).collect::<Vec<_>>(),
    }))
}

fn entry_value(call: &Call<'_>, full_name: &str, reference: &str, path: &str, entry: &TreeEntry) -> Value {
    let base = &call.state.base;
    let encoded = percent_encode(path, "/");
    let kind = match (entry.kind.as_str(), entry.mode.as_str()) {
        ("tree", _) => "dir",
        ("commit", _) => "submodule",
        (_, "120000") => "symlink",
        _ => "file",
    };
    let url = format!("{base}/repos/{full_name}/contents/{encoded}?ref={}", percent_encode(reference, ""));
    let (git_kind, page_kind) = if kind == "dir" { ("trees", "tree") } else { ("blobs", "blob") };
    let git_url = format!("{base}/repos/{full_name}/git/{git_kind}/{}", entry.sha);
    let page = format!("{base}/{full_name}/{page_kind}/{}/{encoded}", percent_encode(reference, "/"));
    let download = format!("{base}/{full_name}/raw/{}/{encoded}", percent_encode(reference, "/"));
    json!({
        "name": path.rsplit('/').next().unwrap_or(path),
        "path": path,
        "sha": entry.sha,
        "size": entry.size.unwrap_or(0),
        "url": url,
        "html_url": page,
        "git_url": git_url,
        "download_url": if kind == "file" { json!(download) } else { Value::Null },
        "type": kind,
        "_links": {"self": url, "git": git_url, "html": page},
    })
}

pub fn get(call: &mut Call<'_>, (owner, name): At<'_>, path: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let full_name = call.state.full_name(record);
    let reference = call.request.query("ref").unwrap_or(&record.default_branch).to_owned();
    let commit = resolve(call.state, id, &reference)
        .ok_or_else(|| Problem::new(404, format!("No commit found for the ref {reference}")))?;
    let path = path.trim_matches('/');
    if path.split('/').any(|part| part == "..") {
        return Err(Problem::new(422, "path contains a malformed path component"));
    }
    let entry = match path {
        "" => None,
        _ => Some(git.entry(&commit, path)?.ok_or_else(Problem::not_found)?),
    };
    let Some(entry) = entry.filter(|entry| entry.kind != "tree") else {
        let tree = match path {
            "" => git.tree(&commit, false)?,
            _ => git.tree(&format!("{commit}:{path}"), false)?,
        };
        let listed: Vec<Value> = tree
            .iter()
            .map(|entry| {
                let full = if path.is_empty() { entry.path.clone() } else { format!("{path}/{}", entry.path) };
                entry_value(call, &full_name, &reference, &full, entry)
            })
            .collect();
        return Answer::ok(Value::Array(listed));
    };
    let mut value = entry_value(call, &full_name, &reference, path, &entry);
    if entry.kind == "commit" {
        value["submodule_git_url"] = Value::Null;
        return Answer::ok(value);
    }
    let content = git.blob(&entry.sha)?;
    if call.request.wants("raw") {
        return Ok(Answer::bytes(200, "application/vnd.github.raw+json; charset=utf-8", content));
    }
    if entry.mode == "120000" {
        value["target"] = json!(String::from_utf8_lossy(&content));
        return Answer::ok(value);
    }
    if content.len() > 1024 * 1024 {
        // From 1 MB on the content only comes raw.
        value["content"] = json!("");
        value["encoding"] = json!("none");
    } else {
        value["content"] = json!(base64_lines(&content));
        value["encoding"] = json!("base64");
    }
    Answer::ok(value)
}

pub fn put(call: &mut Call<'_>, at: At<'_>, path: &str) -> Outcome {
    change_file(call, at, path, true)
}

pub fn delete(call: &mut Call<'_>, at: At<'_>, path: &str) -> Outcome {
    change_file(call, at, path, false)
}

/// A commit that writes or deletes one file; an existing file has to be named by its blob.
fn change_file(call: &mut Call<'_>, (owner, name): At<'_>, path: &str, keep: bool) -> Outcome {
    let id = call.repository(owner, name, write(&["contents"]))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let message = required(&body, "", "message")?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let full_name = call.state.full_name(record);
    let branch = text_field(&body, "branch")?.unwrap_or_else(|| record.default_branch.clone());
    let tip = record.known_refs.get(&format!("refs/heads/{branch}")).cloned();
    if tip.is_none() && !record.known_refs.is_empty() {
        return Err(Problem::new(404, format!("Branch {branch} not found")));
    }
    let existing = match &tip {
        Some(tip) => git.entry(tip, path)?,
        None => None,
    };
    let named = text_field(&body, "sha")?;
    match (&existing, &named) {
        (Some(_), None) => {
            return Err(Problem::new(422, "Invalid request.\n\n\"sha\" wasn't supplied."));
        }
        (Some(entry), Some(named)) if entry.sha != *named => {
            return Err(Problem::new(409, format!("{path} does not match {named}")));
        }
        (None, _) if !keep => return Err(Problem::not_found()),
        _ => {}
    }
    let content = if keep {
        let text: String =
            required(&body, "", "content")?.chars().filter(|character| !character.is_whitespace()).collect();
        Some(
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|_| Problem::new(422, "content is not valid Base64"))?,
        )
    } else {
        None
    };
    let file = FileWrite { path: path.to_owned(), content, executable: None };
    let is_workflow = path.starts_with(".github/workflows/");
    if let Actor::Installation { permissions, .. } = &call.actor
        && is_workflow
        && !permissions.contains_key("workflows")
    {
        return Err(Problem::new(403, "Resource not accessible by integration")
            .with_header("x-accepted-github-permissions", "contents=write,workflows=write"));
    }
    let new = pulls::NewCommit { branch: &branch, base: None, files: &[file], message: &message, force: false };
    let sha = pulls::commit_files(call.state, id, new, who)?;
    let commit = call.state.commit(&git, &sha)?;
    let entry = git.entry(&sha, path)?;
    let record = call.state.repository(id)?;
    let content = entry.map_or(Value::Null, |entry| entry_value(call, &full_name, &branch, path, &entry));
    Ok(Answer::json(
        if existing.is_none() { 201 } else { 200 },
        json!({"content": content, "commit": view::commits::git_commit(call.state, record, &commit)}),
    ))
}

/// A redirect to the archive itself, as GitHub sends to codeload.
pub fn archive(call: &mut Call<'_>, (owner, name): At<'_>, format: &str, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let sha = resolve(call.state, id, reference).ok_or_else(Problem::not_found)?;
    let record = call.state.repository(id)?;
    // The address carries its own right to read, as codeload's tokens do.
    let right = crate::sim::wire::sha256_hex(&format!("{}/{id}/{sha}", call.state.app.client_secret));
    Ok(Answer::redirect(
        302,
        format!(
            "{}/_/archive/{id}/{sha}.{format}?token={right}&name={}",
            call.state.base,
            percent_encode(&record.name, "")
        ),
    ))
}
