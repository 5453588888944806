//! Who knocks at the door of an app that sleeps, for the control plane to hear: it asks, and is answered as soon as
//! somebody does.
//!
//! A knock is remembered until the app is awake, so a control plane that was not there when it came hears of it later.
//! Numbers of knocks go up over restarts of the router, since they begin with the time.

use crate::clock::Timestamp;
use crate::domain::AppName;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Knocks {
    asked: Mutex<Asked>,
    told: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Asked {
    last: u64,
    apps: BTreeMap<AppName, u64>,
}

impl Knocks {
    /// Somebody is at the door. Who knocked once need not do it again.
    pub fn knock(&self, app: &AppName, now: Timestamp) {
        {
            let mut asked = self.lock();
            if asked.apps.contains_key(app) {
                return;
            }
            asked.last = (asked.last + 1).max(u64::try_from(now.0).unwrap_or(0));
            let number = asked.last;
            asked.apps.insert(app.clone(), number);
        }
        self.told.notify_waiters();
    }

    pub fn is_asked_for(&self, app: &AppName) -> bool {
        self.lock().apps.contains_key(app)
    }

    pub fn forget(&self, is_over: impl Fn(&AppName) -> bool) {
        self.lock().apps.retain(|app, _| !is_over(app));
    }

    /// The apps that were asked for after the knock of this number, and the number to go on after. Waits for one.
    pub async fn after(&self, number: u64) -> (u64, Vec<AppName>) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let asked = self.lock();
                let apps: Vec<AppName> =
                    asked.apps.iter().filter(|(_, at)| **at > number).map(|(app, _)| app.clone()).collect();
                if !apps.is_empty() {
                    return (asked.last, apps);
                }
            }
            told.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
