//! Every tensor operation of the model, one folder each, up to three ways:
//!
//! - `reference.rs`: plain Burn tensor operations, any device. It is the specification.
//! - `cpu.rs`: taken when the tensors live on Flex. Written once over sixteen lanes ([`Isa`] picks
//!   the instructions at run time), shared over a team of threads ([`set_num_threads`]), reading
//!   weights in their stored format where the memory map has them.
//! - `cube.rs`: taken when they live on a GPU. The kernels are the package in `cube/`; here are
//!   only the way from Burn's tensors to its buffers (`cube`) and recorded steps ([`Recording`],
//!   [`StepInputs`]).
//!
//! | folder | operations |
//! | --- | --- |
//! | `embedding` | [`embedding()`] |
//! | `fused_norm` | [`rms_norm`], [`add_rms_norm`], [`gated_group_norm`] |
//! | `linear` | [`linear()`], [`mlp_relu2`] |
//! | `cache` | [`cache_write`], [`zero_slot`], [`copy_slot`], [`copy_block`], [`write_rows`] |
//! | `paged_attention` | [`paged_attention()`] |
//! | `causal_conv1d` | [`causal_conv1d()`] |
//! | `ssm_scan` | [`ssm_scan()`], prefill and decode alike |
//! | `conv_and_scan` | [`conv_and_scan()`], the two before it |
//! | `router_topk` | [`router_topk()`] |
//! | `moe_experts` | [`moe_experts()`], also of some of the experts only |
//! | `all_reduce` | [`all_reduce()`], the sum over several GPUs |
//! | `shortlist` | [`shortlist()`], on a GPU what a draw needs of its logits |
//!
//! Beside them: `layout` (how a step's rows lie in the token dimension, shapes, states), `kv_pool`
//! (the KV cache and its formats), `matrix` ([`Matrix`], a weight in its stored format), `route`
//! (which way is taken), `flex` (the CPU backend's buffers), [`e4m3`] and [`e2m1`] (small number
//! formats), `kernel_cache` (compiled kernels on disk), `random` (weights of models that are only
//! measured), `candidates` (ways of a product, timed), `ways` (which of them serves), `simd`, `isa`, `team`, `bandwidth`, `roof`,
//! `read_back` (bytes to the host, counted), `profile` (where the CPU's time goes), and [`self_test`], which holds every operation of
//! a device against f64 loops.
//!
//! # What holds on the CPU
//!
//! - A token's result is the same bits whatever else is in the step, however its prompt was cut
//!   and whatever the number of threads, within one [`Isa`]: every sum has one order.
//! - Pools are written in place. An operation takes the pool and gives it back; one that has a
//!   second owner is refused, because writing it would copy the cache.
//! - A NaN stays with its token.
//!
//! # What holds on a GPU
//!
//! - A token's result does not depend on the other rows of the step. Nor does their number tell,
//!   unless the arithmetic is [`Arithmetic::Bf16AnyOrder`].
//! - Where tensor cores scan prompts (arithmetic other than F32, rows of more than 16 tokens), how a
//!   prompt was cut tells, unless on the grid of [`SCAN_CHUNK`].
//!
//! # What this crate does not know
//!
//! Sequences, requests, layers, checkpoints and their names: it sees tensors, shapes and a
//! [`Layout`]. Wrong shapes are bugs of the caller and assert.

// Kernels are compiled per instruction set by dissolving into a function that has its features
// (see `simd`); a call left standing would be one without them.
#![allow(clippy::inline_always)]
// Tiles walk several arrays of one constant length by one index.
#![allow(clippy::needless_range_loop)]

/// Positions at whose multiples a prompt may be cut without changing a bit of its results on any
/// device: the chunks of the scan lie on this grid.
pub const SCAN_CHUNK: u32 = 64;

/// Most drafts of a row. Its tokens and as many pending ones are then so few that every device takes
/// them one by one.
pub const MAX_DRAFTS: u32 = 7;

mod all_reduce;
mod bandwidth;
mod cache;
mod candidates;
mod causal_conv1d;
mod conv_and_scan;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod e2m1;
pub mod e4m3;
mod embedding;
mod flex;
mod fused_norm;
mod isa;
#[cfg(feature = "cube")]
mod kernel_cache;
mod kv_pool;
mod layout;
mod linear;
mod matrix;
mod moe_experts;
mod paged_attention;
mod profile;
mod random;
mod read_back;
mod recording;
mod roof;
mod route;
mod router_topk;
pub mod self_test;
mod shortlist;
mod simd;
mod ssm_scan;
mod step_inputs;
mod team;
mod ways;

pub use all_reduce::{all_reduce, can_all_reduce};
pub use bandwidth::measure_read_bandwidth;
pub use cache::{
    PoolKind, cache_write, copy_block, copy_row, copy_slot, write_rows, zero_row, zero_slot, zeros,
};
pub use candidates::time_products;
pub use causal_conv1d::causal_conv1d;
pub use conv_and_scan::conv_and_scan;
pub use embedding::embedding;
pub use flex::{codes_from_shared, weight_from_shared, with_f32};
pub use fused_norm::{add_rms_norm, gated_group_norm, rms_norm};
pub use isa::{Isa, isa, set_isa, with_isa};
#[cfg(feature = "cube")]
pub use kernel_cache::KernelFolder;
pub use kv_pool::{KvFormat, KvPool, KvTensor};
pub use layout::{Arithmetic, Layout, MambaShape, RowLayout, StatePool, StateSave, TokenIds};
pub use linear::{fast_arithmetic, linear, mlp_relu2};
pub use matrix::{Format, Matrix, NVFP4_BLOCK, Stack};
pub use moe_experts::{ExpertMatrices, moe_experts};
pub use paged_attention::paged_attention;
pub use profile::{ProfileRow, Scope, Work, profile, scope};
pub use random::{RANDOM_PIECE_BYTES, RandomForm, RandomPart, random_codes, random_weight};
pub use read_back::count_read_back;
pub use recording::Recording;
pub use roof::{count_launches, measure_attention, measure_bandwidth, measure_matrix_rate};
pub use route::{force_reference, has_tensor_cores, is_cpu, is_gpu, with_reference};
pub use router_topk::{RouterShape, Routing, router_topk};
pub use shortlist::{
    Candidate, Decision, Draw, MAX_LIST, Noise, SampleRequest, Shortlist, decide, has_shortlists,
    shortlist,
};
pub use ssm_scan::{ScanParameters, ssm_scan};
pub use step_inputs::{Rings, StepInputs, StepShape};
pub use team::{num_threads, set_num_threads, set_num_threads_here, share};
pub use ways::{
    ChosenWay, ProductWay, can_reorder, choose_ways, chosen_ways, library_bytes, product_library,
    refuse_way, reordering_ways,
};
