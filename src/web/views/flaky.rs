//! Flaky tests of a repository, over the runs that are kept.

use crate::domain::Repository;
use crate::reconcile::World;
use crate::web::problem::Problem;
use crate::workflow;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct FlakyPage {
    pub repository: String,
    pub owner: String,
    pub repository_name: String,
    /// Runs that were looked at.
    pub runs: usize,
    pub tests: Vec<workflow::Flaky>,
}

/// Lines of a page.
const MOST: usize = 500;

pub fn flaky(world: &World, repository: &Repository) -> Result<FlakyPage, Problem> {
    let mut runs = world.store.runs_of(repository.id)?;
    runs.retain(|run| run.split.is_some() && run.verdict.is_some() && run.repeats.is_none());
    let mut tests = workflow::flaky(&runs);
    tests.truncate(MOST);
    Ok(FlakyPage {
        repository: repository.full_name(),
        owner: repository.owner.clone(),
        repository_name: repository.name.clone(),
        runs: runs.len(),
        tests,
    })
}
