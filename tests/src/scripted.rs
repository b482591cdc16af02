//! A pretend model that says what a test tells it to.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use scheduler::{
    PromptLogprobs, Row, RowFault, RowMasks, RowOutput, RowResult, Runner, Sample, SchedulerOutput,
    SequenceId, StepResult, TokenLogprobs, TokenMask,
};

/// What the pretend model says; a test changes it while the engine runs.
#[derive(Default)]
pub struct Script {
    lines: Mutex<Lines>,
    changed: Condvar,
    /// Tokens before the first that each choice ran.
    num_skipped: AtomicU64,
}

#[derive(Clone, Default)]
struct Lines {
    /// A choice with seed `s` speaks the list `s % len`, then `end`.
    answers: Vec<Vec<u32>>,
    end: u32,
    vocab_size: u32,
    /// Sampling this many-th token of a choice goes wrong.
    fault_at: Option<u32>,
    /// Every step fails.
    fails: bool,
    /// No step ends.
    held: bool,
}

impl Script {
    /// Says nothing but `end`, until told more.
    pub fn new(end: u32, vocab_size: u32) -> Arc<Self> {
        let script = Self::default();
        script.change(|lines| {
            lines.answers = vec![Vec::new()];
            (lines.end, lines.vocab_size) = (end, vocab_size);
        });
        Arc::new(script)
    }

    /// From now on every choice says these tokens.
    pub fn say(&self, tokens: &[u32]) {
        self.say_by_seed(vec![tokens.to_vec()]);
    }

    /// From now on a choice with seed `s` says list `s % answers.len()`.
    pub fn say_by_seed(&self, answers: Vec<Vec<u32>>) {
        self.change(|lines| lines.answers = answers);
    }

    /// Sampling the token `index` of any choice finds bad logits.
    pub fn fault_at(&self, index: Option<u32>) {
        self.change(|lines| lines.fault_at = index);
    }

    /// The next step fails as a whole, which ends the engine.
    pub fn fail(&self) {
        self.change(|lines| lines.fails = true);
    }

    /// Whether steps wait.
    pub fn hold(&self, held: bool) {
        self.change(|lines| lines.held = held);
    }

    /// Tokens that never ran, because they were cached when their choice began: as the runner sees it,
    /// whatever anybody is told.
    pub fn num_skipped(&self) -> u64 {
        self.num_skipped.load(Ordering::Relaxed)
    }

    /// The runner that follows this script.
    pub fn runner(self: &Arc<Self>) -> ScriptedRunner {
        ScriptedRunner {
            script: Arc::clone(self),
            plan: None,
            begun: HashSet::new(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Lines)) {
        change(&mut self.lines.lock().expect("nobody panics in here"));
        self.changed.notify_all();
    }

    /// What holds now, once steps may run.
    fn lines(&self) -> Lines {
        let lines = self.lines.lock().expect("nobody panics in here");
        let free = self.changed.wait_while(lines, |lines| lines.held);
        free.expect("nobody panics in here").clone()
    }
}

/// Follows a [`Script`].
pub struct ScriptedRunner {
    script: Arc<Script>,
    plan: Option<SchedulerOutput>,
    begun: HashSet<SequenceId>,
}

/// The script says that a step fails.
#[derive(Debug)]
pub struct ScriptedFailure;

impl std::fmt::Display for ScriptedFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("scripted failure")
    }
}

impl std::error::Error for ScriptedFailure {}

impl Runner for ScriptedRunner {
    type Error = ScriptedFailure;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), ScriptedFailure> {
        self.plan = Some(plan);
        Ok(())
    }

    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, ScriptedFailure> {
        let lines = self.script.lines();
        if lines.fails {
            return Err(ScriptedFailure);
        }
        let plan = self.plan.take().expect("submit comes first");
        for row in &plan.rows {
            if self.begun.insert(row.sequence) {
                let num_skipped = &self.script.num_skipped;
                num_skipped.fetch_add(row.start.into(), Ordering::Relaxed);
            }
        }
        Ok(StepResult {
            step: plan.step,
            rows: (0..)
                .zip(&plan.rows)
                .map(|(at, row): (usize, _)| lines.play(row, RowMasks::of(masks, at)))
                .collect(),
        })
    }
}

impl Lines {
    fn play(&self, row: &Row, masks: &RowMasks) -> RowResult {
        let faulty = |sample: &Sample| self.fault_at == Some(sample.index);
        let outcome = match &row.sample {
            Some(sample) if faulty(sample) => Err(RowFault::BadLogits),
            _ => Ok(self.output(row, masks)),
        };
        RowResult {
            sequence: row.sequence,
            outcome,
        }
    }

    fn output(&self, row: &Row, masks: &RowMasks) -> RowOutput {
        let mut output = RowOutput::default();
        if let Some(sample) = &row.sample {
            self.draw(row, sample, masks, &mut output);
            let next = sample.index + output.tokens.len() as u32;
            let ahead = next..next + row.drafting.max_drafts;
            output.drafts = ahead.map(|index| self.guess(sample, index)).collect();
        }
        if let Some(PromptLogprobs { targets, top }) = &row.prompt_logprobs {
            let scores = targets.iter().map(|token| self.logprobs(*token, *top));
            output.prompt_logprobs.extend(scores);
        }
        output
    }

    /// One token, and one more behind each draft that comes true.
    fn draw(&self, row: &Row, sample: &Sample, masks: &RowMasks, output: &mut RowOutput) {
        let num_drafts = row.drafting.num_drafts as usize;
        let drafts = &row.input_ids[row.input_ids.len() - num_drafts..];
        for nth in 0..masks.num_drawing(1 + num_drafts) {
            let index = sample.index + nth as u32;
            // What goes wrong behind a draft is the next row's to tell.
            if nth > 0 && self.fault_at == Some(index) {
                return;
            }
            let token = obey(masks.get(nth), self.token(sample, index), self.end);
            output.tokens.push(token);
            let top = sample.params.logprobs;
            output
                .logprobs
                .extend(top.map(|top| self.logprobs(token, top)));
            if drafts.get(nth) != Some(&token) {
                return;
            }
        }
    }

    /// What will be said there, but for every fifth token.
    fn guess(&self, sample: &Sample, index: u32) -> u32 {
        let token = self.token(sample, index);
        (token + u32::from(index % 5 == 4)) % self.vocab_size
    }

    /// As a sampler would: bias forces, and no stop id comes too early.
    fn token(&self, sample: &Sample, index: u32) -> u32 {
        let params = &sample.params;
        if let Some((forced, _)) = params.logit_bias.iter().find(|(_, bias)| *bias >= 100.0) {
            return *forced;
        }
        let answer = &self.answers[(sample.seed % self.answers.len() as u64) as usize];
        let token = answer.get(index as usize).copied().unwrap_or(self.end);
        let ends = params.stop_token_ids.contains(&token);
        if token == self.end && (!ends || index < params.min_tokens) {
            // Anything readable, for as long as it must go on.
            return answer.first().copied().unwrap_or(self.vocab_size - 1);
        }
        token
    }

    /// Even ids are their own best; odd ones are not among the alternatives.
    fn logprobs(&self, token: u32, top: u32) -> TokenLogprobs {
        let first = token + token % 2;
        let alternative = |rank: u32| ((first + rank) % self.vocab_size, -0.5 - rank as f32);
        TokenLogprobs {
            token,
            logprob: if token.is_multiple_of(2) {
                -0.5
            } else {
                -100.0
            },
            top: (0..top).map(alternative).collect(),
        }
    }
}

/// The token that was meant if the mask allows it, else the lowest that it does allow, ending only if
/// nothing else is left.
pub(crate) fn obey(mask: Option<&TokenMask>, meant: u32, end: u32) -> u32 {
    let Some(mask) = mask.filter(|mask| !mask.allows(meant)) else {
        return meant;
    };
    let mut others = mask.iter().filter(|token| *token != end);
    others.next().unwrap_or(end)
}
