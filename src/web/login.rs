//! The login of people who want to see an app that is closed to the public: GitHub says who they are and what they may
//! read, and a ticket leads them back to the app (RFC 6749's code flow, with PKCE).
//!
//! A login belongs to the browser that began it, and its code is used once. Who was let in gets nothing of the
//! dashboard.

use super::problem::Problem;
use super::{Shared, views};
use crate::clock::Timestamp;
use crate::domain::AccessMode;
use crate::reconcile::{access, login};
use actix_web::http::header;
use actix_web::web::{self, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const COOKIE: &str = "landfall-oauth";
/// How long somebody may take at GitHub, and how many may be there at a time.
const TIME: Duration = Duration::from_secs(600);
const MOST: usize = 10_000;

pub fn configure(config: &mut web::ServiceConfig) {
    config.route("/login/app", web::get().to(begin)).route("/login/callback", web::get().to(end));
}

/// People who are at GitHub just now, by the state that they bring back.
#[derive(Default)]
pub struct Logins(Mutex<BTreeMap<String, Begun>>);

struct Begun {
    app: String,
    to: String,
    bind: String,
    verifier: String,
    until: Timestamp,
}

impl Logins {
    fn put(&self, state: String, begun: Begun, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| known.until > now);
        if all.len() >= MOST
            && let Some(oldest) = all.iter().min_by_key(|(_, known)| known.until).map(|(state, _)| state.clone())
        {
            all.remove(&oldest);
        }
        all.insert(state, begun);
    }

    /// Each state is good once.
    fn take(&self, state: &str, now: Timestamp) -> Option<Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(state).filter(|begun| begun.until > now)
    }
}

#[derive(Debug, Deserialize)]
struct Wish {
    app: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    bind: String,
}

async fn begin(shared: Data<Shared>, wish: Query<Wish>) -> HttpResponse {
    match begun(&shared, wish.into_inner()) {
        Ok(response) => response,
        Err(problem) => shared.problem_page(&problem),
    }
}

fn begun(shared: &Shared, wish: Wish) -> Result<HttpResponse, Problem> {
    let world = &shared.world;
    let app = views::find_app(world, &wish.app)?;
    let closed = access::of(world, &app)?.filter(|closed| closed.mode == AccessMode::Github);
    let (Some(_), Some(client)) = (closed, &world.config.github.client_id) else {
        return Err(Problem::not_found("page", "/login/app"));
    };
    let sound = wish.bind.len() == 64 && wish.bind.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !sound || !crate::router::is_own_path(&wish.to) {
        return Err(Problem::Malformed { what: "to", detail: "it is no page of the app".to_owned() });
    }
    let random = || world.vault.random_hex(32).map_err(|error| Problem::Internal { detail: error.to_string() });
    let (state, verifier, now) = (random()?, random()?, world.now());
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let address = format!(
        "{}/login/oauth/authorize?client_id={}&redirect_uri={}&state={state}&code_challenge={challenge}&code_challenge_method=S256",
        world.config.github.web_url.trim_end_matches('/'),
        encode(client),
        encode(&callback(shared)),
    );
    let begun = Begun { app: wish.app, to: wish.to, bind: wish.bind, verifier, until: now + TIME };
    shared.logins.put(state.clone(), begun, now);
    Ok(leads(shared, address, &state, TIME.as_secs()))
}

#[derive(Debug, Deserialize)]
struct Back {
    code: Option<String>,
    state: Option<String>,
}

async fn end(request: HttpRequest, shared: Data<Shared>, back: Query<Back>) -> HttpResponse {
    match ended(&request, &shared, back.into_inner()).await {
        Ok(response) => response,
        Err(problem) => shared.problem_page(&problem),
    }
}

async fn ended(request: &HttpRequest, shared: &Shared, back: Back) -> Result<HttpResponse, Problem> {
    let world = &shared.world;
    let refused = || Problem::LoginRefused;
    let (Some(code), Some(state)) = (back.code, back.state) else { return Err(refused()) };
    let cookies = request.headers().get_all(header::COOKIE).filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    if !cookies.any(|(name, value)| name == COOKIE && value == state) {
        return Err(refused());
    }
    let begun = shared.logins.take(&state, world.now()).ok_or_else(refused)?;
    let person = login::identify(world, &code, &begun.verifier, &callback(shared)).await?.ok_or_else(refused)?;
    let app = views::find_app(world, &begun.app)?;
    if !login::may_see(world, &app, &person).await? {
        tracing::info!(app = %app.name, %person, "{person} may not see {}", app.name);
        return Err(refused());
    }
    let entrance = access::entrance(world, &app, &begun.to, &begun.bind, world.now())?.ok_or_else(refused)?;
    tracing::info!(app = %app.name, %person, "{person} was let into {}", app.name);
    Ok(leads(shared, entrance, "", 0))
}

fn callback(shared: &Shared) -> String {
    shared.world.config.page("/login/callback")
}

fn leads(shared: &Shared, to: String, state: &str, seconds: u64) -> HttpResponse {
    let secure = if shared.world.config.server.public_url.starts_with("https://") { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={state}; Path=/login/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    let mut response = HttpResponse::SeeOther();
    response.insert_header((header::LOCATION, to)).insert_header((header::SET_COOKIE, cookie)).finish()
}

fn encode(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(letter).collect()
}
