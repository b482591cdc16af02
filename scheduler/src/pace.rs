//! How much of prompts a step takes beside sequences that generate.
//!
//! Who generates gets a token a step, so a step that takes long because of somebody else's prompt is a
//! pause in every stream. [`SchedulerConfig::max_slowdown`](crate::SchedulerConfig) bounds it: a step
//! with prompt tokens may take so many times what one without takes. How long steps take is told from
//! outside, and three numbers are learned from it:
//!
//! ```text
//! time = plain(rows) + overhead + rate * work        work = sum of tokens * (1 + context / context_cost)
//! ```
//!
//! A prompt's share grows where waiting for weights is most of a step, and shrinks with the context that
//! its attention must read. Where the overhead alone would fill the time, tokens for as long as that
//! are taken: a prompt that came in one by one would never be done.

/// Steps of 1, 2, 4, .. rows.
const NUM_BUCKETS: usize = 16;
/// After so many steps with prompts one is made without, to see what it takes by now.
const MAX_MIXED: u32 = 128;
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
        }
    }

    /// For a step in which `num_rows` rows generate.
    pub(crate) fn allowance(&self, num_rows: u32) -> Allowance {
        let left = match self.max_slowdown {
            Some(times) if num_rows > 0 => {
                let Plain { nanos, num_mixed } = self.plain[bucket(num_rows)];
                match nanos.filter(|_| num_mixed < MAX_MIXED) {
                    Some(nanos) => self.work_within(nanos * f64::from(times - 1)),
                    None => 0.0,
                }
            }
            _ => f64::INFINITY,
        };
        Allowance {
            left,
            context_cost: self.context_cost,
            taken: 0.0,
        }
    }

    fn work_within(&self, nanos: f64) -> f64 {
        let Some((overhead, rate)) = self.mixed.fit().or(self.prompts.through_origin()) else {
            // Nothing is known: whatever comes out of a token will tell.
            return 1.0;
        };
        (nanos - overhead).max(overhead) / rate
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
            if let Some(plain) = plain.nanos {
                self.mixed.note(step.work, (nanos - plain).max(0.0));
            }
        } else {
            let before = plain.nanos.unwrap_or(nanos);
            // A step that somebody else's work on the machine stretched counts as a few.
            let now = nanos.min(4.0 * before);
            plain.nanos = Some(before + (now - before) / 4.0);
            plain.num_mixed = 0;
        }
    }
}

impl Allowance {
    /// How many tokens from `start` on fit, at least a line of the `grid` if anything does.
    pub(crate) fn tokens(&self, start: u32, grid: u32) -> u32 {
        if self.left <= 0.0 {
            return 0;
        }
        let each = 1.0 + f64::from(start) / self.context_cost;
        ((self.left / each) as u32).max(grid)
    }

    /// Takes them.
    pub(crate) fn take(&mut self, start: u32, num_tokens: u32) {
        let context = f64::from(start) + f64::from(num_tokens) / 2.0;
        let work = f64::from(num_tokens) * (1.0 + context / self.context_cost);
        self.left -= work;
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
        let lens: Vec<u32> = (0..100)
            .map(|_| machine.run(&mut pace, 4, 0, 1).0)
            .collect();
        assert!(lens[90..].iter().all(|len| *len >= 50), "{lens:?}");
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
