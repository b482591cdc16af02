//! How much of prompts a step takes beside sequences that generate.
//!
//! Who generates gets a token a step, so a step that takes long because of somebody else's prompt is a
//! pause in every stream. [`SchedulerConfig::max_slowdown`](crate::SchedulerConfig) bounds it: steps
//! with prompt tokens may take so many times what one without takes. How long steps take is told from
//! outside, and three numbers are learned from it:
//!
//! ```text
//! time = plain(rows) + overhead + rate * work        work = sum of tokens * (1 + context / context_cost)
//! ```
//!
//! A prompt's share grows where waiting for weights is most of a step, and shrinks with the context that
//! its attention must read. Where the overhead alone would fill the time, or a single token behind a very
//! long context takes longer, steps go without prompts until what they might have taken is enough for a
//! chunk that is worth its overhead: so many times as long on average, in few steps instead of in all.
//! Where that is short, it is so few that 99 of 100 tokens do not notice.

/// Steps of 1, 2, 4, .. rows.
const NUM_BUCKETS: usize = 16;
/// After so many steps with prompts one is made without, to see what it takes by now.
const MAX_MIXED: u32 = 128;
/// Steps without prompts before one with saved time, where that makes no longer a pause than this.
const MANY_STEPS: f64 = 128.0;
const SHORT_PAUSE_NANOS: f64 = 50e6;
/// What an observation keeps of those before it.
const MEMORY: f64 = 0.95;

/// What is known of the time that steps take.
#[derive(Debug)]
pub(crate) struct Pace {
    max_slowdown: Option<u32>,
    context_cost: f64,
    plain: [Plain; NUM_BUCKETS],
    /// Of steps with both, beyond their plain part.
    mixed: Line,
    /// Of steps without rows that generate, which carry the cost of a whole step.
    prompts: Line,
    /// Steps with rows that generate since the last with prompts.
    num_without: u32,
}

/// Steps of about as many rows.
#[derive(Clone, Copy, Debug, Default)]
struct Plain {
    nanos: Option<f64>,
    num_mixed: u32,
}

/// What the step in flight is made of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixture {
    /// Rows planned before prompts.
    pub(crate) num_rows: u32,
    pub(crate) work: f64,
}

/// Prompt work that a step may still take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    left: f64,
    /// What could be taken for the steps that went without, and the least of it that is worth it.
    saved: f64,
    worthy: f64,
    context_cost: f64,
    taken: f64,
}

impl Pace {
    pub(crate) fn new(max_slowdown: Option<u32>, context_cost: u32) -> Self {
        assert!(
            max_slowdown.is_none_or(|times| times > 1),
            "prompts need some time"
        );
        Self {
            max_slowdown,
            // Attention that costs nothing is one that never costs as much as all else.
            context_cost: match context_cost {
                0 => f64::INFINITY,
                positions => positions.into(),
            },
            plain: [Plain::default(); NUM_BUCKETS],
            mixed: Line::default(),
            prompts: Line::default(),
            num_without: 0,
        }
    }

    /// For a step in which `num_rows` rows generate.
    pub(crate) fn allowance(&self, num_rows: u32) -> Allowance {
        let (left, saved, worthy) = match self.max_slowdown {
            Some(times) if num_rows > 0 => {
                let Plain { nanos, num_mixed } = self.plain[bucket(num_rows)];
                match nanos.filter(|_| num_mixed < MAX_MIXED) {
                    Some(nanos) => self.work_within(nanos * f64::from(times - 1)),
                    None => (0.0, 0.0, 0.0),
                }
            }
            _ => (f64::INFINITY, 0.0, 0.0),
        };
        Allowance {
            left,
            saved,
            worthy,
            context_cost: self.context_cost,
            taken: 0.0,
        }
    }

    /// Work of every step, where all may take so many nanoseconds for prompts; what was saved by steps that
    /// took none, and how much of it at once is worth the overhead.
    fn work_within(&self, nanos: f64) -> (f64, f64, f64) {
        let Some((overhead, rate)) = self.mixed.fit().or(self.prompts.through_origin()) else {
            // Nothing is known: whatever comes out of a token will tell.
            return (1.0, f64::INFINITY, 1.0);
        };
        let work = |nanos: f64| (nanos - overhead) / rate;
        let usual = if nanos < 2.0 * overhead {
            0.0
        } else {
            work(nanos)
        };
        let rare = MANY_STEPS * nanos;
        let worthy = if rare > SHORT_PAUSE_NANOS {
            2.0 * overhead
        } else {
            rare.max(2.0 * overhead)
        };
        let saved = nanos * (1.0 + f64::from(self.num_without));
        (usual, work(saved), work(worthy))
    }

    /// The step in flight took so long.
    pub(crate) fn observe(&mut self, step: Mixture, nanos: u64) {
        if self.max_slowdown.is_none() {
            return;
        }
        let nanos = nanos.max(1) as f64;
        if step.num_rows == 0 {
            self.prompts.note(step.work, nanos);
            return;
        }
        let plain = &mut self.plain[bucket(step.num_rows)];
        if step.work > 0.0 {
            plain.num_mixed = plain.num_mixed.saturating_add(1);
            self.num_without = 0;
            if let Some(plain) = plain.nanos {
                self.mixed.note(step.work, (nanos - plain).max(0.0));
            }
        } else {
            self.num_without = self.num_without.saturating_add(1);
            let before = plain.nanos.unwrap_or(nanos);
            // A step that somebody else's work on the machine stretched counts as a few.
            let now = nanos.min(4.0 * before);
            plain.nanos = Some(before + (now - before) / 4.0);
            plain.num_mixed = 0;
        }
    }
}

impl Allowance {
    /// How many tokens from `start` on fit: lines of the `grid` at least, or none.
    pub(crate) fn tokens(&self, start: u32, grid: u32) -> u32 {
        let each = 1.0 + f64::from(start) / self.context_cost;
        let least = f64::from(grid.max(1)) * each;
        if self.left >= least {
            return (self.left / each) as u32;
        }
        let worthy = self.worthy.max(least);
        if self.saved < worthy {
            return 0;
        }
        ((worthy / each) as u32).max(grid)
    }

    /// Takes them.
    pub(crate) fn take(&mut self, start: u32, num_tokens: u32) {
        let context = f64::from(start) + f64::from(num_tokens) / 2.0;
        let work = f64::from(num_tokens) * (1.0 + context / self.context_cost);
        self.left -= work;
        self.saved -= work;
        self.worthy -= work;
        self.taken += work;
    }

    pub(crate) fn taken(&self) -> f64 {
        self.taken
    }
}

fn bucket(num_rows: u32) -> usize {
    (num_rows.next_power_of_two().ilog2() as usize).min(NUM_BUCKETS - 1)
}

/// A line through points, younger ones counting more.
#[derive(Debug, Default)]
struct Line {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    fn note(&mut self, x: f64, y: f64) {
        for (sum, new) in [
            (&mut self.n, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * MEMORY + new;
        }
    }

    fn through_origin(&self) -> Option<(f64, f64)> {
        (self.x > 0.0).then(|| (0.0, (self.y / self.x).max(f64::MIN_POSITIVE)))
    }

    /// Height at zero and slope, by least squares.
    fn fit(&self) -> Option<(f64, f64)> {
        let (_, mean) = self.through_origin()?;
        let spread = self.n * self.xx - self.x * self.x;
        // Points above one another have no slope.
        if spread < 0.01 * self.n * self.xx {
            return Some((0.0, mean));
        }
        // Neither part is negative, and noise does not make work free.
        let slope = (self.n * self.xy - self.x * self.y) / spread;
        let slope = slope.clamp(mean / 8.0, mean);
        Some((((self.y - slope * self.x) / self.n).max(0.0), slope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that takes as long as the formula says.
    struct Machine {
        plain: f64,
        overhead: f64,
        rate: f64,
    }

    impl Machine {
        fn run(&self, pace: &mut Pace, num_rows: u32, start: u32, grid: u32) -> (u32, f64) {
            let mut allowance = pace.allowance(num_rows);
            let len = allowance.tokens(start, grid).min(2048);
            allowance.take(start, len);
            let work = allowance.taken();
            let beside = if len > 0 { self.overhead } else { 0.0 };
            let rows = if num_rows > 0 { self.plain } else { 0.0 };
            let nanos = rows + beside + work * self.rate;
            pace.observe(Mixture { num_rows, work }, nanos as u64);
            (len, nanos / self.plain)
        }
    }

    #[test]
    fn without_a_bound_or_without_streams_all_is_allowed() {
        let unbounded = Pace::new(None, 0).allowance(8);
        assert_eq!(unbounded.tokens(0, 1), u32::MAX);
        let alone = Pace::new(Some(2), 1000).allowance(0);
        assert_eq!(alone.tokens(1_000_000, 1), u32::MAX);
    }

    #[test]
    fn a_step_keeps_within_the_bound() {
        let machine = Machine {
            plain: 1e6,
            overhead: 2e5,
            rate: 5e3,
        };
        let mut pace = Pace::new(Some(2), 10_000);
        assert_eq!(machine.run(&mut pace, 8, 0, 1).0, 0, "first what is plain");
        let mut lens = Vec::new();
        for step in 0..400 {
            let start = 100 * step;
            let (len, slowdown) = machine.run(&mut pace, 8, start, 1);
            if step > 50 {
                assert!(slowdown < 2.05, "step {step}: {slowdown}");
                lens.push(len);
            }
        }
        // 160 tokens without context; a fifth of it 40,000 positions later.
        assert!(lens.iter().filter(|len| **len == 0).count() <= 4);
        let (early, late) = (lens[10], lens[lens.len() - 10]);
        assert!((90..=110).contains(&early), "{early}");
        assert!((28..=36).contains(&late), "{late}");
    }

    #[test]
    fn an_overhead_beyond_the_bound_does_not_starve_the_prompt() {
        let machine = Machine {
            plain: 1e6,
            overhead: 3e6,
            rate: 1e4,
        };
        let mut pace = Pace::new(Some(2), 0);
        // What prompts cost alone is known.
        machine.run(&mut pace, 0, 0, 1);
        let runs: Vec<(u32, f64)> = (0..400).map(|_| machine.run(&mut pace, 4, 0, 1)).collect();
        // Twice the time, of which half is overhead.
        let slowdown = runs.iter().map(|(_, slowdown)| slowdown).sum::<f64>() / 400.0;
        assert!((1.8..=2.1).contains(&slowdown), "{slowdown}");
        let num_tokens: u32 = runs.iter().map(|(len, _)| len).sum();
        assert!(num_tokens > 400 * 40, "{num_tokens}");
    }

    /// One token behind a million takes thirty times as long as a step without it.
    #[test]
    fn what_no_step_has_time_for_is_saved_up() {
        let machine = Machine {
            plain: 2e5,
            overhead: 5e6,
            rate: 1e3,
        };
        let mut pace = Pace::new(Some(2), 1000);
        let mut runs: Vec<(u32, f64)> = (0..20_000)
            .map(|_| machine.run(&mut pace, 8, 1_000_000, 1))
            .collect();
        let mut runs = runs.split_off(10_000);
        let num_tokens: u32 = runs.iter().map(|(len, _)| len).sum();
        let nanos: f64 = runs
            .iter()
            .map(|(_, slowdown)| slowdown * machine.plain)
            .sum();
        let slowdown = nanos / machine.plain / 10_000.0;
        assert!((1.8..=2.1).contains(&slowdown), "{slowdown}");
        runs.sort_by(|a, b| a.1.total_cmp(&b.1));
        assert_eq!(runs[9_900].0, 0, "99 of 100 steps are as without it");
        let longest = runs[9_999].1 * machine.plain;
        assert!(longest < 40e6, "{longest}");
        // A token takes a millisecond and its share of the overhead; half of the time is theirs.
        assert!(f64::from(num_tokens) > 0.3 * nanos / 1e6, "{num_tokens}");
    }

    #[test]
    fn a_chunk_reaches_the_grid() {
        let machine = Machine {
            plain: 1e3,
            overhead: 0.0,
            rate: 1e5,
        };
        let mut pace = Pace::new(Some(2), 0);
        for _ in 0..20 {
            let (len, _) = machine.run(&mut pace, 1, 0, 64);
            assert!(len == 0 || len == 64, "{len}");
        }
    }

    #[test]
    fn what_is_plain_is_seen_again_now_and_then() {
        let machine = Machine {
            plain: 1e6,
            overhead: 0.0,
            rate: 1e4,
        };
        let mut pace = Pace::new(Some(3), 0);
        let lens: Vec<u32> = (0..3 * (MAX_MIXED + 1))
            .map(|_| machine.run(&mut pace, 2, 0, 1).0)
            .collect();
        assert_eq!(lens.iter().filter(|len| **len == 0).count(), 3);
    }

    #[test]
    fn one_long_step_is_not_believed() {
        let mut pace = Pace::new(Some(2), 0);
        let plain = Mixture {
            num_rows: 1,
            work: 0.0,
        };
        for nanos in [1000, 1000, 1_000_000, 1000] {
            pace.observe(plain, nanos);
        }
        assert!(pace.plain[0].nanos.expect("seen") < 2000.0);
    }
}
