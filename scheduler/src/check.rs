//! What tests look at: where a choice stands, and whether the books agree.

use kvcache::SlotId;

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
        self.cache.check_invariants(
            self.sequences.values().filter_map(Sequence::lease),
            self.saves_in_flight(),
        );
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
                self.tenants.waits(id, sequence.request.tenant),
                waits,
                "{id:?}: queue"
            );
            assert_eq!(self.running.contains(id), !waits, "{id:?}: running");
            assert!(
                in_flight || !leaves,
                "{id:?}: only who is in flight takes time to leave"
            );
            let choices = self.requests.get(&sequence.request.id);
            let tells = choices.is_some_and(|choices| choices.sequences.contains(&id));
            assert_eq!(tells, !leaves, "{id:?}: who leaves has no more to tell");
            self.check_progress(sequence);
            sequence.check_prepared();
        }
        assert_eq!(
            self.tenants.num_waiting() + self.running.len(),
            self.sequences.len(),
            "strangers"
        );
        let waits = |sequence: &&Sequence| sequence.status() == Status::Waiting;
        let (waiting, running): (Vec<_>, Vec<_>) = self.sequences.values().partition(waits);
        self.tenants.check(
            waiting
                .iter()
                .map(|sequence| (sequence.id, sequence.place())),
            running.iter().map(|sequence| sequence.request.tenant),
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

    /// Slots that rows in flight write to.
    fn saves_in_flight(&self) -> impl Iterator<Item = SlotId> {
        let saves = self.in_flight.iter().flat_map(|step| step.saves.values());
        saves.flatten().map(|save| save.to)
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
            assert!(
                lease.num_pending() <= computed,
                "{id:?}: what is pending is computed"
            );
            let known = self.cache.config().blocks_for(sequence.num_wanted()) as usize;
            assert!(
                self.is_in_flight(id) || lease.blocks().len() <= known,
                "{id:?}: guesses have blocks in flight only"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvcache::CacheConfig;

    use super::*;
    use crate::config::SchedulerConfig;
    use crate::output::SequenceId;
    use crate::queue::Rank;
    use crate::request::{Request, SamplingParams, TenantId};
    use crate::tenants::Place;

    /// One request runs and is in flight, another waits.
    fn sample() -> Scheduler {
        let config = SchedulerConfig {
            max_num_seqs: 1,
            ..Default::default()
        };
        let cache = CacheConfig {
            block_size: 2,
            num_blocks: 9,
            num_slots: 3,
            num_host_slots: 0,
            num_host_blocks: 0,
        };
        let mut scheduler = Scheduler::new(
            SchedulerConfig {
                max_model_len: 8,
                ..config
            },
            cache,
        );
        for id in 0..2 {
            let request = Request {
                id: RequestId(id),
                prompt: [1, 2, 3].into(),
                sampling: Arc::new(SamplingParams {
                    max_tokens: 2,
                    ..Default::default()
                }),
                num_choices: 1,
                cache_salt: "".into(),
                boundaries: Arc::default(),
                priority: 0,
                tenant: TenantId::default(),
                tenant_weight: 1,
            };
            scheduler.add(request).expect("there is room");
        }
        scheduler.schedule().expect("there is work");
        scheduler
    }

    fn place() -> Place {
        Place {
            tenant: TenantId(0),
            priority: 0,
            rank: Rank::new(0, 0),
        }
    }

    const RUNS: SequenceId = SequenceId(0);
    const WAITS: SequenceId = SequenceId(1);

    fn broken(change: impl Fn(&mut Scheduler)) {
        let mut scheduler = sample();
        change(&mut scheduler);
        scheduler.check_invariants();
    }

    #[test]
    fn the_check_passes_what_is_right() {
        broken(|_| {});
    }

    #[test]
    #[should_panic(expected = "who waits has no memory")]
    fn the_check_finds_a_lost_lease() {
        broken(|scheduler| {
            let running = scheduler.sequences.get_mut(&RUNS).expect("it runs");
            scheduler.cache.release(running.lose_lease());
        });
    }

    #[test]
    #[should_panic(expected = "queue")]
    fn the_check_finds_who_is_lost() {
        broken(|scheduler| scheduler.tenants.end(WAITS, place()));
    }

    #[test]
    #[should_panic(expected = "running")]
    fn the_check_finds_who_runs_unseen() {
        broken(|scheduler| assert!(scheduler.running.remove(RUNS)));
    }

    #[test]
    #[should_panic(expected = "takes time to leave")]
    fn the_check_finds_who_never_leaves() {
        broken(|scheduler| {
            scheduler
                .sequences
                .get_mut(&RUNS)
                .expect("it runs")
                .leave(false);
            scheduler.in_flight = None;
        });
    }

    #[test]
    #[should_panic(expected = "no more to tell")]
    fn the_check_finds_who_tells_after_leaving() {
        broken(|scheduler| {
            scheduler
                .sequences
                .get_mut(&RUNS)
                .expect("it runs")
                .leave(false);
        });
    }

    #[test]
    #[should_panic(expected = "strangers")]
    fn the_check_finds_strangers() {
        broken(|scheduler| scheduler.tenants.wait(SequenceId(9), place()));
    }

    #[test]
    #[should_panic(expected = "has ended")]
    fn the_check_finds_empty_requests() {
        broken(|scheduler| {
            let choices = crate::scheduler::Choices {
                sequences: Vec::new(),
                started: true,
            };
            scheduler.requests.insert(RequestId(9), choices);
        });
    }

    #[test]
    #[should_panic(expected = "choices are sequences")]
    fn the_check_finds_unknown_choices() {
        broken(|scheduler| {
            let choices = scheduler
                .requests
                .get_mut(&RequestId(1))
                .expect("it is there");
            choices.sequences.push(SequenceId(9));
        });
    }

    #[test]
    #[should_panic(expected = "never ran")]
    fn the_check_finds_a_wrong_queue_length() {
        broken(|scheduler| scheduler.num_queued += 1);
    }

    #[test]
    #[should_panic(expected = "1 run")]
    fn the_check_finds_too_many() {
        broken(|scheduler| scheduler.config.max_num_seqs = 0);
    }

    #[test]
    #[should_panic(expected = "left to compute")]
    fn the_check_finds_who_is_done() {
        broken(|scheduler| {
            let sequence = scheduler.sequences.get_mut(&RUNS).expect("it runs");
            sequence.advance(3, false, Vec::new());
        });
    }

    #[test]
    #[should_panic(expected = "context window")]
    fn the_check_finds_who_is_too_long() {
        broken(|scheduler| scheduler.config.max_model_len = 2);
    }

    #[test]
    #[should_panic(expected = "tokens have blocks")]
    fn the_check_finds_missing_blocks() {
        broken(|scheduler| {
            let sequence = scheduler.sequences.get_mut(&RUNS).expect("it runs");
            for token in 0..3 {
                sequence.append(token);
            }
            sequence.advance(5, false, Vec::new());
        });
    }
}
