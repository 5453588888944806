//! Check runs and check suites. Only the app writes them; a person may ask for one again.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::repositories::resolve;
use super::{At, is_web_address, number, required, text_field};
use crate::sim::access::{Call, Need, read, write};
use crate::sim::events::Who;
use crate::sim::git::is_sha;
use crate::sim::state::{CheckOutput, CheckRun, State};
use crate::sim::wire::{Answer, Outcome, Problem, page};
use crate::sim::{calendar, refs, view};

const READ: Need = read(&["checks"]);
const WRITE: Need = write(&["checks"]);
/// Summary and text of an output, in bytes.
const OUTPUT_BYTES: usize = 65_535;
/// Annotations of one request.
const ANNOTATIONS: usize = 50;
const CONCLUSIONS: [&str; 7] =
    ["action_required", "cancelled", "failure", "neutral", "success", "skipped", "timed_out"];

fn find<'a>(call: &'a Call<'_>, id: u64, run: &str) -> Result<&'a CheckRun, Problem> {
    call.state.repository(id)?.runs.get(&number(run)?).ok_or_else(Problem::not_found)
}

/// Sets on a run what a body of create or update says, after checking it all.
fn apply(run: &mut CheckRun, body: &Value, now: i64) -> Result<(), Problem> {
    let bad = |sentence: &str| Err(Problem::type_error(sentence));
    if let Some(name) = text_field(body, "name")? {
        run.name = name;
    }
    if let Some(external_id) = text_field(body, "external_id")? {
        run.external_id = external_id;
    }
    if let Some(url) = text_field(body, "details_url")? {
        if !is_web_address(&url) {
            return Err(Problem::custom("CheckRun", "details_url", "details_url must use http or https scheme"));
        }
        run.details_url = Some(url);
    }
    for (name, target) in [("started_at", &mut run.started_at), ("completed_at", &mut run.completed_at)] {
        if let Some(text) = text_field(body, name)? {
            match calendar::parse(&text) {
                Some(seconds) => *target = Some(seconds),
                None => return bad(&format!("For 'properties/{name}', \"{text}\" is not a valid date-time.")),
            }
        }
    }
    let status = text_field(body, "status")?;
    const STATUSES: [&str; 6] = ["queued", "in_progress", "completed", "waiting", "requested", "pending"];
    if let Some(status) = status.as_deref().filter(|status| !STATUSES.contains(status)) {
        return bad(&format!("For 'properties/status', {status} is not a member of {STATUSES:?}."));
    }
    let conclusion = text_field(body, "conclusion")?;
    match &conclusion {
        Some(word) if !CONCLUSIONS.contains(&word.as_str()) => {
            return bad(&format!("For 'properties/conclusion', {word} is not a member of {CONCLUSIONS:?}."));
        }
        None if status.as_deref() == Some("completed") && run.conclusion.is_none() => {
            return bad("If 'status' is 'completed', 'conclusion' is required.");
        }
        _ => {}
    }
    if let Some(output) = body.get("output").filter(|output| !output.is_null()) {
        apply_output(run, output)?;
    }
    if let Some(actions) = body["actions"].as_array() {
        if actions.len() > 3 {
            return bad("For 'properties/actions', no more than 3 items are allowed.");
        }
        for action in actions {
            for (field, most) in [("label", 20), ("description", 40), ("identifier", 20)] {
                let text = required(action, "CheckRun", field)?;
                if text.chars().count() > most {
                    return bad(&format!(
                        "For 'properties/actions/items/properties/{field}', \"{text}\" is too long ({most} characters at most)."
                    ));
                }
            }
        }
        run.actions = actions.clone();
    }
    match (conclusion, status) {
        (Some(word), _) => {
            // A conclusion completes the run, whatever the status says.
            run.conclusion = Some(word);
            run.status = "completed".into();
            run.completed_at.get_or_insert(now);
            run.started_at.get_or_insert(now);
        }
        (None, Some(status)) => {
            if status != "completed" {
                run.conclusion = None;
                run.completed_at = None;
            }
            if status == "in_progress" {
                run.started_at.get_or_insert(now);
            }
            run.status = status;
        }
        (None, None) => {}
    }
    Ok(())
}

fn apply_output(run: &mut CheckRun, output: &Value) -> Result<(), Problem> {
    let title = text_field(output, "title")?;
    let summary = text_field(output, "summary")?;
    let text = text_field(output, "text")?;
    if summary.is_none() {
        return Err(Problem::type_error("For 'properties/output', \"summary\" wasn't supplied."));
    }
    if title.is_none() && run.output.title.is_none() {
        return Err(Problem::type_error("For 'properties/output', \"title\" wasn't supplied."));
    }
    for (name, value) in [("summary", &summary), ("text", &text)] {
        if value.as_ref().is_some_and(|value| value.len() > OUTPUT_BYTES) {
            return Err(Problem::custom(
                "CheckRun",
                name,
                &format!("{name} exceeds a maximum bytesize of {OUTPUT_BYTES}"),
            ));
        }
    }
    let annotations = output["annotations"].as_array().cloned().unwrap_or_default();
    if annotations.len() > ANNOTATIONS {
        return Err(Problem::type_error(&format!(
            "For 'properties/annotations', no more than {ANNOTATIONS} items are allowed; {} were supplied.",
            annotations.len()
        )));
    }
    for annotation in &annotations {
        check_annotation(annotation)?;
    }
    run.output =
        CheckOutput { title: title.or(run.output.title.take()), summary, text: text.or(run.output.text.take()) };
    run.annotations.extend(annotations);
    Ok(())
}

fn check_annotation(annotation: &Value) -> Result<(), Problem> {
    required(annotation, "CheckAnnotation", "path")?;
    let message = required(annotation, "CheckAnnotation", "message")?;
    let level = required(annotation, "CheckAnnotation", "annotation_level")?;
    if !["notice", "warning", "failure"].contains(&level.as_str()) {
        return Err(Problem::invalid("CheckAnnotation", "annotation_level", "invalid"));
    }
    let (Some(start), Some(end)) = (annotation["start_line"].as_u64(), annotation["end_line"].as_u64()) else {
        return Err(Problem::invalid("CheckAnnotation", "start_line", "missing_field"));
    };
    let columns = annotation["start_column"].is_u64() || annotation["end_column"].is_u64();
    if end < start || (columns && start != end) {
        return Err(Problem::invalid("CheckAnnotation", "end_line", "invalid"));
    }
    let title = text_field(annotation, "title")?.unwrap_or_default();
    let details = text_field(annotation, "raw_details")?.unwrap_or_default();
    if message.len() > 65_536 || details.len() > 65_536 || title.chars().count() > 255 {
        return Err(Problem::invalid("CheckAnnotation", "message", "too_long"));
    }
    Ok(())
}

pub fn create_run(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    call.require_app_token()?;
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let run_name = required(&body, "", "name")?;
    let sha = required(&body, "", "head_sha")?;
    let git = call.state.git_of(id)?;
    if !is_sha(&sha) || git.kind(&sha).as_deref() != Some("commit") {
        return Err(Problem::new(422, format!("No commit found for SHA: {sha}")));
    }
    let now = call.state.now();
    let mut run = CheckRun {
        id: 0,
        suite: 0,
        name: run_name,
        head_sha: sha.clone(),
        external_id: String::new(),
        details_url: None,
        status: "queued".into(),
        conclusion: None,
        started_at: None,
        completed_at: None,
        created_at: now,
        output: CheckOutput::default(),
        annotations: Vec::new(),
        actions: Vec::new(),
    };
    apply(&mut run, &body, now)?;
    let branch =
        call.state.repository(id)?.known_refs.iter().find_map(|(name, tip)| {
            (*tip == sha).then(|| name.strip_prefix("refs/heads/").map(str::to_owned)).flatten()
        });
    run.suite = refs::ensure_suite(call.state, id, branch.as_deref(), &sha, None)?;
    run.id = call.state.fresh_id();
    run.started_at.get_or_insert(now);
    let (run_id, suite, completed) = (run.id, run.suite, run.status == "completed");
    let record = call.state.repository_mut(id)?;
    drop_oldest(&mut record.runs, suite, &run.name);
    record.runs.insert(run_id, run);
    if let Some(suite) = record.suites.get_mut(&suite) {
        suite.updated_at = now;
    }
    emit_run(call.state, "created", id, run_id, who.account);
    if completed {
        emit_run(call.state, "completed", id, run_id, who.account);
        finish_suite(call.state, id, suite, who)?;
    }
    let record = call.state.repository(id)?;
    let run = record.runs.get(&run_id).ok_or_else(Problem::not_found)?;
    Answer::created(view::checks::run(call.state, record, run))
}

/// A suite keeps at most a thousand runs of one name.
fn drop_oldest(runs: &mut BTreeMap<u64, CheckRun>, suite: u64, name: &str) {
    let same: Vec<u64> = runs.values().filter(|run| run.suite == suite && run.name == name).map(|run| run.id).collect();
    for old in same.iter().take(same.len().saturating_sub(999)) {
        runs.remove(old);
    }
}

fn emit_run(state: &mut State, action: &str, repository: u64, run: u64, sender: u64) {
    let Ok(record) = state.repository(repository) else { return };
    let Some(run) = record.runs.get(&run) else { return };
    let fields = json!({"check_run": view::checks::run_in_webhook(state, record, run)});
    state.emit("check_run", Some(action), repository, sender, fields);
}

/// Tells of a suite whose last run has just completed.
fn finish_suite(state: &mut State, repository: u64, suite: u64, who: Who) -> Result<(), Problem> {
    let record = state.repository(repository)?;
    let Some(found) = record.suites.get(&suite) else { return Ok(()) };
    if view::checks::suite_state(record, found).0 == "completed" {
        refs::emit_suite(state, "completed", repository, suite, who.account)?;
    }
    Ok(())
}

pub fn run(call: &mut Call<'_>, (owner, name): At<'_>, run: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let found = find(call, id, run)?;
    Answer::ok(view::checks::run(call.state, call.state.repository(id)?, found))
}

pub fn change_run(call: &mut Call<'_>, (owner, name): At<'_>, run: &str) -> Outcome {
    call.require_app_token()?;
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let body = call.request.json()?;
    let now = call.state.now();
    let mut changed = find(call, id, run)?.clone();
    let was_completed = changed.status == "completed";
    apply(&mut changed, &body, now)?;
    let (run_id, suite) = (changed.id, changed.suite);
    let completes = !was_completed && changed.status == "completed";
    let record = call.state.repository_mut(id)?;
    record.runs.insert(run_id, changed);
    if let Some(suite) = record.suites.get_mut(&suite) {
        suite.updated_at = now;
    }
    if completes {
        emit_run(call.state, "completed", id, run_id, who.account);
        finish_suite(call.state, id, suite, who)?;
    }
    let record = call.state.repository(id)?;
    let found = record.runs.get(&run_id).ok_or_else(Problem::not_found)?;
    Answer::ok(view::checks::run(call.state, record, found))
}

pub fn annotations(call: &mut Call<'_>, (owner, name): At<'_>, run: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let found = find(call, id, run)?;
    let full_name = call.state.full_name(call.state.repository(id)?);
    let blob = format!("{}/{full_name}/blob/{}", call.state.base, found.head_sha);
    page(call.request, found.annotations.clone(), None, |annotation| {
        let mut value = json!({});
        for name in [
            "path",
            "start_line",
            "end_line",
            "start_column",
            "end_column",
            "annotation_level",
            "title",
            "message",
            "raw_details",
        ] {
            value[name] = annotation[name].clone();
        }
        value["blob_href"] = json!(format!("{blob}/{}", annotation["path"].as_str().unwrap_or_default()));
        value
    })
}

/// Asks for the run again: it stays as it was, the app has to reset it.
pub fn rerequest_run(call: &mut Call<'_>, (owner, name): At<'_>, run: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let run = find(call, id, run)?.id;
    emit_run(call.state, "rerequested", id, run, who.account);
    Ok(Answer::json(201, json!({})))
}

/// The same by a control or a page.
pub fn rerequest(state: &mut State, repository: u64, run: u64, who: Who) {
    emit_run(state, "rerequested", repository, run, who.account);
}

fn filtered(call: &Call<'_>, runs: Vec<CheckRun>) -> Vec<CheckRun> {
    let query = |name: &str| call.request.query(name);
    let mut found: Vec<CheckRun> = Vec::new();
    let latest = query("filter").unwrap_or("latest") != "all";
    for run in runs.into_iter().rev() {
        let fits = query("check_name").is_none_or(|name| run.name == name)
            && query("status").is_none_or(|status| run.status == status)
            && query("app_id").is_none_or(|app| app == call.state.app.id.to_string());
        if fits && !(latest && found.iter().any(|known| known.name == run.name && known.suite == run.suite)) {
            found.push(run);
        }
    }
    found
}

pub fn runs_of_ref(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let sha = resolve(call.state, id, reference)
        .ok_or_else(|| Problem::new(422, format!("No commit found for SHA: {reference}")))?;
    let record = call.state.repository(id)?;
    let runs = record.runs.values().filter(|run| run.head_sha == sha).cloned().collect();
    let runs = filtered(call, runs);
    let state = &*call.state;
    page(call.request, runs, Some("check_runs"), |run| view::checks::run(state, record, &run))
}

pub fn runs_of_suite(call: &mut Call<'_>, (owner, name): At<'_>, suite: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let suite = number(suite)?;
    let record = call.state.repository(id)?;
    if !record.suites.contains_key(&suite) {
        return Err(Problem::not_found());
    }
    let runs = filtered(call, record.runs.values().filter(|run| run.suite == suite).cloned().collect());
    let state = &*call.state;
    page(call.request, runs, Some("check_runs"), |run| view::checks::run(state, record, &run))
}

pub fn suites_of_ref(call: &mut Call<'_>, (owner, name): At<'_>, reference: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    let sha = resolve(call.state, id, reference)
        .ok_or_else(|| Problem::new(422, format!("No commit found for SHA: {reference}")))?;
    let git = call.state.git_of(id)?;
    let head = call.state.commit(&git, &sha)?;
    let state = &*call.state;
    let record = state.repository(id)?;
    let named = call.request.query("check_name");
    let suites: Vec<_> = record
        .suites
        .values()
        .filter(|suite| suite.head_sha == sha)
        .filter(|_| call.request.query("app_id").is_none_or(|app| app == state.app.id.to_string()))
        .filter(|suite| {
            named.is_none_or(|name| record.runs.values().any(|run| run.suite == suite.id && run.name == name))
        })
        .collect();
    page(call.request, suites, Some("check_suites"), |suite| view::checks::suite(state, record, suite, &head))
}

fn answer_suite(call: &mut Call<'_>, id: u64, suite: u64, status: u16) -> Outcome {
    let git = call.state.git_of(id)?;
    let sha = call.state.repository(id)?.suites.get(&suite).ok_or_else(Problem::not_found)?.head_sha.clone();
    let head = call.state.commit(&git, &sha)?;
    let record = call.state.repository(id)?;
    let suite = record.suites.get(&suite).ok_or_else(Problem::not_found)?;
    Ok(Answer::json(status, view::checks::suite(call.state, record, suite, &head)))
}

pub fn create_suite(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    call.require_app_token()?;
    let id = call.repository(owner, name, WRITE)?;
    let body = call.request.json()?;
    let sha = required(&body, "", "head_sha")?;
    let git = call.state.git_of(id)?;
    if !is_sha(&sha) || git.kind(&sha).as_deref() != Some("commit") {
        return Err(Problem::new(422, format!("No commit found for SHA: {sha}")));
    }
    let known = call.state.repository(id)?.suites.values().any(|suite| suite.head_sha == sha);
    let branch =
        call.state.repository(id)?.known_refs.iter().find_map(|(name, tip)| {
            (*tip == sha).then(|| name.strip_prefix("refs/heads/").map(str::to_owned)).flatten()
        });
    let suite = refs::ensure_suite(call.state, id, branch.as_deref(), &sha, None)?;
    answer_suite(call, id, suite, if known { 200 } else { 201 })
}

pub fn suite(call: &mut Call<'_>, (owner, name): At<'_>, suite: &str) -> Outcome {
    let id = call.repository(owner, name, READ)?;
    answer_suite(call, id, number(suite)?, 200)
}

pub fn preferences(call: &mut Call<'_>, (owner, name): At<'_>) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let body = call.request.json()?;
    let app = call.state.app.id;
    for setting in body["auto_trigger_checks"].as_array().into_iter().flatten() {
        if setting["app_id"].as_u64() == Some(app)
            && let Some(on) = setting["setting"].as_bool()
        {
            call.state.repository_mut(id)?.auto_check_suites = on;
        }
    }
    let record = call.state.repository(id)?;
    Answer::ok(json!({
        "preferences": {"auto_trigger_checks": [{"app_id": app, "setting": record.auto_check_suites}]},
        "repository": view::repository(call.state, record),
    }))
}

pub fn rerequest_suite(call: &mut Call<'_>, (owner, name): At<'_>, suite: &str) -> Outcome {
    let id = call.repository(owner, name, WRITE)?;
    let who = call.who()?;
    let suite = number(suite)?;
    if !call.state.repository(id)?.suites.contains_key(&suite) {
        return Err(Problem::not_found());
    }
    refs::emit_suite(call.state, "rerequested", id, suite, who.account)?;
    Ok(Answer::json(201, json!({})))
}
