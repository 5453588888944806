//! Certificates: the operator's own from a pair of files, and one for each custom domain from a folder that the control
//! plane fills. Read when the router starts, and again when they change; a client is shown the one of the name that it
//! asks for, or the operator's.
//!
//! A pair of files that cannot be used is refused at the start; later it is reported, and the one in use stays, as it
//! does for every single domain. What could not be used is tried again with each look.

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, HashMap};
use std::io;
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
    loaded: Looked,
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

/// What a look at the files found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Looked {
    seen: Seen,
    /// What could not be used, and why.
    troubles: Vec<String>,
}

impl Certificates {
    pub fn load(files: Option<&CertificateFiles>, folder: &Path, domain: &str) -> anyhow::Result<Certificates> {
        let seen = state_of(files, folder);
        let default = files.map(of_files).transpose()?.map(Arc::new);
        let (named, troubles) = read_named(folder, &HashMap::new());
        troubles.iter().for_each(|trouble| tracing::error!("{trouble}"));
        Ok(Certificates {
            files: files.cloned(),
            folder: folder.to_owned(),
            domain: domain.to_owned(),
            loaded: Looked { seen, troubles },
            current: ArcSwap::from_pointee(in_use(Shown { default, named })?),
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
        let mut last = self.loaded.clone();
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let (this, before) = (self.clone(), last.clone());
            match tokio::task::spawn_blocking(move || this.look(&before)).await {
                Ok(looked) => last = looked,
                Err(error) => tracing::error!(%error, "reading the certificates failed"),
            }
        }
    }

    /// Takes what can be used, where the files are others than at the last look, or some could not be used then. That may
    /// have had a reason that the files do not show: no right to read them, or too many open files.
    fn look(&self, last: &Looked) -> Looked {
        let seen = state_of(self.files.as_ref(), &self.folder);
        if seen == last.seen && last.troubles.is_empty() {
            return last.clone();
        }
        let current = self.current.load();
        let (named, mut troubles) = read_named(&self.folder, &current.shown.named);
        let default = match self.files.as_ref().map(of_files).transpose() {
            Ok(default) => default.map(Arc::new),
            // Chain and key are two files: between their two changes they do not match.
            Err(error) => {
                troubles.push(format!("the new certificate cannot be used, the old one stays: {error:#}"));
                current.shown.default.clone()
            }
        };
        let looked = Looked { seen, troubles };
        if looked == *last {
            return looked;
        }
        for trouble in looked.troubles.iter().filter(|trouble| !last.troubles.contains(trouble)) {
            tracing::error!("{trouble}");
        }
        match in_use(Shown { default, named }) {
            Ok(fresh) => {
                self.current.store(Arc::new(fresh));
                if looked.troubles.is_empty() {
                    tracing::info!("took the new certificates");
                }
            }
            Err(error) => tracing::error!("the new certificates cannot be used: {error:#}"),
        }
        looked
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

/// The custom domains' certificates, for one that cannot be used the one before it; and what could not be used.
fn read_named(
    folder: &Path,
    before: &HashMap<String, Arc<CertifiedKey>>,
) -> (HashMap<String, Arc<CertifiedKey>>, Vec<String>) {
    let entries = match std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let trouble = format!("cannot read {}, its certificates stay: {error}", folder.display());
            return (before.clone(), vec![trouble]);
        }
    };
    let (mut named, mut troubles) = (HashMap::new(), Vec::new());
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(domain) = name.strip_suffix(".pem").filter(|domain| !domain.starts_with('.')) else { continue };
        let usable = certified(&path, &path).map(Arc::new).inspect_err(|error| {
            troubles.push(format!("the certificate of {domain} cannot be used: {error:#}"));
        });
        if let Some(key) = usable.ok().or_else(|| before.get(domain).cloned()) {
            named.insert(domain.to_owned(), key);
        }
    }
    (named, troubles)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    /// A key and its chain, as the control plane puts them there.
    fn pem(domain: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = rcgen::CertificateParams::new(vec![domain.to_owned()]).unwrap().self_signed(&key).unwrap();
        format!("{}{}", key.serialize_pem(), chain.pem())
    }

    fn names(certificates: &Certificates) -> Vec<String> {
        let mut names: Vec<String> = certificates.current.load().shown.named.keys().cloned().collect();
        names.sort();
        names
    }

    #[test]
    fn a_certificate_that_could_not_be_used_once_is_tried_again_although_its_file_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (path, good) = (folder.path().join("www.example.com.pem"), pem("www.example.com"));
        // Something that nothing of its file tells from the good one.
        fs::write(&path, good.replace("BEGIN", "XXXXX")).unwrap();
        let certificates = Certificates::load(None, folder.path(), "localhost").unwrap();
        let mut last = certificates.look(&certificates.loaded);
        assert_eq!((names(&certificates), last.troubles.len()), (Vec::new(), 1), "{last:?}");
        let file = File::options().write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(good.as_bytes(), 0).unwrap();
        file.set_modified(modified).unwrap();
        last = certificates.look(&last);
        assert_eq!((names(&certificates), last.troubles.len()), (vec!["www.example.com".to_owned()], 0), "{last:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_read_takes_no_domain_its_certificate() {
        let outer = tempfile::tempdir().unwrap();
        let (folder, aside) = (outer.path().join("certificates"), outer.path().join("aside"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("www.example.com.pem"), pem("www.example.com")).unwrap();
        let certificates = Certificates::load(None, &folder, "localhost").unwrap();
        fs::rename(&folder, &aside).unwrap();
        fs::write(&folder, "no folder").unwrap();
        let last = certificates.look(&certificates.loaded);
        assert_eq!((names(&certificates), last.troubles.len()), (vec!["www.example.com".to_owned()], 1), "{last:?}");
        fs::remove_file(&folder).unwrap();
        fs::rename(&aside, &folder).unwrap();
        let last = certificates.look(&last);
        assert_eq!((names(&certificates).len(), &last), (1, &certificates.loaded));
        // One that is gone has no domains any more.
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(certificates.look(&last), Looked::default());
        assert_eq!(names(&certificates), Vec::<String>::new());
    }
}
