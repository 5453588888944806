//! Feeds the drains: lines of processes from the platform, of requests from the router, of releases from the store.
//!
//! It only ever reads what is kept anyway, from where it read last, so neither an app nor the router can be held up by
//! it. Where it read last is written once everything before it was sent (or after a minute, whatever waits), so a
//! restart sends a few lines again rather than none. What was not kept until it came by is counted and told (L10).

use super::observe::label;
use super::{Trouble, World, act};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::drains::{Line, Origin, Target, Wanted};
use crate::platform::{LogCursor, LogLine, LogStream, PlatformError, ProcessStatus, State};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

const EVERY: Duration = Duration::from_millis(500);
/// After so long where it read last is written although not everything before it was sent.
const WRITTEN_ANYWAY: Duration = Duration::from_secs(60);
/// Lines that one question brings.
const LINES: usize = 2_000;

/// How far each source was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Feed {
    /// From when on each drain gets lines.
    since: BTreeMap<String, Timestamp>,
    router_since: Timestamp,
    router_after: u64,
    /// The last line of each app, by its number.
    router_numbers: BTreeMap<AppName, u64>,
    processes: BTreeMap<ProcessId, Place>,
    releases: BTreeMap<AppName, u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    app: AppName,
    name: String,
    cursor: LogCursor,
    told: Life,
}

/// How much of a process's life was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Life {
    Starting,
    Up,
    Over,
}

/// The drains that the configuration and the store name.
pub fn wanted(world: &World) -> Result<Vec<Wanted>, Trouble> {
    let settings = &world.config.drains;
    let for_all = settings.all.iter().map(|address| (None, address));
    let for_apps = settings.apps.iter().flat_map(|(app, all)| all.iter().map(move |address| (Some(app), address)));
    let mut wanted = Vec::new();
    for (app, address) in for_all.chain(for_apps) {
        let app = app.and_then(|app| app.parse::<AppName>().ok());
        // The configuration was checked when it was read.
        let Ok(target) = Target::parse(address.expose()) else { continue };
        let of = app.as_ref().map_or("", AppName::as_str);
        let digest = crc32c::crc32c(format!("{of} {}", address.expose()).as_bytes());
        wanted.push(Wanted { id: format!("d.config-{digest:08x}"), target, app });
    }
    for drain in world.store.drains()? {
        let address = world.vault.open_in(&place(&drain.id), &drain.address)?;
        let Ok(target) = Target::parse(&address) else { continue };
        wanted.push(Wanted { id: drain.id, target, app: drain.app });
    }
    Ok(wanted)
}

fn place(id: &str) -> String {
    format!("drain/{id}")
}

/// The address of a drain, for whoever may see it.
pub fn address(world: &World, drain: &Drain) -> Result<String, Trouble> {
    Ok(world.vault.open_in(&place(&drain.id), &drain.address)?)
}

/// Adds a drain; the refusal is a fragment.
pub async fn add(
    world: &World,
    address: &str,
    app: Option<AppName>,
    by: &str,
) -> Result<Result<Drain, String>, Trouble> {
    if let Err(why) = Target::parse(address) {
        return Ok(Err(why.to_owned()));
    }
    let id = format!("d.{}", world.vault.random_hex(16)?);
    let sealed = world.vault.seal_in(&place(&id), address)?;
    let drain = Drain { id, address: sealed, app, by: by.to_owned(), added_at: world.now() };
    let made = drain.clone();
    let added = world
        .commit(move |tx| {
            if tx.drains()?.iter().filter(|other| other.app == made.app).count() >= MOST_DRAINS {
                return Ok(false);
            }
            tx.put_drain(&made)?;
            Ok::<bool, crate::store::StoreError>(true)
        })
        .await?;
    Ok(if added { Ok(drain) } else { Err(format!("there are {MOST_DRAINS} drains already")) })
}

/// Takes a drain away; false when there is none of this id.
pub async fn remove(world: &World, id: &str) -> Result<bool, Trouble> {
    let id = id.to_owned();
    let removed = world.commit(move |tx| {
        let known = tx.drains()?.iter().any(|drain| drain.id == id);
        tx.delete_drain(&id)?;
        Ok::<bool, crate::store::StoreError>(known)
    });
    Ok(removed.await?)
}

/// Says something of an app's process to whoever wants its lines.
pub(super) fn say(world: &World, app: &AppName, process: &str, text: &str, at: Timestamp) {
    let (process, text) = (process.to_owned(), text.to_owned());
    world.drains.push(Line { at, app: app.clone(), origin: Origin::Landfall, process, text });
}

pub(super) async fn run(world: Arc<World>) {
    let path = world.config.data_dir.join("drains.json");
    let mut feed = Feed::open(path.clone()).await;
    let mut written = (feed.clone(), world.now());
    loop {
        if let Err(trouble) = feed.step(&world).await {
            warn!("log lines could not be fetched for the drains: {trouble}");
        }
        let now = world.now();
        if feed != written.0 && (world.drains.idle() || now.since(written.1) >= WRITTEN_ANYWAY) {
            match feed.write(&path).await {
                Ok(()) => written = (feed.clone(), now),
                Err(error) => warn!("how far the drains are could not be written: {error}"),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl Feed {
    /// As it was written; from now on where it never was.
    pub async fn open(path: PathBuf) -> Feed {
        let bytes = tokio::fs::read(path).await.unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    async fn write(&self, path: &std::path::Path) -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        tokio::fs::write(&fresh, serde_json::to_vec(self)?).await?;
        tokio::fs::rename(&fresh, path).await
    }

    /// Hands on what is new since the last step.
    pub async fn step(&mut self, world: &World) -> Result<(), Trouble> {
        let now = world.now();
        let wanted = wanted(world)?;
        self.since.retain(|id, _| wanted.iter().any(|wanted| wanted.id == *id));
        let wanted = wanted.into_iter().map(|wanted| {
            // The router's lines have whole seconds: those of the second in which a drain was added are its own.
            let since = *self.since.entry(wanted.id.clone()).or_insert(Timestamp(now.0 - now.0 % 1000));
            (wanted, since)
        });
        world.drains.set(wanted.collect());
        if world.drains.is_empty() {
            *self = Feed::default();
            return Ok(());
        }
        self.releases(world)?;
        self.processes(world).await?;
        self.requests(world).await
    }

    fn releases(&mut self, world: &World) -> Result<(), Trouble> {
        let apps = world.store.apps()?;
        self.releases.retain(|name, _| apps.iter().any(|app| app.name == *name));
        for app in apps.iter().filter(|app| world.drains.wants(&app.name)) {
            let told = self.releases.entry(app.name.clone()).or_insert(0);
            // Drains do not ask for what was before them, so a long history need not be read.
            for number in (*told).max(app.last_release.saturating_sub(5)) + 1..=app.last_release {
                let Some(release) = world.store.release(&app.name, ReleaseNumber(number))? else { continue };
                let by = release.by.as_deref().unwrap_or("a push");
                let at = release.created_at;
                say(world, &app.name, "api", &format!("Deploy {} by {by}", release.commit.short()), at);
                say(world, &app.name, "api", &format!("Release {} created by {by}", release.number), at);
            }
            *told = app.last_release;
        }
        Ok(())
    }

    async fn processes(&mut self, world: &World) -> Result<(), Trouble> {
        let mut listed = BTreeSet::new();
        for status in world.platform.list().await? {
            let Some(app) = status.labels.get(label::APP).and_then(|app| app.parse::<AppName>().ok()) else { continue };
            if !world.drains.wants(&app) {
                continue;
            }
            listed.insert(status.id.clone());
            let fresh = || Place { app, name: status.name.clone(), cursor: LogCursor::default(), told: Life::Starting };
            let place = self.processes.entry(status.id.clone()).or_insert_with(fresh);
            if place.told == Life::Over {
                continue;
            }
            place.life_up_to(world, &status, Life::Up);
            let over = status.state.is_over();
            let whole = place.output(world, &status.id).await?;
            if over && whole {
                place.life_up_to(world, &status, Life::Over);
            }
        }
        // Processes that went since the last step: the rest of their lines is in the file that was kept.
        let gone: Vec<ProcessId> = self.processes.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        for id in gone {
            if let Some(place) = self.processes.remove(&id).filter(|place| place.told != Life::Over) {
                place.rest(world, &id).await;
            }
        }
        Ok(())
    }

    async fn requests(&mut self, world: &World) -> Result<(), Trouble> {
        loop {
            let tail = world.router.tail(self.router_since, self.router_after, LINES).await?;
            if tail.started_at != self.router_since {
                // Another router: it counts anew, and everything that it has is new.
                self.router_numbers.clear();
                self.router_since = tail.started_at;
            }
            self.router_after = tail.next;
            let count = tail.lines.len();
            for line in tail.lines {
                let before = self.router_numbers.insert(line.app.clone(), line.number);
                let lost = before.map_or(0, |before| line.number.saturating_sub(before + 1));
                let (at, text) = line.line.split_once(' ').unwrap_or(("", &line.line));
                let at = Timestamp::parse_rfc3339(at).unwrap_or_else(|| world.now());
                if lost > 0 {
                    world.drains.lost(&line.app, lost, at);
                }
                let text = text.split_once("]: ").map_or(text, |(_, text)| text);
                say(world, &line.app, "router", text, at);
            }
            if count < LINES {
                self.router_numbers.retain(|app, _| world.drains.wants(app));
                return Ok(());
            }
        }
    }
}

impl Place {
    fn line(&self, line: LogLine) -> Line {
        let origin = if line.stream == LogStream::System { Origin::Landfall } else { Origin::App };
        Line { at: line.at, app: self.app.clone(), origin, process: self.name.clone(), text: line.text }
    }

    /// Tells how a process's life went on, up to a point of it.
    fn life_up_to(&mut self, world: &World, status: &ProcessStatus, until: Life) {
        if self.told < Life::Up
            && let State::Running { since } = &status.state
        {
            say(world, &self.app, &self.name, "State changed from starting to up", *since);
            self.told = Life::Up;
        }
        if until == Life::Over
            && let State::Exited { code, signal, why, at } = &status.state
        {
            let ended = match (code, signal) {
                (Some(code), _) => format!("Process exited with status {code}"),
                (None, Some(signal)) => format!("Process ended by signal {signal}"),
                (None, None) => "Process ended".to_owned(),
            };
            say(world, &self.app, &self.name, &format!("{ended} ({why})"), *at);
            self.told = Life::Over;
        }
    }

    /// What it printed since; whether that is all that there will be.
    async fn output(&mut self, world: &World, id: &ProcessId) -> Result<bool, Trouble> {
        loop {
            let page = match world.platform.logs(id, self.cursor, LINES).await {
                Ok(page) => page,
                Err(PlatformError::Unknown(_)) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            if page.dropped > 0 {
                world.drains.lost(&self.app, page.dropped, world.now());
            }
            self.cursor = page.next;
            let count = page.lines.len();
            page.lines.into_iter().for_each(|line| world.drains.push(self.line(line)));
            if count < LINES {
                return Ok(page.ended);
            }
        }
    }

    async fn rest(&self, world: &World, id: &ProcessId) {
        let bytes = tokio::fs::read(act::log_file(world, id)).await.unwrap_or_default();
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<LogLine>(line).ok());
        let told = usize::try_from(self.cursor.line).unwrap_or(usize::MAX);
        lines.skip(told).for_each(|line| world.drains.push(self.line(line)));
    }
}
