//! What went to production: the commits and pull requests between what served before and what serves now, asked of
//! GitHub once for each promotion and kept.

use super::apply::enqueue;
use super::deliver::handle_of;
use super::{Trouble, World};
use crate::domain::*;
use crate::github::reads::Relation;
use crate::github::{GitHubError, RepoHandle};

/// GitHub is asked for the pull requests of so many commits at most.
const MOST_COMMITS: usize = 100;
/// How far back the pull requests of a rollback are looked for.
const LONGEST_CHAIN: usize = 50;

/// Notes what the live release brought, if it was promoted and nothing is noted yet.
pub(super) async fn note(world: &World, repository: &Repository, app: &App) -> Result<(), Trouble> {
    let Some(live) = app.live_deploy() else { return Ok(()) };
    // What failed at first and was tried again goes out with the second try.
    let (Some(release), Some(Outcome::Live { at }), Cause::Promotion { .. } | Cause::Retry { .. }) =
        (live.release, &live.outcome, &live.cause)
    else {
        return Ok(());
    };
    if world.store.shipment(&app.name, release)?.is_some() {
        return Ok(());
    }
    let served = |deploy: &&Deploy| deploy.number < live.number && matches!(deploy.outcome, Some(Outcome::Live { .. }));
    let from = app.deploys.iter().rev().find(served).map(|deploy| deploy.commit.clone());
    if from.as_ref() == Some(&live.commit) && matches!(live.cause, Cause::Retry { .. }) {
        return Ok(());
    }
    let mut contents = contents(world, repository, from.as_ref(), &live.commit).await?;
    // What concerns other folders only did not go out here.
    let folder = world.store.pipeline(repository.id)?.policy.folder_of(app.key());
    let known = world.store.pulls(repository.id)?;
    contents.pulls.retain(|shipped| {
        known.iter().find(|pull| pull.number == shipped.number).is_none_or(|pull| pull.touches(folder))
    });
    let shipment = Shipment {
        app: app.name.clone(),
        release,
        from,
        to: live.commit.clone(),
        at: *at,
        commits: contents.commits,
        pulls: contents.pulls,
        authors: contents.authors,
        cut: contents.cut,
    };
    let (now, id) = (world.now(), repository.id);
    world
        .commit(move |tx| {
            tx.put_shipment(&shipment)?;
            for pull in &shipment.pulls {
                enqueue(tx, &Subject::Pull(id, pull.number), now)?;
            }
            for pull in tx.pulls_with_commands(id)? {
                enqueue(tx, &Subject::Pull(id, pull), now)?;
            }
            Ok(())
        })
        .await?;
    world.wake.notify_waiters();
    Ok(())
}

/// What lies between two commits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Contents {
    pub commits: u64,
    pub pulls: Vec<ShippedPull>,
    pub authors: Vec<String>,
    /// Whether GitHub listed less than there is.
    pub cut: bool,
    /// Whether the newer one lacks something that the older one has.
    pub behind: bool,
}

/// Asks GitHub what came after `from` up to `to`; without `from`, for the pull requests of `to` itself.
pub async fn contents(
    world: &World,
    repository: &Repository,
    from: Option<&Sha>,
    to: &Sha,
) -> Result<Contents, Trouble> {
    let handle = handle_of(repository);
    let mut contents = Contents { commits: 1, pulls: Vec::new(), authors: Vec::new(), cut: false, behind: false };
    let commits = match from {
        None => vec![to.clone()],
        Some(from) if from == to => {
            contents.commits = 0;
            Vec::new()
        }
        Some(from) => match world.github.compare(&handle, from, to).await {
            Ok(comparison) => {
                contents.commits = comparison.ahead_by;
                contents.behind = matches!(comparison.relation, Relation::Behind | Relation::Diverged);
                contents.cut =
                    comparison.commits.len() > MOST_COMMITS || comparison.ahead_by > comparison.commits.len() as u64;
                for author in comparison.commits.iter().filter_map(|commit| commit.author.as_ref()) {
                    if !contents.authors.contains(&author.login) {
                        contents.authors.push(author.login.clone());
                    }
                }
                comparison.commits.into_iter().rev().take(MOST_COMMITS).map(|commit| commit.sha).collect()
            }
            // A force push may have taken the older one out of the repository.
            Err(GitHubError::NotFound { .. }) => {
                contents.cut = true;
                vec![to.clone()]
            }
            Err(error) => return Err(Trouble::github(&error, world.now())),
        },
    };
    for commit in &commits {
        add_pulls(world, &handle, commit, &mut contents.pulls).await?;
    }
    contents.pulls.sort_by_key(|pull| pull.number);
    Ok(contents)
}

async fn add_pulls(
    world: &World,
    handle: &RepoHandle,
    commit: &Sha,
    pulls: &mut Vec<ShippedPull>,
) -> Result<(), Trouble> {
    let found = match world.github.pulls_of_commit(handle, commit).await {
        Ok(found) => found,
        Err(GitHubError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    for pull in found.into_iter().filter(|pull| pull.merged) {
        if pulls.iter().all(|known| known.number != pull.number) {
            pulls.push(ShippedPull {
                number: pull.number,
                title: pull.title,
                author: pull.author.login,
                merged_at: pull.merged_at,
            });
        }
    }
    Ok(())
}

/// Of each app of production the newest shipment that holds a pull request, and the release of that app whose code
/// serves now.
pub(super) fn of_pull(
    world: &World,
    repository: &Repository,
    number: PullNumber,
) -> Result<Vec<(Shipment, Option<ReleaseNumber>)>, Trouble> {
    let mut found = Vec::new();
    let of_production = |app: &App| app.repository == repository.id && app.stage == Stage::Production;
    let mut apps = world.store.apps_where(of_production)?;
    apps.sort_by_key(App::key);
    for app in apps {
        let newest = world.store.shipments(&app.name)?.into_iter().rev();
        let mut newest = newest.filter(|shipment| shipment.pulls.iter().any(|pull| pull.number == number));
        if let Some(shipment) = newest.next() {
            found.push((shipment, serving(world, &app)?));
        }
    }
    Ok(found)
}

/// The release whose code serves: of a rollback, the one that it went back to.
fn serving(world: &World, app: &App) -> Result<Option<ReleaseNumber>, Trouble> {
    let Some(mut number) = app.live else { return Ok(None) };
    for _ in 0..LONGEST_CHAIN {
        match world.store.release(&app.name, number)?.map(|release| release.cause) {
            Some(Cause::Rollback { to, .. }) => number = to,
            _ => break,
        }
    }
    Ok(Some(number))
}
