//! A process's output on disk: its first lines and its last ones, each with its time and stream.
//!
//! The supervisor alone writes. A line is `<milliseconds> <o|e|s> <text>\n`. The head grows to half of the cap; then
//! segments follow, and the oldest is deleted when a new one would pass the other half. A file's name
//! (`log.<offset>.<line>`) says where it stands in the whole stream, so a cursor stays good whatever was dropped.

use super::contract::{LogCursor, LogLine, LogPage, LogStream, MAX_LINE_BYTES};
use crate::clock::Timestamp;
use crate::domain::{Mask, MaskedStream};
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The tail is kept in this many segments, so at least three quarters of its half are always there.
const TAIL_SEGMENTS: u64 = 4;

/// A page is at most this large, whatever number of lines was asked for.
const PAGE_BYTES: u64 = 4 << 20;

pub struct LogWriter {
    folder: PathBuf,
    head_bytes: u64,
    segment_bytes: u64,
    file: Option<fs::File>,
    /// Bytes in the open file.
    filled: u64,
    in_head: bool,
    tail: VecDeque<PathBuf>,
    end: LogCursor,
    buffer: Vec<u8>,
}

impl LogWriter {
    pub fn new(folder: &Path, output_bytes: u64) -> LogWriter {
        let half = (output_bytes / 2).max(4096);
        LogWriter {
            folder: folder.to_owned(),
            head_bytes: half,
            segment_bytes: half / TAIL_SEGMENTS,
            file: None,
            filled: 0,
            in_head: true,
            tail: VecDeque::new(),
            end: LogCursor::default(),
            buffer: Vec::new(),
        }
    }

    /// Whether the head is full, so that writing more means forgetting.
    pub fn overflowing(&self) -> bool {
        !self.in_head
    }

    /// Behind the last line.
    pub fn end(&self) -> LogCursor {
        self.end
    }

    /// Takes one line without its newline; `flush` brings it to the file.
    pub fn line(&mut self, at: Timestamp, stream: LogStream, text: &[u8]) {
        let letter = match stream {
            LogStream::Out => 'o',
            LogStream::Err => 'e',
            LogStream::System => 's',
        };
        let start = self.buffer.len();
        let _ = write!(self.buffer, "{} {letter} ", at.0);
        self.buffer.extend(text.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
        self.buffer.push(b'\n');
        let length = (self.buffer.len() - start) as u64;
        let limit = if self.in_head { self.head_bytes } else { self.segment_bytes };
        if self.file.is_some() && self.filled + length > limit {
            let line = self.buffer.split_off(start);
            self.flush();
            self.buffer = line;
            self.file = None;
            self.in_head = false;
        }
        if self.file.is_none() {
            self.open();
        }
        self.filled += length;
        self.end.offset += length;
        self.end.line += 1;
    }

    /// Output that can't be written (a full disk) is lost: a process is not stopped for its log.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.buffer);
        }
        self.buffer.clear();
    }

    fn open(&mut self) {
        let path = self.folder.join(format!("log.{}.{}", self.end.offset, self.end.line));
        self.file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path).ok();
        self.filled = 0;
        if !self.in_head {
            self.tail.push_back(path);
            if self.tail.len() as u64 > TAIL_SEGMENTS
                && let Some(oldest) = self.tail.pop_front()
            {
                let _ = fs::remove_file(oldest);
            }
        }
    }
}

/// Splits what comes out of a pipe into lines, without the values that no log may show.
pub struct LineSplitter {
    stream: LogStream,
    partial: Vec<u8>,
    masked: Option<MaskedStream>,
}

impl LineSplitter {
    pub fn new(stream: LogStream, mask: Option<Mask>) -> LineSplitter {
        LineSplitter { stream, partial: Vec::new(), masked: mask.map(MaskedStream::new) }
    }

    pub fn feed(&mut self, at: Timestamp, bytes: &[u8], log: &mut LogWriter) {
        match &mut self.masked {
            None => self.split(at, bytes, log),
            Some(masked) => {
                let bytes = masked.feed(bytes);
                self.split(at, &bytes, log);
            }
        }
    }

    fn split(&mut self, at: Timestamp, mut bytes: &[u8], log: &mut LogWriter) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if self.partial.last() == Some(&b'\r') {
                self.partial.pop();
            }
            self.emit(at, log, true);
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= MAX_LINE_BYTES {
            self.emit(at, log, false);
        }
    }

    /// The rest, when the stream ended without a newline.
    pub fn finish(&mut self, at: Timestamp, log: &mut LogWriter) {
        if let Some(masked) = &mut self.masked {
            let bytes = masked.finish();
            self.split(at, &bytes, log);
        }
        if !self.partial.is_empty() {
            self.emit(at, log, true);
        }
    }

    fn emit(&mut self, at: Timestamp, log: &mut LogWriter, whole: bool) {
        let mut rest = self.partial.as_slice();
        while rest.len() > MAX_LINE_BYTES || (!whole && rest.len() == MAX_LINE_BYTES) {
            // A character is not cut in two where the text is UTF-8: at most three bytes of it can stand before.
            let back = (1..=3).find(|back| rest[MAX_LINE_BYTES - back] & 0xc0 == 0xc0).unwrap_or(0);
            let cut = if rest.get(MAX_LINE_BYTES).is_none_or(|next| next & 0xc0 == 0x80) { back } else { 0 };
            let (line, remainder) = rest.split_at(MAX_LINE_BYTES - cut);
            log.line(at, self.stream, line);
            rest = remainder;
            if rest.is_empty() {
                break;
            }
        }
        if whole && (!rest.is_empty() || self.partial.is_empty()) {
            log.line(at, self.stream, rest);
            self.partial.clear();
        } else {
            self.partial = rest.to_vec();
        }
    }
}

/// Reads at most `max_lines` after the cursor. `over` says that nothing more is written.
pub fn read(folder: &Path, after: LogCursor, max_lines: usize, over: bool) -> io::Result<LogPage> {
    // A segment may be deleted while it is looked for: then the folder is read again.
    for _ in 0..5 {
        match read_once(folder, after, max_lines, over) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Ok(LogPage { lines: Vec::new(), next: after, ended: false, dropped: 0 })
}

struct Segment {
    start: LogCursor,
    path: PathBuf,
}

fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((offset, line)) = name.to_str().and_then(|name| name.strip_prefix("log.")?.split_once('.')) else {
            continue;
        };
        if let (Ok(offset), Ok(line)) = (offset.parse(), line.parse()) {
            segments.push(Segment { start: LogCursor { offset, line }, path: entry.path() });
        }
    }
    segments.sort_by_key(|segment| segment.start.offset);
    Ok(segments)
}

fn read_once(folder: &Path, after: LogCursor, max_lines: usize, over: bool) -> io::Result<LogPage> {
    let segments = segments(folder)?;
    let mut page = LogPage { lines: Vec::new(), next: after, ended: false, dropped: 0 };
    let mut budget = PAGE_BYTES;
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let mut file = match fs::File::open(&segment.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !page.lines.is_empty() => return Ok(page),
            Err(error) => return Err(error),
        };
        let end = segment.start.offset + file.metadata()?.len();
        if end <= page.next.offset && !(is_last && end == page.next.offset) {
            continue;
        }
        if segment.start.offset > page.next.offset {
            if !page.lines.is_empty() {
                // The gap is told with the page that begins behind it.
                return Ok(page);
            }
            page.dropped = segment.start.line.saturating_sub(page.next.line);
            page.next = segment.start;
        }
        file.seek(SeekFrom::Start(page.next.offset - segment.start.offset))?;
        let mut bytes = Vec::new();
        file.take(budget).read_to_end(&mut bytes)?;
        budget -= bytes.len() as u64;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if page.lines.len() >= max_lines || line.last() != Some(&b'\n') {
                return Ok(page);
            }
            page.next.offset += line.len() as u64;
            page.next.line += 1;
            page.lines.extend(parse(&line[..line.len() - 1]));
        }
        if page.next.offset < end {
            return Ok(page);
        }
    }
    // What was written after the folder was read belongs to the next page, unless nobody writes any more.
    page.ended = over;
    Ok(page)
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let at = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
    let stream = match line.get(space + 1)? {
        b'o' => LogStream::Out,
        b'e' => LogStream::Err,
        _ => LogStream::System,
    };
    let text = line.get(space + 3..)?;
    Some(LogLine { at: Timestamp(at), stream, text: String::from_utf8_lossy(text).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(folder: &Path, page_lines: usize) -> (Vec<String>, u64) {
        let (mut lines, mut dropped, mut cursor) = (Vec::new(), 0, LogCursor::default());
        loop {
            let page = read(folder, cursor, page_lines, true).expect("the log is read");
            dropped += page.dropped;
            cursor = page.next;
            lines.extend(page.lines.into_iter().map(|line| line.text));
            if page.ended {
                return (lines, dropped);
            }
        }
    }

    #[test]
    fn head_and_tail_are_kept_and_what_is_between_is_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::new(folder.path(), 40_000);
        for number in 0..10_000 {
            log.line(Timestamp(number), LogStream::Out, format!("line {number}").as_bytes());
        }
        log.flush();
        let size: u64 = segments(folder.path())
            .expect("segments")
            .iter()
            .map(|segment| fs::metadata(&segment.path).expect("a file").len())
            .sum();
        assert!(size <= 40_000, "{size}");
        for page_lines in [1, 7, 100_000] {
            let (lines, dropped) = all(folder.path(), page_lines);
            assert_eq!(lines.first().map(String::as_str), Some("line 0"));
            assert_eq!(lines.last().map(String::as_str), Some("line 9999"));
            assert_eq!(lines.len() as u64 + dropped, 10_000);
            assert!(dropped > 5000);
        }
    }

    #[test]
    fn a_reader_may_follow_and_a_cursor_survives_what_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::new(folder.path(), 8192);
        assert_eq!(read(folder.path(), LogCursor::default(), 10, false).expect("empty").lines, []);
        let (mut cursor, mut seen, mut dropped) = (LogCursor::default(), 0, 0);
        for number in 0..2000 {
            log.line(Timestamp(0), LogStream::Err, format!("{number}").as_bytes());
            log.flush();
            if number % 300 == 0 || number == 1999 {
                loop {
                    let page = read(folder.path(), cursor, 1000, false).expect("a page");
                    assert!(!page.ended);
                    cursor = page.next;
                    dropped += page.dropped;
                    seen += page.lines.len();
                    if let Some(last) = page.lines.last() {
                        assert_eq!(last.stream, LogStream::Err);
                        assert_eq!(last.text.parse::<u64>().expect("a number") + 1, cursor.line);
                    }
                    if page.lines.is_empty() {
                        break;
                    }
                }
            }
        }
        assert_eq!(seen as u64 + dropped, 2000);
    }

    #[test]
    fn lines_are_split_at_newlines_and_at_their_greatest_length() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::new(folder.path(), 1 << 20);
        let mut splitter = LineSplitter::new(LogStream::Out, None);
        let long = "é".repeat(MAX_LINE_BYTES);
        for piece in ["one\ntw", "o\r\n\nbad \u{fffd}", "\n", &long, "\nrest"] {
            splitter.feed(Timestamp(5), piece.as_bytes(), &mut log);
        }
        splitter.finish(Timestamp(5), &mut log);
        log.flush();
        let (lines, _) = all(folder.path(), 1000);
        assert_eq!(lines[..4], ["one", "two", "", "bad \u{fffd}"]);
        assert_eq!(lines.last().map(String::as_str), Some("rest"));
        assert_eq!(lines[4..lines.len() - 1].concat(), long);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE_BYTES));
    }

    #[test]
    fn a_secret_is_hidden_wherever_a_line_or_a_piece_of_it_ends() {
        let secret = "s3cr3t-v4lu3";
        let text = format!("{}{secret}\nplain {secret}\r\n{secret}", "x".repeat(MAX_LINE_BYTES - 5));
        for size in [1, 2, 3, 5, 7, 11, 4096, text.len()] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut log = LogWriter::new(folder.path(), 1 << 20);
            let mut splitter = LineSplitter::new(LogStream::Out, Mask::of([secret]));
            for piece in text.as_bytes().chunks(size) {
                splitter.feed(Timestamp(5), piece, &mut log);
            }
            splitter.finish(Timestamp(5), &mut log);
            log.flush();
            let (lines, _) = all(folder.path(), 1000);
            assert_eq!(lines[..2].concat(), format!("{}[hidden]", "x".repeat(MAX_LINE_BYTES - 5)), "{size}");
            assert_eq!(lines[2..], ["plain [hidden]", "[hidden]"], "{size}");
        }
    }
}
