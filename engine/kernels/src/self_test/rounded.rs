//! Cases of bf16 arithmetic, whatever the rest runs in: the kernels that a device has for it alone. A
//! processor with dot products of bf16 has some, by which drafts are guessed in every arithmetic.

use burn::tensor::{DType, Device, Tensor};

use super::compare::TOLERANCE;
use super::inputs::{Numbers, upload, wide};
use super::mixer::{Mixer, States};
use super::{Outcome, Shapes, dense, mixture};
use crate::ways::with_way;
use crate::{Arithmetic, Format, ProductWay, with_f32};

/// Products with rounded activations, and on a GPU the scan of a long row: a CPU's does not depend on the
/// arithmetic.
pub fn rounded(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let shapes = Shapes {
        arithmetic: Arithmetic::Bf16,
        ..shapes.clone()
    };
    let named = |outcome, operation| Outcome {
        operation,
        ..outcome
    };
    let mut outcomes = vec![
        named(dense::product(device, &shapes), "linear in bf16"),
        named(dense::mlp(device, &shapes), "mlp_relu2 in bf16"),
        named(mixture::experts(device, &shapes), "moe_experts in bf16"),
    ];
    if crate::is_gpu(device) {
        outcomes.extend(long_row(device, &shapes));
    }
    let (format, seed) = (shapes.format, shapes.seed);
    let ways = crate::reordering_ways(device);
    if !ways.is_empty() {
        outcomes.extend(many_rows(device, format, seed));
    }
    for way in ways {
        outcomes.extend(reordered(device, way, format, seed));
    }
    outcomes
}

/// Products of enough rows for tiles of 128, in the order of all others.
fn many_rows(device: &Device, format: Format, seed: u64) -> Vec<Outcome> {
    let shapes = large(Arithmetic::Bf16, format, seed);
    vec![
        Outcome {
            operation: "linear in bf16, many rows",
            ..dense::product(device, &shapes)
        },
        Outcome {
            operation: "moe_experts in bf16, many rows",
            ..mixture::experts(device, &shapes)
        },
    ]
}

/// The same in the order of a way of their own.
pub fn reordered(device: &Device, way: ProductWay, format: Format, seed: u64) -> Vec<Outcome> {
    let shapes = large(Arithmetic::Bf16AnyOrder, format, seed);
    with_way(way, || match way {
        ProductWay::Wgmma => vec![
            Outcome {
                operation: "linear in bf16, any order",
                ..dense::product(device, &shapes)
            },
            Outcome {
                operation: "moe_experts in bf16, any order",
                ..mixture::experts(device, &shapes)
            },
        ],
        // It is handed no experts, and what follows a product is ours.
        ProductWay::Library => vec![
            Outcome {
                operation: "linear in bf16, cuBLASLt",
                ..dense::product(device, &shapes)
            },
            Outcome {
                operation: "mlp_relu2 in bf16, cuBLASLt",
                ..dense::mlp(device, &shapes)
            },
        ],
    })
}

/// Shapes of large products.
fn large(arithmetic: Arithmetic, format: Format, seed: u64) -> Shapes {
    let mut shapes = Shapes {
        hidden: 128,
        intermediate: 8192,
        num_experts: 4,
        expert_hidden: 128,
        expert_intermediate: 192,
        rows: vec![(0, 130)],
        arithmetic,
        format,
        seed,
        ..Shapes::default()
    };
    shapes.router.top_k = 2;
    shapes
}

/// The scan of rows that tensor cores take in chunks, beside one of decode.
fn long_row(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    /// What roundings to bf16 leave, as a part of the whole.
    const ROUNDED: f64 = 1e-2;
    let shapes = &Shapes {
        rows: vec![(60, 90), (37, 1), (0, 70)],
        ..shapes.clone()
    };
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mixer = Mixer::new(shapes, 4.0, numbers);
    let shape = [shapes.num_tokens(), shapes.mamba.conv_dim()];
    let xbc = numbers.vector(shape[0] * shape[1], 1.0, DType::F32);
    let (want, want_state) = mixer.want_scan(&wide(&xbc), &states);
    let on_device = mixer.upload(device);
    let (got, pool) = crate::ssm_scan(
        upload(&xbc, shape, DType::F32, device),
        &on_device.projected,
        &on_device.parameters(),
        states.upload(shapes, device),
        &shapes.mamba,
        &states.layout,
        shapes.arithmetic,
    );
    // Without chunks it is as exact as in f32.
    let tolerance = if crate::has_tensor_cores(device) {
        ROUNDED
    } else {
        TOLERANCE
    };
    vec![
        Outcome {
            operation: "ssm_scan in bf16",
            max_error: part_of_whole(&got, &want),
            tolerance,
        },
        Outcome {
            operation: "ssm_scan in bf16: state",
            max_error: part_of_whole(&pool.ssm, &want_state),
            tolerance,
        },
    ]
}

/// Root of the mean square of the errors, in that of the wanted values: single outputs are sums that
/// may cancel. Infinite for a NaN where none is wanted, or none where one is.
fn part_of_whole<const D: usize>(got: &Tensor<D>, want: &[f64]) -> f64 {
    with_f32(got, |got| {
        let (mut errors, mut squares) = (0.0, 0.0);
        for (&got, &want) in got.iter().zip(want) {
            if got.is_nan() != want.is_nan() {
                return f64::INFINITY;
            }
            if !want.is_nan() {
                errors += (f64::from(got) - want).powi(2);
                squares += want * want;
            }
        }
        (errors / squares).sqrt()
    })
}
