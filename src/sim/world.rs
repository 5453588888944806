//! What all threads of one stand-in share: the state under its lock, the bench of faults and switches, the queue of
//! webhooks. Everything that changes the state goes through [`World::with`], which lets its events leave in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::api::{self, repositories};
use super::git::Git;
use super::state::{AccountKind, App, Hook, Installation, State, default_permissions, system_seconds};
use super::wire::sha256_hex;
use super::{Options, access, view};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookMode {
    Normal,
    Lost { recorded: bool },
    Doubled,
    Reversed,
    Held,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub method: Option<String>,
    pub path: Option<regex::Regex>,
    pub kind: FaultKind,
    /// Seconds for the Retry-After header.
    pub retry_after: Option<u64>,
    pub delay_ms: u64,
    /// How often it still strikes; `None` for ever.
    pub left: Option<u64>,
    pub struck: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Status500,
    Status500After,
    Status502,
    Status503,
    Unauthorized,
    Missing,
    EmptyList,
    Secondary,
    Primary,
    TooMany,
    Delay,
    DropBefore,
    DropAfter,
}

pub struct Logged {
    pub id: u64,
    pub method: String,
    pub path: String,
    pub status: u16,
    pub milliseconds: u128,
    pub actor: String,
    pub at: i64,
    pub fault: Option<String>,
}

/// Switches and records of the controls; none of it survives a restart.
pub struct Bench {
    pub faults: Vec<Fault>,
    pub mode: HookMode,
    pub log: VecDeque<Logged>,
    pub next_log: u64,
    pub unknown: BTreeMap<String, u64>,
    /// Actor to the start of its hour and the calls in it.
    pub used: HashMap<String, (i64, u64)>,
    pub rate_limit: u64,
    pub enforce_rate: bool,
    /// Writes of one actor in a minute before the secondary limit answers; none without it.
    pub writes_per_minute: Option<u64>,
    /// Actor to the start of its minute and the writes in it.
    pub written: HashMap<String, (i64, u64)>,
    /// Who the browser of the OAuth flow is; the first user without it.
    pub signed_in: Option<u64>,
}

#[derive(Default)]
pub struct Queue {
    pub waiting: VecDeque<Hook>,
    /// Webhooks taken out of the queue and not yet answered.
    pub delivering: usize,
}

pub struct World {
    pub data: PathBuf,
    pub base: String,
    state: Mutex<State>,
    pub bench: Mutex<Bench>,
    pub queue: Mutex<Queue>,
    pub wake: tokio::sync::Notify,
    pub busy: AtomicUsize,
    dirty: AtomicBool,
    stopping: (Mutex<bool>, Condvar),
}

/// A lock whose holder panicked still guards whole records: every change is made on owned values first.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl World {
    pub fn open(options: &Options, base: String) -> Result<Self> {
        std::fs::create_dir_all(&options.data).with_context(|| format!("cannot make {}", options.data.display()))?;
        let data = options.data.canonicalize()?;
        let key = access::public_key(&options.app_public_key_pem).context("cannot read the app's public key")?;
        let file = data.join("github.json");
        let kept = match std::fs::read(&file) {
            Ok(bytes) => Some(serde_json::from_slice::<State>(&bytes).context("github.json cannot be read")?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("github.json cannot be read"),
        };
        let fresh = kept.is_none();
        let mut state = kept.unwrap_or_else(|| empty(options));
        state.base = base.clone();
        state.data = data.clone();
        state.app.id = options.app_id;
        state.app.hook_url = options.webhook_url.clone();
        state.app.hook_secret = options.webhook_secret.clone();
        state.keys.push(key);
        for pem in state.app.more_keys.clone() {
            state.keys.push(access::public_key(&pem)?);
        }
        state.deliveries = read_deliveries(&data)?;
        for (name, token) in &options.users {
            let id = state.ensure_account(name, AccountKind::User);
            state.fixed_tokens.insert(sha256_hex(token), id);
        }
        let world = Self {
            data,
            base,
            state: Mutex::new(state),
            bench: Mutex::new(Bench {
                faults: Vec::new(),
                mode: HookMode::Normal,
                log: VecDeque::new(),
                next_log: 1,
                unknown: BTreeMap::new(),
                used: HashMap::new(),
                rate_limit: 5000,
                enforce_rate: false,
                writes_per_minute: None,
                written: HashMap::new(),
                signed_in: None,
            }),
            queue: Mutex::default(),
            wake: tokio::sync::Notify::new(),
            busy: AtomicUsize::new(0),
            dirty: AtomicBool::new(true),
            stopping: (Mutex::new(false), Condvar::new()),
        };
        world.with(|state| {
            if fresh {
                state.emit_ping();
            }
            discover(state);
        });
        Ok(world)
    }

    /// Works on the state and lets the webhooks that this caused out, in order.
    pub fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = work(&mut state);
        if !state.outbox.is_empty() {
            let hooks = std::mem::take(&mut state.outbox);
            lock(&self.queue).waiting.extend(hooks);
            self.wake.notify_one();
        }
        self.dirty.store(true, Ordering::Release);
        result
    }

    /// Reads the state without marking it as changed.
    pub fn read<T>(&self, work: impl FnOnce(&State) -> T) -> T {
        work(&lock(&self.state))
    }

    /// As [`World::with`] for a call that reads, though it may find that something was pushed into a folder.
    pub fn with_reader<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let before = self.dirty.load(Ordering::Acquire);
        let told = std::cell::Cell::new(false);
        let result = self.with(|state| {
            let result = work(state);
            told.set(!state.outbox.is_empty());
            result
        });
        if !before && !told.get() {
            self.dirty.store(false, Ordering::Release);
        }
        result
    }

    /// As [`World::with`] for work that only fills caches: nothing to write, nothing to tell.
    pub fn glance<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut lock(&self.state))
    }

    /// Writes the state if it changed since the last time: to a new file, then over the old one.
    pub fn save(&self) {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return;
        }
        let written = {
            let state = lock(&self.state);
            serde_json::to_vec(&*state)
        };
        let outcome = written.map_err(anyhow::Error::from).and_then(|bytes| {
            use std::io::Write as _;
            use std::os::unix::fs::OpenOptionsExt as _;
            let temporary = self.data.join("github.json.new");
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            std::fs::rename(&temporary, self.data.join("github.json"))?;
            Ok(())
        });
        if let Err(error) = outcome {
            tracing::error!("the simulated GitHub cannot keep its records: {error:#}");
        }
    }

    /// Looks at the disk: new repositories, and pushes made straight into a folder.
    pub fn look_around(&self) {
        let before = self.dirty.load(Ordering::Acquire);
        let changed = {
            let mut state = lock(&self.state);
            let repositories = state.repositories.len();
            discover(&mut state);
            let ids: Vec<u64> = state.repositories.keys().copied().collect();
            for id in ids {
                repositories::look_again(&mut state, id);
            }
            let changed = state.repositories.len() != repositories || !state.outbox.is_empty();
            if !state.outbox.is_empty() {
                let hooks = std::mem::take(&mut state.outbox);
                lock(&self.queue).waiting.extend(hooks);
                self.wake.notify_one();
            }
            changed
        };
        self.dirty.store(before || changed || self.dirty.load(Ordering::Acquire), Ordering::Release);
    }

    /// Waits until stopping is asked for, or the time is over; true when it is time to stop.
    pub fn wait_for_stop(&self, time: std::time::Duration) -> bool {
        let (flag, condition) = &self.stopping;
        let guard = lock(flag);
        let (guard, _) = condition
            .wait_timeout_while(guard, time, |stopping| !*stopping)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *guard
    }

    pub fn ask_to_stop(&self) {
        *lock(&self.stopping.0) = true;
        self.stopping.1.notify_all();
    }

    pub fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.waiting.is_empty() && queue.delivering == 0 && self.busy.load(Ordering::Acquire) == 0
    }
}

/// Deliveries are appended to their file as they happen; here the last ones are read and the file is made short.
fn read_deliveries(data: &std::path::Path) -> Result<VecDeque<super::state::Delivery>> {
    let file = data.join("deliveries.jsonl");
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(VecDeque::new()) };
    let lines: Vec<&str> = text.lines().collect();
    let kept = &lines[lines.len().saturating_sub(super::state::KEPT_DELIVERIES)..];
    // The last line may be cut short by a crash; it is then as if that delivery was never noted.
    let deliveries = kept.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut short = kept.join("\n");
    if !short.is_empty() {
        short.push('\n');
    }
    std::fs::write(&file, short)?;
    Ok(deliveries)
}

/// Notes a delivery.
pub fn append_delivery(state: &State, delivery: &super::state::Delivery) {
    use std::io::Write as _;
    let appended = serde_json::to_string(delivery).map_err(std::io::Error::other).and_then(|line| {
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).open(state.data.join("deliveries.jsonl"))?;
        writeln!(file, "{line}")
    });
    if let Err(error) = appended {
        tracing::error!("the simulated GitHub cannot note a delivery: {error}");
    }
}

fn empty(options: &Options) -> State {
    let now = system_seconds();
    let secret = sha256_hex(&format!("{}/{}", options.webhook_secret, options.app_id));
    let mut state = State {
        clock_offset: 0,
        next_account: 1000,
        next_repository: 700_000,
        // Ids of comments, runs and deliveries exceed 32 bits on GitHub.
        next_id: 4_300_000_000,
        next_delivery: 9_100_000_000,
        hook_id: 480_001,
        app: App {
            id: options.app_id,
            slug: "landfall".into(),
            name: "Landfall".into(),
            bot: 0,
            owner: 0,
            created_at: now,
            permissions: default_permissions(),
            events: [
                "check_run",
                "check_suite",
                "create",
                "delete",
                "deployment",
                "deployment_status",
                "issue_comment",
                "issues",
                "label",
                "member",
                "merge_group",
                "pull_request",
                "pull_request_review",
                "push",
                "repository",
                "status",
            ]
            .map(str::to_owned)
            .to_vec(),
            hook_url: options.webhook_url.clone(),
            hook_secret: options.webhook_secret.clone(),
            client_id: format!("Iv23li{}", &secret[..14]),
            client_secret: secret[..40].to_owned(),
            setup_url: None,
            callback_url: None,
            more_keys: Vec::new(),
        },
        first_user: 0,
        accounts: BTreeMap::new(),
        repositories: BTreeMap::new(),
        moved: BTreeMap::new(),
        installations: BTreeMap::new(),
        tokens: BTreeMap::new(),
        user_tokens: BTreeMap::new(),
        oauth_codes: BTreeMap::new(),
        manifests: BTreeMap::new(),
        pressed: BTreeSet::new(),
        deliveries: VecDeque::new(),
        keys: Vec::new(),
        unknown_merges: 0,
        base: String::new(),
        data: PathBuf::new(),
        fixed_tokens: HashMap::new(),
        outbox: Vec::new(),
        pushing: HashMap::new(),
        commits: HashMap::new(),
        totals: HashMap::new(),
        merges: HashMap::new(),
    };
    let first = options.users.first().map_or("octocat", |(name, _)| name.as_str());
    state.first_user = state.ensure_account(first, AccountKind::User);
    state.app.owner = state.first_user;
    state.app.bot = state.ensure_account("landfall[bot]", AccountKind::Bot);
    state
}

/// Takes in bare repositories that have no record yet, and tells the app of them owner by owner.
fn discover(state: &mut State) {
    let Ok(owners) = std::fs::read_dir(&state.data) else { return };
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for owner in owners.flatten() {
        let Ok(login) = owner.file_name().into_string() else { continue };
        if !repositories::is_owner_name(&login) || !owner.path().is_dir() {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(owner.path()) else { continue };
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            let Some(name) = file.strip_suffix(".git") else { continue };
            let is_bare = entry.path().join("HEAD").is_file() && entry.path().join("objects").is_dir();
            if is_bare && repositories::is_name(name) && state.find_repository(&login, name).is_none() {
                found.entry(login.clone()).or_default().push(name.to_owned());
            }
        }
    }
    for (login, mut names) in found {
        names.sort();
        let owner = state.ensure_account(&login, AccountKind::Organization);
        let ids: Vec<u64> = names
            .iter()
            .map(|name| {
                let git = Git::at(state.data.join(&login).join(format!("{name}.git")));
                repositories::register(state, owner, name, &git, true, true)
            })
            .collect();
        let shown: Vec<Value> = ids
            .iter()
            .filter_map(|id| state.repositories.get(id))
            .map(|record| view::installed_repository(state, record))
            .collect();
        let sender = state.first_user;
        match state.installation_of(owner).map(|installation| installation.id) {
            Some(id) => {
                let fields = json!({
                    "repository_selection": "all",
                    "repositories_added": shown,
                    "repositories_removed": [],
                    "requester": null,
                });
                state.emit_installation("installation_repositories", "added", id, sender, fields);
            }
            None => {
                let id = new_installation(state, owner);
                let fields = json!({"repositories": shown, "requester": null});
                state.emit_installation("installation", "created", id, sender, fields);
            }
        }
    }
}

/// Makes the installation of an owner.
pub fn new_installation(state: &mut State, owner: u64) -> u64 {
    let id = state.installations.keys().last().map_or(50_001, |last| last + 1);
    let now = state.now();
    let permissions = state.app.permissions.clone();
    state.installations.insert(
        id,
        Installation {
            id,
            account: owner,
            created_at: now,
            updated_at: now,
            suspended_at: None,
            suspended_by: None,
            permissions,
        },
    );
    id
}

/// The repository that a control or page names as `OWNER/NAME`.
pub fn named(state: &State, full_name: &str) -> Option<u64> {
    let (owner, name) = full_name.split_once('/')?;
    state.find_repository(owner, name)
}

/// Who acts for a control or a page.
pub use api::app::person;
