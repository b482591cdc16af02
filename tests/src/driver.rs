//! Plans by hand: drives a runner without a scheduler, so that a test decides what runs together.

use std::sync::Arc;

use scheduler::{
    BlockId, Drafting, PromptLogprobs, RequestId, Row, RowFault, RowOutput, Runner, Sample,
    SamplingParams, Save, SchedulerOutput, SequenceId, SlotId, StateOp, StepId, TokenLogprobs,
};

/// A runner and the memory it was given.
pub struct Driver<R> {
    runner: R,
    block_size: usize,
    free_blocks: Vec<BlockId>,
    free_slots: Vec<SlotId>,
    ops: Vec<StateOp>,
    steps: u64,
    sequences: u64,
}

/// A sequence in flight.
pub struct Line {
    id: SequenceId,
    /// Prompt and output so far.
    pub tokens: Vec<u32>,
    /// How many of them the runner has absorbed.
    pub num_computed: usize,
    blocks: Vec<BlockId>,
    slot: SlotId,
    /// Guesses at the tokens to come, for its next step: it then runs its last token and these.
    pub drafts: Vec<u32>,
    /// Of the tokens that the runner has absorbed, how many its slot has not.
    num_pending: u32,
    saves: Vec<Save>,
}

/// A line's state after some of its tokens.
#[derive(Clone, Copy)]
pub struct Saved {
    at: usize,
    slot: SlotId,
}

/// What a line does in a step.
pub struct Turn<'a> {
    /// Whose.
    pub line: &'a mut Line,
    /// How many tokens run.
    pub len: usize,
    /// How many alternatives each position is scored with. The last token of the line also
    /// samples, greedily.
    pub top: u32,
}

/// What a step said of one line: a distribution for every position that ran.
pub type Scores = Vec<TokenLogprobs>;

impl<R: Runner> Driver<R> {
    /// `num_blocks` and `num_slots` count the null ones, as the cache config does.
    pub fn new(runner: R, block_size: u32, num_blocks: u32, num_slots: u32) -> Self {
        Self {
            runner,
            block_size: block_size as usize,
            // Handed out from the back: tables run against the grain.
            free_blocks: (1..num_blocks).map(BlockId).collect(),
            free_slots: (1..num_slots).map(SlotId).collect(),
            ops: Vec::new(),
            steps: 0,
            sequences: 0,
        }
    }

    /// A new sequence, in a slot that may be dirty.
    pub fn start(&mut self, prompt: &[u32]) -> Line {
        let slot = self.free_slots.pop().expect("the test asked for slots");
        self.ops.push(StateOp::ZeroSlot(slot));
        self.line(prompt.to_vec(), 0, Vec::new(), slot)
    }

    /// A second sequence that goes on from where `line` is, as a prefix hit does.
    pub fn fork(&mut self, line: &Line) -> Line {
        let slot = self.free_slots.pop().expect("the test asked for slots");
        let from = line.slot;
        self.ops.push(StateOp::CopySlot { from, to: slot });
        let mut blocks = line.blocks.clone();
        if !line.num_computed.is_multiple_of(self.block_size) {
            let to = self.free_blocks.pop().expect("the test asked for blocks");
            let from = blocks.pop().expect("computed tokens lie in blocks");
            self.ops.push(StateOp::CopyBlock { from, to });
            blocks.push(to);
        }
        let mut fork = self.line(line.tokens.clone(), line.num_computed, blocks, slot);
        fork.num_pending = line.num_pending;
        fork
    }

    /// Goes on in another slot.
    pub fn relocate(&mut self, line: &mut Line) {
        let to = self.free_slots.pop().expect("the test asked for slots");
        let from = std::mem::replace(&mut line.slot, to);
        self.ops.push(StateOp::CopySlot { from, to });
        self.free_slots.push(from);
    }

    /// Has the line's next step save its state after `at` tokens.
    pub fn save(&mut self, line: &mut Line, at: usize) -> Saved {
        let slot = self.free_slots.pop().expect("the test asked for slots");
        line.saves.push(Save {
            at: at as u32,
            to: slot,
        });
        Saved { at, slot }
    }

    /// A second sequence that goes on from where `line` was when it was saved.
    pub fn resume(&mut self, line: &Line, saved: Saved) -> Line {
        let num_blocks = saved.at.div_ceil(self.block_size);
        let mut blocks = line.blocks[..num_blocks].to_vec();
        if !saved.at.is_multiple_of(self.block_size) {
            let to = self.free_blocks.pop().expect("the test asked for blocks");
            let from = blocks.pop().expect("computed tokens lie in blocks");
            self.ops.push(StateOp::CopyBlock { from, to });
            blocks.push(to);
        }
        self.line(line.tokens.clone(), saved.at, blocks, saved.slot)
    }

    /// Gives the line's memory back, as it is. Blocks shared with a fork must outlive it.
    pub fn finish(&mut self, line: Line) {
        self.free_blocks.extend(line.blocks);
        self.free_slots.push(line.slot);
    }

    /// Runs one step. Lines that reach their end gain the token they sampled.
    pub fn step(&mut self, turns: &mut [Turn<'_>]) -> Vec<Result<Scores, RowFault>> {
        // Rows of one token come first, as in the scheduler's plans.
        let mut order: Vec<usize> = (0..turns.len()).collect();
        order.sort_by_key(|i| (turns[*i].len > 1, *i));
        let rows = order.iter().map(|i| self.row(&mut turns[*i])).collect();
        let step = StepId(self.steps);
        self.steps += 1;
        let ops = std::mem::take(&mut self.ops);
        let plan = SchedulerOutput { step, ops, rows };
        let submitted = self.runner.submit(plan).map(|()| self.runner.collect(&[]));
        let result = match submitted {
            Ok(Ok(result)) => result,
            Ok(Err(error)) | Err(error) => panic!("the step failed: {error}"),
        };
        assert_eq!(result.step, step);
        assert_eq!(result.rows.len(), turns.len());
        let mut outcomes: Vec<_> = turns.iter().map(|_| Ok(Scores::new())).collect();
        for (i, row) in order.into_iter().zip(result.rows) {
            assert_eq!(row.sequence, turns[i].line.id);
            outcomes[i] = row
                .outcome
                .map(|output| turns[i].line.absorb(output, turns[i].len));
        }
        outcomes
    }

    fn line(
        &mut self,
        tokens: Vec<u32>,
        num_computed: usize,
        blocks: Vec<BlockId>,
        slot: SlotId,
    ) -> Line {
        self.sequences += 1;
        Line {
            id: SequenceId(self.sequences),
            tokens,
            num_computed,
            blocks,
            slot,
            drafts: Vec::new(),
            num_pending: 0,
            saves: Vec::new(),
        }
    }

    fn row(&mut self, turn: &mut Turn<'_>) -> Row {
        let line = &mut *turn.line;
        let end = line.num_computed + turn.len;
        assert!(turn.len > 0 && end <= line.tokens.len(), "nothing to run");
        let mut input_ids = line.tokens[line.num_computed..end].to_vec();
        input_ids.extend(&line.drafts);
        while line.blocks.len() * self.block_size < line.num_computed + input_ids.len() {
            let block = self.free_blocks.pop().expect("the test asked for blocks");
            line.blocks.push(block);
        }
        let samples = end == line.tokens.len();
        assert!(
            line.drafts.is_empty() || samples && turn.len == 1,
            "drafts follow the last token"
        );
        let last_target = if samples { end } else { end + 1 };
        let params = SamplingParams {
            logprobs: Some(turn.top),
            ..SamplingParams::default()
        };
        Row {
            sequence: line.id,
            input_ids,
            start: line.num_computed as u32,
            block_table: line.blocks.clone(),
            slot: line.slot,
            saves: std::mem::take(&mut line.saves),
            drafting: Drafting {
                num_drafts: line.drafts.len() as u32,
                num_pending: line.num_pending,
                ..Drafting::default()
            },
            sample: samples.then(|| Sample {
                request: RequestId(line.id.0),
                choice: 0,
                params: Arc::new(params),
                seed: 0,
                index: 0,
                history: None,
            }),
            prompt_logprobs: Some(PromptLogprobs {
                targets: line.tokens[line.num_computed + 1..last_target].to_vec(),
                top: turn.top,
            }),
        }
    }
}

impl Line {
    fn absorb(&mut self, output: RowOutput, len: usize) -> Scores {
        // A draft that came true has run.
        let len = match std::mem::take(&mut self.drafts).len() {
            0 => {
                self.num_pending = 0;
                len
            }
            num_drafts => {
                assert!((1..=num_drafts + 1).contains(&output.tokens.len()), "draws");
                self.num_pending = output.tokens.len() as u32;
                output.tokens.len()
            }
        };
        self.num_computed += len;
        let mut scores = output.prompt_logprobs;
        scores.extend(output.logprobs);
        assert_eq!(scores.len(), len, "one distribution per position");
        self.tokens.extend(output.tokens);
        scores
    }
}
