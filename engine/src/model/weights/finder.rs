//! Claims tensors by name and shape, and refuses what is left over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::tensor::Dtype;

use super::{Init, Inventory, Source, Weight, fnv1a};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::EngineError;
use crate::model::config::ModelConfig;

/// Endings of the extra tensors that a quantised module has.
const SCALES: [&str; 5] = [
    ".weight_scale_2",
    ".weight_scale",
    ".input_scale",
    ".k_scale",
    ".v_scale",
];

/// Claims tensors by name and shape.
pub(super) struct Finder {
    pub(super) origin: Origin,
    /// The file errors name when no tensor is at hand.
    pub(super) path: PathBuf,
    pub(super) inventory: Inventory,
}

pub(super) enum Origin {
    Files {
        /// By name without prefixes; each with its full name.
        unclaimed: BTreeMap<String, (String, StoredTensor)>,
        /// What the full names begin with.
        prefix: String,
    },
    Seed(u64),
}

impl Finder {
    pub(super) fn over(checkpoint: Checkpoint) -> Result<Self, EngineError> {
        let path = checkpoint.path().to_owned();
        let mut unclaimed: BTreeMap<String, (String, StoredTensor)> = BTreeMap::new();
        let mut prefix = None;
        let tensors = checkpoint.into_tensors();
        refuse_quantised(&tensors)?;
        for (full, tensor) in tensors {
            let name = short_name(&full);
            if name.ends_with("rotary_emb.inv_freq") {
                continue;
            }
            if name.starts_with("layers.") && prefix.is_none() {
                prefix = Some(full[..full.len() - name.len()].to_owned());
            }
            if let Some((other, _)) = unclaimed.get(name) {
                return Err(EngineError::Checkpoint {
                    path: tensor.path.to_path_buf(),
                    what: format!("tensors {other:?} and {full:?} are the same weight"),
                });
            }
            unclaimed.insert(name.to_owned(), (full, tensor));
        }
        Ok(Self {
            origin: Origin::Files {
                unclaimed,
                prefix: prefix.unwrap_or_else(|| "backbone.".into()),
            },
            path,
            inventory: Inventory::default(),
        })
    }

    pub(super) fn inventing(seed: u64) -> Self {
        Self {
            origin: Origin::Seed(seed),
            path: PathBuf::from("dummy weights"),
            inventory: Inventory::default(),
        }
    }

    /// Claims one tensor, which must have this shape and a plain element type.
    pub(super) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        init: Init,
    ) -> Result<Weight, EngineError> {
        let weight = match &mut self.origin {
            Origin::Seed(seed) => Weight {
                shape: shape.to_vec(),
                source: Source::Dummy {
                    init,
                    seed: fnv1a(*seed, name.as_bytes()),
                },
            },
            Origin::Files { unclaimed, prefix } => {
                let Some((full, tensor)) = unclaimed.remove(name) else {
                    let full = full_name(prefix, name);
                    return Err(self.fail(format!("tensor {full:?} {shape:?} is missing")));
                };
                check_tensor(&full, &tensor, shape)?;
                Weight {
                    shape: shape.to_vec(),
                    source: Source::Stored(tensor),
                }
            }
        };
        self.inventory.num_parameters += weight.num_elements();
        self.inventory.num_bytes += weight.num_bytes();
        let line = format!(
            "{name} {} {shape:?} {:x}\n",
            weight.dtype(),
            sample(name, &weight)
        );
        self.inventory.listing.push_str(&line);
        Ok(weight)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => unclaimed.contains_key(name),
            Origin::Seed(_) => false,
        }
    }

    pub(super) fn has_any(&self, start: &str) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => unclaimed.keys().any(|name| name.starts_with(start)),
            // Nobody asks a dummy for drafts.
            Origin::Seed(_) => false,
        }
    }

    pub(super) fn discard(&mut self, name: &str) {
        if let Origin::Files { unclaimed, .. } = &mut self.origin {
            unclaimed.remove(name);
        }
    }

    /// A tensor that no layer claimed means that the configuration describes another model. The
    /// draft block of a model whose configuration does not mention it is left alone: converters
    /// lose the key.
    pub(super) fn refuse_leftovers(&mut self, config: &ModelConfig) -> Result<(), EngineError> {
        let Origin::Files { unclaimed, .. } = &self.origin else {
            return Ok(());
        };
        let left = unclaimed
            .iter()
            .filter(|(name, _)| config.mtp_layers.is_some() || !name.starts_with("mtp."))
            .map(|(_, entry)| entry);
        let mut left = left.peekable();
        let Some((full, tensor)) = left.peek() else {
            return Ok(());
        };
        let (full, path, shape) = (
            full.clone(),
            tensor.path.to_path_buf(),
            tensor.shape.clone(),
        );
        let more = match left.count() - 1 {
            0 => String::new(),
            count => format!(" (and {count} more)"),
        };
        Err(EngineError::Checkpoint {
            path,
            what: format!("tensor {full:?} {shape:?} has no place in this model{more}"),
        })
    }

    pub(super) fn fail(&self, what: String) -> EngineError {
        EngineError::Checkpoint {
            path: self.path.clone(),
            what,
        }
    }
}

/// Drops what wrappers and writers put before the model's own names.
fn short_name(full: &str) -> &str {
    let name = full.strip_prefix("language_model.").unwrap_or(full);
    name.strip_prefix("backbone.")
        .or_else(|| name.strip_prefix("model."))
        .unwrap_or(name)
}

fn full_name(prefix: &str, name: &str) -> String {
    if name.starts_with("lm_head.") || name.starts_with("mtp.") {
        let outer = prefix
            .strip_suffix("backbone.")
            .or_else(|| prefix.strip_suffix("model."));
        format!("{}{name}", outer.unwrap_or(""))
    } else {
        format!("{prefix}{name}")
    }
}

fn check_tensor(full: &str, tensor: &StoredTensor, shape: &[usize]) -> Result<(), EngineError> {
    let fail = |what| {
        Err(EngineError::Checkpoint {
            path: tensor.path.to_path_buf(),
            what,
        })
    };
    if tensor.shape != shape {
        return fail(format!(
            "tensor {full:?} is {:?}, the configuration makes it {shape:?}",
            tensor.shape
        ));
    }
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return fail(format!(
            "tensor {full:?} is {}, expected F32, F16 or BF16",
            tensor.dtype
        ));
    }
    Ok(())
}

/// Names the first quantised module and its format, told by the tensors present.
fn refuse_quantised(tensors: &BTreeMap<String, StoredTensor>) -> Result<(), EngineError> {
    for (name, tensor) in tensors {
        let scale = SCALES.iter().find(|scale| name.ends_with(*scale));
        let is_packed = matches!(
            tensor.dtype,
            Dtype::U8 | Dtype::I8 | Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F4
        );
        if scale.is_none() && !is_packed {
            continue;
        }
        let module = name
            .strip_suffix(*scale.unwrap_or(&".weight"))
            .unwrap_or(name);
        let weight = tensors.get(&format!("{module}.weight"));
        let format = if tensors.contains_key(&format!("{module}.weight_scale_2")) {
            "NVFP4".to_owned()
        } else if name.ends_with(".k_scale") || name.ends_with(".v_scale") {
            "FP8 cache".to_owned()
        } else {
            weight.unwrap_or(tensor).dtype.to_string()
        };
        return Err(EngineError::Checkpoint {
            path: tensor.path.to_path_buf(),
            what: format!(
                "module {module:?} is quantised ({format}, tensor {name:?}); only F32, F16 and \
                 BF16 weights can be served"
            ),
        });
    }
    Ok(())
}

/// Tells weights of one shape apart without reading them: the first bytes of every tensor but the
/// routed experts', which are tens of thousands in a large model, a page each.
fn sample(name: &str, weight: &Weight) -> u64 {
    const NUM_BYTES: usize = 64;
    match &weight.source {
        Source::Stored(_) if name.contains(".experts.") => 0,
        Source::Stored(tensor) => fnv1a(0, &tensor.data[..tensor.data.len().min(NUM_BYTES)]),
        Source::Dummy { seed, .. } => *seed,
    }
}
