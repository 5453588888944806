//! Policies, commands and promotions, told as people see them.

use crate::support::town::{FAILING, OWNER, Pull, Town};
use serde_json::{Value, json};

const SETTINGS: &str = ".github/landfall.toml";

impl Town {
    /// Puts rules on the default branch.
    pub(crate) async fn rule(&self, repository: &str, rules: &str) {
        let mut files = serde_json::Map::new();
        files.insert(SETTINGS.to_owned(), json!(rules));
        self.push_files(repository, "main", Value::Object(files)).await;
        self.settle().await;
    }

    pub(crate) async fn make_user(&self, name: &str) {
        self.control("POST", "/_/user", Some(json!({ "name": name }))).await;
    }

    /// Gives somebody a role on the repository.
    pub(crate) async fn let_in(&self, repository: &str, name: &str, role: &str) {
        let path = format!("/repos/{repository}/collaborators/{name}");
        self.control("PUT", &path, Some(json!({ "permission": role }))).await;
    }

    pub(crate) async fn throw_out(&self, repository: &str, name: &str) {
        self.control("DELETE", &format!("/repos/{repository}/collaborators/{name}"), None).await;
    }

    /// A fork's pull request; gives it and its head.
    pub(crate) async fn open_fork(&self, repository: &str, by: &str) -> (Pull, String) {
        self.open_fork_with(repository, by, json!({ "page.txt": "from afar" })).await
    }

    /// As `open_fork`, with these files changed.
    pub(crate) async fn open_fork_with(&self, repository: &str, by: &str, files: Value) -> (Pull, String) {
        self.make_user(by).await;
        self.control("POST", "/_/fork", Some(json!({ "repo": repository, "user": by }))).await;
        let head = self.push_files_to_fork(by, files).await;
        let name = repository.split_once('/').expect("a name").1;
        let open = json!({
            "repo": repository, "title": "From afar", "head": "change", "head_repo": format!("{by}/{name}"), "user": by,
        });
        let number = self.control("POST", "/_/pull", Some(open)).await["number"].as_u64().expect("a number");
        (Pull { repository: repository.to_owned(), number }, head)
    }

    pub(crate) async fn push_to_fork(&self, by: &str, page: &str) -> String {
        self.push_files_to_fork(by, json!({ "page.txt": page })).await
    }

    async fn push_files_to_fork(&self, by: &str, files: Value) -> String {
        let push = json!({
            "repo": format!("{by}/hello"), "branch": "change", "user": by, "message": "x", "files": files,
        });
        let pushed = self.control("POST", "/_/push", Some(push)).await;
        pushed["sha"].as_str().or_else(|| pushed["after"].as_str()).expect("a commit").to_owned()
    }

    /// All that we wrote into the thread beside the sticky comment.
    pub(crate) async fn answers(&self, pull: &Pull) -> Vec<String> {
        let path = format!("/repos/{}/issues/{}/comments?per_page=100", pull.repository, pull.number);
        let all = self.control("GET", &path, None).await;
        let bodies = all.as_array().expect("a list").iter().filter_map(|comment| comment["body"].as_str());
        bodies.filter(|body| body.contains("<!-- landfall-answer ")).map(str::to_owned).collect()
    }

    /// The status of a context at a commit, newest first: state and description.
    pub(crate) async fn status(&self, repository: &str, commit: &str, context: &str) -> Option<(String, String)> {
        let all = self.control("GET", &format!("/repos/{repository}/commits/{commit}/statuses"), None).await;
        let found = all.as_array().expect("a list").iter().find(|status| status["context"] == context)?;
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Some((text("state"), text("description")))
    }

    /// A pull request whose commit is merged and on staging.
    pub(crate) async fn merged(&self, repository: &str, branch: &str, page: &str) -> Pull {
        self.push(repository, branch, page).await;
        let pull = self.open_pull(repository, branch, "Change the page").await;
        self.settle().await;
        self.merge(&pull).await;
        self.settle().await;
        pull
    }

    /// The same, and promoted by its owner.
    pub(crate) async fn promoted(&self, repository: &str, branch: &str, page: &str) -> Pull {
        let pull = self.merged(repository, branch, page).await;
        self.say(&pull, "/promote", OWNER).await;
        self.settle().await;
        pull
    }
}

#[actix_web::test]
async fn rules_come_from_the_default_branch_and_a_bad_file_leaves_the_last_good_ones() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\napps = \"manual\"\n").await;
    // What a pull request says about its own rules counts for nothing.
    town.push_files(&repository, "change", json!({ SETTINGS: "[pipeline.review]\napps = \"automatic\"\n" })).await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("No review app") && comment.contains("`review-app`"), "{comment}");

    town.push_files(&repository, "main", json!({ SETTINGS: "[pipeline.reveiw]\n" })).await;
    let broken = town.head(&repository, "main").await;
    town.settle().await;
    let (state, _) = town.status(&repository, &broken, "landfall/settings").await.expect("a status");
    assert_eq!(state, "failure");
    let id = town.world().store.repositories().unwrap()[0].id;
    let known = town.world().store.pipeline(id).unwrap();
    assert_eq!(known.policy.review.apps, landfall::domain::ReviewApps::Manual);
    assert!(known.error.expect("a reason").contains("reveiw"));

    // The label asks for it, and its removal takes it away.
    let labels = format!("/repos/{repository}/issues/1/labels");
    town.control("POST", &labels, Some(json!({ "labels": ["review-app"] }))).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.control("DELETE", &format!("{labels}/review-app"), None).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    town.say(&pull, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn drafts_skipped_titles_and_the_cap_get_no_review_app_by_themselves() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\ndrafts = false\nlimit = 1\n").await;
    let base = town.head(&repository, "main").await;
    for branch in ["draft", "skipped", "first", "second"] {
        let path = format!("/repos/{repository}/git/refs");
        let wish = json!({ "ref": format!("refs/heads/{branch}"), "sha": base });
        town.control("POST", &path, Some(wish)).await;
        town.push(&repository, branch, branch).await;
    }
    let open = json!({ "title": "Draft", "head": "draft", "base": "main", "body": "", "draft": true });
    town.control("POST", &format!("/repos/{repository}/pulls"), Some(open)).await;
    town.settle().await;
    let skipped = town.open_pull(&repository, "skipped", "Words [skip landfall]").await;
    town.settle().await;
    let first = town.open_pull(&repository, "first", "First").await;
    town.settle().await;
    let second = town.open_pull(&repository, "second", "Second").await;
    town.settle().await;
    let draft = Pull { repository: repository.clone(), number: 1 };
    assert!(town.comment(&draft).await.contains("Drafts get none here"));
    assert!(town.comments(&skipped).await.is_empty(), "nothing is said where nothing is done");
    let head = town.head(&repository, "skipped").await;
    assert_eq!(town.checks(&repository, &head).await, []);
    assert_eq!(town.served("hello-pr-3").as_deref(), Some("first"));
    assert_eq!(town.served("hello-pr-4"), None);
    assert!(town.comment(&second).await.contains("1 live already"));
    town.say(&second, "/deploy", OWNER).await;
    town.settle().await;
    assert!(town.comment(&second).await.contains("1 review apps live already, as many as may."));
    town.say(&first, "/destroy", OWNER).await;
    town.settle().await;
    assert!(town.comment(&first).await.contains("destroyed it"));
    town.say(&second, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!((town.served("hello-pr-3"), town.served("hello-pr-4").as_deref()), (None, Some("second")));
    town.leave().await;
}

#[actix_web::test]
async fn a_fork_runs_exactly_the_approved_commit_and_nothing_pushed_after_it() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let (pull, head) = town.open_fork(&repository, "mallory").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains(&format!("/approve {head}")));
    let later = town.push_to_fork("mallory", "evil").await;
    town.settle().await;
    // The author, an old commit and a short name are all refused.
    town.say(&pull, &format!("/approve {later}"), "mallory").await;
    town.say(&pull, &format!("/approve {head}"), OWNER).await;
    town.say(&pull, &format!("/approve {}", &later[..12]), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert!(town.comment(&pull).await.contains("That is not the commit that the pull request offers now"));
    town.say(&pull, &format!("/approve {later}"), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("evil"));
    let app = town.world().store.app(&"hello-pr-1".parse().unwrap()).unwrap().unwrap();
    assert!(app.untrusted);
    assert!(town.world().store.runs().unwrap().iter().any(|run| run.untrusted && run.commit.as_str() == later));
    assert_eq!(town.checks(&repository, &later).await[0].0, "success");
    town.push_to_fork("mallory", "worse").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None, "an approval ends with the next push");
    assert!(town.comment(&pull).await.contains("Held"));
    town.leave().await;
}

#[actix_web::test]
async fn a_promotion_says_what_went_out_and_each_pull_request_says_since_when() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let first = town.promoted(&repository, "first", "two").await;
    let second = town.merged(&repository, "second", "three").await;
    let third = town.promoted(&repository, "third", "four").await;
    assert_eq!(town.served("hello-production").as_deref(), Some("four"));
    let answers = town.answers(&third).await;
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let answer = &answers[0];
    assert!(answer.contains("v2 went out to hello-production") && answer.contains("4 commits"), "{answer}");
    assert!(answer.contains("#2 ") && answer.contains("#3 ") && !answer.contains("#1 "), "{answer}");
    for pull in [&first, &second, &third] {
        let comment = town.comment(pull).await;
        assert!(comment.contains("In production since"), "{comment}");
    }
    town.say(&third, "/rollback", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    let comment = town.comment(&third).await;
    assert!(comment.contains("was rolled back") && comment.contains("release phases of v2 stay done"), "{comment}");
    assert!(town.comment(&second).await.contains("was rolled back"));
    assert!(town.comment(&first).await.contains("In production since"));
    town.leave().await;
}

#[actix_web::test]
async fn a_lock_holds_back_says_who_and_why_and_ends() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/lock the till is being counted\n/lock staging load test", OWNER).await;
    town.settle().await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Production is locked by `olivia`: `the till is being counted`."), "{comment}");
    let commit = town.push(&repository, "main", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    assert_eq!(town.checks(&repository, &commit).await[0].0, "success", "it is tested all the same");
    town.say(&pull, "/promote --hotfix customers can not pay", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    let comment = town.comment(&pull).await;
    assert!(comment.contains("A hotfix, `customers can not pay`, passed over this: Production is locked"), "{comment}");
    town.say(&pull, "/unlock staging\n/unlock\n/unlock", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    assert!(town.comment(&pull).await.contains("Production is not locked."));
    town.say(&pull, "/freeze until 3d holidays", OWNER).await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    assert!(town.comment(&pull).await.contains("Production is frozen until"));
    town.say(&pull, "/freeze off\n/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("three"));
    town.leave().await;
}

#[actix_web::test]
async fn a_command_for_one_stage_reaches_no_app_of_another() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let merged = town.merged(&repository, "change", "two").await;
    town.say(&merged, "/promote", OWNER).await;
    town.settle().await;
    town.push(&repository, "other", "three").await;
    let pull = town.open_pull(&repository, "other", "Say three").await;
    town.settle().await;
    for command in [
        "/deploy hello-production",
        "/deploy hello-staging",
        "/destroy hello-production",
        "/destroy hello-staging",
        "/promote to hello-staging",
    ] {
        town.say(&pull, command, OWNER).await;
        town.settle().await;
        let name = command.rsplit(' ').next().unwrap();
        let refusal = format!("There is no app `{name}` for this here.");
        assert!(town.comment(&pull).await.contains(&refusal), "{command}: {}", town.comment(&pull).await);
        let served = ["hello-pr-2", "hello-staging", "hello-production"].map(|app| town.served(app));
        assert_eq!(served, ["three", "two", "two"].map(|text| Some(text.to_owned())), "{command}");
    }
    town.leave().await;
}

#[actix_web::test]
async fn production_needs_the_right_that_its_rules_name_and_a_second_person() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.production]\nright = \"maintain\"\napprovals = 1\n").await;
    for (name, role) in [("wanda", "push"), ("mia", "maintain"), ("max", "maintain")] {
        town.make_user(name).await;
        town.let_in(&repository, name, role).await;
    }
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/promote", "wanda").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("This needs maintain access to the repository; GitHub says `write`."));
    town.say(&pull, "/promote", "mia").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("waits for a second person"));
    town.say(&pull, "/promote", "mia").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("This needs somebody else to say so too."));
    // A right that was lost in between is noticed.
    town.throw_out(&repository, "mia").await;
    town.say(&pull, "/promote", "max").await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("`mia`, who asked first, may not do this any more."));
    assert_eq!(town.served("hello-production"), None);
    town.let_in(&repository, "mia", "maintain").await;
    town.say(&pull, "/promote", "max").await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    assert!(town.comment(&pull).await.contains("First asked for by `mia`."));
    town.leave().await;
}

#[actix_web::test]
async fn commands_on_a_review_app_are_answered_once() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nstale_after_days = 5\n").await;
    town.push(&repository, "change", FAILING).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let before = town.memory.running();
    let comment = town.say(&pull, "/restart\n/logs 5\n/status\n/help\n/extend 3d\n/retest failed", OWNER).await;
    town.settle().await;
    assert_eq!(town.reactions(&repository, comment).await, ["+1", "-1", "eyes"]);
    assert_eq!(town.answers(&pull).await.len(), 3);
    assert!(town.memory.running().iter().any(|process| !before.contains(process)), "nothing was started anew");
    assert!(town.served("hello-pr-1").is_some());
    let runs = town.world().store.runs().unwrap();
    assert_eq!(runs.iter().filter(|run| run.pull.is_some()).count(), 2);
    let app = town.world().store.app(&"hello-pr-1".parse().unwrap()).unwrap().unwrap();
    assert!(app.kept_until.is_some());
    town.settle().await;
    assert_eq!(town.answers(&pull).await.len(), 3);
    town.leave().await;
}

#[actix_web::test]
async fn a_review_app_can_wait_for_its_tests_and_a_promotion_can_name_what_it_means() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nwait_for_ci = true\n").await;
    let commit = town.push(&repository, "change", FAILING).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None, "red code waits");
    assert_eq!(town.status(&repository, &commit, "landfall/review-app").await.expect("a status").0, "failure");
    town.push(&repository, "change", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.merge(&pull).await;
    town.settle().await;
    town.say(&pull, "/promote v7", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Staging serves v2, not v7."), "{comment}");
    town.leave().await;
}

#[actix_web::test]
async fn a_review_app_that_waits_for_its_tests_is_made_when_they_are_green_at_the_second_try() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nwait_for_ci = true\n").await;
    let mut pulls = Vec::new();
    for branch in ["comment", "button", "desk"] {
        let head = town.push(&repository, branch, &format!("{FAILING} by {branch}")).await;
        pulls.push((town.open_pull(&repository, branch, branch).await, head));
    }
    town.settle().await;
    let apps = ["hello-pr-1", "hello-pr-2", "hello-pr-3"];
    assert_eq!(apps.map(|app| town.served(app)), [None, None, None], "red code waits");

    town.let_tests_pass();
    town.say(&pulls[0].0, "/retest failed", OWNER).await;
    let checks = town.control("GET", &format!("/repos/{repository}/commits/{}/check-runs", pulls[1].1), None).await;
    let again = json!({ "repo": repository, "check_run": checks["check_runs"][0]["id"], "user": OWNER });
    town.control("POST", "/_/rerequest", Some(again)).await;
    let run = town.world().store.runs().unwrap().into_iter().find(|run| run.commit.as_str() == pulls[2].1).unwrap();
    landfall::reconcile::command::rerun(town.world(), &run, OWNER, false).await.unwrap().expect("it may be run again");
    town.settle().await;
    for ((_, head), app) in pulls.iter().zip(apps) {
        assert!(town.served(app).is_some(), "{app} is not there");
        assert_eq!(town.status(&repository, head, "landfall/review-app").await.expect("a status").0, "success");
    }
    town.leave().await;
}

/// The hosts that the router leads to an app.
pub(crate) fn hosts(town: &Town, app: &str) -> Vec<String> {
    let router = town.router.lock().expect("no holder panics");
    let route = router.tables.last().and_then(|table| table.apps.iter().find(|(name, _)| name.as_str() == app));
    route.map(|(_, route)| route.hosts.clone()).unwrap_or_default()
}

#[actix_web::test]
async fn a_file_gives_an_app_the_domains_that_the_operator_allows_and_the_first_one_keeps_them() {
    let allow = |config: &mut landfall::config::Config| {
        config.domains.insert("given.example.com".to_owned(), "elsewhere".parse().expect("a name"));
        config.allowed_domains.insert(format!("{OWNER}/*"), vec!["*.example.com".to_owned()]);
        config.server.public_url = "https://landfall.example.com".to_owned();
    };
    let mut town = Town::start_with(None, allow).await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost"]);
    town.rule(&repository, "[pipeline.staging]\ndomains = [\"next.example.com\"]\n").await;
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost", "next.example.com"]);

    // Nobody else gets it, nor what is the operator's to give, nor what nobody allowed; the earlier rules go on.
    let other = town.make_repository("other", "two").await;
    town.settle().await;
    for (domain, expected) in [
        ("next.example.com", "another repository&#39;s already"),
        ("given.example.com", "given away in the operator&#39;s [domains]"),
        ("landfall.example.com", "a host of Landfall itself"),
        ("hello-staging.localhost", "a host of Landfall itself"),
        ("bank.example.org", "the operator does not allow bank.example.org here"),
    ] {
        town.rule(&other, &format!("[pipeline.staging]\ndomains = [\"{domain}\"]\n")).await;
        let state = town.world().store.pipeline(town.world().store.repositories().unwrap()[1].id).unwrap();
        let error = state.error.expect("it is refused");
        assert!(error.contains(&expected.replace("&#39;", "'")), "{domain}: {error}");
        assert_eq!(hosts(&town, "other-staging"), ["other-staging.localhost"], "{domain}");
        assert!(hosts(&town, "hello-staging").contains(&"next.example.com".to_owned()));
    }

    // A pull request that names a domain changes nothing, and a review app has none.
    let files = json!({ SETTINGS: "[pipeline.staging]\ndomains = [\"pull.example.com\"]\n", "page.txt": "three" });
    town.push_files(&repository, "change", files).await;
    town.open_pull(&repository, "change", "Say three").await;
    town.settle().await;
    assert_eq!(hosts(&town, "hello-pr-1"), ["hello-pr-1.localhost"]);
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost", "next.example.com"]);

    // Once it is named no more, it is free.
    town.rule(&repository, "").await;
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost"]);

    // What is said at the desk reaches a router that did not listen at first.
    let known = town.world().store.repositories().unwrap().remove(0);
    let say =
        async |rules: &str| landfall::reconcile::command::set_rules(town.world(), &known, rules, "operator").await;
    town.router.lock().expect("no holder panics").refuses = true;
    assert!(say("[pipeline.staging]\ndomains = [\"desk.example.com\"]\n").await.is_err());
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost"]);
    town.router.lock().expect("no holder panics").refuses = false;
    landfall::reconcile::slow_tick(town.world()).await.expect("the slow tick works");
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost", "desk.example.com"]);
    say("").await.expect("the router takes it").expect("they are good");
    assert_eq!(hosts(&town, "hello-staging"), ["hello-staging.localhost"]);
    town.rule(&other, "[pipeline.staging]\ndomains = [\"next.example.com\"]\n").await;
    assert_eq!(hosts(&town, "other-staging"), ["other-staging.localhost", "next.example.com"]);

    // What the operator takes back leads nowhere from the next start on, and the reason is there.
    town.kill().await;
    town.boot_with(None, |config| config.allowed_domains.clear()).await;
    landfall::reconcile::send_routes(town.world()).await.expect("the router takes its table");
    assert_eq!(hosts(&town, "other-staging"), ["other-staging.localhost"]);
    landfall::reconcile::resync(town.world()).await.expect("GitHub is asked");
    town.settle().await;
    let state = town.world().store.pipeline(town.world().store.repositories().unwrap()[1].id).unwrap();
    assert!(state.error.is_some_and(|error| error.contains("does not allow next.example.com")));
    town.leave().await;
}
