//! What can be done while a step runs.
//!
//! A device computes for milliseconds, and what lies between two steps is lost to it. So whatever the
//! next plan needs and the result cannot change is made now: hashes of tokens, the comparison of a
//! waiting prompt with the snapshot that it hits, copies of prompts and block tables.
//!
//! Not made now, because the result decides about it:
//! - *Reservations.* Blocks and slots are handed out in the order in which they were freed, and the
//!   result frees some; who samples a token may want the last block before who waits; and the result
//!   may publish a longer hit. A reservation made now would be another one than `schedule` makes.
//! - *Admission.* It follows from reservations. (Sizes are checked by `add`.)

use crate::output::SequenceId;
use crate::scheduler::{PlannedRow, Scheduler};
use crate::sequence::Status;

/// Tokens hashed in one call, 0.1 to 0.3 ms worth: a call ends before the step does, and what is left
/// of a long prompt is for the next one.
const MAX_TOKENS: usize = 1 << 16;
/// Waiting sequences looked at in one call. More rarely enter in one step.
const MAX_WAITING: usize = 16;

impl Scheduler {
    /// Takes work off the next `update` and `schedule` and changes nothing that they return. For the
    /// time between `schedule` and `update`; harmless at any other.
    pub fn prepare(&mut self) {
        let mut budget = MAX_TOKENS;
        let in_flight = self.in_flight.take();
        for row in in_flight.iter().flat_map(|in_flight| &in_flight.rows) {
            budget -= self.prepare_row(*row, budget);
        }
        self.in_flight = in_flight;
        for id in self.tenants.likely(self.counters.steps, MAX_WAITING) {
            budget -= self.look_ahead(id, 0, budget);
        }
    }

    /// Returns how many tokens were hashed.
    fn prepare_row(&mut self, row: PlannedRow, budget: usize) -> usize {
        let sequence = self
            .sequences
            .get_mut(&row.sequence)
            .expect("a row has a sequence");
        let runs = sequence.status() == Status::Running;
        if runs && row.samples {
            sequence.prepare_next(row.len);
        }
        self.look_ahead(row.sequence, row.len, budget)
    }

    fn look_ahead(&mut self, id: SequenceId, len: u32, budget: usize) -> usize {
        let sequence = self.sequences.get_mut(&id).expect("who is here is known");
        sequence.look_ahead(&self.cache, len, budget)
    }
}
