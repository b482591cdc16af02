//! Invented weights in the formats of the published mixes: a Super of a sixteenth of the width, with
//! all its layers, serves in each of them.

use std::fs;
use std::path::Path;

use engine::{
    DeviceChoice, DtypeChoice, DummyMix, Engine, EngineConfig, EngineInfo, ModelSource, StreamEvent,
};
use nemoserve_tests::answers::Ask;
use nemoserve_tests::driver::{Driver, Scores, Turn};
use nemoserve_tests::fixtures;
use scheduler::SamplingParams;
use serde_json::{Value, json};
use tempfile::TempDir;

const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 8;
const VOCAB_SIZE: usize = 512;

/// A folder of `benches/configs` with every width divided; heads of attention get narrower instead
/// of fewer, and experts fewer instead of ever narrower.
fn shrunk(name: &str) -> TempDir {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/configs");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = fs::read(root.join(name).join("config.json")).expect("it is committed");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    let small = json!({
        "hidden_size": 256, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 4096,
        "head_dim": 8, "mamba_num_heads": 8, "ssm_state_size": 8,
        "moe_latent_size": 64, "n_routed_experts": 32, "num_experts_per_tok": 4,
        // The sixteenth, 168, would not be whole groups of 16.
        "moe_intermediate_size": 176, "moe_shared_expert_intermediate_size": 336,
    });
    for (key, value) in small.as_object().expect("written above") {
        config[key] = value.clone();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).expect("ours");
    let map = root.join(name).join("hf_quant_config.json");
    if map.exists() {
        fs::copy(map, folder.path().join("hf_quant_config.json")).expect("ours");
    }
    folder
}

fn config(folder: &Path) -> EngineConfig {
    let source = ModelSource::Dummy {
        folder: folder.to_owned(),
        seed: 5,
    };
    EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        max_model_len: Some(BLOCK_SIZE * (NUM_BLOCKS - 1)),
        max_num_seqs: 2,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        ..EngineConfig::new(source)
    }
}

/// What is loaded, and all log-probabilities of a prompt and of the token after it.
fn run(folder: &Path, dummy_mix: Option<DummyMix>) -> (EngineInfo, Scores) {
    let config = EngineConfig {
        dummy_mix,
        ..config(folder)
    };
    let opened = Engine::open(config).expect("the configuration is sound");
    let info = opened.info().clone();
    let runner = opened.into_runner().expect("the weights are made");
    let mut driver = Driver::new(runner, BLOCK_SIZE, NUM_BLOCKS, 3);
    let prompt: Vec<u32> = (0..40)
        .map(|i| (i * i * 5 + i) % VOCAB_SIZE as u32)
        .collect();
    let mut line = driver.start(&prompt);
    let mut scores = Scores::new();
    for len in [prompt.len(), 1] {
        let turn = Turn {
            line: &mut line,
            len,
            top: u32::MAX,
        };
        scores.extend(driver.step(&mut [turn]).remove(0).expect("finite logits"));
    }
    (info, scores)
}

/// Root mean square of the logits of all positions, each around its mean.
fn spread(scores: &Scores) -> f64 {
    let squares = scores.iter().flat_map(|position| {
        let logprobs = position.top.iter().map(|(_, logprob)| f64::from(*logprob));
        let mean = logprobs.clone().sum::<f64>() / position.top.len() as f64;
        logprobs.map(move |logprob| (logprob - mean).powi(2))
    });
    let squares: Vec<f64> = squares.collect();
    (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
}

#[test]
fn a_small_super_serves_in_every_mix() {
    let (plain, plain_scores) = run(shrunk("super").path(), None);
    assert_eq!(plain.kv_cache_dtype, "f32");
    // Weights of the same size make logits of the same size, whatever they are stored in.
    let expect = spread(&plain_scores);
    assert!((0.3..3.0).contains(&expect), "{expect}");
    let mut smaller_than = plain.weight_bytes;
    for (name, mix) in [
        ("super-fp8", DummyMix::Fp8),
        ("super-nvfp4", DummyMix::Nvfp4Mix),
    ] {
        let (info, scores) = run(shrunk(name).path(), None);
        assert!(info.weight_bytes < smaller_than, "{name}: {info:?}");
        assert_eq!(info.num_parameters, plain.num_parameters);
        // Both maps announce an FP8 cache.
        assert_eq!(info.kv_cache_dtype, "fp8");
        let got = spread(&scores);
        assert!(
            (0.5..2.0).contains(&(got / expect)),
            "{name}: {got}, {expect}"
        );
        smaller_than = info.weight_bytes;

        let (named, scores) = run(shrunk("super").path(), Some(mix));
        assert!(
            named.weight_bytes < plain.weight_bytes,
            "{mix:?}: {named:?}"
        );
        assert_eq!(named.kv_cache_dtype, "f32");
        let got = spread(&scores);
        assert!(
            (0.5..2.0).contains(&(got / expect)),
            "{mix:?}: {got}, {expect}"
        );
    }
    let (none, scores) = run(shrunk("super-nvfp4").path(), Some(DummyMix::None));
    assert_eq!(none.weight_bytes, plain.weight_bytes);
    assert_eq!(scores.len(), plain_scores.len());
}

/// What is loaded, a greedy answer, and how many drafts its steps ran.
fn answer(config: EngineConfig) -> (EngineInfo, Vec<u32>, u64) {
    let opened = Engine::open(config).expect("the configuration is sound");
    let info = opened.info().clone();
    let handle = opened.start().expect("the thread starts");
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(handle.ready()).expect("it loads");
    let ask = Ask {
        prompt: (0..20).map(|i| i * 7 % VOCAB_SIZE as u32).collect(),
        params: SamplingParams {
            max_tokens: 30,
            ..SamplingParams::default()
        },
        ..Ask::default()
    };
    let mut stream = ask.submit(&handle);
    let mut tokens = Vec::new();
    runtime.block_on(async {
        while let Some(event) = stream.next().await {
            let StreamEvent::Output(output) = event else {
                panic!("{event:?}");
            };
            tokens.extend(&output.tokens);
        }
    });
    (info, tokens, handle.stats().scheduler.num_draft_tokens)
}

#[test]
fn a_dummy_drafts_with_a_block_of_its_own() {
    // Plain in every mix, as in the releases, so it weighs the same in all of them.
    let mut block_bytes = None;
    for name in ["super", "super-fp8", "super-nvfp4"] {
        let folder = shrunk(name);
        let config = config(folder.path());
        let (plain, expect, none) = answer(config.clone());
        assert_eq!((expect.len(), none), (30, 0));
        for num_ranks in [1, 2] {
            let config = EngineConfig {
                max_drafts: 3,
                tensor_parallel_size: num_ranks,
                ..config.clone()
            };
            let (info, tokens, num_drafts) = answer(config);
            assert!(num_drafts > 50, "{name}: {num_drafts}");
            assert_eq!(info.num_parameters, plain.num_parameters);
            let bytes = info.weight_bytes - plain.weight_bytes;
            assert!(
                bytes > 0 && bytes == *block_bytes.get_or_insert(bytes),
                "{name}"
            );
            // Sums over two ranks are other sums.
            assert!(num_ranks > 1 || tokens == expect, "{name}");
        }
    }
    let config = EngineConfig {
        max_drafts: 3,
        ..config(&fixtures::folder("nano3-4b"))
    };
    let error = Engine::open(config).err().expect("it has no such block");
    assert!(error.to_string().contains("no draft block"), "{error}");
}

#[test]
fn a_format_that_nobody_knows_is_refused() {
    let folder = shrunk("super");
    let path = folder.path().join("hf_quant_config.json");
    let unknown = json!({"quantization": {"quant_algo": "INT4_AWQ"}});
    fs::write(path, unknown.to_string()).expect("ours");
    let error = Engine::open(config(folder.path())).err().expect("refused");
    assert!(error.to_string().contains("INT4_AWQ"), "{error}");
}
