//! What reaches the app of a request, and what the client gets of an answer.

use super::world::*;
use crate::router::TargetState::*;
use std::io::Write;

#[test]
fn the_app_sees_where_a_request_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let answer = router.client().request(
        "GET /a%20b?c=d HTTP/1.1\r\nHost: HELLO.localhost.:8000\r\nX-Forwarded-For: 6.6.6.6\r\nx_forwarded_proto: https\r\n\
         X-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: too-short\r\nX-Request-Start: 1\r\n\
         Connection: close, X-Hop\r\nX-Hop: by hop\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: x\r\n\
         Via: 1.1 first\r\nCookie: a=b\r\n\r\n",
    );
    assert_eq!((answer.status, answer.body.as_str()), (200, "one"));
    let seen = app.last();
    assert_eq!(seen.line, "GET /a%20b?c=d HTTP/1.1");
    assert_eq!(seen.header("host"), Some("HELLO.localhost.:8000"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-port"), Some(router.address.port().to_string().as_str()));
    assert_eq!(seen.header("via"), Some("1.1 first, 1.1 landfall"));
    assert_eq!(seen.header("cookie"), Some("a=b"));
    assert_eq!(seen.header("x-request-id").map(str::len), Some(36));
    let start: u64 = seen.header("x-request-start").unwrap().parse().unwrap();
    assert!(start > 1_700_000_000_000, "{start}");
    for dropped in
        ["x-forwarded-host", "x_forwarded_proto", "forwarded", "x-hop", "keep-alive", "te", "proxy-authorization"]
    {
        assert_eq!(seen.header(dropped), None, "{dropped}");
    }
}

#[test]
fn a_request_id_of_the_client_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let id = "abcDEF019+/=-abcdefgh";
    router.client().request(&format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Request-Id: {id}\r\n\r\n"));
    assert_eq!(app.last().header("x-request-id"), Some(id));
}

#[test]
fn review_apps_are_never_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    let mut indexed = table(1, vec![app.target(Active)]);
    router.set(indexed.clone());
    assert_eq!(router.get("hello.localhost", "/").header("x-robots-tag"), None);
    indexed.version = 2;
    indexed.apps.values_mut().for_each(|route| route.noindex = true);
    router.set(indexed);
    assert_eq!(router.get("hello.localhost", "/").header("x-robots-tag"), Some("noindex"));
}

#[test]
fn a_sibling_s_cookie_does_not_leave_its_host() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, stream| {
        let cookies = "Set-Cookie: a=b; Domain=localhost; Path=/\r\nSet-Cookie: c=d; Domain=hello.localhost\r\n";
        let _ = stream.write_all(format!("HTTP/1.1 200 X\r\n{cookies}Content-Length: 0\r\n\r\n").as_bytes());
        Next::KeepAlive
    });
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let cookies = |answer: Answer| {
        let all = answer.headers.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        all.map(|(_, value)| value).collect::<Vec<_>>()
    };
    for host in ["hello.localhost", "HELLO.localhost.:80"] {
        assert_eq!(cookies(router.get(host, "/")), ["a=b; Path=/", "c=d; Domain=hello.localhost"], "{host}");
    }
}

#[test]
fn an_unknown_host_gets_a_page_and_reaches_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for host in ["other.localhost", "localhost", "hello.localhost.evil", "127.0.0.1:8000", "[::1]", "hello", "-"] {
        let answer = router.get(host, "/");
        assert_eq!(answer.status, 404, "{host}");
        assert!(answer.body.contains("There is no app here"), "{}", answer.body);
    }
    let json = router
        .client()
        .request("GET / HTTP/1.1\r\nHost: other.localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    let value: serde_json::Value = serde_json::from_str(&json.body).unwrap();
    assert_eq!((value["error"]["status"].as_u64(), value["error"]["code"].as_str()), (Some(404), None));
    assert_eq!(value["error"]["request_id"].as_str(), json.header("x-request-id"));
    assert_eq!(app.count(), 0);
}

#[test]
fn the_connection_serves_many_requests_also_pipelined() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    for _ in 0..3 {
        assert_eq!(client.request("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").body, "one");
    }
    let post = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc";
    client.send(format!("{post}GET /last HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"));
    assert_eq!(client.answer().unwrap().body, "one");
    assert_eq!(client.answer().unwrap().body, "one");
    assert_eq!((app.count(), app.last().line.as_str()), (5, "GET /last HTTP/1.1"));
    let connections: std::collections::BTreeSet<u64> =
        app.seen.lock().unwrap().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), 2, "the connection to the app is kept as well, and the POST has one of its own");
}

#[test]
fn a_proxy_in_front_is_believed_if_the_operator_named_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    for (trusted, client, scheme, port) in [
        (vec!["127.0.0.0/8".to_owned()], "203.0.113.9", "https", "443".to_owned()),
        (Vec::new(), "127.0.0.1", "http", String::new()),
    ] {
        let mut router = RunningRouter::with(folder.path(), |options| {
            options.trusted = crate::router::Trusted::parse(&trusted).unwrap();
        });
        router.set(table(1, vec![app.target(Active)]));
        let answer = router.client().request(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n\
             X-Forwarded-Proto: https\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(answer.status, 200);
        let port = if port.is_empty() { router.address.port().to_string() } else { port };
        let seen = app.last();
        assert_eq!(seen.header("x-forwarded-for"), Some(client));
        assert_eq!(seen.header("x-forwarded-proto"), Some(scheme));
        assert_eq!(seen.header("x-forwarded-port"), Some(port.as_str()));
        router.stop();
    }
}
