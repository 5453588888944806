//! The text forms in which git speaks: commits, trees, patches, and the paths of its import stream.

use std::fmt::Write as _;

use super::git::{Commit, Signature, TreeEntry};

pub fn parse_commit(sha: &str, text: &str) -> Commit {
    let (head, message) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut commit = Commit {
        sha: sha.to_owned(),
        tree: String::new(),
        parents: Vec::new(),
        author: Signature { name: String::new(), email: String::new(), date: 0 },
        committer: Signature { name: String::new(), email: String::new(), date: 0 },
        message: message.trim_end_matches('\n').to_owned(),
    };
    for line in head.lines() {
        match line.split_once(' ') {
            Some(("tree", value)) => commit.tree = value.to_owned(),
            Some(("parent", value)) => commit.parents.push(value.to_owned()),
            Some(("author", value)) => commit.author = parse_signature(value),
            Some(("committer", value)) => commit.committer = parse_signature(value),
            _ => {}
        }
    }
    commit
}

pub fn parse_signature(text: &str) -> Signature {
    let (who, when) = text.rsplit_once("> ").unwrap_or((text, "0"));
    let (name, email) = who.split_once('<').unwrap_or((who, ""));
    let date = when.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    Signature { name: name.trim().to_owned(), email: email.to_owned(), date }
}

pub fn signature_line(signature: &Signature) -> String {
    let clean = |text: &str| text.replace(['<', '>', '\n', '\0'], "");
    format!("{} <{}> {} +0000", clean(&signature.name), clean(&signature.email), signature.date)
}

pub fn quoted(path: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in path.bytes() {
        match byte {
            b'"' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            0x20..0x7f => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "\\{byte:03o}");
            }
        }
    }
    quoted.push('"');
    quoted
}

pub fn parse_tree(output: &[u8]) -> Vec<TreeEntry> {
    String::from_utf8_lossy(output)
        .split('\0')
        .filter_map(|line| {
            let (meta, path) = line.split_once('\t')?;
            let mut words = meta.split_whitespace();
            Some(TreeEntry {
                mode: words.next()?.to_owned(),
                kind: words.next()?.to_owned(),
                sha: words.next()?.to_owned(),
                size: words.next().and_then(|size| size.parse().ok()),
                path: path.to_owned(),
            })
        })
        .collect()
}

/// A file may itself hold the text `diff --git `; only one at the start of a line opens a chunk, and lines of a
/// patch never start with that word, since they start with a space, a sign or a header word.
pub fn patch_chunks(text: &str) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        if line.starts_with("diff --git ") {
            chunks.push(String::new());
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push_str(line);
        }
    }
    chunks
}
