//! Deployments, their statuses, and the environments they make.

use serde_json::{Value, json};

use super::repositories::resolve;
use super::{At, bool_field, is_web_address, number, required, text_field};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::events::Who;
use crate::sim::git::Signature;
use crate::sim::refs;
use crate::sim::state::{Deployment, DeploymentStatus, Environment, Role, State};
use crate::sim::view;
use crate::sim::wire::{Answer, Outcome, Problem, page};

const READ: Need = read(&["deployments"]);
const WRITE: Need = write(&["deployments"]);
const ADMINISTER: Need = write(&["administration"]).for_role(Role::Admin);
const STATES: [&str; 7] = ["error", "failure", "inactive", "in_progress", "queued", "pending", "success"];

fn find<'a>(call: &'a Call<'_>, id: u64, deployment: &str) -> Result<&'a Deployment, Problem> {
    call.state.repository(id)?.deployments.get(&number(deployment)?).ok_or_else(Problem::not_found)
}

pub fn list(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let query = |name: &str| call.request.query(name).filter(|value| *value != "none");
    let found: Vec<&Deployment> = record
        .deployments
        .values()
        .rev()
        .filter(|deployment| {
            query("sha").is_none_or(|sha| deployment.sha == sha)
                && query("ref").is_none_or(|reference| deployment.reference == reference)
                && query("task").is_none_or(|task| deployment.task == task)
                && query("environment").is_none_or(|name| deployment.environment.eq_ignore_ascii_case(name))
        })
        .collect();
    page(call.request, found, None, |deployment| view::checks::deployment(state, record, deployment))
}

pub fn create(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let reference = required(&body, "Deployment", "ref")?;
    let sha = resolve(call.state, id, &reference)
        .ok_or_else(|| Problem::new(422, format!("No ref found for: {reference}")))?;
    let environment = text_field(&body, "environment")?.unwrap_or_else(|| "production".to_owned());
    if environment.is_empty() || environment.chars().count() > 255 {
        return Err(Problem::custom(
            "Deployment",
            "environment",
            "environment is too long (maximum is 255 characters)",
        ));
    }
    let description = text_field(&body, "description")?.filter(|text| !text.is_empty());
    if description.as_ref().is_some_and(|text| text.chars().count() > 140) {
        return Err(Problem::custom(
            "Deployment",
            "description",
            "description is too long (maximum is 140 characters)",
        ));
    }
    if bool_field(&body, "auto_merge")?.unwrap_or(true)
        && let Some(answer) = auto_merge(call.state, id, &reference, who)?
    {
        return Ok(answer);
    }
    check_contexts(call.state, id, &reference, &sha, &body)?;
    let payload = match &body["payload"] {
        Value::Null => json!({}),
        other => other.clone(),
    };
    let now = call.state.now();
    let production = bool_field(&body, "production_environment")?.unwrap_or(environment == "production");
    let deployment = Deployment {
        id: call.state.fresh_id(),
        sha,
        reference,
        task: text_field(&body, "task")?.unwrap_or_else(|| "deploy".to_owned()),
        payload,
        original_environment: environment.clone(),
        environment: environment.clone(),
        description,
        creator: who.account,
        via_app: who.via_app,
        transient: bool_field(&body, "transient_environment")?.unwrap_or(false),
        production,
        created_at: now,
        updated_at: now,
        statuses: Vec::new(),
    };
    ensure_environment(call.state, id, &environment)?;
    let deployment_id = deployment.id;
    call.state.repository_mut(id)?.deployments.insert(deployment_id, deployment);
    let record = call.state.repository(id)?;
    let Some(deployment) = record.deployments.get(&deployment_id) else { return Err(Problem::not_found()) };
    let value = view::checks::deployment(call.state, record, deployment);
    let fields = json!({"deployment": value, "workflow": null, "workflow_run": null});
    call.state.emit("deployment", Some("created"), id, who.account, fields);
    Answer::created(value)
}

/// Where the ref is a branch that lacks commits of the default branch, these are merged into it first, and the
/// answer is 202 with no deployment.
fn auto_merge(state: &mut State, id: u64, reference: &str, who: Who) -> Result<Option<Answer>, Problem> {
    let record = state.repository(id)?;
    let default = record.default_branch.clone();
    let tip = |branch: &str| record.known_refs.get(&format!("refs/heads/{branch}")).cloned();
    let (Some(branch_tip), Some(default_tip)) = (tip(reference), tip(&default)) else { return Ok(None) };
    let git = state.git(record);
    if reference == default || git.is_ancestor(&default_tip, &branch_tip) {
        return Ok(None);
    }
    let Some(tree) = git.merge_tree(&branch_tip, &default_tip, None)? else {
        return Err(Problem::new(409, format!("Conflict merging {default} into {reference}.")));
    };
    let login = state.login(who.account).to_owned();
    let author = Signature { email: refs::noreply(&login), name: login, date: state.now() };
    let message = format!("Merge branch '{default}' into {reference}");
    let commit = git.commit_tree(&tree, &[&branch_tip, &default_tip], &message, &author, &author)?;
    git.update_ref(&format!("refs/heads/{reference}"), &commit, Some(&branch_tip))?;
    refs::settle(state, id, who)?;
    Ok(Some(Answer::json(202, json!({"message": format!("Auto-merged {default} into {reference} on deployment.")}))))
}

/// Without `required_contexts` every status and check of the commit must be green.
fn check_contexts(state: &State, id: u64, reference: &str, sha: &str, body: &Value) -> Result<(), Problem> {
    let record = state.repository(id)?;
    let statuses = view::checks::latest_statuses(record, sha);
    let runs: Vec<_> = record.runs.values().filter(|run| run.head_sha == sha).collect();
    let status_is_green = |context: &str| {
        statuses.iter().any(|status| status.context.eq_ignore_ascii_case(context) && status.state == "success")
            || runs
                .iter()
                .rev()
                .find(|run| run.name == context)
                .is_some_and(|run| run.conclusion.as_deref() == Some("success"))
    };
    let green = match body["required_contexts"].as_array() {
        Some(contexts) => contexts.iter().filter_map(Value::as_str).all(status_is_green),
        None => {
            statuses.iter().all(|status| status.state == "success")
                && runs.iter().all(|run| {
                    run.status == "completed"
                        && matches!(run.conclusion.as_deref(), Some("success" | "neutral" | "skipped"))
                })
        }
    };
    if green {
        return Ok(());
    }
    let mut problem = Problem::new(409, format!("Conflict: Commit status checks failed for {reference}."));
    let contexts: Vec<Value> = statuses
        .iter()
        .map(|status| json!({"context": status.context, "state": status.state}))
        .chain(
            runs.iter()
                .map(|run| json!({"context": run.name, "state": run.conclusion.as_deref().unwrap_or(&run.status)})),
        )
        .collect();
    problem.errors.push(json!({
        "resource": "Deployment",
        "field": "required_contexts",
        "code": "invalid",
        "contexts": contexts,
    }));
    Err(problem)
}

fn ensure_environment(state: &mut State, id: u64, name: &str) -> Result<(), Problem> {
    if state.repository(id)?.environments.contains_key(&name.to_lowercase()) {
        return Ok(());
    }
    let now = state.now();
    let environment = Environment {
        id: state.fresh_id(),
        name: name.to_owned(),
        wait_timer: 0,
        reviewers: Vec::new(),
        prevent_self_review: false,
        branch_policy: Value::Null,
        branches: Vec::new(),
        created_at: now,
        updated_at: now,
    };
    state.repository_mut(id)?.environments.insert(name.to_lowercase(), environment);
    Ok(())
}

pub fn get(call: &mut Call<'_>, (owner, name): At<'_>, deployment: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let found = find(call, id, deployment)?;
    Answer::ok(view::checks::deployment(call.state, call.state.repository(id)?, found))
}

/// Only an inactive deployment can go, unless it is the only one.
pub fn delete(call: &mut Call<'_>, (owner, name): At<'_>, deployment: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let found = find(call, id, deployment)?;
    let (deployment, active) = (found.id, found.state() != "inactive");
    let record = call.state.repository_mut(id)?;
    if active && record.deployments.len() > 1 {
        return Err(Problem::new(
            422,
            "We cannot delete an active deployment unless it is the only deployment in a given environment.",
        ));
    }
    record.deployments.remove(&deployment);
    Answer::empty(204)
}

pub fn statuses(call: &mut Call<'_>, (owner, name): At<'_>, deployment: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let found = find(call, id, deployment)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, found.statuses.iter().rev().collect(), None, |status| {
        view::checks::deployment_status(state, record, found, status)
    })
}

pub fn status(call: &mut Call<'_>, (owner, name): At<'_>, deployment: &str, status: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let found = find(call, id, deployment)?;
    let status = number(status)?;
    let status = found.statuses.iter().find(|known| known.id == status).ok_or_else(Problem::not_found)?;
    Answer::ok(view::checks::deployment_status(call.state, call.state.repository(id)?, found, status))
}

pub fn create_status(call: &mut Call<'_>, (owner, name): At<'_>, deployment: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let found = find(call, id, deployment)?;
    let (deployment, current) = (found.id, found.environment.clone());
    let body = call.request.json()?;
    let word = required(&body, "DeploymentStatus", "state")?;
    if !STATES.contains(&word.as_str()) {
        return Err(Problem::custom("DeploymentStatus", "state", "state is not included in the list"));
    }
    let description = text_field(&body, "description")?.unwrap_or_default();
    if description.chars().count() > 140 {
        return Err(Problem::custom(
            "DeploymentStatus",
            "description",
            "description is too long (maximum is 140 characters)",
        ));
    }
    let mut links = Vec::new();
    for field in ["log_url", "target_url", "environment_url"] {
        let link = text_field(&body, field)?.unwrap_or_default();
        if !link.is_empty() && !is_web_address(&link) {
            return Err(Problem::custom("DeploymentStatus", field, &format!("{field} must use http(s) scheme")));
        }
        links.push(link);
    }
    let environment_url = links.pop().unwrap_or_default();
    let log_url = links.into_iter().find(|link| !link.is_empty()).unwrap_or_default();
    let environment = text_field(&body, "environment")?.unwrap_or(current);
    let now = call.state.now();
    let status = DeploymentStatus {
        id: call.state.fresh_id(),
        state: word.clone(),
        description,
        environment: environment.clone(),
        environment_url,
        log_url,
        creator: who.account,
        via_app: who.via_app,
        created_at: now,
        updated_at: now,
    };
    ensure_environment(call.state, id, &environment)?;
    let auto_inactive = bool_field(&body, "auto_inactive")?.unwrap_or(true);
    if word == "success" && auto_inactive {
        retire_earlier(call.state, id, deployment, &environment)?;
    }
    let record = call.state.repository_mut(id)?;
    let Some(found) = record.deployments.get_mut(&deployment) else { return Err(Problem::not_found()) };
    found.statuses.push(status.clone());
    found.environment = environment;
    found.updated_at = now;
    let record = call.state.repository(id)?;
    let Some(found) = record.deployments.get(&deployment) else { return Err(Problem::not_found()) };
    let value = view::checks::deployment_status(call.state, record, found, &status);
    // No webhook tells of inactive deployments.
    if word != "inactive" {
        let fields = json!({
            "deployment_status": value,
            "deployment": view::checks::deployment(call.state, record, found),
            "check_run": null,
            "workflow": null,
            "workflow_run": null,
        });
        call.state.emit("deployment_status", Some("created"), id, who.account, fields);
    }
    Answer::created(value)
}

/// Earlier successful deployments of the environment become inactive, unless transient or production.
fn retire_earlier(state: &mut State, id: u64, newest: u64, environment: &str) -> Result<(), Problem> {
    let now = state.now();
    let earlier: Vec<u64> = state
        .repository(id)?
        .deployments
        .values()
        .filter(|other| {
            other.id < newest
                && other.environment.eq_ignore_ascii_case(environment)
                && !other.transient
                && !other.production
                && other.state() == "success"
        })
        .map(|other| other.id)
        .collect();
    for other in earlier {
        let status_id = state.fresh_id();
        let Some(found) = state.repository_mut(id)?.deployments.get_mut(&other) else { continue };
        let Some(last) = found.statuses.last().cloned() else { continue };
        found.statuses.push(DeploymentStatus {
            id: status_id,
            state: "inactive".into(),
            description: String::new(),
            created_at: now,
            updated_at: now,
            ..last
        });
        found.updated_at = now;
    }
    Ok(())
}

pub fn environments(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, read(&["actions"]))?;
    let state = &*call.state;
    let record = state.repository(id)?;
    page(call.request, record.environments.values().collect(), Some("environments"), |environment| {
        view::checks::environment(state, record, environment)
    })
}

pub fn environment(call: &mut Call<'_>, (owner, name): At<'_>, environment: &str) -> Outcome {
    let id = call.repository(owner, name, read(&["actions"]))?;
    let record = call.state.repository(id)?;
    let found = record.environments.get(&environment.to_lowercase()).ok_or_else(Problem::not_found)?;
    Answer::ok(view::checks::environment(call.state, record, found))
}

pub fn put_environment(call: &mut Call<'_>, (owner, name): At<'_>, environment: &str) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let body = call.request.json()?;
    if environment.is_empty() || environment.chars().count() > 255 {
        return Err(Problem::custom("Environment", "name", "name is too long (maximum is 255 characters)"));
    }
    ensure_environment(call.state, id, environment)?;
    let now = call.state.now();
    let record = call.state.repository_mut(id)?;
    if let Some(found) = record.environments.get_mut(&environment.to_lowercase()) {
        found.wait_timer = body["wait_timer"].as_u64().unwrap_or(0).min(43_200);
        let reviewers = body["reviewers"].as_array();
        found.reviewers = reviewers.into_iter().flatten().filter_map(|reviewer| reviewer["id"].as_u64()).collect();
        found.prevent_self_review = bool_field(&body, "prevent_self_review")?.unwrap_or(false);
        found.branch_policy = body["deployment_branch_policy"].clone();
        found.updated_at = now;
    }
    let record = call.state.repository(id)?;
    let found = record.environments.get(&environment.to_lowercase()).ok_or_else(Problem::not_found)?;
    Answer::ok(view::checks::environment(call.state, record, found))
}

pub fn branch_policies(call: &mut Call<'_>, (owner, name): At<'_>, environment: &str) -> Outcome {
    let id = call.repository(owner, name, read(&["actions"]))?;
    let record = call.state.repository(id)?;
    let found = record.environments.get(&environment.to_lowercase()).ok_or_else(Problem::not_found)?;
    let named: Vec<(u64, &String)> = (found.id + 1..).zip(&found.branches).collect();
    page(
        call.request,
        named,
        Some("branch_policies"),
        |(id, pattern)| json!({"id": id, "node_id": view::node_id("DBP", id), "name": pattern, "type": "branch"}),
    )
}

pub fn delete_environment(call: &mut Call<'_>, (owner, name): At<'_>, environment: &str) -> Outcome {
    let id = call.repository(owner, name, ADMINISTER)?;
    let record = call.state.repository_mut(id)?;
    match record.environments.remove(&environment.to_lowercase()) {
        Some(_) => Answer::empty(204),
        None => Err(Problem::not_found()),
    }
}
