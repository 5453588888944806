//! Tables and lines for a terminal. What somebody else wrote loses everything that a terminal would obey.

use super::Failed;
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// One line without control characters, escape sequences and marks that turn the reading direction.
pub fn plain(text: &str) -> String {
    crate::text::plain(text, 500)
}

/// A line of a log: colours on a terminal, nothing but text elsewhere.
pub fn log_text(text: &str) -> String {
    if std::io::stdout().is_terminal() { crate::web::ansi::for_terminal(text) } else { crate::web::ansi::visible(text) }
}

pub fn line(text: &str) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

pub fn json(value: &Value) -> Result<(), Failed> {
    line(&serde_json::to_string_pretty(value).unwrap_or_default())
}

/// Columns as wide as their widest cell, two blanks between them; the last one is as long as it likes.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failed> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        line(text.trim_end())
    };
    print(head.to_vec())?;
    for row in &rows {
        print(row.iter().map(String::as_str).collect())?;
    }
    Ok(())
}

/// The text at a path of fields; numbers as they are written, nothing for null.
pub fn text(value: &Value, path: &[&str]) -> String {
    let found = path.iter().try_fold(value, |value, field| value.get(field));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(truth)) => truth.to_string(),
        _ => String::new(),
    }
}

/// The elements of a list field.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub fn short(sha: &str) -> String {
    sha.chars().take(7).collect()
}

/// `v3`, or nothing.
pub fn release(number: &str) -> String {
    if number.is_empty() { String::new() } else { format!("v{number}") }
}

/// `12 s`, `3 min`, `5 h`, `2 d` ago, from `seconds_ago` of a moment.
pub fn ago(value: &Value, field: &str) -> String {
    let seconds = value.get(field).and_then(|when| when.get("seconds_ago")).and_then(Value::as_u64);
    match seconds {
        None => String::new(),
        Some(seconds @ ..60) => format!("{seconds} s ago"),
        Some(seconds @ 60..3600) => format!("{} min ago", seconds / 60),
        Some(seconds @ 3600..86_400) => format!("{} h ago", seconds / 3600),
        Some(seconds) => format!("{} d ago", seconds / 86_400),
    }
}

/// A duration in thousandths of a second.
pub fn span(value: &Value, field: &str) -> String {
    match value.get(field).and_then(Value::as_u64) {
        None => String::new(),
        Some(milliseconds @ ..1000) => format!("{milliseconds} ms"),
        Some(milliseconds @ 1000..60_000) => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        Some(milliseconds) => format!("{} min {} s", milliseconds / 60_000, milliseconds % 60_000 / 1000),
    }
}
