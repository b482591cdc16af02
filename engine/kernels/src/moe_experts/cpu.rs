//! The experts on the CPU: each expert's weights are read once for all its tokens.
//!
//! Experts are taken in passes of ascending id with a bounded number of rows, so that what lies
//! between the two products stays small; sums continue from pass to pass in the same order.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use super::groups::{Group, group_by_expert};
use super::{ExpertMatrices, Routing};
use crate::linear::cpu::RoundedInput;
use crate::linear::product::{Epilogue, Input, PIECE_ROWS, Product};
use crate::linear::weights::{Viewed, Weights};
use crate::profile::{self, Work};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::team::{self, SharedMut};
use crate::{Arithmetic, Isa, flex, isa};

/// Rows (tokens times experts) of a pass, more only for a single expert.
const MAX_PASS_ROWS: usize = 1024;

/// See [`moe_experts`](super::moe_experts()).
pub(super) fn moe_experts(
    v: &Tensor<2>,
    up: &ExpertMatrices,
    down: &ExpertMatrices,
    routing: &Routing,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let [num_tokens, width] = v.dims();
    let [num_experts, intermediate, _] = up.dims();
    let v = flex::view(v);
    let v = flex::f32s(&v);
    let isa = isa();
    let mut sum = vec![0.0; num_tokens * width];
    let groups = group_by_expert(routing, num_experts);
    let mut rest = &groups[..];
    while !rest.is_empty() {
        let (pass, later) = rest.split_at(pass_len(rest));
        rest = later;
        let inputs = gather(v, width, pass);
        let hidden = products(
            pass,
            &inputs,
            [intermediate, width],
            up,
            Epilogue::BiasRelu2,
            arithmetic,
            isa,
        );
        let outputs = products(
            pass,
            &hidden,
            [width, intermediate],
            down,
            Epilogue::Bias,
            arithmetic,
            isa,
        );
        add_weighted(&mut sum, width, pass, &outputs);
    }
    flex::from_vec(sum, [num_tokens, width])
}

/// The rows of a pass, `[rows, width]`.
fn gather(v: &[f32], width: usize, pass: &[Group]) -> Vec<f32> {
    let members = || pass.iter().flat_map(|group| &group.members);
    let mut rows = Vec::with_capacity(members().count() * width);
    for &(token, _) in members() {
        rows.extend_from_slice(&v[token * width..][..width]);
    }
    rows
}

/// Experts of the next pass, at least one.
fn pass_len(groups: &[Group]) -> usize {
    let mut rows = 0;
    groups
        .iter()
        .position(|group| {
            rows += group.members.len();
            rows > MAX_PASS_ROWS
        })
        .unwrap_or(groups.len())
        .max(1)
}

/// One product per expert over its rows of `inputs` (`[rows, k]`), all shared at once.
fn products(
    pass: &[Group],
    inputs: &[f32],
    [n, k]: [usize; 2],
    matrices: &ExpertMatrices,
    epilogue: Epilogue,
    arithmetic: Arithmetic,
    isa: Isa,
) -> Vec<f32> {
    let weights: Vec<Viewed> = pass
        .iter()
        .map(|group| Viewed::new(&matrices.expert(group.expert)))
        .collect();
    let num_rows: usize = pass.iter().map(|group| group.members.len()).sum();
    let _scope = profile::scope("experts", [n, k], || Work {
        bytes: weights
            .iter()
            .map(|w| w.weights().num_bytes())
            .sum::<usize>()
            + size_of::<f32>() * num_rows * (n + k),
        operations: 2 * num_rows * n * k,
    });
    // Experts of a layer may be stored in different formats.
    let is_bf16 = |weights: &Viewed| matches!(weights.weights(), Weights::Bf16(_));
    let rounded = [true, false].map(|wanted| {
        let first = weights.iter().find(|weights| is_bf16(weights) == wanted)?;
        let format = first.weights();
        Some(RoundedInput::new(
            inputs, num_rows, k, format, arithmetic, isa,
        ))
    });
    let rounded_for = |weights: &Viewed| {
        let rounded = &rounded[usize::from(!is_bf16(weights))];
        rounded.as_ref().expect("made for this very format")
    };
    let mut start = 0;
    let parts: Vec<(usize, Input<'_>)> = pass
        .iter()
        .zip(&weights)
        .map(|(group, weights)| {
            let rows = start..start + group.members.len();
            start = rows.end;
            (rows.start, rounded_for(weights).rows(inputs, rows, k))
        })
        .collect();

    let mut out = vec![0.0; num_rows * n];
    let shared = SharedMut::new(&mut out);
    let mut jobs = Vec::new();
    for (index, group) in pass.iter().enumerate() {
        let piece = team::piece_len(n, PIECE_ROWS, group.members.len() * n * k);
        jobs.extend(
            (0..n)
                .step_by(piece)
                .map(|column| (index, column..(column + piece).min(n))),
        );
    }
    team::share(jobs.len(), num_rows * n * k, |job| {
        let (index, columns) = jobs[job].clone();
        let (start, input) = parts[index];
        let m = pass[index].members.len();
        let product = Product {
            input,
            m,
            weights: weights[index].weights(),
            scale: weights[index].scale(),
            n,
            k,
            bias: None,
            epilogue,
        };
        // SAFETY: this expert's rows of `out`, which has `n` columns; its jobs' columns do not
        // overlap.
        unsafe { product.compute(isa, 0..m, columns, shared.offset(start * n)) };
    });
    out
}

/// Adds each row of `outputs`, weighted, to its token: experts ascend within the pass.
fn add_weighted(sum: &mut [f32], width: usize, pass: &[Group], outputs: &[f32]) {
    let cost = outputs.len();
    let _scope = profile::scope("sum of experts", [width, 1], || Work {
        bytes: 2 * size_of::<f32>() * cost,
        operations: 2 * cost,
    });
    let piece = team::piece_len(width, 64, cost);
    let sum = SharedMut::new(sum);
    let isa = isa();
    team::share(width.div_ceil(piece), cost, |index| {
        let start = index * piece;
        let len = piece.min(width - start);
        let members = pass.iter().flat_map(|group| &group.members);
        for (&(token, weight), row) in members.zip(outputs.chunks_exact(width)) {
            // SAFETY: `[T, width]`; pieces of columns do not overlap.
            let sum = unsafe { sum.slice(token * width + start, len) };
            let row = &row[start..start + len];
            simd::run(isa, AddRow { sum, weight, row });
        }
    });
}

/// Adds a row, weighted; both are of one length.
struct AddRow<'a> {
    sum: &'a mut [f32],
    weight: f32,
    row: &'a [f32],
}

impl Kernel for AddRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sum, weight, row } = self;
        assert_eq!(sum.len(), row.len(), "lengths of a row");
        let weight = s.splat(weight);
        let mut at = 0;
        while at < sum.len() {
            let n = LANES.min(sum.len() - at);
            // SAFETY: `n` elements are left in both.
            unsafe {
                let old = s.load_part(sum.as_ptr().add(at), n);
                let new = s.fma(weight, s.load_part(row.as_ptr().add(at), n), old);
                s.store_part(new, sum.as_mut_ptr().add(at), n);
            }
            at += LANES;
        }
    }
}
