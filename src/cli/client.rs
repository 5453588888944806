//! The way to the control plane: its listening address on this machine, else its public one.

use super::Failed;
use crate::config::Config;
use crate::text::Texts;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub struct Client {
    http: reqwest::Client,
    /// Tried in this order.
    urls: Vec<String>,
    texts: Texts,
    pub json: bool,
}

/// What came back, and from where.
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Client {
    pub fn new(config: &Config, json: bool) -> Result<Client, Failed> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("landfall/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            // What is asked for is on this machine, or named in the configuration.
            .no_proxy()
            .build()
            .map_err(|error| Failed::Said(chain(&error)))?;
        let listen = config.server.listen;
        let mut urls = Vec::new();
        if listen.port() != 0 {
            let here = match listen.ip() {
                IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
                other => other,
            };
            urls.push(format!("http://{}", std::net::SocketAddr::new(here, listen.port())));
        }
        let public = config.server.public_url.trim_end_matches('/').to_owned();
        if !urls.contains(&public) {
            urls.push(public);
        }
        Ok(Client { http, urls, texts: Texts::load(), json })
    }

    /// The address that is named when nobody answers.
    pub fn url(&self) -> &str {
        self.urls.first().map(String::as_str).unwrap_or_default()
    }

    /// A sentence of `templates/cli.txt`.
    pub fn sentence(&self, context: impl Serialize) -> String {
        self.texts.line("cli.txt", context)
    }

    pub fn failed(&self, context: impl Serialize) -> Failed {
        Failed::Said(self.sentence(context))
    }

    /// The answer's body; the API's own sentence when it refuses.
    pub async fn get(&self, path: &str) -> Result<Value, Failed> {
        self.expect(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Value, Failed> {
        self.expect(Method::POST, path, Some(body)).await
    }

    async fn expect(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failed> {
        let Some(answer) = self.ask(method, path, body).await? else {
            return Err(self.failed(json!({ "say": "no_server", "url": self.url() })));
        };
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        match answer.body.get("error").and_then(Value::as_str) {
            Some(sentence) => Err(Failed::Said(super::print::plain(sentence))),
            None => Err(self.failed(json!({ "say": "not_landfall", "url": self.url() }))),
        }
    }

    /// `None` when nobody listens at any of the addresses.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Option<Answer>, Failed> {
        for url in &self.urls {
            let mut request = self.http.request(method.clone(), format!("{url}{path}"));
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if error.is_connect() => continue,
                Err(error) => {
                    return Err(self.failed(json!({ "say": "server_lost", "url": url, "detail": chain(&error) })));
                }
            };
            let status = response.status().as_u16();
            let bytes = response
                .bytes()
                .await
                .map_err(|error| self.failed(json!({ "say": "server_lost", "url": url, "detail": chain(&error) })))?;
            let body = serde_json::from_slice(&bytes)
                .map_err(|_| self.failed(json!({ "say": "not_landfall", "url": url })))?;
            return Ok(Some(Answer { status, body }));
        }
        Ok(None)
    }

    /// A large answer, as it comes; `None` when nobody listens.
    pub async fn stream(&self, path: &str) -> Result<Option<reqwest::Response>, Failed> {
        for url in &self.urls {
            match self.http.get(format!("{url}{path}")).timeout(Duration::from_secs(3600)).send().await {
                Ok(response) if response.status().is_success() => return Ok(Some(response)),
                Ok(_) => return Err(self.failed(json!({ "say": "not_landfall", "url": url }))),
                Err(error) if error.is_connect() => {}
                Err(error) => {
                    return Err(self.failed(json!({ "say": "server_lost", "url": url, "detail": chain(&error) })));
                }
            }
        }
        Ok(None)
    }

    /// Whether anybody accepts connections there.
    pub async fn answers(&self) -> bool {
        for url in &self.urls {
            let asked = self.http.get(format!("{url}/healthz")).timeout(Duration::from_secs(5)).send().await;
            if !asked.is_err_and(|error| error.is_connect()) {
                return true;
            }
        }
        false
    }
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
