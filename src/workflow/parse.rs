//! Which lines of a comment are commands, as the field reads them.
//!
//! A command stands alone on its line and starts it; code blocks, quotes and HTML comments hold none. What follows the
//! word must make sense as a whole: a command with a word too many is answered and not guessed at.

use super::parse_scale;
use crate::clock::Timestamp;
use crate::domain::*;

const WORDS: [&str; 19] = [
    "deploy",
    "destroy",
    "retest",
    "cancel",
    "promote",
    "rollback",
    "approve",
    "lock",
    "unlock",
    "freeze",
    "unfreeze",
    "restart",
    "extend",
    "logs",
    "status",
    "help",
    "scale",
    "wake",
    "retry-release",
];
/// The most commands that one comment gives.
const MOST: usize = 10;
/// Characters of a reason that are kept.
const MOST_REASON: usize = 200;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Commands in a comment, in order. Lines that start with `/` and no word, such as paths, are no commands.
pub fn mentioned_commands(body: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut fence: Option<Fence> = None;
    let mut hidden_until: Option<&str> = None;
    for line in body.lines() {
        let trimmed = line.trim();
        if let Some(end) = hidden_until {
            if trimmed.to_ascii_lowercase().contains(end) {
                hidden_until = None;
            }
            continue;
        }
        if let Some(open) = fence {
            if open.is_closed_by(trimmed) {
                fence = None;
            }
            continue;
        }
        fence = Fence::opened_by(trimmed);
        if fence.is_some() {
            continue;
        }
        hidden_until = hides_what_follows(trimmed);
        let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
        let indented_code = blank >= 4 || line[..blank].contains('\t');
        if indented_code || !trimmed.starts_with('/') {
            continue;
        }
        if let Some(command) = parse(trimmed) {
            commands.push(command);
        }
        if commands.len() == MOST {
            break;
        }
    }
    commands
}

/// A code block's mark, which only the same one ends, at least as long and alone on its line: so that a block may show
/// another block (CommonMark 0.31, 4.5).
#[derive(Clone, Copy)]
struct Fence {
    mark: char,
    length: usize,
}

impl Fence {
    fn opened_by(line: &str) -> Option<Fence> {
        let mark = line.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let rest = line.trim_start_matches(mark);
        let length = line.len() - rest.len();
        // Backticks behind it make it code within a line.
        (length >= 3 && !(mark == '`' && rest.contains('`'))).then_some(Fence { mark, length })
    }

    fn is_closed_by(self, line: &str) -> bool {
        line.len() >= self.length && line.chars().all(|character| character == self.mark)
    }
}

/// What ends the part that nobody sees, or sees as it is, if the line begins one and does not end it.
fn hides_what_follows(line: &str) -> Option<&'static str> {
    let line = line.to_ascii_lowercase();
    let open = |begin: &str, end: &str| match (line.rfind(begin), line.rfind(end)) {
        (Some(begin), Some(end)) => begin > end,
        (begin, _) => begin.is_some(),
    };
    let pairs = [("<!--", "-->"), ("<pre>", "</pre>"), ("<pre ", "</pre>"), ("<code>", "</code>")];
    pairs.into_iter().find(|(begin, end)| open(begin, end)).map(|(_, end)| end)
}

fn parse(line: &str) -> Option<Command> {
    let mut words = line.strip_prefix('/')?.split_whitespace();
    let word = words.next()?;
    if word.is_empty() || !word.chars().all(|character| character.is_ascii_lowercase() || character == '-') {
        return None;
    }
    let arguments: Vec<&str> = words.collect();
    if !WORDS.contains(&word) {
        return Some(Command::Unknown { word: word.chars().take(30).collect(), nearest: nearest(word) });
    }
    Some(known(word, &arguments).unwrap_or_else(|| Command::Malformed { word: word.to_owned() }))
}

/// `None` where the arguments make no sense.
fn known(word: &str, arguments: &[&str]) -> Option<Command> {
    match (word, arguments) {
        ("deploy", []) => Some(Command::Deploy { app: None }),
        ("deploy", [app]) => Some(Command::Deploy { app: Some(app_name(app)?) }),
        ("destroy", []) => Some(Command::Destroy { app: None }),
        ("destroy", [app]) => Some(Command::Destroy { app: Some(app_name(app)?) }),
        ("retest", []) => Some(Command::Retest { failed: false }),
        ("retest", ["failed"]) => Some(Command::Retest { failed: true }),
        ("cancel", []) => Some(Command::Cancel),
        ("promote", arguments) => promote(arguments),
        ("rollback", arguments) => roll_back(arguments),
        ("approve", [commit]) => Some(Command::Approve { commit: commit.to_ascii_lowercase().parse().ok()? }),
        ("lock", arguments) => {
            let (stage, reason) = stage_first(arguments);
            Some(Command::Lock { stage: stage.unwrap_or(StageKind::Production), reason: self::reason(reason) })
        }
        ("unlock", []) => Some(Command::Unlock { stage: StageKind::Production }),
        ("unlock", [stage]) => Some(Command::Unlock { stage: self::stage(stage)? }),
        ("unfreeze", []) | ("freeze", ["off"]) => Some(Command::Freeze { until: None, reason: String::new() }),
        ("freeze", ["until" | "for", time, reason @ ..]) => {
            Some(Command::Freeze { until: Some(until(time)?), reason: self::reason(reason) })
        }
        ("restart", []) => Some(Command::Restart { stage: StageKind::Review, app: None }),
        ("restart", [word]) => match stage(word) {
            Some(stage) => Some(Command::Restart { stage, app: None }),
            None => Some(Command::Restart { stage: meant(word), app: Some(app_name(word)?) }),
        },
        ("extend", [time]) => Some(Command::Extend { seconds: seconds(time)? }),
        ("logs", []) => Some(Command::Logs { lines: 20 }),
        ("logs", [lines]) => {
            Some(Command::Logs { lines: lines.parse().ok().filter(|lines| (1..=200).contains(lines))? })
        }
        ("status", []) => Some(Command::Status),
        ("help", _) => Some(Command::Help),
        ("scale", arguments) => {
            let (stage, what) = stage_first(arguments);
            let (app, what) = match what.split_first() {
                Some((first, rest)) if stage.is_none() && !first.contains('=') => (Some(app_name(first)?), rest),
                _ => (None, what),
            };
            let sound = !what.is_empty() && what.iter().all(|word| parse_scale(word).is_ok());
            let what = what.iter().map(|word| (*word).to_owned()).collect();
            let stage = stage.unwrap_or(app.as_deref().map_or(StageKind::Review, meant));
            sound.then_some(Command::Scale { stage, what, app })
        }
        ("wake", []) => Some(Command::Wake),
        ("retry-release", []) => Some(Command::RetryRelease { stage: None, app: None }),
        ("retry-release", [word]) => match stage(word) {
            Some(stage) => Some(Command::RetryRelease { stage: Some(stage), app: None }),
            None => Some(Command::RetryRelease { stage: Some(meant(word)), app: Some(app_name(word)?) }),
        },
        _ => None,
    }
}

fn promote(arguments: &[&str]) -> Option<Command> {
    let (mut release, mut to, mut hotfix, mut canary, mut lasting) = (None, None, None, None, None);
    let mut rest = arguments;
    loop {
        rest = match rest {
            [] => break,
            ["to", app, rest @ ..] if to.is_none() => {
                to = Some(app.chars().take(63).collect());
                rest
            }
            ["--canary", percent, rest @ ..] if canary.is_none() => {
                canary = Some(percent.trim_end_matches('%').parse().ok().filter(|share| (1..100).contains(share))?);
                rest
            }
            ["--for", time, rest @ ..] if lasting.is_none() => {
                lasting = Some(seconds(time)?);
                rest
            }
            // A reason is all that follows; without one there is no hotfix.
            ["--hotfix", words @ ..] if !words.is_empty() => {
                hotfix = Some(reason(words));
                &[]
            }
            [number, rest @ ..] if release.is_none() && is_release(number) => {
                release = Some(number.parse().ok()?);
                rest
            }
            _ => return None,
        };
    }
    let canary: Option<(u8, u64)> = match (canary, lasting) {
        (Some(percent), lasting) => Some((percent, lasting.unwrap_or(5 * MINUTE))),
        (None, Some(_)) => return None,
        (None, None) => None,
    };
    Some(Command::Promote { release, to, hotfix, canary })
}

fn roll_back(arguments: &[&str]) -> Option<Command> {
    let (mut to, mut stage, mut app) = (None, None, None);
    let mut rest = arguments;
    loop {
        rest = match rest {
            [] => break,
            [number, rest @ ..] if to.is_none() && is_release(number) => {
                to = Some(number.parse().ok()?);
                rest
            }
            ["to", number, rest @ ..] if to.is_none() && is_release(number) => {
                to = Some(number.parse().ok()?);
                rest
            }
            ["to", name, rest @ ..] | [name, rest @ ..] if stage.is_none() && *name != "to" => {
                stage = Some(match meant(name) {
                    StageKind::Staging => RollbackStage::Staging,
                    StageKind::Review | StageKind::Production => RollbackStage::Production,
                });
                if self::stage(name).is_none_or(|stage| stage == StageKind::Review) {
                    app = Some(app_name(name)?);
                }
                rest
            }
            _ => return None,
        };
    }
    Some(Command::Rollback { to, stage: stage.unwrap_or(RollbackStage::Production), app })
}

/// What may be an app's name; whether there is one of that name is for others to say.
fn app_name(word: &str) -> Option<String> {
    word.parse::<AppName>().ok().map(String::from)
}

/// The stage that an app of that name is probably in: where nothing says so, production.
fn meant(name: &str) -> StageKind {
    let of_pull = name.rsplit_once("-pr-").is_some_and(|(_, end)| end.bytes().all(|byte| byte.is_ascii_digit()));
    match name {
        "staging" => StageKind::Staging,
        _ if name.ends_with("-staging") => StageKind::Staging,
        _ if of_pull => StageKind::Review,
        _ => StageKind::Production,
    }
}

fn is_release(word: &str) -> bool {
    let digits = word.strip_prefix('v').unwrap_or(word);
    !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn stage(word: &str) -> Option<StageKind> {
    match word {
        "review" => Some(StageKind::Review),
        "staging" => Some(StageKind::Staging),
        "production" => Some(StageKind::Production),
        _ => None,
    }
}

fn stage_first<'a>(arguments: &'a [&'a str]) -> (Option<StageKind>, &'a [&'a str]) {
    match arguments.split_first() {
        Some((first, rest)) if stage(first).is_some() => (stage(first), rest),
        _ => (None, arguments),
    }
}

fn reason(words: &[&str]) -> String {
    words.join(" ").chars().take(MOST_REASON).collect()
}

/// `30m`, `12h`, `3d`; at most a year.
fn seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'm' => MINUTE,
        'h' => HOUR,
        'd' => DAY,
        _ => return None,
    };
    let count: u64 = text[..text.len() - 1].parse().ok()?;
    count.checked_mul(unit).filter(|seconds| (1..=365 * DAY).contains(seconds))
}

/// `2026-12-01`, `2026-12-01T09:00`, the same with `Z` or an offset, or a time from now on such as `3d`.
fn until(text: &str) -> Option<Until> {
    if let Some(seconds) = seconds(text) {
        return Some(Until::In(seconds));
    }
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        17 if text.ends_with('Z') => format!("{}:00Z", &text[..16]),
        _ => text.to_owned(),
    };
    whole.is_ascii().then(|| Timestamp::parse_rfc3339(&whole)).flatten().map(Until::At)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_promote() -> Command {
        Command::Promote { release: None, to: None, hotfix: None, canary: None }
    }

    #[test]
    fn commands_stand_alone_on_their_line() {
        let unknown = |word: &str, nearest: Option<&str>| Command::Unknown {
            word: word.to_owned(),
            nearest: nearest.map(str::to_owned),
        };
        for (body, expected) in [
            ("/promote", vec![plain_promote()]),
            ("Looks good.\r\n\r\n  /promote  \r\n", vec![plain_promote()]),
            ("please /promote", vec![]),
            ("> /promote", vec![]),
            ("```\n/promote\n```\n/help", vec![Command::Help]),
            ("~~~ sh\n/promote", vec![]),
            ("<!-- /promote -->\n<!--\n/promote\n-->", vec![]),
            ("    /promote", vec![]),
            (" \t/promote", vec![]),
            // A block that shows a block, one of the other kind, and one whose end says more than a mark.
            ("````\n```\n/promote\n```\n````\n/help", vec![Command::Help]),
            ("```\n~~~\n/promote\n```\n/help", vec![Command::Help]),
            ("```\n``` sh\n/promote\n```\n/help", vec![Command::Help]),
            ("```not a block```\n/promote", vec![plain_promote()]),
            ("Not yet <!-- because\n/promote\n-->\n/help", vec![Command::Help]),
            ("<!-- one --> two\n/help", vec![Command::Help]),
            ("<PRE>\n/promote\n</pre>\n/help", vec![Command::Help]),
            ("Say <code>\n/promote\n</code>", vec![]),
            ("/usr/bin/env", vec![]),
            ("/Promote", vec![]),
            ("/promot", vec![unknown("promot", Some("promote"))]),
            ("/shipit", vec![unknown("shipit", None)]),
            (
                "/rollback v3\n/rollback staging",
                vec![
                    Command::Rollback { to: Some(ReleaseNumber(3)), stage: RollbackStage::Production, app: None },
                    Command::Rollback { to: None, stage: RollbackStage::Staging, app: None },
                ],
            ),
        ] {
            assert_eq!(mentioned_commands(body), expected, "{body:?}");
        }
    }

    #[test]
    fn arguments_are_read_whole_or_not_at_all() {
        let sha = "a".repeat(40);
        let malformed = |word: &str| Command::Malformed { word: word.to_owned() };
        let lock = |stage, reason: &str| Command::Lock { stage, reason: reason.to_owned() };
        let scale = |stage, what: &[&str]| Command::Scale {
            stage,
            what: what.iter().map(|word| (*word).to_owned()).collect(),
            app: None,
        };
        let freeze = |until, reason: &str| Command::Freeze { until, reason: reason.to_owned() };
        for (line, expected) in [
            ("/deploy", Command::Deploy { app: None }),
            ("/deploy tomorrow, please", malformed("deploy")),
            ("/retest failed", Command::Retest { failed: true }),
            ("/retest all", malformed("retest")),
            (
                "/promote v12 to hello-production --canary 10% --for 5m",
                Command::Promote {
                    release: Some(ReleaseNumber(12)),
                    to: Some("hello-production".to_owned()),
                    hotfix: None,
                    canary: Some((10, 300)),
                },
            ),
            (
                "/promote --hotfix the till is down",
                Command::Promote { release: None, to: None, hotfix: Some("the till is down".to_owned()), canary: None },
            ),
            ("/promote --hotfix", malformed("promote")),
            ("/promote now", malformed("promote")),
            ("/promote --for 5m", malformed("promote")),
            ("/promote --canary 100%", malformed("promote")),
            (
                "/rollback v3 to staging",
                Command::Rollback { to: Some(ReleaseNumber(3)), stage: RollbackStage::Staging, app: None },
            ),
            (
                "/rollback to v3",
                Command::Rollback { to: Some(ReleaseNumber(3)), stage: RollbackStage::Production, app: None },
            ),
            (
                "/rollback v2 to shop-eu",
                Command::Rollback {
                    to: Some(ReleaseNumber(2)),
                    stage: RollbackStage::Production,
                    app: Some("shop-eu".to_owned()),
                },
            ),
            ("/rollback everything at once", malformed("rollback")),
            ("/deploy api", Command::Deploy { app: Some("api".to_owned()) }),
            (
                "/restart hello-api-staging",
                Command::Restart { stage: StageKind::Staging, app: Some("hello-api-staging".to_owned()) },
            ),
            (&format!("/approve {sha}"), Command::Approve { commit: sha.parse().unwrap() }),
            // A short name could be made to fit another commit.
            ("/approve aaaaaaa", malformed("approve")),
            ("/lock", lock(StageKind::Production, "")),
            ("/lock staging load test", lock(StageKind::Staging, "load test")),
            ("/lock the sale is on", lock(StageKind::Production, "the sale is on")),
            ("/unlock staging", Command::Unlock { stage: StageKind::Staging }),
            ("/freeze until 3d holidays", freeze(Some(Until::In(3 * DAY)), "holidays")),
            ("/freeze until 1970-01-02", freeze(Some(Until::At(Timestamp(86_400_000))), "")),
            ("/freeze until 1970-01-01T00:01Z", freeze(Some(Until::At(Timestamp(60_000))), "")),
            ("/freeze until monday", malformed("freeze")),
            ("/freeze off", freeze(None, "")),
            ("/extend 3d", Command::Extend { seconds: 3 * DAY }),
            ("/extend 3 days", malformed("extend")),
            ("/extend 0d", malformed("extend")),
            ("/logs 500", malformed("logs")),
            ("/scale web=2 worker=1:standard-2x", scale(StageKind::Review, &["web=2", "worker=1:standard-2x"])),
            ("/scale staging web=basic", scale(StageKind::Staging, &["web=basic"])),
            ("/scale web", malformed("scale")),
            ("/scale staging", malformed("scale")),
            ("/scale", malformed("scale")),
            ("/retry-release", Command::RetryRelease { stage: None, app: None }),
            ("/retry-release staging", Command::RetryRelease { stage: Some(StageKind::Staging), app: None }),
            ("/retry-release right now", malformed("retry-release")),
        ] {
            assert_eq!(mentioned_commands(line), [expected], "{line}");
        }
        assert_eq!(mentioned_commands(&"/help\n".repeat(50)).len(), MOST);
    }
}
