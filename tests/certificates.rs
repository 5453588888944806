//! Custom domains and their certificates, against an authority that checks signatures, nonces and the challenge itself.

use crate::support::authority::Authority;
use crate::support::machine::{Machine, free_addresses, probe};
use landfall::acme::{self, Settings};
use landfall::clock::{Clock, Timestamp};
use landfall::router::{Router, RouterOptions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const DOMAIN: &str = "www.example.com";

/// A browser that takes any certificate, but none at all it does not take.
fn browser(domain: &str, address: SocketAddr) -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(true)
        .resolve(domain, address)
        .build()
        .expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_gets_its_certificate_once_even_if_all_is_killed_in_between() {
    let mut machine = Machine::with(&format!("[domains]\n\"{DOMAIN}\" = \"hello-staging\"")).await;
    machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let plain = machine.client.get(format!("http://{}/", machine.router)).header("host", DOMAIN);
    let answer = plain.send().await.expect("the router answers");
    assert_eq!(answer.status(), 200, "the domain leads to the app before it has a certificate");

    let authority = Authority::start(machine.router);
    authority.state.holding.store(true, Ordering::SeqCst);
    machine.kill_serve();
    let [tls] = free_addresses();
    let text = std::fs::read_to_string(machine.config()).expect("the configuration");
    let text = text.replace("[router]\n", &format!("[router]\ntls_listen = \"{tls}\"\n"));
    let directory = authority.directory();
    let acme = format!("[acme]\ndirectory = \"{directory}\"\nagree_to_terms = true\ncontact = \"ops@example.com\"\n");
    std::fs::write(machine.config(), format!("{text}{acme}")).expect("the configuration");
    machine.says(&["router", "--replace"]).await;
    machine.serve().await;
    let held = async || {
        let state = &authority.state;
        anyhow::ensure!(state.in_processing() == 1, "refused: {:?}", state.refused.lock().expect("no holder panics"));
        Ok(())
    };
    machine.expect("the authority to be asked for a certificate", held).await;
    machine.kill_serve();
    authority.state.holding.store(false, Ordering::SeqCst);
    machine.serve().await;

    let visitor = browser(DOMAIN, tls);
    let served = async || {
        let answer = visitor.get(format!("https://{DOMAIN}:{}/", tls.port())).send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status == 200 && body.contains("Hello, world!"), "{status}: {body}");
        Ok(())
    };
    machine.expect("the domain to be served with TLS", served).await;
    // On a new connection: those of before are served out by the router of before, which knows no TLS.
    let plain = browser(DOMAIN, tls).get(format!("http://{}/page", machine.router)).header("host", DOMAIN);
    let answer = plain.send().await.expect("the router answers");
    let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!((answer.status().as_u16(), to), (308, format!("https://{DOMAIN}:{}/page", tls.port())));
    // An app without a certificate for its host is not led to where there is none.
    machine.serves("hello-staging", "Hello, world!").await;
    // A stranger's domain gets nothing, and nobody is asked for it.
    let stranger = browser("stranger.example.net", tls);
    let refused = stranger.get(format!("https://stranger.example.net:{}/", tls.port())).send().await;
    assert!(refused.is_err(), "{refused:?}");

    let state = &authority.state;
    assert_eq!(state.orders_made.load(Ordering::SeqCst), 1, "a second order was made");
    assert_eq!(state.accounts_made.load(Ordering::SeqCst), 1);
    assert_eq!(state.certificates_made.load(Ordering::SeqCst), 1);
    assert_eq!(*state.refused.lock().expect("no holder panics"), Vec::<String>::new());
    for name in ["account.json", "www.example.com.pem", "www.example.com.json"] {
        let path = machine.path("data/router/certificates").join(name);
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let challenges = std::fs::read_dir(machine.path("data/router/challenges")).expect("a folder").count();
    assert_eq!(challenges, 0, "answers to challenges are left");
    authority.stop().await;
    machine.leave().await;
}

/// A router that serves nothing but challenges.
fn start_router(folder: &Path) -> (SocketAddr, std::thread::JoinHandle<anyhow::Result<()>>) {
    let [address] = free_addresses();
    let options = RouterOptions::new(address, folder.to_owned(), "localhost".to_owned());
    let thread = std::thread::spawn(move || landfall::router::run(options));
    (address, thread)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_ahead_of_their_end_and_failures_are_few() {
    landfall::github::install_crypto_provider();
    let folder = tempfile::tempdir().expect("a folder");
    let (address, thread) = start_router(folder.path());
    let router = Router::remote(folder.path());
    let authority = Authority::start(address);
    let state = &authority.state;
    let clock = Clock::manual(Timestamp(Clock::System.now().0));
    let settings = Settings {
        directory: authority.directory(),
        contact: None,
        domains: vec![DOMAIN.to_owned()],
        folder: folder.path().to_owned(),
    };
    let made = || (state.orders_made.load(Ordering::SeqCst), state.certificates_made.load(Ordering::SeqCst));

    // The router does not run yet, or the authority says no: tried again after a while and not before.
    state.limiting.store(true, Ordering::SeqCst);
    acme::step(&settings, &clock).await;
    state.limiting.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        clock.advance(Duration::from_secs(3600));
        acme::step(&settings, &clock).await;
    }
    assert_eq!(made(), (0, 0), "who was asked too often is left alone for hours");
    while router.ping().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clock.advance(Duration::from_secs(4 * 3600));
    acme::step(&settings, &clock).await;
    assert_eq!(made(), (1, 1), "{:?}", state.refused.lock().expect("no holder panics"));

    for _ in 0..5 {
        clock.advance(DAY * 10);
        acme::step(&settings, &clock).await;
    }
    assert_eq!(made(), (1, 1), "there is time left");
    let before = std::fs::read(folder.path().join("certificates/www.example.com.pem")).expect("a certificate");
    // The authority goes by the real time, which is behind ours by now.
    state.days.store(180, Ordering::SeqCst);
    clock.advance(DAY * 14);
    acme::step(&settings, &clock).await;
    assert_eq!(made(), (2, 2), "64 days of 90 are over: {:?}", state.refused.lock().expect("no holder panics"));
    let after = std::fs::read(folder.path().join("certificates/www.example.com.pem")).expect("a certificate");
    assert_ne!(before, after);
    assert_eq!(state.accounts_made.load(Ordering::SeqCst), 1);

    // A domain that does not lead here.
    let elsewhere = Settings { domains: vec![DOMAIN.to_owned(), "gone.example.com".to_owned()], ..settings };
    std::fs::remove_dir_all(folder.path().join("challenges")).expect("a folder");
    std::fs::write(folder.path().join("challenges"), "no folder").expect("a file");
    acme::step(&elsewhere, &clock).await;
    std::fs::remove_file(folder.path().join("challenges")).expect("a file");
    assert_eq!(made(), (2, 2), "nothing is asked for where the answer could not be given");
    router.stop().await.expect("the router ends");
    thread.join().expect("no panic").expect("no error");
    acme::step(&elsewhere, &clock).await;
    let orders = made().0;
    assert_eq!((orders, made().1), (3, 2), "the challenge of a router that is down cannot be met");
    for _ in 0..5 {
        acme::step(&elsewhere, &clock).await;
        clock.advance(Duration::from_secs(120));
    }
    assert_eq!(made().0, orders, "not before a quarter of an hour is over");
    clock.advance(Duration::from_secs(15 * 60));
    acme::step(&elsewhere, &clock).await;
    assert_eq!(made().0, orders + 1);
    authority.stop().await;
}
