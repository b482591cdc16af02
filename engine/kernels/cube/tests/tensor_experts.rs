//! The experts' tensor core products, their very text on the processor, against f64 loops.

use std::collections::BTreeMap;

use cube_kernels::Format;
use cube_kernels::tensor_core::Unit;
use cube_kernels::tensor_core::plan::{self, Role, Shape};
use emulated::Emulator;
use emulated::weights::{Random, Weights, to_bf16};

mod emulated;

struct Case {
    t: usize,
    top_k: usize,
    up: Shape,
    down: Shape,
    unit: Unit,
}

/// `experts` matrices `[width, latent]` and `[latent, width]`.
fn case(
    formats: [Format; 2],
    t: usize,
    top_k: usize,
    experts: usize,
    latent: usize,
    width: usize,
) -> Case {
    let shape = |format, n, k| Shape {
        format,
        experts,
        n,
        k,
    };
    Case {
        t,
        top_k,
        up: shape(formats[0], width, latent),
        down: shape(formats[1], latent, width),
        unit: Unit::Mma,
    }
}

struct Inputs {
    x: Vec<f32>,
    experts: Vec<u32>,
    weights: Vec<f32>,
    up: Weights,
    down: Weights,
}

/// Distinct experts per token, a few of them popular, some ids past the stack, many experts idle.
fn inputs(case: &Case, seed: u64) -> Inputs {
    let mut random = Random::new(seed);
    let mut experts = Vec::new();
    for _ in 0..case.t {
        let mut chosen: Vec<u32> = Vec::new();
        while chosen.len() < case.top_k {
            let past = case.up.experts as u32 + 2;
            let popular = random.below(3) > 0;
            let expert = random.below(if popular { past.min(7) } else { past });
            if !chosen.contains(&expert) {
                chosen.push(expert);
            }
        }
        experts.extend(chosen);
    }
    Inputs {
        up: Weights::random(case.up, &mut random),
        down: Weights::random(case.down, &mut random),
        x: random.values(case.t * case.up.k),
        weights: random.values(case.t * case.top_k),
        experts,
    }
}

/// Pairs by expert, and where each expert's begin; those past the stack come last.
fn sort(case: &Case, experts: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut sorted: Vec<u32> = (0..experts.len() as u32).collect();
    sorted.sort_by_key(|&pair| experts[pair as usize]);
    let before = |expert: u32| experts.iter().filter(|&&id| id < expert).count() as u32;
    (sorted, (0..=case.up.experts as u32).map(before).collect())
}

fn run(emulator: &Emulator, case: &Case, inputs: &Inputs, seed: u32) -> Vec<f32> {
    let plan = plan::experts(case.t, case.top_k, case.up, case.down, case.unit);
    let (sorted, offsets) = sort(case, &inputs.experts);
    let floats = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
    let words = |values: &[u32]| bytemuck::cast_slice(values).to_vec();
    let mut buffers: BTreeMap<Role, Vec<u8>> = BTreeMap::from([
        (Role::X, floats(&inputs.x)),
        (Role::Words, inputs.up.words.clone()),
        (Role::BlockScales, inputs.up.block_scales.clone()),
        (Role::Scales, floats(&inputs.up.scales)),
        (Role::DownWords, inputs.down.words.clone()),
        (Role::DownBlockScales, inputs.down.block_scales.clone()),
        (Role::DownScales, floats(&inputs.down.scales)),
        (Role::Sorted, words(&sorted)),
        (Role::Offsets, words(&offsets)),
        (Role::Experts, words(&inputs.experts)),
        (Role::Weights, floats(&inputs.weights)),
        (Role::Out, vec![0xff; case.t * case.down.n * 4]),
    ]);
    emulator.carry_out(&plan, &mut buffers, seed);
    bytemuck::pod_collect_to_vec(&buffers[&Role::Out])
}

/// A number and how far an f32 evaluation may be from it.
#[derive(Clone, Copy)]
struct Near {
    value: f64,
    bound: f64,
}

/// `w[expert] @ x`, with what the inputs' and the sums' roundings may lose.
fn multiply(w: &Weights, shape: Shape, expert: usize, x: &[Near]) -> Vec<Near> {
    let scale = w.scale(expert);
    let row = |n: usize| {
        let weights = &w.values[(expert * shape.n + n) * shape.k..][..shape.k];
        let (mut value, mut bound) = (0.0, 0.0);
        let num_roundings = shape.k as f64 / 16.0 + 24.0;
        for (x, w) in x.iter().zip(weights) {
            value += x.value * w * scale;
            bound +=
                (w * scale).abs() * (x.bound + x.value.abs() * num_roundings * 2_f64.powi(-24));
        }
        Near { value, bound }
    };
    (0..shape.n).map(row).collect()
}

/// As stored between the matrices: rounded to bf16, either way where that is in doubt.
fn squared(near: Near) -> Near {
    let of = |value: f64| to_bf16(value.max(0.0).powi(2) as f32);
    let slack = near.bound + near.value.abs() * 2_f64.powi(-23);
    let (low, high) = (of(near.value - slack), of(near.value + slack));
    Near {
        value: f64::midpoint(low, high),
        bound: (high - low) / 2.0,
    }
}

fn check(case: &Case, inputs: &Inputs, output: &[f32]) {
    for token in 0..case.t {
        let x: Vec<Near> = inputs.x[token * case.up.k..][..case.up.k]
            .iter()
            .map(|&x| Near {
                value: to_bf16(x),
                bound: 0.0,
            })
            .collect();
        let mut sums = vec![
            Near {
                value: 0.0,
                bound: 0.0
            };
            case.down.n
        ];
        for slot in 0..case.top_k {
            let expert = inputs.experts[token * case.top_k + slot] as usize;
            if expert >= case.up.experts {
                continue;
            }
            let weight = f64::from(inputs.weights[token * case.top_k + slot]);
            let hidden = multiply(&inputs.up, case.up, expert, &x);
            let hidden: Vec<Near> = hidden.into_iter().map(squared).collect();
            for (sum, y) in sums
                .iter_mut()
                .zip(multiply(&inputs.down, case.down, expert, &hidden))
            {
                sum.value += weight * y.value;
                sum.bound += weight.abs() * (y.bound + y.value.abs() * 2_f64.powi(-20));
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            let value = f64::from(output[token * case.down.n + n]);
            assert!(
                (value - sum.value).abs() <= sum.bound + 1e-12,
                "({token}, {n}): {value}, not {} +- {}",
                sum.value,
                sum.bound
            );
        }
    }
}

fn check_all(test: &str, cases: &[Case]) {
    let mut texts = BTreeMap::new();
    for case in cases {
        for launch in plan::experts(case.t, case.top_k, case.up, case.down, case.unit).launches {
            texts.insert(launch.text.name.clone(), launch.text.source());
        }
    }
    let Some(emulator) = Emulator::new(test, &texts.into_iter().collect::<Vec<_>>()) else {
        return;
    };
    for (at, case) in cases.iter().enumerate() {
        let inputs = inputs(case, at as u64);
        check(case, &inputs, &run(&emulator, case, &inputs, at as u32));
    }
}

const NVFP4: [Format; 2] = [Format::Nvfp4; 2];

#[test]
fn few_tokens_find_their_experts() {
    check_all(
        "tensor_experts_few",
        &[
            case(NVFP4, 1, 1, 1, 64, 64),
            case(NVFP4, 1, 6, 200, 64, 64),
            case(NVFP4, 3, 22, 70, 128, 64),
            case([Format::Bf16; 2], 2, 4, 9, 72, 136),
            case([Format::Fp8; 2], 5, 3, 130, 48, 80),
            case([Format::Fp8, Format::Nvfp4], 4, 3, 12, 48, 128),
            case([Format::Nvfp4, Format::Fp8], 4, 3, 12, 64, 144),
        ],
    );
}

/// More tokens than a tile has, at every size of tile.
#[test]
fn many_tokens_share_tiles() {
    check_all(
        "tensor_experts_many",
        &[
            case(NVFP4, 30, 3, 5, 64, 64),   // tiles of 32
            case(NVFP4, 40, 2, 5, 64, 64),   // of 32
            case(NVFP4, 140, 2, 3, 64, 192), // of 128
            case([Format::Bf16, Format::Fp8], 60, 2, 8, 40, 48),
            case([Format::Fp8, Format::Bf16], 18, 4, 11, 48, 48),
        ],
    );
}

#[test]
fn hoppers_product_is_right() {
    let mut cases = [
        case(NVFP4, 140, 2, 3, 64, 192),
        case([Format::Bf16, Format::Fp8], 80, 2, 3, 160, 96),
        case([Format::Fp8, Format::Bf16], 80, 2, 3, 32, 96),
    ];
    for case in &mut cases {
        case.unit = Unit::Wgmma;
        let plan = plan::experts(case.t, case.top_k, case.up, case.down, case.unit);
        let products = plan
            .launches
            .iter()
            .filter(|launch| launch.text.name.contains("wgmma"));
        assert_eq!(products.count(), 2);
    }
    check_all("tensor_experts_wgmma", &cases);
}

/// A token's result is the same bits among others and alone; a NaN stays with its token.
#[test]
fn tokens_keep_to_themselves() {
    const NAN: usize = 9;
    let cases = [1, 10, 60, 140].map(|t| case(NVFP4, t, 3, 6, 64, 192));
    let mut all = inputs(&cases[3], 3);
    all.x[NAN * 64 + 17] = f32::NAN;
    let mut texts = BTreeMap::new();
    for case in &cases {
        for launch in plan::experts(case.t, case.top_k, case.up, case.down, case.unit).launches {
            texts.insert(launch.text.name.clone(), launch.text.source());
        }
    }
    let texts: Vec<_> = texts.into_iter().collect();
    let Some(emulator) = Emulator::new("tensor_experts_rows", &texts) else {
        return;
    };
    let results = cases.each_ref().map(|case| {
        let part = Inputs {
            x: all.x[..case.t * 64].to_vec(),
            experts: all.experts[..case.t * 3].to_vec(),
            weights: all.weights[..case.t * 3].to_vec(),
            up: all.up.clone(),
            down: all.down.clone(),
        };
        run(&emulator, case, &part, case.t as u32)
    });
    for result in &results {
        for (at, value) in result.iter().enumerate() {
            assert_eq!(value.to_bits(), results[3][at].to_bits(), "output {at}");
            assert_eq!(value.is_nan(), at / 64 == NAN, "output {at}");
        }
    }
}
