//! One request, one answer. Nothing here repeats a request or follows a redirect.
//!
//! octocrab is given a connection of our own because the one that it makes by default sends two `User-Agent`s, keeps
//! idle connections longer than many servers do, and can't be built on a machine without certificates even where the
//! address is plain HTTP. Its `retry` and `follow-redirect` features are off. Requests carry the whole address and
//! their own `Authorization`: octocrab leaves it out on every address that isn't api.github.com. What is left below is
//! hyper's rule that a request of which nothing was written yet may take another connection.

use super::error::GitHubError;
use crate::domain::Secret;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, USER_AGENT,
};
use http::{Method, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use octocrab::{AuthState, OctoBody, Octocrab, OctocrabBuilder};
use serde_json::Value;
use std::time::Duration;

/// The version that the requests are written for, supported by GitHub until March 2028 at least.
const API_VERSION: &str = "2022-11-28";
const JSON: &str = "application/vnd.github+json";
/// A file's own bytes instead of a JSON object with base64 in it.
const RAW: &str = "application/vnd.github.raw+json";
/// Less than the five seconds after which common servers close an idle connection: a write on a connection that is just
/// being closed has an unknown outcome.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// What is asked of GitHub.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The call's name in logs, errors and at kill points.
    pub(super) name: &'static str,
    pub(super) method: Method,
    /// Path and query below the API's root, percent-encoded, with its leading slash.
    pub(super) path: String,
    pub(super) raw: bool,
    pub(super) body: Option<Value>,
    /// The most bytes that the answer may have.
    pub(super) limit: usize,
}

impl Call {
    pub(super) fn get(name: &'static str, path: String) -> Call {
        Call { name, method: Method::GET, path, raw: false, body: None, limit: 16 << 20 }
    }

    pub(super) fn write(name: &'static str, method: Method, path: String, body: Value) -> Call {
        Call { name, method, path, raw: false, body: Some(body), limit: 16 << 20 }
    }

    pub(super) fn is_write(&self) -> bool {
        self.method != Method::GET
    }
}

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// GitHub's own sentence about an error; empty when the body is no such answer.
    pub(super) fn message(&self) -> String {
        let message = self.json().and_then(|value| Some(value.get("message")?.as_str()?.to_owned()));
        message.unwrap_or_default().chars().take(500).collect()
    }

    /// The address of the next page, where the Link header names one.
    pub(super) fn next(&self) -> Option<String> {
        let link = self.header("link")?.split(',').find(|link| link.contains(r#"rel="next""#))?;
        let (_, after) = link.split_once('<')?;
        Some(after.split_once('>')?.0.to_owned())
    }

    pub(super) fn date(&self) -> Option<&str> {
        self.headers.get(DATE)?.to_str().ok()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// No connection: nothing was sent.
    NotSent(String),
    /// Sent, in part at least, and no whole answer came.
    Unknown(String),
    /// The answer is longer than the call's limit.
    TooLong,
}

#[derive(Debug, Clone)]
pub(super) struct Transport {
    octocrab: Octocrab,
    /// Scheme and authority.
    origin: String,
    /// The path below which the API lives (`/api/v3` on GitHub Enterprise), without a slash at its end.
    prefix: String,
    user_agent: HeaderValue,
    call_timeout: Duration,
}

impl Transport {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address isn't `http(s)://host[:port][/path]`, or the machine has no certificates to check HTTPS with.
    pub(super) fn new(
        api_url: &str,
        user_agent: &str,
        connect_timeout: Duration,
        call_timeout: Duration,
    ) -> Result<Transport, GitHubError> {
        let unusable = |what: String| GitHubError::Unexpected { what };
        let uri: Uri = api_url.parse().map_err(|_| unusable(format!("{api_url:?} is not an address")))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(unusable(format!("{api_url:?} is not a whole address such as https://api.github.com")));
        };
        if authority.as_str().contains('@') || uri.query().is_some() || !matches!(scheme, "http" | "https") {
            return Err(unusable("the API's address must be http(s)://host[:port][/path] and no more".to_owned()));
        }
        let origin = format!("{scheme}://{authority}");
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let user_agent =
            HeaderValue::from_str(user_agent).map_err(|_| unusable(format!("{user_agent:?} can't be a User-Agent")))?;

        super::client::install_crypto_provider();
        let tls = rustls::ClientConfig::builder();
        let tls = if scheme == "https" {
            tls.with_native_roots().map_err(|error| {
                unusable(format!(
                    "this machine has no certificates to check {origin} with ({error}); install the package \
                     ca-certificates or set SSL_CERT_FILE"
                ))
            })?
        } else {
            tls.with_root_certificates(rustls::RootCertStore::empty())
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(connect_timeout));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client: Client<_, OctoBody> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .build(connector);
        let built = OctocrabBuilder::new_empty().with_service(client).with_auth(AuthState::None).build();
        let octocrab = match built {
            Ok(octocrab) => octocrab,
            Err(never) => match never {},
        };
        Ok(Transport { octocrab, origin, prefix, user_agent, call_timeout })
    }

    /// Sends one request and reads the whole answer, within the time of one call.
    pub(super) async fn send(
        &self,
        call: &Call,
        authorization: &HeaderValue,
        etag: Option<&str>,
    ) -> Result<Answer, Lost> {
        let request = self.request(call, authorization, etag).map_err(|error| Lost::NotSent(error.to_string()))?;
        let exchange = async {
            let response = self.octocrab.send(request).await.map_err(lost)?;
            let (parts, body) = response.into_parts();
            let body = match Limited::new(body, call.limit).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => return Err(Lost::TooLong),
                Err(_) => return Err(Lost::Unknown("the answer broke off".to_owned())),
            };
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        match tokio::time::timeout(self.call_timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Lost::Unknown(format!("no whole answer within {:?}", self.call_timeout))),
        }
    }

    /// The path below the root of an address that GitHub sent us to; `None` for any other host, which must not get
    /// our credentials.
    pub(super) fn path_of(&self, location: &str) -> Option<String> {
        let path = if location.starts_with('/') { location } else { location.strip_prefix(&self.origin)? };
        let path = path.strip_prefix(&self.prefix)?;
        (path.starts_with('/') && !path.starts_with("//")).then(|| path.to_owned())
    }

    fn request(
        &self,
        call: &Call,
        authorization: &HeaderValue,
        etag: Option<&str>,
    ) -> Result<http::Request<OctoBody>, http::Error> {
        let mut request = http::Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}{}", self.origin, self.prefix, call.path))
            .header(ACCEPT, if call.raw { RAW } else { JSON })
            .header(HeaderName::from_static("x-github-api-version"), API_VERSION)
            .header(USER_AGENT, &self.user_agent)
            .header(AUTHORIZATION, authorization);
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        match &call.body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(OctoBody::from(body.to_string())),
            None => request.body(OctoBody::empty()),
        }
    }
}

/// A header value for a token, marked so that no library prints it.
pub(super) fn bearer(token: &Secret) -> Result<HeaderValue, GitHubError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
        GitHubError::Unauthorized { message: "the token holds characters that no token has".to_owned() }
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn lost(error: octocrab::Error) -> Lost {
    let octocrab::Error::Service { source, .. } = error else {
        return Lost::Unknown("the request broke off".to_owned());
    };
    let Some(error) = source.downcast_ref::<hyper_util::client::legacy::Error>() else {
        return Lost::Unknown("the request broke off".to_owned());
    };
    // The causes are of the connection (refused, reset, certificate): none of them quotes a header or a body.
    let mut what = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        what = format!("{what}: {inner}");
        cause = inner.source();
    }
    if error.is_connect() { Lost::NotSent(what) } else { Lost::Unknown(what) }
}
