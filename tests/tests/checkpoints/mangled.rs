//! Every single-byte mistake and every cut, of the smallest fixture: an error, never a panic, and
//! never a model that differs from the sound one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use engine::Opened;
use nemoserve_tests::fixtures;

use crate::open;

const FIXTURE: &str = "old-aliases";
const FILE: &str = "model.safetensors";

#[test]
fn any_changed_byte_of_a_header_is_noticed() {
    let folder = fixtures::copy(FIXTURE);
    let path = folder.path().join(FILE);
    let sound = fs::read(&path).expect("the copy has it");
    let end = header_end(&sound);
    let header = std::str::from_utf8(&sound[8..end]).expect("JSON");
    // Free text for tools, and padding: nothing there means anything to us.
    let metadata = "\"__metadata__\":{\"format\":\"pt\"}";
    let free = 8 + header.find(metadata).expect("the writer left it") + metadata.len();
    let padding = 8 + header.trim_end().len();
    let file = File::options().write(true).open(&path).expect("ours");
    for at in (0..8).chain(free..padding) {
        let put = |byte| file.write_at(&[byte], at as u64).expect("ours");
        put(other_byte(sound[at], at));
        let message = refused(folder.path(), &format!("byte {at} changed"));
        assert!(message.contains(FILE), "byte {at}: {message}");
        put(sound[at]);
    }
    open(folder.path()).expect("all bytes are back");
}

#[test]
fn any_cut_is_noticed() {
    let folder = fixtures::copy(FIXTURE);
    let path = folder.path().join(FILE);
    let sound = fs::read(&path).expect("the copy has it");
    let end = header_end(&sound);
    let file = File::options().write(true).open(&path).expect("ours");
    let lengths = (0..=end).chain((end..sound.len()).step_by(509));
    for len in lengths.rev() {
        file.set_len(len as u64).expect("ours");
        let message = refused(folder.path(), &format!("cut to {len} bytes"));
        assert!(message.contains(FILE), "{len} bytes: {message}");
    }
}

#[test]
fn any_changed_byte_of_a_configuration_is_survived() {
    let folder = fixtures::copy(FIXTURE);
    let path = folder.path().join("config.json");
    let sound = fs::read(&path).expect("the copy has it");
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] = other_byte(bytes[at], at);
        fs::write(&path, &bytes).expect("the copy is ours");
        // Many keys have no effect, so some of these are sound.
        drop(attempt(
            folder.path(),
            &format!("byte {at} of config.json changed"),
        ));
    }
}

fn header_end(file: &[u8]) -> usize {
    let (length, _) = file.split_first_chunk().expect("it has a length");
    8 + u64::from_le_bytes(*length) as usize
}

/// Another printable byte: the next digit for a digit, so that numbers stay numbers.
fn other_byte(byte: u8, at: usize) -> u8 {
    match byte {
        b'0'..=b'8' => byte + 1,
        b'9' => b'1',
        _ if byte == b'x' => b'y',
        _ if at.is_multiple_of(2) => b'x',
        _ => b' ',
    }
}

fn refused(folder: &Path, what: &str) -> String {
    match attempt(folder, what) {
        Ok(_) => panic!("{what}: opened"),
        Err(message) => message,
    }
}

/// A panic goes on, after saying what it was that panicked.
fn attempt(folder: &Path, what: &str) -> Result<Opened, String> {
    catch_unwind(AssertUnwindSafe(|| open(folder))).unwrap_or_else(|panic| {
        eprintln!("{what}: panicked");
        resume_unwind(panic)
    })
}
