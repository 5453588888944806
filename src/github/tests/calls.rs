//! What goes over the wire, and what is made of the answers.

use super::super::error::{Advice, GitHubError};
use super::super::reads::{LARGEST_FILE, Level, Relation};
use super::super::writes::{
    Annotation, AnnotationLevel, CheckAction, CheckRun, CheckStatus, CommentId, Conclusion, DeploymentState,
    NewDeployment, NewDeploymentStatus, Reaction, StatusState,
};
use super::*;
use crate::domain::PullNumber;
use serde_json::{Value, json};

fn repository(id: u64, owner: &str, name: &str) -> Value {
    json!({
        "id": id, "name": name, "full_name": format!("{owner}/{name}"), "owner": { "id": 5, "login": owner },
        "private": true, "default_branch": "main", "html_url": format!("https://github.example/{owner}/{name}"),
    })
}

fn pull(number: u64) -> Value {
    json!({
        "number": number, "title": "Add login", "state": "open", "draft": true, "user": { "id": 3, "login": "mona" },
        "head": { "sha": SHA, "ref": "login", "repo": { "id": 1000, "owner": { "id": 5, "login": "octocat" } } },
        "base": { "sha": SHA, "ref": "main", "repo": { "id": 1000 } },
        "labels": [{ "name": "preview" }], "merge_commit_sha": null, "mergeable": true, "created_at": START.rfc3339(),
    })
}

fn check_run() -> CheckRun {
    CheckRun {
        name: "landfall/tests".to_owned(),
        head_sha: sha(),
        external_id: "run-17".to_owned(),
        details_url: Some("http://landfall.example/runs/17".to_owned()),
        status: CheckStatus::Completed { conclusion: Conclusion::Failure, at: START },
        started_at: Some(START),
        title: "1 of 3 failed".to_owned(),
        summary: "é".repeat(40_000),
        text: Some("x".repeat(70_000)),
        annotations: (0..120)
            .map(|line| Annotation {
                path: "test/login.js".to_owned(),
                start_line: line + 1,
                end_line: line + 1,
                level: AnnotationLevel::Failure,
                title: None,
                message: format!("failure {line}"),
                raw_details: None,
            })
            .collect(),
        actions: vec![CheckAction {
            label: "Run the failed ones again".to_owned(),
            description: "Runs what failed once more".to_owned(),
            identifier: "rerun-failed".to_owned(),
        }],
    }
}

#[tokio::test]
async fn every_request_names_itself_its_version_and_what_it_takes() {
    let mock = mock(|seen| match seen.method.as_str() {
        "GET" => Reply::json(200, repository(1000, "octocat", "hello")),
        _ => Reply::json(201, json!({ "id": 1 })),
    })
    .await;
    let (github, _) = app_client(&mock);
    github.repository(&repo()).await.unwrap();
    github.create_comment(&repo(), PullNumber(1), "x").await.unwrap();
    github.file(&repo(), "app.json", &sha()).await.unwrap();
    for seen in mock.seen() {
        assert_eq!(seen.header("user-agent"), Some("landfall/test"));
        assert_eq!(seen.header_count("user-agent"), 1);
        assert_eq!(seen.header("x-github-api-version"), Some("2022-11-28"));
        let raw = seen.path.contains("/contents/");
        let accept = if raw { "application/vnd.github.raw+json" } else { "application/vnd.github+json" };
        assert_eq!(seen.header("accept"), Some(accept));
        assert_eq!(seen.header("content-type").is_some(), seen.method == "POST");
    }
}

#[tokio::test]
async fn the_path_of_the_api_is_kept() {
    let mock = Mock::start(|seen| match seen.path.as_str() {
        "/repos/api/v3/app/installations/7/access_tokens" => minted(1, START + Duration::from_secs(3600)),
        "/repos/api/v3/repos/octocat/hello" => {
            Reply::json(301, json!({})).with("Location", "/repos/api/v3/repositories/1000")
        }
        "/repos/api/v3/repositories/1000" => Reply::json(200, repository(1000, "octocat", "renamed")),
        other => panic!("{other}"),
    })
    .await;
    for end in ["", "/"] {
        let url = format!("{}/repos/api/v3{end}", mock.url());
        let github = GitHub::new(settings(&url, app()), Clock::manual(START)).unwrap();
        assert_eq!(github.repository(&repo()).await.unwrap().name, "renamed");
    }
}

#[tokio::test]
async fn addresses_that_cannot_be_the_api_are_refused() {
    for url in ["", "github.com", "/api", "ftp://x", "https://me:secret@x", "https://x?y", "http://"] {
        assert!(GitHub::new(settings(url, app()), Clock::manual(START)).is_err(), "{url:?}");
    }
}

#[tokio::test]
async fn a_renamed_repository_is_followed_with_method_body_and_token() {
    for status in [301, 307, 308] {
        let mock = mock(move |seen| match seen.path.strip_prefix("/repositories/1000") {
            Some(_) => Reply::json(201, json!({ "id": 9 })),
            None => Reply::json(status, json!({ "message": "Moved Permanently" })).with(
                "Location",
                &format!("http://{}/repositories/1000/issues/1/comments", seen.header("host").unwrap()),
            ),
        })
        .await;
        let (github, _) = app_client(&mock);
        assert_eq!(github.create_comment(&repo(), PullNumber(1), "hello").await.unwrap(), CommentId(9));
        let calls = calls(&mock);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[1].path, "/repositories/1000/issues/1/comments");
        assert_eq!(calls[1].method, "POST");
        assert_eq!(calls[1].body, json!({ "body": "hello" }));
        assert_eq!(calls[1].header("authorization"), calls[0].header("authorization"));
    }
}

#[tokio::test]
async fn no_other_host_gets_our_credentials() {
    let elsewhere = mock(|_| Reply::json(201, json!({ "id": 9 }))).await;
    let host = elsewhere.url().strip_prefix("http://").unwrap().to_owned();
    for location in [
        elsewhere.url().to_owned() + "/repositories/1000",
        format!("//{host}/repositories/1000"),
        "https://api.github.com.example/x".to_owned(),
        String::new(),
    ] {
        let answered = location.clone();
        let mock = mock(move |_| Reply::json(307, json!({})).with("Location", &answered)).await;
        let (github, _) = app_client(&mock);
        let error = github.create_comment(&repo(), PullNumber(1), "x").await.unwrap_err();
        assert_eq!(error, GitHubError::Moved { url: location });
    }
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn a_host_that_only_begins_like_ours_is_another() {
    let mock = mock(|seen| {
        let host = seen.header("host").unwrap();
        Reply::json(307, json!({})).with("Location", &format!("http://{host}.example/repositories/1000"))
    })
    .await;
    let (github, _) = app_client(&mock);
    let error = github.create_comment(&repo(), PullNumber(1), "x").await.unwrap_err();
    assert!(matches!(error, GitHubError::Moved { .. }));
    assert_eq!(calls(&mock).len(), 1);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let mock = mock(|seen| Reply::json(301, json!({})).with("Location", &seen.path)).await;
    let (github, _) = app_client(&mock);
    assert!(matches!(github.pull(&repo(), PullNumber(1)).await, Err(GitHubError::Moved { .. })));
    assert_eq!(calls(&mock).len(), 2);
}

#[tokio::test]
async fn a_name_that_another_repository_took_is_noticed() {
    let mock = mock(|_| Reply::json(200, repository(2000, "octocat", "hello"))).await;
    let (github, _) = app_client(&mock);
    let error = github.repository(&repo()).await.unwrap_err();
    assert_eq!(error, GitHubError::Moved { url: "/repositories/1000".to_owned() });
}

#[tokio::test]
async fn lists_are_read_to_their_last_page() {
    let mock = mock(|seen| {
        let (path, query) = seen.path.split_once('?').unwrap();
        let page: u64 = query.split('&').find_map(|pair| pair.strip_prefix("page=")).unwrap().parse().unwrap();
        assert!(query.contains("per_page=100"));
        let body = match path {
            "/repos/octocat/hello/pulls" => json!([pull(page)]),
            "/installation/repositories" => {
                json!({ "total_count": 3, "repositories": [repository(page, "octocat", "hello")] })
            }
            other => panic!("{other}"),
        };
        let reply = Reply::json(200, body);
        match page {
            3 => reply.with("Link", &format!("<http://x/repositories/1000{path}?page=1>; rel=\"first\"")),
            _ => reply.with(
                "Link",
                &format!(
                    "<http://x/repositories/1000{path}?page=3>; rel=\"last\", \
                     <http://x/repositories/1000{path}?page={}>; rel=\"next\"",
                    page + 1
                ),
            ),
        }
    })
    .await;
    let (github, _) = app_client(&mock);
    let pulls = github.open_pulls(&repo()).await.unwrap();
    assert_eq!(pulls.iter().map(|pull| pull.number.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(pulls[0].draft && pulls[0].open && !pulls[0].merged && !pulls[0].is_from_fork());
    let repositories = github.installation_repositories(Some(INSTALLATION)).await.unwrap();
    assert_eq!(repositories.iter().map(|repository| repository.id.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(calls(&mock).iter().any(|call| call.path == "/repos/octocat/hello/pulls?state=open&per_page=100&page=3"));
}

#[tokio::test]
async fn a_list_without_end_is_given_up() {
    let mock = mock(|_| Reply::json(200, json!([])).with("Link", "<http://x/?page=2>; rel=\"next\"")).await;
    let (github, _) = app_client(&mock);
    assert!(matches!(github.open_pulls(&repo()).await, Err(GitHubError::Unexpected { .. })));
    assert_eq!(calls(&mock).len(), 100);
}

#[tokio::test]
async fn deliveries_are_read_by_their_cursor() {
    let mock = mock(|seen| {
        let delivery = |id: u64| json!({ "id": id, "guid": format!("guid-{id}"), "status_code": 500, "event": "push" });
        match seen.path.as_str() {
            "/app/hook/deliveries?per_page=100" => Reply::json(200, json!([delivery(12_345_678_901)]))
                .with("Link", "<https://x/app/hook/deliveries?per_page=100&cursor=v1_2%3D>; rel=\"next\""),
            "/app/hook/deliveries?per_page=100&cursor=v1_2%3D" => Reply::json(200, json!([delivery(2)])),
            "/app/hook/deliveries/2/attempts" => Reply::json(202, json!({})),
            other => panic!("{other}"),
        }
    })
    .await;
    let (github, _) = app_client(&mock);
    let deliveries = github.hook_deliveries(500).await.unwrap();
    assert_eq!(deliveries.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [12_345_678_901, 2]);
    assert!(deliveries[0].failed());
    github.redeliver(2).await.unwrap();
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    // Two pages; the second one changes after it was read twice.
    let mock = mock(|seen| {
        let page = seen.path.rsplit('=').next().unwrap();
        let next = "<http://x?page=2>; rel=\"next\"";
        match (page, seen.header("if-none-match"), seen.before) {
            ("1", None, 0) => Reply::json(200, json!([pull(1)])).with("ETag", "W/\"one\"").with("Link", next),
            ("1", Some("W/\"one\""), 1 | 2) => Reply::json(304, Value::Null),
            ("2", None, 0) => Reply::json(200, json!([pull(2)])).with("ETag", "W/\"two\""),
            ("2", Some("W/\"two\""), 1) => Reply::json(304, Value::Null),
            ("2", Some("W/\"two\""), 2) => Reply::json(200, json!([pull(3)])).with("ETag", "W/\"three\""),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let (github, _) = app_client(&mock);
    for expected in [[1, 2], [1, 2], [1, 3]] {
        let pulls = github.pulls_of_commit(&repo(), &sha()).await.unwrap();
        assert_eq!(pulls.iter().map(|pull| pull.number.0).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn each_grant_has_its_own_kept_answers() {
    let mock = mock(|seen| {
        assert_eq!(seen.header("if-none-match").is_some(), seen.before == 2);
        Reply::json(200, repository(1000, "octocat", "hello")).with("ETag", "\"x\"")
    })
    .await;
    let (github, _) = app_client(&mock);
    let other = RepoHandle { installation: Some(InstallationId(8)), ..repo() };
    github.repository(&repo()).await.unwrap();
    github.repository(&other).await.unwrap();
    github.repository(&repo()).await.unwrap();
}

#[tokio::test]
async fn files_are_bytes_or_not_there() {
    let folder = json!([{ "type": "file", "name": "a", "path": "x/a", "sha": SHA, "git_url": null }]);
    let mock = mock(move |seen| match seen.path.split('?').next().unwrap() {
        "/repos/octocat/hello/contents/app.json" => {
            Reply::text(200, "application/vnd.github.raw+json; charset=utf-8", "{\"name\":")
        }
        "/repos/octocat/hello/contents/.github/a%20b%23%3F%25.toml" => Reply::text(200, "text/plain", "x = 1"),
        "/repos/octocat/hello/contents/folder" => Reply::json(200, folder.clone()),
        "/repos/octocat/hello/contents/list.json" => {
            Reply::text(200, "application/vnd.github.raw+json; charset=utf-8", &folder.to_string())
        }
        "/repos/octocat/hello/contents/none" => Reply::json(404, json!({ "message": "Not Found" })),
        "/repos/octocat/hello/contents/late" => {
            Reply::json(404, json!({ "message": format!("No commit found for the ref {SHA}") }))
        }
        "/repos/octocat/hello/contents/large" => Reply::text(200, "text/plain", &"x".repeat(LARGEST_FILE + 1)),
        "/repos/octocat/hello/contents/full" => Reply::text(200, "text/plain", &"x".repeat(LARGEST_FILE)),
        "/repos/octocat/hello/contents/%2E%2E/x" => Reply::json(404, json!({ "message": "Not Found" })),
        other => panic!("{other}"),
    })
    .await;
    let (github, _) = app_client(&mock);
    let (repo, sha) = (repo(), sha());
    assert_eq!(github.file(&repo, "app.json", &sha).await.unwrap().unwrap(), b"{\"name\":");
    assert_eq!(github.file(&repo, ".github/a b#?%.toml", &sha).await.unwrap().unwrap(), b"x = 1");
    assert_eq!(github.file(&repo, "folder", &sha).await.unwrap(), None);
    assert!(github.file(&repo, "list.json", &sha).await.unwrap().is_some());
    assert_eq!(github.file(&repo, "none", &sha).await.unwrap(), None);
    assert_eq!(github.file(&repo, "../x", &sha).await.unwrap(), None);
    let late = github.file(&repo, "late", &sha).await.unwrap_err();
    assert_eq!(late, GitHubError::NotFound { what: "the commit" });
    assert_eq!(late.advice(), Advice::Retry { not_before: None });
    let large = github.file(&repo, "large", &sha).await.unwrap_err();
    assert_eq!(large, GitHubError::TooLarge { what: "large".to_owned(), limit: LARGEST_FILE });
    assert_eq!(large.advice(), Advice::User);
    assert_eq!(github.file(&repo, "full", &sha).await.unwrap().unwrap().len(), LARGEST_FILE);
    assert!(calls(&mock).iter().all(|call| call.path.ends_with(&format!("?ref={SHA}"))));
}

#[tokio::test]
async fn permissions_are_exact_and_closed_on_doubt() {
    let mock = mock(|seen| {
        let login = seen.path.strip_prefix("/repos/octocat/hello/collaborators/").unwrap();
        let (permission, role) = match login.strip_suffix("/permission").unwrap() {
            "admin" => ("admin", Some("admin")),
            "maintainer" => ("write", Some("maintain")),
            "writer" => ("write", Some("write")),
            "triager" => ("read", Some("triage")),
            "reader" => ("read", Some("read")),
            "none" => ("none", Some("none")),
            // A role that an organisation made up is worth what GitHub folds it into.
            "releaser" => ("write", Some("release manager")),
            "old" => ("write", None),
            "strange" => ("owner", Some("king")),
            "dependabot%5Bbot%5D" => return Reply::json(404, json!({ "message": "Not Found" })),
            _ => return Reply::json(500, json!({ "message": "Server Error" })),
        };
        Reply::json(200, json!({ "permission": permission, "role_name": role, "user": { "id": 3, "login": login } }))
    })
    .await;
    let (github, _) = app_client(&mock);
    for (login, level) in [
        ("admin", Level::Admin),
        ("maintainer", Level::Maintain),
        ("writer", Level::Write),
        ("triager", Level::Triage),
        ("reader", Level::Read),
        ("none", Level::None),
        ("releaser", Level::Write),
        ("old", Level::Write),
        ("strange", Level::None),
        ("dependabot[bot]", Level::None),
        ("", Level::None),
    ] {
        assert_eq!(github.permission(&repo(), login).await.unwrap().level, level, "{login}");
    }
    assert!(github.permission(&repo(), "broken").await.is_err());
    assert!(Level::Maintain > Level::Write && Level::Write > Level::Triage);
}

#[tokio::test]
async fn other_reads() {
    let mock = mock(|seen| {
        let base = "a".repeat(40);
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        let path = path.strip_prefix("/repos/octocat/hello").unwrap();
        let deployment = |payload: Value| {
            json!({ "id": 4, "sha": SHA, "environment": "review/pr-1", "payload": payload,
                    "creator": { "id": 9, "login": "landfall[bot]", "type": "Bot" } })
        };
        let body = match path {
            "/git/ref/heads/feature/%24%28id%29" => json!({ "ref": "x", "object": { "sha": SHA, "type": "commit" } }),
            "/git/ref/heads/gone" => return Reply::json(404, json!({ "message": "Not Found" })),
            path if path == format!("/git/commits/{SHA}") => json!({
                "sha": SHA, "tree": { "sha": base }, "message": "Add login", "parents": [{ "sha": base }],
                "author": { "name": "Mona" }, "committer": { "date": START.rfc3339() },
            }),
            path if path == format!("/compare/{base}...{SHA}") => json!({
                "status": "ahead", "ahead_by": 1, "behind_by": 0, "merge_base_commit": { "sha": base },
                "commits": [{ "sha": SHA, "commit": { "message": "Add login" }, "author": null }],
                "files": [{ "filename": "a.js" }],
            }),
            path if path == format!("/commits/{SHA}/check-runs") => {
                assert!(query.starts_with("check_name=landfall%2Ftests&filter=all&"));
                json!({ "total_count": 1, "check_runs": [{ "id": 1, "name": "landfall/tests", "external_id": "run-17",
                        "status": "queued", "conclusion": null, "app": { "id": 1 } }] })
            }
            path if path == format!("/commits/{SHA}/statuses") => {
                json!([{ "context": "landfall/review-app", "state": "pending", "creator": null }])
            }
            "/deployments" => {
                assert!(query.starts_with(&format!("environment=review%2Fpr-1&sha={SHA}&")));
                json!([
                    deployment(json!({ "landfall_id": "d1" })),
                    deployment(json!("{\"landfall_id\":\"d2\"}")),
                    deployment(json!("")),
                    deployment(Value::Null)
                ])
            }
            "/deployments/4/statuses" => json!([{ "id": 2, "state": "success", "environment_url": "" }]),
            "/issues/1/comments" => json!([{
                "id": 12_345_678_901_u64, "body": "x", "user": { "id": 9, "login": "landfall[bot]", "type": "Bot" },
                "performed_via_github_app": { "id": 1 }, "created_at": START.rfc3339() }]),
            "/issues/comments/3/reactions" => json!([{ "id": 1, "content": "eyes", "user": null }]),
            other => panic!("{other}"),
        };
        Reply::json(200, body)
    })
    .await;
    let (github, _) = app_client(&mock);
    let (repo, sha, base) = (repo(), sha(), "a".repeat(40).parse::<Sha>().unwrap());
    assert_eq!(github.branch_head(&repo, "feature/$(id)").await.unwrap(), Some(sha.clone()));
    assert_eq!(github.branch_head(&repo, "gone").await.unwrap(), None);
    let commit = github.commit(&repo, &sha).await.unwrap();
    assert_eq!((commit.tree, commit.committed_at), (base.clone(), Some(START)));
    let comparison = github.compare(&repo, &base, &sha).await.unwrap();
    assert_eq!((comparison.relation, comparison.files_complete), (Relation::Ahead, true));
    let runs = github.list_check_runs(&repo, &sha, "landfall/tests").await.unwrap();
    assert_eq!((runs[0].external_id.as_deref(), runs[0].app_id), (Some("run-17"), Some(1)));
    assert_eq!(github.list_statuses(&repo, &sha).await.unwrap()[0].state, "pending");
    let deployments = github.list_deployments(&repo, "review/pr-1", &sha).await.unwrap();
    let ids: Vec<Option<String>> = deployments.iter().map(|deployment| deployment.landfall_id()).collect();
    assert_eq!(ids, [Some("d1".to_owned()), Some("d2".to_owned()), None, None]);
    assert_eq!(github.list_deployment_statuses(&repo, 4).await.unwrap()[0].state, "success");
    let comments = github.list_comments(&repo, PullNumber(1)).await.unwrap();
    let identity = super::super::reads::Identity {
        app_id: Some(1),
        slug: Some("landfall".to_owned()),
        login: "landfall[bot]".to_owned(),
    };
    assert!(identity.wrote(&comments[0]));
    let mut forged = comments[0].clone();
    forged.via_app = None;
    forged.author.login = "landfall".to_owned();
    forged.author.is_bot = false;
    assert!(!identity.wrote(&forged));
    assert_eq!(github.list_reactions(&repo, 3).await.unwrap()[0].user.login, "ghost");
}

#[tokio::test]
async fn other_writes() {
    let mock = mock(|_| Reply::json(201, json!({ "id": 1 }))).await;
    let (github, _) = app_client(&mock);
    let (repo, sha) = (repo(), sha());
    github.update_comment(&repo, CommentId(3), &"é".repeat(40_000)).await.unwrap();
    let (target, long) = (Some("http://pr-1.example/"), "x".repeat(200));
    github.set_status(&repo, &sha, "landfall/review-app", StatusState::Success, target, &long).await.unwrap();
    github.set_status(&repo, &sha, "c", StatusState::Error, Some("javascript:alert(1)"), "x").await.unwrap();
    let deployment = NewDeployment {
        sha: sha.clone(),
        environment: "review/pr-1".to_owned(),
        production: false,
        transient: true,
        payload: json!({ "landfall_id": "d1" }),
        description: "Review app".to_owned(),
    };
    assert_eq!(github.create_deployment(&repo, &deployment).await.unwrap(), 1);
    let status = NewDeploymentStatus {
        state: DeploymentState::InProgress,
        environment_url: Some("http://pr-1.example/".to_owned()),
        log_url: Some("not an address".to_owned()),
        description: "é".repeat(141),
        auto_inactive: false,
    };
    github.set_deployment_status(&repo, 1, &status).await.unwrap();
    github.react(&repo, 3, Reaction::Rocket).await.unwrap();
    let sent: Vec<(String, String, Value)> =
        calls(&mock).into_iter().map(|call| (call.method, call.path, call.body)).collect();
    let comment = sent[0].2["body"].as_str().unwrap();
    assert!(comment.len() <= 65_536 && comment.ends_with("é…"));
    let root = "/repos/octocat/hello";
    let expected = [
        (
            "POST",
            format!("{root}/statuses/{SHA}"),
            json!({ "state": "success", "context": "landfall/review-app", "target_url": "http://pr-1.example/",
                    "description": format!("{}…", "x".repeat(139)) }),
        ),
        ("POST", format!("{root}/statuses/{SHA}"), json!({ "state": "error", "context": "c", "description": "x" })),
        (
            "POST",
            format!("{root}/deployments"),
            json!({ "ref": SHA, "task": "deploy", "auto_merge": false, "required_contexts": [],
                    "payload": { "landfall_id": "d1" }, "environment": "review/pr-1", "description": "Review app",
                    "transient_environment": true, "production_environment": false }),
        ),
        (
            "POST",
            format!("{root}/deployments/1/statuses"),
            json!({ "state": "in_progress", "environment_url": "http://pr-1.example/", "auto_inactive": false,
                    "description": format!("{}…", "é".repeat(139)) }),
        ),
        ("POST", format!("{root}/issues/comments/3/reactions"), json!({ "content": "rocket" })),
    ];
    for (sent, (method, path, body)) in sent[1..].iter().zip(expected) {
        assert_eq!(*sent, (method.to_owned(), path, body));
    }
}

#[tokio::test]
async fn a_check_run_is_cut_to_what_github_takes() {
    let mock = mock(|_| Reply::json(201, json!({ "id": 33 }))).await;
    let (github, _) = app_client(&mock);
    assert_eq!(github.create_check_run(&repo(), &check_run()).await.unwrap(), 33);
    let sent = calls(&mock);
    let shape: Vec<(&str, &str, usize)> = sent
        .iter()
        .map(|call| {
            let annotations = call.body["output"]["annotations"].as_array().unwrap().len();
            (call.method.as_str(), call.path.as_str(), annotations)
        })
        .collect();
    let run = "/repos/octocat/hello/check-runs/33";
    assert_eq!(shape, [("POST", "/repos/octocat/hello/check-runs", 50), ("PATCH", run, 50), ("PATCH", run, 20)]);
    assert_eq!(sent[2].body["output"]["annotations"][19]["message"], "failure 119");
    let body = &sent[0].body;
    for text in ["summary", "text"] {
        let text = body["output"][text].as_str().unwrap();
        assert!(text.len() <= 65_535 && text.len() > 65_530, "{}", text.len());
    }
    assert_eq!(body["actions"][0]["label"], "Run the failed ones…");
    assert_eq!(body["completed_at"], "2026-11-22T23:19:37Z");
    assert_eq!((&body["status"], &body["conclusion"]), (&json!("completed"), &json!("failure")));
    assert_eq!(body["head_sha"], SHA);
    assert_eq!(sent[1].body.get("head_sha"), None, "an update can't move it");
}

#[tokio::test]
async fn a_check_run_whose_annotations_fail_is_still_ours() {
    let mock = mock(|seen| match seen.method.as_str() {
        "POST" => Reply::json(201, json!({ "id": 33 })),
        _ => Reply::json(422, json!({ "message": "Invalid request" })),
    })
    .await;
    let (github, _) = app_client(&mock);
    assert_eq!(github.create_check_run(&repo(), &check_run()).await.unwrap(), 33);
}

#[tokio::test]
async fn refusals_say_what_is_wrong_and_who_must_act() {
    let mock = mock(|seen| match seen.path.rsplit('/').next().unwrap() {
        "1" => Reply::json(
            422,
            json!({ "message": "Validation Failed", "errors": [
                { "resource": "Status", "code": "custom", "field": "description", "message": "description is too long" },
                "a plain sentence" ] }),
        ),
        "2" => Reply::json(404, json!({ "message": "Not Found", "status": "404" })),
        "3" => Reply::json(410, json!({ "message": "This issue was deleted" })),
        "deployments" => Reply::json(202, json!({ "message": "Auto-merged master into topic" })),
        other => panic!("{other}"),
    })
    .await;
    let (github, _) = app_client(&mock);
    let invalid = github.update_comment(&repo(), CommentId(1), "x").await.unwrap_err();
    assert_eq!(
        invalid.to_string(),
        "GitHub refuses (422): Validation Failed; Status description custom description is too long; a plain sentence"
    );
    assert_eq!(invalid.advice(), Advice::Bug);
    let deleted = github.update_comment(&repo(), CommentId(2), "x").await.unwrap_err();
    assert_eq!(deleted, GitHubError::NotFound { what: "update_comment" });
    let gone = github.update_comment(&repo(), CommentId(3), "x").await.unwrap_err();
    assert_eq!(gone.advice(), Advice::User);
    let deployment = NewDeployment {
        sha: sha(),
        environment: "staging".to_owned(),
        production: false,
        transient: false,
        payload: json!({}),
        description: String::new(),
    };
    let merged = github.create_deployment(&repo(), &deployment).await.unwrap_err();
    assert!(matches!(merged, GitHubError::Refused { status: 202, .. }));
    assert!([&invalid, &deleted, &gone, &merged].iter().all(|error| !error.outcome_unknown()));
}
