//! The binary as its operators meet it: exit codes, signals, logs, and the other commands.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::nemoserve;

const PATIENCE: Duration = Duration::from_mins(1);

fn run(args: &[&str]) -> Output {
    let output = nemoserve().args(args).output();
    output.expect("the binary runs")
}

#[track_caller]
fn refused(args: &[&str], code: i32, says: &str) {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(says), "{args:?}: {text}");
}

/// What a bench says, as programs read it.
#[track_caller]
fn bench(args: &[&str]) -> serde_json::Value {
    let output = run(&[&["bench", "--json"][..], args].concat());
    let (text, errors) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    serde_json::from_slice(text).expect("it is JSON")
}

/// A daemon with the demo model on a port of its own.
struct Daemon {
    child: Child,
    address: String,
    /// Its standard error, line by line.
    lines: Receiver<String>,
    reader: Option<JoinHandle<String>>,
}

impl Daemon {
    fn start(args: &[&str]) -> Self {
        let mut command = nemoserve();
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(args);
        let daemon = Self::spawn(&mut command);
        daemon.wait_until_ready();
        daemon
    }

    /// Waits for its first address and no longer.
    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(stderr).lines() {
                let line = line.expect("logs are UTF-8");
                all.push_str(&line);
                all.push('\n');
                // Nobody may be waiting any more.
                let _ = sender.send(line);
            }
            all
        });
        let mut daemon = Self {
            child,
            address: String::new(),
            lines,
            reader: Some(reader),
        };
        let line = daemon.wait_for_line("://127.0.0.1:");
        let address = line.split("://").nth(1).expect("just found");
        let address = address.split([' ', '/', ',']).next().expect("an address");
        address.clone_into(&mut daemon.address);
        daemon
    }

    fn wait_until_ready(&self) {
        let begin = Instant::now();
        while !self.get("/ready").starts_with("HTTP/1.1 200") {
            assert!(begin.elapsed() < PATIENCE, "it never gets ready");
            std::thread::yield_now();
        }
    }

    fn wait_for_line(&self, part: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line with {part:?} came"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// A whole exchange, head and body.
    fn exchange(&self, request: &str) -> String {
        let mut stream = self.send(request);
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        stream
    }

    fn get(&self, path: &str) -> String {
        self.exchange(&format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        ))
    }

    /// What is counted, once it has a line that begins so.
    fn metrics_with(&self, line: &str) -> String {
        let begin = Instant::now();
        loop {
            let text = self.get("/metrics");
            if text.contains(&format!("\n{line}")) {
                return text;
            }
            assert!(begin.elapsed() < PATIENCE, "never {line}: {text}");
            std::thread::yield_now();
        }
    }

    /// Begins a stream that will not end by itself for long, and waits for its first bytes.
    fn endless_stream(&self) -> TcpStream {
        let body = r#"{"model":"nemoserve-demo","prompt":"Once upon a time","max_tokens":3900,"ignore_eos":true,"stream":true}"#;
        let mut stream = self.send(&post("/v1/completions", "", body));
        let mut first = [0; 64];
        stream.read_exact(&mut first).expect("the stream begins");
        assert!(first.starts_with(b"HTTP/1.1 200 OK"));
        stream
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status();
        assert!(status.expect("kill is there").success());
    }

    /// Exit code and everything on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it ends");
        let reader = self.reader.take().expect("taken here only");
        let text = reader.join().expect("the reader is done");
        (status.code(), text)
    }
}

/// A failed test leaves no daemon behind.
impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn what_cannot_be_done_has_its_exit_code_and_names_the_flag() {
    refused(&["--device", "gpu"], 2, "--device");
    refused(&["--max-model-len", "0"], 2, "max-model-len");
    refused(&["--max-model-len", "x"], 2, "--max-model-len");
    refused(&["--block-size", "0"], 2, "block-size");
    refused(&["--log", "nonsense=nonsense"], 2, "--log");
    refused(&["--defaults", "somebody"], 2, "--defaults");
    refused(&["--price-openrouter", "1,2"], 2, "--price-openrouter");
    refused(&["serve", "--no-such-flag"], 2, "--no-such-flag");
    refused(&["--model", "/nonexistent"], 3, "/nonexistent");
    refused(&["--cache-memory", "1KiB"], 6, "cache memory");
    refused(&["--device", "cuda:99"], 7, "cuda:99");
    refused(&["--listen", "256.0.0.1:1"], 4, "--listen");
    refused(&["--listen", "unix:/nonexistent/s"], 4, "/nonexistent/s");
    refused(
        &["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"],
        2,
        "--tls-cert",
    );
    refused(&["--proxy-protocol"], 2, "--trusted-proxies");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    refused(&["--listen", &address], 4, &address);
    refused(&["chat", "--url", "ftp://127.0.0.1"], 1, "--url");
    refused(&["chat", "--url", "http://127.0.0.1:1"], 1, "127.0.0.1:1");
}

#[test]
fn the_file_is_read_and_its_mistakes_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("nemoserve.toml");
    let path = path.to_str().expect("UTF-8");
    std::fs::write(path, "max-num-sequences = 3\n").expect("writable");
    refused(&["--config", path], 2, "max-num-sequences");
    std::fs::write(path, "listen = \"256.0.0.1:1\"\nmax-num-seqs = 3\n").expect("writable");
    refused(&["serve", "--config", path], 4, "256.0.0.1");
    refused(&["--config", "/nonexistent.toml"], 2, "/nonexistent.toml");
}

#[test]
fn a_signal_drains_and_a_second_forces() {
    let daemon = Daemon::start(&["--drain-seconds", "1"]);
    let mut stream = daemon.endless_stream();
    daemon.signal("-TERM");
    let mut rest = String::new();
    stream
        .read_to_string(&mut rest)
        .expect("the stream ends in order");
    assert!(rest.trim_end().ends_with('0'), "the last chunk: {rest}");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");

    let daemon = Daemon::start(&["--drain-seconds", "600"]);
    let _stream = daemon.endless_stream();
    daemon.signal("-INT");
    daemon.wait_for_line("draining");
    daemon.signal("-TERM");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(130), "{log}");
}

#[test]
fn the_log_tells_who_asked_as_far_as_anybody_trustworthy_says() {
    let trusting = Daemon::start(&[
        "--log-format",
        "json",
        "--trusted-proxies",
        "127.0.0.1,unix",
    ]);
    trusting.exchange(
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         x-forwarded-for: 1.2.3.4, 198.51.100.7\r\n\r\n",
    );
    trusting.signal("-TERM");
    let (_, log) = trusting.end();
    assert!(log.contains(r#""client":"198.51.100.7""#), "{log}");

    let behind = Daemon::start(&["--log-format", "json"]);
    behind.exchange(
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         x-forwarded-for: 198.51.100.7\r\n\r\n",
    );
    behind.signal("-TERM");
    let (_, log) = behind.end();
    assert!(log.contains(r#""client":"127.0.0.1""#), "{log}");
    assert!(!log.contains("198.51.100.7"), "a stranger's word: {log}");

    let mut command = nemoserve();
    command.args(["--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.args(["--trusted-proxies", "127.0.0.1", "--proxy-protocol"]);
    let announced = Daemon::spawn(&mut command);
    let answer = announced.exchange(
        "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n\
         GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    announced.signal("-TERM");
    let (_, log) = announced.end();
    assert!(log.contains(r#""client":"203.0.113.9""#), "{log}");
}

/// As systemd does: the socket is open as descriptor 3 before the process begins.
#[test]
fn a_socket_that_is_handed_over_is_served() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = port.local_addr().expect("bound").to_string();
    // Connects before anybody accepts.
    let mut early = TcpStream::connect(&address).expect("it listens");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let second = folder.path().join("http.sock");
    let second = second.to_str().expect("UTF-8");
    let activate = |args: &[&str]| {
        let mut command = Command::new("sh");
        let script = r#"exec 3<&0; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_nemoserve")]);
        command.args(args);
        let port = port.try_clone().expect("a descriptor is free");
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(port)));
        Daemon::spawn(&mut command)
    };
    let daemon = activate(&[]);
    assert_eq!(daemon.address, address);
    daemon.wait_until_ready();
    let request = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    early.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));

    // The port outlives the process, and a flag adds to it.
    let daemon = activate(&["--listen", &format!("unix:{second}")]);
    assert_eq!(daemon.address, address);
    daemon.wait_until_ready();
    let mut stream = UnixStream::connect(second).expect("it listens there, too");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn a_service_manager_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("free");
    manager.set_read_timeout(Some(PATIENCE)).expect("settable");
    let hears = |what: &str| {
        let mut heard = String::new();
        loop {
            let mut message = [0; 4096];
            let len = manager.recv(&mut message);
            let len = len.unwrap_or_else(|error| panic!("no {what} ({error}): {heard}"));
            let message = str::from_utf8(&message[..len]).expect("UTF-8");
            heard.push_str(message);
            if message.lines().any(|line| line.starts_with(what)) {
                return heard;
            }
        }
    };
    let mut command = nemoserve();
    command.args(["--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &path);
    command.env("WATCHDOG_USEC", "2000000");
    let daemon = Daemon::spawn(&mut command);
    let before = hears("READY=1");
    assert!(daemon.get("/ready").starts_with("HTTP/1.1 200"), "{before}");
    hears("WATCHDOG=1");
    daemon.signal("-HUP");
    let told = hears("RELOADING=1");
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    hears("READY=1");
    let _stream = daemon.endless_stream();
    daemon.signal("-TERM");
    hears("STOPPING=1");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(130));
}

#[test]
fn out_of_descriptors_it_waits_and_does_not_spin() {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 64; exec "$@""#, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_nemoserve"));
    command.args(["--listen", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(&mut command);
    daemon.wait_until_ready();
    let crowd: Vec<TcpStream> = (0..80).map(|_| daemon.send("")).collect();
    let processor_ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.child.id()));
        let stat = stat.expect("it runs");
        let fields = stat.rsplit_once(')').expect("a name in front").1;
        let field = |nth: usize| {
            let field = fields.split_whitespace().nth(nth - 3).expect("a field");
            field.parse::<u64>().expect("a number")
        };
        field(14) + field(15)
    };
    // Ten milliseconds at first, then twice as long each time, up to a second.
    daemon.wait_for_line("wait_ms=640");
    let (before, begin) = (processor_ticks(), Instant::now());
    daemon.wait_for_line("wait_ms=1000");
    daemon.wait_for_line("wait_ms=1000");
    let (spent, passed) = (processor_ticks() - before, begin.elapsed());
    assert!(passed >= Duration::from_secs(1), "{passed:?}");
    // A hundred ticks are a second of one processor.
    assert!(spent < 50, "{spent} ticks in {passed:?}");
    drop(crowd);
    daemon.wait_until_ready();
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));
}

/// A disk that is full under the log, as far as writing to it goes.
#[test]
fn a_log_that_cannot_be_written_hinders_nobody() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = nemoserve();
    command.args(["--listen", &address, "--log", "debug"]);
    command.stderr(full.expect("this is Linux"));
    let mut child = command.spawn().expect("the binary runs");
    let begin = Instant::now();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    while !get("/ready").is_some_and(|text| text.starts_with("HTTP/1.1 200")) {
        let ended = child.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "{ended:?}");
        assert!(begin.elapsed() < PATIENCE, "it never gets ready");
    }
    let body = r#"{"model":"nemoserve-demo","prompt":"Once","max_tokens":5}"#;
    let mut stream = TcpStream::connect(&address).expect("it listens");
    let request = post("/v1/completions", "", body);
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(status.expect("kill is there").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

/// Stops one thread of a process, as a driver that never returns would, until its standard input ends.
const STOP_THREAD: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
pid, name = sys.argv[1:]
for thread in os.listdir(f"/proc/{pid}/task"):
    if open(f"/proc/{pid}/task/{thread}/comm").read().strip() == name:
        for request in (0x4206, 0x4207):  # PTRACE_SEIZE, PTRACE_INTERRUPT
            if libc.ptrace(request, int(thread), None, None) < 0:
                sys.exit(os.strerror(ctypes.get_errno()))
        print("stopped", flush=True)
        sys.stdin.read()
"#;

#[test]
fn an_engine_that_hangs_ends_the_process_with_a_code_of_its_own() {
    let daemon = Daemon::start(&["--stall-seconds", "1", "--watchdog-seconds", "3"]);
    let stopper = Command::new("python3")
        .args(["-c", STOP_THREAD, &daemon.child.id().to_string(), "engine"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut said = String::new();
    let mut stopper = stopper.map(|mut stopper| {
        let output = stopper.stdout.take().expect("piped");
        let read = BufReader::new(output).read_line(&mut said);
        read.expect("its output is UTF-8");
        stopper
    });
    if said.trim() != "stopped" {
        println!("skipped: no Python, or it may not stop threads of others: {stopper:?}");
        return;
    }
    let body = r#"{"model":"nemoserve-demo","prompt":"Once","max_tokens":9,"stream":true}"#;
    let mut stream = daemon.send(&post("/v1/completions", "", body));
    let begin = Instant::now();
    while !daemon.get("/health").contains("stalled") {
        assert!(begin.elapsed() < PATIENCE, "it hangs and is well");
    }
    assert!(daemon.get("/ready").starts_with("HTTP/1.1 503"));
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it ends in order");
    assert!(text.contains("--watchdog-seconds 3"), "{text}");
    assert!(text.contains("data: [DONE]"), "{text}");
    // Whoever holds a thread of it holds its end, too.
    if let Ok(stopper) = &mut stopper {
        drop(stopper.stdin.take());
        stopper.wait().expect("it ends");
    }
    let (code, log) = daemon.end();
    assert_eq!(code, Some(9), "{log}");
    assert!(log.contains("the engine hangs"), "{log}");
    assert!(log.contains(" engine: state t,"), "{log}");
}

/// Far more than a pipe holds, to somebody who does not read it.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let mut command = nemoserve();
    command.args(["--listen", &address, "--drain-seconds", "1"]);
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // A line each of more than 200 bytes, with an id that makes it so.
    let id = "x".repeat(128);
    let request = format!(
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {id}\r\n\r\n"
    );
    let ask = || {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    let begin = Instant::now();
    while ask().is_err() {
        assert!(begin.elapsed() < PATIENCE, "it never listens");
    }
    for nth in 0..1000 {
        let text = ask().unwrap_or_else(|error| panic!("request {nth}: {error}"));
        assert!(text.starts_with("HTTP/1.1 200"), "{nth}: {text}");
    }
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(status.expect("kill is there").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn killed_it_leaves_nothing_that_hinders_the_next() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("http.sock");
    let door = format!("unix:{}", path.display());
    let start = || {
        let daemon = Daemon::start(&["--listen", &door]);
        let mut stream = UnixStream::connect(&path).expect("it listens");
        let request = "GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        daemon
    };
    let daemon = start();
    let _stream = daemon.endless_stream();
    daemon.signal("-KILL");
    assert_eq!(daemon.end().0, None, "a signal ended it");
    assert!(path.exists(), "killed, it could not clean up");
    let next = start();
    next.signal("-TERM");
    assert_eq!(next.end().0, Some(0));
    assert!(!path.exists());
}

#[test]
fn logs_are_json_and_tell_no_secret() {
    let daemon = Daemon::start(&[
        "--log-format",
        "json",
        "--log",
        "debug",
        "--api-key",
        "sk-one,sk-two",
    ]);
    let body = r#"{"model":"nemoserve-demo","prompt":"SECRETPROMPT","max_tokens":2}"#;
    let headers = "authorization: Bearer sk-two\r\nx-request-id: my-trace\r\n";
    let answer = daemon.exchange(&post("/v1/completions", headers, body));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let wrong = "authorization: Bearer sk-wrong\r\n";
    let answer = daemon.exchange(&post("/v1/completions", wrong, body));
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    daemon.signal("-TERM");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0));
    for secret in ["sk-one", "sk-two", "sk-wrong", "SECRETPROMPT"] {
        assert!(!log.contains(secret), "{secret} was logged: {log}");
    }
    let line = log
        .lines()
        .find(|line| line.contains("my-trace") && line.contains("\"route\""))
        .expect("one line per request");
    for part in [
        r#""route":"/v1/completions""#,
        r#""status":200"#,
        r#""generated_tokens":2"#,
        r#""cancelled":false"#,
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for line in log.lines().filter(|line| line.contains("timestamp")) {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

/// An entry for a key file, and its key.
fn new_key(name: &str) -> (String, String) {
    let output = run(&["key", "new", "--name", name]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let [entry, said] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    let key = said.lines().next().expect("a key").to_owned();
    assert!(key.starts_with("nsk-") && key.len() == 68, "{key}");
    assert!(!entry.contains(&key), "the file has hashes only");
    (entry, key)
}

#[test]
fn keys_are_read_again_on_a_hangup_and_no_stream_ends() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("keys.toml");
    let file = path.to_str().expect("UTF-8");
    let (first, first_key) = new_key("first");
    let (second, second_key) = new_key("second");
    assert_ne!(first_key, second_key);
    std::fs::write(&path, &first).expect("writable");
    let daemon = Daemon::start(&["--api-key-file", file]);
    let body = r#"{"model":"nemoserve-demo","prompt":"Once","max_tokens":2}"#;
    let status = |key: &str| {
        let headers = format!("authorization: Bearer {key}\r\n");
        let answer = daemon.exchange(&post("/v1/completions", &headers, body));
        answer.split(' ').nth(1).expect("a status").to_owned()
    };
    assert_eq!(
        (status(&first_key), status(&second_key)),
        ("200".into(), "401".into())
    );
    let long = r#"{"model":"nemoserve-demo","prompt":"Once","max_tokens":1500,"ignore_eos":true,"stream":true}"#;
    let headers = format!("authorization: Bearer {first_key}\r\n");
    let mut stream = daemon.send(&post("/v1/completions", &headers, long));
    stream.read_exact(&mut [0; 64]).expect("the stream begins");
    // A file that cannot be used, one that can.
    std::fs::write(&path, format!("{first}weight = 0\n")).expect("writable");
    daemon.signal("-HUP");
    let line = daemon.wait_for_line("the keys from before hold on");
    assert!(
        line.contains("weight") && line.contains("keys.toml"),
        "{line}"
    );
    assert_eq!(status(&first_key), "200");
    std::fs::write(&path, &second).expect("writable");
    daemon.signal("-HUP");
    daemon.wait_for_line("the key file was read again");
    assert_eq!(
        (status(&first_key), status(&second_key)),
        ("401".into(), "200".into())
    );
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("it ends in order");
    assert!(
        rest.contains("data: [DONE]") && !rest.contains("\"error\""),
        "{rest}"
    );
    daemon.signal("-TERM");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("key=\"second\"") || log.contains("key=second"),
        "{log}"
    );
    for key in [first_key, second_key] {
        assert!(!log.contains(&key), "{log}");
    }
}

#[test]
fn key_files_are_checked_and_their_mistakes_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("keys.toml");
    let file = path.to_str().expect("UTF-8");
    refused(&["--api-key-file", file], 2, file);
    refused(&["key", "check", file], 1, file);
    std::fs::write(&path, "[[key]]\nname = \"a\"\nsha256 = \"sk-oops\"\n").expect("writable");
    refused(&["--api-key-file", file], 2, "`sha256`");
    refused(&["key", "check", file], 1, "`sha256`");
    refused(&["key", "new", "--name", "a b"], 1, "--name");
    let hash = |key: &str| {
        let mut child = nemoserve()
            .args(["key", "hash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(key.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    // `printf %s test | sha256sum`
    let expect = "sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"\n";
    for key in ["test", "test\n"] {
        assert_eq!(String::from_utf8_lossy(&hash(key).stdout), expect);
    }
    assert_eq!(hash("\n").status.code(), Some(1));
    let entry = format!("[[key]]\nname = \"a\"\n{expect}enabled = false\n");
    std::fs::write(&path, entry).expect("writable");
    let output = run(&["key", "check", file]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("1 names") && text.contains("a (1 keys, disabled)"),
        "{text}"
    );
}

/// Whatever clients write, a line is a request, and the words in it are ours.
#[test]
fn no_client_writes_a_line_of_the_log() {
    let daemon = Daemon::start(&["--log-format", "json", "--log", "debug"]);
    let traceparent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let forged = "EVIL\\n{\\\"level\\\":\\\"ERROR\\\",\\\"message\\\":\\\"EVIL\\\"}\\u001b[31m";
    let good = r#"{"model":"nemoserve-demo","prompt":"Once","max_tokens":3,"ignore_eos":true}"#;
    let bodies = [
        format!(r#"{{"model":"{forged}","prompt":"{forged}"}}"#),
        format!(
            r#"{{"model":"nemoserve-demo","prompt":"{forged}","user":"{forged}","max_tokens":1}}"#
        ),
        good.to_owned(),
    ];
    for (n, body) in bodies.iter().enumerate() {
        let headers = format!("{traceparent}x-request-id: id-{n}\r\nuser-agent: EVIL\"}}\t{{\r\n");
        daemon.exchange(&post("/v1/completions", &headers, body));
    }
    for head in [
        "GET /EVIL%0a%1b?EVIL HTTP/1.1\r\nhost: x\r\nx-request-id: EVIL {\"a\":1}\r\n",
        "EVIL!'* / HTTP/1.1\r\nhost: x\r\nx-request-id: id-9\r\n",
    ] {
        daemon.exchange(&format!("{head}connection: close\r\n\r\n"));
    }
    daemon.signal("-TERM");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0));
    assert!(!log.contains('\u{1b}'), "{log}");
    let read = |line: &str| -> serde_json::Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let (lines, others): (Vec<_>, Vec<_>) = log.lines().partition(|line| line.starts_with('{'));
    assert!(
        !others.iter().any(|line| line.contains("EVIL")),
        "{others:?}"
    );
    let lines: Vec<_> = lines.into_iter().map(read).collect();
    let requests = lines
        .iter()
        .filter(|line| line["target"] == "nemoserve::request");
    // Probes came before.
    let posts = requests.filter(|line| line["route"] != "/ready");
    let posts: Vec<_> = posts.collect();
    assert_eq!(posts.len(), 5, "{posts:?}");
    assert!(
        lines.iter().all(|line| line["level"] != "ERROR"),
        "{lines:?}"
    );
    let evil = lines
        .iter()
        .filter(|line| line.to_string().contains("EVIL"));
    // A method is a client's word, of letters that cannot do harm.
    assert!(
        evil.clone().all(|line| line["method"] == "EVIL!'*"),
        "{lines:?}"
    );
    assert_eq!(evil.count(), 1);
    let good = posts
        .iter()
        .find(|line| line["id"] == "id-2")
        .expect("it is logged");
    assert_eq!(good["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(good["finish"], "length");
    assert_eq!(good["generated_tokens"], 3);
    let ms = |field: &str| {
        good[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field}: {good}"))
    };
    assert!(
        ms("queue_ms") <= ms("ttft_ms") && ms("ttft_ms") <= ms("ms"),
        "{good}"
    );
}

#[test]
fn a_recording_runs_again_and_top_sees_its_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(&["--speculative-tokens", "2"]);
    for n in 1..5 {
        let body = format!(
            r#"{{"model":"nemoserve-demo","prompt":"Once upon a time","max_tokens":{},"n":{n}}}"#,
            10 * n
        );
        let answer = daemon.exchange(&post("/v1/completions", "", &body));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let seen = run(&[
        "top",
        "--once",
        "--interval",
        "0.2",
        &format!("http://{}", daemon.address),
    ]);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert_eq!(seen.status.code(), Some(0), "{seen:?}");
    for part in [
        "nemoserve-demo",
        "KV blocks",
        "first token",
        "2xx",
        "came true",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let recorded = daemon.exchange("GET /debug/flight HTTP/1.0\r\nhost: x\r\n\r\n");
    let (head, lines) = recorded.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(" 200 "), "{head}");
    let file = folder.path().join("flight.jsonl");
    std::fs::write(&file, lines).expect("it is written");
    let file = file.to_str().expect("a path of letters");
    let replayed = run(&["replay", file]);
    let text = String::from_utf8_lossy(&replayed.stdout);
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    assert!(
        text.contains("plans are equal") && text.contains("4 requests"),
        "{text}"
    );
    std::fs::write(file, "nonsense").expect("it is written");
    refused(&["replay", file], 1, "line 1");
    refused(&["replay", "/nonexistent"], 1, "/nonexistent");
    refused(&["top", "http://127.0.0.1:1"], 1, "127.0.0.1:1");
}

#[test]
fn the_log_bills_what_the_counters_count() {
    let daemon = Daemon::start(&["--log-format", "json"]);
    let ask = |path: &str, extra: &str| {
        let body = format!(
            r#"{{"model":"nemoserve-demo","messages":[{{"role":"user","content":"Hello"}}],"prompt":"Once"{extra}}}"#
        );
        daemon.send(&post(path, "", &body))
    };
    let whole = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    };
    let paths = [
        "/v1/chat/completions",
        "/v1/completions",
        "/api/v1/chat/completions",
        "/v1/openai/completions",
        "/ai/run/nemoserve-demo",
    ];
    for path in paths {
        whole(ask(path, r#","max_tokens":5"#));
        whole(ask(path, r#","max_tokens":5,"n":2,"stream":true"#));
        // Left in the middle of a stream, and while the whole answer is being made.
        let long = r#","max_tokens":3900,"ignore_eos":true"#;
        let mut stream = ask(path, &format!(r#"{long},"stream":true"#));
        stream.read_exact(&mut [0; 600]).expect("it begins");
        drop(stream);
        daemon.metrics_with("nemoserve_requests_running 0");
        let waiting = ask(path, long);
        daemon.metrics_with("nemoserve_requests_running 1");
        drop(waiting);
    }
    let metrics = daemon.metrics_with("nemoserve_requests_cancelled_total 10");
    daemon.signal("-TERM");
    let (_, log) = daemon.end();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<serde_json::Value> = lines.collect();
    for (field, counter) in [
        ("prompt_tokens", "nemoserve_prompt_tokens_total"),
        ("cached_tokens", "nemoserve_cached_prompt_tokens_total"),
        ("generated_tokens", "nemoserve_generation_tokens_total"),
    ] {
        let billed: u64 = lines.iter().filter_map(|line| line[field].as_u64()).sum();
        assert!(
            metrics.contains(&format!("\n{counter} {billed}\n")),
            "{counter} {billed}: {metrics}"
        );
    }
    let priced = lines
        .iter()
        .filter(|line| line["cost_usd"].is_string())
        .count();
    assert_eq!(priced, 3 * 4, "three of the routes have prices: {lines:?}");
}

#[test]
fn chat_works_through_a_pipe() {
    let daemon = Daemon::start(&["--api-key", "k"]);
    let url = format!("http://{}", daemon.address);
    let talk = |args: &[&str], input: &str| {
        let mut chat = nemoserve()
            .args(["chat", "--url", &url])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = chat.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        chat.wait_with_output().expect("it ends")
    };
    let output = talk(
        &["--api-key", "k"],
        "/think off\nHello!\n/reset\nHello!\n/quit\nnever said\n",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let answers = text.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(answers >= 2, "two answers: {text}");
    assert!(
        !text.contains("\u{1b}[2m"),
        "a pipe is not dimmed: {text:?}"
    );

    let refused = talk(&["--api-key", "wrong"], "Hello!\n");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("401"), "{told}");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn the_doctor_judges_this_machine() {
    let output = run(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for part in [
        "memory bandwidth",
        "instruction set",
        "Super 120B-A12B",
        "the embedded demo: can be served",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = run(&["doctor", "--self-test", "--device", "cpu"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text.contains("self-test") && !text.contains("WRONG"),
        "{text}"
    );
    assert!(text.contains("nvfp4") && text.contains("--seed"), "{text}");
    let output = run(&["doctor", "--self-test", "--device", "abacus"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = run(&["doctor", "--model", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model");

#[test]
fn quantising_tells_what_it_costs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = folder.path().join("text");
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let document = turn("system", "") + &turn("user", "Hello!");
    // The second document is read before its last token is scored.
    let documents = format!("{document}\u{c}{document}<|im_start|>assistant\n\u{b}<think>");
    std::fs::write(&text, documents).expect("writable");
    let output = folder.path().join("new");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let args = [
        "quantize",
        "--model",
        DEMO,
        "--output",
        &path(&output),
        "--format",
        "nvfp4",
        "--exclude",
        "*.shared_experts.*",
        "--evaluate",
        &path(&text),
    ];
    let done = run(&args);
    let says = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{errors}");
    for part in [
        "backbone.layers.1.mixer.experts.*.up_proj",
        "16 matrices, worst",
        "backbone.layers.0.mixer.in_proj",
        " before, ",
        "perplexity over ",
        " of 2 documents: ",
    ] {
        assert!(says.contains(part), "{part}: {says}");
    }
    assert!(!says.contains("shared_experts"), "{says}");
    refused(&args, 1, "not empty");
    let daemon = Daemon::start(&["--model", &path(&output)]);
    assert!(daemon.get("/v1/models").contains("\"new\""));
}

#[test]
fn quantising_leaves_nothing_of_what_it_could_not_finish() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("new");
    let new = output.to_str().expect("UTF-8");
    let args = ["quantize", "--model", DEMO, "--output", new, "--format"];
    refused(&[&args[..], &["int4"]].concat(), 2, "--format");
    let missing = ["fp8", "--evaluate", "/nonexistent.txt"];
    refused(&[&args[..], &missing].concat(), 1, "/nonexistent.txt");
    let mistaken = ["fp8", "--exclude", "lm_heat"];
    refused(&[&args[..], &mistaken].concat(), 1, "lm_heat");
    // As a full disk: no file may grow beyond 64 blocks.
    let full = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_nemoserve"))
        .args(args)
        .arg("fp8")
        .output()
        .expect("the shell runs");
    let says = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{says}");
    for part in ["model.safetensors", "File too large", "nothing of the new"] {
        assert!(says.contains(part), "{says}");
    }
    assert!(!output.exists());
}

#[test]
fn a_benched_step_has_its_tokens() {
    let decode = bench(&[
        "decode",
        "--batch",
        "1,2,5",
        "--steps",
        "4",
        "--context",
        "40",
    ]);
    let rows = decode["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{decode}");
    let number = |row: &serde_json::Value, key: &str| {
        let number = row[key].as_f64();
        number.unwrap_or_else(|| panic!("{key}: {row}"))
    };
    for (row, batch) in rows.iter().zip([1.0, 2.0, 5.0]) {
        assert_eq!(number(row, "batch"), batch);
        assert_eq!(number(row, "tokens"), 4.0 * batch);
        let per_second = batch / (number(row, "step_ms_p50") / 1e3);
        assert!((number(row, "tokens_per_s") / per_second - 1.0).abs() < 1e-9);
        assert!(number(row, "step_ms_p50") <= number(row, "step_ms_p99"));
        let share = number(row, "gb_per_s") / number(&decode["about"], "bandwidth_gb_per_s");
        assert!((number(row, "share_of_bandwidth") / share - 1.0).abs() < 1e-9);
        // Rows choose experts, one at least and all at most; nothing is launched or read back.
        assert!(number(row, "experts_per_layer") >= 1.0);
        assert!(row["launches_per_step"].is_null());
        assert!(row["read_back_bytes_per_step"].is_null());
    }
    let moved = |at: usize| number(&rows[at], "mb_per_step");
    assert!(moved(0) < moved(1) && moved(1) < moved(2), "{decode}");

    let prefill = bench(&["prefill", "--lengths", "16,64", "--repeat", "2"]);
    for (row, length) in prefill["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .zip([16.0, 64.0])
    {
        assert_eq!(number(row, "tokens"), 2.0 * length, "{prefill}");
        assert!(number(row, "share_of_matrix_rate") > 0.0);
    }
    let flops = |at: usize| number(&prefill["rows"][at], "gflop");
    assert!(flops(1) > 3.0 * flops(0), "{prefill}");

    let load = bench(&["load"]);
    assert_eq!(load["rows"].as_array().map(Vec::len), Some(2), "{load}");
    assert!(number(&load["rows"][0], "ready_s") > 0.0);
    assert!(
        load["rows"][0]["read_s"].is_null(),
        "the demo is in no file"
    );
}

#[test]
fn benched_requests_have_their_tokens() {
    let lengths = ["--input-len", "80", "--output-len", "5"];
    let check = |report: &serde_json::Value, requests: u64, tokens: u64| {
        let row = &report["rows"][0];
        assert_eq!(row["requests"], requests, "{report}");
        assert_eq!(row["tokens"], tokens, "{report}");
        for kind in ["ttft", "itl"] {
            let at = |percent: &str| row[format!("{kind}_ms_{percent}")].as_f64().expect(percent);
            assert!(at("p50") <= at("p90") && at("p90") <= at("p99"), "{report}");
            // Nobody answers within a hundredth of a millisecond.
            assert!(kind != "ttft" || at("p50") > 0.01, "{report}");
        }
    };
    let closed = [
        "serve",
        "--streams",
        "3",
        "--requests",
        "7",
        "--reuse",
        "0.9",
    ];
    check(&bench(&[&closed[..], &lengths].concat()), 7, 35);
    let open = [
        "serve",
        "--streams",
        "2",
        "--requests",
        "5",
        "--rate",
        "200",
    ];
    check(&bench(&[&open[..], &lengths].concat()), 5, 25);

    let daemon = Daemon::start(&[]);
    let url = format!("http://{}", daemon.address);
    let there = ["serve", "--streams", "2", "--requests", "4", "--url", &url];
    // Texts may be fewer than tokens: some wait for their last byte, some are empty. Ids are not.
    check(&bench(&[&there[..], &lengths].concat()), 4, 20);
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn a_load_is_sent_in_turns_and_judged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace.jsonl");
    let lines = "{\"input_length\": 40, \"output_length\": 3}\n{\"input_length\": 9, \"output_length\": 6}\n";
    std::fs::write(&trace, lines).expect("writable");
    let page = folder.path().join("report.html");
    let daemon = Daemon::start(&[]);
    let url = format!("http://{}", daemon.address);
    let [trace, page] = [&trace, &page].map(|path| path.to_str().expect("UTF-8"));
    let base = [
        "serve",
        "--url",
        &url,
        "--dataset",
        trace,
        "--requests",
        "8",
    ];
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().expect("a number");

    // Four lengths of three tokens and four of six; the second turn knows the first.
    let turns = ["--turns", "2", "--rate", "400,50", "--html", page];
    let slo = ["--slo-ttft-ms", "60000", "--slo-itl-ms", "60000"];
    let report = bench(&[&base[..], &turns, &slo].concat());
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2, "{report}");
    for (row, rate) in rows.iter().zip([400.0, 50.0]) {
        assert_eq!(number(row, "rate_per_s"), rate);
        assert_eq!(
            (&row["requests"], &row["failed"]),
            (&8.into(), &0.into()),
            "{report}"
        );
        assert_eq!(row["tokens"], 4 * 3 + 4 * 6, "{report}");
        assert_eq!(number(row, "good_share"), 1.0, "{report}");
        assert!(number(row, "cached_share") > 0.0, "{report}");
    }
    let page = std::fs::read_to_string(page).expect("it was written");
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(
        !page.contains("src=") && !page.contains("href="),
        "it needs something else"
    );

    // Words to the other endpoint, in nothing but OpenAI's own terms.
    let chat = ["--chat", "--plain", "--turns", "2", "--streams", "2"];
    let report = bench(&[&base[..], &chat].concat());
    let row = &report["rows"][0];
    assert_eq!(row["requests"], 8, "{report}");
    assert!(number(row, "ttft_ms_p50") <= number(row, "total_ms_p99"));
    assert!(row["good_share"].is_null(), "nothing was asked of it");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn refused_requests_are_counted_and_not_hidden() {
    let daemon = Daemon::start(&["--max-queue", "1", "--max-num-seqs", "1"]);
    let url = format!("http://{}", daemon.address);
    let lengths = ["--input-len", "40..80", "--output-len", "60"];
    let flood = [
        "serve",
        "--url",
        &url,
        "--requests",
        "20",
        "--streams",
        "20",
    ];
    let report = bench(&[&flood[..], &lengths].concat());
    let row = &report["rows"][0];
    let [answered, failed] = ["requests", "failed"].map(|key| row[key].as_u64().expect(key));
    assert_eq!(answered + failed, 20, "{report}");
    assert!(answered >= 2 && failed >= 1, "{report}");
    let closed = daemon.address.clone();
    drop(daemon);
    let there = format!("http://{closed}");
    refused(&["bench", "serve", "--url", &there], 1, &closed);
}

#[test]
fn a_bench_that_cannot_be_run_says_why() {
    let wrong = |args: &[&str], says: &str| {
        refused(&[&["bench", "serve"][..], args].concat(), 2, says);
    };
    wrong(&["--rate", "1,-2"], "--rate");
    wrong(&["--turns", "0"], "--turns");
    wrong(&["--turns", "2", "--reuse", "0.5"], "--turns");
    wrong(&["--input-len", "9..3"], "--input-len");
    wrong(&["--dataset", "/nonexistent"], "/nonexistent");
    wrong(&["--slo-ttft-ms", "0"], "--slo-ttft-ms");
    wrong(&["--chat"], "--url");
    refused(&["bench", "decode", "--batch", "0"], 2, "--batch");
    refused(&["bench", "serve", "--reuse", "1.0"], 2, "--reuse");
    refused(
        &["bench", "decode", "--cache-memory", "1KiB"],
        6,
        "cache memory",
    );
    refused(
        &["bench", "prefill", "--model", "/nonexistent"],
        3,
        "/nonexistent",
    );
    refused(&["--memory-fraction", "1.5"], 2, "--memory-fraction");
}

/// A cache beyond what the system gives is granted, and refused only when it is taken.
#[test]
fn memory_that_is_not_there_is_a_message_and_a_code() {
    let output = Command::new("sh")
        .args(["-c", r#"ulimit -v 6000000; exec "$0" "$@""#])
        .arg(env!("CARGO_BIN_EXE_nemoserve"))
        .args(["--listen", "127.0.0.1:0", "--cache-memory", "200GiB"])
        .args(["--max-num-seqs", "4096"])
        .output()
        .expect("a shell is there");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{text}");
    let last = text.lines().last().expect("it says something");
    assert!(
        last.contains("out of memory while the weights were loaded"),
        "{text}"
    );
}
