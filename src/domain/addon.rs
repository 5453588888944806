//! Add-ons: what an app is given besides its code, such as a database. One record for each, written before anything
//! is made at its provider, so that whatever is killed when, the same thing is found and made once.
//!
//! The rule: an add-on's id follows from its owner and its attachment alone, and every name at a provider follows from
//! the id. Whoever provisions again finds its own.

use super::{AddonRequest, App, AppName, Failure, RunNumber, Sealed, is_reserved_variable, is_variable_name};
use crate::clock::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// 32 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddonId(String);

impl AddonId {
    pub fn new(owner: &AddonOwner, attachment: &str) -> AddonId {
        let digest = Sha256::digest(format!("{}{attachment}", owner.key()));
        AddonId(hex::encode(&digest[..16]))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 16 digits, where a path or a process id has no room for more.
    pub fn short(&self) -> &str {
        self.0.get(..16).unwrap_or(&self.0)
    }

    /// In the form of a UUID, as Heroku's Add-on Partner API wants it.
    pub fn uuid(&self) -> String {
        let part = |from: usize, to: usize| self.0.get(from..to).unwrap_or_default();
        format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
    }
}

impl fmt::Display for AddonId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// With whom an add-on goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AddonOwner {
    /// An app and its identity: a later app of the same name is another owner.
    App { name: AppName, id: String },
    /// One node of a test run.
    Node { run: RunNumber, node: u16 },
}

impl AddonOwner {
    pub fn of(app: &App) -> AddonOwner {
        AddonOwner::App { name: app.name.clone(), id: app.id.clone() }
    }

    /// Sorts all add-ons of one owner together.
    pub fn key(&self) -> String {
        match self {
            AddonOwner::App { name, id } => format!("app/{name}/{id}/"),
            AddonOwner::Node { run, node } => format!("{}{node:05}/", AddonOwner::key_of_run(*run)),
        }
    }

    /// What the keys of all nodes of a run begin with.
    pub fn key_of_run(run: RunNumber) -> String {
        format!("run/{:020}/", run.0)
    }
}

impl fmt::Display for AddonOwner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddonOwner::App { name, .. } => write!(formatter, "{name}"),
            AddonOwner::Node { run, node } => write!(formatter, "node {node} of test run {run}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddonKind {
    Postgres,
    Redis,
    /// Somebody who speaks Heroku's Add-on Partner API.
    Partner,
}

/// One add-on of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addon {
    pub id: AddonId,
    pub owner: AddonOwner,
    /// As it was asked for: `heroku-postgresql:mini`.
    pub plan: String,
    pub kind: AddonKind,
    /// The prefix of its config var: `DATABASE`, `REDIS`, or what `as` says.
    pub attachment: String,
    /// Counts the owner's add-ons of this kind from 0.
    pub ordinal: u16,
    /// It lies on a server that Landfall runs itself.
    pub own: bool,
    pub options: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub state: AddonState,
    /// Its password, sealed, drawn before anything was made.
    pub password: Sealed,
    /// Its config vars, as one sealed JSON object, once it is provisioned.
    pub config: Option<Sealed>,
    /// The provider's own name for it, where that is not made from the id.
    pub handle: Option<String>,
    /// Not before this is it asked for again.
    pub again_at: Option<Timestamp>,
    /// Something that the owner should know although it works.
    pub note: Option<AddonNote>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AddonState {
    /// It may exist at the provider in any part; `since` is when it was first asked for.
    Wanted {
        since: Timestamp,
    },
    Provisioned {
        at: Timestamp,
    },
    Failed {
        problem: AddonProblem,
        at: Timestamp,
    },
    /// It is being taken away; the record goes once nothing of it is left.
    Going,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum AddonNote {
    /// An older version was asked for than the server has.
    NewerVersion { wanted: String, have: String },
    /// The plan's name is not known: it got the smallest limits.
    UnknownPlan,
}

/// What the owner of an add-on that works should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddonRemark {
    pub plan: String,
    #[serde(flatten)]
    pub note: AddonNote,
}

impl Addon {
    pub fn remark(&self) -> Option<AddonRemark> {
        let works = matches!(self.state, AddonState::Provisioned { .. });
        let note = self.note.clone().filter(|_| works)?;
        Some(AddonRemark { plan: self.plan.clone(), note })
    }
}

/// Why there is no add-on, as data; the sentences stand in `templates/failures.txt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum AddonProblem {
    /// No provider of this name is configured.
    Unknown { service: String },
    /// The operator switched it off.
    Off { service: String },
    /// The program that Landfall would run for it is not installed.
    NotInstalled { program: String },
    /// `as` gives no name of a config var.
    Name { name: String },
    /// Two add-ons of the app would set the same config var.
    Taken { name: String },
    /// The server is older than what was asked for, or that was no version.
    Version { wanted: String, have: String },
    /// An option's value is not one of its kind.
    OptionValue { option: String, value: String },
    /// Code of a stranger's asks for it, and it costs somebody money.
    Stranger { service: String },
    /// The copy of the template ended otherwise than well.
    Copy { detail: String },
    /// The provider did not answer for long enough.
    Unreachable { detail: String },
    /// The provider said no.
    Refused { detail: String },
}

/// Where something listens on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// A port on a process' own loopback that leads to a place of the machine, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub port: u16,
    pub to: Endpoint,
    /// A name that means the loopback to that process, so that a certificate of this name is the right one.
    #[serde(default)]
    pub name: Option<String>,
}

/// A request with its place among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedAddon {
    pub request: AddonRequest,
    pub kind: AddonKind,
    pub attachment: String,
    pub ordinal: u16,
}

impl AddonRequest {
    /// `heroku-postgresql` of `heroku-postgresql:mini`.
    pub fn service(&self) -> &str {
        self.plan.split(':').next().unwrap_or_default()
    }
}

impl Addon {
    pub fn service(&self) -> &str {
        self.plan.split(':').next().unwrap_or_default()
    }

    /// `mini` of `heroku-postgresql:mini`.
    pub fn tier(&self) -> Option<&str> {
        self.plan.split_once(':').map(|(_, tier)| tier)
    }
}

/// Heroku names what is not the first of its kind by a colour.
const COLOURS: [&str; 12] =
    ["AMBER", "AQUA", "BLUE", "BRONZE", "COBALT", "COPPER", "CRIMSON", "CYAN", "GOLD", "GRAY", "GREEN", "IVORY"];

/// Kind, attachment and place of each request, in the file's order. The first thing that is wrong is the answer.
pub fn attachments(requests: &[AddonRequest]) -> Result<Vec<WantedAddon>, Failure> {
    let mut wanted: Vec<WantedAddon> = Vec::new();
    for request in requests {
        let wrong = |problem| Failure::Addon { plan: request.plan.clone(), problem };
        let kind = match request.service() {
            "heroku-postgresql" => AddonKind::Postgres,
            "heroku-redis" => AddonKind::Redis,
            _ => AddonKind::Partner,
        };
        let same_kind = wanted.iter().filter(|other| other.kind == kind).count();
        let ordinal = u16::try_from(same_kind).unwrap_or(u16::MAX);
        let unnamed = wanted.iter().filter(|other| other.kind == kind && other.request.name.is_none()).count();
        let colour = COLOURS[ordinal as usize % COLOURS.len()];
        let attachment = match (&request.name, kind) {
            (Some(name), _) => {
                let name = name.trim().to_ascii_uppercase().replace('-', "_");
                if !is_variable_name(&name) || name.len() > 64 || is_reserved_variable(&format!("{name}_URL")) {
                    return Err(wrong(AddonProblem::Name { name: request.name.clone().unwrap_or_default() }));
                }
                name
            }
            (None, AddonKind::Postgres) if unnamed == 0 => "DATABASE".to_owned(),
            (None, AddonKind::Postgres) => format!("HEROKU_POSTGRESQL_{colour}"),
            (None, AddonKind::Redis) if unnamed == 0 => "REDIS".to_owned(),
            (None, AddonKind::Redis) => format!("HEROKU_REDIS_{colour}"),
            (None, AddonKind::Partner) => {
                let name: String = request
                    .service()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                    .take(64)
                    .collect();
                name
            }
        };
        if wanted.iter().any(|other| other.attachment == attachment) {
            return Err(wrong(AddonProblem::Taken { name: attachment }));
        }
        wanted.push(WantedAddon { request: request.clone(), kind, attachment, ordinal });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(plan: &str, name: Option<&str>) -> AddonRequest {
        AddonRequest { plan: plan.to_owned(), name: name.map(str::to_owned), options: BTreeMap::new() }
    }

    #[test]
    fn add_ons_are_named_as_heroku_names_them() {
        let requests = [
            request("heroku-postgresql:mini", None),
            request("heroku-postgresql", Some("analytics-db")),
            request("heroku-postgresql:standard-0", None),
            request("heroku-redis:mini", None),
            request("acme-search:small", None),
        ];
        let wanted = attachments(&requests).unwrap();
        let names: Vec<(&str, u16)> = wanted.iter().map(|one| (one.attachment.as_str(), one.ordinal)).collect();
        let expected =
            [("DATABASE", 0), ("ANALYTICS_DB", 1), ("HEROKU_POSTGRESQL_BLUE", 2), ("REDIS", 0), ("ACME_SEARCH", 0)];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_hostile_attachment_name_is_refused() {
        for name in ["", "LD", "a b", "X=1", "1X", "Ü", "\"; DROP ROLE x; --", &"A".repeat(65)] {
            let refused = attachments(&[request("heroku-postgresql", Some(name))]);
            let Err(Failure::Addon { problem: AddonProblem::Name { .. }, .. }) = refused else {
                panic!("{name:?}: {refused:?}")
            };
        }
        let twice = attachments(&[request("heroku-redis", Some("X")), request("heroku-postgresql", Some("x"))]);
        assert!(matches!(twice, Err(Failure::Addon { problem: AddonProblem::Taken { .. }, .. })), "{twice:?}");
    }

    #[test]
    fn an_id_is_its_owner_s_alone() {
        let app = |id: &str| AddonOwner::App { name: "hello-pr-1".parse().unwrap(), id: id.to_owned() };
        let node = AddonOwner::Node { run: RunNumber(1), node: 0 };
        let ids = [(app("a"), "DATABASE"), (app("b"), "DATABASE"), (app("a"), "REDIS"), (node, "DATABASE")]
            .map(|(owner, attachment)| AddonId::new(&owner, attachment));
        assert_eq!(ids[0], AddonId::new(&app("a"), "DATABASE"));
        let different: std::collections::BTreeSet<&AddonId> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
        assert_eq!(ids[0].as_str().len(), 32);
        assert_eq!(ids[0].uuid().len(), 36);
    }
}
