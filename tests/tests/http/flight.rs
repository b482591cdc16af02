//! The flight recorder: what it gives away, and that it can be run again.

use std::io::Cursor;
use std::os::unix::fs::PermissionsExt as _;

use engine::flight::{Contents, ReplayError, replay};
use nemoserve::flight::FlightConfig;
use nemoserve::state::ServerConfig;

use crate::harness::{MODEL, Server, completion, eventually};

/// Streams that come together, one that is left, and one that is turned away.
async fn busy(server: &Server) {
    let mut left = server.wire().await;
    let body = completion(2000, true);
    left.send(crate::harness::request(
        "POST",
        "/v1/completions",
        "",
        &body,
    ))
    .await;
    left.head().await;
    left.chunk().await;
    drop(left);
    let one = completion(40, true);
    let other = format!(
        r#"{{"model":"{MODEL}","prompt":"SECRETPROMPT and what follows it","max_tokens":9,"n":2,"cache_salt":"SECRETSALT"}}"#
    );
    let (first, second, third) = tokio::join!(
        server.post("/v1/completions", &one),
        server.post("/v1/completions", &other),
        server.post("/v1/completions", &other),
    );
    for reply in [first, second, third] {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
}

#[tokio::test]
async fn what_ran_can_be_run_again() {
    let server = Server::start().await;
    busy(&server).await;
    let reply = server.get("/debug/flight").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "application/jsonl");
    assert!(!reply.body.contains("SECRET"), "{}", reply.body);
    let replayed = replay(Cursor::new(&reply.body)).expect("the plans are equal");
    assert_eq!(replayed.num_requests, 4);
    assert!(
        replayed.num_plans > 40 && replayed.num_tokens > 58,
        "{replayed:?}"
    );

    let lines: Vec<_> = reply.body.lines().collect();
    let arrival = lines.iter().rposition(|line| line.contains("\"add\""));
    let mut lines = lines.clone();
    lines.remove(arrival.expect("somebody came"));
    match replay(Cursor::new(lines.join("\n"))) {
        Err(ReplayError::Differs { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_wants_the_key() {
    let config = ServerConfig {
        api_keys: vec!["secret".into()],
        ..ServerConfig::default()
    };
    let server = Server::configured(config).await;
    let reply = server.get("/debug/flight").await;
    reply.expect_error(401, "invalid_api_key");
    let headers = "authorization: Bearer secret\r\n";
    let reply = server.request("GET", "/debug/flight", headers, "").await;
    assert_eq!(reply.status, 200);
    let head = server.request("HEAD", "/debug/flight", headers, "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_failure_leaves_a_file() {
    for (contents, is_plain) in [(Contents::Hidden, false), (Contents::Plain, true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::configured(ServerConfig {
            flight: FlightConfig {
                dir: Some(folder.path().into()),
                contents,
                ..FlightConfig::default()
            },
            ..ServerConfig::default()
        })
        .await;
        busy(&server).await;
        server.script.fail();
        let reply = server.post("/v1/completions", &completion(3, false)).await;
        assert_eq!(reply.status, 500, "{reply:?}");
        server.outcome().await.expect_err("the engine has failed");
        let files: Vec<_> = std::fs::read_dir(folder.path())
            .expect("it is there")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let [file] = &files[..] else {
            panic!("one file: {files:?}");
        };
        let mode = std::fs::metadata(file).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(file).expect("lines of JSON");
        assert_eq!(text.contains("SECRETSALT"), is_plain);
        let replayed = replay(Cursor::new(&text)).expect("the plans are equal");
        assert_eq!(replayed.num_requests, 5);
        let last = text.lines().last().expect("many");
        assert!(last.contains("\"plan\""), "the step that failed: {last}");
    }
}

#[tokio::test]
async fn what_hangs_can_be_asked_still() {
    let server = Server::start().await;
    server.script.hold();
    let mut wire = server.wire().await;
    let body = completion(3, false);
    wire.send(crate::harness::request(
        "POST",
        "/v1/completions",
        "",
        &body,
    ))
    .await;
    eventually("it is planned", || {
        server.state.engine.stats().scheduler.num_steps > 0
            || server.state.engine.flight().num_calls() > 2
    })
    .await;
    let reply = server.get("/debug/flight").await;
    assert!(reply.body.contains("\"add\""), "{}", reply.body);
    replay(Cursor::new(&reply.body)).expect("as far as it came");
    server.script.release();
    assert_eq!(wire.reply().await.status, 200);
}
