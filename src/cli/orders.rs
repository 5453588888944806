//! The commands that change one app: config vars, formation, one-off processes, another try. A value that is read from
//! standard input is on no command line, so no list of processes shows it.

use super::Failed;
use super::client::Client;
use super::print::{self, json as print_json, line, list, table, text};
use super::show;
use crate::domain::{AppName, ConfigStage};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

/// How often a one-off process is asked for what it printed.
const FOLLOW: Duration = Duration::from_millis(200);

/// Whose config vars: an app's own, or those of a stage.
#[derive(Args)]
pub struct Whose {
    /// OWNER/NAME: the vars of a whole stage, with --stage
    #[arg(long, value_name = "OWNER/NAME", requires = "stage")]
    repository: Option<String>,
    /// review, staging, production or test
    #[arg(long, value_name = "STAGE", requires = "repository")]
    stage: Option<ConfigStage>,
    /// The app (unless --repository is given), then NAME or NAME=VALUE
    #[arg(value_name = "APP|NAME")]
    words: Vec<String>,
}

#[derive(Subcommand)]
pub enum Config {
    /// List the vars: names, and who says so
    List {
        #[command(flatten)]
        whose: Whose,
        /// Print the values too
        #[arg(long)]
        reveal: bool,
    },
    /// Print one value
    Get {
        #[command(flatten)]
        whose: Whose,
    },
    /// Set NAME=VALUE …; the value of a bare NAME is read from standard input, and `-` reads lines of NAME=VALUE
    Set {
        #[command(flatten)]
        whose: Whose,
        /// The review (or test) var of each NAME is the one of this stage
        #[arg(long, value_name = "STAGE")]
        from: Option<ConfigStage>,
    },
    /// Take vars away
    Unset {
        #[command(flatten)]
        whose: Whose,
    },
    /// Make a new key, and seal every value with it
    RotateKey,
}

#[derive(Args)]
pub struct Run {
    app: AppName,
    /// The dyno size to run with
    #[arg(long)]
    size: Option<String>,
    /// End it after so many seconds
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// One word is a line for a shell; several words are a program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Whose {
    /// The API's path, and the words that are left.
    fn resolve(&self, client: &Client) -> Result<(String, &[String]), Failed> {
        let plain = |part: &str| {
            !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
        };
        match (&self.repository, self.stage) {
            (Some(repository), Some(stage)) => match repository.split_once('/') {
                Some((owner, name)) if plain(owner) && plain(name) => {
                    Ok((format!("/api/v1/pipelines/{owner}/{name}/config/{stage}"), &self.words))
                }
                _ => Err(client.failed(json!({ "say": "not_found", "what": "pipeline", "name": repository }))),
            },
            _ => {
                let Some((app, rest)) = self.words.split_first() else {
                    return Err(client.failed(json!({ "say": "name_an_app" })));
                };
                let app: AppName = app.parse().map_err(|_| {
                    client.failed(json!({ "say": "not_found", "what": "app", "name": print::plain(app) }))
                })?;
                Ok((format!("/api/v1/apps/{app}/config"), rest))
            }
        }
    }
}

pub async fn config(client: &Client, command: &Config) -> Result<(), Failed> {
    match command {
        Config::List { whose, reveal } => {
            let (path, _) = whose.resolve(client)?;
            let answer = client.get(&format!("{path}?reveal={reveal}")).await?;
            list_config(client, &answer, *reveal)
        }
        Config::Get { whose } => {
            let (path, names) = whose.resolve(client)?;
            let [name] = names else { return Err(client.failed(json!({ "say": "name_one_var" }))) };
            let answer = client.get(&format!("{path}?reveal=true")).await?;
            let found = list(&answer, "vars").iter().find(|var| text(var, &["name"]) == *name);
            match found.and_then(|var| var.get("value")).and_then(Value::as_str) {
                // The value as it is: somebody may want to use it.
                Some(value) => line(value),
                None => Err(client.failed(json!({ "say": "no_such_var", "name": print::plain(name) }))),
            }
        }
        Config::Set { whose, from } => {
            let (path, words) = whose.resolve(client)?;
            let edit = match from {
                Some(stage) => {
                    let take: Map<String, Value> =
                        words.iter().map(|name| (name.clone(), json!(stage.word()))).collect();
                    json!({ "take": take })
                }
                None => json!({ "set": values(client, words)? }),
            };
            changed(client, &client.post(&format!("{path}/change"), edit).await?)
        }
        Config::Unset { whose } => {
            let (path, names) = whose.resolve(client)?;
            changed(client, &client.post(&format!("{path}/change"), json!({ "unset": names })).await?)
        }
        Config::RotateKey => {
            let answer = client.post("/api/v1/rotate-key", json!({})).await?;
            if client.json {
                return print_json(&answer);
            }
            line(&client.sentence(json!({ "say": "rotated", "answer": answer })))
        }
    }
}

/// `NAME=VALUE`, a bare `NAME` whose value is read, or `-` for lines of `NAME=VALUE`.
fn values(client: &Client, words: &[String]) -> Result<Map<String, Value>, Failed> {
    let mut values = Map::new();
    let bare = words.iter().filter(|word| !word.contains('=')).count();
    for word in words {
        if let Some((name, value)) = word.split_once('=') {
            values.insert(name.to_owned(), json!(value));
            continue;
        }
        if bare > 1 {
            return Err(client.failed(json!({ "say": "one_value_from_stdin" })));
        }
        let mut input = String::new();
        if std::io::stdin().is_terminal() {
            eprintln!("landfall: {}", client.sentence(json!({ "say": "type_the_value" })));
        }
        std::io::stdin().read_to_string(&mut input)?;
        if word == "-" {
            for entry in input.lines().map(str::trim).filter(|entry| !entry.is_empty() && !entry.starts_with('#')) {
                let Some((name, value)) = entry.split_once('=') else {
                    return Err(client.failed(json!({ "say": "not_name_value" })));
                };
                values.insert(name.trim().to_owned(), json!(unquoted(value)));
            }
        } else {
            // The line break that `echo` or a terminal ends with is no part of the value.
            let value = input.strip_suffix('\n').unwrap_or(&input);
            values.insert(word.clone(), json!(value));
        }
    }
    Ok(values)
}

fn unquoted(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

fn list_config(client: &Client, answer: &Value, reveal: bool) -> Result<(), Failed> {
    if client.json {
        return print_json(answer);
    }
    let rows: Vec<Vec<String>> = list(answer, "vars")
        .iter()
        .map(|var| {
            let level = text(var, &["level"]);
            let level = if text(var, &["taken"]) == "true" { format!("from {level}") } else { level };
            let mut row = vec![text(var, &["name"]), level];
            if reveal {
                row.push(text(var, &["value"]));
            }
            row
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_vars" })));
    }
    table(if reveal { &["NAME", "SET BY", "VALUE"] } else { &["NAME", "SET BY"] }, &rows)
}

fn changed(client: &Client, answer: &Value) -> Result<(), Failed> {
    if client.json {
        return print_json(answer);
    }
    line(&client.sentence(json!({ "say": "config_changed", "answer": answer })))
}

pub async fn scale(client: &Client, app: &AppName, words: &[String]) -> Result<(), Failed> {
    let answer = if words.is_empty() {
        client.get(&format!("/api/v1/apps/{app}/formation")).await?
    } else {
        client.post(&format!("/api/v1/apps/{app}/scale"), json!({ "scale": words })).await?
    };
    if client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = list(&answer, "formation")
        .iter()
        .map(|entry| {
            ["type", "quantity", "size", "memory_mb", "cpu_millis", "command"].map(|field| text(entry, &[field])).into()
        })
        .collect();
    if rows.is_empty() {
        return line(&client.sentence(json!({ "say": "no_releases", "app": app })));
    }
    table(&["TYPE", "QUANTITY", "SIZE", "MEMORY MB", "CPU MILLIS", "COMMAND"], &rows)
}

pub async fn retry(client: &Client, app: &AppName) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/apps/{app}/retry"), json!({})).await?;
    show::ordered(client, &answer)
}

pub async fn maintenance(client: &Client, app: &AppName, on: bool) -> Result<(), Failed> {
    let answer = client.post(&format!("/api/v1/apps/{app}/maintenance"), json!({ "on": on })).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "maintenance", "app": app, "on": on })))
}

pub async fn destroy(client: &Client, app: &AppName, confirm: Option<&str>) -> Result<(), Failed> {
    if confirm != Some(app.as_str()) {
        return Err(client.failed(json!({ "say": "confirm", "app": app })));
    }
    let answer = client.post(&format!("/api/v1/apps/{app}/destroy"), json!({ "confirm": confirm })).await?;
    if client.json {
        return print_json(&answer);
    }
    line(&client.sentence(json!({ "say": "destroyed", "app": app })))
}

/// Prints what the command prints until it ends, and ends as it did. Ctrl-C ends it too.
pub async fn run(client: &Client, run: &Run) -> Result<(), Failed> {
    // From now on, so that nothing is begun that Ctrl-C would leave behind.
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let order = json!({ "command": command_line(&run.command), "size": run.size, "time_limit": run.time_limit });
    let answer = client.post(&format!("/api/v1/apps/{}/run", run.app), order).await?;
    let path = format!("/api/v1/apps/{}/one-offs/{}", run.app, text(&answer, &["number"]));
    let (mut next, mut wait) = (String::new(), Duration::ZERO);
    loop {
        let look = async {
            tokio::time::sleep(wait).await;
            show::patiently(client, &format!("{path}?after={next}")).await
        };
        let page = tokio::select! {
            page = look => page?,
            Some(()) = interrupt.recv() => {
                stop(client, &path).await?;
                continue;
            }
        };
        wait = FOLLOW;
        show::tell_of_dropped(client, &page);
        for entry in list(&page, "lines") {
            print_output(client, entry)?;
        }
        next = text(&page, &["next"]);
        if let Some(ended) = page.get("ended").filter(|ended| !ended.is_null()) {
            return exit_as(client, ended);
        }
    }
}

/// Where nobody can be told, who waits may leave. One that ended at this very moment needs no end.
async fn stop(client: &Client, path: &str) -> Result<(), Failed> {
    match client.ask(Method::POST, &format!("{path}/stop"), Some(json!({}))).await? {
        Some(_) => Ok(()),
        None => Err(client.failed(json!({ "say": "no_server", "url": client.url() }))),
    }
}

fn print_output(client: &Client, entry: &Value) -> Result<(), Failed> {
    if client.json {
        return line(&entry.to_string());
    }
    let words = print::log_text(&text(entry, &["text"]));
    match text(entry, &["stream"]).as_str() {
        "out" => line(&words),
        _ => {
            writeln!(std::io::stderr(), "{words}")?;
            Ok(())
        }
    }
}

fn exit_as(client: &Client, ended: &Value) -> Result<(), Failed> {
    let number = |field: &str| ended.get(field).and_then(Value::as_i64).unwrap_or(1);
    match text(ended, &["how"]).as_str() {
        "exited" if number("code") == 0 => Ok(()),
        "exited" => Err(Failed::Exit(u8::try_from(number("code")).unwrap_or(1))),
        "signalled" => Err(Failed::Exit(u8::try_from(128 + number("signal")).unwrap_or(1))),
        _ => Err(client.failed(json!({ "say": "one_off_ended", "ended": ended }))),
    }
}

/// One word is a line as a shell reads it; several are told apart whatever stands in them.
fn command_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        several => several.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::answering;
    use super::*;

    #[tokio::test]
    async fn a_process_is_followed_to_its_end_although_the_control_plane_is_started_anew() {
        let (client, asked) = answering(vec![
            (200, json!({ "number": 3 })),
            (200, json!({ "lines": [{ "stream": "out", "text": "begun" }], "next": "one", "ended": null })),
            (503, json!({ "error": "It cannot be said now: it ends." })),
            (200, json!({ "lines": [], "next": "two", "ended": { "how": "exited", "code": 7 } })),
        ]);
        let words = vec!["true".to_owned()];
        let order = Run { app: "hello".parse().unwrap(), size: None, time_limit: None, command: words };
        assert!(matches!(run(&client, &order).await, Err(Failed::Exit(7))));
        let path = "GET /api/v1/apps/hello/one-offs/3?after=";
        let looks = ["", "one", "one"].map(|cursor| format!("{path}{cursor}"));
        assert_eq!(asked.join().unwrap()[1..], looks);
    }

    #[test]
    fn several_words_stay_several_and_one_is_a_line() {
        let line = |words: &[&str]| command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(line(&["ls -l | wc"]), "ls -l | wc");
        assert_eq!(line(&["rake", "db:migrate"]), "rake db:migrate");
        assert_eq!(line(&["echo", "it's $HOME", ""]), r"echo 'it'\''s $HOME' ''");
    }
}
