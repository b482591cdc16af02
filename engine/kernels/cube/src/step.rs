//! How the rows of a step lie in its tokens, as index buffers.

use std::sync::{Arc, OnceLock};

use cubecl::client::Client;

use crate::Buffer;
use crate::tensor_core::SCAN_REST;

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
    /// Attention looks at nothing before it.
    pub first_position: usize,
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
    /// `[R]`: how many of each row's tokens its state absorbs; the others have outputs and no more.
    /// `None`: all of them.
    pub row_absorbed: Option<Buffer>,
    /// See [`arrivals`](Self::arrivals()); shared by clones.
    arrivals: Arc<OnceLock<Buffer>>,
}

impl StepIndex {
    /// Uploads the index of a step.
    pub fn upload(client: &Client, rows: &[RowIndex], block_size: usize) -> Self {
        let table_stride = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(0);
        Self::with_stride(client, rows, table_stride, block_size)
    }

    /// The same, where attention looks at nothing before `first_position`.
    #[must_use]
    pub fn seen_from(mut self, first_position: usize) -> Self {
        self.first_position = first_position;
        self
    }

    /// The index of `num_rows` rows of `row_tokens` tokens each and of any context up to
    /// `table_stride` blocks, at addresses that [`rewrite`](Self::rewrite) keeps. All rows are padding
    /// at first.
    pub fn fixed(
        client: &Client,
        num_rows: usize,
        row_tokens: usize,
        table_stride: usize,
        block_size: usize,
    ) -> Self {
        let padding = vec![RowIndex::padding(row_tokens); num_rows];
        Self {
            max_context: table_stride * block_size,
            ..Self::with_stride(client, &padding, table_stride, block_size)
        }
    }

    /// The index of `num_rows` rows of up to `max_row_tokens` tokens, of which states absorb some, at
    /// addresses that [`rewrite_some`](Self::rewrite_some) keeps. Its tokens are as many as there can
    /// be. Only for kernels that go row by row: what it says of single tokens stays as it was.
    pub fn fixed_some(client: &Client, num_rows: usize, max_row_tokens: usize) -> Self {
        let padding = vec![RowIndex::padding(max_row_tokens); num_rows];
        // No blocks: a state has none.
        let index = Self::with_stride(client, &padding, 0, 1);
        index.absorbing(client, &padding, &vec![0; num_rows])
    }

    fn with_stride(
        client: &Client,
        rows: &[RowIndex],
        table_stride: usize,
        block_size: usize,
    ) -> Self {
        let lists = Lists::of(rows, table_stride);
        let largest = |f: fn(&RowIndex) -> usize| rows.iter().map(f).max().unwrap_or(0);
        Self {
            num_tokens: lists.token_rows.len(),
            num_rows: rows.len(),
            num_single_rows: rows.iter().take_while(|row| row.num_tokens == 1).count(),
            max_row_tokens: largest(|row| row.num_tokens),
            max_context: largest(|row| row.start + row.num_tokens),
            block_size,
            first_position: 0,
            table_stride,
            token_rows: Buffer::upload(client, &lists.token_rows),
            token_positions: Buffer::upload(client, &lists.token_positions),
            row_tokens: Buffer::upload(client, &lists.row_tokens),
            row_starts: Buffer::upload(client, &lists.row_starts),
            row_slots: Buffer::upload(client, &lists.row_slots),
            tables: Buffer::upload(client, &lists.tables),
            row_absorbed: None,
            arrivals: Arc::default(),
        }
    }

    /// The same step, of whose rows the states absorb so many tokens, the first ones.
    ///
    /// # Panics
    /// If a row has fewer, or one that absorbs less than all has more than tensor cores leave to the
    /// recurrence token by token.
    #[must_use]
    pub fn absorbing(self, client: &Client, rows: &[RowIndex], absorbed: &[usize]) -> Self {
        assert_eq!([rows.len(), absorbed.len()], [self.num_rows; 2], "rows");
        for (row, &absorbed) in rows.iter().zip(absorbed) {
            assert!(
                absorbed == row.num_tokens
                    || absorbed < row.num_tokens && row.num_tokens <= SCAN_REST.short_tokens,
                "{absorbed} of {} tokens are absorbed",
                row.num_tokens
            );
        }
        let absorbed: Vec<u32> = absorbed.iter().map(|count| *count as u32).collect();
        Self {
            row_absorbed: Some(Buffer::upload(client, &absorbed)),
            ..self
        }
    }

    /// How many tokens each row absorbs, if not all; else some list of as many numbers.
    pub(crate) fn absorbed(&self) -> &Buffer {
        self.row_absorbed.as_ref().unwrap_or(&self.row_slots)
    }

    /// `[R, groups]`: counters for cubes of a kernel that share a row's group, zero between launches.
    /// Made when the first kernel asks, so a step must have run once before it is recorded.
    ///
    /// # Panics
    /// If an earlier kernel of the step had fewer groups.
    pub fn arrivals(&self, client: &Client, groups: usize) -> &Buffer {
        let len = self.num_rows * groups;
        let buffer = (self.arrivals).get_or_init(|| Buffer::upload(client, &vec![0_u32; len]));
        assert!(buffer.len() >= len, "arrivals of {groups} groups");
        buffer
    }

    /// Puts other rows of as many tokens in place; those that are missing become padding.
    ///
    /// # Panics
    /// If there are more rows, or longer tables, than the index was made for.
    pub fn rewrite(&self, client: &Client, mut rows: Vec<RowIndex>) {
        let num_tokens = self.max_row_tokens;
        assert!(rows.len() <= self.num_rows, "rows of a recorded step");
        assert!(
            rows.iter().all(|row| row.num_tokens == num_tokens),
            "{num_tokens} tokens per row"
        );
        let padding = RowIndex {
            // Where there is something to look at.
            start: self.first_position,
            ..RowIndex::padding(num_tokens)
        };
        rows.resize(self.num_rows, padding);
        // The tokens' rows and the rows' tokens never change.
        let lists = Lists::of(&rows, self.table_stride);
        self.token_positions.write(client, &lists.token_positions);
        self.row_starts.write(client, &lists.row_starts);
        self.row_slots.write(client, &lists.row_slots);
        self.tables.write(client, &lists.tables);
    }

    /// Puts other rows in place, whose states absorb so many tokens.
    ///
    /// # Panics
    /// If they are not as many as there were, or longer than they may be.
    pub fn rewrite_some(&self, client: &Client, rows: &[RowIndex], absorbed: &[usize]) {
        assert_eq!([rows.len(), absorbed.len()], [self.num_rows; 2], "rows");
        let longest = rows.iter().map(|row| row.num_tokens).max().unwrap_or(0);
        assert!(
            longest <= self.max_row_tokens,
            "{longest} tokens in a row of at most {}",
            self.max_row_tokens
        );
        let lists = Lists::of(rows, 0);
        let absorbed: Vec<u32> = absorbed.iter().map(|count| *count as u32).collect();
        self.row_tokens.write(client, &lists.row_tokens);
        self.row_starts.write(client, &lists.row_starts);
        self.row_slots.write(client, &lists.row_slots);
        let to = self.row_absorbed.as_ref();
        to.expect("of all of whose tokens nothing has to be said")
            .write(client, &absorbed);
    }
}

impl RowIndex {
    /// A row that belongs to nobody: it reads and writes block 0 and slot 0.
    pub fn padding(num_tokens: usize) -> Self {
        Self {
            num_tokens,
            start: 0,
            slot: 0,
            blocks: Vec::new(),
        }
    }
}

/// The buffers' contents on the host.
struct Lists {
    token_rows: Vec<u32>,
    token_positions: Vec<u32>,
    row_tokens: Vec<u32>,
    row_starts: Vec<u32>,
    row_slots: Vec<u32>,
    tables: Vec<u32>,
}

impl Lists {
    fn of(rows: &[RowIndex], table_stride: usize) -> Self {
        let mut lists = Self {
            token_rows: Vec::new(),
            token_positions: Vec::new(),
            row_tokens: vec![0],
            row_starts: rows.iter().map(|row| row.start as u32).collect(),
            row_slots: rows.iter().map(|row| row.slot as u32).collect(),
            tables: vec![0; rows.len() * table_stride],
        };
        for (at, row) in rows.iter().enumerate() {
            for token in 0..row.num_tokens {
                lists.token_rows.push(at as u32);
                lists.token_positions.push((row.start + token) as u32);
            }
            lists.row_tokens.push(lists.token_rows.len() as u32);
            lists.tables[at * table_stride..][..row.blocks.len()].copy_from_slice(&row.blocks);
        }
        lists
    }
}
