//! Folder trees that an app may have filled: given away, copied, measured. Links are never followed, and a folder is
//! entered by its descriptor, so that swapping one for a link in the meantime leads nowhere.

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{Gid, Uid, fchownat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// Deeper trees are not walked: no honest build makes them.
const MAX_DEPTH: usize = 512;

/// Makes a user the owner of everything in a folder (or of a single file).
pub fn give(folder: BorrowedFd<'_>, uid: Uid, gid: Gid) -> io::Result<()> {
    let top = fstat(folder)?;
    if top.st_uid != uid.as_raw() || top.st_gid != gid.as_raw() {
        fchownat(folder, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    if top.st_mode & nix::libc::S_IFMT != nix::libc::S_IFDIR {
        return Ok(());
    }
    walk(folder, 0, &mut |parent, name, stat| {
        if stat.st_uid != uid.as_raw() || stat.st_gid != gid.as_raw() {
            fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    })
}

/// Bytes on disk of everything in a folder; what can't be read counts nothing.
pub fn bytes(path: &Path) -> u64 {
    let Ok(folder) = nix::fcntl::open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else { return 0 };
    let mut total = 0;
    let _ = walk(folder.as_fd(), 0, &mut |_, _, stat| {
        total += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        Ok(())
    });
    total
}

/// Copies a tree of folders, files and links. `to` exists and is empty.
pub fn copy(from: &Path, to: &Path, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        // What was copied before lies above; only folders are of both.
        match fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() && metadata.is_dir() => {
                copy(&source, &target, owner)?;
                continue;
            }
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if metadata.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy(&source, &target, owner)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(metadata.mode() & 0o777))?;
        } else if metadata.is_file() {
            fs::copy(&source, &target)?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&target, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
    }
    Ok(())
}

type Visit<'a> = dyn FnMut(BorrowedFd<'_>, &std::ffi::CStr, &nix::libc::stat) -> nix::Result<()> + 'a;

fn walk(folder: BorrowedFd<'_>, depth: usize, visit: &mut Visit<'_>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("folders are nested too deeply"));
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut entries = Dir::openat(folder, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    drop(entries);
    for name in names {
        // What vanished in the meantime needs nothing.
        let Ok(stat) = fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        match visit(folder, &name, &stat) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
            && let Ok(child) = nix::fcntl::openat(folder, name.as_c_str(), flags, Mode::empty())
        {
            walk(child.as_fd(), depth + 1, visit)?;
        }
    }
    Ok(())
}
