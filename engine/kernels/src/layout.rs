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
    /// Attention does not look at positions before this one; a query at one of them has no result.
    pub first_position: usize,
    /// The same as index buffers of the device that asked first.
    #[cfg(feature = "cube")]
    pub(crate) index: crate::cube::StepCell,
    /// How a GPU takes the rows' states through the step, if it is not plain.
    #[cfg(feature = "cube")]
    pub(crate) waves: crate::conv_and_scan::waves::WavesCell,
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
///
/// A row absorbs its tokens into the state in its slot. One with drafts does not: it computes its
/// outputs on a state of its own and leaves its tokens' inputs in the slot's ring, where a later row
/// finds those that turned out right: its pending tokens, which it absorbs before its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowLayout {
    /// This row's part of `T`, never empty.
    pub tokens: Range<usize>,
    /// Absolute position of its first token.
    pub start: usize,
    /// Live state slot; no two rows of a step share one.
    pub slot: usize,
    /// Block table covering `start + len` positions.
    pub blocks: Vec<u32>,
    /// Copies of the state to be made on the way, ascending. None in a row with drafts.
    pub saves: Vec<StateSave>,
    /// How many entries of the slot's ring, from the first on, come before this row's tokens and are
    /// not absorbed yet.
    pub num_pending: usize,
    /// How many of the last tokens are guesses. With any, the row absorbs none of its tokens.
    pub num_drafts: usize,
}

/// A copy of a row's state on the way through the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSave {
    /// Tokens of the row that it has absorbed, at least one.
    pub num_tokens: usize,
    /// The slot that is overwritten; no row and no other copy of the step has it.
    pub slot: usize,
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

    /// Whether the slot's state moves on by this row's tokens.
    pub fn is_absorbed(&self) -> bool {
        self.num_drafts == 0
    }

    /// The slots that hold the row's state after its pending and `num_tokens` of its own tokens.
    pub(crate) fn slots_after(&self, num_tokens: usize) -> impl Iterator<Item = usize> {
        let is_own = num_tokens
            == if self.is_absorbed() {
                self.num_tokens()
            } else {
                0
            };
        let saved = self
            .saves
            .iter()
            .filter(move |save| save.num_tokens == num_tokens);
        is_own
            .then_some(self.slot)
            .into_iter()
            .chain(saved.map(|save| save.slot))
    }
}

impl Layout {
    /// Lays rows out over blocks of `block_size` positions.
    pub fn new(rows: Vec<RowLayout>, block_size: usize) -> Self {
        Self {
            rows,
            block_size,
            first_position: 0,
            #[cfg(feature = "cube")]
            index: crate::cube::StepCell::default(),
            #[cfg(feature = "cube")]
            waves: crate::conv_and_scan::waves::WavesCell::default(),
        }
    }

    /// The same, where attention looks at nothing before `first_position`.
    #[must_use]
    pub fn seen_from(self, first_position: usize) -> Self {
        Self {
            first_position,
            ..self
        }
    }

    /// The layout of rows of as many tokens each that were put on the device before, and may change
    /// there. On the host they are padding, with drafts if their states go in waves.
    #[cfg(feature = "cube")]
    pub(crate) fn fixed(
        index: &cube_kernels::StepIndex,
        waves: Option<&std::sync::Arc<crate::conv_and_scan::waves::Waves>>,
    ) -> Self {
        let len = index.max_row_tokens;
        let start = index.first_position;
        let rows = (0..index.num_rows).map(|at| RowLayout {
            tokens: at * len..(at + 1) * len,
            start,
            blocks: vec![0; (start + len).div_ceil(index.block_size)],
            num_drafts: if waves.is_some() { len - 1 } else { 0 },
            ..RowLayout::default()
        });
        Self {
            rows: rows.collect(),
            block_size: index.block_size,
            first_position: index.first_position,
            index: crate::cube::StepCell::preset(index.clone()),
            waves: waves.map_or_else(Default::default, |waves| {
                crate::conv_and_scan::waves::WavesCell::preset(waves.clone())
            }),
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

    /// Slots exist and belong to one row or one copy each: rows advance their states at the same
    /// time. Rings of `max_ring` tokens hold what rows find there and put there.
    pub(crate) fn check_states(&self, num_slots: usize, max_ring: usize) {
        let saves = || self.rows.iter().flat_map(|row| &row.saves);
        let mut slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        slots.extend(saves().map(|save| save.slot));
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
        assert!(saves().all(|save| save.slot != 0), "a copy nobody can read");
        for row in &self.rows {
            let len = row.num_tokens();
            let mut counts = row.saves.iter().map(|save| save.num_tokens);
            assert!(
                row.saves.is_empty()
                    || row.is_absorbed()
                        && row.saves[0].num_tokens > 0
                        && counts.clone().is_sorted()
                        && counts.all(|count| count <= len),
                "copies {:?} of a row of {len} tokens, {} of them drafts",
                row.saves,
                row.num_drafts
            );
            let kept = if row.is_absorbed() { 0 } else { len };
            assert!(
                row.num_pending <= row.start,
                "pending tokens come before {}",
                row.start
            );
            assert!(
                row.num_pending.max(kept) <= max_ring && row.num_drafts < len,
                "{} tokens pending and {len}, of which {} are drafts, with rings of {max_ring}",
                row.num_pending,
                row.num_drafts
            );
        }
    }

    /// Whether every row absorbs its tokens and nothing else, with no copies on the way.
    pub fn is_plain(&self) -> bool {
        let is_plain =
            |row: &RowLayout| row.num_drafts == 0 && row.num_pending == 0 && row.saves.is_empty();
        self.rows.iter().all(is_plain)
    }

    /// Pending tokens of all rows.
    pub fn num_pending(&self) -> usize {
        self.rows.iter().map(|row| row.num_pending).sum()
    }

    /// Where each row's pending tokens lie among those of all rows.
    pub(crate) fn pending(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let of_row = |row: &RowLayout| {
            let start = end;
            end += row.num_pending;
            start..end
        };
        self.rows.iter().map(of_row).collect()
    }
}

/// State of one Mamba layer over all slots. Taken and given back like a [`KvPool`](crate::KvPool).
#[derive(Clone, Debug)]
pub struct StatePool {
    /// The last `K - 1` raw convolution inputs, `[num_slots, conv_dim, K - 1]`, F32, oldest first.
    pub conv: Tensor<3>,
    /// The recurrent state, `[num_slots, heads, head_dim, N]`, F32 or F16.
    pub ssm: Tensor<4>,
    /// Inputs of tokens that the states have not absorbed: raw xBC, then raw dt, F32 `[num_slots, R,
    /// conv_dim + heads]`. `None` where no row has drafts.
    pub ring: Option<Tensor<3>>,
}

impl StatePool {
    /// Tokens that a slot's ring holds.
    pub fn max_ring(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.dims()[1])
    }
}

/// What a row finds in its slot's ring, `[pending, conv_dim + heads]`; `None` if nothing is pending.
pub(crate) fn pending_inputs(ring: Option<&Tensor<3>>, row: &RowLayout) -> Option<Tensor<2>> {
    if row.num_pending == 0 {
        return None;
    }
    let ring = ring.expect("rows with pending tokens have rings").clone();
    let inputs = ring.narrow(0, row.slot, 1).narrow(1, 0, row.num_pending);
    Some(inputs.squeeze_dim(0))
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

    /// Columns of a ring: x, B, C and dt, without z.
    pub fn ring(&self) -> usize {
        self.conv_dim() + self.heads
    }
}

/// Arithmetic of the weight products, and of attention over bf16, on devices that have a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Activations stay f32, weights are widened exactly.
    #[default]
    F32,
    /// Activations are rounded to bf16; products are exact in f32 and accumulated in f32. On a GPU
    /// with tensor cores [`ssm_scan`](crate::ssm_scan()) rounds too, of long rows.
    Bf16,
    /// The same, and sums over many rows may have another order than over few, where that is faster.
    Bf16AnyOrder,
}

impl Arithmetic {
    /// Whether activations are rounded to bf16.
    pub fn is_rounded(self) -> bool {
        self != Self::F32
    }
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
            ..RowLayout::default()
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
        layout().check_states(3, 0);
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
        layout().check_states(2, 0);
    }

    /// A save in the first row, drafts in the second, all slots below 4.
    fn with_saves_and_drafts() -> Layout {
        let mut layout = layout();
        layout.rows[0].saves = vec![StateSave {
            num_tokens: 2,
            slot: 3,
        }];
        layout.rows[1].tokens = 3..6;
        layout.rows[1].num_drafts = 2;
        layout.rows[1].num_pending = 1;
        layout.rows[1].start = 1;
        layout
    }

    #[test]
    fn saves_and_drafts_pass() {
        let layout = with_saves_and_drafts();
        layout.check_states(4, 3);
        assert_eq!(layout.pending(), [0..0, 0..1]);
        let slots = |row: usize, num_tokens| {
            let slots = layout.rows[row].slots_after(num_tokens);
            slots.collect::<Vec<usize>>()
        };
        assert_eq!(
            [slots(0, 1), slots(0, 2), slots(0, 3)],
            [vec![], vec![3], vec![1]]
        );
        assert_eq!([slots(1, 0), slots(1, 3)], [vec![2], vec![]]);
    }

    #[test]
    #[should_panic(expected = "two rows share a state slot: [1, 2, 2]")]
    fn saves_do_not_overwrite_rows() {
        let mut layout = with_saves_and_drafts();
        layout.rows[0].saves[0].slot = 2;
        layout.check_states(4, 3);
    }

    #[test]
    #[should_panic(expected = "of a row of 3 tokens, 0 of them drafts")]
    fn saves_lie_in_their_rows() {
        let mut layout = with_saves_and_drafts();
        layout.rows[0].saves[0].num_tokens = 4;
        layout.check_states(4, 3);
    }

    #[test]
    #[should_panic(expected = "1 tokens pending and 3, of which 2 are drafts, with rings of 2")]
    fn rings_hold_their_rows() {
        with_saves_and_drafts().check_states(4, 2);
    }
}
