//! How long steps take, for whoever weighs drafts.

use std::time::{Duration, Instant};

use scheduler::{Row, StepTime};

use super::{ModelRunner, WarmUp};
use crate::error::EngineError;
use crate::verify;

/// Longest time for all timed steps of a warm-up together.
pub(super) const MAX_TIME: Duration = Duration::from_millis(400);
/// Runs of one of them: at least, unless one takes as long as all may, and at most, and for how long
/// unless that is fewer.
const MIN_RUNS: usize = 3;
const MAX_RUNS: usize = 9;
const RUN_TIME: Duration = Duration::from_millis(10);

/// Times one step.
pub(super) struct Stopwatch {
    begin: Instant,
    /// Since when the draft block is at work.
    drafting: Instant,
    /// Without durations; `None` if the step is not of a kind that compares with others.
    kind: Option<StepTime>,
}

impl Stopwatch {
    pub(super) fn start(rows: &[Row]) -> Self {
        let begin = Instant::now();
        let is_decode =
            |row: &Row| row.sample.is_some() && row.saves.is_empty() && verify::num_known(row) == 1;
        let kind = (!rows.is_empty() && rows.iter().all(is_decode)).then(|| StepTime {
            num_rows: rows.len() as u32,
            num_drafts: rows.iter().map(|row| row.drafting.num_drafts).sum(),
            ..StepTime::default()
        });
        Self {
            begin,
            drafting: begin,
            kind,
        }
    }

    /// All rows have drawn.
    pub(super) fn lap(&mut self) {
        self.drafting = Instant::now();
    }

    /// All drafts are made.
    pub(super) fn stop(self, num_passes: u32) -> Option<StepTime> {
        Some(StepTime {
            step_ns: (self.drafting - self.begin).as_nanos() as u64,
            num_passes,
            drafting_ns: self.drafting.elapsed().as_nanos() as u64,
            ..self.kind?
        })
    }
}

impl ModelRunner {
    /// Runs a step for what it leaves warm.
    pub(super) fn run_untimed(&mut self, warm_up: &WarmUp) -> Result<(), EngineError> {
        let num_before = self.times.len();
        self.run_padding(warm_up)?;
        self.times.truncate(num_before);
        Ok(())
    }

    /// Runs a step several times after a first that is not timed, and keeps the medians.
    pub(super) fn time(&mut self, warm_up: &WarmUp) -> Result<(), EngineError> {
        self.run_untimed(warm_up)?;
        let num_before = self.times.len();
        let begin = Instant::now();
        for num_runs in 0..MAX_RUNS {
            let elapsed = begin.elapsed();
            let is_enough = num_runs >= MIN_RUNS && elapsed >= RUN_TIME;
            if is_enough || num_runs > 0 && elapsed >= MAX_TIME {
                break;
            }
            self.run_padding(warm_up)?;
        }
        let runs = self.times.split_off(num_before);
        self.times.extend(median(&runs));
        Ok(())
    }
}

/// Of each duration for itself.
fn median(runs: &[StepTime]) -> Option<StepTime> {
    let first = runs.first()?;
    let middle = |of: fn(&StepTime) -> u64| {
        let mut all: Vec<u64> = runs.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    Some(StepTime {
        step_ns: middle(|run| run.step_ns),
        drafting_ns: middle(|run| run.drafting_ns),
        ..*first
    })
}
