//! The answers that the router gives by itself: Heroku's codes, and the page or JSON that goes with each.
//!
//! Every sentence stands in `templates/errors`; this file only decides which one is asked for.

use super::pages::{Facts, Pages};
use super::table::Notice;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::LazyLock;

/// Heroku's error codes, as far as the router can see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The app crashed or its deploy failed.
    H10,
    /// Too many requests wait for a process.
    H11,
    /// No byte of an answer in 30 s.
    H12,
    /// The connection closed without an answer.
    H13,
    /// No process of type web.
    H14,
    /// 55 s of silence.
    H15,
    /// An answer that is no HTTP.
    H17,
    /// The app ended in the middle of its answer.
    H18,
    /// The process could not be reached in 5 s.
    H19,
    /// Held for the boot for 75 s.
    H20,
    /// The process refused the connection.
    H21,
    /// The client went away.
    H27,
    /// The client stopped sending its request.
    H28,
    /// Maintenance.
    H80,
    /// The router's own fault.
    H99,
}

/// Every code there is.
pub(super) const ALL_CODES: [Code; 15] = [
    Code::H10,
    Code::H11,
    Code::H12,
    Code::H13,
    Code::H14,
    Code::H15,
    Code::H17,
    Code::H18,
    Code::H19,
    Code::H20,
    Code::H21,
    Code::H27,
    Code::H28,
    Code::H80,
    Code::H99,
];
/// The statuses that the router's own answers have.
pub(super) const STATUSES: [u16; 11] = [400, 401, 403, 404, 405, 408, 410, 414, 431, 500, 503];

impl Code {
    /// Heroku's short name of the code, as it stands in log lines.
    pub fn description(self) -> &'static str {
        match self {
            Code::H10 => "App crashed",
            Code::H11 => "Backlog too deep",
            Code::H12 => "Request timeout",
            Code::H13 => "Connection closed without response",
            Code::H14 => "No web processes running",
            Code::H15 => "Idle connection",
            Code::H17 => "Poorly formed HTTP response",
            Code::H18 => "Server Request Interrupted",
            Code::H19 => "Backend connection timeout",
            Code::H20 => "App boot timeout",
            Code::H21 => "Backend connection refused",
            Code::H27 => "Client Request Interrupted",
            Code::H28 => "Client Connection Idle",
            Code::H80 => "Maintenance mode",
            Code::H99 => "Platform error",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// An answer of the router's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub code: Option<Code>,
    pub notice: Option<Notice>,
}

impl Refusal {
    /// A request that is wrong in itself: no code of Heroku's.
    pub const fn bare(status: u16) -> Refusal {
        Refusal { status, code: None, notice: None }
    }

    pub const fn coded(status: u16, code: Code) -> Refusal {
        Refusal { status, code: Some(code), notice: None }
    }

    /// What an app without an active target answers.
    pub fn without_target(notice: Option<Notice>) -> Refusal {
        let (status, code) = match notice {
            Some(Notice::Crashed | Notice::Failed) => (503, Some(Code::H10)),
            Some(Notice::Maintenance) => (503, Some(Code::H80)),
            Some(Notice::Gone) => (410, None),
            Some(Notice::Building | Notice::Held | Notice::Asleep) | None => (503, Some(Code::H14)),
        };
        Refusal { status, code, notice }
    }
}

/// A rendered answer and its media type.
pub(super) struct Page {
    pub content_type: &'static str,
    pub body: String,
}

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    for (name, source) in [
        ("page.html", include_str!("../../templates/errors/page.html")),
        ("sentence.txt", include_str!("../../templates/errors/sentence.txt")),
    ] {
        if let Err(error) = environment.add_template(name, source) {
            tracing::error!(name, %error, "an error page's template is broken");
        }
    }
    environment
});

/// Renders the answer in the form that the client prefers.
pub(super) fn render(refusal: Refusal, request_id: &str, accept: Option<&str>, pages: &Pages) -> Page {
    let code = refusal.code.map(|code| code.to_string());
    let facts =
        context! { code => code.as_deref(), notice => refusal.notice.map(Notice::name), status => refusal.status };
    let sentence = TEMPLATES.get_template("sentence.txt").and_then(|template| template.render(facts));
    let sentence = sentence.unwrap_or_else(|error| {
        tracing::error!(%error, "could not render an error's sentence");
        String::new()
    });
    let (title, message) = sentence.trim().split_once('\n').unwrap_or((sentence.trim(), ""));
    if accept.is_some_and(prefers_json) {
        let body = serde_json::json!({
            "error": { "status": refusal.status, "code": code, "title": title, "message": message.trim(),
                       "request_id": request_id }
        });
        return Page { content_type: "application/json", body: body.to_string() };
    }
    let facts = Facts { code: code.as_deref(), status: refusal.status, title, message: message.trim(), request_id };
    let content_type = "text/html; charset=utf-8";
    if let Some(body) = pages.render(refusal, facts) {
        return Page { content_type, body };
    }
    let page = TEMPLATES.get_template("page.html").and_then(|template| template.render(facts.value()));
    Page {
        content_type,
        body: page.unwrap_or_else(|error| {
            tracing::error!(%error, "could not render an error page");
            format!("{} {}", refusal.status, code.unwrap_or_default())
        }),
    }
}

/// Whether `Accept` ranks JSON above HTML. A bare `*/*` (curl) gets the page that people read.
fn prefers_json(accept: &str) -> bool {
    let quality = |wanted: &str| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next()?;
            let matches = name.eq_ignore_ascii_case(wanted)
                || (wanted == "application/json" && name.to_ascii_lowercase().ends_with("+json"));
            let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|text| text.parse::<f32>().ok());
            matches.then(|| quality.unwrap_or(1.0))
        });
        ranges.fold(0.0_f32, f32::max)
    };
    quality("application/json") > quality("text/html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_and_notice_has_a_sentence_of_its_own() {
        let mut refusals: Vec<Refusal> = ALL_CODES.iter().map(|code| Refusal::coded(503, *code)).collect();
        refusals.extend([400, 401, 403, 404, 405, 408, 414, 431].map(Refusal::bare));
        for notice in Notice::ALL {
            refusals.push(Refusal::without_target(Some(notice)));
        }
        let mut seen = std::collections::BTreeMap::new();
        for refusal in refusals {
            let page = render(refusal, "id", Some("application/json"), &Pages::default());
            let value: serde_json::Value = serde_json::from_str(&page.body).unwrap();
            let text = value["error"]["message"].as_str().unwrap().to_owned();
            assert!(text.len() > 20 && text.ends_with('.'), "{refusal:?}: {text:?}");
            assert!(!text.contains('\n'), "{refusal:?}: {text:?}");
            if let Some(other) = seen.insert(text.clone(), refusal) {
                let same = (refusal.notice, other.code) == (Some(Notice::Maintenance), Some(Code::H80));
                assert!(same, "{refusal:?} and {other:?} both say {text:?}");
            }
        }
    }

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let page = render(Refusal::bare(404), "<script>\"'&", None, &Pages::default());
        assert!(page.body.contains("&lt;script&gt;"), "{}", page.body);
        assert!(!page.body.contains("<script>"), "{}", page.body);
        assert!(page.body.contains("prefers-color-scheme") && page.body.contains("width=device-width"));
    }

    #[test]
    fn json_is_given_to_those_who_prefer_it() {
        for (accept, json) in [
            ("application/json", true),
            ("application/problem+json", true),
            ("application/json, */*;q=0.1", true),
            ("text/html,application/json;q=0.9", false),
            ("application/json;q=0.5,text/html;q=0.4", true),
            ("*/*", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
        ] {
            assert_eq!(prefers_json(accept), json, "{accept}");
        }
    }
}
