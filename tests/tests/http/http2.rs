//! Cleartext HTTP/2 with prior knowledge.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::harness::{Server, completion};

async fn connect(server: &Server) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.address)
        .await
        .expect("it listens");
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("it speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

fn post(server: &Server, path: &str, body: String) -> http::Request<Full<Bytes>> {
    http::Request::post(format!("http://{}{path}", server.address))
        .body(Full::from(body))
        .expect("well-formed")
}

#[tokio::test]
async fn requests_share_a_connection() {
    let server = Server::start().await;
    let mut sender = connect(&server).await;
    for path in ["/health", "/ready", "/nowhere"] {
        let request = http::Request::get(format!("http://{}{path}", server.address))
            .body(Full::default())
            .expect("well-formed");
        let response = sender.send_request(request).await.expect("answered");
        assert_eq!(response.status() == 200, path != "/nowhere");
        assert!(response.headers().contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn streams_run_side_by_side_and_a_reset_cancels_one() {
    let server = Server::start().await;
    server.script.hold();
    let mut sender = connect(&server).await;
    let first = sender
        .send_request(post(&server, "/v1/completions", completion(10_000, true)))
        .await
        .expect("admitted");
    let second = sender
        .send_request(post(&server, "/v1/completions", completion(3, true)))
        .await
        .expect("admitted");
    drop(first);
    server.script.release();
    let body = second
        .into_body()
        .collect()
        .await
        .expect("complete")
        .to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_requests_cancelled_total", 1.0)
        .await;
}

#[tokio::test]
async fn a_storm_of_resets_ends_the_connection_and_nothing_else() {
    let server = Server::start().await;
    server.script.hold();
    let mut sender = connect(&server).await;
    for _ in 0..500 {
        let Ok(()) = sender.ready().await else { break };
        // Dropped at once: the request goes out and its reset follows.
        drop(sender.send_request(post(&server, "/v1/completions", completion(50, true))));
        tokio::task::yield_now().await;
    }
    drop(sender);
    server.script.release();
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_requests_waiting", 0.0)
        .await;
    assert_eq!(server.get("/health").await.status, 200);
}
