//! The house rules that a compiler does not check: who may use whom, which words stay in which room.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
        .into()
}

/// Every Rust file under `folder`, as (path relative to the workspace, text).
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(folder)];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("the folder is there") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .expect("below the root")
                    .display()
                    .to_string();
                found.push((name, fs::read_to_string(&path).expect("sources are UTF-8")));
            }
        }
    }
    found.sort();
    assert!(
        !found.is_empty(),
        "no sources in {folder}: the check would pass on nothing"
    );
    found
}

/// Lines that are not comments, with their numbers.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim_start()))
        .filter(|(_, line)| !line.starts_with("//"))
}

/// Fails with every line of `folder` that has one of `words` outside the rooms in `allowed`.
fn ban(folder: &str, words: &[&str], allowed: &[&str], why: &str) {
    let mut offences = Vec::new();
    for (name, text) in sources(folder) {
        if allowed.iter().any(|room| name.starts_with(room)) {
            continue;
        }
        for (number, line) in code_lines(&text) {
            for word in words {
                if line.contains(word) {
                    offences.push(format!("{name}:{number}: `{word}`"));
                }
            }
        }
    }
    assert!(offences.is_empty(), "{why}:\n{}", offences.join("\n"));
}

/// Names under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).expect("the manifest is there");
    text.lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let ours = [
        "kvcache",
        "scheduler",
        "kernels",
        "cube-kernels",
        "constraint",
        "engine",
        "nemoserve",
    ];
    for (manifest, may_use) in [
        ("kvcache/Cargo.toml", &[][..]),
        ("scheduler/Cargo.toml", &["kvcache"]),
        ("engine/kernels/Cargo.toml", &["cube-kernels"]),
        ("engine/kernels/cube/Cargo.toml", &[]),
        ("engine/constraint/Cargo.toml", &["scheduler"]),
        (
            "engine/Cargo.toml",
            &["kvcache", "scheduler", "kernels", "constraint"],
        ),
        ("server/Cargo.toml", &["engine", "constraint", "scheduler"]),
        ("tests/simulation/Cargo.toml", &["kvcache", "scheduler"]),
    ] {
        let used: BTreeSet<_> = dependencies(manifest)
            .into_iter()
            .filter(|name| ours.contains(&name.as_str()))
            .collect();
        let may_use: BTreeSet<_> = may_use.iter().map(|name| (*name).to_owned()).collect();
        assert!(
            used.is_subset(&may_use),
            "{manifest} uses {used:?}, may use {may_use:?}"
        );
    }
}

#[test]
fn bookkeeping_has_no_dependencies() {
    assert_eq!(dependencies("kvcache/Cargo.toml"), BTreeSet::new());
    let scheduler: BTreeSet<_> = ["kvcache", "thiserror"].map(str::to_owned).into();
    assert_eq!(dependencies("scheduler/Cargo.toml"), scheduler);
}

#[test]
fn decisions_are_pure() {
    for folder in ["kvcache/src", "scheduler/src"] {
        ban(
            folder,
            &[
                "std::time",
                "std::thread",
                "std::sync::Mutex",
                "async ",
                "unsafe",
                "rand::",
                "std::env",
                "std::fs",
                "println!",
                "HashMap::iter",
                "HashSet",
            ],
            &[],
            "kvcache and scheduler know no clock, thread, randomness, file or unsafe",
        );
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    for folder in [
        "kvcache",
        "scheduler",
        "engine",
        "server",
        "tests",
        "benches",
    ] {
        ban(
            folder,
            &["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"],
            &[
                "engine/kernels/",
                // Published, patched in one place.
                "engine/cubecl-cuda/",
                "engine/src/checkpoint.rs",
                "tests/tests/tidy.rs",
            ],
            "unsafe belongs to the kernels and the memory map",
        );
    }
}

#[test]
fn cuda_is_a_word_of_few_files() {
    for folder in ["engine/src", "scheduler", "kvcache"] {
        ban(
            folder,
            &["cuda", "Cuda", "CUDA"],
            &["engine/src/device.rs"],
            "layers call kernels and never ask where they run",
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    for folder in [
        "kvcache",
        "scheduler",
        "engine",
        "server",
        "tests",
        "benches",
    ] {
        ban(
            folder,
            &["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"],
            &["tests/tests/tidy.rs", "engine/cubecl-cuda/"],
            "a stub is not done",
        );
    }
}

#[test]
fn one_reader_of_the_environment() {
    for folder in ["engine/src", "engine/kernels/src", "server/src"] {
        ban(
            folder,
            &["env::var"],
            // Tests ask whether a Vulkan device is to be insisted on.
            &["server/src/args.rs", "engine/src/decode/tests.rs"],
            "args.rs is the sole reader of the environment",
        );
    }
}

#[test]
fn every_pin_is_exact_and_says_why() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest is there");
    let section = text
        .split("[workspace.dependencies]")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next())
        .expect("the section is there");
    let mut previous = "";
    let mut num_checked = 0;
    for line in section.lines().filter(|line| !line.is_empty()) {
        if !line.starts_with('#') && !line.contains("path = ") {
            assert!(line.contains("\"="), "not pinned exactly: {line}");
            assert!(previous.starts_with("# "), "no reason above: {line}");
            num_checked += 1;
        }
        previous = line;
    }
    assert!(num_checked > 20, "the section was not read");
}

#[test]
fn every_test_that_the_fault_list_names_exists() {
    let list = fs::read_to_string(root().join("tests/FAULTS.md")).expect("the list is there");
    let rooms = ["kvcache", "scheduler", "engine", "server", "tests"];
    let texts: Vec<String> = rooms
        .into_iter()
        .flat_map(sources)
        .map(|(_, text)| text)
        .collect();
    let rows = list.lines().filter(|line| line.starts_with("| "));
    let last_column = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    let mut num_checked = 0;
    for name in last_column.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        let declared = format!("fn {name}(");
        assert!(
            texts.iter().any(|text| text.contains(&declared)),
            "no test is called {name}"
        );
        num_checked += 1;
    }
    assert!(num_checked > 100, "{num_checked}: the table was not read");
}

#[test]
fn wall_clocks_are_for_timestamps() {
    // Clocks are set and slewed: what waits or times out is by `Instant`.
    let stamps = [
        // `created`, `completed_at` and the like, in answers.
        "server/src/api/",
        "server/src/config.rs",
        "server/src/receipts.rs",
        // The date that templates ask for.
        "server/src/chat/clock.rs",
        // Whether files have changed.
        "server/src/transport/tls.rs",
        // Cache events say when they were sent.
        "server/src/kv_events.rs",
        // When a span began, whose length is by the monotonic clock; what a recording's file is called.
        "server/src/traces/spans.rs",
        "server/src/flight.rs",
        // Commands that end.
        "server/src/cli/",
    ];
    for folder in ["engine/src", "scheduler/src", "server/src"] {
        ban(
            folder,
            &["SystemTime"],
            &stamps,
            "timeouts, deadlines and durations take the monotonic clock",
        );
    }
}
