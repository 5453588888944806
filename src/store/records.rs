//! Which record lies where. A table for each kind of thing, keys that sort the way lists are read, and one typed
//! function for each question that the rest asks.

use super::keys::key_number;
use super::{BlobRef, Order, Store, StoreError, Table, Transaction, number_key};
use crate::clock::Timestamp;
use crate::domain::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const REPOSITORIES: Table = Table("repository");
const LABELS: Table = Table("label");
/// Which repository holds a custom domain that its own file names.
const DOMAINS: Table = Table("domain");
const PULLS: Table = Table("pull");
pub(super) const APPS: Table = Table("app");
const RELEASES: Table = Table("release");
const BUILDS: Table = Table("build");
const PREPARATIONS: Table = Table("preparation");
const SLUGS: Table = Table("slug");
const TREES: Table = Table("tree");
pub(super) const RUNS: Table = Table("run");
/// Repository and number of each run, so that one repository's runs are found without reading everybody's.
const RUNS_OF: Table = Table("run_of");
/// What a run that deals its files keeps besides its record: plan, events, results of batches.
const RUN_PARTS: Table = Table("run_part");
/// What a run measured of its files, by repository and number.
const MEASURED: Table = Table("measured");
const DELIVERIES: Table = Table("delivery");
const DELIVERY_TIMES: Table = Table("delivery_time");
const COMMANDS: Table = Table("command");
const ORDERS: Table = Table("order");
const PIPELINES: Table = Table("pipeline");
const SHIPMENTS: Table = Table("shipment");
const REPORTED: Table = Table("reported");
const ROUTES: Table = Table("route");
const ADDONS: Table = Table("addon");
const ADDON_SERVERS: Table = Table("addon_server");
const ADDON_TAGS: Table = Table("addon_tag");
const CONFIGS: Table = Table("config");
const FAREWELLS: Table = Table("farewell");
const ALERTS: Table = Table("alert");
const DRAINS: Table = Table("drain");
/// Who may see an app, or a pipeline's review apps.
const ACCESS: Table = Table("access");
/// What passwords and keys of closed apps follow from.
const ACCESS_SECRETS: Table = Table("access_secret");
/// Where sealed texts stand: a rotation of the vault's key goes through these.
pub const SEALED: [Table; 7] = [APPS, RELEASES, CONFIGS, ADDONS, ADDON_SERVERS, DRAINS, ACCESS_SECRETS];
/// Tables that are kept decoded.
pub(super) const DECODED: [&str; 2] = [APPS.0, RUNS.0];
/// The last release number of an app that is gone, so that an app of the same name goes on counting from there: process
/// ids, logs and links of the two are never the same.
const LAST_RELEASES: Table = Table("last_release");

/// A delivery and where its payload lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeliveryRecord {
    #[serde(flatten)]
    pub delivery: Delivery,
    pub payload: BlobRef,
}

/// What GitHub last accepted of one thing that we show there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reported {
    /// GitHub's number of it, once known.
    pub github_id: Option<u64>,
    /// A digest of the content that was accepted; empty before the first time.
    pub fingerprint: String,
    /// When making it was begun, if the outcome is not known: it may exist without our knowing its number.
    pub intent: Option<Timestamp>,
    /// When GitHub refused this content for good: a locked conversation, a missing permission, a commit that is gone.
    #[serde(default)]
    pub refused: Option<Timestamp>,
}

/// A route that was handed to the router, in which version of its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRoute {
    pub version: u64,
    pub route: WantedRoute,
}

macro_rules! both {
    ($($(#[$doc:meta])* fn $name:ident(&self, $($argument:ident: $type:ty),*) -> Option<$record:ty> { $table:expr, $key:expr })*) => {
        impl Store {
            $($(#[$doc])* pub fn $name(&self, $($argument: $type),*) -> Result<Option<$record>, StoreError> {
                self.get($table, $key.as_ref())
            })*
        }
        impl Transaction<'_> {
            $($(#[$doc])* pub fn $name(&self, $($argument: $type),*) -> Result<Option<$record>, StoreError> {
                self.get($table, $key.as_ref())
            })*
        }
    };
}

both! {
    fn repository(&self, id: RepositoryId) -> Option<Repository> { REPOSITORIES, number_key(id.0) }
    fn pull(&self, repository: RepositoryId, number: PullNumber) -> Option<Pull> { PULLS, pull_key(repository, number) }
    fn stored_pipeline(&self, id: RepositoryId) -> Option<PipelineState> { PIPELINES, number_key(id.0) }
    fn shipment(&self, app: &AppName, number: ReleaseNumber) -> Option<Shipment> { SHIPMENTS, release_key(app, number) }
    fn app(&self, name: &AppName) -> Option<App> { APPS, name.as_str() }
    fn release(&self, app: &AppName, number: ReleaseNumber) -> Option<Release> { RELEASES, release_key(app, number) }
    fn build(&self, key: &BuildKey) -> Option<Build> { BUILDS, key.0 }
    fn preparation(&self, key: &PreparationKey) -> Option<Preparation> { PREPARATIONS, key.0 }
    fn slug(&self, digest: &SlugDigest) -> Option<Slug> { SLUGS, digest.as_str() }
    fn run(&self, number: RunNumber) -> Option<TestRun> { RUNS, number_key(number.0) }
    fn delivery(&self, id: &str) -> Option<DeliveryRecord> { DELIVERIES, id }
    fn reported(&self, key: &str) -> Option<Reported> { REPORTED, key }
    fn route(&self, app: &AppName) -> Option<StoredRoute> { ROUTES, app.as_str() }
    /// The password of a server that Landfall runs itself.
    fn addon_server(&self, name: &str) -> Option<Sealed> { ADDON_SERVERS, name }
    fn access_setting(&self, scope: &str) -> Option<AccessSetting> { ACCESS, scope }
    fn access_secret(&self,) -> Option<Sealed> { ACCESS_SECRETS, "secret" }
    fn alerts(&self, app: &AppName) -> Option<Alerts> { ALERTS, app.as_str() }
    /// The config vars that somebody set for one scope.
    fn config(&self, scope: &ConfigScope) -> Option<ConfigVars> { CONFIGS, scope.to_string() }
    /// How the `pr-predestroy` of a pull request's app that is gone ended.
    fn farewell(&self, repository: RepositoryId, number: PullNumber) -> Option<FarewellReport> { FAREWELLS, pull_key(repository, number) }
    /// Which repository's apps begin with this label.
    fn label_owner(&self, label: &str) -> Option<RepositoryId> { LABELS, label }
    /// Which repository's file gave this custom domain to one of its apps.
    fn domain_holder(&self, domain: &str) -> Option<RepositoryId> { DOMAINS, domain }
    /// The build of a repository's tree, once one was begun.
    fn build_of_tree(&self, repository: RepositoryId, tree: &Sha) -> Option<BuildKey> { TREES, tree_key(repository, tree) }
}

impl Store {
    pub fn repositories(&self) -> Result<Vec<Repository>, StoreError> {
        values(self.scan(REPOSITORIES, b"")?)
    }

    pub fn pulls(&self, repository: RepositoryId) -> Result<Vec<Pull>, StoreError> {
        values(self.scan(PULLS, &number_key(repository.0))?)
    }

    pub fn apps(&self) -> Result<Vec<App>, StoreError> {
        self.apps_where(|_| true)
    }

    pub fn apps_of(&self, repository: RepositoryId) -> Result<Vec<App>, StoreError> {
        self.apps_where(|app| app.repository == repository)
    }

    /// Those of all apps that are wanted, so that the others cost no copy.
    pub fn apps_where(&self, mut wanted: impl FnMut(&App) -> bool) -> Result<Vec<App>, StoreError> {
        let all = self.inner.apps.read(&self.inner.shared)?;
        Ok(all.values().filter(|app| wanted(app)).map(|app| App::clone(app)).collect())
    }

    /// Oldest first.
    pub fn releases(&self, app: &AppName) -> Result<Vec<Release>, StoreError> {
        values(self.scan(RELEASES, release_prefix(app).as_bytes())?)
    }

    /// The newest first.
    pub fn newest_releases(&self, app: &AppName, most: usize) -> Result<Vec<Release>, StoreError> {
        values(self.scan_page(RELEASES, release_prefix(app).as_bytes(), None, most, Order::Descending)?)
    }

    pub fn slugs(&self) -> Result<Vec<Slug>, StoreError> {
        values(self.scan(SLUGS, b"")?)
    }

    pub fn builds(&self) -> Result<Vec<Build>, StoreError> {
        values(self.scan(BUILDS, b"")?)
    }

    pub fn preparations(&self) -> Result<Vec<Preparation>, StoreError> {
        values(self.scan(PREPARATIONS, b"")?)
    }

    /// Oldest first.
    pub fn runs(&self) -> Result<Vec<TestRun>, StoreError> {
        values(self.scan(RUNS, b"")?)
    }

    /// Oldest first.
    pub fn runs_of(&self, repository: RepositoryId) -> Result<Vec<TestRun>, StoreError> {
        let mut runs = Vec::new();
        for (_, number) in self.scan::<RunNumber>(RUNS_OF, &number_key(repository.0))? {
            runs.extend(self.run(number)?);
        }
        Ok(runs)
    }

    /// The newest first.
    pub fn newest_runs_of(&self, repository: RepositoryId, most: usize) -> Result<Vec<TestRun>, StoreError> {
        let prefix = number_key(repository.0);
        let mut runs = Vec::new();
        for (_, number) in self.scan_page::<RunNumber>(RUNS_OF, &prefix, None, most, Order::Descending)? {
            runs.extend(self.run(number)?);
        }
        Ok(runs)
    }

    /// Outlines of the runs that are wanted, oldest first.
    pub fn runs_where(&self, wanted: impl Fn(&RunOutline) -> bool) -> Result<Vec<Arc<RunOutline>>, StoreError> {
        let all = self.inner.runs.read(&self.inner.shared)?;
        Ok(all.values().filter(|run| wanted(run)).cloned().collect())
    }

    /// Runs without a verdict, oldest first.
    pub fn runs_going_on(&self) -> Result<Vec<TestRun>, StoreError> {
        let mut runs = Vec::new();
        for outline in self.runs_where(|run| run.verdict.is_none())? {
            // It may have ended just now.
            runs.extend(self.run(outline.number)?.filter(|run| run.verdict.is_none()));
        }
        Ok(runs)
    }

    /// A part of a run under its name.
    pub fn run_part<T: DeserializeOwned>(&self, run: RunNumber, name: &str) -> Result<Option<T>, StoreError> {
        self.get(RUN_PARTS, &run_part_key(run, name))
    }

    /// The parts of a run whose names begin with `prefix`, in the order of their names.
    pub fn run_parts<T: DeserializeOwned>(&self, run: RunNumber, prefix: &str) -> Result<Vec<T>, StoreError> {
        values(self.scan(RUN_PARTS, &run_part_key(run, prefix))?)
    }

    /// What the runs of a repository measured, oldest first.
    pub fn measured<T: DeserializeOwned>(&self, repository: RepositoryId) -> Result<Vec<(RunNumber, T)>, StoreError> {
        let found = self.scan(MEASURED, &number_key(repository.0))?;
        let number = |key: &[u8]| key.get(8..).and_then(key_number).map(RunNumber);
        Ok(found.into_iter().filter_map(|(key, value)| Some((number(&key)?, value))).collect())
    }

    /// The state of a repository's pipeline; that of one without a policy where none was read.
    pub fn pipeline(&self, id: RepositoryId) -> Result<PipelineState, StoreError> {
        Ok(self.stored_pipeline(id)?.unwrap_or_else(|| PipelineState::new(id)))
    }

    /// What went to an app, oldest first.
    pub fn shipments(&self, app: &AppName) -> Result<Vec<Shipment>, StoreError> {
        values(self.scan(SHIPMENTS, release_prefix(app).as_bytes())?)
    }

    /// All commands that were given in comments of a repository.
    pub fn commands_of(&self, repository: RepositoryId) -> Result<Vec<CommandRecord>, StoreError> {
        values(self.scan(COMMANDS, &number_key(repository.0))?)
    }

    /// What was ordered on pages and in terminals, oldest first.
    pub fn orders(&self) -> Result<Vec<OperatorOrder>, StoreError> {
        values(self.scan(ORDERS, b"")?)
    }

    pub fn commands(&self, repository: RepositoryId, pull: PullNumber) -> Result<Vec<CommandRecord>, StoreError> {
        values(self.scan(COMMANDS, &pull_key(repository, pull))?)
    }

    /// The newest first; `after` is the id of the last one of the page before.
    pub fn deliveries(&self, after: Option<&str>, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let after = match after {
            Some(id) => self.delivery(id)?.map(|record| delivery_time_key(&record.delivery)),
            None => None,
        };
        let page: Vec<(Vec<u8>, String)> =
            self.scan_page(DELIVERY_TIMES, b"", after.as_deref(), limit, Order::Descending)?;
        let mut found = Vec::with_capacity(page.len());
        for (_, id) in page {
            found.extend(self.delivery(&id)?.map(|record| record.delivery));
        }
        Ok(found)
    }

    /// What fires, has fired, or is to be told, of every app.
    pub fn all_alerts(&self) -> Result<Vec<Alerts>, StoreError> {
        values(self.scan(ALERTS, b"")?)
    }

    pub fn drains(&self) -> Result<Vec<Drain>, StoreError> {
        values(self.scan(DRAINS, b"")?)
    }

    pub fn addons(&self) -> Result<Vec<Addon>, StoreError> {
        values(self.scan(ADDONS, b"")?)
    }

    pub fn addons_of(&self, owner: &AddonOwner) -> Result<Vec<Addon>, StoreError> {
        values(self.scan(ADDONS, owner.key().as_bytes())?)
    }

    /// Those of all its nodes, node by node.
    pub fn addons_of_run(&self, run: RunNumber) -> Result<Vec<Addon>, StoreError> {
        values(self.scan(ADDONS, AddonOwner::key_of_run(run).as_bytes())?)
    }

    /// What this data folder's names at shared providers begin with.
    pub fn addon_tag(&self) -> Result<Option<String>, StoreError> {
        self.get(ADDON_TAGS, b"tag")
    }

    pub fn routes(&self) -> Result<Vec<(AppName, StoredRoute)>, StoreError> {
        let mut routes = Vec::new();
        for (key, route) in self.scan::<StoredRoute>(ROUTES, b"")? {
            if let Some(app) = std::str::from_utf8(&key).ok().and_then(|name| name.parse().ok()) {
                routes.push((app, route));
            }
        }
        Ok(routes)
    }

    pub fn reported_under(&self, prefix: &str) -> Result<Vec<(String, Reported)>, StoreError> {
        let found = self.scan::<Reported>(REPORTED, prefix.as_bytes())?;
        Ok(found.into_iter().filter_map(|(key, reported)| Some((String::from_utf8(key).ok()?, reported))).collect())
    }
}

impl Store {
    /// Custom domains that repositories hold, in order.
    pub fn held_domains(&self) -> Result<Vec<(String, RepositoryId)>, StoreError> {
        let found = self.scan::<RepositoryId>(DOMAINS, b"")?;
        Ok(found.into_iter().filter_map(|(key, holder)| Some((String::from_utf8(key).ok()?, holder))).collect())
    }
}

impl Transaction<'_> {
    pub fn repositories(&self) -> Result<Vec<Repository>, StoreError> {
        values(self.scan(REPOSITORIES, b"")?)
    }

    /// Nobody else's apps begin with this label from now on, nor are they called so.
    pub fn reserve_label(&mut self, label: &str, repository: RepositoryId) -> Result<(), StoreError> {
        self.put(LABELS, label.as_bytes(), &repository)
    }

    /// Makes these the custom domains that a repository holds; what another one holds stays there.
    pub fn hold_domains(&mut self, repository: RepositoryId, domains: &[String]) -> Result<(), StoreError> {
        for (key, holder) in self.scan::<RepositoryId>(DOMAINS, b"")? {
            if holder == repository && !domains.iter().any(|domain| domain.as_bytes() == key) {
                self.delete(DOMAINS, &key)?;
            }
        }
        for domain in domains {
            if self.domain_holder(domain)?.is_none() {
                self.put(DOMAINS, domain.as_bytes(), &repository)?;
            }
        }
        Ok(())
    }

    pub fn put_repository(&mut self, repository: &Repository) -> Result<(), StoreError> {
        self.put(LABELS, repository.label.as_bytes(), &repository.id)?;
        self.put(REPOSITORIES, &number_key(repository.id.0), repository)
    }

    pub fn put_pull(&mut self, pull: &Pull) -> Result<(), StoreError> {
        self.put(PULLS, &pull_key(pull.repository, pull.number), pull)
    }

    pub fn pulls(&self, repository: RepositoryId) -> Result<Vec<Pull>, StoreError> {
        values(self.scan(PULLS, &number_key(repository.0))?)
    }

    pub fn put_pipeline(&mut self, state: &PipelineState) -> Result<(), StoreError> {
        self.put(PIPELINES, &number_key(state.repository.0), state)
    }

    pub fn put_shipment(&mut self, shipment: &Shipment) -> Result<(), StoreError> {
        self.put(SHIPMENTS, release_key(&shipment.app, shipment.release).as_bytes(), shipment)
    }

    pub fn shipments(&self, app: &AppName) -> Result<Vec<Shipment>, StoreError> {
        values(self.scan(SHIPMENTS, release_prefix(app).as_bytes())?)
    }

    pub fn put_order(&mut self, order: &OperatorOrder) -> Result<(), StoreError> {
        self.put(ORDERS, &number_key(order.number), order)
    }

    pub fn commands_of(&self, repository: RepositoryId) -> Result<Vec<CommandRecord>, StoreError> {
        values(self.scan(COMMANDS, &number_key(repository.0))?)
    }

    pub fn put_app(&mut self, app: &App) -> Result<(), StoreError> {
        self.put(APPS, app.name.as_str().as_bytes(), app)
    }

    /// The app's record, its releases and its route; what was said of it on GitHub stays known.
    pub fn delete_app(&mut self, name: &AppName) -> Result<(), StoreError> {
        for (key, _) in self.scan::<serde_json::Value>(RELEASES, release_prefix(name).as_bytes())? {
            self.delete(RELEASES, &key)?;
        }
        if let Some(app) = self.app(name)? {
            self.put(LAST_RELEASES, name.as_str().as_bytes(), &app.last_release)?;
        }
        self.put_config(&ConfigScope::App(name.clone()), &ConfigVars::default())?;
        self.delete(ROUTES, name.as_str().as_bytes())?;
        self.delete(ALERTS, name.as_str().as_bytes())?;
        self.delete(ACCESS, format!("app/{name}").as_bytes())?;
        self.delete(APPS, name.as_str().as_bytes())
    }

    /// How many releases earlier apps of this name had.
    pub fn earlier_releases(&self, name: &AppName) -> Result<u32, StoreError> {
        Ok(self.get(LAST_RELEASES, name.as_str().as_bytes())?.unwrap_or(0))
    }

    pub fn apps_of(&self, repository: RepositoryId) -> Result<Vec<App>, StoreError> {
        let all: Vec<App> = values(self.scan(APPS, b"")?)?;
        Ok(all.into_iter().filter(|app| app.repository == repository).collect())
    }

    pub fn drains(&self) -> Result<Vec<Drain>, StoreError> {
        values(self.scan(DRAINS, b"")?)
    }

    pub fn put_drain(&mut self, drain: &Drain) -> Result<(), StoreError> {
        self.put(DRAINS, drain.id.as_bytes(), drain)
    }

    pub fn delete_drain(&mut self, id: &str) -> Result<(), StoreError> {
        self.delete(DRAINS, id.as_bytes())
    }

    pub fn put_access_setting(&mut self, scope: &str, setting: &AccessSetting) -> Result<(), StoreError> {
        self.put(ACCESS, scope.as_bytes(), setting)
    }

    pub fn put_access_secret(&mut self, sealed: &Sealed) -> Result<(), StoreError> {
        self.put(ACCESS_SECRETS, b"secret", sealed)
    }

    pub fn put_alerts(&mut self, alerts: &Alerts) -> Result<(), StoreError> {
        self.put(ALERTS, alerts.app.as_str().as_bytes(), alerts)
    }

    /// No vars are no record.
    pub fn put_config(&mut self, scope: &ConfigScope, vars: &ConfigVars) -> Result<(), StoreError> {
        match vars.vars.is_empty() {
            true => self.delete(CONFIGS, scope.to_string().as_bytes()),
            false => self.put(CONFIGS, scope.to_string().as_bytes(), vars),
        }
    }

    pub fn put_farewell(
        &mut self,
        repository: RepositoryId,
        number: PullNumber,
        report: Option<&FarewellReport>,
    ) -> Result<(), StoreError> {
        match report {
            Some(report) => self.put(FAREWELLS, &pull_key(repository, number), report),
            None => self.delete(FAREWELLS, &pull_key(repository, number)),
        }
    }

    /// Gives every text of at most `limit` records after a key to `change`, and writes what it makes of them. The last
    /// key that was looked at; `None` when there is none after it.
    pub fn rewrite_texts(
        &mut self,
        table: Table,
        after: Option<&[u8]>,
        limit: usize,
        change: &mut impl FnMut(&str) -> Option<String>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let page: Vec<(Vec<u8>, serde_json::Value)> = self.scan_page(table, b"", after, limit, Order::Ascending)?;
        let last = page.last().map(|(key, _)| key.clone());
        for (key, mut record) in page {
            if rewrite(&mut record, change) {
                self.put(table, &key, &record)?;
            }
        }
        Ok(last)
    }

    pub fn put_release(&mut self, release: &Release) -> Result<(), StoreError> {
        self.put(RELEASES, release_key(&release.app, release.number).as_bytes(), release)
    }

    pub fn put_build(&mut self, build: &Build) -> Result<(), StoreError> {
        self.put(TREES, &tree_key(build.repository, &build.tree), &build.key)?;
        self.change_build(build)
    }

    /// As `put_build`, but its tree may be found built by another.
    pub fn change_build(&mut self, build: &Build) -> Result<(), StoreError> {
        self.put(BUILDS, build.key.0.as_bytes(), build)
    }

    pub fn put_preparation(&mut self, preparation: &Preparation) -> Result<(), StoreError> {
        self.put(PREPARATIONS, preparation.key.0.as_bytes(), preparation)
    }

    pub fn delete_preparation(&mut self, key: &PreparationKey) -> Result<(), StoreError> {
        self.delete(PREPARATIONS, key.0.as_bytes())
    }

    pub fn put_slug(&mut self, slug: &Slug) -> Result<(), StoreError> {
        self.put(SLUGS, slug.digest.as_str().as_bytes(), slug)
    }

    pub fn put_run(&mut self, run: &TestRun) -> Result<(), StoreError> {
        self.put(RUNS_OF, &run_of_key(run.repository, run.number), &run.number)?;
        self.put(RUNS, &number_key(run.number.0), run)
    }

    pub fn put_run_part<T: Serialize>(&mut self, run: RunNumber, name: &str, part: &T) -> Result<(), StoreError> {
        self.put(RUN_PARTS, &run_part_key(run, name), part)
    }

    /// Writes what a run measured, and lets go of all but the newest `keep` of its repository.
    pub fn put_measured<T: Serialize>(
        &mut self,
        repository: RepositoryId,
        run: RunNumber,
        measured: &T,
        keep: usize,
    ) -> Result<(), StoreError> {
        self.put(MEASURED, &run_of_key(repository, run), measured)?;
        let all = self.scan::<serde_json::Value>(MEASURED, &number_key(repository.0))?;
        for (key, _) in all.iter().take(all.len().saturating_sub(keep)) {
            self.delete(MEASURED, key)?;
        }
        Ok(())
    }

    /// The run, and that it was reported; its check stays on GitHub as it is.
    pub fn delete_run(&mut self, repository: RepositoryId, number: RunNumber) -> Result<(), StoreError> {
        for (key, _) in self.scan::<serde_json::Value>(RUN_PARTS, &number_key(number.0))? {
            self.delete(RUN_PARTS, &key)?;
        }
        self.delete(REPORTED, format!("check/{number}").as_bytes())?;
        self.delete(RUNS_OF, &run_of_key(repository, number))?;
        self.delete(RUNS, &number_key(number.0))
    }

    /// Oldest first.
    pub fn runs_of(&self, repository: RepositoryId) -> Result<Vec<TestRun>, StoreError> {
        let mut runs = Vec::new();
        for (_, number) in self.scan::<RunNumber>(RUNS_OF, &number_key(repository.0))? {
            runs.extend(self.run(number)?);
        }
        Ok(runs)
    }

    /// Forgets a delivery. Its id counts as new from then on; GitHub itself sends none again after three days.
    pub fn delete_delivery(&mut self, id: &str) -> Result<(), StoreError> {
        if let Some(record) = self.delivery(id)? {
            self.delete(DELIVERY_TIMES, &delivery_time_key(&record.delivery))?;
        }
        self.delete(DELIVERIES, id.as_bytes())
    }

    /// Writes a new delivery, or what became of a known one.
    pub fn put_delivery(&mut self, record: &DeliveryRecord) -> Result<(), StoreError> {
        self.put(DELIVERY_TIMES, &delivery_time_key(&record.delivery), &record.delivery.id)?;
        self.put(DELIVERIES, record.delivery.id.as_bytes(), record)
    }

    pub fn put_command(&mut self, record: &CommandRecord) -> Result<(), StoreError> {
        let mut key = pull_key(record.repository, record.pull).to_vec();
        key.extend(number_key(record.comment));
        key.extend(record.place.to_be_bytes());
        self.put(COMMANDS, &key, record)
    }

    /// The pull requests of a repository in whose comments somebody gave a command.
    pub fn pulls_with_commands(&self, repository: RepositoryId) -> Result<Vec<PullNumber>, StoreError> {
        let records: Vec<CommandRecord> = values(self.scan(COMMANDS, &number_key(repository.0))?)?;
        let mut pulls: Vec<PullNumber> = records.into_iter().map(|record| record.pull).collect();
        pulls.dedup();
        Ok(pulls)
    }

    pub fn put_reported(&mut self, key: &str, reported: &Reported) -> Result<(), StoreError> {
        self.put(REPORTED, key.as_bytes(), reported)
    }

    pub fn put_addon(&mut self, addon: &Addon) -> Result<(), StoreError> {
        self.put(ADDONS, &addon_key(addon), addon)
    }

    pub fn delete_addon(&mut self, addon: &Addon) -> Result<(), StoreError> {
        self.delete(ADDONS, &addon_key(addon))
    }

    pub fn addon_tag(&self) -> Result<Option<String>, StoreError> {
        self.get(ADDON_TAGS, b"tag")
    }

    pub fn put_addon_tag(&mut self, tag: &String) -> Result<(), StoreError> {
        self.put(ADDON_TAGS, b"tag", tag)
    }

    pub fn put_addon_server(&mut self, name: &str, password: &Sealed) -> Result<(), StoreError> {
        self.put(ADDON_SERVERS, name.as_bytes(), password)
    }

    pub fn put_route(&mut self, app: &AppName, route: Option<&StoredRoute>) -> Result<(), StoreError> {
        match route {
            Some(route) => self.put(ROUTES, app.as_str().as_bytes(), route),
            None => self.delete(ROUTES, app.as_str().as_bytes()),
        }
    }
}

fn values<T>(pairs: Vec<(Vec<u8>, T)>) -> Result<Vec<T>, StoreError> {
    Ok(pairs.into_iter().map(|(_, value)| value).collect())
}

fn addon_key(addon: &Addon) -> Vec<u8> {
    format!("{}{}", addon.owner.key(), addon.id).into_bytes()
}

fn rewrite(value: &mut serde_json::Value, change: &mut impl FnMut(&str) -> Option<String>) -> bool {
    match value {
        serde_json::Value::String(text) => match change(text) {
            Some(changed) => {
                *text = changed;
                true
            }
            None => false,
        },
        serde_json::Value::Array(items) => rewrite_each(items.iter_mut(), change),
        serde_json::Value::Object(members) => rewrite_each(members.values_mut(), change),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => false,
    }
}

fn rewrite_each<'a>(
    values: impl Iterator<Item = &'a mut serde_json::Value>,
    change: &mut impl FnMut(&str) -> Option<String>,
) -> bool {
    let mut changed = false;
    for value in values {
        changed |= rewrite(value, change);
    }
    changed
}

fn pull_key(repository: RepositoryId, number: PullNumber) -> [u8; 16] {
    numbered_key(repository, number.0)
}

fn run_of_key(repository: RepositoryId, number: RunNumber) -> [u8; 16] {
    numbered_key(repository, number.0)
}

/// Sorts by repository, then by number.
fn numbered_key(repository: RepositoryId, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number_key(repository.0));
    key[8..].copy_from_slice(&number_key(number));
    key
}

fn run_part_key(run: RunNumber, name: &str) -> Vec<u8> {
    let mut key = number_key(run.0).to_vec();
    key.extend(name.as_bytes());
    key
}

fn release_prefix(app: &AppName) -> String {
    format!("{app}/")
}

fn release_key(app: &AppName, number: ReleaseNumber) -> String {
    format!("{app}/{:010}", number.0)
}

fn tree_key(repository: RepositoryId, tree: &Sha) -> Vec<u8> {
    let mut key = number_key(repository.0).to_vec();
    key.extend(tree.as_str().as_bytes());
    key
}

fn delivery_time_key(delivery: &Delivery) -> Vec<u8> {
    let mut key = number_key(u64::try_from(delivery.received_at.0).unwrap_or(0)).to_vec();
    key.extend(delivery.id.as_bytes());
    key
}
