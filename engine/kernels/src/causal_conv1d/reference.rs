//! The convolution in plain tensor operations.

use burn::tensor::{FloatDType, Tensor, activation::silu, s};

use crate::layout::pending_inputs;
use crate::{Layout, MambaShape, StatePool};

/// Row by row: history and new inputs in one window, then a sum over the kernel's taps.
pub(crate) fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let StatePool {
        mut conv,
        ssm,
        mut ring,
    } = pool;
    let (conv_dim, kernel) = (shape.conv_dim(), shape.conv_kernel);
    let weight = weight
        .clone()
        .cast(FloatDType::F32)
        .reshape([conv_dim, kernel])
        .transpose();
    let (mut outputs, mut pending_outputs) = (Vec::new(), Vec::new());
    for row in &layout.rows {
        let own = projected
            .clone()
            .narrow(0, row.tokens.start, row.num_tokens())
            .narrow(1, shape.inner(), conv_dim);
        let pending =
            pending_inputs(ring.as_ref(), row).map(|inputs| inputs.narrow(1, 0, conv_dim));
        let inputs = Tensor::cat(pending.into_iter().chain([own.clone()]).collect(), 0);
        let [len, _] = inputs.dims();
        // |-- history: kernel - 1 --|-- inputs: pending, own --|
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
        let out = silu(sum);
        outputs.push(out.clone().narrow(0, row.num_pending, row.num_tokens()));
        if row.num_pending > 0 {
            pending_outputs.push(out.narrow(0, 0, row.num_pending));
        }
        for num_tokens in 0..=row.num_tokens() {
            for slot in row.slots_after(num_tokens).filter(|_| kernel > 1) {
                let end = row.num_pending + num_tokens;
                let history = window.clone().narrow(0, end, kernel - 1).transpose();
                conv = conv.slice_assign(
                    s![slot..=slot, .., ..],
                    history.reshape([1, conv_dim, kernel - 1]),
                );
            }
        }
        if !row.is_absorbed() {
            let kept = ring.take().expect("rows with drafts have rings");
            ring = Some(kept.slice_assign(
                s![row.slot..=row.slot, 0..row.num_tokens(), 0..conv_dim],
                own.unsqueeze::<3>(),
            ));
        }
    }
    outputs.append(&mut pending_outputs);
    (Tensor::cat(outputs, 0), StatePool { conv, ssm, ring })
}
