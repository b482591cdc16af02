//! Time until steps can run, beside the time that reading the same files takes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::report::Report;
use super::{BenchError, open, report};
use crate::args::{BenchLoadArgs, ServeArgs};

/// What one read asks for.
const PIECE_BYTES: u64 = 8 << 20;
/// Reads at once: enough for disks that answer many.
const NUM_READERS: usize = 8;

pub(super) fn run(args: &BenchLoadArgs) -> Result<Report, BenchError> {
    let files = weight_files(&args.serve).map_err(BenchError::Failed)?;
    let mut report = {
        let opened = open(&args.serve)?;
        report("load", &opened, &args.serve)
    };
    let total: u64 = files.iter().map(|(_, len)| len).sum();
    report.about("file_bytes", total);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| BenchError::Failed(error.to_string()))?;
    for state in ["as found", "cached"] {
        let ready = time_to_ready(&args.serve, &runtime)?;
        let read = (total > 0).then(|| read_all(&files)).transpose();
        let read = read.map_err(BenchError::Failed)?;
        let read_s = read.map(|time| time.as_secs_f64());
        let ready_s = ready.as_secs_f64();
        report.row(json!({
            "page_cache": state,
            "ready_s": ready_s,
            "ready_gb_per_s": total as f64 / ready_s / 1e9,
            "read_s": read_s,
            "read_gb_per_s": read_s.map(|time| total as f64 / time / 1e9),
            "ready_over_read": read_s.map(|time| ready_s / time),
        }));
    }
    report.note(
        "Each reading comes after its loading, so the files are cached for it; the first loading is\n\
         cold only if nobody has read the files since the machine started or its cache was dropped\n\
         (echo 3 > /proc/sys/vm/drop_caches).",
    );
    Ok(report)
}

/// From nothing to `/ready`: files opened, weights loaded, steps warmed up.
fn time_to_ready(
    args: &ServeArgs,
    runtime: &tokio::runtime::Runtime,
) -> Result<Duration, BenchError> {
    let begin = Instant::now();
    let handle = open(args)?.start()?;
    let ready = runtime.block_on(handle.ready());
    ready.map_err(|error| BenchError::Failed(error.to_string()))?;
    Ok(begin.elapsed())
}

/// The folder's weights and their lengths; none where weights are not read from files.
fn weight_files(args: &ServeArgs) -> Result<Vec<(PathBuf, u64)>, String> {
    let Some(folder) = &args.model else {
        return Ok(Vec::new());
    };
    if args.load_format == Some(crate::args::LoadFormat::Dummy) {
        return Ok(Vec::new());
    }
    let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path
            .extension()
            .is_some_and(|ending| ending == "safetensors")
        {
            let len = std::fs::metadata(&path).map_err(fail)?.len();
            files.push((path, len));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads everything by several threads and keeps nothing.
fn read_all(files: &[(PathBuf, u64)]) -> Result<Duration, String> {
    let begin = Instant::now();
    let mut pieces = Vec::new();
    for (path, len) in files {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let file = std::sync::Arc::new(file);
        let starts = (0..*len).step_by(PIECE_BYTES as usize);
        pieces
            .extend(starts.map(|at| (std::sync::Arc::clone(&file), at, PIECE_BYTES.min(len - at))));
    }
    let next = AtomicUsize::new(0);
    let outcome: Result<(), std::io::Error> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..NUM_READERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = vec![0_u8; PIECE_BYTES as usize];
                    while let Some((file, at, len)) =
                        pieces.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        file.read_exact_at(&mut buffer[..*len as usize], *at)?;
                    }
                    Ok(())
                })
            })
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().expect("a reader does not panic"))
    });
    outcome.map_err(|error| error.to_string())?;
    Ok(begin.elapsed())
}
