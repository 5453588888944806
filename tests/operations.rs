//! Config vars, one-off processes, formation, scripts and the end of an app, with the program itself, its real
//! sandboxes and a real PostgreSQL.

use crate::support::load::Load;
use crate::support::machine::{Machine, hello, landfall_command, probe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Reads the command lines of all processes of this host, again and again, for words that must stand in none.
struct Watch {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    reader: std::thread::JoinHandle<Vec<String>>,
}

impl Watch {
    fn start(words: &[&str]) -> Watch {
        let (over, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let (ended, counted) = (over.clone(), rounds.clone());
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if words.iter().any(|word| line.contains(word)) {
                        seen.push(line);
                    }
                }
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
            seen
        });
        Watch { over, rounds, reader }
    }

    fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let rounds = self.rounds.load(Ordering::SeqCst);
        assert!(rounds > 10, "only {rounds} looks");
        self.reader.join().expect("the watch does not panic")
    }
}

fn spawn(machine: &Machine, arguments: &[&str]) -> Child {
    let mut command = landfall_command();
    command.arg("--config").arg(machine.config()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("landfall starts")
}

/// What `landfall` says that is given something to read.
fn told(machine: &Machine, arguments: &[&str], input: &str) -> String {
    let mut child = spawn(machine, arguments);
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn environment(machine: &Machine, app: &str) -> anyhow::Result<Value> {
    let seen: Value = serde_json::from_str(&machine.visit(app, "/probe").await?.body)?;
    Ok(seen["environment"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_var_is_set_by_an_argument_or_from_standard_input_and_stands_in_no_list_of_processes() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let said = machine.says(&["config", "set", "hello-staging", "GREETED=Ada Lovelace"]).await;
    assert!(said.contains("changed GREETED; a new release is on its way to hello-staging"), "{said}");
    machine.serves("hello-staging", "Hello, Ada Lovelace!").await;

    let (secret, other) = ("only-by-standard-input-7d1c", "also-only-by-lines-93ab");
    let watch = Watch::start(&[secret, other]);
    let said = told(&machine, &["config", "set", "hello-staging", "TOKEN"], &format!("{secret}\n"));
    assert!(said.contains("changed TOKEN"), "{said}");
    let said =
        told(&machine, &["config", "set", "hello-staging", "-"], &format!("# lines\nFIRST='{other}'\nSECOND=2\n"));
    assert!(said.contains("changed FIRST, SECOND"), "{said}");
    let arrived = async || {
        let environment = environment(&machine, "hello-staging").await?;
        anyhow::ensure!(environment["SECOND"] == "2", "{environment}");
        Ok(environment)
    };
    let environment = machine.expect("the app to run with its new vars", arrived).await;
    assert_eq!((&environment["TOKEN"], &environment["FIRST"]), (&json!(secret), &json!(other)));
    assert_eq!(environment["GREETED"], "Ada Lovelace");
    let release = machine.says(&["run", "hello-staging", "printf %s \"$TOKEN\" | wc -c"]).await;
    assert_eq!(release.trim(), secret.len().to_string(), "a one-off process has them too");
    assert_eq!(watch.end(), Vec::<String>::new(), "a value stood on a command line");

    let listed = machine.says(&["config", "list", "hello-staging"]).await;
    assert!(listed.contains("TOKEN") && !listed.contains(secret) && !listed.contains("Ada"), "{listed}");
    assert_eq!(machine.says(&["config", "get", "hello-staging", "TOKEN"]).await, format!("{secret}\n"));
    for file in ["serve.log", "sim.log"] {
        let log = std::fs::read_to_string(machine.path(file)).expect("a log");
        assert!(!log.contains(secret) && !log.contains(other), "{file} has a value");
    }
    let said = machine.says(&["config", "unset", "hello-staging", "GREETED"]).await;
    assert!(said.contains("changed GREETED"), "{said}");
    machine.serves("hello-staging", "Hello, world!").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_off_process_gives_its_streams_and_its_end_to_whoever_asked_for_it() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &hello()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let script = "echo said; echo 'went wrong' >&2; cat page.py | head -n 1 >/dev/null; exit 7";
    let output = machine.landfall(&["run", "hello-staging", "--", "sh", "-c", script]).await;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), out.trim()), (Some(7), "said"), "{error}");
    assert!(error.lines().any(|line| line == "went wrong"), "{error}");
    let output = machine.landfall(&["run", "hello-staging", "kill -9 $$"]).await;
    assert_eq!(output.status.code(), Some(137), "as a shell says it");
    let output = machine.landfall(&["run", "hello-staging", "--time-limit", "1", "--", "sleep", "60"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("took longer than it may"), "{error}");

    // Ctrl-C ends it over there, and it may say goodbye.
    let loop_on = "trap 'echo goodbye; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let mut child = spawn(&machine, &["run", "hello-staging", loop_on]);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    let ended = tokio::task::spawn_blocking(move || {
        let mut first = String::new();
        lines.read_line(&mut first).expect("it prints");
        kill(pid, Signal::SIGINT).expect("Ctrl-C");
        let mut rest = String::new();
        lines.read_to_string(&mut rest).expect("it prints");
        (first, rest, child.wait().expect("it ends").code())
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("Ctrl-C ends it").expect("no panic");
    assert_eq!(ended, ("begun\n".to_owned(), "goodbye\n".to_owned(), Some(5)));
    let none = async || {
        let left = machine.says(&["ps", "hello-staging"]).await;
        anyhow::ensure!(!left.contains("run."), "{left}");
        Ok(())
    };
    machine.expect("no one-off process to be left", none).await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_up_and_down_under_load_fails_no_request() {
    let machine = Machine::start().await;
    machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let load = Load::start(machine.router, machine.host("hello-staging"));
    let serving = async |wanted: usize| {
        let look = async || {
            let processes = machine.says(&["ps", "hello-staging"]).await;
            let count = processes.lines().filter(|line| line.contains("web.") && line.contains("serving")).count();
            let all = processes.lines().filter(|line| line.contains("web.")).count();
            anyhow::ensure!((count, all) == (wanted, wanted), "{processes}");
            Ok(())
        };
        machine.expect(&format!("{wanted} to serve"), look).await;
    };
    serving(1).await;
    let said = machine.says(&["scale", "hello-staging", "web=3:standard-1x"]).await;
    assert!(said.contains("web") && said.contains('3'), "{said}");
    serving(3).await;
    let all_asked = async || {
        let boots = load.so_far().boots.len();
        anyhow::ensure!(boots >= 3, "{boots} processes answered");
        Ok(())
    };
    machine.expect("each of the three to answer", all_asked).await;
    machine.says(&["scale", "hello-staging", "web=1"]).await;
    serving(1).await;
    let before = load.so_far().answered;
    let goes_on = async || {
        anyhow::ensure!(load.so_far().answered > before + 50);
        Ok(())
    };
    machine.expect("visitors to be answered by the one that is left", goes_on).await;
    let tally = load.end().await;
    assert_eq!(tally.failed, Vec::<String>::new(), "of {}", tally.answered);
    assert!(tally.posted > 20);
    let refused = machine.landfall(&["scale", "hello-staging", "web=100000"]).await;
    assert_eq!(refused.status.code(), Some(1));
    machine.leave().await;
}

fn visits(manifest: &Value) -> BTreeMap<String, String> {
    BTreeMap::from([
        (
            "Procfile".to_owned(),
            "release: $(ls -d /usr/lib/postgresql/*/bin/psql | tail -n 1) \"$DATABASE_URL\" -qc 'CREATE TABLE IF NOT \
             EXISTS visits (id serial)'\nweb: python3 server.py\n"
                .to_owned(),
        ),
        ("app.json".to_owned(), manifest.to_string()),
        ("server.py".to_owned(), include_str!("support/visits/server.py").to_owned()),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn postdeploy_fills_the_database_of_a_review_app_and_pr_predestroy_still_reads_it() {
    let machine = Machine::start().await;
    let psql = "psql=$(ls -d /usr/lib/postgresql/*/bin/psql | tail -n 1);";
    let manifest = json!({
        "addons": ["heroku-postgresql:mini"],
        "scripts": {
            "postdeploy": format!("{psql} $psql \"$DATABASE_URL\" -qc \"CREATE TABLE seeds AS SELECT 'planted' AS note\""),
            "pr-predestroy": format!(
                "{psql} found=$($psql \"$DATABASE_URL\" -Atqc 'SELECT note FROM seeds'); echo \"found $found\"; \
                 test \"$found\" != planted || exit 42"
            ),
        },
    });
    let repository = machine.make_repository("visits", &visits(&manifest)).await;
    machine.serves("visits-staging", "visits: 1").await;
    let seeds = "/sql?q=SELECT%20note%20FROM%20seeds";
    let said = machine.visit("visits-staging", seeds).await.expect("it answers").body;
    assert!(said.contains("does not exist"), "scripts are for review apps: {said}");
    let note = BTreeMap::from([("note.txt".to_owned(), "one".to_owned())]);
    machine.push(&repository, "one", &note, "Add a note").await;
    let pull = machine.open_pull(&repository, "one", "Add a note").await;
    machine.serves("visits-pr-1", "visits: 1").await;
    // The app answers while its `postdeploy` still runs.
    let planted = async |how: &str| {
        let look = async || {
            let said = machine.visit("visits-pr-1", seeds).await?.body;
            anyhow::ensure!(said == "planted", "{said}");
            Ok(())
        };
        machine.expect(how, look).await;
    };
    planted("the seeds after its first deploy").await;
    // A second deploy does not run it again: that would fail, since its table is there.
    let sha = machine.push(&repository, "one", &BTreeMap::from([("note.txt".into(), "two".into())]), "Another").await;
    let newer = async || {
        let environment: Value = serde_json::from_str(&machine.visit("visits-pr-1", "/env").await?.body)?;
        anyhow::ensure!(environment["HEROKU_SLUG_COMMIT"] == sha, "{environment}");
        Ok(())
    };
    machine.expect("the second deploy to serve", newer).await;
    planted("the seeds after its second deploy").await;
    let path = format!("/repos/{repository}/pulls/{pull}");
    machine.github(Method::PATCH, &path, Some(json!({ "state": "closed" }))).await;
    let comment = machine.comment_says(&repository, pull, "Its `pr-predestroy` script ended with status 42").await;
    assert!(comment.contains("found planted"), "{comment}");
    let gone = async || {
        let doctor = machine.api("/api/v1/doctor").await?;
        anyhow::ensure!(!doctor["addons"].to_string().contains("visits-pr-1"), "{doctor}");
        anyhow::ensure!(doctor["leftovers"] == json!([]), "{doctor}");
        Ok(())
    };
    machine.expect("its database to go with it", gone).await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_app_takes_its_add_ons_along_and_comes_back_only_when_it_is_asked_for() {
    let machine = Machine::start().await;
    let manifest = json!({ "addons": ["heroku-postgresql:mini", "heroku-redis:mini"] });
    let repository = machine.make_repository("visits", &visits(&manifest)).await;
    machine.serves("visits-staging", "visits: 1, hits: :1").await;
    let note = |text: &str| BTreeMap::from([("note.txt".to_owned(), text.to_owned())]);
    machine.push(&repository, "one", &note("one"), "Add a note").await;
    let pull = machine.open_pull(&repository, "one", "Add a note").await;
    machine.serves("visits-pr-1", "visits: 1, hits: :1").await;

    let output = machine.landfall(&["destroy", "visits-staging"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("--confirm visits-staging"), "{error}");
    let output = machine.landfall(&["destroy", "visits-staging", "--confirm", "visits-pr-1"]).await;
    assert_eq!(output.status.code(), Some(1));
    machine.serves("visits-staging", "visits: 2, hits: :2").await;

    for app in ["visits-staging", "visits-pr-1"] {
        let said = machine.says(&["destroy", app, "--confirm", app]).await;
        assert!(said.contains(&format!("{app} is being taken away")), "{said}");
    }
    let gone = async || {
        let doctor = machine.api("/api/v1/doctor").await?;
        anyhow::ensure!(doctor["addons"] == json!([]) && doctor["leftovers"] == json!([]), "{doctor}");
        let apps = machine.api("/api/v1/apps").await?;
        anyhow::ensure!(apps["apps"] == json!([]), "{apps}");
        let servers = machine.processes("addons.");
        anyhow::ensure!(servers.is_empty(), "{servers:#?}");
        Ok(())
    };
    machine.expect("both to go, and with the last add-on its server", gone).await;
    machine.comment_says(&repository, pull, "destroyed it: write `/deploy` to have it back").await;
    let audit = machine.says(&["audit"]).await;
    assert_eq!(audit.lines().filter(|line| line.contains("destroy")).count(), 2, "{audit}");

    // A push to the pull request leaves it parked; a push to the branch makes staging anew, with a fresh database.
    machine.push(&repository, "one", &note("two"), "Another").await;
    machine.push(&repository, "main", &note("main"), "On main").await;
    machine.serves("visits-staging", "visits: 1, hits: :1").await;
    machine.github_is_idle().await;
    let apps = machine.says(&["apps"]).await;
    assert!(!apps.contains("visits-pr-1"), "{apps}");
    let path = format!("/repos/{repository}/issues/{pull}/comments");
    machine.github(Method::POST, &path, Some(json!({ "body": "/deploy" }))).await;
    machine.serves("visits-pr-1", "visits: 1, hits: :1").await;
    machine.leave().await;
}
