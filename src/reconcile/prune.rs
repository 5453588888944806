//! What is kept on disk and for how long: archives of slugs, build caches, mirrors.
//!
//! The rule: nothing goes that a record needs. An archive is looked at twice, the second time under its repository's
//! build lock, and one that was made or found useful within the last hour stays whatever the records say, since the
//! record that needs it may be on its way. Cut off anywhere, the next round finds the rest.

use super::build::{self, archive, cache_limits, system_time};
use super::observe::{self, label};
use super::{Trouble, World, setup, split};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::outside;
use crate::slug;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// An app can be rolled back to any of so many of its newest releases.
pub const KEPT_RELEASES: usize = 20;
/// A build's result is kept for so long although nothing needs it: a merge often has the tree of its pull request.
const RECENT: Duration = Duration::from_secs(24 * 3600);
const FRESH: Duration = Duration::from_secs(3600);
const EVERY: Duration = Duration::from_secs(3600);
const MIRROR_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Tidies up once an hour; in between it costs one look at a file's time.
pub(super) async fn tidy_when_due(world: &World) -> Result<(), Trouble> {
    let marker = world.folder("archives").join(".tidied");
    let now = system_time(world.now());
    let last = std::fs::metadata(&marker).and_then(|found| found.modified()).ok();
    if last.is_some_and(|last| now.duration_since(last).is_ok_and(|age| age < EVERY)) {
        return Ok(());
    }
    tidy(world).await?;
    let file = std::fs::File::create(&marker)?;
    Ok(file.set_modified(now)?)
}

/// Removes archives, caches and old commits that nothing needs.
pub async fn tidy(world: &World) -> Result<(), Trouble> {
    setup::forget_old(world).await?;
    archives(world).await?;
    let (all, limits, now) = (world.folder("cache"), cache_limits(world), system_time(world.now()));
    outside::point("prune caches").await;
    for name in tokio::task::spawn_blocking(move || slug::prune_caches(&all, limits, now)).await? {
        info!("removed the build cache {name}");
    }
    artifacts(world).await?;
    mirrors(world).await
}

/// Artifacts of runs that are gone, that are old, or that are too many, the oldest first.
async fn artifacts(world: &World) -> Result<(), Trouble> {
    let mut found = Vec::new();
    let mut folder = tokio::fs::read_dir(world.folder("artifacts")).await?;
    while let Some(entry) = folder.next_entry().await? {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok().map(RunNumber)) else {
            continue;
        };
        let run = world.store.run(number)?;
        let path = entry.path();
        let bytes = tokio::task::spawn_blocking(move || bytes_below(&path)).await?;
        let ended = run.map(|run| (run.verdict.is_none(), run.finished_at.unwrap_or(run.created_at)));
        found.push(Kept { run: number, ended, bytes });
    }
    let keep = &world.config.keep;
    let kept_for = Duration::from_secs(keep.artifact_days * 24 * 3600);
    for run in too_much(found, world.now(), kept_for, keep.artifacts_mb << 20) {
        outside::point("prune artifacts").await;
        build::remove_folder(&split::artifact_folder(world, run)).await?;
        info!(%run, "removed the artifacts of test run {run}");
    }
    Ok(())
}

struct Kept {
    run: RunNumber,
    /// Whether it still goes on, and since when it does not; `None` where there is no such run any more.
    ended: Option<(bool, Timestamp)>,
    bytes: u64,
}

/// Which runs' artifacts go. Those of a run that goes on stay.
fn too_much(mut all: Vec<Kept>, now: Timestamp, kept_for: Duration, most: u64) -> Vec<RunNumber> {
    all.sort_by_key(|kept| std::cmp::Reverse(kept.run));
    let mut total = 0;
    let mut goes = |kept: &Kept| {
        let Some((goes_on, at)) = kept.ended else { return true };
        let old = now.since(at) >= kept_for;
        if !old {
            total += kept.bytes;
        }
        !goes_on && (old || total > most)
    };
    all.iter().filter(|kept| goes(kept)).map(|kept| kept.run).collect()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

async fn archives(world: &World) -> Result<(), Trouble> {
    let mut needed = needed(world).await?;
    let mut folder = tokio::fs::read_dir(world.folder("archives")).await?;
    while let Some(entry) = folder.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let digest = name.strip_suffix(".tar.zst").and_then(|digest| digest.parse::<SlugDigest>().ok());
        let Some(digest) = digest.filter(|digest| !needed.contains(digest)) else { continue };
        if is_fresh(world, &entry.path()) {
            continue;
        }
        let repository = world.store.slug(&digest)?.map(|slug| slug.repository);
        let _alone = match repository {
            Some(repository) => Some(world.locks.lock(&format!("build {repository}")).await),
            None => None,
        };
        needed = self::needed(world).await?;
        if needed.contains(&digest) || is_fresh(world, &entry.path()) {
            continue;
        }
        outside::point("prune archive").await;
        world.platform.unpublish(&digest).await?;
        tokio::fs::remove_file(entry.path()).await?;
        info!(slug = %digest, "removed slug {digest}, which nothing needs");
    }
    for digest in world.platform.published().await? {
        if !needed.contains(&digest) && !archive(world, &digest).exists() {
            outside::point("prune slug").await;
            world.platform.unpublish(&digest).await?;
        }
    }
    Ok(())
}

fn is_fresh(world: &World, path: &Path) -> bool {
    let written = std::fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    // A time in the future is fresh too.
    system_time(world.now()).duration_since(written).map_or(true, |age| age < FRESH)
}

/// The slugs that a kept release, a deploy or test run under way, a process that still runs or a recent build needs.
async fn needed(world: &World) -> Result<BTreeSet<SlugDigest>, Trouble> {
    let store = &world.store;
    let mut needed = BTreeSet::new();
    let of_tree = |repository: RepositoryId, tree: &Sha| -> Result<Option<SlugDigest>, Trouble> {
        let Some(key) = store.build_of_tree(repository, tree)? else { return Ok(None) };
        Ok(match store.build(&key)?.map(|build| build.state) {
            Some(BuildState::Succeeded { slug, .. }) => Some(slug),
            _ => None,
        })
    };
    for app in store.apps()? {
        let mut releases = store.releases(&app.name)?;
        releases.sort_by_key(|release| std::cmp::Reverse(release.number));
        let kept = releases.into_iter().enumerate();
        let kept = kept.filter(|(place, release)| *place < KEPT_RELEASES || app.live == Some(release.number));
        needed.extend(kept.map(|(_, release)| release.slug));
        for deploy in app.deploys.iter().filter(|deploy| deploy.outcome.is_none()) {
            if let Cause::Promotion { slug, .. } = &deploy.cause {
                needed.insert(slug.clone());
            }
            if let Some(tree) = &deploy.tree {
                needed.extend(of_tree(app.repository, tree)?);
            }
        }
    }
    for preparation in store.preparations()? {
        if let PreparationState::Kept { slug, at } = preparation.state
            // A run may just have chosen it.
            && world.now().since(at) < setup::KEPT + FRESH
        {
            needed.insert(slug);
        }
    }
    for run in store.runs_going_on()? {
        if let Setup::Kept { slug } = &run.setup {
            needed.insert(slug.clone());
        }
        if let Some(tree) = &run.tree {
            needed.extend(of_tree(run.repository, tree)?);
        }
    }
    for build in store.builds()? {
        if let BuildState::Succeeded { slug, at } = build.state
            && world.now().since(at) < RECENT
        {
            needed.insert(slug);
        }
    }
    for status in observe::list(world).await? {
        let text = |name: &str| status.labels.get(name);
        if let (Some(app), Some(number)) = (text(label::APP), text(label::RELEASE))
            && let (Ok(app), Ok(number)) = (app.parse::<AppName>(), number.parse::<ReleaseNumber>())
        {
            needed.extend(store.release(&app, number)?.map(|release| release.slug));
        }
        if let Some(number) = text(label::RUN).and_then(|number| number.parse().ok())
            && let Some(run) = store.run(RunNumber(number))?
            && let Some(tree) = &run.tree
        {
            needed.extend(of_tree(run.repository, tree)?);
        }
    }
    for digest in needed.clone() {
        needed.extend(store.slug(&digest)?.and_then(|slug| slug.test_layer));
    }
    Ok(needed)
}

/// Packs one mirror anew, the one that waited for the longest time, and drops commits that nothing needs.
async fn mirrors(world: &World) -> Result<(), Trouble> {
    let now = system_time(world.now());
    let due = |repository: &Repository| {
        let last = world.source.tidied_at(repository.id).unwrap_or(SystemTime::UNIX_EPOCH);
        now.duration_since(last).is_ok_and(|age| age >= MIRROR_EVERY).then_some(last)
    };
    let with_mirror = world.source.repositories();
    let repositories = world.store.repositories()?;
    let known = repositories.into_iter().filter(|repository| with_mirror.contains(&repository.id));
    let next = known.filter_map(|repository| Some((due(&repository)?, repository))).min_by_key(|(last, _)| *last);
    let Some((_, repository)) = next else { return Ok(()) };
    let _alone = world.locks.lock(&format!("build {}", repository.id)).await;
    let mut keep: BTreeSet<Sha> = BTreeSet::new();
    // What goes on is read again when it is over, whether or not anybody still waits for it.
    let going_on = |build: &Build| build.repository == repository.id && build.state == BuildState::Running;
    keep.extend(world.store.builds()?.into_iter().filter(going_on).map(|build| build.commit));
    for app in world.store.apps_of(repository.id)? {
        keep.extend(app.deploys.into_iter().map(|deploy| deploy.commit));
    }
    let pulls = world.store.pulls(repository.id)?;
    keep.extend(pulls.into_iter().filter(|pull| pull.open).map(|pull| pull.head));
    let runs = world.store.runs_of(repository.id)?;
    keep.extend(runs.into_iter().filter(|run| run.verdict.is_none()).map(|run| run.commit));
    outside::point("git gc").await;
    let keep: Vec<Sha> = keep.into_iter().collect();
    if let Err(error) = world.source.tidy(repository.id, &keep).await {
        // What it would have dropped only takes room; it is tried again in an hour.
        warn!(repository = %repository.full_name(), "the mirror could not be packed anew: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_go_by_age_and_by_size_and_those_of_a_run_that_goes_on_stay() {
        let hour = Duration::from_secs(3600);
        let now = Timestamp(0) + hour * 100;
        let kept = |run, ended, bytes| Kept { run: RunNumber(run), ended, bytes };
        let all = |bytes| {
            vec![
                kept(1, None, bytes),
                kept(2, Some((true, Timestamp(0))), bytes),
                kept(3, Some((false, Timestamp(0))), bytes),
                kept(4, Some((false, Timestamp(0) + hour * 91)), bytes),
                kept(5, Some((false, Timestamp(0) + hour * 99)), bytes),
            ]
        };
        let gone =
            |bytes| -> Vec<u64> { too_much(all(bytes), now, hour * 10, 100).into_iter().map(|run| run.0).collect() };
        assert_eq!(gone(10), [3, 1], "one is old, one has no record");
        assert_eq!(gone(60), [4, 3, 1], "the newest has room");
        assert_eq!(gone(101), [5, 4, 3, 1], "not even the newest has");
        assert_eq!(too_much(Vec::new(), now, hour, 0), []);
    }
}
