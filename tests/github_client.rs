//! Every request that the client can make is one that GitHub's own description allows.

use crate::support::schemas::GitHubSchemas;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use landfall::clock::{Clock, Timestamp};
use landfall::domain::{InstallationId, PullNumber, RepositoryId, Secret, Sha};
use landfall::github::writes::{
    Annotation, AnnotationLevel, CheckAction, CheckRun, CheckStatus, CommentId, Conclusion, DeploymentState,
    NewDeployment, NewDeploymentStatus, Reaction, StatusState,
};
use landfall::github::{Credentials, GitHub, RepoHandle, RsaKey, Settings, Timeouts, install_crypto_provider};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KEY: &str = include_str!("../src/github/tests/app-key.pkcs1.pem");
const SHA: &str = "6dcb09b5b57875f334f61aebed695e2e4193db5e";
const NOW: Timestamp = Timestamp(1_795_389_577_000);

type Requests = Arc<Mutex<Vec<(String, String, Option<Value>)>>>;

/// Writes every request down and answers with what satisfies the client.
async fn answer(request: HttpRequest, body: web::Bytes, requests: web::Data<Requests>) -> HttpResponse {
    let path = request.uri().path_and_query().map_or("/", |both| both.as_str()).to_owned();
    let body = (!body.is_empty()).then(|| serde_json::from_slice(&body).expect("the client sends JSON"));
    requests.lock().expect("no holder panics").push((request.method().to_string(), path, body));
    if request.method() == "GET" {
        return HttpResponse::NotFound().json(json!({ "message": "Not Found" }));
    }
    let ends = Timestamp(NOW.0 + 3_600_000).rfc3339();
    HttpResponse::Created().json(json!({ "id": 1, "token": "ghs_1_a.b-c_d", "expires_at": ends }))
}

fn check_run(status: CheckStatus) -> CheckRun {
    CheckRun {
        name: "landfall/tests".to_owned(),
        head_sha: SHA.parse().expect("a SHA"),
        external_id: "run-17".to_owned(),
        details_url: Some("http://landfall.example/runs/17".to_owned()),
        status,
        started_at: Some(NOW),
        title: "1 of 60 failed".to_owned(),
        summary: "é".repeat(70_000),
        text: Some("é".repeat(70_000)),
        annotations: (1..=60)
            .map(|line| Annotation {
                path: "test/login.js".to_owned(),
                start_line: line,
                end_line: line,
                level: AnnotationLevel::Failure,
                title: Some("t".repeat(300)),
                message: "m".repeat(if line == 1 { 70_000 } else { 70 }),
                raw_details: (line == 1).then(|| "d".repeat(70_000)),
            })
            .collect(),
        actions: vec![
            CheckAction {
                label: "A label that is far too long for it".to_owned(),
                description: "A description that is far too long for a button of GitHub's".to_owned(),
                identifier: "an-identifier-that-is-far-too-long".to_owned(),
            };
            5
        ],
    }
}

async fn call_everything(github: &GitHub, installation: Option<InstallationId>) {
    let repo =
        RepoHandle { installation, id: RepositoryId(1000), owner: "octocat".to_owned(), name: "hello.js".to_owned() };
    let sha: Sha = SHA.parse().expect("a SHA");
    let (pull, comment) = (PullNumber(1), CommentId(12_345_678_901));

    // What the reads answer is no matter here.
    let _ = github.app().await;
    let _ = github.installations().await;
    let _ = github.repository_installation("octocat", "hello.js").await;
    let _ = github.installation_repositories(installation).await;
    let _ = github.repository(&repo).await;
    let _ = github.file(&repo, ".github/landfall.toml", &sha).await;
    let _ = github.file(&repo, "app.json", &sha).await;
    let _ = github.pull(&repo, pull).await;
    let _ = github.open_pulls(&repo).await;
    let _ = github.pulls_of_commit(&repo, &sha).await;
    let _ = github.branch_head(&repo, "main").await;
    let _ = github.branch_head(&repo, "feature/$(id) ü").await;
    let _ = github.permission(&repo, "dependabot[bot]").await;
    let _ = github.commit(&repo, &sha).await;
    let _ = github.compare(&repo, &sha, &sha).await;
    let _ = github.list_comments(&repo, pull).await;
    let _ = github.list_check_runs(&repo, &sha, "landfall/tests").await;
    let _ = github.list_statuses(&repo, &sha).await;
    let _ = github.list_deployments(&repo, "review/pr-1", &sha).await;
    let _ = github.list_environment_deployments(&repo, "review/pr-1").await;
    let _ = github.list_deployment_statuses(&repo, 1).await;
    let _ = github.list_reactions(&repo, comment.0).await;
    let _ = github.hook_deliveries(10).await;

    github.create_comment(&repo, pull, &"é".repeat(70_000)).await.expect("it is answered");
    github.update_comment(&repo, comment, "x").await.expect("it is answered");
    for status in [
        CheckStatus::Queued,
        CheckStatus::InProgress,
        CheckStatus::Completed { conclusion: Conclusion::Success, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::Failure, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::Neutral, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::Cancelled, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::Skipped, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::TimedOut, at: NOW },
        CheckStatus::Completed { conclusion: Conclusion::ActionRequired, at: NOW },
    ] {
        github.create_check_run(&repo, &check_run(status)).await.expect("it is answered");
        github.update_check_run(&repo, 1, &check_run(status)).await.expect("it is answered");
    }
    let bare = CheckRun {
        details_url: None,
        started_at: None,
        text: None,
        annotations: Vec::new(),
        actions: Vec::new(),
        ..check_run(CheckStatus::Queued)
    };
    github.create_check_run(&repo, &bare).await.expect("it is answered");
    github.update_check_run(&repo, 1, &bare).await.expect("it is answered");
    for state in [StatusState::Pending, StatusState::Success, StatusState::Failure, StatusState::Error] {
        for url in [None, Some("http://pr-1.example/"), Some("javascript:alert(1)")] {
            let description = "é".repeat(200);
            github.set_status(&repo, &sha, "landfall/review-app", state, url, &description).await.expect("answered");
        }
    }
    for (environment, production, transient) in [("review/pr-1", false, true), ("production", true, false)] {
        let deployment = NewDeployment {
            sha: sha.clone(),
            environment: environment.to_owned(),
            production,
            transient,
            payload: json!({ "landfall_id": "d1" }),
            description: "é".repeat(200),
        };
        github.create_deployment(&repo, &deployment).await.expect("it is answered");
    }
    for state in [
        DeploymentState::Queued,
        DeploymentState::Pending,
        DeploymentState::InProgress,
        DeploymentState::Success,
        DeploymentState::Failure,
        DeploymentState::Error,
        DeploymentState::Inactive,
    ] {
        let status = NewDeploymentStatus {
            state,
            environment_url: Some("http://pr-1.example/".to_owned()),
            log_url: Some("http://landfall.example/apps/x".to_owned()),
            description: "é".repeat(200),
            auto_inactive: true,
        };
        github.set_deployment_status(&repo, 1, &status).await.expect("it is answered");
    }
    for reaction in [
        Reaction::ThumbsUp,
        Reaction::ThumbsDown,
        Reaction::Laugh,
        Reaction::Confused,
        Reaction::Heart,
        Reaction::Hooray,
        Reaction::Rocket,
        Reaction::Eyes,
    ] {
        github.react(&repo, comment.0, reaction).await.expect("it is answered");
    }
    github.git_authorization(installation, repo.id).await.expect("it is answered");
}

#[actix_web::test]
async fn every_request_is_one_that_github_describes() {
    install_crypto_provider();
    let requests = Requests::default();
    let shared = web::Data::new(Arc::clone(&requests));
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).app_data(web::PayloadConfig::new(64 << 20)).default_service(web::to(answer))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)
    .expect("it can be served")
    .run();
    let handle = server.handle();
    actix_web::rt::spawn(server);

    let app = Credentials::App { app_id: 1, private_key: RsaKey::from_pem(KEY).expect("a key") };
    let plain = Credentials::Token(Secret::new("ghp_plain"));
    for (credentials, installation) in [(app, Some(InstallationId(7))), (plain, None)] {
        let settings = Settings {
            api_url: url.clone(),
            web_url: url.clone(),
            credentials,
            user_agent: "landfall/test".to_owned(),
            write_interval: Duration::ZERO,
            timeouts: Timeouts::default(),
        };
        let github = GitHub::new(settings, Clock::manual(NOW)).expect("the address is good");
        call_everything(&github, installation).await;
        if installation.is_some() {
            github.redeliver(1).await.expect("it is answered");
        }
    }
    handle.stop(false).await;

    let schemas = GitHubSchemas::load();
    let requests = requests.lock().expect("no holder panics");
    let complaints: Vec<String> = requests
        .iter()
        // The schemas kept for tests are those of an app's calls; an app lists its installation's repositories.
        .filter(|(_, path, _)| !path.starts_with("/user/repos?"))
        .filter_map(|(method, path, body)| schemas.check_request(method, path, body.as_ref()).err())
        .flatten()
        .collect();
    assert_eq!(complaints, Vec::<String>::new());
    let operation = |method: &str, path: &str| schemas.operation_of(method, path.split('?').next().unwrap_or(path));
    let mut operations: Vec<String> = requests.iter().filter_map(|(method, path, _)| operation(method, path)).collect();
    operations.sort();
    operations.dedup();
    assert_eq!(operations.len(), 31, "{operations:#?}");
}
