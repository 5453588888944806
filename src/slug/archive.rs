//! A built folder as one file: `<digest>.tar.zst`, where the digest is the SHA-256 of the file's own bytes.
//!
//! The rule: the same tree gives the same bytes, on any machine and with any number of threads. So names are sorted,
//! owners are 0, times are 1, modes are 755 or 644 (and nothing is set-uid), hard links are files, and links come last.
//! The folder was written by code that nobody trusts: every step down is taken from an open folder and never through a
//! link; what is neither file, folder nor link (a socket, a pipe, a device) is left out and named.
//!
//! Since times are equal in all slugs, whoever unpacks must let files have the time of the unpacking: web servers make
//! ETags of size and time, and would call a changed page of equal length unchanged.

use super::Blame;
use super::links::{Leads, leads};
use super::tree::show;
use crate::domain::SlugDigest;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a slug may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Bytes of the archive: Heroku's 500 MB.
    pub archive_bytes: u64,
    /// Bytes of all files, before they are compressed, with what an archive needs to name them.
    pub folder_bytes: u64,
    /// Unpacked bytes for each byte of the archive, beyond 64 MiB that are free: more is a bomb, or a mistake.
    pub ratio: u64,
    /// Files, folders and links. A large `node_modules` holds some 150,000.
    pub entries: u64,
}

impl Default for ArchiveLimits {
    fn default() -> ArchiveLimits {
        ArchiveLimits { archive_bytes: 500_000_000, folder_bytes: 4 << 30, ratio: 150, entries: 400_000 }
    }
}

/// A slug on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub digest: SlugDigest,
    pub path: PathBuf,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Files and links in it.
    pub files: u64,
    /// Sockets, pipes and devices that are not in it; the first [`MOST_LEFT_OUT`] of them.
    pub left_out: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{} is a link to {}, outside of the app", .path.escape_debug(), .target.escape_debug())]
    Link { path: String, target: String },
    #[error("the archive is larger than {limit} bytes")]
    ArchiveTooLarge { limit: u64 },
    #[error("the built files are larger than {limit} bytes")]
    FolderTooLarge { limit: u64 },
    #[error("the built files are more than {limit} times as large as their archive")]
    Expands { limit: u64 },
    #[error("the build left more than {limit} files")]
    TooMany { limit: u64 },
    #[error("{} lies more than {limit} folders deep", .path.escape_debug())]
    TooDeep { path: String, limit: usize },
    #[error("{} may not be read", .path.escape_debug())]
    Unreadable { path: String },
    #[error("{} changed while it was packed", .path.escape_debug())]
    Changed { path: String },
    #[error("{} is not the slug {expected}: its digest is {found}", .path.display())]
    WrongDigest { path: PathBuf, expected: SlugDigest, found: String },
    #[error("{} can't be read or written", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ArchiveError {
    pub fn who(&self) -> Blame {
        match self {
            ArchiveError::Link { .. }
            | ArchiveError::ArchiveTooLarge { .. }
            | ArchiveError::FolderTooLarge { .. }
            | ArchiveError::Expands { .. }
            | ArchiveError::TooMany { .. }
            | ArchiveError::TooDeep { .. }
            | ArchiveError::Unreadable { .. } => Blame::User,
            // A file that changes means that a process of the build is still alive.
            ArchiveError::Changed { .. } | ArchiveError::WrongDigest { .. } | ArchiveError::Io { .. } => Blame::Bug,
        }
    }
}

/// Higher levels gain a few percent and cost minutes on a large `node_modules`. Changing it changes every digest.
const LEVEL: i32 = 3;

const DEEPEST: usize = 128;
pub const MOST_LEFT_OUT: usize = 20;

/// All times in an archive: one second after 1970, since some tools take 0 for "unknown".
const TIME: u64 = 1;

/// Absolute links may lead here: these folders exist in every sandbox, and nowhere else is such a link followed.
const TOLERATED: [&str; 10] = ["/app", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt", "/etc", "/tmp", "/dev/null"];

const UNFINISHED: &str = ".packing-";

/// Packs `folder` into `into_dir`; see [`pack_within`]. Blocks: it reads every file.
pub fn pack(folder: &Path, into_dir: &Path) -> Result<Packed, ArchiveError> {
    pack_with_toolchains(folder, into_dir, &[], ArchiveLimits::default())
}

/// As [`pack`], where links may also lead into `toolchains`: folders of the machine that every sandbox shows at their
/// own place. A virtual environment of Python links to its interpreter.
pub fn pack_with_toolchains(
    folder: &Path,
    into_dir: &Path,
    toolchains: &[PathBuf],
    limits: ArchiveLimits,
) -> Result<Packed, ArchiveError> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8) as u32);
    pack_within(folder, into_dir, toolchains, limits, threads)
}

/// Packs `folder`, without its `.git`, into `<into_dir>/<digest>.tar.zst`. When this returns the archive is on disk
/// under its final name, whole. `threads` changes nothing but the time it takes.
pub fn pack_within(
    folder: &Path,
    into_dir: &Path,
    toolchains: &[PathBuf],
    limits: ArchiveLimits,
    threads: u32,
) -> Result<Packed, ArchiveError> {
    let (unfinished, file) = draft(into_dir)?;
    let sink = Sink { file: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), bytes: 0, limits };

    let mut encoder = zstd::Encoder::new(sink, LEVEL).map_err(at(&unfinished.0))?;
    // One worker gives the bytes that many give; none at all would give others.
    encoder.multithread(threads.max(1)).map_err(at(&unfinished.0))?;
    encoder.include_checksum(true).map_err(at(&unfinished.0))?;
    let root = nix::fcntl::open(
        folder,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| ArchiveError::Io { path: folder.to_owned(), source: errno.into() })?;
    let mut packing = Packing {
        tar: tar::Builder::new(encoder),
        folder,
        toolchains,
        limits,
        links: BTreeMap::new(),
        entries: 0,
        files: 0,
        bytes: 0,
        left_out: Vec::new(),
    };
    packing.folder(root, &mut Vec::new(), 0)?;
    packing.links()?;

    let Packing { tar, files, left_out, bytes: unpacked, .. } = packing;
    let finished = tar.into_inner().and_then(zstd::Encoder::finish);
    let sink = finished.map_err(|error| write_error(error, &unfinished.0, limits))?;
    if unpacked > sink.bytes.saturating_mul(limits.ratio).saturating_add(64 << 20) {
        return Err(ArchiveError::Expands { limit: limits.ratio });
    }
    let Settled { digest, path, bytes } = settle(sink, unfinished, into_dir)?;
    Ok(Packed { digest, path, bytes, files, left_out })
}

fn at(path: &Path) -> impl Fn(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { path: path.clone(), source }
}

/// A new archive under its passing name.
fn draft(into_dir: &Path) -> Result<(Unfinished, File), ArchiveError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(into_dir).map_err(at(into_dir))?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let unfinished = Unfinished(into_dir.join(format!("{UNFINISHED}{}-{number}", std::process::id())));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&unfinished.0)
        .map_err(at(&unfinished.0))?;
    Ok((unfinished, file))
}

struct Settled {
    digest: SlugDigest,
    path: PathBuf,
    bytes: u64,
}

/// Gives a written archive its final name; it is on disk then.
fn settle(sink: Sink, unfinished: Unfinished, into_dir: &Path) -> Result<Settled, ArchiveError> {
    let Sink { file, hash, bytes, .. } = sink;
    let file = file.into_inner().map_err(|error| at(&unfinished.0)(error.into_error()))?;
    file.sync_all().map_err(at(&unfinished.0))?;
    let digest = digest_of(hash);
    let path = into_dir.join(format!("{digest}.tar.zst"));
    fs::rename(&unfinished.0, &path).map_err(at(&path))?;
    File::open(into_dir).and_then(|folder| folder.sync_all()).map_err(at(into_dir))?;
    Ok(Settled { digest, path, bytes })
}

/// Takes an archive that a sandbox has packed into `into_dir`, under the digest of its bytes. `None` where `from` holds
/// no archive, or one that is too large. What it unpacks to is judged by whoever unpacks it. Blocks: it copies the file.
pub fn take_over(from: &Path, into_dir: &Path, limits: ArchiveLimits) -> Result<Option<SlugDigest>, ArchiveError> {
    let at = at(from);
    let is_archive = |name: &OsStr| name.as_bytes().ends_with(b".tar.zst") && !name.as_bytes().starts_with(b".");
    let names = match fs::read_dir(from) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        Err(error) => return Err(at(error)),
    };
    let Some(name) = names.take(100).find(|name| is_archive(name)) else { return Ok(None) };
    // Its place is a stranger's to write: no link is followed and no pipe waited for.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let Ok(file) = File::options().read(true).custom_flags(flags).open(from.join(name)) else { return Ok(None) };
    let metadata = file.metadata().map_err(at)?;
    if !metadata.is_file() || metadata.len() > limits.archive_bytes {
        return Ok(None);
    }
    let (unfinished, draft) = draft(into_dir)?;
    let mut sink = Sink { file: BufWriter::with_capacity(1 << 20, draft), hash: Sha256::new(), bytes: 0, limits };
    io::copy(&mut file.take(limits.archive_bytes), &mut sink)
        .map_err(|error| write_error(error, &unfinished.0, limits))?;
    Ok(Some(settle(sink, unfinished, into_dir)?.digest))
}

/// Opens a slug whose bytes were just found to be those of `digest`. Blocks: it reads the whole file.
pub fn open(path: &Path, digest: &SlugDigest) -> Result<File, ArchiveError> {
    let at = |source| ArchiveError::Io { path: path.to_owned(), source };
    let mut file = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map_err(at)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 17];
    loop {
        let count = file.read(&mut chunk).map_err(at)?;
        if count == 0 {
            break;
        }
        hash.update(&chunk[..count]);
    }
    let found = hex::encode(hash.finalize());
    if found != digest.as_str() {
        return Err(ArchiveError::WrongDigest { path: path.to_owned(), expected: digest.clone(), found });
    }
    file.rewind().map_err(at)?;
    Ok(file)
}

/// Says whether the file at `path` holds the bytes of `digest`.
pub fn verify(path: &Path, digest: &SlugDigest) -> Result<(), ArchiveError> {
    open(path, digest).map(drop)
}

/// Removes what a killed [`pack`] left in `folder`. Call it while nothing packs, at the start.
pub fn sweep_unfinished(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            // A file that stays is found again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The archive under its passing name, removed unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Counts and hashes what is written.
struct Sink {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
    limits: ArchiveLimits,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        if self.bytes > self.limits.archive_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

struct Packing<'a> {
    tar: tar::Builder<zstd::Encoder<'static, Sink>>,
    folder: &'a Path,
    toolchains: &'a [PathBuf],
    limits: ArchiveLimits,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    entries: u64,
    files: u64,
    bytes: u64,
    left_out: Vec<String>,
}

impl Packing<'_> {
    /// Counts what an entry takes in the archive before it is compressed: its head and its content, in whole blocks,
    /// and two more of each for a long name.
    fn count(&mut self, path: &[u8], size: u64) -> Result<(), ArchiveError> {
        let name = if path.len() > 100 { 512 + (path.len() as u64).next_multiple_of(512) } else { 0 };
        self.bytes = self.bytes.saturating_add(512 + name).saturating_add(size.saturating_add(511) / 512 * 512);
        if self.bytes > self.limits.folder_bytes {
            return Err(ArchiveError::FolderTooLarge { limit: self.limits.folder_bytes });
        }
        Ok(())
    }

    /// Appends what is in an open folder, whose path below the root is `path`.
    fn folder(&mut self, folder: OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<(), ArchiveError> {
        if depth > DEEPEST {
            return Err(ArchiveError::TooDeep { path: show(path), limit: DEEPEST });
        }
        let mut dir = Dir::from_fd(folder).map_err(|errno| self.io(path, errno))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|errno| self.io(path, errno))?;
            let name = entry.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") || (depth == 0 && name.as_bytes() == b".git") {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(ArchiveError::TooMany { limit: self.limits.entries });
            }
            names.push((name, entry.file_type()));
        }
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let length = path.len();
        for (name, kind) in names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            self.entry(&dir, &name, kind, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Dir,
        name: &CString,
        kind: Option<Type>,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let kind = match kind {
            Some(kind) => Some(kind),
            // Some file systems don't tell with the name.
            None => {
                let found = fstatat(dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
                match SFlag::from_bits_truncate(found.map_err(|errno| self.io(path, errno))?.st_mode) & SFlag::S_IFMT {
                    SFlag::S_IFREG => Some(Type::File),
                    SFlag::S_IFDIR => Some(Type::Directory),
                    SFlag::S_IFLNK => Some(Type::Symlink),
                    _ => None,
                }
            }
        };
        // Whatever the kind was a moment ago, these flags neither follow a link nor wait for the other end of a pipe.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match kind {
            Some(Type::Directory) => {
                let opened = openat(dir, name.as_c_str(), flags | OFlag::O_DIRECTORY, Mode::empty());
                let opened = opened.map_err(|errno| self.io(path, errno))?;
                let mut name = path.clone();
                name.push(b'/');
                let mut header = header(tar::EntryType::Directory, 0, 0o755);
                self.count(&name, 0)?;
                self.append(&mut header, &name, io::empty())?;
                self.folder(opened, path, depth + 1)
            }
            Some(Type::File) => {
                let opened = openat(dir, name.as_c_str(), flags, Mode::empty());
                let opened = opened.map_err(|errno| self.io(path, errno))?;
                self.file(opened, path)
            }
            Some(Type::Symlink) => {
                let target = readlinkat(dir, name.as_c_str()).map_err(|errno| self.io(path, errno))?;
                self.links.insert(path.clone(), target.into_vec());
                Ok(())
            }
            _ => {
                if self.left_out.len() < MOST_LEFT_OUT {
                    self.left_out.push(show(path));
                }
                Ok(())
            }
        }
    }

    fn file(&mut self, opened: OwnedFd, path: &[u8]) -> Result<(), ArchiveError> {
        let found = fstat(opened.as_fd()).map_err(|errno| self.io(path, errno))?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(ArchiveError::Changed { path: show(path) });
        }
        let size = u64::try_from(found.st_size).unwrap_or(0);
        self.count(path, size)?;
        let mode = if found.st_mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let mut header = header(tar::EntryType::Regular, size, mode);
        let mut left = size;
        let reader = Exactly { file: File::from(opened).take(size), left: &mut left };
        self.append(&mut header, path, reader)?;
        if left > 0 {
            return Err(ArchiveError::Changed { path: show(path) });
        }
        self.files += 1;
        Ok(())
    }

    fn links(&mut self) -> Result<(), ArchiveError> {
        let links = std::mem::take(&mut self.links);
        for (path, target) in &links {
            let inside = match leads(path, target, |path| links.get(path).map(Vec::as_slice)) {
                Leads::Inside => true,
                Leads::Outside => false,
                // Only the link itself is judged: one that it passes through has its own turn.
                Leads::Absolute => target.first() != Some(&b'/') || is_tolerated(target, self.toolchains),
            };
            if !inside {
                return Err(ArchiveError::Link { path: show(path), target: show(target) });
            }
            self.count(path, target.len() as u64)?;
            let mut header = header(tar::EntryType::Symlink, 0, 0o777);
            let (name, target) = (Path::new(OsStr::from_bytes(path)), Path::new(OsStr::from_bytes(target)));
            self.tar.append_link(&mut header, name, target).map_err(|error| self.write_error(error, path))?;
            self.files += 1;
        }
        Ok(())
    }

    fn append(&mut self, header: &mut tar::Header, path: &[u8], content: impl Read) -> Result<(), ArchiveError> {
        let name = Path::new(OsStr::from_bytes(path));
        self.tar.append_data(header, name, content).map_err(|error| self.write_error(error, path))
    }

    fn io(&self, path: &[u8], errno: Errno) -> ArchiveError {
        match errno {
            Errno::ELOOP | Errno::ENOENT | Errno::ENOTDIR => ArchiveError::Changed { path: show(path) },
            Errno::EACCES => ArchiveError::Unreadable { path: show(path) },
            _ => ArchiveError::Io { path: self.folder.join(OsStr::from_bytes(path)), source: errno.into() },
        }
    }

    fn write_error(&self, error: io::Error, path: &[u8]) -> ArchiveError {
        write_error(error, &self.folder.join(OsStr::from_bytes(path)), self.limits)
    }
}

/// Reads a file's first `left` bytes and counts them down.
struct Exactly<'a> {
    file: io::Take<File>,
    left: &'a mut u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        *self.left -= count as u64;
        Ok(count)
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(TIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn is_tolerated(target: &[u8], toolchains: &[PathBuf]) -> bool {
    let target = Path::new(OsStr::from_bytes(target));
    let known = TOLERATED.iter().map(Path::new).chain(toolchains.iter().map(PathBuf::as_path));
    let plain = target.components().all(|part| !matches!(part, Component::ParentDir));
    plain && known.into_iter().any(|root| target.starts_with(root))
}

fn write_error(error: io::Error, path: &Path, limits: ArchiveLimits) -> ArchiveError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        ArchiveError::ArchiveTooLarge { limit: limits.archive_bytes }
    } else {
        ArchiveError::Io { path: path.to_owned(), source: error }
    }
}

fn digest_of(hash: Sha256) -> SlugDigest {
    hex::encode(hash.finalize()).parse().unwrap_or_else(|_| unreachable!("32 bytes are 64 hex digits"))
}

#[cfg(test)]
mod tests;
