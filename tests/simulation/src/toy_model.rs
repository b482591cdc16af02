//! A runner with pretend memory.

use std::convert::Infallible;

use scheduler::{
    BlockId, CacheConfig, Row, RowFault, RowOutput, RowResult, Runner, SchedulerOutput, StateOp,
    StepResult, TokenMask,
};

use crate::reference::{self, Poison};

/// What a slot of Mamba state would hold: all tokens absorbed, folded into a number.
#[derive(Clone, Copy, Debug)]
struct State {
    num_tokens: u32,
    story: u64,
    poisoned: bool,
}

/// Nothing that a sequence could have left.
const GARBAGE: State = State {
    num_tokens: u32::MAX,
    story: 0,
    poisoned: true,
};
/// No token.
const UNWRITTEN: u32 = u32::MAX;

/// Blocks that remember their tokens and slots that remember their story.
#[derive(Debug)]
pub struct ToyModel {
    block_size: usize,
    vocabulary: u32,
    poison: Poison,
    blocks: Vec<u32>,
    slots: Vec<State>,
    host_blocks: Vec<u32>,
    host_slots: Vec<State>,
    in_flight: Option<SchedulerOutput>,
}

impl ToyModel {
    /// Memory full of garbage.
    pub fn new(cache: &CacheConfig, vocabulary: u32, poison: Poison) -> Self {
        Self {
            block_size: cache.block_size as usize,
            vocabulary,
            poison,
            blocks: vec![UNWRITTEN; (cache.block_size * cache.num_blocks) as usize],
            slots: vec![GARBAGE; cache.num_slots as usize],
            host_blocks: vec![UNWRITTEN; (cache.block_size * cache.num_host_blocks) as usize],
            host_slots: vec![GARBAGE; cache.num_host_slots as usize],
            in_flight: None,
        }
    }

    fn apply(&mut self, op: StateOp) {
        match op {
            StateOp::ZeroSlot(slot) => {
                self.slots[slot.0 as usize] = State {
                    num_tokens: 0,
                    story: reference::BEGINNING,
                    poisoned: false,
                };
            }
            StateOp::CopySlot { from, to } => {
                assert_ne!(from, to, "a copy onto itself is wasted");
                self.slots[to.0 as usize] = self.slots[from.0 as usize];
            }
            StateOp::CopyBlock { from, to } => {
                assert_ne!(from, to, "a copy onto itself is wasted");
                let from = self.place(from, 0);
                let to = self.place(to, 0);
                self.blocks.copy_within(from..from + self.block_size, to);
            }
            StateOp::SlotToHost { from, to } => {
                self.host_slots[to.0 as usize] = self.slots[from.0 as usize];
            }
            StateOp::HostToSlot { from, to } => {
                self.slots[to.0 as usize] = self.host_slots[from.0 as usize];
            }
            StateOp::BlockToHost { from, to } => {
                let (from, to) = (self.place(from, 0), to.0 as usize * self.block_size);
                self.host_blocks[to..to + self.block_size]
                    .copy_from_slice(&self.blocks[from..from + self.block_size]);
            }
            StateOp::HostToBlock { from, to } => {
                let (from, to) = (from.0 as usize * self.block_size, self.place(to, 0));
                self.blocks[to..to + self.block_size]
                    .copy_from_slice(&self.host_blocks[from..from + self.block_size]);
            }
        }
    }

    fn run(&mut self, row: &Row) -> Result<RowOutput, RowFault> {
        let mut state = self.slots[row.slot.0 as usize];
        assert_eq!(
            state.num_tokens, row.start,
            "{:?}: the slot absorbed",
            row.sequence
        );
        let mut context = self.read(&row.block_table, row.start as usize);
        let story = context
            .iter()
            .fold(reference::BEGINNING, |story, &t| reference::tell(story, t));
        assert_eq!(
            state.story, story,
            "{:?}: blocks and slot tell the same story",
            row.sequence
        );

        let mut output = RowOutput::default();
        let targets = row
            .prompt_logprobs
            .as_ref()
            .map_or(&[][..], |scored| &scored.targets);
        for (i, &token) in row.input_ids.iter().enumerate() {
            let position = row.start as usize + i;
            let place = self.place(row.block_table[position / self.block_size], position);
            self.blocks[place] = token;
            context.push(token);
            state.num_tokens += 1;
            state.story = reference::tell(state.story, token);
            state.poisoned |= self.poison.spoils(state.story);
            if let Some(&target) = targets.get(i) {
                let top = row.prompt_logprobs.as_ref().expect("it has targets").top;
                output
                    .prompt_logprobs
                    .push(reference::score(state.story, target, top));
            }
        }
        self.slots[row.slot.0 as usize] = state;
        if state.poisoned && (row.sample.is_some() || self.poison.shows_at_once) {
            return Err(RowFault::BadLogits);
        }
        if let Some(sample) = &row.sample {
            let token = reference::draw(state.story, sample.seed, sample.index, self.vocabulary);
            output.tokens.push(token);
            let top = sample.params.logprobs;
            output
                .logprobs
                .extend(top.map(|top| reference::score(state.story, token, top)));
            assert_eq!(sample.history.is_some(), sample.params.needs_history());
            if let Some(history) = &sample.history {
                assert_eq!(history.generated.len() as u32, sample.index);
                assert!(
                    context
                        .iter()
                        .eq(history.prompt.iter().chain(&history.generated))
                );
            }
        }
        Ok(output)
    }

    fn read(&self, table: &[BlockId], num_tokens: usize) -> Vec<u32> {
        let token = |i: usize| self.blocks[self.place(table[i / self.block_size], i)];
        (0..num_tokens).map(token).collect()
    }

    fn place(&self, block: BlockId, position: usize) -> usize {
        block.0 as usize * self.block_size + position % self.block_size
    }
}

impl Runner for ToyModel {
    type Error = Infallible;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Infallible> {
        assert!(self.in_flight.is_none(), "one step at a time");
        self.in_flight = Some(plan);
        Ok(())
    }

    /// All the work happens here: what is freed too early is overwritten by then. Its tokens follow
    /// from the context alone, so it has no use for masks.
    fn collect(&mut self, _masks: &[Option<TokenMask>]) -> Result<StepResult, Infallible> {
        let plan = self.in_flight.take().expect("a step is in flight");
        for op in plan.ops {
            self.apply(op);
        }
        let run = |row: &Row| RowResult {
            sequence: row.sequence,
            outcome: self.run(row),
        };
        Ok(StepResult {
            step: plan.step,
            rows: plan.rows.iter().map(run).collect(),
        })
    }
}
