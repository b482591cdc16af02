//! The same calls to a new scheduler: its plans must be those of the recording.

use std::fmt::Write as _;
use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use scheduler::{
    RequestId, RowOutput, RowResult, Scheduler, SchedulerOutput, StepResult, StepTime,
};

use super::line::{FORMAT, Header, Line, ResultLine, TimeLine, TimedLine};
use super::note::PlanNote;

/// What was run again, all of it with equal plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Calls.
    pub num_calls: u64,
    /// Requests that came.
    pub num_requests: u64,
    /// Plans compared.
    pub num_plans: u64,
    /// Tokens drawn.
    pub num_tokens: u64,
    /// From the first call to the last, when they were recorded.
    pub spanned: Duration,
    /// The longest that a step took then.
    pub longest_step: Duration,
}

/// Why not all of it could be run again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read.
    #[error("line {line}: {source}")]
    Io {
        /// From 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// Not a recording.
    #[error("line {line}: {what}")]
    Malformed {
        /// From 1.
        line: u64,
        /// Why.
        what: String,
    },
    /// The beginning is missing.
    #[error(
        "its first {num_dropped} calls were dropped for want of memory, so what the scheduler knew is \
         not known here; a larger --flight-memory keeps more"
    )]
    Incomplete {
        /// How much of it.
        num_dropped: u64,
    },
    /// The scheduler decides otherwise now.
    #[error("line {line}: {what}")]
    Differs {
        /// From 1.
        line: u64,
        /// The first difference.
        what: String,
    },
    /// The scheduler ends itself, as it may have then.
    #[error("line {line}: the scheduler panicked: {what}")]
    Panicked {
        /// From 1.
        line: u64,
        /// Its words.
        what: String,
    },
}

/// Runs a recording again and stops at the first plan that is another.
pub fn replay(lines: impl BufRead) -> Result<Replayed, ReplayError> {
    let mut at = 0;
    // What a file makes the scheduler do may be what ended the engine.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(lines, &mut at)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(ReplayError::Panicked {
            line: at,
            what: text.unwrap_or("without a word").to_owned(),
        })
    })
}

fn run(lines: impl BufRead, at: &mut u64) -> Result<Replayed, ReplayError> {
    let mut lines = lines.lines();
    let mut next = || {
        *at += 1;
        let line = lines.next()?;
        Some((*at, line))
    };
    let (header, first) = (next(), 1);
    let header = header.ok_or_else(|| malformed(first, "it is empty"))?;
    let header: Header = parse(header)?;
    if header.flight != FORMAT {
        let what = format!("format {}, expected {FORMAT}", header.flight);
        return Err(malformed(first, &what));
    }
    if header.num_dropped > 0 {
        let num_dropped = header.num_dropped;
        return Err(ReplayError::Incomplete { num_dropped });
    }
    let mut player = Player {
        scheduler: Scheduler::new(header.config.into(), header.cache.into()),
        plan: None,
        done: Replayed::default(),
    };
    let mut begin = None;
    while let Some(line) = next() {
        let number = line.0;
        let (micros, call): TimedLine = parse(line)?;
        let begin = *begin.get_or_insert(micros);
        player.done.num_calls += 1;
        player.done.spanned = Duration::from_micros(micros.saturating_sub(begin));
        player.obey(call, number)?;
    }
    Ok(player.done)
}

fn parse<T: serde::de::DeserializeOwned>(
    (line, text): (u64, std::io::Result<String>),
) -> Result<T, ReplayError> {
    let text = text.map_err(|source| ReplayError::Io { line, source })?;
    serde_json::from_str(&text).map_err(|error| malformed(line, &error))
}

fn malformed(line: u64, what: &(impl ToString + ?Sized)) -> ReplayError {
    let what = what.to_string();
    ReplayError::Malformed { line, what }
}

struct Player {
    scheduler: Scheduler,
    /// The one in flight.
    plan: Option<SchedulerOutput>,
    done: Replayed,
}

impl Player {
    fn obey(&mut self, call: Line, line: u64) -> Result<(), ReplayError> {
        let differs = |what: String| ReplayError::Differs { line, what };
        match call {
            Line::Add(add) => {
                let id = add.id;
                self.done.num_requests += 1;
                self.scheduler
                    .add(add.into())
                    .map_err(|why| differs(format!("request {id} is refused here: {why}")))?;
            }
            Line::Abort(id) => self.scheduler.abort(RequestId(id)),
            Line::Finish(id, choice) => self.scheduler.finish_choice(RequestId(id), choice),
            Line::PauseDrafts(paused) => self.scheduler.pause_drafts(paused),
            Line::Times(times) => self.scheduler.note_times(0, &read(times)),
            Line::Idle(times) => {
                for _ in 0..times {
                    self.must_be_landed(line)?;
                    if let Some(plan) = self.scheduler.schedule() {
                        let what = format!("there was nothing to run; here {}", show(&plan));
                        return Err(differs(what));
                    }
                }
            }
            Line::Plan(recorded) => {
                self.must_be_landed(line)?;
                let Some(plan) = self.scheduler.schedule() else {
                    let (step, num_rows) = (recorded.step, recorded.rows.len());
                    let what = format!("step {step} had {num_rows} rows; here nothing is to run");
                    return Err(differs(what));
                };
                compare(&recorded, &plan).map_err(differs)?;
                self.done.num_plans += 1;
                self.plan = Some(plan);
            }
            Line::Result(result) => {
                let plan = self.plan.take();
                let plan = plan.ok_or_else(|| malformed(line, "a result without its plan"))?;
                self.land(&plan, result, line)?;
            }
        }
        Ok(())
    }

    fn must_be_landed(&self, line: u64) -> Result<(), ReplayError> {
        match &self.plan {
            None => Ok(()),
            Some(plan) => Err(malformed(
                line,
                &format!("step {} has no result", plan.step.0),
            )),
        }
    }

    fn land(
        &mut self,
        plan: &SchedulerOutput,
        result: ResultLine,
        line: u64,
    ) -> Result<(), ReplayError> {
        if result.rows.len() != plan.rows.len() {
            let (told, planned) = (result.rows.len(), plan.rows.len());
            let what = format!("{told} rows of a result for {planned} planned");
            return Err(malformed(line, &what));
        }
        let took = Duration::from_nanos(result.ns);
        self.done.longest_step = self.done.longest_step.max(took);
        self.scheduler.note_times(result.ns, &read(result.times));
        let rows = plan.rows.iter().zip(result.rows);
        let rows = rows.map(|(row, (tokens, num_drafts, fault))| {
            self.done.num_tokens += tokens.len() as u64;
            let output = RowOutput {
                tokens,
                drafts: vec![0; num_drafts.into()],
                ..RowOutput::default()
            };
            RowResult {
                sequence: row.sequence,
                outcome: fault.map_or(Ok(output), |fault| Err(fault.into())),
            }
        });
        let rows = rows.collect();
        self.scheduler.update(StepResult {
            step: plan.step,
            rows,
        });
        Ok(())
    }
}

fn read(times: Vec<TimeLine>) -> Vec<StepTime> {
    times.into_iter().map(Into::into).collect()
}

/// Says where they part, if they do.
fn compare(recorded: &PlanNote, plan: &SchedulerOutput) -> Result<(), String> {
    let here = PlanNote::of(plan);
    if *recorded == here {
        return Ok(());
    }
    let mut what = format!("step {} is another: ", recorded.step);
    let (old, new) = (&recorded.rows, &here.rows);
    let at = old.iter().zip(new).position(|(old, new)| old != new);
    let at = at.or((old.len() != new.len()).then_some(old.len().min(new.len())));
    let row = at.map(|at| (at, old.get(at), plan.rows.get(at)));
    let written = match row {
        Some((at, old, new)) => {
            let old = old.map_or("nobody".to_owned(), |old| {
                format!("sequence {} with {} tokens", old.0, old.1)
            });
            let new = new.map_or("nobody".to_owned(), |row| {
                let (sequence, num, start) = (row.sequence.0, row.input_ids.len(), row.start);
                let (slot, num_blocks) = (row.slot.0, row.block_table.len());
                format!(
                    "sequence {sequence} with {num} tokens from {start}, slot {slot}, {num_blocks} \
                     blocks, {:?}, saves {:?}",
                    row.drafting, row.saves
                )
            });
            write!(what, "row {at} was {old}; here it is {new}")
        }
        None => write!(
            what,
            "its rows look alike; {} operations then, here {:?}",
            recorded.num_ops, plan.ops
        ),
    };
    written.expect("a string takes what is written to it");
    Err(what)
}

fn show(plan: &SchedulerOutput) -> String {
    let (step, rows) = (plan.step.0, plan.rows.len());
    format!("step {step} has {rows} rows")
}
