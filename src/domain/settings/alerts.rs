//! `[alerts]`: which numbers of an app call somebody. The operator's file and a repository's have the same keys by
//! stage; what the repository says of one key replaces what the operator said of it. Where posts go to is the
//! operator's alone: nothing that a repository says makes Landfall ask an address.

use crate::domain::{AlertRules, Stage};
use serde::{Deserialize, Deserializer};

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertSettings {
    pub review: AlertWords,
    pub staging: AlertWords,
    pub production: AlertWords,
}

/// What is said of one stage. `None`: nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertWords {
    /// `"5%"`, `"0.5%"` or `"off"`.
    #[serde(deserialize_with = "share")]
    pub error_rate: Option<Limit>,
    /// `"800ms"`, `"2s"` or `"off"`.
    #[serde(deserialize_with = "time")]
    pub p95: Option<Limit>,
    /// `3` or `"off"`.
    #[serde(deserialize_with = "count")]
    pub crash_loop: Option<Limit>,
    /// `"60s"`, `"5m"` or `"off"`.
    #[serde(deserialize_with = "outage")]
    pub no_healthy_process: Option<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Off,
    At(u32),
}

impl Limit {
    fn value(self) -> Option<u32> {
        match self {
            Limit::Off => None,
            Limit::At(value) => Some(value),
        }
    }
}

/// Staging and production are watched; a review app is somebody's work under way.
fn built_in(stage: Stage) -> AlertRules {
    match stage {
        Stage::Review(_) => AlertRules::default(),
        Stage::Staging => AlertRules { error_rate: Some(100), response_time: None, ..built_in(Stage::Production) },
        Stage::Production => AlertRules {
            error_rate: Some(50),
            response_time: Some(2_000),
            crash_loop: Some(3),
            no_healthy_process: Some(60),
        },
    }
}

impl AlertSettings {
    fn words(&self, stage: Stage) -> &AlertWords {
        match stage {
            Stage::Review(_) => &self.review,
            Stage::Staging => &self.staging,
            Stage::Production => &self.production,
        }
    }
}

/// The rules of a stage: what is built in, then what the operator says, then what the repository says.
pub fn alert_rules(stage: Stage, operator: &AlertSettings, repository: &AlertSettings) -> AlertRules {
    [operator, repository].into_iter().fold(built_in(stage), |rules, settings| {
        let words = settings.words(stage);
        let said = |limit: Option<Limit>, before: Option<u32>| limit.map_or(before, Limit::value);
        AlertRules {
            error_rate: said(words.error_rate, rules.error_rate),
            response_time: said(words.p95, rules.response_time),
            crash_loop: said(words.crash_loop, rules.crash_loop),
            no_healthy_process: said(words.no_healthy_process, rules.no_healthy_process),
        }
    })
}

fn word<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &str,
    read: impl Fn(&str) -> Option<u32>,
) -> Result<Option<Limit>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(Some(Limit::Off));
    }
    let wrong = || serde::de::Error::custom(format!("{text:?}: write {expected}, or \"off\""));
    read(&text).map(Limit::At).map(Some).ok_or_else(wrong)
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
    word(deserializer, "a share from \"0.1%\" to \"100%\"", |text| {
        let (whole, tenths) = text.strip_suffix('%')?.split_once('.').unwrap_or((text.strip_suffix('%')?, "0"));
        if tenths.len() != 1 {
            return None;
        }
        let permille = digits(whole)?.checked_mul(10)?.checked_add(digits(tenths)?)?;
        (1..=1000).contains(&permille).then_some(permille)
    })
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
    word(deserializer, "a time such as \"800ms\" or \"2s\"", |text| {
        let millis = match text.strip_suffix("ms") {
            Some(number) => digits(number)?,
            None => digits(text.strip_suffix('s')?)?.checked_mul(1000)?,
        };
        (1..=60_000).contains(&millis).then_some(millis)
    })
}

fn outage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
    word(deserializer, "a time from \"10s\" to \"60m\"", |text| {
        let seconds = match text.strip_suffix('m') {
            Some(number) => digits(number)?.checked_mul(60)?,
            None => digits(text.strip_suffix('s')?)?,
        };
        (10..=3600).contains(&seconds).then_some(seconds)
    })
}

fn digits(text: &str) -> Option<u32> {
    let valid = (1..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if valid { text.parse().ok() } else { None }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of crashes from 2 to 100, or \"off\"")]
enum Count {
    Number(u32),
    Word(String),
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
    match Count::deserialize(deserializer)? {
        Count::Number(number) if (2..=100).contains(&number) => Ok(Some(Limit::At(number))),
        Count::Word(word) if word == "off" => Ok(Some(Limit::Off)),
        Count::Number(_) | Count::Word(_) => {
            Err(serde::de::Error::custom("a number of crashes from 2 to 100, or \"off\""))
        }
    }
}

#[cfg(test)]
mod alert_tests {
    use super::*;
    use crate::domain::{PullNumber, RepositorySettings};

    fn alerts(text: &str) -> Result<AlertSettings, String> {
        RepositorySettings::parse(text.as_bytes()).map(|settings| settings.alerts).map_err(|error| error.to_string())
    }

    #[test]
    fn a_repository_s_word_replaces_the_operator_s_and_that_one_the_built_in() {
        let operator =
            alerts("[alerts.production]\nerror_rate = \"2%\"\np95 = \"500ms\"\n[alerts.review]\ncrash_loop = 5")
                .unwrap();
        let repository =
            alerts("[alerts.production]\nerror_rate = \"0.5%\"\ncrash_loop = \"off\"\nno_healthy_process = \"2m\"")
                .unwrap();
        let rules = alert_rules(Stage::Production, &operator, &repository);
        let expected = AlertRules {
            error_rate: Some(5),
            response_time: Some(500),
            crash_loop: None,
            no_healthy_process: Some(120),
        };
        assert_eq!(rules, expected);
        let review = alert_rules(Stage::Review(PullNumber(1)), &operator, &repository);
        assert_eq!(review, AlertRules { crash_loop: Some(5), ..AlertRules::default() });
        let none = AlertSettings::default();
        assert_eq!(alert_rules(Stage::Staging, &none, &none).error_rate, Some(100));
        assert_eq!(alert_rules(Stage::Production, &none, &none).response_time, Some(2_000));
    }

    #[test]
    fn what_makes_no_limit_is_refused_and_no_address_may_be_named() {
        for text in [
            "[alerts.production]\nerror_rate = \"5\"",
            "[alerts.production]\nerror_rate = \"0%\"",
            "[alerts.production]\nerror_rate = \"101%\"",
            "[alerts.production]\nerror_rate = \"0.05%\"",
            "[alerts.production]\nerror_rate = 5",
            "[alerts.production]\np95 = \"2h\"",
            "[alerts.production]\ncrash_loop = 1",
            "[alerts.production]\ncrash_loop = \"on\"",
            "[alerts.production]\nno_healthy_process = \"1s\"",
            "[alerts]\nwebhook = \"http://169.254.169.254/\"",
            "[alerts.production]\nwebhook = \"http://169.254.169.254/\"",
        ] {
            assert!(alerts(text).is_err(), "{text}");
        }
    }
}
