//! A copy of a template database that lies on another server: what is run for it, inside the sandbox, with both servers
//! on its loopback and nothing else in reach.
//!
//! The copy is one transaction of the app's own role, and its last statement says that it is done: whatever is killed
//! when, the database has all of it or nothing.

use super::address::Address;
use super::own::Program;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a database's comment says from its making on, until it has its copy.
pub const WANTED: &str = "landfall: begins as a copy";
const DONE: &str = "landfall: began as a copy";

/// Ports on the copy's loopback.
pub const TARGET_PORT: u16 = 5432;
pub const TEMPLATE_PORT: u16 = 5433;

/// The program and its environment. `target` and `template` are where it sees the two, as libpq reads it; passwords are in
/// the environment only.
pub fn copy_program(programs: &Path, name: &str, target: &str, template: &str) -> (Program, BTreeMap<String, String>) {
    let programs = programs.display();
    let command = format!(
        "set -eu -o pipefail\n\
         {{ echo 'BEGIN;'\n\
         PGPASSWORD=$TEMPLATE_PASSWORD {programs}/pg_dump --no-owner --no-privileges --no-comments --no-tablespaces \
         --no-security-labels --no-publications --no-subscriptions --dbname=\"$TEMPLATE\"\n\
         echo 'COMMENT ON DATABASE \"{name}\" IS '\"'{DONE}'\"'; COMMIT;'\n\
         }} | PGPASSWORD=$TARGET_PASSWORD {programs}/psql --no-psqlrc --quiet --output=/dev/null \
         --set=ON_ERROR_STOP=1 --dbname=\"$TARGET\""
    );
    let environment = BTreeMap::from([
        ("TARGET".to_owned(), target.to_owned()),
        ("TEMPLATE".to_owned(), template.to_owned()),
        ("PGCONNECT_TIMEOUT".to_owned(), "20".to_owned()),
    ]);
    (Program { command, memory_bytes: 512 << 20, processes: 64 }, environment)
}

/// How a client of libpq is told where a server is, without a password.
pub fn words(host: &str, port: u16, user: &str, database: &str, told: &[(&'static str, String)]) -> String {
    let mut pairs = vec![
        ("host", host.to_owned()),
        ("port", port.to_string()),
        ("user", user.to_owned()),
        ("dbname", database.to_owned()),
    ];
    pairs.extend(told.iter().cloned());
    let quoted = |value: String| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    pairs.into_iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" ")
}

/// What of the template's address the copy needs: user, database and password.
pub fn login(address: &Address) -> (String, String, String) {
    let config = &address.config;
    let password = config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
    (
        config.get_user().unwrap_or("postgres").to_owned(),
        config.get_dbname().unwrap_or("postgres").to_owned(),
        password.unwrap_or_default(),
    )
}

/// The folder of PostgreSQL's client programs: the newest server's, else what the search path finds.
pub fn find_postgres_client(search_path: &[PathBuf]) -> Option<PathBuf> {
    let has_both = |folder: &Path| folder.join("pg_dump").is_file() && folder.join("psql").is_file();
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| has_both(folder))
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, folder)| folder);
    // Elsewhere than below /usr a sandbox does not see it.
    newest.or_else(|| search_path.iter().find(|folder| folder.starts_with("/usr") && has_both(folder)).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_stands_in_an_address_stays_a_value() {
        let told = [("sslmode", "require".to_owned())];
        assert_eq!(
            words("db", 5433, "it's", "a b", &told),
            "host='db' port='5433' user='it\\'s' dbname='a b' sslmode='require'"
        );
    }
}
