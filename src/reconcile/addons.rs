//! Makes the add-ons that are wanted and takes away what went with its owner.
//!
//! The rule: the record comes first. It names what is to be made and with which password, so a kill between any two
//! steps leaves something that the next look finds by its name and finishes. A record goes last of all.

use super::addon_servers::{
    POSTGRES_PORT, RESTART, SHARED_POSTGRES, end_unneeded, folder, needs_server, network_of, operator_s_postgres,
    own_redis, port_of, postgres, postgres_port, redis_folder, redis_server, runs,
};
use super::observe::label;
use super::{Trouble, World, act, addon_copy, kept, observe};
use crate::addons::{self, AddonError, Database, Partner, PostgresServer, Provided, RedisSeen};
use crate::config::{AddonMode, Network};
use crate::domain::*;
use crate::outside;
use crate::platform::{Bind, ProcessStatus};
use crate::store::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

/// For how long a server that does not answer is waited for before the deploy fails.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same for a partner that says it is working on it.
const PARTNER_PATIENCE: Duration = Duration::from_secs(20 * 60);
/// Connections of whatever runs for a moment, or is a stranger's: as the smallest plan has.
const FEWEST_CONNECTIONS: u32 = 20;
/// Where clients see the authorities of the operator's PostgreSQL.
const AUTHORITY: &str = "/etc/landfall/postgres.pem";
const REDIS_AUTHORITY: &str = "/etc/landfall/redis.pem";
const REDIS_PORT: u16 = 6379;
const LOOPBACK: &str = "127.0.0.1";

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
            let (host, port) = seen_at(world, addon, Some(server.endpoint()));
            let named = inside_port(world, addon).and_then(|_| server.name_inside());
            // On the machine's own network the file is seen where it lies.
            let authority = match (inside_port(world, addon), server.authority()) {
                (None, Some(own)) => own,
                _ => REDIS_AUTHORITY.as_ref(),
            };
            let seen = RedisSeen { host: named.unwrap_or(&host), port, authority };
            let password = password_of(world, addon)?;
            Ok(server.provision(&tag(world).await?, addon, &password, &seen).await)
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
    // Nobody but us was in it before its app was told of it; from then on whatever stands in there is the app's.
    let is_new = addon.config.is_none();
    let may_copy = is_new && !stranger && is_review(world, &addon.owner)?;
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

/// The name by which an isolated owner finds an operator's server on its loopback, where its certificate is looked at.
fn inside_name(world: &World, addon: &Addon, server: &PostgresServer) -> Option<String> {
    inside_port(world, addon)?;
    server.address().name_inside().map(str::to_owned)
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
            (AddonKind::Redis, false) => {
                let server = redis_server(world).ok();
                name = server.as_ref().and_then(|server| server.name_inside()).map(str::to_owned);
                server.map(|server| server.endpoint())
            }
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

/// Files that the owner's processes need to trust its servers. As with services, only what was there at `until` counts.
pub(super) fn binds(world: &World, owner: &AddonOwner, until: crate::clock::Timestamp) -> Result<Vec<Bind>, Trouble> {
    let addons = world.store.addons_of(owner)?;
    let needs = |kind| addons.iter().any(|addon| addon.kind == kind && !addon.own && addon.created_at <= until);
    let mut binds = Vec::new();
    let mut bind = |host, inside: &str| binds.push(Bind { host, inside: inside.into(), writable: false });
    if needs(AddonKind::Postgres)
        && let Some(authority) = operator_s_postgres(world).and_then(|server| server.address().authority.clone())
    {
        bind(authority, AUTHORITY);
    }
    if needs(AddonKind::Redis)
        && let Some(authority) = redis_server(world).ok().and_then(|server| server.authority().map(Path::to_owned))
    {
        bind(authority, REDIS_AUTHORITY);
    }
    Ok(binds)
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
    act::remove_file(&kept::log_file(world, process)).await
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
