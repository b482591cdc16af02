//! HTTP/2 frames by hand: floods and bombs that no client library would send. Each may cost its own
//! connection, and nothing else.

use std::time::Duration;

use nemoserve::state::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Server, completion};
use crate::wire::PATIENCE;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method GET`, `:scheme http`, `:path /`, `:authority x`, by the static table.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'x'];
/// `:method POST`, the others the same, to `/v1/completions`.
fn post() -> Vec<u8> {
    let path = b"/v1/completions";
    let mut block = vec![0x83, 0x86, 0x44, path.len() as u8];
    block.extend(path);
    block.extend([0x41, 1, b'x']);
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection after its preface.
struct Frames(TcpStream);

impl Frames {
    async fn open(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("it listens");
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        stream.write_all(&hello).await.expect("it reads");
        Self(stream)
    }

    /// False once the server takes no more.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = timeout(PATIENCE, self.0.write_all(bytes)).await;
        sent.expect("it reads, or it closes").is_ok()
    }

    /// Kind, stream and payload of the next frame; `None` at the end.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; len as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some((head[3], stream, payload))
        };
        timeout(PATIENCE, read)
            .await
            .expect("something comes or it closes")
    }

    /// All that comes until the server closes.
    async fn rest(&mut self) -> Vec<(u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// Nobody else has noticed.
async fn is_unharmed(server: &Server) {
    assert_eq!(server.get("/health").await.status, 200);
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_connections_open", 1.0)
        .await;
}

#[tokio::test]
async fn limits_are_announced() {
    let server = Server::start().await;
    let mut frames = Frames::open(&server).await;
    let (kind, _, payload) = frames.next().await.expect("settings come first");
    assert_eq!(kind, SETTINGS);
    let settings: Vec<(u16, u32)> = payload
        .chunks_exact(6)
        .map(|one| {
            let id = u16::from_be_bytes([one[0], one[1]]);
            (id, u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
        })
        .collect();
    assert!(settings.contains(&(3, 256)), "streams: {settings:?}");
    assert!(settings.contains(&(6, 64 << 10)), "headers: {settings:?}");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let server = Server::start().await;
    let mut frames = Frames::open(&server).await;
    // Requests whose bodies do not come: all of them stay open.
    for nth in 0..300 {
        let sent = frames
            .send(&frame(HEADERS, END_HEADERS, 2 * nth + 1, &post()))
            .await;
        assert!(sent);
    }
    loop {
        let (kind, stream, payload) = frames.next().await.expect("the connection stays");
        if kind == RST_STREAM {
            // REFUSED_STREAM: it may be sent again.
            assert_eq!(payload, 7_u32.to_be_bytes());
            assert!(stream > 2 * 255 + 1, "{stream} was within the limit");
            break;
        }
        assert_ne!(kind, GOAWAY);
    }
    drop(frames);
    is_unharmed(&server).await;
}

#[tokio::test]
async fn a_head_in_endless_pieces_ends_the_connection() {
    let server = Server::start().await;
    let mut frames = Frames::open(&server).await;
    let mut goes_on = frames.send(&frame(HEADERS, END_STREAM, 1, GET)).await;
    let mut num_sent = 0;
    while goes_on && num_sent < 100_000 {
        goes_on = frames.send(&frame(CONTINUATION, 0, 1, &[])).await;
        num_sent += 1;
    }
    assert!(!goes_on, "{num_sent} pieces of a head were taken");
    is_unharmed(&server).await;
}

#[tokio::test]
async fn a_head_that_unpacks_to_megabytes_is_refused() {
    let server = Server::start().await;
    let mut frames = Frames::open(&server).await;
    // One field of 4,000 bytes into the dynamic table, and references to it of a byte each.
    let mut block = GET.to_vec();
    block.extend([0x40, 1, b'b', 0x7f]);
    // 4000 as a prefixed integer of 7 bits: 127 and the rest in base 128.
    let rest = 4000_u32 - 127;
    block.extend([(rest % 128 + 128) as u8, (rest / 128) as u8]);
    block.extend([b'x'; 4000]);
    block.extend([0xbe; 12_000]);
    frames
        .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block))
        .await;
    loop {
        let Some((kind, _, _)) = frames.next().await else {
            break;
        };
        if [HEADERS, RST_STREAM, GOAWAY].contains(&kind) {
            break;
        }
    }
    drop(frames);
    // It never was a request.
    let answered = r#"nemoserve_requests_total{route="/",status="200"}"#;
    assert_eq!(server.metric(answered).await, Some(0.0));
    is_unharmed(&server).await;
}

#[tokio::test]
async fn requests_taken_back_at_once_end_the_connection() {
    let server = Server::start().await;
    server.script.hold();
    let mut frames = Frames::open(&server).await;
    let mut goes_on = true;
    let mut nth = 0;
    while goes_on && nth < 200_000 {
        let stream = 2 * nth + 1;
        let mut pair = frame(HEADERS, END_HEADERS, stream, &post());
        // CANCEL.
        pair.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        goes_on = frames.send(&pair).await;
        nth += 1;
    }
    assert!(!goes_on, "{nth} requests were made to be taken back");
    server.script.release();
    is_unharmed(&server).await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_given_up() {
    let server = Server::configured(ServerConfig {
        write_timeout: Duration::from_millis(200),
        sse_keepalive: Duration::from_millis(20),
        ..ServerConfig::default()
    })
    .await;
    let mut frames = Frames::open(&server).await;
    // INITIAL_WINDOW_SIZE 0: frames are taken, bodies are not.
    let no_window = [0, 4, 0, 0, 0, 0];
    assert!(frames.send(&frame(SETTINGS, 0, 0, &no_window)).await);
    let mut request = frame(HEADERS, END_HEADERS, 1, &post());
    let body = completion(60_000, true);
    request.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
    assert!(frames.send(&request).await);
    let rest = frames.rest().await;
    assert!(rest.iter().any(|(kind, ..)| *kind == HEADERS), "{rest:?}");
    assert!(!rest.iter().any(|(kind, ..)| *kind == DATA), "{rest:?}");
    is_unharmed(&server).await;
    let reply = server.post("/v1/completions", &completion(20, true)).await;
    assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_let_go() {
    let server = Server::configured(ServerConfig {
        idle_timeout: Duration::from_millis(80),
        ..ServerConfig::default()
    })
    .await;
    let mut silent = Frames::open(&server).await;
    let mut begun = Frames::open(&server).await;
    // A head whose end does not come.
    assert!(begun.send(&frame(HEADERS, END_STREAM, 1, GET)).await);
    for frames in [&mut silent, &mut begun] {
        let rest = frames.rest().await;
        assert!(!rest.iter().any(|(kind, ..)| *kind == HEADERS), "{rest:?}");
    }
    is_unharmed(&server).await;
}
