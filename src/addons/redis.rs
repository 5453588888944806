//! Redis: one of its own for each add-on (see `own`), or a user on the operator's server who sees only keys and channels
//! that begin with its prefix.

use super::resp::{Answer, Connection};
use super::{AddonError, Provided, prefix};
use crate::domain::{Addon, AddonProblem, Endpoint, Secret};
use crate::outside;
use std::collections::{BTreeMap, BTreeSet};
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

/// The operator's server: `redis://user:password@host:port`.
#[derive(Debug, Clone)]
pub struct RedisServer {
    endpoint: Endpoint,
    user: String,
    password: Secret,
}

impl RedisServer {
    pub fn from_url(url: &Secret) -> Result<RedisServer, AddonError> {
        let wrong =
            || AddonError::refused("addons.redis.url is no address of a server: redis://user:password@host:port");
        let rest = url.expose().strip_prefix("redis://").ok_or_else(wrong)?;
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
        let endpoint = Endpoint::Tcp { host: host.trim_matches(['[', ']']).to_owned(), port };
        let user = if user.is_empty() { "default" } else { user };
        Ok(RedisServer { endpoint, user: user.to_owned(), password: Secret::new(password) })
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    async fn connect(&self) -> Result<Connection, AddonError> {
        let mut connection = Connection::open(&self.endpoint).await?;
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
        seen_at: (&str, u16),
    ) -> Result<Provided, AddonError> {
        let mut connection = self.connect().await?;
        let name = format!("{}{}", prefix(tag), addon.id);
        outside::point("redis user").await;
        let (secret, keys, channels) = (format!(">{}", password.expose()), format!("~{name}:*"), format!("&{name}:*"));
        let words = ["ACL", "SETUSER", &name, "reset", "on", &secret, &keys, &channels];
        connection.order(&[words.as_slice(), RIGHTS.as_slice()].concat()).await?;
        outside::point("redis provisioned").await;
        let url = format!("redis://{name}:{}@{}:{}", password.expose(), seen_at.0, seen_at.1);
        let config = BTreeMap::from([
            (format!("{}_URL", addon.attachment), url),
            (format!("{}_PREFIX", addon.attachment), format!("{name}:")),
        ]);
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
            (server.endpoint, server.user.as_str()),
            (Endpoint::Tcp { host: "localhost".to_owned(), port: 6379 }, "default")
        );
        assert!(RedisServer::from_url(&Secret::new("http://x")).is_err());
    }
}
