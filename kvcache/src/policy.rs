//! What a snapshot is worth: the recomputing it is likely to save, for the memory that it takes.
//!
//! Pure functions of plain numbers, so that a simulator can drive the very same code as the manager.
//! Only products and quotients of exact numbers: the same on every machine.

/// Why there is a snapshot: how likely somebody goes on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A message ends here: the next turn, another question about the same document.
    Boundary,
    /// A prompt ends here, less one token: the same prompt again, or another choice of it.
    PromptEnd,
    /// Whoever computed it stopped here: the conversation may go on from its answer.
    Finish,
    /// Others have parted here before.
    Branch,
    /// Far from everything else, so that not too much is lost if somebody parts nearby.
    Interval,
    /// Who computed it had to yield and will be back.
    Yielded,
}

/// One snapshot, as eviction looks at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Tokens that whoever hits it need not compute, over the next shorter snapshot of its path.
    pub num_saved_tokens: u32,
    /// Memory that giving it up frees, in blocks: the slot, and what no other snapshot holds.
    pub num_blocks: u32,
    /// When it was of use last, on the clock of `now`.
    pub last_use: u64,
    /// How often it was of use, its making not counted.
    pub num_uses: u32,
    /// Why there is one.
    pub kind: SnapshotKind,
    /// Whether there is a longer one on its path, which is more likely to be hit.
    pub has_longer: bool,
}

/// The constants of [`Policy::score`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// How likely a hit is by kind, relative to each other.
    pub boundary: f64,
    /// See `boundary`.
    pub prompt_end: f64,
    /// See `boundary`.
    pub finish: f64,
    /// See `boundary`.
    pub branch: f64,
    /// See `boundary`.
    pub interval: f64,
    /// See `boundary`.
    pub yielded: f64,
    /// What is left of that where a longer snapshot is on the same path.
    pub has_longer: f64,
    /// What each use adds, as a share of it.
    pub per_use: f64,
    /// More uses than this say nothing more.
    pub max_uses: u32,
    /// Age at which half of the worth is left, in uses of the whole cache.
    pub half_life: u64,
    /// To save less than so many blocks of tokens is not worth a move to the host and back.
    pub min_swap_blocks: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            boundary: 1.0,
            prompt_end: 0.5,
            finish: 1.0,
            branch: 2.0,
            interval: 0.25,
            yielded: 4.0,
            has_longer: 0.5,
            per_use: 1.0,
            max_uses: 8,
            half_life: 128,
            min_swap_blocks: 4,
        }
    }
}

impl Policy {
    /// The lowest goes first.
    pub fn score(&self, candidate: &Candidate, now: u64) -> f64 {
        let kind = match candidate.kind {
            SnapshotKind::Boundary => self.boundary,
            SnapshotKind::PromptEnd => self.prompt_end,
            SnapshotKind::Finish => self.finish,
            SnapshotKind::Branch => self.branch,
            SnapshotKind::Interval => self.interval,
            SnapshotKind::Yielded => self.yielded,
        };
        let place = if candidate.has_longer {
            self.has_longer
        } else {
            1.0
        };
        let uses = 1.0 + self.per_use * f64::from(candidate.num_uses.min(self.max_uses));
        // Ages beyond 2^32 uses are all the same.
        let age = u32::try_from(now.saturating_sub(candidate.last_use)).unwrap_or(u32::MAX);
        let half_life = u32::try_from(self.half_life).unwrap_or(u32::MAX);
        let recency = f64::from(half_life) / (f64::from(half_life) + f64::from(age));
        let density =
            f64::from(candidate.num_saved_tokens) / f64::from(candidate.num_blocks.max(1));
        kind * place * uses * recency * density
    }

    /// Whether bringing it back is likely to be cheaper than computing it again.
    pub fn is_worth_moving(&self, candidate: &Candidate, block_size: u32) -> bool {
        candidate.num_saved_tokens >= self.min_swap_blocks * block_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Candidate = Candidate {
        num_saved_tokens: 1000,
        num_blocks: 100,
        last_use: 50,
        num_uses: 1,
        kind: SnapshotKind::Boundary,
        has_longer: false,
    };

    fn score(candidate: &Candidate) -> f64 {
        Policy::default().score(candidate, 178)
    }

    #[test]
    fn worth_is_saved_recompute_per_memory_and_recency() {
        // Half of the worth is left after 128 uses, and one use doubles it.
        assert_eq!(score(&USUAL), 10.0);
        let more = |change: fn(&mut Candidate)| {
            let mut candidate = USUAL;
            change(&mut candidate);
            score(&candidate) / score(&USUAL)
        };
        assert_eq!(more(|c| c.num_saved_tokens = 2000), 2.0);
        assert_eq!(more(|c| c.num_blocks = 200), 0.5);
        assert_eq!(more(|c| c.last_use = 178), 2.0);
        assert_eq!(more(|c| c.last_use = 200), 2.0, "never younger than now");
        assert_eq!(more(|c| c.num_uses = 3), 2.0);
        assert_eq!(more(|c| c.num_uses = 100), 4.5);
        assert_eq!(more(|c| c.has_longer = true), 0.5);
        assert_eq!(more(|c| c.num_blocks = 0), 100.0, "nothing is free of cost");
    }

    #[test]
    fn kinds_differ_by_how_likely_they_are_hit() {
        let of = |kind| score(&Candidate { kind, ..USUAL });
        let order = [
            SnapshotKind::Interval,
            SnapshotKind::PromptEnd,
            SnapshotKind::Finish,
            SnapshotKind::Branch,
            SnapshotKind::Yielded,
        ];
        assert!(order.is_sorted_by(|&a, &b| of(a) < of(b)));
        assert_eq!(of(SnapshotKind::Finish), of(SnapshotKind::Boundary));
    }

    #[test]
    fn little_is_not_worth_moving() {
        let policy = Policy::default();
        let with = |num_saved_tokens| Candidate {
            num_saved_tokens,
            ..USUAL
        };
        assert!(policy.is_worth_moving(&with(64), 16));
        assert!(!policy.is_worth_moving(&with(63), 16));
    }
}
