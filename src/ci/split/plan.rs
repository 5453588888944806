//! What a run is to do: one item for each file, or for a part of a file that alone would outlast the others.

use super::predict::Predictions;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What is dealt, run and counted as one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Item {
    /// As the runner takes it: a path, or a package where the runner has no files.
    pub path: String,
    /// The names of test cases, where only these of the file are meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<String>,
    /// The names of test cases, where all of the file but these are meant. Never set together with `cases`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    pub predicted_ms: u64,
    /// Whether an earlier run measured it.
    pub seen: bool,
    /// How many cases it had before, 0 where that is not known: a file that had some and shows none is missing.
    #[serde(default)]
    pub expected_cases: u32,
}

impl Item {
    /// Whether it is less than its file: it is then dealt by itself.
    pub fn is_part(&self) -> bool {
        !(self.cases.is_empty() && self.except.is_empty())
    }
}

/// A test case that the runner can be told to run alone, and how long it took; 0 where that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseTime {
    pub id: String,
    pub wall_ms: u64,
}

/// Parts are not cut shorter than so many start-ups only because their node may die (simulated, `benches/split.rs`).
const START_UPS: u64 = 25;

/// Items for `files` (each once, sorted by path). A file predicted above half of total/`nodes` is cut by its `cases`,
/// where the runner can name them.
///
/// A part runs with the same setup of its file as the whole, so parts are not made smaller than needed: as many as make
/// each at most an eighth of total/`nodes`, since a part is lost whole with its node, but not below [`START_UPS`] start-ups
/// where a third of total/`nodes` is above.
pub fn plan(
    files: &BTreeSet<String>,
    predictions: &Predictions,
    nodes: u16,
    cases: &BTreeMap<String, Vec<CaseTime>>,
    start_up_ms: u64,
) -> Vec<Item> {
    let whole = |path: &String| {
        let known = predictions.files.get(path);
        Item {
            path: path.clone(),
            cases: Vec::new(),
            except: Vec::new(),
            predicted_ms: known.map_or(predictions.unseen_ms, |known| known.wall_ms),
            seen: known.is_some(),
            expected_cases: known.map_or(0, |known| known.cases),
        }
    };
    let items: Vec<Item> = files.iter().map(whole).collect();
    let total: u64 = items.iter().map(|item| item.predicted_ms).fold(0, u64::saturating_add);
    let share = total / u64::from(nodes.max(1));
    let longest = (share / 8).max(start_up_ms.saturating_mul(START_UPS).min(share / 3)).max(1);
    items
        .into_iter()
        .flat_map(|item| match cases.get(&item.path) {
            Some(cases) if nodes > 1 && item.predicted_ms > share / 2 && cases.len() > 1 => cut(item, cases, longest),
            _ => vec![item],
        })
        .collect()
}

/// Longest case first, each into the part that is the shortest so far. The first part doesn't name its cases but is all
/// that the others don't name.
fn cut(item: Item, cases: &[CaseTime], longest: u64) -> Vec<Item> {
    let mut by_id: BTreeMap<&str, u64> = BTreeMap::new();
    for case in cases {
        let wall = by_id.entry(&case.id).or_default();
        *wall = wall.saturating_add(case.wall_ms);
    }
    let cases: Vec<CaseTime> = by_id.into_iter().map(|(id, wall_ms)| CaseTime { id: id.to_owned(), wall_ms }).collect();
    if cases.len() < 2 {
        return vec![item];
    }
    let wanted = item.predicted_ms.div_ceil(longest);
    let parts = usize::try_from(wanted).unwrap_or(usize::MAX).clamp(2, cases.len());
    let known: u64 = cases.iter().map(|case| case.wall_ms).fold(0, u64::saturating_add);
    let each = item.predicted_ms / cases.len() as u64;
    // Times of cases are stretched to the file's: what a file needs besides its cases is shared by them.
    let stretched = |case: &CaseTime| match (known, case.wall_ms) {
        (0, _) => each.max(1),
        (known, own) => {
            let scaled = u128::from(own) * u128::from(item.predicted_ms) / u128::from(known);
            u64::try_from(scaled).unwrap_or(u64::MAX).max(1)
        }
    };
    let mut ordered: Vec<(&CaseTime, u64)> = cases.iter().map(|case| (case, stretched(case))).collect();
    ordered.sort_by(|(one, length), (other, longer)| longer.cmp(length).then_with(|| one.id.cmp(&other.id)));
    let mut made: Vec<Item> = (0..parts.min(ordered.len()))
        .map(|_| Item { cases: Vec::new(), predicted_ms: 0, expected_cases: 0, ..item.clone() })
        .collect();
    for (case, length) in ordered {
        if let Some(shortest) = made.iter_mut().min_by_key(|part| part.predicted_ms) {
            shortest.predicted_ms = shortest.predicted_ms.saturating_add(length);
            shortest.cases.push(case.id.clone());
            shortest.expected_cases += 1;
        }
    }
    made.retain(|part| !part.cases.is_empty());
    let except: Vec<String> = made.iter().skip(1).flat_map(|part| part.cases.iter().cloned()).collect();
    if let Some(rest) = made.first_mut().filter(|_| !except.is_empty()) {
        (rest.cases, rest.except) = (Vec::new(), except);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::super::predict::{Measured, predict};
    use super::*;

    #[test]
    fn a_file_that_would_outlast_the_others_is_cut_by_its_cases() {
        let walls = [("big", 60_000), ("b", 10_000), ("c", 10_000), ("d", 10_000)];
        let run = walls
            .iter()
            .map(|(path, wall)| Measured {
                path: (*path).into(),
                wall_ms: *wall,
                passed: true,
                cases: 12,
                case_times: Vec::new(),
            })
            .collect();
        let files: BTreeSet<String> = ["big", "b", "c", "d", "new"].map(String::from).into();
        let cases: Vec<CaseTime> =
            (0..12u64).map(|at| CaseTime { id: format!("big::test_{at}"), wall_ms: 1_000 * (at + 1) }).collect();
        let items = plan(&files, &predict(&[run]), 4, &BTreeMap::from([("big".to_owned(), cases.clone())]), 1_000);
        let parts: Vec<&Item> = items.iter().filter(|item| item.path == "big").collect();
        assert!(parts.len() >= 2, "{parts:?}");
        let holds = |part: &Item, id: &str| match part.except.as_slice() {
            [] => part.cases.iter().any(|own| own == id),
            except => !except.iter().any(|other| other == id),
        };
        for id in cases.iter().map(|case| case.id.as_str()).chain(["big::test_that_nobody_saw"]) {
            assert_eq!(parts.iter().filter(|part| holds(part, id)).count(), 1, "{id} is in one part");
        }
        assert_eq!(parts.iter().map(|part| part.expected_cases).sum::<u32>(), 12);
        let share = items.iter().map(|item| item.predicted_ms).sum::<u64>() / 4;
        assert!(parts.iter().all(|part| part.predicted_ms <= share / 2 + 12_000), "{parts:?}");
        let unseen: Vec<&Item> = items.iter().filter(|item| !item.seen).collect();
        assert_eq!(unseen.len(), 1);
        assert_eq!(unseen[0].predicted_ms, 22_500);
    }

    #[test]
    fn without_ids_or_with_one_node_a_file_stays_whole() {
        let run =
            vec![Measured { path: "big".into(), wall_ms: 60_000, passed: true, cases: 2, case_times: Vec::new() }];
        let files: BTreeSet<String> = ["big", "b"].map(String::from).into();
        let cases = vec![CaseTime { id: "1".into(), wall_ms: 0 }, CaseTime { id: "2".into(), wall_ms: 0 }];
        let predictions = predict(&[run]);
        assert_eq!(plan(&files, &predictions, 8, &BTreeMap::new(), 1_000).len(), 2);
        assert_eq!(plan(&files, &predictions, 1, &BTreeMap::from([("big".to_owned(), cases.clone())]), 1_000).len(), 2);
        assert_eq!(plan(&files, &predictions, 8, &BTreeMap::from([("big".to_owned(), cases.clone())]), 1_000).len(), 3);
        let same = vec![cases[0].clone(), cases[0].clone()];
        let whole = plan(&files, &predictions, 8, &BTreeMap::from([("big".to_owned(), same)]), 1_000);
        assert!(whole.len() == 2 && whole.iter().all(|item| !item.is_part()), "one name can't be cut: {whole:?}");
    }
}
