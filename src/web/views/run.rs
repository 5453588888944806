//! A test run with its nodes on a common time axis, and the build that it waits for.

use super::{PullLine, When, commit_url, milliseconds};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::platform::{ProcessStatus, State};
use crate::reconcile::{World, label, split};
use crate::web::problem::Problem;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Clone, Serialize)]
pub struct RunCard {
    pub number: RunNumber,
    pub ordinal: u64,
    pub repository: String,
    pub state: RunState,
    pub verdict: Option<Verdict>,
    pub cancelled: Option<Cancelled>,
    pub pull: Option<PullNumber>,
    pub branch: String,
    pub commit: Sha,
    pub commit_url: Option<String>,
    pub nodes: u16,
    pub counts: Counts,
    pub created: When,
    /// From the start of the nodes to the verdict, or to now.
    pub milliseconds: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RunDetail {
    #[serde(flatten)]
    pub card: RunCard,
    pub owner: String,
    pub repository_name: String,
    pub pull_request: Option<PullLine>,
    pub over: bool,
    pub build: Option<BuildKey>,
    /// Where `scripts.test-setup` is done; `None` where there is none, or while nobody has said so yet.
    pub setup: Option<Setup>,
    pub lanes: Vec<Node>,
    /// Of a run whose files are dealt.
    pub split: Option<SplitSummary>,
    /// Files in the order in which they ran, each on its node.
    pub files: Vec<FileBar>,
    /// The length of the time axis.
    pub axis_ms: u64,
    /// Files that are kept of it, the first ones.
    pub artifacts: Vec<Artifact>,
    pub artifacts_total: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Waiting,
    Starting,
    Running,
    Passed,
    Failed,
    SetupFailed,
    /// It ended in another way than with a status.
    Broken,
    Cancelled,
}

#[derive(Debug, Clone, Serialize)]
pub struct Node {
    pub node: u16,
    pub state: NodeState,
    pub process: Option<ProcessId>,
    pub started: Option<When>,
    pub milliseconds: Option<u64>,
    pub counts: Option<Counts>,
    pub failures: Vec<TestFailure>,
    pub ended: Option<Ended>,
    /// It ended well and left no results that prove it.
    pub unproven: bool,
    pub tail: Vec<String>,
    /// Thousandths of the time axis, for the bar.
    pub bar_from: u64,
    pub bar_length: u64,
}

pub fn run_card(world: &World, run: &TestRun, repository: Option<&Repository>) -> RunCard {
    let now = world.now();
    RunCard {
        number: run.number,
        ordinal: run.ordinal,
        repository: repository.map(Repository::full_name).unwrap_or_default(),
        state: run.state(),
        verdict: run.verdict.clone(),
        cancelled: run.cancelled.clone(),
        pull: run.pull,
        branch: run.branch.clone(),
        commit: run.commit.clone(),
        commit_url: commit_url(repository, &run.commit),
        nodes: run.nodes,
        counts: run.counts(),
        created: When::new(run.created_at, now),
        milliseconds: run
            .started_at
            .filter(|_| !matches!(run.verdict, Some(Verdict::Reused { .. } | Verdict::NoTests | Verdict::Untouched)))
            .map(|started| milliseconds(run.finished_at.unwrap_or(now).since(started))),
    }
}

pub fn find_run(world: &World, number: &str) -> Result<TestRun, Problem> {
    let not_found = || Problem::not_found("run", number);
    let parsed: u64 = number.parse().map_err(|_| not_found())?;
    world.store.run(RunNumber(parsed))?.ok_or_else(not_found)
}

pub async fn run_detail(world: &World, run: &TestRun) -> Result<RunDetail, Problem> {
    let now = world.now();
    let repository = world.store.repository(run.repository)?;
    let pull_request = match run.pull {
        Some(number) => world.store.pull(run.repository, number)?,
        None => None,
    };
    let build = match &run.tree {
        Some(tree) => world.store.build_of_tree(run.repository, tree)?,
        None => None,
    };
    let own = run.number.to_string();
    let processes: Vec<ProcessStatus> =
        world.platform.list().await?.into_iter().filter(|status| status.labels.get(label::RUN) == Some(&own)).collect();
    let begin = run.started_at.unwrap_or(run.created_at);
    let end = run.finished_at.unwrap_or(now);
    let axis_ms = milliseconds(end.since(begin)).max(1);
    let mut artifacts = artifacts(world, run)?;
    let artifacts_total = artifacts.len();
    artifacts.truncate(MOST_ARTIFACTS);
    let lanes = (0..run.nodes).map(|index| node(run, index, &processes, begin, end, now)).collect();
    Ok(RunDetail {
        card: run_card(world, run, repository.as_ref()),
        owner: repository.as_ref().map(|repository| repository.owner.clone()).unwrap_or_default(),
        repository_name: repository.as_ref().map(|repository| repository.name.clone()).unwrap_or_default(),
        pull_request: pull_request.as_ref().map(PullLine::new),
        over: run.verdict.is_some() || run.cancelled.is_some(),
        build,
        setup: Some(run.setup.clone()).filter(|setup| !setup.is_open()),
        lanes,
        split: run.split.clone(),
        files: timeline(world, run)?,
        axis_ms,
        artifacts,
        artifacts_total,
    })
}

/// Artifacts that a run's page names; the API names all.
const MOST_ARTIFACTS: usize = 200;

pub fn artifacts(world: &World, run: &TestRun) -> Result<Vec<Artifact>, Problem> {
    Ok(split::artifacts(world, run.number)?)
}

/// A kept file and where its bytes are. What is in the address is only compared, never made a path.
pub fn find_artifact(world: &World, number: &str, node: &str, id: &str) -> Result<(Artifact, PathBuf), Problem> {
    let run = find_run(world, number)?;
    let wanted = |artifact: &Artifact| artifact.id == id && artifact.node.to_string() == node;
    let found = artifacts(world, &run)?.into_iter().find(wanted);
    let found = found.ok_or_else(|| Problem::not_found("artifact", format!("{number} / {node} / {id}")))?;
    let path = split::artifact_file(world, run.number, &found);
    Ok((found, path))
}

/// The header that has a browser save a file under the last part of its path (RFC 6266, RFC 8187).
pub fn download_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let safe = |one: char| one.is_ascii_alphanumeric() || "._-".contains(one);
    let plain: String = name.chars().map(|one| if safe(one) { one } else { '_' }).collect();
    let mut exact = String::new();
    for byte in crate::text::plain(name, 200).bytes() {
        match byte {
            byte if safe(char::from(byte)) => exact.push(char::from(byte)),
            byte => exact.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

/// One file on the picture of a run.
#[derive(Debug, Clone, Serialize)]
pub struct FileBar {
    pub node: u16,
    pub path: String,
    pub passed: bool,
    pub milliseconds: u64,
    /// Thousandths of the time axis.
    pub bar_from: u64,
    pub bar_length: u64,
}

/// Files of a picture; more than that are narrower than anybody sees.
const MOST_BARS: usize = 2_000;

/// Where each file of a dealt run stood in time. Within a batch the runner tells how long each took, not when it began:
/// they are drawn one after the other, to the batch's end.
fn timeline(world: &World, run: &TestRun) -> Result<Vec<FileBar>, Problem> {
    let (Some(begin), Some(_)) = (run.started_at, &run.split) else { return Ok(Vec::new()) };
    let axis = milliseconds(run.finished_at.unwrap_or(world.now()).since(begin)).max(1);
    let mut bars = Vec::new();
    for batch in split::told(world, run.number)? {
        let mut at =
            milliseconds(batch.ended_at.since(begin)).saturating_sub(batch.files.iter().map(|file| file.wall_ms).sum());
        for file in batch.files {
            bars.push(FileBar {
                node: batch.node,
                path: file.path,
                passed: file.passed,
                milliseconds: file.wall_ms,
                bar_from: (at * 1000 / axis).min(1000),
                bar_length: (file.wall_ms * 1000 / axis).clamp(1, 1000),
            });
            at += file.wall_ms;
        }
    }
    bars.truncate(MOST_BARS);
    Ok(bars)
}

fn node(
    run: &TestRun,
    index: u16,
    processes: &[ProcessStatus],
    begin: Timestamp,
    end: Timestamp,
    now: Timestamp,
) -> Node {
    let axis = milliseconds(end.since(begin)).max(1);
    let bar = |from: Timestamp, to: Timestamp| {
        let start = (milliseconds(from.since(begin)) * 1000 / axis).min(1000);
        let length = (milliseconds(to.since(from)) * 1000 / axis).clamp(4, 1000);
        (start.min(996), length.min(1000 - start.min(996)))
    };
    if let Some(result) = run.results.get(&index) {
        let (bar_from, bar_length) = bar(result.started_at, result.finished_at);
        return Node {
            node: index,
            state: match &result.ended {
                _ if result.passed() => NodeState::Passed,
                _ if result.setup_failed => NodeState::SetupFailed,
                Ended::Exited { .. } => NodeState::Failed,
                _ if run.cancelled.is_some() => NodeState::Cancelled,
                _ => NodeState::Broken,
            },
            process: Some(result.process.clone()),
            started: Some(When::new(result.started_at, now)),
            milliseconds: Some(milliseconds(result.finished_at.since(result.started_at))),
            counts: result.counts,
            failures: result.failures.clone(),
            ended: (!result.ended.is_success()).then(|| result.ended.clone()),
            unproven: result.unproven,
            tail: result.tail.clone(),
            bar_from,
            bar_length,
        };
    }
    let status = newest_attempt(processes, index);
    let (bar_from, bar_length) = status.map_or((0, 0), |status| bar(status.started_at, end));
    Node {
        node: index,
        state: match status.map(|status| &status.state) {
            _ if run.cancelled.is_some() => NodeState::Cancelled,
            None => NodeState::Waiting,
            Some(State::Starting) => NodeState::Starting,
            Some(State::Running { .. } | State::Stopping | State::Exited { .. }) => NodeState::Running,
        },
        process: status.map(|status| status.id.clone()),
        started: status.map(|status| When::new(status.started_at, now)),
        milliseconds: status.map(|status| milliseconds(now.since(status.started_at))),
        counts: None,
        failures: Vec::new(),
        ended: None,
        unproven: false,
        tail: Vec::new(),
        bar_from,
        bar_length,
    }
}

fn newest_attempt(processes: &[ProcessStatus], node: u16) -> Option<&ProcessStatus> {
    let number = |status: &ProcessStatus, name: &str| status.labels.get(name).and_then(|text| text.parse::<u32>().ok());
    processes
        .iter()
        .filter(|status| number(status, label::ORDINAL) == Some(u32::from(node)))
        .max_by_key(|status| number(status, label::ATTEMPT))
}

/// The process whose log is a node's: the one that counted, else the newest attempt, else the first one to come.
pub async fn node_process(world: &World, run: &TestRun, node: &str) -> Result<(u16, ProcessId), Problem> {
    let not_found = || Problem::not_found("node", format!("{} / {node}", run.number));
    let index: u16 = node.parse().map_err(|_| not_found())?;
    if let (0, Setup::Making { key }) = (index, &run.setup)
        && let Some(made) = world.store.preparation(key)?
    {
        // What it is about now is what all nodes wait for.
        return Ok((0, made.process()));
    }
    if index >= run.nodes {
        return Err(not_found());
    }
    if let Some(result) = run.results.get(&index) {
        return Ok((index, result.process.clone()));
    }
    let own = run.number.to_string();
    let processes: Vec<ProcessStatus> =
        world.platform.list().await?.into_iter().filter(|status| status.labels.get(label::RUN) == Some(&own)).collect();
    Ok((index, newest_attempt(&processes, index).map_or_else(|| run.process_id(index, 1), |status| status.id.clone())))
}

#[derive(Debug, Clone, Serialize)]
pub struct BuildDetail {
    pub key: BuildKey,
    pub commit: Sha,
    pub tree: Sha,
    pub attempt: u32,
    pub repository: String,
    pub started: When,
    /// `running`, `succeeded`, `failed`.
    pub state: &'static str,
    pub failure: Option<Failure>,
    pub milliseconds: u64,
    pub slug: Option<SlugLine>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SlugLine {
    pub digest: SlugDigest,
    pub bytes: u64,
    pub files: u64,
    pub buildpacks: Vec<String>,
    pub process_types: std::collections::BTreeMap<String, String>,
    pub warnings: Vec<String>,
}

pub fn find_build(world: &World, key: &str) -> Result<Build, Problem> {
    let plain = (1..=64).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let found = if plain { world.store.build(&BuildKey(key.to_owned()))? } else { None };
    found.ok_or_else(|| Problem::not_found("build", key))
}

pub fn build_detail(world: &World, build: &Build) -> Result<BuildDetail, Problem> {
    let now = world.now();
    let (state, failure, end, digest) = match &build.state {
        BuildState::Running => ("running", None, now, None),
        BuildState::Succeeded { slug, at } => ("succeeded", None, *at, Some(slug)),
        BuildState::Failed { failure, at } => ("failed", Some(failure.clone()), *at, None),
        BuildState::Overtaken { at } => ("overtaken", None, *at, None),
    };
    let slug = match digest {
        Some(digest) => world.store.slug(digest)?,
        None => None,
    };
    Ok(BuildDetail {
        key: build.key.clone(),
        commit: build.commit.clone(),
        tree: build.tree.clone(),
        attempt: build.attempt,
        repository: world.store.repository(build.repository)?.map(|found| found.full_name()).unwrap_or_default(),
        started: When::new(build.started_at, now),
        state,
        failure,
        milliseconds: milliseconds(end.since(build.started_at)),
        slug: slug.map(|slug| SlugLine {
            digest: slug.digest,
            bytes: slug.bytes,
            files: slug.files,
            buildpacks: slug.buildpacks,
            process_types: slug.process_types,
            warnings: slug.warnings,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_saved_under_a_name_that_says_nothing_else() {
        assert_eq!(download_name("out/a b.png"), "attachment; filename=\"a_b.png\"; filename*=UTF-8''a%20b.png");
        assert_eq!(
            download_name("x/\"é;\u{202e}.html"),
            format!("attachment; filename=\"____.html\"; filename*=UTF-8''{}", "%22%C3%A9%3B.html")
        );
    }
}
