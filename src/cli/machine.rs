//! The commands that must work on this machine whether or not a control plane runs.

use super::Failed;
use super::client::{Client, chain};
use super::print::{self, json as print_json, line, list, text};
use crate::clock::Clock;
use crate::config::Config;
use crate::platform::{Finding, Local, LocalSettings, Platform};
use crate::router::Router;
use crate::store::{self, Store, StoreError};
use crate::web::stop_everything;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn said(error: &dyn std::error::Error) -> Failed {
    Failed::Said(chain(error))
}

/// The sandbox of this machine, with its records in `folder`.
fn local(config: &Config, folder: PathBuf) -> Result<Platform, Failed> {
    let mut settings = LocalSettings::new(folder, std::env::current_exe()?, Clock::System);
    settings.toolchains.clone_from(&config.sandbox.toolchains);
    Ok(Platform::Local(Local::open(settings).map_err(|error| said(&error))?))
}

/// `0` only if nothing needs a person.
pub async fn doctor(client: &Client, config: &Config) -> Result<(), Failed> {
    let answer = client.ask(Method::GET, "/api/v1/doctor", None).await?;
    let report = match answer {
        Some(answer) if answer.status == 200 => answer.body,
        Some(answer) => return Err(Failed::Said(print::plain(&text(&answer.body, &["error"])))),
        None => {
            if !client.json {
                line(&client.sentence(json!({ "say": "doctor_local", "url": client.url() })))?;
            }
            machine_only(config).await?
        }
    };
    let well = report.get("well") == Some(&Value::Bool(true));
    if client.json {
        print_json(&report)?;
    } else {
        print_report(&report)?;
        line(&client.sentence(json!({ "say": if well { "doctor_well" } else { "doctor_unwell" } })))?;
    }
    if well { Ok(()) } else { Err(Failed::Found) }
}

/// What can be said without a control plane: whether the sandbox holds. Leaves nothing behind.
async fn machine_only(config: &Config) -> Result<Value, Failed> {
    let own = config.data_dir.join("platform");
    let (folder, passing) = if own.is_dir() {
        (std::path::absolute(own)?, false)
    } else {
        let folder = PathBuf::from(format!("/tmp/landfall-doctor-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        (folder, true)
    };
    let findings: Vec<Finding> = local(config, folder.clone())?.check().await;
    if passing {
        std::fs::remove_dir_all(&folder)?;
    }
    let well = findings.iter().all(|finding| finding.ok || !finding.wall);
    Ok(json!({ "well": well, "findings": findings }))
}

fn print_report(report: &Value) -> Result<(), Failed> {
    let mark = |ok: bool, wall: bool| match (ok, wall) {
        (true, _) => "ok",
        (false, true) => "missing",
        (false, false) => "advice",
    };
    let truth = |value: &Value, name: &str| value.get(name) == Some(&Value::Bool(true));
    let mut rows = Vec::new();
    for finding in list(report, "findings") {
        let (ok, wall) = (truth(finding, "ok"), truth(finding, "wall"));
        rows.push(vec![mark(ok, wall).to_owned(), text(finding, &["name"]), text(finding, &["detail"])]);
        let remedy = text(finding, &["remedy"]);
        if !ok && !remedy.is_empty() {
            rows.push(vec![String::new(), String::new(), remedy]);
        }
    }
    for (name, field, detail) in [("store", "ready", ""), ("router", "answers", "listen")] {
        if let Some(part) = report.get(name) {
            let ok = truth(part, field);
            let words = if ok { text(part, &[detail]) } else { text(part, &["reason"]) };
            rows.push(vec![mark(ok, true).to_owned(), name.to_owned(), words]);
        }
    }
    for leftover in list(report, "leftovers") {
        rows.push(vec!["left over".to_owned(), text(leftover, &["kind"]), text(leftover, &["name"])]);
    }
    for addon in list(report, "addons") {
        let what = format!("{} of {}", text(addon, &["plan"]), text(addon, &["owner"]));
        rows.push(vec![text(addon, &["state"]), "add-on".to_owned(), what]);
    }
    let unknown = text(report, &["leftovers_unknown"]);
    if !unknown.is_empty() {
        rows.push(vec!["unknown".to_owned(), "leftovers".to_owned(), unknown]);
    }
    for entry in list(report, "parked") {
        rows.push(vec!["parked".to_owned(), text(entry, &["key"]), text(entry, &["reason"])]);
    }
    print::table(&["STATE", "WHAT", "DETAIL"], &rows)
}

/// First the control plane, which would start again what is stopped; then what it leaves: router and processes.
pub async fn down(client: &Client, config: &Config) -> Result<(), Failed> {
    let path = config.data_dir.display().to_string();
    let folder = std::path::absolute(&config.data_dir)?;
    let patience = Duration::from_secs(config.apps.grace_seconds + 15);
    let order = json!({ "apps": true, "data_dir": folder.display().to_string() });
    match client.ask(Method::POST, "/api/v1/shutdown", Some(order)).await {
        Ok(Some(answer)) if answer.status >= 400 => {
            return Err(Failed::Said(print::plain(&text(&answer.body, &["error"]))));
        }
        Ok(None) => say(client, json!({ "say": "down_no_server", "url": client.url(), "path": path }))?,
        // It may end while it answers.
        Ok(Some(_)) | Err(_) => {
            say(client, json!({ "say": "down_asked", "url": client.url() }))?;
            let waited = tokio::time::timeout(patience + Duration::from_secs(15), async {
                while client.answers().await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            if waited.await.is_err() {
                let seconds = patience.as_secs() + 15;
                return Err(client.failed(json!({ "say": "down_alive", "url": client.url(), "seconds": seconds })));
            }
        }
    }
    if !folder.join("platform").is_dir() {
        return done(client, 0, false, &path);
    }
    let platform = local(config, folder.join("platform"))?;
    let router = Router::remote(&folder.join("router"));
    let stopped = stop_everything(&platform, &router, &Clock::System, patience).await.map_err(|error| said(&error))?;
    if !stopped.left.is_empty() {
        let seconds = patience.as_secs();
        return Err(client.failed(json!({ "say": "down_left", "left": stopped.left, "seconds": seconds })));
    }
    done(client, stopped.processes, stopped.router, &path)
}

fn done(client: &Client, processes: usize, router: bool, path: &str) -> Result<(), Failed> {
    if client.json {
        return print_json(&json!({ "down": true, "processes": processes, "router": router }));
    }
    line(&client.sentence(json!({ "say": "down_done", "processes": processes, "router": router, "path": path })))
}

fn say(client: &Client, context: Value) -> Result<(), Failed> {
    if client.json { Ok(()) } else { line(&client.sentence(context)) }
}

/// From the control plane while it runs, else from the store itself.
pub async fn export(client: &Client, config: &Config, file: &Path) -> Result<(), Failed> {
    let folder = config.data_dir.join("store");
    let streamed = client.stream("/api/v1/export").await?;
    let partial = file.with_extension("part");
    let to_stdout = file == Path::new("-");
    let mut out: Box<dyn Write> =
        if to_stdout { Box::new(std::io::stdout().lock()) } else { Box::new(private_file(&partial)?) };
    match streamed {
        Some(response) => {
            let mut body = response.bytes_stream();
            while let Some(bytes) = body.next().await {
                out.write_all(&bytes.map_err(|error| said(&error))?)?;
            }
        }
        None if !folder.is_dir() => {
            drop(out);
            std::fs::remove_file(&partial).ok();
            return Err(client.failed(json!({ "say": "no_server", "url": client.url() })));
        }
        None => {
            let store = Store::open(&folder).map_err(|error| match error {
                StoreError::Locked { .. } => {
                    client.failed(json!({ "say": "export_locked", "path": folder.display().to_string() }))
                }
                other => said(&other),
            })?;
            store.export(&mut *out).map_err(|error| said(&error))?;
        }
    }
    out.flush()?;
    drop(out);
    if to_stdout {
        return Ok(());
    }
    std::fs::rename(&partial, file)?;
    say(client, json!({ "say": "export_done", "path": file.display().to_string() }))
}

/// Exports hold payloads and sealed values: for their owner alone.
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

pub fn import(client: &Client, config: &Config, file: &Path) -> Result<(), Failed> {
    let folder = config.data_dir.join("store");
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(client.failed(json!({ "say": "import_exists", "path": folder.display().to_string() })));
    }
    std::fs::create_dir_all(&config.data_dir)?;
    let mut input: Box<dyn std::io::BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::io::BufReader::new(std::fs::File::open(file)?))
    };
    let imported = store::import(&folder, &mut *input).map_err(|error| said(&error))?;
    if client.json {
        return print_json(&json!({ "records": imported.records, "blob_bytes": imported.blob_bytes }));
    }
    line(
        &client
            .sentence(json!({ "say": "import_done", "records": imported.records, "blob_bytes": imported.blob_bytes })),
    )
}
