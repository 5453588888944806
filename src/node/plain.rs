//! `landfall node --script`: runs a test command as it is. What it left is read when nothing of it runs any more: its
//! results, where it is said where they are, and its artifacts.

use super::link::Link;
use super::{artifacts, batch, descendants, mask_of, results};
use crate::ci::wire::{Answer, MOST_FAILURES, Request, bound};
use crate::domain::Mask;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Ends as the script does.
pub fn run(socket: &Path, script: &str, masked: &[String]) -> ExitCode {
    match run_between(&mut Link::new(socket), script, &[], mask_of(masked).as_ref()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("landfall: {error}");
            ExitCode::from(super::BROKEN)
        }
    }
}

/// Runs a script to its end, and reads what it left; its status as a shell tells it.
pub(super) fn run_between(
    link: &mut Link,
    script: &str,
    environment: &[(String, String)],
    mask: Option<&Mask>,
) -> io::Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    descendants::adopt_orphans()?;
    let (kept, junit) = match link.insist(&Request::Wanted) {
        Answer::Wanted { artifacts, junit } => (artifacts, junit),
        _ => (None, None),
    };
    let place = batch::Place::make(None)?;
    if let Some(pattern) = &junit {
        // What lies there already would speak for tests that did not run.
        results::clear_all(&place, pattern);
    }
    let file = place.folder.join("script.sh");
    std::fs::write(&file, script)?;
    let status = batch::shell().arg(&file).envs(environment.iter().cloned()).status()?;
    descendants::end();
    if let Some(report) = junit.and_then(|pattern| results::read_all(&place, &pattern)) {
        let green = report.is_green();
        let failures = report.failures.iter().take(MOST_FAILURES).map(|failure| {
            let mut failure = results::masked(mask, failure);
            bound(&mut failure);
            failure
        });
        link.insist(&Request::Report { green, counts: report.counts, failures: failures.collect() });
    }
    if let Some(patterns) = kept {
        artifacts::keep(link, &place.code, patterns);
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}
