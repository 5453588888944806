//! The client and the stand-in for GitHub, which share no code, with GitHub's schemas judging what the client asks.

use crate::support::schemas::CheckingProxy;
use landfall::clock::{Clock, Timestamp};
use landfall::domain::{InstallationId, PullNumber, RepositoryId, Secret, Sha};
use landfall::github::reads::{Level, Relation};
use landfall::github::writes::{
    Annotation, AnnotationLevel, CheckRun, CheckStatus, Conclusion, DeploymentState, NewDeployment,
    NewDeploymentStatus, Reaction, StatusState,
};
use landfall::github::{
    Credentials, GitHub, GitHubError, RepoHandle, RsaKey, Settings, Timeouts, install_crypto_provider,
};
use landfall::sim::{Options, Sim};
use serde_json::{Value, json};
use std::time::Duration;

const KEY: &str = include_str!("../src/github/tests/app-key.pkcs1.pem");
const PUBLIC_KEY: &str = include_str!("../src/github/tests/app-key.public.pem");

struct World {
    sim: Sim,
    proxy: CheckingProxy,
    person: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        install_crypto_provider();
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options {
            listen: ([127, 0, 0, 1], 0).into(),
            data: folder.path().to_owned(),
            public_url: None,
            // Nobody listens there; lost webhooks are not this test's business.
            webhook_url: "http://127.0.0.1:9/webhooks/github".to_owned(),
            webhook_secret: "a secret of the webhook that is long enough".to_owned(),
            app_id: 1,
            app_public_key_pem: PUBLIC_KEY.to_owned(),
            users: vec![("mona".to_owned(), "mona-token".to_owned()), ("eve".to_owned(), "eve-token".to_owned())],
        };
        let sim = Sim::start(options).await.expect("the stand-in starts");
        let proxy = CheckingProxy::start(sim.url()).await;
        let person = reqwest::Client::builder().no_proxy().build().expect("a client");
        World { sim, proxy, person, _folder: folder }
    }

    /// What a person or a control does; its answer.
    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.person.post(format!("{}{path}", self.sim.url())).bearer_auth("mona-token").json(&body);
        let response = request.header("user-agent", "test").send().await.expect("it answers");
        let (status, text) = (response.status(), response.text().await.expect("it ends"));
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn clear_faults(&self) {
        let request = self.person.delete(format!("{}/_/faults", self.sim.url()));
        assert!(request.send().await.expect("it answers").status().is_success());
    }

    /// How many calls the stand-in saw of a method and with a part of a path.
    async fn count(&self, method: &str, part: &str) -> usize {
        let response = self.person.get(format!("{}/_/requests", self.sim.url())).send().await.expect("it answers");
        let seen: Value = serde_json::from_str(&response.text().await.expect("it ends")).expect("JSON");
        let seen = seen.as_array().or_else(|| seen["requests"].as_array()).expect("a list").clone();
        seen.iter()
            .filter(|call| call["method"] == method && call["path"].as_str().is_some_and(|path| path.contains(part)))
            .count()
    }

    /// What GitHub's schemas say against the client's requests; the answers are judged in the stand-in's own tests.
    fn complaints(&self) -> Vec<String> {
        let mut complaints = self.proxy.complaints();
        complaints.retain(|sentence| !sentence.contains(" answered "));
        complaints
    }

    fn client(&self, credentials: Credentials) -> GitHub {
        let settings = Settings {
            api_url: self.proxy.url().to_owned(),
            web_url: self.sim.url().to_owned(),
            credentials,
            user_agent: "landfall/test".to_owned(),
            write_interval: Duration::ZERO,
            timeouts: Timeouts::default(),
        };
        GitHub::new(settings, Clock::System).expect("the address is good")
    }

    fn app(&self) -> GitHub {
        self.client(Credentials::App { app_id: 1, private_key: RsaKey::from_pem(KEY).expect("a key") })
    }

    /// A repository with a pull request from a branch, and its head.
    async fn repository(&self) -> (RepoHandle, PullNumber, Sha) {
        let made = self.post("/user/repos", json!({ "name": "hello", "auto_init": true })).await;
        let repo = RepoHandle {
            installation: None,
            id: RepositoryId(made["id"].as_u64().expect("a number")),
            owner: "mona".to_owned(),
            name: "hello".to_owned(),
        };
        let push =
            json!({ "repo": "mona/hello", "branch": "main", "files": { "Procfile": "web: ./run", "a/b c.txt": "x" } });
        self.post("/_/push", push).await;
        let push = json!({ "repo": "mona/hello", "branch": "feature/login", "base": "main",
                           "files": { "app.json": "{\"name\": \"hello\"}" } });
        let pushed = self.post("/_/push", push).await;
        let sha = pushed["sha"].as_str().or_else(|| pushed["after"].as_str()).expect("a SHA").parse().expect("a SHA");
        let pull = json!({ "repo": "mona/hello", "title": "Add login", "head": "feature/login", "user": "mona" });
        let pull = self.post("/_/pull", pull).await;
        (repo, PullNumber(pull["number"].as_u64().expect("a number")), sha)
    }
}

fn check(sha: &Sha, status: CheckStatus) -> CheckRun {
    CheckRun {
        name: "landfall/tests".to_owned(),
        head_sha: sha.clone(),
        external_id: "run-17".to_owned(),
        details_url: Some("http://landfall.example/runs/17".to_owned()),
        status,
        started_at: Some(Clock::System.now()),
        title: "Running".to_owned(),
        summary: "é".repeat(70_000),
        text: None,
        annotations: (1..=60)
            .map(|line| Annotation {
                path: "test/login.js".to_owned(),
                start_line: line,
                end_line: line,
                level: AnnotationLevel::Failure,
                title: Some("it fails".to_owned()),
                message: "expected 1, got 2".to_owned(),
                raw_details: None,
            })
            .collect(),
        actions: Vec::new(),
    }
}

#[actix_web::test]
async fn the_calls_of_the_story_work() {
    let world = World::start().await;
    let (mut repo, number, sha) = world.repository().await;
    let github = world.app();

    let identity = github.app().await.expect("we are known");
    assert_eq!(identity.app_id, Some(1));
    let installations = github.installations().await.expect("they are listed");
    let installation = github.repository_installation("mona", "hello").await.expect("it is installed");
    assert!(installations.iter().any(|one| one.id == installation && one.account == "mona" && !one.suspended));
    repo.installation = Some(installation);
    let repositories = github.installation_repositories(Some(installation)).await.expect("they are listed");
    assert!(repositories.iter().any(|one| one.id == repo.id));

    let found = github.repository(&repo).await.expect("it is there");
    assert_eq!((found.handle(Some(installation)), found.default_branch.as_str()), (repo.clone(), "main"));
    assert_eq!(
        github.file(&repo, "app.json", &sha).await.expect("read").as_deref(),
        Some(&b"{\"name\": \"hello\"}"[..])
    );
    assert_eq!(github.file(&repo, "a/b c.txt", &sha).await.expect("read").as_deref(), Some(&b"x"[..]));
    assert_eq!(github.file(&repo, "a", &sha).await.expect("read"), None);
    assert_eq!(github.file(&repo, ".github/landfall.toml", &sha).await.expect("read"), None);
    let unknown = "d".repeat(40).parse::<Sha>().expect("a SHA");
    assert_eq!(
        github.file(&repo, "app.json", &unknown).await,
        Err(GitHubError::NotFound { what: "the commit" }),
        "a commit that is not there yet is no missing file"
    );

    let pull = github.pull(&repo, number).await.expect("it is there");
    assert_eq!(
        (pull.head.sha.clone(), pull.head.branch.as_str(), pull.is_from_fork()),
        (sha.clone(), "feature/login", false)
    );
    assert!(pull.open && !pull.merged);
    assert_eq!(github.open_pulls(&repo).await.expect("listed").len(), 1);
    assert_eq!(github.pulls_of_commit(&repo, &sha).await.expect("listed")[0].number, number);
    assert_eq!(github.branch_head(&repo, "feature/login").await.expect("read"), Some(sha.clone()));
    assert_eq!(github.branch_head(&repo, "feature/none").await.expect("read"), None);
    assert_eq!(github.permission(&repo, "mona").await.expect("read").level, Level::Admin);
    assert!(github.permission(&repo, "eve").await.expect("read").level <= Level::Read);
    assert_eq!(github.permission(&repo, "dependabot[bot]").await.expect("read").level, Level::None);
    let commit = github.commit(&repo, &sha).await.expect("read");
    let comparison = github.compare(&repo, &pull.base.sha, &sha).await.expect("read");
    assert_eq!((comparison.relation, comparison.commits.len()), (Relation::Ahead, 1));
    assert_eq!(commit.parents, std::slice::from_ref(&pull.base.sha));
    assert_eq!(comparison.files, ["app.json"]);

    let comment = github.create_comment(&repo, number, "<!-- landfall -->\nhello").await.expect("made");
    github.update_comment(&repo, comment, "<!-- landfall -->\nworld").await.expect("changed");
    let comments = github.list_comments(&repo, number).await.expect("listed");
    assert_eq!((comments.len(), comments[0].body.as_str()), (1, "<!-- landfall -->\nworld"));
    assert!(identity.wrote(&comments[0]));
    github.react(&repo, comment.0, Reaction::Eyes).await.expect("made");
    github.react(&repo, comment.0, Reaction::Eyes).await.expect("made again");
    let reactions = github.list_reactions(&repo, comment.0).await.expect("listed");
    assert_eq!((reactions.len(), reactions[0].content.as_str()), (1, "eyes"));

    let id = github.create_check_run(&repo, &check(&sha, CheckStatus::InProgress)).await.expect("made");
    let done = CheckStatus::Completed { conclusion: Conclusion::Failure, at: Clock::System.now() };
    github.update_check_run(&repo, id, &check(&sha, done)).await.expect("changed");
    let runs = github.list_check_runs(&repo, &sha, "landfall/tests").await.expect("listed");
    assert_eq!((runs.len(), runs[0].id, runs[0].external_id.as_deref()), (1, id, Some("run-17")));
    assert_eq!((runs[0].conclusion.as_deref(), runs[0].app_id), (Some("failure"), Some(1)));

    let target = Some("http://hello-pr-1.localhost:8000/");
    let long = "é".repeat(200);
    github.set_status(&repo, &sha, "landfall/review-app", StatusState::Success, target, &long).await.expect("set");
    let statuses = github.list_statuses(&repo, &sha).await.expect("listed");
    assert_eq!((statuses[0].context.as_str(), statuses[0].state.as_str()), ("landfall/review-app", "success"));

    let deployment = NewDeployment {
        sha: sha.clone(),
        environment: "review/pr-1".to_owned(),
        production: false,
        transient: true,
        payload: json!({ "landfall_id": "d1" }),
        description: "Review app".to_owned(),
    };
    let made = github.create_deployment(&repo, &deployment).await.expect("made, whatever the statuses say");
    let deployments = github.list_deployments(&repo, "review/pr-1", &sha).await.expect("listed");
    assert_eq!((deployments.len(), deployments[0].id, deployments[0].landfall_id()), (1, made, Some("d1".to_owned())));
    for state in [DeploymentState::InProgress, DeploymentState::Success, DeploymentState::Inactive] {
        let status = NewDeploymentStatus {
            state,
            environment_url: target.map(str::to_owned),
            log_url: Some("http://landfall.example/x".to_owned()),
            description: "é".repeat(200),
            auto_inactive: true,
        };
        github.set_deployment_status(&repo, made, &status).await.expect("set");
    }
    let statuses = github.list_deployment_statuses(&repo, made).await.expect("listed");
    assert_eq!(statuses[0].state, "inactive");

    assert!(github.hook_deliveries(200).await.expect("listed").iter().any(|delivery| delivery.failed()));

    // A plain token does the same.
    let plain = world.client(Credentials::Token(Secret::new("mona-token")));
    let handle = RepoHandle { installation: None, ..repo.clone() };
    assert_eq!(plain.app().await.expect("known").login, "mona");
    plain.create_comment(&handle, number, "by hand").await.expect("made");
    assert_eq!(plain.list_comments(&handle, number).await.expect("listed").len(), 2);

    // git takes the token that may only read this repository.
    let header = github.git_authorization(Some(installation), repo.id).await.expect("minted");
    let refs = format!("{}/info/refs?service=git-upload-pack", github.clone_url(&repo));
    let answer = world.person.get(refs).header("authorization", header.expose()).send().await.expect("it answers");
    assert_eq!(answer.status().as_u16(), 200);

    // After a rename the old name leads on.
    world.post("/_/rename", json!({ "repo": "mona/hello", "name": "hello-2" })).await;
    let found = github.repository(&repo).await.expect("it is followed");
    assert_eq!((found.id, found.name.as_str()), (repo.id, "hello-2"));
    github.create_comment(&repo, number, "after the rename").await.expect("it is followed");
    assert_eq!(github.list_comments(&repo, number).await.expect("followed").len(), 3);
    assert_eq!(github.repository_by_id(Some(installation), repo.id).await.expect("read").name, "hello-2");

    assert_eq!(world.complaints(), Vec::<String>::new());
}

#[actix_web::test]
async fn faults_of_the_stand_in_are_met_as_they_should_be() {
    let world = World::start().await;
    let (mut repo, number, sha) = world.repository().await;
    let github = world.app();
    repo.installation = Some(github.repository_installation("mona", "hello").await.expect("it is installed"));
    let comments = "/issues/1/comments";
    let matching = json!({ "method": "POST", "path_regex": "/comments$" });
    let mut expected = 0;

    for (fault, effect) in [
        ("500", false),
        ("500-after", true),
        ("502", false),
        ("503", false),
        ("drop-before", false),
        ("drop-after", true),
    ] {
        world.post("/_/faults", json!({ "match": matching, "fault": fault, "count": 1 })).await;
        let before = world.count("POST", comments).await;
        let error = github.create_comment(&repo, number, fault).await.expect_err(fault);
        assert!(error.outcome_unknown(), "{fault}: {error:?}");
        assert_eq!(world.count("POST", comments).await - before, 1, "{fault} was repeated");
        world.clear_faults().await;
        expected += usize::from(effect);
        assert_eq!(github.list_comments(&repo, number).await.expect("listed").len(), expected, "{fault}");
    }

    // A token that is refused once is renewed.
    world.post("/_/faults", json!({ "match": matching, "fault": "401", "count": 1 })).await;
    github.create_comment(&repo, number, "401").await.expect("it is made with another token");
    world.clear_faults().await;

    for (fault, seconds) in [("429", 7), ("403-secondary", 9)] {
        let client = world.app();
        let repo = repo.clone();
        world.post("/_/faults", json!({ "match": matching, "fault": fault, "count": 1, "retry_after": seconds })).await;
        let now = Clock::System.now();
        let error = client.create_comment(&repo, number, fault).await.expect_err(fault);
        let GitHubError::Limited { until } = error else { panic!("{fault}: {error:?}") };
        assert!(until >= Timestamp(now.0 + seconds * 1000) && until.0 <= Clock::System.now().0 + seconds * 1000);
        let before = world.count("POST", comments).await;
        assert!(matches!(client.create_comment(&repo, number, "x").await, Err(GitHubError::Limited { .. })));
        assert!(matches!(client.list_statuses(&repo, &sha).await, Err(GitHubError::Limited { .. })));
        assert_eq!(world.count("POST", comments).await, before);
        world.clear_faults().await;
    }
    let client = world.app();
    world.post("/_/faults", json!({ "match": matching, "fault": "403-primary", "count": 1 })).await;
    let error = client.create_comment(&repo, number, "x").await.expect_err("limited");
    assert!(matches!(error, GitHubError::Limited { .. }), "{error:?}");
    world.clear_faults().await;

    world.post("/_/suspend", json!({ "owner": "mona" })).await;
    let client = world.app();
    assert_eq!(client.list_statuses(&repo, &sha).await, Err(GitHubError::Suspended));
    world.post("/_/unsuspend", json!({ "owner": "mona" })).await;
    assert_eq!(client.list_statuses(&repo, &sha).await, Err(GitHubError::Suspended), "a minute long");
    client.installation_changed(repo.installation.expect("it is installed"));
    client.list_statuses(&repo, &sha).await.expect("it is back");
    let gone = RepoHandle { installation: Some(InstallationId(999_999)), ..repo.clone() };
    assert_eq!(client.list_statuses(&gone, &sha).await, Err(GitHubError::NotInstalled));

    world.post("/_/permissions", json!({ "permissions": { "issues": null, "pull_requests": null } })).await;
    let client = world.app();
    let error = client.create_comment(&repo, number, "x").await.expect_err("forbidden");
    assert!(matches!(error, GitHubError::Forbidden { .. }), "{error:?}");

    assert_eq!(world.complaints(), Vec::<String>::new());
}
