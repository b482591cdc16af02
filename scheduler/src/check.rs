//! What tests look at: where a choice stands, and whether the books agree.

use crate::request::RequestId;
use crate::scheduler::Scheduler;
use crate::sequence::{Sequence, Status};

/// Where a choice stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the queue; it never ran.
    Waiting,
    /// In the queue; it ran and had to yield.
    Preempted,
    /// With memory, between steps or left out of this one.
    Running,
    /// The runner works on it.
    InFlight,
}

impl Scheduler {
    /// Where a choice stands, as long as it has news to tell.
    pub fn standing(&self, id: RequestId, choice: u32) -> Option<Standing> {
        let sequences = self
            .requests
            .get(&id)?
            .sequences
            .iter()
            .map(|id| &self.sequences[id]);
        let sequence = sequences
            .into_iter()
            .find(|sequence| sequence.choice == choice)?;
        Some(match sequence.status() {
            Status::Waiting if sequence.has_run() => Standing::Preempted,
            Status::Waiting => Standing::Waiting,
            Status::Running | Status::Leaving { .. } if self.is_in_flight(sequence.id) => {
                Standing::InFlight
            }
            Status::Running | Status::Leaving { .. } => Standing::Running,
        })
    }

    /// Panics if the books do not agree. For tests: it looks at everything.
    pub fn check_invariants(&self) {
        self.cache
            .check_invariants(self.sequences.values().filter_map(Sequence::lease));
        for (&id, sequence) in &self.sequences {
            let waits = sequence.status() == Status::Waiting;
            let in_flight = self.is_in_flight(id);
            let leaves = matches!(sequence.status(), Status::Leaving { .. });
            assert_eq!(
                sequence.lease().is_none(),
                waits,
                "{id:?}: who waits has no memory"
            );
            assert_eq!(
                self.waiting.iter().any(|other| other == id),
                waits,
                "{id:?}: queue"
            );
            assert_eq!(self.running.contains(&id), !waits, "{id:?}: running");
            assert!(
                in_flight || !leaves,
                "{id:?}: only who is in flight takes time to leave"
            );
            let choices = self.requests.get(&sequence.request.id);
            let tells = choices.is_some_and(|choices| choices.sequences.contains(&id));
            assert_eq!(tells, !leaves, "{id:?}: who leaves has no more to tell");
            self.check_progress(sequence);
        }
        assert_eq!(
            self.waiting.len() + self.running.len(),
            self.sequences.len(),
            "strangers"
        );
        for (id, choices) in &self.requests {
            assert!(!choices.sequences.is_empty(), "{id:?} has ended");
            let known = choices
                .sequences
                .iter()
                .all(|id| self.sequences.contains_key(id));
            assert!(known, "{id:?}: choices are sequences");
        }
        let num_queued = self
            .requests
            .values()
            .filter(|choices| !choices.started)
            .count();
        assert_eq!(
            self.num_queued as usize, num_queued,
            "requests that never ran"
        );
        let max_num_seqs = self.config.max_num_seqs as usize;
        assert!(
            self.running.len() <= max_num_seqs,
            "{} run",
            self.running.len()
        );
    }

    fn check_progress(&self, sequence: &Sequence) {
        let (id, computed) = (sequence.id, sequence.num_computed());
        assert!(
            computed < sequence.num_wanted(),
            "{id:?}: something is left to compute"
        );
        let max = self.config.max_model_len as usize;
        assert!(sequence.tokens().len() <= max, "{id:?}: context window");
        if let Some(lease) = sequence.lease() {
            let needed = self.cache.config().blocks_for(computed) as usize;
            assert!(
                lease.blocks().len() >= needed,
                "{id:?}: computed tokens have blocks"
            );
        }
    }
}
