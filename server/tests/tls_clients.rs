//! The commands that ask a server, over TLS: they go where a certificate is known, and nowhere else.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStderr, Output, Stdio};

use rcgen::CertifiedKey;
use tempfile::TempDir;

use crate::common::nemoserve;

/// A daemon with the demo model, whose certificate has signed itself and is for 127.0.0.1.
struct Daemon {
    child: Child,
    folder: TempDir,
    port: String,
    /// Open, so that the log can be written.
    _log: BufReader<ChildStderr>,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = vec!["127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).expect("a certificate");
        let [cert_path, key_path] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        fs::write(&cert_path, cert.pem()).expect("writable");
        fs::write(&key_path, signing_key.serialize_pem()).expect("writable");
        let mut child = nemoserve()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .arg("--tls-cert")
            .arg(&cert_path)
            .arg("--tls-key")
            .arg(&key_path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut port: Option<String> = None;
        let mut line = String::new();
        while !(line.trim_end().ends_with("ready") && port.is_some()) {
            line.clear();
            let len = log.read_line(&mut line).expect("logs are UTF-8");
            assert!(len > 0, "it ended before it was ready");
            if let Some((_, rest)) = line.split_once("https://127.0.0.1:") {
                port = Some(rest.chars().take_while(char::is_ascii_digit).collect());
            }
        }
        Self {
            child,
            folder,
            port: port.expect("the loop above ends with one"),
            _log: log,
        }
    }

    fn certificate(&self) -> String {
        let path = self.folder.path().join("cert.pem");
        path.to_str().expect("UTF-8").to_owned()
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

/// Each command that asks a server at `url`.
fn commands(url: &str) -> [Vec<&str>; 3] {
    let bench = ["bench", "serve", "--requests", "2", "--streams", "2"];
    let lengths = ["--input-len", "40", "--output-len", "5", "--url", url];
    [
        vec!["top", "--once", "--interval", "0.2", url],
        vec!["chat", "--think", "false", "--url", url],
        [bench, lengths].concat(),
    ]
}

/// With one thing to say, for those that read it.
fn run(args: &[&str]) -> Output {
    let mut child = nemoserve()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // Who is refused does not read it.
    let _ = child.stdin.take().expect("piped").write_all(b"Hello!\n");
    child.wait_with_output().expect("it ends")
}

/// With one line that says why.
#[track_caller]
fn refused(args: &[&str], says: &str) {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    assert!(text.contains(says), "{args:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
}

#[test]
fn a_server_is_asked_if_its_certificate_is_known() {
    let daemon = Daemon::start();
    let url = format!("https://127.0.0.1:{}", daemon.port);
    let certificate = daemon.certificate();
    let known = ["--cacert", &certificate];
    for command in commands(&url) {
        let output = run(&[&command[..], &known].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}: {output:?}");
        assert!(!output.stdout.trim_ascii().is_empty(), "{command:?}");

        refused(&command, "--cacert FILE");
        let missing = ["--cacert", "/nonexistent"];
        let command = [&command[..], &missing].concat();
        refused(&command, "--cacert /nonexistent");
    }
    let elsewhere = format!("https://localhost:{}", daemon.port);
    for command in commands(&elsewhere) {
        let command = [&command[..], &known].concat();
        refused(&command, "not valid for name");
    }
    let plain = format!("http://127.0.0.1:{}", daemon.port);
    refused(&["top", "--once", &plain], "use https://");
}

#[test]
fn certificates_are_for_servers_that_are_asked() {
    let output = run(&["bench", "serve", "--cacert", "/nonexistent"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--url"), "{text}");
}
