//! How a run's tests are run, from its tree; what of them is dealt, with what is predicted of each.

use super::{RED, put_plan};
use crate::ci::presets::{READ, READ_LIMIT, Tree};
use crate::ci::split::{self, Item, Rules, predict};
use crate::domain::*;
use crate::reconcile::apply::enqueue;
use crate::reconcile::{Trouble, World, act};
use crate::slug::Blame;
use crate::store::StoreError;
use crate::workflow::{MeasuredRun, SplitPlan, Way, way};
use std::collections::{BTreeMap, BTreeSet};
use tracing::info;

/// Runs of a repository whose times are asked.
const RUNS: usize = 20;

/// Plans a run: on how many nodes, and whether files are dealt. Planned once.
pub(in crate::reconcile) async fn plan(world: &World, run: &TestRun, nodes: u16, slug: &Slug) -> Result<(), Trouble> {
    let settings = slug.settings().tests;
    let environment = slug.manifest().for_environment(Environment::Test);
    let script = environment.scripts.test.clone().or_else(|| slug.test_command.clone());
    let (paths, contents) = tree(world, run).await?;
    let way = way(script.as_deref(), &settings, Tree { paths: &paths, contents: &contents });
    match way {
        Way::Refused(failure) => act::conclude(world, run.number, Verdict::Errored { failure }).await?,
        Way::Plain => write(world, run, settings.nodes.unwrap_or(nodes), None).await?,
        Way::Split { orders, files } => {
            let files = wanted_files(world, run, files)?;
            let nodes = settings.nodes.unwrap_or(nodes).clamp(1, 64);
            let (items, start_up_ms) = items(world, run, &files, nodes, orders.cases.is_some())?;
            let nodes = u16::try_from(items.len()).unwrap_or(u16::MAX).clamp(1, nodes);
            let rules = Rules {
                start_up_ms: start_up_ms.unwrap_or(Rules::default().start_up_ms),
                // Results are written when a batch is over.
                streamed: false,
                race: settings.race,
                retries: settings.retries,
                ..Rules::default()
            };
            let plan = SplitPlan { orders: *orders, rules, nodes, opened_at: world.now() };
            info!(run = %run.number, nodes, "test run {} deals {} items to {nodes} nodes", run.number, items.len());
            write(world, run, nodes, Some((plan, items))).await?;
        }
    }
    Ok(())
}

async fn write(
    world: &World,
    run: &TestRun,
    nodes: u16,
    dealt: Option<(SplitPlan, Vec<Item>)>,
) -> Result<(), StoreError> {
    let (number, now) = (run.number, world.now());
    world
        .commit(move |tx| {
            let Some(mut run) = tx.run(number)?.filter(|run| run.verdict.is_none() && run.started_at.is_none()) else {
                return Ok(());
            };
            run.nodes = nodes;
            run.started_at = Some(now);
            if let Some((plan, items)) = &dealt {
                put_plan(tx, number, plan, items)?;
                run.split = Some(SplitSummary { planned: items.len() as u64, ..SplitSummary::default() });
            }
            tx.put_run(&run)?;
            enqueue(tx, &Subject::Run(number), now)?;
            match run.pull {
                Some(pull) => enqueue(tx, &Subject::Pull(run.repository, pull), now),
                None => Ok(()),
            }
        })
        .await
}

/// All files of the tree, and the contents of those that tell the runner.
async fn tree(world: &World, run: &TestRun) -> Result<(BTreeSet<String>, BTreeMap<String, String>), Trouble> {
    let trouble = |error: crate::slug::SourceError| match error.who() {
        Blame::Retry => Trouble::retry(error),
        Blame::User | Blame::Bug => Trouble::bug(error),
    };
    let root = world.store.pipeline(run.repository)?.policy.root_of(run.part).to_owned();
    let below = |path: &str| if root.is_empty() { path.to_owned() } else { format!("{root}/{path}") };
    let paths = world.source.paths(run.repository, &run.commit).await.map_err(trouble)?;
    // What is tested is the folder alone, and its paths begin there.
    let own = |path: String| match root.is_empty() {
        true => Some(path),
        false => path.strip_prefix(&root)?.strip_prefix('/').map(str::to_owned),
    };
    let paths: BTreeSet<String> = paths.into_iter().filter_map(own).collect();
    let mut contents = BTreeMap::new();
    for path in READ.into_iter().filter(|path| paths.contains(*path)) {
        // What can't be read as text tells nothing of a runner.
        let read = world.source.file(run.repository, &run.commit, &below(path)).await;
        if let Ok(Some(bytes)) = read
            && bytes.len() <= READ_LIMIT
            && let Ok(text) = String::from_utf8(bytes)
        {
            contents.insert(path.to_owned(), text);
        }
    }
    Ok((paths, contents))
}

/// All of them, or those that were red in the run that is done again in part.
pub(super) fn wanted_files(
    world: &World,
    run: &TestRun,
    files: BTreeSet<String>,
) -> Result<BTreeSet<String>, StoreError> {
    let Some(before) = run.only_failed_of else { return Ok(files) };
    let Some(summary) = world.store.run(before)?.and_then(|run| run.split) else { return Ok(files) };
    // A run from before all of them were kept names the first hundred.
    let all: Option<BTreeSet<String>> = world.store.run_part(before, RED)?;
    let (red, complete) = match all {
        Some(all) => (all, true),
        None => (summary.red_files.into_iter().map(|file| file.path).collect(), summary.red < 100),
    };
    let chosen: BTreeSet<String> = files.intersection(&red).cloned().collect();
    Ok(if complete && !chosen.is_empty() { chosen } else { files })
}

pub(super) fn items(
    world: &World,
    run: &TestRun,
    files: &BTreeSet<String>,
    nodes: u16,
    by_case: bool,
) -> Result<(Vec<Item>, Option<u64>), StoreError> {
    let mut known: Vec<(RunNumber, MeasuredRun)> = world.store.measured(run.repository)?;
    known.retain(|(_, measured)| measured.pull.is_none() || measured.pull == run.pull);
    known.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    known.truncate(RUNS);
    let start_up = known.first().map(|(_, measured)| measured.start_up_ms);
    let mut cases: BTreeMap<String, Vec<split::CaseTime>> = BTreeMap::new();
    for measured in known.iter().flat_map(|(_, run)| &run.files).filter(|_| by_case) {
        if measured.passed && !measured.case_times.is_empty() {
            cases.entry(measured.path.clone()).or_insert_with(|| measured.case_times.clone());
        }
    }
    let runs: Vec<Vec<split::Measured>> = known.into_iter().map(|(_, measured)| measured.files).collect();
    let expected = start_up.unwrap_or(Rules::default().start_up_ms);
    Ok((split::plan(files, &predict(&runs), nodes, &cases, expected), start_up))
}
