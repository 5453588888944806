//! Who somebody is on GitHub, and what they may see there: asked when they log in, never taken from them.

use super::deliver::handle_of;
use super::{Trouble, World};
use crate::domain::*;
use crate::github::reads::Level;
use crate::outside;
use serde_json::{Value, json};
use std::time::Duration;

/// How long GitHub may take to answer one question while somebody waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// The person who gave this code, by their login; `None` where GitHub does not take it. Their token is used once and kept
/// nowhere.
pub async fn identify(world: &World, code: &str, verifier: &str, redirect: &str) -> Result<Option<String>, Trouble> {
    let github = &world.config.github;
    let (Some(id), Some(secret)) = (&github.client_id, &github.client_secret) else { return Ok(None) };
    let lost = |error: &dyn std::fmt::Display| Trouble::retry(format!("GitHub could not be asked: {error}"));
    let url = format!("{}/login/oauth/access_token", github.web_url.trim_end_matches('/'));
    let wish = json!({
        "client_id": id, "client_secret": secret.expose(), "code": code, "redirect_uri": redirect,
        "code_verifier": verifier,
    });
    outside::point("exchange of a login").await;
    let answer = world.http.post(url).timeout(PATIENCE).header("accept", "application/json").json(&wish).send().await;
    let answer: Value = match answer {
        Ok(answer) => answer.json().await.map_err(|error| lost(&error.without_url()))?,
        Err(error) => return Err(lost(&error.without_url())),
    };
    let Some(token) = answer.get("access_token").and_then(Value::as_str) else { return Ok(None) };
    let url = format!("{}/user", github.api_url.trim_end_matches('/'));
    let asked = world.http.get(url).timeout(PATIENCE).bearer_auth(token).header("user-agent", "landfall");
    let answer = asked.header("accept", "application/vnd.github+json").send().await;
    let answer = answer.map_err(|error| lost(&error.without_url()))?;
    if !answer.status().is_success() {
        return Ok(None);
    }
    let person: Value = answer.json().await.map_err(|error| lost(&error.without_url()))?;
    Ok(person.get("login").and_then(Value::as_str).map(str::to_owned))
}

/// Whether somebody may read an app's repository, as GitHub says now. No answer is no right.
pub async fn may_see(world: &World, app: &App, login: &str) -> Result<bool, Trouble> {
    let Some(repository) = world.store.repository(app.repository)? else { return Ok(false) };
    let permission = world.github.permission(&handle_of(&repository), login).await;
    let permission = permission.map_err(|error| Trouble::github(&error, world.now()))?;
    Ok(permission.level != Level::None)
}
