//! How the nodes of a run come to be, in the program itself with real sandboxes: `scripts.test-setup` is done once for all
//! of them where that is the same, and on each where it is not; and who gets the next free slot.

use crate::support::machine::{Machine, OWNER, hello};
use anyhow::ensure;
use reqwest::Method;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// The sample app whose tests are `test` on three nodes, after `setup`.
fn app(setup: &str, test: &str, settings: &str) -> BTreeMap<String, String> {
    let mut files = hello();
    let environment =
        json!({ "scripts": { "test-setup": setup, "test": test }, "formation": { "test": { "quantity": 3 } } });
    files.insert("app.json".to_owned(), json!({ "environments": { "test": environment } }).to_string());
    files.insert(".github/landfall.toml".to_owned(), format!("[tests]\nsplit = false\n{settings}\n"));
    files
}

async fn logs(machine: &Machine, run: u64) -> Vec<String> {
    let mut logs = Vec::new();
    for node in 0..3 {
        logs.push(machine.says(&["ci", "logs", &run.to_string(), "--node", &node.to_string()]).await);
    }
    logs
}

/// What the lines that begin with `made ` say.
fn made(logs: &[String]) -> BTreeSet<String> {
    let words =
        logs.iter().flat_map(|log| log.lines()).filter_map(|line| line.split_once("made ").map(|(_, made)| made));
    words.map(|word| word.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn test_setup_is_done_once_for_all_nodes_and_for_later_runs() {
    let machine = Machine::start().await;
    let setup =
        "echo the token is $TOKEN; rm Procfile; date +%s%N > made; mkdir deep; ln -s ../made deep/link; echo set up";
    let test = "test ! -e Procfile && echo made $(cat deep/link) && test ! -e mine && touch mine";
    let repository = machine.make_repository("hello", &app(setup, test, "")).await;
    let run = machine.verdict(1).await;
    assert_eq!((&run["verdict"]["kind"], &run["setup"]["kind"]), (&json!("passed"), &json!("kept")), "{run:#}");
    let first = logs(&machine, 1).await;
    for log in &first {
        assert!(log.contains("-----> test-setup (kept)") && log.contains("set up"), "{log}");
    }
    let once = made(&first);
    assert_eq!(once.len(), 1, "{once:?}");

    machine.says(&["ci", "rerun", "1"]).await;
    let run = machine.verdict(2).await;
    assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
    assert_eq!(made(&logs(&machine, 2).await), once, "the same code was prepared before");
    let answer = machine.client.get(format!("http://{}/runs/2", machine.server)).send().await.expect("an answer");
    assert!(answer.text().await.expect("a page").contains("done once, and shared by all nodes"));

    // Another value that the script sees is another input, and no log shows it.
    machine.says(&["config", "set", "--repository", &repository, "--stage", "test", "TOKEN=s3cr3t-t0k3n"]).await;
    machine.says(&["ci", "rerun", "1"]).await;
    assert_eq!(machine.verdict(3).await["verdict"]["kind"], "passed");
    let third = logs(&machine, 3).await;
    let other = made(&third);
    assert!(other.len() == 1 && other != once, "{other:?}");
    assert!(third.iter().all(|log| log.contains("the token is [hidden]") && !log.contains("s3cr3t")), "{third:#?}");
    machine.is_well("builds").await;

    // Other code is prepared anew; where nobody may, each node does it.
    machine.push(&repository, "main", &app(setup, test, "keep_setup = false"), "Keep nothing").await;
    let run = machine.verdict(4).await;
    assert_eq!((&run["verdict"]["kind"], &run["setup"]["why"]), (&json!("passed"), &json!("off")), "{run:#}");
    assert_eq!(made(&logs(&machine, 4).await).len(), 3);
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_that_leaves_more_than_files_runs_on_each_node() {
    let machine = Machine::start().await;
    let sleeps = "for look in $(seq 500); do grep -l sleep /proc/[0-9]*/comm && exit 0; done; exit 1";
    let pipe = "mkfifo pipe";
    let forged = "mkfifo /landfall/kept/a.tar.zst; ln -s /etc/passwd /landfall/kept/b.tar.zst; mkfifo pipe";
    let cases = [
        ("(setsid sleep 1000 > /dev/null 2>&1 &)", sleeps, "left_processes"),
        ("sleep 1000 & echo started", sleeps, "left_processes"),
        ("echo there > /tmp/there", "cat /tmp/there", "left_files"),
        (pipe, "test -p pipe", "not_a_slug"),
        (forged, "test -p pipe", "not_a_slug"),
        ("git init -q .", "test -d .git", "not_a_slug"),
        ("mkdir -m 700 own", "test $(stat -c %a own) = 700", "not_a_slug"),
    ];
    let mut repository = String::new();
    for (number, (setup, test, why)) in cases.into_iter().enumerate() {
        let files = app(setup, test, "");
        if number == 0 {
            repository = machine.make_repository("hello", &files).await;
        } else {
            machine.push(&repository, "main", &files, "Another way").await;
        }
        let number = number as u64 + 1;
        let run = machine.verdict(number).await;
        assert_eq!(
            (&run["verdict"]["kind"], &run["setup"]["why"]),
            (&json!("passed"), &json!(why)),
            "{setup}: {run:#}"
        );
        let log = machine.says(&["ci", "logs", &number.to_string(), "--node", "2"]).await;
        assert!(log.contains("-----> test-setup") && !log.contains("(kept)"), "{log}");
    }
    // One that fails is told where everybody looks, and another run tries it again.
    let head = machine.push(&repository, "main", &app("echo no such fixture; exit 3", "true", ""), "Break it").await;
    let number = cases.len() as u64 + 1;
    let run = machine.verdict(number).await;
    assert_eq!((&run["verdict"]["kind"], &run["setup"]["why"]), (&json!("errored"), &json!("failed")), "{run:#}");
    let look = async || {
        let path = format!("/repos/{repository}/commits/{head}/check-runs");
        let checks = machine.github(Method::GET, &path, None).await;
        let summary = checks["check_runs"][0]["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(summary.contains("no such fixture"), "{checks:#}");
        Ok(())
    };
    machine.expect("the check to say what failed", look).await;
    machine.is_well("builds").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_ends_with_the_last_run_that_waits_for_it_and_outlives_the_control_plane() {
    let mut machine = Machine::start().await;
    let repository = machine.make_repository("hello", &app("echo it begins; sleep 500", "true", "")).await;
    let log_of = async |machine: &Machine, run: u64, word: &str| {
        let look = async || {
            let output = machine.landfall(&["ci", "logs", &run.to_string(), "--node", "0"]).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(text.contains(word), "{text}");
            Ok(())
        };
        machine.expect("the log of what all nodes wait for", look).await;
    };
    log_of(&machine, 1, "it begins").await;
    assert_eq!(machine.api("/api/v1/runs/1").await.expect("a run")["setup"]["kind"], "making");
    let setup = "echo it begins; sleep 4; date +%s%N > made";
    machine.push(&repository, "main", &app(setup, "echo made $(cat made)", ""), "Do not sleep").await;
    assert_eq!(machine.verdict(1).await["verdict"]["kind"], "cancelled");
    let look = async || {
        let left = machine.processes("sleep 500");
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    };
    machine.expect("nothing of the older run to be left", look).await;
    log_of(&machine, 2, "it begins").await;
    machine.kill_serve();
    machine.serve().await;
    let run = machine.verdict(2).await;
    assert_eq!((&run["verdict"]["kind"], &run["setup"]["kind"]), (&json!("passed"), &json!("kept")), "{run:#}");
    assert_eq!(made(&logs(&machine, 2).await).len(), 1);
    machine.is_well("builds").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_need_the_same_at_the_same_time_wait_for_one_preparation() {
    let machine = Machine::start().await;
    let files = app("sleep 2; date +%s%N > made", "echo made $(cat made)", "reuse = false");
    let repository = machine.make_repository("hello", &files).await;
    let first = made_by(&machine, 1).await;
    let change = BTreeMap::from([("notes.txt".to_owned(), "the same on both branches".to_owned())]);
    machine.push(&repository, "twin", &change, "Note").await;
    machine.open_pull(&repository, "twin", "Note").await;
    machine.push(&repository, "main", &change, "The same, so another commit of the same tree").await;
    let both = [made_by(&machine, 2).await, made_by(&machine, 3).await];
    assert_eq!(both[0], both[1]);
    assert_ne!(both[0], first);
    machine.is_well("builds").await;
    machine.leave().await;
}

/// What a run's nodes started from, which is the same for all.
async fn made_by(machine: &Machine, number: u64) -> String {
    let run = machine.verdict(number).await;
    assert_eq!((&run["verdict"]["kind"], &run["setup"]["kind"]), (&json!("passed"), &json!("kept")), "{run:#}");
    let made = made(&logs(machine, number).await);
    assert_eq!(made.len(), 1, "{made:?}");
    made.into_iter().next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_and_the_merge_queue_get_slots_before_pull_requests() {
    let machine = Machine::with("[tests]\nslots = 1").await;
    let tested = |slow: &str| {
        let mut files =
            app("true", "echo made $(date +%s%N); test $CI_NODE_INDEX != 0 || sleep $(cat slow)", "keep_setup = false");
        files.insert("slow".to_owned(), slow.to_owned());
        files
    };
    let repository = machine.make_repository("hello", &tested("0")).await;
    assert_eq!(machine.verdict(1).await["verdict"]["kind"], "passed");
    machine.push(&repository, "change", &tested("8"), "Take time").await;
    machine.open_pull(&repository, "change", "Take time").await;
    let look = async || {
        ensure!(machine.api("/api/v1/runs/2").await?["lanes"][0]["state"] == "running", "it does not run yet");
        Ok(())
    };
    machine.expect("the first pull request to have the slot", look).await;
    // What comes while that one runs: another pull request, its merge group, and a push to the default branch.
    machine.push(&repository, "other", &tested("0.1"), "Be quick").await;
    let other = machine.open_pull(&repository, "other", "Be quick").await;
    let wish = json!({ "repo": repository, "number": other, "user": OWNER });
    machine.github(Method::POST, "/_/merge-group", Some(wish)).await;
    machine.push(&repository, "main", &tested("0.2"), "Go on").await;
    let mut times = BTreeMap::new();
    for number in 2..=5 {
        let run = machine.verdict(number).await;
        assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
        let begun: BTreeSet<u64> =
            made(&logs(&machine, number).await).iter().map(|time| time.parse().unwrap()).collect();
        assert_eq!(begun.len(), 3, "{begun:?}");
        let whose = match (run["pull"].as_u64(), run["branch"].as_str()) {
            (Some(pull), _) if pull == other => "the second pull request",
            (Some(_), _) => "the first pull request",
            (None, Some("main")) => "the default branch",
            (None, _) => "the merge queue",
        };
        times.insert(whose, begun);
    }
    assert_eq!(times.len(), 4, "{times:?}");
    for first in ["the default branch", "the merge queue"] {
        let done = times[first].last();
        // The one node that ran already is not taken from it.
        assert!(done < times["the first pull request"].iter().nth(1), "{first}: {times:?}");
        assert!(done < times["the second pull request"].first(), "{first}: {times:?}");
    }
    machine.is_well("builds").await;
    machine.leave().await;
}
