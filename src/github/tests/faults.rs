//! Every way in which an answer can fail to come, for every write and for reads, before and after the effect.

use super::super::error::{Advice, GitHubError};
use super::super::writes::{
    CheckRun, CheckStatus, CommentId, DeploymentState, NewDeployment, NewDeploymentStatus, Reaction, StatusState,
};
use super::*;
use crate::domain::PullNumber;
use futures_util::future::join_all;
use serde_json::json;

/// The name of a fault and what the server does.
fn faults() -> Vec<(&'static str, Reply)> {
    let html = "<html><body><h1>Unicorn!</h1></body></html>";
    vec![
        ("500", Reply::json(500, json!({ "message": "Server Error" }))),
        ("502 with HTML", Reply::text(502, "text/html", html)),
        ("503 empty", Reply::text(503, "text/plain", "")),
        ("504", Reply::text(504, "text/html", html)),
        ("closed without an answer", Reply::Close),
        ("reset", Reply::Reset),
        ("silence", Reply::RawThenSilence(Vec::new())),
        ("head cut off", Reply::Raw(b"HTTP/1.1 201 Created\r\nContent-Le".to_vec())),
        ("body cut off", Reply::Raw(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{\"id\":".to_vec())),
        ("body stalls", Reply::RawThenSilence(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":".to_vec())),
        ("slow drip", Reply::Drip(Duration::from_millis(100))),
        ("no HTTP", Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())),
        ("JSON cut off", Reply::text(200, "application/json", "{\"id\": 1, \"na")),
        ("HTML where JSON should be", Reply::text(200, "text/html", html)),
    ]
}

async fn write(github: &GitHub, number: usize) -> Result<(), GitHubError> {
    let (repo, sha) = (repo(), sha());
    let check = CheckRun {
        name: "landfall/tests".to_owned(),
        head_sha: sha.clone(),
        external_id: "run-1".to_owned(),
        details_url: None,
        status: CheckStatus::Queued,
        started_at: None,
        title: "title".to_owned(),
        summary: "summary".to_owned(),
        text: None,
        annotations: Vec::new(),
        actions: Vec::new(),
    };
    let deployment = NewDeployment {
        sha: sha.clone(),
        environment: "staging".to_owned(),
        production: false,
        transient: false,
        payload: json!({ "landfall_id": "d1" }),
        description: String::new(),
    };
    let status = NewDeploymentStatus {
        state: DeploymentState::Success,
        environment_url: None,
        log_url: None,
        description: String::new(),
        auto_inactive: true,
    };
    match number {
        0 => github.create_comment(&repo, PullNumber(1), "x").await.map(|_| ()),
        1 => github.create_check_run(&repo, &check).await.map(|_| ()),
        2 => github.create_deployment(&repo, &deployment).await.map(|_| ()),
        3 => github.set_deployment_status(&repo, 1, &status).await.map(|_| ()),
        4 => github.update_comment(&repo, CommentId(1), "x").await,
        5 => github.update_check_run(&repo, 1, &check).await,
        6 => github.set_status(&repo, &sha, "landfall/review-app", StatusState::Pending, None, "").await,
        7 => github.react(&repo, 1, Reaction::Eyes).await,
        8 => github.redeliver(1).await,
        _ => unreachable!(),
    }
}

fn impatient(mock: &Mock) -> GitHub {
    let timeouts = Timeouts { connect: Duration::from_secs(2), call: Duration::from_secs(2) };
    GitHub::new(Settings { timeouts, ..settings(mock.url(), app()) }, Clock::manual(START)).unwrap()
}

/// A write is sent once, and what may have happened is said to be unknown: whether the server did it before it failed
/// or not at all can't be told from here.
#[tokio::test]
async fn a_write_is_never_repeated_and_its_outcome_is_unknown() {
    join_all(faults().into_iter().map(|(name, reply)| async move {
        let mock = mock(move |_| reply.clone()).await;
        let outcomes = join_all((0..9).map(async |number| write(&impatient(&mock), number).await)).await;
        assert_eq!(calls(&mock).len(), 9, "{name}");
        for (number, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Err(error) => {
                    assert!(error.outcome_unknown(), "write {number} with {name}: {error:?}");
                    assert_eq!(error.advice(), Advice::Retry { not_before: None });
                }
                // A 200 is enough for writes whose answer holds nothing that is needed.
                Ok(()) => assert!(number >= 4 && name.contains("JSON"), "write {number} with {name}"),
            }
        }
    }))
    .await;
}

#[tokio::test]
async fn a_read_that_fails_is_worth_another_try() {
    join_all(faults().into_iter().map(|(name, reply)| async move {
        let mock = mock(move |_| reply.clone()).await;
        let github = impatient(&mock);
        let error = github.pull(&repo(), PullNumber(1)).await.unwrap_err();
        assert_eq!(calls(&mock).len(), 1, "{name}");
        assert!(matches!(error, GitHubError::Unavailable { outcome_unknown: false, .. }), "{name}: {error:?}");
        let file = github.file(&repo(), "app.json", &sha()).await;
        // A file may hold anything, broken JSON and HTML too; only GitHub's own answers must be JSON.
        assert!(file.is_err() || name.contains("JSON"), "{name}: {file:?}");
    }))
    .await;
}

#[tokio::test]
async fn without_a_connection_nothing_can_have_happened() {
    // Nobody listens on the port of a server that is gone.
    let gone = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let token = Credentials::Token(Secret::new("ghp_plain"));
    let github = GitHub::new(settings(&gone, token), Clock::manual(START)).unwrap();
    for number in 0..8 {
        let error = write(&github, number).await.unwrap_err();
        assert!(matches!(error, GitHubError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_broken_minting_is_simply_tried_again() {
    join_all(faults().into_iter().map(|(name, reply)| async move {
        let mock = Mock::start(move |seen| match seen {
            seen if is_mint(seen) && seen.before == 0 => reply.clone(),
            seen if is_mint(seen) => minted(1, START + Duration::from_secs(3600)),
            _ => Reply::json(201, json!({ "id": 1 })),
        })
        .await;
        let github = impatient(&mock);
        let error = write(&github, 0).await.unwrap_err();
        assert!(matches!(error, GitHubError::Unavailable { outcome_unknown: false, .. }), "{name}: {error:?}");
        assert_eq!(calls(&mock).len(), 0, "{name}");
        write(&github, 0).await.unwrap();
    }))
    .await;
}

#[tokio::test]
async fn an_outage_that_names_its_end_is_waited_out() {
    let mock = mock(|_| Reply::text(503, "text/html", "down").with("Retry-After", "120")).await;
    let github = impatient(&mock);
    let error = write(&github, 0).await.unwrap_err();
    assert!(error.outcome_unknown());
    let until = START + Duration::from_secs(120);
    assert_eq!(write(&github, 0).await.unwrap_err(), GitHubError::Limited { until });
    assert_eq!(calls(&mock).len(), 1);
}
