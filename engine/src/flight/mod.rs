//! What the scheduler was told and what it planned, as far back as memory for it goes.
//!
//! | file | is |
//! |---|---|
//! | `note` | a plan and a result, made small |
//! | `line` | a call as a line of a file |
//! | `write` | lines out of a recording, tokens made unreadable |
//! | `replay` | [`replay`]: the same calls to a new scheduler, plans compared |
//!
//! The scheduler is deterministic: same calls, same plans. So its calls, and the results that it was
//! handed, tell all that it did. They are kept in the order in which it saw them, in bounded memory,
//! the oldest dropped first. A recording that still has its beginning can be run again.

mod line;
mod note;
mod replay;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use scheduler::{
    CacheConfig, Request, RequestId, SchedulerConfig, SchedulerOutput, StepResult, StepTime,
};

use self::note::{PlanNote, ResultNote};
pub use self::replay::{ReplayError, Replayed, replay};
pub use self::write::Contents;

/// Bytes of a recording, unless said otherwise.
pub const DEFAULT_BYTES: usize = 64 << 20;

/// The recorder. Whoever calls the scheduler tells it.
pub(crate) struct Flight {
    setup: Arc<Setup>,
    begin: Instant,
    calls: VecDeque<Timed>,
    num_bytes: usize,
    max_bytes: usize,
    num_dropped: u64,
    /// Sequences whose arrival was dropped.
    num_forgotten: u64,
    drafts_paused: bool,
}

/// A copy of what a recorder holds.
#[derive(Clone)]
pub struct Recording {
    setup: Arc<Setup>,
    calls: Vec<Timed>,
    num_dropped: u64,
    num_forgotten: u64,
}

struct Setup {
    config: SchedulerConfig,
    cache: CacheConfig,
}

#[derive(Clone)]
struct Timed {
    /// Microseconds since the recorder was made.
    at: u64,
    call: Arc<Call>,
}

enum Call {
    Add(Request),
    Abort(RequestId),
    FinishChoice(RequestId, u32),
    /// Steps carry no drafts from here on, or do again.
    PauseDrafts(bool),
    Times(Box<[StepTime]>),
    /// So many times in a row there was nothing to plan.
    Idle(u32),
    Plan(PlanNote),
    Result(ResultNote),
}

impl Flight {
    pub(crate) fn new(config: &SchedulerConfig, cache: &CacheConfig) -> Self {
        Self {
            setup: Arc::new(Setup {
                config: config.clone(),
                cache: cache.clone(),
            }),
            begin: Instant::now(),
            calls: VecDeque::new(),
            num_bytes: 0,
            max_bytes: DEFAULT_BYTES,
            num_dropped: 0,
            num_forgotten: 0,
            drafts_paused: false,
        }
    }

    /// What is more than that is dropped, now and later.
    pub(crate) fn limit(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.drop_oldest();
        self.calls.shrink_to_fit();
    }

    /// A request was accepted.
    pub(crate) fn add(&mut self, request: Request) {
        self.push(Call::Add(request));
    }

    pub(crate) fn abort(&mut self, id: RequestId) {
        self.push(Call::Abort(id));
    }

    pub(crate) fn finish_choice(&mut self, id: RequestId, choice: u32) {
        self.push(Call::FinishChoice(id, choice));
    }

    /// Told before every plan, noted when it changes.
    pub(crate) fn pause_drafts(&mut self, paused: bool) {
        if paused != self.drafts_paused {
            self.drafts_paused = paused;
            self.push(Call::PauseDrafts(paused));
        }
    }

    /// What steps without anybody's tokens took.
    pub(crate) fn times(&mut self, times: &[StepTime]) {
        self.push(Call::Times(times.into()));
    }

    /// There was nothing to plan.
    pub(crate) fn idle(&mut self) {
        let last = self.calls.back_mut();
        match last.and_then(|last| Arc::get_mut(&mut last.call)) {
            Some(Call::Idle(times)) => *times += 1,
            _ => self.push(Call::Idle(1)),
        }
    }

    pub(crate) fn plan(&mut self, plan: &SchedulerOutput) {
        if self.max_bytes == 0 {
            self.num_dropped += 1;
        } else {
            self.push(Call::Plan(PlanNote::of(plan)));
        }
    }

    /// What the scheduler is handed as the result of its plan, and told of the time that it took.
    pub(crate) fn result(&mut self, result: &StepResult, times: (u64, &[StepTime])) {
        if self.max_bytes == 0 {
            self.num_dropped += 1;
        } else {
            self.push(Call::Result(ResultNote::of(result, times)));
        }
    }

    /// As of now. Copies pointers, so that the engine hardly waits for it.
    pub(crate) fn recording(&self) -> Recording {
        Recording {
            setup: Arc::clone(&self.setup),
            calls: self.calls.iter().cloned().collect(),
            num_dropped: self.num_dropped,
            num_forgotten: self.num_forgotten,
        }
    }

    fn push(&mut self, call: Call) {
        self.num_bytes += call.num_bytes();
        self.calls.push_back(Timed {
            at: self.begin.elapsed().as_micros() as u64,
            call: Arc::new(call),
        });
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        while self.num_bytes > self.max_bytes {
            let oldest = self.calls.pop_front().expect("bytes are those of calls");
            self.num_bytes -= oldest.call.num_bytes();
            self.num_dropped += 1;
            if let Call::Add(request) = &*oldest.call {
                self.num_forgotten += u64::from(request.num_choices);
            }
        }
    }
}

impl Call {
    /// Roughly what keeping it takes. A prompt counts in full, though its request shares it while it runs.
    fn num_bytes(&self) -> usize {
        let fixed = size_of::<Timed>() + size_of::<Self>() + 2 * size_of::<usize>();
        fixed
            + match self {
                Self::Add(request) => {
                    let numbers = request.prompt.len() + request.boundaries.len();
                    let stops = request.sampling.stop_token_ids.len();
                    4 * (numbers + stops) + request.cache_salt.len()
                }
                Self::Plan(plan) => plan.num_bytes(),
                Self::Result(result) => result.num_bytes(),
                Self::Times(times) => size_of_val(&**times),
                Self::Abort(_) | Self::FinishChoice(..) | Self::PauseDrafts(_) | Self::Idle(_) => 0,
            }
    }
}

impl Recording {
    /// Calls in it.
    pub fn num_calls(&self) -> usize {
        self.calls.len()
    }

    /// Roughly what keeping it takes.
    pub fn num_bytes(&self) -> usize {
        self.calls.iter().map(|timed| timed.call.num_bytes()).sum()
    }

    /// Older calls that there was no memory for. Without them it cannot be run again.
    pub fn num_dropped(&self) -> u64 {
        self.num_dropped
    }
}

#[cfg(test)]
mod tests;
