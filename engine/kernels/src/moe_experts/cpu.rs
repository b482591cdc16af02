//! The experts on the CPU: each expert's weights are read once for all its tokens.
//!
//! Experts are taken in passes of ascending id with a bounded number of rows, so that what lies
//! between the two products stays small; sums continue from pass to pass in the same order.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use super::groups::{Group, group_by_expert};
use super::{ExpertMatrices, Routing};
use crate::linear::cpu::RoundedInput;
use crate::linear::product::{Epilogue, PIECE_ROWS, Product};
use crate::linear::weights::Viewed;
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
        let inputs: Vec<f32> = pass
            .iter()
            .flat_map(|group| &group.members)
            .flat_map(|&(token, _)| &v[token * width..][..width])
            .copied()
            .collect();
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
    let mut start = 0;
    let parts: Vec<(usize, &[f32], RoundedInput)> = pass
        .iter()
        .zip(&weights)
        .map(|(group, weights)| {
            let m = group.members.len();
            let x = &inputs[start * k..][..m * k];
            let rounded = RoundedInput::new(x, m, k, weights.weights(), arithmetic, isa);
            let part = (start, x, rounded);
            start += m;
            part
        })
        .collect();

    let mut out = vec![0.0; start * n];
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
    team::share(jobs.len(), start * n * k, |job| {
        let (index, columns) = jobs[job].clone();
        let (start, x, rounded) = &parts[index];
        let product = Product {
            input: rounded.as_input(x),
            m: pass[index].members.len(),
            weights: weights[index].weights(),
            scale: weights[index].scale(),
            n,
            k,
            bias: None,
            epilogue,
        };
        // SAFETY: this expert's rows of `out`, which has `n` columns; its jobs' columns do not
        // overlap.
        unsafe { product.compute(isa, columns, shared.offset(start * n)) };
    });
    out
}

/// Adds each row of `outputs`, weighted, to its token: experts ascend within the pass.
fn add_weighted(sum: &mut [f32], width: usize, pass: &[Group], outputs: &[f32]) {
    let cost = outputs.len();
    let piece = team::piece_len(width, 64, cost);
    let sum = SharedMut::new(sum);
    team::share(width.div_ceil(piece), cost, |index| {
        let start = index * piece;
        let len = piece.min(width - start);
        let members = pass.iter().flat_map(|group| &group.members);
        for (&(token, weight), row) in members.zip(outputs.chunks_exact(width)) {
            // SAFETY: `[T, width]`; pieces of columns do not overlap.
            let sum = unsafe { sum.slice(token * width + start, len) };
            for (sum, output) in sum.iter_mut().zip(&row[start..]) {
                *sum += weight * output;
            }
        }
    });
}
