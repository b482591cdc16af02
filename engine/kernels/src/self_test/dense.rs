//! Cases of what treats every token alike: products and norms.

use burn::tensor::{DType, Device};

use super::compare::{EPS, TOLERANCE, outcome, untouched};
use super::inputs::{Numbers, upload, wide};
use super::{Outcome, Shapes, oracle};
use crate::Arithmetic;

/// Token ids to vectors.
pub fn embed(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (vocab_size, width) = (shapes.num_tokens() + 7, shapes.hidden);
    let table = numbers.vector(vocab_size * width, 1.0, shapes.weights);
    let ids: Vec<u32> = (0..shapes.num_tokens())
        .map(|_| numbers.below(vocab_size) as u32)
        .collect();
    let want: Vec<f32> = ids
        .iter()
        .flat_map(|&id| &table[id as usize * width..][..width])
        .copied()
        .collect();
    let table = upload(&table, [vocab_size, width], shapes.weights, device);
    untouched("embedding", &crate::embedding(&table, &ids.into()), &want)
}

/// A weight product with a bias.
pub fn product(device: &Device, shapes: &Shapes) -> Outcome {
    product_with(device, shapes, shapes.arithmetic)
}

/// The same, computed in another arithmetic than the one it is compared in: shows what the
/// tolerance can tell apart.
pub fn product_with(device: &Device, shapes: &Shapes, arithmetic: Arithmetic) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, n, k) = (shapes.num_tokens(), shapes.intermediate, shapes.hidden);
    let x = numbers.vector(m * k, 1.0, DType::F32);
    let w = shapes.matrix(numbers, n, k);
    let bias = numbers.vector(n, 1.0, shapes.weights);
    let want = oracle::linear(
        &wide(&x),
        &w.wide(),
        Some(&wide(&bias)),
        k,
        shapes.arithmetic,
    );
    let got = crate::linear(
        upload(&x, [m, k], DType::F32, device),
        &w.upload(shapes.weights, device),
        Some(&shapes.vector(&bias, [n], device)),
        arithmetic,
    );
    outcome("linear", &got, &want, TOLERANCE)
}

/// The dense MLP, with and without biases by turns of the seed.
pub fn mlp(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, n, k) = (shapes.num_tokens(), shapes.intermediate, shapes.hidden);
    let x = numbers.vector(m * k, 1.0, DType::F32);
    let (up, down) = (shapes.matrix(numbers, n, k), shapes.matrix(numbers, k, n));
    let biases = (shapes.seed.is_multiple_of(2)).then(|| {
        (
            numbers.vector(n, 1.0, shapes.weights),
            numbers.vector(k, 1.0, shapes.weights),
        )
    });
    let wide_biases = biases.as_ref().map(|(up, down)| (wide(up), wide(down)));
    let (up_bias, down_bias) = match &wide_biases {
        Some((up, down)) => (Some(&up[..]), Some(&down[..])),
        None => (None, None),
    };
    let hidden = oracle::linear(&wide(&x), &up.wide(), up_bias, k, shapes.arithmetic);
    let want = oracle::linear(
        &oracle::relu2(&hidden),
        &down.wide(),
        down_bias,
        n,
        shapes.arithmetic,
    );
    let biases = biases.map(|(up, down)| {
        (
            shapes.vector(&up, [n], device),
            shapes.vector(&down, [k], device),
        )
    });
    let got = crate::mlp_relu2(
        upload(&x, [m, k], DType::F32, device),
        &up.upload(shapes.weights, device),
        biases.as_ref().map(|biases| &biases.0),
        &down.upload(shapes.weights, device),
        biases.as_ref().map(|biases| &biases.1),
        shapes.arithmetic,
    );
    outcome("mlp_relu2", &got, &want, shapes.inner_tolerance())
}

/// The plain norm, and the one fused with the residual.
pub fn norms(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, width) = (shapes.num_tokens(), shapes.hidden);
    let x = numbers.vector(m * width, 3.0, DType::F32);
    let residual = numbers.vector(m * width, 3.0, DType::F32);
    let weight = numbers.vector(width, 2.0, shapes.weights);
    let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
    let want = |x: &[f32]| oracle::norm(&wide(x), &wide(&weight), width, f64::from(EPS));

    let weight_tensor = shapes.vector(&weight, [width], device);
    let x_tensor = upload(&x, [m, width], DType::F32, device);
    let plain = crate::rms_norm(x_tensor.clone(), &weight_tensor, EPS);
    let residual = upload(&residual, [m, width], DType::F32, device);
    let (got_sum, fused) = crate::add_rms_norm(residual, x_tensor, &weight_tensor, EPS);
    vec![
        outcome("rms_norm", &plain, &want(&x), TOLERANCE),
        untouched("add_rms_norm: sum", &got_sum, &sum),
        outcome("add_rms_norm", &fused, &want(&sum), TOLERANCE),
    ]
}

/// Gate, then norm by groups.
pub fn gated_norm(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, inner, columns) = (
        shapes.num_tokens(),
        shapes.mamba.inner(),
        shapes.mamba.projected(),
    );
    let y = numbers.vector(m * inner, 2.0, DType::F32);
    let projected = numbers.vector(m * columns, 8.0, DType::F32);
    let weight = numbers.vector(inner, 2.0, shapes.weights);
    let gated: Vec<f64> = (0..m * inner)
        .map(|at| {
            let z = projected[at / inner * columns + at % inner];
            f64::from(y[at]) * oracle::silu(f64::from(z))
        })
        .collect();
    let groups = shapes.mamba.groups;
    let want = oracle::norm(&gated, &wide(&weight), inner / groups, f64::from(EPS));
    let got = crate::gated_group_norm(
        upload(&y, [m, inner], DType::F32, device),
        &upload(&projected, [m, columns], DType::F32, device),
        &shapes.vector(&weight, [inner], device),
        groups,
        EPS,
    );
    outcome("gated_group_norm", &got, &want, TOLERANCE)
}
