//! Checkpoint names to fields. Names appear only here.
//!
//! [`locate`] walks the model once, claims every tensor it needs by name and shape, and refuses what
//! is left over. It reads no weight: a [`Weight`] is a place in the memory map, or a recipe for a
//! dummy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::tensor::Dtype;

use super::config::{LayerKind, ModelConfig};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::EngineError;

/// Every weight of the model, not yet on a device.
pub(crate) struct ModelWeights {
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: Weight,
    /// `None` if the head reads the embedding table.
    pub(crate) head: Option<Weight>,
}

pub(crate) struct LayerWeights {
    pub(crate) norm: Weight,
    pub(crate) mixer: MixerWeights,
}

pub(crate) enum MixerWeights {
    Mamba(Box<MambaWeights>),
    Attention(AttentionWeights),
    Moe(Box<MoeWeights>),
    Mlp(MlpWeights),
}

pub(crate) struct LinearWeights {
    /// `[N, K]`: rows are outputs.
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Weight>,
}

pub(crate) struct MambaWeights {
    pub(crate) in_proj: LinearWeights,
    pub(crate) conv_weight: Weight,
    pub(crate) conv_bias: Option<Weight>,
    pub(crate) a_log: Weight,
    pub(crate) d: Weight,
    pub(crate) dt_bias: Weight,
    pub(crate) norm: Weight,
    pub(crate) out_proj: LinearWeights,
}

pub(crate) struct AttentionWeights {
    pub(crate) query: Weight,
    pub(crate) key: Weight,
    pub(crate) value: Weight,
    pub(crate) output: Weight,
}

pub(crate) struct MlpWeights {
    pub(crate) up: LinearWeights,
    pub(crate) down: LinearWeights,
}

pub(crate) struct MoeWeights {
    pub(crate) gate: Weight,
    pub(crate) correction_bias: Weight,
    /// Into and out of the latent width.
    pub(crate) latent: Option<(LinearWeights, LinearWeights)>,
    pub(crate) up: ExpertWeights,
    pub(crate) down: ExpertWeights,
    pub(crate) shared: Option<MlpWeights>,
}

pub(crate) enum ExpertWeights {
    /// `[E, N, K]` in one tensor.
    Fused(Weight),
    /// One `[N, K]` each.
    PerExpert(Vec<Weight>),
}

/// One tensor: where it is, or how to make it.
#[derive(Clone)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) source: Source,
}

#[derive(Clone)]
pub(crate) enum Source {
    /// In a shard.
    Stored(StoredTensor),
    /// Made at load, from a seed of its own.
    Dummy { init: Init, seed: u64 },
}

/// What random weights look like. Scales keep a residual stream of unit variance finite through
/// any depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    /// Every element the same.
    Constant(f32),
    /// Uniform with this standard deviation.
    Random { std: f32 },
    /// Logarithms of decay rates 1 to 16.
    DecayRate,
    /// Inverse softplus of time steps between 0.001 and 0.1.
    TimeStep,
}

impl Weight {
    /// Bytes as stored.
    pub(crate) fn num_bytes(&self) -> u64 {
        match &self.source {
            Source::Stored(tensor) => tensor.data.len() as u64,
            Source::Dummy { init, .. } => self.num_elements() * init.dtype().bitsize() as u64 / 8,
        }
    }

    pub(crate) fn num_elements(&self) -> u64 {
        self.shape.iter().map(|size| *size as u64).product()
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match &self.source {
            Source::Stored(tensor) => tensor.dtype,
            Source::Dummy { init, .. } => init.dtype(),
        }
    }
}

impl Init {
    /// As releases store them: matrices in bf16, the recurrence's scalars in f32.
    fn dtype(self) -> Dtype {
        match self {
            Self::Constant(_) | Self::Random { .. } => Dtype::BF16,
            Self::DecayRate | Self::TimeStep => Dtype::F32,
        }
    }
}

/// What was located, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    /// Elements of all weights, the draft block's included.
    pub(crate) num_parameters: u64,
    /// Bytes as stored of the weights that are loaded.
    pub(crate) num_bytes: u64,
    /// One line per tensor: name, element type, shape. For the fingerprint.
    pub(crate) listing: String,
}

/// Finds every weight in a checkpoint.
pub(crate) fn locate(
    config: &ModelConfig,
    checkpoint: Checkpoint,
) -> Result<(ModelWeights, Inventory), EngineError> {
    let mut finder = Finder::over(checkpoint)?;
    let weights = finder.model(config)?;
    finder.refuse_leftovers(config)?;
    if let Some(method) = &config.quantization {
        return Err(finder.fail(format!(
            "`quantization_config` announces {method}, but no tensor is quantised that way"
        )));
    }
    Ok((weights, finder.inventory))
}

/// Invents every weight from a seed: matrices in bf16 of the right shapes.
pub(crate) fn invent(config: &ModelConfig, seed: u64) -> (ModelWeights, Inventory) {
    let mut finder = Finder::inventing(seed);
    let weights = finder
        .model(config)
        .expect("an invented weight is never missing");
    (weights, finder.inventory)
}

/// Endings of the extra tensors that a quantised module has.
const SCALES: [&str; 5] = [
    ".weight_scale_2",
    ".weight_scale",
    ".input_scale",
    ".k_scale",
    ".v_scale",
];

struct Finder {
    origin: Origin,
    /// The file errors name when no tensor is at hand.
    path: PathBuf,
    inventory: Inventory,
}

enum Origin {
    Files {
        /// By name without prefixes; each with its full name.
        unclaimed: BTreeMap<String, (String, StoredTensor)>,
        /// What the full names begin with.
        prefix: String,
    },
    Seed(u64),
}

impl Finder {
    fn over(checkpoint: Checkpoint) -> Result<Self, EngineError> {
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

    fn inventing(seed: u64) -> Self {
        Self {
            origin: Origin::Seed(seed),
            path: PathBuf::from("dummy weights"),
            inventory: Inventory::default(),
        }
    }

    fn model(&mut self, config: &ModelConfig) -> Result<ModelWeights, EngineError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let depth = config.layers.len();
        let embedding = self.take("embeddings.weight", &[vocab, hidden], Init::unit())?;
        let mut mlp_sizes = config.mlp_sizes.iter().copied();
        let layers = config
            .layers
            .iter()
            .enumerate()
            .map(|(at, kind)| {
                let place = Place {
                    name: format!("layers.{at}"),
                    depth,
                    mlp_size: if *kind == LayerKind::Mlp {
                        mlp_sizes.next().expect("one size per dense layer")
                    } else {
                        0
                    },
                };
                self.layer(config, *kind, &place)
            })
            .collect::<Result<_, _>>()?;
        let norm = self.take("norm_f.weight", &[hidden], Init::Constant(1.0))?;
        let head = if config.tie_word_embeddings {
            self.discard("lm_head.weight");
            None
        } else {
            Some(self.take("lm_head.weight", &[vocab, hidden], Init::fan_in(hidden))?)
        };
        if let Some(kinds) = &config.mtp_layers
            && self.has_any("mtp.")
        {
            self.check_mtp(config, kinds)?;
        }
        Ok(ModelWeights {
            embedding,
            layers,
            norm,
            head,
        })
    }

    fn layer(
        &mut self,
        config: &ModelConfig,
        kind: LayerKind,
        place: &Place,
    ) -> Result<LayerWeights, EngineError> {
        let name = &place.name;
        let norm = self.norm(&format!("{name}.norm"), config.hidden_size)?;
        let mixer = match kind {
            LayerKind::Mamba => MixerWeights::Mamba(Box::new(self.mamba(config, place)?)),
            LayerKind::Attention => MixerWeights::Attention(self.attention(config, place)?),
            LayerKind::Moe => MixerWeights::Moe(Box::new(self.moe(config, place)?)),
            LayerKind::Mlp => MixerWeights::Mlp(self.mlp(
                &format!("{name}.mixer"),
                config,
                place.mlp_size,
                place,
            )?),
        };
        Ok(LayerWeights { norm, mixer })
    }

    fn mamba(&mut self, config: &ModelConfig, place: &Place) -> Result<MambaWeights, EngineError> {
        let mamba = config.mamba.as_ref().expect("the stack has Mamba layers");
        let mixer = format!("{}.mixer", place.name);
        let (hidden, inner) = (config.hidden_size, mamba.inner_size());
        let (conv_dim, taps) = (mamba.conv_dim(), mamba.conv_kernel);
        let heads = [mamba.num_heads];
        Ok(MambaWeights {
            in_proj: self.linear(
                &format!("{mixer}.in_proj"),
                [mamba.projected_size(), hidden],
                mamba.proj_bias,
                Init::fan_in(hidden),
            )?,
            conv_weight: self.take(
                &format!("{mixer}.conv1d.weight"),
                &[conv_dim, 1, taps],
                Init::fan_in(taps),
            )?,
            conv_bias: if mamba.conv_bias {
                let name = format!("{mixer}.conv1d.bias");
                Some(self.take(&name, &[conv_dim], Init::Constant(0.0))?)
            } else {
                None
            },
            a_log: self.take(&format!("{mixer}.A_log"), &heads, Init::DecayRate)?,
            d: self.take(&format!("{mixer}.D"), &heads, Init::Constant(1.0))?,
            dt_bias: self.take(&format!("{mixer}.dt_bias"), &heads, Init::TimeStep)?,
            norm: self.norm(&format!("{mixer}.norm"), inner)?,
            out_proj: self.linear(
                &format!("{mixer}.out_proj"),
                [hidden, inner],
                mamba.proj_bias,
                place.output(inner),
            )?,
        })
    }

    fn attention(
        &mut self,
        config: &ModelConfig,
        place: &Place,
    ) -> Result<AttentionWeights, EngineError> {
        let attention = config
            .attention
            .as_ref()
            .expect("the stack has attention layers");
        let mixer = format!("{}.mixer", place.name);
        let hidden = config.hidden_size;
        let queries = attention.num_heads * attention.head_dim;
        let keys = attention.num_kv_heads * attention.head_dim;
        let mut project = |name: &str, shape: [usize; 2], init| {
            self.take(&format!("{mixer}.{name}_proj.weight"), &shape, init)
        };
        Ok(AttentionWeights {
            query: project("q", [queries, hidden], Init::fan_in(hidden))?,
            key: project("k", [keys, hidden], Init::fan_in(hidden))?,
            value: project("v", [keys, hidden], Init::fan_in(hidden))?,
            output: project("o", [hidden, queries], place.output(queries))?,
        })
    }

    fn moe(&mut self, config: &ModelConfig, place: &Place) -> Result<MoeWeights, EngineError> {
        let moe = config.moe.as_ref().expect("the stack has expert layers");
        let mixer = format!("{}.mixer", place.name);
        let hidden = config.hidden_size;
        let width = moe.latent_size.unwrap_or(hidden);
        let experts = moe.num_experts;
        let latent = match moe.latent_size {
            None => None,
            Some(latent) => {
                let into = format!("{mixer}.fc1_latent_proj");
                let out = format!("{mixer}.fc2_latent_proj");
                let bias = config.mlp_bias;
                Some((
                    self.linear(&into, [latent, hidden], bias, Init::fan_in(hidden))?,
                    self.linear(&out, [hidden, latent], bias, place.output(latent))?,
                ))
            }
        };
        Ok(MoeWeights {
            gate: self.take(
                &format!("{mixer}.gate.weight"),
                &[experts, hidden],
                Init::fan_in(hidden),
            )?,
            correction_bias: self.take(
                &format!("{mixer}.gate.e_score_correction_bias"),
                &[experts],
                Init::Constant(0.0),
            )?,
            latent,
            up: self.experts(
                &mixer,
                "up_proj",
                experts,
                [moe.expert_size, width],
                Init::fan_in(width),
            )?,
            down: self.experts(
                &mixer,
                "down_proj",
                experts,
                [width, moe.expert_size],
                Init::fan_in(moe.expert_size),
            )?,
            shared: match moe.shared_size {
                None => None,
                Some(size) => {
                    Some(self.mlp(&format!("{mixer}.shared_experts"), config, size, place)?)
                }
            },
        })
    }

    fn experts(
        &mut self,
        mixer: &str,
        name: &str,
        count: usize,
        shape: [usize; 2],
        init: Init,
    ) -> Result<ExpertWeights, EngineError> {
        let fused = format!("{mixer}.experts.{name}");
        if self.has(&fused) {
            let shape = [count, shape[0], shape[1]];
            return Ok(ExpertWeights::Fused(self.take(&fused, &shape, init)?));
        }
        (0..count)
            .map(|expert| {
                self.take(
                    &format!("{mixer}.experts.{expert}.{name}.weight"),
                    &shape,
                    init,
                )
            })
            .collect::<Result<_, _>>()
            .map(ExpertWeights::PerExpert)
    }

    fn mlp(
        &mut self,
        name: &str,
        config: &ModelConfig,
        size: usize,
        place: &Place,
    ) -> Result<MlpWeights, EngineError> {
        let hidden = config.hidden_size;
        let bias = config.mlp_bias;
        Ok(MlpWeights {
            up: self.linear(
                &format!("{name}.up_proj"),
                [size, hidden],
                bias,
                Init::fan_in(hidden),
            )?,
            down: self.linear(
                &format!("{name}.down_proj"),
                [hidden, size],
                bias,
                place.output(size),
            )?,
        })
    }

    /// The draft block is checked like everything else and stays in its file: nothing drafts yet.
    /// Writers drop its tensors and keep its keys, so it may be absent as a whole.
    fn check_mtp(&mut self, config: &ModelConfig, kinds: &[LayerKind]) -> Result<(), EngineError> {
        let main = self.inventory.num_bytes;
        let hidden = config.hidden_size;
        self.norm("mtp.layers.0.enorm", hidden)?;
        self.norm("mtp.layers.0.hnorm", hidden)?;
        self.take(
            "mtp.layers.0.eh_proj.weight",
            &[hidden, 2 * hidden],
            Init::fan_in(2 * hidden),
        )?;
        for (at, kind) in kinds.iter().enumerate() {
            let place = Place {
                name: format!("mtp.layers.{at}"),
                depth: kinds.len(),
                mlp_size: 0,
            };
            self.layer(config, *kind, &place)?;
        }
        let last = kinds.len() - 1;
        self.norm(&format!("mtp.layers.{last}.final_layernorm"), hidden)?;
        self.inventory.num_bytes = main;
        Ok(())
    }

    fn norm(&mut self, name: &str, size: usize) -> Result<Weight, EngineError> {
        self.take(&format!("{name}.weight"), &[size], Init::Constant(1.0))
    }

    fn linear(
        &mut self,
        name: &str,
        shape: [usize; 2],
        has_bias: bool,
        init: Init,
    ) -> Result<LinearWeights, EngineError> {
        Ok(LinearWeights {
            weight: self.take(&format!("{name}.weight"), &shape, init)?,
            bias: if has_bias {
                let bias = format!("{name}.bias");
                Some(self.take(&bias, &shape[..1], Init::Constant(0.0))?)
            } else {
                None
            },
        })
    }

    /// Claims one tensor, which must have this shape and a plain element type.
    fn take(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Weight, EngineError> {
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
        let line = format!("{name} {} {shape:?}\n", weight.dtype());
        self.inventory.listing.push_str(&line);
        Ok(weight)
    }

    fn has(&self, name: &str) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => unclaimed.contains_key(name),
            Origin::Seed(_) => false,
        }
    }

    fn has_any(&self, start: &str) -> bool {
        match &self.origin {
            Origin::Files { unclaimed, .. } => unclaimed.keys().any(|name| name.starts_with(start)),
            // Nobody asks a dummy for drafts.
            Origin::Seed(_) => false,
        }
    }

    fn discard(&mut self, name: &str) {
        if let Origin::Files { unclaimed, .. } = &mut self.origin {
            unclaimed.remove(name);
        }
    }

    /// A tensor that no layer claimed means that the configuration describes another model. The
    /// draft block of a model whose configuration does not mention it is left alone: converters
    /// lose the key.
    fn refuse_leftovers(&mut self, config: &ModelConfig) -> Result<(), EngineError> {
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

    fn fail(&self, what: String) -> EngineError {
        EngineError::Checkpoint {
            path: self.path.clone(),
            what,
        }
    }
}

/// Where a layer stands.
struct Place {
    name: String,
    /// Layers that add to the same residual stream.
    depth: usize,
    /// Inner width of a dense layer.
    mlp_size: usize,
}

impl Place {
    /// For a matrix that writes to the residual stream: all of them together add about one unit of
    /// variance.
    fn output(&self, fan_in: usize) -> Init {
        Init::Random {
            std: ((fan_in * self.depth) as f32).powf(-0.5),
        }
    }
}

impl Init {
    fn unit() -> Self {
        Self::Random { std: 1.0 }
    }

    /// Unit variance in, unit variance out.
    fn fan_in(size: usize) -> Self {
        Self::Random {
            std: (size as f32).powf(-0.5),
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

/// FNV-1a over `bytes`, continuing from `hash`.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(hash ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
