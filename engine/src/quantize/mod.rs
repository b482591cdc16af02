//! Writes a checkpoint anew with its large matrices packed, as NVIDIA's ModelOpt packs them.
//!
//! | file | is |
//! |---|---|
//! | `choice` | which modules are packed, and the others' names for the configuration |
//! | `codes` | numbers to codes and scales, and what the rounding cost |
//! | `shards` | which tensor goes where in which file |
//! | `output` | the new folder; removed again unless everything was written |
//! | `texts` | `config.json`, `hf_quant_config.json`, the tokenizer |
//!
//! Tensors pass through one by one, in pieces: a model of any size is written in the memory of a
//! few million numbers. Weights only: no scale of activations is written, because that takes a
//! calibration, and none is needed where activations stay as they are.

mod choice;
mod codes;
mod output;
mod shards;
mod texts;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use safetensors::tensor::Dtype;

use self::choice::{Choice, Module};
use self::codes::{Matrix, Rounding};
use self::output::OutputFolder;
use self::shards::{Entry, Shards};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::device;
use crate::error::EngineError;
use crate::model::ModelConfig;
use crate::model::weights;

/// What a matrix is packed into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedFormat {
    /// E4M3 under one scale per matrix: 8 bits a weight.
    Fp8,
    /// E2M1 under an E4M3 scale per 16 weights and one scale per matrix: 4.5 bits a weight.
    Nvfp4,
}

impl FromStr for PackedFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fp8" => Ok(Self::Fp8),
            "nvfp4" => Ok(Self::Nvfp4),
            _ => Err(format!("{text:?} is none of nvfp4, fp8")),
        }
    }
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp8 => "fp8",
            Self::Nvfp4 => "nvfp4",
        })
    }
}

/// A checkpoint to write.
#[derive(Clone, Debug)]
pub struct Quantize {
    /// The folder that is read.
    pub model: PathBuf,
    /// The folder that is made; there must be none yet, or an empty one.
    pub output: PathBuf,
    /// What for.
    pub format: PackedFormat,
    /// Modules to leave as they are, beside those that always are; `*` stands for anything.
    pub exclude: Vec<String>,
}

/// One packed module, or all experts' matrices of one kind in a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// As the checkpoint calls it; `*` in the place of the experts' numbers.
    pub name: String,
    /// Matrices.
    pub count: usize,
    /// Length of the difference over the length of the weights.
    pub error: f64,
    /// The largest of the matrices'.
    pub worst: f64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Matrices that were packed.
    pub num_packed: usize,
    /// Over all of them.
    pub error: f64,
    /// Modules that would have been packed if their rows were whole groups of 16.
    pub uneven: Vec<String>,
    /// Bytes of tensors read.
    pub bytes_before: u64,
    /// Bytes of tensors written.
    pub bytes_after: u64,
    /// Files of tensors written.
    pub num_shards: usize,
}

impl Quantize {
    /// Reads, packs and writes; `report` hears of every module when it is written.
    ///
    /// # Errors
    /// What is wrong with the checkpoint or the output folder; a full disk is [`EngineError::Io`].
    /// Nothing is left of a folder that was not finished.
    pub fn run(&self, mut report: impl FnMut(&ModuleReport)) -> Result<Quantized, EngineError> {
        let text = texts::read_config(&self.model)?;
        let model = ModelConfig::parse(&text, &self.model.join("config.json"))?;
        let checkpoint = Checkpoint::open(&self.model)?;
        let path = checkpoint.path().to_owned();
        let tensors = checkpoint.into_tensors();
        refuse_packed(&tensors)?;
        // The same checks as before serving: what comes out will be served.
        weights::locate(&model, Checkpoint::open(&self.model)?)?;
        let choice = Choice::new(&tensors, self.format, &self.exclude)
            .map_err(|what| EngineError::Checkpoint { path, what })?;

        let mut output = OutputFolder::create(&self.output)?;
        let groups = choice
            .modules
            .iter()
            .map(|module| entries(module, self.format));
        let mut shards = Shards::create(groups, &mut output)?;
        let mut total = Total::default();
        for module in &choice.modules {
            match module {
                Module::Kept { name, tensor } => shards.write(name, 0, &tensor.data)?,
                Module::Packed { module, matrix, .. } => {
                    let rounding = self.pack(module, matrix, &mut shards)?;
                    total.add(module, rounding, &mut report);
                }
            }
        }
        total.finish(&mut report);
        let num_shards = shards.finish(&mut output)?;
        texts::copy_companions(&self.model, &mut output)?;
        texts::write_configs(&text, self.format, &choice.excluded, &mut output)?;
        output.keep();
        Ok(Quantized {
            num_packed: total.num_packed,
            error: total.rounding.error(),
            uneven: choice.uneven,
            bytes_before: tensors
                .values()
                .map(|tensor| tensor.data.len() as u64)
                .sum(),
            bytes_after: shards.num_bytes(),
            num_shards,
        })
    }

    fn pack(
        &self,
        module: &str,
        matrix: &Matrix,
        shards: &mut Shards,
    ) -> Result<Rounding, EngineError> {
        let largest = matrix.largest();
        if !largest.is_finite() {
            return Err(EngineError::Checkpoint {
                path: matrix.path.to_path_buf(),
                what: format!("module {module:?} has weights that are no numbers"),
            });
        }
        let weight = format!("{module}.weight");
        let weight_scale = format!("{module}.weight_scale");
        let mut rounding = Rounding::default();
        match self.format {
            PackedFormat::Fp8 => {
                let scale = codes::fp8_scale(largest);
                shards.write(&weight_scale, 0, &scale.to_le_bytes())?;
                let mut at = 0;
                matrix.pack(
                    device::num_cores(),
                    |row| codes::fp8(row, scale),
                    |piece| {
                        rounding += piece.rounding;
                        shards.write(&weight, at, &piece.codes)?;
                        at += piece.codes.len() as u64;
                        Ok(())
                    },
                )?;
            }
            PackedFormat::Nvfp4 => {
                let scale = codes::nvfp4_scale(largest);
                shards.write(&format!("{module}.weight_scale_2"), 0, &scale.to_le_bytes())?;
                let (mut at, mut scales_at) = (0, 0);
                matrix.pack(
                    device::num_cores(),
                    |row| codes::nvfp4(row, scale),
                    |piece| {
                        rounding += piece.rounding;
                        shards.write(&weight, at, &piece.codes)?;
                        shards.write(&weight_scale, scales_at, &piece.scales)?;
                        at += piece.codes.len() as u64;
                        scales_at += piece.scales.len() as u64;
                        Ok(())
                    },
                )?;
            }
        }
        Ok(rounding)
    }
}

/// The tensors that a module becomes.
fn entries(module: &Module, format: PackedFormat) -> Vec<Entry> {
    let entry = |name: String, dtype, shape: Vec<usize>| Entry { name, dtype, shape };
    match module {
        Module::Kept { name, tensor } => {
            vec![entry(name.clone(), tensor.dtype, tensor.shape.clone())]
        }
        Module::Packed { module, matrix, .. } => {
            let (n, k) = (matrix.num_rows, matrix.row_len);
            let scalar = |name: &str| entry(format!("{module}.{name}"), Dtype::F32, Vec::new());
            let weight = format!("{module}.weight");
            match format {
                PackedFormat::Fp8 => vec![
                    entry(weight, Dtype::F8_E4M3, vec![n, k]),
                    scalar("weight_scale"),
                ],
                PackedFormat::Nvfp4 => vec![
                    entry(weight, Dtype::U8, vec![n, k / 2]),
                    entry(
                        format!("{module}.weight_scale"),
                        Dtype::F8_E4M3,
                        vec![n, k / codes::GROUP],
                    ),
                    scalar("weight_scale_2"),
                ],
            }
        }
    }
}

/// Rounding twice costs twice.
fn refuse_packed(tensors: &BTreeMap<String, StoredTensor>) -> Result<(), EngineError> {
    let packed = tensors.iter().find(|(name, tensor)| {
        let is_plain = matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        !is_plain || name.ends_with("_scale") || name.ends_with("_scale_2")
    });
    match packed {
        None => Ok(()),
        Some((name, tensor)) => Err(EngineError::Checkpoint {
            path: tensor.path.to_path_buf(),
            what: format!(
                "is quantised already (tensor {name:?} is {}): start from the original in BF16",
                tensor.dtype
            ),
        }),
    }
}

/// Sums over matrices; experts of a layer are reported together.
#[derive(Default)]
struct Total {
    rounding: Rounding,
    num_packed: usize,
    /// What more matrices may still come for: both kinds of a layer's experts take turns.
    open: Vec<(ModuleReport, Rounding)>,
}

impl Total {
    fn add(&mut self, module: &str, rounding: Rounding, report: &mut impl FnMut(&ModuleReport)) {
        self.rounding += rounding;
        self.num_packed += 1;
        let name = choice::without_expert(module);
        let all_experts = |name: &str| name.rfind('*').map(|at| name[..at].to_owned());
        let group = all_experts(&name);
        if let Some((first, _)) = self.open.first()
            && (group.is_none() || group != all_experts(&first.name))
        {
            self.finish(report);
        }
        let rest = self.open.iter_mut().find(|(open, _)| open.name == name);
        if let Some((open, sum)) = rest {
            open.count += 1;
            open.worst = open.worst.max(rounding.error());
            *sum += rounding;
        } else {
            let open = ModuleReport {
                name,
                count: 1,
                error: 0.0,
                worst: rounding.error(),
            };
            self.open.push((open, rounding));
        }
    }

    fn finish(&mut self, report: &mut impl FnMut(&ModuleReport)) {
        for (mut open, rounding) in self.open.drain(..) {
            open.error = rounding.error();
            report(&open);
        }
    }
}
