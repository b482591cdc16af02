//! Bookkeeping of paged attention blocks and Mamba state slots. No tensors: names only.
//!
//! # The map
//!
//! | File | Holds |
//! |---|---|
//! | `spec` | [`CacheSpec`]: what a block and a slot cost; [`CacheConfig`]: how many there are |
//! | `block` | [`BlockId`], [`SlotId`] |
//! | `hash` | [`BlockHash`], [`HashChain`]: a prefix as a chain of numbers |
//! | `pool` | [`BlockPool`]: free, used, cached |
//! | `runs` | which blocks follow which: the tree of paths, and who holds how much of it |
//! | `table` | [`BlockTable`]: the blocks of one sequence, in order |
//! | `state` | [`StatePool`]: free, live, snapshot; [`StateOp`] |
//! | `paths` | which blocks hold which tokens, found by hash |
//! | `index` | snapshots by what they hold |
//! | `prefix` | which prefixes need no computing; [`Miss`]: why no longer one |
//! | `policy` | [`Policy`]: what a snapshot is worth, as a pure function |
//! | `ranks` | what eviction looks at, side by side |
//! | `manager` | [`KvCacheManager`]: the one door to all of it; [`Lease`] |
//! | `save` | snapshots of those who run; [`Wish`] |
//! | `evict` | what goes when memory is short, and what of it goes to the host |
//! | `news` | [`News`]: what can be hit from now on, and what no longer |
//! | `held` | [`Held`]: what is there, for people |
//!
//! # Two currencies
//!
//! A token costs a sixteenth of a block; a sequence costs one slot, whatever its length, and a slot
//! is worth far more memory than a block. A prefix of a hybrid model can be skipped only where both
//! are at hand: the attention blocks of its tokens, *and* the Mamba state after exactly its last
//! token. State cannot be cut back, so a snapshot at length n serves hits of length n and no other.
//! The last tokens may be *pending*: their inputs lie beside the slot and belong to it, and a hit
//! hands on how many there are.
//!
//! # Invariants
//!
//! 1. Block 0 and slot 0 are padding. They are never handed out and never freed.
//! 2. Every other block is *free*, *used* (held by at least one [`Lease`]) or *cached* (held by
//!    snapshots only). Every other slot is *free*, *live* (one lease), *pending* (a row in flight
//!    writes a snapshot to it) or a *snapshot*.
//! 3. Who holds a block is counted where its path ends. All counts can be recomputed from the leases
//!    and snapshots alone; `check_invariants` does it.
//! 4. Blocks form a tree. Who holds block b at index i of its list also holds the same i blocks that
//!    come before b in every other list with b in it. Hence a list whose last block is used is used
//!    as a whole.
//! 5. A block has one writer at most. Whoever comes second to a partly filled tail gets a copy. A
//!    writer only ever writes behind what snapshots of the block cover.
//! 6. A hit means equal salt and equal tokens. Hashes only say where to look.
//! 7. A reservation is all or nothing: `None` changes nothing.
//! 8. Live sequences come first: every snapshot may be evicted for one, even the one that is hit. A
//!    slot for a snapshot is a free one or that of a snapshot of less worth.
//! 9. What is not owned is meaningless. Operations run in the order in which they were pushed, all
//!    of them before any row, so a block or slot may change hands within a plan: its new owner's
//!    operations come behind the old owner's.
//!
//! 10. A snapshot is in one memory, slot and blocks together. Host memory is kept by the same books:
//!     blocks that are there already are shared, and nobody but snapshots holds any.
//! 11. What a row in flight writes is known to nobody until it is published.
//!
//! # What goes first
//!
//! Slots and blocks are got back by evicting the snapshot of least worth ([`Policy::score`]): tokens
//! that whoever hits it need not compute, over the next shorter snapshot of its path, for the memory
//! that it alone takes; more if it was of use lately or often. If it is worth the move and there is
//! host memory, it goes there, and a hit brings it back. Evicted ones are remembered for a while, so
//! that a start can say why it was no longer hit ([`Miss`]).
//!
//! # What this crate does not know
//!
//! Requests, choices, queues and steps (the scheduler's); bytes, devices and layers beyond a sum
//! (the engine's); text. It holds no clock: recency is a count of uses.

mod block;
mod evict;
mod hash;
mod held;
mod index;
mod manager;
mod news;
mod paths;
mod policy;
mod pool;
mod prefix;
mod ranks;
mod runs;
mod save;
mod spec;
mod state;
mod table;

pub use block::{BlockId, HostBlockId, HostSlotId, SlotId};
pub use hash::{BlockHash, HashChain};
pub use held::Held;
pub use manager::{KvCacheManager, Lease, Moves, Parting, Reservation, Start};
pub use news::News;
pub use policy::{Candidate, Class, Habits, Policy, Short, SnapshotKind};
pub use pool::BlockPool;
pub use prefix::{Miss, Tier};
pub use save::Wish;
pub use spec::{CacheConfig, CacheSpec, LayerCache};
pub use state::{StateOp, StatePool};
pub use table::BlockTable;
