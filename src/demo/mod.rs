//! `landfall demo`: the whole product on one machine, without an account and without a network. The control plane
//! and the simulated GitHub run in this process, the router beside it as always.

mod sample;
mod story;

use crate::config::Config;
use crate::server::{self, Running};
use crate::sim::{self, Sim};
use crate::web::stop_everything;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file in a demo's folder, by which it is known that the folder may be emptied.
const MARK: &str = "made-by-landfall-demo";
const PERSON: &str = "olivia";
const TOKEN: &str = "demo-token-of-olivia";
const SECRET: &str = "a secret of the demo, known to everybody";
const APP_ID: u64 = 1;

#[derive(Debug, Clone)]
pub struct Options {
    /// Play the story without a person and end.
    pub once: bool,
    /// Emptied first; a folder of its own unless given.
    pub data_dir: Option<PathBuf>,
}

/// Runs the demo; with `once`, an error names the step that failed.
pub fn run(options: Options) -> anyhow::Result<()> {
    crate::github::install_crypto_provider();
    if !options.once {
        // The printed addresses shall stay in sight.
        server::start_logging_from("error");
    }
    let folder = match options.data_dir {
        Some(folder) => folder,
        None if options.once => std::env::temp_dir().join(format!("landfall-demo-{}", std::process::id())),
        None => PathBuf::from("landfall-demo"),
    };
    prepare_folder(&folder)?;
    let folder = std::path::absolute(folder)?;
    let once = options.once;
    let result = server::runtime()?.block_on(async {
        let mut demo = Demo::start(&folder, once).await?;
        let result = if once {
            story::play(&demo).await
        } else {
            demo.welcome();
            tokio::select! {
                () = server::terminated() => {}
                _ = demo.running.down.recv() => {}
            }
            Ok(())
        };
        demo.end().await;
        result
    });
    if once && result.is_ok() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    result
}

/// An empty folder; one that somebody else made and that holds something is left alone.
fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() && folder.read_dir()?.next().is_some() {
        if !folder.join(MARK).exists() {
            bail!(
                "{} is not empty and was not made by the demo: name another folder with --data-dir",
                folder.display()
            );
        }
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(MARK), "")?;
    Ok(())
}

/// Everything that runs.
pub struct Demo {
    folder: PathBuf,
    sim: Sim,
    running: Running,
    client: reqwest::Client,
    router: SocketAddr,
}

impl Demo {
    async fn start(folder: &Path, anywhere: bool) -> anyhow::Result<Demo> {
        let server_address = free_address(if anywhere { 0 } else { 8080 })?;
        let router_address = free_address(if anywhere { 0 } else { 8000 })?;
        let sim_address = free_address(if anywhere { 0 } else { 8090 })?;
        let github_folder = folder.join("github");
        std::fs::create_dir_all(&github_folder)?;
        let prepared = serde_json::to_vec_pretty(&sample::prepared())?;
        std::fs::write(github_folder.join("prepared.json"), prepared)?;
        let sim = Sim::start(sim::Options {
            listen: sim_address,
            data: github_folder,
            public_url: None,
            webhook_url: format!("http://{server_address}/webhooks/github"),
            webhook_secret: SECRET.to_owned(),
            app_id: APP_ID,
            app_public_key_pem: include_str!("../../demo/app-key.pub.pem").to_owned(),
            users: vec![(PERSON.to_owned(), TOKEN.to_owned())],
        })
        .await
        .context("cannot start the simulated GitHub")?;
        let key = folder.join("app-key.pem");
        std::fs::write(&key, include_str!("../../demo/app-key.pem"))?;
        let config_file = folder.join("landfall.toml");
        std::fs::write(&config_file, configuration(folder, server_address, router_address, sim.url(), &key))?;
        let config = Config::load(&config_file, true)?;
        let router_start = server::RouterStart::new(&config, &config_file)?;
        let parts = server::real_parts(&config, &config_file).await?;
        let router = SocketAddr::from((Ipv4Addr::LOCALHOST, parts.router_port));
        let running = server::start(server::open_world(config, parts)?, Some(router_start)).await?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()?;
        let demo = Demo { folder: folder.to_owned(), sim, running, client, router };
        demo.make_repository().await.context("cannot make the sample repository")?;
        Ok(demo)
    }

    async fn make_repository(&self) -> anyhow::Result<()> {
        self.github("POST", "/_/user", Some(json!({ "name": sample::OWNER }))).await?;
        let wish = json!({ "name": sample::NAME, "description": "A page that greets", "auto_init": false });
        self.github("POST", "/user/repos", Some(wish)).await?;
        let transfer = json!({ "repo": format!("{PERSON}/{}", sample::NAME), "owner": sample::OWNER });
        self.github("POST", "/_/transfer", Some(transfer)).await?;
        let rights = json!({ "repo": sample::REPOSITORY, "user": PERSON, "permission": "admin" });
        self.github("POST", "/_/collaborator", Some(rights)).await?;
        self.push("main", sample::first_files(), "A page that greets").await
    }

    /// Commits files to a branch, as the person.
    async fn push(&self, branch: &str, files: Value, message: &str) -> anyhow::Result<()> {
        let push = json!({
            "repo": sample::REPOSITORY, "branch": branch, "files": files, "message": message, "user": PERSON,
        });
        self.github("POST", "/_/push", Some(push)).await?;
        Ok(())
    }

    /// A call on the simulated GitHub, as the person.
    async fn github(&self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.sim.url());
        let mut request = self
            .client
            .request(method.parse()?, &url)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("user-agent", "landfall-demo")
            .header("accept", "application/vnd.github+json");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {url}"))?;
        let (status, text) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{method} {path} answered {status}: {text}");
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn welcome(&self) {
        let texts = &self.running.world.texts;
        let page = json!({
            "part": "demo",
            "github": format!("{}/{}", self.sim.url(), sample::REPOSITORY),
            "dashboard": self.running.world.config.page("/"),
            "staging": format!("http://{}-staging.localhost:{}/", sample::NAME, self.router.port()),
            "config": self.folder.join("landfall.toml"),
        });
        println!("{}", texts.render("demo.txt", page));
    }

    /// Stops everything that was started, apps and router included.
    async fn end(self) {
        let world = self.running.world.clone();
        // First the control plane, or it would start again what is stopped here.
        self.running.stop().await;
        let stopped = stop_everything(&world.platform, &world.router, &world.clock, Duration::from_secs(40)).await;
        match stopped {
            Ok(stopped) if stopped.left.is_empty() => {}
            Ok(stopped) => eprintln!("still running: {}", stopped.left.join(", ")),
            Err(error) => eprintln!("not everything could be stopped: {error}"),
        }
        self.sim.stop().await;
    }
}

/// The loopback address with this port, or with a free one where it is taken.
fn free_address(port: u16) -> anyhow::Result<SocketAddr> {
    let wished = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = wished.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    Ok(listener.context("no port is free")?.local_addr()?)
}

fn configuration(folder: &Path, server: SocketAddr, router: SocketAddr, github: &str, key: &Path) -> String {
    let text = |value: &str| Value::from(value).to_string();
    let path = |value: &Path| text(&value.to_string_lossy());
    format!(
        "data_dir = {data}\n\n[server]\nlisten = \"{server}\"\npublic_url = \"http://localhost:{port}\"\n\n\
         [router]\nlisten = \"{router}\"\ndomain = \"localhost\"\n\n\
         [github]\napi_url = {github}\nweb_url = {github}\napp_id = {APP_ID}\nprivate_key_path = {key}\n\
         webhook_secret = {secret}\nwrite_interval_ms = 0\nstaleness_seconds = 2\n\n\
         [apps]\ngrace_seconds = 5\ndrain_seconds = 5\n",
        data = path(&folder.join("data")),
        port = server.port(),
        github = text(github),
        key = path(key),
        secret = text(SECRET),
    )
}
