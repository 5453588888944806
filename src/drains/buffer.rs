//! What waits for one receiver: so many lines and bytes at most, the newest ones.

use super::line::Line;
use crate::clock::Timestamp;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Lines and bytes that wait for one receiver.
pub const LINES: usize = 10_000;
pub const BYTES: usize = 8 << 20;
/// Lines and bytes that are sent at a time.
const BATCH_LINES: usize = 200;
const BATCH_BYTES: usize = 256 << 10;

#[derive(Default)]
pub struct Buffer {
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Default)]
struct Inner {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// Lines that have come so far, and how many had come before those that are being sent now.
    pushed: u64,
    sending_from: Option<u64>,
    /// Lines that gave way since this was told last, and since when.
    gone: Option<(u64, Timestamp)>,
    figures: Figures,
}

/// What became of a receiver's lines since its sender was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Figures {
    pub sent: u64,
    pub dropped: u64,
    pub waiting: u64,
    /// Why the last try failed; none since it went well.
    pub trouble: Option<String>,
}

/// Lines that are sent together, and how many were lost before them and since when.
pub struct Batch {
    pub lines: Vec<Arc<Line>>,
    pub gone: Option<(u64, Timestamp)>,
}

impl Buffer {
    pub fn push(&self, line: Arc<Line>) {
        {
            let mut inner = self.lock();
            inner.bytes += line.text.len();
            inner.pushed += 1;
            inner.lines.push_back(line);
            while inner.lines.len() > LINES || inner.bytes > BYTES {
                let Some(oldest) = inner.lines.pop_front() else { break };
                inner.bytes -= oldest.text.len();
                inner.drop_lines(1, oldest.at);
            }
            inner.figures.waiting = inner.lines.len() as u64;
        }
        self.filled.notify_one();
    }

    /// Lines were lost on their way here.
    pub fn lost(&self, lines: u64, at: Timestamp) {
        self.lock().drop_lines(lines, at);
        self.filled.notify_one();
    }

    /// How many lines whoever has more of them may bring now. Half of the room is left to those who have no other place for
    /// theirs.
    pub fn room(&self) -> usize {
        let inner = self.lock();
        if inner.bytes >= BYTES / 2 { 0 } else { (LINES / 2).saturating_sub(inner.lines.len()) }
    }

    /// How many lines have come so far, and of how many of these, from the first on, it is known what became of them.
    pub fn progress(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.pushed, inner.sending_from.unwrap_or(inner.pushed - inner.lines.len() as u64))
    }

    /// The next lines, once there are any. They count as waiting until `sent` or `refused`.
    pub async fn take(&self) -> Batch {
        loop {
            let filled = self.filled.notified();
            if let Some(batch) = self.take_now() {
                return batch;
            }
            filled.await;
        }
    }

    fn take_now(&self) -> Option<Batch> {
        let mut inner = self.lock();
        let first = inner.pushed - inner.lines.len() as u64;
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(next) = inner.lines.front() {
            bytes += next.text.len();
            if lines.len() >= BATCH_LINES || (bytes > BATCH_BYTES && !lines.is_empty()) {
                break;
            }
            lines.extend(inner.lines.pop_front());
        }
        inner.bytes -= lines.iter().map(|line| line.text.len()).sum::<usize>();
        let gone = inner.gone.take();
        inner.sending_from = (!lines.is_empty()).then_some(first);
        (!lines.is_empty() || gone.is_some()).then_some(Batch { lines, gone })
    }

    pub fn sent(&self, batch: &Batch) {
        let mut inner = self.lock();
        inner.sending_from = None;
        inner.figures.sent += batch.lines.len() as u64;
        inner.figures.trouble = None;
        inner.figures.waiting = inner.lines.len() as u64;
    }

    /// The receiver will never take this batch.
    pub fn refused(&self, batch: &Batch, why: String) {
        let mut inner = self.lock();
        inner.sending_from = None;
        if let Some(first) = batch.lines.first() {
            inner.drop_lines(batch.lines.len() as u64, first.at);
            // It was not told of those before either. What says so and nothing else would be refused again and again.
            if let Some((lines, since)) = batch.gone {
                inner.owe(lines, since);
            }
        }
        inner.figures.trouble = Some(why);
        inner.figures.waiting = inner.lines.len() as u64;
    }

    pub fn failing(&self, why: String) {
        self.lock().figures.trouble = Some(why);
    }

    pub fn figures(&self) -> Figures {
        self.lock().figures.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn drop_lines(&mut self, lines: u64, at: Timestamp) {
        self.owe(lines, at);
        self.figures.dropped += lines;
    }

    /// The receiver is still to be told of lines that were dropped.
    fn owe(&mut self, lines: u64, at: Timestamp) {
        let (before, since) = self.gone.unwrap_or((0, at));
        self.gone = Some((before + lines, since.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::Origin;
    use super::*;

    fn line(number: usize, text: &str) -> Arc<Line> {
        let (app, process) = ("hello".parse().unwrap(), "web.1".to_owned());
        let at = Timestamp(i64::try_from(number).unwrap());
        Arc::new(Line { at, app, origin: Origin::App, process, text: format!("{number}{text}") })
    }

    #[test]
    fn the_newest_lines_stay_and_the_others_are_counted() {
        let buffer = Buffer::default();
        for number in 0..LINES + 500 {
            buffer.push(line(number, ""));
        }
        assert_eq!((buffer.figures().waiting, buffer.figures().dropped), (LINES as u64, 500));
        let first = buffer.take_now().unwrap();
        assert_eq!((first.gone, first.lines.len()), (Some((500, Timestamp(0))), BATCH_LINES));
        assert_eq!(first.lines[0].text, "500");
        buffer.sent(&first);
        let mut sent = first.lines.len();
        while let Some(batch) = buffer.take_now() {
            assert_eq!(batch.gone, None);
            sent += batch.lines.len();
            buffer.sent(&batch);
        }
        let figures = buffer.figures();
        assert_eq!((sent, figures.sent, figures.waiting), (LINES, LINES as u64, 0));
    }

    #[test]
    fn losses_that_a_receiver_refused_to_hear_of_are_told_with_the_next_lines() {
        let buffer = Buffer::default();
        buffer.lost(5, Timestamp(7));
        buffer.push(line(9, ""));
        let refused = buffer.take_now().unwrap();
        assert_eq!((refused.gone, refused.lines.len()), (Some((5, Timestamp(7))), 1));
        buffer.refused(&refused, "no".to_owned());
        let alone = buffer.take_now().unwrap();
        assert_eq!((alone.gone, alone.lines.len()), (Some((6, Timestamp(7))), 0));
        assert_eq!(buffer.figures().dropped, 6, "each is counted once");
        // What only says so and is refused is not said again and again.
        buffer.refused(&alone, "no".to_owned());
        assert!(buffer.take_now().is_none());
    }

    #[test]
    fn what_was_sent_is_known_up_to_the_first_line_that_was_not() {
        let buffer = Buffer::default();
        assert_eq!((buffer.room(), buffer.progress()), (LINES / 2, (0, 0)));
        (0..300).for_each(|number| buffer.push(line(number, "")));
        assert_eq!((buffer.room(), buffer.progress()), (LINES / 2 - 300, (300, 0)));
        let batch = buffer.take_now().unwrap();
        assert_eq!(buffer.progress(), (300, 0), "being sent is not sent");
        // The oldest of those that wait give way meanwhile.
        (0..LINES).for_each(|number| buffer.push(line(number, "")));
        assert_eq!((buffer.room(), buffer.progress()), (0, (300 + LINES as u64, 0)));
        buffer.sent(&batch);
        assert_eq!(buffer.progress(), (300 + LINES as u64, 300));
    }

    #[test]
    fn bytes_are_bounded_as_well() {
        let buffer = Buffer::default();
        let text = "x".repeat(10_000);
        for number in 0..2_000 {
            buffer.push(line(number, &text));
        }
        let waiting: usize = buffer.lock().lines.iter().map(|line| line.text.len()).sum();
        assert!(waiting <= BYTES && waiting == buffer.lock().bytes && buffer.figures().dropped > 1_000);
        assert!(buffer.take_now().unwrap().lines.len() <= BATCH_BYTES / 10_000 + 1);
    }
}
