//! The program itself on this machine: what a kill leaves, what a visitor notices, what a hostile app sees, and what the
//! command line says.

use crate::support::load::Load;
use crate::support::machine::{Machine, OPERATORS_SECRET, OWNER, SECRET, eventually, greeting, hello, probe};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_app_survives_the_control_plane_and_is_adopted_again() {
    let mut machine = Machine::start().await;
    let repository = machine.make_repository("hello", &probe()).await;
    let before = machine.serves("hello-staging", "Hello, world!").await;
    let supervisors = machine.processes(" dyno ");
    assert_eq!(supervisors.len(), 1, "{supervisors:#?}");
    let router = machine.processes(" router");
    assert_eq!(router.len(), 1, "{router:#?}");

    machine.kill_serve();
    for _ in 0..20 {
        let seen = machine.visit("hello-staging", "/").await.expect("the router answers");
        assert_eq!((seen.status, &seen.boot), (200, &before.boot));
    }
    // Nobody hears of this pull request.
    machine.push(&repository, "warmer", &greeting("Welcome"), "Greet more warmly").await;
    let pull = machine.open_pull(&repository, "warmer", "Greet more warmly").await;
    machine.github_is_idle().await;

    machine.serve().await;
    machine.serves("hello-pr-1", "Welcome, world!").await;
    machine.comment_says(&repository, pull, "✅ [http://hello-pr-1.localhost").await;
    let asked_again = async || {
        let answer = machine.api("/api/v1/deliveries?limit=200").await?;
        let deliveries = answer["deliveries"].as_array().expect("a list");
        let opened = deliveries.iter().find(|one| one["event"] == "pull_request" && one["action"] == "opened");
        anyhow::ensure!(opened.is_some_and(|one| one["state"]["kind"] != "queued"), "{deliveries:#?}");
        Ok(())
    };
    machine.expect("the delivery to be sent again", asked_again).await;

    let after = machine.visit("hello-staging", "/").await.expect("the router answers");
    assert_eq!(after.boot, before.boot, "the app was started anew");
    let now = machine.processes(" dyno ");
    for (line, pids) in &supervisors {
        assert_eq!(now.get(line), Some(pids), "its supervisor was not adopted");
    }
    assert_eq!(machine.processes(" router"), router, "the router was started anew");
    let processes = machine.api("/api/v1/apps/hello-staging/processes").await.expect("the API answers");
    let [process] = processes["processes"].as_array().expect("a list").as_slice() else { panic!("{processes}") };
    assert_eq!(
        (&process["name"], &process["state"], &process["attempt"]),
        (&json!("web.1"), &json!("running"), &json!(1))
    );
    let releases = machine.api("/api/v1/apps/hello-staging/releases").await.expect("the API answers");
    assert_eq!(releases["releases"].as_array().map(Vec::len), Some(1), "{releases}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_control_plane_and_deploying_lose_no_request() {
    let mut machine = Machine::start().await;
    let repository = machine.make_repository("hello", &probe()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let more = async |load: &Load, requests: usize| {
        let enough = load.so_far().answered + requests;
        let look = async || {
            let answered = load.so_far().answered;
            anyhow::ensure!(answered >= enough, "{answered} requests were answered");
            Ok(())
        };
        eventually(look).await.expect("the visitors go on");
    };

    // Who looks must be able to see: nobody is there, and an app dies with requests in flight.
    let load = Load::start(machine.router, machine.host("nobody-there"));
    let look = async || {
        anyhow::ensure!(load.so_far().failed.len() > 50, "it sees nothing");
        Ok(())
    };
    eventually(look).await.expect("failures are seen");
    let tally = load.end().await;
    assert_eq!(tally.answered, 0);
    assert!(tally.failed[0].contains("404"), "{}", tally.failed[0]);

    let load = Load::start(machine.router, machine.host("hello-staging"));
    more(&load, 200).await;
    machine.kill_serve();
    more(&load, 200).await;
    machine.serve().await;
    more(&load, 100).await;

    machine.push(&repository, "main", &greeting("Welcome"), "Greet more warmly").await;
    let building = async || {
        let app = machine.api("/api/v1/apps/hello-staging").await?;
        anyhow::ensure!(app["newest"]["number"] == 2 && app["newest"]["phase"] != "waiting", "{app}");
        Ok(())
    };
    machine.expect("the deploy to begin", building).await;
    machine.kill_serve();
    more(&load, 100).await;
    machine.serve().await;
    let switched = machine.serves("hello-staging", "Welcome, world!").await;
    machine.kill_serve();
    more(&load, 100).await;
    machine.serve().await;
    let old_ones_gone = async || {
        let processes = machine.processes(" dyno ");
        anyhow::ensure!(processes.len() == 1, "{processes:#?}");
        Ok(())
    };
    machine.expect("the old process to end", old_ones_gone).await;
    more(&load, 200).await;
    let so_far = load.so_far();
    assert_eq!(so_far.failed, Vec::<String>::new(), "of {} requests", so_far.answered);
    assert!(so_far.answered > 900 && so_far.posted > 250, "{} requests, {} POSTs", so_far.answered, so_far.posted);
    assert!(so_far.boots.contains(&switched.boot) && so_far.boots.len() == 2, "{:?}", so_far.boots);

    // The same visitors see it when the app itself dies, and then that it came back.
    let died = machine.visit("hello-staging", "/die").await.expect("the router answers");
    assert!(died.status >= 500, "{died:?}");
    let back = async || {
        let seen = machine.visit("hello-staging", "/").await?;
        anyhow::ensure!(seen.status == 200 && seen.boot != switched.boot, "{seen:?}");
        Ok(())
    };
    machine.expect("the app to be started again", back).await;
    let tally = load.end().await;
    assert!(!tally.failed.is_empty(), "an app died and no visitor noticed");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_app_sees_nothing_of_the_machine() {
    let machine = Machine::start().await;
    let mut files = probe();
    let data = machine.path("data");
    let tried = Tried {
        folders: ["/root", "/home", "/work", "/sys", "/boot", "/mnt", "/srv", "/opt"]
            .into_iter()
            .map(str::to_owned)
            .chain([data.display().to_string(), machine.path("").display().to_string()])
            .collect(),
        files: ["/etc/shadow", "/etc/machine-id", "/proc/kcore", "/proc/1/root/etc/shadow"]
            .into_iter()
            .map(str::to_owned)
            .chain(
                [machine.config(), machine.path("key.pem"), data.join("secret.key")]
                    .map(|path| path.display().to_string()),
            )
            .collect(),
        writes: [
            "/usr/x",
            "/usr/bin/python3",
            "/etc/x",
            "/x",
            "/proc/sys/kernel/core_pattern",
            "/var/x",
            "/dev/x",
            "/app/x",
            "/tmp/x",
        ]
        .map(str::to_owned)
        .to_vec(),
        ports: vec![machine.server.port(), machine.router.port(), machine.github.port()],
    };
    // The release phase and the tests look as well, and print what they see.
    let look = format!(
        "import json, probe\nprint('SEEN ' + json.dumps(probe.look({}, {}, {}, {:?})))\n",
        json!(tried.folders),
        json!(tried.files),
        json!(tried.writes),
        tried.ports
    );
    files.insert("release.py".to_owned(), look.clone());
    let tests = files["tests/run.py"].replace("import page\n", &format!("import page\n{look}"));
    files.insert("tests/run.py".to_owned(), tests);
    machine.make_repository("hello", &files).await;
    machine.serves("hello-staging", "Hello, world!").await;

    let answer = machine.visit("hello-staging", &tried.path()).await.expect("the router answers");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let web: Value = serde_json::from_str(&answer.body).expect("JSON");
    tried.judge("web", &web, &data.to_string_lossy());

    let log = machine.says(&["logs", "hello-staging", "-n", "500"]).await;
    let release = seen_in(&log).unwrap_or_else(|| panic!("the release phase printed nothing:\n{log}"));
    tried.judge("release phase", &release, &data.to_string_lossy());
    let log = machine.says(&["ci", "show", "1", "--node", "0"]).await;
    let test = seen_in(&log).unwrap_or_else(|| panic!("the tests printed nothing:\n{log}"));
    tried.judge("tests", &test, &data.to_string_lossy());
    assert_eq!(web["environment"]["SESSION_SECRET"], release["environment"]["SESSION_SECRET"]);
    assert_ne!(web["environment"]["SESSION_SECRET"], Value::Null);
    assert_ne!(
        web["environment"]["SESSION_SECRET"], test["environment"]["SESSION_SECRET"],
        "tests see an app's secret"
    );
    machine.leave().await;
}

/// What a hostile process tries.
struct Tried {
    folders: Vec<String>,
    files: Vec<String>,
    writes: Vec<String>,
    ports: Vec<u16>,
}

impl Tried {
    fn path(&self) -> String {
        let mut query: Vec<String> = Vec::new();
        for (name, values) in [("folder", &self.folders), ("file", &self.files), ("write", &self.writes)] {
            query.extend(values.iter().map(|value| format!("{name}={value}")));
        }
        query.extend(self.ports.iter().map(|port| format!("port={port}")));
        format!("/probe?{}", query.join("&"))
    }

    fn judge(&self, who: &str, seen: &Value, data: &str) {
        let map = |name: &str| -> BTreeMap<String, String> {
            serde_json::from_value(seen[name].clone()).unwrap_or_else(|error| panic!("{who}: {name}: {error}"))
        };
        let environment: BTreeSet<String> = map("environment").into_keys().collect();
        let allowed = [
            "PATH",
            "HOME",
            "LANG",
            "PWD",
            "OLDPWD",
            "SHLVL",
            "_",
            "PORT",
            "DYNO",
            "GREETED",
            "SESSION_SECRET",
            "CI",
            "CI_NODE_INDEX",
            "CI_NODE_TOTAL",
            "PYTHONUNBUFFERED",
            "PYTHONHOME",
            "PYTHONPATH",
            "PYTHONDONTWRITEBYTECODE",
            "LC_CTYPE",
            "VIRTUAL_ENV",
            // The address of the app itself.
            "LANDFALL_URL",
        ];
        let strange: Vec<&String> = environment
            .iter()
            .filter(|name| !allowed.contains(&name.as_str()) && !name.starts_with("HEROKU_"))
            .collect();
        assert!(strange.is_empty(), "{who}: its environment holds {strange:?}");
        let everything = seen.to_string();
        for secret in [OPERATORS_SECRET, SECRET, "LANDFALL_GITHUB", "PRIVATE KEY"] {
            assert!(!everything.contains(secret), "{who} sees {secret:?}: {everything}");
        }
        let root: BTreeSet<String> = serde_json::from_value(seen["root"].clone()).expect("names");
        let walls: BTreeSet<String> =
            ["app", "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr", "var"]
                .map(str::to_owned)
                .into();
        let strange: Vec<&String> = root.difference(&walls).collect();
        assert!(strange.is_empty(), "{who}: / holds {strange:?}");
        let processes = map("processes");
        assert!(processes.len() <= 6, "{who} sees {processes:#?}");
        for line in processes.values().chain(map("environments").values()) {
            assert!(!line.contains(data) && !line.contains("landfall-test-"), "{who} sees {line}");
        }
        assert_eq!(seen["ids"], json!([10001, 10001, 10001, 10001]), "{who}");
        assert_eq!(seen["capabilities"], json!(["0000000000000000"]), "{who}");
        for (name, found) in map("folders").into_iter().chain(map("files")) {
            let refused = ["ENOENT", "EACCES", "EPERM"].contains(&found.as_str());
            assert!(refused, "{who} could read {name}: {found}");
        }
        for (path, found) in map("writes") {
            let own = path.starts_with("/tmp/") || path.starts_with("/app/") || path.starts_with("/var/tmp");
            let refused = ["EROFS", "EACCES", "EPERM", "ENOENT", "ETXTBSY"].contains(&found.as_str());
            assert!(if own { found == "yes" } else { refused }, "{who} wrote {path}: {found}");
        }
        for (port, found) in map("ports") {
            assert!(["ECONNREFUSED", "ENETUNREACH"].contains(&found.as_str()), "{who} reached port {port}: {found}");
        }
        for descriptor in serde_json::from_value::<Vec<String>>(seen["descriptors"].clone()).expect("names") {
            assert!(!descriptor.contains(data) || descriptor.ends_with(".log"), "{who} holds {descriptor}");
        }
    }
}

fn seen_in(log: &str) -> Option<Value> {
    let line = log.lines().find_map(|line| line.split_once("SEEN ").map(|(_, seen)| seen))?;
    serde_json::from_str(line).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_phase_that_takes_too_much_memory_is_ended_and_named() {
    let machine = Machine::with("[apps]\nmemory_mb = 128\ngrace_seconds = 5\ndrain_seconds = 5").await;
    let repository = machine.make_repository("hello", &hello()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    let mut files = greeting("Welcome");
    let hog = "hoard = []\nwhile True:\n    hoard.append(bytearray(8 << 20))\n";
    files.insert("release.py".to_owned(), hog.to_owned());
    machine.push(&repository, "greedy", &files, "Migrate greedily").await;
    let pull = machine.open_pull(&repository, "greedy", "Migrate greedily").await;
    machine.comment_says(&repository, pull, "The release phase used more memory than it may and was ended").await;
    let seen = machine.visit("hello-pr-1", "/").await.expect("the router answers");
    assert_eq!(seen.status, 503, "nothing of it may serve: {}", seen.body);
    machine.serves("hello-staging", "Hello, world!").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_ended_at_its_limit_and_the_pull_request_says_so() {
    let machine = Machine::with("[build]\nminutes = 0").await;
    let repository =
        machine.make_repository("hello", &BTreeMap::from([("README.md".to_owned(), "Empty".to_owned())])).await;
    machine.push(&repository, "endless", &hello(), "Build for ever").await;
    let pull = machine.open_pull(&repository, "endless", "Build for ever").await;
    machine.comment_says(&repository, pull, "The build took longer than it may and was ended.").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_so() {
    let mut machine = Machine::start().await;
    let first = machine.says(&["apps"]).await;
    assert_eq!(first.trim(), "no apps yet: they come with the first delivery from GitHub");
    let repository = machine.make_repository("hello", &hello()).await;
    machine.serves("hello-staging", "Hello, world!").await;
    machine.push(&repository, "warmer", &greeting("Welcome"), "Greet more warmly").await;
    let pull = machine.open_pull(&repository, "warmer", "Greet more warmly").await;
    machine.serves("hello-pr-1", "Welcome, world!").await;
    machine.comment_says(&repository, pull, "passed").await;

    let apps = machine.says(&["apps"]).await;
    let row = |text: &str, name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.split_whitespace().any(|word| word == name));
        let line = line.unwrap_or_else(|| panic!("{name} is not listed:\n{text}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row(&apps, "hello-staging")[..4], ["hello-staging", "staging", "live", "v1"]);
    assert_eq!(row(&apps, "hello-pr-1")[..4], ["hello-pr-1", "review", "live", "v1"]);
    assert!(apps.contains(&format!("http://hello-pr-1.localhost:{}/", machine.router.port())), "{apps}");
    let processes = machine.says(&["ps", "hello-staging"]).await;
    assert_eq!(row(&processes, "web.1")[..4], ["hello-staging", "web.1", "running", "v1"]);
    assert!(processes.contains("serving") && processes.contains("python3 server.py"), "{processes}");
    let pipelines = machine.says(&["pipelines"]).await;
    assert_eq!(row(&pipelines, &repository)[..2], [repository.clone(), "1".to_owned()]);
    let runs = machine.says(&["ci", "list"]).await;
    assert_eq!(row(&runs, "warmer")[..3], ["2", "succeeded", repository.as_str()]);
    let run = machine.says(&["ci", "show", "2"]).await;
    assert!(run.contains("run 2 of olivia/hello (warmer): succeeded") && run.contains("4 passed"), "{run}");
    let log = machine.says(&["ci", "show", "2", "--node", "0"]).await;
    assert!(log.contains("ok 1 - greets by name"), "{log}");

    // A visitor's request shows in the log, with the router's own line.
    machine.visit("hello-staging", "/").await.expect("the router answers");
    let look = async || {
        let logs = machine.says(&["logs", "hello-staging"]).await;
        anyhow::ensure!(
            logs.contains("app[web.1]: GET / 200") && logs.contains("app[release.1]: nothing to migrate"),
            "{logs}"
        );
        Ok(())
    };
    machine.expect("the log to show a request", look).await;

    let promoted = machine.says(&["promote"]).await;
    assert!(promoted.contains("on its way to hello-production"), "{promoted}");
    machine.serves("hello-production", "Hello, world!").await;
    machine.push(&repository, "main", &greeting("Good day"), "Greet formally").await;
    machine.serves("hello-staging", "Good day, world!").await;
    let releases = machine.says(&["releases", "hello-staging"]).await;
    assert_eq!(row(&releases, "v2")[..2], ["v2", "live"]);
    let back = machine.says(&["rollback", "hello-staging", "v1"]).await;
    assert!(back.contains("on its way to hello-staging"), "{back}");
    machine.serves("hello-staging", "Hello, world!").await;
    let look = async || {
        let releases = machine.says(&["releases", "hello-staging"]).await;
        let row = row(&releases, "v3");
        anyhow::ensure!(row[1] == "live" && releases.contains("rolled back to v1"), "{releases}");
        Ok(())
    };
    machine.expect("the rollback to be listed", look).await;
    let restarted = machine.says(&["restart", "hello-production"]).await;
    assert_eq!(restarted.trim(), "restarting web.1 of hello-production");

    machine.github_is_idle().await;
    let deliveries = machine.says(&["deliveries", "-n", "200"]).await;
    assert!(deliveries.contains("pull_request.opened") && deliveries.contains("applied"), "{deliveries}");
    let listed: Value = serde_json::from_str(&machine.says(&["deliveries", "--json"]).await).expect("JSON");
    let id = listed["deliveries"][0]["id"].as_str().expect("an id").to_owned();
    let one = machine.says(&["deliveries", &id]).await;
    assert!(one.contains("\"repository\""), "{one}");
    assert_eq!(machine.says(&["replay"]).await.trim(), "nothing is parked");
    let well = async || {
        let output = machine.landfall(&["doctor"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success() && text.ends_with("all is well\n"), "{text}");
        Ok(())
    };
    machine.expect("the doctor to find all well", well).await;

    for (arguments, expected) in [
        (vec!["ps", "nobody"], "There is no app called nobody."),
        (vec!["releases", "nobody"], "There is no app called nobody."),
        (vec!["ci", "show", "99"], "There is no test run 99."),
        (vec!["deliveries", "no-such-one"], "There is no delivery no-such-one."),
        (vec!["rollback", "hello-production"], "There is no such release to go back to."),
    ] {
        let output = machine.landfall(&arguments).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), error.trim()),
            (Some(1), format!("landfall: {expected}").as_str()),
            "{arguments:?}"
        );
    }
    assert_eq!(machine.landfall(&["no-such-command"]).await.status.code(), Some(2));

    // With the control plane dead, whoever asks is told; what runs can be ended all the same.
    machine.kill_serve();
    let output = machine.landfall(&["apps"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("no landfall serve answers"), "{error}");
    assert!(machine.processes(" dyno ").len() >= 3);
    let down = machine.says(&["down"]).await;
    assert!(down.contains("and the router; nothing of"), "{down}");
    assert_eq!(machine.processes(" dyno "), BTreeMap::new());
    assert_eq!(machine.processes(" router"), BTreeMap::new());
    // What was wanted is wanted still: everything comes back with the control plane.
    machine.serve().await;
    machine.serves("hello-production", "Hello, world!").await;
    machine.serves("hello-pr-1", "Welcome, world!").await;
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_on_the_same_folder_is_refused() {
    let machine = Machine::start().await;
    let output = machine.landfall(&["serve"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{error}");
    assert!(error.to_lowercase().contains("use") || error.to_lowercase().contains("lock"), "{error}");
    let path = format!("/repos/{OWNER}/hello");
    assert!(machine.client.get(format!("http://{}{path}", machine.github)).send().await.is_ok());
    machine.github(Method::GET, "/_/idle", None).await;
    tokio::time::timeout(Duration::from_secs(5), machine.api("/api/v1/apps"))
        .await
        .expect("in time")
        .expect("it answers");
    machine.leave().await;
}
