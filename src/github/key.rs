//! The app's private key, and the JSON Web Tokens (RFC 7519) that it signs.

use crate::clock::Timestamp;
use crate::domain::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// GitHub refuses tokens that live longer than 10 minutes; one is kept for clocks that differ.
const LIFETIME: Duration = Duration::from_secs(9 * 60);
/// GitHub advises to date the token back by a minute, for the same reason.
const DATED_BACK: Duration = Duration::from_secs(60);

/// The RSA key that GitHub made for the app.
#[derive(Clone)]
pub struct RsaKey(Arc<RsaKeyPair>);

/// Why a file is not the app's key. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "this is no PEM file; download a private key at the bottom of the app's General settings page on GitHub and \
         use the file as it comes"
    )]
    NotPem,
    #[error("this is {found}, not the app's RSA private key; use the .pem file that GitHub made for the app")]
    WrongKind { found: String },
    #[error("the key is protected by a passphrase; decrypt it once with `openssl rsa -in KEY -out KEY.pem`")]
    Encrypted,
    #[error("the PEM file is damaged: {0}; download the app's private key again")]
    Damaged(String),
}

impl RsaKey {
    /// Reads a PEM file with a PKCS#1 key (`RSA PRIVATE KEY`, as GitHub makes them) or a PKCS#8 one (`PRIVATE KEY`).
    ///
    /// # Errors
    /// It's something else, passphrase-protected, or damaged.
    pub fn from_pem(text: &str) -> Result<RsaKey, KeyError> {
        let (_, after) = text.split_once("-----BEGIN ").ok_or(KeyError::NotPem)?;
        let (label, after) = after.split_once("-----").ok_or(KeyError::NotPem)?;
        let (body, _) =
            after.split_once("-----END ").ok_or_else(|| KeyError::Damaged("it has no END line".to_owned()))?;
        // The older way to protect a key by a passphrase puts headers before the data.
        if label == "ENCRYPTED PRIVATE KEY" || body.contains("ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        let digits: String = body.chars().filter(|letter| !letter.is_whitespace()).collect();
        let der = STANDARD.decode(digits).map_err(|_| KeyError::Damaged("it is not base64".to_owned()))?;
        let pair = match label {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der),
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(&der),
            other => return Err(KeyError::WrongKind { found: format!("a {}", other.to_lowercase()) }),
        };
        match pair {
            Ok(pair) => Ok(RsaKey(Arc::new(pair))),
            Err(error) if error.to_string() == "WrongAlgorithm" => {
                Err(KeyError::WrongKind { found: "a key of another algorithm".to_owned() })
            }
            Err(error) => Err(KeyError::Damaged(error.to_string())),
        }
    }

    /// The public half, PKCS#1 DER.
    pub fn public_key(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// A token by which the app proves to be itself, valid from a minute before `now` to nine minutes after.
    pub(super) fn token(&self, app_id: u64, now: Timestamp) -> Secret {
        let issued_at = (now - DATED_BACK).0 / 1000;
        let expires_at = (now + LIFETIME).0 / 1000;
        let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256","typ":"JWT"}"#);
        let claims = format!(r#"{{"iat":{issued_at},"exp":{expires_at},"iss":"{app_id}"}}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("the system has randomness and the buffer has the modulus' length");
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RsaKey(..)")
    }
}
