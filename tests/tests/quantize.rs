//! `nemoserve quantize` from end to end: what is written is loaded, means what it should, and is
//! near what it was made from.

use std::fs;
use std::path::Path;

use engine::{
    DeviceChoice, DtypeChoice, Engine, EngineConfig, ModelSource, PackedFormat, Quantize, Quantized,
};
use nemoserve_tests::driver::{Driver, Scores, Turn};
use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::{Shard, edit_json};
use serde_json::Value;
use tempfile::TempDir;

const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 16;
/// On any log-probability, between two spellings of the same weights in f32.
const TOLERANCE: f32 = 1e-3;

fn quantize(model: &Path, output: &Path, format: PackedFormat) -> Result<Quantized, String> {
    let quantize = Quantize {
        model: model.to_owned(),
        output: output.to_owned(),
        format,
        exclude: Vec::new(),
    };
    quantize.run(|_| {}).map_err(|error| error.to_string())
}

/// A fixture in a new format, in a folder that vanishes.
fn packed(fixture: &str, format: PackedFormat) -> Result<(TempDir, Quantized), String> {
    let output = tempfile::tempdir().expect("a temporary folder");
    let summary = quantize(&fixtures::folder(fixture), output.path(), format)?;
    Ok((output, summary))
}

/// All log-probabilities of a prompt under the model of a folder.
fn scores(folder: &Path, prompt: &[u32]) -> Scores {
    let config = EngineConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        max_model_len: Some(BLOCK_SIZE * (NUM_BLOCKS - 1)),
        max_num_seqs: 3,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        ..EngineConfig::new(ModelSource::Folder(folder.to_owned()))
    };
    let opened = Engine::open(config).expect("what was written is sound");
    let runner = opened.into_runner().expect("the weights load");
    let mut driver = Driver::new(runner, BLOCK_SIZE, NUM_BLOCKS, 4);
    let mut line = driver.start(prompt);
    let turn = Turn {
        line: &mut line,
        len: prompt.len(),
        top: u32::MAX,
    };
    let mut scores = driver.step(&mut [turn]).remove(0).expect("good logits");
    for position in &mut scores {
        position.top.sort_by_key(|(token, _)| *token);
    }
    scores
}

/// E4M3 by its definition.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-6),
        _ => (1.0 + fraction) * 2_f64.powi(exponent - 7),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// E2M1 by its definition.
fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code < 8 { magnitude } else { -magnitude }
}

/// Writes a packed folder's weights out as f32 numbers, by the formats' definitions.
fn unpack(fixture: &str, packed: &Path) -> TempDir {
    let folder = fixtures::copy(fixture);
    let mut plain = Shard {
        header: serde_json::Map::new(),
        data: Vec::new(),
    };
    for entry in fs::read_dir(folder.path()).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.to_string_lossy().contains(".safetensors") {
            fs::remove_file(path).expect("the copy is ours");
        }
    }
    let mut shard = Shard::read(&packed.join("model.safetensors"));
    let float = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().expect("one number")));
    let names: Vec<String> = shard.header.keys().cloned().collect();
    for name in names.iter().filter(|name| *name != "__metadata__") {
        if name.ends_with("_scale") || name.ends_with("_scale_2") {
            continue;
        }
        let entry = shard.entry(name).clone();
        let mut shape: Vec<usize> =
            serde_json::from_value(entry["shape"].clone()).expect("a shape");
        let codes = shard.bytes(name).to_vec();
        let scale_of = |ending: &str| format!("{}{ending}", name.trim_end_matches("weight"));
        let numbers: Vec<f64> = match entry["dtype"].as_str().expect("a type") {
            "F8_E4M3" => {
                let scale = float(shard.bytes(&scale_of("weight_scale")));
                codes.iter().map(|code| e4m3(*code) * scale).collect()
            }
            "U8" => {
                shape[1] *= 2;
                let scale = float(shard.bytes(&scale_of("weight_scale_2")));
                let scales = shard.bytes(&scale_of("weight_scale")).to_vec();
                let codes = codes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                codes
                    .enumerate()
                    .map(|(at, code)| e2m1(code) * e4m3(scales[at / 16]) * scale)
                    .collect()
            }
            dtype => {
                plain.push(name, dtype, &shape, &codes);
                continue;
            }
        };
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|x| (*x as f32).to_le_bytes())
            .collect();
        plain.push(name, "F32", &shape, &bytes);
    }
    plain.write(&folder.path().join("model.safetensors"));
    folder
}

/// Root mean square over all positions and tokens, each position's logits around their mean.
fn distance(a: &Scores, b: Option<&Scores>) -> f64 {
    let mut sum = 0.0;
    for (position, a) in a.iter().enumerate() {
        let difference: Vec<f64> = (0..a.top.len())
            .map(|token| {
                let other = b.map_or(0.0, |b| f64::from(b[position].top[token].1));
                f64::from(a.top[token].1) - other
            })
            .collect();
        let mean = difference.iter().sum::<f64>() / difference.len() as f64;
        sum += difference.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    }
    sum.sqrt()
}

/// Layers of a fixture without experts. Each adds an error of its own, as large against what it writes
/// as that of its two matrices against them; independent errors add in squares. A token that
/// rounding sends to another expert is not near anything, so fixtures with experts have no bound.
fn num_dense_layers(fixture: &str) -> Option<f64> {
    let text = fs::read_to_string(fixtures::folder(fixture).join("config.json")).expect("a config");
    let (_, pattern) = text.split_once("\"hybrid_override_pattern\": \"")?;
    let (pattern, _) = pattern.split_once('"')?;
    (!pattern.contains('E')).then_some(pattern.len() as f64)
}

#[test]
fn every_dialect_is_packed_and_means_what_the_formats_say() {
    let (mut num_packed, mut num_quantised) = ([0, 0], [0, 0]);
    for fixture in fixtures::names() {
        let prompt = fixtures::expected(&fixture).remove(2).ids;
        for (at, format) in [PackedFormat::Fp8, PackedFormat::Nvfp4]
            .into_iter()
            .enumerate()
        {
            let (folder, summary) = match packed(&fixture, format) {
                Ok(done) => done,
                Err(why) if why.contains("quantised already") => {
                    num_quantised[at] += 1;
                    continue;
                }
                // Rows of few fixtures are whole groups of 16.
                Err(why) => {
                    assert!(why.contains("no module"), "{fixture} in {format}: {why}");
                    continue;
                }
            };
            num_packed[at] += 1;
            assert!(summary.bytes_after < summary.bytes_before, "{summary:?}");
            let got = scores(folder.path(), &prompt);
            let plain = unpack(&fixture, folder.path());
            let want = scores(plain.path(), &prompt);
            for (got, want) in got.iter().zip(&want) {
                for ((token, got), (_, want)) in got.top.iter().zip(&want.top) {
                    assert!(
                        (got - want).abs() <= TOLERANCE,
                        "{fixture} in {format}, token {token}: {got}, {want}"
                    );
                }
            }
            let Some(layers) = num_dense_layers(&fixture) else {
                continue;
            };
            let original = scores(&fixtures::folder(&fixture), &prompt);
            let off = distance(&got, Some(&original)) / distance(&original, None);
            let bound = 2.0 * summary.error * layers.sqrt();
            assert!(
                0.0 < off && off < bound,
                "{fixture} in {format}: {off}, {bound}"
            );
        }
    }
    assert_eq!(num_packed[0] + num_quantised[0], fixtures::names().len());
    assert!(num_packed[0] >= 13, "{num_packed:?}");
    assert!(num_packed[1] >= 3, "{num_packed:?}");
}

#[test]
fn everything_a_server_needs_comes_along() {
    let (folder, summary) = packed("super", PackedFormat::Fp8).expect("it is sound");
    let read = |folder: &Path, file: &str| fs::read(folder.join(file)).expect(file);
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ] {
        let original = read(&fixtures::folder("super"), file);
        assert_eq!(read(folder.path(), file), original, "{file}");
    }
    let json =
        |file: &str| -> Value { serde_json::from_slice(&read(folder.path(), file)).expect("JSON") };
    let own = &json("hf_quant_config.json")["quantization"];
    let section = &json("config.json")["quantization_config"];
    assert_eq!(own["quant_algo"], "FP8");
    assert_eq!(section["quant_method"], "modelopt");
    assert_eq!(section["ignore"], own["exclude_modules"]);
    let excluded = own["exclude_modules"].as_array().expect("a list");
    for module in ["lm_head", "mtp.*", "backbone.layers.5.mixer.q_proj"] {
        assert!(excluded.contains(&module.into()), "{module}: {excluded:?}");
    }
    // 4 Mamba layers with two matrices; 5 layers of 14 experts and a shared one, two each.
    let of_kind = |pattern: char| "MEMEM*EME*E".matches(pattern).count();
    let expect = 2 * of_kind('M') + 2 * (14 + 1) * of_kind('E');
    assert_eq!(summary.num_packed, expect);
    // What was written is read as quantised, and not quantised again.
    let again = tempfile::tempdir().expect("a temporary folder");
    let error = quantize(folder.path(), again.path(), PackedFormat::Nvfp4).expect_err("refused");
    assert!(error.contains("quantised already"), "{error}");
}

#[test]
fn what_is_quantised_is_not_quantised_again() {
    let (folder, _) = packed("super", PackedFormat::Fp8).expect("it is sound");
    let output = folder.path().join("again");
    let refused = |why: &str| {
        let error = quantize(folder.path(), &output, PackedFormat::Nvfp4).expect_err("refused");
        assert!(
            error.contains("quantised already") && error.contains(why),
            "{error}"
        );
        assert!(!output.exists());
    };
    refused("quantization_config");
    edit_json(&folder.path().join("config.json"), |config| {
        config
            .as_object_mut()
            .expect("an object")
            .remove("quantization_config");
    });
    refused("hf_quant_config.json");
    fs::remove_file(folder.path().join("hf_quant_config.json")).expect("ours");
    refused("tensor");
}

#[test]
fn a_folder_in_use_stays_as_it_is() {
    let output = tempfile::tempdir().expect("a temporary folder");
    fs::write(output.path().join("mine"), "precious").expect("ours");
    let error = quantize(&fixtures::folder("super"), output.path(), PackedFormat::Fp8)
        .expect_err("refused");
    assert!(error.contains("not empty"), "{error}");
    let left: Vec<_> = fs::read_dir(output.path()).expect("it is there").collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn nothing_is_left_of_a_model_that_cannot_be_packed() {
    // A weight that is no number is found when its turn comes, after others were written.
    let model = fixtures::copy("super");
    let path = model.path().join("model.safetensors");
    let mut shard = Shard::read(&path);
    let weight = shard.bytes("backbone.layers.7.mixer.out_proj.weight");
    weight[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    shard.write(&path);
    let output = model.path().join("new");
    let error = quantize(model.path(), &output, PackedFormat::Fp8).expect_err("refused");
    assert!(
        error.contains("backbone.layers.7.mixer.out_proj"),
        "{error}"
    );
    assert!(!output.exists());
}
