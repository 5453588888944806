//! The commands that show who asked for what, and what waits for a promotion.

use super::Failed;
use super::client::Client;
use super::print::{self, ago, json as print_json, line, list, short, table, text};
use super::show;
use serde_json::{Value, json};

pub async fn audit(client: &Client, repository: Option<&str>, lines: u16) -> Result<(), Failed> {
    let only = match repository {
        Some(name) if name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-/".contains(letter)) => {
            format!("&repository={name}")
        }
        Some(name) => return Err(client.failed(json!({ "say": "not_found", "what": "pipeline", "name": name }))),
        None => String::new(),
    };
    let answer = client.get(&format!("/api/v1/audit?limit={lines}{only}")).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "entries")
        .iter()
        .map(|entry| {
            let pull = text(entry, &["comment", "pull"]);
            let (from, mark) =
                if pull.is_empty() { ("this machine".to_owned(), "") } else { (format!("#{pull}"), "/") };
            let word = match text(entry, &["what", "word"]) {
                word if word.is_empty() => text(entry, &["what", "verb"]),
                word => word,
            };
            vec![
                ago(entry, "given"),
                text(entry, &["repository"]),
                format!("{mark}{}", word.replace('_', "-")),
                text(entry, &["by"]),
                from,
                print::plain(&client.sentence(json!({ "say": "outcome", "entry": entry }))),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_audit" })));
    }
    table(&["WHEN", "REPOSITORY", "WHAT", "BY", "FROM", "WHAT CAME OF IT"], &rows)
}

pub async fn diff(client: &Client, pipeline: Option<&str>) -> Result<(), Failed> {
    let path = show::pipeline_path(client, pipeline).await?;
    let answer = client.get(&format!("{path}/diff")).await?;
    if client.json {
        return print_json(&answer);
    }
    let further = list(&answer, "further");
    for waiting in std::iter::once(&answer).chain(further) {
        if !further.is_empty() {
            line(&format!("{}:", text(waiting, &["app"])))?;
        }
        one_diff(client, waiting)?;
    }
    Ok(())
}

fn one_diff(client: &Client, answer: &Value) -> Result<(), Failed> {
    let (from, to) = (short(&text(answer, &["from"])), short(&text(answer, &["to"])));
    line(&client.sentence(json!({ "say": "diff", "from": from, "to": to, "commits": answer.get("commits") })))?;
    let rows: Vec<Vec<String>> = list(answer, "pulls")
        .iter()
        .map(|pull| {
            vec![
                format!("#{}", text(pull, &["number"])),
                print::plain(&text(pull, &["title"])),
                print::plain(&text(pull, &["author"])),
            ]
        })
        .collect();
    if !rows.is_empty() {
        table(&["PULL REQUEST", "TITLE", "BY"], &rows)?;
    }
    match answer.get("refusal") {
        None | Some(Value::Null) => Ok(()),
        Some(reason) => line(&client.sentence(json!({ "say": "refused", "reason": reason }))),
    }
}

pub async fn order(client: &Client, pipeline: &str, command: &str, pull: Option<u64>) -> Result<(), Failed> {
    let path = show::pipeline_path(client, Some(pipeline)).await?;
    let answer = client.post(&format!("{path}/orders/command"), json!({ "command": command, "pull": pull })).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "given", "answer": answer.get("answer") })))
}

/// The rules of the dashboard as they are, or from a file from now on.
pub async fn rules(client: &Client, pipeline: &str, set: Option<&std::path::Path>) -> Result<(), Failed> {
    let path = show::pipeline_path(client, Some(pipeline)).await?;
    let Some(file) = set else {
        let answer = client.get(&path).await?;
        if client.json {
            return print_json(&answer["rules"]);
        }
        return line(text(&answer, &["rules", "dashboard", "text"]).trim_end());
    };
    let read = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let rules = read.map_err(|error| {
        client.failed(json!({ "say": "unreadable", "file": file.display().to_string(), "detail": error.to_string() }))
    })?;
    let answer = client.post(&format!("{path}/orders/rules"), json!({ "rules": rules })).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "rules_set" })))
}
