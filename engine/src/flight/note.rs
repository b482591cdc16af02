//! A plan and a result, made small: what tells them from others, and who was in them.

use scheduler::{Row, RowFault, SchedulerOutput, StateOp, StepResult, StepTime};
use serde::{Deserialize, Serialize};

/// 2^64 over the golden ratio, odd: multiplying by it spreads low bits upwards.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// A plan without its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanNote {
    pub(super) step: u64,
    /// Of everything in it but what its tokens say.
    pub(super) digest: u64,
    pub(super) num_ops: u32,
    pub(super) rows: Box<[RowNote]>,
}

/// Whose (the low bits), how many tokens, and a short digest of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RowNote(pub(super) u32, pub(super) u16, pub(super) u16);

/// What the rows of the plan before it drew.
#[derive(Clone, Debug)]
pub(super) struct ResultNote {
    pub(super) nanos: u64,
    pub(super) times: Box<[StepTime]>,
    /// Of all rows, in their order.
    pub(super) tokens: Box<[u32]>,
    pub(super) rows: Box<[RowEnd]>,
}

/// One row's part.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowEnd {
    pub(super) num_tokens: u8,
    /// Guesses at what follows. What they say changes no plan.
    pub(super) num_drafts: u8,
    pub(super) fault: Option<RowFault>,
}

impl PlanNote {
    pub(super) fn of(plan: &SchedulerOutput) -> Self {
        let mut digest = Digest::new(plan.step.0);
        for op in &plan.ops {
            digest.op(op);
        }
        let note = |row: &Row| {
            let own = Digest::of(row);
            digest.add(own);
            let num_tokens = u16::try_from(row.input_ids.len()).unwrap_or(u16::MAX);
            RowNote(row.sequence.0 as u32, num_tokens, own as u16)
        };
        let rows = plan.rows.iter().map(note).collect();
        Self {
            step: plan.step.0,
            digest: digest.finish(),
            num_ops: plan.ops.len() as u32,
            rows,
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.rows.len() * size_of::<RowNote>()
    }
}

impl ResultNote {
    pub(super) fn of(result: &StepResult, (nanos, times): (u64, &[StepTime])) -> Self {
        let mut tokens = Vec::with_capacity(result.rows.len());
        let end = |row: &scheduler::RowResult| match &row.outcome {
            Ok(output) => {
                tokens.extend_from_slice(&output.tokens);
                RowEnd {
                    num_tokens: output.tokens.len() as u8,
                    num_drafts: output.drafts.len() as u8,
                    fault: None,
                }
            }
            Err(fault) => RowEnd {
                num_tokens: 0,
                num_drafts: 0,
                fault: Some(*fault),
            },
        };
        let rows = result.rows.iter().map(end).collect();
        Self {
            nanos,
            times: times.into(),
            tokens: tokens.into(),
            rows,
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        size_of_val(&*self.tokens) + size_of_val(&*self.rows) + size_of_val(&*self.times)
    }
}

/// Spreads well and is quick; nobody has to be kept from finding two plans with one digest.
struct Digest(u64);

impl Digest {
    fn new(first: u64) -> Self {
        let mut digest = Self(SPREAD);
        digest.add(first);
        digest
    }

    fn of(row: &Row) -> u64 {
        let mut digest = Self::new(row.sequence.0);
        let drafting = &row.drafting;
        let num_known = row.input_ids.len() as u64 - u64::from(drafting.num_drafts);
        for number in [row.start, row.slot.0, drafting.num_drafts] {
            digest.add(number.into());
        }
        for number in [drafting.num_pending, drafting.max_drafts] {
            digest.add(number.into());
        }
        digest.add(drafting.is_drafted.into());
        digest.add(num_known);
        for save in &row.saves {
            digest.add(save.at.into());
            digest.add(save.to.0.into());
        }
        match &row.sample {
            None => digest.add(0),
            Some(sample) => {
                digest.add(1 + u64::from(sample.choice));
                digest.add(sample.request.0);
                digest.add(sample.index.into());
            }
        }
        if let Some(scored) = &row.prompt_logprobs {
            digest.add(1 + u64::from(scored.top));
            digest.add(scored.targets.len() as u64);
        }
        // A table only grows while its sequence runs, by its end: what was looked at when it came is not
        // looked at again with every token.
        let table = &row.block_table;
        let news = if num_known == 1 { 2 } else { table.len() };
        digest.add(table.len() as u64);
        for block in &table[table.len().saturating_sub(news)..] {
            digest.add(block.0.into());
        }
        digest.finish()
    }

    fn op(&mut self, op: &StateOp) {
        let (kind, from, to) = match op {
            StateOp::ZeroSlot(slot) => (0, 0, slot.0),
            StateOp::CopySlot { from, to } => (1, from.0, to.0),
            StateOp::CopyBlock { from, to } => (2, from.0, to.0),
            StateOp::SlotToHost { from, to } => (3, from.0, to.0),
            StateOp::BlockToHost { from, to } => (4, from.0, to.0),
            StateOp::HostToSlot { from, to } => (5, from.0, to.0),
            StateOp::HostToBlock { from, to } => (6, from.0, to.0),
        };
        self.add(kind);
        self.add(u64::from(from) << 32 | u64::from(to));
    }

    fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(SPREAD);
    }

    fn finish(&self) -> u64 {
        let high = self.0 >> 32;
        (self.0 ^ high).wrapping_mul(SPREAD)
    }
}
