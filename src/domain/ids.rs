//! A newtype for each identity: parsed once at the edge, so that nothing past it checks again.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not the identity it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct InvalidId {
    pub value: String,
    pub expected: &'static str,
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($number:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<$name, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok($name(text.to_owned()))
                } else {
                    Err(InvalidId { value: text.chars().take(100).collect(), expected: $expected })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<$name, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }
    };
}

number_id! {
    /// GitHub's number of a repository; names change, this doesn't.
    RepositoryId(u64)
}
number_id! {
    /// GitHub's number of an installation of the app.
    InstallationId(u64)
}
number_id! {
    /// The number that people know a pull request by.
    PullNumber(u64)
}
number_id! {
    /// A test run's number, unique over the whole data folder.
    RunNumber(u64)
}

/// `v3`: the third release of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u32);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "v{}", self.0)
    }
}

impl FromStr for ReleaseNumber {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<ReleaseNumber, InvalidId> {
        let digits = text.strip_prefix('v').unwrap_or(text);
        digits
            .parse()
            .map(ReleaseNumber)
            .map_err(|_| InvalidId { value: text.chars().take(100).collect(), expected: "a release such as v3" })
    }
}

text_id! {
    /// A git object name in full: 40 (SHA-1) or 64 (SHA-256) lower-case hex digits.
    Sha, "a full commit SHA", |text| {
        matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }
}

impl Sha {
    /// The first seven digits, as people write it.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }

    /// GitHub's "no commit": all zeros, sent for created and deleted branches.
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'0')
    }
}

text_id! {
    /// The content address of a slug: 64 hex digits of the SHA-256 of its archive.
    SlugDigest, "a slug digest (64 hex digits)", |text| {
        text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }
}

text_id! {
    /// An app's name, which is also its host: one DNS label, 1..63 of `[a-z0-9-]`, no hyphen at either end.
    AppName, "an app name (a DNS label of a-z, 0-9 and -)", |text| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-')
    }
}

text_id! {
    /// One attempt at one process, unique for ever: `hello-pr-1.v3.web.1.a1`, `build.3f2a….a1`, `run-17.test.0.a1`.
    /// It is a file name and a Unix socket's folder: 1..100 of `[A-Za-z0-9._-]`, no dot first.
    ProcessId, "a process id", |text| {
        (1..=100).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_no_ids() {
        for text in ["", "-a", "a-", "A", "a.b", "../x", "a b", &"a".repeat(64)] {
            assert!(text.parse::<AppName>().is_err(), "{text:?}");
        }
        for text in ["", ".", "..", "a/b", ".hidden", "a\0b", "$(id)"] {
            assert!(text.parse::<ProcessId>().is_err(), "{text:?}");
        }
        for text in ["main", "HEAD", "--help", &"A".repeat(40), &"a".repeat(39)] {
            assert!(text.parse::<Sha>().is_err(), "{text:?}");
        }
        assert!("hello-pr-1".parse::<AppName>().is_ok());
        assert_eq!("v12".parse(), Ok(ReleaseNumber(12)));
    }
}
