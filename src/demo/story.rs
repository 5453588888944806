//! The whole story without a keyboard: each step asks for something as a person would and then looks, over real HTTP,
//! until it is so. A step that does not come true in time ends the story with its name and what was seen instead.

use super::{Demo, sample};
use crate::domain::{AppName, Sha};
use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a step may take. Much longer than it should, since machines are slow at times.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn play(demo: &Demo) -> anyhow::Result<()> {
    let mut story = Story { demo, began: Instant::now(), done: 0 };
    let all = story.all().await;
    let seconds = story.began.elapsed().as_secs_f64();
    match all {
        Ok(()) => {
            println!("all {} steps held, in {seconds:.1} s", story.done);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

struct Story<'a> {
    demo: &'a Demo,
    began: Instant,
    done: u32,
}

/// What an app answered at its host.
struct Seen {
    status: u16,
    body: String,
}

impl Story<'_> {
    async fn all(&mut self) -> anyhow::Result<()> {
        let step = Instant::now();
        let first = self.serves("hello-staging", "Hello, world!").await;
        self.told(step, "the first commit on main is tested and serves on staging", first)?;

        let step = Instant::now();
        let opened = self.open(&sample::WARMER).await;
        let (number, comment, app) =
            self.told(step, "a pull request gets a comment with its review app's link", opened)?;
        let step = Instant::now();
        let works = self.link_works(&app, "Welcome, world!").await;
        self.told(step, "the link works", works)?;
        let step = Instant::now();
        let head = self.head(number).await?;
        let green = self.check(&head, "success").await;
        self.told(step, "the checks turn green", green)?;
        let step = Instant::now();
        let deployed = self.deployment("review/pr-1", &head, "success").await;
        self.told(step, "the commit status and the deployment say success with the link", deployed)?;

        let step = Instant::now();
        let pushed = self.push_changes(number, comment, &app).await;
        self.told(step, "a push shows in the same comment, environment and link", pushed)?;

        let step = Instant::now();
        let red = self.break_test(number, comment).await;
        self.told(step, "a failing test turns the check red and names the reason", red)?;

        let step = Instant::now();
        let merged = self.mend_and_merge(number).await;
        let merge = self.told(step, "after the mend and the merge staging serves it, without another build", merged)?;

        let step = Instant::now();
        let promoted = self.promote(number, comment, &merge).await;
        self.told(step, "/promote puts the same bytes into production", promoted)?;

        let step = Instant::now();
        let gone = self.open_and_close().await;
        self.told(step, "closing a pull request leaves no app, route, folder, process or active deployment", gone)?;

        let step = Instant::now();
        let held = self.fork().await;
        self.told(step, "a fork's pull request is held and nothing of it runs", held)?;

        let step = Instant::now();
        let clean = self.nothing_is_left_over().await;
        self.told(step, "nothing outlives its record", clean)
    }

    /// Prints a step that held; gives back the error of one that didn't, with its name.
    fn told<T>(&mut self, began: Instant, name: &str, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(value) => {
                self.done += 1;
                println!("ok {seconds:6.1} s  {name}");
                Ok(value)
            }
            Err(error) => {
                println!("FAILED {seconds:6.1} s  {name}");
                Err(error.context(format!("the step failed: {name}")))
            }
        }
    }

    async fn open(&self, commit: &sample::Prepared) -> anyhow::Result<(u64, u64, String)> {
        let (title, body) = commit.opens.context("this commit opens no pull request")?;
        self.demo.push(commit.branch, commit.files(), commit.title).await?;
        let wish = json!({ "title": title, "body": body, "head": commit.branch, "base": "main" });
        let pull = self.demo.github("POST", &self.repository("/pulls"), Some(wish)).await?;
        let number = pull["number"].as_u64().context("the pull request has no number")?;
        let app = format!("hello-pr-{number}");
        let host = format!("{app}.localhost");
        let comment = self
            .until("a comment with the link", async || {
                let (id, body) = self.comment(number).await?;
                if body.contains(&host) { Ok(id) } else { Err(anyhow!("the comment says:\n{body}")) }
            })
            .await?;
        Ok((number, comment, app))
    }

    async fn link_works(&self, app: &str, text: &str) -> anyhow::Result<()> {
        self.serves(app, text).await
    }

    async fn push_changes(&self, number: u64, comment: u64, app: &str) -> anyhow::Result<()> {
        self.push(&sample::WARMEST).await?;
        let head = self.head(number).await?;
        self.serves(app, "A warm welcome, world!").await?;
        self.check(&head, "success").await?;
        self.deployment("review/pr-1", &head, "success").await?;
        self.comment_says(number, comment, &head[..7]).await
    }

    async fn break_test(&self, number: u64, comment: u64) -> anyhow::Result<()> {
        self.push(&sample::BROKEN).await?;
        let head = self.head(number).await?;
        let run = self.check(&head, "failure").await?;
        let summary = run["output"]["summary"].as_str().unwrap_or_default().to_owned();
        if !summary.contains("the greeting is empty") {
            bail!("the check does not name the reason; it says:\n{summary}");
        }
        self.comment_says(number, comment, "greeting is a word").await
    }

    async fn mend_and_merge(&self, number: u64) -> anyhow::Result<String> {
        self.push(&sample::MENDED).await?;
        let head = self.head(number).await?;
        self.check(&head, "success").await?;
        self.deployment("review/pr-1", &head, "success").await?;
        let review = self.slug("hello-pr-1")?;
        let merge = json!({ "merge_method": "merge", "sha": head });
        let merged = self.demo.github("PUT", &self.repository(&format!("/pulls/{number}/merge")), Some(merge)).await?;
        let commit = merged["sha"].as_str().context("the merge has no commit")?.to_owned();
        self.serves("hello-staging", "A warm welcome, world!").await?;
        self.deployment("staging", &commit, "success").await?;
        let staging = self.slug("hello-staging")?;
        if review != staging {
            bail!("staging serves slug {staging}, but the review app served {review}: the same tree was built twice");
        }
        Ok(commit)
    }

    async fn promote(&self, number: u64, comment: u64, commit: &str) -> anyhow::Result<()> {
        let said = self
            .demo
            .github(
                "POST",
                &self.repository(&format!("/issues/{number}/comments")),
                Some(json!({ "body": "/promote" })),
            )
            .await?;
        let command = said["id"].as_u64().context("the comment has no number")?;
        self.serves("hello-production", "A warm welcome, world!").await?;
        self.deployment("production", commit, "success").await?;
        let (staging, production) = (self.slug("hello-staging")?, self.slug("hello-production")?);
        if staging != production {
            bail!("production serves slug {production}, staging {staging}");
        }
        self.until("a rocket on the command", async || {
            let path = self.repository(&format!("/issues/comments/{command}/reactions"));
            let reactions = self.demo.github("GET", &path, None).await?;
            let contents: Vec<&str> = list(&reactions).filter_map(|reaction| reaction["content"].as_str()).collect();
            if contents.contains(&"eyes") && contents.contains(&"rocket") {
                Ok(())
            } else {
                Err(anyhow!("{contents:?}"))
            }
        })
        .await?;
        self.comment_says(number, comment, "hello-production").await
    }

    async fn open_and_close(&self) -> anyhow::Result<()> {
        let (number, _, app) = self.open(&sample::BLUER).await?;
        let head = self.head(number).await?;
        self.serves(&app, "Hello, world!").await?;
        let environment = format!("review/pr-{number}");
        self.deployment(&environment, &head, "success").await?;
        let closed = json!({ "state": "closed" });
        self.demo.github("PATCH", &self.repository(&format!("/pulls/{number}")), Some(closed)).await?;
        self.until("the app's host to answer 404", async || {
            let seen = self.visit(&app).await?;
            if seen.status == 404 { Ok(()) } else { Err(anyhow!("it answers {}", seen.status)) }
        })
        .await?;
        self.deployment(&environment, &head, "inactive").await?;
        let world = &self.demo.running.world;
        let name: AppName = app.parse()?;
        self.until("no process, record or file of the app", async || {
            let mut left: Vec<String> = Vec::new();
            for status in world.platform.list().await? {
                if status.labels.values().any(|value| *value == app) {
                    left.push(format!("process {}", status.id));
                }
            }
            if world.store.app(&name)?.is_some() {
                left.push("its record".to_owned());
            }
            left.extend(files_named(&self.demo.folder.join("data"), &app)?);
            if left.is_empty() { Ok(()) } else { Err(anyhow!("left: {left:?}")) }
        })
        .await
    }

    async fn fork(&self) -> anyhow::Result<()> {
        let demo = self.demo;
        demo.github("POST", "/_/user", Some(json!({ "name": "mallory" }))).await?;
        demo.github("POST", "/_/fork", Some(json!({ "repo": sample::REPOSITORY, "user": "mallory" }))).await?;
        let push = json!({
            "repo": format!("mallory/{}", sample::NAME), "branch": "improved", "user": "mallory",
            "files": { "server.py": "raise SystemExit('this must never run')\n" }, "message": "Improve the server",
        });
        demo.github("POST", "/_/push", Some(push)).await?;
        let pull = json!({
            "repo": sample::REPOSITORY, "title": "Improve the server", "head": "improved", "base": "main",
            "user": "mallory", "head_repo": format!("mallory/{}", sample::NAME),
        });
        let made = demo.github("POST", "/_/pull", Some(pull)).await?;
        let number = made["number"].as_u64().context("the fork's pull request has no number")?;
        self.until("a comment that says it is held", async || {
            let (_, body) = self.comment(number).await?;
            if body.contains("Held") { Ok(()) } else { Err(anyhow!("the comment says:\n{body}")) }
        })
        .await?;
        let head: Sha = self.head(number).await?.parse()?;
        let world = &demo.running.world;
        if world.store.builds()?.iter().any(|build| build.commit == head) {
            bail!("the fork's commit was built");
        }
        if world.store.runs()?.iter().any(|run| run.commit == head) {
            bail!("the fork's commit was tested");
        }
        Ok(())
    }

    async fn nothing_is_left_over(&self) -> anyhow::Result<()> {
        self.until("no leftover", async || {
            let found = crate::reconcile::leftovers(&self.demo.running.world).await?;
            if found.is_empty() { Ok(()) } else { Err(anyhow!("{found:?}")) }
        })
        .await
    }

    /// Looks again and again until it is so; the error of the last look is the reason.
    async fn until<T>(&self, what: &str, look: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match look().await {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("waited {} s for {what}", PATIENCE.as_secs())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn push(&self, commit: &sample::Prepared) -> anyhow::Result<()> {
        self.demo.push(commit.branch, commit.files(), commit.title).await
    }

    fn repository(&self, path: &str) -> String {
        format!("/repos/{}{path}", sample::REPOSITORY)
    }

    async fn head(&self, number: u64) -> anyhow::Result<String> {
        let pull = self.demo.github("GET", &self.repository(&format!("/pulls/{number}")), None).await?;
        Ok(pull["head"]["sha"].as_str().context("the pull request has no head")?.to_owned())
    }

    /// The one comment of Landfall's: two are an error.
    async fn comment(&self, number: u64) -> anyhow::Result<(u64, String)> {
        let path = self.repository(&format!("/issues/{number}/comments"));
        let comments = self.demo.github("GET", &path, None).await?;
        let ours: Vec<&Value> = list(&comments)
            .filter(|comment| comment["body"].as_str().is_some_and(|body| body.contains("<!-- landfall -->")))
            .collect();
        match ours.as_slice() {
            [comment] => Ok((
                comment["id"].as_u64().context("the comment has no number")?,
                comment["body"].as_str().unwrap_or_default().to_owned(),
            )),
            other => Err(anyhow!("{} comments of Landfall's", other.len())),
        }
    }

    async fn comment_says(&self, number: u64, id: u64, text: &str) -> anyhow::Result<()> {
        self.until(&format!("the same comment to say {text:?}"), async || {
            let (found, body) = self.comment(number).await?;
            if found != id {
                bail!("another comment was written");
            }
            if body.contains(text) { Ok(()) } else { Err(anyhow!("it says:\n{body}")) }
        })
        .await
    }

    /// The check run of a commit, once it has this conclusion.
    async fn check(&self, commit: &str, conclusion: &str) -> anyhow::Result<Value> {
        self.until(&format!("landfall/tests to be {conclusion}"), async || {
            let path = self.repository(&format!("/commits/{commit}/check-runs?check_name=landfall%2Ftests"));
            let answer = self.demo.github("GET", &path, None).await?;
            let runs: Vec<&Value> = list(&answer["check_runs"]).collect();
            match runs.as_slice() {
                [run] if run["conclusion"] == conclusion => Ok((*run).clone()),
                other => Err(anyhow!("the check runs are {other:?}")),
            }
        })
        .await
    }

    /// Waits until the one deployment of a commit to an environment has this state; a success must carry a link that
    /// answers.
    async fn deployment(&self, environment: &str, commit: &str, state: &str) -> anyhow::Result<()> {
        self.until(&format!("the deployment to {environment} to be {state}"), async || {
            let escaped = environment.replace('/', "%2F");
            let path = self.repository(&format!("/deployments?environment={escaped}&sha={commit}"));
            let deployments = self.demo.github("GET", &path, None).await?;
            let found: Vec<&Value> = list(&deployments).collect();
            let [deployment] = found.as_slice() else { bail!("{} deployments", found.len()) };
            let id = deployment["id"].as_u64().context("the deployment has no number")?;
            let statuses =
                self.demo.github("GET", &self.repository(&format!("/deployments/{id}/statuses")), None).await?;
            let newest = list(&statuses).next().cloned().unwrap_or_default();
            if newest["state"] != state {
                bail!("it is {}", newest["state"]);
            }
            if state == "success" && newest["environment_url"].as_str().is_none_or(str::is_empty) {
                bail!("it has no link");
            }
            Ok(())
        })
        .await
    }

    /// Waits until an app answers with 200 and this text.
    async fn serves(&self, app: &str, text: &str) -> anyhow::Result<()> {
        self.until(&format!("{app} to say {text:?}"), async || {
            let seen = self.visit(app).await?;
            if seen.status == 200 && seen.body.contains(text) {
                Ok(())
            } else {
                Err(anyhow!("it answers {}: {}", seen.status, seen.body.chars().take(300).collect::<String>()))
            }
        })
        .await
    }

    /// A visitor's request, through the router.
    async fn visit(&self, app: &str) -> anyhow::Result<Seen> {
        let port = self.demo.router.port();
        let answer = self
            .demo
            .client
            .get(format!("http://{}/", self.demo.router))
            .header("host", format!("{app}.localhost:{port}"))
            .send()
            .await?;
        Ok(Seen { status: answer.status().as_u16(), body: answer.text().await? })
    }

    /// The digest of the slug that an app's live release is of.
    fn slug(&self, app: &str) -> anyhow::Result<String> {
        let store = &self.demo.running.world.store;
        let name: AppName = app.parse()?;
        let live = store.app(&name)?.and_then(|app| app.live).with_context(|| format!("{app} has no live release"))?;
        Ok(store.release(&name, live)?.context("the live release has no record")?.slug.to_string())
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Files and folders under `folder` whose name begins with the app's.
fn files_named(folder: &std::path::Path, app: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == app || name.starts_with(&format!("{app}.")) {
                found.push(entry.path().display().to_string());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && name != "store" && name != "github" {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}
