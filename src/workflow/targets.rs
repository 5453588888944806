//! Which apps a command means: those of a stage, or the one that was named, by its name or by its folder's.

use super::Snapshot;
use crate::domain::*;

/// The apps that a command acts on, or the stage itself where it acts on no app.
pub fn targets(command: &Command, pull: PullNumber, snapshot: &Snapshot) -> Result<Vec<AppKey>, Refusal> {
    let review = || vec![AppKey::from(Stage::Review(pull))];
    match command {
        Command::Deploy { app } => match app {
            Some(app) => within(StageKind::Review, Some(app), pull, snapshot),
            None => Ok(concerned(pull, snapshot)),
        },
        Command::Destroy { app: Some(app) } => within(StageKind::Review, Some(app), pull, snapshot),
        Command::Destroy { app: None } | Command::Extend { .. } | Command::Wake | Command::Logs { .. } => {
            Ok(snapshot.review_keys(pull))
        }
        Command::Approve { .. } => Ok(concerned(pull, snapshot)),
        Command::Retest { .. } | Command::Cancel => Ok(review()),
        Command::Promote { to, .. } => {
            let to = to.as_deref().filter(|to| *to != "production");
            within(StageKind::Production, to, pull, snapshot)
        }
        Command::Rollback { stage, app, .. } => {
            let kind = match stage {
                RollbackStage::Staging => StageKind::Staging,
                RollbackStage::Production => StageKind::Production,
            };
            one_of(kind, app.as_deref(), pull, snapshot).map(|key| vec![key])
        }
        Command::RetryRelease { stage, app } => {
            let kind = retried(*stage, pull, snapshot);
            one_of(kind, app.as_deref(), pull, snapshot).map(|key| vec![key])
        }
        Command::Scale { stage, app, .. } => one_of(*stage, app.as_deref(), pull, snapshot).map(|key| vec![key]),
        Command::Restart { app: Some(app), stage } => one_of(*stage, Some(app), pull, snapshot).map(|key| vec![key]),
        Command::Restart { app: None, stage } => Ok(of_kind(*stage, pull, snapshot)),
        Command::Lock { stage, .. } | Command::Unlock { stage } => Ok(vec![stage_key(*stage, pull)]),
        Command::Freeze { .. } => Ok(vec![AppKey::from(Stage::Production)]),
        Command::Status | Command::Help | Command::Malformed { .. } | Command::Unknown { .. } => Ok(Vec::new()),
    }
}

fn stage_key(kind: StageKind, pull: PullNumber) -> AppKey {
    AppKey::from(match kind {
        StageKind::Review => Stage::Review(pull),
        StageKind::Staging => Stage::Staging,
        StageKind::Production => Stage::Production,
    })
}

/// What `/retry-release` means where it names no stage: the review app if it is what failed.
fn retried(stage: Option<StageKind>, pull: PullNumber, snapshot: &Snapshot) -> StageKind {
    let failed = |app: &App| app.newest().is_some_and(|deploy| matches!(deploy.outcome, Some(Outcome::Failed { .. })));
    let review = snapshot.review_keys(pull).into_iter().any(|key| snapshot.running(key).is_some_and(failed));
    stage.unwrap_or(if review { StageKind::Review } else { StageKind::Production })
}

/// All apps of a stage that the rules name; of review apps this pull request's.
pub(super) fn of_kind(kind: StageKind, pull: PullNumber, snapshot: &Snapshot) -> Vec<AppKey> {
    match kind {
        StageKind::Review => snapshot.review_keys(pull),
        StageKind::Staging => snapshot.policy().staging_keys(),
        StageKind::Production => snapshot.policy().production_keys(),
    }
}

/// The review apps of the folders that a pull request concerns; all where it concerns none.
pub(super) fn concerned(pull: PullNumber, snapshot: &Snapshot) -> Vec<AppKey> {
    let keys = snapshot.review_keys(pull);
    let touched = |key: &AppKey| snapshot.pull.as_ref().is_none_or(|known| known.touches(key.part));
    let some: Vec<AppKey> = keys.iter().copied().filter(touched).collect();
    if some.is_empty() { keys } else { some }
}

/// As `one_of`, and never an app of another stage: what such a command does to its own stage's apps must not come to others.
fn within(kind: StageKind, named: Option<&str>, pull: PullNumber, snapshot: &Snapshot) -> Result<Vec<AppKey>, Refusal> {
    let key = one_of(kind, named, pull, snapshot)?;
    let to = || named.unwrap_or_default().to_owned();
    if key.kind() == kind { Ok(vec![key]) } else { Err(Refusal::NoSuchTarget { to: to() }) }
}

/// The one app that is meant. Where the stage has several and none is named, it is the one whose folder the pull request
/// concerns, if that is one only.
pub(super) fn one_of(
    kind: StageKind,
    named: Option<&str>,
    pull: PullNumber,
    snapshot: &Snapshot,
) -> Result<AppKey, Refusal> {
    let keys = of_kind(kind, pull, snapshot);
    if let Some(word) = named {
        let of_others = |key: &AppKey| key.pull().is_some_and(|number| number != pull);
        let there = snapshot.apps.iter().filter(|app| app.wanted != Wanted::Gone && app.name.as_str() == word);
        let there = there.map(App::key).find(|key| !of_others(key));
        let to_be = || keys.iter().copied().find(|key| snapshot.name_of(*key).as_str() == word);
        let by_part = || keys.iter().copied().find(|key| !key.part.is_own() && key.part.as_str() == word);
        return there.or_else(to_be).or_else(by_part).ok_or_else(|| Refusal::NoSuchTarget { to: word.to_owned() });
    }
    if let [only] = keys.as_slice() {
        return Ok(*only);
    }
    let folder =
        |key: &&AppKey| snapshot.pull.as_ref().is_some_and(|known| known.touches(snapshot.policy().folder_of(**key)));
    let touched: Vec<&AppKey> = keys.iter().filter(folder).collect();
    match touched.as_slice() {
        [only] => Ok(**only),
        _ => Err(Refusal::WhichApp { apps: keys.into_iter().map(|key| snapshot.name_of(key)).collect() }),
    }
}
