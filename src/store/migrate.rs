//! The format of the folder, written down in it, so that an older landfall never reads a newer store by guess.
//!
//! `format` holds one line, `landfall store <number>`. A newer number refuses to open; an older one is brought forward
//! step by step here. The file is written when the folder is made and is part of every backup.

use super::StoreError;
use super::disk::Disk;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The format that this version writes.
pub const FORMAT: u32 = 1;

const PREFIX: &str = "landfall store ";

fn path(directory: &Path) -> PathBuf {
    directory.join("format")
}

/// Checks the folder's format, and writes it into a new folder.
pub(super) fn check(disk: &Disk, directory: &Path, is_new: bool) -> Result<(), StoreError> {
    let path = path(directory);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound && is_new => return write(disk, directory),
        Err(error) => return Err(StoreError::io("read", &path, error)),
    };
    match text.strip_prefix(PREFIX).and_then(|rest| rest.trim_end().parse::<u32>().ok()) {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => {
            Err(StoreError::NewerFormat { directory: directory.display().to_string(), found, known: FORMAT })
        }
        // There is no older format yet; the first step forward will stand here.
        _ => Err(StoreError::damaged(&path, 0, format!("it should read {:?}", format!("{PREFIX}{FORMAT}")))),
    }
}

pub(super) fn write(disk: &Disk, directory: &Path) -> Result<(), StoreError> {
    let path = path(directory);
    disk.replace_file(&path, |out| writeln!(out, "{PREFIX}{FORMAT}"))
        .map_err(|error| StoreError::io("write", &path, error))
}
