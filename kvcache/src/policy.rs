//! What a snapshot is worth: the recomputing it is likely to save, for the memory that it takes.
//!
//! Plain arithmetic on plain numbers, the same on every machine, so that a simulator can drive the very
//! same code as the manager (`benches/pure/prefix_cache`). How likely a hit is depends on what clients
//! do: agents go on from where an answer ended, chats with stripped thoughts from where it began. So it
//! is learned, by why a snapshot was made and by what has become of it since ([`Habits`]).

/// Why there is a snapshot: how likely somebody goes on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A message begins here: another one may stand in its place the next time.
    Boundary,
    /// The last message of a prompt begins here, the one to be written: the next turn repeats what is
    /// before it, whatever becomes of the answer.
    Opening,
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

const KINDS: [SnapshotKind; NUM_KINDS] = [
    SnapshotKind::Boundary,
    SnapshotKind::Opening,
    SnapshotKind::PromptEnd,
    SnapshotKind::Finish,
    SnapshotKind::Branch,
    SnapshotKind::Interval,
    SnapshotKind::Yielded,
];
const NUM_KINDS: usize = 7;
/// Hits that are told apart: who has been hit more often is like who has been hit so often.
const NUM_COUNTS: usize = 4;
/// Classes that are told apart.
pub(crate) const NUM_CLASSES: usize = NUM_KINDS * NUM_COUNTS * 2;
/// More than any other difference.
const YOUNG: f64 = 1e12;
/// Old experience counts half from time to time.
const MAX_MADE: u32 = 4096;

/// What is short. Slots and blocks are pools apart: what is freed of the other does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// States.
    Slots,
    /// Keys and values.
    Blocks,
}

/// One snapshot, as eviction looks at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Tokens that whoever hits it need not compute, over the next shorter snapshot of its path.
    pub num_saved_tokens: u32,
    /// What it is given up for.
    pub short: Short,
    /// How much of that it frees: its slot, or the blocks that nobody else holds.
    pub num_freed: u32,
    /// When it was of use last, on the clock of `now`.
    pub last_use: u64,
    /// Why there is one, and what became of it.
    pub class: Class,
}

/// What has become of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Why there is one.
    pub kind: SnapshotKind,
    /// How often somebody went on from it.
    pub num_hits: u32,
    /// Whether there is a longer one on its path, which is hit instead if it can be.
    pub has_longer: bool,
}

/// How often snapshots of each class were hit once more.
#[derive(Clone, Debug)]
pub struct Habits {
    records: [Record; NUM_CLASSES],
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            records: [Record::default(); NUM_CLASSES],
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    num_made: u32,
    num_hit: u32,
    /// Ages at which they were hit: an average in which new ones count for a sixteenth.
    age: f64,
}

impl Habits {
    /// A snapshot has come into this class.
    pub fn note_made(&mut self, class: Class) {
        let record = self.record_mut(class);
        record.num_made += 1;
        if record.num_made == MAX_MADE {
            record.num_made /= 2;
            record.num_hit /= 2;
        }
    }

    /// Somebody went on from a snapshot of this class, which leaves it by that, when it had not been
    /// of use for so long.
    pub fn note_hit(&mut self, class: Class, age: u64) {
        let record = self.record_mut(class);
        record.num_hit = (record.num_hit + 1).min(record.num_made);
        let age = f64::from(u32::try_from(age).unwrap_or(u32::MAX));
        if record.num_hit == 1 {
            record.age = age;
        } else {
            record.age += (age - record.age) / 16.0;
        }
    }

    fn record_mut(&mut self, class: Class) -> &mut Record {
        &mut self.records[class.number()]
    }

    fn record(&self, class: Class) -> Record {
        self.records[class.number()]
    }
}

impl Class {
    /// Numbers what is told apart.
    pub(crate) fn number(self) -> usize {
        let count = (self.num_hits as usize).min(NUM_COUNTS - 1);
        (self.kind as usize * NUM_COUNTS + count) * 2 + usize::from(self.has_longer)
    }

    fn numbered(number: usize) -> Self {
        Self {
            kind: KINDS[number / (2 * NUM_COUNTS)],
            num_hits: (number / 2 % NUM_COUNTS) as u32,
            has_longer: number % 2 == 1,
        }
    }
}

/// What all snapshots of a class have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    likelihood: f64,
    /// One over the age at which half of the worth is left.
    lives_per_use: f64,
    /// Whether many part there.
    is_crossroads: bool,
    grace: u64,
}

impl View {
    /// See [`Policy::score`].
    pub(crate) fn score(&self, num_saved_tokens: u32, num_freed: u32, age: u64) -> f64 {
        let (gain, cost) = self.gain_and_cost(num_saved_tokens, num_freed, age);
        gain / cost
    }

    /// The same as a quotient: who compares many need not divide.
    pub(crate) fn gain_and_cost(
        &self,
        num_saved_tokens: u32,
        num_freed: u32,
        age: u64,
    ) -> (f64, f64) {
        // Ages beyond 2^32 uses are all the same.
        let lives = f64::from(u32::try_from(age).unwrap_or(u32::MAX)) * self.lives_per_use;
        // A conversation goes on within its pause or hardly ever; where many part, they come at random.
        let square = lives * lives;
        let faded = if self.is_crossroads {
            square
        } else {
            square * square
        };
        let young = if age < self.grace { YOUNG } else { 1.0 };
        (
            self.likelihood * f64::from(num_saved_tokens) * young,
            f64::from(num_freed.max(1)) * (1.0 + faded),
        )
    }
}

/// The constants of [`Policy::score`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// What is believed of how likely a hit is before there is experience, by kind, of those that
    /// nothing longer stands before.
    pub odds: [f64; NUM_KINDS],
    /// The same of those with something longer.
    pub odds_with_longer: [f64; NUM_KINDS],
    /// The same of those that were hit twice, or once without leading anywhere yet: many part there.
    pub odds_of_forks: f64,
    /// How many snapshots' experience that belief weighs.
    pub belief: f64,
    /// Age at which half of the worth is left before there is experience, in uses of the whole cache.
    pub half_life: f64,
    /// No experience makes it less: a large cache need not be quick to forget.
    pub min_half_life: f64,
    /// The same as a multiple of the age at which others of the class were hit.
    pub patience: f64,
    /// Younger ones, in uses of the whole cache, go after all others when slots are short, if they stand
    /// where another text may follow and nobody has come yet: they get their chance to be of use to
    /// whoever comes next. Not when blocks are short: one that takes many would drive out all others.
    pub grace: u64,
    /// Less than this is not worth moving to the host and back, in blocks.
    pub min_swap_blocks: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            odds: [0.3, 0.6, 0.3, 0.6, 0.5, 0.1, 1.0],
            odds_with_longer: [0.3, 0.3, 0.1, 0.1, 0.3, 0.1, 0.1],
            odds_of_forks: 0.7,
            belief: 8.0,
            half_life: 512.0,
            min_half_life: 1.0,
            patience: 1.7,
            grace: 0,
            min_swap_blocks: 4,
        }
    }
}

impl Policy {
    /// The lowest goes first: tokens saved, times how likely that is, per block of memory.
    pub fn score(&self, habits: &Habits, candidate: &Candidate, now: u64) -> f64 {
        let age = now.saturating_sub(candidate.last_use);
        let view = self.view(habits, candidate.class, candidate.short);
        view.score(candidate.num_saved_tokens, candidate.num_freed, age)
    }

    /// What all of a class have in common as of now.
    fn view(&self, habits: &Habits, class: Class, short: Short) -> View {
        let record = habits.record(class);
        let known = f64::from(record.num_hit);
        let half_life = (known * self.patience * record.age + self.belief * self.half_life)
            / (known + self.belief);
        View {
            likelihood: self.likelihood(habits, class),
            lives_per_use: 1.0 / half_life.max(self.min_half_life),
            is_crossroads: class.num_hits > 2,
            grace: match (short, class.kind, class.num_hits) {
                (Short::Slots, SnapshotKind::Boundary | SnapshotKind::Branch, 0) => self.grace,
                _ => 0,
            },
        }
    }

    /// The same of all classes, by their numbers.
    pub(crate) fn views(&self, habits: &Habits, short: Short) -> [View; NUM_CLASSES] {
        std::array::from_fn(|number| self.view(habits, Class::numbered(number), short))
    }

    /// How likely somebody goes on from a snapshot of this class once more.
    pub fn likelihood(&self, habits: &Habits, class: Class) -> f64 {
        let prior = match (class.num_hits, class.has_longer) {
            (2.., _) | (1, false) => self.odds_of_forks,
            (_, true) => self.odds_with_longer[class.kind as usize],
            (0, false) => self.odds[class.kind as usize],
        };
        let record = habits.record(class);
        (f64::from(record.num_hit) + self.belief * prior)
            / (f64::from(record.num_made) + self.belief)
    }

    /// Whether bringing it back is likely to be cheaper than computing it again.
    pub fn is_worth_moving(&self, candidate: &Candidate, block_size: u32) -> bool {
        candidate.num_saved_tokens >= self.min_swap_blocks * block_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIP: Class = Class {
        kind: SnapshotKind::Finish,
        num_hits: 0,
        has_longer: false,
    };
    const USUAL: Candidate = Candidate {
        num_saved_tokens: 1000,
        short: Short::Blocks,
        num_freed: 100,
        last_use: 50,
        class: TIP,
    };

    #[test]
    fn worth_is_saved_recompute_per_memory_and_recency() {
        let policy = Policy::default();
        let score = |candidate: &Candidate| policy.score(&Habits::default(), candidate, 562);
        // Half of the worth is left after 512 uses.
        assert!((score(&USUAL) - 0.6 * 0.5 * 10.0).abs() < 1e-9);
        let more = |change: fn(&mut Candidate)| {
            let mut candidate = USUAL;
            change(&mut candidate);
            score(&candidate) / score(&USUAL)
        };
        let is = |got: f64, wanted: f64| (got - wanted).abs() < 1e-9 * wanted;
        assert!(is(more(|c| c.num_saved_tokens = 2000), 2.0));
        assert!(is(more(|c| c.num_freed = 200), 0.5));
        assert!(is(more(|c| c.last_use = 562), 2.0));
        assert!(
            is(more(|c| c.last_use = 2000), 2.0),
            "never younger than now"
        );
        assert!(
            is(more(|c| c.num_freed = 0), 100.0),
            "nothing is free of cost"
        );
        assert!(more(|c| c.class.has_longer = true) < 0.2);
        assert!(more(|c| c.class.num_hits = 5) > 1.0);
    }

    #[test]
    fn classes_are_numbered() {
        for number in 0..NUM_CLASSES {
            assert_eq!(Class::numbered(number).number(), number);
        }
        let often = Class {
            num_hits: 1000,
            ..TIP
        };
        assert_eq!(Class::numbered(often.number()).num_hits, 3);
    }

    #[test]
    fn likelihood_is_belief_first_and_experience_later() {
        let policy = Policy::default();
        let mut habits = Habits::default();
        assert_eq!(policy.likelihood(&habits, TIP), 0.6);
        for _ in 0..1000 {
            habits.note_made(TIP);
        }
        assert!(policy.likelihood(&habits, TIP) < 0.02, "nobody went on");
        for _ in 0..1000 {
            habits.note_hit(TIP, 10);
        }
        let likelihood = policy.likelihood(&habits, TIP);
        assert!(0.98 < likelihood && likelihood < 1.0, "everybody did");
        let passed = Class {
            has_longer: true,
            ..TIP
        };
        assert_eq!(policy.likelihood(&habits, passed), 0.1, "another class");
    }

    #[test]
    fn patience_is_learned() {
        let policy = Policy::default();
        let mut habits = Habits::default();
        let aged = |age: u64| Candidate {
            last_use: 1000 - age,
            ..USUAL
        };
        let left = |habits: &Habits, age| {
            policy.score(habits, &aged(age), 1000) / policy.score(habits, &aged(0), 1000)
        };
        assert!(left(&habits, 256) > 0.9 && left(&habits, 1000) < 0.15);
        for _ in 0..4000 {
            habits.note_made(TIP);
            habits.note_hit(TIP, 40);
        }
        assert!(
            left(&habits, 30) > 0.9 && left(&habits, 150) < 0.1,
            "all come back sooner"
        );
    }

    #[test]
    fn old_experience_fades() {
        let mut habits = Habits::default();
        for _ in 0..4095 {
            habits.note_made(TIP);
            habits.note_hit(TIP, 10);
        }
        habits.note_made(TIP);
        let record = habits.record(TIP);
        assert_eq!((record.num_made, record.num_hit), (2048, 2047));
    }

    #[test]
    fn the_young_go_last() {
        let policy = Policy {
            grace: 20,
            ..Policy::default()
        };
        let score_for = |short, last_use, num_saved_tokens| {
            let candidate = Candidate {
                short,
                num_saved_tokens,
                last_use,
                class: Class {
                    kind: SnapshotKind::Boundary,
                    ..TIP
                },
                ..USUAL
            };
            policy.score(&Habits::default(), &candidate, 1000)
        };
        let score =
            |last_use, num_saved_tokens| score_for(Short::Slots, last_use, num_saved_tokens);
        assert!(score(981, 1) > score(980, 1_000_000));
        assert!(score(981, 2) > score(981, 1), "among them worth decides");
        assert!(
            score_for(Short::Blocks, 981, 1) < score_for(Short::Blocks, 980, 100),
            "not for blocks"
        );
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
