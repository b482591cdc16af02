//! Every metric's name and help text.

use std::time::Duration;

/// Counters of the process.
#[derive(Default)]
pub struct Metrics {}

impl Metrics {
    /// From the headers of a generating request to its first token.
    pub fn observe_ttft(&self, _after: Duration) {}

    /// Between two tokens of one choice.
    pub fn observe_inter_token(&self, _gap: Duration) {}

    /// A choice ended, and why: one of `stop`, `length`, `abort`, `error`.
    pub fn count_finished(&self, _reason: &'static str) {}

    pub(crate) fn count_prompt(&self, _prompt: u64, _cached: u64) {}

    pub(crate) fn count_generated(&self, _generated: u64) {}
}
