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
fn start_router(folder: &Path) -> (SocketAddr, std::thread::JoinHandle<anyhow::Result<bool>>) {
    let [address] = free_addresses();
    let options = RouterOptions::new(address, folder.to_owned(), "localhost".to_owned());
    let thread = std::thread::spawn(move || landfall::router::run(options));
    (address, thread)
}

async fn until_it_answers(router: &Router) {
    while router.ping().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Wants a certificate of the authority for the domain.
fn settings(authority: &Authority, folder: &Path) -> Settings {
    let (directory, domains) = (authority.directory(), vec![DOMAIN.to_owned()]);
    Settings { directory, contact: None, domains, folder: folder.to_owned() }
}

/// How many orders and certificates an authority has made.
fn made(authority: &Authority) -> (usize, usize) {
    let state = &authority.state;
    (state.orders_made.load(Ordering::SeqCst), state.certificates_made.load(Ordering::SeqCst))
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
    let settings = settings(&authority, folder.path());
    let made = || made(&authority);

    // The router does not run yet, or the authority says no: tried again after a while and not before.
    state.limiting.store(true, Ordering::SeqCst);
    acme::step(&settings, &clock).await;
    state.limiting.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        clock.advance(Duration::from_secs(3600));
        acme::step(&settings, &clock).await;
    }
    assert_eq!(made(), (0, 0), "who was asked too often is left alone for hours");
    until_it_answers(&router).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_asked_at_once_and_so_is_the_same_one_for_a_certificate_that_is_lost() {
    landfall::github::install_crypto_provider();
    let folder = tempfile::tempdir().expect("a folder");
    let (address, thread) = start_router(folder.path());
    let router = Router::remote(folder.path());
    until_it_answers(&router).await;
    let (staging, production) = (Authority::start(address), Authority::start(address));
    let clock = Clock::manual(Timestamp(Clock::System.now().0));
    acme::step(&settings(&staging, folder.path()), &clock).await;
    assert_eq!((made(&staging), made(&production)), ((1, 1), (0, 0)));
    let settings = settings(&production, folder.path());
    for _ in 0..2 {
        acme::step(&settings, &clock).await;
        assert_eq!((made(&staging), made(&production)), ((1, 1), (1, 1)));
    }
    let certificate = folder.path().join("certificates/www.example.com.pem");
    std::fs::remove_file(&certificate).expect("a certificate");
    acme::step(&settings, &clock).await;
    assert_eq!((made(&production), certificate.exists()), ((2, 2), true));
    router.stop().await.expect("the router ends");
    thread.join().expect("no panic").expect("no error");
    staging.stop().await;
    production.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_end_was_not_written_down_is_gone_on_with_and_given_up_without_its_key() {
    landfall::github::install_crypto_provider();
    for lost in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let (address, thread) = start_router(folder.path());
        let router = Router::remote(folder.path());
        until_it_answers(&router).await;
        let authority = Authority::start(address);
        let clock = Clock::manual(Timestamp(Clock::System.now().0));
        let settings = settings(&authority, folder.path());
        authority.state.holding.store(true, Ordering::SeqCst);
        let under_way = tokio::spawn({
            let (settings, clock) = (settings.clone(), clock.clone());
            async move { acme::step(&settings, &clock).await }
        });
        while authority.state.in_processing() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // From here on nothing more is written down of how far it is, as if all had been killed.
        let in_the_way = folder.path().join("certificates/.www.example.com.json");
        std::fs::create_dir(&in_the_way).expect("a folder");
        authority.state.holding.store(false, Ordering::SeqCst);
        under_way.await.expect("no panic");
        std::fs::remove_dir(&in_the_way).expect("a folder");
        let certificate = folder.path().join("certificates/www.example.com.pem");
        let before = std::fs::read(&certificate).expect("a certificate");
        let key = folder.path().join("certificates/www.example.com.key.new");
        if lost {
            std::fs::remove_file(&key).expect("the key is kept for as long as the order is");
            acme::step(&settings, &clock).await;
            assert_eq!(made(&authority), (1, 1), "failures are not followed by another order at once");
            clock.advance(Duration::from_secs(15 * 60));
        }
        acme::step(&settings, &clock).await;
        assert_eq!(made(&authority), if lost { (2, 2) } else { (1, 1) });
        assert_eq!(std::fs::read(&certificate).expect("a certificate") != before, lost);
        let progress = std::fs::read_to_string(folder.path().join("certificates/www.example.com.json"));
        assert!(progress.expect("it is there").contains(r#""order": null"#), "it is over");
        assert!(!key.exists(), "the key stands in the certificate's file");
        router.stop().await.expect("the router ends");
        thread.join().expect("no panic").expect("no error");
        authority.stop().await;
    }
}
