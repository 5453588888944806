//! `scripts.test-setup`, done once for all nodes that would do the same: in a process of its own, on the slug's code and
//! with the variables that all nodes have in common. What it leaves in the code's folder becomes a slug, from which nodes
//! start; the same inputs find it again for a day.
//!
//! Where a node's own surroundings may matter (add-ons, the machine's network, generated secrets), or where the script
//! leaves something that is no file below the code's root, each node runs it by itself.

use super::apply::enqueue;
use super::observe::{self, label};
use super::publish::fingerprint;
use super::split::{self, INSIDE_PROGRAM};
use super::start::{self, code_of, slug_of};
use super::{Trouble, World, act, build};
use crate::ci::wire::{SETUP_LEFT_FILES, SETUP_LEFT_PROCESSES, SETUP_NOT_A_SLUG};
use crate::clock::Timestamp;
use crate::config::Network;
use crate::domain::*;
use crate::outside;
use crate::platform::{self, Bind, PlatformError, Spec, State};
use crate::slug;
use crate::store::{StoreError, Transaction};
use crate::workflow::test_script;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tracing::info;

/// The clock is an input too, and the only one that is not in the key: a result is used for a day.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Where the process leaves what it made.
const INTO: &str = "/landfall/kept";

/// Says where the script of a run is done.
pub(super) async fn place(world: &World, run: &TestRun, nodes: u16) -> Result<(), Trouble> {
    let Some(slug) = slug_of(world, run)? else { return Ok(()) };
    let key = match inputs(world, run, &slug)? {
        Ok(inputs) => inputs.key,
        Err(why) => return put(world, run, Setup::OnNodes { why }).await,
    };
    let _alone = world.locks.lock(&lock_of(&key)).await;
    let known = world.store.preparation(&key)?;
    let still = |at| world.now().since(at) < KEPT;
    if let Some(known) = &known {
        let asked = known.run == run.number || waits_for(run, &key);
        match &known.state {
            PreparationState::Running => return put(world, run, Setup::Making { key }).await,
            PreparationState::Kept { slug, at } if still(*at) && build::is_on_disk(world, slug) => {
                return put(world, run, Setup::Kept { slug: slug.clone() }).await;
            }
            // What failed may be tried again by a run that did not wait for it, what ended otherwise would end so again.
            PreparationState::NotKept { why, at } if still(*at) && (*why != NotKept::Failed || asked) => {
                return put(world, run, Setup::OnNodes { why: *why }).await;
            }
            _ if known.run == run.number => {
                return put(world, run, Setup::OnNodes { why: NotKept::Failed }).await;
            }
            PreparationState::Kept { .. } | PreparationState::NotKept { .. } => {}
        }
    }
    if slug.settings().tests.nodes.unwrap_or(nodes) < 2 {
        return put(world, run, Setup::OnNodes { why: NotKept::OneNode }).await;
    }
    let preparation =
        Preparation { key: key.clone(), repository: run.repository, run: run.number, state: PreparationState::Running };
    world.commit(move |tx| tx.put_preparation(&preparation)).await?;
    put(world, run, Setup::Making { key }).await
}

/// Starts the process that a run waits for.
pub(super) async fn begin(world: &World, run: &TestRun) -> Result<(), Trouble> {
    let Some((preparation, _alone)) = awaited(world, run).await? else { return Ok(()) };
    let Some(slug) = slug_of(world, run)? else { return Ok(()) };
    if observe::list(world).await?.iter().any(|status| status.id == preparation.process()) {
        // Another run that waits for the same was first.
        return Ok(());
    }
    let inputs = match inputs(world, run, &slug)? {
        Ok(inputs) if inputs.key == preparation.key => inputs,
        // A config var was set meanwhile.
        _ => return leave_locked(world, run, &preparation).await,
    };
    for digest in slug.digests() {
        start::publish(world, digest).await?;
    }
    let folder = folder(world, &preparation);
    build::remove_folder(&folder).await?;
    let into = folder.join("kept");
    tokio::fs::create_dir_all(&into).await?;
    let settings = &world.config.tests;
    let toolchains = world.config.sandbox.toolchains.iter();
    let toolchains: String =
        toolchains.map(|path| format!(" --toolchain {}", quoted(&path.to_string_lossy()))).collect();
    let spec = Spec {
        id: preparation.process(),
        labels: [(label::SETUP, preparation.key.0.clone()), (label::TYPE, "test-setup".to_owned())]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        name: "test-setup.1".to_owned(),
        code: code_of(&slug),
        command: format!(
            "exec {INSIDE_PROGRAM} node --setup {} --into {INTO} --slug-mb {}{toolchains}",
            quoted(&inputs.script),
            world.config.build.slug_mb,
        ),
        environment: inputs.variables,
        limits: start::test_limits(world),
        network: platform::Network::Isolated,
        port: None,
        time_limit: Some(Duration::from_secs(settings.minutes * 60)),
        grace: Duration::from_secs(5),
        binds: vec![split::program(world), Bind { host: build::absolute(&into)?, inside: INTO.into(), writable: true }],
        services: Vec::new(),
        walls: platform::Walls::Sandbox,
        masked: inputs.masked,
    };
    start::start(world, &spec).await?;
    info!(run = %run.number, "test-setup of test run {} is done once for all nodes", run.number);
    Ok(())
}

/// The process is over: keeps what it made, or says why not.
pub(super) async fn collect(world: &World, run: &TestRun) -> Result<(), Trouble> {
    let Some((preparation, _alone)) = awaited(world, run).await? else { return Ok(()) };
    let process = preparation.process();
    let all = observe::list(world).await?;
    let Some(status) = all.iter().find(|status| status.id == process) else { return Ok(()) };
    let State::Exited { code, signal, why, .. } = &status.state else { return Ok(()) };
    let ended = observe::ended(*code, *signal, why);
    let made = if ended.is_success() { take_over(world, &preparation).await? } else { None };
    let at = world.now();
    let state = match (made, ended) {
        (Some(slug), _) => PreparationState::Kept { slug, at },
        (None, ended) => PreparationState::NotKept { why: why_not(&ended), at },
    };
    info!(run = %run.number, ?state, "test-setup of test run {} is over", run.number);
    let ended = Preparation { state, ..preparation.clone() };
    world
        .commit(move |tx| {
            tx.put_preparation(&ended)?;
            wake_waiting(tx, &ended, at)
        })
        .await?;
    act::discard(world, &process).await?;
    build::remove_folder(&folder(world, &preparation)).await
}

/// Its process started or ended: whoever waits for it looks again.
pub(super) async fn wake(world: &World, key: &str) -> Result<(), Trouble> {
    let Some(known) = world.store.preparation(&PreparationKey(key.to_owned()))? else { return Ok(()) };
    let now = world.now();
    world.store.transact(move |tx| wake_waiting(tx, &known, now)).await?;
    world.wake.notify_waiters();
    Ok(())
}

fn wake_waiting(tx: &mut Transaction<'_>, preparation: &Preparation, now: Timestamp) -> Result<(), StoreError> {
    for run in tx.runs_of(preparation.repository)? {
        if run.verdict.is_none() && waits_for(&run, &preparation.key) {
            enqueue(tx, &Subject::Run(run.number), now)?;
        }
    }
    Ok(())
}

async fn take_over(world: &World, preparation: &Preparation) -> Result<Option<SlugDigest>, Trouble> {
    let (from, into) = (folder(world, preparation).join("kept"), world.folder("archives"));
    let limits = build::archive_limits(world);
    outside::point("take over").await;
    let taken = tokio::task::spawn_blocking(move || slug::take_over(&from, &into, limits)).await?;
    outside::point("taken over").await;
    let Some(digest) = taken.map_err(Trouble::retry)? else { return Ok(None) };
    outside::point("platform publish").await;
    match world.platform.publish(&digest, &build::archive(world, &digest)).await {
        Ok(()) => Ok(Some(digest)),
        // Its bytes are a stranger's.
        Err(PlatformError::BadArchive(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn why_not(ended: &Ended) -> NotKept {
    match ended {
        Ended::Exited { code } if *code == i32::from(SETUP_LEFT_PROCESSES) => NotKept::LeftProcesses,
        Ended::Exited { code } if *code == i32::from(SETUP_LEFT_FILES) => NotKept::LeftFiles,
        Ended::Exited { code } if *code == i32::from(SETUP_NOT_A_SLUG) || *code == 0 => NotKept::NotASlug,
        _ => NotKept::Failed,
    }
}

/// The run waits no more. Who waits for the same goes on to do so; where nobody does, it ends.
pub(super) async fn leave(world: &World, run: &TestRun) -> Result<(), Trouble> {
    match awaited(world, run).await? {
        Some((preparation, _alone)) => leave_locked(world, run, &preparation).await,
        None => put(world, run, Setup::Open).await,
    }
}

async fn leave_locked(world: &World, run: &TestRun, preparation: &Preparation) -> Result<(), Trouble> {
    end_unless_wanted(world, preparation, Some(run.number)).await?;
    put(world, run, Setup::Open).await
}

/// Ends those that no run waits for any more, however that came: a run may get its verdict in another way.
pub(super) async fn end_unwanted(world: &World) -> Result<(), Trouble> {
    for known in world.store.preparations()?.into_iter().filter(Preparation::goes_on) {
        let _alone = world.locks.lock(&lock_of(&known.key)).await;
        if world.store.preparation(&known.key)?.as_ref() == Some(&known) {
            end_unless_wanted(world, &known, None).await?;
        }
    }
    Ok(())
}

/// Ends it where no run waits for it but the one that leaves. Whatever remains of it belongs to nobody then, and is taken
/// away as such.
async fn end_unless_wanted(world: &World, known: &Preparation, leaves: Option<RunNumber>) -> Result<(), Trouble> {
    let wanted = |run: &TestRun| {
        // Who asked may not have written yet that it waits.
        let waits = waits_for(run, &known.key) || (run.number == known.run && run.setup.is_open());
        waits && run.repository == known.repository && run.cancelled.is_none() && Some(run.number) != leaves
    };
    if world.store.runs_going_on()?.iter().any(wanted) {
        return Ok(());
    }
    act::stop(world, &known.process()).await?;
    let state = PreparationState::NotKept { why: NotKept::Failed, at: world.now() };
    let ended = Preparation { state, ..known.clone() };
    Ok(world.commit(move |tx| tx.put_preparation(&ended)).await?)
}

fn waits_for(run: &TestRun, key: &PreparationKey) -> bool {
    matches!(&run.setup, Setup::Making { key: awaited } if awaited == key)
}

/// What the run waits for, with nobody else at it.
async fn awaited(world: &World, run: &TestRun) -> Result<Option<(Preparation, impl Drop + use<>)>, Trouble> {
    let Setup::Making { key } = &run.setup else { return Ok(None) };
    let alone = world.locks.lock(&lock_of(key)).await;
    let known = world.store.preparation(key)?;
    Ok(known.filter(Preparation::goes_on).map(|known| (known, alone)))
}

fn lock_of(key: &PreparationKey) -> String {
    format!("setup {}", key.0)
}

/// Its folder lies among those of builds.
fn folder(world: &World, preparation: &Preparation) -> PathBuf {
    world.folder("builds").join(preparation.process().as_str())
}

/// Whether a folder or process of that name belongs to a preparation that goes on.
pub(super) fn goes_on(world: &World, key: &str, name: &str) -> Result<bool, Trouble> {
    let known = world.store.preparation(&PreparationKey(key.to_owned()))?;
    Ok(known.is_some_and(|known| known.goes_on() && known.process().as_str() == name))
}

/// Forgets what nobody starts from any more.
pub(super) async fn forget_old(world: &World) -> Result<(), Trouble> {
    for known in world.store.preparations()? {
        let (PreparationState::Kept { at, .. } | PreparationState::NotKept { at, .. }) = known.state else { continue };
        if world.now().since(at) >= KEPT {
            let _alone = world.locks.lock(&lock_of(&known.key)).await;
            let unchanged = world.store.preparation(&known.key)?.as_ref() == Some(&known);
            if unchanged {
                world.commit(move |tx| tx.delete_preparation(&known.key)).await?;
            }
        }
    }
    Ok(())
}

async fn put(world: &World, run: &TestRun, setup: Setup) -> Result<(), Trouble> {
    Ok(act::change_run(world, run.number, move |run, _| run.setup = setup).await?)
}

struct Inputs {
    key: PreparationKey,
    script: String,
    variables: BTreeMap<String, String>,
    masked: Vec<String>,
}

/// What the script is given; the error says why each node has to run it by itself.
fn inputs(world: &World, run: &TestRun, slug: &Slug) -> Result<Result<Inputs, NotKept>, Trouble> {
    let environment = slug.manifest().for_environment(Environment::Test);
    let Some(script) = test_script(slug).and_then(|script| script.setup) else { return Ok(Err(NotKept::Off)) };
    let why = if !slug.settings().tests.keep_setup {
        Some(NotKept::Off)
    } else if slug.image.is_some() {
        Some(NotKept::Image)
    } else if !environment.addons.is_empty() {
        Some(NotKept::Addons)
    } else if world.config.tests.network != Network::Isolated {
        Some(NotKept::Network)
    } else if environment.env.values().any(|declared| declared.generator.is_some()) {
        Some(NotKept::Secrets)
    } else {
        None
    };
    if let Some(why) = why {
        return Ok(Err(why));
    }
    let (variables, masked) = start::test_variables(world, run, slug, BTreeMap::new())?;
    let repository = run.repository.to_string();
    let toolchains = world.config.sandbox.toolchains.iter().map(|path| path.to_string_lossy());
    let toolchains: Vec<_> = toolchains.collect();
    let mut parts = vec![repository.as_str()];
    parts.extend(slug.digests().map(SlugDigest::as_str));
    parts.extend(toolchains.iter().map(AsRef::as_ref));
    parts.push(&script);
    parts.extend(variables.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]));
    parts.extend(masked.iter().map(String::as_str));
    // A stranger's run leaves nothing that others start from, whatever its hash.
    let whose = if run.untrusted { 'u' } else { 't' };
    let key = PreparationKey(format!("{whose}{}", fingerprint(&parts)));
    Ok(Ok(Inputs { key, script, variables, masked }))
}
