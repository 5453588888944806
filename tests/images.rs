//! Code that is built otherwise than by a buildpack: a `Dockerfile`, by a real container engine; and code that nothing
//! builds. `script/test` installs the engine (buildah), which can work only where the tests run as root.

use crate::support::machine::{Machine, OWNER};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DOCKERFILE: &str = r#"
FROM scratch
COPY --chmod=755 tools/busybox /bin/busybox
ARG COLOUR=none
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && mkdir -p /srv/www && echo $COLOUR >/srv/www/colour"]
RUN echo "app:x:1234:77:app:/srv:/bin/sh" >/etc/passwd
COPY index.html /srv/www/index.html
ENV GREETING="hello there" PATH=/bin
WORKDIR /srv/www
USER app
EXPOSE 3000
ENTRYPOINT ["/bin/busybox", "httpd", "-f", "-v"]
CMD ["-p", "3000"]
"#;

fn has_engine() -> bool {
    let there = std::path::Path::new("/usr/bin/buildah").exists() && std::path::Path::new("/bin/busybox").exists();
    let root = nix::unistd::geteuid().is_root();
    assert!(there || !root, "buildah and busybox-static are installed (script/test does it)");
    there && root
}

fn files(page: &str) -> Value {
    let busybox = std::fs::read("/bin/busybox").expect("busybox can be read");
    let busybox = base64::engine::general_purpose::STANDARD.encode(busybox);
    json!({
        "tools/busybox": { "base64": busybox },
        "deploy/Dockerfile": DOCKERFILE,
        "index.html": page,
        "app.json": r#"{"env": {"COLOUR": "green 'and' $(blue)"}}"#,
        "heroku.yml": "build:\n  docker:\n    web: deploy/Dockerfile\nrelease:\n  command:\n    - echo \"released $GREETING\"\n\
                       run:\n  worker: while true; do sleep 1; done\n",
    })
}

async fn push(machine: &Machine, repository: &str, branch: &str, files: Value) {
    let push = json!({ "repo": repository, "branch": branch, "files": files, "message": "Change", "user": OWNER });
    machine.github(Method::POST, "/_/push", Some(push)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_becomes_an_app_in_our_own_walls() {
    if !has_engine() {
        return;
    }
    let machine = Machine::with(
        "[build]\nengine = \"buildah\"\nengine_options = [\"--storage-driver\", \"vfs\"]\nnetwork = \"isolated\"\n",
    )
    .await;
    let repository = machine.make_repository("shop", &BTreeMap::from([("README".to_owned(), "x".to_owned())])).await;
    push(&machine, &repository, "main", files("<h1>one</h1>")).await;
    machine.serves("shop-staging", "<h1>one</h1>").await;
    let colour = machine.visit("shop-staging", "/colour").await.expect("it answers").body;
    assert_eq!(colour.trim(), "green 'and' $(blue)", "build-time config is a build argument, whatever stands in it");

    let logs = machine.says(&["logs", "shop-staging"]).await;
    assert!(logs.contains("released hello there"), "ENV, and a line of heroku.yml in a shell: {logs}");
    let said = async |line: &str| machine.says(&["run", "shop-staging", "--", line]).await.trim().to_owned();
    assert_eq!(said("id -u; id -g; pwd; echo $HOME $PATH $PORT.").await, "1234\n77\n/srv/www\n/srv /bin .");
    assert_eq!(said("ls /srv/www; touch /srv/www/mine && ls /srv/www | wc -l").await, "colour\nindex.html\n3");
    assert_eq!(said("ls /srv/www").await, "colour\nindex.html", "what a process writes is its own");
    assert_eq!(
        said("readlink -f /bin/ls; ls / | tr '\\n' ' '").await,
        "/bin/busybox\nbin dev etc proc run srv sys tmp"
    );
    assert!(said("cat /proc/1/environ 2>&1; ls /home /root 2>&1 | cat").await.contains("No such file"));
    assert_eq!(said("mount -t tmpfs x /srv 2>/dev/null || echo refused").await, "refused");
    machine.says(&["scale", "shop-staging", "worker=1"]).await;
    let runs = async || {
        let processes = machine.says(&["ps", "shop-staging"]).await;
        anyhow::ensure!(processes.contains("worker.1"), "{processes}");
        Ok(())
    };
    machine.expect("a worker of the same image", runs).await;

    // A change builds on what was built before, and a pull request's app beside it.
    push(&machine, &repository, "change", json!({ "index.html": "<h1>two</h1>" })).await;
    let pull = machine.open_pull(&repository, "change", "Say two").await;
    machine.serves("shop-pr-1", "<h1>two</h1>").await;
    let builds = machine.says(&["apps"]).await;
    assert!(builds.contains("shop-pr-1"), "{builds}");

    // What is wrong in it is said with what the engine said.
    push(&machine, &repository, "change", json!({ "deploy/Dockerfile": "FROM scratch\nRUN [\"/nothing\"]\n" })).await;
    let comment = machine.comment_says(&repository, pull, "The build ended with status").await;
    assert!(comment.contains("/nothing"), "{comment}");
    machine.serves("shop-pr-1", "<h1>two</h1>").await;
    let doctor = machine.api("/api/v1/doctor").await.expect("the API answers");
    assert_eq!(doctor["leftovers"], json!([]), "{doctor}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_builds_is_refused_with_what_was_looked_for() {
    let machine = Machine::start().await;
    let empty = BTreeMap::from([("README".to_owned(), "x".to_owned())]);
    let repository = machine.make_repository("shop", &empty).await;
    machine.push(&repository, "one", &BTreeMap::from([("notes.txt".to_owned(), "x".to_owned())]), "Add notes").await;
    let pull = machine.open_pull(&repository, "one", "Add notes").await;
    let comment = machine.comment_says(&repository, pull, "No buildpack takes this repository.").await;
    for name in [
        "bin/build",
        "Gemfile",
        "package.json",
        "requirements.txt",
        "pom.xml",
        "composer.json",
        "go.mod",
        "Cargo.toml",
        "index.html",
        "Procfile",
    ] {
        assert!(comment.contains(name), "{name}: {comment}");
    }
    let docker = BTreeMap::from([("Dockerfile".to_owned(), "FROM scratch\n".to_owned())]);
    machine.push(&repository, "two", &docker, "Add a Dockerfile").await;
    let pull = machine.open_pull(&repository, "two", "Add a Dockerfile").await;
    let comment = machine.comment_says(&repository, pull, "No buildpack takes this repository.").await;
    assert!(comment.contains("build.engine"), "the key to set: {comment}");
    machine.leave().await;
}
