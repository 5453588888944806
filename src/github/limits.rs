//! When GitHub may be called again, for each grant by itself.
//!
//! The primary limit is a budget an hour that every answer's headers show; the secondary ones (too much at once, too
//! many writes a minute) are told by a 403 or 429, with a time or without one. A closed gate is answered at once, never
//! waited for: the caller has other work.

use super::transport::Answer;
use crate::clock::Timestamp;
use crate::domain::InstallationId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// GitHub's documentation on a secondary limit without a header: "wait for at least one minute", and longer each time
/// it goes on.
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(32 * 60);
/// No named time is believed beyond this: a budget lasts an hour, and a header may be wrong.
const LONGEST_NAMED_WAIT: Duration = Duration::from_secs(2 * 60 * 60);

/// By whose grant a call is made: each has its own budget, its own gate and its own cached answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The app as itself (its JSON Web Token).
    App,
    Installation(InstallationId),
    /// The plain token of a small set-up.
    Token,
}

/// What GitHub said is left of the hour's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub limit: u64,
    pub remaining: u64,
    pub resets_at: Timestamp,
}

impl Budget {
    /// Under a tenth: what isn't for a person who waits should wait for the reset.
    pub fn is_low(&self) -> bool {
        self.remaining.saturating_mul(10) < self.limit
    }
}

#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<Lane, Gate>>);

#[derive(Debug, Default)]
struct Gate {
    closed_until: Option<Timestamp>,
    /// Limits in a row that named no time.
    strikes: u32,
    budget: Option<Budget>,
}

impl Limits {
    /// # Errors
    /// The time from which calls are allowed again.
    pub(super) fn check(&self, lane: Lane, now: Timestamp) -> Result<(), Timestamp> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.get(&lane).and_then(|gate| gate.closed_until) {
            Some(until) if now < until => Err(until),
            _ => Ok(()),
        }
    }

    pub(super) fn budget(&self, lane: Lane) -> Option<Budget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&lane)?.budget
    }

    /// Learns from an answer that came at `now`. Returns the time of the next call if the answer is a limit.
    pub(super) fn observe(&self, lane: Lane, answer: &Answer, now: Timestamp) -> Option<Timestamp> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(lane).or_default();
        let budget = budget_of(answer, now);
        if budget.is_some() {
            gate.budget = budget;
        }
        let spent = budget.filter(|budget| budget.remaining == 0).map(|budget| budget.resets_at);
        let until = match limited_until(answer, spent, now) {
            Verdict::Free => {
                if answer.status < 400 {
                    gate.strikes = 0;
                }
                // The last call of the budget was answered: the next one would be refused.
                if spent.is_some() {
                    gate.closed_until = gate.closed_until.max(spent);
                }
                return None;
            }
            Verdict::Named(until) => until.min(now + LONGEST_NAMED_WAIT),
            Verdict::Unnamed => {
                let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(gate.strikes)).min(LONGEST_WAIT);
                gate.strikes = gate.strikes.saturating_add(1);
                now + wait
            }
        };
        gate.closed_until = gate.closed_until.max(Some(until));
        gate.closed_until
    }
}

enum Verdict {
    Free,
    Named(Timestamp),
    Unnamed,
}

fn limited_until(answer: &Answer, spent: Option<Timestamp>, now: Timestamp) -> Verdict {
    if !matches!(answer.status, 403 | 429) {
        // A 503 may name a time as well, and then means it.
        return match answer.status {
            500..=599 => retry_after(answer, now).map(Verdict::Named).unwrap_or(Verdict::Free),
            _ => Verdict::Free,
        };
    }
    if let Some(until) = retry_after(answer, now).max(spent) {
        return Verdict::Named(until);
    }
    // A 403 without headers is a limit only by its words.
    let message = answer.message().to_lowercase();
    if answer.status == 429 || ["rate limit", "abuse detection"].iter().any(|words| message.contains(words)) {
        Verdict::Unnamed
    } else {
        Verdict::Free
    }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(answer: &Answer, now: Timestamp) -> Option<Timestamp> {
    let text = answer.header("retry-after")?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(now + Duration::from_secs(seconds.min(LONGEST_NAMED_WAIT.as_secs())));
    }
    Some(now + http_date(text)?.since(http_date(answer.header("date")?)?))
}

fn budget_of(answer: &Answer, now: Timestamp) -> Option<Budget> {
    let number = |name: &str| answer.header(name)?.trim().parse::<u64>().ok();
    let reset = Timestamp(i64::try_from(number("x-ratelimit-reset")?).ok()?.checked_mul(1000)?);
    // The reset is a time of GitHub's clock. How far away it is doesn't depend on ours if GitHub says what it is now.
    let resets_at = match answer.header("date").and_then(http_date) {
        Some(there) => now + reset.since(there),
        None => reset,
    };
    Some(Budget {
        limit: number("x-ratelimit-limit")?,
        remaining: number("x-ratelimit-remaining")?,
        // Both clocks are cut to whole seconds.
        resets_at: resets_at + Duration::from_secs(1),
    })
}

/// An HTTP date in the one form that servers may still send (RFC 9110, section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    let mut parts = text.split_ascii_whitespace().skip(1);
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? + 1;
    Timestamp::parse_rfc3339(&format!("{year}-{month:02}-{day:0>2}T{time}Z"))
}
