//! The tiny checkpoints under `fixtures/` and what they must answer (its README says how they came
//! to be).

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;

/// Prompt lengths of every fixture.
const LENGTHS: [usize; 4] = [1, 3, 17, 70];

/// One prompt and what transformers makes of it.
pub struct Expected {
    /// The prompt.
    pub ids: Vec<u32>,
    /// One row of `vocab_size` logits per prompt position.
    pub logits: Vec<Vec<f32>>,
    /// Log-probabilities of `ids[1..]`.
    pub logprobs: Vec<f32>,
    /// The greedy continuation, end ids ignored.
    pub greedy_ids: Vec<u32>,
    /// Log-probabilities of those.
    pub greedy_logprobs: Vec<f32>,
}

/// The checkpoint folder of a fixture.
pub fn folder(name: &str) -> PathBuf {
    root().join(name)
}

/// Every fixture by name, in order.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root())
        .expect("the fixtures are there")
        .map(|entry| entry.expect("the entry can be read").path())
        .filter(|path| path.join("expected.safetensors").is_file())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    assert_eq!(names.len(), 17, "a fixture came or went: {names:?}");
    names
}

/// What a fixture must answer, one entry per prompt.
pub fn expected(name: &str) -> Vec<Expected> {
    let bytes = fs::read(folder(name).join("expected.safetensors")).expect("it is committed");
    let tensors = SafeTensors::deserialize(&bytes).expect("the generator wrote it");
    let read = |key: String| {
        let tensor = tensors.tensor(&key).expect("every fixture has it");
        let words = tensor
            .data()
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of 4")))
            .collect::<Vec<_>>();
        (words, tensor.shape().to_vec())
    };
    let floats = |key: String| -> Vec<f32> {
        let (words, _) = read(key);
        words.into_iter().map(f32::from_bits).collect()
    };
    LENGTHS
        .into_iter()
        .map(|n| {
            let (_, shape) = read(format!("prompt{n}.logits"));
            let logits = floats(format!("prompt{n}.logits"));
            Expected {
                ids: read(format!("prompt{n}.ids")).0,
                logits: logits.chunks_exact(shape[1]).map(<[f32]>::to_vec).collect(),
                logprobs: floats(format!("prompt{n}.logprobs")),
                greedy_ids: read(format!("prompt{n}.greedy_ids")).0,
                greedy_logprobs: floats(format!("prompt{n}.greedy_logprobs")),
            }
        })
        .collect()
}

/// A copy of a fixture's folder that may be broken; its expectations stay behind.
pub fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(folder(name)).expect("the fixture is there") {
        let from = entry.expect("the entry can be read").path();
        let file = from.file_name().expect("entries have names");
        if file != "expected.safetensors" {
            fs::copy(&from, copy.path().join(file)).expect("a copy");
        }
    }
    copy
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}
