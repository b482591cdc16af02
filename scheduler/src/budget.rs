//! How many tokens a sequence gets in a step.

/// What one sequence could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Tokens computed.
    pub(crate) start: u32,
    /// Tokens to be computed.
    pub(crate) end: u32,
    /// Chunks that do not reach the end must end on multiples of it.
    pub(crate) grid: u32,
}

impl Span {
    /// Tokens to run.
    pub(crate) fn len(self) -> u32 {
        self.end - self.start
    }

    /// Length of the next chunk, within `budget`. Nothing, if that does not reach the next line of the
    /// grid.
    pub(crate) fn chunk_len(self, budget: u32) -> u32 {
        let affordable = self.start.saturating_add(budget);
        if affordable >= self.end {
            return self.len();
        }
        let on_grid = affordable - affordable % self.grid;
        on_grid.saturating_sub(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grid: u32, (start, end): (u32, u32), budget: u32, expect: u32) {
        let span = Span { start, end, grid };
        let got = span.chunk_len(budget);
        assert_eq!(got, expect, "{start}..{end} with budget {budget}");
    }

    #[test]
    fn chunks() {
        check(1, (0, 10), 100, 10);
        check(1, (0, 10), 4, 4);
        check(1, (8, 10), 4, 2);
        check(1, (3, 3), 4, 0);
    }

    #[test]
    fn chunks_end_on_the_grid() {
        check(8, (0, 20), 100, 20);
        check(8, (0, 20), 19, 16);
        check(8, (0, 20), 16, 16);
        check(8, (0, 20), 7, 0);
        check(8, (8, 20), 11, 8);
        check(8, (8, 20), 12, 12);
        check(8, (16, 20), 3, 0);
        check(8, (3, 3), 4, 0);
    }
}
