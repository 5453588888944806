//! GitHub's own schemas as a judge of our client, of the intake's inputs and of the stand-in for GitHub.
//!
//! What is judged here never comes from our memory of GitHub: `tests/fixtures/github` holds its published description
//! (see `SOURCE.md` there), and this module only compares. It is stricter than GitHub in one place, on purpose: an
//! unknown query parameter or body property is a complaint, for GitHub ignores it and the client that sends it is wrong.
//! It is laxer where the description is known to be poor: an error may come from any operation, and values of format
//! `uri` may be templates.
//!
//! Every complaint is one sentence that reads alone. Validators are compiled at first use, for one schema each.

mod bodies;
mod paths;
mod proxy;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use jsonschema::Validator;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use proxy::CheckingProxy;

/// The schemas of the operations and webhooks in use.
pub struct GitHubSchemas {
    operations: Vec<Operation>,
    events: BTreeMap<String, BTreeMap<String, String>>,
    rest: Map<String, Value>,
    webhooks: Map<String, Value>,
    compiled: Mutex<HashMap<String, Arc<Validator>>>,
}

/// One operation of the REST API, as the fixture holds it.
struct Operation {
    method: String,
    template: String,
    description: Description,
}

#[derive(Deserialize)]
struct Description {
    path: Map<String, Value>,
    query: Map<String, Value>,
    required: Vec<String>,
    body: Option<RequestBody>,
    /// Status to schema; `false` means no body is described, `true` that it is not JSON.
    responses: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct RequestBody {
    required: bool,
    schema: Value,
}

/// Statuses which GitHub may answer to any operation without describing it each time: limits, missing permissions,
/// renamed repositories, unchanged resources, outages.
const ANYWHERE: [u16; 15] = [301, 304, 307, 400, 401, 403, 404, 406, 415, 422, 429, 500, 502, 503, 504];

impl GitHubSchemas {
    /// The schemas, read once for the whole process.
    pub fn load() -> &'static GitHubSchemas {
        static SCHEMAS: OnceLock<GitHubSchemas> = OnceLock::new();
        SCHEMAS.get_or_init(|| {
            #[derive(Deserialize)]
            struct Rest {
                operations: BTreeMap<String, Description>,
                #[serde(rename = "$defs")]
                definitions: Map<String, Value>,
            }
            #[derive(Deserialize)]
            struct Webhooks {
                events: BTreeMap<String, BTreeMap<String, String>>,
                #[serde(rename = "$defs")]
                definitions: Map<String, Value>,
            }
            let rest: Rest = unpack(include_bytes!("../fixtures/github/rest.json.zst"));
            let webhooks: Webhooks = unpack(include_bytes!("../fixtures/github/webhooks.json.zst"));
            let operations = rest.operations.into_iter().map(|(name, description)| {
                let (method, template) = name.split_once(' ').expect("the script writes `METHOD /path`");
                Operation { method: method.to_owned(), template: template.to_owned(), description }
            });
            GitHubSchemas {
                operations: operations.collect(),
                events: webhooks.events,
                rest: rest.definitions,
                webhooks: webhooks.definitions,
                compiled: Mutex::default(),
            }
        })
    }

    /// Every operation as `METHOD /path/{template}`, sorted.
    pub fn operations(&self) -> Vec<String> {
        self.operations.iter().map(|operation| format!("{} {}", operation.method, operation.template)).collect()
    }

    /// The operation that a request means, as `METHOD /path/{template}`.
    pub fn operation_of(&self, method: &str, path: &str) -> Option<String> {
        let (operation, _) = paths::find(&self.operations, method, path).ok()?;
        Some(format!("{method} {}", operation.template))
    }

    /// Judges a request. Errs with one sentence for each thing that is wrong: the operation is unknown, a parameter is
    /// unknown or of the wrong type, the body does not fit or holds a property that GitHub does not know.
    pub fn check_request(&self, method: &str, path_and_query: &str, body: Option<&Value>) -> Result<(), Vec<String>> {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let call = format!("{method} {path}");
        let (operation, values) =
            paths::find(&self.operations, method, path).map_err(|reason| vec![format!("{call}: {reason}")])?;
        let name = format!("{method} {}", operation.template);
        let description = &operation.description;
        let mut complaints = Vec::new();

        for (parameter, value) in &values {
            if let Some(schema) = description.path.get(*parameter) {
                let key = format!("{name} path {parameter}");
                if !self.fits_text(&key, schema, value) {
                    complaints.push(format!("the path parameter `{parameter}` must not be {value:?}"));
                }
            }
        }

        let mut given = BTreeSet::new();
        for (parameter, value) in paths::query_pairs(query) {
            match description.query.get(&parameter) {
                None => complaints.push(format!("GitHub knows no query parameter `{parameter}` here")),
                Some(schema) if !self.fits_text(&format!("{name} query {parameter}"), schema, &value) => {
                    complaints.push(format!("the query parameter `{parameter}` must not be {value:?}"));
                }
                Some(_)
                    if parameter == "per_page" && !value.parse().is_ok_and(|size: u32| (1..=100).contains(&size)) =>
                {
                    complaints.push(format!("GitHub gives 1 to 100 entries a page, not {value}"));
                }
                Some(_) => {}
            }
            if !given.insert(parameter.clone()) {
                complaints.push(format!("the query parameter `{parameter}` is given twice"));
            }
        }
        for parameter in description.required.iter().filter(|parameter| !given.contains(*parameter)) {
            complaints.push(format!("the query parameter `{parameter}` is missing"));
        }

        match (&description.body, body) {
            (None, Some(value)) if !is_empty(value) => complaints.push("GitHub takes no body here".to_owned()),
            (Some(wanted), None) if wanted.required => complaints.push("the body is missing".to_owned()),
            (Some(wanted), Some(value)) => {
                let validator = self.validator(&format!("{name} body"), &wanted.schema, &self.rest);
                complaints.extend(bodies::errors(&validator, value));
                complaints.extend(bodies::unknown_properties(&wanted.schema, &self.rest, value));
            }
            _ => {}
        }
        sentences(&call, complaints)
    }

    /// Judges an answer: whether GitHub describes this status for the operation, and whether the body fits it.
    pub fn check_response(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: Option<&Value>,
    ) -> Result<(), Vec<String>> {
        let path = path.split('?').next().unwrap_or_default();
        let call = format!("{method} {path} answered {status}");
        let (operation, _) =
            paths::find(&self.operations, method, path).map_err(|reason| vec![format!("{call}: {reason}")])?;
        let described = operation.description.responses.get(&status.to_string());
        let complaints = match (described, body) {
            (None, _) if !ANYWHERE.contains(&status) => {
                let known: Vec<_> = operation.description.responses.keys().map(String::as_str).collect();
                vec![format!("GitHub does not describe this status here, only {}", known.join(", "))]
            }
            (_, Some(_)) if matches!(status, 204 | 304) => vec!["this status has no body".to_owned()],
            (Some(Value::Bool(true)), Some(Value::String(_)) | None) => Vec::new(),
            (Some(Value::Bool(true)), Some(_)) => vec!["the body should not be JSON".to_owned()],
            (None | Some(Value::Bool(false)), Some(body)) if status >= 300 => lacks_message(body),
            (Some(Value::Bool(false)), Some(body)) if !is_empty(body) => vec!["GitHub sends no body here".to_owned()],
            (None | Some(Value::Bool(false)), _) => Vec::new(),
            (Some(_), None) if matches!(status, 301 | 302 | 307) => Vec::new(),
            (Some(_), None) => vec!["the body is missing".to_owned()],
            (Some(schema), Some(body)) => {
                let key = format!("{method} {} {status}", operation.template);
                let mut complaints = bodies::errors(&self.validator(&key, schema, &self.rest), body);
                if status >= 400 {
                    complaints.extend(lacks_message(body));
                }
                complaints
            }
        };
        sentences(&call, complaints)
    }

    /// Judges a webhook's payload by its event (the X-GitHub-Event header) and the action inside.
    pub fn check_webhook(&self, event: &str, payload: &Value) -> Result<(), Vec<String>> {
        let action = payload.get("action").and_then(Value::as_str);
        let call = match action {
            Some(action) => format!("webhook {event}.{action}"),
            None => format!("webhook {event}"),
        };
        let Some(actions) = self.events.get(event) else {
            return Err(vec![format!("{call}: GitHub has no such event")]);
        };
        // The empty action stands for events that have none, or where the sender chooses it.
        let Some(name) = actions.get(action.unwrap_or_default()).or_else(|| actions.get("")) else {
            let known: Vec<_> = actions.keys().map(String::as_str).collect();
            return Err(vec![format!("{call}: GitHub has no such action, only {}", known.join(", "))]);
        };
        let schema = json!({ "$ref": format!("#/$defs/{name}") });
        let validator = self.validator(&format!("webhook {name}"), &schema, &self.webhooks);
        sentences(&call, bodies::errors(&validator, payload))
    }

    /// Whether the text of a parameter, read as whatever type the schema wants, fits.
    fn fits_text(&self, key: &str, schema: &Value, text: &str) -> bool {
        let validator = self.validator(key, schema, &self.rest);
        let number = text.parse::<i64>().ok().map(Value::from);
        let truth = text.parse::<bool>().ok().map(Value::from);
        std::iter::once(Value::from(text)).chain(number).chain(truth).any(|value| validator.is_valid(&value))
    }

    fn validator(&self, key: &str, schema: &Value, definitions: &Map<String, Value>) -> Arc<Validator> {
        let mut compiled = self.compiled.lock().expect("no test panics while it holds this");
        let validator =
            compiled.entry(key.to_owned()).or_insert_with(|| Arc::new(bodies::compile(schema, definitions)));
        Arc::clone(validator)
    }
}

/// The payloads that GitHub recorded, each with its event's name.
pub fn webhook_examples() -> &'static Vec<(String, Value)> {
    static EXAMPLES: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    EXAMPLES.get_or_init(|| unpack(include_bytes!("../fixtures/github/webhook-examples.json.zst")))
}

fn unpack<T: DeserializeOwned>(packed: &[u8]) -> T {
    let text = zstd::decode_all(packed).expect("the fixture is zstd");
    serde_json::from_slice(&text).expect("the fixture is what the script writes")
}

/// Clients send `null` or `{}` where there is nothing to say.
fn is_empty(body: &Value) -> bool {
    body.is_null() || body.as_object().is_some_and(Map::is_empty)
}

/// The description leaves `message` optional in errors; GitHub always sends it and people need it.
fn lacks_message(body: &Value) -> Vec<String> {
    match body.get("message") {
        Some(Value::String(_)) => Vec::new(),
        _ => vec!["an error or redirect needs a `message`".to_owned()],
    }
}

fn sentences(call: &str, complaints: Vec<String>) -> Result<(), Vec<String>> {
    if complaints.is_empty() {
        return Ok(());
    }
    Err(complaints.into_iter().map(|complaint| format!("{call}: {complaint}")).collect())
}
