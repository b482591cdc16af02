//! What routers are told over ZeroMQ, by the real daemon.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zeromq::{Socket as _, SocketRecv as _, SubSocket};

const PATIENCE: Duration = Duration::from_mins(1);
const BLOCK_SIZE: usize = 16;

struct Daemon {
    child: Child,
    address: String,
}

impl Daemon {
    /// With a cache that a few prompts fill.
    fn start(endpoint: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nemoserve"))
            .args(["serve", "--listen", "127.0.0.1:0", "--block-size", "16"])
            .args(["--cache-memory", "3MiB", "--max-num-seqs", "2"])
            .args([
                "--kv-events-endpoint",
                endpoint,
                "--kv-events-topic",
                "kv@here@demo",
            ])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut line = |part: &str| loop {
            let line = lines.next().expect("it goes on").expect("logs are UTF-8");
            if line.contains(part) {
                return line;
            }
        };
        let address = line("http://127.0.0.1:");
        let address = address.split("http://").nth(1).expect("just found");
        let address = address
            .split([' ', '/'])
            .next()
            .expect("an address")
            .to_owned();
        // Nobody else may fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let daemon = Self { child, address };
        let begin = Instant::now();
        while !daemon
            .exchange("GET /ready HTTP/1.0\r\n\r\n")
            .contains(" 200 ")
        {
            assert!(begin.elapsed() < PATIENCE, "it never gets ready");
        }
        daemon
    }

    fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Reads a prompt of its own.
    fn read(&self, salt: &str, prompt: &[u32]) {
        let body = json!({
            "model": "nemoserve-demo", "prompt": prompt, "max_tokens": 1, "cache_salt": salt,
        });
        let body = body.to_string();
        let length = body.len();
        let answer = self.exchange(&format!(
            "POST /v1/completions HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        assert!(answer.contains(" 200 "), "{answer}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a router knows.
#[derive(Default)]
struct Router {
    /// The tokens of each block, and the block before it.
    blocks: HashMap<u64, (Option<u64>, Vec<u32>)>,
    removed: HashSet<u64>,
    last_number: Option<u64>,
}

impl Router {
    fn hear(&mut self, frames: &[bytes::Bytes]) {
        assert_eq!(frames.len(), 3);
        assert_eq!(&frames[0][..], b"kv@here@demo");
        let number = u64::from_be_bytes(frames[1][..].try_into().expect("eight bytes"));
        if let Some(last) = self.last_number {
            assert_eq!(number, last + 1, "a gap");
        }
        self.last_number = Some(number);
        let (seconds, events, rank): (f64, Vec<Value>, u32) =
            rmp_serde::from_slice(&frames[2]).expect("it is as published");
        assert!(seconds > 1.7e9 && rank == 0);
        for event in events {
            let hashes = event[1].as_array().expect("hashes");
            let hashes = hashes.iter().map(|hash| hash.as_u64().expect("a number"));
            match event[0].as_str() {
                Some("BlockStored") => {
                    assert_eq!(event[4], BLOCK_SIZE);
                    let tokens: Vec<u32> =
                        serde_json::from_value(event[3].clone()).expect("tokens");
                    let mut parent = event[2].as_u64();
                    for (hash, tokens) in hashes.zip(tokens.chunks(BLOCK_SIZE)) {
                        let block = (parent, tokens.to_vec());
                        assert_eq!(self.blocks.insert(hash, block), None, "stored twice");
                        parent = Some(hash);
                    }
                }
                Some("BlockRemoved") => {
                    for hash in hashes {
                        assert!(self.blocks.remove(&hash).is_some(), "never stored");
                        self.removed.insert(hash);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The tokens up to the end of a block.
    fn prefix(&self, hash: u64) -> Option<Vec<u32>> {
        let (parent, tokens) = self.blocks.get(&hash)?;
        let mut prefix = match parent {
            Some(parent) => self.prefix(*parent)?,
            None => Vec::new(),
        };
        prefix.extend(tokens);
        Some(prefix)
    }

    /// The longest known beginning of a prompt.
    fn num_known(&self, prompt: &[u32]) -> usize {
        let prefixes = self.blocks.keys().filter_map(|hash| self.prefix(*hash));
        let known = prefixes.filter(|prefix| prompt.starts_with(prefix));
        known.map(|prefix| prefix.len()).max().unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_knows_what_can_be_hit() {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("bound").port()
    };
    let daemon = Daemon::start(&format!("tcp://127.0.0.1:{port}"));
    let mut socket = SubSocket::new();
    let connected = socket.connect(&format!("tcp://127.0.0.1:{port}")).await;
    connected.expect("it listens");
    socket.subscribe("kv@").await.expect("it can be asked for");
    let mut router = Router::default();
    let prompt = |of: u32| -> Vec<u32> { (0..80).map(|at| (of * 131 + at * 7) % 900).collect() };
    let mut hear = async |router: &mut Router, patience| {
        match tokio::time::timeout(patience, socket.recv()).await {
            Ok(message) => router.hear(&message.expect("whole").into_vec()),
            Err(_) => return false,
        }
        true
    };

    // A subscription takes its time to arrive.
    let begin = Instant::now();
    let mut num_asked = 0;
    loop {
        daemon.read("", &prompt(num_asked));
        if hear(&mut router, Duration::from_millis(200)).await {
            break;
        }
        num_asked += 1;
        assert!(begin.elapsed() < PATIENCE, "nothing is ever told");
    }
    // Its end is a snapshot: whoever goes on from there has all of it.
    assert_eq!(router.num_known(&prompt(num_asked)), 80);
    assert_eq!(router.num_known(&prompt(num_asked + 1)), 0);

    // Whoever has a salt is not told of; the next without one is.
    daemon.read("mine", &prompt(1000));
    daemon.read("", &prompt(1001));
    while router.num_known(&prompt(1001)) == 0 {
        assert!(hear(&mut router, PATIENCE).await, "it is never told");
    }
    assert_eq!(router.num_known(&prompt(1000)), 0);

    // In a cache that is too small for all of them, what came first goes first.
    for of in 2000.. {
        daemon.read("", &prompt(of));
        while hear(&mut router, Duration::from_millis(20)).await {}
        if !router.removed.is_empty() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "nothing is ever evicted");
    }
    // What is left is whole: no block without those before it.
    for hash in router.blocks.keys() {
        assert!(
            router.prefix(*hash).is_some(),
            "a block without its beginning"
        );
    }
}
