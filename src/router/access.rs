//! Who may come in, where an app is closed to the public: who knows its password (HTTP Basic, or a cookie that follows
//! from it), and who was let in by the dashboard after a login at GitHub (a ticket, then a cookie).
//!
//! The rules it keeps: nothing of a request reaches the app, wakes it or counts as its use before it was let in; what is
//! compared is compared in constant time; the app never sees what lets people in, since what it sees it could use.

use super::errors::Refusal;
use super::request;
use crate::clock::Timestamp;
use crate::domain::AppName;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a browser carries once it was let in. The first name is for TLS: a sibling's page cannot set it.
const COOKIES: [&str; 2] = ["__Host-landfall-access", "landfall-access"];
/// What a browser carries from the way out to the login until it is back.
const LOGIN: &str = "landfall-login";
/// Where the dashboard sends people back to.
const ENTER: &str = "/.landfall/enter";
/// How long a password lets in, and a login: rights may be taken away meanwhile.
const BY_PASSWORD: Duration = Duration::from_secs(12 * 3600);
const BY_LOGIN: Duration = Duration::from_secs(3600);
const LONGEST_PATH: usize = 2_000;

/// How an app is closed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Signs tickets and cookies of this app alone.
    pub key: String,
    /// HMAC-SHA256 of the password under the key, in hex; `None` where no password lets in.
    #[serde(default)]
    pub password: Option<String>,
    /// Where people are sent to log in at GitHub; `None` where they can't.
    #[serde(default)]
    pub sign_in: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Access(..)")
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may come in; the cookie goes with the answer. `by_password`: it brings the password, which is not the app's.
    Open {
        cookie: Option<String>,
        by_password: bool,
    },
    /// The router answers by itself.
    Closed(Refusal),
    Elsewhere {
        to: String,
        cookie: String,
    },
}

/// Signs a text for one purpose.
fn sign(key: &str, purpose: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    hex::encode(hmac::sign(&key, format!("{purpose}\n{text}").as_bytes()))
}

fn is_signed(key: &str, purpose: &str, text: &str, signature: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let Ok(signature) = hex::decode(signature) else { return false };
    hmac::verify(&key, format!("{purpose}\n{text}").as_bytes(), &signature).is_ok()
}

/// A password as the table holds it.
pub fn seal_password(key: &str, password: &str) -> String {
    sign(key, "password", password)
}

/// What the dashboard hands to somebody who may come in: good for a minute, for this app, this page and the browser
/// that was sent away with `bind`.
pub fn ticket(key: &str, app: &AppName, to: &str, bind: &str, now: Timestamp) -> String {
    let until = now.0 + 60_000;
    format!("{until}.{}", sign(key, "ticket", &format!("{app}\n{until}\n{bind}\n{to}")))
}

/// A path of the app's own, to which somebody may be sent.
pub fn is_own_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && path.len() <= LONGEST_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

/// Judges a request by its head.
pub(super) fn judge(access: &Access, app: &AppName, head: &Parts, secure: bool, now: Timestamp) -> Verdict {
    let path = request::path_of(&head.uri).to_owned();
    if path.split('?').next() == Some(ENTER) {
        return enter(access, app, head, &path, secure, now);
    }
    // A browser sends the password with every request, also once it has the cookie.
    let by_password = access.password.as_ref().is_some_and(|sealed| {
        password(&head.headers).is_some_and(|password| is_signed(&access.key, "password", &password, sealed))
    });
    if cookies(&head.headers).any(|(name, value)| COOKIES.contains(&name) && is_cookie(access, app, value, now)) {
        return Verdict::Open { cookie: None, by_password };
    }
    if by_password {
        return Verdict::Open { cookie: Some(cookie(access, app, BY_PASSWORD, secure, now)), by_password };
    }
    let reads = matches!(head.method.as_str(), "GET" | "HEAD");
    let page =
        head.headers.get("accept").and_then(|accept| accept.to_str().ok()).is_some_and(|a| a.contains("text/html"));
    // A script that asks for data can do nothing with a login page.
    if let Some(sign_in) = access.sign_in.as_ref().filter(|_| reads && page) {
        let nonce = request::new_request_id();
        let bind = hex::encode(digest::digest(&digest::SHA256, nonce.as_bytes()));
        let to = if is_own_path(&path) { path.as_str() } else { "/" };
        let to = format!("{sign_in}?app={app}&bind={bind}&to={}", encode(to));
        let flags = if secure { "; Secure" } else { "" };
        let cookie = format!("{LOGIN}={nonce}; Path=/.landfall/; Max-Age=600; HttpOnly; SameSite=Lax{flags}");
        return Verdict::Elsewhere { to, cookie };
    }
    Verdict::Closed(Refusal::bare(401))
}

/// Somebody comes back from the dashboard.
fn enter(access: &Access, app: &AppName, head: &Parts, path: &str, secure: bool, now: Timestamp) -> Verdict {
    let closed = Verdict::Closed(Refusal::bare(403));
    if access.sign_in.is_none() {
        return closed;
    }
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let to = value("to").map_or_else(|| "/".to_owned(), decode);
    let Some((until, signature)) = value("ticket").and_then(|ticket| ticket.split_once('.')) else { return closed };
    let late = until.parse::<i64>().map_or(true, |until| until < now.0);
    let bound = cookies(&head.headers).filter(|(name, _)| *name == LOGIN).any(|(_, nonce)| {
        let bind = hex::encode(digest::digest(&digest::SHA256, nonce.as_bytes()));
        is_signed(&access.key, "ticket", &format!("{app}\n{until}\n{bind}\n{to}"), signature)
    });
    if late || !bound || !is_own_path(&to) {
        return closed;
    }
    Verdict::Elsewhere { to, cookie: cookie(access, app, BY_LOGIN, secure, now) }
}

fn cookie(access: &Access, app: &AppName, time: Duration, secure: bool, now: Timestamp) -> String {
    let until = (now + time).0;
    let signature = sign(&access.key, "cookie", &format!("{app}\n{until}"));
    let (name, flags) = if secure { (COOKIES[0], "; Secure") } else { (COOKIES[1], "") };
    let age = time.as_secs();
    format!("{name}={until}.{signature}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{flags}")
}

fn is_cookie(access: &Access, app: &AppName, value: &str, now: Timestamp) -> bool {
    let Some((until, signature)) = value.split_once('.') else { return false };
    until.parse::<i64>().is_ok_and(|time| time >= now.0)
        && is_signed(&access.key, "cookie", &format!("{app}\n{until}"), signature)
}

/// The password of HTTP Basic; whatever name comes with it.
fn password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// Takes out of a request what let it in, whether this app is closed or not. `by_password`: the credentials were ours.
pub(super) fn conceal(headers: &mut HeaderMap, by_password: bool) {
    if by_password {
        headers.remove(AUTHORIZATION);
    }
    let ours = |name: &str| COOKIES.contains(&name) || name == LOGIN;
    if !cookies(headers).any(|(name, _)| ours(name)) {
        return;
    }
    let others: Vec<String> =
        cookies(headers).filter(|(name, _)| !ours(name)).map(|(name, value)| format!("{name}={value}")).collect();
    headers.remove(COOKIE);
    // Parts of values that were some are one.
    if let Ok(value) = HeaderValue::from_str(&others.join("; "))
        && !others.is_empty()
    {
        headers.insert(COOKIE, value);
    }
}

fn encode(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(letter).collect()
}

fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%').then(|| tail.get(..2)).flatten();
        match code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn access() -> Access {
        let key = "a key of this app".to_owned();
        let password = Some(seal_password(&key, "open sesame"));
        Access { key, password, sign_in: Some("https://landfall.example.com/login/app".to_owned()) }
    }

    fn head(path: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn app() -> AppName {
        "hello-pr-1".parse().unwrap()
    }

    fn ask(path: &str, headers: &[(&'static str, &str)]) -> Verdict {
        judge(&access(), &app(), &head(path, headers), false, NOW)
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    fn value_of(cookie: &str) -> String {
        cookie.split(';').next().unwrap().to_owned()
    }

    #[test]
    fn only_the_password_opens_and_its_cookie_does_from_then_on() {
        let closed = Verdict::Closed(Refusal::bare(401));
        assert_eq!(ask("/", &[]), closed);
        for wrong in ["x:open", "x:", "open sesame", "x:open sesame "] {
            assert_eq!(ask("/", &[("authorization", &basic(wrong))]), closed, "{wrong}");
        }
        assert_eq!(ask("/", &[("authorization", "Bearer open sesame")]), closed);
        let password = basic("x:open sesame");
        let Verdict::Open { cookie: Some(cookie), by_password: true } = ask("/", &[("authorization", &password)])
        else {
            panic!("the password does not open")
        };
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax") && !cookie.contains("Domain"));
        let value = value_of(&cookie);
        let from_then_on = |by_password| Verdict::Open { cookie: None, by_password };
        assert_eq!(ask("/", &[("cookie", &format!("a=b; {value}"))]), from_then_on(false));
        // A browser goes on sending the password, and it is still nothing that the app may read.
        assert_eq!(ask("/", &[("cookie", &value), ("authorization", &password)]), from_then_on(true));
        assert_eq!(ask("/", &[("cookie", &value), ("authorization", &basic("x:app's"))]), from_then_on(false));
        let head = head("/", &[("cookie", &value)]);
        let later = |seconds| NOW + Duration::from_secs(seconds);
        assert_eq!(judge(&access(), &app(), &head, false, later(12 * 3600 + 1)), closed, "it is over");
        assert_eq!(judge(&access(), &"other".parse().unwrap(), &head, false, NOW), closed, "another app's");
        let rotated = Access { key: "another key".to_owned(), ..access() };
        assert_eq!(judge(&rotated, &app(), &head, false, NOW), closed, "the password was changed");
        let longer = value.replacen("=1", "=9", 1);
        assert_eq!(ask("/", &[("cookie", &longer)]), closed, "its time is signed");
    }

    #[test]
    fn a_login_leads_back_to_the_page_and_to_one_browser() {
        let html = ("accept", "text/html");
        let Verdict::Elsewhere { to, cookie } = ask("/a?b=c&d", &[html]) else { panic!("no login") };
        let (address, bind) = to.split_once("&bind=").unwrap();
        assert_eq!(address, "https://landfall.example.com/login/app?app=hello-pr-1");
        let (bind, path) = bind.split_once("&to=").unwrap();
        assert_eq!(path, "/a%3Fb%3Dc%26d");
        let ticket = ticket(&access().key, &app(), "/a?b=c&d", bind, NOW);
        let enter = format!("/.landfall/enter?ticket={ticket}&to={path}");
        let nonce = value_of(&cookie);
        let Verdict::Elsewhere { to, cookie } = ask(&enter, &[("cookie", &nonce)]) else { panic!("not let in") };
        assert_eq!(to, "/a?b=c&d");
        assert_eq!(ask("/", &[("cookie", &value_of(&cookie))]), Verdict::Open { cookie: None, by_password: false });

        let refused = Verdict::Closed(Refusal::bare(403));
        assert_eq!(ask(&enter, &[]), refused, "another browser");
        assert_eq!(ask(&enter, &[("cookie", "landfall-login=x")]), refused);
        assert_eq!(ask(&enter.replace("/a%3F", "/evil%3F"), &[("cookie", &nonce)]), refused, "another page");
        let head = head(&enter, &[("cookie", &nonce)]);
        assert_eq!(judge(&access(), &app(), &head, false, NOW + Duration::from_secs(61)), refused, "too late");
        assert_eq!(judge(&access(), &"other".parse().unwrap(), &head, false, NOW), refused, "another app");
        for path in ["//evil.example/", "/\\evil.example", "https://evil.example", "", "/a b"] {
            assert!(!is_own_path(path), "{path}");
        }
        // A script gets an answer that it understands.
        assert_eq!(ask("/", &[("accept", "application/json")]), Verdict::Closed(Refusal::bare(401)));
    }

    #[test]
    fn the_app_never_sees_what_let_people_in() {
        let mine =
            [("cookie", "a=1; landfall-access=x; b=2"), ("cookie", "__Host-landfall-access=y; landfall-login=z")];
        let mut theirs = head("/", &mine).headers;
        theirs.insert("authorization", "Basic x".parse().unwrap());
        conceal(&mut theirs, true);
        let left: Vec<_> = theirs.get_all("cookie").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(left, ["a=1; b=2"]);
        assert!(theirs.get("authorization").is_none());
        let mut own = head("/", &[("cookie", "a=1"), ("authorization", "Bearer token of the app")]).headers;
        conceal(&mut own, false);
        assert!(own.get("authorization").is_some() && own.get("cookie").unwrap() == "a=1");
        let secure = cookie(&access(), &app(), BY_LOGIN, true, NOW);
        assert!(secure.starts_with("__Host-landfall-access=") && secure.ends_with("; Secure"), "{secure}");
    }
}
