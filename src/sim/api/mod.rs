//! The REST API: one table from method and path to function. A path that is not in it is answered 501 and counted,
//! never guessed: whoever needs more of GitHub finds out at once.

pub mod app;
pub mod checks;
pub mod contents;
pub mod deployments;
pub mod gitdata;
pub mod issues;
pub mod merging;
pub mod pulls;
pub mod repositories;
pub mod statuses;
pub mod users;

use serde_json::Value;

use super::access::Call;
use super::wire::{Outcome, Problem};

/// Answers a call; `None` for a path that the stand-in does not know.
pub fn route(call: &mut Call<'_>) -> Option<Outcome> {
    let segments = call.request.segments.clone();
    let path: Vec<&str> = segments.iter().map(String::as_str).collect();
    let method = match call.request.method.as_str() {
        "HEAD" => "GET".to_owned(),
        other => other.to_owned(),
    };
    let outcome = match (method.as_str(), path.as_slice()) {
        (_, ["repos", owner, name, rest @ ..]) => return in_repository(call, &method, owner, name, rest),

        ("GET", []) => app::root(call),
        ("GET", ["app"]) => app::get(call),
        ("GET", ["app", "installations"]) => app::installations(call),
        ("GET", ["app", "installations", id]) => app::installation(call, id),
        ("DELETE", ["app", "installations", id]) => app::delete_installation(call, id),
        ("POST", ["app", "installations", id, "access_tokens"]) => app::access_token(call, id),
        ("PUT", ["app", "installations", id, "suspended"]) => app::suspend(call, id, true),
        ("DELETE", ["app", "installations", id, "suspended"]) => app::suspend(call, id, false),
        ("GET", ["app", "hook", "config"]) => app::hook_config(call),
        ("PATCH", ["app", "hook", "config"]) => app::change_hook_config(call),
        ("GET", ["app", "hook", "deliveries"]) => app::deliveries(call),
        ("GET", ["app", "hook", "deliveries", id]) => app::delivery(call, id),
        ("POST", ["app", "hook", "deliveries", id, "attempts"]) => app::redeliver(call, id),
        ("POST", ["app-manifests", code, "conversions"]) => app::convert_manifest(call, code),
        ("GET", ["apps", slug]) => app::by_slug(call, slug),
        ("GET", ["orgs", owner, "installation"] | ["users", owner, "installation"]) => {
            app::installation_of_account(call, owner)
        }
        ("GET", ["installation", "repositories"]) => app::installation_repositories(call),
        ("DELETE", ["installation", "token"]) => app::revoke_token(call),
        ("GET", ["rate_limit"]) => app::rate_limit(call),
        ("GET", ["meta"]) => app::meta(call),
        ("GET", ["zen"]) => app::zen(call),

        ("GET", ["user"]) => users::me(call),
        ("GET", ["user", "repos"]) => repositories::mine(call),
        ("POST", ["user", "repos"]) => repositories::create(call, None),
        ("POST", ["orgs", org, "repos"]) => repositories::create(call, Some(org)),
        ("GET", ["user", "installations"]) => users::installations(call),
        ("GET", ["user", "installations", id, "repositories"]) => users::installation_repositories(call, id),
        ("GET", ["user", "orgs"]) => users::organizations(call),
        ("GET", ["user", "memberships", "orgs", org]) => users::my_membership(call, org),
        ("GET", ["users", login]) => users::by_login(call, login),
        ("GET", ["orgs", org]) => users::organization(call, org),
        ("GET", ["orgs", org, "members", login]) => users::is_member(call, org, login),
        ("GET", ["orgs", org, "memberships", login]) => users::membership(call, org, login),
        ("GET", ["orgs", org, "teams", team, "memberships", login]) => users::team_membership(call, org, team, login),
        ("POST", ["applications", client, "token"]) => users::check_token(call, client),
        ("DELETE", ["applications", client, "token"]) => users::delete_token(call, client, false),
        ("DELETE", ["applications", client, "grant"]) => users::delete_token(call, client, true),
        _ => return None,
    };
    Some(outcome)
}

fn in_repository(call: &mut Call<'_>, method: &str, owner: &str, name: &str, rest: &[&str]) -> Option<Outcome> {
    let at = (owner, name);
    let outcome = match (method, rest) {
        ("GET", []) => repositories::get(call, at),
        ("PATCH", []) => repositories::change(call, at),
        ("DELETE", []) => repositories::delete(call, at),
        ("GET", ["installation"]) => app::installation_of_repository(call, at),
        ("GET", ["branches"]) => repositories::branches(call, at),
        ("GET", ["branches", branch @ .., "protection"]) => repositories::protection(call, at, &branch.join("/")),
        ("PUT", ["branches", branch @ .., "protection"]) => repositories::protect(call, at, &branch.join("/")),
        ("GET", ["rules", "branches", branch @ ..]) => repositories::branch_rules(call, at, &branch.join("/")),
        ("GET", ["branches", branch @ ..]) => repositories::branch(call, at, &branch.join("/")),
        ("GET", ["tags"]) => repositories::tags(call, at),
        ("GET", ["forks"]) => repositories::forks(call, at),
        ("POST", ["forks"]) => repositories::fork(call, at),
        ("GET", ["collaborators"]) => repositories::collaborators(call, at),
        ("GET", ["collaborators", login]) => repositories::is_collaborator(call, at, login),
        ("PUT", ["collaborators", login]) => repositories::add_collaborator(call, at, login),
        ("DELETE", ["collaborators", login]) => repositories::remove_collaborator(call, at, login),
        ("GET", ["collaborators", login, "permission"]) => repositories::permission(call, at, login),
        ("GET", ["tarball", reference @ ..]) => contents::archive(call, at, "tar.gz", &reference.join("/")),
        ("GET", ["zipball", reference @ ..]) => contents::archive(call, at, "zip", &reference.join("/")),

        ("GET", ["commits"]) => contents::commits(call, at),
        ("GET", ["commits", sha, "pulls"]) => pulls::of_commit(call, at, sha),
        ("GET", ["commits", reference @ .., "statuses"]) => statuses::list(call, at, &reference.join("/")),
        ("GET", ["commits", reference @ .., "status"]) => statuses::combined(call, at, &reference.join("/")),
        ("GET", ["commits", reference @ .., "check-runs"]) => checks::runs_of_ref(call, at, &reference.join("/")),
        ("GET", ["commits", reference @ .., "check-suites"]) => checks::suites_of_ref(call, at, &reference.join("/")),
        ("GET", ["commits", reference @ ..]) => contents::commit(call, at, &reference.join("/")),
        ("GET", ["compare", basehead @ ..]) => contents::compare(call, at, &basehead.join("/")),
        ("GET", ["contents", path @ ..]) => contents::get(call, at, &path.join("/")),
        ("PUT", ["contents", path @ ..]) => contents::put(call, at, &path.join("/")),
        ("DELETE", ["contents", path @ ..]) => contents::delete(call, at, &path.join("/")),

        ("GET", ["git", "ref", reference @ ..]) => gitdata::reference(call, at, &reference.join("/")),
        ("GET", ["git", "matching-refs", reference @ ..]) => gitdata::matching(call, at, &reference.join("/")),
        ("POST", ["git", "refs"]) => gitdata::create(call, at),
        ("PATCH", ["git", "refs", reference @ ..]) => gitdata::update(call, at, &reference.join("/")),
        ("DELETE", ["git", "refs", reference @ ..]) => gitdata::delete(call, at, &reference.join("/")),
        ("GET", ["git", "commits", sha]) => gitdata::commit(call, at, sha),
        ("POST", ["git", "commits"]) => gitdata::create_commit(call, at),
        ("GET", ["git", "trees", sha @ ..]) => gitdata::tree(call, at, &sha.join("/")),
        ("POST", ["git", "trees"]) => gitdata::create_tree(call, at),
        ("GET", ["git", "blobs", sha]) => gitdata::blob(call, at, sha),
        ("POST", ["git", "blobs"]) => gitdata::create_blob(call, at),

        ("GET", ["pulls"]) => pulls::list(call, at),
        ("POST", ["pulls"]) => pulls::create(call, at),
        ("GET", ["pulls", number]) => pulls::get(call, at, number),
        ("PATCH", ["pulls", number]) => pulls::change(call, at, number),
        ("GET", ["pulls", number, "files"]) => pulls::files(call, at, number),
        ("GET", ["pulls", number, "commits"]) => pulls::commits(call, at, number),
        ("GET", ["pulls", number, "merge"]) => pulls::is_merged(call, at, number),
        ("PUT", ["pulls", number, "merge"]) => pulls::merge(call, at, number),
        ("PUT", ["pulls", number, "update-branch"]) => pulls::update_branch(call, at, number),
        ("GET", ["pulls", number, "reviews"]) => pulls::reviews(call, at, number),
        ("POST", ["pulls", number, "reviews"]) => pulls::create_review(call, at, number),
        ("POST", ["pulls", number, "ready_for_review"]) => pulls::set_draft(call, at, number, false),
        ("POST", ["pulls", number, "convert_to_draft"]) => pulls::set_draft(call, at, number, true),

        ("GET", ["issues"]) => issues::list(call, at),
        ("POST", ["issues"]) => issues::create(call, at),
        ("GET", ["issues", "comments"]) => issues::all_comments(call, at),
        ("GET", ["issues", "comments", id]) => issues::comment(call, at, id),
        ("PATCH", ["issues", "comments", id]) => issues::change_comment(call, at, id),
        ("DELETE", ["issues", "comments", id]) => issues::delete_comment(call, at, id),
        ("GET", ["issues", "comments", id, "reactions"]) => issues::comment_reactions(call, at, id),
        ("POST", ["issues", "comments", id, "reactions"]) => issues::react_to_comment(call, at, id),
        ("DELETE", ["issues", "comments", id, "reactions", reaction]) => {
            issues::delete_comment_reaction(call, at, id, reaction)
        }
        ("GET", ["issues", number]) => issues::get(call, at, number),
        ("PATCH", ["issues", number]) => issues::change(call, at, number),
        ("GET", ["issues", number, "comments"]) => issues::comments(call, at, number),
        ("POST", ["issues", number, "comments"]) => issues::create_comment(call, at, number),
        ("GET", ["issues", number, "reactions"]) => issues::issue_reactions(call, at, number),
        ("POST", ["issues", number, "reactions"]) => issues::react_to_issue(call, at, number),
        ("GET", ["issues", number, "labels"]) => issues::labels(call, at, number),
        ("POST", ["issues", number, "labels"]) => issues::add_labels(call, at, number),
        ("PUT", ["issues", number, "labels"]) => issues::set_labels(call, at, number),
        ("DELETE", ["issues", number, "labels", label @ ..]) => {
            issues::remove_label(call, at, number, &label.join("/"))
        }
        ("PUT", ["issues", number, "lock"]) => issues::lock(call, at, number, true),
        ("DELETE", ["issues", number, "lock"]) => issues::lock(call, at, number, false),
        ("GET", ["labels"]) => issues::repository_labels(call, at),
        ("POST", ["labels"]) => issues::create_label(call, at),

        ("POST", ["statuses", sha]) => statuses::create(call, at, sha),
        ("POST", ["check-runs"]) => checks::create_run(call, at),
        ("GET", ["check-runs", id]) => checks::run(call, at, id),
        ("PATCH", ["check-runs", id]) => checks::change_run(call, at, id),
        ("GET", ["check-runs", id, "annotations"]) => checks::annotations(call, at, id),
        ("POST", ["check-runs", id, "rerequest"]) => checks::rerequest_run(call, at, id),
        ("POST", ["check-suites"]) => checks::create_suite(call, at),
        ("PATCH", ["check-suites", "preferences"]) => checks::preferences(call, at),
        ("GET", ["check-suites", id]) => checks::suite(call, at, id),
        ("GET", ["check-suites", id, "check-runs"]) => checks::runs_of_suite(call, at, id),
        ("POST", ["check-suites", id, "rerequest"]) => checks::rerequest_suite(call, at, id),

        ("GET", ["deployments"]) => deployments::list(call, at),
        ("POST", ["deployments"]) => deployments::create(call, at),
        ("GET", ["deployments", id]) => deployments::get(call, at, id),
        ("DELETE", ["deployments", id]) => deployments::delete(call, at, id),
        ("GET", ["deployments", id, "statuses"]) => deployments::statuses(call, at, id),
        ("POST", ["deployments", id, "statuses"]) => deployments::create_status(call, at, id),
        ("GET", ["deployments", id, "statuses", status]) => deployments::status(call, at, id, status),
        ("GET", ["environments"]) => deployments::environments(call, at),
        ("GET", ["environments", name @ .., "deployment-branch-policies"]) => {
            deployments::branch_policies(call, at, &name.join("/"))
        }
        ("GET", ["environments", name @ ..]) => deployments::environment(call, at, &name.join("/")),
        ("PUT", ["environments", name @ ..]) => deployments::put_environment(call, at, &name.join("/")),
        ("DELETE", ["environments", name @ ..]) => deployments::delete_environment(call, at, &name.join("/")),

        ("POST", ["merges"]) => merging::merge_branches(call, at),
        ("POST", ["merge-upstream"]) => merging::merge_upstream(call, at),
        _ => return None,
    };
    Some(outcome)
}

/// Owner and name of a path.
pub type At<'a> = (&'a str, &'a str);

/// A number of the path; anything else is not found.
pub fn number(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

/// A string field: absent and null are `None`, another type is refused.
pub fn text_field(body: &Value, name: &str) -> Result<Option<String>, Problem> {
    match &body[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(Problem::type_error(&format!("For '{}', {other} is not a string.", pointer(name)))),
    }
}

pub fn bool_field(body: &Value, name: &str) -> Result<Option<bool>, Problem> {
    match &body[name] {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        other => Err(Problem::type_error(&format!("For '{}', {other} is not a boolean.", pointer(name)))),
    }
}

/// A required string field.
pub fn required(body: &Value, resource: &str, name: &str) -> Result<String, Problem> {
    match text_field(body, name)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ if body.get(name).is_none() && resource.is_empty() => {
            Err(Problem::type_error(&format!("\"{name}\" wasn't supplied.")))
        }
        _ => Err(Problem::invalid(resource, name, "missing_field")),
    }
}

fn pointer(name: &str) -> String {
    format!("properties/{name}")
}

/// Texts of an array of strings.
pub fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|list| list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

/// http or https, as links on statuses and deployments must be.
pub fn is_web_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}
