//! The norms on the CPU. A row, or a group of its channels, is one sum of sixteen lanes in order,
//! so its result does not depend on the other rows.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use crate::profile::{self, Work};
use crate::simd::{self, Kernel, LANES, Simd, math};
use crate::team::{self, SharedMut};
use crate::{flex, isa};

/// `x * rsqrt(mean(x^2) + eps) * weight`.
pub(super) fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    let [num_tokens, width] = x.dims();
    let (x, weight) = (flex::owned(x), flex::view(weight));
    let inputs = Inputs {
        x: flex::f32s(&x),
        ..Inputs::default()
    };
    let out = normed(inputs, None, &flex::widened(&weight), width, eps);
    flex::from_vec(out, [num_tokens, width])
}

/// `(residual + x, norm(residual + x))`.
pub(super) fn add_rms_norm(
    residual: Tensor<2>,
    x: Tensor<2>,
    weight: &Tensor<1>,
    eps: f32,
) -> (Tensor<2>, Tensor<2>) {
    let [num_tokens, width] = x.dims();
    let (residual, x, weight) = (flex::owned(residual), flex::owned(x), flex::view(weight));
    let (residual, x) = (flex::f32s(&residual), flex::f32s(&x));
    assert_eq!(residual.len(), x.len(), "residual shape");
    let mut sum = vec![0.0; x.len()];
    let inputs = Inputs {
        x,
        residual: Some(residual),
        ..Inputs::default()
    };
    let to = Some(SharedMut::new(&mut sum));
    let out = normed(inputs, to, &flex::widened(&weight), width, eps);
    (
        flex::from_vec(sum, [num_tokens, width]),
        flex::from_vec(out, [num_tokens, width]),
    )
}

/// Gate, group norm, weight, in this order.
pub(super) fn gated_group_norm(
    y: Tensor<2>,
    projected: &Tensor<2>,
    weight: &Tensor<1>,
    groups: usize,
    eps: f32,
) -> Tensor<2> {
    let [num_tokens, inner] = y.dims();
    let [rows, stride] = projected.dims();
    assert!(rows == num_tokens && stride >= inner, "gate shape");
    assert_eq!(inner % groups, 0, "channels per group");
    let (y, projected, weight) = (flex::owned(y), flex::view(projected), flex::view(weight));
    let gate = Gate {
        z: flex::f32s(&projected),
        stride,
    };
    let inputs = Inputs {
        x: flex::f32s(&y),
        gate: Some(gate),
        residual: None,
    };
    let out = normed(inputs, None, &flex::widened(&weight), inner / groups, eps);
    flex::from_vec(out, [num_tokens, inner])
}

/// What multiplies the input before the norm: `silu` of the first columns of a wider matrix.
#[derive(Clone, Copy)]
struct Gate<'a> {
    z: &'a [f32],
    stride: usize,
}

/// What is normed.
#[derive(Clone, Copy, Default)]
struct Inputs<'a> {
    x: &'a [f32],
    gate: Option<Gate<'a>>,
    /// Added to `x`; as long as it.
    residual: Option<&'a [f32]>,
}

/// Norms over every `group` channels; rows are as long as `weight`. The sum with the residual goes to
/// `sum`, which is as long as `x`.
fn normed(
    Inputs { x, gate, residual }: Inputs<'_>,
    sum: Option<SharedMut<f32>>,
    weight: &[f32],
    group: usize,
    eps: f32,
) -> Vec<f32> {
    let width = weight.len();
    assert!(
        width > 0 && x.len().is_multiple_of(width) && width.is_multiple_of(group),
        "norm over groups of {group} in rows of {width}"
    );
    let name = if gate.is_some() { "gated norm" } else { "norm" };
    let _scope = profile::scope(name, [width, width / group], || Work {
        bytes: size_of_val(x) * if gate.is_some() { 3 } else { 2 },
        operations: 4 * x.len(),
    });
    let isa = isa();
    let mut out = vec![0.0; x.len()];
    // An element costs about four multiply-adds, with a gate about sixteen.
    let cost = x.len() * if gate.is_some() { 16 } else { 4 };
    let num_rows = x.len() / width;
    let piece = team::piece_len(num_rows, 1, cost);
    let shared = SharedMut::new(&mut out);
    team::share(num_rows.div_ceil(piece), cost, |index| {
        for row in index * piece..(index * piece + piece).min(num_rows) {
            // SAFETY: rows of `out`, which is as long as `x`; pieces do not overlap.
            let out = unsafe { shared.slice(row * width, width) };
            let mut x = &x[row * width..][..width];
            if let (Some(residual), Some(sum)) = (residual, sum) {
                // SAFETY: as above, of `sum`.
                let sum = unsafe { sum.slice(row * width, width) };
                let residual = &residual[row * width..][..width];
                for ((sum, a), b) in sum.iter_mut().zip(residual).zip(x) {
                    *sum = a + b;
                }
                x = sum;
            }
            simd::run(
                isa,
                NormRow {
                    x,
                    z: gate.map(|gate| &gate.z[row * gate.stride..][..width]),
                    weight,
                    group,
                    eps,
                    out,
                },
            );
        }
    });
    out
}

/// One row; all slices are of one length.
struct NormRow<'a> {
    x: &'a [f32],
    z: Option<&'a [f32]>,
    weight: &'a [f32],
    group: usize,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            x,
            z,
            weight,
            group,
            eps,
            out,
        } = self;
        let width = weight.len();
        assert!(
            x.len() == width && out.len() == width && z.is_none_or(|z| z.len() == width),
            "lengths of a norm's row"
        );
        let mut start = 0;
        while start < width {
            let mut sum = s.splat(0.0);
            let mut at = start;
            while at < start + group {
                let n = LANES.min(start + group - at);
                // SAFETY: `at + n` stays within the row, and all slices are as long as it.
                unsafe {
                    let mut v = s.load_part(x.as_ptr().add(at), n);
                    if let Some(z) = z {
                        let z = s.load_part(z.as_ptr().add(at), n);
                        v = s.mul(v, math::silu(s, z));
                    }
                    sum = s.fma(v, v, sum);
                    s.store_part(v, out.as_mut_ptr().add(at), n);
                }
                at += LANES;
            }
            let scale = s.splat(1.0 / (s.sum(sum) / group as f32 + eps).sqrt());
            let mut at = start;
            while at < start + group {
                let n = LANES.min(start + group - at);
                // SAFETY: as above.
                unsafe {
                    let v = s.load_part(out.as_ptr().add(at), n);
                    let w = s.load_part(weight.as_ptr().add(at), n);
                    s.store_part(s.mul(s.mul(v, scale), w), out.as_mut_ptr().add(at), n);
                }
                at += LANES;
            }
            start += group;
        }
    }
}
