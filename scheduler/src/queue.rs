//! The order of a tenant's sequences that wait, and of those that run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::output::SequenceId;

/// Steps of waiting that make up for one level of priority: some seconds.
const STEPS_PER_LEVEL: i64 = 256;

/// Where somebody stands in line: lower goes first. Whoever waits long enough comes before everybody who
/// arrives later, and the order of two never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The step in which somebody of priority 0 would have had to arrive for the same place.
    as_if_arrived: i64,
    priority: i8,
}

impl Rank {
    /// Of somebody who arrived in a step.
    pub(crate) fn new(priority: i8, arrived: u64) -> Self {
        Self {
            as_if_arrived: arrived as i64 - i64::from(priority) * STEPS_PER_LEVEL,
            priority,
        }
    }

    /// The level of priority that it has come to in step `now`, if its tenant was last served in step
    /// `served`. Nobody rises above `top`.
    pub(crate) fn level(self, served: u64, now: u64, top: i8) -> i64 {
        let priority = i64::from(self.priority);
        let arrived = self.as_if_arrived + priority * STEPS_PER_LEVEL;
        let waited = now as i64 - arrived.max(served as i64);
        (priority + waited.div_euclid(STEPS_PER_LEVEL)).min(top.into())
    }
}

/// Sequences by rank, and of equals the oldest first. Whoever was preempted keeps the rank and so
/// returns near the head of those who wait.
#[derive(Debug, Default)]
pub(crate) struct Line {
    line: BTreeSet<(Rank, SequenceId)>,
    ranks: BTreeMap<SequenceId, Rank>,
}

impl Line {
    pub(crate) fn insert(&mut self, id: SequenceId, rank: Rank) {
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

    /// With its rank.
    pub(crate) fn first(&self) -> Option<(Rank, SequenceId)> {
        self.line.first().copied()
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
        let goes_first = |one: Rank, other: Rank| {
            let (mut line, ids) = (Line::default(), [1, 2].map(SequenceId));
            // Of equals the one that came first would be the older.
            line.insert(ids[0], other);
            line.insert(ids[1], one);
            line.first() == Some((one, ids[1]))
        };
        assert!(goes_first(Rank::new(1, 7), Rank::new(0, 0)));
        assert!(goes_first(Rank::new(1, 255), Rank::new(0, 0)));
        assert!(
            !goes_first(Rank::new(1, 256), Rank::new(0, 0)),
            "the oldest"
        );
        assert!(goes_first(Rank::new(0, 0), Rank::new(1, 257)));
        assert!(goes_first(Rank::new(-1, 0), Rank::new(0, 257)));
        assert!(goes_first(Rank::new(0, 255), Rank::new(-1, 0)));
        assert!(
            goes_first(Rank::new(i8::MIN, 0), Rank::new(i8::MAX, 255 * 256 + 1)),
            "everybody's turn comes"
        );
    }

    #[test]
    fn levels_rise_with_waiting_up_to_the_top() {
        let level = |priority, waited: u64| Rank::new(priority, 50).level(0, 50 + waited, 3);
        assert_eq!([level(0, 0), level(2, 0), level(-2, 0)], [0, 2, -2]);
        assert_eq!([level(-1, 255), level(-1, 256), level(0, 9999)], [-1, 0, 3]);
        // What counts is how long nobody of the tenant was served.
        let level = |served, now| Rank::new(0, 50).level(served, now, 3);
        assert_eq!([level(49, 306), level(51, 306), level(51, 307)], [1, 0, 1]);
    }

    #[test]
    fn the_lowest_rank_is_the_head_and_of_equals_the_oldest() {
        let mut queue = Line::default();
        for (id, arrived) in [(5, 4), (2, 4), (9, 4), (1, 8), (7, 0)] {
            queue.insert(SequenceId(id), Rank::new(0, arrived));
        }
        let first = (Rank::new(0, 0), SequenceId(7));
        assert_eq!((queue.len(), queue.first()), (5, Some(first)));
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
        queue.insert(SequenceId(1), Rank::new(0, 0));
        queue.insert(SequenceId(1), Rank::new(0, 1));
    }
}
