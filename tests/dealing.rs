//! Runs whose files are dealt to their nodes, in the program itself with real sandboxes: who dies or misbehaves, every
//! file counts once, and the verdict says what happened.

use crate::support::machine::{Machine, hello};
use anyhow::ensure;
use reqwest::Method;
use serde_json::{Value, json};
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

async fn verdict(machine: &Machine, run: u64) -> Value {
    let look = async || {
        let answer = machine.api(&format!("/api/v1/runs/{run}")).await?;
        ensure!(!answer["verdict"].is_null(), "{answer:#}");
        Ok(answer)
    };
    machine.expect(&format!("the verdict of run {run}"), look).await
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

async fn well(machine: &Machine) {
    let look = async || {
        let output = machine.landfall(&["doctor"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{text}");
        Ok(())
    };
    machine.expect("the doctor to find all well", look).await;
    let left = std::fs::read_dir(machine.path("data/ci")).expect("the folder of nodes").count();
    assert_eq!(left, 0, "folders of nodes are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_dealt_to_two_nodes_and_each_counts_once() {
    let machine = Machine::start().await;
    let repository = machine.make_repository("hello", &suite("nodes = 2", &borrowed(&sleepers(9)))).await;
    let run = verdict(&machine, 1).await;
    assert_eq!((&run["verdict"]["kind"], &run["nodes"]), (&"passed".into(), &2.into()), "{run:#}");
    assert_eq!((&run["counts"]["passed"], &run["counts"]["failed"]), (&18.into(), &0.into()), "{run:#}");
    let split = &run["split"];
    assert_eq!((&split["planned"], &split["passed"], &split["red"]), (&9.into(), &9.into(), &0.into()), "{split:#}");
    let ran = ran(&machine, 1, 2).await;
    assert_eq!((ran.len(), ran.values().copied().max()), (9, Some(1)), "{ran:#?}");
    for lane in run["lanes"].as_array().expect("a list") {
        assert!(lane["counts"]["passed"].as_u64() > Some(0), "a node did nothing: {lane:#}");
    }
    // It was learned how long each takes: the next run is told, and a failure of one file is found and named.
    let broken = "def test_breaks():\n    value = 41\n    assert value == 42, 'the answer is wrong'\n";
    let files = BTreeMap::from([("suite/test_03.py".to_owned(), broken.to_owned())]);
    let head = machine.push(&repository, "broken", &files, "Break one").await;
    machine.open_pull(&repository, "broken", "Break one").await;
    let run = verdict(&machine, 2).await;
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
    let run = verdict(&machine, 4).await;
    assert_eq!((&run["split"]["planned"], &run["split"]["red"]), (&1.into(), &1.into()), "{run:#}");
    assert_eq!((&run["nodes"], &run["verdict"]["kind"]), (&1.into(), &"failed".into()), "{run:#}");
    well(&machine).await;
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
    let run = verdict(&machine, 1).await;
    assert_eq!(run["verdict"]["kind"], "passed", "{run:#}");
    assert_eq!((&run["split"]["planned"], &run["split"]["passed"]), (&8.into(), &8.into()), "{run:#}");
    well(&machine).await;
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
    let run = verdict(&machine, 1).await;
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
    well(&machine).await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_that_cannot_be_dealt_are_refused_with_a_sentence() {
    let machine = Machine::start().await;
    let mut files = suite("", &[]);
    let repository = machine.make_repository("hello", &files).await;
    let said = async |run: u64, kind: &str, sentence: &str| {
        let run = verdict(&machine, run).await;
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
    well(&machine).await;
    machine.leave().await;
}
