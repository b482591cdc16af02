//! Weight products, scans and attention on NVIDIA's tensor cores, which CubeCL cannot say so that we could test it
//! without a GPU: CUDA C++ as text (`cuda/`), compiled by NVRTC on the device, and run to the letter
//! by an emulator in our tests.
//!
//! # What holds
//!
//! - Activations are rounded to bf16, weights are exact in bf16 but for their matrix's scale, which
//!   multiplies the sum; sums are f32.
//! - A row's result depends on its inputs alone, not on the other rows nor on their number: every
//!   tile adds up in the same order (`cuda/tensor_product.cu`). Hopper's own instruction and a
//!   vendor's library ([`library`]), which large products take, have others; so they are for
//!   [`Arithmetic::Bf16AnyOrder`] alone, which goes whatever way was fastest ([`choice`]).
//! - No atomics of ours: the same bits every time.

pub mod attention;
pub mod choice;
mod kernel;
pub mod library;
pub mod plan;
mod scan;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

pub(crate) use scan::tensor_scan;
pub use scan::{SCAN_REST, scan_fits, scan_text};
pub use text::{Text, Unit};

use crate::{Arithmetic, Buffer, Client, Epilogue, Matrix};
use choice::{CHOICES, Case, Mode, Way, fastest};
use plan::{ByLibrary, Plan, Role, Shape};

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

/// The ways of products in any order, in the order in which they are taken if they are equally fast.
pub const WAYS: [Way; 3] = [Way::Own(Unit::Wgmma), Way::Own(Unit::Mma), Way::Library];

/// Whether the client's device has this way: the instruction, or a library that was
/// [offered](library::offer); and nobody found it wrong ([`refuse`]). With another than `mma.sync`
/// [`Arithmetic::Bf16AnyOrder`] is another than [`Arithmetic::Bf16`].
pub fn has(client: &Client, way: Way) -> bool {
    let is_there = match way {
        Way::Own(Unit::Mma) => supports(client),
        Way::Own(Unit::Wgmma) => compute_capability(client) == Some(90),
        Way::Library => supports(client) && library::offered().is_some(),
    };
    is_there && !is_refused(way)
}

/// Ways that are not taken, a bit each.
static REFUSED: AtomicU8 = AtomicU8::new(0);

fn bit(way: Way) -> u8 {
    match way {
        Way::Own(Unit::Mma) => 1,
        Way::Own(Unit::Wgmma) => 2,
        Way::Library => 4,
    }
}

fn is_refused(way: Way) -> bool {
    REFUSED.load(Ordering::Relaxed) & bit(way) != 0
}

/// Takes a way no more in this process: its results are wrong.
///
/// # Panics
/// If it is `mma.sync`, which is taken where nothing else is.
pub fn refuse(way: Way) {
    assert_ne!(way, Way::Own(Unit::Mma), "the way that is always there");
    REFUSED.fetch_or(bit(way), Ordering::Relaxed);
}

/// Whether a way that the device has can make the product. All but `mma.sync` are for
/// [large](plan::is_large) ones.
pub fn can(way: Way, t: usize, shape: Shape) -> bool {
    let is_large = plan::is_large(t, shape);
    match way {
        Way::Own(Unit::Mma) => shape.fits(),
        Way::Own(Unit::Wgmma) => is_large && shape.fits() && shape.has_whole_groups(),
        Way::Library => is_large && shape.fits_library(),
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
    let run = |way| linear_by(way, client, x, t, w, bias, epilogue, out);
    let shape = Shape::from(w);
    if arithmetic != Arithmetic::Bf16AnyOrder || !plan::is_large(t, shape) {
        return run(Way::Own(Unit::Mma));
    }
    let ways = WAYS
        .into_iter()
        .filter(|way| has(client, *way) && can(*way, t, shape));
    let ways: Vec<Way> = ways.collect();
    let case = Case {
        shape,
        has_bias: bias.is_some(),
        epilogue,
    };
    let chosen = match choice::mode() {
        Mode::Forced(way) => return run(way),
        Mode::Choosing => Some(CHOICES.settle(case, t, || {
            let tried = ways
                .iter()
                .map(|&way| (way, time(client, out, || run(way))));
            fastest(&tried.collect::<Vec<_>>()).unwrap_or(ways[0])
        })),
        Mode::Chosen => CHOICES.nearest(case, t),
    };
    // Chosen on another device of this process perhaps, or refused since.
    let way = chosen.filter(|way| ways.contains(way));
    run(way.unwrap_or(ways[0]));
}

/// Seconds that `run` takes to fill `out`, the shortest of some runs after one that compiles and
/// allocates; `None` if the device refuses it.
fn time(client: &Client, out: &Buffer, run: impl Fn()) -> Option<f64> {
    const RUNS: usize = 3;
    let timed = || {
        let begin = Instant::now();
        run();
        out.part(0, 1).try_wait(client).ok()?;
        Some(begin.elapsed().as_secs_f64())
    };
    // What was launched before is not part of the first run.
    out.part(0, 1).try_wait(client).ok();
    timed()?;
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        least = least.min(timed()?);
    }
    Some(least)
}

/// [`tensor_linear`] the way of the caller's choice, to compare them.
///
/// # Panics
/// If the product [cannot](can) go that way, or as [`tensor_linear`] does.
#[allow(clippy::too_many_arguments)]
pub fn linear_by(
    way: Way,
    client: &Client,
    x: &Buffer,
    t: usize,
    w: &Matrix,
    bias: Option<&Buffer>,
    epilogue: Epilogue,
    out: &Buffer,
) {
    w.check();
    let shape = Shape::from(w);
    assert!(can(way, t, shape), "{t} tokens of {shape:?} by {way:?}");
    assert_eq!(x.len(), t * w.k, "inputs");
    assert_eq!(out.len(), t * w.n, "outputs");
    assert!(bias.is_none_or(|bias| bias.len() == w.n), "bias");
    let mut buffers = BTreeMap::from([(Role::X, x.clone()), (Role::Out, out.clone())]);
    let roles = [Role::Words, Role::BlockScales, Role::Scales];
    bind(&mut buffers, w, roles);
    buffers.extend(bias.map(|bias| (Role::Bias, bias.clone())));
    let has_bias = bias.is_some();
    match way {
        Way::Own(unit) => {
            let plan = plan::linear(t, shape, has_bias, epilogue, unit);
            run(client, &plan, &mut buffers);
        }
        Way::Library => {
            let ByLibrary {
                before,
                product,
                arguments,
                after,
            } = plan::by_library(t, shape, has_bias, epilogue);
            run(client, &before, &mut buffers);
            kernel::launch_product(client, product, arguments.map(|role| &buffers[&role]));
            run(client, &after, &mut buffers);
        }
    }
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
    let wgmma = Way::Own(Unit::Wgmma);
    let unit = if arithmetic == Arithmetic::Bf16AnyOrder && has(client, wgmma) {
        Unit::Wgmma
    } else {
        Unit::Mma
    };
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
    run(client, &plan, &mut buffers);
}

fn bind(buffers: &mut BTreeMap<Role, Buffer>, w: &Matrix, roles: [Role; 3]) {
    let parts = [Some(&w.words), w.block_scales.as_ref(), w.scales.as_ref()];
    for (role, part) in roles.into_iter().zip(parts) {
        buffers.extend(part.map(|part| (role, part.clone())));
    }
}

fn run(client: &Client, plan: &Plan, buffers: &mut BTreeMap<Role, Buffer>) {
    for &(role, bytes) in &plan.scratch {
        buffers.insert(role, Buffer::empty::<u8>(client, bytes));
    }
    for launch in &plan.launches {
        kernel::launch(client, launch, buffers);
    }
}
