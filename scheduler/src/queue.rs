//! The order of those who wait.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::output::SequenceId;

/// Sequences without memory, the oldest first. Whoever was preempted is older than most and so
/// returns near the head.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    waiting: BTreeSet<SequenceId>,
}

impl WaitingQueue {
    pub(crate) fn insert(&mut self, id: SequenceId) {
        let new = self.waiting.insert(id);
        assert!(new, "{id:?} waits twice");
    }

    /// Whether it was waiting.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        self.waiting.remove(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn head(&self) -> Option<SequenceId> {
        self.waiting.first().copied()
    }

    /// The next in line behind `id`.
    pub(crate) fn after(&self, id: SequenceId) -> Option<SequenceId> {
        self.waiting
            .range((Bound::Excluded(id), Bound::Unbounded))
            .next()
            .copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.waiting.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_head() {
        let mut queue = WaitingQueue::default();
        for id in [5, 2, 9] {
            queue.insert(SequenceId(id));
        }
        assert_eq!((queue.len(), queue.head()), (3, Some(SequenceId(2))));
        assert_eq!(queue.after(SequenceId(2)), Some(SequenceId(5)));
        assert!(queue.remove(SequenceId(5)) && !queue.remove(SequenceId(5)));
        assert_eq!(queue.after(SequenceId(2)), Some(SequenceId(9)));
        assert_eq!(queue.after(SequenceId(9)), None);
        assert!(queue.iter().eq([SequenceId(2), SequenceId(9)]));
    }

    #[test]
    #[should_panic(expected = "waits twice")]
    fn nobody_waits_twice() {
        let mut queue = WaitingQueue::default();
        queue.insert(SequenceId(1));
        queue.insert(SequenceId(1));
    }
}
