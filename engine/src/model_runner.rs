//! Plan in, result out; decides nothing.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use scheduler::{
    BlockId, Drafting, RequestId, Row, RowFault, RowOutput, RowResult, Runner, Sample,
    SchedulerOutput, SequenceId, SlotId, StateOp, StepId, StepResult, TokenMask,
};

use crate::batch::{self, Batch};
use crate::cache::DeviceCache;
use crate::decode::DecodeGraphs;
use crate::error::EngineError;
use crate::model::nemotron_h::{self, NemotronH};
use crate::sampler;

/// Positions whose logits are computed at once: a row of logits of a large vocabulary is half a
/// megabyte, and scoring a long prompt needs thousands.
pub(crate) const LOGIT_ROWS: usize = 64;

/// The model with its caches.
pub(crate) struct ModelRunner {
    model: NemotronH,
    cache: DeviceCache,
    /// Steps to run before the first plan, by their number of rows and tokens in each.
    warm_ups: Vec<(u32, u32)>,
    /// `None`: every step is launched kernel by kernel.
    graphs: Option<DecodeGraphs>,
    in_flight: Option<InFlight>,
    /// Draws tokens; else computes its part of the logits and leaves the rest to rank 0.
    draws: bool,
}

/// Between `submit` and `collect`.
struct InFlight {
    step: StepId,
    rows: Vec<Row>,
    /// What the model made of them, unless the plan only moves memory.
    forward: Option<(Batch, Forward)>,
}

/// How far the model has come with a step.
enum Forward {
    /// Hidden states of all positions, `[T, H]`.
    Hidden(Tensor<2>),
    /// Logits of all positions, `[T, V]`, from a recorded step.
    Logits(Tensor<2>),
}

impl ModelRunner {
    pub(crate) fn new(
        model: NemotronH,
        cache: DeviceCache,
        warm_ups: Vec<(u32, u32)>,
        graphs: Option<DecodeGraphs>,
    ) -> Self {
        Self {
            model,
            cache,
            warm_ups,
            graphs,
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
        (batch, forward): &(Batch, Forward),
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
            let logits = match forward {
                Forward::Hidden(hidden) => self.model.logits(hidden, positions),
                Forward::Logits(logits) => nemotron_h::select(logits, positions),
            };
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

    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), EngineError> {
        let shapes = std::mem::take(&mut self.warm_ups);
        for (num_done, (num_rows, len)) in (0..).zip(&shapes) {
            tell(num_done, shapes.len() as u32);
            let step = padding_step(*num_rows, *len, self.cache.block_size as u32);
            let slots = step.rows.iter().map(|row| StateOp::ZeroSlot(row.slot));
            let afterwards = SchedulerOutput {
                step: step.step,
                ops: slots.collect(),
                rows: Vec::new(),
            };
            for plan in [step, afterwards] {
                self.submit(plan)?;
                // What is drawn from garbage, and whether it can be, is of no interest.
                self.collect(&[])?;
            }
        }
        if !shapes.is_empty() {
            tell(shapes.len() as u32, shapes.len() as u32);
        }
        Ok(())
    }

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        assert!(self.in_flight.is_none(), "one step in flight at most");
        self.cache.apply(&plan.ops);
        let batch = Batch::new(&plan.rows, self.cache.block_size);
        let forward = if plan.rows.is_empty() {
            None
        } else {
            let recorded = match &mut self.graphs {
                None => None,
                Some(graphs) => graphs.logits(&batch, &self.model, &mut self.cache)?,
            };
            let forward = recorded.map_or_else(
                || {
                    let (ids, layout) = (&batch.ids, &batch.layout);
                    Forward::Hidden(self.model.forward(ids, layout, &mut self.cache))
                },
                Forward::Logits,
            );
            Some((batch, forward))
        };
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
            // The same calls as those of rank 0, which waits for this part of each. Ranks record
            // nothing.
            if let (batch, Forward::Hidden(hidden)) = forward {
                for positions in batch.positions.chunks(LOGIT_ROWS) {
                    self.model.logits(&hidden, positions);
                }
            }
            Vec::new()
        });
        Ok(StepResult {
            step: step.step,
            rows: rows.unwrap_or_default(),
        })
    }
}

/// A step of which nothing stays: all rows write to the padding block, and each to a slot that must be
/// zeroed behind it. For a time when no slot has an owner; rows of one step may not share one.
fn padding_step(num_rows: u32, len: u32, block_size: u32) -> SchedulerOutput {
    let row = |at: u32| Row {
        sequence: SequenceId(at.into()),
        input_ids: vec![0; len as usize],
        start: 0,
        block_table: vec![BlockId(0); len.div_ceil(block_size) as usize],
        slot: SlotId(at + 1),
        saves: Vec::new(),
        drafting: Drafting::default(),
        sample: Some(Sample {
            request: RequestId(at.into()),
            choice: 0,
            params: Arc::default(),
            seed: 0,
            index: 0,
            history: None,
        }),
        prompt_logprobs: None,
    };
    let rows: Vec<Row> = (0..num_rows).map(row).collect();
    SchedulerOutput {
        step: StepId(0),
        ops: rows.iter().map(|row| StateOp::ZeroSlot(row.slot)).collect(),
        rows,
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

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use kernels::{KvFormat, KvTensor};
    use scheduler::CacheConfig;

    use super::*;
    use crate::buckets::decode_buckets;
    use crate::cache::KvScales;
    use crate::engine_core::LoadProgress;
    use crate::model::ModelConfig;
    use crate::model::load::Loader;
    use crate::model::weights;

    const CONFIG: &str = r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "M*E-",
        "hidden_size": 32, "vocab_size": 50, "max_position_embeddings": 100,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16, "n_shared_experts": 1, "intermediate_size": 24}"#;

    fn runner(warm_ups: Vec<(u32, u32)>) -> ModelRunner {
        let device = burn::tensor::Device::flex();
        let config = ModelConfig::parse(CONFIG, "config.json".as_ref()).expect("it is good");
        let (weights, _) = weights::invent(&config, 3).expect("it is plain");
        let progress = LoadProgress::unwatched();
        let mut loader = Loader::new(device.clone(), kernels::Arithmetic::F32, 1, progress, 0);
        let model = NemotronH::load(&weights, &config, None, &mut loader);
        let cache = CacheConfig {
            block_size: 4,
            num_blocks: 6,
            num_slots: 7,
            num_host_slots: 0,
            num_host_blocks: 0,
            blocks_per_slot: 1,
        };
        let scales = [KvScales::default()];
        let cache = DeviceCache::new(&config, &cache, 0, KvFormat::F32, &scales, &device);
        ModelRunner::new(model, cache, warm_ups, None)
    }

    /// Everything cached but the padding block.
    fn contents(runner: &mut ModelRunner) -> Vec<f32> {
        fn all<const D: usize>(tensor: &Tensor<D>, skip: usize, into: &mut Vec<f32>) {
            kernels::with_f32(tensor, |values| into.extend(&values[skip..]));
        }
        let mut contents = Vec::new();
        runner.cache.with_blocks(0, |pool| {
            for side in [&pool.keys, &pool.values] {
                let KvTensor::Float(side) = side else {
                    unreachable!("the format was chosen above");
                };
                all(side, side.dims()[1..].iter().product(), &mut contents);
            }
            ((), pool)
        });
        runner.cache.with_states(0, |pool| {
            all(&pool.conv, 0, &mut contents);
            all(&pool.ssm, 0, &mut contents);
            ((), pool)
        });
        contents
    }

    #[test]
    fn warming_up_leaves_nothing_behind() {
        let decodes = decode_buckets(6).into_iter().map(|num_rows| (num_rows, 1));
        let shapes: Vec<(u32, u32)> = decodes.chain([(1, 9)]).collect();
        let mut runner = runner(shapes);
        let before = contents(&mut runner);
        let mut told = Vec::new();
        let Ok(()) = runner.warm_up(&mut |done, total| told.push((done, total))) else {
            panic!("nothing can fail here");
        };
        assert_eq!(told, [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
        assert_eq!(contents(&mut runner), before);
        // Once is enough.
        runner
            .warm_up(&mut |_, _| panic!("it is warm"))
            .expect("nothing can fail here");
    }

    #[test]
    fn a_step_of_padding_does_run() {
        let mut runner = runner(Vec::new());
        let before = contents(&mut runner);
        runner.submit(padding_step(3, 1, 4)).expect("it runs");
        let result = runner.collect(&[]).expect("it ran");
        let drawn = |row: &RowResult| row.outcome.as_ref().is_ok_and(|row| row.tokens.len() == 1);
        assert!(result.rows.len() == 3 && result.rows.iter().all(drawn));
        assert_ne!(contents(&mut runner), before, "slots were written to");
    }
}
