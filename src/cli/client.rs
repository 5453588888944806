//! The way to the control plane: its listening address on this machine. At its public one a proxy may answer when it is
//! dead, or the control plane of somebody else, so that one is asked only where the address to listen at is any free one.

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
    url: String,
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
        Ok(Client { http, url: address(config), texts: Texts::load(), json })
    }

    /// The address that is named when nobody answers.
    pub fn url(&self) -> &str {
        &self.url
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
            None => Err(self.not_landfall()),
        }
    }

    /// `None` when nobody listens there.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Option<Answer>, Failed> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Ok(None),
            Err(error) => return Err(self.lost(&error)),
        };
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(|error| self.lost(&error))?;
        let body = serde_json::from_slice(&bytes).map_err(|_| self.not_landfall())?;
        Ok(Some(Answer { status, body }))
    }

    /// A large answer, as it comes; `None` when nobody listens.
    pub async fn stream(&self, path: &str) -> Result<Option<reqwest::Response>, Failed> {
        match self.http.get(format!("{}{path}", self.url)).timeout(Duration::from_secs(3600)).send().await {
            Ok(response) if response.status().is_success() => Ok(Some(response)),
            Ok(_) => Err(self.not_landfall()),
            Err(error) if error.is_connect() => Ok(None),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Whether anybody accepts connections there.
    pub async fn answers(&self) -> bool {
        let asked = self.http.get(format!("{}/healthz", self.url)).timeout(Duration::from_secs(5)).send().await;
        !asked.is_err_and(|error| error.is_connect())
    }

    fn lost(&self, error: &reqwest::Error) -> Failed {
        self.failed(json!({ "say": "server_lost", "url": self.url, "detail": chain(error) }))
    }

    fn not_landfall(&self) -> Failed {
        self.failed(json!({ "say": "not_landfall", "url": self.url }))
    }
}

fn address(config: &Config) -> String {
    let listen = config.server.listen;
    if listen.port() == 0 {
        return config.server.public_url.trim_end_matches('/').to_owned();
    }
    let here = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    format!("http://{}", std::net::SocketAddr::new(here, listen.port()))
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

/// A client of a server that gives these answers in turn, each on a connection of its own, and then tells what it was
/// asked for.
#[cfg(test)]
pub(super) fn answering(answers: Vec<(u16, Value)>) -> (Client, std::thread::JoinHandle<Vec<String>>) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    crate::github::install_crypto_provider();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut config = Config::default();
    config.server.listen = listener.local_addr().expect("an address");
    let asked = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let mut stream = listener.accept().expect("a client").0;
            let mut reader = BufReader::new(&stream);
            let (mut first, mut length) = (String::new(), 0);
            reader.read_line(&mut first).expect("a request");
            let mut field = String::new();
            while reader.read_line(&mut field).is_ok_and(|read| read > 2) {
                if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                field.clear();
            }
            reader.read_exact(&mut vec![0; length]).expect("a body");
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).expect("it reads");
            asked.push(first.trim_end().trim_end_matches(" HTTP/1.1").to_owned());
        }
        asked
    });
    (Client::new(&config, false).expect("a client"), asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[tokio::test]
    async fn who_answers_at_the_public_address_is_not_taken_for_the_control_plane() {
        crate::github::install_crypto_provider();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = Config::default();
        config.server.listen = free;
        config.server.public_url = format!("http://{}/", proxy.local_addr().unwrap());
        let client = Client::new(&config, false).unwrap();
        assert_eq!(client.url(), format!("http://{free}"));
        assert!(client.ask(Method::GET, "/api/v1/doctor", None).await.unwrap().is_none());
        assert!(client.stream("/api/v1/export").await.unwrap().is_none());
        assert!(!client.answers().await);
        config.server.listen.set_port(0);
        assert_eq!(Client::new(&config, false).unwrap().url(), format!("http://{}", proxy.local_addr().unwrap()));
    }
}
