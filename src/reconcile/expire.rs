//! What is old is let go: deliveries with their payloads, test runs with their logs, logs of processes that ended
//! long ago. Whatever is not dealt with yet stays, however old it is.

use super::{Trouble, World, act, build, split};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::store::StoreError;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};
use tracing::info;

/// Records that one transaction deletes, so that nobody waits long for the store.
const AT_A_TIME: usize = 500;

/// What was let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Expired {
    pub deliveries: usize,
    pub runs: usize,
    pub logs: usize,
    /// Of payloads.
    pub bytes: u64,
}

/// Lets go of what is older than the configuration keeps. May be cut off anywhere and done again.
pub async fn expire(world: &World) -> Result<Expired, Trouble> {
    let kept_for = Duration::from_secs(world.config.keep.days * 86_400);
    let before = world.now() - kept_for;
    let (deliveries, bytes) = deliveries(world, before).await?;
    let gone = Expired { deliveries, bytes, runs: runs(world).await?, logs: logs(world, kept_for).await? };
    if gone != Expired::default() {
        info!(
            "let go of {} deliveries, {} test runs, {} logs, {} bytes of payloads",
            gone.deliveries, gone.runs, gone.logs, gone.bytes
        );
    }
    Ok(gone)
}

async fn deliveries(world: &World, before: Timestamp) -> Result<(usize, u64), Trouble> {
    let is_settled =
        |delivery: &Delivery| matches!(delivery.state, DeliveryState::Applied { .. } | DeliveryState::Ignored { .. });
    let mut old = Vec::new();
    let mut wanted = BTreeSet::new();
    let mut after: Option<String> = None;
    loop {
        let page = world.store.deliveries(after.as_deref(), AT_A_TIME)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        for delivery in page {
            if delivery.received_at < before && is_settled(&delivery) {
                old.push(delivery.id);
            } else if let Some(record) = world.store.delivery(&delivery.id)? {
                wanted.insert(record.payload.segment);
            }
        }
    }
    let count = old.len();
    for some in old.chunks(AT_A_TIME) {
        let some = some.to_vec();
        world
            .commit(move |tx| {
                for id in &some {
                    tx.delete_delivery(id)?;
                }
                Ok(())
            })
            .await?;
    }
    let pruned = world.store.prune_blobs_before(before, wanted).await?;
    Ok((count, pruned.bytes))
}

/// Of each repository the newest runs stay, and each that is not over, that a deploy still waits for, or that tells of an
/// open pull request as it is: without its run it would be tested again.
async fn runs(world: &World) -> Result<usize, Trouble> {
    let mut waited_for = BTreeSet::new();
    for app in world.store.apps()? {
        waited_for
            .extend(app.deploys.iter().filter(|deploy| deploy.outcome.is_none()).filter_map(|deploy| deploy.gate));
    }
    let mut heads = BTreeSet::new();
    for repository in world.store.repositories()? {
        let open = world.store.pulls(repository.id)?.into_iter().filter(|pull| pull.open);
        heads.extend(open.map(|pull| (repository.id, pull.number, pull.head)));
    }
    let mut seen: BTreeMap<RepositoryId, usize> = BTreeMap::new();
    let mut old = Vec::new();
    for run in world.store.runs_where(|_| true)?.into_iter().rev() {
        let newer = seen.entry(run.repository).or_default();
        *newer += 1;
        let of_head = || run.pull.is_some_and(|pull| heads.contains(&(run.repository, pull, run.commit.clone())));
        if *newer > world.config.keep.runs && run.verdict.is_some() && !waited_for.contains(&run.number) && !of_head() {
            old.extend(world.store.run(run.number)?);
        }
    }
    for run in &old {
        for result in run.results.values() {
            act::remove_file(&super::log_file(world, &result.process)).await?;
        }
        build::remove_folder(&split::artifact_folder(world, run.number)).await?;
    }
    for some in old.chunks(AT_A_TIME) {
        let some: Vec<(RepositoryId, RunNumber)> = some.iter().map(|run| (run.repository, run.number)).collect();
        world
            .commit(move |tx| {
                for (repository, number) in &some {
                    tx.delete_run(*repository, *number)?;
                }
                Ok::<(), StoreError>(())
            })
            .await?;
    }
    Ok(old.len())
}

/// Logs lie here only once their process has ended; the file's age is that of its last line or younger. Of more than may be
/// kept the oldest go.
async fn logs(world: &World, kept_for: Duration) -> Result<usize, Trouble> {
    let mut found = Vec::new();
    let mut folder = tokio::fs::read_dir(world.folder("logs")).await?;
    while let Some(entry) = folder.next_entry().await? {
        let Ok(metadata) = entry.metadata().await else { continue };
        let Ok(modified) = metadata.modified() else { continue };
        found.push((age(modified), metadata.len(), entry.path()));
    }
    found.sort();
    let (mut total, mut count) = (0, 0);
    for (age, bytes, path) in found {
        total += bytes;
        if age >= kept_for || total > world.config.keep.logs_mb << 20 {
            act::remove_file(&path).await?;
            count += 1;
        }
    }
    Ok(count)
}

fn age(modified: SystemTime) -> Duration {
    modified.elapsed().unwrap_or_default()
}
