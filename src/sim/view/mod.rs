//! Records as GitHub's REST description and webhook schemas have them. One builder per thing, used by answers and
//! webhooks alike, with every field that the newest schemas require.

pub mod checks;
pub mod commits;
pub mod pulls;

use serde_json::{Value, json};

use super::calendar;
use super::state::{AccountKind, Installation, Repository, Role, State};
use super::wire::percent_encode;

/// An opaque node id: GitHub's have a prefix by kind and no meaning for clients.
pub fn node_id(prefix: &str, id: u64) -> String {
    format!("{prefix}_{}", super::wire::base64url(&id.to_be_bytes()))
}

pub fn time(seconds: i64) -> Value {
    Value::String(calendar::text(seconds))
}

pub fn optional_time(seconds: Option<i64>) -> Value {
    seconds.map_or(Value::Null, time)
}

/// `simple-user`; an account that is gone is the ghost.
pub fn user(state: &State, id: u64) -> Value {
    let base = &state.base;
    let (login, kind) =
        state.account(id).map_or(("ghost", AccountKind::User), |account| (account.login.as_str(), account.kind));
    let path = percent_encode(login, "");
    let api = format!("{base}/users/{path}");
    let page = match kind {
        AccountKind::Bot => format!("{base}/apps/{}", login.trim_end_matches("[bot]")),
        _ => format!("{base}/{path}"),
    };
    json!({
        "login": login,
        "id": id,
        "node_id": node_id(match kind { AccountKind::User => "U", AccountKind::Organization => "O", AccountKind::Bot => "BOT" }, id),
        "avatar_url": format!("{base}/_/avatar/{id}"),
        "gravatar_id": "",
        "url": api,
        "html_url": page,
        "followers_url": format!("{api}/followers"),
        "following_url": format!("{api}/following{{/other_user}}"),
        "gists_url": format!("{api}/gists{{/gist_id}}"),
        "starred_url": format!("{api}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{api}/subscriptions"),
        "organizations_url": format!("{api}/orgs"),
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events{{/privacy}}"),
        "received_events_url": format!("{api}/received_events"),
        "type": kind.name(),
        "user_view_type": "public",
        "site_admin": false,
    })
}

/// `organization-simple`, as webhooks carry it beside the repository.
pub fn organization(state: &State, id: u64) -> Value {
    let base = &state.base;
    let login = state.login(id);
    let api = format!("{base}/orgs/{login}");
    json!({
        "login": login,
        "id": id,
        "node_id": node_id("O", id),
        "url": api,
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events"),
        "hooks_url": format!("{api}/hooks"),
        "issues_url": format!("{api}/issues"),
        "members_url": format!("{api}/members{{/member}}"),
        "public_members_url": format!("{api}/public_members{{/member}}"),
        "avatar_url": format!("{base}/_/avatar/{id}"),
        "description": "",
    })
}

/// Which times a repository carries: the push event alone has numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Times {
    Text,
    Numbers,
}

/// `full-repository` without what concerns the asking person.
pub fn repository(state: &State, repository: &Repository) -> Value {
    repository_with(state, repository, Times::Text)
}

pub fn repository_with(state: &State, repository: &Repository, times: Times) -> Value {
    let base = &state.base;
    let full_name = state.full_name(repository);
    let api = format!("{base}/repos/{full_name}");
    let page = format!("{base}/{full_name}");
    let open_issues = repository.issues.values().filter(|issue| issue.open).count();
    let forks = state.repositories.values().filter(|other| other.fork_of == Some(repository.id)).count();
    let stamp = |seconds: i64| if times == Times::Numbers { json!(seconds) } else { time(seconds) };
    let mut value = json!({
        "id": repository.id,
        "node_id": node_id("R", repository.id),
        "name": repository.name,
        "full_name": full_name,
        "private": repository.private,
        "owner": user(state, repository.owner),
        "html_url": page,
        "description": repository.description,
        "fork": repository.fork_of.is_some(),
        "url": api,
        "created_at": stamp(repository.created_at),
        "updated_at": time(repository.updated_at),
        "pushed_at": stamp(repository.pushed_at),
        "git_url": format!("git://{}/{full_name}.git", host(base)),
        "ssh_url": format!("git@{}:{full_name}.git", host(base)),
        "clone_url": format!("{page}.git"),
        "svn_url": page,
        "homepage": null,
        "size": 1,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": null,
        "has_issues": repository.has_issues,
        "has_projects": true,
        "has_downloads": true,
        "has_wiki": true,
        "has_pages": false,
    });
    let rest = json!({
        "has_discussions": false,
        "has_pull_requests": true,
        "pull_request_creation_policy": "all",
        "forks_count": forks,
        "mirror_url": null,
        "archived": false,
        "disabled": false,
        "open_issues_count": open_issues,
        "license": null,
        "allow_forking": true,
        "is_template": false,
        "web_commit_signoff_required": false,
        "topics": [],
        "visibility": if repository.private { "private" } else { "public" },
        "forks": forks,
        "open_issues": open_issues,
        "watchers": 0,
        "default_branch": repository.default_branch,
        "custom_properties": {},
    });
    super::events::merge(&mut value, rest);
    let links = [
        ("archive_url", "/{archive_format}{/ref}"),
        ("assignees_url", "/assignees{/user}"),
        ("blobs_url", "/git/blobs{/sha}"),
        ("branches_url", "/branches{/branch}"),
        ("collaborators_url", "/collaborators{/collaborator}"),
        ("comments_url", "/comments{/number}"),
        ("commits_url", "/commits{/sha}"),
        ("compare_url", "/compare/{base}...{head}"),
        ("contents_url", "/contents/{+path}"),
        ("contributors_url", "/contributors"),
        ("deployments_url", "/deployments"),
        ("downloads_url", "/downloads"),
        ("events_url", "/events"),
        ("forks_url", "/forks"),
        ("git_commits_url", "/git/commits{/sha}"),
        ("git_refs_url", "/git/refs{/sha}"),
        ("git_tags_url", "/git/tags{/sha}"),
        ("hooks_url", "/hooks"),
        ("issue_comment_url", "/issues/comments{/number}"),
        ("issue_events_url", "/issues/events{/number}"),
        ("issues_url", "/issues{/number}"),
        ("keys_url", "/keys{/key_id}"),
        ("labels_url", "/labels{/name}"),
        ("languages_url", "/languages"),
        ("merges_url", "/merges"),
        ("milestones_url", "/milestones{/number}"),
        ("notifications_url", "/notifications{?since,all,participating}"),
        ("pulls_url", "/pulls{/number}"),
        ("releases_url", "/releases{/id}"),
        ("stargazers_url", "/stargazers"),
        ("statuses_url", "/statuses/{sha}"),
        ("subscribers_url", "/subscribers"),
        ("subscription_url", "/subscription"),
        ("tags_url", "/tags"),
        ("teams_url", "/teams"),
        ("trees_url", "/git/trees{/sha}"),
    ];
    for (name, path) in links {
        value[name] = Value::String(format!("{api}{path}"));
    }
    if times == Times::Numbers {
        value["stargazers"] = json!(0);
        value["master_branch"] = json!(repository.default_branch);
        value["owner"]["name"] = value["owner"]["login"].clone();
        value["owner"]["email"] = Value::Null;
        if state.account(repository.owner).is_some_and(|owner| owner.kind == AccountKind::Organization) {
            value["organization"] = value["owner"]["login"].clone();
        }
    }
    value
}

/// `full-repository` as the asking actor sees it, with its merge settings and its parent.
pub fn full_repository(state: &State, record: &Repository, role: Role) -> Value {
    let mut value = repository(state, record);
    value["permissions"] = permissions(role);
    for (name, setting) in [
        ("allow_squash_merge", true),
        ("allow_merge_commit", true),
        ("allow_rebase_merge", true),
        ("allow_auto_merge", false),
        ("delete_branch_on_merge", false),
        ("allow_update_branch", false),
        ("use_squash_pr_title_as_default", false),
    ] {
        value[name] = json!(setting);
    }
    value["squash_merge_commit_message"] = json!("COMMIT_MESSAGES");
    value["squash_merge_commit_title"] = json!("COMMIT_OR_PR_TITLE");
    value["merge_commit_message"] = json!("PR_TITLE");
    value["merge_commit_title"] = json!("MERGE_MESSAGE");
    value["subscribers_count"] = json!(0);
    value["network_count"] = value["forks_count"].clone();
    if state.account(record.owner).is_some_and(|owner| owner.kind == AccountKind::Organization) {
        value["organization"] = user(state, record.owner);
    }
    if let Some(parent) = record.fork_of.and_then(|parent| state.repositories.get(&parent)) {
        value["parent"] = repository(state, parent);
        value["source"] = repository(state, parent);
    }
    value
}

pub fn permissions(role: Role) -> Value {
    json!({
        "admin": role >= Role::Admin,
        "maintain": role >= Role::Maintain,
        "push": role >= Role::Write,
        "triage": role >= Role::Triage,
        "pull": role >= Role::Read,
    })
}

pub fn host(base: &str) -> &str {
    base.split_once("://").map_or(base, |(_, host)| host)
}

/// `integration`: the app.
pub fn app(state: &State) -> Value {
    let app = &state.app;
    json!({
        "id": app.id,
        "client_id": app.client_id,
        "slug": app.slug,
        "node_id": node_id("A", app.id),
        "owner": user(state, app.owner),
        "name": app.name,
        "description": "Review apps, tests, staging and production",
        "external_url": state.base,
        "html_url": format!("{}/apps/{}", state.base, app.slug),
        "created_at": time(app.created_at),
        "updated_at": time(app.created_at),
        "permissions": app.permissions,
        "events": app.events,
    })
}

pub fn installation(state: &State, installation: &Installation) -> Value {
    let base = &state.base;
    let kind = state.account(installation.account).map_or(AccountKind::User, |account| account.kind);
    let page = match kind {
        AccountKind::Organization => {
            format!(
                "{base}/organizations/{}/settings/installations/{}",
                state.login(installation.account),
                installation.id
            )
        }
        _ => format!("{base}/settings/installations/{}", installation.id),
    };
    json!({
        "id": installation.id,
        "client_id": state.app.client_id,
        "account": user(state, installation.account),
        "repository_selection": "all",
        "access_tokens_url": format!("{base}/app/installations/{}/access_tokens", installation.id),
        "repositories_url": format!("{base}/installation/repositories"),
        "html_url": page,
        "app_id": state.app.id,
        "app_slug": state.app.slug,
        "target_id": installation.account,
        "target_type": kind.name(),
        "permissions": installation.permissions,
        "events": state.app.events,
        "created_at": time(installation.created_at),
        "updated_at": time(installation.updated_at),
        "single_file_name": null,
        "has_multiple_single_files": false,
        "single_file_paths": [],
        "suspended_by": installation.suspended_by.map_or(Value::Null, |by| user(state, by)),
        "suspended_at": optional_time(installation.suspended_at),
    })
}

/// The short form of repositories in installation events.
pub fn installed_repository(state: &State, repository: &Repository) -> Value {
    json!({
        "id": repository.id,
        "node_id": node_id("R", repository.id),
        "name": repository.name,
        "full_name": state.full_name(repository),
        "private": repository.private,
    })
}
