//! Rules about an app's numbers, and what they found.

use super::AppName;
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// Too large a share of the answers has a status of 500 or more.
    ErrorRate,
    /// One answer in twenty takes too long.
    ResponseTime,
    /// A process of the live release ends again and again.
    CrashLoop,
    /// No web process answers.
    NoHealthyProcess,
}

impl AlertKind {
    pub const ALL: [AlertKind; 4] =
        [AlertKind::ErrorRate, AlertKind::ResponseTime, AlertKind::CrashLoop, AlertKind::NoHealthyProcess];

    pub fn word(self) -> &'static str {
        match self {
            AlertKind::ErrorRate => "error_rate",
            AlertKind::ResponseTime => "response_time",
            AlertKind::CrashLoop => "crash_loop",
            AlertKind::NoHealthyProcess => "no_healthy_process",
        }
    }
}

impl fmt::Display for AlertKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

/// The limits that hold for one app; a rule without one is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AlertRules {
    /// Thousandths of the answers.
    pub error_rate: Option<u32>,
    /// Milliseconds that 19 of 20 answers should not take longer than.
    pub response_time: Option<u32>,
    /// Crashes in a row.
    pub crash_loop: Option<u32>,
    /// Seconds without a healthy web process.
    pub no_healthy_process: Option<u32>,
}

impl AlertRules {
    pub fn limit(&self, kind: AlertKind) -> Option<u32> {
        match kind {
            AlertKind::ErrorRate => self.error_rate,
            AlertKind::ResponseTime => self.response_time,
            AlertKind::CrashLoop => self.crash_loop,
            AlertKind::NoHealthyProcess => self.no_healthy_process,
        }
    }
}

/// What a rule looked at, in its limit's unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    pub value: u64,
    pub limit: u32,
    /// Of so many requests; 0 for rules that look at processes.
    #[serde(default)]
    pub requests: u64,
    /// The process that crashes.
    #[serde(default)]
    pub process: Option<String>,
}

/// How one rule stands for one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Alert {
    /// Since when it reads above its limit, without a break.
    pub over_since: Option<Timestamp>,
    /// Since when it reads well below its limit, while it fires.
    pub calm_since: Option<Timestamp>,
    /// Since when it fires, and what was read then.
    pub firing: Option<(Timestamp, Reading)>,
    pub resolved_at: Option<Timestamp>,
}

/// Something that is to be told: an alert fires, or does so no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertPost {
    /// Counts from 1 in each data folder; a receiver that sees one twice can tell by it.
    pub number: u64,
    pub kind: AlertKind,
    pub firing: bool,
    /// None where it is over because nobody looks any more: its rule no longer holds.
    pub reading: Option<Reading>,
    pub at: Timestamp,
}

/// How many posts of one app wait at most; the oldest ones go first.
pub const WAITING_POSTS: usize = 20;

/// All alerts of one app, and what of them is still to be told, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    pub app: AppName,
    /// The app's own number, so that those of an earlier app of this name are not taken for its.
    pub id: String,
    #[serde(default)]
    pub kinds: BTreeMap<AlertKind, Alert>,
    #[serde(default)]
    pub posts: Vec<AlertPost>,
    /// Posts that were given up, for want of room or because nobody took them.
    #[serde(default)]
    pub lost: u64,
}

impl Alerts {
    pub fn new(app: AppName, id: String) -> Alerts {
        Alerts { app, id, kinds: BTreeMap::new(), posts: Vec::new(), lost: 0 }
    }

    pub fn firing(&self) -> impl Iterator<Item = (AlertKind, Timestamp, &Reading)> {
        self.kinds.iter().filter_map(|(kind, alert)| alert.firing.as_ref().map(|(since, read)| (*kind, *since, read)))
    }

    pub fn push(&mut self, post: AlertPost) {
        self.posts.push(post);
        let surplus = self.posts.len().saturating_sub(WAITING_POSTS);
        self.posts.drain(..surplus);
        self.lost += surplus as u64;
    }
}
