//! Merging of branches without a pull request.

use serde_json::json;

use super::repositories::resolve;
use super::{At, required, text_field};
use crate::sim::access::{Call, write};
use crate::sim::git::Signature;
use crate::sim::wire::{Answer, Outcome, Problem};
use crate::sim::{refs, view};

pub fn merge_branches(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, write(&["contents"]))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let base = required(&body, "Merge", "base")?;
    let head = required(&body, "Merge", "head")?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let base_tip = record
        .known_refs
        .get(&format!("refs/heads/{base}"))
        .cloned()
        .ok_or_else(|| Problem::new(404, "Base does not exist"))?;
    let head_sha = resolve(call.state, id, &head).ok_or_else(|| Problem::new(404, "Head does not exist"))?;
    if git.is_ancestor(&head_sha, &base_tip) {
        return Answer::empty(204);
    }
    let tree = git.merge_tree(&base_tip, &head_sha, None)?.ok_or_else(|| Problem::new(409, "Merge conflict"))?;
    call.guard_workflows(&git, &base_tip, &tree)?;
    let message = text_field(&body, "commit_message")?.unwrap_or_else(|| format!("Merge {head} into {base}"));
    let login = call.state.login(who.account).to_owned();
    let author = Signature { email: refs::noreply(&login), name: login, date: call.state.now() };
    let sha = git.commit_tree(&tree, &[&base_tip, &head_sha], &message, &author, &author)?;
    git.update_ref(&format!("refs/heads/{base}"), &sha, Some(&base_tip))?;
    refs::settle(call.state, id, who)?;
    let commit = call.state.commit(&git, &sha)?;
    Answer::created(view::commits::commit(call.state, call.state.repository(id)?, &commit))
}

/// Brings a branch of a fork up to its parent.
pub fn merge_upstream(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, write(&["contents"]))?;
    let who = call.who()?;
    let body = call.request.json()?;
    let branch = required(&body, "Repository", "branch")?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let parent = record
        .fork_of
        .and_then(|parent| call.state.repositories.get(&parent))
        .ok_or_else(|| Problem::new(422, "This repository is not a fork."))?;
    let name = format!("refs/heads/{branch}");
    let theirs = parent
        .known_refs
        .get(&name)
        .cloned()
        .ok_or_else(|| Problem::new(422, format!("There is no branch {branch} upstream.")))?;
    let ours = record.known_refs.get(&name).cloned().ok_or_else(|| Problem::new(422, "Branch not found"))?;
    let base_branch = format!("{}:{branch}", call.state.login(parent.owner));
    let source = call.state.git(parent);
    git.fetch(&source.directory, &theirs, "refs/landfall-sim/upstream")?;
    let (message, kind) = if git.is_ancestor(&theirs, &ours) {
        ("This branch is not behind the upstream.".to_owned(), "none")
    } else if git.is_ancestor(&ours, &theirs) {
        git.update_ref(&name, &theirs, Some(&ours))?;
        (format!("Successfully fetched and fast-forwarded from upstream {base_branch}."), "fast-forward")
    } else {
        let tree = git.merge_tree(&ours, &theirs, None)?.ok_or_else(|| Problem::new(409, "merge conflict"))?;
        let login = call.state.login(who.account).to_owned();
        let author = Signature { email: refs::noreply(&login), name: login, date: call.state.now() };
        let merged = git.commit_tree(&tree, &[&ours, &theirs], "Merge upstream", &author, &author)?;
        git.update_ref(&name, &merged, Some(&ours))?;
        (format!("Successfully fetched and merged from upstream {base_branch}."), "merge")
    };
    git.delete_ref("refs/landfall-sim/upstream")?;
    refs::settle(call.state, id, who)?;
    Answer::ok(json!({"message": message, "merge_type": kind, "base_branch": base_branch}))
}
