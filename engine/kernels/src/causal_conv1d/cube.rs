//! The convolution on a GPU.

use burn::tensor::Tensor;

use crate::cube::{NOT_PLAIN, elements, filled, view};
use crate::{Layout, MambaShape, StatePool};

/// Convolves and advances the slots of the pool in place.
pub(super) fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    states: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    assert!(layout.is_plain(), "{NOT_PLAIN}");
    let [num_tokens, _] = projected.dims();
    let (projected, weight, bias, pool) = (
        view(projected),
        view(weight),
        bias.map(view),
        view(&states.conv),
    );
    let out = filled(&projected, [num_tokens, shape.conv_dim()], |client, out| {
        cube_kernels::causal_conv1d(
            client,
            &elements(&projected),
            &elements(&weight),
            bias.as_ref().map(elements).as_ref(),
            &elements(&pool),
            &shape.into(),
            layout.on(client),
            out,
        );
    });
    (out, states)
}
