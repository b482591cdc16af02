//! The files beside the weights.

use std::path::Path;

use serde_json::{Value, json};

use super::output::OutputFolder;
use super::{PackedFormat, codes};
use crate::checkpoint::Root;
use crate::error::EngineError;
use crate::model::{ModelConfig, json as python_json};

/// What a model folder may have beside weights and configuration. Others stay behind: nobody asked
/// for them.
const COMPANIONS: [&str; 11] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];

/// The text of `config.json`, if the folder is not quantised already.
pub(super) fn read_config(folder: &Path) -> Result<String, EngineError> {
    let path = folder.join("config.json");
    let text = ModelConfig::read_text(&path)?;
    let fail = |what: String| EngineError::Config {
        path: path.clone(),
        what,
    };
    let config = python_json::parse(&text).map_err(|error| fail(format!("not JSON: {error}")))?;
    match sign_of_packing(&config, folder) {
        None => Ok(text),
        Some(sign) => Err(fail(format!(
            "the model is quantised already, {sign} says: start from the original in BF16"
        ))),
    }
}

/// What says that the folder is quantised.
fn sign_of_packing(config: &Value, folder: &Path) -> Option<String> {
    if !config["quantization_config"].is_null() {
        return Some("`quantization_config`".into());
    }
    let file = "hf_quant_config.json";
    folder.join(file).exists().then(|| file.into())
}

/// Copies tokenizer, template and the like.
pub(super) fn copy_companions(folder: &Path, output: &mut OutputFolder) -> Result<(), EngineError> {
    let root = Root::of(folder)?;
    for name in COMPANIONS {
        let path = folder.join(name);
        if path.symlink_metadata().is_err() {
            continue;
        }
        let bytes = std::fs::read(root.resolve(&path)?)
            .map_err(|source| EngineError::Io { path, source })?;
        output.write(name, &bytes)?;
    }
    Ok(())
}

/// Writes `config.json`, every byte of it as it was but for one more key, and
/// `hf_quant_config.json`. They come last: without them the folder is no model.
pub(super) fn write_configs(
    text: &str,
    format: PackedFormat,
    excluded: &[String],
    output: &mut OutputFolder,
) -> Result<(), EngineError> {
    let (algorithm, group_size) = match format {
        PackedFormat::Fp8 => ("FP8", Value::Null),
        // Activations stay as they are.
        PackedFormat::Nvfp4 => ("W4A16_NVFP4", json!(codes::GROUP)),
    };
    let producer = json!({"name": "nemoserve", "version": env!("CARGO_PKG_VERSION")});
    let mut own = json!({
        "producer": producer,
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": null,
            "group_size": group_size,
            "exclude_modules": excluded,
        },
    });
    let mut section = json!({
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "group_size": group_size,
        "ignore": excluded,
        "producer": producer,
    });
    if group_size.is_null() {
        let remove = |value: &mut Value| value.as_object_mut().map(|map| map.remove("group_size"));
        remove(&mut own["quantization"]);
        remove(&mut section);
    }
    output.write("hf_quant_config.json", format!("{own:#}\n").as_bytes())?;
    output.write("config.json", with_section(text, &section).as_bytes())
}

/// Adds a key before the last brace: numbers that JSON cannot write pass through so.
fn with_section(text: &str, section: &Value) -> String {
    let body = text.trim_end();
    let body = body.strip_suffix('}').expect("it was read as an object");
    let indented = format!("{section:#}").replace('\n', "\n  ");
    format!(
        "{},\n  \"quantization_config\": {indented}\n}}\n",
        body.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_else_in_the_configuration_stays() {
        let text = "{\"time_step_limit\": [0.0, Infinity],\n \"a\": {\"b\": 1}\n}\n\n";
        let new = with_section(text, &json!({"quant_algo": "FP8"}));
        assert!(new.starts_with("{\"time_step_limit\": [0.0, Infinity],\n \"a\": {\"b\": 1},"));
        let value = python_json::parse(&new).expect("still JSON as Python writes it");
        assert_eq!(value["quantization_config"]["quant_algo"], "FP8");
        assert_eq!(value["a"]["b"], 1);
    }
}
