//! Webhook payloads: what happened, with the repository, the sender and the installation it concerns. An event is
//! put into the outbox under the lock of the state, so that events leave in the order in which things happened.

use anyhow::Result;
use serde_json::{Value, json};

use super::state::{AccountKind, Hook, State};
use super::view;
use super::wire::guid;

/// Who did it: the account that shows as the sender, and whether the app acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub account: u64,
    pub via_app: bool,
}

impl State {
    /// The first user, acting by hand.
    pub fn first(&self) -> Who {
        Who { account: self.first_user, via_app: false }
    }

    pub fn bot(&self) -> Who {
        Who { account: self.app.bot, via_app: true }
    }

    /// Sends an event of a repository to the app, if it is installed there and not suspended.
    pub fn emit(&mut self, event: &str, action: Option<&str>, repository: u64, sender: u64, fields: Value) {
        let Ok(record) = self.repository(repository) else { return };
        let Some(installation) = self.installation_of(record.owner) else { return };
        if !record.installed || installation.suspended_at.is_some() {
            return;
        }
        let installation = installation.id;
        let owner = record.owner;
        let mut payload = json!({});
        if let Some(action) = action {
            payload["action"] = json!(action);
        }
        merge(&mut payload, fields);
        if payload.get("repository").is_none() {
            payload["repository"] = view::repository(self, record);
        }
        if self.account(owner).is_some_and(|account| account.kind == AccountKind::Organization) {
            payload["organization"] = view::organization(self, owner);
        }
        payload["sender"] = view::user(self, sender);
        payload["installation"] = json!({"id": installation, "node_id": view::node_id("I", installation)});
        self.queue(event, action, Some(installation), Some(repository), &payload);
    }

    /// Sends an event about an installation itself, which carries the whole record.
    pub fn emit_installation(&mut self, event: &str, action: &str, installation: u64, sender: u64, fields: Value) {
        let Some(record) = self.installations.get(&installation) else { return };
        let mut payload = json!({"action": action, "installation": view::installation(self, record)});
        merge(&mut payload, fields);
        payload["sender"] = view::user(self, sender);
        self.queue(event, Some(action), Some(installation), None, &payload);
    }

    /// The ping that GitHub sends for a new hook: neither installation nor repository.
    pub fn emit_ping(&mut self) {
        let payload = json!({
            "zen": super::api::app::ZEN[0],
            "hook_id": self.hook_id,
            "hook": {
                "type": "App",
                "id": self.hook_id,
                "name": "web",
                "active": true,
                "events": self.app.events,
                "config": {
                    "content_type": "json",
                    "url": self.app.hook_url,
                    "insecure_ssl": "0",
                    "secret": "********",
                },
                "updated_at": view::time(self.now()),
                "created_at": view::time(self.app.created_at),
                "app_id": self.app.id,
                "deliveries_url": format!("{}/app/hook/deliveries", self.base),
            },
        });
        self.queue("ping", None, None, None, &payload);
    }

    fn queue(
        &mut self,
        event: &str,
        action: Option<&str>,
        installation: Option<u64>,
        repository: Option<u64>,
        payload: &Value,
    ) {
        self.outbox.push(Hook {
            guid: guid(),
            event: event.to_owned(),
            action: action.map(str::to_owned),
            installation,
            repository,
            payload: payload.to_string(),
            redelivery: false,
        });
    }

    /// A `pull_request` event with the pull request as it is now.
    pub fn emit_pull(&mut self, action: &str, repository: u64, number: u64, sender: u64, fields: Value) -> Result<()> {
        let told = match action {
            "opened" | "synchronize" | "reopened" => view::pulls::Mergeability::Unknown,
            _ => view::pulls::Mergeability::Computed,
        };
        let pull = view::pulls::pull(self, repository, number, told)?;
        let mut payload = json!({"number": number, "pull_request": pull});
        merge(&mut payload, fields);
        self.emit("pull_request", Some(action), repository, sender, payload);
        Ok(())
    }
}

/// Puts the fields of `from` into the object `into`.
pub fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
