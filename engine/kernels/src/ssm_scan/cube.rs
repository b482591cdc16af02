//! The recurrence on a GPU.

use burn::tensor::Tensor;

use super::ScanParameters;
use crate::cube::{NOT_PLAIN, elements, filled, state_format, view, words};
use crate::{Arithmetic, Layout, MambaShape, StatePool};

/// Scans and advances the slots of the pool in place.
pub(super) fn ssm_scan(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    states: StatePool,
    shape: &MambaShape,
    layout: &Layout,
    arithmetic: Arithmetic,
) -> (Tensor<2>, StatePool) {
    assert!(layout.is_plain(), "{NOT_PLAIN}");
    let [num_tokens, _] = xbc.dims();
    let (xbc, projected, pool) = (view(xbc), view(projected), view(&states.ssm));
    let (a, d, dt_bias) = (
        view(parameters.a),
        view(parameters.d),
        view(parameters.dt_bias),
    );
    let y = filled(&xbc, [num_tokens, shape.inner()], |client, out| {
        cube_kernels::ssm_scan(
            client,
            &elements(&xbc),
            &elements(&projected),
            &cube_kernels::ScanParameters {
                a: &elements(&a),
                d: &elements(&d),
                dt_bias: &elements(&dt_bias),
                time_step_limit: parameters.time_step_limit,
                state: state_format(&pool, parameters.seed),
            },
            &words(&pool),
            &shape.into(),
            layout.on(client),
            arithmetic.into(),
            out,
        );
    });
    (y, states)
}
