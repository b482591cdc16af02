//! The front end's own cost, over a pretend model: CPU time per streamed token, requests per second,
//! time to the first byte of a long prompt and of a turn on a long history. `-- PATH turns` runs the last alone.
//!
//! Load comes from this process and the server is another one, whose CPU time the kernel counts: what
//! the load costs is not in the numbers. The server's share includes scheduler and pretend model.
//!
//! `cargo bench -p nemoserve-benches-pure --bench frontend -- PATH/TO/scripted_server`

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const MODEL: &str = "nvidia/nemotron-3-super-120b-a12b";
/// About one token a word in the demo's vocabulary.
const SCRIPT: &str = r#"[{"when": ["capital"], "say": ["The capital of France is Paris. "], "repeat": 200},
    {"say": ["Yes."]}]"#;
const QUESTION: &str = "What is the capital of France?";

fn main() {
    // `cargo bench` adds flags of its own.
    let binary = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let Some(binary) = binary else {
        println!("frontend: skipped, no server given (see the head of frontend.rs)");
        return;
    };
    if std::env::args().any(|argument| argument == "turns") {
        return all_turns(&binary);
    }
    for step_ms in [0, 10] {
        for num_connections in [1, 64, 512] {
            streams(&binary, step_ms, num_connections);
        }
    }
    for num_connections in [1, 64] {
        short_answers(&binary, num_connections);
    }
    for num_connections in [1, 8] {
        long_prompts(&binary, num_connections);
    }
    all_turns(&binary);
}

fn all_turns(binary: &str) {
    for num_tokens in [8_000, 64_000, 256_000] {
        next_turns(binary, num_tokens);
    }
}

/// A conversation of so many tokens goes on: from the last byte of a turn's request until it is admitted.
/// A stream's headers go out at admission, before any token.
fn next_turns(binary: &str, num_tokens: u64) {
    const NUM_TURNS: usize = 12;
    let server = Server::start(binary, 0);
    let mut connection = server.connect();
    let mut messages = String::new();
    let mut say = |role: &str, at: usize, num_sentences: usize| {
        let comma = if messages.is_empty() { "" } else { "," };
        let text = "The capital of France is Paris. ".repeat(num_sentences);
        write!(
            messages,
            r#"{comma}{{"role":"{role}","content":"{at} is it? {text}"}}"#
        )
        .expect("a string takes all");
        messages.clone()
    };
    let mut ask = |messages: &str| {
        let reply = connection.post(&format!(
            r#"{{"model":"{MODEL}","messages":[{messages}],"max_tokens":1,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        ));
        let prompt = number(&reply.body, "\"prompt_tokens\":");
        (
            reply.admitted,
            prompt,
            number(&reply.body, "\"cached_tokens\":"),
        )
    };
    // Some hundred tokens a message; how many is found out by asking.
    let mut at = 0;
    let (_, of_eight, _) = {
        for _ in 0..4 {
            say("user", at, 60);
            at += 2;
            say("assistant", at - 1, 60);
        }
        ask(&say("user", at, 1))
    };
    while (at as u64) < num_tokens * 8 / of_eight {
        say("assistant", at + 1, 60);
        at += 2;
        say("user", at, 60);
    }
    say("assistant", at + 1, 60);
    at += 2;
    let (cold, ..) = ask(&say("user", at, 1));
    let mut turns = Vec::new();
    for _ in 0..NUM_TURNS {
        say("assistant", at + 1, 1);
        at += 2;
        turns.push(ask(&say("user", at, 1)));
    }
    let &(_, prompt, cached) = turns.last().expect("there are turns");
    assert!(prompt > num_tokens * 9 / 10, "{prompt} tokens");
    assert!(prompt - cached < 200, "{cached} of {prompt} are cached");
    turns.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "a turn on {prompt} tokens: admitted after {:.1} ms (median; {:.1} to {:.1}), the first time after {:.0} ms",
        ms(turns[NUM_TURNS / 2].0),
        ms(turns[0].0),
        ms(turns[NUM_TURNS - 1].0),
        ms(cold),
    );
}

/// Every connection streams answers of 500 tokens, one after the other.
fn streams(binary: &str, step_ms: u64, num_connections: usize) {
    let server = Server::start(binary, step_ms);
    let body = body(QUESTION, 500, true);
    server.all(num_connections, 1, &body);
    let num_rounds = (512 / num_connections).clamp(1, if step_ms == 0 { 40 } else { 2 });
    let (cpu, kernel, start) = (server.cpu(), server.kernel(), Instant::now());
    let replies = server.all(num_connections, num_rounds, &body);
    let (wall, kernel) = (start.elapsed(), server.kernel().saturating_sub(kernel));
    let cpu = server.cpu().saturating_sub(cpu);
    let num_tokens: u64 = replies
        .iter()
        .map(|reply| number(&reply.body, "\"completion_tokens\":"))
        .sum();
    let num_events: usize = replies
        .iter()
        .map(|reply| reply.body.matches("data: ").count())
        .sum();
    assert_eq!(num_tokens, 500 * replies.len() as u64);
    println!(
        "{num_connections:4} streams, steps of {step_ms:2} ms: {:5.1} us CPU per token ({:.1} of it in the kernel), {:6.0} tokens/s, {:.2} events per token",
        cpu.as_secs_f64() * 1e6 / num_tokens as f64,
        kernel.as_secs_f64() * 1e6 / num_tokens as f64,
        num_tokens as f64 / wall.as_secs_f64(),
        num_events as f64 / num_tokens as f64,
    );
}

/// Whole answers of a few tokens.
fn short_answers(binary: &str, num_connections: usize) {
    let server = Server::start(binary, 0);
    let body = body("Is it?", 8, false);
    server.all(num_connections, 10, &body);
    let (cpu, start) = (server.cpu(), Instant::now());
    let replies = server.all(num_connections, 5000 / num_connections, &body);
    let (wall, cpu) = (start.elapsed(), server.cpu().saturating_sub(cpu));
    let num = replies.len() as f64;
    println!(
        "{num_connections:4} connections, short answers: {:6.0} requests/s, {:5.0} us CPU per request",
        num / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / num,
    );
}

/// Prompts of more than 60,000 tokens, each another from its first word on.
fn long_prompts(binary: &str, num_connections: usize) {
    let server = Server::start(binary, 0);
    let text = "What is the capital of France? The capital of France is Paris. ".repeat(4400);
    let bodies: Vec<_> = (0..24)
        .map(|i| body(&format!("{i} is it? {text}"), 1, true))
        .collect();
    let (cpu, start) = (server.cpu(), Instant::now());
    let server_ref = &server;
    let replies: Vec<Reply> = thread::scope(|scope| {
        let parts = bodies.chunks(bodies.len() / num_connections);
        let threads: Vec<_> = parts
            .map(|part| {
                scope.spawn(move || {
                    let mut connection = server_ref.connect();
                    part.iter()
                        .map(|body| connection.post(body))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let (wall, cpu) = (start.elapsed(), server.cpu().saturating_sub(cpu));
    let num_tokens = number(&replies[0].body, "\"prompt_tokens\":");
    assert!(num_tokens >= 60_000, "{num_tokens} tokens");
    let mut first: Vec<_> = replies.iter().map(|reply| reply.first_byte).collect();
    first.sort();
    println!(
        "{num_connections:4} connections, prompts of {num_tokens} tokens: first byte after {:.0} ms (median), {:.1} requests/s, {:.0} ms CPU per request",
        first[first.len() / 2].as_secs_f64() * 1e3,
        replies.len() as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e3 / replies.len() as f64,
    );
}

fn body(question: &str, max_tokens: u32, stream: bool) -> String {
    let options = if stream {
        r#","stream_options":{"include_usage":true}"#
    } else {
        ""
    };
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{question}"}}],"max_tokens":{max_tokens},"stream":{stream}{options}}}"#
    )
}

fn number(text: &str, key: &str) -> u64 {
    let at = text
        .rfind(key)
        .unwrap_or_else(|| panic!("no {key} in {text}"))
        + key.len();
    let digits = text[at..].split(|c: char| !c.is_ascii_digit()).next();
    digits
        .and_then(|digits| digits.parse().ok())
        .expect("a number")
}

/// The server's process; it ends with this value.
struct Server {
    process: Child,
    address: String,
    script: std::path::PathBuf,
}

impl Server {
    fn start(binary: &str, step_ms: u64) -> Self {
        let script = std::env::temp_dir().join(format!("frontend-{}.json", std::process::id()));
        fs::write(&script, SCRIPT).expect("the temporary folder takes a file");
        let mut process = Command::new(binary)
            .arg(&script)
            .env("SCRIPT_STEP_MS", step_ms.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        let mut line = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says where it listens");
        let address = line.trim().trim_start_matches("http://").to_owned();
        Self {
            process,
            address,
            script,
        }
    }

    fn connect(&self) -> Connection {
        let socket = TcpStream::connect(&self.address).expect("it listens");
        socket.set_nodelay(true).expect("a TCP socket");
        Connection(BufReader::new(socket))
    }

    /// Each connection asks the same so many times.
    fn all(&self, num_connections: usize, num_rounds: usize, body: &str) -> Vec<Reply> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..num_connections)
                .map(|_| {
                    scope.spawn(move || {
                        let mut connection = self.connect();
                        (0..num_rounds)
                            .map(|_| connection.post(body))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("no panic"))
                .collect()
        })
    }

    /// User and system time so far.
    fn cpu(&self) -> Duration {
        self.ticks().into_iter().sum()
    }

    /// System time alone: sockets and wake-ups, the receiving side of the loopback among them.
    fn kernel(&self) -> Duration {
        self.ticks()[1]
    }

    /// Both, in the kernel's ticks of 10 ms.
    fn ticks(&self) -> [Duration; 2] {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = fs::read_to_string(Path::new(&path)).expect("it runs");
        // Fields 14 and 15, counted from behind the name, which may hold blanks.
        let rest = stat.rsplit(')').next().expect("it has a name");
        let mut fields = rest.split_whitespace().skip(11);
        [(); 2].map(|()| {
            let ticks: u64 = fields
                .next()
                .and_then(|field| field.parse().ok())
                .expect("a number");
            Duration::from_millis(ticks * 10)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; the file may be gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.script);
    }
}

struct Reply {
    /// Since the request's first byte.
    first_byte: Duration,
    /// Since its last byte.
    admitted: Duration,
    body: String,
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn post(&mut self, body: &str) -> Reply {
        let start = Instant::now();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .expect("it reads");
        let sent = Instant::now();
        let status = self.line();
        let (first_byte, admitted) = (start.elapsed(), sent.elapsed());
        assert!(status.contains(" 200 "), "{status}");
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = self.line();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        let mut body = Vec::new();
        loop {
            if chunked {
                length = usize::from_str_radix(&self.line(), 16).expect("a size");
            }
            let start = body.len();
            body.resize(start + length, 0);
            self.0.read_exact(&mut body[start..]).expect("it goes on");
            if !chunked {
                break;
            }
            self.line();
            if length == 0 {
                break;
            }
        }
        Reply {
            first_byte,
            admitted,
            body: String::from_utf8(body).expect("UTF-8"),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        line.truncate(line.trim_end().len());
        line
    }
}
