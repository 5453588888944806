//! Config vars, formation, scripts and one-off processes, as people meet them.

use crate::support::town::{OWNER, Pull, Town};
use landfall::domain::*;
use landfall::reconcile::processes::OneOffOrder;
use landfall::reconcile::{command, config, processes};
use landfall::workflow::parse_scale;
use serde_json::json;
use std::collections::BTreeMap;

fn name(app: &str) -> AppName {
    app.parse().expect("an app's name")
}

impl Town {
    fn app(&self, app: &str) -> App {
        self.world().store.app(&name(app)).expect("the store answers").expect("the app is there")
    }

    fn repository_record(&self) -> Repository {
        self.world().store.repositories().expect("the store answers").remove(0)
    }

    fn stage(&self, stage: ConfigStage) -> ConfigScope {
        ConfigScope::Stage(self.repository_record().id, stage)
    }

    async fn edit(&self, scope: ConfigScope, edit: ConfigEdit) -> config::Changed {
        let changed = config::change(self.world(), &self.repository_record(), &scope, &edit, OWNER).await;
        changed.expect("the store answers").expect("the edit is allowed")
    }

    async fn set(&self, scope: ConfigScope, vars: &[(&str, &str)]) -> config::Changed {
        let set = vars.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        self.edit(scope, ConfigEdit { set, ..ConfigEdit::default() }).await
    }

    /// The environment of the process that was started last under such a name.
    fn environment(&self, app: &str, process: &str) -> BTreeMap<String, String> {
        let specs = self.memory.history();
        let own =
            specs.iter().rev().find(|spec| spec.labels.get("app").is_some_and(|of| of == app) && spec.name == process);
        own.unwrap_or_else(|| panic!("{process} of {app} never ran")).environment.clone()
    }

    fn starts(&self, app: &str, process: &str) -> usize {
        let specs = self.memory.history();
        specs.iter().filter(|spec| spec.labels.get("app").is_some_and(|of| of == app) && spec.name == process).count()
    }

    fn running_of(&self, app: &str) -> Vec<String> {
        let prefix = format!("{app}.");
        let ids = self.memory.running();
        ids.iter().filter_map(|id| id.as_str().strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    async fn scale(&self, app: &str, words: &str) -> Result<(), String> {
        let orders = words.split(' ').map(|word| parse_scale(word).expect(word)).collect();
        let scaled = processes::scale(self.world(), &name(app), orders, OWNER).await.expect("the store answers");
        scaled.map(|_| ()).map_err(|refusal| refusal.to_string())
    }

    async fn push_app(&self, repository: &str, branch: &str, page: &str, manifest: serde_json::Value) -> String {
        let files = json!({
            "Procfile": "web: serve\nworker: work\nrelease: migrate\n", "app.json": manifest.to_string(), "page.txt": page,
        });
        self.push_files(repository, branch, files).await
    }
}

#[actix_web::test]
async fn a_change_of_config_is_one_release_with_its_release_phase() {
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    let own = || ConfigScope::App(name("hello-staging"));
    assert_eq!(town.starts("hello-staging", "release.1"), 1);
    let changed = town.set(own(), &[("TOKEN", "s3cret-one"), ("COLOUR", "blue")]).await;
    assert_eq!(changed.deployed, [name("hello-staging")]);
    town.settle().await;
    let app = town.app("hello-staging");
    assert_eq!(app.live, Some(ReleaseNumber(2)), "both are one release");
    assert!(matches!(&app.newest().unwrap().cause, Cause::Config { names, .. } if names == &["COLOUR", "TOKEN"]));
    assert_eq!(town.starts("hello-staging", "release.1"), 2);
    // Who changed what is on record; to what is not.
    let orders = town.world().store.orders().unwrap();
    let expected =
        OrderKind::Config { scope: "hello-staging".to_owned(), names: vec!["COLOUR".to_owned(), "TOKEN".to_owned()] };
    assert_eq!(orders.iter().map(|order| &order.what).collect::<Vec<_>>(), [&expected]);
    let environment = town.environment("hello-staging", "web.1");
    assert_eq!((environment["TOKEN"].as_str(), environment["COLOUR"].as_str()), ("s3cret-one", "blue"));
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));

    let same = town.set(own(), &[("TOKEN", "s3cret-one")]).await;
    assert_eq!((same.names.len(), same.deployed.len()), (0, 0), "the same value is no change");

    town.set(own(), &[("MIGRATION", "bad")]).await;
    town.settle().await;
    let app = town.app("hello-staging");
    assert_eq!(app.live, Some(ReleaseNumber(2)), "a release phase that fails leaves the live one");
    assert!(matches!(
        app.newest().unwrap().outcome,
        Some(Outcome::Failed { failure: Failure::ReleasePhase { .. }, .. })
    ));

    let unset = ConfigEdit { unset: vec!["MIGRATION".to_owned(), "COLOUR".to_owned()], ..ConfigEdit::default() };
    town.edit(own(), unset).await;
    town.settle().await;
    assert_eq!(town.app("hello-staging").live, Some(ReleaseNumber(4)));
    assert!(!town.environment("hello-staging", "web.1").contains_key("COLOUR"));

    let app = town.app("hello-staging");
    command::roll_back(town.world(), &app, Some(ReleaseNumber(2)), OWNER).await.unwrap().unwrap();
    town.settle().await;
    assert_eq!(town.environment("hello-staging", "web.1")["COLOUR"], "blue", "a rollback has the config of then");

    let mut exported = Vec::new();
    town.world().store.export(&mut exported).unwrap();
    assert!(!String::from_utf8_lossy(&exported).contains("s3cret-one"), "a value is readable at rest");
    town.leave().await;
}

#[actix_web::test]
async fn what_a_failing_migration_prints_of_its_config_is_not_told_on_github() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.set(town.stage(ConfigStage::Review), &[("TOKEN", "s3cret-one"), ("MIGRATION", "tells")]).await;
    town.push_app(&repository, "change", "two", json!({ "env": { "COLOUR": "turquoise" } })).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("refused: [hidden] turquoise"), "{comment}");
    assert!(!comment.contains("s3cret-one"), "{comment}");
    town.leave().await;
}

#[actix_web::test]
async fn a_var_that_a_strangers_code_does_not_get_deploys_nothing_of_it() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let (pull, head) = town.open_fork(&repository, "mallory").await;
    town.settle().await;
    town.say(&pull, &format!("/approve {head}"), OWNER).await;
    town.settle().await;
    assert!(town.served("hello-pr-1").is_some());
    let changed = town.set(town.stage(ConfigStage::Review), &[("TOKEN", "s3cret-one")]).await;
    assert!(changed.deployed.is_empty(), "{changed:?}");
    town.leave().await;
}

#[actix_web::test]
async fn review_apps_get_their_stage_and_named_vars_of_others() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.set(town.stage(ConfigStage::Staging), &[("TAKEN", "from staging"), ("HIDDEN", "x")]).await;
    town.set(town.stage(ConfigStage::Production), &[("KEY", "from production"), ("HIDDEN", "y")]).await;
    town.set(town.stage(ConfigStage::Review), &[("LEVEL", "stage"), ("BOTH", "stage")]).await;
    town.set(town.stage(ConfigStage::Test), &[("TESTING", "yes")]).await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.set(ConfigScope::App(name("hello-pr-1")), &[("BOTH", "app")]).await;
    town.settle().await;
    let take = [("TAKEN".to_owned(), ConfigStage::Staging), ("KEY".to_owned(), ConfigStage::Production)].into();
    let changed = town.edit(town.stage(ConfigStage::Review), ConfigEdit { take, ..ConfigEdit::default() }).await;
    assert_eq!(changed.deployed, [name("hello-pr-1")], "nothing else takes them");
    town.settle().await;
    let environment = town.environment("hello-pr-1", "web.1");
    for (name, value) in [("LEVEL", "stage"), ("BOTH", "app"), ("TAKEN", "from staging"), ("KEY", "from production")] {
        assert_eq!(environment.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!environment.contains_key("HIDDEN") && !environment.contains_key("TESTING"));
    let nodes: Vec<_> = town.memory.history().into_iter().filter(|spec| spec.name == "test.0").collect();
    assert_eq!(nodes.last().unwrap().environment.get("TESTING").map(String::as_str), Some("yes"));
    assert!(!nodes.last().unwrap().environment.contains_key("LEVEL"));
    assert!(!town.environment("hello-staging", "web.1").contains_key("LEVEL"));

    // What is taken follows what it is taken from.
    let changed = town.set(town.stage(ConfigStage::Staging), &[("TAKEN", "newer")]).await;
    assert_eq!(changed.deployed, [name("hello-pr-1"), name("hello-staging")]);
    town.settle().await;
    assert_eq!(town.environment("hello-pr-1", "web.1")["TAKEN"], "newer");

    let rotated = config::rotate(town.world(), OWNER).await.expect("a rotation");
    assert!(rotated.resealed >= 10 && rotated.retired.is_empty(), "{rotated:?}");
    let rotated = config::rotate(town.world(), OWNER).await.expect("a rotation");
    assert_eq!(rotated.retired, [1], "nothing is sealed with the first key any more");
    town.set(ConfigScope::App(name("hello-pr-1")), &[("BOTH", "rotated")]).await;
    town.settle().await;
    assert_eq!(town.environment("hello-pr-1", "web.1")["KEY"], "from production");
    town.close(&pull).await;
    town.settle().await;
    let scope = ConfigScope::App(name("hello-pr-1"));
    assert_eq!(town.world().store.config(&scope).unwrap(), None, "an app's vars go with it");
    town.leave().await;
}

#[actix_web::test]
async fn a_review_app_waits_for_required_vars_and_goes_on_when_they_are_set() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let manifest = json!({ "env": {
        "API_TOKEN": { "description": "for the weather" }, "SESSION": { "generator": "secret" },
        "COLOUR": "blue", "SIZE": { "value": "large", "required": false },
    } });
    town.push_app(&repository, "change", "two", manifest.clone()).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("waiting for config vars") && comment.contains("`API_TOKEN`"), "{comment}");
    assert!(comment.contains("landfall config set --repository olivia/hello --stage review API_TOKEN"), "{comment}");
    assert_eq!(town.app("hello-pr-1").deploys.len(), 1);
    assert_eq!(town.deployments(&repository, "review/pr-1").await[0].1, "queued");

    town.set(town.stage(ConfigStage::Review), &[("API_TOKEN", "s3cret")]).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!(town.app("hello-pr-1").deploys.len(), 1, "it goes on by itself");
    let first = town.environment("hello-pr-1", "web.1");
    assert_eq!((first["API_TOKEN"].as_str(), first["COLOUR"].as_str(), first["SESSION"].len()), ("s3cret", "blue", 64));
    town.push_app(&repository, "change", "three", manifest).await;
    town.settle().await;
    assert_eq!(town.environment("hello-pr-1", "web.1")["SESSION"], first["SESSION"], "once for an app");
    assert!(!town.comment(&pull).await.contains("s3cret"));
    town.leave().await;
}

async fn pull_with_scripts(town: &Town, postdeploy: &str, predestroy: &str) -> (String, Pull) {
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let manifest = json!({ "scripts": { "postdeploy": postdeploy, "pr-predestroy": predestroy } });
    town.push_app(&repository, "change", "two", manifest).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    (repository, pull)
}

#[actix_web::test]
async fn postdeploy_runs_once_and_pr_predestroy_before_the_app_goes() {
    let town = Town::start().await;
    let (repository, pull) = pull_with_scripts(&town, "seed 0", "leave 3").await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let manifest = json!({ "scripts": { "postdeploy": "seed 0", "pr-predestroy": "leave 3" } });
    town.push_app(&repository, "change", "three", manifest).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!((town.starts("hello-pr-1", "postdeploy.1"), town.starts("hello-pr-1", "predestroy.1")), (1, 0));
    town.close(&pull).await;
    town.settle().await;
    assert_eq!(town.starts("hello-pr-1", "predestroy.1"), 1);
    assert!(town.world().store.app(&name("hello-pr-1")).unwrap().is_none(), "its failure holds up nothing");
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Its `pr-predestroy` script ended with status 3") && comment.contains("two"), "{comment}");
    assert_eq!(town.starts("hello-staging", "postdeploy.1"), 0);
    town.leave().await;
}

#[actix_web::test]
async fn a_postdeploy_that_fails_fails_the_deploy_and_the_next_one_tries_again() {
    let town = Town::start().await;
    let (repository, pull) = pull_with_scripts(&town, "seed 4", "leave 0").await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("The postdeploy script ended with status 4."), "{comment}");
    assert_eq!(town.served("hello-pr-1"), None);
    let manifest = json!({ "scripts": { "postdeploy": "seed 0" } });
    town.push_app(&repository, "change", "three", manifest).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    assert_eq!(town.starts("hello-pr-1", "postdeploy.1"), 2);
    town.leave().await;
}

#[actix_web::test]
async fn scaling_makes_no_release_and_what_is_left_over_drains() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let manifest = json!({ "formation": { "worker": { "quantity": 1 }, "web": { "size": "standard-2X" } } });
    town.push_app(&repository, "main", "two", manifest).await;
    town.settle().await;
    // The repository's first push was deployed without a worker, and app.json speaks for the first deploy only.
    let first = town.app("hello-staging");
    let release = first.live.unwrap();
    let before: Vec<String> = town.running_of("hello-staging");
    assert!(before.iter().any(|id| id.contains("web.1")), "{before:?}");

    town.scale("hello-staging", "web=3 worker=2:standard-2x").await.unwrap();
    town.settle().await;
    let app = town.app("hello-staging");
    assert_eq!((app.live, app.deploys.len()), (Some(release), first.deploys.len()), "scaling is no release");
    let kinds = |running: &[String]| {
        let count = |kind: &str| running.iter().filter(|id| id.contains(&format!(".{kind}."))).count();
        (count("web"), count("worker"))
    };
    assert_eq!(kinds(&town.running_of("hello-staging")), (3, 2));
    let specs = town.memory.history();
    let worker = specs.iter().rev().find(|spec| spec.name == "worker.2").unwrap();
    assert_eq!((worker.limits.memory_quota, worker.limits.cpu_millis), (1 << 30, 2000));
    assert_eq!(worker.limits.memory_bytes / 100, (1 << 30) / 100 * 150 / 100, "the hard limit is half as much again");

    town.scale("hello-staging", "web=1 worker=0").await.unwrap();
    town.settle().await;
    assert_eq!(kinds(&town.running_of("hello-staging")), (1, 0));
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));

    // Another size is another process; the old one goes when the new one answers.
    town.scale("hello-staging", "web=performance-m").await.unwrap();
    town.settle().await;
    let running = town.running_of("hello-staging");
    assert_eq!(kinds(&running), (1, 0), "{running:?}");
    let specs = town.memory.history();
    assert_eq!(specs.iter().rev().find(|spec| spec.name == "web.1").unwrap().limits.memory_quota, 2560 << 20);

    town.scale("hello-staging", "web=0").await.unwrap();
    town.settle().await;
    assert_eq!(town.running_of("hello-staging"), [] as [String; 0]);
    town.scale("hello-staging", "web=2").await.unwrap();
    town.settle().await;
    assert_eq!(kinds(&town.running_of("hello-staging")), (2, 0), "up again, with ids of their own");

    for (words, expected) in [
        ("web=51", "hello-staging would have 51 processes, and an app may have 50"),
        ("wrker=1", "wrker is not a process type of hello-staging; it has web, worker"),
        ("web=1:huge", "there is no size huge; there are basic, eco, performance-2xl"),
        ("release=1", "release is not a process type"),
    ] {
        let refusal = town.scale("hello-staging", words).await.unwrap_err();
        assert!(refusal.contains(expected), "{refusal}");
    }
    town.push(&repository, "main", "three").await;
    town.settle().await;
    assert_eq!(kinds(&town.running_of("hello-staging")), (2, 0), "the next release is scaled as the app is");
    town.leave().await;
}

#[actix_web::test]
async fn app_json_forms_the_first_release() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let manifest = json!({ "formation": { "worker": { "quantity": 2 } } });
    town.push_app(&repository, "change", "two", manifest).await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let workers = || town.running_of("hello-pr-1").iter().filter(|id| id.contains(".worker.")).count();
    assert_eq!(workers(), 2);
    town.push_app(&repository, "change", "three", json!({ "formation": { "worker": { "quantity": 5 } } })).await;
    town.settle().await;
    assert_eq!(workers(), 2, "later ones are scaled as the app is");
    town.leave().await;
}

#[actix_web::test]
async fn a_command_runs_once_with_the_live_config() {
    let town = Town::start().await;
    town.make_repository("hello", "one").await;
    town.settle().await;
    town.set(ConfigScope::App(name("hello-staging")), &[("TOKEN", "s3cret")]).await;
    town.settle().await;
    let order = |command: &str| OneOffOrder { command: command.to_owned(), ..OneOffOrder::default() };
    let app = name("hello-staging");
    let made = processes::run_once(town.world(), &app, order("rake report 7"), OWNER).await.unwrap().unwrap();
    assert_eq!((made.number, made.ended), (1, None));
    town.settle().await;
    assert_eq!(town.app("hello-staging").one_offs[0].ended, Some(Ended::Exited { code: 7 }));
    let environment = town.environment("hello-staging", "run.1");
    assert_eq!((environment["TOKEN"].as_str(), environment["DYNO"].as_str()), ("s3cret", "run.1"));
    let next = processes::run_once(town.world(), &app, order("date"), OWNER).await.unwrap().unwrap();
    assert_eq!(next.number, 2);
    town.settle().await;
    assert_eq!((town.starts("hello-staging", "run.1"), town.starts("hello-staging", "run.2")), (1, 1));
    assert!(town.running_of("hello-staging").iter().all(|id| !id.contains("run.")));
    let refusal = processes::run_once(town.world(), &app, order(" "), OWNER).await.unwrap().unwrap_err();
    assert_eq!(refusal, processes::OneOffRefusal::NoCommand);
    town.leave().await;
}

#[actix_web::test]
async fn a_failed_release_phase_can_be_tried_again() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let app = town.app("hello-staging");
    let refused = command::retry_release(town.world(), &app, OWNER).await.unwrap();
    assert_eq!(refused, Err(Refusal::NothingToRetry));
    // The slug's release phase fails with this var, and the var goes before the retry.
    let own = || ConfigScope::App(name("hello-staging"));
    town.set(own(), &[("MIGRATION", "bad")]).await;
    town.settle().await;
    town.push(&repository, "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    let failed = town.app("hello-staging");
    let retried = command::retry_release(town.world(), &failed, OWNER).await.unwrap().unwrap();
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"), "it fails as it did");
    let again = town.app("hello-staging");
    let deploy = again.deploy(retried.deploy).unwrap();
    assert!(matches!(deploy.outcome, Some(Outcome::Failed { failure: Failure::ReleasePhase { .. }, .. })));
    assert_eq!(town.starts("hello-staging", "release.1"), 4, "each attempt is a release of its own");

    let unset = ConfigEdit { unset: vec!["MIGRATION".to_owned()], ..ConfigEdit::default() };
    town.edit(own(), unset).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"), "config is for what serves");
    let builds = town.world().store.builds().unwrap().len();
    town.push(&repository, "main", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    assert_eq!(town.world().store.builds().unwrap().len(), builds + 1);
    town.leave().await;
}

#[actix_web::test]
async fn a_new_app_takes_no_more_processes_than_all_apps_together_may_have() {
    let town = Town::start_with(None, |config| config.apps.max_processes = 3).await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let files = |page: &str| {
        json!({ "Procfile": "web: serve\nworker: work\n", "page.txt": page,
                "app.json": r#"{"formation": {"web": {"quantity": 2}, "worker": {"quantity": 2}}}"# })
    };
    town.push_files(&repository, "one", files("two")).await;
    let first = town.open_pull(&repository, "one", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    let formation = town.app("hello-pr-1").formation.expect("it has one");
    assert_eq!((formation["web"].quantity, formation["worker"].quantity), (2, 0), "staging has one of the three");
    town.push_files(&repository, "other", files("three")).await;
    let second = town.open_pull(&repository, "other", "Say three").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-2"), None);
    let comment = town.comment(&second).await;
    assert!(comment.contains("All apps together have the 3 processes that the operator allows"), "{comment}");
    // What serves goes on, and what was refused comes up once there is room.
    town.push_files(&repository, "one", files("four")).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("four"));
    town.close(&first).await;
    town.settle().await;
    town.say(&second, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-2").as_deref(), Some("three"));
    town.leave().await;
}
