//! The address of an operator's PostgreSQL, as libpq reads one (its words for TLS serve for Redis too): what of it says how the connection is encrypted is read
//! here, because the client library knows fewer words for it than libpq does.

use super::AddonError;
use crate::domain::Secret;
use std::path::{Path, PathBuf};
use tokio_postgres::config::{Host, SslMode};

/// libpq's `sslmode`, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encryption {
    Disable,
    /// Where the server has it; whoever stands between could take it away.
    Prefer,
    /// Always, to whoever answers.
    Require,
    /// To a server whose certificate an authority signed that we trust.
    VerifyAuthority,
    /// The same, and the certificate is of this very name.
    VerifyFull,
}

impl Encryption {
    const ALL: [(&str, Encryption); 6] = [
        ("disable", Encryption::Disable),
        ("allow", Encryption::Prefer),
        ("prefer", Encryption::Prefer),
        ("require", Encryption::Require),
        ("verify-ca", Encryption::VerifyAuthority),
        ("verify-full", Encryption::VerifyFull),
    ];

    pub fn of_word(word: &str) -> Option<Encryption> {
        Encryption::ALL.iter().find(|(known, _)| *known == word).map(|(_, encryption)| *encryption)
    }

    pub fn word(self) -> &'static str {
        Encryption::ALL.iter().rev().find(|(_, one)| *one == self).map_or("prefer", |(word, _)| word)
    }

    pub fn verifies(self) -> bool {
        self >= Encryption::VerifyAuthority
    }
}

/// Where a server is, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Address {
    pub config: tokio_postgres::Config,
    pub encryption: Encryption,
    /// A file with the authorities that are trusted instead of the machine's.
    pub authority: Option<PathBuf>,
}

/// Where sandboxes see the machine's own authorities (Debian and Ubuntu).
const MACHINE_S_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Address {
    /// `key` is what the operator's file calls it.
    pub fn parse(url: &Secret, key: &str) -> Result<Address, AddonError> {
        let wrong = |what: &str| AddonError::refused(format!("{key} {what}"));
        let (base, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
        let (mut encryption, mut authority, mut rest) = (None, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", word)) => {
                    let known = Encryption::of_word(word);
                    encryption = Some(known.ok_or_else(|| wrong("has an sslmode that nobody knows"))?);
                }
                Some(("sslrootcert", "system")) => {}
                Some(("sslrootcert", path)) => authority = Some(PathBuf::from(decoded(path))),
                _ => rest.push(parameter),
            }
        }
        let mut plain = base.to_owned();
        if !rest.is_empty() {
            plain = format!("{plain}?{}", rest.join("&"));
        }
        let mut config: tokio_postgres::Config =
            plain.parse().map_err(|_| wrong("is no address of a PostgreSQL server"))?;
        if config.get_dbname().is_none() {
            config.dbname("postgres");
        }
        let encryption = match (encryption.unwrap_or(Encryption::Prefer), &authority) {
            // As libpq has it: who names authorities wants them asked.
            (Encryption::Require, Some(_)) => Encryption::VerifyAuthority,
            (encryption, _) => encryption,
        };
        if authority.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(wrong("has an sslrootcert that is no absolute path"));
        }
        config.ssl_mode(match encryption {
            Encryption::Disable => SslMode::Disable,
            Encryption::Prefer => SslMode::Prefer,
            Encryption::Require | Encryption::VerifyAuthority | Encryption::VerifyFull => SslMode::Require,
        });
        Ok(Address { config, encryption, authority })
    }

    /// The name that its certificate is to have, where it is a name and no number.
    pub fn host_name(&self) -> Option<&str> {
        match self.config.get_hosts().first()? {
            Host::Tcp(host) if host.parse::<std::net::IpAddr>().is_err() => Some(host),
            _ => None,
        }
    }

    /// The name by which an isolated process finds the server on its own loopback, so that what its certificate says
    /// can be compared: a name only where it is compared at all.
    pub fn name_inside(&self) -> Option<&str> {
        self.host_name().filter(|_| self.encryption.verifies())
    }

    /// What clients are told besides host and port: `sslmode` and `sslrootcert`. `authority` is where they see that file.
    pub fn told(&self, named: bool, authority: &Path) -> Vec<(&'static str, String)> {
        let encryption = match self.encryption {
            // Under a number of the loopback nobody can find the right name.
            Encryption::VerifyFull if !named => Encryption::VerifyAuthority,
            encryption => encryption,
        };
        let mut told = Vec::new();
        if encryption != Encryption::Prefer {
            told.push(("sslmode", encryption.word().to_owned()));
        }
        if encryption.verifies() {
            let file = if self.authority.is_some() { authority } else { Path::new(MACHINE_S_AUTHORITIES) };
            told.push(("sslrootcert", file.to_string_lossy().into_owned()));
        }
        told
    }
}

pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = match tail {
            [high, low, ..] if *first == b'%' => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, AddonError> {
        Address::parse(&Secret::new(url), "addons.postgres.url")
    }

    #[test]
    fn how_a_connection_is_encrypted_is_read_as_libpq_reads_it() {
        let plain = parse("postgres://o:pw@db.example.com").unwrap();
        assert_eq!((plain.encryption, plain.config.get_dbname()), (Encryption::Prefer, Some("postgres")));
        assert!(plain.told(true, Path::new("/x")).is_empty() && plain.name_inside().is_none());
        let full = parse("postgres://o:pw@db.example.com:5433/x?sslmode=verify-full&application_name=y").unwrap();
        assert_eq!(full.encryption, Encryption::VerifyFull);
        assert_eq!((full.name_inside(), full.config.get_application_name()), (Some("db.example.com"), Some("y")));
        let own = parse("postgres://o:pw@10.0.0.1/x?sslmode=require&sslrootcert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!(own.encryption, Encryption::VerifyAuthority, "who names an authority wants it asked");
        assert_eq!(own.authority.as_deref(), Some(Path::new("/etc/ca.pem")));
        let told = own.told(false, Path::new("/inside.pem"));
        assert_eq!(told, [("sslmode", "verify-ca".to_owned()), ("sslrootcert", "/inside.pem".to_owned())]);
        for wrong in ["postgres://h/x?sslmode=none", "http://h", "postgres://h/x?sslrootcert=ca.pem"] {
            let said = format!("{:?}", parse(wrong));
            assert!(said.contains("addons.postgres.url"), "{said}");
        }
    }
}
