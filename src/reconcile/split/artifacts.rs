//! Files that are kept of a run, as its nodes hand them over: written by the control plane, under names of its own, so
//! that no name, link or size of a node's reaches the machine's disk.
//!
//! A file comes in pieces, each with its place, and a piece that is told twice changes nothing. Once it is whole it gets
//! its record; what never became whole goes with the folder of its run.

use super::Who;
use crate::ci::wire::{Answer, KEPT_PIECE, MOST_KEPT_FILES, NotKept};
use crate::domain::*;
use crate::outside;
use crate::reconcile::{Trouble, World, start};
use crate::store::StoreError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a path.
const MOST_NAME: usize = 500;

/// The record of a kept file, among the parts of its run.
const RECORDS: &str = "artifact/";

pub(in crate::reconcile) fn folder(world: &World, run: RunNumber) -> PathBuf {
    world.folder("artifacts").join(run.to_string())
}

/// Where the bytes of a kept file are.
pub fn file(world: &World, run: RunNumber, artifact: &Artifact) -> PathBuf {
    folder(world, run).join(artifact.node.to_string()).join(&artifact.id)
}

/// What is kept of a run; nothing once its folder is gone.
pub fn kept(world: &World, run: RunNumber) -> Result<Vec<Artifact>, StoreError> {
    if !folder(world, run).exists() {
        return Ok(Vec::new());
    }
    let mut kept: Vec<Artifact> = world.store.run_parts(run, RECORDS)?;
    kept.sort_by(|one, other| (one.node, &one.path).cmp(&(other.node, &other.path)));
    Ok(kept)
}

/// What a node reads when its tests have ended.
pub(super) fn wanted(world: &World, run: &TestRun) -> Result<Answer, Trouble> {
    let settings = start::slug_of(world, run)?.map(|slug| slug.settings().tests).unwrap_or_default();
    // Where files are dealt, each batch tells its own results.
    Ok(Answer::Wanted { artifacts: settings.artifacts, junit: settings.junit.filter(|_| run.split.is_none()) })
}

/// Takes one piece of a file.
pub(super) async fn keep(world: &World, run: &TestRun, who: Who, piece: Piece) -> Result<Answer, Trouble> {
    let refused = |why| Ok(Answer::NotKept { why });
    let settings = start::slug_of(world, run)?.map(|slug| slug.settings().tests).unwrap_or_default();
    if settings.artifacts.is_none() {
        return refused(NotKept::NotAsked);
    }
    if !is_name(&piece.path) {
        return refused(NotKept::BadName);
    }
    let Ok(bytes) = STANDARD.decode(&piece.bytes) else { return refused(NotKept::OutOfOrder) };
    if bytes.len() > KEPT_PIECE {
        return refused(NotKept::TooLarge);
    }
    // Pieces of one node come one after the other, whatever number of connections it has.
    let _alone = world.locks.lock(&format!("artifacts {} {}", who.run, who.node)).await;
    let id: String = hex::encode(Sha256::digest(&piece.path)).chars().take(32).collect();
    let most = world.config.tests.artifacts_mb << 20;
    let (own, name, last, offset) =
        (folder(world, who.run).join(who.node.to_string()), id.clone(), piece.last, piece.offset);
    outside::point("keep artifact").await;
    let written = tokio::task::spawn_blocking(move || write(&own, &name, offset, &bytes, last, most)).await??;
    outside::point("artifact kept").await;
    let bytes = match written {
        Err(why) => return refused(why),
        Ok(bytes) => bytes,
    };
    if last {
        let (number, key) = (who.run, format!("{RECORDS}{:03}/{id}", who.node));
        let artifact = Artifact { node: who.node, id, path: piece.path, bytes };
        world.commit(move |tx| tx.put_run_part(number, &key, &artifact)).await?;
    }
    Ok(Answer::Taken)
}

/// A piece of a file as a node tells it.
pub(super) struct Piece {
    pub path: String,
    pub offset: u64,
    pub bytes: String,
    pub last: bool,
}

/// A path below the root, in its plainest form.
fn is_name(path: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..");
    path.len() <= MOST_NAME && !path.chars().any(char::is_control) && path.split('/').all(part)
}

/// The file's length so far, or why it is not taken.
fn write(
    folder: &Path,
    name: &str,
    offset: u64,
    bytes: &[u8],
    last: bool,
    most: u64,
) -> io::Result<Result<u64, NotKept>> {
    std::fs::create_dir_all(folder)?;
    let (whole, part) = (folder.join(name), folder.join(format!("{name}.part")));
    let end = offset.saturating_add(bytes.len() as u64);
    let (mut others, mut total) = (0, 0);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path() != whole && entry.path() != part {
            others += 1;
            total += entry.metadata()?.len();
        }
    }
    if others >= MOST_KEPT_FILES {
        return Ok(Err(NotKept::TooMany));
    }
    if end.saturating_add(total) > most {
        std::fs::remove_file(&part).or_else(gone)?;
        return Ok(Err(NotKept::TooLarge));
    }
    let there = match std::fs::metadata(&part) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // It was whole before the control plane died, and its node says the last piece again.
    if last && offset > 0 && there.is_none() && std::fs::metadata(&whole).is_ok_and(|metadata| metadata.len() == end) {
        return Ok(Ok(end));
    }
    if offset > there.unwrap_or(0) {
        return Ok(Err(NotKept::OutOfOrder));
    }
    let file = std::fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(&part)?;
    file.write_all_at(bytes, offset)?;
    file.set_len(end)?;
    if last {
        file.sync_all()?;
        std::fs::rename(&part, &whole)?;
    }
    Ok(Ok(end))
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_in_pieces_and_a_piece_that_is_told_twice_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let put = |offset, bytes: &[u8], last| write(folder.path(), "a", offset, bytes, last, 100).unwrap();
        assert_eq!(put(0, b"one ", false), Ok(4));
        assert_eq!(put(0, b"one ", false), Ok(4));
        assert_eq!(put(9, b"three", false), Err(NotKept::OutOfOrder));
        assert_eq!(put(4, b"two", true), Ok(7));
        assert_eq!(put(4, b"two", true), Ok(7));
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"one two");
        // Another process of the node makes it anew.
        assert_eq!(put(0, b"new", true), Ok(3));
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"new");
        assert!(!folder.path().join("a.part").exists());
    }

    #[test]
    fn a_node_cannot_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, offset, bytes: &[u8], last| write(folder.path(), name, offset, bytes, last, 10).unwrap();
        assert_eq!(put("a", 0, &[0; 6], true), Ok(6));
        assert_eq!(put("b", 0, &[0; 4], false), Ok(4));
        assert_eq!(put("b", 4, &[0; 1], true), Err(NotKept::TooLarge));
        assert_eq!(put("b", u64::MAX, &[0; 1], true), Err(NotKept::TooLarge));
        assert!(!folder.path().join("b.part").exists());
        assert_eq!(put("c", 0, &[0; 4], true), Ok(4));
        for number in 2..MOST_KEPT_FILES {
            assert_eq!(put(&number.to_string(), 0, &[], true), Ok(0));
        }
        assert_eq!(put("one more", 0, &[], true), Err(NotKept::TooMany));
        assert_eq!(put("a", 0, &[0; 5], true), Ok(5), "one that is there may come again");
    }

    #[test]
    fn a_name_is_a_path_below_the_root_in_its_plainest_form() {
        for name in ["a", "out/a b.png", "ü/<script>.html"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\nb", "a\0b", &"x".repeat(501)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
