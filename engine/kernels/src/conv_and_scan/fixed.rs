//! The one wave of a recorded step with drafts, at fixed addresses.
//!
//! How many tokens are pending, and how many of its own a row absorbs, differs from replay to replay.
//! The wave has room for all that there can be; its rows lie one after the other from its start, so
//! that the walk along a row is as long as the row, and what is behind the last one belongs to nobody.

use cube_kernels::{Client, RowIndex, RowMoves, StepIndex};

use super::waves::{Wave, Waves};
use crate::{RowLayout, StepShape};

/// What a rewrite puts in place.
struct Lists {
    rows: Vec<RowIndex>,
    absorbed: Vec<usize>,
    own: Vec<(usize, usize)>,
    pending: Vec<(usize, usize)>,
    kept: Vec<(usize, usize)>,
}

impl Waves {
    /// Room for any rows of a step of this shape; `None` if its rows have no rings.
    ///
    /// # Panics
    /// If a row and what is pending before it may be too long to be taken token by token.
    pub(crate) fn fixed(client: &Client, shape: &StepShape) -> Option<Self> {
        let rings = shape.rings?;
        let (num_rows, len) = (shape.num_rows, shape.num_rows * shape.row_tokens);
        let index = StepIndex::fixed_some(client, num_rows, rings.len + shape.row_tokens);
        let room = index.num_tokens;
        let in_rings = rings.num_slots * rings.len;
        Some(Self {
            list: vec![Wave {
                own: RowMoves::fixed(client, len, [len, room]),
                pending: RowMoves::fixed(client, num_rows * rings.len, [in_rings, room]),
                outputs: RowMoves::fixed(client, len, [room, len]),
                copies: Vec::new(),
                index,
            }],
            kept: RowMoves::fixed(client, len, [len, in_rings]),
            is_whole: false,
            max_ring: rings.len,
        })
    }

    /// Puts other rows in place, each of up to `row_tokens` tokens.
    ///
    /// # Panics
    /// If these waves have no room for them.
    pub(crate) fn rewrite(&self, client: &Client, row_tokens: usize, rows: &[RowLayout]) {
        let wave = &self.list[0];
        let room = wave.index.num_tokens;
        let lists = Lists::of(rows, wave.index.num_rows, row_tokens, self.max_ring);
        wave.index
            .rewrite_some(client, &lists.rows, &lists.absorbed);
        let outputs: Vec<(usize, usize)> = lists.own.iter().map(|(t, at)| (*at, *t)).collect();
        // Those three are full, or end in slot 0 and behind the last row, where nobody reads.
        wave.own.rewrite(client, &lists.own, (0, 0));
        wave.outputs.rewrite(client, &outputs, (0, 0));
        wave.pending.rewrite(client, &lists.pending, (0, room - 1));
        self.kept.rewrite(client, &lists.kept, (0, 0));
    }
}

impl Lists {
    fn of(rows: &[RowLayout], num_rows: usize, row_tokens: usize, max_ring: usize) -> Self {
        let mut lists = Self {
            rows: Vec::with_capacity(num_rows),
            absorbed: Vec::with_capacity(num_rows),
            own: Vec::new(),
            pending: Vec::new(),
            kept: Vec::new(),
        };
        let padding = RowLayout {
            num_drafts: row_tokens,
            ..RowLayout::default()
        };
        let mut place = 0;
        for at in 0..num_rows {
            let row = rows.get(at).unwrap_or(&padding);
            let first = at * row_tokens;
            let ring = row.slot * max_ring;
            for nth in 0..row.num_pending {
                lists.pending.push((ring + nth, place + nth));
            }
            let own = place + row.num_pending;
            lists
                .own
                .extend((first..first + row_tokens).zip(own..own + row_tokens));
            let absorbed = if row.is_absorbed() {
                row.num_tokens()
            } else {
                lists
                    .kept
                    .extend((0..row.num_tokens()).map(|nth| (first + nth, ring + nth)));
                0
            };
            lists.absorbed.push(row.num_pending + absorbed);
            lists.rows.push(RowIndex {
                num_tokens: row.num_pending + row_tokens,
                start: row.start - row.num_pending,
                slot: row.slot,
                blocks: Vec::new(),
            });
            place = own + row_tokens;
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_what_is_pending_before_them() {
        let row = |slot, len: usize, num_pending, num_drafts| RowLayout {
            tokens: 0..len,
            start: 10,
            slot,
            num_pending,
            num_drafts,
            ..RowLayout::default()
        };
        // Two drafts behind one pending token; none behind two; and a row of nobody.
        let rows = [row(3, 3, 1, 2), row(5, 1, 2, 0)];
        let lists = Lists::of(&rows, 3, 3, 4);
        let lens: Vec<usize> = lists.rows.iter().map(|row| row.num_tokens).collect();
        assert_eq!(lens, [4, 5, 3]);
        let starts: Vec<usize> = lists.rows.iter().map(|row| row.start).collect();
        assert_eq!(starts, [9, 8, 0]);
        assert_eq!(lists.absorbed, [1, 3, 0]);
        assert_eq!(lists.pending, [(12, 0), (20, 4), (21, 5)]);
        assert_eq!(lists.own[..3], [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(lists.own[3..6], [(3, 6), (4, 7), (5, 8)]);
        assert_eq!(lists.own[6..], [(6, 9), (7, 10), (8, 11)]);
        assert_eq!(lists.kept, [(0, 12), (1, 13), (2, 14)]);
    }
}
