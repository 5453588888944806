//! What a call brings and what an answer is made of: GitHub's error shapes, pages with Link headers, ETags.
//! Nothing here knows what a repository is; every answer leaves through [`Answer`], every refusal through [`Problem`].

use base64::Engine as _;
use bytes::Bytes;
use ring::digest;
use serde_json::{Value, json};

/// One call, read whole, with its path cut into decoded segments.
pub struct Request {
    pub method: String,
    /// As received, without the query, percent-encoding kept.
    pub path: String,
    pub segments: Vec<String>,
    pub query_text: String,
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// `http://host:port` to put in front of links.
    pub base: String,
    /// Set once the repository of the path is known: `/repositories/ID` and what follows, for Link headers.
    pub canonical_path: Option<String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as a JSON object; an empty body is an empty object.
    pub fn json(&self) -> Result<Value, Problem> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(json!({}));
        }
        let value: Value =
            serde_json::from_slice(&self.body).map_err(|_| Problem::new(400, "Problems parsing JSON"))?;
        match value {
            Value::Object(_) => Ok(value),
            _ => Err(Problem::new(400, "Body should be a JSON object")),
        }
    }

    pub fn wants(&self, media: &str) -> bool {
        self.header("accept").is_some_and(|accept| accept.contains(media))
    }
}

/// Decodes `%XX` and, in a query, `+`.
pub fn percent_decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| hex::decode(pair).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.extend(byte);
                at += 3;
                continue;
            }
            (b'+', _) if plus => decoded.push(b' '),
            (other, _) => decoded.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Encodes everything except unreserved characters and those of `keep`.
pub fn percent_encode(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric() || "-._~".contains(character) || (byte.is_ascii() && keep.contains(character)) {
            encoded.push(character);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// `a=b&c=d` decoded.
pub fn parse_query(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        })
        .collect()
}

#[derive(Debug)]
pub enum Content {
    Empty,
    Json(Value),
    Bytes { media_type: String, bytes: Bytes },
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content: Content,
}

pub type Outcome = Result<Answer, Problem>;

impl Answer {
    pub fn json(status: u16, value: Value) -> Self {
        Self { status, headers: Vec::new(), content: Content::Json(value) }
    }

    pub fn ok(value: Value) -> Outcome {
        Ok(Self::json(200, value))
    }

    pub fn created(value: Value) -> Outcome {
        let location = value["url"].as_str().map(str::to_owned);
        let mut answer = Self::json(201, value);
        if let Some(location) = location {
            answer.headers.push(("location".into(), location));
        }
        Ok(answer)
    }

    pub fn empty(status: u16) -> Outcome {
        Ok(Self { status, headers: Vec::new(), content: Content::Empty })
    }

    pub fn bytes(status: u16, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::Bytes { media_type: media_type.into(), bytes: bytes.into() },
        }
    }

    pub fn redirect(status: u16, location: String) -> Self {
        Self { status, headers: vec![("location".into(), location)], content: Content::Empty }
    }

    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A refusal in GitHub's shape.
#[derive(Debug)]
pub struct Problem {
    pub status: u16,
    pub message: String,
    pub errors: Vec<Value>,
    pub headers: Vec<(String, String)>,
}

impl Problem {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: Vec::new(), headers: Vec::new() }
    }

    pub fn not_found() -> Self {
        Self::new(404, "Not Found")
    }

    pub fn bad_credentials() -> Self {
        Self::new(401, "Bad credentials")
    }

    /// `field` is missing, invalid, already there: 422 with one entry of `errors`.
    pub fn invalid(resource: &str, field: &str, code: &str) -> Self {
        let mut problem = Self::new(422, "Validation Failed");
        problem.errors.push(json!({"resource": resource, "field": field, "code": code}));
        problem
    }

    /// 422 with an entry of code `custom` and its sentence.
    pub fn custom(resource: &str, field: &str, message: &str) -> Self {
        let mut problem = Self::new(422, "Validation Failed");
        problem.errors.push(json!({"resource": resource, "code": "custom", "field": field, "message": message}));
        problem
    }

    /// What GitHub's schema check says of a body whose types are wrong.
    pub fn type_error(sentence: &str) -> Self {
        Self::new(422, format!("Invalid request.\n\n{sentence}"))
    }

    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn answer(self) -> Answer {
        let mut body = json!({
            "message": self.message,
            "documentation_url": "https://docs.github.com/rest",
            "status": self.status.to_string(),
        });
        let location = self.headers.iter().find(|(name, _)| name == "location");
        if let Some((_, location)) = location.filter(|_| matches!(self.status, 301 | 307)) {
            body["url"] = json!(location);
        }
        if !self.errors.is_empty() {
            body["errors"] = Value::Array(self.errors);
        }
        Answer { status: self.status, headers: self.headers, content: Content::Json(body) }
    }
}

/// The window of a list that `page` and `per_page` ask for: 30 by default, 100 at most.
#[derive(Clone, Copy)]
pub struct Window {
    pub page: usize,
    pub per_page: usize,
}

impl Window {
    pub fn of(request: &Request) -> Self {
        let number = |name: &str| request.query(name).and_then(|value| value.parse::<usize>().ok());
        Self {
            page: number("page").unwrap_or(1).clamp(1, 1_000_000),
            per_page: number("per_page").filter(|size| *size > 0).unwrap_or(30).min(100),
        }
    }
}

/// Answers one page of `items`; with `wrap` inside `{"total_count", wrap: [...]}`.
pub fn page<T>(request: &Request, items: Vec<T>, wrap: Option<&str>, mut view: impl FnMut(T) -> Value) -> Outcome {
    let window = Window::of(request);
    let total = items.len();
    let shown: Vec<Value> =
        items.into_iter().skip((window.page - 1) * window.per_page).take(window.per_page).map(&mut view).collect();
    let body = match wrap {
        Some(name) => json!({"total_count": total, name: shown}),
        None => Value::Array(shown),
    };
    let mut answer = Answer::json(200, body);
    if let Some(link) = link_header(request, window, total) {
        answer.headers.push(("link".into(), link));
    }
    Ok(answer)
}

fn link_header(request: &Request, window: Window, total: usize) -> Option<String> {
    let last = total.div_ceil(window.per_page).max(1);
    let address = |page: usize| {
        let mut query: Vec<String> = request
            .query
            .iter()
            .filter(|(key, _)| key != "page")
            .map(|(key, value)| format!("{}={}", percent_encode(key, ""), percent_encode(value, "")))
            .collect();
        query.push(format!("page={page}"));
        let path = request.canonical_path.as_deref().unwrap_or(&request.path);
        format!("{}{path}?{}", request.base, query.join("&"))
    };
    let mut links = Vec::new();
    if window.page > 1 {
        links.push(format!("<{}>; rel=\"prev\"", address((window.page - 1).min(last))));
    }
    if window.page < last {
        links.push(format!("<{}>; rel=\"next\"", address(window.page + 1)));
        links.push(format!("<{}>; rel=\"last\"", address(last)));
    }
    if window.page > 1 {
        links.push(format!("<{}>; rel=\"first\"", address(1)));
    }
    (!links.is_empty()).then(|| links.join(", "))
}

/// The ETag of a body: it depends on the token too, as on GitHub.
pub fn etag(body: &[u8], authorization: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(authorization.as_bytes());
    context.update(&[0]);
    context.update(body);
    format!("W/\"{}\"", hex::encode(context.finish()))
}

pub fn sha256_hex(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

pub fn base64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Base64 in lines of 60, as the contents and blob answers have it.
pub fn base64_lines(bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut lines = String::with_capacity(text.len() + text.len() / 60 + 1);
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 60 == 0 {
            lines.push('\n');
        }
        lines.push(character);
    }
    lines.push('\n');
    lines
}

/// Fresh random bytes from the system.
pub fn random<const N: usize>() -> [u8; N] {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; N];
    // The system's source of randomness does not fail once it has been seeded; a zero array is still a valid id.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    bytes
}

/// A random version 4 UUID, the form of `X-GitHub-Delivery`.
pub fn guid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}
