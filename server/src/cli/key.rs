//! `nemoserve key`: what goes into `--api-key-file`.

use std::io::Read as _;
use std::path::Path;

use tokio_rustls::rustls::crypto::ring::default_provider;

use crate::admission::key_file;
use crate::admission::key_ring::{hash, to_hex};
use crate::args::{KeyArgs, KeyCommand, exit};

/// So that scanners for leaked secrets may know one when they see it.
const PREFIX: &str = "nsk-";
/// No key that is read is longer.
const MAX_KEY_BYTES: u64 = 4096;

/// Does it; returns the exit code.
pub fn run(args: &KeyArgs) -> u8 {
    let outcome = match &args.what {
        KeyCommand::New { name } => new(name),
        KeyCommand::Hash => hash_of_input(),
        KeyCommand::Check { file } => check(file),
    };
    match outcome {
        Ok(text) => {
            println!("{text}");
            exit::OK
        }
        Err(error) => {
            eprintln!("nemoserve: {error}");
            exit::COMMAND
        }
    }
}

fn new(name: &str) -> Result<String, String> {
    let mut bytes = [0; 32];
    default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| "the system gives no random bytes")?;
    let key = format!("{PREFIX}{}", to_hex(&bytes));
    let entry = format!(
        "[[key]]\nname = {name:?}\nsha256 = \"{}\"",
        to_hex(&hash(key.as_bytes()))
    );
    key_file::parse(&entry).map_err(|error| format!("--name: {error}"))?;
    eprintln!("{key}");
    eprintln!("^ the key, shown this once: clients send it as `Authorization: Bearer KEY`.");
    eprintln!("Its entry for --api-key-file follows on standard output.");
    Ok(entry)
}

fn hash_of_input() -> Result<String, String> {
    let mut key = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_KEY_BYTES + 1)
        .read_to_end(&mut key)
        .map_err(|error| format!("standard input: {error}"))?;
    // A file or `echo` ends with one that is no part of the key.
    let key = key.trim_ascii_end();
    if key.is_empty() || key.len() as u64 > MAX_KEY_BYTES {
        return Err(format!(
            "standard input has {} bytes, a key has 1 to {MAX_KEY_BYTES}",
            key.len()
        ));
    }
    Ok(format!("sha256 = \"{}\"", to_hex(&hash(key))))
}

fn check(file: &Path) -> Result<String, String> {
    let entries = key_file::read(file)?;
    let mut lines = vec![format!("{}: {} names", file.display(), entries.len())];
    for entry in &entries {
        let state = if entry.terms.enabled {
            ""
        } else {
            ", disabled"
        };
        lines.push(format!(
            "  {} ({} keys{state})",
            entry.name,
            entry.hashes.len()
        ));
    }
    Ok(lines.join("\n"))
}
