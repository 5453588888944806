//! What a repository's policy says about a pull request, a stage and a person at this moment.

use super::{Change, Right, Snapshot};
use crate::clock::Timestamp;
use crate::domain::*;
use serde::Serialize;
use std::time::Duration;

/// Why a pull request has no review app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum NoApp {
    Manual {
        label: String,
    },
    Draft,
    Bot,
    Skipped,
    Full {
        limit: u16,
    },
    Destroyed {
        by: String,
    },
    Stale {
        days: u16,
    },
    Locked {
        by: String,
        reason: String,
    },
    /// None of its files concerns the app.
    Untouched,
}

/// Why a pull request of this repository gets no review app of a folder by itself; `others` live at the moment.
pub fn review_app_refused(pull: &Pull, folder: Part, state: &PipelineState, others: usize) -> Option<NoApp> {
    let policy = &state.policy.review;
    let asked_by_label = pull.labels.contains(&policy.label);
    match &pull.parked {
        Some(Parked::Destroyed { by }) => return Some(NoApp::Destroyed { by: by.clone() }),
        Some(Parked::Stale { days }) => return Some(NoApp::Stale { days: *days }),
        None => {}
    }
    if pull.is_skipped() {
        return Some(NoApp::Skipped);
    }
    if !pull.touches(folder) {
        return Some(NoApp::Untouched);
    }
    if !asked_by_label {
        if policy.apps == ReviewApps::Manual {
            return Some(NoApp::Manual { label: policy.label.clone() });
        }
        if pull.draft && !policy.drafts {
            return Some(NoApp::Draft);
        }
        if pull.by_bot && !policy.bots {
            return Some(NoApp::Bot);
        }
    }
    if let Some(lock) = state.lock(StageKind::Review) {
        return Some(NoApp::Locked { by: lock.by.clone(), reason: lock.reason.clone() });
    }
    full(state, others).map(|limit| NoApp::Full { limit })
}

pub fn full(state: &PipelineState, others: usize) -> Option<u16> {
    state.policy.review.limit.filter(|limit| others >= usize::from(*limit))
}

/// Review apps that run, but this pull request's.
pub fn other_review_apps(apps: &[App], number: PullNumber) -> usize {
    apps.iter().filter(|app| is_other_review_app(app, number)).count()
}

pub fn is_other_review_app(app: &App, number: PullNumber) -> bool {
    app.pull().is_some_and(|pull| pull != number) && app.wanted == Wanted::Running
}

/// Why nothing may be deployed to the stage now.
pub fn barred(stage: StageKind, state: &PipelineState, now: Timestamp) -> Option<Refusal> {
    if let Some(lock) = state.lock(stage) {
        return Some(Refusal::Locked { stage, by: lock.by.clone(), reason: lock.reason.clone() });
    }
    if stage == StageKind::Production
        && let Some(freeze) = state.freeze.as_ref().filter(|freeze| freeze.until > now)
    {
        return Some(Refusal::Frozen {
            stage,
            until: freeze.until.rfc3339(),
            by: Some(freeze.by.clone()),
            reason: freeze.reason.clone(),
        });
    }
    let frozen = match stage {
        StageKind::Review => return None,
        StageKind::Staging => FrozenStage::Staging,
        StageKind::Production => FrozenStage::Production,
    };
    let windows = state.policy.freeze.iter().filter(|window| window.stages.contains(&frozen));
    windows
        .filter_map(|window| Some((window, window.ends(now)?)))
        .max_by_key(|(_, end)| *end)
        .map(|(window, end)| Refusal::Frozen { stage, until: end.rfc3339(), by: None, reason: window.reason.clone() })
}

/// Why this person may not act on an app, or on a stage. No answer from GitHub is no right.
pub fn no_right(key: impl Into<AppKey>, right: Option<&Right>, policy: &PipelineSettings) -> Option<Refusal> {
    let (needed, teams) = policy.access_to(key.into());
    let may = right.is_some_and(|right| {
        right.access >= needed && (teams.is_empty() || teams.iter().any(|team| right.teams.contains(team)))
    });
    (!may).then(|| Refusal::NoRight {
        role: right.map_or_else(|| "none".to_owned(), |right| right.role.clone()),
        needed: Some(needed),
        teams: teams.to_vec(),
    })
}

/// Until when a review app is kept if nothing is deployed to it.
pub fn expiry(app: &App, policy: &PipelineSettings) -> Option<Timestamp> {
    let days = policy.review.stale_after_days?;
    app.pull()?;
    let newest = app.newest()?;
    let by_age = newest.asked_at + Duration::from_secs(u64::from(days) * 86_400);
    Some(app.kept_until.map_or(by_age, |kept| kept.max(by_age)))
}

/// The review apps that nobody has deployed to for too long.
pub fn stale(apps: &[App], pulls: &[Pull], state: &PipelineState, now: Timestamp) -> Vec<Change> {
    let mut changes = Vec::new();
    for app in apps.iter().filter(|app| app.wanted == Wanted::Running) {
        let (Some(number), Some(end)) = (app.pull(), expiry(app, &state.policy)) else { continue };
        if end > now {
            continue;
        }
        if let Some(pull) = pulls.iter().find(|pull| pull.number == number && pull.open) {
            let days = state.policy.review.stale_after_days.unwrap_or_default();
            changes.push(Change::PutPull(Pull { parked: Some(Parked::Stale { days }), ..pull.clone() }));
            changes.push(Change::Remove { key: app.key() });
        }
    }
    changes
}

/// Open pull requests that wait for a review app only since there was no room, or the stage was locked; those that were
/// opened first come first.
pub fn waiting_for_room(pulls: &[Pull], snapshot: &Snapshot) -> Vec<Change> {
    let mut open: Vec<&Pull> = pulls.iter().filter(|pull| pull.open && !pull.is_fork()).collect();
    open.sort_by_key(|pull| pull.number);
    let runs = |app: &&App| app.pull().is_some() && app.wanted == Wanted::Running;
    let mut live = snapshot.apps.iter().filter(runs).count();
    let mut changes = Vec::new();
    for pull in open {
        for key in snapshot.review_keys(pull.number) {
            // A pull request that was seen without a test run is one whose event is still to be decided on.
            let of_head =
                |run: &TestRun| run.pull == Some(pull.number) && run.commit == pull.head && run.part == key.part;
            if !snapshot.runs.iter().any(of_head)
                || snapshot.app(key).is_some_and(|app| app.wanted != Wanted::Gone)
                || review_app_refused(pull, key.part, &snapshot.pipeline, live).is_some()
            {
                continue;
            }
            live += 1;
            changes.push(review_deploy(key, pull, None, snapshot));
        }
    }
    changes
}

/// Serve a pull request's head in one of its review apps, after its tests where the rules say so. `by`: who asked for it.
pub fn review_deploy(key: AppKey, pull: &Pull, by: Option<&str>, snapshot: &Snapshot) -> Change {
    Change::Deploy {
        key,
        commit: pull.head.clone(),
        branch: pull.branch.clone(),
        cause: Cause::Push,
        by: by.map(str::to_owned),
        after_tests: snapshot.policy().review.wait_for_ci,
    }
}

/// A review app that red tests of this commit held back is deployed once they are green at the second try.
pub fn review_deploy_after(commit: &Sha, folder: Part, by: Option<&str>, snapshot: &Snapshot) -> Option<Change> {
    let pull = snapshot.pull.as_ref().filter(|pull| pull.open && pull.head == *commit)?;
    let key = AppKey::new(Stage::Review(pull.number), folder);
    let newest = snapshot.running(key).and_then(App::newest).filter(|newest| newest.commit == *commit)?;
    let is_red = matches!(newest.outcome, Some(Outcome::Failed { failure: Failure::Tests { .. }, .. }));
    let may_go = barred(StageKind::Review, &snapshot.pipeline, snapshot.now).is_none();
    (is_red && may_go).then(|| review_deploy(key, pull, by, snapshot))
}

/// Whether the commit's own tests of a folder are green: the newest verdict counts.
pub fn is_tested(commit: &Sha, folder: Part, snapshot: &Snapshot) -> bool {
    let concluded = snapshot.runs.iter().filter(|run| {
        let same = run.commit == *commit && run.part == folder;
        same && run.cancelled.is_none() && run.repeats.is_none() && run.verdict != Some(Verdict::Untouched)
    });
    let newest = concluded.filter(|run| run.verdict.is_some()).max_by_key(|run| run.number);
    newest.and_then(|run| run.verdict.as_ref()).is_some_and(Verdict::is_green)
}
