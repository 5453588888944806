//! The last lines of all apps together, for whoever sends them on. Who does not come by in time finds by their numbers
//! how many of each app are gone; nobody waits for anybody.

use crate::clock::Timestamp;
use crate::domain::AppName;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// Lines and bytes that are kept: of two seconds at ten thousand requests a second.
const LINES: usize = 20_000;
const BYTES: usize = 8 * 1024 * 1024;

/// A line of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailLine {
    pub app: AppName,
    /// Its number among the app's lines since the router started.
    pub number: u64,
    pub line: String,
}

/// What came after a cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailPage {
    /// Cursors of another router say nothing of this one's lines.
    pub started_at: Timestamp,
    pub lines: Vec<TailLine>,
    pub next: u64,
}

#[derive(Default)]
pub(super) struct Tail {
    /// Each with its app and its number there.
    lines: VecDeque<(Arc<AppName>, u64, Arc<str>)>,
    bytes: usize,
    /// How many lines there have been.
    count: u64,
}

impl Tail {
    pub fn push(&mut self, app: Arc<AppName>, number: u64, line: Arc<str>) {
        self.count += 1;
        self.bytes += line.len();
        self.lines.push_back((app, number, line));
        while self.lines.len() > LINES || self.bytes > BYTES {
            let Some((_, _, oldest)) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// At most `limit` lines after the cursor, and the cursor to go on after.
    pub fn after(&self, cursor: u64, limit: usize) -> (Vec<TailLine>, u64) {
        let first = self.count - self.lines.len() as u64;
        let skip = usize::try_from(cursor.saturating_sub(first)).unwrap_or(usize::MAX);
        let lines = self.lines.iter().skip(skip).take(limit);
        let lines: Vec<TailLine> = lines
            .map(|(app, number, line)| TailLine { app: AppName::clone(app), number: *number, line: line.to_string() })
            .collect();
        let next = cursor.max(first).min(self.count) + lines.len() as u64;
        (lines, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_each_line_once_and_sees_what_it_missed() {
        let mut tail = Tail::default();
        let [one, two] = ["one", "two"].map(|name| Arc::new(name.parse::<AppName>().unwrap()));
        for number in 1..=10 {
            tail.push(one.clone(), number, "x".into());
            tail.push(two.clone(), number, "y".into());
        }
        let (mut seen, mut cursor) = (Vec::new(), 0);
        loop {
            let (lines, next) = tail.after(cursor, 3);
            if lines.is_empty() {
                break;
            }
            seen.extend(lines);
            cursor = next;
        }
        assert_eq!((seen.len(), cursor), (20, 20));
        assert_eq!((&seen[18].app, seen[18].number), (&*one, 10));
        for number in 11..=30_010 {
            tail.push(one.clone(), number, "x".into());
        }
        let (lines, next) = tail.after(cursor, 1);
        assert_eq!((lines[0].number, next), (10_011, 10_021));
        assert_eq!(tail.after(u64::MAX, 5), (Vec::new(), tail.count), "a cursor from elsewhere");
    }
}
