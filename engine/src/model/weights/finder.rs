//! Claims tensors by name and shape, and refuses what is left over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernels::{Format, NVFP4_BLOCK};
use safetensors::tensor::Dtype;

use super::{Init, Inventory, MatrixWeight, Source, Weight, fnv1a};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::EngineError;
use crate::model::config::{ModelConfig, Quantization};

/// Element types that numbers are stored in as they are.
const PLAIN: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// What errors offer instead.
const SERVED: &str =
    "F32, F16, BF16, FP8 (E4M3 with one scale) and NVFP4 (blocks of 16) can be served";

/// Claims tensors by name and shape.
pub(super) struct Finder {
    pub(super) origin: Origin,
    /// The file errors name when no tensor is at hand.
    pub(super) path: PathBuf,
    pub(super) inventory: Inventory,
    quantization: Quantization,
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
    pub(super) fn over(
        checkpoint: Checkpoint,
        quantization: &Quantization,
    ) -> Result<Self, EngineError> {
        let path = checkpoint.path().to_owned();
        let mut unclaimed: BTreeMap<String, (String, StoredTensor)> = BTreeMap::new();
        let mut prefix = None;
        let tensors = checkpoint.into_tensors();
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
            quantization: quantization.clone(),
        })
    }

    pub(super) fn inventing(seed: u64, quantization: &Quantization) -> Self {
        Self {
            origin: Origin::Seed(seed),
            path: PathBuf::from("dummy weights"),
            inventory: Inventory::default(),
            quantization: quantization.clone(),
        }
    }

    /// Claims one tensor, which must have this shape and a plain element type.
    pub(super) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        init: Init,
    ) -> Result<Weight, EngineError> {
        let weight = match self.origin {
            Origin::Seed(_) => self.invented(name, shape, init),
            Origin::Files { .. } => self.stored(name, shape, PLAIN)?,
        };
        self.inventory.num_parameters += weight.num_elements();
        Ok(self.listed(name, weight))
    }

    /// A weight that is made at load.
    fn invented(&self, name: &str, shape: &[usize], init: Init) -> Weight {
        let Origin::Seed(seed) = self.origin else {
            unreachable!("what is stored is not invented");
        };
        Weight {
            shape: shape.to_vec(),
            source: Source::Dummy {
                init,
                seed: fnv1a(seed, name.as_bytes()),
            },
        }
    }

    /// Claims a module's matrix with its scales, in whatever format the tensors say that it is.
    pub(super) fn matrix(
        &mut self,
        module: &str,
        shape: [usize; 2],
        init: Init,
    ) -> Result<MatrixWeight, EngineError> {
        let format = self.format(module)?;
        let name = format!("{module}.weight");
        if format == Format::Plain {
            return Ok(MatrixWeight::Plain(self.take(&name, &shape, init)?));
        }
        self.inventory.num_parameters += (shape[0] * shape[1]) as u64;
        // Static scales of activations: only weights are read quantised here.
        self.discard(&format!("{module}.input_scale"));
        if format == Format::Fp8 {
            return Ok(MatrixWeight::Fp8 {
                codes: self.part(&name, &shape, Dtype::F8_E4M3, Init::Fp8Codes)?,
                scale: self.scalar(&format!("{module}.weight_scale"), init.fp8_scale())?,
            });
        }
        let [n, k] = shape;
        if k % NVFP4_BLOCK != 0 {
            return Err(self.fail(format!(
                "module {:?} is NVFP4, whose blocks of {NVFP4_BLOCK} do not divide its {k} columns",
                self.full_name(module)
            )));
        }
        Ok(MatrixWeight::Nvfp4 {
            codes: self.part(&name, &[n, k / 2], Dtype::U8, Init::Nvfp4Codes)?,
            block_scales: self.part(
                &format!("{module}.weight_scale"),
                &[n, k / NVFP4_BLOCK],
                Dtype::F8_E4M3,
                Init::BlockScales,
            )?,
            scale: self.scalar(&format!("{module}.weight_scale_2"), init.nvfp4_scale())?,
        })
    }

    /// Claims a scale that a checkpoint may leave out.
    pub(super) fn scale(&mut self, name: &str) -> Result<Option<Weight>, EngineError> {
        // A dummy has none.
        let unused = Init::Constant(1.0);
        self.has(name)
            .then(|| self.scalar(name, unused))
            .transpose()
    }

    /// How a module's matrix is stored: the tensors tell, and what the configuration says must agree.
    /// Of the draft block it says nothing: its tensors are never quantised.
    fn format(&self, module: &str) -> Result<Format, EngineError> {
        let format = self.stored_format(module)?;
        for (source, said) in self.quantization.of(module) {
            let Ok(said) = said else {
                let algorithm = said.as_ref().expect_err("matched above");
                return Err(self.fail(format!(
                    "module {:?} is quantised with {algorithm}, `{source}` says; {SERVED}",
                    self.full_name(module)
                )));
            };
            if *said != format && !module.starts_with("mtp.") {
                return Err(self.fail(format!(
                    "module {:?} is {said}, `{source}` says, but its tensors are {format}",
                    self.full_name(module)
                )));
            }
        }
        Ok(format)
    }

    /// Told by the tensors present; a dummy is what it is said to be, and plain in the draft block.
    fn stored_format(&self, module: &str) -> Result<Format, EngineError> {
        let Origin::Files { unclaimed, .. } = &self.origin else {
            if module.starts_with("mtp.") {
                return Ok(Format::Plain);
            }
            let said = self.quantization.of(module).next();
            // What is said and not known is refused where it is compared.
            return Ok(said.map_or(Format::Plain, |(_, said)| {
                said.as_ref().map_or(Format::Plain, |format| *format)
            }));
        };
        let Some((_, weight)) = unclaimed.get(&format!("{module}.weight")) else {
            // Whoever takes it says that it is missing.
            return Ok(Format::Plain);
        };
        let is_scaled = |ending: &str| unclaimed.contains_key(&format!("{module}.{ending}"));
        match weight.dtype {
            Dtype::F8_E4M3 => Ok(Format::Fp8),
            Dtype::U8 if is_scaled("weight_scale_2") => Ok(Format::Nvfp4),
            Dtype::U8 | Dtype::I8 | Dtype::F8_E5M2 | Dtype::F4 => Err(EngineError::Checkpoint {
                path: weight.path.to_path_buf(),
                what: format!(
                    "module {:?} is quantised in an unknown way ({}{}); {SERVED}",
                    self.full_name(module),
                    weight.dtype,
                    if is_scaled("weight_scale") {
                        ", without `weight_scale_2`"
                    } else {
                        ", without scales"
                    },
                ),
            }),
            _ => Ok(Format::Plain),
        }
    }

    /// Claims one tensor of a quantised matrix.
    fn part(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: Dtype,
        init: Init,
    ) -> Result<Weight, EngineError> {
        let weight = match self.origin {
            Origin::Seed(_) => self.invented(name, shape, init),
            Origin::Files { .. } => self.stored(name, shape, &[dtype])?,
        };
        Ok(self.listed(name, weight))
    }

    /// Claims a single number, whose shape writers spell in two ways.
    fn scalar(&mut self, name: &str, init: Init) -> Result<Weight, EngineError> {
        if let Origin::Files { unclaimed, .. } = &mut self.origin
            && let Some((_, tensor)) = unclaimed.get_mut(name)
            && tensor.shape.is_empty()
        {
            tensor.shape = vec![1];
        }
        let weight = match self.origin {
            Origin::Seed(_) => self.invented(name, &[1], init),
            Origin::Files { .. } => self.stored(name, &[1], PLAIN)?,
        };
        Ok(self.listed(name, weight))
    }

    /// Takes a tensor out of the files.
    fn stored(
        &mut self,
        name: &str,
        shape: &[usize],
        dtypes: &[Dtype],
    ) -> Result<Weight, EngineError> {
        let Origin::Files { unclaimed, .. } = &mut self.origin else {
            unreachable!("a dummy is not stored");
        };
        let Some((full, tensor)) = unclaimed.remove(name) else {
            let full = self.full_name(name);
            return Err(self.fail(format!("tensor {full:?} {shape:?} is missing")));
        };
        check_tensor(&full, &tensor, shape, dtypes)?;
        Ok(Weight {
            shape: shape.to_vec(),
            source: Source::Stored(tensor),
        })
    }

    /// Counts a weight's bytes and writes its line.
    fn listed(&mut self, name: &str, weight: Weight) -> Weight {
        self.inventory.num_bytes += weight.num_bytes();
        if weight.dtype() == Dtype::BF16 {
            self.inventory.num_bf16_bytes += weight.num_bytes();
        }
        let line = format!(
            "{name} {} {:?} {:x}\n",
            weight.dtype(),
            weight.shape,
            sample(name, &weight)
        );
        self.inventory.listing.push_str(&line);
        if let Source::Stored(tensor) = &weight.source {
            self.inventory.stored.push(tensor.data.clone());
        }
        weight
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => unclaimed.contains_key(name),
            Origin::Seed(_) => false,
        }
    }

    /// Whether there is a draft block, given that the configuration has one: writers drop its tensors
    /// and keep its keys. A dummy has all that its configuration says.
    pub(super) fn has_draft(&self) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => {
                unclaimed.keys().any(|name| name.starts_with("mtp."))
            }
            Origin::Seed(_) => true,
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

    /// The name as the files have it, for errors.
    fn full_name(&self, name: &str) -> String {
        let Origin::Files { prefix, .. } = &self.origin else {
            return name.to_owned();
        };
        if name.starts_with("lm_head.") || name == "lm_head" || name.starts_with("mtp.") {
            let outer = prefix
                .strip_suffix("backbone.")
                .or_else(|| prefix.strip_suffix("model."));
            format!("{}{name}", outer.unwrap_or(""))
        } else {
            format!("{prefix}{name}")
        }
    }

    pub(super) fn fail(&self, what: String) -> EngineError {
        EngineError::Checkpoint {
            path: self.path.clone(),
            what,
        }
    }
}

/// Drops what wrappers and writers put before the model's own names.
pub(crate) fn short_name(full: &str) -> &str {
    let name = full.strip_prefix("language_model.").unwrap_or(full);
    name.strip_prefix("backbone.")
        .or_else(|| name.strip_prefix("model."))
        .unwrap_or(name)
}

fn check_tensor(
    full: &str,
    tensor: &StoredTensor,
    shape: &[usize],
    dtypes: &[Dtype],
) -> Result<(), EngineError> {
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
    if !dtypes.contains(&tensor.dtype) {
        let expected = match dtypes {
            [only] => only.to_string(),
            _ => "F32, F16 or BF16".to_owned(),
        };
        return fail(format!(
            "tensor {full:?} is {}, expected {expected}",
            tensor.dtype
        ));
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
        Source::Cut(_) => unreachable!("nothing is cut before all is located"),
    }
}
