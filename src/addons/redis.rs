//! Redis: one of its own for each add-on (see `own`), or a user on the operator's server who sees only keys and channels
//! that begin with its prefix.

use super::address::{Encryption, decoded};
use super::resp::{Answer, Connection};
use super::tls::Tls;
use super::{AddonError, Provided, prefix};
use crate::domain::{Addon, AddonProblem, Endpoint, Secret};
use crate::outside;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PORT: u16 = 6379;
/// While a Redis of our own starts.
const SOON: Duration = Duration::from_millis(200);

/// Megabytes that a plan gives, as Heroku Key-Value Store documents them.
pub fn memory_of(tier: Option<&str>) -> u64 {
    match tier.unwrap_or("mini") {
        "premium-0" | "private-3" => 50,
        "premium-1" => 100,
        "premium-2" => 250,
        "premium-3" => 500,
        "premium-5" | "private-5" => 1024,
        _ => 25,
    }
}

const POLICIES: [&str; 8] = [
    "noeviction",
    "allkeys-lru",
    "volatile-lru",
    "allkeys-random",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lfu",
    "volatile-lfu",
];

/// What happens to keys when the memory is full: `noeviction` unless the add-on's options say otherwise.
pub fn policy_of(addon: &Addon) -> Result<&'static str, AddonError> {
    let asked = ["maxmemory_policy", "maxmemory-policy"].iter().find_map(|name| addon.options.get(*name));
    let Some(asked) = asked else { return Ok(POLICIES[0]) };
    let found = POLICIES.iter().find(|policy| **policy == asked.as_str());
    found.copied().ok_or_else(|| {
        let problem = AddonProblem::OptionValue { option: "maxmemory_policy".to_owned(), value: asked.clone() };
        AddonError::Refused(problem)
    })
}

/// Whether a Redis of one app is there and takes its password; then what the app is told.
pub async fn own_is_ready(
    endpoint: &Endpoint,
    addon: &Addon,
    password: &Secret,
    seen_at: (&str, u16),
) -> Result<Provided, AddonError> {
    let pending = || Ok(Provided::Pending { after: SOON, handle: None });
    let mut connection = match Connection::open(endpoint).await {
        Ok(connection) => connection,
        Err(AddonError::Unreachable(_)) => return pending(),
        Err(error) => return Err(error),
    };
    connection.order(&["AUTH", password.expose()]).await?;
    match connection.ask(&["PING"]).await? {
        Answer::Error(said) if said.starts_with("LOADING") => pending(),
        Answer::Error(said) => Err(AddonError::refused(said)),
        _ => {
            let url = format!("redis://:{}@{}:{}", password.expose(), seen_at.0, seen_at.1);
            let config = BTreeMap::from([(format!("{}_URL", addon.attachment), url)]);
            Ok(Provided::Ready { config, handle: None, note: None })
        }
    }
}

/// What a user of a shared server may do: all that works on keys, which its prefix bounds. Not what names others' keys or
/// channels, counts them, or reaches the scripts and functions that all of them share.
const RIGHTS: [&str; 15] = [
    "+@all",
    "-@admin",
    "-@dangerous",
    "+info",
    "+sort",
    "-scan",
    "-randomkey",
    "-dbsize",
    "-function",
    "-fcall",
    "-fcall_ro",
    "-script|flush",
    "-script|kill",
    "-pubsub|channels",
    "-swapdb",
];

/// The operator's server: `redis://user:password@host:port`, or `rediss://` for TLS. Of the query `sslmode`,
/// `sslrootcert` and `hostaddr` are read, as PostgreSQL reads them; without any the certificate must be good and of this
/// very name.
#[derive(Debug, Clone)]
pub struct RedisServer {
    endpoint: Endpoint,
    /// What its certificate is to be of.
    name: String,
    user: String,
    password: Secret,
    encryption: Encryption,
    /// A file with the authorities that are trusted instead of the machine's.
    authority: Option<PathBuf>,
}

/// Where one app finds it, and what it is told besides.
pub struct RedisSeen<'a> {
    pub host: &'a str,
    pub port: u16,
    /// Where the app sees the operator's file of authorities.
    pub authority: &'a Path,
}

impl RedisServer {
    pub fn from_url(url: &Secret) -> Result<RedisServer, AddonError> {
        let wrong =
            || AddonError::refused("addons.redis.url is no address of a server: redis://user:password@host:port");
        let (scheme, rest) = url.expose().split_once("://").ok_or_else(wrong)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut encryption, mut authority, mut address) = match scheme {
            "redis" => (Encryption::Disable, None, None),
            "rediss" => (Encryption::VerifyFull, None, None),
            _ => return Err(wrong()),
        };
        let is_encrypted = encryption != Encryption::Disable;
        for parameter in query.split('&').filter(|_| is_encrypted) {
            match parameter.split_once('=') {
                Some(("sslmode", word)) => {
                    // Less than that is not what the scheme says.
                    let known = Encryption::of_word(word).filter(|known| *known >= Encryption::Require);
                    encryption = known.ok_or_else(|| {
                        AddonError::refused(
                            "addons.redis.url has an sslmode other than require, verify-ca, verify-full",
                        )
                    })?;
                }
                Some(("sslrootcert", path)) if path != "system" => authority = Some(PathBuf::from(decoded(path))),
                Some(("hostaddr", number)) => address = Some(number.to_owned()),
                _ => {}
            }
        }
        if authority.as_ref().is_some_and(|path: &PathBuf| !path.is_absolute()) {
            return Err(AddonError::refused("addons.redis.url has an sslrootcert that is no absolute path"));
        }
        let rest = rest.split('/').next().unwrap_or_default();
        let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (user, password) = login.split_once(':').unwrap_or(("", login));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (place, PORT),
        };
        if host.is_empty() {
            return Err(wrong());
        }
        let name = host.trim_matches(['[', ']']).to_owned();
        let endpoint = Endpoint::Tcp { host: address.unwrap_or_else(|| name.clone()), port };
        let user = if user.is_empty() { "default" } else { user };
        Ok(RedisServer {
            endpoint,
            name,
            user: user.to_owned(),
            password: Secret::new(password),
            encryption,
            authority,
        })
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// The operator's file of authorities.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// The name by which an isolated process finds the server on its own loopback, so that what its certificate says
    /// can be compared.
    pub fn name_inside(&self) -> Option<&str> {
        let is_name = self.name.parse::<std::net::IpAddr>().is_err();
        (self.encryption != Encryption::Disable && is_name).then_some(self.name.as_str())
    }

    /// Whether it takes the operator's connections.
    pub async fn answers(&self) -> Result<(), AddonError> {
        self.connect().await?.order(&["PING"]).await.map(drop)
    }

    async fn connect(&self) -> Result<Connection, AddonError> {
        let tls = if self.encryption == Encryption::Disable {
            None
        } else {
            let (encryption, authority) = (self.encryption, self.authority.clone());
            let tls = tokio::task::spawn_blocking(move || Tls::new(encryption, authority.as_deref()));
            Some(tls.await.map_err(|error| AddonError::Unreachable(error.to_string()))??)
        };
        let mut connection =
            Connection::open_with(&self.endpoint, tls.as_ref().map(|tls| (tls, self.name.as_str()))).await?;
        if !self.password.is_empty() {
            // A wrong password is for the operator to mend, as a server that is down.
            if let Answer::Error(said) = connection.ask(&["AUTH", &self.user, self.password.expose()]).await? {
                return Err(AddonError::Unreachable(said));
            }
        }
        Ok(connection)
    }

    pub async fn provision(
        &self,
        tag: &str,
        addon: &Addon,
        password: &Secret,
        seen: &RedisSeen<'_>,
    ) -> Result<Provided, AddonError> {
        let mut connection = self.connect().await?;
        let name = format!("{}{}", prefix(tag), addon.id);
        outside::point("redis user").await;
        let (secret, keys, channels) = (format!(">{}", password.expose()), format!("~{name}:*"), format!("&{name}:*"));
        let words = ["ACL", "SETUSER", &name, "reset", "on", &secret, &keys, &channels];
        connection.order(&[words.as_slice(), RIGHTS.as_slice()].concat()).await?;
        outside::point("redis provisioned").await;
        let scheme = if self.encryption == Encryption::Disable { "redis" } else { "rediss" };
        let url = format!("{scheme}://{name}:{}@{}:{}", password.expose(), seen.host, seen.port);
        let mut config = BTreeMap::from([
            (format!("{}_URL", addon.attachment), url),
            (format!("{}_PREFIX", addon.attachment), format!("{name}:")),
        ]);
        if self.authority.is_some() {
            config.insert(format!("{}_CA", addon.attachment), seen.authority.display().to_string());
        }
        Ok(Provided::Ready { config, handle: Some(name), note: None })
    }

    pub async fn deprovision(&self, tag: &str, addon: &Addon) -> Result<(), AddonError> {
        let mut connection = self.connect().await?;
        let name = format!("{}{}", prefix(tag), addon.id);
        outside::point("redis drop user").await;
        connection.order(&["ACL", "DELUSER", &name]).await?;
        // A user may have chosen any of the server's databases.
        let info = connection.order(&["INFO", "keyspace"]).await?;
        let used: Vec<String> = info
            .text()
            .lines()
            .filter_map(|line| Some(line.strip_prefix("db")?.split_once(':')?.0.to_owned()))
            .filter(|number| number.parse::<u32>().is_ok())
            .collect();
        for database in used {
            connection.order(&["SELECT", &database]).await?;
            forget_keys(&mut connection, &format!("{name}:*")).await?;
        }
        outside::point("redis deprovisioned").await;
        Ok(())
    }

    /// Users of this data folder.
    pub async fn list(&self, tag: &str) -> Result<BTreeSet<String>, AddonError> {
        let mut connection = self.connect().await?;
        let users = connection.order(&["ACL", "USERS"]).await?;
        let prefix = prefix(tag);
        Ok(users.list().iter().map(Answer::text).filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect())
    }
}

/// Removes the keys that a pattern names from the database that the connection has chosen.
async fn forget_keys(connection: &mut Connection, pattern: &str) -> Result<(), AddonError> {
    let mut cursor = "0".to_owned();
    loop {
        let page = connection.order(&["SCAN", &cursor, "MATCH", pattern, "COUNT", "1000"]).await?;
        let [next, keys] = page.list() else { return Err(AddonError::refused("SCAN answered something else")) };
        let keys: Vec<&str> = keys.list().iter().map(Answer::text).collect();
        if !keys.is_empty() {
            outside::point("redis drop keys").await;
            connection.order(&[["UNLINK"].as_slice(), keys.as_slice()].concat()).await?;
        }
        cursor = next.text().to_owned();
        if cursor == "0" {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_s_address_is_read() {
        let server = RedisServer::from_url(&Secret::new("redis://admin:p:w@cache.example.com:6380/0")).unwrap();
        assert_eq!(server.endpoint, Endpoint::Tcp { host: "cache.example.com".to_owned(), port: 6380 });
        assert_eq!((server.user.as_str(), server.password.expose()), ("admin", "p:w"));
        let server = RedisServer::from_url(&Secret::new("redis://localhost")).unwrap();
        assert_eq!(
            (server.endpoint.clone(), server.user.as_str()),
            (Endpoint::Tcp { host: "localhost".to_owned(), port: 6379 }, "default")
        );
        assert!(server.name_inside().is_none(), "nothing is compared");
        let of = |url: &str| RedisServer::from_url(&Secret::new(url));
        let server = of("rediss://a:p@cache.example.com/0?sslrootcert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!((server.encryption, server.name_inside()), (Encryption::VerifyFull, Some("cache.example.com")));
        assert_eq!(server.authority(), Some(Path::new("/etc/ca.pem")));
        let elsewhere = of("rediss://cache.example.com?hostaddr=10.0.0.1").unwrap();
        assert_eq!(elsewhere.endpoint, Endpoint::Tcp { host: "10.0.0.1".to_owned(), port: 6379 });
        assert_eq!(elsewhere.name_inside(), Some("cache.example.com"));
        assert_eq!(of("rediss://10.0.0.1?sslmode=require").unwrap().encryption, Encryption::Require);
        for wrong in
            ["http://x", "x", "rediss://x?sslmode=disable", "rediss://x?sslmode=y", "rediss://x?sslrootcert=ca.pem"]
        {
            let said = format!("{:?}", of(wrong));
            assert!(said.contains("addons.redis.url"), "{wrong}: {said}");
        }
    }
}
