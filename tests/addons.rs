//! Add-ons: real servers, real sandboxes, a real kill. What an app is given is its own, works from inside its walls, and
//! goes with it.

use crate::support::machine::Machine;
use crate::support::servers::{Partner, Postgres, Redis};
use crate::support::town::{OWNER, Pull, Settled, Town};
use landfall::config::Config;
use landfall::domain::Secret;
use landfall::outside::Outside;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

fn visits(addons: &str) -> BTreeMap<String, String> {
    let migrate = "psql=$(ls -d /usr/lib/postgresql/*/bin/psql | tail -n 1); \
                   $psql \"$DATABASE_URL\" -qc 'CREATE TABLE IF NOT EXISTS visits (id serial)'";
    BTreeMap::from([
        ("Procfile".to_owned(), format!("release: {migrate}\nweb: python3 server.py\n")),
        ("app.json".to_owned(), format!("{{\"addons\": {addons}}}")),
        ("server.py".to_owned(), include_str!("support/visits/server.py").to_owned()),
    ])
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What an app answers to a question that it passes on.
async fn asked(machine: &Machine, app: &str, path: &str) -> String {
    machine.visit(app, path).await.expect("the app answers").body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_app_has_a_database_and_a_cache_of_its_own_until_it_is_closed() {
    let mut machine = Machine::start().await;
    let files = visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#);
    let repository = machine.make_repository("visits", &files).await;
    machine.serves("visits-staging", "visits: 1, hits: :1").await;
    let note = BTreeMap::from([("note.txt".to_owned(), "one".to_owned())]);
    machine.push(&repository, "one", &note, "Add a note").await;
    let pull = machine.open_pull(&repository, "one", "Add a note").await;
    machine.serves("visits-pr-1", "visits: 1, hits: :1").await;
    machine.serves("visits-pr-1", "visits: 2, hits: :2").await;

    // Nobody gets into a neighbour's database, not even with its name.
    let of = async |app: &str| {
        let environment: serde_json::Value = serde_json::from_str(&asked(&machine, app, "/env").await).expect("JSON");
        environment["DATABASE_URL"].as_str().expect("a database").to_owned()
    };
    let (ours, theirs) = (of("visits-pr-1").await, of("visits-staging").await);
    assert_ne!(ours, theirs);
    assert!(ours.contains("@127.0.0.1:5432/"), "{ours}");
    let name = |url: &str| url.rsplit('/').next().expect("a name").to_owned();
    // The role has the database's name too, so only what stands last is another.
    let login = ours.strip_suffix(&name(&ours)).expect("it ends with its name");
    for database in [name(&theirs).as_str(), "postgres", "template1"] {
        let url = format!("{login}{database}");
        let path = format!("/sql?q={}&url={}", encoded("SELECT 1"), encoded(&url));
        let said = asked(&machine, "visits-pr-1", &path).await;
        assert!(said.contains("permission denied for database"), "{url}: {said}");
    }
    for statement in ["CREATE ROLE intruder", "CREATE DATABASE more", "COPY (SELECT 1) TO PROGRAM 'id'"] {
        let said = asked(&machine, "visits-pr-1", &format!("/sql?q={}", encoded(statement))).await;
        let refused = said.contains("permission denied") || said.contains("must be superuser");
        assert!(said.starts_with("error:") && refused, "{statement}: {said}");
    }
    for order in ["CONFIG SET dir /tmp", "MODULE LIST", "SHUTDOWN", "ACL LIST"] {
        let said = asked(&machine, "visits-pr-1", &format!("/redis?q={}", encoded(order))).await;
        assert!(said.starts_with("-NOPERM"), "{order}: {said}");
    }

    // Neither the control plane's death nor the server's takes anything away.
    machine.kill_serve();
    machine.serves("visits-pr-1", "visits: 3, hits: :3").await;
    machine.serve().await;
    let postgres = machine.processes("addons.postgres");
    assert_eq!(postgres.len(), 1, "{postgres:#?}");
    for pid in postgres.values().flatten() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).expect("kill it");
    }
    let comes_back = async || {
        let said = asked(&machine, "visits-pr-1", &format!("/sql?q={}", encoded("SELECT count(*) FROM visits"))).await;
        anyhow::ensure!(said == "3", "it says {said}");
        Ok(())
    };
    machine.expect("the server to be started again with its data", comes_back).await;

    let doctor = machine.api("/api/v1/doctor").await.expect("the API answers");
    assert_eq!(doctor["leftovers"], json!([]), "{doctor}");
    let lines = doctor["addons"].as_array().expect("a list");
    let mut owners: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {} {}", line["owner"], line["plan"], line["state"]).replace('"', ""))
        .collect();
    owners.sort();
    let expected = ["visits-pr-1", "visits-staging"].iter().flat_map(|app| {
        ["heroku-postgresql:mini", "heroku-redis:mini"].map(|plan| format!("{app} {plan} provisioned"))
    });
    assert_eq!(owners, expected.collect::<Vec<_>>());
    assert!(machine.says(&["doctor"]).await.contains("heroku-postgresql:mini"), "the command line lists them");

    let path = format!("/repos/{repository}/pulls/{pull}");
    machine.github(reqwest::Method::PATCH, &path, Some(json!({ "state": "closed" }))).await;
    let gone = async || {
        let doctor = machine.api("/api/v1/doctor").await?;
        let left = doctor["addons"].to_string();
        anyhow::ensure!(!left.contains("visits-pr-1"), "{left}");
        anyhow::ensure!(doctor["leftovers"] == json!([]), "{doctor}");
        Ok(())
    };
    machine.expect("its add-ons to go with it", gone).await;
    let names =
        asked(&machine, "visits-staging", &format!("/sql?q={}", encoded("SELECT datname FROM pg_database"))).await;
    assert!(names.contains(&name(&theirs)) && !names.contains(&name(&ours)), "{names}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_add_on_fails_the_deploy_with_a_sentence() {
    let machine = Machine::start().await;
    let repository = machine.make_repository("visits", &visits(r#"["acme-search:small"]"#)).await;
    let note = BTreeMap::from([("note.txt".to_owned(), "one".to_owned())]);
    machine.push(&repository, "one", &note, "Add a note").await;
    let pull = machine.open_pull(&repository, "one", "Add a note").await;
    let said = machine.comment_says(&repository, pull, "acme-search:small").await;
    assert!(said.contains("no provider named acme-search is known here"), "{said}");
    machine.leave().await;
}

/// Names the stand-in provider of `acme` to the operator's configuration.
fn declare(config: &mut Config, url: &str) {
    let declared = landfall::config::PartnerAddons {
        base_url: url.to_owned(),
        username: "acme".to_owned(),
        password: Secret::new("pw"),
        region: "here".to_owned(),
    };
    config.addons.partner.insert("acme".to_owned(), declared);
}

async fn push(town: &Town, repository: &str, branch: &str, addons: &str, page: &str) -> String {
    let files = json!({
        "Procfile": "web: serve\nrelease: migrate\n",
        "app.json": format!(r#"{{"addons": {addons}}}"#),
        "page.txt": page,
    });
    town.push_files(repository, branch, files).await
}

/// A town whose apps get their databases from this server.
async fn town_with(postgres: &Postgres, outside: Option<Arc<Outside>>) -> Town {
    let url = postgres.url();
    Town::start_with(outside, move |config: &mut Config| config.addons.postgres.url = Some(Secret::new(url.clone())))
        .await
}

/// Opens, looks at and closes a pull request with a database, with a kill at the `n`-th crossing (0: none).
async fn play(n: u64) -> (Vec<String>, Vec<&'static str>) {
    let postgres = Postgres::start().await;
    let outside = Outside::stopping_at(n);
    let mut town = town_with(&postgres, Some(outside.clone())).await;
    let addons = r#"["heroku-postgresql:mini"]"#;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", addons, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    settle_through_a_kill(&mut town, &outside).await;
    let mut seen = Vec::new();
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let made = postgres.made().await;
    assert_eq!(made.len(), 2, "one database and one role: {made:?}");
    let spec =
        town.memory.history().into_iter().rev().find(|spec| spec.name == "web.1" && spec.labels["app"] == "hello-pr-1");
    let url = spec.expect("it was started").environment["DATABASE_URL"].clone();
    let (login, name) = url.trim_start_matches("postgres://").rsplit_once('/').expect("a name");
    let (user, password) = login.split('@').next().and_then(|login| login.split_once(':')).expect("a login");
    let app = postgres.connect(user, password, name).await.expect("the app gets in");
    app.batch_execute("CREATE TABLE t (x int); INSERT INTO t VALUES (1)").await.expect("the app owns its database");
    seen.push(format!("the app writes; {} things", made.len()));
    town.close(&pull).await;
    settle_through_a_kill(&mut town, &outside).await;
    seen.push(format!("{:?}", postgres.made().await));
    town.leave().await;
    (seen, outside.names())
}

async fn settle_through_a_kill(town: &mut Town, outside: &Arc<Outside>) {
    if town.settle().await == Settled::Stopped {
        town.kill().await;
        town.boot(None).await;
        landfall::reconcile::resync(town.world()).await.expect("GitHub can be asked");
        assert_eq!(town.settle().await, Settled::Quiet);
    }
    assert!(outside.crossed() > 0);
}

#[actix_web::test]
async fn a_kill_at_any_step_of_an_add_on_leaves_one_database_and_then_none() {
    let (expected, names) = play(0).await;
    assert_eq!(expected, ["the app writes; 2 things", "[]"]);
    for needed in ["postgres role", "postgres database", "postgres walls", "postgres open", "postgres drop database"] {
        assert!(names.contains(&needed), "{needed} is not crossed: {names:?}");
    }
    let mine: Vec<u64> = (1..)
        .zip(&names)
        .filter(|(_, name)| name.starts_with("postgres ") || name.starts_with("addon "))
        .map(|(number, _)| number)
        .collect();
    for chunk in mine.chunks(4) {
        let rounds = chunk.iter().map(|n| async move { (*n, play(*n).await.0) });
        for (n, seen) in futures_util::future::join_all(rounds).await {
            assert_eq!(seen, expected, "killed at {n}, {}", names[usize::try_from(n).expect("small") - 1]);
        }
    }
}

#[actix_web::test]
async fn a_review_app_begins_with_a_copy_of_the_template() {
    let postgres = Postgres::start().await;
    let operator = postgres.operator("postgres").await;
    operator.batch_execute("CREATE DATABASE scrubbed").await.expect("a template");
    let template = postgres.operator("scrubbed").await;
    template
        .batch_execute(
            "CREATE SCHEMA shop; CREATE TYPE shop.colour AS ENUM ('red'); CREATE TABLE shop.items (id serial PRIMARY KEY, \
             colour shop.colour); INSERT INTO shop.items (colour) VALUES ('red'); CREATE VIEW shop.red AS SELECT * FROM \
             shop.items; CREATE FUNCTION shop.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )
        .await
        .expect("data");
    drop(template);
    let url = postgres.url();
    let town = Town::start_with(None, move |config: &mut Config| {
        config.addons.postgres.url = Some(Secret::new(url.clone()));
        config.addons.postgres.template = Some("scrubbed".to_owned());
    })
    .await;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", r#"["heroku-postgresql"]"#, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let (user, password, name) = database_of(&town, "hello-pr-1");
    let app = postgres.connect(&user, &password, &name).await.expect("the app gets in");
    app.batch_execute(
        "INSERT INTO shop.items (colour) VALUES ('red'); ALTER TABLE shop.items ADD note text; DROP VIEW shop.red; \
         ALTER TYPE shop.colour ADD VALUE 'blue'; DROP FUNCTION shop.one(); CREATE TABLE own (x int)",
    )
    .await
    .expect("what was copied is the app's own");
    let count: i64 = app.query_one("SELECT count(*) FROM shop.items", &[]).await.expect("rows").get(0);
    assert_eq!(count, 2);
    let untouched: i64 = postgres
        .operator("scrubbed")
        .await
        .query_one("SELECT count(*) FROM shop.items", &[])
        .await
        .expect("the template is as it was")
        .get(0);
    assert_eq!(untouched, 1);
    let refused = postgres.connect(&user, &password, "scrubbed").await.expect_err("the template is closed");
    assert!(refused.to_string().contains("db error"), "{refused}");
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(postgres.made().await, Vec::<String>::new());
    town.leave().await;
}

#[actix_web::test]
async fn what_stands_in_a_database_is_never_run_with_the_operator_s_rights() {
    let trap = "CREATE FUNCTION public.format(text, name, text) RETURNS text LANGUAGE sql \
                AS $$ SELECT 'ALTER ROLE ' || quote_ident($3) || ' SUPERUSER' $$; CREATE SCHEMA bait";
    let postgres = Postgres::start().await;
    let operator = postgres.operator("postgres").await;
    operator.batch_execute("CREATE DATABASE scrubbed").await.expect("a template");
    postgres.operator("scrubbed").await.batch_execute(trap).await.expect("what an app of production left in its data");
    let url = postgres.url();
    let outside = Outside::stopping_at(0);
    let town = Town::start_with(Some(outside.clone()), move |config: &mut Config| {
        config.addons.postgres.url = Some(Secret::new(url.clone()));
        config.addons.postgres.template = Some("scrubbed".to_owned());
    })
    .await;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", r#"["heroku-postgresql"]"#, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let (user, password, name) = database_of(&town, "hello-pr-1");
    let app = postgres.connect(&user, &password, &name).await.expect("the app gets in");
    app.batch_execute("ALTER FUNCTION public.format(text, name, text) STABLE; DROP SCHEMA bait")
        .await
        .expect("its own");
    let role = async || {
        let role = "SELECT rolsuper, rolconnlimit FROM pg_roles WHERE rolname = $1";
        let row = operator.query_one(role, &[&user]).await.expect("the role");
        (row.get::<_, bool>(0), row.get::<_, i32>(1))
    };
    assert_eq!(role().await, (false, 20));

    // Another plan is another look at the database, which is the app's by now.
    push(&town, &repository, "change", r#"["heroku-postgresql:standard-0"]"#, "three").await;
    town.settle().await;
    assert_eq!(role().await, (false, 120));
    let handed_over = outside.names().into_iter().filter(|name| *name == "postgres ownership").count();
    assert_eq!(handed_over, 1, "it is handed over once");
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(postgres.made().await, Vec::<String>::new());
    town.leave().await;
}

fn database_of(town: &Town, app: &str) -> (String, String, String) {
    let history = town.memory.history();
    let spec = history.iter().rev().find(|spec| spec.name == "web.1" && spec.labels["app"] == app).expect("it started");
    let url = &spec.environment["DATABASE_URL"];
    let (login, name) = url.trim_start_matches("postgres://").rsplit_once('/').expect("a name");
    let (user, password) = login.split('@').next().and_then(|login| login.split_once(':')).expect("a login");
    (user.to_owned(), password.to_owned(), name.to_owned())
}

#[actix_web::test]
async fn a_version_that_the_server_does_not_have_is_refused_with_a_sentence() {
    let postgres = Postgres::start().await;
    let town = town_with(&postgres, None).await;
    let repository = town.make_repository("hello", "one").await;
    let addons = r#"[{"plan": "heroku-postgresql", "options": {"version": "99"}}]"#;
    push(&town, &repository, "change", addons, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("version 99 was asked for, and the server has version"), "{comment}");
    assert_eq!(postgres.made().await, Vec::<String>::new());
    town.close(&pull).await;
    town.settle().await;
    town.leave().await;
}

#[actix_web::test]
async fn what_is_to_be_known_of_an_add_on_stands_in_the_comment() {
    let postgres = Postgres::start().await;
    let town = town_with(&postgres, None).await;
    let repository = town.make_repository("hello", "one").await;
    let addons = r#"[{"plan": "heroku-postgresql", "options": {"version": "9.6"}},
                     {"plan": "heroku-postgresql:enormous", "as": "SECOND"}]"#;
    push(&town, &repository, "change", addons, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let comment = town.comment(&pull).await;
    let older = "`heroku-postgresql`: version `9.6` was asked for, and the server has the newer version `";
    assert!(comment.contains(older), "{comment}");
    assert!(comment.contains("`heroku-postgresql:enormous`: no such plan is known"), "{comment}");
    town.close(&pull).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(!comment.contains("no such plan is known"), "{comment}");
    town.leave().await;
}

#[actix_web::test]
async fn add_ons_outlive_two_rotations_of_the_key_and_what_nobody_owns_is_named() {
    let postgres = Postgres::start().await;
    let town = town_with(&postgres, None).await;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", r#"["heroku-postgresql:mini"]"#, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let before = database_of(&town, "hello-pr-1");
    for retired in [vec![], vec![1]] {
        let rotated = landfall::reconcile::config::rotate(town.world(), "olivia").await.expect("a rotation");
        assert!(rotated.resealed >= 2, "password and config vars: {rotated:?}");
        assert_eq!(rotated.retired, retired, "the first key goes only once nothing is sealed with it");
    }
    // The next release opens the same config vars, and another plan needs the same password.
    push(&town, &repository, "change", r#"["heroku-postgresql:standard-0"]"#, "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!(database_of(&town, "hello-pr-1"), before);
    let (user, password, name) = before;
    postgres.connect(&user, &password, &name).await.expect("the app gets in");

    let tag = name.split('_').nth(1).expect("a tag").to_owned();
    let operator = postgres.operator("postgres").await;
    for name in [format!("lf_{tag}_stray"), "lf_00000000_of-somebody-else".to_owned()] {
        operator.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.expect("a database");
    }
    let left = landfall::reconcile::leftovers(town.world()).await.expect("the server answers");
    let left = format!("{left:?}");
    assert!(left.contains(&format!("lf_{tag}_stray")) && !left.contains("of-somebody-else"), "{left}");
    town.close(&pull).await;
    town.settle().await;
    let kept = postgres.made().await;
    assert_eq!(kept.len(), 2, "what it does not know it leaves alone: {kept:?}");
    operator.batch_execute(&format!("DROP DATABASE \"lf_{tag}_stray\"")).await.expect("it goes");
    town.leave().await;
}

#[actix_web::test]
async fn each_test_node_has_its_own_database_until_it_is_done() {
    let postgres = Postgres::start().await;
    let town = town_with(&postgres, None).await;
    let repository = town.make_repository("hello", "one").await;
    let files = json!({
        "Procfile": "web: serve\n",
        "app.json": r#"{"environments": {"test": {"addons": ["heroku-postgresql:in-dyno"],
            "formation": {"test": {"quantity": 2}}, "scripts": {"test": "check"}}}}"#,
        "page.txt": "two",
    });
    let commit = town.push_files(&repository, "change", files).await;
    let pull: Pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let checks = town.checks(&repository, &commit).await;
    assert_eq!(checks[0].0, "success", "{checks:?}");
    let mut urls: Vec<String> = town
        .memory
        .history()
        .iter()
        .filter(|spec| spec.name.starts_with("test."))
        .filter_map(|spec| spec.environment.get("DATABASE_URL").cloned())
        .collect();
    urls.sort();
    urls.dedup();
    assert_eq!(urls.len(), 2, "two nodes, two databases: {urls:?}");
    assert_eq!(postgres.made().await, Vec::<String>::new(), "they go with their nodes");
    town.close(&pull).await;
    town.settle().await;
    town.leave().await;
}

#[actix_web::test]
async fn an_operator_s_redis_gives_each_app_its_own_keys() {
    let redis = Redis::start().await;
    let url = redis.url();
    let town =
        Town::start_with(None, move |config: &mut Config| config.addons.redis.url = Some(Secret::new(url.clone())))
            .await;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "main", r#"["heroku-redis"]"#, "two").await;
    push(&town, &repository, "change", r#"["heroku-redis"]"#, "three").await;
    let pull = town.open_pull(&repository, "change", "Say three").await;
    town.settle().await;
    let of = |app: &str| {
        let history = town.memory.history();
        let found = history.iter().rev().find(|spec| spec.name == "web.1" && spec.labels["app"] == app);
        let environment = found.expect("it started").environment.clone();
        (environment["REDIS_URL"].clone(), environment["REDIS_PREFIX"].clone())
    };
    let ((ours, prefix), (_, theirs)) = (of("hello-pr-1"), of("hello-staging"));
    let login = ours.trim_start_matches("redis://").split('@').next().expect("a login").to_owned();
    let (user, password) = login.split_once(':').expect("user and password");
    let port = redis.url().rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
    let said = |words: &'static str| {
        let (user, password, prefix, theirs) = (user.to_owned(), password.to_owned(), prefix.clone(), theirs.clone());
        async move {
            let line = words.replace("OURS", &prefix).replace("THEIRS", &theirs);
            talk(port, &[&format!("AUTH {user} {password}"), &line]).await.pop().expect("an answer")
        }
    };
    assert_eq!(said("SET OURSx 1").await, "+OK");
    assert!(said("GET THEIRSx").await.starts_with("-NOPERM"));
    // What would name, count or take away what is another's.
    for order in [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FUNCTION LIST",
        "FCALL f 0",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "PUBSUB CHANNELS",
        "SWAPDB 0 1",
        "CLIENT LIST",
        "EVAL \"return redis.call('GET','x')\" 0",
    ] {
        let answer = said(order).await;
        assert!(answer.starts_with("-NOPERM") || answer.contains("can't access"), "{order}: {answer}");
    }
    // What clients do.
    for (order, expected) in [
        ("HELLO 2", "*"),
        ("CLIENT SETNAME web", "+OK"),
        ("CLIENT ID", ":"),
        ("INFO server", "$"),
        ("COMMAND COUNT", ":"),
        ("SCRIPT LOAD \"return 1\"", "$40"),
        ("EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0", ":1"),
        ("EVAL \"return redis.call('SET',KEYS[1],'2')\" 1 OURSy", "+OK"),
        ("SSCAN OURSset 0", "*2"),
        ("PUBLISH OURSchannel hello", ":0"),
        ("PUBSUB NUMSUB OURSchannel", "*2"),
        ("MULTI", "+OK"),
        ("SELECT 3", "+OK"),
    ] {
        let answer = said(order).await;
        assert!(answer.starts_with(expected), "{order}: {answer}");
    }
    let elsewhere = format!("SET {prefix}z 1");
    let left = talk(port, &[&format!("AUTH {user} {password}"), "SELECT 3", &elsewhere]).await;
    assert_eq!(left.last().map(String::as_str), Some("+OK"));
    town.close(&pull).await;
    town.settle().await;
    assert!(said("PING").await.starts_with("-WRONGPASS") || said("PING").await.starts_with("-NOAUTH"));
    let left = talk(port, &["AUTH default pw", "DBSIZE"]).await;
    assert_eq!(left.last().map(String::as_str), Some(":0"), "its keys went with it");
    let left = talk(port, &["AUTH default pw", "SELECT 3", "DBSIZE"]).await;
    assert_eq!(left.last().map(String::as_str), Some(":0"), "and those of the server's other databases");
    town.leave().await;
}

/// Redis' inline protocol: a line, and the first line of the answer.
async fn talk(port: u16, lines: &[&str]) -> Vec<String> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
    let mut stream = BufStream::new(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("it listens"));
    let mut answers = Vec::new();
    for line in lines {
        stream.write_all(format!("{line}\r\n").as_bytes()).await.expect("it reads");
        stream.flush().await.expect("it reads");
        let mut answer = String::new();
        stream.read_line(&mut answer).await.expect("it answers");
        answers.push(answer.trim().to_owned());
    }
    answers
}

#[actix_web::test]
async fn a_partner_is_asked_once_for_each_add_on_whatever_it_answers() {
    let partner = Partner::start();
    {
        let mut kept = partner.kept.lock().unwrap();
        kept.slow = 2;
        kept.broken = 1;
    }
    let url = partner.url.clone();
    let town = Town::start_with(None, move |config: &mut Config| {
        declare(config, &url);
    })
    .await;
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", r#"["acme:small"]"#, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let resources = partner.resources();
    assert_eq!(resources.values().map(String::as_str).collect::<Vec<_>>(), ["small"], "{:?}", partner.calls());
    let (uuid, _) = resources.first_key_value().expect("one resource");
    let history = town.memory.history();
    let web = history.iter().rev().find(|spec| spec.name == "web.1" && spec.labels["app"] == "hello-pr-1");
    assert_eq!(web.expect("it started").environment["ACME_URL"], format!("https://acme.test/{uuid}"));

    push(&town, &repository, "change", r#"["acme:large"]"#, "three").await;
    town.settle().await;
    assert_eq!(partner.resources().values().map(String::as_str).collect::<Vec<_>>(), ["large"]);
    push(&town, &repository, "change", r#"["acme:large", {"plan": "acme:unheard-of", "as": "SECOND"}]"#, "four").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("acme:unheard-of") && comment.contains("no such plan"), "{comment}");
    town.close(&pull).await;
    town.settle().await;
    assert!(partner.resources().is_empty(), "{:?}", partner.calls());
    town.leave().await;
    partner.stop().await;
}

#[actix_web::test]
async fn a_stranger_s_code_gets_neither_the_template_nor_what_costs_money() {
    let postgres = Postgres::start().await;
    postgres.operator("postgres").await.batch_execute("CREATE DATABASE scrubbed").await.expect("a template");
    postgres.operator("scrubbed").await.batch_execute("CREATE TABLE people (name text)").await.expect("data");
    let partner = Partner::start();
    let (url, provider) = (postgres.url(), partner.url.clone());
    let town = Town::start_with(None, move |config: &mut Config| {
        config.addons.postgres.url = Some(Secret::new(url.clone()));
        config.addons.postgres.template = Some("scrubbed".to_owned());
        declare(config, &provider);
    })
    .await;
    let repository = town.make_repository("hello", "one").await;
    let files = |addons: &str| json!({ "Procfile": "web: serve\n", "app.json": format!(r#"{{"addons": {addons}}}"#), "page.txt": "two" });
    let database = r#"["heroku-postgresql:standard-2"]"#;
    let (pull, head) = town.open_fork_with(&repository, "mallory", files(database)).await;
    town.settle().await;
    town.say(&pull, &format!("/approve {head}"), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let (user, password, name) = database_of(&town, "hello-pr-1");
    let app = postgres.connect(&user, &password, &name).await.expect("the app gets in");
    let tables: i64 =
        app.query_one("SELECT count(*) FROM pg_tables WHERE tablename = 'people'", &[]).await.expect("rows").get(0);
    assert_eq!(tables, 0, "a stranger's app begins empty");
    let limit: i32 = app
        .query_one("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user", &[])
        .await
        .expect("a row")
        .get(0);
    assert_eq!(limit, 20, "whatever plan the stranger writes down");

    let (paid, head) = town.open_fork_with(&repository, "trudy", files(r#"["acme:large"]"#)).await;
    town.settle().await;
    town.say(&paid, &format!("/approve {head}"), OWNER).await;
    town.settle().await;
    let comment = town.comment(&paid).await;
    assert!(comment.contains("acme is a provider's paid service, and the code of a fork gets none"), "{comment}");
    assert!(partner.calls().is_empty(), "{:?}", partner.calls());
    for pull in [&pull, &paid] {
        town.close(pull).await;
    }
    town.settle().await;
    assert_eq!(postgres.made().await, Vec::<String>::new());
    town.leave().await;
    partner.stop().await;
}

/// An address of the server as an operator would write it, and whether it may be used.
#[tokio::test]
async fn tls_to_an_operator_s_server_compares_what_sslmode_says() {
    let (plain, postgres) = (Postgres::start().await, Postgres::with_tls().await);
    let authority = format!("sslrootcert={}", postgres.authority().display());
    let elsewhere = format!("sslrootcert={}/src/router/tests/tls/second.pem", env!("CARGO_MANIFEST_DIR"));
    let answers = async |server: &Postgres, host: &str, query: &str| {
        let server =
            landfall::addons::PostgresServer::from_url(&Secret::new(server.url_as(host, query)), "url").expect("read");
        server.answers().await.map_err(|error| error.to_string())
    };
    for (host, query, good) in [
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=verify-ca&{authority}"), true),
        ("hello.localhost", format!("sslmode=verify-full&{authority}"), true),
        ("127.0.0.1", format!("sslmode=verify-full&{authority}"), false),
        ("other.localhost", format!("sslmode=verify-full&{authority}"), false),
        ("hello.localhost", "sslmode=verify-full".to_owned(), false),
        ("hello.localhost", format!("sslmode=verify-ca&{elsewhere}"), false),
        ("hello.localhost", format!("sslmode=require&{elsewhere}"), false),
        ("hello.localhost", "sslmode=verify-full&sslrootcert=/nowhere.pem".to_owned(), false),
    ] {
        let said = answers(&postgres, host, &query).await;
        assert_eq!(said.is_ok(), good, "{host} {query}: {said:?}");
    }
    let log = postgres.log();
    assert!(log.contains("application_name=landfall SSL enabled"), "{log}");
    assert!(!log.lines().any(|line| line.contains("application_name=landfall") && !line.contains("SSL")), "{log}");
    assert!(answers(&plain, "127.0.0.1", "sslmode=prefer").await.is_ok());
    let said = answers(&plain, "127.0.0.1", "sslmode=require").await.expect_err("it has no TLS");
    assert!(said.to_lowercase().contains("tls"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_speaks_tls_to_the_operator_s_server_from_inside_its_walls() {
    let postgres = Postgres::with_tls().await;
    let query = format!("sslmode=verify-full&sslrootcert={}", postgres.authority().display());
    let machine =
        Machine::with(&format!("[addons.postgres]\nurl = \"{}\"\n", postgres.url_as("hello.localhost", &query))).await;
    machine.make_repository("visits", &visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#)).await;
    machine.serves("visits-staging", "visits: 1").await;
    let environment: serde_json::Value =
        serde_json::from_str(&asked(&machine, "visits-staging", "/env").await).expect("JSON");
    let url = environment["DATABASE_URL"].as_str().expect("a database");
    assert!(url.contains("@hello.localhost:5432/"), "{url}");
    assert!(url.ends_with("?sslmode=verify-full&sslrootcert=/etc/landfall/postgres.pem"), "{url}");
    let said = asked(
        &machine,
        "visits-staging",
        &format!("/sql?q={}", encoded("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")),
    )
    .await;
    assert!(said.contains("t|TLSv1"), "{said}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_app_begins_with_a_copy_from_another_server_whatever_is_killed() {
    let elsewhere = Postgres::start().await;
    elsewhere.operator("postgres").await.batch_execute("CREATE DATABASE scrubbed").await.expect("a template");
    let template = elsewhere.operator("scrubbed").await;
    template
        .batch_execute(
            "CREATE EXTENSION pg_trgm; CREATE EXTENSION pageinspect; CREATE SCHEMA shop; \
             CREATE TYPE shop.colour AS ENUM ('red'); CREATE TABLE shop.items (colour shop.colour DEFAULT 'red'); \
             COMMENT ON TABLE shop.items IS 'x'; CREATE TABLE visits (id serial); \
             INSERT INTO visits SELECT FROM generate_series(1, 1000)",
        )
        .await
        .expect("data");
    // The copy must wait for as long as somebody holds this.
    template.batch_execute("BEGIN; LOCK TABLE visits IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let url = elsewhere.url().strip_suffix("/postgres").expect("a database").to_owned() + "/scrubbed";
    let mut machine = Machine::with(&format!("[addons.postgres]\ntemplate_url = \"{url}\"\n")).await;
    let repository =
        machine.make_repository("visits", &visits(r#"["heroku-postgresql:standard-2", "heroku-redis:mini"]"#)).await;
    machine.serves("visits-staging", "visits: 1,").await;
    let note = BTreeMap::from([("note.txt".to_owned(), "one".to_owned())]);
    machine.push(&repository, "one", &note, "Add a note").await;
    machine.open_pull(&repository, "one", "Add a note").await;
    // While the dump waits for the lock, all that there is of the copy is there.
    let operator = elsewhere.operator("postgres").await;
    let dumps = async || -> i64 {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'";
        operator.query_one(waiting, &[]).await.expect("rows").get(0)
    };
    let waits = async || {
        anyhow::ensure!(dumps().await == 1, "{} dumps", dumps().await);
        Ok(machine.processes("addons.copy"))
    };
    let before = machine.expect("a copy to be under way", waits).await;
    assert_eq!(before.len(), 1, "{before:?}");
    // The password stands where nobody but us can read it.
    let lines: Vec<String> = std::fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains("/bin/pg_dump") || line.contains("/bin/psql"))
        .collect();
    assert!(lines.iter().any(|line| line.contains("user='operator'")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(":pw") || line.contains("password=")), "{lines:?}");
    machine.kill_serve();
    machine.serve().await;
    let after = machine.processes("addons.copy");
    assert!(after.keys().eq(before.keys()), "the copy goes on, and there is one: {before:?} {after:?}");
    for pid in after.values().flatten() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    let another = async || {
        let copies = machine.processes("addons.copy");
        anyhow::ensure!(!copies.is_empty() && !copies.keys().eq(before.keys()), "{copies:?}");
        anyhow::ensure!(dumps().await == 1, "{} dumps", dumps().await);
        Ok(())
    };
    machine.expect("another copy to be begun", another).await;
    template.batch_execute("COMMIT").await.expect("the lock goes");
    machine.serves("visits-pr-1", "visits: 1001,").await;
    let sql = async |statement: &str| {
        asked(&machine, "visits-pr-1", &format!("/sql?q={}", encoded(statement))).await.trim().to_owned()
    };
    assert_eq!(
        sql("SELECT string_agg(extname, ',' ORDER BY extname) FROM pg_extension").await,
        "pageinspect,pg_trgm,plpgsql"
    );
    let done = "ALTER TABLE shop.items ADD note text; INSERT INTO shop.items (note) VALUES ('mine') RETURNING note";
    assert!(sql(done).await.contains("mine"), "what was copied is the app's own");
    assert_eq!(sql("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user").await, "75", "a quarter of 300");
    // Another plan, and with it another look at the database, takes nothing away.
    let plan = visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#);
    machine.push(&repository, "one", &plan, "Ask for less").await;
    let smaller = async || {
        let limit = sql("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user").await;
        anyhow::ensure!(limit == "20", "{limit}");
        Ok(())
    };
    machine.expect("the smaller plan", smaller).await;
    assert_eq!(sql("SELECT count(*) > 1000 FROM visits").await, "t");
    let count: i64 = template.query_one("SELECT count(*) FROM visits", &[]).await.expect("rows").get(0);
    assert_eq!(count, 1000, "the template is as it was");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_made_fails_the_deploy_with_what_was_said() {
    let elsewhere = Postgres::start().await;
    let operator = elsewhere.operator("postgres").await;
    operator
        .batch_execute("CREATE ROLE reader LOGIN PASSWORD 'pw'; CREATE TABLE secret (x int)")
        .await
        .expect("a role");
    let url = elsewhere.url().replace("operator:", "reader:");
    let machine = Machine::with(&format!("[addons.postgres]\ntemplate_url = \"{url}\"\n")).await;
    let repository =
        machine.make_repository("visits", &visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#)).await;
    let note = BTreeMap::from([("note.txt".to_owned(), "one".to_owned())]);
    machine.push(&repository, "one", &note, "Add a note").await;
    let pull = machine.open_pull(&repository, "one", "Add a note").await;
    let said = machine.comment_says(&repository, pull, "the copy of the template database failed").await;
    assert!(said.contains("permission denied for table secret"), "{said}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_of_our_own_is_started_at_once_and_ends_with_its_last_database() {
    let machine = Machine::start().await;
    machine.make_repository("visits", &visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#)).await;
    machine.serves("visits-staging", "visits: 1, hits: :1").await;
    // Long enough that its end is no failed start.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    for (server, path, expected) in [
        ("addons.postgres", format!("/sql?q={}", encoded("SELECT 7")), "7"),
        ("addons.redis", format!("/redis?q={}", encoded("PING")), "+PONG"),
    ] {
        for pid in machine.processes(server).values().flatten() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        let began = std::time::Instant::now();
        let back = async || {
            let said = asked(&machine, "visits-staging", &path).await;
            anyhow::ensure!(said.trim() == expected, "it says {said}");
            Ok(())
        };
        machine.expect("the server to be started again", back).await;
        let took = began.elapsed();
        // The slow look at everything comes every 30 s.
        assert!(took.as_secs() < 12, "{server} came back after {took:?}");
    }
    machine.says(&["destroy", "visits-staging", "--confirm", "visits-staging"]).await;
    let gone = async || {
        let doctor = machine.api("/api/v1/doctor").await?;
        anyhow::ensure!(doctor["leftovers"] == json!([]), "{doctor}");
        anyhow::ensure!(doctor["addons"] == json!([]), "{doctor}");
        Ok(())
    };
    machine.expect("nothing of it to be left", gone).await;
    for _ in 0..20 {
        let doctor = machine.api("/api/v1/doctor").await.expect("the API answers");
        assert_eq!(doctor["leftovers"], json!([]), "the server that ends is no leftover");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let ended = async || {
        anyhow::ensure!(machine.processes("addons.postgres").is_empty(), "it runs");
        Ok(())
    };
    machine.expect("the server to end", ended).await;
    machine.leave().await;
}

#[tokio::test]
async fn tls_to_an_operator_s_redis_compares_what_its_address_says() {
    let (plain, redis) = (Redis::start().await, Redis::with_tls().await);
    let authority = format!("sslrootcert={}", redis.authority().display());
    let answers = async |server: &Redis, scheme: &str, host: &str, query: &str| {
        let server = landfall::addons::RedisServer::from_url(&Secret::new(server.url_as(scheme, host, query)));
        server.expect("read").answers().await.map_err(|error| error.to_string())
    };
    for (host, query, good) in [
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=verify-ca&{authority}"), true),
        ("hello.localhost", authority.clone(), true),
        ("127.0.0.1", authority.clone(), false),
        ("other.localhost", authority.clone(), false),
        ("hello.localhost", String::new(), false),
        ("hello.localhost", "sslrootcert=/nowhere.pem".to_owned(), false),
    ] {
        let said = answers(&redis, "rediss", host, &query).await;
        assert_eq!(said.is_ok(), good, "{host} {query}: {said:?}");
    }
    assert!(answers(&redis, "redis", "127.0.0.1", "").await.is_err(), "it has nothing but TLS");
    assert!(answers(&plain, "rediss", "127.0.0.1", "sslmode=require").await.is_err(), "nothing is said in the clear");
    assert!(answers(&plain, "redis", "127.0.0.1", "").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_speaks_tls_to_the_operator_s_redis_from_inside_its_walls() {
    let redis = Redis::with_tls().await;
    let query = format!("sslrootcert={}", redis.authority().display());
    let url = redis.url_as("rediss", "hello.localhost", &query);
    let machine = Machine::with(&format!("[addons.redis]\nurl = \"{url}\"\n")).await;
    machine.make_repository("visits", &visits(r#"["heroku-postgresql:mini", "heroku-redis:mini"]"#)).await;
    // An integer in the protocol of Redis begins with a colon, an error with a minus.
    machine.serves("visits-staging", "hits: :").await;
    let environment: serde_json::Value =
        serde_json::from_str(&asked(&machine, "visits-staging", "/env").await).expect("JSON");
    let url = environment["REDIS_URL"].as_str().expect("a Redis");
    assert!(url.starts_with("rediss://") && url.ends_with("@hello.localhost:6379"), "{url}");
    assert_eq!(environment["REDIS_CA"], "/etc/landfall/redis.pem");
    machine.leave().await;
}

#[actix_web::test]
async fn databases_of_a_postgresql_that_is_not_installed_any_more_wait_for_it_by_its_version() {
    let town = Town::start().await;
    let databases = town.world().folder("addons").join("pg/db");
    std::fs::create_dir_all(&databases).expect("a folder");
    std::fs::write(databases.join("PG_VERSION"), "9\n").expect("write the version");
    let repository = town.make_repository("hello", "one").await;
    push(&town, &repository, "change", r#"["heroku-postgresql"]"#, "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("PostgreSQL 9 is not installed on this machine"), "{comment}");
    assert_eq!(town.memory.history().iter().filter(|spec| spec.name == "postgres.1").count(), 0);
    std::fs::remove_dir_all(town.world().folder("addons")).expect("as if there had never been any");
    town.close(&pull).await;
    town.settle().await;
    town.leave().await;
}
