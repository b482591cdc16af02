//! Attention over the paged cache: single tokens and chunks alike, so that both make the same bits.

use std::collections::BTreeMap;

use super::plan::{Launch, Plan, Role};
use super::text::{self, ELEMENT_THREADS};
use super::{run, supports};
use crate::attention::{ENOUGH_CUBES, num_splits};
use crate::{Buffer, Client, Format, KvFormat, StepIndex};

/// A model's heads, and how they are cached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Of both pools.
    pub format: KvFormat,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of each.
    pub head_dim: usize,
    /// Positions of a block of the cache.
    pub block_size: usize,
}

impl AttentionShape {
    /// Whether it can be attended to here: heads of whole loads, groups of which whole ones fill a
    /// warp's 16 rows, in BF16 or FP8.
    pub fn fits(&self) -> bool {
        self.format.codes() != Format::F32
            && matches!(self.head_dim, 64 | 128)
            && self.heads.is_multiple_of(self.kv_heads)
            && ROWS.is_multiple_of(self.group())
    }

    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Rows of queries of a warp.
const ROWS: usize = 16;
/// Warps of a block that walks: as many as fill a multiprocessor's registers, so that keys and values
/// come from L2 once for all of them.
const WALK_WARPS: usize = 8;
/// Of one that attends within a split, for rows of a few tokens. Single tokens have a block of one
/// warp each.
const SPLIT_WARPS: usize = 4;
/// Blocks from which on chunks walk.
const ENOUGH_BLOCKS: usize = ENOUGH_CUBES / 2;

/// What the launches of a step depend on.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    /// As in [`StepIndex`].
    pub num_tokens: usize,
    /// As in [`StepIndex`].
    pub num_rows: usize,
    /// As in [`StepIndex`].
    pub num_single_rows: usize,
    /// As in [`StepIndex`].
    pub max_row_tokens: usize,
    /// As in [`StepIndex`].
    pub max_context: usize,
    /// As in [`StepIndex`].
    pub table_stride: usize,
}

impl From<&StepIndex> for StepShape {
    fn from(step: &StepIndex) -> Self {
        Self {
            num_tokens: step.num_tokens,
            num_rows: step.num_rows,
            num_single_rows: step.num_single_rows,
            max_row_tokens: step.max_row_tokens,
            max_context: step.max_context,
            table_stride: step.table_stride,
        }
    }
}

/// Whether attention runs here: device and shape permit it.
pub(crate) fn attends(client: &Client, shape: &AttentionShape) -> bool {
    super::is_allowed() && supports(client) && shape.fits()
}

/// [`paged_attention`](crate::paged_attention) with queries, keys, values and the weights of values
/// rounded to bf16; with at most so many bytes of partial results, on which no bit depends.
pub(crate) fn tensor_attention(
    client: &Client,
    q: &Buffer,
    [keys, values]: [&Buffer; 2],
    shape: &AttentionShape,
    step: &StepIndex,
    scratch: usize,
    out: &Buffer,
) {
    let mut buffers = BTreeMap::from([
        (Role::X, q.clone()),
        (Role::Keys, keys.clone()),
        (Role::Values, values.clone()),
        (Role::TokenRows, step.token_rows.clone()),
        (Role::TokenPositions, step.token_positions.clone()),
        (Role::RowTokens, step.row_tokens.clone()),
        (Role::Tables, step.tables.clone()),
        (Role::Out, out.clone()),
    ]);
    run(client, &plan(shape, step.into(), scratch), &mut buffers);
}

/// The launches of a step, with at most so many bytes of partial results unless one token has more.
///
/// # Panics
/// If the shape does not [`fit`](AttentionShape::fits).
pub fn plan(shape: &AttentionShape, step: StepShape, scratch: usize) -> Plan {
    assert!(shape.fits(), "no tensor core attention for {shape:?}");
    let num_splits = num_splits(step.max_context);
    let per_token = shape.heads * num_splits * (shape.head_dim + 2) * size_of::<f32>();
    let at_once = scratch / per_token.max(1);
    let mut attention = Attention {
        shape,
        step,
        num_splits,
        plan: Plan {
            launches: Vec::new(),
            scratch: Vec::new(),
        },
        max_split_tokens: 0,
    };
    let singles = step.num_single_rows;
    if num_splits == 1 || at_once == 0 {
        attention.walk(0, singles);
    } else {
        for first in (0..singles).step_by(at_once) {
            attention.split(first, at_once.min(singles - first));
        }
    }
    let rest = step.num_tokens - singles;
    let num_blocks = rest.div_ceil(WALK_WARPS * ROWS / shape.group()) * shape.kv_heads;
    if num_splits == 1 || num_blocks >= ENOUGH_BLOCKS || at_once < rest {
        attention.walk(singles, rest);
    } else {
        attention.split(singles, rest);
    }
    if attention.max_split_tokens > 0 {
        let bytes = attention.max_split_tokens * per_token;
        attention.plan.scratch.push((Role::Partial, bytes));
    }
    attention.plan
}

struct Attention<'a> {
    shape: &'a AttentionShape,
    step: StepShape,
    num_splits: usize,
    plan: Plan,
    max_split_tokens: usize,
}

impl Attention<'_> {
    /// Whole contexts, for the `num_tokens` tokens from `first` on.
    fn walk(&mut self, first: usize, num_tokens: usize) {
        self.attend(first, num_tokens, false);
    }

    /// One split per block, then all of a token put together.
    fn split(&mut self, first: usize, num_tokens: usize) {
        if num_tokens == 0 {
            return;
        }
        self.attend(first, num_tokens, true);
        self.max_split_tokens = self.max_split_tokens.max(num_tokens);
        let AttentionShape {
            heads, head_dim, ..
        } = *self.shape;
        let num_vectors = num_tokens * heads * head_dim / 4;
        let [_, v_scale] = self.shape.format.scales();
        self.plan.launches.push(Launch {
            text: text::attention_combine(head_dim),
            grid: [num_vectors.div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1],
            arguments: vec![
                Role::Partial,
                Role::Partial,
                Role::TokenPositions,
                Role::Out,
            ],
            sizes: vec![
                first as u32,
                num_vectors as u32,
                self.num_splits as u32,
                self.num_parts(num_tokens),
                heads as u32,
                v_scale.to_bits(),
            ],
        });
    }

    /// Partial results of so many tokens.
    fn num_parts(&self, num_tokens: usize) -> u32 {
        (num_tokens * self.shape.heads * self.num_splits) as u32
    }

    fn attend(&mut self, first: usize, num_tokens: usize, is_split: bool) {
        if num_tokens == 0 {
            return;
        }
        let step = self.step;
        let is_single = first < step.num_single_rows;
        let (warps, tiles_per_row, num_tiles) = if is_single {
            (1, 0, num_tokens)
        } else {
            let warps = if is_split { SPLIT_WARPS } else { WALK_WARPS };
            let tokens = warps * ROWS / self.shape.group();
            let tiles = step.max_row_tokens.div_ceil(tokens);
            (warps, tiles, (step.num_rows - step.num_single_rows) * tiles)
        };
        let [k_scale, v_scale] = self.shape.format.scales();
        let q_scale = (self.shape.head_dim as f32).powf(-0.5) * std::f32::consts::LOG2_E * k_scale;
        let (num_splits, to) = if is_split {
            (self.num_splits, Role::Partial)
        } else {
            (1, Role::Out)
        };
        self.plan.launches.push(Launch {
            text: text::attention(self.shape, warps, is_split),
            grid: [
                num_tiles as u32,
                self.shape.kv_heads as u32,
                num_splits as u32,
            ],
            arguments: vec![
                Role::X,
                Role::Keys,
                Role::Values,
                Role::TokenRows,
                Role::TokenPositions,
                Role::RowTokens,
                Role::Tables,
                to,
            ],
            sizes: vec![
                first as u32,
                step.num_single_rows as u32,
                tiles_per_row as u32,
                step.table_stride as u32,
                self.num_splits as u32,
                self.num_parts(num_tokens),
                q_scale.to_bits(),
                v_scale.to_bits(),
            ],
        });
    }
}
