//! GitHub's door over the wire: what is taken, what is refused, and what becomes of every payload that GitHub publishes.

use crate::support::machine::{Machine, PATIENCE, SECOND_SECRET, SECRET};
use crate::support::schemas::webhook_examples;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use std::collections::BTreeMap;

/// What a sender does; each part can be wrong.
struct Delivery<'a> {
    id: &'a str,
    event: Option<&'a str>,
    body: Vec<u8>,
    content_type: &'a str,
    signature: Option<String>,
}

impl<'a> Delivery<'a> {
    fn new(id: &'a str, event: &'a str, body: impl Into<Vec<u8>>) -> Delivery<'a> {
        let body = body.into();
        let signature = Some(sign(SECRET, &body));
        Delivery { id, event: Some(event), body, content_type: "application/json", signature }
    }

    fn signed(mut self, signature: Option<&str>) -> Delivery<'a> {
        self.signature = signature.map(str::to_owned);
        self
    }

    /// The status and the words of the answer.
    async fn send(&self, machine: &Machine) -> (u16, String) {
        let mut request = machine
            .client
            .post(format!("http://{}/webhooks/github", machine.server))
            .header("content-type", self.content_type)
            .header("x-github-delivery", self.id);
        if let Some(event) = self.event {
            request = request.header("x-github-event", event);
        }
        if let Some(signature) = &self.signature {
            request = request.header("x-hub-signature-256", signature);
        }
        let answer = request.body(self.body.clone()).send().await.expect("the control plane answers");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    async fn expect(&self, machine: &Machine, status: u16) {
        let (found, words) = self.send(machine).await;
        assert_eq!(found, status, "delivery {}: {words}", self.id);
        let taken = machine.api(&format!("/api/v1/deliveries/{}", self.id)).await.is_ok();
        assert_eq!(taken, matches!(status, 200 | 202), "delivery {} answered {status}", self.id);
    }
}

fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

const STAR: &str = r#"{"action":"created","repository":{"id":1,"name":"hello","full_name":"olivia/hello","owner":{"login":"olivia","id":2}},"sender":{"login":"olivia","id":2,"type":"User"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_of_the_door_means_what_it_says() {
    let machine = Machine::start().await;
    let star = |id| Delivery::new(id, "star", STAR);
    star("known-event").expect(&machine, 202).await;
    star("known-event").expect(&machine, 200).await;
    Delivery::new("new-event", "an_event_of_next_year", STAR).expect(&machine, 202).await;
    Delivery::new("ping", "ping", r#"{"zen":"Keep it logically awesome.","hook_id":1,"hook":{}}"#)
        .expect(&machine, 200)
        .await;
    star("second-secret").signed(Some(&sign(SECOND_SECRET, STAR.as_bytes()))).expect(&machine, 202).await;

    let good = sign(SECRET, STAR.as_bytes());
    star("missing").signed(None).expect(&machine, 401).await;
    star("empty").signed(Some("")).expect(&machine, 401).await;
    star("no-prefix").signed(Some(&good["sha256=".len()..])).expect(&machine, 401).await;
    star("other-prefix").signed(Some(&good.replace("sha256=", "sha512="))).expect(&machine, 401).await;
    star("short").signed(Some(&good[..good.len() - 2])).expect(&machine, 401).await;
    star("long").signed(Some(&format!("{good}00"))).expect(&machine, 401).await;
    star("other-secret")
        .signed(Some(&sign("another secret, just as long as ours", STAR.as_bytes())))
        .expect(&machine, 401)
        .await;
    Delivery { body: STAR.replace("olivia", "mallory").into_bytes(), ..star("changed") }.expect(&machine, 401).await;

    // GitHub's own example of a secret, a payload and its signature. The signature holds; the payload is no JSON.
    let example = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    Delivery::new("vector", "star", "Hello, World!").signed(Some(example)).expect(&machine, 400).await;
    Delivery::new("vector-changed", "star", "Hello, World?").signed(Some(example)).expect(&machine, 401).await;

    for (id, body) in
        [("not-json", "{"), ("empty-body", ""), ("a-list", "[]"), ("a-number", "7"), ("not-text", "\u{0}")]
    {
        Delivery::new(id, "star", body).expect(&machine, 400).await;
    }
    Delivery { event: None, ..star("no-event") }.expect(&machine, 400).await;
    let (status, _) = Delivery::new("../../etc/passwd", "star", STAR).send(&machine).await;
    assert_eq!(status, 400);

    // A form holds the JSON in its field `payload`; the signature is over the form as it came.
    let form: String = STAR.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = format!("payload={form}");
    let content_type = "application/x-www-form-urlencoded";
    Delivery { content_type, ..Delivery::new("form", "star", form.clone()) }.expect(&machine, 202).await;
    Delivery { content_type, ..Delivery::new("form-unsigned", "star", form) }
        .signed(Some(&good))
        .expect(&machine, 401)
        .await;
    Delivery { content_type, ..Delivery::new("form-without", "star", "other=1") }.expect(&machine, 400).await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_signature_alone_is_not_enough() {
    let machine = Machine::start().await;
    let answer = machine
        .client
        .post(format!("http://{}/webhooks/github", machine.server))
        .header("content-type", "application/json")
        .header("x-github-delivery", "only-sha1")
        .header("x-github-event", "star")
        // HMAC-SHA1 of the body under the right secret would stand here; it is not even looked at.
        .header("x-hub-signature", "sha1=0123456789abcdef0123456789abcdef01234567")
        .body(STAR)
        .send()
        .await
        .expect("it answers");
    assert_eq!(answer.status(), 401);
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_larger_than_github_sends_is_too_large() {
    let machine = Machine::start().await;
    let body = |bytes: usize| {
        let (head, tail) = (r#"{"action":"created","filler":""#, r#""}"#);
        format!("{head}{}{tail}", "x".repeat(bytes - head.len() - tail.len()))
    };
    let largest = 25 << 20;
    Delivery::new("largest", "star", body(largest)).expect(&machine, 202).await;
    // Either the answer comes, or the connection ends while the rest is still being sent; it is never taken.
    let delivery = Delivery::new("too-large", "star", body(largest + 1));
    let sent = machine
        .client
        .post(format!("http://{}/webhooks/github", machine.server))
        .header("content-type", "application/json")
        .header("x-github-delivery", delivery.id)
        .header("x-github-event", "star")
        .header("x-hub-signature-256", delivery.signature.as_deref().expect("signed"))
        .header("expect", "100-continue")
        .body(delivery.body)
        .send()
        .await;
    assert_eq!(sent.expect("an answer").status(), 413);
    assert!(machine.api("/api/v1/deliveries/too-large").await.is_err());
    machine.leave().await;
}

/// No file may become larger than eight MiB: the journal and its blobs meet a full disk as far as they can tell.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_not_taken() {
    // `ulimit -f` counts 512 bytes in dash and bash's POSIX mode; the signal is ignored so that the write itself fails.
    let shell = ["/bin/sh", "-c", "trap '' XFSZ; ulimit -f 16384; exec \"$@\"", "sh"];
    let machine = Machine::wrapped("", &shell).await;
    let body = format!(r#"{{"action":"created","filler":"{}"}}"#, "x".repeat(20 << 20));
    let delivery = Delivery::new("does-not-fit", "star", body);
    delivery.expect(&machine, 503).await;
    Delivery::new("fits", "star", STAR).expect(&machine, 202).await;
    delivery.expect(&machine, 503).await;
    machine.leave().await;
}

/// GitHub's recordings are about repositories that the simulated GitHub doesn't have, so what asks GitHub again learns
/// that there is nothing; but each is taken, understood, and none is our bug.
#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_payload_is_taken_and_understood() {
    let machine = Machine::start().await;
    let examples = webhook_examples();
    let ids: Vec<String> = (0..examples.len()).map(|number| format!("recorded-{number}")).collect();
    for ((event, payload), id) in examples.iter().zip(&ids) {
        let body = serde_json::to_vec(payload).expect("JSON");
        let (status, words) = Delivery::new(id, event, body).send(&machine).await;
        assert_eq!(status, if event == "ping" { 200 } else { 202 }, "{id}, {event}.{}: {words}", payload["action"]);
    }
    let look = async || {
        let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((event, payload), id) in examples.iter().zip(&ids) {
            let delivery = machine.api(&format!("/api/v1/deliveries/{id}")).await?;
            let state = &delivery["state"];
            let kind = state["kind"].as_str().expect("a state").to_owned();
            let action = payload["action"].as_str().unwrap_or_default();
            let error = state["error"].as_str().unwrap_or_default();
            kinds.entry(kind).or_default().push(format!("{id} {event} {action} {error}"));
        }
        anyhow::ensure!(!kinds.contains_key("queued"), "still queued: {:#?}", kinds["queued"]);
        Ok(kinds)
    };
    let kinds = machine.expect(&format!("all to be looked at within {PATIENCE:?}"), look).await;
    assert_eq!(kinds.get("parked"), None, "a payload of GitHub's is a bug to us");
    let counts: BTreeMap<&str, usize> = kinds.iter().map(|(kind, all)| (kind.as_str(), all.len())).collect();
    assert!(counts["ignored"] > 200, "{counts:?}");
    for line in kinds.get("retrying").into_iter().flatten() {
        assert!(line.ends_with("the app is not installed there"), "{line}");
    }
    let apps: Value = machine.api("/api/v1/apps").await.expect("the API answers");
    assert_eq!(apps["apps"].as_array().map(Vec::len), Some(0), "{apps}");
    machine.leave().await;
}
