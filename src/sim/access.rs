//! Who is calling and what they may do: app JWTs (RS256), installation tokens, people's tokens, the app's client
//! credentials. A missing permission is 403 with the permission named, an invisible repository is 404.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::Value;

use super::events::Who;
use super::state::{Repository, Role, State, system_seconds};
use super::wire::{Problem, Request, percent_encode, sha256_hex};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    Anonymous,
    /// A valid JWT of the app.
    App,
    Installation {
        id: u64,
        permissions: BTreeMap<String, String>,
        repositories: Option<Vec<u64>>,
    },
    User {
        id: u64,
        token: String,
    },
    /// Basic with the app's client id and secret.
    Client,
}

impl Actor {
    /// For the request log: no secrets.
    pub fn label(&self, state: &State) -> String {
        match self {
            Self::Anonymous => "anonymous".into(),
            Self::App => "app".into(),
            Self::Installation { id, .. } => format!("installation {id}"),
            Self::User { id, .. } => format!("user {}", state.login(*id)),
            Self::Client => "client".into(),
        }
    }
}

/// A permission that a call needs. Any of `permissions` will do for the app; people need the role.
#[derive(Clone, Copy)]
pub struct Need {
    pub permissions: &'static [&'static str],
    pub write: bool,
    pub role: Role,
}

pub const fn read(permissions: &'static [&'static str]) -> Need {
    Need { permissions, write: false, role: Role::Read }
}

pub const fn write(permissions: &'static [&'static str]) -> Need {
    Need { permissions, write: true, role: Role::Write }
}

impl Need {
    pub const fn for_role(self, role: Role) -> Self {
        Self { role, ..self }
    }
}

/// The public half of the app's key as ring wants it: PKCS#1 `RSAPublicKey` in DER.
pub fn public_key(pem: &str) -> anyhow::Result<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.contains("-----")).map(str::trim).collect();
    let der = STANDARD.decode(body)?;
    if pem.contains("BEGIN RSA PUBLIC KEY") {
        return Ok(der);
    }
    // SubjectPublicKeyInfo: SEQUENCE { SEQUENCE algorithm, BIT STRING key }.
    let (outer, _) = element(&der, 0x30)?;
    let (_, after_algorithm) = element(outer, 0x30)?;
    let (bits, _) = element(after_algorithm, 0x03)?;
    match bits.split_first() {
        Some((0, key)) => Ok(key.to_vec()),
        _ => anyhow::bail!("the app's public key is no RSA key"),
    }
}

/// A fresh key pair for an app made from a manifest, private and public in PEM, by the system's openssl; `None`
/// where there is none.
pub fn fresh_key() -> Option<(String, String)> {
    let run = |arguments: &[&str], input: &str| -> Option<String> {
        use std::io::Write as _;
        let mut child = std::process::Command::new("openssl")
            .args(arguments)
            .env_clear()
            .envs(super::git::ENVIRONMENT)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(input.as_bytes()).ok()?;
        let output = child.wait_with_output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let private = run(&["genrsa", "-traditional", "2048"], "")?;
    let public = run(&["rsa", "-pubout"], &private)?;
    Some((private, public))
}

fn element(der: &[u8], tag: u8) -> anyhow::Result<(&[u8], &[u8])> {
    let short = || anyhow::anyhow!("the app's public key is cut short");
    if der.first() != Some(&tag) {
        anyhow::bail!("the app's public key has an unexpected form");
    }
    let first = usize::from(*der.get(1).ok_or_else(short)?);
    let (length, start) = if first < 0x80 {
        (first, 2)
    } else {
        let count = first & 0x7f;
        let bytes = der.get(2..2 + count).ok_or_else(short)?;
        (bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)), 2 + count)
    };
    let end = start.checked_add(length).ok_or_else(short)?;
    Ok((der.get(start..end).ok_or_else(short)?, der.get(end..).unwrap_or_default()))
}

/// The text after `Bearer` or `token`, or the pair of Basic.
enum Credentials {
    None,
    Bearer(String),
    Basic(String, String),
}

fn credentials(header: Option<&str>) -> Credentials {
    let Some((scheme, rest)) = header.and_then(|header| header.trim().split_once(' ')) else {
        return Credentials::None;
    };
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" | "token" => Credentials::Bearer(rest.trim().to_owned()),
        "basic" => {
            let decoded = STANDARD.decode(rest.trim()).unwrap_or_default();
            let text = String::from_utf8_lossy(&decoded).into_owned();
            let (name, password) = text.split_once(':').unwrap_or((text.as_str(), ""));
            Credentials::Basic(name.to_owned(), password.to_owned())
        }
        _ => Credentials::None,
    }
}

/// Reads the Authorization header. A token that is wrong or has expired is refused, never taken for anonymous.
pub fn authenticate(state: &State, request: &Request) -> Result<Actor, Problem> {
    match credentials(request.header("authorization")) {
        Credentials::None => Ok(Actor::Anonymous),
        Credentials::Bearer(token) => bearer(state, &token),
        Credentials::Basic(name, password) => {
            if name == state.app.client_id && password == state.app.client_secret {
                return Ok(Actor::Client);
            }
            let token = if password.is_empty() || password == "x-oauth-basic" { name } else { password };
            bearer(state, &token)
        }
    }
}

fn bearer(state: &State, token: &str) -> Result<Actor, Problem> {
    if token.starts_with("eyJ") && token.split('.').count() == 3 {
        return app_token(state, token).map(|()| Actor::App);
    }
    let hash = sha256_hex(token);
    if let Some(user) = state.fixed_tokens.get(&hash) {
        return Ok(Actor::User { id: *user, token: hash });
    }
    if let Some(record) = state.user_tokens.get(&hash) {
        if record.expires_at <= state.now() {
            return Err(Problem::bad_credentials());
        }
        return Ok(Actor::User { id: record.user, token: hash });
    }
    let record = state.tokens.get(&hash).ok_or_else(Problem::bad_credentials)?;
    if record.expires_at <= state.now() {
        return Err(Problem::bad_credentials());
    }
    let installation = state.installations.get(&record.installation).ok_or_else(Problem::bad_credentials)?;
    if installation.suspended_at.is_some() {
        return Err(Problem::new(403, "This installation has been suspended"));
    }
    Ok(Actor::Installation {
        id: record.installation,
        permissions: record.permissions.clone(),
        repositories: record.repositories.clone(),
    })
}

/// RS256 by the app's key, issued by the app, at most ten minutes long. The times are those of the caller's clock,
/// so both the system's clock and the stand-in's advanced one are accepted.
fn app_token(state: &State, token: &str) -> Result<(), Problem> {
    let undecodable = || Problem::new(401, "A JSON web token could not be decoded");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(undecodable)?;
    let (header, claims) = signed.split_once('.').ok_or_else(undecodable)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| undecodable());
    let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| undecodable())?;
    if header["alg"] != "RS256" {
        return Err(undecodable());
    }
    let signature = decode(signature)?;
    let is_ours = state.keys.iter().any(|key| {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(signed.as_bytes(), &signature).is_ok()
    });
    if !is_ours {
        return Err(undecodable());
    }
    let claims: Value = serde_json::from_slice(&decode(claims)?).map_err(|_| undecodable())?;
    let issuer = match &claims["iss"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if issuer != state.app.id.to_string() && issuer != state.app.client_id {
        return Err(Problem::new(404, "Integration not found"));
    }
    let (Some(issued), Some(expires)) = (claims["iat"].as_i64(), claims["exp"].as_i64()) else {
        return Err(Problem::new(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
        ));
    };
    let check = |now: i64| {
        if expires <= now {
            Err(
                "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
            )
        } else if expires > now + 600 + 5 {
            Err("'Expiration time' claim ('exp') is too far in the future")
        } else if issued > now + 30 {
            Err("'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued")
        } else {
            Ok(())
        }
    };
    check(system_seconds())
        .or_else(|sentence| check(state.now()).map_err(|_| sentence))
        .map_err(|sentence| Problem::new(401, sentence))
}

/// One call in progress: the locked state, the request and who made it.
pub struct Call<'a> {
    pub state: &'a mut State,
    pub request: &'a mut Request,
    pub actor: Actor,
}

impl Call<'_> {
    /// The acting account: the app's bot for installation tokens.
    pub fn who(&self) -> Result<Who, Problem> {
        match &self.actor {
            Actor::Installation { .. } => Ok(self.state.bot()),
            Actor::User { id, .. } => Ok(Who { account: *id, via_app: false }),
            Actor::Anonymous | Actor::App | Actor::Client => Err(Problem::new(401, "Requires authentication")),
        }
    }

    pub fn require_app(&self) -> Result<(), Problem> {
        match self.actor {
            Actor::App => Ok(()),
            _ => Err(Problem::new(401, "A JSON web token could not be decoded")),
        }
    }

    /// A person's token: these calls never take an installation token.
    pub fn require_user(&self) -> Result<u64, Problem> {
        match &self.actor {
            Actor::User { id, .. } => Ok(*id),
            Actor::Installation { .. } => Err(integration_refused(None)),
            _ => Err(Problem::new(401, "Requires authentication")),
        }
    }

    pub fn require_installation(&self) -> Result<u64, Problem> {
        match &self.actor {
            Actor::Installation { id, .. } => Ok(*id),
            Actor::Anonymous => Err(Problem::new(401, "Requires authentication")),
            _ => Err(Problem::new(
                403,
                "You must authenticate with an installation access token in order to list repositories for an installation.",
            )),
        }
    }

    /// Check runs and suites are written by apps only.
    pub fn require_app_token(&self) -> Result<(), Problem> {
        match self.actor {
            Actor::Installation { .. } => Ok(()),
            Actor::Anonymous => Err(Problem::new(401, "Requires authentication")),
            _ => Err(Problem::new(403, "You must authenticate via a GitHub App.")),
        }
    }

    /// The repository of the path, once it is visible and the need is met; follows renames with 301 or 307.
    pub fn repository(&mut self, owner: &str, name: &str, need: Need) -> Result<u64, Problem> {
        let Some(id) = self.state.find_repository(owner, name) else {
            return Err(self.moved(owner, name));
        };
        permit(self.state, self.state.repository(id)?, &self.actor, need)?;
        super::api::repositories::look_again(self.state, id);
        let rest: Vec<String> =
            self.request.segments.iter().skip(3).map(|segment| percent_encode(segment, ":@!$&'()*+,;=")).collect();
        let mut canonical = format!("/repositories/{id}");
        for segment in rest {
            canonical.push('/');
            canonical.push_str(&segment);
        }
        self.request.canonical_path = Some(canonical);
        Ok(id)
    }

    /// An app without workflows:write may not bring changes of workflow files onto a branch.
    pub fn guard_workflows(&self, git: &super::git::Git, from: &str, to: &str) -> Result<(), Problem> {
        let Actor::Installation { permissions, .. } = &self.actor else { return Ok(()) };
        if permissions.contains_key("workflows") {
            return Ok(());
        }
        let changes = git.difference(from, to, false)?;
        match changes.iter().find(|change| change.path.starts_with(".github/workflows/")) {
            None => Ok(()),
            Some(change) => Err(Problem::new(
                403,
                format!(
                    "refusing to allow a GitHub App to create or update workflow `{}` without `workflows` permission",
                    change.path
                ),
            )),
        }
    }

    fn moved(&self, owner: &str, name: &str) -> Problem {
        let key = format!("{}/{}", owner.to_lowercase(), name.to_lowercase());
        let Some(id) = self.state.moved.get(&key).filter(|id| self.state.repositories.contains_key(id)) else {
            return Problem::not_found();
        };
        // Whoever may not see the repository does not learn its id either.
        match self.state.repository(*id) {
            Ok(record) if permit(self.state, record, &self.actor, read(&["metadata"])).is_ok() => {}
            _ => return Problem::not_found(),
        }
        let rest: String = self.request.path.splitn(5, '/').nth(4).map(|rest| format!("/{rest}")).unwrap_or_default();
        let mut location = format!("{}/repositories/{id}{rest}", self.request.base);
        if !self.request.query_text.is_empty() {
            location.push('?');
            location.push_str(&self.request.query_text);
        }
        let status = if matches!(self.request.method.as_str(), "GET" | "HEAD") { 301 } else { 307 };
        Problem::new(status, "Moved Permanently").with_header("location", location)
    }
}

fn integration_refused(need: Option<Need>) -> Problem {
    let mut problem = Problem::new(403, "Resource not accessible by integration");
    if let Some(need) = need {
        let level = if need.write { "write" } else { "read" };
        let accepted: Vec<String> = need.permissions.iter().map(|name| format!("{name}={level}")).collect();
        problem = problem.with_header("x-accepted-github-permissions", accepted.join("; "));
    }
    problem
}

/// Checks a need of an actor in a repository.
pub fn permit(state: &State, repository: &Repository, actor: &Actor, need: Need) -> Result<(), Problem> {
    match actor {
        Actor::Installation { id, permissions, repositories } => {
            let covered = repository.installed
                && state.installations.get(id).is_some_and(|installation| installation.account == repository.owner)
                && repositories.as_ref().is_none_or(|chosen| chosen.contains(&repository.id));
            if !covered {
                return match (repository.private, need.write) {
                    (true, _) => Err(Problem::not_found()),
                    (false, true) => Err(integration_refused(Some(need))),
                    (false, false) => Ok(()),
                };
            }
            let enough = need.permissions.iter().any(|name| match permissions.get(*name).map(String::as_str) {
                Some("write" | "admin") => true,
                Some("read") => !need.write,
                _ => false,
            });
            if enough { Ok(()) } else { Err(integration_refused(Some(need))) }
        }
        Actor::User { id, .. } => {
            let role = state.role(repository, *id);
            if role == Role::None {
                Err(Problem::not_found())
            } else if role < need.role {
                Err(match need.role {
                    Role::Admin => Problem::new(403, "Must have admin rights to Repository."),
                    _ => Problem::new(403, "Must have push access to Repository."),
                })
            } else {
                Ok(())
            }
        }
        Actor::App => Err(Problem::new(401, "Bad credentials")),
        Actor::Anonymous | Actor::Client => match (repository.private, need.write) {
            (true, _) => Err(Problem::not_found()),
            (false, true) => Err(Problem::new(401, "Requires authentication")),
            (false, false) => Ok(()),
        },
    }
}
