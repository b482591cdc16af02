//! Ends a process whose engine hangs: a device that never answers, a lock that never opens, a disk that
//! has gone from under the weights.
//!
//! It has a thread of its own, as whatever hangs may hang the runtime too. What it finds it writes to
//! the log, and then takes the engine for failed: every client is told, and the process ends with a
//! code of its own for whoever restarts it.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{Cause, EngineHandle, EngineStatus, Failure};

use crate::args::exit;
use crate::http::LAST_WORDS;
use crate::log_writer;
use crate::state::{AppState, Phase};

/// Between two looks, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Rows of a step that a dump lists.
const MAX_ROWS: usize = 32;

/// Looks after one engine until it is dropped.
pub(crate) struct Watchdog {
    thread: JoinHandle<()>,
    is_over: Arc<AtomicBool>,
}

impl Watchdog {
    /// `None` if nobody wants one.
    pub(crate) fn start(state: &Arc<AppState>) -> Option<Self> {
        let limits = Limits {
            work: state.config.watchdog_timeout?,
            load: state.config.load_timeout,
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (watched, ends) = (Arc::downgrade(state), Arc::clone(&is_over));
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&watched, limits, &ends));
        match thread {
            Ok(thread) => Some(Self { thread, is_over }),
            Err(error) => {
                tracing::error!(%error, "no thread for the watchdog: nobody notices if the engine hangs");
                None
            }
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

/// How long there may be no sign of life.
#[derive(Clone, Copy)]
struct Limits {
    /// While work waits or runs.
    work: Duration,
    /// While weights load, or the model warms up.
    load: Duration,
}

impl Limits {
    /// What is wrong with an engine that was still for so long; `None`: nothing yet.
    fn exceeded(self, status: &EngineStatus, age: Duration) -> Option<String> {
        let (what, limit, flag) = match status {
            EngineStatus::Loading { .. } => ("weights loaded", self.load, "--load-timeout"),
            EngineStatus::WarmingUp { .. } => ("the model warmed up", self.load, "--load-timeout"),
            EngineStatus::Ready | EngineStatus::Failed(_) => {
                ("work waited", self.work, "--watchdog-seconds")
            }
        };
        let (seconds, most) = (age.as_secs(), limit.as_secs_f32());
        let message = || format!("nothing was done for {seconds} s while {what} ({flag} {most})");
        (age > limit).then(message)
    }
}

fn watch(state: &Weak<AppState>, limits: Limits, is_over: &AtomicBool) {
    let interval = (limits.work.min(limits.load) / 10).min(LOOK_INTERVAL);
    loop {
        std::thread::park_timeout(interval);
        let Some(state) = state.upgrade() else { return };
        if is_over.load(Ordering::Acquire) {
            return;
        }
        // Asked for before the age: see `still_for`.
        let status = state.engine.status();
        if let Some(age) = state.engine.still_for()
            && let Some(message) = limits.exceeded(&status, age)
        {
            return give_up(&state, &status, age, message);
        }
    }
}

fn give_up(state: &AppState, status: &EngineStatus, age: Duration, message: String) {
    state.metrics.count_watchdog();
    tracing::error!("{}", dump(state, status, age));
    state.engine.give_up(Failure {
        cause: Cause::Stall,
        message,
    });
    // Its thread cannot tell its clients, so the streams end by themselves.
    state.phase.send_replace(Phase::Deadline);
}

/// What there is to know about an engine that does not answer. No prompt, no key.
fn dump(state: &AppState, status: &EngineStatus, age: Duration) -> String {
    let mut out = format!(
        "the engine hangs: no sign of life for {} ms\n",
        age.as_millis()
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(out, "  {text}").expect("writing to a string succeeds");
    };
    // Where loading stood still, or that it is over.
    line(format_args!("{status:?}"));
    let last = state.engine.last_step();
    let how = if last.is_over {
        "is over"
    } else {
        "has no result yet"
    };
    line(format_args!(
        "step {}: {how}; {} state movements, {} rows",
        last.step,
        last.num_ops,
        last.rows.len()
    ));
    for (sequence, start, len) in last.rows.iter().take(MAX_ROWS) {
        let id = sequence.0;
        line(format_args!(
            "  sequence {id}: {len} tokens from position {start} on"
        ));
    }
    line(format_args!("{:?}", state.engine.stats().scheduler));
    let generating = state.num_generating.load(Ordering::Acquire);
    line(format_args!("{generating} generating requests in flight"));
    match threads() {
        Ok(threads) => threads
            .iter()
            .for_each(|thread| line(format_args!("{thread}"))),
        Err(error) => line(format_args!("threads: {error}")),
    }
    out
}

/// One line per thread of this process: what it is called, whether it runs or what it waits for. Says
/// whether the engine computes without end or waits for its driver; a debugger says more.
fn threads() -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let folder = task?.path();
        let read = |name: &str| {
            let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        let stat = read("stat");
        // Behind the name, which may hold anything: state, and as 14th and 15th fields the time used.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |nth: usize| fields.get(nth - 3).copied().unwrap_or("?");
        let (name, waits_in) = (read("comm"), read("wchan"));
        let id = folder.file_name().unwrap_or_default().display().to_string();
        lines.push(format!(
            "thread {id} {name}: state {}, user {}, system {} ticks, waits in {waits_in}",
            field(3),
            field(14),
            field(15),
        ));
    }
    lines.sort();
    Ok(lines)
}

/// Ends the process even if what hangs keeps it from ending in order. For the binary: tests end by
/// themselves. It relies on no runtime.
pub fn end_for_good(engine: EngineHandle) {
    let hangs =
        move || matches!(engine.status(), EngineStatus::Failed(why) if why.cause == Cause::Stall);
    let wait = move || {
        while !hangs() {
            std::thread::sleep(LOOK_INTERVAL);
        }
        std::thread::sleep(4 * LAST_WORDS);
        // A driver that hangs may hang whatever it does at the end, too.
        std::thread::spawn(|| {
            std::thread::sleep(2 * LAST_WORDS);
            std::process::abort();
        });
        log_writer::flush();
        std::process::exit(exit::STALL.into());
    };
    let thread = std::thread::Builder::new().name("last-resort".into());
    if let Err(error) = thread.spawn(wait) {
        tracing::warn!(%error, "no thread to end a process that cannot end in order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_has_a_limit_of_its_own() {
        let limits = Limits {
            work: Duration::from_mins(1),
            load: Duration::from_mins(10),
        };
        let check = |status: EngineStatus, seconds, expect: Option<String>| {
            let message = limits.exceeded(&status, Duration::from_secs(seconds));
            assert_eq!(message, expect);
        };
        let loading = EngineStatus::Loading {
            loaded_bytes: 1,
            total_bytes: 2,
        };
        let warming_up = EngineStatus::WarmingUp {
            num_done: 1,
            num_total: 2,
        };
        let nothing = |seconds, rest| Some(format!("nothing was done for {seconds} s {rest}"));
        check(loading.clone(), 600, None);
        let rest = "while weights loaded (--load-timeout 600)";
        check(loading, 601, nothing(601, rest));
        check(warming_up.clone(), 600, None);
        let rest = "while the model warmed up (--load-timeout 600)";
        check(warming_up, 601, nothing(601, rest));
        check(EngineStatus::Ready, 60, None);
        let rest = "while work waited (--watchdog-seconds 60)";
        check(EngineStatus::Ready, 61, nothing(61, rest));
    }

    #[test]
    fn threads_are_listed_with_what_they_wait_for() {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::Builder::new().name("sleeper".into());
        let sleeper = sleeper.spawn(move || {
            ready.send(()).expect("the test waits");
            wait.recv().expect("the test ends it");
        });
        is_ready.recv().expect("it has begun");
        let lines = threads().expect("this is Linux");
        let found = lines.iter().find(|line| line.contains(" sleeper: state "));
        assert!(found.is_some(), "{lines:?}");
        end.send(()).expect("it waits");
        let sleeper = sleeper.expect("a thread can be started");
        sleeper.join().expect("it ends");
    }
}
