//! Plan in, result out; decides nothing.

mod timing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use scheduler::{
    BlockId, Drafting, RequestId, Row, RowFault, RowMasks, RowOutput, RowResult, Runner, Sample,
    SamplingParams, SchedulerOutput, SequenceId, SlotId, StateOp, StepId, StepResult, StepTime,
};

use crate::batch::{self, Batch};
use crate::cache::DeviceCache;
use crate::decode::DecodeGraphs;
use crate::error::EngineError;
use crate::guess::{self, Hidden};
use crate::model::nemotron_h::NemotronH;
use crate::read_out::{Position, logits_at_once, read_out};
use crate::verify::{self, Draws};

use self::timing::Stopwatch;

/// The model with its caches.
pub(crate) struct ModelRunner {
    model: NemotronH,
    cache: DeviceCache,
    /// Steps to run before the first plan.
    warm_ups: Vec<WarmUp>,
    /// `None`: every step is launched kernel by kernel.
    graphs: Option<DecodeGraphs>,
    in_flight: Option<InFlight>,
    /// The share of drafts that come true by chance. `None`, but where only time matters: those that are
    /// the tokens drawn.
    synthetic_acceptance: Option<f64>,
    /// How long steps took, for whoever weighs drafts.
    times: Vec<StepTime>,
    /// Draws tokens; else computes its part of the logits and leaves the rest to rank 0.
    draws: bool,
}

/// Between `submit` and `collect`.
struct InFlight {
    step: StepId,
    rows: Vec<Row>,
    stopwatch: Stopwatch,
    /// What the model made of them, unless the plan only moves memory.
    forward: Option<(Batch, Hidden)>,
}

/// A step to run before the first plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WarmUp {
    pub(crate) num_rows: u32,
    /// Tokens of each row.
    pub(crate) len: u32,
    /// Blocks of each row, if more than the tokens need.
    pub(crate) num_blocks: usize,
    /// What of it are drafts, how many each row makes, and how many come before it.
    pub(crate) drafting: Drafting,
    /// How rows draw.
    pub(crate) params: SamplingParams,
    /// Whether only its recording matters: it is left out where nothing is recorded.
    pub(crate) is_recording: bool,
    /// Whether how long it takes is of interest: it is run several times, or not at all once timing has
    /// taken too long.
    pub(crate) is_timed: bool,
}

impl ModelRunner {
    pub(crate) fn new(
        model: NemotronH,
        cache: DeviceCache,
        warm_ups: Vec<WarmUp>,
        graphs: Option<DecodeGraphs>,
    ) -> Self {
        Self {
            model,
            cache,
            warm_ups,
            graphs,
            in_flight: None,
            synthetic_acceptance: None,
            times: Vec::new(),
            draws: true,
        }
    }

    #[cfg(all(test, feature = "vulkan"))]
    pub(crate) fn graphs(&self) -> Option<&DecodeGraphs> {
        self.graphs.as_ref()
    }

    /// Has drafts come true by a seeded coin, for benches.
    pub(crate) fn accepting(mut self, share: Option<f64>) -> Self {
        self.synthetic_acceptance = share;
        self
    }

    /// A rank that takes part in every step and answers none: its results have no rows.
    pub(crate) fn silent(mut self) -> Self {
        self.draws = false;
        self
    }

    /// The rows' outputs, in order. The head runs only where logits are needed.
    fn read_out(
        &self,
        rows: &[Row],
        masks: &[RowMasks],
        (batch, hidden): (&Batch, &Tensor<2>),
    ) -> Vec<Result<RowOutput, RowFault>> {
        let masks = |at| RowMasks::of(masks, at);
        let draws: Vec<Draws<'_>> = rows
            .iter()
            .enumerate()
            .map(|(at, row)| verify::draws(row, masks(at)))
            .collect();
        // Which row each position belongs to, its draw, and what is wanted there.
        let (owners, wanted): (Vec<_>, Vec<Position<'_>>) = rows
            .iter()
            .zip(&draws)
            .enumerate()
            .flat_map(|(at, (row, draws))| {
                batch::scored(row).map(move |input| {
                    let nth = verify::draw_at(row, input);
                    let draw = nth.and_then(|nth| Some((&**draws.get(nth)?, masks(at).get(nth))));
                    ((at, nth), Position::of(row, input, draw))
                })
            })
            .unzip();
        let mut outcomes: Vec<Result<RowOutput, RowFault>> =
            rows.iter().map(|_| Ok(RowOutput::default())).collect();
        let mut owners = owners.into_iter();
        let at_once = logits_at_once(&hidden.device(), rows.len(), num_drafts(rows));
        let chunks = batch.positions.chunks(at_once);
        for (positions, wanted) in chunks.zip(wanted.chunks(at_once)) {
            let logits = self.model.logits(hidden, positions);
            let read = read_out(&logits, wanted).into_iter();
            for (mut read, (at, nth)) in read.zip(&mut owners) {
                if let (Some(share), Some(nth), Ok(output)) =
                    (self.synthetic_acceptance, nth, &mut read)
                {
                    verify::accept_by_chance(&rows[at], nth, share, output);
                }
                verify::append(&rows[at], &mut outcomes[at], nth, read);
            }
        }
        outcomes
    }

    /// Remembers how far each row with drafts has come, and makes the next guesses. Returns in how many
    /// passes.
    fn go_on(
        &mut self,
        rows: &[Row],
        (batch, hidden): (Batch, Hidden),
        outcomes: &mut [Result<RowOutput, RowFault>],
    ) -> Result<u32, EngineError> {
        let drafted = (0..rows.len()).filter(|at| rows[*at].drafting.num_drafts > 0);
        let moves = drafted.map(|at| {
            let num_drawn = outcomes[at]
                .as_ref()
                .map_or(0, |output| output.tokens.len());
            let last = verify::num_known(&rows[at]) + num_drawn.max(1) - 2;
            (
                batch.layout.rows[at].tokens.start + last,
                rows[at].slot.0 as usize,
            )
        });
        let moves: Vec<(usize, usize)> = moves.collect();
        if !moves.is_empty() {
            self.cache.set_hidden(&hidden.step, &moves);
        }
        guess::guess(
            &self.model,
            &mut self.cache,
            self.graphs.as_mut(),
            (rows, &batch),
            hidden,
            outcomes,
        )
    }

    /// A step of the warm-up, and what puts everything back.
    fn run_padding(&mut self, warm_up: &WarmUp) -> Result<(), EngineError> {
        let step = padding_step(warm_up, self.cache.block_size, self.model.vocab_size());
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
        Ok(())
    }
}

/// Which ways large products will go, where there was a choice.
fn tell_chosen_ways() {
    for chosen in kernels::chosen_ways() {
        let [outputs, inputs] = chosen.dims;
        tracing::info!(
            outputs,
            inputs,
            format = ?chosen.format,
            tokens = chosen.num_tokens,
            way = chosen.way,
            "chose the way of a large product"
        );
    }
}

impl Runner for ModelRunner {
    type Error = EngineError;

    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), EngineError> {
        let warm_ups = std::mem::take(&mut self.warm_ups);
        let total = warm_ups.len() as u32;
        let mut spent_timing = Duration::ZERO;
        for (num_done, warm_up) in (0..).zip(&warm_ups) {
            tell(num_done, total);
            let records = self.graphs.as_ref().is_some_and(DecodeGraphs::is_hardware);
            if warm_up.is_recording && !records {
                continue;
            }
            if !warm_up.is_timed {
                kernels::choose_ways(|| self.run_untimed(warm_up))?;
            } else if spent_timing < timing::MAX_TIME {
                let begin = Instant::now();
                self.time(warm_up)?;
                spent_timing += begin.elapsed();
            }
        }
        if self.draws {
            tell_chosen_ways();
        }
        if total > 0 {
            tell(total, total);
        }
        Ok(())
    }

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        assert!(self.in_flight.is_none(), "one step in flight at most");
        let stopwatch = Stopwatch::start(&plan.rows);
        self.cache.apply(&plan.ops);
        let batch = Batch::new(&plan.rows, self.cache.block_size);
        let forward = if plan.rows.is_empty() {
            None
        } else {
            let recorded = match &mut self.graphs {
                None => None,
                Some(graphs) => graphs.hidden(&batch, &self.model, &mut self.cache)?,
            };
            let hidden = recorded.unwrap_or_else(|| {
                let (ids, layout) = (&batch.ids, &batch.layout);
                self.model.forward(ids, layout, &mut self.cache)
            });
            let slots = plan.rows.iter().filter(|row| guess::needs_hidden(row));
            let slots: Vec<usize> = slots.map(|row| row.slot.0 as usize).collect();
            let before = if slots.is_empty() {
                None
            } else {
                self.cache.hidden(&slots)
            };
            self.cache.keep_hidden(&hidden, &batch.layout);
            let step = hidden;
            Some((batch, Hidden { step, before }))
        };
        self.in_flight = Some(InFlight {
            step: plan.step,
            rows: plan.rows,
            stopwatch,
            forward,
        });
        Ok(())
    }

    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, EngineError> {
        let step = self.in_flight.take().expect("a step was submitted");
        let mut rows = Vec::new();
        if let Some((batch, hidden)) = step.forward {
            // A rank that answers nothing makes the same calls as rank 0, which waits for its part of
            // each; to guess it has to know what is drawn.
            if self.draws || self.model.drafts() {
                let mut outcomes = self.read_out(&step.rows, masks, (&batch, &hidden.step));
                if self.model.drafts() {
                    let mut stopwatch = step.stopwatch;
                    stopwatch.lap();
                    let num_passes = self.go_on(&step.rows, (batch, hidden), &mut outcomes)?;
                    self.times.extend(stopwatch.stop(num_passes));
                }
                if self.draws {
                    let results = step.rows.iter().zip(outcomes);
                    rows.extend(results.map(|(row, outcome)| RowResult {
                        sequence: row.sequence,
                        outcome,
                    }));
                }
            } else {
                let at_once = logits_at_once(&hidden.step.device(), step.rows.len(), 0);
                for positions in batch.positions.chunks(at_once) {
                    self.model.logits(&hidden.step, positions);
                }
            }
        }
        Ok(StepResult {
            step: step.step,
            rows,
        })
    }

    fn times(&mut self) -> Vec<StepTime> {
        std::mem::take(&mut self.times)
    }
}

/// Between the tokens of a step of the warm-up; a prime.
const TOKEN_STRIDE: usize = 7919;

/// Drafts of all rows.
fn num_drafts(rows: &[Row]) -> usize {
    let of_row = |row: &Row| row.drafting.num_drafts as usize;
    rows.iter().map(of_row).sum()
}

/// A step of which nothing stays: all rows write to the padding block, and each to a slot that must be
/// zeroed behind it. For a time when no slot has an owner; rows of one step may not share one.
fn padding_step(warm_up: &WarmUp, block_size: usize, vocab_size: usize) -> SchedulerOutput {
    let len = warm_up.len as usize;
    let start = warm_up.drafting.num_pending;
    let num_positions = start as usize + len + warm_up.drafting.max_drafts as usize;
    let num_blocks = num_positions.div_ceil(block_size).max(warm_up.num_blocks);
    let params = Arc::new(warm_up.params.clone());
    // Tokens that want other experts than their neighbours, as in service.
    let id = |at: usize| (at * TOKEN_STRIDE % vocab_size) as u32;
    let row = |at: u32| Row {
        sequence: SequenceId(at.into()),
        input_ids: (0..len).map(|nth| id(at as usize * len + nth)).collect(),
        start,
        block_table: vec![BlockId(0); num_blocks],
        slot: SlotId(at + 1),
        saves: Vec::new(),
        drafting: warm_up.drafting,
        sample: Some(Sample {
            request: RequestId(at.into()),
            choice: 0,
            params: Arc::clone(&params),
            seed: 0,
            index: 0,
            history: None,
        }),
        prompt_logprobs: None,
    };
    let rows: Vec<Row> = (0..warm_up.num_rows).map(row).collect();
    SchedulerOutput {
        step: StepId(0),
        ops: rows.iter().map(|row| StateOp::ZeroSlot(row.slot)).collect(),
        rows,
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

    fn runner(warm_ups: Vec<WarmUp>) -> ModelRunner {
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
        let warm_up = |num_rows, len| WarmUp {
            num_rows,
            len,
            ..WarmUp::default()
        };
        let decodes = decode_buckets(6).into_iter().map(|rows| warm_up(rows, 1));
        let mut runner = runner(decodes.chain([warm_up(1, 9)]).collect());
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
    fn a_step_beats_the_heart_from_within() {
        let mut runner = runner(Vec::new());
        let heart = runner.model.heart().clone();
        while heart.age() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        let warm_up = WarmUp {
            num_rows: 1,
            len: 2,
            ..WarmUp::default()
        };
        runner
            .submit(padding_step(&warm_up, 4, 50))
            .expect("it runs");
        assert!(heart.age() < begin.elapsed(), "no layer has beaten it");
        runner.collect(&[]).expect("it ran");
    }

    #[test]
    fn a_step_of_padding_does_run() {
        let mut runner = runner(Vec::new());
        let before = contents(&mut runner);
        let warm_up = WarmUp {
            num_rows: 3,
            len: 1,
            ..WarmUp::default()
        };
        runner
            .submit(padding_step(&warm_up, 4, 50))
            .expect("it runs");
        let result = runner.collect(&[]).expect("it ran");
        let drawn = |row: &RowResult| row.outcome.as_ref().is_ok_and(|row| row.tokens.len() == 1);
        assert!(result.rows.len() == 3 && result.rows.iter().all(drawn));
        assert_ne!(contents(&mut runner), before, "slots were written to");
    }
}
