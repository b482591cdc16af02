//! `out[t, n] = epilogue(x[t, k] . w[n, k] + bias[n])`, for any number of tokens.

use super::skinny::{MAX_TILE, Product, Source};
use crate::{Arithmetic, Buffer, Client, Epilogue, Matrix, tensor_core};

/// x is f32 `[t, k]`, the bias f32 `[n]`, `out` f32 `[t, n]`. A token's outputs are the same bits
/// whatever the other tokens are; how many they are tells with [`Arithmetic::Bf16AnyOrder`] alone,
/// for device, format and shape decide between the kernels. The weights are read once for every 8 tokens, on tensor cores
/// (`tensor_core`) for 64 or 128.
///
/// # Panics
/// If a buffer is not what the matrix and `t` make it.
#[allow(clippy::too_many_arguments)]
pub fn linear(
    client: &Client,
    x: &Buffer,
    t: usize,
    w: &Matrix,
    bias: Option<&Buffer>,
    arithmetic: Arithmetic,
    epilogue: Epilogue,
    out: &Buffer,
) {
    w.check();
    assert_eq!(w.experts, 1, "one matrix");
    assert_eq!(x.len(), t * w.k, "x");
    assert_eq!(out.len(), t * w.n, "out");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), w.n, "bias");
    }
    if arithmetic.is_rounded() && tensor_core::takes(client, w) {
        return tensor_core::tensor_linear(client, x, t, w, bias, arithmetic, epilogue, out);
    }
    let tile = t.next_power_of_two().min(MAX_TILE);
    Product {
        w,
        x,
        bias,
        out,
        arithmetic,
        epilogue,
        source: Source::Dense,
        index: None,
        order: None,
        share: 1,
        num_out: t,
        num_tiles: t.div_ceil(tile),
        tile,
    }
    .launch(client);
}
