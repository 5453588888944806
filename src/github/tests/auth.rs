//! Tokens: minted once, renewed early, refused for a while.

use super::super::error::{Advice, GitHubError};
use super::super::key::{KeyError, RsaKey};
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

/// The claims of a token, if the key's public half verifies it.
fn claims(token: &str, key: &RsaKey) -> Value {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key())
        .verify(signed.as_bytes(), &signature)
        .expect("the signature fits");
    let (header, claims) = signed.split_once('.').unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT" }));
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[test]
fn both_forms_of_the_key_sign_tokens_that_verify() {
    for pem in [PKCS1, PKCS8] {
        let key = RsaKey::from_pem(pem).unwrap();
        let claims = claims(key.token(42, START).expose(), &key);
        let now = START.0 / 1000;
        assert_eq!(claims, json!({ "iat": now - 60, "exp": now + 540, "iss": "42" }));
    }
}

#[test]
fn what_is_no_key_is_refused_with_advice() {
    let refused = |pem: &str| RsaKey::from_pem(pem).unwrap_err();
    assert_eq!(refused(""), KeyError::NotPem);
    assert_eq!(refused("my key"), KeyError::NotPem);
    assert!(refused("").to_string().contains("download a private key"));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_eq!(refused(encrypted), KeyError::Encrypted);
    let older =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAAAA\n-----END RSA PRIVATE KEY-----";
    assert_eq!(refused(older), KeyError::Encrypted);
    let public = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert_eq!(refused(public), KeyError::WrongKind { found: "a public key".to_owned() });
    let openssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    assert!(refused(openssh).to_string().contains("a openssh private key"));
    assert!(matches!(refused(&PKCS1[..400]), KeyError::Damaged(_)));
    assert!(matches!(refused(&PKCS1.replacen("MII", "MIJ", 1)), KeyError::Damaged(_)));
    assert!(matches!(refused(&PKCS1.replacen("MII", "M!I", 1)), KeyError::Damaged(_)));
    // A file with Windows line ends and text around it is as good.
    assert!(RsaKey::from_pem(&format!("my key:\r\n{}", PKCS1.replace('\n', "\r\n"))).is_ok());
}

#[tokio::test]
async fn concurrent_first_calls_mint_one_token() {
    let mock = Mock::start(|seen| {
        if is_mint(seen) {
            Reply::Late(Duration::from_millis(50), Box::new(minted(1, START + Duration::from_secs(3600))))
        } else {
            Reply::json(200, json!([]))
        }
    })
    .await;
    let (github, _) = app_client(&mock);
    let (repo, sha) = (repo(), sha());
    for outcome in join_all((0..20).map(|_| github.list_statuses(&repo, &sha))).await {
        outcome.unwrap();
    }
    let mints: Vec<Seen> = mock.seen().into_iter().filter(is_mint).collect();
    assert_eq!(mints.len(), 1);
    assert_eq!(mints[0].path, "/app/installations/7/access_tokens");
    let token = mints[0].header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
    claims(token, &RsaKey::from_pem(PKCS8).unwrap());
    for call in calls(&mock) {
        assert_eq!(call.header("authorization").unwrap(), format!("Bearer {}", long_token(1)));
    }
}

#[tokio::test]
async fn a_caller_that_leaves_while_minting_holds_up_nobody() {
    let mock = Mock::start(|seen| match seen {
        seen if is_mint(seen) && seen.before == 0 => Reply::RawThenSilence(Vec::new()),
        seen if is_mint(seen) => minted(1, START + Duration::from_secs(3600)),
        _ => Reply::json(200, json!([])),
    })
    .await;
    let (github, _) = app_client(&mock);
    let (handle, sha) = (repo(), sha());
    {
        let mut first = std::pin::pin!(github.list_statuses(&handle, &sha));
        while mock.seen().is_empty() {
            assert!(futures_util::poll!(&mut first).is_pending());
            tokio::task::yield_now().await;
        }
    }
    github.list_statuses(&handle, &sha).await.unwrap();
    assert_eq!(mock.seen().len(), 3, "two mintings, one call");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let clock = Clock::manual(START);
    let now = clock.clone();
    let mock = Mock::start(move |seen| {
        if is_mint(seen) {
            minted(seen.before, now.now() + Duration::from_secs(3600))
        } else {
            Reply::json(200, json!([]))
        }
    })
    .await;
    let github = GitHub::new(settings(mock.url(), app()), clock.clone()).unwrap();
    let mints = || mock.seen().iter().filter(|seen| is_mint(seen)).count();
    for (minutes, expected) in [(0, 1), (49, 1), (2, 2), (30, 2), (25, 3)] {
        clock.advance(Duration::from_secs(minutes * 60));
        github.list_statuses(&repo(), &sha()).await.unwrap();
        assert_eq!(mints(), expected, "{minutes} minutes later");
    }
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    // The first token was revoked, the second is good.
    let mock = Mock::start(|seen| {
        if is_mint(seen) {
            minted(seen.before, START + Duration::from_secs(3600))
        } else if seen.header("authorization").unwrap().contains(&long_token(0)) {
            Reply::json(401, json!({ "message": "Bad credentials" }))
        } else {
            Reply::json(201, json!({ "id": 5 }))
        }
    })
    .await;
    let (github, _) = app_client(&mock);
    let made = github.create_comment(&repo(), crate::domain::PullNumber(1), "hello").await.unwrap();
    assert_eq!(made.0, 5);
    assert_eq!(mock.seen().len(), 4, "mint, refused call, mint, call");
}

#[tokio::test]
async fn credentials_that_stay_refused_cost_a_call_a_minute() {
    let mock = mock(|_| Reply::json(401, json!({ "message": "Bad credentials" }))).await;
    for (github, clock) in [app_client(&mock), token_client(&mock)] {
        let handle = repo();
        let before = calls(&mock).len();
        for _ in 0..10 {
            let error = github.list_statuses(&handle, &sha()).await.unwrap_err();
            assert_eq!(error, GitHubError::Unauthorized { message: "Bad credentials".to_owned() });
            assert_eq!(error.advice(), Advice::PauseInstallation);
        }
        let first = calls(&mock).len() - before;
        assert!(first <= 2, "one try and one with a new token, not {first}");
        clock.advance(Duration::from_secs(61));
        github.list_statuses(&handle, &sha()).await.unwrap_err();
        assert!(calls(&mock).len() - before > first);
    }
}

#[tokio::test]
async fn suspended_and_removed_installations_are_told_apart_and_left_alone() {
    for (status, message, expected) in [
        (403, "This installation has been suspended", GitHubError::Suspended),
        (404, "Not Found", GitHubError::NotInstalled),
    ] {
        let mock = Mock::start(move |_| Reply::json(status, json!({ "message": message }))).await;
        let (github, clock) = app_client(&mock);
        for _ in 0..50 {
            let error = github.list_statuses(&repo(), &sha()).await.unwrap_err();
            assert_eq!(error, expected);
            assert_eq!(error.advice(), Advice::PauseInstallation);
        }
        assert_eq!(mock.seen().len(), 1);
        clock.advance(Duration::from_secs(61));
        github.list_statuses(&repo(), &sha()).await.unwrap_err();
        assert_eq!(mock.seen().len(), 2);
        // The webhook that says so ends the wait at once.
        github.installation_changed(INSTALLATION);
        github.list_statuses(&repo(), &sha()).await.unwrap_err();
        assert_eq!(mock.seen().len(), 3);
        // Another installation is none of this one's business.
        let other = RepoHandle { installation: Some(InstallationId(8)), ..repo() };
        github.list_statuses(&other, &sha()).await.unwrap_err();
        assert_eq!(mock.seen().len(), 4);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_noticed_by_githubs_own() {
    // GitHub's clock is half an hour ahead of ours.
    let there = START + Duration::from_secs(1800);
    let mock = Mock::start(move |seen| {
        let token = seen.header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
        let claims = claims(token, &RsaKey::from_pem(PKCS1).unwrap());
        let fits =
            claims["iat"].as_i64().unwrap() <= there.0 / 1000 && claims["exp"].as_i64().unwrap() > there.0 / 1000;
        let reply = if fits {
            Reply::json(200, json!({ "id": 1, "slug": "landfall" }))
        } else {
            Reply::json(
                401,
                json!({ "message": "'Expiration time' claim ('exp') must be a numeric value in the future" }),
            )
        };
        reply.with("Date", "Sun, 22 Nov 2026 23:49:37 GMT")
    })
    .await;
    let (github, _) = app_client(&mock);
    let identity = github.app().await.unwrap();
    assert_eq!((identity.app_id, identity.login.as_str()), (Some(1), "landfall[bot]"));
    assert_eq!(mock.seen().len(), 2);
    github.app().await.unwrap();
    assert_eq!(mock.seen().len(), 3, "what was learnt is kept");
}

#[tokio::test]
async fn git_gets_a_token_for_one_repository_only() {
    let mock = mock(|_| panic!("only minting is called")).await;
    let (github, _) = app_client(&mock);
    let header = github.git_authorization(Some(INSTALLATION), RepositoryId(1000)).await.unwrap();
    let pair = STANDARD.decode(header.expose().strip_prefix("Basic ").unwrap()).unwrap();
    assert_eq!(pair, format!("x-access-token:{}", long_token(1)).into_bytes());
    github.git_authorization(Some(INSTALLATION), RepositoryId(1000)).await.unwrap();
    github.git_authorization(Some(INSTALLATION), RepositoryId(2000)).await.unwrap();
    let asked: Vec<Value> = mock.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        asked,
        [
            json!({ "repository_ids": [1000], "permissions": { "contents": "read" } }),
            json!({ "repository_ids": [2000], "permissions": { "contents": "read" } }),
        ]
    );
    assert_eq!(github.git_authorization(None, RepositoryId(1)).await.unwrap_err(), GitHubError::NotInstalled);

    let (plain, _) = token_client(&mock);
    let header = plain.git_authorization(None, RepositoryId(1000)).await.unwrap();
    assert_eq!(STANDARD.decode(header.expose().strip_prefix("Basic ").unwrap()).unwrap(), b"x-access-token:ghp_plain");
}

#[tokio::test]
async fn no_token_is_in_what_is_printed() {
    let mock = mock(|seen| match seen.method.as_str() {
        "GET" => Reply::json(404, json!({ "message": "Not Found" })),
        _ => Reply::Close,
    })
    .await;
    let (as_app, _) = app_client(&mock);
    let (plain, _) = token_client(&mock);
    let mut printed = String::new();
    for github in [&as_app, &plain] {
        let read = github.pull(&repo(), crate::domain::PullNumber(1)).await.unwrap_err();
        let write = github.create_comment(&repo(), crate::domain::PullNumber(1), "canary body").await.unwrap_err();
        let header = github.git_authorization(Some(INSTALLATION), RepositoryId(1)).await.unwrap();
        printed.push_str(&format!("{github:?} {github:#?} {read:?} {read} {write:?} {write} {header:?}"));
    }
    let unreachable = GitHub::new(settings("http://127.0.0.1:1/", app()), Clock::manual(START)).unwrap();
    let error = unreachable.app().await.unwrap_err();
    printed.push_str(&format!("{error:?} {error} {:?}", settings("http://x", app())));
    for secret in ["ghp_plain", "ghs_1_", "eyJ", "Basic ", "canary body", "MIIE"] {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
}
