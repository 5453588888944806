//! How web processes are checked, warmed up and put to sleep: `[web]`.

use serde::{Deserialize, Deserializer, Serialize};
use std::time::Duration;

/// The most requests that warm a process up.
const MOST_WARMUPS: usize = 20;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSettings {
    /// `health = "/healthz"` asks for that path; `health = "tcp"` only connects.
    pub health: HealthCheck,
    /// `health_interval = "10s"`: how often a process that serves is asked again. Without it, only one that could not
    /// be reached is.
    #[serde(deserialize_with = "interval")]
    pub health_interval: Option<Duration>,
    /// `warmup = ["/", "/reports"]`: asked for, one after the other, before a process counts as healthy.
    #[serde(deserialize_with = "paths")]
    pub warmup: Vec<String>,
    /// `sleep_after = "30m"` or `"never"`; without it, the operator's word holds.
    #[serde(deserialize_with = "sleep")]
    pub sleep_after: Option<SleepAfter>,
    /// `sleep_stages = ["review", "staging"]`: where apps may sleep. Review apps alone, unless this says more.
    pub sleep_stages: SleepStages,
    /// `guard = "5m"`, `"off"`, or a table with a time for each stage: for how long after a switch the new release is
    /// compared with the one before it.
    pub guard: Guard,
}

/// How long a new release is watched, by stage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "GuardWords")]
pub struct Guard {
    review: Option<Duration>,
    staging: Option<Duration>,
    production: Option<Duration>,
}

/// Staging and production, for two minutes.
impl Default for Guard {
    fn default() -> Guard {
        let time = Some(Duration::from_secs(120));
        Guard { review: None, staging: time, production: time }
    }
}

impl Guard {
    pub fn time(&self, stage: crate::domain::Stage) -> Option<Duration> {
        match stage {
            crate::domain::Stage::Review(_) => self.review,
            crate::domain::Stage::Staging => self.staging,
            crate::domain::Stage::Production => self.production,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a time such as \"2m\", \"off\", or a table of them for review, staging and production")]
enum GuardWords {
    All(String),
    Stages(StageTimes),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageTimes {
    review: Option<String>,
    staging: Option<String>,
    production: Option<String>,
}

impl TryFrom<GuardWords> for Guard {
    type Error = String;

    fn try_from(words: GuardWords) -> Result<Guard, String> {
        let default = Guard::default();
        match words {
            GuardWords::All(text) => {
                let time = guard_time(&text)?;
                Ok(Guard { review: None, staging: time, production: time })
            }
            GuardWords::Stages(times) => {
                let time = |text: Option<String>, default| text.map_or(Ok(default), |text| guard_time(&text));
                Ok(Guard {
                    review: time(times.review, default.review)?,
                    staging: time(times.staging, default.staging)?,
                    production: time(times.production, default.production)?,
                })
            }
        }
    }
}

fn guard_time(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    let time = duration(text)?;
    if (Duration::from_secs(10)..=Duration::from_secs(3600)).contains(&time) {
        Ok(Some(time))
    } else {
        Err(format!("{text:?}: a release is watched for 10s to 1h, or \"off\""))
    }
}

/// How it is found out whether a web process is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HealthCheck {
    /// `GET` this path: well is any status below 500.
    Path(String),
    /// It takes a connection.
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepAfter {
    Never,
    Idle(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SleepStages(Vec<SleepStage>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SleepStage {
    Review,
    Staging,
    Production,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck::Path("/".to_owned())
    }
}

impl Default for SleepStages {
    fn default() -> SleepStages {
        SleepStages(vec![SleepStage::Review])
    }
}

impl WebSettings {
    /// After how long without a request an app of this stage is put to sleep. `default` is the operator's word for
    /// review apps; other stages sleep only where the repository names both the stage and a time.
    pub fn sleep_after(&self, stage: crate::domain::Stage, default: Option<Duration>) -> Option<Duration> {
        let (named, default) = match stage {
            crate::domain::Stage::Review(_) => (SleepStage::Review, default),
            crate::domain::Stage::Staging => (SleepStage::Staging, None),
            crate::domain::Stage::Production => (SleepStage::Production, None),
        };
        if !self.sleep_stages.0.contains(&named) {
            return None;
        }
        match self.sleep_after {
            Some(SleepAfter::Never) => None,
            Some(SleepAfter::Idle(time)) => Some(time),
            None => default,
        }
    }
}

impl TryFrom<String> for HealthCheck {
    type Error = String;

    fn try_from(text: String) -> Result<HealthCheck, String> {
        if text == "tcp" { Ok(HealthCheck::Tcp) } else { path(text).map(HealthCheck::Path) }
    }
}

impl From<HealthCheck> for String {
    fn from(check: HealthCheck) -> String {
        match check {
            HealthCheck::Path(path) => path,
            HealthCheck::Tcp => "tcp".to_owned(),
        }
    }
}

/// What may stand in a request line: nothing that could end it.
fn path(text: String) -> Result<String, String> {
    let valid =
        text.starts_with('/') && text.len() <= 2000 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if valid {
        Ok(text)
    } else {
        Err(format!(
            "{text:?} is no path: it begins with / and has up to 2000 printable ASCII characters but # and spaces"
        ))
    }
}

/// `45s`, `30m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a number and s, m or h, such as \"30m\"");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    digits.parse::<u64>().map(|count| Duration::from_secs(count * unit)).map_err(|_| wrong())
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time = duration(&text).map_err(serde::de::Error::custom)?;
    if (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&time) {
        Ok(Some(time))
    } else {
        Err(serde::de::Error::custom(format!("{text:?}: a health check comes every 1s to 5m")))
    }
}

fn sleep<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SleepAfter>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "never" {
        return Ok(Some(SleepAfter::Never));
    }
    let time = duration(&text).map_err(serde::de::Error::custom)?;
    if time < Duration::from_secs(60) {
        return Err(serde::de::Error::custom(format!("{text:?}: apps sleep after a minute at the earliest")));
    }
    Ok(Some(SleepAfter::Idle(time)))
}

fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let all = Vec::<String>::deserialize(deserializer)?;
    if all.len() > MOST_WARMUPS {
        return Err(serde::de::Error::custom(format!("at most {MOST_WARMUPS} requests warm a process up")));
    }
    all.into_iter().map(|text| path(text).map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod web_tests {
    use super::*;
    use crate::domain::{PullNumber, RepositorySettings, Stage};

    fn web(text: &str) -> Result<WebSettings, String> {
        let file = format!("[web]\n{text}\n");
        RepositorySettings::parse(file.as_bytes()).map(|settings| settings.web).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_said_of_web_processes_is_understood() {
        let all = web(
            "health = \"/healthz?deep=1\"\nhealth_interval = \"10s\"\nwarmup = [\"/\", \"/a\"]\nsleep_after = \"2h\"",
        );
        let all = all.unwrap();
        assert_eq!(all.health, HealthCheck::Path("/healthz?deep=1".to_owned()));
        assert_eq!(all.health_interval, Some(Duration::from_secs(10)));
        assert_eq!(all.warmup, ["/", "/a"]);
        assert_eq!(all.sleep_after, Some(SleepAfter::Idle(Duration::from_secs(7200))));
        assert_eq!(web("health = \"tcp\"").unwrap().health, HealthCheck::Tcp);
        assert_eq!(web("").unwrap().health, HealthCheck::Path("/".to_owned()));
    }

    #[test]
    fn what_would_break_a_request_or_a_clock_is_refused() {
        for (text, expected) in [
            ("health = \"healthz\"", "no path"),
            ("health = \"/ HTTP/1.1\\r\\nX: y\"", "no path"),
            ("warmup = [\"/\", \"http://elsewhere/\"]", "no path"),
            ("warmup = 3", "sequence"),
            ("health_interval = \"0s\"", "1s to 5m"),
            ("health_interval = \"1d\"", "no time"),
            ("sleep_after = \"10s\"", "a minute"),
            ("sleep_after = \"9999999h\"", "no time"),
            ("sleep_after = 30", "string"),
            ("sleep_stages = [\"test\"]", "review"),
            ("sleep = \"30m\"", "unknown field"),
            ("guard = \"5s\"", "10s to 1h"),
            ("guard = 5", "a time such as"),
            ("guard = { nowhere = \"5m\" }", "a time such as"),
        ] {
            let error = web(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(web(&format!("warmup = {:?}", vec!["/"; MOST_WARMUPS + 1])).is_err());
    }

    #[test]
    fn a_new_release_is_watched_for_a_time_by_stage() {
        let times = |text: &str| {
            let guard = web(text).unwrap().guard;
            [Stage::Review(PullNumber(1)), Stage::Staging, Stage::Production]
                .map(|stage| guard.time(stage).map(|time| time.as_secs()))
        };
        assert_eq!(times(""), [None, Some(120), Some(120)]);
        assert_eq!(times("guard = \"5m\""), [None, Some(300), Some(300)]);
        assert_eq!(times("guard = \"off\""), [None, None, None]);
        assert_eq!(times("guard = { review = \"30s\", production = \"1h\" }"), [Some(30), Some(120), Some(3600)]);
        assert_eq!(times("guard = { staging = \"off\" }"), [None, None, Some(120)]);
    }

    #[test]
    fn only_review_apps_sleep_unless_the_repository_says_so() {
        let half_an_hour = Some(Duration::from_secs(1800));
        let review = Stage::Review(PullNumber(1));
        for (text, stage, expected) in [
            ("", review, half_an_hour),
            ("", Stage::Staging, None),
            ("", Stage::Production, None),
            ("sleep_after = \"never\"", review, None),
            ("sleep_after = \"5m\"", review, Some(Duration::from_secs(300))),
            ("sleep_after = \"5m\"", Stage::Production, None),
            ("sleep_stages = [\"staging\"]", Stage::Staging, None),
            ("sleep_stages = [\"staging\"]\nsleep_after = \"5m\"", Stage::Staging, Some(Duration::from_secs(300))),
            ("sleep_stages = [\"staging\"]\nsleep_after = \"5m\"", review, None),
        ] {
            assert_eq!(web(text).unwrap().sleep_after(stage, half_an_hour), expected, "{text} on {stage:?}");
        }
        assert_eq!(web("").unwrap().sleep_after(review, None), None);
    }
}
