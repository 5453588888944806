//! What a build is: the buildpacks as files, the process that runs them, and what it left.
//!
//! The buildpacks are part of this program, so that a slug depends on one version of one thing; they are written to
//! disk under the digest of their content and mounted read-only. The build runs code of strangers with write access to
//! its result folder: everything read back from there is opened without following links and cut to a size.

use super::engine::Engine;
use super::packs::Pack;
use crate::domain::{
    Procfile, ProcfileError, ProcfileWarning, Sha, is_command, is_process_type, is_reserved_variable, is_variable_name,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the folders of a build appear inside its sandbox.
pub const BUILD_APP: &str = "/app";
pub const BUILD_BUILDPACKS: &str = "/buildpacks";
pub const BUILD_CACHE: &str = "/cache";
pub const BUILD_ENV: &str = "/env";
pub const BUILD_OUT: &str = "/out";
/// Buildpacks from git, one folder for each place in the list.
pub const BUILD_PACKS: &str = "/packs";

/// Where a build leaves what the pruning took out of the code, below the code's root.
const TEST_LAYER: [&str; 2] = [".landfall", "test-layer"];

/// The exit status of a build whose code no buildpack takes; `refused` then says what was looked for.
pub const NOTHING_DETECTED: i32 = 2;

/// A build to be started as a process. Its folders: the checked-out tree writable at [`BUILD_APP`], the buildpacks
/// read-only at [`BUILD_BUILDPACKS`], a cache writable at [`BUILD_CACHE`], config vars read-only at [`BUILD_ENV`] (may be
/// absent), buildpacks from git read-only at [`BUILD_PACKS`], and an empty folder for the results writable at
/// [`BUILD_OUT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPlan {
    /// In order; empty to let the built-in ones detect.
    pub buildpacks: Vec<Pack>,
    pub pruning: Pruning,
    /// The container engine that is configured.
    pub engine: Option<Engine>,
    /// The `Dockerfile` that the repository asks to be built, where it says so itself.
    pub dockerfile: Option<String>,
    /// Such as `heroku-24`.
    pub stack: String,
    pub source_version: Sha,
}

/// What becomes of that which only the tests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// It is taken out of the slug and kept in [`TEST_LAYER`], where a buildpack can tell what it is.
    Apart,
    /// It is taken away.
    Away,
    /// It stays in the slug.
    Nothing,
}

impl BuildPlan {
    pub fn command(&self) -> String {
        format!("{BUILD_BUILDPACKS}/build.sh")
    }

    /// The build's environment besides `PATH`; config vars are not in it, but in the files of [`BUILD_ENV`].
    pub fn environment(&self) -> Vec<(String, String)> {
        let words: Vec<String> = self.buildpacks.iter().enumerate().map(|(number, pack)| pack.word(number)).collect();
        [
            ("HOME", BUILD_APP),
            ("BUILDPACKS", &words.join(" ")),
            (
                "LANDFALL_PRUNE",
                match self.pruning {
                    Pruning::Apart => "apart",
                    Pruning::Away => "1",
                    Pruning::Nothing => "",
                },
            ),
            ("LANDFALL_ENGINE", self.engine.map_or("", Engine::program)),
            ("LANDFALL_DOCKERFILE", self.dockerfile.as_deref().unwrap_or_default()),
            ("STACK", &self.stack),
            ("SOURCE_VERSION", self.source_version.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

struct Embedded {
    path: &'static str,
    content: &'static str,
    executable: bool,
}

macro_rules! embedded {
    ($($kind:ident $path:literal),* $(,)?) => {
        &[$(Embedded {
            path: $path,
            content: include_str!(concat!("../../buildpacks/", $path)),
            executable: embedded!(@ $kind),
        }),*]
    };
    (@ program) => { true };
    (@ file) => { false };
}

/// All files of `buildpacks/`; a test compares the list with the folder.
const FILES: &[Embedded] = embedded![
    file "README.md",
    program "bin/bin/compile",
    program "bin/bin/detect",
    program "bin/bin/release",
    program "bin/bin/test",
    program "bin/bin/test-command",
    file "bin/looks-for",
    program "build.sh",
    program "go/bin/compile",
    program "go/bin/detect",
    program "go/bin/release",
    program "go/bin/test",
    program "go/bin/test-command",
    file "go/looks-for",
    program "java/bin/compile",
    program "java/bin/detect",
    program "java/bin/release",
    program "java/bin/test",
    program "java/bin/test-command",
    file "java/looks-for",
    file "lib/common.sh",
    program "nodejs/bin/compile",
    program "nodejs/bin/detect",
    program "nodejs/bin/release",
    program "nodejs/bin/test",
    program "nodejs/bin/test-command",
    file "nodejs/lib/layer.cjs",
    file "nodejs/lib/package.cjs",
    file "nodejs/looks-for",
    program "php/bin/compile",
    program "php/bin/detect",
    program "php/bin/release",
    program "php/bin/test",
    program "php/bin/test-command",
    file "php/lib/composer.php",
    file "php/lib/serve",
    file "php/looks-for",
    program "procfile/bin/compile",
    program "procfile/bin/detect",
    program "procfile/bin/release",
    program "procfile/bin/test",
    program "procfile/bin/test-command",
    file "procfile/looks-for",
    program "python/bin/compile",
    program "python/bin/detect",
    program "python/bin/release",
    program "python/bin/test",
    program "python/bin/test-command",
    file "python/looks-for",
    program "ruby/bin/compile",
    program "ruby/bin/detect",
    program "ruby/bin/release",
    program "ruby/bin/test",
    program "ruby/bin/test-command",
    file "ruby/looks-for",
    program "rust/bin/compile",
    program "rust/bin/detect",
    program "rust/bin/release",
    program "rust/bin/test",
    program "rust/bin/test-command",
    file "rust/looks-for",
    program "static/bin/compile",
    program "static/bin/detect",
    program "static/bin/release",
    program "static/bin/test",
    program "static/bin/test-command",
    file "static/lib/static-server.mjs",
    file "static/lib/static-server.py",
    file "static/looks-for",
    program "unpack.sh",
];

/// Sixteen hex digits over the buildpacks' names, modes and bytes: a part of what a build's result depends on.
pub fn buildpacks_digest() -> String {
    let mut hash = Sha256::new();
    for file in FILES {
        for part in [file.path, if file.executable { "x" } else { "-" }, file.content] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hex::encode(&hash.finalize()[..8])
}

/// Writes the buildpacks to `<data_dir>/<digest>/`, unless they are there unharmed, and returns that folder.
pub fn buildpacks_folder(data_dir: &Path) -> io::Result<PathBuf> {
    let folder = data_dir.join(buildpacks_digest());
    if is_whole(&folder) {
        return Ok(folder);
    }
    let making = data_dir.join(format!(".making-{}-{}", buildpacks_digest(), std::process::id()));
    remove_if_there(&making)?;
    for file in FILES {
        let path = making.join(file.path);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mode = if file.executable { 0o755 } else { 0o644 };
        let mut made = File::options().write(true).create_new(true).mode(mode).open(&path)?;
        made.write_all(file.content.as_bytes())?;
        // The umask may have taken bits away that the sandbox's user needs.
        made.set_permissions(Permissions::from_mode(mode))?;
        made.sync_all()?;
    }
    open_to_all(&making)?;
    remove_if_there(&folder)?;
    fs::rename(&making, &folder)?;
    Ok(folder)
}

fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|file| {
        let path = folder.join(file.path);
        let mode = |path: &Path| fs::symlink_metadata(path).map(|found| found.permissions().mode() & 0o777).ok();
        mode(&path) == Some(if file.executable { 0o755 } else { 0o644 })
            && fs::read(&path).is_ok_and(|found| found == file.content.as_bytes())
    })
}

fn open_to_all(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_to_all(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes config vars as a file each, as buildpacks read them, into the new folder `folder`. Names that can't be
/// variables are left out. Only the owner may read them.
pub fn write_env_folder(folder: &Path, variables: &[(String, String)]) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    for (name, value) in variables.iter().filter(|(name, _)| is_variable_name(name)) {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
        file.write_all(value.as_bytes())?;
    }
    Ok(())
}

/// Moves what only test nodes shall see out of the code of an ended build, and says whether there is any. May be repeated.
pub fn set_test_layer_apart(code: &Path, into: &Path) -> io::Result<bool> {
    let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if is_folder(into) {
        return Ok(true);
    }
    // A link in one of these places would lead somewhere else.
    let mut layer = code.to_owned();
    for name in TEST_LAYER {
        layer.push(name);
        if !is_folder(&layer) {
            return Ok(false);
        }
    }
    fs::rename(layer, into)?;
    Ok(true)
}

/// What a build left in its result folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildResult {
    /// What is started: the `Procfile`'s types in its order, then the buildpacks' defaults for other types.
    pub process_types: Vec<(String, String)>,
    pub procfile_warnings: Vec<ProcfileWarning>,
    /// Defaults for the app's environment.
    pub config_vars: Vec<(String, String)>,
    /// Those that ran, in order.
    pub buildpacks: Vec<String>,
    pub test_command: Option<String>,
    /// The `Dockerfile` that is to be built, below the code's root.
    pub dockerfile: Option<String>,
    /// What was looked for, when no buildpack takes the code.
    pub refused: Option<Vec<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum BuildResultError {
    /// The author's: the file in the repository is too large.
    #[error("Procfile can't be used: {0}")]
    Procfile(#[from] ProcfileError),
    /// The author's: code of the build put something else in the place of a result.
    #[error("the build left something other than a plain file as {0}")]
    NotAFile(String),
    #[error("the result {name} can't be read")]
    Io {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// A result file may have this many bytes; the `Procfile` is cut one byte after its own cap.
const RESULT_CAP: u64 = 65_537;
const MOST_BUILDPACKS: usize = 20;
const MOST_CONFIG_VARS: usize = 100;

/// Reads the results of an ended build. All of its processes must be gone.
pub fn read_result(out: &Path) -> Result<BuildResult, BuildResultError> {
    let folder = nix::fcntl::open(
        out,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| BuildResultError::Io { name: out.display().to_string(), source: errno.into() })?;
    let mut result = BuildResult::default();
    if let Some(procfile) = read_file(&folder, "Procfile")? {
        let (procfile, warnings) = Procfile::parse(&procfile)?;
        result.process_types = procfile.processes;
        result.procfile_warnings = warnings;
    }
    result.buildpacks = read_lines(&folder, "buildpacks")?.unwrap_or_default();
    result.dockerfile = read_lines(&folder, "dockerfile")?.and_then(|lines| lines.into_iter().next());
    result.refused = read_lines(&folder, "refused")?;
    result.test_command =
        read_lines(&folder, "test_command")?.and_then(|lines| lines.into_iter().next()).filter(|line| is_command(line));
    // Later buildpacks are the app's main ones, so theirs hold.
    for number in (0..MOST_BUILDPACKS).rev() {
        let Some(release) = read_file(&folder, &format!("release.{number}.yml"))? else { continue };
        let release = parse_release(&String::from_utf8_lossy(&release));
        for (name, command) in release.process_types {
            if !result.process_types.iter().any(|(known, _)| *known == name) {
                result.process_types.push((name, command));
            }
        }
        for (name, value) in release.config_vars {
            let is_new = !result.config_vars.iter().any(|(known, _)| *known == name);
            if is_new && result.config_vars.len() < MOST_CONFIG_VARS {
                result.config_vars.push((name, value));
            }
        }
    }
    Ok(result)
}

fn read_lines(folder: &OwnedFd, name: &str) -> Result<Option<Vec<String>>, BuildResultError> {
    let Some(bytes) = read_file(folder, name)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).take(500).collect::<String>();
    let lines = text.lines().map(clean).filter(|line| !line.trim().is_empty());
    Ok(Some(lines.take(MOST_BUILDPACKS).collect()))
}

fn read_file(folder: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, BuildResultError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = match openat(folder, name, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::ENOENT) => return Ok(None),
        // A link, or a socket.
        Err(Errno::ELOOP | Errno::ENXIO) => return Err(BuildResultError::NotAFile(name.to_owned())),
        Err(errno) => return Err(BuildResultError::Io { name: name.to_owned(), source: errno.into() }),
    };
    let io = |source| BuildResultError::Io { name: name.to_owned(), source };
    let found = fstat(&opened).map_err(|errno| io(errno.into()))?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(BuildResultError::NotAFile(name.to_owned()));
    }
    let mut bytes = Vec::new();
    File::from(opened).take(RESULT_CAP).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(bytes))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Release {
    process_types: Vec<(String, String)>,
    config_vars: Vec<(String, String)>,
}

/// Reads the YAML that `bin/release` prints, in the only form that buildpacks use: two levels of keys, values on their
/// key's line, plain or quoted. What has another form is passed over.
fn parse_release(text: &str) -> Release {
    let mut release = Release::default();
    let mut section = "";
    for line in text.lines() {
        let content = line.trim_end();
        if content.trim_start().is_empty() || content.trim_start().starts_with('#') || content.starts_with("---") {
            continue;
        }
        let Some((key, value)) =
            content.split_once(':').filter(|(_, value)| value.is_empty() || value.starts_with(' '))
        else {
            continue;
        };
        if !key.starts_with([' ', '\t']) {
            section = key.trim();
            continue;
        }
        let key = unquote(key.trim());
        let value = unquote(value.trim());
        match section {
            "default_process_types" if is_process_type(&key) && is_command(&value) => {
                release.process_types.push((key, value));
            }
            "config_vars" if is_variable_name(&key) && !is_reserved_variable(&key) && !value.contains('\0') => {
                release.config_vars.push((key, value));
            }
            _ => {}
        }
    }
    release
}

fn unquote(text: &str) -> String {
    let inner = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    if let Some(single) = inner('\'').filter(|_| text.len() > 1) {
        return single.replace("''", "'");
    }
    let Some(double) = inner('"').filter(|_| text.len() > 1) else {
        return text.to_owned();
    };
    let mut plain = String::new();
    let mut characters = double.chars();
    while let Some(c) = characters.next() {
        match (c, c == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some('t') => plain.push('\t'),
                Some(other) => plain.push(other),
                None => {}
            },
            (c, false) => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests;
