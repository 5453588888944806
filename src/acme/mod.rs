//! Certificates for custom domains, by ACME (RFC 8555) with the HTTP challenge: asked for, kept in the data folder,
//! renewed when a third of their time is left.
//!
//! The rules: a certificate is asked for only where the operator's configuration names or allows the domain, never because a
//! stranger asked for it; every step is on disk before the next one is made, so that a kill in between goes on with
//! the same order and the same key; and whatever fails is tried again ever more seldom, well within what authorities
//! allow. The router reads the files: the answer to a challenge under its token, key and chain under the domain.

mod validity;

use crate::clock::{Clock, Timestamp};
use anyhow::Context as _;
use bytes::Bytes;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, BodyWrapper, ChallengeType, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};
use validity::Validity;

/// For one order, from the first call to the certificate.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the authority may take over the challenge, and over the certificate.
const POLL: Duration = Duration::from_secs(90);
/// After the first failure; doubled with each that follows. Let's Encrypt allows five failed validations of a host in
/// an hour ("Rate Limits").
const FIRST_PAUSE: Duration = Duration::from_secs(15 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// After the authority said that it was asked too often.
const LIMITED_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// The longest time without a look at what is due.
const LOOK: Duration = Duration::from_secs(3600);

/// What is wanted, and of whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The authority's directory.
    pub directory: String,
    /// `mailto:…`, for what the authority has to say.
    pub contact: Option<String>,
    pub domains: Vec<String>,
    /// The router's folder; `certificates` and `challenges` are made in it.
    pub folder: PathBuf,
}

/// How far a domain is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// The authority that the rest is about.
    directory: String,
    /// Under way.
    order: Option<String>,
    /// The challenges of the order whose answers are in the folder.
    tokens: Vec<String>,
    /// Failures in a row.
    failures: u32,
    error: Option<String>,
    again_at: Timestamp,
    expires_at: Option<Timestamp>,
    renew_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct KnownAccount {
    directory: String,
    credentials: AccountCredentials,
}

/// Keeps every domain's certificate good, for ever. `named` gives the domains of now, or nothing where they cannot be
/// known; whoever changes them wakes.
pub async fn keep(
    mut settings: Settings,
    clock: Clock,
    named: impl Fn() -> Option<Vec<String>>,
    wake: std::sync::Arc<tokio::sync::Notify>,
) {
    let changed = move |settings: &mut Settings| match named() {
        Some(domains) if domains != settings.domains => {
            settings.domains = domains;
            true
        }
        _ => false,
    };
    changed(&mut settings);
    loop {
        let pause = step(&settings, &clock).await;
        let timer = tokio::time::sleep(pause);
        tokio::pin!(timer);
        while !changed(&mut settings) {
            tokio::select! {
                () = &mut timer => break,
                () = wake.notified() => {}
            }
        }
    }
}

/// Does what is due, one domain after the other; gives the time until something may be due again.
pub async fn step(settings: &Settings, clock: &Clock) -> Duration {
    if let Err(error) = prepare(settings) {
        warn!("certificates cannot be kept: {error:#}");
        return FIRST_PAUSE;
    }
    let mut next = LOOK;
    for domain in &settings.domains {
        let mut progress = read_progress(settings, domain);
        let due = progress.again_at.max(progress.renew_at.unwrap_or_default());
        if due <= clock.now() {
            let outcome = tokio::time::timeout(PATIENCE, obtain(settings, domain, &mut progress)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it took longer than {PATIENCE:?}")));
            let now = clock.now();
            match outcome {
                Ok(validity) => {
                    progress = Progress {
                        directory: settings.directory.clone(),
                        expires_at: Some(validity.until),
                        renew_at: Some(validity.renew_at(domain)),
                        ..Progress::default()
                    };
                    info!(domain, until = %validity.until.rfc3339(), "got a certificate for {domain}");
                }
                Err(error) => {
                    progress.failures = progress.failures.saturating_add(1);
                    progress.again_at = now + pause_after(progress.failures, &error);
                    progress.error = Some(format!("{error:#}"));
                    warn!(domain, again_at = %progress.again_at.rfc3339(), "no certificate for {domain}: {error:#}");
                }
            }
            match write_progress(settings, domain, &progress) {
                // Until here a kill would have gone on with the order, which needs its key.
                Ok(()) if progress.order.is_none() => {
                    let _ = fs::remove_file(fresh_key_path(settings, domain));
                }
                Ok(()) => {}
                Err(error) => warn!(domain, "could not write down how far a certificate is: {error:#}"),
            }
        }
        let due = progress.again_at.max(progress.renew_at.unwrap_or_default());
        next = next.min(due.since(clock.now()).max(Duration::from_secs(1)));
    }
    next
}

fn pause_after(failures: u32, error: &anyhow::Error) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    let limited = error.chain().any(|cause| match cause.downcast_ref::<instant_acme::Error>() {
        Some(instant_acme::Error::Api(problem)) => {
            problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":rateLimited"))
        }
        _ => false,
    });
    if limited { pause.max(LIMITED_PAUSE) } else { pause }
}

/// From wherever the domain was left to the certificate.
async fn obtain(settings: &Settings, domain: &str, progress: &mut Progress) -> anyhow::Result<Validity> {
    let account = account(settings).await?;
    let mut order = match progress.order.take() {
        Some(url) => match account.order(url.clone()).await {
            Ok(order) => Some(order),
            Err(error) if is_lost(&error) => {
                warn!(domain, "the order for {domain} is lost ({error}); making another");
                None
            }
            Err(error) => {
                progress.order = Some(url);
                return Err(error).context("the order cannot be looked at");
            }
        },
        None => None,
    };
    // One that is over can bring nothing any more.
    if order.as_mut().is_some_and(|order| order.state().status == OrderStatus::Invalid) {
        order = None;
    }
    let mut order = match order {
        Some(order) => order,
        None => {
            let identifiers = [Identifier::Dns(domain.to_owned())];
            account.new_order(&NewOrder::new(&identifiers)).await.context("the order was not taken")?
        }
    };
    progress.order = Some(order.url().to_owned());
    write_progress(settings, domain, progress)?;
    let finished = finish(settings, domain, &mut order, progress).await;
    if order.state().status == OrderStatus::Invalid {
        progress.order = None;
    }
    if finished.is_ok() || progress.order.is_none() {
        for token in progress.tokens.drain(..).filter(|token| is_token(token)) {
            let _ = fs::remove_file(settings.challenges().join(token));
        }
    }
    finished
}

/// Whether the authority knows the order no more; what it can't tell just now is no reason to make another one.
fn is_lost(error: &instant_acme::Error) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    problem.status.is_some_and(|status| (400..500).contains(&status) && status != 429)
}

/// Forgets an order that can bring nothing any more.
async fn finish(
    settings: &Settings,
    domain: &str,
    order: &mut Order,
    progress: &mut Progress,
) -> anyhow::Result<Validity> {
    let polling = RetryPolicy::new().timeout(POLL);
    if order.state().status == OrderStatus::Pending {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.context("the authorization cannot be read")?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let mut challenge = authorization
                .challenge(ChallengeType::Http01)
                .context("the authority offers no challenge over HTTP")?;
            let token = challenge.token.clone();
            anyhow::ensure!(is_token(&token), "the authority's token {token:?} is none");
            if !progress.tokens.contains(&token) {
                progress.tokens.push(token.clone());
                write_progress(settings, domain, progress)?;
            }
            put(&settings.challenges().join(&token), challenge.key_authorization().as_str().as_bytes())?;
            challenge.set_ready().await.context("the challenge was not taken")?;
        }
        let status = order.poll_ready(&polling).await.context("the authority did not find the domain here")?;
        anyhow::ensure!(status == OrderStatus::Ready, "the authority did not find the domain here");
    }
    let key_path = fresh_key_path(settings, domain);
    if order.state().status == OrderStatus::Ready {
        let key = KeyPair::generate().context("a new key cannot be made")?;
        let mut request = CertificateParams::new(vec![domain.to_owned()])?;
        request.distinguished_name = DistinguishedName::new();
        let request = request.serialize_request(&key)?;
        // Kept before it is sent: whatever certificate comes of it fits this key.
        put(&key_path, key.serialize_pem().as_bytes())?;
        order.finalize_csr(request.der()).await.context("the request for the certificate was not taken")?;
    }
    let chain = order.poll_certificate(&polling).await.context("the certificate did not come")?;
    let key = match fs::read_to_string(&key_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            progress.order = None;
            anyhow::bail!("the key of the certificate is lost");
        }
        key => key.context("the key of the certificate cannot be read")?,
    };
    let validity = check(&key, &chain).inspect_err(|_| progress.order = None)?;
    put(&certificate_path(settings, domain), format!("{}\n{}", key.trim_end(), chain).as_bytes())?;
    Ok(validity)
}

/// A chain that the router could not show is none.
fn check(key: &str, chain: &str) -> anyhow::Result<Validity> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().context("the chain is no PEM")?;
    let first = certificates.first().context("the chain holds no certificate")?;
    let validity = Validity::of(first).context("the certificate does not say how long it holds")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key is no PEM")?;
    rustls::sign::CertifiedKey::from_der(certificates, key, &rustls::crypto::ring::default_provider())
        .context("key and certificate do not belong together")?;
    Ok(validity)
}

async fn account(settings: &Settings) -> anyhow::Result<Account> {
    let path = settings.certificates().join("account.json");
    let known = match fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice::<KnownAccount>(&bytes).context("account.json is damaged")?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context("account.json cannot be read"),
    };
    if let Some(known) = known.filter(|known| known.directory == settings.directory) {
        return builder()?.from_credentials(known.credentials).await.context("the authority does not answer");
    }
    let contact: Vec<&str> = settings.contact.as_deref().into_iter().collect();
    let wish = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) =
        builder()?.create(&wish, settings.directory.clone(), None).await.context("no account was made")?;
    let known = KnownAccount { directory: settings.directory.clone(), credentials };
    put(&path, &serde_json::to_vec_pretty(&known)?)?;
    info!(directory = %settings.directory, "made an account with the certificate authority");
    Ok(account)
}

fn builder() -> anyhow::Result<AccountBuilder> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(Duration::from_secs(10)));
    let connector = HttpsConnectorBuilder::new()
        .with_native_roots()
        .context("this machine has no certificates to check an authority with")?
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let client: Client<_, BodyWrapper<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    Ok(Account::builder_with_http(Box::new(client)))
}

impl Settings {
    fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    fn challenges(&self) -> PathBuf {
        self.folder.join("challenges")
    }
}

/// Makes the folders, and takes away what is of domains that are named no more.
fn prepare(settings: &Settings) -> anyhow::Result<()> {
    for folder in [settings.certificates(), settings.challenges()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for entry in fs::read_dir(settings.certificates())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = [".pem", ".json", ".key.new"].iter().find_map(|ending| name.strip_suffix(ending));
        if of.is_some_and(|of| of != "account" && !settings.domains.iter().any(|domain| domain == of)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn progress_path(settings: &Settings, domain: &str) -> PathBuf {
    settings.certificates().join(format!("{domain}.json"))
}

/// Key and chain, as the router reads them.
fn certificate_path(settings: &Settings, domain: &str) -> PathBuf {
    settings.certificates().join(format!("{domain}.pem"))
}

/// The key of the certificate that is being asked for.
fn fresh_key_path(settings: &Settings, domain: &str) -> PathBuf {
    settings.certificates().join(format!("{domain}.key.new"))
}

/// What cannot be read, or is about another authority, is begun anew; a certificate that is lost is not one to be renewed
/// some day.
fn read_progress(settings: &Settings, domain: &str) -> Progress {
    let bytes = fs::read(progress_path(settings, domain)).unwrap_or_default();
    let mut progress: Progress = serde_json::from_slice(&bytes).unwrap_or_default();
    if progress.directory != settings.directory {
        progress = Progress { directory: settings.directory.clone(), ..Progress::default() };
    }
    if !certificate_path(settings, domain).exists() {
        progress.renew_at = None;
    }
    progress
}

fn write_progress(settings: &Settings, domain: &str, progress: &Progress) -> anyhow::Result<()> {
    put(&progress_path(settings, domain), &serde_json::to_vec_pretty(progress)?)
}

/// Whole or not at all, and for nobody else to read.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let fresh = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// RFC 8555, 8.3: the alphabet of base64url. It becomes the name of a file.
fn is_token(token: &str) -> bool {
    (1..=256).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_ever_more_seldom() {
        let error = anyhow::anyhow!("x");
        let pauses: Vec<u64> = (1..=9).map(|failures| pause_after(failures, &error).as_secs() / 60).collect();
        assert_eq!(pauses, [15, 30, 60, 120, 240, 480, 960, 1440, 1440]);
        assert_eq!(pause_after(u32::MAX, &error), LONGEST_PAUSE);
    }

    #[test]
    fn a_token_is_the_name_of_a_file_and_of_no_other_place() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"));
        for wrong in ["", "..", "a/b", "a.b", "ä", "a b", &"a".repeat(257)] {
            assert!(!is_token(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_of_a_domain_no_longer_named_goes_and_files_are_for_us_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            directory: "https://ca.example/".to_owned(),
            contact: None,
            domains: vec!["www.example.com".to_owned()],
            folder: folder.path().to_owned(),
        };
        prepare(&settings).unwrap();
        for name in ["www.example.com.pem", "old.example.com.pem", "old.example.com.json", "account.json"] {
            put(&settings.certificates().join(name), b"x").unwrap();
        }
        prepare(&settings).unwrap();
        let mut left: Vec<String> = fs::read_dir(settings.certificates())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["account.json", "www.example.com.pem"]);
        let mode = fs::metadata(settings.certificates().join("account.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
