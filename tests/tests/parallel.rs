//! Several ranks against one: the same logits within 1e-4, whatever is split, prefill and decode,
//! whole and in chunks, and the same greedy tokens wherever the choice is not closer than that.
//!
//! Ranks are threads with an in-process sum. NCCL, which takes its place on GPUs, has never run.

use std::path::Path;

use engine::{
    DeviceChoice, DtypeChoice, Engine, EngineConfig, EngineError, ModelSource, PackedFormat,
    Quantize,
};
use nemoserve_tests::driver::{Driver, Line, Scores, Turn};
use nemoserve_tests::{fixtures, tiny};
use scheduler::{Runner, TokenLogprobs};

/// On any log-probability, in f32.
const TOLERANCE: f32 = 1e-4;
const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 64;
const NUM_SLOTS: u32 = 8;
const EVERY_TOKEN: u32 = u32::MAX;

const LATENT_AND_BIASES: &str =
    r#", "moe_latent_size": 24, "mlp_bias": true, "use_bias": true, "tie_word_embeddings": true"#;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ranks {
    num: usize,
    experts: bool,
}

const ALONE: Ranks = Ranks {
    num: 1,
    experts: false,
};

fn splits(counts: &[usize]) -> impl Iterator<Item = Ranks> {
    counts
        .iter()
        .flat_map(|num| [false, true].map(|experts| Ranks { num: *num, experts }))
}

#[test]
fn eight_key_heads_over_2_4_and_8_ranks() {
    let folder = dummy(8, "");
    check(&dummy_source(folder.path()), &[2, 4, 8]);
}

#[test]
fn two_key_heads_over_2_4_and_8_ranks() {
    let folder = dummy(2, LATENT_AND_BIASES);
    check(&dummy_source(folder.path()), &[2, 4, 8]);
}

macro_rules! fixtures {
    ($($test:ident: $fixture:literal over $counts:expr,)*) => {
        /// Stored weights, whose parts are views and copies of the memory map.
        mod fixture {
            $(
                #[test]
                fn $test() {
                    let folder = crate::fixtures::folder($fixture);
                    crate::check(&engine::ModelSource::Folder(folder), &$counts);
                }
            )*
        }

        /// Exactly these of them can be split.
        fn divisible() -> Vec<(&'static str, Vec<usize>)> {
            vec![$(($fixture, $counts.to_vec())),*]
        }
    };
}

fixtures! {
    grouped_routing: "grouped-routing" over [2],
    nano_v2_9b: "nano-v2-9b" over [2, 4, 8],
    nano3_4b: "nano3-4b" over [2],
    old_aliases: "old-aliases" over [2],
    real_heads: "real-heads" over [2],
    super_120b: "super" over [2],
    super_fp8: "super-fp8" over [2],
    ultra: "ultra" over [2, 4],
}

#[test]
fn what_does_not_divide_is_refused_by_name() {
    for name in fixtures::names() {
        for num in 2..=8 {
            let source = ModelSource::Folder(fixtures::folder(&name));
            let ranks = Ranks {
                num,
                experts: false,
            };
            let listed = divisible()
                .into_iter()
                .any(|(fixture, counts)| fixture == name && counts.contains(&num));
            match Engine::open(config(source, ranks, DtypeChoice::F32)) {
                Ok(_) => assert!(listed, "{name} over {num} ranks"),
                Err(error) => {
                    assert!(!listed, "{name} over {num} ranks: {error}");
                    assert!(matches!(error, EngineError::Ranks { .. }), "{error}");
                    let text = error.to_string();
                    let flag = format!("--tensor-parallel-size {num}: ");
                    let sizes = text.strip_prefix(&flag).expect(&text);
                    assert!(sizes.contains(|c: char| c.is_ascii_digit()), "{text}");
                }
            }
        }
    }
    for (num, experts) in [(0, false), (65, false), (1, true)] {
        let source = ModelSource::Folder(fixtures::folder("super"));
        let Err(error) = Engine::open(config(source, Ranks { num, experts }, DtypeChoice::F32))
        else {
            panic!("{num} ranks, experts {experts}");
        };
        let text = error.to_string();
        assert!(text.contains("--tensor-parallel-size is"), "{text}");
    }
}

/// Codes are cut with their scales; rows that are not whole blocks stay BF16, so this is a mix.
#[test]
fn packed_weights_are_split_with_their_scales() {
    for format in [PackedFormat::Fp8, PackedFormat::Nvfp4] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("packed");
        let packed = Quantize {
            model: fixtures::folder("real-heads"),
            output: output.clone(),
            format,
            exclude: Vec::new(),
        };
        let packed = packed.run(|_| {}).expect("it can be packed");
        assert!(packed.num_packed > 32, "{packed:?}");
        check(&ModelSource::Folder(output), &[2]);
    }
}

/// The cache of a rank holds its own heads.
#[test]
fn caches_are_as_small_as_the_share() {
    let folder = dummy(2, "");
    let sizes = |num| {
        let source = dummy_source(folder.path());
        let ranks = Ranks {
            num,
            experts: false,
        };
        let opened = Engine::open(config(source, ranks, DtypeChoice::F32)).expect("it divides");
        let info = opened.info();
        (info.block_bytes, info.slot_bytes, info.rank_weight_bytes)
    };
    let (block, slot, weights) = sizes(1);
    assert_eq!((sizes(2).0, sizes(2).1), (block / 2, slot / 2));
    // Two key heads: one each from here on.
    assert_eq!((sizes(4).0, sizes(4).1), (block / 2, slot / 4));
    assert_eq!((sizes(8).0, sizes(8).1), (block / 2, slot / 8));
    assert!(sizes(2).2 > weights / 2 && sizes(2).2 < weights);
    assert!(sizes(8).2 < sizes(4).2);
}

/// bf16 rounds each rank's part of a sum: near, not equal.
#[test]
fn bf16_ranks_stay_near() {
    let folder = dummy(2, LATENT_AND_BIASES);
    let run = |ranks| {
        let source = dummy_source(folder.path());
        let mut driver = open(config(source, ranks, DtypeChoice::Bf16));
        let ids = prompt(0, 40);
        let mut line = driver.start(&ids);
        step(&mut driver, &mut line, ids.len())
    };
    let alone = run(ALONE);
    for ranks in splits(&[2]) {
        let mut offs: Vec<f32> = run(ranks)
            .iter()
            .zip(&alone)
            .map(|(got, expect)| largest_difference(got, expect))
            .collect();
        offs.sort_by(f32::total_cmp);
        let median = offs[offs.len() / 2];
        assert!(median > 0.0 && median < 0.2, "{ranks:?}: {median}");
    }
}

/// One rank's logits, then those of each split: prompts whole and in chunks beside each other, then
/// decoding.
fn check(source: &ModelSource, counts: &[usize]) {
    let vocab_size = Engine::open(config(source.clone(), ALONE, DtypeChoice::F32))
        .expect("the model is sound")
        .info()
        .vocab_size;
    let prompts: Vec<Vec<u32>> = [1, 3, 17, 40]
        .into_iter()
        .enumerate()
        .map(|(at, len)| {
            let ids = prompt(at as u32, len).into_iter();
            ids.map(|id| id % vocab_size).collect()
        })
        .collect();
    let expect = run(source, ALONE, &prompts, None);
    for ranks in splits(counts) {
        let got = run(source, ranks, &prompts, Some(&expect));
        let mut most = 0.0_f32;
        for (at, (got, expect)) in got.iter().zip(&expect).enumerate() {
            assert_eq!(got.len(), expect.len());
            for (position, (got, expect)) in got.iter().zip(expect).enumerate() {
                let what = format!("{ranks:?}, prompt {at}, position {position}");
                let off = largest_difference(got, expect);
                assert!(off <= TOLERANCE, "{what}: {off:.1e}");
                most = most.max(off);
                if margin(expect) > 2.0 * TOLERANCE {
                    assert_eq!(got.top[0].0, expect.top[0].0, "{what}");
                }
            }
        }
        // Sums in another order are other sums: equal ones would mean that nothing was split.
        assert!(most > 0.0, "{ranks:?}");
        eprintln!("{ranks:?}: {most:.1e} at most");
    }
}

/// Tokens decoded after each prompt.
const NUM_DECODED: usize = 6;

/// Scores of all positions of all prompts and of what is decoded after them. `teacher` says what was
/// decoded, so that one near tie does not make two different texts.
fn run(
    source: &ModelSource,
    ranks: Ranks,
    prompts: &[Vec<u32>],
    teacher: Option<&[Scores]>,
) -> Vec<Scores> {
    let mut driver = open(config(source.clone(), ranks, DtypeChoice::F32));
    let mut lines: Vec<Line> = prompts.iter().map(|ids| driver.start(ids)).collect();
    let mut scores: Vec<Scores> = prompts.iter().map(|_| Vec::new()).collect();
    // Alone everything runs whole; ranks take uneven chunks, so the two together say that chunks
    // and company are the same for ranks.
    let chunk = |round: usize, at: usize| match teacher {
        None => usize::MAX,
        Some(_) => [16, 1, 5, 9][(round + at) % 4],
    };
    for round in 0.. {
        let (mut turns, mut whose) = (Vec::new(), Vec::new());
        for (at, line) in lines.iter_mut().enumerate() {
            let end = prompts[at].len() + NUM_DECODED;
            if line.num_computed == end {
                continue;
            }
            let left = line.tokens.len() - line.num_computed;
            let len = left.min(chunk(round, at));
            let top = EVERY_TOKEN;
            turns.push(Turn { line, len, top });
            whose.push(at);
        }
        if turns.is_empty() {
            break;
        }
        let outcomes = driver.step(&mut turns);
        for (at, outcome) in whose.into_iter().zip(outcomes) {
            scores[at].extend(outcome.expect("good logits"));
            let line = &mut lines[at];
            let is_new = line.tokens.len() > line.num_computed;
            if let Some(teacher) = teacher
                && is_new
                && line.num_computed >= prompts[at].len()
            {
                let last = line.tokens.last_mut().expect("it was just drawn");
                *last = teacher[at][line.num_computed - 1].top[0].0;
            }
        }
    }
    scores
}

/// Over all tokens of one position.
fn largest_difference(got: &TokenLogprobs, expect: &TokenLogprobs) -> f32 {
    let by_id = |scores: &TokenLogprobs| {
        let mut top = scores.top.clone();
        top.sort_by_key(|(id, _)| *id);
        top
    };
    let (got, expect) = (by_id(got), by_id(expect));
    assert_eq!(got.len(), expect.len());
    got.iter()
        .zip(&expect)
        .map(|((got_id, got), (id, expect))| {
            assert_eq!(got_id, id);
            (got - expect).abs()
        })
        .fold(0.0, f32::max)
}

/// Between the two most likely tokens.
fn margin(scores: &TokenLogprobs) -> f32 {
    scores.top[0].1 - scores.top[1].1
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i * 7 + i * 31 + seed * 17) % 300)
        .collect()
}

fn dummy(kv_heads: usize, extra: &str) -> tempfile::TempDir {
    let text = tiny::FOR_RANKS.replace("KV", &kv_heads.to_string());
    tiny::folder(&text.replace("EXTRA", extra))
}

fn dummy_source(folder: &Path) -> ModelSource {
    ModelSource::Dummy {
        folder: folder.to_owned(),
        seed: 5,
    }
}

fn config(source: ModelSource, ranks: Ranks, dtype: DtypeChoice) -> EngineConfig {
    EngineConfig {
        device: DeviceChoice::Cpu,
        dtype,
        max_model_len: Some(BLOCK_SIZE * (NUM_BLOCKS - 1)),
        max_num_seqs: NUM_SLOTS - 1,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        threads: Some(4),
        tensor_parallel_size: ranks.num,
        expert_parallel: ranks.experts,
        ..EngineConfig::new(source)
    }
}

fn open(config: EngineConfig) -> Driver<impl Runner<Error = EngineError>> {
    let opened = Engine::open(config).expect("it divides");
    let runner = opened.into_runner().expect("the weights load");
    Driver::new(runner, BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS)
}

/// One line alone.
fn step(driver: &mut Driver<impl Runner>, line: &mut Line, len: usize) -> Scores {
    let top = EVERY_TOKEN;
    let turn = Turn { line, len, top };
    driver.step(&mut [turn]).remove(0).expect("good logits")
}
