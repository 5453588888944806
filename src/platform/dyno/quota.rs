//! What is told of a process that uses more than it should: Heroku's R codes, as lines of its log and as counts in its
//! folder. The lines are in Heroku's words, since people look for those.

use super::{Supervisor, say};
use crate::domain::RuntimeCode;
use crate::platform::files;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often a process over its quota is told of, as on Heroku.
const AGAIN: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Quota {
    told: Option<Instant>,
    codes: BTreeMap<RuntimeCode, u64>,
}

impl Supervisor {
    /// Tells of memory above what the process should do with (R14).
    pub(super) fn keep_quota(&mut self, bytes: u64) {
        let quota = self.launch.spec.limits.memory_quota;
        if quota == 0 || bytes <= quota || self.quota.told.is_some_and(|told| told.elapsed() < AGAIN) {
            return;
        }
        self.quota.told = Some(Instant::now());
        let percent = bytes as f64 * 100.0 / quota as f64;
        self.system_line(&format!("Process running mem={}M({percent:.1}%)", bytes >> 20));
        self.note_code(RuntimeCode::R14);
    }

    /// Counts a code and says it in the log.
    pub(super) fn note_code(&mut self, code: RuntimeCode) {
        *self.quota.codes.entry(code).or_default() += 1;
        self.system_line(&code.line());
        if let Err(error) = files::replace(&self.launch.folder.join(files::CODES), &self.quota.codes) {
            say(&format!("writing the codes: {error}"));
        }
    }
}
