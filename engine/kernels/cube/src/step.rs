//! How the rows of a step lie in its tokens, as index buffers.

use cubecl::client::Client;

use crate::Buffer;

/// One sequence's part of a step, on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowIndex {
    /// Number of its tokens in the step, at least one.
    pub num_tokens: usize,
    /// Absolute position of the first.
    pub start: usize,
    /// Its state slot.
    pub slot: usize,
    /// Block table covering `start + num_tokens` positions.
    pub blocks: Vec<u32>,
}

/// The rows of a step on the device, all u32. Rows follow one another in the flat token dimension,
/// without gaps.
#[derive(Clone, Debug)]
pub struct StepIndex {
    /// Tokens `T`.
    pub num_tokens: usize,
    /// Rows `R`.
    pub num_rows: usize,
    /// Leading rows of one token each.
    pub num_single_rows: usize,
    /// Most tokens of a row.
    pub max_row_tokens: usize,
    /// Most positions of a row, this step's included.
    pub max_context: usize,
    /// Positions per KV block.
    pub block_size: usize,
    /// Entries of a row in `tables`.
    pub table_stride: usize,
    /// `[T]`: the row of each token.
    pub token_rows: Buffer,
    /// `[T]`: the absolute position of each token.
    pub token_positions: Buffer,
    /// `[R + 1]`: the first token of each row, then `T`.
    pub row_tokens: Buffer,
    /// `[R]`: the absolute position of each row's first token.
    pub row_starts: Buffer,
    /// `[R]`: the state slot of each row.
    pub row_slots: Buffer,
    /// `[R, table_stride]`: block tables, padded with block 0.
    pub tables: Buffer,
}

impl StepIndex {
    /// Uploads the index of a step.
    pub fn upload(client: &Client, rows: &[RowIndex], block_size: usize) -> Self {
        let table_stride = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(0);
        let mut token_rows = Vec::new();
        let mut token_positions = Vec::new();
        let mut row_tokens = vec![0_u32];
        let mut tables = vec![0_u32; rows.len() * table_stride];
        for (at, row) in rows.iter().enumerate() {
            for token in 0..row.num_tokens {
                token_rows.push(at as u32);
                token_positions.push((row.start + token) as u32);
            }
            row_tokens.push(token_rows.len() as u32);
            tables[at * table_stride..][..row.blocks.len()].copy_from_slice(&row.blocks);
        }
        let per_row = |f: fn(&RowIndex) -> usize| -> Vec<u32> {
            rows.iter().map(|row| f(row) as u32).collect()
        };
        let largest = |f: fn(&RowIndex) -> usize| rows.iter().map(f).max().unwrap_or(0);
        Self {
            num_tokens: token_rows.len(),
            num_rows: rows.len(),
            num_single_rows: rows.iter().take_while(|row| row.num_tokens == 1).count(),
            max_row_tokens: largest(|row| row.num_tokens),
            max_context: largest(|row| row.start + row.num_tokens),
            block_size,
            table_stride,
            token_rows: Buffer::upload(client, &token_rows),
            token_positions: Buffer::upload(client, &token_positions),
            row_tokens: Buffer::upload(client, &row_tokens),
            row_starts: Buffer::upload(client, &per_row(|row| row.start)),
            row_slots: Buffer::upload(client, &per_row(|row| row.slot)),
            tables: Buffer::upload(client, &tables),
        }
    }
}
