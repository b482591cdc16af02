//! The Mamba-2 recurrence of long rows, chunk by chunk; of the rest, token by token.

use cubecl::ir::attributes::BufferIOAttr::{ReadOnly, ReadWrite, WriteOnly};

use super::kernel::launch_text;
use super::text::{self, Text};
use crate::scan::check;
use crate::{Buffer, Client, MambaShape, Rest, ScanParameters, StepIndex, ssm_scan_rest};

/// What chunks leave to [`ssm_scan_rest`]. A chunk on tensor cores takes about as long as some
/// sixteen tokens, one after the other.
pub const SCAN_REST: Rest = Rest {
    chunk: 64,
    short_tokens: 16,
};

/// Whether a mixer can be scanned here.
pub fn scan_fits(shape: &MambaShape) -> bool {
    shape.head_dim == 64 && shape.state == 128 && shape.heads.is_multiple_of(shape.groups)
}

/// [`ssm_scan`](crate::ssm_scan()) with long rows in chunks, as it says.
///
/// # Panics
/// If the shape does not [`fit`](scan_fits) or a buffer is not what it and the step make it.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub(crate) fn tensor_scan(
    client: &Client,
    xbc: &Buffer,
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    out: &Buffer,
) {
    assert!(scan_fits(shape), "no tensor core scan for {shape:?}");
    let short_tokens = SCAN_REST.short_tokens;
    if step.max_row_tokens > short_tokens {
        check(xbc, projected, parameters, pool, shape, step, out);
        let (min, max) = parameters.time_step_limit.unwrap_or_default();
        let is_limited = u32::from(parameters.time_step_limit.is_some());
        launch_text(
            client,
            &scan_text(shape, parameters.state.is_half()),
            [shape.heads as u32, step.num_rows as u32, 1],
            &[
                (xbc, ReadOnly),
                (xbc, ReadOnly),
                (projected, ReadOnly),
                (parameters.a, ReadOnly),
                (parameters.d, ReadOnly),
                (parameters.dt_bias, ReadOnly),
                (&step.row_tokens, ReadOnly),
                (&step.row_starts, ReadOnly),
                (&step.row_slots, ReadOnly),
                (pool, ReadWrite),
                (out, WriteOnly),
            ],
            &[
                short_tokens as u32,
                is_limited,
                min.to_bits(),
                max.to_bits(),
                parameters.state.noise(),
            ],
        );
    }
    ssm_scan_rest(
        client, xbc, projected, parameters, pool, shape, step, SCAN_REST, out,
    );
}

/// The text that is launched for a shape and states in f32 or halves, for the emulator. Its arguments: xbc twice, projected, a,
/// d, dt_bias, the step's `row_tokens`, `row_starts` and `row_slots`, the pool, y; then the tokens
/// of a short row, whether dt has bounds, their bits, and the scrambled seed of halves.
pub fn scan_text(shape: &MambaShape, is_half: bool) -> Text {
    text::scan(shape, is_half)
}
