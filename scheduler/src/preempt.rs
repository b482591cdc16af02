//! Who yields, and what is given back.

use crate::output::SequenceId;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Extends a running sequence to all its tokens, making others yield if need be. `false` if it
    /// stood last and yielded itself.
    ///
    /// Who stands last yields: the youngest of the lowest priority, as far as waiting has not made up for
    /// that. It has the least to recompute in the long run, and the first can never be meant while there
    /// is another, so somebody always makes progress.
    pub(crate) fn make_room(&mut self, id: SequenceId) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&id).expect("who runs is known");
            let num_tokens = sequence.num_wanted();
            let (lease, _, _) = sequence.cache_parts();
            if self.cache.extend(lease, num_tokens) {
                return true;
            }
            let victim = self.running.last();
            let victim = victim.expect("somebody runs, since somebody needs a block");
            self.preempt(victim);
            if victim == id {
                return false;
            }
        }
    }

    /// Takes all memory back. Tokens are kept; what was computed of them becomes a snapshot, which goes
    /// like all others when memory is short, to the host if there is room. As far as it is still there
    /// when its turn comes, it goes on from there; the rest is computed again.
    fn preempt(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("who runs is known");
        sequence.yield_memory(&mut self.cache);
        self.running.remove(id);
        self.waiting.insert(id, sequence.rank);
        self.counters.preemptions += 1;
    }
}
