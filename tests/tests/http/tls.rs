//! Real handshakes: which protocol they settle on, who is let in, how certificates change while
//! connections run.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nemoserve::state::ServerConfig;
use nemoserve::transport::{Listeners, Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::harness::{Plan, Server, completion, eventually, request};
use crate::wire::Wire;

type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Certificates of a test, and where the server reads them.
struct Shelf {
    folder: TempDir,
    tls: Arc<Tls>,
    cert: CertificateDer<'static>,
}

impl Shelf {
    fn new(client_ca: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cert = put(&folder);
        let client_ca = client_ca.map(|pem| {
            let path = folder.path().join("client-ca.pem");
            fs::write(&path, pem).expect("writable");
            path
        });
        let files = TlsFiles {
            cert: path(&folder, "cert.pem"),
            key: path(&folder, "key.pem"),
            client_ca,
        };
        let tls = Tls::open(files).expect("valid");
        Self { folder, tls, cert }
    }

    async fn server(&self, config: ServerConfig) -> Server {
        let plan = Plan {
            config,
            ..Plan::default()
        };
        let tls = Some(Arc::clone(&self.tls));
        Server::behind(plan, |listener| Listeners::from(listener).with_tls(tls)).await
    }
}

fn path(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// A fresh certificate with its key.
fn put(folder: &TempDir) -> CertificateDer<'static> {
    let names = vec!["localhost".to_owned()];
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(path(folder, "cert.pem"), cert.pem()).expect("writable");
    fs::write(path(folder, "key.pem"), signing_key.serialize_pem()).expect("writable");
    cert.der().clone()
}

/// Somebody who signs, and somebody whom it has signed.
fn authority_and_client() -> (String, Identity) {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("valid");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let root = params.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let client = CertificateParams::new(vec!["client".to_owned()]).expect("valid");
    let client = client.signed_by(&key, &issuer).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    (root.pem(), (client.der().clone(), key))
}

/// Shakes hands with a server that has `cert`.
async fn connect(
    server: &Server,
    cert: &CertificateDer<'static>,
    protocols: &[&str],
    identity: Option<Identity>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => config
            .with_client_auth_cert(vec![cert], key)
            .expect("the key is the certificate's"),
    };
    let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    let stream = TcpStream::connect(server.address)
        .await
        .expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

async fn is_served(stream: TlsStream<TcpStream>) -> bool {
    let mut wire = Wire::over(stream);
    wire.send(request("GET", "/health", "", "")).await;
    wire.reply().await.status == 200
}

#[tokio::test]
async fn both_protocols_are_spoken_and_the_client_chooses() {
    let shelf = Shelf::new(None);
    let server = shelf.server(ServerConfig::default()).await;
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = connect(&server, &shelf.cert, offered, None).await;
        let stream = stream.expect("they agree");
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
        if chosen != Some(b"h2") {
            assert!(is_served(stream).await, "{offered:?}");
            continue;
        }
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("it speaks HTTP/2");
        tokio::spawn(connection);
        let request = http::Request::get("https://localhost/health")
            .body(Full::<Bytes>::default())
            .expect("well-formed");
        let response = sender.send_request(request).await.expect("answered");
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn streams_run_over_tls_and_whoever_leaves_frees_them() {
    let shelf = Shelf::new(None);
    let server = shelf.server(ServerConfig::default()).await;
    let open = || async {
        let stream = connect(&server, &shelf.cert, &[], None).await;
        Wire::over(stream.expect("they agree"))
    };
    let mut wire = open().await;
    let body = completion(200, true);
    wire.send(request("POST", "/v1/completions", "", &body))
        .await;
    assert!(wire.reply().await.body.ends_with("data: [DONE]\n\n"));
    server.script.hold();
    for stream in [false, true] {
        let mut wire = open().await;
        let body = completion(60_000, stream);
        wire.send(request("POST", "/v1/completions", "", &body))
            .await;
        let num_generating = || server.state.num_generating.load(Ordering::Acquire);
        eventually("it has come", || num_generating() == 1).await;
        drop(wire);
        eventually("it is free", || num_generating() == 0).await;
    }
    server.script.release();
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_so() {
    let shelf = Shelf::new(None);
    let server = shelf.server(ServerConfig::default()).await;
    let mut wire = server.wire().await;
    wire.send(request("GET", "/health", "", "")).await;
    let reply = wire.reply().await;
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(reply.error()["code"], "https_required");
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn a_handshake_that_goes_nowhere_is_cut() {
    let shelf = Shelf::new(None);
    let server = shelf
        .server(ServerConfig {
            header_timeout: Duration::from_millis(80),
            ..ServerConfig::default()
        })
        .await;
    for beginning in [&b""[..], &[22], &[22, 3, 1, 0x40, 0, 1, 0]] {
        let mut wire = server.wire().await;
        wire.send(beginning).await;
        assert!(wire.is_closed().await, "{beginning:?}");
    }
    // Not even a handshake: an alert may come before the end.
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("it listens");
    stream
        .write_all(&[22, 3, 1, 0, 4, 0xff, 0xff, 0xff, 0xff])
        .await
        .expect("it reads");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() <= 7, "{rest:?}");
    let metrics = server.state.metrics.render(&server.state.engine);
    assert!(metrics.contains("\nnemoserve_connections_failed_total 4\n"));
}

#[tokio::test]
async fn only_clients_that_were_vouched_for_get_in() {
    let (root, client) = authority_and_client();
    let (_, stranger) = authority_and_client();
    let shelf = Shelf::new(Some(&root));
    let server = shelf.server(ServerConfig::default()).await;
    let known = connect(&server, &shelf.cert, &[], Some(client)).await;
    assert!(is_served(known.expect("vouched for")).await);
    for identity in [None, Some(stranger)] {
        // In TLS 1.3 the client is done before the server has judged it.
        let Ok(mut stream) = connect(&server, &shelf.cert, &[], identity).await else {
            continue;
        };
        let _ = stream
            .write_all(request("GET", "/health", "", "").as_bytes())
            .await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        assert!(read.is_err() && answer.is_empty(), "{answer:?}");
    }
}

#[tokio::test]
async fn certificates_change_while_connections_run() {
    let shelf = Shelf::new(None);
    let server = shelf.server(ServerConfig::default()).await;
    let old = connect(&server, &shelf.cert, &[], None).await;
    let mut old = Wire::over(old.expect("they agree"));
    let second = put(&shelf.folder);
    let now = |cert: CertificateDer<'static>| {
        let server = &server;
        async move { connect(server, &cert, &[], None).await.is_ok() }
    };
    assert!(now(shelf.cert.clone()).await, "nobody has read it yet");
    assert!(shelf.tls.reload());
    assert!(now(second.clone()).await && !now(shelf.cert.clone()).await);
    old.send(request("GET", "/health", "", "")).await;
    assert_eq!(old.reply().await.status, 200, "open connections stay");
    // Neither a key of another certificate, nor what is none, nor nothing at all.
    let key = path(&shelf.folder, "key.pem");
    let good = fs::read(&key).expect("there");
    let other = KeyPair::generate().expect("a key").serialize_pem();
    for bad in [other.as_bytes(), b"no key"] {
        fs::write(&key, bad).expect("writable");
        assert!(!shelf.tls.reload());
        assert!(now(second.clone()).await);
    }
    fs::remove_file(&key).expect("there");
    assert!(!shelf.tls.reload());
    assert!(now(second.clone()).await);
    fs::write(&key, good).expect("writable");
    assert!(shelf.tls.reload());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    put(&folder);
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| path(&folder, name));
    let missing = path(&folder, "missing.pem");
    let files = |cert: &PathBuf, key: &PathBuf, client_ca: Option<&PathBuf>| TlsFiles {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: client_ca.cloned(),
    };
    for (files, flag) in [
        (files(&missing, &key, None), "--tls-cert"),
        (files(&key, &key, None), "--tls-cert"),
        (files(&cert, &missing, None), "--tls-key"),
        (files(&cert, &cert, None), "--tls-key"),
        (files(&cert, &key, Some(&missing)), "--tls-client-ca"),
        (files(&cert, &key, Some(&key)), "--tls-client-ca"),
    ] {
        let error = Tls::open(files).err().expect(flag);
        assert!(error.contains(flag), "{flag}: {error}");
        assert!(error.contains(".pem"), "{error}");
    }
}
