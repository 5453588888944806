//! PostgreSQL: a database and a role for each add-on, on a server that somebody else keeps running.
//!
//! The role may log in and nothing else: no superuser, no making of databases or roles, a limit of connections. Its
//! database is closed to everybody until PUBLIC has lost its right to connect, so no other role ever could.

use super::address::Address;
use super::tls::Tls;
use super::{AddonError, Provided, copy, major_version, prefix};
use crate::domain::{Addon, AddonNote, AddonProblem, Endpoint, Secret};
use crate::outside;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;

/// A statement that takes longer is cut off; copying a template is what takes long.
const PATIENCE: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(5);
/// While the server starts, or somebody uses the template.
const SOON: Duration = Duration::from_millis(500);

/// A server, and whom we are there: a superuser, or a role that may make roles and databases.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    address: Address,
    /// Nobody else uses it, so that what everybody may do there is ours to say.
    own: bool,
}

/// One add-on's database.
#[derive(Debug, Clone)]
pub struct Database<'a> {
    pub addon: &'a Addon,
    pub tag: &'a str,
    pub password: &'a Secret,
    /// A database of the same server that the new one begins as a copy of.
    pub template: Option<&'a str>,
    /// Whether it begins as a copy of a database that lies elsewhere; see [`PostgresServer::wants_copy`].
    pub copied: bool,
    /// Connections that it gets at most, whatever its plan says.
    pub most_connections: u32,
    /// Where the app finds it: host and port, and what else its clients are told.
    pub seen_at: (&'a str, u16),
    pub told: &'a [(&'static str, String)],
}

impl Database<'_> {
    /// Its name and its role's.
    pub fn name(&self) -> String {
        format!("{}{}", prefix(self.tag), self.addon.id)
    }
}

/// Connections that a plan gives, as Heroku Postgres documents them; and whether the plan is known.
fn connection_limit(tier: Option<&str>) -> (u32, bool) {
    match tier.unwrap_or("essential-0") {
        "in-dyno" | "mini" | "basic" | "essential-0" | "essential-1" | "hobby-dev" | "hobby-basic" | "dev" => {
            (20, true)
        }
        "essential-2" => (40, true),
        "standard-0" | "premium-0" | "private-0" | "shield-0" => (120, true),
        other => {
            let known = ["standard-", "premium-", "private-", "shield-"].iter().any(|family| {
                other.strip_prefix(family).is_some_and(|number| number.parse::<u8>().is_ok_and(|number| number < 20))
            });
            if known { (400, true) } else { (20, false) }
        }
    }
}

impl PostgresServer {
    /// `postgres://user:password@host:port/database`, as the operator wrote it at `key`.
    pub fn from_url(url: &Secret, key: &str) -> Result<PostgresServer, AddonError> {
        let mut address = Address::parse(url, key)?;
        address.config.connect_timeout(CONNECT).application_name("landfall");
        Ok(PostgresServer { address, own: false })
    }

    /// The server that Landfall runs itself, whose socket lies in this folder.
    pub fn own(folder: PathBuf, password: &Secret) -> PostgresServer {
        let mut config = tokio_postgres::Config::new();
        config.host_path(folder).user(super::own::SUPERUSER).password(password.expose()).dbname("postgres");
        config.connect_timeout(CONNECT).application_name("landfall").ssl_mode(SslMode::Disable);
        let address = Address { config, encryption: super::address::Encryption::Prefer, authority: None };
        PostgresServer { address, own: true }
    }

    pub fn on_port(mut self, port: u16) -> PostgresServer {
        self.address.config.port(port);
        self
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> Option<Endpoint> {
        let config = &self.address.config;
        let port = config.get_ports().first().copied().unwrap_or(5432);
        if let Some(number) = config.get_hostaddrs().first() {
            return Some(Endpoint::Tcp { host: number.to_string(), port });
        }
        match config.get_hosts().first()? {
            Host::Tcp(host) => Some(Endpoint::Tcp { host: host.clone(), port }),
            Host::Unix(folder) => Some(Endpoint::Unix(folder.join(format!(".s.PGSQL.{port}")))),
        }
    }

    async fn connect(&self, database: Option<&str>) -> Result<Client, AddonError> {
        let mut config = self.address.config.clone();
        if let Some(database) = database {
            config.dbname(database);
        }
        let address = self.address.clone();
        let tls = tokio::task::spawn_blocking(move || Tls::new(address.encryption, address.authority.as_deref()));
        let tls = tls.await.map_err(|error| AddonError::Unreachable(error.to_string()))??;
        let (client, connection) = config.connect(tls).await.map_err(|error| unreachable(&error))?;
        // It ends with the client.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to PostgreSQL ended: {error}");
            }
        });
        // What an app put into a database, or into one that everybody may use, is not to be called instead of the
        // server's own. This counts more than what a database or a role says of itself; said while connecting, a pooler in
        // between would refuse it.
        client.batch_execute("SET search_path = pg_catalog").await.map_err(|error| refused(&error))?;
        Ok(client)
    }

    /// Whether it takes connections.
    pub async fn answers(&self) -> Result<(), AddonError> {
        self.connect(None).await.map(drop)
    }

    pub async fn provision(&self, wanted: &Database<'_>) -> Result<Provided, AddonError> {
        limited(self.make(wanted)).await
    }

    async fn make(&self, wanted: &Database<'_>) -> Result<Provided, AddonError> {
        let admin = self.connect(None).await?;
        let (name, quoted) = (wanted.name(), quote(&wanted.name()));
        let mut note = version_of(&admin, wanted.addon).await?;
        let (limit, known_plan) = connection_limit(wanted.addon.tier());
        let limit = limit.min(wanted.most_connections);
        if !known_plan {
            note = Some(AddonNote::UnknownPlan);
        }
        // The server gets what it would store; the password itself stands in no log of its statements.
        let verifier = postgres_protocol::password::scram_sha_256(wanted.password.expose().as_bytes());
        let rights = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE";
        let role = format!("ROLE {quoted} WITH {rights} CONNECTION LIMIT {limit} PASSWORD '{verifier}'");
        outside::point("postgres role").await;
        match admin.batch_execute(&format!("CREATE {role}")).await {
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => {
                let changed = format!("ALTER ROLE {quoted} WITH LOGIN CONNECTION LIMIT {limit} PASSWORD '{verifier}'");
                admin.batch_execute(&changed).await.map_err(|error| refused(&error))?;
            }
            made => made.map_err(|error| refused(&error))?,
        }
        if self.own {
            outside::point("postgres common databases").await;
            let close = "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC";
            admin.batch_execute(close).await.map_err(|error| refused(&error))?;
        }
        let superuser: bool = one(&admin, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user").await?;
        if !superuser {
            outside::point("postgres membership").await;
            let grant = format!("GRANT {quoted} TO CURRENT_USER");
            admin.batch_execute(&grant).await.map_err(|error| refused(&error))?;
        }
        let exists = admin
            .query_opt("SELECT datallowconn FROM pg_database WHERE datname = $1", &[&name])
            .await
            .map_err(|error| refused(&error))?;
        if let (None, Some(template)) = (&exists, wanted.template) {
            close_template(&admin, template).await?;
        }
        if exists.is_none() {
            let template = wanted.template.map(|template| format!(" TEMPLATE {}", quote(template)));
            outside::point("postgres database").await;
            let create = format!(
                "CREATE DATABASE {quoted} OWNER {quoted}{} ALLOW_CONNECTIONS false",
                template.unwrap_or_default()
            );
            match admin.batch_execute(&create).await {
                Err(error) if error.code() == Some(&SqlState::DUPLICATE_DATABASE) => {}
                // Somebody is connected to the template.
                Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => return Ok(pending()),
                made => made.map_err(|error| refused(&error))?,
            }
        }
        let is_open = exists.is_some_and(|row| row.get::<_, bool>(0));
        if !is_open {
            outside::point("postgres walls").await;
            let walls = format!("REVOKE ALL ON DATABASE {quoted} FROM PUBLIC");
            admin.batch_execute(&walls).await.map_err(|error| refused(&error))?;
            if wanted.copied {
                outside::point("postgres copy wanted").await;
                let remark = format!("COMMENT ON DATABASE {quoted} IS '{}'", copy::WANTED);
                admin.batch_execute(&remark).await.map_err(|error| refused(&error))?;
            }
            outside::point("postgres open").await;
            let open = format!("ALTER DATABASE {quoted} WITH ALLOW_CONNECTIONS true");
            admin.batch_execute(&open).await.map_err(|error| refused(&error))?;
        }
        if wanted.template.is_some() {
            outside::point("postgres ownership").await;
            self.hand_over(&name).await?;
        }
        outside::point("postgres provisioned").await;
        let (host, port) = wanted.seen_at;
        let told: Vec<String> = wanted.told.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let query = if told.is_empty() { String::new() } else { format!("?{}", told.join("&")) };
        let url = format!("postgres://{name}:{}@{host}:{port}/{name}{query}", wanted.password.expose());
        let config = BTreeMap::from([(format!("{}_URL", wanted.addon.attachment), url)]);
        Ok(Provided::Ready { config, handle: Some(name), note })
    }

    /// What was copied belongs to whom it belonged to in the template: everything becomes the new role's.
    async fn hand_over(&self, name: &str) -> Result<(), AddonError> {
        let inside = self.connect(Some(name)).await?;
        let statements = inside.query(HAND_OVER, &[&name]).await.map_err(|error| refused(&error))?;
        for row in statements {
            let statement: String = row.get(0);
            inside.batch_execute(&statement).await.map_err(|error| refused(&error))?;
        }
        Ok(())
    }

    /// Whether a database of ours still waits for the copy that it is to begin as.
    pub async fn wants_copy(&self, wanted: &Database<'_>) -> Result<bool, AddonError> {
        let remark =
            "SELECT coalesce(shobj_description(oid, 'pg_database') = $2, false) FROM pg_database WHERE datname = $1";
        let query = async {
            let admin = self.connect(None).await?;
            let row =
                admin.query_opt(remark, &[&wanted.name(), &copy::WANTED]).await.map_err(|error| refused(&error))?;
            Ok(row.is_some_and(|row| row.get(0)))
        };
        limited(query).await
    }

    /// Makes the extensions of the template in a database that waits for its copy: the app's own role, which makes all
    /// the rest, may not make every extension.
    pub async fn prepare_copy(&self, wanted: &Database<'_>, template: &PostgresServer) -> Result<(), AddonError> {
        let work = async {
            let there = template.connect(template.address.config.get_dbname()).await?;
            let rows = there.query(EXTENSIONS, &[]).await.map_err(|error| refused(&error))?;
            drop(there);
            let inside = self.connect(Some(&wanted.name())).await?;
            // Where an extension that names no schema of its own is made.
            inside.batch_execute("SET search_path = public").await.map_err(|error| refused(&error))?;
            for row in rows {
                let extension: String = row.get(0);
                outside::point("postgres extension").await;
                let make = format!("CREATE EXTENSION IF NOT EXISTS {}", quote(&extension));
                inside.batch_execute(&make).await.map_err(|error| refused(&error))?;
            }
            Ok(())
        };
        limited(work).await
    }

    /// Takes database and role away; fine if they are gone.
    pub async fn deprovision(&self, tag: &str, addon: &Addon) -> Result<(), AddonError> {
        limited(self.drop_named(&format!("{}{}", prefix(tag), addon.id))).await
    }

    async fn drop_named(&self, name: &str) -> Result<(), AddonError> {
        let admin = self.connect(None).await?;
        let quoted = quote(name);
        let role: bool = one_with(&admin, "SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)", name).await?;
        if role {
            outside::point("postgres close").await;
            let close = format!("ALTER ROLE {quoted} NOLOGIN");
            admin.batch_execute(&close).await.map_err(|error| refused(&error))?;
        }
        outside::point("postgres drop database").await;
        // FORCE ends the app's own connections. PostgreSQL 13.
        let drop = format!("DROP DATABASE IF EXISTS {quoted} WITH (FORCE)");
        admin.batch_execute(&drop).await.map_err(|error| refused(&error))?;
        outside::point("postgres drop role").await;
        let drop = format!("DROP ROLE IF EXISTS {quoted}");
        match admin.batch_execute(&drop).await {
            // It has made something in the database that everybody may connect to.
            Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                let owned = format!("DROP OWNED BY {quoted}; {drop}");
                admin.batch_execute(&owned).await.map_err(|error| refused(&error))?;
            }
            dropped => dropped.map_err(|error| refused(&error))?,
        }
        outside::point("postgres deprovisioned").await;
        Ok(())
    }

    /// Names of all databases and roles of this data folder.
    pub async fn list(&self, tag: &str) -> Result<BTreeSet<String>, AddonError> {
        let names = "SELECT datname::text FROM pg_database WHERE starts_with(datname, $1) \
                     UNION SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)";
        let query = async {
            let admin = self.connect(None).await?;
            admin.query(names, &[&prefix(tag)]).await.map_err(|error| refused(&error))
        };
        Ok(limited(query).await?.iter().map(|row| row.get(0)).collect())
    }
}

/// What the template has beside what every database has, where that lies in the usual place.
const EXTENSIONS: &str = "
SELECT e.extname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE n.nspname IN ('public', 'pg_catalog') AND e.extname <> 'plpgsql' ORDER BY e.oid
";

/// A template that everybody may connect to would be read by every app of the server, copy or not.
async fn close_template(admin: &Client, template: &str) -> Result<(), AddonError> {
    let open = "SELECT EXISTS (SELECT 1 FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) AS granted \
                WHERE datname = $1 AND granted.grantee = 0 AND granted.privilege_type = 'CONNECT')";
    if !one_with::<bool>(admin, open, template).await? {
        return Ok(());
    }
    outside::point("postgres template").await;
    let close = format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", quote(template));
    // Who does not own it gets a warning, or an error: what counts is what holds then.
    let said = admin.batch_execute(&close).await;
    if one_with::<bool>(admin, open, template).await? {
        let why = said.err().map_or_else(|| "it is another's".to_owned(), |error| chain(&error));
        return Err(AddonError::refused(format!(
            "everybody may connect to the template database {template}, and that cannot be changed from here ({why}): \
             REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
            quote(template)
        )));
    }
    Ok(())
}

/// Statements that give every object of a database, but what extensions brought, to the role of its name.
const HAND_OVER: &str = "
SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, $1::text) FROM pg_namespace
 WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
UNION ALL
SELECT format('ALTER %s %I.%I OWNER TO %I',
         CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                        WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, n.nspname, c.relname, $1::text)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('e', 'a', 'i')
                     AND d.classid = 'pg_class'::regclass)
UNION ALL
SELECT format('ALTER ROUTINE %s OWNER TO %I', p.oid::regprocedure, $1::text)
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass)
UNION ALL
SELECT format('ALTER TYPE %I.%I OWNER TO %I', n.nspname, t.typname, $1::text)
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typtype IN ('e', 'd', 'r') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = t.oid AND d.deptype = 'e' AND d.classid = 'pg_type'::regclass)
";

/// A newer server runs what an older one did, and says so; an older one is refused.
async fn version_of(admin: &Client, addon: &Addon) -> Result<Option<AddonNote>, AddonError> {
    let Some(wanted) = addon.options.get("version") else { return Ok(None) };
    let number: i32 = one(admin, "SELECT current_setting('server_version_num')::int").await?;
    let have = u32::try_from(number / 10_000).unwrap_or(0);
    let (wanted, have_text) = (wanted.clone(), have.to_string());
    match major_version(&wanted) {
        Some(major) if major == have => Ok(None),
        Some(major) if major < have => Ok(Some(AddonNote::NewerVersion { wanted, have: have_text })),
        _ => Err(AddonError::Refused(AddonProblem::Version { wanted, have: have_text })),
    }
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(admin: &Client, query: &str) -> Result<T, AddonError> {
    let row = admin.query_one(query, &[]).await.map_err(|error| refused(&error))?;
    row.try_get(0).map_err(|error| refused(&error))
}

async fn one_with<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    admin: &Client,
    query: &str,
    value: &str,
) -> Result<T, AddonError> {
    let row = admin.query_one(query, &[&value]).await.map_err(|error| refused(&error))?;
    row.try_get(0).map_err(|error| refused(&error))
}

async fn limited<T>(work: impl Future<Output = Result<T, AddonError>>) -> Result<T, AddonError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result,
        Err(_) => Err(AddonError::Unreachable(format!("PostgreSQL took longer than {} s", PATIENCE.as_secs()))),
    }
}

fn pending() -> Provided {
    Provided::Pending { after: SOON, handle: None }
}

/// A name in a statement, whatever stands in it.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"").replace('\0', ""))
}

/// The error and its causes; the server's own words have no password in them.
fn chain(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return said.message().to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Wrong names and passwords are for the operator to mend, like a server that is down; they may mend at any time.
fn unreachable(error: &tokio_postgres::Error) -> AddonError {
    AddonError::Unreachable(chain(error))
}

fn refused(error: &tokio_postgres::Error) -> AddonError {
    let class = error.code().map(|code| code.code().get(..2).unwrap_or_default().to_owned());
    match class.as_deref() {
        // Connection lost, out of resources, the operator's intervention, or a transaction that lost against another.
        None | Some("08" | "53" | "57" | "58" | "40") => AddonError::Unreachable(chain(error)),
        // "Tuple concurrently updated": another worker changed the same role.
        Some("XX") => AddonError::Unreachable(chain(error)),
        Some(_) => AddonError::refused(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_give_connections_as_heroku_does() {
        for (tier, expected) in [
            (None, (20, true)),
            (Some("mini"), (20, true)),
            (Some("in-dyno"), (20, true)),
            (Some("essential-2"), (40, true)),
            (Some("standard-0"), (120, true)),
            (Some("premium-9"), (400, true)),
            (Some("standard-x"), (20, false)),
            (Some("enormous"), (20, false)),
        ] {
            assert_eq!(connection_limit(tier), expected, "{tier:?}");
        }
    }

    #[test]
    fn a_name_stays_a_name() {
        assert_eq!(quote("a\"; DROP TABLE x; --"), "\"a\"\"; DROP TABLE x; --\"");
    }
}
