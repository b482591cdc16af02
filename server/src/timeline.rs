//! What a generation went through, once it is over: for its log line, its spans and the histograms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::SamplingParams;

use crate::api::types::Usage;

/// One generation, from its submission to its last token.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Handed to the engine.
    pub submitted: Instant,
    /// Its first choice first ran.
    pub begun: Option<Instant>,
    /// The first token of any choice came.
    pub first_token: Option<Instant>,
    /// The last token of any choice came.
    pub last_token: Option<Instant>,
    /// A conversation, not a completion.
    pub chat: bool,
    /// Answered in events.
    pub streamed: bool,
    /// What it used.
    pub usage: Usage,
    /// How each choice ended: a finish reason, `error`, or `abort` if its client left it.
    pub finishes: Vec<&'static str>,
    /// What it asked for.
    pub sampling: Option<Arc<SamplingParams>>,
    /// Choices that each prompt asked for, candidates included.
    pub num_choices: usize,
}

impl Timeline {
    /// How long it waited for its turn.
    pub fn queued(&self) -> Option<Duration> {
        Some(self.begun?.saturating_duration_since(self.submitted))
    }

    /// From its turn to the first token.
    pub fn prefilled(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_duration_since(self.begun?))
    }

    /// From the first token to the last.
    pub fn decoded(&self) -> Option<Duration> {
        Some(
            self.last_token?
                .saturating_duration_since(self.first_token?),
        )
    }
}
