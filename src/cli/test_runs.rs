//! `landfall ci logs` and `landfall ci artifacts`: what a run left. Names of files come from the code under test, so
//! they are looked at once more before anything is written.

use super::Failed;
use super::client::Client;
use super::print::{self, json as print_json, line, list, table, text};
use super::show::{Begin, each_line, follow, print_line};
use crate::domain::PHASE;
use serde_json::{Value, json};
use std::path::{Component, Path};

pub async fn logs(client: &Client, run: u64, node: u16, tail: bool, folded: bool) -> Result<(), Failed> {
    let path = format!("/api/v1/runs/{run}/nodes/{node}/logs");
    if !folded {
        return follow(client, &path, tail, Begin::Start).await;
    }
    let mut entries = Vec::new();
    let keep = |entry: &Value| {
        entries.push(entry.clone());
        Ok(())
    };
    each_line(client, &path, false, Begin::Start, keep).await?;
    for phase in entries.chunk_by(|_, next| !text(next, &["text"]).starts_with(PHASE)) {
        let Some(first) = phase.first() else { continue };
        print_line(client, first)?;
        if !client.json && phase.len() > 1 {
            line(&client.sentence(json!({ "say": "folded", "lines": phase.len() - 1 })))?;
        }
    }
    Ok(())
}

pub async fn artifacts(client: &Client, run: u64) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/runs/{run}/artifacts")).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "artifacts")
        .iter()
        .map(|one| vec![text(one, &["node"]), text(one, &["bytes"]), print::plain(&text(one, &["path"]))])
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_artifacts" })));
    }
    table(&["NODE", "BYTES", "PATH"], &rows)
}

/// Writes them below a folder that is made for it, so that nothing that is there is changed or followed.
pub async fn save(client: &Client, run: u64, folder: &Path) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/runs/{run}/artifacts")).await?;
    std::fs::create_dir(folder).map_err(|error| {
        let detail = error.to_string();
        client.failed(json!({ "say": "folder_not_made", "folder": folder.display().to_string(), "detail": detail }))
    })?;
    for one in list(&answer, "artifacts") {
        let (node, id, path) = (text(one, &["node"]), text(one, &["id"]), text(one, &["path"]));
        let place = Path::new(&path);
        let plain = id.bytes().all(|byte| byte.is_ascii_hexdigit()) && node.bytes().all(|byte| byte.is_ascii_digit());
        if !plain || !place.components().all(|part| matches!(part, Component::Normal(_))) {
            continue;
        }
        let to = folder.join(format!("node-{node}")).join(place);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let source = format!("/api/v1/runs/{run}/artifacts/{node}/{id}");
        let Some(response) = client.stream(&source).await? else {
            return Err(client.failed(json!({ "say": "no_server", "url": client.url() })));
        };
        write(response, &to).await?;
        if !client.json {
            line(&print::plain(&to.display().to_string()))?;
        }
    }
    if client.json { print_json(&answer) } else { Ok(()) }
}

async fn write(mut response: reqwest::Response, to: &Path) -> Result<(), Failed> {
    use std::io::Write;
    let mut file = std::fs::File::options().write(true).create_new(true).open(to)?;
    while let Some(piece) = response.chunk().await.map_err(|error| Failed::Said(error.to_string()))? {
        file.write_all(&piece)?;
    }
    Ok(())
}
