//! The things that webhooks and answers have in common, read from their JSON.

use super::event::{Account, Base, Comment, Head, Pull, Repo, RepoRef};
use super::wire::{Fields, PayloadError};
use crate::domain::{PullNumber, RepositoryId};

/// An account where one must stand; null is the ghost of a deleted one.
pub(super) fn account(parent: &Fields<'_>, name: &str) -> Account {
    parent.maybe(name).and_then(|fields| read_account(&fields)).unwrap_or_else(Account::ghost)
}

pub(super) fn read_account(fields: &Fields<'_>) -> Option<Account> {
    let login = fields.maybe_text("login").or_else(|| fields.maybe_text("name"))?;
    let is_bot = fields.maybe_text("type").as_deref() == Some("Bot") || login.ends_with("[bot]");
    Some(Account { id: fields.maybe_number("id")?, login, is_bot })
}

pub(super) fn repo(fields: &Fields<'_>) -> Result<Repo, PayloadError> {
    let owner = match fields.maybe("owner").and_then(|owner| read_account(&owner)) {
        Some(owner) => owner.login,
        None => match fields.text("full_name")?.split_once('/') {
            Some((owner, _)) => owner.to_owned(),
            None => return Err(fields.field("full_name")?.invalid("owner/name")),
        },
    };
    Ok(Repo {
        id: RepositoryId(fields.number("id")?),
        owner,
        name: fields.text("name")?,
        default_branch: fields.text("default_branch")?,
        private: fields.flag("private"),
        archived: fields.flag("archived"),
        html_url: fields.maybe_text("html_url").unwrap_or_default(),
    })
}

pub(super) fn repo_refs(parent: &Fields<'_>, name: &str) -> Result<Vec<RepoRef>, PayloadError> {
    let mut repositories = Vec::new();
    for fields in parent.items(name) {
        repositories.push(RepoRef {
            id: RepositoryId(fields.number("id")?),
            full_name: fields.text("full_name")?,
            private: fields.flag("private"),
        });
    }
    Ok(repositories)
}

pub(super) fn pull(fields: &Fields<'_>) -> Result<Pull, PayloadError> {
    let head = fields.field("head")?;
    let head_repository = head.maybe("repo");
    let base = fields.field("base")?;
    Ok(Pull {
        number: PullNumber(fields.number("number")?),
        title: fields.maybe_text("title").unwrap_or_default(),
        author: account(fields, "user"),
        head: Head {
            sha: head.sha("sha")?,
            branch: head.text("ref")?,
            repository: head_repository.as_ref().and_then(|repo| repo.maybe_number("id")).map(RepositoryId),
            owner: head_repository
                .and_then(|repo| repo.maybe("owner"))
                .and_then(|owner| read_account(&owner))
                .map(|owner| owner.login),
        },
        base: Base {
            sha: base.sha("sha")?,
            branch: base.text("ref")?,
            repository: base.maybe("repo").and_then(|repo| repo.maybe_number("id")).map(RepositoryId),
        },
        open: fields.text("state")? == "open",
        // Lists leave `merged` out and have only the time.
        merged: fields.flag("merged") || fields.maybe("merged_at").is_some(),
        draft: fields.flag("draft"),
        labels: fields.items("labels").iter().filter_map(|label| label.maybe_text("name")).collect(),
        html_url: fields.maybe_text("html_url").unwrap_or_default(),
        merge_commit_sha: fields.maybe_sha("merge_commit_sha"),
        mergeable: fields.maybe_flag("mergeable"),
        created_at: fields.maybe_time("created_at"),
        updated_at: fields.maybe_time("updated_at"),
        merged_at: fields.maybe_time("merged_at"),
    })
}

pub(super) fn comment(fields: &Fields<'_>) -> Result<Comment, PayloadError> {
    Ok(Comment {
        id: fields.number("id")?,
        body: fields.maybe_text("body").unwrap_or_default(),
        author: account(fields, "user"),
        created_at: fields.maybe_time("created_at"),
        updated_at: fields.maybe_time("updated_at"),
        via_app: fields.maybe("performed_via_github_app").and_then(|app| app.maybe_number("id")),
    })
}
