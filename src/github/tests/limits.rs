//! No call before a time that GitHub named.

use super::super::error::{Advice, GitHubError};
use super::*;
use crate::domain::PullNumber;
use futures_util::future::join_all;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn limited(error: GitHubError) -> Timestamp {
    match error {
        GitHubError::Limited { until } => {
            assert_eq!(error.advice(), Advice::Retry { not_before: Some(until) });
            until
        }
        other => panic!("{other:?} is no limit"),
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test]
async fn nothing_is_called_before_the_named_time() {
    let reset = (START.0 / 1000 + 600).to_string();
    for status in [403, 429] {
        for (headers, message, wait) in [
            (vec![("Retry-After", "30")], "You have exceeded a secondary rate limit", 30),
            (vec![("Retry-After", "30")], "", 30),
            (vec![("Retry-After", "Sun, 22 Nov 2026 23:50:40 GMT"), ("Date", "Sun, 22 Nov 2026 23:50:00 GMT")], "", 40),
            (
                vec![("x-ratelimit-limit", "5000"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)],
                "API rate limit exceeded for installation ID 7.",
                601,
            ),
            // Both: the later one counts.
            (
                vec![
                    ("Retry-After", "10"),
                    ("x-ratelimit-limit", "5000"),
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", &reset),
                ],
                "",
                601,
            ),
        ] {
            let over = Arc::new(AtomicBool::new(false));
            let is_over = Arc::clone(&over);
            let owned: Vec<(String, String)> =
                headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let mock = mock(move |_| {
                if is_over.load(Ordering::SeqCst) {
                    return Reply::json(200, json!([]));
                }
                let reply = Reply::json(status, json!({ "message": message }));
                owned.iter().fold(reply, |reply, (name, value)| reply.with(name, value))
            })
            .await;
            let (github, clock) = app_client(&mock);
            let until = limited(github.list_statuses(&repo(), &sha()).await.unwrap_err());
            assert_eq!(until, START + seconds(wait), "{status} {headers:?}");
            assert_eq!(github.limited_until(Some(INSTALLATION)), Some(until));

            // Reads and writes alike, until a moment before the time.
            clock.advance(seconds(wait) - Duration::from_millis(1));
            for _ in 0..20 {
                assert_eq!(limited(github.list_statuses(&repo(), &sha()).await.unwrap_err()), until);
                assert_eq!(limited(github.create_comment(&repo(), PullNumber(1), "x").await.unwrap_err()), until);
            }
            assert_eq!(calls(&mock).len(), 1);

            over.store(true, Ordering::SeqCst);
            clock.advance(Duration::from_millis(1));
            github.list_statuses(&repo(), &sha()).await.unwrap();
            assert_eq!(calls(&mock).len(), 2);
        }
    }
}

#[tokio::test]
async fn a_limit_without_a_time_is_waited_out_longer_each_time() {
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let mock = mock(move |_| {
        if is_over.load(Ordering::SeqCst) {
            Reply::json(200, json!([]))
        } else {
            Reply::json(
                403,
                json!({ "message": "You have exceeded a secondary rate limit. Please wait a few minutes." }),
            )
        }
    })
    .await;
    let (github, clock) = app_client(&mock);
    for wait in [60, 120, 240, 480, 960, 1920, 1920] {
        let until = limited(github.list_statuses(&repo(), &sha()).await.unwrap_err());
        assert_eq!(until, clock.now() + seconds(wait));
        clock.advance(seconds(wait));
    }
    over.store(true, Ordering::SeqCst);
    github.list_statuses(&repo(), &sha()).await.unwrap();
    over.store(false, Ordering::SeqCst);
    let until = limited(github.list_statuses(&repo(), &sha()).await.unwrap_err());
    assert_eq!(until, clock.now() + seconds(60), "a call that went through ends the row");
}

#[tokio::test]
async fn a_missing_permission_is_no_limit() {
    let mock = mock(|_| {
        Reply::json(403, json!({ "message": "Resource not accessible by integration" }))
            .with("x-accepted-github-permissions", "issues=write; pull_requests=write")
            .with("x-ratelimit-limit", "5000")
            .with("x-ratelimit-remaining", "4000")
            .with("x-ratelimit-reset", "1795390000")
    })
    .await;
    let (github, _) = app_client(&mock);
    let error = github.create_comment(&repo(), PullNumber(1), "x").await.unwrap_err();
    assert_eq!(error.advice(), Advice::User);
    assert_eq!(
        error.to_string(),
        "GitHub forbids it: Resource not accessible by integration (it needs issues=write; pull_requests=write)"
    );
    assert_eq!(github.limited_until(Some(INSTALLATION)), None);
    let budget = github.budget(Some(INSTALLATION)).unwrap();
    assert_eq!((budget.limit, budget.remaining, budget.is_low()), (5000, 4000, false));
}

#[tokio::test]
async fn the_last_call_of_the_budget_closes_the_gate() {
    let reset = (START.0 / 1000 + 100).to_string();
    let mock = mock(move |_| {
        Reply::json(200, json!([]))
            .with("x-ratelimit-limit", "5000")
            .with("x-ratelimit-remaining", "0")
            .with("x-ratelimit-reset", &reset)
    })
    .await;
    let (github, _) = app_client(&mock);
    github.list_statuses(&repo(), &sha()).await.unwrap();
    assert_eq!(limited(github.list_statuses(&repo(), &sha()).await.unwrap_err()), START + seconds(101));
    assert!(github.budget(Some(INSTALLATION)).unwrap().is_low());
    assert_eq!(calls(&mock).len(), 1);
    // Another installation has a budget of its own.
    let other = RepoHandle { installation: Some(InstallationId(8)), ..repo() };
    github.list_statuses(&other, &sha()).await.unwrap();
}

#[tokio::test]
async fn writes_go_one_at_a_time_in_order_and_apart() {
    let mock = mock(|_| Reply::Late(Duration::from_millis(30), Box::new(Reply::json(201, json!({ "id": 1 }))))).await;
    let interval = Duration::from_millis(60);
    let settings = Settings { write_interval: interval, ..settings(mock.url(), app()) };
    let github = GitHub::new(settings, Clock::manual(START)).unwrap();
    let handle = repo();
    let bodies: Vec<String> = (0..6).map(|number| number.to_string()).collect();
    let began = std::time::Instant::now();
    let writes = bodies.iter().map(|body| github.create_comment(&handle, PullNumber(1), body));
    for outcome in join_all(writes).await {
        outcome.unwrap();
    }
    let calls = calls(&mock);
    let order: Vec<&str> = calls.iter().map(|call| call.body["body"].as_str().unwrap()).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "5"]);
    assert!(calls.iter().all(|call| call.beside == 0), "two writes at once");
    let whole = calls[5].at - began;
    assert!(whole >= interval * 5, "{whole:?}");
}

#[tokio::test]
async fn writes_that_wait_in_line_see_a_limit_that_came_meanwhile() {
    let mock = mock(|_| {
        let reply = Reply::json(403, json!({ "message": "slow down" })).with("Retry-After", "60");
        Reply::Late(Duration::from_millis(30), Box::new(reply))
    })
    .await;
    let (github, _) = app_client(&mock);
    let handle = repo();
    for outcome in join_all((0..10).map(|_| github.create_comment(&handle, PullNumber(1), "x"))).await {
        assert_eq!(limited(outcome.unwrap_err()), START + seconds(60));
    }
    assert_eq!(calls(&mock).len(), 1);
}
