//! Steady load of every kind through everything that Landfall does to an app and to itself, with the program itself:
//! pages over kept and new connections, POSTs whose bodies must come back, bodies that come slowly, streams of events,
//! WebSockets. Not one may fail; and whoever looks must be able to see a failure.

use crate::support::load::{Load, Tally};
use crate::support::machine::{LANDFALL, Machine, eventually, greeting, landfall_command, probe};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

/// Waits until so many more requests for pages were answered.
async fn answered(load: &Load, requests: usize) {
    let before = load.so_far().answered;
    let look = async || {
        let now = load.so_far().answered;
        anyhow::ensure!(now >= before + requests, "{now} requests were answered");
        Ok(())
    };
    eventually(look).await.unwrap_or_else(|error| panic!("{error}\n{:#?}", load.so_far().failed));
}

/// Waits until the visitors have done so much more, of every kind.
async fn more(load: &Load, requests: usize) {
    let before = load.so_far();
    answered(load, requests).await;
    let look = async || {
        let now = load.so_far();
        let every =
            [now.slow_bodies > before.slow_bodies, now.streams > before.streams + 1, now.sockets > before.sockets + 1];
        anyhow::ensure!(every == [true; 3], "not every kind was served: {now:?}");
        Ok(())
    };
    eventually(look).await.unwrap_or_else(|error| panic!("{error}\n{:#?}", load.so_far().failed));
}

#[track_caller]
fn expect_no_failure(after: &str, load: &Load) {
    let Tally { answered, failed, .. } = load.so_far();
    assert_eq!(failed, Vec::<String>::new(), "after {after}, of {answered} requests");
}

/// Waits until so many web processes of an app serve, and no others are left.
async fn serving(machine: &Machine, app: &str, wanted: usize) {
    let look = async || {
        let answer = machine.api(&format!("/api/v1/apps/{app}/processes")).await?;
        let web: Vec<_> = answer["processes"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|process| process["name"].as_str().is_some_and(|name| name.starts_with("web.")))
            .collect();
        let serving =
            web.iter().filter(|one| one["target"]["state"] == "active" && one["target"]["healthy"] == true).count();
        anyhow::ensure!((serving, web.len()) == (wanted, wanted), "{answer:#}");
        Ok(())
    };
    machine.expect(&format!("{wanted} processes of {app} to serve"), look).await;
}

async fn router_process(machine: &Machine) -> u64 {
    let text = std::fs::read_to_string(machine.path("data/router/router.pid")).expect("the router wrote its number");
    text.trim().parse().expect("a number")
}

/// Sends the router that runs a signal, and says which one it was.
async fn signal_router(machine: &Machine, signal: Signal) -> u64 {
    let process = router_process(machine).await;
    let number = i32::try_from(process).expect("a process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(number), signal).expect("it runs");
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_done_under_steady_load_fails_a_request() {
    let mut machine = Machine::start().await;
    let repository = machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    machine.says(&["promote"]).await;
    machine.serves("hello-production", "Hello, world!").await;
    let staging = Load::of_every_kind(machine.router, machine.host("hello-staging"));
    let production = Load::of_every_kind(machine.router, machine.host("hello-production"));
    more(&staging, 100).await;

    machine.push(&repository, "main", &greeting("Welcome"), "Greet more warmly").await;
    machine.serves("hello-staging", "Welcome, world!").await;
    serving(&machine, "hello-staging", 1).await;
    more(&staging, 50).await;
    expect_no_failure("a deploy", &staging);

    machine.says(&["promote"]).await;
    machine.serves("hello-production", "Welcome, world!").await;
    serving(&machine, "hello-production", 1).await;
    more(&production, 50).await;
    expect_no_failure("a promotion", &production);

    machine.says(&["rollback", "hello-production"]).await;
    machine.serves("hello-production", "Hello, world!").await;
    serving(&machine, "hello-production", 1).await;
    more(&production, 50).await;
    expect_no_failure("a rollback", &production);
    let tally = production.end().await;
    assert_eq!(tally.failed, Vec::<String>::new());

    for count in [3, 2] {
        machine.says(&["scale", "hello-staging", &format!("web={count}")]).await;
        serving(&machine, "hello-staging", count).await;
        more(&staging, 50).await;
        expect_no_failure("scaling", &staging);
    }

    let boots = staging.so_far().boots;
    machine.says(&["restart", "hello-staging"]).await;
    let renewed = async || {
        let new = staging.so_far().boots.difference(&boots).count();
        anyhow::ensure!(new >= 2, "{new} new processes answered");
        Ok(())
    };
    machine.expect("both processes to be started anew", renewed).await;
    serving(&machine, "hello-staging", 2).await;
    more(&staging, 50).await;
    expect_no_failure("a restart", &staging);

    let before = router_process(&machine).await;
    machine.says(&["router", "--replace"]).await;
    assert_ne!(router_process(&machine).await, before, "the router was not replaced");
    more(&staging, 100).await;
    expect_no_failure("a restart of the router", &staging);

    machine.kill_serve();
    more(&staging, 50).await;
    // Another program: the same bytes, made at another time.
    let newer = machine.path("landfall-newer");
    // By another process: a child that another thread starts meanwhile would inherit our descriptor for writing, and what is
    // open for writing cannot be run.
    let copied = std::process::Command::new("cp").arg(LANDFALL).arg(&newer).status().expect("cp runs");
    assert!(copied.success(), "{copied}");
    machine.program = newer;
    let before = router_process(&machine).await;
    machine.serve().await;
    assert_ne!(router_process(&machine).await, before, "the router is still of the old program");
    more(&staging, 100).await;
    expect_no_failure("kill -9 of the control plane and an upgrade of all", &staging);
    let after = router_process(&machine).await;
    machine.kill_serve();
    machine.serve().await;
    assert_eq!(router_process(&machine).await, after, "nothing was new, and the router was replaced");

    let tally = staging.end().await;
    assert_eq!(tally.failed, Vec::<String>::new(), "of {}", tally.answered);
    assert!(tally.answered > 500 && tally.posted > 100, "{} requests, {} POSTs", tally.answered, tally.posted);

    // One of two processes is killed. A request that it had begun and that may not be repeated is nobody's to save.
    let visitors = Load::repeatable(machine.router, machine.host("hello-staging"));
    answered(&visitors, 100).await;
    let victim = machine.visit("hello-staging", "/").await.expect("the router answers").boot;
    // Whoever does not die of it answers.
    for _ in 0..4 {
        let seen = machine.visit("hello-staging", &format!("/die?boot={victim}")).await.expect("the router answers");
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    serving(&machine, "hello-staging", 2).await;
    answered(&visitors, 100).await;
    let tally = visitors.end().await;
    assert_eq!(tally.failed, Vec::<String>::new(), "after a crash, of {}", tally.answered);
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_notice_a_deploy_whose_drain_is_switched_off() {
    let machine = Machine::with("[apps]\ngrace_seconds = 5\ndrain_seconds = 0").await;
    let repository = machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    // Short streams may have ended before the process is told to; these go on for longer than it has then.
    let load = Load::with_long_streams(machine.router, machine.host("hello-staging"));
    answered(&load, 100).await;
    expect_no_failure("nothing at all", &load);
    machine.push(&repository, "main", &greeting("Welcome"), "Greet more warmly").await;
    machine.serves("hello-staging", "Welcome, world!").await;
    serving(&machine, "hello-staging", 1).await;
    let tally = load.end().await;
    assert!(!tally.failed.is_empty(), "streams were cut off and nobody noticed");
    machine.leave().await;
}

/// By nothing but what the router counts of real visitors.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_breaks_its_answers_off_is_gone_back_from() {
    let machine = Machine::start().await;
    let files = probe();
    let repository = machine.make_repository("hello", &files).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let load = Load::repeatable(machine.router, machine.host("hello-staging"));
    answered(&load, 300).await;
    expect_no_failure("nothing at all", &load);
    // The health check, which comes by no proxy, finds it well.
    let page = "if url.path == \"/\":\n";
    let half = format!(
        "if url.path == \"/\" and \"Via\" in self.headers:\n            self.send_response(200)\n            \
         self.send_header(\"Content-Length\", \"100\")\n            self.end_headers()\n            \
         self.wfile.write(b\"half\")\n            self.close_connection = True\n        el{page}"
    );
    let worse = files["server.py"].replacen(page, &half, 1);
    assert_ne!(worse, files["server.py"], "the probe has changed");
    machine.push(&repository, "main", &BTreeMap::from([("server.py".to_owned(), worse)]), "Answer by half").await;
    let gone_back = async || {
        let releases = machine.says(&["releases", "hello-staging"]).await;
        anyhow::ensure!(releases.contains("v3"), "{releases}");
        Ok(())
    };
    machine.expect("the release before to come back", gone_back).await;
    machine.serves("hello-staging", "Hello, world!").await;
    assert!(!load.end().await.failed.is_empty(), "the release was no worse");
    let app = machine.api("/api/v1/apps/hello-staging").await.expect("the app");
    assert!(app.to_string().contains("errors"), "{app:#}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_notice_a_router_that_ends_before_the_next_begins() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let load = Load::of_every_kind(machine.router, machine.host("hello-staging"));
    more(&load, 50).await;
    let process = signal_router(&machine, Signal::SIGKILL).await;
    let another = async || {
        anyhow::ensure!(router_process(&machine).await != process, "none has begun");
        Ok(())
    };
    machine.expect("another router", another).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let tally = load.end().await;
    assert!(!tally.failed.is_empty(), "whoever was being answered noticed nothing");
    machine.leave().await;
}

/// Who was being answered by one that is killed is cut off; whoever comes after that waits for the next router. One that is
/// told to end has another in its place before it does.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_comes_is_refused_while_a_router_is_dead_or_told_to_end() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let visitor = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(30));
    let visitor = visitor.build().expect("a client");
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let held = async || {
            anyhow::ensure!(machine.serve_listens_at(machine.router), "nobody holds the router's socket");
            Ok(())
        };
        machine.expect("the control plane to hold the router's socket", held).await;
        let process = signal_router(&machine, signal).await;
        let lives = || std::fs::read_dir(format!("/proc/{process}/fd")).is_ok_and(|open| open.count() > 0);
        while signal == Signal::SIGKILL && lives() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // One after the other, each over a connection of its own.
        let mut answered = 0;
        while answered < 200 || router_process(&machine).await == process {
            let page = visitor.get(format!("http://{}/", machine.router)).header("host", machine.host("hello-staging"));
            let answer = page.send().await.unwrap_or_else(|error| panic!("after {answered} answers: {error:?}"));
            assert_eq!(answer.status().as_u16(), 200);
            answered += 1;
        }
    }
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_under_maintenance_says_so_until_it_is_over() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &probe()).await;
    let before = machine.serves("hello-staging", "Hello, world!").await;
    let said = machine.says(&["maintenance", "on", "hello-staging"]).await;
    assert!(said.contains("maintenance page"), "{said}");
    let closed = async || {
        let seen = machine.visit("hello-staging", "/").await?;
        anyhow::ensure!(seen.status == 503 && seen.body.contains("H80"), "{seen:?}");
        Ok(())
    };
    machine.expect("the maintenance page", closed).await;
    let apps = machine.says(&["apps"]).await;
    assert!(apps.lines().any(|line| line.contains("hello-staging") && line.contains("maintenance")), "{apps}");
    let page = machine.client.get(format!("http://{}/apps/hello-staging", machine.server)).send().await;
    let page = page.expect("the page").text().await.expect("text");
    assert!(page.contains("Maintenance.") && page.contains("End maintenance"), "{page}");
    // It outlives the one who turned it on, and the processes go on.
    machine.says(&["router", "--replace"]).await;
    closed().await.expect("still closed");
    machine.says(&["maintenance", "off", "hello-staging"]).await;
    let after = machine.serves("hello-staging", "Hello, world!").await;
    assert_eq!(before.boot, after.boot);
    let audit = machine.says(&["audit"]).await;
    assert!(audit.contains("maintenance"), "{audit}");
    let refused = landfall_command().args(["maintenance", "perhaps", "hello-staging"]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(2));
    machine.leave().await;
}
