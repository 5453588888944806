//! Certificates from files: read when the router starts, and again when they change.
//!
//! A pair of files that cannot be used is refused at the start; later it is reported, and the one in use stays.

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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

/// The certificate in use.
pub(super) struct Certificates {
    files: CertificateFiles,
    current: ArcSwap<ServerConfig>,
}

/// What tells one state of the files from another, without reading them.
#[derive(Debug, PartialEq, Eq)]
struct Seen([Option<(u64, u64, i64, i64)>; 2]);

impl Certificates {
    pub fn load(files: &CertificateFiles) -> anyhow::Result<Certificates> {
        Ok(Certificates { files: files.clone(), current: ArcSwap::from_pointee(configuration(files)?) })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Looks at the files every so often, for ever.
    pub async fn follow(self: Arc<Certificates>, every: Duration) {
        let mut seen = Seen::of(&self.files);
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let now = Seen::of(&self.files);
            if now == seen {
                continue;
            }
            let files = self.files.clone();
            match tokio::task::spawn_blocking(move || configuration(&files)).await {
                Ok(Ok(configuration)) => {
                    self.current.store(Arc::new(configuration));
                    tracing::info!(chain = %self.files.chain.display(), "took the new certificate");
                    seen = now;
                }
                // Chain and key are two files: between their two changes they do not match. Looked at again.
                Ok(Err(error)) => tracing::error!("the new certificate cannot be used, the old one stays: {error:#}"),
                Err(error) => tracing::error!(%error, "reading the certificate failed"),
            }
        }
    }
}

impl Seen {
    fn of(files: &CertificateFiles) -> Seen {
        let state = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
        };
        Seen([state(&files.chain), state(&files.key)])
    }
}

fn configuration(files: &CertificateFiles) -> anyhow::Result<ServerConfig> {
    let name = |path: &Path| format!("cannot read {}", path.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.chain)
        .with_context(|| name(&files.chain))?
        .collect::<Result<_, _>>()
        .with_context(|| name(&files.chain))?;
    anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", files.chain.display());
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| name(&files.key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut configuration = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and key cannot be used together")?;
    configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(configuration)
}
