//! What a batch's command left as its results, from files that the code under test may have made to do harm.

use super::batch::Place;
use super::files::{self, is_plain};
use crate::ci::cases::{self, Part};
use crate::ci::judge::{self, Batch, BatchEnd, Judged};
use crate::ci::junit::{self, CaseResult, MOST_BYTES, Report};
use crate::ci::split::Item;
use crate::ci::wire::{CaseDone, Done, Failed, ItemDone, MOST_CASES, Orders};
use crate::domain::{Mask, TestFailure, matches_name};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Result files of one batch that are read.
const MOST_FILES: usize = 500;
/// Of shorter files no cases are told, in milliseconds.
const WORTH_CUTTING_MS: u64 = 500;

/// Removes results of an earlier batch, which would speak for this one.
pub fn clear(place: &Place, orders: &Orders) {
    for file in found(place, orders) {
        let _ = std::fs::remove_file(file);
    }
}

/// All results of the batch as one report; `None` where there is no file.
pub fn read(place: &Place, orders: &Orders, junit: &Path) -> Option<Report> {
    let mut files = found(place, orders);
    // PHPUnit's loop writes one file for each of its calls: `{junit}.1.xml`.
    let name = junit.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(entries) = junit.parent().and_then(|folder| std::fs::read_dir(folder).ok()) {
        let own = |path: &PathBuf| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&name)) && is_plain(path)
        };
        files.extend(entries.flatten().map(|entry| entry.path()).filter(own));
    }
    files.sort();
    files.truncate(MOST_FILES);
    whole(&files)
}

/// All results that a script left where the pattern says.
pub fn read_all(place: &Place, pattern: &str) -> Option<Report> {
    whole(&files::matching(&place.code, &[pattern.to_owned()], &[], MOST_FILES))
}

pub fn clear_all(place: &Place, pattern: &str) {
    for file in files::matching(&place.code, &[pattern.to_owned()], &[], MOST_FILES) {
        let _ = std::fs::remove_file(file);
    }
}

fn whole(files: &[PathBuf]) -> Option<Report> {
    let reports: Vec<Report> = files.iter().filter_map(|file| one(file)).collect();
    match reports.len() {
        0 => None,
        1 => reports.into_iter().next(),
        _ => Some(Report::merge(reports)),
    }
}

fn one(path: &Path) -> Option<Report> {
    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(junit::read(&bytes))
}

/// Files below the root of the code that the pattern of `[tests] junit` names.
fn found(place: &Place, orders: &Orders) -> Vec<PathBuf> {
    orders
        .junit
        .as_ref()
        .map_or_else(Vec::new, |pattern| files::matching(&place.code, std::slice::from_ref(pattern), &[], MOST_FILES))
}

/// What the plugin of a part left.
pub fn said(path: &Path) -> Option<Part> {
    let path = path.to_owned();
    let mut text = String::new();
    let file = std::fs::File::open(&path).ok().filter(|_| is_plain(&path))?;
    file.take(100).read_to_string(&mut text).ok()?;
    cases::said(&text)
}

/// Of files that may be worth cutting, the longest first.
fn longest_cases(items: &[(u32, Item)], judged: &Judged) -> Vec<CaseDone> {
    let mut long: Vec<u32> = items
        .iter()
        .filter(|(number, item)| {
            let wall_ms = judged.items.get(number).map_or(0, |result| result.wall_ms);
            item.is_part() || (wall_ms >= WORTH_CUTTING_MS && judged.cases.get(number).is_some_and(|all| all.len() > 1))
        })
        .map(|(number, _)| *number)
        .collect();
    long.sort_by_key(|number| std::cmp::Reverse(judged.items.get(number).map_or(0, |result| result.wall_ms)));
    let of = |item: u32| judged.cases.get(&item).into_iter().flatten().map(move |(key, wall_ms)| (item, key, *wall_ms));
    long.into_iter()
        .flat_map(of)
        .map(|(item, key, wall_ms)| CaseDone { item, key: key.clone(), wall_ms })
        .take(MOST_CASES)
        .collect()
}

/// Messages go to GitHub, where more people read than here.
pub fn masked(mask: Option<&Mask>, failure: &TestFailure) -> TestFailure {
    let Some(mask) = mask else { return failure.clone() };
    TestFailure { name: mask.text(&failure.name), message: mask.text(&failure.message), ..failure.clone() }
}

pub fn judge(
    orders: &Orders,
    items: &[(u32, Item)],
    end: BatchEnd,
    (wall_ms, start_up_ms): (u64, u64),
    report: Option<&Report>,
    said: Option<Part>,
    mask: Option<&Mask>,
) -> Done {
    let borrowed: Vec<(u32, &Item)> = items.iter().map(|(number, item)| (*number, item)).collect();
    let (empty_status, cases, fixed) = (orders.empty_status, orders.cases, orders.fixed);
    let batch = Batch { items: &borrowed, end, wall_ms, start_up_ms, report, empty_status, cases, said, fixed };
    let held = |name: &str| orders.quarantine.iter().any(|pattern| matches_name(pattern, name));
    let judged = judge::judge(batch, held);
    let failures = report.into_iter().flat_map(|report| &report.failures).filter(|failure| !held(&failure.name));
    let flaky = report.into_iter().flat_map(|report| &report.cases).filter(|case| case.result == CaseResult::Flaky);
    Done {
        end,
        wall_ms,
        items: judged
            .items
            .iter()
            .map(|(item, result)| ItemDone {
                item: *item,
                outcome: result.outcome,
                wall_ms: result.wall_ms,
                cases: result.cases,
                part: judged.part,
            })
            .collect(),
        counts: report.map(|report| report.counts).unwrap_or_default(),
        failures: failures
            .map(|failure| Failed { item: judged.failed.get(&failure.name).copied(), failure: masked(mask, failure) })
            .collect(),
        cases: longest_cases(items, &judged),
        quarantined: judged.quarantined,
        flaky: flaky.map(junit::title).collect(),
    }
}
