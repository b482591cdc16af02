//! Live state slots, saved snapshots, and the movements of state.

use std::collections::BTreeSet;

use crate::block::{BlockId, HostBlockId, HostSlotId, SlotId};

/// A movement of cached state. The runner applies a plan's operations in order, before any row. An
/// operation may belong to a finished sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateOp {
    /// A new sequence starts from zero SSM and convolution state.
    ZeroSlot(SlotId),
    /// Copies a whole slot: restoring from a snapshot, or saving a live slot into one.
    CopySlot {
        /// Read.
        from: SlotId,
        /// Overwritten.
        to: SlotId,
    },
    /// Copies a whole block: a partial tail block gets a second writer.
    CopyBlock {
        /// Read.
        from: BlockId,
        /// Overwritten.
        to: BlockId,
    },
    /// Copies a whole slot to host memory.
    SlotToHost {
        /// Read.
        from: SlotId,
        /// Overwritten.
        to: HostSlotId,
    },
    /// Copies a whole block to host memory.
    BlockToHost {
        /// Read.
        from: BlockId,
        /// Overwritten.
        to: HostBlockId,
    },
    /// Copies a whole slot from host memory.
    HostToSlot {
        /// Read.
        from: HostSlotId,
        /// Overwritten.
        to: SlotId,
    },
    /// Copies a whole block from host memory.
    HostToBlock {
        /// Read.
        from: HostBlockId,
        /// Overwritten.
        to: BlockId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Padding,
    Free,
    Live,
    /// A row in flight writes a snapshot to it.
    Pending,
    Snapshot,
}

/// All slots: free, live, snapshot.
#[derive(Debug)]
pub struct StatePool {
    slots: Vec<Use>,
    /// Lowest id first, so that traces read well.
    free: BTreeSet<SlotId>,
    num_live: u32,
    num_pending: u32,
    num_snapshots: u32,
}

impl StatePool {
    /// `num_slots` free ones, slot 0 apart.
    pub fn new(num_slots: u32) -> Self {
        let mut slots = vec![Use::Free; num_slots as usize];
        slots[0] = Use::Padding;
        Self {
            slots,
            free: (1..num_slots).map(SlotId).collect(),
            num_live: 0,
            num_pending: 0,
            num_snapshots: 0,
        }
    }

    /// Slots that nobody holds.
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Slots of running sequences.
    pub fn num_live(&self) -> u32 {
        self.num_live
    }

    /// Slots that hold snapshots.
    pub fn num_snapshots(&self) -> u32 {
        self.num_snapshots
    }

    pub(crate) fn take_live(&mut self) -> Option<SlotId> {
        let slot = self.free.pop_first()?;
        self.turn(slot, Use::Free, Use::Live);
        self.num_live += 1;
        Some(slot)
    }

    pub(crate) fn take_snapshot(&mut self) -> Option<SlotId> {
        let slot = self.free.pop_first()?;
        self.turn(slot, Use::Free, Use::Snapshot);
        self.num_snapshots += 1;
        Some(slot)
    }

    /// For a row in flight to write to.
    pub(crate) fn take_pending(&mut self) -> Option<SlotId> {
        let slot = self.free.pop_first()?;
        self.turn(slot, Use::Free, Use::Pending);
        self.num_pending += 1;
        Some(slot)
    }

    /// The row has written it.
    pub(crate) fn publish_pending(&mut self, slot: SlotId) {
        self.turn(slot, Use::Pending, Use::Snapshot);
        self.num_pending -= 1;
        self.num_snapshots += 1;
    }

    /// Nobody wants what the row has written, if it has.
    pub(crate) fn release_pending(&mut self, slot: SlotId) {
        self.turn(slot, Use::Pending, Use::Free);
        self.num_pending -= 1;
        self.free.insert(slot);
    }

    /// The state stays where it is and changes its meaning.
    pub(crate) fn rename_to_snapshot(&mut self, slot: SlotId) {
        self.turn(slot, Use::Live, Use::Snapshot);
        self.num_live -= 1;
        self.num_snapshots += 1;
    }

    pub(crate) fn release_live(&mut self, slot: SlotId) {
        self.turn(slot, Use::Live, Use::Free);
        self.num_live -= 1;
        self.free.insert(slot);
    }

    pub(crate) fn release_snapshot(&mut self, slot: SlotId) {
        self.turn(slot, Use::Snapshot, Use::Free);
        self.num_snapshots -= 1;
        self.free.insert(slot);
    }

    fn turn(&mut self, slot: SlotId, from: Use, to: Use) {
        let held = &mut self.slots[slot.index()];
        assert_eq!(*held, from, "{slot:?} cannot become {to:?}");
        *held = to;
    }

    /// Recounts everything from the names of those who hold slots.
    pub(crate) fn check(
        &self,
        live: impl Iterator<Item = SlotId>,
        pending: impl Iterator<Item = SlotId>,
        snapshots: impl Iterator<Item = SlotId>,
    ) {
        let mut expect = vec![Use::Free; self.slots.len()];
        expect[0] = Use::Padding;
        let (mut num_live, mut num_pending, mut num_snapshots) = (0, 0, 0);
        for slot in live {
            assert_eq!(expect[slot.index()], Use::Free, "{slot:?} has two owners");
            expect[slot.index()] = Use::Live;
            num_live += 1;
        }
        for slot in pending {
            assert_eq!(expect[slot.index()], Use::Free, "{slot:?} has two owners");
            expect[slot.index()] = Use::Pending;
            num_pending += 1;
        }
        for slot in snapshots {
            assert_eq!(expect[slot.index()], Use::Free, "{slot:?} has two owners");
            expect[slot.index()] = Use::Snapshot;
            num_snapshots += 1;
        }
        assert_eq!(self.slots, expect, "uses of slots");
        assert_eq!(
            (self.num_live, self.num_pending, self.num_snapshots),
            (num_live, num_pending, num_snapshots),
            "slot counts"
        );
        let free = (0..expect.len())
            .filter(|&i| expect[i] == Use::Free)
            .map(|i| SlotId(i as u32));
        assert!(
            self.free.iter().copied().eq(free),
            "free slots are those that nobody holds"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &StatePool) -> (u32, u32, u32) {
        (pool.num_free(), pool.num_live(), pool.num_snapshots())
    }

    #[test]
    fn a_slot_is_free_live_or_a_snapshot() {
        let mut pool = StatePool::new(4);
        let live = pool.take_live().unwrap();
        let saved = pool.take_snapshot().unwrap();
        assert_eq!((live, saved), (SlotId(1), SlotId(2)));
        assert_eq!(counts(&pool), (1, 1, 1));
        pool.rename_to_snapshot(live);
        assert_eq!(counts(&pool), (1, 0, 2));
        pool.release_snapshot(saved);
        assert_eq!(counts(&pool), (2, 0, 1));
        assert_eq!(pool.take_live(), Some(SlotId(2)));
        assert_eq!(pool.take_live(), Some(SlotId(3)));
        assert_eq!((pool.take_live(), pool.take_snapshot()), (None, None));
        pool.release_live(SlotId(3));
        assert_eq!(counts(&pool), (1, 1, 1));
        pool.check([SlotId(2)].into_iter(), [].into_iter(), [live].into_iter());
    }

    fn sample() -> StatePool {
        let mut pool = StatePool::new(4);
        pool.take_live();
        pool.take_snapshot();
        pool
    }

    fn check(pool: &StatePool) {
        pool.check(
            [SlotId(1)].into_iter(),
            [].into_iter(),
            [SlotId(2)].into_iter(),
        );
    }

    #[test]
    fn a_slot_in_flight_becomes_a_snapshot_or_free() {
        let mut pool = StatePool::new(3);
        let (kept, lost) = (pool.take_pending().unwrap(), pool.take_pending().unwrap());
        assert_eq!((pool.take_pending(), counts(&pool)), (None, (0, 0, 0)));
        pool.check([].into_iter(), [kept, lost].into_iter(), [].into_iter());
        pool.publish_pending(kept);
        pool.release_pending(lost);
        assert_eq!(counts(&pool), (1, 0, 1));
        pool.check([].into_iter(), [].into_iter(), [kept].into_iter());
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn the_check_finds_a_row_that_writes_a_snapshot() {
        sample().check(
            [SlotId(1)].into_iter(),
            [SlotId(2)].into_iter(),
            [SlotId(2)].into_iter(),
        );
    }

    #[test]
    fn the_check_passes_what_is_right() {
        check(&sample());
    }

    #[test]
    #[should_panic(expected = "uses of slots")]
    fn the_check_finds_a_lost_slot() {
        let mut pool = sample();
        pool.take_live();
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "slot counts")]
    fn the_check_finds_a_wrong_sum() {
        let mut pool = sample();
        pool.num_live = 2;
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "that nobody holds")]
    fn the_check_finds_a_wrong_free_list() {
        let mut pool = sample();
        pool.free.insert(SlotId(1));
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn the_check_finds_two_live_owners() {
        sample().check(
            [SlotId(1), SlotId(1)].into_iter(),
            [].into_iter(),
            [].into_iter(),
        );
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn the_check_finds_a_snapshot_of_a_live_slot() {
        sample().check(
            [SlotId(1)].into_iter(),
            [].into_iter(),
            [SlotId(1)].into_iter(),
        );
    }

    #[test]
    #[should_panic(expected = "cannot become Free")]
    fn a_slot_cannot_be_freed_twice() {
        let mut pool = sample();
        pool.release_live(SlotId(1));
        pool.release_live(SlotId(1));
    }
}
