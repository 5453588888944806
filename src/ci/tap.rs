//! The Test Anything Protocol, versions 12 to 14, as runners really print it: between other output, cut off, with
//! or without a plan. Only what is said is counted; a plan that was not kept is a failure.

use crate::domain::{Counts, TestFailure};

/// What a stream of lines reported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TapReport {
    pub counts: Counts,
    /// At most `MOST_FAILURES`, in the order of the output.
    pub failures: Vec<TestFailure>,
}

pub const MOST_FAILURES: usize = 50;
/// Lines of explanation that are kept of one failure.
const MOST_LINES: usize = 20;
/// Bytes of it, but for the last line.
const MOST_BYTES: usize = 1_000;

/// `None` where the output holds no test point and no plan: then it is no TAP.
pub fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Option<TapReport> {
    let mut report = TapReport::default();
    let mut planned: Option<u64> = None;
    let mut explaining = false;
    let mut seen = false;
    for line in lines {
        let line = line.trim_end();
        if let Some(plan) = plan(line) {
            planned = Some(plan);
            seen = true;
            explaining = false;
            continue;
        }
        if let Some(reason) = line.strip_prefix("Bail out!") {
            seen = true;
            report.counts.failed += 1;
            fail(&mut report, "Bail out!", reason.trim());
            explaining = false;
            continue;
        }
        let (ok, rest) = match (word(line, "not ok"), word(line, "ok")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => {
                explain(&mut report, explaining, line);
                continue;
            }
        };
        seen = true;
        let (name, directive) = split_directive(rest);
        explaining = false;
        match (ok, directive) {
            (_, Some(Directive::Skip)) => report.counts.skipped += 1,
            // What is still to be done may fail.
            (_, Some(Directive::Todo)) | (true, None) => report.counts.passed += 1,
            (false, None) => {
                report.counts.failed += 1;
                explaining = fail(&mut report, name, "");
            }
        }
    }
    let said = report.counts.passed + report.counts.failed + report.counts.skipped;
    if let Some(planned) = planned.filter(|planned| *planned > said) {
        report.counts.failed += planned - said;
        fail(&mut report, "plan", &format!("{planned} tests were planned, {said} reported"));
    }
    seen.then_some(report)
}

/// `1..N` alone on its line.
fn plan(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("1..")?;
    let digits = rest.split([' ', '#']).next()?;
    digits.parse().ok().filter(|planned| *planned <= 10_000_000)
}

fn word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(word)?;
    (rest.is_empty() || rest.starts_with(' ')).then_some(rest)
}

enum Directive {
    Skip,
    Todo,
}

/// The name without its number and dash, and what `# SKIP` or `# TODO` says.
fn split_directive(rest: &str) -> (&str, Option<Directive>) {
    let rest = rest.trim_start();
    let rest = rest.trim_start_matches(|character: char| character.is_ascii_digit()).trim_start();
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let Some((name, comment)) = rest.rsplit_once('#') else { return (rest.trim(), None) };
    let comment = comment.trim_start().to_ascii_lowercase();
    if comment.starts_with("skip") {
        (name.trim(), Some(Directive::Skip))
    } else if comment.starts_with("todo") {
        (name.trim(), Some(Directive::Todo))
    } else {
        (rest.trim(), None)
    }
}

/// Whether the lines that follow may explain it.
fn fail(report: &mut TapReport, name: &str, message: &str) -> bool {
    if report.failures.len() == MOST_FAILURES {
        return false;
    }
    let name = if name.is_empty() { "(unnamed)" } else { name };
    report.failures.push(TestFailure {
        name: name.chars().take(300).collect(),
        message: message.chars().take(500).collect(),
        ..TestFailure::default()
    });
    true
}

/// Diagnostics: `# …` lines and the indented YAML block after a failure.
fn explain(report: &mut TapReport, explaining: bool, line: &str) {
    if !explaining {
        return;
    }
    let text = match line.strip_prefix('#') {
        Some(comment) => comment.trim(),
        None if line.starts_with("  ") => line.trim(),
        None => return,
    };
    if text.is_empty() || text == "---" || text == "..." {
        return;
    }
    if let Some(failure) = report.failures.last_mut() {
        if failure.message.lines().count() >= MOST_LINES || failure.message.len() >= MOST_BYTES {
            return;
        }
        if !failure.message.is_empty() {
            failure.message.push('\n');
        }
        failure.message.extend(text.chars().take(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn reads_what_runners_print() {
        let text = "TAP version 13\n1..4\nok 1 - adds\nnot ok 2 - greets by name\n# expected \"Hello, Ada\"\n  ---\n  got: \"Hello\"\n  ...\nok 3 - flies # SKIP no wings\nnot ok 4 - later # TODO\nunrelated\n";
        let report = read(text.lines()).unwrap();
        assert_eq!(report.counts, counts(2, 1, 1));
        assert_eq!(
            report.failures,
            [TestFailure {
                name: "greets by name".into(),
                message: "expected \"Hello, Ada\"\ngot: \"Hello\"".into(),
                ..TestFailure::default()
            }]
        );
    }

    #[test]
    fn what_was_planned_and_not_run_has_failed() {
        let report = read("1..3\nok 1 a\n".lines()).unwrap();
        assert_eq!(report.counts, counts(1, 2, 0));
        assert_eq!(report.failures[0].message, "3 tests were planned, 1 reported");
        assert_eq!(read("Bail out! no database".lines()).unwrap().counts.failed, 1);
    }

    #[test]
    fn other_output_is_no_tap() {
        assert_eq!(read("all good\nokay then\nnot okay\n1..\n".lines()), None);
        assert_eq!(read("".lines()), None);
    }

    #[test]
    fn floods_are_bounded() {
        let flood: Vec<String> = (0..100_000).map(|number| format!("not ok {number} - {}", "x".repeat(1000))).collect();
        let report = read(flood.iter().map(String::as_str)).unwrap();
        assert_eq!(report.counts.failed, 100_000);
        assert_eq!(report.failures.len(), MOST_FAILURES);
        assert!(report.failures[0].name.len() <= 300);
    }
}
