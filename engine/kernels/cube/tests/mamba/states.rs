//! Steps of several rows, and the pools that hold their states.

use cube_kernels::{Client, MambaShape, RowIndex, StepIndex};

use crate::common::Numbers;

/// Sixteen heads in two groups would hide a wrong group of heads; three channels per head, a wrong
/// stride.
pub(crate) const SMALL: MambaShape = MambaShape {
    heads: 6,
    head_dim: 12,
    groups: 2,
    state: 32,
    conv_kernel: 4,
};

/// Rows of these lengths, at positions and in slots that look random, among more slots than rows.
pub(crate) fn rows(lengths: &[usize], numbers: &mut Numbers) -> (Vec<RowIndex>, usize) {
    let num_slots = 2 * lengths.len() + 1;
    let slots = numbers.permutation(num_slots);
    let rows = lengths
        .iter()
        .zip(slots)
        .map(|(&num_tokens, slot)| RowIndex {
            num_tokens,
            start: (numbers.next() % 1000) as usize,
            slot,
            blocks: Vec::new(),
        })
        .collect();
    (rows, num_slots)
}

/// States of `len` numbers in the rows' slots, NaN in every other.
pub(crate) fn pool(
    rows: &[RowIndex],
    num_slots: usize,
    len: usize,
    numbers: &mut Numbers,
) -> Vec<f32> {
    let mut pool = vec![f32::NAN; num_slots * len];
    for row in rows {
        pool[row.slot * len..][..len].copy_from_slice(&numbers.vector(len, 1.0));
    }
    pool
}

pub(crate) fn index(client: &Client, rows: &[RowIndex]) -> StepIndex {
    StepIndex::upload(client, rows, 16)
}

/// The tokens of each row in the flat dimension.
pub(crate) fn spans(rows: &[RowIndex]) -> Vec<std::ops::Range<usize>> {
    let mut end = 0;
    rows.iter()
        .map(|row| {
            let start = end;
            end += row.num_tokens;
            start..end
        })
        .collect()
}
