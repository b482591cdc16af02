//! Plan in, result out; decides nothing.

use std::sync::OnceLock;

use burn::tensor::Tensor;
use scheduler::{
    Row, RowFault, RowOutput, RowResult, Runner, SchedulerOutput, StepId, StepResult, TokenMask,
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
    in_flight: Option<InFlight>,
    /// Draws tokens; else computes its part of the logits and leaves the rest to rank 0.
    draws: bool,
}

/// Between `submit` and `collect`.
struct InFlight {
    step: StepId,
    rows: Vec<Row>,
    /// What the model made of them, unless the plan only moves memory.
    forward: Option<(Batch, Tensor<2>)>,
}

impl ModelRunner {
    pub(crate) fn new(model: NemotronH, cache: DeviceCache) -> Self {
        Self {
            model,
            cache,
            in_flight: None,
            draws: true,
        }
    }

    /// A rank that takes part in every step and answers none: its results have no rows.
    pub(crate) fn silent(mut self) -> Self {
        self.draws = false;
        self
    }

    /// The rows' outputs, in order. The head runs only where logits are needed, and reading logits is
    /// shared out by position.
    fn read_out(
        &self,
        rows: &[Row],
        masks: &[Option<TokenMask>],
        (batch, hidden): &(Batch, Tensor<2>),
    ) -> Vec<RowResult> {
        // Which row and which of its inputs each position belongs to.
        let owners: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .flat_map(|(row, plan)| batch::scored(plan).map(move |input| (row, input)))
            .collect();
        let mut outcomes: Vec<Result<RowOutput, RowFault>> =
            rows.iter().map(|_| Ok(RowOutput::default())).collect();
        let chunks = batch.positions.chunks(LOGIT_ROWS);
        for (positions, owners) in chunks.zip(owners.chunks(LOGIT_ROWS)) {
            let logits = self.model.logits(hidden, positions);
            let [num_positions, vocab_size] = logits.dims();
            let read: Vec<OnceLock<Result<RowOutput, RowFault>>> =
                owners.iter().map(|_| OnceLock::new()).collect();
            kernels::with_f32(&logits, |logits| {
                kernels::share(num_positions, logits.len(), |at| {
                    let (row, input) = owners[at];
                    let logits = &logits[at * vocab_size..][..vocab_size];
                    let outcome = read_position(&rows[row], mask(masks, row), input, logits);
                    read[at].set(outcome).expect("each position is read once");
                });
            });
            for (read, (row, _)) in read.into_iter().zip(owners) {
                append(
                    &mut outcomes[*row],
                    read.into_inner().expect("each position was read"),
                );
            }
        }
        rows.iter()
            .zip(outcomes)
            .map(|(row, outcome)| RowResult {
                sequence: row.sequence,
                outcome,
            })
            .collect()
    }
}

impl Runner for ModelRunner {
    type Error = EngineError;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        assert!(self.in_flight.is_none(), "one step in flight at most");
        self.cache.apply(&plan.ops);
        let batch = Batch::new(&plan.rows, self.cache.block_size);
        let forward = (!batch.ids.is_empty()).then(|| {
            let hidden = self.model.forward(&batch, &mut self.cache);
            (batch, hidden)
        });
        self.in_flight = Some(InFlight {
            step: plan.step,
            rows: plan.rows,
            forward,
        });
        Ok(())
    }

    fn collect(&mut self, masks: &[Option<TokenMask>]) -> Result<StepResult, EngineError> {
        let step = self.in_flight.take().expect("a step was submitted");
        let rows = step.forward.map(|forward| {
            if self.draws {
                return self.read_out(&step.rows, masks, &forward);
            }
            let (batch, hidden) = forward;
            // The same calls as those of rank 0, which waits for this part of each.
            for positions in batch.positions.chunks(LOGIT_ROWS) {
                self.model.logits(&hidden, positions);
            }
            Vec::new()
        });
        Ok(StepResult {
            step: step.step,
            rows: rows.unwrap_or_default(),
        })
    }
}

/// The mask of a row; rows beyond the end are free.
fn mask(masks: &[Option<TokenMask>], row: usize) -> Option<&TokenMask> {
    masks.get(row)?.as_ref()
}

/// What the logits at one input position of a row say.
fn read_position(
    row: &Row,
    mask: Option<&TokenMask>,
    input: usize,
    logits: &[f32],
) -> Result<RowOutput, RowFault> {
    let mut output = RowOutput::default();
    if let Some(prompt) = &row.prompt_logprobs
        && let Some(target) = prompt.targets.get(input)
    {
        let scored = sampler::logprobs(logits, *target, prompt.top)?;
        output.prompt_logprobs.push(scored);
    }
    if let Some(sample) = &row.sample
        && input + 1 == row.input_ids.len()
    {
        let token = sampler::sample(logits, sample, mask)?;
        output.tokens.push(token);
        if let Some(num_top) = sample.params.logprobs {
            let logprobs = sampler::logprobs(logits, token, num_top)?;
            output.logprobs.push(logprobs);
        }
    }
    Ok(output)
}

/// Adds what the next position said. After a fault the rest of the row is nobody's.
fn append(row: &mut Result<RowOutput, RowFault>, next: Result<RowOutput, RowFault>) {
    match (&mut *row, next) {
        (Err(_), _) => {}
        (Ok(_), Err(fault)) => *row = Err(fault),
        (Ok(row), Ok(next)) => {
            row.tokens.extend(next.tokens);
            row.logprobs.extend(next.logprobs);
            row.prompt_logprobs.extend(next.prompt_logprobs);
        }
    }
}
