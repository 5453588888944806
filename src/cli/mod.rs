//! The command line. What runs things calls the composition root; everything else asks the control plane over HTTP,
//! as anybody's script could, since only one process may have the store open.
//!
//! Exit codes: 0 done, 1 not done (the reason stands on standard error), 2 not understood; of `serve` and `router` also
//! 3, where `landfall down` ended them.

mod audit;
mod client;
mod machine;
mod monitor;
mod orders;
mod print;
mod show;
mod test_runs;

use crate::ci::wire::SETUP_NOT_A_SLUG;
use crate::config::Config;
use crate::domain::{AppName, ReleaseNumber};
use crate::slug::ArchiveLimits;
use crate::text::Texts;
use clap::{Args, Parser, Subcommand};
use client::Client;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// With it `serve` and `router` end after `landfall down`: the units in `packaging/` start neither again then.
const TAKEN_DOWN: u8 = 3;

#[derive(Parser)]
#[command(
    name = "landfall",
    version,
    about = "Review apps, parallel tests, staging and promotion for GitHub repositories, on your own machine",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_required = true
)]
struct Cli {
    /// The configuration; each key can be overridden as LANDFALL_SECTION__KEY
    #[arg(long, global = true, value_name = "FILE", default_value = "landfall.toml")]
    config: PathBuf,
    /// Print JSON, as the API answers it
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: webhooks, reconciler, dashboard, API
    Serve,
    /// Run the router; `serve` starts it by itself if none runs
    Router {
        /// Start one that takes the place of the one that runs, without a request that fails; comes back once it serves
        #[arg(long)]
        replace: bool,
    },
    /// Show everything on this machine, without an account and without a network
    Demo(Demo),
    /// Run the stand-in for GitHub alone
    Sim(Sim),
    /// List the apps
    Apps,
    /// List an app's processes, or everybody's
    Ps { app: Option<AppName> },
    /// End an app's processes; each is started anew
    Restart {
        app: AppName,
        /// One process (web.1), or those of one type (web)
        process: Option<String>,
    },
    /// Show how many processes an app runs, or change it
    Scale {
        app: AppName,
        /// TYPE=QUANTITY, TYPE=QUANTITY:SIZE or TYPE=SIZE
        #[arg(value_name = "TYPE=QUANTITY")]
        formation: Vec<String>,
    },
    /// Config vars, of an app or of a pipeline's stage
    #[command(subcommand)]
    Config(orders::Config),
    /// Run a command once, with the code and config of the live release
    Run(orders::Run),
    /// Show an app's numbers over time
    Metrics {
        app: AppName,
        /// The last two hours by the minute, day by ten minutes, or week by the hour
        #[arg(long, default_value = "2h", value_parser = ["2h", "24h", "7d"])]
        range: String,
    },
    /// List what fires, and what has fired lately
    Alerts,
    /// Show or set who may see an app, or a pipeline's review apps
    Access(monitor::Access),
    /// Where log lines are sent
    #[command(subcommand)]
    Drains(monitor::Drains),
    /// Show what an app's processes print, and its requests
    Logs(Logs),
    /// List an app's releases
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Releases {
        #[arg(required = true)]
        app: Option<AppName>,
        #[command(subcommand)]
        order: Option<ReleaseOrder>,
    },
    /// Serve an earlier release again: the one before the live one, or the one that is named (v3)
    Rollback { app: AppName, release: Option<ReleaseNumber> },
    /// Show visitors of an app the maintenance page, or let them in again
    Maintenance {
        #[arg(value_parser = ["on", "off"])]
        turn: String,
        app: AppName,
    },
    /// Take an app away, with its add-ons and what they hold
    Destroy {
        app: AppName,
        /// The app's name once more
        #[arg(long, value_name = "APP")]
        confirm: Option<String>,
    },
    /// Put staging's release into production
    Promote {
        /// Pass over a lock or a freeze; the reason stands in the audit log
        #[arg(long, value_name = "REASON")]
        hotfix: Option<String>,
        /// The app of production, where there are several
        #[arg(long, value_name = "APP")]
        to: Option<String>,
        /// OWNER/NAME; may be left out where there is one pipeline
        pipeline: Option<String>,
    },
    /// Test runs
    #[command(subcommand)]
    Ci(Ci),
    /// List the repositories with their stages, or what waits for a promotion
    Pipelines {
        #[command(subcommand)]
        what: Option<Pipelines>,
    },
    /// List who asked for what, and what came of it
    Audit {
        /// OWNER/NAME
        #[arg(long, value_name = "REPOSITORY")]
        repository: Option<String>,
        /// How many to list, 1000 at most
        #[arg(short = 'n', long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        lines: u16,
    },
    /// List what GitHub sent and what was decided on it
    Deliveries {
        /// Show one with its payload
        id: Option<String>,
        /// How many to list
        #[arg(short = 'n', long, default_value_t = 30, value_name = "N")]
        lines: usize,
        /// List those only on which something was decided, or that are not dealt with yet
        #[arg(long, default_value = "all", value_parser = ["all", "decided", "open"])]
        only: String,
    },
    /// Work again on what is parked
    Replay {
        /// One delivery; all that is parked unless given
        id: Option<String>,
    },
    /// Write the whole store as JSON lines
    Export {
        /// `-` is standard output
        file: PathBuf,
    },
    /// Make a new store from an export; nothing may be there yet
    Import {
        /// `-` is standard input
        file: PathBuf,
    },
    /// Look at the machine, the store, the router, and for anything left over
    Doctor,
    /// Stop everything of this data folder: apps, router and control plane
    Down,
    /// The supervisor of one process
    #[command(hide = true)]
    Dyno {
        #[arg(long)]
        spec: PathBuf,
    },
    /// Runs test files inside a test process
    #[command(hide = true)]
    Node {
        #[arg(long, default_value = crate::node::SOCKET)]
        socket: PathBuf,
        /// Runs this command; with a token one whose client pulls files by itself
        #[arg(long)]
        script: Option<String>,
        /// Runs this command once for all nodes, and packs what it made into a folder
        #[arg(long, requires = "into", conflicts_with = "script")]
        setup: Option<String>,
        #[arg(long)]
        into: Option<PathBuf>,
        #[arg(long, default_value_t = 500)]
        slug_mb: u64,
        #[arg(long)]
        toolchain: Vec<PathBuf>,
        #[arg(long, requires = "script")]
        token: Option<String>,
        /// Variables whose values stand in no report
        #[arg(long, value_delimiter = ',')]
        mask: Vec<String>,
    },
}

#[derive(Args)]
struct Demo {
    /// Play the whole story without a keyboard, check every step, and end
    #[arg(long)]
    once: bool,
    /// Where the demo keeps its data; emptied first
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Args)]
struct Sim {
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where repositories are kept, each at DIR/OWNER/NAME.git
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// What links begin with
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    #[arg(long, value_name = "URL")]
    webhook_url: String,
    #[arg(long, value_name = "SECRET")]
    webhook_secret: String,
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    app_id: u64,
    /// The public half of the app's key: a PEM text, or a file that holds one
    #[arg(long, value_name = "PEM", allow_hyphen_values = true)]
    app_public_key: String,
    /// A person and their token; the first one owns what it makes
    #[arg(long, value_name = "NAME:TOKEN")]
    user: Vec<String>,
}

#[derive(Args)]
struct Logs {
    app: AppName,
    /// Go on as more is printed
    #[arg(short, long)]
    tail: bool,
    /// How many lines to begin with, 2000 at most
    #[arg(short = 'n', long = "num", default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=2000))]
    lines: u16,
}

#[derive(Subcommand)]
enum Pipelines {
    /// Show what staging serves and production does not
    Diff {
        /// OWNER/NAME; may be left out where there is one pipeline
        pipeline: Option<String>,
    },
    /// Do what a comment's command asks for: '/lock staging load test', '/deploy' with --pull
    Order {
        /// OWNER/NAME
        pipeline: String,
        /// As in a comment
        command: String,
        /// The pull request that it is about
        #[arg(long, value_name = "NUMBER")]
        pull: Option<u64>,
    },
    /// Print the rules that the dashboard says, or set them from a file (- is standard input)
    Rules {
        /// OWNER/NAME
        pipeline: String,
        /// In the form of .github/landfall.toml, whose word is the stronger one
        #[arg(long, value_name = "FILE")]
        set: Option<std::path::PathBuf>,
    },
}

#[derive(Subcommand)]
enum Ci {
    /// List test runs, newest first
    List {
        /// OWNER/NAME
        #[arg(long, value_name = "REPOSITORY")]
        repository: Option<String>,
    },
    /// Show a run with its nodes, or what one node printed
    Show {
        run: u64,
        /// Print that node's log
        #[arg(long, value_name = "N")]
        node: Option<u16>,
    },
    /// Print what a node of a run printed
    Logs {
        run: u64,
        #[arg(long, value_name = "N", default_value_t = 0)]
        node: u16,
        /// Go on with what it prints from now on
        #[arg(short, long)]
        tail: bool,
        /// Of each phase only its first line, with how much there is of it
        #[arg(long, conflicts_with = "tail")]
        folded: bool,
    },
    /// List the files that were kept of a run
    Artifacts {
        run: u64,
        /// Write them below this folder, which must not be there yet
        #[arg(long, value_name = "FOLDER")]
        save: Option<PathBuf>,
    },
    /// Test the commit of a run again
    Rerun {
        run: u64,
        /// Only the files that failed
        #[arg(long)]
        failed: bool,
    },
    /// Do again what one node of a run did, and show its output
    Repro {
        run: u64,
        #[arg(long, value_name = "N")]
        node: u16,
    },
    /// Tests that failed and then passed with nothing changed, over the runs that are kept
    Flaky {
        /// OWNER/NAME
        repository: String,
    },
    /// End a run
    Cancel { run: u64 },
}

#[derive(Subcommand)]
enum ReleaseOrder {
    /// Run the release phase of the newest deploy again, where that deploy failed
    Retry { app: AppName },
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// A sentence for the person, and the code to end with.
    #[error("{0}")]
    Said(String),
    /// Something was found that needs a person; it was printed already.
    #[error("")]
    Found,
    /// To end with this status, which says all: that of a program that was run for somebody, or `TAKEN_DOWN`.
    #[error("")]
    Exit(u8),
    /// Nobody reads what is printed any more, as with `| head`.
    #[error("")]
    OutputClosed,
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Failed::OutputClosed
        } else {
            Failed::Said(error.to_string())
        }
    }
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Node { setup: Some(setup), into: Some(into), slug_mb, toolchain, .. } = &cli.command {
        return set_up(setup, into, *slug_mb, toolchain);
    }
    if let Command::Node { socket, script, token, mask, .. } = &cli.command {
        return match (script, token) {
            (Some(script), Some(token)) => crate::node::run_with_queue(socket, script, token, mask),
            (Some(script), None) => crate::node::run_plainly(socket, script, mask),
            _ => crate::node::run(socket, mask),
        };
    }
    let result = match cli.command {
        Command::Dyno { spec } => crate::platform::dyno::main(&spec),
        Command::Serve => with_config(&cli.config, |config| crate::server::serve(config, &cli.config)),
        Command::Router { replace: false } => with_config(&cli.config, |config| crate::server::router(&config)),
        Command::Router { replace: true } => replace_router(&cli.config),
        Command::Demo(demo) => {
            let options = crate::demo::Options { once: demo.once, data_dir: demo.data_dir };
            crate::demo::run(options).map_err(|error| Failed::Said(format!("{error:#}")))
        }
        Command::Sim(sim) => run_sim(sim),
        command => ask(&cli.config, cli.json, command),
    };
    match result {
        Ok(()) | Err(Failed::OutputClosed) => ExitCode::SUCCESS,
        Err(Failed::Found) => ExitCode::FAILURE,
        Err(Failed::Exit(code)) => ExitCode::from(code),
        Err(Failed::Said(sentence)) => {
            eprintln!("landfall: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// The default file may be missing; one that was named may not.
fn load(path: &Path) -> Result<Config, Failed> {
    let required = path != Path::new("landfall.toml");
    Config::load(path, required).map_err(|error| Failed::Said(error.to_string()))
}

/// What is run says whether it was taken down.
fn with_config(path: &Path, run: impl FnOnce(Config) -> anyhow::Result<bool>) -> Result<(), Failed> {
    let down = run(load(path)?).map_err(|error| Failed::Said(format!("{error:#}")))?;
    if down { Err(Failed::Exit(TAKEN_DOWN)) } else { Ok(()) }
}

fn replace_router(config_file: &Path) -> Result<(), Failed> {
    let config = load(config_file)?;
    let (address, replaced) =
        crate::server::replace_router(&config, config_file).map_err(|error| Failed::Said(format!("{error:#}")))?;
    let say = if replaced { "router_replaced" } else { "router_started" };
    println!("{}", Texts::load().line("cli.txt", json!({ "say": say, "address": address.to_string() })));
    Ok(())
}

fn run_sim(sim: Sim) -> Result<(), Failed> {
    let texts = Texts::load();
    let app_public_key_pem = if sim.app_public_key.contains("-----BEGIN") {
        // A shell makes it easier to write `\n` than a line break.
        sim.app_public_key.replace("\\n", "\n")
    } else {
        std::fs::read_to_string(&sim.app_public_key).map_err(|error| {
            Failed::Said(texts.line("cli.txt", json!({ "say": "bad_key", "detail": error.to_string() })))
        })?
    };
    let mut users = Vec::new();
    for user in sim.user {
        let Some((name, token)) = user.split_once(':').filter(|(name, token)| !name.is_empty() && !token.is_empty())
        else {
            return Err(Failed::Said(texts.line("cli.txt", json!({ "say": "bad_user" }))));
        };
        users.push((name.to_owned(), token.to_owned()));
    }
    let options = crate::sim::Options {
        listen: sim.listen,
        data: sim.data,
        public_url: sim.public_url,
        webhook_url: sim.webhook_url,
        webhook_secret: sim.webhook_secret,
        app_id: sim.app_id,
        app_public_key_pem,
        users,
    };
    crate::server::start_logging();
    crate::github::install_crypto_provider();
    let run = async {
        let running = crate::sim::Sim::start(options).await?;
        println!("GitHub's stand-in answers at {}", running.url());
        crate::server::terminated().await;
        running.stop().await;
        Ok(())
    };
    let result: anyhow::Result<()> = crate::server::runtime().and_then(|runtime| runtime.block_on(run));
    result.map_err(|error| Failed::Said(format!("{error:#}")))
}

/// The commands that ask the control plane.
fn ask(config_file: &Path, json: bool, command: Command) -> Result<(), Failed> {
    let config = load(config_file)?;
    crate::github::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(&config, json)?;
    runtime.block_on(async {
        match command {
            Command::Apps => show::apps(&client).await,
            Command::Ps { app } => show::processes(&client, app.as_ref()).await,
            Command::Restart { app, process } => show::restart(&client, &app, process.as_deref()).await,
            Command::Scale { app, formation } => orders::scale(&client, &app, &formation).await,
            Command::Config(command) => orders::config(&client, &command).await,
            Command::Run(run) => orders::run(&client, &run).await,
            Command::Metrics { app, range } => monitor::metrics(&client, &app, &range).await,
            Command::Alerts => monitor::alerts(&client).await,
            Command::Access(order) => monitor::access(&client, &order).await,
            Command::Drains(order) => monitor::drains(&client, &order).await,
            Command::Logs(Logs { app, tail, lines }) => show::logs(&client, &app, tail, usize::from(lines)).await,
            Command::Releases { order: Some(ReleaseOrder::Retry { app }), .. } => orders::retry(&client, &app).await,
            Command::Releases { app: Some(app), order: None } => show::releases(&client, &app).await,
            Command::Releases { app: None, order: None } => Ok(()),
            Command::Rollback { app, release } => show::roll_back(&client, &app, release).await,
            Command::Maintenance { turn, app } => orders::maintenance(&client, &app, turn == "on").await,
            Command::Destroy { app, confirm } => orders::destroy(&client, &app, confirm.as_deref()).await,
            Command::Promote { hotfix, to, pipeline } => {
                show::promote(&client, pipeline.as_deref(), hotfix.as_deref(), to.as_deref()).await
            }
            Command::Ci(Ci::List { repository }) => show::runs(&client, repository.as_deref()).await,
            Command::Ci(Ci::Show { run, node: None }) => show::run(&client, run).await,
            Command::Ci(Ci::Show { run, node: Some(node) }) => show::node_log(&client, run, node).await,
            Command::Ci(Ci::Logs { run, node, tail, folded }) => {
                test_runs::logs(&client, run, node, tail, folded).await
            }
            Command::Ci(Ci::Artifacts { run, save: None }) => test_runs::artifacts(&client, run).await,
            Command::Ci(Ci::Artifacts { run, save: Some(folder) }) => test_runs::save(&client, run, &folder).await,
            Command::Ci(Ci::Rerun { run, failed }) => show::rerun(&client, run, failed).await,
            Command::Ci(Ci::Repro { run, node }) => show::repro(&client, run, node).await,
            Command::Ci(Ci::Flaky { repository }) => show::flaky(&client, &repository).await,
            Command::Ci(Ci::Cancel { run }) => show::cancel(&client, run).await,
            Command::Pipelines { what: None } => show::pipelines(&client).await,
            Command::Pipelines { what: Some(Pipelines::Diff { pipeline }) } => {
                audit::diff(&client, pipeline.as_deref()).await
            }
            Command::Pipelines { what: Some(Pipelines::Order { pipeline, command, pull }) } => {
                audit::order(&client, &pipeline, &command, pull).await
            }
            Command::Pipelines { what: Some(Pipelines::Rules { pipeline, set }) } => {
                audit::rules(&client, &pipeline, set.as_deref()).await
            }
            Command::Audit { repository, lines } => audit::audit(&client, repository.as_deref(), lines).await,
            Command::Deliveries { id: None, lines, only } => show::deliveries(&client, lines, &only).await,
            Command::Deliveries { id: Some(id), .. } => show::delivery(&client, &id).await,
            Command::Replay { id } => show::replay(&client, id.as_deref()).await,
            Command::Export { file } => machine::export(&client, &config, &file).await,
            Command::Import { file } => machine::import(&client, &config, &file),
            Command::Doctor => machine::doctor(&client, &config).await,
            Command::Down => machine::down(&client, &config).await,
            Command::Serve | Command::Router { .. } | Command::Demo(_) | Command::Sim(_) => Ok(()),
            Command::Dyno { .. } | Command::Node { .. } => Ok(()),
        }
    })
}

/// Inside a sandbox: `scripts.test-setup`, and what it made as a slug.
fn set_up(script: &str, into: &Path, slug_mb: u64, toolchains: &[PathBuf]) -> ExitCode {
    if let Err(status) = crate::node::run_setup(script) {
        return ExitCode::from(status);
    }
    let limits = ArchiveLimits { archive_bytes: slug_mb * 1_000_000, ..ArchiveLimits::default() };
    match crate::slug::pack_with_toolchains(Path::new("."), into, toolchains, limits) {
        Ok(packed) if packed.left_out.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(SETUP_NOT_A_SLUG),
        Err(error) => {
            eprintln!("landfall: {error}");
            ExitCode::from(SETUP_NOT_A_SLUG)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn systemd_starts_nothing_again_that_was_taken_down() {
        for unit in
            [include_str!("../../packaging/landfall.service"), include_str!("../../packaging/landfall-router.service")]
        {
            for key in ["RestartPreventExitStatus", "SuccessExitStatus"] {
                assert!(unit.lines().any(|line| line == format!("{key}={TAKEN_DOWN}")), "{key} of {unit}");
            }
        }
    }

    #[test]
    fn the_designed_lines_are_understood() {
        for line in [
            "landfall serve",
            "landfall --config x.toml serve",
            "landfall router --config x.toml",
            "landfall router --replace",
            "landfall demo --once",
            "landfall sim --listen 127.0.0.1:0 --data d --webhook-url http://x/ --webhook-secret s --app-id 1 \
             --app-public-key -----BEGIN\\nPUBLIC --user olivia:token --user oscar:other",
            "landfall apps --json",
            "landfall ps",
            "landfall ps hello-staging",
            "landfall restart hello-staging",
            "landfall logs hello-staging -t -n 5",
            "landfall restart hello-staging web.1",
            "landfall scale hello-staging",
            "landfall scale hello-staging web=3:standard-2x worker=1",
            "landfall config list hello-staging --reveal",
            "landfall config list --repository acme/hello --stage review",
            "landfall config get hello-staging TOKEN",
            "landfall config set hello-staging TOKEN=x OTHER=y",
            "landfall config set --repository acme/hello --stage review --from staging TOKEN",
            "landfall config unset hello-staging TOKEN",
            "landfall config rotate-key",
            "landfall run hello-staging -- rake db:migrate --trace",
            "landfall run hello-staging --time-limit 5 ls -l",
            "landfall metrics hello-staging --range 7d",
            "landfall alerts",
            "landfall access hello-pr-1",
            "landfall access hello-pr-1 --mode password --rotate",
            "landfall access --repository acme/hello --mode github",
            "landfall drains list",
            "landfall drains add syslog+tls://logs.example.com:6514 --app hello-staging",
            "landfall drains remove d.1",
            "landfall releases retry hello-staging",
            "landfall releases hello-staging",
            "landfall rollback hello-staging v3",
            "landfall promote acme/hello",
            "landfall ci list",
            "landfall ci show 3 --node 1",
            "landfall ci logs 3 --node 1 -t",
            "landfall ci logs 3 --folded",
            "landfall ci artifacts 3 --save out",
            "landfall ci rerun 3",
            "landfall ci rerun 3 --failed",
            "landfall ci cancel 3",
            "landfall ci repro 3 --node 1",
            "landfall pipelines",
            "landfall pipelines diff acme/hello",
            "landfall pipelines order acme/hello /deploy --pull 3",
            "landfall pipelines rules acme/hello --set -",
            "landfall promote acme/hello --to shop-eu",
            "landfall audit --repository acme/hello -n 5",
            "landfall maintenance on hello-production",
            "landfall destroy hello-staging --confirm hello-staging",
            "landfall promote acme/hello --hotfix down",
            "landfall deliveries",
            "landfall replay",
            "landfall export out.jsonl",
            "landfall import -",
            "landfall doctor",
            "landfall down",
            "landfall dyno --spec f",
            "landfall node --socket s --mask A,B",
            "landfall node --socket s --script true",
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|error| error.to_string()).unwrap_or_default());
        }
        for line in [
            "landfall audit -n 1001",
            "landfall releases",
            "landfall config set --stage review A=1",
            "landfall run hello",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
        for line in ["landfall", "landfall apps x", "landfall ps ../x", "landfall rollback a b", "landfall logs"] {
            let error = Cli::try_parse_from(line.split_whitespace()).err().expect(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
