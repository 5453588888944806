//! The switches under `/_`: faults, webhooks, the clock, and what people do without a token. The list of them with
//! their bodies stands at the head of the stand-in's module.

use base64::Engine as _;
use serde_json::{Value, json};

use super::api::{app, bool_field, pulls as pull_calls, repositories, required, text_field, texts};
use super::events::Who;
use super::git::FileWrite;
use super::pulls::{self, Opening};
use super::state::{AccountKind, Hook, Review, Role, State};
use super::wire::{Answer, Outcome, Problem, Request, guid, sha256_hex};
use super::world::{Fault, FaultKind, HookMode, World, lock, named, person};
use super::{calendar, git, refs, view};

pub fn answer(world: &World, request: &Request) -> Answer {
    let path: Vec<&str> = request.segments.iter().skip(1).map(String::as_str).collect();
    let outcome = match (request.method.as_str(), path.as_slice()) {
        ("POST", ["faults"]) => add_fault(world, request),
        ("GET", ["faults"]) => Answer::ok(faults(world)),
        ("DELETE", ["faults"]) => {
            lock(&world.bench).faults.clear();
            Answer::ok(json!({}))
        }
        ("POST", ["webhooks"]) => set_mode(world, request),
        ("GET", ["webhooks"]) => Answer::ok(hooks(world)),
        ("POST", ["webhooks", "release"]) => {
            lock(&world.bench).mode = HookMode::Normal;
            world.wake.notify_one();
            Answer::ok(hooks(world))
        }
        ("GET", ["requests"]) => Answer::ok(requests(world, request)),
        ("DELETE", ["requests"]) => {
            lock(&world.bench).log.clear();
            Answer::ok(json!({}))
        }
        ("GET", ["unknown"]) => {
            let bench = lock(&world.bench);
            Answer::ok(json!({"count": bench.unknown.values().sum::<u64>(), "calls": bench.unknown}))
        }
        ("GET", ["idle"]) => Answer::ok(json!({"idle": world.is_idle()})),
        ("GET", ["oauth"]) => Answer::ok(
            world.read(|state| json!({"client_id": state.app.client_id, "client_secret": state.app.client_secret})),
        ),
        ("POST", ["rate"]) => set_rate(world, request),
        ("POST", [name]) => match request.json() {
            Ok(body) => world.with(|state| act(world, state, name, &body)),
            Err(problem) => Err(problem),
        },
        _ => Err(Problem::new(404, "there is no such control")),
    };
    outcome.unwrap_or_else(Problem::answer)
}

fn add_fault(world: &World, request: &Request) -> Outcome {
    let body = request.json()?;
    let kind = match required(&body, "Fault", "fault")?.as_str() {
        "500" => FaultKind::Status500,
        "500-after" => FaultKind::Status500After,
        "502" => FaultKind::Status502,
        "503" => FaultKind::Status503,
        "401" => FaultKind::Unauthorized,
        "404" => FaultKind::Missing,
        "empty" => FaultKind::EmptyList,
        "403-secondary" => FaultKind::Secondary,
        "403-primary" => FaultKind::Primary,
        "429" => FaultKind::TooMany,
        "delay" => FaultKind::Delay,
        "drop-before" => FaultKind::DropBefore,
        "drop-after" => FaultKind::DropAfter,
        other => return Err(Problem::new(422, format!("there is no fault {other}"))),
    };
    let path = match text_field(&body["match"], "path_regex")? {
        None => None,
        Some(text) => {
            Some(regex::Regex::new(&text).map_err(|error| Problem::new(422, format!("path_regex: {error}")))?)
        }
    };
    let count = body["count"].as_u64().unwrap_or(1);
    lock(&world.bench).faults.push(Fault {
        method: text_field(&body["match"], "method")?,
        path,
        kind,
        retry_after: body["retry_after"].as_u64(),
        delay_ms: body["delay_ms"].as_u64().unwrap_or(if kind == FaultKind::Delay { 1000 } else { 0 }),
        left: (count > 0).then_some(count),
        struck: 0,
    });
    Answer::ok(faults(world))
}

fn faults(world: &World) -> Value {
    let bench = lock(&world.bench);
    let listed: Vec<Value> = bench
        .faults
        .iter()
        .map(|fault| {
            json!({
                "method": fault.method,
                "path_regex": fault.path.as_ref().map(regex::Regex::as_str),
                "fault": format!("{:?}", fault.kind),
                "left": fault.left,
                "struck": fault.struck,
            })
        })
        .collect();
    json!({"faults": listed})
}

fn set_mode(world: &World, request: &Request) -> Outcome {
    let body = request.json()?;
    let mode = match required(&body, "Webhooks", "mode")?.as_str() {
        "normal" => HookMode::Normal,
        "lost" => HookMode::Lost { recorded: bool_field(&body, "recorded")?.unwrap_or(true) },
        "doubled" => HookMode::Doubled,
        "reversed" => HookMode::Reversed,
        "held" => HookMode::Held,
        other => return Err(Problem::new(422, format!("there is no mode {other}"))),
    };
    lock(&world.bench).mode = mode;
    world.wake.notify_one();
    Answer::ok(hooks(world))
}

fn hooks(world: &World) -> Value {
    let mode = lock(&world.bench).mode;
    let queue = lock(&world.queue);
    let waiting: Vec<Value> = queue
        .waiting
        .iter()
        .map(|hook| json!({"guid": hook.guid, "event": hook.event, "action": hook.action}))
        .collect();
    json!({"mode": format!("{mode:?}"), "waiting": waiting, "delivering": queue.delivering})
}

fn requests(world: &World, request: &Request) -> Value {
    let since: u64 = request.query("since").and_then(|since| since.parse().ok()).unwrap_or(0);
    let bench = lock(&world.bench);
    let listed: Vec<Value> = bench
        .log
        .iter()
        .filter(|entry| entry.id > since)
        .map(|entry| {
            json!({
                "id": entry.id,
                "method": entry.method,
                "path": entry.path,
                "status": entry.status,
                "milliseconds": u64::try_from(entry.milliseconds).unwrap_or(u64::MAX),
                "actor": entry.actor,
                "at": calendar::text(entry.at),
                "fault": entry.fault,
            })
        })
        .collect();
    json!({"requests": listed})
}

fn set_rate(world: &World, request: &Request) -> Outcome {
    let body = request.json()?;
    let mut bench = lock(&world.bench);
    if let Some(limit) = body["limit"].as_u64() {
        bench.rate_limit = limit;
    }
    if let Some(enforce) = bool_field(&body, "enforce")? {
        bench.enforce_rate = enforce;
    }
    if let Some(most) = body.get("writes_per_minute") {
        bench.writes_per_minute = most.as_u64();
    }
    bench.used.clear();
    bench.written.clear();
    Answer::ok(json!({
        "limit": bench.rate_limit,
        "enforce": bench.enforce_rate,
        "writes_per_minute": bench.writes_per_minute,
    }))
}

fn repository(state: &State, body: &Value) -> Result<u64, Problem> {
    let name = required(body, "Control", "repo")?;
    named(state, &name).ok_or_else(|| Problem::new(404, format!("there is no repository {name}")))
}

fn actor(state: &mut State, body: &Value) -> Result<Who, Problem> {
    let name = text_field(body, "user")?;
    Ok(person(state, name.as_deref()))
}

fn issue_number(body: &Value) -> Result<u64, Problem> {
    body["number"].as_u64().ok_or_else(|| Problem::new(422, "number is missing"))
}

fn installation(state: &State, body: &Value) -> Result<u64, Problem> {
    let owner = match text_field(body, "owner")? {
        Some(owner) => owner,
        None => required(body, "Control", "repo")?.split('/').next().unwrap_or_default().to_owned(),
    };
    let account = state.find_account(&owner).ok_or_else(Problem::not_found)?;
    Ok(state.installation_of(account).ok_or_else(Problem::not_found)?.id)
}

/// `{path: text | null | {base64, executable}}`.
pub fn files(value: &Value) -> Result<Vec<FileWrite>, Problem> {
    let Some(files) = value.as_object() else { return Err(Problem::new(422, "files is missing")) };
    files
        .iter()
        .map(|(path, content)| {
            let executable = content["executable"].as_bool();
            let content = match content {
                Value::Null => None,
                Value::String(text) => Some(text.clone().into_bytes()),
                other => match (other["base64"].as_str(), other["content"].as_str()) {
                    (Some(text), _) => Some(
                        base64::engine::general_purpose::STANDARD
                            .decode(text)
                            .map_err(|_| Problem::new(422, format!("{path} is not Base64")))?,
                    ),
                    (None, Some(text)) => Some(text.to_owned().into_bytes()),
                    (None, None) => return Err(Problem::new(422, format!("{path} has no content"))),
                },
            };
            Ok(FileWrite { path: path.clone(), content, executable })
        })
        .collect()
}

fn act(world: &World, state: &mut State, name: &str, body: &Value) -> Outcome {
    match name {
        "push" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let branch = match text_field(body, "branch")? {
                Some(branch) => branch,
                None => state.repository(id)?.default_branch.clone(),
            };
            let message = text_field(body, "message")?.unwrap_or_else(|| "Change files".to_owned());
            let base = text_field(body, "base")?;
            let force = bool_field(body, "force")?.unwrap_or(false);
            let files = files(&body["files"])?;
            let new =
                pulls::NewCommit { branch: &branch, base: base.as_deref(), files: &files, message: &message, force };
            let sha = pulls::commit_files(state, id, new, who)?;
            Answer::ok(json!({"sha": sha, "branch": branch}))
        }
        "delete-branch" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let branch = required(body, "Control", "branch")?;
            state.git_of(id)?.delete_ref(&format!("refs/heads/{branch}"))?;
            refs::settle(state, id, who)?;
            Answer::ok(json!({}))
        }
        "fork" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let fork = repositories::make_fork(state, id, who.account, text_field(body, "name")?)?;
            let full_name = state.full_name(state.repository(fork)?);
            Answer::ok(json!({"id": fork, "full_name": full_name}))
        }
        "pull" => open_pull(state, body),
        "comment" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let comment = pulls::comment(state, id, issue_number(body)?, required(body, "Control", "body")?, who)?;
            Answer::ok(json!({"id": comment}))
        }
        "review" => review(state, body),
        "draft" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let draft = bool_field(body, "draft")?.unwrap_or(true);
            pull_calls::change_draft(state, id, issue_number(body)?, draft, who)?;
            Answer::ok(json!({}))
        }
        "close" | "reopen" | "merge" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let number = issue_number(body)?;
            match name {
                "close" => pulls::close(state, id, number, who, None)?,
                "reopen" => pulls::reopen(state, id, number, who)?,
                _ => {
                    let method = text_field(body, "method")?.unwrap_or_else(|| "merge".to_owned());
                    let sha = pulls::merge(state, id, number, &method, None, None, who)?;
                    return Answer::ok(json!({"sha": sha}));
                }
            }
            Answer::ok(json!({}))
        }
        "rerequest" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let run = body["check_run"].as_u64().ok_or_else(|| Problem::new(422, "check_run is missing"))?;
            super::api::checks::rerequest(state, id, run, who);
            Answer::ok(json!({}))
        }
        "collaborator" => {
            let id = repository(state, body)?;
            let login = required(body, "Control", "user")?;
            let role = match text_field(body, "permission")? {
                None => None,
                Some(word) => Some(Role::parse(&word).ok_or_else(|| Problem::new(422, "no such permission"))?),
            };
            let who = state.first();
            repositories::set_collaborator(state, id, &login, role, who)?;
            Answer::ok(json!({}))
        }
        "rules" => {
            let id = repository(state, body)?;
            let branch = required(body, "Control", "branch")?;
            state.repository_mut(id)?.rules.insert(branch, texts(&body["contexts"]));
            Answer::ok(json!({}))
        }
        "environment-branches" => {
            let id = repository(state, body)?;
            let name = required(body, "Control", "environment")?.to_lowercase();
            let found = state.repository_mut(id)?.environments.get_mut(&name);
            found.ok_or_else(Problem::not_found)?.branches = texts(&body["branches"]);
            Answer::ok(json!({}))
        }
        "member" | "team" => people(state, name, body),
        "user" => {
            let login = required(body, "Control", "name")?;
            let id = state.ensure_account(&login, AccountKind::User);
            if let Some(token) = text_field(body, "token")? {
                state.fixed_tokens.insert(sha256_hex(&token), id);
            }
            Answer::ok(view::user(state, id))
        }
        "signed-in" => {
            let who = actor(state, body)?;
            lock(&world.bench).signed_in = Some(who.account);
            Answer::ok(json!({}))
        }
        "suspend" | "unsuspend" => {
            let by = state.first_user;
            let id = installation(state, body)?;
            app::set_suspended(state, id, name == "suspend", by)?;
            Answer::ok(json!({"installation": id}))
        }
        "uninstall" => {
            let id = installation(state, body)?;
            app::uninstall(state, id)?;
            Answer::ok(json!({"installation": id}))
        }
        "install" => {
            let owner = required(body, "Control", "owner")?;
            let account = state.find_account(&owner).ok_or_else(Problem::not_found)?;
            if state.installation_of(account).is_some() {
                return Err(Problem::new(422, "the app is installed there already"));
            }
            Answer::ok(json!({"installation": app::install(state, account)}))
        }
        "select" => {
            let id = repository(state, body)?;
            app::select(state, id, body["selected"].as_bool().unwrap_or(true))?;
            Answer::ok(json!({"repository": id}))
        }
        "permissions" => permissions(state, body),
        "rename" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            repositories::rename(state, id, &required(body, "Control", "name")?, who)?;
            Answer::ok(json!({"id": id}))
        }
        "transfer" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            let owner = match text_field(body, "owner")? {
                Some(owner) => owner,
                None => required(body, "Control", "new_owner")?,
            };
            repositories::transfer(state, id, &owner, who)?;
            Answer::ok(json!({"id": id}))
        }
        "delete" => {
            let id = repository(state, body)?;
            let who = actor(state, body)?;
            repositories::remove(state, id, who)?;
            Answer::ok(json!({}))
        }
        "visibility" => {
            let id = repository(state, body)?;
            let private = bool_field(body, "private")?.unwrap_or(true);
            state.repository_mut(id)?.private = private;
            let action = if private { "privatized" } else { "publicized" };
            let sender = state.first_user;
            state.emit("repository", Some(action), id, sender, json!({}));
            Answer::ok(json!({}))
        }
        "merge-group" => merge_group(state, body),
        "mergeable" => {
            state.unknown_merges = body["unknown"].as_u64().unwrap_or(1);
            Answer::ok(json!({"unknown": state.unknown_merges}))
        }
        "clock" => {
            let seconds = body["advance_seconds"].as_i64().unwrap_or(0);
            state.clock_offset += seconds;
            Answer::ok(json!({"now": calendar::text(state.now())}))
        }
        "emit" => {
            let event = required(body, "Control", "event")?;
            let payload = body["payload"].clone();
            state.outbox.push(Hook {
                guid: text_field(body, "guid")?.unwrap_or_else(guid),
                event,
                action: payload["action"].as_str().map(str::to_owned),
                installation: payload["installation"]["id"].as_u64(),
                repository: payload["repository"]["id"].as_u64(),
                payload: payload.to_string(),
                redelivery: false,
            });
            Answer::ok(json!({}))
        }
        _ => Err(Problem::new(404, format!("there is no control {name}"))),
    }
}

fn open_pull(state: &mut State, body: &Value) -> Outcome {
    let id = repository(state, body)?;
    let who = actor(state, body)?;
    let head_repository = match text_field(body, "head_repo")? {
        None => id,
        Some(name) => named(state, &name).ok_or_else(Problem::not_found)?,
    };
    let base_ref = match text_field(body, "base")? {
        Some(base) => base,
        None => state.repository(id)?.default_branch.clone(),
    };
    let opening = Opening {
        title: required(body, "Control", "title")?,
        body: text_field(body, "body")?,
        head_repository,
        head_ref: required(body, "Control", "head")?,
        base_ref,
        draft: bool_field(body, "draft")?.unwrap_or(false),
        maintainer_can_modify: true,
    };
    let opened = pulls::open(state, id, opening, who)?;
    let head = state
        .repository(id)?
        .issues
        .get(&opened)
        .and_then(|issue| issue.pull.as_ref())
        .map(|pull| pull.head_sha.clone());
    Answer::ok(json!({"number": opened, "head_sha": head}))
}

fn review(state: &mut State, body: &Value) -> Outcome {
    let id = repository(state, body)?;
    let who = actor(state, body)?;
    let number = issue_number(body)?;
    let word = match text_field(body, "event")?.as_deref() {
        Some("REQUEST_CHANGES") => "CHANGES_REQUESTED",
        Some("COMMENT") => "COMMENTED",
        _ => "APPROVED",
    };
    let text = text_field(body, "body")?.unwrap_or_default();
    let (review_id, now) = (state.fresh_id(), state.now());
    let record = state.repository_mut(id)?;
    let pull = record.issues.get_mut(&number).and_then(|issue| issue.pull.as_mut()).ok_or_else(Problem::not_found)?;
    let review = Review {
        id: review_id,
        user: who.account,
        state: word.into(),
        body: text,
        commit: pull.head_sha.clone(),
        submitted_at: now,
    };
    pull.reviews.push(review.clone());
    pull_calls::emit_review(state, id, number, &review, who)?;
    Answer::ok(json!({"id": review_id}))
}

fn people(state: &mut State, name: &str, body: &Value) -> Outcome {
    let org = required(body, "Control", "org")?;
    let org = state.ensure_account(&org, AccountKind::Organization);
    if name == "team" {
        let team = required(body, "Control", "team")?;
        let mut members = Vec::new();
        for login in texts(&body["members"]) {
            members.push(state.ensure_account(&login, AccountKind::User));
        }
        if let Some(account) = state.accounts.get_mut(&org) {
            for member in &members {
                account.members.entry(*member).or_insert_with(|| "member".to_owned());
            }
            account.teams.insert(team, members);
        }
        return Answer::ok(json!({}));
    }
    let login = required(body, "Control", "user")?;
    let user = state.ensure_account(&login, AccountKind::User);
    let role = text_field(body, "role")?;
    if let Some(account) = state.accounts.get_mut(&org) {
        match role {
            Some(role) => account.members.insert(user, role),
            None => account.members.remove(&user),
        };
    }
    Answer::ok(json!({}))
}

/// Changes what the app asks for, and lets every installation accept it at once.
fn permissions(state: &mut State, body: &Value) -> Outcome {
    let Some(asked) = body["permissions"].as_object() else {
        return Err(Problem::new(422, "permissions is missing"));
    };
    for (name, level) in asked {
        match level.as_str() {
            Some(level) => state.app.permissions.insert(name.clone(), level.to_owned()),
            None => state.app.permissions.remove(name),
        };
    }
    let permissions = state.app.permissions.clone();
    let ids: Vec<u64> = state.installations.keys().copied().collect();
    let sender = state.first_user;
    for id in ids {
        if let Some(installation) = state.installations.get_mut(&id) {
            installation.permissions = permissions.clone();
        }
        state.emit_installation("installation", "new_permissions_accepted", id, sender, json!({}));
    }
    Answer::ok(json!({"permissions": permissions}))
}

/// A branch of the merge queue: the pull request merged into its base, for the app to test.
fn merge_group(state: &mut State, body: &Value) -> Outcome {
    let id = repository(state, body)?;
    let who = actor(state, body)?;
    let pull_number = issue_number(body)?;
    let record = state.repository(id)?;
    let base_ref = record
        .issues
        .get(&pull_number)
        .and_then(|issue| issue.pull.as_ref())
        .map(|pull| pull.base_ref.clone())
        .ok_or_else(Problem::not_found)?;
    let tip = pulls::base_tip(state, id, pull_number)?;
    let tree = view::pulls::merge_result(state, id, pull_number)?
        .ok_or_else(|| Problem::new(409, "the pull request does not merge"))?;
    let head = state
        .repository(id)?
        .issues
        .get(&pull_number)
        .and_then(|issue| issue.pull.as_ref())
        .map(|pull| pull.head_sha.clone())
        .unwrap_or_default();
    let git = state.git_of(id)?;
    let queue = git::Signature {
        name: "GitHub Merge Queue".into(),
        email: "noreply@github.localhost".into(),
        date: state.now(),
    };
    let commit =
        git.commit_tree(&tree, &[&tip, &head], &format!("Merge pull request #{pull_number}"), &queue, &queue)?;
    let branch = format!("gh-readonly-queue/{base_ref}/pr-{pull_number}-{tip}");
    git.update_ref(&format!("refs/heads/{branch}"), &commit, None)?;
    refs::settle(state, id, who)?;
    let head_commit = state.commit(&git, &commit)?;
    let fields = json!({
        "merge_group": {
            "head_sha": commit,
            "head_ref": format!("refs/heads/{branch}"),
            "base_sha": tip,
            "base_ref": format!("refs/heads/{base_ref}"),
            "head_commit": view::commits::simple_commit(&head_commit),
        },
    });
    state.emit("merge_group", Some("checks_requested"), id, who.account, fields);
    Answer::ok(json!({"head_sha": commit, "head_ref": branch}))
}
