//! Runs whose files are dealt to their nodes, in the program itself with real sandboxes: who dies or misbehaves, every
//! file counts once, and the verdict says what happened.

use crate::support::machine::{Machine, hello};
use anyhow::ensure;
use reqwest::Method;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// The sample app with `[tests]` and these test files.
fn suite(settings: &str, tests: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut files = hello();
    files.insert("runner.py".to_owned(), include_str!("support/suite/runner.py").to_owned());
    let section = format!(
        "[tests]\nfiles = \"suite/test_*.py\"\ncommand = \"python3 runner.py {{junit}} {{files}}\"\n{settings}\n"
    );
    files.insert(".github/landfall.toml".to_owned(), section);
    for (name, code) in tests {
        files.insert(format!("suite/{name}.py"), (*code).to_owned());
    }
    files
}

const SLEEPS: &str = "import time\ndef test_sleeps():\n    time.sleep(0.3)\ndef test_adds():\n    assert 1 + 1 == 2\n";

fn sleepers(number: usize) -> Vec<(String, String)> {
    (0..number).map(|at| (format!("test_{at:02}"), SLEEPS.to_owned())).collect()
}

fn borrowed(tests: &[(String, String)]) -> Vec<(&str, &str)> {
    tests.iter().map(|(name, code)| (name.as_str(), code.as_str())).collect()
}

/// Files that the nodes of a run say they ran, with how often.
async fn ran(machine: &Machine, run: u64, nodes: u16) -> BTreeMap<String, usize> {
    let mut ran = BTreeMap::new();
    for node in 0..nodes {
        let output = machine.landfall(&["ci", "show", &run.to_string(), "--node", &node.to_string()]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            if let Some((_, path)) = line.split_once("ran suite/") {
                *ran.entry(path.trim().to_owned()).or_default() += 1;
            }
        }
    }
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_dealt_to_two_nodes_and_each_counts_once() {
    let machine = Machine::start().await;
    let repository = machine.make_repository("hello", &suite("nodes = 2", &borrowed(&sleepers(9)))).await;
    let run = machine.verdict(1).await;
    assert_eq!((&run["verdict"]["kind"], &run["nodes"]), (&"passed".into(), &2.into()), "{run:#}");
    assert_eq!((&run["counts"]["passed"], &run["counts"]["failed"]), (&18.into(), &0.into()), "{run:#}");
    let split = &run["split"];
    assert_eq!((&split["planned"], &split["passed"], &split["red"]), (&9.into(), &9.into(), &0.into()), "{split:#}");
    let ran = ran(&machine, 1, 2).await;
    assert_eq!((ran.len(), ran.values().copied().max()), (9, Some(1)), "{ran:#?}");
    for lane in run["lanes"].as_array().expect("a list") {
        assert!(lane["counts"]["passed"].as_u64() > Some(0), "a node did nothing: {lane:#}");
    }
    // The check of the commit tells how it went: each node's bar, the gain, how near the best, and what took longest.
    let main = machine.api("/api/v1/runs/1").await.expect("a run")["commit"].as_str().expect("a commit").to_owned();
    let told = async || {
        let path = format!("/repos/{repository}/commits/{main}/check-runs");
        let checks = machine.github(Method::GET, &path, None).await;
        let summary = checks["check_runs"][0]["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(checks["check_runs"][0]["conclusion"] == "success", "{checks:#}");
        Ok(summary)
    };
    let summary = machine.expect("the check to be told", told).await;
    for words in ["9 of 9 files passed", "times as fast as one alone", "times the least possible", "### Slowest files"]
    {
        assert!(summary.contains(words), "{words}: {summary}");
    }
    for node in 0..2 {
        let row = summary.lines().find(|line| line.starts_with(&format!("| {node} | passed |"))).unwrap_or_default();
        assert!(row.contains('█'), "no bar of node {node}: {summary}");
    }
    assert!(machine.says(&["ci", "show", "1"]).await.contains("times the least possible"));

    // It was learned how long each takes: the next run is told, and a failure of one file is found and named.
    let broken = "def test_breaks():\n    value = 41\n    assert value == 42, 'the answer is wrong'\n";
    let files = BTreeMap::from([("suite/test_03.py".to_owned(), broken.to_owned())]);
    let head = machine.push(&repository, "broken", &files, "Break one").await;
    machine.open_pull(&repository, "broken", "Break one").await;
    let run = machine.verdict(2).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    assert_eq!(run["split"]["red_files"], json!([{ "path": "suite/test_03.py", "why": "failed", "on_base": false }]));
    let look = async || {
        let path = format!("/repos/{repository}/commits/{head}/check-runs");
        let checks = machine.github(Method::GET, &path, None).await;
        let check = &checks["check_runs"][0];
        ensure!(check["conclusion"] == "failure", "{checks:#}");
        let summary = check["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(summary.contains("the answer is wrong") && summary.contains("suite/test_03.py"), "{summary}");
        ensure!(check["output"]["annotations_count"] == 1, "{check:#}");
        Ok(())
    };
    machine.expect("the check to name the failure", look).await;
    let shown = machine.says(&["ci", "show", "2"]).await;
    assert!(shown.contains("suite/test_03.py") && shown.contains("8 of 9 files"), "{shown}");

    // A person does again what the node did that saw it fail: the same files in the same order.
    let order = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once("ran suite/")).map(|(_, path)| path.trim().to_owned()).collect()
    };
    let log = async |node: u16| machine.says(&["ci", "show", "2", "--node", &node.to_string()]).await;
    let node = if order(&log(0).await).contains(&"test_03.py".to_owned()) { 0 } else { 1 };
    let output = machine.landfall(&["ci", "repro", "2", "--node", &node.to_string()]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(order(&said), order(&log(node).await), "{said}");
    assert!(said.contains("test_03.py failed"), "{said}");

    // Only what failed is run again, when somebody asks for that; it still fails.
    let again = json!({ "body": "/retest failed" });
    machine.github(Method::POST, &format!("/repos/{repository}/issues/1/comments"), Some(again)).await;
    let run = machine.verdict(4).await;
    assert_eq!((&run["split"]["planned"], &run["split"]["red"]), (&1.into(), &1.into()), "{run:#}");
    assert_eq!((&run["nodes"], &run["verdict"]["kind"]), (&1.into(), &"failed".into()), "{run:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dealing_run_goes_on_through_deaths_of_the_control_plane_and_of_a_node() {
    let mut machine = Machine::start().await;
    let slow = "import time\ndef test_sleeps():\n    time.sleep(1.5)\n";
    let tests: Vec<(String, String)> = (0..8).map(|at| (format!("test_{at}"), slow.to_owned())).collect();
    machine.make_repository("hello", &suite("nodes = 2", &borrowed(&tests))).await;
    let node_runs = async || {
        ensure!(!machine.processes("runner.py").is_empty(), "no test runs yet");
        Ok(())
    };
    machine.expect("a node to work", node_runs).await;
    machine.kill_serve();
    // Nodes go on with what they hold, and wait with what they have to tell.
    let before = machine.processes(" dyno ");
    assert!(!before.is_empty());
    machine.serve().await;
    let look = async || {
        let nodes: Vec<i32> = supervisors_of_nodes(&machine);
        ensure!(nodes.len() == 2, "{nodes:?}");
        Ok(nodes)
    };
    let nodes = machine.expect("both nodes to run", look).await;
    kill(nodes[0]);
    let run = machine.verdict(1).await;
    assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
    assert_eq!((&run["split"]["planned"], &run["split"]["passed"]), (&8.into(), &8.into()), "{run:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

fn supervisors_of_nodes(machine: &Machine) -> Vec<i32> {
    let all = machine.processes(" dyno ");
    let nodes = all.into_iter().filter(|(line, _)| line.contains("run-") && line.contains(".test."));
    nodes.flat_map(|(_, pids)| pids).collect()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_misbehave_are_found_and_named_and_the_others_pass() {
    let machine = Machine::with("[tests]\nmemory_mb = 256\nminutes = 5").await;
    let greedy = "def test_hoards():\n    hoard = []\n    while True:\n        hoard.append(bytearray(16 << 20))\n";
    let bomb = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nfor _ in range(4):\n    try:\n        \
                os.fork()\n    except OSError:\n        pass\nos.setsid() if os.getpid() != os.getpgid(0) else None\n\
                def test_waits():\n    time.sleep(600)\n";
    let leaves = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        time.sleep(1)\n\
                  def test_leaves_something():\n    assert True\n";
    let flaky = "import os\ndef test_is_flaky():\n    seen = os.path.exists('/tmp/seen')\n    open('/tmp/seen', 'w').close()\n    \
                 assert seen, 'not yet'\n";
    let held = "def test_held():\n    assert False, 'known'\n";
    let vanishes = "import os\ndef test_vanishes():\n    os._exit(0)\n";
    let tests = [
        ("test_bomb", bomb),
        ("test_fine", SLEEPS),
        ("test_flaky", flaky),
        ("test_greedy", greedy),
        ("test_held", held),
        ("test_leaves", leaves),
        ("test_vanishes", vanishes),
    ];
    let settings = "nodes = 1\nretries = 2\ntimeout = \"4s\"\nquarantine = [\"test_held\"]";
    machine.make_repository("hello", &suite(settings, &tests)).await;
    let run = machine.verdict(1).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let split = &run["split"];
    let red: BTreeSet<(String, String)> = split["red_files"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|file| (file["path"].to_string(), file["why"].to_string()))
        .collect();
    let wanted = [("bomb", "timed_out"), ("greedy", "crashed"), ("vanishes", "missing")];
    let wanted: BTreeSet<(String, String)> =
        wanted.map(|(name, why)| (format!("\"suite/test_{name}.py\""), format!("\"{why}\""))).into();
    assert_eq!(red, wanted, "{run:#}");
    assert_eq!(split["flaky_files"], json!(["suite/test_flaky.py"]), "{split:#}");
    assert_eq!(split["quarantined"], json!(["test_held"]), "{split:#}");
    assert_eq!((&split["planned"], &split["passed"], &split["red"]), (&7.into(), &4.into(), &3.into()), "{split:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_that_cannot_be_dealt_are_refused_with_a_sentence() {
    let machine = Machine::start().await;
    let mut files = suite("", &[]);
    let repository = machine.make_repository("hello", &files).await;
    let said = async |run: u64, kind: &str, sentence: &str| {
        let run = machine.verdict(run).await;
        assert_eq!(run["verdict"]["failure"]["kind"], kind, "{run:#}");
        let shown = machine.says(&["ci", "show", &run["number"].to_string()]).await;
        assert!(shown.contains(sentence), "{shown}");
    };
    said(1, "no_test_files", "matches nothing (suite/test_*.py)").await;
    files.insert(".github/landfall.toml".to_owned(), "[tests]\nfiles = 'tests/*.py'\n".to_owned());
    machine.push(&repository, "main", &files, "No command").await;
    said(2, "no_test_command", "not how they are run").await;
    let command = "[tests]\nfiles = 'tests/*.py'\ncommand = 'python3 {files}'\n";
    files.insert(".github/landfall.toml".to_owned(), command.to_owned());
    machine.push(&repository, "main", &files, "No results").await;
    said(3, "no_test_results", "leaves no results").await;
    machine.is_well("ci").await;
    machine.leave().await;
}

/// How often nodes were given a batch so far, by what the control plane wrote.
fn batches_dealt(machine: &Machine) -> usize {
    let log = std::fs::read_to_string(machine.path("serve.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains("got a batch of")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dealt_run_is_right_however_often_the_control_plane_dies_and_with_a_node_that_hangs() {
    let mut machine = Machine::start().await;
    let tests: Vec<(String, String)> = (0..12)
        .map(|at| (format!("test_{at:02}"), "import time\ndef test_sleeps():\n    time.sleep(0.7)\n".to_owned()))
        .collect();
    machine.make_repository("hello", &suite("nodes = 2", &borrowed(&tests))).await;
    let mut dealt = 0;
    for _ in 0..4 {
        let more = async || {
            let now = batches_dealt(&machine);
            let over = machine.api("/api/v1/runs/1").await.is_ok_and(|run| !run["verdict"].is_null());
            ensure!(now > dealt || over, "no further batch was dealt");
            Ok(now)
        };
        dealt = machine.expect("another batch to be dealt", more).await;
        machine.kill_serve();
        machine.serve().await;
        dealt = dealt.min(batches_dealt(&machine));
    }
    // A node that says nothing any more: what it holds goes to the other one, and it is ended at last.
    let look = async || {
        let over = !machine.api("/api/v1/runs/1").await?["verdict"].is_null();
        let nodes: Vec<i32> = processes_of_nodes(&machine);
        ensure!(over || !nodes.is_empty(), "no node is there");
        Ok(nodes.first().copied())
    };
    if let Some(pid) = machine.expect("a node to be there", look).await {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP);
    }
    let run = machine.verdict(1).await;
    assert_eq!((&run["split"]["planned"], &run["split"]["passed"]), (&12.into(), &12.into()), "{run:#}");
    assert_eq!(run["split"]["red"], 0, "{run:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

fn processes_of_nodes(machine: &Machine) -> Vec<i32> {
    machine.processes("landfall node --socket").into_values().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suite_that_prints_without_end_keeps_head_and_tail_and_its_verdict() {
    let machine = Machine::start().await;
    let loud = "import os\ndef test_prints():\n    os.write(1, b'the first line\\n')\n    line = b'x' * 1023 + b'\\n'\n    \
                for _ in range(192):\n        data = line * 1024\n        while data:\n            data = data[os.write(1, data):]\n    \
                os.write(1, b'the last line\\n')\n";
    machine.make_repository("hello", &suite("nodes = 1", &[("test_fine", SLEEPS), ("test_loud", loud)])).await;
    let run = machine.verdict(1).await;
    assert_eq!((&run["verdict"]["kind"], &run["split"]["passed"]), (&"passed".into(), &2.into()), "{run:#}");
    let log = machine.says(&["ci", "show", "1", "--node", "0"]).await;
    assert!(log.contains("the last line"), "{} bytes", log.len());
    // The command line shows the end; the beginning is kept as well.
    assert!(holds(&machine.path("data"), b"the first line\""), "the head of the log is gone");
    assert!(folder_bytes(&machine.path("data")) < 100 << 20, "the log filled the disk");
    machine.is_well("ci").await;
    machine.leave().await;
}

/// Whether a file below the folder holds these bytes near its beginning.
fn holds(folder: &std::path::Path, wanted: &[u8]) -> bool {
    use std::io::Read;
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds(&entry.path(), wanted),
        Ok(kind) if kind.is_file() => {
            let mut bytes = Vec::new();
            let read = std::fs::File::open(entry.path()).map(|file| file.take(64 << 10).read_to_end(&mut bytes));
            read.is_ok() && bytes.windows(wanted.len()).any(|some| some == wanted)
        }
        _ => false,
    })
}

fn folder_bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
            _ => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_s_page_shows_its_picture_what_fails_on_the_base_too_and_runs_failed_again() {
    let machine = Machine::start().await;
    let bad = "def test_breaks():\n    assert False, 'long known'\n";
    let flaky = "import os\ndef test_is_flaky():\n    seen = os.path.exists('/tmp/seen')\n    \
                 open('/tmp/seen', 'w').close()\n    assert seen, 'not yet'\n";
    let tests = [("test_bad", bad), ("test_fine", SLEEPS), ("test_flaky", flaky)];
    let files = suite("nodes = 1\nretries = 1\nreuse = false", &tests);
    let repository = machine.make_repository("hello", &files).await;
    assert_eq!(machine.verdict(1).await["verdict"]["kind"], "failed");
    let change = BTreeMap::from([("notes.txt".to_owned(), "nothing of the tests".to_owned())]);
    let head = machine.push(&repository, "change", &change, "Note").await;
    machine.open_pull(&repository, "change", "Note").await;
    let run = machine.verdict(2).await;
    let red = json!([{ "path": "suite/test_bad.py", "why": "failed", "on_base": true }]);
    assert_eq!(run["split"]["red_files"], red, "{run:#}");
    let look = async || {
        let checks = machine.github(Method::GET, &format!("/repos/{repository}/commits/{head}/check-runs"), None).await;
        let summary = checks["check_runs"][0]["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(summary.contains("fails on the default branch too"), "{summary}");
        Ok(())
    };
    machine.expect("the check to say that the base fails too", look).await;

    let page = async |path: &str| -> String {
        let answer = machine.client.get(format!("http://{}{path}", machine.server)).send().await.expect("an answer");
        answer.text().await.expect("a page")
    };
    let shown = page("/runs/2").await;
    assert!(shown.contains("<svg class=\"timeline\""), "{shown}");
    for (name, class) in [("bad", "failed"), ("fine", "passed"), ("flaky", "passed")] {
        let bar = shown.split("<rect class=\"file ").any(|bar| bar.starts_with(class) && bar.contains(name));
        assert!(bar, "no bar of test_{name} that {class}: {shown}");
    }
    assert!(shown.contains("it fails on the default branch too"), "{shown}");

    // Only what was red is run again, from the button as well.
    assert!(shown.contains("Run failed again"), "{shown}");
    let form = machine.client.post(format!("http://{}/api/v1/runs/2/rerun", machine.server)).body("failed=true");
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let form = form.header("origin", format!("http://{}", machine.server)).header("sec-fetch-site", "same-origin");
    let answer = form.send().await.expect("an answer");
    assert_eq!(answer.status(), 303, "{answer:?}");
    assert_eq!(answer.headers().get("location").expect("a page"), "/runs/3");
    let run = machine.verdict(3).await;
    assert_eq!((&run["split"]["planned"], &run["split"]["red"]), (&1.into(), &1.into()), "{run:#}");

    // The same tree once more, and it is tested once more, since `reuse` is off.
    machine
        .push(&repository, "main", &BTreeMap::from([("suite/test_bad.py".to_owned(), SLEEPS.to_owned())]), "Mend")
        .await;
    assert_eq!(machine.verdict(4).await["verdict"]["kind"], "passed");
    let back = json!([("suite/test_bad.py", bad), ("suite/test_bad.py", SLEEPS)]);
    for (at, change) in back.as_array().expect("a list").iter().enumerate() {
        let text = change[1].as_str().expect("a text").to_owned();
        machine.push(&repository, "main", &BTreeMap::from([("suite/test_bad.py".to_owned(), text)]), "Again").await;
        let run = machine.verdict(5 + at as u64).await;
        assert_eq!(run["verdict"]["kind"], if at == 0 { "failed" } else { "passed" }, "{run:#}");
        assert_eq!(run["split"]["planned"], 3, "{run:#}");
    }

    let flaky = machine.says(&["ci", "flaky", &repository]).await;
    assert!(flaky.contains("suite/test_flaky.py"), "{flaky}");
    assert!(page(&format!("/pipelines/{repository}/flaky")).await.contains("test_flaky.py"));
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suite_that_pulls_by_knapsack_pro_s_clients_is_dealt_without_a_change() {
    let machine = Machine::start().await;
    let mut files = hello();
    let manifest = |arguments: &str| {
        let script = format!("python3 knapsack_client.py{arguments}");
        let test = json!({ "formation": { "test": { "quantity": 2 } }, "scripts": { "test": script } });
        json!({ "environments": { "test": test } }).to_string()
    };
    files.insert("app.json".to_owned(), manifest(""));
    files.insert("knapsack_client.py".to_owned(), include_str!("support/suite/knapsack_client.py").to_owned());
    for (name, text) in sleepers(8) {
        files.insert(format!("suite/{name}.py"), text);
    }
    let repository = machine.make_repository("hello", &files).await;
    let run = machine.verdict(1).await;
    assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
    let once = ran(&machine, 1, 2).await;
    assert_eq!((once.len(), once.values().copied().max()), (8, Some(1)), "{once:#?}");
    // One that fails is red, and so is a queue that nobody worked through although all ended with 0.
    let broken = BTreeMap::from([("suite/test_03.py".to_owned(), "def test_no():\n    assert False\n".to_owned())]);
    machine.push(&repository, "main", &broken, "Break one").await;
    assert_eq!(machine.verdict(2).await["verdict"]["kind"], "failed");
    let left = BTreeMap::from([
        ("suite/test_03.py".to_owned(), SLEEPS.to_owned()),
        ("app.json".to_owned(), manifest(" --leave")),
    ]);
    machine.push(&repository, "main", &left, "Leave").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    assert!(run["lanes"].as_array().expect("a list").iter().all(|lane| lane["state"] == "passed"), "{run:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_kept_secrets_are_hidden_and_a_log_has_its_phases() {
    let machine = Machine::with("[tests]\nartifacts_mb = 1").await;
    let keeps = "import os, sys, time\ndef test_keeps():\n    os.makedirs('out/deep')\n    \
                 open('out/deep/a b.html', 'w').write('<script>alert(1)</script>')\n    open('out/left.tmp', 'w').write('x')\n    \
                 open('out/zz-large', 'wb').write(bytes(2 << 20))\n    os.symlink('/etc/passwd', 'out/passwd')\n    \
                 os.mkfifo('out/pipe')\n    token = os.environ.get('TOKEN', 'none')\n    \
                 os.write(1, ('the token is ' + token[:7]).encode())\n    time.sleep(0.2)\n    \
                 os.write(1, (token[7:] + '.\\n').encode())\n    assert token == 'none', 'refused ' + token\n";
    let mut files = suite("nodes = 1\nartifacts = [\"out\", \"!out/*.tmp\"]", &[("test_keeps", keeps)]);
    let setup =
        json!({ "environments": { "test": { "scripts": { "test-setup": "echo all is set up", "test": "true" } } } });
    files.insert("app.json".to_owned(), setup.to_string());
    let repository = machine.make_repository("hello", &files).await;
    assert_eq!(machine.verdict(1).await["verdict"]["kind"], "passed");
    let token = "s3cr3t-t0k3n-0f-0urs";
    let set = format!("TOKEN={token}");
    machine.says(&["config", "set", "--repository", &repository, "--stage", "test", &set]).await;
    let change = BTreeMap::from([("notes.txt".to_owned(), "nothing of the tests".to_owned())]);
    let head = machine.push(&repository, "main", &change, "Note").await;
    let run = machine.verdict(2).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");

    // What was named is there, and nothing that a link or a pattern leads to elsewhere.
    let kept = machine.api("/api/v1/runs/2/artifacts").await.expect("a list");
    let kept = kept["artifacts"].as_array().expect("a list").clone();
    let paths: Vec<&str> = kept.iter().filter_map(|one| one["path"].as_str()).collect();
    assert_eq!(paths, ["out/deep/a b.html"], "{kept:#?}");
    let address = format!("/api/v1/runs/2/artifacts/0/{}", kept[0]["id"].as_str().expect("a name"));
    let answer = machine.client.get(format!("http://{}{address}", machine.server)).send().await.expect("an answer");
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    assert_eq!(header("content-type"), "application/octet-stream");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("content-disposition"), "attachment; filename=\"a_b.html\"; filename*=UTF-8''a%20b.html");
    assert_eq!(answer.text().await.expect("a text"), "<script>alert(1)</script>");
    let page = async |path: &str| -> String {
        let answer = machine.client.get(format!("http://{}{path}", machine.server)).send().await.expect("an answer");
        answer.text().await.expect("a page")
    };
    assert!(page("/runs/2").await.contains(&address));
    let missing = machine.client.get(format!("http://{}{}", machine.server, address.replace("/0/", "/1/")));
    assert_eq!(missing.send().await.expect("an answer").status(), 404);
    assert!(machine.says(&["ci", "artifacts", "2"]).await.contains("out/deep/a b.html"));
    let folder = machine.path("saved");
    machine.says(&["ci", "artifacts", "2", "--save", folder.to_str().expect("a name")]).await;
    let saved = std::fs::read_to_string(folder.join("node-0/out/deep/a b.html")).expect("it was saved");
    assert_eq!(saved, "<script>alert(1)</script>");

    // The log has a fold for each phase, and says what was left out.
    let log = machine.says(&["ci", "logs", "2"]).await;
    for line in ["-----> test-setup", "all is set up", "-----> test", "-----> suite/test_keeps.py", "-----> artifacts"]
    {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(log.contains("\"out/zz-large\" is not kept: this node's artifacts would be larger"), "{log}");
    let folded = machine.says(&["ci", "logs", "2", "--folded"]).await;
    assert!(folded.contains("-----> test-setup") && !folded.contains("all is set up"), "{folded}");
    let shown = page("/runs/2/nodes/0").await;
    assert_eq!(shown.matches("<details class=\"phase\" open>").count(), 4, "{shown}");

    // What was set stands nowhere, although it was written in two pieces and in a message.
    assert!(log.contains("the token is [hidden]."), "{log}");
    let look = async || {
        let checks = machine.github(Method::GET, &format!("/repos/{repository}/commits/{head}/check-runs"), None).await;
        let summary = checks["check_runs"][0]["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(summary.contains("refused [hidden]"), "{summary}");
        Ok(summary)
    };
    let summary = machine.expect("the check to tell the failure", look).await;
    for text in [&summary, &log, &shown, &run.to_string()] {
        assert!(!text.contains(token), "{text}");
    }

    // A script that runs as it is keeps its files too, once what it left running is gone.
    let script =
        "mkdir out; (setsid sh -c 'while :; do date > out/clock; done' &); sleep 0.2; echo plain > out/plain; exit 3";
    let plain = json!({ "environments": { "test": { "scripts": { "test": script } } } });
    let settings = "[tests]\nsplit = false\nartifacts = 'out/plain'\n";
    let change = BTreeMap::from([
        ("app.json".to_owned(), plain.to_string()),
        (".github/landfall.toml".to_owned(), settings.to_owned()),
    ]);
    machine.push(&repository, "main", &change, "Plainly").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    assert_eq!(run["lanes"][0]["ended"]["code"], 3, "{run:#}");
    assert_eq!(run["artifacts"][0]["path"], "out/plain", "{run:#}");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_which_no_test_ran_is_red_and_says_what_to_do() {
    let machine = Machine::start().await;
    let helper = "def helps():\n    pass\n";
    let repository =
        machine.make_repository("hello", &suite("nodes = 2", &[("test_a", helper), ("test_b", helper)])).await;
    let run = machine.verdict(1).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    assert_eq!((&run["split"]["empty"], &run["split"]["red"]), (&2.into(), &0.into()), "{run:#}");
    let head = run["commit"].as_str().expect("a commit").to_owned();
    let look = async || {
        let checks = machine.github(Method::GET, &format!("/repos/{repository}/commits/{head}/check-runs"), None).await;
        let output = &checks["check_runs"][0]["output"];
        let (title, summary) = (output["title"].as_str(), output["summary"].as_str().unwrap_or_default());
        ensure!(title.is_some_and(|title| title.starts_with("No test ran on ")), "{output:#}");
        ensure!(
            summary.contains("the 2 files that were run hold none") && summary.contains("`split = false`"),
            "{output:#}"
        );
        Ok(())
    };
    machine.expect("the check to say so", look).await;
    assert!(machine.says(&["ci", "show", "1"]).await.contains("No test ran: the 2 files that were run hold none"));
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_push_ends_the_older_run_of_its_branch_with_its_processes() {
    let machine = Machine::start().await;
    let stubborn = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                    def test_waits():\n    while not os.path.exists('go'):\n        time.sleep(0.1)\n";
    let repository = machine.make_repository("hello", &suite("nodes = 2", &[("test_fine", SLEEPS)])).await;
    assert_eq!(machine.verdict(1).await["verdict"]["kind"], "passed");
    let files = BTreeMap::from([("suite/test_stubborn.py".to_owned(), stubborn.to_owned())]);
    machine.push(&repository, "change", &files, "Wait").await;
    machine.open_pull(&repository, "change", "Wait").await;
    let waits = async || {
        ensure!(machine.processes("test_stubborn.py").len() == 1, "it does not wait yet");
        Ok(())
    };
    machine.expect("a test to wait", waits).await;
    let files = BTreeMap::from([("go".to_owned(), "on".to_owned())]);
    let head = machine.push(&repository, "change", &files, "Go on").await;
    let run = machine.verdict(2).await;
    assert_eq!(run["verdict"]["kind"], "cancelled", "{run:#}");
    assert_eq!((&run["cancelled"]["kind"], &run["cancelled"]["commit"]), (&"newer".into(), &head.as_str().into()));
    // What it waits in has no `go`, so whoever still waits is of the older run.
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
    assert!(machine.processes("test_stubborn.py").is_empty(), "something of it still runs");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_in_a_test_file_is_ended_and_is_red_alone() {
    let machine = Machine::with("[tests]\nminutes = 5").await;
    let bomb = "import os\ndef test_bombs():\n    while True:\n        try:\n            os.fork()\n        \
                except OSError:\n            pass\n";
    let tests = [("test_bomb", bomb), ("test_fine", SLEEPS), ("test_fine_too", SLEEPS)];
    machine.make_repository("hello", &suite("nodes = 1\ntimeout = \"3s\"", &tests)).await;
    let run = machine.verdict(1).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let split = &run["split"];
    assert_eq!((&split["planned"], &split["passed"], &split["red"]), (&3.into(), &2.into(), &1.into()), "{run:#}");
    assert_eq!(split["red_files"][0]["path"], "suite/test_bomb.py", "{run:#}");
    assert!(machine.processes("test_bomb.py").is_empty(), "the bomb still goes on");
    machine.is_well("ci").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_a_script_that_runs_as_it_is_are_read_and_one_that_leaves_none_is_red() {
    let machine = Machine::start().await;
    let mut files = suite("", &[("test_fine", SLEEPS)]);
    let manifest = |script: &str| json!({ "environments": { "test": { "scripts": { "test": script } } } }).to_string();
    files.insert(".github/landfall.toml".to_owned(), "[tests]\nsplit = false\njunit = 'out/*.xml'\n".to_owned());
    // What lies there from before speaks for nothing.
    let stale = "<testsuite tests='1'><testcase name='old'/></testsuite>";
    files.insert("out/old.xml".to_owned(), stale.to_owned());
    files.insert("app.json".to_owned(), manifest("python3 runner.py out/a.xml suite/test_fine.py"));
    let repository = machine.make_repository("hello", &files).await;
    let run = machine.verdict(1).await;
    assert_eq!((&run["verdict"]["kind"], &run["counts"]["passed"]), (&"passed".into(), &2.into()), "{run:#}");
    let broken = "def test_breaks():\n    assert False, 'the answer is wrong'\n";
    let change = BTreeMap::from([
        ("suite/test_fine.py".to_owned(), broken.to_owned()),
        ("app.json".to_owned(), manifest("python3 runner.py out/a.xml suite/test_fine.py || true")),
    ]);
    machine.push(&repository, "main", &change, "Break it").await;
    let run = machine.verdict(2).await;
    assert_eq!((&run["verdict"]["kind"], &run["counts"]["failed"]), (&"failed".into(), &1.into()), "{run:#}");
    let failure = run["lanes"][0]["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(failure.contains("the answer is wrong"), "{run:#}");
    let change = BTreeMap::from([("app.json".to_owned(), manifest("true"))]);
    let head = machine.push(&repository, "main", &change, "Run nothing").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let look = async || {
        let checks = machine.github(Method::GET, &format!("/repos/{repository}/commits/{head}/check-runs"), None).await;
        let summary = checks["check_runs"][0]["output"]["summary"].as_str().unwrap_or_default().to_owned();
        ensure!(summary.contains("ended well and left no results that prove it"), "{summary}");
        Ok(())
    };
    machine.expect("the check to say so", look).await;
    machine.is_well("ci").await;
    machine.leave().await;
}
