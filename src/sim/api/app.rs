//! The app and its installations: tokens, hook configuration, deliveries, the manifest flow, and the small calls
//! about the service itself.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Value, json};

use super::{At, number, text_field};
use crate::sim::access::{self, Actor, Call, read};
use crate::sim::calendar;
use crate::sim::events::Who;
use crate::sim::state::{Delivery, Hook, InstallationToken, Role, State};
use crate::sim::view;
use crate::sim::wire::{Answer, Outcome, Problem, base64url, guid, page, random, sha256_hex};

pub const ZEN: [&str; 4] = [
    "Keep it logically awesome.",
    "Speak like a human.",
    "Practicality beats purity.",
    "Anything added dilutes everything else.",
];

pub fn root(call: &mut Call<'_>) -> Outcome {
    let base = &call.state.base;
    Answer::ok(json!({
        "current_user_url": format!("{base}/user"),
        "repository_url": format!("{base}/repos/{{owner}}/{{repo}}"),
        "user_url": format!("{base}/users/{{user}}"),
        "rate_limit_url": format!("{base}/rate_limit"),
    }))
}

pub fn get(call: &mut Call<'_>) -> Outcome {
    call.require_app()?;
    let mut app = view::app(call.state);
    app["installations_count"] = json!(call.state.installations.len());
    Answer::ok(app)
}

pub fn by_slug(call: &mut Call<'_>, slug: &str) -> Outcome {
    if slug.eq_ignore_ascii_case(&call.state.app.slug) {
        Answer::ok(view::app(call.state))
    } else {
        Err(Problem::not_found())
    }
}

pub fn installations(call: &mut Call<'_>) -> Outcome {
    call.require_app()?;
    let state = &*call.state;
    page(call.request, state.installations.values().collect(), None, |record| {
        let mut value = view::installation(state, record);
        // The description of this one list wants the fields of an enterprise on the account too.
        let login = value["account"]["login"].clone();
        value["account"]["name"] = login.clone();
        value["account"]["slug"] = login;
        value["account"]["created_at"] = view::time(record.created_at);
        value["account"]["updated_at"] = view::time(record.updated_at);
        value
    })
}

pub fn installation(call: &mut Call<'_>, id: &str) -> Outcome {
    call.require_app()?;
    let record = call.state.installations.get(&number(id)?).ok_or_else(Problem::not_found)?;
    Answer::ok(view::installation(call.state, record))
}

pub fn delete_installation(call: &mut Call<'_>, id: &str) -> Outcome {
    call.require_app()?;
    uninstall(call.state, number(id)?)?;
    Answer::empty(204)
}

/// The app loses the installation with all its repositories.
pub fn uninstall(state: &mut State, id: u64) -> Result<(), Problem> {
    let record = state.installations.get(&id).ok_or_else(Problem::not_found)?.clone();
    let covered = state.installed_repositories(&record);
    let repositories = installed_views(state, &covered);
    let sender = state.first_user;
    state.emit_installation("installation", "deleted", id, sender, json!({"repositories": repositories}));
    for repository in covered {
        state.repository_mut(repository)?.installed = false;
    }
    state.installations.remove(&id);
    state.tokens.retain(|_, token| token.installation != id);
    Ok(())
}

/// An owner installs the app on all its repositories.
pub fn install(state: &mut State, owner: u64) -> u64 {
    let mut covered = Vec::new();
    for repository in state.repositories.values_mut().filter(|repository| repository.owner == owner) {
        repository.installed = true;
        covered.push(repository.id);
    }
    let id = crate::sim::world::new_installation(state, owner);
    let fields = json!({"repositories": installed_views(state, &covered), "requester": null});
    state.emit_installation("installation", "created", id, state.first_user, fields);
    id
}

/// One repository is added to the installation of its owner, or taken out of it.
pub fn select(state: &mut State, repository: u64, selected: bool) -> Result<(), Problem> {
    let record = state.repository_mut(repository)?;
    record.installed = selected;
    let owner = record.owner;
    let id = state.installation_of(owner).ok_or_else(Problem::not_found)?.id;
    let changed = installed_views(state, &[repository]);
    let (added, removed) = if selected { (changed, Vec::new()) } else { (Vec::new(), changed) };
    let fields = json!({
        "repository_selection": "selected",
        "repositories_added": added,
        "repositories_removed": removed,
        "requester": null,
    });
    let action = if selected { "added" } else { "removed" };
    state.emit_installation("installation_repositories", action, id, state.first_user, fields);
    Ok(())
}

fn installed_views(state: &State, repositories: &[u64]) -> Vec<Value> {
    repositories
        .iter()
        .filter_map(|id| state.repositories.get(id))
        .map(|repository| view::installed_repository(state, repository))
        .collect()
}

pub fn suspend(call: &mut Call<'_>, id: &str, suspended: bool) -> Outcome {
    call.require_app()?;
    let by = call.state.app.owner;
    set_suspended(call.state, number(id)?, suspended, by)?;
    Answer::empty(204)
}

pub fn set_suspended(state: &mut State, id: u64, suspended: bool, by: u64) -> Result<(), Problem> {
    let now = state.now();
    let record = state.installations.get_mut(&id).ok_or_else(Problem::not_found)?;
    record.suspended_at = suspended.then_some(now);
    record.suspended_by = suspended.then_some(by);
    record.updated_at = now;
    state.emit_installation("installation", if suspended { "suspend" } else { "unsuspend" }, id, by, json!({}));
    Ok(())
}

pub fn installation_of_repository(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    call.require_app()?;
    let id = match call.state.find_repository(owner, name) {
        Some(id) => id,
        None => {
            let key = format!("{}/{}", owner.to_lowercase(), name.to_lowercase());
            let id = *call.state.moved.get(&key).ok_or_else(Problem::not_found)?;
            let location = format!("{}/repositories/{id}/installation", call.request.base);
            return Err(Problem::new(301, "Moved Permanently").with_header("location", location));
        }
    };
    let repository = call.state.repository(id)?;
    let installation =
        call.state.installation_of(repository.owner).filter(|_| repository.installed).ok_or_else(Problem::not_found)?;
    Answer::ok(view::installation(call.state, installation))
}

pub fn installation_of_account(call: &mut Call<'_>, login: &str) -> Outcome {
    call.require_app()?;
    let account = call.state.find_account(login).ok_or_else(Problem::not_found)?;
    let installation = call.state.installation_of(account).ok_or_else(Problem::not_found)?;
    Answer::ok(view::installation(call.state, installation))
}

/// A token of one hour for an installation, maybe narrowed to repositories and permissions.
pub fn access_token(call: &mut Call<'_>, id: &str) -> Outcome {
    call.require_app()?;
    let id = number(id)?;
    let body = call.request.json()?;
    let installation = call.state.installations.get(&id).ok_or_else(Problem::not_found)?.clone();
    if installation.suspended_at.is_some() {
        return Err(Problem::new(403, "This installation has been suspended"));
    }
    let mut permissions = installation.permissions.clone();
    if let Some(asked) = body["permissions"].as_object().filter(|asked| !asked.is_empty()) {
        let not_granted = || Problem::new(422, "The permissions requested are not granted to this installation.");
        let mut narrowed = BTreeMap::from([("metadata".to_owned(), "read".to_owned())]);
        for (name, level) in asked {
            let level = level.as_str().ok_or_else(not_granted)?;
            let granted = installation.permissions.get(name).ok_or_else(not_granted)?;
            let enough = match level {
                "read" => true,
                "write" => granted == "write" || granted == "admin",
                _ => granted == level,
            };
            if !enough {
                return Err(not_granted());
            }
            narrowed.insert(name.clone(), level.to_owned());
        }
        permissions = narrowed;
    }
    let covered = call.state.installed_repositories(&installation);
    let missing = || {
        Problem::new(
            422,
            "There is at least one repository that does not exist or is not accessible to the parent installation.",
        )
    };
    let mut chosen: Option<Vec<u64>> = None;
    if let Some(ids) = body["repository_ids"].as_array() {
        let ids: Vec<u64> = ids.iter().filter_map(Value::as_u64).collect();
        if ids.iter().any(|id| !covered.contains(id)) {
            return Err(missing());
        }
        chosen.get_or_insert_default().extend(ids);
    }
    if let Some(names) = body["repositories"].as_array() {
        for name in names.iter().filter_map(Value::as_str) {
            let found = covered.iter().copied().find(|id| {
                call.state.repositories.get(id).is_some_and(|repository| repository.name.eq_ignore_ascii_case(name))
            });
            chosen.get_or_insert_default().push(found.ok_or_else(missing)?);
        }
    }
    if chosen.as_ref().is_some_and(|chosen| chosen.len() > 500) {
        return Err(Problem::new(422, "Too many repositories: at most 500 can be named."));
    }
    let token = match call.request.header("x-github-stateless-s2s-token") {
        Some("disabled") => format!("ghs_{}", letters::<36>()),
        _ => stateless_token(call.state.app.id, id, call.state.now() + 3600),
    };
    let now = call.state.now();
    let expires_at = now + 3600;
    call.state.tokens.insert(
        sha256_hex(&token),
        InstallationToken {
            installation: id,
            expires_at,
            permissions: permissions.clone(),
            repositories: chosen.clone(),
        },
    );
    call.state.prune();
    let state = &*call.state;
    let mut answer = json!({
        "token": token,
        "expires_at": calendar::text(expires_at),
        "permissions": permissions,
        "repository_selection": if chosen.is_some() { "selected" } else { "all" },
    });
    if let Some(chosen) = chosen {
        answer["repositories"] = chosen
            .iter()
            .filter_map(|id| state.repositories.get(id))
            .map(|repository| view::full_repository(state, repository, Role::None))
            .collect();
    }
    Ok(Answer::json(201, answer))
}

/// The long form of April 2026: `ghs_APPID_JWT`, about 520 characters with dots, dashes and underscores.
fn stateless_token(app: u64, installation: u64, expires_at: i64) -> String {
    let header = base64url(br#"{"alg":"RS256","typ":"JWT"}"#);
    let claims = base64url(
        json!({"iss": "github", "sub": installation, "aud": app, "jti": guid(), "exp": expires_at})
            .to_string()
            .as_bytes(),
    );
    let signature = base64url(&random::<256>());
    format!("ghs_{app}_{header}.{claims}.{signature}")
}

/// Random letters and digits.
pub fn letters<const N: usize>() -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    random::<N>().iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % 62])).collect()
}

pub fn hook_config(call: &mut Call<'_>) -> Outcome {
    call.require_app()?;
    Answer::ok(config(call))
}

fn config(call: &Call<'_>) -> Value {
    json!({"content_type": "json", "insecure_ssl": "0", "secret": "********", "url": call.state.app.hook_url})
}

pub fn change_hook_config(call: &mut Call<'_>) -> Outcome {
    call.require_app()?;
    let body = call.request.json()?;
    if let Some(url) = text_field(&body, "url")? {
        call.state.app.hook_url = url;
    }
    if let Some(secret) = text_field(&body, "secret")? {
        call.state.app.hook_secret = secret;
    }
    Answer::ok(config(call))
}

fn delivery_item(delivery: &Delivery) -> Value {
    json!({
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": calendar::text(delivery.delivered_at),
        "redelivery": delivery.redelivery,
        "duration": delivery.duration,
        "status": delivery.status,
        "status_code": delivery.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation,
        "repository_id": delivery.repository,
        "throttled_at": null,
    })
}

/// Newest first, by an opaque cursor; deliveries older than three days are gone.
pub fn deliveries(call: &mut Call<'_>) -> Outcome {
    call.require_app()?;
    let size = match call.request.query("per_page") {
        None => 30,
        Some(text) => text.parse::<usize>().ok().filter(|size| *size > 0).unwrap_or(30).min(100),
    };
    let before = match call.request.query("cursor") {
        None => u64::MAX,
        Some(cursor) => base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.strip_prefix("v1_").and_then(|id| id.parse().ok()))
            .ok_or_else(|| Problem::new(400, "Invalid cursor parameter"))?,
    };
    let oldest = call.state.now() - 3 * 86_400;
    let status = call.request.query("status").map(str::to_owned);
    let found: Vec<&Delivery> = call
        .state
        .deliveries
        .iter()
        .rev()
        .filter(|delivery| delivery.id < before && delivery.delivered_at >= oldest)
        .filter(|delivery| match status.as_deref() {
            Some("success") => (200..400).contains(&delivery.status_code),
            Some("failure") => !(200..400).contains(&delivery.status_code),
            _ => true,
        })
        .take(size + 1)
        .collect();
    let more = found.len() > size;
    let shown: Vec<Value> = found.iter().take(size).map(|delivery| delivery_item(delivery)).collect();
    let mut answer = Answer::json(200, Value::Array(shown));
    if let Some(last) = found.get(size - 1).filter(|_| more) {
        let cursor = base64url(format!("v1_{}", last.id).as_bytes());
        let status = status.map(|status| format!("&status={status}")).unwrap_or_default();
        answer = answer.with_header(
            "link",
            format!(
                "<{}/app/hook/deliveries?per_page={size}&cursor={cursor}{status}>; rel=\"next\"",
                call.request.base
            ),
        );
    }
    Ok(answer)
}

fn find_delivery<'a>(call: &'a Call<'_>, id: &str) -> Result<&'a Delivery, Problem> {
    let id: u64 = id.parse().map_err(|_| Problem::new(400, "Invalid delivery id"))?;
    let oldest = call.state.now() - 3 * 86_400;
    call.state
        .deliveries
        .iter()
        .find(|delivery| delivery.id == id && delivery.delivered_at >= oldest)
        .ok_or_else(Problem::not_found)
}

pub fn delivery(call: &mut Call<'_>, id: &str) -> Outcome {
    call.require_app()?;
    let delivery = find_delivery(call, id)?;
    let mut value = delivery_item(delivery);
    value["url"] = json!(call.state.app.hook_url);
    value["request"] = json!({
        "headers": delivery.request_headers,
        "payload": serde_json::from_str::<Value>(&delivery.payload).unwrap_or(Value::Null),
    });
    value["response"] = json!({"headers": delivery.response_headers, "payload": delivery.response});
    Answer::ok(value)
}

/// Sends a delivery again, under its old GUID.
pub fn redeliver(call: &mut Call<'_>, id: &str) -> Outcome {
    call.require_app()?;
    let delivery = find_delivery(call, id)?;
    let hook = Hook {
        guid: delivery.guid.clone(),
        event: delivery.event.clone(),
        action: delivery.action.clone(),
        installation: delivery.installation,
        repository: delivery.repository,
        payload: delivery.payload.clone(),
        redelivery: true,
    };
    call.state.outbox.push(hook);
    Ok(Answer::json(202, json!({})))
}

pub fn convert_manifest(call: &mut Call<'_>, code: &str) -> Outcome {
    let manifest = call.state.manifests.remove(code).ok_or_else(Problem::not_found)?;
    let app = &mut call.state.app;
    if let Some(name) = manifest["name"].as_str() {
        app.name = name.to_owned();
    }
    if let Some(url) = manifest["hook_attributes"]["url"].as_str() {
        app.hook_url = url.to_owned();
    }
    if let Some(url) = manifest["setup_url"].as_str() {
        app.setup_url = Some(url.to_owned());
    }
    if let Some(url) = manifest["callback_urls"][0].as_str() {
        app.callback_url = Some(url.to_owned());
    }
    let mut value = view::app(call.state);
    value["client_secret"] = json!(call.state.app.client_secret);
    value["webhook_secret"] = json!(call.state.app.hook_secret);
    let pem = match access::fresh_key() {
        Some((private, public)) => {
            call.state.keys.push(access::public_key(&public)?);
            call.state.app.more_keys.push(public);
            private
        }
        // Without openssl the app keeps the key that it was started with.
        None => "-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n".to_owned(),
    };
    value["pem"] = json!(pem);
    Ok(Answer::json(201, value))
}

pub fn installation_repositories(call: &mut Call<'_>) -> Outcome {
    let id = call.require_installation()?;
    let chosen = match &call.actor {
        Actor::Installation { repositories, .. } => repositories.clone(),
        _ => None,
    };
    let installation = call.state.installations.get(&id).ok_or_else(Problem::not_found)?;
    let state = &*call.state;
    let visible: Vec<u64> = state
        .installed_repositories(installation)
        .into_iter()
        .filter(|id| chosen.as_ref().is_none_or(|chosen| chosen.contains(id)))
        .collect();
    let mut answer = page(call.request, visible, Some("repositories"), |id| {
        state.repository(id).map(|record| view::full_repository(state, record, Role::None)).unwrap_or(Value::Null)
    })?;
    if let crate::sim::wire::Content::Json(body) = &mut answer.content {
        body["repository_selection"] = json!(if chosen.is_some() { "selected" } else { "all" });
    }
    Ok(answer)
}

pub fn revoke_token(call: &mut Call<'_>) -> Outcome {
    call.require_installation()?;
    let header = call.request.header("authorization").unwrap_or_default();
    let token = header.split(' ').nth(1).unwrap_or_default();
    call.state.tokens.remove(&sha256_hex(token));
    Answer::empty(204)
}

/// The numbers themselves are put in by the server, which counts.
pub fn rate_limit(call: &mut Call<'_>) -> Outcome {
    let header = |name: &str| call.request.header(name).and_then(|value| value.parse::<i64>().ok()).unwrap_or(0);
    let core = json!({
        "limit": header("x-sim-limit"),
        "used": header("x-sim-used"),
        "remaining": header("x-sim-limit") - header("x-sim-used"),
        "reset": header("x-sim-reset"),
    });
    let search = json!({"limit": 30, "used": 0, "remaining": 30, "reset": header("x-sim-reset")});
    Answer::ok(json!({"resources": {"core": core, "search": search, "graphql": core}, "rate": core}))
}

pub fn meta(_call: &mut Call<'_>) -> Outcome {
    let local = json!(["127.0.0.0/8", "::1/128"]);
    Answer::ok(json!({
        "verifiable_password_authentication": false,
        "ssh_key_fingerprints": {},
        "ssh_keys": [],
        "hooks": local,
        "web": local,
        "api": local,
        "git": local,
        "packages": [],
        "pages": [],
        "importer": [],
        "actions": [],
        "dependabot": [],
        "domains": {"website": [], "codespaces": [], "copilot": [], "packages": []},
    }))
}

pub fn zen(call: &mut Call<'_>) -> Outcome {
    let at = usize::try_from(call.state.now().rem_euclid(4)).unwrap_or(0);
    Ok(Answer::bytes(200, "text/plain; charset=utf-8", ZEN[at]))
}

/// Who a control or a page acts as: a named person, or the first user.
pub fn person(state: &mut crate::sim::state::State, login: Option<&str>) -> Who {
    match login {
        Some(login) if !login.is_empty() => {
            Who { account: state.ensure_account(login, crate::sim::state::AccountKind::User), via_app: false }
        }
        _ => state.first(),
    }
}

/// Metadata is readable with any token of the repository.
pub const METADATA: crate::sim::access::Need = read(&["metadata"]);
