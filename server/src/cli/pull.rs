//! `nemoserve pull`: a model's files from a hub into a folder, whole and as announced.
//!
//! What comes from the hub is not believed: names must stay in the folder, only kinds of files that
//! are read are fetched, nothing longer than announced is written, and weights must have the hash that
//! the hub has published for them. Files arrive in a hidden folder beside the others and are moved
//! once they are complete; what was interrupted goes on where it stopped.

mod hub;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use self::hub::{Hub, Remote};
use super::manifest::{Entry, Manifest, measure};
use crate::args::{PullArgs, exit};
use crate::startup::bytes;

/// Holds what is not complete, within the folder.
const UNFINISHED: &str = ".nemoserve-pull";

/// Fetches what is not there yet.
pub fn run(args: &PullArgs) -> u8 {
    match pull(args) {
        Ok(()) => exit::OK,
        Err(Failure::Usage(why)) => complain(exit::USAGE, &why),
        Err(Failure::Other(why)) => complain(exit::COMMAND, &why),
    }
}

enum Failure {
    Usage(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

fn pull(args: &PullArgs) -> Result<(), Failure> {
    let name = check_repo(&args.repo).map_err(Failure::Usage)?;
    check_revision(&args.revision).map_err(Failure::Usage)?;
    let folder = args.to.clone().unwrap_or_else(|| PathBuf::from(name));
    let unfinished = make_folder(&folder).map_err(Failure::Other)?;
    let _lock = lock(&unfinished)?;
    let endpoint = args.endpoint.trim_end_matches('/');
    let hub = Hub::new(endpoint, args.token.clone(), &unfinished).map_err(Failure::Usage)?;

    let listing = hub.list(&args.repo, &args.revision)?;
    for skipped in &listing.skipped {
        eprintln!("  {skipped} is left out: not a kind of file that is read");
    }
    let total = listing.files.iter().map(|file| file.size).sum();
    eprintln!(
        "{} at {}: {} files, {} into {}",
        args.repo,
        listing.commit,
        listing.files.len(),
        bytes(total),
        folder.display()
    );
    let bar = progress(total);
    let mut files = Vec::with_capacity(listing.files.len());
    for file in &listing.files {
        bar.set_message(file.name.clone());
        files.push(fetch(&hub, file, &folder, &unfinished, &bar)?);
    }
    bar.finish_and_clear();
    let manifest = Manifest {
        repo: args.repo.clone(),
        commit: listing.commit,
        endpoint: endpoint.to_owned(),
        files,
    };
    let fail = |error: io::Error| format!("{}: {error}", folder.display());
    manifest.write(&folder).map_err(fail)?;
    fs::remove_dir_all(&unfinished).map_err(fail)?;
    println!("{}", folder.display());
    Ok(())
}

/// Leaves a file that is there and right as it is.
fn fetch(
    hub: &Hub,
    file: &Remote,
    folder: &Path,
    unfinished: &Path,
    bar: &ProgressBar,
) -> Result<Entry, String> {
    let path = folder.join(&file.name);
    let entry = |sha256| Entry {
        name: file.name.clone(),
        size: file.size,
        sha256,
    };
    if let Some(expected) = &file.sha256
        && path.is_file()
        && let Some((_, sha256)) = measure(&path)?
        && sha256 == *expected
    {
        bar.inc(file.size);
        return Ok(entry(sha256));
    }
    let (part, sha256) = hub.fetch(file, unfinished, bar)?;
    // Replaces a symbolic link of that name rather than what it leads to.
    let moved = fs::rename(part, &path);
    moved.map_err(|error| format!("{}: {error}", path.display()))?;
    if !bar.is_hidden() {
        return Ok(entry(sha256));
    }
    eprintln!("  {} {}", file.name, bytes(file.size));
    Ok(entry(sha256))
}

/// The part of `owner/name` that names the folder.
fn check_repo(repo: &str) -> Result<&str, String> {
    let is_plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(known)
    };
    match repo.split_once('/') {
        Some((owner, name)) if is_plain(owner) && is_plain(name) => Ok(name),
        _ => Err(format!("{repo:?} is no repository: owner/name")),
    }
}

fn check_revision(revision: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    let is_plain = !revision.is_empty() && revision.bytes().all(known);
    if !is_plain
        || revision
            .split('/')
            .any(|part| part.is_empty() || part.starts_with('.'))
    {
        return Err(format!(
            "--revision {revision:?} is no branch, tag or commit"
        ));
    }
    Ok(())
}

/// Makes the folder and, within it, the one for what is not complete.
fn make_folder(folder: &Path) -> Result<PathBuf, String> {
    let unfinished = folder.join(UNFINISHED);
    let fail = |error: io::Error| format!("{}: {error}", unfinished.display());
    fs::create_dir_all(&unfinished).map_err(fail)?;
    let kind = unfinished.symlink_metadata().map_err(fail)?.file_type();
    if !kind.is_dir() {
        return Err(format!("{} is a symbolic link", unfinished.display()));
    }
    Ok(unfinished)
}

/// Two at the same folder would write into each other's files.
fn lock(unfinished: &Path) -> Result<File, String> {
    let path = unfinished.join("lock");
    let fail = |error: io::Error| format!("{}: {error}", path.display());
    let file = File::create(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("{}: another pull is at work here", path.display()))
        }
        Err(TryLockError::Error(error)) => Err(fail(error)),
    }
}

/// Hidden where standard error is no terminal.
fn progress(total: u64) -> ProgressBar {
    let text = "  {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
    let style = ProgressStyle::with_template(text).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style)
}

fn complain(code: u8, why: &str) -> u8 {
    eprintln!("nemoserve pull: {why}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_revisions_have_plain_names() {
        assert_eq!(
            check_repo("nvidia/NVIDIA-Nemotron_3.1"),
            Ok("NVIDIA-Nemotron_3.1")
        );
        for repo in [
            "", "x", "a/b/c", "../x", "a/..", "a/", "/a", "a/b?c", "a b/c", "a/.b",
        ] {
            assert!(check_repo(repo).is_err(), "{repo}");
        }
        for revision in ["main", "refs/pr/1", "v1.0", "0a1b"] {
            assert_eq!(check_revision(revision), Ok(()));
        }
        for revision in ["", "..", "a/../b", "a//b", "a?b", "a b", ".a"] {
            assert!(check_revision(revision).is_err(), "{revision}");
        }
    }
}
