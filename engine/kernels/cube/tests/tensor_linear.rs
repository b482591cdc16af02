//! The tensor core product, its very text on the processor, against f64 loops.

use std::collections::BTreeMap;

use cube_kernels::tensor_core::Unit;
use cube_kernels::tensor_core::plan::{self, Plan, Role, Shape};
use cube_kernels::{Epilogue, Format};
use emulated::Emulator;
use emulated::weights::{Random, Weights, to_bf16};

mod emulated;

struct Case {
    t: usize,
    n: usize,
    k: usize,
    has_bias: bool,
    epilogue: Epilogue,
}

fn case(t: usize, n: usize, k: usize) -> Case {
    Case {
        t,
        n,
        k,
        has_bias: false,
        epilogue: Epilogue::None,
    }
}

fn shape(format: Format, case: &Case) -> Shape {
    Shape {
        format,
        experts: 1,
        n: case.n,
        k: case.k,
    }
}

fn plan_of(format: Format, case: &Case) -> Plan {
    plan::linear(
        case.t,
        shape(format, case),
        case.has_bias,
        case.epilogue,
        Unit::Mma,
    )
}

/// Compiles what the plans launch.
fn compile(test: &str, plans: &[Plan]) -> Option<Emulator> {
    let launches = plans.iter().flat_map(|plan| &plan.launches);
    let texts = launches.map(|launch| (launch.text.name.clone(), launch.text.source()));
    let texts: BTreeMap<_, _> = texts.collect();
    Emulator::new(test, &texts.into_iter().collect::<Vec<_>>())
}

struct Inputs {
    x: Vec<f32>,
    bias: Vec<f32>,
    w: Weights,
}

fn inputs(format: Format, case: &Case, seed: u64) -> Inputs {
    let mut random = Random::new(seed);
    Inputs {
        w: Weights::random(shape(format, case), &mut random),
        bias: random.values(case.n),
        x: random.values(case.t * case.k),
    }
}

fn carry_out(
    emulator: &Emulator,
    plan: &Plan,
    case: &Case,
    inputs: &Inputs,
    seed: u32,
) -> Vec<f32> {
    let mut buffers = BTreeMap::from([
        (Role::X, bytemuck::cast_slice(&inputs.x).to_vec()),
        (Role::Words, inputs.w.words.clone()),
        (Role::BlockScales, inputs.w.block_scales.clone()),
        (
            Role::Scales,
            bytemuck::cast_slice(&inputs.w.scales).to_vec(),
        ),
        (Role::Bias, bytemuck::cast_slice(&inputs.bias).to_vec()),
        (Role::Out, vec![0xff; case.t * case.n * 4]),
    ]);
    emulator.carry_out(plan, &mut buffers, seed);
    bytemuck::pod_collect_to_vec(&buffers[&Role::Out])
}

/// Checks every output against the sum in f64; the bound is what f32 sums of its terms may lose.
fn check(case: &Case, inputs: &Inputs, output: &[f32]) {
    let Inputs { x, bias, w } = inputs;
    let scale = w.scale(0);
    for token in 0..case.t {
        let row: Vec<f64> = x[token * case.k..][..case.k]
            .iter()
            .map(|&x| to_bf16(x))
            .collect();
        for n in 0..case.n {
            let weights = &w.values[n * case.k..][..case.k];
            let (mut sum, mut size) = (0.0, 0.0);
            for (x, w) in row.iter().zip(weights) {
                sum += x * w * scale;
                size += (x * w * scale).abs();
            }
            let num_roundings = case.k as f64 / 16.0 + 24.0;
            let mut bound = size * num_roundings * 2_f64.powi(-24);
            if case.has_bias {
                sum += f64::from(bias[n]);
                bound += f64::from(bias[n]).abs() * 2_f64.powi(-24);
            }
            if case.epilogue == Epilogue::Relu2 {
                bound = 2.0 * sum.abs() * bound + bound * bound + sum * sum * 2_f64.powi(-24);
                sum = sum.max(0.0).powi(2);
            }
            let value = f64::from(output[token * case.n + n]);
            assert!(
                (value - sum).abs() <= bound,
                "({token}, {n}) of {} x {} x {}: {value}, not {sum} +- {bound}",
                case.t,
                case.n,
                case.k
            );
        }
    }
}

/// Every tile, whole and partial, with tails in all three dimensions.
fn check_format(test: &str, format: Format) {
    let unit = match format {
        Format::Bf16 => 8,
        Format::Fp8 => 16,
        _ => 64,
    };
    let mut cases = vec![
        case(1, 1, unit),
        case(5, 130, 256 + unit),
        case(9, 70, 128),
        case(20, 33, 512 + 3 * unit),
        case(40, 129, 256),
        case(65, 40, 128 + unit),
        // Slices: 8, 32 and 128 tokens of partial sums.
        case(8, 24, 1024 + unit),
        case(30, 17, 1100 / unit * unit),
        case(100, 9, 1024 + unit),
    ];
    cases[1].has_bias = true;
    cases[2].epilogue = Epilogue::Relu2;
    cases[6].has_bias = true;
    cases[6].epilogue = Epilogue::Relu2;
    let plans: Vec<Plan> = cases.iter().map(|case| plan_of(format, case)).collect();
    let Some(emulator) = compile(test, &plans) else {
        return;
    };
    for (at, (case, plan)) in cases.iter().zip(&plans).enumerate() {
        let inputs = inputs(format, case, at as u64);
        check(
            case,
            &inputs,
            &carry_out(&emulator, plan, case, &inputs, at as u32),
        );
    }
}

#[test]
fn bf16_is_right() {
    check_format("tensor_linear_bf16", Format::Bf16);
}

#[test]
fn fp8_is_right() {
    check_format("tensor_linear_fp8", Format::Fp8);
}

#[test]
fn nvfp4_is_right() {
    check_format("tensor_linear_nvfp4", Format::Nvfp4);
}

/// The plan of many tokens, where a block adds up all slices itself, for few.
fn whole(plan: Plan, format: &str) -> Plan {
    let name = format!("tensor_linear_{format}_128_slices");
    let texts = plan::texts();
    let text = texts.iter().find(|text| text.name == name);
    let mut launches = plan.launches;
    assert!(
        launches
            .pop()
            .is_some_and(|launch| launch.text.name.contains("reduce"))
    );
    let product = launches.last_mut().expect("a product before the reduction");
    assert!(
        product.text.name.ends_with("_128_partial"),
        "{}",
        product.text.name
    );
    product.text = text.expect("a text for many tokens").clone();
    product.grid[1] = 1;
    *product.arguments.last_mut().expect("an output") = Role::Out;
    Plan { launches, ..plan }
}

/// The same rows in every tile, among others and alone, in partial sums and in whole ones: the same
/// bits. A row of NaN keeps to itself.
fn check_rows(test: &str, format: Format, name: &str) {
    const NAN: usize = 11;
    let cases = [1, 13, 30, 64, 70].map(|t| case(t, 20, 1152));
    let plans = cases.each_ref().map(|case| {
        let plan = plan_of(format, case);
        assert_eq!(
            plan.launches.last().map(|last| last.sizes[2]),
            Some(3),
            "slices"
        );
        plan
    });
    let mut plans = plans.to_vec();
    plans.push(whole(plans[4].clone(), name));
    let Some(emulator) = compile(test, &plans) else {
        return;
    };
    let mut all = inputs(format, &cases[4], 7);
    all.x[NAN * 1152 + 5] = f32::NAN;
    let mut results = Vec::new();
    for (at, plan) in plans.iter().enumerate() {
        let t = cases[at.min(4)].t;
        let part = Inputs {
            x: all.x[..t * 1152].to_vec(),
            bias: Vec::new(),
            w: all.w.clone(),
        };
        results.push(carry_out(
            &emulator,
            plan,
            &cases[at.min(4)],
            &part,
            at as u32,
        ));
    }
    for result in &results {
        for (at, value) in result.iter().enumerate() {
            let expected = results[5][at];
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "output {at} of {}",
                result.len()
            );
            assert_eq!(value.is_nan(), at / 20 == NAN, "output {at}");
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_number() {
    check_rows("tensor_linear_rows_bf16", Format::Bf16, "bf16");
    check_rows("tensor_linear_rows_fp8", Format::Fp8, "fp8");
    check_rows("tensor_linear_rows_nvfp4", Format::Nvfp4, "nvfp4");
}

/// Hopper's product is for many outputs of many tokens, so its plan is made at such a size and run
/// at less.
fn check_wgmma(test: &str, format: Format, case: &Case) {
    let large = Shape {
        n: 64 * 128,
        ..shape(format, case)
    };
    let mut plan = plan::linear(case.t, large, case.has_bias, case.epilogue, Unit::Wgmma);
    let product = plan.launches.last_mut().expect("a product");
    assert!(product.text.name.contains("wgmma"), "{}", product.text.name);
    product.sizes[1] = case.n as u32;
    product.grid[0] = (case.t.div_ceil(128) * case.n.div_ceil(128)) as u32;
    let Some(emulator) = compile(test, std::slice::from_ref(&plan)) else {
        return;
    };
    let inputs = inputs(format, case, 5);
    check(
        case,
        &inputs,
        &carry_out(&emulator, &plan, case, &inputs, 2),
    );
}

#[test]
fn hoppers_product_is_right() {
    let mut with_bias = case(130, 140, 96);
    with_bias.has_bias = true;
    check_wgmma("tensor_linear_wgmma_bf16", Format::Bf16, &with_bias);
    let mut squared = case(70, 40, 288);
    squared.epilogue = Epilogue::Relu2;
    check_wgmma("tensor_linear_wgmma_fp8", Format::Fp8, &squared);
    check_wgmma(
        "tensor_linear_wgmma_nvfp4",
        Format::Nvfp4,
        &case(128, 130, 320),
    );
}

#[test]
fn texts_have_names_of_their_own() {
    let mut names: Vec<String> = plan::texts().into_iter().map(|text| text.name).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
