//! Which modules are packed.
//!
//! As in NVIDIA's releases: the projections of Mamba layers, routed and shared experts, dense MLPs.
//! What a few bytes buy most of is left alone: the router, embedding and head, convolutions and
//! norms, attention, the projections into and out of the experts' width, and the draft block.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;

use super::PackedFormat;
use super::codes::{GROUP, Matrix};
use crate::checkpoint::StoredTensor;
use crate::model::config::fits;
use crate::model::weights::short_name;

/// All tensors of a checkpoint, sorted into those that change and those that do not.
pub(super) struct Choice {
    /// In the order in which they are written.
    pub(super) modules: Vec<Module>,
    /// Modules with matrices that stay as they are, for the configuration.
    pub(super) excluded: Vec<String>,
    /// Modules whose rows are not whole groups.
    pub(super) uneven: Vec<String>,
}

pub(super) enum Module {
    /// Copied.
    Kept { name: String, tensor: StoredTensor },
    /// `{module}.weight`, or one matrix of a stack.
    Packed { module: String, matrix: Matrix },
}

impl Choice {
    /// # Errors
    /// A pattern that fits nothing is a mistake.
    pub(super) fn new(
        tensors: &BTreeMap<String, StoredTensor>,
        format: PackedFormat,
        exclude: &[String],
    ) -> Result<Self, String> {
        let mut choice = Self {
            modules: Vec::new(),
            excluded: Vec::new(),
            uneven: Vec::new(),
        };
        let mut used = vec![false; exclude.len()];
        for (name, tensor) in tensors {
            let Some(module) = packable(name, tensor) else {
                choice.keep(name, tensor);
                continue;
            };
            let mut is_excluded = false;
            for (pattern, used) in exclude.iter().zip(&mut used) {
                if fits(pattern, &module) || fits(pattern, short_name(&module)) {
                    is_excluded = true;
                    *used = true;
                }
            }
            let row_len = *tensor.shape.last().expect("a matrix has columns");
            let is_even = format == PackedFormat::Fp8 || row_len.is_multiple_of(GROUP);
            if !is_excluded && is_even {
                choice.pack(module, tensor);
                continue;
            }
            if !is_excluded {
                choice.uneven.push(module);
            }
            choice.keep(name, tensor);
        }
        if let Some(at) = used.iter().position(|used| !used) {
            return Err(format!(
                "--exclude {:?} fits no module that would be quantised",
                exclude[at]
            ));
        }
        if !choice
            .modules
            .iter()
            .any(|module| matches!(module, Module::Packed { .. }))
        {
            return Err("no module of this model would be quantised".into());
        }
        choice.excluded.dedup();
        Ok(choice)
    }

    fn keep(&mut self, name: &str, tensor: &StoredTensor) {
        if let Some(module) = name.strip_suffix(".weight")
            && tensor.shape.len() >= 2
        {
            // One pattern for the many experts of the draft block.
            let is_draft = short_name(name).starts_with("mtp.");
            let module = match name.find("mtp.") {
                Some(at) if is_draft => format!("{}mtp.*", &name[..at]),
                _ => without_expert(module),
            };
            self.excluded.push(module);
        }
        self.modules.push(Module::Kept {
            name: name.to_owned(),
            tensor: tensor.clone(),
        });
    }

    fn pack(&mut self, module: String, tensor: &StoredTensor) {
        let [ref stack @ .., num_rows, row_len] = tensor.shape[..] else {
            unreachable!("only matrices and stacks of them are packed")
        };
        let matrix = |data| Matrix {
            path: tensor.path.clone(),
            dtype: tensor.dtype,
            num_rows,
            row_len,
            data,
        };
        let Some((head, tail)) = module.split_once(".experts.").filter(|_| !stack.is_empty())
        else {
            let matrix = matrix(tensor.data.clone());
            self.modules.push(Module::Packed { module, matrix });
            return;
        };
        // A scale for every matrix is a name for every matrix.
        let num_bytes = num_rows * row_len * tensor.dtype.bitsize() / 8;
        for expert in 0..stack[0] {
            let data = tensor
                .data
                .slice(expert * num_bytes..(expert + 1) * num_bytes);
            self.modules.push(Module::Packed {
                module: format!("{head}.experts.{expert}.{tail}"),
                matrix: matrix(data),
            });
        }
    }
}

/// The module that a tensor belongs to, if it is a matrix of the kinds that are packed.
fn packable(name: &str, tensor: &StoredTensor) -> Option<String> {
    let rest = short_name(name).strip_prefix("layers.")?;
    let (_, mixer) = rest.split_once(".mixer.")?;
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return None;
    }
    if tensor.shape.len() == 3 && matches!(mixer, "experts.up_proj" | "experts.down_proj") {
        return Some(name.to_owned());
    }
    let kind = mixer.strip_suffix(".weight")?;
    let kind = match kind.strip_prefix("experts.") {
        Some(expert) => expert.split_once('.')?.1,
        None => kind.strip_prefix("shared_experts.").unwrap_or(kind),
    };
    let is_chosen = matches!(kind, "in_proj" | "out_proj" | "up_proj" | "down_proj");
    (is_chosen && tensor.shape.len() == 2)
        .then(|| name.strip_suffix(".weight").map(str::to_owned))
        .flatten()
}

/// `*` in the place of an expert's number.
pub(super) fn without_expert(module: &str) -> String {
    let Some((head, tail)) = module.split_once(".experts.") else {
        return module.to_owned();
    };
    match tail.split_once('.') {
        Some((number, kind)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{head}.experts.*.{kind}")
        }
        _ => module.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;

    fn tensor(shape: &[usize]) -> StoredTensor {
        StoredTensor {
            path: Path::new("x").into(),
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
            data: Bytes::from(vec![0; 2 * shape.iter().product::<usize>()]),
        }
    }

    fn choose(names: &[(&str, &[usize])], exclude: &[&str]) -> Result<Choice, String> {
        let tensors = names
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), tensor(shape)));
        let exclude: Vec<String> = exclude.iter().map(|&pattern| pattern.into()).collect();
        Choice::new(&tensors.collect(), PackedFormat::Nvfp4, &exclude)
    }

    fn packed(choice: &Choice) -> Vec<&str> {
        let modules = choice.modules.iter();
        modules
            .filter_map(|module| match module {
                Module::Packed { module, .. } => Some(module.as_str()),
                Module::Kept { .. } => None,
            })
            .collect()
    }

    const MODEL: &[(&str, &[usize])] = &[
        ("backbone.embeddings.weight", &[32, 16]),
        ("backbone.layers.0.mixer.A_log", &[4]),
        ("backbone.layers.0.mixer.conv1d.weight", &[16, 1, 4]),
        ("backbone.layers.0.mixer.in_proj.weight", &[40, 16]),
        ("backbone.layers.0.mixer.out_proj.weight", &[16, 24]),
        ("backbone.layers.0.norm.weight", &[16]),
        (
            "backbone.layers.1.mixer.experts.0.down_proj.weight",
            &[16, 32],
        ),
        (
            "backbone.layers.1.mixer.experts.10.up_proj.weight",
            &[32, 16],
        ),
        ("backbone.layers.1.mixer.fc1_latent_proj.weight", &[16, 16]),
        ("backbone.layers.1.mixer.gate.weight", &[2, 16]),
        (
            "backbone.layers.1.mixer.shared_experts.up_proj.weight",
            &[32, 16],
        ),
        ("backbone.layers.2.mixer.q_proj.weight", &[16, 16]),
        ("backbone.layers.3.mixer.up_proj.weight", &[32, 16]),
        ("lm_head.weight", &[32, 16]),
        ("mtp.layers.0.mixer.q_proj.weight", &[16, 16]),
        ("mtp.layers.1.mixer.experts.0.up_proj.weight", &[16, 16]),
    ];

    #[test]
    fn what_releases_leave_alone_is_left_alone() {
        let choice = choose(MODEL, &[]).expect("something is packed");
        assert_eq!(
            packed(&choice),
            [
                "backbone.layers.0.mixer.in_proj",
                "backbone.layers.1.mixer.experts.0.down_proj",
                "backbone.layers.1.mixer.experts.10.up_proj",
                "backbone.layers.1.mixer.shared_experts.up_proj",
                "backbone.layers.3.mixer.up_proj",
            ]
        );
        assert_eq!(choice.modules.len(), MODEL.len());
        // Its rows of 24 are a group and a half.
        assert_eq!(choice.uneven, ["backbone.layers.0.mixer.out_proj"]);
        assert_eq!(
            choice.excluded,
            [
                "backbone.embeddings",
                "backbone.layers.0.mixer.conv1d",
                "backbone.layers.0.mixer.out_proj",
                "backbone.layers.1.mixer.fc1_latent_proj",
                "backbone.layers.1.mixer.gate",
                "backbone.layers.2.mixer.q_proj",
                "lm_head",
                "mtp.*",
            ]
        );
    }

    #[test]
    fn a_stack_of_experts_becomes_matrices_with_names() {
        let names: [(&str, &[usize]); 1] = [("model.layers.1.mixer.experts.up_proj", &[3, 8, 16])];
        let choice = choose(&names, &[]).expect("something is packed");
        let expect: Vec<String> = (0..3)
            .map(|expert| format!("model.layers.1.mixer.experts.{expert}.up_proj"))
            .collect();
        assert_eq!(packed(&choice), expect);
    }

    #[test]
    fn the_operator_may_leave_out_more() {
        let choice = choose(MODEL, &["*.experts.*", "layers.3.mixer.up_proj"]);
        let choice = choice.expect("something is packed");
        assert_eq!(packed(&choice).len(), 2);
        let excluded = "backbone.layers.1.mixer.experts.*.up_proj".to_owned();
        assert!(choice.excluded.contains(&excluded), "{:?}", choice.excluded);
        for (patterns, why) in [(&["lm_heat"][..], "lm_heat"), (&["*"], "no module")] {
            let error = choose(MODEL, patterns)
                .map(|_| ())
                .expect_err("nothing is left");
            assert!(error.contains(why), "{error}");
        }
    }
}
