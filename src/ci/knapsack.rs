//! The wire of Knapsack Pro's open clients in queue mode, both versions of it: what is asked, and how it is answered.
//!
//! A client that starts asks whether there is a queue, makes one of all its files if there is none, and then asks for more
//! until it gets nothing; at the end it tells how long each file took. The second version names the batch that it has
//! done, so that a question that was asked again is known as such; the first doesn't.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bytes of one question: the paths of all test files.
pub const MOST_BYTES: usize = 1 << 20;
/// Files of one queue.
pub const MOST_FILES: usize = 20_000;
/// Bytes of a path.
const MOST_PATH: usize = 1_000;

/// What a client wants of its queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "snake_case")]
pub enum Ask {
    /// Whether there is a queue; if so, its first batch.
    Connect,
    /// A queue of these files, unless there is one; its first batch.
    Begin { paths: Vec<String> },
    /// What it held is done, the batch of that number where it says so; the next batch.
    Next { batch: Option<u32>, failed: Vec<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Queue {
        version: Version,
        ask: Ask,
    },
    /// Seconds that each file took.
    Times(Vec<(String, f64)>),
    /// Which examples of slow files exist: none are known here.
    LastDistribution,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCall {
    NotFound,
    /// Another run's token, or none.
    Forbidden,
    Malformed(&'static str),
}

/// Reads a request. `token` is the one that was given to this run's nodes.
pub fn read(method: &str, path: &str, body: &[u8], token: &str) -> Result<Call, NoCall> {
    let path = path.split('?').next().unwrap_or_default();
    if (method, path) == ("GET", "/v1/build_distributions/last") {
        return Ok(Call::LastDistribution);
    }
    if method != "POST" || !matches!(path, "/v1/queues/queue" | "/v2/queues/queue" | "/v1/build_subsets") {
        return Err(NoCall::NotFound);
    }
    let body: Value = serde_json::from_slice(body).map_err(|_| NoCall::Malformed("the body is no JSON"))?;
    if body["test_suite_token"].as_str() != Some(token) {
        return Err(NoCall::Forbidden);
    }
    match path {
        "/v1/build_subsets" => Ok(Call::Times(times(&body["test_files"]))),
        "/v2/queues/queue" => Ok(Call::Queue { version: Version::Two, ask: ask(&body, Version::Two)? }),
        _ => Ok(Call::Queue { version: Version::One, ask: ask(&body, Version::One)? }),
    }
}

fn ask(body: &Value, version: Version) -> Result<Ask, NoCall> {
    if body["attempt_connect_to_queue"] == true {
        return Ok(Ask::Connect);
    }
    if body["can_initialize_queue"] == true {
        let paths = match version {
            Version::One => paths(&body["test_files"], |file| file["path"].as_str()),
            Version::Two => paths(&body["paths"], Value::as_str),
        };
        return Ok(Ask::Begin { paths: paths.ok_or(NoCall::Malformed("the files can't be used"))? });
    }
    let batch = match &body["batch_id"] {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        _ => None,
    };
    if version == Version::Two && batch.is_none() {
        return Err(NoCall::Malformed("no batch is named"));
    }
    let failed = paths(&body["failed_paths"], Value::as_str).unwrap_or_default();
    Ok(Ask::Next { batch, failed })
}

fn paths(list: &Value, path: impl Fn(&Value) -> Option<&str>) -> Option<Vec<String>> {
    let list = list.as_array().filter(|list| list.len() <= MOST_FILES)?;
    let fits = |path: &&str| !path.is_empty() && path.len() <= MOST_PATH && !path.chars().any(char::is_control);
    list.iter().map(|one| path(one).filter(fits).map(str::to_owned)).collect()
}

fn times(list: &Value) -> Vec<(String, f64)> {
    let time = |file: &Value| Some((file["path"].as_str()?.to_owned(), file["time_execution"].as_f64()?));
    let sane = |(path, seconds): &(String, f64)| path.len() <= MOST_PATH && seconds.is_finite() && *seconds >= 0.0;
    list.as_array().into_iter().flatten().filter_map(time).filter(sane).take(MOST_FILES).collect()
}

/// The answer that there is no queue yet.
pub fn no_queue() -> Value {
    json!({ "code": "ATTEMPT_CONNECT_TO_QUEUE_FAILED" })
}

/// The files of a batch, none where nothing is left.
pub fn batch(version: Version, number: Option<u32>, files: &[(String, u64)]) -> Value {
    match version {
        Version::One => {
            let file =
                |(path, wall_ms): &(String, u64)| json!({ "path": path, "time_execution": *wall_ms as f64 / 1e3 });
            let files: Vec<Value> = files.iter().map(file).collect();
            json!({ "queue_name": "landfall", "build_subset_id": null, "test_files": files })
        }
        Version::Two => {
            let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
            json!({ "batch_id": number.map(|number| number.to_string()), "paths": paths })
        }
    }
}

/// That no file is known to be worth cutting.
pub fn last_distribution() -> Value {
    json!({ "time_execution": 0.0, "test_files": [] })
}

/// Variables that make every client of theirs ask here.
pub fn environment(endpoint: &str, token: &str) -> Vec<(&'static str, String)> {
    let tokens = [
        "KNAPSACK_PRO_TEST_SUITE_TOKEN",
        "KNAPSACK_PRO_TEST_SUITE_TOKEN_RSPEC",
        "KNAPSACK_PRO_TEST_SUITE_TOKEN_MINITEST",
        "KNAPSACK_PRO_TEST_SUITE_TOKEN_TEST_UNIT",
        "KNAPSACK_PRO_TEST_SUITE_TOKEN_CUCUMBER",
        "KNAPSACK_PRO_TEST_SUITE_TOKEN_SPINACH",
    ];
    let tokens = tokens.into_iter().map(|name| (name, token.to_owned()));
    tokens.chain([("KNAPSACK_PRO_ENDPOINT", endpoint.to_owned())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(path: &str, body: Value) -> Result<Call, NoCall> {
        read("POST", path, body.to_string().as_bytes(), "secret")
    }

    #[test]
    fn both_versions_of_the_wire_are_read() {
        let connect =
            json!({ "test_suite_token": "secret", "attempt_connect_to_queue": true, "can_initialize_queue": true });
        let two = |ask| Ok(Call::Queue { version: Version::Two, ask });
        assert_eq!(post("/v2/queues/queue", connect), two(Ask::Connect));
        let begin = json!({ "test_suite_token": "secret", "can_initialize_queue": true, "attempt_connect_to_queue": false,
            "paths": ["a.test.js"] });
        assert_eq!(post("/v2/queues/queue", begin), two(Ask::Begin { paths: vec!["a.test.js".into()] }));
        let next = json!({ "test_suite_token": "secret", "can_initialize_queue": false, "attempt_connect_to_queue": false,
            "batch_id": "7", "failed_paths": ["a.test.js"] });
        assert_eq!(post("/v2/queues/queue", next), two(Ask::Next { batch: Some(7), failed: vec!["a.test.js".into()] }));
        let old = json!({ "test_suite_token": "secret", "can_initialize_queue": true, "attempt_connect_to_queue": false,
            "fixed_queue_split": false, "node_build_id": "1", "test_files": [{ "path": "spec/a_spec.rb" }] });
        let begin = Ask::Begin { paths: vec!["spec/a_spec.rb".into()] };
        assert_eq!(post("/v1/queues/queue", old), Ok(Call::Queue { version: Version::One, ask: begin }));
        let times = json!({ "test_suite_token": "secret", "test_files": [{ "path": "a", "time_execution": 1.5 },
            { "path": "b", "time_execution": -1 }, { "path": "c" }] });
        assert_eq!(post("/v1/build_subsets", times), Ok(Call::Times(vec![("a".into(), 1.5)])));
    }

    #[test]
    fn another_run_s_token_and_what_makes_no_sense_are_refused() {
        let other = json!({ "test_suite_token": "another" });
        assert_eq!(post("/v2/queues/queue", other.clone()), Err(NoCall::Forbidden));
        assert_eq!(post("/v3/queues/queue", other), Err(NoCall::NotFound));
        assert_eq!(read("POST", "/v1/queues/queue", b"{", "secret"), Err(NoCall::Malformed("the body is no JSON")));
        let hostile = json!({ "test_suite_token": "secret", "can_initialize_queue": true, "paths": ["a\nb"] });
        assert!(matches!(post("/v2/queues/queue", hostile), Err(NoCall::Malformed(_))));
        let nameless = json!({ "test_suite_token": "secret" });
        assert!(matches!(post("/v2/queues/queue", nameless), Err(NoCall::Malformed(_))));
    }
}
