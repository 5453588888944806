//! `landfall down`: everything of a data folder ends. The control plane must have ended before, or it would start
//! again what is stopped here.

use crate::clock::Clock;
use crate::platform::{Platform, PlatformError};
use crate::router::{Router, RouterError};
use std::time::Duration;

/// How often it is looked whether all are over.
const LOOK: Duration = Duration::from_millis(100);

/// What was stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    pub processes: usize,
    pub router: bool,
    /// Processes that had not ended in time.
    pub left: Vec<String>,
}

/// Ends the router, which lets requests in flight finish, then all processes; waits for `patience` until none is left.
pub async fn stop_everything(
    platform: &Platform,
    router: &Router,
    clock: &Clock,
    patience: Duration,
) -> Result<Stopped, PlatformError> {
    let mut stopped = Stopped { router: router.ping().await.is_ok(), ..Stopped::default() };
    match router.stop().await {
        Ok(()) | Err(RouterError::Unreachable(_)) => {}
        Err(error) => tracing::warn!("the router did not take the order to end: {error}"),
    }
    let deadline = clock.now() + patience;
    let mut asked = std::collections::BTreeSet::new();
    loop {
        let running: Vec<_> = platform.list().await?.into_iter().filter(|status| !status.state.is_over()).collect();
        for status in &running {
            if asked.insert(status.id.clone()) {
                platform.stop(&status.id).await?;
            }
        }
        // Whoever is told that nothing runs finds no supervisor either.
        let over = running.is_empty() && platform.supervisors().await?.is_empty();
        if over || clock.now() >= deadline {
            stopped.processes = asked.len() - running.len();
            stopped.left = running.into_iter().map(|status| status.id.to_string()).collect();
            if !router.is_gone_within(deadline.since(clock.now()).max(LOOK)).await {
                stopped.left.push("router".to_owned());
            }
            return Ok(stopped);
        }
        tokio::time::sleep(LOOK).await;
    }
}
