//! A runner with pretend memory.

use std::convert::Infallible;

use scheduler::{
    BlockId, CacheConfig, Row, RowFault, RowMasks, RowOutput, RowResult, Runner, Sample, Save,
    SchedulerOutput, StateOp, StepResult,
};

use crate::reference::{self, Poison};

/// What a slot holds.
#[derive(Clone, Debug)]
struct Slot {
    state: State,
    /// Tokens whose inputs lie beside the state: those of the last row, if it had drafts.
    ring: Vec<u32>,
}

/// What Mamba state would be: all tokens absorbed, folded into a number.
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
/// What a block holds of one position.
#[derive(Clone, Copy, Debug)]
struct Place {
    token: u32,
    /// What the draft block has seen there: the story up to the token.
    seen: u64,
}

/// No token.
const UNWRITTEN: Place = Place {
    token: u32::MAX,
    seen: 0,
};

/// How well the model guesses.
#[derive(Clone, Copy, Debug)]
pub struct Guessing {
    /// Right so many times in a hundred.
    pub percent: u64,
    /// Where it is right.
    pub seed: u64,
}

/// Blocks that remember their tokens and slots that remember their story.
#[derive(Debug)]
pub struct ToyModel {
    block_size: usize,
    vocabulary: u32,
    poison: Poison,
    guessing: Guessing,
    blocks: Vec<Place>,
    slots: Vec<Slot>,
    host_blocks: Vec<Place>,
    host_slots: Vec<Slot>,
    in_flight: Option<SchedulerOutput>,
}

impl ToyModel {
    /// Memory full of garbage.
    pub fn new(cache: &CacheConfig, vocabulary: u32, poison: Poison, guessing: Guessing) -> Self {
        let slot = Slot {
            state: GARBAGE,
            ring: Vec::new(),
        };
        Self {
            block_size: cache.block_size as usize,
            vocabulary,
            poison,
            guessing,
            blocks: vec![UNWRITTEN; (cache.block_size * cache.num_blocks) as usize],
            slots: vec![slot.clone(); cache.num_slots as usize],
            host_blocks: vec![UNWRITTEN; (cache.block_size * cache.num_host_blocks) as usize],
            host_slots: vec![slot; cache.num_host_slots as usize],
            in_flight: None,
        }
    }

    fn apply(&mut self, op: StateOp) {
        match op {
            StateOp::ZeroSlot(slot) => {
                self.slots[slot.0 as usize] = Slot {
                    state: State {
                        num_tokens: 0,
                        story: reference::BEGINNING,
                        poisoned: false,
                    },
                    ring: Vec::new(),
                };
            }
            StateOp::CopySlot { from, to } => {
                assert_ne!(from, to, "a copy onto itself is wasted");
                self.slots[to.0 as usize] = self.slots[from.0 as usize].clone();
            }
            StateOp::CopyBlock { from, to } => {
                assert_ne!(from, to, "a copy onto itself is wasted");
                let from = self.place(from, 0);
                let to = self.place(to, 0);
                self.blocks.copy_within(from..from + self.block_size, to);
            }
            StateOp::SlotToHost { from, to } => {
                self.host_slots[to.0 as usize] = self.slots[from.0 as usize].clone();
            }
            StateOp::HostToSlot { from, to } => {
                self.slots[to.0 as usize] = self.host_slots[from.0 as usize].clone();
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
        let mut state = self.committed(row);
        let drafting = &row.drafting;
        let num_drafts = drafting.num_drafts as usize;
        let num_known = row.input_ids.len() - num_drafts;
        if drafting.is_drafted {
            let place = self.place_of(row, row.start);
            let seen = reference::tell(state.story, row.input_ids[0]);
            assert_eq!(self.blocks[place].seen, seen, "{:?}: drafted", row.sequence);
        }
        let mut output = RowOutput::default();
        self.slots[row.slot.0 as usize] = Slot {
            state,
            ring: row.input_ids.clone(),
        };
        for (i, &token) in row.input_ids.iter().enumerate() {
            let place = self.place_of(row, row.start + i as u32);
            self.blocks[place].token = token;
        }
        for (i, &token) in row.input_ids[..num_known].iter().enumerate() {
            state.absorb(token, self.poison);
            self.see(row, state);
            score(row, i, state.story, &mut output);
            let is_here = |save: &&Save| save.at == state.num_tokens;
            for save in row.saves.iter().filter(is_here) {
                let ring = Vec::new();
                self.slots[save.to.0 as usize] = Slot { state, ring };
            }
        }
        if num_drafts == 0 {
            self.slots[row.slot.0 as usize] = Slot {
                state,
                ring: Vec::new(),
            };
        }
        if state.poisoned && (row.sample.is_some() || self.poison.shows_at_once) {
            return Err(RowFault::BadLogits);
        }
        if let Some(sample) = &row.sample {
            self.check_history(row, sample, num_known);
            for nth in 0..=num_drafts {
                // What goes wrong behind a draft is the next row's to tell.
                if state.poisoned {
                    break;
                }
                let token = self.draw(state, sample, output.tokens.len() as u32);
                output.tokens.push(token);
                let top = sample.params.logprobs;
                output
                    .logprobs
                    .extend(top.map(|top| reference::score(state.story, token, top)));
                if row.input_ids.get(num_known + nth) != Some(&token) {
                    break;
                }
                state.absorb(token, self.poison);
                self.see(row, state);
            }
            output.drafts = self.guess(row, sample, state, &output.tokens);
        }
        Ok(output)
    }

    /// The state before the row's first token, after absorbing what is pending. Blocks tell the same
    /// story.
    fn committed(&self, row: &Row) -> State {
        let Slot { mut state, ring } = self.slots[row.slot.0 as usize].clone();
        for &token in &ring[..row.drafting.num_pending as usize] {
            state.absorb(token, self.poison);
        }
        assert_eq!(
            state.num_tokens, row.start,
            "{:?}: the slot absorbed",
            row.sequence
        );
        let context = self.read(&row.block_table, row.start as usize);
        let story = context
            .iter()
            .fold(reference::BEGINNING, |story, &t| reference::tell(story, t));
        assert_eq!(
            state.story, story,
            "{:?}: blocks and slot tell the same story",
            row.sequence
        );
        state
    }

    /// The draft block reads the last token that `state` absorbed, if the row lets it.
    fn see(&mut self, row: &Row, state: State) {
        if row.drafting.max_drafts > 0 {
            let place = self.place_of(row, state.num_tokens - 1);
            self.blocks[place].seen = state.story;
        }
    }

    fn check_history(&self, row: &Row, sample: &Sample, num_known: usize) {
        assert_eq!(sample.history.is_some(), sample.params.needs_history());
        if let Some(history) = &sample.history {
            assert_eq!(history.generated.len() as u32, sample.index);
            let context = self.read(&row.block_table, row.start as usize + num_known);
            assert!(
                context
                    .iter()
                    .eq(history.prompt.iter().chain(&history.generated))
            );
        }
    }

    fn draw(&self, state: State, sample: &Sample, nth: u32) -> u32 {
        let index = sample.index + nth;
        reference::draw(state.story, sample.seed, index, self.vocabulary)
    }

    /// Guesses at what follows `tokens`, of which `state` has not absorbed the last. Scribbles on all
    /// positions that the table should cover.
    fn guess(&mut self, row: &Row, sample: &Sample, mut state: State, tokens: &[u32]) -> Vec<u32> {
        let (Some(&last), true) = (tokens.last(), row.drafting.max_drafts > 0) else {
            return Vec::new();
        };
        let end = row.start + row.input_ids.len() as u32;
        for position in end..end + row.drafting.max_drafts {
            let place = self.place_of(row, position);
            self.blocks[place] = UNWRITTEN;
        }
        state.absorb(last, self.poison);
        self.see(row, state);
        let mut drafts = Vec::new();
        for nth in 0..row.drafting.max_drafts {
            let chance = reference::mix_of(self.guessing.seed, state.story);
            // Now and then it has no idea.
            if chance.is_multiple_of(97) {
                break;
            }
            let truth = self.draw(state, sample, tokens.len() as u32 + nth);
            let is_right = chance / 97 % 100 < self.guessing.percent;
            let draft = (truth + u32::from(!is_right)) % self.vocabulary;
            drafts.push(draft);
            state.absorb(draft, self.poison);
        }
        drafts
    }

    fn place_of(&self, row: &Row, position: u32) -> usize {
        let position = position as usize;
        self.place(row.block_table[position / self.block_size], position)
    }

    fn read(&self, table: &[BlockId], num_tokens: usize) -> Vec<u32> {
        let token = |i: usize| self.blocks[self.place(table[i / self.block_size], i)].token;
        (0..num_tokens).map(token).collect()
    }

    fn place(&self, block: BlockId, position: usize) -> usize {
        block.0 as usize * self.block_size + position % self.block_size
    }
}

/// Scores the prompt token behind the row's `i`th, if that is asked for.
fn score(row: &Row, i: usize, story: u64, output: &mut RowOutput) {
    let Some(scored) = &row.prompt_logprobs else {
        return;
    };
    if let Some(&target) = scored.targets.get(i) {
        output
            .prompt_logprobs
            .push(reference::score(story, target, scored.top));
    }
}

impl State {
    fn absorb(&mut self, token: u32, poison: Poison) {
        self.num_tokens += 1;
        self.story = reference::tell(self.story, token);
        self.poisoned |= poison.spoils(self.story);
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
    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, Infallible> {
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
