//! Every operation on a device, at given shapes, against f64 loops.
//!
//! Inputs are random but fixed by a seed. Cache entries that an operation has no business with hold
//! NaN: reading one spoils the result, writing one is noticed.

mod attention;
mod compare;
mod dense;
mod inputs;
mod kv;
mod mixer;
mod mixture;
mod oracle;
mod packed;
mod rounded;

use burn::tensor::{DType, Device, Tensor};

pub use attention::attention;
pub use dense::{embed, gated_norm, mlp, norms, product, product_with};
pub use mixer::{conv_and_scan, copies};
pub use mixture::{experts, router};
pub use rounded::{reordered, rounded};

use crate::{Arithmetic, Format, KvFormat, MambaShape, RouterShape};

/// Shapes to test at: a model's own, or small ones.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the dense MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of an attention head.
    pub head_dim: usize,
    /// Positions per block.
    pub block_size: usize,
    /// The Mamba-2 mixer.
    pub mamba: MambaShape,
    /// Bounds on dt.
    pub time_step_limit: Option<(f32, f32)>,
    /// Number of routed experts.
    pub num_experts: usize,
    /// Input width of the experts.
    pub expert_hidden: usize,
    /// Inner width of the experts.
    pub expert_intermediate: usize,
    /// The router.
    pub router: RouterShape,
    /// Rows of the step as `(positions before it, tokens in it)`.
    pub rows: Vec<(usize, usize)>,
    /// Element type of plain weights: vectors, and matrices that are not quantised.
    pub weights: DType,
    /// Stored format of the matrices. NVFP4 wants widths of whole blocks.
    pub format: Format,
    /// Format of the KV pools.
    pub kv: KvFormat,
    /// Arithmetic of the weight products.
    pub arithmetic: Arithmetic,
    /// Where the random inputs begin.
    pub seed: u64,
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            hidden: 256,
            intermediate: 320,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            block_size: 16,
            mamba: MambaShape {
                heads: 8,
                head_dim: 16,
                groups: 2,
                state: 32,
                conv_kernel: 4,
            },
            time_step_limit: None,
            num_experts: 16,
            expert_hidden: 64,
            expert_intermediate: 96,
            router: RouterShape {
                top_k: 4,
                n_group: 1,
                topk_group: 1,
                norm_topk_prob: true,
                scaling: 2.5,
            },
            // A decode, a fresh prompt, a chunk across blocks, and a chunk shorter than the window.
            rows: vec![(37, 1), (0, 5), (13, 20), (3, 2)],
            weights: DType::BF16,
            format: Format::Plain,
            kv: KvFormat::F32,
            arithmetic: Arithmetic::F32,
            seed: 1,
        }
    }
}

impl Shapes {
    /// Tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(|(_, len)| len).sum()
    }
}

/// How far an operation was off.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The operation.
    pub operation: &'static str,
    /// Largest `|got - want| / (1 + |want|)`; infinite for NaN or a wrong write.
    pub max_error: f64,
    /// What it may be.
    pub tolerance: f64,
}

impl Outcome {
    /// Whether the operation may be used.
    pub fn is_ok(&self) -> bool {
        self.max_error <= self.tolerance
    }
}

/// Leaves NaN in the memory that results will be made in, as far as the device's pools hand it out
/// again: whatever an operation forgets to write shows.
pub fn poison(device: &Device) {
    for shift in (8..=22).chain(8..=22) {
        drop(Tensor::<1>::full(
            [1 << shift],
            f32::NAN,
            (device, DType::F32),
        ));
    }
}

/// Runs every operation on the device, over poisoned memory.
pub fn self_test(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    poison(device);
    let mut outcomes = vec![
        embed(device, shapes),
        product(device, shapes),
        mlp(device, shapes),
    ];
    outcomes.extend(norms(device, shapes));
    outcomes.push(gated_norm(device, shapes));
    outcomes.extend(attention(device, shapes));
    outcomes.extend(conv_and_scan(device, shapes));
    outcomes.push(router(device, shapes));
    outcomes.push(experts(device, shapes));
    outcomes.extend(rounded(device, shapes));
    outcomes.extend(copies(device, shapes));
    outcomes
}
