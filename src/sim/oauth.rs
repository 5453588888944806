//! The browser's side of an app: the OAuth flow of people, the installation page, the manifest form.
//! The person of the browser is the first user unless `/_/signed-in` says otherwise; consent is given at once.

use base64::Engine as _;
use serde_json::{Value, json};

use super::api::app::letters;
use super::state::{OauthCode, State, UserToken};
use super::wire::{Answer, Request, parse_query, percent_encode, sha256_hex};
use super::world::{World, lock};

/// Codes live ten minutes, tokens of people eight hours, their refresh tokens half a year (GitHub Docs, "Refreshing
/// user access tokens").
const CODE_SECONDS: i64 = 600;
const TOKEN_SECONDS: i64 = 8 * 3600;
const REFRESH_SECONDS: i64 = 15_811_200;

pub fn answer(world: &World, request: &Request) -> Option<Answer> {
    let path: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    match (request.method.as_str(), path.as_slice()) {
        ("GET", ["login", "oauth", "authorize"]) => Some(authorize(world, request)),
        ("POST", ["login", "oauth", "access_token"]) => Some(access_token(world, request)),
        ("GET", ["apps", slug, "installations", "new"]) => Some(install(world, request, slug)),
        ("POST", ["settings", "apps", "new"]) => Some(manifest(world, request)),
        ("GET", ["settings", "apps", "new"]) => {
            Some(Answer::bytes(200, "text/plain; charset=utf-8", "Post a manifest here."))
        }
        _ => None,
    }
}

fn with_query(address: &str, pairs: &[(&str, &str)]) -> String {
    let mut address = address.to_owned();
    for (name, value) in pairs {
        address.push(if address.contains('?') { '&' } else { '?' });
        address.push_str(&format!("{name}={}", percent_encode(value, "")));
    }
    address
}

fn browser(world: &World, state: &State, request: &Request) -> u64 {
    request
        .query("login")
        .and_then(|login| state.find_account(login))
        .or(lock(&world.bench).signed_in)
        .unwrap_or(state.first_user)
}

fn new_code(world: &World, state: &mut State, request: &Request) -> String {
    let code = hex::encode(super::wire::random::<10>());
    let record = OauthCode {
        user: browser(world, state, request),
        expires_at: state.now() + CODE_SECONDS,
        redirect_uri: request.query("redirect_uri").map(str::to_owned),
        challenge: request.query("code_challenge").map(str::to_owned),
    };
    state.oauth_codes.insert(sha256_hex(&code), record);
    code
}

fn authorize(world: &World, request: &Request) -> Answer {
    world.with(|state| {
        if request.query("client_id") != Some(state.app.client_id.as_str()) {
            return Answer::bytes(404, "text/plain; charset=utf-8", "There is no such app.");
        }
        let fallback = state.app.callback_url.clone();
        let Some(target) = request.query("redirect_uri").map(str::to_owned).or(fallback) else {
            return Answer::bytes(422, "text/plain; charset=utf-8", "The app has no callback URL.");
        };
        let wanted = state.app.callback_url.as_deref();
        if wanted.is_some_and(|callback| !target.starts_with(callback)) {
            let address = with_query(wanted.unwrap_or_default(), &[("error", "redirect_uri_mismatch")]);
            return Answer::redirect(302, address);
        }
        let code = new_code(world, state, request);
        let mut pairs = vec![("code", code.as_str())];
        pairs.extend(request.query("state").map(|value| ("state", value)));
        Answer::redirect(302, with_query(&target, &pairs))
    })
}

/// The parameters of a post, from a form, JSON or the query.
fn parameters(request: &Request) -> Vec<(String, String)> {
    let mut pairs = request.query.clone();
    if let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(&request.body) {
        pairs.extend(fields.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))));
    } else {
        pairs.extend(parse_query(&String::from_utf8_lossy(&request.body)));
    }
    pairs
}

/// Always 200, also for errors, and a form unless JSON is asked for.
fn token_answer(request: &Request, fields: Value) -> Answer {
    if request.wants("json") {
        return Answer::json(200, fields);
    }
    let form: Vec<String> = fields
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{name}={}", percent_encode(&text, ""))
        })
        .collect();
    Answer::bytes(200, "application/x-www-form-urlencoded; charset=utf-8", form.join("&"))
}

fn access_token(world: &World, request: &Request) -> Answer {
    let pairs = parameters(request);
    let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let error = |code: &str, sentence: &str| {
        token_answer(
            request,
            json!({"error": code, "error_description": sentence, "error_uri": "https://docs.github.com/apps"}),
        )
    };
    world.with(|state| {
        if get("client_id") != Some(state.app.client_id.as_str())
            || get("client_secret") != Some(state.app.client_secret.as_str())
        {
            return error("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.");
        }
        let now = state.now();
        if get("grant_type") == Some("refresh_token") {
            let hash = sha256_hex(get("refresh_token").unwrap_or_default());
            let found = state
                .user_tokens
                .iter()
                .find(|(_, token)| token.refresh == hash && token.refresh_expires_at > now)
                .map(|(key, token)| (key.clone(), token.user));
            let Some((old, user)) = found else {
                return error("bad_refresh_token", "The refresh token passed is incorrect or expired.");
            };
            state.user_tokens.remove(&old);
            return token_answer(request, issue(state, user));
        }
        let bad = || error("bad_verification_code", "The code passed is incorrect or expired.");
        let hash = sha256_hex(get("code").unwrap_or_default());
        // A code is spent by its first use, whatever comes of it.
        let Some(code) = state.oauth_codes.remove(&hash).filter(|code| code.expires_at > now) else {
            return bad();
        };
        if get("redirect_uri").is_some_and(|uri| code.redirect_uri.as_deref().is_some_and(|known| known != uri)) {
            return error(
                "redirect_uri_mismatch",
                "The redirect_uri MUST match the registered callback URL for this application.",
            );
        }
        if let Some(challenge) = &code.challenge {
            let digest =
                ring::digest::digest(&ring::digest::SHA256, get("code_verifier").unwrap_or_default().as_bytes());
            let computed = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest);
            if computed != *challenge {
                return bad();
            }
        }
        token_answer(request, issue(state, code.user))
    })
}

fn issue(state: &mut State, user: u64) -> Value {
    let token = format!("ghu_{}", letters::<36>());
    let refresh = format!("ghr_{}", letters::<76>());
    let now = state.now();
    let record = UserToken {
        id: state.fresh_id(),
        user,
        created_at: now,
        expires_at: now + TOKEN_SECONDS,
        refresh: sha256_hex(&refresh),
        refresh_expires_at: now + REFRESH_SECONDS,
    };
    state.user_tokens.insert(sha256_hex(&token), record);
    json!({
        "access_token": token,
        "expires_in": TOKEN_SECONDS,
        "refresh_token": refresh,
        "refresh_token_expires_in": REFRESH_SECONDS,
        "scope": "",
        "token_type": "bearer",
    })
}

/// The page on which an owner installs the app: it is installed already, so it leads on to the setup URL.
fn install(world: &World, request: &Request, slug: &str) -> Answer {
    world.with(|state| {
        if slug != state.app.slug {
            return Answer::bytes(404, "text/plain; charset=utf-8", "There is no such app.");
        }
        let id = state.installations.keys().next().map(ToString::to_string).unwrap_or_default();
        let code = new_code(world, state, request);
        let target = state.app.setup_url.clone().or_else(|| state.app.callback_url.clone());
        let target = target.unwrap_or_else(|| format!("{}/", state.base));
        let mut pairs = vec![("installation_id", id.as_str()), ("setup_action", "install"), ("code", code.as_str())];
        pairs.extend(request.query("state").map(|value| ("state", value)));
        Answer::redirect(302, with_query(&target, &pairs))
    })
}

/// The form by which an app is made from a manifest: remembers it and leads back with a code.
fn manifest(world: &World, request: &Request) -> Answer {
    let pairs = parameters(request);
    let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let Some(manifest) = get("manifest").and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        return Answer::bytes(422, "text/plain; charset=utf-8", "The manifest is not JSON.");
    };
    let Some(target) = manifest["redirect_url"].as_str().map(str::to_owned) else {
        return Answer::bytes(422, "text/plain; charset=utf-8", "The manifest has no redirect_url.");
    };
    let code = hex::encode(super::wire::random::<20>());
    world.with(|state| state.manifests.insert(code.clone(), manifest));
    let state = get("state");
    let mut pairs = vec![("code", code.as_str())];
    pairs.extend(state.as_deref().map(|value| ("state", value)));
    Answer::redirect(302, with_query(&target, &pairs))
}
