//! Both in one launch on a GPU.

use burn::tensor::Tensor;

use crate::cube::{elements, filled, state_format, view, words};
use crate::{Layout, MambaShape, RowLayout, ScanParameters, StatePool, causal_conv1d, ssm_scan};

/// Whether the step is one of one token per row, absorbed and no more, and the convolution has a state.
pub(super) fn takes(shape: &MambaShape, layout: &Layout) -> bool {
    let is_single = |row: &RowLayout| row.num_tokens() == 1;
    shape.conv_kernel > 1 && layout.is_plain() && layout.rows.iter().all(is_single)
}

/// Convolves, scans and advances the slots of `pool` in place.
pub(super) fn conv_and_update(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let [num_tokens, _] = projected.dims();
    causal_conv1d::check(projected, weight, &pool, shape, layout);
    ssm_scan::check(projected, &pool, shape, layout);
    let (projected, weight, bias) = (view(projected), view(weight), bias.map(view));
    let (conv, ssm) = (view(&pool.conv), view(&pool.ssm));
    let (a, d, dt_bias) = (
        view(parameters.a),
        view(parameters.d),
        view(parameters.dt_bias),
    );
    let y = filled(&projected, [num_tokens, shape.inner()], |client, out| {
        cube_kernels::conv_and_update(
            client,
            &elements(&projected),
            &elements(&weight),
            bias.as_ref().map(elements).as_ref(),
            &elements(&conv),
            &cube_kernels::ScanParameters {
                a: &elements(&a),
                d: &elements(&d),
                dt_bias: &elements(&dt_bias),
                time_step_limit: parameters.time_step_limit,
                state: state_format(&ssm, parameters.seed),
            },
            &words(&ssm),
            &shape.into(),
            layout.on(client),
            out,
        );
    });
    (y, pool)
}
