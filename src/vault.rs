//! Values at rest: config vars and generated secrets are sealed with authenticated encryption
//! (ChaCha20-Poly1305 of the `ring` library, a fresh random nonce each) under a key that lies beside the data,
//! readable by its owner only. A copy of the journal alone gives nothing away.
//!
//! Keys have numbers. The newest one seals, and every one that is in the file opens. What is sealed is bound to its
//! place (the record and the name), so that a ciphertext moved elsewhere does not open there; the place stands beside
//! the ciphertext, so that a rotation can seal everything anew without knowing what it is.

use crate::domain::Sealed;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("cannot read or make the key file {path}: {source}")]
    KeyFile { path: String, source: std::io::Error },
    #[error("{path} does not hold keys of 32 bytes: put back the file that belongs to this data folder")]
    NotAKey { path: String },
    #[error("a sealed value does not open with this data folder's keys, or does not belong where it stands")]
    WrongKey,
    #[error("the machine gives no random numbers")]
    NoRandomness,
}

/// What every sealed text begins with; one of before there were numbered keys does not.
const MARK: &str = "sealed:";
/// The number of a key that lies in its file alone, as it did before there were numbers.
const FIRST: u32 = 1;

/// Cheap to clone: all clones share the same keys.
#[derive(Clone)]
pub struct Vault {
    path: PathBuf,
    keys: Arc<RwLock<BTreeMap<u32, Key>>>,
    random: Arc<SystemRandom>,
}

struct Key {
    bytes: [u8; 32],
    sealer: LessSafeKey,
}

impl Vault {
    /// Opens the keys in `path`, or makes one.
    pub fn open(path: &Path) -> Result<Vault, VaultError> {
        let random = Arc::new(SystemRandom::new());
        let failed = |source| VaultError::KeyFile { path: path.display().to_string(), source };
        let keys = match std::fs::read(path) {
            Ok(bytes) => read_keys(&bytes).ok_or_else(|| VaultError::NotAKey { path: path.display().to_string() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let keys = BTreeMap::from([(FIRST, fresh_key(&random)?)]);
                write_keys(path, &keys).map_err(failed)?;
                keys
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Vault { path: path.to_owned(), keys: Arc::new(RwLock::new(keys)), random })
    }

    /// Seals a text that may stand anywhere.
    pub fn seal(&self, text: &str) -> Result<Sealed, VaultError> {
        self.seal_in("", text)
    }

    /// Seals a text for one place, such as `config/hello-staging/TOKEN`: it opens only for whoever names that place.
    pub fn seal_in(&self, place: &str, text: &str) -> Result<Sealed, VaultError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (number, key) = keys.last_key_value().ok_or(VaultError::WrongKey)?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| VaultError::NoRandomness)?;
        let mut bytes = text.as_bytes().to_vec();
        key.sealer
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.as_bytes()), &mut bytes)
            .map_err(|_| VaultError::NoRandomness)?;
        let ciphertext = STANDARD.encode([nonce.as_slice(), bytes.as_slice()].concat());
        Ok(Sealed(format!("{MARK}{number}:{}:{ciphertext}", STANDARD.encode(place))))
    }

    pub fn open_sealed(&self, sealed: &Sealed) -> Result<String, VaultError> {
        self.open_in("", sealed)
    }

    pub fn open_in(&self, place: &str, sealed: &Sealed) -> Result<String, VaultError> {
        let parts = Parts::read(sealed).ok_or(VaultError::WrongKey)?;
        // What was sealed for no place in particular may stand anywhere.
        let place = if parts.place.is_empty() { "" } else { place };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(&parts.key).ok_or(VaultError::WrongKey)?;
        let bytes = STANDARD.decode(parts.ciphertext).map_err(|_| VaultError::WrongKey)?;
        let (nonce, ciphertext) = bytes.split_at_checked(NONCE_LEN).ok_or(VaultError::WrongKey)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::WrongKey)?;
        let mut ciphertext = ciphertext.to_vec();
        let text = key
            .sealer
            .open_in_place(nonce, Aad::from(place.as_bytes()), &mut ciphertext)
            .map_err(|_| VaultError::WrongKey)?;
        String::from_utf8(text.to_vec()).map_err(|_| VaultError::WrongKey)
    }

    /// Makes a new key, which seals from now on. The key that sealed until now goes on opening, since something may be
    /// sealed with it at this very moment; older ones go when `retire` is told that nothing needs them. Gives the new
    /// key's number.
    pub fn rotate(&self) -> Result<u32, VaultError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let number = keys.last_key_value().map_or(FIRST, |(newest, _)| newest + 1);
        keys.insert(number, fresh_key(&self.random)?);
        if let Err(source) = write_keys(&self.path, &keys) {
            // What the file does not hold must not seal.
            keys.remove(&number);
            return Err(VaultError::KeyFile { path: self.path.display().to_string(), source });
        }
        Ok(number)
    }

    /// The same text under the newest key, for the same place; `None` where it is that already.
    pub fn reseal(&self, sealed: &Sealed) -> Result<Option<Sealed>, VaultError> {
        let parts = Parts::read(sealed).ok_or(VaultError::WrongKey)?;
        let newest = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.last_key_value().map(|(number, _)| *number)
        };
        if parts.numbered && newest == Some(parts.key) {
            return Ok(None);
        }
        let place = parts.place.clone();
        let text = self.open_in(&place, sealed)?;
        self.seal_in(&place, &text).map(Some)
    }

    /// Drops the keys before the newest two, but those in `needed`. Gives the numbers that went.
    pub fn retire(&self, needed: &BTreeSet<u32>) -> Result<Vec<u32>, VaultError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let newest: Vec<u32> = keys.keys().rev().take(2).copied().collect();
        let gone: Vec<u32> =
            keys.keys().filter(|number| !newest.contains(number) && !needed.contains(number)).copied().collect();
        if gone.is_empty() {
            return Ok(gone);
        }
        let dropped: Vec<(u32, Key)> =
            gone.iter().filter_map(|number| keys.remove(number).map(|key| (*number, key))).collect();
        if let Err(source) = write_keys(&self.path, &keys) {
            keys.extend(dropped);
            return Err(VaultError::KeyFile { path: self.path.display().to_string(), source });
        }
        Ok(gone)
    }

    /// Random lower-case hex digits: `bytes` × 2 of them.
    pub fn random_hex(&self, bytes: usize) -> Result<String, VaultError> {
        let mut random = vec![0; bytes];
        self.random.fill(&mut random).map_err(|_| VaultError::NoRandomness)?;
        Ok(hex::encode(random))
    }
}

/// What follows from a secret for one purpose, in 64 hex digits: whoever knows it knows neither the secret nor what
/// follows for another purpose.
pub fn derived(secret: &str, purpose: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    hex::encode(ring::hmac::sign(&key, purpose.as_bytes()))
}

/// The number of the key that a text was sealed with; `None` for a text that is not sealed.
pub fn key_of(text: &str) -> Option<u32> {
    text.starts_with(MARK).then(|| Parts::read(&Sealed(text.to_owned())).map(|parts| parts.key)).flatten()
}

struct Parts<'a> {
    numbered: bool,
    key: u32,
    place: String,
    ciphertext: &'a str,
}

impl Parts<'_> {
    fn read(sealed: &Sealed) -> Option<Parts<'_>> {
        let Some(rest) = sealed.0.strip_prefix(MARK) else {
            return Some(Parts { numbered: false, key: FIRST, place: String::new(), ciphertext: &sealed.0 });
        };
        let (key, rest) = rest.split_once(':')?;
        let (place, ciphertext) = rest.split_once(':')?;
        let place = String::from_utf8(STANDARD.decode(place).ok()?).ok()?;
        Some(Parts { numbered: true, key: key.parse().ok()?, place, ciphertext })
    }
}

fn key_from(bytes: [u8; 32]) -> Option<Key> {
    let sealer = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok()?);
    Some(Key { bytes, sealer })
}

fn fresh_key(random: &SystemRandom) -> Result<Key, VaultError> {
    let mut fresh = [0; 32];
    random.fill(&mut fresh).map_err(|_| VaultError::NoRandomness)?;
    key_from(fresh).ok_or(VaultError::NoRandomness)
}

/// One key a line, `NUMBER HEX`; or the 32 bytes of the first key alone.
fn read_keys(bytes: &[u8]) -> Option<BTreeMap<u32, Key>> {
    if let Ok(only) = <[u8; 32]>::try_from(bytes) {
        return Some(BTreeMap::from([(FIRST, key_from(only)?)]));
    }
    let mut keys = BTreeMap::new();
    for line in std::str::from_utf8(bytes).ok()?.lines() {
        let (number, digits) = line.split_once(' ')?;
        let bytes: [u8; 32] = hex::decode(digits).ok()?.try_into().ok()?;
        keys.insert(number.parse().ok()?, key_from(bytes)?);
    }
    if keys.is_empty() { None } else { Some(keys) }
}

/// Whole or not at all: a new file beside it, made durable, then put in its place.
fn write_keys(path: &Path, keys: &BTreeMap<u32, Key>) -> std::io::Result<()> {
    let mut text = String::new();
    for (number, key) in keys {
        let _ = writeln!(text, "{number} {}", hex::encode(key.bytes));
    }
    let partial = path.with_extension("part");
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(&folder.path().join("a")).unwrap();
        let sealed = vault.seal("s3cret").unwrap();
        assert!(!sealed.0.contains("s3cret"));
        assert_ne!(sealed, vault.seal("s3cret").unwrap());
        let again = Vault::open(&folder.path().join("a")).unwrap();
        assert_eq!(again.open_sealed(&sealed).unwrap(), "s3cret");
        let other = Vault::open(&folder.path().join("b")).unwrap();
        assert!(matches!(other.open_sealed(&sealed), Err(VaultError::WrongKey)));
        assert!(other.open_sealed(&Sealed("AAAA".into())).is_err());
    }

    #[test]
    fn what_is_sealed_for_one_place_opens_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(&folder.path().join("a")).unwrap();
        let sealed = vault.seal_in("config/hello-staging/TOKEN", "s3cret").unwrap();
        assert_eq!(vault.open_in("config/hello-staging/TOKEN", &sealed).unwrap(), "s3cret");
        for elsewhere in ["config/hello-production/TOKEN", "config/hello-staging/OTHER", ""] {
            assert!(vault.open_in(elsewhere, &sealed).is_err(), "{elsewhere}");
        }
        let forged = Sealed(sealed.0.replace(&STANDARD.encode("config/hello-staging/TOKEN"), &STANDARD.encode("x")));
        assert!(vault.open_in("x", &forged).is_err());
    }

    #[test]
    fn a_rotated_key_seals_anew_and_old_ones_go_when_nothing_needs_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let vault = Vault::open(&path).unwrap();
        let old = vault.seal_in("here", "s3cret").unwrap();
        assert_eq!(vault.rotate().unwrap(), 2);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(vault.open_in("here", &old).unwrap(), "s3cret");
        let fresh = vault.reseal(&old).unwrap().expect("it was sealed with the old key");
        assert_eq!((key_of(&old.0), key_of(&fresh.0), key_of("plain")), (Some(1), Some(2), None));
        assert_eq!(vault.reseal(&fresh).unwrap(), None);
        assert_eq!(vault.retire(&BTreeSet::new()).unwrap(), [0; 0], "the one before may be in use this moment");
        assert_eq!(vault.rotate().unwrap(), 3);
        assert_eq!(vault.retire(&BTreeSet::from([1])).unwrap(), [0; 0], "it is needed");
        assert_eq!(vault.retire(&BTreeSet::new()).unwrap(), [1]);
        let again = Vault::open(&path).unwrap();
        assert_eq!(again.open_in("here", &fresh).unwrap(), "s3cret");
        assert!(again.open_in("here", &old).is_err());
    }

    #[test]
    fn a_key_file_and_values_of_before_there_were_numbers_go_on_opening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        let vault = Vault::open(&path).unwrap();
        let numbered = vault.seal("s3cret").unwrap();
        let plain = Sealed(numbered.0.rsplit_once(':').unwrap().1.to_owned());
        assert_eq!(vault.open_in("anywhere", &plain).unwrap(), "s3cret");
        vault.rotate().unwrap();
        let fresh = vault.reseal(&plain).unwrap().expect("it has no number");
        assert_eq!(Vault::open(&path).unwrap().open_sealed(&fresh).unwrap(), "s3cret");
        std::fs::write(&path, "1 abc").unwrap();
        assert!(matches!(Vault::open(&path), Err(VaultError::NotAKey { .. })));
    }
}
