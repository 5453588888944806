//! How tests are split and run: `[tests]`.
//!
//! All keys may be left out: what is not said comes from the detected runner. A key that is there and makes no sense is
//! an error that names it, since a test run that silently does something else is worse than none.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::time::Duration;

/// Stands in `command` for the files of a batch.
pub const FILES: &str = "{files}";
/// Stands in `command` for where the results are to be written; optional.
pub const JUNIT: &str = "{junit}";

/// As on Heroku 32, and twice that.
const MOST_NODES: u16 = 64;
const MOST_RETRIES: u32 = 10;
const MOST_PATTERNS: usize = 100;
const MOST_QUARANTINED: usize = 1_000;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TestSettings {
    /// Whether files are dealt to nodes. If not, each node runs `scripts.test` and splits by `CI_NODE_INDEX` itself.
    pub split: bool,
    /// Which files are tests: patterns below the root, of which those with a leading `!` take away.
    #[serde(deserialize_with = "patterns")]
    pub files: Option<FilePatterns>,
    /// What runs a batch, with [`FILES`] in it and maybe [`JUNIT`].
    #[serde(deserialize_with = "command")]
    pub command: Option<String>,
    /// Where `command` leaves its results; a pattern below the root.
    #[serde(deserialize_with = "junit")]
    pub junit: Option<String>,
    /// How many nodes; replaces the quantity in `app.json`.
    #[serde(deserialize_with = "nodes")]
    pub nodes: Option<u16>,
    /// How often a failed file is run again. One that passes then is reported as flaky.
    #[serde(deserialize_with = "retries")]
    pub retries: u32,
    /// How long one batch may take.
    #[serde(deserialize_with = "timeout")]
    pub timeout: Option<Duration>,
    /// Whether `scripts.test-setup` is done once for all nodes, and for later runs of the same code, where that is the same.
    pub keep_setup: bool,
    /// Whether the result of a tree that was tested before stands for the same tree again.
    pub reuse: bool,
    /// On how many nodes at once the one file may run that alone decides when the run ends.
    #[serde(deserialize_with = "race")]
    pub race: u16,
    /// Whether a file that alone would outlast the others is cut by its test cases.
    pub cases: bool,
    /// Tests whose failure is reported and does not count: names, where `*` stands for anything.
    #[serde(deserialize_with = "quarantine")]
    pub quarantine: Vec<String>,
    /// Files that are kept when a node has run its tests: patterns as in `files`; a folder stands for all that is in it.
    #[serde(deserialize_with = "patterns")]
    pub artifacts: Option<FilePatterns>,
}

impl Default for TestSettings {
    fn default() -> TestSettings {
        TestSettings {
            split: true,
            files: None,
            command: None,
            junit: None,
            nodes: None,
            retries: 0,
            timeout: None,
            keep_setup: true,
            reuse: true,
            race: 1,
            cases: true,
            quarantine: Vec::new(),
            artifacts: None,
        }
    }
}

impl TestSettings {
    pub fn is_quarantined(&self, test: &str) -> bool {
        self.quarantine.iter().any(|pattern| matches_name(pattern, test))
    }
}

/// At least one pattern that adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePatterns {
    pub of: Vec<String>,
    pub except: Vec<String>,
}

/// `*` is any text; all else is itself.
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FilePatterns>, D::Error> {
    let all = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    if all.len() > MOST_PATTERNS {
        return Err(D::Error::custom(format!("more than {MOST_PATTERNS} patterns")));
    }
    let (mut of, mut except) = (Vec::new(), Vec::new());
    for pattern in all {
        let (kind, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => (&mut except, rest.to_owned()),
            None => (&mut of, pattern),
        };
        check_pattern(&pattern).map_err(D::Error::custom)?;
        kind.push(pattern);
    }
    if of.is_empty() {
        return Err(D::Error::custom("no pattern that adds files: give at least one without a leading `!`"));
    }
    Ok(Some(FilePatterns { of, except }))
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.trim().is_empty() {
        return Err("an empty pattern".to_owned());
    }
    if pattern.starts_with('/') {
        return Err(format!(
            "`{pattern}` is absolute: patterns start at the root of the repository, such as `tests/**`"
        ));
    }
    if pattern.split('/').any(|part| part == "..") {
        return Err(format!("`{pattern}` leaves the repository"));
    }
    if pattern.contains(['\n', '\0']) {
        return Err(format!("`{}` holds a character that no path has", pattern.escape_debug()));
    }
    globset::GlobBuilder::new(pattern).literal_separator(true).build().map(|_| ()).map_err(|error| error.to_string())
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let command = String::deserialize(deserializer)?;
    match command.matches(FILES).count() {
        0 => Err(D::Error::custom(format!("`{FILES}` is missing: it stands for the files of a batch"))),
        1 if command.contains('\0') => Err(D::Error::custom("holds a zero byte")),
        1 => Ok(Some(command)),
        _ => Err(D::Error::custom(format!("`{FILES}` stands there more than once"))),
    }
}

fn junit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let pattern = String::deserialize(deserializer)?;
    check_pattern(&pattern).map_err(D::Error::custom)?;
    Ok(Some(pattern))
}

fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let nodes = i64::deserialize(deserializer)?;
    within::<D>(nodes, 1, i64::from(MOST_NODES)).map(Some)
}

fn retries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let retries = i64::deserialize(deserializer)?;
    within::<D>(retries, 0, i64::from(MOST_RETRIES)).map(u32::from)
}

fn race<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let race = i64::deserialize(deserializer)?;
    within::<D>(race, 1, 8)
}

fn within<'de, D: Deserializer<'de>>(number: i64, least: i64, most: i64) -> Result<u16, D::Error> {
    match u16::try_from(number) {
        Ok(small) if (least..=most).contains(&number) => Ok(small),
        _ => Err(D::Error::custom(format!("{number} is not between {least} and {most}"))),
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a time such as \"90s\", \"20m\", \"1h\", or a number of seconds")]
enum Span {
    Seconds(u64),
    Text(String),
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = match Span::deserialize(deserializer)? {
        Span::Seconds(seconds) => Some(seconds),
        Span::Text(text) => span(&text),
    };
    let Some(seconds) = seconds else {
        return Err(D::Error::custom("not a time: write it as \"90s\", \"20m\" or \"1h\""));
    };
    let timeout = Duration::from_secs(seconds);
    if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
        return Err(D::Error::custom("not between one second and 24 hours"));
    }
    Ok(Some(timeout))
}

fn span(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit = match text[end..].trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.checked_mul(unit)
}

fn quarantine<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    if names.len() > MOST_QUARANTINED {
        return Err(D::Error::custom(format!("more than {MOST_QUARANTINED} names")));
    }
    // Whoever wants no test to count can delete them.
    if let Some(all) =
        names.iter().find(|name| name.chars().all(|character| character == '*' || character.is_whitespace()))
    {
        return Err(D::Error::custom(format!("`{all}` would hold every test")));
    }
    Ok(names)
}

#[cfg(test)]
mod examples {
    use super::super::RepositorySettings;
    use super::*;

    fn parse(text: &str) -> Result<TestSettings, String> {
        let whole = format!("[tests]\n{text}\n");
        RepositorySettings::parse(whole.as_bytes()).map(|settings| settings.tests).map_err(|error| error.to_string())
    }

    #[test]
    fn all_keys_of_tests_are_read() {
        let settings = parse(
            r#"
            files = ["tests/**/test_*.py", "!tests/slow/**"]
            command = "pytest {files} --junitxml={junit}"
            junit = "tmp/junit*.xml"
            nodes = 8
            retries = 2
            timeout = "20m"
            reuse = false
            race = 2
            cases = false
            quarantine = ["test_a.TestX test_bad", "* sometimes *"]
            artifacts = ["tmp/screenshots", "!**/*.tmp"]
            "#,
        )
        .unwrap();
        let patterns = settings.files.clone().unwrap();
        assert_eq!((patterns.of.len(), patterns.except.as_slice()), (1, ["tests/slow/**".to_owned()].as_slice()));
        assert_eq!((settings.nodes, settings.retries, settings.race), (Some(8), 2, 2));
        assert_eq!(settings.timeout, Some(Duration::from_secs(1_200)));
        assert!(settings.split && !settings.reuse && !settings.cases);
        assert!(settings.is_quarantined("it sometimes fails") && settings.is_quarantined("test_a.TestX test_bad"));
        assert!(!settings.is_quarantined("test_a.TestX test_bad2"));
        let artifacts = settings.artifacts.unwrap();
        assert_eq!((artifacts.of, artifacts.except), (vec!["tmp/screenshots".to_owned()], vec!["**/*.tmp".to_owned()]));
        assert_eq!(parse("files = 'spec/**/*_spec.rb'").unwrap().files.unwrap().of, ["spec/**/*_spec.rb"]);
        assert_eq!(parse("").unwrap(), TestSettings::default());
        assert_eq!(parse("timeout = 90").unwrap().timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn a_key_of_tests_that_makes_no_sense_is_named_with_its_line() {
        for (text, wanted) in [
            ("command = 'pytest'", "`{files}` is missing"),
            ("command = 'a {files} {files}'", "more than once"),
            ("files = []", "at least one without"),
            ("files = ['!a']", "at least one without"),
            ("files = '/etc/*'", "is absolute"),
            ("files = '../x'", "leaves the repository"),
            ("files = 'a[b'", "unclosed character class"),
            ("files = 7", "a text or a list of texts"),
            ("junit = '/tmp/x.xml'", "is absolute"),
            ("nodes = 0", "0 is not between 1 and 64"),
            ("nodes = 65", "65 is not between 1 and 64"),
            ("nodes = 'many'", "expected i64"),
            ("retries = 11", "between 0 and 10"),
            ("race = 0", "between 1 and 8"),
            ("timeout = 'soon'", "\"90s\", \"20m\" or \"1h\""),
            ("timeout = '0s'", "between one second and 24 hours"),
            ("timeout = '25h'", "between one second and 24 hours"),
            ("quarantine = '*'", "would hold every test"),
            ("artifacts = '../x'", "leaves the repository"),
            ("artifacts = '/etc/passwd'", "is absolute"),
            ("artifacts = []", "at least one without"),
            ("retry = 1", "unknown field `retry`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
            assert!(error.contains("line 2"), "{text}: {error}");
        }
    }

    #[test]
    fn stars_in_names_stand_for_anything() {
        for (pattern, name, wanted) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*b", "ba", false),
            ("a*c*e", "abcde", true),
            ("a*a", "a", false),
            ("a**b", "ab", true),
            ("[x]", "[x]", true),
        ] {
            assert_eq!(matches_name(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
