//! A client that knows nothing but HTTP: it calls the stand-in, has each call and answer judged, and hears its webhooks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};

use landfall::sim::{Options, Sim};

use crate::support::schemas::GitHubSchemas;

pub const SECRET: &str = "It's a Secret to Everybody";

/// Whose credentials a call carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The app itself, by JWT.
    App,
    /// The app's installation, by a token that [`Driver::login`] fetched.
    Installation,
    /// The person who owns everything, by a token from the command line.
    Owner,
    /// A person without rights, by a token from the command line.
    Stranger,
    /// The owner by a token of the app's OAuth flow.
    Oauth,
    /// The app's client id and secret, as Basic.
    Client,
    Nobody,
}

/// One webhook as it came in.
#[derive(Clone)]
pub struct Heard {
    pub event: String,
    pub payload: Value,
}

pub struct Driver {
    pub tokens: BTreeMap<&'static str, String>,
    sim: Sim,
    /// Held so that the folder lives as long as the stand-in.
    _data: tempfile::TempDir,
    client: reqwest::Client,
    key: ring::signature::RsaKeyPair,
    driven: BTreeSet<String>,
    receiver: Receiver,
}

/// What an answer was, for steps that need more than its body.
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

impl Driver {
    /// Starts a stand-in with two people, `octo` who owns what is made and `stranger`, and listens to its webhooks.
    pub async fn start() -> Driver {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let receiver = Receiver::start();
        let data = tempfile::tempdir().expect("a temporary folder");
        let sim = Sim::start(Options {
            listen: ([127, 0, 0, 1], 0).into(),
            data: data.path().to_owned(),
            public_url: None,
            webhook_url: receiver.url.clone(),
            webhook_secret: SECRET.to_owned(),
            app_id: 1,
            app_public_key_pem: include_str!("app-key.pub.pem").to_owned(),
            users: vec![
                ("octo".to_owned(), "octo-token".to_owned()),
                ("stranger".to_owned(), "strange-token".to_owned()),
            ],
        });
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent("landfall-tests")
            .timeout(Duration::from_secs(60))
            .build()
            .expect("a client without certificates can be built");
        let pem: String = include_str!("app-key.pem").lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(pem).expect("the key is Base64");
        Driver {
            sim: sim.await.expect("the stand-in starts"),
            _data: data,
            tokens: BTreeMap::from([("owner", "octo-token".to_owned()), ("stranger", "strange-token".to_owned())]),
            client,
            key: ring::signature::RsaKeyPair::from_pkcs8(&der).expect("the key is PKCS#8"),
            driven: BTreeSet::new(),
            receiver,
        }
    }

    /// A call that GitHub describes: judged on the way there and back, and counted when it got the expected status.
    pub async fn call(&mut self, who: Who, method: &str, path: &str, body: Value, expected: u16) -> Value {
        self.reply(who, method, path, body, expected).await.body
    }

    /// A preparation: one of the stand-in's own controls, or a call that GitHub has and Landfall does not use.
    pub async fn prepare(&self, who: Who, method: &str, path: &str, body: Value) -> Value {
        let reply = self.send(who, method, path, Some(&body)).await;
        if !(200..300).contains(&reply.status) {
            let said = reply.body.to_string().chars().take(300).collect::<String>();
            self.complain(format!("{method} {path} answered {} to a preparation: {said}", reply.status));
        }
        reply.body
    }

    pub async fn reply(&mut self, who: Who, method: &str, path: &str, body: Value, expected: u16) -> Reply {
        let schemas = GitHubSchemas::load();
        let sent = (!body.is_null()).then_some(&body);
        self.keep(schemas.check_request(method, path, sent));
        let reply = self.send(who, method, path, sent).await;
        if reply.status == expected {
            if expected < 400 {
                self.driven.extend(schemas.operation_of(method, path.split('?').next().unwrap_or_default()));
            }
        } else {
            let said = reply.body.to_string().chars().take(300).collect::<String>();
            self.complain(format!("{method} {path} answered {} where {expected} was expected: {said}", reply.status));
        }
        let answered = (!reply.body.is_null()).then_some(&reply.body);
        self.keep(schemas.check_response(method, path, reply.status, answered));
        for name in ["x-github-request-id", "x-ratelimit-remaining", "x-ratelimit-resource", "x-github-media-type"] {
            if !reply.headers.contains_key(name) {
                self.complain(format!("{method} {path} answered {}: the header {name} is missing", reply.status));
            }
        }
        reply
    }

    /// A call outside GitHub's description: preparations, pages, the stand-in's own controls.
    pub async fn send(&self, who: Who, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.sim.url()) };
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self
            .client
            .request(method, url)
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28");
        let token = |name: &str| self.tokens.get(name).cloned().unwrap_or_default();
        request = match who {
            Who::App => request.bearer_auth(self.jwt()),
            Who::Installation => request.bearer_auth(token("installation")),
            Who::Owner => request.bearer_auth(token("owner")),
            Who::Stranger => request.bearer_auth(token("stranger")),
            Who::Oauth => request.bearer_auth(token("oauth")),
            Who::Client => request.basic_auth(token("client_id"), Some(token("client_secret"))),
            Who::Nobody => request,
        };
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.expect("the stand-in answers");
        let status = answer.status().as_u16();
        let headers: BTreeMap<_, _> = answer
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect();
        let bytes = answer.bytes().await.expect("the whole answer arrives");
        let body = match serde_json::from_slice(&bytes) {
            _ if bytes.is_empty() => Value::Null,
            Ok(value) => value,
            Err(_) => Value::String(String::from_utf8_lossy(&bytes).into_owned()),
        };
        Reply { status, headers, body }
    }

    /// What was heard of one event and action so far.
    pub fn heard(&self, event: &str, action: Option<&str>) -> Vec<Value> {
        let heard = self.receiver.heard.lock().expect("no holder panics");
        let fits = |hook: &&Heard| hook.event == event && hook.payload["action"].as_str() == action;
        heard.iter().filter(fits).map(|hook| hook.payload.clone()).collect()
    }

    /// Waits until a webhook has arrived; one that does not within ten seconds is a complaint.
    pub async fn expect_webhook(&mut self, event: &str, action: Option<&str>) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(payload) = self.heard(event, action).pop() {
                return payload;
            }
            if Instant::now() > deadline {
                let action = action.unwrap_or("(no action)");
                self.complain(format!("webhook {event} {action} never came"));
                return Value::Null;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn complain(&self, sentence: String) {
        self.receiver.complaints.lock().expect("no holder panics").push(sentence);
    }

    fn keep(&self, verdict: Result<(), Vec<String>>) {
        self.receiver.complaints.lock().expect("no holder panics").extend(verdict.err().unwrap_or_default());
    }

    /// Ends the story: fails with every complaint, and with the operations that were never driven to success.
    pub fn verdict(self) {
        drop(self.receiver.server.stop(false));
        let mut complaints = self.receiver.complaints.lock().expect("no holder panics").clone();
        for operation in GitHubSchemas::load().operations() {
            if !self.driven.contains(&operation) {
                complaints.push(format!("{operation} was never answered as expected"));
            }
        }
        let mut shown = BTreeSet::new();
        complaints.retain(|sentence| shown.insert(sentence.clone()));
        assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    }

    /// A JWT as the app makes it: a minute back, nine ahead.
    fn jwt(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "RS256", "typ": "JWT"}));
        let text = format!("{head}.{}", part(json!({"iat": now - 60, "exp": now + 540, "iss": "1"})));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&ring::signature::RSA_PKCS1_SHA256, &ring::rand::SystemRandom::new(), text.as_bytes(), &mut signature)
            .expect("the key signs");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The app's webhook address: answers 202 and has each payload judged at once.
pub struct Receiver {
    pub url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    complaints: Arc<Mutex<Vec<String>>>,
    server: ServerHandle,
}

impl Receiver {
    pub fn start() -> Receiver {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let complaints: Arc<Mutex<Vec<String>>> = Arc::default();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}/webhooks/github", listener.local_addr().expect("bound"));
        let shared = web::Data::new((Arc::clone(&heard), Arc::clone(&complaints)));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(26 << 20))
                .default_service(web::to(receive))
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .expect("listening")
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Receiver { url, heard, complaints, server: handle }
    }
}

type Shared = (Arc<Mutex<Vec<Heard>>>, Arc<Mutex<Vec<String>>>);

async fn receive(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> HttpResponse {
    let (heard, complaints) = shared.get_ref();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let event = header("x-github-event").to_owned();
    let mut sentences = Vec::new();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is a key");
    mac.update(&body);
    if header("x-hub-signature-256") != format!("sha256={}", hex::encode(mac.finalize().into_bytes())) {
        sentences.push(format!("webhook {event}: the signature is wrong"));
    }
    for name in ["x-github-delivery", "x-github-hook-id", "x-github-hook-installation-target-id"] {
        if header(name).is_empty() {
            sentences.push(format!("webhook {event}: the header {name} is missing"));
        }
    }
    if header("x-github-hook-installation-target-type") != "integration" {
        sentences.push(format!("webhook {event}: the target type must be integration"));
    }
    if !header("user-agent").starts_with("GitHub-Hookshot/") {
        sentences.push(format!("webhook {event}: the User-Agent must start with GitHub-Hookshot/"));
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(payload) => {
            sentences.extend(GitHubSchemas::load().check_webhook(&event, &payload).err().unwrap_or_default());
            heard.lock().expect("no holder panics").push(Heard { event, payload });
        }
        Err(error) => sentences.push(format!("webhook {event}: no JSON: {error}")),
    }
    complaints.lock().expect("no holder panics").extend(sentences);
    HttpResponse::Accepted().finish()
}

/// Content as the API wants it.
pub fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// The id of an answer; zero stands for the missing one, so that the story goes on and shows all complaints.
pub fn id(value: &Value) -> u64 {
    value["id"].as_u64().unwrap_or_default()
}

pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("0")
}
