//! Recorded steps say what steps launched kernel by kernel say, to the bit. A Vulkan device records
//! nothing in hardware: it runs what would be recorded, over the same inputs.

use std::sync::Arc;

use burn::tensor::{DeviceKind, DeviceType};
use kernels::{Arithmetic, KvFormat};
use scheduler::{
    BlockId, CacheConfig, Drafting, RequestId, Row, RowOutput, Runner, Sample, SamplingParams,
    SchedulerOutput, SequenceId, SlotId, StateOp, StepId,
};

use super::*;
use crate::cache::KvScales;
use crate::engine_core::LoadProgress;
use crate::model::ModelConfig;
use crate::model::load::Loader;
use crate::model::weights;
use crate::model_runner::ModelRunner;

const CONFIG: &str = r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "M*EM",
    "hidden_size": 32, "vocab_size": 50, "max_position_embeddings": 100,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "n_shared_experts": 1,
    "num_nextn_predict_layers": 1}"#;

const VOCAB_SIZE: u32 = 50;
const MAX_DRAFTS: u32 = 5;
const BLOCK_SIZE: u32 = 4;
const BLOCKS_EACH: u32 = 12;
const NUM_LINES: u32 = 3;
const NUM_TOKENS: usize = 24;

fn loaded(device: &Device) -> (NemotronH, DeviceCache) {
    let config = ModelConfig::parse(CONFIG, "config.json".as_ref()).expect("it is good");
    let (weights, _) = weights::invent(&config, 3).expect("it is plain");
    let progress = LoadProgress::unwatched();
    let mut loader = Loader::new(device.clone(), Arithmetic::F32, 1, progress, 0);
    let model = NemotronH::load(&weights, &config, None, &mut loader);
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 1 + NUM_LINES * BLOCKS_EACH,
        num_slots: 1 + NUM_LINES,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let scales = [KvScales::default(); 2];
    let cache = DeviceCache::new(&config, &cache, MAX_DRAFTS, KvFormat::F32, &scales, device);
    (model, cache)
}

fn runner(device: &Device, records: bool) -> ModelRunner {
    let (model, cache) = loaded(device);
    let graphs = records.then(|| DecodeGraphs::new(device, NUM_LINES, MAX_DRAFTS));
    ModelRunner::new(model, cache, Vec::new(), graphs)
}

/// A sequence in flight.
struct Line {
    at: u32,
    tokens: Vec<u32>,
    num_computed: usize,
    drafting: Drafting,
}

impl Line {
    fn new(at: u32) -> Self {
        Self {
            at,
            tokens: (0..5 + at).map(|i| (i * 7 + at * 3) % VOCAB_SIZE).collect(),
            num_computed: 0,
            drafting: Drafting::default(),
        }
    }

    fn row(&self, drafts: &[u32], max_drafts: u32) -> Row {
        let first = 1 + self.at * BLOCKS_EACH;
        Row {
            sequence: SequenceId(self.at.into()),
            input_ids: [&self.tokens[self.num_computed..], drafts].concat(),
            start: self.num_computed as u32,
            block_table: (first..first + BLOCKS_EACH).map(BlockId).collect(),
            slot: SlotId(1 + self.at),
            saves: Vec::new(),
            drafting: Drafting {
                num_drafts: drafts.len() as u32,
                max_drafts,
                ..self.drafting
            },
            sample: Some(Sample {
                request: RequestId(self.at.into()),
                choice: 0,
                params: Arc::new(SamplingParams {
                    logprobs: Some(VOCAB_SIZE),
                    ..SamplingParams::default()
                }),
                seed: 0,
                index: (self.tokens.len() - 5) as u32,
                history: None,
            }),
            prompt_logprobs: None,
        }
    }

    fn absorb(&mut self, row: &Row, output: &RowOutput) {
        let num_known = row.input_ids.len() - row.drafting.num_drafts as usize;
        let num_drawn = output.tokens.len();
        self.num_computed += num_known + num_drawn - 1;
        let is_pending = row.drafting.num_drafts > 0;
        self.drafting = Drafting {
            num_pending: if is_pending { num_drawn as u32 } else { 0 },
            is_drafted: row.drafting.max_drafts > 0,
            ..Drafting::default()
        };
        self.tokens.extend(&output.tokens);
    }
}

/// What all rows of all steps said. `truth` are the lines' tokens as plain decoding has them: drafts
/// come from there, the first few right and the others wrong; without it there are none.
fn run(runner: &mut ModelRunner, truth: Option<&[Vec<u32>]>) -> (Vec<Vec<u32>>, Vec<RowOutput>) {
    let mut lines: Vec<Line> = (0..NUM_LINES).map(Line::new).collect();
    let mut ops: Vec<StateOp> = (1..=NUM_LINES)
        .map(|at| StateOp::ZeroSlot(SlotId(at)))
        .collect();
    let mut said = Vec::new();
    for step in 0.. {
        let mut rows = Vec::new();
        for line in &lines {
            let done = line.tokens.len();
            if done >= NUM_TOKENS {
                continue;
            }
            let turn = step + line.at as usize;
            let depth = [5, 4, 0, 1, 5, 2][turn % 6];
            let drafts: Vec<u32> = match truth {
                Some(truth) if line.num_computed > 0 => (truth[line.at as usize][done..].iter())
                    .take(depth)
                    .enumerate()
                    .map(|(nth, token)| (token + u32::from(nth >= turn % 4)) % VOCAB_SIZE)
                    .collect(),
                _ => Vec::new(),
            };
            let max_drafts = [3, 0, 5, 1, 5][turn % 5] * u32::from(truth.is_some());
            rows.push(line.row(&drafts, max_drafts));
        }
        if rows.is_empty() {
            let tokens = lines.into_iter().map(|line| line.tokens);
            return (tokens.collect(), said);
        }
        let plan = SchedulerOutput {
            step: StepId(step as u64),
            ops: std::mem::take(&mut ops),
            rows: rows.clone(),
        };
        runner.submit(plan).expect("it runs");
        let result = runner.collect(&[]).expect("it ran");
        for (row, result) in rows.iter().zip(result.rows) {
            let output = result.outcome.expect("good logits");
            lines[row.sequence.0 as usize].absorb(row, &output);
            said.push(output);
        }
    }
    unreachable!("every step draws a token")
}

#[test]
fn recorded_steps_with_drafts_say_the_same() {
    if Device::enumerate(DeviceType::Vulkan).is_empty() {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no Vulkan device: install mesa-vulkan-drivers"
        );
        eprintln!("SKIPPED: no Vulkan device");
        return;
    }
    let device = Device::vulkan(DeviceKind::DefaultDevice);
    let mut recorded = runner(&device, true);
    let mut launched = runner(&device, false);
    let (truth, plain) = run(&mut launched, None);
    assert_eq!(run(&mut recorded, None), (truth.clone(), plain));
    let (tokens, expect) = run(&mut launched, Some(&truth));
    assert!(expect.iter().any(|output| output.tokens.len() > 2));
    assert!(expect.iter().any(|output| output.drafts.len() > 2));
    for (tokens, truth) in tokens.iter().zip(&truth) {
        assert_eq!(tokens[..NUM_TOKENS], truth[..NUM_TOKENS]);
    }
    let (same, got) = run(&mut recorded, Some(&truth));
    assert_eq!(same, tokens);
    for (at, (got, expect)) in got.iter().zip(&expect).enumerate() {
        assert_eq!(got, expect, "answer {at}");
    }
    let graphs = recorded.graphs().expect("it was given some");
    for kind in [Kind::Plain, Kind::Drafts, Kind::Pairs, Kind::Guesses] {
        let mut buckets = graphs.recorded.keys();
        assert!(buckets.any(|bucket| bucket.kind == kind), "no {kind:?}");
    }
}

#[test]
fn recordings_make_room_for_others() {
    if Device::enumerate(DeviceType::Vulkan).is_empty() {
        return;
    }
    let device = Device::vulkan(DeviceKind::DefaultDevice);
    let (model, mut cache) = loaded(&device);
    let mut graphs = DecodeGraphs::new(&device, NUM_LINES, MAX_DRAFTS);
    graphs.max_tokens = 4;
    let mut record = |num_rows| {
        let bucket = Bucket {
            kind: Kind::Plain,
            num_rows,
            row_tokens: 1,
            max_blocks: 1,
        };
        let recorded = graphs.recorded(bucket, &mut cache, |device, shape, cache| {
            let inputs = StepInputs::on(device, shape)?;
            let step = || model.forward(&inputs.ids(), &inputs.layout(), cache);
            let hidden = Recording::record(device, step);
            Some((inputs, None, hidden))
        });
        assert!(recorded.is_some());
        let mut kept: Vec<usize> = graphs.recorded.keys().map(|kept| kept.num_rows).collect();
        kept.sort_unstable();
        kept
    };
    assert_eq!(record(1), [1]);
    assert_eq!(record(2), [1, 2]);
    assert_eq!(record(1), [1, 2]);
    assert_eq!(record(3), [1, 3], "2 was not used for longest");
    assert_eq!(record(4), [4]);
    assert_eq!(record(5), [5], "what is too large is alone");
}
