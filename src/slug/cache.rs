//! What builds keep for the next ones: a folder per repository and branch.
//!
//! A build takes its cache away and gives it back when it is over, so two builds never write into the same one. What
//! is in it was written by code that nobody trusts, and whoever writes a cache decides what later builds find: so a
//! branch's cache is written by that branch only, a branch that is new begins with a copy of the default branch's, and
//! a fork's build gets such a copy too, which goes with the build. Losing a cache costs time and nothing else, so no
//! mistake in here fails a build.

use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What caches may cost the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of one cache; a larger one is not kept.
    pub bytes: u64,
    /// Files and folders of one cache.
    pub entries: u64,
    /// Bytes of all caches; the ones that were not used for the longest time go first.
    pub total_bytes: u64,
    /// A cache that nobody used for so long goes.
    pub age: Duration,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits {
            bytes: 2 << 30,
            entries: 500_000,
            total_bytes: 10 << 30,
            age: Duration::from_secs(14 * 24 * 3600),
        }
    }
}

/// Where a build's cache came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheTaken {
    /// The branch's own.
    Own,
    /// A copy of the default branch's.
    Copied,
    /// There was none.
    Empty,
}

const PREFIX: &str = "branch-";
/// Linux takes no longer path, and deeper trees are no caches.
const DEEPEST: usize = 100;

fn place(root: &Path, branch: &str) -> PathBuf {
    // Branch names are hostile strings, and as long as they like.
    root.join(format!("{PREFIX}{}", hex::encode(&Sha256::digest(branch.as_bytes())[..8])))
}

/// Puts a cache at `into`, which must not be there: the one of `branch`, where the build may write one, else a copy of
/// `default`'s. `root` holds all caches of the repository. Blocks.
pub fn take_cache(root: &Path, branch: Option<&str>, default: &str, into: &Path, limits: CacheLimits) -> CacheTaken {
    if let Some(branch) = branch
        && fs::rename(place(root, branch), into).is_ok()
    {
        return CacheTaken::Own;
    }
    if copy_tree(&place(root, default), into, limits).is_ok() {
        return CacheTaken::Copied;
    }
    // Half a copy is worse than none.
    let _ = fs::remove_dir_all(into);
    let _ = fs::create_dir_all(into);
    CacheTaken::Empty
}

/// Keeps what a build made of its cache, unless it is too large. All of the build's processes must be gone. Blocks.
pub fn give_cache_back(root: &Path, branch: &str, from: &Path, limits: CacheLimits, now: SystemTime) {
    if !measure(from, limits).is_ok_and(|bytes| bytes > 0) {
        return;
    }
    let place = place(root, branch);
    // A build of the same branch that was faster had its own: the later one counts.
    let _ = fs::remove_dir_all(&place);
    let kept = fs::create_dir_all(root).and_then(|()| fs::rename(from, &place));
    if kept.is_ok() {
        let _ = fs::set_permissions(&place, Permissions::from_mode(0o755));
        let _ = File::open(&place).and_then(|folder| folder.set_modified(now));
    }
}

/// Removes the caches of all repositories below `all` that are too old, and the longest unused ones for as long as all
/// together are too large; and whatever is no cache. Gives the names of what went. Blocks.
pub fn prune_caches(all: &Path, limits: CacheLimits, now: SystemTime) -> Vec<String> {
    let mut gone = Vec::new();
    let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for repository in entries(all) {
        for cache in entries(&repository) {
            let name = cache.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let used =
                fs::symlink_metadata(&cache).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let old = now.duration_since(used).is_ok_and(|age| age > limits.age);
            match measure(&cache, limits) {
                Ok(bytes) if name.starts_with(PREFIX) && !old => kept.push((used, bytes, cache)),
                _ => remove(&cache, &mut gone),
            }
        }
        // Refused while there is something in it.
        let _ = fs::remove_dir(&repository);
    }
    kept.sort();
    let mut total: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, cache) in kept {
        if total <= limits.total_bytes {
            break;
        }
        total -= bytes;
        remove(&cache, &mut gone);
    }
    gone
}

fn remove(path: &Path, gone: &mut Vec<String>) {
    let removed = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
    if removed.is_ok() {
        gone.push(path.display().to_string());
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn too_large() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}

/// Bytes of the files of a folder; an error when it is more than a cache may be.
fn measure(folder: &Path, limits: CacheLimits) -> io::Result<u64> {
    let (mut bytes, mut count) = (0_u64, 0_u64);
    let mut ahead = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = ahead.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            count += 1;
            bytes = bytes.saturating_add(found.len());
            if bytes > limits.bytes || count > limits.entries || depth > DEEPEST {
                return Err(too_large());
            }
            if found.is_dir() {
                ahead.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(bytes)
}

/// Copies folders, files and links, and nothing else; files share their blocks where the file system can. No process
/// works in `from`: whoever used it is gone, and nobody takes it while its repository's lock is held.
fn copy_tree(from: &Path, to: &Path, limits: CacheLimits) -> io::Result<()> {
    // Neither a link nor a file in the place of the cache.
    if !fs::symlink_metadata(from)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    fs::create_dir(to)?;
    let (mut bytes, mut count) = (0_u64, 0_u64);
    let mut ahead = vec![(from.to_owned(), to.to_owned(), 0)];
    while let Some((from, to, depth)) = ahead.pop() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let found = entry.metadata()?;
            count += 1;
            bytes = bytes.saturating_add(found.len());
            if bytes > limits.bytes || count > limits.entries || depth > DEEPEST {
                return Err(too_large());
            }
            if found.is_dir() {
                fs::create_dir(&target)?;
                ahead.push((source, target, depth + 1));
            } else if found.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else if found.is_file() {
                fs::copy(&source, &target)?;
                fs::set_permissions(&target, Permissions::from_mode(found.permissions().mode() & 0o755 | 0o600))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    fn read(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn a_branch_begins_with_the_default_branch_s_cache_and_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (root, limits) = (folder.path().join("1"), CacheLimits::default());
        let at = |name: &str| folder.path().join(name);
        assert_eq!(take_cache(&root, Some("main"), "main", &at("a"), limits), CacheTaken::Empty);
        write(&at("a").join("npm"), "x", "main's");
        symlink("/etc/passwd", at("a").join("link")).unwrap();
        give_cache_back(&root, "main", &at("a"), limits, NOW);

        assert_eq!(take_cache(&root, Some("change"), "main", &at("b"), limits), CacheTaken::Copied);
        assert_eq!(read(&at("b").join("npm"), "x").as_deref(), Some("main's"));
        assert_eq!(fs::read_link(at("b").join("link")).unwrap(), Path::new("/etc/passwd"), "a link is not followed");
        write(&at("b").join("npm"), "x", "poison");
        give_cache_back(&root, "change", &at("b"), limits, NOW);

        assert_eq!(take_cache(&root, Some("main"), "main", &at("c"), limits), CacheTaken::Own);
        assert_eq!(read(&at("c").join("npm"), "x").as_deref(), Some("main's"), "a branch writes no other's cache");
        assert_eq!(take_cache(&root, Some("change"), "main", &at("d"), limits), CacheTaken::Own);
        assert_eq!(read(&at("d").join("npm"), "x").as_deref(), Some("poison"));
        assert_eq!(take_cache(&root, Some("other"), "main", &at("e"), limits), CacheTaken::Empty, "main's is in use");
    }

    #[test]
    fn a_fork_reads_the_default_branch_s_cache_and_keeps_none() {
        let folder = tempfile::tempdir().unwrap();
        let (root, limits) = (folder.path().join("1"), CacheLimits::default());
        write(&folder.path().join("a"), "x", "main's");
        give_cache_back(&root, "main", &folder.path().join("a"), limits, NOW);
        // A fork's branch may well be called main.
        let taken = folder.path().join("fork");
        assert_eq!(take_cache(&root, None, "main", &taken, limits), CacheTaken::Copied);
        write(&taken, "x", "poison");
        assert_eq!(read(&place(&root, "main"), "x").as_deref(), Some("main's"));
        assert_eq!(entries(&root).len(), 1);
    }

    #[test]
    fn caches_are_pruned_by_size_and_age() {
        let folder = tempfile::tempdir().unwrap();
        let all = folder.path().join("cache");
        let day = Duration::from_secs(24 * 3600);
        let limits = CacheLimits { bytes: 50_000, entries: 10, total_bytes: 70_000, age: 14 * day };
        let now = NOW + 100 * day;
        for (branch, size, age) in [("old", 10, 15), ("first", 30_000, 3), ("second", 30_000, 2), ("third", 30_000, 1)]
        {
            write(&folder.path().join("made"), "x", &"x".repeat(size));
            give_cache_back(&all.join("1"), branch, &folder.path().join("made"), limits, now - age * day);
        }
        write(&folder.path().join("large"), "x", &"x".repeat(60_000));
        give_cache_back(&all.join("2"), "main", &folder.path().join("large"), limits, now);
        assert!(!all.join("2").exists(), "a cache over its limit is not kept");
        write(&all.join("3/npm"), "x", "of an older version of Landfall");
        prune_caches(&all, limits, now);
        let left: Vec<PathBuf> = entries(&all).iter().flat_map(|repository| entries(repository)).collect();
        let mut expected = vec![place(&all.join("1"), "second"), place(&all.join("1"), "third")];
        expected.sort();
        let mut left = left;
        left.sort();
        assert_eq!(left, expected);
        assert_eq!(prune_caches(&all, limits, now), Vec::<String>::new());
    }
}
