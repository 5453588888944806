//! Releases, and the processes that run them: what they see (environment), what they may use (limits), how they are
//! known again (labels).

use super::apply::put_app;
use super::observe::{self, label};
use super::{Trouble, World, act, addons, build, config, policy, processes, split};
use crate::ci::wire::SETUP_LOG;
use crate::clock::Timestamp;
use crate::domain::*;
use crate::outside;
use crate::platform::{Code, Limits, Root, Spec, Walls};
use crate::workflow::{SETUP_FAILED, environment_of, first_formation, test_script};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::info;

/// The port that every isolated process may have for itself.
const PORT: u16 = 5000;
/// as on Heroku, a release command may take an hour.
const RELEASE_LIMIT: Duration = Duration::from_secs(3600);
/// What `pr-predestroy` may take: a pull request that was closed shall not hold its resources for long.
const PREDESTROY_LIMIT: Duration = Duration::from_secs(600);

/// Writes the release of a deploy, or fails the deploy where something that the release needs is missing.
pub(super) async fn make_release(world: &World, app: &App, number: u64) -> Result<(), Trouble> {
    let Some(deploy) = app.deploy(number).filter(|deploy| deploy.release.is_none() && deploy.outcome.is_none()) else {
        return Ok(());
    };
    let refused = match policy::lost_right(world, app, number).await? {
        Some(login) => Some(Failure::RightLost { login }),
        None => policy::barred_since(world, app, deploy)?.map(|by| Failure::Barred { by }),
    };
    if let Some(failure) = refused {
        let at = world.now();
        act::change_deploy(world, app, number, move |_, deploy| {
            deploy.outcome = Some(Outcome::Failed { failure, at });
        })
        .await?;
        return Ok(());
    }
    // Two new apps shall not both take the last place.
    let _alone = if app.formation.is_none() { Some(processes::alone(world).await) } else { None };
    let made = match &deploy.cause {
        Cause::Rollback { to, .. } => earlier(world, app, *to, number)?,
        Cause::Promotion { slug, .. } | Cause::Config { slug, .. } | Cause::Retry { slug, .. } => {
            of_slug(world, app, slug, number)?
        }
        Cause::Push => {
            let Some(slug) = built(world, app, deploy)? else { return Ok(()) };
            of_slug(world, app, &slug, number)?
        }
    };
    let parts = match made {
        Ok(Some(parts)) => parts,
        // Something that it needs is not set (any more): the next look says what.
        Ok(None) => return Ok(()),
        Err(failure) => {
            let at = world.now();
            act::change_deploy(world, app, number, move |_, deploy| {
                deploy.outcome = Some(Outcome::Failed { failure, at });
            })
            .await?;
            return Ok(());
        }
    };
    let (name, now) = (app.name.clone(), world.now());
    let Parts { slug, config, process_types, formation, generated } = parts;
    let written = world
        .commit(move |tx| {
            let Some(mut app) = tx.app(&name)? else { return Ok(None) };
            let release_number = ReleaseNumber(app.last_release + 1);
            let open =
                |deploy: &&mut Deploy| deploy.number == number && deploy.release.is_none() && deploy.outcome.is_none();
            let Some(deploy) = app.deploys.iter_mut().find(open) else { return Ok(None) };
            let formation = app.formation.get_or_insert(formation).clone();
            let release = Release {
                app: name,
                number: release_number,
                deploy: number,
                slug,
                commit: deploy.commit.clone(),
                branch: deploy.branch.clone(),
                cause: deploy.cause.clone(),
                by: deploy.by.clone(),
                created_at: now,
                config,
                process_types,
                formation,
            };
            let release = Release { formation: app.formation_of(&release), ..release };
            let Some(deploy) = app.deploys.iter_mut().find(open) else { return Ok(None) };
            deploy.release = Some(release_number);
            deploy.missing.clear();
            app.last_release = release_number.0;
            for (name, sealed) in generated {
                app.generated.entry(name).or_insert(sealed);
            }
            tx.put_release(&release)?;
            put_app(tx, &app, now)?;
            Ok(Some(release))
        })
        .await?;
    if let Some(release) = written {
        info!(app = %release.app, release = %release.number, "made {} of {}", release.number, release.app);
    }
    Ok(())
}

struct Parts {
    slug: SlugDigest,
    config: Sealed,
    process_types: BTreeMap<String, String>,
    formation: BTreeMap<String, Scale>,
    /// Values that were made for this release and are kept for the next ones.
    generated: BTreeMap<String, Sealed>,
}

fn built(world: &World, app: &App, deploy: &Deploy) -> Result<Option<SlugDigest>, Trouble> {
    let Some(tree) = &deploy.tree else { return Ok(None) };
    let Some(key) = world.store.build_of_tree(app.repository, tree)? else { return Ok(None) };
    Ok(match world.store.build(&key)?.map(|build| build.state) {
        Some(BuildState::Succeeded { slug, .. }) => Some(slug),
        _ => None,
    })
}

/// What a release's config is sealed for. A deploy has one release.
fn config_place(app: &AppName, deploy: u64) -> String {
    format!("release/{app}/{deploy}")
}

type Made = Result<Option<Parts>, Failure>;

fn earlier(world: &World, app: &App, number: ReleaseNumber, deploy: u64) -> Result<Made, Trouble> {
    let Some(release) = world.store.release(&app.name, number)? else {
        return Ok(Err(Failure::Internal { detail: format!("{number} of {} is not kept any more", app.name) }));
    };
    if !observe::is_kept(world, &release) {
        let detail = format!("the slug of {number} of {} is not kept any more", app.name);
        return Ok(Err(Failure::Internal { detail }));
    }
    let config = world.vault.open_in(&config_place(&app.name, release.deploy), &release.config)?;
    Ok(Ok(Some(Parts {
        slug: release.slug,
        config: world.vault.seal_in(&config_place(&app.name, deploy), &config)?,
        process_types: release.process_types,
        formation: release.formation,
        generated: BTreeMap::new(),
    })))
}

fn of_slug(world: &World, app: &App, digest: &SlugDigest, deploy: u64) -> Result<Made, Trouble> {
    let Some(slug) = world.store.slug(digest)? else {
        return Ok(Err(Failure::Internal { detail: format!("slug {digest} is not kept any more") }));
    };
    let settled = config::settled(world, app, &slug)?;
    if !settled.missing.is_empty() {
        return Ok(Ok(None));
    }
    let Some(most) = room_for(world, app)? else {
        return Ok(Err(Failure::NoRoom { most: world.config.apps.max_processes }));
    };
    let policy = world.store.pipeline(app.repository)?.policy;
    let asked = policy.formation_of(app.key()).to_vec();
    let (config, generated) = config::open(world, app, settled)?;
    let json = serde_json::to_string(&config).map_err(Trouble::bug)?;
    Ok(Ok(Some(Parts {
        slug: slug.digest.clone(),
        config: world.vault.seal_in(&config_place(&app.name, deploy), &json)?,
        formation: first_formation(&slug, app.stage, &asked, most, &world.config.apps.size_names()),
        process_types: slug.process_types,
        generated,
    })))
}

/// How many processes the first release of an app may have, beside what the others have; `None` where that is none.
fn room_for(world: &World, app: &App) -> Result<Option<u16>, Trouble> {
    let limits = processes::limits(world, &app.name)?;
    if app.formation.is_some() {
        return Ok(Some(limits.most));
    }
    let left = limits.most_in_all.saturating_sub(limits.elsewhere);
    Ok(Some(limits.most.min(u16::try_from(left).unwrap_or(u16::MAX))).filter(|room| *room > 0))
}

pub fn config_of(world: &World, release: &Release) -> Result<BTreeMap<String, String>, Trouble> {
    let json = world.vault.open_in(&config_place(&release.app, release.deploy), &release.config)?;
    serde_json::from_str(&json).map_err(Trouble::bug)
}

pub(super) async fn publish(world: &World, slug: &SlugDigest) -> Result<(), Trouble> {
    let archive = build::archive(world, slug);
    outside::point("platform publish").await;
    world.platform.publish(slug, &archive).await?;
    outside::point("platform published").await;
    Ok(())
}

/// Starts one process of a release.
pub(super) async fn process(
    world: &World,
    app: &App,
    number: ReleaseNumber,
    kind: &str,
    ordinal: u16,
    attempt: u32,
    crashes: u32,
) -> Result<(), Trouble> {
    let Some(release) = world.store.release(&app.name, number)? else {
        return Err(Trouble::bug(format!("{number} of {} has no record", app.name)));
    };
    let Some(duty) = duty(world, app, &release, kind, ordinal)? else {
        return Err(Trouble::bug(format!("{number} of {} has no process type {kind}", app.name)));
    };
    let size = world.config.apps.size(&duty.size);
    publish(world, &release.slug).await?;
    let name = format!("{kind}.{ordinal}");
    let id = release.process_id(kind, ordinal, attempt);
    let settings = &world.config.apps;
    let image = world.store.slug(&release.slug)?.and_then(|slug| slug.image);
    let port = (kind == "web").then(|| port_for(settings.network, &id, image.as_ref()));
    let mut environment = environment_of_image(image.as_ref());
    environment.extend(config_of(world, &release)?);
    environment.extend(standard_environment(world, app, &release, &name));
    if let Some(port) = port {
        environment.insert("PORT".to_owned(), port.to_string());
    }
    let spec = Spec {
        id: id.clone(),
        labels: [
            (label::APP, app.name.to_string()),
            (label::RELEASE, number.to_string()),
            (label::TYPE, kind.to_owned()),
            (label::ORDINAL, ordinal.to_string()),
            (label::ATTEMPT, attempt.to_string()),
            (label::CRASHES, crashes.to_string()),
            (label::SIZE, duty.size.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        name,
        code: Code::Slug(release.slug.clone()),
        command: duty.command,
        environment,
        limits: Limits {
            memory_bytes: (size.memory_mb << 20) / 100 * u64::from(settings.memory_hard_percent),
            memory_quota: size.memory_mb << 20,
            cpu_millis: size.cpu_millis,
            processes: settings.processes,
            disk_bytes: settings.disk_mb << 20,
            ..Limits::default()
        },
        network: build::network(settings.network),
        port,
        time_limit: duty.time_limit,
        grace: Duration::from_secs(settings.grace_seconds),
        binds: addons::binds(world, &AddonOwner::of(app), release.created_at)?,
        services: addons::services(world, &AddonOwner::of(app), release.created_at)?,
        walls: walls(image.as_ref()),
        masked: Vec::new(),
    };
    start(world, &spec).await?;
    info!(app = %app.name, release = %number, process = %id, "started {id}");
    Ok(())
}

/// What a process runs, how large it is, and for how long.
struct Duty {
    command: String,
    size: String,
    time_limit: Option<Duration>,
}

fn duty(world: &World, app: &App, release: &Release, kind: &str, ordinal: u16) -> Result<Option<Duty>, Trouble> {
    let once = |command: String, limit| Duty { command, size: DEFAULT_SIZE.to_owned(), time_limit: Some(limit) };
    let scripts = || -> Result<Scripts, Trouble> {
        let slug = world.store.slug(&release.slug)?;
        Ok(slug.map(|slug| slug.manifest().for_environment(environment_of(app.stage)).scripts).unwrap_or_default())
    };
    Ok(match kind {
        "release" => release.release_command().map(|command| once(command.to_owned(), RELEASE_LIMIT)),
        "postdeploy" => scripts()?.postdeploy.map(|command| once(command, RELEASE_LIMIT)),
        "predestroy" => scripts()?.pr_predestroy.map(|command| once(command, PREDESTROY_LIMIT)),
        "run" => app.open_one_offs().find(|one_off| one_off.number == ordinal).map(|one_off| Duty {
            command: one_off.command.clone(),
            size: one_off.size.clone(),
            time_limit: Some(Duration::from_secs(one_off.time_limit)),
        }),
        _ => release.process_types.get(kind).map(|command| Duty {
            command: command.clone(),
            size: app.formation_of(release).remove(kind).map_or_else(|| DEFAULT_SIZE.to_owned(), |scale| scale.size),
            time_limit: None,
        }),
    })
}

pub(super) async fn start(world: &World, spec: &Spec) -> Result<(), Trouble> {
    outside::point("platform start").await;
    world.platform.start(spec).await?;
    outside::point("platform started").await;
    Ok(())
}

/// What a container image brings along; everything else counts more.
fn environment_of_image(image: Option<&Image>) -> BTreeMap<String, String> {
    let Some(image) = image else { return BTreeMap::new() };
    let mut environment = image.environment.clone();
    environment.entry("HOME".to_owned()).or_insert_with(|| image.home.clone());
    environment.entry("PATH".to_owned()).or_insert_with(|| IMAGE_PATH.to_owned());
    environment
}

/// Where engines look for programs in an image that says nothing else.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn walls(image: Option<&Image>) -> Walls {
    image.map_or(Walls::Sandbox, |image| {
        let Image { directory, user, group, .. } = image.clone();
        Walls::Image(Root { folder: IMAGE_ROOT.into(), directory, user, group })
    })
}

/// An isolated process has all ports for itself; one on the machine's network gets its own, from its name.
fn port_for(network: crate::config::Network, id: &ProcessId, image: Option<&Image>) -> u16 {
    match network {
        // Where an image tells its port, it may know no other.
        crate::config::Network::Isolated => image.and_then(|image| image.port).unwrap_or(PORT),
        crate::config::Network::Host => {
            let spread = crc32c::crc32c(id.as_str().as_bytes()) % 10_000;
            20_000 + u16::try_from(spread).unwrap_or(0)
        }
    }
}

fn standard_environment(world: &World, app: &App, release: &Release, process: &str) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = [
        ("DYNO", process.to_owned()),
        ("HEROKU_APP_NAME", app.name.to_string()),
        ("HEROKU_APP_ID", app.id.clone()),
        ("HEROKU_RELEASE_VERSION", release.number.to_string()),
        ("HEROKU_RELEASE_CREATED_AT", release.created_at.rfc3339()),
        ("HEROKU_BUILD_COMMIT", release.commit.to_string()),
        ("HEROKU_SLUG_COMMIT", release.commit.to_string()),
        ("LANDFALL_URL", world.app_url(&app.name)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if let Some(pull) = app.pull() {
        environment.insert("HEROKU_PR_NUMBER".to_owned(), pull.to_string());
        environment.insert("HEROKU_BRANCH".to_owned(), release.branch.clone());
    }
    environment
}

/// Starts one node of a test run.
pub(super) async fn node(world: &World, run: &TestRun, node: u16, attempt: u32) -> Result<(), Trouble> {
    let Some(slug) = slug_of(world, run)? else { return Ok(()) };
    let Some(script) = test_script(&slug) else { return Ok(()) };
    let kept = match &run.setup {
        Setup::Kept { slug } => Some(slug),
        _ => None,
    };
    let code = kept.map_or_else(|| code_of(&slug), |kept| Code::Slug(kept.clone()));
    for digest in code.slugs() {
        publish(world, digest).await?;
    }
    let owner = AddonOwner::Node { run: run.number, node };
    let (mut variables, masked) = test_variables(world, run, &slug, addons::config_vars(world, &owner)?)?;
    let (index, total) = run.repeats.map_or((node, run.nodes), |repeated| (repeated.node, repeated.nodes));
    variables.extend(
        [
            ("CI_NODE_INDEX", index.to_string()),
            ("CI_NODE_TOTAL", total.to_string()),
            ("DYNO", format!("test.{index}")),
            ("HEROKU_TEST_RUN_ID", run.number.to_string()),
            ("HEROKU_TEST_RUN_NUMBER", run.ordinal.to_string()),
            ("HEROKU_TEST_RUN_BRANCH", run.branch.clone()),
            ("HEROKU_TEST_RUN_COMMIT_VERSION", run.commit.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    if let Some(pull) = run.pull {
        variables.insert("HEROKU_PR_NUMBER".to_owned(), pull.to_string());
    }
    let settings = &world.config.tests;
    let (test, mut binds) = if run.split.is_some() {
        let who = split::Who { run: run.number, node, attempt };
        split::open(world, who).await?;
        (split::command(&masked), split::binds(world, who)?)
    } else if split::queue_is_asked(&slug, &variables) {
        let who = split::Who { run: run.number, node, attempt };
        split::open(world, who).await?;
        // On a machine's own network others could speak to the node's server.
        let token = world.vault.random_hex(16)?;
        (split::queue_script(&script.test, &token, &masked), split::binds(world, who)?)
    } else if leaves_something(&slug) {
        let who = split::Who { run: run.number, node, attempt };
        split::open(world, who).await?;
        (split::plain_script(&script.test, &masked), split::binds(world, who)?)
    } else {
        (script.test.clone(), Vec::new())
    };
    binds.extend(addons::binds(world, &owner, Timestamp(i64::MAX))?);
    let spec = Spec {
        id: run.process_id(node, attempt),
        labels: [
            (label::RUN, run.number.to_string()),
            (label::TYPE, "test".to_owned()),
            (label::ORDINAL, node.to_string()),
            (label::ATTEMPT, attempt.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        name: format!("test.{node}"),
        code,
        command: node_command(script.setup.as_deref(), kept.is_some(), &test),
        environment: variables,
        limits: test_limits(world),
        network: build::network(settings.network),
        port: None,
        time_limit: Some(Duration::from_secs(settings.minutes * 60)),
        grace: Duration::from_secs(5),
        binds,
        services: addons::services(world, &owner, Timestamp(i64::MAX))?,
        walls: walls(slug.image.as_ref()),
        masked,
    };
    start(world, &spec).await?;
    info!(run = %run.number, node, "started node {node} of test run {}", run.number);
    Ok(())
}

/// What test nodes run.
pub(super) fn code_of(slug: &Slug) -> Code {
    match slug.test_layer.clone() {
        None => Code::Slug(slug.digest.clone()),
        Some(below) => Code::Layered { slug: slug.digest.clone(), below },
    }
}

pub(super) fn test_limits(world: &World) -> Limits {
    Limits {
        memory_bytes: world.config.tests.memory_mb << 20,
        processes: 1024,
        disk_bytes: 1 << 30,
        ..Limits::default()
    }
}

/// The variables that all nodes of a run have in common, and the names of those whose values no log shows.
pub(super) fn test_variables(
    world: &World,
    run: &TestRun,
    slug: &Slug,
    of_addons: BTreeMap<String, String>,
) -> Result<(BTreeMap<String, String>, Vec<String>), Trouble> {
    let environment = slug.manifest().for_environment(Environment::Test);
    let mut variables = environment_of_image(slug.image.as_ref());
    variables.extend(slug.config_vars.clone());
    let set = config::of_tests(world, run)?;
    // What stands in the repository is no secret; what was set, made or given for this run may be one.
    let generated = environment.env.iter().filter(|(_, declared)| declared.generator.is_some()).map(|(name, _)| name);
    let masked: BTreeSet<String> = of_addons.keys().chain(set.keys()).chain(generated).cloned().collect();
    variables.extend(of_addons);
    for (name, declared) in &environment.env {
        if declared.generator.is_some() {
            variables.insert(name.clone(), world.vault.random_hex(32)?);
        } else if let Some(value) = &declared.value {
            variables.insert(name.clone(), value.clone());
        }
    }
    variables.extend(set);
    variables.insert("CI".to_owned(), "true".to_owned());
    Ok((variables, masked.into_iter().collect()))
}

/// Setup and tests in shells of their own, so that an `exit` in one says nothing about the other. `kept`: the setup was
/// done before, and its output is shown.
fn node_command(setup: Option<&str>, kept: bool, test: &str) -> String {
    let phase = |name: &str| format!("printf '%s\\n' '{PHASE}{name}'");
    let end = phase("test");
    match setup {
        None => test.to_owned(),
        Some(_) if kept => format!("{}\ncat {SETUP_LOG}\n{end}\n{test}", phase("test-setup (kept)")),
        Some(setup) => format!("{}\n(\n{setup}\n) || exit {SETUP_FAILED}\n{end}\n{test}", phase("test-setup")),
    }
}

/// Whether something of a script that runs as it is is read when it has ended.
fn leaves_something(slug: &Slug) -> bool {
    let settings = slug.settings().tests;
    settings.artifacts.is_some() || settings.junit.is_some()
}

/// What each node of a run is given.
pub(super) fn node_addons(world: &World, run: &TestRun) -> Result<Vec<AddonRequest>, Trouble> {
    let slug = slug_of(world, run)?;
    Ok(slug.map(|slug| slug.manifest().for_environment(Environment::Test).addons).unwrap_or_default())
}

pub(super) fn slug_of(world: &World, run: &TestRun) -> Result<Option<Slug>, Trouble> {
    let Some(tree) = &run.tree else { return Ok(None) };
    let Some(key) = world.store.build_of_tree(run.repository, tree)? else { return Ok(None) };
    match world.store.build(&key)?.map(|build| build.state) {
        Some(BuildState::Succeeded { slug, .. }) => Ok(world.store.slug(&slug)?),
        _ => Ok(None),
    }
}
