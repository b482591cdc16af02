//! Certificates, and their replacement while connections run.
//!
//! A new certificate serves connections that come after it; those that are open keep theirs. One that
//! cannot be used is told of in the log, and the old one stays.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// How often the files are looked at. Whoever cannot wait sends SIGHUP.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Where certificates lie, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's chain, its own certificate first.
    pub cert: PathBuf,
    /// The key of the first.
    pub key: PathBuf,
    /// Who signs clients' certificates; without it clients need none.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca)
    }

    /// What changes when a file does: links are followed, as mounted secrets are swapped by a link.
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        self.paths().map(stamp).collect()
    }

    /// # Errors
    /// Names the flag and the file.
    fn load(&self) -> Result<ServerConfig, String> {
        let chain = certificates("--tls-cert", &self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            let path = self.key.display();
            format!("--tls-key {path}: no private key: {error}")
        })?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3");
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let fail = |what: String| format!("--tls-client-ca {}: {what}", path.display());
                let mut roots = RootCertStore::empty();
                for root in certificates("--tls-client-ca", path)? {
                    roots.add(root).map_err(|error| fail(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| fail(error.to_string()))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        // Fails, too, if the key is another certificate's.
        let mut config = config.with_single_cert(chain, key).map_err(|error| {
            let (cert, key) = (self.cert.display(), self.key.display());
            format!("--tls-cert {cert} with --tls-key {key}: {error}")
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// At least one, out of PEM. `flag` is what names the file.
pub(super) fn certificates(
    flag: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |what: String| format!("{flag} {}: {what}", path.display());
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| fail(error.to_string()))?;
    if read.is_empty() {
        return Err(fail("no certificate in it".into()));
    }
    Ok(read)
}

/// The certificate that new connections get.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Arc<ServerConfig>>,
    /// Of the files as they were last read, whether they could be used or not.
    seen: Mutex<Vec<Option<(SystemTime, u64)>>>,
}

impl Tls {
    /// # Errors
    /// A file cannot be read or used; the message names its flag.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, String> {
        let seen = files.stamps();
        let config = files.load()?;
        Ok(Arc::new(Self {
            current: Mutex::new(Arc::new(config)),
            seen: Mutex::new(seen),
            files,
        }))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.lock()).into()
    }

    /// Reads the files anew; with one that cannot be used all stays as it was, and `false` is returned.
    pub fn reload(&self) -> bool {
        *self.seen.lock() = self.files.stamps();
        match self.files.load() {
            Ok(config) => {
                *self.current.lock() = Arc::new(config);
                tracing::info!("new connections get the new certificate");
                true
            }
            Err(error) => {
                tracing::error!(error, "the certificate stays as it was");
                false
            }
        }
    }

    /// Reads the files anew whenever they change. Never ends.
    pub(crate) async fn follow_files(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let tls = Arc::clone(&self);
            let look = move || {
                let stamps = tls.files.stamps();
                let is_new = *tls.seen.lock() != stamps;
                if is_new {
                    tls.reload();
                }
            };
            // A file may lie on a disk that is slow today.
            if let Err(error) = tokio::task::spawn_blocking(look).await {
                tracing::error!(%error, "the certificate's files were not looked at");
            }
        }
    }
}
