//! The door for GitHub: is the delivery GitHub's, and is it on disk? Nothing else happens before the answer.
//!
//! 202 stored · 200 duplicate or ping · 401 bad or missing signature · 400 malformed · 413 over 25 MiB · 503 when the
//! store cannot take it. Never 2xx for what is not on disk.

use crate::clock::Clock;
use crate::domain::{Delivery, DeliveryState, IgnoredBecause};
use crate::github::{Envelope, WebhookSecrets};
use crate::store::{DeliveryRecord, Store, StoreError, Transaction, queue};
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

/// GitHub delivers nothing larger.
pub const LARGEST_BODY: usize = 25 << 20;
/// Bodies that may be read at a time; the others wait, so that large ones cannot fill the memory.
const PARALLEL_BODIES: usize = 64;
/// `sha256=` and 64 hex digits.
const SIGNATURE_LENGTH: usize = 71;
/// GitHub waits ten seconds for an answer.
const PLACE_WAIT: Duration = Duration::from_secs(4);
const BODY_WAIT: Duration = Duration::from_secs(5);

/// What the door needs.
pub struct Intake {
    pub store: Store,
    pub secrets: WebhookSecrets,
    pub clock: Clock,
    /// Wakes whoever works on deliveries.
    pub arrived: Arc<Notify>,
    places: Semaphore,
}

impl Intake {
    pub fn new(store: Store, secrets: WebhookSecrets, clock: Clock, arrived: Arc<Notify>) -> Intake {
        Intake { store, secrets, clock, arrived, places: Semaphore::new(PARALLEL_BODIES) }
    }
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Signature(#[from] crate::github::signature::SignatureError),
    #[error("the body is longer than {LARGEST_BODY} bytes")]
    TooLarge,
    #[error("the body ended early or came too slowly")]
    Broken,
    #[error("too many deliveries arrive at once; send it again later")]
    Busy,
    #[error("the header {0} is missing or not a plain word")]
    Header(&'static str),
    #[error("{0}")]
    Malformed(String),
    #[error("the delivery could not be stored; send it again later")]
    Store(#[from] StoreError),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Refused::Signature(_) => StatusCode::UNAUTHORIZED,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::Broken | Refused::Header(_) | Refused::Malformed(_) => StatusCode::BAD_REQUEST,
            Refused::Busy | Refused::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

enum Taken {
    Stored,
    Duplicate,
    Ping,
}

/// `POST /webhooks/github`.
pub async fn webhook(request: HttpRequest, body: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    match take(&request, body, &intake).await {
        Ok(Taken::Stored) => HttpResponse::Accepted().json(serde_json::json!({ "status": "stored" })),
        Ok(Taken::Duplicate) => HttpResponse::Ok().json(serde_json::json!({ "status": "duplicate" })),
        Ok(Taken::Ping) => HttpResponse::Ok().json(serde_json::json!({ "status": "pong" })),
        Err(refused) => {
            warn!(status = refused.status().as_u16(), "refused a delivery: {refused}");
            HttpResponse::build(refused.status()).json(serde_json::json!({ "error": refused.to_string() }))
        }
    }
}

async fn take(request: &HttpRequest, body: web::Payload, intake: &Intake) -> Result<Taken, Refused> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let announced = header("content-length").and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > LARGEST_BODY) {
        return Err(Refused::TooLarge);
    }
    // Nobody without a signature gets as far as sending a body, and nobody takes long over it.
    let signature = header("x-hub-signature-256").filter(|text| text.len() == SIGNATURE_LENGTH);
    if signature.is_none() {
        intake.secrets.verify(header("x-hub-signature-256"), b"")?;
    }
    let place = tokio::time::timeout(PLACE_WAIT, intake.places.acquire()).await;
    let _place = place.ok().and_then(Result::ok).ok_or(Refused::Busy)?;
    let body = tokio::time::timeout(BODY_WAIT, read(body)).await.map_err(|_| Refused::Broken)??;
    intake.secrets.verify(header("x-hub-signature-256"), &body)?;
    // From here on the words are GitHub's.
    let event = word(header("x-github-event")).ok_or(Refused::Header("X-GitHub-Event"))?;
    let id = word(header("x-github-delivery")).ok_or(Refused::Header("X-GitHub-Delivery"))?;
    let content_type = header("content-type").map(str::to_owned);
    let envelope = Envelope::read(&event, &id, &body, content_type.as_deref())
        .map_err(|error| Refused::Malformed(error.to_string()))?;
    let ping = event == "ping";
    let now = intake.clock.now();
    let delivery = Delivery {
        id: id.clone(),
        event: event.clone(),
        action: envelope.action,
        repository: envelope.repository.map(|repository| format!("{}/{}", repository.owner, repository.name)),
        sender: envelope.sender.map(|sender| sender.login),
        received_at: now,
        bytes: body.len() as u64,
        content_type,
        state: if ping {
            DeliveryState::Ignored { why: IgnoredBecause::NothingToDo, at: now }
        } else {
            DeliveryState::Queued
        },
        attempts: 0,
    };
    let stored = intake.store.transact(move |tx| write(tx, delivery, body, !ping)).await?;
    if !stored {
        return Ok(Taken::Duplicate);
    }
    info!(delivery = %id, event = %event, "stored delivery {id} ({event})");
    intake.arrived.notify_waiters();
    Ok(if ping { Taken::Ping } else { Taken::Stored })
}

/// The delivery, its payload and its place in the queue, or nothing of them. Whether it was new.
fn write(tx: &mut Transaction<'_>, delivery: Delivery, body: Bytes, enqueue: bool) -> Result<bool, StoreError> {
    if tx.delivery(&delivery.id)?.is_some() {
        return Ok(false);
    }
    let payload = tx.put_blob(body)?;
    let (key, now) = (format!("delivery:{}", delivery.id), delivery.received_at);
    tx.put_delivery(&DeliveryRecord { delivery, payload })?;
    if enqueue {
        queue::enqueue(tx, &key, now)?;
    }
    Ok(true)
}

async fn read(mut body: web::Payload) -> Result<Bytes, Refused> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| Refused::Broken)?;
        if bytes.len() + chunk.len() > LARGEST_BODY {
            return Err(Refused::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// A header's value that can be a key and a file name: 1..100 of `[A-Za-z0-9_-]`.
fn word(value: Option<&str>) -> Option<String> {
    value
        .filter(|text| (1..=100).contains(&text.len()))
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')))
        .map(str::to_owned)
}
