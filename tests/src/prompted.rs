//! A pretend model whose answer depends on the prompt, so that unmodified clients can be led through
//! whole conversations.
//!
//! It knows its context only through the plan: every block remembers the tokens written to it, so a
//! prefix that comes from the cache is read back from there.

use std::collections::HashMap;
use std::time::Duration;

use scheduler::{
    BlockId, PromptLogprobs, Row, RowMasks, RowOutput, RowResult, Runner, Sample, SchedulerOutput,
    SequenceId, StateOp, StepResult, TokenLogprobs, TokenMask,
};

use crate::scripted::obey;

/// What to say after a prompt: called once per choice, before its first token.
pub trait Author: Send + 'static {
    /// The whole answer, without the end token.
    fn answer(&mut self, prompt: &[u32]) -> Vec<u32>;
}

impl<F: FnMut(&[u32]) -> Vec<u32> + Send + 'static> Author for F {
    fn answer(&mut self, prompt: &[u32]) -> Vec<u32> {
        self(prompt)
    }
}

/// Says what its author writes.
pub struct PromptedRunner<A> {
    author: A,
    end: u32,
    vocab_size: u32,
    block_size: usize,
    /// By block: the tokens written to it.
    blocks: Vec<Vec<u32>>,
    answers: HashMap<SequenceId, Vec<u32>>,
    plan: Option<SchedulerOutput>,
    /// How long a step takes.
    step_time: Duration,
}

impl<A: Author> PromptedRunner<A> {
    /// `num_blocks` counts the null one, as the cache config does. Answers close with `end`.
    pub fn new(author: A, end: u32, vocab_size: u32, block_size: u32, num_blocks: u32) -> Self {
        Self {
            author,
            end,
            vocab_size,
            block_size: block_size as usize,
            blocks: vec![Vec::new(); num_blocks as usize],
            answers: HashMap::new(),
            plan: None,
            step_time: Duration::ZERO,
        }
    }

    /// Steps take this long, as those of a real model do.
    #[must_use]
    pub fn paced(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    fn apply(&mut self, op: StateOp) {
        // Slots hold nothing here: the blocks know the whole context.
        if let StateOp::CopyBlock { from, to } = op {
            self.blocks[to.0 as usize] = self.blocks[from.0 as usize].clone();
        }
    }

    fn play(&mut self, row: &Row, mask: Option<&TokenMask>) -> RowOutput {
        self.remember(row);
        let mut output = RowOutput::default();
        if let Some(PromptLogprobs { targets, top }) = &row.prompt_logprobs {
            let scores = row.input_ids.iter().zip(targets);
            output.prompt_logprobs = scores
                .map(|(before, token)| self.score(*before, *token, *top))
                .collect();
        }
        if let Some(sample) = &row.sample {
            let token = obey(mask, self.token(row, sample), self.end);
            output.tokens.push(token);
            let before = *row.input_ids.last().expect("a row has tokens");
            let top = sample.params.logprobs;
            output
                .logprobs
                .extend(top.map(|top| self.score(before, token, top)));
        }
        output
    }

    /// Writes the row's tokens where its table says.
    fn remember(&mut self, row: &Row) {
        for (position, token) in (row.start as usize..).zip(&row.input_ids) {
            let BlockId(block) = row.block_table[position / self.block_size];
            let block = &mut self.blocks[block as usize];
            block.truncate(position % self.block_size);
            block.push(*token);
        }
    }

    /// Reads the first `len` positions back.
    fn context(&self, row: &Row, len: usize) -> Vec<u32> {
        let blocks = row
            .block_table
            .iter()
            .map(|BlockId(id)| &self.blocks[*id as usize]);
        let context: Vec<u32> = blocks.flatten().copied().take(len).collect();
        assert_eq!(context.len(), len, "a block lost tokens");
        context
    }

    fn token(&mut self, row: &Row, sample: &Sample) -> u32 {
        let prompt_len = row.start as usize + row.input_ids.len() - sample.index as usize;
        if sample.index == 0 || !self.answers.contains_key(&row.sequence) {
            let answer = self.author.answer(&self.context(row, prompt_len));
            self.answers.insert(row.sequence, answer);
        }
        let next = self.answers[&row.sequence].get(sample.index as usize);
        let params = &sample.params;
        match next {
            Some(token) => *token,
            None if params.stop_token_ids.contains(&self.end)
                && sample.index >= params.min_tokens =>
            {
                self.answers.remove(&row.sequence);
                self.end
            }
            // It must go on: anything readable will do.
            None => self.vocab_size / 2 + sample.index % 64,
        }
    }

    /// A log-probability that depends on both tokens and nothing else; every token is its own best.
    fn score(&self, before: u32, token: u32, top: u32) -> TokenLogprobs {
        let depth = (before.wrapping_mul(31).wrapping_add(token) % 97 + 1) as f32 / 32.0;
        let alternative =
            |rank: u32| ((token + rank) % self.vocab_size, -depth - rank as f32 * 0.5);
        TokenLogprobs {
            token,
            logprob: -depth,
            top: (0..top).map(alternative).collect(),
        }
    }
}

/// Nothing here fails.
#[derive(Debug)]
pub enum Never {}

impl std::fmt::Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

impl<A: Author> Runner for PromptedRunner<A> {
    type Error = Never;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Never> {
        self.plan = Some(plan);
        Ok(())
    }

    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, Never> {
        std::thread::sleep(self.step_time);
        let plan = self.plan.take().expect("submit comes first");
        for op in plan.ops {
            self.apply(op);
        }
        let rows = plan.rows.iter().enumerate().map(|(at, row)| RowResult {
            sequence: row.sequence,
            outcome: Ok(self.play(row, RowMasks::of(masks, at).get(0))),
        });
        Ok(StepResult {
            step: plan.step,
            rows: rows.collect(),
        })
    }
}
