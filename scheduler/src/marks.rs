//! Where the state of a prompt is worth a snapshot.
//!
//! ```text
//! |-- hit --|---- message ----|---- message ----|---- text ----|-- last token --|
//!                         boundary          boundary           end
//! ```
//!
//! - where messages begin, and where its client says so: another question repeats all before, and the
//!   next turn repeats what is before the answer, the last message to begin;
//! - at the prompt's end less one (the last token must run to give logits): the same prompt again;
//! - where a path that others have taken is left: who has parted there once may do so again;
//! - now and then in long stretches without any of these.

use kvcache::SnapshotKind;

/// Tokens between snapshots that nothing else asks for.
const INTERVAL: u32 = 8192;

/// A place worth a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Tokens absorbed.
    pub(crate) at: u32,
    pub(crate) kind: SnapshotKind,
    /// Whether somebody waits for it.
    pub(crate) is_awaited: bool,
}

/// What was there when a sequence started.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_field_names)] // All are counts, and counts are called so.
pub(crate) struct Known {
    /// Tokens that need no computing.
    pub(crate) num_hit: u32,
    /// As many of them as are in a snapshot that stays.
    pub(crate) num_kept: u32,
    /// Tokens of the path that others have taken, in whole blocks.
    pub(crate) num_common: u32,
}

/// What decides about marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) known: Known,
    pub(crate) num_prompt: u32,
    /// Tokens to be computed, as far as is known.
    pub(crate) num_wanted: u32,
    /// Beginnings of messages and what else a client wants kept, ascending. The answer begins at the last.
    pub(crate) boundaries: &'a [u32],
    /// Whether other choices of the same prompt wait for its end.
    pub(crate) has_siblings: bool,
    pub(crate) block_size: u32,
    /// Snapshots are kept at its multiples only, and only inside prompts.
    pub(crate) grid: Option<u32>,
}

impl Stretch<'_> {
    /// The prompt without its last token, or without what lies beyond the last line of the grid.
    fn prompt_end(&self) -> u32 {
        on_grid(self.num_prompt - 1, self.grid)
    }

    /// Whether a snapshot there is worth it. For siblings always.
    fn saves_prompt(&self) -> bool {
        self.prompt_end() >= self.min_len() || self.has_siblings
    }

    /// All marks beyond the hit, ascending.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let mut marks: Vec<Mark> = Vec::new();
        let end = self.prompt_end();
        let Known {
            num_hit,
            num_kept,
            num_common,
        } = self.known;
        let mut last = num_kept;
        for &boundary in self.boundaries {
            let at = self.on_grid(boundary);
            if at >= self.min_len() && at <= end && !self.serves(last, at) {
                last = at;
                if at > num_hit {
                    marks.push(mark(at, SnapshotKind::Boundary));
                }
            }
        }
        if let (Some(mark), Some(&opening)) = (marks.last_mut(), self.boundaries.last())
            && self.serves(mark.at, self.on_grid(opening))
        {
            mark.kind = SnapshotKind::Opening;
        }
        let branch = self.on_grid(num_common);
        let below = self.nearest_below(&marks, branch);
        if branch >= below + self.min_len() && branch < end {
            insert(&mut marks, mark(branch, SnapshotKind::Branch));
        }
        let last = marks.last().map_or(num_kept, |mark| mark.at);
        let is_served = self.serves(last, end) && !self.has_siblings;
        if self.saves_prompt() && end > last && !is_served {
            marks.push(mark(end, SnapshotKind::PromptEnd));
        }
        self.fill(&mut marks);
        marks.retain(|mark| (num_hit + 1..=self.num_wanted).contains(&mark.at));
        marks
    }

    /// Marks in stretches that have none.
    fn fill(&self, marks: &mut Vec<Mark>) {
        let last = match self.grid {
            Some(_) => self.prompt_end(),
            None => self.num_wanted - 1,
        };
        let mut filled = Vec::new();
        for line in (self.known.num_hit / INTERVAL + 1)..=(last / INTERVAL) {
            let at = self.on_grid(line * INTERVAL);
            let below = self.nearest_below(marks, at);
            let above = marks.iter().find(|mark| mark.at >= at);
            let is_far =
                at >= below + INTERVAL / 2 && above.is_none_or(|mark| mark.at >= at + INTERVAL / 2);
            if is_far {
                filled.push(mark(at, SnapshotKind::Interval));
            }
        }
        for mark in filled {
            insert(marks, mark);
        }
    }

    /// Whether a snapshot is as good as one at `at`, behind it: not before the beginning of the same block.
    fn serves(&self, snapshot: u32, at: u32) -> bool {
        at - at % self.block_size <= snapshot
    }

    fn nearest_below(&self, marks: &[Mark], at: u32) -> u32 {
        let below = marks.iter().rev().find(|mark| mark.at <= at);
        let num_hit = self.known.num_hit;
        below.map_or(num_hit, |mark| mark.at.max(num_hit))
    }

    fn min_len(&self) -> u32 {
        min_len(self.block_size)
    }

    fn on_grid(&self, at: u32) -> u32 {
        on_grid(at, self.grid)
    }
}

/// The last line of the grid up to `at`.
pub(crate) fn on_grid(at: u32, grid: Option<u32>) -> u32 {
    at - at % grid.unwrap_or(1)
}

/// Shorter prefixes are not saved: a step of a few tokens costs about as much as a step of one, because
/// weights dominate. Few blocks if these are small, and no more than 64 tokens if they are not.
fn min_len(block_size: u32) -> u32 {
    (4 * block_size).min(64).max(block_size)
}

/// How much longer than one's own hit another's snapshot must be to be worth waiting for.
pub(crate) fn min_gain(block_size: u32, are_siblings: bool) -> u32 {
    if are_siblings { 1 } else { min_len(block_size) }
}

fn mark(at: u32, kind: SnapshotKind) -> Mark {
    Mark {
        at,
        kind,
        is_awaited: false,
    }
}

fn insert(marks: &mut Vec<Mark>, mark: Mark) {
    let index = marks.partition_point(|other| other.at < mark.at);
    marks.insert(index, mark);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Known = Known {
        num_hit: 0,
        num_kept: 0,
        num_common: 0,
    };
    const LONG: Stretch<'_> = Stretch {
        known: NOTHING,
        num_prompt: 1000,
        num_wanted: 1000,
        boundaries: &[],
        has_siblings: false,
        block_size: 16,
        grid: None,
    };

    fn hit(num_hit: u32) -> Known {
        Known {
            num_hit,
            num_kept: num_hit,
            num_common: 0,
        }
    }

    /// `B`oundary, `O`pening, `E`nd, branc`H`, `I`nterval.
    fn shown(stretch: &Stretch<'_>) -> String {
        let marks = stretch.marks();
        assert!(marks.is_sorted_by(|a, b| a.at < b.at), "{marks:?}");
        let words = marks.iter().map(|mark| {
            let letter = match mark.kind {
                SnapshotKind::Boundary => 'B',
                SnapshotKind::Opening => 'O',
                SnapshotKind::PromptEnd => 'E',
                SnapshotKind::Branch => 'H',
                SnapshotKind::Interval => 'I',
                kind => panic!("{kind:?} is no mark"),
            };
            format!("{letter}{}", mark.at)
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn prefixes_from_64_tokens_on_are_saved_with_any_usual_blocks() {
        for block_size in [16, 32, 64] {
            let stretch = Stretch {
                num_prompt: 80,
                num_wanted: 80,
                boundaries: &[30, 63, 64],
                block_size,
                ..LONG
            };
            let marks = shown(&stretch);
            assert!(marks.starts_with("O64"), "blocks of {block_size}: {marks}");
        }
    }

    #[test]
    fn prompts_are_marked_at_their_ends() {
        let prompt = |num_prompt| Stretch {
            num_prompt,
            num_wanted: num_prompt,
            ..LONG
        };
        assert_eq!(shown(&LONG), "E999");
        assert_eq!(shown(&prompt(65)), "E64");
        assert_eq!(shown(&prompt(64)), "", "too short");
        let siblings = |num_prompt| Stretch {
            has_siblings: true,
            ..prompt(num_prompt)
        };
        assert_eq!(shown(&siblings(2)), "E1");
        assert_eq!(shown(&siblings(1)), "", "nothing to share");
        let again = Stretch {
            known: hit(999),
            ..LONG
        };
        assert_eq!(shown(&again), "", "it is there already");
    }

    #[test]
    fn messages_are_marked_where_they_begin() {
        let with = |boundaries: &'static [u32], num_hit| Stretch {
            known: hit(num_hit),
            boundaries,
            ..LONG
        };
        assert_eq!(shown(&with(&[0, 63, 64, 500], 0)), "B64 O500 E999");
        assert_eq!(shown(&with(&[64, 79, 80, 96], 0)), "B64 B80 O96 E999");
        assert_eq!(
            shown(&with(&[64, 70, 81], 0)),
            "B64 O81 E999",
            "rounded down to a block, 70 is served by 64"
        );
        assert_eq!(
            shown(&with(&[64, 100, 108], 0)),
            "B64 O100 E999",
            "what serves the opening is one"
        );
        assert_eq!(shown(&with(&[100, 500, 993], 200)), "B500 O993");
        assert_eq!(
            shown(&with(&[500], 499)),
            "E999",
            "496 is served by the hit"
        );
        assert_eq!(shown(&with(&[999], 0)), "O999");
    }

    /// Who was stopped right before a message, in the block in which that begins, goes on from there, and
    /// leaves nothing behind there: the message is as good as nowhere saved.
    #[test]
    fn what_does_not_stay_serves_nobody() {
        let resumed = |num_hit, boundaries: &'static [u32]| Stretch {
            known: Known {
                num_kept: 0,
                ..hit(num_hit)
            },
            boundaries,
            ..LONG
        };
        assert_eq!(shown(&resumed(101, &[64, 106])), "O106 E999");
        assert_eq!(shown(&resumed(101, &[64, 98, 106])), "E999", "98 serves");
        assert_eq!(shown(&resumed(995, &[64])), "E999");
        assert_eq!(shown(&resumed(999, &[64])), "");
    }

    #[test]
    fn branches_are_marked_where_they_part() {
        let common = |num_common, num_hit| Stretch {
            known: Known {
                num_common,
                ..hit(num_hit)
            },
            boundaries: &[300],
            ..LONG
        };
        assert_eq!(shown(&common(256, 0)), "H256 O300 E999");
        assert_eq!(shown(&common(304, 0)), "O300 E999", "near enough");
        assert_eq!(shown(&common(400, 300)), "H400 E999");
        assert_eq!(shown(&common(352, 300)), "E999", "near the hit");
        assert_eq!(shown(&common(992, 300)), "H992");
    }

    #[test]
    fn long_stretches_are_marked_in_between() {
        let long = |num_prompt, num_hit, boundaries: &'static [u32]| Stretch {
            num_prompt,
            num_wanted: num_prompt,
            known: hit(num_hit),
            boundaries,
            ..LONG
        };
        assert_eq!(shown(&long(20_000, 0, &[])), "I8192 E19999");
        assert_eq!(shown(&long(24_576, 0, &[])), "I8192 I16384 E24575");
        assert_eq!(shown(&long(20_000, 5000, &[])), "E19999");
        assert_eq!(
            shown(&long(40_000, 0, &[9000, 17_000])),
            "B9000 O17000 I24576 I32768 E39999"
        );
        // Who resumes has generated tokens to compute again.
        let resumed = Stretch {
            num_wanted: 40_000,
            ..LONG
        };
        assert_eq!(shown(&resumed), "E999 I8192 I16384 I24576 I32768");
        let on_grid = Stretch {
            grid: Some(64),
            ..resumed
        };
        assert_eq!(shown(&on_grid), "E960");
    }

    #[test]
    fn the_grid_takes_what_lies_on_it() {
        let stretch = Stretch {
            grid: Some(64),
            boundaries: &[63, 100, 127, 130, 990],
            known: Known {
                num_common: 496,
                ..NOTHING
            },
            ..LONG
        };
        assert_eq!(shown(&stretch), "B64 B128 H448 O960");
    }

    #[test]
    fn what_is_not_wanted_is_not_marked() {
        let scores = Stretch {
            num_wanted: 1,
            boundaries: &[100],
            ..LONG
        };
        assert_eq!(shown(&scores), "");
    }
}
