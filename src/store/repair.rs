//! Repair: cuts a damaged journal at the damage, on a person's word only, and keeps what was cut.
//!
//! Opening refuses damage because whatever follows it was acknowledged. When there is no backup, losing the end is
//! better than losing everything; GitHub and the operating system tell the rest again at the next sweep.

use super::disk::{self, Disk};
use super::journal::Reading;
use super::{StoreError, index, journal, open};
use std::fs;
use std::path::{Path, PathBuf};

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repaired {
    /// The journal files that end earlier now; empty when nothing was damaged.
    pub cut: Vec<PathBuf>,
    /// Copies of the journal's files as they were, and the index.
    pub set_aside: Vec<PathBuf>,
}

/// Cuts the journal in `directory` where it is damaged or torn, and sets the index aside, so that the next opening builds a
/// new one. The store must be closed. Copies of what is changed go into the folder `quarantine` inside `directory`. Damage
/// that a cut cannot mend (no readable snapshot, a broken format file) is returned as it is.
pub fn repair(directory: &Path) -> Result<Repaired, StoreError> {
    let _lock = open::lock(directory)?;
    let mut repaired = Repaired::default();
    let quarantine = directory.join("quarantine");
    disk::create_folder(&quarantine).map_err(|error| StoreError::io("create", &quarantine, error))?;
    loop {
        let (damaged, offset) = match journal::read(directory) {
            Ok(Reading { torn: Some(torn), .. }) => (torn.path, torn.offset),
            Ok(_) => break,
            Err(StoreError::Damaged { file, offset, .. }) if file.ends_with(".journal") => {
                (PathBuf::from(file), offset)
            }
            Err(error) => return Err(error),
        };
        for segment in journal::segments(directory)?.iter().filter(|segment| segment.path >= damaged) {
            repaired.set_aside.push(set_aside(&quarantine, &segment.path)?);
            if segment.path != damaged {
                fs::remove_file(&segment.path).map_err(|error| StoreError::io("remove", &segment.path, error))?;
            }
        }
        // A gap names the missing file: an empty one in its place is where the journal goes on.
        cut(&damaged, offset)?;
        repaired.cut.push(damaged);
    }
    // The index may know groups that the journal lost, and would rightly refuse to be opened beside it.
    let index = index::folder(directory);
    if index.exists() {
        let aside = free_name(&quarantine, "index");
        fs::rename(&index, &aside).map_err(|error| StoreError::io("set aside", &index, error))?;
        repaired.set_aside.push(aside);
    }
    Ok(repaired)
}

fn free_name(quarantine: &Path, name: &str) -> PathBuf {
    let numbered = (1..).map(|number: u32| quarantine.join(format!("{name}.{number}"))).find(|path| !path.exists());
    numbered.unwrap_or_else(|| quarantine.join(name))
}

/// Copies a file away as it is.
fn set_aside(quarantine: &Path, path: &Path) -> Result<PathBuf, StoreError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let copy = free_name(quarantine, &name);
    let failed = |error| StoreError::io("set aside", path, error);
    let bytes = fs::read(path).map_err(failed)?;
    Disk::default().replace_file(&copy, |out| out.write_all(&bytes)).map_err(failed)?;
    Ok(copy)
}

fn cut(path: &Path, length: u64) -> Result<(), StoreError> {
    let cut = || {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(length)?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), disk::sync_folder)
    };
    cut().map_err(|error| StoreError::io("cut", path, error))
}
