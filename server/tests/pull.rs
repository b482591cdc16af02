//! `nemoserve pull` and `verify` against a hub on this machine that breaks off, lies and cheats.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "owner/model";

/// What the hub holds and how it behaves.
#[derive(Default)]
struct Hub {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Entries of the list besides those of `files`.
    extra: Vec<Value>,
    /// Of these files the first answer breaks off after so many bytes.
    breaks: Mutex<BTreeMap<&'static str, usize>>,
    /// Of these files other bytes come than were announced.
    lies: Vec<&'static str>,
    knows_ranges: bool,
    /// Requests for files: name, first byte.
    asked: Mutex<Vec<(String, usize)>>,
}

impl Hub {
    fn with(files: &[(&'static str, Vec<u8>)]) -> Self {
        Self {
            files: files.iter().cloned().collect(),
            knows_ranges: true,
            ..Self::default()
        }
    }

    /// Answers until the process ends; its address.
    fn serve(self) -> (String, Arc<Self>) {
        let hub = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let served = Arc::clone(&hub);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = Arc::clone(&served);
                thread::spawn(move || hub.answer(&stream.expect("a connection")));
            }
        });
        (format!("http://{address}"), hub)
    }

    fn answer(&self, mut stream: &TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
        let head: Vec<String> = lines
            .by_ref()
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
            return;
        };
        let range = head.iter().find_map(|line| {
            let value = line
                .to_lowercase()
                .strip_prefix("range: bytes=")?
                .to_owned();
            value.trim_end_matches('-').parse::<usize>().ok()
        });
        if path.starts_with("/api/models/owner/model/revision/main?") {
            let body = self.list().to_string();
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}");
            write!(stream, "{head}\r\n\r\n{body}").expect("it reads");
            return;
        }
        let name = path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"));
        let Some((name, bytes)) = name.and_then(|name| self.files.get_key_value(name)) else {
            write!(
                stream,
                "HTTP/1.1 404 no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            .expect("it reads");
            return;
        };
        let from = range.filter(|_| self.knows_ranges).unwrap_or(0);
        let mut asked = self.asked.lock().expect("nobody panics in here");
        asked.push(((*name).to_owned(), range.unwrap_or(0)));
        drop(asked);
        let mut bytes = bytes.clone();
        if self.lies.contains(name) {
            bytes[0] ^= 1;
        }
        let status = if from > 0 { "206 Partial" } else { "200 OK" };
        let total = bytes.len();
        let length = total - from;
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\
             content-range: bytes {from}-{}/{total}\r\n\r\n",
            total.saturating_sub(1)
        );
        let until = self
            .breaks
            .lock()
            .expect("nobody panics in here")
            .remove(name);
        let end = until.map_or(total, |until| from.max(until));
        // Whoever has seen enough may have gone.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&bytes[from..end]);
    }

    fn list(&self) -> Value {
        let mut siblings: Vec<Value> = self
            .files
            .iter()
            .map(|(name, bytes)| {
                let mut entry = json!({"rfilename": name, "size": bytes.len()});
                if name.ends_with("safetensors") {
                    entry["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len()});
                }
                entry
            })
            .collect();
        siblings.extend(self.extra.iter().cloned());
        json!({"sha": COMMIT, "siblings": siblings})
    }

    /// First bytes of the requests for a file.
    fn asked_for(&self, name: &str) -> Vec<usize> {
        let asked = self.asked.lock().expect("nobody panics in here");
        asked
            .iter()
            .filter(|(of, _)| of == name)
            .map(|(_, from)| *from)
            .collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn weights(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn nemoserve(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nemoserve"));
    for name in ["HF_TOKEN", "HF_ENDPOINT"] {
        command.env_remove(name);
    }
    command.args(args).output().expect("the binary runs")
}

fn pull(url: &str, folder: &Path) -> Output {
    let folder = folder.to_str().expect("UTF-8");
    nemoserve(&["pull", REPO, "--endpoint", url, "--to", folder])
}

fn verify(folder: &Path) -> Output {
    nemoserve(&["verify", folder.to_str().expect("UTF-8")])
}

#[track_caller]
fn succeeds(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
}

#[track_caller]
fn fails(output: &Output, says: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(says), "{says}: {text}");
}

#[test]
fn a_pulled_folder_is_whole_and_stays_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let to = folder.path().join("model");
    let hub = Hub {
        extra: vec![
            json!({"rfilename": ".gitattributes", "size": 3}),
            json!({"rfilename": "modeling.py", "size": 3}),
            json!({"rfilename": "pytorch_model.bin", "size": 3}),
            json!({"rfilename": "original/model.safetensors", "size": 3}),
        ],
        ..Hub::with(&[
            ("config.json", b"{}".to_vec()),
            ("empty.txt", Vec::new()),
            ("model.safetensors", weights(3_000_000)),
        ])
    };
    let (url, hub) = hub.serve();
    succeeds(&pull(&url, &to));
    succeeds(&verify(&to));
    assert_eq!(
        std::fs::read(to.join("model.safetensors")).expect("it is there"),
        weights(3_000_000)
    );
    let mut names: Vec<_> = std::fs::read_dir(&to)
        .expect("it is there")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    let expected = [
        "config.json",
        "empty.txt",
        "model.safetensors",
        "nemoserve-manifest.json",
    ];
    assert_eq!(names, expected, "nothing else was fetched or left");

    // What is there and right is not fetched again.
    succeeds(&pull(&url, &to));
    assert_eq!(hub.asked_for("model.safetensors"), [0]);

    let change = |name: &str, bytes: &[u8]| {
        std::fs::write(to.join(name), bytes).expect("writable");
    };
    change("config.json", b"[]");
    fails(&verify(&to), "config.json hashes to");
    change("config.json", b"{} ");
    fails(&verify(&to), "config.json has 3 bytes, not 2");
    std::fs::remove_file(to.join("config.json")).expect("removable");
    fails(&verify(&to), "config.json is missing");
    // The same bytes, but from outside.
    let outside = folder.path().join("outside.json");
    std::fs::write(&outside, "{}").expect("writable");
    std::os::unix::fs::symlink("../outside.json", to.join("config.json")).expect("links");
    fails(&verify(&to), "symbolic link");
    std::fs::remove_file(to.join("config.json")).expect("removable");
    change("config.json", b"{}");
    succeeds(&verify(&to));
    change("model-00002.safetensors", b"foreign");
    fails(&verify(&to), "model-00002.safetensors is not in");
}

#[test]
fn what_breaks_off_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub::with(&[
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights(2_000_000)),
    ]);
    let breaks = [("model.safetensors", 700_000), ("config.json", 1)];
    *hub.breaks.lock().expect("unused yet") = breaks.into();
    let (url, hub) = hub.serve();
    succeeds(&pull(&url, folder.path()));
    succeeds(&verify(folder.path()));
    assert_eq!(hub.asked_for("model.safetensors"), [0, 700_000]);

    // So does another process after one that was killed.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let part = folder.path().join(".nemoserve-pull");
    std::fs::create_dir(&part).expect("writable");
    let (hash, bytes) = (sha256(&weights(2_000_000)), weights(2_000_000));
    std::fs::write(part.join(format!("{hash}.part")), &bytes[..5]).expect("writable");
    succeeds(&pull(&url, folder.path()));
    succeeds(&verify(folder.path()));
    assert_eq!(hub.asked_for("model.safetensors"), [0, 700_000, 5]);
}

#[test]
fn a_hub_without_ranges_is_read_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut hub = Hub::with(&[("model.safetensors", weights(2_000_000))]);
    hub.knows_ranges = false;
    hub.breaks = Mutex::new([("model.safetensors", 700_000)].into());
    let (url, hub) = hub.serve();
    succeeds(&pull(&url, folder.path()));
    succeeds(&verify(folder.path()));
    assert_eq!(hub.asked_for("model.safetensors"), [0, 700_000]);
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut hub = Hub::with(&[("model.safetensors", weights(10_000))]);
    hub.lies = vec!["model.safetensors"];
    let (url, _) = hub.serve();
    fails(&pull(&url, folder.path()), "model.safetensors hashes to");
    assert!(!folder.path().join("model.safetensors").exists());
    let left = std::fs::read_dir(folder.path().join(".nemoserve-pull")).expect("it is there");
    let names = left.map(|entry| entry.expect("readable").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["lock"], "wrong bytes were kept");
    fails(&verify(folder.path()), "nemoserve-manifest.json");
}

#[test]
fn a_list_that_leads_elsewhere_is_refused_whole() {
    for name in [
        "../outside.json",
        "/etc/outside.json",
        "a/../../outside.json",
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let to = folder.path().join("model");
        let hub = Hub {
            extra: vec![json!({"rfilename": name, "size": 2})],
            ..Hub::with(&[("config.json", b"{}".to_vec())])
        };
        let (url, hub) = hub.serve();
        fails(&pull(&url, &to), name);
        assert!(hub.asked_for("config.json").is_empty(), "{name}");
        assert!(!folder.path().join("outside.json").exists());
    }
    let unhashed = json!({"rfilename": "w.safetensors", "lfs": {"sha256": "../x", "size": 1}});
    let twice = json!({"rfilename": "config.json", "size": 2});
    for (extra, says) in [
        (unhashed, "w.safetensors"),
        (twice, "config.json is there twice"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let hub = Hub {
            extra: vec![extra],
            ..Hub::with(&[("config.json", b"{}".to_vec())])
        };
        fails(&pull(&hub.serve().0, folder.path()), says);
    }
}

#[test]
fn a_link_in_the_folder_is_replaced_and_not_followed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outside = folder.path().join("outside.json");
    std::fs::write(&outside, "precious").expect("writable");
    let to = folder.path().join("model");
    std::fs::create_dir(&to).expect("writable");
    std::os::unix::fs::symlink(&outside, to.join("config.json")).expect("links can be made");
    let (url, _) = Hub::with(&[("config.json", b"{}".to_vec())]).serve();
    succeeds(&pull(&url, &to));
    succeeds(&verify(&to));
    assert_eq!(
        std::fs::read_to_string(&outside).expect("it is there"),
        "precious"
    );
}

#[test]
fn what_cannot_be_pulled_says_why() {
    let usage = |args: &[&str], says: &str| {
        let output = nemoserve(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}");
    };
    usage(&["pull", "model"], "owner/name");
    usage(&["pull", REPO, "--revision", "a/../b"], "--revision");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let to = folder.path().to_str().expect("UTF-8");
    usage(
        &["pull", REPO, "--to", to, "--endpoint", "ftp://x"],
        "--endpoint",
    );
    let (url, _) = Hub::with(&[]).serve();
    let output = nemoserve(&["pull", "owner/other", "--to", to, "--endpoint", &url]);
    fails(&output, "404");
}
