//! Where a drain leads: an address that the operator gave.

/// How long an address may be.
const LONGEST: usize = 2_000;

#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// Syslog over TCP, as RFC 5424 and RFC 6587 with octet counting.
    Tcp { host: String, port: u16 },
    /// The same over TLS (RFC 5425).
    Tls { host: String, port: u16 },
    /// POST in Heroku's form, `application/logplex-1`.
    Https { url: String },
}

impl std::fmt::Debug for Target {
    /// An address may hold a key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Target(..)")
    }
}

impl Target {
    /// `syslog://host:514`, `syslog+tls://host:6514`, `https://user:key@host/path`. The refusal is a fragment.
    pub fn parse(address: &str) -> Result<Target, &'static str> {
        let expected = "expected syslog://HOST:PORT, syslog+tls://HOST:PORT or https://…";
        let sound = address.len() <= LONGEST && address.bytes().all(|byte| byte.is_ascii_graphic());
        let (scheme, rest) = address.split_once("://").filter(|_| sound).ok_or(expected)?;
        let tls = match scheme {
            "syslog" => false,
            "syslog+tls" => true,
            "http" | "https" if !rest.is_empty() && !rest.starts_with('/') => {
                return Ok(Target::Https { url: address.to_owned() });
            }
            _ => return Err(expected),
        };
        let authority = rest.trim_end_matches('/');
        let (host, port) = match authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')) {
            Some((host, port)) => (host, port.parse().map_err(|_| "its port is no number")?),
            None => (authority, if tls { 6514 } else { 514 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || port == 0 {
            return Err(expected);
        }
        let host = host.to_owned();
        Ok(if tls { Target::Tls { host, port } } else { Target::Tcp { host, port } })
    }
}

/// An address without what may be a key: its user, its query, and all of its path but the first letters.
pub fn masked(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return "…".to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let key = if authority.contains('@') { "…@" } else { "" };
    let path = if path.trim_matches('/').is_empty() { "" } else { "/…" };
    format!("{scheme}://{key}{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_drains_are_understood() {
        let tcp = |host: &str, port| Ok(Target::Tcp { host: host.to_owned(), port });
        let tls = |host: &str, port| Ok(Target::Tls { host: host.to_owned(), port });
        assert_eq!(Target::parse("syslog://logs.example.com:5514"), tcp("logs.example.com", 5514));
        assert_eq!(Target::parse("syslog://logs.example.com"), tcp("logs.example.com", 514));
        assert_eq!(Target::parse("syslog+tls://logs.example.com/"), tls("logs.example.com", 6514));
        assert_eq!(Target::parse("syslog+tls://[::1]:6515"), tls("::1", 6515));
        let url = "https://key:secret@logs.example.com/in?x=1";
        assert_eq!(Target::parse(url), Ok(Target::Https { url: url.to_owned() }));
        for wrong in [
            "",
            "logs.example.com:514",
            "ftp://x",
            "syslog://",
            "syslog://x:y",
            "syslog://x:0",
            "https://",
            "https:///etc",
            "syslog://a@b:1",
            "syslog://x:514/p?q",
            "syslog://a b:1",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_in_addresses_are_not_shown() {
        for (address, shown) in [
            ("https://key:secret@logs.example.com:443/in?k=secret", "https://…@logs.example.com:443/…"),
            ("https://logs.example.com/secret", "https://logs.example.com/…"),
            ("https://logs.example.com?key=secret", "https://logs.example.com/…"),
            ("https://logs.example.com/", "https://logs.example.com"),
            ("syslog+tls://logs.example.com:6514", "syslog+tls://logs.example.com:6514"),
        ] {
            assert_eq!(masked(address), shown);
            assert!(!format!("{:?}", Target::parse(address)).contains("secret"));
        }
    }
}
