//! What people write in comments, and when it is done.

use crate::sleep::leave_alone;
use crate::support::town::{FAILING, FAILING_MIGRATION, OWNER, Town};
use landfall::domain::{AppName, Cause, Deploy, Failure, Outcome, Refusal, Stage, StageKind, Wanted};
use landfall::reconcile;
use serde_json::json;
use std::time::{Duration, Instant};

impl Town {
    fn live_processes(&self, app: &str) -> usize {
        self.memory.running().iter().filter(|id| id.as_str().starts_with(app)).count()
    }

    /// Works on what is due until something holds, and leaves the rest for later.
    async fn step_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            reconcile::step(self.world()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn app_record(&self, name: &str) -> landfall::domain::App {
        let name: AppName = name.parse().expect("a name");
        self.world().store.app(&name).expect("the store answers").expect("the app")
    }
}

#[actix_web::test]
async fn a_comment_scales_wakes_and_runs_a_release_phase_again() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.say(&pull, "/wake\n/scale worker=1\n/scale web=1:huge\n/scale web=9000", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("It does not sleep."), "{comment}");
    assert!(comment.contains("There is no process type `worker` here; there are web."), "{comment}");
    assert!(comment.contains("There is no size `huge`; there are "), "{comment}");
    assert!(comment.contains("That would be 9000 processes; "), "{comment}");
    assert_eq!(town.live_processes("hello-pr-1"), 1);

    let scale = town.say(&pull, "/scale web=2:standard-2x", OWNER).await;
    town.settle().await;
    assert_eq!(town.reactions(&repository, scale).await, ["+1", "eyes"]);
    assert_eq!(town.live_processes("hello-pr-1"), 2);
    assert_eq!(town.app_record("hello-pr-1").formation.expect("a formation")["web"].size, "standard-2x");

    leave_alone(&town, "hello-pr-1").await;
    assert_eq!(town.live_processes("hello-pr-1"), 0);
    town.say(&pull, "/wake", OWNER).await;
    town.settle().await;
    assert_eq!((town.live_processes("hello-pr-1"), town.served("hello-pr-1").as_deref()), (2, Some("two")));

    town.say(&pull, "/retry-release staging", OWNER).await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("Its newest deploy did not fail after the build"));
    town.push(&repository, "change", FAILING_MIGRATION).await;
    town.settle().await;
    let before = town.app_record("hello-pr-1").deploys.len();
    town.say(&pull, "/retry-release", OWNER).await;
    town.settle().await;
    let app = town.app_record("hello-pr-1");
    let newest = app.newest().expect("a deploy");
    // The same slug fails the same way, in a release phase of its own, and what serves still does.
    assert_eq!(app.deploys.len(), before + 1);
    assert!(matches!(newest.outcome, Some(Outcome::Failed { .. })), "{newest:?}");
    assert_eq!(newest.by.as_deref(), Some(OWNER));
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_command_is_acknowledged_before_github_is_asked_anything() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.control("DELETE", "/_/requests", None).await;
    let comment = town.say(&pull, "/deploy", OWNER).await;
    town.settle().await;
    let calls = town.control("GET", "/_/requests", None).await;
    let calls: Vec<(String, String)> = calls["requests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|call| (call["method"].as_str().unwrap().to_owned(), call["path"].as_str().unwrap().to_owned()))
        .filter(|(_, path)| path.contains("/repos/"))
        .collect();
    let eyes = calls.iter().position(|(method, path)| method == "POST" && path.contains("/reactions"));
    let asked = calls.iter().position(|(method, path)| method == "GET" && path.contains("/pulls/1"));
    assert_eq!(eyes, Some(0), "{calls:#?}");
    assert!(asked > eyes, "{calls:#?}");
    assert_eq!(town.reactions(&repository, comment).await, ["-1", "eyes"], "each once");
    town.leave().await;
}

#[actix_web::test]
async fn a_right_that_is_lost_before_the_release_is_noticed() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.make_user("mia").await;
    town.let_in(&repository, "mia", "maintain").await;
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/promote", "mia").await;
    // Step by step, until the comment is decided on and nothing more was done.
    let production: AppName = "hello-production".parse().unwrap();
    let decided = || town.world().store.app(&production).unwrap().is_some();
    town.step_until("the comment to be decided on", decided).await;
    assert_eq!(town.app_record("hello-production").deploys[0].release, None);
    town.throw_out(&repository, "mia").await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    let comment = town.comment(&pull).await;
    assert!(comment.contains("mia, who asked for this, may not do it any more"), "{comment}");
    assert_eq!(town.app_record("hello-production").last_release, 0);
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn who_found_no_room_starts_when_there_is() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nlimit = 1\n").await;
    for branch in ["first", "second", "third"] {
        town.push(&repository, branch, branch).await;
        town.open_pull(&repository, branch, branch).await;
        town.settle().await;
    }
    let served = || [1, 2, 3].map(|number| town.served(&format!("hello-pr-{number}")));
    assert_eq!(served(), [Some("first".to_owned()), None, None]);
    let first = crate::support::town::Pull { repository: repository.clone(), number: 1 };
    town.close(&first).await;
    town.settle().await;
    assert_eq!(served(), [None, Some("second".to_owned()), None], "who came first is served first, and one only");
    town.leave().await;
}

#[actix_web::test]
async fn a_commit_can_ask_to_be_left_alone() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let wish = json!({ "repo": repository, "branch": "change", "user": OWNER, "files": { "page.txt": "three" },
                       "message": "Words only [Skip Landfall]" });
    town.control("POST", "/_/push", Some(wish)).await;
    let pull = town.open_pull(&repository, "change", "Say three").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    let head = town.head(&repository, "change").await;
    assert_eq!(town.checks(&repository, &head).await, []);
    // Comparing with GitHub says the same.
    reconcile::resync(town.world()).await.unwrap();
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    town.push(&repository, "change", "four").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("four"));
    drop(pull);
    town.leave().await;
}

#[actix_web::test]
async fn a_review_app_goes_stale_and_comes_back_when_asked_for() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\nstale_after_days = 2\n").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let long_ago = town.world().now() - Duration::from_secs(3 * 86_400);
    let name: AppName = "hello-pr-1".parse().unwrap();
    let change = move |tx: &mut landfall::store::Transaction<'_>| {
        let mut app = tx.app(&name)?.expect("the app");
        app.deploys.iter_mut().for_each(|deploy| deploy.asked_at = long_ago);
        tx.put_app(&app)
    };
    town.world().store.transact(change).await.unwrap();
    reconcile::slow_tick(town.world()).await.unwrap();
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None);
    assert!(town.comment(&pull).await.contains("It was removed after 2 days without a deploy"));
    town.say(&pull, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_freeze_of_staging_holds_it_until_the_window_is_gone() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.rule(&repository, "[[pipeline.freeze]]\nstages = [\"staging\"]\nreason = \"audit\"\n").await;
    let commit = town.push(&repository, "main", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));
    assert_eq!(town.checks(&repository, &commit).await[0].0, "success", "it is tested all the same");
    town.rule(&repository, "").await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn a_lock_of_staging_holds_back_what_was_pushed_just_before_it() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let pull = town.merged(&repository, "change", "two").await;
    town.push(&repository, "main", "three").await;
    let deploys = town.app_record("hello-staging").deploys.len();
    let asked = || town.app_record("hello-staging").deploys.len() > deploys;
    town.step_until("the push to be decided on", asked).await;
    town.say(&pull, "/lock staging load test", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.say(&pull, "/unlock staging", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("three"));
    town.leave().await;
}

#[actix_web::test]
async fn what_a_lock_held_back_at_its_second_try_is_deployed_after_it() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let pull = town.merged(&repository, "change", "two").await;
    let commit = town.push(&repository, "main", FAILING).await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.say(&pull, "/lock staging load test", OWNER).await;
    town.settle().await;
    // It is green at the second try, as far as that is to be known.
    let held = Failure::Barred {
        by: Refusal::Locked { stage: StageKind::Staging, by: OWNER.to_owned(), reason: "load test".to_owned() },
    };
    let mut app = town.app_record("hello-staging");
    let now = town.world().now();
    let again = Deploy::new(commit.parse().unwrap(), "main".to_owned(), Cause::Push, None, now);
    app.want(Deploy { outcome: Some(Outcome::Failed { failure: held, at: now }), ..again });
    let deploys = app.deploys.len();
    town.world().store.transact(move |tx| tx.put_app(&app)).await.unwrap();
    town.say(&pull, "/unlock staging", OWNER).await;
    town.settle().await;
    landfall::reconcile::resync(town.world()).await.unwrap();
    town.settle().await;
    let newest = town.app_record("hello-staging").deploys.last().cloned().unwrap();
    assert!(newest.number > deploys as u64 && newest.commit.as_str() == commit, "{newest:?}");
    town.leave().await;
}

#[actix_web::test]
async fn what_was_not_tested_green_is_not_promoted() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let pull = town.merged(&repository, "change", "two").await;
    let stage = Stage::Staging;
    assert_eq!(town.app_record("hello-staging").stage, stage);
    let id = town.world().store.repositories().unwrap()[0].id;
    // The same commit is tested again, and fails this time.
    let commit = town.head(&repository, "main").await;
    let change = move |tx: &mut landfall::store::Transaction<'_>| {
        for mut run in tx.runs_of(id)? {
            if run.commit.as_str() == commit {
                run.verdict = Some(landfall::domain::Verdict::Errored {
                    failure: landfall::domain::Failure::Source { detail: String::new() },
                });
                tx.put_run(&run)?;
            }
        }
        Ok::<_, landfall::store::StoreError>(())
    };
    town.world().store.transact(change).await.unwrap();
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    assert!(town.comment(&pull).await.contains("are not green."));
    town.leave().await;
}

#[actix_web::test]
async fn staging_follows_the_branch_that_its_rules_name() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.staging]\nbranch = \"next\"\n").await;
    town.push(&repository, "next", "two").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.push(&repository, "main", "three").await;
    town.settle().await;
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn tests_are_cancelled_by_a_comment_and_bad_code_says_so_in_its_answer() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", FAILING).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.say(&pull, "/cancel", OWNER).await;
    town.settle().await;
    assert!(town.comment(&pull).await.contains("No test run is going on."));
    // In one comment: a run starts, and ends before it did anything.
    town.say(&pull, "/retest", OWNER).await;
    let begun = || town.world().store.runs().unwrap().iter().filter(|run| run.pull.is_some()).count() >= 2;
    town.step_until("the comment to be decided on", begun).await;
    let cancel = town.say(&pull, "/cancel", OWNER).await;
    let said = || town.world().store.commands_of(town.world().store.repositories().unwrap()[0].id).unwrap();
    // The webhook is in the queue before the run's nodes end: only deliveries are worked on until then.
    let decided = || said().iter().any(|record| record.comment == cancel);
    town.step_until("the comment to be decided on", decided).await;
    town.settle().await;
    let runs = town.world().store.runs().unwrap();
    let newest = runs.iter().filter(|run| run.pull.is_some()).max_by_key(|run| run.number).unwrap();
    let answer = said().into_iter().find(|record| record.comment == cancel).unwrap().answer;
    // Whichever came first, the answer says what happened.
    assert_eq!(newest.cancelled.is_some(), answer == landfall::domain::Answer::Done, "{newest:?} {answer:?}");
    town.leave().await;
}

#[actix_web::test]
async fn tests_that_somebody_ended_are_not_begun_again_by_a_look_at_github() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    let of_pull = || {
        let runs = town.world().store.runs().unwrap().into_iter();
        runs.filter(|run| run.pull.is_some()).collect::<Vec<_>>()
    };
    town.step_until("the pull request to be decided on", || !of_pull().is_empty()).await;
    assert!(reconcile::command::cancel(town.world(), of_pull()[0].number, OWNER).await.unwrap());
    town.settle().await;
    reconcile::resync(town.world()).await.unwrap();
    town.settle().await;
    assert_eq!(of_pull().len(), 1, "{:?}", of_pull());
    town.leave().await;
}

#[actix_web::test]
async fn tests_of_what_a_freeze_holds_back_stay_ended_too() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.rule(&repository, "[[pipeline.freeze]]\nstages = [\"staging\"]\nreason = \"audit\"\n").await;
    town.settle().await;
    let runs = || town.world().store.runs().unwrap();
    let before = runs().len();
    town.push(&repository, "main", "two").await;
    town.step_until("the push to be decided on", || runs().len() > before).await;
    let newest = runs().iter().map(|run| run.number).max().unwrap();
    assert!(reconcile::command::cancel(town.world(), newest, OWNER).await.unwrap());
    town.settle().await;
    reconcile::resync(town.world()).await.unwrap();
    town.settle().await;
    assert_eq!(runs().len(), before + 1, "{:?}", runs());
    town.leave().await;
}

#[actix_web::test]
async fn a_team_that_the_app_may_not_see_lets_nobody_in() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.production]\nteams = [\"acme/deployers\"]\n").await;
    town.control("POST", "/_/team", Some(json!({ "org": "acme", "team": "deployers", "members": ["mia"] }))).await;
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    assert!(town.comment(&pull).await.contains("and a place in one of its teams"));
    assert!(town.world().store.apps().unwrap().iter().all(|app| app.wanted == Wanted::Running || app.pull().is_some()));
    town.leave().await;
}

#[actix_web::test]
async fn a_team_of_the_organisation_lets_its_members_in() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.production]\nteams = [\"acme/deployers\"]\n").await;
    town.control("POST", "/_/permissions", Some(json!({ "permissions": { "members": "read" } }))).await;
    for name in ["mia", "wanda"] {
        town.make_user(name).await;
        town.let_in(&repository, name, "push").await;
    }
    let team = json!({ "org": "acme", "team": "deployers", "members": ["mia"] });
    town.control("POST", "/_/team", Some(team)).await;
    let pull = town.merged(&repository, "change", "two").await;
    town.say(&pull, "/promote", "wanda").await;
    town.settle().await;
    assert_eq!(town.served("hello-production"), None);
    assert!(town.comment(&pull).await.contains("and a place in one of its teams"));
    town.say(&pull, "/promote", "mia").await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("two"));
    town.leave().await;
}

/// One who asked for an app's first deploy once is not asked about when somebody else asks for the first deploy of a
/// later app of the same name.
#[actix_web::test]
async fn only_who_asked_for_a_deploy_is_asked_about() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.rule(&repository, "[pipeline.review]\napps = \"manual\"\n").await;
    town.make_user("mia").await;
    town.let_in(&repository, "mia", "push").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.say(&pull, "/deploy", "mia").await;
    town.settle().await;
    town.say(&pull, "/destroy", OWNER).await;
    town.settle().await;
    town.throw_out(&repository, "mia").await;
    town.say(&pull, "/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"), "{}", town.comment(&pull).await);
    town.leave().await;
}

#[actix_web::test]
async fn the_dashboard_gives_the_orders_of_a_comment_and_keeps_rules() {
    use landfall::domain::{Answer, Command, OrderKind, PullNumber, StageKind};
    use landfall::reconcile::command;
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let world = town.world();
    let known = world.store.repositories().unwrap().remove(0);
    let rules = "[pipeline.review]\napps = \"manual\"\n[pipeline.production]\nright = \"admin\"\n";
    command::set_rules(world, &known, rules, "olivia at the desk").await.unwrap().unwrap();
    let wrong = command::set_rules(world, &known, "[pipeline.reveiw]\n", "x").await.unwrap().unwrap_err();
    assert!(wrong.contains("reveiw"), "{wrong}");
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1"), None, "the dashboard's rule holds");
    let deploy = Command::Deploy { app: None };
    let answer = command::give(world, &known, deploy, Some(PullNumber(1)), "operator").await.unwrap();
    assert!(matches!(answer, Ok(Answer::Deploying { .. })), "{answer:?}");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));

    // The file wins where both say something.
    town.rule(&repository, "[pipeline.production]\nright = \"maintain\"\n").await;
    let policy = world.store.pipeline(known.id).unwrap().policy;
    assert_eq!(policy.production.right, landfall::domain::Access::Maintain);
    assert_eq!(policy.review.apps, landfall::domain::ReviewApps::Manual);

    town.merge(&pull).await;
    town.settle().await;
    let lock = Command::Lock { stage: StageKind::Production, reason: "stock-taking".to_owned() };
    command::give(world, &known, lock, None, "operator").await.unwrap().unwrap();
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    assert!(comment.contains("Production is locked by `operator`: `stock-taking`."), "{comment}");
    let unlock = Command::Unlock { stage: StageKind::Production };
    command::give(world, &known, unlock.clone(), None, "operator").await.unwrap().unwrap();
    assert!(command::give(world, &known, unlock, None, "operator").await.unwrap().is_err(), "it is not locked");
    let orders = world.store.orders().unwrap();
    let verbs: Vec<&str> = orders
        .iter()
        .map(|order| match &order.what {
            OrderKind::Rules => "rules",
            OrderKind::Command { command: Command::Deploy { .. }, .. } => "deploy",
            OrderKind::Command { command: Command::Lock { .. }, .. } => "lock",
            OrderKind::Command { command: Command::Unlock { .. }, .. } => "unlock",
            _ => "other",
        })
        .collect();
    assert_eq!(verbs, ["rules", "deploy", "lock", "unlock", "unlock"]);
    town.leave().await;
}

#[actix_web::test]
async fn a_command_knows_what_those_before_it_in_its_comment_did() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    let (fork, head) = town.open_fork(&repository, "mallory").await;
    town.settle().await;
    let before = town.app_record("hello-pr-1").deploys.len();
    town.say(&pull, "/destroy\n/deploy", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!(town.app_record("hello-pr-1").deploys.len(), before + 1);
    let id = town.world().store.repositories().unwrap()[0].id;
    assert_eq!(town.world().store.pulls(id).unwrap()[0].parked, None);

    // What the approval begins is under way: there is nothing to test once more.
    town.say(&fork, &format!("/approve {head}\n/retest"), OWNER).await;
    town.settle().await;
    let comment = town.comment(&fork).await;
    assert!(comment.contains("the run is still going on"), "{comment}");
    let runs = town.world().store.runs().unwrap();
    assert_eq!(runs.iter().filter(|run| run.commit.as_str() == head).count(), 1);
    town.leave().await;
}
