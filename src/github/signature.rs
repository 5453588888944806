//! Is a delivery really from GitHub?
//!
//! The HMAC-SHA256 of the raw bytes is compared in constant time before anything of the body is read. The older
//! SHA-1 header is not looked at. Two secrets may be valid at once, so that one can be replaced without a gap.

use crate::domain::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Below this a secret can be guessed from one captured delivery.
const SHORTEST_SECRET: usize = 16;
/// What a secret should have: as many bytes as the digest (RFC 2104, section 3).
const GOOD_SECRET: usize = 32;

/// The one or two webhook secrets that are valid now.
#[derive(Debug, Clone)]
pub struct WebhookSecrets(Vec<Secret>);

/// Why the configured secrets can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretError {
    #[error("no webhook secret is set; set github.webhook_secret to the secret of the app's webhook")]
    None,
    #[error("{0} webhook secrets are set, at most two may be valid at once: the new one and the one it replaces")]
    TooMany(usize),
    #[error(
        "the webhook secret has {0} bytes, at least {SHORTEST_SECRET} are needed; make one with `openssl rand -hex 32` \
         and set it here and in the app's settings on GitHub"
    )]
    Short(usize),
}

/// Why a delivery is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the delivery has no X-Hub-Signature-256 header")]
    Missing,
    #[error("the X-Hub-Signature-256 header is not sha256= and 64 hex digits")]
    Malformed,
    #[error("the signature does not fit the body")]
    Mismatch,
}

impl WebhookSecrets {
    /// # Errors
    /// None, more than two, or one of fewer than 16 bytes. One of fewer than 32 is taken with a warning in the log.
    pub fn new(secrets: Vec<Secret>) -> Result<WebhookSecrets, WebhookSecretError> {
        match secrets.len() {
            0 => return Err(WebhookSecretError::None),
            1 | 2 => {}
            many => return Err(WebhookSecretError::TooMany(many)),
        }
        for secret in &secrets {
            if secret.len() < SHORTEST_SECRET {
                return Err(WebhookSecretError::Short(secret.len()));
            }
            if secret.len() < GOOD_SECRET {
                tracing::warn!("the webhook secret has {} bytes, {GOOD_SECRET} or more are advised", secret.len());
            }
        }
        Ok(WebhookSecrets(secrets))
    }

    /// Checks the value of `X-Hub-Signature-256` against the raw body.
    ///
    /// # Errors
    /// The header is missing, isn't `sha256=` with 64 hex digits, or fits none of the secrets.
    pub fn verify(&self, header: Option<&str>, body: &[u8]) -> Result<(), SignatureError> {
        let header = header.ok_or(SignatureError::Missing)?;
        let digits = header.strip_prefix("sha256=").ok_or(SignatureError::Malformed)?;
        let mut given = [0_u8; 32];
        hex::decode_to_slice(digits, &mut given).map_err(|_| SignatureError::Malformed)?;
        // Every secret is tried whatever the first one says, so that the time tells nothing about which one fits.
        let mut valid = false;
        for secret in &self.0 {
            valid |= keyed(secret, body).verify_slice(&given).is_ok();
        }
        if valid { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}

/// The header's value for a body, as GitHub makes it.
pub fn sign(secret: &Secret, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(keyed(secret, body).finalize().into_bytes()))
}

fn keyed(secret: &Secret, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From GitHub's page "Validating webhook deliveries".
    const GITHUB_SECRET: &str = "It's a Secret to Everybody";
    const GITHUB_DIGEST: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn secrets(texts: &[&str]) -> WebhookSecrets {
        WebhookSecrets::new(texts.iter().map(|text| Secret::new(*text)).collect()).unwrap()
    }

    #[test]
    fn the_vector_that_github_publishes_is_accepted() {
        assert_eq!(secrets(&[GITHUB_SECRET]).verify(Some(GITHUB_DIGEST), b"Hello, World!"), Ok(()));
        assert_eq!(sign(&Secret::new(GITHUB_SECRET), b"Hello, World!"), GITHUB_DIGEST);
        assert_eq!(
            secrets(&[GITHUB_SECRET]).verify(Some(GITHUB_DIGEST), b"Hello, World"),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn while_a_secret_is_replaced_both_are_valid() {
        let (old, new, third) =
            ("the old secret, 32 bytes or more.", "the new secret, 32 bytes or more.", "a third secret");
        let both = secrets(&[new, old]);
        for secret in [old, new] {
            assert_eq!(both.verify(Some(&sign(&Secret::new(secret), b"{}")), b"{}"), Ok(()));
        }
        assert_eq!(both.verify(Some(&sign(&Secret::new(third), b"{}")), b"{}"), Err(SignatureError::Mismatch));
    }

    #[test]
    fn a_header_of_any_other_form_is_refused() {
        let secrets = secrets(&[GITHUB_SECRET]);
        assert_eq!(secrets.verify(None, b"Hello, World!"), Err(SignatureError::Missing));
        let bare = GITHUB_DIGEST.strip_prefix("sha256=").unwrap();
        for header in [
            "",
            "sha256=",
            bare,
            &format!("sha1={bare}"),
            &format!("SHA256={bare}"),
            &format!("sha256={}", &bare[..63]),
            &format!("sha256={}", &bare[..62]),
            &format!("{GITHUB_DIGEST}0"),
            &format!("{GITHUB_DIGEST}00"),
            &format!("sha256= {}", &bare[1..]),
            &format!("sha256={}", bare.replace('7', "g")),
            // The SHA-1 digest of the same body under the same secret.
            "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59",
        ] {
            assert_eq!(secrets.verify(Some(header), b"Hello, World!"), Err(SignatureError::Malformed), "{header:?}");
        }
    }

    #[test]
    fn fifty_thousand_forgeries_are_refused() {
        let secrets = secrets(&["a secret of more than 32 bytes for the test", "another secret of more than 32 bytes"]);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for _ in 0..50_000 {
            let body = next().to_be_bytes();
            let digest: String = (0..4).map(|_| format!("{:016x}", next())).collect();
            assert_eq!(secrets.verify(Some(&format!("sha256={digest}")), &body), Err(SignatureError::Mismatch));
        }
    }

    #[test]
    fn weak_secrets_are_refused_with_advice() {
        assert_eq!(WebhookSecrets::new(vec![]).unwrap_err(), WebhookSecretError::None);
        assert_eq!(WebhookSecrets::new(vec![Secret::new("")]).unwrap_err(), WebhookSecretError::Short(0));
        let short = WebhookSecrets::new(vec![Secret::new("fifteen bytes..")]).unwrap_err();
        assert!(short.to_string().contains("openssl rand -hex 32"), "{short}");
        assert!(WebhookSecrets::new(vec![Secret::new("sixteen bytes...")]).is_ok());
        let three = vec![Secret::new("a".repeat(32)), Secret::new("b".repeat(32)), Secret::new("c".repeat(32))];
        assert_eq!(WebhookSecrets::new(three).unwrap_err(), WebhookSecretError::TooMany(3));
    }
}
