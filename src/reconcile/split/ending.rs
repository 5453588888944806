//! The end of a run whose files were dealt: what it came to, and what it measured.

use super::{RED, batches, cases, look};
use crate::domain::*;
use crate::reconcile::{Trouble, World, act};
use crate::workflow::{measured, node_results, red_paths, summary};
use std::collections::BTreeSet;

/// Runs of a repository whose measured times are kept.
pub(super) const KEPT: usize = 40;
/// Of a longer list of red files nothing is kept: then all files are run again.
const MOST_RED_BYTES: usize = 400 << 10;

pub(in crate::reconcile) async fn conclude(world: &World, run: &TestRun, verdict: Verdict) -> Result<(), Trouble> {
    let told = batches(world, run.number)?;
    let cases = cases(world, run.number)?;
    let base = base_of(world, run)?;
    let all = base.as_ref().map(|base| world.store.run_part(base.number, RED)).transpose()?.flatten();
    let named = || {
        base.and_then(|base| base.split)
            .map(|summary| summary.red_files.into_iter().map(|file| file.path).collect())
            .unwrap_or_default()
    };
    let red_on_base: BTreeSet<String> = all.unwrap_or_else(named);
    let ended = look(world, run.number, |live| {
        let nodes: Vec<_> = (0..run.nodes).map(|node| (node, node_results(&live.board, &told, node))).collect();
        let red = red_paths(&live.board, &told);
        (summary(&live.board, &told, &red_on_base), measured(run, &live.board, &told, &cases), nodes, red)
    })
    .await?;
    let Some((summary, measured, nodes, red)) = ended else {
        act::conclude(world, run.number, verdict).await?;
        return Ok(());
    };
    let keep =
        matches!(verdict, Verdict::Passed | Verdict::Failed) && !measured.files.is_empty() && run.repeats.is_none();
    let (repository, number) = (run.repository, run.number);
    if red.iter().map(|path| path.len() + 8).sum::<usize>() < MOST_RED_BYTES {
        world.commit(move |tx| tx.put_run_part(number, RED, &red)).await?;
    }
    if keep {
        world.commit(move |tx| tx.put_measured(repository, number, &measured, KEPT)).await?;
    }
    act::change_run(world, number, move |run, now| {
        for (node, (counts, failures)) in nodes {
            if let Some(result) = run.results.get_mut(&node) {
                result.counts = counts;
                result.failures = act::within(failures);
            }
        }
        run.split = Some(summary);
        run.verdict = Some(verdict);
        run.finished_at = Some(now);
    })
    .await?;
    world.boards.forget(number);
    Ok(())
}

/// The newest run of the default branch that has ended by its tests, for a run of a pull request.
fn base_of(world: &World, run: &TestRun) -> Result<Option<TestRun>, Trouble> {
    if run.pull.is_none() {
        return Ok(None);
    }
    let Some(repository) = world.store.repository(run.repository)? else { return Ok(None) };
    let on_base =
        |run: &TestRun| run.pull.is_none() && run.repeats.is_none() && run.branch == repository.default_branch;
    let ended = |run: &TestRun| on_base(run) && matches!(run.verdict, Some(Verdict::Passed | Verdict::Failed));
    Ok(world.store.runs_of(run.repository)?.into_iter().rev().find(ended))
}
