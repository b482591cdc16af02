//! Block and slot names.

/// One block of attention KV: `block_size` tokens in every attention layer. Block 0 is padding and
/// owned by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// One slot of Mamba state: the SSM and convolution state of every Mamba layer for one sequence or
/// snapshot. Slot 0 is padding and owned by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A block in host memory, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostBlockId(pub u32);

/// A slot in host memory, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostSlotId(pub u32);

// Host memory is kept by the same books, whose number 0 is padding, and needs none.

impl From<BlockId> for HostBlockId {
    fn from(BlockId(number): BlockId) -> Self {
        Self(number - 1)
    }
}

impl From<SlotId> for HostSlotId {
    fn from(SlotId(number): SlotId) -> Self {
        Self(number - 1)
    }
}
