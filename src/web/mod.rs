//! The faces: GitHub's door (`intake`), pages for people, the API for programs.
//!
//! Pages and the API show the same views and give the same orders; an order is decided as a comment's command is. Every
//! page is whole without a script; `live.js` only asks for the same page again and changes what differs. Nothing here
//! decides, and nothing that somebody else wrote is ever markup.

pub mod ansi;
mod api;
mod app_api;
mod down;
mod guard;
mod intake;
mod login;
mod logs;
mod metrics;
mod monitor_api;
mod pages;
mod peer;
mod pipeline_api;
mod problem;
#[cfg(test)]
mod tests;
mod views;

pub use down::{Stopped, stop_everything};
pub use intake::{Intake, webhook};

use crate::reconcile::World;
use actix_web::dev::HttpServiceFactory;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data};
use actix_web::{HttpRequest, HttpResponse, HttpServer};
use problem::Problem;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of a form or of an order to the API.
const LARGEST_ORDER: usize = 256 * 1024;

/// What pages and the API are answered from.
pub struct Shared {
    pub world: Arc<World>,
    /// Says that everything of this data folder shall end.
    pub ask_down: mpsc::Sender<()>,
    style: String,
    logins: login::Logins,
}

/// Binds the address and gives the server, which still has to be awaited.
pub fn listen(
    listen: SocketAddr,
    world: Arc<World>,
    intake: Intake,
    ask_down: mpsc::Sender<()>,
) -> std::io::Result<(actix_web::dev::Server, SocketAddr)> {
    let intake = Data::new(intake);
    let shared = share(world, ask_down);
    let server = HttpServer::new(move || {
        let (intake, shared) = (intake.clone(), shared.clone());
        actix_web::App::new().configure(move |config| configure(config, intake, shared))
    })
    .workers(2)
    // A page that is being read must not hold up the end of the server.
    .shutdown_timeout(2)
    .disable_signals()
    .bind(listen)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    Ok((server.run(), address))
}

pub fn share(world: Arc<World>, ask_down: mpsc::Sender<()>) -> Data<Shared> {
    let style = format!("{}{}", include_str!("../../templates/style.css"), ansi::palette());
    Data::new(Shared { world, ask_down, style, logins: login::Logins::default() })
}

/// Every address that the server answers at.
pub fn configure(config: &mut web::ServiceConfig, intake: Data<Intake>, shared: Data<Shared>) {
    config
        .app_data(intake)
        .app_data(shared)
        .route("/webhooks/github", web::post().to(webhook))
        .route("/healthz", web::get().to(metrics::healthz))
        .service(guarded());
}

/// Everything that people and programs may ask for, behind the guard.
fn guarded() -> impl HttpServiceFactory {
    web::scope("")
        .wrap(from_fn(guard::guard))
        .app_data(web::PayloadConfig::new(LARGEST_ORDER))
        .app_data(web::QueryConfig::default().error_handler(unreadable_query))
        .route("/metrics", web::get().to(metrics::metrics))
        .configure(api::configure)
        .configure(app_api::configure)
        .configure(monitor_api::configure)
        .configure(login::configure)
        .configure(pages::configure)
        .default_service(web::to(elsewhere))
}

/// What takes many reads of the store, made on a thread that may take its time: the server's own take deliveries too.
async fn read<V: Send + 'static>(
    shared: &Data<Shared>,
    view: impl FnOnce(&World) -> Result<V, Problem> + Send + 'static,
) -> Result<V, Problem> {
    let world = shared.world.clone();
    let read = web::block(move || view(&world)).await;
    read.unwrap_or_else(|error| Err(Problem::Internal { detail: error.to_string() }))
}

/// What every page's frame shows beside the page.
#[derive(Serialize)]
struct Framed<V> {
    version: &'static str,
    parked_total: u64,
    firing_total: usize,
    #[serde(flatten)]
    view: V,
}

impl Shared {
    /// A page, or the page that says why there is none.
    fn page<V: Serialize>(&self, template: &str, view: Result<V, Problem>) -> HttpResponse {
        match view {
            Ok(view) => self.html(StatusCode::OK, self.framed(template, view)),
            Err(problem) => self.problem_page(&problem),
        }
    }

    fn framed<V: Serialize>(&self, template: &str, view: V) -> String {
        let parked_total = crate::store::queue::depth(&self.world.store).map_or(0, |depth| depth.parked);
        let firing_total =
            self.world.store.all_alerts().map_or(0, |all| all.iter().map(|alerts| alerts.firing().count()).sum());
        let frame = Framed { version: env!("CARGO_PKG_VERSION"), parked_total, firing_total, view };
        self.world.texts.render(template, frame)
    }

    fn html(&self, status: StatusCode, page: String) -> HttpResponse {
        if page.is_empty() {
            // The template's error was logged where it happened.
            return HttpResponse::InternalServerError()
                .content_type("text/plain")
                .body("this page could not be made\n");
        }
        HttpResponse::build(status).content_type("text/html; charset=utf-8").body(page)
    }

    /// Whoever may log in to see an app may get one, so its frame says nothing of this house.
    fn problem_page(&self, problem: &Problem) -> HttpResponse {
        let status = problem.status();
        let view = serde_json::json!({ "status": status.as_u16(), "sentence": self.sentence(problem) });
        self.html(status, self.world.texts.render("message.html", view))
    }

    fn json<V: Serialize>(&self, view: Result<V, Problem>) -> HttpResponse {
        match view {
            Ok(view) => HttpResponse::Ok().json(view),
            Err(problem) => self.problem_json(&problem),
        }
    }

    fn problem_json(&self, problem: &Problem) -> HttpResponse {
        let status = problem.status();
        HttpResponse::build(status)
            .json(serde_json::json!({ "error": self.sentence(problem), "status": status.as_u16() }))
    }

    /// A problem in the form that fits the address: a page, or JSON.
    fn refuse(&self, path: &str, problem: &Problem) -> HttpResponse {
        if path.starts_with("/api/") { self.problem_json(problem) } else { self.problem_page(problem) }
    }

    fn sentence(&self, problem: &Problem) -> String {
        self.world.texts.line("cli.txt", problem)
    }
}

async fn elsewhere(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let known = matches!(*request.method(), actix_web::http::Method::GET | actix_web::http::Method::HEAD);
    let problem = if known { Problem::not_found("page", request.path()) } else { Problem::MethodNotAllowed };
    shared.refuse(request.path(), &problem)
}

/// A query that is not understood is told as every other mistake is.
fn unreadable_query(error: actix_web::error::QueryPayloadError, request: &HttpRequest) -> actix_web::Error {
    let problem = Problem::Malformed { what: "query", detail: error.to_string() };
    let response = match request.app_data::<Data<Shared>>() {
        Some(shared) => shared.refuse(request.path(), &problem),
        None => HttpResponse::BadRequest().finish(),
    };
    actix_web::error::InternalError::from_response(error, response).into()
}

/// A file that is part of the program.
fn asset(content_type: &'static str, content: String) -> HttpResponse {
    let mut response = HttpResponse::Ok().body(content);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
