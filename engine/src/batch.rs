//! The plan as flat index lists.

use kernels::{Layout, RowLayout, StateSave, TokenIds};
use scheduler::{Row, Save};

use crate::verify;

/// One step's rows, one after the other in the flat token dimension `T`.
pub(crate) struct Batch {
    /// Input ids, `[T]`.
    pub(crate) ids: TokenIds,
    pub(crate) layout: Layout,
    /// Positions in `T` whose logits are needed, ascending.
    pub(crate) positions: Vec<usize>,
}

impl Batch {
    pub(crate) fn new(rows: &[Row], block_size: usize) -> Self {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut layout = Vec::with_capacity(rows.len());
        for row in rows {
            let first = ids.len();
            ids.extend(&row.input_ids);
            let end = ids.len();
            positions.extend(scored(row).map(|at| first + at));
            layout.push(RowLayout {
                tokens: first..end,
                start: row.start as usize,
                slot: row.slot.0 as usize,
                blocks: row.block_table.iter().map(|block| block.0).collect(),
                saves: row.saves.iter().map(|save| of_row(row, *save)).collect(),
                num_pending: row.drafting.num_pending as usize,
                num_drafts: row.drafting.num_drafts as usize,
            });
        }
        Self {
            ids: ids.into(),
            layout: Layout::new(layout, block_size),
            positions,
        }
    }

    /// Most tokens of a row.
    pub(crate) fn longest_row(&self) -> usize {
        let rows = self.layout.rows.iter();
        rows.map(RowLayout::num_tokens).max().unwrap_or(0)
    }
}

fn of_row(row: &Row, save: Save) -> StateSave {
    StateSave {
        num_tokens: (save.at - row.start) as usize,
        slot: save.to.0 as usize,
    }
}

/// Which of a row's input positions need logits: those with a prompt token to score, and the last
/// known one and the drafts if the row is sampled. A position may be both, or be followed by unscored
/// ones.
///
/// ```text
/// |-- targets --|-- not needed --|-- sampled: a token, drafts --|
/// 0             targets.len()    num_known - 1                  len
/// ```
pub(crate) fn scored(row: &Row) -> impl Iterator<Item = usize> {
    let len = row.input_ids.len();
    let num_targets = row
        .prompt_logprobs
        .as_ref()
        .map_or(0, |prompt| prompt.targets.len());
    let first_sampled = match row.sample {
        Some(_) => verify::num_known(row) - 1,
        None => len,
    };
    (0..num_targets).chain(first_sampled.max(num_targets)..len)
}
