//! `Procfile`: one process type per line, `<type>: <command>`.
//!
//! Strangers write it, so nothing in it is fatal but its size: a line that breaks the rule is left out and reported
//! with its number, because a typing error that silently takes a process away is the worst of both.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The process types of an app and their commands, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Procfile {
    pub processes: Vec<(String, String)>,
}

/// A line that was not taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcfileWarning {
    /// Counts from 1.
    pub line: u32,
    pub kind: ProcfileWarningKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProcfileWarningKind {
    /// No colon in the line: it isn't `<type>: <command>`.
    NoColon {
        text: String,
    },
    /// The type is empty, too long or holds other characters than `A-Z`, `a-z`, `0-9`, `_` and `-`.
    InvalidType {
        name: String,
    },
    NoCommand {
        name: String,
    },
    /// The command is not UTF-8 or holds control characters.
    InvalidCommand {
        name: String,
    },
    /// An earlier line of the same type is ignored.
    Replaces {
        name: String,
        earlier: u32,
    },
    /// The file declares more types than [`MOST_PROCESS_TYPES`].
    TooMany {
        name: String,
    },
}

/// The whole file is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProcfileError {
    #[error("the file is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

/// Bytes that a `Procfile` may have.
pub const PROCFILE_CAP: usize = 64 << 10;
pub const MOST_PROCESS_TYPES: usize = 20;
/// Warnings that are kept of one file; the first ones say enough.
pub const MOST_PROCFILE_WARNINGS: usize = 20;
/// A type is part of process names, which are file names: short enough for both.
pub const LONGEST_PROCESS_TYPE: usize = 32;

impl Procfile {
    /// Reads a file's bytes. Line ends may be LF or CRLF, a byte order mark is skipped, as are blank lines and lines
    /// that start with `#`.
    pub fn parse(bytes: &[u8]) -> Result<(Procfile, Vec<ProcfileWarning>), ProcfileError> {
        if bytes.len() > PROCFILE_CAP {
            return Err(ProcfileError::TooLarge { limit: PROCFILE_CAP });
        }
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let mut found: Vec<(u32, String, String)> = Vec::new();
        let mut warnings = Vec::new();
        for (line, bytes) in (1u32..).zip(bytes.split(|byte| *byte == b'\n')) {
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() || bytes.starts_with(b"#") {
                continue;
            }
            match parse_line(bytes) {
                Ok((name, command)) => {
                    if let Some(earlier) = found.iter().position(|(_, other, _)| *other == name) {
                        let (earlier, ..) = found.remove(earlier);
                        let kind = ProcfileWarningKind::Replaces { name: name.clone(), earlier };
                        warnings.push(ProcfileWarning { line, kind });
                    }
                    if found.len() == MOST_PROCESS_TYPES {
                        warnings.push(ProcfileWarning { line, kind: ProcfileWarningKind::TooMany { name } });
                    } else {
                        found.push((line, name, command));
                    }
                }
                Err(kind) => warnings.push(ProcfileWarning { line, kind }),
            }
        }
        warnings.truncate(MOST_PROCFILE_WARNINGS);
        let processes = found.into_iter().map(|(_, name, command)| (name, command)).collect();
        Ok((Procfile { processes }, warnings))
    }

    pub fn command(&self, process_type: &str) -> Option<&str> {
        self.processes.iter().find(|(name, _)| name == process_type).map(|(_, command)| command.as_str())
    }
}

/// Whether a text can be a process type.
pub fn is_process_type(name: &str) -> bool {
    (1..=LONGEST_PROCESS_TYPE).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Whether a text can be a command: something to do, on one line, without control characters.
pub fn is_command(command: &str) -> bool {
    !command.trim().is_empty() && !command.chars().any(|c| c.is_control() && c != '\t')
}

fn parse_line(line: &[u8]) -> Result<(String, String), ProcfileWarningKind> {
    let colon = line.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or_else(|| ProcfileWarningKind::NoColon { text: excerpt(line) })?;
    let name = excerpt(&line[..colon]);
    if !is_process_type(&name) {
        return Err(ProcfileWarningKind::InvalidType { name });
    }
    let command = line[colon + 1..].trim_ascii();
    if command.is_empty() {
        return Err(ProcfileWarningKind::NoCommand { name });
    }
    match std::str::from_utf8(command) {
        Ok(command) if is_command(command) => Ok((name, command.to_owned())),
        _ => Err(ProcfileWarningKind::InvalidCommand { name }),
    }
}

/// The start of a text from outside, for messages.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(60).collect()
}

impl fmt::Display for ProcfileWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.kind)
    }
}

impl fmt::Display for ProcfileWarningKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcfileWarningKind::NoColon { text } => write!(formatter, "{text:?} is not `<type>: <command>`"),
            ProcfileWarningKind::InvalidType { name } => {
                write!(
                    formatter,
                    "{name:?} is not a process type (1 to {LONGEST_PROCESS_TYPE} of A-Z, a-z, 0-9, _ and -)"
                )
            }
            ProcfileWarningKind::NoCommand { name } => write!(formatter, "{name} has no command"),
            ProcfileWarningKind::InvalidCommand { name } => {
                write!(formatter, "the command of {name} holds characters that are not text")
            }
            ProcfileWarningKind::Replaces { name, earlier } => {
                write!(formatter, "{name} is declared again; line {earlier} is ignored")
            }
            ProcfileWarningKind::TooMany { name } => {
                write!(formatter, "{name} is ignored, since only {MOST_PROCESS_TYPES} process types are allowed")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> (Vec<(String, String)>, Vec<String>) {
        let (procfile, warnings) = Procfile::parse(text).unwrap();
        (procfile.processes, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn types_and_commands_are_read_in_order() {
        type Case = (&'static [u8], &'static [(&'static str, &'static str)]);
        let cases: &[Case] = &[
            (b"", &[]),
            (b"web: node index.js", &[("web", "node index.js")]),
            (b"web: a\nworker: b\nrelease: c\n", &[("web", "a"), ("worker", "b"), ("release", "c")]),
            (b"web: a\r\nworker: b\r\n", &[("web", "a"), ("worker", "b")]),
            (b"\xEF\xBB\xBFweb: a", &[("web", "a")]),
            (b"# comment\n\n  \nweb: a\n  # more\n", &[("web", "a")]),
            (b"web:a", &[("web", "a")]),
            (b"web:\t a  ", &[("web", "a")]),
            (b"  web: a", &[("web", "a")]),
            (b"a_B-9: x: y # z", &[("a_B-9", "x: y # z")]),
            (b"web: echo \xC3\xA4", &[("web", "echo ä")]),
            (b"web: a\tb", &[("web", "a\tb")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(String, String)> =
                expected.iter().map(|(name, command)| ((*name).to_owned(), (*command).to_owned())).collect();
            assert_eq!(parse(text), (expected, Vec::new()), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_line_that_breaks_the_rule_is_reported_with_its_number() {
        let cases: &[(&[u8], &str)] = &[
            (b"web: a\nnode index.js", "line 2: \"node index.js\" is not `<type>: <command>`"),
            (b"web: a\n: x", "line 2: \"\" is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)"),
            (b"web: a\nw b: x", "line 2: \"w b\" is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)"),
            (b"web: a\nw/b: x", "line 2: \"w/b\" is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)"),
            (b"web: a\n$(id): x", "line 2: \"$(id)\" is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)"),
            (b"web: a\n\n\nworker:  ", "line 4: worker has no command"),
            (b"web: a\nx: a\0b", "line 2: the command of x holds characters that are not text"),
            (b"web: a\nx: \x1b[31mred", "line 2: the command of x holds characters that are not text"),
            (b"web: a\nx: \xff", "line 2: the command of x holds characters that are not text"),
        ];
        for (text, expected) in cases {
            let (processes, warnings) = parse(text);
            assert_eq!(processes, [("web".to_owned(), "a".to_owned())]);
            assert_eq!(warnings, [*expected]);
        }
        let long = format!("web: a\n{}: b", "t".repeat(33));
        assert_eq!(parse(long.as_bytes()).1.len(), 1);
    }

    #[test]
    fn the_last_of_two_equal_types_wins_with_a_warning() {
        let (processes, warnings) = parse(b"web: a\nworker: b\nweb: c");
        assert_eq!(processes, [("worker".to_owned(), "b".to_owned()), ("web".to_owned(), "c".to_owned())]);
        assert_eq!(warnings, ["line 3: web is declared again; line 1 is ignored"]);
    }

    #[test]
    fn the_number_of_types_and_the_size_have_limits() {
        let many: String = (0..22).map(|number| format!("t{number}: x\n")).collect();
        let (processes, warnings) = parse(many.as_bytes());
        assert_eq!(processes.len(), MOST_PROCESS_TYPES);
        assert_eq!(warnings[0], "line 21: t20 is ignored, since only 20 process types are allowed");
        assert_eq!(warnings.len(), 2);

        let mut full = b"web: ".to_vec();
        full.resize(PROCFILE_CAP, b'x');
        assert!(Procfile::parse(&full).is_ok());
        full.push(b'x');
        assert_eq!(Procfile::parse(&full), Err(ProcfileError::TooLarge { limit: PROCFILE_CAP }));
    }
}
