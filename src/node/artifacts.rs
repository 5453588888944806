//! Files that are kept of a run: once nothing of the tests runs any more, they are read inside the sandbox, where nothing
//! but the tests' own can be read, and handed over piece by piece. What becomes of them is the control plane's matter.

use super::files;
use super::link::Link;
use crate::ci::wire::{Answer, KEPT_PIECE, MOST_KEPT_FILES, NotKept, Request};
use crate::domain::FilePatterns;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::libc;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Hands over what `[tests] artifacts` names, and prints what was left out and why.
pub fn keep(link: &mut Link, code: &Path, patterns: FilePatterns) {
    super::phase("artifacts");
    let FilePatterns { of, except } = patterns;
    // A folder stands for all that is in it.
    let of: Vec<String> =
        of.into_iter().flat_map(|name| [format!("{}/**", name.trim_end_matches('/')), name]).collect();
    let found = files::matching(code, &of, &except, MOST_KEPT_FILES + 1);
    if found.is_empty() {
        println!("landfall: nothing matches the patterns of artifacts");
    }
    let (mut count, mut bytes) = (0, 0);
    for path in found {
        let Some(name) = path.strip_prefix(code).ok().and_then(Path::to_str) else {
            println!("landfall: {:?} is not kept: its name is not UTF-8", path.display().to_string());
            continue;
        };
        match hand_over(link, &path, name) {
            Ok(Ok(size)) => {
                count += 1;
                bytes += size;
            }
            Ok(Err(Some(NotKept::TooMany))) => {
                println!("landfall: only the first {MOST_KEPT_FILES} files are kept");
                break;
            }
            Ok(Err(Some(why))) => println!("landfall: {name:?} is not kept: {}", word(why)),
            // The run is over: nobody wants it any more.
            Ok(Err(None)) => return,
            Err(error) => println!("landfall: {name:?} is not kept: {error}"),
        }
    }
    println!("landfall: {count} files with {bytes} bytes are kept");
}

fn word(why: NotKept) -> &'static str {
    match why {
        NotKept::TooMany => "there are too many",
        NotKept::TooLarge => "this node's artifacts would be larger than the operator allows",
        NotKept::BadName => "its name is too long or holds a control character",
        NotKept::NotAsked => "nothing was asked for",
        NotKept::OutOfOrder => "its pieces came out of order",
    }
}

fn hand_over(link: &mut Link, path: &Path, name: &str) -> io::Result<Result<u64, Option<NotKept>>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let size = metadata.len();
    let mut offset = 0;
    loop {
        let mut piece = Vec::new();
        (&mut file).take(KEPT_PIECE as u64).read_to_end(&mut piece)?;
        let next = offset + piece.len() as u64;
        let last = piece.is_empty() || next >= size;
        let bytes = STANDARD.encode(&piece);
        match link.insist(&Request::Keep { path: name.to_owned(), offset, bytes, last }) {
            Answer::Taken if last => return Ok(Ok(next)),
            Answer::Taken => offset = next,
            Answer::NotKept { why } => return Ok(Err(Some(why))),
            _ => return Ok(Err(None)),
        }
    }
}
