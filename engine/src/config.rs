//! What the operator decides.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;

use crate::device::DeviceChoice;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder in Hugging Face layout: `config.json` and safetensors.
    Folder(PathBuf),
    /// A model inside the binary.
    Embedded {
        /// The text of its `config.json`.
        config: Bytes,
        /// One safetensors file.
        weights: Bytes,
    },
    /// Seeded random weights in the shapes of a folder's `config.json`, which is all it needs.
    Dummy {
        /// The folder.
        folder: PathBuf,
        /// Equal seeds make equal weights.
        seed: u64,
    },
}

/// Arithmetic of the weight products, and of the KV cache where nothing else says. Weights stay as stored;
/// recurrences, norms, exponentials and routing are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// What the device is best at: bf16 on a GPU, and on a CPU with dot products of it for weights that are
    /// mostly bf16; else f32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bf16 operands, f32 sums.
    Bf16,
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is none of auto, f32, bf16")),
        }
    }
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// How keys and values are cached. Less precision is more context in the same memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtypeChoice {
    /// What the checkpoint was calibrated for, else the arithmetic's type.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// E4M3, 8 bits, under the checkpoint's scales or 1.
    Fp8,
}

impl FromStr for KvDtypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "fp8" | "fp8_e4m3" => Ok(Self::Fp8),
            _ => Err(format!("{text:?} is none of auto, f32, bf16, fp8")),
        }
    }
}

/// What recurrent states are kept in between two tokens; arithmetic on them is f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateDtypeChoice {
    /// What `config.json` asks for, else 32 bits.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, rounded up or down at random. Half the memory, other numbers.
    F16,
}

impl FromStr for StateDtypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(format!("{text:?} is none of auto, float32, float16")),
        }
    }
}

/// Formats of dummy weights, whatever the folder's configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DummyMix {
    /// All in BF16.
    None,
    /// Mamba projections, experts and MLPs in FP8.
    Fp8,
    /// Routed experts in NVFP4; Mamba projections, shared experts and MLPs in FP8.
    Nvfp4Mix,
}

impl FromStr for DummyMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "fp8" => Ok(Self::Fp8),
            "nvfp4-mix" => Ok(Self::Nvfp4Mix),
            _ => Err(format!("{text:?} is none of nvfp4-mix, fp8, none")),
        }
    }
}

/// Everything that [`Engine::open`](crate::Engine::open) needs to know.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the operator's"
)]
pub struct EngineConfig {
    /// The model.
    pub source: ModelSource,
    /// Formats of dummy weights. `None`: what the folder's configuration announces.
    pub dummy_mix: Option<DummyMix>,
    /// Where it runs. Default auto.
    pub device: DeviceChoice,
    /// Arithmetic. Default auto.
    pub dtype: DtypeChoice,
    /// KV cache. Default auto.
    pub kv_cache_dtype: KvDtypeChoice,
    /// Recurrent states. Default auto.
    pub mamba_ssm_cache_dtype: StateDtypeChoice,
    /// Prompt plus output of one sequence, at most 1,048,576. `None`: the model's
    /// `max_position_embeddings`, or less if the cache memory holds less.
    pub max_model_len: Option<u32>,
    /// Sequences in one step. Each takes a state slot, so memory may allow fewer. Default 64.
    pub max_num_seqs: u32,
    /// Tokens in one step over all sequences. Large values make running streams wait for other
    /// requests' prompts. Default 512.
    pub max_num_batched_tokens: u32,
    /// While sequences generate, steps with prompt tokens take at most so many times what one without
    /// takes, on average where one token takes longer, 2 to 1000; 0: no such bound. `None`: 4 on a CPU, where a full step of prompt takes a
    /// second; no bound elsewhere.
    pub max_decode_slowdown: Option<u32>,
    /// Tokens per cache block. Default 32.
    pub block_size: u32,
    /// Bytes for KV blocks and state slots together, on each rank's device. `None`: half of the memory
    /// that the weights leave free, or less if nobody could use it.
    pub cache_memory_bytes: Option<u64>,
    /// Bytes of the host's memory for snapshots and their blocks that the devices have no room for,
    /// over all ranks; 0 is none. What is hit there is brought back instead of computed again, which
    /// makes its step wait for the copy. On a CPU it is the same memory once more. Default 0.
    pub host_cache_bytes: u64,
    /// Share of the device's memory that weights, cache and a step's workspace may take together, 0.1
    /// to 1. `None`: 0.95 on a device; on a processor half of what weights leave is for others.
    pub memory_fraction: Option<f64>,
    /// Threads that share the work of one operation. `None`: every core.
    pub threads: Option<usize>,
    /// Requests that may wait. Default 1024.
    pub max_queue: u32,
    /// Ranks that run the model together: as many GPUs, or shares of the CPU's threads. Must divide
    /// its heads and groups. Default 1.
    pub tensor_parallel_size: usize,
    /// Of the cache's memory, what state slots have, if that is more than running sequences need: the
    /// rest is for blocks. A turn is gone on from a state, and costs its blocks as well; few long
    /// contexts want less than many short ones. 0 to 1; of host memory a tenth to nine tenths. Default
    /// 0.6, as the simulator of the prefix cache has it (benches/pure/prefix_cache).
    pub slot_share: f64,
    /// Ranks keep whole experts instead of a part of every one. Needs at least 2 ranks. Default false.
    pub expert_parallel: bool,
    /// Folder of compiled kernels, so that a second start compiles none. A process has one: that of its
    /// first engine. `None`, the default: every start compiles. Nothing is compiled on a CPU.
    pub kernel_cache: Option<PathBuf>,
    /// Run every shape of step once before the engine is ready. Without it the first clients wait for
    /// kernels to be compiled. Default true.
    pub warm_up: bool,
    /// Whether an answer may depend on nothing but its request: not on what is cached, on who else is
    /// served or on how full memory is, bit for bit. The CPU is always so. On a GPU it costs the reuse
    /// of up to 64 tokens per prefix hit and of answers, and products that suit the size of the
    /// batch. Default false.
    pub deterministic: bool,
    /// Most guesses at tokens to come that a sequence makes and checks in one step, 0 to 7. 0: no
    /// speculative decoding. Default 0.
    pub max_drafts: u32,
    /// Make fewer where that is faster, going by how many come true; and none, rather than refuse to
    /// start, where the checkpoint or the device cannot. Default false.
    pub adaptive_drafts: bool,
}

impl EngineConfig {
    /// The defaults for a model.
    pub fn new(source: ModelSource) -> Self {
        Self {
            source,
            dummy_mix: None,
            device: DeviceChoice::default(),
            dtype: DtypeChoice::default(),
            kv_cache_dtype: KvDtypeChoice::default(),
            mamba_ssm_cache_dtype: StateDtypeChoice::default(),
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_decode_slowdown: None,
            block_size: 32,
            cache_memory_bytes: None,
            host_cache_bytes: 0,
            memory_fraction: None,
            slot_share: 0.6,
            threads: None,
            max_queue: 1024,
            tensor_parallel_size: 1,
            expert_parallel: false,
            kernel_cache: None,
            warm_up: true,
            deterministic: false,
            max_drafts: 0,
            adaptive_drafts: false,
        }
    }
}
