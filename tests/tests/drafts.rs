//! Drafts change nothing but the number of steps: tokens, log-probabilities and what a prefix hit
//! finds are those of plain decoding, bit for bit, whatever the drafts are worth. Plans are made by
//! hand, so that a test decides what is guessed.

use std::path::Path;
use std::sync::Arc;

use engine::{
    DeviceChoice, DtypeChoice, Engine, EngineConfig, EngineError, KvDtypeChoice, Machine,
    ModelSource,
};
use nemoserve::demo;
use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::Shard;
use scheduler::{
    BlockId, Drafting, History, RequestId, Row, RowMasks, RowOutput, Runner, Sample,
    SamplingParams, SchedulerOutput, SequenceId, SlotId, StateOp, StepId, TokenLogprobs, TokenMask,
};
use serde_json::Value;

const BLOCK_SIZE: u32 = 8;
const BLOCKS_EACH: u32 = 16;
const MAX_DRAFTS: u32 = 5;
/// Tokens that each choice generates.
const NUM_TOKENS: usize = 30;
/// Prompts come in chunks of so many.
const CHUNK: usize = 7;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// No drafts.
    Nobody,
    /// The draft block.
    Block,
    /// Any tokens, as many as come to mind.
    Chance,
    /// Plain decoding, so that all come true.
    Oracle,
    /// All of these in turn, and pauses without any.
    Everybody,
}

/// How one choice draws.
#[derive(Clone)]
struct Case {
    prompt: Vec<u32>,
    params: SamplingParams,
    seed: u64,
    /// Which tokens may come at an index; `None`: all.
    mask: Option<fn(u32) -> TokenMask>,
}

/// A choice in flight.
struct Line {
    case: Case,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    num_computed: usize,
    drafting: Drafting,
    guesses: Vec<u32>,
    blocks: Vec<BlockId>,
    slot: SlotId,
}

/// Tokens and log-probabilities, exactly.
type Said = Vec<(u32, Vec<(u32, u32)>)>;

struct Bench<R> {
    runner: R,
    chance: u64,
    steps: u64,
    /// Drafts that were run, and those of them that came true.
    num_drafts: usize,
    num_accepted: usize,
}

impl Line {
    fn new(case: &Case, at: usize) -> Self {
        let first = 1 + at as u32 * BLOCKS_EACH;
        Self {
            case: case.clone(),
            tokens: case.prompt.clone(),
            logprobs: Vec::new(),
            num_computed: 0,
            drafting: Drafting::default(),
            guesses: Vec::new(),
            blocks: (first..first + BLOCKS_EACH).map(BlockId).collect(),
            slot: SlotId(1 + at as u32),
        }
    }

    fn num_generated(&self) -> usize {
        self.tokens.len() - self.case.prompt.len()
    }

    fn generated(&self) -> &[u32] {
        &self.tokens[self.case.prompt.len()..]
    }

    fn sample(&self) -> Sample {
        let params = &self.case.params;
        Sample {
            request: RequestId(u64::from(self.slot.0)),
            choice: 0,
            params: Arc::new(params.clone()),
            seed: self.case.seed,
            index: self.num_generated() as u32,
            history: params.needs_history().then(|| History {
                prompt: self.case.prompt.clone().into(),
                generated: self.generated().to_vec(),
            }),
        }
    }

    /// The next row, running `drafts` and asking for `max_drafts` more.
    fn row(&self, drafts: &[u32], max_drafts: u32) -> Row {
        let begin = self.num_computed;
        let end = self.tokens.len().min(begin + CHUNK);
        let drafts = if end == self.tokens.len() && end == begin + 1 {
            drafts
        } else {
            &[]
        };
        let input_ids = [&self.tokens[begin..end], drafts].concat();
        let num_positions = begin + input_ids.len() + max_drafts as usize;
        let num_blocks = num_positions.div_ceil(BLOCK_SIZE as usize);
        Row {
            sequence: SequenceId(u64::from(self.slot.0)),
            input_ids,
            start: begin as u32,
            block_table: self.blocks[..num_blocks].to_vec(),
            slot: self.slot,
            saves: Vec::new(),
            drafting: Drafting {
                num_drafts: drafts.len() as u32,
                max_drafts,
                ..self.drafting
            },
            sample: (end == self.tokens.len()).then(|| self.sample()),
            prompt_logprobs: None,
        }
    }

    /// One mask for every position that draws, as far as the drafts obey them.
    fn masks(&self, row: &Row) -> RowMasks {
        let (Some(mask), Some(sample)) = (self.case.mask, &row.sample) else {
            return RowMasks::Free;
        };
        let num_known = row.input_ids.len() - row.drafting.num_drafts as usize;
        let mut masks = vec![Some(mask(sample.index))];
        for (nth, draft) in (1..).zip(&row.input_ids[num_known..]) {
            if !mask(sample.index + nth - 1).allows(*draft) {
                break;
            }
            masks.push(Some(mask(sample.index + nth)));
        }
        RowMasks::Each(masks)
    }

    fn absorb(&mut self, row: &Row, output: RowOutput) {
        let num_known = row.input_ids.len() - row.drafting.num_drafts as usize;
        let num_drawn = output.tokens.len();
        assert_eq!(num_drawn > 0, row.sample.is_some());
        assert!(num_drawn <= row.drafting.num_drafts as usize + 1);
        assert!(output.drafts.len() <= row.drafting.max_drafts as usize);
        self.num_computed += num_known + num_drawn.saturating_sub(1);
        let has_drafts = row.drafting.num_drafts > 0;
        self.drafting = Drafting {
            num_pending: if has_drafts { num_drawn as u32 } else { 0 },
            is_drafted: row.sample.is_some() && row.drafting.max_drafts > 0,
            ..Drafting::default()
        };
        self.tokens.extend(output.tokens);
        self.logprobs.extend(output.logprobs);
        self.guesses = output.drafts;
    }

    fn said(self) -> Said {
        let bits = |logprobs: &TokenLogprobs| {
            let top = logprobs
                .top
                .iter()
                .map(|(id, logprob)| (*id, logprob.to_bits()));
            top.chain([(logprobs.token, logprobs.logprob.to_bits())])
                .collect()
        };
        let mut scores: Vec<Vec<(u32, u32)>> = self.logprobs.iter().map(bits).collect();
        scores.resize(self.num_generated(), Vec::new());
        let tokens = self.generated().iter().copied();
        tokens.zip(scores).take(NUM_TOKENS).collect()
    }
}

impl<R: Runner<Error = EngineError>> Bench<R> {
    fn new(runner: R) -> Self {
        Self {
            runner,
            chance: 7,
            steps: 0,
            num_drafts: 0,
            num_accepted: 0,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        // The constants of Knuth's MMIX.
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) as usize % limit
    }

    fn step(&mut self, ops: Vec<StateOp>, rows: &[Row], masks: &[RowMasks]) -> Vec<RowOutput> {
        self.steps += 1;
        let plan = SchedulerOutput {
            step: StepId(self.steps),
            ops,
            rows: rows.to_vec(),
        };
        self.runner.submit(plan).expect("it runs");
        let result = self.runner.collect(masks).expect("it ran");
        let outcomes = result.rows.into_iter().map(|row| row.outcome);
        outcomes
            .map(|outcome| outcome.expect("good logits"))
            .collect()
    }

    /// All cases together, to their ends.
    fn run(&mut self, cases: &[Case], source: Source, depth: u32, truth: &[Said]) -> Vec<Said> {
        let mut lines: Vec<Line> = (0..)
            .zip(cases)
            .map(|(at, case)| Line::new(case, at))
            .collect();
        let mut ops: Vec<StateOp> = lines
            .iter()
            .map(|line| StateOp::ZeroSlot(line.slot))
            .collect();
        loop {
            let mut rows = Vec::new();
            let mut whose = Vec::new();
            for (at, line) in lines.iter().enumerate() {
                if line.num_generated() >= NUM_TOKENS {
                    continue;
                }
                let truth = truth.get(at).map_or(&[][..], |truth| &truth[..]);
                let (drafts, max_drafts) = self.drafts(line, source, depth, truth);
                rows.push(line.row(&drafts, max_drafts));
                whose.push(at);
            }
            if rows.is_empty() {
                return lines.into_iter().map(Line::said).collect();
            }
            let masks: Vec<RowMasks> = rows
                .iter()
                .zip(&whose)
                .map(|(row, at)| lines[*at].masks(row))
                .collect();
            let outputs = self.step(std::mem::take(&mut ops), &rows, &masks);
            for ((row, at), output) in rows.iter().zip(whose).zip(outputs) {
                self.num_drafts += row.drafting.num_drafts as usize;
                self.num_accepted += output.tokens.len().saturating_sub(1);
                lines[at].absorb(row, output);
            }
        }
    }

    /// What a line runs, and how many drafts it asks for.
    fn drafts(
        &mut self,
        line: &Line,
        source: Source,
        depth: u32,
        truth: &[(u32, Vec<(u32, u32)>)],
    ) -> (Vec<u32>, u32) {
        let all = [
            Source::Block,
            Source::Chance,
            Source::Oracle,
            Source::Nobody,
        ];
        match source {
            Source::Nobody => (Vec::new(), 0),
            Source::Block => (line.guesses.clone(), depth),
            Source::Chance => {
                let drafts = (0..self.below(depth as usize + 1)).map(|_| self.below(100) as u32);
                (drafts.collect(), 0)
            }
            Source::Oracle => {
                let ahead = truth.iter().skip(line.num_generated()).take(depth as usize);
                (ahead.map(|(token, _)| *token).collect(), 0)
            }
            Source::Everybody => {
                let source = all[self.below(all.len())];
                let (drafts, _) = self.drafts(line, source, depth, truth);
                (drafts, self.below(depth as usize + 1) as u32)
            }
        }
    }
}

fn open(
    folder: &Path,
    max_drafts: u32,
    num_ranks: usize,
) -> impl Runner<Error = EngineError> + use<> {
    let source = ModelSource::Folder(folder.to_owned());
    open_source(source, DeviceChoice::Cpu, max_drafts, num_ranks)
}

fn open_source(
    source: ModelSource,
    device: DeviceChoice,
    max_drafts: u32,
    num_ranks: usize,
) -> impl Runner<Error = EngineError> + use<> {
    let config = EngineConfig {
        device,
        dtype: DtypeChoice::F32,
        kv_cache_dtype: KvDtypeChoice::F32,
        max_model_len: Some(BLOCK_SIZE * BLOCKS_EACH),
        max_num_seqs: 8,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        max_drafts,
        tensor_parallel_size: num_ranks,
        ..EngineConfig::new(source)
    };
    let opened = Engine::open(config).expect("the model is sound");
    let mut runner = opened.into_runner().expect("the weights load");
    // Which leaves nothing behind.
    runner.warm_up(&mut |_, _| {}).expect("it runs");
    runner
}

/// Steps with and without drafts are timed before the first request, smallest first. Several ranks do
/// not: each has a clock of its own, and all must run the same steps.
#[test]
fn what_drafts_cost_is_timed_at_the_start() {
    for num_ranks in [1, 2] {
        let config = EngineConfig {
            device: DeviceChoice::Cpu,
            cache_memory_bytes: Some(64 << 20),
            max_num_seqs: 4,
            max_drafts: 3,
            adaptive_drafts: true,
            tensor_parallel_size: num_ranks,
            ..EngineConfig::new(ModelSource::Folder(fixtures::folder("super")))
        };
        let opened = Engine::open(config).expect("the model is sound");
        let mut runner = opened.into_runner().expect("the weights load");
        runner.warm_up(&mut |_, _| {}).expect("it runs");
        let times = runner.times();
        let timed: Vec<_> = times
            .iter()
            .map(|time| (time.num_rows, time.num_drafts, time.num_passes))
            .collect();
        assert!(times.iter().all(|time| time.step_ns > 0));
        // A machine that takes long leaves the larger ones out.
        let expected = [
            (1, 0, 0),
            (1, 1, 1),
            (2, 0, 0),
            (2, 2, 1),
            (4, 0, 0),
            (4, 4, 1),
        ];
        assert!(expected.starts_with(&timed), "{timed:?}");
        assert_eq!(timed.is_empty(), num_ranks == 2, "{timed:?}");
    }
}

/// Greedy and seeded, with everything that looks at what was drawn before.
fn cases() -> Vec<Case> {
    let prompts = fixtures::expected("super");
    let plain = SamplingParams::default();
    let seeded = SamplingParams {
        temperature: 0.9,
        ..plain.clone()
    };
    let stops = vec![3, 4, 5];
    let params = [
        plain.clone(),
        SamplingParams {
            logprobs: Some(3),
            ..seeded.clone()
        },
        SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            presence_penalty: 0.2,
            logprobs: Some(0),
            ..plain.clone()
        },
        SamplingParams {
            repetition_penalty: 1.1,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.01,
            ..seeded.clone()
        },
        SamplingParams {
            min_tokens: 17,
            stop_token_ids: stops.clone(),
            logit_bias: stops.iter().map(|stop| (*stop, 4.0)).collect(),
            logprobs: Some(2),
            ..seeded.clone()
        },
        plain,
        seeded,
    ];
    let mask: fn(u32) -> TokenMask = |index| {
        let tokens: Vec<u32> = (0..320).filter(|token| token % 3 == index % 3).collect();
        TokenMask::only(&tokens, 320)
    };
    (0..)
        .zip(params)
        .map(|(at, params)| Case {
            prompt: prompts[at % 4].ids.clone(),
            params,
            seed: 40 + at as u64,
            mask: (at >= 5).then_some(mask),
        })
        .collect()
}

#[test]
fn drafts_change_no_bit() {
    let cases = cases();
    let folder = fixtures::folder("super");
    // As if drafts had never been thought of.
    let truth = Bench::new(open(&folder, 0, 1)).run(&cases, Source::Nobody, 0, &[]);
    let mut bench = Bench::new(open(&folder, MAX_DRAFTS, 1));
    for source in [
        Source::Nobody,
        Source::Block,
        Source::Chance,
        Source::Oracle,
        Source::Everybody,
    ] {
        for depth in 1..=MAX_DRAFTS {
            (bench.num_drafts, bench.num_accepted) = (0, 0);
            let said = bench.run(&cases, source, depth, &truth);
            for (at, (said, truth)) in said.iter().zip(&truth).enumerate() {
                assert_eq!(said, truth, "{source:?} {depth}, case {at}");
            }
            let (run, accepted) = (bench.num_drafts, bench.num_accepted);
            eprintln!("{source:?} {depth}: {accepted} of {run} drafts came true");
            assert_eq!(run > 0, source != Source::Nobody);
            assert!(source != Source::Oracle || run == accepted);
        }
    }
}

/// Prompts of the demo model and its greedy answers, as another implementation gives them.
fn demo_answers() -> Vec<(Vec<u32>, Vec<u32>)> {
    let text = include_str!("../fixtures/demo_greedy.json");
    let answers: Vec<Value> = serde_json::from_str(text).expect("it is committed");
    let ids = |value: &Value| -> Vec<u32> {
        let ids = value.as_array().expect("a list").iter();
        ids.map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let answers = answers.iter();
    let answers = answers.map(|answer| (ids(&answer["prompt_ids"]), ids(&answer["output_ids"])));
    answers
        .filter(|(_, output)| output.len() >= NUM_TOKENS)
        .take(8)
        .collect()
}

/// The demo model was trained with its block: 80 to 90 % of single drafts came true then, in another
/// implementation.
fn check_trained_block(device: DeviceChoice, answers: &[(Vec<u32>, Vec<u32>)], temperature: f32) {
    let cases: Vec<Case> = (100..)
        .zip(answers)
        .map(|(seed, (prompt, _))| Case {
            prompt: prompt.clone(),
            params: SamplingParams {
                temperature,
                ..SamplingParams::default()
            },
            seed,
            mask: None,
        })
        .collect();
    let mut bench = Bench::new(open_source(demo::source(), device, 0, 1));
    let truth = bench.run(&cases, Source::Nobody, 0, &[]);
    if temperature == 0.0 {
        for (said, (_, output)) in truth.iter().zip(answers) {
            assert!(
                said.iter()
                    .map(|(token, _)| token)
                    .eq(&output[..NUM_TOKENS])
            );
        }
    }
    let mut bench = Bench::new(open_source(demo::source(), device, MAX_DRAFTS, 1));
    for depth in [1, 3] {
        (bench.num_drafts, bench.num_accepted) = (0, 0);
        assert!(bench.run(&cases, Source::Block, depth, &truth) == truth);
        let (run, accepted) = (bench.num_drafts, bench.num_accepted);
        eprintln!("{device:?}, temperature {temperature}, {depth}: {accepted} of {run} came true");
        assert!(depth > 1 || accepted * 10 >= run * 7, "{accepted} of {run}");
    }
}

#[test]
fn drafts_of_a_trained_block_come_true() {
    let answers = demo_answers();
    for temperature in [0.0, 0.8] {
        check_trained_block(DeviceChoice::Cpu, &answers, temperature);
    }
}

/// Where the machine has no Vulkan device, on a processor if need be, it says so loudly and checks
/// nothing, unless `NEMOSERVE_REQUIRE_VULKAN` insists.
#[test]
fn drafts_of_a_trained_block_come_true_on_a_gpu() {
    if Machine::has_device(DeviceChoice::Vulkan) {
        return check_trained_block(DeviceChoice::Vulkan, &demo_answers()[..2], 0.0);
    }
    assert!(
        std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
        "no Vulkan device: install mesa-vulkan-drivers"
    );
    eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
}

/// All ranks have to guess the same, or they wait for each other's sums with different rows.
#[test]
fn ranks_guess_together() {
    let cases = cases();
    let folder = fixtures::folder("super");
    let truth = Bench::new(open(&folder, 0, 2)).run(&cases, Source::Nobody, 0, &[]);
    let mut bench = Bench::new(open(&folder, MAX_DRAFTS, 2));
    let said = bench.run(&cases, Source::Block, 3, &truth);
    assert!(said == truth && bench.num_drafts > 0);
}

/// A block that is broken guesses nothing, and nobody minds.
#[test]
fn a_block_of_nan_does_no_harm() {
    let folder = fixtures::copy("super");
    let path = folder.path().join("model.safetensors");
    let mut shard = Shard::read(&path);
    for element in shard
        .bytes("mtp.layers.0.eh_proj.weight")
        .chunks_exact_mut(2)
    {
        element.copy_from_slice(&0x7fc0_u16.to_le_bytes());
    }
    shard.write(&path);
    let cases = cases();
    let truth = Bench::new(open(folder.path(), 0, 1)).run(&cases, Source::Nobody, 0, &[]);
    let mut bench = Bench::new(open(folder.path(), MAX_DRAFTS, 1));
    assert!(bench.run(&cases, Source::Block, 3, &truth) == truth);
    assert_eq!(bench.num_drafts, 0, "it guessed");
    // Nor do drafts from elsewhere.
    assert!(bench.run(&cases, Source::Everybody, 3, &truth) == truth);
}

/// The slot of a drafting sequence, with what is pending beside it, goes on as another's.
#[test]
fn a_copy_goes_on_from_pending_tokens() {
    let folder = fixtures::folder("super");
    let cases = &cases()[..1];
    let mut bench = Bench::new(open(&folder, MAX_DRAFTS, 1));
    let truth = bench.run(cases, Source::Nobody, 0, &[]);
    for depth in 1..=MAX_DRAFTS {
        let mut line = Line::new(&cases[0], 0);
        let mut ops = vec![StateOp::ZeroSlot(line.slot)];
        while line.num_generated() < 12 {
            let (drafts, _) = bench.drafts(&line, Source::Oracle, depth, &truth[0]);
            let row = line.row(&drafts, 0);
            let output = bench.step(std::mem::take(&mut ops), std::slice::from_ref(&row), &[]);
            line.absorb(&row, output.into_iter().next().expect("one row"));
        }
        assert!(line.drafting.num_pending > 0);
        // Its blocks stay where they are; the first owner is gone.
        let to = SlotId(5);
        ops.push(StateOp::CopySlot {
            from: line.slot,
            to,
        });
        ops.push(StateOp::ZeroSlot(line.slot));
        line.slot = to;
        line.drafting.is_drafted = false;
        while line.num_generated() < NUM_TOKENS {
            let row = line.row(&line.guesses.clone(), depth);
            let output = bench.step(std::mem::take(&mut ops), std::slice::from_ref(&row), &[]);
            line.absorb(&row, output.into_iter().next().expect("one row"));
        }
        assert_eq!(line.said(), truth[0], "depth {depth}");
    }
}

/// Draws with a draft have the model's distribution: at the known token, and behind a draft that came
/// true. A row with drafts leaves its slot as it was, so that one serves all draws.
#[test]
fn draws_with_drafts_have_the_models_distribution() {
    const NUM_DRAWS: u64 = 4000;
    let folder = fixtures::folder("super");
    let params = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let case = Case {
        prompt: fixtures::expected("super")[2].ids.clone(),
        params,
        seed: 0,
        mask: None,
    };
    let mut bench = Bench::new(open(&folder, MAX_DRAFTS, 1));
    let mut line = Line::new(&case, 0);
    let mut ops = vec![StateOp::ZeroSlot(line.slot)];
    while line.num_generated() == 0 {
        let row = line.row(&[], 0);
        let output = bench.step(std::mem::take(&mut ops), std::slice::from_ref(&row), &[]);
        line.absorb(&row, output.into_iter().next().expect("one row"));
    }
    // The distributions behind the known token and behind the draft, the likeliest token.
    let mut score = |line: &mut Line, drafts: &[u32]| {
        line.case.params.logprobs = Some(u32::MAX);
        let row = line.row(drafts, 0);
        line.case.params.logprobs = None;
        let outputs = bench.step(Vec::new(), &[row], &[RowMasks::Each(vec![None; 2])]);
        outputs.into_iter().next().expect("one row")
    };
    let first = score(&mut line, &[0]).logprobs.swap_remove(0).top;
    let draft = first[0].0;
    // Greedy, the draft comes true.
    line.case.params.temperature = 0.0;
    let second = score(&mut line, &[draft]).logprobs.swap_remove(1).top;
    line.case.params.temperature = 1.0;

    let vocab_size = first.len();
    let mut counts = [vec![0_u64; vocab_size], vec![0_u64; vocab_size]];
    for seed in 0..NUM_DRAWS {
        line.case.seed = seed;
        let row = line.row(&[draft], 0);
        let outputs = bench.step(Vec::new(), &[row], &[]);
        let tokens = &outputs[0].tokens;
        assert_eq!(tokens.len() == 2, tokens[0] == draft);
        for (counts, token) in counts.iter_mut().zip(tokens) {
            counts[*token as usize] += 1;
        }
    }
    for (what, counts, logprobs) in [
        ("first", &counts[0], &first),
        ("second", &counts[1], &second),
    ] {
        let total: u64 = counts.iter().sum();
        assert!(total > 200, "{what}: {total} draws say nothing");
        // Tokens too rare for a bin of their own share one.
        let (mut chi, mut num_bins) = (0.0, 0);
        let mut add = |expect: f64, count: u64| {
            chi += (count as f64 - expect).powi(2) / expect;
            num_bins += 1;
        };
        let (mut rest, mut rest_count) = (0.0, 0);
        for (token, logprob) in logprobs {
            let expect = f64::from(*logprob).exp() * total as f64;
            let count = counts[*token as usize];
            if expect >= 8.0 {
                add(expect, count);
            } else {
                rest += expect;
                rest_count += count;
            }
        }
        if rest >= 8.0 {
            add(rest, rest_count);
        }
        assert!(num_bins > 3, "{what}: {num_bins} bins");
        // Four standard deviations.
        let freedom = f64::from(num_bins - 1);
        let limit = freedom + 4.0 * (2.0 * freedom).sqrt();
        eprintln!("{what}: {chi:.1} in {num_bins} bins of {total} draws");
        assert!(chi < limit, "{what}: {chi:.1} is beyond {limit:.1}");
    }
}
