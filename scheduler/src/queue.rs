//! The order of those who wait, and of those who run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::output::SequenceId;

/// Steps of waiting that make up for one level of priority: some seconds.
const STEPS_PER_LEVEL: i64 = 256;

/// Where somebody stands in line who arrived in step `arrived`: lower goes first. It is the step in
/// which somebody of priority 0 would have had to arrive for the same place, so whoever waits long
/// enough comes before everybody who arrives later, and the order of two never changes.
pub(crate) fn rank(priority: i8, arrived: u64) -> i64 {
    arrived as i64 - i64::from(priority) * STEPS_PER_LEVEL
}

/// Sequences by rank, and of equals the oldest first. Whoever was preempted keeps the rank and so
/// returns near the head of those who wait.
#[derive(Debug, Default)]
pub(crate) struct Line {
    line: BTreeSet<(i64, SequenceId)>,
    ranks: BTreeMap<SequenceId, i64>,
}

impl Line {
    pub(crate) fn insert(&mut self, id: SequenceId, rank: i64) {
        let before = self.ranks.insert(id, rank);
        assert!(before.is_none(), "{id:?} stands in line twice");
        self.line.insert((rank, id));
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        let rank = self.ranks.remove(&id);
        rank.is_some_and(|rank| self.line.remove(&(rank, id)))
    }

    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    pub(crate) fn contains(&self, id: SequenceId) -> bool {
        self.ranks.contains_key(&id)
    }

    pub(crate) fn head(&self) -> Option<SequenceId> {
        self.line.first().map(|&(_, id)| id)
    }

    /// The next in line behind `id`, which is there.
    pub(crate) fn after(&self, id: SequenceId) -> Option<SequenceId> {
        let place = (self.ranks[&id], id);
        let mut behind = self.line.range((Bound::Excluded(place), Bound::Unbounded));
        behind.next().map(|&(_, id)| id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.line.iter().map(|&(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_makes_up_for_priority() {
        assert_eq!(rank(0, 7), 7);
        assert!(rank(1, 7) < rank(0, 0));
        assert!(rank(1, 255) < rank(0, 0));
        assert_eq!(rank(1, 256), rank(0, 0), "of equals the oldest goes first");
        assert!(rank(1, 257) > rank(0, 0));
        assert!(rank(-1, 0) > rank(0, 255));
        assert!(
            rank(i8::MIN, 0) < rank(i8::MAX, 255 * 256 + 1),
            "everybody's turn comes"
        );
    }

    #[test]
    fn the_lowest_rank_is_the_head_and_of_equals_the_oldest() {
        let mut queue = Line::default();
        for (id, rank) in [(5, 0), (2, 0), (9, 0), (1, 4), (7, -4)] {
            queue.insert(SequenceId(id), rank);
        }
        assert_eq!((queue.len(), queue.head()), (5, Some(SequenceId(7))));
        assert!(queue.contains(SequenceId(5)) && !queue.contains(SequenceId(6)));
        assert_eq!(queue.after(SequenceId(7)), Some(SequenceId(2)));
        assert_eq!(queue.after(SequenceId(2)), Some(SequenceId(5)));
        assert!(queue.remove(SequenceId(5)) && !queue.remove(SequenceId(5)));
        assert_eq!(queue.after(SequenceId(2)), Some(SequenceId(9)));
        assert_eq!(queue.after(SequenceId(1)), None);
        assert!(queue.iter().eq([7, 2, 9, 1].map(SequenceId)));
    }

    #[test]
    #[should_panic(expected = "in line twice")]
    fn nobody_stands_in_line_twice() {
        let mut queue = Line::default();
        queue.insert(SequenceId(1), 0);
        queue.insert(SequenceId(1), 1);
    }
}
