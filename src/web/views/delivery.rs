//! Deliveries: what came, and what was decided on it.

use super::When;
use crate::clock::Timestamp;
use crate::domain::{Delivery, DeliveryState};
use crate::reconcile::World;
use crate::store::StoreError;
use crate::web::problem::Problem;
use serde::{Deserialize, Serialize};

pub const PAGE: usize = 50;
/// Deliveries that are looked at to fill a page of those that are asked for.
const LOOKED_AT: usize = 5_000;
/// Bytes of a payload that a page shows.
const SHOWN: usize = 256 * 1024;

#[derive(Debug, Clone, Serialize)]
pub struct DeliveryLine {
    pub id: String,
    pub event: String,
    pub action: Option<String>,
    pub repository: Option<String>,
    pub sender: Option<String>,
    pub received: When,
    pub bytes: u64,
    pub attempts: u32,
    pub state: DeliveryState,
    pub can_replay: bool,
}

/// Which of them; most of what GitHub sends leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Only {
    #[default]
    All,
    /// Something was decided on them.
    Decided,
    /// They are not dealt with yet.
    Open,
}

impl Only {
    fn takes(self, state: &DeliveryState) -> bool {
        match (self, state) {
            (Only::All, _) | (Only::Decided, DeliveryState::Applied { .. }) => true,
            (Only::Decided, _) => false,
            (Only::Open, state) => !matches!(state, DeliveryState::Applied { .. } | DeliveryState::Ignored { .. }),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Deliveries {
    pub only: Only,
    pub deliveries: Vec<DeliveryLine>,
    /// The id to give as `after` for the page that follows.
    pub next: Option<String>,
    pub parked: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct DeliveryDetail {
    #[serde(flatten)]
    pub line: DeliveryLine,
    /// Pretty where it is JSON; `None` when it was pruned.
    pub payload: Option<String>,
    /// Bytes that are not shown.
    pub cut: usize,
}

impl DeliveryLine {
    fn new(delivery: Delivery, now: Timestamp) -> DeliveryLine {
        DeliveryLine {
            received: When::new(delivery.received_at, now),
            can_replay: matches!(delivery.state, DeliveryState::Parked { .. } | DeliveryState::Retrying { .. }),
            id: delivery.id,
            event: delivery.event,
            action: delivery.action,
            repository: delivery.repository,
            sender: delivery.sender,
            bytes: delivery.bytes,
            attempts: delivery.attempts,
            state: delivery.state,
        }
    }
}

pub fn deliveries(world: &World, after: Option<&str>, most: usize, only: Only) -> Result<Deliveries, Problem> {
    let now = world.now();
    let mut found: Vec<Delivery> = Vec::new();
    let mut last = after.map(str::to_owned);
    let mut looked_at = 0;
    let mut more = true;
    while found.len() <= most && more && looked_at < LOOKED_AT {
        let page = world.store.deliveries(last.as_deref(), most + 1)?;
        more = page.len() > most;
        looked_at += page.len();
        last = page.last().map(|delivery| delivery.id.clone());
        found.extend(page.into_iter().filter(|delivery| only.takes(&delivery.state)));
    }
    let next = if found.len() > most {
        found.truncate(most);
        found.last().map(|delivery| delivery.id.clone())
    } else {
        last.filter(|_| more)
    };
    Ok(Deliveries {
        only,
        next,
        deliveries: found.into_iter().map(|delivery| DeliveryLine::new(delivery, now)).collect(),
        parked: crate::store::queue::depth(&world.store)?.parked,
    })
}

pub fn delivery_detail(world: &World, id: &str) -> Result<DeliveryDetail, Problem> {
    let record = world.store.delivery(id)?.ok_or_else(|| Problem::not_found("delivery", id))?;
    let payload = match world.store.blob(&record.payload) {
        Ok(bytes) => Some(bytes),
        Err(StoreError::BlobPruned { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut payload = payload.map(pretty);
    let mut cut = 0;
    if let Some(text) = &mut payload
        && text.len() > SHOWN
    {
        let end = (0..=SHOWN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        cut = text.len() - end;
        text.truncate(end);
    }
    Ok(DeliveryDetail { line: DeliveryLine::new(record.delivery, world.now()), payload, cut })
}

/// JSON with line breaks; anything else, a form for example, as it came. What the eye would not see is made visible.
fn pretty(bytes: Vec<u8>) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let text = match parsed.map(|value| serde_json::to_string_pretty(&value)) {
        Some(Ok(text)) => text,
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    let lines: Vec<String> = text.lines().map(crate::web::ansi::visible).collect();
    lines.join("\n")
}
