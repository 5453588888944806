//! When work can end at the earliest: water-filling over nodes that differ in speed and come at different times.

/// A node as arithmetic sees it: when it can take work, in seconds on any common clock, and how many seconds of
/// predicted work it does in one second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lane {
    pub free_at: f64,
    pub speed: f64,
}

/// The earliest time at which `work` seconds can be done if it could be cut at will and each lane that takes part pays
/// `start_up` once. Infinite without lanes.
pub fn water_level(work: f64, lanes: &[Lane], start_up: f64) -> f64 {
    let mut lanes: Vec<Lane> = lanes.iter().copied().filter(|lane| lane.speed > 0.0).collect();
    lanes.sort_by(|one, other| one.free_at.total_cmp(&other.free_at));
    let Some(first) = lanes.first() else { return f64::INFINITY };
    if work <= 0.0 {
        return first.free_at;
    }
    // With the k earliest lanes the level is (work + Σ speed·open) / Σ speed; it holds where it is below the next lane.
    let (mut speeds, mut opened, mut level) = (0.0, 0.0, f64::INFINITY);
    for lane in &lanes {
        let opens = lane.free_at + start_up;
        if level <= opens {
            break;
        }
        speeds += lane.speed;
        opened += lane.speed * opens;
        level = (work + opened) / speeds;
    }
    level
}

/// The generalised lower bound of the makespan: no schedule of files of these lengths on these lanes ends before it,
/// since neither the whole work nor any file alone can. `start_up` is paid at least once by each lane that works.
pub fn lower_bound(files: &[f64], lanes: &[Lane], start_up: f64) -> f64 {
    let work: f64 = files.iter().sum();
    let longest = files.iter().copied().fold(0.0, f64::max);
    let alone = lanes
        .iter()
        .filter(|lane| lane.speed > 0.0)
        .map(|lane| lane.free_at + start_up + longest / lane.speed)
        .fold(f64::INFINITY, f64::min);
    water_level(work, lanes, start_up).max(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(free_at: f64, speed: f64) -> Lane {
        Lane { free_at, speed }
    }

    #[test]
    fn the_level_covers_the_work_exactly_and_leaves_late_lanes_out() {
        assert_eq!(water_level(10.0, &[lane(0.0, 1.0), lane(0.0, 1.0)], 1.0), 6.0);
        assert_eq!(water_level(10.0, &[lane(0.0, 1.0), lane(100.0, 1.0)], 1.0), 11.0);
        assert_eq!(water_level(9.0, &[lane(0.0, 1.0), lane(0.0, 2.0)], 0.0), 3.0);
        assert_eq!(water_level(0.0, &[lane(4.0, 1.0)], 1.0), 4.0);
        assert_eq!(water_level(1.0, &[], 1.0), f64::INFINITY);
        for seed in 1..200u32 {
            let lanes: Vec<Lane> = (0..seed % 7 + 1)
                .map(|at| lane(f64::from(seed * 7919 % (at + 3)), 0.5 + f64::from((seed + at) % 5) / 4.0))
                .collect();
            let level = water_level(f64::from(seed), &lanes, 0.5);
            let done: f64 = lanes.iter().map(|lane| lane.speed * (level - lane.free_at - 0.5).max(0.0)).sum();
            assert!((done - f64::from(seed)).abs() < 1e-6, "{done} of {seed}");
        }
    }

    #[test]
    fn one_long_file_bounds_the_run_by_itself() {
        let lanes = [lane(0.0, 1.0), lane(0.0, 1.25), lane(3.0, 1.0)];
        assert_eq!(lower_bound(&[100.0, 1.0, 1.0], &lanes, 1.0), 81.0);
        assert_eq!(lower_bound(&[], &lanes, 1.0), 1.0);
    }
}
