//! Numbers for other systems to collect: what a family of them is, and the two forms that it leaves in, Prometheus' text
//! and OpenTelemetry's JSON. Where the numbers come from is not known here.

mod otlp;
mod prometheus;

pub use otlp::request;
#[cfg(test)]
pub use prometheus::tests::faults;
pub use prometheus::text;

use crate::clock::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, from `Family::since` on.
    Counter,
    Gauge,
    Histogram,
}

/// Numbers of one name, told apart by their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// As Prometheus writes it: `landfall_router_requests_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    /// Since when counters count.
    pub since: Timestamp,
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
    /// Since when this one is counted, where that is not the same for all of the family.
    pub since: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    /// How many were at most each bound and more than the one before it; the last count is of those above all bounds.
    Buckets {
        bounds: Vec<f64>,
        counts: Vec<u64>,
        sum: f64,
    },
}

impl Family {
    pub fn new(name: &'static str, kind: Kind, help: &'static str, since: Timestamp) -> Family {
        Family { name, kind, help, since, points: Vec::new() }
    }

    pub fn add(&mut self, labels: Vec<(&'static str, String)>, value: f64) {
        self.points.push(Point { labels, value: Value::Number(value), since: None });
    }

    /// As `add`, for what is counted since a moment of its own.
    pub fn add_since(&mut self, labels: Vec<(&'static str, String)>, value: f64, since: Timestamp) {
        self.points.push(Point { labels, value: Value::Number(value), since: Some(since) });
    }

    /// One number without labels.
    pub fn single(name: &'static str, kind: Kind, help: &'static str, since: Timestamp, value: f64) -> Family {
        let mut family = Family::new(name, kind, help, since);
        family.add(Vec::new(), value);
        family
    }
}
