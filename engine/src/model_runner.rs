//! Plan in, result out; decides nothing.

use burn::tensor::Tensor;
use scheduler::{
    Row, RowFault, RowOutput, RowResult, Runner, SchedulerOutput, StepResult, TokenLogprobs,
};

use crate::batch::{self, Batch};
use crate::cache::DeviceCache;
use crate::error::EngineError;
use crate::model::nemotron_h::NemotronH;
use crate::sampler;

/// Positions whose logits are computed at once: a row of logits of a large vocabulary is half a
/// megabyte, and scoring a long prompt needs thousands.
const LOGIT_ROWS: usize = 64;

/// The model with its caches.
pub(crate) struct ModelRunner {
    model: NemotronH,
    cache: DeviceCache,
    /// Between `submit` and `collect`.
    result: Option<StepResult>,
}

impl ModelRunner {
    pub(crate) fn new(model: NemotronH, cache: DeviceCache) -> Self {
        Self {
            model,
            cache,
            result: None,
        }
    }

    /// The rows' outputs, in order. The head runs only where logits are needed.
    fn read_out(&self, rows: &[Row], batch: &Batch, hidden: &Tensor<2>) -> Vec<RowResult> {
        // Which row and which of its inputs each position belongs to.
        let mut wanted = rows
            .iter()
            .enumerate()
            .flat_map(|(row, plan)| batch::scored(plan).map(move |input| (row, input)));
        let mut readers: Vec<Reader<'_>> = rows.iter().map(Reader::new).collect();
        for chunk in batch.positions.chunks(LOGIT_ROWS) {
            let logits = self.model.logits(hidden, chunk);
            let [_, vocab_size] = logits.dims();
            kernels::with_f32(&logits, |logits| {
                for logits in logits.chunks_exact(vocab_size) {
                    let (row, input) = wanted.next().expect("one reader per position");
                    readers[row].read(input, logits);
                }
            });
        }
        readers.into_iter().map(Reader::finish).collect()
    }
}

impl Runner for ModelRunner {
    type Error = EngineError;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        assert!(self.result.is_none(), "one step in flight at most");
        self.cache.apply(&plan.ops);
        let batch = Batch::new(&plan.rows, self.cache.block_size);
        let rows = if batch.ids.is_empty() {
            Vec::new()
        } else {
            let hidden = self.model.forward(&batch, &mut self.cache);
            self.read_out(&plan.rows, &batch, &hidden)
        };
        self.result = Some(StepResult {
            step: plan.step,
            rows,
        });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepResult, EngineError> {
        Ok(self.result.take().expect("a step was submitted"))
    }
}

/// Gathers one row's output from its logits, position by position.
struct Reader<'a> {
    row: &'a Row,
    outcome: Result<RowOutput, RowFault>,
}

impl<'a> Reader<'a> {
    fn new(row: &'a Row) -> Self {
        Self {
            row,
            outcome: Ok(RowOutput::default()),
        }
    }

    /// Takes the logits at one input position. After a fault the rest of the row is nobody's.
    fn read(&mut self, input: usize, logits: &[f32]) {
        if let Ok(output) = &mut self.outcome
            && let Err(fault) = read_position(self.row, input, logits, output)
        {
            self.outcome = Err(fault);
        }
    }

    fn finish(self) -> RowResult {
        RowResult {
            sequence: self.row.sequence,
            outcome: self.outcome,
        }
    }
}

fn read_position(
    row: &Row,
    input: usize,
    logits: &[f32],
    output: &mut RowOutput,
) -> Result<(), RowFault> {
    if let Some(prompt) = &row.prompt_logprobs
        && let Some(target) = prompt.targets.get(input)
    {
        let scored: TokenLogprobs = sampler::logprobs(logits, *target, prompt.top)?;
        output.prompt_logprobs.push(scored);
    }
    if let Some(sample) = &row.sample
        && input + 1 == row.input_ids.len()
    {
        let token = sampler::sample(logits, sample)?;
        output.tokens.push(token);
        if let Some(num_top) = sample.params.logprobs {
            output
                .logprobs
                .push(sampler::logprobs(logits, token, num_top)?);
        }
    }
    Ok(())
}
