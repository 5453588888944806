//! Whoever speaks Heroku's Add-on Partner API: `POST`, `PUT` and `DELETE` on `/heroku/resources`.
//!
//! A request to provision carries a UUID that is the same each time, so an answer that was lost is asked for again.

use super::{AddonError, Provided};
use crate::domain::{Addon, Secret};
use crate::outside;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// An answer larger than this is none.
const MOST_BYTES: usize = 1 << 20;
const ACCEPT: &str = "application/vnd.heroku-addons+json; version=3";

/// One provider, as the operator declared it.
#[derive(Debug, Clone)]
pub struct Partner {
    pub base_url: String,
    pub username: String,
    pub password: Secret,
    pub region: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    id: Option<Value>,
    config: Option<BTreeMap<String, Value>>,
    message: Option<String>,
    error: Option<String>,
}

struct Told {
    status: u16,
    resource: Resource,
}

impl Partner {
    fn resources(&self) -> String {
        format!("{}/heroku/resources", self.base_url.trim_end_matches('/'))
    }

    async fn send(
        &self,
        client: &reqwest::Client,
        method: reqwest::Method,
        url: String,
        body: Option<Value>,
    ) -> Result<Told, AddonError> {
        let mut request = client
            .request(method, url)
            .basic_auth(&self.username, Some(self.password.expose()))
            .header("accept", ACCEPT)
            .timeout(PATIENCE);
        if let Some(body) = body {
            request = request.json(&body);
        }
        // Without its address, which may hold a password.
        let lost = |error: reqwest::Error| AddonError::Unreachable(error.without_url().to_string());
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(lost)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > MOST_BYTES {
                return Err(AddonError::refused("it answered with more than 1 MiB"));
            }
        }
        Ok(Told { status, resource: serde_json::from_slice(&bytes).unwrap_or_default() })
    }

    /// Asks for the add-on, or asks again how it is getting on.
    pub async fn provision(
        &self,
        client: &reqwest::Client,
        addon: &Addon,
        owner: &str,
        waited: Duration,
    ) -> Result<Provided, AddonError> {
        let body = json!({
            "uuid": addon.id.uuid(),
            "name": format!("{}-{}", addon.service(), addon.id.short()),
            "plan": addon.tier().unwrap_or("default"),
            "region": self.region,
            "options": addon.options,
            "app": { "name": owner },
        });
        outside::point("partner provision").await;
        let told = self.send(client, reqwest::Method::POST, self.resources(), Some(body)).await?;
        outside::point("partner asked").await;
        let handle = told.resource.id.as_ref().map(text);
        match (told.status, &told.resource.config) {
            (200 | 201, config) | (202, config @ Some(_)) => {
                Ok(Provided::Ready { config: variables(config.as_ref())?, handle, note: None })
            }
            // Soon at first, then less and less often.
            (202, None) => {
                let after = (waited / 5).clamp(Duration::from_millis(250), Duration::from_secs(15));
                Ok(Provided::Pending { after, handle })
            }
            _ => Err(self.refusal(&told)),
        }
    }

    /// Another plan for what is there.
    pub async fn change_plan(&self, client: &reqwest::Client, addon: &Addon) -> Result<Provided, AddonError> {
        let handle = addon.handle.clone().unwrap_or_else(|| addon.id.uuid());
        let url = format!("{}/{}", self.resources(), escaped(&handle));
        outside::point("partner change plan").await;
        let body = json!({ "plan": addon.tier().unwrap_or("default") });
        let told = self.send(client, reqwest::Method::PUT, url, Some(body)).await?;
        outside::point("partner changed plan").await;
        match told.status {
            200..=299 => Ok(Provided::Ready {
                config: variables(told.resource.config.as_ref())?,
                handle: Some(handle),
                note: None,
            }),
            _ => Err(self.refusal(&told)),
        }
    }

    pub async fn deprovision(&self, client: &reqwest::Client, addon: &Addon, owner: &str) -> Result<(), AddonError> {
        let handle = match &addon.handle {
            Some(handle) => handle.clone(),
            // It was asked for, and how it answered is not known: the same question gives the same answer.
            None => match self.provision(client, addon, owner, Duration::ZERO).await {
                Ok(Provided::Ready { handle, .. } | Provided::Pending { handle, .. }) => {
                    handle.unwrap_or_else(|| addon.id.uuid())
                }
                // What is refused was never made.
                Err(AddonError::Refused(_)) => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        outside::point("partner deprovision").await;
        let url = format!("{}/{}", self.resources(), escaped(&handle));
        let told = self.send(client, reqwest::Method::DELETE, url, None).await?;
        outside::point("partner deprovisioned").await;
        match told.status {
            200..=299 | 404 | 410 => Ok(()),
            _ => Err(self.refusal(&told)),
        }
    }

    fn refusal(&self, told: &Told) -> AddonError {
        let said = told.resource.message.as_ref().or(told.resource.error.as_ref());
        let said: String =
            said.map_or_else(String::new, |said| format!(": {}", said.chars().take(500).collect::<String>()));
        let detail = format!("it answered {}{said}", told.status);
        match told.status {
            // Too many requests, an operation under way, or trouble of its own. A wrong password is for the operator.
            401 | 403 | 408 | 409 | 423 | 429 | 500.. => AddonError::Unreachable(detail),
            _ => AddonError::refused(detail),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What it wants in the app's environment, where that is the app's to have.
fn variables(config: Option<&BTreeMap<String, Value>>) -> Result<BTreeMap<String, String>, AddonError> {
    let mut variables = BTreeMap::new();
    for (name, value) in config.into_iter().flatten() {
        let value = text(value);
        if !crate::domain::is_variable_name(name)
            || crate::domain::is_reserved_variable(name)
            || value.contains('\0')
            || value.len() > 16 << 10
        {
            return Err(AddonError::refused("it answered with a config var that no app may have"));
        }
        variables.insert(name.clone(), value);
    }
    Ok(variables)
}

/// An id of somebody else's, as one part of a path.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_somebody_else_s_stays_one_part_of_the_path() {
        assert_eq!(escaped("../../admin?x=1#y"), "%2E%2E%2F%2E%2E%2Fadmin%3Fx%3D1%23y");
        assert_eq!(escaped("01234567-89ab"), "01234567-89ab");
    }

    #[test]
    fn a_partner_sets_no_variable_of_ours() {
        for name in ["PATH", "LD_PRELOAD", "LANDFALL_URL", "a b", ""] {
            let config = BTreeMap::from([(name.to_owned(), Value::from("x"))]);
            assert!(variables(Some(&config)).is_err(), "{name}");
        }
    }
}
