//! Mamba states in half precision with checkpoints: when they are taken, and how near they stay.

use std::fs;
use std::path::Path;

use engine::{DeviceChoice, DtypeChoice, Engine, EngineConfig, ModelSource, StateDtypeChoice};
use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::demo;
use nemoserve_tests::driver::{Driver, Scores, Turn};
use nemoserve_tests::fixtures;

const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 129;

/// States in halves, everything else in f32; or products in bf16, the yardstick.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    F32,
    HalfState,
    Bf16,
}

fn config(source: ModelSource, way: Way) -> EngineConfig {
    EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: match way {
            Way::Bf16 => DtypeChoice::Bf16,
            _ => DtypeChoice::F32,
        },
        mamba_ssm_cache_dtype: match way {
            Way::HalfState => StateDtypeChoice::F16,
            _ => StateDtypeChoice::F32,
        },
        max_model_len: Some(BLOCK_SIZE * (NUM_BLOCKS - 1)),
        max_num_seqs: 3,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        ..EngineConfig::new(source)
    }
}

/// All log-probabilities of a text, but for what comes after it.
fn scores(source: ModelSource, ids: &[u32], way: Way) -> Scores {
    let opened = Engine::open(config(source, way)).expect("it is sound");
    let runner = opened.into_runner().expect("the weights load");
    let mut driver = Driver::new(runner, BLOCK_SIZE, NUM_BLOCKS, 4);
    let mut line = driver.start(ids);
    let turn = Turn {
        line: &mut line,
        len: ids.len(),
        top: u32::MAX,
    };
    let mut scores = driver.step(&mut [turn]).remove(0).expect("good logits");
    scores.pop();
    scores
}

/// What a way of computing costs against f32.
struct Cost {
    /// Mean over positions of the divergence, in nats.
    divergence: f64,
    /// Share of positions at which another token is the likeliest.
    disagreement: f64,
    /// Change of the text's perplexity, as a share.
    perplexity: f64,
}

fn cost(source: &ModelSource, ids: &[u32], way: Way) -> Cost {
    let expect = scores(source.clone(), ids, Way::F32);
    let got = scores(source.clone(), ids, way);
    assert_eq!(got.len(), expect.len());
    let (mut divergence, mut others, mut surprise) = (0.0, 0, 0.0);
    for (got, expect) in got.iter().zip(&expect) {
        assert_eq!(got.token, expect.token);
        surprise += f64::from(expect.logprob - got.logprob);
        others += usize::from(got.top[0].0 != expect.top[0].0);
        let mut got = got.top.clone();
        got.sort_by_key(|(token, _)| *token);
        let mut expect = expect.top.clone();
        expect.sort_by_key(|(token, _)| *token);
        let terms = got.iter().zip(&expect);
        divergence += terms
            .map(|((_, got), (_, expect))| f64::from(*expect).exp() * f64::from(expect - got))
            .sum::<f64>();
    }
    let len = expect.len() as f64;
    Cost {
        divergence: divergence / len,
        disagreement: others as f64 / len,
        perplexity: (surprise / len).exp() - 1.0,
    }
}

/// Halves have three bits more than bf16, so they must cost no more than rounding products to that does.
fn check(what: &str, source: &ModelSource, ids: &[u32]) {
    let [half, bf16] = [Way::HalfState, Way::Bf16].map(|way| cost(source, ids, way));
    for (name, cost) in [("half state", &half), ("bf16 products", &bf16)] {
        println!(
            "{what}, {} tokens, {name}: {:.2e} nats, {:.2} % other tokens, perplexity {:+.3} %",
            ids.len(),
            cost.divergence,
            100.0 * cost.disagreement,
            100.0 * cost.perplexity,
        );
    }
    assert!(half.divergence > 0.0, "{what}: halves are in use");
    assert!(half.divergence <= bf16.divergence, "{what}");
    assert!(half.perplexity.abs() < 0.005, "{what}");
}

#[test]
fn halves_of_a_state_cost_less_than_bf16() {
    for fixture in ["real-heads", "nano-v2-9b", "super"] {
        let source = ModelSource::Folder(fixtures::folder(fixture));
        check(fixture, &source, &fixtures::expected(fixture).remove(3).ids);
    }
}

#[test]
fn a_trained_model_hardly_sees_them() {
    let settings = Settings::new(&ServeArgs::default()).expect("the demo is complete");
    let tokenizer = settings.tokenizer().expect("valid").expect("it has one");
    let text = include_str!("../../benches/texts/demo.txt");
    let ids = tokenizer.encode(text, false).expect("it is text");
    let len = (BLOCK_SIZE * (NUM_BLOCKS - 1)) as usize;
    assert!(ids.len() > len);
    check("demo", &demo::source(), &ids[..len]);
}

fn open(folder: &Path, choice: StateDtypeChoice) -> Result<(&'static str, u64), String> {
    let config = EngineConfig {
        mamba_ssm_cache_dtype: choice,
        ..config(ModelSource::Folder(folder.to_owned()), Way::F32)
    };
    match Engine::open(config) {
        Ok(opened) => Ok((
            opened.info().mamba_ssm_cache_dtype,
            opened.info().slot_bytes,
        )),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_checkpoint_says_what_it_wants_and_the_operator_decides() {
    use StateDtypeChoice::{Auto, F16, F32};

    let folder = fixtures::copy("super");
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).expect("the fixture has one");
    let say = |value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        config["mamba_ssm_cache_dtype"] = value.into();
        fs::write(&path, config.to_string()).expect("a copy can be written to");
    };
    let name = |choice| open(folder.path(), choice).expect("it is sound").0;
    for (said, taken) in [
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
    ] {
        say(said);
        assert_eq!(name(Auto), taken, "{said}");
        assert_eq!((name(F32), name(F16)), ("float32", "float16"), "{said}");
    }
    say("int8");
    let error = open(folder.path(), Auto).expect_err("nobody keeps states so");
    assert!(
        error.contains("mamba_ssm_cache_dtype") && error.contains("int8"),
        "{error}"
    );
}
