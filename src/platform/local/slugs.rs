//! Published slugs: each archive is unpacked once, as a folder that all processes of the slug share below their own
//! layers.
//!
//! An archive is foreign: it is read entry by entry, every path is walked from the slug's own folder without following
//! a link, and what is no folder, file or link is refused, as are sizes and counts that no slug has. A link may point
//! anywhere, because it is only ever followed inside a sandbox.

use super::Inner;
use crate::domain::SlugDigest;
use crate::platform::contract::PlatformError;
use crate::platform::identity::boot_id;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat, geteuid, linkat, symlinkat};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// What an archive may become. Heroku's slugs have at most 500 MB compressed.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    pub bytes: u64,
    pub entries: u64,
    /// Unpacked bytes for each compressed one, beyond a free allowance of 64 MiB.
    pub ratio: u64,
}

pub const CAPS: Caps = Caps { bytes: 4 << 30, entries: 500_000, ratio: 200 };

const MAX_PATH_BYTES: usize = 4096;
const MAX_DEPTH: usize = 128;
/// Of the records that carry long names.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;

pub fn publish(inner: &Inner, digest: &SlugDigest, archive: &Path) -> Result<(), PlatformError> {
    let target = inner.slug(digest);
    if target.is_dir() {
        return Ok(());
    }
    let unpacking = |source| PlatformError::Io { doing: format!("unpacking {}", archive.display()), source };
    let draft = inner.data_dir.join("slugs").join(format!(".draft-{digest}-{}-{}", std::process::id(), serial()));
    let _ = fs::remove_dir_all(&draft);
    super::make_folder(&draft).map_err(unpacking)?;
    let owner = geteuid().is_root().then(|| (Uid::from_raw(inner.sandbox.uid), Gid::from_raw(inner.sandbox.gid)));
    let done = unpack(archive, &draft, digest, owner, CAPS).map_err(|error| match error {
        Refusal::Archive(reason) => PlatformError::BadArchive(reason),
        Refusal::Io(source) => unpacking(source),
    });
    let done = done.and_then(|()| match fs::rename(&draft, &target) {
        Ok(()) => Ok(()),
        // Published twice at once: the bytes are the same.
        Err(_) if target.is_dir() => fs::remove_dir_all(&draft).map_err(unpacking),
        Err(error) => Err(unpacking(error)),
    });
    if done.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    done
}

/// Takes away what was published before the machine was started: nothing was made sure to be on disk, so after a loss of
/// power files may be empty, and nothing runs from them yet. Archives are safe.
pub fn of_this_boot(data_dir: &Path) -> io::Result<()> {
    let (slugs, mark) = (data_dir.join("slugs"), data_dir.join("slugs.boot"));
    let boot = boot_id();
    let before = match fs::read_to_string(&mark) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_ref() == Some(&boot) {
        return Ok(());
    }
    // An earlier version left no mark; what it published may be in use.
    if before.is_some() {
        for entry in fs::read_dir(&slugs)? {
            fs::remove_dir_all(entry?.path())?;
        }
    }
    fs::write(mark, boot)
}

pub fn unpublish(inner: &Inner, digest: &SlugDigest) -> Result<(), PlatformError> {
    let removing = |source| PlatformError::Io { doing: format!("removing slug {digest}"), source };
    let draft = inner.data_dir.join("slugs").join(format!(".removed-{digest}-{}-{}", std::process::id(), serial()));
    match fs::rename(inner.slug(digest), &draft) {
        Ok(()) => fs::remove_dir_all(&draft).map_err(removing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(removing(error)),
    }
}

pub fn published(inner: &Inner) -> Result<Vec<SlugDigest>, PlatformError> {
    let listing = || PlatformError::io("listing slugs");
    let mut published = Vec::new();
    for entry in fs::read_dir(inner.data_dir.join("slugs")).map_err(listing())? {
        if let Some(digest) = entry.map_err(listing())?.file_name().to_str().and_then(|name| name.parse().ok()) {
            published.push(digest);
        }
    }
    published.sort();
    Ok(published)
}

/// Folders of publications and removals that did not end.
pub fn unfinished(inner: &Inner) -> io::Result<Vec<PathBuf>> {
    let mut unfinished = Vec::new();
    for entry in fs::read_dir(inner.data_dir.join("slugs"))? {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| name.parse::<SlugDigest>().is_err()) {
            unfinished.push(entry.path());
        }
    }
    Ok(unfinished)
}

/// Tells drafts of the same name apart.
pub fn serial() -> u64 {
    static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[derive(Debug)]
pub enum Refusal {
    Archive(String),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Refusal {
        Refusal::Io(error.into())
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Archive(reason.into()))
}

/// Unpacks into an empty folder and compares the archive with its digest at the end.
pub fn unpack(
    archive: &Path,
    into: &Path,
    digest: &SlugDigest,
    owner: Option<(Uid, Gid)>,
    caps: Caps,
) -> Result<(), Refusal> {
    let file = fs::File::open(archive)?;
    let compressed = file.metadata()?.len();
    let most = caps.bytes.min(compressed.saturating_mul(caps.ratio).saturating_add(64 << 20));
    let mut hashing = Hashing { reader: file, hash: Sha256::new() };
    {
        let decoder = zstd::Decoder::new(&mut hashing).map_err(|error| Refusal::Archive(error.to_string()))?;
        // Headers and padding included: an archive of empty entries is bounded too.
        let bounded = Bounded { reader: decoder, left: most };
        let mut tar = tar::Archive::new(bounded);
        let root = open(into, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut unpacking = Unpacking { root, owner, caps, entries: 0, parent: None };
        unpacking.all(&mut tar)?;
        if let Some((uid, gid)) = owner {
            fchown(&unpacking.root, Some(uid), Some(gid))?;
        }
        fchmod(&unpacking.root, Mode::from_bits_truncate(0o755))?;
    }
    io::copy(&mut hashing, &mut io::sink())?;
    let found = hex::encode(hashing.hash.finalize());
    if found != digest.as_str() {
        return refuse(format!("its digest is {found}, not {digest}"));
    }
    Ok(())
}

struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(length as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "it unpacks to more bytes than a slug may have")
        })?;
        Ok(length)
    }
}

struct Unpacking {
    root: OwnedFd,
    owner: Option<(Uid, Gid)>,
    caps: Caps,
    entries: u64,
    /// The folder of the last entry, because neighbours come together.
    parent: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

#[derive(Default)]
struct Names {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Unpacking {
    fn all<R: Read>(&mut self, tar: &mut tar::Archive<R>) -> Result<(), Refusal> {
        let bad = |error: io::Error| Refusal::Archive(error.to_string());
        let mut names = Names::default();
        // Raw: the records that carry long names are read here, with a bound, not by the library without one.
        for entry in tar.entries().map_err(bad)?.raw(true) {
            let mut entry = entry.map_err(bad)?;
            self.entries += 1;
            if self.entries > self.caps.entries {
                return refuse(format!("it has more than {} entries", self.caps.entries));
            }
            let kind = entry.header().entry_type();
            if kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions()
            {
                if entry.size() > MAX_EXTENSION_BYTES {
                    return refuse("a name is too long");
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(bad)?;
                if kind.is_gnu_longname() {
                    names.path = Some(trim_zeros(bytes));
                } else if kind.is_gnu_longlink() {
                    names.link = Some(trim_zeros(bytes));
                } else if kind.is_pax_local_extensions() {
                    read_pax(&bytes, &mut names)?;
                }
                continue;
            }
            let given = std::mem::take(&mut names);
            let path = given.path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
            let parts = parts(&path)?;
            let mode = entry.header().mode().map_err(bad)? & 0o777;
            let link = given.link.or_else(|| entry.header().link_name_bytes().map(|link| link.into_owned()));
            if parts.is_empty() {
                // The root itself, written as `./`.
                if kind.is_dir() {
                    continue;
                }
                return refuse("an entry has no name");
            }
            if kind.is_dir() {
                self.folder(&parts)?;
            } else if kind.is_file() || kind.is_contiguous() {
                self.file(&parts, mode, &mut entry)?;
            } else if kind.is_symlink() {
                self.link(&parts, link)?;
            } else if kind.is_hard_link() {
                self.hard_link(&parts, link)?;
            } else {
                return refuse(format!("{} is a device or another special file", show(&path)));
            }
        }
        Ok(())
    }

    /// Opens the folder an entry stands in, making what is missing. A link on the way is refused.
    fn parent(&mut self, parts: &[Vec<u8>]) -> Result<OwnedFd, Refusal> {
        let folders = &parts[..parts.len() - 1];
        if let Some((known, folder)) = &self.parent
            && known == folders
        {
            return Ok(folder.try_clone()?);
        }
        let mut folder = self.root.try_clone()?;
        for part in folders {
            folder = self.enter(&folder, part)?;
        }
        self.parent = Some((folders.to_vec(), folder.try_clone()?));
        Ok(folder)
    }

    fn enter(&self, folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Refusal> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(folder, name, flags, Mode::empty()) {
            Ok(entered) => Ok(entered),
            Err(Errno::ENOENT) => {
                mkdirat(folder, name, Mode::from_bits_truncate(0o755))?;
                let made = openat(folder, name, flags, Mode::empty())?;
                fchmod(&made, Mode::from_bits_truncate(0o755))?;
                if let Some((uid, gid)) = self.owner {
                    fchown(&made, Some(uid), Some(gid))?;
                }
                Ok(made)
            }
            Err(Errno::ELOOP | Errno::ENOTDIR) => refuse(format!("{} is in the way and is no folder", show(name))),
            Err(error) => Err(error.into()),
        }
    }

    /// Every folder can be entered and written by its owner: an archive that says otherwise could not be removed.
    fn folder(&mut self, parts: &[Vec<u8>]) -> Result<(), Refusal> {
        let (name, parent) = (last(parts), self.parent(parts)?);
        self.enter(&parent, name).map(drop)
    }

    fn file(&mut self, parts: &[Vec<u8>], mode: u32, content: &mut impl Read) -> Result<(), Refusal> {
        let (name, parent) = (last(parts), self.parent(parts)?);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = match openat(&parent, name, flags, Mode::from_bits_truncate(0o600)) {
            Ok(made) => made,
            Err(Errno::EEXIST) => return refuse(format!("{} is there twice", show(name))),
            Err(error) => return Err(error.into()),
        };
        let mut file = fs::File::from(made);
        let mut buffer = vec![0_u8; 128 << 10];
        loop {
            // Errors of the archive and of the disk are told apart: only one of them is worth another try.
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => io::Write::write_all(&mut file, &buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return refuse(error.to_string()),
            }
        }
        // Readable by its owner, and no more than executable: setuid bits are not kept.
        fchmod(&file, Mode::from_bits_truncate((mode & 0o755) | 0o444))?;
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    fn link(&mut self, parts: &[Vec<u8>], target: Option<Vec<u8>>) -> Result<(), Refusal> {
        let (name, parent) = (last(parts), self.parent(parts)?);
        let target =
            target.filter(|target| !target.is_empty() && target.len() < MAX_PATH_BYTES && !target.contains(&0));
        let Some(target) = target else { return refuse(format!("the link {} leads nowhere", show(name))) };
        match symlinkat(target.as_slice(), &parent, name) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return refuse(format!("{} is there twice", show(name))),
            Err(error) => return Err(error.into()),
        }
        if let Some((uid, gid)) = self.owner {
            fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Only to a file that the same archive has brought.
    fn hard_link(&mut self, parts: &[Vec<u8>], target: Option<Vec<u8>>) -> Result<(), Refusal> {
        let target = self::parts(&target.unwrap_or_default())?;
        if target.is_empty() {
            return refuse("a hard link leads nowhere");
        }
        let from = self.parent(&target)?;
        let is_file = fstatat(&from, last(&target), AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG);
        if !is_file {
            return refuse(format!("a hard link leads to {}, which is no file", show(last(&target))));
        }
        let (name, parent) = (last(parts), self.parent(parts)?);
        match linkat(&from, last(&target), &parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => refuse(format!("{} is there twice", show(name))),
            Err(error) => Err(error.into()),
        }
    }
}

fn last(parts: &[Vec<u8>]) -> &[u8] {
    parts.last().map_or(&[], Vec::as_slice)
}

/// A path's names. Absolute paths, `..` and zero bytes are refused.
fn parts(path: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
    use std::os::unix::ffi::OsStrExt;
    let mut parts = Vec::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => parts.push(name.as_bytes().to_vec()),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return refuse(format!("{} leads out of the slug", show(path)));
            }
        }
    }
    if path.len() > MAX_PATH_BYTES || parts.len() > MAX_DEPTH || path.contains(&0) {
        return refuse(format!("{} is no path for a slug", show(path)));
    }
    Ok(parts)
}

fn read_pax(bytes: &[u8], names: &mut Names) -> Result<(), Refusal> {
    for record in tar::PaxExtensions::new(bytes) {
        let record = record.map_err(|error| Refusal::Archive(error.to_string()))?;
        match record.key_bytes() {
            b"path" => names.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => names.link = Some(record.value_bytes().to_vec()),
            // They change where the next entry begins, which is how two readers come to see two archives.
            b"size" => return refuse("an entry's size is told twice"),
            key if key.starts_with(b"GNU.sparse") => return refuse("it has sparse files"),
            _ => {}
        }
    }
    Ok(())
}

fn trim_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn show(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_before_the_machine_was_started_is_published_anew() {
        let folder = tempfile::tempdir().unwrap();
        let slug = folder.path().join("slugs").join("a");
        fs::create_dir_all(&slug).unwrap();
        of_this_boot(folder.path()).unwrap();
        assert!(slug.is_dir(), "an earlier version may have published it since");
        of_this_boot(folder.path()).unwrap();
        assert!(slug.is_dir());
        fs::write(folder.path().join("slugs.boot"), "an earlier boot").unwrap();
        of_this_boot(folder.path()).unwrap();
        assert!(!slug.exists());
        fs::create_dir(&slug).unwrap();
        of_this_boot(folder.path()).unwrap();
        assert!(slug.is_dir());
    }
}
