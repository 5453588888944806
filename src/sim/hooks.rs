//! The sender of webhooks: one task, one delivery after the other, ten seconds each, no second try of its own.
//! What came of each is kept for the list of deliveries, from which the app may ask for it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{Delivery, Hook};
use super::world::{HookMode, World, lock};

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the reversed mode gathers before it sends.
const GATHERING: Duration = Duration::from_millis(150);

pub async fn run(world: Arc<World>) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            tracing::error!("the simulated GitHub cannot send webhooks: {error}");
            return;
        }
    };
    loop {
        let mode = lock(&world.bench).mode;
        if mode == HookMode::Reversed && !lock(&world.queue).waiting.is_empty() {
            gather(&world).await;
        }
        let hook = {
            let mut queue = lock(&world.queue);
            let hook = match mode {
                HookMode::Held => None,
                HookMode::Reversed => queue.waiting.pop_back(),
                _ => queue.waiting.pop_front(),
            };
            queue.delivering += usize::from(hook.is_some());
            hook
        };
        let Some(hook) = hook else {
            world.wake.notified().await;
            continue;
        };
        match mode {
            HookMode::Lost { recorded } => {
                if recorded {
                    record(&world, &hook, Attempt::failed("failed to connect to host"));
                }
            }
            _ => {
                let times = if mode == HookMode::Doubled { 2 } else { 1 };
                for _ in 0..times {
                    let attempt = send(&world, &client, &hook).await;
                    record(&world, &hook, attempt);
                }
            }
        }
        lock(&world.queue).delivering -= 1;
    }
}

/// Waits until nothing more is added for a moment, so that there is an order to reverse.
async fn gather(world: &World) {
    loop {
        let before = lock(&world.queue).waiting.len();
        tokio::time::sleep(GATHERING).await;
        if lock(&world.queue).waiting.len() == before {
            return;
        }
    }
}

struct Attempt {
    status: String,
    code: u16,
    seconds: f64,
    request_headers: BTreeMap<String, String>,
    response_headers: BTreeMap<String, String>,
    response: String,
}

impl Attempt {
    fn failed(status: &str) -> Self {
        Self {
            status: status.to_owned(),
            code: 502,
            seconds: 0.0,
            request_headers: BTreeMap::new(),
            response_headers: BTreeMap::new(),
            response: String::new(),
        }
    }
}

async fn send(world: &World, client: &reqwest::Client, hook: &Hook) -> Attempt {
    let (url, secret, hook_id, app) =
        world.read(|state| (state.app.hook_url.clone(), state.app.hook_secret.clone(), state.hook_id, state.app.id));
    let mut headers = BTreeMap::from([
        ("Accept".to_owned(), "*/*".to_owned()),
        ("Content-Type".to_owned(), "application/json".to_owned()),
        ("User-Agent".to_owned(), "GitHub-Hookshot/5a1d1a7".to_owned()),
        ("X-GitHub-Delivery".to_owned(), hook.guid.clone()),
        ("X-GitHub-Event".to_owned(), hook.event.clone()),
        ("X-GitHub-Hook-ID".to_owned(), hook_id.to_string()),
        ("X-GitHub-Hook-Installation-Target-ID".to_owned(), app.to_string()),
        ("X-GitHub-Hook-Installation-Target-Type".to_owned(), "integration".to_owned()),
    ]);
    if !secret.is_empty() {
        let sign = |algorithm| {
            let key = ring::hmac::Key::new(algorithm, secret.as_bytes());
            hex::encode(ring::hmac::sign(&key, hook.payload.as_bytes()))
        };
        headers
            .insert("X-Hub-Signature".to_owned(), format!("sha1={}", sign(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY)));
        headers.insert("X-Hub-Signature-256".to_owned(), format!("sha256={}", sign(ring::hmac::HMAC_SHA256)));
    }
    let started = Instant::now();
    let mut request = client.post(&url).body(hook.payload.clone());
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    let mut attempt = match request.send().await {
        Ok(answer) => {
            let code = answer.status();
            let response_headers = answer
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                .collect();
            let response: String = answer.text().await.unwrap_or_default().chars().take(4096).collect();
            Attempt {
                status: if code.is_success() {
                    "OK".to_owned()
                } else {
                    format!("Invalid HTTP Response: {}", code.as_u16())
                },
                code: code.as_u16(),
                seconds: 0.0,
                request_headers: BTreeMap::new(),
                response_headers,
                response,
            }
        }
        Err(error) if error.is_timeout() => Attempt { code: 504, ..Attempt::failed("timed out") },
        Err(_) => Attempt::failed("failed to connect to host"),
    };
    attempt.seconds = (started.elapsed().as_secs_f64() * 100.0).round() / 100.0;
    attempt.request_headers = headers;
    attempt
}

fn record(world: &World, hook: &Hook, attempt: Attempt) {
    world.with(|state| {
        state.next_delivery = state.deliveries.back().map_or(state.next_delivery, |last| last.id) + 1;
        let delivery = Delivery {
            id: state.next_delivery,
            guid: hook.guid.clone(),
            delivered_at: state.now(),
            redelivery: hook.redelivery,
            duration: attempt.seconds,
            status: attempt.status,
            status_code: attempt.code,
            event: hook.event.clone(),
            action: hook.action.clone(),
            installation: hook.installation,
            repository: hook.repository,
            payload: hook.payload.clone(),
            request_headers: attempt.request_headers,
            response_headers: attempt.response_headers,
            response: attempt.response,
        };
        super::world::append_delivery(state, &delivery);
        state.deliveries.push_back(delivery);
        state.prune();
    });
}
