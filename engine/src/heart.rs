//! A sign of life: beaten wherever work goes on, read by whoever decides that it does not.
//!
//! One step of a large model on a CPU takes many seconds, so a beat per step would not tell a slow step
//! from one that hangs. Each layer beats, and while weights load each piece of them that was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use scheduler::{SchedulerOutput, SequenceId};

/// Cheap to clone; all clones are one heart.
#[derive(Clone)]
pub struct Heart(Arc<Beats>);

struct Beats {
    /// By a clock that nobody sets.
    epoch: Instant,
    /// Nanoseconds since.
    last: AtomicU64,
}

impl Heart {
    /// Has just beaten.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Beats {
            epoch: Instant::now(),
            last: AtomicU64::new(0),
        }))
    }

    /// Something was done.
    pub fn beat(&self) {
        let now = self.0.epoch.elapsed().as_nanos() as u64;
        // Ranks beat at once; the latest counts.
        self.0.last.fetch_max(now, Ordering::Relaxed);
    }

    /// Since the last beat.
    pub fn age(&self) -> Duration {
        let last = Duration::from_nanos(self.0.last.load(Ordering::Relaxed));
        self.0.epoch.elapsed().saturating_sub(last)
    }
}

/// The step that ran last, or runs still: what a dump shows of it. No token is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastStep {
    /// Its number; 0 before the first.
    pub step: u64,
    /// State movements.
    pub num_ops: usize,
    /// Whose rows, from which position on, how many tokens.
    pub rows: Vec<(SequenceId, u32, u32)>,
    /// Whether its result has come.
    pub is_over: bool,
}

/// The same, where the engine notes it.
#[derive(Default)]
pub(crate) struct StepNote(Mutex<LastStep>);

impl StepNote {
    pub(crate) fn begin(&self, plan: &SchedulerOutput) {
        let mut last = self.0.lock();
        last.step = plan.step.0;
        last.num_ops = plan.ops.len();
        last.is_over = false;
        // The list keeps its memory.
        last.rows.clear();
        let rows = plan.rows.iter();
        let rows = rows.map(|row| (row.sequence, row.start, row.input_ids.len() as u32));
        last.rows.extend(rows);
    }

    pub(crate) fn end(&self) {
        self.0.lock().is_over = true;
    }

    pub(crate) fn read(&self) -> LastStep {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_are_one_heart() {
        let heart = Heart::new();
        while heart.age() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let before = heart.age();
        heart.clone().beat();
        assert!(heart.age() < before, "{:?}", heart.age());
    }
}
