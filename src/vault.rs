//! Values at rest: config vars and generated secrets are sealed with authenticated encryption
//! (ChaCha20-Poly1305 of the `ring` library, a fresh random nonce each) under a key that lies beside the data,
//! readable by its owner only. A copy of the journal alone gives nothing away.

use crate::domain::Sealed;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("cannot read or make the key file {path}: {source}")]
    KeyFile { path: String, source: std::io::Error },
    #[error("{path} does not hold a key of 32 bytes: put back the one that belongs to this data folder")]
    NotAKey { path: String },
    #[error("a sealed value does not open with this data folder's key")]
    WrongKey,
    #[error("the machine gives no random numbers")]
    NoRandomness,
}

pub struct Vault {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Vault {
    /// Opens the key in `path`, or makes one.
    pub fn open(path: &Path) -> Result<Vault, VaultError> {
        let random = SystemRandom::new();
        let failed = |source| VaultError::KeyFile { path: path.display().to_string(), source };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut fresh = [0; 32];
                random.fill(&mut fresh).map_err(|_| VaultError::NoRandomness)?;
                let mut file =
                    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
                file.write_all(&fresh).and_then(|()| file.sync_all()).map_err(failed)?;
                if let Some(folder) = path.parent() {
                    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
                }
                fresh.to_vec()
            }
            Err(error) => return Err(failed(error)),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| VaultError::NotAKey { path: path.display().to_string() })?;
        Ok(Vault { key: LessSafeKey::new(key), random })
    }

    pub fn seal(&self, text: &str) -> Result<Sealed, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| VaultError::NoRandomness)?;
        let mut bytes = text.as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes)
            .map_err(|_| VaultError::NoRandomness)?;
        Ok(Sealed(STANDARD.encode([nonce.as_slice(), bytes.as_slice()].concat())))
    }

    pub fn open_sealed(&self, sealed: &Sealed) -> Result<String, VaultError> {
        let bytes = STANDARD.decode(&sealed.0).map_err(|_| VaultError::WrongKey)?;
        let (nonce, ciphertext) = bytes.split_at_checked(NONCE_LEN).ok_or(VaultError::WrongKey)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::WrongKey)?;
        let mut ciphertext = ciphertext.to_vec();
        let text = self.key.open_in_place(nonce, Aad::empty(), &mut ciphertext).map_err(|_| VaultError::WrongKey)?;
        String::from_utf8(text.to_vec()).map_err(|_| VaultError::WrongKey)
    }

    /// Random lower-case hex digits: `bytes` × 2 of them.
    pub fn random_hex(&self, bytes: usize) -> Result<String, VaultError> {
        let mut random = vec![0; bytes];
        self.random.fill(&mut random).map_err(|_| VaultError::NoRandomness)?;
        Ok(hex::encode(random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
