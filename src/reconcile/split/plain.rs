//! Results of a script that ran as it is, as its node read them.

use super::Who;
use crate::ci::wire::{Answer, MOST_FAILURES, bound, bounded_counts};
use crate::domain::*;
use crate::reconcile::{Trouble, World, start};
use serde::{Deserialize, Serialize};

/// What a process of a node told of its results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::reconcile) struct PlainReport {
    pub attempt: u32,
    /// They are whole, hold a test and none that failed.
    pub green: bool,
    pub counts: Counts,
    pub failures: Vec<TestFailure>,
}

fn key(node: u16) -> String {
    format!("report/{node:03}")
}

pub(super) async fn put(world: &World, run: &TestRun, who: Who, report: PlainReport) -> Result<Answer, Trouble> {
    if run.split.is_some() {
        return Ok(Answer::Taken);
    }
    let mut report = PlainReport { counts: bounded_counts(report.counts), ..report };
    report.failures.truncate(MOST_FAILURES);
    report.failures.iter_mut().for_each(bound);
    let (number, key) = (run.number, key(who.node));
    world.commit(move |tx| tx.put_run_part(number, &key, &report)).await?;
    Ok(Answer::Taken)
}

/// What a node's process left as results: `None` where none were asked for, `Some(None)` where they are missing.
pub(in crate::reconcile) fn report(
    world: &World,
    run: &TestRun,
    node: u16,
    attempt: u32,
) -> Result<Option<Option<PlainReport>>, Trouble> {
    let asked = start::slug_of(world, run)?.is_some_and(|slug| slug.settings().tests.junit.is_some());
    if !asked || run.split.is_some() {
        return Ok(None);
    }
    let found: Option<PlainReport> = world.store.run_part(run.number, &key(node))?;
    Ok(Some(found.filter(|report| report.attempt == attempt)))
}
