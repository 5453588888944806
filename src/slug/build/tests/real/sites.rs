//! Both file servers, each on a machine that has only the one of them.

use super::*;
use std::os::unix::fs::symlink;

const ENGINES: [&str; 2] = ["python3", "node"];

fn site(place: &Place, engine: &str) -> (Built, String) {
    let built = place.build_with("static", &[], &place.machine(&[engine]));
    let command = built.result.process_types.first().map(|(_, command)| command.clone()).unwrap_or_default();
    assert!(built.status != 0 || command.starts_with(engine), "{command}");
    (built, command)
}

fn home() -> Place {
    let place = Place::new(&[
        ("index.html", "<h1>home</h1>"),
        ("style.css", "a{}"),
        ("docs/index.html", "docs"),
        ("docs/ü b.txt", "odd"),
        ("404.html", "lost"),
        (".env", "SECRET=1"),
        ("app.json", "{}"),
    ]);
    fs::write(place.folder.path().join("secret"), "stolen").unwrap();
    symlink("../secret", place.app().join("leak.txt")).unwrap();
    place
}

#[test]
fn a_static_site_is_served() {
    for engine in ENGINES {
        let place = home();
        let (built, command) = site(&place, engine);
        assert_eq!(built.status, 0, "{}", built.log);
        let web = Web::start(&place, &command);
        assert_eq!(web.get("/"), (200, "<h1>home</h1>".to_owned()), "{engine}");
        assert_eq!(web.get("/?a=../b"), (200, "<h1>home</h1>".to_owned()), "{engine}");
        assert_eq!(web.get("/docs/"), (200, "docs".to_owned()), "{engine}");
        assert_eq!(web.get("/docs/%C3%BC%20b.txt"), (200, "odd".to_owned()), "{engine}");
        let (status, head, body) = web.request("HEAD /style.css HTTP/1.1");
        assert_eq!((status, body.as_str()), (200, ""), "{engine}");
        assert!(head.contains("Content-Length: 3"), "{engine}: {head}");
        let (status, head, body) = web.request("GET /index.html HTTP/1.1\r\nRange: bytes=4-7");
        assert_eq!((status, body.as_str()), (206, "home"), "{engine}: {head}");
        assert!(head.contains("Content-Range: bytes 4-7/13"), "{engine}: {head}");
        assert_eq!(web.request("GET /index.html HTTP/1.1\r\nRange: bytes=-5").2, "</h1>", "{engine}");
        assert_eq!(web.request("GET /index.html HTTP/1.1\r\nRange: bytes=99-").0, 416, "{engine}");
        assert_eq!(web.request("POST / HTTP/1.1\r\nContent-Length: 0").0, 405, "{engine}");
        for path in ["/docs", "//docs", "///docs"] {
            let (status, head, _) = web.request(&format!("GET {path} HTTP/1.1"));
            assert_eq!(status, 301, "{engine} {path}");
            assert!(head.contains("Location: /docs/"), "{engine}: {head}");
        }
        assert_eq!(web.terminate(), Some(0), "{engine}");
    }
}

#[test]
fn nothing_but_the_site_is_served() {
    for engine in ENGINES {
        let place = home();
        let (_, command) = site(&place, engine);
        let web = Web::start(&place, &command);
        for path in [
            "/nothing",
            "/../secret",
            "/..%2fsecret",
            "/%2e%2e/secret",
            "/docs/../../secret",
            "/docs/%2e%2e%2f%2e%2e%2fsecret",
            "/leak.txt",
            "/.env",
            "/.landfall/static-server.py",
            "/.landfall/static-server.mjs",
            "/app.json",
            "/docs/../.env",
            "/%00",
            "/style.css/",
            "/style.css/x",
            "/..\\secret",
        ] {
            assert_eq!(web.get(path), (404, "lost".to_owned()), "{engine} {path}");
        }
    }
}

#[test]
fn a_page_that_changed_is_never_called_unchanged() {
    for engine in ENGINES {
        let place = home();
        let (_, command) = site(&place, engine);
        let web = Web::start(&place, &command);
        let (status, head, body) = web.request("GET /style.css HTTP/1.1");
        assert_eq!((status, body.as_str()), (200, "a{}"), "{engine}");
        assert!(head.contains("Content-Type: text/css; charset=utf-8"), "{engine}: {head}");
        assert!(head.contains("Cache-Control: no-cache"), "{engine}: {head}");
        let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap().to_owned();
        let (status, head, body) = web.request(&format!("GET /style.css HTTP/1.1\r\nIf-None-Match: W/\"x\", {tag}"));
        assert_eq!((status, body.as_str()), (304, ""), "{engine}: {head}");
        drop(web);

        // The next release: a file of the same length and the same time.
        let path = place.app().join("style.css");
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "b{}").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let web = Web::start(&place, &command);
        let (status, _, body) = web.request(&format!("GET /style.css HTTP/1.1\r\nIf-None-Match: {tag}"));
        assert_eq!((status, body.as_str()), (200, "b{}"), "{engine}");
    }
}

#[test]
fn a_static_site_follows_its_static_json() {
    for engine in ENGINES {
        let place = Place::new(&[
            (
                "static.json",
                r#"{"root": "dist", "clean_urls": true, "routes": {"/api/*": "none.html", "/**": "index.html"},
                    "redirects": {"/old/**": {"url": "/new", "status": 302}},
                    "headers": {"/**": {"X-Frame-Options": "DENY"}, "/assets/*": {"Cache-Control": "max-age=60"}}}"#,
            ),
            ("dist/index.html", "spa"),
            ("dist/about.html", "about"),
            ("dist/assets/a.js", "1"),
            ("index.html", "not served"),
        ]);
        let (built, command) = site(&place, engine);
        assert!(built.log.contains("Serving ./dist"), "{}", built.log);
        let web = Web::start(&place, &command);
        assert_eq!(web.get("/"), (200, "spa".to_owned()), "{engine}");
        assert_eq!(web.get("/some/deep/route"), (200, "spa".to_owned()), "{engine}");
        assert_eq!(web.get("/about"), (200, "about".to_owned()), "{engine}");
        let (_, head, body) = web.request("GET /assets/a.js HTTP/1.1");
        assert_eq!(body, "1");
        assert!(head.contains("Cache-Control: max-age=60"), "{engine}: {head}");
        assert!(head.contains("X-Frame-Options: DENY"), "{engine}: {head}");
        let (status, head, _) = web.request("GET /old/x/y HTTP/1.1");
        assert!(status == 302 && head.contains("Location: /new"), "{engine}: {head}");
        assert_eq!(web.get("/../static.json"), (200, "spa".to_owned()), "{engine}");
    }
}

#[test]
fn a_static_json_that_can_t_be_used_fails_the_build() {
    for (json, expected) in [
        ("{", ""),
        ("[]", "it is not an object"),
        (r#"{"root": "../.."}"#, "\"root\" lies outside of the app"),
        (r#"{"root": "none"}"#, "\"root\" is none, which is not a folder"),
        (r#"{"root": 1}"#, "\"root\" is not a text"),
        (r#"{"routes": {"/**": 1}}"#, "\"routes\" has a wrong shape"),
        (r#"{"headers": {"/**": {"X": "a\r\nSet-Cookie: b"}}}"#, "\"headers\" has an unusable header for /**"),
        (r#"{"redirects": {"/a": {"url": "/b\n"}}}"#, "\"redirects\" has no usable url and status for /a"),
    ] {
        for engine in ENGINES {
            let place = Place::new(&[("static.json", json), ("index.html", "x")]);
            let (built, _) = site(&place, engine);
            assert_eq!(built.status, 1, "{engine} {json}: {}", built.log);
            let said = format!(" !     static.json can't be used: {expected}");
            assert!(built.log.contains(&said), "{engine} {json}: {}", built.log);
        }
    }
}
