//! Snapshots of running sequences. A row writes them on its way: a slot is taken when it is planned,
//! and what is in it is published when it has run, or nobody ever hears of it.

use crate::block::SlotId;
use crate::hash::HashChain;
use crate::manager::{KvCacheManager, Lease};
use crate::policy::{Candidate, Class, Short, SnapshotKind};

/// A snapshot that a row could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Tokens absorbed.
    pub len: u32,
    /// The same of the next shorter snapshot, or of the hit.
    pub shorter: u32,
    /// Why it is wished for.
    pub kind: SnapshotKind,
    /// Whether a longer one is wished for, too.
    pub has_longer: bool,
    /// Whether somebody waits for it. Then it need not be worth more than those that are there.
    pub is_awaited: bool,
}

impl KvCacheManager {
    /// What a snapshot would be worth, on the scale of those that are there.
    pub fn worth(&self, wish: &Wish) -> f64 {
        let candidate = Candidate {
            num_saved_tokens: wish.len - wish.shorter,
            short: Short::Slots,
            num_freed: 1,
            last_use: self.prefix.now(),
            class: Class {
                kind: wish.kind,
                num_hits: 0,
                has_longer: wish.has_longer,
            },
        };
        self.score(&candidate)
    }

    /// A slot for a snapshot of exactly `tokens`: a free one, or that of a snapshot of less worth.
    /// `None`: there is none to be had, or there is such a snapshot already. Ends in `finish_save` or
    /// `cancel_save`.
    pub fn begin_save(
        &mut self,
        wish: &Wish,
        chain: &mut HashChain,
        tokens: &[u32],
    ) -> Option<SlotId> {
        if self.touch_existing(chain, tokens) {
            return None;
        }
        if self.states.num_free() == 0 {
            let (id, worth) = self.worst_for_slot(None)?;
            if worth >= self.worth(wish) && !wish.is_awaited {
                return None;
            }
            self.evict(id, None);
        }
        self.states.take_pending()
    }

    /// A row has written the state after exactly `tokens` to `slot`: publishes it, unless somebody else
    /// has published the same.
    pub fn finish_save(
        &mut self,
        slot: SlotId,
        lease: &mut Lease,
        chain: &mut HashChain,
        tokens: &[u32],
        kind: SnapshotKind,
    ) {
        if self.touch_existing(chain, tokens) {
            self.cancel_save(slot);
            return;
        }
        self.states.publish_pending(slot);
        // A row absorbs what is pending before it comes to its own tokens.
        self.publish(&mut lease.table, slot, chain, tokens, (kind, 0));
    }

    /// Gives back the slot of a snapshot that will not be.
    pub fn cancel_save(&mut self, slot: SlotId) {
        self.states.release_pending(slot);
    }
}
