//! Clients that are slow, many, or answered before they are done.

use super::world::*;
use crate::router::TargetState::*;
use crate::router::Trusted;
use std::io::{Read, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn whoever_is_still_coming_in_when_the_end_is_told_hears_of_it() {
    use crate::router::clients::{ClientStream, Clients, Ending};
    use crate::router::{socket::Socket, ticks::Ticks, wire::Wire};
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let clients = Arc::new(Clients::new(Ticks::new(Instant::now()), 9, 9, Trusted::default()));
        let mut peers = Vec::new();
        let mut come = async || {
            peers.push(tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let (stream, address) = listener.accept().await.unwrap();
            (clients.admit(stream.as_raw_fd(), address.ip(), false).unwrap(), stream)
        };
        let serve = |(place, stream)| ClientStream::new(place, Wire::Plain(Socket::new(stream)), None);
        let there = serve(come().await);
        let (early, late) = (come().await, come().await);
        clients.end(Ending::Streamed);
        let early = serve(early);
        assert!(!there.client().is_bidden_farewell() && !early.client().is_bidden_farewell(), "HTTP/1 goes on");
        clients.end(Ending::All);
        let all = [there, early, serve(late), serve(come().await)];
        for stream in &all {
            assert!(stream.client().is_bidden_farewell());
            stream.client().farewell().await;
        }
    });
}

#[test]
fn a_head_that_drips_is_cut_and_a_quiet_connection_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::with(folder.path(), |options| options.head_timeout = Duration::from_millis(300));
    router.set(table(1, vec![app.target(Active)]));
    let mut quiet = router.client();
    assert_eq!(quiet.request("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").body, "one");
    let mut untouched = router.client();

    let mut dripping = router.client();
    let began = Instant::now();
    let mut cut = false;
    for byte in b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: ".iter().chain([b'x'; 500].iter()) {
        if dripping.stream.write_all(&[*byte]).is_err() {
            cut = true;
            break;
        }
        sleep(Duration::from_millis(20));
    }
    assert!(cut && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut answer = Vec::new();
    let _ = dripping.reader.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));

    for client in [&mut quiet, &mut untouched] {
        assert_eq!(client.request("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").body, "one");
    }
    assert_eq!(app.count(), 3);
}

#[test]
fn slow_heads_do_not_keep_others_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), "one");
    let router = RunningRouter::with(folder.path(), |options| options.head_timeout = Duration::from_secs(2));
    router.set(table(1, vec![app.target(Active)]));
    let mut slow: Vec<Client> = (0..1000).map(|_| router.client()).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost:");
    }
    let mut client = router.client();
    for _ in 0..100 {
        assert_eq!(client.request("GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").body, "one");
    }
    assert!(router.status().connections > 900);
    eventually("the slow ones to be cut", || (router.status().connections <= 1).then_some(()));
}

#[test]
fn too_many_connections_are_told_so_and_whoever_idles_makes_room() {
    const PLAIN: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    const SOCKET: &str =
        "GET /socket HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    type Change = fn(&mut crate::router::RouterOptions);
    let limits: [Change; 2] = [|options| options.connections_per_network = 3, |options| options.connections = 3];
    for limit in limits {
        let folder = tempfile::tempdir().unwrap();
        let app = App::behaving(folder.path(), "one", |seen, stream| {
            if seen.line.contains("/socket") {
                return echo(stream);
            }
            respond(stream, 200, b"one");
            Next::KeepAlive
        });
        let router = RunningRouter::with(folder.path(), limit);
        router.set(table(1, vec![app.target(Active)]));
        let mut busy: Vec<Client> = (0..2).map(|_| router.client()).collect();
        for client in &mut busy {
            assert_eq!(client.request(SOCKET).status, 101);
        }
        let mut idle = router.client();
        assert_eq!(idle.request(PLAIN).status, 200);
        assert_eq!(router.client().answer().unwrap().status, 503, "whoever has just come stays");
        let _third = eventually("room", || {
            let mut client = router.client();
            let _ = client.stream.write_all(SOCKET.as_bytes());
            client.answer().filter(|answer| answer.status == 101).map(|_| client)
        });
        assert!(idle.answer().is_none(), "it gave way");
        assert_eq!(router.client().answer().unwrap().status, 503);
        busy.pop();
        eventually("a place to get free", || {
            let mut client = router.client();
            let _ = client.stream.write_all(PLAIN.as_bytes());
            client.answer().filter(|answer| answer.status == 200)
        });
        let mut back = [0; 3];
        busy[0].send(b"yes");
        busy[0].reader.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"yes", "who is busy stays");
    }
}

#[test]
fn a_trusted_proxy_has_the_connections_of_many() {
    let folder = tempfile::tempdir().unwrap();
    let router = RunningRouter::with(folder.path(), |options| {
        options.connections_per_network = 1;
        options.trusted = Trusted::parse(&["127.0.0.1".to_owned()]).unwrap();
    });
    let mut all: Vec<Client> = (0..3).map(|_| router.client()).collect();
    for client in &mut all {
        assert_eq!(client.request("GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n").status, 404);
    }
}

#[test]
fn a_refused_upload_gets_its_answer_whole() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::behaving(folder.path(), "one", |_, _| Next::Close);
    let router = RunningRouter::start(folder.path());
    router.set(table(1, vec![app.target(Active)]));
    for host in ["elsewhere.localhost", "bad host"] {
        let mut client = router.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4000000\r\n\r\n"));
        // Had the router closed on these bytes, writing on would fail and the answer be lost.
        for _ in 0..40 {
            client.send(vec![b'x'; 100_000]);
        }
        let answer = client.answer().expect("no answer");
        assert!(matches!(answer.status, 400 | 404) && answer.body.ends_with("</html>"), "{answer:?}");
    }
}

#[test]
fn hosts_lead_only_to_the_app_that_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (App::start(folder.path(), "one"), App::start(folder.path(), "two"));
    let router = RunningRouter::start(folder.path());
    let mut both = table(1, vec![one.target(Active)]);
    let mut other = both.apps.values().next().unwrap().clone();
    other.hosts = vec!["two.localhost".into()];
    other.targets = vec![two.target(Active)];
    both.apps.insert("two".parse().unwrap(), other);
    router.set(both);
    // One connection, alternating hosts: pooled connections must not cross over.
    let mut client = router.client();
    for _ in 0..20 {
        for (host, body) in [("hello.localhost", "one"), ("two.localhost", "two")] {
            let answer = client.request(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(answer.body, body);
        }
    }
    for app in [&one, &two] {
        let connections: Vec<u64> = app.seen.lock().unwrap().iter().map(|seen| seen.connection).collect();
        assert!(connections.windows(2).all(|pair| pair[0] == pair[1]), "{connections:?}");
    }
}
