//! The norms on a GPU.

use burn::tensor::Tensor;

use crate::cube::{elements, filled, view};

/// `x * rsqrt(mean(x^2) + eps) * weight`.
pub(super) fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    let [num_tokens, width] = x.dims();
    let (x, weight) = (view(x), view(weight));
    filled(&x, [num_tokens, width], |client, out| {
        cube_kernels::rms_norm(
            client,
            &elements(&x),
            num_tokens,
            width,
            &elements(&weight),
            eps,
            out,
        );
    })
}

/// `(residual + x, norm(residual + x))`.
pub(super) fn add_rms_norm(
    residual: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f32,
) -> (Tensor<2>, Tensor<2>) {
    let [num_tokens, width] = x.dims();
    let (residual, x, weight) = (view(residual), view(x), view(weight));
    let mut normed = None;
    let sum = filled(&x, [num_tokens, width], |client, sum| {
        normed = Some(filled(&x, [num_tokens, width], |_, out| {
            cube_kernels::add_rms_norm(
                client,
                &elements(&residual),
                &elements(&x),
                num_tokens,
                width,
                &elements(&weight),
                eps,
                sum,
                out,
            );
        }));
    });
    (sum, normed.expect("made with the sum"))
}

/// Gate, group norm, weight, in this order.
pub(super) fn gated_group_norm(
    y: &Tensor<2>,
    projected: &Tensor<2>,
    weight: &Tensor<1>,
    groups: usize,
    eps: f32,
) -> Tensor<2> {
    let [num_tokens, inner] = y.dims();
    let [_, projected_width] = projected.dims();
    let (y, projected, weight) = (view(y), view(projected), view(weight));
    filled(&y, [num_tokens, inner], |client, out| {
        cube_kernels::gated_group_norm(
            client,
            &elements(&y),
            num_tokens,
            &elements(&projected),
            projected_width,
            &elements(&weight),
            inner,
            groups,
            eps,
            out,
        );
    })
}
