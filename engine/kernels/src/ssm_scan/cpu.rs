//! The recurrence on the CPU: a head's state stays in the cache while it walks its row's tokens.
//!
//! Lanes run over the state's columns. A chunked form would trade the recurrence for products
//! whose rounding depends on where chunks begin, which batching must not show.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use super::ScanParameters;
use crate::simd::{self, Kernel, LANES, Simd, math};
use crate::team::{self, SharedMut};
use crate::{Layout, MambaShape, RowLayout, flex, isa};

/// See [`ssm_scan`](super::ssm_scan()); `ssm` is the state.
pub(super) fn ssm_scan(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    ssm: Tensor<4>,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, Tensor<4>) {
    let [num_tokens, _] = xbc.dims();
    let (xbc, projected) = (flex::view(xbc), flex::view(projected));
    let [a, d, dt_bias] = [parameters.a, parameters.d, parameters.dt_bias].map(flex::view);
    let mut ssm = flex::pool(ssm);
    let mut y = vec![0.0; num_tokens * shape.inner()];
    let heads = Heads {
        xbc: flex::f32s(&xbc),
        projected: flex::f32s(&projected),
        a: &flex::widened(&a),
        d: &flex::widened(&d),
        dt_bias: &flex::widened(&dt_bias),
        limit: parameters.time_step_limit,
        shape,
        state: SharedMut::new(ssm.storage_mut()),
        y: SharedMut::new(&mut y),
    };
    for constants in [heads.a, heads.d, heads.dt_bias] {
        assert_eq!(constants.len(), shape.heads, "constants per head");
    }
    // Three multiply-adds per element of the state and token.
    let cost = 3 * num_tokens * shape.inner() * shape.state;
    let isa = isa();
    team::share(layout.rows.len() * shape.heads, cost, |index| {
        simd::run(
            isa,
            Head {
                heads: &heads,
                row: &layout.rows[index / shape.heads],
                index: index % shape.heads,
            },
        );
    });
    (
        flex::from_vec(y, [num_tokens, shape.inner()]),
        flex::tensor(ssm),
    )
}

struct Heads<'a> {
    xbc: &'a [f32],
    projected: &'a [f32],
    a: &'a [f32],
    d: &'a [f32],
    dt_bias: &'a [f32],
    limit: Option<(f32, f32)>,
    shape: &'a MambaShape,
    state: SharedMut<f32>,
    y: SharedMut<f32>,
}

/// One head of one row.
struct Head<'a> {
    heads: &'a Heads<'a>,
    row: &'a RowLayout,
    index: usize,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            heads,
            row,
            index: head,
        } = self;
        let shape = heads.shape;
        let MambaShape {
            head_dim,
            groups,
            state: n,
            ..
        } = *shape;
        let (inner, conv_dim, stride) = (shape.inner(), shape.conv_dim(), shape.projected());
        let group = head / (shape.heads / groups);
        let (a, d) = (heads.a[head], heads.d[head]);

        // SAFETY: this row's slot and this head of the state: slots differ between rows (checked
        // by `Layout::check_slots`), heads between the jobs of a row.
        let state = unsafe {
            heads
                .state
                .slice((row.slot * shape.heads + head) * head_dim * n, head_dim * n)
        };
        for token in row.tokens.clone() {
            let now = &heads.xbc[token * conv_dim..][..conv_dim];
            let x = &now[head * head_dim..][..head_dim];
            let b = &now[inner + group * n..][..n];
            let c = &now[inner + (groups + group) * n..][..n];
            let raw = heads.projected[token * stride + inner + conv_dim + head];
            let mut dt = math::softplus(raw + heads.dt_bias[head]);
            if let Some((min, max)) = heads.limit {
                // Not `max` and `min`, which would hide a NaN.
                dt = if dt < min {
                    min
                } else if dt > max {
                    max
                } else {
                    dt
                };
            }
            let decay = s.splat((a * dt).exp());
            // SAFETY: this head's part of this row's token.
            let y = unsafe { heads.y.slice(token * inner + head * head_dim, head_dim) };
            for p in 0..head_dim {
                let state = &mut state[p * n..][..n];
                let input = s.splat(dt * x[p]);
                let mut sum = s.splat(0.0);
                let mut at = 0;
                while at + LANES <= n {
                    // SAFETY: `at + LANES <= n`, the length of all three slices.
                    unsafe {
                        let old = s.load(state.as_ptr().add(at));
                        let added = s.mul(input, s.load(b.as_ptr().add(at)));
                        let new = s.fma(old, decay, added);
                        s.store(new, state.as_mut_ptr().add(at));
                        sum = s.fma(new, s.load(c.as_ptr().add(at)), sum);
                    }
                    at += LANES;
                }
                if at < n {
                    // SAFETY: `n - at` elements are left of all three slices.
                    unsafe {
                        let old = s.load_part(state.as_ptr().add(at), n - at);
                        let added = s.mul(input, s.load_part(b.as_ptr().add(at), n - at));
                        let new = s.fma(old, decay, added);
                        s.store_part(new, state.as_mut_ptr().add(at), n - at);
                        sum = s.fma(new, s.load_part(c.as_ptr().add(at), n - at), sum);
                    }
                }
                y[p] = s.sum(sum) + d * x[p];
            }
        }
    }
}
