//! Doors that are no plain port: unix sockets, several at once, ports behind a proxy that announces its
//! clients.

use std::time::Duration;

use nemoserve::state::ServerConfig;
use nemoserve::transport::{ListenAddress, Listeners, Proxies};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixStream};

use crate::harness::{Plan, Server, completion, request};
use crate::wire::Wire;

const RUNNING: &str = "nemoserve_requests_running";
const CANCELLED: &str = "nemoserve_requests_cancelled_total";

/// A server on a port and on a unix socket in a folder.
async fn on_both(folder: &TempDir) -> (Server, impl AsyncFn() -> Wire<UnixStream>) {
    let path = folder.path().join("http.sock");
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = port.local_addr().expect("it is bound");
    drop(port);
    let addresses = [
        ListenAddress::Tcp(address.to_string()),
        ListenAddress::Unix(path.clone()),
    ];
    let doors = Listeners::open(Vec::new(), &addresses, 0o600).await;
    let doors = doors.expect("free");
    assert_eq!(doors.address(), Some(address));
    assert_eq!(doors.urls()[1], format!("unix:{}", path.display()));
    let mut server = Server::behind(Plan::default(), |_| doors).await;
    server.address = address;
    let open = async move || {
        let stream = UnixStream::connect(&path).await.expect("it listens");
        Wire::over(stream)
    };
    (server, open)
}

#[tokio::test]
async fn a_unix_socket_is_a_door_like_any_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut server, open) = on_both(&folder).await;
    let mut wire = open().await;
    let body = completion(20, true);
    for _ in 0..2 {
        wire.send(request("POST", "/v1/completions", "", &body))
            .await;
        assert!(wire.reply().await.body.ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(server.get("/health").await.status, 200, "so is the port");
    server.stop();
    assert!(wire.is_closed().await);
    assert_eq!(server.outcome().await, Ok(()));
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 0, "the socket's file stays behind");
}

#[tokio::test]
async fn whoever_leaves_a_unix_socket_is_told_from_whoever_listens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, open) = on_both(&folder).await;
    server.script.hold();
    let mut listening = open().await;
    let body = completion(5, false);
    listening
        .send(request("POST", "/v1/completions", "", &body))
        .await;
    listening.stream.shutdown().await.expect("open until now");
    for stream in [false, true] {
        let mut leaving = open().await;
        let body = completion(60_000, stream);
        leaving
            .send(request("POST", "/v1/completions", "", &body))
            .await;
        server
            .metric_becomes("nemoserve_http_requests_in_flight", 3.0)
            .await;
        drop(leaving);
        let cancelled = if stream { 2.0 } else { 1.0 };
        server.metric_becomes(CANCELLED, cancelled).await;
    }
    server.script.release();
    assert_eq!(listening.reply().await.status, 200);
    server.metric_becomes(RUNNING, 0.0).await;
    assert_eq!(server.metric(CANCELLED).await, Some(2.0));
}

fn behind_a_proxy(networks: &[&str]) -> ServerConfig {
    let networks = networks.iter().map(|text| text.parse().expect("a network"));
    ServerConfig {
        header_timeout: Duration::from_millis(200),
        proxies: Proxies {
            networks: networks.collect(),
            unix: false,
            send_header: true,
        },
        ..ServerConfig::default()
    }
}

#[tokio::test]
async fn a_proxys_connection_begins_with_its_header() {
    let server = Server::configured(behind_a_proxy(&["127.0.0.0/8"])).await;
    let health = request("GET", "/health", "", "");
    let v2 = |command: u8, family: u8, addresses: &[u8]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend([0x20 | command, family]);
        header.extend((addresses.len() as u16).to_be_bytes());
        header.extend(addresses);
        header
    };
    let with_extension: &[u8] = &[
        198, 51, 100, 7, 127, 0, 0, 1, 0x30, 0x39, 0x1f, 0x90, 4, 0, 3, b'a', b'b', b'c',
    ];
    for header in [
        b"PROXY TCP4 198.51.100.7 127.0.0.1 12345 8000\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::1 ::1 12345 8000\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        v2(1, 0x11, with_extension),
        v2(0, 0, &[]),
    ] {
        // Whole with the request behind it, and byte by byte.
        let mut wire = server.wire().await;
        wire.send([&header[..], health.as_bytes()].concat()).await;
        assert_eq!(wire.reply().await.status, 200, "{header:?}");
        wire.send(&health).await;
        assert_eq!(wire.reply().await.status, 200, "only the first has one");
        let mut wire = server.wire().await;
        for byte in &header {
            wire.send([*byte]).await;
            wire.stream.flush().await.expect("it reads");
            tokio::task::yield_now().await;
        }
        wire.send(&health).await;
        assert_eq!(wire.reply().await.status, 200, "{header:?}");
    }
    for broken in [
        health.clone().into_bytes(),
        b"PROXY TCP4 198.51.100.7\r\n".to_vec(),
        b"PROXY".to_vec(),
        format!("PROXY TCP4 {}", "1".repeat(200)).into_bytes(),
        v2(1, 0x11, &[1, 2, 3]),
        v2(7, 0x11, with_extension),
        v2(1, 0x11, &[0].repeat(60_000))[..6000].to_vec(),
    ] {
        let mut wire = server.wire().await;
        wire.send(&broken).await;
        assert!(wire.is_closed().await, "{broken:?}");
    }
}

#[tokio::test]
async fn a_stranger_cannot_claim_to_be_a_proxy() {
    let server = Server::configured(behind_a_proxy(&["10.0.0.0/8"])).await;
    // A probe that comes straight to the port is served, and a header is no HTTP.
    assert_eq!(server.get("/health").await.status, 200);
    let mut wire = server.wire().await;
    wire.send("PROXY TCP4 198.51.100.7 127.0.0.1 12345 8000\r\n\r\n")
        .await;
    wire.reply().await.expect_error(400, "invalid_http");
}
