//! Every operation against f64 loops: CPU kernels on every instruction set this machine has, and
//! the references that specify them, over shapes drawn at random.

use burn::tensor::{DType, Device};
use kernels::self_test::{self, Outcome, Shapes, self_test};
use kernels::{
    Arithmetic, Format, Isa, KvFormat, MambaShape, NVFP4_BLOCK, RouterShape, with_isa,
    with_reference,
};
use proptest::prelude::*;

fn check(outcomes: &[Outcome], how: &str, shapes: &Shapes) {
    for outcome in outcomes {
        assert!(outcome.is_ok(), "{how}: {outcome:?} at {shapes:?}");
    }
}

/// On every instruction set, then by the reference.
fn check_all_ways(shapes: &Shapes, test: impl Fn(&Device, &Shapes) -> Vec<Outcome>) {
    let device = Device::flex();
    for isa in Isa::available() {
        let outcomes = with_isa(isa, || test(&device, shapes));
        check(&outcomes, isa.name(), shapes);
    }
    let outcomes = with_reference(|| test(&device, shapes));
    check(&outcomes, "reference", shapes);
}

#[test]
fn self_test_passes() {
    for weights in [DType::F32, DType::F16, DType::BF16] {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            for kv in [KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8] {
                let shapes = Shapes {
                    weights,
                    arithmetic,
                    kv,
                    ..Shapes::default()
                };
                check_all_ways(&shapes, self_test);
            }
        }
    }
}

/// What reads matrices.
fn products(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    vec![
        self_test::product(device, shapes),
        self_test::mlp(device, shapes),
        self_test::experts(device, shapes),
    ]
}

#[test]
fn quantised_products_pass() {
    for format in [Format::Fp8, Format::Nvfp4] {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            // Experts in one buffer and apart.
            for seed in [1, 2] {
                let shapes = Shapes {
                    format,
                    arithmetic,
                    seed,
                    ..Shapes::default()
                };
                check_all_ways(&shapes, products);
            }
        }
    }
}

#[test]
fn self_test_notices_a_wrong_result() {
    // What the outcomes are worth: a kernel that computes in bf16 fails the f32 tolerance.
    let device = Device::flex();
    let shapes = Shapes::default();
    let rounded = Shapes {
        arithmetic: Arithmetic::Bf16,
        ..shapes.clone()
    };
    let good = self_test::product(&device, &shapes);
    let bad = self_test::product_with(&device, &shapes, rounded.arithmetic);
    assert!(good.is_ok());
    assert!(!bad.is_ok(), "{bad:?}");
}

/// Ragged rows: decodes, fresh prompts, chunks around block and window borders.
fn rows() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let row = prop_oneof![
        (0_usize..70, Just(1_usize)),
        (Just(0_usize), 1_usize..40),
        (0_usize..40, 2_usize..6),
    ];
    prop::collection::vec(row, 1..5)
}

fn formats() -> impl Strategy<Value = Format> {
    prop::sample::select(vec![Format::Plain, Format::Fp8, Format::Nvfp4])
}

fn dtypes() -> impl Strategy<Value = (DType, KvFormat, Arithmetic)> {
    (
        prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
        prop::sample::select(vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8]),
        prop::sample::select(vec![Arithmetic::F32, Arithmetic::Bf16]),
    )
}

fn attention() -> impl Strategy<Value = (usize, usize, usize, usize)> {
    // kv heads, queries per kv head, head width, positions per block.
    (1_usize..4, 1_usize..7, 1_usize..40, 1_usize..35)
}

fn mamba() -> impl Strategy<Value = MambaShape> {
    (1_usize..4, 1_usize..4, 1_usize..20, 1_usize..40, 1_usize..6).prop_map(
        |(groups, heads_per_group, head_dim, state, conv_kernel)| MambaShape {
            heads: groups * heads_per_group,
            head_dim,
            groups,
            state,
            conv_kernel,
        },
    )
}

fn router() -> impl Strategy<Value = (usize, RouterShape)> {
    (1_usize..4, 1_usize..9, any::<bool>()).prop_flat_map(|(n_group, size, norm_topk_prob)| {
        (1..=n_group).prop_flat_map(move |topk_group| {
            (1..=topk_group * size).prop_map(move |top_k| {
                let shape = RouterShape {
                    top_k,
                    n_group,
                    topk_group,
                    norm_topk_prob,
                    scaling: 2.5,
                };
                (n_group * size, shape)
            })
        })
    })
}

fn shapes() -> impl Strategy<Value = Shapes> {
    let widths = (1_usize..80, 1_usize..50, 1_usize..70, 1_usize..40);
    let limit = prop_oneof![Just(None), Just(Some((0.01_f32, 2.0_f32)))];
    (
        rows(),
        dtypes(),
        widths,
        attention(),
        mamba(),
        router(),
        (limit, formats()),
        any::<u32>(),
    )
        .prop_map(
            |(rows, dtypes, widths, attention, mamba, router, (time_step_limit, format), seed)| {
                // Rows of NVFP4 are whole blocks.
                let width = |width: usize| match format {
                    Format::Nvfp4 => width.next_multiple_of(NVFP4_BLOCK),
                    _ => width,
                };
                Shapes {
                    hidden: width(widths.0),
                    intermediate: width(widths.1),
                    heads: attention.0 * attention.1,
                    kv_heads: attention.0,
                    head_dim: attention.2,
                    block_size: attention.3,
                    mamba,
                    time_step_limit,
                    num_experts: router.0,
                    expert_hidden: width(widths.2),
                    expert_intermediate: width(widths.3),
                    router: router.1,
                    rows,
                    weights: dtypes.0,
                    format,
                    kv: dtypes.1,
                    arithmetic: dtypes.2,
                    seed: u64::from(seed),
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_at_any_shape(shapes in shapes()) {
        check_all_ways(&shapes, self_test);
    }
}

/// Wide enough that threads share the work and inputs fall into several blocks.
#[test]
fn wide_shapes() {
    let shapes = Shapes {
        hidden: 1536,
        intermediate: 517,
        rows: vec![(0, 90), (100, 1), (5, 3)],
        weights: DType::BF16,
        ..Shapes::default()
    };
    for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
        let shapes = Shapes {
            arithmetic,
            ..shapes.clone()
        };
        for format in [Format::Plain, Format::Fp8, Format::Nvfp4] {
            let shapes = Shapes {
                format,
                // Rows of the down projection are whole blocks.
                intermediate: if format == Format::Nvfp4 { 528 } else { 517 },
                ..shapes.clone()
            };
            check_all_ways(&shapes, products);
        }
        check_all_ways(&shapes, self_test::attention);
    }
}
