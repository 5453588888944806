//! The commands about numbers, alerts and drains.

use super::Failed;
use super::client::Client;
use super::print::{ago, json as print_json, line, list, table, text};
use crate::domain::AppName;
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub enum Drains {
    /// List where log lines are sent, and what became of them
    List,
    /// Send log lines to an address: syslog://HOST:PORT, syslog+tls://HOST:PORT or https://…
    Add {
        address: String,
        /// One app's lines; everybody's unless given
        #[arg(long)]
        app: Option<AppName>,
    },
    /// Send no more log lines there
    Remove { id: String },
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("change").multiple(true))]
pub struct Access {
    #[arg(required_unless_present = "repository", conflicts_with = "repository")]
    app: Option<AppName>,
    /// All review apps of a pipeline: OWNER/NAME
    #[arg(long, value_name = "REPOSITORY", requires = "change")]
    repository: Option<String>,
    /// `policy` takes away what was set
    #[arg(long, group = "change", value_parser = ["public", "password", "github", "policy"])]
    mode: Option<String>,
    /// Make another password; who came in with the old one is out
    #[arg(long, group = "change")]
    rotate: bool,
}

pub async fn access(client: &Client, order: &Access) -> Result<(), Failed> {
    let change = json!({ "mode": order.mode, "rotate": order.rotate });
    let answer = match (&order.app, &order.repository) {
        (Some(app), _) if order.mode.is_some() || order.rotate => {
            client.post(&format!("/api/v1/apps/{app}/access/change"), change).await?
        }
        (Some(app), _) => client.get(&format!("/api/v1/apps/{app}/access")).await?,
        (None, repository) => {
            let path = super::show::pipeline_path(client, repository.as_deref()).await?;
            client.post(&format!("{path}/access/change"), change).await?
        }
    };
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "access", "access": answer })))
}

pub async fn alerts(client: &Client) -> Result<(), Failed> {
    let answer = client.get("/api/v1/alerts").await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "alerts")
        .iter()
        .map(|alert| {
            vec![
                text(alert, &["app"]),
                text(alert, &["kind"]).replace('_', " "),
                text(alert, &["state"]),
                ago(alert, "since"),
                text(alert, &["what"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_alerts" })));
    }
    table(&["APP", "ALERT", "STATE", "SINCE", "WHAT WAS SEEN"], &rows)
}

pub async fn metrics(client: &Client, app: &AppName, range: &str) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/apps/{app}/metrics?range={range}")).await?;
    if client.json {
        return print_json(&answer);
    }
    let millis = |slot: &Value, name: &str| {
        slot.get(name).and_then(Value::as_f64).map(|millis| format!("{millis:.0} ms")).unwrap_or_default()
    };
    let sum = |slot: &Value, name: &str| {
        let all = slot.get(name).and_then(Value::as_object).into_iter().flat_map(|map| map.values());
        all.filter_map(Value::as_u64).sum::<u64>()
    };
    let rows: Vec<Vec<String>> = list(&answer, "slots")
        .iter()
        .map(|slot| {
            let codes = slot.get("codes").and_then(Value::as_object).into_iter().flatten();
            let codes: Vec<String> = codes.map(|(code, count)| format!("{code}×{count}")).collect();
            let memory = sum(slot, "memory_bytes");
            vec![
                text(slot, &["at"]),
                text(slot, &["requests"]),
                text(slot, &["s5xx"]),
                millis(slot, "p50_ms"),
                millis(slot, "p95_ms"),
                millis(slot, "p99_ms"),
                if memory == 0 { String::new() } else { crate::text::size(memory) },
                format!("{:.1} s", sum(slot, "cpu_millis") as f64 / 1000.0),
                codes.join(" "),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_metrics", "app": app })));
    }
    table(&["FROM", "REQUESTS", "ERRORS", "P50", "P95", "P99", "MEMORY", "CPU", "CODES"], &rows)
}

pub async fn drains(client: &Client, order: &Drains) -> Result<(), Failed> {
    match order {
        Drains::List => list_drains(client).await,
        Drains::Add { address, app } => {
            let answer = client.post("/api/v1/drains/add", json!({ "url": address, "app": app })).await?;
            if client.json {
                return print_json(&answer);
            }
            line(&client.sentence(json!({ "say": "drain_added", "id": answer.get("id") })))
        }
        Drains::Remove { id } => {
            if !id.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter)) {
                return Err(client.failed(json!({ "say": "not_found", "what": "drain", "name": id })));
            }
            let answer = client.post(&format!("/api/v1/drains/{id}/remove"), json!({})).await?;
            if client.json {
                return print_json(&answer);
            }
            line(&client.sentence(json!({ "say": "drain_removed", "id": id })))
        }
    }
}

async fn list_drains(client: &Client) -> Result<(), Failed> {
    let answer = client.get("/api/v1/drains").await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "drains")
        .iter()
        .map(|drain| {
            let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
            vec![
                text(drain, &["id"]),
                or(text(drain, &["app"]), "all"),
                or(text(drain, &["address"]), "(from the configuration)"),
                text(drain, &["figures", "sent"]),
                text(drain, &["figures", "waiting"]),
                text(drain, &["figures", "dropped"]),
                text(drain, &["figures", "trouble"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_drains" })));
    }
    table(&["ID", "APP", "ADDRESS", "SENT", "WAITING", "DROPPED", "TROUBLE"], &rows)
}
