//! Slash-commands: who may give them, what they lead to.
//!
//! Each command gets a record with its answer, kept with the delivery that brought it, so that it is done exactly
//! once. Several commands of one comment see what those before them changed of the pipeline's state.

use super::policy::{self, barred, is_tested, no_right};
use super::{Change, ScaleRefusal, Snapshot, mentioned_commands, parse_scale, scaled};
use crate::clock::Timestamp;
use crate::domain::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether GitHub must be asked what the author may do before this comment is decided on.
pub fn needs_right(commands: &[Command]) -> bool {
    let free = |command: &Command| {
        matches!(command, Command::Status | Command::Help | Command::Malformed { .. } | Command::Unknown { .. })
    };
    !commands.iter().all(free)
}

/// The stage whose right a command needs.
fn stage_of(command: &Command, pull: PullNumber, snapshot: &Snapshot) -> Option<StageKind> {
    match command {
        Command::Deploy
        | Command::Destroy
        | Command::Retest { .. }
        | Command::Cancel
        | Command::Approve { .. }
        | Command::Extend { .. }
        | Command::Logs { .. }
        | Command::Wake => Some(StageKind::Review),
        Command::Promote { .. } | Command::Freeze { .. } => Some(StageKind::Production),
        Command::RetryRelease { stage } => Some(retried(*stage, pull, snapshot)),
        Command::Rollback { stage: RollbackStage::Staging, .. } => Some(StageKind::Staging),
        Command::Rollback { stage: RollbackStage::Production, .. } => Some(StageKind::Production),
        Command::Lock { stage, .. }
        | Command::Unlock { stage }
        | Command::Restart { stage }
        | Command::Scale { stage, .. } => Some(*stage),
        Command::Status | Command::Help | Command::Malformed { .. } | Command::Unknown { .. } => None,
    }
}

/// What `/retry-release` means where it names no stage: the review app if it is what failed.
fn retried(stage: Option<StageKind>, pull: PullNumber, snapshot: &Snapshot) -> StageKind {
    let failed = |app: &App| app.newest().is_some_and(|deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. })));
    let review = snapshot.running(Stage::Review(pull)).is_some_and(failed);
    stage.unwrap_or(if review { StageKind::Review } else { StageKind::Production })
}

fn stage_for(kind: StageKind, pull: PullNumber) -> Stage {
    match kind {
        StageKind::Review => Stage::Review(pull),
        StageKind::Staging => Stage::Staging,
        StageKind::Production => Stage::Production,
    }
}

/// The comment that gives commands.
struct Given<'a> {
    pull: PullNumber,
    comment: u64,
    place: u16,
    author: &'a str,
    written_at: Timestamp,
}

/// What a command leads to.
#[derive(Debug)]
struct Effect {
    changes: Vec<Change>,
    answer: Answer,
    notes: Vec<Note>,
}

impl Effect {
    fn done(changes: Vec<Change>) -> Effect {
        Effect { changes, answer: Answer::Done, notes: Vec::new() }
    }

    fn answer(answer: Answer) -> Effect {
        Effect { changes: Vec::new(), answer, notes: Vec::new() }
    }
}

pub(super) fn decide(
    pull: PullNumber,
    comment: u64,
    author: &str,
    body: &str,
    written_at: Timestamp,
    snapshot: &Snapshot,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut snapshot = snapshot.clone();
    for (place, command) in mentioned_commands(body).into_iter().enumerate() {
        let place = u16::try_from(place).unwrap_or(u16::MAX);
        if snapshot.answered.contains(&(comment, place)) {
            continue;
        }
        if changes.is_empty()
            && let Some(known) = &snapshot.pull
        {
            // The comment may be the first that is heard of its pull request, and an answer needs it.
            changes.push(Change::PutPull(known.clone()));
        }
        let given = Given { pull, comment, place, author, written_at };
        let mut record = CommandRecord {
            repository: snapshot.repository.id,
            pull,
            comment,
            place,
            command: command.clone(),
            by: author.to_owned(),
            given_at: written_at,
            answer: Answer::Done,
            notes: Vec::new(),
        };
        match effect(&command, &given, &snapshot) {
            Ok(effect) => {
                for change in &effect.changes {
                    match change {
                        Change::PutPipeline(state) => snapshot.pipeline = (**state).clone(),
                        Change::PutPull(pull) => snapshot.pull = Some(pull.clone()),
                        Change::Scale { stage, formation } => {
                            if let Some(app) = snapshot.apps.iter_mut().find(|app| app.stage == *stage) {
                                app.formation = Some(formation.clone());
                            }
                        }
                        _ => {}
                    }
                }
                let deploys = effect
                    .changes
                    .iter()
                    .any(|change| matches!(change, Change::Deploy { .. } | Change::StartRun { .. }));
                changes.extend(effect.changes);
                record.answer = effect.answer;
                record.notes = effect.notes;
                // The answer names the deploy or run that the change makes, whose number is the store's to give.
                let by_newest = deploys && !matches!(command, Command::Unlock { .. });
                changes.push(if by_newest { Change::AnswerWithNewest(record) } else { Change::Answer(record) });
            }
            Err(reason) => {
                record.answer = Answer::Refused { reason };
                changes.push(Change::Answer(record));
            }
        }
    }
    changes
}

fn effect(command: &Command, given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    if let Some(stage) = stage_of(command, given.pull, snapshot)
        && let Some(refusal) = no_right(stage, snapshot.right.as_ref(), &snapshot.pipeline.policy)
    {
        return Err(refusal);
    }
    match command {
        Command::Help => Ok(Effect::answer(Answer::Helped)),
        Command::Unknown { .. } => Err(Refusal::UnknownCommand),
        Command::Malformed { .. } => Err(Refusal::Malformed),
        Command::Scale { stage, what } => scale(stage_for(*stage, given.pull), what, snapshot),
        Command::Wake => {
            let app = snapshot.running(Stage::Review(given.pull)).ok_or(Refusal::NoApp)?;
            app.asleep_since.ok_or(Refusal::Awake)?;
            Ok(Effect::done(vec![Change::Wake { stage: app.stage }]))
        }
        Command::RetryRelease { stage } => {
            let stage = stage_for(retried(*stage, given.pull, snapshot), given.pull);
            retry_release(stage, given.author, snapshot).map(|change| Effect::done(vec![change]))
        }
        Command::Promote { release, to, hotfix, canary } => {
            let wish = PromotionWish { release: *release, hotfix: hotfix.as_deref(), canary: *canary };
            promote_by_comment(&wish, to.as_deref(), given, snapshot)
        }
        Command::Rollback { to, stage } => {
            let stage = match stage {
                RollbackStage::Staging => Stage::Staging,
                RollbackStage::Production => Stage::Production,
            };
            let (change, notes) = roll_back(stage, *to, given.author, snapshot)?;
            Ok(Effect { changes: vec![change], answer: Answer::Done, notes })
        }
        Command::Retest { failed } => retest(given.pull, *failed, snapshot).map(|change| Effect::done(vec![change])),
        Command::Cancel => cancel(given, snapshot),
        Command::Deploy => deploy(given, snapshot),
        Command::Approve { commit } => approve(commit, given, snapshot),
        Command::Destroy => destroy(given, snapshot),
        Command::Lock { stage, reason } => {
            let mut state = snapshot.pipeline.clone();
            state.locks.retain(|lock| lock.stage != *stage);
            state.locks.push(Lock {
                stage: *stage,
                reason: reason.clone(),
                by: given.author.to_owned(),
                at: snapshot.now,
            });
            Ok(Effect::done(vec![Change::PutPipeline(Box::new(state))]))
        }
        Command::Unlock { stage } => {
            let mut state = snapshot.pipeline.clone();
            if state.lock(*stage).is_none() {
                return Err(Refusal::NotLocked { stage: *stage });
            }
            state.locks.retain(|lock| lock.stage != *stage);
            let after = Snapshot { pipeline: state.clone(), ..snapshot.clone() };
            let mut changes = vec![Change::PutPipeline(Box::new(state))];
            if *stage == StageKind::Staging {
                changes.extend(super::intake::catch_up_staging(&after));
            }
            Ok(Effect::done(changes))
        }
        Command::Freeze { until, reason } => {
            let mut state = snapshot.pipeline.clone();
            let until = match until {
                None if state.freeze.is_none() => return Err(Refusal::NotLocked { stage: StageKind::Production }),
                None => None,
                Some(Until::At(moment)) => Some(*moment),
                Some(Until::In(seconds)) => Some(given.written_at + Duration::from_secs(*seconds)),
            };
            if until.is_some_and(|until| until <= snapshot.now) {
                return Err(Refusal::Malformed);
            }
            state.freeze = until.map(|until| Freeze { until, reason: reason.clone(), by: given.author.to_owned() });
            Ok(Effect::done(vec![Change::PutPipeline(Box::new(state))]))
        }
        Command::Restart { stage } => {
            let stage = stage_for(*stage, given.pull);
            snapshot.running(stage).ok_or(Refusal::NoApp)?;
            Ok(Effect::done(vec![Change::Restart { stage, before: snapshot.now }]))
        }
        Command::Extend { seconds } => {
            let app = snapshot.running(Stage::Review(given.pull)).ok_or(Refusal::NoApp)?;
            let end = policy::expiry(app, &snapshot.pipeline.policy).ok_or(Refusal::NothingExpires)?;
            let until = end.max(snapshot.now) + Duration::from_secs(*seconds);
            Ok(Effect::done(vec![Change::Keep { stage: app.stage, until }]))
        }
        Command::Logs { .. } => {
            snapshot.running(Stage::Review(given.pull)).ok_or(Refusal::NoApp)?;
            Ok(Effect::answer(Answer::Told))
        }
        Command::Status => Ok(Effect::answer(Answer::Told)),
    }
}

fn scale(stage: Stage, what: &[String], snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let app = snapshot.running(stage).ok_or(Refusal::NoApp)?;
    let limits = snapshot.scale_limits.as_ref().ok_or(Refusal::NotOffered)?;
    let orders = what.iter().map(|word| parse_scale(word)).collect::<Result<BTreeMap<_, _>, _>>();
    let number = app.live.or_else(|| app.newest().and_then(|deploy| deploy.release));
    let release = number.and_then(|number| snapshot.release(&app.name, number));
    let formation =
        orders.and_then(|orders| scaled(app, release, &orders, limits)).map_err(|refusal| match refusal {
            ScaleRefusal::Nothing | ScaleRefusal::NotUnderstood { .. } => Refusal::Malformed,
            ScaleRefusal::NoRelease { .. } => Refusal::NoApp,
            ScaleRefusal::NoSuchType { kind, known, .. } => Refusal::NoSuchProcess { process: kind, known },
            ScaleRefusal::UnknownSize { size, known } => Refusal::NoSuchSize { size, known },
            ScaleRefusal::TooMany { wanted, most, .. } => {
                Refusal::TooManyProcesses { wanted, most: u32::from(most), everywhere: false }
            }
            ScaleRefusal::TooManyInAll { wanted, most } => Refusal::TooManyProcesses { wanted, most, everywhere: true },
        })?;
    Ok(Effect::done(vec![Change::Scale { stage, formation }]))
}

fn promote_by_comment(
    wish: &PromotionWish<'_>,
    to: Option<&str>,
    given: &Given<'_>,
    snapshot: &Snapshot,
) -> Result<Effect, Refusal> {
    let production = snapshot.repository.app_name(Stage::Production);
    if let Some(to) = to
        && to != "production"
        && to != production.as_str()
    {
        return Err(Refusal::NoSuchTarget { to: to.to_owned() });
    }
    let (change, mut notes) = promote(wish, given.author, snapshot)?;
    let Change::Deploy { cause: Cause::Promotion { from, release, .. }, .. } = &change else {
        return Err(Refusal::NothingOnStaging);
    };
    let mut state = snapshot.pipeline.clone();
    let pending = state.promotion.take();
    if state.policy.production.approvals == 0 {
        return Ok(Effect { changes: vec![change], answer: Answer::Done, notes });
    }
    let same = pending.filter(|pending| pending.from == *from && pending.release == *release);
    let Some(first) = same else {
        state.promotion = Some(PendingPromotion {
            from: from.clone(),
            release: *release,
            by: given.author.to_owned(),
            pull: given.pull,
            comment: given.comment,
            place: given.place,
            at: snapshot.now,
        });
        let answer = Answer::Waiting { app: production, release: *release };
        return Ok(Effect { changes: vec![Change::PutPipeline(Box::new(state))], answer, notes });
    };
    if first.by.eq_ignore_ascii_case(given.author) {
        return Err(Refusal::SecondPerson);
    }
    if no_right(StageKind::Production, snapshot.first_right.as_ref(), &state.policy).is_some() {
        return Err(Refusal::FirstLostRight { login: first.by });
    }
    notes.push(Note::Approved { by: first.by });
    Ok(Effect { changes: vec![Change::PutPipeline(Box::new(state)), change], answer: Answer::Done, notes })
}

/// What is asked of a promotion beside that it happens.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromotionWish<'a> {
    /// Only if this is what staging serves.
    pub release: Option<ReleaseNumber>,
    /// Why no lock or freeze may hold it back.
    pub hotfix: Option<&'a str>,
    /// Percent of the requests at first, and for how many seconds.
    pub canary: Option<(u8, u64)>,
}

/// Staging's live slug goes to production, if staging is at rest, its commit is tested, nothing bars it, and it is not
/// there yet.
pub fn promote(wish: &PromotionWish<'_>, author: &str, snapshot: &Snapshot) -> Result<(Change, Vec<Note>), Refusal> {
    let staging = snapshot.running(Stage::Staging).ok_or(Refusal::NothingOnStaging)?;
    let deploy = staging.live_deploy().ok_or(Refusal::NothingOnStaging)?;
    if staging.newest().is_some_and(|newest| newest.outcome.is_none()) {
        return Err(Refusal::StagingBusy);
    }
    let release =
        deploy.release.and_then(|number| snapshot.release(&staging.name, number)).ok_or(Refusal::NothingOnStaging)?;
    if let Some(asked) = wish.release.filter(|asked| *asked != release.number) {
        return Err(Refusal::NotOnStaging { release: asked, live: release.number });
    }
    if let Some(production) = snapshot.app(Stage::Production) {
        let wanted = production.newest();
        let same = |deploy: &&Deploy| {
            let (Cause::Promotion { slug, .. } | Cause::Config { slug, .. } | Cause::Retry { slug, .. }) =
                &deploy.cause
            else {
                return false;
            };
            *slug == release.slug
                && deploy.commit == release.commit
                && !matches!(deploy.outcome, Some(Outcome::Failed { .. }))
        };
        if let Some(there) = wanted.filter(same) {
            return Err(Refusal::AlreadyThere {
                app: production.name.clone(),
                release: there.release.unwrap_or(ReleaseNumber(production.last_release + 1)),
            });
        }
    }
    if !is_tested(&release.commit, snapshot) {
        return Err(Refusal::NotTested { commit: release.commit.clone() });
    }
    let mut notes = Vec::new();
    match (barred(StageKind::Production, &snapshot.pipeline, snapshot.now), wish.hotfix) {
        (Some(refusal), None) => return Err(refusal),
        (over, Some(reason)) => notes.push(Note::Hotfix { reason: reason.to_owned(), over }),
        (None, None) => {}
    }
    let change = Change::Deploy {
        stage: Stage::Production,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Promotion {
            from: staging.name.clone(),
            release: release.number,
            slug: release.slug.clone(),
            canary: wish.canary,
        },
        by: Some(author.to_owned()),
        after_tests: false,
    };
    Ok((change, notes))
}

/// An earlier release of the app, as a new one. A rollback is how trouble is ended, so a freeze does not bar it; a
/// lock does.
pub fn roll_back(
    stage: Stage,
    to: Option<ReleaseNumber>,
    author: &str,
    snapshot: &Snapshot,
) -> Result<(Change, Vec<Note>), Refusal> {
    let app = snapshot.running(stage).ok_or(Refusal::NoSuchRelease)?;
    let live = app.live.ok_or(Refusal::NoSuchRelease)?;
    let was_live =
        |deploy: &&Deploy| matches!(deploy.outcome, Some(Outcome::Live { .. })) && deploy.release != Some(live);
    let number = match to {
        Some(number) => number,
        None => {
            app.deploys.iter().rev().find(was_live).and_then(|deploy| deploy.release).ok_or(Refusal::NoSuchRelease)?
        }
    };
    if number == live {
        return Err(Refusal::AlreadyThere { app: app.name.clone(), release: live });
    }
    // A release that never served is nothing to go back to; of very old ones only the release is remembered.
    let failed =
        |deploy: &Deploy| deploy.release == Some(number) && !matches!(deploy.outcome, Some(Outcome::Live { .. }));
    if app.deploys.iter().any(failed) {
        return Err(Refusal::NoSuchRelease);
    }
    let release = snapshot.release(&app.name, number).ok_or(Refusal::NoSuchRelease)?;
    if let Some(lock) = snapshot.pipeline.lock(stage.kind()) {
        return Err(Refusal::Locked { stage: lock.stage, by: lock.by.clone(), reason: lock.reason.clone() });
    }
    // What those releases did to a database stays done.
    let since: Vec<ReleaseNumber> = snapshot
        .releases
        .iter()
        .filter(|other| other.app == app.name && other.number > number && other.number <= live)
        .filter(|other| other.release_command().is_some() && !matches!(other.cause, Cause::Rollback { .. }))
        .map(|other| other.number)
        .collect();
    let notes = if since.is_empty() { Vec::new() } else { vec![Note::NotUndone { releases: since }] };
    let change = Change::Deploy {
        stage,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Rollback { to: number, guard: None },
        by: Some(author.to_owned()),
        after_tests: false,
    };
    Ok((change, notes))
}

/// The slug of the newest deploy, which failed after its release was made, once more: with the config of now, and with
/// a release phase of its own.
pub fn retry_release(stage: Stage, author: &str, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let app = snapshot.app(stage).filter(|app| app.wanted == Wanted::Running).ok_or(Refusal::NothingToRetry)?;
    let failed = |deploy: &&Deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. }));
    let deploy = app.newest().filter(failed).ok_or(Refusal::NothingToRetry)?;
    let release =
        deploy.release.and_then(|number| snapshot.release(&app.name, number)).ok_or(Refusal::NothingToRetry)?;
    if let Some(refusal) = barred(stage.kind(), &snapshot.pipeline, snapshot.now) {
        return Err(refusal);
    }
    Ok(Change::Deploy {
        stage,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Retry { deploy: deploy.number, slug: release.slug.clone() },
        by: Some(author.to_owned()),
        after_tests: false,
    })
}

/// An app goes, with its add-ons and its data; a review app as with `/destroy`. `pull` is the one that a review app belongs
/// to, if it is known. Of staging and production a lock or a freeze bars it, as it bars what is put there.
pub fn destroy_app(
    stage: Stage,
    pull: Option<&Pull>,
    author: &str,
    snapshot: &Snapshot,
) -> Result<Vec<Change>, Refusal> {
    snapshot.running(stage).ok_or(Refusal::NoApp)?;
    if !matches!(stage, Stage::Review(_))
        && let Some(refusal) = barred(stage.kind(), &snapshot.pipeline, snapshot.now)
    {
        return Err(refusal);
    }
    let parked = Some(Parked::Destroyed { by: author.to_owned() });
    let parked = pull.filter(|pull| pull.open).map(|pull| Change::PutPull(Pull { parked, ..pull.clone() }));
    Ok(parked.into_iter().chain([Change::Remove { stage }]).collect())
}

fn open_pull(pull: PullNumber, snapshot: &Snapshot) -> Result<&Pull, Refusal> {
    snapshot.pull.as_ref().filter(|known| known.number == pull && known.open).ok_or(Refusal::Closed)
}

/// Whether somebody let exactly the head of this fork run.
fn is_approved(pull: &Pull, snapshot: &Snapshot) -> bool {
    let app = snapshot.running(Stage::Review(pull.number)).and_then(App::newest);
    app.is_some_and(|deploy| deploy.commit == pull.head)
}

fn retest(pull: PullNumber, failed: bool, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let known = open_pull(pull, snapshot)?;
    if known.is_fork() && !is_approved(known, snapshot) {
        return Err(Refusal::NeedsApproval { commit: known.head.clone() });
    }
    let of_head = || snapshot.runs.iter().filter(|run| run.pull == Some(pull) && run.commit == known.head);
    if of_head().any(|run| run.verdict.is_none() && run.cancelled.is_none()) {
        return Err(Refusal::NothingToTest);
    }
    let newest = of_head().max_by_key(|run| run.number);
    let is_red = newest
        .is_some_and(|run| run.verdict.as_ref().is_some_and(|verdict| !verdict.is_green()) && run.cancelled.is_none());
    if failed && !is_red {
        return Err(Refusal::NothingFailed);
    }
    Ok(Change::StartRun {
        pull: Some(pull),
        branch: known.branch.clone(),
        commit: known.head.clone(),
        only_failed_of: newest.filter(|_| failed).map(|run| run.number),
    })
}

fn cancel(given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let known = snapshot.pull.as_ref().ok_or(Refusal::NothingToCancel)?;
    let going_on = |run: &TestRun| run.pull == Some(given.pull) && run.verdict.is_none() && run.cancelled.is_none();
    if !snapshot.runs.iter().any(going_on) {
        return Err(Refusal::NothingToCancel);
    }
    Ok(Effect::done(vec![Change::CancelRuns {
        pull: Some(given.pull),
        branch: known.branch.clone(),
        except: None,
        because: Cancelled::By { login: given.author.to_owned() },
    }]))
}

fn deploy(given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    if pull.is_fork() && !is_approved(pull, snapshot) {
        return Err(Refusal::NeedsApproval { commit: pull.head.clone() });
    }
    deploy_head(pull, given.author, snapshot)
}

/// Exactly the commit that was named, and only while it is the head: what is pushed after the comment was written, or
/// was never part of the pull request, does not run.
fn approve(commit: &Sha, given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    if pull.head != *commit {
        return Err(Refusal::NotTheHead { head: pull.head.clone() });
    }
    if pull.is_fork() && pull.author.eq_ignore_ascii_case(given.author) {
        return Err(Refusal::SecondPerson);
    }
    deploy_head(pull, given.author, snapshot)
}

fn deploy_head(pull: &Pull, author: &str, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let stage = Stage::Review(pull.number);
    if let Some(refusal) = barred(StageKind::Review, &snapshot.pipeline, snapshot.now) {
        return Err(refusal);
    }
    if let Some(app) = snapshot.running(stage)
        && let Some(newest) = app.newest().filter(|newest| newest.commit == pull.head)
        && !matches!(newest.outcome, Some(Outcome::Failed { .. }))
    {
        let release = newest.release.unwrap_or(ReleaseNumber(app.last_release + 1));
        return Err(Refusal::AlreadyThere { app: app.name.clone(), release });
    }
    let others = policy::other_review_apps(&snapshot.apps, pull.number);
    if let Some(limit) = policy::full(&snapshot.pipeline, others) {
        return Err(Refusal::Full { limit });
    }
    let mut changes = Vec::new();
    if pull.parked.is_some() {
        changes.push(Change::PutPull(Pull { parked: None, ..pull.clone() }));
    }
    let tested = snapshot
        .runs
        .iter()
        .any(|run| run.pull == Some(pull.number) && run.commit == pull.head && run.cancelled.is_none());
    if !tested {
        changes.push(Change::StartRun {
            pull: Some(pull.number),
            branch: pull.branch.clone(),
            commit: pull.head.clone(),
            only_failed_of: None,
        });
    }
    changes.push(Change::Deploy {
        stage,
        commit: pull.head.clone(),
        branch: pull.branch.clone(),
        cause: Cause::Push,
        by: Some(author.to_owned()),
        after_tests: snapshot.pipeline.policy.review.wait_for_ci,
    });
    Ok(Effect::done(changes))
}

fn destroy(given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    destroy_app(Stage::Review(given.pull), Some(pull), given.author, snapshot).map(Effect::done)
}
