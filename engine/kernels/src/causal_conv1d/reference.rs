//! The convolution in plain tensor operations.

use burn::tensor::{FloatDType, Tensor, activation::silu, s};

use crate::{Layout, MambaShape};

/// Row by row: history and new inputs in one window, then a sum over the kernel's taps.
pub(crate) fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    mut conv: Tensor<3>,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, Tensor<3>) {
    let (conv_dim, kernel) = (shape.conv_dim(), shape.conv_kernel);
    let weight = weight
        .clone()
        .cast(FloatDType::F32)
        .reshape([conv_dim, kernel])
        .transpose();
    let mut outputs = Vec::new();
    for row in &layout.rows {
        let len = row.num_tokens();
        let inputs =
            projected
                .clone()
                .narrow(0, row.tokens.start, len)
                .narrow(1, shape.inner(), conv_dim);
        // |-- history: kernel - 1 --|-- inputs: len --|
        let window = if kernel > 1 {
            let history = conv
                .clone()
                .narrow(0, row.slot, 1)
                .reshape([conv_dim, kernel - 1])
                .transpose();
            Tensor::cat(vec![history, inputs], 0)
        } else {
            inputs
        };
        let mut sum = match bias {
            Some(bias) => bias
                .clone()
                .cast(FloatDType::F32)
                .reshape([1, conv_dim])
                .repeat_dim(0, len),
            None => Tensor::zeros([len, conv_dim], &projected.device()),
        };
        for tap in 0..kernel {
            sum = sum + window.clone().narrow(0, tap, len) * weight.clone().narrow(0, tap, 1);
        }
        outputs.push(silu(sum));
        if kernel > 1 {
            let history = window.narrow(0, len, kernel - 1).transpose();
            conv = conv.slice_assign(
                s![row.slot..=row.slot, .., ..],
                history.reshape([1, conv_dim, kernel - 1]),
            );
        }
    }
    (Tensor::cat(outputs, 0), conv)
}
