//! Which of a repository's apps a change of files concerns, as its rules say by path: asked of GitHub, since nothing of a
//! stranger's is fetched before it is approved. Where GitHub lists less than there is, everything is concerned.

use super::deliver::handle_of;
use super::{Trouble, World};
use crate::domain::*;
use crate::github::{GitHubError, RepoHandle};
use std::collections::BTreeSet;

/// GitHub lists so many files of a pull request at most.
const MOST_FILES: usize = 3_000;

/// The folders that nothing in a pull request concerns, and the pages that its files are of.
pub(super) async fn by_pull(
    world: &World,
    handle: &RepoHandle,
    number: PullNumber,
    policy: &PipelineSettings,
) -> Result<(Vec<Part>, Vec<String>), Trouble> {
    let nothing = (Vec::new(), Vec::new());
    if !policy.filters_paths() && policy.routes.is_empty() {
        return Ok(nothing);
    }
    let (count, files) = match world.github.pull_files(handle, number).await {
        Ok(found) => found,
        // GitHub makes no diff of some; then everything is concerned.
        Err(error) if error.is_of_one_thing() => return Ok(nothing),
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    let untouched = if count >= MOST_FILES { Vec::new() } else { policy.untouched_by(&files) };
    Ok((untouched, policy.pages_of(&files)))
}

/// The apps of staging that nothing concerns which a branch got since what they were last asked to serve.
pub(super) async fn by_push(
    world: &World,
    repository: &Repository,
    branch: &str,
    head: &Sha,
) -> Result<BTreeSet<Part>, Trouble> {
    let policy = world.store.pipeline(repository.id)?.policy;
    let mut untouched = BTreeSet::new();
    match world.github.commit(&handle_of(repository), head).await {
        // It asks to be left alone; whatever comes after it takes it along.
        Ok(commit) if asks_to_skip(&commit.message) => {
            return Ok(policy.staging_keys().into_iter().map(|key| key.part).collect());
        }
        Ok(_) | Err(GitHubError::NotFound { .. }) => {}
        Err(error) => return Err(Trouble::github(&error, world.now())),
    }
    if !policy.filters_paths() {
        return Ok(untouched);
    }
    let apps = world.store.apps_of(repository.id)?;
    for key in policy.staging_keys() {
        if policy.branch_of(key).unwrap_or(&repository.default_branch) != branch {
            continue;
        }
        let app = apps.iter().find(|app| app.key() == key && app.wanted == Wanted::Running);
        let pushed = app.and_then(|app| app.deploys.iter().rev().find(|deploy| deploy.cause == Cause::Push));
        // What failed is tried again with whatever comes.
        let Some(pushed) = pushed.filter(|pushed| !matches!(pushed.outcome, Some(Outcome::Failed { .. }))) else {
            continue;
        };
        let compared = match world.github.compare(&handle_of(repository), &pushed.commit, head).await {
            Ok(compared) => compared,
            // A force push may have taken the older one out of the repository.
            Err(error) if error.is_of_one_thing() => continue,
            Err(error) => return Err(Trouble::github(&error, world.now())),
        };
        let straight = compared.behind_by == 0 && compared.files_complete;
        if straight && policy.untouched_by(&compared.files).contains(&policy.folder_of(key)) {
            untouched.insert(key.part);
        }
    }
    Ok(untouched)
}
