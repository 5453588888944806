//! Makes the add-ons that are wanted, keeps the servers of our own running, and takes away what went with its owner.
//!
//! The rule: the record comes first. It names what is to be made and with which password, so a kill between any two
//! steps leaves something that the next look finds by its name and finishes. A record goes last of all.

use super::observe::label;
use super::{Trouble, World, act, addon_copy, observe};
use crate::addons::{self, AddonError, Database, Partner, PostgresServer, Program, Provided, RedisServer};
use crate::config::{AddonMode, Network};
use crate::domain::*;
use crate::outside;
use crate::platform::{Bind, Code, Limits, ProcessStatus, Spec, State};
use crate::store::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tracing::{info, warn};

/// For how long a server that does not answer is waited for before the deploy fails.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same for a partner that says it is working on it.
const PARTNER_PATIENCE: Duration = Duration::from_secs(20 * 60);
/// A server of our own that ended is started again at once; after this, where it had not run for long.
const RESTART: Duration = Duration::from_secs(2);
/// What counts as long.
const STEADY: Duration = Duration::from_secs(10);
/// Connections of whatever runs for a moment, or is a stranger's: as the smallest plan has.
const FEWEST_CONNECTIONS: u32 = 20;
/// Where clients see the authorities of the operator's PostgreSQL.
const AUTHORITY: &str = "/etc/landfall/postgres.pem";
/// Ports inside the sandbox.
const POSTGRES_PORT: u16 = 5432;
const REDIS_PORT: u16 = 6379;
const LOOPBACK: &str = "127.0.0.1";

/// The label of the PostgreSQL that all apps share; a Redis has its add-on's id there.
const SHARED_POSTGRES: &str = "postgres";

/// Makes what is asked for and is not there yet. The answer is why that can't be; silence means that it is there, or
/// that it is to be asked for again.
pub(super) async fn ensure(
    world: &World,
    owner: &AddonOwner,
    requests: &[AddonRequest],
) -> Result<Option<Failure>, Trouble> {
    let wanted = match attachments(requests) {
        Ok(wanted) => wanted,
        Err(failure) => return Ok(Some(failure)),
    };
    for addon in write_down(world, owner, wanted).await? {
        match &addon.state {
            AddonState::Going => {
                take_away(world, &addon).await?;
            }
            AddonState::Wanted { since } => {
                if addon.again_at.is_some_and(|at| world.now() < at) {
                    continue;
                }
                if let Some(failure) = make(world, &addon, *since).await? {
                    return Ok(Some(failure));
                }
            }
            AddonState::Provisioned { .. } => {}
            AddonState::Failed { problem, .. } => {
                return Ok(Some(Failure::Addon { plan: addon.plan, problem: problem.clone() }));
            }
        }
    }
    Ok(None)
}

/// Writes what is wanted now, in one transaction; gives the records of it.
async fn write_down(world: &World, owner: &AddonOwner, wanted: Vec<WantedAddon>) -> Result<Vec<Addon>, Trouble> {
    let have = world.store.addons_of(owner)?;
    let settings = &world.config.addons;
    let mut records = Vec::new();
    for one in wanted {
        let known = have.iter().find(|addon| addon.attachment == one.attachment);
        let now = world.now();
        records.push(match known {
            Some(addon) if addon.state == AddonState::Going => addon.clone(),
            Some(addon) => {
                let same = crate::workflow::is_as_asked(addon, &one);
                let mut addon = addon.clone();
                if !same || matches!(addon.state, AddonState::Failed { .. }) {
                    addon.state = AddonState::Wanted { since: now };
                    addon.again_at = None;
                }
                addon.plan = one.request.plan;
                addon.options = one.request.options;
                addon
            }
            None => Addon {
                id: AddonId::new(owner, &one.attachment),
                owner: owner.clone(),
                own: match one.kind {
                    AddonKind::Postgres => settings.postgres.mode() == AddonMode::Own,
                    AddonKind::Redis => settings.redis.mode() == AddonMode::Own,
                    AddonKind::Partner => false,
                },
                plan: one.request.plan,
                kind: one.kind,
                attachment: one.attachment,
                ordinal: one.ordinal,
                options: one.request.options,
                created_at: now,
                state: AddonState::Wanted { since: now },
                password: world.vault.seal(&world.vault.random_hex(24)?)?,
                config: None,
                handle: None,
                again_at: None,
                note: None,
            },
        });
    }
    let changed: Vec<Addon> = records.iter().filter(|addon| !have.contains(addon)).cloned().collect();
    if !changed.is_empty() {
        world.commit(move |tx| changed.iter().try_for_each(|addon| tx.put_addon(addon))).await?;
    }
    Ok(records)
}

async fn make(world: &World, addon: &Addon, since: crate::clock::Timestamp) -> Result<Option<Failure>, Trouble> {
    let waited = world.now().since(since);
    outside::point("addon provision").await;
    let provided = provision(world, addon, waited).await?;
    outside::point("addon provisioned").await;
    let mut addon = addon.clone();
    let now = world.now();
    let gave_up = match provided {
        Ok(Provided::Ready { config, handle, note }) => {
            // A partner that changes a plan may say nothing new about the config vars.
            if addon.config.is_none() || !config.is_empty() {
                let json = serde_json::to_string(&config).map_err(Trouble::bug)?;
                addon.config = Some(world.vault.seal(&json)?);
            }
            addon.handle = handle.or(addon.handle);
            addon.note = note;
            addon.again_at = None;
            addon.state = AddonState::Provisioned { at: now };
            info!(addon = %addon.id, owner = %addon.owner, "{} of {} is there", addon.plan, addon.owner);
            None
        }
        Ok(Provided::Pending { after, handle }) => {
            addon.handle = handle.or(addon.handle);
            addon.again_at = Some(now + after);
            let most = match addon.kind {
                AddonKind::Partner => PARTNER_PATIENCE,
                AddonKind::Postgres if world.config.addons.postgres.template_url.is_some() => addon_copy::PATIENCE,
                AddonKind::Postgres | AddonKind::Redis => PATIENCE,
            };
            (waited > most)
                .then(|| AddonProblem::Unreachable { detail: format!("not ready after {} s", waited.as_secs()) })
        }
        Err(AddonError::Unreachable(detail)) => {
            warn!(addon = %addon.id, owner = %addon.owner, "{} of {} must wait: {detail}", addon.plan, addon.owner);
            addon.again_at = Some(now + (waited / 10).clamp(Duration::from_millis(300), Duration::from_secs(10)));
            (waited > PATIENCE).then_some(AddonProblem::Unreachable { detail })
        }
        Err(AddonError::Refused(problem)) => Some(problem),
    };
    let failure = gave_up.map(|problem| {
        addon.state = AddonState::Failed { problem: problem.clone(), at: now };
        Failure::Addon { plan: addon.plan.clone(), problem }
    });
    world.commit(move |tx| tx.put_addon(&addon)).await?;
    Ok(failure)
}

async fn provision(world: &World, addon: &Addon, waited: Duration) -> Result<Result<Provided, AddonError>, Trouble> {
    let settings = &world.config.addons;
    let off = |service: &str| AddonError::Refused(AddonProblem::Off { service: service.to_owned() });
    match addon.kind {
        AddonKind::Postgres if settings.postgres.mode() == AddonMode::Off => Ok(Err(off(addon.service()))),
        AddonKind::Redis if settings.redis.mode() == AddonMode::Off => Ok(Err(off(addon.service()))),
        // On the heap: what is polled for one add-on stays small however much one of its kinds does.
        AddonKind::Postgres => Box::pin(provision_postgres(world, addon)).await,
        AddonKind::Redis if addon.own => {
            let policy = match addons::policy_of(addon) {
                Ok(policy) => policy,
                Err(error) => return Ok(Err(error)),
            };
            if let Err(error) = own_redis(world, addon, policy).await? {
                return Ok(Err(error));
            }
            let (seen, password) = (seen_at(world, addon, None), password_of(world, addon)?);
            let endpoint = Endpoint::Unix(redis_folder(world, addon)?.join("s"));
            Ok(addons::own_is_ready(&endpoint, addon, &password, (&seen.0, seen.1)).await)
        }
        AddonKind::Redis => {
            let server = match redis_server(world) {
                Ok(server) => server,
                Err(error) => return Ok(Err(error)),
            };
            let seen = seen_at(world, addon, Some(server.endpoint()));
            let password = password_of(world, addon)?;
            Ok(server.provision(&tag(world).await?, addon, &password, (&seen.0, seen.1)).await)
        }
        AddonKind::Partner => {
            let Some(partner) = partner(world, addon.service()) else {
                let service = addon.service().to_owned();
                return Ok(Err(AddonError::Refused(AddonProblem::Unknown { service })));
            };
            if is_stranger(world, &addon.owner)? {
                let service = addon.service().to_owned();
                return Ok(Err(AddonError::Refused(AddonProblem::Stranger { service })));
            }
            if addon.config.is_some() {
                return Ok(partner.change_plan(&world.http, addon).await);
            }
            Ok(partner.provision(&world.http, addon, &addon.owner.to_string(), waited).await)
        }
    }
}

async fn provision_postgres(world: &World, addon: &Addon) -> Result<Result<Provided, AddonError>, Trouble> {
    let settings = &world.config.addons;
    let server = match postgres(world, addon.own).await? {
        Ok(server) => server,
        Err(error) => return Ok(Err(error)),
    };
    let (tag, password) = (tag(world).await?, password_of(world, addon)?);
    let seen = seen_at(world, addon, server.endpoint());
    let named = inside_name(world, addon, &server);
    let on_machine = network_of(world, &addon.owner) == Network::Host;
    let told = server.address().told(named.is_some() || on_machine, AUTHORITY.as_ref());
    let stranger = is_stranger(world, &addon.owner)?;
    let may_copy = !stranger && is_review(world, &addon.owner)?;
    let database = Database {
        addon,
        tag: &tag,
        password: &password,
        template: settings.postgres.template.as_deref().filter(|_| may_copy),
        copied: may_copy && settings.postgres.template_url.is_some(),
        most_connections: most_connections(world, addon, stranger),
        seen_at: (named.as_deref().unwrap_or(&seen.0), seen.1),
        told: &told,
    };
    let provided = server.provision(&database).await;
    if !database.copied || !matches!(provided, Ok(Provided::Ready { .. })) {
        return Ok(provided);
    }
    Ok(match Box::pin(addon_copy::ensure(world, &server, &database)).await? {
        Ok(Some(pending)) => Ok(pending),
        Ok(None) => provided,
        Err(error) => Err(error),
    })
}

/// Whether a stranger's code would use it: it gets no data of the repository's own, and nothing that costs money.
fn is_stranger(world: &World, owner: &AddonOwner) -> Result<bool, Trouble> {
    Ok(match owner {
        AddonOwner::App { name, .. } => world.store.app(name)?.is_some_and(|app| app.untrusted),
        AddonOwner::Node { run, .. } => world.store.run(*run)?.is_some_and(|run| run.untrusted),
    })
}

fn is_review(world: &World, owner: &AddonOwner) -> Result<bool, Trouble> {
    let AddonOwner::App { name, .. } = owner else { return Ok(false) };
    Ok(world.store.app(name)?.is_some_and(|app| matches!(app.stage, Stage::Review(_))))
}

/// What one add-on may have of a server that others share: of our own a quarter, so that no four apps take all of it.
fn most_connections(world: &World, addon: &Addon, stranger: bool) -> u32 {
    let share = (world.config.addons.postgres.connections / 4).max(1);
    let most = if addon.own { share } else { u32::MAX };
    match addon.owner {
        AddonOwner::App { .. } if !stranger => most,
        _ => most.min(FEWEST_CONNECTIONS),
    }
}

fn partner(world: &World, service: &str) -> Option<Partner> {
    let settings = world.config.addons.partner.get(service)?;
    Some(Partner {
        base_url: settings.base_url.clone(),
        username: settings.username.clone(),
        password: settings.password.clone(),
        region: settings.region.clone(),
    })
}

pub(super) fn password_of(world: &World, addon: &Addon) -> Result<Secret, Trouble> {
    Ok(Secret::new(world.vault.open_sealed(&addon.password)?))
}

/// What tells this data folder's names on a server from another one's. Drawn once.
async fn tag(world: &World) -> Result<String, Trouble> {
    if let Some(tag) = world.store.addon_tag()? {
        return Ok(tag);
    }
    let fresh = world.vault.random_hex(4)?;
    let written = move |tx: &mut Transaction<'_>| match tx.addon_tag()? {
        Some(tag) => Ok(tag),
        None => tx.put_addon_tag(&fresh).map(|()| fresh),
    };
    Ok(world.commit(written).await?)
}

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

fn redis_folder(world: &World, addon: &Addon) -> Result<PathBuf, Trouble> {
    folder(world, addon.id.short())
}

/// The server that an add-on's database lies on. One of our own is started if it does not run.
async fn postgres(world: &World, own: bool) -> Result<Result<PostgresServer, AddonError>, Trouble> {
    let settings = &world.config.addons.postgres;
    if !own {
        return Ok(match &settings.url {
            Some(url) => PostgresServer::from_url(url, "addons.postgres.url"),
            None => Err(AddonError::Unreachable("addons.postgres.url is not set any more".to_owned())),
        });
    }
    let Some(programs) = addons::find_postgres(&crate::config::search_path()) else {
        let problem = AddonProblem::NotInstalled { program: "PostgreSQL".to_owned() };
        return Ok(Err(AddonError::Refused(problem)));
    };
    let password = server_password(world, SHARED_POSTGRES).await?;
    let port = on_machine_s_network(world).then_some(settings.port);
    let program = addons::postgres_program(&programs, port, settings.memory_mb << 20, settings.connections);
    let folder = folder(world, "pg")?;
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

async fn own_redis(world: &World, addon: &Addon, policy: &str) -> Result<Result<(), AddonError>, Trouble> {
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

fn redis_server(world: &World) -> Result<RedisServer, AddonError> {
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
    };
    outside::point("platform start").await;
    world.platform.start(&spec).await?;
    outside::point("platform started").await;
    info!(process = %id, "started {id}");
    Ok(Ok(()))
}

fn network_of(world: &World, owner: &AddonOwner) -> Network {
    match owner {
        AddonOwner::App { .. } => world.config.apps.network,
        AddonOwner::Node { .. } => world.config.tests.network,
    }
}

/// Which number stands in the name of our own PostgreSQL's socket.
pub(super) fn postgres_port(world: &World) -> u16 {
    if on_machine_s_network(world) { world.config.addons.postgres.port } else { POSTGRES_PORT }
}

/// The name by which an isolated owner finds an operator's server on its loopback, where its certificate is looked at.
fn inside_name(world: &World, addon: &Addon, server: &PostgresServer) -> Option<String> {
    inside_port(world, addon)?;
    server.address().name_inside().map(str::to_owned)
}

fn on_machine_s_network(world: &World) -> bool {
    world.config.apps.network == Network::Host || world.config.tests.network == Network::Host
}

/// A Redis on the machine's loopback gets a port from its id.
fn port_of(addon: &Addon) -> u16 {
    30_000 + u16::try_from(crc32c::crc32c(addon.id.as_str().as_bytes()) % 2_000).unwrap_or(0)
}

/// The port on the loopback of an isolated owner, if that is what it is.
fn inside_port(world: &World, addon: &Addon) -> Option<u16> {
    match (network_of(world, &addon.owner), addon.kind) {
        (Network::Host, _) | (_, AddonKind::Partner) => None,
        (Network::Isolated, AddonKind::Postgres) => Some(POSTGRES_PORT),
        (Network::Isolated, AddonKind::Redis) if addon.own => Some(REDIS_PORT + addon.ordinal.min(1000)),
        (Network::Isolated, AddonKind::Redis) => Some(REDIS_PORT),
    }
}

/// Host and port by which the owner reaches it.
fn seen_at(world: &World, addon: &Addon, endpoint: Option<Endpoint>) -> (String, u16) {
    if let Some(port) = inside_port(world, addon) {
        return (LOOPBACK.to_owned(), port);
    }
    match (addon.kind, addon.own, endpoint) {
        (AddonKind::Postgres, true, _) => (LOOPBACK.to_owned(), world.config.addons.postgres.port),
        (AddonKind::Redis, true, _) => (LOOPBACK.to_owned(), port_of(addon)),
        (_, _, Some(Endpoint::Tcp { host, port })) => (host, port),
        (AddonKind::Redis, ..) => (LOOPBACK.to_owned(), REDIS_PORT),
        _ => (LOOPBACK.to_owned(), POSTGRES_PORT),
    }
}

/// What the owner's processes find on their loopback. Only add-ons that were there at `until` count, so that a process
/// that is started again after a crash is the same one.
pub(super) fn services(
    world: &World,
    owner: &AddonOwner,
    until: crate::clock::Timestamp,
) -> Result<Vec<Service>, Trouble> {
    let mut services: Vec<Service> = Vec::new();
    for addon in world.store.addons_of(owner)?.iter().filter(|addon| addon.created_at <= until) {
        let Some(port) = inside_port(world, addon) else { continue };
        let mut name = None;
        let to = match (addon.kind, addon.own) {
            (AddonKind::Postgres, true) => {
                Some(Endpoint::Unix(folder(world, "pg")?.join(format!(".s.PGSQL.{}", postgres_port(world)))))
            }
            (AddonKind::Postgres, false) => {
                let server = operator_s_postgres(world);
                name = server.as_ref().and_then(|server| inside_name(world, addon, server));
                server.and_then(|server| server.endpoint())
            }
            (AddonKind::Redis, true) => Some(Endpoint::Unix(redis_folder(world, addon)?.join("s"))),
            (AddonKind::Redis, false) => redis_server(world).ok().map(|server| server.endpoint()),
            (AddonKind::Partner, _) => None,
        };
        if let Some(to) = to
            && services.iter().all(|service| service.port != port)
        {
            services.push(Service { port, to, name });
        }
    }
    Ok(services)
}

fn operator_s_postgres(world: &World) -> Option<PostgresServer> {
    let url = world.config.addons.postgres.url.as_ref()?;
    PostgresServer::from_url(url, "addons.postgres.url").ok()
}

/// Files that the owner's processes need to trust its servers. As with services, only what was there at `until` counts.
pub(super) fn binds(world: &World, owner: &AddonOwner, until: crate::clock::Timestamp) -> Result<Vec<Bind>, Trouble> {
    let needs = |addon: &Addon| addon.kind == AddonKind::Postgres && !addon.own && addon.created_at <= until;
    if !world.store.addons_of(owner)?.iter().any(needs) {
        return Ok(Vec::new());
    }
    let authority = operator_s_postgres(world).and_then(|server| server.address().authority.clone());
    Ok(authority.into_iter().map(|host| Bind { host, inside: AUTHORITY.into(), writable: false }).collect())
}

/// The config vars of all add-ons of an owner.
pub(super) fn config_vars(world: &World, owner: &AddonOwner) -> Result<BTreeMap<String, String>, Trouble> {
    let mut variables = BTreeMap::new();
    for addon in world.store.addons_of(owner)? {
        let Some(sealed) = addon.config.as_ref().filter(|_| addon.state != AddonState::Going) else { continue };
        let own: BTreeMap<String, String> =
            serde_json::from_str(&world.vault.open_sealed(sealed)?).map_err(Trouble::bug)?;
        variables.extend(own);
    }
    Ok(variables)
}

/// Takes all add-ons of an owner away, whose processes have ended. What takes its time is gone after a later look.
pub(super) async fn take_all_away(world: &World, owner: &AddonOwner) -> Result<(), Trouble> {
    for addon in world.store.addons_of(owner)? {
        take_away(world, &addon).await?;
    }
    Ok(())
}

/// Marks it as going, takes it away, and then its record.
async fn take_away(world: &World, addon: &Addon) -> Result<(), Trouble> {
    if addon.state != AddonState::Going {
        let mut going = addon.clone();
        going.state = AddonState::Going;
        world.commit(move |tx| tx.put_addon(&going)).await?;
    }
    outside::point("addon deprovision").await;
    let gone = deprovision(world, addon).await?;
    outside::point("addon deprovisioned").await;
    match gone {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(AddonError::Unreachable(detail)) => {
            return Err(Trouble::retry_in(
                Duration::from_secs(2),
                format!("{} of {} stays: {detail}", addon.plan, addon.owner),
            ));
        }
        // Somebody must look; the doctor shows it for as long as its record is there.
        Err(AddonError::Refused(problem)) => {
            let why = format!("{} of {} cannot be taken away: {problem:?}", addon.plan, addon.owner);
            return Err(Trouble::retry_in(Duration::from_secs(30), why));
        }
    }
    let gone = addon.clone();
    info!(addon = %addon.id, owner = %addon.owner, "nothing of {} of {} is left", addon.plan, addon.owner);
    world.commit(move |tx| tx.delete_addon(&gone)).await?;
    if addon.own && addon.kind == AddonKind::Postgres {
        end_unneeded(world).await?;
    }
    Ok(())
}

/// With the last database our own server ends.
async fn end_unneeded(world: &World) -> Result<(), Trouble> {
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

/// A server of our own, or a copy, began or ended. The answer says when to look again.
pub(super) async fn process_changed(world: &World, status: &ProcessStatus) -> Result<Option<Duration>, Trouble> {
    let Some(name) = status.labels.get(label::ADDON).filter(|_| status.state.is_over()) else { return Ok(None) };
    if let Some(owner) = addon_copy::owner_of(&world.store.addons()?, name) {
        let subject = match owner {
            AddonOwner::App { name, .. } => Subject::App(name),
            AddonOwner::Node { run, .. } => Subject::Run(run),
        };
        world.enqueue_subject(&subject).await?;
        return Ok(None);
    }
    if !needs_server(world, name)? {
        act::discard(world, &status.id).await?;
        return Ok(None);
    }
    Box::pin(look_after(world)).await?;
    Ok(Some(RESTART))
}

/// Whether nothing of it is left at its provider.
async fn deprovision(world: &World, addon: &Addon) -> Result<Result<bool, AddonError>, Trouble> {
    let gone = |result: Result<(), AddonError>| result.map(|()| true);
    match addon.kind {
        AddonKind::Postgres => {
            // Before the first start of a server of our own there is nothing on it.
            if addon.own && world.store.addon_server(SHARED_POSTGRES)?.is_none() {
                return Ok(Ok(true));
            }
            if !addon_copy::take_away(world, addon).await? {
                return Ok(Ok(false));
            }
            let never_made = matches!(addon.state, AddonState::Failed { .. }) && addon.config.is_none();
            match postgres(world, addon.own).await? {
                Ok(server) => Ok(gone(server.deprovision(&tag(world).await?, addon).await)),
                // Nothing can be on a server that was never there.
                Err(AddonError::Refused(_)) if never_made => Ok(Ok(true)),
                Err(error) => Ok(Err(error)),
            }
        }
        AddonKind::Redis if addon.own => {
            let name = addon.id.to_string();
            let mut running = false;
            for status in observe::list(world).await? {
                if status.labels.get(label::ADDON) == Some(&name) {
                    if status.state.is_over() {
                        act::discard(world, &status.id).await?;
                        remove_log(world, &status.id).await?;
                    } else {
                        running = true;
                        act::stop(world, &status.id).await?;
                    }
                }
            }
            if running {
                return Ok(Ok(false));
            }
            outside::point("redis folder").await;
            super::build::remove_folder(&redis_folder(world, addon)?).await?;
            Ok(Ok(true))
        }
        AddonKind::Redis => match redis_server(world) {
            Ok(server) => Ok(gone(server.deprovision(&tag(world).await?, addon).await)),
            Err(error) => Ok(Err(error)),
        },
        AddonKind::Partner => match partner(world, addon.service()) {
            Some(partner) => Ok(gone(partner.deprovision(&world.http, addon, &addon.owner.to_string()).await)),
            // It was never known here, so nothing was ever asked for.
            None if addon.handle.is_none() && addon.config.is_none() => Ok(Ok(true)),
            None => Ok(Err(AddonError::Unreachable(format!("no provider {} is configured", addon.service())))),
        },
    }
}

async fn remove_log(world: &World, process: &ProcessId) -> Result<(), Trouble> {
    act::remove_file(&act::log_file(world, process)).await
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

/// For the slow tick: servers that ended are started again, users that the operator's Redis forgot are made again, and
/// what has no owner any more goes.
pub(super) async fn look_after(world: &World) -> Result<(), Trouble> {
    let all = world.store.addons()?;
    let mut postgres_done = false;
    for addon in &all {
        if !has_owner(world, addon)? {
            warn!(addon = %addon.id, "{} of {} belongs to nobody any more", addon.plan, addon.owner);
            if let Err(trouble) = take_away(world, addon).await {
                warn!("it is still there: {trouble}");
            }
            continue;
        }
        if !matches!(addon.state, AddonState::Provisioned { .. }) {
            continue;
        }
        let kept = match addon.kind {
            AddonKind::Postgres if addon.own && !postgres_done => {
                postgres_done = true;
                postgres(world, true).await?.map(drop)
            }
            AddonKind::Redis if addon.own => match addons::policy_of(addon) {
                Ok(policy) => own_redis(world, addon, policy).await?,
                Err(error) => Err(error),
            },
            AddonKind::Redis => {
                outside::point("addon provision").await;
                let provided = provision(world, addon, Duration::ZERO).await?;
                provided.map(drop)
            }
            AddonKind::Postgres | AddonKind::Partner => Ok(()),
        };
        if let Err(error) = kept {
            warn!(addon = %addon.id, "{} of {} does not answer: {error}", addon.plan, addon.owner);
        }
    }
    Ok(())
}

fn has_owner(world: &World, addon: &Addon) -> Result<bool, Trouble> {
    Ok(match &addon.owner {
        AddonOwner::App { name, id } => world.store.app(name)?.is_some_and(|app| app.id == *id),
        AddonOwner::Node { run, .. } => world.store.run(*run)?.is_some(),
    })
}

/// Every add-on, for the doctor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AddonLine {
    pub owner: String,
    pub plan: String,
    pub attachment: String,
    /// `wanted`, `provisioned`, `failed`, `going`.
    pub state: &'static str,
    pub id: String,
}

pub fn addon_lines(world: &World) -> Result<Vec<AddonLine>, Trouble> {
    let line = |addon: Addon| AddonLine {
        owner: addon.owner.to_string(),
        state: match addon.state {
            AddonState::Wanted { .. } => "wanted",
            AddonState::Provisioned { .. } => "provisioned",
            AddonState::Failed { .. } => "failed",
            AddonState::Going => "going",
        },
        plan: addon.plan,
        attachment: addon.attachment,
        id: addon.id.to_string(),
    };
    Ok(world.store.addons()?.into_iter().map(line).collect())
}

/// What exists at a provider, or as a folder, and belongs to no record; and records whose owner is gone.
pub(super) async fn strays(world: &World) -> Result<Vec<String>, Trouble> {
    let all = world.store.addons()?;
    let mut strays = Vec::new();
    for addon in &all {
        if !has_owner(world, addon)? {
            strays.push(format!("{} of {}", addon.plan, addon.owner));
        }
    }
    let answered = |error: AddonError| Trouble::retry(error);
    if let Some(tag) = world.store.addon_tag()? {
        let of_kind = |kind: AddonKind| -> BTreeSet<String> {
            let prefix = addons::prefix(&tag);
            all.iter().filter(|addon| addon.kind == kind).map(|addon| format!("{prefix}{}", addon.id)).collect()
        };
        let settings = &world.config.addons;
        let mut servers = Vec::new();
        if settings.postgres.mode() == AddonMode::Server {
            servers.push(postgres(world, false).await?);
        }
        // One that does not run is not started to be looked at.
        if runs(world, SHARED_POSTGRES).await? {
            servers.push(postgres(world, true).await?);
        }
        for server in servers {
            let names = server.map_err(answered)?.list(&tag).await.map_err(answered)?;
            strays.extend(names.difference(&of_kind(AddonKind::Postgres)).cloned());
        }
        if settings.redis.mode() == AddonMode::Server {
            let names = redis_server(world).map_err(answered)?.list(&tag).await.map_err(answered)?;
            strays.extend(names.difference(&of_kind(AddonKind::Redis)).cloned());
        }
    }
    let folders: BTreeSet<String> = all.iter().map(|addon| addon.id.short().to_owned()).collect();
    if let Ok(mut entries) = tokio::fs::read_dir(world.folder("addons")).await {
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "pg" && !folders.contains(&name) {
                strays.push(format!("addons/{name}"));
            }
        }
    }
    Ok(strays)
}

async fn runs(world: &World, name: &str) -> Result<bool, Trouble> {
    let all = observe::list(world).await?;
    Ok(all.iter().any(|status| {
        status.labels.get(label::ADDON).map(String::as_str) == Some(name)
            && matches!(status.state, State::Running { .. })
    }))
}
