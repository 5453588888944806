//! Apps that are closed to the public, as a visitor meets them.

use super::world::*;
use crate::router::TargetState::*;
use crate::router::{Access, seal_password};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

fn closed(version: u64, app: &App) -> crate::router::Table {
    let mut table = table(version, vec![app.target(Active)]);
    let key = "a key".to_owned();
    let password = Some(seal_password(&key, "open sesame"));
    for route in table.apps.values_mut() {
        route.access = Some(Access { key: key.clone(), password: password.clone(), sign_in: None });
    }
    table
}

#[test]
fn a_closed_app_gets_nothing_of_a_stranger_s_request() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(closed(1, &app));
    for head in [
        "GET / HTTP/1.1\r\n",
        "POST /orders HTTP/1.1\r\nContent-Length: 0\r\n",
        "OPTIONS / HTTP/1.1\r\nOrigin: https://evil.example\r\n",
        "GET / HTTP/1.1\r\nAuthorization: Basic eDp3cm9uZw==\r\n",
        "GET / HTTP/1.1\r\nCookie: landfall-access=99999999999999.00\r\n",
        "GET /.landfall/enter?ticket=1.2&to=/ HTTP/1.1\r\n",
        "GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    ] {
        let answer = router.client().request(&format!("{head}Host: hello.localhost\r\n\r\n"));
        assert!(matches!(answer.status, 401 | 403), "{head}: {}", answer.status);
        if answer.status == 401 {
            assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"hello\", charset=\"UTF-8\""), "{head}");
            assert!(answer.body.contains("closed to the public"), "{head}: {}", answer.body);
        }
        assert_eq!(answer.header("x-robots-tag"), Some("noindex"), "{head}");
    }
    assert_eq!(app.count(), 0, "something reached the app");
    let status = router.status();
    let seen = status.apps.values().next().expect("the app");
    assert_eq!((seen.requests, seen.last_request), (0, None), "strangers are no use of the app");
}

#[test]
fn the_password_opens_once_and_the_cookie_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::start(folder.path());
    router.set(closed(1, &app));
    let basic = STANDARD.encode("anybody:open sesame");
    let answer = router.client().request(&format!(
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\nAuthorization: Basic {basic}\r\nCookie: own=1\r\n\r\n"
    ));
    assert_eq!((answer.status, answer.body.as_str()), (200, "one"));
    let cookie = answer.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("landfall-access="), "{cookie}");
    let seen = app.last();
    assert_eq!((seen.header("authorization"), seen.header("cookie")), (None, Some("own=1")));

    // From here on the app's own credentials are the app's.
    let answer = router.client().request(&format!(
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\nAuthorization: Bearer its-own\r\nCookie: own=1; {cookie}\r\n\r\n"
    ));
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    let seen = app.last();
    assert_eq!((seen.header("authorization"), seen.header("cookie")), (Some("Bearer its-own"), Some("own=1")));

    let mut open = closed(2, &app);
    open.apps.values_mut().for_each(|route| route.access = None);
    router.set(open);
    assert_eq!(router.get("hello.localhost", "/").status, 200);
}
