//! People, organizations, and the app's tokens of people.

use serde_json::{Value, json};

use super::{number, required};
use crate::sim::access::{Actor, Call};
use crate::sim::state::{AccountKind, Role, State};
use crate::sim::view;
use crate::sim::wire::{Answer, Outcome, Problem, page, sha256_hex};

fn profile(state: &State, id: u64) -> Value {
    let mut value = view::user(state, id);
    let created = state.account(id).map_or(0, |account| account.created_at);
    let owned = |private: bool| {
        state.repositories.values().filter(|record| record.owner == id && record.private == private).count()
    };
    for (name, field) in [
        ("name", json!(state.login(id))),
        ("company", Value::Null),
        ("blog", json!("")),
        ("location", Value::Null),
        ("email", Value::Null),
        ("hireable", Value::Null),
        ("bio", Value::Null),
        ("twitter_username", Value::Null),
        ("public_repos", json!(owned(false))),
        ("public_gists", json!(0)),
        ("followers", json!(0)),
        ("following", json!(0)),
        ("created_at", view::time(created)),
        ("updated_at", view::time(created)),
    ] {
        value[name] = field;
    }
    value
}

pub fn me(call: &mut Call<'_>) -> Outcome {
    let id = call.require_user()?;
    let mut value = profile(call.state, id);
    let private = call.state.repositories.values().filter(|record| record.owner == id && record.private).count();
    for (name, field) in [
        ("private_gists", json!(0)),
        ("total_private_repos", json!(private)),
        ("owned_private_repos", json!(private)),
        ("disk_usage", json!(0)),
        ("collaborators", json!(0)),
        ("two_factor_authentication", json!(true)),
        ("plan", json!({"name": "free", "space": 0, "collaborators": 0, "private_repos": 10_000})),
    ] {
        value[name] = field;
    }
    Answer::ok(value)
}

pub fn by_login(call: &mut Call<'_>, login: &str) -> Outcome {
    let id = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    Answer::ok(profile(call.state, id))
}

/// The installations that a person can see through a repository.
fn visible(state: &State, user: u64) -> Vec<u64> {
    state
        .installations
        .values()
        .filter(|installation| {
            installation.account == user
                || state.installed_repositories(installation).iter().any(|id| {
                    state.repositories.get(id).is_some_and(|record| {
                        state.role(record, user) > Role::None
                            && (!record.private || state.role(record, user) >= Role::Read)
                            && (record.collaborators.contains_key(&user)
                                || state.account(record.owner).is_some_and(|owner| owner.members.contains_key(&user)))
                    })
                })
        })
        .map(|installation| installation.id)
        .collect()
}

pub fn installations(call: &mut Call<'_>) -> Outcome {
    let user = call.require_user()?;
    let state = &*call.state;
    page(call.request, visible(state, user), Some("installations"), |id| {
        state.installations.get(&id).map_or(Value::Null, |record| view::installation(state, record))
    })
}

pub fn installation_repositories(call: &mut Call<'_>, installation: &str) -> Outcome {
    let user = call.require_user()?;
    let state = &*call.state;
    let id = number(installation)?;
    let record = state.installations.get(&id).ok_or_else(Problem::not_found)?;
    if !visible(state, user).contains(&id) {
        return Err(Problem::not_found());
    }
    let repositories: Vec<u64> = state
        .installed_repositories(record)
        .into_iter()
        .filter(|id| state.repositories.get(id).is_some_and(|record| state.role(record, user) > Role::None))
        .collect();
    let mut answer = page(call.request, repositories, Some("repositories"), |id| {
        state
            .repository(id)
            .map(|record| view::full_repository(state, record, state.role(record, user)))
            .unwrap_or(Value::Null)
    })?;
    if let crate::sim::wire::Content::Json(body) = &mut answer.content {
        body["repository_selection"] = json!("all");
    }
    Ok(answer)
}

pub fn organizations(call: &mut Call<'_>) -> Outcome {
    let user = call.require_user()?;
    let state = &*call.state;
    let found: Vec<u64> = state
        .accounts
        .values()
        .filter(|account| account.kind == AccountKind::Organization && account.members.contains_key(&user))
        .map(|account| account.id)
        .collect();
    page(call.request, found, None, |id| view::organization(state, id))
}

fn organization_id(state: &State, login: &str) -> Result<u64, Problem> {
    state
        .find_account(login)
        .filter(|id| state.account(*id).is_some_and(|account| account.kind == AccountKind::Organization))
        .ok_or_else(Problem::not_found)
}

pub fn organization(call: &mut Call<'_>, login: &str) -> Outcome {
    let id = organization_id(call.state, login)?;
    let mut value = view::organization(call.state, id);
    super::super::events::merge(
        &mut value,
        json!({
            "html_url": format!("{}/{login}", call.state.base),
            "type": "Organization",
            "has_organization_projects": true,
            "has_repository_projects": true,
            "public_repos": 0,
            "public_gists": 0,
            "followers": 0,
            "following": 0,
            "created_at": view::time(call.state.account(id).map_or(0, |account| account.created_at)),
            "updated_at": view::time(call.state.now()),
            "archived_at": null,
        }),
    );
    Answer::ok(value)
}

fn membership_value(state: &State, organization: u64, user: u64) -> Result<Value, Problem> {
    let account = state.account(organization).ok_or_else(Problem::not_found)?;
    let role = account.members.get(&user).ok_or_else(Problem::not_found)?;
    let api = format!("{}/orgs/{}", state.base, account.login);
    Ok(json!({
        "url": format!("{api}/memberships/{}", state.login(user)),
        "state": "active",
        "role": role,
        "organization_url": api,
        "organization": view::organization(state, organization),
        "user": view::user(state, user),
        "permissions": {"can_create_repository": role == "admin"},
    }))
}

pub fn my_membership(call: &mut Call<'_>, org: &str) -> Outcome {
    let user = call.require_user()?;
    let organization = organization_id(call.state, org)?;
    Answer::ok(membership_value(call.state, organization, user)?)
}

/// Members are seen by the app with members:read, and by members.
fn may_see_members(call: &Call<'_>, organization: u64) -> Result<(), Problem> {
    match &call.actor {
        Actor::Installation { permissions, .. } if permissions.contains_key("members") => Ok(()),
        Actor::Installation { .. } => Err(Problem::new(403, "Resource not accessible by integration")
            .with_header("x-accepted-github-permissions", "members=read")),
        Actor::User { id, .. }
            if call.state.account(organization).is_some_and(|account| account.members.contains_key(id)) =>
        {
            Ok(())
        }
        Actor::Anonymous => Err(Problem::new(401, "Requires authentication")),
        _ => Err(Problem::not_found()),
    }
}

pub fn membership(call: &mut Call<'_>, org: &str, login: &str) -> Outcome {
    let organization = organization_id(call.state, org)?;
    may_see_members(call, organization)?;
    let user = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    Answer::ok(membership_value(call.state, organization, user)?)
}

pub fn is_member(call: &mut Call<'_>, org: &str, login: &str) -> Outcome {
    let organization = organization_id(call.state, org)?;
    may_see_members(call, organization)?;
    let user = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    match call.state.account(organization) {
        Some(account) if account.members.contains_key(&user) => Answer::empty(204),
        _ => Err(Problem::not_found()),
    }
}

pub fn team_membership(call: &mut Call<'_>, org: &str, team: &str, login: &str) -> Outcome {
    let organization = organization_id(call.state, org)?;
    may_see_members(call, organization)?;
    let user = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    let account = call.state.account(organization).ok_or_else(Problem::not_found)?;
    let is_member = account.teams.get(team).is_some_and(|members| members.contains(&user));
    if !is_member {
        return Err(Problem::not_found());
    }
    Answer::ok(json!({
        "url": format!("{}/organizations/{organization}/team/1/memberships/{login}", call.state.base),
        "role": "member",
        "state": "active",
    }))
}

/// These calls are made with the client's id and secret, which must be those of the path.
fn require_client(call: &Call<'_>, client: &str) -> Result<(), Problem> {
    match call.actor {
        Actor::Client if client == call.state.app.client_id => Ok(()),
        Actor::Client => Err(Problem::not_found()),
        _ => Err(Problem::new(401, "Requires authentication")),
    }
}

pub fn check_token(call: &mut Call<'_>, client: &str) -> Outcome {
    require_client(call, client)?;
    let body = call.request.json()?;
    let token = required(&body, "", "access_token")?;
    let hash = sha256_hex(&token);
    let state = &*call.state;
    let record =
        state.user_tokens.get(&hash).filter(|record| record.expires_at > state.now()).ok_or_else(Problem::not_found)?;
    let last: String = token.chars().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect();
    Answer::ok(json!({
        "id": record.id,
        "url": format!("{}/authorizations/{}", state.base, record.id),
        "app": {"client_id": state.app.client_id, "name": state.app.name, "url": state.base},
        "token": token,
        "hashed_token": hash,
        "token_last_eight": last,
        "note": null,
        "note_url": null,
        "created_at": view::time(record.created_at),
        "updated_at": view::time(record.created_at),
        "expires_at": view::time(record.expires_at),
        "scopes": [],
        "fingerprint": null,
        "user": view::user(state, record.user),
    }))
}

/// Revokes one token, or with `grant` all tokens of that person.
pub fn delete_token(call: &mut Call<'_>, client: &str, grant: bool) -> Outcome {
    require_client(call, client)?;
    let body = call.request.json()?;
    let token = required(&body, "", "access_token")?;
    let hash = sha256_hex(&token);
    let user = call.state.user_tokens.get(&hash).map(|record| record.user);
    let user = user.ok_or_else(|| Problem::new(422, "Validation Failed"))?;
    if grant {
        call.state.user_tokens.retain(|_, record| record.user != user);
        let sender = view::user(call.state, user);
        let payload = json!({"action": "revoked", "sender": sender});
        call.state.outbox.push(crate::sim::state::Hook {
            guid: crate::sim::wire::guid(),
            event: "github_app_authorization".into(),
            action: Some("revoked".into()),
            installation: None,
            repository: None,
            payload: payload.to_string(),
            redelivery: false,
        });
    } else {
        call.state.user_tokens.remove(&hash);
    }
    Answer::empty(204)
}
