//! The part of the API that shows numbers, alerts and drains, and by which the operator sets drains.

use super::api::{Done, OPERATOR, body};
use super::problem::Problem;
use super::{Shared, views};
use crate::domain::{AccessMode, AppName};
use crate::drains::masked;
use crate::reconcile::{access, drains};
use actix_web::web::{self, Bytes, Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use serde_json::{Value, json};

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/api/v1/apps/{name}/metrics", web::get().to(metrics))
        .route("/api/v1/apps/{name}/alerts", web::get().to(app_alerts))
        .route("/api/v1/apps/{name}/access", web::get().to(app_access))
        .route("/api/v1/apps/{name}/access/change", web::post().to(change_app_access))
        .route("/api/v1/pipelines/{owner}/{name}/access/change", web::post().to(change_pipeline_access))
        .route("/api/v1/alerts", web::get().to(alerts))
        .route("/api/v1/drains", web::get().to(list_drains))
        .route("/api/v1/drains/add", web::post().to(add_drain))
        .route("/api/v1/drains/{id}/remove", web::post().to(remove_drain));
}

#[derive(Debug, Deserialize)]
pub(super) struct MetricsQuery {
    resolution: Option<String>,
    range: Option<String>,
}

impl MetricsQuery {
    pub(super) fn resolution(&self) -> Result<crate::router::Resolution, Problem> {
        views::resolution(self.resolution.as_deref().or(self.range.as_deref()))
    }
}

async fn metrics(shared: Data<Shared>, path: Path<String>, query: Query<MetricsQuery>) -> HttpResponse {
    let read = async {
        let app = views::find_app(&shared.world, &path)?;
        views::metrics(&shared.world, &app, query.resolution()?).await
    };
    shared.json(read.await)
}

async fn alerts(shared: Data<Shared>) -> HttpResponse {
    shared.json(views::alerts(&shared.world).map(|alerts| json!({ "alerts": alerts })))
}

/// What has fired of an app, and the limits that hold for it; an absent one is off.
async fn app_alerts(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = || {
        let app = views::find_app(&shared.world, &path)?;
        let rules = crate::reconcile::alerts::rules(&shared.world, &app)?;
        let limits: serde_json::Map<String, Value> = crate::domain::AlertKind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind.word().to_owned(), json!(rules.limit(kind)?))))
            .collect();
        Ok(json!({ "alerts": views::alerts_of(&shared.world, &app.name)?, "limits": limits }))
    };
    shared.json(view())
}

async fn list_drains(shared: Data<Shared>) -> HttpResponse {
    shared.json(all_drains(&shared))
}

fn all_drains(shared: &Shared) -> Result<Value, Problem> {
    let world = &shared.world;
    let figures = world.drains.figures();
    let added: std::collections::BTreeMap<String, String> =
        world.store.drains()?.into_iter().map(|drain| (drain.id, drain.added_at.rfc3339())).collect();
    let lines = drains::wanted(world)?.into_iter().map(|wanted| {
        json!({
            "id": wanted.id, "app": wanted.app, "address": wanted.shown, "added": added.get(&wanted.id),
            "figures": figures.get(&wanted.id),
        })
    });
    Ok(json!({ "drains": lines.collect::<Vec<_>>() }))
}

async fn add_drain(request: HttpRequest, shared: Data<Shared>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let asked = body(&request, &bytes)?;
        let text = |name: &str| asked.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let address = text("url").unwrap_or_default();
        let app: Option<AppName> = match text("app") {
            Some(name) => Some(views::find_app(&shared.world, name)?.name),
            None => None,
        };
        let added = drains::add(&shared.world, address, app, OPERATOR).await?;
        let drain = added.map_err(|detail| Problem::NotDone { detail })?;
        Done::new(json!({ "id": drain.id, "app": drain.app, "address": masked(address) }), "/".to_owned())
    };
    shared.done(&request, order.await)
}

async fn remove_drain(request: HttpRequest, shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let order = async {
        if !drains::remove(&shared.world, &path).await? {
            return Err(Problem::not_found("drain", path.as_str()));
        }
        Done::new(json!({ "removed": *path }), "/".to_owned())
    };
    shared.done(&request, order.await)
}

/// Who may see an app, with the password: who asks this API may see every app anyway.
async fn app_access(shared: Data<Shared>, path: Path<String>) -> HttpResponse {
    let view = views::find_app(&shared.world, &path).and_then(|app| access_view(&shared, &app));
    shared.json(view)
}

fn access_view(shared: &Shared, app: &crate::domain::App) -> Result<Value, Problem> {
    let closed = access::of(&shared.world, app)?;
    Ok(json!({
        "app": app.name,
        "mode": closed.as_ref().map_or(AccessMode::Public, |closed| closed.mode),
        "password": closed.and_then(|closed| closed.password).map(|password| password.expose().to_owned()),
        "url": shared.world.app_url(&app.name),
    }))
}

/// `{"mode": "public" | "password" | "github" | "policy", "rotate": true}`, each of which may be left out.
type AccessChange = (Option<Option<AccessMode>>, bool);

fn access_change(asked: &Value) -> Result<AccessChange, Problem> {
    let mode = match asked.get("mode").and_then(Value::as_str).filter(|mode| !mode.is_empty()) {
        None => None,
        Some("policy") => Some(None),
        Some("public") => Some(Some(AccessMode::Public)),
        Some("password") => Some(Some(AccessMode::Password)),
        Some("github") => Some(Some(AccessMode::Github)),
        Some(_) => {
            let detail = "expected public, password, github or policy".to_owned();
            return Err(Problem::Malformed { what: "mode", detail });
        }
    };
    let rotate = matches!(asked.get("rotate"), Some(Value::Bool(true))) || asked.get("rotate") == Some(&json!("true"));
    Ok((mode, rotate))
}

async fn change_app_access(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<String>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let app = views::find_app(&shared.world, &path)?;
        let (mode, rotate) = access_change(&body(&request, &bytes)?)?;
        access::set(&shared.world, access::Whose::App(&app), mode, rotate, OPERATOR).await?;
        Done::new(access_view(&shared, &app)?, format!("/apps/{}", app.name))
    };
    shared.done(&request, order.await)
}

async fn change_pipeline_access(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<(String, String)>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let (mode, rotate) = access_change(&body(&request, &bytes)?)?;
        let setting = access::set(&shared.world, access::Whose::Pipeline(&repository), mode, rotate, OPERATOR).await?;
        let page = format!("/pipelines/{}/{}", repository.owner, repository.name);
        Done::new(json!({ "pipeline": repository.full_name(), "mode": setting.mode }), page)
    };
    shared.done(&request, order.await)
}
