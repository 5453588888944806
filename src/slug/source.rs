//! Commits, from GitHub into bare mirrors: one folder per repository, named by its number.
//!
//! A commit is asked for by its full SHA and by nothing else: branch names are hostile strings, may have moved, and
//! GitHub gives no order between a webhook and its references. Each commit is fetched alone (`--depth=1`): a first
//! fetch costs the size of one tree instead of all history (rust-analyzer: 5 MB in 1.5 s against 131 MB in 20 s), and a
//! later one sends only objects that the mirror doesn't have, since git offers the commits that it holds; a test
//! counts them. What the mirror can't answer is ancestry; that is GitHub's to say.
//!
//! The rule: a commit is there once its reference `refs/landfall/commits/<sha>` is, which git writes last.

mod error;

use super::Blame;
use super::git;
use crate::clock::Timestamp;
use crate::domain::{RepositoryId, Sha};
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

pub use error::{Refusal, SourceError};
use error::{listing_error, names_local_damage, remote_error};

/// The mirrors of all repositories, and the git that works on them.
#[derive(Debug, Clone)]
pub struct Source {
    folder: PathBuf,
    pub(super) git: PathBuf,
    pub(super) limits: SourceLimits,
    local_remotes: bool,
    /// The operator's own settings of git, such as `http.proxy`.
    settings: Vec<(String, String)>,
    /// One turn per repository: two fetches into one mirror would only wait for each other's locks.
    turns: Arc<Mutex<HashMap<RepositoryId, Arc<tokio::sync::Mutex<()>>>>>,
}

/// What a repository may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    /// One fetch, the waiting for another fetch of the same repository included.
    pub fetch: Duration,
    /// One look into a mirror, or one check-out.
    pub local: Duration,
    /// Bytes of one fetched pack.
    pub pack_bytes: u64,
    /// Files and links of one tree.
    pub files: u64,
    /// Bytes of all files of one tree.
    pub bytes: u64,
    /// Bytes of a single file read by [`Source::file`].
    pub file_bytes: u64,
}

impl Default for SourceLimits {
    fn default() -> SourceLimits {
        SourceLimits {
            fetch: Duration::from_secs(600),
            local: Duration::from_secs(300),
            pack_bytes: 4 << 30,
            files: 100_000,
            bytes: 2 << 30,
            file_bytes: 1 << 20,
        }
    }
}

/// Where a repository is fetched from.
#[derive(Clone)]
pub struct Remote {
    pub repository: RepositoryId,
    /// `https://…` or `http://…`, without a user in it.
    pub url: String,
    /// The value of an `Authorization` header, such as `Basic …`. Sent to the origin of `url` only.
    pub authorization: Option<String>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Remote")
            .field("repository", &self.repository)
            .field("url", &self.url)
            .field("authorization", &self.authorization.as_ref().map(|_| "(hidden)"))
            .finish()
    }
}

/// A commit that the mirror holds, with its whole tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub sha: Sha,
    pub tree: Sha,
    pub committed_at: Timestamp,
}

impl Source {
    /// `folder` holds the mirrors and is made on first use; `git` is the full path of the program.
    pub fn new(folder: PathBuf, git: PathBuf) -> Source {
        Source {
            folder,
            git,
            limits: SourceLimits::default(),
            local_remotes: false,
            settings: Vec::new(),
            turns: Arc::default(),
        }
    }

    pub fn with_limits(self, limits: SourceLimits) -> Source {
        Source { limits, ..self }
    }

    /// Gives git settings for its fetches, since it reads no configuration and no environment of this machine:
    /// `http.proxy`, or `http.sslCAInfo` for a server with a certificate of one's own.
    pub fn with_settings(self, settings: Vec<(String, String)>) -> Source {
        Source { settings, ..self }
    }

    /// Lets `file://` addresses be fetched from. For tests: on a server they would read the server's own disk.
    pub fn allowing_local_remotes(self) -> Source {
        Source { local_remotes: true, ..self }
    }

    /// What the program calls itself, such as `git version 2.39.5`: for the start-up check and `doctor`.
    pub async fn version(&self) -> Result<String, SourceError> {
        self.make_folder()?;
        let mut command = git::command(&self.git, &self.folder, None);
        command.arg("version");
        let output = git::run(command, self.limits.local, 4096)
            .await
            .map_err(|error| SourceError::local("tell its version", error))?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// Makes `commit` available; nothing is transferred when it is.
    pub async fn fetch(&self, remote: &Remote, commit: &Sha) -> Result<Commit, SourceError> {
        // A mirror that can't be read is no reason to stop: it is fetched anew below.
        if let Ok(Some(there)) = self.commit(remote.repository, commit).await {
            return Ok(there);
        }
        let origin = self.check_address(&remote.url)?;
        let turn = self.turn(remote.repository);
        let deadline = Instant::now() + self.limits.fetch;
        let timed_out = || SourceError::TimedOut { what: "the fetch", after: self.limits.fetch };
        let _turn = tokio::time::timeout_at(deadline, turn.lock()).await.map_err(|_| timed_out())?;
        let lock = self.lock(remote.repository, deadline).await?.ok_or_else(timed_out)?;
        match self.commit(remote.repository, commit).await {
            Ok(Some(there)) => return Ok(there),
            Ok(None) => {}
            Err(error) if error.who() == Blame::Retry => return Err(error),
            Err(error) => {
                tracing::warn!(repository = %remote.repository, %error, "dropped an unreadable mirror to fetch it anew");
                self.remove_mirror(remote.repository)?;
            }
        }
        match self.fetch_locked(remote, &origin, commit, &lock, deadline).await {
            Err(SourceError::Git { detail, .. }) if names_local_damage(&detail) => {
                tracing::warn!(repository = %remote.repository, %detail, "dropped a damaged mirror to fetch it anew");
                self.remove_mirror(remote.repository)?;
                self.fetch_locked(remote, &origin, commit, &lock, deadline).await?;
            }
            other => other?,
        }
        self.commit(remote.repository, commit).await?.ok_or_else(|| SourceError::Git {
            what: "fetch",
            detail: format!("commit {commit} is missing from the mirror after its fetch"),
        })
    }

    async fn fetch_locked(
        &self,
        remote: &Remote,
        origin: &str,
        commit: &Sha,
        lock: &File,
        deadline: Instant,
    ) -> Result<(), SourceError> {
        let mirror = self.make_mirror(remote.repository, commit, lock, deadline).await?;
        // While we hold the lock no git of ours works here: what an interrupted one left would block the next for ever.
        sweep_interrupted(&mirror);
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.stdin(duplicate(lock, &mirror)?);
        let scheme = origin.split_once(':').map_or("https", |(scheme, _)| scheme);
        command.arg("-c").arg(format!("protocol.{scheme}.allow=always"));
        let mut settings = self.settings.clone();
        if let Some(authorization) = &remote.authorization {
            settings.push((format!("http.{origin}.extraHeader"), format!("Authorization: {authorization}")));
        }
        git::configure(&mut command, &settings);
        command
            .args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"])
            .args(["--no-auto-maintenance", "--no-show-forced-updates", "--force"]);
        git::operands(&mut command, [remote.url.as_str(), &format!("{commit}:{}", reference(commit))]);
        let left = deadline.saturating_duration_since(Instant::now());
        let fetch = git::run(command, left, 1 << 20);
        tokio::select! {
            outcome = fetch => outcome.map(drop).map_err(|error| remote_error(commit, error, self.limits.fetch)),
            () = outgrown(&mirror, self.limits.pack_bytes) => {
                Err(SourceError::TooLarge { what: "the repository".to_owned(), limit: self.limits.pack_bytes })
            }
        }
    }

    /// The same git for other repositories, whose mirrors lie in a folder of their own.
    pub fn beside(&self, folder: PathBuf) -> Source {
        Source { folder, turns: Arc::default(), ..self.clone() }
    }

    /// The commit that a branch, a tag or `HEAD` (when `reference` is `None`) of a repository leads to, `None` when it
    /// has no such reference. A whole SHA is its own answer.
    pub async fn resolve(&self, url: &str, reference: Option<&str>) -> Result<Option<Sha>, SourceError> {
        let origin = self.check_address(url)?;
        if let Some(commit) = reference.and_then(|reference| reference.parse().ok()) {
            return Ok(Some(commit));
        }
        self.make_folder()?;
        let wanted: Vec<String> = match reference {
            None => vec!["HEAD".to_owned()],
            Some(name) => {
                vec![format!("refs/heads/{name}"), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")]
            }
        };
        let mut command = git::command(&self.git, &self.folder, None);
        let scheme = origin.split_once(':').map_or("https", |(scheme, _)| scheme);
        command.arg("-c").arg(format!("protocol.{scheme}.allow=always"));
        git::configure(&mut command, &self.settings);
        command.args(["ls-remote", "--quiet"]);
        git::operands(&mut command, std::iter::once(url).chain(wanted.iter().map(String::as_str)));
        let listed = git::run(command, Duration::from_secs(60), 1 << 20).await;
        let listed = listed.map_err(|error| listing_error(error, Duration::from_secs(60)))?;
        let listed = String::from_utf8_lossy(&listed);
        // A pattern also finds references that only end like it.
        let find = |name: &String| {
            listed.lines().filter_map(|line| line.split_once('\t')).find(|(_, found)| found == name).map(|(sha, _)| sha)
        };
        Ok(wanted.iter().find_map(find).and_then(|sha| sha.parse().ok()))
    }

    /// The commit as the mirror has it, `None` when it isn't there.
    pub async fn commit(&self, repository: RepositoryId, commit: &Sha) -> Result<Option<Commit>, SourceError> {
        let mirror = self.mirror(repository);
        if !mirror.join("HEAD").exists() {
            return Ok(None);
        }
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["cat-file", "--batch"]);
        let asked = format!("{}\n", reference(commit));
        let answer = git::run_with_input(command, asked.as_bytes(), self.limits.local, 4 << 20)
            .await
            .map_err(|error| SourceError::local("read a commit", error))?;
        let Some((name, kind, body)) = git::parse_batch_answer(&answer) else { return Ok(None) };
        let parsed = (kind == "commit" && name == commit.as_str()).then(|| parse_commit(body)).flatten();
        let Some((tree, committed_at)) = parsed else {
            return Err(SourceError::Damaged { detail: format!("{commit} is a {kind} {name}, not a whole commit") });
        };
        Ok(Some(Commit { sha: commit.clone(), tree, committed_at }))
    }

    /// The tree of a commit that was fetched.
    pub async fn tree_of(&self, repository: RepositoryId, commit: &Sha) -> Result<Sha, SourceError> {
        let found = self.commit(repository, commit).await?;
        found.map(|commit| commit.tree).ok_or_else(|| missing(commit))
    }

    /// The paths of all files of a fetched commit, but for links and names that are not UTF-8.
    pub async fn paths(
        &self,
        repository: RepositoryId,
        commit: &Sha,
    ) -> Result<std::collections::BTreeSet<String>, SourceError> {
        if self.commit(repository, commit).await?.is_none() {
            return Err(missing(commit));
        }
        let mirror = self.mirror(repository);
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["ls-tree", "-r", "-z", "--long", "--full-tree"]);
        git::operands(&mut command, [commit.as_str()]);
        let listed = git::run(command, self.limits.local, 128 << 20)
            .await
            .map_err(|error| SourceError::local("list a tree", error))?;
        let files = super::tree::parse_entries(&listed)?.into_iter();
        let files = files.filter(|entry| matches!(entry.kind, super::tree::EntryKind::File { .. }));
        Ok(files.filter_map(|entry| String::from_utf8(entry.path).ok()).collect())
    }

    /// One file of a fetched commit, `None` when there is nothing at `path`. A link is not followed but refused.
    pub async fn file(
        &self,
        repository: RepositoryId,
        commit: &Sha,
        path: &str,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        if self.commit(repository, commit).await?.is_none() {
            return Err(missing(commit));
        }
        let mirror = self.mirror(repository);
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["ls-tree", "-z", "--long", "--full-tree"]);
        git::operands(&mut command, [commit.as_str(), "--", path]);
        let listed = git::run(command, self.limits.local, 1 << 20)
            .await
            .map_err(|error| SourceError::local("list a tree", error))?;
        let Some(entry) = super::tree::parse_entries(&listed)?.into_iter().find(|entry| entry.path == path.as_bytes())
        else {
            return Ok(None);
        };
        let refuse = |why| Err(SourceError::Hostile { path: path.to_owned(), why });
        match entry.kind {
            super::tree::EntryKind::File { .. } => {}
            super::tree::EntryKind::Link => return refuse(Refusal::LinkNotFile),
            super::tree::EntryKind::Folder | super::tree::EntryKind::Submodule => {
                return refuse(Refusal::FolderNotFile);
            }
        }
        if entry.size > self.limits.file_bytes {
            return Err(SourceError::TooLarge { what: path.to_owned(), limit: self.limits.file_bytes });
        }
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["cat-file", "blob", entry.object.as_str()]);
        let cap = usize::try_from(self.limits.file_bytes).unwrap_or(usize::MAX);
        git::run(command, self.limits.local, cap)
            .await
            .map(Some)
            .map_err(|error| SourceError::local("read a file", error))
    }

    /// Writes a fetched commit's tree as plain files into `into`, which must be empty or not there.
    /// Nothing is left of it when this fails.
    pub async fn check_out(
        &self,
        repository: RepositoryId,
        commit: &Sha,
        into: &Path,
    ) -> Result<super::CheckOut, SourceError> {
        if self.commit(repository, commit).await?.is_none() {
            return Err(missing(commit));
        }
        super::tree::check_out(self, &self.mirror(repository), commit, into).await
    }

    /// The tree of a folder of a fetched commit, `None` where there is no such folder; that of the commit for `""`.
    pub async fn tree_of_folder(
        &self,
        repository: RepositoryId,
        commit: &Sha,
        path: &str,
    ) -> Result<Option<Sha>, SourceError> {
        let Some(found) = self.commit(repository, commit).await? else { return Err(missing(commit)) };
        if path.is_empty() {
            return Ok(Some(found.tree));
        }
        let mut command = git::command(&self.git, &self.folder, Some(&self.mirror(repository)));
        command.args(["ls-tree", "-z", "--long", "--full-tree"]);
        git::operands(&mut command, [commit.as_str(), "--", path]);
        let listed = git::run(command, self.limits.local, 1 << 20)
            .await
            .map_err(|error| SourceError::local("list a tree", error))?;
        let folder =
            |entry: &super::tree::Entry| entry.path == path.as_bytes() && entry.kind == super::tree::EntryKind::Folder;
        let entries = super::tree::parse_entries(&listed)?;
        let object = entries.into_iter().find(folder).map(|entry| entry.object.parse());
        object.transpose().map_err(|_| SourceError::Damaged { detail: format!("{path} has no object name") })
    }

    /// As [`Source::check_out`], a folder of the commit alone.
    pub async fn check_out_folder(
        &self,
        repository: RepositoryId,
        commit: &Sha,
        path: &str,
        into: &Path,
    ) -> Result<super::CheckOut, SourceError> {
        let tree = self.tree_of_folder(repository, commit, path).await?.ok_or_else(|| missing(commit))?;
        super::tree::check_out(self, &self.mirror(repository), &tree, into).await
    }

    /// Packs a mirror anew and drops all commits but `keep`. For a quiet hour: it may take as long as a fetch.
    pub async fn tidy(&self, repository: RepositoryId, keep: &[Sha]) -> Result<(), SourceError> {
        let mirror = self.mirror(repository);
        if !mirror.join("HEAD").exists() {
            return Ok(());
        }
        let deadline = Instant::now() + self.limits.fetch;
        let timed_out = || SourceError::TimedOut { what: "the tidying", after: self.limits.fetch };
        let turn = self.turn(repository);
        let _turn = tokio::time::timeout_at(deadline, turn.lock()).await.map_err(|_| timed_out())?;
        let lock = self.lock(repository, deadline).await?.ok_or_else(timed_out)?;
        sweep_interrupted(&mirror);
        let local = |error| SourceError::local("tidy a mirror", error);
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["for-each-ref", "--format=%(refname)", "refs/landfall/commits/"]);
        let listed = git::run(command, self.limits.local, 64 << 20).await.map_err(local)?;
        let mut orders = Vec::new();
        for name in String::from_utf8_lossy(&listed).lines() {
            if !keep.iter().any(|sha| name == reference(sha)) {
                orders.extend_from_slice(b"delete ");
                orders.extend_from_slice(name.as_bytes());
                orders.push(b'\n');
            }
        }
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.args(["update-ref", "--stdin"]);
        git::run_with_input(command, &orders, self.limits.local, 1 << 20).await.map_err(local)?;
        let mut command = git::command(&self.git, &self.folder, Some(&mirror));
        command.stdin(duplicate(&lock, &mirror)?).args(["gc", "--quiet", "--prune=now"]);
        let left = deadline.saturating_duration_since(Instant::now());
        git::run(command, left, 1 << 20).await.map_err(local)?;
        let path = self.tidied_path(repository);
        std::fs::write(&path, "").map_err(|source| SourceError::Io { path, source })
    }

    /// When a mirror was last tidied, or made; `None` when there is none.
    pub fn tidied_at(&self, repository: RepositoryId) -> Option<std::time::SystemTime> {
        let time = |path: PathBuf| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        time(self.tidied_path(repository)).or_else(|| time(self.mirror(repository).join("HEAD")))
    }

    fn tidied_path(&self, repository: RepositoryId) -> PathBuf {
        self.folder.join(format!("{repository}.tidied"))
    }

    /// Removes all that is kept of a repository.
    pub async fn forget(&self, repository: RepositoryId) -> Result<(), SourceError> {
        let turn = self.turn(repository);
        let _turn = turn.lock().await;
        let deadline = Instant::now() + self.limits.fetch;
        let lock = self.lock(repository, deadline).await?;
        self.remove_mirror(repository)?;
        let path = self.lock_path(repository);
        std::fs::remove_file(&path).map_err(|source| SourceError::Io { path, source })?;
        // Only there once it was tidied.
        let _ = std::fs::remove_file(self.tidied_path(repository));
        drop(lock);
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&repository);
        Ok(())
    }

    /// The repositories that have a mirror: what `doctor` compares with the records.
    pub fn repositories(&self) -> Vec<RepositoryId> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let number = |name: &str| name.strip_suffix(".git")?.parse().ok().map(RepositoryId);
        let mut found: Vec<RepositoryId> =
            entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
        found.sort_unstable();
        found
    }

    fn mirror(&self, repository: RepositoryId) -> PathBuf {
        self.folder.join(format!("{repository}.git"))
    }

    fn lock_path(&self, repository: RepositoryId) -> PathBuf {
        self.folder.join(format!("{repository}.lock"))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn make_folder(&self) -> Result<(), SourceError> {
        std::fs::create_dir_all(&self.folder).map_err(|source| SourceError::Io { path: self.folder.clone(), source })
    }

    fn turn(&self, repository: RepositoryId) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(repository).or_default().clone()
    }

    /// The mirror's lock. A git child gets it as its standard input, so that it stays taken for as long as a child lives
    /// that outlived a killed Landfall. `None` when the deadline passed.
    async fn lock(&self, repository: RepositoryId, deadline: Instant) -> Result<Option<File>, SourceError> {
        self.make_folder()?;
        let path = self.lock_path(repository);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|source| SourceError::Io { path: path.clone(), source })?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(source)) => return Err(SourceError::Io { path, source }),
            }
        }
    }

    async fn make_mirror(
        &self,
        repository: RepositoryId,
        commit: &Sha,
        lock: &File,
        deadline: Instant,
    ) -> Result<PathBuf, SourceError> {
        let mirror = self.mirror(repository);
        if mirror.join("HEAD").exists() {
            return Ok(mirror);
        }
        // Made beside its place and renamed, so that a mirror is never half there.
        let making = self.folder.join(format!("{repository}.making"));
        remove_folder(&making)?;
        let mut command = git::command(&self.git, &self.folder, None);
        command.stdin(duplicate(lock, &mirror)?).args(["init", "--quiet", "--bare", "--template="]);
        command.arg(if commit.as_str().len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" });
        git::operands(&mut command, [&making]);
        let left = deadline.saturating_duration_since(Instant::now()).min(self.limits.local);
        git::run(command, left, 1 << 16).await.map_err(|error| SourceError::local("make a mirror", error))?;
        remove_folder(&mirror)?;
        std::fs::rename(&making, &mirror).map_err(|source| SourceError::Io { path: mirror.clone(), source })?;
        Ok(mirror)
    }

    fn remove_mirror(&self, repository: RepositoryId) -> Result<(), SourceError> {
        remove_folder(&self.mirror(repository))?;
        remove_folder(&self.folder.join(format!("{repository}.making")))
    }

    /// The origin of an address that may be fetched from, such as `https://github.com/`.
    fn check_address(&self, url: &str) -> Result<String, SourceError> {
        if url.len() > 2048 || url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(SourceError::BadRemote("it is too long or holds blanks"));
        }
        let (scheme, rest) = url.split_once("://").ok_or(SourceError::BadRemote("it has no scheme"))?;
        match scheme {
            "https" | "http" => {}
            "file" if self.local_remotes => return Ok("file:///".to_owned()),
            _ => return Err(SourceError::BadRemote("its scheme is neither https nor http")),
        }
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.is_empty() || host.contains('@') {
            return Err(SourceError::BadRemote("it has no host, or a user in it"));
        }
        Ok(format!("{scheme}://{host}/"))
    }
}

/// The reference that keeps a commit from being collected, and says that it is there whole.
fn reference(commit: &Sha) -> String {
    format!("refs/landfall/commits/{commit}")
}

fn missing(commit: &Sha) -> SourceError {
    SourceError::NotYetThere { commit: commit.clone(), detail: "it was not fetched".to_owned() }
}

fn parse_commit(body: &[u8]) -> Option<(Sha, Timestamp)> {
    let head = body.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let (mut tree, mut time) = (None, None);
    for line in head {
        if let Some(rest) = line.strip_prefix(b"tree ") {
            tree = std::str::from_utf8(rest).ok()?.parse().ok();
        } else if line.starts_with(b"committer ") {
            // `committer NAME <ADDRESS> SECONDS ZONE`: the name may hold anything, so the numbers are found from the end.
            let text = String::from_utf8_lossy(line);
            time = text.rsplit(' ').nth(1).and_then(|seconds| seconds.parse::<i64>().ok());
        }
    }
    Some((tree?, Timestamp(time.unwrap_or(0).saturating_mul(1000))))
}

/// Ends when the unfinished packs of a mirror together outgrow `limit` bytes; otherwise never.
async fn outgrown(mirror: &Path, limit: u64) {
    let packs = mirror.join("objects/pack");
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let Ok(entries) = std::fs::read_dir(&packs) else { continue };
        let unfinished = entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"tmp_"));
        let bytes: u64 = unfinished.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
        if bytes > limit {
            return;
        }
    }
}

/// Removes what a killed git leaves: locks of references and of the list of shallow commits, and unfinished packs.
fn sweep_interrupted(mirror: &Path) {
    let mut folders = vec![mirror.to_path_buf()];
    folders.extend(["objects/pack", "objects/info", "refs/landfall/commits"].iter().map(|name| mirror.join(name)));
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if name.ends_with(b".lock") || name.starts_with(b"tmp_") || name.starts_with(b".tmp-") {
                // What can't be removed here is reported by the git that stumbles over it.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn remove_folder(path: &Path) -> Result<(), SourceError> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SourceError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn duplicate(lock: &File, mirror: &Path) -> Result<File, SourceError> {
    lock.try_clone().map_err(|source| SourceError::Io { path: mirror.to_owned(), source })
}

#[cfg(test)]
mod tests;
