//! One file on several nodes: how a runner is told to run some of a file's test cases, and what shows that it did.
//!
//! The rule: of the parts of a file all but one name their cases, and the last is *all but these*. So a case that nobody
//! has seen, or whose name reads differently today, is in exactly one part, whatever is known of it; and a name that no
//! longer exists is in none. Each part says how many cases the file holds and how many it kept: the parts of a file make
//! up the whole, or the run isn't green ([`super::split::proof`]).

use super::junit::{Case, CaseResult, Report};
use super::split::Item;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// How a runner is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseWay {
    /// By a plugin that is loaded through `PYTEST_ADDOPTS`.
    Pytest,
    /// By a file that is loaded through `SPEC_OPTS`.
    Rspec,
    /// By `-t`, a pattern that doesn't tell capitals from small letters.
    Jest,
    /// By `-t`.
    Vitest,
}

/// Bytes of names that are kept of one file, and that a pattern may have: one argument of a program has at most 128 KiB.
pub const MOST_NAME_BYTES: usize = 48 << 10;
/// Cases of one file that are told apart.
pub const MOST_CASES: usize = 2_000;

/// Of one part, what its runner said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Cases of the whole file.
    pub collected: u32,
    /// Those of them that are this part's.
    pub kept: u32,
}

/// What is added to a batch that holds one part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// After the name of the file, as one word each.
    pub words: Vec<String>,
    /// The name of a file that is to lie in the batch's folder, with its text.
    pub loaded: Option<(&'static str, &'static str)>,
    /// The text of the file that [`TOLD`] names.
    pub told: Option<String>,
}

/// The variable that names the file with the cases; what was made of it lies beside it, with `.said` behind its name.
pub const TOLD: &str = "LANDFALL_CASES";

impl CaseWay {
    /// A case's name, by which it is told; `None` where it can't be.
    pub fn key(self, case: &Case) -> Option<String> {
        let key = match self {
            CaseWay::Pytest => format!("{} {}", case.class, case.name),
            CaseWay::Rspec => case.name.clone(),
            CaseWay::Jest => case.name.trim().to_lowercase(),
            CaseWay::Vitest => case.name.replace(" > ", " ").trim().to_owned(),
        };
        (!key.trim().is_empty() && !key.chars().any(char::is_control)).then_some(key)
    }

    pub fn selection(self, item: &Item) -> Selection {
        let named = if item.except.is_empty() { &item.cases } else { &item.except };
        let only = item.except.is_empty();
        match self {
            CaseWay::Pytest | CaseWay::Rspec => {
                let mut told = String::from(if only { "only" } else { "except" });
                for name in named {
                    told.push('\n');
                    told.push_str(name);
                }
                let loaded = match self {
                    CaseWay::Pytest => ("landfall_cases.py", include_str!("cases/landfall_cases.py")),
                    _ => ("landfall_cases.rb", include_str!("cases/landfall_cases.rb")),
                };
                Selection { loaded: Some(loaded), told: Some(told), ..Selection::default() }
            }
            CaseWay::Jest | CaseWay::Vitest => {
                let names: Vec<String> = named.iter().map(|name| escaped(name)).collect();
                let names = names.join("|");
                let pattern =
                    if only { format!("^\\s*(?:{names})\\s*$") } else { format!("^(?!\\s*(?:{names})\\s*$)") };
                Selection { words: vec!["-t".to_owned(), pattern], ..Selection::default() }
            }
        }
    }

    /// Whether cases of other parts stand among the results, as skipped.
    fn shows_others(self) -> bool {
        matches!(self, CaseWay::Jest | CaseWay::Vitest)
    }
}

/// A text as a pattern of JavaScript that matches nothing else.
fn escaped(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len() + 8);
    for one in name.chars() {
        if "\\^$.*+?()[]{}|".contains(one) {
            pattern.push('\\');
        }
        pattern.push(one);
    }
    pattern
}

/// What the plugin left: two numbers.
pub fn said(text: &str) -> Option<Part> {
    let (collected, kept) = text.trim().split_once(' ')?;
    Some(Part { collected: collected.parse().ok()?, kept: kept.parse().ok()? })
}

/// The results of a part, told apart: which of them are its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sorted {
    pub own: u32,
    pub failed: u32,
    /// They ran here and are another part's.
    pub foreign: u32,
    pub part: Option<Part>,
}

/// Sorts the cases of a report. `said` is what the plugin left, where there is one.
pub fn sort(way: CaseWay, item: &Item, report: &Report, said: Option<Part>, held: impl Fn(&Case) -> bool) -> Sorted {
    let only = item.except.is_empty();
    let named: HashSet<&str> = if only { &item.cases } else { &item.except }.iter().map(String::as_str).collect();
    let mut sorted = Sorted { part: said, ..Sorted::default() };
    for case in &report.cases {
        let own = way.key(case).is_some_and(|key| named.contains(key.as_str())) == only;
        let failed = case.result == CaseResult::Failed;
        // What failed without being a case of the file, such as its loading, failed for each of its parts.
        if own || failed {
            sorted.own += u32::from(own);
            sorted.failed += u32::from(failed && !held(case));
        } else if case.result != CaseResult::Skipped {
            sorted.foreign += 1;
        }
    }
    if way.shows_others() {
        let collected = u32::try_from(report.cases.len()).unwrap_or(u32::MAX);
        sorted.part = Some(Part { collected, kept: sorted.own });
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(class: &str, name: &str, result: CaseResult) -> Case {
        Case { class: class.into(), name: name.into(), result, ..Case::default() }
    }

    fn part(cases: &[&str], except: &[&str]) -> Item {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Item { path: "a".into(), cases: own(cases), except: own(except), ..Item::default() }
    }

    #[test]
    fn cases_are_named_as_their_runner_takes_them() {
        let pytest = case("tests.test_a.TestX", "test_b[1-2]", CaseResult::Passed);
        assert_eq!(CaseWay::Pytest.key(&pytest).as_deref(), Some("tests.test_a.TestX test_b[1-2]"));
        let jest = case(" Top", " Top level", CaseResult::Passed);
        assert_eq!(CaseWay::Jest.key(&jest).as_deref(), Some("top level"));
        let vitest = case("vt/a.test.mjs", "outer > inner > adds (1+1)", CaseResult::Passed);
        assert_eq!(CaseWay::Vitest.key(&vitest).as_deref(), Some("outer inner adds (1+1)"));
        assert_eq!(CaseWay::Rspec.key(&case("spec.a", "two\nlines", CaseResult::Passed)), None);
    }

    #[test]
    fn one_part_names_its_cases_and_another_all_but_these() {
        let only = CaseWay::Vitest.selection(&part(&["a (1+1)", "b-c"], &[]));
        assert_eq!(only.words, ["-t", r"^\s*(?:a \(1\+1\)|b-c)\s*$"]);
        let rest = CaseWay::Jest.selection(&part(&[], &["a|b"]));
        assert_eq!(rest.words, ["-t", r"^(?!\s*(?:a\|b)\s*$)"]);
        let told = CaseWay::Pytest.selection(&part(&[], &["t x", "t y"]));
        assert_eq!(told.told.as_deref(), Some("except\nt x\nt y"));
        assert!(told.loaded.is_some_and(|(name, text)| name == "landfall_cases.py" && text.contains(TOLD)));
    }

    #[test]
    fn cases_of_other_parts_are_seen_and_so_is_how_many_there_are() {
        let report = Report {
            cases: vec![
                case("", "a", CaseResult::Passed),
                case("", "B", CaseResult::Skipped),
                case("", "c", CaseResult::Failed),
            ],
            ..Report::default()
        };
        let sorted = sort(CaseWay::Jest, &part(&["a", "c"], &[]), &report, None, |_| false);
        let part_of = |collected, kept| Some(Part { collected, kept });
        assert_eq!(sorted, Sorted { own: 2, failed: 1, foreign: 0, part: part_of(3, 2) });
        let rest = sort(CaseWay::Jest, &part(&[], &["a", "c"]), &report, None, |_| false);
        assert_eq!((rest.own, rest.foreign), (1, 1), "another part's case ran here");
        assert_eq!(said("12 3\n"), part_of(12, 3));
        assert_eq!(said("12"), None);
    }
}
