//! The inputs of a decode step at fixed addresses, so that a recorded step can be replayed with
//! other rows.

#[cfg(not(feature = "cube"))]
use burn::tensor::Device;

use crate::layout::{Layout, RowLayout, TokenIds};

/// Token ids and layout of a step of `num_rows` rows of one token each. [`write`](Self::write) puts
/// other rows in place; what was recorded over [`ids`](Self::ids) and [`layout`](Self::layout) reads
/// them when it is replayed.
pub struct StepInputs {
    #[cfg(feature = "cube")]
    fixed: fixed::Fixed,
    #[cfg(not(feature = "cube"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "cube")]
mod fixed {
    use burn::tensor::Device;
    use cube_kernels::{Buffer, Client, StepIndex};

    use super::{Layout, RowLayout, StepInputs, TokenIds};
    use crate::cube;

    pub(super) struct Fixed {
        client: Client,
        ids: Buffer,
        index: StepIndex,
    }

    impl StepInputs {
        /// Inputs on a GPU for rows of up to `max_blocks` blocks; `None` on other devices, which have
        /// nothing to record.
        pub fn on(
            device: &Device,
            num_rows: usize,
            max_blocks: usize,
            block_size: usize,
        ) -> Option<Self> {
            let client = cube::client(device)?;
            Some(Self {
                fixed: Fixed {
                    ids: Buffer::upload(&client, &vec![0_u32; num_rows]),
                    index: StepIndex::decode(&client, num_rows, max_blocks, block_size),
                    client,
                },
            })
        }

        /// Puts rows of one token each in place; the rest becomes padding, which reads and writes
        /// block 0 and slot 0.
        ///
        /// # Panics
        /// If there are more rows, or longer tables, than these inputs were made for.
        pub fn write(&self, ids: &[u32], rows: &[RowLayout]) {
            let Fixed {
                client,
                ids: to,
                index,
            } = &self.fixed;
            let mut padded = ids.to_vec();
            padded.resize(index.num_rows, 0);
            to.write(client, &padded);
            index.rewrite(client, rows.iter().map(cube::row_index).collect());
        }

        /// The ids, to look up.
        pub fn ids(&self) -> TokenIds {
            TokenIds::fixed(self.fixed.index.num_rows, self.fixed.ids.clone())
        }

        /// The layout, padding included.
        pub fn layout(&self) -> Layout {
            Layout::fixed(&self.fixed.index)
        }
    }
}

#[cfg(not(feature = "cube"))]
#[allow(clippy::unused_self, missing_docs)] // No value of this type exists in such a build.
impl StepInputs {
    pub fn on(_: &Device, _: usize, _: usize, _: usize) -> Option<Self> {
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
