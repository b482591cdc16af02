//! `nemoserve verify`: whether a folder is what `pull` fetched.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::manifest::{MANIFEST, Manifest, measure};
use crate::args::{VerifyArgs, exit};
use crate::startup::bytes;

/// Checks every file, says what is wrong with which, and whether all is well.
pub fn run(args: &VerifyArgs) -> u8 {
    let manifest = match Manifest::read(&args.folder) {
        Ok(manifest) => manifest,
        Err(why) => {
            eprintln!("nemoserve verify: {why}");
            return exit::COMMAND;
        }
    };
    let mut problems = wrong_files(&args.folder, &manifest);
    match unlisted_files(&args.folder, &manifest) {
        Ok(unlisted) => problems.extend(unlisted),
        Err(why) => problems.push(why),
    }
    for problem in &problems {
        eprintln!("nemoserve verify: {problem}");
    }
    if !problems.is_empty() {
        return exit::COMMAND;
    }
    let total = manifest.files.iter().map(|file| file.size).sum();
    println!(
        "{} files, {}, as in {} at {}",
        manifest.files.len(),
        bytes(total),
        manifest.repo,
        manifest.commit
    );
    exit::OK
}

/// In the manifest's order; hashed by as many threads as there are cores.
fn wrong_files(folder: &Path, manifest: &Manifest) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    let mut problems: Vec<(usize, String)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads.min(manifest.files.len()))
            .map(|_| {
                scope.spawn(|| {
                    let mut problems = Vec::new();
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(file) = manifest.files.get(at) else {
                            return problems;
                        };
                        let problem = match measure(&folder.join(&file.name)) {
                            Err(why) => why,
                            Ok(None) => format!("{} is missing", file.name),
                            Ok(Some((size, _))) if size != file.size => {
                                format!("{} has {size} bytes, not {}", file.name, file.size)
                            }
                            Ok(Some((_, sha256))) if sha256 != file.sha256 => {
                                format!("{} hashes to {sha256}, not {}", file.name, file.sha256)
                            }
                            Ok(Some(_)) => continue,
                        };
                        problems.push((at, problem));
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("hashing does not panic"))
            .collect()
    });
    problems.sort();
    problems.into_iter().map(|(_, problem)| problem).collect()
}

/// A shard that nobody fetched would be served like the others. Hidden files are never read.
fn unlisted_files(folder: &Path, manifest: &Manifest) -> Result<BTreeSet<String>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut unlisted = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let name = name.to_string_lossy();
        let is_listed = manifest.files.iter().any(|file| file.name == name);
        if !is_listed && name != MANIFEST && !name.starts_with('.') {
            unlisted.insert(format!("{name} is not in {MANIFEST}"));
        }
    }
    Ok(unlisted)
}
