//! Heroku's codes for what goes wrong with a process, as far as they can be seen here. Those of the router (H…) are
//! the router's own.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuntimeCode {
    /// It did not listen at `$PORT` in time.
    R10,
    /// It listened, but at another port.
    R11,
    /// It did not end in time after SIGTERM.
    R12,
    /// It uses more memory than its size has.
    R14,
    /// It reached the hard limit of memory and was ended.
    R15,
}

impl RuntimeCode {
    pub const ALL: [RuntimeCode; 5] =
        [RuntimeCode::R10, RuntimeCode::R11, RuntimeCode::R12, RuntimeCode::R14, RuntimeCode::R15];

    /// Heroku's words for it, as they stand in log lines.
    pub fn description(self) -> &'static str {
        match self {
            RuntimeCode::R10 => "Boot timeout",
            RuntimeCode::R11 => "Bad bind",
            RuntimeCode::R12 => "Exit timeout",
            RuntimeCode::R14 => "Memory quota exceeded",
            RuntimeCode::R15 => "Memory quota vastly exceeded",
        }
    }

    /// `Error R14 (Memory quota exceeded)`.
    pub fn line(self) -> String {
        format!("Error {self} ({})", self.description())
    }
}

impl fmt::Display for RuntimeCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}
