//! Who may ask, as long as there is no login: somebody at this machine, or behind the proxy that the operator put in
//! front. A page of another site in that somebody's browser may not.
//!
//! The host that was asked for must be ours (else a name of a stranger's that resolves to 127.0.0.1 would do: DNS
//! rebinding). What changes something must come from our own pages or from no browser at all. Review apps are siblings
//! of the dashboard's host, so `same-site` counts as hostile.

use super::problem::Problem;
use super::{LARGEST_ORDER, Shared};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Data;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Why a request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Asked for under a name that is not ours.
    Host,
    /// Another site's page, or a browser that does not say whose page it is.
    Origin,
    /// A body that is neither a form of ours nor JSON.
    Body,
}

pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let shared = request.app_data::<Data<Shared>>().cloned();
    let Some(shared) = shared else {
        return Err(actix_web::error::ErrorInternalServerError("the dashboard was put together wrongly"));
    };
    let verdict = judge(request.method(), request.headers(), &shared.world.config.server.public_url);
    let verdict = match request.peer_addr() {
        Some(peer) if request.path() != "/healthz" && is_sandboxed(peer, request.app_config().local_addr()).await => {
            Err(Suspicion::Origin)
        }
        _ => verdict,
    };
    let mut response = match verdict {
        Ok(()) => told(next.call(request).await?.map_into_boxed_body(), &shared),
        Err(suspicion) => {
            tracing::warn!(?suspicion, path = %request.path(), "turned a request away");
            let answer = shared.refuse(request.path(), &Problem::Suspicious { suspicion: word(suspicion) });
            request.into_response(answer).map_into_boxed_body()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// A body that was too large was turned away before anybody of ours saw it, with words that are not JSON.
fn told(response: ServiceResponse<BoxBody>, shared: &Shared) -> ServiceResponse<BoxBody> {
    if response.status() != StatusCode::PAYLOAD_TOO_LARGE {
        return response;
    }
    let problem = Problem::TooLarge { most: LARGEST_ORDER / 1024 };
    let answer = shared.done(response.request(), Err(problem));
    response.into_response(answer).map_into_boxed_body()
}

async fn is_sandboxed(peer: std::net::SocketAddr, own: std::net::SocketAddr) -> bool {
    // A look that fails is no proof of anything good.
    actix_web::web::block(move || super::peer::is_sandboxed(peer, own)).await.unwrap_or(true)
}

fn word(suspicion: Suspicion) -> &'static str {
    match suspicion {
        Suspicion::Host => "host",
        Suspicion::Origin => "origin",
        Suspicion::Body => "body",
    }
}

/// The rule itself, without a server around it.
pub fn judge(method: &Method, headers: &HeaderMap, public_url: &str) -> Result<(), Suspicion> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let site = headers.get("sec-fetch-site").map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).ok_or(Suspicion::Host)?;
    if headers.get_all(header::HOST).count() != 1 || !is_ours(host, public_url) {
        return Err(Suspicion::Host);
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        // A link from elsewhere may be followed; a frame, an image or a script of elsewhere gets nothing.
        let navigates = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
        return match site {
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) if navigates => Ok(()),
            Some(_) => Err(Suspicion::Origin),
        };
    }
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = content_type == "application/json";
    if !json && content_type != "application/x-www-form-urlencoded" {
        return Err(Suspicion::Body);
    }
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("?"));
    let origin_is_ours = origin.map(|origin| same_origin(origin, host, public_url));
    match (site, origin_is_ours) {
        (_, Some(false)) => Err(Suspicion::Origin),
        (Some("same-origin"), _) => Ok(()),
        (Some(_), _) => Err(Suspicion::Origin),
        (None, Some(true)) => Ok(()),
        // No browser: every one names the origin of a POST. A form of an old one could not be JSON.
        (None, None) if json => Ok(()),
        (None, None) => Err(Suspicion::Origin),
    }
}

fn is_ours(host: &str, public_url: &str) -> bool {
    let name = without_port(host).to_ascii_lowercase();
    matches!(name.as_str(), "localhost" | "127.0.0.1" | "[::1]")
        || name == without_port(authority(public_url)).to_ascii_lowercase()
}

fn same_origin(origin: &str, host: &str, public_url: &str) -> bool {
    let Some((scheme, named)) = origin.split_once("://") else { return false };
    if !named.eq_ignore_ascii_case(host) {
        return false;
    }
    let public = authority(public_url);
    if named.eq_ignore_ascii_case(public) {
        return public_url.split_once("://").is_some_and(|(public, _)| public == scheme);
    }
    scheme == "http"
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Suspicion::{Body, Host, Origin};

    const PUBLIC: &str = "https://landfall.example.com";

    fn ask(method: Method, pairs: &[(&'static str, &'static str)]) -> Result<(), Suspicion> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        judge(&method, &headers, PUBLIC)
    }

    #[test]
    fn only_our_own_names_are_answered() {
        for (host, verdict) in [
            ("localhost:8080", Ok(())),
            ("LOCALHOST", Ok(())),
            ("127.0.0.1:9", Ok(())),
            ("[::1]:8080", Ok(())),
            ("landfall.example.com", Ok(())),
            ("evil.example", Err(Host)),
            ("localhost.evil.example:8080", Err(Host)),
            ("hello-pr-1.localhost:8000", Err(Host)),
            ("127.0.0.1.nip.io", Err(Host)),
            ("localhost:80@evil.example", Err(Host)),
            ("", Err(Host)),
        ] {
            assert_eq!(ask(Method::GET, &[("host", host)]), verdict, "{host}");
        }
        assert_eq!(ask(Method::GET, &[]), Err(Host));
        assert_eq!(ask(Method::GET, &[("host", "localhost"), ("host", "evil.example")]), Err(Host));
    }

    #[test]
    fn csrf_matrix() {
        let host = ("host", "localhost:8080");
        let (json, form) = (
            ("content-type", "application/json"),
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        );
        let own = ("origin", "http://localhost:8080");
        let site = |value| ("sec-fetch-site", value);
        for (name, pairs, verdict) in [
            ("our page's form", vec![host, form, own, site("same-origin")], Ok(())),
            ("our page's script", vec![host, json, own, site("same-origin")], Ok(())),
            ("an old browser on our page", vec![host, form, own], Ok(())),
            ("a command line", vec![host, json], Ok(())),
            ("behind the proxy", vec![("host", "landfall.example.com"), form, ("origin", PUBLIC)], Ok(())),
            ("cross-site form", vec![host, form, ("origin", "https://evil.example"), site("cross-site")], Err(Origin)),
            (
                "a review app",
                vec![host, form, ("origin", "http://hello-pr-1.localhost:8000"), site("same-site")],
                Err(Origin),
            ),
            ("another port", vec![host, form, ("origin", "http://localhost:8000"), site("same-site")], Err(Origin)),
            ("opaque origin", vec![host, form, ("origin", "null"), site("cross-site")], Err(Origin)),
            ("origin alone, foreign", vec![host, json, ("origin", "https://evil.example")], Err(Origin)),
            ("site alone, foreign", vec![host, json, site("cross-site")], Err(Origin)),
            (
                "a lie about the site",
                vec![host, form, ("origin", "https://evil.example"), site("same-origin")],
                Err(Origin),
            ),
            ("typed by hand", vec![host, form, site("none")], Err(Origin)),
            ("form without any sign", vec![host, form], Err(Origin)),
            ("https origin of a plain host", vec![host, form, ("origin", "https://localhost:8080")], Err(Origin)),
            (
                "http origin of the public one",
                vec![("host", "landfall.example.com"), form, ("origin", "http://landfall.example.com")],
                Err(Origin),
            ),
            ("text body", vec![host, ("content-type", "text/plain"), own, site("same-origin")], Err(Body)),
            ("no body type", vec![host, own, site("same-origin")], Err(Body)),
            (
                "rebound name",
                vec![("host", "evil.example"), json, ("origin", "http://evil.example"), site("same-origin")],
                Err(Host),
            ),
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                assert_eq!(ask(method.clone(), &pairs), verdict, "{name} with {method}");
            }
        }
    }

    #[test]
    fn links_from_elsewhere_work_and_embedding_does_not() {
        let host = ("host", "localhost:8080");
        let (cross, mode) = (("sec-fetch-site", "cross-site"), |value| ("sec-fetch-mode", value));
        assert_eq!(ask(Method::GET, &[host, cross, mode("navigate")]), Ok(()));
        assert_eq!(ask(Method::GET, &[host, cross, mode("no-cors")]), Err(Origin));
        assert_eq!(ask(Method::GET, &[host, ("sec-fetch-site", "same-site"), mode("cors")]), Err(Origin));
        assert_eq!(ask(Method::GET, &[host, ("sec-fetch-site", "same-origin"), mode("cors")]), Ok(()));
    }
}
