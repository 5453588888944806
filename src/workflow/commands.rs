//! Slash-commands: which lines of a comment are commands, who may give them, what they lead to.
//!
//! A command stands alone on its line and starts it; code blocks, quotes and HTML comments hold none. Each command
//! gets a record with its answer, kept with the delivery that brought it, so that it is done exactly once.

use super::{Change, Snapshot};
use crate::clock::Timestamp;
use crate::domain::*;

const WORDS: [&str; 5] = ["promote", "rollback", "retest", "cancel", "help"];

/// Commands in a comment, in order. Lines that start with `/` and no word, such as paths, are no commands.
pub fn mentioned_commands(body: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut fence: Option<&str> = None;
    let mut in_html_comment = false;
    for line in body.lines() {
        let trimmed = line.trim();
        if in_html_comment {
            in_html_comment = !trimmed.contains("-->");
            continue;
        }
        if let Some(marker) = fence {
            if trimmed.starts_with(marker) {
                fence = None;
            }
            continue;
        }
        if let Some(marker) = ["```", "~~~"].into_iter().find(|marker| trimmed.starts_with(marker)) {
            fence = Some(marker);
            continue;
        }
        if trimmed.starts_with("<!--") {
            in_html_comment = !trimmed.contains("-->");
            continue;
        }
        let indented_code = line.starts_with("    ") || line.starts_with('\t');
        if indented_code || !trimmed.starts_with('/') {
            continue;
        }
        if let Some(command) = parse(trimmed) {
            commands.push(command);
        }
        if commands.len() == 10 {
            break;
        }
    }
    commands
}

fn parse(line: &str) -> Option<Command> {
    let mut words = line.strip_prefix('/')?.split_whitespace();
    let word = words.next()?;
    if word.is_empty() || !word.chars().all(|character| character.is_ascii_lowercase() || character == '-') {
        return None;
    }
    let arguments: Vec<&str> = words.collect();
    Some(match word {
        "promote" => Command::Promote,
        "retest" => Command::Retest { failed: arguments.contains(&"failed") },
        "cancel" => Command::Cancel,
        "help" => Command::Help,
        "rollback" => Command::Rollback {
            to: arguments.iter().find_map(|argument| argument.parse().ok()),
            stage: if arguments.contains(&"staging") { RollbackStage::Staging } else { RollbackStage::Production },
        },
        _ => Command::Unknown { word: word.chars().take(30).collect(), nearest: nearest(word) },
    })
}

/// The known word within two edits, if any.
fn nearest(word: &str) -> Option<String> {
    WORDS
        .into_iter()
        .map(|known| (edits(word, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, known)| known.to_owned())
}

/// Levenshtein's distance.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, left) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[to.len()]
}

/// Whether GitHub must be asked what the author may do before this comment is decided on.
pub fn needs_right(commands: &[Command]) -> bool {
    commands.iter().any(|command| match command {
        Command::Promote | Command::Rollback { .. } | Command::Retest { .. } | Command::Cancel => true,
        Command::Help | Command::Unknown { .. } => false,
    })
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
    for (place, command) in mentioned_commands(body).into_iter().enumerate() {
        let place = u16::try_from(place).unwrap_or(u16::MAX);
        if snapshot.answered.contains(&(comment, place)) {
            continue;
        }
        let record = |answer| CommandRecord {
            repository: snapshot.repository.id,
            pull,
            comment,
            place,
            command: command.clone(),
            by: author.to_owned(),
            given_at: written_at,
            answer,
        };
        match effect(&command, pull, author, snapshot) {
            Ok(None) => changes.push(Change::Answer(record(Answer::Helped))),
            Ok(Some(change)) => {
                // The answer names the deploy or run that the change makes, whose number is the store's to give.
                changes.push(change);
                changes.push(Change::AnswerWithNewest(record(Answer::Helped)));
            }
            Err(reason) => changes.push(Change::Answer(record(Answer::Refused { reason }))),
        }
    }
    changes
}

fn effect(command: &Command, pull: PullNumber, author: &str, snapshot: &Snapshot) -> Result<Option<Change>, Refusal> {
    if needs_right(std::slice::from_ref(command)) {
        // No answer from GitHub is no right.
        let right = snapshot.right.as_ref();
        if !right.is_some_and(|right| right.may_write) {
            return Err(Refusal::NoRight { role: right.map_or_else(|| "none".to_owned(), |right| right.role.clone()) });
        }
    }
    match command {
        Command::Help => Ok(None),
        Command::Unknown { .. } => Err(Refusal::UnknownCommand),
        Command::Promote => promote(author, snapshot).map(Some),
        Command::Rollback { to, stage } => {
            let stage = match stage {
                RollbackStage::Staging => Stage::Staging,
                RollbackStage::Production => Stage::Production,
            };
            roll_back(stage, *to, author, snapshot).map(Some)
        }
        Command::Retest { failed } => retest(pull, *failed, snapshot).map(Some),
        Command::Cancel => cancel(pull, author, snapshot).map(Some),
    }
}

/// Staging's live slug goes to production, if staging is at rest and it is not there yet.
pub fn promote(author: &str, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let running = |app: &&App| app.wanted == Wanted::Running;
    let staging = snapshot.app(Stage::Staging).filter(running).ok_or(Refusal::NothingOnStaging)?;
    let deploy = staging.live_deploy().ok_or(Refusal::NothingOnStaging)?;
    if staging.newest().is_some_and(|newest| newest.outcome.is_none()) {
        return Err(Refusal::StagingBusy);
    }
    let release =
        deploy.release.and_then(|number| snapshot.release(&staging.name, number)).ok_or(Refusal::NothingOnStaging)?;
    if let Some(production) = snapshot.app(Stage::Production) {
        let wanted = production.newest();
        let same = |deploy: &&Deploy| {
            matches!(&deploy.cause, Cause::Promotion { slug, .. } if *slug == release.slug)
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
    Ok(Change::Deploy {
        stage: Stage::Production,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Promotion { from: staging.name.clone(), release: release.number, slug: release.slug.clone() },
        by: Some(author.to_owned()),
        after_tests: false,
    })
}

/// An earlier release of the app, as a new one.
pub fn roll_back(
    stage: Stage,
    to: Option<ReleaseNumber>,
    author: &str,
    snapshot: &Snapshot,
) -> Result<Change, Refusal> {
    let app = snapshot.app(stage).filter(|app| app.wanted == Wanted::Running).ok_or(Refusal::NoSuchRelease)?;
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
    Ok(Change::Deploy {
        stage,
        commit: release.commit.clone(),
        branch: release.branch.clone(),
        cause: Cause::Rollback { to: number },
        by: Some(author.to_owned()),
        after_tests: false,
    })
}

fn retest(pull: PullNumber, failed: bool, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let known = snapshot.pull.as_ref().filter(|known| known.number == pull && known.open && !known.is_fork());
    let known = known.ok_or(Refusal::NothingToTest)?;
    let busy = snapshot.runs.iter().any(|run| {
        run.pull == Some(pull) && run.commit == known.head && run.verdict.is_none() && run.cancelled.is_none()
    });
    if busy {
        return Err(Refusal::NothingToTest);
    }
    let newest = snapshot.runs.iter().filter(|run| run.pull == Some(pull) && run.commit == known.head);
    let newest = newest.max_by_key(|run| run.number).filter(|run| run.verdict == Some(Verdict::Failed));
    Ok(Change::StartRun {
        pull: Some(pull),
        branch: known.branch.clone(),
        commit: known.head.clone(),
        only_failed_of: newest.filter(|_| failed).map(|run| run.number),
    })
}

fn cancel(pull: PullNumber, author: &str, snapshot: &Snapshot) -> Result<Change, Refusal> {
    let going_on = |run: &&TestRun| run.pull == Some(pull) && run.verdict.is_none() && run.cancelled.is_none();
    let run = snapshot.runs.iter().find(going_on).ok_or(Refusal::NothingToTest)?;
    Ok(Change::CancelRuns {
        pull: Some(pull),
        branch: run.branch.clone(),
        except: None,
        because: Cancelled::By { login: author.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stand_alone_on_their_line() {
        let unknown = |word: &str, nearest: Option<&str>| Command::Unknown {
            word: word.to_owned(),
            nearest: nearest.map(str::to_owned),
        };
        for (body, expected) in [
            ("/promote", vec![Command::Promote]),
            ("Looks good.\r\n\r\n  /promote  \r\n", vec![Command::Promote]),
            ("please /promote", vec![]),
            ("> /promote", vec![]),
            ("```\n/promote\n```\n/help", vec![Command::Help]),
            ("~~~ sh\n/promote", vec![]),
            ("<!-- /promote -->\n<!--\n/promote\n-->", vec![]),
            ("    /promote", vec![]),
            ("/usr/bin/env", vec![]),
            ("/Promote", vec![]),
            ("/promot", vec![unknown("promot", Some("promote"))]),
            ("/shipit", vec![unknown("shipit", None)]),
            (
                "/rollback v3\n/rollback staging",
                vec![
                    Command::Rollback { to: Some(ReleaseNumber(3)), stage: RollbackStage::Production },
                    Command::Rollback { to: None, stage: RollbackStage::Staging },
                ],
            ),
        ] {
            assert_eq!(mentioned_commands(body), expected, "{body:?}");
        }
    }
}
