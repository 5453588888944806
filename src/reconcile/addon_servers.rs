//! The servers that Landfall runs for add-ons itself, and where the operator's are: started when somebody needs them,
//! again when they ended, and ended with the last one who did.

use super::addons::password_of;
use super::observe::{self, label};
use super::{Trouble, World, act, addon_copy};
use crate::addons::{self, AddonError, PostgresServer, Program, RedisServer};
use crate::config::Network;
use crate::domain::*;
use crate::outside;
use crate::platform::{Bind, Code, Limits, Spec, State};
use crate::store::Transaction;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tracing::info;

/// A server of our own that ended is started again at once; after this, where it had not run for long.
pub(super) const RESTART: Duration = Duration::from_secs(2);
/// What counts as long.
const STEADY: Duration = Duration::from_secs(10);
/// Ports inside the sandbox.
pub(super) const POSTGRES_PORT: u16 = 5432;
/// The label of the PostgreSQL that all apps share; a Redis has its add-on's id there.
pub(super) const SHARED_POSTGRES: &str = "postgres";

/// The password of the superuser of a server of our own. Drawn once.
async fn server_password(world: &World, server: &'static str) -> Result<Secret, Trouble> {
    if let Some(sealed) = world.store.addon_server(server)? {
        return Ok(Secret::new(world.vault.open_sealed(&sealed)?));
    }
    let fresh = world.vault.seal(&world.vault.random_hex(24)?)?;
    let written = move |tx: &mut Transaction<'_>| match tx.addon_server(server)? {
        Some(sealed) => Ok(sealed),
        None => tx.put_addon_server(server, &fresh).map(|()| fresh),
    };
    let sealed = world.commit(written).await?;
    Ok(Secret::new(world.vault.open_sealed(&sealed)?))
}

pub(super) fn folder(world: &World, name: &str) -> Result<PathBuf, Trouble> {
    std::path::absolute(world.folder("addons").join(name)).map_err(Trouble::bug)
}

pub(super) fn redis_folder(world: &World, addon: &Addon) -> Result<PathBuf, Trouble> {
    folder(world, addon.id.short())
}

/// The server that an add-on's database lies on. One of our own is started if it does not run.
pub(super) async fn postgres(world: &World, own: bool) -> Result<Result<PostgresServer, AddonError>, Trouble> {
    let settings = &world.config.addons.postgres;
    if !own {
        return Ok(match &settings.url {
            Some(url) => PostgresServer::from_url(url, "addons.postgres.url"),
            None => Err(AddonError::Unreachable("addons.postgres.url is not set any more".to_owned())),
        });
    }
    let folder = folder(world, "pg")?;
    let version = addons::version_of_databases(&folder);
    let Some(programs) = addons::find_postgres(version, &crate::config::search_path()) else {
        let version = version.map(|version| format!(" {version}")).unwrap_or_default();
        let problem = AddonProblem::NotInstalled { program: format!("PostgreSQL{version}") };
        return Ok(Err(AddonError::Refused(problem)));
    };
    let password = server_password(world, SHARED_POSTGRES).await?;
    let port = on_machine_s_network(world).then_some(settings.port);
    let program = addons::postgres_program(&programs, port, settings.memory_mb << 20, settings.connections);
    let server = Server {
        name: SHARED_POSTGRES.to_owned(),
        kind: "postgres",
        folder: folder.clone(),
        program,
        disk_bytes: settings.disk_mb << 20,
        on_machine_s_network: port.is_some(),
        password: password.clone(),
    };
    if let Err(error) = keep(world, &server).await? {
        return Ok(Err(error));
    }
    let mut server = PostgresServer::own(folder, &password);
    if let Some(port) = port {
        server = server.on_port(port);
    }
    Ok(Ok(server))
}

pub(super) async fn own_redis(world: &World, addon: &Addon, policy: &str) -> Result<Result<(), AddonError>, Trouble> {
    let Some(program) = addons::find_redis(&crate::config::search_path()) else {
        let problem = AddonProblem::NotInstalled { program: "Redis".to_owned() };
        return Ok(Err(AddonError::Refused(problem)));
    };
    let on_machine = network_of(world, &addon.owner) == Network::Host;
    let port = on_machine.then(|| port_of(addon));
    let megabytes = addons::memory_of(addon.tier());
    let server = Server {
        name: addon.id.to_string(),
        kind: "redis",
        folder: redis_folder(world, addon)?,
        program: addons::redis_program(&program, port, megabytes, policy),
        disk_bytes: (megabytes << 22) + (256 << 20),
        on_machine_s_network: on_machine,
        password: password_of(world, addon)?,
    };
    keep(world, &server).await
}

pub(super) fn redis_server(world: &World) -> Result<RedisServer, AddonError> {
    match &world.config.addons.redis.url {
        Some(url) => RedisServer::from_url(url),
        None => Err(AddonError::Unreachable("addons.redis.url is not set any more".to_owned())),
    }
}

/// A server of our own, as it is to run.
struct Server {
    /// What its label says.
    name: String,
    kind: &'static str,
    folder: PathBuf,
    program: Program,
    disk_bytes: u64,
    on_machine_s_network: bool,
    password: Secret,
}

/// Starts a server that does not run. It is one process like any other: walled in, supervised, ended by `landfall down`.
async fn keep(world: &World, server: &Server) -> Result<Result<(), AddonError>, Trouble> {
    let _alone = world.locks.lock(&format!("addon server {}", server.name)).await;
    let all = observe::list(world).await?;
    for status in all.iter().filter(|status| status.labels.get(label::ADDON) == Some(&server.name)) {
        let State::Exited { at, .. } = &status.state else { return Ok(Ok(())) };
        let steady = at.since(status.started_at) >= STEADY;
        if !steady && world.now().since(*at) < RESTART {
            let tail = observe::tail(world, &status.id, 3).await?.join("; ");
            return Ok(Err(AddonError::Unreachable(format!("{} ended: {tail}", server.kind))));
        }
        act::discard(world, &status.id).await?;
    }
    tokio::fs::create_dir_all(&server.folder).await?;
    let number = world.commit(|tx| tx.next_number("addon process")).await?;
    let id: ProcessId = format!("addons.{}.n{number}", server.kind).parse().map_err(Trouble::bug)?;
    let spec = Spec {
        id: id.clone(),
        labels: [
            (label::ADDON.to_owned(), server.name.clone()),
            (label::TYPE.to_owned(), server.kind.to_owned()),
            (label::ORDINAL.to_owned(), "1".to_owned()),
        ]
        .into(),
        name: format!("{}.1", server.kind),
        code: Code::None,
        command: server.program.command.clone(),
        environment: BTreeMap::from([("PASSWORD".to_owned(), server.password.expose().to_owned())]),
        limits: Limits {
            memory_bytes: server.program.memory_bytes,
            processes: server.program.processes,
            disk_bytes: server.disk_bytes,
            ..Limits::default()
        },
        network: super::build::network(if server.on_machine_s_network { Network::Host } else { Network::Isolated }),
        port: None,
        time_limit: None,
        grace: Duration::from_secs(world.config.apps.grace_seconds),
        binds: vec![Bind { host: server.folder.clone(), inside: "/data".into(), writable: true }],
        services: Vec::new(),
        walls: crate::platform::Walls::Sandbox,
        masked: Vec::new(),
    };
    outside::point("platform start").await;
    world.platform.start(&spec).await?;
    outside::point("platform started").await;
    info!(process = %id, "started {id}");
    Ok(Ok(()))
}

pub(super) fn network_of(world: &World, owner: &AddonOwner) -> Network {
    match owner {
        AddonOwner::App { .. } => world.config.apps.network,
        AddonOwner::Node { .. } => world.config.tests.network,
    }
}

/// Which number stands in the name of our own PostgreSQL's socket.
pub(super) fn postgres_port(world: &World) -> u16 {
    if on_machine_s_network(world) { world.config.addons.postgres.port } else { POSTGRES_PORT }
}

fn on_machine_s_network(world: &World) -> bool {
    world.config.apps.network == Network::Host || world.config.tests.network == Network::Host
}

/// A Redis on the machine's loopback gets a port from its id.
pub(super) fn port_of(addon: &Addon) -> u16 {
    30_000 + u16::try_from(crc32c::crc32c(addon.id.as_str().as_bytes()) % 2_000).unwrap_or(0)
}

pub(super) fn operator_s_postgres(world: &World) -> Option<PostgresServer> {
    let url = world.config.addons.postgres.url.as_ref()?;
    PostgresServer::from_url(url, "addons.postgres.url").ok()
}

/// With the last database our own server ends.
pub(super) async fn end_unneeded(world: &World) -> Result<(), Trouble> {
    let _alone = world.locks.lock(&format!("addon server {SHARED_POSTGRES}")).await;
    // Whoever wants one wrote it down before asking for the server.
    if needs_server(world, SHARED_POSTGRES)? {
        return Ok(());
    }
    for status in observe::list(world).await? {
        if status.labels.get(label::ADDON).map(String::as_str) == Some(SHARED_POSTGRES) && !status.state.is_over() {
            act::stop(world, &status.id).await?;
        }
    }
    Ok(())
}

/// Whether the server behind a label is one that some add-on needs.
pub(super) fn needs_server(world: &World, name: &str) -> Result<bool, Trouble> {
    let all = world.store.addons()?;
    if addon_copy::is_wanted(&all, name) {
        return Ok(true);
    }
    Ok(all.iter().any(|addon| {
        addon.own
            && match addon.kind {
                AddonKind::Postgres => name == SHARED_POSTGRES,
                AddonKind::Redis => name == addon.id.as_str(),
                AddonKind::Partner => false,
            }
    }))
}

pub(super) async fn runs(world: &World, name: &str) -> Result<bool, Trouble> {
    let all = observe::list(world).await?;
    Ok(all.iter().any(|status| {
        status.labels.get(label::ADDON).map(String::as_str) == Some(name)
            && matches!(status.state, State::Running { .. })
    }))
}
