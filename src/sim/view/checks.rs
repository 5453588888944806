//! Commit statuses, check runs and suites, deployments and environments.

use serde_json::{Value, json};

use super::{app, node_id, optional_time, time, user};
use crate::sim::git::Commit;
use crate::sim::state::{CheckRun, CheckSuite, Deployment, DeploymentStatus, Environment, Repository, State, Status};
use crate::sim::wire::percent_encode;

/// `status`.
pub fn status(state: &State, repository: &Repository, status: &Status) -> Value {
    let mut value = simple_status(state, repository, status);
    value["creator"] = user(state, status.creator);
    value
}

/// `simple-commit-status`, as the combined status lists them.
pub fn simple_status(state: &State, repository: &Repository, status: &Status) -> Value {
    json!({
        "url": format!("{}/repos/{}/statuses/{}", state.base, state.full_name(repository), status.sha),
        "avatar_url": format!("{}/_/avatar/{}", state.base, status.creator),
        "id": status.id,
        "node_id": node_id("SC", status.id),
        "state": status.state,
        "description": status.description,
        "target_url": status.target_url,
        "context": status.context,
        "created_at": time(status.created_at),
        "updated_at": time(status.updated_at),
    })
}

/// The latest status of each context of a commit, newest first.
pub fn latest_statuses<'a>(repository: &'a Repository, sha: &str) -> Vec<&'a Status> {
    let mut latest: Vec<&Status> = Vec::new();
    for status in repository.statuses.iter().rev().filter(|status| status.sha == sha) {
        if !latest.iter().any(|known| known.context.eq_ignore_ascii_case(&status.context)) {
            latest.push(status);
        }
    }
    latest
}

/// failure if any failed, pending if any is pending or there is none, else success.
pub fn combined_state(statuses: &[&Status]) -> &'static str {
    let any = |words: &[&str]| statuses.iter().any(|status| words.contains(&status.state.as_str()));
    if any(&["error", "failure"]) {
        "failure"
    } else if statuses.is_empty() || any(&["pending"]) {
        "pending"
    } else {
        "success"
    }
}

/// `pull-request-minimal` of each open pull request of this repository with that head: none for forks.
pub fn pulls_of(state: &State, repository: &Repository, sha: &str) -> Vec<Value> {
    let side = |name: &str, sha: &str| {
        json!({
            "ref": name,
            "sha": sha,
            "repo": {
                "id": repository.id,
                "url": format!("{}/repos/{}", state.base, state.full_name(repository)),
                "name": repository.name,
            },
        })
    };
    repository
        .issues
        .values()
        .filter(|issue| issue.open)
        .filter_map(|issue| issue.pull.as_ref().map(|pull| (issue.number, pull)))
        .filter(|(_, pull)| pull.head_sha == sha && pull.head_repository == Some(repository.id))
        .map(|(number, pull)| {
            json!({
                "id": pull.id,
                "number": number,
                "url": format!("{}/repos/{}/pulls/{number}", state.base, state.full_name(repository)),
                "head": side(&pull.head_ref, &pull.head_sha),
                "base": side(&pull.base_ref, &pull.base_sha),
            })
        })
        .collect()
}

/// `check-run` of the REST description.
pub fn run(state: &State, repository: &Repository, run: &CheckRun) -> Value {
    let full_name = state.full_name(repository);
    let url = format!("{}/repos/{full_name}/check-runs/{}", state.base, run.id);
    let page = format!("{}/{full_name}/runs/{}", state.base, run.id);
    json!({
        "id": run.id,
        "name": run.name,
        "node_id": node_id("CR", run.id),
        "head_sha": run.head_sha,
        "external_id": run.external_id,
        "url": url,
        "html_url": page,
        "details_url": run.details_url.as_deref().unwrap_or(&page),
        "status": run.status,
        "conclusion": run.conclusion,
        "started_at": optional_time(run.started_at),
        "completed_at": optional_time(run.completed_at),
        "output": {
            "title": run.output.title,
            "summary": run.output.summary,
            "text": run.output.text,
            "annotations_count": run.annotations.len(),
            "annotations_url": format!("{url}/annotations"),
        },
        "check_suite": {"id": run.suite},
        "app": app(state),
        "pull_requests": pulls_of(state, repository, &run.head_sha),
    })
}

/// `check-run-with-simple-check-suite` of the webhooks.
pub fn run_in_webhook(state: &State, repository: &Repository, record: &CheckRun) -> Value {
    let mut value = run(state, repository, record);
    value["started_at"] = time(record.started_at.unwrap_or(record.created_at));
    if let Some(suite) = repository.suites.get(&record.suite) {
        let (status, conclusion) = suite_state(repository, suite);
        value["check_suite"] = json!({
            "id": suite.id,
            "node_id": node_id("CS", suite.id),
            "head_branch": suite.head_branch,
            "head_sha": suite.head_sha,
            "status": status,
            "conclusion": conclusion,
            "url": format!("{}/repos/{}/check-suites/{}", state.base, state.full_name(repository), suite.id),
            "before": suite.before,
            "after": suite.after,
            "pull_requests": pulls_of(state, repository, &suite.head_sha),
            "app": app(state),
            "created_at": time(suite.created_at),
            "updated_at": time(suite.updated_at),
        });
    }
    value
}

/// Status and conclusion of a suite follow from the newest run of each name.
pub fn suite_state(repository: &Repository, suite: &CheckSuite) -> (&'static str, Option<&'static str>) {
    let runs = latest_runs(repository, suite.id);
    if runs.is_empty() {
        return ("queued", None);
    }
    if runs.iter().any(|run| run.status != "completed") {
        let started = runs.iter().any(|run| run.status != "queued");
        return (if started { "in_progress" } else { "queued" }, None);
    }
    let any = |word: &str| runs.iter().any(|run| run.conclusion.as_deref() == Some(word));
    let conclusion = ["failure", "timed_out", "cancelled", "action_required", "stale"]
        .into_iter()
        .find(|word| any(word))
        .unwrap_or(if any("success") {
            "success"
        } else if any("neutral") {
            "neutral"
        } else {
            "skipped"
        });
    ("completed", Some(conclusion))
}

/// The newest run of each name in a suite.
pub fn latest_runs(repository: &Repository, suite: u64) -> Vec<&CheckRun> {
    let mut latest: Vec<&CheckRun> = Vec::new();
    for run in repository.runs.values().rev().filter(|run| run.suite == suite) {
        if !latest.iter().any(|known| known.name == run.name) {
            latest.push(run);
        }
    }
    latest
}

/// `check-suite`; `head` is its commit.
pub fn suite(state: &State, repository: &Repository, suite: &CheckSuite, head: &Commit) -> Value {
    let url = format!("{}/repos/{}/check-suites/{}", state.base, state.full_name(repository), suite.id);
    let (status, conclusion) = suite_state(repository, suite);
    json!({
        "id": suite.id,
        "node_id": node_id("CS", suite.id),
        "head_branch": suite.head_branch,
        "head_sha": suite.head_sha,
        "status": status,
        "conclusion": conclusion,
        "url": url,
        "before": suite.before,
        "after": suite.after,
        "pull_requests": pulls_of(state, repository, &suite.head_sha),
        "app": app(state),
        "repository": super::repository(state, repository),
        "created_at": time(suite.created_at),
        "updated_at": time(suite.updated_at),
        "rerequestable": true,
        "runs_rerequestable": true,
        "latest_check_runs_count": latest_runs(repository, suite.id).len(),
        "check_runs_url": format!("{url}/check-runs"),
        "head_commit": super::commits::simple_commit(head),
    })
}

/// `deployment`.
pub fn deployment(state: &State, repository: &Repository, deployment: &Deployment) -> Value {
    let api = format!("{}/repos/{}", state.base, state.full_name(repository));
    let url = format!("{api}/deployments/{}", deployment.id);
    json!({
        "url": url,
        "id": deployment.id,
        "node_id": node_id("DE", deployment.id),
        "sha": deployment.sha,
        "ref": deployment.reference,
        "task": deployment.task,
        "payload": deployment.payload,
        "original_environment": deployment.original_environment,
        "environment": deployment.environment,
        "description": deployment.description,
        "creator": user(state, deployment.creator),
        "created_at": time(deployment.created_at),
        "updated_at": time(deployment.updated_at),
        "statuses_url": format!("{url}/statuses"),
        "repository_url": api,
        "transient_environment": deployment.transient,
        "production_environment": deployment.production,
        "performed_via_github_app": if deployment.via_app { app(state) } else { Value::Null },
    })
}

/// `deployment-status`.
pub fn deployment_status(
    state: &State,
    repository: &Repository,
    deployment: &Deployment,
    status: &DeploymentStatus,
) -> Value {
    let api = format!("{}/repos/{}", state.base, state.full_name(repository));
    let url = format!("{api}/deployments/{}", deployment.id);
    json!({
        "url": format!("{url}/statuses/{}", status.id),
        "id": status.id,
        "node_id": node_id("DES", status.id),
        "state": status.state,
        "creator": user(state, status.creator),
        "description": status.description,
        "environment": status.environment,
        "target_url": status.log_url,
        "log_url": status.log_url,
        "environment_url": status.environment_url,
        "created_at": time(status.created_at),
        "updated_at": time(status.updated_at),
        "deployment_url": url,
        "repository_url": api,
        "performed_via_github_app": if status.via_app { app(state) } else { Value::Null },
    })
}

/// `environment`.
pub fn environment(state: &State, repository: &Repository, environment: &Environment) -> Value {
    let full_name = state.full_name(repository);
    let mut rules = Vec::new();
    if environment.wait_timer > 0 {
        rules.push(json!({
            "id": environment.id + 1,
            "node_id": node_id("GA", environment.id + 1),
            "type": "wait_timer",
            "wait_timer": environment.wait_timer,
        }));
    }
    if !environment.reviewers.is_empty() {
        let people = environment.reviewers.iter();
        let people: Vec<Value> = people.map(|id| json!({"type": "User", "reviewer": user(state, *id)})).collect();
        rules.push(json!({
            "id": environment.id + 2,
            "node_id": node_id("GA", environment.id + 2),
            "type": "required_reviewers",
            "prevent_self_review": environment.prevent_self_review,
            "reviewers": people,
        }));
    }
    if environment.branch_policy.is_object() {
        let id = environment.id + 3;
        rules.push(json!({"id": id, "node_id": node_id("GA", id), "type": "branch_policy"}));
    }
    json!({
        "id": environment.id,
        "node_id": node_id("EN", environment.id),
        "name": environment.name,
        "url": format!("{}/repos/{full_name}/environments/{}", state.base, percent_encode(&environment.name, "")),
        "html_url": format!("{}/{full_name}/deployments/activity_log?environments_filter={}", state.base, percent_encode(&environment.name, "")),
        "created_at": time(environment.created_at),
        "updated_at": time(environment.updated_at),
        "protection_rules": rules,
        "deployment_branch_policy": environment.branch_policy,
    })
}
