//! What a model folder says about the formats of its matrices: `quantization_config` in
//! `config.json`, `hf_quant_config.json` beside it. Either may be missing; tensors decide, and what
//! is said must agree with them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use kernels::Format;
use serde_json::{Value, json};

use crate::config::DummyMix;
use crate::error::EngineError;
use crate::model::json;

/// The file beside `config.json`.
const FILE: &str = "hf_quant_config.json";
/// The section of `config.json`.
const SECTION: &str = "quantization_config";

/// Everything that is said, file by file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    said: Arc<Vec<Statement>>,
}

/// What one file says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Statement {
    /// What errors call it.
    source: &'static str,
    /// Of matrices that it does not name.
    rest: Option<Algorithm>,
    /// Of those that it names, without the prefixes that writers put before them.
    modules: HashMap<String, Algorithm>,
    /// Names that are left in plain numbers, modules within them included.
    excluded: HashSet<String>,
    /// The same with `*` in them.
    excluded_patterns: Vec<String>,
    /// Names with `*` in them; the first that fits counts.
    patterns: Vec<(String, Algorithm)>,
    /// Keys and values were calibrated for an FP8 cache.
    has_fp8_cache: bool,
}

/// How a matrix is said to be stored: a format, or the name of one that cannot be served.
type Algorithm = Result<Format, String>;

impl Quantization {
    /// The section of a `config.json`.
    pub(super) fn in_config(config: &Value, path: &Path) -> Result<Self, EngineError> {
        let mut quantization = Self::default();
        quantization.add(SECTION, &config[SECTION], path)?;
        Ok(quantization)
    }

    /// What would be said of a mix of dummies.
    pub(crate) fn of_dummies(mix: DummyMix) -> Self {
        let routed = match mix {
            DummyMix::None => return Self::default(),
            DummyMix::Fp8 => "FP8",
            DummyMix::Nvfp4Mix => "NVFP4",
        };
        let fp8 = json!({"quant_algo": "FP8"});
        let value = json!({"quantized_layers": {
            "*.mixer.in_proj": fp8,
            "*.mixer.out_proj": fp8,
            "*.mixer.shared_experts.*": fp8,
            "*.mixer.up_proj": fp8,
            "*.mixer.down_proj": fp8,
            "*.mixer.experts.*": {"quant_algo": routed},
        }});
        let statement = Statement::parse("--quantization", &value).expect("written above");
        Self {
            said: Arc::new(vec![statement]),
        }
    }

    /// Whether nothing is said: every matrix is stored in plain numbers.
    pub(crate) fn is_silent(&self) -> bool {
        self.said.is_empty()
    }

    /// Whether keys and values were calibrated for an FP8 cache.
    pub(crate) fn has_fp8_cache(&self) -> bool {
        self.said.iter().any(|statement| statement.has_fp8_cache)
    }

    /// Adds what the file beside `config.json` says, if there is one.
    pub(crate) fn read_beside(&mut self, folder: &Path) -> Result<(), EngineError> {
        let path = folder.join(FILE);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let text = super::ModelConfig::read_text(&path)?;
        let document = json::parse(&text).map_err(|error| EngineError::Config {
            path: path.clone(),
            what: format!("not JSON: {error}"),
        })?;
        self.add(FILE, &document["quantization"], &path)
    }

    /// What is said of a matrix, and where. `module` has no prefix.
    pub(crate) fn of<'a>(
        &'a self,
        module: &'a str,
    ) -> impl Iterator<Item = (&'static str, &'a Algorithm)> {
        self.said
            .iter()
            .filter_map(move |statement| Some((statement.source, statement.of(module)?)))
    }

    fn add(&mut self, source: &'static str, value: &Value, path: &Path) -> Result<(), EngineError> {
        if value.is_null() {
            return Ok(());
        }
        let statement = Statement::parse(source, value).map_err(|what| EngineError::Config {
            path: path.to_owned(),
            what,
        })?;
        Arc::make_mut(&mut self.said).push(statement);
        Ok(())
    }
}

impl Statement {
    fn parse(source: &'static str, value: &Value) -> Result<Self, String> {
        if let Some(method) = value.get("quant_method")
            && method != "modelopt"
        {
            return Err(format!(
                "`{source}`: `quant_method` is {method}, expected \"modelopt\""
            ));
        }
        let mut statement = Self {
            source,
            has_fp8_cache: has_fp8_cache(value),
            ..Self::default()
        };
        for key in ["exclude_modules", "ignore"] {
            for name in strings(value, key).map_err(|what| format!("`{source}`: {what}"))? {
                statement.exclude(name);
            }
        }
        let algorithm = value["quant_algo"].as_str();
        if let Some(layers) = value["quantized_layers"].as_object() {
            for (name, layer) in layers {
                statement.name(name, algorithm_of(layer));
            }
            statement.rest = Some(Ok(Format::Plain));
        } else if algorithm.is_some_and(|algorithm| algorithm != "MIXED_PRECISION") {
            statement.rest = Some(algorithm_of(value));
        } else if let Some(groups) = value["config_groups"].as_object() {
            for group in groups.values() {
                let algorithm = algorithm_of_group(group);
                for target in strings(group, "targets")? {
                    if target == "Linear" {
                        statement.rest = Some(algorithm.clone());
                    } else {
                        statement.name(target, algorithm.clone());
                    }
                }
            }
        }
        Ok(statement)
    }

    fn exclude(&mut self, name: &str) {
        let name = without_prefix(name).to_owned();
        if name.contains('*') {
            self.excluded_patterns.push(name);
        } else {
            self.excluded.insert(name);
        }
    }

    fn name(&mut self, name: &str, algorithm: Algorithm) {
        let name = without_prefix(name).to_owned();
        if name.contains('*') {
            self.patterns.push((name, algorithm));
        } else {
            self.modules.insert(name, algorithm);
        }
    }

    fn of(&self, module: &str) -> Option<&Algorithm> {
        const PLAIN: &Algorithm = &Ok(Format::Plain);
        if let Some(algorithm) = self.modules.get(module) {
            return Some(algorithm);
        }
        // The module, or one that it is a part of.
        let ends = module.match_indices('.').map(|(at, _)| at);
        let mut names = ends.chain([module.len()]).map(|end| &module[..end]);
        if names.any(|name| self.excluded.contains(name))
            || self.excluded_patterns.iter().any(|p| fits(p, module))
        {
            return Some(PLAIN);
        }
        let pattern = self.patterns.iter().find(|(p, _)| fits(p, module));
        pattern
            .map(|(_, algorithm)| algorithm)
            .or(self.rest.as_ref())
    }
}

/// By name.
fn algorithm_of(layer: &Value) -> Algorithm {
    let Some(name) = layer["quant_algo"].as_str() else {
        return Err(format!("no `quant_algo` ({layer})"));
    };
    let group_size = layer["group_size"].as_u64();
    match (name, group_size) {
        ("FP8", _) => Ok(Format::Fp8),
        ("NVFP4" | "W4A16_NVFP4", None | Some(16)) => Ok(Format::Nvfp4),
        ("NVFP4" | "W4A16_NVFP4", Some(size)) => Err(format!("{name} in groups of {size}")),
        _ => Err(name.to_owned()),
    }
}

/// By the shape of its numbers.
fn algorithm_of_group(group: &Value) -> Algorithm {
    let weights = &group["weights"];
    let number = |key: &str| weights[key].as_u64();
    match (
        weights["type"].as_str(),
        number("num_bits"),
        number("group_size"),
    ) {
        (Some("float"), Some(8), None) => Ok(Format::Fp8),
        (Some("float"), Some(4), Some(16)) => Ok(Format::Nvfp4),
        _ => Err(format!("weights of {weights}")),
    }
}

/// Said in one of two ways.
fn has_fp8_cache(value: &Value) -> bool {
    let scheme = &value["kv_cache_scheme"];
    value["kv_cache_quant_algo"] == "FP8" || (scheme["num_bits"] == 8 && scheme["type"] == "float")
}

fn strings<'a>(value: &'a Value, key: &str) -> Result<Vec<&'a str>, String> {
    match &value[key] {
        Value::Null => Some(Vec::new()),
        Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<_>>(),
        _ => None,
    }
    .ok_or_else(|| format!("`{key}` is not a list of names"))
}

/// Names as the model's own code has them.
fn without_prefix(name: &str) -> &str {
    crate::model::weights::short_name(name)
}

/// Whether a pattern fits all of a name; `*` stands for anything, dots included.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().expect("a split has a first part");
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(value: &Value) -> Result<Quantization, String> {
        let config = json!({ SECTION: value });
        Quantization::in_config(&config, Path::new("config.json")).map_err(|e| e.to_string())
    }

    /// What is said of some matrices, `None` for nothing.
    #[track_caller]
    fn check(value: &Value, expect: &[(&str, Option<Algorithm>)]) {
        let quantization = section(value).expect("it can be read");
        for (module, algorithm) in expect {
            let said = quantization.of(module).next().map(|(_, said)| said);
            assert_eq!(said, algorithm.as_ref(), "{module}");
        }
    }

    const PLAIN: Option<Algorithm> = Some(Ok(Format::Plain));
    const FP8: Option<Algorithm> = Some(Ok(Format::Fp8));
    const NVFP4: Option<Algorithm> = Some(Ok(Format::Nvfp4));

    #[test]
    fn one_algorithm_but_for_exceptions() {
        for key in ["exclude_modules", "ignore"] {
            let value = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
                key: ["lm_head", "backbone.layers.5.mixer", "model.layers.4.mixer.in_proj",
                      "language_model.backbone.layers.7*", "*.conv1d"]});
            check(
                &value,
                &[
                    ("layers.0.mixer.in_proj", NVFP4),
                    ("lm_head", PLAIN),
                    ("layers.5.mixer.q_proj", PLAIN),
                    ("layers.55.mixer.q_proj", NVFP4),
                    ("layers.4.mixer.in_proj", PLAIN),
                    ("layers.4.mixer.out_proj", NVFP4),
                    ("layers.70.mixer.out_proj", PLAIN),
                    ("layers.0.mixer.conv1d", PLAIN),
                ],
            );
        }
    }

    #[test]
    fn a_map_names_all_that_is_quantised() {
        let value = json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"},
            "backbone.layers.1.mixer.experts.*.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
            "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16}}});
        check(
            &value,
            &[
                ("layers.0.mixer.in_proj", FP8),
                ("layers.0.mixer.out_proj", PLAIN),
                ("layers.1.mixer.experts.511.up_proj", NVFP4),
                ("layers.1.mixer.experts.511.down_proj", PLAIN),
                ("lm_head", NVFP4),
            ],
        );
    }

    #[test]
    fn groups_of_modules() {
        let group = |bits: u32, size: Value, targets: Value| {
            json!({"weights": {"num_bits": bits, "type": "float", "group_size": size},
                   "targets": targets})
        };
        let value = json!({"quant_algo": "MIXED_PRECISION", "config_groups": {
            "group_0": group(8, Value::Null, json!(["backbone.layers.0.mixer.in_proj"])),
            "group_1": group(4, json!(16), json!(["*.experts.*"]))}});
        check(
            &value,
            &[
                ("layers.0.mixer.in_proj", FP8),
                ("layers.1.mixer.experts.0.up_proj", NVFP4),
                ("layers.1.mixer.shared_experts.up_proj", None),
            ],
        );
        let value = json!({"ignore": ["lm_head"],
            "config_groups": {"group_0": group(8, Value::Null, json!(["Linear"]))}});
        check(
            &value,
            &[("layers.0.mixer.in_proj", FP8), ("lm_head", PLAIN)],
        );
    }

    #[test]
    fn what_cannot_be_served_is_kept_by_name() {
        for (layer, name) in [
            (json!({"quant_algo": "W4A8_AWQ"}), "W4A8_AWQ"),
            (json!({"quant_algo": "INT8_SQ"}), "INT8_SQ"),
            (
                json!({"quant_algo": "NVFP4", "group_size": 32}),
                "NVFP4 in groups of 32",
            ),
        ] {
            let unknown = Some(Err(name.to_owned()));
            check(&layer, &[("layers.0.mixer.in_proj", unknown.clone())]);
            let value = json!({"quantized_layers": {"lm_head": layer}});
            check(
                &value,
                &[("lm_head", unknown), ("layers.0.mixer.in_proj", PLAIN)],
            );
        }
        let error = section(&json!({"quant_method": "awq"})).expect_err("another writer");
        assert!(error.contains("`quant_method` is \"awq\""), "{error}");
        let error =
            section(&json!({"quant_algo": "FP8", "ignore": "lm_head"})).expect_err("a name");
        assert!(error.contains("`ignore` is not a list of names"), "{error}");
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        check(&Value::Null, &[("lm_head", None)]);
        check(
            &json!({"quant_algo": "MIXED_PRECISION"}),
            &[("lm_head", None)],
        );
        check(&json!({"kv_cache_quant_algo": "FP8"}), &[("lm_head", None)]);
    }

    #[test]
    fn the_cache_is_announced_in_two_ways() {
        for (value, expect) in [
            (json!({"kv_cache_quant_algo": "FP8"}), true),
            (
                json!({"kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": false}}),
                true,
            ),
            (
                json!({"kv_cache_quant_algo": null, "kv_cache_scheme": null}),
                false,
            ),
            (
                json!({"kv_cache_scheme": {"num_bits": 8, "type": "int"}}),
                false,
            ),
        ] {
            let said = section(&value).expect("it can be read");
            assert_eq!(said.has_fp8_cache(), expect);
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, expect) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a*", "a.b", true),
            ("*b", "a.b", true),
            ("a*b*c", "a.x.b.y.c", true),
            ("a*b*c", "a.x.c", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expect, "{pattern} {name}");
        }
    }
}
