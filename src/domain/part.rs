//! Which app of a repository: a stage of its pipeline, and, where it has several apps there, which of them.
//!
//! A part is short enough to be copied like a number, so that whatever names an app in its repository stays small.

use super::{InvalidId, PullNumber, Stage, StageKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name of a part, so that it fits into an app's name beside everything else.
const LONGEST: usize = 20;

/// What tells apart the apps that a repository has in one stage: the name under `[pipeline.apps]`,
/// `[pipeline.staging.apps]` or `[pipeline.production.apps]`. Empty for the one app of a repository that names none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Part([u8; LONGEST]);

impl Part {
    /// The repository's one app.
    pub const OWN: Part = Part([0; LONGEST]);

    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(LONGEST);
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }

    pub fn is_own(self) -> bool {
        self == Part::OWN
    }

    /// `-api`, or nothing for the repository's one app: what stands between its label and its stage.
    pub fn infix(self) -> String {
        if self.is_own() { String::new() } else { format!("-{self}") }
    }

    /// ` (api)`, or nothing: what is added to the name of a check or a status.
    pub fn remark(self) -> String {
        if self.is_own() { String::new() } else { format!(" ({self})") }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Part({:?})", self.as_str())
    }
}

impl FromStr for Part {
    type Err = InvalidId;
    /// A name as people write it, which is never empty.
    fn from_str(text: &str) -> Result<Part, InvalidId> {
        let stage = ["review", "staging", "production", "pr"].contains(&text);
        let sound = (1..=LONGEST).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && !text.ends_with('-')
            && !text.contains("--");
        if !sound || stage {
            let expected = "a name of at most 20 of a-z, 0-9 and - that begins with a letter and is no stage";
            return Err(InvalidId { value: text.chars().take(100).collect(), expected });
        }
        let mut bytes = [0; LONGEST];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Part(bytes))
    }
}

impl TryFrom<String> for Part {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Part, InvalidId> {
        if text.is_empty() { Ok(Part::OWN) } else { text.parse() }
    }
}

impl From<Part> for String {
    fn from(part: Part) -> String {
        part.as_str().to_owned()
    }
}

/// An app of a repository, there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AppKey {
    pub stage: Stage,
    pub part: Part,
}

impl AppKey {
    pub fn new(stage: Stage, part: Part) -> AppKey {
        AppKey { stage, part }
    }

    /// The name of its environment on GitHub.
    pub fn environment(self) -> String {
        let of_stage = self.stage.environment();
        if self.part.is_own() { of_stage } else { format!("{of_stage}/{}", self.part) }
    }

    pub fn kind(self) -> StageKind {
        self.stage.kind()
    }

    pub fn pull(self) -> Option<PullNumber> {
        match self.stage {
            Stage::Review(number) => Some(number),
            Stage::Staging | Stage::Production => None,
        }
    }
}

impl From<Stage> for AppKey {
    fn from(stage: Stage) -> AppKey {
        AppKey { stage, part: Part::OWN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_short_name_that_is_no_stage() {
        for text in ["", "-a", "a-", "A", "1a", "a--b", "staging", "pr", &"a".repeat(21)] {
            assert!(text.parse::<Part>().is_err(), "{text:?}");
        }
        let api: Part = "api".parse().unwrap();
        assert_eq!((api.to_string().as_str(), api.infix().as_str(), Part::OWN.infix().as_str()), ("api", "-api", ""));
        assert_eq!(serde_json::to_string(&[Part::OWN, api]).unwrap(), r#"["","api"]"#);
        assert_eq!(serde_json::from_str::<Vec<Part>>(r#"["","api"]"#).unwrap(), [Part::OWN, api]);
        assert_eq!(AppKey::new(Stage::Review(PullNumber(7)), api).environment(), "review/pr-7/api");
        assert_eq!(AppKey::from(Stage::Production).environment(), "production");
    }
}
