//! What a model folder should hold: names, lengths and hashes, as `pull` writes them down and `verify`
//! reads them.
//!
//! Nothing in such a folder is code to us: pickles and scripts are neither fetched nor tolerated.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Lies in the folder that it describes.
pub(super) const MANIFEST: &str = "nemoserve-manifest.json";

/// Far more than a manifest of the largest checkpoint takes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// Bytes hashed at once.
const PIECE_BYTES: usize = 1 << 20;

/// Weights, configuration, tokenizer, template, and texts for people.
const ENDINGS: &[&str] = &[".safetensors", ".json", ".jinja", ".txt", ".md"];

/// What was fetched, from where.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// `owner/name`.
    pub(super) repo: String,
    /// Which state of it: a commit, never a branch.
    pub(super) commit: String,
    pub(super) endpoint: String,
    pub(super) files: Vec<Entry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
    /// Hexadecimal, in small letters.
    pub(super) sha256: String,
}

impl Manifest {
    /// Reads and checks what a folder says of itself.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(MANIFEST);
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(&path).map_err(|error| fail(&error))?;
        let mut text = String::new();
        let read = file.take(MAX_MANIFEST_BYTES).read_to_string(&mut text);
        read.map_err(|error| fail(&error))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|error| fail(&error))?;
        for entry in &manifest.files {
            check_path(&entry.name).map_err(|error| fail(&error))?;
            if !is_wanted(&entry.name) {
                return Err(fail(&format!("{:?} is no file of a model", entry.name)));
            }
            if !is_sha256(&entry.sha256) {
                return Err(fail(&format!("the hash of {:?} is no SHA-256", entry.name)));
            }
        }
        Ok(manifest)
    }

    /// Replaces what was there, or leaves it whole.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("strings and numbers are JSON");
        let unfinished = folder.join(format!(".{MANIFEST}"));
        std::fs::write(&unfinished, text + "\n")?;
        std::fs::rename(unfinished, folder.join(MANIFEST))
    }
}

/// Refuses names that lead elsewhere, or that no honest repository has.
pub(super) fn check_path(name: &str) -> Result<(), String> {
    let leads_elsewhere = name.starts_with('/')
        || name.contains('\\')
        || name.split('/').any(|part| ["", ".", ".."].contains(&part));
    if leads_elsewhere || name.len() > 1024 || name.chars().any(char::is_control) {
        return Err(format!("{name:?} is not the name of a file in a folder"));
    }
    Ok(())
}

/// Whether a model folder is served from such a file, or a person reads it. Others stay where they are.
pub(super) fn is_wanted(name: &str) -> bool {
    let is_plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let is_text = ["LICENSE", "NOTICE"].contains(&name);
    let ends_well = ENDINGS.iter().any(|ending| name.ends_with(ending));
    is_plain && !name.starts_with('.') && name != MANIFEST && (is_text || ends_well)
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Feeds a hash with the rest of a file; returns how many bytes those were.
pub(super) fn absorb(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(len) => {
                hash.update(&buffer[..len]);
                total += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Length and hash of a file that is no symbolic link; `None` if there is none.
pub(super) fn measure(path: &Path) -> Result<Option<(u64, String)>, String> {
    let fail = |error: io::Error| format!("{}: {error}", path.display());
    let kind = match path.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    if !kind.is_file() {
        let what = if kind.is_symlink() {
            "a symbolic link, which may lead anywhere"
        } else {
            "no file"
        };
        return Err(format!("{} is {what}", path.display()));
    }
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(fail)?;
    let size = absorb(&mut file, &mut hash).map_err(fail)?;
    Ok(Some((size, format!("{:x}", hash.finalize()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "model.safetensors",
            "a/b.json",
            ".gitattributes",
            "é.json",
            "a..b",
        ] {
            assert_eq!(check_path(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "..",
            "../x.json",
            "a/../../x.json",
            "a//b",
            "a/",
            "./a",
            "a\\b",
            "a\nb",
            "a\0b",
        ] {
            assert!(check_path(name).is_err(), "{name:?}");
        }
        assert!(check_path(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn only_files_of_models_are_wanted() {
        for name in [
            "model-00001-of-00002.safetensors",
            "config.json",
            "chat_template.jinja",
            "LICENSE",
            "README.md",
            "merges.txt",
        ] {
            assert!(is_wanted(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "model.pt",
            "model.pkl",
            "modeling_nemotron_h.py",
            "x.gguf",
            ".gitattributes",
            ".json",
            "original/model.safetensors",
            "a b.json",
            MANIFEST,
            "x.sh",
        ] {
            assert!(!is_wanted(name), "{name}");
        }
    }

    #[test]
    fn hashes_are_known_ones() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("abc.txt");
        std::fs::write(&path, "abc").expect("writable");
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(measure(&path), Ok(Some((3, hash.to_owned()))));
        assert!(is_sha256(hash) && !is_sha256(&hash.to_uppercase()) && !is_sha256("ab"));
        assert_eq!(measure(&folder.path().join("none")), Ok(None));
        assert!(measure(folder.path()).is_err_and(|why| why.contains("no file")));
        let link = folder.path().join("link.txt");
        std::os::unix::fs::symlink("/etc/hostname", &link).expect("links can be made");
        assert!(measure(&link).is_err_and(|why| why.contains("symbolic link")));
    }

    #[test]
    fn a_manifest_is_believed_only_as_far_as_it_is_sound() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let entry = |name: &str, sha256: &str| Entry {
            name: name.into(),
            size: 1,
            sha256: sha256.into(),
        };
        let manifest = |files| Manifest {
            repo: "a/b".into(),
            commit: "0".into(),
            endpoint: "http://127.0.0.1".into(),
            files,
        };
        let hash = "0".repeat(64);
        let good = manifest(vec![entry("config.json", &hash)]);
        good.write(folder.path()).expect("writable");
        assert_eq!(Manifest::read(folder.path()), Ok(good));
        for bad in [
            entry("../config.json", &hash),
            entry("x.bin", &hash),
            entry("a.json", "0"),
        ] {
            let name = bad.name.clone();
            manifest(vec![bad]).write(folder.path()).expect("writable");
            let why = Manifest::read(folder.path()).expect_err("it is bad");
            assert!(why.contains(&name), "{why}");
        }
    }
}
