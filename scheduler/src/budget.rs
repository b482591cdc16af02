//! How many tokens a sequence gets in a step.

/// What one sequence could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Tokens computed.
    pub(crate) start: u32,
    /// Tokens to be computed.
    pub(crate) end: u32,
    /// Where a chunk should end to leave the state for a snapshot, if one can be kept.
    pub(crate) boundary: Option<u32>,
    /// Chunks that do not reach the end must end on multiples of it.
    pub(crate) grid: u32,
}

impl Span {
    /// Tokens to run.
    pub(crate) fn len(self) -> u32 {
        self.end - self.start
    }
}

/// Length of the next chunk, within `budget`:
///
/// ```text
/// |--- computed ---|------ chunk ------|-- next chunk --|
/// 0              start             boundary            end
/// ```
///
/// Nothing, if the budget does not reach the next line of the grid.
pub(crate) fn chunk_len(span: Span, budget: u32) -> u32 {
    let end = match span.boundary {
        Some(boundary) if span.start < boundary => boundary.min(span.end),
        _ => span.end,
    };
    let affordable = span.start.saturating_add(budget);
    if affordable >= end {
        return end - span.start;
    }
    let on_grid = affordable - affordable % span.grid;
    on_grid.saturating_sub(span.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start: u32, boundary: Option<u32>, end: u32, budget: u32, expect: u32) {
        check_on(1, start, boundary, end, budget, expect);
    }

    fn check_on(grid: u32, start: u32, boundary: Option<u32>, end: u32, budget: u32, expect: u32) {
        let got = chunk_len(
            Span {
                start,
                end,
                boundary,
                grid,
            },
            budget,
        );
        assert_eq!(
            got, expect,
            "{start}..{end} with boundary {boundary:?} and budget {budget}"
        );
    }

    #[test]
    fn a_span_has_a_length() {
        let span = Span {
            start: 3,
            end: 9,
            boundary: None,
            grid: 1,
        };
        assert_eq!(span.len(), 6);
    }

    #[test]
    fn chunks() {
        check(0, None, 10, 100, 10);
        check(0, None, 10, 4, 4);
        check(8, None, 10, 4, 2);
        check(3, None, 3, 4, 0);
    }

    #[test]
    fn chunks_end_on_the_grid() {
        check_on(8, 0, None, 20, 100, 20);
        check_on(8, 0, None, 20, 19, 16);
        check_on(8, 0, None, 20, 16, 16);
        check_on(8, 0, None, 20, 7, 0);
        check_on(8, 8, None, 20, 11, 8);
        check_on(8, 8, None, 20, 12, 12);
        check_on(8, 16, None, 20, 3, 0);
        // The snapshot's place is on the grid, too.
        check_on(8, 0, Some(16), 20, 100, 16);
        check_on(8, 0, Some(16), 20, 15, 8);
        check_on(8, 16, Some(16), 20, 4, 4);
        check_on(8, 3, None, 3, 4, 0);
    }

    #[test]
    fn chunks_end_on_the_boundary() {
        check(0, Some(9), 10, 100, 9);
        check(0, Some(9), 10, 9, 9);
        check(0, Some(9), 10, 5, 5);
        check(8, Some(9), 10, 5, 1);
        check(9, Some(9), 10, 5, 1);
        check(9, Some(9), 14, 5, 5);
        check(0, Some(9), 9, 100, 9);
        check(0, Some(9), 8, 100, 8);
        check(0, Some(0), 1, 100, 1);
    }
}
