//! Pages for people.

use super::monitor_api::MetricsQuery;
use super::problem::Problem;
use super::views;
use super::{Shared, ansi, asset, logs, read};
use crate::domain::PHASE;
use actix_web::HttpResponse;
use actix_web::web::{self, Data, Path, Query};
use serde::{Deserialize, Serialize};

/// Lines of a log that a page holds when it is opened; the script brings what follows.
const OPENED_WITH: usize = 300;
const OPENED_WITH_WHOLE: usize = 2_000;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/", web::get().to(home))
        .route("/pipelines/{owner}/{name}", web::get().to(pipeline))
        .route("/pipelines/{owner}/{name}/flaky", web::get().to(flaky))
        .route("/apps/{name}", web::get().to(app))
        .route("/runs/{number}", web::get().to(run))
        .route("/runs/{number}/nodes/{node}", web::get().to(node))
        .route("/builds/{key}", web::get().to(build))
        .route("/apps/{name}/metrics", web::get().to(metrics))
        .route("/alerts", web::get().to(alerts))
        .route("/audit", web::get().to(audit))
        .route("/deliveries", web::get().to(deliveries))
        .route("/deliveries/{id}", web::get().to(delivery))
        .route("/assets/style.css", web::get().to(style))
        .route("/assets/live.js", web::get().to(script));
}

async fn metrics(shared: Data<Shared>, path: Path<String>, query: Query<MetricsQuery>) -> HttpResponse {
    let read = async {
        let app = views::find_app(&shared.world, &path)?;
        views::metrics_page(&shared.world, &app, query.resolution()?).await
    };
    shared.page("metrics.html", read.await)
}

async fn alerts(shared: Data<Shared>) -> HttpResponse {
    let settings = &shared.world.config.alerts;
    let is_told = settings.webhook.is_some() || !settings.webhooks.is_empty();
    let alerts = views::alerts(&shared.world);
    shared.page("alerts.html", alerts.map(|alerts| serde_json::json!({ "alerts": alerts, "is_told": is_told })))
}

async fn audit(shared: Data<Shared>) -> HttpResponse {
    let lines = read(&shared, |world| views::audit(world, None, views::AUDITED)).await;
    shared.page("audit.html", lines.map(|lines| serde_json::json!({ "lines": lines })))
}

async fn style(shared: Data<Shared>) -> HttpResponse {
    asset("text/css; charset=utf-8", shared.style.clone())
}

async fn script() -> HttpResponse {
    asset("text/javascript; charset=utf-8", include_str!("../../templates/live.js").to_owned())
}

async fn home(shared: Data<Shared>) -> HttpResponse {
    shared.page("home.html", read(&shared, views::home).await)
}

async fn pipeline(shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let (owner, name) = path.into_inner();
    let view = read(&shared, move |world| {
        views::find_repository(world, &owner, &name).and_then(|found| views::pipeline_detail(world, &found))
    });
    shared.page("pipeline.html", view.await)
}

async fn flaky(shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let (owner, name) = path.into_inner();
    let view = views::find_repository(&shared.world, &owner, &name)
        .and_then(|repository| views::flaky(&shared.world, &repository));
    shared.page("flaky.html", view)
}

/// A log as a page holds it: lines with their styles, and where the script goes on.
#[derive(Debug, Serialize)]
pub struct LogView {
    pub lines: Vec<LogLineView>,
    /// The same by phases, for a page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    pub next: String,
    pub ended: bool,
    pub dropped: u64,
    /// Where the script asks for what follows.
    pub source: String,
}

#[derive(Debug, Serialize)]
pub struct LogLineView {
    pub at: String,
    pub process: String,
    pub stream: crate::platform::LogStream,
    pub spans: Vec<ansi::Span>,
    /// It begins a phase.
    pub heading: bool,
}

/// Lines from one heading to the next; the first ones may have none.
#[derive(Debug, Serialize)]
pub struct Phase {
    pub heading: Option<LogLineView>,
    pub lines: Vec<LogLineView>,
}

impl LogView {
    pub fn new(page: logs::Page, source: String) -> LogView {
        let lines = page.lines.into_iter().map(|line| LogLineView {
            at: line.at,
            process: line.process,
            stream: line.stream,
            heading: line.text.starts_with(PHASE),
            spans: ansi::spans(line.text.strip_prefix(PHASE).unwrap_or(&line.text)),
        });
        LogView {
            lines: lines.collect(),
            phases: Vec::new(),
            next: page.next,
            ended: page.ended,
            dropped: page.dropped,
            source,
        }
    }

    /// With its lines by phases, which a page folds.
    fn folded(mut self) -> LogView {
        for line in std::mem::take(&mut self.lines) {
            match self.phases.last_mut() {
                _ if line.heading => self.phases.push(Phase { heading: Some(line), lines: Vec::new() }),
                Some(phase) => phase.lines.push(line),
                None => self.phases.push(Phase { heading: None, lines: vec![line] }),
            }
        }
        self
    }
}

#[derive(Serialize)]
struct WithLog<V> {
    #[serde(flatten)]
    view: V,
    log: LogView,
}

async fn app(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    shared.page("app.html", app_view(&shared, &path).await)
}

async fn app_view(shared: &Shared, name: &str) -> Result<impl Serialize + use<>, Problem> {
    let world = &shared.world;
    let app = views::find_app(world, name)?;
    let log = logs::of_app(world, &app.name, None, OPENED_WITH).await?;
    let log = LogView::new(log, format!("/api/v1/apps/{}/logs", app.name)).folded();
    Ok(WithLog { view: views::app_detail(world, &app).await?, log })
}

async fn run(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = match views::find_run(&shared.world, &path) {
        Ok(run) => views::run_detail(&shared.world, &run).await,
        Err(problem) => Err(problem),
    };
    shared.page("run.html", view)
}

/// What a page that is nothing but a log says above it.
#[derive(Serialize)]
struct LogPage<V> {
    /// `node` or `build`.
    kind: &'static str,
    about: V,
    log: LogView,
}

async fn node(shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let (number, node) = path.into_inner();
    shared.page("log.html", node_view(&shared, &number, &node).await)
}

async fn node_view(shared: &Shared, number: &str, node: &str) -> Result<impl Serialize + use<>, Problem> {
    let world = &shared.world;
    let run = views::find_run(world, number)?;
    let (index, process) = views::node_process(world, &run, node).await?;
    let log = logs::of_process(world, &process, None, OPENED_WITH_WHOLE).await?;
    let log = LogView::new(log, format!("/api/v1/runs/{}/nodes/{index}/logs", run.number)).folded();
    let run = views::run_detail(world, &run).await?;
    Ok(LogPage { kind: "node", about: serde_json::json!({ "run": run, "node": index }), log })
}

async fn build(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    shared.page("log.html", build_view(&shared, &path).await)
}

async fn build_view(shared: &Shared, key: &str) -> Result<impl Serialize + use<>, Problem> {
    let world = &shared.world;
    let build = views::find_build(world, key)?;
    let log = logs::of_process(world, &build.log_process(), None, OPENED_WITH_WHOLE).await?;
    let log = LogView::new(log, format!("/api/v1/builds/{}/logs", build.key.0)).folded();
    Ok(LogPage { kind: "build", about: views::build_detail(world, &build)?, log })
}

#[derive(Debug, Default, Deserialize)]
struct DeliveryQuery {
    after: Option<String>,
    #[serde(default)]
    only: views::Only,
}

async fn deliveries(shared: Data<Shared>, query: Query<DeliveryQuery>) -> HttpResponse {
    shared.page("deliveries.html", views::deliveries(&shared.world, query.after.as_deref(), views::PAGE, query.only))
}

async fn delivery(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    shared.page("delivery.html", views::delivery_detail(&shared.world, &path))
}
