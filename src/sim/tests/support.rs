//! A stand-in on a free port, a receiver of its webhooks, and the few words in which the tests speak to both.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::sim::world::lock;
use crate::sim::{Options, Sim, wire};

const KEY: &str = include_str!("../testdata/app-key.pem");
const PUBLIC_KEY: &str = include_str!("../testdata/app-key.pub.pem");
const SECRET: &str = "It's a Secret to Everybody";

/// A webhook as it was received.
pub struct Event {
    pub name: String,
    pub guid: String,
    pub body: Value,
}

impl Event {
    /// `event.action`, or the event alone.
    pub fn label(&self) -> String {
        match self.body["action"].as_str() {
            Some(action) => format!("{}.{action}", self.name),
            None => self.name.clone(),
        }
    }
}

pub struct Received {
    pub status: u16,
    pub text: String,
    headers: reqwest::header::HeaderMap,
}

impl Received {
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    }

    pub fn expect(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.text);
    }
}

pub struct Stage {
    sim: Option<Sim>,
    options: Options,
    client: reqwest::Client,
    events: Arc<Mutex<Vec<Event>>>,
    _folder: tempfile::TempDir,
}

/// An empty folder, gone with its value.
pub struct Folder(tempfile::TempDir);

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.0.path()
    }
}

pub fn temporary(name: &str) -> Folder {
    Folder(tempfile::Builder::new().prefix(&format!("sim-{name}-")).tempdir().expect("a temporary folder"))
}

/// Runs git as a person would, and returns what it printed.
pub fn git(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new("git")
        .args(["-c", "protocol.file.allow=always", "-c", "safe.directory=*", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Asks until it holds; ten seconds at most.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn jwt(claims: &Value) -> String {
    use base64::Engine as _;
    let body: String = KEY.lines().filter(|line| !line.contains("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).expect("Base64");
    let key = ring::signature::RsaKeyPair::from_pkcs8(&der).expect("a private key");
    let signed =
        format!("{}.{}", wire::base64url(br#"{"alg":"RS256"}"#), wire::base64url(claims.to_string().as_bytes()));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&ring::signature::RSA_PKCS1_SHA256, &ring::rand::SystemRandom::new(), signed.as_bytes(), &mut signature)
        .expect("a signature");
    format!("{signed}.{}", wire::base64url(&signature))
}

impl Stage {
    /// A stand-in with the users alice and bob and the repository acme/hello of one commit.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let events = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(receive(listener, Arc::clone(&events)));
        let bare = folder.path().join("acme/hello.git");
        std::fs::create_dir_all(&bare).expect("a folder");
        git(&bare, &["init", "-q", "--bare", "-b", "main", "."]).expect("init");
        let options = Options {
            listen: "127.0.0.1:0".parse().expect("an address"),
            data: folder.path().to_owned(),
            public_url: None,
            webhook_url: format!("http://{address}/webhooks/github"),
            webhook_secret: SECRET.into(),
            app_id: 1,
            app_public_key_pem: PUBLIC_KEY.into(),
            users: vec![("alice".into(), "alice-token".into()), ("bob".into(), "bob-token".into())],
        };
        let sim = Sim::start(options.clone()).await.expect("a stand-in");
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        let stage = Self { sim: Some(sim), options, client, events, _folder: folder };
        stage.control("push", json!({"repo": "acme/hello", "files": {"README.md": "# hello\n"}})).await;
        let names: Vec<String> = stage.settle().await.iter().map(Event::label).collect();
        assert_eq!(names[..2], ["ping", "installation.created"]);
        stage
    }

    pub fn url(&self) -> &str {
        self.sim.as_ref().expect("running").url()
    }

    pub fn data(&self) -> &Path {
        &self.options.data
    }

    pub async fn restart(&mut self) {
        self.sim.take().expect("running").stop().await;
        self.sim = Some(Sim::start(self.options.clone()).await.expect("a stand-in"));
    }

    pub async fn stop(mut self) {
        let started = Instant::now();
        self.sim.take().expect("running").stop().await;
        assert!(started.elapsed() < Duration::from_secs(3), "it stops promptly");
    }

    pub fn jwt(&self) -> String {
        let now = crate::sim::state::system_seconds();
        jwt(&json!({"iss": "1", "iat": now - 60, "exp": now + 300}))
    }

    /// A fresh installation token of the repository's owner.
    pub async fn token(&self, repository: &str) -> String {
        let jwt = self.jwt();
        let installation = self.get(&jwt, &format!("/repos/{repository}/installation"), 200).await;
        let path = format!("/app/installations/{}/access_tokens", installation["id"]);
        let token = self.post(&jwt, &path, json!({}), 201).await;
        token["token"].as_str().expect("a token").to_owned()
    }

    pub async fn client_secret(&self) -> String {
        let bytes = self.get("", "/_/oauth", 200).await;
        bytes["client_secret"].as_str().expect("a secret").to_owned()
    }

    /// Pushes a branch with one file and opens a pull request for it.
    pub async fn open_pull(&self, branch: &str, title: &str) -> u64 {
        self.control("push", json!({"repo": "acme/hello", "branch": branch, "files": {branch: "1\n"}})).await;
        let pull = self.control("pull", json!({"repo": "acme/hello", "head": branch, "title": title})).await;
        pull["number"].as_u64().expect("a number")
    }

    pub fn git_url(&self, name: &str, password: &str, repository: &str) -> String {
        let host = self.url().trim_start_matches("http://");
        format!("http://{name}:{password}@{host}/{repository}.git")
    }

    pub async fn try_raw(
        &self,
        method: &str,
        token: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Received, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.url()));
        request = request.header("accept", "application/vnd.github+json");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Received { status, headers, text: answer.text().await? })
    }

    pub async fn raw(&self, method: &str, token: &str, path: &str, body: Option<Value>) -> Received {
        self.try_raw(method, token, path, body).await.expect("an answer")
    }

    pub async fn with_header(&self, token: &str, path: &str, name: &str, value: &str) -> Received {
        let request = self.client.get(format!("{}{path}", self.url()));
        let answer = request
            .header("authorization", format!("Bearer {token}"))
            .header(name, value)
            .send()
            .await
            .expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Received { status, headers, text: answer.text().await.expect("a body") }
    }

    async fn call(&self, method: &str, token: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let answer = self.raw(method, token, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap_or(Value::Null)
    }

    pub async fn get(&self, token: &str, path: &str, status: u16) -> Value {
        self.call("GET", token, path, None, status).await
    }

    pub async fn post(&self, token: &str, path: &str, body: Value, status: u16) -> Value {
        self.call("POST", token, path, Some(body), status).await
    }

    pub async fn put(&self, token: &str, path: &str, body: Value, status: u16) -> Value {
        self.call("PUT", token, path, Some(body), status).await
    }

    pub async fn patch(&self, token: &str, path: &str, body: Value, status: u16) -> Value {
        self.call("PATCH", token, path, Some(body), status).await
    }

    pub async fn control(&self, name: &str, body: Value) -> Value {
        self.post("", &format!("/_/{name}"), body, 200).await
    }

    pub async fn page(&self, path: &str) -> String {
        let answer = self
            .client
            .get(format!("{}{path}", self.url()))
            .header("accept", "text/html")
            .send()
            .await
            .expect("a page");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.text().await.expect("a page")
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Submits a form and returns where it leads.
    pub async fn submit(&self, path: &str, form: &str) -> String {
        let answer = self
            .client
            .post(format!("{}{path}", self.url()))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.to_owned())
            .send()
            .await
            .expect("an answer");
        answer.headers().get("location").expect("a location").to_str().expect("text").to_owned()
    }

    /// Presses a button and returns where it leads.
    pub async fn press(&self, action: &str, form: &str) -> String {
        let answer = self
            .client
            .post(format!("{}/_/ui/{action}", self.url()))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("origin", self.url())
            .body(form.to_owned())
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status().as_u16(), 303);
        let location = answer.headers().get("location").expect("a location").to_str().expect("text").to_owned();
        location.split('#').next().unwrap_or_default().to_owned()
    }

    /// Waits until everything was delivered, and takes what has arrived.
    pub async fn settle(&self) -> Vec<Event> {
        eventually("an idle stand-in", || async { self.get("", "/_/idle", 200).await["idle"] == true }).await;
        self.received()
    }

    /// Takes what has arrived so far.
    pub fn received(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    pub fn received_names(&self) -> Vec<String> {
        lock(&self.events).iter().map(Event::label).collect()
    }
}

/// Takes webhooks, checks their signature, answers 202.
async fn receive(listener: tokio::net::TcpListener, events: Arc<Mutex<Vec<Event>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut bytes = Vec::new();
        let body_at = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break 0;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..body_at]).into_owned();
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
                .unwrap_or_default()
        };
        let length: usize = header("content-length").parse().unwrap_or(0);
        while bytes.len() < body_at + length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break;
            }
        }
        let body = &bytes[body_at..];
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let expected = format!("sha256={}", hex::encode(ring::hmac::sign(&key, body)));
        let good = header("x-hub-signature-256") == expected && header("user-agent").starts_with("GitHub-Hookshot/");
        if good {
            let body = serde_json::from_slice(body).unwrap_or(Value::Null);
            lock(&events).push(Event { name: header("x-github-event"), guid: header("x-github-delivery"), body });
        }
        let answer = if good { "202 Accepted" } else { "401 Unauthorized" };
        let _ = stream
            .write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        let _ = stream.shutdown().await;
    }
}
