//! Repositories, their branches and tags, forks, and who may do what in them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{At, app::METADATA, bool_field, required, text_field};
use crate::sim::access::{Actor, Call, Need, read, write};
use crate::sim::events::Who;
use crate::sim::git::{FileWrite, Git};
use crate::sim::state::{AccountKind, Repository, Role, State};
use crate::sim::wire::{Answer, Outcome, Problem, page};
use crate::sim::{pulls, refs, view};

const ADMINISTER: Need = write(&["administration"]).for_role(Role::Admin);

/// The role that the permissions of an answer show.
fn role_of(call: &Call<'_>, repository: &Repository) -> Role {
    match &call.actor {
        Actor::User { id, .. } => call.state.role(repository, *id),
        Actor::Installation { .. } => Role::None,
        _ => Role::Read,
    }
}

pub fn get(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let record = call.state.repository(id)?;
    Answer::ok(view::full_repository(call.state, record, role_of(call, record)))
}

pub fn mine(call: &mut Call<'_>) -> Outcome {
    let user = call.require_user()?;
    let state = &*call.state;
    let visible: Vec<&Repository> = state
        .repositories
        .values()
        .filter(|record| {
            record.owner == user
                || record.collaborators.contains_key(&user)
                || state.account(record.owner).is_some_and(|owner| owner.members.contains_key(&user))
        })
        .collect();
    page(call.request, visible, None, |record| view::full_repository(state, record, state.role(record, user)))
}

/// True for what GitHub takes as an owner or repository name.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name != "."
        && name != ".."
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// First parts of paths that are not owners.
pub const RESERVED: [&str; 24] = [
    "_",
    "app",
    "app-manifests",
    "applications",
    "apps",
    "enterprises",
    "events",
    "gists",
    "graphql",
    "installation",
    "installations",
    "login",
    "markdown",
    "meta",
    "notifications",
    "organizations",
    "orgs",
    "rate_limit",
    "repos",
    "repositories",
    "search",
    "settings",
    "user",
    "users",
];

pub fn is_owner_name(name: &str) -> bool {
    is_name(name) && name != "zen" && !RESERVED.contains(&name.to_lowercase().as_str())
}

/// A record for a bare repository on disk.
pub fn register(state: &mut State, owner: u64, name: &str, git: &Git, private: bool, installed: bool) -> u64 {
    state.next_repository += 1;
    let id = state.next_repository;
    let now = state.now();
    let known_refs = git.branches_and_tags();
    let mut default_branch = git.head_branch().unwrap_or_else(|| "main".to_owned());
    if !known_refs.contains_key(&format!("refs/heads/{default_branch}"))
        && let Some(branch) = known_refs.keys().find_map(|name| name.strip_prefix("refs/heads/"))
    {
        default_branch = branch.to_owned();
    }
    state.repositories.insert(
        id,
        Repository {
            id,
            owner,
            name: name.to_owned(),
            private,
            description: None,
            default_branch,
            created_at: now,
            updated_at: now,
            pushed_at: now,
            fork_of: None,
            installed,
            has_issues: true,
            collaborators: BTreeMap::new(),
            known_refs,
            next_number: 1,
            issues: BTreeMap::new(),
            comments: BTreeMap::new(),
            labels: BTreeMap::new(),
            statuses: Vec::new(),
            suites: BTreeMap::new(),
            runs: BTreeMap::new(),
            deployments: BTreeMap::new(),
            environments: BTreeMap::new(),
            auto_check_suites: true,
            protection: BTreeMap::new(),
            rules: BTreeMap::new(),
        },
    );
    id
}

/// Makes a bare repository; with `auto_init` it starts with a commit that adds a README.
pub fn create(call: &mut Call<'_>, org: Option<&str>) -> Outcome {
    let user = call.require_user()?;
    let body = call.request.json()?;
    let owner = match org {
        None => user,
        Some(login) => {
            let id = call.state.find_account(login).ok_or_else(Problem::not_found)?;
            let admin =
                call.state.account(id).is_some_and(|org| org.members.get(&user).is_some_and(|role| role == "admin"));
            if !admin {
                return Err(Problem::new(
                    403,
                    "You need admin access to the organization before adding a repository to it.",
                ));
            }
            id
        }
    };
    let name = required(&body, "Repository", "name")?;
    if !is_name(&name) {
        return Err(Problem::custom("Repository", "name", "name is invalid"));
    }
    let login = call.state.login(owner).to_owned();
    if call.state.find_repository(&login, &name).is_some() {
        let mut problem = Problem::new(422, "Repository creation failed.");
        problem.errors.push(json!({
            "resource": "Repository", "code": "custom", "field": "name", "message": "name already exists on this account",
        }));
        return Err(problem);
    }
    let git = Git::init(&call.state.data.join(&login).join(format!("{name}.git")), "main")?;
    let private = bool_field(&body, "private")?.unwrap_or(false);
    let description = text_field(&body, "description")?;
    let id = register(call.state, owner, &name, &git, private, true);
    call.state.repository_mut(id)?.description = description;
    let who = Who { account: user, via_app: false };
    install(call.state, id, who)?;
    let record = call.state.repository(id)?;
    let fields = json!({"repository": view::repository(call.state, record)});
    call.state.emit("repository", Some("created"), id, user, fields);
    if bool_field(&body, "auto_init")?.unwrap_or(false) {
        let readme =
            FileWrite { path: "README.md".into(), content: Some(format!("# {name}\n").into_bytes()), executable: None };
        let first =
            pulls::NewCommit { branch: "main", base: None, files: &[readme], message: "Initial commit", force: false };
        pulls::commit_files(call.state, id, first, who)?;
    }
    let record = call.state.repository(id)?;
    Answer::created(view::full_repository(call.state, record, Role::Admin))
}

/// Puts a repository under its owner's installation, made when the owner has none yet.
pub fn install(state: &mut State, repository: u64, who: Who) -> Result<(), Problem> {
    let owner = state.repository(repository)?.owner;
    let added = json!([view::installed_repository(state, state.repository(repository)?)]);
    match state.installation_of(owner).map(|installation| installation.id) {
        Some(installation) => {
            let fields = json!({
                "repository_selection": "all",
                "repositories_added": added,
                "repositories_removed": [],
                "requester": null,
            });
            state.emit_installation("installation_repositories", "added", installation, who.account, fields);
        }
        None => {
            let id = crate::sim::world::new_installation(state, owner);
            let fields = json!({"repositories": added, "requester": null});
            state.emit_installation("installation", "created", id, who.account, fields);
        }
    }
    Ok(())
}

pub fn change(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let who = call.who()?;
    let body = call.request.json()?;
    if let Some(new) = text_field(&body, "name")?.filter(|new| !new.is_empty() && new != name) {
        rename(call.state, id, &new, who)?;
    }
    if let Some(branch) = text_field(&body, "default_branch")? {
        let known = call.state.repository(id)?.known_refs.contains_key(&format!("refs/heads/{branch}"));
        if !known {
            return Err(Problem::invalid("Repository", "default_branch", "invalid"));
        }
        call.state.git_of(id)?.set_head(&branch)?;
        call.state.repository_mut(id)?.default_branch = branch;
    }
    let (private, issues) = (bool_field(&body, "private")?, bool_field(&body, "has_issues")?);
    let description = text_field(&body, "description")?;
    let now = call.state.now();
    let record = call.state.repository_mut(id)?;
    record.private = private.unwrap_or(record.private);
    record.has_issues = issues.unwrap_or(record.has_issues);
    record.description = description.or(record.description.take());
    record.updated_at = now;
    let record = call.state.repository(id)?;
    Answer::ok(view::full_repository(call.state, record, role_of(call, record)))
}

/// Renames; the old name keeps redirecting.
pub fn rename(state: &mut State, id: u64, new: &str, who: Who) -> Result<(), Problem> {
    if !is_name(new) {
        return Err(Problem::custom("Repository", "name", "name is invalid"));
    }
    let record = state.repository(id)?;
    let owner = state.login(record.owner).to_owned();
    let old = record.name.clone();
    if state.find_repository(&owner, new).is_some_and(|other| other != id) {
        return Err(Problem::custom("Repository", "name", "name already exists on this account"));
    }
    let from = state.git(record).directory;
    state.repository_mut(id)?.name = new.to_owned();
    let to = state.git_of(id)?.directory;
    std::fs::rename(&from, &to).map_err(anyhow::Error::from)?;
    state.moved.insert(format!("{}/{}", owner.to_lowercase(), old.to_lowercase()), id);
    state.moved.remove(&format!("{}/{}", owner.to_lowercase(), new.to_lowercase()));
    let fields = json!({"changes": {"repository": {"name": {"from": old}}}});
    state.emit("repository", Some("renamed"), id, who.account, fields);
    Ok(())
}

/// Gives the repository to another account; only the new owner's installation hears of it.
pub fn transfer(state: &mut State, id: u64, new_owner: &str, who: Who) -> Result<(), Problem> {
    if !is_owner_name(new_owner) {
        return Err(Problem::invalid("Repository", "new_owner", "invalid"));
    }
    let new_owner = state.ensure_account(new_owner, AccountKind::Organization);
    let record = state.repository(id)?;
    let old_owner = record.owner;
    let name = record.name.clone();
    if old_owner == new_owner {
        return Ok(());
    }
    let from = state.git(record).directory;
    let old_login = state.login(old_owner).to_owned();
    let removed = json!([view::installed_repository(state, record)]);
    let old_installation = state.installation_of(old_owner).map(|installation| installation.id);
    state.repository_mut(id)?.owner = new_owner;
    let to = state.git_of(id)?.directory;
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(anyhow::Error::from)?;
    }
    std::fs::rename(&from, &to).map_err(anyhow::Error::from)?;
    state.moved.insert(format!("{}/{}", old_login.to_lowercase(), name.to_lowercase()), id);
    if let Some(installation) = old_installation {
        let fields = json!({
            "repository_selection": "all",
            "repositories_added": [],
            "repositories_removed": removed,
            "requester": null,
        });
        state.emit_installation("installation_repositories", "removed", installation, who.account, fields);
    }
    install(state, id, who)?;
    let from = match state.account(old_owner).map(|account| account.kind) {
        Some(AccountKind::Organization) => {
            let mut organization = view::organization(state, old_owner);
            organization["html_url"] = json!(format!("{}/{old_login}", state.base));
            json!({"organization": organization})
        }
        _ => json!({"user": view::user(state, old_owner)}),
    };
    state.emit("repository", Some("transferred"), id, who.account, json!({"changes": {"owner": {"from": from}}}));
    Ok(())
}

pub fn delete(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let who = call.who()?;
    remove(call.state, id, who)?;
    Answer::empty(204)
}

/// Deletes a repository; pull requests from it stay, with no head repository.
pub fn remove(state: &mut State, id: u64, who: Who) -> Result<(), Problem> {
    let directory = state.git_of(id)?.directory;
    state.emit("repository", Some("deleted"), id, who.account, json!({}));
    state.repositories.remove(&id);
    for record in state.repositories.values_mut() {
        for pull in record.issues.values_mut().filter_map(|issue| issue.pull.as_mut()) {
            if pull.head_repository == Some(id) {
                pull.head_repository = None;
            }
        }
    }
    std::fs::remove_dir_all(directory).map_err(anyhow::Error::from)?;
    Ok(())
}

fn branch_names(record: &Repository) -> Vec<(String, String)> {
    record
        .known_refs
        .iter()
        .filter_map(|(name, sha)| Some((name.strip_prefix("refs/heads/")?.to_owned(), sha.clone())))
        .collect()
}

pub fn branches(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, read(&["contents"]))?;
    let record = call.state.repository(id)?;
    let api = format!("{}/repos/{}", call.state.base, call.state.full_name(record));
    let wanted = call.request.query("protected").map(|value| value == "true");
    let mut branches = branch_names(record);
    branches.retain(|(name, _)| wanted.is_none_or(|wanted| record.protection.contains_key(name) == wanted));
    page(call.request, branches, None, |(name, sha)| {
        json!({
            "name": name,
            "commit": {"sha": sha, "url": format!("{api}/commits/{sha}")},
            "protected": record.protection.contains_key(&name),
        })
    })
}

pub fn branch(call: &mut Call<'_>, (owner, name): At<'_>, branch: &str) -> Outcome {
    let id = call.repository(owner, name, read(&["contents"]))?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let sha = record
        .known_refs
        .get(&format!("refs/heads/{branch}"))
        .cloned()
        .ok_or_else(|| Problem::new(404, "Branch not found"))?;
    let commit = call.state.commit(&git, &sha)?;
    let record = call.state.repository(id)?;
    let full_name = call.state.full_name(record);
    let url = format!("{}/repos/{full_name}/branches/{branch}", call.state.base);
    let protected = record.protection.contains_key(branch) || record.rules.contains_key(branch);
    let checks = record.protection.get(branch).map(|put| &put["required_status_checks"]);
    let mut protection = json!({"enabled": protected});
    if let Some(checks) = checks.filter(|checks| checks.is_object()) {
        let contexts = super::texts(&checks["contexts"]);
        let each: Vec<Value> = contexts.iter().map(|context| json!({"context": context, "app_id": null})).collect();
        protection["required_status_checks"] =
            json!({"enforcement_level": "non_admins", "contexts": contexts, "checks": each});
    }
    Answer::ok(json!({
        "name": branch,
        "commit": view::commits::commit(call.state, record, &commit),
        "_links": {"self": url, "html": format!("{}/{full_name}/tree/{branch}", call.state.base)},
        "protected": protected,
        "protection": protection,
        "protection_url": format!("{url}/protection"),
    }))
}

pub fn protection(call: &mut Call<'_>, (owner, name): At<'_>, branch: &str) -> Outcome {
    let id = call.repository(owner, name, read(&["administration"]).for_role(Role::Admin))?;
    let record = call.state.repository(id)?;
    if !record.known_refs.contains_key(&format!("refs/heads/{branch}")) {
        return Err(Problem::new(404, "Branch not found"));
    }
    let put = record.protection.get(branch).ok_or_else(|| Problem::new(404, "Branch not protected"))?;
    let url = format!("{}/repos/{}/branches/{branch}/protection", call.state.base, call.state.full_name(record));
    let mut value = json!({
        "url": url,
        "enforce_admins": {"url": format!("{url}/enforce_admins"), "enabled": put["enforce_admins"] == true},
        "required_linear_history": {"enabled": false},
        "allow_force_pushes": {"enabled": false},
        "allow_deletions": {"enabled": false},
    });
    if put["required_status_checks"].is_object() {
        let contexts = super::texts(&put["required_status_checks"]["contexts"]);
        let checks: Vec<Value> = contexts.iter().map(|context| json!({"context": context, "app_id": null})).collect();
        value["required_status_checks"] = json!({
            "url": format!("{url}/required_status_checks"),
            "strict": put["required_status_checks"]["strict"] == true,
            "contexts": contexts,
            "contexts_url": format!("{url}/required_status_checks/contexts"),
            "checks": checks,
        });
    }
    Answer::ok(value)
}

/// The rules of all rulesets that hold for a branch; here only required status checks are known.
pub fn branch_rules(call: &mut Call<'_>, (owner, name): At<'_>, branch: &str) -> Outcome {
    let id = call.repository(owner, name, read(&["metadata"]))?;
    let record = call.state.repository(id)?;
    let full_name = call.state.full_name(record);
    let rules: Vec<&Vec<String>> = record.rules.get(branch).into_iter().collect();
    page(call.request, rules, None, |contexts| {
        let checks: Vec<Value> = contexts.iter().map(|context| json!({"context": context})).collect();
        json!({
            "type": "required_status_checks",
            "parameters": {"required_status_checks": checks, "strict_required_status_checks_policy": false},
            "ruleset_source_type": "Repository",
            "ruleset_source": full_name,
            "ruleset_id": 1,
        })
    })
}

pub fn protect(call: &mut Call<'_>, at: At<'_>, branch: &str) -> Outcome {
    let id = call.repository(at.0, at.1, ADMINISTER)?;
    let body = call.request.json()?;
    call.state.repository_mut(id)?.protection.insert(branch.to_owned(), body);
    protection(call, at, branch)
}

pub fn tags(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, read(&["contents"]))?;
    let record = call.state.repository(id)?;
    let git = call.state.git(record);
    let full_name = call.state.full_name(record);
    let api = format!("{}/repos/{full_name}", call.state.base);
    let tags: Vec<(String, String)> = record
        .known_refs
        .iter()
        .rev()
        .filter_map(|(name, sha)| Some((name.strip_prefix("refs/tags/")?.to_owned(), sha.clone())))
        .collect();
    page(call.request, tags, None, |(tag, sha)| {
        let sha = git.peel(&sha).unwrap_or(sha);
        json!({
            "name": tag,
            "commit": {"sha": sha, "url": format!("{api}/commits/{sha}")},
            "zipball_url": format!("{api}/zipball/refs/tags/{tag}"),
            "tarball_url": format!("{api}/tarball/refs/tags/{tag}"),
            "node_id": format!("REF_{}", hex::encode(&tag)),
        })
    })
}

pub fn forks(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let state = &*call.state;
    let forks: Vec<&Repository> = state.repositories.values().filter(|record| record.fork_of == Some(id)).collect();
    page(call.request, forks, None, |record| view::repository(state, record))
}

pub fn fork(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let user = call.require_user()?;
    let body = call.request.json()?;
    let fork = make_fork(call.state, id, user, text_field(&body, "name")?)?;
    let record = call.state.repository(fork)?;
    Ok(Answer::json(202, view::full_repository(call.state, record, Role::Admin)))
}

/// A copy under another account, where the app is not installed.
pub fn make_fork(state: &mut State, parent: u64, user: u64, name: Option<String>) -> Result<u64, Problem> {
    let record = state.repository(parent)?;
    let source = state.git(record);
    let private = record.private;
    let name = name.unwrap_or_else(|| record.name.clone());
    let login = state.login(user).to_owned();
    if !is_name(&name) {
        return Err(Problem::custom("Repository", "name", "name is invalid"));
    }
    if let Some(existing) = state.find_repository(&login, &name) {
        return Ok(existing);
    }
    let target = state.data.join(&login).join(format!("{name}.git"));
    let git = Git::copy(&source.directory, &target)?;
    let id = register(state, user, &name, &git, private, false);
    state.repository_mut(id)?.fork_of = Some(parent);
    Ok(id)
}

fn people(state: &State, record: &Repository) -> Vec<u64> {
    let mut people: Vec<u64> = record.collaborators.keys().copied().collect();
    match state.account(record.owner) {
        Some(owner) if owner.kind == AccountKind::Organization => people.extend(owner.members.keys()),
        _ => people.push(record.owner),
    }
    people.sort_unstable();
    people.dedup();
    people
}

pub fn collaborators(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, METADATA.for_role(Role::Write))?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, people(state, record), None, |person| {
        let role = state.role(record, person);
        let mut value = view::user(state, person);
        value["permissions"] = view::permissions(role);
        value["role_name"] = json!(role.name());
        value
    })
}

pub fn is_collaborator(call: &mut Call<'_>, (owner, name): At<'_>, login: &str) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let record = call.state.repository(id)?;
    let person = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    if people(call.state, record).contains(&person) { Answer::empty(204) } else { Err(Problem::not_found()) }
}

/// Adds at once, without an invitation to accept.
pub fn add_collaborator(call: &mut Call<'_>, (owner, name): At<'_>, login: &str) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let word = text_field(&body, "permission")?.unwrap_or_else(|| "push".to_owned());
    let role = Role::parse(&word).ok_or_else(|| Problem::invalid("Repository", "permission", "invalid"))?;
    set_collaborator(call.state, id, login, Some(role), who)?;
    Answer::empty(204)
}

pub fn set_collaborator(state: &mut State, id: u64, login: &str, role: Option<Role>, who: Who) -> Result<(), Problem> {
    let person = match role {
        Some(_) => state.ensure_account(login, AccountKind::User),
        None => state.find_account(login).ok_or_else(Problem::not_found)?,
    };
    let record = state.repository_mut(id)?;
    let before = match role {
        Some(role) => record.collaborators.insert(person, role),
        None => record.collaborators.remove(&person),
    };
    let member = view::user(state, person);
    let (action, changes) = match (before, role) {
        (None, Some(role)) => ("added", json!({"permission": {"to": role.folded()}, "role_name": {"to": role.name()}})),
        (Some(before), Some(role)) => ("edited", json!({"permission": {"from": before.folded(), "to": role.folded()}})),
        (Some(_), None) => ("removed", Value::Null),
        (None, None) => return Ok(()),
    };
    let mut fields = json!({"member": member});
    if !changes.is_null() {
        fields["changes"] = changes;
    }
    state.emit("member", Some(action), id, who.account, fields);
    Ok(())
}

pub fn remove_collaborator(call: &mut Call<'_>, (owner, name): At<'_>, login: &str) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let who = call.who()?;
    set_collaborator(call.state, id, login, None, who)?;
    Answer::empty(204)
}

/// The permission of a person, folded, with the exact role beside it.
pub fn permission(call: &mut Call<'_>, (owner, name): At<'_>, login: &str) -> Outcome {
    let id = call.repository(owner, name, METADATA)?;
    let person = call.state.find_account(login).ok_or_else(|| Problem::new(404, format!("{login} is not a user")))?;
    let record = call.state.repository(id)?;
    let role = call.state.role(record, person);
    let mut user = view::user(call.state, person);
    user["permissions"] = view::permissions(role);
    user["role_name"] = json!(role.name());
    Answer::ok(json!({"permission": role.folded(), "role_name": role.name(), "user": user}))
}

/// The commit that a branch, a tag, a ref or an object name stands for.
pub fn resolve(state: &State, repository: u64, text: &str) -> Option<String> {
    let record = state.repository(repository).ok()?;
    let git = state.git(record);
    let refs = git.refs();
    let short = text.strip_prefix("refs/").unwrap_or(text);
    if text.is_empty() || text == "HEAD" {
        return refs.get(&format!("refs/heads/{}", record.default_branch)).cloned();
    }
    for name in [format!("refs/heads/{text}"), format!("refs/tags/{text}"), format!("refs/{short}")] {
        if let Some(sha) = refs.get(&name) {
            return git.peel(sha);
        }
    }
    git.peel(text)
}

/// Looks again at a repository's folder, in case somebody pushed straight into it.
pub fn look_again(state: &mut State, id: u64) {
    if state.pushing.contains_key(&id) {
        return;
    }
    let who = state.first();
    if let Err(error) = refs::settle(state, id, who) {
        tracing::error!("cannot read the refs of repository {id}: {error:#}");
    }
}
