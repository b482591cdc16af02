//! Standard error, written by a thread of its own. Whoever reads the log slowly, or not at all, or has
//! no room for it, loses lines of it and holds up nobody.

use std::io::{self, Write as _, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

/// Lines that may wait to be written.
const MAX_LINES: usize = 8192;
/// For the last of them, when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// One per process, once there is a log.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    waiting: Sender<Entry>,
    num_lost: AtomicU64,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when all before it are written.
    Mark(Sender<()>),
}

/// Takes whole lines.
pub(crate) struct LogWriter;

impl LogWriter {
    /// Starts the thread. Until then, and without it, lines are written by whoever has them.
    pub(crate) fn start() {
        let (waiting, lines) = bounded(MAX_LINES);
        let thread = std::thread::Builder::new().name("log".into());
        let log = Log {
            waiting,
            num_lost: AtomicU64::new(0),
        };
        if LOG.set(log).is_ok() {
            // Without a thread its end of the channel is gone, and lines are written in place.
            let _ = thread.spawn(move || write_all(&lines));
        }
    }
}

impl io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(log) = LOG.get() else {
            return stderr().write(line);
        };
        match log.waiting.try_send(Entry::Line(line.to_vec())) {
            Ok(()) => {}
            Err(refused) if refused.is_full() => {
                log.num_lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => return stderr().write(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(lines: &Receiver<Entry>) {
    for entry in lines {
        match entry {
            Entry::Line(line) => {
                // A disk that is full today may have room tomorrow.
                let _ = stderr().write_all(&line);
            }
            // Whoever asked may have stopped waiting.
            Entry::Mark(written) => drop(written.send(())),
        }
        let log = LOG.get().expect("set before this thread began");
        let num_lost = log.num_lost.swap(0, Ordering::Relaxed);
        if num_lost > 0 {
            tracing::warn!(
                num_lost,
                "lines of the log were lost: it is read too slowly"
            );
        }
    }
}

/// Says something to whoever started the program, if anybody can hear it: a full disk under the log must
/// not end a server.
pub fn say(text: &dyn std::fmt::Display) {
    let _ = LogWriter.write_all(format!("{text}\n").as_bytes());
}

/// Waits until all that was said is written, though not for ever. Before the process ends.
pub fn flush() {
    let Some(log) = LOG.get() else { return };
    let (written, is_written) = bounded(1);
    if log
        .waiting
        .send_timeout(Entry::Mark(written), LAST_LINES)
        .is_ok()
    {
        let _ = is_written.recv_timeout(LAST_LINES);
    }
}
