//! When a rule about an app's numbers begins to fire, and when it stops.
//!
//! What reads above its limit for a while fires. It stops only after it has read well below the limit for longer than
//! that, so a number that sways around its limit is told once.

use crate::clock::Timestamp;
use crate::domain::*;
use std::time::Duration;

/// Fewer answers say nothing of a rate.
const ENOUGH: u64 = 20;
/// How long a rate has to be too high before somebody is called.
const OVER: Duration = Duration::from_secs(60);
/// How long it has to be well before that is told.
const CALM: Duration = Duration::from_secs(120);
/// Well is below so many of a hundred parts of the limit.
const WELL: u64 = 80;

/// What was seen of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlertFacts {
    pub now: Timestamp,
    /// Answers of the last minutes, those with a status of 500 or more, and the time that 95 % did not exceed.
    pub requests: u64,
    pub errors: u64,
    pub p95_millis: u64,
    /// The process of the live release that crashed most often in a row.
    pub crashes: u32,
    pub process: Option<String>,
    /// No web process is well.
    pub down: bool,
    /// Nobody could say what visitors got.
    pub unanswered: bool,
}

/// How a reading lies to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lies {
    Over,
    /// Not over, and not far enough below either.
    Near,
    Below,
}

/// What is to be told: whether an alert fires or is over, and what was read; nothing where nobody looks any more.
type Told = Vec<(AlertKind, bool, Option<Reading>)>;

/// The alerts as they stand after a look, and what is to be told. Alerts that no rule stands for any more end.
pub fn look(rules: &AlertRules, before: &Alerts, facts: &AlertFacts) -> (Alerts, Told) {
    let mut after = before.clone();
    let mut told = Vec::new();
    for kind in AlertKind::ALL {
        let mut alert = after.kinds.remove(&kind).unwrap_or_default();
        match rules.limit(kind) {
            Some(limit) => {
                let (lies, reading) = read(kind, limit, facts);
                step(kind, &mut alert, lies, reading, facts.now, &mut told);
            }
            None => {
                alert.over_since = None;
                end(kind, &mut alert, facts.now, &mut told, None);
            }
        }
        if alert != Alert::default() {
            after.kinds.insert(kind, alert);
        }
    }
    (after, told)
}

fn step(kind: AlertKind, alert: &mut Alert, lies: Lies, reading: Reading, now: Timestamp, told: &mut Told) {
    alert.over_since = match lies {
        Lies::Over => Some(alert.over_since.unwrap_or(now)),
        Lies::Near | Lies::Below => None,
    };
    if alert.firing.is_none() {
        alert.calm_since = None;
        if alert.over_since.is_some_and(|since| now.since(since) >= patience(kind, reading.limit)) {
            told.push((kind, true, Some(reading.clone())));
            alert.firing = Some((now, reading));
            alert.resolved_at = None;
        }
        return;
    }
    alert.calm_since = match lies {
        Lies::Below => Some(alert.calm_since.unwrap_or(now)),
        Lies::Near | Lies::Over => None,
    };
    if alert.calm_since.is_some_and(|since| now.since(since) >= CALM) {
        end(kind, alert, now, told, Some(reading));
    }
}

fn end(kind: AlertKind, alert: &mut Alert, now: Timestamp, told: &mut Told, reading: Option<Reading>) {
    alert.calm_since = None;
    if alert.firing.take().is_some() {
        alert.resolved_at = Some(now);
        told.push((kind, false, reading));
    }
}

/// For how long a reading has to lie above its limit.
fn patience(kind: AlertKind, limit: u32) -> Duration {
    match kind {
        AlertKind::ErrorRate | AlertKind::ResponseTime => OVER,
        // The crashes themselves took their time.
        AlertKind::CrashLoop => Duration::ZERO,
        AlertKind::NoHealthyProcess => Duration::from_secs(u64::from(limit)),
    }
}

fn read(kind: AlertKind, limit: u32, facts: &AlertFacts) -> (Lies, Reading) {
    let bound = u64::from(limit);
    let reading = |value, requests, process| Reading { value, limit, requests, process };
    let rate = |value: u64| {
        if facts.unanswered {
            Lies::Near
        } else if facts.requests < ENOUGH || value.saturating_mul(100) < bound * WELL {
            Lies::Below
        } else if value > bound {
            Lies::Over
        } else {
            Lies::Near
        }
    };
    match kind {
        AlertKind::ErrorRate => {
            let value = facts.errors.saturating_mul(1000).checked_div(facts.requests).unwrap_or(0);
            (rate(value), reading(value, facts.requests, None))
        }
        AlertKind::ResponseTime => (rate(facts.p95_millis), reading(facts.p95_millis, facts.requests, None)),
        AlertKind::CrashLoop => {
            let lies = match facts.crashes {
                crashes if crashes >= limit => Lies::Over,
                0 => Lies::Below,
                _ => Lies::Near,
            };
            (lies, reading(u64::from(facts.crashes), 0, facts.process.clone()))
        }
        AlertKind::NoHealthyProcess => {
            (if facts.down { Lies::Over } else { Lies::Below }, reading(u64::from(facts.down), 0, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: AlertRules = AlertRules {
        error_rate: Some(50),
        response_time: Some(1_000),
        crash_loop: Some(3),
        no_healthy_process: Some(30),
    };

    fn none() -> Alerts {
        Alerts::new("hello".parse().unwrap(), "id".to_owned())
    }

    /// Looks every ten seconds; gives the seconds at which something was told, and what.
    fn watch(rules: &AlertRules, facts: impl Fn(i64) -> AlertFacts, until: i64) -> Vec<(i64, AlertKind, bool)> {
        let (mut alerts, mut all) = (none(), Vec::new());
        for second in (0..until).step_by(10) {
            let (after, told) = look(rules, &alerts, &AlertFacts { now: Timestamp(second * 1000), ..facts(second) });
            all.extend(told.into_iter().map(|(kind, firing, _)| (second, kind, firing)));
            alerts = after;
        }
        all
    }

    fn errors(count: u64) -> AlertFacts {
        AlertFacts { requests: 1000, errors: count, ..AlertFacts::default() }
    }

    #[test]
    fn an_alert_fires_after_a_while_and_ends_after_a_longer_one() {
        let seen = watch(&RULES, |second| errors(if (100..400).contains(&second) { 60 } else { 0 }), 1000);
        assert_eq!(seen, [(160, AlertKind::ErrorRate, true), (520, AlertKind::ErrorRate, false)]);
    }

    #[test]
    fn a_number_that_sways_around_its_limit_is_told_once() {
        let sways = |second: i64| errors(if second / 10 % 2 == 0 { 51 } else { 49 });
        assert_eq!(watch(&RULES, sways, 2000), [], "it was never too high for a minute");
        // Once it fires, falling just below the limit does not end it.
        let falls = |second: i64| if second < 200 { errors(80) } else { sways(second) };
        assert_eq!(watch(&RULES, falls, 5000), [(60, AlertKind::ErrorRate, true)]);
    }

    #[test]
    fn while_nobody_can_say_what_visitors_get_nothing_is_said_of_it() {
        let seen = watch(
            &RULES,
            |second| match second {
                ..200 => errors(80),
                200..1000 => AlertFacts { unanswered: true, ..AlertFacts::default() },
                _ => errors(0),
            },
            2000,
        );
        assert_eq!(seen, [(60, AlertKind::ErrorRate, true), (1120, AlertKind::ErrorRate, false)]);
    }

    #[test]
    fn a_few_requests_say_nothing_and_silence_ends_an_alert() {
        let few = |_| AlertFacts { requests: 19, errors: 19, p95_millis: 9_000, ..AlertFacts::default() };
        assert_eq!(watch(&RULES, few, 1000), []);
        let then_none = |second: i64| if second < 200 { errors(1000) } else { AlertFacts::default() };
        let seen = watch(&RULES, then_none, 1000);
        assert_eq!(seen, [(60, AlertKind::ErrorRate, true), (320, AlertKind::ErrorRate, false)]);
    }

    #[test]
    fn each_rule_reads_its_own_number() {
        let slow = |_| AlertFacts { requests: 50, p95_millis: 1_001, ..AlertFacts::default() };
        assert_eq!(watch(&RULES, slow, 100), [(60, AlertKind::ResponseTime, true)]);
        let crashing = |_| AlertFacts { crashes: 3, process: Some("web.1".into()), ..AlertFacts::default() };
        assert_eq!(watch(&RULES, crashing, 100), [(0, AlertKind::CrashLoop, true)]);
        let down = |_| AlertFacts { down: true, ..AlertFacts::default() };
        assert_eq!(watch(&RULES, down, 100), [(30, AlertKind::NoHealthyProcess, true)]);
        let off = AlertRules::default();
        for facts in [slow(0), crashing(0), down(0), errors(1000)] {
            assert_eq!(watch(&off, |_| facts.clone(), 1000), []);
        }
    }

    #[test]
    fn a_rule_that_is_switched_off_ends_its_alert() {
        let (firing, told) = look(&RULES, &none(), &AlertFacts { crashes: 5, ..AlertFacts::default() });
        assert_eq!((told.len(), firing.firing().count()), (1, 1));
        let (ended, told) = look(&AlertRules::default(), &firing, &AlertFacts { crashes: 5, ..AlertFacts::default() });
        assert_eq!(told, [(AlertKind::CrashLoop, false, None)], "nobody knows whether it is well");
        assert_eq!(ended.firing().count(), 0);
        assert_eq!(look(&AlertRules::default(), &ended, &AlertFacts::default()).1, []);
    }
}
