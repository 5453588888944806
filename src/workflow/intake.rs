//! An event happened: what is wanted now?
//!
//! The event's facts were read again from GitHub before they came here, so a delivery that is late, doubled or out of
//! order leads to the same wishes as one in time.

use super::{Change, commands};
use crate::clock::Timestamp;
use crate::domain::*;

/// What is known about the event's repository at this moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: Timestamp,
    pub repository: Repository,
    /// The pull request of the event, as it was known before.
    pub pull: Option<Pull>,
    pub apps: Vec<App>,
    /// Releases of staging and production that a command may name.
    pub releases: Vec<Release>,
    /// Runs that have no verdict yet, and the newest one of each commit.
    pub runs: Vec<TestRun>,
    /// Places of commands that were answered before: a recorded delivery sent again under another id does nothing.
    pub answered: Vec<(u64, u16)>,
    /// What the author of a command may do, as GitHub says now; `None` when nobody needed to ask.
    pub right: Option<Right>,
}

/// A person's permission on a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// GitHub's exact name of the role.
    pub role: String,
    pub may_write: bool,
}

impl Snapshot {
    pub fn app(&self, stage: Stage) -> Option<&App> {
        self.apps.iter().find(|app| app.stage == stage)
    }

    pub fn release(&self, app: &AppName, number: ReleaseNumber) -> Option<&Release> {
        self.releases.iter().find(|release| release.app == *app && release.number == number)
    }
}

pub fn decide(event: &Event, snapshot: &Snapshot) -> Vec<Change> {
    match event {
        Event::PullChanged { pull } if !pull.open => pull_closed(pull, snapshot),
        Event::PullChanged { pull } => pull_changed(pull, snapshot),
        Event::PullClosed { pull } => pull_closed(pull, snapshot),
        Event::BranchPushed { branch, commit } => branch_pushed(branch, commit, snapshot),
        Event::Comment { pull, comment, author, body, written_at } => {
            commands::decide(*pull, *comment, author, body, *written_at, snapshot)
        }
        Event::RerunAsked { commit, run, by, only_failed } => {
            rerun(commit, *run, by.as_deref(), *only_failed, snapshot)
        }
        Event::GroupQueued { branch, commit } => group_queued(branch, commit, snapshot),
        Event::GroupGone { branch } => group_gone(branch, snapshot),
        Event::RepositoryChanged => Vec::new(),
        Event::RepositoryGone => vec![Change::EndGrant],
    }
}

fn pull_changed(pull: &Pull, snapshot: &Snapshot) -> Vec<Change> {
    let stage = Stage::Review(pull.number);
    let mut changes = Vec::new();
    if snapshot.pull.as_ref() != Some(pull) {
        changes.push(Change::PutPull(pull.clone()));
    }
    if pull.is_fork() {
        // A stranger's code: nothing of it is fetched, built or run before somebody approves this very commit.
        if snapshot.app(stage).is_none_or(|app| app.wanted != Wanted::Held) {
            changes.push(Change::Hold { stage });
        }
        return changes;
    }
    let wanted = snapshot.app(stage).filter(|app| app.wanted == Wanted::Running).and_then(App::newest);
    if wanted.is_none_or(|deploy| deploy.commit != pull.head) {
        changes.push(Change::Deploy {
            stage,
            commit: pull.head.clone(),
            branch: pull.branch.clone(),
            cause: Cause::Push,
            by: None,
            after_tests: false,
        });
    }
    let tested = snapshot
        .runs
        .iter()
        .any(|run| run.pull == Some(pull.number) && run.commit == pull.head && run.cancelled.is_none());
    if !tested {
        changes.push(Change::CancelRuns {
            pull: Some(pull.number),
            branch: pull.branch.clone(),
            except: Some(pull.head.clone()),
            because: Cancelled::Newer { commit: pull.head.clone() },
        });
        changes.push(Change::StartRun {
            pull: Some(pull.number),
            branch: pull.branch.clone(),
            commit: pull.head.clone(),
            only_failed_of: None,
        });
    }
    changes
}

fn pull_closed(pull: &Pull, snapshot: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    if snapshot.pull.as_ref() != Some(pull) {
        changes.push(Change::PutPull(pull.clone()));
    }
    if snapshot.app(Stage::Review(pull.number)).is_some_and(|app| app.wanted != Wanted::Gone) {
        changes.push(Change::Remove { stage: Stage::Review(pull.number) });
    }
    let going_on = |run: &TestRun| run.pull == Some(pull.number) && run.verdict.is_none() && run.cancelled.is_none();
    if snapshot.runs.iter().any(going_on) {
        changes.push(Change::CancelRuns {
            pull: Some(pull.number),
            branch: pull.branch.clone(),
            except: None,
            because: Cancelled::Closed,
        });
    }
    changes
}

fn branch_pushed(branch: &str, commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    if branch != snapshot.repository.default_branch {
        return Vec::new();
    }
    // The newest push counts, not what a person rolled back to since.
    let staging = snapshot.app(Stage::Staging).filter(|app| app.wanted == Wanted::Running);
    let pushed = staging.and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
    if pushed.is_some_and(|deploy| deploy.commit == *commit) {
        return Vec::new();
    }
    vec![
        Change::CancelRuns {
            pull: None,
            branch: branch.to_owned(),
            except: Some(commit.clone()),
            because: Cancelled::Newer { commit: commit.clone() },
        },
        Change::StartRun { pull: None, branch: branch.to_owned(), commit: commit.clone(), only_failed_of: None },
        Change::Deploy {
            stage: Stage::Staging,
            commit: commit.clone(),
            branch: branch.to_owned(),
            cause: Cause::Push,
            by: None,
            after_tests: true,
        },
    ]
}

/// The merge queue waits for the check of its group's head: the pull requests in it, merged into their base.
fn group_queued(branch: &str, commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    let known = |run: &TestRun| {
        run.commit == *commit && run.branch == branch && run.cancelled.is_none() && run.repeats.is_none()
    };
    if snapshot.runs.iter().any(known) {
        return Vec::new();
    }
    vec![Change::StartRun { pull: None, branch: branch.to_owned(), commit: commit.clone(), only_failed_of: None }]
}

fn group_gone(branch: &str, snapshot: &Snapshot) -> Vec<Change> {
    let going_on =
        |run: &TestRun| run.pull.is_none() && run.branch == branch && run.verdict.is_none() && run.cancelled.is_none();
    if branch == snapshot.repository.default_branch || !snapshot.runs.iter().any(going_on) {
        return Vec::new();
    }
    vec![Change::CancelRuns { pull: None, branch: branch.to_owned(), except: None, because: Cancelled::Dequeued }]
}

fn rerun(
    commit: &Sha,
    number: Option<RunNumber>,
    by: Option<&str>,
    only_failed: bool,
    snapshot: &Snapshot,
) -> Vec<Change> {
    let same = |run: &&TestRun| {
        run.commit == *commit && run.repeats.is_none() && number.is_none_or(|number| run.number == number)
    };
    let Some(run) = snapshot.runs.iter().filter(same).max_by_key(|run| run.number) else {
        return Vec::new();
    };
    if run.verdict.is_none() && run.cancelled.is_none() {
        return Vec::new();
    }
    let mut changes = vec![Change::StartRun {
        pull: run.pull,
        branch: run.branch.clone(),
        commit: commit.clone(),
        only_failed_of: only_failed.then_some(run.number),
    }];
    if run.pull.is_none() {
        // Red master was not deployed; green at the second try, it is.
        let staging = snapshot.app(Stage::Staging).and_then(App::newest).filter(|deploy| deploy.commit == *commit);
        if staging.is_some_and(|deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. }))) {
            changes.push(Change::Deploy {
                stage: Stage::Staging,
                commit: commit.clone(),
                branch: run.branch.clone(),
                cause: Cause::Push,
                by: by.map(str::to_owned),
                after_tests: true,
            });
        }
    }
    changes
}
