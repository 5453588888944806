//! The copy of a template database from another server, as a process: started once, observed, and begun again when it
//! was lost, since the database has all of it or nothing (see `addons::copy_program`).

use super::addon_servers::{folder, postgres_port};
use super::addons::password_of;
use super::observe::{self, label};
use super::{Trouble, World, act, kept};
use crate::addons::{self, AddonError, Address, Database, PostgresServer, Provided, TARGET_PORT, TEMPLATE_PORT};
use crate::domain::*;
use crate::outside;
use crate::platform::{Bind, Code, Exit, Limits, Network, Spec, State};
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

/// One copy may take so long.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// For how long a deploy waits for its copy, with what was begun again.
pub(super) const PATIENCE: Duration = Duration::from_secs(45 * 60);
const WATCH: Duration = Duration::from_millis(500);
const MEMORY: u64 = 512 << 20;

/// Where the copy sees the authorities of the two servers.
const TARGET_AUTHORITY: &str = "/etc/landfall/target.pem";
const TEMPLATE_AUTHORITY: &str = "/etc/landfall/template.pem";

/// What the label of a copy begins with; the add-on's id follows.
const COPY: &str = "copy.";

/// The label of an add-on's copy.
fn name_of(addon: &Addon) -> String {
    format!("{COPY}{}", addon.id)
}

/// Whether a label is that of a copy which somebody waits for.
pub(super) fn is_wanted(all: &[Addon], name: &str) -> bool {
    let Some(id) = name.strip_prefix(COPY) else { return false };
    all.iter().any(|addon| addon.id.as_str() == id && matches!(addon.state, AddonState::Wanted { .. }))
}

/// Whose copy it is.
pub(super) fn owner_of(all: &[Addon], name: &str) -> Option<AddonOwner> {
    let id = name.strip_prefix(COPY)?;
    all.iter().find(|addon| addon.id.as_str() == id).map(|addon| addon.owner.clone())
}

/// Sees to it that a database which begins as a copy has it; `None` once it has.
pub(super) async fn ensure(
    world: &World,
    server: &PostgresServer,
    database: &Database<'_>,
) -> Result<Result<Option<Provided>, AddonError>, Trouble> {
    let pending = || Ok(Ok(Some(Provided::Pending { after: WATCH, handle: None })));
    match server.wants_copy(database).await {
        Ok(true) => {}
        Ok(false) => {
            take_away(world, database.addon).await?;
            return Ok(Ok(None));
        }
        Err(error) => return Ok(Err(error)),
    }
    let Some(url) = &world.config.addons.postgres.template_url else {
        return Ok(Err(AddonError::Unreachable("addons.postgres.template_url is not set any more".to_owned())));
    };
    let template = match PostgresServer::from_url(url, "addons.postgres.template_url") {
        Ok(template) => template,
        Err(error) => return Ok(Err(error)),
    };
    let name = name_of(database.addon);
    let _alone = world.locks.lock(&name).await;
    let running = observe::list(world).await?;
    if let Some(status) = running.iter().find(|status| status.labels.get(label::ADDON) == Some(&name)) {
        let State::Exited { code, why, .. } = &status.state else { return pending() };
        let tail = observe::tail(world, &status.id, 5).await?.join("\n");
        let failed = match (code, why) {
            // It is done, or about to be seen as done: the next look asks the database.
            (Some(0), Exit::Finished) => None,
            (_, Exit::SupervisorLost | Exit::Killed) => None,
            (_, Exit::Finished) => Some(tail),
            (_, why) => Some(format!("{why}\n{tail}")),
        };
        warn_of(database.addon, failed.as_deref());
        act::discard(world, &status.id).await?;
        if let Some(detail) = failed {
            return Ok(Err(AddonError::Refused(AddonProblem::Copy { detail })));
        }
        return pending();
    }
    if let Err(error) = server.prepare_copy(database, &template).await {
        return Ok(Err(error));
    }
    match begin(world, server, database, &template, &name).await? {
        Ok(()) => pending(),
        Err(error) => Ok(Err(error)),
    }
}

fn warn_of(addon: &Addon, failed: Option<&str>) {
    if let Some(failed) = failed {
        warn!(addon = %addon.id, owner = %addon.owner, "the copy of the template failed: {failed}");
    }
}

async fn begin(
    world: &World,
    server: &PostgresServer,
    database: &Database<'_>,
    template: &PostgresServer,
    name: &str,
) -> Result<Result<(), AddonError>, Trouble> {
    let Some(programs) = addons::find_postgres_client(&crate::config::search_path()) else {
        let program = "pg_dump and psql (postgresql-client)".to_owned();
        return Ok(Err(AddonError::Refused(AddonProblem::NotInstalled { program })));
    };
    let addon = database.addon;
    let own_name = database.name();
    let (user, template_name, password) = addons::login(template.address());
    let place = |address: &Address, port, user: &str, database: &str, authority: &str| {
        let named = address.name_inside();
        let told = address.told(named.is_some(), Path::new(authority));
        addons::words(named.unwrap_or("127.0.0.1"), port, user, database, &told)
    };
    let target = place(server.address(), TARGET_PORT, &own_name, &own_name, TARGET_AUTHORITY);
    let source = place(template.address(), TEMPLATE_PORT, &user, &template_name, TEMPLATE_AUTHORITY);
    let (program, mut environment) = addons::copy_program(&programs, &own_name, &target, &source);
    environment.insert("TARGET_PASSWORD".to_owned(), password_of(world, addon)?.expose().to_owned());
    environment.insert("TEMPLATE_PASSWORD".to_owned(), password);
    let mut services = Vec::new();
    for (server, port) in [(server, TARGET_PORT), (template, TEMPLATE_PORT)] {
        let to = match server.endpoint() {
            // Our own says so by its folder, which may be named in another way than the endpoint's.
            Some(Endpoint::Unix(_)) => {
                Endpoint::Unix(folder(world, "pg")?.join(format!(".s.PGSQL.{}", postgres_port(world))))
            }
            Some(to) => to,
            None => return Ok(Err(AddonError::Unreachable("its address names no server".to_owned()))),
        };
        services.push(Service { port, to, name: server.address().name_inside().map(str::to_owned) });
    }
    let authorities = [(server, TARGET_AUTHORITY), (template, TEMPLATE_AUTHORITY)];
    let binds = authorities.into_iter().filter_map(|(server, inside)| {
        let host = server.address().authority.clone()?;
        Some(Bind { host, inside: inside.into(), writable: false })
    });
    let number = world.commit(|tx| tx.next_number("addon process")).await?;
    let id: ProcessId = format!("addons.copy.n{number}").parse().map_err(Trouble::bug)?;
    let spec = Spec {
        id: id.clone(),
        labels: [
            (label::ADDON.to_owned(), name.to_owned()),
            (label::TYPE.to_owned(), "copy".to_owned()),
            (label::ORDINAL.to_owned(), "1".to_owned()),
        ]
        .into(),
        name: "copy.1".to_owned(),
        code: Code::None,
        command: program.command,
        environment,
        limits: Limits { memory_bytes: MEMORY, processes: program.processes, ..Limits::default() },
        network: Network::Isolated,
        port: None,
        time_limit: Some(LIMIT),
        grace: Duration::from_secs(5),
        binds: binds.collect(),
        services,
        walls: crate::platform::Walls::Sandbox,
        masked: Vec::new(),
    };
    outside::point("platform start").await;
    world.platform.start(&spec).await?;
    outside::point("platform started").await;
    info!(process = %id, addon = %addon.id, owner = %addon.owner, "copying the template for {}", addon.owner);
    Ok(Ok(()))
}

/// Stops and forgets the copy of an add-on; whether nothing of it is left.
pub(super) async fn take_away(world: &World, addon: &Addon) -> Result<bool, Trouble> {
    let name = name_of(addon);
    let mut gone = true;
    for status in observe::list(world).await? {
        if status.labels.get(label::ADDON) != Some(&name) {
            continue;
        }
        if status.state.is_over() {
            act::discard(world, &status.id).await?;
            act::remove_file(&kept::log_file(world, &status.id)).await?;
        } else {
            act::stop(world, &status.id).await?;
            gone = false;
        }
    }
    Ok(gone)
}
