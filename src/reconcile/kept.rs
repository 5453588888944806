//! The log of a process that is gone: a file with a line of JSON for each of its lines.

use super::{Trouble, World, drains, observe};
use crate::domain::ProcessId;
use crate::platform::{LogLine, ProcessStatus};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    line: LogLine,
    /// Its number among all lines of the process, from 0: of long logs the middle is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
}

pub fn log_file(world: &World, process: &ProcessId) -> PathBuf {
    world.folder("logs").join(format!("{process}.jsonl"))
}

/// Keeps an ended process' log. Of an app's process its end is the last line: who reads on sees why there is no more.
pub(super) async fn keep_log(
    world: &World,
    process: &ProcessId,
    status: Option<&ProcessStatus>,
) -> Result<(), Trouble> {
    let path = log_file(world, process);
    if tokio::fs::try_exists(&path).await? {
        return Ok(());
    }
    let mut lines = observe::numbered_lines(world, process).await?;
    let after = lines.last().map_or(0, |(number, _)| number + 1);
    let end = status.filter(|status| observe::app_of(status).is_some()).and_then(drains::end_of);
    lines.extend(end.map(|end| (after, end)));
    let mut text = Vec::new();
    for (number, line) in lines {
        serde_json::to_writer(&mut text, &Kept { line, number: Some(number) }).map_err(Trouble::bug)?;
        text.push(b'\n');
    }
    let partial = path.with_extension("part");
    tokio::fs::write(&partial, text).await?;
    tokio::fs::rename(&partial, &path).await?;
    Ok(())
}

/// The lines of such a file, each with its number.
pub fn read(bytes: &[u8]) -> impl Iterator<Item = (u64, LogLine)> {
    let mut next = 0;
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Kept>(line).ok());
    lines.map(move |kept| {
        let number = kept.number.unwrap_or(next);
        next = number + 1;
        (number, kept.line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_numbers_that_they_had_while_the_process_ran() {
        let file = "{\"at\":1,\"stream\":\"out\",\"text\":\"a\",\"number\":0}\n\
                    {\"at\":1,\"stream\":\"out\",\"text\":\"z\",\"number\":900}\nbroken\n\
                    {\"at\":1,\"stream\":\"system\",\"text\":\"end\"}\n";
        let read: Vec<(u64, String)> = read(file.as_bytes()).map(|(number, line)| (number, line.text)).collect();
        assert_eq!(read, [(0, "a".to_owned()), (900, "z".to_owned()), (901, "end".to_owned())]);
    }
}
