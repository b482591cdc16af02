//! Runs the scheduler's plans on the model: token ids in, token ids out.
//!
//! | file | is |
//! |---|---|
//! | [`open`](Engine) | configuration and headers checked, memory planned, then a running engine |
//! | `config`, `error` | what the operator decides; what can be wrong with files, memory, devices |
//! | `verdict` | what a panic or error of a device's own code means |
//! | `checkpoint` | safetensors shards, memory-mapped, headers believed only if they tile the data |
//! | `model/config/`, `model/json` | `config.json` in all its dialects |
//! | `model/weights/` | checkpoint names to fields; names appear only here |
//! | `model/family` | published configurations, for arithmetic about them |
//! | `model/load`, `model/readahead` | weights to the device; files read by many threads meanwhile |
//! | `model/dummy` | weights invented from a seed |
//! | `model/shard` | one rank's share of a model's weights and configuration |
//! | `model/nemotron_h`, `layers/` | the forward pass, one file per kind of layer |
//! | `layers/linear` | products with stored matrices, whose formats only `weights`, `load` and kernels know |
//! | `cache` | block and slot tensors, the plan's movements between them |
//! | `batch`, `buckets` | plan to flat index lists; which positions need logits; sizes of steps |
//! | `read_out` | what logits say: from shortlists that a GPU makes, else from whole rows |
//! | `sampler/`, `noise` | logits to tokens and log-probabilities, a function of (logits, seed, index) |
//! | `guess` | guesses at the tokens that follow, by the draft block |
//! | `verify` | rows with drafts: what is drawn where, how far the drafts come true |
//! | `decode` | steps and draft passes recorded per bucket and replayed as one launch, on GPUs |
//! | `model_runner` | implements `scheduler::Runner`; decides nothing |
//! | `quantize/` | a checkpoint written anew in FP8 or NVFP4 |
//! | `parallel` | several ranks as one runner: a thread each, and the sum between them |
//! | `constraints` | how far each choice has come through its guide; masks for the rows of a plan |
//! | `engine_core` | the step loop on its own thread; a panic or failed step fails every stream |
//! | `news` | what the cache can be hit with, told to whoever publishes it |
//! | `flight/` | what the scheduler was told and planned lately; run again from a file |
//! | `host_cache` | what of it lies in host memory |
//! | `step_tokens` | how large steps were |
//! | `handle` | the server's only door in; a dropped stream aborts its request |
//! | `heart` | how long nothing has been done; the last step, for whoever asks what hangs |
//! | `workbench`, `footprint`, `tally` | steps to measure; what they read and compute; what they chose |
//! | `draft_costs`, `model_runner/timing` | what drafts cost on paper, and by the clock |
//! | `memory`, `device` | bytes to blocks and slots; CPU or CUDA |
//! | `machine`, `shapes` | what this machine has; its kernels' self-test at a model's shapes |
//!
//! Grammars and thinking budgets are the crate `constraint` (in `constraint/`, without tensors).
//!
//! It does not know text, HTTP, or who asks. It does not decide what runs: the scheduler does. One
//! thread owns scheduler, runner, weights and caches, and no tensor leaves it. With several ranks each
//! has a thread that owns its weights and caches; what passes between them are plans, and the sums
//! of `parallel`.
//!
//! What a stream says is the same, bit for bit, whatever else is in the batch and however its
//! prompt was cut (`tests/tests/equivalence.rs`); block size, `--dtype`, `--kv-cache-dtype`,
//! the number of ranks and the CPU's instruction set are part of the configuration and may move a bit.
//! Drafts change no bit of it either (`verify`); without them the draft block's tensors are checked
//! and left in their files.

mod batch;
mod buckets;
mod cache;
mod checkpoint;
mod config;
mod constraints;
mod decode;
mod device;
mod draft_costs;
mod engine_core;
mod error;
pub mod flight;
mod footprint;
mod guess;
mod handle;
mod heart;
mod host_cache;
mod layers;
mod machine;
mod memory;
pub mod model;
mod model_runner;
mod news;
mod noise;
mod open;
mod parallel;
mod quantize;
mod read_out;
mod sampler;
mod shapes;
mod step_tokens;
mod tally;
mod verdict;
mod verify;
mod workbench;

pub use config::{
    DtypeChoice, DummyMix, EngineConfig, KvDtypeChoice, ModelSource, StateDtypeChoice,
};
pub use device::DeviceChoice;
pub use engine_core::{LoadProgress, spawn};
pub use error::{Cause, EngineError, Failure};
pub use footprint::{Footprint, StepSize};
pub use handle::{
    EngineHandle, EngineInfo, EngineStats, EngineStatus, Queue, RequestStream, StreamEvent,
    SubmitError,
};
pub use heart::{Heart, LastStep};
pub use kernels::ProfileRow;
pub use machine::{Machine, TestedPart, TimedProduct, TimedProducts};
pub use memory::{MAX_MODEL_LEN, available_memory};
pub use model::ModelConfig;
pub use news::CacheNews;
pub use open::{Engine, Opened};
pub use quantize::{ModuleReport, PackedFormat, Quantize, Quantized};
pub use step_tokens::StepTokens;
pub use workbench::{Roof, StepCounts, StepReport, Workbench, guarded};
