//! The few file operations that durability rests on, counted, and in tests made to fail on demand.
//!
//! The rule: a write that failed is cut back and may be tried again; a sync that failed is never tried again, because
//! the kernel has dropped the pages it could not write and the next sync would report success.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why bytes did not become durable.
#[derive(Debug)]
pub(super) enum WriteFault {
    /// The file is as it was before, so writing may go on once the cause is gone (a full disk).
    Clean(String),
    /// What is on the disk is unknown, so nothing may be acknowledged until the store is opened again.
    Poisoned(String),
}

/// Counts what was asked of the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    syncs: Arc<AtomicU64>,
    #[cfg(test)]
    pub(super) faults: Arc<std::sync::Mutex<Vec<Fault>>>,
}

/// One failure to come, taken by the first operation that it fits once `after` such operations have passed.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) operation: Operation,
    pub(super) file_contains: &'static str,
    pub(super) after: u32,
    pub(super) error_number: i32,
    /// How many bytes of a failing write still arrive.
    pub(super) partial: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests look at which operation it is"))]
pub(super) enum Operation {
    Write,
    Sync,
    Truncate,
    Create,
    Rename,
}

impl Disk {
    /// How many fsync and fdatasync calls were made on files.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    fn fault(&self, operation: Operation, path: &Path) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let index = faults
            .iter()
            .position(|fault| fault.operation == operation && path.to_string_lossy().contains(fault.file_contains))?;
        if faults[index].after > 0 {
            faults[index].after -= 1;
            return None;
        }
        Some(faults.remove(index))
    }

    #[cfg(test)]
    fn check(&self, operation: Operation, path: &Path) -> io::Result<()> {
        match self.fault(operation, path) {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.error_number)),
            None => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "faults are injected in tests only")]
    fn check(&self, _operation: Operation, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(fault) = self.fault(Operation::Write, path) {
            file.write_all(&bytes[..fault.partial.min(bytes.len())])?;
            return Err(io::Error::from_raw_os_error(fault.error_number));
        }
        let _ = path;
        file.write_all(bytes)
    }

    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.check(Operation::Sync, path)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        file.sync_data()
    }

    /// Writes a whole file so that after a crash either all of it or nothing stands under `path`.
    pub(super) fn replace_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = temporary_name(path);
        let written = (|| {
            self.check(Operation::Create, path)?;
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            let mut buffered = io::BufWriter::with_capacity(1 << 16, CheckedWriter { disk: self, file, path });
            fill(&mut buffered)?;
            let writer = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
            self.sync(&writer.file, path)?;
            self.check(Operation::Rename, path)?;
            fs::rename(&temporary, path)?;
            sync_folder_of(path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

struct CheckedWriter<'a> {
    disk: &'a Disk,
    file: File,
    path: &'a Path,
}

impl Write for CheckedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&mut self.file, self.path, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The name under which a file is written before it is renamed into place; left-overs end in `.tmp`.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Makes the creation, renaming or removal of an entry durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Creates a folder and makes its entry durable.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    sync_folder_of(folder)
}

/// Removes what a killed process left of half-written files.
pub(super) fn remove_temporaries(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A file that only grows, in steps that are durable or cut back.
#[derive(Debug)]
pub(super) struct AppendFile {
    disk: Disk,
    path: PathBuf,
    file: File,
    length: u64,
}

impl AppendFile {
    /// Makes a new, empty file; an older one of that name, which can only be a failed attempt, is emptied.
    pub(super) fn create(disk: &Disk, path: &Path) -> io::Result<AppendFile> {
        disk.check(Operation::Create, path)?;
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        file.set_len(0)?;
        sync_folder_of(path)?;
        Ok(AppendFile { disk: disk.clone(), path: path.to_owned(), file, length: 0 })
    }

    /// Opens an existing file and cuts it to `length`, durably if there was anything to cut.
    pub(super) fn open(disk: &Disk, path: &Path, length: u64) -> io::Result<AppendFile> {
        let file = OpenOptions::new().append(true).open(path)?;
        if file.metadata()?.len() != length {
            file.set_len(length)?;
            disk.sync(&file, path)?;
        }
        Ok(AppendFile { disk: disk.clone(), path: path.to_owned(), file, length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Appends and waits until the disk has it. On an error nothing of it counts.
    pub(super) fn append_durably(&mut self, bytes: &[u8]) -> Result<(), WriteFault> {
        if let Err(error) = self.disk.write(&mut self.file, &self.path, bytes) {
            let cause = format!("writing {} failed: {error}", self.path.display());
            return Err(match self.cut_back(self.length) {
                Ok(()) => WriteFault::Clean(cause),
                Err(second) => WriteFault::Poisoned(format!("{cause}, and cutting it back failed too: {second}")),
            });
        }
        if let Err(error) = self.disk.sync(&self.file, &self.path) {
            // The cut only keeps the next opening from reading pages that may never have reached the disk.
            let _ = self.file.set_len(self.length);
            return Err(WriteFault::Poisoned(format!("syncing {} failed: {error}", self.path.display())));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Takes back everything after `length`.
    pub(super) fn cut_back(&mut self, length: u64) -> io::Result<()> {
        self.disk.check(Operation::Truncate, &self.path)?;
        self.file.set_len(length)?;
        self.disk.sync(&self.file, &self.path)?;
        self.length = length;
        Ok(())
    }
}
