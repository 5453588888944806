//! Several apps in one repository, and what of it a change concerns, told as people see it.

use crate::support::town::{OWNER, Town};
use serde_json::{Value, json};

const TWO_FOLDERS: &str = "[pipeline.apps.api]\nroot = \"services/api\"\npaths = [\"services/api/**\", \"libs/**\"]\n\
                           [pipeline.apps.web]\nroot = \"services/web\"\n";

/// A folder that can be built, whose page says `page`.
fn folder(root: &str, page: &str) -> Vec<(String, Value)> {
    let manifest = r#"{"environments":{"test":{"formation":{"test":{"quantity":1}},"scripts":{"test":"check"}}}}"#;
    [("Procfile", "web: serve\n"), ("app.json", manifest), ("page.txt", page)]
        .into_iter()
        .map(|(name, text)| (format!("{root}/{name}"), json!(text)))
        .collect()
}

impl Town {
    /// A repository with two folders that are apps.
    async fn make_monorepo(&self) -> String {
        self.control("POST", "/user/repos", Some(json!({ "name": "shop" }))).await;
        let repository = format!("{OWNER}/shop");
        let mut files: serde_json::Map<String, Value> =
            folder("services/api", "api one").into_iter().chain(folder("services/web", "web one")).collect();
        files.insert(".github/landfall.toml".to_owned(), json!(TWO_FOLDERS));
        self.push_files(&repository, "main", Value::Object(files)).await;
        self.settle().await;
        repository
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.world().store.apps().unwrap().iter().map(|app| app.name.to_string()).collect();
        names.sort();
        names
    }
}

#[actix_web::test]
async fn each_folder_is_an_app_of_its_own_from_the_pull_request_to_production() {
    let town = Town::start().await;
    let repository = town.make_monorepo().await;
    assert_eq!(town.served("shop-api-staging").as_deref(), Some("api one"));
    assert_eq!(town.served("shop-web-staging").as_deref(), Some("web one"));
    assert_eq!(town.names(), ["shop-api-staging", "shop-web-staging"]);

    let head =
        town.push_files(&repository, "change", json!({ "services/api/page.txt": "api two", "README.md": "x" })).await;
    let pull = town.open_pull(&repository, "change", "Change the api").await;
    town.settle().await;
    assert_eq!(town.served("shop-api-pr-1").as_deref(), Some("api two"));
    assert_eq!(town.names(), ["shop-api-pr-1", "shop-api-staging", "shop-web-staging"]);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("None of its files concerns `web`."), "{comment}");
    let mut checks = town.checks(&repository, &head).await;
    checks.sort();
    let conclusions: Vec<&str> = checks.iter().map(|check| check.0.as_str()).collect();
    assert_eq!(conclusions, ["skipped", "success"], "{checks:#?}");
    let (state, _) = town.status(&repository, &head, "landfall/review-app (api)").await.expect("a status");
    assert_eq!(state, "success");
    let deployed = town.deployments(&repository, "review/pr-1/api").await;
    assert_eq!(deployed, [(head, "success".to_owned())]);

    // By hand the other one can be had as well.
    town.say(&pull, "/deploy web\n/deploy nobody", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("shop-web-pr-1").as_deref(), Some("web one"));
    let comment = town.comment(&pull).await;
    assert!(comment.contains("There is no app `nobody` for this here."), "{comment}");

    town.merge(&pull).await;
    town.settle().await;
    assert_eq!(town.names(), ["shop-api-staging", "shop-web-staging"]);
    assert_eq!(town.served("shop-api-staging").as_deref(), Some("api two"));
    let api = town.world().store.app(&"shop-api-staging".parse().unwrap()).unwrap().unwrap();
    let web = town.world().store.app(&"shop-web-staging".parse().unwrap()).unwrap().unwrap();
    assert_eq!((api.last_release, web.last_release), (2, 1), "what does not concern an app is not deployed to it");

    // The pull request concerned one app, so that one is meant.
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("shop-api-production").as_deref(), Some("api two"));
    assert_eq!(town.served("shop-web-production"), None);
    assert!(town.comment(&pull).await.contains("In production since"));
    town.say(&pull, "/promote to shop-web-production", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("shop-web-production").as_deref(), Some("web one"));
    town.leave().await;
}

#[actix_web::test]
async fn a_pull_request_that_touches_nothing_of_an_app_gets_none_and_says_so() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline]\npaths = [\"!docs/**\"]\n").await;
    let head = town.push_files(&repository, "words", json!({ "docs/help.md": "help" })).await;
    let pull = town.open_pull(&repository, "words", "Help").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("None of its files concerns the app: write `/deploy`"), "{comment}");
    // Whoever requires the check is not kept waiting by it.
    assert_eq!(town.checks(&repository, &head).await[0].0, "skipped");
    let before = town.world().store.app(&"hello-staging".parse().unwrap()).unwrap().unwrap().last_release;
    town.merge(&pull).await;
    town.settle().await;
    let after = town.world().store.app(&"hello-staging".parse().unwrap()).unwrap().unwrap().last_release;
    assert_eq!(before, after, "nothing of it is deployed");

    town.push_files(&repository, "both", json!({ "docs/more.md": "more", "page.txt": "two" })).await;
    let pull = town.open_pull(&repository, "both", "Both").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-2").as_deref(), Some("two"));
    town.merge(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_stage_may_have_several_apps_with_their_own_branch_name_and_rules() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let rules = "[pipeline.staging.apps.next]\nbranch = \"next\"\n\
                 [pipeline.production.apps.eu]\nname = \"shop-eu\"\nformation = [\"web=2\"]\n\
                 [pipeline.production.apps.beta]\nfrom = \"next\"\nright = \"admin\"\n";
    town.rule(&repository, rules).await;
    town.push(&repository, "next", "new").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.served("hello-next-staging").as_deref(), Some("new"));
    let pull = town.merged(&repository, "change", "two").await;

    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    let which = "There are several; say which: `hello-production`, `hello-beta-production`, `shop-eu`.";
    assert!(comment.contains(which), "{comment}");
    town.make_user("mia").await;
    town.let_in(&repository, "mia", "maintain").await;
    town.say(&pull, "/promote to shop-eu\n/promote to beta", "mia").await;
    town.settle().await;
    assert_eq!(town.served("shop-eu").as_deref(), Some("two"));
    assert_eq!(town.served("hello-beta-production"), None, "it needs more than she has");
    let eu = town.world().store.app(&"shop-eu".parse().unwrap()).unwrap().unwrap();
    assert_eq!(eu.formation.as_ref().unwrap()["web"].quantity, 2);
    town.say(&pull, "/promote to hello-beta-production", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-beta-production").as_deref(), Some("new"));
    assert_eq!(town.served("hello-production"), None);
    assert_eq!(town.deployments(&repository, "production/eu").await.len(), 1);

    town.merged(&repository, "third", "three").await;
    town.say(&pull, "/promote to eu", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("shop-eu").as_deref(), Some("three"));
    town.say(&pull, "/rollback v1 to shop-eu", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("shop-eu").as_deref(), Some("two"));

    // The file scales what is there, and nobody takes another repository's name.
    town.rule(&repository, &rules.replace("web=2", "web=3")).await;
    let eu = town.world().store.app(&"shop-eu".parse().unwrap()).unwrap().unwrap();
    assert_eq!(eu.formation.as_ref().unwrap()["web"].quantity, 3);
    let other = town.make_repository("other", "one").await;
    town.rule(&other, "[pipeline.production]\nname = \"shop-eu\"\n").await;
    let repositories = town.world().store.repositories().unwrap();
    let id = repositories.iter().find(|repository| repository.name == "other").unwrap().id;
    let error = town.world().store.pipeline(id).unwrap().error.expect("a reason");
    assert!(error.contains("the name shop-eu is another repository's"), "{error}");
    town.leave().await;
}

#[actix_web::test]
async fn changed_files_are_linked_to_their_pages() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.routes]\n\"pages/*.html\" = \"/*\"\n\"page.txt\" = \"/\"\n").await;
    town.push_files(&repository, "change", json!({ "pages/about us.html": "x", "page.txt": "two" })).await;
    let pull = town.open_pull(&repository, "change", "Two pages").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("[`/about%20us`](http://hello-pr-1.localhost/about%20us)"), "{comment}");
    assert!(comment.contains("Changed pages: "), "{comment}");
    town.push(&repository, "change", "three").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(
        comment.contains("<details><summary>Timeline</summary>") && comment.contains("☑️ served after"),
        "{comment}"
    );
    town.leave().await;
}

#[actix_web::test]
async fn a_merge_that_nobody_told_of_concerns_no_more_folders_than_one_that_was() {
    let town = Town::start().await;
    let repository = town.make_monorepo().await;
    town.push_files(&repository, "change", json!({ "services/api/page.txt": "api two" })).await;
    let pull = town.open_pull(&repository, "change", "Change the api").await;
    town.settle().await;
    let id = town.world().store.repositories().unwrap()[0].id;
    let known = || town.world().store.pulls(id).unwrap().remove(0);
    let before = known().untouched;
    assert_eq!(before.len(), 1, "{before:?}");
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "lost", "recorded": false }))).await;
    town.merge(&pull).await;
    town.settle().await;
    town.control("POST", "/_/webhooks", Some(json!({ "mode": "normal" }))).await;
    landfall::reconcile::resync(town.world()).await.expect("GitHub is asked");
    town.settle().await;
    assert!(known().merged);
    assert_eq!(known().untouched, before);
    town.leave().await;
}
