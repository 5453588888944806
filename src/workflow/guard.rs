//! Whether a new release is clearly worse than the one before it, by what the router counted of both.
//!
//! The rule that it keeps: a release that is no worse is sent back at most once in a thousand, however often it is
//! looked at while the watch lasts. Both tests bound the older release's rate from above by an exact interval over its
//! frozen counts, and bet against "the new one's rate is no higher than that" with a mixture of likelihood ratios. That
//! bet is a nonnegative supermartingale under the hypothesis, so by Ville's inequality its maximum over all looks
//! exceeds 1/a with a probability of at most a: no correction for looking often is needed.

use crate::domain::{Finding, Measured};

/// How likely a release that is no worse may be sent back: errors and latency share it, and in each the bound on the
/// old release and the bet on the new one.
const LEVEL: f64 = 0.001;
const SHARE: f64 = LEVEL / 4.0;
/// Fewer requests to the new release than this say nothing.
const LEAST: u64 = 20;
/// An error rate up to this is nobody's fault, whatever it was before.
const TOLERATED: f64 = 0.01;
/// "Slower" means that more than one answer in twenty takes longer than the old release's p95 times this …
const FACTOR: f64 = 1.5;
/// … and plus this, in microseconds.
const MARGIN: u64 = 50_000;
const ONE_IN_TWENTY: f64 = 0.05;

/// In what `new` is clearly worse than `before`, if it is.
pub fn worse(before: &Measured, new: &Measured) -> Option<Finding> {
    findings(before, new).next()
}

/// In what a canary is clearly worse than `before`, and than the release that serves beside it at the same time: what
/// both suffer from is not the canary's fault. One-sided Fisher test at 5 %; it can only make fewer alarms.
pub fn worse_than_beside(before: &Measured, canary: &Measured, beside: &Measured) -> Option<Finding> {
    findings(before, canary).find(|finding| {
        let ((bad, count), (bad_beside, count_beside)) = match finding {
            Finding::Errors { errors, requests, .. } => ((*errors, *requests), (beside.errors, beside.requests)),
            Finding::Slow { over, requests, .. } => {
                let beside = slowest_allowed(before).map_or((0, 0), |limit| over_limit(beside, limit));
                ((*over, *requests), beside)
            }
            Finding::Crashes { .. } => return true,
        };
        count_beside == 0 || fisher(bad, count, bad_beside, count_beside) <= 0.05
    })
}

fn findings(before: &Measured, new: &Measured) -> impl Iterator<Item = Finding> {
    let enough = new.requests >= LEAST;
    let errors = enough.then(|| more_errors(before, new)).flatten();
    errors.into_iter().chain(enough.then(|| slower(before, new)).flatten())
}

fn more_errors(before: &Measured, new: &Measured) -> Option<Finding> {
    let limit = upper_rate(before.errors, before.requests).max(TOLERATED);
    evidence(new.errors, new.requests, limit).then_some(Finding::Errors {
        errors: new.errors,
        requests: new.requests,
        before_errors: before.errors,
        before_requests: before.requests,
    })
}

fn slower(before: &Measured, new: &Measured) -> Option<Finding> {
    let limit = slowest_allowed(before)?;
    let (over, timed) = over_limit(new, limit);
    if timed < LEAST {
        return None;
    }
    evidence(over, timed, ONE_IN_TWENTY).then(|| Finding::Slow {
        p95_ms: percentile(&new.latency, 0.95).unwrap_or_default() / 1000,
        before_p95_ms: percentile(&before.latency, 0.95).unwrap_or_default() / 1000,
        limit_ms: limit / 1000,
        over,
        requests: timed,
    })
}

/// What at most one answer in twenty should exceed, in microseconds.
fn slowest_allowed(before: &Measured) -> Option<u64> {
    let slowest = upper_p95(before)?;
    Some(((slowest as f64 * FACTOR) as u64).max(slowest + MARGIN))
}

/// How many answers took longer than a limit, and how many there were. A bucket that reaches over the limit counts as over
/// it. Buckets are no wider than an eighth and the limit lies half above the old p95, so whatever counts as over took longer
/// than that p95.
fn over_limit(measured: &Measured, limit: u64) -> (u64, u64) {
    let over = measured.latency.iter().filter(|(longest, _)| *longest > limit).map(|(_, count)| count).sum();
    (over, measured.latency.iter().map(|(_, count)| count).sum())
}

/// Whether `hits` of `count` speak against a rate of at most `limit`, at any number of looks, with `SHARE` as level.
fn evidence(hits: u64, count: u64, limit: f64) -> bool {
    if limit >= 1.0 || hits == 0 {
        return false;
    }
    // Alternatives between the limit and one, even in log-odds; each gets the same weight.
    const ALTERNATIVES: u32 = 16;
    let (hits, misses) = (hits as f64, (count - hits.min(count)) as f64);
    let low = (limit / (1.0 - limit)).ln();
    let high = 7.0_f64.max(low + 2.0);
    let logs = (1..=ALTERNATIVES).map(|step| {
        let odds = (low + (high - low) * f64::from(step) / f64::from(ALTERNATIVES)).exp();
        let rate = odds / (1.0 + odds);
        hits * (rate / limit).ln() + misses * ((1.0 - rate) / (1.0 - limit)).ln()
    });
    let logs: Vec<f64> = logs.collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mixture =
        largest + logs.iter().map(|log| (log - largest).exp()).sum::<f64>().ln() - f64::from(ALTERNATIVES).ln();
    mixture >= -SHARE.ln()
}

/// The exact upper bound (Clopper and Pearson) on a rate of which `hits` of `count` were seen, at `SHARE`.
fn upper_rate(hits: u64, count: u64) -> f64 {
    if hits >= count {
        return 1.0;
    }
    let (mut low, mut high) = (hits as f64 / count as f64, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if at_most(hits, count, middle) > SHARE { low = middle } else { high = middle }
    }
    high
}

/// A time that the old release's p95 does not exceed, at `SHARE`, in microseconds: the order statistic whose rank a
/// binomial distribution gives. `None` with fewer than 162 answers, whose longest says too little.
fn upper_p95(measured: &Measured) -> Option<u64> {
    let count: u64 = measured.latency.iter().map(|(_, count)| count).sum();
    // The smallest rank so that at least as many answers lie below the p95 with a probability of at most SHARE.
    let (mut low, mut high) = ((count as f64 * 0.95) as u64, count + 1);
    while low < high {
        let middle = low.midpoint(high);
        let reaching = if middle == 0 { 1.0 } else { 1.0 - at_most(middle - 1, count, 0.95) };
        if reaching <= SHARE { high = middle } else { low = middle + 1 }
    }
    (low <= count && count > 0).then(|| of_rank(&measured.latency, low)).flatten()
}

fn of_rank(latency: &[(u64, u64)], rank: u64) -> Option<u64> {
    let mut seen = 0;
    let place = latency.iter().find(|(_, count)| {
        seen += count;
        seen >= rank
    });
    place.map(|(longest, _)| *longest)
}

fn percentile(latency: &[(u64, u64)], part: f64) -> Option<u64> {
    let count: u64 = latency.iter().map(|(_, count)| count).sum();
    of_rank(latency, ((count as f64 * part).ceil() as u64).max(1))
}

/// The probability of at most `hits` in `count` at a rate.
fn at_most(hits: u64, count: u64, rate: f64) -> f64 {
    if hits >= count || rate <= 0.0 {
        return 1.0;
    }
    if rate >= 1.0 {
        return 0.0;
    }
    // The smaller tail is summed, from its largest term outwards, until what is left adds nothing.
    let mean = count as f64 * rate;
    let below = (hits as f64) < mean;
    let term = |hits: u64| {
        let misses = count - hits;
        (ln_choose(count, hits) + hits as f64 * rate.ln() + misses as f64 * (1.0 - rate).ln()).exp()
    };
    let mut sum = 0.0;
    if below {
        for hits in (0..=hits).rev() {
            let next = term(hits);
            sum += next;
            if next < sum * 1e-15 {
                break;
            }
        }
        sum.min(1.0)
    } else {
        for hits in hits + 1..=count {
            let next = term(hits);
            sum += next;
            if next < sum * 1e-15 {
                break;
            }
        }
        (1.0 - sum).max(0.0)
    }
}

/// The probability of at least `hits` of `count` where both sides together fail as often as they do.
fn fisher(hits: u64, count: u64, others: u64, other_count: u64) -> f64 {
    let (failures, all) = (hits + others, count + other_count);
    let most = failures.min(count);
    let base = ln_choose(all, failures);
    let terms = (hits..=most).filter(|hits| failures - hits <= other_count);
    terms
        .map(|hits| (ln_choose(count, hits) + ln_choose(other_count, failures - hits) - base).exp())
        .sum::<f64>()
        .min(1.0)
}

fn ln_choose(count: u64, hits: u64) -> f64 {
    ln_factorial(count) - ln_factorial(hits) - ln_factorial(count - hits)
}

/// Stirling's series, exact to a few parts in 10^12; small numbers are multiplied out.
fn ln_factorial(number: u64) -> f64 {
    if number < 16 {
        return (2..=number).map(|factor| factor as f64).product::<f64>().ln();
    }
    let x = number as f64;
    let (inverse, square) = (1.0 / x, 1.0 / (x * x));
    x * x.ln() - x
        + 0.5 * (2.0 * std::f64::consts::PI * x).ln()
        + inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed generator (xorshift64*), so that every run sees the same simulations.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// An answer's time: most are fast, some have a long tail. In buckets of an eighth.
        fn time(&mut self, factor: f64) -> u64 {
            let micros = 20_000.0 * factor * (-(1.0 - self.roll()).ln()).powf(1.5);
            let step = (micros.max(1.0).ln() / 1.125_f64.ln()).ceil();
            1.125_f64.powf(step).ceil() as u64
        }
    }

    fn add(measured: &mut Measured, error: bool, micros: u64) {
        measured.requests += 1;
        measured.errors += u64::from(error);
        match measured.latency.binary_search_by_key(&micros, |(longest, _)| *longest) {
            Ok(place) => measured.latency[place].1 += 1,
            Err(place) => measured.latency.insert(place, (micros, 1)),
        }
    }

    fn measured(dice: &mut Dice, count: u64, errors: f64, factor: f64) -> Measured {
        let mut all = Measured::default();
        for _ in 0..count {
            let error = dice.roll() < errors;
            let micros = dice.time(factor);
            add(&mut all, error, micros);
        }
        all
    }

    fn counts(errors: u64, requests: u64) -> Measured {
        Measured { requests, errors, latency: Vec::new() }
    }

    #[test]
    fn the_distributions_are_right() {
        // From tables and exact fractions.
        assert!((at_most(2, 10, 0.5) - 56.0 / 1024.0).abs() < 1e-12);
        assert!((at_most(8, 10, 0.5) - 1013.0 / 1024.0).abs() < 1e-12);
        assert!((at_most(0, 1000, 0.01) - 0.99_f64.powi(1000)).abs() < 1e-12);
        assert!((ln_factorial(20) - 2_432_902_008_176_640_000_f64.ln()).abs() < 1e-9);
        // Lady tasting tea: 4 of 4, and 3 of 4.
        assert!((fisher(4, 4, 0, 4) - 1.0 / 70.0).abs() < 1e-9);
        assert!((fisher(3, 4, 1, 4) - 17.0 / 70.0).abs() < 1e-9);
        // Nothing of n: the bound is 1 - SHARE^(1/n).
        assert!((upper_rate(0, 100) - (1.0 - SHARE.powf(0.01))).abs() < 1e-6);
        assert_eq!((upper_rate(0, 0), upper_rate(5, 5)), (1.0, 1.0));
    }

    #[test]
    fn the_bound_on_p95_needs_162_answers() {
        let equal = |count| Measured { requests: count, errors: 0, latency: vec![(1000, count)] };
        assert_eq!(upper_p95(&equal(161)), None);
        assert_eq!(upper_p95(&equal(162)), Some(1000));
        assert_eq!(upper_p95(&Measured::default()), None);
    }

    /// 1,200 releases that are exactly as good, each looked at after every 25th request of 600: the level is 1 in 1,000
    /// at most, so about one is expected at most, and more than 6 would come about once in 4,000 such runs.
    #[test]
    fn a_release_that_is_no_worse_is_left_alone() {
        let mut alarms = 0;
        for round in 0..1_200_u64 {
            let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ (round + 1));
            let rate = [0.0, 0.01, 0.02, 0.1][(round % 4) as usize];
            let before = measured(&mut dice, [200, 500, 1000][(round % 3) as usize], rate, 1.0);
            let mut new = Measured::default();
            for request in 1..=600 {
                let error = dice.roll() < rate;
                let micros = dice.time(1.0);
                add(&mut new, error, micros);
                if request % 25 == 0 && worse(&before, &new).is_some() {
                    alarms += 1;
                    break;
                }
            }
        }
        assert!(alarms <= 6, "{alarms} false alarms in 1,200 watches");
    }

    /// The same at the very border of the hypothesis, where the bound on the old release is of no help: the bet alone
    /// has to keep its level of 1 in 4,000.
    #[test]
    fn the_bet_keeps_its_level_at_the_border() {
        for limit in [0.01, 0.05, 0.3] {
            let mut alarms = 0;
            for round in 0..4_000_u64 {
                let mut dice = Dice(0xD1B5_4A32_D192_ED03 ^ (round + 1));
                let mut hits = 0;
                for count in 1..=1_000 {
                    hits += u64::from(dice.roll() < limit);
                    if evidence(hits, count, limit) {
                        alarms += 1;
                        break;
                    }
                }
            }
            assert!(alarms <= 6, "{alarms} false alarms in 4,000 at {limit}");
        }
    }

    #[test]
    fn a_release_that_fails_more_often_is_found_soon() {
        for (before, rate, within) in [
            (counts(0, 1_000), 0.1, 250),
            (counts(10, 1_000), 0.3, 80),
            (counts(0, 1_000), 1.0, 20),
            (counts(0, 12), 1.0, 40),
        ] {
            let mut found = 0;
            for round in 0..200_u64 {
                let mut dice = Dice(0xA076_1D64_78BD_642F ^ (round + 1));
                let mut new = Measured::default();
                found += u32::from((0..within).any(|_| {
                    let error = dice.roll() < rate;
                    add(&mut new, error, 1000);
                    matches!(worse(&before, &new), Some(Finding::Errors { .. }))
                }));
            }
            assert!(found >= 190, "{found} of 200 found at {rate} within {within}");
        }
    }

    #[test]
    fn a_release_that_is_slower_is_found() {
        let mut found = 0;
        for round in 0..200_u64 {
            let mut dice = Dice(0xE703_7ED1_A0B4_28DB ^ (round + 1));
            let before = measured(&mut dice, 1_000, 0.0, 1.0);
            let new = measured(&mut dice, 500, 0.0, 4.0);
            found += u32::from(matches!(worse(&before, &new), Some(Finding::Slow { .. })));
        }
        assert!(found >= 190, "{found} of 200");
        // Twice of nearly nothing is nearly nothing.
        let quick = |micros| Measured { requests: 1_000, errors: 0, latency: vec![(micros, 1_000)] };
        assert_eq!(worse(&quick(1_000), &quick(3_000)), None);
        assert!(worse(&quick(1_000), &quick(90_000)).is_some());
    }

    #[test]
    fn too_little_is_no_reason() {
        assert_eq!(worse(&counts(0, 1_000), &counts(19, 19)), None, "too few requests to the new one");
        assert_eq!(worse(&counts(0, 0), &counts(100, 100)), None, "nothing is known of the old one");
        assert_eq!(worse(&counts(0, 100_000), &counts(80, 10_000)), None, "below the tolerated rate");
        assert_eq!(worse(&counts(500, 1_000), &counts(520, 1_000)), None);
    }

    #[test]
    fn a_canary_is_not_blamed_for_what_all_suffer() {
        let found = |beside: Measured| worse_than_beside(&counts(0, 1_000), &counts(60, 100), &beside).is_some();
        assert!(!found(counts(530, 900)), "all fail alike");
        assert!(found(counts(0, 900)));
        assert!(found(counts(0, 0)), "nobody asks the old one");
        let slow = |micros, count| Measured { requests: count, errors: 0, latency: vec![(micros, count)] };
        let found = |canary: Measured, beside: Measured| worse_than_beside(&slow(1_000, 1_000), &canary, &beside);
        assert_eq!(found(slow(90_000, 100), slow(80_000, 900)), None, "a slow database is nobody's release");
        assert!(matches!(found(slow(90_000, 100), slow(1_000, 900)), Some(Finding::Slow { .. })));
        // Who fails as often as all others may still be the only one that is slow.
        let slow_too = Measured { errors: 60, ..slow(90_000, 100) };
        let fails = Measured { errors: 530, ..slow(1_000, 900) };
        assert!(matches!(found(slow_too, fails), Some(Finding::Slow { .. })));
    }
}
