//! Histories with stated distributions, for those who have none of their own.

use crate::History;
use crate::simulate::Numbers;
use std::collections::BTreeMap;

/// Six snapshots each. From one to the next, each file's time changes by a log-normal factor (standard deviation 0.1),
/// and two files of a hundred are new.
pub fn histories() -> Vec<History> {
    let log_normal: fn(&mut Numbers, usize) -> f64 = |numbers, _| 6.0 * (1.2 * numbers.normal()).exp();
    // Pareto with the exponent 1.3, from two seconds on, cut at ten minutes.
    let pareto: fn(&mut Numbers, usize) -> f64 =
        |numbers, _| (2.0 / numbers.unit().max(1e-9).powf(1.0 / 1.3)).min(600.0);
    let equal: fn(&mut Numbers, usize) -> f64 = |_, _| 20.0;
    // One file is half of everything; the others are spread evenly between one and ten seconds.
    let giant: fn(&mut Numbers, usize) -> f64 =
        |numbers, file| if file == 0 { 825.0 } else { 1.0 + 9.0 * numbers.unit() };
    let made = [("log-normal", 400, log_normal), ("pareto", 300, pareto), ("equal", 128, equal), ("giant", 150, giant)];
    made.into_iter().map(|(name, files, length)| history(name, files, length)).collect()
}

fn history(name: &str, files: usize, length: fn(&mut Numbers, usize) -> f64) -> History {
    let mut numbers = Numbers::new(files as u64 + 77);
    let mut now: BTreeMap<String, f64> =
        (0..files).map(|file| (format!("test_{file:04}"), length(&mut numbers, file))).collect();
    let mut snapshots = vec![now.clone()];
    for snapshot in 1..6 {
        for seconds in now.values_mut() {
            *seconds *= (0.1 * numbers.normal()).exp();
        }
        for new in 0..files.div_ceil(50) {
            now.insert(format!("test_new_{snapshot}_{new}"), length(&mut numbers, 1));
        }
        snapshots.push(now.clone());
    }
    History { name: name.to_owned(), snapshots }
}
