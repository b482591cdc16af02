//! The FP8 KV cache with checkpoints: when it is taken, under which scales, and how near it stays.

use std::fs;
use std::path::Path;

use engine::{DeviceChoice, DtypeChoice, Engine, EngineConfig, KvDtypeChoice, ModelSource};
use nemoserve_tests::driver::{Driver, Scores, Turn};
use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::Shard;
use tempfile::TempDir;

const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 16;

fn config(folder: &Path, kv_cache_dtype: KvDtypeChoice) -> EngineConfig {
    EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        kv_cache_dtype,
        max_model_len: Some(BLOCK_SIZE * (NUM_BLOCKS - 1)),
        max_num_seqs: 3,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        ..EngineConfig::new(ModelSource::Folder(folder.to_owned()))
    }
}

/// All log-probabilities of a fixture's longest prompt.
fn scores(folder: &Path, prompt: &[u32], kv_cache_dtype: KvDtypeChoice) -> Scores {
    let opened = Engine::open(config(folder, kv_cache_dtype)).expect("it is sound");
    let runner = opened.into_runner().expect("the weights load");
    let mut driver = Driver::new(runner, BLOCK_SIZE, NUM_BLOCKS, 4);
    let mut line = driver.start(prompt);
    let turn = Turn {
        line: &mut line,
        len: prompt.len(),
        top: u32::MAX,
    };
    driver.step(&mut [turn]).remove(0).expect("good logits")
}

/// Median over positions of the divergence from `expect`, in nats.
fn divergence(got: &Scores, expect: &Scores) -> f64 {
    let at = |(got, expect): (&scheduler::TokenLogprobs, &scheduler::TokenLogprobs)| -> f64 {
        let mut got = got.top.clone();
        let mut expect = expect.top.clone();
        got.sort_by_key(|(token, _)| *token);
        expect.sort_by_key(|(token, _)| *token);
        let terms = got
            .iter()
            .zip(&expect)
            .map(|((_, got), (_, expect))| f64::from(*expect).exp() * f64::from(expect - got));
        terms.sum()
    };
    let mut all: Vec<f64> = got.iter().zip(expect).map(at).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// A fixture whose attention layers have scales for keys and values.
fn with_scales(fixture: &str, scale: f32) -> TempDir {
    let folder = fixtures::copy(fixture);
    let path = folder.path().join("model.safetensors");
    let mut shard = Shard::read(&path);
    let names: Vec<String> = shard.header.keys().cloned().collect();
    for side in ["k", "v"] {
        let ending = format!(".{side}_proj.weight");
        for name in names.iter().filter(|name| name.ends_with(&ending)) {
            let scaled = name.replace(".weight", &format!(".{side}_scale"));
            if !name.contains("mtp.") {
                shard.push(&scaled, "F32", &[], &scale.to_le_bytes());
            }
        }
    }
    shard.write(&path);
    folder
}

#[test]
fn eight_bits_stay_near() {
    for fixture in ["real-heads", "nano-v2-9b", "super"] {
        let prompt = fixtures::expected(fixture).remove(3).ids;
        let folder = fixtures::folder(fixture);
        let expect = scores(&folder, &prompt, KvDtypeChoice::F32);
        let got = scores(&folder, &prompt, KvDtypeChoice::Fp8);
        let off = divergence(&got, &expect);
        // Two in a hundred of every key and value.
        assert!((1e-9..0.02).contains(&off), "{fixture}: {off:.5} nats");
    }
}

#[test]
fn the_checkpoints_scales_are_those_of_the_cache() {
    let fixture = "real-heads";
    let prompt = fixtures::expected(fixture).remove(3).ids;
    let expect = scores(&fixtures::folder(fixture), &prompt, KvDtypeChoice::F32);
    let off = |scale, kv_cache_dtype| {
        let folder = with_scales(fixture, scale);
        divergence(&scores(folder.path(), &prompt, kv_cache_dtype), &expect)
    };
    let fits = off(0.02, KvDtypeChoice::Fp8);
    assert!((1e-9..0.02).contains(&fits), "{fits}");
    // Numbers beyond 448 times the scale are cut off there.
    let cut = off(1e-5, KvDtypeChoice::Fp8);
    assert!(cut > 10.0 * fits, "{cut}, {fits}");
    // What is not rounded is not scaled.
    assert_eq!(off(1e-5, KvDtypeChoice::F32), 0.0);
}

#[test]
fn a_checkpoint_made_for_it_gets_it() {
    let folder = fixtures::copy("super");
    let said = r#"{"quantization": {"quant_algo": null, "kv_cache_quant_algo": "FP8"}}"#;
    fs::write(folder.path().join("hf_quant_config.json"), said).expect("ours");
    let cache = |choice| {
        let opened = Engine::open(config(folder.path(), choice)).expect("it is sound");
        (opened.info().kv_cache_dtype, opened.info().block_bytes)
    };
    let (name, bytes) = cache(KvDtypeChoice::Auto);
    assert_eq!(name, "fp8");
    let (name, f32_bytes) = cache(KvDtypeChoice::F32);
    assert_eq!((name, f32_bytes), ("f32", 4 * bytes));
}

#[test]
fn a_scale_that_nothing_can_be_divided_by_is_refused() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let folder = with_scales("super", scale);
        let refused = Engine::open(config(folder.path(), KvDtypeChoice::Auto)).err();
        let error = refused.expect("no such scale").to_string();
        assert!(error.contains("scale of the FP8 cache"), "{error}");
    }
}
