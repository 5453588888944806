//! What an app must not do to the apps beside it, below the same domain: set a cookie for all of them.
//!
//! A review app is a stranger's code, and what it sets for the whole domain its siblings receive as their own. So a
//! cookie that names a wider domain than the app's own host is made one of that host alone: the app itself gets it back,
//! nobody else does. Custom domains belong to their app whole, and their cookies are left as they are.

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

/// Takes the wider domain out of each cookie of an answer, if the host is one of those below the router's domain.
pub(super) fn keep_cookies_apart(headers: &mut HeaderMap, host: &str, domain: &str) {
    if !headers.contains_key(SET_COOKIE) || !is_below(host, domain) {
        return;
    }
    let all = || headers.get_all(SET_COOKIE).iter();
    if !all().any(|cookie| is_wide(cookie.as_bytes(), host)) {
        return;
    }
    let narrowed: Vec<Vec<u8>> = all().map(|cookie| narrow(cookie.as_bytes(), host)).collect();
    headers.remove(SET_COOKIE);
    for cookie in narrowed {
        // Parts of a value that was one are a value.
        if let Ok(value) = HeaderValue::from_bytes(&cookie) {
            headers.append(SET_COOKIE, value);
        }
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|name| name.ends_with('.'))
}

fn is_wide(cookie: &[u8], host: &str) -> bool {
    attributes(cookie).any(|attribute| names_another(attribute, host))
}

fn narrow(cookie: &[u8], host: &str) -> Vec<u8> {
    let own = cookie.split(|byte| *byte == b';').next().unwrap_or_default();
    let kept = attributes(cookie).filter(|attribute| !names_another(attribute, host));
    [own].into_iter().chain(kept).collect::<Vec<_>>().join(b";".as_slice())
}

/// What follows the name and the value (RFC 6265, 5.2).
fn attributes(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie.split(|byte| *byte == b';').skip(1)
}

/// Whether this is a `Domain` other than the host's own. An empty one says nothing, but browsers have not always agreed
/// on that, and one that the host is not in is not taken by any.
fn names_another(attribute: &[u8], host: &str) -> bool {
    let mut parts = attribute.splitn(2, |byte| *byte == b'=');
    let name = parts.next().unwrap_or_default().trim_ascii();
    let value = parts.next().unwrap_or_default().trim_ascii();
    let value = value.strip_prefix(b".").unwrap_or(value);
    name.eq_ignore_ascii_case(b"domain") && !value.eq_ignore_ascii_case(host.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(cookies: &[&str], host: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(SET_COOKIE, cookie.parse().unwrap());
        }
        keep_cookies_apart(&mut headers, host, "apps.example.com");
        let all = headers.get_all(SET_COOKIE).iter();
        all.map(|cookie| String::from_utf8_lossy(cookie.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn a_cookie_for_the_whole_domain_becomes_one_of_its_host() {
        let host = "shop-pr-1.apps.example.com";
        for (cookie, narrowed) in [
            ("a=b; Domain=apps.example.com; Path=/", "a=b; Path=/"),
            ("a=b; Domain=.apps.example.com", "a=b"),
            ("a=b; path=/;DOMAIN = Example.COM ; Secure", "a=b; path=/; Secure"),
            ("a=b; Domain=shop-pr-1.apps.example.com; Domain=com", "a=b; Domain=shop-pr-1.apps.example.com"),
            ("a=b;\tdomain\t=\tapps.example.com\t; HttpOnly", "a=b; HttpOnly"),
            ("a=b; Domain=", "a=b"),
            ("a=b; Domain", "a=b"),
            ("a=b; Domain=shop-pr-2.apps.example.com", "a=b"),
            ("=; Domain=apps.example.com", "="),
            ("Domain=apps.example.com", "Domain=apps.example.com"),
            ("a=Domain=apps.example.com; Path=/", "a=Domain=apps.example.com; Path=/"),
            ("a=b; Domain=SHOP-pr-1.apps.example.com", "a=b; Domain=SHOP-pr-1.apps.example.com"),
            ("a=b; Path=/; Secure; HttpOnly; SameSite=Lax", "a=b; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ] {
            assert_eq!(pass(&[cookie], host), [narrowed], "{cookie}");
        }
        let many = ["one=1; Path=/", "two=2; Domain=apps.example.com", "three=3"];
        assert_eq!(pass(&many, host), ["one=1; Path=/", "two=2", "three=3"]);
    }

    #[test]
    fn a_custom_domain_is_its_app_s_own() {
        let cookie = "a=b; Domain=example.org; Path=/";
        for host in ["www.example.org", "apps.example.com", "evil-apps.example.com", "example.org"] {
            assert_eq!(pass(&[cookie], host), [cookie], "{host}");
        }
    }
}
