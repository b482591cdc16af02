//! What drafts cost: what a table says beforehand, corrected by how long steps took.
//!
//! For each number of rows, to the next power of two, a step is thought to take
//!
//! ```text
//! plain * (1 + token * drafts / rows)     and behind it     plain * pass * passes
//! ```
//!
//! Steps of one kind in a row tell how fast the machine is at present, which all three share, so that one
//! that others slow down for a while does not look like one on which drafts are dear. Where one kind is
//! all that pays, the other is run now and then, for one step, to see what it costs. That step does not
//! tell by itself: what drafts leave behind is absorbed by the step after theirs, of whichever kind.
//!
//! ```text
//! plain                    plain        plain    token             plain + rest    plain
//! drafts    token + rest   plain + rest          plain + token     token + rest
//!           as usual       the probe, and the step behind it       as usual
//! ```
//!
//! But the two together are one of each, so the other kind takes what both took less what a step takes as
//! usual. What nobody has measured costs as the table says, times what the next smaller measured number of
//! rows was off by. Nanoseconds come as an argument and all is integers, so the same observations give the
//! same costs everywhere.

use crate::config::DraftCost;

/// A plain step, in the unit of [`DraftCost`].
pub(crate) const STEP: u64 = 1 << 10;
/// The last so many observations count.
const WINDOW: u64 = 8;
/// Steps of one kind until one of the other is run to measure it, the first time, and at most: each
/// time it is twice as many. A plain step costs the drafts that it goes without, one with drafts in
/// vain a token and a pass.
const FIRST_PATIENCE: u32 = 16;
const MAX_PLAIN_PATIENCE: u32 = 256;
const MAX_DRAFT_PATIENCE: u32 = 2048;
/// Plain steps in a row by which one is known.
const MIN_PLAIN: u64 = 4;
/// Dear enough for anybody.
const MAX_COST: u64 = STEP << 10;
/// What a step may take, in halves of what was foreseen, up or down: the rest is somebody else's
/// interrupt.
const MAX_SURPRISE: u64 = 3;

/// How long a step took all of whose rows drew behind one token each, drafts aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTime {
    /// Rows, at least one.
    pub num_rows: u32,
    /// Drafts that ran, over all rows.
    pub num_drafts: u32,
    /// Nanoseconds until all were drawn.
    pub step_ns: u64,
    /// Passes through the draft block behind it.
    pub num_passes: u32,
    /// Nanoseconds of those.
    pub drafting_ns: u64,
}

/// Costs of steps of 1, 2, 4, .. rows.
#[derive(Debug)]
pub(crate) struct Costs {
    points: Vec<Point>,
}

/// Steps of so many rows and of more than half as many.
#[derive(Debug)]
struct Point {
    table: DraftCost,
    /// Nanoseconds.
    plain: Mean,
    /// In the unit of [`DraftCost`].
    token: Mean,
    pass: Mean,
    /// Drafts of a row in the last step, in 1024ths.
    last_depth: u64,
    /// Plain steps since the last with drafts.
    num_plain: u64,
    /// The last step, if it was the first of its kind.
    first: Option<First>,
    plain_probe: Probe,
    draft_probe: Probe,
}

/// The first step with drafts after plain ones, or the other way round.
#[derive(Clone, Copy, Debug)]
struct First {
    ns: u64,
    /// Of the steps before it.
    last_depth: u64,
    num_plain: u64,
}

/// When to look again at what is no longer done, because something else is thought to be better.
#[derive(Clone, Copy, Debug)]
struct Probe {
    num_without: u32,
    /// Steps until then, the next time.
    patience: u32,
    max_patience: u32,
}

/// A decayed mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: u64,
    /// Up to [`WINDOW`].
    num_seen: u64,
}

impl Costs {
    pub(crate) fn new(table: Vec<DraftCost>) -> Self {
        let point = |table| Point {
            table,
            plain: Mean::default(),
            token: Mean::default(),
            pass: Mean::default(),
            last_depth: 0,
            num_plain: 0,
            first: None,
            plain_probe: Probe::new(MAX_PLAIN_PATIENCE),
            draft_probe: Probe::new(MAX_DRAFT_PATIENCE),
        };
        Self {
            points: table.into_iter().map(point).collect(),
        }
    }

    /// Whether there is nothing to weigh drafts by.
    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Of a step of so many rows; `None` if there are no costs at all.
    pub(crate) fn of(&self, num_rows: u32) -> Option<DraftCost> {
        Some(self.at(self.index(num_rows)?))
    }

    /// Of steps of any number of rows.
    pub(crate) fn all(&self) -> impl Iterator<Item = DraftCost> {
        (0..self.points.len()).map(|index| self.at(index))
    }

    /// Takes note of a step.
    pub(crate) fn note(&mut self, time: &StepTime) {
        let Some(index) = self.index(time.num_rows) else {
            return;
        };
        let size = self.size(index, time.num_rows);
        let scaled = |ns: u64| scale(ns, STEP, size);
        let point = &mut self.points[index];
        let depth = STEP * u64::from(time.num_drafts) / u64::from(time.num_rows.max(1));
        point.note_step(scaled(time.step_ns), depth);
        if time.num_passes > 0 && point.plain.is_known() {
            let pass = scaled(time.drafting_ns) / u64::from(time.num_passes);
            let pass = ratio(pass, point.plain.value);
            point.pass.note(if point.pass.is_known() {
                expected(pass, point.pass.value)
            } else {
                pass
            });
        }
    }

    /// Whether a step of so many rows, for which drafts were ordered or not, had better be of the other
    /// kind, to see what that costs now. Only where anything is measured.
    pub(crate) fn probes(&mut self, num_rows: u32, is_drafting: bool) -> bool {
        let Some(index) = self.index(num_rows) else {
            return false;
        };
        let point = &mut self.points[index];
        if !point.plain.is_known() {
            return false;
        }
        let (idle, busy) = if is_drafting {
            (&mut point.plain_probe, &mut point.draft_probe)
        } else {
            (&mut point.draft_probe, &mut point.plain_probe)
        };
        busy.num_without = 0;
        idle.is_due()
    }

    fn index(&self, num_rows: u32) -> Option<usize> {
        let last = self.points.len().checked_sub(1)?;
        Some((num_rows.max(1).next_power_of_two().ilog2() as usize).min(last))
    }

    /// A step of `num_rows`, in 1024ths of one of as many rows as the point stands for: between it
    /// and the next smaller, if both are known.
    fn size(&self, index: usize, num_rows: u32) -> u64 {
        let whole = 1_u64 << index;
        let (Some(below), here) = (index.checked_sub(1), &self.points[index].plain) else {
            return STEP;
        };
        let below = &self.points[below].plain;
        let missing = whole.saturating_sub(num_rows.into());
        let are_known = here.is_known() && below.is_known();
        if missing == 0 || !are_known || below.value >= here.value {
            return STEP;
        }
        STEP - ratio(here.value - below.value, here.value) * missing / (whole / 2)
    }

    fn at(&self, index: usize) -> DraftCost {
        let corrected = |known: fn(&Point) -> Mean, said: fn(&DraftCost) -> u32| {
            let here = said(&self.points[index].table);
            let mut points = self.points[..=index].iter().rev();
            let Some(measured) = points.find(|point| known(point).is_known()) else {
                return here;
            };
            let (cost, there) = (known(measured).value, said(&measured.table));
            let cost = cost * u64::from(here.max(1)) / u64::from(there.max(1));
            cost.min(MAX_COST) as u32
        };
        DraftCost {
            token: corrected(|point| point.token, |table| table.token),
            pass: corrected(|point| point.pass, |table| table.pass),
        }
    }
}

impl Point {
    /// A step with so many drafts to a row, in 1024ths, took so long.
    fn note_step(&mut self, ns: u64, depth: u64) {
        let last_depth = std::mem::replace(&mut self.last_depth, depth);
        let num_plain = self.num_plain;
        self.num_plain = if depth > 0 { 0 } else { num_plain + 1 };
        let first = self.first.take();
        if !self.plain.is_known() {
            if depth == 0 {
                self.plain.note(ns);
            }
            return;
        }
        if depth > 0 && !self.token.is_known() {
            self.token.note(excess(ns, self.plain.value, depth));
            return;
        }
        let usual = self.foresee(depth);
        let ns = expected(ns, usual);
        let is_other = (depth > 0) != (last_depth > 0);
        match (is_other, first) {
            // It absorbs what is not of its kind.
            (true, None) => {
                self.first = Some(First {
                    ns,
                    last_depth,
                    num_plain,
                });
            }
            // The last one was a probe.
            (true, Some(first)) => {
                let other = (first.ns + ns).saturating_sub(usual);
                let other = expected(other, self.foresee(last_depth));
                if depth > 0 {
                    self.note_plain(usual, depth, other);
                } else if first.num_plain >= MIN_PLAIN {
                    self.token.note(excess(other, self.plain.value, last_depth));
                }
            }
            // From the last one on everything is done in the other way.
            (false, Some(first)) if depth == 0 => {
                self.note_plain(self.foresee(first.last_depth), first.last_depth, ns);
            }
            (false, Some(first)) if first.num_plain >= MIN_PLAIN => {
                self.token.note(excess(ns, self.plain.value, depth));
            }
            (false, _) => self.plain.note(scale(self.plain.value, ns, usual)),
        }
    }

    /// Where a step with drafts takes `drafted`, a plain one takes so long: how much of it is plain is
    /// known, too, now.
    fn note_plain(&mut self, drafted: u64, depth: u64, ns: u64) {
        self.token.note(excess(drafted, ns, depth));
        self.plain.value = scale(self.plain.value, drafted, self.foresee(depth));
    }

    fn foresee(&self, depth: u64) -> u64 {
        let factor = STEP + self.token.value * depth / STEP;
        scale(self.plain.value, factor, STEP).max(1)
    }
}

/// What a token more in each row costs, if `depth` of them make a step of `plain` one of `ns`.
fn excess(ns: u64, plain: u64, depth: u64) -> u64 {
    ratio(ns.saturating_sub(plain), plain) * STEP / depth.max(1)
}

/// As far from what was foreseen as is believed.
fn expected(value: u64, foreseen: u64) -> u64 {
    value.clamp(foreseen * 2 / MAX_SURPRISE, foreseen * MAX_SURPRISE / 2)
}

/// In 1024ths.
fn ratio(part: u64, whole: u64) -> u64 {
    scale(part, STEP, whole).min(MAX_COST)
}

fn scale(value: u64, by: u64, over: u64) -> u64 {
    (u128::from(value) * u128::from(by) / u128::from(over.max(1))) as u64
}

impl Probe {
    fn new(max_patience: u32) -> Self {
        Self {
            num_without: 0,
            patience: FIRST_PATIENCE,
            max_patience,
        }
    }

    fn is_due(&mut self) -> bool {
        self.num_without += 1;
        let is_due = self.num_without >= self.patience;
        if is_due {
            self.num_without = 0;
            self.patience = (2 * self.patience).min(self.max_patience);
        }
        is_due
    }
}

impl Mean {
    fn is_known(self) -> bool {
        self.num_seen > 0
    }

    fn note(&mut self, value: u64) {
        self.num_seen = (self.num_seen + 1).min(WINDOW);
        self.value = (self.value * (self.num_seen - 1) + value) / self.num_seen;
    }
}

#[cfg(test)]
mod tests;
