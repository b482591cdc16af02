//! Bookkeeping of paged attention blocks and Mamba state slots. No tensors: names only.

mod block;

pub use block::{BlockId, SlotId};
