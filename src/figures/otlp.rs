//! OpenTelemetry's metrics over HTTP with JSON: the body of `POST /v1/metrics`, in the protocol's stable JSON mapping
//! (numbers of 64 bits are strings, field names are in lower camel case, enumerations are numbers).

use super::{Family, Kind, Value};
use crate::clock::Timestamp;
use serde_json::{Value as Json, json};

/// Sums and histograms count from their start, not from the last export.
const CUMULATIVE: u8 = 2;

/// One export of all families, as they are at `now`.
pub fn request(families: &[Family], version: &str, instance: &str, now: Timestamp) -> Json {
    let metrics: Vec<Json> =
        families.iter().filter(|family| !family.points.is_empty()).map(|family| metric(family, now)).collect();
    let attributes = [("service.name", "landfall"), ("service.version", version), ("service.instance.id", instance)];
    let attributes: Vec<Json> = attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    json!({
        "resourceMetrics": [{
            "resource": { "attributes": attributes },
            "scopeMetrics": [{ "scope": { "name": "landfall", "version": version }, "metrics": metrics }],
        }],
    })
}

fn metric(family: &Family, now: Timestamp) -> Json {
    let points: Vec<Json> = family
        .points
        .iter()
        .map(|point| {
            let labels: Vec<Json> = point.labels.iter().map(|(key, value)| attribute(key, value)).collect();
            let mut json = json!({ "attributes": labels, "timeUnixNano": nanos(now) });
            if family.kind != Kind::Gauge {
                json["startTimeUnixNano"] = json!(nanos(point.since.unwrap_or(family.since)));
            }
            match &point.value {
                Value::Number(value) => json["asDouble"] = json!(value),
                Value::Buckets { bounds, counts, sum } => {
                    json["count"] = json!(counts.iter().sum::<u64>().to_string());
                    json["sum"] = json!(sum);
                    json["bucketCounts"] = json!(counts.iter().map(u64::to_string).collect::<Vec<_>>());
                    json["explicitBounds"] = json!(bounds);
                }
            }
            json
        })
        .collect();
    // That something is a total is said by its kind, the unit by a field of its own.
    let name = family.name.trim_end_matches("_total");
    let unit = match name {
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_bytes") => "By",
        _ => "1",
    };
    let mut json = json!({ "name": name, "description": family.help, "unit": unit });
    match family.kind {
        Kind::Gauge => json["gauge"] = json!({ "dataPoints": points }),
        Kind::Counter => {
            json["sum"] = json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true });
        }
        Kind::Histogram => {
            json["histogram"] = json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE });
        }
    }
    json
}

fn attribute(key: &str, value: &str) -> Json {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn nanos(at: Timestamp) -> String {
    format!("{}000000", at.0.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_opentelemetrys_json_mapping() {
        let mut requests = Family::new("x_requests_total", Kind::Counter, "Requests.", Timestamp(1_000));
        requests.add(vec![("app", "hello".to_owned())], 3.0);
        let memory = Family::single("x_memory_bytes", Kind::Gauge, "Memory.", Timestamp(1_000), 5.0);
        let mut times = Family::new("x_response_seconds", Kind::Histogram, "Times.", Timestamp(1_000));
        let value = Value::Buckets { bounds: vec![0.1, 1.0], counts: vec![2, 1, 1], sum: 4.5 };
        times.points.push(super::super::Point { labels: Vec::new(), value, since: Some(Timestamp(500)) });
        let empty = Family::new("x_none", Kind::Gauge, "Nothing.", Timestamp(0));
        let made = request(&[requests, memory, times, empty], "1.2.3", "machine", Timestamp(2_500));
        let scope = &made["resourceMetrics"][0]["scopeMetrics"][0];
        let expected = json!([
            {
                "name": "x_requests", "description": "Requests.", "unit": "1",
                "sum": {
                    "aggregationTemporality": 2, "isMonotonic": true,
                    "dataPoints": [{
                        "attributes": [{ "key": "app", "value": { "stringValue": "hello" } }],
                        "startTimeUnixNano": "1000000000", "timeUnixNano": "2500000000", "asDouble": 3.0,
                    }],
                },
            },
            {
                "name": "x_memory_bytes", "description": "Memory.", "unit": "By",
                "gauge": { "dataPoints": [{ "attributes": [], "timeUnixNano": "2500000000", "asDouble": 5.0 }] },
            },
            {
                "name": "x_response_seconds", "description": "Times.", "unit": "s",
                "histogram": {
                    "aggregationTemporality": 2,
                    "dataPoints": [{
                        "attributes": [], "startTimeUnixNano": "500000000", "timeUnixNano": "2500000000",
                        "count": "4", "sum": 4.5, "bucketCounts": ["2", "1", "1"], "explicitBounds": [0.1, 1.0],
                    }],
                },
            },
        ]);
        assert_eq!(scope["metrics"], expected);
        let resource = &made["resourceMetrics"][0]["resource"]["attributes"];
        assert_eq!(resource[0], json!({ "key": "service.name", "value": { "stringValue": "landfall" } }));
    }
}
