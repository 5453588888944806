//! The pages for a person, and what their buttons post. They look like a small GitHub, work on a phone, and need no
//! script; with one they follow what happens, since `page.js` asks each second for the page and swaps its `<main>`.

use std::sync::OnceLock;

use minijinja::Environment;
use serde_json::{Value, json};

use super::wire::{Answer, Problem, Request, etag, parse_query, percent_encode};
use super::world::{World, named};
use super::{api, markdown, page_model, prepared, pulls};

const CSS: &str = include_str!("../../templates/sim/style.css");
const SCRIPT: &str = include_str!("../../templates/sim/page.js");
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn templates() -> &'static Environment<'static> {
    static TEMPLATES: OnceLock<Environment<'static>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let mut environment = Environment::new();
        // As minijinja's own, but slashes stay readable.
        environment.set_formatter(|out, state, value| match value.as_str() {
            Some(text) if !value.is_safe() => Ok(out.write_str(&markdown::escape(text))?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        for (name, source) in [
            ("base.html", include_str!("../../templates/sim/base.html")),
            ("repositories.html", include_str!("../../templates/sim/repositories.html")),
            ("repository.html", include_str!("../../templates/sim/repository.html")),
            ("pull.html", include_str!("../../templates/sim/pull.html")),
            ("run.html", include_str!("../../templates/sim/run.html")),
            ("commit.html", include_str!("../../templates/sim/commit.html")),
            ("message.html", include_str!("../../templates/sim/message.html")),
        ] {
            if let Err(error) = environment.add_template(name, source) {
                tracing::error!("the page {name} is broken: {error:#}");
            }
        }
        environment
    })
}

fn render(status: u16, name: &str, model: &Value, request: &Request) -> Answer {
    let html = templates().get_template(name).and_then(|template| template.render(minijinja::value::Serde(model)));
    let html = match html {
        Ok(html) => html,
        Err(error) => {
            tracing::error!("the page {name} cannot be rendered: {error:#}");
            return Answer::bytes(500, "text/plain; charset=utf-8", "This page is broken.");
        }
    };
    let tag = etag(html.as_bytes(), "");
    if status == 200 && request.header("if-none-match") == Some(tag.as_str()) {
        return Answer { status: 304, headers: vec![("etag".into(), tag)], content: super::wire::Content::Empty };
    }
    Answer::bytes(status, "text/html; charset=utf-8", html)
        .with_header("content-security-policy", POLICY)
        .with_header("x-content-type-options", "nosniff")
        // Not `no-referrer`: a browser would send `Origin: null` with our own forms.
        .with_header("referrer-policy", "same-origin")
        .with_header("cache-control", "no-cache")
        .with_header("etag", tag)
}

fn message(status: u16, text: &str, request: &Request) -> Answer {
    render(status, "message.html", &json!({"message": text}), request)
}

/// Answers a page, if the path and the Accept header ask for one.
pub fn answer(world: &World, request: &Request) -> Option<Answer> {
    let wants_html = request.wants("text/html");
    if !matches!(request.method.as_str(), "GET" | "HEAD") || (request.wants("json") && !wants_html) {
        return None;
    }
    let path: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    if path.is_empty() {
        return wants_html.then(|| {
            let model = world.glance(|state| page_model::repositories(state));
            render(200, "repositories.html", &model, request)
        });
    }
    if !api::repositories::is_owner_name(path[0]) {
        return None;
    }
    let [owner, name, rest @ ..] = path.as_slice() else {
        return wants_html.then(|| Answer::redirect(302, "/".to_owned()));
    };
    let name = name.strip_suffix(".git").unwrap_or(name);
    let found = world.read(|state| {
        state.find_repository(owner, name).ok_or_else(|| {
            let key = format!("{}/{}", owner.to_lowercase(), name.to_lowercase());
            state.moved.get(&key).and_then(|id| state.repositories.get(id)).map(|record| state.full_name(record))
        })
    });
    let id = match found {
        Ok(id) => id,
        Err(Some(full_name)) => {
            let rest: String = rest.iter().map(|part| format!("/{}", percent_encode(part, ""))).collect();
            return Some(Answer::redirect(301, format!("/{full_name}{rest}")));
        }
        Err(None) => return wants_html.then(|| message(404, "There is no such repository.", request)),
    };
    let offers = prepared::read(world);
    let page = world.glance(|state| match rest {
        [] | ["pulls" | "deployments" | "branches" | "tree" | "commits", ..] | ["issues"] => {
            page_model::repository(state, id, &offers).map(|model| ("repository.html", model))
        }
        ["pull" | "issues", number, ..] => {
            let number = number.parse().unwrap_or(0);
            page_model::pull(state, id, number, &offers).map(|model| ("pull.html", model))
        }
        ["runs", run] => page_model::run(state, id, run.parse().unwrap_or(0)).map(|model| ("run.html", model)),
        ["commit", sha] => match state.git_of(id)?.peel(sha) {
            Some(sha) => page_model::commit(state, id, &sha).map(|model| ("commit.html", model)),
            None => anyhow::bail!("no such commit"),
        },
        ["blob" | "raw", ..] => anyhow::bail!("raw"),
        _ => anyhow::bail!("no such page"),
    });
    Some(match page {
        Ok((name, model)) => render(200, name, &model, request),
        Err(_) => match rest {
            ["blob" | "raw", rest @ ..] => raw(world, id, rest, request),
            _ => message(404, "There is no such page.", request),
        },
    })
}

/// A file as plain text: `REF/PATH`, where the ref may hold slashes.
fn raw(world: &World, id: u64, rest: &[&str], request: &Request) -> Answer {
    let content = world.read(|state| {
        let git = state.git_of(id).ok()?;
        (1..rest.len()).find_map(|split| {
            let commit = api::repositories::resolve(state, id, &rest[..split].join("/"))?;
            let entry = git.entry(&commit, &rest[split..].join("/")).ok()??;
            git.blob(&entry.sha).ok()
        })
    });
    match content {
        Some(content) => Answer::bytes(200, "text/plain; charset=utf-8", content)
            .with_header("x-content-type-options", "nosniff")
            .with_header("content-security-policy", "default-src 'none'; sandbox"),
        None => message(404, "There is no such file.", request),
    }
}

/// The style, the script, avatars and archives.
pub fn asset(world: &World, request: &Request) -> Option<Answer> {
    let path: Vec<&str> = request.segments.iter().skip(1).map(String::as_str).collect();
    match path.as_slice() {
        ["style.css"] => {
            Some(Answer::bytes(200, "text/css; charset=utf-8", CSS).with_header("cache-control", "no-cache"))
        }
        ["page.js"] => {
            Some(Answer::bytes(200, "text/javascript; charset=utf-8", SCRIPT).with_header("cache-control", "no-cache"))
        }
        ["avatar", id] => Some(avatar(world, id.parse().unwrap_or(0))),
        ["archive", id, file] => Some(archive(world, id.parse().unwrap_or(0), file, request)),
        _ => None,
    }
}

/// A disc with the first letter of the name.
fn avatar(world: &World, id: u64) -> Answer {
    let letter = world.read(|state| state.login(id).chars().next()).unwrap_or('?').to_ascii_uppercase();
    let letter = if letter.is_alphanumeric() { letter } else { '?' };
    let hue = id.wrapping_mul(47) % 360;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"40\" viewBox=\"0 0 40 40\">\
         <rect width=\"40\" height=\"40\" fill=\"hsl({hue} 45% 42%)\"/>\
         <text x=\"20\" y=\"27\" text-anchor=\"middle\" font-family=\"sans-serif\" font-size=\"20\" fill=\"#fff\">{letter}</text></svg>"
    );
    Answer::bytes(200, "image/svg+xml", svg).with_header("cache-control", "max-age=3600")
}

/// What a tarball's redirect leads to; its token stands for the right to read that was checked before.
fn archive(world: &World, id: u64, file: &str, request: &Request) -> Answer {
    let made = world.read(|state| {
        let (sha, format) = file.split_once('.')?;
        let right = super::wire::sha256_hex(&format!("{}/{id}/{sha}", state.app.client_secret));
        if request.query("token") != Some(right.as_str()) || !super::git::is_sha(sha) {
            return None;
        }
        let record = state.repository(id).ok()?;
        let prefix = format!("--prefix={}-{}-{}/", state.login(record.owner), record.name, &sha[..7]);
        let format_argument = format!("--format={format}");
        state.git(record).run(&["archive", &format_argument, &prefix, sha]).ok()
    });
    match made {
        Some(bytes) => Answer::bytes(200, "application/x-gzip", bytes),
        None => Problem::not_found().answer(),
    }
}

/// A button or form of a page.
pub fn press(world: &World, request: &Request) -> Option<Answer> {
    let action = match (request.method.as_str(), request.segments.as_slice()) {
        ("POST", [_, ui, action]) if ui == "ui" => action.clone(),
        _ => return None,
    };
    let form = parse_query(&String::from_utf8_lossy(&request.body));
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let full_name = field("repo");
    let number: u64 = field("number").parse().unwrap_or(0);
    let offers = prepared::read(world);
    let done = world.with(|state| -> Result<String, Problem> {
        let id = named(state, full_name).ok_or_else(Problem::not_found)?;
        let full_name = state.full_name(state.repository(id)?);
        let who = state.first();
        let pull_page = format!("/{full_name}/pull/{number}");
        match action.as_str() {
            "comment" => {
                let text = field("body").replace("\r\n", "\n");
                let comment = pulls::comment(state, id, number, text, who)?;
                Ok(format!("{pull_page}#issuecomment-{comment}"))
            }
            "merge" => {
                pulls::merge(state, id, number, "merge", None, None, who)?;
                Ok(pull_page)
            }
            "close" => {
                pulls::close(state, id, number, who, None)?;
                Ok(pull_page)
            }
            "reopen" => {
                pulls::reopen(state, id, number, who)?;
                Ok(pull_page)
            }
            "ready" | "draft" => {
                api::pulls::change_draft(state, id, number, action == "draft", who)?;
                Ok(pull_page)
            }
            "prepared" => {
                let prepared = offers
                    .iter()
                    .find(|prepared| prepared.id == field("id") && prepared.repo.eq_ignore_ascii_case(&full_name))
                    .ok_or_else(Problem::not_found)?;
                Ok(match prepared::press(state, prepared)? {
                    Some(number) => format!("/{full_name}/pull/{number}"),
                    None => format!("/{full_name}"),
                })
            }
            "rerun" => {
                let run: u64 = field("run").parse().unwrap_or(0);
                api::checks::rerequest(state, id, run, who);
                Ok(format!("/{full_name}/runs/{run}"))
            }
            _ => Err(Problem::not_found()),
        }
    });
    Some(match done {
        Ok(location) => Answer::redirect(303, location),
        Err(problem) => {
            let detail = problem.errors.first().and_then(|error| error["message"].as_str()).map(str::to_owned);
            message(problem.status, &detail.unwrap_or(problem.message), request)
        }
    })
}
