//! From what a batch left behind, its exit status and its results, to what became of each item.
//!
//! A pass needs both to say so: a zero exit without results is as little one as results without failures and an exit
//! that nothing explains. What can't be told apart counts as missing, so the board looks closer in smaller batches.

use super::cases::{self, CaseWay, Part};
use super::junit::{Case, CaseResult, Problem, Report, clean, location, title};
use super::split::{Item, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// How the command of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BatchEnd {
    Exited {
        status: i32,
    },
    /// By a signal, for lack of memory too.
    Killed,
    TimedOut,
}

/// What is known of a batch when it is over.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Numbers in the plan, with their items.
    pub items: &'a [(u32, &'a Item)],
    pub end: BatchEnd,
    pub wall_ms: u64,
    /// What a start-up is taken to cost.
    pub start_up_ms: u64,
    /// `None` where no file was found.
    pub report: Option<&'a Report>,
    /// The runner's exit status for "no tests in these files".
    pub empty_status: Option<i32>,
    /// How the cases of a part of a file were told, and what was said of them.
    pub cases: Option<CaseWay>,
    pub said: Option<Part>,
    /// Nothing of it is dealt again.
    pub fixed: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Judged {
    pub items: BTreeMap<u32, ItemResult>,
    /// Names of tests that failed and are held in quarantine.
    pub quarantined: Vec<String>,
    /// The item of each failed test, by the test's name as reports show it, where that can be told.
    pub failed: BTreeMap<String, u32>,
    /// Of a batch that is one part of a file, what its runner said.
    pub part: Option<Part>,
    /// The cases of each item that passed, by their keys, with their time; where the runner can be told of them.
    pub cases: BTreeMap<u32, BTreeMap<String, u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemResult {
    pub outcome: Outcome,
    pub wall_ms: u64,
    pub cases: u32,
}

/// `is_quarantined` is asked with a test's name as reports show it.
pub fn judge(batch: Batch<'_>, is_quarantined: impl Fn(&str) -> bool) -> Judged {
    let all = |outcome: Outcome| {
        let each = batch.wall_ms / (batch.items.len().max(1) as u64);
        let result = |(number, _): &(u32, &Item)| (*number, ItemResult { outcome, wall_ms: each, cases: 0 });
        Judged { items: batch.items.iter().map(result).collect(), ..Judged::default() }
    };
    let status = match batch.end {
        BatchEnd::TimedOut => return all(Outcome::TimedOut),
        BatchEnd::Killed => return all(Outcome::Crashed),
        BatchEnd::Exited { status } => status,
    };
    if batch.items.iter().any(|(_, item)| item.is_part()) {
        return judge_part(&batch, status, all, is_quarantined);
    }
    let nothing = batch.report.is_none_or(|report| report.cases.is_empty() && report.counts.failed == 0);
    if nothing && batch.empty_status == Some(status) {
        return all(if batch.items.iter().any(|(_, item)| item.expected_cases > 0) {
            Outcome::Missing
        } else {
            Outcome::Empty
        });
    }
    let Some(report) = batch.report else {
        return all(if status == 0 { Outcome::Missing } else { Outcome::Crashed });
    };
    let unreadable = |problem: &Problem| !matches!(problem, Problem::HiddenTests { .. });
    if report.problems.iter().any(unreadable) {
        return all(Outcome::Crashed);
    }
    let tallies = tally(&batch, report, is_quarantined);
    if status != 0 && tallies.failed == 0 && tallies.quarantined.is_empty() {
        return all(Outcome::Crashed);
    }
    let share = overhead(&batch, &tallies);
    let result = |(number, item): &(u32, &Item)| {
        let own = tallies.items.get(number).copied().unwrap_or_default();
        let outcome = outcome(&batch, item, own, status, &tallies);
        (*number, ItemResult { outcome, wall_ms: own.wall_ms.saturating_add(share), cases: own.ran() })
    };
    Judged {
        items: batch.items.iter().map(result).collect(),
        quarantined: tallies.quarantined.clone(),
        failed: tallies.named.clone(),
        part: None,
        cases: tallies.cases,
    }
}

/// A part of a file is alone in its batch. It passes where what it was told to run, and nothing else, ran and passed.
fn judge_part(
    batch: &Batch<'_>,
    status: i32,
    all: impl Fn(Outcome) -> Judged,
    is_quarantined: impl Fn(&str) -> bool,
) -> Judged {
    let ([(number, item)], Some(way)) = (batch.items, batch.cases) else { return all(Outcome::Missing) };
    let Some(report) = batch.report else {
        return all(if status == 0 { Outcome::Missing } else { Outcome::Crashed });
    };
    if report.problems.iter().any(|problem| !matches!(problem, Problem::HiddenTests { .. })) {
        return all(Outcome::Crashed);
    }
    let sorted = cases::sort(way, item, report, batch.said, |case| is_quarantined(&title(case)));
    let tallies = tally(batch, report, is_quarantined);
    let explained = sorted.failed > 0 || !tallies.quarantined.is_empty() || tallies.failed > 0;
    let outcome = match sorted.part {
        _ if sorted.failed > 0 || tallies.failed > 0 => Outcome::Failed,
        // What another part runs ran here as well: the runner was not told, or understood something else.
        _ if sorted.foreign > 0 => Outcome::Crashed,
        Some(part) if part.kept == 0 && part.collected > 0 && (status == 0 || batch.empty_status == Some(status)) => {
            Outcome::Empty
        }
        _ if status != 0 && !explained => Outcome::Crashed,
        Some(part) if part.kept > 0 && sorted.own >= part.kept => Outcome::Passed,
        _ => Outcome::Missing,
    };
    let own = tallies.items.get(number).copied().unwrap_or_default();
    let wall_ms = own.wall_ms.saturating_add(overhead(batch, &tallies));
    Judged {
        items: [(*number, ItemResult { outcome, wall_ms, cases: sorted.own })].into(),
        quarantined: tallies.quarantined,
        failed: tallies.named,
        part: sorted.part,
        cases: tallies.cases,
    }
}

fn outcome(batch: &Batch<'_>, item: &Item, own: Tally, status: i32, all: &Tallies) -> Outcome {
    if own.failed > 0 {
        return Outcome::Failed;
    }
    if all.stray_failures > 0 && batch.items.len() > 1 {
        // Something failed, and nobody can say whose it is.
        return Outcome::Missing;
    }
    if status != 0 && all.fails_beside(own) && !own.is_whole(item) && !batch.fixed {
        // The runner may have stopped at the first failure.
        return Outcome::Missing;
    }
    match (own.cases, status) {
        // A runner that names no files speaks for the batch as a whole.
        (0, 0) if all.items.is_empty() && all.stray > 0 => Outcome::Passed,
        (0, 0) if item.expected_cases == 0 => Outcome::Empty,
        (0, _) => Outcome::Missing,
        _ => Outcome::Passed,
    }
}

/// What each item's start costs besides its cases: what is left of the wall time, shared.
fn overhead(batch: &Batch<'_>, tallies: &Tallies) -> u64 {
    let cases: u64 = tallies.items.values().map(|tally| tally.wall_ms).fold(0, u64::saturating_add);
    let rest = batch.wall_ms.saturating_sub(cases).saturating_sub(batch.start_up_ms);
    rest / (batch.items.len().max(1) as u64)
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    cases: u32,
    skipped: u32,
    failed: u32,
    quarantined: u32,
    wall_ms: u64,
}

impl Tally {
    /// One that was skipped may be one that was not reached.
    fn ran(self) -> u32 {
        self.cases.saturating_sub(self.skipped)
    }

    /// Whether as many cases ran as the item is known to have.
    fn is_whole(self, item: &Item) -> bool {
        item.expected_cases > 0 && self.ran() >= item.expected_cases
    }
}

#[derive(Debug, Default)]
struct Tallies {
    items: BTreeMap<u32, Tally>,
    failed: u64,
    /// Cases, and failures among them, that belong to no item of the batch as far as can be seen.
    stray: u64,
    stray_failures: u64,
    quarantined: Vec<String>,
    named: BTreeMap<String, u32>,
    cases: BTreeMap<u32, BTreeMap<String, u64>>,
}

impl Tallies {
    /// Whether anything but `own` has a failure, in quarantine or not: a runner knows of no quarantine.
    fn fails_beside(&self, own: Tally) -> bool {
        self.failed + self.quarantined.len() as u64 > u64::from(own.failed + own.quarantined)
    }
}

fn tally(batch: &Batch<'_>, report: &Report, is_quarantined: impl Fn(&str) -> bool) -> Tallies {
    let items = batch.items;
    let index = Index::new(items);
    let mut tallies = Tallies::default();
    for case in &report.cases {
        let name = title(case);
        let failed = case.result == CaseResult::Failed;
        let held = failed && is_quarantined(&name);
        if held {
            tallies.quarantined.push(name.clone());
        }
        tallies.failed += u64::from(failed && !held);
        let number = match items {
            [(only, _)] => Some(*only),
            _ => index.find(case),
        };
        let Some(number) = number else {
            tallies.stray += 1;
            tallies.stray_failures += u64::from(failed && !held);
            continue;
        };
        let own = tallies.items.entry(number).or_default();
        own.cases += 1;
        own.skipped += u32::from(case.result == CaseResult::Skipped);
        own.failed += u32::from(failed && !held);
        own.quarantined += u32::from(held);
        if failed && !held {
            tallies.named.entry(clean(&name)).or_insert(number);
        }
        let wall_ms = (case.seconds.unwrap_or(0.0) * 1_000.0).round() as u64;
        own.wall_ms = own.wall_ms.saturating_add(wall_ms);
        let ran = matches!(case.result, CaseResult::Passed | CaseResult::Flaky);
        if let Some(key) = batch.cases.filter(|_| ran).and_then(|way| way.key(case)) {
            let time = tallies.cases.entry(number).or_default().entry(key).or_default();
            *time = time.saturating_add(wall_ms);
        }
    }
    // Cases beyond those that are kept are counted all the same.
    let beyond = report.counts.failed.saturating_sub(tallies.failed + tallies.quarantined.len() as u64);
    tallies.failed += beyond;
    tallies.stray_failures += beyond;
    tallies
}

/// Items by the names under which results speak of them.
struct Index<'a> {
    by_path: HashMap<&'a str, u32>,
    /// `tests.unit.test_a` for `tests/unit/test_a.py`, as pytest and RSpec name classes.
    by_dots: HashMap<String, &'a str>,
}

impl<'a> Index<'a> {
    fn new(items: &'a [(u32, &'a Item)]) -> Index<'a> {
        let mut by_path: HashMap<&str, u32> = HashMap::new();
        let mut by_dots = HashMap::new();
        for (number, item) in items {
            let path = item.path.strip_prefix("./").unwrap_or(&item.path);
            by_path.entry(path).or_insert(*number);
            let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
            by_dots.insert(stem.replace('/', "."), path);
        }
        Index { by_path, by_dots }
    }

    fn find(&self, case: &Case) -> Option<u32> {
        let path = self.path(case)?;
        self.by_path.get(path).copied()
    }

    fn path(&self, case: &Case) -> Option<&'a str> {
        let known = |path: &str| self.by_path.get_key_value(path).map(|(path, _)| *path);
        let named = [case.file.as_deref(), Some(case.class.as_str()), Some(case.suite.as_str())];
        for name in named.into_iter().flatten() {
            if let Some(path) = known(super::junit::relative(name)) {
                return Some(path);
            }
        }
        // A file that could not be loaded is named by pytest where others have the test's name.
        for dotted in [case.class.as_str(), case.name.as_str()] {
            let mut rest = dotted;
            loop {
                if let Some(path) = self.by_dots.get(rest) {
                    return Some(path);
                }
                match rest.rsplit_once('.') {
                    Some((shorter, _)) => rest = shorter,
                    None => break,
                }
            }
        }
        self.package(&case.class)
    }

    /// Go's packages (`example.com/x/server` for `./server`) and Cargo's targets (`crate::api` for `--test=api`).
    fn package(&self, class: &str) -> Option<&'a str> {
        let fits = |path: &str| {
            if let Some(name) = path.strip_prefix("--test=") {
                return class.rsplit_once("::").is_some_and(|(_, target)| target == name);
            }
            match path {
                "--lib" => !class.is_empty() && !class.contains("::"),
                "--bins" => class.contains("::bin/"),
                _ => class.strip_suffix(path).is_some_and(|before| before.ends_with('/')),
            }
        };
        // The longest, since `a/b` ends with `b` too.
        self.by_path.keys().copied().filter(|path| fits(path)).max_by_key(|path| path.len())
    }
}

/// Where the first failure of an item stands, for people who look for it.
pub fn first_place(report: &Report) -> Option<(String, u32)> {
    report.failures.iter().find_map(|failure| match (&failure.file, failure.line) {
        (Some(file), Some(line)) => Some((file.clone(), line)),
        _ => location(&failure.message, failure.file.as_deref()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::junit;
    use super::*;

    fn item(path: &str) -> Item {
        Item {
            path: path.into(),
            cases: Vec::new(),
            except: Vec::new(),
            predicted_ms: 1_000,
            seen: true,
            expected_cases: 0,
        }
    }

    fn outcomes(paths: &[&str], status: i32, xml: Option<&str>) -> Vec<Outcome> {
        let items: Vec<Item> = paths.iter().map(|path| item(path)).collect();
        judged(&items, BatchEnd::Exited { status }, xml, &[]).items.values().map(|result| result.outcome).collect()
    }

    fn judged(items: &[Item], end: BatchEnd, xml: Option<&str>, quarantine: &[&str]) -> Judged {
        let numbered: Vec<(u32, &Item)> = (0..).zip(items).collect();
        let report = xml.map(|xml| junit::read(xml.as_bytes()));
        let batch = Batch {
            items: &numbered,
            end,
            wall_ms: 10_000,
            start_up_ms: 1_000,
            report: report.as_ref(),
            empty_status: Some(5),
            cases: None,
            said: None,
            fixed: false,
        };
        judge(batch, |name| quarantine.contains(&name))
    }

    const TWO: &str = r#"<testsuites><testsuite name="pytest" tests="2" failures="1">
        <testcase classname="tests.test_a.TestX" name="test_one" time="2.0"/>
        <testcase classname="tests.test_b" name="test_two" time="1.0"><failure message="no"/></testcase></testsuite></testsuites>"#;
    const FINE: &str = r#"<testsuites><testsuite name="pytest" tests="2" failures="0">
        <testcase classname="tests.test_a.TestX" name="test_one" time="2.0"/>
        <testcase classname="tests.test_b" name="test_two" time="1.0"/></testsuite></testsuites>"#;
    const PATHS: [&str; 2] = ["tests/test_a.py", "tests/test_b.py"];

    #[test]
    fn a_pass_needs_exit_and_results() {
        use Outcome::*;
        assert_eq!(outcomes(&PATHS, 0, Some(FINE)), [Passed, Passed]);
        assert_eq!(outcomes(&PATHS, 0, Some(TWO)), [Passed, Failed], "results that say no win over the exit");
        assert_eq!(outcomes(&PATHS, 1, Some(FINE)), [Crashed, Crashed], "an exit that nothing explains");
        assert_eq!(outcomes(&PATHS, 0, None), [Missing, Missing]);
        assert_eq!(outcomes(&PATHS, 127, None), [Crashed, Crashed]);
        assert_eq!(outcomes(&PATHS, 0, Some("<testsuite><testcase name='x'>")), [Crashed, Crashed]);
        let load_error = "<testsuite name='rspec' tests='0' failures='0' errors='0'></testsuite>";
        assert_eq!(outcomes(&["spec/a_spec.rb"], 1, Some(load_error)), [Crashed], "RSpec's load error is red");
        let items = [item("a"), item("b")];
        for (end, wanted) in [(BatchEnd::TimedOut, TimedOut), (BatchEnd::Killed, Crashed)] {
            let judged = judged(&items, end, Some(FINE), &[]);
            assert!(judged.items.values().all(|result| result.outcome == wanted));
        }
    }

    #[test]
    fn beside_a_failure_a_file_passes_only_if_all_of_its_known_cases_ran() {
        let first = |expected_cases, xml: &str| {
            let items = [Item { expected_cases, ..item(PATHS[0]) }, item(PATHS[1])];
            let end = BatchEnd::Exited { status: 1 };
            [&[][..], &["tests.test_b test_two"]].map(|held| judged(&items, end, Some(xml), held).items[&0].outcome)
        };
        assert_eq!(first(1, TWO), [Outcome::Passed; 2]);
        assert_eq!(first(2, TWO), [Outcome::Missing; 2], "the runner may have stopped before the other");
        assert_eq!(first(0, TWO), [Outcome::Missing; 2], "nobody knows how many it has");
        let skipped = TWO.replace("time=\"2.0\"/>", "><skipped/></testcase>");
        assert_eq!(first(1, &skipped), [Outcome::Missing; 2], "Vitest marks what it does not reach as skipped");
        assert_eq!(
            outcomes(&PATHS, 0, Some(&FINE.replace("time=\"2.0\"/>", "><skipped/></testcase>"))),
            [Outcome::Passed; 2]
        );
    }

    #[test]
    fn a_file_without_results_is_empty_only_if_it_never_had_any() {
        let paths = [PATHS[0], PATHS[1], "tests/test_c.py"];
        assert_eq!(outcomes(&paths, 0, Some(FINE))[2], Outcome::Empty);
        assert_eq!(outcomes(&paths, 1, Some(TWO))[2], Outcome::Missing);
        let had = Item { expected_cases: 4, ..item("tests/test_c.py") };
        let all = [item(PATHS[0]), item(PATHS[1]), had.clone()];
        assert_eq!(judged(&all, BatchEnd::Exited { status: 0 }, Some(FINE), &[]).items[&2].outcome, Outcome::Missing);
        let none = "<testsuites><testsuite name='pytest' tests='0' failures='0'/></testsuites>";
        assert_eq!(outcomes(&[PATHS[0]], 5, Some(none)), [Outcome::Empty], "pytest has a status of its own for that");
        assert_eq!(judged(&[had], BatchEnd::Exited { status: 5 }, Some(none), &[]).items[&0].outcome, Outcome::Missing);
    }

    #[test]
    fn results_find_their_files_in_all_dialects() {
        let cases = [
            ("spec/a_spec.rb", r#"classname="spec.a_spec" name="x" file="./spec/a_spec.rb""#),
            ("vt/a.test.mjs", r#"classname="vt/a.test.mjs" name="d &gt; ok""#),
            ("src/a.test.js", r#"classname="outer" name="outer x" file="/app/src/a.test.js""#),
            ("./server", r#"classname="example.com/x/server" name="TestA""#),
            ("--test=api", r#"classname="nx::api" name="t::ok""#),
            ("tests/test_b.py", r#"classname="" name="tests.test_b""#),
        ];
        for (path, attributes) in cases {
            let xml = format!("<testsuite><testcase {attributes}><error message='e'/></testcase></testsuite>");
            assert_eq!(outcomes(&[path, "other"], 1, Some(&xml)), [Outcome::Failed, Outcome::Missing], "{path}");
        }
    }

    #[test]
    fn a_runner_that_names_no_files_speaks_for_the_batch_and_its_failure_is_looked_for() {
        let fine = "<testsuite><testcase classname='deep' name='x'/></testsuite>";
        assert_eq!(outcomes(&["a.test.js", "b.test.js"], 0, Some(fine)), [Outcome::Passed, Outcome::Passed]);
        let bad = "<testsuite><testcase classname='deep' name='x'><failure/></testcase></testsuite>";
        assert_eq!(outcomes(&["a.test.js", "b.test.js"], 1, Some(bad)), [Outcome::Missing, Outcome::Missing]);
        assert_eq!(outcomes(&["a.test.js"], 1, Some(bad)), [Outcome::Failed]);
    }

    #[test]
    fn a_test_in_quarantine_fails_without_counting() {
        let items = PATHS.map(|path| Item { expected_cases: 1, ..item(path) });
        let judged = judged(&items, BatchEnd::Exited { status: 1 }, Some(TWO), &["tests.test_b test_two"]);
        assert_eq!(judged.quarantined, ["tests.test_b test_two"]);
        assert!(judged.items.values().all(|result| result.outcome == Outcome::Passed), "{judged:?}");
    }

    #[test]
    fn wall_time_is_the_cases_and_a_share_of_what_else_it_took() {
        let judged = judged(&PATHS.map(item), BatchEnd::Exited { status: 0 }, Some(FINE), &[]);
        let walls: Vec<u64> = judged.items.values().map(|result| result.wall_ms).collect();
        assert_eq!(walls, [5_000, 4_000]);
    }

    fn part(cases: &[&str], except: &[&str]) -> Item {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Item { cases: own(cases), except: own(except), expected_cases: 1, ..item("tests/test_a.py") }
    }

    fn of_part(item: &Item, status: i32, xml: &str, said: Option<Part>) -> Outcome {
        let report = junit::read(xml.as_bytes());
        let batch = Batch {
            items: &[(0, item)],
            end: BatchEnd::Exited { status },
            wall_ms: 1_000,
            start_up_ms: 100,
            report: Some(&report),
            empty_status: Some(5),
            cases: Some(CaseWay::Pytest),
            said,
            fixed: false,
        };
        judge(batch, |_| false).items[&0].outcome
    }

    #[test]
    fn a_part_of_a_file_passes_where_its_own_cases_and_no_others_ran() {
        let xml =
            r#"<testsuite tests="1"><testcase classname="tests.test_a.TestX" name="test_one" time="0.5"/></testsuite>"#;
        let (own, rest) = (part(&["tests.test_a.TestX test_one"], &[]), part(&[], &["tests.test_a.TestX test_one"]));
        let part = |collected, kept| Some(Part { collected, kept });
        assert_eq!(of_part(&own, 0, xml, part(4, 1)), Outcome::Passed);
        assert_eq!(of_part(&rest, 0, xml, part(4, 1)), Outcome::Crashed, "another part's case ran");
        assert_eq!(of_part(&own, 0, xml, part(4, 2)), Outcome::Missing, "one that was kept left no result");
        assert_eq!(of_part(&own, 0, xml, None), Outcome::Missing, "nobody says what was kept");
        assert_eq!(of_part(&own, 1, xml, part(4, 1)), Outcome::Crashed);
        let failed = xml.replace("time=\"0.5\"/>", "><failure/></testcase>");
        assert_eq!(of_part(&own, 1, &failed, part(4, 1)), Outcome::Failed);
        let none = "<testsuite tests='0'></testsuite>";
        assert_eq!(of_part(&own, 5, none, part(4, 0)), Outcome::Empty, "all of its cases are gone");
        assert_eq!(of_part(&own, 5, none, part(0, 0)), Outcome::Crashed, "the file itself lost them");
        let broken =
            r#"<testsuite errors="1"><testcase classname="" name="tests.test_a"><error/></testcase></testsuite>"#;
        assert_eq!(of_part(&rest, 2, broken, None), Outcome::Failed, "it could not be loaded");
    }
}
