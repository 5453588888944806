//! What others say about a commit, and what GitHub protects a stage with: asked of GitHub when somebody waits for it.
//!
//! What GitHub does not answer is not green: the deploy goes on waiting, and everything else about its app goes on.

use super::deliver::handle_of;
use super::{Trouble, World};
use crate::domain::*;
use crate::github::protection::{DeployableBranches, Reviewer};
use crate::github::{GitHubError, RepoHandle};
use crate::workflow::{CheckState, Others, Protection, RequiredCheck, SeenCheck, others};
use std::time::Duration;
use tracing::warn;

/// GitHub tells of each change; a change that was not told is found so much later.
const ASKED_AGAIN: Duration = Duration::from_secs(300);

/// For the newest deploy of staging, once its own tests are green and until it has a release; and whether GitHub was
/// asked for it just now.
pub(super) async fn of_newest(world: &World, app: &App, gate: Option<&Verdict>) -> Result<(Others, bool), Trouble> {
    let green = (Others::Green, false);
    let Some(deploy) = app.newest().filter(|_| app.stage == Stage::Staging) else { return Ok(green) };
    let pending = deploy.outcome.is_none() && deploy.release.is_none() && deploy.cause == Cause::Push;
    if !pending || (deploy.gate.is_some() && !gate.is_some_and(Verdict::is_green)) {
        return Ok(green);
    }
    let wanted = world.store.pipeline(app.repository)?.policy.staging.wait_for;
    let Some(repository) = world.store.repository(app.repository)?.filter(|_| wanted != WaitFor::Own) else {
        return Ok(green);
    };
    let known = || match deploy.checked_at {
        // It was asked, and there was nothing to wait for.
        Some(_) if deploy.waits_for.is_empty() => Others::Green,
        _ => Others::Waiting { contexts: deploy.waits_for.clone() },
    };
    if deploy.checked_at.is_some_and(|checked| world.now().since(checked) < ASKED_AGAIN) {
        return Ok((known(), false));
    }
    match of_commit(world, &repository, &deploy.branch, &deploy.commit, wanted).await {
        Ok(others) => Ok((others, true)),
        Err(trouble) => {
            warn!(app = %app.name, "GitHub could not be asked for the checks of others: {trouble}");
            Ok((known(), false))
        }
    }
}

/// What the checks of others say of a commit of a branch.
pub(super) async fn of_commit(
    world: &World,
    repository: &Repository,
    branch: &str,
    commit: &Sha,
    wanted: WaitFor,
) -> Result<Others, Trouble> {
    if wanted == WaitFor::Own {
        return Ok(Others::Green);
    }
    let handle = handle_of(repository);
    let github = |error: GitHubError| Trouble::github(&error, world.now());
    let protection = world.github.branch_protection(&handle, branch).await.map_err(github)?;
    let required: Vec<RequiredCheck> = protection
        .required
        .into_iter()
        .map(|required| RequiredCheck { context: required.context, app: required.app })
        .collect();
    if wanted == WaitFor::Required && required.is_empty() {
        return Ok(Others::Green);
    }
    let mut seen: Vec<SeenCheck> = Vec::new();
    for status in world.github.list_statuses(&handle, commit).await.map_err(github)? {
        // The newest of a context stands first and counts.
        if !seen.iter().any(|known| known.context.eq_ignore_ascii_case(&status.context)) {
            let state = CheckState::of_status(&status.state);
            seen.push(SeenCheck { context: status.context, app: None, state });
        }
    }
    for run in world.github.check_runs_of(&handle, commit).await.map_err(github)? {
        let state = CheckState::of_run(&run.status, run.conclusion.as_deref());
        seen.push(SeenCheck { context: run.name, app: run.app_id, state });
    }
    Ok(others(wanted, &required, &seen))
}

/// What GitHub protects an environment with, for what `author` (and who asked first) would deploy of a branch.
pub(super) async fn protection(
    world: &World,
    repository: &Repository,
    environment: &str,
    branch: &str,
    author: &str,
    first: Option<&str>,
) -> Result<Protection, Trouble> {
    let handle = handle_of(repository);
    let found = match world.github.environment_protection(&handle, environment).await {
        Ok(found) => found,
        // Without `actions: read` nothing is seen of it, and an app that was made earlier lacks that.
        Err(GitHubError::Forbidden { .. }) => {
            warn!(repository = %repository.full_name(), "the app may not see what protects {environment} on GitHub");
            return Ok(Protection { environment: environment.to_owned(), ..Protection::default() });
        }
        Err(error) => return Err(Trouble::github(&error, world.now())),
    };
    let branch_refused = match &found.branches {
        DeployableBranches::Any => false,
        DeployableBranches::Protected => {
            let protection = world.github.branch_protection(&handle, branch).await;
            !protection.map_err(|error| Trouble::github(&error, world.now()))?.protected
        }
        DeployableBranches::Named(patterns) => !patterns.iter().any(|pattern| is_named(pattern, branch)),
    };
    let first_reviews = match first {
        Some(first) => reviews(world, &handle, &found.reviewers, first).await?,
        None => false,
    };
    Ok(Protection {
        environment: environment.to_owned(),
        reviewed: !found.reviewers.is_empty(),
        prevent_self_review: found.prevent_self_review,
        author_reviews: reviews(world, &handle, &found.reviewers, author).await?,
        first_reviews,
        wait_minutes: found.wait_minutes,
        branch_refused,
    })
}

async fn reviews(world: &World, handle: &RepoHandle, reviewers: &[Reviewer], login: &str) -> Result<bool, Trouble> {
    for reviewer in reviewers {
        match reviewer {
            Reviewer::User(account) if account.login.eq_ignore_ascii_case(login) => return Ok(true),
            Reviewer::User(_) => {}
            Reviewer::Team(organisation, slug) => {
                match world.github.is_team_member(handle, organisation, slug, login).await {
                    Ok(true) => return Ok(true),
                    Ok(false) | Err(GitHubError::Forbidden { .. }) => {}
                    Err(error) => return Err(Trouble::github(&error, world.now())),
                }
            }
        }
    }
    Ok(false)
}

/// As GitHub matches them: `*` is any text without a slash.
fn is_named(pattern: &str, branch: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == branch,
        Some((before, after)) => branch.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.take_while(|end| !rest[..*end].contains('/')).any(|end| is_named(after, &rest[end..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn a_star_stands_for_no_slash() {
        for (pattern, branch, expected) in [
            ("main", "main", true),
            ("release/*", "release/1.0", true),
            ("release/*", "release/1/0", false),
            ("release/*", "released", false),
            ("*-live", "a-b-live", true),
            ("*", "", true),
        ] {
            assert_eq!(is_named(pattern, branch), expected, "{pattern} {branch}");
        }
    }
}
