//! Slash-commands: who may give them, what they lead to.
//!
//! Each command gets a record with its answer, kept with the delivery that brought it, so that it is done exactly
//! once. Several commands of one comment see what those before them changed.

use super::policy::{self, barred, is_tested, no_right};
use super::targets::targets;
use super::{Change, Others, Protection, ScaleRefusal, Snapshot, mentioned_commands, parse_scale, scaled};
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
                    follow(change, &mut snapshot);
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

/// Shows a command what one before it changed, which is written down with all the others' only.
fn follow(change: &Change, snapshot: &mut Snapshot) {
    let now = snapshot.now;
    match change {
        Change::PutPipeline(state) => snapshot.pipeline = (**state).clone(),
        Change::PutPull(pull) => snapshot.pull = Some(pull.clone()),
        Change::Scale { key, formation } => {
            if let Some(app) = app_mut(*key, snapshot) {
                app.formation = Some(formation.clone());
            }
        }
        Change::Remove { key } => {
            if let Some(app) = app_mut(*key, snapshot) {
                app.wanted = Wanted::Gone;
            }
        }
        Change::Deploy { key, commit, branch, cause, by, .. } => {
            if snapshot.app(*key).is_none() {
                let name = snapshot.name_of(*key);
                snapshot.apps.push(App::new(name, snapshot.repository.id, *key, now));
            }
            if let Some(app) = app_mut(*key, snapshot) {
                app.want(Deploy::new(commit.clone(), branch.clone(), cause.clone(), by.clone(), now));
            }
        }
        Change::StartRun { pull, part, branch, commit, .. } => {
            let number = snapshot.runs.iter().map(|run| run.number.0).max().unwrap_or_default() + 1;
            let (repository, branch, commit) = (snapshot.repository.id, branch.clone(), commit.clone());
            snapshot.runs.push(TestRun::new(RunNumber(number), repository, *pull, *part, branch, commit, now));
        }
        Change::CancelRuns { pull, branch, except, because } => {
            let ended = |run: &&mut TestRun| run.is_ended_with(*pull, branch) && except.as_ref() != Some(&run.commit);
            for run in snapshot.runs.iter_mut().filter(ended) {
                run.cancelled = Some(because.clone());
            }
        }
        _ => {}
    }
}

fn app_mut(key: AppKey, snapshot: &mut Snapshot) -> Option<&mut App> {
    snapshot.apps.iter_mut().find(|app| app.key() == key)
}

/// What somebody at the machine asks for, by the same rules as a comment's command, but for the rights that GitHub gives:
/// whoever may use the machine has them all.
pub fn operate(
    command: &Command,
    pull: PullNumber,
    by: &str,
    snapshot: &Snapshot,
) -> Result<(Vec<Change>, Vec<Note>), Refusal> {
    let teams = snapshot.policy().teams().map(str::to_owned).collect();
    let right = Some(super::Right { role: "operator".to_owned(), access: Access::Admin, teams });
    let snapshot = Snapshot { right, ..snapshot.clone() };
    let given = Given { pull, comment: 0, place: 0, author: by, written_at: snapshot.now };
    match command {
        Command::Promote { release, hotfix, canary, .. } => {
            let key = targets(command, pull, &snapshot)?.first().copied().ok_or(Refusal::NoApp)?;
            let wish = PromotionWish { to: key.part, release: *release, hotfix: hotfix.as_deref(), canary: *canary };
            promote(&wish, by, &snapshot).map(|(change, notes)| (vec![change], notes))
        }
        // There is no thread to answer in.
        Command::Status | Command::Help | Command::Logs { .. } => Err(Refusal::NotOffered),
        command => effect(command, &given, &snapshot).map(|effect| (effect.changes, effect.notes)),
    }
}

fn effect(command: &Command, given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let keys = targets(command, given.pull, snapshot)?;
    for key in &keys {
        if let Some(refusal) = no_right(*key, snapshot.right.as_ref(), snapshot.policy()) {
            return Err(refusal);
        }
    }
    let only = || keys.first().copied().ok_or(Refusal::NoApp);
    match command {
        Command::Help => Ok(Effect::answer(Answer::Helped)),
        Command::Unknown { .. } => Err(Refusal::UnknownCommand),
        Command::Malformed { .. } => Err(Refusal::Malformed),
        Command::Scale { what, .. } => scale(only()?, what, snapshot),
        Command::Wake => {
            let running: Vec<&App> = keys.iter().filter_map(|key| snapshot.running(*key)).collect();
            if running.is_empty() {
                return Err(Refusal::NoApp);
            }
            let asleep = running.iter().filter(|app| app.asleep_since.is_some());
            let changes: Vec<Change> = asleep.map(|app| Change::Wake { key: app.key() }).collect();
            if changes.is_empty() { Err(Refusal::Awake) } else { Ok(Effect::done(changes)) }
        }
        Command::RetryRelease { .. } => {
            retry_release(only()?, given.author, snapshot).map(|change| Effect::done(vec![change]))
        }
        Command::Promote { release, hotfix, canary, .. } => {
            let wish =
                PromotionWish { to: only()?.part, release: *release, hotfix: hotfix.as_deref(), canary: *canary };
            promote_by_comment(&wish, given, snapshot)
        }
        Command::Rollback { to, .. } => {
            let (change, notes) = roll_back(only()?, *to, given.author, snapshot)?;
            Ok(Effect { changes: vec![change], answer: Answer::Done, notes })
        }
        Command::Retest { failed } => retest(given, *failed, snapshot).map(Effect::done),
        Command::Cancel => cancel(given, snapshot),
        Command::Deploy { .. } => deploy(&keys, given, snapshot),
        Command::Approve { commit } => approve(commit, &keys, given, snapshot),
        Command::Destroy { .. } => destroy(&keys, given, snapshot),
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
        Command::Restart { .. } => {
            let running: Vec<Change> =
                running(&keys, snapshot)?.map(|app| Change::Restart { key: app.key(), before: snapshot.now }).collect();
            Ok(Effect::done(running))
        }
        Command::Extend { seconds } => {
            let mut changes = Vec::new();
            for app in running(&keys, snapshot)? {
                let end = policy::expiry(app, snapshot.policy()).ok_or(Refusal::NothingExpires)?;
                let until = end.max(snapshot.now) + Duration::from_secs(*seconds);
                changes.push(Change::Keep { key: app.key(), until });
            }
            Ok(Effect::done(changes))
        }
        Command::Logs { .. } => running(&keys, snapshot).map(|_| Effect::answer(Answer::Told)),
        Command::Status => Ok(Effect::answer(Answer::Told)),
    }
}

/// Those of the apps that run, of which there must be one.
fn running<'a>(keys: &'a [AppKey], snapshot: &'a Snapshot) -> Result<impl Iterator<Item = &'a App>, Refusal> {
    let mut running = keys.iter().filter_map(|key| snapshot.running(*key)).peekable();
    running.peek().ok_or(Refusal::NoApp)?;
    Ok(running)
}

fn scale(key: AppKey, what: &[String], snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let app = snapshot.running(key).ok_or(Refusal::NoApp)?;
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
    Ok(Effect::done(vec![Change::Scale { key, formation }]))
}

fn promote_by_comment(wish: &PromotionWish<'_>, given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let key = AppKey::new(Stage::Production, wish.to);
    let (change, mut notes) = promote(wish, given.author, snapshot)?;
    let Change::Deploy { cause: Cause::Promotion { from, release, .. }, .. } = &change else {
        return Err(Refusal::NothingOnStaging);
    };
    let protection = snapshot.promotable.get(&wish.to).map(|known| known.protection.clone()).unwrap_or_default();
    if protection.branch_refused
        && let Change::Deploy { branch, .. } = &change
    {
        let (environment, branch) = (protection.environment, branch.clone());
        return Err(Refusal::BranchNotDeployable { environment, branch });
    }
    let mut state = snapshot.pipeline.clone();
    let pending = state.promotions.iter().position(|pending| pending.to == wish.to);
    let pending = pending.map(|place| state.promotions.remove(place));
    let begins = protection.begins(snapshot.now);
    notes.extend(begins.map(|begins| Note::Delayed { until: begins.rfc3339() }));
    let later = begins.map(|at| Change::NotBefore { at });
    let reviewed_by_author = protection.author_reviews && !protection.prevent_self_review;
    if state.policy.approvals_of(key) == 0 && (!protection.reviewed || reviewed_by_author) {
        let changes = [change].into_iter().chain(later).collect();
        return Ok(Effect { changes, answer: Answer::Done, notes });
    }
    let same = pending.filter(|pending| {
        let asked = (pending.canary, pending.hotfix.as_deref());
        pending.from == *from && pending.release == *release && asked == (wish.canary, wish.hotfix)
    });
    let Some(first) = same else {
        state.promotions.push(PendingPromotion {
            from: from.clone(),
            to: wish.to,
            release: *release,
            by: given.author.to_owned(),
            pull: given.pull,
            comment: given.comment,
            place: given.place,
            at: snapshot.now,
            canary: wish.canary,
            hotfix: wish.hotfix.map(str::to_owned),
        });
        let answer = Answer::Waiting { app: snapshot.name_of(key), release: *release };
        notes.retain(|note| !matches!(note, Note::Delayed { .. }));
        return Ok(Effect { changes: vec![Change::PutPipeline(Box::new(state))], answer, notes });
    };
    if first.by.eq_ignore_ascii_case(given.author) {
        return Err(Refusal::SecondPerson);
    }
    if no_right(key, snapshot.first_rights.get(&first.by), &state.policy).is_some() {
        return Err(Refusal::FirstLostRight { login: first.by });
    }
    if !is_reviewed(&protection) {
        return Err(Refusal::NotAReviewer { environment: protection.environment });
    }
    notes.push(Note::Approved { by: first.by });
    let changes = [Change::PutPipeline(Box::new(state)), change].into_iter().chain(later).collect();
    Ok(Effect { changes, answer: Answer::Done, notes })
}

/// Whether one of two people is whom the environment's protection asks for; who asked first triggered it.
fn is_reviewed(protection: &Protection) -> bool {
    !protection.reviewed || protection.author_reviews || (protection.first_reviews && !protection.prevent_self_review)
}

/// What is asked of a promotion beside that it happens.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromotionWish<'a> {
    /// Which app of production.
    pub to: Part,
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
    let key = AppKey::new(Stage::Production, wish.to);
    let staging = snapshot.running(snapshot.policy().source_of(key)).ok_or(Refusal::NothingOnStaging)?;
    let deploy = staging.live_deploy().ok_or(Refusal::NothingOnStaging)?;
    if staging.newest().is_some_and(|newest| newest.outcome.is_none()) {
        return Err(Refusal::StagingBusy);
    }
    let release =
        deploy.release.and_then(|number| snapshot.release(&staging.name, number)).ok_or(Refusal::NothingOnStaging)?;
    if let Some(asked) = wish.release.filter(|asked| *asked != release.number) {
        return Err(Refusal::NotOnStaging { release: asked, live: release.number });
    }
    if let Some(production) = snapshot.app(key) {
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
    if !is_tested(&release.commit, snapshot.policy().folder_of(key), snapshot) {
        return Err(Refusal::NotTested { commit: release.commit.clone() });
    }
    match snapshot.promotable.get(&wish.to).map(|known| &known.others) {
        None | Some(Others::Green) => {}
        Some(Others::Waiting { contexts }) => {
            return Err(Refusal::ChecksNotGreen { contexts: contexts.clone(), red: false });
        }
        Some(Others::Red { contexts }) => {
            return Err(Refusal::ChecksNotGreen { contexts: contexts.clone(), red: true });
        }
    }
    let mut notes = Vec::new();
    match (barred(StageKind::Production, &snapshot.pipeline, snapshot.now), wish.hotfix) {
        (Some(refusal), None) => return Err(refusal),
        (over, Some(reason)) => notes.push(Note::Hotfix { reason: reason.to_owned(), over }),
        (None, None) => {}
    }
    let change = Change::Deploy {
        key,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Promotion {
            from: staging.name.clone(),
            release: release.number,
            slug: release.slug.clone(),
            canary: wish.canary,
            hotfix: wish.hotfix.is_some(),
        },
        by: Some(author.to_owned()),
        after_tests: false,
    };
    Ok((change, notes))
}

/// An earlier release of the app, as a new one. A rollback is how trouble is ended, so a freeze does not bar it; a
/// lock does.
pub fn roll_back(
    key: AppKey,
    to: Option<ReleaseNumber>,
    author: &str,
    snapshot: &Snapshot,
) -> Result<(Change, Vec<Note>), Refusal> {
    let app = snapshot.running(key).ok_or(Refusal::NoSuchRelease)?;
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
    let kept = snapshot.release(&app.name, number).filter(|release| !snapshot.gone.contains(&release.slug));
    let release = kept.ok_or(Refusal::NoSuchRelease)?;
    if let Some(lock) = snapshot.pipeline.lock(key.kind()) {
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
        key,
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
pub fn retry_release(key: AppKey, author: &str, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let app = snapshot.running(key).ok_or(Refusal::NothingToRetry)?;
    let failed = |deploy: &&Deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. }));
    let deploy = app.newest().filter(failed).ok_or(Refusal::NothingToRetry)?;
    let release =
        deploy.release.and_then(|number| snapshot.release(&app.name, number)).ok_or(Refusal::NothingToRetry)?;
    if let Some(refusal) = barred(key.kind(), &snapshot.pipeline, snapshot.now) {
        return Err(refusal);
    }
    Ok(Change::Deploy {
        key,
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
    key: AppKey,
    pull: Option<&Pull>,
    author: &str,
    snapshot: &Snapshot,
) -> Result<Vec<Change>, Refusal> {
    snapshot.running(key).ok_or(Refusal::NoApp)?;
    if key.pull().is_none()
        && let Some(refusal) = barred(key.kind(), &snapshot.pipeline, snapshot.now)
    {
        return Err(refusal);
    }
    let parked = Some(Parked::Destroyed { by: author.to_owned() });
    let parked = pull.filter(|pull| pull.open).map(|pull| Change::PutPull(Pull { parked, ..pull.clone() }));
    Ok(parked.into_iter().chain([Change::Remove { key }]).collect())
}

fn open_pull(pull: PullNumber, snapshot: &Snapshot) -> Result<&Pull, Refusal> {
    snapshot.pull.as_ref().filter(|known| known.number == pull && known.open).ok_or(Refusal::Closed)
}

/// Whether somebody let exactly the head of this fork run.
fn is_approved(pull: &Pull, snapshot: &Snapshot) -> bool {
    let newest = |key: AppKey| snapshot.running(key).and_then(App::newest);
    let mut apps = snapshot.review_keys(pull.number).into_iter().filter_map(newest);
    apps.any(|deploy| deploy.commit == pull.head)
}

fn retest(given: &Given<'_>, failed: bool, snapshot: &Snapshot) -> Result<Vec<Change>, Refusal> {
    let pull = given.pull;
    let known = open_pull(pull, snapshot)?;
    if known.is_fork() && !is_approved(known, snapshot) {
        return Err(Refusal::NeedsApproval { commit: known.head.clone() });
    }
    let of_head = || snapshot.runs.iter().filter(|run| run.pull == Some(pull) && run.commit == known.head);
    if of_head().any(|run| run.verdict.is_none() && run.cancelled.is_none()) {
        return Err(Refusal::NothingToTest);
    }
    let folders = snapshot.policy().folders();
    let is_red =
        |run: &TestRun| run.verdict.as_ref().is_some_and(|verdict| !verdict.is_green()) && run.cancelled.is_none();
    let (mut changes, mut deploys) = (Vec::new(), Vec::new());
    for part in &folders {
        let newest = of_head().filter(|run| run.part == *part).max_by_key(|run| run.number);
        let red = newest.is_some_and(is_red);
        let untouched = newest.is_some_and(|run| run.verdict == Some(Verdict::Untouched));
        if (failed && !red) || (untouched && folders.len() > 1) {
            continue;
        }
        changes.push(Change::StartRun {
            pull: Some(pull),
            part: *part,
            branch: known.branch.clone(),
            commit: known.head.clone(),
            only_failed_of: newest.filter(|_| failed).map(|run| run.number),
            untouched: false,
        });
        deploys.extend(policy::review_deploy_after(&known.head, *part, Some(given.author), snapshot));
    }
    if changes.is_empty() {
        return Err(Refusal::NothingFailed);
    }
    changes.extend(deploys);
    Ok(changes)
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

fn deploy(keys: &[AppKey], given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    if pull.is_fork() && !is_approved(pull, snapshot) {
        return Err(Refusal::NeedsApproval { commit: pull.head.clone() });
    }
    deploy_head(pull, keys, given.author, snapshot)
}

/// Exactly the commit that was named, and only while it is the head: what is pushed after the comment was written, or
/// was never part of the pull request, does not run.
fn approve(commit: &Sha, keys: &[AppKey], given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    if pull.head != *commit {
        return Err(Refusal::NotTheHead { head: pull.head.clone() });
    }
    if pull.is_fork() && pull.author.eq_ignore_ascii_case(given.author) {
        return Err(Refusal::SecondPerson);
    }
    deploy_head(pull, keys, given.author, snapshot)
}

fn deploy_head(pull: &Pull, keys: &[AppKey], author: &str, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    if let Some(refusal) = barred(StageKind::Review, &snapshot.pipeline, snapshot.now) {
        return Err(refusal);
    }
    let there = |key: &AppKey| {
        let app = snapshot.running(*key)?;
        let newest = app.newest().filter(|newest| newest.commit == pull.head)?;
        let failed = matches!(newest.outcome, Some(Outcome::Failed { .. }));
        let release = newest.release.unwrap_or(ReleaseNumber(app.last_release + 1));
        (!failed).then(|| Refusal::AlreadyThere { app: app.name.clone(), release })
    };
    let missing: Vec<AppKey> = keys.iter().copied().filter(|key| there(key).is_none()).collect();
    if missing.is_empty() {
        return Err(keys.iter().find_map(there).unwrap_or(Refusal::NoApp));
    }
    let others = policy::other_review_apps(&snapshot.apps, pull.number);
    if let Some(limit) = policy::full(&snapshot.pipeline, others) {
        return Err(Refusal::Full { limit });
    }
    let mut changes = Vec::new();
    if pull.parked.is_some() {
        changes.push(Change::PutPull(Pull { parked: None, ..pull.clone() }));
    }
    for key in &missing {
        let tested = |run: &TestRun| {
            let same = run.pull == Some(pull.number) && run.commit == pull.head && run.part == key.part;
            same && run.cancelled.is_none() && run.verdict != Some(Verdict::Untouched)
        };
        if !snapshot.runs.iter().any(tested) {
            changes.push(Change::StartRun {
                pull: Some(pull.number),
                part: key.part,
                branch: pull.branch.clone(),
                commit: pull.head.clone(),
                only_failed_of: None,
                untouched: false,
            });
        }
    }
    changes.extend(missing.into_iter().map(|key| policy::review_deploy(key, pull, Some(author), snapshot)));
    Ok(Effect::done(changes))
}

fn destroy(keys: &[AppKey], given: &Given<'_>, snapshot: &Snapshot) -> Result<Effect, Refusal> {
    let pull = open_pull(given.pull, snapshot)?;
    let mut changes = Vec::new();
    for app in running(keys, snapshot)? {
        changes.extend(destroy_app(app.key(), Some(pull), given.author, snapshot)?);
    }
    Ok(Effect::done(changes))
}
