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
pub(crate) fn chunk_len(span: Span, budget: u32) -> u32 {
    let end = match span.boundary {
        Some(boundary) if span.start < boundary => boundary.min(span.end),
        _ => span.end,
    };
    (end - span.start).min(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start: u32, boundary: Option<u32>, end: u32, budget: u32, expect: u32) {
        let got = chunk_len(
            Span {
                start,
                end,
                boundary,
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
