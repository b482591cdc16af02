//! The GPU kernels: CubeCL, and CUDA C++ where CubeCL cannot say it. No tensor library: buffers in,
//! buffers out, on whatever device the client speaks for.
//!
//! | file | is |
//! |---|---|
//! | `buffer` | a piece of device memory as kernels see it |
//! | `matrix` | a weight matrix as the checkpoint stores it, read as words |
//! | `decode` | weights out of the words that hold them |
//! | `products` | products with weight matrices |
//! | `tensor_core` | weight products, scans and attention on NVIDIA's tensor cores: CUDA C++ as text, in `cuda/`; large products also by cuBLASLt |
//! | `step` | how the rows of a step lie in its tokens, as index buffers |
//! | `math` | what several kernels compute on the way |
//! | `mamba` | the shape that the Mamba-2 kernels share |
//! | `conv` | the causal convolution in front of the scan |
//! | `scan` | the Mamba-2 recurrence |
//! | `norms` | RMS norms, alone and fused with what stands before them |
//! | `noise` | random bits by key and counter |
//! | `random` | random weights, for models that are only measured |
//! | `moves` | words cleared and copied within a buffer, rows gathered |
//! | `rows` | parts of rows copied from one matrix into another |
//! | `attention` | attention over the paged cache |
//! | `kv` | the paged cache's formats, and writes into it |
//! | `sampling` | shortlists of logits, and draws finished from them |
//! | `router` | the experts of a token and their weights |
//!
//! Kernels read weights and caches as `u32` words and decode them in registers, so that one text
//! runs on every device: bf16, FP8 and FP4 are bits to it, never element types.
//!
//! Wrong shapes are bugs of the caller and assert. The crate knows no sequence, layer or checkpoint.

mod attention;
mod buffer;
mod conv;
mod decode;
mod kv;
mod mamba;
mod math;
mod matrix;
mod moves;
mod noise;
mod norms;
mod products;
mod random;
mod router;
mod rows;
mod sampling;
mod scan;
mod step;
pub mod tensor_core;

pub use attention::{paged_attention, paged_attention_within};
pub use buffer::Buffer;
pub use conv::causal_conv1d;
pub use kv::{KvFormat, cache_write};
pub use mamba::MambaShape;
pub use matrix::{Format, Matrix, NVFP4_GROUP};
pub use moves::{copy_words, gather_rows, zero_words};
pub use norms::{add, add_rms_norm, gated_group_norm, rms_norm};
pub use products::{MAX_EXPERT_TOKENS, embedding, experts, linear};
pub use random::{RandomForm, fill_random};
pub use router::{RouterShape, router_topk};
pub use rows::{Columns, RowMoves, copy_rows};
pub use sampling::{
    Candidate, Decision, Draw, MASS_ERROR, MAX_LIST, Noise, Pending, SampleRequest, Shortlist,
    decide, shortlist,
};
pub use scan::{Rest, ScanParameters, StateFormat, conv_and_update, ssm_scan, ssm_scan_rest};
pub use step::{RowIndex, StepIndex};

pub use cubecl::client::Client;

/// What weight products do with activations, and attention with queries and weights of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// They stay f32.
    #[default]
    F32,
    /// They are rounded to bf16, to nearest even, before they are multiplied; sums stay f32. A row's
    /// have one order for a matrix, whatever the number of rows.
    Bf16,
    /// The same in the order that is fastest for the number of rows.
    Bf16AnyOrder,
}

impl Arithmetic {
    /// Whether activations are rounded to bf16.
    pub fn is_rounded(self) -> bool {
        self != Self::F32
    }
}

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// `max(y, 0)^2`.
    Relu2,
}
