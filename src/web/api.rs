//! `/api/v1`: what pages show as JSON, and the orders that a person may give. `templates/openapi.json` describes it.
//!
//! An order comes as JSON, answered with JSON, or as a form of one of our pages, answered with a redirect to the page
//! that shows what came of it.

use super::pages::LogView;
use super::problem::Problem;
use super::{Shared, asset, logs, read, views};
use crate::domain::{InvalidId, Refusal, ReleaseNumber};
use crate::reconcile::{World, command, processes as app_processes};
use actix_web::http::{StatusCode, header};
use actix_web::web::{self, Bytes, Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Who gives orders here, as long as there is no login.
pub(super) const OPERATOR: &str = "operator";
/// Deliveries that one answer holds at most.
const MOST_DELIVERIES: usize = 200;
const MOST_RUNS: usize = 100;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/api/openapi.json", web::get().to(description))
        .route("/api/v1/apps", web::get().to(apps))
        .route("/api/v1/apps/{name}", web::get().to(app))
        .route("/api/v1/apps/{name}/processes", web::get().to(processes))
        .route("/api/v1/apps/{name}/releases", web::get().to(releases))
        .route("/api/v1/apps/{name}/logs", web::get().to(app_logs))
        .route("/api/v1/apps/{name}/rollback", web::post().to(roll_back))
        .route("/api/v1/apps/{name}/restart", web::post().to(restart))
        .route("/api/v1/pipelines", web::get().to(pipelines))
        .route("/api/v1/pipelines/{owner}/{name}", web::get().to(pipeline))
        .route("/api/v1/pipelines/{owner}/{name}/promote", web::post().to(promote))
        .route("/api/v1/pipelines/{owner}/{name}/diff", web::get().to(diff))
        .route("/api/v1/pipelines/{owner}/{name}/flaky", web::get().to(flaky))
        .service(super::pipeline_api::scope())
        .route("/api/v1/audit", web::get().to(audit))
        .route("/api/v1/runs", web::get().to(runs))
        .route("/api/v1/runs/{number}", web::get().to(run))
        .route("/api/v1/runs/{number}/nodes/{node}/logs", web::get().to(node_logs))
        .route("/api/v1/runs/{number}/artifacts", web::get().to(artifacts))
        .route("/api/v1/runs/{number}/artifacts/{node}/{id}", web::get().to(artifact))
        .route("/api/v1/runs/{number}/nodes/{node}/repro", web::post().to(repeat))
        .route("/api/v1/runs/{number}/rerun", web::post().to(rerun))
        .route("/api/v1/runs/{number}/cancel", web::post().to(cancel))
        .route("/api/v1/builds/{key}", web::get().to(build))
        .route("/api/v1/builds/{key}/logs", web::get().to(build_logs))
        .route("/api/v1/deliveries", web::get().to(deliveries))
        .route("/api/v1/deliveries/replay", web::post().to(replay_all))
        .route("/api/v1/deliveries/{id}", web::get().to(delivery))
        .route("/api/v1/deliveries/{id}/replay", web::post().to(replay))
        .route("/api/v1/doctor", web::get().to(doctor))
        .route("/api/v1/export", web::get().to(export))
        .route("/api/v1/shutdown", web::post().to(shutdown));
}

async fn description() -> HttpResponse {
    asset("application/json", include_str!("../../templates/openapi.json").to_owned())
}

async fn apps(shared: Data<Shared>) -> HttpResponse {
    shared.json(all_apps(&shared))
}

fn all_apps(shared: &Shared) -> Result<Value, Problem> {
    let mut cards = Vec::new();
    for app in shared.world.store.apps()? {
        let repository = shared.world.store.repository(app.repository)?;
        cards.push(views::card(&shared.world, &app, repository.as_ref())?);
    }
    Ok(json!({ "apps": cards }))
}

async fn app(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = match views::find_app(&shared.world, &path) {
        Ok(app) => views::app_detail(&shared.world, &app).await,
        Err(problem) => Err(problem),
    };
    shared.json(view)
}

async fn processes(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = match views::find_app(&shared.world, &path) {
        Ok(app) => views::processes(&shared.world, &app).await,
        Err(problem) => Err(problem),
    };
    shared.json(view.map(|processes| json!({ "processes": processes })))
}

async fn releases(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = views::find_app(&shared.world, &path)
        .and_then(|app| Ok(json!({ "releases": views::releases(&shared.world, &app, usize::MAX)? })));
    shared.json(view)
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    /// A cursor; `start` is before the first line that is kept. The last lines without it.
    after: Option<String>,
    lines: Option<usize>,
    /// `spans`: each line comes with its styles, for the script of the pages.
    form: Option<String>,
}

impl LogQuery {
    fn most(&self) -> usize {
        self.lines.unwrap_or(100).clamp(1, logs::MOST)
    }

    fn cursor(&self) -> Result<Option<logs::Cursor>, Problem> {
        let after = self.after.as_deref().filter(|after| !after.is_empty());
        if after == Some("start") {
            return Ok(Some(logs::Cursor::default()));
        }
        after
            .map(logs::Cursor::read)
            .transpose()
            .map_err(|error| Problem::Malformed { what: "after", detail: error.to_string() })
    }

    fn answer(&self, page: logs::Page) -> Result<Value, Problem> {
        let shown = |error: serde_json::Error| Problem::Internal { detail: error.to_string() };
        if self.form.as_deref() == Some("spans") {
            return serde_json::to_value(LogView::new(page, String::new())).map_err(shown);
        }
        serde_json::to_value(page).map_err(shown)
    }
}

async fn app_logs(shared: Data<Shared>, path: Path<String>, query: Query<LogQuery>) -> HttpResponse {
    let read = async {
        let app = views::find_app(&shared.world, &path)?;
        query.answer(logs::of_app(&shared.world, &app.name, query.cursor()?, query.most()).await?)
    };
    shared.json(read.await)
}

async fn node_logs(shared: Data<Shared>, path: Path<(String, String)>, query: Query<LogQuery>) -> HttpResponse {
    let read = async {
        let run = views::find_run(&shared.world, &path.0)?;
        let (_, process) = views::node_process(&shared.world, &run, &path.1).await?;
        let mut page = logs::of_process(&shared.world, &process, query.cursor()?, query.most()).await?;
        page.ended &= run.verdict.is_some() || !page.lines.is_empty();
        query.answer(page)
    };
    shared.json(read.await)
}

async fn artifacts(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = views::find_run(&shared.world, &path).and_then(|run| views::artifacts(&shared.world, &run));
    shared.json(view.map(|artifacts| json!({ "artifacts": artifacts })))
}

/// The bytes of a kept file. They are the code under test's, so no browser shows them: they are saved, as nothing in
/// particular.
async fn artifact(shared: Data<Shared>, path: Path<(String, String, String)>) -> HttpResponse {
    let (number, node, id) = path.into_inner();
    let opened = async {
        let (artifact, path) = views::find_artifact(&shared.world, &number, &node, &id)?;
        let gone = |_| Problem::not_found("artifact", &artifact.path);
        let file = tokio::fs::File::open(&path).await.map_err(gone)?;
        Ok::<_, Problem>((file, views::download_name(&artifact.path)))
    };
    match opened.await {
        Ok((file, name)) => HttpResponse::Ok()
            .content_type("application/octet-stream")
            .insert_header((header::CONTENT_DISPOSITION, name))
            .streaming(in_pieces(file)),
        Err(problem) => shared.problem_json(&problem),
    }
}

fn in_pieces(file: tokio::fs::File) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::unfold(file, |mut file| async move {
        use tokio::io::AsyncReadExt;
        let mut piece = Vec::with_capacity(64 * 1024);
        match (&mut file).take(64 * 1024).read_to_end(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(piece)), file)),
            Err(error) => Some((Err(error), file)),
        }
    })
}

async fn build(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = views::find_build(&shared.world, &path).and_then(|build| views::build_detail(&shared.world, &build));
    shared.json(view)
}

async fn build_logs(shared: Data<Shared>, path: Path<String>, query: Query<LogQuery>) -> HttpResponse {
    let read = async {
        let build = views::find_build(&shared.world, &path)?;
        query.answer(logs::of_process(&shared.world, &build.log_process(), query.cursor()?, query.most()).await?)
    };
    shared.json(read.await)
}

async fn pipelines(shared: Data<Shared>) -> HttpResponse {
    shared.json(read(&shared, views::home).await.map(|home| json!({ "pipelines": home.pipelines })))
}

async fn pipeline(shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let (owner, name) = path.into_inner();
    let view = read(&shared, move |world| {
        views::find_repository(world, &owner, &name).and_then(|found| views::pipeline_detail(world, &found))
    });
    shared.json(view.await)
}

#[derive(Debug, Deserialize)]
struct DiffQuery {
    /// An app of production.
    app: Option<String>,
}

/// The first app of production, and the others beside it.
async fn diff(shared: Data<Shared>, path: Path<(String, String)>, query: Query<DiffQuery>) -> HttpResponse {
    let view = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let only = query.app.as_deref();
        let mut all = views::waiting(&shared.world, &repository, only).await?.into_iter();
        let first = all.next().ok_or_else(|| Problem::not_found("app", only.unwrap_or_default()))?;
        let mut view = serde_json::to_value(first).map_err(|error| Problem::Internal { detail: error.to_string() })?;
        view["further"] = json!(all.collect::<Vec<_>>());
        Ok(view)
    };
    shared.json(view.await)
}

#[derive(Debug, Deserialize)]
struct AuditQuery {
    repository: Option<String>,
    limit: Option<usize>,
}

async fn audit(shared: Data<Shared>, query: Query<AuditQuery>) -> HttpResponse {
    let query = query.into_inner();
    shared.json(read(&shared, move |world| audited(world, &query)).await)
}

fn audited(world: &World, query: &AuditQuery) -> Result<Value, Problem> {
    let only = match query.repository.as_deref() {
        Some(named) => {
            let (owner, name) = named.split_once('/').ok_or_else(|| Problem::not_found("pipeline", named))?;
            Some(views::find_repository(world, owner, name)?.id)
        }
        None => None,
    };
    let most = query.limit.unwrap_or(views::AUDITED).clamp(1, 1000);
    Ok(json!({ "entries": views::audit(world, only, most)? }))
}

#[derive(Debug, Deserialize)]
struct RunQuery {
    repository: Option<String>,
    limit: Option<usize>,
}

async fn runs(shared: Data<Shared>, query: Query<RunQuery>) -> HttpResponse {
    shared.json(all_runs(&shared, &query))
}

fn all_runs(shared: &Shared, query: &RunQuery) -> Result<Value, Problem> {
    let world = &shared.world;
    let repositories = match query.repository.as_deref() {
        Some(named) => {
            let (owner, name) = named.split_once('/').ok_or_else(|| Problem::not_found("pipeline", named))?;
            vec![views::find_repository(world, owner, name)?]
        }
        None => world.store.repositories()?,
    };
    let most = query.limit.unwrap_or(30).clamp(1, MOST_RUNS);
    let mut runs = Vec::new();
    for repository in repositories {
        runs.extend(views::recent_runs(world, repository.id, most)?);
    }
    runs.sort_by_key(|run| std::cmp::Reverse(run.number));
    runs.truncate(most);
    Ok(json!({ "runs": runs }))
}

async fn flaky(shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let view = views::find_repository(&shared.world, &path.0, &path.1)
        .and_then(|repository| views::flaky(&shared.world, &repository));
    shared.json(view)
}

async fn run(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = match views::find_run(&shared.world, &path) {
        Ok(run) => views::run_detail(&shared.world, &run).await,
        Err(problem) => Err(problem),
    };
    shared.json(view)
}

#[derive(Debug, Deserialize)]
struct DeliveryQuery {
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    only: views::Only,
}

async fn deliveries(shared: Data<Shared>, query: Query<DeliveryQuery>) -> HttpResponse {
    let most = query.limit.unwrap_or(views::PAGE).clamp(1, MOST_DELIVERIES);
    shared.json(views::deliveries(&shared.world, query.after.as_deref(), most, query.only))
}

async fn delivery(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    shared.json(views::delivery_detail(&shared.world, &path))
}

async fn doctor(shared: Data<Shared>) -> HttpResponse {
    shared.json(Ok(views::doctor(&shared.world).await))
}

/// What came of an order, and the page that shows it.
pub(super) struct Done {
    status: StatusCode,
    answer: Value,
    page: String,
}

impl Done {
    pub(super) fn new(answer: impl Serialize, page: String) -> Result<Done, Problem> {
        let answer = serde_json::to_value(answer).map_err(|error| Problem::Internal { detail: error.to_string() })?;
        Ok(Done { status: StatusCode::OK, answer, page })
    }
}

impl Shared {
    pub(super) fn done(&self, request: &HttpRequest, done: Result<Done, Problem>) -> HttpResponse {
        match (done, is_form(request)) {
            (Ok(done), true) => HttpResponse::SeeOther().insert_header((header::LOCATION, done.page)).finish(),
            (Ok(done), false) => HttpResponse::build(done.status).json(done.answer),
            (Err(problem), true) => self.problem_page(&problem),
            (Err(problem), false) => self.problem_json(&problem),
        }
    }
}

fn is_form(request: &HttpRequest) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type
        .is_some_and(|text| text.trim_start().to_ascii_lowercase().starts_with("application/x-www-form-urlencoded"))
}

/// The order's body as one JSON object, whichever way it came.
pub(super) fn body(request: &HttpRequest, bytes: &Bytes) -> Result<Value, Problem> {
    let malformed = |detail: String| Problem::Malformed { what: "body", detail };
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    if is_form(request) {
        let text = std::str::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
        let fields = Query::<std::collections::BTreeMap<String, String>>::from_query(text)
            .map_err(|error| malformed(error.to_string()))?;
        return Ok(json!(fields.into_inner()));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(malformed("expected an object".to_owned())) }
}

pub(super) fn refused(reason: Refusal) -> Problem {
    Problem::Refused { reason }
}

/// A release as people write it (`v3`) or as a number, if the field is there.
fn named_release(asked: &Value, field: &'static str) -> Result<Option<ReleaseNumber>, Problem> {
    let malformed = |detail: String| Problem::Malformed { what: field, detail };
    match asked.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|error: InvalidId| malformed(error.to_string())),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(|number| Some(ReleaseNumber(number))).ok_or_else(|| malformed(format!("{value} is no release")))
        }
    }
}

async fn roll_back(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let to = named_release(&body(&request, &bytes)?, "to")?;
        let ordered = command::roll_back(&shared.world, &app, to, OPERATOR).await?.map_err(refused)?;
        let answer = json!({ "app": ordered.app, "deploy": ordered.deploy, "notes": ordered.notes });
        Done::new(answer, format!("/apps/{}", app.name))
    };
    shared.done(&request, order.await)
}

async fn restart(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let asked = body(&request, &bytes)?;
        let only = asked.get("process").and_then(Value::as_str).filter(|only| !only.is_empty());
        let stopped = app_processes::restart(&shared.world, &app.name, only, OPERATOR).await?;
        Done::new(json!({ "app": app.name, "restarted": stopped }), format!("/apps/{}", app.name))
    };
    shared.done(&request, order.await)
}

async fn promote(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<(String, String)>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let body = body(&request, &bytes)?;
        let hotfix = body.get("hotfix").and_then(Value::as_str).filter(|reason| !reason.trim().is_empty());
        let named = body.get("app").and_then(Value::as_str).filter(|app| !app.is_empty());
        let to = views::production_part(&shared.world, &repository, named)?;
        let release = named_release(&body, "release")?;
        let wish = crate::workflow::PromotionWish { to, release, hotfix, canary: None };
        let ordered = command::promote(&shared.world, &repository, &wish, OPERATOR).await?.map_err(refused)?;
        let page = format!("/apps/{}", ordered.app);
        Done::new(json!({ "app": ordered.app, "deploy": ordered.deploy, "notes": ordered.notes }), page)
    };
    shared.done(&request, order.await)
}

async fn rerun(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let run = views::find_run(&shared.world, &path)?;
        let failed = match body(&request, &bytes)?.get("failed") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(failed)) => *failed,
            Some(Value::String(text)) => text == "true",
            Some(other) => return Err(Problem::Malformed { what: "failed", detail: format!("{other} is no truth") }),
        };
        let number = command::rerun(&shared.world, &run, OPERATOR, failed).await?.map_err(refused)?;
        Done::new(json!({ "run": number }), format!("/runs/{number}"))
    };
    shared.done(&request, order.await)
}

async fn repeat(request: HttpRequest, shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let order = async {
        let run = views::find_run(&shared.world, &path.0)?;
        let (node, _) = views::node_process(&shared.world, &run, &path.1).await?;
        let number = command::repeat(&shared.world, &run, node, OPERATOR).await?;
        let number = number.ok_or_else(|| refused(Refusal::NothingToTest))?;
        Done::new(json!({ "run": number }), format!("/runs/{number}"))
    };
    shared.done(&request, order.await)
}

async fn cancel(request: HttpRequest, shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let order = async {
        let run = views::find_run(&shared.world, &path)?;
        if !command::cancel(&shared.world, run.number, OPERATOR).await? {
            return Err(Problem::Over { what: "run", name: run.number.to_string() });
        }
        Done::new(json!({ "run": run.number }), format!("/runs/{}", run.number))
    };
    shared.done(&request, order.await)
}

async fn replay(request: HttpRequest, shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let order = async {
        let record =
            shared.world.store.delivery(&path)?.ok_or_else(|| Problem::not_found("delivery", path.as_str()))?;
        let id = record.delivery.id;
        if !command::replay(&shared.world, &id).await? {
            return Err(Problem::Over { what: "delivery", name: id });
        }
        Done::new(json!({ "replayed": [id] }), format!("/deliveries/{id}"))
    };
    shared.done(&request, order.await)
}

async fn replay_all(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let order = async {
        let replayed = command::replay_parked(&shared.world).await?;
        Done::new(json!({ "replayed": replayed }), "/deliveries".to_owned())
    };
    shared.done(&request, order.await)
}

/// The whole store as JSON lines. It is written to a file first, so that a slow reader holds up nothing.
async fn export(shared: Data<Shared>) -> HttpResponse {
    match export_file(&shared).await {
        Ok(file) => HttpResponse::Ok().content_type("application/x-ndjson").streaming(in_pieces(file)),
        Err(problem) => shared.problem_json(&problem),
    }
}

/// The file has no name any more once it is open, so it goes with its reader.
async fn export_file(shared: &Shared) -> Result<tokio::fs::File, Problem> {
    let store = shared.world.store.clone();
    let path = shared.world.config.data_dir.join(format!(
        "export.{}.part",
        shared.world.vault.random_hex(8).map_err(|error| Problem::Internal { detail: error.to_string() },)?
    ));
    let written = tokio::task::spawn_blocking(move || {
        use std::io::{Seek, Write};
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let mut out = std::io::BufWriter::new(file);
        store.export(&mut out)?;
        out.flush()?;
        let mut file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok::<std::fs::File, Problem>(file)
    });
    let file = written.await.map_err(|error| Problem::Internal { detail: error.to_string() })??;
    Ok(tokio::fs::File::from_std(file))
}

async fn shutdown(request: HttpRequest, shared: Data<Shared>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let asked = body(&request, &bytes)?;
        if asked.get("apps") != Some(&Value::Bool(true)) {
            return Err(Problem::Malformed { what: "apps", detail: "must be true".to_owned() });
        }
        // Whoever read another configuration may have found us at its address.
        let own = std::path::absolute(&shared.world.config.data_dir)?.display().to_string();
        if asked.get("data_dir").is_some_and(|meant| *meant != own) {
            return Err(Problem::Malformed { what: "data_dir", detail: own });
        }
        // One that was asked before and not heard yet is as good as this one.
        let _ = shared.ask_down.try_send(());
        Ok(Done { status: StatusCode::ACCEPTED, answer: json!({ "down": true }), page: "/".to_owned() })
    };
    shared.done(&request, order.await)
}
