//! JUnit XML, as runners really write it: many dialects, cut off, or made to do harm.
//!
//! There is no standard, so nothing is required: what is there is read, what is missing stays unknown, and what can't be
//! right is named as a [`Problem`]. A report with a problem, or without one test, never speaks for a pass. Entities of
//! a document type are not expanded, and all that is kept is bounded ([`MOST_BYTES`] and the constants below it).

mod place;
mod text;

#[cfg(test)]
mod tests;

pub use place::{location, relative};
pub use text::clean;

use super::tap::MOST_FAILURES;
use crate::domain::{Counts, TestFailure};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use text::{Capped, resolve, seconds, unescape};

/// Of a larger file the rest is not read, which is a [`Problem::TooLarge`].
pub const MOST_BYTES: usize = 32 << 20;
/// Cases that are kept one by one; all are counted.
pub const MOST_CASES: usize = 100_000;
/// Elements within elements; what lies deeper is not looked at.
const MOST_DEPTH: usize = 64;
/// Bytes of a name, a class or a path.
const NAME_BYTES: usize = 500;
/// Bytes of a failure's text that are read for its message and its place.
const TEXT_BYTES: usize = 16 << 10;
/// Characters of a message that are kept.
const MESSAGE_CHARACTERS: usize = 1_500;
/// Attributes of one element that are looked at.
const MOST_ATTRIBUTES: usize = 64;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Flaky cases are among the passed.
    pub counts: Counts,
    pub flaky: u64,
    /// At most [`MOST_CASES`], in the order of the file.
    pub cases: Vec<Case>,
    /// At most 50, in the order of the file.
    pub failures: Vec<TestFailure>,
    /// What the file says of itself at its top.
    pub declared: Option<Declared>,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Case {
    pub suite: String,
    pub class: String,
    pub name: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// `None` where it is missing, negative or not a number.
    pub seconds: Option<f64>,
    pub result: CaseResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseResult {
    #[default]
    Passed,
    /// Failed first, and passed when the runner tried again.
    Flaky,
    Skipped,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Declared {
    pub tests: u64,
    /// Failures and errors.
    pub failed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// No `<testsuites>` or `<testsuite>`.
    NotJunit,
    /// It ends before its elements do.
    Truncated,
    /// Not to be read from this byte on.
    Malformed {
        at: u64,
    },
    TooLarge,
    TooDeep,
    /// It declares more failures than it shows.
    HiddenFailures {
        declared: u64,
        shown: u64,
    },
    /// It declares more tests than it shows.
    HiddenTests {
        declared: u64,
        shown: u64,
    },
}

impl Report {
    /// Whether it may speak for a pass: readable to its end, with at least one test and none failed.
    pub fn is_green(&self) -> bool {
        self.problems.is_empty() && self.counts.failed == 0 && self.counts.passed + self.counts.skipped > 0
    }

    pub fn total(&self) -> u64 {
        self.counts.passed + self.counts.failed + self.counts.skipped
    }

    /// Several files of one run as one report.
    pub fn merge(reports: impl IntoIterator<Item = Report>) -> Report {
        let mut whole = Report::default();
        for report in reports {
            whole.counts.passed += report.counts.passed;
            whole.counts.failed += report.counts.failed;
            whole.counts.skipped += report.counts.skipped;
            whole.flaky += report.flaky;
            let room = MOST_CASES.saturating_sub(whole.cases.len());
            whole.cases.extend(report.cases.into_iter().take(room));
            let room = MOST_FAILURES.saturating_sub(whole.failures.len());
            whole.failures.extend(report.failures.into_iter().take(room));
            if let Some(declared) = report.declared {
                let sum = whole.declared.get_or_insert_default();
                sum.tests += declared.tests;
                sum.failed += declared.failed;
            }
            whole.problems.extend(report.problems);
        }
        whole
    }
}

/// Reads a file, whatever it holds.
pub fn read(bytes: &[u8]) -> Report {
    let (bytes, too_large) = match bytes.get(..MOST_BYTES) {
        Some(first) if bytes.len() > MOST_BYTES => (first, true),
        _ => (bytes, false),
    };
    let content = text::decode(bytes);
    let mut reading = Reading::default();
    if too_large {
        reading.problem(Problem::TooLarge);
    }
    reading.all(&content);
    reading.into_report()
}

/// Where text is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Into {
    Failure,
    /// Of an attempt that the runner repeated.
    Retried,
    Nothing,
}

#[derive(Default)]
struct Suite {
    name: String,
    file: Option<String>,
}

struct OpenCase {
    case: Case,
    failed: bool,
    skipped: bool,
    retried: bool,
    message: Option<String>,
    body: Capped,
}

#[derive(Default)]
struct Reading {
    report: Report,
    depth: usize,
    rooted: bool,
    suites: Vec<Suite>,
    open: Option<OpenCase>,
    into: Vec<Into>,
    root_declares: bool,
    /// Go names each test once, so a name that comes again is the same test, run again.
    go: bool,
}

impl Reading {
    fn problem(&mut self, problem: Problem) {
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }

    fn all(&mut self, content: &str) {
        let mut reader = Reader::from_str(content);
        let config = reader.config_mut();
        config.allow_dangling_amp = true;
        config.allow_unmatched_ends = true;
        config.check_end_names = false;
        loop {
            match reader.read_event() {
                Ok(Event::Eof) => break,
                Ok(Event::Start(start)) => {
                    self.depth += 1;
                    if self.depth > MOST_DEPTH {
                        self.problem(Problem::TooDeep);
                    } else {
                        self.start(&start);
                    }
                }
                Ok(Event::Empty(start)) if self.depth < MOST_DEPTH => {
                    self.start(&start);
                    self.end(start.local_name().as_ref());
                }
                Ok(Event::End(end)) => {
                    if self.depth <= MOST_DEPTH {
                        self.end(end.local_name().as_ref());
                    }
                    self.depth = self.depth.saturating_sub(1);
                }
                Ok(Event::Text(text)) => self.text(&text),
                Ok(Event::CData(text)) => self.text(&text),
                Ok(Event::GeneralRef(name)) => match resolve(&name) {
                    Some(character) => self.text(character.encode_utf8(&mut [0; 4])),
                    None => {
                        self.text("&");
                        self.text(&name);
                        self.text(";");
                    }
                },
                // Comments, instructions and document types, whose entities stay unexpanded.
                Ok(_) => {}
                Err(_) => {
                    let at = reader.error_position();
                    // What is cut off in the middle of a tag is no more than cut off.
                    let cut = content.get(at as usize..).is_none_or(|rest| !rest.contains('>'));
                    self.problem(if cut { Problem::Truncated } else { Problem::Malformed { at } });
                    break;
                }
            }
        }
        if self.rooted && (self.depth > 0 || self.open.is_some()) {
            self.problem(Problem::Truncated);
        }
    }

    fn start(&mut self, start: &BytesStart<'_>) {
        let name = start.local_name();
        let inside = self.open.is_some();
        match name.as_ref() {
            "testsuites" if !inside => {
                self.rooted = true;
                let attributes = attributes(start);
                if let Some(declared) = declared(&attributes) {
                    self.root_declares = true;
                    self.report.declared = Some(declared);
                }
            }
            "testsuite" if !inside => self.suite(start),
            "testcase" => self.case(start),
            "failure" | "error" | "rerunFailure" | "rerunError" | "flakyFailure" | "flakyError" => {
                self.failure(name.as_ref(), start);
            }
            "skipped" | "ignored" | "disabled" | "incomplete" => {
                if let Some(open) = &mut self.open {
                    open.skipped = true;
                }
                self.into.push(Into::Nothing);
            }
            "property" => {
                let is_go = |(key, value): &(&str, String)| *key == "name" && value == "go.version";
                self.go |= attributes(start).iter().any(is_go);
            }
            // Output of all kinds.
            _ if inside => self.into.push(Into::Nothing),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        match name {
            "testsuite" if self.open.is_none() => {
                self.suites.pop();
            }
            "testcase" => {
                self.into.clear();
                self.close_case();
            }
            "property" => {}
            // A failure that stands in no case stands for one.
            "failure" | "error"
                if self.into.len() == 1 && self.open.as_ref().is_some_and(|open| open.case.name.is_empty()) =>
            {
                self.into.clear();
                self.close_case();
            }
            _ => {
                self.into.pop();
            }
        }
    }

    fn suite(&mut self, start: &BytesStart<'_>) {
        self.rooted = true;
        let attributes = attributes(start);
        if self.suites.is_empty()
            && !self.root_declares
            && let Some(declared) = declared(&attributes)
        {
            let sum = self.report.declared.get_or_insert_default();
            sum.tests = sum.tests.saturating_add(declared.tests);
            sum.failed = sum.failed.saturating_add(declared.failed);
        }
        let above = self.suites.last();
        let file = value(&attributes, &["file", "filepath"]).or_else(|| above.and_then(|above| above.file.clone()));
        let name = value(&attributes, &["name"]).unwrap_or_default();
        self.suites.push(Suite { name, file });
    }

    fn case(&mut self, start: &BytesStart<'_>) {
        // A case within a case: the first one never ended.
        if self.open.is_some() {
            self.problem(Problem::Malformed { at: 0 });
            self.into.clear();
            self.close_case();
        }
        let attributes = attributes(start);
        let suite = self.suites.last();
        let own = value(&attributes, &["file", "filepath"]);
        let case = Case {
            suite: suite.map(|suite| suite.name.clone()).unwrap_or_default(),
            class: value(&attributes, &["classname", "class"]).unwrap_or_default(),
            name: value(&attributes, &["name"]).unwrap_or_else(|| "(unnamed)".to_owned()),
            file: own.or_else(|| suite.and_then(|suite| suite.file.clone())),
            line: value(&attributes, &["line", "lineno"]).and_then(|line| line.trim().parse().ok()),
            seconds: value(&attributes, &["time", "duration"]).and_then(|time| seconds(&time)),
            result: CaseResult::Passed,
        };
        let said = value(&attributes, &["result"]).or_else(|| value(&attributes, &["status"])).unwrap_or_default();
        let said = said.to_ascii_lowercase();
        let failed = matches!(said.as_str(), "failed" | "failure" | "fail" | "error" | "errored" | "broken");
        let skipped = matches!(said.as_str(), "skipped" | "notrun" | "suppressed" | "disabled" | "ignored" | "pending");
        self.open =
            Some(OpenCase { case, failed, skipped, retried: false, message: None, body: Capped::new(TEXT_BYTES) });
    }

    fn failure(&mut self, kind: &str, start: &BytesStart<'_>) {
        let retried = kind != "failure" && kind != "error";
        if self.open.is_none() {
            // A suite that could not be loaded, or a hook: it has no case, and is no less a failure.
            let suite = self.suites.last();
            let case = Case {
                suite: suite.map(|suite| suite.name.clone()).unwrap_or_default(),
                file: suite.and_then(|suite| suite.file.clone()),
                ..Case::default()
            };
            self.open = Some(OpenCase {
                case,
                failed: false,
                skipped: false,
                retried: false,
                message: None,
                body: Capped::new(TEXT_BYTES),
            });
            self.into.clear();
        }
        let Some(open) = &mut self.open else { return };
        if retried {
            open.retried = true;
            self.into.push(Into::Retried);
            return;
        }
        open.failed = true;
        if open.message.is_none() {
            let attributes = attributes(start);
            open.message = value(&attributes, &["message"]).filter(|message| !message.trim().is_empty());
            if open.message.is_none() {
                open.message = value(&attributes, &["type"]).filter(|kind| !kind.trim().is_empty());
            }
        } else if !open.body.is_empty() {
            open.body.push("\n");
        }
        self.into.push(Into::Failure);
    }

    fn text(&mut self, text: &str) {
        if self.into.last() == Some(&Into::Failure)
            && let Some(open) = &mut self.open
        {
            open.body.push(text);
        }
    }

    fn close_case(&mut self) {
        let Some(open) = self.open.take() else { return };
        let OpenCase { mut case, failed, skipped, retried, message, body } = open;
        case.result = match (failed, skipped, retried) {
            (true, ..) => CaseResult::Failed,
            (false, true, _) => CaseResult::Skipped,
            (false, false, true) => CaseResult::Flaky,
            (false, false, false) => CaseResult::Passed,
        };
        if failed {
            self.add_failure(&case, message, body.text());
        }
        match case.result {
            CaseResult::Failed => self.report.counts.failed += 1,
            CaseResult::Skipped => self.report.counts.skipped += 1,
            CaseResult::Flaky => {
                self.report.flaky += 1;
                self.report.counts.passed += 1;
            }
            CaseResult::Passed => self.report.counts.passed += 1,
        }
        if self.report.cases.len() < MOST_CASES {
            self.report.cases.push(case);
        }
    }

    fn add_failure(&mut self, case: &Case, message: Option<String>, body: &str) {
        if self.report.failures.len() == MOST_FAILURES {
            return;
        }
        let message = clean(&message.unwrap_or_default());
        let body = clean(body);
        let (message, body) = (message.trim(), body.trim());
        let (file, line) = match place::location(body, case.file.as_deref()) {
            Some((file, line)) => (Some(file), Some(line)),
            None => (case.file.as_deref().map(place::relative).map(str::to_owned), case.line),
        };
        let whole = if body.contains(message) {
            body.to_owned()
        } else if body.is_empty() {
            message.to_owned()
        } else {
            format!("{message}\n{body}")
        };
        let message = whole.chars().take(MESSAGE_CHARACTERS).collect();
        self.report.failures.push(TestFailure { name: clean(&title(case)), message, file, line });
    }

    fn into_report(mut self) -> Report {
        if !self.rooted {
            self.problem(Problem::NotJunit);
        }
        if self.go {
            fold_reruns(&mut self.report);
        }
        let (declared, shown) = (self.report.declared.unwrap_or_default(), self.report.counts.failed);
        // Reruns are declared as often as they ran.
        if declared.failed > shown && !self.go {
            self.problem(Problem::HiddenFailures { declared: declared.failed, shown });
        }
        let shown = self.report.total();
        if declared.tests > shown && !self.go {
            self.problem(Problem::HiddenTests { declared: declared.tests, shown });
        }
        self.report
    }
}

/// gotestsum writes each run of a test: one that failed and passed then is flaky, and counts once.
fn fold_reruns(report: &mut Report) {
    let key = |case: &Case| (case.class.clone(), case.name.clone());
    let mut last: HashMap<(String, String), CaseResult> = HashMap::new();
    for case in &report.cases {
        let result = match (last.get(&key(case)), case.result) {
            (Some(CaseResult::Failed), CaseResult::Passed) | (Some(CaseResult::Passed), CaseResult::Failed) => {
                CaseResult::Flaky
            }
            (Some(CaseResult::Flaky), CaseResult::Passed | CaseResult::Failed) => CaseResult::Flaky,
            (_, result) => result,
        };
        last.insert(key(case), result);
    }
    let mut counted = std::collections::HashSet::new();
    let mut folded = Vec::new();
    for case in std::mem::take(&mut report.cases) {
        if counted.insert(key(&case)) {
            let result = last.get(&key(&case)).copied().unwrap_or(case.result);
            folded.push(Case { result, ..case });
        }
    }
    let flaky: Vec<String> =
        folded.iter().filter(|case| case.result == CaseResult::Flaky).map(|case| clean(&title(case))).collect();
    report.failures.retain(|failure| !flaky.contains(&failure.name));
    let mut once = std::collections::HashSet::new();
    report.failures.retain(|failure| once.insert(failure.name.clone()));
    let count = |result| folded.iter().filter(|case| case.result == result).count() as u64;
    report.flaky = count(CaseResult::Flaky);
    report.counts = Counts {
        passed: count(CaseResult::Passed) + report.flaky,
        failed: count(CaseResult::Failed),
        skipped: count(CaseResult::Skipped),
    };
    report.cases = folded;
}

/// What people call it: class and name, where the name doesn't say it all.
pub fn title(case: &Case) -> String {
    match (case.class.as_str(), case.name.as_str()) {
        ("", "") => match case.suite.as_str() {
            "" => "(outside of all tests)".to_owned(),
            suite => suite.to_owned(),
        },
        ("", name) => name.to_owned(),
        (class, name) if name.starts_with(class) => name.to_owned(),
        (class, name) => format!("{class} {name}"),
    }
}

/// Names as they stand, values without escapes; bounded in number and length.
fn attributes<'a>(start: &'a BytesStart<'_>) -> Vec<(&'a str, String)> {
    let mut all = start.attributes();
    let readable = all.with_checks(false).take(MOST_ATTRIBUTES).flatten();
    let wanted = |key: &str| {
        matches!(
            key,
            "name"
                | "classname"
                | "class"
                | "file"
                | "filepath"
                | "line"
                | "lineno"
                | "time"
                | "duration"
                | "message"
                | "type"
                | "tests"
                | "failures"
                | "errors"
                | "result"
                | "status"
        )
    };
    readable
        .filter(|attribute| wanted(attribute.key.0))
        .map(|attribute| {
            let most = if attribute.key.0 == "message" { TEXT_BYTES } else { NAME_BYTES };
            (attribute.key.0, unescape(&attribute.value, most))
        })
        .collect()
}

fn value(attributes: &[(&str, String)], names: &[&str]) -> Option<String> {
    let found = attributes.iter().find(|(key, value)| names.contains(key) && !value.is_empty());
    found.map(|(_, value)| value.clone())
}

fn declared(attributes: &[(&str, String)]) -> Option<Declared> {
    let number = |name: &str| value(attributes, &[name]).and_then(|value| value.trim().parse::<u64>().ok());
    let tests = number("tests")?;
    let failed = number("failures").unwrap_or(0).saturating_add(number("errors").unwrap_or(0));
    Some(Declared { tests, failed })
}
