//! Is everything as it should be? What the machine lacks, what outlived its record, what waits for a person.

use crate::platform::Finding;
use crate::reconcile::{AddonLine, Leftover, World, addon_lines, command, leftovers};
use crate::store::Health;
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Doctor {
    /// Nothing below needs anybody.
    pub well: bool,
    pub version: &'static str,
    pub data_dir: String,
    pub findings: Vec<Finding>,
    pub store: StoreLine,
    pub router: RouterLine,
    pub leftovers: Vec<Leftover>,
    /// Why the leftovers could not be looked for.
    pub leftovers_unknown: Option<String>,
    pub parked: Vec<ParkedLine>,
    /// Each with its owner.
    pub addons: Vec<AddonLine>,
}

#[derive(Debug, Clone, Serialize)]
pub struct StoreLine {
    pub ready: bool,
    pub reason: Option<String>,
    pub index_in_memory: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct RouterLine {
    pub answers: bool,
    pub listen: Option<String>,
    pub apps: usize,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ParkedLine {
    pub key: String,
    pub attempts: u32,
    pub reason: String,
}

pub async fn doctor(world: &World) -> Doctor {
    let findings = world.platform.check().await;
    let (ready, reason) = match world.store.health() {
        Health::Ready => (true, None),
        Health::Refusing { reason } | Health::Poisoned { reason } => (false, Some(reason)),
    };
    let router = match world.router.status().await {
        Ok(status) => RouterLine { answers: true, listen: Some(status.listen), apps: status.apps.len(), reason: None },
        Err(error) => RouterLine { answers: false, listen: None, apps: 0, reason: Some(error.to_string()) },
    };
    let (found, leftovers_unknown) = match leftovers(world).await {
        Ok(found) => (found, None),
        Err(trouble) => (Vec::new(), Some(trouble.to_string())),
    };
    let parked: Vec<ParkedLine> = command::parked(world)
        .unwrap_or_default()
        .into_iter()
        .map(|entry| ParkedLine { key: entry.key, attempts: entry.attempts, reason: entry.parked.unwrap_or_default() })
        .collect();
    Doctor {
        well: findings.iter().all(|finding| finding.ok || !finding.wall)
            && ready
            && router.answers
            && found.is_empty()
            && leftovers_unknown.is_none()
            && parked.is_empty(),
        version: env!("CARGO_PKG_VERSION"),
        data_dir: world.config.data_dir.display().to_string(),
        findings,
        store: StoreLine { ready, reason, index_in_memory: world.store.figures().index_in_memory },
        router,
        leftovers: found,
        leftovers_unknown,
        parked,
        addons: addon_lines(world).unwrap_or_default(),
    }
}
