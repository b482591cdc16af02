//! Decisions that a reader should know, as scripts and schedules: `traces/*.txt`.
//!
//! `NEMOSERVE_TRACES=write` writes the schedules anew; look at the difference before you keep it.

use std::fs;
use std::path::Path;

use simulation::play;

const RULE: &str = "---\n";

#[test]
fn schedules_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    paths.sort();
    let write = std::env::var("NEMOSERVE_TRACES").is_ok_and(|value| value == "write");
    let mut num_checked = 0;
    for path in paths {
        let text = fs::read_to_string(&path).expect("a trace is text");
        let (script, expect) = text.split_once(RULE).unwrap_or((&text, ""));
        let got = play(script);
        if write {
            fs::write(&path, format!("{script}{RULE}{got}")).expect("a trace can be written");
        } else {
            assert_eq!(got, expect, "{}", path.display());
        }
        num_checked += 1;
    }
    assert!(num_checked >= 10, "only {num_checked} traces found");
}
