//! The life of a pull request: opened, its refs kept, closed, merged. Used by the API, the controls and the pages.

use anyhow::{Context as _, Result};
use serde_json::json;

use super::events::Who;
use super::git::{FileWrite, Signature};
use super::state::{Comment, Issue, Label, Pull, State};
use super::view;
use super::{refs, wire::Problem};

/// What a new pull request says.
pub struct Opening {
    pub title: String,
    pub body: Option<String>,
    pub head_repository: u64,
    pub head_ref: String,
    pub base_ref: String,
    pub draft: bool,
    pub maintainer_can_modify: bool,
}

/// A refusal for the caller, or a fault of the stand-in.
pub type Checked<T> = Result<T, Problem>;

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!("the simulated GitHub failed: {error:#}");
        Self::new(500, format!("Server Error: {error:#}"))
    }
}

/// Opens a pull request after the checks that GitHub makes.
pub fn open(state: &mut State, repository: u64, opening: Opening, who: Who) -> Checked<u64> {
    let record = state.repository(repository)?;
    let tip = |id: u64, branch: &str| -> Option<String> {
        state.repositories.get(&id)?.known_refs.get(&format!("refs/heads/{branch}")).cloned()
    };
    let base_sha =
        tip(repository, &opening.base_ref).ok_or_else(|| Problem::invalid("PullRequest", "base", "invalid"))?;
    let head_sha = tip(opening.head_repository, &opening.head_ref)
        .ok_or_else(|| Problem::invalid("PullRequest", "head", "invalid"))?;
    let head_owner = state.repository(opening.head_repository)?.owner;
    let twin = record.issues.values().any(|issue| {
        issue.open
            && issue.pull.as_ref().is_some_and(|pull| {
                pull.head_repository == Some(opening.head_repository)
                    && pull.head_ref == opening.head_ref
                    && pull.base_ref == opening.base_ref
            })
    });
    if twin {
        let label = format!("{}:{}", state.login(head_owner), opening.head_ref);
        let mut problem = Problem::new(422, "Validation Failed");
        problem.errors.push(json!({
            "resource": "PullRequest",
            "code": "custom",
            "message": format!("A pull request already exists for {label}."),
        }));
        return Err(problem);
    }
    let git = state.git(record);
    if opening.head_repository != repository {
        let source = state.git_of(opening.head_repository)?;
        git.fetch(&source.directory, &head_sha, &format!("refs/pull/{}/head", record.next_number))?;
    }
    if git.is_ancestor(&head_sha, &base_sha) {
        let mut problem = Problem::new(422, "Validation Failed");
        problem.errors.push(json!({
            "resource": "PullRequest",
            "code": "custom",
            "message": format!("No commits between {} and {}", opening.base_ref, opening.head_ref),
        }));
        return Err(problem);
    }
    let pull = Pull {
        id: state.fresh_id(),
        head_repository: Some(opening.head_repository),
        head_owner,
        head_ref: opening.head_ref,
        head_sha: head_sha.clone(),
        base_ref: opening.base_ref,
        base_sha,
        draft: opening.draft,
        merged_at: None,
        merged_by: None,
        merge_commit: None,
        maintainer_can_modify: opening.maintainer_can_modify && opening.head_repository != repository,
        reviews: Vec::new(),
    };
    let number = new_issue(state, repository, opening.title, opening.body, who, Some(pull))?;
    write_refs(state, repository, number)?;
    state.emit_pull("opened", repository, number, who.account, json!({}))?;
    if state.repository(repository)?.suites.values().all(|suite| suite.head_sha != head_sha) {
        refs::request_suite(state, repository, None, &head_sha, None, who.account)?;
    }
    Ok(number)
}

/// A new issue or pull request under the next number.
pub fn new_issue(
    state: &mut State,
    repository: u64,
    title: String,
    body: Option<String>,
    who: Who,
    pull: Option<Pull>,
) -> Result<u64> {
    let id = state.fresh_id();
    let now = state.now();
    let record = state.repository_mut(repository)?;
    let number = record.next_number;
    record.next_number += 1;
    let issue = Issue {
        id,
        number,
        title,
        body,
        user: who.account,
        via_app: who.via_app,
        open: true,
        locked: false,
        labels: Vec::new(),
        created_at: now,
        updated_at: now,
        closed_at: None,
        closed_by: None,
        reactions: Vec::new(),
        pull,
    };
    record.issues.insert(number, issue);
    Ok(number)
}

/// The present tip of the branch that a pull request goes into.
pub fn base_tip(state: &State, repository: u64, number: u64) -> Result<String> {
    let record = state.repository(repository)?;
    let pull = record.issues.get(&number).and_then(|issue| issue.pull.as_ref()).context("not a pull request")?;
    Ok(record
        .known_refs
        .get(&format!("refs/heads/{}", pull.base_ref))
        .cloned()
        .unwrap_or_else(|| pull.base_sha.clone()))
}

/// Writes `refs/pull/N/head`, and `refs/pull/N/merge` while it is open and merges without conflict.
pub fn write_refs(state: &mut State, repository: u64, number: u64) -> Result<()> {
    let record = state.repository(repository)?;
    let issue = record.issues.get(&number).context("no such pull request")?;
    let pull = issue.pull.clone().context("not a pull request")?;
    let open = issue.open;
    let git = state.git(record);
    let head = format!("refs/pull/{number}/head");
    if let Some(source) = pull.head_repository.filter(|source| *source != repository)
        && !git.has(&pull.head_sha)
    {
        git.fetch(&state.git_of(source)?.directory, &pull.head_sha, &head)?;
    }
    git.update_ref(&head, &pull.head_sha, None)?;
    if !open {
        return drop_merge_ref(state, repository, number);
    }
    match view::pulls::merge_result(state, repository, number)? {
        None => {
            set_merge_commit(state, repository, number, None)?;
            drop_merge_ref(state, repository, number)
        }
        Some(tree) => {
            let tip = base_tip(state, repository, number)?;
            let now = state.now();
            let web = Signature { name: "GitHub".into(), email: "noreply@github.localhost".into(), date: now };
            let message = format!("Merge {} into {tip}", pull.head_sha);
            let commit = git.commit_tree(&tree, &[&tip, &pull.head_sha], &message, &web, &web)?;
            git.update_ref(&format!("refs/pull/{number}/merge"), &commit, None)?;
            set_merge_commit(state, repository, number, Some(commit))
        }
    }
}

fn set_merge_commit(state: &mut State, repository: u64, number: u64, commit: Option<String>) -> Result<()> {
    let record = state.repository_mut(repository)?;
    if let Some(pull) = record.issues.get_mut(&number).and_then(|issue| issue.pull.as_mut()) {
        pull.merge_commit = commit;
    }
    Ok(())
}

fn drop_merge_ref(state: &State, repository: u64, number: u64) -> Result<()> {
    let git = state.git_of(repository)?;
    if git.directory.join(format!("refs/pull/{number}/merge")).exists() {
        git.delete_ref(&format!("refs/pull/{number}/merge"))?;
    }
    Ok(())
}

/// Closes; with `merged` as merged by that commit.
pub fn close(state: &mut State, repository: u64, number: u64, who: Who, merged: Option<&str>) -> Result<()> {
    let now = state.now();
    let record = state.repository_mut(repository)?;
    let Some(issue) = record.issues.get_mut(&number).filter(|issue| issue.open) else { return Ok(()) };
    issue.open = false;
    issue.closed_at = Some(now);
    issue.closed_by = Some(who.account);
    issue.updated_at = now;
    let is_pull = issue.pull.is_some();
    if let (Some(pull), Some(commit)) = (issue.pull.as_mut(), merged) {
        pull.merged_at = Some(now);
        pull.merged_by = Some(who.account);
        pull.merge_commit = Some(commit.to_owned());
    }
    if is_pull {
        drop_merge_ref(state, repository, number)?;
        state.emit_pull("closed", repository, number, who.account, json!({}))?;
    } else {
        emit_issue(state, "closed", repository, number, who);
    }
    Ok(())
}

pub fn reopen(state: &mut State, repository: u64, number: u64, who: Who) -> Checked<()> {
    let now = state.now();
    let record = state.repository(repository)?;
    let Some(issue) = record.issues.get(&number).filter(|issue| !issue.open) else { return Ok(()) };
    let is_pull = issue.pull.is_some();
    if let Some(pull) = &issue.pull {
        let tip = pull
            .head_repository
            .and_then(|id| state.repositories.get(&id))
            .and_then(|head| head.known_refs.get(&format!("refs/heads/{}", pull.head_ref)).cloned());
        let Some(tip) = tip.filter(|_| pull.merged_at.is_none()) else {
            return Err(Problem::custom(
                "PullRequest",
                "state",
                "state cannot be changed. The branch was deleted or merged.",
            ));
        };
        if let Some(pull) =
            state.repository_mut(repository)?.issues.get_mut(&number).and_then(|issue| issue.pull.as_mut())
        {
            pull.head_sha = tip;
        }
    }
    if let Some(issue) = state.repository_mut(repository)?.issues.get_mut(&number) {
        issue.open = true;
        issue.closed_at = None;
        issue.closed_by = None;
        issue.updated_at = now;
    }
    if is_pull {
        write_refs(state, repository, number)?;
        state.emit_pull("reopened", repository, number, who.account, json!({}))?;
    } else {
        emit_issue(state, "reopened", repository, number, who);
    }
    Ok(())
}

pub fn emit_issue(state: &mut State, action: &str, repository: u64, number: u64, who: Who) {
    let Ok(record) = state.repository(repository) else { return };
    let Some(issue) = record.issues.get(&number) else { return };
    let fields = json!({"issue": view::pulls::issue(state, record, issue)});
    state.emit("issues", Some(action), repository, who.account, fields);
}

/// Merges by the API or the page: `merge`, `squash` or `rebase`. Returns the new tip of the base branch.
pub fn merge(
    state: &mut State,
    repository: u64,
    number: u64,
    method: &str,
    title: Option<&str>,
    message: Option<&str>,
    who: Who,
) -> Checked<String> {
    let record = state.repository(repository)?;
    let not_mergeable = || Problem::new(405, "Pull Request is not mergeable");
    let Some(issue) = record.issues.get(&number) else { return Err(Problem::not_found()) };
    let Some(pull) = issue.pull.clone() else { return Err(Problem::not_found()) };
    if !issue.open {
        return Err(not_mergeable());
    }
    if pull.draft {
        return Err(Problem::new(405, "Pull Request is still a draft"));
    }
    let issue_title = issue.title.clone();
    let git = state.git(record);
    let tip = base_tip(state, repository, number)?;
    let now = state.now();
    let login = state.login(who.account).to_owned();
    let author = Signature { email: refs::noreply(&login), name: login, date: now };
    let web = Signature { name: "GitHub".into(), email: "noreply@github.localhost".into(), date: now };
    let Some(tree) = view::pulls::merge_result(state, repository, number)? else { return Err(not_mergeable()) };
    let full_head = format!("{}/{}", state.login(pull.head_owner), pull.head_ref);
    let commit = match method {
        "squash" => {
            let title = title.map_or_else(|| format!("{issue_title} (#{number})"), str::to_owned);
            git.commit_tree(&tree, &[&tip], &joined(&title, message), &author, &web)?
        }
        "rebase" => {
            let mut onto = tip.clone();
            let mut shas = git.list(&[&pull.head_sha], &[&tip], None, 1000)?;
            shas.reverse();
            for original in state.commit_list(&git, &shas)? {
                let Some(parent) = original.parents.first() else { continue };
                let tree = git
                    .merge_tree(&onto, &original.sha, Some(parent))?
                    .ok_or_else(|| Problem::new(405, "Rebase conflict"))?;
                let committer = Signature { date: now, ..author.clone() };
                onto = git.commit_tree(&tree, &[&onto], &original.message, &original.author, &committer)?;
            }
            onto
        }
        _ => {
            let title = title.map_or_else(|| format!("Merge pull request #{number} from {full_head}"), str::to_owned);
            let message = message.map_or(issue_title, str::to_owned);
            git.commit_tree(&tree, &[&tip, &pull.head_sha], &joined(&title, Some(&message)), &author, &web)?
        }
    };
    git.update_ref(&format!("refs/heads/{}", pull.base_ref), &commit, Some(&tip))?;
    // The pull request closes before the branch moves on, so that the push does not close it a second time.
    close(state, repository, number, who, Some(&commit))?;
    refs::settle(state, repository, who)?;
    Ok(commit)
}

fn joined(title: &str, message: Option<&str>) -> String {
    match message {
        Some(message) if !message.is_empty() => format!("{title}\n\n{message}"),
        _ => title.to_owned(),
    }
}

/// Adds a comment and tells the app.
pub fn comment(state: &mut State, repository: u64, number: u64, body: String, who: Who) -> Checked<u64> {
    let record = state.repository(repository)?;
    let issue = record.issues.get(&number).ok_or_else(Problem::not_found)?;
    if issue.locked && who.via_app {
        return Err(Problem::new(403, "Unable to create comment because issue is locked."));
    }
    check_body("IssueComment", &body)?;
    let id = state.fresh_id();
    let now = state.now();
    let comment = Comment {
        id,
        issue: number,
        user: who.account,
        via_app: who.via_app,
        body,
        created_at: now,
        updated_at: now,
        reactions: Vec::new(),
    };
    let record = state.repository_mut(repository)?;
    record.comments.insert(id, comment);
    if let Some(issue) = record.issues.get_mut(&number) {
        issue.updated_at = now;
    }
    emit_comment(state, "created", repository, id, who, json!({}));
    Ok(id)
}

/// Blank and overlong bodies are refused: 65,536 characters at most.
pub fn check_body(resource: &str, body: &str) -> Checked<()> {
    if body.trim().is_empty() {
        return Err(Problem::custom(resource, "body", "Body cannot be blank"));
    }
    if body.chars().count() > 65_536 {
        return Err(Problem::custom(resource, "body", "body is too long (maximum is 65536 characters)"));
    }
    Ok(())
}

pub fn emit_comment(
    state: &mut State,
    action: &str,
    repository: u64,
    comment: u64,
    who: Who,
    extra: serde_json::Value,
) {
    let Ok(record) = state.repository(repository) else { return };
    let Some(comment) = record.comments.get(&comment) else { return };
    let Some(issue) = record.issues.get(&comment.issue) else { return };
    let mut fields = json!({
        "issue": view::pulls::issue(state, record, issue),
        "comment": view::pulls::comment(state, record, comment),
    });
    super::events::merge(&mut fields, extra);
    state.emit("issue_comment", Some(action), repository, who.account, fields);
}

/// Adds labels, made on the way when the repository does not have them.
pub fn add_labels(state: &mut State, repository: u64, number: u64, names: &[String], who: Who) -> Checked<()> {
    for name in names {
        ensure_label(state, repository, name, who)?;
        let record = state.repository_mut(repository)?;
        let issue = record.issues.get_mut(&number).ok_or_else(Problem::not_found)?;
        if issue.labels.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            continue;
        }
        issue.labels.push(name.clone());
        emit_labeled(state, "labeled", repository, number, name, who)?;
    }
    Ok(())
}

pub fn ensure_label(state: &mut State, repository: u64, name: &str, who: Who) -> Checked<()> {
    if state.repository(repository)?.labels.contains_key(&name.to_lowercase()) {
        return Ok(());
    }
    let id = state.fresh_id();
    let label = Label { id, name: name.to_owned(), color: "ededed".into(), description: None, default: false };
    state.repository_mut(repository)?.labels.insert(name.to_lowercase(), label);
    let record = state.repository(repository)?;
    if let Some(label) = record.labels.get(&name.to_lowercase()) {
        let fields = json!({"label": view::pulls::label(state, record, label)});
        state.emit("label", Some("created"), repository, who.account, fields);
    }
    Ok(())
}

pub fn emit_labeled(state: &mut State, action: &str, repository: u64, number: u64, name: &str, who: Who) -> Result<()> {
    let record = state.repository(repository)?;
    let label = record.labels.get(&name.to_lowercase()).map(|label| view::pulls::label(state, record, label));
    let is_pull = record.issues.get(&number).is_some_and(|issue| issue.pull.is_some());
    if is_pull {
        state.emit_pull(action, repository, number, who.account, json!({"label": label}))
    } else {
        let issue = record.issues.get(&number).map(|issue| view::pulls::issue(state, record, issue));
        state.emit("issues", Some(action), repository, who.account, json!({"issue": issue, "label": label}));
        Ok(())
    }
}

/// A commit that somebody makes on a branch.
#[derive(Clone, Copy)]
pub struct NewCommit<'a> {
    /// Made when it is not there.
    pub branch: &'a str,
    /// Where a new or forced branch starts; the default branch, or what the branch's tip stood on.
    pub base: Option<&'a str>,
    pub files: &'a [FileWrite],
    pub message: &'a str,
    /// The commit replaces the tip instead of following it.
    pub force: bool,
}

/// Commits files on a branch as a person would push them.
pub fn commit_files(state: &mut State, repository: u64, new: NewCommit<'_>, who: Who) -> Checked<String> {
    if !super::git::is_branch_name(new.branch) {
        return Err(Problem::invalid("Reference", "ref", "invalid"));
    }
    let record = state.repository(repository)?;
    let git = state.git(record);
    let refs = git.refs();
    let name = format!("refs/heads/{}", new.branch);
    let resolve = |text: &str| refs.get(&format!("refs/heads/{text}")).cloned().or_else(|| git.peel(text));
    let present = refs.get(&name).cloned();
    let parent = match (&present, new.base) {
        (Some(tip), _) if !new.force => Some(tip.clone()),
        (_, Some(base)) => Some(resolve(base).ok_or_else(|| Problem::invalid("Reference", "base", "invalid"))?),
        (Some(tip), None) => state.commit(&git, tip)?.parents.first().cloned(),
        (None, None) => refs.get(&format!("refs/heads/{}", record.default_branch)).cloned(),
    };
    let login = state.login(who.account).to_owned();
    let author = Signature { email: refs::noreply(&login), name: login, date: state.now() };
    let commit = git.commit_files(parent.as_deref(), new.files, new.message, &author, &author)?;
    git.update_ref(&name, &commit, Some(present.as_deref().unwrap_or(super::git::ZERO)))?;
    refs::settle(state, repository, who)?;
    Ok(commit)
}
