//! The stand-in is tested as its clients meet it: over HTTP, with real git, with a receiver for its webhooks.

mod support;

use serde_json::{Value, json};

use support::{Stage, eventually, git, temporary};

#[tokio::test(flavor = "multi_thread")]
async fn git_clones_pushes_and_fetches_by_sha_with_tokens() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let work = temporary("clone");
    let reader = stage.git_url("x-access-token", &token, "acme/hello");
    let owner = stage.git_url("alice", "alice-token", "acme/hello");
    git(&work, &["clone", "-q", &reader, "."]).expect("clone with an installation token");
    assert!(git(&work, &["ls-remote", &stage.git_url("x", "wrong", "acme/hello")]).is_err());
    assert!(git(&work, &["ls-remote", &format!("{}/acme/hello.git", stage.url())]).is_err(), "no token, no refs");

    std::fs::write(work.join("notes"), "one\n").expect("write");
    std::fs::write(work.join("large"), vec![7_u8; 2_000_000]).expect("write");
    git(&work, &["checkout", "-q", "-b", "topic/$(touch${IFS}x)"]).expect("a hostile branch name");
    git(&work, &["add", "."]).expect("add");
    git(&work, &["-c", "user.name=alice", "-c", "user.email=alice@x", "commit", "-qm", "Add notes"]).expect("commit");
    let sha = git(&work, &["rev-parse", "HEAD"]).expect("rev-parse");
    assert!(git(&work, &["push", "-q", "origin", "HEAD"]).is_err(), "the app may only read");
    git(&work, &["push", "-q", &owner, "HEAD"]).expect("push as the owner");

    let events = stage.settle().await;
    let push = events.iter().find(|event| event.name == "push").expect("a push event");
    assert_eq!(push.body["after"], json!(sha));
    assert_eq!(push.body["ref"], "refs/heads/topic/$(touch${IFS}x)");
    assert_eq!(push.body["created"], true);
    assert_eq!(push.body["commits"][0]["added"], json!(["large", "notes"]));
    assert!(push.body["repository"]["created_at"].is_number(), "only push has numbers here");

    let second = temporary("by-sha");
    git(&second, &["init", "-q"]).expect("init");
    git(&second, &["fetch", "-q", "--depth=1", &reader, &sha]).expect("fetch by object name");
    git(&second, &["fetch", "-q", "--filter=blob:none", &reader, &sha]).expect("fetch without blobs");
    // A force push and a deletion.
    git(&work, &["-c", "user.name=a", "-c", "user.email=a@x", "commit", "-q", "--amend", "-m", "Again"])
        .expect("amend");
    git(&work, &["push", "-q", "--force", &owner, "HEAD"]).expect("force push");
    git(&work, &["push", "-q", &owner, ":topic/$(touch${IFS}x)"]).expect("delete");
    let pushes: Vec<Value> =
        stage.settle().await.into_iter().filter(|event| event.name == "push").map(|event| event.body).collect();
    assert_eq!(pushes[0]["forced"], true);
    assert_eq!(pushes[1]["deleted"], true);
    assert_eq!(pushes[1]["head_commit"], Value::Null);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_is_opened_commented_updated_and_merged() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("login", "Add login").await;
    let opened = stage.settle().await;
    let names: Vec<String> = opened.iter().map(|event| event.label()).collect();
    assert_eq!(names, ["create", "push", "check_suite.requested", "pull_request.opened"]);
    assert_eq!(opened[3].body["pull_request"]["mergeable"], Value::Null, "not computed yet");

    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    let comment = stage.post(&token, &comments, json!({"body": "<!-- landfall --> hello"}), 201).await;
    assert_eq!(comment["user"]["type"], "Bot");
    assert_eq!(comment["performed_via_github_app"]["id"], 1);
    let echoed = stage.settle().await;
    assert_eq!(echoed[0].label(), "issue_comment.created");
    assert_eq!(echoed[0].body["sender"]["type"], "Bot");
    assert!(echoed[0].body["issue"]["pull_request"].is_object());

    let before = stage.get(&token, &format!("/repos/acme/hello/pulls/{pull}"), 200).await;
    stage.control("push", json!({"repo": "acme/hello", "branch": "login", "files": {"b": "2"}})).await;
    let events = stage.settle().await;
    let synchronized = events.iter().find(|event| event.label() == "pull_request.synchronize").expect("synchronize");
    assert_eq!(synchronized.body["before"], before["head"]["sha"]);
    let head = synchronized.body["after"].as_str().expect("a sha").to_owned();

    let merge = format!("/repos/acme/hello/pulls/{pull}/merge");
    stage.put("alice-token", &merge, json!({"sha": before["head"]["sha"]}), 409).await;
    stage.put(&token, &merge, json!({"sha": head}), 403).await;
    let merged = stage.put("alice-token", &merge, json!({"sha": head}), 200).await;
    let events = stage.settle().await;
    let names: Vec<String> = events.iter().map(|event| event.label()).collect();
    assert_eq!(names, ["pull_request.closed", "push", "check_suite.requested"]);
    assert_eq!(events[0].body["pull_request"]["merged"], true);
    assert_eq!(events[1].body["after"], merged["sha"]);
    stage.put("alice-token", &merge, json!({}), 405).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_closes_as_merged_when_its_head_is_pushed_into_the_base() {
    let stage = Stage::new().await;
    let pull = stage.open_pull("topic", "A topic").await;
    let work = temporary("merge-by-push");
    let owner = stage.git_url("alice", "alice-token", "acme/hello");
    git(&work, &["clone", "-q", &owner, "."]).expect("clone");
    git(&work, &["-c", "user.name=a", "-c", "user.email=a@x", "merge", "-q", "origin/topic"]).expect("merge");
    git(&work, &["push", "-q", "origin", "main"]).expect("push");
    let events = stage.settle().await;
    let closed = events.iter().find(|event| event.label() == "pull_request.closed").expect("closed");
    assert_eq!(closed.body["pull_request"]["merged"], true);
    assert_eq!(closed.body["number"], pull);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_brings_its_head_along_and_the_app_sees_nothing_of_the_fork() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    stage.settle().await;
    stage.control("fork", json!({"repo": "acme/hello", "user": "mallory"})).await;
    stage
        .control("push", json!({"repo": "mallory/hello", "branch": "evil", "user": "mallory", "files": {"x": "1"}}))
        .await;
    assert!(stage.settle().await.is_empty(), "no installation, no webhooks");
    let opened = stage
        .control(
            "pull",
            json!({"repo": "acme/hello", "head_repo": "mallory/hello", "head": "evil", "title": "Evil", "user": "mallory"}),
        )
        .await;
    let number = opened["number"].as_u64().expect("a number");
    let events = stage.settle().await;
    let event = events.iter().find(|event| event.label() == "pull_request.opened").expect("opened");
    assert_eq!(event.body["pull_request"]["head"]["repo"]["full_name"], "mallory/hello");
    assert_eq!(event.body["pull_request"]["author_association"], "NONE");
    stage.get(&token, "/repos/mallory/hello", 404).await;
    let work = temporary("fork");
    git(&work, &["init", "-q"]).expect("init");
    let reader = stage.git_url("x-access-token", &token, "acme/hello");
    git(&work, &["fetch", "-q", &reader, &format!("refs/pull/{number}/head")]).expect("fetch the head");
    let sha = git(&work, &["rev-parse", "FETCH_HEAD"]).expect("rev-parse");
    assert_eq!(json!(sha), opened["head_sha"]);
    git(&work, &["fetch", "-q", &reader, &format!("refs/pull/{number}/merge")]).expect("fetch the test merge");
    let suites = stage.get(&token, &format!("/repos/acme/hello/commits/{sha}/check-suites"), 200).await;
    assert_eq!(suites["check_suites"][0]["head_branch"], Value::Null);
    assert_eq!(suites["check_suites"][0]["pull_requests"], json!([]));
    let permission = stage.get(&token, "/repos/acme/hello/collaborators/mallory/permission", 200).await;
    assert_eq!(permission["permission"], "none");
    stage.control("delete", json!({"repo": "mallory/hello"})).await;
    let pull = stage.get(&token, &format!("/repos/acme/hello/pulls/{number}"), 200).await;
    assert_eq!(pull["head"]["repo"], Value::Null);
    git(&work, &["fetch", "-q", &reader, &format!("refs/pull/{number}/head")]).expect("the head stays");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_jwt_and_a_living_token_are_accepted() {
    let stage = Stage::new().await;
    let now = super::state::system_seconds();
    for (claims, status) in [
        (json!({"iss": "1", "iat": now - 60, "exp": now + 540}), 200),
        (json!({"iss": 1, "iat": now - 60, "exp": now + 540}), 200),
        (json!({"iss": "1", "iat": now - 60, "exp": now - 1}), 401),
        (json!({"iss": "1", "iat": now - 60, "exp": now + 3600}), 401),
        (json!({"iss": "1", "iat": now + 300, "exp": now + 540}), 401),
        (json!({"iss": "2", "iat": now - 60, "exp": now + 540}), 404),
        (json!({"iss": "1"}), 401),
    ] {
        stage.get(&support::jwt(&claims), "/app", status).await;
    }
    let mut forged = support::jwt(&json!({"iss": "1", "iat": now - 60, "exp": now + 540}));
    forged.replace_range(forged.len() - 8.., "AAAAAAAA");
    stage.get(&forged, "/app", 401).await;

    let token = stage.token("acme/hello").await;
    assert!(token.starts_with("ghs_1_eyJ") && (480..560).contains(&token.len()), "{} characters", token.len());
    stage.get(&token, "/repos/acme/hello", 200).await;
    stage.get(&token, "/user", 403).await;
    stage.get(&token, "/app", 401).await;
    stage.control("clock", json!({"advance_seconds": 3601})).await;
    stage.get(&token, "/repos/acme/hello", 401).await;
    let token = stage.token("acme/hello").await;
    stage.control("suspend", json!({"owner": "acme"})).await;
    stage.get(&token, "/repos/acme/hello", 403).await;
    let answer = stage.post(&stage.jwt(), "/app/installations/50001/access_tokens", json!({}), 403).await;
    assert_eq!(answer["message"], "This installation has been suspended");
    stage.get(&stage.jwt(), "/app/installations/50001", 200).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_token_can_do_no_more_than_it_was_given() {
    let stage = Stage::new().await;
    stage.post("alice-token", "/user/repos", json!({"name": "own", "private": true}), 201).await;
    let path = "/app/installations/50001/access_tokens";
    let narrow = stage
        .post(&stage.jwt(), path, json!({"repositories": ["hello"], "permissions": {"contents": "read"}}), 201)
        .await;
    let narrow = narrow["token"].as_str().expect("a token").to_owned();
    stage.get(&narrow, "/repos/acme/hello/commits", 200).await;
    stage.get(&narrow, "/repos/acme/hello/pulls", 403).await;
    stage.get(&narrow, "/repos/alice/own", 404).await;
    stage.post(&stage.jwt(), path, json!({"permissions": {"administration": "write"}}), 422).await;
    stage.post(&stage.jwt(), path, json!({"repositories": ["own"]}), 422).await;
    let answer = stage.raw("GET", &narrow, "/repos/acme/hello/pulls", None).await;
    assert_eq!(answer.header("x-accepted-github-permissions"), "pull_requests=read");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_strike_as_often_as_told_and_a_cut_answer_took_effect_once() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    let fault =
        |kind: &str| json!({"match": {"method": "POST", "path_regex": "/comments$"}, "fault": kind, "retry_after": 7});
    stage.control("faults", fault("drop-after")).await;
    assert!(stage.try_raw("POST", &token, &comments, Some(json!({"body": "once"}))).await.is_err());
    stage.control("faults", fault("drop-before")).await;
    assert!(stage.try_raw("POST", &token, &comments, Some(json!({"body": "never"}))).await.is_err());
    let listed = stage.get(&token, &comments, 200).await;
    assert_eq!(listed.as_array().expect("a list").len(), 1);
    assert_eq!(listed[0]["body"], "once");
    for (kind, status) in [("500", 500), ("502", 502), ("503", 503), ("429", 429), ("403-secondary", 403), ("401", 401)]
    {
        stage.control("faults", fault(kind)).await;
        let answer = stage.raw("POST", &token, &comments, Some(json!({"body": "no"}))).await;
        assert_eq!(answer.status, status);
        if kind != "401" {
            assert_eq!(answer.header("retry-after"), "7", "{kind}");
        }
    }
    stage.control("faults", fault("403-primary")).await;
    let answer = stage.raw("POST", &token, &comments, Some(json!({"body": "no"}))).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (403, "0".to_owned()));
    stage.post(&token, &comments, json!({"body": "yes"}), 201).await;
    let log = stage.get("", "/_/requests", 200).await;
    let posts = log["requests"].as_array().expect("a log").iter().filter(|entry| entry["path"] == comments.as_str());
    assert_eq!(posts.filter(|entry| entry["method"] == "POST").count(), 10);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_answers_carry_etags() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    for number in 0..5 {
        stage.post(&token, &comments, json!({"body": format!("number {number}")}), 201).await;
    }
    let answer = stage.raw("GET", &token, &format!("{comments}?per_page=2"), None).await;
    let link = answer.header("link");
    let next = link.split('<').nth(1).and_then(|rest| rest.split('>').next()).expect("a next link").to_owned();
    assert!(next.contains("/repositories/") && link.contains("page=3>; rel=\"last\""), "{link}");
    let second = stage.get(&token, next.trim_start_matches(stage.url()), 200).await;
    assert_eq!(second[0]["body"], "number 2");
    let tag = answer.header("etag");
    let again = stage.with_header(&token, &format!("{comments}?per_page=2"), "if-none-match", &tag).await;
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    let other = stage.token("acme/hello").await;
    let other = stage.with_header(&other, &format!("{comments}?per_page=2"), "if-none-match", &tag).await;
    assert_eq!(other.status, 200, "the tag depends on the token");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_lost_redelivered_doubled_held_and_reversed_as_told() {
    let stage = Stage::new().await;
    stage.settle().await;
    let push = |text: &str| json!({"repo": "acme/hello", "files": {"f": text}});
    stage.control("webhooks", json!({"mode": "lost"})).await;
    stage.control("push", push("1")).await;
    assert!(stage.settle().await.is_empty());
    stage.control("webhooks", json!({"mode": "normal"})).await;
    let jwt = stage.jwt();
    let failed = stage.get(&jwt, "/app/hook/deliveries?status=failure&per_page=100", 200).await;
    let lost =
        failed.as_array().expect("a list").iter().find(|item| item["event"] == "push").expect("the push").clone();
    stage.post(&jwt, &format!("/app/hook/deliveries/{}/attempts", lost["id"]), json!({}), 202).await;
    let events = stage.settle().await;
    assert_eq!((events.len(), json!(events[0].guid)), (1, lost["guid"].clone()));
    let all = stage.get(&jwt, "/app/hook/deliveries?per_page=1", 200).await;
    assert_eq!(all[0]["redelivery"], true);
    assert_ne!(all[0]["id"], lost["id"]);

    stage.control("webhooks", json!({"mode": "doubled"})).await;
    stage.control("push", push("2")).await;
    let events = stage.settle().await;
    assert_eq!((events.len(), &events[0].guid), (4, &events[1].guid));
    stage.control("webhooks", json!({"mode": "reversed"})).await;
    stage.control("push", push("3")).await;
    let names: Vec<String> = stage.settle().await.iter().map(|event| event.label()).collect();
    assert_eq!(names, ["check_suite.requested", "push"]);
    stage.control("webhooks", json!({"mode": "held"})).await;
    stage.control("push", push("4")).await;
    assert_eq!(stage.get("", "/_/idle", 200).await["idle"], false);
    assert!(stage.received().is_empty());
    stage.control("webhooks/release", json!({})).await;
    assert_eq!(stage.settle().await.len(), 2);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_commits_become_buttons_and_the_pages_escape_what_people_write() {
    let stage = Stage::new().await;
    let prepared = json!([
        {"id": "v2", "repo": "acme/hello", "branch": "evening", "title": "Say good evening", "files": {"a": "evening"},
         "opens_pull": {"title": "Good evening", "body": "<script>alert(1)</script>"}},
        {"id": "v3", "repo": "acme/hello", "branch": "evening", "title": "Mend it", "files": {"a": "good evening"}},
    ]);
    std::fs::write(stage.data().join("prepared.json"), prepared.to_string()).expect("write");
    let page = stage.page("/acme/hello").await;
    assert!(page.contains("Open pull request: Good evening") && !page.contains("Mend it"), "{page}");
    let location = stage.press("prepared", "repo=acme/hello&id=v2").await;
    assert_eq!(location, "/acme/hello/pull/1");
    let page = stage.page(&location).await;
    assert!(page.contains("Push commit: Mend it") && page.contains("&lt;script&gt;"), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");
    stage.press("prepared", "repo=acme/hello&id=v3").await;
    stage.press("comment", "repo=acme/hello&number=1&body=%2Fdeploy").await;
    let page = stage.page(&location).await;
    assert!(!page.contains("Push commit") && page.contains("/deploy"), "{page}");
    stage.press("merge", "repo=acme/hello&number=1").await;
    assert!(stage.page(&location).await.contains("merged"));
    let names: Vec<String> = stage.settle().await.iter().map(|event| event.label()).collect();
    assert!(names.contains(&"pull_request.synchronize".to_owned()), "{names:?}");
    assert!(names.contains(&"issue_comment.created".to_owned()), "{names:?}");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_and_tells_nothing_twice() {
    let mut stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    let path = format!("/repos/acme/hello/pulls/{pull}");
    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    stage.post(&token, &comments, json!({"body": "stays"}), 201).await;
    let before = stage.get(&token, &path, 200).await;
    stage.settle().await;
    stage.restart().await;
    assert!(stage.settle().await.is_empty());
    let after = stage.get(&token, &path, 200).await;
    assert_eq!((&after["id"], &after["head"]["sha"]), (&before["id"], &before["head"]["sha"]));
    assert_eq!(stage.get(&token, &comments, 200).await[0]["body"], "stays");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_repository_redirects_and_keeps_its_id() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    stage.settle().await;
    stage.control("rename", json!({"repo": "acme/hello", "name": "hallo"})).await;
    let answer = stage.raw("GET", &token, "/repos/acme/hello/pulls?state=open", None).await;
    assert_eq!(answer.status, 301);
    let location = answer.header("location");
    assert!(location.ends_with("/pulls?state=open") && location.contains("/repositories/"), "{location}");
    let listed = stage.get(&token, location.trim_start_matches(stage.url()), 200).await;
    assert_eq!(listed[0]["number"], pull);
    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    stage.post(&token, &comments, json!({"body": "x"}), 307).await;
    let events = stage.settle().await;
    assert_eq!(events[0].label(), "repository.renamed");
    assert_eq!(events[0].body["changes"]["repository"]["name"]["from"], "hello");
    let work = temporary("renamed");
    git(&work, &["clone", "-q", &stage.git_url("x", &token, "acme/hello"), "."]).expect("clone by the old name");
    stage.control("transfer", json!({"repo": "acme/hallo", "owner": "globex"})).await;
    let names: Vec<String> = stage.settle().await.iter().map(|event| event.label()).collect();
    assert_eq!(names, ["installation_repositories.removed", "installation.created", "repository.transferred"]);
    stage.get(&token, "/repos/globex/hallo", 404).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_and_pushes_made_on_disk_are_noticed() {
    let stage = Stage::new().await;
    stage.settle().await;
    let bare = stage.data().join("acme/second.git");
    git(stage.data(), &["init", "-q", "--bare", "-b", "main", &bare.to_string_lossy()]).expect("init");
    eventually("the new repository", || async {
        stage.received_names().contains(&"installation_repositories.added".to_owned())
    })
    .await;
    let work = temporary("on-disk");
    git(&work, &["clone", "-q", &bare.to_string_lossy(), "."]).expect("clone");
    git(&work, &["-c", "user.name=a", "-c", "user.email=a@x", "commit", "-q", "--allow-empty", "-m", "x"])
        .expect("commit");
    git(&work, &["push", "-q", "origin", "HEAD:main"]).expect("push");
    eventually("the push", || async { stage.received_names().contains(&"push".to_owned()) }).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_checks_and_deployments_keep_their_limits() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    let sha = stage.get(&token, &format!("/repos/acme/hello/pulls/{pull}"), 200).await["head"]["sha"].clone();
    let sha = sha.as_str().expect("a sha");
    let combined = stage.get(&token, &format!("/repos/acme/hello/commits/{sha}/status"), 200).await;
    assert_eq!(combined["state"], "pending", "no status counts as pending");
    let statuses = format!("/repos/acme/hello/statuses/{sha}");
    let long = "x".repeat(141);
    let answer = stage.post(&token, &statuses, json!({"state": "success", "description": long}), 422).await;
    assert_eq!(answer["errors"][0]["message"], "description is too long (maximum is 140 characters)");
    stage.post(&token, &statuses, json!({"state": "pending", "context": "landfall/review-app"}), 201).await;
    stage.post(&token, &statuses, json!({"state": "success", "context": "Landfall/Review-App"}), 201).await;
    let combined = stage.get(&token, &format!("/repos/acme/hello/commits/{sha}/status"), 200).await;
    assert_eq!((&combined["state"], &combined["total_count"]), (&json!("success"), &json!(1)));

    let annotation =
        json!({"path": "a", "start_line": 1, "end_line": 1, "annotation_level": "failure", "message": "m"});
    let output = |count: usize| json!({"title": "t", "summary": "s", "annotations": vec![annotation.clone(); count]});
    let runs = "/repos/acme/hello/check-runs";
    stage.post(&token, runs, json!({"name": "n", "head_sha": sha, "output": output(51)}), 422).await;
    stage.post(&token, runs, json!({"name": "n", "head_sha": sha, "status": "completed"}), 422).await;
    stage.post("alice-token", runs, json!({"name": "n", "head_sha": sha}), 403).await;
    let run = stage.post(&token, runs, json!({"name": "n", "head_sha": sha, "output": output(50)}), 201).await;
    let run = format!("{runs}/{}", run["id"]);
    let big = "é".repeat(32_768);
    stage.patch(&token, &run, json!({"output": {"title": "t", "summary": big}}), 422).await;
    let blocked = json!({"ref": sha, "environment": "staging", "auto_merge": false});
    let answer = stage.post(&token, "/repos/acme/hello/deployments", blocked.clone(), 409).await;
    assert_eq!(answer["errors"][0]["field"], "required_contexts");
    let done = stage.patch(&token, &run, json!({"conclusion": "success", "output": output(50)}), 200).await;
    assert_eq!((&done["status"], &done["output"]["annotations_count"]), (&json!("completed"), &json!(100)));

    let first = stage.post(&token, "/repos/acme/hello/deployments", blocked.clone(), 201).await;
    let second = stage.post(&token, "/repos/acme/hello/deployments", blocked, 201).await;
    let path = |deployment: &Value| format!("/repos/acme/hello/deployments/{}/statuses", deployment["id"]);
    stage.settle().await;
    stage.post(&token, &path(&first), json!({"state": "success", "environment_url": "ftp://x"}), 422).await;
    stage.post(&token, &path(&first), json!({"state": "success", "environment_url": "http://x/"}), 201).await;
    stage.post(&token, &path(&second), json!({"state": "success"}), 201).await;
    let retired = stage.get(&token, &path(&first), 200).await;
    assert_eq!(retired[0]["state"], "inactive");
    assert_eq!(stage.settle().await.len(), 2, "no webhook tells of inactive");
    stage.raw("DELETE", &token, &format!("/repos/acme/hello/deployments/{}", second["id"]), None).await.expect(422);
    stage.raw("DELETE", &token, &format!("/repos/acme/hello/deployments/{}", first["id"]), None).await.expect(204);
    stage.raw("DELETE", &token, "/repos/acme/hello/environments/staging", None).await.expect(403);
    // The default branch is ahead: with auto_merge it is merged in first, and no deployment is made.
    stage.control("push", json!({"repo": "acme/hello", "files": {"z": "1"}})).await;
    let answer = stage
        .post(&token, "/repos/acme/hello/deployments", json!({"ref": "topic", "required_contexts": []}), 202)
        .await;
    assert_eq!(answer["message"], "Auto-merged main into topic on deployment.");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_refused_loudly() {
    let stage = Stage::new().await;
    let answer = stage.get("alice-token", "/repos/acme/hello/traffic/views", 501).await;
    assert_eq!(answer["message"], "the simulated GitHub does not know GET /repos/acme/hello/traffic/views");
    assert_eq!(stage.get("", "/_/unknown", 200).await["count"], 1);
    stage.get("", "/repos/acme/hello", 404).await;
    let answer = stage.raw("POST", "alice-token", "/repos/acme/hello/issues", None).await;
    assert_eq!(answer.status, 422);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_sign_in_by_oauth() {
    let stage = Stage::new().await;
    let app = stage.get(&stage.jwt(), "/app", 200).await;
    let client = app["client_id"].as_str().expect("a client id").to_owned();
    let secret = stage.client_secret().await;
    let authorize = format!("/login/oauth/authorize?client_id={client}&redirect_uri=http://bot/callback&state=s1");
    let answer = stage.raw("GET", "", &authorize, None).await;
    let location = answer.header("location");
    let code = location.split("code=").nth(1).and_then(|rest| rest.split('&').next()).expect("a code").to_owned();
    assert!(location.starts_with("http://bot/callback?") && location.ends_with("&state=s1"), "{location}");
    let exchange = json!({"client_id": client, "client_secret": secret, "code": code});
    let token = stage.post("", "/login/oauth/access_token", exchange.clone(), 200).await;
    let user = stage.get(token["access_token"].as_str().expect("a token"), "/user", 200).await;
    assert_eq!(user["login"], "alice");
    let spent = stage.post("", "/login/oauth/access_token", exchange, 200).await;
    assert_eq!(spent["error"], "bad_verification_code");
    let refresh = json!({"client_id": client, "client_secret": secret, "grant_type": "refresh_token", "refresh_token": token["refresh_token"]});
    let renewed = stage.post("", "/login/oauth/access_token", refresh, 200).await;
    stage.get(token["access_token"].as_str().expect("a token"), "/user", 401).await;
    stage.get(renewed["access_token"].as_str().expect("a token"), "/user", 200).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_either_form_is_read() {
    let spki = super::access::public_key(include_str!("testdata/app-key.pub.pem")).expect("SPKI");
    let pkcs1 = super::access::public_key(include_str!("testdata/app-key.pkcs1.pub.pem")).expect("PKCS#1");
    assert_eq!(spki, pkcs1);
    assert!(super::access::public_key("-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_without_the_permission_brings_no_workflow_files() {
    let stage = Stage::new().await;
    stage.control("permissions", json!({"permissions": {"contents": "write"}})).await;
    let token = stage.token("acme/hello").await;
    let files = json!({".github/workflows/ci.yml": "on: push\n"});
    stage.control("push", json!({"repo": "acme/hello", "branch": "ci", "files": files})).await;
    let pull = stage.control("pull", json!({"repo": "acme/hello", "head": "ci", "title": "CI"})).await;
    let merge = format!("/repos/acme/hello/pulls/{}/merge", pull["number"]);
    let refused = stage.put(&token, &merge, json!({}), 403).await;
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains("without `workflows` permission")),
        "{refused}"
    );
    let merges = json!({"base": "main", "head": "ci"});
    stage.post(&token, "/repos/acme/hello/merges", merges.clone(), 403).await;
    stage.control("permissions", json!({"permissions": {"workflows": "write"}})).await;
    let token = stage.token("acme/hello").await;
    stage.post(&token, "/repos/acme/hello/merges", merges.clone(), 201).await;
    stage.post(&token, "/repos/acme/hello/merges", merges, 204).await;
    assert_eq!(stage.get(&token, merge.trim_end_matches("/merge"), 200).await["merged"], true);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_becomes_an_app_with_a_key() {
    let stage = Stage::new().await;
    let manifest = json!({"name": "Mine", "redirect_url": "http://bot/done", "hook_attributes": {"url": stage.options().webhook_url}});
    let form = format!("manifest={}", super::wire::percent_encode(&manifest.to_string(), ""));
    let location = stage.submit("/settings/apps/new?state=s2", &form).await;
    let code = location.split("code=").nth(1).and_then(|rest| rest.split('&').next()).expect("a code").to_owned();
    assert!(location.starts_with("http://bot/done?") && location.ends_with("&state=s2"), "{location}");
    let path = format!("/app-manifests/{code}/conversions");
    let app = stage.post("", &path, json!({}), 201).await;
    assert_eq!(app["name"], "Mine");
    assert!(app["pem"].as_str().is_some_and(|pem| pem.contains("PRIVATE KEY")), "{app}");
    stage.post("", &path, json!({}), 404).await;
    stage.get(&stage.jwt(), "/app", 200).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_enforced_when_asked_for() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    let pull = stage.open_pull("topic", "A topic").await;
    let comments = format!("/repos/acme/hello/issues/{pull}/comments");
    stage.control("rate", json!({"limit": 4, "enforce": true, "writes_per_minute": 2})).await;
    for status in [201, 201, 403] {
        stage.post(&token, &comments, json!({"body": "x"}), status).await;
    }
    assert_eq!(stage.get(&token, "/rate_limit", 200).await["rate"]["remaining"], 1);
    let answer = stage.raw("GET", &token, &comments, None).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, "0".to_owned()));
    stage.get(&token, &comments, 403).await;
    stage.control("clock", json!({"advance_seconds": 3500})).await;
    stage.control("rate", json!({"limit": 5000, "enforce": false, "writes_per_minute": null})).await;
    stage.post(&token, &comments, json!({"body": "x"}), 201).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_teams_and_roles_are_told_to_those_who_may_know() {
    let stage = Stage::new().await;
    let token = stage.token("acme/hello").await;
    stage.control("team", json!({"org": "acme", "team": "deployers", "members": ["carol"]})).await;
    let path = "/orgs/acme/teams/deployers/memberships";
    assert_eq!(stage.get(&token, &format!("{path}/carol"), 200).await["state"], "active");
    stage.get(&token, &format!("{path}/bob"), 404).await;
    stage.get("bob-token", &format!("{path}/carol"), 404).await;
    let permission = |name: &str| format!("/repos/acme/hello/collaborators/{name}/permission");
    for (role, folded) in [("triage", "read"), ("maintain", "write"), ("admin", "admin")] {
        stage.put("alice-token", "/repos/acme/hello/collaborators/bob", json!({"permission": role}), 204).await;
        let answer = stage.get(&token, &permission("bob"), 200).await;
        assert_eq!((&answer["permission"], &answer["role_name"]), (&json!(folded), &json!(role)));
    }
    assert_eq!(stage.get(&token, &permission("alice"), 200).await["permission"], "admin");
    stage.get(&token, &permission("nobody-here"), 404).await;
    stage.get("bob-token", "/repos/acme/hello", 200).await;
    stage.control("collaborator", json!({"repo": "acme/hello", "user": "bob", "permission": null})).await;
    stage.get("bob-token", "/repos/acme/hello", 404).await;
    stage.stop().await;
}
