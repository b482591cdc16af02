//! Depths in steps that cost what a table says, for sequences whose drafts come true as often as is
//! drawn. Against plain steps, and against the best depth that never changes.

use super::*;

/// A step of one row waits for weights.
const ALONE: DraftCost = DraftCost {
    token: 300,
    pass: 100,
};
/// A step of many rows computes.
const FULL: DraftCost = DraftCost {
    token: 900,
    pass: 60,
};
/// By rows: 1, 2, 4, 8, 16.
const TABLE: [DraftCost; 5] = [
    ALONE,
    DraftCost {
        token: 350,
        pass: 90,
    },
    DraftCost {
        token: 450,
        pass: 80,
    },
    DraftCost {
        token: 700,
        pass: 70,
    },
    FULL,
];
const MAX: u32 = 5;

/// The same numbers each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn is_one_of(&mut self, percent: u64) -> bool {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % 100 < percent
    }
}

/// So many requests of so many tokens each, so many at a time.
#[derive(Clone, Copy)]
struct Load {
    num_rows: usize,
    num_requests: u64,
    num_tokens: u32,
    /// How often a draft of the `n`th request comes true, those before it being true.
    percent: fn(u64) -> u64,
    /// What steps cost.
    real: [DraftCost; 5],
    /// Whether anybody looks at a clock; else what they cost is known.
    is_timed: bool,
}

struct Running {
    guesser: Guesser,
    percent: u64,
    num_left: u32,
    num_drafts: u32,
}

impl Load {
    /// Tokens per 1000 plain steps' time. `Some(depth)` is a depth that never changes.
    fn throughput(self, fixed: Option<u32>) -> u64 {
        let costs = if fixed.is_some() {
            Vec::new()
        } else {
            TABLE.to_vec()
        };
        let mut depth = Depth::new(fixed.unwrap_or(MAX), costs);
        let mut chance = Chance(7);
        let (mut num_begun, mut time, mut num_tokens) = (0, 0, 0);
        let mut rows: Vec<Running> = Vec::new();
        loop {
            while rows.len() < self.num_rows && num_begun < self.num_requests {
                rows.push(Running {
                    guesser: depth.begin(),
                    percent: (self.percent)(num_begun),
                    num_left: self.num_tokens,
                    num_drafts: 0,
                });
                num_begun += 1;
            }
            if rows.is_empty() {
                return num_tokens * STEP * 1000 / time;
            }
            let num_rows = rows.len() as u64;
            let cost = self.real[rows.len().next_power_of_two().ilog2() as usize];
            let began = time;
            time += num_rows * STEP;
            for row in &mut rows {
                let mut num_accepted = 0;
                while num_accepted < row.num_drafts && chance.is_one_of(row.percent) {
                    num_accepted += 1;
                }
                depth.note(&mut row.guesser, row.num_drafts, num_accepted);
                time += u64::from(row.num_drafts) * u64::from(cost.token);
                let num_drawn = row.num_left.min(1 + num_accepted);
                row.num_left -= num_drawn;
                num_tokens += u64::from(num_drawn);
            }
            let step_time = time - began;
            let mut candidates: Vec<_> = rows
                .iter_mut()
                .map(|row| Candidate {
                    limit: row.num_left.saturating_sub(1).min(fixed.unwrap_or(MAX)),
                    guesser: &mut row.guesser,
                })
                .collect();
            let depths = depth.choose(num_rows as u32, &mut candidates);
            let num_passes = u64::from(*depths.iter().max().expect("there is a row"));
            let pass_time = num_passes * u64::from(cost.pass) * num_rows;
            time += pass_time;
            if self.is_timed {
                depth.note_time(&StepTime {
                    num_rows: num_rows as u32,
                    num_drafts: rows.iter().map(|row| row.num_drafts).sum(),
                    step_ns: step_time * 1000,
                    num_passes: num_passes as u32,
                    drafting_ns: pass_time * 1000,
                });
            }
            for (row, depth) in rows.iter_mut().zip(depths) {
                row.num_drafts = depth;
            }
            rows.retain(|row| row.num_left > 0);
        }
    }

    /// At least so many per cent of plain steps, and of the best fixed depth.
    fn check(self, of_plain: u64, of_best: u64) {
        let adaptive = self.throughput(None);
        let plain = self.throughput(Some(0));
        let best = (0..=MAX)
            .map(|depth| self.throughput(Some(depth)))
            .max()
            .expect("there are depths");
        assert!(
            adaptive * 100 >= plain * of_plain,
            "{adaptive}, plain {plain}"
        );
        assert!(adaptive * 100 >= best * of_best, "{adaptive}, best {best}");
    }
}

fn load(num_rows: usize, percent: fn(u64) -> u64) -> Load {
    Load {
        num_rows,
        num_requests: 64,
        num_tokens: 300,
        percent,
        real: TABLE,
        is_timed: false,
    }
}

/// As it is served: what steps cost is found out.
fn timed(num_rows: usize, real: DraftCost, percent: fn(u64) -> u64) -> Load {
    Load {
        real: [real; 5],
        is_timed: true,
        ..load(num_rows, percent)
    }
}

#[test]
fn alone_drafts_pay() {
    for (percent, of_plain) in [
        (load(1, |_| 95), 175),
        (load(1, |_| 80), 125),
        (load(1, |_| 70), 110),
        (load(1, |_| 50), 98),
    ] {
        percent.check(of_plain, 97);
    }
}

#[test]
fn where_steps_compute_few_pay() {
    load(16, |_| 99).check(100, 96);
    load(16, |_| 80).check(98, 98);
    load(16, |_| 50).check(98, 98);
}

#[test]
fn what_never_comes_true_costs_next_to_nothing() {
    for num_rows in [1, 2, 4, 8, 16] {
        load(num_rows, |_| 0).check(98, 98);
        load(num_rows, |_| 3).check(98, 98);
        Load {
            num_requests: 400,
            num_tokens: 30,
            ..load(num_rows, |_| 0)
        }
        .check(98, 98);
    }
    // One conversation in a fresh process.
    Load {
        num_requests: 1,
        num_tokens: 500,
        ..load(1, |_| 0)
    }
    .check(98, 98);
}

/// A table that is wrong by a factor is soon found out.
#[test]
fn what_steps_cost_is_measured() {
    let dear = DraftCost {
        token: 1000,
        pass: 300,
    };
    let cheap = DraftCost {
        token: 100,
        pass: 50,
    };
    for num_rows in [1, 16] {
        for percent in [|_| 0, |_| 50, |_| 90] {
            timed(num_rows, dear, percent).check(98, 97);
        }
        timed(num_rows, cheap, |_| 0).check(98, 98);
        timed(num_rows, cheap, |_| 90).check(250, 94);
    }
}

#[test]
fn each_sequence_has_its_own_depth() {
    // Code and small talk in one batch: better than any one depth for both.
    load(4, |request| if request % 2 == 0 { 95 } else { 10 }).check(103, 103);
    load(8, |request| if request % 4 == 0 { 95 } else { 5 }).check(99, 99);
}

#[test]
fn bad_times_end() {
    // 100 requests without a hit, then good ones: some of them probe.
    let mut depth = Depth::new(MAX, TABLE.to_vec());
    for _ in 0..100 {
        let mut guesser = depth.begin();
        for _ in 0..MIN_TRIES {
            depth.note(&mut guesser, 1, 0);
        }
    }
    let mut num_on = 0;
    for _ in 0..200 {
        let mut guesser = depth.begin();
        if !guesser.is_off {
            num_on += 1;
            for _ in 0..20 {
                depth.note(&mut guesser, 2, 2);
            }
        }
    }
    assert!(num_on > 100, "{num_on} of 200 draft");
}

#[test]
fn what_is_off_stays_off() {
    let mut depth = Depth::new(MAX, TABLE.to_vec());
    let mut guesser = depth.begin();
    for _ in 0..MIN_TRIES {
        assert!(!guesser.is_off);
        depth.note(&mut guesser, 1, 0);
    }
    assert!(guesser.is_off && !depth.prepares(1, &guesser));
    for _ in 0..1000 {
        depth.observed.note(5, 5);
        let candidate = Candidate {
            guesser: &mut guesser,
            limit: MAX,
        };
        assert_eq!(depth.choose(1, &mut [candidate]), [0]);
    }
}

#[test]
fn one_unlucky_start_is_tried_again() {
    let mut depth = Depth::new(MAX, vec![ALONE]);
    for _ in 0..100 {
        depth.observed.note(3, 3);
    }
    let mut guesser = depth.begin();
    guesser.observed.note(1, 0);
    for _ in 0..40 {
        guesser.observed.note(1, 0);
    }
    let mut depths = Vec::new();
    for _ in 0..2 * PATIENCE + PATIENCE {
        let candidate = Candidate {
            guesser: &mut guesser,
            limit: MAX,
        };
        depths.extend(depth.choose(1, &mut [candidate]));
    }
    let tried = depths.iter().positions_of(1);
    assert_eq!(tried, [15, 47], "after 16 steps, then after 32");
}

trait Positions {
    fn positions_of(self, wanted: u32) -> Vec<usize>;
}

impl<'a, I: Iterator<Item = &'a u32>> Positions for I {
    fn positions_of(self, wanted: u32) -> Vec<usize> {
        self.enumerate()
            .filter(|(_, depth)| **depth == wanted)
            .map(|(at, _)| at)
            .collect()
    }
}

#[test]
fn without_costs_the_depth_is_the_limit() {
    let mut depth = Depth::new(3, Vec::new());
    let mut guesser = depth.begin();
    for _ in 0..100 {
        depth.note(&mut guesser, 3, 0);
    }
    for limit in [0, 1, 3] {
        let candidate = Candidate {
            guesser: &mut guesser,
            limit,
        };
        assert_eq!(depth.choose(1, &mut [candidate]), [limit]);
    }
    assert!(depth.prepares(0, &guesser));
}

/// Odds of drafts that come true so often each.
fn odds(percent: u64) -> Odds {
    let mut all = ONE;
    [(); MAX_DRAFTS].map(|()| {
        all = all * percent / 100;
        all
    })
}

fn check_best(cost: DraftCost, rows: &[u64], expect: &[u32]) {
    let odds: Vec<Odds> = rows.iter().map(|percent| odds(*percent)).collect();
    let got = best_depths(cost, rows.len() as u32, &odds);
    assert_eq!(got, expect, "{rows:?} at {cost:?}");
}

#[test]
fn the_best_depths() {
    let free = DraftCost { token: 0, pass: 0 };
    check_best(free, &[40, 50], &[MAX_DRAFTS as u32; 2]);
    check_best(ALONE, &[0], &[0]);
    // 1.3 tokens in a time of 1.39, or 1.5.
    check_best(ALONE, &[30], &[0]);
    check_best(ALONE, &[50], &[1]);
    // A pass for one row in four is a quarter of its worth.
    check_best(FULL, &[99, 0, 0, 0], &[0; 4]);
    let cheap_pass = DraftCost {
        token: 100,
        pass: 50,
    };
    check_best(cheap_pass, &[90, 0, 0, 0], &[7, 0, 0, 0]);
    check_best(cheap_pass, &[70, 0, 0, 0], &[3, 0, 0, 0]);
}

/// By trying all of them.
#[test]
fn nothing_is_better_than_the_best() {
    let rate = |cost: DraftCost, rows: &[u64; 2], depths: [u32; 2]| {
        let gain: u64 = rows
            .iter()
            .zip(depths)
            .map(|(percent, depth)| ONE + odds(*percent)[..depth as usize].iter().sum::<u64>())
            .sum();
        let passes = u64::from(depths[0].max(depths[1]) * 2 * cost.pass);
        let time = 2 * STEP + u64::from((depths[0] + depths[1]) * cost.token) + passes;
        gain * STEP / time
    };
    for cost in TABLE {
        for rows in [[90, 90], [95, 20], [60, 70], [40, 0], [100, 100]] {
            let mut best = 0;
            for first in 0..=MAX_DRAFTS as u32 {
                for second in 0..=MAX_DRAFTS as u32 {
                    best = best.max(rate(cost, &rows, [first, second]));
                }
            }
            let found = best_depths(cost, 2, &rows.map(odds));
            let found = rate(cost, &rows, [found[0], found[1]]);
            assert!(found + 8 >= best, "{rows:?} at {cost:?}: {found}, {best}");
        }
    }
}
