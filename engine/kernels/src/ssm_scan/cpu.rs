//! The recurrence on the CPU: a head's state stays in the cache while it walks its row's tokens.
//!
//! Lanes run over the state's columns. A chunked form would trade the recurrence for products
//! whose rounding depends on where chunks begin, which batching must not show.
//!
//! F16 states are half the bytes; rounding them takes some four times the instructions of the recurrence.
//! Of Super's shape, AVX-512, two threads, the better of interleaved runs on a busy machine: 256 tokens of a
//! row take 2.6 times as long as with f32, one token 2.1 (its state stays in the caches), a token of each
//! of 8 rows 0.83, of 32 rows 0.99.
#![allow(unsafe_code)]

use burn::tensor::{DType, Element, Tensor};
use bytemuck::Pod;
use half::f16;

use super::{ScanParameters, rounding};
use crate::linear::tile::fold;
use crate::profile::{self, Work};
use crate::simd::{self, Kernel, LANES, Simd, Stored, math};
use crate::team::{self, SharedMut};
use crate::{Layout, MambaShape, RowLayout, StatePool, flex, isa};

/// See [`ssm_scan`](super::ssm_scan()).
pub(super) fn ssm_scan(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    match pool.ssm.dtype() {
        DType::F16 => scan::<f16>(xbc, projected, parameters, pool, shape, layout),
        _ => scan::<f32>(xbc, projected, parameters, pool, shape, layout),
    }
}

/// The same, over states of this type.
fn scan<E: Kept>(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let ([num_tokens, _], [num_inputs, _]) = (projected.dims(), xbc.dims());
    let states = shape.inner() * shape.state;
    let _scope = profile::scope("scan", [shape.inner(), shape.state], || Work {
        bytes: 2 * size_of::<E>() * layout.rows.len() * states
            + size_of::<f32>() * num_inputs * (shape.conv_dim() + shape.inner()),
        operations: 6 * num_inputs * states,
    });
    let (xbc, projected) = (flex::view(xbc), flex::view(projected));
    let [a, d, dt_bias] = [parameters.a, parameters.d, parameters.dt_bias].map(flex::view);
    let ring_len = pool.max_ring() * shape.ring();
    let mut ssm = flex::pool(pool.ssm);
    let mut ring = pool.ring.map(flex::pool);
    let ring_elements = ring.as_mut().map_or(&mut [][..], |ring| ring.storage_mut());
    let mut y = vec![0.0; num_tokens * shape.inner()];
    let heads = Heads {
        xbc: flex::f32s(&xbc),
        projected: flex::f32s(&projected),
        a: &flex::widened(&a),
        d: &flex::widened(&d),
        dt_bias: &flex::widened(&dt_bias),
        limit: parameters.time_step_limit,
        seed: parameters.seed,
        shape,
        state: SharedMut::new(ssm.storage_mut::<E>()),
        ring: SharedMut::new(ring_elements),
        ring_len,
        y: SharedMut::new(&mut y),
    };
    for constants in [heads.a, heads.d, heads.dt_bias] {
        assert_eq!(constants.len(), shape.heads, "constants per head");
    }
    // Three multiply-adds per element of the state and token.
    let cost = 3 * num_inputs * shape.inner() * shape.state;
    let pending = layout.pending();
    let isa = isa();
    team::share(layout.rows.len() * shape.heads, cost, |index| {
        simd::run(
            isa,
            Head {
                heads: &heads,
                row: &layout.rows[index / shape.heads],
                pending: num_tokens + pending[index / shape.heads].start,
                index: index % shape.heads,
            },
        );
    });
    (
        flex::from_vec(y, [num_tokens, shape.inner()]),
        StatePool {
            conv: pool.conv,
            ssm: flex::tensor(ssm),
            ring: ring.map(flex::tensor),
        },
    )
}

/// What a state is kept in between two tokens.
#[allow(unsafe_code)]
trait Kept: Stored + Element + Pod {
    /// Whether less is kept than there was.
    const IS_ROUNDED: bool;

    /// Keeps the first `n` lanes, at most 16, rounded if need be by the noise of a key from a word on.
    ///
    /// # Safety
    /// `n` writable elements at `p`.
    unsafe fn keep<S: Simd>(s: S, new: S::V, noise: (u32, u32), p: *mut Self, n: usize);
}

impl Kept for f32 {
    const IS_ROUNDED: bool = false;

    #[inline(always)]
    unsafe fn keep<S: Simd>(s: S, new: S::V, _: (u32, u32), p: *mut Self, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if n == LANES {
                s.store(new, p);
            } else {
                s.store_part(new, p, n);
            }
        }
    }
}

impl Kept for f16 {
    const IS_ROUNDED: bool = true;

    #[inline(always)]
    unsafe fn keep<S: Simd>(s: S, new: S::V, (key, word): (u32, u32), p: *mut Self, n: usize) {
        let rounded = s.round_to_half(new, key, word);
        // SAFETY: the caller's promise; `part` holds sixteen.
        unsafe {
            if n == LANES {
                s.store_f16(rounded, p);
            } else {
                let mut part = [Self::ZERO; LANES];
                s.store_f16(rounded, part.as_mut_ptr());
                std::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
            }
        }
    }
}

struct Heads<'a, E> {
    xbc: &'a [f32],
    projected: &'a [f32],
    a: &'a [f32],
    d: &'a [f32],
    dt_bias: &'a [f32],
    limit: Option<(f32, f32)>,
    seed: u32,
    shape: &'a MambaShape,
    state: SharedMut<E>,
    ring: SharedMut<f32>,
    /// Elements of a slot's ring.
    ring_len: usize,
    y: SharedMut<f32>,
}

/// One head of one row.
struct Head<'a, E> {
    heads: &'a Heads<'a, E>,
    row: &'a RowLayout,
    /// Where the inputs of the row's pending tokens begin.
    pending: usize,
    index: usize,
}

impl<E: Kept> Kernel for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            heads,
            row,
            pending,
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
        let stream = rounding::stream(heads.seed, head);

        // SAFETY: a slot of this row and this head of the state: slots differ between rows and copies
        // (checked by `Layout::check_states`), heads between the jobs of a row.
        let state_of = |slot| unsafe {
            let first = (slot * shape.heads + head) * head_dim * n;
            heads.state.slice(first, head_dim * n)
        };
        // SAFETY: as above; tokens in a ring are as many as it holds (checked there too).
        let ring_of = |at| unsafe {
            let first = row.slot * heads.ring_len + at * shape.ring();
            &mut heads.ring.slice(first + conv_dim + head, 1)[0]
        };
        let raw_of = |token| heads.projected[token * stride + inner + conv_dim + head];
        // Drafts pass on a copy of the state that stays in the cache, as the outputs of pending tokens do.
        let mut passing = Vec::new();
        let mut nowhere = Vec::new();
        if row.num_pending > 0 {
            nowhere.resize(head_dim, 0.0);
        }
        for index in 0..row.num_pending + row.num_tokens() {
            let own = index.checked_sub(row.num_pending);
            let (input, raw, y) = match own {
                None => (pending + index, *ring_of(index), &mut nowhere[..]),
                Some(own) => {
                    let token = row.tokens.start + own;
                    // SAFETY: this head's part of this row's token.
                    let y = unsafe { heads.y.slice(token * inner + head * head_dim, head_dim) };
                    (token, raw_of(token), y)
                }
            };
            if own == Some(0) && !row.is_absorbed() {
                passing = state_of(row.slot).to_vec();
            }
            let state = if passing.is_empty() {
                state_of(row.slot)
            } else {
                &mut passing[..]
            };
            let now = &heads.xbc[input * conv_dim..][..conv_dim];
            let x = &now[head * head_dim..][..head_dim];
            let b = &now[inner + group * n..][..n];
            let c = &now[inner + (groups + group) * n..][..n];
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
            let decay: S::V = s.splat((a * dt).exp());
            let key = if E::IS_ROUNDED {
                rounding::key(stream, row.start + index - row.num_pending)
            } else {
                0
            };
            let token = Token {
                decay,
                dt,
                d,
                key,
                x,
                b,
                c,
            };
            let mut p = 0;
            while S::WIDE && p + 4 <= head_dim {
                let state = &mut state[p * n..][..4 * n];
                y[p..p + 4].copy_from_slice(&token.advance::<S, E, 4>(s, state, p));
                p += 4;
            }
            while p < head_dim {
                let state = &mut state[p * n..][..n];
                [y[p]] = token.advance(s, state, p);
                p += 1;
            }
            let num_own = own.map_or(0, |own| own + 1);
            for save in row.saves.iter().filter(|save| save.num_tokens == num_own) {
                state_of(save.slot).copy_from_slice(state);
            }
        }

        if !row.is_absorbed() {
            for (at, token) in row.tokens.clone().enumerate() {
                *ring_of(at) = raw_of(token);
            }
        }
    }
}

/// What a token does to a head's state.
struct Token<'a, V> {
    decay: V,
    dt: f32,
    d: f32,
    /// Of the noise.
    key: u32,
    x: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
}

impl<V: Copy> Token<'_, V> {
    /// Advances the rows of `state` from the head's row `p` on, which share the loads of b and c, and
    /// returns their outputs. A row's sum is the same whichever others go along.
    #[inline(always)]
    fn advance<S: Simd<V = V>, E: Kept, const ROWS: usize>(
        &self,
        s: S,
        state: &mut [E],
        p: usize,
    ) -> [f32; ROWS] {
        let (b, c) = (self.b, self.c);
        let n = b.len();
        assert!(c.len() == n && state.len() == ROWS * n, "rows of a state");
        let x: &[f32; ROWS] = self.x[p..][..ROWS].try_into().expect("as many as asked");
        let inputs = x.map(|x| s.splat(self.dt * x));
        let row_words = rounding::row_words(n);
        let mut sums = [s.splat(0.0); ROWS];
        let mut at = 0;
        while at < n {
            let len = LANES.min(n - at);
            // SAFETY: `len` elements are left of b, of c and of each row of the state.
            unsafe {
                let (b, c) = if len == LANES {
                    (s.load(b.as_ptr().add(at)), s.load(c.as_ptr().add(at)))
                } else {
                    let (b, c) = (b.as_ptr().add(at), c.as_ptr().add(at));
                    (s.load_part(b, len), s.load_part(c, len))
                };
                for row in 0..ROWS {
                    let place = state.as_mut_ptr().add(row * n + at);
                    let old = if len == LANES {
                        E::load(s, place)
                    } else {
                        E::load_part(s, place, len)
                    };
                    let new = s.fma(old, self.decay, s.mul(inputs[row], b));
                    let noise = (self.key, (p + row) as u32 * row_words + at as u32 / 2);
                    E::keep(s, new, noise, place, len);
                    sums[row] = s.fma(new, c, sums[row]);
                }
            }
            at += LANES;
        }
        let sums = fold(s, sums);
        let mut y = [0.0; ROWS];
        for row in 0..ROWS {
            y[row] = sums[row] + self.d * x[row];
        }
        y
    }
}
