//! Orders about a whole pipeline: what a comment may ask for, given at the machine, and the rules on the dashboard.

use super::api::{Done, OPERATOR, body, refused};
use super::problem::Problem;
use super::{Shared, views};
use crate::domain::{Command, PullNumber, SETTINGS_LIMIT};
use crate::reconcile::command;
use crate::workflow::mentioned_commands;
use actix_web::dev::HttpServiceFactory;
use actix_web::web::{self, Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

pub(super) fn scope() -> impl HttpServiceFactory {
    web::scope("/api/v1/pipelines/{owner}/{name}/orders")
        .route("/command", web::post().to(give))
        .route("/rules", web::post().to(set_rules))
}

/// The one command that the fields make together: `command` as in a comment, and `words` that follow it.
fn command_of(asked: &Value) -> Result<Command, Problem> {
    let field = |name: &str| asked.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    let line = format!("{} {}", field("command"), field("words")).replace(['\n', '\r'], " ");
    let malformed = || Problem::Malformed { what: "command", detail: line.chars().take(100).collect() };
    match mentioned_commands(line.trim()).as_slice() {
        [Command::Unknown { .. } | Command::Malformed { .. }] => Err(malformed()),
        [one] => Ok(one.clone()),
        _ => Err(malformed()),
    }
}

fn pull_of(asked: &Value) -> Result<Option<PullNumber>, Problem> {
    let malformed = || Problem::Malformed { what: "pull", detail: "a number is wanted".to_owned() };
    match asked.get("pull") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text.parse().map(|number| Some(PullNumber(number))).map_err(|_| malformed()),
        Some(value) => value.as_u64().map(|number| Some(PullNumber(number))).ok_or_else(malformed),
    }
}

async fn give(request: HttpRequest, shared: Data<Shared>, path: Path<(String, String)>, bytes: Bytes) -> HttpResponse {
    let order = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let asked = body(&request, &bytes)?;
        let (command, pull) = (command_of(&asked)?, pull_of(&asked)?);
        let answer = command::give(&shared.world, &repository, command, pull, OPERATOR).await?.map_err(refused)?;
        Done::new(json!({ "answer": answer }), format!("/pipelines/{}", repository.full_name()))
    };
    shared.done(&request, order.await)
}

async fn set_rules(
    request: HttpRequest,
    shared: Data<Shared>,
    path: Path<(String, String)>,
    bytes: Bytes,
) -> HttpResponse {
    let order = async {
        let repository = views::find_repository(&shared.world, &path.0, &path.1)?;
        let asked = body(&request, &bytes)?;
        let rules = asked.get("rules").and_then(Value::as_str).unwrap_or_default();
        if rules.len() > SETTINGS_LIMIT {
            let detail = format!("larger than {} KiB", SETTINGS_LIMIT / 1024);
            return Err(Problem::Malformed { what: "rules", detail });
        }
        let rules = rules.replace("\r\n", "\n");
        let set = command::set_rules(&shared.world, &repository, &rules, OPERATOR).await?;
        set.map_err(|detail| Problem::Malformed { what: "rules", detail })?;
        Done::new(json!({ "rules": rules }), format!("/pipelines/{}", repository.full_name()))
    };
    shared.done(&request, order.await)
}
