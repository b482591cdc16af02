//! Broken checkpoints: each is one clear error that names file and tensor (or key), before any
//! weight is read; never a panic, never a wrong answer.
//!
//! A case copies a sound fixture, breaks it in one way and says what the error must contain.

mod configs;
mod headers;
mod mangled;
mod releases;
mod shards;
mod tensors;
mod texts;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use engine::{DeviceChoice, DtypeChoice, Engine, EngineConfig, ModelSource, Opened};
use nemoserve_tests::fixtures;

/// One way to break a folder.
struct Case {
    name: &'static str,
    fixture: &'static str,
    break_it: fn(&Path),
    /// What the error says, besides lying in the folder.
    expect: &'static [&'static str],
}

/// Runs a table through the engine's door.
#[track_caller]
fn check(cases: &[Case]) {
    check_through(cases, |folder| open(folder).map(drop));
}

/// Runs a table; every case of it, so that one failure does not hide the next.
#[track_caller]
fn check_through(cases: &[Case], door: fn(&Path) -> Result<(), String>) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| failure(case, door))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn failure(case: &Case, door: fn(&Path) -> Result<(), String>) -> Option<String> {
    let folder = fixtures::copy(case.fixture);
    (case.break_it)(folder.path());
    let name = case.name;
    let message = match catch_unwind(AssertUnwindSafe(|| door(folder.path()))) {
        Err(_) => return Some(format!("{name}: panicked")),
        Ok(Ok(())) => return Some(format!("{name}: opened")),
        Ok(Err(message)) => message,
    };
    let missing: Vec<_> = case
        .expect
        .iter()
        .filter(|fragment| !message.contains(**fragment))
        .collect();
    let lies_there = message.starts_with(&folder.path().display().to_string());
    let one_line = !message.contains('\n') && message.len() < 600;
    (!missing.is_empty() || !lies_there || !one_line)
        .then(|| format!("{name}: does not say {missing:?}: {message}"))
}

/// The error's text is what an operator sees.
fn open(folder: &Path) -> Result<Opened, String> {
    open_with(folder, 64 << 20)
}

fn open_with(folder: &Path, cache_memory_bytes: u64) -> Result<Opened, String> {
    let config = EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        cache_memory_bytes: Some(cache_memory_bytes),
        ..EngineConfig::new(ModelSource::Folder(folder.to_owned()))
    };
    Engine::open(config).map_err(|error| error.to_string())
}

#[test]
fn unbroken_copies_open() {
    for name in fixtures::names() {
        let folder = fixtures::copy(&name);
        if let Err(message) = open(folder.path()) {
            panic!("{message}");
        }
    }
}

#[test]
fn there_are_enough_cases() {
    let count: usize = [
        headers::CASES.len(),
        tensors::CASES.len(),
        shards::CASES.len(),
        configs::CASES.len(),
        texts::CASES.len(),
    ]
    .iter()
    .sum();
    assert!(count >= 80, "{count}");
}
