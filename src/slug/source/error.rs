//! Why source can't be had, and who must act; what git says on its error stream is read here and nowhere else.

use crate::domain::Sha;
use crate::slug::Blame;
use crate::slug::git::GitError;
use std::path::PathBuf;
use std::time::Duration;

/// Why a commit, or something in it, can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The server doesn't know the commit or the repository, or not yet: references trail behind webhooks.
    #[error("commit {commit} is not there (yet): {detail}")]
    NotYetThere { commit: Sha, detail: String },
    #[error("the repository refuses the credentials: {detail}")]
    Unauthorized { detail: String },
    #[error("the repository can't be reached: {detail}")]
    Unreachable { detail: String },
    #[error("{what} took longer than {} s", .after.as_secs())]
    TimedOut { what: &'static str, after: Duration },
    /// The tree holds something that a check-out refuses.
    #[error("{} {why}", .path.escape_debug())]
    Hostile { path: String, why: Refusal },
    #[error("{what} is larger than {limit}")]
    TooLarge { what: String, limit: u64 },
    /// The server sent objects that git's own check refuses.
    #[error("the repository's objects are damaged: {detail}")]
    Damaged { detail: String },
    #[error("the address of the repository is not usable: {0}")]
    BadRemote(&'static str),
    #[error("git failed to {what}: {detail}")]
    Git { what: &'static str, detail: String },
    #[error("{} can't be written", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a tree may not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("is a link that leads out of the repository")]
    LinkOutside,
    #[error("is a link to an absolute path")]
    LinkAbsolute,
    #[error("is a link without a usable target")]
    LinkBroken,
    #[error("is a link, where a plain file is needed")]
    LinkNotFile,
    #[error("is a folder, where a plain file is needed")]
    FolderNotFile,
    #[error("is not a name that a file can have")]
    Name,
    #[error("is in the tree twice")]
    Twice,
    #[error("is of a kind that git doesn't have")]
    Kind,
}

impl SourceError {
    pub fn who(&self) -> Blame {
        match self {
            SourceError::NotYetThere { .. }
            | SourceError::Unauthorized { .. }
            | SourceError::Unreachable { .. }
            | SourceError::TimedOut { .. } => Blame::Retry,
            SourceError::Hostile { .. } | SourceError::TooLarge { .. } | SourceError::Damaged { .. } => Blame::User,
            SourceError::BadRemote(_) | SourceError::Git { .. } | SourceError::Io { .. } => Blame::Bug,
        }
    }

    /// What an ended git says about itself, for calls that only touch the mirror.
    pub(in crate::slug) fn local(what: &'static str, error: GitError) -> SourceError {
        match error {
            GitError::TimedOut(after) => SourceError::TimedOut { what, after },
            GitError::TooMuch(cap) => SourceError::TooLarge { what: what.to_owned(), limit: cap as u64 },
            other => {
                let detail = describe(&other);
                // Trees that git itself can't read, in a pack that it took.
                if ["in tree entry", "too-short tree", "malformed mode"].iter().any(|sign| detail.contains(sign)) {
                    SourceError::Damaged { detail }
                } else {
                    SourceError::Git { what, detail }
                }
            }
        }
    }
}

fn describe(error: &GitError) -> String {
    match (error, std::error::Error::source(error)) {
        (GitError::Failed { stderr, .. }, _) if !stderr.is_empty() => stderr.clone(),
        (_, Some(cause)) => format!("{error}: {cause}"),
        (_, None) => error.to_string(),
    }
}

pub(super) fn names_local_damage(detail: &str) -> bool {
    ["not a git repository", "is corrupt", "unable to read", "bad object", "missing blob", "missing tree", "is empty"]
        .iter()
        .any(|sign| detail.contains(sign))
}

/// As [`remote_error`], where no commit was asked for yet.
pub(super) fn listing_error(error: GitError, limit: Duration) -> SourceError {
    const NONE: &str = "0000000000000000000000000000000000000000";
    match NONE.parse() {
        Ok(none) => match remote_error(&none, error, limit) {
            SourceError::NotYetThere { detail, .. } => SourceError::Unauthorized { detail },
            other => other,
        },
        Err(_) => SourceError::local("list references", error),
    }
}

/// What git prints when a server refuses, by the messages of git 2.39 to 2.47 in the C locale.
pub(super) fn remote_error(commit: &Sha, error: GitError, limit: Duration) -> SourceError {
    let detail = match error {
        GitError::TimedOut(_) => return SourceError::TimedOut { what: "the fetch", after: limit },
        GitError::Failed { stderr, .. } => stderr,
        other => return SourceError::local("fetch", other),
    };
    let has = |signs: &[&str]| signs.iter().any(|sign| detail.contains(sign));
    if has(&["fsck error", "fsck failed", "inconsistent pack", "pack signature mismatch", "pack has bad object"]) {
        return SourceError::Damaged { detail };
    }
    if has(&[
        "Authentication failed",
        "could not read Username",
        "error: 401",
        "error: 403",
        "terminal prompts disabled",
    ]) {
        return SourceError::Unauthorized { detail };
    }
    if has(&[
        "not our ref",
        "unadvertised object",
        "couldn't find remote ref",
        "Couldn't find remote ref",
        "error: 404",
        "error: 301",
        "error: 302",
        "' not found",
        "does not appear to be a git repository",
        "no such remote ref",
    ]) {
        return SourceError::NotYetThere { commit: commit.clone(), detail };
    }
    if has(&[
        "Could not resolve host",
        "Failed to connect",
        "Couldn't connect",
        "Could not connect",
        "unable to access",
        "Connection refused",
        "Connection reset",
        "Connection timed out",
        "Operation too slow",
        "Empty reply",
        "SSL",
        "TLS",
        "error: 5",
        "error: 429",
        "RPC failed",
        "early EOF",
        "hung up",
        "unexpected disconnect",
        "expected flush",
        "protocol error",
    ]) {
        return SourceError::Unreachable { detail };
    }
    SourceError::Git { what: "fetch", detail }
}
