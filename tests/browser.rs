//! A newcomer's five minutes, in a real browser: `landfall demo`, its pages, and nothing but what a person can click.

use crate::support::browser::Browser;
use crate::support::machine::{PATIENCE, eventually, kill_processes_of, landfall_command, processes_of, start_until};
use std::path::PathBuf;
use std::process::Child;
use std::time::Instant;

/// A running `landfall demo`.
struct Demo {
    folder: tempfile::TempDir,
    demo: Option<Child>,
    /// Addresses that it printed, as a person finds them.
    github: String,
    dashboard: String,
    staging: String,
}

impl Demo {
    fn start() -> Demo {
        let folder = tempfile::Builder::new().prefix("landfall-demo-test-").tempdir().expect("a temporary folder");
        let mut command = landfall_command();
        command.args(["demo", "--data-dir"]).arg(folder.path().join("demo"));
        let mut printed: Vec<String> = Vec::new();
        let log = folder.path().join("demo.log");
        let child = start_until(command, &log, |line| {
            printed.push(line.trim().to_owned());
            line.contains("Ctrl-C")
        });
        let mut demo =
            Demo { folder, demo: Some(child), github: String::new(), dashboard: String::new(), staging: String::new() };
        let address = |name: &str| -> Option<String> {
            let line = printed.iter().find(|line| line.starts_with(name))?;
            line.split_whitespace().find(|word| word.starts_with("http")).map(str::to_owned)
        };
        match (address("GitHub"), address("Dashboard"), address("Staging")) {
            (Some(github), Some(dashboard), Some(staging)) => {
                (demo.github, demo.dashboard, demo.staging) = (github, dashboard, staging);
                demo
            }
            _ => panic!("the demo did not start:\n{}\n{}", printed.join("\n"), demo.log()),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("demo.log")).unwrap_or_default()
    }

    /// Ctrl-C ends everything.
    async fn interrupt(mut self) {
        let mut demo = self.demo.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(demo.id()).expect("a process number"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("interrupt the demo");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match demo.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.demo = Some(demo);
                    panic!("the demo does not end");
                }
                None => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        assert!(status.success(), "{status}\n{}", self.log());
        let left = processes_of(self.folder.path());
        assert!(left.is_empty(), "the demo left {left:#?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the demo's log:\n{}", self.log());
        }
        if let Some(mut demo) = self.demo.take() {
            let _ = demo.kill();
            let _ = demo.wait();
            let config: PathBuf = self.folder.path().join("demo/landfall.toml");
            let _ = landfall_command().arg("--config").arg(config).arg("down").output();
        }
        kill_processes_of(self.folder.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_clicks_through_the_demo() {
    let demo = Demo::start();
    let browser = Browser::open().await;
    browser.resize(1280, 900).await;

    browser.go(&demo.staging).await;
    browser.reads_after_reload("Hello, world!").await;
    // Until it served, the router said so with a status of its own.
    browser.complaints().await;

    browser.go(&demo.github).await;
    browser.press("Open pull request: Greet more warmly").await;
    browser.reads("Greet more warmly #1").await;
    let pull = browser.url().await;
    browser.reads("hello-pr-1.localhost").await;
    browser.reads("All checks have passed").await;
    browser.reads("4 passed").await;
    browser.photograph("comment.png").await;
    browser.click("//*[contains(@class, 'markdown')]//a[normalize-space()='Open']").await;
    browser.reads("Welcome, world!").await;
    let app = browser.url().await;
    assert!(app.starts_with("http://hello-pr-1.localhost:"), "{app}");
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    browser.go(&pull).await;
    browser.press("Push commit: Greet more warmly still").await;
    browser.reads_at(&app, "A warm welcome, world!").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new(), "the app must go on serving during a deploy");

    browser.go(&pull).await;
    browser.press("Push commit: Forget the greeting (this breaks a test)").await;
    browser.reads("Some checks were not successful").await;
    browser.reads("greeting is a word").await;
    browser.press("Push commit: Put the greeting back").await;
    browser.reads("All checks have passed").await;
    no_overflow_on_a_phone(&browser).await;

    browser.press("Merge pull request").await;
    browser.reads("merged").await;
    browser.reads_at(&demo.staging, "A warm welcome, world!").await;
    browser.go(&pull).await;
    browser.reads("The review app was removed").await;
    browser.write("Comment as", "/promote").await;
    browser.press("Comment").await;
    browser.reads("hello-production serves v1").await;
    browser.go(&demo.staging.replace("-staging", "-production")).await;
    browser.reads("A warm welcome, world!").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    browser.go(&demo.github).await;
    browser.press("Open pull request: Paint the page blue").await;
    browser.reads("hello-pr-2.localhost").await;
    browser.reads("All checks have passed").await;
    let dashboard = demo.dashboard.trim_end_matches('/');
    for (path, words) in [
        ("/", vec!["acme/hello", "hello-pr-2", "hello-staging", "hello-production"]),
        ("/pipelines/acme/hello", vec!["hello-pr-2", "Paint the page blue"]),
        ("/apps/hello-production", vec!["hello-production", "web.1", "python3 server.py", "v1", "Releases"]),
        ("/apps/hello-pr-2", vec!["Paint the page blue", "listening on"]),
        ("/runs/1", vec!["Run 1", "Node 0", "Node 1"]),
        ("/runs/1/nodes/0", vec!["ok 1 - greets by name"]),
        ("/deliveries", vec!["pull_request", "acme/hello", "olivia"]),
    ] {
        browser.resize(1280, 900).await;
        browser.go(&format!("{dashboard}{path}")).await;
        for words in words {
            browser.reads(words).await;
        }
        if path == "/" {
            browser.photograph("dashboard.png").await;
        }
        no_overflow_on_a_phone(&browser).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new(), "{path}");
    }

    // A page that is open follows what happens, without being asked for again.
    browser.resize(1280, 900).await;
    browser.go(&format!("{dashboard}/apps/hello-production")).await;
    browser.click("//summary[normalize-space()='Restart…']").await;
    browser.press("Yes, restart").await;
    browser.reads("asked to stop").await;

    browser.go(&demo.github).await;
    browser.follow("Paint the page blue").await;
    browser.press("Close pull request").await;
    browser.reads("The review app was removed").await;
    let gone = async || {
        browser.go(&format!("{dashboard}/apps/hello-pr-2")).await;
        let text = browser.text().await;
        anyhow::ensure!(text.contains("There is no app called hello-pr-2"), "{text}");
        Ok(())
    };
    eventually(gone).await.expect("the app is gone");
    browser.complaints().await;
    browser.close().await;
    demo.interrupt().await;
}

async fn no_overflow_on_a_phone(browser: &Browser) {
    browser.resize(390, 844).await;
    let url = browser.url().await;
    assert_eq!(browser.overflow().await, serde_json::Value::Null, "{url} is wider than a phone");
    browser.resize(1280, 900).await;
}
