//! The manager through its door: reserve, extend, save, retire, release.

use kvcache::{
    BlockId, CacheConfig, HashChain, KvCacheManager, Lease, Reservation, SlotId, SnapshotKind,
    Start, StateOp, Wish,
};

/// A manager over blocks of four tokens, and what it has leased.
struct Books {
    cache: KvCacheManager,
    leases: Vec<Option<Lease>>,
    /// Slots that rows in flight write to.
    saves: Vec<SlotId>,
}

const PROMPT_END: SnapshotKind = SnapshotKind::PromptEnd;
const FINISH: SnapshotKind = SnapshotKind::Finish;

fn chain() -> HashChain {
    HashChain::new("".into(), 4)
}

fn wanted<'a>(
    chain: &'a mut HashChain,
    tokens: &'a [u32],
    num_spare_blocks: u32,
) -> Reservation<'a> {
    Reservation {
        chain,
        tokens,
        max_hit: tokens.len() - 1,
        num_spare_blocks,
    }
}

fn tokens(num: u32) -> Vec<u32> {
    (100..100 + num).collect()
}

impl Books {
    /// Usable blocks and slots.
    fn new(num_blocks: u32, num_slots: u32) -> Self {
        let (num_blocks, num_slots) = (num_blocks + 1, num_slots + 1);
        let config = CacheConfig {
            block_size: 4,
            num_blocks,
            num_slots,
            num_host_slots: 0,
            num_host_blocks: 0,
        };
        Self {
            cache: KvCacheManager::new(config),
            leases: Vec::new(),
            saves: Vec::new(),
        }
    }

    /// Tries to lease; answers the length of the hit.
    fn reserve(&mut self, tokens: &[u32], num_spare_blocks: u32) -> Option<u32> {
        let mut chain = chain();
        let wanted = self::wanted(&mut chain, tokens, num_spare_blocks);
        let num_missing = self.cache.num_missing_blocks(wanted);
        let has_slot = self.cache.has_spare_slot();
        self.check();
        let wanted = self::wanted(&mut chain, tokens, num_spare_blocks);
        let start = self.cache.reserve(wanted);
        assert_eq!(start.is_some(), has_slot && num_missing == 0, "as foretold");
        let Start { lease, num_hit, .. } = start?;
        self.leases.push(Some(lease));
        self.check();
        Some(num_hit)
    }

    fn extend(&mut self, lease: usize, num_tokens: u32) -> bool {
        let done = self
            .cache
            .extend(self.leases[lease].as_mut().unwrap(), num_tokens);
        self.check();
        done
    }

    /// As a row does it; answers the slot.
    fn save(&mut self, lease: usize, tokens: &[u32]) -> Option<u32> {
        let wish = Wish {
            len: tokens.len() as u32,
            shorter: 0,
            kind: PROMPT_END,
            has_longer: false,
            is_awaited: true,
        };
        let slot = self.cache.begin_save(&wish, &mut chain(), tokens)?;
        self.saves.push(slot);
        self.check();
        self.saves.pop();
        let lease = self.leases[lease].as_mut().unwrap();
        self.cache
            .finish_save(slot, lease, &mut chain(), tokens, PROMPT_END);
        self.check();
        Some(slot.0)
    }

    fn retire(&mut self, lease: usize, tokens: &[u32]) {
        self.cache.retire(
            self.leases[lease].take().unwrap(),
            &mut chain(),
            tokens,
            FINISH,
        );
        self.check();
    }

    fn release(&mut self, lease: usize) {
        self.cache.release(self.leases[lease].take().unwrap());
        self.check();
    }

    fn check(&self) {
        self.cache
            .check_invariants(self.leases.iter().flatten(), self.saves.iter().copied());
    }

    fn blocks(&self, lease: usize) -> Vec<u32> {
        self.leases[lease]
            .as_ref()
            .unwrap()
            .blocks()
            .iter()
            .map(|block| block.0)
            .collect()
    }

    fn slot(&self, lease: usize) -> u32 {
        self.leases[lease].as_ref().unwrap().slot().0
    }

    /// Free, used and cached blocks; free, live and saved slots.
    fn counts(&self) -> [u32; 6] {
        let (blocks, states) = (self.cache.blocks(), self.cache.states());
        [
            blocks.num_free(),
            blocks.num_used(),
            blocks.num_cached(),
            states.num_free(),
            states.num_live(),
            states.num_snapshots(),
        ]
    }
}

fn copy_slot(from: u32, to: u32) -> StateOp {
    StateOp::CopySlot {
        from: SlotId(from),
        to: SlotId(to),
    }
}

fn copy_block(from: u32, to: u32) -> StateOp {
    StateOp::CopyBlock {
        from: BlockId(from),
        to: BlockId(to),
    }
}

fn zero(slot: u32) -> StateOp {
    StateOp::ZeroSlot(SlotId(slot))
}

#[test]
fn a_hit_hands_on_what_is_pending() {
    let mut books = Books::new(8, 2);
    let pending = |books: &Books, lease: usize| books.leases[lease].as_ref().unwrap().num_pending();
    books.reserve(&tokens(6), 0);
    assert_eq!(pending(&books, 0), 0);
    books.leases[0].as_mut().unwrap().set_num_pending(2);
    books.retire(0, &tokens(6));
    assert_eq!(books.reserve(&tokens(9), 0), Some(6));
    assert_eq!(pending(&books, 1), 2);
    // A row has absorbed it all; what it leaves is a state like any other.
    books.leases[1].as_mut().unwrap().set_num_pending(0);
    books.retire(1, &tokens(9));
    assert_eq!(books.reserve(&tokens(12), 0), Some(9));
    assert_eq!(pending(&books, 2), 0);
    books.release(2);
}

#[test]
fn room_for_guesses_is_given_back() {
    let mut books = Books::new(4, 2);
    books.reserve(&tokens(6), 0);
    assert!(books.extend(0, 13));
    assert_eq!(books.counts()[..2], [0, 4]);
    let lease = books.leases[0].as_mut().unwrap();
    books.cache.trim(lease, 8);
    books.check();
    assert_eq!(books.blocks(0), [1, 2]);
    // Nothing to give back.
    let lease = books.leases[0].as_mut().unwrap();
    books.cache.trim(lease, 9);
    assert_eq!(books.counts()[..2], [2, 2]);
    assert!(books.extend(0, 9));
    assert_eq!(books.blocks(0), [1, 2, 3]);
    books.retire(0, &tokens(6));
    assert_eq!(
        books.counts()[..3],
        [2, 0, 2],
        "room beyond its tokens is free"
    );
}

#[test]
fn a_cold_start_zeroes_its_slot() {
    let mut books = Books::new(4, 2);
    assert_eq!(books.reserve(&tokens(9), 1), Some(0));
    assert_eq!((books.blocks(0), books.slot(0)), (vec![1, 2, 3], 1));
    assert_eq!(books.cache.take_ops(), [zero(1)]);
    assert_eq!(books.cache.take_ops(), []);
    books.release(0);
    assert_eq!(books.counts(), [4, 0, 0, 2, 0, 0]);
}

#[test]
fn a_reservation_is_all_or_nothing() {
    let mut books = Books::new(4, 2);
    assert_eq!(books.reserve(&tokens(17), 0), None, "five blocks of four");
    assert_eq!(
        books.reserve(&tokens(9), 2),
        None,
        "three and two to spare of four"
    );
    assert_eq!(books.counts(), [4, 0, 0, 2, 0, 0]);
    assert_eq!(books.reserve(&tokens(1), 0), Some(0));
    assert_eq!(books.reserve(&tokens(1), 0), Some(0));
    assert_eq!(books.reserve(&tokens(1), 0), None, "no slot is left");
    assert_eq!(books.counts(), [2, 2, 0, 0, 2, 0]);
}

#[test]
fn a_failed_hit_changes_nothing() {
    let mut books = Books::new(4, 4);
    books.reserve(&tokens(10), 0);
    books.retire(0, &tokens(10));
    assert_eq!(books.counts(), [1, 0, 3, 3, 0, 1]);
    assert_eq!(books.reserve(&tokens(17), 0), None);
    assert_eq!(books.counts(), [1, 0, 3, 3, 0, 1]);
}

#[test]
fn a_hit_shares_full_blocks_and_copies_the_tail() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(10), 0);
    books.retire(0, &tokens(10));
    books.cache.take_ops();
    assert_eq!(books.reserve(&tokens(13), 0), Some(10));
    assert_eq!(books.blocks(1), [1, 2, 4, 5]);
    assert_eq!(books.cache.take_ops(), [copy_slot(1, 2), copy_block(3, 4)]);
    assert_eq!(books.counts(), [3, 4, 1, 2, 1, 1]);
}

#[test]
fn a_hit_on_a_block_boundary_copies_no_block() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(8), 0);
    books.retire(0, &tokens(8));
    books.cache.take_ops();
    assert_eq!(books.reserve(&tokens(9), 0), Some(8));
    assert_eq!(books.blocks(1), [1, 2, 3]);
    assert_eq!(books.cache.take_ops(), [copy_slot(1, 2)]);
}

#[test]
fn a_hit_is_shorter_than_allowed_never_longer() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(8), 0);
    books.retire(0, &tokens(8));
    assert_eq!(
        books.reserve(&tokens(8), 0),
        Some(0),
        "seven at most, and there are eight"
    );
}

#[test]
fn the_last_slot_passes_from_the_snapshot_to_who_hits_it() {
    let mut books = Books::new(8, 1);
    books.reserve(&tokens(10), 0);
    books.retire(0, &tokens(10));
    books.cache.take_ops();
    assert_eq!(books.reserve(&tokens(13), 0), Some(10));
    assert_eq!(books.slot(1), 1);
    // The evicted tail is the block freed last, so it is handed out next: nothing moves at all.
    assert_eq!(books.blocks(1), [1, 2, 3, 4]);
    assert_eq!(books.cache.take_ops(), []);
    assert_eq!(books.counts(), [4, 4, 0, 0, 1, 0]);
}

#[test]
fn the_last_blocks_pass_from_the_snapshot_to_who_hits_it() {
    // All blocks hold the snapshot; its tail is needed by the very sequence that starts from it.
    let mut books = Books::new(3, 4);
    books.reserve(&tokens(10), 0);
    books.retire(0, &tokens(10));
    books.cache.take_ops();
    assert_eq!(books.reserve(&tokens(12), 0), Some(10));
    assert_eq!(books.blocks(1), [1, 2, 3]);
    assert_eq!(books.cache.take_ops(), [copy_slot(1, 2)]);
    assert_eq!(books.counts(), [0, 3, 0, 3, 1, 0]);
}

#[test]
fn extending_takes_what_is_missing() {
    let mut books = Books::new(3, 2);
    books.reserve(&tokens(3), 0);
    assert!(books.extend(0, 4));
    assert_eq!(books.blocks(0), [1]);
    assert!(books.extend(0, 5));
    assert_eq!(books.blocks(0), [1, 2]);
    assert!(books.extend(0, 2), "less than it has is no change");
    assert!(!books.extend(0, 13), "four blocks of three");
    assert_eq!(books.blocks(0), [1, 2]);
    assert!(books.extend(0, 12));
    assert_eq!(books.blocks(0), [1, 2, 3]);
}

#[test]
fn extending_evicts() {
    let mut books = Books::new(3, 4);
    books.reserve(&tokens(8), 0);
    books.retire(0, &tokens(8));
    books.reserve(&[7], 0);
    assert_eq!(books.counts(), [0, 1, 2, 2, 1, 1]);
    assert!(books.extend(1, 12));
    assert_eq!(books.counts(), [0, 3, 0, 3, 1, 0]);
}

#[test]
fn a_save_moves_nothing_and_happens_once() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(6), 0);
    books.cache.take_ops();
    assert_eq!(books.save(0, &tokens(5)), Some(2));
    assert_eq!(books.save(0, &tokens(5)), None, "it is there already");
    assert_eq!(books.cache.take_ops(), []);
    assert_eq!(books.counts(), [6, 2, 0, 2, 1, 1]);
    books.retire(0, &tokens(5));
    assert_eq!(
        books.counts(),
        [6, 0, 2, 3, 0, 1],
        "retiring at a saved length adds nothing"
    );
}

#[test]
fn two_snapshots_share_a_tail() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(6), 0);
    assert!(books.save(0, &tokens(5)).is_some());
    books.retire(0, &tokens(7));
    assert_eq!(books.counts(), [6, 0, 2, 2, 0, 2]);
    assert_eq!(
        books.reserve(&[&tokens(7)[..], &[1, 2]].concat(), 0),
        Some(7)
    );
    assert_eq!(
        books.reserve(&[&tokens(5)[..], &[1, 2]].concat(), 0),
        Some(5)
    );
}

#[test]
fn a_snapshot_holds_no_more_blocks_than_it_covers() {
    let mut books = Books::new(8, 4);
    books.reserve(&tokens(20), 0);
    books.retire(0, &tokens(8));
    assert_eq!(books.counts(), [6, 0, 2, 3, 0, 1]);
}

#[test]
fn without_a_spare_slot_nothing_is_saved() {
    let mut books = Books::new(8, 2);
    books.reserve(&tokens(6), 0);
    books.reserve(&[1], 0);
    assert_eq!(books.save(0, &tokens(5)), None);
    assert_eq!(books.counts(), [5, 3, 0, 0, 2, 0]);
}

#[test]
fn a_save_takes_the_oldest_snapshots_slot() {
    let mut books = Books::new(8, 3);
    for (lease, token) in [1, 2].into_iter().enumerate() {
        books.reserve(&[token], 0);
        books.retire(lease, &[token]);
    }
    books.reserve(&tokens(6), 0);
    assert_eq!(books.counts(), [4, 2, 2, 0, 1, 2]);
    books.cache.take_ops();
    assert_eq!(books.save(2, &tokens(5)), Some(1));
    assert_eq!(books.reserve(&[1, 9], 0), Some(0), "the older one is gone");
}

#[test]
fn nothing_computed_is_nothing_to_keep() {
    let mut books = Books::new(8, 2);
    books.reserve(&tokens(6), 0);
    books.retire(0, &[]);
    assert_eq!(books.counts(), [8, 0, 0, 2, 0, 0]);
}

#[test]
fn eviction_spares_what_would_free_nothing() {
    // The older snapshot's only block is in use by the sequence that goes on from it; evicting it
    // would free no block, so the younger one goes.
    let mut books = Books::new(5, 6);
    books.reserve(&tokens(5), 0);
    assert!(books.save(0, &tokens(4)).is_some());
    books.reserve(&[1, 2, 3, 4, 5], 0);
    books.retire(1, &[1, 2, 3, 4, 5]);
    assert_eq!(books.counts(), [1, 2, 2, 3, 1, 2]);
    assert!(books.extend(0, 16));
    assert_eq!(books.counts(), [1, 4, 0, 4, 1, 1]);
    assert_eq!(
        books.reserve(&tokens(5), 0),
        Some(4),
        "the older one is still there"
    );
}

#[test]
fn forgetting_takes_every_prefix_and_nothing_else() {
    let mut books = Books::new(8, 6);
    books.reserve(&tokens(9), 0);
    assert!(books.save(0, &tokens(5)).is_some());
    books.retire(0, &tokens(9));
    books.reserve(&[&tokens(4)[..], &[1]].concat(), 0);
    books.retire(1, &[&tokens(4)[..], &[1]].concat());
    assert_eq!(books.counts()[5], 3);
    books.cache.forget(&mut chain(), &tokens(9));
    books.check();
    assert_eq!(books.counts()[5], 1);
    assert_eq!(books.reserve(&tokens(10), 0), Some(0));
}

#[test]
fn a_use_makes_young() {
    let mut books = Books::new(8, 3);
    for (lease, token) in [1, 2].into_iter().enumerate() {
        books.reserve(&[token], 0);
        books.retire(lease, &[token]);
    }
    assert_eq!(books.reserve(&[1, 9], 0), Some(1));
    books.release(2);
    books.reserve(&[3], 0);
    books.reserve(&[4], 0);
    assert_eq!(books.counts()[5], 1, "one of two snapshots had to go");
    books.release(3);
    assert_eq!(
        books.reserve(&[1, 9], 0),
        Some(1),
        "the one used last stays"
    );
}

#[test]
fn the_config_is_kept() {
    assert_eq!(Books::new(8, 3).cache.config().num_blocks, 9);
}

#[test]
#[should_panic(expected = "at least one token to run")]
fn a_hit_of_everything_cannot_be_asked_for() {
    let mut books = Books::new(8, 3);
    let (tokens, mut chain) = (tokens(3), chain());
    let wanted = Reservation {
        chain: &mut chain,
        tokens: &tokens,
        max_hit: 3,
        num_spare_blocks: 0,
    };
    let _ = books.cache.reserve(wanted);
}

#[test]
#[should_panic(expected = "block counts")]
fn a_lost_lease_is_found() {
    let mut books = Books::new(8, 3);
    books.reserve(&tokens(3), 0);
    books.leases.clear();
    books.check();
}

fn refuse(block_size: u32, num_blocks: u32, num_slots: u32) {
    KvCacheManager::new(CacheConfig {
        block_size,
        num_blocks,
        num_slots,
        num_host_slots: 0,
        num_host_blocks: 0,
    });
}

#[test]
#[should_panic(expected = "at least one token")]
fn a_block_of_nothing() {
    refuse(0, 2, 2);
}

#[test]
#[should_panic(expected = "one block is none")]
fn a_cache_of_padding() {
    refuse(1, 1, 2);
}

#[test]
#[should_panic(expected = "one slot is none")]
fn a_slot_of_padding() {
    refuse(1, 2, 1);
}

#[test]
fn the_smallest_cache() {
    refuse(1, 2, 2);
}
