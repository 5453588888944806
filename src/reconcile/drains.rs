//! Feeds the drains: lines of processes from the platform, of requests from the router, of releases from the store.
//!
//! It only ever reads what is kept anyway, each drain from where it read last and as much as it has room for, so neither an
//! app, nor the router, nor another drain can be held up by one. How far each drain's lines were sent is written twice a
//! second, so a restart sends a few lines again rather than none, and to that drain alone. What was not kept until it came by
//! is counted and told (L10).

use super::observe::app_of;
use super::{Trouble, World, kept};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::drains::{Departed, Intake, Line, Origin, Target, Wanted, masked};
use crate::platform::{Exit, LogCursor, LogLine, LogStream, PlatformError, ProcessStatus, State};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tracing::warn;

const EVERY: Duration = Duration::from_millis(500);
/// Lines that one question brings.
const LINES: usize = 2_000;
/// Places of a drain that are remembered until what was before them is sent.
const MARKS: usize = 32;
/// Processes that are gone and whose last lines wait until the drain has room for them.
const GONE: usize = 200;

/// How far the drains are.
#[derive(Default)]
pub struct Feeds(BTreeMap<String, Reader>);

/// How far each source was read for one drain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Feed {
    /// From when on it gets lines.
    since: Timestamp,
    router_since: Timestamp,
    router_after: u64,
    /// The last line of each app, by its number.
    router_numbers: BTreeMap<AppName, u64>,
    processes: BTreeMap<ProcessId, Place>,
    releases: BTreeMap<AppName, u32>,
}

/// Reads for one drain.
struct Reader {
    feed: Feed,
    /// Everything before it was sent, or is known to be lost.
    settled: Feed,
    /// Where it was after so many lines of the drain.
    marks: VecDeque<(u64, Feed)>,
    /// Ended processes that it has heard of.
    ended: u64,
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
        let shown = masked(address.expose());
        wanted.push(Wanted { id: format!("d.config-{digest:08x}"), target, shown, app });
    }
    for drain in world.store.drains()? {
        let address = world.vault.open_in(&place(&drain.id), &drain.address)?;
        let Ok(target) = Target::parse(&address) else { continue };
        wanted.push(Wanted { id: drain.id, target, shown: masked(&address), app: drain.app });
    }
    Ok(wanted)
}

fn place(id: &str) -> String {
    format!("drain/{id}")
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

/// Says something of an app's process, which nobody keeps, to whoever wants its lines.
pub(super) fn say(world: &World, app: &AppName, process: &str, text: &str, at: Timestamp) {
    world.drains.push(&said(app, process, text, at));
}

fn said(app: &AppName, process: &str, text: &str, at: Timestamp) -> Line {
    let (process, text) = (process.to_owned(), text.to_owned());
    Line { at, app: app.clone(), origin: Origin::Landfall, process, text }
}

/// What is said of a process's end, once it has ended.
pub(super) fn end_of(status: &ProcessStatus) -> Option<LogLine> {
    let State::Exited { code, signal, why, at } = &status.state else { return None };
    let ended = match (code, signal) {
        (Some(code), _) => format!("Process exited with status {code}"),
        (None, Some(signal)) => format!("Process ended by signal {signal}"),
        (None, None) => "Process ended".to_owned(),
    };
    let why = match (why, code) {
        // It was told to end, and did so by itself.
        (Exit::Killed, Some(_)) => "stopped".to_owned(),
        (why, _) => why.to_string(),
    };
    Some(LogLine { at: *at, stream: LogStream::System, text: format!("{ended} ({why})") })
}

pub(super) async fn run(world: Arc<World>) {
    let path = world.config.data_dir.join("drains.json");
    let mut feeds = Feeds::open(path.clone()).await;
    let mut written = feeds.settled();
    loop {
        if let Err(trouble) = feeds.step(&world).await {
            warn!("log lines could not be fetched for the drains: {trouble}");
        }
        let settled = feeds.settled();
        if settled != written {
            match feeds.write(&path).await {
                Ok(()) => written = settled,
                Err(error) => warn!("how far the drains are could not be written: {error}"),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl Feeds {
    /// As they were written; a drain of which nothing was begins now.
    pub async fn open(path: PathBuf) -> Feeds {
        let settled: BTreeMap<String, Feed> = match tokio::fs::read(&path).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(path = %path.display(), "how far the drains are cannot be read, so they begin now: {error}");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Feeds(settled.into_iter().map(|(id, feed)| (id, Reader::from(feed))).collect())
    }

    fn settled(&self) -> BTreeMap<String, Feed> {
        self.0.iter().map(|(id, reader)| (id.clone(), reader.settled.clone())).collect()
    }

    pub async fn write(&self, path: &std::path::Path) -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = tokio::fs::File::create(&fresh).await?;
        file.write_all(&serde_json::to_vec(&self.settled())?).await?;
        file.sync_data().await?;
        tokio::fs::rename(&fresh, path).await
    }

    /// Hands on what is new since the last step. What went wrong for one drain keeps no other from its lines.
    pub async fn step(&mut self, world: &World) -> Result<(), Trouble> {
        let now = world.now();
        let wanted = wanted(world)?;
        self.0.retain(|id, _| wanted.iter().any(|wanted| wanted.id == *id));
        let wanted = wanted.into_iter().map(|wanted| {
            // Some times have whole seconds: those of the second in which a drain was added are its own.
            let fresh = || Reader::from(Feed { since: Timestamp(now.0 - now.0 % 1000), ..Feed::default() });
            let since = self.0.entry(wanted.id.clone()).or_insert_with(fresh).feed.since;
            (wanted, since)
        });
        world.drains.set(wanted.collect());
        let intakes = world.drains.intakes();
        if intakes.is_empty() {
            return Ok(());
        }
        let (apps, processes) = (world.store.apps()?, world.platform.list().await?);
        // Beside each other: where one has to wait, the others go on.
        let read = self.0.iter_mut().map(async |(id, reader)| {
            let Some(intake) = intakes.iter().find(|intake| intake.id == *id) else { return Ok(()) };
            let read = reader.read(world, intake, &apps, &processes).await;
            reader.settle(intake);
            read
        });
        futures_util::future::join_all(read).await.into_iter().collect()
    }
}

impl From<Feed> for Reader {
    fn from(feed: Feed) -> Reader {
        Reader { settled: feed.clone(), feed, marks: VecDeque::new(), ended: 0 }
    }
}

impl Reader {
    async fn read(
        &mut self,
        world: &World,
        intake: &Intake,
        apps: &[App],
        processes: &[ProcessStatus],
    ) -> Result<(), Trouble> {
        // Where one source has a fault, the others go on.
        let releases = self.releases(world, intake, apps);
        let processes = self.processes(world, intake, processes).await;
        let requests = self.requests(world, intake).await;
        releases.and(processes).and(requests)
    }

    /// Marks the place, and finds the newest one before which everything was sent.
    fn settle(&mut self, intake: &Intake) {
        let (pushed, sent) = intake.buffer.progress();
        if self.marks.back().is_none_or(|(_, feed)| *feed != self.feed) {
            self.marks.push_back((pushed, self.feed.clone()));
            if self.marks.len() > MARKS {
                // A place between two others is as good as the one before it.
                self.marks.remove(MARKS - 1);
            }
        }
        let passed = self.marks.iter().take_while(|(number, _)| *number <= sent).count();
        if let Some((_, feed)) = self.marks.drain(..passed).next_back() {
            self.settled = feed;
        }
    }

    fn releases(&mut self, world: &World, intake: &Intake, apps: &[App]) -> Result<(), Trouble> {
        let told = &mut self.feed.releases;
        told.retain(|name, _| apps.iter().any(|app| app.name == *name));
        for app in apps.iter().filter(|app| intake.takes(&app.name)) {
            let told = told.entry(app.name.clone()).or_insert(0);
            // Drains do not ask for what was before them, so a long history need not be read.
            for number in (*told).max(app.last_release.saturating_sub(5)) + 1..=app.last_release {
                let Some(release) = world.store.release(&app.name, ReleaseNumber(number))? else { continue };
                for text in what_was_done(&release) {
                    intake.push(said(&app.name, "api", &text, release.created_at));
                }
            }
            *told = app.last_release;
        }
        Ok(())
    }

    async fn processes(&mut self, world: &World, intake: &Intake, processes: &[ProcessStatus]) -> Result<(), Trouble> {
        let (ended, count) = world.drains.ended_after(self.ended);
        self.ended = count;
        for Departed { process, app, name } in ended {
            if intake.takes(&app) {
                let fresh = || Place { app, name, cursor: LogCursor::default(), told: Life::Starting };
                self.feed.processes.entry(process).or_insert_with(fresh);
            }
        }
        let (mut listed, mut first) = (BTreeSet::new(), Ok(()));
        for status in processes {
            let Some(app) = app_of(status).filter(|app| intake.takes(app)) else { continue };
            listed.insert(status.id.clone());
            let fresh = || Place { app, name: status.name.clone(), cursor: LogCursor::default(), told: Life::Starting };
            let place = self.feed.processes.entry(status.id.clone()).or_insert_with(fresh);
            if place.told == Life::Over {
                continue;
            }
            if place.told < Life::Up
                && let State::Running { since } = &status.state
            {
                intake.push(said(&place.app, &place.name, "State changed from starting to up", *since));
                place.told = Life::Up;
            }
            match place.output(world, intake, &status.id).await {
                Ok(true) => {
                    if let Some(end) = end_of(status) {
                        intake.push(place.line(end));
                        place.told = Life::Over;
                    }
                }
                Ok(false) => {}
                Err(trouble) => first = first.and(Err(trouble)),
            }
        }
        // Processes that went since the last step: the rest of their lines is in the file that was kept.
        let gone: Vec<ProcessId> = self.feed.processes.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        let surplus = gone.len().saturating_sub(GONE);
        for (index, id) in gone.into_iter().enumerate() {
            let Some(place) = self.feed.processes.get_mut(&id) else { continue };
            if place.told == Life::Over || place.rest(world, intake, &id).await {
                self.feed.processes.remove(&id);
            } else if index < surplus {
                // One line at least, its end.
                intake.buffer.lost(1, world.now());
                self.feed.processes.remove(&id);
            }
        }
        first
    }

    async fn requests(&mut self, world: &World, intake: &Intake) -> Result<(), Trouble> {
        let feed = &mut self.feed;
        loop {
            let room = intake.buffer.room().min(LINES);
            if room == 0 {
                return Ok(());
            }
            let tail = world.router.tail(feed.router_since, feed.router_after, room).await?;
            if tail.started_at != feed.router_since {
                // Another router: it counts anew, and everything that it has is new.
                feed.router_numbers.clear();
                feed.router_since = tail.started_at;
            }
            feed.router_after = tail.next;
            let count = tail.lines.len();
            for line in tail.lines.into_iter().filter(|line| intake.takes(&line.app)) {
                let before = feed.router_numbers.insert(line.app.clone(), line.number);
                let lost = before.map_or(0, |before| line.number.saturating_sub(before + 1));
                let (at, text) = line.line.split_once(' ').unwrap_or(("", &line.line));
                let at = Timestamp::parse_rfc3339(at).unwrap_or_else(|| world.now());
                if lost > 0 {
                    intake.buffer.lost(lost, at);
                }
                let text = text.split_once("]: ").map_or(text, |(_, text)| text);
                intake.push(said(&line.app, "router", text, at));
            }
            if count < room {
                return Ok(());
            }
        }
    }
}

/// A release in the words of Heroku's `api` lines.
fn what_was_done(release: &Release) -> [String; 2] {
    let commit = release.commit.short();
    let (what, by) = match &release.cause {
        Cause::Push => (format!("Deploy {commit}"), "a push"),
        Cause::Retry { .. } => (format!("Deploy {commit} again"), "Landfall"),
        Cause::Promotion { from, release, .. } => (format!("Promote {from} {release} {commit}"), "Landfall"),
        Cause::Rollback { to, guard: None } => (format!("Rollback to {to}"), "Landfall"),
        Cause::Rollback { to, guard: Some(worse) } => (format!("Rollback to {to} from {worse}"), "the guard"),
        Cause::Config { names, .. } => (format!("Set {} config vars", names.join(", ")), "Landfall"),
    };
    let by = release.by.as_deref().unwrap_or(by);
    [format!("{what} by {by}"), format!("Release {} created by {by}", release.number)]
}

impl Place {
    fn line(&self, line: LogLine) -> Line {
        let origin = if line.stream == LogStream::System { Origin::Landfall } else { Origin::App };
        Line { at: line.at, app: self.app.clone(), origin, process: self.name.clone(), text: line.text }
    }

    /// What it printed since, as much as there is room for; whether that is all that there will be.
    async fn output(&mut self, world: &World, intake: &Intake, id: &ProcessId) -> Result<bool, Trouble> {
        loop {
            let room = intake.buffer.room().min(LINES);
            if room == 0 {
                return Ok(false);
            }
            let page = match world.platform.logs(id, self.cursor, room).await {
                Ok(page) => page,
                Err(PlatformError::Unknown(_)) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            if page.dropped > 0 {
                intake.buffer.lost(page.dropped, world.now());
            }
            self.cursor = page.next;
            let count = page.lines.len();
            page.lines.into_iter().for_each(|line| intake.push(self.line(line)));
            if count < room {
                return Ok(page.ended);
            }
        }
    }

    /// The same of a process that is gone, out of the file that was kept of it, which tells its end as well.
    async fn rest(&mut self, world: &World, intake: &Intake, id: &ProcessId) -> bool {
        let mut room = intake.buffer.room();
        if room == 0 {
            return false;
        }
        let bytes = tokio::fs::read(kept::log_file(world, id)).await.unwrap_or_default();
        let told = self.cursor.line;
        for (number, line) in kept::read(&bytes).filter(|(number, _)| *number >= told) {
            if room == 0 {
                return false;
            }
            if number > self.cursor.line {
                intake.buffer.lost(number - self.cursor.line, line.at);
            }
            intake.push(self.line(line));
            self.cursor.line = number + 1;
            room -= 1;
        }
        true
    }
}
