//! Files below the root of the code that patterns name, in a tree that the code under test may have made to do harm:
//! no link is followed, and a search comes to an end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Entries that one search looks at.
const MOST_ENTRIES: usize = 100_000;

/// A pipe would hold up whoever opens it, and a link leads elsewhere.
pub fn is_plain(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Files that a pattern of `of` names and none of `except`; the first ones in the order of their names, where there are
/// more than `most`.
pub fn matching(code: &Path, of: &[String], except: &[String], most: usize) -> Vec<PathBuf> {
    let (wanted, unwanted) = (set(of), set(except));
    let (mut found, mut looked) = (BTreeSet::new(), 0);
    for pattern in of {
        // Where the pattern has no wildcard yet, nothing beside it is looked at.
        let plain: PathBuf = Path::new(pattern)
            .components()
            .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']))
            .collect();
        let start = code.join(&plain);
        if start.canonicalize().ok() != code.canonicalize().ok().map(|code| code.join(&plain)) {
            continue;
        }
        let takes = |path: &Path| {
            path.strip_prefix(code).is_ok_and(|below| wanted.is_match(below) && !unwanted.is_match(below))
        };
        if is_plain(&start) && takes(&start) {
            found.insert(start);
            continue;
        }
        let mut folders = vec![start];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                looked += 1;
                if looked > MOST_ENTRIES {
                    break;
                }
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && entry.file_name() != "node_modules" && entry.file_name() != ".git" {
                    folders.push(path);
                } else if kind.is_file() && takes(&path) {
                    found.insert(path);
                }
            }
        }
    }
    found.into_iter().take(most).collect()
}

/// Patterns were looked at when the settings were read: one that makes no sense names nothing.
fn set(patterns: &[String]) -> globset::GlobSet {
    let mut set = globset::GlobSetBuilder::new();
    for pattern in patterns {
        if let Ok(glob) = globset::GlobBuilder::new(pattern).literal_separator(true).build() {
            set.add(glob);
        }
    }
    set.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(code: &Path, of: &[&str], except: &[&str]) -> Vec<String> {
        let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>();
        matching(code, &owned(of), &owned(except), 3)
            .iter()
            .map(|path| path.strip_prefix(code).expect("it lies below").display().to_string())
            .collect()
    }

    #[test]
    fn patterns_name_plain_files_and_no_link_is_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let elsewhere = tempfile::tempdir().expect("a folder");
        std::fs::write(elsewhere.path().join("a.png"), "secret").expect("a file");
        let code = folder.path();
        for path in ["out/a.png", "out/b.txt", "out/deep/c.png", "node_modules/d.png", "e.png", "f.png", "g.png"] {
            std::fs::create_dir_all(code.join(path).parent().expect("a folder")).expect("a folder");
            std::fs::write(code.join(path), "x").expect("a file");
        }
        std::os::unix::fs::symlink(elsewhere.path(), code.join("link")).expect("a link");
        std::os::unix::fs::symlink(elsewhere.path().join("a.png"), code.join("out/l.png")).expect("a link");
        nix::unistd::mkfifo(&code.join("out/p.png"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(names(code, &["out/*.png"], &[]), ["out/a.png"]);
        assert_eq!(names(code, &["out/**"], &["**/*.txt"]), ["out/a.png", "out/deep/c.png"]);
        assert_eq!(names(code, &["out/b.txt"], &[]), ["out/b.txt"]);
        assert_eq!(names(code, &["link/*", "link/a.png", "out/l.png", "out/p.png", "none"], &[]), [""; 0]);
        assert_eq!(names(code, &["**/*.png"], &[]), ["e.png", "f.png", "g.png"], "the first three");
    }
}
