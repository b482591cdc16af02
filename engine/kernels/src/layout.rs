//! How the rows of one step lie in the flat token dimension, and the shapes that operations share.

use std::ops::Range;

use burn::tensor::Tensor;

/// How the rows of a step lie in the flat token dimension `T`. Host side, built once per step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The rows, in the order of their tokens.
    pub rows: Vec<RowLayout>,
    /// Positions per KV block.
    pub block_size: usize,
    /// The same as index buffers of the device that asked first.
    #[cfg(feature = "cube")]
    pub(crate) index: crate::cube::StepCell,
}

/// The token ids of a step.
#[derive(Clone, Debug, Default)]
pub struct TokenIds {
    host: Vec<u32>,
    #[cfg(feature = "cube")]
    pub(crate) device: std::sync::OnceLock<cube_kernels::Buffer>,
}

impl From<Vec<u32>> for TokenIds {
    fn from(host: Vec<u32>) -> Self {
        Self {
            host,
            #[cfg(feature = "cube")]
            device: std::sync::OnceLock::new(),
        }
    }
}

impl TokenIds {
    /// Ids that were put on the device before, and may change there.
    #[cfg(feature = "cube")]
    pub(crate) fn fixed(num_tokens: usize, device: cube_kernels::Buffer) -> Self {
        Self {
            host: vec![0; num_tokens],
            device: device.into(),
        }
    }

    /// The ids as they were given.
    pub fn as_slice(&self) -> &[u32] {
        &self.host
    }
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// This row's part of `T`, never empty.
    pub tokens: Range<usize>,
    /// Absolute position of its first token.
    pub start: usize,
    /// Live state slot; no two rows of a step share one.
    pub slot: usize,
    /// Block table covering `start + len` positions.
    pub blocks: Vec<u32>,
}

impl RowLayout {
    /// Number of tokens of this row in the step.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Positions that exist once this row's tokens are written.
    pub fn context_len(&self) -> usize {
        self.start + self.tokens.len()
    }
}

impl Layout {
    /// Lays rows out over blocks of `block_size` positions.
    pub fn new(rows: Vec<RowLayout>, block_size: usize) -> Self {
        Self {
            rows,
            block_size,
            #[cfg(feature = "cube")]
            index: crate::cube::StepCell::default(),
        }
    }

    /// The layout of rows of one token each that were put on the device before, and may change
    /// there. On the host they are padding.
    #[cfg(feature = "cube")]
    pub(crate) fn fixed(index: &cube_kernels::StepIndex) -> Self {
        let rows = (0..index.num_rows).map(|at| RowLayout {
            tokens: at..at + 1,
            start: 0,
            slot: 0,
            blocks: vec![0],
        });
        Self {
            rows: rows.collect(),
            block_size: index.block_size,
            index: crate::cube::StepCell::preset(index.clone()),
        }
    }

    /// Our own callers build layouts, so a bad one is a bug: row tokens must follow one another
    /// inside `num_tokens`, and every row must hold blocks for its positions when `paged`.
    ///
    /// The CPU kernels write through raw pointers on the strength of this check.
    pub(crate) fn check_tokens(&self, num_tokens: usize) {
        let mut end = 0;
        for row in &self.rows {
            assert!(
                row.tokens.start >= end && row.tokens.start < row.tokens.end,
                "row tokens {:?} must be non-empty and follow {end}",
                row.tokens
            );
            end = row.tokens.end;
        }
        assert!(
            end <= num_tokens,
            "rows end at token {end}, the step has {num_tokens}"
        );
    }

    /// Every block a row will touch exists and is its to touch.
    pub(crate) fn check_blocks(&self, num_blocks: usize) {
        assert!(self.block_size > 0, "block size must be positive");
        for row in &self.rows {
            let needed = row.context_len().div_ceil(self.block_size);
            assert!(
                row.blocks.len() >= needed,
                "a row of {} positions needs {needed} blocks, its table has {}",
                row.context_len(),
                row.blocks.len()
            );
            for &block in &row.blocks[..needed] {
                assert!(
                    (block as usize) < num_blocks,
                    "block {block} of {num_blocks}"
                );
            }
        }
    }

    /// Slots exist and belong to one row each: rows advance their states at the same time.
    pub(crate) fn check_slots(&self, num_slots: usize) {
        let mut slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        slots.sort_unstable();
        // Slot 0 is padding: its state is nobody's.
        assert!(
            slots
                .windows(2)
                .all(|pair| pair[0] != pair[1] || pair[0] == 0),
            "two rows share a state slot: {slots:?}"
        );
        assert!(
            slots.last().is_none_or(|&slot| slot < num_slots),
            "slot {:?} of {num_slots}",
            slots.last()
        );
    }
}

/// State of one Mamba layer over all slots. Taken and given back like a [`KvPool`](crate::KvPool).
#[derive(Clone, Debug)]
pub struct StatePool {
    /// The last `K - 1` raw convolution inputs, `[num_slots, conv_dim, K - 1]`, F32, oldest first.
    pub conv: Tensor<3>,
    /// The recurrent state, `[num_slots, heads, head_dim, N]`, F32.
    pub ssm: Tensor<4>,
}

/// Shape of a Mamba-2 mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MambaShape {
    /// Number of heads.
    pub heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Groups that share B and C; head `h` reads group `h / (heads / groups)`.
    pub groups: usize,
    /// State columns `N`.
    pub state: usize,
    /// Convolution window `K`.
    pub conv_kernel: usize,
}

impl MambaShape {
    /// Channels of the mixer: `heads * head_dim`.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels under the convolution: x, B and C.
    pub fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Columns of the input projection: z, x, B, C and dt.
    pub fn projected(&self) -> usize {
        self.inner() + self.conv_dim() + self.heads
    }
}

/// Arithmetic of the weight products on devices that have a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Activations stay f32, weights are widened exactly.
    #[default]
    F32,
    /// Activations are rounded to bf16; products are exact in f32 and accumulated in f32.
    Bf16,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: Range<usize>, start: usize, slot: usize, blocks: &[u32]) -> RowLayout {
        RowLayout {
            tokens,
            start,
            slot,
            blocks: blocks.to_vec(),
        }
    }

    /// Two rows over blocks of four positions.
    fn layout() -> Layout {
        Layout::new(vec![row(0..3, 4, 1, &[5, 2]), row(3..4, 0, 2, &[1])], 4)
    }

    #[test]
    fn a_good_layout_passes() {
        layout().check_tokens(4);
        // Padding may follow.
        layout().check_tokens(9);
        layout().check_blocks(6);
        layout().check_slots(3);
        Layout::default().check_tokens(0);
    }

    #[test]
    #[should_panic(expected = "rows end at token 4, the step has 3")]
    fn rows_end_inside_the_step() {
        layout().check_tokens(3);
    }

    #[test]
    #[should_panic(expected = "must be non-empty and follow 3")]
    fn rows_do_not_overlap() {
        let mut layout = layout();
        layout.rows[1].tokens = 2..4;
        layout.check_tokens(4);
    }

    #[test]
    #[should_panic(expected = "block 5 of 5")]
    fn blocks_exist() {
        layout().check_blocks(5);
    }

    #[test]
    #[should_panic(expected = "a row of 9 positions needs 3 blocks, its table has 2")]
    fn tables_cover_their_rows() {
        let mut layout = layout();
        layout.rows[0].start = 6;
        layout.check_blocks(6);
    }

    #[test]
    #[should_panic(expected = "slot Some(2) of 2")]
    fn slots_exist() {
        layout().check_slots(2);
    }
}
