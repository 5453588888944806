//! The line that every call with an effect on the outside crosses: GitHub, git, the platform, the router, the journal.
//! A look (at the platform's list, at the router's status) changes nothing, so stopping before or after it is the same.
//!
//! In production a crossing costs one comparison. The crash test arms it: at the n-th crossing the control plane
//! stops as if it had been killed there, and the test starts it anew. An outside call that does not cross here is one
//! that the crash test cannot see, so `tests/layers.rs` looks for them.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts crossings, and stops the world at one of them.
#[derive(Debug, Default)]
pub struct Outside {
    crossed: AtomicU64,
    stop_at: AtomicU64,
    stopped: AtomicBool,
    stopping: tokio::sync::Notify,
    names: Mutex<Vec<&'static str>>,
    stop_before: Mutex<Option<&'static str>>,
}

impl Outside {
    /// Stops at the `n`-th crossing, counted from 1; 0 never stops.
    pub fn stopping_at(n: u64) -> Arc<Outside> {
        Arc::new(Outside { stop_at: AtomicU64::new(n), ..Outside::default() })
    }

    pub fn crossed(&self) -> u64 {
        self.crossed.load(Ordering::SeqCst)
    }

    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Stops the world at the next crossing of this name.
    pub fn stop_before(&self, name: &'static str) {
        if let Ok(mut next) = self.stop_before.lock() {
            *next = Some(name);
        }
    }

    /// Returns once the world was stopped.
    pub async fn stop(&self) {
        self.stopping.notified().await;
    }

    /// The crossings so far, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.names.lock().map(|names| names.clone()).unwrap_or_default()
    }
}

tokio::task_local! {
    static OUTSIDE: Option<Arc<Outside>>;
}

/// Runs `work` with its crossings counted.
pub async fn watched<F: Future>(outside: Option<Arc<Outside>>, work: F) -> F::Output {
    OUTSIDE.scope(outside, work).await
}

/// Call this right before an outside call and right after it. Never returns once the world was stopped.
pub async fn point(name: &'static str) {
    let outside = OUTSIDE.try_with(Clone::clone).ok().flatten();
    let Some(outside) = outside else { return };
    if !outside.stopped.load(Ordering::SeqCst) {
        if let Ok(mut names) = outside.names.lock() {
            names.push(name);
        }
        let number = outside.crossed.fetch_add(1, Ordering::SeqCst) + 1;
        let named = outside.stop_before.lock().is_ok_and(|wanted| *wanted == Some(name));
        if !named && number != outside.stop_at.load(Ordering::SeqCst) {
            return;
        }
        outside.stopped.store(true, Ordering::SeqCst);
        outside.stopping.notify_one();
    }
    std::future::pending::<()>().await;
}
