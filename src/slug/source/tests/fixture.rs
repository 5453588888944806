//! Repositories made object by object, a git server over HTTP, and a look at what is on disk.

use super::super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const GIT: &str = "/usr/bin/git";

pub fn source(folder: &Path) -> Source {
    Source::new(folder.join("mirrors"), GIT.into()).allowing_local_remotes()
}

pub fn remote(origin: &Repository) -> Remote {
    let url = format!("file://{}", origin.path.display());
    Remote { repository: super::ID, url, authorization: None }
}

/// A bare repository at `<folder>/origin.git`.
pub struct Repository {
    pub path: PathBuf,
}

impl Repository {
    pub fn new(folder: &Path) -> Repository {
        let path = folder.join("origin.git");
        let repository = Repository { path };
        std::fs::create_dir(&repository.path).unwrap();
        repository.git(&["init", "--quiet", "--bare"], b"");
        repository.git(&["config", "uploadpack.allowAnySHA1InWant", "true"], b"");
        repository
    }

    pub fn git(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = Command::new(GIT)
            .env_clear()
            .env("GIT_DIR", &self.path)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn object(&self, kind: &str, content: &[u8]) -> String {
        self.git(&["hash-object", "-w", "--literally", "--stdin", "-t", kind], content)
    }

    pub fn blob(&self, content: &[u8]) -> String {
        self.object("blob", content)
    }

    /// A tree exactly as given: any mode, any name, in any order.
    pub fn tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut content = Vec::new();
        for (mode, name, object) in entries {
            content.extend_from_slice(mode.as_bytes());
            content.push(b' ');
            content.extend_from_slice(name);
            content.push(0);
            content.extend_from_slice(&hex::decode(object).unwrap());
        }
        self.object("tree", &content)
    }

    pub fn commit(&self, tree: &str) -> Sha {
        self.commit_with_parent(tree, "")
    }

    fn commit_with_parent(&self, tree: &str, parent: &str) -> Sha {
        let person = "A U Thor <a@example.com> 1700000000 +0100";
        let text = format!("tree {tree}\n{parent}author {person}\ncommitter {person}\n\nmessage\n");
        let sha = self.object("commit", text.as_bytes());
        self.git(&["update-ref", "refs/heads/main", &sha], b"");
        sha.parse().unwrap()
    }

    /// Plain files; those below `bin/` are programs.
    pub fn commit_files(&self, files: &[(&str, &str)]) -> Sha {
        let tree = self.tree_of_files(files);
        self.commit(&tree)
    }

    pub fn commit_on(&self, files: &[(&str, &str)], parent: &Sha) -> Sha {
        let tree = self.tree_of_files(files);
        self.commit_with_parent(&tree, &format!("parent {parent}\n"))
    }

    fn tree_of_files(&self, files: &[(&str, &str)]) -> String {
        let mut fast = String::from("commit refs/heads/scratch\ncommitter A <a@b> 1 +0000\ndata 0\n");
        for (name, text) in files {
            let mode = if name.starts_with("bin/") { "100755" } else { "100644" };
            fast.push_str(&format!("M {mode} inline {name}\ndata {}\n{text}\n", text.len()));
        }
        self.git(&["fast-import", "--quiet", "--force"], fast.as_bytes());
        self.git(&["rev-parse", "refs/heads/scratch^{tree}"], b"")
    }

    pub fn tree_of(&self, sha: &Sha) -> Sha {
        self.git(&["rev-parse", &format!("{sha}^{{tree}}")], b"").parse().unwrap()
    }
}

/// A program made by another process: a file that this process has open for writing could not be started by any of
/// its threads' children.
pub struct Scripted(PathBuf);

impl Scripted {
    pub fn new(folder: &Path, body: &str) -> Scripted {
        let path = folder.join("git");
        let made = Command::new("/bin/sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#, "sh", body])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        Scripted(path)
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

/// Serves the repositories of a folder as GitHub does, through `git http-backend`.
pub struct Http {
    address: String,
    folder: PathBuf,
    state: Arc<HttpState>,
}

#[derive(Default)]
struct HttpState {
    sent: AtomicU64,
    requests: AtomicU64,
    slow: AtomicBool,
    authorization: Option<String>,
    root: PathBuf,
}

impl Http {
    pub fn serve(folder: &Path, authorization: Option<&str>) -> Http {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let authorization = authorization.map(str::to_owned);
        let state = Arc::new(HttpState { authorization, root: folder.to_owned(), ..HttpState::default() });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || state.answer(stream));
            }
        });
        Http { address, folder: folder.to_owned(), state }
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn url(&self, origin: &Repository) -> String {
        format!("{}/{}", self.base(), origin.path.strip_prefix(&self.folder).unwrap().display())
    }

    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn slow_down(&self) {
        self.state.slow.store(true, Ordering::SeqCst);
    }
}

impl HttpState {
    fn answer(&self, mut stream: TcpStream) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();

        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let simple = |status: &str, extra: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{extra}\r\n")
        };
        let refusal = if let Some(rest) = path.strip_prefix("/status/") {
            Some(simple(&format!("{} Nope", &rest[..3]), "Location: http://127.0.0.1:1/stolen\r\n"))
        } else if path.starts_with("/garbage") {
            Some("hello, I am no web server\r\n".to_owned())
        } else if self.authorization.is_some() && header("authorization") != self.authorization {
            Some(simple("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = stream.write_all(refusal.as_bytes());
            return;
        }
        let mut child = Command::new(GIT)
            .arg("http-backend")
            .env_clear()
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", method)
            .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
            .env("CONTENT_LENGTH", length.to_string())
            .env("HTTP_CONTENT_ENCODING", header("content-encoding").unwrap_or_default())
            .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&body).unwrap();
        let output = child.wait_with_output().unwrap().stdout;
        let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&output[..end]).into_owned();
        let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
        let body = &output[end + 4..];
        let head =
            format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
        let _ = stream.write_all(head.as_bytes());
        if self.slow.load(Ordering::SeqCst) && body.len() > 100_000 {
            // Most of it arrives, the rest never does.
            let _ = stream.write_all(&body[..body.len() * 9 / 10]);
            let _ = stream.read(&mut byte);
        } else {
            let _ = stream.write_all(body);
        }
    }
}

/// Text that doesn't compress away and is the same every time.
pub fn noise(seed: u64, length: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    (0..length).map(|_| next()).collect()
}

/// How many objects a mirror holds.
pub fn objects(mirror: &Path) -> u64 {
    let output = Command::new(GIT)
        .env_clear()
        .arg("--git-dir")
        .arg(mirror)
        .args(["cat-file", "--batch-check", "--batch-all-objects"])
        .output()
        .unwrap();
    output.stdout.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Everything below a folder, sorted: path, mode, and content or target.
pub fn listing(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap();
            let name = name.to_str().map_or_else(|| format!("{:?}", name.as_os_str()), str::to_owned);
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                lines.push(format!("{name} -> {}", std::fs::read_link(&path).unwrap().display()));
            } else if metadata.is_dir() {
                lines.push(format!("{name} {mode:o}"));
                walk(&path, root, lines);
            } else {
                let content = std::fs::read(&path).unwrap();
                lines.push(format!("{name} {mode:o} {}", String::from_utf8_lossy(&content)));
            }
        }
    }
    let mut lines = Vec::new();
    walk(folder, folder, &mut lines);
    lines.sort();
    lines
}

pub fn any_file_contains(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return any_file_contains(&path, needle);
        }
        let content = std::fs::read(&path).unwrap();
        path.as_os_str().as_bytes().windows(needle.len()).any(|window| window == needle)
            || content.windows(needle.len()).any(|window| window == needle)
    })
}

pub fn pids(file: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(file).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Whether a process runs; one that ended and was not yet waited for doesn't.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

pub async fn all_end(file: &Path) {
    let pids = pids(file);
    assert!(!pids.is_empty());
    until("all processes have ended", || pids.iter().all(|pid| !is_alive(*pid))).await;
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
