//! A commit's tree as plain files, without letting git near a work tree.
//!
//! `git ls-tree` lists, `git cat-file --batch` gives the bytes, and the files are written here. So no attribute,
//! filter, LFS smudge, line-ending rule, hook or submodule takes part, and the limits hold before the first byte is
//! written. Links are made last: while files are written there is no link that a path could lead through.

use super::git::{self, Group};
use super::links::{Leads, leads};
use super::source::{Refusal, Source, SourceError};
use crate::domain::Sha;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What a check-out wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckOut {
    /// Files and links.
    pub files: u64,
    pub bytes: u64,
    pub warnings: Vec<CheckOutWarning>,
}

/// What a person should know of a tree that was written nevertheless. At most [`MOST_WARNINGS`] are kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckOutWarning {
    #[error("{} is a submodule, which is not fetched", .path.escape_debug())]
    Submodule { path: String },
    #[error("{} is kept in Git LFS, whose files are not fetched", .path.escape_debug())]
    Lfs { path: String },
}

const MOST_WARNINGS: usize = 20;

/// Linux takes no longer path and no longer name.
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;

/// The listing of a tree may be this long: 100,000 entries of some 600 bytes.
const LISTING_CAP: usize = 64 << 20;

/// One line of `git ls-tree --long -z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: EntryKind,
    pub object: String,
    /// 0 for folders and submodules.
    pub size: u64,
    pub path: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File { executable: bool },
    Link,
    Folder,
    Submodule,
}

/// Reads `<mode> <type> <object> <size>\t<path>\0` again and again.
pub(super) fn parse_entries(listed: &[u8]) -> Result<Vec<Entry>, SourceError> {
    let mut entries = Vec::new();
    for line in listed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let broken = || SourceError::Git {
            what: "list a tree",
            detail: format!(
                "unexpected line {:?}",
                String::from_utf8_lossy(line).chars().take(200).collect::<String>()
            ),
        };
        let tab = line.iter().position(|byte| *byte == b'\t').ok_or_else(broken)?;
        let head = std::str::from_utf8(&line[..tab]).map_err(|_| broken())?;
        let path = line[tab + 1..].to_vec();
        let mut words = head.split_ascii_whitespace();
        let (Some(mode), Some(_), Some(object), Some(size)) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(broken());
        };
        let kind = match mode {
            "100755" => EntryKind::File { executable: true },
            // Old tools wrote 100664; git itself reads every plain file as one of the two.
            _ if mode.starts_with("100") => EntryKind::File { executable: false },
            "120000" => EntryKind::Link,
            "040000" => EntryKind::Folder,
            "160000" => EntryKind::Submodule,
            _ => return Err(SourceError::Hostile { path: show(&path), why: Refusal::Kind }),
        };
        let size = if size == "-" { 0 } else { size.parse().map_err(|_| broken())? };
        entries.push(Entry { kind, object: object.to_owned(), size, path });
    }
    Ok(entries)
}

/// Writes the tree of `commit` into `into`, or nothing.
pub(super) async fn check_out(
    source: &Source,
    mirror: &Path,
    commit: &Sha,
    into: &Path,
) -> Result<CheckOut, SourceError> {
    let entries = list(source, mirror, commit).await?;
    let (plan, mut check_out) = plan(entries, source)?;
    let what = "the check-out";
    let io = |source| SourceError::Io { path: into.to_owned(), source };

    let (objects, to_write) = std::io::pipe().map_err(io)?;
    let (to_read, contents) = std::io::pipe().map_err(io)?;
    let mut command = git::command(&source.git, source.folder(), Some(mirror));
    command.args(["cat-file", "--batch", "--buffer"]).stdin(objects).stdout(contents);
    let mut child = command.spawn().map_err(|error| SourceError::local(what, git::GitError::NotStarted(error)))?;
    // The command holds our copies of the child's pipe ends; while they live, the pipes never end.
    drop(command);
    let group = Group::of(&child);
    let errors = child.stderr.take();

    let folder = into.to_owned();
    let mut writing = tokio::task::spawn_blocking(move || write_or_remove(&folder, &plan, to_write, to_read));
    let limit = source.limits.local;
    let both = async { tokio::join!(&mut writing, git::read_tail(errors), child.wait()) };
    let Ok((written, errors, status)) = tokio::time::timeout(limit, both).await else {
        // With git dead the pipes end, the writer gives up and removes what it wrote.
        group.kill();
        let _ = writing.await;
        return Err(SourceError::TimedOut { what, after: limit });
    };
    group.ended();
    let lfs = written.map_err(|error| SourceError::Git { what, detail: error.to_string() })?;
    let lfs = match (lfs, status) {
        (Ok(lfs), _) => lfs,
        // When git failed, its own words say more than the pipe that ended early.
        (Err(SourceError::Git { .. }), Ok(status)) if !status.success() && !errors.is_empty() => {
            return Err(SourceError::Git { what, detail: errors });
        }
        (Err(error), _) => return Err(error),
    };
    let room = MOST_WARNINGS.saturating_sub(check_out.warnings.len());
    check_out.warnings.extend(lfs.into_iter().take(room));
    Ok(check_out)
}

async fn list(source: &Source, mirror: &Path, commit: &Sha) -> Result<Vec<Entry>, SourceError> {
    let mut command = git::command(&source.git, source.folder(), Some(mirror));
    command.args(["ls-tree", "-r", "-z", "--long", "--full-tree"]);
    git::operands(&mut command, [commit.as_str()]);
    // A tree of a few kilobytes can name itself into billions of paths, so the listing is stopped, not collected.
    // Submodules are listed too and not counted later, hence the room above the limit.
    let most = source.limits.files.saturating_add(1000);
    let listed =
        git::run_listing(command, source.limits.local, LISTING_CAP, most).await.map_err(|error| match error {
            git::GitError::TooMuch(_) | git::GitError::TooMany(_) => too_many(source.limits.files),
            other => SourceError::local("list a tree", other),
        })?;
    parse_entries(&listed)
}

fn too_many(limit: u64) -> SourceError {
    SourceError::TooLarge { what: "the number of files in the tree".to_owned(), limit }
}

/// What is to be written, checked against names and limits; links still lack their targets.
fn plan(entries: Vec<Entry>, source: &Source) -> Result<(Vec<Entry>, CheckOut), SourceError> {
    let mut check_out = CheckOut::default();
    let mut plan = Vec::with_capacity(entries.len());
    for entry in entries {
        let refuse = |why| SourceError::Hostile { path: show(&entry.path), why };
        if !is_name(&entry.path) {
            return Err(refuse(Refusal::Name));
        }
        match entry.kind {
            EntryKind::Submodule => {
                if check_out.warnings.len() < MOST_WARNINGS {
                    check_out.warnings.push(CheckOutWarning::Submodule { path: show(&entry.path) });
                }
                continue;
            }
            EntryKind::Folder => continue,
            EntryKind::Link if entry.size == 0 || entry.size > LONGEST_PATH as u64 => {
                return Err(refuse(Refusal::LinkBroken));
            }
            EntryKind::Link | EntryKind::File { .. } => {}
        }
        check_out.files += 1;
        check_out.bytes = check_out.bytes.saturating_add(entry.size);
        if check_out.files > source.limits.files {
            return Err(too_many(source.limits.files));
        }
        if check_out.bytes > source.limits.bytes {
            return Err(SourceError::TooLarge { what: "the tree".to_owned(), limit: source.limits.bytes });
        }
        plan.push(entry);
    }
    Ok((plan, check_out))
}

/// Whether a path is one that stays below the root by its words alone, and is not git's own.
fn is_name(path: &[u8]) -> bool {
    path.len() <= LONGEST_PATH
        && path.split(|byte| *byte == b'/').all(|name| {
            !matches!(name, b"" | b"." | b"..")
                && name.len() <= LONGEST_NAME
                && !name.contains(&0)
                && !name.eq_ignore_ascii_case(b".git")
        })
}

fn write_or_remove(
    into: &Path,
    plan: &[Entry],
    objects: std::io::PipeWriter,
    contents: std::io::PipeReader,
) -> Result<Vec<CheckOutWarning>, SourceError> {
    make_empty(into).map_err(|source| SourceError::Io { path: into.to_owned(), source })?;
    let written = std::thread::scope(|scope| {
        // Asking and reading go on side by side, or both pipes would fill up and wait for each other.
        scope.spawn(move || {
            let mut objects = BufWriter::new(objects);
            for entry in plan {
                if writeln!(objects, "{}", entry.object).is_err() {
                    return;
                }
            }
        });
        write_all(into, plan, BufReader::with_capacity(1 << 16, contents))
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(into);
    }
    written
}

fn make_empty(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    if fs::read_dir(folder)?.next().is_some() {
        return Err(std::io::Error::new(std::io::ErrorKind::DirectoryNotEmpty, "the folder is not empty"));
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755))
}

fn write_all(into: &Path, plan: &[Entry], mut contents: impl BufRead) -> Result<Vec<CheckOutWarning>, SourceError> {
    let mut warnings = Vec::new();
    let mut links: HashMap<&[u8], Vec<u8>> = HashMap::new();
    let mut parent: PathBuf = into.to_owned();
    for entry in plan {
        let mut body = next_object(&mut contents, entry)?;
        if entry.kind == EntryKind::Link {
            let mut target = Vec::new();
            body.read_to_end(&mut target).map_err(|error| pipe_broken(&error))?;
            if target.len() as u64 != entry.size || target.contains(&0) {
                return Err(SourceError::Hostile { path: show(&entry.path), why: Refusal::LinkBroken });
            }
            if links.insert(&entry.path, target).is_some() {
                return Err(SourceError::Hostile { path: show(&entry.path), why: Refusal::Twice });
            }
        } else {
            let path = into.join(OsStr::from_bytes(&entry.path));
            let folder = path.parent().unwrap_or(into);
            if folder != parent {
                make_folders(into, &entry.path)?;
                parent = folder.to_owned();
            }
            let mut file = create(&path, entry)?;
            let start = write_file(&mut file, &mut body, entry, &path)?;
            if is_lfs_pointer(&start, entry.size) && warnings.len() < MOST_WARNINGS {
                warnings.push(CheckOutWarning::Lfs { path: show(&entry.path) });
            }
        }
        let mut newline = [0];
        contents.read_exact(&mut newline).map_err(|error| pipe_broken(&error))?;
    }
    for entry in plan.iter().filter(|entry| entry.kind == EntryKind::Link) {
        let Some(target) = links.get(entry.path.as_slice()) else { continue };
        let refuse = |why| Err(SourceError::Hostile { path: show(&entry.path), why });
        match leads(&entry.path, target, |path| links.get(path).map(Vec::as_slice)) {
            Leads::Inside => {}
            Leads::Outside => return refuse(Refusal::LinkOutside),
            Leads::Absolute => return refuse(Refusal::LinkAbsolute),
        }
    }
    // All folders first: a link that stands where a folder is needed must fail as a name taken, not be walked through.
    for path in links.keys() {
        make_folders(into, path)?;
    }
    for (path, target) in &links {
        let at = into.join(OsStr::from_bytes(path));
        symlink(OsStr::from_bytes(target), &at).map_err(|source| taken_or_io(path, at, source))?;
    }
    Ok(warnings)
}

/// Reads an answer's head and leaves its bytes to be read.
fn next_object<'a, R: BufRead>(contents: &'a mut R, entry: &Entry) -> Result<std::io::Take<&'a mut R>, SourceError> {
    let mut head = Vec::new();
    contents.by_ref().take(256).read_until(b'\n', &mut head).map_err(|error| pipe_broken(&error))?;
    let expected = format!("{} blob {}\n", entry.object, entry.size);
    if head != expected.as_bytes() {
        return Err(SourceError::Git {
            what: "the check-out",
            detail: format!("asked for {} and got {:?}", expected.trim(), String::from_utf8_lossy(&head)),
        });
    }
    Ok(contents.take(entry.size))
}

/// Makes the folders above `path`, one by one. All of them are ours and fresh, so an existing one is fine.
fn make_folders(into: &Path, path: &[u8]) -> Result<(), SourceError> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    for (end, _) in slashes {
        let folder = into.join(OsStr::from_bytes(&path[..end]));
        match fs::create_dir(&folder) {
            Ok(()) => fs::set_permissions(&folder, Permissions::from_mode(0o755))
                .map_err(|source| SourceError::Io { path: folder, source })?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(&folder).map_err(|source| SourceError::Io { path: folder, source })?;
                if !found.is_dir() {
                    return Err(SourceError::Hostile { path: show(path), why: Refusal::Twice });
                }
            }
            Err(source) => return Err(SourceError::Io { path: folder, source }),
        }
    }
    Ok(())
}

fn create(path: &Path, entry: &Entry) -> Result<File, SourceError> {
    let mode = if entry.kind == (EntryKind::File { executable: true }) { 0o755 } else { 0o644 };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| taken_or_io(&entry.path, path.to_owned(), source))?;
    // The process's umask may have taken bits away that the sandbox's user needs.
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(|source| SourceError::Io { path: path.to_owned(), source })?;
    Ok(file)
}

/// Copies the bytes of one file and returns its first ones.
fn write_file(file: &mut File, body: &mut impl Read, entry: &Entry, path: &Path) -> Result<Vec<u8>, SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    let mut start = Vec::new();
    let mut left = entry.size;
    let mut chunk = vec![0; 1 << 16];
    while left > 0 {
        let count = body.read(&mut chunk).map_err(|error| pipe_broken(&error))?;
        if count == 0 {
            return Err(pipe_broken(&std::io::ErrorKind::UnexpectedEof.into()));
        }
        if start.is_empty() {
            start.extend_from_slice(&chunk[..count.min(64)]);
        }
        file.write_all(&chunk[..count]).map_err(io)?;
        left -= count as u64;
    }
    Ok(start)
}

fn is_lfs_pointer(start: &[u8], size: u64) -> bool {
    size < 1024 && start.starts_with(b"version https://git-lfs.github.com/spec/")
}

fn taken_or_io(name: &[u8], path: PathBuf, source: std::io::Error) -> SourceError {
    match source.kind() {
        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
            SourceError::Hostile { path: show(name), why: Refusal::Twice }
        }
        _ => SourceError::Io { path, source },
    }
}

fn pipe_broken(error: &std::io::Error) -> SourceError {
    SourceError::Git { what: "the check-out", detail: format!("its output ended early: {error}") }
}

/// A path for messages: readable, and never longer than a line.
pub(super) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
