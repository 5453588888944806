//! Commits that somebody wrote down before (`DIR/prepared.json`), which a page offers as buttons: the demonstration's
//! story at the press of a button. The file is read each time, so that a change shows at once.

use serde::Deserialize;
use serde_json::Value;

use super::controls;
use super::pulls::{self, Opening};
use super::state::State;
use super::wire::Problem;
use super::world::{World, named};

#[derive(Clone, Debug, Deserialize)]
pub struct Prepared {
    pub id: String,
    /// `OWNER/NAME`.
    pub repo: String,
    pub branch: String,
    pub title: String,
    #[serde(default)]
    pub description: String,
    pub files: Value,
    #[serde(default)]
    pub opens_pull: Option<OpensPull>,
    /// Where a new branch starts; the default branch without it.
    #[serde(default)]
    pub base: Option<String>,
    /// Who pushes; the first user without it.
    #[serde(default)]
    pub user: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OpensPull {
    pub title: String,
    #[serde(default)]
    pub body: Option<String>,
}

/// All that is written down; an unreadable file offers nothing and says so in the log.
pub fn read(world: &World) -> Vec<Prepared> {
    let Ok(bytes) = std::fs::read(world.data.join("prepared.json")) else { return Vec::new() };
    match serde_json::from_slice(&bytes) {
        Ok(list) => list,
        Err(error) => {
            tracing::error!("prepared.json cannot be read: {error}");
            Vec::new()
        }
    }
}

/// What is on offer in a repository: with a branch its further commits, without one those that open a pull request.
/// A commit once pushed is not offered again.
pub fn offered(all: &[Prepared], state: &State, full_name: &str, branch: Option<&str>) -> Vec<Prepared> {
    all.iter()
        .filter(|prepared| prepared.repo.eq_ignore_ascii_case(full_name))
        .filter(|prepared| !state.pressed.contains(&prepared.id))
        .filter(|prepared| match branch {
            Some(branch) => prepared.opens_pull.is_none() && prepared.branch == branch,
            None => prepared.opens_pull.is_some(),
        })
        .cloned()
        .collect()
}

/// Pushes a prepared commit; returns the pull request it belongs to, if any.
pub fn press(state: &mut State, prepared: &Prepared) -> Result<Option<u64>, Problem> {
    let repository = named(state, &prepared.repo).ok_or_else(Problem::not_found)?;
    let who = super::world::person(state, prepared.user.as_deref());
    let files = controls::files(&prepared.files)?;
    let message = match prepared.description.as_str() {
        "" => prepared.title.clone(),
        description => format!("{}\n\n{description}", prepared.title),
    };
    let new = pulls::NewCommit {
        branch: &prepared.branch,
        base: prepared.base.as_deref(),
        files: &files,
        message: &message,
        force: false,
    };
    pulls::commit_files(state, repository, new, who)?;
    state.pressed.insert(prepared.id.clone());
    let record = state.repository(repository)?;
    if let Some(opens) = &prepared.opens_pull {
        let opening = Opening {
            title: opens.title.clone(),
            body: opens.body.clone(),
            head_repository: repository,
            head_ref: prepared.branch.clone(),
            base_ref: record.default_branch.clone(),
            draft: false,
            maintainer_can_modify: false,
        };
        return pulls::open(state, repository, opening, who).map(Some);
    }
    let pull = record
        .issues
        .values()
        .rev()
        .find(|issue| issue.open && issue.pull.as_ref().is_some_and(|pull| pull.head_ref == prepared.branch))
        .map(|issue| issue.number);
    Ok(pull)
}
