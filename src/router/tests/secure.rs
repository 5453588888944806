//! TLS, HTTP/2, the redirect to them, and load balancers that say whose connection they pass on.

use super::switching::deploy;
use super::world::*;
use crate::router::{CertificateFiles, TargetState::Active, Trusted};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const CA: &[u8] = include_bytes!("tls/ca.pem");

fn put(folder: &Path, name: &str) -> CertificateFiles {
    let (chain, key): (&[u8], &[u8]) = match name {
        "first" => (include_bytes!("tls/first.pem"), include_bytes!("tls/first.key")),
        _ => (include_bytes!("tls/second.pem"), include_bytes!("tls/second.key")),
    };
    let files = CertificateFiles { chain: folder.join("chain.pem"), key: folder.join("key.pem") };
    // Replaced as certbot does: a new file under the old name.
    for (path, bytes) in [(&files.chain, chain), (&files.key, key)] {
        std::fs::write(path.with_extension("new"), bytes).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
    files
}

pub fn secured(folder: &Path, change: impl FnOnce(&mut crate::router::RouterOptions)) -> (RunningRouter, SocketAddr) {
    let files = put(folder, "first");
    let router = RunningRouter::with(folder, |options| {
        options.secure = Some(("127.0.0.1:0".parse().unwrap(), Some(files)));
        options.certificate_interval = Duration::from_millis(20);
        change(options);
    });
    let text = std::fs::read_to_string(folder.join("router/router.tls.addr")).unwrap();
    (router, text.trim().parse().unwrap())
}

pub fn configuration(protocols: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut configuration = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    configuration.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(configuration)
}

/// A client of HTTP/2, on a connection that was agreed on.
pub async fn speak_http2(address: SocketAddr) -> h2::client::SendRequest<bytes::Bytes> {
    speak_http2_as(address, &h2::client::Builder::new()).await
}

pub async fn speak_http2_as(address: SocketAddr, how: &h2::client::Builder) -> h2::client::SendRequest<bytes::Bytes> {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("hello.localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(configuration(&[b"h2"]));
    let stream = connector.connect(name, tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (client, connection) = how.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A connection over TLS that was agreed on and says what it is told to.
fn secure(address: SocketAddr, protocol: &[u8]) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("hello.localhost").unwrap();
    let connection = rustls::ClientConnection::new(configuration(&[protocol]), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, tcp);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream
}

/// One request over TLS, and the certificate that was shown.
fn ask(stream: TcpStream, request: &str) -> (String, Vec<u8>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("hello.localhost").unwrap();
    let connection = rustls::ClientConnection::new(configuration(&[]), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end that was said");
    let certificate = stream.conn.peer_certificates().unwrap()[0].to_vec();
    (String::from_utf8_lossy(&answer).into_owned(), certificate)
}

const GET: &str = "GET /page HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";

#[test]
fn visitors_come_over_tls_and_the_app_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let (answer, _) = ask(TcpStream::connect(address).unwrap(), GET);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("one"), "{answer}");
    let seen = app.last();
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-port"), Some(address.port().to_string().as_str()));
    // What the strict grammar forbids is forbidden here as well.
    let (answer, _) = ask(TcpStream::connect(address).unwrap(), "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(app.count(), 1);
}

#[test]
fn a_certificate_that_changes_is_taken_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let shown = || ask(TcpStream::connect(address).unwrap(), GET).1;
    let first = shown();
    put(folder.path(), "second");
    let second = eventually("the new certificate", || Some(shown()).filter(|shown| *shown != first));
    std::fs::write(folder.path().join("key.pem"), "no key").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(shown(), second);
    put(folder.path(), "first");
    eventually("the first certificate again", || (shown() == first).then_some(()));
}

#[test]
fn who_comes_without_tls_is_sent_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |options| {
        options.trusted = Trusted::parse(&["127.0.0.1".to_owned()]).unwrap();
    });
    router.set(table(1, vec![app.target(Active)]));
    let answer = router.get("hello.localhost", "/a?b=c");
    assert_eq!(answer.status, 308);
    let expected = format!("https://hello.localhost:{}/a?b=c", address.port());
    assert_eq!(answer.header("location"), Some(expected.as_str()));
    let bare = router.client().request("GET http://hello.localhost?x=1 HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
    assert_eq!(bare.header("location"), Some(format!("https://hello.localhost:{}/?x=1", address.port()).as_str()));
    // Nobody is sent to a host that is none of ours.
    assert_eq!(router.get("elsewhere.example", "/").status, 404);
    // Who came to the proxy in front with TLS has it already.
    let head = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n";
    assert_eq!(router.client().request(head).status, 200);
    assert_eq!(app.count(), 1);
}

#[test]
fn requests_of_one_http2_connection_go_to_the_app_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |seen, stream| {
        respond(stream, 200, &[seen.line.as_bytes(), b" ", &seen.body].concat());
        Next::KeepAlive
    });
    let (router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    router.call(async {
        let mut client = speak_http2(address).await;
        let mut ask = async |method: &str, host: &str, path: &str, body: &'static [u8]| {
            let request =
                http::Request::builder().method(method).uri(format!("https://{host}{path}")).body(()).unwrap();
            client = client.clone().ready().await.unwrap();
            let (answer, mut sending) = client.send_request(request, body.is_empty()).unwrap();
            if !body.is_empty() {
                sending.send_data(bytes::Bytes::from_static(body), true).unwrap();
            }
            let answer = answer.await.unwrap();
            let (head, mut stream) = answer.into_parts();
            let mut text = Vec::new();
            while let Some(piece) = stream.data().await {
                let piece = piece.unwrap();
                stream.flow_control().release_capacity(piece.len()).unwrap();
                text.extend_from_slice(&piece);
            }
            (head.status.as_u16(), String::from_utf8(text).unwrap())
        };
        let got = ask("GET", "hello.localhost", "/page?x=1", b"").await;
        assert_eq!(got, (200, "GET /page?x=1 HTTP/1.1 ".to_owned()));
        let posted = ask("POST", "hello.localhost", "/form", b"a=b").await;
        assert_eq!(posted, (200, "POST /form HTTP/1.1 a=b".to_owned()));
        let (status, page) = ask("GET", "elsewhere.example", "/", b"").await;
        assert!(status == 404 && page.contains("<html"), "{status} {page}");
    });
    let seen = app.last();
    assert_eq!((seen.header("host"), seen.header("x-forwarded-proto")), (Some("hello.localhost"), Some("https")));
    assert_eq!(seen.header("via"), Some("2 landfall"));
}

#[test]
fn a_load_balancer_says_whose_connection_it_passes_on() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |options| {
        options.trusted = Trusted::parse(&["127.0.0.1".to_owned()]).unwrap();
        options.announced = true;
        options.redirect = false;
        options.head_timeout = Duration::from_millis(500);
    });
    router.set(table(1, vec![app.target(Active)]));
    let mut client = router.client();
    assert_eq!(client.request(&format!("PROXY TCP4 192.0.2.7 203.0.113.1 56324 80\r\n{GET}")).status, 200);
    assert_eq!(app.last().header("x-forwarded-for"), Some("192.0.2.7"));
    // The same in front of TLS.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 443\r\n").unwrap();
    assert!(ask(stream, GET).0.starts_with("HTTP/1.1 200"));
    assert_eq!(app.last().header("x-forwarded-for"), Some("2001:db8::9"));
    // Without it, nothing is served, however long one waits.
    for bytes in [GET, "PROXY TCP4 192.0.2.7", ""] {
        let mut client = router.client();
        client.send(bytes);
        assert!(client.answer().is_none(), "{bytes:?}");
    }
    assert_eq!(app.count(), 2);
}

#[test]
fn who_never_agrees_on_tls_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (router, address) = secured(folder.path(), |options| options.head_timeout = Duration::from_millis(200));
    let mut silent = TcpStream::connect(address).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    eventually("the connection", || (router.status().connections == 1).then_some(()));
    assert_eq!(silent.read(&mut [0; 10]).unwrap_or(0), 0);
    eventually("its end", || (router.status().connections == 0).then_some(()));
}

#[test]
fn who_agrees_on_http2_and_says_nothing_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |options| options.head_timeout = Duration::from_millis(300));
    router.set(table(1, vec![app.target(Active)]));
    for said in [b"".as_slice(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut silent = secure(address, b"h2");
        silent.write_all(said).unwrap();
        // What the router says of its settings may come first; then the end.
        let mut bytes = [0; 1000];
        while let Ok(1..) = silent.read(&mut bytes) {}
        eventually("its end", || (router.status().connections == 0).then_some(()));
    }
}

#[test]
fn connections_that_idle_are_closed_whatever_they_speak() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let (router, address) = secured(folder.path(), |options| {
        options.redirect = false;
        options.keep_alive = Duration::from_millis(300);
        options.idle_timeout = Duration::from_millis(500);
    });
    router.set(table(1, vec![app.target(Active)]));
    let get = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    let (mut asked, untouched) = (router.client(), router.client());
    assert_eq!(asked.request(get).body, "one");
    let (mut secure_asked, secure_untouched) = (secure(address, b"http/1.1"), secure(address, b"http/1.1"));
    secure_asked.write_all(get.as_bytes()).unwrap();
    assert!(secure_asked.read(&mut [0; 1000]).unwrap() > 0);
    // This one never answers a PING, with which the end of a connection begins.
    let mut deaf = secure(address, b"h2");
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    eventually("all to be closed", || (router.status().connections == 0).then_some(()));
    drop((asked, untouched, secure_asked, secure_untouched, deaf));
}

/// Asks over HTTP/2 without pause, every third time with a body, and connects anew when the router says that the connection is
/// to end. Gives what went wrong.
async fn visit(address: SocketAddr, over: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Vec<String> {
    let mut failures = Vec::new();
    let mut client = speak_http2(address).await;
    for number in 1_usize.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let Ok(mut ready) = client.clone().ready().await else {
            client = speak_http2(address).await;
            continue;
        };
        let post = number.is_multiple_of(3);
        let asked = async {
            let method = if post { "POST" } else { "GET" };
            let request = http::Request::builder().method(method).uri("https://hello.localhost/").body(()).unwrap();
            let (answer, mut body) = ready.send_request(request, !post)?;
            if post {
                body.send_data(vec![b'x'; 10_000].into(), true)?;
            }
            let answer = answer.await?;
            let status = answer.status();
            let mut body = answer.into_body();
            while let Some(piece) = body.data().await {
                piece?;
            }
            Ok::<_, h2::Error>(status)
        };
        match asked.await {
            Ok(http::StatusCode::OK) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            other => failures.push(format!("request {number}, {post}: {other:?}")),
        }
    }
    failures
}

#[test]
fn no_request_over_http2_fails_through_deploys_and_routers_that_take_each_others_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut app = App::start(folder.path(), "release-0");
    let (mut router, address) = secured(folder.path(), |_| {});
    router.set(table(1, vec![app.target(Active)]));
    let (over, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let visitors = {
        let (over, done) = (over.clone(), done.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let visits = (0..4).map(|_| tokio::spawn(visit(address, over.clone(), done.clone())));
                let mut failures = Vec::new();
                for visit in visits.collect::<Vec<_>>() {
                    failures.extend(visit.await.unwrap());
                }
                failures
            })
        })
    };
    let progress = || {
        let wanted = done.load(Ordering::Relaxed) + 50;
        eventually("visitors to go on", || (done.load(Ordering::Relaxed) >= wanted).then_some(()));
    };
    for number in 1..=3 {
        progress();
        app = deploy(folder.path(), &router, app, number, true);
        progress();
        let (next, same) = secured(folder.path(), |_| {});
        assert_eq!(same, address);
        std::mem::replace(&mut router, next).outlived();
    }
    progress();
    over.store(true, Ordering::Relaxed);
    assert_eq!(visitors.join().unwrap(), Vec::<String>::new(), "of {}", done.load(Ordering::Relaxed));
}
