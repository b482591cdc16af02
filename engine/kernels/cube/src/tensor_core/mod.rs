//! Weight products, scans and attention on NVIDIA's tensor cores, which CubeCL cannot say so that we could test it
//! without a GPU: CUDA C++ as text (`cuda/`), compiled by NVRTC on the device, and run to the letter
//! by an emulator in our tests.
//!
//! # What holds
//!
//! - Activations are rounded to bf16, weights are exact in bf16 but for their matrix's scale, which
//!   multiplies the sum; sums are f32.
//! - A row's result depends on its inputs alone, not on the other rows nor on their number: every
//!   tile adds up in the same order (`cuda/tensor_product.cu`). Hopper's own instruction, which
//!   large products take, has another; so it is for [`Arithmetic::Bf16AnyOrder`] alone.
//! - No atomics: the same bits every time.

pub mod attention;
mod kernel;
pub mod plan;
mod scan;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use scan::tensor_scan;
pub use scan::{SCAN_REST, scan_fits, scan_text};
pub use text::{Text, Unit};

use crate::{Arithmetic, Buffer, Client, Epilogue, Matrix};
use plan::{Plan, Role, Shape};

/// Whether the client's device runs these texts: CUDA, compute capability 8.0 or later.
pub fn supports(client: &Client) -> bool {
    compute_capability(client).is_some_and(|version| version >= 80)
}

static IS_ALLOWED: AtomicBool = AtomicBool::new(true);

/// Whether `linear`, `experts` and `paged_attention` may come here at all: they do, unless this is
/// called.
pub fn allow(is_allowed: bool) {
    IS_ALLOWED.store(is_allowed, Ordering::Relaxed);
}

fn is_allowed() -> bool {
    IS_ALLOWED.load(Ordering::Relaxed)
}

/// Whether products with this matrix run here: device, format and shape permit it.
pub(crate) fn takes(client: &Client, w: &Matrix) -> bool {
    is_allowed() && supports(client) && fits(w)
}

fn unit(client: &Client, arithmetic: Arithmetic) -> Unit {
    if arithmetic == Arithmetic::Bf16AnyOrder && has(client, Unit::Wgmma) {
        Unit::Wgmma
    } else {
        Unit::Mma
    }
}

/// Whether the client's device has this instruction. Where it has Hopper's,
/// [`Arithmetic::Bf16AnyOrder`] is another than [`Arithmetic::Bf16`].
pub fn has(client: &Client, unit: Unit) -> bool {
    match unit {
        Unit::Mma => supports(client),
        Unit::Wgmma => compute_capability(client) == Some(90),
    }
}

/// 90 for sm_90; `None` where the device is not CUDA's.
fn compute_capability(client: &Client) -> Option<u32> {
    let fingerprint = &client.properties().identity.fingerprint;
    fingerprint.strip_prefix("ptx_sm")?.parse().ok()
}

/// Whether a matrix can be multiplied here: BF16, FP8 or NVFP4, its rows whole copies.
pub fn fits(w: &Matrix) -> bool {
    Shape::from(w).fits()
}

/// `out[t, n] = epilogue(x[t, k] @ w[n, k]^T + bias)`.
///
/// # Panics
/// If the arithmetic is [`Arithmetic::F32`], the matrix does not [`fit`](fits), or sizes
/// disagree.
#[allow(clippy::too_many_arguments)]
pub fn tensor_linear(
    client: &Client,
    x: &Buffer,
    t: usize,
    w: &Matrix,
    bias: Option<&Buffer>,
    arithmetic: Arithmetic,
    epilogue: Epilogue,
    out: &Buffer,
) {
    assert!(arithmetic.is_rounded(), "tensor cores round activations");
    let unit = unit(client, arithmetic);
    linear_with(unit, client, x, t, w, bias, epilogue, out);
}

/// [`tensor_linear`] by the instruction of the caller's choice, to compare them. Hopper's takes
/// large products alone ([`is_large`](plan::is_large)); smaller ones are `mma.sync`'s all the same.
///
/// # Panics
/// If the device does not [have](has()) the instruction, or as [`tensor_linear`] does.
#[allow(clippy::too_many_arguments)]
pub fn linear_with(
    unit: Unit,
    client: &Client,
    x: &Buffer,
    t: usize,
    w: &Matrix,
    bias: Option<&Buffer>,
    epilogue: Epilogue,
    out: &Buffer,
) {
    assert!(has(client, unit), "{unit:?} is not on this device");
    w.check();
    assert_eq!(x.len(), t * w.k, "inputs");
    assert_eq!(out.len(), t * w.n, "outputs");
    assert!(bias.is_none_or(|bias| bias.len() == w.n), "bias");
    let plan = plan::linear(t, w.into(), bias.is_some(), epilogue, unit);
    let mut buffers = BTreeMap::from([(Role::X, x.clone()), (Role::Out, out.clone())]);
    bind(
        &mut buffers,
        w,
        [Role::Words, Role::BlockScales, Role::Scales],
    );
    buffers.extend(bias.map(|bias| (Role::Bias, bias.clone())));
    run(client, &plan, buffers);
}

/// A step's tokens and the experts they go to.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// Tokens `t`.
    pub num_tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Their ids, u32 or i32 `[t, top_k]`.
    pub experts: &'a Buffer,
    /// Their weights, f32 `[t, top_k]`.
    pub weights: &'a Buffer,
    /// Pairs `token * top_k + slot`, u32 `[t * top_k]`, in ascending order of their expert; those
    /// of an expert that is not in the stack come last, or nowhere.
    pub sorted: &'a Buffer,
    /// Where each expert's pairs begin in `sorted`, then where the last one's end: u32 `[e + 1]`.
    pub offsets: &'a Buffer,
}

/// `out[t, n] = sum over a token's experts, ids ascending, of weight * down(relu(up(x))^2)`. Ids
/// past the stack add nothing.
///
/// # Panics
/// If the arithmetic is [`Arithmetic::F32`], a matrix does not [`fit`](fits), or sizes disagree.
#[allow(clippy::too_many_arguments)]
pub fn tensor_experts(
    client: &Client,
    x: &Buffer,
    routed: Routed<'_>,
    up: &Matrix,
    down: &Matrix,
    arithmetic: Arithmetic,
    out: &Buffer,
) {
    assert!(arithmetic.is_rounded(), "tensor cores round activations");
    up.check();
    down.check();
    let pairs = routed.num_tokens * routed.top_k;
    assert_eq!(x.len(), routed.num_tokens * up.k, "inputs");
    assert_eq!(out.len(), routed.num_tokens * down.n, "outputs");
    assert_eq!(routed.experts.len(), pairs, "expert ids");
    assert_eq!(routed.weights.len(), pairs, "expert weights");
    assert_eq!(routed.sorted.len(), pairs, "sorted pairs");
    assert_eq!(routed.offsets.len(), up.experts + 1, "offsets");
    let unit = unit(client, arithmetic);
    let plan = plan::experts(
        routed.num_tokens,
        routed.top_k,
        up.into(),
        down.into(),
        unit,
    );
    let mut buffers = BTreeMap::from([
        (Role::X, x.clone()),
        (Role::Sorted, routed.sorted.clone()),
        (Role::Offsets, routed.offsets.clone()),
        (Role::Experts, routed.experts.clone()),
        (Role::Weights, routed.weights.clone()),
        (Role::Out, out.clone()),
    ]);
    bind(
        &mut buffers,
        up,
        [Role::Words, Role::BlockScales, Role::Scales],
    );
    let roles = [Role::DownWords, Role::DownBlockScales, Role::DownScales];
    bind(&mut buffers, down, roles);
    run(client, &plan, buffers);
}

fn bind(buffers: &mut BTreeMap<Role, Buffer>, w: &Matrix, roles: [Role; 3]) {
    let parts = [Some(&w.words), w.block_scales.as_ref(), w.scales.as_ref()];
    for (role, part) in roles.into_iter().zip(parts) {
        buffers.extend(part.map(|part| (role, part.clone())));
    }
}

fn run(client: &Client, plan: &Plan, mut buffers: BTreeMap<Role, Buffer>) {
    for &(role, bytes) in &plan.scratch {
        buffers.insert(role, Buffer::empty::<u8>(client, bytes));
    }
    for launch in &plan.launches {
        kernel::launch(client, launch, &buffers);
    }
}
