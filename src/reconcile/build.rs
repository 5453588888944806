//! A tree becomes a slug, once: fetch, check out, run the buildpacks in a sandbox, pack.
//!
//! The build itself is a process like any other: it is started, observed, and collected when it has ended; nobody
//! waits for it. The same repository, tree and buildpacks have the same key, and a key is built once.

use super::apply::enqueue;
use super::deliver::handle_of;
use super::observe::{self, label};
use super::{Trouble, World, act};
use crate::clock::Timestamp;
use crate::config;
use crate::domain::*;
use crate::github::GitHubError;
use crate::outside;
use crate::platform::{Bind, Code, Limits, Network, Spec, State};
use crate::slug::{self, Blame, BuildPlan, Remote, SourceError};
use crate::store::{StoreError, Transaction};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::info;

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
}

/// Sees to it that the commit's tree is built or being built; gives the tree, or why the commit can't be had.
pub(super) async fn ensure(world: &World, wish: &Wish<'_>) -> Result<Result<Sha, Failure>, Trouble> {
    let repository =
        world.store.repository(wish.repository)?.ok_or_else(|| Trouble::bug("an app of an unknown repository"))?;
    let _alone = world.locks.lock(&format!("build {}", repository.id)).await;
    let tree = match fetch(world, &repository, wish.commit).await {
        Ok(tree) => tree,
        Err(Fetch::Failure(failure)) => return Ok(Err(failure)),
        Err(Fetch::Trouble(trouble)) => return Err(trouble),
    };
    let key = key(&repository, &tree, world.buildpacks.as_path());
    let known = world.store.build(&key)?;
    let attempt = match &known {
        None => 1,
        Some(build) => match &build.state {
            BuildState::Succeeded { slug, .. } if archive(world, slug).exists() => return Ok(Ok(tree)),
            BuildState::Running if is_known(world, &build.process).await? => return Ok(Ok(tree)),
            // It was begun and never came to be: begin the same attempt again.
            BuildState::Running => build.attempt,
            BuildState::Failed { at, .. } if wish.asked_at <= *at => return Ok(Ok(tree)),
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
    };
    put(world, &build).await?;
    if let Err(failure) = begin(world, &repository, &build).await? {
        finish(world, &build, BuildState::Failed { failure, at: world.now() }, None).await?;
    }
    Ok(Ok(tree))
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

fn key(repository: &Repository, tree: &Sha, buildpacks: &Path) -> BuildKey {
    let mut digest = Sha256::new();
    // The folder of the buildpacks is named by their content.
    let version = buildpacks.file_name().unwrap_or_default().as_encoded_bytes();
    for part in [repository.id.0.to_string().as_bytes(), tree.as_str().as_bytes(), version] {
        digest.update(part);
        digest.update([0]);
    }
    BuildKey(hex::encode(&digest.finalize()[..8]))
}

async fn is_known(world: &World, process: &ProcessId) -> Result<bool, Trouble> {
    Ok(observe::list(world).await?.iter().any(|status| status.id == *process))
}

pub fn archive(world: &World, slug: &SlugDigest) -> PathBuf {
    world.folder("archives").join(format!("{slug}.tar.zst"))
}

fn build_folder(world: &World, build: &Build) -> PathBuf {
    world.folder("builds").join(build.process.as_str())
}

/// Checks the code out and starts the build process.
async fn begin(world: &World, repository: &Repository, build: &Build) -> Result<Result<(), Failure>, Trouble> {
    let folder = build_folder(world, build);
    if let Err(failure) = declarations(world, build).await? {
        return Ok(Err(failure));
    }
    remove_folder(&folder).await?;
    let code = folder.join("app");
    let out = folder.join("out");
    tokio::fs::create_dir_all(&out).await?;
    outside::point("git check-out").await;
    match world.source.check_out(repository.id, &build.commit, &code).await {
        Ok(_) => {}
        Err(error) => match error.who() {
            Blame::User => return Ok(Err(Failure::Source { detail: error.to_string() })),
            Blame::Retry => return Err(Trouble::retry(error)),
            Blame::Bug => return Err(Trouble::bug(error)),
        },
    }
    outside::point("git checked out").await;
    let cache = world.folder("cache").join(repository.id.to_string());
    tokio::fs::create_dir_all(&cache).await?;
    let settings = &world.config.build;
    let declared = manifest_of(world, build).await?.0.for_environment(Environment::Plain);
    let plan = match slug::choose_buildpacks(&declared.buildpacks) {
        Ok(buildpacks) => BuildPlan { buildpacks, stack: STACK.to_owned(), source_version: build.commit.clone() },
        Err(unknown) => {
            return Ok(Err(Failure::Configuration { file: "app.json".to_owned(), detail: unknown.to_string() }));
        }
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
            Bind { host: absolute(&cache)?, inside: slug::BUILD_CACHE.into(), writable: true },
            Bind { host: absolute(&out)?, inside: slug::BUILD_OUT.into(), writable: true },
        ],
        services: Vec::new(),
    };
    outside::point("platform start").await;
    world.platform.start(&absolute_code(spec)?).await?;
    outside::point("platform started").await;
    info!(build = %build.process, repository = %repository.full_name(), "building {} of {}", build.commit.short(), repository.full_name());
    Ok(Ok(()))
}

fn absolute(path: &Path) -> Result<PathBuf, Trouble> {
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

/// Whether the files by which a tree declares what it needs can be read at all, before anything is built.
async fn declarations(world: &World, build: &Build) -> Result<Result<(), Failure>, Trouble> {
    let configuration = |file: &str, detail: String| Failure::Configuration { file: file.to_owned(), detail };
    for file in ["app.json", "Procfile", SETTINGS_FILE] {
        let bytes = match world.source.file(build.repository, &build.commit, file).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) if matches!(error.who(), Blame::User) => {
                return Ok(Err(configuration(file, error.to_string())));
            }
            Err(error) => return Err(Trouble::retry(error)),
        };
        let problem = match file {
            "app.json" => Manifest::parse(&bytes).err().map(|error| error.to_string()),
            SETTINGS_FILE => RepositorySettings::parse(&bytes).err().map(|error| error.to_string()),
            _ => Procfile::parse(&bytes).err().map(|error| error.to_string()),
        };
        if let Some(detail) = problem {
            return Ok(Err(configuration(file, detail)));
        }
    }
    Ok(Ok(()))
}

async fn manifest_of(world: &World, build: &Build) -> Result<(Manifest, Option<String>, Vec<String>), Trouble> {
    let bytes = world.source.file(build.repository, &build.commit, "app.json").await.map_err(Trouble::retry)?;
    let Some(bytes) = bytes else { return Ok((Manifest::default(), None, Vec::new())) };
    let (manifest, warnings) = Manifest::parse(&bytes).map_err(Trouble::bug)?;
    let sentences = warnings.iter().map(|warning| format!("app.json: {warning}")).collect();
    Ok((manifest, String::from_utf8(bytes).ok(), sentences))
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
        again.process = format!("build.{}.a{}", again.key.0, again.attempt).parse().map_err(Trouble::bug)?;
        put(world, &again).await?;
        act::discard(world, &build.process).await?;
        remove_folder(&build_folder(world, &build)).await?;
        let Some(repository) = world.store.repository(again.repository)? else { return Ok(()) };
        if let Err(failure) = begin(world, &repository, &again).await? {
            finish(world, &again, BuildState::Failed { failure, at: world.now() }, None).await?;
        }
        return Ok(());
    }
    let folder = build_folder(world, &build);
    let (state, slug) = match outcome(world, &build, &folder, ended).await? {
        Ok(slug) => (BuildState::Succeeded { slug: slug.digest.clone(), at: world.now() }, Some(slug)),
        Err(failure) => (BuildState::Failed { failure, at: world.now() }, None),
    };
    finish(world, &build, state, slug).await?;
    act::discard(world, &build.process).await?;
    remove_folder(&folder).await?;
    Ok(())
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
        Err(error) => return Ok(Err(Failure::Source { detail: error.to_string() })),
    };
    let (code, archives) = (folder.join("app"), world.folder("archives"));
    outside::point("pack").await;
    let packed = match tokio::task::spawn_blocking(move || slug::pack(&code, &archives)).await? {
        Ok(packed) => packed,
        Err(error) if error.who() == Blame::User => {
            return Ok(Err(Failure::SlugTooLarge { detail: error.to_string() }));
        }
        Err(error) => return Err(Trouble::retry(error)),
    };
    outside::point("packed").await;
    let (_, manifest, mut warnings) = manifest_of(world, build).await?;
    let settings = world.source.file(build.repository, &build.commit, SETTINGS_FILE).await.map_err(Trouble::retry)?;
    warnings.extend(result.procfile_warnings.iter().map(|warning| format!("Procfile: {warning}")));
    Ok(Ok(Slug {
        digest: packed.digest,
        repository: build.repository,
        tree: build.tree.clone(),
        commit: build.commit.clone(),
        created_at: world.now(),
        bytes: packed.bytes,
        files: packed.files,
        buildpacks: result.buildpacks,
        process_types: result.process_types.into_iter().collect(),
        config_vars: result.config_vars.into_iter().collect(),
        test_command: result.test_command,
        manifest,
        settings: settings.and_then(|bytes| String::from_utf8(bytes).ok()),
        warnings,
    }))
}

async fn put(world: &World, build: &Build) -> Result<(), StoreError> {
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
