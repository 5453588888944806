//! JSON with places: each value knows where it stands in the text, so that a message can point at its line.

use super::{ManifestError, ManifestErrorKind};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// A value of the document, and the way to it.
#[derive(Clone)]
pub(super) struct Value<'a> {
    text: &'a str,
    raw: &'a RawValue,
    /// `env.SECRET.value`; empty for the document itself.
    pub path: String,
}

/// A key with its value, in the order of the text.
pub(super) struct Member<'a> {
    pub key: String,
    pub line: u32,
    pub value: Value<'a>,
}

impl<'a> Value<'a> {
    /// Checks the syntax of the whole text.
    pub(super) fn document(text: &'a str) -> Result<Value<'a>, ManifestError> {
        // The reader of whole values finds better words for what is wrong, and stops at 128 levels.
        let checked = serde_json::from_str::<serde_json::Value>(text);
        match checked.and_then(|_| serde_json::from_str::<&RawValue>(text)) {
            Ok(raw) => Ok(Value { text, raw, path: String::new() }),
            Err(error) => {
                let described = error.to_string();
                // The parser appends the place, which the error holds by itself.
                let message = described.rsplit_once(" at line ").map_or(described.as_str(), |(message, _)| message);
                Err(ManifestError {
                    line: u32::try_from(error.line()).unwrap_or(0),
                    column: u32::try_from(error.column()).unwrap_or(0),
                    path: String::new(),
                    kind: ManifestErrorKind::Syntax { message: message.to_owned() },
                })
            }
        }
    }

    pub(super) fn members(&self) -> Result<Vec<Member<'a>>, ManifestError> {
        let Members(pairs) = self.read("an object")?;
        let member = |(key, raw): (String, &'a RawValue)| {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            let value = Value { text: self.text, raw, path };
            let line = place(self.text, self.key_end(raw)).0;
            Member { key, line, value }
        };
        Ok(pairs.into_iter().map(member).collect())
    }

    pub(super) fn items(&self) -> Result<Vec<Value<'a>>, ManifestError> {
        let items: Vec<&'a RawValue> = self.read("a list")?;
        let item = |(index, raw)| Value { text: self.text, raw, path: format!("{}[{index}]", self.path) };
        Ok(items.into_iter().enumerate().map(item).collect())
    }

    pub(super) fn string(&self) -> Result<String, ManifestError> {
        self.read("a string")
    }

    pub(super) fn boolean(&self) -> Result<bool, ManifestError> {
        self.read("true or false")
    }

    /// A whole number between `least` and `most`, both included.
    pub(super) fn number(&self, least: u32, most: u32) -> Result<u32, ManifestError> {
        let number: f64 = self.read("a number")?;
        if number.fract() != 0.0 || number < f64::from(least) || number > f64::from(most) {
            return Err(self.error(ManifestErrorKind::OutOfRange { least, most }));
        }
        // In range and whole, so nothing is lost.
        Ok(number as u32)
    }

    pub(super) fn is_string(&self) -> bool {
        self.raw.get().starts_with('"')
    }

    pub(super) fn error(&self, kind: ManifestErrorKind) -> ManifestError {
        let (line, column) = place(self.text, self.offset(self.raw));
        ManifestError { line, column, path: self.path.clone(), kind }
    }

    fn read<T: Deserialize<'a>>(&self, expected: &'static str) -> Result<T, ManifestError> {
        serde_json::from_str(self.raw.get()).map_err(|_| {
            let found = match self.raw.get().as_bytes().first() {
                Some(b'{') => "an object",
                Some(b'[') => "a list",
                Some(b'"') => "a string",
                Some(b't' | b'f') => "true or false",
                Some(b'n') => "null",
                _ => "a number",
            };
            self.error(ManifestErrorKind::Expected { expected: expected.to_owned(), found: found.to_owned() })
        })
    }

    /// Where a part of the text starts in it.
    fn offset(&self, part: &RawValue) -> usize {
        (part.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }

    /// The last byte of the key before a member's value.
    fn key_end(&self, value: &RawValue) -> usize {
        let before = self.text.get(..self.offset(value)).unwrap_or_default().trim_end();
        before.trim_end_matches(':').trim_end().len().saturating_sub(1)
    }
}

/// Line and column of a byte, both counted from 1.
fn place(text: &str, offset: usize) -> (u32, u32) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Deserialize<'a> for Members<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Members<'a>, D::Error> {
        struct InOrder;
        impl<'a> Visitor<'a> for InOrder {
            type Value = Members<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Members(pairs))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
