//! An event happened: what is wanted now?
//!
//! The event's facts were read again from GitHub before they came here, so a delivery that is late, doubled or out of
//! order leads to the same wishes as one in time.

use super::{Change, ScaleLimits, commands, policy};
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
    /// The same for who asked first for the promotion that waits for a second person.
    pub first_right: Option<Right>,
    pub pipeline: PipelineState,
    /// What the operator allows; `None` where nobody asked to scale.
    pub scale_limits: Option<ScaleLimits>,
}

/// A person's permission on a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// GitHub's exact name of the role.
    pub role: String,
    pub access: Access,
    /// Of the teams that the policy names, those that the person is in.
    pub teams: Vec<String>,
}

impl Snapshot {
    pub fn app(&self, stage: Stage) -> Option<&App> {
        self.apps.iter().find(|app| app.stage == stage)
    }

    pub fn running(&self, stage: Stage) -> Option<&App> {
        self.app(stage).filter(|app| app.wanted == Wanted::Running)
    }

    /// The branch that staging follows.
    pub fn staging_branch(&self) -> &str {
        self.pipeline.policy.staging.branch.as_deref().unwrap_or(&self.repository.default_branch)
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

fn pull_changed(told: &Pull, snapshot: &Snapshot) -> Vec<Change> {
    let stage = Stage::Review(told.number);
    let known = snapshot.pull.as_ref();
    // What was destroyed stays so until somebody asks for it, or opens the pull request again.
    let pull =
        &Pull { parked: known.filter(|known| known.open).and_then(|known| known.parked.clone()), ..told.clone() };
    let mut changes = Vec::new();
    if known != Some(pull) {
        changes.push(Change::PutPull(pull.clone()));
    }
    let wanted = snapshot.running(stage).and_then(App::newest);
    if pull.is_fork() {
        // A stranger's code: nothing of it is fetched, built or run before somebody approves this very commit, and an
        // approval is void with the next push.
        let approved = wanted.is_some_and(|deploy| deploy.commit == pull.head);
        if !approved && snapshot.app(stage).is_none_or(|app| app.wanted != Wanted::Held) {
            changes.push(Change::Hold { stage });
            changes.extend(cancel_all(pull, snapshot, Cancelled::Newer { commit: pull.head.clone() }));
        }
        return changes;
    }
    // The newest push counts: a change of config serves older code again, where newer code failed.
    let pushed =
        snapshot.running(stage).and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
    let label = &snapshot.pipeline.policy.review.label;
    let unlabelled = snapshot.pipeline.policy.review.apps == ReviewApps::Manual
        && known.is_some_and(|known| known.labels.contains(label))
        && !pull.labels.contains(label);
    let deploys = match wanted {
        Some(_) if unlabelled => {
            changes.push(Change::Remove { stage });
            false
        }
        Some(_) => {
            pushed.is_none_or(|deploy| deploy.commit != pull.head)
                && snapshot.pipeline.lock(StageKind::Review).is_none()
        }
        None => {
            let others = policy::other_review_apps(&snapshot.apps, pull.number);
            policy::review_app_refused(pull, &snapshot.pipeline, others).is_none()
        }
    };
    let deploy = deploys.then(|| Change::Deploy {
        stage,
        commit: pull.head.clone(),
        branch: pull.branch.clone(),
        cause: Cause::Push,
        by: None,
        after_tests: snapshot.pipeline.policy.review.wait_for_ci,
    });
    let tested = snapshot
        .runs
        .iter()
        .any(|run| run.pull == Some(pull.number) && run.commit == pull.head && run.cancelled.is_none());
    if !tested && !pull.is_skipped() {
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
    changes.extend(deploy);
    changes
}

fn cancel_all(pull: &Pull, snapshot: &Snapshot, because: Cancelled) -> Option<Change> {
    let going_on = |run: &TestRun| run.pull == Some(pull.number) && run.verdict.is_none() && run.cancelled.is_none();
    snapshot.runs.iter().any(going_on).then(|| Change::CancelRuns {
        pull: Some(pull.number),
        branch: pull.branch.clone(),
        except: None,
        because,
    })
}

fn pull_closed(pull: &Pull, snapshot: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    if snapshot.pull.as_ref() != Some(pull) {
        changes.push(Change::PutPull(pull.clone()));
    }
    if snapshot.app(Stage::Review(pull.number)).is_some_and(|app| app.wanted != Wanted::Gone) {
        changes.push(Change::Remove { stage: Stage::Review(pull.number) });
    }
    changes.extend(cancel_all(pull, snapshot, Cancelled::Closed));
    changes
}

fn branch_pushed(branch: &str, commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    if branch != snapshot.staging_branch() || is_pushed(commit, snapshot) {
        return Vec::new();
    }
    let held = policy::barred(StageKind::Staging, &snapshot.pipeline, snapshot.now).is_some();
    let tested = |run: &TestRun| run.pull.is_none() && run.commit == *commit && run.cancelled.is_none();
    if held && snapshot.runs.iter().any(tested) {
        return Vec::new();
    }
    let mut changes = vec![
        Change::CancelRuns {
            pull: None,
            branch: branch.to_owned(),
            except: Some(commit.clone()),
            because: Cancelled::Newer { commit: commit.clone() },
        },
        Change::StartRun { pull: None, branch: branch.to_owned(), commit: commit.clone(), only_failed_of: None },
    ];
    if !held {
        changes.push(deploy_to_staging(branch, commit));
    }
    changes
}

/// Whether staging was asked to serve the commit already. The newest push counts, not what a person rolled back to.
fn is_pushed(commit: &Sha, snapshot: &Snapshot) -> bool {
    let pushed = snapshot
        .running(Stage::Staging)
        .and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
    pushed.is_some_and(|deploy| deploy.commit == *commit)
}

fn deploy_to_staging(branch: &str, commit: &Sha) -> Change {
    Change::Deploy {
        stage: Stage::Staging,
        commit: commit.clone(),
        branch: branch.to_owned(),
        cause: Cause::Push,
        by: None,
        after_tests: true,
    }
}

/// The newest commit of staging's branch, if it was held back by a lock or a freeze that is over.
pub fn catch_up_staging(snapshot: &Snapshot) -> Option<Change> {
    let branch = snapshot.staging_branch();
    // What somebody ran again by hand says nothing about what was pushed.
    let of_branch = |run: &&TestRun| run.pull.is_none() && run.branch == branch && run.repeats.is_none();
    // An older commit may have been tested again since; when it was tested first says when it was pushed.
    let first = |run: &&TestRun| {
        let earlier = |other: &TestRun| other.commit == run.commit && other.pull.is_none() && other.number < run.number;
        !snapshot.runs.iter().any(earlier)
    };
    let newest = snapshot.runs.iter().filter(of_branch).filter(first).max_by_key(|run| run.number)?;
    let held = policy::barred(StageKind::Staging, &snapshot.pipeline, snapshot.now).is_some();
    (!held && !is_pushed(&newest.commit, snapshot)).then(|| deploy_to_staging(branch, &newest.commit))
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
        let staging = snapshot.app(Stage::Staging);
        let staging = staging.and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
        let staging = staging.filter(|deploy| deploy.commit == *commit);
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
