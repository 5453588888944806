//! Review apps that are closed to the public, up to what the router is told; what the router does with it stands in its
//! own tests.

use crate::support::town::{OWNER, Town};
use landfall::domain::{AppName, Secret};
use landfall::router::Access;
use serde_json::{Value, json};

fn access_of(town: &Town, app: &str) -> Option<Access> {
    let name: AppName = app.parse().expect("an app's name");
    town.router.lock().expect("no holder panics").tables.last()?.apps.get(&name)?.access.clone()
}

async fn pull_with(town: &Town, settings: &str) {
    let repository = town.make_repository("hello", "one").await;
    let files = json!({ ".github/landfall.toml": settings, "Procfile": "web: serve\n", "page.txt": "one" });
    town.push_files(&repository, "main", files).await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Change").await;
    town.settle().await;
}

#[tokio::test]
async fn a_policy_closes_review_apps_with_a_password_that_can_be_changed() {
    let town = Town::start().await;
    pull_with(&town, "[pipeline.review]\naccess = \"password\"\n").await;
    let first = access_of(&town, "hello-pr-1").expect("the review app is closed");
    assert!(first.password.is_some() && first.sign_in.is_none());
    assert_eq!(access_of(&town, "hello-staging"), None, "the policy is about review apps");
    let api = format!("{}/api/v1/apps/hello-pr-1/access", town.dashboard());
    let shown = town.client.get(&api).send().await.unwrap().json::<Value>().await.unwrap();
    let password = shown["password"].as_str().expect("a password").to_owned();
    assert_eq!(landfall::router::seal_password(&first.key, &password), first.password.clone().unwrap());

    let change = |body: Value| town.client.post(format!("{api}/change")).json(&body).send();
    let rotated = change(json!({ "rotate": true })).await.unwrap().json::<Value>().await.unwrap();
    assert_ne!(rotated["password"], shown["password"]);
    let second = access_of(&town, "hello-pr-1").expect("it is closed");
    assert!(second.key != first.key, "who came in with the old password is out");
    assert!(change(json!({ "mode": "public" })).await.unwrap().status().is_success());
    assert_eq!(access_of(&town, "hello-pr-1"), None);
    assert_eq!(change(json!({ "mode": "open" })).await.unwrap().status().as_u16(), 400);

    // Without a way to log in at GitHub, what is closed stays closed, by a password.
    assert!(change(json!({ "mode": "github" })).await.unwrap().status().is_success());
    let closed = access_of(&town, "hello-pr-1").expect("it is closed");
    assert!(closed.password.is_some() && closed.sign_in.is_none());
    town.leave().await;
}

#[tokio::test]
async fn who_may_read_the_repository_on_github_is_let_in_and_nobody_else() {
    let town = Town::start_with(None, |config| {
        config.apps.review_access = landfall::domain::AccessMode::Github;
        config.github.client_id = Some("unknown yet".to_owned());
        config.github.client_secret = Some(Secret::new("unknown yet"));
        config.server.public_url = format!("http://{}", config.server.listen);
    })
    .await;
    let known = town.control("GET", "/_/oauth", None).await;
    let mut town = town;
    town.kill().await;
    let text = |name: &str| known[name].as_str().expect(name).to_owned();
    let (id, secret) = (text("client_id"), text("client_secret"));
    town.boot_with(None, |config| {
        (config.github.client_id, config.github.client_secret) = (Some(id), Some(Secret::new(secret)));
    })
    .await;
    pull_with(&town, "").await;
    let access = access_of(&town, "hello-pr-1").expect("the review app is closed");
    assert_eq!(access.password, None);
    let sign_in = access.sign_in.clone().expect("a way to log in");
    assert_eq!(sign_in, format!("{}/login/app", town.dashboard()));
    town.control("PATCH", &format!("/repos/{OWNER}/hello"), Some(json!({ "private": true }))).await;

    let browser = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let follow = async |address: String, cookie: Option<&str>| {
        let mut request = browser.get(&address);
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let answer = request.send().await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let cookie = header("set-cookie").map(|cookie| cookie.split(';').next().unwrap().to_owned());
        (answer.status().as_u16(), header("location").unwrap_or_default(), cookie)
    };
    let bind = "ab".repeat(32);
    let begin = format!("{sign_in}?app=hello-pr-1&bind={bind}&to=/deep%3Fx%3D1");
    let (status, at_github, state) = follow(begin.clone(), None).await;
    assert_eq!(status, 303);
    assert!(at_github.contains("code_challenge_method=S256"), "{at_github}");
    let state = state.expect("a cookie");
    let (_, back, _) = follow(at_github.clone(), None).await;
    assert!(back.starts_with(&format!("{}/login/callback?code=", town.dashboard())), "{back}");
    assert_eq!(follow(back.clone(), None).await.0, 403, "another browser");
    let (status, entrance, _) = follow(back.clone(), Some(&state)).await;
    assert_eq!(status, 303, "the owner may read it");
    assert!(entrance.contains("hello-pr-1.localhost/.landfall/enter?ticket="), "{entrance}");
    assert!(entrance.ends_with("&to=%2Fdeep%3Fx%3D1"), "{entrance}");
    assert_eq!(follow(back, Some(&state)).await.0, 403, "a login is good once");

    // Somebody who may not read the private repository.
    town.control("POST", "/_/user", Some(json!({ "name": "mallory" }))).await;
    let (_, at_github, state) = follow(begin, None).await;
    let (_, back, _) = follow(format!("{at_github}&login=mallory"), None).await;
    let (status, location, _) = follow(back, state.as_deref()).await;
    assert_eq!((status, location.as_str()), (403, ""));
    let elsewhere = format!("{sign_in}?app=hello-pr-1&bind={bind}&to=//evil.example/");
    assert_eq!(follow(elsewhere, None).await.0, 400);
    town.leave().await;
}
