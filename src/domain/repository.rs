//! A repository with the app installed, and its pull requests.

use super::{AppKey, AppName, InstallationId, Part, PullNumber, RepositoryId, Sha};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    pub id: RepositoryId,
    pub owner: String,
    pub name: String,
    /// Empty until GitHub was asked for the first time.
    pub default_branch: String,
    pub private: bool,
    pub html_url: String,
    /// `None` where a plain token is used instead of an app.
    pub installation: Option<InstallationId>,
    /// The first part of its apps' names. Chosen when the repository is first seen and kept through renames, so that
    /// a link that somebody was given goes on working.
    pub label: String,
    /// Whether Landfall may read and report here. Without the grant nothing new begins; staging and production go on
    /// with what they run.
    #[serde(default = "granted")]
    pub granted: bool,
    /// Since when GitHub does not show the repository, though nobody said that the grant ended.
    #[serde(default)]
    pub missing_since: Option<Timestamp>,
}

fn granted() -> bool {
    true
}

impl Repository {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// `hello-pr-1`, `hello-staging`, `hello-api-production`: the name of an app for which nobody chose another.
    pub fn app_name(&self, key: impl Into<AppKey>) -> AppName {
        let AppKey { stage, part } = key.into();
        let suffix = match stage {
            Stage::Review(number) => format!("-pr-{number}"),
            Stage::Staging => "-staging".to_owned(),
            Stage::Production => "-production".to_owned(),
        };
        let suffix = part.infix() + &suffix;
        let room = 63 - suffix.len();
        let label = self.label.get(..room).unwrap_or(&self.label).trim_end_matches('-');
        format!("{label}{suffix}").parse().expect("a label and a suffix make a DNS label")
    }
}

/// The label that a repository's apps start with: its name as a DNS label, owner-prefixed where `taken` says that
/// another repository has that label already, and numbered where even that is taken.
pub fn choose_label(owner: &str, name: &str, taken: impl Fn(&str) -> bool) -> String {
    let plain = dns_label(name);
    if !taken(&plain) {
        return plain;
    }
    let prefixed = dns_label(&format!("{owner}-{name}"));
    if !taken(&prefixed) {
        return prefixed;
    }
    (2..).map(|number| format!("{prefixed}-{number}")).find(|label| !taken(label)).expect("numbers do not run out")
}

/// Lower case, everything that is not `[a-z0-9]` a hyphen, no doubled or outer hyphens, at most 40 characters.
fn dns_label(text: &str) -> String {
    let mut label = String::new();
    for character in text.to_lowercase().chars() {
        if character.is_ascii_alphanumeric() {
            label.push(character);
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        if label.len() == 40 {
            break;
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "app".to_owned() } else { label.to_owned() }
}

/// Where in its pipeline an app stands. A review app belongs to one pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Review(PullNumber),
    Staging,
    Production,
}

impl Stage {
    /// The name of its environment on GitHub.
    pub fn environment(self) -> String {
        match self {
            Stage::Review(number) => format!("review/pr-{number}"),
            Stage::Staging => "staging".to_owned(),
            Stage::Production => "production".to_owned(),
        }
    }

    pub fn kind(self) -> super::StageKind {
        match self {
            Stage::Review(_) => super::StageKind::Review,
            Stage::Staging => super::StageKind::Staging,
            Stage::Production => super::StageKind::Production,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Stage::Review(_) => "review",
            Stage::Staging => "staging",
            Stage::Production => "production",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    pub repository: RepositoryId,
    pub number: PullNumber,
    pub title: String,
    pub author: String,
    pub head: Sha,
    pub branch: String,
    /// `None` when the fork it came from is gone.
    pub head_repository: Option<RepositoryId>,
    pub base_branch: String,
    pub open: bool,
    pub merged: bool,
    pub html_url: String,
    #[serde(default)]
    pub draft: bool,
    #[serde(default)]
    pub labels: Vec<String>,
    /// Whether a bot opened it.
    #[serde(default)]
    pub by_bot: bool,
    /// Whether the message of its head commit asks to leave it alone.
    #[serde(default)]
    pub skip: bool,
    /// Why it has no review app although the policy would give it one.
    #[serde(default)]
    pub parked: Option<Parked>,
    /// The folders' apps that none of its files concerns.
    #[serde(default)]
    pub untouched: Vec<Part>,
    /// The pages that its files are of, as the rules map them.
    #[serde(default)]
    pub pages: Vec<String>,
}

/// Why a review app was taken away before its pull request was closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Parked {
    Destroyed { by: String },
    Stale { days: u16 },
}

/// In a pull request's title or in its head commit's message: neither build nor test it.
const SKIP_MARK: &str = "[skip landfall]";

pub fn asks_to_skip(text: &str) -> bool {
    text.to_ascii_lowercase().contains(SKIP_MARK)
}

impl Pull {
    /// Whether its code comes from another repository: such code is not trusted, whoever wrote it.
    pub fn is_fork(&self) -> bool {
        self.head_repository != Some(self.repository)
    }

    /// Whether any of its files concerns a folder's app.
    pub fn touches(&self, folder: Part) -> bool {
        !self.untouched.contains(&folder)
    }

    pub fn is_skipped(&self) -> bool {
        self.skip || asks_to_skip(&self.title)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn repository(label: &str) -> Repository {
        Repository {
            id: RepositoryId(1),
            owner: "o".into(),
            name: "n".into(),
            default_branch: "main".into(),
            private: false,
            html_url: String::new(),
            installation: None,
            label: dns_label(label),
            granted: true,
            missing_since: None,
        }
    }

    #[test]
    fn any_repository_name_makes_a_host() {
        let free = |_: &str| false;
        assert_eq!(choose_label("acme", "Hello.World_2", free), "hello-world-2");
        assert_eq!(choose_label("acme", "---", free), "app");
        assert_eq!(choose_label("Acme", "web", |label| label == "web"), "acme-web");
        assert_eq!(choose_label("a", "web", |label| label != "a-web-3"), "a-web-3");
        let long = repository(&"x-".repeat(60));
        assert!(long.app_name(Stage::Review(PullNumber(u64::MAX))).as_str().len() <= 63);
        assert!(long.app_name(Stage::Production).as_str().ends_with("-production"));
    }
}
