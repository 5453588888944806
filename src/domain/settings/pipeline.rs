//! Stages and the rules about them: `[pipeline]`, from the default branch only.
//!
//! Every key has a default that is what Landfall does without a file. A number out of its range is refused with its
//! key, as a slip of the pen is.

use super::{FolderSettings, StageApp};
use crate::clock::Timestamp;
use crate::domain::{AccessMode, AppName, Part};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineSettings {
    /// The folder that is built, where the repository's one app is not all of it.
    pub root: String,
    /// Patterns of the files that concern the one app; one with a leading `!` takes away.
    pub paths: Vec<String>,
    /// Folders that are apps of their own.
    pub apps: BTreeMap<Part, FolderSettings>,
    pub review: ReviewPolicy,
    pub staging: StagingPolicy,
    pub production: ProductionPolicy,
    /// Which page a file is of, for the links in a pull request: a pattern with at most one `*` or `**`, and a path in
    /// which `*` stands for what that was.
    pub routes: BTreeMap<String, String>,
    /// Times in which a stage stays as it is.
    pub freeze: Vec<FreezeWindow>,
}

/// `[pipeline.review]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReviewPolicy {
    pub apps: ReviewApps,
    /// The label that asks for a review app where they are made by hand.
    pub label: String,
    /// Deploy a commit only after its own tests are green.
    pub wait_for_ci: bool,
    /// 1..=30 as on Heroku: an app without a deploy for so many days is removed.
    pub stale_after_days: Option<u16>,
    /// The most review apps that live at a time.
    pub limit: Option<u16>,
    /// Whether drafts get one.
    pub drafts: bool,
    /// Whether the pull requests of bots (Dependabot, Renovate) get one.
    pub bots: bool,
    /// Who may see review apps: `public`, `password` or `github`. Unless named, as the operator says.
    pub access: Option<AccessMode>,
    pub right: Access,
    /// `ORGANISATION/TEAM`; if there is any, one must be the person's.
    pub teams: Vec<String>,
    /// How many of what a review app runs at first, as `/scale` has it.
    pub formation: Vec<String>,
}

impl Default for ReviewPolicy {
    fn default() -> ReviewPolicy {
        ReviewPolicy {
            apps: ReviewApps::Automatic,
            label: "review-app".to_owned(),
            wait_for_ci: false,
            stale_after_days: None,
            limit: None,
            drafts: true,
            bots: true,
            access: None,
            right: Access::Write,
            teams: Vec::new(),
            formation: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReviewApps {
    /// Every pull request gets one.
    Automatic,
    /// Those get one that have the label, or for which somebody wrote `/deploy`.
    Manual,
}

/// `[pipeline.staging]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StagingPolicy {
    /// The branch that it follows; the default branch unless named.
    pub branch: Option<String>,
    pub right: Access,
    pub teams: Vec<String>,
    /// Whose checks a commit must have passed before it is deployed.
    pub wait_for: WaitFor,
    /// The app's name, which is its host; chosen when the app is made, and kept.
    pub name: Option<AppName>,
    pub formation: Vec<String>,
    /// Hosts of the world outside that lead to it, as far as the operator allows them.
    pub domains: Vec<String>,
    /// Further apps of the stage, or what is special about a folder's.
    pub apps: BTreeMap<Part, StageApp>,
}

impl Default for StagingPolicy {
    fn default() -> StagingPolicy {
        StagingPolicy {
            branch: None,
            right: Access::Write,
            teams: Vec::new(),
            wait_for: WaitFor::Own,
            name: None,
            formation: Vec::new(),
            domains: Vec::new(),
            apps: BTreeMap::new(),
        }
    }
}

/// `[pipeline.production]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProductionPolicy {
    pub right: Access,
    pub teams: Vec<String>,
    /// How many further people must say so too: 0 or 1.
    pub approvals: u8,
    /// Whose checks a commit must have passed before it is promoted.
    pub wait_for: WaitFor,
    pub name: Option<AppName>,
    pub formation: Vec<String>,
    pub domains: Vec<String>,
    pub apps: BTreeMap<Part, StageApp>,
}

/// Beside the commit's own tests, which always count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Nobody else's.
    Own,
    /// What GitHub requires on the branch, by its protection or by a ruleset.
    Required,
    /// Every check run and status that the commit has.
    All,
}

impl Default for ProductionPolicy {
    fn default() -> ProductionPolicy {
        ProductionPolicy {
            right: Access::Write,
            teams: Vec::new(),
            approvals: 0,
            wait_for: WaitFor::Required,
            name: None,
            formation: Vec::new(),
            domains: Vec::new(),
            apps: BTreeMap::new(),
        }
    }
}

/// What GitHub lets a person do in a repository, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    None,
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

/// `[[pipeline.freeze]]`: on these days, or between these times of each of these days, in minutes from UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeWindow {
    #[serde(default = "production_only")]
    pub stages: Vec<FrozenStage>,
    /// Every day unless named.
    #[serde(default)]
    pub days: Vec<Weekday>,
    /// `HH:MM`; the day's start unless named.
    #[serde(default)]
    pub from: Option<TimeOfDay>,
    /// `HH:MM`, exclusive; the day's end unless named. Earlier than `from` means on the next day.
    #[serde(default)]
    pub until: Option<TimeOfDay>,
    /// East of UTC, -14..=14.
    #[serde(default)]
    pub utc_offset_hours: i8,
    #[serde(default)]
    pub reason: String,
}

fn production_only() -> Vec<FrozenStage> {
    vec![FrozenStage::Production]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrozenStage {
    Staging,
    Production,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Weekday {
    #[serde(rename = "mon")]
    Monday,
    #[serde(rename = "tue")]
    Tuesday,
    #[serde(rename = "wed")]
    Wednesday,
    #[serde(rename = "thu")]
    Thursday,
    #[serde(rename = "fri")]
    Friday,
    #[serde(rename = "sat")]
    Saturday,
    #[serde(rename = "sun")]
    Sunday,
}

/// From Thursday on, the weekday of 1970-01-01.
const WEEK: [Weekday; 7] = [
    Weekday::Thursday,
    Weekday::Friday,
    Weekday::Saturday,
    Weekday::Sunday,
    Weekday::Monday,
    Weekday::Tuesday,
    Weekday::Wednesday,
];

/// `HH:MM` as minutes since midnight; `24:00` is the day's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl TryFrom<String> for TimeOfDay {
    type Error = String;
    fn try_from(text: String) -> Result<TimeOfDay, String> {
        let digits = |part: &str| {
            (part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse::<u16>().ok())?
        };
        let parts = text.split_once(':').and_then(|(hours, minutes)| Some((digits(hours)?, digits(minutes)?)));
        match parts {
            Some((hours, minutes)) if minutes < 60 && hours * 60 + minutes <= 24 * 60 => {
                Ok(TimeOfDay(hours * 60 + minutes))
            }
            _ => Err(format!("{text:?} is not a time of day such as 17:30")),
        }
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        format!("{:02}:{:02}", time.0 / 60, time.0 % 60)
    }
}

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60;

impl FreezeWindow {
    /// When the window that `now` lies in ends; `None` outside of it.
    pub fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let offset = i64::from(self.utc_offset_hours) * 60;
        let from = i64::from(self.from.map_or(0, |time| time.0));
        let mut until = i64::from(self.until.map_or(24 * 60, |time| time.0));
        if until <= from {
            until += DAY;
        }
        let today = (now.0.div_euclid(MINUTE) + offset).div_euclid(DAY);
        let frozen = |day: i64| self.days.is_empty() || self.days.contains(&WEEK[day.rem_euclid(7) as usize]);
        let window = |day: i64| {
            let at = |minutes: i64| Timestamp((day * DAY + minutes - offset) * MINUTE);
            (at(from), at(until))
        };
        let (_, mut end) = [today - 1, today]
            .into_iter()
            .filter(|day| frozen(*day))
            .map(window)
            .find(|(start, end)| *start <= now && now < *end)?;
        // Whole days that follow each other are one window; a week of them never ends, so a look ahead has an end too.
        for day in today..today + 8 {
            let (start, later) = window(day);
            if frozen(day) && start <= end && later > end {
                end = later;
            }
        }
        Some(end)
    }
}

impl PipelineSettings {
    /// # Errors
    /// The key and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.review.stale_after_days.is_some_and(|days| !(1..=30).contains(&days)) {
            return Err("pipeline.review.stale_after_days is 1 to 30".to_owned());
        }
        if self.review.label.is_empty() {
            return Err("pipeline.review.label is empty".to_owned());
        }
        if self.production.approvals > 1 {
            return Err("pipeline.production.approvals is 0 or 1".to_owned());
        }
        for (stage, right) in
            [("review", self.review.right), ("staging", self.staging.right), ("production", self.production.right)]
        {
            if right < Access::Triage {
                return Err(format!("pipeline.{stage}.right is triage, write, maintain or admin"));
            }
        }
        for team in self.teams() {
            let named = team.split_once('/').is_some_and(|(organisation, slug)| {
                !organisation.is_empty() && !slug.is_empty() && !slug.contains('/')
            });
            if !named {
                return Err(format!("{team:?} is not ORGANISATION/TEAM"));
            }
        }
        if self.freeze.iter().any(|window| !(-14..=14).contains(&window.utc_offset_hours)) {
            return Err("pipeline.freeze.utc_offset_hours is -14 to 14".to_owned());
        }
        self.check_routes()?;
        self.check_apps()?;
        self.check_domains()
    }

    /// Every team that any stage names.
    pub fn teams(&self) -> impl Iterator<Item = &str> {
        let of_stages = [&self.review.teams, &self.staging.teams, &self.production.teams];
        let further = self.staging.apps.values().chain(self.production.apps.values());
        let of_apps = further.filter_map(|app| app.teams.as_ref());
        of_stages.into_iter().chain(of_apps).flatten().map(String::as_str)
    }
}

#[cfg(test)]
mod pipeline_tests {
    use super::*;
    use crate::domain::RepositorySettings;

    #[test]
    fn a_policy_is_read_with_its_rules_and_slips_are_named() {
        let text = "[pipeline.review]\napps = \"manual\"\nlimit = 5\nstale_after_days = 5\n\
                    [pipeline.production]\nright = \"maintain\"\napprovals = 1\nteams = [\"acme/deployers\"]\n\
                    [[pipeline.freeze]]\ndays = [\"fri\"]\nfrom = \"15:00\"\nreason = \"weekend\"\n";
        let policy = RepositorySettings::parse(text.as_bytes()).unwrap().pipeline;
        assert_eq!(policy.review.apps, ReviewApps::Manual);
        assert_eq!(policy.production.right, Access::Maintain);
        assert_eq!(policy.freeze[0].stages, [FrozenStage::Production]);
        let stored = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<PipelineSettings>(&stored).unwrap(), policy);
        for (text, expected) in [
            ("[pipeline.review]\nstale_after_days = 31\n", "1 to 30"),
            ("[pipeline.production]\napprovals = 2\n", "0 or 1"),
            ("[pipeline.production]\nteams = [\"deployers\"]\n", "ORGANISATION/TEAM"),
            ("[pipeline.staging]\nright = \"read\"\n", "pipeline.staging.right"),
            ("[pipeline.reveiw]\n", "reveiw"),
            ("[[pipeline.freeze]]\nfrom = \"25:00\"\n", "25:00"),
        ] {
            let error = RepositorySettings::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_freeze_window_ends_when_its_last_day_does() {
        let at = |text: &str| Timestamp::parse_rfc3339(text).unwrap();
        let weekend: FreezeWindow =
            serde_json::from_value(serde_json::json!({ "days": ["sat", "sun"], "utc_offset_hours": 1 })).unwrap();
        // 2026-11-21 is a Saturday.
        for (now, end) in [
            ("2026-11-20T22:59:00Z", None),
            ("2026-11-20T23:00:00Z", Some("2026-11-22T23:00:00Z")),
            ("2026-11-22T12:00:00Z", Some("2026-11-22T23:00:00Z")),
            ("2026-11-22T23:00:00Z", None),
        ] {
            assert_eq!(weekend.ends(at(now)), end.map(at), "{now}");
        }
        let night: FreezeWindow =
            serde_json::from_value(serde_json::json!({ "days": ["fri"], "from": "18:00", "until": "08:00" })).unwrap();
        assert_eq!(night.ends(at("2026-11-21T07:00:00Z")), Some(at("2026-11-21T08:00:00Z")));
        assert_eq!(night.ends(at("2026-11-20T17:00:00Z")), None);
    }
}
