//! The Mamba-2 recurrence, for prefill and decode alike.
//!
//! ```text
//! dt   = softplus(dt + dt_bias)                     held to time_step_limit, where there is one
//! S[h] = exp(a[h] * dt[h]) * S[h] + (dt[h] * x[h]) outer B[g]
//! y[h] = S[h] @ C[g] + D[h] * x[h]
//! ```
//!
//! Shapes: xbc f32 `[T, C]` (x, B, C, activated), projected f32 `[T, P]` with dt in its last
//! `heads` columns, a (`-exp(A_log)`), d and dt_bias f32 `[heads]`, pool f32 `[slots, heads,
//! head_dim, state]` in place, y f32 `[T, inner]`: the `ssm_scan` reference. A pool is read as words: of
//! f32, or of two halves (`rounding`).

mod decode;
mod rounding;
mod walk;

use cubecl::client::Client;

pub use decode::conv_and_update;
pub use rounding::StateFormat;

use crate::tensor_core::{scan_fits, supports, tensor_scan};
use crate::{Arithmetic, Buffer, MambaShape, StepIndex};

/// Constants of a mixer's recurrence, all f32 `[heads]`.
#[derive(Clone, Copy, Debug)]
pub struct ScanParameters<'a> {
    /// `-exp(A_log)`.
    pub a: &'a Buffer,
    /// The skip weight D.
    pub d: &'a Buffer,
    /// Added to dt before the softplus.
    pub dt_bias: &'a Buffer,
    /// Bounds on dt after the softplus; only for configs that really carry finite ones.
    pub time_step_limit: Option<(f32, f32)>,
    /// How the pool keeps states.
    pub state: StateFormat,
}

/// Of which tokens a scan is, row by row. All, or what a scan of whole chunks leaves: rows of at
/// most `short_tokens`, and of others the last chunk, if no more of its tokens are theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Chunks lie on a grid of absolute positions, this far apart.
    pub chunk: usize,
    /// Fewer tokens than a chunk.
    pub short_tokens: usize,
}

impl Rest {
    /// Every token.
    const ALL: Self = Self {
        chunk: 1,
        short_tokens: u32::MAX as usize,
    };
}

/// For every token of every row, continuing from and advancing the row's slot of `pool`. Slots of
/// a step's rows differ.
///
/// With [`Arithmetic::F32`] a token's bits depend on its row alone, however that was cut. With the
/// others a row of more than 16 tokens goes to the tensor cores, where device and shape permit it,
/// in chunks on a grid of 64 absolute positions ([`SCAN_REST`](crate::tensor_core::SCAN_REST)):
/// - x, B, C, their weighted products and, where it makes an output, the state are rounded to bf16;
///   sums and the state itself stay f32. A state kept in halves is rounded to them at the end of every
///   chunk, not after every token.
/// - A token's bits still depend on its row alone, and if that was cut on the grid only, not on
///   where. So a row of one token has the bits of [`Arithmetic::F32`] in any company.
/// - A NaN stays in its row, but reaches back to the first token of its chunk.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn ssm_scan(
    client: &Client,
    xbc: &Buffer,
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    arithmetic: Arithmetic,
    out: &Buffer,
) {
    if arithmetic.is_rounded() && supports(client) && scan_fits(shape) {
        tensor_scan(client, xbc, projected, parameters, pool, shape, step, out);
    } else {
        let rest = Rest::ALL;
        ssm_scan_rest(
            client, xbc, projected, parameters, pool, shape, step, rest, out,
        );
    }
}

/// [`ssm_scan`] in f32 for some of the tokens, by the same kernel. The others' outputs are left alone.
#[allow(clippy::too_many_arguments)] // As above.
pub fn ssm_scan_rest(
    client: &Client,
    xbc: &Buffer,
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    rest: Rest,
    out: &Buffer,
) {
    check(xbc, projected, parameters, pool, shape, step, out);
    if step.num_tokens > 0 {
        walk::walk(
            client, xbc, projected, parameters, pool, shape, step, rest, out,
        );
    }
}

/// # Panics
/// If a buffer is not what the shape and the step make it.
pub(crate) fn check(
    xbc: &Buffer,
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    out: &Buffer,
) {
    assert_eq!(xbc.len(), step.num_tokens * shape.conv_dim(), "xbc");
    check_but_xbc(projected, parameters, pool, shape, step, out);
}

/// # Panics
/// As [`check`].
fn check_but_xbc(
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    out: &Buffer,
) {
    let tokens = step.num_tokens;
    assert_eq!(projected.len(), tokens * shape.projected(), "projected");
    assert_eq!(out.len(), tokens * shape.inner(), "y");
    assert_eq!(shape.heads % shape.groups, 0, "heads per group");
    for constants in [parameters.a, parameters.d, parameters.dt_bias] {
        assert_eq!(constants.len(), shape.heads, "constants per head");
    }
    let slot = parameters.state.words(shape.inner() * shape.state);
    assert_eq!(pool.len() % slot, 0, "slots of {slot} in {}", pool.len());
}
