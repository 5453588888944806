//! What checks and statuses of others say about a commit, and what GitHub protects an environment with.
//!
//! GitHub keeps two lists, statuses and check runs, and a required context may stand in either. What Landfall says
//! itself is never waited for here: it is asked of its own test runs.

use super::{Change, Snapshot};
use crate::clock::Timestamp;
use crate::domain::*;
use std::time::Duration;

/// By which contexts of our own begin.
const OWN: &str = "landfall/";

/// A context that a branch requires, and whose it must be, if that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredCheck {
    pub context: String,
    pub app: Option<u64>,
}

/// The newest word of one context about a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenCheck {
    pub context: String,
    /// The app of a check run; a status has none.
    pub app: Option<u64>,
    pub state: CheckState,
}

/// Worse ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckState {
    Green,
    Pending,
    Red,
}

impl CheckState {
    /// A check run's, from GitHub's two words: neutral and skipped count as passed, as for a merge.
    pub fn of_run(status: &str, conclusion: Option<&str>) -> CheckState {
        match (status, conclusion) {
            ("completed", Some("success" | "neutral" | "skipped")) => CheckState::Green,
            ("completed", _) => CheckState::Red,
            _ => CheckState::Pending,
        }
    }

    pub fn of_status(state: &str) -> CheckState {
        match state {
            "success" => CheckState::Green,
            "pending" => CheckState::Pending,
            _ => CheckState::Red,
        }
    }
}

/// What others say about a commit, as far as somebody wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    Green,
    /// These have not said anything final yet.
    Waiting {
        contexts: Vec<String>,
    },
    Red {
        contexts: Vec<String>,
    },
}

/// Judges what was seen by what is wanted. One red context decides, whatever else is still open.
pub fn others(wanted: WaitFor, required: &[RequiredCheck], seen: &[SeenCheck]) -> Others {
    let foreign = |context: &str| !context.to_ascii_lowercase().starts_with(OWN);
    let state_of = |check: &RequiredCheck| {
        let same = |seen: &&SeenCheck| {
            seen.context.eq_ignore_ascii_case(&check.context) && check.app.is_none_or(|app| seen.app == Some(app))
        };
        seen.iter().filter(same).map(|seen| seen.state).max().unwrap_or(CheckState::Pending)
    };
    let mut states: Vec<(String, CheckState)> = match wanted {
        WaitFor::Own => return Others::Green,
        WaitFor::Required => required
            .iter()
            .filter(|check| foreign(&check.context))
            .map(|check| (check.context.clone(), state_of(check)))
            .collect(),
        WaitFor::All => {
            let all = seen.iter().filter(|seen| foreign(&seen.context));
            let mut all: Vec<_> = all.map(|seen| (seen.context.clone(), seen.state)).collect();
            let missing = required.iter().filter(|check| foreign(&check.context));
            all.extend(missing.map(|check| (check.context.clone(), state_of(check))));
            all
        }
    };
    states.sort();
    states.dedup();
    let of = |wanted: CheckState| -> Vec<String> {
        let some = states.iter().filter(|(_, state)| *state == wanted);
        some.map(|(context, _)| context.clone()).collect()
    };
    let (red, waiting) = (of(CheckState::Red), of(CheckState::Pending));
    match (red.is_empty(), waiting.is_empty()) {
        (false, _) => Others::Red { contexts: red },
        (true, false) => Others::Waiting { contexts: waiting },
        (true, true) => Others::Green,
    }
}

/// Somebody else's check of a commit said something: staging may go on with it, or begin again where red checks had
/// ended it.
pub(super) fn checks_changed(commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    for app in snapshot.apps.iter().filter(|app| app.stage == Stage::Staging && app.wanted == Wanted::Running) {
        let Some(newest) = app.newest().filter(|deploy| deploy.commit == *commit && deploy.cause == Cause::Push) else {
            continue;
        };
        match &newest.outcome {
            None if newest.release.is_none() => changes.push(Change::Look { app: app.name.clone() }),
            Some(Outcome::Failed { failure: Failure::Checks { .. }, .. })
                if snapshot.others == Some(Others::Green)
                    && super::barred(StageKind::Staging, &snapshot.pipeline, snapshot.now).is_none() =>
            {
                changes.push(Change::Deploy {
                    key: app.key(),
                    commit: commit.clone(),
                    branch: newest.branch.clone(),
                    cause: Cause::Push,
                    by: None,
                    after_tests: true,
                });
            }
            _ => {}
        }
    }
    changes
}

/// What an environment on GitHub asks for before something is deployed to it. GitHub keeps it for workflows only; of
/// what an app deploys it is the app that must keep it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Protection {
    pub environment: String,
    /// Somebody of a list must say so.
    pub reviewed: bool,
    /// Who asked may not be that somebody.
    pub prevent_self_review: bool,
    pub author_reviews: bool,
    /// The same of who asked first, where a second person is waited for.
    pub first_reviews: bool,
    pub wait_minutes: u64,
    /// The branch of what would be deployed is not among those that may be.
    pub branch_refused: bool,
}

impl Protection {
    /// When what is asked for now may begin.
    pub fn begins(&self, now: Timestamp) -> Option<Timestamp> {
        (self.wait_minutes > 0).then(|| now + Duration::from_secs(self.wait_minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(context: &str, app: Option<u64>) -> RequiredCheck {
        RequiredCheck { context: context.to_owned(), app }
    }

    fn seen(context: &str, app: Option<u64>, state: CheckState) -> SeenCheck {
        SeenCheck { context: context.to_owned(), app, state }
    }

    #[test]
    fn what_a_branch_requires_of_others_is_waited_for_and_nothing_of_our_own() {
        use CheckState::{Green, Pending, Red};
        let waiting = |context: &str| Others::Waiting { contexts: vec![context.to_owned()] };
        let red = |context: &str| Others::Red { contexts: vec![context.to_owned()] };
        let needs = [required("lint", None), required("landfall/tests", None)];
        for (wanted, needs, seen, expected) in [
            (WaitFor::Own, &needs[..], vec![seen("lint", None, Red)], Others::Green),
            (WaitFor::Required, &needs[..], vec![], waiting("lint")),
            (WaitFor::Required, &needs[..], vec![seen("Lint", None, Green), seen("docs", None, Red)], Others::Green),
            (WaitFor::Required, &needs[..], vec![seen("lint", Some(7), Pending)], waiting("lint")),
            (WaitFor::Required, &needs[..], vec![seen("lint", Some(7), Red)], red("lint")),
            // A status of that name is not the app's check.
            (WaitFor::Required, &[required("lint", Some(7))][..], vec![seen("lint", None, Green)], waiting("lint")),
            (WaitFor::All, &[][..], vec![seen("docs", None, Pending)], waiting("docs")),
            (WaitFor::All, &[][..], vec![seen("docs", None, Red), seen("lint", None, Pending)], red("docs")),
            (WaitFor::All, &needs[..], vec![seen("docs", None, Green)], waiting("lint")),
            (WaitFor::All, &[][..], vec![seen("landfall/review-app", Some(1), Red)], Others::Green),
        ] {
            assert_eq!(others(wanted, needs, &seen), expected, "{wanted:?} {needs:?} {seen:?}");
        }
    }

    #[test]
    fn githubs_words_are_read_as_for_a_merge() {
        assert_eq!(CheckState::of_run("completed", Some("neutral")), CheckState::Green);
        assert_eq!(CheckState::of_run("completed", Some("timed_out")), CheckState::Red);
        assert_eq!(CheckState::of_run("in_progress", None), CheckState::Pending);
        assert_eq!(CheckState::of_status("error"), CheckState::Red);
    }
}
