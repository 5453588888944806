//! An event happened: what is wanted now?
//!
//! The event's facts were read again from GitHub before they came here, so a delivery that is late, doubled or out of
//! order leads to the same wishes as one in time.

use super::checks::checks_changed;
use super::{Change, Others, Protection, ScaleLimits, commands, policy};
use crate::clock::Timestamp;
use crate::domain::*;
use std::collections::{BTreeMap, BTreeSet};

/// What is known about the event's repository at this moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: Timestamp,
    pub repository: Repository,
    /// The pull request of the event, or of the run that it asks for again, as it was known before.
    pub pull: Option<Pull>,
    pub apps: Vec<App>,
    /// Releases of staging and production that a command may name.
    pub releases: Vec<Release>,
    /// Slugs that no release can serve again; none where nobody asked for an earlier one.
    pub gone: BTreeSet<SlugDigest>,
    /// Runs that have no verdict yet, and the newest one of each commit.
    pub runs: Vec<TestRun>,
    /// Places of commands that were answered before: a recorded delivery sent again under another id does nothing.
    pub answered: Vec<(u64, u16)>,
    /// What the author of a command may do, as GitHub says now; `None` when nobody needed to ask.
    pub right: Option<Right>,
    /// The same for who asked first for promotions that wait for a second person, by login.
    pub first_rights: BTreeMap<String, Right>,
    pub pipeline: PipelineState,
    /// What the operator allows; `None` where nobody asked to scale.
    pub scale_limits: Option<ScaleLimits>,
    /// What checks of others say of the commit that the event is about; `None` where nobody needed to ask.
    pub others: Option<Others>,
    /// What GitHub says of a promotion to an app of production; none where nobody needed to ask.
    pub promotable: BTreeMap<Part, Promotable>,
    /// The apps of staging that nothing concerns which was pushed since what they were last asked to serve.
    pub untouched: BTreeSet<Part>,
}

/// What GitHub says of a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotable {
    pub others: Others,
    pub protection: Protection,
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
    pub fn policy(&self) -> &PipelineSettings {
        &self.pipeline.policy
    }

    pub fn app(&self, key: impl Into<AppKey>) -> Option<&App> {
        let key = key.into();
        self.apps.iter().find(|app| app.key() == key)
    }

    pub fn running(&self, key: impl Into<AppKey>) -> Option<&App> {
        self.app(key).filter(|app| app.wanted == Wanted::Running)
    }

    /// The name of an app, which may not be there yet.
    pub fn name_of(&self, key: AppKey) -> AppName {
        self.app(key).map_or_else(|| self.policy().name_of(&self.repository, key), |app| app.name.clone())
    }

    /// The branch that an app of staging follows.
    pub fn branch_of(&self, key: AppKey) -> &str {
        self.policy().branch_of(key).unwrap_or(&self.repository.default_branch)
    }

    /// The review apps that a pull request may have, one for each folder.
    pub fn review_keys(&self, pull: PullNumber) -> Vec<AppKey> {
        self.policy().folders().into_iter().map(|part| AppKey::new(Stage::Review(pull), part)).collect()
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
        Event::ChecksChanged { commit } => checks_changed(commit, snapshot),
        Event::GroupQueued { branch, commit } => group_queued(branch, commit, snapshot),
        Event::GroupGone { branch } => group_gone(branch, snapshot),
        Event::RepositoryChanged => Vec::new(),
        Event::RepositoryGone => vec![Change::EndGrant],
    }
}

fn pull_changed(told: &Pull, snapshot: &Snapshot) -> Vec<Change> {
    let known = snapshot.pull.as_ref();
    // What was destroyed stays so until somebody asks for it, or opens the pull request again.
    let pull =
        &Pull { parked: known.filter(|known| known.open).and_then(|known| known.parked.clone()), ..told.clone() };
    let mut changes = Vec::new();
    if known != Some(pull) {
        changes.push(Change::PutPull(pull.clone()));
    }
    let keys = snapshot.review_keys(pull.number);
    // A folder that the rules name no more has no app any more.
    let stray =
        |app: &&App| app.pull() == Some(pull.number) && app.wanted != Wanted::Gone && !keys.contains(&app.key());
    changes.extend(snapshot.apps.iter().filter(stray).map(|app| Change::Remove { key: app.key() }));
    if pull.is_fork() {
        hold_unless_approved(pull, &keys, snapshot, &mut changes);
        return changes;
    }
    let label = &snapshot.policy().review.label;
    let unlabelled = snapshot.policy().review.apps == ReviewApps::Manual
        && known.is_some_and(|known| known.labels.contains(label))
        && !pull.labels.contains(label);
    let mut deploys = Vec::new();
    let mut live = policy::other_review_apps(&snapshot.apps, pull.number);
    for key in keys {
        let app = snapshot.running(key);
        // The newest push counts: a change of config serves older code again, where newer code failed.
        let pushed = app.and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
        let wanted = match app.and_then(App::newest) {
            Some(_) if unlabelled => {
                changes.push(Change::Remove { key });
                false
            }
            Some(_) => {
                pushed.is_none_or(|deploy| deploy.commit != pull.head)
                    && snapshot.pipeline.lock(StageKind::Review).is_none()
            }
            None => policy::review_app_refused(pull, key.part, &snapshot.pipeline, live).is_none(),
        };
        if wanted || app.is_some() {
            live += 1;
        }
        if wanted {
            deploys.push(policy::review_deploy(key, pull, None, snapshot));
        }
    }
    let untested: Vec<Part> = snapshot
        .policy()
        .folders()
        .into_iter()
        .filter(|part| {
            !snapshot.runs.iter().any(|run| {
                let same = run.pull == Some(pull.number) && run.commit == pull.head && run.part == *part;
                same && run.stands()
            })
        })
        .collect();
    if !untested.is_empty() && !pull.is_skipped() {
        changes.push(Change::CancelRuns {
            pull: Some(pull.number),
            branch: pull.branch.clone(),
            except: Some(pull.head.clone()),
            because: Cancelled::Newer { commit: pull.head.clone() },
        });
        changes.extend(untested.into_iter().map(|part| Change::StartRun {
            pull: Some(pull.number),
            part,
            branch: pull.branch.clone(),
            commit: pull.head.clone(),
            only_failed_of: None,
            // An app that somebody asked for by hand has tests too.
            untouched: !pull.touches(part) && snapshot.running(AppKey::new(Stage::Review(pull.number), part)).is_none(),
        }));
    }
    changes.extend(deploys);
    changes
}

/// A stranger's code: nothing of it is fetched, built or run before somebody approves this very commit, and an approval
/// is void with the next push.
fn hold_unless_approved(pull: &Pull, keys: &[AppKey], snapshot: &Snapshot, changes: &mut Vec<Change>) {
    let approved =
        |app: &App| app.wanted == Wanted::Running && app.newest().is_some_and(|deploy| deploy.commit == pull.head);
    if keys.iter().any(|key| snapshot.app(*key).is_some_and(approved)) {
        return;
    }
    // Somebody must be able to approve it, so at least one app says that it is held.
    let touched: Vec<AppKey> = keys.iter().copied().filter(|key| pull.touches(key.part)).collect();
    let wanted = |key: &AppKey| touched.contains(key) || touched.is_empty() || snapshot.running(*key).is_some();
    let mut held = false;
    for key in keys.iter().copied().filter(wanted) {
        if snapshot.app(key).is_none_or(|app| app.wanted != Wanted::Held) {
            changes.push(Change::Hold { key });
            held = true;
        }
    }
    if held {
        changes.extend(cancel_all(pull, snapshot, Cancelled::Newer { commit: pull.head.clone() }));
    }
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
    let own = |app: &&App| app.pull() == Some(pull.number) && app.wanted != Wanted::Gone;
    changes.extend(snapshot.apps.iter().filter(own).map(|app| Change::Remove { key: app.key() }));
    changes.extend(cancel_all(pull, snapshot, Cancelled::Closed));
    changes
}

fn branch_pushed(branch: &str, commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    let following = snapshot.policy().staging_keys().into_iter().filter(|key| snapshot.branch_of(*key) == branch);
    let new: Vec<AppKey> = following.filter(|key| !is_pushed(*key, commit, snapshot)).collect();
    let held = policy::barred(StageKind::Staging, &snapshot.pipeline, snapshot.now).is_some();
    let touched = |key: &AppKey| !snapshot.untouched.contains(&key.part);
    let mut parts: Vec<Part> = new.iter().map(|key| snapshot.policy().folder_of(*key)).collect();
    parts.sort();
    parts.dedup();
    parts.retain(|part| {
        let of_commit = |run: &&TestRun| run.pull.is_none() && run.commit == *commit && run.stands();
        let known: Vec<&TestRun> = snapshot.runs.iter().filter(of_commit).filter(|run| run.part == *part).collect();
        let concerned = new.iter().filter(|key| snapshot.policy().folder_of(**key) == *part).any(touched);
        // What was held back, or concerned nothing, is known by its run.
        let decided = if concerned { held && !known.is_empty() } else { !known.is_empty() };
        !decided
    });
    if parts.is_empty() {
        return Vec::new();
    }
    let mut changes = vec![Change::CancelRuns {
        pull: None,
        branch: branch.to_owned(),
        except: Some(commit.clone()),
        because: Cancelled::Newer { commit: commit.clone() },
    }];
    changes.extend(parts.iter().map(|part| Change::StartRun {
        pull: None,
        part: *part,
        branch: branch.to_owned(),
        commit: commit.clone(),
        only_failed_of: None,
        untouched: !new.iter().filter(|key| snapshot.policy().folder_of(**key) == *part).any(touched),
    }));
    if !held {
        let concerned = new.iter().filter(|key| touched(key) && parts.contains(&snapshot.policy().folder_of(**key)));
        changes.extend(concerned.map(|key| deploy_to_staging(*key, branch, commit)));
    }
    changes
}

/// Whether an app of staging was asked to serve the commit already. What a lock or a freeze held back in the middle is still
/// to come.
fn is_pushed(key: AppKey, commit: &Sha, snapshot: &Snapshot) -> bool {
    let newest = snapshot.running(key).and_then(|app| pushes(app).next());
    newest.is_some_and(|deploy| deploy.commit == *commit && !is_held_back(deploy))
}

/// What pushes asked an app to serve, the newest first, whatever a person rolled back to since.
fn pushes(app: &App) -> impl Iterator<Item = &Deploy> {
    app.deploys.iter().rev().filter(|deploy| deploy.cause == Cause::Push)
}

fn is_held_back(deploy: &Deploy) -> bool {
    matches!(deploy.outcome, Some(Outcome::Failed { failure: Failure::Barred { .. }, .. }))
}

fn deploy_to_staging(key: AppKey, branch: &str, commit: &Sha) -> Change {
    Change::Deploy {
        key,
        commit: commit.clone(),
        branch: branch.to_owned(),
        cause: Cause::Push,
        by: None,
        after_tests: true,
    }
}

/// The newest commit of what each app of staging follows, if it was held back by a lock or a freeze that is over.
pub fn catch_up_staging(snapshot: &Snapshot) -> Vec<Change> {
    if policy::barred(StageKind::Staging, &snapshot.pipeline, snapshot.now).is_some() {
        return Vec::new();
    }
    let mut changes = Vec::new();
    for key in snapshot.policy().staging_keys() {
        let (branch, part) = (snapshot.branch_of(key), snapshot.policy().folder_of(key));
        // What somebody ran again by hand says nothing about what was pushed, nor does what concerned nothing.
        let of_branch = |run: &&TestRun| {
            let own = run.pull.is_none() && run.branch == branch && run.part == part && run.repeats.is_none();
            own && run.verdict != Some(Verdict::Untouched)
        };
        // An older commit may have been tested again since; when it was tested first says when it was pushed.
        let first = |run: &&TestRun| {
            let earlier = |other: &TestRun| {
                let same = other.commit == run.commit && other.part == run.part && other.branch == run.branch;
                same && other.pull.is_none() && other.number < run.number
            };
            !snapshot.runs.iter().any(earlier)
        };
        let newest = snapshot.runs.iter().filter(of_branch).filter(first).max_by_key(|run| run.number);
        // Without an app nothing was held back: the next push makes one. What was pushed before the last push that was not
        // held back is over: the branch may have been set back since.
        let Some(app) = snapshot.running(key) else { continue };
        let since = pushes(app).find(|deploy| !is_held_back(deploy)).map(|deploy| deploy.asked_at);
        let held_back = |run: &&TestRun| since.is_none_or(|since| run.created_at > since);
        if let Some(newest) = newest.filter(held_back).filter(|newest| !is_pushed(key, &newest.commit, snapshot)) {
            changes.push(deploy_to_staging(key, branch, &newest.commit));
        }
    }
    changes
}

/// The merge queue waits for the check of its group's head: the pull requests in it, merged into their base.
fn group_queued(branch: &str, commit: &Sha, snapshot: &Snapshot) -> Vec<Change> {
    let known = |run: &TestRun| {
        run.commit == *commit && run.branch == branch && run.cancelled.is_none() && run.repeats.is_none()
    };
    if snapshot.runs.iter().any(known) {
        return Vec::new();
    }
    let start = |part| Change::StartRun {
        pull: None,
        part,
        branch: branch.to_owned(),
        commit: commit.clone(),
        only_failed_of: None,
        untouched: false,
    };
    snapshot.policy().folders().into_iter().map(start).collect()
}

fn group_gone(branch: &str, snapshot: &Snapshot) -> Vec<Change> {
    let going_on =
        |run: &TestRun| run.pull.is_none() && run.branch == branch && run.verdict.is_none() && run.cancelled.is_none();
    if branch == snapshot.repository.default_branch || !snapshot.runs.iter().any(going_on) {
        return Vec::new();
    }
    vec![Change::CancelRuns { pull: None, branch: branch.to_owned(), except: None, because: Cancelled::Dequeued }]
}

/// The run that is to be done again: the one that was named, else the commit's newest.
pub fn run_again<'a>(commit: &Sha, number: Option<RunNumber>, runs: &'a [TestRun]) -> Option<&'a TestRun> {
    let same = |run: &&TestRun| {
        run.commit == *commit && run.repeats.is_none() && number.is_none_or(|number| run.number == number)
    };
    runs.iter().filter(same).max_by_key(|run| run.number)
}

fn rerun(
    commit: &Sha,
    number: Option<RunNumber>,
    by: Option<&str>,
    only_failed: bool,
    snapshot: &Snapshot,
) -> Vec<Change> {
    let Some(run) = run_again(commit, number, &snapshot.runs) else {
        return Vec::new();
    };
    if run.verdict.is_none() && run.cancelled.is_none() {
        return Vec::new();
    }
    let mut changes = vec![Change::StartRun {
        pull: run.pull,
        part: run.part,
        branch: run.branch.clone(),
        commit: commit.clone(),
        only_failed_of: only_failed.then_some(run.number),
        untouched: false,
    }];
    if run.pull.is_some() {
        changes.extend(policy::review_deploy_after(commit, run.part, by, snapshot));
    } else {
        // Red master was not deployed; green at the second try, it is.
        for key in snapshot.policy().staging_keys() {
            let app = snapshot.app(key).filter(|_| snapshot.policy().folder_of(key) == run.part);
            let pushed = app.and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
            let pushed = pushed.filter(|deploy| deploy.commit == *commit);
            if pushed.is_some_and(|deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. }))) {
                changes.push(Change::Deploy {
                    key,
                    commit: commit.clone(),
                    branch: run.branch.clone(),
                    cause: Cause::Push,
                    by: by.map(str::to_owned),
                    after_tests: true,
                });
            }
        }
    }
    changes
}
