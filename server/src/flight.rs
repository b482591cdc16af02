//! The recording of what the scheduler was told and planned: to whoever asks, and to a file when the
//! engine fails. `nemoserve replay` runs it again.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::flight::{Contents, DEFAULT_BYTES, Recording};
use futures_util::stream::unfold;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::{Semaphore, mpsc};

use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

/// Bytes that go out at once.
const PIECE: usize = 64 << 10;
/// Pieces that wait for a slow reader.
const NUM_PIECES: usize = 8;

/// Files that a folder keeps: who fails again and again must not fill the disk.
const MAX_FILES: usize = 16;

/// A copy keeps what it shows in memory, and its writer a thread.
static READERS: Semaphore = Semaphore::const_new(16);

/// What is recorded, and where it goes in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlightConfig {
    /// Where a file is written when the engine fails; the newest 16 are kept. Default: nowhere.
    pub dir: Option<PathBuf>,
    /// How tokens are written there. What clients get never has any. Default hidden.
    pub contents: Contents,
    /// Bytes of memory for it; 0 records nothing. Default 64 MiB.
    pub max_bytes: usize,
}

impl Default for FlightConfig {
    fn default() -> Self {
        Self {
            dir: None,
            contents: Contents::Hidden,
            max_bytes: DEFAULT_BYTES,
        }
    }
}

/// `GET /debug/flight`: lines of JSON, as far back as memory goes, without anybody's tokens.
pub(crate) fn answer(ctx: &RequestContext) -> Result<Response, ApiError> {
    let Ok(reader) = READERS.try_acquire() else {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let (kind, code) = ("rate_limit_error", "rate_limit_exceeded");
        let message = "others are reading the recording: one after another";
        return Err(ApiError::new(status, kind, code, message).retry_after(5));
    };
    let recording = ctx.state.engine.flight();
    let (pieces, waiting) = mpsc::channel(NUM_PIECES);
    // Writing takes a while, and waits for a slow reader; when that is gone, it ends.
    let writing = tokio::task::spawn_blocking(move || {
        let _reader = reader;
        let mut out = BufWriter::with_capacity(PIECE, Pieces(pieces));
        if let Err(error) = write(&recording, &mut out, Contents::Hidden) {
            tracing::debug!(%error, "a flight recording was not read to its end");
        }
    });
    let frames = unfold((waiting, writing), |(mut waiting, writing)| async move {
        let Some(piece) = waiting.recv().await else {
            // What a panic cut short must not look whole.
            writing.await.expect("a recording can be written");
            return None;
        };
        let frame = Ok::<_, Infallible>(Frame::data(piece));
        Some((frame, (waiting, writing)))
    });
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/jsonl");
    headers.insert(CONTENT_TYPE, kind);
    let name = HeaderValue::from_static("attachment; filename=\"flight.jsonl\"");
    headers.insert(CONTENT_DISPOSITION, name);
    Ok(response)
}

/// Writes the recording to the configured folder, if there is one, and says so in the log. For the end
/// of a process that must end: it blocks.
pub fn leave(state: &AppState, why: &str) -> Option<PathBuf> {
    let FlightConfig { dir, contents, .. } = &state.config.flight;
    let recording = state.engine.flight();
    let dir = dir.as_ref()?;
    let written = write_file(dir, &file_name(why), |out| {
        write(&recording, out, *contents)
    });
    match written {
        Ok(path) => {
            let (path_shown, num_calls) = (path.display(), recording.num_calls());
            tracing::warn!(path = %path_shown, num_calls, "a flight recording was written");
            if let Err(error) = remove_old(dir, &path) {
                tracing::warn!(%error, "old flight recordings were not removed");
            }
            Some(path)
        }
        Err(error) => {
            tracing::error!(%error, "the flight recording could not be written");
            None
        }
    }
}

fn file_name(why: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    format!("flight-{seconds}-{}-{why}.jsonl", std::process::id())
}

/// Only its owner may read it. It has its name once it is whole.
fn write_file(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let (path, part) = (dir.join(name), dir.join(format!(".{name}.part")));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)?;
    let mut out = BufWriter::with_capacity(PIECE, file);
    let written = write(&mut out).and_then(|()| out.flush());
    if let Err(error) = written.and_then(|()| fs::rename(&part, &path)) {
        // Half of it is of no use, and on a full disk in the way.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    Ok(path)
}

/// Removes the oldest of the recordings beside `newest`, by the times in their names.
fn remove_old(dir: &Path, newest: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path != newest {
            others.extend(written_at(&path).map(|at| (at, path)));
        }
    }
    others.sort_unstable();
    let num_old = (others.len() + 1).saturating_sub(MAX_FILES);
    others
        .iter()
        .take(num_old)
        .try_for_each(|(_, path)| fs::remove_file(path))
}

/// Unix seconds, if this is how [`file_name`] calls a recording.
fn written_at(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix("flight-")?.strip_suffix(".jsonl")?;
    let mut parts = name.splitn(3, '-');
    let (seconds, process, _why) = (parts.next()?, parts.next()?, parts.next()?);
    process.parse::<u32>().ok()?;
    seconds.parse().ok()
}

fn write(recording: &Recording, out: &mut dyn Write, contents: Contents) -> io::Result<()> {
    recording.write(out, contents)?;
    out.flush()
}

/// Hands on what is written to it.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(piece);
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("it is there");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().expect("letters"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_cannot_be_finished_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let failed = write_file(folder.path(), "a.jsonl", |out| {
            out.write_all(&vec![b'x'; 2 * PIECE])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        let error = failed.expect_err("the disk is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(names(folder.path()), [] as [&str; 0]);

        let path = write_file(folder.path(), "a.jsonl", |out| out.write_all(b"x"));
        assert_eq!(path.expect("there is room"), folder.path().join("a.jsonl"));
        assert_eq!(names(folder.path()), ["a.jsonl"]);
    }

    #[test]
    fn the_newest_recordings_are_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "x").expect("it is written");
            path
        };
        let foreign = ["flight-1.jsonl", "flight-1-2-failed.txt", "notes"];
        for name in foreign {
            put(name);
        }
        // As numbers: 9 is before 10. The clock was set back before the last was written.
        for seconds in 1..=MAX_FILES + 3 {
            put(&format!("flight-{seconds}-77-failed.jsonl"));
        }
        let newest = put("flight-0-78-failed.jsonl");
        remove_old(folder.path(), &newest).expect("it is ours");
        let left = names(folder.path());
        for name in foreign {
            assert!(left.iter().any(|one| one == name), "{name}: {left:?}");
        }
        let mut times: Vec<_> = left
            .iter()
            .filter_map(|name| written_at(Path::new(name)))
            .collect();
        times.sort_unstable();
        let kept = 5..=MAX_FILES as u64 + 3;
        assert_eq!(times, [0].into_iter().chain(kept).collect::<Vec<_>>());
        assert!(written_at(Path::new(&file_name("failed"))).is_some());
        // Few enough: all stay.
        remove_old(folder.path(), &newest).expect("it is ours");
        assert_eq!(names(folder.path()), left);
    }
}
