//! The bare repositories, through the system's `git` with plain arguments: never a shell, never the caller's
//! environment, no hooks, no user or system configuration. Revisions handed in are full object names that were
//! looked up before, so no text from outside is ever parsed by git as a revision or an option.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::git_text::{parse_commit, parse_tree, patch_chunks, quoted, signature_line};

/// The object name that stands for "nothing" in push events.
pub const ZERO: &str = "0000000000000000000000000000000000000000";
/// The tree without entries; git knows it without storing it.
pub const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Signature {
    pub name: String,
    pub email: String,
    /// Seconds since 1970.
    pub date: i64,
}

#[derive(Clone, Debug)]
pub struct Commit {
    pub sha: String,
    pub tree: String,
    pub parents: Vec<String>,
    pub author: Signature,
    pub committer: Signature,
    pub message: String,
}

/// One changed file between two trees.
#[derive(Clone, Debug)]
pub struct FileChange {
    /// `added`, `removed`, `modified`, `renamed`, `copied` or `changed`.
    pub status: &'static str,
    pub path: String,
    pub previous: Option<String>,
    pub sha: String,
    pub additions: u64,
    pub deletions: u64,
    pub patch: Option<String>,
}

#[derive(Clone, Debug)]
pub struct TreeEntry {
    pub mode: String,
    pub kind: String,
    pub sha: String,
    pub size: Option<u64>,
    pub path: String,
}

/// What a commit did to paths: added, removed, modified.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub modified: Vec<String>,
}

/// A new content for a path, or its removal.
#[derive(Clone, Debug)]
pub struct FileWrite {
    pub path: String,
    pub content: Option<Vec<u8>>,
    pub executable: Option<bool>,
}

#[derive(Clone, Debug)]
pub struct Git {
    pub directory: PathBuf,
}

/// Environment and configuration of every git process of the stand-in.
pub fn hardened() -> Command {
    let mut command = Command::new("git");
    command.args(HARDENING);
    command.env_clear().envs(ENVIRONMENT.iter().copied());
    command
}

/// Arguments in front of the subcommand.
pub const HARDENING: [&str; 18] = [
    "-c",
    "safe.directory=*",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "uploadpack.allowAnySHA1InWant=true",
    "-c",
    "uploadpack.allowFilter=true",
    "-c",
    "receive.hideRefs=refs/pull",
    "-c",
    "http.receivepack=true",
    "-c",
    "gc.auto=0",
    "-c",
    "protocol.file.allow=always",
    "-c",
    "receive.denyDeleteCurrent=ignore",
];

pub const ENVIRONMENT: [(&str, &str); 8] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/nonexistent"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];

/// True for a full object name.
pub fn is_sha(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// True for a name that git accepts as a branch: the rules of `git check-ref-format` that matter here.
pub fn is_branch_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['-', '/', '.'])
        && !name.ends_with(['/', '.'])
        && !name.ends_with(".lock")
        && !name.contains("..")
        && !name.contains("//")
        && !name.contains("/.")
        && !name.contains("@{")
        && name != "@"
        && !name.chars().any(|character| character.is_control() || " ~^:?*[\\\u{7f}".contains(character))
}

impl Git {
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Makes an empty bare repository.
    pub fn init(directory: &Path, default_branch: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let git = Self::at(directory);
        git.run(&["init", "--quiet", "--bare", &format!("--initial-branch={default_branch}"), "."])?;
        Ok(git)
    }

    /// Copies all branches and tags of another bare repository.
    pub fn copy(from: &Path, to: &Path) -> Result<Self> {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let source = from.to_string_lossy().into_owned();
        let target = to.to_string_lossy().into_owned();
        Self::at(from).run(&["clone", "--quiet", "--bare", "--", &source, &target])?;
        Ok(Self::at(to))
    }

    pub fn run(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.run_with(arguments, &[], b"")
    }

    fn text(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(arguments)?).trim_end_matches('\n').to_owned())
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, String)], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(arguments, environment, input)?;
        if !output.status.success() {
            bail!(
                "git {} failed: {}",
                arguments.first().unwrap_or(&""),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }

    fn output(&self, arguments: &[&str], environment: &[(&str, String)], input: &[u8]) -> Result<std::process::Output> {
        let mut child = hardened()
            .args(arguments)
            .current_dir(&self.directory)
            .envs(environment.iter().map(|(key, value)| (*key, value.as_str())))
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start git")?;
        let feeder = child.stdin.take().map(|mut stdin| {
            let input = input.to_vec();
            // A second thread, so that a full output pipe cannot block the input.
            std::thread::spawn(move || {
                let _ = stdin.write_all(&input);
            })
        });
        let output = child.wait_with_output()?;
        if let Some(feeder) = feeder {
            let _ = feeder.join();
        }
        Ok(output)
    }

    /// Branches, tags and pull refs, read straight from the files of the repository.
    pub fn refs(&self) -> BTreeMap<String, String> {
        let mut refs = self.packed();
        for kind in ["refs/heads", "refs/tags", "refs/pull"] {
            collect_loose(&self.directory.join(kind), kind, &mut refs);
        }
        refs.retain(|name, _| {
            ["refs/heads/", "refs/tags/", "refs/pull/"].iter().any(|prefix| name.starts_with(prefix))
        });
        refs
    }

    /// Branches and tags alone: what a person can move.
    pub fn branches_and_tags(&self) -> BTreeMap<String, String> {
        let mut refs = self.packed();
        for kind in ["refs/heads", "refs/tags"] {
            collect_loose(&self.directory.join(kind), kind, &mut refs);
        }
        refs.retain(|name, _| name.starts_with("refs/heads/") || name.starts_with("refs/tags/"));
        refs
    }

    fn packed(&self) -> BTreeMap<String, String> {
        let Ok(packed) = std::fs::read_to_string(self.directory.join("packed-refs")) else { return BTreeMap::new() };
        packed
            .lines()
            .filter(|line| !line.starts_with(['#', '^']))
            .filter_map(|line| line.split_once(' '))
            .map(|(sha, name)| (name.to_owned(), sha.to_owned()))
            .collect()
    }

    /// The branch that HEAD names, whether or not it exists.
    pub fn head_branch(&self) -> Option<String> {
        let head = std::fs::read_to_string(self.directory.join("HEAD")).ok()?;
        head.trim().strip_prefix("ref: refs/heads/").map(str::to_owned)
    }

    pub fn set_head(&self, branch: &str) -> Result<()> {
        self.run(&["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")]).map(drop)
    }

    /// The commit that an object name (of a commit or an annotated tag, maybe shortened) leads to.
    pub fn peel(&self, sha: &str) -> Option<String> {
        if !(4..=40).contains(&sha.len()) || !sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.text(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{sha}^{{commit}}")]).ok()
    }

    /// The kind of an object, if it is there.
    pub fn kind(&self, sha: &str) -> Option<String> {
        self.text(&["cat-file", "-t", sha]).ok()
    }

    pub fn commits(&self, shas: &[String]) -> Result<Vec<Commit>> {
        if shas.is_empty() {
            return Ok(Vec::new());
        }
        let mut input = shas.join("\n");
        input.push('\n');
        let output = self.run_with(&["cat-file", "--batch"], &[], input.as_bytes())?;
        let mut commits = Vec::with_capacity(shas.len());
        let mut rest = output.as_slice();
        for sha in shas {
            let end = rest.iter().position(|byte| *byte == b'\n').context("short answer of cat-file")?;
            let header = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 1..];
            let mut words = header.split(' ');
            let (_, kind, size) = (words.next(), words.next(), words.next());
            if kind != Some("commit") {
                bail!("{sha} is not a commit");
            }
            let size: usize = size.and_then(|size| size.parse().ok()).context("no size in the answer of cat-file")?;
            let body = rest.get(..size).context("short answer of cat-file")?;
            commits.push(parse_commit(sha, &String::from_utf8_lossy(body)));
            rest = rest.get(size + 1..).unwrap_or_default();
        }
        Ok(commits)
    }

    /// Commits reachable from `tips` and not from `excluded`, newest first.
    pub fn list(&self, tips: &[&str], excluded: &[&str], path: Option<&str>, most: usize) -> Result<Vec<String>> {
        let mut input = String::new();
        for tip in tips {
            let _ = writeln!(input, "{tip}");
        }
        for tip in excluded {
            let _ = writeln!(input, "^{tip}");
        }
        let most = format!("--max-count={most}");
        if let Some(path) = path {
            let _ = write!(input, "--\n:(literal){path}\n");
        }
        let output = self.run_with(&["rev-list", "--topo-order", most.as_str(), "--stdin"], &[], input.as_bytes())?;
        Ok(String::from_utf8_lossy(&output).lines().map(str::to_owned).collect())
    }

    pub fn merge_base(&self, left: &str, right: &str) -> Option<String> {
        self.text(&["merge-base", left, right]).ok().and_then(|text| text.lines().next().map(str::to_owned))
    }

    pub fn is_ancestor(&self, ancestor: &str, descendant: &str) -> bool {
        self.run(&["merge-base", "--is-ancestor", ancestor, descendant]).is_ok()
    }

    /// How many commits only `left` has, and how many only `right`.
    pub fn left_right(&self, left: &str, right: &str) -> Result<(u64, u64)> {
        let text = self.text(&["rev-list", "--left-right", "--count", &format!("{left}...{right}"), "--"])?;
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
    }

    /// The paths that each of these commits touched against its first parent.
    pub fn touched(&self, shas: &[String]) -> Result<BTreeMap<String, Touched>> {
        let mut touched = BTreeMap::new();
        if shas.is_empty() {
            return Ok(touched);
        }
        let mut input = shas.join("\n");
        input.push('\n');
        let output = self.run_with(
            &[
                "log",
                "--no-walk=unsorted",
                "--first-parent",
                "-m",
                "--root",
                "--format=%x01%H",
                "--name-status",
                "-z",
                "--no-renames",
                "--stdin",
            ],
            &[],
            input.as_bytes(),
        )?;
        let text = String::from_utf8_lossy(&output);
        let mut tokens = text.split('\0');
        let mut current = None;
        while let Some(token) = tokens.next() {
            let token = token.trim_start_matches('\n');
            if let Some(sha) = token.strip_prefix('\u{1}') {
                touched.insert(sha.to_owned(), Touched::default());
                current = Some(sha.to_owned());
            } else if !token.is_empty() {
                let Some(path) = tokens.next() else { break };
                let Some(entry) = current.as_ref().and_then(|sha| touched.get_mut(sha)) else { continue };
                match token {
                    "A" => entry.added.push(path.to_owned()),
                    "D" => entry.removed.push(path.to_owned()),
                    _ => entry.modified.push(path.to_owned()),
                }
            }
        }
        Ok(touched)
    }

    /// The files that differ between two trees or commits, with their patches when asked for.
    pub fn difference(&self, from: &str, to: &str, patches: bool) -> Result<Vec<FileChange>> {
        let output = self.run(&[
            "diff-tree",
            "-r",
            "-z",
            "-M",
            "--raw",
            "--numstat",
            "--no-abbrev",
            "--no-commit-id",
            from,
            to,
        ])?;
        let text = String::from_utf8_lossy(&output);
        let mut tokens = text.split('\0').peekable();
        let mut changes = Vec::new();
        while let Some(token) = tokens.next_if(|token| token.starts_with(':')) {
            let fields: Vec<&str> = token.split(' ').collect();
            let letter = fields.get(4).and_then(|field| field.chars().next()).unwrap_or('M');
            let first = tokens.next().unwrap_or_default().to_owned();
            let (path, previous) = match letter {
                'R' | 'C' => (tokens.next().unwrap_or_default().to_owned(), Some(first)),
                _ => (first, None),
            };
            let status = match letter {
                'A' => "added",
                'D' => "removed",
                'R' => "renamed",
                'C' => "copied",
                'T' => "changed",
                _ => "modified",
            };
            let sha = fields.get(if letter == 'D' { 2 } else { 3 }).copied().unwrap_or(ZERO).to_owned();
            changes.push(FileChange { status, path, previous, sha, additions: 0, deletions: 0, patch: None });
        }
        for change in &mut changes {
            let Some(line) = tokens.next() else { break };
            let mut fields = line.split('\t');
            change.additions = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
            change.deletions = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
            if fields.next() == Some("") {
                // A rename: the two paths follow as tokens of their own.
                tokens.next();
                tokens.next();
            }
        }
        if patches && !changes.is_empty() {
            let output = self.run(&["diff-tree", "-r", "-M", "-p", "--no-color", "--no-commit-id", from, to])?;
            let text = String::from_utf8_lossy(&output);
            let mut chunks = patch_chunks(&text);
            if chunks.len() == changes.len() {
                for (change, chunk) in changes.iter_mut().zip(chunks.drain(..)) {
                    change.patch = chunk.find("\n@@").map(|at| chunk[at + 1..].trim_end_matches('\n').to_owned());
                }
            }
        }
        Ok(changes)
    }

    /// The tree that merging `right` into `left` gives, or `None` where they conflict.
    pub fn merge_tree(&self, left: &str, right: &str, base: Option<&str>) -> Result<Option<String>> {
        let base_argument = base.map(|base| format!("--merge-base={base}"));
        let mut arguments = vec!["merge-tree", "--write-tree", "--no-messages", "--name-only"];
        arguments.extend(base_argument.as_deref());
        arguments.extend([left, right]);
        let output = self.output(&arguments, &[], b"")?;
        match output.status.code() {
            Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())),
            Some(1) => Ok(None),
            _ => bail!("git merge-tree failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
        }
    }

    pub fn commit_tree(
        &self,
        tree: &str,
        parents: &[&str],
        message: &str,
        author: &Signature,
        committer: &Signature,
    ) -> Result<String> {
        let mut text = format!("tree {tree}\n");
        for parent in parents {
            let _ = writeln!(text, "parent {parent}");
        }
        let _ = writeln!(text, "author {}", signature_line(author));
        let _ = writeln!(text, "committer {}", signature_line(committer));
        text.push('\n');
        text.push_str(message);
        if !message.ends_with('\n') {
            text.push('\n');
        }
        let output = self.run_with(&["hash-object", "-t", "commit", "-w", "--stdin"], &[], text.as_bytes())?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    pub fn write_blob(&self, content: &[u8]) -> Result<String> {
        if content.is_empty() {
            let output = self.run(&["hash-object", "-t", "blob", "-w", "/dev/null"])?;
            return Ok(String::from_utf8_lossy(&output).trim().to_owned());
        }
        let output = self.run_with(&["hash-object", "-t", "blob", "-w", "--stdin"], &[], content)?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// Points a ref at an object; with `old` only if it still points there (`ZERO`: does not exist).
    pub fn update_ref(&self, name: &str, new: &str, old: Option<&str>) -> Result<()> {
        let mut arguments = vec!["update-ref", "--no-deref", name, new];
        arguments.extend(old);
        self.run(&arguments).map(drop)
    }

    pub fn delete_ref(&self, name: &str) -> Result<()> {
        self.run(&["update-ref", "--no-deref", "-d", name]).map(drop)
    }

    /// A new commit on top of `parent` with these files written or removed. Moves no branch.
    pub fn commit_files(
        &self,
        parent: Option<&str>,
        files: &[FileWrite],
        message: &str,
        author: &Signature,
        committer: &Signature,
    ) -> Result<String> {
        let mut modes = BTreeMap::new();
        if let Some(parent) = parent {
            for entry in self.tree(parent, true)? {
                modes.insert(entry.path, entry.mode);
            }
        }
        let scratch = format!("refs/landfall-sim/{}", hex::encode(super::wire::random::<8>()));
        let mut stream = Vec::new();
        writeln!(stream, "commit {scratch}\nmark :1")?;
        writeln!(stream, "author {}\ncommitter {}", signature_line(author), signature_line(committer))?;
        writeln!(stream, "data {}\n{message}", message.len())?;
        if let Some(parent) = parent {
            writeln!(stream, "from {parent}")?;
        }
        for file in files {
            let path = quoted(&file.path);
            match &file.content {
                None => writeln!(stream, "D {path}")?,
                Some(content) => {
                    let known = modes.get(&file.path).map(String::as_str);
                    let mode = match (file.executable, known) {
                        (Some(true), _) => "100755",
                        (Some(false), _) => "100644",
                        (None, Some(mode @ ("100644" | "100755"))) => mode,
                        (None, _) if content.starts_with(b"#!") => "100755",
                        (None, _) => "100644",
                    };
                    writeln!(stream, "M {mode} inline {path}\ndata {}", content.len())?;
                    stream.extend_from_slice(content);
                    stream.push(b'\n');
                }
            }
        }
        stream.extend_from_slice(b"get-mark :1\ndone\n");
        let output = self.run_with(&["fast-import", "--quiet", "--done", "--date-format=raw"], &[], &stream)?;
        let sha = String::from_utf8_lossy(&output).trim().to_owned();
        self.delete_ref(&scratch)?;
        if !is_sha(&sha) {
            bail!("git fast-import named no commit");
        }
        Ok(sha)
    }

    /// The entries of a tree or of a commit's tree.
    pub fn tree(&self, sha: &str, recursive: bool) -> Result<Vec<TreeEntry>> {
        let mut arguments = vec!["ls-tree", "-z", "-l"];
        if recursive {
            arguments.extend(["-r", "-t"]);
        }
        arguments.push(sha);
        let output = self.run(&arguments)?;
        Ok(parse_tree(&output))
    }

    /// The entry of a commit's tree at a path.
    pub fn entry(&self, commit: &str, path: &str) -> Result<Option<TreeEntry>> {
        let output = self.run(&["--literal-pathspecs", "ls-tree", "-z", "-l", "--full-tree", commit, "--", path])?;
        Ok(parse_tree(&output).into_iter().next())
    }

    pub fn blob(&self, sha: &str) -> Result<Vec<u8>> {
        self.run(&["cat-file", "blob", sha])
    }

    /// Brings an object of another repository here, under a ref.
    pub fn fetch(&self, from: &Path, sha: &str, reference: &str) -> Result<()> {
        let source = from.to_string_lossy().into_owned();
        self.run(&["fetch", "--quiet", "--no-tags", "--force", "--", &source, &format!("{sha}:{reference}")]).map(drop)
    }

    pub fn has(&self, sha: &str) -> bool {
        self.run(&["cat-file", "-e", sha]).is_ok()
    }
}

fn collect_loose(directory: &Path, prefix: &str, refs: &mut BTreeMap<String, String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let full = format!("{prefix}/{name}");
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect_loose(&entry.path(), &full, refs);
        } else if !name.ends_with(".lock")
            && let Ok(text) = std::fs::read_to_string(entry.path())
            && is_sha(text.trim())
        {
            refs.insert(full, text.trim().to_owned());
        }
    }
}
