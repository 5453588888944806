//! The commands that show what the control plane knows, and those that give it orders.

use super::Failed;
use super::client::Client;
use super::print::{self, ago, json as print_json, line, list, release, short, span, table, text};
use crate::domain::{AppName, ReleaseNumber};
use serde_json::{Value, json};
use std::time::Duration;

/// How often a log is asked for what is new.
const FOLLOW: Duration = Duration::from_millis(500);
/// How often a control plane is asked in vain that somebody waits for: for five minutes.
const PATIENCE: u32 = 600;
/// Of a moment as it is written, up to the second.
const SECONDS: usize = "2026-11-22T23:19:37".len();
/// Lines that one answer holds.
const AT_A_TIME: usize = 2_000;

pub async fn apps(client: &Client) -> Result<(), Failed> {
    let answer = client.get("/api/v1/apps").await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "apps")
        .iter()
        .map(|app| {
            vec![
                text(app, &["name"]),
                text(app, &["stage"]),
                words(&text(app, &["state"])),
                release(&text(app, &["live", "release"])),
                short(&text(app, &["newest", "commit"])),
                ago(app.get("newest").unwrap_or(&Value::Null), "asked"),
                text(app, &["url"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_apps" })));
    }
    table(&["APP", "STAGE", "STATE", "LIVE", "NEWEST", "ASKED", "URL"], &rows)
}

/// `release_phase` as people write it.
fn words(name: &str) -> String {
    name.replace('_', " ")
}

pub async fn processes(client: &Client, app: Option<&AppName>) -> Result<(), Failed> {
    let names: Vec<String> = match app {
        Some(app) => vec![app.to_string()],
        None => list(&client.get("/api/v1/apps").await?, "apps").iter().map(|app| text(app, &["name"])).collect(),
    };
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for name in names {
        let answer = client.get(&format!("/api/v1/apps/{name}/processes")).await?;
        for process in list(&answer, "processes") {
            let target = match text(process, &["target", "state"]).as_str() {
                "active" if text(process, &["target", "healthy"]) == "true" => "serving".to_owned(),
                "active" => "unhealthy".to_owned(),
                other => other.to_owned(),
            };
            rows.push(vec![
                name.clone(),
                text(process, &["name"]),
                text(process, &["state"]),
                release(&text(process, &["release"])),
                ago(process, "since"),
                process.get("memory_bytes").and_then(Value::as_u64).map(crate::text::size).unwrap_or_default(),
                span(process, "cpu_millis"),
                target,
                text(process, &["command"]),
            ]);
        }
        all.push(json!({ "app": name, "processes": answer.get("processes") }));
    }
    if client.json {
        return print_json(&json!({ "apps": all }));
    }
    if rows.is_empty() {
        let of = app.map_or_else(String::new, AppName::to_string);
        let say = if app.is_some() { "no_processes" } else { "no_apps" };
        return line(&client.sentence(json!({ "say": say, "app": of })));
    }
    table(&["APP", "PROCESS", "STATE", "RELEASE", "SINCE", "MEMORY", "CPU", "TRAFFIC", "COMMAND"], &rows)
}

pub async fn restart(client: &Client, app: &AppName, process: Option<&str>) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/apps/{app}/restart"), json!({ "process": process })).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "restarted", "app": app, "processes": answer.get("restarted") })))
}

pub async fn logs(client: &Client, app: &AppName, tail: bool, lines: usize) -> Result<(), Failed> {
    let path = format!("/api/v1/apps/{app}/logs");
    follow(client, &path, tail, Begin::Last(lines)).await
}

pub async fn node_log(client: &Client, run: u64, node: u16) -> Result<(), Failed> {
    follow(client, &format!("/api/v1/runs/{run}/nodes/{node}/logs"), false, Begin::Start).await
}

/// Where a reader of a log begins.
pub(super) enum Begin {
    /// With the first line that is kept.
    Start,
    /// So many lines before now.
    Last(usize),
}

pub(super) async fn follow(client: &Client, path: &str, tail: bool, begin: Begin) -> Result<(), Failed> {
    each_line(client, path, tail, begin, |entry| print_line(client, entry)).await
}

/// Hands over each line that is there now, and with `tail` those that follow.
pub(super) async fn each_line(
    client: &Client,
    path: &str,
    tail: bool,
    begin: Begin,
    mut take: impl FnMut(&Value) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let began = crate::clock::Clock::System.now().rfc3339();
    let (from, whole) = match begin {
        Begin::Start => (format!("after=start&lines={AT_A_TIME}"), true),
        Begin::Last(lines) => (format!("lines={lines}"), false),
    };
    let mut page = client.get(&format!("{path}?{from}")).await?;
    // Who asks for the last lines knows that there are others.
    let mut wanted = whole;
    loop {
        if wanted {
            tell_of_dropped(client, &page);
        }
        let lines = list(&page, "lines");
        lines.iter().try_for_each(&mut take)?;
        let over = page.get("ended") == Some(&Value::Bool(true));
        // What is printed after this was begun is for who wants what follows.
        let is_newer = |entry: &Value| text(entry, &["at"]).get(..SECONDS) > began.get(..SECONDS);
        if over || (!tail && (!whole || lines.last().is_none_or(is_newer))) {
            return Ok(());
        }
        if tail && lines.len() < AT_A_TIME {
            tokio::time::sleep(FOLLOW).await;
        }
        wanted = true;
        page = patiently(client, &format!("{path}?after={}&lines={AT_A_TIME}", text(&page, &["next"]))).await?;
    }
}

pub(super) fn tell_of_dropped(client: &Client, page: &Value) {
    if let Some(lines) = page.get("dropped").and_then(Value::as_u64).filter(|lines| *lines > 0) {
        eprintln!("landfall: {}", client.sentence(json!({ "say": "lines_dropped", "lines": lines })));
    }
}

/// Asks until the control plane answers, which may be started anew while somebody waits: what was ordered goes on, and
/// a cursor holds. One that stays away is not waited for any longer after some minutes.
pub(super) async fn patiently(client: &Client, path: &str) -> Result<Value, Failed> {
    let mut in_vain = 0;
    loop {
        match client.ask(reqwest::Method::GET, path, None).await {
            Ok(Some(answer)) if answer.status == 200 => return Ok(answer.body),
            Ok(Some(answer)) if answer.status < 500 => {
                return Err(Failed::Said(print::plain(&text(&answer.body, &["error"]))));
            }
            _ if in_vain >= PATIENCE => {
                return Err(client.failed(json!({ "say": "no_server", "url": client.url() })));
            }
            _ if in_vain == 0 => {
                eprintln!("landfall: {}", client.sentence(json!({ "say": "no_server", "url": client.url() })));
            }
            _ => {}
        }
        in_vain += 1;
        tokio::time::sleep(FOLLOW).await;
    }
}

/// `2026-11-22T23:19:37.250Z app[web.1]: listening`, in Heroku's form.
pub(super) fn print_line(client: &Client, entry: &Value) -> Result<(), Failed> {
    if client.json {
        return line(&entry.to_string());
    }
    let process = text(entry, &["process"]);
    let source = if process == "router" || text(entry, &["stream"]) == "system" { "landfall" } else { "app" };
    line(&format!("{} {source}[{process}]: {}", text(entry, &["at"]), print::log_text(&text(entry, &["text"]))))
}

pub async fn releases(client: &Client, app: &AppName) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/apps/{app}/releases")).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "releases")
        .iter()
        .map(|entry| {
            let cause = match text(entry, &["cause", "kind"]).as_str() {
                "promotion" => {
                    format!("promoted from {} v{}", text(entry, &["cause", "from"]), text(entry, &["cause", "release"]))
                }
                "rollback" => {
                    let guard = text(entry, &["cause", "guard"]);
                    let why = if guard.is_empty() { String::new() } else { format!(" since v{guard} was found worse") };
                    format!("rolled back to v{}{why}", text(entry, &["cause", "to"]))
                }
                "config" => {
                    let names = list(entry.get("cause").unwrap_or(&Value::Null), "names").iter();
                    format!("set {}", names.filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
                }
                "retry" => format!("deploy {} once more", text(entry, &["cause", "deploy"])),
                _ => "pushed".to_owned(),
            };
            let state = if text(entry, &["live"]) == "true" { "live".to_owned() } else { text(entry, &["phase"]) };
            vec![
                release(&text(entry, &["number"])),
                state,
                short(&text(entry, &["commit"])),
                text(entry, &["branch"]),
                cause,
                text(entry, &["by"]),
                ago(entry, "made"),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_releases", "app": app })));
    }
    table(&["RELEASE", "STATE", "COMMIT", "BRANCH", "CAUSE", "BY", "MADE"], &rows)
}

pub async fn roll_back(client: &Client, app: &AppName, to: Option<ReleaseNumber>) -> Result<(), Failed> {
    let body = json!({ "to": to.map(|release| release.to_string()) });
    let answer = client.post(&format!("/api/v1/apps/{app}/rollback"), body).await?;
    ordered(client, &answer)
}

/// The address of a pipeline: the one that is named, or the only one.
pub async fn pipeline_path(client: &Client, pipeline: Option<&str>) -> Result<String, Failed> {
    let name = match pipeline {
        Some(name) => name.to_owned(),
        None => {
            let answer = client.get("/api/v1/pipelines").await?;
            let names: Vec<String> =
                list(&answer, "pipelines").iter().map(|pipeline| text(pipeline, &["full_name"])).collect();
            match names.as_slice() {
                [] => return Err(client.failed(json!({ "say": "no_pipelines" }))),
                [only] => only.clone(),
                several => return Err(client.failed(json!({ "say": "name_a_pipeline", "names": several }))),
            }
        }
    };
    let plain = |part: &str| {
        !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
    };
    match name.split_once('/') {
        Some((owner, name)) if plain(owner) && plain(name) => Ok(format!("/api/v1/pipelines/{owner}/{name}")),
        _ => Err(client.failed(json!({ "say": "not_found", "what": "pipeline", "name": name }))),
    }
}

pub async fn promote(
    client: &Client,
    pipeline: Option<&str>,
    hotfix: Option<&str>,
    to: Option<&str>,
) -> Result<(), Failed> {
    let path = format!("{}/promote", pipeline_path(client, pipeline).await?);
    let answer = client.post(&path, json!({ "hotfix": hotfix, "app": to })).await?;
    ordered(client, &answer)
}

pub(super) fn ordered(client: &Client, answer: &Value) -> Result<(), Failed> {
    if client.json {
        return print_json(answer);
    }
    let app = text(answer, &["app"]);
    let page = format!("{}/apps/{app}", client.url());
    line(&client.sentence(json!({ "say": "ordered", "app": app, "page": page })))?;
    for note in list(answer, "notes") {
        line(&client.sentence(json!({ "say": "note", "note": note })))?;
    }
    Ok(())
}

pub async fn runs(client: &Client, repository: Option<&str>) -> Result<(), Failed> {
    let path = match repository {
        Some(name) if name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-/".contains(letter)) => {
            format!("/api/v1/runs?repository={name}")
        }
        Some(name) => return Err(client.failed(json!({ "say": "not_found", "what": "pipeline", "name": name }))),
        None => "/api/v1/runs".to_owned(),
    };
    let answer = client.get(&path).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "runs")
        .iter()
        .map(|run| {
            vec![
                text(run, &["number"]),
                text(run, &["state"]),
                text(run, &["repository"]),
                text(run, &["branch"]),
                short(&text(run, &["commit"])),
                text(run, &["nodes"]),
                counts(run),
                span(run, "milliseconds"),
                ago(run, "created"),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_runs" })));
    }
    table(&["RUN", "STATE", "REPOSITORY", "BRANCH", "COMMIT", "NODES", "TESTS", "TIME", "ASKED"], &rows)
}

fn counts(value: &Value) -> String {
    let number = |name: &str| value.get("counts").and_then(|counts| counts.get(name)).and_then(Value::as_u64);
    let mut parts = Vec::new();
    for name in ["failed", "passed", "skipped"] {
        if let Some(count) = number(name).filter(|count| *count > 0) {
            parts.push(format!("{count} {name}"));
        }
    }
    parts.join(", ")
}

pub async fn run(client: &Client, number: u64) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/runs/{number}")).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&format!(
        "run {number} of {} ({}): {}, {} {}",
        print::plain(&text(&answer, &["repository"])),
        print::plain(&text(&answer, &["branch"])),
        text(&answer, &["state"]),
        short(&text(&answer, &["commit"])),
        counts(&answer),
    ))?;
    let rows: Vec<Vec<String>> = list(&answer, "lanes")
        .iter()
        .map(|node| {
            vec![text(node, &["node"]), words(&text(node, &["state"])), span(node, "milliseconds"), counts(node)]
        })
        .collect();
    if !rows.is_empty() {
        table(&["NODE", "STATE", "TIME", "TESTS"], &rows)?;
    }
    if !answer["split"].is_null() && answer["over"] == true {
        line(&client.sentence(json!({ "say": "split", "split": answer["split"], "nodes": answer["nodes"] })))?;
        for file in list(&answer["split"], "red_files") {
            line(&client.sentence(json!({ "say": "red_file", "file": file })))?;
        }
        for path in list(&answer["split"], "flaky_files") {
            line(&client.sentence(json!({ "say": "flaky_file", "path": path })))?;
        }
    }
    if !answer["verdict"]["failure"].is_null() {
        line(&client.sentence(json!({ "say": "failure", "failure": answer["verdict"]["failure"] })))?;
    }
    for node in list(&answer, "lanes") {
        for failure in list(node, "failures") {
            line(&format!("node {} failed: {}", text(node, &["node"]), print::plain(&text(failure, &["name"]))))?;
        }
    }
    Ok(())
}

pub async fn flaky(client: &Client, repository: &str) -> Result<(), Failed> {
    let answer = client.get(&format!("/api/v1/pipelines/{repository}/flaky")).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "tests")
        .iter()
        .map(|test| {
            let name = print::plain(&text(test, &["name"]));
            vec![name, text(test, &["times"]), text(test, &["quarantined"]), text(test, &["last"])]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_flaky" })));
    }
    table(&["TEST", "FLAKY", "QUARANTINED", "LAST RUN"], &rows)
}

pub async fn rerun(client: &Client, number: u64, failed: bool) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/runs/{number}/rerun"), json!({ "failed": failed })).await?;
    if client.json {
        return print_json(&answer);
    }
    let run = text(&answer, &["run"]);
    let page = format!("{}/runs/{run}", client.url());
    line(&client.sentence(json!({ "say": "rerun", "run": run, "page": page })))
}

/// Does again what a node did: its output as it comes, then the verdict. Fails where that is not a pass.
pub async fn repro(client: &Client, run: u64, node: u16) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/runs/{run}/nodes/{node}/repro"), json!({})).await?;
    let number = text(&answer, &["run"]);
    let page = format!("{}/runs/{number}", client.url());
    if !client.json {
        line(&client.sentence(json!({ "say": "rerun", "run": number, "page": page })))?;
    }
    follow(client, &format!("/api/v1/runs/{number}/nodes/0/logs"), true, Begin::Start).await?;
    loop {
        let answer = patiently(client, &format!("/api/v1/runs/{number}")).await?;
        if answer["verdict"].is_null() {
            tokio::time::sleep(FOLLOW).await;
            continue;
        }
        if !client.json {
            let number = number.parse().unwrap_or_default();
            self::run(client, number).await?;
        }
        return if text(&answer, &["verdict", "kind"]) == "passed" { Ok(()) } else { Err(Failed::Found) };
    }
}

pub async fn cancel(client: &Client, number: u64) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/runs/{number}/cancel"), json!({})).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "cancelled", "run": number })))
}

pub async fn pipelines(client: &Client) -> Result<(), Failed> {
    let answer = client.get("/api/v1/pipelines").await?;
    if client.json {
        return print_json(&answer);
    }
    let stage = |app: &Value| {
        let name = text(app, &["name"]);
        if name.is_empty() {
            return "-".to_owned();
        }
        let live = release(&text(app, &["live", "release"]));
        let commit = short(&text(app, &["live", "commit"]));
        [words(&text(app, &["state"])), live, commit]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let rows: Vec<Vec<String>> = list(&answer, "pipelines")
        .iter()
        .map(|pipeline| {
            let promotable = pipeline.get("promotion").and_then(|promotion| promotion.get("possible"));
            vec![
                text(pipeline, &["full_name"]),
                list(pipeline, "review").len().to_string(),
                stage(pipeline.get("staging").unwrap_or(&Value::Null)),
                stage(pipeline.get("production").unwrap_or(&Value::Null)),
                if promotable == Some(&Value::Bool(true)) { "yes".to_owned() } else { "no".to_owned() },
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_pipelines" })));
    }
    table(&["PIPELINE", "REVIEW", "STAGING", "PRODUCTION", "TO PROMOTE"], &rows)
}

pub async fn deliveries(client: &Client, most: usize, only: &str) -> Result<(), Failed> {
    let answer = listed_deliveries(client, most, only).await?;
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "deliveries")
        .iter()
        .map(|delivery| {
            let action = text(delivery, &["action"]);
            let event = text(delivery, &["event"]);
            vec![
                text(delivery, &["id"]),
                if action.is_empty() { event } else { format!("{event}.{action}") },
                text(delivery, &["repository"]),
                ago(delivery, "received"),
                text(delivery, &["state", "kind"]),
                decided(delivery),
            ]
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_deliveries", "only": only })));
    }
    table(&["DELIVERY", "EVENT", "REPOSITORY", "CAME", "STATE", "DECIDED"], &rows)
}

/// One answer holds so many, and looks at so many for those that are wanted: the others are asked for.
async fn listed_deliveries(client: &Client, most: usize, only: &str) -> Result<Value, Failed> {
    let mut answer = client.get(&format!("/api/v1/deliveries?limit={most}&only={only}")).await?;
    loop {
        let (next, found) = (text(&answer, &["next"]), list(&answer, "deliveries").len());
        if next.is_empty() || found >= most {
            return Ok(answer);
        }
        let path = format!("/api/v1/deliveries?limit={}&only={only}&after={next}", most - found);
        let mut page = client.get(&path).await?;
        answer["next"] = page["next"].take();
        if let (Some(all), Some(more)) = (answer["deliveries"].as_array_mut(), page["deliveries"].as_array_mut()) {
            all.append(more);
        }
    }
}

fn decided(delivery: &Value) -> String {
    let state = delivery.get("state").unwrap_or(&Value::Null);
    let decisions: Vec<&str> = list(state, "decisions").iter().filter_map(Value::as_str).collect();
    match (decisions.is_empty(), text(state, &["why"])) {
        (false, _) => decisions.join(", "),
        (true, why) if !why.is_empty() => words(&why),
        (true, _) => text(state, &["error"]),
    }
}

pub async fn delivery(client: &Client, id: &str) -> Result<(), Failed> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if id.is_empty() || !id.chars().all(plain) {
        return Err(client.failed(json!({ "say": "not_found", "what": "delivery", "name": print::plain(id) })));
    }
    let answer = client.get(&format!("/api/v1/deliveries/{id}")).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&format!(
        "{} {} {}",
        text(&answer, &["event"]),
        text(&answer, &["action"]),
        text(&answer, &["state", "kind"])
    ))?;
    line(&print::plain(&decided(&answer)))?;
    for payload_line in text(&answer, &["payload"]).lines() {
        line(&crate::web::ansi::visible(payload_line))?;
    }
    Ok(())
}

pub async fn replay(client: &Client, id: Option<&str>) -> Result<(), Failed> {
    let path = match id {
        Some(id) if id.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_')) => {
            format!("/api/v1/deliveries/{id}/replay")
        }
        Some(id) => {
            return Err(client.failed(json!({ "say": "not_found", "what": "delivery", "name": print::plain(id) })));
        }
        None => "/api/v1/deliveries/replay".to_owned(),
    };
    let answer = client.post(&path, json!({})).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "replayed", "keys": answer.get("replayed") })))
}

#[cfg(test)]
mod tests {
    use super::super::client::answering;
    use super::*;

    #[tokio::test]
    async fn as_many_deliveries_are_listed_as_were_asked_for() {
        let page = |ids: &[&str], next: Option<&str>| {
            let deliveries: Vec<Value> = ids.iter().map(|id| json!({ "id": id })).collect();
            (200, json!({ "deliveries": deliveries, "next": next, "parked": 0 }))
        };
        let (client, asked) =
            answering(vec![page(&["a"], Some("x")), page(&[], Some("y")), page(&["b", "c"], Some("c"))]);
        let answer = listed_deliveries(&client, 3, "open").await.unwrap();
        assert_eq!(answer, page(&["a", "b", "c"], Some("c")).1);
        let looks = ["limit=3&only=open", "limit=2&only=open&after=x", "limit=2&only=open&after=y"];
        assert_eq!(asked.join().unwrap(), looks.map(|query| format!("GET /api/v1/deliveries?{query}")));
    }

    #[tokio::test]
    async fn a_whole_log_is_read_from_its_first_line_to_its_end() {
        let page = |text: &str, next: &str| json!({ "lines": [{ "text": text }], "next": next, "ended": false });
        let (client, asked) = answering(vec![
            (200, page("first", "a")),
            (200, page("second", "b")),
            (502, json!({})),
            (200, json!({ "lines": [{ "text": "last" }], "next": "c", "ended": true })),
        ]);
        let mut read = Vec::new();
        let take = |entry: &Value| {
            read.push(text(entry, &["text"]));
            Ok(())
        };
        each_line(&client, "/log", false, Begin::Start, take).await.unwrap();
        assert_eq!(read, ["first", "second", "last"]);
        let looks = ["start", "a", "b", "b"].map(|cursor| format!("GET /log?after={cursor}&lines=2000"));
        assert_eq!(asked.join().unwrap(), looks);

        // Who wants the last lines gets one answer.
        let (client, asked) = answering(vec![(200, page("last", "a"))]);
        follow(&client, "/log", false, Begin::Last(1)).await.unwrap();
        assert_eq!(asked.join().unwrap(), ["GET /log?lines=1"]);
    }
}
