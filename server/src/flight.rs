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

/// A copy keeps what it shows in memory, and its writer a thread.
static READERS: Semaphore = Semaphore::const_new(16);

/// What is recorded, and where it goes in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlightConfig {
    /// Where a file is written when the engine fails. Default: nowhere.
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
    tokio::task::spawn_blocking(move || {
        let _reader = reader;
        let mut out = BufWriter::with_capacity(PIECE, Pieces(pieces));
        if let Err(error) = write(&recording, &mut out, Contents::Hidden) {
            tracing::debug!(%error, "a flight recording was not read to its end");
        }
    });
    let frames = unfold(waiting, |mut waiting: mpsc::Receiver<Bytes>| async move {
        let piece = waiting.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(piece)), waiting))
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
    match write_file(dir.as_ref()?, &recording, *contents, why) {
        Ok(path) => {
            let (path_shown, num_calls) = (path.display(), recording.num_calls());
            tracing::warn!(path = %path_shown, num_calls, "a flight recording was written");
            Some(path)
        }
        Err(error) => {
            tracing::error!(%error, "the flight recording could not be written");
            None
        }
    }
}

/// Only its owner may read it. It has its name once it is whole.
fn write_file(
    dir: &Path,
    recording: &Recording,
    contents: Contents,
    why: &str,
) -> io::Result<PathBuf> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let name = format!("flight-{seconds}-{}-{why}.jsonl", std::process::id());
    let (path, part) = (dir.join(&name), dir.join(format!(".{name}.part")));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)?;
    let mut out = BufWriter::with_capacity(PIECE, file);
    write(recording, &mut out, contents)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    fs::rename(&part, &path)?;
    Ok(path)
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
