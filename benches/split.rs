//! How near the end of a test run comes to the best end possible, simulated over histories of timings.
//!
//! Each pair of neighbouring snapshots is a run: predictions come from the older one, true times are the newer one's with
//! log-normal noise. Nodes come late and differ in speed. Printed is the makespan over the generalised lower bound, as
//! mean and 95th percentile, for ways of dealing that others use and for ours, which is the product's own code.
//!
//! `cargo bench --bench split -- FOLDER` reads `*.json` files as `docs/tests.md` describes; without a folder it makes four
//! histories with the distributions stated in `split/synthetic.rs`. Options: `--runs N` for each pair, `--nodes 4,8`,
//! `--only WORDS` of a scenario, `--apart` for each history by itself, and `--rule name=value` to try other rules.

#[path = "split/simulate.rs"]
mod simulate;
#[path = "split/synthetic.rs"]
mod synthetic;

use landfall::ci::split::Rules;
use simulate::{Scenario, Way, simulate};
use std::collections::BTreeMap;
use std::path::Path;

/// One suite's snapshots, oldest first.
pub struct History {
    pub name: String,
    pub snapshots: Vec<BTreeMap<String, f64>>,
}

#[derive(serde::Deserialize)]
struct Snapshot {
    date: String,
    files: BTreeMap<String, f64>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut runs, mut nodes, mut only, mut apart) =
        (None, 4u64, vec![4u16, 8, 16, 64], String::new(), false);
    let mut rules = serde_json::to_value(Rules::default()).expect("rules are data");
    while let Some(argument) = arguments.next() {
        let mut next = || arguments.next().expect("the option has a value");
        match argument.as_str() {
            "--bench" => {}
            "--runs" => runs = next().parse().expect("a number"),
            "--nodes" => nodes = next().split(',').map(|count| count.parse().expect("a number")).collect(),
            "--only" => only = next(),
            "--apart" => apart = true,
            "--rule" => {
                let (name, value) =
                    next().split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("name=value");
                assert!(rules.get(&name).is_some(), "there is no rule {name}");
                rules[name] = serde_json::from_str(&value).expect("a value");
            }
            _ => folder = Some(argument),
        }
    }
    let rules: Rules = serde_json::from_value(rules).expect("rules");
    let histories = match &folder {
        Some(folder) => read(Path::new(folder)),
        None => synthetic::histories(),
    };
    for history in &histories {
        let newest = history.snapshots.last().expect("a history has snapshots");
        let (total, longest) = (newest.values().sum::<f64>(), newest.values().copied().fold(0.0, f64::max));
        println!(
            "{}: {} snapshots; {} files, {total:.0} s, the longest {longest:.0} s",
            history.name,
            history.snapshots.len(),
            newest.len()
        );
    }
    for scenario in Scenario::all().into_iter().filter(|scenario| scenario.name.contains(&only)) {
        if apart {
            for history in &histories {
                print(&scenario, std::slice::from_ref(history), &nodes, runs, &rules);
            }
        } else {
            print(&scenario, &histories, &nodes, runs, &rules);
        }
    }
}

fn print(scenario: &Scenario, histories: &[History], nodes: &[u16], runs: u64, rules: &Rules) {
    let names: Vec<&str> = histories.iter().map(|history| history.name.as_str()).collect();
    println!("\n{} ({})", scenario.name, names.join(", "));
    print!("{:<34}", "makespan / bound: mean (p95)");
    nodes.iter().for_each(|count| print!("{:>16}", format!("N = {count}")));
    println!();
    let mut least = vec![0.0; nodes.len()];
    for way in Way::ALL {
        if scenario.dies.is_some() && !way.survives() {
            continue;
        }
        print!("{:<34}", way.name());
        for (place, count) in nodes.iter().enumerate() {
            let (mut ratios, mut bests) = (Vec::new(), 0.0);
            for history in histories {
                for (pair, snapshots) in history.snapshots.windows(2).enumerate() {
                    for run in 0..runs {
                        let seed = (pair as u64) << 32 | run << 16 | u64::from(*count);
                        let seed =
                            history.name.bytes().fold(seed, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
                        let (ratio, best) = simulate(scenario, way, &snapshots[0], &snapshots[1], *count, rules, seed);
                        ratios.push(ratio);
                        bests += best;
                    }
                }
            }
            if way == Way::Ours {
                least[place] = bests / ratios.len() as f64;
            }
            ratios.sort_by(f64::total_cmp);
            let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
            let late = ratios[(ratios.len() * 95 / 100).min(ratios.len() - 1)];
            print!("{:>16}", format!("{mean:.3} ({late:.3})"));
        }
        println!();
    }
    if scenario.dies.is_some() {
        print!("{:<34}", "whoever knew of the death: at least");
        least.iter().for_each(|least| print!("{:>16}", format!("{least:.3}")));
        println!();
    }
    if !scenario.goals.is_empty() {
        print!("{:<34}", "to be reached");
        for count in nodes {
            let goal = scenario.goals.iter().find(|(nodes, _)| nodes == count);
            print!("{:>16}", goal.map_or(String::new(), |(_, goal)| format!("{goal:.3}")));
        }
        println!();
    }
}

fn read(folder: &Path) -> Vec<History> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let history = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("a readable file");
        let mut snapshots: Vec<Snapshot> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Files in the wild stand in either order.
        snapshots.sort_by(|one, other| one.date.cmp(&other.date));
        let name = path.file_name().expect("a file").to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().to_owned();
        History { name, snapshots: snapshots.into_iter().map(|snapshot| snapshot.files).collect() }
    };
    paths.iter().map(history).collect()
}
