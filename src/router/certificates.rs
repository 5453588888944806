//! Certificates: the operator's own from a pair of files, and one for each custom domain from a folder that the control
//! plane fills. Read when the router starts, and again when they change; a client is shown the one of the name that it
//! asks for, or the operator's.
//!
//! A pair of files that cannot be used is refused at the start; later it is reported, and the one in use stays, as it
//! does for every single domain.

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// A certificate chain and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// The certificates in use.
pub(super) struct Certificates {
    files: Option<CertificateFiles>,
    /// `<domain>.pem` in it: a key and its chain.
    folder: PathBuf,
    /// Apps are served under this domain, which the operator's certificate is for.
    domain: String,
    seen: Seen,
    current: ArcSwap<InUse>,
}

struct InUse {
    shown: Arc<Shown>,
    configuration: Arc<ServerConfig>,
}

#[derive(Debug, Default, Clone)]
struct Shown {
    default: Option<Arc<CertifiedKey>>,
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.named.get(&name.to_ascii_lowercase()));
        named.or(self.default.as_ref()).cloned()
    }
}

/// What tells one state of the files from another, without reading them.
type Seen = BTreeMap<PathBuf, (u64, u64, i64, i64)>;

impl Certificates {
    pub fn load(files: Option<&CertificateFiles>, folder: &Path, domain: &str) -> anyhow::Result<Certificates> {
        let seen = state_of(files, folder);
        let default = files.map(of_files).transpose()?.map(Arc::new);
        let shown = Shown { default, named: read_named(folder, &HashMap::new()) };
        Ok(Certificates {
            files: files.cloned(),
            folder: folder.to_owned(),
            domain: domain.to_owned(),
            seen,
            current: ArcSwap::from_pointee(in_use(shown)?),
        })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load().configuration.clone())
    }

    /// Whether a client who comes to this host with TLS is shown a certificate that is meant for it. With no custom
    /// domains at all the operator's is meant for everything.
    pub fn covers(&self, host: &str) -> bool {
        let current = self.current.load();
        let shown = &current.shown;
        let below = host.strip_suffix(self.domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        shown.named.contains_key(host) || shown.default.is_some() && (below || !self.folder.is_dir())
    }

    /// Looks at the files every so often, for ever.
    pub async fn follow(self: Arc<Certificates>, every: Duration) {
        let mut seen = self.seen.clone();
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let now = state_of(self.files.as_ref(), &self.folder);
            if now == seen {
                continue;
            }
            let this = self.clone();
            match tokio::task::spawn_blocking(move || this.read_again()).await {
                // Chain and key are two files: between their two changes they do not match. Looked at again.
                Ok(whole) => {
                    if whole {
                        seen = now;
                    }
                }
                Err(error) => tracing::error!(%error, "reading the certificates failed"),
            }
        }
    }

    /// Takes what can be used; whether the operator's pair could.
    fn read_again(&self) -> bool {
        let current = self.current.load();
        let read = self.files.as_ref().map(of_files).transpose();
        let whole = read.is_ok();
        let default = match read {
            Ok(default) => default.map(Arc::new),
            Err(error) => {
                tracing::error!("the new certificate cannot be used, the old one stays: {error:#}");
                current.shown.default.clone()
            }
        };
        let shown = Shown { default, named: read_named(&self.folder, &current.shown.named) };
        match in_use(shown) {
            Ok(fresh) => {
                self.current.store(Arc::new(fresh));
                if whole {
                    tracing::info!("took the new certificates");
                }
            }
            Err(error) => tracing::error!("the new certificates cannot be used: {error:#}"),
        }
        whole
    }
}

fn state_of(files: Option<&CertificateFiles>, folder: &Path) -> Seen {
    let named = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = files.into_iter().flat_map(|files| [files.chain.clone(), files.key.clone()]);
    let states =
        named.filter(|path| path.extension().is_some_and(|kind| kind == "pem")).chain(own).filter_map(|path| {
            let metadata = std::fs::metadata(&path).ok()?;
            Some((path, (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())))
        });
    states.collect()
}

/// The custom domains' certificates; for one that cannot be used the one before it.
fn read_named(folder: &Path, before: &HashMap<String, Arc<CertifiedKey>>) -> HashMap<String, Arc<CertifiedKey>> {
    let mut named = HashMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(domain) = name.strip_suffix(".pem").filter(|domain| !domain.starts_with('.')) else { continue };
        match certified(&path, &path) {
            Ok(key) => {
                named.insert(domain.to_owned(), Arc::new(key));
            }
            Err(error) => {
                tracing::error!(domain, "its certificate cannot be used: {error:#}");
                if let Some(key) = before.get(domain) {
                    named.insert(domain.to_owned(), key.clone());
                }
            }
        }
    }
    named
}

fn of_files(files: &CertificateFiles) -> anyhow::Result<CertifiedKey> {
    certified(&files.chain, &files.key)
}

fn certified(chain_path: &Path, key_path: &Path) -> anyhow::Result<CertifiedKey> {
    let name = |path: &Path| format!("cannot read {}", path.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain_path)
        .with_context(|| name(chain_path))?
        .collect::<Result<_, _>>()
        .with_context(|| name(chain_path))?;
    anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", chain_path.display());
    let key = PrivateKeyDer::from_pem_file(key_path).with_context(|| name(key_path))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .context("certificate and key cannot be used together")
}

fn in_use(shown: Shown) -> anyhow::Result<InUse> {
    let shown = Arc::new(shown);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut configuration = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(InUse { shown, configuration: Arc::new(configuration) })
}
