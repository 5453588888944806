//! Commit → slug: how code leaves a repository and becomes bytes that can run.
//!
//! `source` brings a commit into a bare mirror and writes its tree as plain files; `build` says how the buildpacks run
//! inside a process (which `platform` starts) and reads what they left; `archive` packs the result under the digest of
//! its bytes. The rule: everything here is written by strangers. git never works in a work tree of theirs, no link of
//! theirs is followed, no name of theirs reaches a shell or a command line, and whatever they can grow has a cap.

mod archive;
mod build;
mod cache;
mod engine;
mod git;
mod links;
mod packs;
mod source;
mod tree;

pub use archive::*;
pub use build::*;
pub use cache::*;
pub use engine::*;
pub use packs::*;
pub use source::*;
pub use tree::{CheckOut, CheckOutWarning};

/// Who must act after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nobody: the same call may succeed later.
    Retry,
    /// The author of the commit.
    User,
    /// The operator or Landfall's authors.
    Bug,
}
