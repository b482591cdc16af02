//! A GPU's shortlists against whole rows of logits, through the engine: the same tokens, and the same
//! log-probabilities but for the last bits of a sum.
//!
//! Whoever wants more alternatives than a list has gets the row, so every row of a step is run
//! twice: as it is, and with all of the vocabulary as alternatives.

use std::sync::Arc;

use engine::{DeviceChoice, DtypeChoice, Engine, EngineConfig, EngineError, Machine, ModelSource};
use nemoserve_tests::tiny;
use scheduler::{
    BlockId, Drafting, History, PromptLogprobs, RequestId, Row, RowFault, RowMasks, RowOutput,
    Runner, Sample, SamplingParams, SchedulerOutput, SequenceId, SlotId, StateOp, StepId,
    TokenLogprobs, TokenMask,
};

/// Of [`tiny::WIDE_HEAD`].
const VOCAB_SIZE: u32 = 2600;
const BLOCK_SIZE: u32 = 16;
const PROMPT_LEN: u32 = 5;
/// Of log-probabilities: a sum good to 1e-5 of itself, rounded to f32 around -10.
const TOLERANCE: f32 = 2e-5;

/// A way to draw, and what its row carries along.
#[derive(Clone, Default)]
struct Case {
    name: &'static str,
    params: SamplingParams,
    mask: Option<TokenMask>,
    /// Alternatives for every prompt position.
    prompt_top: Option<u32>,
    /// A list must not do: the row is read anyway.
    reads_row: bool,
}

fn hot(temperature: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        ..SamplingParams::default()
    }
}

fn case(name: &'static str, params: SamplingParams) -> Case {
    Case {
        name,
        params,
        ..Case::default()
    }
}

fn cases() -> Vec<Case> {
    let every = |n: u32| -> Vec<u32> { (0..VOCAB_SIZE).filter(|id| id % n == 1).collect() };
    let mask = |tokens: &[u32]| Some(TokenMask::only(tokens, VOCAB_SIZE));
    let penalised = SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.7,
        presence_penalty: 0.4,
        ..hot(0.7)
    };
    let biased = SamplingParams {
        logit_bias: vec![(3, 4.5), (77, -100.0), (2599, 6.0), (9999, 5.0)],
        ..hot(0.5)
    };
    let early = SamplingParams {
        min_tokens: 50,
        stop_token_ids: every(3),
        ..hot(0.8)
    };
    let banned = SamplingParams {
        logit_bias: every(7).into_iter().map(|id| (id, -100.0)).collect(),
        ..SamplingParams::default()
    };
    let all_banned = SamplingParams {
        logit_bias: (0..VOCAB_SIZE).map(|id| (id, -100.0)).collect(),
        ..SamplingParams::default()
    };
    vec![
        case("greedy", SamplingParams::default()),
        case("hot", hot(1.0)),
        case("very hot", hot(3.0)),
        case("cold", hot(0.05)),
        case("frozen", hot(1e-5)),
        case(
            "top 1",
            SamplingParams {
                top_k: 1,
                ..hot(1.0)
            },
        ),
        case(
            "top 12",
            SamplingParams {
                top_k: 12,
                ..hot(1.0)
            },
        ),
        case(
            "top 40",
            SamplingParams {
                top_k: 40,
                ..hot(2.0)
            },
        ),
        case(
            "top 1000",
            SamplingParams {
                top_k: 1000,
                ..hot(0.6)
            },
        ),
        case(
            "nucleus",
            SamplingParams {
                top_p: 0.9,
                ..hot(0.3)
            },
        ),
        case(
            "no nucleus",
            SamplingParams {
                top_p: 0.0,
                ..hot(1.0)
            },
        ),
        case(
            "both",
            SamplingParams {
                top_k: 50,
                top_p: 0.8,
                ..hot(1.0)
            },
        ),
        case(
            "min p",
            SamplingParams {
                min_p: 0.1,
                ..hot(1.0)
            },
        ),
        case(
            "all three",
            SamplingParams {
                top_k: 100,
                top_p: 0.9,
                min_p: 0.02,
                ..hot(0.9)
            },
        ),
        case("penalties", penalised.clone()),
        case(
            "greedy penalties",
            SamplingParams {
                temperature: 0.0,
                ..penalised.clone()
            },
        ),
        case("biases", biased.clone()),
        case("no end yet", early.clone()),
        Case {
            mask: mask(&every(5)),
            ..case("guided", hot(1.0))
        },
        Case {
            mask: mask(&[42]),
            ..case("forced", hot(1.0))
        },
        Case {
            mask: mask(&every(5)),
            ..case("guided, penalised", penalised)
        },
        Case {
            mask: mask(&every(9)),
            ..case("guided, biased", biased)
        },
        // The guide allows nothing but what is banned: bans are weighed.
        Case {
            mask: mask(&every(7)),
            ..case("guided into bans", banned)
        },
        Case {
            mask: mask(&every(3)),
            ..case("guided into ends", early)
        },
        Case {
            mask: mask(&[]),
            ..case("guided into nothing", hot(1.0))
        },
        case("all banned", all_banned),
        Case {
            prompt_top: Some(0),
            ..case("scored", SamplingParams::default())
        },
        Case {
            prompt_top: Some(7),
            ..case("scored beside others", hot(1.0))
        },
        Case {
            prompt_top: Some(300),
            reads_row: true,
            ..case("scored at length", SamplingParams::default())
        },
    ]
}

/// What is asked for beside the token: nothing, itself, some others.
fn alternatives(at: usize) -> Option<u32> {
    [None, Some(0), Some(5), Some(20), Some(200)][at % 5]
}

/// Every case as a row of a step; `prompts` says how much of each runs.
fn plan(
    cases: &[Case],
    step: u64,
    seed: u64,
    top: impl Fn(usize) -> Option<u32>,
) -> SchedulerOutput {
    let row = |(at, case): (usize, &Case)| {
        let at32 = at as u32;
        let prompt: Vec<u32> = (0..PROMPT_LEN)
            .map(|i| (at32 * 131 + i * 977 + seed as u32 * 31) % VOCAB_SIZE)
            .collect();
        let generated = vec![prompt[1], 5, 5, 2599, prompt[1]];
        let history = case.params.needs_history().then(|| History {
            prompt: prompt.clone().into(),
            generated,
        });
        let all = top(at);
        Row {
            sequence: SequenceId(at as u64),
            start: 0,
            block_table: vec![BlockId(at32 + 1)],
            slot: SlotId(at32 + 1),
            saves: Vec::new(),
            drafting: Drafting::default(),
            sample: Some(Sample {
                request: RequestId(at as u64),
                choice: 0,
                params: Arc::new(SamplingParams {
                    logprobs: all,
                    ..case.params.clone()
                }),
                seed: seed * 1000 + at as u64,
                index: 5,
                history,
            }),
            prompt_logprobs: case.prompt_top.map(|top| PromptLogprobs {
                targets: prompt[1..].to_vec(),
                top: if all == Some(u32::MAX) { u32::MAX } else { top },
            }),
            input_ids: prompt,
        }
    };
    let rows: Vec<Row> = cases.iter().enumerate().map(row).collect();
    SchedulerOutput {
        step: StepId(step),
        ops: rows.iter().map(|row| StateOp::ZeroSlot(row.slot)).collect(),
        rows,
    }
}

/// One token a row, as decode steps have it.
fn shortened(mut plan: SchedulerOutput) -> SchedulerOutput {
    for row in &mut plan.rows {
        row.input_ids.truncate(1);
        row.prompt_logprobs = None;
    }
    plan
}

type Outcomes = Vec<Result<RowOutput, RowFault>>;

/// Runs a step; also the bytes of logits that came back.
fn run(
    runner: &mut impl Runner<Error = EngineError>,
    plan: SchedulerOutput,
    masks: &[RowMasks],
) -> (Outcomes, u64) {
    runner.submit(plan).expect("it runs");
    let (result, num_bytes) = kernels::count_read_back(|| runner.collect(masks));
    let rows = result.expect("it ran").rows;
    (rows.into_iter().map(|row| row.outcome).collect(), num_bytes)
}

/// Whether a list's scores are the first of a row's.
fn check_scores(what: &str, list: &TokenLogprobs, row: &TokenLogprobs, num_top: u32) {
    let check = |list: (u32, f32), row: (u32, f32)| {
        assert_eq!(list.0, row.0, "{what}");
        let off = (list.1 - row.1).abs();
        assert!(
            off <= TOLERANCE,
            "{what}: {} is {off:.1e} from {}",
            list.1,
            row.1
        );
    };
    check((list.token, list.logprob), (row.token, row.logprob));
    assert_eq!(list.top.len(), num_top as usize, "{what}");
    for (list, row) in list.top.iter().zip(&row.top) {
        check(*list, *row);
    }
}

fn check(what: &str, at: usize, case: &Case, list: &RowOutput, row: &RowOutput) {
    assert_eq!(list.tokens, row.tokens, "{what}");
    assert_eq!(
        list.prompt_logprobs.len(),
        row.prompt_logprobs.len(),
        "{what}"
    );
    for (list, row) in list.prompt_logprobs.iter().zip(&row.prompt_logprobs) {
        let num_top = case.prompt_top.expect("it was scored");
        check_scores(what, list, row, num_top);
    }
    match alternatives(at) {
        None => assert!(list.logprobs.is_empty(), "{what}"),
        Some(num_top) => check_scores(what, &list.logprobs[0], &row.logprobs[0], num_top),
    }
}

#[test]
fn shortlists_say_what_rows_say() {
    if !Machine::has_device(DeviceChoice::Vulkan) {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no Vulkan device: install mesa-vulkan-drivers"
        );
        eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
        return;
    }
    let cases = cases();
    let folder = tiny::folder(tiny::WIDE_HEAD);
    let source = ModelSource::Dummy {
        folder: folder.path().to_owned(),
        seed: 8,
    };
    let opened = Engine::open(EngineConfig {
        device: DeviceChoice::Vulkan,
        dtype: DtypeChoice::F32,
        max_model_len: Some(BLOCK_SIZE),
        max_num_seqs: cases.len() as u32,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        ..EngineConfig::new(source)
    });
    let mut runner = opened
        .expect("the configuration is sound")
        .into_runner()
        .expect("the weights are made");
    let mask = |case: &Case| RowMasks::Each(vec![case.mask.clone()]);
    let masks: Vec<RowMasks> = cases.iter().map(mask).collect();
    let (mut num_drawn, mut num_faults) = (0, 0);
    for round in 0..6 {
        let of = |step, top: &dyn Fn(usize) -> Option<u32>| {
            let plan = plan(&cases, step, round, top);
            if round % 2 == 0 {
                plan
            } else {
                shortened(plan)
            }
        };
        let (lists, num_bytes) = run(&mut runner, of(2 * round, &alternatives), &masks);
        let (rows, _) = run(&mut runner, of(2 * round + 1, &|_| Some(u32::MAX)), &masks);
        for (at, (case, (list, row))) in cases.iter().zip(lists.iter().zip(&rows)).enumerate() {
            let what = format!("{}, round {round}", case.name);
            match (list, row) {
                (Ok(list), Ok(row)) => {
                    check(&what, at, case, list, row);
                    num_drawn += 1;
                }
                (Err(list), Err(row)) => {
                    assert_eq!(list, row, "{what}");
                    num_faults += 1;
                }
                _ => panic!("{what}: {list:?}, {row:?}"),
            }
        }
        let is_decode = round % 2 == 1;
        let num_whole = cases
            .iter()
            .filter(|case| case.reads_row && !is_decode)
            .count() as u64;
        let row_bytes = 4 * u64::from(VOCAB_SIZE);
        let whole = num_whole * u64::from(PROMPT_LEN - 1) * row_bytes;
        let all = cases.len() as u64 * row_bytes;
        println!("round {round}: {num_bytes} bytes read, {whole} of them asked for, {all} in rows");
        assert!(num_bytes > whole && num_bytes - whole < all, "{num_bytes}");
    }
    // Nothing allowed, and nothing left.
    assert_eq!((num_drawn, num_faults), (6 * (cases.len() as u32 - 2), 12));

    // A greedy row alone: nine words of header, one token and its logit.
    let greedy = shortened(plan(&cases[..1], 99, 0, |_| None));
    let (outcomes, num_bytes) = run(&mut runner, greedy, &[]);
    assert!(outcomes[0].is_ok());
    assert_eq!(num_bytes, 44);
}
