//! Field by field out of JSON that others wrote.
//!
//! GitHub adds fields, sends numbers where it says strings, and leaves out what a schema of another year requires. So
//! nothing is read that isn't needed, and whatever is missing is named by its path.

use crate::clock::Timestamp;
use crate::domain::Sha;
use serde_json::Value;

/// Why a payload or an answer can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("the body is not JSON: {detail}")]
    NotJson { detail: String },
    #[error("the form has no readable `payload` field")]
    NotForm,
    #[error("`{field}` is missing")]
    Missing { field: String },
    #[error("`{field}` is not {expected}")]
    Invalid { field: String, expected: &'static str },
}

/// A JSON value and the path it was found at.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value) -> Fields<'a> {
        Fields { value, path: String::new() }
    }

    /// What is at `name`; `None` when it is missing or null.
    pub(super) fn maybe(&self, name: &str) -> Option<Fields<'a>> {
        match self.value.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Some(Fields { value, path: self.path_of(name) }),
        }
    }

    pub(super) fn field(&self, name: &str) -> Result<Fields<'a>, PayloadError> {
        self.maybe(name).ok_or_else(|| PayloadError::Missing { field: self.path_of(name) })
    }

    /// The items of an array at `name`; none when it is missing or something else.
    pub(super) fn items(&self, name: &str) -> Vec<Fields<'a>> {
        self.maybe(name).map(|field| field.elements()).unwrap_or_default()
    }

    /// The items of this array.
    pub(super) fn elements(&self) -> Vec<Fields<'a>> {
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .enumerate()
            .map(|(index, value)| Fields { value, path: format!("{}[{index}]", self.path) })
            .collect()
    }

    pub(super) fn text(&self, name: &str) -> Result<String, PayloadError> {
        let field = self.field(name)?;
        match field.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(field.invalid("a text")),
        }
    }

    pub(super) fn maybe_text(&self, name: &str) -> Option<String> {
        self.text(name).ok()
    }

    /// A count or an id. Ids exceed 32 bits, and come as strings here and there.
    pub(super) fn number(&self, name: &str) -> Result<u64, PayloadError> {
        let field = self.field(name)?;
        match field.value {
            Value::Number(number) => number.as_u64().ok_or_else(|| field.invalid("a whole number")),
            Value::String(text) => text.parse().map_err(|_| field.invalid("a whole number")),
            _ => Err(field.invalid("a whole number")),
        }
    }

    pub(super) fn maybe_number(&self, name: &str) -> Option<u64> {
        self.number(name).ok()
    }

    /// Missing is no.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.maybe(name).and_then(|field| field.value.as_bool()).unwrap_or(false)
    }

    pub(super) fn maybe_flag(&self, name: &str) -> Option<bool> {
        self.maybe(name).and_then(|field| field.value.as_bool())
    }

    pub(super) fn sha(&self, name: &str) -> Result<Sha, PayloadError> {
        let text = self.text(name)?;
        text.parse().map_err(|_| PayloadError::Invalid { field: self.path_of(name), expected: "a full commit SHA" })
    }

    pub(super) fn maybe_sha(&self, name: &str) -> Option<Sha> {
        self.sha(name).ok()
    }

    /// A time: RFC 3339 as nearly everywhere, or seconds since 1970 as in `push` and old installations.
    pub(super) fn maybe_time(&self, name: &str) -> Option<Timestamp> {
        match self.maybe(name)?.value {
            Value::String(text) => Timestamp::parse_rfc3339(text),
            Value::Number(number) => number.as_i64().map(|seconds| Timestamp(seconds.saturating_mul(1000))),
            _ => None,
        }
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn invalid(&self, expected: &'static str) -> PayloadError {
        PayloadError::Invalid { field: self.path.clone(), expected }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
