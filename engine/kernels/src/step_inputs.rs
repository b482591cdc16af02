//! The inputs of a step at fixed addresses, so that a recorded step can be replayed with other rows.

#[cfg(not(feature = "cube"))]
use burn::tensor::Device;

use crate::layout::{Layout, RowLayout, TokenIds};

/// The sizes that a recorded step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows; those that are missing are padding.
    pub num_rows: usize,
    /// Tokens of every row; a shorter one is filled up.
    pub row_tokens: usize,
    /// Blocks of a row, at most.
    pub max_blocks: usize,
    /// Positions per block.
    pub block_size: usize,
    /// Attention does not look at positions before this one.
    pub first_position: usize,
    /// Where rows have pending tokens or drafts: their rings.
    pub rings: Option<Rings>,
}

/// The rings of a [`StatePool`](crate::StatePool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// One each.
    pub num_slots: usize,
    /// Tokens of each.
    pub len: usize,
}

/// Token ids and layout of a step. [`write`](Self::write) puts other rows in place; what was recorded
/// over [`ids`](Self::ids) and [`layout`](Self::layout) reads them when it is replayed.
pub struct StepInputs {
    #[cfg(feature = "cube")]
    fixed: fixed::Fixed,
    #[cfg(not(feature = "cube"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "cube")]
mod fixed {
    use std::sync::Arc;

    use burn::tensor::Device;
    use cube_kernels::{Buffer, Client, RowIndex, StepIndex};

    use super::{Layout, RowLayout, StepInputs, StepShape, TokenIds};
    use crate::conv_and_scan::waves::Waves;
    use crate::cube;

    pub(super) struct Fixed {
        client: Client,
        ids: Buffer,
        index: StepIndex,
        waves: Option<Arc<Waves>>,
    }

    impl StepInputs {
        /// Inputs on a GPU; `None` on other devices, which have nothing to record.
        pub fn on(device: &Device, shape: &StepShape) -> Option<Self> {
            let client = cube::client(device)?;
            let StepShape {
                num_rows,
                row_tokens,
                max_blocks,
                block_size,
                first_position,
                ..
            } = *shape;
            let index = StepIndex::fixed(&client, num_rows, row_tokens, max_blocks, block_size);
            Some(Self {
                fixed: Fixed {
                    ids: Buffer::upload(&client, &vec![0_u32; num_rows * row_tokens]),
                    index: index.seen_from(first_position),
                    waves: Waves::fixed(&client, shape).map(Arc::new),
                    client,
                },
            })
        }

        /// Puts rows in place, whose ids follow one another. A row that is shorter than the shape's goes
        /// on over the positions behind it, which it must have blocks for: nothing is absorbed there.
        /// Rows that are missing become padding, which reads and writes block 0 and slot 0.
        ///
        /// # Panics
        /// If there are more rows, or longer rows or tables, than these inputs were made for.
        pub fn write(&self, ids: &[u32], rows: &[RowLayout]) {
            let Fixed {
                client,
                ids: to,
                index,
                waves,
            } = &self.fixed;
            let len = index.max_row_tokens;
            let mut padded = vec![0; index.num_tokens];
            for (row, to) in rows.iter().zip(padded.chunks_mut(len)) {
                to[..row.num_tokens()].copy_from_slice(&ids[row.tokens.clone()]);
            }
            to.write(client, &padded);
            let padded = rows.iter().map(|row| RowIndex {
                num_tokens: len,
                ..cube::row_index(row)
            });
            index.rewrite(client, padded.collect());
            if let Some(waves) = waves {
                waves.rewrite(client, len, rows);
            }
        }

        /// The ids, to look up.
        pub fn ids(&self) -> TokenIds {
            TokenIds::fixed(self.fixed.index.num_tokens, self.fixed.ids.clone())
        }

        /// The layout, padding included.
        pub fn layout(&self) -> Layout {
            Layout::fixed(&self.fixed.index, self.fixed.waves.as_ref())
        }
    }
}

#[cfg(not(feature = "cube"))]
#[allow(clippy::unused_self, missing_docs)] // No value of this type exists in such a build.
impl StepInputs {
    pub fn on(_: &Device, _: &StepShape) -> Option<Self> {
        None
    }

    pub fn write(&self, _: &[u32], _: &[RowLayout]) {
        match self.never {}
    }

    pub fn ids(&self) -> TokenIds {
        match self.never {}
    }

    pub fn layout(&self) -> Layout {
        match self.never {}
    }
}
