//! A tree becomes a slug, once: fetch, check out, run the buildpacks in a sandbox, pack.
//!
//! The build itself is a process like any other: it is started, observed, and collected when it has ended; nobody
//! waits for it. The same inputs have the same key, and a key is built once (see `inputs`).
//!
//! A build works in a folder of its own, its cache included, so that whatever becomes of it harms no other: the cache
//! goes back to its branch when the build is over, and a fork's goes with the folder.

use super::apply::enqueue;
use super::deliver::handle_of;
use super::inputs::{Inputs, build_environment, check_out_pack, inputs, manifest_of, settings_of, tree_of_folder};
use super::observe::{self, label};
use super::{Trouble, World, act, image};
use crate::clock::Timestamp;
use crate::config;
use crate::domain::*;
use crate::github::GitHubError;
use crate::outside;
use crate::platform::{Bind, Code, Limits, Network, Spec, State};
use crate::slug::{
    self, ArchiveError, ArchiveLimits, Blame, BuildPlan, BuildResultError, CacheLimits, Pack, Pruning, Remote,
    SourceError,
};
use crate::store::{StoreError, Transaction};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// What builds see as `STACK`: the Debian-like machine that Heroku's stack of that name is.
const STACK: &str = "heroku-24";
/// How often a build whose machine went away is begun.
const ATTEMPTS: u32 = 3;
/// Lines of a failed build's output that a report shows.
const TAIL: usize = 30;

/// Somebody wants this commit built.
pub(super) struct Wish<'a> {
    pub repository: RepositoryId,
    pub commit: &'a Sha,
    /// A failure that was known before is tried again.
    pub asked_at: Timestamp,
    /// The branch whose cache the build may write; see [`cache_of`].
    pub cache_of: Option<String>,
    /// The folder of the repository that is built; empty for all of it.
    pub root: String,
    /// Whose buildpacks of `app.json` hold.
    pub environment: Environment,
}

/// Whose cache a build may write: the branch's own, and nobody's where the code comes from a fork, whose branch may
/// have any name. A pull request that is not known is taken for a fork's.
pub(super) fn cache_of(
    world: &World,
    repository: RepositoryId,
    pull: Option<PullNumber>,
    branch: &str,
) -> Result<Option<String>, Trouble> {
    if let Some(number) = pull
        && world.store.pull(repository, number)?.is_none_or(|pull| pull.is_fork())
    {
        return Ok(None);
    }
    Ok(Some(branch.to_owned()).filter(|branch| !branch.is_empty()))
}

/// Sees to it that the commit's tree is built or being built; gives the tree, or why the commit can't be had.
pub(super) async fn ensure(world: &World, wish: &Wish<'_>) -> Result<Result<Sha, Failure>, Trouble> {
    let repository =
        world.store.repository(wish.repository)?.ok_or_else(|| Trouble::bug("an app of an unknown repository"))?;
    let _alone = world.locks.lock(&format!("build {}", repository.id)).await;
    let tree = match fetch(world, &repository, wish.commit).await {
        Ok(tree) if wish.root.is_empty() => tree,
        Ok(_) => match tree_of_folder(world, repository.id, wish.commit, &wish.root).await? {
            Some(tree) => tree,
            None => {
                let detail = format!("the commit has no folder {}", wish.root);
                return Ok(Err(Failure::Source { detail }));
            }
        },
        Err(Fetch::Failure(failure)) => return Ok(Err(failure)),
        Err(Fetch::Trouble(trouble)) => return Err(trouble),
    };
    let inputs = inputs(world, &repository, wish.commit, tree, &wish.root, wish.environment).await?;
    let Inputs { key, tree, buildpacks } = match inputs {
        Ok(inputs) => inputs,
        Err(failure) => return Ok(Err(failure)),
    };
    let known = world.store.build(&key)?;
    let attempt = match &known {
        None => 1,
        Some(build) => match &build.state {
            BuildState::Succeeded { slug, .. } if still_there(world, slug)? => {
                return known_again(world, build, tree).await;
            }
            BuildState::Running if is_known(world, &build.process).await? => {
                return known_again(world, build, tree).await;
            }
            // It was begun and never came to be: begin the same attempt again.
            BuildState::Running => build.attempt,
            BuildState::Failed { at, .. } if wish.asked_at <= *at => return known_again(world, build, tree).await,
            BuildState::Overtaken { .. } => {
                // What it has of its branch's cache is taken over, where its process is over already.
                end(world, build).await?;
                build.attempt + 1
            }
            BuildState::Failed { .. } | BuildState::Succeeded { .. } => build.attempt + 1,
        },
    };
    let build = Build {
        process: format!("build.{}.a{attempt}", key.0).parse().map_err(Trouble::bug)?,
        key,
        repository: repository.id,
        commit: wish.commit.clone(),
        tree: tree.clone(),
        attempt,
        started_at: world.now(),
        state: BuildState::Running,
        cache_of: wish.cache_of.clone().map(|branch| cache_name(&branch, &wish.root)),
        root: wish.root.clone(),
        buildpacks,
        phase: BuildPhase::Pack,
    };
    put(world, &build).await?;
    if let Err(failure) = begin(world, &repository, &build).await? {
        finish(world, &build, BuildState::Failed { failure, at: world.now() }, None).await?;
    }
    Ok(Ok(tree))
}

/// What the cache of a branch's folder is kept as: no two folders share one.
fn cache_name(branch: &str, root: &str) -> String {
    if root.is_empty() { branch.to_owned() } else { format!("{branch}:{root}") }
}

enum Fetch {
    Failure(Failure),
    Trouble(Trouble),
}

async fn fetch(world: &World, repository: &Repository, commit: &Sha) -> Result<Sha, Fetch> {
    let found = world.source.commit(repository.id, commit).await;
    if let Ok(Some(commit)) = found {
        return Ok(commit.tree);
    }
    let handle = handle_of(repository);
    let authorization = match world.github.git_authorization(handle.installation, handle.id).await {
        Ok(authorization) => Some(authorization.expose().to_owned()),
        Err(error) => return Err(Fetch::Trouble(Trouble::github(&error, world.now()))),
    };
    let url = world.github.clone_url(&handle);
    let remote = Remote { repository: repository.id, url, authorization };
    outside::point("git fetch").await;
    let fetched = world.source.fetch(&remote, commit).await;
    outside::point("git fetched").await;
    match fetched {
        Ok(commit) => Ok(commit.tree),
        Err(error) => Err(match (error.who(), &error) {
            (Blame::User, _) => Fetch::Failure(Failure::Source { detail: error.to_string() }),
            (_, SourceError::Unauthorized { .. }) => {
                Fetch::Trouble(Trouble::github(&GitHubError::Unauthorized { message: error.to_string() }, world.now()))
            }
            (Blame::Retry, _) => Fetch::Trouble(Trouble::retry(error)),
            (Blame::Bug, _) => Fetch::Trouble(Trouble::bug(error)),
        }),
    }
}

/// Nothing is to be built; but the tree may have been built from other inputs meanwhile, and its newest build counts.
async fn known_again(world: &World, build: &Build, tree: Sha) -> Result<Result<Sha, Failure>, Trouble> {
    if world.store.build_of_tree(build.repository, &tree)?.as_ref() != Some(&build.key) {
        put(world, build).await?;
    }
    Ok(Ok(tree))
}

/// Whether a slug's bytes are on disk. They are marked as just used, so that the sweep leaves them alone until a record
/// says that they are needed.
fn still_there(world: &World, slug: &SlugDigest) -> Result<bool, StoreError> {
    let Some(slug) = world.store.slug(slug)? else { return Ok(false) };
    Ok(slug.digests().all(|digest| is_on_disk(world, digest)))
}

/// As [`still_there`], of one archive.
pub(super) fn is_on_disk(world: &World, digest: &SlugDigest) -> bool {
    let now = system_time(world.now());
    std::fs::File::open(archive(world, digest)).and_then(|file| file.set_modified(now)).is_ok()
}

/// A time of ours as the file system writes it.
pub(super) fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or(0))
}

pub(super) fn cache_limits(world: &World) -> CacheLimits {
    let settings = &world.config.build;
    CacheLimits {
        total_bytes: settings.cache_mb << 20,
        age: Duration::from_secs(settings.cache_days * 24 * 3600),
        ..CacheLimits::default()
    }
}

pub(super) fn archive_limits(world: &World) -> ArchiveLimits {
    ArchiveLimits { archive_bytes: world.config.build.slug_mb * 1_000_000, ..ArchiveLimits::default() }
}

/// All caches of a repository.
fn caches(world: &World, repository: RepositoryId) -> PathBuf {
    world.folder("cache").join(repository.to_string())
}

/// The build is over: its cache goes back to its branch. A build that filled the disk may have filled it with its
/// cache, which would then fill it again.
async fn give_cache_back(world: &World, build: &Build, ended: Option<&Ended>) -> Result<(), Trouble> {
    let Some(branch) = build.cache_of.clone().filter(|_| ended != Some(&Ended::DiskLimit)) else { return Ok(()) };
    let (root, from) = (caches(world, build.repository), build_folder(world, build).join("cache"));
    let (limits, now) = (cache_limits(world), system_time(world.now()));
    outside::point("cache back").await;
    tokio::task::spawn_blocking(move || slug::give_cache_back(&root, &branch, &from, limits, now)).await?;
    Ok(())
}

async fn is_known(world: &World, process: &ProcessId) -> Result<bool, Trouble> {
    Ok(observe::list(world).await?.iter().any(|status| status.id == *process))
}

pub fn archive(world: &World, slug: &SlugDigest) -> PathBuf {
    world.folder("archives").join(format!("{slug}.tar.zst"))
}

pub(super) fn build_folder(world: &World, build: &Build) -> PathBuf {
    world.folder("builds").join(build.process_at(BuildPhase::Pack))
}

/// Checks the code out and starts the build process.
async fn begin(world: &World, repository: &Repository, build: &Build) -> Result<Result<(), Failure>, Trouble> {
    let folder = build_folder(world, build);
    // An attempt that was cut off before it ran.
    give_cache_back(world, build, None).await?;
    remove_folder(&folder).await?;
    let code = folder.join("app");
    let [out, cache, packs] = ["out", "cache", "packs"].map(|name| folder.join(name));
    tokio::fs::create_dir_all(&out).await?;
    outside::point("git check-out").await;
    match world.source.check_out_folder(repository.id, &build.commit, &build.root, &code).await {
        Ok(written) => {
            let warnings: Vec<String> = written.warnings.iter().map(|warning| warning.to_string()).collect();
            tokio::fs::write(folder.join("warnings.json"), serde_json::to_vec(&warnings).map_err(Trouble::bug)?)
                .await?;
        }
        Err(error) => match error.who() {
            Blame::User => return Ok(Err(Failure::Source { detail: error.to_string() })),
            Blame::Retry => return Err(Trouble::retry(error)),
            Blame::Bug => return Err(Trouble::bug(error)),
        },
    }
    outside::point("git checked out").await;
    let buildpacks = match slug::read_packs(&build.buildpacks) {
        Ok(buildpacks) => buildpacks,
        Err(error) => return Ok(Err(Failure::Buildpack { detail: error.to_string() })),
    };
    tokio::fs::create_dir_all(&packs).await?;
    for (number, pack) in buildpacks.iter().enumerate() {
        let Pack::Git { url, reference: Some(commit) } = pack else { continue };
        let commit: Sha = commit.parse().map_err(Trouble::bug)?;
        if let Err(failure) = check_out_pack(world, url, &commit, &packs.join(number.to_string())).await? {
            return Ok(Err(failure));
        }
    }
    let environment = build_environment(world, build.repository, &build.commit, &build.root).await?;
    let env = folder.join("env");
    slug::write_env_folder(&env, &environment.into_iter().collect::<Vec<_>>())?;
    let (root, limits) = (caches(world, build.repository), cache_limits(world));
    let (branch, default, into) =
        (build.cache_of.clone(), cache_name(&repository.default_branch, &build.root), cache.clone());
    outside::point("cache out").await;
    let taken =
        tokio::task::spawn_blocking(move || slug::take_cache(&root, branch.as_deref(), &default, &into, limits));
    let taken = taken.await?;
    let settings = &world.config.build;
    let pruning = match settings_of(world, build.repository, &build.commit, &build.root).await?.0.build.prune {
        None => Pruning::Apart,
        Some(true) => Pruning::Away,
        Some(false) => Pruning::Nothing,
    };
    let plan = BuildPlan {
        buildpacks,
        pruning,
        engine: image::engine(world),
        dockerfile: image::asked_for(world, build).await?,
        stack: STACK.to_owned(),
        source_version: build.commit.clone(),
    };
    let spec = Spec {
        id: build.process.clone(),
        labels: [(label::BUILD.to_owned(), build.key.0.clone()), (label::TYPE.to_owned(), "build".to_owned())].into(),
        name: "build.1".to_owned(),
        code: Code::Folder { path: code },
        command: plan.command(),
        environment: plan.environment().into_iter().collect(),
        limits: Limits {
            memory_bytes: settings.memory_mb << 20,
            disk_bytes: settings.disk_mb << 20,
            processes: 1024,
            ..Limits::default()
        },
        network: network(settings.network),
        port: None,
        time_limit: Some(Duration::from_secs(settings.minutes * 60)),
        grace: Duration::from_secs(5),
        binds: vec![
            Bind { host: world.buildpacks.clone(), inside: slug::BUILD_BUILDPACKS.into(), writable: false },
            Bind { host: absolute(&packs)?, inside: slug::BUILD_PACKS.into(), writable: false },
            // Its own copies: what a build does to them ends with it.
            Bind { host: absolute(&env)?, inside: slug::BUILD_ENV.into(), writable: true },
            Bind { host: absolute(&cache)?, inside: slug::BUILD_CACHE.into(), writable: true },
            Bind { host: absolute(&out)?, inside: slug::BUILD_OUT.into(), writable: true },
        ],
        services: Vec::new(),
        walls: crate::platform::Walls::Sandbox,
        masked: Vec::new(),
    };
    outside::point("platform start").await;
    world.platform.start(&absolute_code(spec)?).await?;
    outside::point("platform started").await;
    info!(build = %build.process, repository = %repository.full_name(), cache = ?taken, "building {} of {}", build.commit.short(), repository.full_name());
    Ok(Ok(()))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Trouble> {
    std::path::absolute(path).map_err(Trouble::bug)
}

fn absolute_code(mut spec: Spec) -> Result<Spec, Trouble> {
    if let Code::Folder { path } = &mut spec.code {
        *path = absolute(path)?;
    }
    Ok(spec)
}

pub(super) fn network(policy: config::Network) -> Network {
    match policy {
        config::Network::Isolated => Network::Isolated,
        config::Network::Host => Network::Host,
    }
}

/// The build process has ended: make its folder a slug, or note why there is none.
pub(super) async fn collect(world: &World, key: &BuildKey) -> Result<(), Trouble> {
    let Some(build) = world.store.build(key)? else { return Ok(()) };
    let _alone = world.locks.lock(&format!("build {}", build.repository)).await;
    let Some(build) = world.store.build(key)?.filter(|build| build.state == BuildState::Running) else {
        return Ok(());
    };
    let all = observe::list(world).await?;
    let Some(status) = all.iter().find(|status| status.id == build.process) else { return Ok(()) };
    let State::Exited { code, signal, why, .. } = &status.state else { return Ok(()) };
    let ended = observe::ended(*code, *signal, why);
    if ended == Ended::Lost && build.attempt < ATTEMPTS {
        // The machine went away under it: that says nothing about the code.
        let mut again = build.clone();
        again.attempt += 1;
        again.phase = BuildPhase::Pack;
        again.process = again.process_at(again.phase).parse().map_err(Trouble::bug)?;
        put(world, &again).await?;
        act::discard(world, &build.process).await?;
        give_cache_back(world, &build, Some(&ended)).await?;
        remove_folder(&build_folder(world, &build)).await?;
        let Some(repository) = world.store.repository(again.repository)? else { return Ok(()) };
        if let Err(failure) = begin(world, &repository, &again).await? {
            finish(world, &again, BuildState::Failed { failure, at: world.now() }, None).await?;
        }
        return Ok(());
    }
    let folder = build_folder(world, &build);
    if ended.is_success() && image::goes_on(world, &build).await? {
        return Ok(());
    }
    let (state, slug) = match outcome(world, &build, &folder, ended.clone()).await? {
        Ok(slug) => (BuildState::Succeeded { slug: slug.digest.clone(), at: world.now() }, Some(slug)),
        Err(failure) => (BuildState::Failed { failure, at: world.now() }, None),
    };
    finish(world, &build, state, slug).await?;
    act::discard(world, &build.process).await?;
    give_cache_back(world, &build, Some(&ended)).await?;
    remove_folder(&folder).await?;
    Ok(())
}

/// Ends builds that nobody waits for any more: their commit was overtaken, or their run cancelled. Whoever wants such a
/// build after that has it made anew.
pub(super) async fn end_unwanted(world: &World) -> Result<(), Trouble> {
    let keys = folders(world).await?.into_iter().filter_map(|name| name.split('.').nth(1).map(str::to_owned));
    for key in keys.map(BuildKey).collect::<BTreeSet<_>>() {
        // One that can't be ended is no reason to leave the rest.
        if let Err(trouble) = end_if_unwanted(world, &key).await {
            warn!(build = %key.0, "a build that nobody waits for could not be ended: {trouble}");
        }
    }
    Ok(())
}

async fn end_if_unwanted(world: &World, key: &BuildKey) -> Result<(), Trouble> {
    let Some(build) = unwanted(world, key)? else { return Ok(()) };
    // One whose code is being fetched or packed has its turn the next time.
    let Some(_alone) = world.locks.lock_soon(&format!("build {}", build.repository)).await else { return Ok(()) };
    let Some(build) = unwanted(world, key)? else { return Ok(()) };
    if build.state == BuildState::Running {
        info!(build = %build.process, "nobody waits for the build of {} any more", build.commit.short());
        let ended = Build { state: BuildState::Overtaken { at: world.now() }, ..build.clone() };
        world.commit(move |tx| tx.change_build(&ended)).await?;
    }
    end(world, &build).await
}

fn unwanted(world: &World, key: &BuildKey) -> Result<Option<Build>, StoreError> {
    let Some(build) = world.store.build(key)?.filter(|build| build.state.has_place()) else { return Ok(None) };
    let wanted = build.state == BuildState::Running && is_awaited(world, &build)?;
    Ok(Some(build).filter(|_| !wanted))
}

/// Whether a deploy or a run under way waits for the build. Who asked for it may not have written yet for which tree.
fn is_awaited(world: &World, build: &Build) -> Result<bool, StoreError> {
    if world.store.build_of_tree(build.repository, &build.tree)?.as_ref() != Some(&build.key) {
        return Ok(false);
    }
    let waits = |tree: &Option<Sha>, commit: &Sha| match tree {
        Some(tree) => *tree == build.tree,
        None => *commit == build.commit,
    };
    let deploys = |app: &App| {
        let open = app.newest().filter(|deploy| deploy.outcome.is_none() && deploy.cause == Cause::Push);
        open.is_some_and(|deploy| waits(&deploy.tree, &deploy.commit))
    };
    let tests =
        |run: &TestRun| run.repository == build.repository && run.cancelled.is_none() && waits(&run.tree, &run.commit);
    Ok(world.store.apps_of(build.repository)?.iter().any(deploys) || world.store.runs_going_on()?.iter().any(tests))
}

/// Stops an overtaken build; when its process is over, its cache goes back to its branch and the rest of it away.
async fn end(world: &World, build: &Build) -> Result<(), Trouble> {
    let all = observe::list(world).await?;
    let ended = match all.iter().find(|status| status.id == build.process).map(|status| &status.state) {
        Some(State::Exited { code, signal, why, .. }) => Some(observe::ended(*code, *signal, why)),
        Some(_) => return act::stop(world, &build.process).await,
        None => None,
    };
    if ended.is_some() {
        act::discard(world, &build.process).await?;
    }
    give_cache_back(world, build, ended.as_ref()).await?;
    remove_folder(&build_folder(world, build)).await
}

/// The names of all folders in which builds work.
pub(super) async fn folders(world: &World) -> Result<Vec<String>, Trouble> {
    let mut names = Vec::new();
    let mut folders = tokio::fs::read_dir(world.folder("builds")).await?;
    while let Some(entry) = folders.next_entry().await? {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Each refusal of the packing as what its author can do about it; `None` where it is not the author's.
fn packing_failure(error: &ArchiveError) -> Option<Failure> {
    let detail = error.to_string();
    match error {
        ArchiveError::ArchiveTooLarge { .. } | ArchiveError::FolderTooLarge { .. } => {
            Some(Failure::SlugTooLarge { detail })
        }
        ArchiveError::TooMany { .. } | ArchiveError::TooDeep { .. } => Some(Failure::TooManyFiles { detail }),
        ArchiveError::Expands { .. } => Some(Failure::SlugExpands { detail }),
        ArchiveError::Link { .. } => Some(Failure::LeadsOutside { detail }),
        ArchiveError::Unreadable { .. } => Some(Failure::Unreadable { detail }),
        ArchiveError::Changed { .. } | ArchiveError::WrongDigest { .. } | ArchiveError::Io { .. } => None,
    }
}

async fn outcome(world: &World, build: &Build, folder: &Path, ended: Ended) -> Result<Result<Slug, Failure>, Trouble> {
    let out = folder.join("out");
    let result = tokio::task::spawn_blocking(move || slug::read_result(&out)).await?;
    if !ended.is_success() {
        if let Ok(result) = &result
            && let Some(looked_for) = &result.refused
        {
            return Ok(Err(Failure::NotBuildable { looked_for: looked_for.clone() }));
        }
        let tail = observe::tail(world, &build.process, TAIL).await?;
        return Ok(Err(Failure::Build { ended, tail }));
    }
    let result = match result {
        Ok(result) => result,
        Err(BuildResultError::Procfile(error)) => {
            return Ok(Err(Failure::Configuration { file: "Procfile".to_owned(), detail: error.to_string() }));
        }
        Err(error @ BuildResultError::NotAFile(_)) => {
            return Ok(Err(Failure::BadResult { detail: error.to_string() }));
        }
        Err(error @ BuildResultError::Io { .. }) => return Err(Trouble::retry(error)),
    };
    let (code, archives) = (image::code_folder(build, folder), world.folder("archives"));
    outside::point("pack").await;
    let toolchains = world.config.sandbox.toolchains.clone();
    let limits = archive_limits(world);
    let layer = folder.join("test-layer");
    let is_image = build.phase != BuildPhase::Pack;
    let packing = tokio::task::spawn_blocking(move || {
        let io = |source| ArchiveError::Io { path: code.clone(), source };
        let is_apart = !is_image && slug::set_test_layer_apart(&code, &layer).map_err(io)?;
        let pack = |folder: &Path| slug::pack_with_toolchains(folder, &archives, &toolchains, limits);
        Ok((pack(&code)?, if is_apart { Some(pack(&layer)?) } else { None }))
    });
    let (packed, layer) = match packing.await? {
        Ok(packed) => packed,
        Err(error) => match packing_failure(&error) {
            Some(failure) => return Ok(Err(failure)),
            None => return Err(Trouble::retry(error)),
        },
    };
    outside::point("packed").await;
    let (_, manifest, mut warnings) = manifest_of(world, build.repository, &build.commit, &build.root).await?;
    let (_, settings) = settings_of(world, build.repository, &build.commit, &build.root).await?;
    warnings.extend(result.procfile_warnings.iter().map(|warning| format!("Procfile: {warning}")));
    // Written by us at the check-out; a folder that was made before there was such a file has none.
    let written = tokio::fs::read(folder.join("warnings.json")).await.unwrap_or_default();
    warnings.extend(serde_json::from_slice::<Vec<String>>(&written).unwrap_or_default());
    warnings.extend(packed.left_out.iter().map(|path| format!("{path}: not in the slug, since it is no file")));
    let mut process_types: std::collections::BTreeMap<String, String> = result.process_types.into_iter().collect();
    let image = match image::of(world, build, folder, &mut process_types, &mut warnings).await? {
        Ok(image) => image,
        Err(failure) => return Ok(Err(failure)),
    };
    Ok(Ok(Slug {
        image,
        digest: packed.digest,
        repository: build.repository,
        tree: build.tree.clone(),
        commit: build.commit.clone(),
        created_at: world.now(),
        bytes: packed.bytes,
        files: packed.files,
        buildpacks: result.buildpacks,
        process_types,
        config_vars: result.config_vars.into_iter().collect(),
        test_command: result.test_command,
        test_layer: layer.map(|layer| layer.digest),
        manifest,
        settings,
        warnings,
    }))
}

pub(super) async fn put(world: &World, build: &Build) -> Result<(), StoreError> {
    let build = build.clone();
    world.commit(move |tx| tx.put_build(&build)).await
}

/// Writes how a build ended, and wakes everyone who waits for it.
async fn finish(world: &World, build: &Build, state: BuildState, slug: Option<Slug>) -> Result<(), StoreError> {
    let mut build = build.clone();
    build.state = state;
    let now = world.now();
    world
        .commit(move |tx| {
            if let Some(slug) = &slug {
                tx.put_slug(slug)?;
            }
            tx.put_build(&build)?;
            wake_waiting(tx, &build, now)
        })
        .await
}

/// Everyone who may wait for a build: apps whose newest deploy is of its tree, and runs without a verdict.
pub(super) fn wake_waiting(tx: &mut Transaction<'_>, build: &Build, now: Timestamp) -> Result<(), StoreError> {
    for app in tx.apps_of(build.repository)? {
        if app.newest().is_some_and(|deploy| deploy.outcome.is_none() && deploy.tree.as_ref() == Some(&build.tree)) {
            enqueue(tx, &Subject::App(app.name), now)?;
        }
    }
    for run in tx.runs_of(build.repository)? {
        if run.verdict.is_none() && run.tree.as_ref() == Some(&build.tree) {
            enqueue(tx, &Subject::Run(run.number), now)?;
        }
    }
    Ok(())
}

pub(super) async fn remove_folder(folder: &Path) -> Result<(), Trouble> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
