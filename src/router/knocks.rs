//! Who knocks at the door of an app that sleeps, for the control plane to hear: it asks, and is answered as soon as
//! somebody does.
//!
//! A knock is remembered until the app is awake, so a control plane that was not there when it came hears of it later.
//! Numbers of knocks go up over restarts of the router, since they begin with the time. Where the clock was set back, one
//! of before may be higher than all of this router's.

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

    /// The apps that were asked for after the knock of this number, and the number to go on after. Waits for one. After a
    /// number that was never given, all of them.
    pub async fn after(&self, number: u64) -> (u64, Vec<AppName>) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let asked = self.lock();
                let after = if number > asked.last { 0 } else { number };
                let apps: Vec<AppName> =
                    asked.apps.iter().filter(|(_, at)| **at > after).map(|(app, _)| app.clone()).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_knock_is_heard_though_the_clock_was_set_back_and_the_router_is_a_new_one() {
        let app: AppName = "hello".parse().expect("an app's name");
        let before = Knocks::default();
        before.knock(&app, Timestamp(2_000));
        let (number, _) = before.after(0).await;

        let knocks = Knocks::default();
        knocks.knock(&app, Timestamp(1_000));
        let heard = |number| tokio::time::timeout(Duration::ZERO, knocks.after(number));
        assert_eq!(heard(number).await.ok(), Some((1_000, vec![app])));
        assert!(heard(1_000).await.is_err(), "one knock is told once");
    }
}
