//! Connections that we open, to servers and to collectors: plain ones, and TLS with a certificate that
//! somebody known has signed.
//!
//! Known are the public authorities, built in because images often hold none, and whom a file adds. No
//! proxy is asked and no redirect followed.

use std::error::Error;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::uri::Scheme;
use http_body_util::Full;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};
use tower_service::Service;
use webpki_roots::TLS_SERVER_ROOTS;

use super::tls::certificates;

/// How long a connection is silent before it is asked whether it lives: as long as the client keeps it.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// Speaks HTTP/1.1, on connections that it keeps for the next request.
pub(crate) type Client = legacy::Client<Dialer, Full<Bytes>>;

/// A client that trusts the certificates in `file` besides the public authorities'. `flag` is what names
/// the file.
///
/// # Errors
/// The file cannot be read or used; the message names the flag.
pub(crate) fn client(flag: &'static str, file: Option<&Path>) -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    roots.extend(TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = file {
        for root in certificates(flag, path)? {
            roots
                .add(root)
                .map_err(|error| format!("{flag} {}: {error}", path.display()))?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut tcp = HttpConnector::new();
    // Else it refuses https:// before we come to it.
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE));
    let dialer = Dialer {
        tcp,
        secure: Secure {
            tls: TlsConnector::from(Arc::new(config)),
            flag,
        },
    };
    Ok(legacy::Client::builder(TokioExecutor::new()).build(dialer))
}

/// Why a request went wrong, without the client's own words around it.
pub(crate) fn why(error: &legacy::Error) -> String {
    let source = error.source().map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}

/// Opens connections, with TLS where the URL says so.
#[derive(Clone)]
pub(crate) struct Dialer {
    tcp: HttpConnector,
    secure: Secure,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Uri>::poll_ready(&mut self.tcp, cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = Service::<Uri>::call(&mut self.tcp, uri.clone());
        let secure = self.secure.clone();
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let stream: Box<dyn Duplex> = if uri.scheme() == Some(&Scheme::HTTPS) {
                Box::new(secure.wrap(stream, &uri).await?)
            } else {
                Box::new(stream)
            };
            Ok(TokioIo::new(stream))
        })
    }
}

/// Shakes hands.
#[derive(Clone)]
struct Secure {
    tls: TlsConnector,
    /// What names more certificates to trust.
    flag: &'static str,
}

impl Secure {
    async fn wrap(&self, stream: TcpStream, uri: &Uri) -> Result<TlsStream<TcpStream>, String> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host} is no name that a certificate could have"))?;
        // The handshake's last message and the request are two writes: the second is not to wait until the
        // first is acknowledged.
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let connected = self.tls.connect(name, stream).await;
        connected.map_err(|error| self.explain(&error))
    }

    /// Why there was no agreement, and what helps where something does.
    fn explain(&self, error: &io::Error) -> String {
        let flag = self.flag;
        let inner = error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
                "nobody known here has signed its certificate; {flag} FILE adds certificates to trust"
            ),
            // As OpenSSL signs one for itself, unless told otherwise.
            _ if error.to_string().contains("CaUsedAsEndEntity") => {
                "its certificate is an authority's (CA:TRUE), not a server's".to_owned()
            }
            _ => format!("TLS: {error}"),
        }
    }
}

/// Bytes there and back, in whatever they are wrapped.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection for Box<dyn Duplex> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
