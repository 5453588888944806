//! Writes wishes down. One transaction for all changes of a delivery, together with the mark that it was applied.

use crate::clock::Timestamp;
use crate::domain::*;
use crate::store::{StoreError, Transaction, queue};
use crate::workflow::Change;

/// Puts a subject into the queue.
pub fn enqueue(tx: &mut Transaction<'_>, subject: &Subject, due: Timestamp) -> Result<(), StoreError> {
    queue::enqueue(tx, &subject.to_string(), due)
}

/// Random identities that the changes may need, drawn outside of the transaction, since it may run again.
pub struct Fresh {
    pub app_ids: Vec<String>,
}

pub fn apply(
    tx: &mut Transaction<'_>,
    repository: &Repository,
    changes: &[Change],
    mut fresh: Fresh,
    now: Timestamp,
) -> Result<(), StoreError> {
    // Of each folder, and the newest of all.
    let mut started: Vec<(Part, RunNumber)> = Vec::new();
    let mut newest_deploy = None;
    for change in changes {
        match change {
            Change::PutPull(pull) => {
                tx.put_pull(pull)?;
                enqueue(tx, &Subject::Pull(pull.repository, pull.number), now)?;
            }
            Change::Deploy { key, commit, branch, cause, by, after_tests } => {
                let mut app = app_or_new(tx, repository, *key, &mut fresh, now)?;
                app.untrusted = is_untrusted(tx, repository, app.pull())?;
                app.farewell.done = false;
                if let Some(number) = key.pull() {
                    tx.put_farewell(repository.id, number, None)?;
                }
                let mut deploy = Deploy::new(commit.clone(), branch.clone(), cause.clone(), by.clone(), now);
                if *after_tests {
                    let policy = tx.stored_pipeline(repository.id)?.map(|state| state.policy).unwrap_or_default();
                    deploy.gate = gate_of(tx, repository, &started, policy.folder_of(*key), commit)?;
                }
                let number = app.want(deploy);
                trim(&mut app);
                newest_deploy = Some((app.name.clone(), number));
                put_app(tx, &app, now)?;
            }
            Change::NotBefore { at } => {
                if let Some((name, number)) = &newest_deploy
                    && let Some(mut app) = tx.app(name)?
                {
                    let made = app.deploys.iter_mut().filter(|deploy| deploy.number == *number);
                    made.for_each(|deploy| deploy.not_before = Some(*at));
                    put_app(tx, &app, now)?;
                }
            }
            Change::Look { app } => {
                if let Some(mut app) = tx.app(app)? {
                    if let Some(newest) = app.deploys.last_mut() {
                        newest.checked_at = None;
                    }
                    put_app(tx, &app, now)?;
                }
            }
            Change::Hold { key } => {
                let mut app = app_or_new(tx, repository, *key, &mut fresh, now)?;
                app.wanted = Wanted::Held;
                // What served until now was approved then; whoever approves the next commit approves nothing else.
                app.live = None;
                app.watch = None;
                app.canary = None;
                app.asleep_since = None;
                for open in app.deploys.iter_mut().filter(|deploy| deploy.outcome.is_none()) {
                    open.outcome = Some(Outcome::Superseded { at: now });
                }
                put_app(tx, &app, now)?;
            }
            Change::Remove { key } => remove(tx, repository, |app| app.key() == *key, now)?,
            Change::EndGrant => {
                if let Some(mut known) = tx.repository(repository.id)? {
                    known.granted = false;
                    tx.put_repository(&known)?;
                }
                tx.hold_domains(repository.id, &[])?;
                remove(tx, repository, |app| app.pull().is_some(), now)?;
                for mut run in tx.runs_of(repository.id)? {
                    if run.verdict.is_none() && run.cancelled.is_none() {
                        run.cancelled = Some(Cancelled::GrantEnded);
                        tx.put_run(&run)?;
                        enqueue(tx, &Subject::Run(run.number), now)?;
                    }
                }
            }
            Change::StartRun { pull, part, branch, commit, only_failed_of, untouched } => {
                let number = RunNumber(tx.next_number("run")?);
                let ordinal = tx.next_number(&format!("run of {}", repository.id))?;
                tx.put_run(&TestRun {
                    ordinal,
                    verdict: untouched.then_some(Verdict::Untouched),
                    finished_at: untouched.then_some(now),
                    only_failed_of: *only_failed_of,
                    untrusted: is_untrusted(tx, repository, *pull)?,
                    ..TestRun::new(number, repository.id, *pull, *part, branch.clone(), commit.clone(), now)
                })?;
                if !untouched {
                    started.push((*part, number));
                }
                if let Some(pull) = pull {
                    enqueue(tx, &Subject::Pull(repository.id, *pull), now)?;
                }
                enqueue(tx, &Subject::Run(number), now)?;
            }
            Change::CancelRuns { pull, branch, except, because } => {
                for mut run in tx.runs_of(repository.id)? {
                    if run.is_ended_with(*pull, branch) && except.as_ref() != Some(&run.commit) {
                        run.cancelled = Some(because.clone());
                        tx.put_run(&run)?;
                        enqueue(tx, &Subject::Run(run.number), now)?;
                    }
                }
            }
            Change::PutPipeline(state) => {
                tx.put_pipeline(state)?;
                // Locks and freezes stand in every open pull request's comment.
                for pull in tx.pulls(repository.id)?.into_iter().filter(|pull| pull.open) {
                    enqueue(tx, &Subject::Pull(repository.id, pull.number), now)?;
                }
            }
            Change::Restart { key, before } => {
                let restart = |app: &mut App| {
                    app.restart_at = Some(*before);
                    app.restart_only = None;
                };
                change_app(tx, repository, *key, restart, now)?;
            }
            Change::Scale { key, formation } => {
                let formation = Some(formation.clone());
                let scale = |app: &mut App| {
                    if app.formation != formation {
                        app.formation = formation;
                        app.scaled_at = Some(now);
                    }
                };
                change_app(tx, repository, *key, scale, now)?;
            }
            Change::Wake { key } => {
                let wake = |app: &mut App| {
                    if app.asleep_since.take().is_some() {
                        app.woken_at = Some(now);
                    }
                };
                change_app(tx, repository, *key, wake, now)?;
            }
            Change::Keep { key, until } => {
                change_app(tx, repository, *key, |app| app.kept_until = Some(*until), now)?;
            }
            Change::Answer(record) => answer(tx, record, now)?,
            Change::AnswerWithNewest(record) => {
                let mut record = record.clone();
                record.answer = match (&record.command, &newest_deploy, started.last().map(|(_, run)| *run)) {
                    (Command::Retest { .. }, _, Some(run)) => Answer::Testing { run },
                    (_, Some((app, deploy)), _) => Answer::Deploying { app: app.clone(), deploy: *deploy },
                    _ => record.answer,
                };
                // Who asked first for what a second person approved sees the same deploy.
                if let Command::Promote { .. } = record.command
                    && let Answer::Deploying { app, .. } = &record.answer
                {
                    for mut waiting in tx.commands_of(repository.id)? {
                        if matches!(&waiting.answer, Answer::Waiting { app: wanted, .. } if wanted == app) {
                            waiting.answer = record.answer.clone();
                            answer(tx, &waiting, now)?;
                        }
                    }
                }
                answer(tx, &record, now)?;
            }
        }
    }
    Ok(())
}

/// The run of a folder's tests that the same changes start, else the newest one of the commit.
fn gate_of(
    tx: &Transaction<'_>,
    repository: &Repository,
    started: &[(Part, RunNumber)],
    folder: Part,
    commit: &Sha,
) -> Result<Option<RunNumber>, StoreError> {
    if let Some((_, run)) = started.iter().rev().find(|(part, _)| *part == folder) {
        return Ok(Some(*run));
    }
    let of_commit = |run: &TestRun| {
        let same = run.commit == *commit && run.part == folder && run.verdict != Some(Verdict::Untouched);
        same && run.cancelled.is_none() && run.repeats.is_none()
    };
    Ok(tx.runs_of(repository.id)?.into_iter().filter(of_commit).map(|run| run.number).max())
}

/// A fork's code is a stranger's, whoever let it run.
fn is_untrusted(tx: &Transaction<'_>, repository: &Repository, pull: Option<PullNumber>) -> Result<bool, StoreError> {
    let Some(number) = pull else { return Ok(false) };
    Ok(tx.pull(repository.id, number)?.is_some_and(|pull| pull.is_fork()))
}

/// A repository's app, if it is there.
pub(super) fn app_at(tx: &Transaction<'_>, id: RepositoryId, key: AppKey) -> Result<Option<App>, StoreError> {
    Ok(tx.apps_of(id)?.into_iter().find(|app| app.key() == key))
}

fn change_app(
    tx: &mut Transaction<'_>,
    repository: &Repository,
    key: AppKey,
    change: impl FnOnce(&mut App),
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(mut app) = app_at(tx, repository.id, key)? else { return Ok(()) };
    change(&mut app);
    put_app(tx, &app, now)
}

fn answer(tx: &mut Transaction<'_>, record: &CommandRecord, now: Timestamp) -> Result<(), StoreError> {
    tx.put_command(record)?;
    enqueue(tx, &Subject::Pull(record.repository, record.pull), now)
}

/// Writes down an order of a page or a terminal that was done with this very transaction.
pub fn note_order(
    tx: &mut Transaction<'_>,
    repository: RepositoryId,
    what: OrderKind,
    by: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let number = tx.next_number("order")?;
    tx.put_order(&OperatorOrder {
        number,
        repository,
        what,
        by: by.to_owned(),
        given_at: now,
        answer: Answer::Done,
        notes: Vec::new(),
    })
}

/// Writes an app and queues everything that shows it.
pub fn put_app(tx: &mut Transaction<'_>, app: &App, now: Timestamp) -> Result<(), StoreError> {
    tx.put_app(app)?;
    enqueue(tx, &Subject::App(app.name.clone()), now)?;
    if let Some(pull) = app.pull() {
        enqueue(tx, &Subject::Pull(app.repository, pull), now)?;
    }
    Ok(())
}

fn app_or_new(
    tx: &mut Transaction<'_>,
    repository: &Repository,
    key: AppKey,
    fresh: &mut Fresh,
    now: Timestamp,
) -> Result<App, StoreError> {
    // An app keeps the name that it was made with.
    if let Some(app) = app_at(tx, repository.id, key)? {
        return Ok(app);
    }
    let policy = tx.stored_pipeline(repository.id)?.map(|state| state.policy).unwrap_or_default();
    let mut name = policy.name_of(repository, key);
    if tx.app(&name)?.is_some() {
        // Whoever has it keeps it.
        name = repository.app_name(key);
    }
    let last_release = tx.earlier_releases(&name)?;
    let id = fresh.app_ids.pop().unwrap_or_default();
    Ok(App { id, last_release, ..App::new(name, repository.id, key, now) })
}

fn remove(
    tx: &mut Transaction<'_>,
    repository: &Repository,
    which: impl Fn(&App) -> bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    for mut app in tx.apps_of(repository.id)?.into_iter().filter(which) {
        if app.wanted != Wanted::Gone {
            // Of a fork's pull request nothing runs, at the end neither.
            app.farewell =
                Farewell { attempt: app.farewell.attempt + 1, done: app.farewell.done || app.wanted == Wanted::Held };
        }
        app.wanted = Wanted::Gone;
        for open in app.deploys.iter_mut().filter(|deploy| deploy.outcome.is_none()) {
            open.outcome = Some(Outcome::Superseded { at: now });
        }
        put_app(tx, &app, now)?;
    }
    Ok(())
}

/// Drops the oldest deploys, but never the live one or one that is still under way.
pub(super) fn trim(app: &mut App) {
    while app.deploys.len() > KEPT_DEPLOYS {
        let live = app.live;
        // What was pushed last is what a later push is compared with.
        let newest_push =
            app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push).map(|deploy| deploy.number);
        let spare =
            |deploy: &Deploy| deploy.outcome.is_some() && deploy.release != live && Some(deploy.number) != newest_push;
        let Some(oldest) = app.deploys.iter().position(spare) else {
            return;
        };
        app.deploys.remove(oldest);
    }
}
