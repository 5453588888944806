//! A build of a `Dockerfile`, where the operator has named a container engine: the engine makes the image and gives its
//! root away, and a process inside the walls unpacks that into the folder which becomes the slug.
//!
//! The engine is the one process without walls. It is started with paths of ours alone, seen, limited and ended like any
//! other; what it leaves is read as a stranger's.

use super::build::{absolute, build_folder, network, put};
use super::inputs::{below, manifest_of};
use super::observe::label;
use super::{Trouble, World, act};
use crate::config::{self, EngineKind};
use crate::domain::*;
use crate::outside;
use crate::platform::{Bind, Code, Limits, Network, Spec, Walls};
use crate::slug::{self, Engine, ImagePlan};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::info;

/// Whom an image runs as that says nothing, or root.
const NOBODY: u32 = 10_001;
/// More than this, neither what an image says of itself nor its list of users is read.
const MOST_BYTES: u64 = 1 << 20;
const HEROKU_YML: &str = "heroku.yml";

/// The engine that is configured.
pub(super) fn engine(world: &World) -> Option<Engine> {
    world.config.build.engine.map(|engine| match engine {
        EngineKind::Docker => Engine::Docker,
        EngineKind::Podman => Engine::Podman,
        EngineKind::Buildah => Engine::Buildah,
    })
}

async fn heroku_yml(world: &World, build: &Build) -> Result<Option<HerokuYml>, Trouble> {
    let path = below(&build.root, HEROKU_YML);
    let bytes = world.source.file(build.repository, &build.commit, &path).await.map_err(Trouble::retry)?;
    Ok(bytes.map(|bytes| HerokuYml::parse(&String::from_utf8_lossy(&bytes))))
}

/// The `Dockerfile` that the repository itself asks for: by its `heroku.yml`, or by the stack `container`.
pub(super) async fn asked_for(world: &World, build: &Build) -> Result<Option<String>, Trouble> {
    if let Some(path) = heroku_yml(world, build).await?.and_then(|file| file.dockerfile().map(str::to_owned)) {
        return Ok(Some(path));
    }
    let (manifest, ..) = manifest_of(world, build.repository, &build.commit, &build.root).await?;
    let stack = manifest.for_environment(Environment::Plain).stack;
    Ok((stack.as_deref() == Some("container")).then(|| "Dockerfile".to_owned()))
}

/// The folder that becomes the slug.
pub(super) fn code_folder(build: &Build, folder: &Path) -> PathBuf {
    folder.join(if build.phase == BuildPhase::Unpack { "image" } else { "app" })
}

/// A phase of a build ended well: begins the next one, where there is one.
pub(super) async fn goes_on(world: &World, build: &Build) -> Result<bool, Trouble> {
    let folder = build_folder(world, build);
    let next = match build.phase {
        BuildPhase::Pack => {
            let out = folder.join("out");
            let result = tokio::task::spawn_blocking(move || slug::read_result(&out)).await?;
            let dockerfile = result.ok().and_then(|result| result.dockerfile);
            let (Some(dockerfile), Some(engine)) = (dockerfile, engine(world)) else { return Ok(false) };
            (BuildPhase::Image, make(world, build, engine, dockerfile)?)
        }
        BuildPhase::Image => (BuildPhase::Unpack, unpack(world, build)?),
        BuildPhase::Unpack => return Ok(false),
    };
    let mut begun = build.clone();
    begun.phase = next.0;
    begun.process = begun.process_at(begun.phase).parse().map_err(Trouble::bug)?;
    let spec = Spec { id: begun.process.clone(), ..next.1 };
    put(world, &begun).await?;
    outside::point("platform start").await;
    world.platform.start(&spec).await?;
    outside::point("platform started").await;
    info!(build = %begun.process, "{} of {} goes on", begun.process, build.commit.short());
    act::discard(world, &build.process).await?;
    Ok(true)
}

fn labels(build: &Build) -> BTreeMap<String, String> {
    [(label::BUILD, build.key.0.clone()), (label::TYPE, "build".to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The engine's process.
fn make(world: &World, build: &Build, engine: Engine, dockerfile: String) -> Result<Spec, Trouble> {
    let (folder, settings) = (absolute(&build_folder(world, build))?, &world.config.build);
    let plan = ImagePlan {
        engine,
        options: settings.engine_options.clone(),
        context: folder.join("app"),
        dockerfile,
        env: folder.join("env"),
        out: folder.join("image-out"),
        store: absolute(&world.folder("engine").join(build.repository.to_string()))?,
        store_mb: settings.cache_mb,
        key: build.key.0.clone(),
        // A fork writes nothing that others read, and layers are shared.
        cached: build.cache_of.is_some(),
        network: settings.network == config::Network::Host,
        disk_bytes: settings.disk_mb << 20,
    };
    Ok(Spec {
        id: build.process.clone(),
        labels: labels(build),
        name: "build.1".to_owned(),
        code: Code::None,
        command: plan.command(),
        environment: plan.environment().into_iter().chain([("PATH".to_owned(), ENGINE_PATH.to_owned())]).collect(),
        limits: Limits { memory_bytes: settings.memory_mb << 20, processes: 4096, ..Limits::default() },
        network: Network::Host,
        port: None,
        time_limit: Some(Duration::from_secs(settings.minutes * 60)),
        grace: Duration::from_secs(10),
        binds: Vec::new(),
        services: Vec::new(),
        walls: Walls::None,
        masked: Vec::new(),
    })
}

const ENGINE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process that turns the image's root into a folder that can be packed.
fn unpack(world: &World, build: &Build) -> Result<Spec, Trouble> {
    let (folder, settings) = (absolute(&build_folder(world, build))?, &world.config.build);
    let code = folder.join("image");
    std::fs::create_dir_all(&code)?;
    Ok(Spec {
        id: build.process.clone(),
        labels: labels(build),
        name: "build.1".to_owned(),
        code: Code::Folder { path: code },
        command: format!("{}/unpack.sh", slug::BUILD_BUILDPACKS),
        environment: BTreeMap::new(),
        limits: Limits {
            memory_bytes: settings.memory_mb << 20,
            disk_bytes: settings.disk_mb << 20,
            ..Limits::default()
        },
        network: network(config::Network::Isolated),
        port: None,
        time_limit: Some(Duration::from_secs(settings.minutes * 60)),
        grace: Duration::from_secs(5),
        binds: vec![
            Bind { host: world.buildpacks.clone(), inside: slug::BUILD_BUILDPACKS.into(), writable: false },
            Bind { host: folder.join("image-out"), inside: slug::BUILD_OUT.into(), writable: true },
        ],
        services: Vec::new(),
        walls: Walls::Sandbox,
        masked: Vec::new(),
    })
}

/// What a built image says of how it is run, and its process types: the `Procfile`'s, then `heroku.yml`'s, then its own
/// command as `web`.
pub(super) async fn of(
    world: &World,
    build: &Build,
    folder: &Path,
    process_types: &mut BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<Result<Option<Image>, Failure>, Trouble> {
    if build.phase != BuildPhase::Unpack {
        return Ok(Ok(None));
    }
    let (inspected, passwd) =
        (folder.join("image-out").join(slug::INSPECTED), folder.join("image").join(IMAGE_ROOT).join("etc/passwd"));
    let read = move || (read_plain(&inspected), read_plain(&passwd));
    let (inspected, passwd) = tokio::task::spawn_blocking(read).await?;
    let passwd = passwd.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let Some(image) = inspected.and_then(|inspected| Image::read(&inspected, &passwd, NOBODY)) else {
        return Ok(Err(Failure::BadResult {
            detail: "the container engine did not say how the image is run".to_owned(),
        }));
    };
    if let Some(file) = heroku_yml(world, build).await? {
        if file.dockerfiles.len() > 1 {
            let built = file.dockerfile().unwrap_or_default();
            warnings.push(format!("heroku.yml: only one image is built, from {built}; all process types run in it"));
        }
        for (kind, command) in file.commands {
            process_types.entry(kind).or_insert(command);
        }
    }
    if let Some(command) = &image.command {
        process_types.entry("web".to_owned()).or_insert_with(|| command.clone());
    }
    Ok(Ok(Some(image)))
}

/// A plain file of a stranger's; no link in its place is followed.
fn read_plain(path: &Path) -> Option<Vec<u8>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
