//! The part of the API by which a person changes one app, or its pipeline's config: config vars, formation, one-off
//! processes, another try. Values of config vars come in bodies only, and go out only to whoever asks to see them.

use super::api::{Done, OPERATOR, body, refused};
use super::problem::Problem;
use super::{Shared, logs, views};
use crate::domain::{AppName, ConfigEdit, ConfigScope, ConfigStage, Secret};
use crate::reconcile::{command, config, processes};
use crate::workflow::{ScaleOrder, parse_scale};
use actix_web::web::{self, Bytes, Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/api/v1/apps/{name}/config", web::get().to(app_config))
        .route("/api/v1/apps/{name}/config/change", web::post().to(change_app_config))
        .route("/api/v1/apps/{name}/formation", web::get().to(formation))
        .route("/api/v1/apps/{name}/scale", web::post().to(scale))
        .route("/api/v1/apps/{name}/retry", web::post().to(retry))
        .route("/api/v1/apps/{name}/destroy", web::post().to(destroy))
        .route("/api/v1/apps/{name}/maintenance", web::post().to(maintenance))
        .route("/api/v1/apps/{name}/run", web::post().to(run))
        .route("/api/v1/apps/{name}/one-offs/{number}", web::get().to(one_off))
        .route("/api/v1/apps/{name}/one-offs/{number}/stop", web::post().to(stop_one_off))
        .route("/api/v1/pipelines/{owner}/{name}/config/{stage}", web::get().to(stage_config))
        .route("/api/v1/pipelines/{owner}/{name}/config/{stage}/change", web::post().to(change_stage_config))
        .route("/api/v1/rotate-key", web::post().to(rotate_key));
}

fn not_done(error: impl std::fmt::Display) -> Problem {
    Problem::NotDone { detail: error.to_string() }
}

#[derive(Debug, Deserialize)]
struct ConfigQuery {
    #[serde(default)]
    reveal: bool,
}

async fn app_config(shared: Data<Shared>, path: Path<String>, query: Query<ConfigQuery>) -> HttpResponse {
    let view = views::find_app(&shared.world, &path)
        .and_then(|app| Ok(json!({ "vars": views::config_of_app(&shared.world, &app, query.reveal)? })));
    shared.json(view)
}

fn stage_of(text: &str) -> Result<ConfigStage, Problem> {
    text.parse().map_err(|_| Problem::not_found("stage", text))
}

async fn stage_config(
    shared: Data<Shared>,
    path: Path<(String, String, String)>,
    query: Query<ConfigQuery>,
) -> HttpResponse {
    let view = || {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let stage = stage_of(&path.2)?;
        Ok(json!({ "vars": views::config_of_stage(&shared.world, &repository, stage, query.reveal)? }))
    };
    shared.json(view())
}

/// `{"set": {NAME: value}, "take": {NAME: stage}, "unset": [NAME]}`; of a form `name` and `value`, or `unset`.
fn edit_of(asked: &Value) -> Result<ConfigEdit, Problem> {
    let malformed =
        |what: &'static str, expected: &str| Problem::Malformed { what, detail: format!("expected {expected}") };
    let mut edit = ConfigEdit::default();
    if let Some(set) = asked.get("set") {
        for (name, value) in set.as_object().ok_or_else(|| malformed("set", "an object"))? {
            let value = value.as_str().ok_or_else(|| malformed("set", "values that are strings"))?;
            edit.set.insert(name.clone(), Secret::new(value));
        }
    }
    if let Some(take) = asked.get("take") {
        for (name, stage) in take.as_object().ok_or_else(|| malformed("take", "an object"))? {
            let stage = stage.as_str().and_then(|stage| stage.parse().ok());
            edit.take.insert(name.clone(), stage.ok_or_else(|| malformed("take", "values that are stages"))?);
        }
    }
    match asked.get("unset") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) => edit.unset.push(name.clone()),
        Some(Value::Array(names)) => {
            for name in names {
                edit.unset.push(name.as_str().ok_or_else(|| malformed("unset", "names"))?.to_owned());
            }
        }
        Some(_) => return Err(malformed("unset", "a list of names")),
    }
    if let (Some(Value::String(name)), Some(Value::String(value))) = (asked.get("name"), asked.get("value")) {
        // A browser sends every line break of a text area as two characters.
        edit.set.insert(name.trim().to_owned(), Secret::new(value.replace("\r\n", "\n")));
    }
    Ok(edit)
}

async fn change_app_config(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<String>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let repository = shared
            .world
            .store
            .repository(app.repository)?
            .ok_or_else(|| Problem::not_found("pipeline", app.repository))?;
        let edit = edit_of(&body(&request, &bytes)?)?;
        let scope = ConfigScope::App(app.name.clone());
        let changed = config::change(&shared.world, &repository, &scope, &edit, OPERATOR).await?.map_err(not_done)?;
        Done::new(changed, format!("/apps/{}#config", app.name))
    };
    shared.done(&request, order.await)
}

async fn change_stage_config(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<(String, String, String)>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let scope = ConfigScope::Stage(repository.id, stage_of(&path.2)?);
        let edit = edit_of(&body(&request, &bytes)?)?;
        let changed = config::change(&shared.world, &repository, &scope, &edit, OPERATOR).await?.map_err(not_done)?;
        Done::new(changed, format!("/pipelines/{}/{}#config", repository.owner, repository.name))
    };
    shared.done(&request, order.await)
}

async fn rotate_key(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let order = async { Done::new(config::rotate(&shared.world, OPERATOR).await?, "/".to_owned()) };
    shared.done(&request, order.await)
}

async fn formation(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = views::find_app(&shared.world, &path)
        .and_then(|app| Ok(json!({ "formation": views::formation(&shared.world, &app)? })));
    shared.json(view)
}

async fn scale(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let asked = body(&request, &bytes)?;
        let words: Vec<&str> = match asked.get("scale") {
            Some(Value::String(text)) => text.split_whitespace().collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => return Err(Problem::Malformed { what: "scale", detail: "expected a list".to_owned() }),
        };
        let orders: BTreeMap<String, ScaleOrder> =
            words.into_iter().map(parse_scale).collect::<Result<_, _>>().map_err(not_done)?;
        processes::scale(&shared.world, &app.name, orders, OPERATOR).await?.map_err(not_done)?;
        let app = views::find_app(&shared.world, &path)?;
        let formation = views::formation(&shared.world, &app)?;
        Done::new(json!({ "app": app.name, "formation": formation }), format!("/apps/{}#processes", app.name))
    };
    shared.done(&request, order.await)
}

async fn retry(request: HttpRequest, shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let ordered = command::retry_release(&shared.world, &app, OPERATOR).await?.map_err(refused)?;
        Done::new(json!({ "app": ordered.app, "deploy": ordered.deploy }), format!("/apps/{}", app.name))
    };
    shared.done(&request, order.await)
}

/// `{"confirm": NAME}`: whoever takes an app away says its name twice.
async fn destroy(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let asked = body(&request, &bytes)?;
        if asked.get("confirm").and_then(Value::as_str) != Some(app.name.as_str()) {
            return Err(Problem::Malformed { what: "confirm", detail: app.name.to_string() });
        }
        command::destroy(&shared.world, &app, OPERATOR).await?.map_err(refused)?;
        Done::new(json!({ "app": app.name, "destroyed": true }), "/".to_owned())
    };
    shared.done(&request, order.await)
}

/// `{"on": true}` or `{"on": false}`.
async fn maintenance(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let on = match body(&request, &bytes)?.get("on") {
            Some(Value::Bool(on)) => *on,
            Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
            _ => return Err(Problem::Malformed { what: "on", detail: "expected true or false".to_owned() }),
        };
        processes::set_maintenance(&shared.world, &app.name, on, OPERATOR).await?;
        Done::new(json!({ "app": app.name, "maintenance": on }), format!("/apps/{}", app.name))
    };
    shared.done(&request, order.await)
}

async fn run(request: HttpRequest, shared: Data<Shared>, path: Path<String>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let asked = body(&request, &bytes)?;
        let text = |name: &str| asked.get(name).and_then(Value::as_str).map(str::to_owned);
        let order = processes::OneOffOrder {
            command: text("command").unwrap_or_default(),
            size: text("size").filter(|size| !size.is_empty()),
            time_limit: asked.get("time_limit").and_then(Value::as_u64),
        };
        let made = processes::run_once(&shared.world, &app.name, order, OPERATOR).await?.map_err(not_done)?;
        let answer = json!({ "app": app.name, "number": made.number, "process": format!("run.{}", made.number) });
        Done::new(answer, format!("/apps/{}#log", app.name))
    };
    shared.done(&request, order.await)
}

#[derive(Debug, Deserialize)]
struct OneOffQuery {
    after: Option<String>,
}

fn number_of(text: &str) -> Result<u16, Problem> {
    text.parse().map_err(|_| Problem::not_found("process", format!("run.{text}")))
}

/// What it printed after a cursor, and how it ended once everything was told.
async fn one_off(shared: Data<Shared>, path: Path<(String, String)>, query: Query<OneOffQuery>) -> HttpResponse {
    let world = &shared.world;
    let read = async {
        let app = views::find_app(world, &path.0)?;
        let number = number_of(&path.1)?;
        let not_found = || Problem::not_found("process", format!("run.{number}"));
        let one_off = app.one_offs.iter().rev().find(|one_off| one_off.number == number).ok_or_else(not_found)?;
        let release = world.store.release(&app.name, one_off.release)?.ok_or_else(not_found)?;
        let id = release.process_id("run", number, 1);
        let cursor = query.after.as_deref().filter(|after| !after.is_empty());
        let cursor = cursor
            .map(logs::Cursor::read)
            .transpose()
            .map_err(|error| Problem::Malformed { what: "after", detail: error.to_string() })?;
        // From the first line on: a reader gets everything that is kept.
        let cursor = cursor.unwrap_or_default();
        let page = logs::of_process(world, &id, Some(cursor), logs::MOST).await?;
        let over = one_off.ended.clone().filter(|_| page.ended || page.lines.is_empty());
        Ok::<Value, Problem>(json!({
            "process": format!("run.{number}"), "lines": page.lines, "next": page.next, "dropped": page.dropped,
            "ended": over,
        }))
    };
    shared.json(read.await)
}

async fn stop_one_off(request: HttpRequest, shared: Data<Shared>, path: Path<(String, String)>) -> HttpResponse {
    let order = async {
        let app: AppName = views::find_app(&shared.world, &path.0)?.name;
        let number = number_of(&path.1)?;
        let name = format!("run.{number}");
        if !processes::stop_once(&shared.world, &app, number).await? {
            return Err(Problem::Over { what: "process", name });
        }
        Done::new(json!({ "app": app, "process": name }), format!("/apps/{app}#processes"))
    };
    shared.done(&request, order.await)
}
