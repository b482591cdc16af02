//! A hub of models, or a mirror of one. The hub's own client knows addresses, keys, TLS and whom a key
//! may be shown to; what is written where is ours, because that client lets an answer's headers name
//! files on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::cli::manifest::{absorb, check_path, is_hex, is_sha256, is_wanted};

/// Tries in a row that bring nothing new.
const MAX_FAILURES: u32 = 5;
/// Of silence, while connecting, waiting or reading.
const PATIENCE: Duration = Duration::from_secs(30);
/// A list of a repository's files at most.
const MAX_LIST_BYTES: u64 = 16 << 20;
/// A file without a published hash is configuration or text.
const MAX_UNHASHED_BYTES: u64 = 256 << 20;
const PIECE_BYTES: usize = 1 << 18;

pub(super) struct Hub {
    api: Api,
    is_https: bool,
}

/// A repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    /// By name.
    pub(super) files: Vec<Remote>,
    /// Names of what is not fetched.
    pub(super) skipped: Vec<String>,
}

/// A file there.
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) size: u64,
    /// Published for large files only.
    pub(super) sha256: Option<String>,
    repo: ApiRepo,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// `folder` is where the client would keep a cache, if it were asked to.
    pub(super) fn new(
        endpoint: &str,
        token: Option<String>,
        folder: &Path,
    ) -> Result<Self, String> {
        let is_https = endpoint.starts_with("https://");
        if !is_https && !endpoint.starts_with("http://") {
            return Err(format!(
                "--endpoint {endpoint} is neither https:// nor http://"
            ));
        }
        let api = ApiBuilder::from_cache(Cache::new(folder.join("cache")))
            .with_endpoint(endpoint.to_owned())
            .with_token(token)
            .with_user_agent("nemoserve", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| format!("--endpoint {endpoint}: {error}"))?;
        Ok(Self { api, is_https })
    }

    /// Which files there are. A single name that leads elsewhere condemns them all.
    pub(super) fn list(&self, repo: &str, revision: &str) -> Result<Listing, String> {
        let branch = Repo::with_revision(repo.into(), RepoType::Model, revision.into());
        let request = self.api.repo(branch).info_request();
        let request = request.query("blobs", "true").config();
        let answer = request
            .https_only(self.is_https)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .call();
        let fail = |why: &dyn std::fmt::Display| format!("{repo} at {revision}: {why}");
        let body = answer.map_err(|error| fail(&error))?.into_body();
        let body = body.into_with_config().limit(MAX_LIST_BYTES);
        let info: Info = body.read_json().map_err(|error| fail(&error))?;
        if info.sha.is_empty() || info.sha.len() > 64 || !is_hex(&info.sha) {
            return Err(fail(&format!("{:?} is no commit", info.sha)));
        }
        let pinned = || Repo::with_revision(repo.into(), RepoType::Model, info.sha.clone());
        let mut listing = Listing {
            commit: info.sha.clone(),
            files: Vec::new(),
            skipped: Vec::new(),
        };
        for Sibling {
            rfilename: name,
            size,
            lfs,
        } in info.siblings
        {
            check_path(&name).map_err(|why| fail(&why))?;
            if !is_wanted(&name) {
                listing.skipped.push(name);
                continue;
            }
            let (size, sha256) = match (lfs, size) {
                (Some(lfs), _) if is_sha256(&lfs.sha256) => (lfs.size, Some(lfs.sha256)),
                (Some(_), _) => return Err(fail(&format!("{name} has a hash that is none"))),
                (None, Some(size)) if size <= MAX_UNHASHED_BYTES => (size, None),
                (None, _) => return Err(fail(&format!("{name} has no length, or no hash"))),
            };
            listing.files.push(Remote {
                name,
                size,
                sha256,
                repo: self.api.repo(pinned()),
            });
        }
        listing.files.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = listing
            .files
            .windows(2)
            .find(|pair| pair[0].name == pair[1].name)
        {
            return Err(fail(&format!("{} is there twice", pair[0].name)));
        }
        if listing.files.is_empty() {
            return Err(fail(&"holds no file of a model"));
        }
        Ok(listing)
    }

    /// Where the whole file lies now, and its hash. Tries again as long as that brings anything.
    pub(super) fn fetch(
        &self,
        file: &Remote,
        folder: &Path,
        bar: &ProgressBar,
    ) -> Result<(PathBuf, String), String> {
        let before = bar.position();
        let mut part = Part::open(file, folder)?;
        let mut num_failures = 0;
        while part.len < file.size {
            bar.set_position(before + part.len);
            let len = part.len;
            let Err(why) = self.read_on(file, &mut part, bar) else {
                continue;
            };
            num_failures = if part.len > len { 1 } else { num_failures + 1 };
            if num_failures == MAX_FAILURES {
                return Err(format!(
                    "{}: {why}; {} of {} bytes are kept for the next try",
                    file.name, part.len, file.size
                ));
            }
            // The first time may have been an accident; later ones are given time to heal.
            std::thread::sleep(Duration::from_millis(100 << (2 * (num_failures - 1))));
        }
        bar.set_position(before + file.size);
        part.finish(file)
    }

    /// Reads to the end of the file, or as far as it goes.
    fn read_on(&self, file: &Remote, part: &mut Part, bar: &ProgressBar) -> Result<(), String> {
        let request = file.repo.info_request();
        let mut request = request
            .uri(file.repo.url(&file.name))
            // Lengths and ranges are those of the file, not of a packed one.
            .header("accept-encoding", "identity");
        if part.len > 0 {
            request = request.header("range", format!("bytes={}-", part.len));
        }
        let answer = request
            .config()
            .https_only(self.is_https)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .call();
        let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
        let range = head.headers.get("content-range");
        let goes_on = range
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&format!("bytes {}-", part.len)));
        if part.len > 0 && !(head.status == 206 && goes_on) {
            // It knows no ranges.
            part.clear().map_err(|error| part.fail(&error))?;
        }
        let mut body = body.into_reader();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let len = match body.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            if len == 0 && part.len == file.size {
                return Ok(());
            }
            if len == 0 {
                return Err("the answer ended early".into());
            }
            if part.len + len as u64 > file.size {
                part.clear().map_err(|error| part.fail(&error))?;
                return Err(format!("more came than the {} bytes announced", file.size));
            }
            part.push(&buffer[..len])
                .map_err(|error| part.fail(&error))?;
            bar.inc(len as u64);
        }
    }
}

/// A file on its way.
struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
}

impl Part {
    /// Goes on with what is there. Without a published hash nobody could tell whether it is the same
    /// file's, so then it begins anew.
    fn open(file: &Remote, folder: &Path) -> Result<Self, String> {
        let name = file.sha256.as_deref().unwrap_or("unhashed");
        let path = folder.join(format!("{name}.part"));
        let fail = |error: io::Error| format!("{}: {error}", path.display());
        let is_link = path.symlink_metadata().is_ok_and(|is| is.is_symlink());
        if is_link || file.sha256.is_none() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let opened = options.open(&path).map_err(fail)?;
        let mut part = Self {
            file: opened,
            hash: Sha256::new(),
            len: 0,
            path,
        };
        let read = absorb(&mut part.file, &mut part.hash);
        part.len = read.map_err(|error| part.fail(&error))?;
        if part.len > file.size {
            part.clear().map_err(|error| part.fail(&error))?;
        }
        Ok(part)
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Sha256::new();
        self.len = 0;
        Ok(())
    }

    fn finish(self, file: &Remote) -> Result<(PathBuf, String), String> {
        let synced = self.file.sync_all();
        synced.map_err(|error| format!("{}: {error}", self.path.display()))?;
        let sha256 = format!("{:x}", self.hash.finalize());
        match &file.sha256 {
            Some(expected) if *expected != sha256 => {
                let removed = fs::remove_file(&self.path);
                removed.map_err(|error| format!("{}: {error}", self.path.display()))?;
                Err(format!("{} hashes to {sha256}, not {expected}", file.name))
            }
            _ => Ok((self.path, sha256)),
        }
    }

    fn fail(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}
